"""What `dataset.storage` costs: bytes on disk and images a second, for the two ways that our records can hold an image.

    python -m cxr_jax.benchmarks.storage [--data_dir=DIR --name=nih --raw_dir=DIR] [--patients=N] [--rounds=5]

Both ways are ours: the default, in which a record holds an image as PNG, beside `raw`, in which it holds the pixels. No other
library is measured. Builds the data set both ways (the phantom where none is named; in a temporary folder unless
--data_dir says otherwise) and reads every image of it, through the pipeline that training reads by, in turns. Prints
sizes, the median rates over rounds, and their ratio.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence

import numpy as np

from configs import base
from cxr_jax import benchmarks, experiment
from cxr_jax.data import cohorts, datasets, pipeline

STORAGES = ("png", "raw")


def opened(storage: str, asked: argparse.Namespace, data_dir: str) -> tuple[datasets.Dataset, cohorts.Cohort]:
    config = base.get_config().dataset
    experiment.choose_dataset(config, asked.name, "--name")
    config.update(storage=storage, data_dir=data_dir, raw_dir=asked.raw_dir, views=())
    if asked.patients:
        config.phantom.patients = asked.patients
    if config.race_rule != "recorded":
        config.race_rule = "all"
    dataset = datasets.prepare(config)
    return dataset, cohorts.select(dataset.keys, dataset.findings, dataset.races, config)


def seconds_to_read(dataset: datasets.Dataset, cohort: cohorts.Cohort) -> float:
    # A fresh source each time, since one keeps what it has read.
    start = time.perf_counter()
    for split in cohort.table["split"].unique():
        source = pipeline.Source(dataset, cohort.table, split, host_cache_gib=1e6, block_images=1024)
        for _ in source.ordered(256):
            pass
    return time.perf_counter() - start


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m cxr_jax.benchmarks.storage")
    parser.add_argument("--name", default="phantom", help="data set, as in a config's argument")
    parser.add_argument("--raw_dir", default="", help="its release, where it needs one")
    parser.add_argument("--data_dir", default="", help="where records go; without it a temporary folder")
    parser.add_argument("--patients", type=int, help="of the phantom; without it as many as in a run")
    parser.add_argument("--rounds", type=int, default=5, help="times that every image is read")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    asked = parse(argv)
    with tempfile.TemporaryDirectory(prefix="cxr_jax-storage-") as temporary:
        built = {storage: opened(storage, asked, asked.data_dir or temporary) for storage in STORAGES}
        for dataset, cohort in built.values():
            seconds_to_read(dataset, cohort)
        taken = {storage: [] for storage in built}
        for _ in range(asked.rounds):
            for storage, (dataset, cohort) in built.items():
                taken[storage].append(seconds_to_read(dataset, cohort))
        images = built["png"][0].images
        rates = {storage: images / float(np.median(times)) for storage, times in taken.items()}
        sizes = {storage: dataset.info.dataset_size / images for storage, (dataset, _) in built.items()}
        print(benchmarks.machine("tensorflow", "tensorflow_datasets", "numpy"))
        print(f"{asked.name}: {images:,} images, {asked.rounds} rounds, records in the page cache")
        for storage in built:
            print(f"  {storage}: {sizes[storage] / 1024:6.1f} KiB an image on disk, {rates[storage]:9,.0f} images/s read")
        print(
            f"  raw takes {sizes['raw'] / sizes['png']:.2f} times the disk of PNG, and is read"
            f" {rates['raw'] / rates['png']:.1f} times as fast"
        )


if __name__ == "__main__":
    main()
