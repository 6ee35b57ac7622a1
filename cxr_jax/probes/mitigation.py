"""What the stage `mitigate` does to features after training: a method of `erasure` by name, fitted on the training split of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from cxr_jax.probes import erasure, protocol
from cxr_jax.tables import FEATURES, Features, UserError

FIELD = "config.mitigate"


def eraser(splits: Mapping[str, Features], own: np.ndarray, settings) -> tuple[Callable[[np.ndarray], np.ndarray], str]:
    """(what settings.method does to features, float32 [n, d] to the same; what was done in a sentence).

    splits: train, validation and test. own: bool [n], the training rows that it is fitted on. settings: a config's `mitigate` section.

    Raises UserError for an attribute or a confounder that is not recorded, and where there is nothing to erase.
    """
    classes = protocol.classes_of(splits, settings.attribute, f"{FIELD}.attribute")
    if settings.method == "none":
        return np.asarray, "none: nothing is taken from the features"
    table, features = splits["train"].table[own].reset_index(drop=True), splits["train"].arrays[FEATURES][own]
    labels = pd.Index(classes).get_indexer(table[settings.attribute])
    patients, among = table["patient_id"].to_numpy(), ""
    try:
        if settings.method == "leace":
            found = erasure.leace(features, labels, patients, classes=len(classes), shrink=settings.shrink)
        elif settings.method == "orthogonalise":
            confounders, known = design(table, settings.confounders)
            labels = np.where(known, labels, -1)
            found = erasure.orthogonalised(features, labels, np.where(known[:, None], confounders, 0), classes=len(classes))
            among = f" among images alike in {', '.join(settings.confounders)}" if settings.confounders else ""
        elif settings.method == "null_space":
            found = erasure.nullspace_projected(features, labels, settings.penalty, settings.rounds, classes=len(classes))
        else:
            found = erasure.pruned(features, labels, settings.penalty, settings.features, classes=len(classes))
    except UserError as error:
        raise UserError(f"{FIELD}.attribute={settings.attribute}: {error}") from None
    fitted = labels >= 0
    said = (
        f"{settings.method} of {settings.attribute}{among}: {found.rank[0]} of {features.shape[1]} directions taken from the features, fitted on"
        f" {fitted.sum():,} training images of {len(np.unique(patients[fitted])):,} patients; no attribute is needed of an image that is judged"
    )
    return found, said


def design(table: pd.DataFrame, confounders: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(float64 [n, c], as `protocol.attribute_columns`; bool [n]: where all are known)."""
    for name in confounders:
        if name not in table:
            raise UserError(f"{FIELD}.confounders: {name} is not recorded beside these features; there are {', '.join(sorted(table.columns))}")
    columns = [protocol.attribute_columns(table[name], table[name]) for name in confounders if table[name].notna().any()]
    known = table[list(confounders)].notna().all(axis=1).to_numpy()
    return np.concatenate([np.empty((len(table), 0)), *columns], axis=1), known
