"""Who is in a cohort: one page and one table, small cells withheld, of any data set.

    write(folder, table, attrition, dataset, settings, races) -> path of cohort.html, with cohort.csv beside it

Both hold the same numbers. What follows from them together is withheld as a whole: a number of 1 to `min_patients` - 1
patients is not shown, nor is any other that would give it away by subtraction (`audit.suppression`), here across the
sections as well. The tables are linked by totals that they share, so they are decided in an order, each taking what was
withheld before as given:

    counts by group and split    as the report has them, with what an audit of the same splits will withhold
    rules of the cohort          whose last line, who is left, is the total of the counts
    states of a finding          positive, negative, uncertain, not mentioned: of everybody
    shares by group              of positive and of unmentioned findings, whose sums over groups are those states
    standardised differences     which, to whoever knows the totals, are shares by group again

The patient is the unit: shares of images have intervals over patients, and ages and standardised differences take one
value a patient, at the first image (lowest age, then first in the table); a patient has a finding if any image has it.

A cell's withholding says nothing of its size: one word stands for small cells and for those that go with them, since to
know which is which narrows down both.
"""

from __future__ import annotations

import base64
import dataclasses
import importlib.resources
import itertools
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from scipy import optimize, stats

from cxr_jax import tables
from cxr_jax.audit import subgroups
from cxr_jax.audit.intervals import wilson
from cxr_jax.audit.subgroups import ALL, MISSING
from cxr_jax.audit.suppression import withhold
from cxr_jax.report import cohort, figures
from cxr_jax.report import rows as audit_rows

COLUMNS = (
    "section", "attribute", "group", "split", "what", "value", "low", "high", "n_images", "n_patients", "suppressed",
    "note",
)  # fmt: skip
STATES = ("positive", "negative", "uncertain", "not mentioned")
POSITIVE, NEGATIVE, UNCERTAIN, UNMENTIONED = range(4)
MOST_GROUPS = 30  # of an attribute that gets a table; the search for what to withhold grows with their number
MOST_TEXT_VALUES = 200  # of a text column that is a category; with more it is free text or names something
RARE = 0.01  # categories of fewer patients than this share count as one, 'other', in a standardised difference
WITHHELD, UNDEFINED = "withheld", "\N{EN DASH}"
NOT_CATEGORIES = ("image_id", "patient_id", "study_id", "split", "stored_split", "released_split", "dataset")
OF_WHICH = "of which "


def write(
    folder: os.PathLike | str,
    table: pd.DataFrame,
    attrition: Sequence[Mapping],
    dataset: Mapping,
    settings,
    races: Sequence[str] = (),
    stem: str = "cohort",
) -> pathlib.Path:
    """Writes `cohort.html` and `cohort.csv` in `folder`, each whole or not at all; returns the path of the page.

    table: a cohort, one row an image, as cohort.parquet has it: image_id, patient_id, split, and as far as there are
        study_id, race, sex, view, age (years, NaN unknown), finding_NAME (1, 0, -1 uncertain, NaN not mentioned), and
        text columns of any name.
    attrition: one entry a rule, the first being the whole data set: rule, images, patients (left), removed_images,
        removed_patients (who lose an image at least), by_race: {group: the same four}. Entries whose rule begins with
        'of which ' are parts of what is left.
    dataset: as `Dataset.summary()` has it, and perhaps `integrity`, the release against what is published.
    settings: the config's `audit` section: attributes, age_bands (lower edges, years), level, min_patients, splits.
    races: groups of race to list first. stem: of the files' names.

    The page needs nothing from anywhere else, and the same input gives the same bytes. Raises UserError for a table
    that `tables.check_keys` refuses, ValueError for an attrition whose numbers do not follow from one another.
    """
    folder = pathlib.Path(folder)
    tables.check_keys(table, "cohort")
    study = _study(table, settings, bool(dataset["invented_groups"]), races)
    counted, flow, found, ages = _counts(study), _flow(study, attrition), _findings(study), _ages(study)
    shares, missing, apart = _prevalence(study, found), _missing(study, found), _differences(study, found)
    release = _release(dataset, study.least, flow)
    page = _template().render(
        style=_style(),
        title=f"The cohort drawn from {_called(dataset)}",
        invented=study.invented,
        words=_in_words(study, attrition, dataset, apart),
        least=study.least,
        level=study.level,
        open_data=bool(dataset["open_data"]),
        release=release,
        flow=flow,
        counted=counted,
        found=found,
        ages=ages,
        shares=shares,
        missing=missing,
        apart=apart,
    )
    every = [row for part in (release, flow, counted, found, ages, shares, missing, apart) for row in part.rows]
    with tables.whole_file(folder / f"{stem}.csv") as path:
        pd.DataFrame(every, columns=list(COLUMNS)).to_csv(path, index=False)
    tables.write_text(folder / f"{stem}.html", page)
    return folder / f"{stem}.html"


def attrition(path: os.PathLike | str) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """What the rules left, from a `cohort.csv`, as text: the groups of race, and of each rule, in order, its cells.

    Cells are images and patients of everybody, then the images of each group; those of a split ("of which in …") are of
    everybody alone.
    """
    rows = pd.read_csv(path, keep_default_na=False, dtype=str)
    rows = rows[(rows["section"] == "attrition") & rows["what"].isin(["images left", "patients left"])]
    groups = [group for group in dict.fromkeys(rows["group"]) if group != ALL]
    told = {}
    for row in rows.itertuples():
        told.setdefault(row.note, {})[row.group, row.what] = _count(float(row.value or "nan"), row.suppressed == "True")
    columns = [(ALL, "images left"), (ALL, "patients left"), *((group, "images left") for group in groups)]
    return groups, [(rule, [cells.get(column, "") for column in columns]) for rule, cells in told.items()]


def attrition_text(path: os.PathLike | str) -> str:
    """The same as a table for a terminal, images by group as wide as their names."""
    groups, rules = attrition(path)
    body = [("", ["images", "patients", *map(audit_rows.group_name, groups)]), *rules]
    widths = [max(len(cells[i]) for _, cells in body) for i in range(len(groups) + 2)]
    first = max(len(rule) for rule, _ in body)
    lines = (f"  {rule:{first}}  " + "  ".join(f"{c:>{w}}" for c, w in zip(cells, widths)) for rule, cells in body)
    return "\n".join(line.rstrip() for line in lines)


# ------------------------------------------------------------------------------------------------- who is looked at


@dataclasses.dataclass(frozen=True)
class _Study:
    """A cohort, its patients and groups.

    patient: int [n], codes from 0. first: int [patients], where each one's first image is.
    groups: by attribute, names and the position therein of each image, int [n]; attributes of which nothing is
        recorded are absent, and ALL, everybody as one group, is always there.
    counted: by attribute, its counts by split, and which of these are withheld. crowded: attributes with too many
        groups for that.
    """

    table: pd.DataFrame
    settings: Any
    invented: bool
    races: Sequence[str]
    patient: np.ndarray
    first: np.ndarray
    groups: dict[str, tuple[list[str], np.ndarray]]
    counted: dict[str, cohort.Counts]
    crowded: dict[str, int]

    @property
    def least(self) -> int:
        return self.settings.min_patients

    @property
    def level(self) -> float:
        return self.settings.level

    @property
    def patients(self) -> int:
        return len(self.first)

    @property
    def by(self) -> str:
        """What shares of missing values are told by."""
        return "race" if "race" in self.counted else ALL

    def name_of(self, attribute: str) -> str:
        return "everybody" if attribute == ALL else audit_rows.attribute_name(attribute, self.invented)

    def gone(self, attribute: str) -> np.ndarray:
        """Groups whose size is withheld, and last whether everybody's is: bool [groups + 1]."""
        if attribute == ALL:
            return np.full(2, 0 < self.patients < self.least)
        return self.counted[attribute].hidden[:, -1]

    def at_first(self, attribute: str) -> np.ndarray:
        """The group of each patient at the first image: int [patients]."""
        return self.groups[attribute][1][self.first]

    def unsteady(self, attribute: str) -> np.ndarray:
        """Groups, last everybody, of which a few patients have other images: bool [groups + 1].

        A patient of two groups counts in both, but at the first image in one. Where these are few, the group's two
        sizes must not stand side by side.
        """
        names, group = self.groups[attribute]
        whole = np.array([len(np.unique(self.patient[group == i])) for i in range(len(names))])
        moved = whole - np.bincount(self.at_first(attribute), minlength=len(names))
        return np.append((moved > 0) & (moved < self.least), False)


