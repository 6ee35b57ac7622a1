"""Figures that can be reckoned with: a value, what it is in every replicate, and what each patient does to it.

An `Estimate` carries all that an interval or a test needs, so that a difference of two groups, a ratio, a mean over
classes, is the same arithmetic on all three: replicate by replicate, and, for what patients do, to first order (the delta
method). The influence of a patient is how far the figure moves, to first order, as the patient comes in with others like
those there; the figure's variance is the sum of its squares over patients, whatever images they have in common
(cluster-robust; for an AUC Obuchowski's, see `comparisons`, for a share that of a ratio estimate, Cochran 1977, 9A).

**Intervals**, by `kind`:

    percentile  the middle of the replicates
    bca         Efron's (1987, JASA 82:171-185) bias-corrected and accelerated percentiles. The acceleration is
                Σl³ / 6(Σl²)^1.5 of the influences l, which the jackknife would approach at many times the work. Quantiles are
                Student's, times sqrt(k/(k-1)), k the patients of the smaller side: percentiles are too narrow by that
                much (Hesterberg, The American Statistician 69:371-386, 2015, "expanded"). A single share has Wilson's
                (1927) interval at its effective number of patients (Korn and Graubard 1998), which is Wilson's own where
                each patient has one image, and has a width where all are alike
                A difference of shares of which one counts fewer than 5 has Newcombe's (1998)
    analytic    of an AUC, on the logit scale, DeLong's where each patient has one image, else Obuchowski's; shares as for
                bca; of the rest, the estimate ± Student's quantile x standard error

A figure without replicates (the slope of a calibration, found by iteration) has its analytic interval whatever the kind.

**Tests** are Wald's by influence, with Student's quantiles at k - 1; an AUC is compared on the logit scale. Beside them
stands the bootstrap's own p, (1 + b) / (B + 1), b the replicates at least as far from the estimate as that is from 0; it
cannot be below 1 / (B + 1), and so cannot survive a correction for many tests unless B is large.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special, stats

from cxr_jax.audit import comparisons, metrics
from cxr_jax.audit.intervals import MAX_UNDEFINED, Bootstrap, MeanCell, RankedCell, distinct, percentile_interval, wilson

KINDS = ("bca", "percentile", "analytic")
ALIKE = "interval withheld: every replicate gives the same value"
CERTAIN = "interval withheld: a part of it is 0 or 1, which no replicate would change"
RANGE = "no interval: the greatest of several differences is above 0 by chance alone; see the differences"
FEW_EVENTS = 5
_NOTHING = 1e-12  # relative: what rounding may leave of 0


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A figure of one split.

    value: NaN where undefined. replicates: float64 [B], NaN where undefined; None where there are none. influence: gives
    float64 [patients of the split], computed when asked for; None where unknown. patients: of the smaller side of what
    it is made of, say of the positives of an AUC. images: of both sides. scale: 'share', a mean of zeros and ones;
    'auc'; 'precision', an average one; 'error', of calibration; '' else. reason: why it is undefined, or what must be known of it. decimals: to how many it and its interval
    are rounded, lest they tell of few patients; None: not. how: a threshold was chosen, or ''. of: the
    two that it is the difference or ratio of. no_interval: why it is to have none, or ''.
    """

    value: float
    replicates: np.ndarray | None = None
    influence: Callable[[], np.ndarray] | None = None
    patients: int = 0
    images: int = 0
    scale: str = ""
    reason: str = ""
    decimals: int | None = None
    how: str = ""
    of: tuple["Estimate", "Estimate"] | None = None
    no_interval: str = ""

    @property
    def defined(self) -> bool:
        return bool(np.isfinite(self.value))

    def rounded(self) -> "Estimate":
        """The same, its value rounded to `decimals`."""
        return self if self.decimals is None else dataclasses.replace(self, value=round(self.value, self.decimals) + 0.0)  # never -0

    @property
    def standard_error(self) -> float:
        """Root of the sum of squared influences; NaN where unknown."""
        if self.influence is None:
            return np.nan
        found = self.influence()
        return float(np.sqrt(found @ found))


def undefined(reason: str) -> Estimate:
    return Estimate(np.nan, reason=reason)


