"""Whether the difference of two AUCs is real: standard errors and tests that count patients, and many tests at once.

**One class.** M positive and N negative images belong to I patients, I10 of whom have a positive image and I01 a
negative one. A positive image's placement is the share of the negatives below it, a negative one's the share of the
positives above it, ties half; the AUC A is the mean placement of either kind. With a_i the sum over the positive images
of patient i of (placement - A) / M, and b_i the same over the negative ones with N, Obuchowski (1997, Biometrics
53:567-578) has

    var A = f10 Σ a_i² + f01 Σ b_i² + 2 f Σ a_i b_i      f10 = I10 / (I10 - 1), f01 = I01 / (I01 - 1), f = I / (I - 1)

and for two scores r and s of the same images, with products in the place of squares,

    cov = f10 Σ a_ir a_is + f01 Σ b_ir b_is + f (Σ a_ir b_is + Σ b_ir a_is).

Where each patient has one image the last term is 0, and the rest is S10 / M + S01 / N of DeLong, DeLong and
Clarke-Pearson (1988, Biometrics 44:837-845), exactly. Since f10 and f01 are at least f, no variance is below 0.

**Macro.** The mean AUC of several classes has a different set of positives for each, hence other factors. There the sum
of products is taken of influence values, √f10 a_i + √f01 b_i, averaged over the classes. Of one class it gives the
formula above with √(f10 f01) in the place of f, so the same wherever no patient has images on both sides.

**Tests** are Wald's, for as many patients as it takes for an AUC to be about normal. An AUC alone is tested on the
logit scale, where it has no bounds and is less skewed near 0 and 1; a difference is tested as it is.
"""

from __future__ import annotations

import statistics
from typing import NamedTuple

import numpy as np
from scipy import special, stats

FEW = "fewer than 2 patients on a side"
_NO_VARIANCE = 1e-12  # relative: what rounding may leave of 0


class _Ranks:
    """The order of one score, float [n]; for the image at each place, the places [first, end) of those level with it."""

    def __init__(self, score: np.ndarray):
        self.order = np.argsort(score)
        ordered = score[self.order]
        if np.isnan(ordered[-1]):  # where sorting leaves them
            raise ValueError("a NaN score has no rank")
        starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
        level = np.diff(np.append(starts, len(score)))
        self.first = np.repeat(starts, level)
        self.end = self.first + np.repeat(level, level)


class _Class:
    """The images of one class against the rest, and how many patients have them.

    positive: bool [n]; patient: int [n], from 0 to patients - 1, all of which occur.
    """

    def __init__(self, positive: np.ndarray, patient: np.ndarray, patients: int):
        # A cell is a patient's negative images, and the next one the same patient's positive images.
        self.cell = 2 * patient + positive
        self.images = np.bincount(self.cell, minlength=2 * patients).reshape(patients, 2)
        self.negatives, self.positives = self.images.sum(axis=0).tolist()
        sides = (self.images > 0).sum(axis=0).tolist()
        self.f01, self.f10, self.f = (count / (count - 1) if count > 1 else np.nan for count in (*sides, patients))

    def parts(self, ranks: _Ranks) -> tuple[float, np.ndarray]:
        """(AUC, [b, a] of each patient: float64 [patients, 2]) of one score."""
        pairs = self.positives * self.negatives
        if not pairs:
            return np.nan, np.full(self.images.shape, np.nan)
        cell = self.cell[ranks.order]
        positive = cell & 1
        up_to = np.concatenate(([0], np.cumsum(positive)))
        # Twice the positives below each image, those level with it half; for positives less twice all images below.
        # Whole numbers, so that sums are exact whatever the order.
        twice = up_to[ranks.first]
        twice += up_to[ranks.end]
        twice -= positive * (ranks.first + ranks.end)
        sums = np.bincount(cell, twice, self.images.size).reshape(self.images.shape) / 2
        won = np.stack([self.positives * self.images[:, 0] - sums[:, 0], -sums[:, 1]], axis=1)
        wins = won[:, 1].sum()
        expected = self.images * np.array([self.positives, self.negatives]) * (wins / pairs)
        return wins / pairs, (won - expected) / pairs


