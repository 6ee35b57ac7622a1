"""Differences of AUCs of two runs on the same images, paired: what one model does better, less the luck of the draw.

Both runs scored the same images of the same patients with the same labels. A bootstrap replicate then draws one set of patients for
both, and the difference within it has an interval; the test is Wald's with the covariance of `comparisons`. Neither sees that
another seed would have trained another model.

What may be told is for the caller to say: nothing here is withheld.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from cxr_jax.audit import comparisons, metrics
from cxr_jax.audit.intervals import Bootstrap, RankedCell, percentile_interval
from cxr_jax.audit.subgroups import MACRO
from cxr_jax.tables import Predictions


class Scored(NamedTuple):
    """One run's scores of a target, images in the order of their ids.

    classes: names. image, patient: str [n], ids. label: float64 [n, classes], 1, 0 or NaN where unknown. score: float64, likewise.
    """

    classes: tuple[str, ...]
    image: np.ndarray
    patient: np.ndarray
    label: np.ndarray
    score: np.ndarray

    @classmethod
    def of(cls, predictions: Predictions, target: str) -> Scored:
        """All rows of the predictions, in whatever order they were written."""
        classes = predictions.targets[target].classes
        image, patient = (predictions.table[name].to_numpy(str) for name in ("image_id", "patient_id"))
        label = predictions.labels(target)
        order = np.argsort(image)
        return cls(classes, image[order], patient[order], label[order], predictions.scores(target)[order])

    def known(self, name: str) -> np.ndarray:
        """Whose label of a class is known: bool [n]."""
        return ~np.isnan(self.label[:, self.classes.index(name)])

    def auc(self, name: str) -> float:
        """The AUC of a class; NaN where undefined."""
        k, known = self.classes.index(name), self.known(name)
        return metrics.auc(self.label[known, k] == 1, self.score[known, k])


class Paired(NamedTuple):
    """value: another run's AUC less the first one's; low, high: its interval; p: two-sided, of no difference. NaN where undefined.

    reason: why, or ''. n_images, n_patients: whose label is known; for the macro AUC, of any class.
    """

    value: float
    low: float
    high: float
    p: float
    reason: str
    n_images: int
    n_patients: int


class Reference:
    """The first run, to take its AUCs from those of others.

    settings: level, replicates and seed of the bootstrap, as the config's `audit` section has them. Patients are drawn from all of
    the split, where the audit draws them by stratum; so ends of intervals differ a little from what the audit's would be.
    """

    def __init__(self, first: Scored, settings):
        self._first, self._level = first, settings.level
        self._bootstrap = Bootstrap(first.patient, settings.replicates, settings.seed)
        self._own: dict[str, np.ndarray] = {}

    def why_not(self, other: Scored, least: int) -> str:
        """Why other scores cannot be paired with the first, or ''. No number that it names is of fewer than `least` patients."""
        first = self._first
        if set(other.classes) != set(first.classes):
            return "its classes are others"
        mine, theirs = np.isin(first.image, other.image), np.isin(other.image, first.image)
        if not mine.any():
            return "it was judged on other images, none of which is shared"
        if not (mine.all() and theirs.all()):
            parts = [(one.patient, ids) for one, inside in ((first, mine), (other, theirs)) for ids in (inside, ~inside)]
            few = any(0 < len(np.unique(patient[inside])) < least for patient, inside in parts)
            told = f"{mine.sum():,} are shared, of {len(mine):,} and {len(theirs):,}"
            return f"it was judged on other images, some of which are shared: {f'a part has fewer than {least} patients' if few else told}"
        label = other.label[:, [other.classes.index(name) for name in first.classes]]
        same = ((first.label == label) | (np.isnan(first.label) & np.isnan(label))).all(axis=1)
        what = "labels"
        if same.all():
            same, what = first.patient == other.patient, "patients"
        if same.all():
            return ""
        few = len(np.unique(first.patient[~same])) < least
        return f"its images are the same, but their {what} differ, in {f'those of fewer than {least} patients' if few else f'{(~same).sum():,} images'}"

    def less(self, other: Scored, names: Collection[str], macro: bool) -> dict[str, Paired]:
        """AUCs of another run less the first one's, by class; and of the mean over these classes, MACRO, if that is asked for.

        other: such as `why_not` has nothing against. names: classes.
        """
        first, found, values, apart, influences = self._first, {}, [], [], []
        names = [name for name in first.classes if name in names]
        self._own |= self._replicates(first, [name for name in names if name not in self._own])
        replicates = self._replicates(other, names)
        for name in names:
            known, k = first.known(name), first.classes.index(name)
            if not known.any():
                found[name] = Paired(np.nan, np.nan, np.nan, np.nan, "no image with a known label", 0, 0)
                continue
            positive, patient = first.label[known, k] == 1, self._bootstrap.patient[known]
            scores = np.stack([one.score[known, one.classes.index(name)] for one in (other, first)], axis=1)
            auc, covariance = comparisons.auc_covariance(positive, scores, patient)
            difference = replicates[name] - self._own[name]
            found[name] = self._paired(comparisons.difference(auc, covariance, 0, 1), difference, known)
            # Of all patients of the split: who has no image with a known label is without influence.
            influence = np.zeros((len(self._bootstrap.counts), 2))
            influence[np.unique(patient)] = comparisons.influence(positive, scores, patient)[1]
            for several, one in ((values, auc), (apart, difference), (influences, influence)):
                several.append(one)
        if macro and len(values) == len(names):
            influence = np.mean(influences, axis=0)
            test = comparisons.difference(np.mean(values, axis=0), influence.T @ influence, 0, 1)
            found[MACRO] = self._paired(test, np.mean(apart, axis=0), ~np.isnan(first.label).all(axis=1))
        return found

    def _replicates(self, scored: Scored, names: Collection[str]) -> dict[str, np.ndarray]:
        cells = []
        for name in names:
            k, rows = scored.classes.index(name), np.flatnonzero(scored.known(name))
            cells.append(RankedCell(rows, scored.label[rows, k] == 1, scored.score[rows, k]))
        return dict(zip(names, self._bootstrap.ranking(cells)[0], strict=True))

    def _paired(self, test: comparisons.Difference, replicates: np.ndarray, known: np.ndarray) -> Paired:
        low, high, why = np.nan, np.nan, ""
        if not np.isnan(test.value):
            low, high, why = percentile_interval(replicates, self._level)
            if low == high:
                low, high, why = np.nan, np.nan, "interval withheld: every replicate gives the same value"
        reason = "; ".join(dict.fromkeys(filter(None, (test.reason, why))))
        return Paired(test.value, low, high, test.p, reason, int(known.sum()), len(np.unique(self._bootstrap.patient[known])))