def _combined(several: Sequence[Estimate], value: float, replicates, gradient: Sequence[float], reason: str = "") -> Estimate:
    """A function of estimates. gradient: its derivative by each, at their values."""
    alone = [one.influence for one in several]
    influence = None
    if all(one is not None for one in alone):

        def influence():
            return sum(d * one() for d, one in zip(gradient, alone, strict=True))

    decimals = min((one.decimals for one in several if one.decimals is not None), default=None)
    reasons = [reason] if reason else list(dict.fromkeys(one.reason for one in several if one.reason and not one.defined))
    patients, images = min(one.patients for one in several), sum(one.images for one in several)
    return Estimate(float(value), replicates, influence, patients, images, "", "; ".join(reasons), decimals, several[0].how)


def difference(a: Estimate, b: Estimate) -> Estimate:
    both = None if a.replicates is None or b.replicates is None else a.replicates - b.replicates
    return dataclasses.replace(_combined((a, b), a.value - b.value, both, (1.0, -1.0)), of=(a, b))


def ratio(a: Estimate, b: Estimate) -> Estimate:
    """a / b; undefined where b is 0, and in such replicates."""
    if not (a.defined and b.defined):
        return _combined((a, b), np.nan, None, (0.0, 0.0))
    if b.value == 0:
        return undefined("a ratio to 0")
    with np.errstate(divide="ignore", invalid="ignore"):
        both = None if a.replicates is None or b.replicates is None else a.replicates / b.replicates
    if both is not None:
        both = np.where(np.isfinite(both), both, np.nan)
    made = _combined((a, b), a.value / b.value, both, (1 / b.value, -a.value / b.value**2))
    if any(_certain(one) for one in (a, b)):
        made = dataclasses.replace(made, no_interval=CERTAIN)
    return made


def mean(several: Sequence[Estimate], reason: str = "") -> Estimate:
    """The plain mean. One of those without replicates, and it has none."""
    alone = [one.replicates for one in several]
    replicates = None if any(one is None for one in alone) else np.mean(alone, axis=0)
    share = 1 / len(several)
    made = _combined(several, np.mean([one.value for one in several]), replicates, [share] * len(several), reason)
    scales = {one.scale for one in several}
    return dataclasses.replace(made, scale=scales.pop() if scales in ({"auc"}, {"precision"}) else "")


def spread(named: dict[str, Estimate]) -> tuple[Estimate, str, str]:
    """(Greatest less least, name of the greatest, of the least). It has no interval: none that is known covers as it should.

    Replicates of a greatest difference are greater still, the more so the more groups there are and the more alike; of five that
    do not differ no percentile interval has 0 in it, and what corrects for that misses elsewhere.
    """
    values = {name: one.value for name, one in named.items()}
    high, low = max(values, key=values.__getitem__), min(values, key=values.__getitem__)
    made = difference(named[high], named[low])
    return dataclasses.replace(made, replicates=None, influence=None, of=None, no_interval=RANGE), high, low


def logit(a: Estimate) -> Estimate:
    """The same on the logit scale, for tests: no replicates. Undefined for 0 and 1."""
    if not 0 < a.value < 1:
        return undefined(a.reason or "0 or 1 has no logit")
    return _combined((a,), special.logit(a.value), None, (1 / (a.value * (1 - a.value)),))


# --- what estimates are made of --------------------------------------------------------------------------------------


