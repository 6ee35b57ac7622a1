"""Point metrics: how well scores tell positives from negatives, and how far they can be believed as probabilities.

Everything here runs in float64 on the host and takes a weight for each image: how often the image counts. A weight of 2
is the image written twice and a weight of 0 is the image left out, which is what a bootstrap replicate is; so these
functions are also the plain reference that the jitted replicates in `intervals` are held to.

An undefined metric is NaN, never a plausible number.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import special


class Ranking(NamedTuple):
    """The images of one group in the order of their scores.

    order: int64 [n], positions, highest score first; among equal scores positives come first.
    tied: bool [n], in that order: the image has the same score as the one before it.
    last: int64 [n], in that order: position of the last image that has this image's score.
    """

    order: np.ndarray
    tied: np.ndarray
    last: np.ndarray


def rank(positive: np.ndarray, score: np.ndarray) -> Ranking:
    """Sorts images for every metric that depends on their order alone. `positive` bool [n], `score` float [n].

    Raises ValueError unless there is one value an image each, and for a NaN score.
    """
    positive, score = np.asarray(positive, bool), np.asarray(score, np.float64)
    if positive.shape != score.shape or score.ndim != 1:
        raise ValueError(f"positive {positive.shape} and score {score.shape} must be one value an image each")
    if np.isnan(score).any():
        raise ValueError("a NaN score has no rank")
    order = np.lexsort((~positive, -score))
    ordered = score[order]
    tied = np.zeros(len(order), bool)
    tied[1:] = ordered[1:] == ordered[:-1]
    ends = np.flatnonzero(~np.append(tied[1:], False)) if len(order) else np.zeros(0, np.int64)
    last = ends[np.cumsum(~tied) - 1] if len(order) else np.zeros(0, np.int64)
    return Ranking(order, tied, last)


def _weights(weight: np.ndarray | None, n: int) -> np.ndarray:
    if weight is None:
        return np.ones(n)
    weight = np.asarray(weight, np.float64)
    if weight.shape != (n,):
        raise ValueError(f"{weight.shape} weights for {n} images")
    if not (weight >= 0).all():
        raise ValueError("a weight is how often an image counts, and cannot be negative or NaN")
    return weight


def _vertices(positive, score, weight) -> tuple[np.ndarray, np.ndarray]:
    """Weight of the positives and of the negatives at or above each distinct score, highest first, from (0, 0)."""
    ranking = rank(positive, score)
    weight = _weights(weight, len(ranking.order))[ranking.order]
    ordered = np.asarray(positive, bool)[ranking.order]
    ends = np.unique(ranking.last)
    true = np.cumsum(np.where(ordered, weight, 0.0))[ends]
    false = np.cumsum(np.where(ordered, 0.0, weight))[ends]
    return np.concatenate(([0.0], true)), np.concatenate(([0.0], false))


def auc(positive: np.ndarray, score: np.ndarray, weight: np.ndarray | None = None) -> float:
    """The chance that a positive image scores above a negative one, a tie counting half (Mann and Whitney 1947).

    positive: bool [n]; score: float [n]; weight: float [n], how often each image counts (1 where left out).
    NaN unless there is weight on positives and on negatives. Raises ValueError as `rank`, and for a bad weight.
    """
    true, false = _vertices(positive, score, weight)
    if true[-1] == 0 or false[-1] == 0:
        return np.nan
    # Negatives of one score lie below all positives above it, and level with the positives of that score.
    won = np.sum(np.diff(false) * (true[:-1] + true[1:]) / 2)
    area = float(won / (true[-1] * false[-1]))
    # Sums of weights miss 0 and 1 by a hair, and whether classes are wholly apart is asked for elsewhere.
    return float(round(area)) if weight is not None and abs(area - round(area)) < 1e-13 else area


def average_precision(positive: np.ndarray, score: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Precision at each distinct score as threshold, weighted by the recall gained there; no interpolation.

    The same sum as scikit-learn's average_precision_score. Arguments as for `auc`. NaN where there is no weight on
    positives; 1 where there is none on negatives, whatever the scores. Raises ValueError as `auc`.
    """
    true, false = _vertices(positive, score, weight)
    if true[-1] == 0:
        return np.nan
    called = true[1:] + false[1:]
    precision = np.divide(true[1:], called, out=np.zeros_like(called), where=called > 0)
    return float(np.sum(np.diff(true) * precision) / true[-1])


