"""Images a second that the input pipeline gives, and what an epoch of training costs beside steps that need no input.

    python -m cxr_jax.benchmarks.input_pipeline [--patients=400 --batch=N --pixels=N --dtype=float32|bfloat16 --rounds=5] [--data_dir=DIR] [--json=FILE]

All ways are ours; no other library is measured. Builds a phantom twice, with images as PNG and as raw pixels (in a temporary
folder unless --data_dir says otherwise), and takes its training split. Everything takes turns, once a round.

First, one pass over the split in random order, in batches:

    PNG records     TFRecords read and decoded anew, to host memory; the files are in the page cache
    raw records     the same of pixels stored as they are
    host memory     batches put together from the decoded split, to host memory
    device memory   batches put together on the device, where the split lies (`data.resident`): row numbers go there, and
                    nothing else is computed

    images/s        median over rounds, with the least and the greatest
    times PNG       their images/s over those of PNG records, by round: median, least and greatest

Then an epoch of training on one device, by the step that a run takes, from host and from device memory, beside bare steps: as
many, on one batch that lies on the device.

    images/s        as above; padding of the last batch counts, in all alike
    of bare         their images/s over those of bare steps, by round; 1 is an input that costs nothing

Images have 256 pixels a side, as records do, and become --pixels inside the step. Without TensorFlow there are no records; the
device's rows are then measured on random images, as many as such a phantom has on average.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import tempfile
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from cxr_jax import benchmarks, tables
from cxr_jax import mesh as meshes
from cxr_jax.benchmarks import densenets
from cxr_jax.benchmarks.densenets import Turn
from cxr_jax.data import resident
from cxr_jax.models import densenet
from cxr_jax.training import objectives, optimizers, train

SIDE = 256  # pixels, of a stored image
IMAGES_OF_A_PATIENT = 1.5  # in the training split: 1 to 4 images each, and 60 % of patients
NOTHING_CACHED = 1e-9  # GiB
PNG, RAW, HOST, DEVICE, BARE = "PNG records", "raw records", "host memory", "device memory", "bare steps"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m cxr_jax.benchmarks.input_pipeline")
    densenets.add_sizes(parser)
    parser.add_argument("--patients", type=densenets.count, default=400, help="of the phantom")
    parser.add_argument("--data_dir", default="", help="where records go; without it a temporary folder")
    parser.set_defaults(name="phantom", raw_dir="")  # for `storage.opened`
    return densenets.fill_sizes(parser.parse_args(argv))


def synthetic(images: int) -> types.SimpleNamespace:
    """What `Resident.fill` reads from, of random images: few different ones, since nobody looks at them."""
    pool = np.random.default_rng(0).integers(0, 256, (min(images, 64), SIDE, SIDE, 1), np.uint8)

    def read(runs):
        return (pool[run % len(pool)] for run in runs)

    return types.SimpleNamespace(index=np.arange(images, dtype=np.int32), image_shape=pool.shape[1:], read=read, draw=None)


def from_records(asked: argparse.Namespace, data_dir: str) -> dict[str, Any]:
    """By name, what gives the training split from PNG records, raw records, and host memory. Raises ImportError without TensorFlow."""
    from cxr_jax.benchmarks import storage
    from cxr_jax.data import pipeline
    import tensorflow  # noqa: F401; after ours, which tell it to be silent

    def source(way: str, gib: float):
        dataset, cohort = storage.opened(way, asked, data_dir)
        return pipeline.Source(dataset, cohort.table, "train", host_cache_gib=gib, block_images=1024)

    return {PNG: source("png", NOTHING_CACHED), RAW: source("raw", NOTHING_CACHED), HOST: source("raw", 1e6)}


def passes(sources: Mapping[str, Any], batch: int) -> dict[str, Callable[[], None]]:
    """What goes once over all images of each source, each time in another order, and waits until the last is there."""

    def over_host(source):
        for epoch in itertools.count():
            with contextlib.closing(source.batches(0, epoch, 0, batch)) as batches:
                for _ in batches:
                    pass
            yield

    def over_device(held: resident.Resident):
        split = PartitionSpec(meshes.AXIS)
        gather = jax.jit(jax.shard_map(held.gather, mesh=held.mesh, in_specs=(split, split), out_specs=split, check_vma=False))
        for epoch in itertools.count():
            for rows in held.batches(0, epoch, 0, batch):
                images = gather(held.images, meshes.shard_batch(held.mesh, rows["row"]))
            jax.block_until_ready(images)  # one device works in order
            yield

    found = {}
    for name, source in sources.items():
        over = over_device(source) if source.on_devices else over_host(source)
        found[name] = over.__next__
    return found


class Training:
    """The step of a run, on one device, and the state that it has come to."""

    def __init__(self, asked: argparse.Namespace, mesh: Mesh, images: int):
        """images: rows of the table that labels are for."""
        self.config, self.mesh, self.batch = densenets.config_of(asked), mesh, asked.batch
        self.optimizer = optimizers.adam(self.config.train, steps_per_epoch=1)
        heads = {name: len(target.classes) for name, target in densenets.TARGETS.items()}
        model = densenet.from_config(self.config.model, heads, seed=0)
        self.parameters = densenet.parameter_count(model)
        self.graphdef, self.state = train.init_state(model, self.optimizer, 0, mesh, objectives.Objective(densenets.TARGETS))
        classes = heads[densenets.TARGET]
        self.labels = {densenets.TARGET: np.random.default_rng(0).integers(0, classes, images, np.int32)}

    def step(self, images_of: Callable | None) -> Callable:
        return train.make_step(self.graphdef, self.optimizer, objectives.Objective(densenets.TARGETS), self.config, self.mesh, images_of)

    def on_device(self, batch: Mapping[str, np.ndarray]):
        """A batch as `train.fit` hands it to the step."""
        taken = {name: batch[name] for name in ("image", "row", "mask") if name in batch}
        index = batch["index"].astype(np.int32)
        return meshes.shard_batch(self.mesh, {**taken, "index": index, "labels": train.take_rows(self.labels, index), "carried": {}})

    def run(self, step: Callable, batches: Iterable, resident_images: Sequence[jax.Array] = ()) -> None:
        """Steps through batches that are on the device, waiting for the losses as often as a run does."""
        for number, batch in enumerate(batches, 1):
            self.state, loss = step(self.state, batch, *resident_images)
            if number % self.config.train.log_every_steps == 0:
                jax.block_until_ready(loss)
        jax.block_until_ready(self.state)


def epochs(training: Training, sources: Mapping[str, Any], steps: int) -> dict[str, Turn]:
    """Of each source, an epoch; and as many bare steps. One step of its own comes before each, untimed."""
    bare = training.step(None)
    one = {
        "image": np.random.default_rng(0).integers(0, 256, (training.batch, SIDE, SIDE, 1), np.uint8),
        "mask": np.ones(training.batch, bool),
        "index": np.zeros(training.batch, np.int32),
    }
    one = training.on_device(one)
    turns = {BARE: Turn(lambda: training.run(bare, [one]), lambda: training.run(bare, [one] * steps))}

    def of(source) -> Turn:
        step = training.step(source.gather) if source.on_devices else bare
        number = itertools.count()

        def run(most: int | None) -> None:
            with contextlib.closing(source.batches(0, next(number), 0, training.batch)) as batches:
                given = map(training.on_device, itertools.islice(batches, most))
                training.run(step, given, source.on_devices)

        return Turn(lambda: run(1), lambda: run(None))

    return turns | {name: of(source) for name, source in sources.items()}


@contextlib.contextmanager
def folder(data_dir: str) -> Iterator[str]:
    if data_dir:
        yield data_dir
    else:
        with tempfile.TemporaryDirectory(prefix="cxr_jax-input-") as temporary:
            yield temporary


def figures_of(seconds: Mapping[str, np.ndarray], images: int, beside: str) -> dict[str, dict]:
    """seconds: [rounds, 1]. beside: whose images/s the others' are divided by; there may be none of that name."""
    return {
        name: {
            "images_per_second": densenets.spread(images / taken),
            f"of_{beside}": densenets.ratio(seconds[beside], taken) if beside in seconds and name != beside else None,
            "seconds": taken[:, 0],
        }
        for name, taken in seconds.items()
    }