class Estimator:
    """Makes estimates of one split. bootstrap: its replicates, which all of them share."""

    def __init__(self, bootstrap: Bootstrap):
        self.bootstrap = bootstrap

    def rank(self, cells: Sequence[RankedCell]) -> list[tuple[Estimate, Estimate]]:
        """(AUC, average precision) of each cell. Raises ValueError as `metrics.rank`."""
        return [self._ranked(cell, *both) for cell, *both in zip(cells, *self.bootstrap.ranking(cells), strict=True)]

    def _ranked(self, cell: RankedCell, auc: np.ndarray, precision: np.ndarray) -> tuple[Estimate, Estimate]:
        who = self.bootstrap.patient[cell.rows]
        sides = [np.asarray(cell.positive) == side for side in (True, False)]
        positives, negatives = (count(who[side], None if cell.weight is None else cell.weight[side]) for side in sides)
        images, influence = len(cell.rows), functools.partial(self._auc_influence, cell)
        value = metrics.auc(cell.positive, cell.score, cell.weight)
        area = Estimate(value, auc, influence, min(positives, negatives), images, "auc")
        value = metrics.average_precision(cell.positive, cell.score, cell.weight)
        return area, Estimate(value, precision, None, positives, images, "precision")

    def _auc_influence(self, cell: RankedCell) -> np.ndarray:
        found = np.zeros(self.bootstrap.patients)
        who = self.bootstrap.patient[cell.rows]
        found[distinct(who)] = comparisons.influence(cell.positive, cell.score[:, None], who, cell.weight)[1][:, 0]
        return found

    def means(self, cells: Sequence[MeanCell], scale: str = "") -> list[Estimate]:
        """The mean of each cell. scale: 'share' where all values are 0 or 1."""
        return [self._mean(cell, drawn, scale) for cell, drawn in zip(cells, self.bootstrap.means(cells), strict=True)]

    def _mean(self, cell: MeanCell, replicates: np.ndarray, scale: str) -> Estimate:
        patients = count(self.bootstrap.patient[cell.rows], cell.weight)
        influence = functools.partial(self._mean_influence, cell)
        return Estimate(metrics.mean(cell.value, cell.weight), replicates, influence, patients, len(cell.rows), scale)

    def _mean_influence(self, cell: MeanCell) -> np.ndarray:
        weight = np.ones(len(cell.rows)) if cell.weight is None else cell.weight
        moves = weight * (np.asarray(cell.value, np.float64) - metrics.mean(cell.value, cell.weight)) / weight.sum()
        return self.by_patient(cell.rows, moves)

    def by_patient(self, rows: np.ndarray, moves: np.ndarray) -> np.ndarray:
        """Influence of each patient of the split, of what each of some images does: summed, with k / (k - 1) in its square.

        rows: int [m], positions in the split; moves: float [m]. NaN of one patient.
        """
        who = self.bootstrap.patient[rows]
        k = len(distinct(who))
        factor = np.sqrt(k / (k - 1)) if k > 1 else np.nan
        return np.bincount(who, moves, minlength=self.bootstrap.patients) * factor

    def calibration(self, several: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]) -> list[dict[str, Estimate]]:
        """ece, ece_debiased and calibration_slope of some images, each (rows, positive, score, bins).

        rows: int [m], positions in the split; positive: bool [m]; score: float [m]; bins: int [m], the bin of each. The slope,
        found by iteration, has no replicates. The plain error is biased upwards, and its replicates more so: it has no interval.
        """
        cells = [[MeanCell(rows, (score - positive) * (bins == b)) for b in np.unique(bins)] for rows, positive, score, bins in several]
        drawn = self.bootstrap.means([cell for inside in cells for cell in inside])
        ends = np.cumsum([len(inside) for inside in cells])
        parts = [drawn[end - len(inside) : end] for end, inside in zip(ends, cells, strict=True)]
        return [self._calibration(*one, *both) for one, *both in zip(several, cells, parts, strict=True)]

    def _calibration(self, rows, positive, score, bins, cells, drawn) -> dict[str, Estimate]:
        apart = np.array([metrics.mean(cell.value) for cell in cells])
        error = np.array([np.sqrt(i @ i) for i in map(self._mean_influence, cells)])
        sizes = {"patients": count(self.bootstrap.patient[rows]), "images": len(rows)}
        fit = metrics.recalibration(positive, score)
        reason = "" if np.isfinite(fit.slope) else "no slope: one class, one score, or classes told apart without error"
        return {
            "ece": Estimate(float(metrics.calibration_error(apart)), no_interval="no interval: biased upwards, see ece_debiased", **sizes),
            "ece_debiased": Estimate(float(metrics.calibration_error(apart, error)), metrics.calibration_error(drawn, error), scale="error", **sizes),
            "calibration_slope": Estimate(fit.slope, None, functools.partial(self.by_patient, rows, fit.moves), reason=reason, **sizes),
        }


def count(patient: np.ndarray, weight: np.ndarray | None = None) -> int:
    """How many patients some images are of; of unequal weight as many as would tell as much, (Σw)² / Σw² (Kish 1965), rounded down.

    patient: int [m]; weight: float [m], above 0; a patient's is the mean of her images'.
    """
    images = np.bincount(patient)
    who = np.flatnonzero(images)
    if weight is None or not len(who):
        return len(who)
    each = np.bincount(patient, weight)[who] / images[who]
    return int(each.sum() ** 2 / (each @ each) + _NOTHING)


