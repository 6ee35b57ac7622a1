"""Confidence intervals from a bootstrap that resamples patients.

Images of one patient resemble one another, so resampling images would count the same evidence several times and give
intervals that are too narrow. A replicate here draws as many patients as there are, with replacement, and every image
of a patient comes along each time that the patient is drawn (the cluster bootstrap: Davison and Hinkley 1997, 3.8). A
replicate is then nothing but a vector of whole numbers, how often each patient was drawn, and a metric of it is the
metric with those numbers as weights.

That is what makes it quick: scores are sorted once, and a replicate's AUC or average precision is one pass over the
sorted images. `Bootstrap.ranking` walks that pass for hundreds of replicates at a time, one vector lane each.

The numbers drawn depend on the seed and the set of patients alone. One `Bootstrap` serves every metric, class, group
and model, so that replicate b is the same imagined test set for all of them, and the difference of two metrics has an
interval from the differences within replicates. A group's replicate is its part of the split's. Patients are drawn from
the whole split or, so that no group vanishes from a replicate, from each of several strata as many as it has. A replicate
in which a metric is undefined (a small class not drawn at all) is counted, and where more than 5 % are, the interval is
withheld: what is left would be the lucky draws.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cxr_jax import mesh
from cxr_jax.audit import metrics

# Replicates walked at once. Their running sums, 5 of 8 bytes each, then stay in a core's first cache.
LANES = 500
MEAN_CELLS = 128  # weighted means computed in one matrix product
ROC_LANES = 100  # replicates whose whole curves are held at once
MAX_UNDEFINED = 0.05
SMALL, SMALLEST_STRATUM = 50, 20  # patients


class RankedCell(NamedTuple):
    """Images with a truth and a score. rows: int [m], positions in the split; positive: bool [m]; score: float [m];
    weight: float [m], above 0, how often each counts, once where it is None."""

    rows: np.ndarray
    positive: np.ndarray
    score: np.ndarray
    weight: np.ndarray | None = None


class MeanCell(NamedTuple):
    """Some images with one value each. rows: int [m], positions in the split; value: float [m]; weight: float [m], how
    often each counts, once where it is None."""

    rows: np.ndarray
    value: np.ndarray
    weight: np.ndarray | None = None


def distinct(patient: np.ndarray) -> np.ndarray:
    """The distinct patients of some images, sorted. patient: int [m], numbers from 0 on: counted, which is quicker than to sort them."""
    return np.flatnonzero(np.bincount(patient))


class Bootstrap:
    """Replicates of one split, drawn once.

    patient_ids: [n], whose image each row is.
    replicates: how many.
    seed: the same seed and the same set of patients give the same draws, in whatever order the rows come.
    groups: bool [n] each, groups of images, overlapping as they may, each of which is to be in every replicate. Those of
        fewer than `SMALL` patients are strata, larger ones do not vanish anyhow; a patient's stratum is the smallest that she
        has an image in, and all others make one. To draw the same number from a stratum each time takes out of the variance
        how strata differ, which is next to nothing where they are small; so what is judged must not be a stratum itself.
        Strata of fewer than `SMALLEST_STRATUM` go with the others: of m patients drawn from as many the variance is
        (m-1)/m of what it should be.

    Raises ValueError for fewer than one replicate.

    Attributes:
        patient: int32 [n], position of each image's patient among the sorted distinct ids.
        patients: how many.
        counts: uint8 [patients, replicates], how often each patient was drawn.
    """

    def __init__(self, patient_ids: np.ndarray, replicates: int, seed: int, groups: Sequence[np.ndarray] = ()):
        if replicates < 1:
            raise ValueError(f"{replicates} replicates")
        _, patient = np.unique(np.asarray(patient_ids, str), return_inverse=True)
        self.patient = patient.astype(np.int32)
        self.replicates = replicates
        self.patients = int(self.patient.max()) + 1 if len(self.patient) else 0
        self.counts = draw(self.patients, replicates, seed, self._strata(groups))

    def _strata(self, groups: Sequence[np.ndarray]) -> np.ndarray | None:
        """The stratum of each patient, int [patients]; None for a single one."""
        members = sorted((distinct(self.patient[mask]) for mask in groups), key=len, reverse=True)
        members = [who for who in members if len(who) < SMALL]
        stratum = np.zeros(self.patients, np.int64)
        for k, who in enumerate(members, 1):  # the smallest comes last, and stays
            stratum[who] = k
        sizes = np.bincount(stratum, minlength=1)
        stratum[sizes[stratum] < SMALLEST_STRATUM] = 0
        if (stratum == 0).sum() < SMALLEST_STRATUM:
            stratum[stratum == 0] = np.argmax(np.bincount(stratum))
        return stratum if len(np.unique(stratum)) > 1 else None

    def ranking(self, cells: Sequence[RankedCell]) -> tuple[np.ndarray, np.ndarray]:
        """AUC and average precision of every cell in every replicate: two float64 [cells, replicates], NaN undefined.

        Definitions are those of `metrics.auc` and `metrics.average_precision`. Without weights all sums for the AUC are of
        whole and half numbers below 2**53, so they are exact in float64 whatever the order. Raises ValueError as `metrics.rank`.
        """
        if not cells:
            return np.zeros((0, self.replicates)), np.zeros((0, self.replicates))
        ranks = [metrics.rank(cell.positive, cell.score) for cell in cells]
        rows = np.concatenate([np.asarray(c.rows)[r.order] for c, r in zip(cells, ranks)]).astype(np.int64)
        positive = np.concatenate([np.asarray(c.positive, bool)[r.order] for c, r in zip(cells, ranks)])
        weight = np.concatenate([np.ones(len(r.order)) if c.weight is None else np.asarray(c.weight, np.float64)[r.order] for c, r in zip(cells, ranks)])
        tied = np.concatenate([r.tied for r in ranks])
        closes = np.concatenate([r.last == np.arange(len(r.last)) for r in ranks])
        stops = np.cumsum([len(r.order) for r in ranks])
        starts = stops - [len(r.order) for r in ranks]
        if not len(rows):
            return np.full((len(cells), self.replicates), np.nan), np.full((len(cells), self.replicates), np.nan)
        # The walk never reaches what fills these up, and a cell from 0 to 0 is empty: it costs nothing.
        images = [_filled(x, 0) for x in (self.patient[rows], positive, tied, closes, weight)]
        bounds = [_filled(x.astype(np.int32), 0) for x in (starts, stops)]
        # Also since the walk is long and narrow: an accelerator would spend its time launching kernels.
        with mesh.float64_on_host():
            walk = [jnp.asarray(x) for x in (*images, *bounds)]
            parts = [_ranking(counts, *walk) for counts in self._chunks(LANES)]
            auc, precision = (self._join(part[k] for part in parts) for k in range(2))
        return auc[: len(cells)], precision[: len(cells)]

    def means(self, cells: Sequence[MeanCell]) -> np.ndarray:
        """Mean of every cell's values in every replicate: float64 [cells, replicates], NaN where no image is drawn."""
        patients = len(_filled(self.counts[:, :1]))
        means = np.zeros((len(cells), self.replicates))
        for first in range(0, len(cells), MEAN_CELLS):
            block = cells[first : first + MEAN_CELLS]
            # By patient first: a replicate then is one product with [patients] instead of one with [images]. Blocks are
            # filled up with empty cells, so that one compiled product serves them all.
            total, images = np.zeros((2, MEAN_CELLS, patients))
            for k, cell in enumerate(block):
                whose, value = self.patient[cell.rows], np.asarray(cell.value, np.float64)
                weight = np.ones(len(value)) if cell.weight is None else np.asarray(cell.weight, np.float64)
                total[k] = np.bincount(whose, weights=weight * value, minlength=patients)
                images[k] = np.bincount(whose, weights=weight, minlength=patients)
            with mesh.float64_on_host():
                products = [_means(c, jnp.asarray(total), jnp.asarray(images)) for c in self._chunks(LANES)]
                means[first : first + len(block)] = self._join(products)[: len(block)]
        return means

    def roc(self, cell: RankedCell, grid: np.ndarray) -> np.ndarray:
        """`metrics.tpr_at_fpr` in every replicate: float64 [len(grid), replicates], NaN undefined.

        Raises ValueError as `metrics.rank`.
        """
        ranking = metrics.rank(cell.positive, cell.score)
        if not len(ranking.order):
            return np.full((len(grid), self.replicates), np.nan)
        patient = self.patient[np.asarray(cell.rows)[ranking.order]]
        positive = np.asarray(cell.positive, bool)[ranking.order]
        images = [_filled(x) for x in (patient, positive, np.ones(len(patient), bool), ranking.last)]
        images[-1][len(patient) :] = len(patient) - 1
        with mesh.float64_on_host():
            fixed = [jnp.asarray(x) for x in (*images, np.asarray(grid, np.float64))]
            return self._join(np.asarray(_roc(counts, *fixed)) for counts in self._chunks(ROC_LANES))

    def _chunks(self, lanes: int) -> Iterator[jax.Array]:
        """Counts of `lanes` replicates at a time; filled up with undrawn patients and replicates of nobody."""
        lanes = min(lanes, self.replicates)
        for first in range(0, self.replicates, lanes):
            chunk = self.counts[:, first : first + lanes]
            yield jnp.asarray(_filled(np.pad(chunk, ((0, 0), (0, lanes - chunk.shape[1])))))

    def _join(self, parts) -> np.ndarray:
        return np.concatenate([np.asarray(part) for part in parts], axis=1)[:, : self.replicates]


