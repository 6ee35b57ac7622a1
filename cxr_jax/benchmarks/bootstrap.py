"""Seconds to resample AUCs by group, beside the usual loop over scikit-learn's roc_auc_score.

    python -m cxr_jax.benchmarks.bootstrap [--images=40000 --findings=14 --replicates=2000 --rounds=3]

Drawn patients of 1 to 4 images; AUCs of every finding for everybody and for each of 12 groups, of four attributes that
overlap (4 races, 2 sexes, 4 age bands, 2 views). Ours draws all replicates and gives the AUC and the average precision of each;
the loop draws patients, takes their images, and calls roc_auc_score for each finding and group. Of the loop only some
replicates are run, and the time of all is so many times theirs, as the output says. Prints seconds, the ratio (the median over
rounds, in which the two take turns), and the largest difference of the same replicates' AUCs.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import sklearn.metrics

from cxr_jax import benchmarks
from cxr_jax.audit.intervals import Bootstrap, RankedCell

LOOPED = 2  # replicates of the loop that are run in a round


def draw(images: int, findings: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[np.ndarray]]:
    """(patient [n], positive [n, findings], score [n, findings], masks of everybody and 12 groups)."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(images), rng.integers(1, 5, images))[:images]
    positive = rng.random((images, findings)) < np.linspace(0.03, 0.35, findings)
    score = rng.normal(size=(images, findings)) + positive
    masks = [np.ones(images, bool)]
    for groups, shares in ((4, [0.55, 0.2, 0.15, 0.1]), (2, [0.5, 0.5]), (4, [0.2, 0.3, 0.35, 0.15]), (2, [0.6, 0.4])):
        of = rng.choice(groups, patient.max() + 1, p=shares)[patient]
        masks += [of == g for g in range(groups)]
    return patient, positive, score, masks


def ours(patient, positive, score, masks, replicates: int) -> tuple[np.ndarray, Bootstrap]:
    """AUCs, float64 [findings * groups, replicates], and what drew them."""
    bootstrap = Bootstrap(patient, replicates, 0)
    cells = [
        RankedCell(rows, positive[rows, f], score[rows, f]) for f in range(positive.shape[1]) for rows in map(np.flatnonzero, masks)
    ]
    return bootstrap.ranking(cells)[0], bootstrap


def loop(patient, positive, score, masks, counts: np.ndarray) -> np.ndarray:
    """The same of some replicates, whose counts are given [patients, k], the usual way: rows are written out."""
    found = []
    for drawn in counts.T:
        rows = np.repeat(np.arange(len(patient)), drawn[patient])
        inside = [rows[mask[rows]] for mask in masks]
        found.append([sklearn.metrics.roc_auc_score(positive[r, f], score[r, f]) for f in range(positive.shape[1]) for r in inside])
    return np.array(found).T


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m cxr_jax.benchmarks.bootstrap")
    for name, value in (("images", 40_000), ("findings", 14), ("replicates", 2000), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    asked = parser.parse_args(arguments)
    data = draw(asked.images, asked.findings)
    print(benchmarks.machine("jax", "sklearn", "numpy"))
    print(
        f"{asked.replicates:,} replicates of {asked.images:,} images × {asked.findings} findings × (everybody and {len(data[3]) - 1} groups),"
        f" {asked.rounds} rounds; of the loop {min(LOOPED, asked.replicates)} replicates a round"
    )
    aucs, bootstrap = ours(*data, min(asked.replicates, 500))  # compiles
    seconds, ratios, apart = [], [], 0.0
    for _ in range(asked.rounds):
        start = time.perf_counter()
        aucs, bootstrap = ours(*data, asked.replicates)
        middle = time.perf_counter()
        # Counts are by the bootstrap's own numbers of patients.
        some = loop(bootstrap.patient, *data[1:], bootstrap.counts[:, :LOOPED])
        theirs = (time.perf_counter() - middle) / some.shape[1] * asked.replicates
        seconds.append(middle - start)
        ratios.append(theirs / seconds[-1])
        apart = np.fmax(apart, np.nan_to_num(np.abs(aucs[:, : some.shape[1]] - some), nan=np.inf).max())
    spread = f"({min(seconds):.3g} to {max(seconds):.3g})"
    print(f"  ours: {np.median(seconds):.3g} s {spread}, average precision included")
    print(f"  loop over roc_auc_score: {np.median(ratios):.3g} times ours ({min(ratios):.3g} to {max(ratios):.3g}), AUCs apart by at most {apart:.1e}")


if __name__ == "__main__":
    main()
