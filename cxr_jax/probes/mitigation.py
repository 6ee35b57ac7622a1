"""What the stage `mitigate` does to features after training: a method of `erasure` by name, fitted on the training split of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from cxr_jax import experiment
from cxr_jax.probes import erasure, protocol
from cxr_jax.tables import FEATURES, HALVED, IDENTIFIERS, LABEL, Features, UserError

FIELD = "config.mitigate"
LEAVE_FEATURES = ("none", "dfr", "equalised_odds")  # methods that change nothing here, but heads, or calls, or nothing at all
NEED_ATTRIBUTE = ("oracle", "quadratic")  # methods that take the attribute of an image that is judged
_MOVED = {"oracle": "the mean of each class moved to that of all", "quadratic": "mean and covariance of each class carried over to common ones"}
FEWEST = 11  # patients by whom erasure is still worth a look
MOST_NAMES = 15  # of columns, in a message


class Mitigation(NamedTuple):
    """What `eraser` has fitted.

    erase: (features float32 [n, d], labels int [n]) to float32 [n, d]. labels: positions in `classes`, -1 where the class is not known or not
        among them; read by NEED_ATTRIBUTE alone, which make of such an image what leace, fitted on the same, would. How many there are
        is the caller's to say.
    classes: those of the attribute that were fitted on; of `none`, all.
    said: what was done, in a sentence.
    images, patients: how many it was fitted on.
    """

    erase: Callable[[np.ndarray, np.ndarray], np.ndarray]
    classes: tuple[str, ...]
    said: str
    images: int = 0
    patients: int = 0


def eraser(splits: Mapping[str, Features], own: np.ndarray, settings) -> Mitigation:
    """What settings.method does to features.

    splits: train, validation and test. own: bool [n], the training rows that it is fitted on. settings: a config's `mitigate` section.

    Raises UserError for an attribute or a confounder that is not recorded, for fewer than two classes among the rows, and where there is nothing to
    erase, or nothing would be left.
    """
    classes = protocol.classes_of(splits, settings.attribute, f"{FIELD}.attribute")
    if settings.method in LEAVE_FEATURES:
        return Mitigation(lambda features, labels: np.asarray(features), classes, "none: nothing is taken from the features")
    table, features = splits["train"].table[own].reset_index(drop=True), splits["train"].arrays[FEATURES][own]
    width = features.shape[1]
    known, confounders, among = np.ones(len(table), bool), None, ""
    if settings.method == "orthogonalise" and settings.confounders:
        confounders, known = design(table, settings.confounders, settings.attribute)
        confounders = np.where(known[:, None], confounders, 0)
        among = f" among images alike in {', '.join(settings.confounders)}"
    names = _classes_there(table[known], classes, settings)
    labels = np.where(known, pd.Index(names).get_indexer(table[settings.attribute]), -1)
    patients = table["patient_id"].to_numpy()
    try:
        if settings.method == "orthogonalise":
            found = erasure.orthogonalised(features, labels, confounders, classes=len(names), names=names)
        elif settings.method == "null_space":
            found = erasure.nullspace_projected(features, labels, settings.penalty, settings.rounds, classes=len(names))
        elif settings.method == "prune":
            found = erasure.pruned(features, labels, settings.penalty, max(round(settings.pruned_share * width), 1), classes=len(names))
        elif settings.method in ("leace", *NEED_ATTRIBUTE):
            found = erasure.leace(features, labels, patients, classes=len(names), shrink=settings.shrink)
        else:
            raise ValueError(f"no method of erasure: {settings.method!r}")
        if settings.method == "oracle":
            by_class = erasure.oracle(features, labels, classes=len(names))
        elif settings.method == "quadratic":
            by_class = erasure.quadratic(features, labels, patients, classes=len(names), shrink=settings.shrink, names=names)
    except UserError as error:
        raise UserError(f"{FIELD}.attribute={settings.attribute}: {error}") from None

    fitted, missing = labels >= 0, [c for c in classes if c not in names]
    counts = int(fitted.sum()), len(np.unique(patients[fitted]))
    on = f"fitted on {counts[0]:,} training images of {counts[1]:,} patients"
    if missing:  # not by name: that a group has nobody is told of open data alone, and this is printed
        on += f"; {len(missing)} of {len(classes)} classes {'has' if len(missing) == 1 else 'have'} no image among them"
    if settings.method not in NEED_ATTRIBUTE:
        said = (
            f"{settings.method} of {settings.attribute}{among}: {found.rank[0]} of {width} directions taken from the features, {on};"
            " no attribute is needed of an image that is judged"
        )
        return Mitigation(lambda features, labels: found(features), names, said, *counts)

    def erase(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
        out, known = found(features), np.asarray(labels) >= 0
        out[known] = by_class(features[known], labels[known])
        return out

    said = (
        f"{settings.method} of {settings.attribute}: {_MOVED[settings.method]}, {on}; needs the attribute of every image that is judged: not"
        " deployable where that is not known; what it does not know it treats as leace does"
    )
    return Mitigation(erase, names, said, *counts)


def by_fewer(splits: Mapping[str, Features], dealt: np.ndarray, settings) -> tuple[dict[str, Mitigation], str]:
    """({HALVED1: what settings.method does fitted on half of its patients, HALVED2: on a fourth, …}, why there are no more, or ''); settings.halvings of them.

    dealt: float [n] in 0 … 1, of training images, a patient's alike: a method's own rows are those below settings.share, and those of a half are below half of
    that. So every half is part of the one before. There are no more where fewer than FEWEST patients are left.
    """
    found: dict[str, Mitigation] = {}
    if settings.method in LEAVE_FEATURES:
        return found, ""
    for k in range(1, settings.halvings + 1):
        own = dealt < settings.share / 2**k
        try:
            one = eraser(splits, own, settings)
        except UserError as error:
            return found, str(error)
        if one.patients < FEWEST:
            return found, f"fewer than {FEWEST} patients are left"
        found[f"{HALVED}{k}"] = one
    return found, ""


def _classes_there(table: pd.DataFrame, classes: Sequence[str], settings) -> tuple[str, ...]:
    """Those of `classes` that rows have. Raises UserError for fewer than two."""
    counts = table[settings.attribute].value_counts().reindex(list(classes), fill_value=0)
    if (counts > 0).sum() < 2:
        told = " whose confounders are recorded" if settings.method == "orthogonalise" and settings.confounders else ""
        raise UserError(
            f"{FIELD}.attribute={settings.attribute}: of the training images that {settings.method} is fitted on{told},"
            f" {', '.join(f'{name} has n={count:,}' for name, count in counts.items())}, and two classes are needed; take another {FIELD}.share"
        )
    return tuple(counts.index[counts > 0])


def design(table: pd.DataFrame, confounders: Sequence[str], attribute: str = "") -> tuple[np.ndarray, np.ndarray]:
    """(float64 [n, c], as `protocol.attribute_columns`; bool [n]: where all are known). attribute: offered in no message.

    Raises UserError for a confounder that is an identifier, or not there, or recorded of no row, and where no row has all of them.
    """
    field = f"{FIELD}.confounders"
    for name in confounders:
        protocol.check_no_identifier(field, name)
        if name not in table:
            offered = ", ".join(_offered(table.drop(columns=attribute, errors="ignore"), name))
            raise UserError(f"{field}: {name} is not recorded beside these features; there are, nearest first, {offered}")
        if table[name].isna().all():
            raise UserError(f"{field}: {name} is recorded of none of the n={len(table):,} training images that the method is fitted on; leave it out")
    known = table[list(confounders)].notna().all(axis=1).to_numpy()
    if not known.any():
        counts = ", ".join(f"{name} of n={table[name].notna().sum():,}" for name in confounders)
        raise UserError(f"{field}: of the n={len(table):,} training images that the method is fitted on none has all, {counts}; leave one out")
    return np.concatenate([protocol.attribute_columns(table[name], table[name]) for name in confounders], axis=1), known


def _offered(table: pd.DataFrame, name: str) -> list[str]:
    """Class labels, findings and age, the likeliest meant by `name` first; other numbers may be confounders too, but a phantom has a hundred."""
    recorded = (c for c in table if c not in IDENTIFIERS and table[c].notna().any())
    offered = [c for c in recorded if c == "age" or c.startswith(LABEL) or pd.api.types.is_string_dtype(table[c])]
    return experiment.nearest_first(name, offered)[:MOST_NAMES]