def influence(
    positive: np.ndarray, scores: np.ndarray, patient: np.ndarray, weight: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """AUC of each score and what each patient does to it: (float64 [m], float64 [patients, m]).

    positive: bool [n]; scores: float [n, m], of m models; patient: [n], whose image each is; weight: float [n], how often
    each image counts, once where it is None; taken as given, not as estimated. Patients are in the order of their sorted
    ids. The influence of several classes, averaged, is that of the macro AUC; of two values the sum of
    products over patients is the covariance of the AUCs, as said above under Macro.

    NaN where a side has no image; influence alone is NaN where it has fewer than 2 patients. Raises ValueError for
    shapes that do not fit, no image at all, and a NaN score.
    """
    auc, parts, one = _of_one_class(positive, scores, patient) if weight is None else _weighted(positive, scores, patient, weight)
    return auc, np.sqrt(one.f01) * parts[0] + np.sqrt(one.f10) * parts[1]


def auc_covariance(positive: np.ndarray, scores: np.ndarray, patient: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUC of each of m models on the same images, and their covariance: (float64 [m], float64 [m, m]).

    positive: bool [n] for one class, with scores float [n, m]: Obuchowski's formula. Or bool [n, K], with scores
    [n, K, m], for the macro AUC, the mean over K classes. patient: [n], whose image each is.
    NaN, and ValueError, as `influence` has them; a macro AUC is NaN where that of any class is.
    """
    positive, scores = np.asarray(positive, bool), np.asarray(scores)
    if positive.ndim == 1:
        auc, (b, a), one = _of_one_class(positive, scores, patient)
        both = a.T @ b
        return auc, one.f10 * (a.T @ a) + one.f01 * (b.T @ b) + one.f * (both + both.T)
    if positive.ndim != 2 or scores.ndim != 3 or positive.shape != scores.shape[:2] or not positive.shape[1]:
        raise ValueError(f"positive {positive.shape} and scores {scores.shape} must be [n, K] and [n, K, m]")
    classes = [influence(positive[:, k], scores[:, k], patient) for k in range(positive.shape[1])]
    values = sum(value for _, value in classes) / len(classes)
    return sum(auc for auc, _ in classes) / len(classes), values.T @ values


def variances(positive: np.ndarray, scores: np.ndarray, patient: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUC of many scores for several classes, and its standard error by Obuchowski: two float64 [K, m].

    positive: bool [n, K]; scores: float [n, m], any float type; patient: [n]. Each score is sorted once for all
    classes, and memory besides the arguments is that of a few columns. NaN and ValueError as `influence` has them.
    """
    positive, scores = np.asarray(positive, bool), np.asarray(scores)
    whose, patients = _patients(positive, scores, patient)
    classes = [_Class(positive[:, k], whose, patients) for k in range(positive.shape[1])]
    auc, error = np.empty((2, len(classes), scores.shape[1]))
    for j in range(scores.shape[1]):
        ranks = _Ranks(np.ascontiguousarray(scores[:, j]))
        for k, one in enumerate(classes):
            auc[k, j], parts = one.parts(ranks)
            b, a = parts.T
            variance = one.f10 * (a @ a) + one.f01 * (b @ b) + 2 * one.f * (a @ b)
            error[k, j] = np.sqrt(max(variance, 0.0))  # rounding may leave a little below 0; NaN stays
    return auc, error


def _of_one_class(positive, scores, patient) -> tuple[np.ndarray, np.ndarray, _Class]:
    """(AUC [m], b and a: [2, patients, m], the class)."""
    positive, scores = np.asarray(positive, bool), np.asarray(scores)
    whose, patients = _patients(positive[:, None], scores, patient)
    one = _Class(positive, whose, patients)
    found = [one.parts(_Ranks(np.ascontiguousarray(score))) for score in scores.T]
    auc = np.array([auc for auc, _ in found], np.float64)
    return auc, np.array([parts.T for _, parts in found]).reshape(-1, 2, patients).transpose(1, 2, 0), one


def _weighted(positive, scores, patient, weight) -> tuple[np.ndarray, np.ndarray, _Class]:
    """As `_of_one_class`, placements and sums weighted."""
    positive, scores, weight = np.asarray(positive, bool), np.asarray(scores), np.asarray(weight, np.float64)
    whose, patients = _patients(positive[:, None], scores, patient)
    one, auc, parts = _Class(positive, whose, patients), [], np.empty((2, patients, scores.shape[1]))
    total = weight[positive].sum(), weight[~positive].sum()
    for k, score in enumerate(scores.T):
        ranks = _Ranks(np.ascontiguousarray(score))
        at_first = np.empty_like(ranks.order)
        at_first[ranks.order] = np.arange(len(score))
        placements = np.empty(len(score))
        for side, of in ((positive, ~positive), (~positive, positive)):
            up_to = np.concatenate(([0.0], np.cumsum((weight * of)[ranks.order])))
            below = (up_to[ranks.first] + up_to[ranks.end])[at_first] / 2
            placements[side] = below[side] / up_to[-1] if up_to[-1] else np.nan
        placements[~positive] = 1 - placements[~positive]
        area = float((weight * placements)[positive].sum() / total[0]) if all(total) else np.nan
        auc.append(area)
        for part, side, of in ((0, ~positive, total[1]), (1, positive, total[0])):
            moves = weight[side] * (placements[side] - area) / of if of else np.full(side.sum(), np.nan)
            parts[part, :, k] = np.bincount(whose[side], moves, minlength=patients) if all(total) else np.nan
    return np.array(auc), parts, one


def _patients(positive: np.ndarray, scores: np.ndarray, patient: np.ndarray) -> tuple[np.ndarray, int]:
    if positive.ndim != 2 or scores.ndim != 2 or not len(positive) == len(scores) == len(patient):
        raise ValueError(f"positive {positive.shape}, scores {scores.shape} and {len(patient)} patients do not fit")
    if not len(positive):
        raise ValueError("no image")
    ids, whose = np.unique(np.asarray(patient), return_inverse=True)
    return whose, len(ids)


# --- tests -----------------------------------------------------------------------------------------------------------


class Difference(NamedTuple):
    """value: first AUC less the second; p: two-sided, of no difference. NaN where undefined; reason: why, or ''."""

    value: float
    standard_error: float
    p: float
    reason: str


def difference(auc: np.ndarray, covariance: np.ndarray, first: int, second: int) -> Difference:
    """Wald's test of two AUCs of the same images; both arrays as `auc_covariance` gives them, of a class or macro.

    Two scores that order the images alike differ by 0 without error, and have no p.
    """
    value = float(auc[first] - auc[second])
    independent = float(covariance[first, first] + covariance[second, second])
    variance = independent - float(covariance[first, second] + covariance[second, first])
    if np.isnan(value):
        return Difference(np.nan, np.nan, np.nan, "an AUC is undefined: no positive or no negative image")
    if np.isnan(variance):
        return Difference(value, np.nan, np.nan, FEW)
    if variance <= _NO_VARIANCE * independent:
        return Difference(value, np.nan, np.nan, "the difference has no variance")
    error = float(np.sqrt(variance))
    return Difference(value, error, float(2 * stats.norm.sf(abs(value) / error)), "")


class Against(NamedTuple):
    """low, high: interval; p: two-sided. float64 of the AUCs' shape, NaN where undefined; reason: str, why, or ''."""

    low: np.ndarray
    high: np.ndarray
    p: np.ndarray
    reason: np.ndarray


def against(
    auc: np.ndarray, standard_error: np.ndarray, fixed: float, level: float, quantile: float | None = None
) -> Against:
    """Wald's test of each AUC against a fixed one, say .5, and its interval at `level`, on the logit scale.

    quantile: of the interval, the normal's unless another is given.

    auc, standard_error: float64, any shape. The standard error of logit A is that of A over A (1 - A), to first order.
    Where A is 0 or 1 the classes are apart, its variance is estimated as 0 and its logit is infinite: all is NaN then.
    Raises ValueError for `fixed` or `level` not between 0 and 1.
    """
    if not (0 < fixed < 1 and 0 < level < 1):
        raise ValueError(f"an AUC of {fixed} and a level of {level} must lie between 0 and 1")
    auc, error = (np.asarray(x, np.float64) for x in (auc, standard_error))
    reason = np.select(
        [np.isnan(auc), (auc <= 0) | (auc >= 1), np.isnan(error), error <= np.sqrt(_NO_VARIANCE) * auc * (1 - auc)],
        ["no positive or no negative image", "an AUC of 0 or 1 has no standard error", FEW, "the AUC has no variance"],
        "",
    )
    defined = reason == ""
    a, e = np.where(defined, auc, 0.5), np.where(defined, error, 1.0)
    centre, spread = special.logit(a), e / (a * (1 - a))
    half = (statistics.NormalDist().inv_cdf(0.5 + level / 2) if quantile is None else quantile) * spread
    p = 2 * stats.norm.sf(np.abs(centre - special.logit(fixed)) / spread)
    ends = (special.expit(centre - half), special.expit(centre + half))
    return Against(*(np.where(defined, x, np.nan) for x in (*ends, p)), reason)


# --- many tests ------------------------------------------------------------------------------------------------------


def holm(p: np.ndarray) -> np.ndarray:
    """P-values adjusted so that the chance of any false finding stays below the level (Holm 1979): float64, as p.

    A NaN stays NaN and is no member of the family. Raises ValueError for a p outside [0, 1].
    """
    found, flat = _family(p)
    order = np.argsort(flat)
    steps = np.minimum(np.maximum.accumulate(flat[order] * np.arange(len(flat), 0, -1)), 1)
    adjusted = np.empty(len(flat))
    adjusted[order] = steps
    return _put(found, adjusted)


def benjamini_yekutieli(p: np.ndarray) -> np.ndarray:
    """P-values adjusted so that the expected share of false findings among all stays below the level: float64, as p.

    Whatever the dependence of the tests (Benjamini and Yekutieli 2001). NaN and ValueError as in `holm`.
    """
    found, flat = _family(p)
    return _put(found, stats.false_discovery_control(flat, method="by") if len(flat) else flat)


def _family(p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(which are there: bool, as p; those: float64 [family])."""
    p = np.asarray(p, np.float64)
    found = ~np.isnan(p)
    flat = p[found]
    if ((flat < 0) | (flat > 1)).any():
        raise ValueError("a p-value must lie between 0 and 1")
    return found, flat


def _put(found: np.ndarray, flat: np.ndarray) -> np.ndarray:
    out = np.full(found.shape, np.nan)
    out[found] = flat
    return out
