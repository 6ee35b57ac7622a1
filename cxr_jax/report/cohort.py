"""What of a cohort may be shown: counts, ages and prevalence by group, with small cells withheld.

A cell of 1 to `least` - 1 patients is withheld, and so are further cells until no withheld one can be worked out by
subtracting from totals. A count of 0 is shown, since it is nobody's. Images are additive over groups and splits; so are
patients, save that one with images in two views or two age bands counts in both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from cxr_jax import tables
from cxr_jax.audit import subgroups

FINDING = "finding_"


@dataclasses.dataclass(frozen=True)
class Counts:
    """Images and patients by group and split.

    groups [g] and splits [s]: names. patients, images, hidden: [g + 1, s + 1], whose last row is all groups and whose
    last column is all splits; what `hidden` marks must not be shown.
    """

    attribute: str
    groups: list[str]
    splits: list[str]
    patients: np.ndarray
    images: np.ndarray
    hidden: np.ndarray


def withhold(
    counts: np.ndarray, least: int, also: np.ndarray | None = None, keep: int | None = None, columns_add_up: bool = True
) -> np.ndarray:
    """Which cells of a table must not be shown so that nobody learns a count of 1 to `least` - 1.

    counts: int [r + 1, c + 1]; the last row and column are totals. also: bool, cells withheld already. keep: a column
    to be spared as long as hiding others will do, such as the split that is judged. columns_add_up: whether the totals
    of columns are known; then, as the size of a split always is, they are withheld only if small themselves. Returns
    bool [r + 1, c + 1].

    A withheld cell can be worked out exactly if, and only if, every solution of the table's equations (rows and columns
    add up) gives it the same value, that is, if the null space of the equations in the withheld cells is zero there.
    (Gusfield, SIAM Journal on Computing 17, 1988, has the same criterion for two-way tables in the words of graphs.)
    Beside it, what is withheld in one row or column must add up to `least` patients, since the sum is known.
    """
    counts = np.asarray(counts)
    small = (counts > 0) & (counts < least)
    fixed = small if also is None else small | also
    hidden = fixed.copy()
    free = counts > 0
    free[-1] = False  # totals of columns
    while True:
        candidates = _given_away(counts, small, hidden, least, columns_add_up)[1] & free & ~hidden
        if not candidates.any():
            break
        for dear in ([-1] if keep is None else [-1, keep], [-1], []):
            choice = candidates.copy()
            choice[:, dear] = False
            if choice.any():
                break
        hidden.flat[np.flatnonzero(choice)[np.argmin(counts[choice])]] = True
    # One at a time, cells may have been hidden that others hidden later made needless: show those again, largest first.
    hopeless = _given_away(counts, small, hidden, least, columns_add_up)[0]
    for cell in sorted(np.flatnonzero(hidden & ~fixed), key=lambda cell: -counts.flat[cell]):
        hidden.flat[cell] = False
        if (_given_away(counts, small, hidden, least, columns_add_up)[0] & ~hopeless).any():
            hidden.flat[cell] = True
    return hidden


def _given_away(
    counts: np.ndarray, small: np.ndarray, hidden: np.ndarray, least: int, columns_add_up: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Masks of the hidden cells that can be worked out after all, and of the rows and columns where to hide another."""
    rows, columns = counts.shape
    signs = np.ones(counts.shape)
    signs[-1, :] *= -1
    signs[:, -1] *= -1
    lines = []
    for i in range(rows):
        lines.append(np.zeros_like(small))
        lines[-1][i, :] = True
    for j in range(columns if columns_add_up else 0):
        lines.append(np.zeros_like(small))
        lines[-1][:, j] = True
    given_away, where = np.zeros_like(small), np.zeros_like(small)
    for i, line in enumerate(lines):
        total = np.zeros_like(small)
        total[(i, -1) if i < rows else (-1, i - rows)] = True
        inside = line & hidden & ~total
        if not (hidden & total).any() and 0 < counts[inside].sum() < least:
            given_away |= inside
            where |= line
    cells = np.flatnonzero(hidden)
    if cells.size:
        equations = np.stack([(line * signs).ravel()[cells] for line in lines])
        _, singular, right = np.linalg.svd(equations)
        null_space = right[int((singular > 1e-9).sum()) :]
        known = np.zeros_like(small)
        known.flat[cells[np.abs(null_space).sum(axis=0) < 1e-9]] = True
        if (known & small).any():
            given_away |= known & small
            for line in lines:  # a small cell may be known by way of others: another must be hidden beside any of them
                if (line & known).any():
                    where |= line
    return given_away, where


def groups_of(
    table: pd.DataFrame, attribute: str, edges: Sequence[float], first: Sequence[str] = ()
) -> tuple[list[str], np.ndarray]:
    """Names of the groups, as the audit has them, and the position therein of each image, int [n]."""
    masks = subgroups.groups(table, attribute, edges, first)
    return list(masks), np.argmax(np.stack(list(masks.values())), axis=0)