def _filled(x: np.ndarray, halvings: int = 3) -> np.ndarray:
    """`x` with zeros at its end up to one of few lengths, so that one compiled function serves requests of many.

    Lengths go in steps of the power of 2 below, halved `halvings` times, and at least 64.
    """
    step = 1 << max(6, len(x).bit_length() - 1 - halvings)
    return np.pad(x, [(0, -len(x) % step)] + [(0, 0)] * (x.ndim - 1))


def draw(patients: int, replicates: int, seed: int, stratum: np.ndarray | None = None) -> np.ndarray:
    """How often each patient is drawn: uint8 [patients, replicates]; each column adds up to `patients`.

    A column is multinomial, `patients` draws of equal chance; with stratum, int [patients], it is so in each of them. (A
    patient drawn 256 times would overflow; with fewer patients than that it cannot happen, and with more its chance is
    below 1 in 10**500.)
    """
    rng = np.random.default_rng(seed)
    counts = np.empty((replicates, patients), np.uint8)
    # Patients of a stratum side by side: the draws of each are then those of a range.
    order = np.arange(patients) if stratum is None else np.argsort(stratum, kind="stable")
    sizes = np.array([patients]) if stratum is None else np.unique(stratum, return_counts=True)[1]
    low = np.repeat(np.cumsum(sizes) - sizes, sizes)
    high = low + np.repeat(sizes, sizes)
    for replicate in counts:
        drawn = rng.integers(low, high) if stratum is not None else rng.integers(0, patients, patients) if patients else []
        replicate[order] = np.bincount(np.asarray(drawn, np.int64), minlength=patients)
    # Patients first: the walk reads one patient's counts in many replicates, and these then lie side by side.
    return np.ascontiguousarray(counts.T)


