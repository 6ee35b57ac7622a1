"""Images a second of the training step of each run of a sweep, beside the sweep's first: what a larger batch gains on this machine.

    python -m cxr_jax.benchmarks.batch_size [--sweep=configs/sweeps/batch.py] [--densenet121] [--pixels=N --dtype=float32|bfloat16] [--rounds=5] [--json=FILE]

Each has the network, the resolution and the batch of its run, on random images that lie on one device; --densenet121, --pixels and
--dtype take the place of every run's own. They take turns in one process (`cxr_jax.benchmarks.densenets`), with as many steps in a turn
as make the images of the largest batch, so that "times the first" compares the same number of images. Whether the larger batch learns as
much from them is what the sweep itself tells.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import Any

from configs import base
from cxr_jax import benchmarks, sweeps, tables
from cxr_jax.benchmarks import densenets, train_step
from cxr_jax.models import densenet


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m cxr_jax.benchmarks.batch_size")
    parser.add_argument("--sweep", default="configs/sweeps/batch.py", help="a file of configs/sweeps/")
    parser.add_argument("--densenet121", action="store_true", help="DenseNet-121 in the place of the runs' own network")
    parser.add_argument("--pixels", type=densenets.count, help="a side that the network sees; without it the run's own")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of activations; without it the run's own")
    parser.add_argument("--rounds", type=densenets.count, default=5, help="turns that each takes")
    parser.add_argument("--json", help="a file that the figures go to")
    return parser.parse_args(argv)


def settings(asked: argparse.Namespace) -> dict[str, densenets.Setting]:
    """By the name of a run. Raises UserError as the sweep does."""
    over = {}
    if asked.densenet121:
        over |= {f"model.{name}": base.get_config().model[name] for name in ("growth", "blocks", "stem", "bottleneck")}
    if asked.pixels:
        over["dataset.image_size"] = asked.pixels
    if asked.dtype:
        over["model.dtype"] = asked.dtype
    configs = sweeps.read(asked.sweep).configs(over)
    return {name: densenets.drawn(config, config.train.batch_size) for name, config in configs.items()}


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    load, of = benchmarks.load(), settings(asked)
    most, turns, images = max(setting.batch for setting in of.values()), {}, {}
    for name, setting in of.items():
        step, times = train_step.ours(setting)[0].run, math.ceil(most / setting.batch)
        images[name] = times * setting.batch

        def run(step=step, times=times):
            for _ in range(times):
                step()

        turns[name] = densenets.Turn(step, run)
    taken, failed = densenets.take_turns(turns, asked.rounds, 1)
    first, device = next(iter(of)), next(iter(of.values())).mesh.devices.flat[0]
    an_image = {name: seconds / images[name] for name, seconds in taken.items()}
    return {
        "benchmark": "batch_size",
        "machine": benchmarks.machine("jax"),
        "device": device.device_kind,
        "platform": device.platform,
        "load_before": load,
        "sweep": asked.sweep,
        "rounds": asked.rounds,
        "runs": {
            name: {
                "batch": of[name].batch,
                "pixels": of[name].pixels,
                "dtype": of[name].config.model.dtype,
                "parameters": densenet.parameter_count(of[name].network()),
                "images_per_second": densenets.spread(1 / seconds),
                "of_first": densenets.ratio(an_image[first], seconds) if name != first and first in an_image else None,
            }
            for name, seconds in an_image.items()
        },
        "failed": failed,
    }


def report(figures: dict[str, Any]) -> None:
    densenets.print_machine(figures)
    print(f"one training step of each run of {figures['sweep']}, {figures['rounds']} rounds, one device")
    rows = [("run", "batch", "network", "images/s (min to max)", "times the first (min to max over rounds)")]
    for name, of in figures["runs"].items():
        network = f"{of['parameters']:,} parameters, {of['pixels']}×{of['pixels']}, {of['dtype']}"
        rate = densenets.said(of["images_per_second"])
        rows.append((name, f"{of['batch']}", network, rate, densenets.said_ratio(of["of_first"])))
    densenets.print_table(rows)
    for name, why in figures["failed"].items():
        print(f"  {name}: {why}")


def main(argv: Sequence[str] | None = None) -> None:
    asked = parse(argv)
    try:
        figures = measure(asked)
    except tables.UserError as error:
        raise SystemExit(f"error: {error}") from None
    report(figures)
    if asked.json:
        tables.write_json(asked.json, figures)


if __name__ == "__main__":
    main()
