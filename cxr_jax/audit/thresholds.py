"""At which score a class is called present: chosen on other patients than those who are judged.

Rules, each for one class against the rest; an image is called where its score is at least the threshold:

    youden              greatest sensitivity + specificity (Youden, Cancer 3:32-35, 1950)
    f1                  greatest F1
    sensitivity:0.9     the highest threshold with at least that sensitivity
    specificity:0.9     the lowest threshold with at least that specificity
    fixed:0.5           that one, whatever the data

Chosen on the validation split where the predictions have one. Where they have none, by cross-fitting: the patients judged
are dealt into folds, and those of a fold are called by what was chosen on the other folds. So no image has a part in the
choice of the threshold that it is judged by; and what intervals say is for thresholds as they are.
"""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np

from cxr_jax.audit import metrics
from cxr_jax.experiment import threshold_rule

FOLDS = 5


def choose(positive: np.ndarray, score: np.ndarray, rule: str) -> float:
    """The threshold that a rule gives on some images: one of their scores; above the highest where none must be called.

    positive: bool [n]; score: float [n]. Of equally good ones the highest. NaN unless there are positives and negatives; a
    fixed one needs neither. Raises ValueError as `threshold_rule`, and for a NaN score.
    """
    name, wanted = threshold_rule(rule)
    if name == "fixed":
        return wanted
    ranking = metrics.rank(positive, score)
    ordered = np.asarray(positive, bool)[ranking.order]
    if ordered.all() or not ordered.any():
        return np.nan
    ends = np.unique(ranking.last)
    at = np.asarray(score, np.float64)[ranking.order][ends]
    true, false = np.cumsum(ordered)[ends], np.cumsum(~ordered)[ends]  # called at each, from the highest score down
    sensitivity, specificity = true / true[-1], 1 - false / false[-1]
    if name == "sensitivity":
        return float(at[np.argmax(sensitivity >= wanted - 1e-12)])
    if name == "specificity":
        enough = np.flatnonzero(specificity >= wanted - 1e-12)
        return float(at[enough[-1]]) if len(enough) else float(np.nextafter(at[0], np.inf))
    gain = sensitivity + specificity if name == "youden" else 2 * true / (true + false + true[-1])
    return float(at[np.flatnonzero(gain >= gain.max() - 1e-12)[0]])


@dataclasses.dataclass(frozen=True)
class Calls:
    """Which images are called, by class.

    called: bool [n, classes]; threshold: float64 [n, classes], by which each is; NaN, and not called, where there is none.
    how: in words. reasons: by class, why there is none for some image, or ''.
    """

    called: np.ndarray
    threshold: np.ndarray
    how: str
    reasons: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Scored:
    """Images to choose on, or to judge. positive: bool [n, classes], known: whether a label is; scores: float [n, classes];
    patients: str [n]; strata: str [n], such as views, each of which may have thresholds of its own."""

    positive: np.ndarray
    known: np.ndarray
    scores: np.ndarray
    patients: np.ndarray
    strata: np.ndarray


def call(judged: Scored, chosen_on: Scored | None, rule: str, by: str, least: int) -> Calls:
    """Calls the judged images by thresholds of `chosen_on`, or by cross-fitting where that is None; see above.

    by: what strata are of, each of which has a threshold of its own, unless it has fewer than `least` patients on a side; ''
    for a common one.
    """
    n, classes = judged.scores.shape
    threshold = np.full((n, classes), np.nan)
    name, _ = threshold_rule(rule)
    if name == "fixed":
        parts, how = [(np.ones(n, bool), judged, np.ones(n, bool))], f"fixed at {rule.partition(':')[2]}"
    elif chosen_on is not None:
        parts = [(np.ones(n, bool), chosen_on, np.ones(len(chosen_on.scores), bool))]
        how = f"by {rule}, chosen on validation"
    else:
        fold = folds(judged.patients)
        parts = [(fold == k, judged, fold != k) for k in range(FOLDS)]
        how = f"by {rule}, cross-fitted: {FOLDS} folds of patients, each called by what the others chose"
    names = np.unique(judged.strata) if by and name != "fixed" else ()
    for mine, source, theirs in parts:
        for c in range(classes):
            use = theirs & source.known[:, c]
            threshold[mine, c] = choose(source.positive[use, c], source.scores[use, c], rule)
            for stratum in names:
                own = use & (source.strata == stratum)
                sides = [np.unique(source.patients[own & (source.positive[:, c] == side)]) for side in (True, False)]
                if min(map(len, sides)) >= least:
                    threshold[mine & (judged.strata == stratum), c] = choose(source.positive[own, c], source.scores[own, c], rule)
    with np.errstate(invalid="ignore"):
        called = judged.scores >= threshold
    where = "validation" if chosen_on is not None else "the other folds"
    reasons = tuple(f"no threshold: one class only in {where}" if np.isnan(t).any() else "" for t in threshold.T)
    return Calls(called, threshold, how + (f", one for each {by}" if len(names) else ""), reasons)


def folds(patients: np.ndarray) -> np.ndarray:
    """Fold of each image, int [n], by a hash of the patient: it depends on nobody else. patients: str [n]."""
    ids, whose = np.unique(np.asarray(patients, str), return_inverse=True)
    digits = [int.from_bytes(hashlib.sha256(one.encode()).digest()[:8], "big") for one in ids.tolist()]
    return np.array([d % FOLDS for d in digits], np.int64)[whose]