def counts(
    table: pd.DataFrame,
    attribute: str,
    edges: Sequence[float],
    least: int,
    first: Sequence[str] = (),
    hide: Collection[tuple[str, str]] = (),
) -> Counts:
    """Counts by group and split of a cohort (cohort.parquet), and which must be withheld.

    edges: lower edges of age bands, years. first: groups to list first, in that order. hide: (group, split) that
    another table already withholds; shown here, they would undo it.
    """
    names, group = groups_of(table, attribute, edges, first)
    splits = [split for split in tables.SPLITS if split in set(table["split"])]
    by = pd.DataFrame({"group": group, "split": table["split"].astype(object), "patient": table["patient_id"]})
    shape = (len(names) + 1, len(splits) + 1)
    patients, images = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    hidden = np.zeros(shape, bool)
    for i, name in enumerate([*names, None]):
        here = by if name is None else by[by["group"] == i]
        for j, split in enumerate([*splits, None]):
            cell = here if split is None else here[here["split"] == split]
            patients[i, j], images[i, j] = cell["patient"].nunique(), len(cell)
            hidden[i, j] = (name, split) in hide
    keep = splits.index("test") if "test" in splits else None
    return Counts(attribute, names, splits, patients, images, withhold(patients, least, hidden, keep))


def ages(
    table: pd.DataFrame, attribute: str, edges: Sequence[float], least: int, first: Sequence[str] = ()
) -> tuple[Counts, np.ndarray]:
    """Patients by group and by age at their first image in the cohort.

    Returns Counts over groups and bins (its `splits` are the bins, and a last one for unknown ages), and the bins'
    lower edges, years: bins of 10 years, or of 20 where these would leave more than a fifth of some group's patients
    in bins that must not be shown. Totals over groups are shown nowhere, so that only those of a group can be
    subtracted from.
    """
    patient = table.sort_values("age", kind="stable", na_position="last").drop_duplicates("patient_id")
    age = patient["age"].to_numpy(np.float64)
    highest = np.nanmax(age) if np.isfinite(age).any() else 0
    names, row = groups_of(patient, attribute, edges, first)
    for years in (10, 20):
        starts = np.arange(0, highest + 1e-9, years)
        bins = np.where(np.isnan(age), len(starts), np.searchsorted(starts, np.nan_to_num(age), side="right") - 1)
        cells = np.zeros((len(names) + 1, len(starts) + 2), np.int64)
        np.add.at(cells, (row, bins), 1)
        cells[-1] = cells[:-1].sum(axis=0)
        cells[:, -1] = cells[:, :-1].sum(axis=1)
        hidden = withhold(cells, least, columns_add_up=False)
        if (np.where(hidden, cells, 0)[:-1, :-1].sum(axis=1) <= cells[:-1, -1] / 5).all():
            break
    labels = [f"{int(s)}" for s in starts] + ["unknown"]
    return Counts(attribute, names, labels, cells, cells, hidden), starts


def prevalence(table: pd.DataFrame, names: Sequence[str], group: np.ndarray, least: int, level: float) -> pd.DataFrame:
    """Share of each group's images in which a finding is recorded as positive, with an interval over patients.

    names, group: as `groups_of` gives them. Columns: finding, group, value, low, high, n_images, n_patients,
    suppressed. A value is suppressed where 1 to `least` - 1 patients of the group have the finding, or lack it, or
    where the group itself is that small. Findings that are empty throughout are left out. Uncertain and unmentioned
    ones count as not recorded positive.

    The share is a ratio estimate p = Σy/Σm over patients with y positive of m images. Its variance is that of ratio
    estimates for clusters drawn with replacement (Cochran, Sampling Techniques, 1977, section 6.3 and 9A), v = k/(k-1)
    Σ(y - p·m)²/(Σm)² for k patients. The interval is Wilson's (1927) at the effective size p(1-p)/v, as Korn and
    Graubard (1998) and Dean and Pagano (2015) have it for surveys, never above the number of images; where p is 0 or
    1, at the number of patients.
    """
    found = []
    z = stats.norm.ppf(0.5 + level / 2)
    for column in (c for c in table.columns if c.startswith(FINDING)):
        if table[column].isna().all():
            continue
        positive = (table[column] == 1).astype(np.int64)
        for i, name in enumerate(names):
            here = group == i
            y = positive[here].groupby(table.loc[here, "patient_id"].to_numpy()).agg(["sum", "count"])
            k, m, with_it = len(y), int(y["count"].sum()), int((y["sum"] > 0).sum())
            without = k - int((y["sum"] == y["count"]).sum())
            row = {"finding": column.removeprefix(FINDING), "group": name, "n_images": m, "n_patients": k}
            if k < least or 0 < with_it < least or 0 < without < least:
                found.append({**row, "value": np.nan, "low": np.nan, "high": np.nan, "suppressed": True})
                continue
            p = y["sum"].sum() / m
            v = k / (k - 1) * ((y["sum"] - p * y["count"]) ** 2).sum() / m**2
            n = min(p * (1 - p) / v, m) if v > 0 else k
            centre, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
            low, high = np.clip((centre + np.array([-half, half])) / (1 + z**2 / n), 0, 1)
            found.append({**row, "value": p, "low": low, "high": high, "suppressed": False})
    columns = ["finding", "group", "value", "low", "high", "n_images", "n_patients", "suppressed"]
    return pd.DataFrame(found, columns=columns)
