"""What factors tell of a label by themselves: logistic regression on what is recorded of an image, or measured of its picture, and on nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from cxr_jax.probes import logistic_regression, protocol


def alone(tables: Mapping[str, pd.DataFrame], columns: Sequence[str], target: str, classes: Sequence[str], penalties: tuple[float, float, int]) -> np.ndarray | None:
    """Probabilities of the classes for the test images, float32 [n, classes]; None where training has no two classes, or nothing of the columns is known there.

    tables: train, validation and test, each with the columns and the target (text, null unknown). penalties: least, greatest, how many, of which the macro AUC in validation
    chooses, as for probes. Numbers are in standard deviations of training; text is a column a value of training; what is missing counts as the mean, and that it is missing too.
    """
    train = tables["train"]
    columns = [c for c in columns if train[c].notna().any()]
    codes = {split: pd.Index(classes).get_indexer(table[target]) for split, table in tables.items()}
    use = {split: code >= 0 for split, code in codes.items()}
    if not columns or len(np.unique(codes["train"][use["train"]])) < 2:
        return None

    def vectors(table: pd.DataFrame) -> np.ndarray:
        values = np.concatenate([protocol.attribute_columns(table[c], train[c]) for c in columns], axis=1)
        return np.concatenate([np.nan_to_num(values), np.isnan(values)], axis=1).astype(np.float32)

    least, greatest, count = penalties
    strengths = np.geomspace(least, greatest, int(count))[::-1]  # of equally good ones the strongest is taken
    there = {split: vectors(table) for split, table in tables.items()}
    labels = np.where(use["train"], codes["train"], 0).astype(np.int32)
    path = logistic_regression.fit(there["train"], labels, strengths, use["train"][None].astype(np.float32), classes=len(classes))
    chosen = protocol.Chooser(np.where(use["validation"], codes["validation"], 0), use["validation"], len(classes)).best(path.scores(there["validation"])[0])
    return path.select(0, chosen).scores(there["test"])[0, 0]