# --- intervals -------------------------------------------------------------------------------------------------------


class Limits(NamedTuple):
    """low, high: NaN where withheld. method: what they are. reason: why there are none, or ''."""

    low: float
    high: float
    method: str
    reason: str


def interval(a: Estimate, level: float, kind: str) -> Limits:
    """The interval of a defined estimate at `level`; kind: one of KINDS. See above. Rounded where the estimate is."""
    drawn = 0 if a.replicates is None else len(a.replicates)
    found = _interval(a, level, kind, drawn)
    if a.decimals is None or np.isnan(found.low):
        return found
    return found._replace(low=round(found.low, a.decimals), high=round(found.high, a.decimals))


def _interval(a: Estimate, level: float, kind: str, drawn: int) -> Limits:
    bootstrap = f"patient bootstrap, {'percentile' if kind == 'percentile' else 'BCa, expanded'}, {drawn} replicates"
    if a.no_interval:
        return Limits(np.nan, np.nan, bootstrap, a.no_interval)
    if a.of is not None:
        if all(one.scale == "share" for one in a.of) and kind != "percentile" and min(map(_events, a.of)) < FEW_EVENTS:
            return _of_two_shares(a, level)
        if any(_certain(one) for one in a.of):
            return Limits(np.nan, np.nan, bootstrap, CERTAIN)
    if a.scale == "share" and a.patients:
        alike = a.replicates is not None and np.nanmin(a.replicates, initial=np.inf) == np.nanmax(a.replicates, initial=-np.inf)
        if kind != "percentile":
            return Limits(*wilson(a.value, _effective(a), level), "Wilson, at the effective number of patients", "")
        if alike and a.value in (0, 1):
            low, high = wilson(a.value, a.patients, level)
            return Limits(low, high, "Wilson, at the number of patients, as every replicate gives the same value", "")
    if a.replicates is None or (kind == "analytic" and a.influence is not None):
        return _analytic(a, level)
    if kind != "bca" or a.scale == "error":  # of which the replicates' bias is not what BCa corrects
        low, high, reason = percentile_interval(a.replicates, level)
        bootstrap = bootstrap.replace("BCa, expanded", "percentile")
    else:
        acceleration = 0.0
        if a.influence is not None:
            found = a.influence()
            squares = found @ found
            acceleration = float((found**3).sum() / (6 * squares**1.5)) if squares > 0 else 0.0
        low, high, reason = bca_interval(a.replicates, a.value, acceleration, a.patients, level)
    if low == high and a.of is None and a.scale in ("auc", "precision") and a.value != 0.5:  # one score for all gives .5 for certain
        return Limits(np.nan, np.nan, bootstrap, ALIKE)
    return Limits(low, high, bootstrap, reason)


def _certain(a: Estimate) -> bool:
    """Whether a figure is where it cannot vary: a share, or an AUC, of 0 or 1."""
    return a.scale in ("share", "auc") and a.value in (0, 1)


def _events(a: Estimate) -> float:
    """Of a share, how many it counts, or does not, whichever are fewer, at its effective number of patients."""
    return min(a.value, 1 - a.value) * _effective(a)


def _of_two_shares(a: Estimate, level: float) -> Limits:
    """Newcombe's (1998, Statistics in Medicine 17:873-890) interval of a difference, from Wilson's of both shares.

    For few events, where bootstraps know of no others. Patients with a part in both make the shares correlate, which is
    allowed for (Zou and Donner, Statistics in Medicine 27:1693-1702, 2008).
    """
    one, other = a.of
    (l1, u1), (l2, u2) = (wilson(share.value, _effective(share), level) for share in a.of)
    both = one.influence(), other.influence()
    size = np.sqrt((both[0] @ both[0]) * (both[1] @ both[1]))
    r = float(both[0] @ both[1] / size) if size > 0 else 0.0

    def away(p: float, q: float) -> float:
        return float(np.sqrt(max(p**2 + q**2 - 2 * r * p * q, 0.0)))

    low = a.value - away(one.value - l1, u2 - other.value)
    high = a.value + away(u1 - one.value, other.value - l2)
    return Limits(max(low, -1.0), min(high, 1.0), "Newcombe's, of Wilson's at the effective numbers of patients", "")


