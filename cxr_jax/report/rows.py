"""audit.json, read, checked and looked up; and how its numbers are written in words, figures and tables alike."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from cxr_jax import tables
from cxr_jax.audit.subgroups import KEYS, MACRO, MISSING, TIMES

NUMBERS = (
    "threshold", "value", "low", "high", "level", "n_images", "n_patients", "n_positive",
    "p", "p_bootstrap", "p_holm", "p_by", "family",
)  # fmt: skip


def read(path: os.PathLike | str) -> pd.DataFrame:
    """The rows of audit.json at `path`, in its order, one column a key; null numbers are NaN.

    Raises UserError for a missing file, or one that is not what the audit stage writes.
    """
    return frame(tables.read_json(path), str(path))


def frame(rows: Sequence[Mapping], source: str = "audit", more: Sequence[str] = ()) -> pd.DataFrame:
    """A table of audit rows, with NaN for null numbers. more: further keys that rows have, columns of them as they are. Raises UserError naming the first row that lacks a key."""
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise tables.UserError(f"{source}: a list of rows expected; write it anew with the audit stage")
    for number, row in enumerate(rows, 1):
        missing = [key for key in (*KEYS, *more) if key not in row]
        if missing:
            raise tables.UserError(f"{source}: row {number} has no {missing[0]!r}; write it anew with the audit stage")
    table = pd.DataFrame([[row[key] for key in KEYS] for row in rows], columns=list(KEYS), dtype=object)
    for key in NUMBERS:
        try:
            table[key] = table[key].astype(np.float64)
        except (TypeError, ValueError):
            raise tables.UserError(
                f"{source}: column {key!r} holds something that is neither a number nor null"
            ) from None
    table["suppressed"] = table["suppressed"].astype(bool)
    for key in more:
        table[key] = pd.Series([row[key] for row in rows], dtype=object)
    return table


def select(rows: pd.DataFrame, **wanted) -> pd.DataFrame:
    """Rows whose columns equal what is wanted, None where they are null; `class_` stands for the column `class`."""
    keep = np.ones(len(rows), bool)
    for column, value in wanted.items():
        cells = rows[column.removesuffix("_")]
        keep &= (cells.isna() if value is None else cells == value).to_numpy(bool)
    return rows[keep]


def of_groups(rows: pd.DataFrame) -> pd.DataFrame:
    """Figures of everyone and of the groups of one attribute, without what is made of several groups."""
    return rows[rows["effect"].isna() & ~rows["attribute"].str.contains(TIMES, regex=False)]


def first(rows: pd.DataFrame, **wanted) -> pd.Series | None:
    """The first such row, or None."""
    found = select(rows, **wanted)
    return found.iloc[0] if len(found) else None


def in_order(values: Iterable) -> list:
    """Distinct values in order of first appearance."""
    return list(dict.fromkeys(values))


def beside(rows: pd.DataFrame, row: pd.Series) -> tuple[pd.Series | None, pd.Series | None]:
    """The ceiling of an AUC, and the model's distance from it; None where the data's truth is unknown."""
    where = {"target": row["target"], "class_": row["class"], "attribute": row["attribute"], "group": row["group"]}
    return (
        first(rows, metric="auc_ceiling", split=row["split"], **where),
        first(rows, metric="auc_difference", reference="ceiling", split=row["split"], **where),
    )


def main_split(rows: pd.DataFrame) -> str:
    """The split that the report is about: test where it was audited, else the last that was."""
    found = set(rows["split"])
    return [*sorted(found - set(tables.SPLITS)), *(s for s in tables.SPLITS if s in found)][-1]


def images_of(split: str) -> str:
    """`test images`; plain `images` for predictions that name no split."""
    return f"{split} images" if split in tables.SPLITS else "images"


def targets(rows: pd.DataFrame) -> list[str]:
    return in_order(rows.loc[rows["metric"] == "auc", "target"])


def classes(rows: pd.DataFrame, target: str) -> list[str]:
    """Classes with an AUC of their own, in the audit's order; macro is not one."""
    return [c for c in in_order(select(rows, metric="auc", target=target)["class"]) if c != MACRO]


def multiclass(rows: pd.DataFrame, target: str) -> bool:
    """Whether the target's classes exclude one another: only then has the audit a confusion matrix."""
    return len(select(rows, metric="confusion", target=target)) > 0


def attribute_name(attribute: str, invented: bool) -> str:
    """What readers are to call an attribute. Invented groups stand in the place of race and must not be taken for
    it."""
    names = {"race": "group (invented)" if invented else "race as recorded", "age_band": "age band (years)"}
    return names[attribute] if attribute in names else attribute.replace("_", " ")


def class_name(name: str) -> str:
    return "all classes (macro)" if name == MACRO else name


def group_name(name: str) -> str:
    return "not recorded" if name == MISSING else name


def number(value: float, digits: int = 3) -> str:
    """0.842; a true minus sign; `undefined` for NaN."""
    if not np.isfinite(value):
        return "undefined"
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    return text.replace("-", "\N{MINUS SIGN}")


def value(row: pd.Series, digits: int = 3) -> str:
    """The row's number; `withheld` where it would tell of too few patients, which is not the same as `undefined`."""
    # Where the audit withholds the value and shows how many images there are, only its reason says so.
    few = not np.isfinite(row["value"]) and any(word in (row["reason"] or "") for word in ("fewer than", "withheld"))
    return "withheld" if row["suppressed"] or few else number(row["value"], digits)


def count(value: float) -> str:
    """1,234; a dash where the count is withheld or unknown."""
    return f"{int(value):,}" if np.isfinite(value) else "\N{EN DASH}"


def percent(level: float) -> str:
    """0.95 as `95 %`, on one line."""
    return f"{level * 100:g}\N{NO-BREAK SPACE}%"


def p_value(p: float) -> str:
    """`.0123`, `< .0001`, or nothing where there is none."""
    if not np.isfinite(p):
        return ""
    return "< .0001" if p < 1e-4 else f"{p:.4f}".lstrip("0") if p < 1 else "1"


def interval(row: pd.Series | None, digits: int = 3) -> str:
    """`0.815 to 0.868`, or nothing where there is no interval."""
    if row is None or not (np.isfinite(row["low"]) and np.isfinite(row["high"])):
        return ""
    return f"{number(row['low'], digits)} to {number(row['high'], digits)}"


def estimate(row: pd.Series | None, digits: int = 3) -> str:
    """`0.842 (0.815 to 0.868)`, `undefined`, `withheld`, or nothing where there is no such row."""
    if row is None:
        return ""
    text = value(row, digits)
    return f"{text} ({interval(row, digits)})" if interval(row, digits) else text


def note(row: pd.Series, positives: bool = True) -> str:
    """Why a figure is missing, or what else must be known of it, in the audit's words; often nothing.

    positives: whether the number of positive images is to be seen, and so a word on why it is not.
    """
    if not row["reason"]:
        return "" if np.isfinite(row["value"]) else "no reason given"
    parts = row["reason"].split("; ")
    return "; ".join(part for part in parts if positives or not part.startswith("n_positive"))