def measure(asked: argparse.Namespace, data_dir: str) -> dict[str, Any]:
    load, mesh = benchmarks.load(), meshes.data_mesh(jax.devices()[:1])
    try:
        sources, failed, packages = from_records(asked, data_dir), {}, ["tensorflow"]
        stored = sources[HOST]
    except ImportError as error:
        why = f"TensorFlow, which reads records, is not installed ({error})"
        sources, failed, packages = {}, dict.fromkeys((PNG, RAW, HOST), why), []
        stored = synthetic(round(IMAGES_OF_A_PATIENT * asked.patients))
    training = Training(asked, mesh, int(stored.index.max()) + 1)
    sources[DEVICE] = resident.Resident.fill(stored, "shard", mesh, training.config.dataset.device_cache_share)
    held = sources[DEVICE]
    if HOST in sources:
        passes({HOST: sources[HOST]}, asked.batch)[HOST]()  # reads the split, once for all

    turns = {name: Turn(run, run) for name, run in passes(sources, asked.batch).items()}
    over, failed_over = densenets.take_turns(turns, asked.rounds, 1)
    steps = held.steps_per_epoch(asked.batch)
    turns = epochs(training, {name: sources[name] for name in (HOST, DEVICE) if name in sources}, steps)
    for turn in turns.values():
        turn.first()  # compiles
    trained, failed_trained = densenets.take_turns(turns, asked.rounds, 1)
    return {
        "benchmark": "input_pipeline",
        "machine": benchmarks.machine("jax", *packages),
        "device": mesh.devices.flat[0].device_kind,
        "platform": mesh.devices.flat[0].platform,
        "load_before": load,
        "images": len(held),
        "synthetic": HOST in failed,
        "batch": asked.batch,
        "pixels": asked.pixels,
        "dtype": training.config.model.dtype,
        "model": training.config.model.to_dict(),
        "parameters": training.parameters,
        "rounds": asked.rounds,
        "steps": steps,
        "passes": figures_of(over, len(held), PNG),
        "passes_failed": failed | failed_over,
        "epochs": figures_of(trained, steps * asked.batch, BARE),
        "epochs_failed": {name: why for name, why in failed.items() if name == HOST} | failed_trained,
    }


