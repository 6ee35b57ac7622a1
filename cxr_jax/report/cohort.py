"""What of a cohort may be shown: counts, ages and prevalence by group, with small cells withheld.

A cell of 1 to `least` - 1 patients is withheld, and further cells with it, as `audit.suppression` has it; a count of 0
is shown, since it is nobody's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd

from cxr_jax import tables
from cxr_jax.audit import subgroups
from cxr_jax.audit.intervals import wilson
from cxr_jax.audit.suppression import withhold

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


def groups_of(
    table: pd.DataFrame, attribute: str, edges: Sequence[float], first: Sequence[str] = ()
) -> tuple[list[str], np.ndarray]:
    """Names of the groups, as the audit has them, and the position therein of each image, int [n]."""
    masks = subgroups.groups(table, attribute, edges, first)
    return list(masks), np.argmax(np.stack(list(masks.values())), axis=0)


def _each_and_all(values: np.ndarray, wanted: Sequence) -> list[np.ndarray]:
    """Where `values` [n] equal each of `wanted`, and last of all everywhere: bool [n] each."""
    return [*(values == value for value in wanted), np.ones(len(values), bool)]


def counts(
    table: pd.DataFrame,
    attribute: str,
    edges: Sequence[float],
    least: int,
    first: Sequence[str] = (),
    hide: Collection[tuple[str | None, str | None]] = (),
) -> Counts:
    """Counts by group and split of a cohort (cohort.parquet), and which must be withheld.

    edges: lower edges of age bands, years. first: groups to list first, in that order. hide: (group, split) that
    another table already withholds, None for all groups or all splits; shown here, they would undo it.
    """
    names, group = groups_of(table, attribute, edges, first)
    splits = [split for split in tables.SPLITS if split in set(table["split"])]
    patient = pd.factorize(table["patient_id"])[0]
    rows = _each_and_all(group, range(len(names)))
    columns = _each_and_all(table["split"].to_numpy(object), splits)
    cells = [[np.unique(patient[row & column]) for column in columns] for row in rows]
    hidden = np.array([[(name, split) in hide for split in [*splits, None]] for name in [*names, None]])
    reluctance = np.zeros(hidden.shape, int)
    reluctance[:, [split == "test" for split in [*splits, None]]] = 1  # what is judged is what readers look for
    reluctance[:, -1] = 2
    reluctance[-1] = -1  # the sizes of splits are told in any case
    return Counts(
        attribute,
        names,
        splits,
        patients=np.array([[len(cell) for cell in row] for row in cells]),
        images=np.array([[(row & column).sum() for column in columns] for row in rows]),
        hidden=withhold(cells, least, hidden, reluctance),
    )


def ages(
    table: pd.DataFrame, attribute: str, edges: Sequence[float], least: int, first: Sequence[str] = ()
) -> tuple[Counts, np.ndarray]:
    """Patients by group and by age at their first image in the cohort.

    Returns Counts over groups and bins (its `splits` are the bins, and a last one for unknown ages), and the bins'
    lower edges, years: bins of 10 years, or of 20 where these would leave more than a fifth of some group's patients
    in bins that must not be shown. Totals over groups are counted as known: the table of age bands tells of them.
    """
    patient = table.sort_values("age", kind="stable", na_position="last").drop_duplicates("patient_id")
    age = patient["age"].to_numpy(np.float64)
    highest = np.nanmax(age) if np.isfinite(age).any() else 0
    names, group = groups_of(patient, attribute, edges, first)
    for years in (10, 20):
        starts = np.arange(0, highest + 1e-9, years)
        bins = np.where(np.isnan(age), len(starts), np.searchsorted(starts, np.nan_to_num(age), side="right") - 1)
        rows, columns = _each_and_all(group, range(len(names))), _each_and_all(bins, range(len(starts) + 1))
        cells = [[np.flatnonzero(r & c) for c in columns] for r in rows]  # of patients, here one row each
        reluctance = np.zeros((len(rows), len(columns)), int)
        reluctance[:, -1] = 2
        reluctance[-1] = -1
        hidden = withhold(cells, least, reluctance=reluctance)
        counted = np.array([[len(cell) for cell in r] for r in cells])
        if (np.where(hidden, counted, 0)[:-1, :-1].sum(axis=1) <= counted[:-1, -1] / 5).all():
            break
    labels = [f"{int(s)}" for s in starts] + ["unknown"]
    return Counts(attribute, names, labels, counted, counted, hidden), starts


def prevalence(table: pd.DataFrame, names: Sequence[str], group: np.ndarray, least: int, level: float) -> pd.DataFrame:
    """Share of each group's images in which a finding is recorded as positive, with an interval over patients.

    names, group: as `groups_of` gives them. Columns: finding, group, value, low, high, n_images, n_patients,
    suppressed. A value is suppressed where 1 to `least` - 1 patients of the group have the finding, or lack it, or
    where the group itself is that small. Findings that are empty throughout are left out. Uncertain and unmentioned
    ones count as not recorded positive.

    The share is a ratio estimate p = Σy/Σm over patients with y positive of m images. Its variance is that of ratio
    estimates for clusters drawn with replacement (Cochran, Sampling Techniques, 1977, section 6.3 and 9A), v = k/(k-1)
    Σ(y - p·m)²/(Σm)² for k patients. The interval is Wilson's (1927) at the effective size p(1-p)/v, as Korn and
    Graubard (1998) and Dean and Pagano (2015) have it for surveys, never above the number of images; where v = 0, as
    it is where p is 0 or 1, at the number of patients. One patient alone has no variance, and so no interval: NaN.
    """
    found = []
    patient = pd.factorize(table["patient_id"])[0]
    for column in (c for c in table.columns if c.startswith(FINDING)):
        if table[column].isna().all():
            continue
        positive = (table[column] == 1).to_numpy()
        for i, name in enumerate(names):
            here = group == i
            y, m = by_patient(positive[here], patient[here])
            with_it, without = int((y > 0).sum()), int((y < m).sum())
            row = {"finding": column.removeprefix(FINDING), "group": name}
            row |= {"n_images": int(m.sum()), "n_patients": len(m)}
            if len(m) < least or 0 < with_it < least or 0 < without < least:
                found.append({**row, "value": np.nan, "low": np.nan, "high": np.nan, "suppressed": True})
                continue
            value, low, high = share(y, m, level)
            found.append({**row, "value": value, "low": low, "high": high, "suppressed": False})
    columns = ["finding", "group", "value", "low", "high", "n_images", "n_patients", "suppressed"]
    return pd.DataFrame(found, columns=columns)


def by_patient(positive: np.ndarray, patient: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positive images and all images of each patient who has any: two int [k]. positive: bool [n]; patient: int [n]."""
    m = np.bincount(patient)
    y = np.bincount(patient, weights=positive).astype(np.int64)
    return y[m > 0], m[m > 0]


