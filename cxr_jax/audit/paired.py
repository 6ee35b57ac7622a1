"""Differences of AUCs of two runs on the same images, paired: what one model does better, less the luck of the draw.

Both runs scored the same images of the same patients with the same labels. A bootstrap replicate then draws one set of patients for
both, and what a patient does to the one AUC goes with what she does to the other. Intervals and tests are those of the audit (see
`estimates`): Wald's test is of the AUCs on the logit scale, by patients' influence, so that the covariance of the two is in it. Where
an AUC is 0 or 1 there is no test, nor an interval from replicates. Nothing here sees that another seed would have trained another
model.

What may be told is for the caller to say: nothing here is withheld.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from cxr_jax.audit import estimates, metrics
from cxr_jax.audit.estimates import Estimate, Estimator
from cxr_jax.audit.intervals import Bootstrap, RankedCell
from cxr_jax.audit.judgement import MACRO
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

    method: of the interval, '' where there is none. reason: why something is undefined, or ''. n_images, n_patients: whose label is
    known; for the macro AUC, of any class.
    """

    value: float
    low: float
    high: float
    method: str
    p: float
    reason: str
    n_images: int
    n_patients: int


class Reference:
    """The first run, to take its AUCs from those of others.

    settings: level, interval, replicates and seed, as the config's `audit` section has them. Patients are drawn from all of the
    split, where the audit draws them by stratum; so ends of intervals differ a little from what the audit's would be.
    """

    def __init__(self, first: Scored, settings):
        self._first, self._level, self._kind = first, settings.level, settings.interval
        self._estimator = Estimator(Bootstrap(first.patient, settings.replicates, settings.seed))
        self._own: dict[str, Estimate] = {}

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

        other: such as `why_not` has nothing against. names: classes; at least one for a mean, which is undefined where one of them is.
        Raises ValueError for a NaN score.
        """
        first = self._first
        names = [name for name in first.classes if name in names]
        self._own |= self._aucs(first, [name for name in names if name not in self._own])
        sides = self._aucs(other, names), self._own
        found = {name: self._less(*(aucs[name] for aucs in sides), first.known(name)) for name in names}
        if macro:
            means = (estimates.mean([aucs[name] for name in names]) for aucs in sides)
            found[MACRO] = self._less(*means, ~np.isnan(first.label).all(axis=1))
        return found

    def _aucs(self, scored: Scored, names: Sequence[str]) -> dict[str, Estimate]:
        cells = []
        for name in names:
            k, rows = scored.classes.index(name), np.flatnonzero(scored.known(name))
            cells.append(RankedCell(rows, scored.label[rows, k] == 1, scored.score[rows, k]))
        return {name: _with_reason(auc) for name, (auc, _) in zip(names, self._estimator.rank(cells), strict=True)}

    def _less(self, auc: Estimate, own: Estimate, known: np.ndarray) -> Paired:
        apart = estimates.difference(auc, own)
        low, high, method, why, test = np.nan, np.nan, "", "", estimates.tested(auc, own)
        if apart.defined:
            low, high, method, why = estimates.interval(apart, self._level, self._kind)
            if low == high:  # scores that order the images alike, whoever is drawn
                low, high, why = np.nan, np.nan, estimates.ALIKE
        reason = "; ".join(dict.fromkeys(filter(None, (test.reason, why))))
        patients = len(np.unique(self._first.patient[known]))
        return Paired(apart.value, low, high, "" if np.isnan(low) else method, test.p, reason, int(known.sum()), patients)


def _with_reason(auc: Estimate) -> Estimate:
    if auc.defined:
        return auc
    return dataclasses.replace(auc, reason="no positive or no negative image" if auc.images else "no image with a known label")