@dataclasses.dataclass
class _Part:
    """A section: rows of cohort.csv, tables and figures of the page, sentences, and what later sections must know."""

    rows: list[dict] = dataclasses.field(default_factory=list)
    tables: list[dict] = dataclasses.field(default_factory=list)
    drawn: list[figures.Drawing] = dataclasses.field(default_factory=list)
    said: list[str] = dataclasses.field(default_factory=list)
    hidden: dict = dataclasses.field(default_factory=dict)

    def draw(self, drawing: figures.Drawing | None) -> None:
        if drawing is not None:
            self.drawn.append(drawing)


def _study(table: pd.DataFrame, settings, invented: bool, races: Sequence[str]) -> _Study:
    names = [attribute for attribute in settings.attributes if attribute in NOT_CATEGORIES]
    if names:
        raise tables.UserError(f"config.audit.attributes: {names[0]} says which image or patient, and makes no groups")
    patient = pd.factorize(table["patient_id"])[0]
    # Texts as objects, patients as numbers: what follows goes over them many times.
    wanted = [c for c in dict.fromkeys(("race", "sex", "view", "split", *settings.attributes)) if c in table]
    quick = {c: table[c].to_numpy(object) for c in wanted if not pd.api.types.is_numeric_dtype(table[c])}
    quick = {c: pd.Series(values, index=table.index, dtype=object) for c, values in quick.items()}
    table = table.assign(patient_id=patient, **quick).reset_index(drop=True)
    age = table["age"].to_numpy(np.float64, na_value=np.nan) if "age" in table else np.full(len(table), np.nan)
    groups, counted, crowded = {ALL: ([ALL], np.zeros(len(table), int))}, {}, {}
    edges, least = tuple(settings.age_bands), settings.min_patients
    splits = {(None, split) for split in _hidden_splits(table, least)}
    for attribute in dict.fromkeys(("race", "sex", "age_band", "view", *settings.attributes)):
        if attribute in table and not table[attribute].notna().any():
            continue
        if attribute in table and table[attribute].nunique() > MOST_GROUPS:
            crowded[attribute] = table[attribute].nunique()
            continue
        first = races if attribute == "race" else ()
        if not subgroups.groups(table, attribute, edges, first):
            continue
        groups[attribute] = cohort.groups_of(table, attribute, edges, first)
        judged = settings.splits if attribute in settings.attributes else ()
        hide = cohort.hidden_when_judged(table, attribute, edges, least, judged) | splits
        counted[attribute] = cohort.counts(table, attribute, edges, least, first, hide)
    first_image = cohort.first_images(age, patient)
    return _Study(table, settings, invented, races, patient, first_image, groups, counted, crowded)


def _hidden_splits(table: pd.DataFrame, least: int) -> set[str]:
    """Splits whose size must not be shown."""
    names = [split for split in tables.SPLITS if (table["split"] == split).any()]
    cells = [table.loc[table["split"] == split, "patient_id"].unique() for split in names]
    cells.append(np.concatenate(cells))
    few = _few(np.array([len(cell) for cell in cells]), least)
    hidden = _column(cells, least, few)
    return {split for split, gone in zip(names, hidden[:-1], strict=True) if gone}


def _cells(rows: np.ndarray, columns: np.ndarray, who: np.ndarray, shape: tuple[int, int]) -> list[list[np.ndarray]]:
    """Distinct patients by row and column, with totals last: [r + 1][c + 1]. rows, columns, who: int [n]."""
    people = int(who.max()) + 1 if len(who) else 1
    there = np.zeros(shape[0] * shape[1] * people, bool)
    there[(rows.astype(np.int64) * shape[1] + columns) * people + who] = True
    cell, person = np.divmod(np.flatnonzero(there), people)
    ends = np.searchsorted(cell, np.arange(shape[0] * shape[1] + 1))
    inner = [person[a:b] for a, b in itertools.pairwise(ends)]
    lines = [inner[i * shape[1] : (i + 1) * shape[1]] for i in range(shape[0])]
    lines.append([np.unique(np.concatenate(column)) for column in zip(*lines, strict=True)])
    return [[*line, np.unique(np.concatenate(line))] for line in lines]