class Interval(NamedTuple):
    """low, high: NaN where withheld. reason: why, or ''."""

    low: float
    high: float
    reason: str


def percentile_interval(replicates: np.ndarray, level: float) -> Interval:
    """The middle `level` of a metric's replicates, float [replicates]; quantiles interpolate linearly.

    Withheld where more than 5 % of the replicates are undefined (NaN).
    """
    replicates = np.asarray(replicates, np.float64)
    undefined = int(np.isnan(replicates).sum())
    if undefined > MAX_UNDEFINED * len(replicates):
        reason = f"interval withheld: undefined in {undefined} of {len(replicates)} replicates"
        return Interval(np.nan, np.nan, reason)
    tail = (1 - level) / 2
    low, high = np.quantile(replicates[~np.isnan(replicates)], [tail, 1 - tail])
    return Interval(float(low), float(high), "")


def wilson(share: float, n: float, level: float) -> tuple[float, float]:
    """Wilson's (1927) interval at `level` for a share of n independent observations, n > 0: (low, high) in [0, 1]; NaN for NaN.

    Unlike resampling it has a width where all are alike: none of 20 is not none of the world.
    """
    z = statistics.NormalDist().inv_cdf(0.5 + level / 2)
    centre, half = share + z**2 / (2 * n), z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    low, high = np.clip(np.array([centre - half, centre + half]) / (1 + z**2 / n), 0, 1)
    if np.isfinite(low):  # of an unknown n nothing is known
        low, high = low if share > 0 else 0.0, high if share < 1 else 1.0  # which rounding would miss by a hair
    return float(low), float(high)


