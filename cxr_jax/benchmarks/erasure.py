"""Seconds to fit LEACE, beside the concept-erasure package in torch.

    python -m cxr_jax.benchmarks.erasure [--rows=20000 --width=1024 --classes=4 --folds=5 --rounds=5]

Normal numbers whose means depend on the class, the same for both, in float64, with shrinkage; one eraser of all rows, and one of each of so
many folds, whose rows are left out. Ours fits the folds in one call, theirs one after another. They take turns in one process, from host
arrays to an eraser. Prints medians and spread over rounds, how many times our seconds theirs take (the median of the ratios of a
round), and how far the erased features are apart at most, beside the largest feature.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import jax
import numpy as np

from cxr_jax import benchmarks
from cxr_jax.benchmarks import densenets
from cxr_jax.probes import erasure


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m cxr_jax.benchmarks.erasure")
    parser.add_argument("--rows", type=densenets.count, default=20_000, help="images, each of a patient of its own")
    parser.add_argument("--width", type=densenets.count, default=1_024, help="features of a row")
    parser.add_argument("--classes", type=densenets.count, default=4, help="of what is erased")
    parser.add_argument("--folds", type=densenets.count, default=5, help="erasers fitted together")
    parser.add_argument("--rounds", type=densenets.count, default=5, help="times that each is fitted")
    asked = parser.parse_args(argv)
    rng = np.random.default_rng(0)
    labels, patients = rng.integers(0, asked.classes, asked.rows), np.arange(asked.rows)
    features = rng.standard_normal((asked.rows, asked.width), np.float32)
    features += 0.2 * rng.standard_normal((asked.classes, asked.width)).astype(np.float32)[labels]
    folds = rng.integers(0, asked.folds, asked.rows)
    every, kept = np.ones((1, asked.rows)), (folds != np.arange(asked.folds)[:, None]).astype(float)

    def ours(weights):
        return erasure.leace(features, labels, patients, classes=asked.classes, weights=weights)

    found = {}
    tasks = {"all rows": every, f"{asked.folds} folds": kept} if asked.folds > 1 else {"all rows": every}
    turns = {}
    for task, weights in tasks.items():
        turns[task, "ours"] = densenets.Turn(lambda: None, lambda task=task, weights=weights: found.update({(task, "ours"): ours(weights)}))
    missing = ""
    try:
        import concept_erasure
        import torch
    except ImportError as error:
        missing = f"concept-erasure: {densenets.reason(error)}"
    else:
        x, z = torch.from_numpy(features), torch.from_numpy(np.eye(asked.classes)[labels])

        def theirs(weights):
            fitted = []
            for weight in weights:
                rows = torch.from_numpy(np.flatnonzero(weight))
                fitter = concept_erasure.LeaceFitter(asked.width, asked.classes, dtype=torch.float64, constrain_cov_trace=False, svd_tol=1e-6)
                fitted.append(fitter.update(x[rows].double(), z[rows]).eraser)
            return fitted

        for task, weights in tasks.items():
            turns[task, "concept-erasure"] = densenets.Turn(
                lambda: None, lambda task=task, weights=weights: found.update({(task, "concept-erasure"): theirs(weights)})
            )
    for turn in turns.values():
        turn.timed()  # compiles
    taken, failed = densenets.take_turns(turns, asked.rounds, 1)
    print(benchmarks.machine("jax", "numpy", *([] if missing else ["torch"])))
    print(f"LEACE of {asked.classes} classes from {asked.rows:,} rows × {asked.width:,}, {asked.rounds} rounds, ours on {jax.default_backend()}")
    for task in tasks:
        for who in ("ours", "concept-erasure"):
            if (task, who) not in taken:
                continue
            times = taken[task, who]
            line = f"  {task}, {who}: {densenets.said(densenets.spread(times), '.3g')} s"
            if who != "ours":
                some = features[:1000]
                mine = found[task, "ours"]
                apart = max(abs(mine(some, b) - one(torch.from_numpy(some).double()).numpy()).max() for b, one in enumerate(found[task, who]))
                line += f", {densenets.said_ratio(densenets.ratio(times, taken[task, 'ours']))} times ours; apart by at most {apart / abs(some).max():.1e}"
            print(line)
    for (task, who), why in failed.items():
        print(f"  {task}, {who}: {why}")
    if missing:
        print(f"  {missing}")


if __name__ == "__main__":
    main()