def _sizes(cells: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    return np.array([[len(cell) for cell in line] for line in cells])


def _few(sizes: np.ndarray, least: int) -> np.ndarray:
    return (sizes > 0) & (sizes < least)


def _column(cells: Sequence[np.ndarray], least: int, hidden: np.ndarray) -> np.ndarray:
    """`withhold` for groups and, last, their total, which counts as known unless it is hidden: bool [groups + 1]."""
    reluctance = np.append(np.zeros(len(cells) - 1, int), -1)[:, None]
    return withhold([[cell] for cell in cells], least, hidden[:, None], reluctance, rows_add_up=False)[:, 0]


def _hidden_shares(study: _Study, attribute: str, positive: np.ndarray, hidden: np.ndarray | None = None) -> np.ndarray:
    """Groups, last everybody, whose share of images that are `positive`, bool [n], must not show: bool [groups + 1].

    From a share and the group's size anybody has the number with and the number without; and the sum over groups gives
    the one group that is left out. So each of these columns is held to the rule: patients with such an image, with one
    that is not such, and with none. hidden: shares that are withheld already.
    """
    names, group = study.groups[attribute]
    cells = _cells(group, np.where(positive, 0, 1), study.patient, (len(names), 2))
    columns = [[line[0] for line in cells], [line[1] for line in cells]]
    columns.append([np.setdiff1d(line[2], line[0], assume_unique=True) for line in cells])
    found = study.gone(attribute).copy() if hidden is None else study.gone(attribute) | hidden
    for column in columns:
        found |= _few(np.array([len(cell) for cell in column]), study.least)
    while True:
        before = found.copy()
        for column in columns:
            found |= _column(column, study.least, found)
        if (found == before).all():
            return found


# ------------------------------------------------------------------------------------------------- rows and cells


def _row(section: str, attribute: str, group: str, what: str, value: float = np.nan, **more) -> dict:
    """A row of cohort.csv. Where it is suppressed its numbers are empty, whatever was passed."""
    row = dict.fromkeys(("low", "high", "n_images", "n_patients"), np.nan)
    row |= {"split": ALL, "suppressed": False, "note": "", "value": value}
    row |= {"section": section, "attribute": attribute, "group": group, "what": what, **more}
    row["suppressed"] = bool(row["suppressed"])
    if row["suppressed"]:
        row |= dict.fromkeys(("value", "low", "high", "n_images", "n_patients"), np.nan)
    # Counts in a column with empty cells would be written as 12.0.
    counted = {k: "" if np.isnan(row[k]) else int(row[k]) for k in ("n_images", "n_patients")}
    numbers = {k: "" if not np.isfinite(row[k]) else row[k] for k in ("value", "low", "high")}
    return row | counted | numbers


def _plain(number: float) -> float:
    return round(float(number), 4)


def _count(number: float, hidden: bool = False) -> str:
    return WITHHELD if hidden else f"{int(number):,}" if np.isfinite(number) else UNDEFINED


def _percent(value: float, low: float = np.nan, high: float = np.nan) -> str:
    """`12.1 % (11.4 to 12.9)`; a dash for NaN."""
    if not np.isfinite(value):
        return UNDEFINED
    text = f"{value * 100:.1f}\N{NO-BREAK SPACE}%"
    return f"{text} ({low * 100:.1f} to {high * 100:.1f})" if np.isfinite(low) else text


def _number(value: float, low: float = np.nan, high: float = np.nan, digits: int = 2) -> str:
    if not np.isfinite(value):
        return UNDEFINED
    text = audit_rows.number(value, digits)
    ends = [audit_rows.number(end, digits) for end in (low, high)]
    return f"{text} ({ends[0]} to {ends[1]})" if np.isfinite(low) else text


def _table(caption: str, head: Sequence[str], lines: Sequence[tuple[str, Sequence[str]]]) -> dict:
    """head: of every column; a line break parts a name from its n. lines: (name, other cells); a last column headed
    'note' is of words."""
    notes = bool(head) and head[-1] == "note"
    if notes and not any(cells[-1] for _, cells in lines):
        head, lines, notes = head[:-1], [(name, cells[:-1]) for name, cells in lines], False
    heads = [name.split("\n") for name in head]
    return {"caption": caption, "head": heads, "lines": list(lines), "notes": notes}


def _columns(study: _Study, attribute: str, unit: str) -> list[str]:
    """Heads for the groups of an attribute, each with its n, and for everybody. unit: images or patients."""
    names, group = study.groups[attribute]
    which = np.bincount(group, minlength=len(names)) if unit == "images" else None
    if which is None:
        which = np.bincount(study.at_first(attribute), minlength=len(names))
    everybody = len(study.table) if unit == "images" else study.patients
    hidden = study.gone(attribute) | (study.unsteady(attribute) if unit == "patients" else False)
    if attribute == ALL:
        return [f"everybody\n{_n(everybody, unit, hidden[-1])}"]
    heads = [f"{audit_rows.group_name(g)}\n{_n(n, unit, h)}" for g, n, h in zip(names, which, hidden[:-1], strict=True)]
    return [*heads, f"everybody\n{_n(everybody, unit, hidden[-1])}"]


def _n(number: int, unit: str, hidden: bool) -> str:
    return f"{unit} {WITHHELD}" if hidden else f"{number:,} {unit}"


# ------------------------------------------------------------------------------------------------- counts


def _counts(study: _Study) -> _Part:
    part = _Part()
    for attribute, counts in study.counted.items():
        lines = []
        for i, group in enumerate([*counts.groups, ALL]):
            cells = []
            for j, split in enumerate([*counts.splits, ALL]):
                hidden, images, patients = (x[i, j] for x in (counts.hidden, counts.images, counts.patients))
                cells.append(WITHHELD if hidden else f"{patients:,} / {images:,}")
                both = {"n_images": images, "n_patients": patients, "split": split, "suppressed": hidden}
                part.rows.append(_row("counts", attribute, group, "images", images, **both))
                part.rows.append(_row("counts", attribute, group, "patients", patients, **both))
            lines.append(("everybody" if group == ALL else audit_rows.group_name(group), cells))
        name = study.name_of(attribute)
        part.tables.append(_table(f"By {name}: patients / images", [name, *counts.splits, "all"], lines))
    for attribute, values in study.crowded.items():
        note = f"{values} different values, more than {MOST_GROUPS}: left out of the table by split"
        part.rows.append(_row("counts", attribute, ALL, "distinct values", values, note=note))
        part.said.append(f"{study.name_of(attribute).capitalize()} has {note}.")
    for attribute in dict.fromkeys(("race", "sex", "age_band", "view", *study.settings.attributes)):
        if attribute not in study.counted and attribute not in study.crowded:
            note = "nobody's is recorded"
            part.rows.append(_row("counts", attribute, ALL, "images", note=note))
            part.said.append(f"By {study.name_of(attribute)} there is no table: {note}.")
    if study.counted:
        part.draw(figures.counts(list(study.counted.values()), study.name_of))
    part.hidden["any"] = any(counts.hidden.any() for counts in study.counted.values())
    return part


# ------------------------------------------------------------------------------------------------- who is left


def _flow(study: _Study, attrition: Sequence[Mapping]) -> _Part:
    """What each rule removes and leaves, overall and by race.

    Two additive tables, of groups by rules: images removed by each rule and those left make up those at the start, and
    so do patients whom each rule removes altogether and those left. Who loses some images only is a third number,
    additive over groups. All counts in between, left after each rule, are sums of these, and shown where their terms
    are.
    """
    part = _Part()
    steps = [step for step in attrition if not step["rule"].startswith(OF_WHICH)]
    of = _flow_groups(study, steps[0]["by_race"])
    keys = list(of)
    grids = [
        np.array(
            [[sum(step["by_race"][g][key] for g in of[k]) for step in steps] for k in keys]
            + [[step[key] for step in steps]]
        )
        for key in ("images", "patients", "removed_images", "removed_patients")
    ]
    images, patients, removed, touched = grids
    wholly = -np.diff(patients, axis=1)
    if (np.diff(images, axis=1) != -removed[:, 1:]).any() or (wholly < 0).any() or (touched[:, 1:] < wholly).any():
        raise ValueError("attrition: what the rules remove is not what the numbers left differ by")
    ends = patients[:, [-1, 0]]
    left_hidden = np.array([_left_is_hidden(study, g) for g in [*keys, ALL]])
    hidden_images = _withheld_flow(np.hstack([touched[:, 1:], ends]), left_hidden, study.least, False)
    hidden_patients = _withheld_flow(np.hstack([wholly, ends]), left_hidden, study.least, True)
    if keys and any(_leaks(study, keys, n, h) for n, h in (
        (np.hstack([touched[:, 1:], ends]), hidden_images), (np.hstack([wholly, ends]), hidden_patients),
    )):  # fmt: skip
        keys, images, patients, removed, touched, wholly = [], *(x[-1:] for x in (*grids, wholly))
        ends, left_hidden = ends[-1:], left_hidden[-1:]
        hidden_images = _withheld_flow(np.hstack([touched[:, 1:], ends]), left_hidden, study.least, False)
        hidden_patients = _withheld_flow(np.hstack([wholly, ends]), left_hidden, study.least, True)
        part.said.append(
            f"By {study.name_of('race')} it is withheld what the rules remove: with the counts below it would give"
            f" numbers of fewer than {study.least} patients away."
        )
    partly = touched[:, 1:] - wholly
    either = hidden_images[:, :-2] | hidden_patients[:, :-2]
    hidden_touched = np.zeros_like(either)
    for t in range(partly.shape[1]):
        cells = [line[0] for line in _at_worst(partly[:, [t]], False)]
        hidden_touched[:, t] = _column(cells, study.least, either[:, t] & (partly[:, t] > 0)) | either[:, t]
    left = {"images": _left_shown(hidden_images), "patients": _left_shown(hidden_patients)}
    groups = [*keys, ALL]
    for t, step in enumerate(steps):
        for i, group in enumerate(groups):
            more = {"split": ALL, "note": step["rule"]}
            for what, numbers, hidden in (
                ("images removed", removed[i, t], t and hidden_images[i, t - 1]),
                ("images left", images[i, t], not left["images"][i, t]),
                ("patients removed altogether", wholly[i, t - 1] if t else 0, t and hidden_patients[i, t - 1]),
                ("patients who lose an image", touched[i, t], t and hidden_touched[i, t - 1]),
                ("patients left", patients[i, t], not left["patients"][i, t]),
            ):
                unit = "n_" + what.split(" ", 1)[0]
                part.rows.append(
                    _row("attrition", "race", group, what, numbers, suppressed=hidden, **{unit: numbers}, **more)
                )
    head = ["rule", "images\nremoved", "images\nleft", "patients\nremoved", "patients\nleft"]
    head.append("patients who\nlose an image")
    lines = []
    for t, step in enumerate(steps):
        stay = [_count(x[-1, t], not left[k][-1, t]) for k, x in (("images", images), ("patients", patients))]
        if not t:
            lines.append((step["rule"], ["", stay[0], "", stay[1], ""]))
            continue
        gone = [_count(removed[-1, t], hidden_images[-1, t - 1]), _count(wholly[-1, t - 1], hidden_patients[-1, t - 1])]
        some = _count(touched[-1, t], hidden_touched[-1, t - 1])
        lines.append((step["rule"], [gone[0], stay[0], gone[1], stay[1], some]))
    lines += _of_which(study, attrition, part)
    part.tables.append(_table("Rules in their order; a patient is removed when no image is left", head, lines))
    if keys:
        for what, gone, stay, h in (
            ("images", removed[:, 1:], images, hidden_images), ("patients", wholly, patients, hidden_patients),
        ):  # fmt: skip
            lines = []
            for t, step in enumerate(steps):
                cells = []
                for i in range(len(groups)):
                    kept = _count(stay[i, t], not left[what][i, t])
                    cells.append(f"{_count(gone[i, t - 1], h[i, t - 1])} / {kept}" if t else kept)
                lines.append((step["rule"], cells))
            names = [audit_rows.group_name(g) for g in keys]
            name = study.name_of("race").capitalize()
            part.tables.append(_table(f"{name}: {what} removed / left", ["rule", *names, "everybody"], lines))
    part.hidden["start"] = [] if left["images"][-1, 0] and left["patients"][-1, 0] else [images[-1, 0], patients[-1, 0]]
    part.hidden["any"] = bool(hidden_images.any() or hidden_patients.any() or hidden_touched.any())
    return part


def _flow_groups(study: _Study, found: Mapping) -> dict[str, list[str]]:
    """Groups by which the flow is told, and of each the groups of the attrition, `found`, that it is made of.

    Where images without a race are left, they are one group, whatever is known of why they have none: the counts have
    them as one, and its parts would be shown without being held against it.
    """
    if "race" not in study.counted or len(found) < 2:
        return {}  # one group alone is everybody again
    left = study.counted["race"].groups
    races = [g for g in (*study.races, *left) if g in found and g != MISSING]
    of = {g: [g] for g in dict.fromkeys(races)}
    others = [g for g in found if g not in of]
    return of | ({MISSING: others} if MISSING in left and others else {g: [g] for g in others})


def _left_is_hidden(study: _Study, key: str) -> bool:
    """Whether the counts withhold how many of a group are left."""
    if key == ALL or "race" not in study.counted:
        return bool(study.gone(ALL)[-1])
    at = _place(study.counted["race"], key)
    return at is not None and bool(study.counted["race"].hidden[at, -1])


def _place(counts: cohort.Counts, key: str) -> int | None:
    """Where the group that attrition calls `key` is among the counts' rows; None where nobody of it is left."""
    if key == ALL:
        return len(counts.groups)
    return counts.groups.index(key) if key in counts.groups else None


def _withheld_flow(concerned: np.ndarray, left_hidden: np.ndarray, least: int, apart: bool) -> np.ndarray:
    """bool [groups + 1, rules + 2]: removals by rule, what is left, what there was, that must not be shown.

    concerned: int of the same shape, patients behind each number, everybody last. apart: as `_at_worst` has it.
    """
    hidden = np.zeros(concerned.shape, bool)
    hidden[:, -2] = left_hidden & (concerned[:, -2] > 0)
    reluctance = np.zeros(concerned.shape, int)
    reluctance[:, -1] = 1
    reluctance[-1] = 2  # what becomes of everybody is the first thing to know
    reluctance[-1, -1] = 3
    reluctance[:, -2] = -1  # the counts tell of it
    return withhold(_at_worst(concerned, apart), least, hidden, reluctance, columns_add_up=len(concerned) > 1)


def _at_worst(concerned: np.ndarray, apart: bool) -> list[list[np.ndarray]]:
    """Patients of whom we know numbers only, as sets of the smallest sums that these numbers allow.

    Withheld cells must have `least` patients together. That holds for sure if it does where each smaller set is part of
    the larger, as the first n of some people are. Where groups add up to everybody, no patient is in two of them, and
    each group has people of its own. apart: no patient is in two of the rules' numbers, nor is any left.
    """
    groups, everybody = concerned[:-1], concerned[-1]
    if len(groups) and (groups.sum(axis=0) == everybody).all():
        stride = int(everybody.max()) + 1
        cells = [[g * stride + np.arange(n) for n in line] for g, line in enumerate(groups)]
    else:
        cells = [[np.arange(n) for n in line] for line in concerned]
    if apart:
        for line, numbers in zip(cells, concerned, strict=False):
            ends = np.cumsum(numbers[:-1])
            whole = line[-1]
            if ends[-1] == len(whole):
                line[:-1] = np.split(whole, ends[:-1])
    if len(cells) == len(groups):
        cells.append([np.concatenate(column) for column in zip(*cells, strict=True)])
    return cells


def _left_shown(hidden: np.ndarray) -> np.ndarray:
    """bool [groups + 1, rules + 1]: what is left after each rule, where it is the sum of numbers that are shown.

    Shown there it tells nothing new: from the start down, or from the end up.
    """
    gone, left, start = hidden[:, :-2], hidden[:, -2], hidden[:, -1]
    rules = gone.shape[1]
    down = [~start & ~gone[:, :t].any(axis=1) for t in range(rules + 1)]
    up = [~left & ~gone[:, t:].any(axis=1) for t in range(rules + 1)]
    return np.array([a | b for a, b in zip(down, up, strict=True)]).T


def _leaks(study: _Study, keys: Sequence[str], concerned: np.ndarray, hidden: np.ndarray) -> bool:
    """Whether a small number can be worked out from the flow and the counts by race and split together.

    Either is safe alone; but they share what is left of each group, where the one might supply what the other lacks.
    """
    if "race" not in study.counted:
        return False
    counts = study.counted["race"]
    shapes = [hidden.shape, counts.hidden.shape]
    offset = hidden.size
    equations = []
    for shape, start in zip(shapes, (0, offset), strict=True):
        number = start + np.arange(shape[0] * shape[1]).reshape(shape)
        for line in [*number, *number.T]:
            equation = np.zeros(offset + counts.hidden.size)
            equation[line] = 1
            equation[line[-1]] = -1
            equations.append(equation)
        if start:
            for i, key in enumerate([*keys, ALL]):
                at = _place(counts, key)
                if at is not None:
                    equation = np.zeros(offset + counts.hidden.size)
                    equation[[i * shapes[0][1] + shapes[0][1] - 2, number[at, -1]]] = 1, -1
                    equations.append(equation)
    everything = np.concatenate([hidden.ravel(), counts.hidden.ravel()])
    small = np.concatenate([_few(concerned, study.least).ravel(), _few(counts.patients, study.least).ravel()])
    unknown = np.flatnonzero(everything)
    if not len(unknown):
        return False
    _, singular, right = np.linalg.svd(np.stack(equations)[:, unknown])
    null_space = right[int((singular > 1e-9).sum()) :]
    return bool((np.abs(null_space).sum(axis=0) < 1e-9)[small[unknown]].any())


def _of_which(study: _Study, attrition: Sequence[Mapping], part: _Part) -> list[tuple[str, list[str]]]:
    """Lines for the splits, of everybody; by group the counts have them."""
    lines, gone = [], _hidden_splits(study.table, study.least)
    for step in attrition:
        if step["rule"].startswith(OF_WHICH):
            hidden = bool(_few(np.array(step["patients"]), study.least)) or step["rule"].split()[-1] in gone
            lines.append((step["rule"], ["", _count(step["images"], hidden), "", _count(step["patients"], hidden), ""]))
            for unit in ("images", "patients"):
                more = {f"n_{unit}": step[unit], "suppressed": hidden, "note": step["rule"]}
                part.rows.append(_row("attrition", "race", ALL, f"{unit} left", step[unit], **more))
    return lines


# ------------------------------------------------------------------------------------------------- findings


def _findings(study: _Study) -> _Part:
    """States of each finding of everybody, and by attribute which shares the later sections must not show."""
    part = _Part(hidden={"positive": {}, "unmentioned": {}, "states": {}})
    lines = []
    for column in (c for c in study.table.columns if c.startswith(cohort.FINDING)):
        name = column.removeprefix(cohort.FINDING)
        values = study.table[column].to_numpy(np.float64, na_value=np.nan)
        state = np.select([values == 1, values == 0, values == -1], [POSITIVE, NEGATIVE, UNCERTAIN], UNMENTIONED)
        hidden = _hide_finding(study, part, name, state)
        images = np.bincount(state, minlength=4)
        ever = len(np.unique(study.patient[state == POSITIVE]))
        cells = [_count(n, h) for n, h in zip(images, hidden, strict=True)]
        for k, what in enumerate(STATES):
            who = len(np.unique(study.patient[state == k]))
            both = {"n_images": images[k], "n_patients": who, "suppressed": hidden[k]}
            part.rows.append(_row("findings", name, ALL, f"images {what}", images[k], **both))
        both = {"n_images": images[POSITIVE], "n_patients": ever, "suppressed": hidden[POSITIVE]}
        part.rows.append(_row("findings", name, ALL, "patients positive", ever, **both))
        lines.append((name, [*cells, _count(ever, hidden[POSITIVE])]))
    if lines:
        head = ["finding", *(f"images\n{state}" for state in STATES), "patients\never positive"]
        part.tables.append(_table("Findings as released, all splits together", head, lines))
    return part


def _hide_finding(study: _Study, part: _Part, name: str, state: np.ndarray) -> np.ndarray:
    """Of a finding with states int [n]: which are withheld of everybody, bool [4]; the rest goes into part.hidden."""
    cells = _cells(np.zeros(len(state), int), state, study.patient, (1, 4))[0]
    start = np.append(_few(_sizes([cells])[0, :4], study.least), False)
    never = len(cells[-1]) - len(cells[POSITIVE])
    start[POSITIVE] |= 0 < never < study.least
    if study.gone(ALL)[-1]:
        start[:] = True
    start &= _sizes([cells])[0] > 0
    order = np.array([[2, 0, 0, 1, -1]])  # what is negative and what uncertain matters least
    # Where all but one state are empty, 'none' covers the one that is not.
    overall = withhold([cells], study.least, start[None], order, columns_add_up=False)[0, :4]
    part.hidden["states"][name] = overall
    top = {POSITIVE: overall[POSITIVE], UNMENTIONED: overall[UNMENTIONED]}
    for attribute in (a for a in ("race", "sex", "age_band") if a in study.counted):
        names, group = study.groups[attribute]
        ends = {k: np.append(np.zeros(len(names), bool), top[k]) for k in top}
        if attribute != study.by:
            shown = _hidden_shares(study, attribute, state == POSITIVE, ends[POSITIVE])
            part.hidden["positive"][name, attribute] = shown
            continue
        # Here unmentioned ones are told too, and of what is neither, negative or uncertain, the number follows.
        three = np.select([state == POSITIVE, state == UNMENTIONED], [0, 2], 1)
        by_group = _cells(group, three, study.patient, (len(names), 3))
        sizes = _sizes(by_group)
        hidden = np.zeros(sizes.shape, bool)
        hidden[-1, :3] = [top[POSITIVE], top[POSITIVE] or top[UNMENTIONED], top[UNMENTIONED]]
        hidden |= study.gone(attribute)[:, None]
        order = np.zeros(sizes.shape, int)
        order[:, -1] = order[-1] = -1
        while True:
            before = hidden.copy()
            hidden |= withhold(by_group, study.least, hidden & (sizes > 0), order)
            hidden[:, 0] |= _hidden_shares(study, attribute, state == POSITIVE, hidden[:, 0])
            hidden[:, 2] |= _hidden_shares(study, attribute, state == UNMENTIONED, hidden[:, 2])
            if (hidden == before).all():
                break
        part.hidden["positive"][name, attribute] = hidden[:, 0]
        part.hidden["unmentioned"][name] = hidden[:, 2]
    part.hidden["positive"][name, ALL] = np.repeat(top[POSITIVE] | study.gone(ALL)[-1], 2)
    if study.by == ALL:
        part.hidden["unmentioned"][name] = np.repeat(top[UNMENTIONED] | study.gone(ALL)[-1], 2)
        small = _hidden_shares(study, ALL, state == UNMENTIONED)
        part.hidden["unmentioned"][name] |= small
    return overall


def _prevalence(study: _Study, found: _Part) -> _Part:
    part = _Part()
    findings = [c for c in study.table.columns if c.startswith(cohort.FINDING) and study.table[c].notna().any()]
    if not findings:
        part.said.append("The data set has no findings, or none is mentioned in any image.")
        return part
    named = [c.removeprefix(cohort.FINDING) for c in findings]
    everybody = _shares(study, ALL, findings, {f: found.hidden["positive"][f, ALL] for f in named})
    for attribute in (a for a in ("race", "sex", "age_band") if a in study.counted):
        hidden = {f: found.hidden["positive"][f, attribute] for f in named}
        shares = _shares(study, attribute, findings, hidden)
        part.rows += _share_rows("prevalence", attribute, shares)
        part.tables.append(_share_table(study, attribute, "finding", shares, everybody, "images positive"))
        names = study.groups[attribute][0]
        small = {g for g, gone in zip(names, study.gone(attribute)[:-1], strict=True) if gone}
        also = ", or since such a group's share would follow from it"
        shown = shares[~shares["group"].isin(small)]
        part.draw(figures.prevalence(shown, study.name_of(attribute), study.least, study.level, also))
    if not part.tables:
        part.tables.append(_share_table(study, ALL, "finding", everybody, everybody, "images positive"))
    part.rows += _share_rows("prevalence", ALL, everybody)
    return part


def _shares(study: _Study, attribute: str, columns: Sequence[str], hidden: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """`cohort.prevalence`, withheld where `hidden`, by finding bool [groups + 1], has it too."""
    names, group = study.groups[attribute]
    shares = cohort.prevalence(study.table[["patient_id", *columns]], names, group, study.least, study.level)
    gone = [hidden[f][names.index(g)] for f, g in zip(shares["finding"], shares["group"], strict=True)]
    shares["suppressed"] |= np.array(gone, bool)
    shares.loc[shares["suppressed"], ["value", "low", "high"]] = np.nan
    return shares


def _share_rows(section: str, attribute: str, shares: pd.DataFrame) -> list[dict]:
    rows = []
    for s in shares.to_dict("records"):
        note = "one patient alone has no interval" if np.isfinite(s["value"]) and np.isnan(s["low"]) else ""
        values = {"low": _plain(s["low"]), "high": _plain(s["high"])}
        values |= {k: s[k] for k in ("n_images", "n_patients", "suppressed")}
        rows.append(_row(section, attribute, s["group"], s["finding"], _plain(s["value"]), note=note, **values))
    return rows


def _share_table(
    study: _Study, attribute: str, first: str, shares: pd.DataFrame, everybody: pd.DataFrame, what: str
) -> dict:
    names = study.groups[attribute][0] if attribute != ALL else []
    cell = {(s["finding"], s["group"]): _share_cell(s) for s in shares.to_dict("records")}
    cell |= {(s["finding"], ALL): _share_cell(s) for s in everybody.to_dict("records")}
    lines = [(f, [cell[f, g] for g in [*names, ALL]]) for f in audit_rows.in_order(shares["finding"])]
    caption = "Everybody" if attribute == ALL else f"By {study.name_of(attribute)}"
    caption += f": share of {what} ({audit_rows.percent(study.level)} interval)"
    return _table(caption, [first, *_columns(study, attribute, "images")], lines)


def _share_cell(share: Mapping) -> str:
    return WITHHELD if share["suppressed"] else _percent(share["value"], share["low"], share["high"])


# ------------------------------------------------------------------------------------------------- ages


def _ages(study: _Study) -> _Part:
    part = _Part()
    age = study.table["age"].to_numpy(np.float64, na_value=np.nan) if "age" in study.table else np.zeros(0)
    if not np.isfinite(age).any():
        part.said.append("No age is recorded.")
        part.rows.append(_row("age", ALL, ALL, "mean", note="no age is recorded"))
        return part
    at_first, edges = age[study.first], tuple(study.settings.age_bands)
    everybody = None
    for attribute in [*(a for a in ("race", "sex") if a in study.counted), ALL]:
        names, group = study.groups[attribute][0], study.at_first(attribute)
        value_hidden, n_hidden = _hidden_ages(study, attribute, age)
        lines = []
        for i, name in enumerate(names):
            cells, rows = _age_cells(study, attribute, name, at_first[group == i], value_hidden[i], n_hidden[i])
            part.rows += rows
            lines.append((audit_rows.group_name(name), cells))
        if attribute == ALL:
            everybody = ("everybody", lines[0][1])
            break
        part.tables.append((attribute, lines))
        apart = {g for i, g in enumerate(names) if value_hidden[i] or study.unsteady(attribute)[i]}
        first = study.races if attribute == "race" else ()
        binned = cohort.ages(study.table, attribute, edges, study.least, first)
        if len(set(names) - apart) > 1:  # one alone is in the table
            part.draw(figures.ages(*binned, study.name_of(attribute), study.least, apart))
    head = ["patients", "mean (interval)", "SD", "median", "quartiles", "note"]
    part.tables = [
        _table(f"By {study.name_of(a)}: years, at the first image", [study.name_of(a), *head], [*lines, everybody])
        for a, lines in part.tables
    ] or [_table("Years, at the first image", ["", *head], [everybody])]
    return part


def _hidden_ages(study: _Study, attribute: str, age: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Groups whose ages, and whose number of known ages, must not be shown: bool [groups + 1] twice.

    Means add up as counts do: everybody's, less those of the groups shown, is that of the group that is not. How many
    ages are known tells how many are missing.
    """
    names = study.groups[attribute][0]
    known = np.isfinite(age[study.first])
    values = _hidden_categories(study, attribute, np.where(known, 0, -1))
    return values, values | _hidden_numbers(study, attribute, "age")


def _hidden_categories(study: _Study, attribute: str, category: np.ndarray) -> np.ndarray:
    """Groups, last everybody, of whom a category's number must not be shown: bool [groups + 1].

    category: int [patients], at the first image; -1 is in none.
    """
    group, some = study.at_first(attribute), np.flatnonzero(category >= 0)
    shape = (len(study.groups[attribute][0]), int(category.max(initial=0)) + 1)
    found = study.gone(attribute).copy()
    cells = _cells(group[some], category[some], some, shape)
    for column in list(zip(*cells, strict=True))[:-1]:
        size = np.array([len(cell) for cell in column])
        found |= _column(column, study.least, study.gone(attribute) & (size > 0))
    return found


def _hidden_numbers(study: _Study, attribute: str, variable: str) -> np.ndarray:
    """Groups, last everybody, of whom it must not be told for how many `variable` is known: bool [groups + 1].

    With the size of the group it would tell how many lack it, which the table of what is missing may withhold.
    """
    empty = _empty(study.table[variable])
    top = _missing_is_hidden(study, "age_band" if variable == "age" else variable)
    ends = np.append(np.zeros(len(study.groups[attribute][0]), bool), top)
    found = study.unsteady(attribute) | _hidden_shares(study, attribute, empty, ends)
    return found | _hidden_categories(study, attribute, np.where(empty[study.first], 0, -1))


def _age_cells(
    study: _Study, attribute: str, group: str, ages: np.ndarray, hidden: bool, n_hidden: bool
) -> tuple[list[str], list[dict]]:
    """Cells and rows on the ages of one group's patients, float [k], NaN unknown."""
    ages = ages[np.isfinite(ages)]
    n, note = len(ages), ""
    mean, deviation = (np.mean(ages), np.std(ages, ddof=1) if n > 1 else np.nan) if n else (np.nan, np.nan)
    quartiles = np.quantile(ages, [0.25, 0.5, 0.75]) if n else np.full(3, np.nan)
    half = stats.t.ppf(0.5 + study.level / 2, n - 1) * deviation / np.sqrt(n) if n > 1 else np.nan
    if hidden:
        note = f"fewer than {study.least} patients, or such a group would follow"
    elif not n:
        note = "no age is recorded"
    elif n_hidden:
        # The width of the interval is as good as the number.
        half, note = np.nan, "no n and no interval: they would tell how many ages are missing"
    elif n == 1:
        note = "one patient alone has no SD and no interval"
    told = {"mean": mean, "SD": deviation, "first quartile": quartiles[0], "median": quartiles[1]}
    rows = []
    for what, value in (told | {"third quartile": quartiles[2]}).items():
        ends = {"low": round(mean - half, 1), "high": round(mean + half, 1)} if what == "mean" else {}
        why = note or ("" if what == "mean" else "no interval is given for this one")
        number = np.nan if n_hidden else n
        more = {"n_patients": number, "suppressed": hidden, "note": why}
        rows.append(_row("age", attribute, group, what, round(float(value), 1), **ends, **more))
    if hidden:
        return [WITHHELD, WITHHELD, WITHHELD, WITHHELD, WITHHELD, note], rows
    between = f"{quartiles[0]:.1f} to {quartiles[2]:.1f}" if n else UNDEFINED
    middle = [_number(deviation, digits=1), _number(quartiles[1], digits=1), between, note]
    return [_count(n, n_hidden), _number(mean, mean - half, mean + half, 1), *middle], rows


# ------------------------------------------------------------------------------------------------- missingness


def _missing(study: _Study, found: _Part) -> _Part:
    """Share of images without a value, by variable and race; of findings, without a mention."""
    part = _Part()
    table, by = study.table, study.by
    wanted = {"race": "race", "sex": "sex", "age": "age_band", "view": "view", "study_id": "study_id"}
    wanted |= {column: column for column in _categories(table) if column not in wanted}
    absent = [v for v in wanted if v not in table]
    part.rows += [_row("missingness", ALL, ALL, v, note="the data set has no such field") for v in absent]
    if absent:
        part.said.append(f"The data set has no field for {', '.join(study.name_of(v) for v in absent)}.")
    frame, hidden, overall = {}, {}, {}
    for variable, attribute in wanted.items():
        if variable in absent:
            continue
        empty = _empty(table[variable])
        top = _missing_is_hidden(study, attribute)
        if variable == "race" and by == "race":
            overall["race"] = _hidden_shares(study, ALL, empty, np.array([top, top]))
        else:
            ends = np.append(np.zeros(len(study.groups[by][0]), bool), top)
            hidden[variable] = _hidden_shares(study, by, empty, ends if by != ALL else np.array([top, top]))
            overall[variable] = np.repeat(hidden[variable][-1], 2)
        frame[cohort.FINDING + variable] = empty.astype(np.float64)
    findings = found.hidden["unmentioned"]
    for name, gone in findings.items():
        hidden[name], overall[name] = gone, np.repeat(gone[-1], 2)
        values = table[cohort.FINDING + name].to_numpy(np.float64, na_value=np.nan)
        frame[cohort.FINDING + name] = np.isnan(values).astype(np.float64)
    whole = dataclasses.replace(study, table=pd.DataFrame({"patient_id": table["patient_id"], **frame}))
    columns = list(frame)
    everybody = _shares(whole, ALL, columns, overall)
    part.rows += _missing_rows(whole, ALL, everybody)
    lines = []
    for share in everybody.to_dict("records"):
        empty = frame[cohort.FINDING + share["finding"]] == 1
        patients = len(np.unique(study.patient[empty]))
        gone = share["suppressed"]
        name = _variable(study, share["finding"], findings)
        lines.append((name, [_count(empty.sum(), gone), _count(patients, gone), _share_cell(share)]))
    head = ["", "images\nwithout", "patients with\nsuch an image", "share of images\n(interval)"]
    n = _n(len(table), "images", study.gone(ALL)[-1]) + " of " + _n(study.patients, "patients", study.gone(ALL)[-1])
    part.tables.append(_table(f"Not recorded, or not mentioned, of {n}", head, lines))
    if by != ALL:
        columns = [c for c in columns if c.removeprefix(cohort.FINDING) in hidden]
        shares = _shares(whole, by, columns, hidden)
        part.rows += _missing_rows(whole, by, shares)
        made = _share_table(whole, by, "", shares, everybody, "images without it")
        made["lines"] = [(_variable(study, name, findings), cells) for name, cells in made["lines"]]
        part.tables.append(made)
    return part


def _missing_rows(study: _Study, attribute: str, shares: pd.DataFrame) -> list[dict]:
    """Rows on shares, and beside each on the images and patients that it is of."""
    rows = _share_rows("missingness", attribute, shares)
    names, group = study.groups[attribute]
    for s in shares.to_dict("records"):
        here = (study.table[cohort.FINDING + s["finding"]] == 1).to_numpy() & (group == names.index(s["group"]))
        n = {"n_images": int(here.sum()), "n_patients": len(np.unique(study.patient[here]))}
        for unit in ("images", "patients"):
            what = f"{s['finding']}: {unit} missing"
            rows.append(
                _row("missingness", attribute, s["group"], what, n[f"n_{unit}"], suppressed=s["suppressed"], **n)
            )
    return rows


def _variable(study: _Study, name: str, findings: Mapping) -> str:
    return f"{name}, not mentioned" if name in findings else study.name_of(name)


def _categories(table: pd.DataFrame) -> list[str]:
    """Text columns of few values that identify nobody. A release's own words on race stay in the workdir."""
    found = []
    for column in table.columns:
        words = re.split(r"[_\W]+", column.lower())
        raw = column != "race" and any(w.startswith(("race", "ethnic")) for w in words)
        if column in NOT_CATEGORIES or raw or column.startswith(cohort.FINDING) or words[-1] in ("id", "path", "file"):
            continue
        if not pd.api.types.is_numeric_dtype(table[column]) and table[column].nunique() <= MOST_TEXT_VALUES:
            found.append(column)
    return found


def _missing_is_hidden(study: _Study, attribute: str) -> bool:
    """Whether the counts withhold how many images have none of an attribute."""
    if attribute not in study.counted or MISSING not in study.counted[attribute].groups:
        return bool(study.gone(ALL)[-1])
    counts = study.counted[attribute]
    return bool(counts.hidden[counts.groups.index(MISSING), -1])


def _empty(column: pd.Series) -> np.ndarray:
    """Where nothing is recorded: bool [n]."""
    empty = column.isna().to_numpy()
    return empty if pd.api.types.is_numeric_dtype(column) else empty | (column.to_numpy(object) == "")


# ------------------------------------------------------------------------------------------------- differences


@dataclasses.dataclass(frozen=True)
class _Covariate:
    """What groups are compared in, one value a patient at the first image, or ever.

    values: float [patients] of a quantity, or category numbers; NaN or -1 where unknown. categories: how many, 0 for a
    quantity. hidden: groups, last everybody, whose values must not show; no_n: whose number of known values must not.
    """

    name: str
    values: np.ndarray
    categories: int
    hidden: np.ndarray
    no_n: np.ndarray

    @property
    def known(self) -> np.ndarray:
        return self.values >= 0 if self.categories else np.isfinite(self.values)


def _covariates(study: _Study, attribute: str, found: _Part) -> list[_Covariate]:
    table, made = study.table, []
    if "age_band" in study.counted and "age" in table:
        age = table["age"].to_numpy(np.float64, na_value=np.nan)
        made.append(_Covariate("age", age[study.first], 0, *_hidden_ages(study, attribute, age)))
    for name in ("sex", "view"):
        if name == attribute or name not in study.counted:
            continue
        names, group = study.groups[name]
        category = np.where(_empty(table[name]), -1, group)[study.first]
        category, kept = _pooled(category, [n for n in names if n != MISSING])
        called = f"{name} ({', '.join(kept)})" if kept else name
        hidden = _hidden_categories(study, attribute, category)
        no_n = _hidden_numbers(study, attribute, name)
        made.append(_Covariate(called, category, max(len(kept), 1), hidden, hidden | no_n))
    for (name, by), hidden in found.hidden["positive"].items():
        if by == attribute:
            ever = np.zeros(study.patients, int)
            ever[study.patient[(table[cohort.FINDING + name] == 1).to_numpy()]] = 1
            if table[cohort.FINDING + name].notna().any():
                made.append(_Covariate(name, ever, 2, hidden, hidden | study.unsteady(attribute)))
    return made


def _pooled(category: np.ndarray, names: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Categories, int [patients], with the rare ones as one, last; and their names."""
    share = np.bincount(category[category >= 0], minlength=len(names)) / max((category >= 0).sum(), 1)
    common = np.flatnonzero(share >= RARE)
    to = np.full(len(names) + 1, len(common))
    to[common] = np.arange(len(common))
    to[-1] = -1
    rare = ["other"] if ((share > 0) & (share < RARE)).any() else []
    return to[category], [names[i] for i in common] + rare


def standardised(a: np.ndarray, b: np.ndarray, categories: int, level: float) -> tuple[float, float, float]:
    """Standardised difference of two samples and its interval: (d, low, high), NaN where undefined.

    a, b: values of a quantity, float [k], or category numbers below `categories`, int [k], which is 0 for a quantity.

    A quantity: difference of means by the root of the mean of both variances. Two categories: the same for the share of
    the second, whose variance is p(1-p) (Austin, Statistics in Medicine 28:3083, 2009). More: Mahalanobis' distance of
    the shares, all but one, under the mean of both multinomial covariances; it has no sign (Yang and Dalton, SAS Global
    Forum, paper 335-2012). Undefined where neither sample varies.

    Intervals hold for large samples. One dimension: d ± z·sqrt((m+n)/(mn) + d²/(2(m+n))) (Hedges and Olkin,
    Statistical Methods for Meta-Analysis, 1985). Several: mn/(m+n)·d² is taken for a noncentral chi-squared of as many
    degrees of freedom, and its noncentrality bounded by inversion (Steiger and Fouladi, in What If There Were No
    Significance Tests?, 1997); where chance alone would often give as much, the interval begins at 0.
    """
    m, n = len(a), len(b)
    none = np.nan, np.nan, np.nan
    if not m or not n:
        return none
    if categories > 2:
        shares = np.array([np.bincount(x, minlength=categories) / len(x) for x in (a, b)])
        shares = shares[:, shares.any(axis=0)]
        if shares.shape[1] > 2:
            return _distance(shares, m, n, level)
        # All patients are of two categories, or of one.
        p, q = shares[:, -1]
        several = shares.shape[1]
    elif categories:
        p, q, several = (a == 1).mean(), (b == 1).mean(), categories
    if categories:
        if several < 2:
            return none
        difference, variances = p - q, [p * (1 - p), q * (1 - q)]
    else:
        if m < 2 or n < 2:
            return none
        difference, variances = a.mean() - b.mean(), [a.var(ddof=1), b.var(ddof=1)]
    spread = np.sqrt(np.mean(variances))
    if spread <= 0:
        return none
    d = difference / spread
    half = stats.norm.ppf(0.5 + level / 2) * np.sqrt((m + n) / (m * n) + d**2 / (2 * (m + n)))
    return float(d), float(d - half), float(d + half)


def _distance(shares: np.ndarray, m: int, n: int, level: float) -> tuple[float, float, float]:
    """`standardised` of shares [2, categories], three or more, of m and n patients."""
    free = shares[:, :-1]
    covariance = np.mean([np.diag(p) - np.outer(p, p) for p in free], axis=0)
    apart = free[0] - free[1]
    degrees = len(apart)
    if np.linalg.matrix_rank(covariance) < degrees:
        return np.nan, np.nan, np.nan
    squared = float(apart @ np.linalg.solve(covariance, apart))
    scale = m * n / (m + n)
    found = squared * scale

    def bound(tail: float) -> float:
        if stats.chi2.cdf(found, degrees) <= tail:
            return 0.0
        above = found + 12 * np.sqrt(found + degrees) + 60  # of a noncentrality this far off, `found` has no chance
        return float(optimize.brentq(lambda nc: stats.ncx2.cdf(found, degrees, nc) - tail, 1e-9, above))

    low, high = (np.sqrt(bound(tail) / scale) for tail in (0.5 + level / 2, 0.5 - level / 2))
    return float(np.sqrt(squared)), float(low), float(high)


def _differences(study: _Study, found: _Part) -> _Part:
    part = _Part(hidden={"largest": []})
    for attribute in ("race", "sex"):
        if attribute not in study.counted:
            part.said.append(f"By {study.name_of(attribute)} nothing can be compared: nobody's is recorded.")
            continue
        names, group = study.groups[attribute][0], study.at_first(attribute)
        if attribute == "sex":
            if not {"F", "M"} <= set(names):
                part.said.append("Sexes cannot be compared: F and M are not both recorded.")
                continue
            pairs = [("F", "M", group == names.index("F"), group == names.index("M"))]
        else:
            if len(names) < 2:
                part.said.append(f"By {study.name_of(attribute)} nothing can be compared: there is one group alone.")
                continue
            pairs = [(g, "all others", group == i, group != i) for i, g in enumerate(names)]
        measured = []
        for covariate in _covariates(study, attribute, found):
            for one, other, these, those in pairs:
                measured.append(_difference(study, attribute, covariate, one, other, these, those))
        part.rows += [row for row, _ in measured]
        drawn = pd.DataFrame([shown for _, shown in measured])
        if not len(drawn):
            continue
        called = study.name_of(attribute)
        cells = {(d["covariate"], d["group"]): d["cell"] for d in drawn.to_dict("records")}
        ones = audit_rows.in_order(drawn["group"])
        lines = [(c, [cells[c, g] for g in ones]) for c in audit_rows.in_order(drawn["covariate"])]
        if drawn["suppressed"].all():
            why = f"since fewer than {study.least} patients are behind it, or would follow from it"
            part.said.append(f"By {called} every standardised difference is withheld, {why}.")
            continue
        heads = _columns(study, attribute, "patients")
        heads = [heads[names.index(g)] for g in (("F", "M") if attribute == "sex" else ones)]
        if attribute == "sex":
            sizes = [head.split("\n")[1].removesuffix(" patients") for head in heads]
            heads = [f"F less M\n{' and '.join(sizes)} patients"]
        against = "M" if attribute == "sex" else "everybody else"
        part.draw(figures.differences(drawn, against, called, study.least, study.level))
        caption = "F less M" if attribute == "sex" else f"By {called}, each group less everybody else"
        caption += f": standardised difference ({audit_rows.percent(study.level)} interval)"
        part.tables.append(_table(caption, ["", *heads], lines))
        for d in drawn.to_dict("records"):
            if np.isfinite(d["value"]):
                part.hidden["largest"].append({**d, "attribute": attribute})
    part.hidden["largest"].sort(key=lambda d: -abs(d["value"]))
    return part


def _difference(
    study: _Study, attribute: str, covariate: _Covariate, one: str, other: str, these: np.ndarray, those: np.ndarray
) -> tuple[dict, dict]:
    """A row of cohort.csv, and the same for the page. these, those: bool [patients]."""
    names = study.groups[attribute][0]
    sides = [names.index(one)] + ([names.index(other)] if other in names else [])
    a, b = (covariate.values[who & covariate.known] for who in (these, those))
    note = ""
    hidden = bool(covariate.hidden[sides].any()) or 0 < len(a) < study.least or 0 < len(b) < study.least
    if covariate.categories and not hidden:
        counted = [np.bincount(x, minlength=covariate.categories) for x in (a, b)]
        hidden = bool(_few(np.array(counted), study.least).any())
    value, low, high = (np.nan,) * 3 if hidden else standardised(a, b, covariate.categories, study.level)
    no_n = bool(covariate.no_n[sides].any())
    if hidden:
        note = f"fewer than {study.least} patients are behind it, or would follow from it"
    elif np.isnan(value):
        note = "undefined: nobody's is known, or all are alike"
    elif no_n:
        low, high, note = np.nan, np.nan, "no n and no interval: they would tell how many values are missing"
    elif not covariate.no_n[-1] and not study.gone(attribute)[-1]:
        note = f"against {len(b):,} patients ({'sex ' if other == 'M' else ''}{other})"
    value, low, high = (round(float(x), 3) for x in (value, low, high))
    n = np.nan if no_n or hidden else len(a)
    row = _row(
        "differences", attribute, one, covariate.name, value, low=low, high=high, n_patients=n, suppressed=hidden,
        note=note,
    )  # fmt: skip
    cell = WITHHELD if hidden else _number(value, low, high)
    cell += " no interval" if np.isfinite(value) and np.isnan(low) else ""
    told = {"covariate": covariate.name, "group": one, "value": value, "low": low, "high": high, "n_patients": n}
    return row, told | {"suppressed": hidden, "cell": cell, "against": len(b)}


# ------------------------------------------------------------------------------------------------- the release


def _release(dataset: Mapping, least: int, flow: _Part) -> _Part:
    """What was found in the release against what is published of it.

    Of data that are not open, counts of few are withheld, and so is any from which, with others shown, such a count
    would follow; which counts add up to which is not known here, so every sum that happens to fit counts.
    """
    part = _Part()
    if "integrity" not in dataset or not dataset["integrity"]:
        return part
    integrity = dataset["integrity"]
    counts = [(c["count"], c["expected"], c["found"]) for c in integrity["counts"]]
    counts += [(f"stored images, {split}", None, n) for split, n in integrity.get("stored", {}).items()]
    quarantined = integrity.get("quarantined", {})
    counts += [(f"images in quarantine: {reason}", None, n) for reason, n in quarantined.items()]
    if quarantined:
        counts.append(("images in quarantine", None, sum(quarantined.values())))
    found = [n for *_, n in counts]
    hidden = [False] * len(found) if dataset["open_data"] else _hidden_sums(found, least)
    told = {int(n) for n in flow.hidden["start"]}
    hidden = [h or n in told for h, n in zip(hidden, found, strict=True)]
    lines = []
    for (name, expected, n), gone in zip(counts, hidden, strict=True):
        published = UNDEFINED if expected is None else f"{expected:,}"
        apart = UNDEFINED if expected is None else WITHHELD
        if expected is not None and not gone:
            apart = f"{n - expected:+,}".replace("-", "\N{MINUS SIGN}") if n != expected else "0"
        lines.append((name, [published, _few_or_more(n, gone, least), apart]))
        note = "nothing is published" if expected is None else f"published: {expected}"
        # The published number is the publisher's; ours is empty where it is withheld.
        part.rows.append(_row("release", ALL, ALL, name, n, suppressed=gone, note=note))
    part.tables.append(_table("", ["count", "published", "found", "difference"], lines))
    complete = "The release is complete." if integrity.get("complete") else "The release is not the complete one."
    part.said.append(complete if "complete" in integrity else "")
    if dataset["open_data"]:
        part.said += list(integrity.get("statements", ()))
    elif integrity.get("statements"):
        part.said.append("What else was noticed names single files, and so stays in the record of the run.")
    return part


def _few_or_more(n: int, hidden: bool, least: int) -> str:
    """A count that stands alone: what is withheld for its smallness may be called small."""
    if not hidden:
        return f"{n:,}"
    return f"<{least}" if 0 < n < least else WITHHELD


def _hidden_sums(counts: Sequence[int], least: int, parts: int = 3) -> list[bool]:
    """Which counts to withhold, so that none of 1 to `least` - 1 is a shown one less up to `parts` others: bools."""
    hidden = [0 < n < least for n in counts]
    secret = {n for n, gone in zip(counts, hidden, strict=True) if gone}
    while True:
        shown = [i for i, gone in enumerate(hidden) if not gone and counts[i] >= least]
        sums = {}
        for size in range(1, parts + 1):
            for chosen in itertools.combinations(shown, size):
                sums.setdefault(sum(counts[i] for i in chosen), chosen)
        hit = next(
            (sums[counts[i] - few] for i in shown for few in secret
             if counts[i] - few in sums and i not in sums[counts[i] - few]), None,
        )  # fmt: skip
        if hit is None:
            return hidden
        hidden[min(hit, key=lambda i: counts[i])] = True


# ------------------------------------------------------------------------------------------------- in words


def _in_words(study: _Study, attrition: Sequence[Mapping], dataset: Mapping, apart: _Part) -> list[str]:
    steps = [step["rule"] for step in attrition if not step["rule"].startswith(OF_WHICH)]
    gone = study.gone(ALL)[-1]
    n = f"{_count(len(study.table), gone)} images of {_count(study.patients, gone)} patients"
    rules = f" after {len(steps) - 1} {'rule' if len(steps) == 2 else 'rules'} ({'; '.join(steps[1:])})"
    rules = rules if len(steps) > 1 else ", which no rule narrows"
    said = [f"The cohort is {n} of the data set {_called(dataset)}{rules}."]
    if "race" not in study.counted:
        said.append("No race is recorded, so nothing here is told by race.")
    else:
        counts, name = study.counted["race"], "group" if study.invented else "race"
        place = counts.groups.index(MISSING) if MISSING in counts.groups else None
        if place is not None and (counts.hidden[place, -1] or study.unsteady("race").any()):
            said.append(f"Of how many patients the {name} is recorded is withheld, lest fewer than {study.least} show.")
        else:
            names, group = study.groups["race"][0], study.at_first("race")
            known = study.patients - (int((group == names.index(MISSING)).sum()) if MISSING in names else 0)
            share = known / study.patients
            ends = wilson(share, study.patients, study.level)
            said.append(
                f"Of {known:,} of {study.patients:,} patients the {name} is recorded: {_percent(share)}"
                f" ({audit_rows.percent(study.level)} interval {ends[0] * 100:.1f} to {ends[1] * 100:.1f})."
            )
    # Those with n and interval first: what has none says less.
    top = sorted(apart.hidden["largest"], key=lambda d: np.isnan(d["low"]))[:3]
    if top:
        said.append("The largest standardised differences that can be shown: " + "; ".join(map(_apart, top)) + ".")
    else:
        said.append("There is no standardised difference between groups that can be shown.")
    return said


def _apart(d: Mapping) -> str:
    if d["attribute"] == "sex":
        who = "F against M"
    else:
        who = f"{audit_rows.group_name(d['group'])} against everybody else"
    n = f"n = {int(d['n_patients']):,} and {d['against']:,} patients" if np.isfinite(d["low"]) else "n withheld"
    return f"{d['covariate']}, {who}, {_number(d['value'], d['low'], d['high'])}, {n}"


def _called(dataset: Mapping) -> str:
    return " ".join(str(dataset[k]) for k in ("name", "variant", "version") if k in dataset and dataset[k])


# ------------------------------------------------------------------------------------------------- the page


def _source(name: str) -> str:
    return importlib.resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _style() -> str:
    """The report's own, so that the two pages look alike."""
    return re.search(r"<style>\n(.*?)</style>", _source("report.html.jinja"), re.DOTALL)[1]


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["data_uri"] = lambda svg: "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
    return environment.from_string(_source("demographics.html.jinja"))