def report(figures: Mapping[str, Any]) -> None:
    densenets.print_machine(figures)
    drawn = "random" if figures["synthetic"] else "a phantom's training split of"
    print(f"{drawn} {figures['images']:,} images of {SIDE}×{SIDE}, batches of {figures['batch']}, {figures['rounds']} rounds")

    def table(part: str, beside: str, heading: str) -> None:
        rows = [(heading, "images/s (min to max)", f"times {beside} (min to max over rounds)")]
        for name, of in figures[part].items():
            rows.append((name, densenets.said(of["images_per_second"]), densenets.said_ratio(of[f"of_{beside}"])))
        densenets.print_table(rows)
        for name, why in figures[f"{part}_failed"].items():
            print(f"  {name}: {why}")

    table("passes", PNG, "one pass")
    print(
        f"{figures['steps']} steps of a DenseNet of {figures['parameters']:,} parameters at {figures['pixels']}×{figures['pixels']},"
        f" {figures['dtype']}, one device"
    )
    table("epochs", BARE, "one epoch from")


def main(argv: Sequence[str] | None = None) -> None:
    asked = parse(argv)
    with folder(asked.data_dir) as data_dir:
        figures = measure(asked, data_dir)
    report(figures)
    if asked.json:
        tables.write_json(asked.json, figures)


if __name__ == "__main__":
    main()