@jax.jit
def _ranking(counts, patient, positive, tied, closes, own, starts, stops):
    """AUC and average precision, [cells, lanes] each; `patient` to `own` hold all cells' sorted images in a row.

    own: an image's own weight, by which its patient's count is multiplied.
    Walking down the scores, with w an image's weight and ties sorted positives first:
        true    weight of the positives so far          level   weight of the positives of the present score
        called  weight of all images so far             won     pairs won: a negative loses to every positive above it
        gained  sum of precision x positives                    and to half of those level with it
    A cell with other images than its neighbour's is only another stretch of the walk: groups of any size share one
    compiled function and none is padded.
    """
    nothing = jnp.zeros(counts.shape[1], jnp.float64)

    def step(i, sums):
        true, level, called, won, gained = sums
        weight = counts[patient[i]].astype(jnp.float64) * own[i]
        gain = weight * positive[i].astype(jnp.float64)
        true = true + gain
        level = level * tied[i].astype(jnp.float64) + gain
        called = called + weight
        won = won + (weight - gain) * (true - level * 0.5)
        # Where nobody has been called yet, `level` is 0 as well, and the divisor only has to be finite.
        gained = gained + jnp.where(closes[i], level * true / jnp.maximum(called, 1e-300), 0.0)
        return true, level, called, won, gained

    def cell(bounds):
        true, _, called, won, gained = lax.fori_loop(*bounds, step, (nothing,) * 5)
        pairs = true * (called - true)
        return (
            jnp.where(pairs > 0, won / jnp.where(pairs > 0, pairs, 1.0), jnp.nan),
            jnp.where(true > 0, gained / jnp.where(true > 0, true, 1.0), jnp.nan),
        )

    return lax.map(cell, (starts, stops))


@jax.jit
def _means(counts, total, images):
    """[cells, patients] sums and numbers of images, times [patients, lanes]: means, [cells, lanes]."""
    counts = counts.astype(jnp.float64)
    drawn = images @ counts
    return jnp.where(drawn > 0, (total @ counts) / jnp.where(drawn > 0, drawn, 1.0), jnp.nan)


@jax.jit
def _roc(counts, patient, positive, real, last, grid):
    """`metrics.tpr_at_fpr`, [grid, lanes]. Vertices inside a tie are moved to its end, which leaves the polygon alone.

    Images that are not `real` fill up the arrays and weigh nothing.
    """

    def step(sums, image):
        who, is_positive, is_real = image
        weight = jnp.where(is_real, counts[who].astype(jnp.int32), 0)
        gain = jnp.where(is_positive, weight, 0)
        sums = (sums[0] + gain, sums[1] + (weight - gain))
        return sums, sums

    nothing = jnp.zeros(counts.shape[1], jnp.int32)
    _, (true, false) = lax.scan(step, (nothing, nothing), (patient, positive, real))

    def read(true, false):
        true = jnp.concatenate([jnp.zeros(1), true.astype(jnp.float64)])
        false = jnp.concatenate([jnp.zeros(1), false.astype(jnp.float64)])
        wanted = grid * false[-1]
        near = jnp.abs(wanted - jnp.round(wanted)) < 1e-9 * false[-1]
        wanted = jnp.where(near, jnp.round(wanted), wanted)
        at = jnp.minimum(jnp.searchsorted(false, wanted, side="right") - 1, len(false) - 2)
        run, rise = false[at + 1] - false[at], true[at + 1] - true[at]
        share = jnp.where(run > 0, (wanted - false[at]) / jnp.where(run > 0, run, 1.0), 1.0)
        defined = (true[-1] > 0) & (false[-1] > 0)
        return jnp.where(defined, (true[at] + rise * share) / jnp.where(defined, true[-1], 1.0), jnp.nan)

    return jax.vmap(read, in_axes=1, out_axes=1)(true[last], false[last])
