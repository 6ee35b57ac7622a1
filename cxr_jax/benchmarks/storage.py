"""What `dataset.storage` costs: bytes on disk and images a second, for PNG and for raw records.

    python -m cxr_jax.benchmarks.storage [--data_dir=DIR --name=nih --raw_dir=DIR] [--rounds=5]

Builds the data set both ways (the phantom where none is named; in a temporary folder unless --data_dir says otherwise) and
reads every image of it, through the pipeline that training reads by, in turns. Prints sizes, the median rates over
rounds, and their ratio.
"""

from __future__ import annotations

import tempfile
import time

import numpy as np
from absl import app, flags

from configs import base
from cxr_jax import experiment
from cxr_jax.data import cohorts, datasets, pipeline

NAME = flags.DEFINE_string("name", "phantom", "Data set, as in a config's argument.")
RAW_DIR = flags.DEFINE_string("raw_dir", "", "Its release, where it needs one.")
DATA_DIR = flags.DEFINE_string("data_dir", "", "Where records go; empty: a temporary folder.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Times that every image is read.", lower_bound=1)


def opened(storage: str, data_dir: str) -> tuple[datasets.Dataset, cohorts.Cohort]:
    config = base.get_config().dataset
    experiment.choose_dataset(config, NAME.value, "--name")
    config.update(storage=storage, data_dir=data_dir, raw_dir=RAW_DIR.value, views=())
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


def main(_) -> None:
    with tempfile.TemporaryDirectory(prefix="cxr_jax-storage-") as temporary:
        built = {storage: opened(storage, DATA_DIR.value or temporary) for storage in ("png", "raw")}
        for dataset, cohort in built.values():
            seconds_to_read(dataset, cohort)
        taken = {storage: [] for storage in built}
        for _ in range(ROUNDS.value):
            for storage, (dataset, cohort) in built.items():
                taken[storage].append(seconds_to_read(dataset, cohort))
        images = built["png"][0].images
        rates = {storage: images / float(np.median(times)) for storage, times in taken.items()}
        sizes = {storage: dataset.info.dataset_size / images for storage, (dataset, _) in built.items()}
        print(f"{NAME.value}: {images:,} images, {ROUNDS.value} rounds, records in the page cache")
        for storage in built:
            print(f"  {storage}: {sizes[storage] / 1024:6.1f} KiB an image on disk, {rates[storage]:9,.0f} images/s read")
        print(
            f"  raw takes {sizes['raw'] / sizes['png']:.2f} times the disk of PNG, and is read"
            f" {rates['raw'] / rates['png']:.1f} times as fast"
        )


if __name__ == "__main__":
    app.run(main)