def mean(value: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Weighted mean of one value an image, float [n]; NaN where the weights add up to nothing.

    weight: float [n], as for `auc`. Raises ValueError for weights of another length, negative or NaN.
    """
    value = np.asarray(value, np.float64)
    weight = _weights(weight, len(value))
    total = weight.sum()
    if total > 0 and value.min() == value.max():
        return float(value[0])  # to the last bit, whatever the weights
    return float(weight @ value / total) if total > 0 else np.nan


def tpr_at_fpr(
    positive: np.ndarray, score: np.ndarray, grid: np.ndarray, weight: np.ndarray | None = None
) -> np.ndarray:
    """The ROC curve read at given false-positive rates: float64 [len(grid)].

    Vertices are joined by straight lines, so that the area under the curve is `auc`. Where the curve is vertical its
    upper end is taken: the best true-positive rate to be had at that price. NaN unless both kinds of image have weight.
    Raises ValueError as `auc`.
    """
    grid = np.asarray(grid, np.float64)
    true, false = _vertices(positive, score, weight)
    if true[-1] == 0 or false[-1] == 0:
        return np.full(len(grid), np.nan)
    # A rate times a count is a whole number of images in exact arithmetic, but may miss it by a rounding error, and
    # would then read the lower end of a vertical piece.
    wanted = grid * false[-1]
    wanted = np.where(np.abs(wanted - np.round(wanted)) < 1e-9 * false[-1], np.round(wanted), wanted)
    at = np.minimum(np.searchsorted(false, wanted, side="right") - 1, len(false) - 2)
    run, rise = false[at + 1] - false[at], true[at + 1] - true[at]
    share = np.where(run > 0, (wanted - false[at]) / np.where(run > 0, run, 1.0), 1.0)
    return (true[at] + rise * share) / true[-1]


def calibration_bins(score: np.ndarray, bins: int, of: np.ndarray | None = None) -> np.ndarray:
    """Bin of each image, int64 [n], numbered from the lowest scores: edges are quantiles, so counts are nearly equal.

    of: float [n], the scores whose bins are wanted, `score` itself where None. Images of one score share a bin; ties can
    therefore leave a number between 0 and `bins` - 1 unused.
    """
    score = np.asarray(score, np.float64)
    of = score if of is None else np.asarray(of, np.float64)
    if not len(score):
        return np.zeros(len(of), np.int64)
    edges = np.quantile(score, np.linspace(0, 1, bins + 1))
    return np.searchsorted(edges[1:-1], of, side="left")


def calibration(
    positive: np.ndarray, score: np.ndarray, bin_of: np.ndarray, weight: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(mean score, share of positives) of each used bin of `calibration_bins`, lowest first: two float64 [bins].

    Raises ValueError for a bad weight, as `mean`.
    """
    positive, score = np.asarray(positive, np.float64), np.asarray(score, np.float64)
    weight = _weights(weight, len(score))
    used = np.unique(bin_of)
    inside = [np.asarray(bin_of) == b for b in used]
    return (
        np.array([mean(score[i], weight[i]) for i in inside]),
        np.array([mean(positive[i], weight[i]) for i in inside]),
    )


def confusion(true: np.ndarray, called: np.ndarray, classes: int, weight: np.ndarray | None = None) -> np.ndarray:
    """Weight of the images of each true class (rows) called each class (columns): float64 [classes, classes].

    true, called: int [n], class positions. Raises ValueError for a bad weight, as `mean`.
    """
    weight = _weights(weight, len(true))
    cell = np.asarray(true, np.int64) * classes + np.asarray(called, np.int64)
    return np.bincount(cell, weights=weight, minlength=classes * classes).reshape(classes, classes)


class Recalibration(NamedTuple):
    """Logistic regression of the truth on the logit of the score.

    intercept, slope: 0 and 1 where scores are calibrated. moves: float64 [n], how far the slope moves, to first order, for
    one more image like each; its sum over all is 0.
    """

    intercept: float
    slope: float
    moves: np.ndarray


CLIPPED = 1e-6  # scores are taken no nearer to 0 and 1, where the logit ends


def recalibration(positive: np.ndarray, score: np.ndarray) -> Recalibration:
    """The slope of calibration (Cox, Biometrika 45:562-565, 1958), by Newton's method; all NaN where there is none.

    positive: bool [n]; score: float [n], probabilities. Scores given too boldly, too far from the prevalence, have a slope
    below 1. There is none with one class, with one score, or where scores tell the classes apart without error.
    """
    y, score = np.asarray(positive, np.float64), np.asarray(score, np.float64)
    none = Recalibration(np.nan, np.nan, np.full(len(y), np.nan))
    if not len(y) or y.min() == y.max() or score.min() == score.max():
        return none
    x = np.clip(score, CLIPPED, 1 - CLIPPED)
    x = np.log(x / (1 - x))
    centre, spread = x.mean(), x.std()
    if spread == 0 or x[y == 1].min() >= x[y == 0].max() or x[y == 1].max() <= x[y == 0].min():
        return none
    design = np.stack([np.ones_like(x), (x - centre) / spread], axis=1)
    weights = np.array([np.log(y.mean() / (1 - y.mean())), 0.0])
    for _ in range(100):
        p = 1 / (1 + np.exp(-design @ weights))
        information = (design * (p * (1 - p))[:, None]).T @ design
        step = np.linalg.solve(information, design.T @ (y - p))
        # Of a concave likelihood a step that is cut short still climbs.
        weights = weights + step * min(1.0, 4.0 / max(np.abs(step).max(), 1e-300))
        if np.abs(step).max() < 1e-10:
            break
    else:
        return none
    moves = (design * (y - p)[:, None]) @ np.linalg.inv(information)[:, 1] / spread
    slope = weights[1] / spread
    return Recalibration(float(weights[0] - slope * centre), float(slope), moves)


def calibration_error(apart: np.ndarray, error: np.ndarray | None = None) -> np.ndarray:
    """Expected calibration error: the distance of mean score and share of positives in each bin, weighted by its images.

    apart: float64 [bins, …], the mean over all images of (score - truth), counted as 0 outside the bin; so the sizes of
    its entries add up to the error. error: float64 [bins], standard errors of `apart`; then the bias that these give is
    taken off: a distance d that is measured with error s is expected as E|N(d, s)|, so 2|d| - E|N(|d|, s)| stands in the
    place of |d| (the correction that Kumar, Liang and Ma, NeurIPS 2019, make by simulation, in closed form). It takes off
    most of the bias, not all: of a distance that is 0, .47 of its standard error is left in place of .80.
    """
    far = np.abs(apart)
    if error is not None:
        s = np.asarray(error, np.float64).reshape((-1,) + (1,) * (far.ndim - 1))
        z = np.divide(far, s, out=np.full(far.shape, np.inf), where=s > 0)
        expected = s * np.sqrt(2 / np.pi) * np.exp(-(z**2) / 2) + far * (1 - 2 * special.ndtr(-z))
        far = 2 * far - expected
    return far.sum(axis=0)
