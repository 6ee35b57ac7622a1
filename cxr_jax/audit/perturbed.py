"""AUCs along a series of perturbations: what is still told of images that lack some of what they show, and how much less that is.

`audit` gives rows with the keys of `subgroups.KEYS`, of everyone, metric auc, and besides

    series, strength    of `data.perturbations.PERTURBATIONS`; strength null: of images as they are
    less_value, less_low, less_high     AUC less that of images as they are, of the same images, so that the interval is a paired one; null where undefined or withheld
    reader              head: the network's own; probe: a logistic regression on its features

Intervals are analytic (Obuchowski's, by patients; see `estimates`): a curve has hundreds of AUCs, and for each to be drawn again two thousand times would tell the same. They
are of each AUC by itself, not of the whole curve. What is withheld of an AUC in the audit is withheld of all of a curve.

`features` gives how far features move: rows of feature, series, strength, value, low, high (the mean change over patients' images, in standard deviations that the feature
has among images as they are), correlation (Pearson's, of the feature there and here), n_images, n_patients, reason. Features of images are told of in mean alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from cxr_jax.audit import estimates, judgement, subgroups
from cxr_jax.audit.estimates import Estimator
from cxr_jax.audit.intervals import Bootstrap, MeanCell
from cxr_jax.audit.judgement import or_null
from cxr_jax.tables import Predictions

KEYS = (*subgroups.KEYS, "series", "strength", "less_value", "less_low", "less_high", "reader")
SPLIT = "test"


@dataclasses.dataclass(frozen=True)
class Series:
    """Scores along a series. strengths: as the config has them. scores: by target, float [strengths, n, classes]. features: float [strengths, n, watched], or None."""

    strengths: Sequence
    scores: Mapping[str, np.ndarray]
    features: np.ndarray | None


def audit(predictions: Predictions, series: Mapping[str, Series], heads: Sequence[str], settings) -> list[dict[str, Any]]:
    """Rows as above. predictions: of the images as they are, test split alone. heads: which targets are the network's own. settings: the config's `audit` section."""
    settings = ml_collections.ConfigDict(settings)
    settings.attributes, settings.interval = (), "analytic"
    bootstrap = Bootstrap(predictions.table["patient_id"].to_numpy(), 1, settings.seed)  # of which nothing is read
    rows = []
    for judge in judgement.judgements(predictions, SPLIT, settings, bootstrap):
        told = {"reader": "head" if judge.name in heads else "probe"}
        own = dict((row["class"], (row, figure)) for row, figure in judge.aucs(judge.scores))
        rows += [row | {"series": None, "strength": None, "less_value": None, "less_low": None, "less_high": None} | told for row, _ in own.values()]
        for name, of in series.items():
            for strength, scores in zip(of.strengths, of.scores[judge.name], strict=True):
                for row, figure in judge.aucs(np.asarray(scores, np.float64)):
                    rows.append(row | {"series": name, "strength": strength} | _less(figure, own[row["class"]][1], row, settings.level) | told)
    return [{key: row[key] for key in KEYS} for row in rows]


def _less(figure, own, row, level: float) -> dict[str, float | None]:
    nothing = {"less_value": None, "less_low": None, "less_high": None}
    if row["value"] is None or not figure.defined or not own.defined:
        return nothing
    apart = estimates.difference(figure, own)
    decimals = figure.decimals
    if not apart.value and not apart.influence().any():  # scored alike, image by image
        return {"less_value": 0.0, "less_low": 0.0, "less_high": 0.0}
    limits = estimates.interval(apart, level, "analytic")
    return {"less_value": or_null(apart.value if decimals is None else round(apart.value, decimals)), "less_low": or_null(limits.low), "less_high": or_null(limits.high)}


def features(patients: np.ndarray, watched: Sequence[int], whole: np.ndarray, series: Mapping[str, Series], settings) -> list[dict[str, Any]]:
    """How far watched features move, as above. patients: str [n]. watched: which. whole: float [n, watched], of images as they are."""
    bootstrap = Bootstrap(patients, 1, settings.seed)
    estimator, everyone = Estimator(bootstrap), np.arange(len(patients))
    rows, whole = [], np.asarray(whole, np.float64)
    deviation = whole.std(axis=0)
    few = bootstrap.patients < settings.min_patients
    for name, of in series.items():
        for strength, changed in zip(of.strengths, () if of.features is None else of.features):
            for k, feature in enumerate(watched):
                row = {"feature": int(feature), "series": name, "strength": strength, "value": None, "low": None, "high": None, "correlation": None}
                row |= {"level": float(settings.level), "n_images": len(patients), "n_patients": bootstrap.patients, "reason": None}
                there = np.asarray(changed[:, k], np.float64)
                if few:
                    row |= {"n_images": None, "n_patients": None, "reason": f"fewer than {settings.min_patients} patients"}
                elif not deviation[k] > 0:
                    row["reason"] = "the feature is the same in every image"
                else:
                    (mean,) = estimator.means([MeanCell(everyone, (there - whole[:, k]) / deviation[k])])
                    limits = estimates.interval(mean, settings.level, "analytic")
                    both = there.std() > 0
                    row |= {"value": or_null(mean.value), "low": or_null(limits.low), "high": or_null(limits.high), "reason": limits.reason or None}
                    row["correlation"] = float(np.corrcoef(there, whole[:, k])[0, 1]) if both else None
                rows.append(row)
    return rows
