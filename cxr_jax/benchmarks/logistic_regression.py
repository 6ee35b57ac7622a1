"""Our logistic regression beside scikit-learn's, to one optimum: one fit, and a path of strengths × folds.

    python -m cxr_jax.benchmarks.logistic_regression [--rows=40000 --width=1024 --classes=4 --strengths=16 --folds=5]
        [--rounds=3 --fits=8]

Features are made up: as those of a network, correlated (few factors and noise), not negative, of unequal spread. Both
get them in float32 and run in turns. Ours standardises within its time and certifies its solution in it; scikit-learn
(lbfgs, at a `tol` ten times as strict as its default, which stops above the optimum) gets them standardised
beforehand. A path takes it long: it is then timed on --fits of its fits, evenly over the path, once each, and their
mean is multiplied.

Prints times (median, lowest to highest), ratios, and how far each one's objective lies above the lower of the two,
relative, both in float64 by one function of plain NumPy. The first call of ours, which compiles, is printed apart.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import scipy.special
import sklearn.exceptions
import sklearn.linear_model

from cxr_jax import benchmarks
from cxr_jax.probes import logistic_regression

TOLERANCE = 1e-5


def made_up(rows: int, width: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features, float32 [rows, width], and labels that depend on two of their factors."""
    rng = np.random.default_rng(seed)
    factors = rng.normal(size=(rows, max(2, width // 16))).astype(np.float32)
    mixed = factors @ rng.normal(0, 0.5, (factors.shape[1], width)).astype(np.float32)
    features = np.maximum(mixed + rng.normal(size=mixed.shape).astype(np.float32), 0)
    features *= rng.gamma(1, 1, width).astype(np.float32)
    logits = factors[:, :2] @ rng.normal(0, 0.6, (2, classes)) + np.log(np.arange(1, classes + 1))
    return features, (logits + rng.gumbel(size=logits.shape)).argmax(1)


def objective(z: np.ndarray, labels: np.ndarray, coefficients: np.ndarray, intercepts: np.ndarray, penalty: float) -> float:
    """Mean cross-entropy and penalty, float64, of coefficients for standardised features z."""
    logits = z.astype(np.float64) @ coefficients.T + intercepts
    losses = scipy.special.logsumexp(logits, axis=1) - logits[np.arange(len(z)), labels]
    return losses.mean() + penalty / 2 * np.sum(coefficients**2)


def timed(call: Callable):
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m cxr_jax.benchmarks.logistic_regression")
    parser.add_argument("--rows", type=int, default=40_000)
    parser.add_argument("--width", type=int, default=1024, help="columns")
    parser.add_argument("--classes", type=int, default=4, help="3 or more")
    parser.add_argument("--strengths", type=int, default=16, help="of the path, C from 1e-4 to 100")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3, help="times that one fit is timed, at C = 1")
    parser.add_argument("--fits", type=int, default=8, help="of the path that scikit-learn is timed on; 0 leaves the path out")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    asked = parse(argv)
    x, y = made_up(asked.rows, asked.width, asked.classes)

    def standardised(rows):
        mean, deviation = x[rows].mean(0, dtype=np.float64), x[rows].std(0, dtype=np.float64)
        return ((x[rows] - mean) / deviation).astype(np.float32), mean, deviation

    def theirs(z, labels, strength):
        model = sklearn.linear_model.LogisticRegression(C=strength, tol=TOLERANCE, max_iter=10_000)
        with warnings.catch_warnings():
            # Of a line search that float32 ends: the gap of the objectives, printed below, is what counts.
            warnings.simplefilter("ignore", sklearn.exceptions.ConvergenceWarning)
            return model.fit(z, labels)

    def gaps(fit, b, s, model, z, mean, deviation, labels):
        penalty = fit.penalties[s]
        raw = fit.coefficients[b, s]
        ours = objective(z, labels, raw * deviation, fit.intercepts[b, s] + raw @ mean, penalty)
        other = objective(z, labels, model.coef_.astype(np.float64), model.intercept_.astype(np.float64), penalty)
        lowest = min(ours, other)
        return np.array([ours / lowest - 1, other / lowest - 1])

    print(benchmarks.machine("jax", "sklearn", "numpy"))
    print(f"{asked.rows:,} rows, {asked.width:,} columns, {asked.classes} classes")
    z, mean, deviation = standardised(np.arange(asked.rows))
    first, _ = timed(lambda: logistic_regression.fit(x, y, [1 / asked.rows]))
    taken = {"ours": [], "scikit-learn": []}
    for _ in range(asked.rounds):
        seconds, fit = timed(lambda: logistic_regression.fit(x, y, [1 / asked.rows]))
        taken["ours"].append(seconds)
        seconds, model = timed(lambda: theirs(z, y, 1.0))
        taken["scikit-learn"].append(seconds)
    apart = gaps(fit, 0, 0, model, z, mean, deviation, y)
    print(f"one fit, C = 1, {asked.rounds} rounds (our first call, with compilation: {first:.2f} s)")
    for (name, times), gap in zip(taken.items(), apart, strict=True):
        spread = f"({min(times):.2f} to {max(times):.2f})"
        print(f"  {name}: {np.median(times):.2f} s {spread}, objective {gap:.1e} above the lower one")
    print(f"  certified gap {fit.gap[0, 0]:.1e}, gradient {fit.gradient[0, 0]:.1e}, converged {bool(fit.converged.all())}")
    print(f"  ours is {np.median(taken['scikit-learn']) / np.median(taken['ours']):.2f} times as fast")
    if not asked.fits:
        return

    fold = np.random.default_rng(1).integers(0, asked.folds, asked.rows)
    weights = (fold != np.arange(asked.folds)[:, None]).astype(np.float32)
    # One λ for all folds; C differs by their sizes.
    penalties = 1 / (np.logspace(-4, 2, asked.strengths) * asked.rows * (1 - 1 / asked.folds))
    chosen = np.unique(np.linspace(0, asked.strengths * asked.folds - 1, asked.fits).astype(int))
    seconds, fit = timed(lambda: logistic_regression.fit(x, y, penalties, weights))
    theirs_taken, apart = [], []
    for s, b in zip(*np.divmod(chosen, asked.folds), strict=True):
        rows = np.flatnonzero(weights[b])
        z, mean, deviation = standardised(rows)
        took, model = timed(lambda: theirs(z, y[rows], 1 / (penalties[s] * len(rows))))
        theirs_taken.append(took)
        apart.append(gaps(fit, b, s, model, z, mean, deviation, y[rows]))
    whole = np.mean(theirs_taken) * asked.strengths * asked.folds
    worst = np.max(apart, axis=0)
    print(f"path of {asked.strengths} strengths × {asked.folds} folds, once; scikit-learn timed on {len(chosen)} of its fits")
    print(f"  ours: {seconds:.1f} s, with compilation, objective at most {worst[0]:.1e} above the lower one")
    spread = f"{min(theirs_taken):.1f} to {max(theirs_taken):.1f} s a fit"
    print(f"  scikit-learn: {whole:.1f} s ({spread}), objective at most {worst[1]:.1e} above the lower one")
    relative = (fit.gap / fit.objective).max()
    print(f"  certified gap at most {relative:.1e}, {int(fit.converged.sum())} of {fit.converged.size} converged")
    print(f"  ours is {whole / seconds:.2f} times as fast")


if __name__ == "__main__":
    main()