def share(y: np.ndarray, m: np.ndarray, level: float) -> tuple[float, float, float]:
    """Share of images over patients with y positive of m images each, int [k], and its interval: see `prevalence`."""
    k, images = len(m), int(m.sum())
    p = float(y.sum() / images)
    v = k / (k - 1) * ((y - p * m) ** 2).sum() / images**2 if k > 1 else np.nan
    n = k if v == 0 else np.minimum(p * (1 - p) / v, images)
    return p, *wilson(p, n, level)


def first_images(age: np.ndarray, patient: np.ndarray) -> np.ndarray:
    """Where each patient's first image is: int [patients], by patient code.

    age: float [n], years, NaN unknown; patient: int [n], codes from 0. First is lowest in age, then in the table; an
    image of known age comes before one of unknown.
    """
    order = np.argsort(age, kind="stable")
    return order[np.unique(patient[order], return_index=True)[1]]


def hidden_when_judged(
    table: pd.DataFrame, attribute: str, edges: Sequence[float], least: int, splits: Collection[str]
) -> set[tuple[str, str]]:
    """(group, split) that an audit of these splits will suppress, as `counts` takes them in `hide`.

    An audit looks at one split at a time and so may withhold another cell beside a small one than `counts` would; two
    pages on one cohort, each with a cover of its own, would uncover what either hides.
    """
    names, group = groups_of(table, attribute, edges)
    patient, split = pd.factorize(table["patient_id"])[0], table["split"].to_numpy(object)
    gone = set()
    for name in splits:
        cells = [[np.unique(patient[rows & (split == name)])] for rows in _each_and_all(group, range(len(names)))]
        reluctance = np.append(np.zeros(len(names), int), -1)[:, None]
        hidden = withhold(cells, least, reluctance=reluctance, rows_add_up=False)
        gone |= {(names[i], name) for i in np.flatnonzero(hidden[:-1, 0])}
    return gone
