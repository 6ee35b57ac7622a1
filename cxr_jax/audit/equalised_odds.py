"""Calls that miss and call as often in every group: thresholds by group, drawn by lot between two, as fairlearn finds them.

Hardt, Price and Srebro 2016, "Equality of opportunity in supervised learning". Whoever is called by this must have her group known, and some are called by
lot. What is found is written as scores, so that the audit can judge it like any model: a called image has .5 + score / 2, another score / 2. The calls are those
at fixed:0.5; among called, and among the rest, images are ordered as before. These are no probabilities.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from cxr_jax.audit import thresholds
from cxr_jax.audit.disclosure import some
from cxr_jax.tables import SCORE, Predictions, UserError

FIELD = "config.mitigate.attribute"


def _optimizer():
    """Fairlearn's, on a model that gives back its only feature."""
    # Here, since they take a second to import, which other stages need not wait.
    from fairlearn.postprocessing import ThresholdOptimizer
    from sklearn.base import BaseEstimator, ClassifierMixin

    class Scores(ClassifierMixin, BaseEstimator):
        def __sklearn_is_fitted__(self) -> bool:
            return True

        def fit(self, X, y):
            return self

        def predict(self, X):
            return np.asarray(X)[:, 0]

    return ThresholdOptimizer(estimator=Scores(), constraints="equalized_odds", objective="balanced_accuracy_score", prefit=True, predict_method="predict")


def post_processed(predictions: Predictions, attribute: str, seed: int, least: int = 1) -> tuple[Predictions, str]:
    """(the same with scores as above; what was done in a sentence). Fitted on the validation split, for each finding by itself.

    seed: of the lots. least: patients that a number in the sentence must be of; above 1, where data are not open, it names no finding that a group lacks. An image whose group is unknown, or is not among those fitted, is called at Youden's threshold of all; a finding that some group of validation
    has only with, or only without, in all groups. Raises UserError where there is no validation split, no attribute, or fewer than two groups;
    and for classes that exclude one another, which have no calls of their own.
    """
    table = predictions.table
    if attribute not in table:
        raise UserError(f"{FIELD}={attribute}: not in the predictions; put it in config.audit.attributes")
    kinds = [name for name, target in predictions.targets.items() if target.kind != "multilabel"]
    if kinds:
        raise UserError(f"config.mitigate.method=equalised_odds: is for findings; {kinds[0]} has classes that exclude one another")
    fitted = (table["split"] == "validation").to_numpy()
    if not fitted.any():
        raise UserError("config.mitigate.method=equalised_odds: is fitted on validation; put that in config.predict.splits")
    group = table[attribute].to_numpy(object)
    known_group = table[attribute].notna().to_numpy()
    columns, without, lots = {}, [], 0
    for name, target in predictions.targets.items():
        labels, scores = predictions.labels(name), predictions.scores(name)
        for k, finding in enumerate(target.classes):
            label, score = labels[:, k], scores[:, k]
            use = fitted & ~np.isnan(label)
            called = score >= thresholds.choose(label[use] == 1, score[use], "youden")
            there = [g for g in sorted(set(group[use & known_group])) if len(set(label[use & (group == g)])) == 2]
            if len(there) < 2 or len(there) < len(set(group[use & known_group])):
                without.append(finding)
            else:
                own = use & known_group
                found = _optimizer()
                found.fit(score[own, None], label[own].astype(int), sensitive_features=group[own])
                mine = known_group & np.isin(group, there)
                called[mine] = found.predict(score[mine, None], sensitive_features=group[mine], random_state=seed + k) == 1
                lots += 1
            # A score of 1 that is not called stays below what is.
            columns[SCORE + finding] = np.where(called, 0.5 + score / 2, np.minimum(score / 2, np.nextafter(0.5, 0)))
    if not lots:
        raise UserError(f"{FIELD}={attribute}: no finding is both there and absent in two groups or more of {fitted.sum():,} validation images")
    seen = np.isin(group, list(set(group[fitted & known_group])))
    unknown, new = (table.loc[rows & ~fitted, "patient_id"] for rows in (~known_group, known_group & ~seen))
    alike = ", ".join(without) if least <= 1 else f"{len(without)} findings"
    said = (
        f"equalised_odds by {attribute}: each of {lots} findings is called by thresholds, and lots, of its own in every group, fitted on {fitted.sum():,} validation"
        f" images of {table.loc[fitted, 'patient_id'].nunique():,} patients; needs {attribute} of everyone who is judged"
        + (f", which {some(unknown, least)} lack: these are called at a threshold for all" if len(unknown) else "")
        + (f"; {some(new, least)} of groups that validation lacks are called at one for all, too" if len(new) else "")
        + (f"; at one for all {alike}, since a group has validation images of one kind alone" if without else "")
    )
    return dataclasses.replace(predictions, table=table.assign(**columns)), said