def _effective(a: Estimate) -> float:
    """As many patients of one image each as would tell of the share as much; never above the number of images."""
    if a.value in (0, 1) or a.influence is None:
        return float(a.patients)
    variance = a.standard_error**2
    return float(min(a.value * (1 - a.value) / variance, a.images)) if variance > 0 else float(a.patients)


def _analytic(a: Estimate, level: float) -> Limits:
    error = a.standard_error
    if np.isnan(error) or a.patients < 2:
        return Limits(np.nan, np.nan, "", "no interval: " + ("fewer than 2 patients on a side" if a.patients < 2 else "its error is unknown"))
    t = float(stats.t.ppf(0.5 + level / 2, a.patients - 1))
    if a.scale == "auc":
        found = comparisons.against(np.array([a.value]), np.array([error]), 0.5, level, t)
        return Limits(float(found.low[0]), float(found.high[0]), "Obuchowski's (DeLong's where each patient has one image), on the logit scale", str(found.reason[0]))
    if error <= _NOTHING * max(abs(a.value), 1):
        return Limits(np.nan, np.nan, "", ALIKE)
    return Limits(a.value - t * error, a.value + t * error, "Student's, by patients' influence", "")


def bca_interval(replicates: np.ndarray, value: float, acceleration: float, patients: int, level: float) -> tuple[float, float, str]:
    """(low, high, reason) of the expanded BCa interval; see above. NaN and a reason where there is none.

    replicates: float64 [B]; more than 5 % NaN, and there is none. value: of the data as they are. patients: k. Where all
    replicates lie on one side of the value, no bias can be told from them, and percentiles are taken, expanded alone.
    """
    level_of = percentile_interval(replicates, level)
    if level_of.reason:
        return level_of
    if patients < 2:
        return np.nan, np.nan, "no interval: fewer than 2 patients on a side"
    drawn = np.sort(replicates[~np.isnan(replicates)])
    below = (np.searchsorted(drawn, value, "left") + np.searchsorted(drawn, value, "right")) / (2 * len(drawn))
    bias = float(special.ndtri(below)) if 0 < below < 1 else 0.0
    half = stats.t.ppf(0.5 + level / 2, patients - 1) * np.sqrt(patients / (patients - 1))
    ends = bias + np.array([-half, half])
    # Far out the correction has a pole, beyond which an end stays where it was going.
    slack = 1 - acceleration * ends
    ends = np.where(slack > 0, special.ndtr(bias + ends / np.where(slack > 0, slack, 1.0)), (ends > 0).astype(float))
    low, high = np.quantile(drawn, ends)
    return float(low), float(high), ""


# --- tests -----------------------------------------------------------------------------------------------------------


class Tested(NamedTuple):
    """p: Wald's; p_bootstrap: the bootstrap's own. Two-sided, of no difference; NaN where undefined. reason: why, or ''."""

    p: float
    p_bootstrap: float
    reason: str


def tested(a: Estimate, b: Estimate) -> Tested:
    """Of a - b being 0. AUCs are compared on the logit scale, unless one is 0 or 1: then there is no test."""
    apart = difference(a, b)
    if not apart.defined:
        return Tested(np.nan, np.nan, apart.reason)
    own = np.nan
    if apart.replicates is not None and np.isnan(apart.replicates).mean() <= MAX_UNDEFINED:
        drawn = apart.replicates[~np.isnan(apart.replicates)]
        own = (1 + np.sum(np.abs(drawn - apart.value) >= abs(apart.value) * (1 - _NOTHING))) / (len(drawn) + 1)
    on_scale = difference(logit(a), logit(b)) if a.scale == b.scale == "auc" else apart
    if not on_scale.defined:
        return Tested(np.nan, own, on_scale.reason)
    if a.scale == b.scale == "share" and {a.value, b.value} & {0.0, 1.0}:
        return Tested(np.nan, own, "a share of 0 or 1 has no standard error")
    error = on_scale.standard_error
    if np.isnan(error) or on_scale.patients < 2:
        return Tested(np.nan, own, "fewer than 2 patients on a side")
    if error <= _NOTHING:
        return Tested(np.nan, own, "the difference has no variance")
    return Tested(float(2 * stats.t.sf(abs(on_scale.value) / error, on_scale.patients - 1)), float(own), "")
