"""Who is in a cohort: one page and one table, small cells withheld, of any data set.

    write(folder, table, attrition, dataset, settings, races) -> path of cohort.html, with cohort.csv beside it
    read(path) -> the rows of a cohort.csv; what other pages say of a cohort they take from there

What may be shown, and what must not be for the sake of it, is `report.cohort`'s to say. A cell's withholding says
nothing of its size: one word stands for small cells and for those that go with them, since to know which is which
narrows down both.

The patient is the unit: shares of images have intervals over patients, and ages and standardised differences take one
value a patient, at the first image (lowest age, then first in the table); a patient has a finding if any image has it.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import pandas as pd

from cxr_jax import tables
from cxr_jax.audit import description
from cxr_jax.audit.intervals import wilson
from cxr_jax.audit.subgroups import ALL, MISSING
from cxr_jax.report import cohort, figures, page
from cxr_jax.report import rows as audit_rows
from cxr_jax.report.cohort import EVERYBODY, STATES, Study, key

COLUMNS = (
    "section", "attribute", "group", "split", "what", "value", "low", "high", "n_images", "n_patients", "suppressed",
    "note",
)  # fmt: skip
NUMBERS = ("value", "low", "high", "n_images", "n_patients")
TEXTS = ("section", "attribute", "group", "split", "what", "note")
AT_FIRST = "patients at the first image"  # what is counted where images of a patient differ
FEWEST = 5  # times `least`: of fewer patients a median would be one patient's age
WITHHELD, UNDEFINED = "withheld", "\N{EN DASH}"


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
    settings: the config's `audit` section: attributes, age_bands (lower edges, years), level, min_patients.
    races: groups of race to list first. stem: of the files' names.

    The page needs nothing from anywhere else, and the same input gives the same bytes. Raises UserError for a table
    that `tables.check_keys` refuses, ValueError for an attrition whose numbers do not follow from one another.
    """
    folder = pathlib.Path(folder)
    tables.check_keys(table, "cohort")
    study = Study(table, settings, bool(dataset["invented_groups"]), races, attrition)
    apart = _differences(study)
    parts = {
        "release": _release(dataset),
        "flow": _flow(study),
        "counted": _counts(study),
        "found": _findings(study),
        "ages": _ages(study),
        "shares": _prevalence(study),
        "missing": _missing(study),
        "apart": apart,
    }
    made = page.render(
        "demographics.html.jinja",
        title=f"The cohort drawn from {page.called(dataset)}",
        table_name=f"{stem}.csv",
        invented=study.invented,
        words=_in_words(study, dataset, apart),
        least=study.least,
        level=study.level,
        **parts,
    )
    with tables.whole_file(folder / f"{stem}.csv") as path:
        rows = [row for part in parts.values() for row in part.rows]
        _quoted(pd.DataFrame(rows, columns=list(COLUMNS))).to_csv(path, index=False)
    tables.write_text(folder / f"{stem}.html", made)
    return folder / f"{stem}.html"


def read(path: os.PathLike | str) -> pd.DataFrame:
    """The rows of a `cohort.csv`: numbers float64, NaN where there is none, suppressed bool, the rest text.

    Raises UserError for a file that is missing or not ours.
    """
    if not pathlib.Path(path).exists():
        raise tables.UserError(f"{path}: no such file; run the prepare stage again")
    rows = pd.read_csv(path, keep_default_na=False, na_values={name: [""] for name in NUMBERS})
    if list(rows.columns) != list(COLUMNS):
        raise tables.UserError(f"{path}: not the columns of a cohort's table; run the prepare stage again")
    return _unquoted(rows.assign(suppressed=rows["suppressed"].astype(bool)))


# The table is made to be handed on, and opened in a spreadsheet, which runs a cell that begins so. Names in it are those of the data
# and of their findings, which anybody may have chosen. An apostrophe before such a cell has it taken for text.
_RUN = re.compile(r"'*[=+\-@\t\r]")


def _quoted(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(**{name: [f"'{cell}" if _RUN.match(cell) else cell for cell in rows[name]] for name in TEXTS})


def _unquoted(rows: pd.DataFrame) -> pd.DataFrame:
    """The inverse of `_quoted`."""
    return rows.assign(**{name: [cell[1:] if cell.startswith("'") and _RUN.match(cell) else cell for cell in rows[name].astype("str")] for name in TEXTS})


def attrition(rows: pd.DataFrame) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """What the rules left, as text: the groups of race, and of each rule, in order, its cells.

    rows: as `read` gives them. Cells are images and patients of everybody, then the images of each group; those of a
    split ("of which in …") are of everybody alone.
    """
    rows = rows[(rows["section"] == "attrition") & rows["what"].isin(["images left", "patients left"])]
    groups = [group for group in dict.fromkeys(rows["group"]) if group != ALL]
    told: dict[str, dict] = {}
    for row in rows.itertuples():
        told.setdefault(row.note, {})[row.group, row.what] = _count(row.value, row.suppressed)
    columns = [(ALL, "images left"), (ALL, "patients left"), *((group, "images left") for group in groups)]
    return groups, [(rule, [cells.get(column, "") for column in columns]) for rule, cells in told.items()]


def attrition_text(rows: pd.DataFrame) -> str:
    """The same as a table for a terminal, images by group as wide as their names."""
    groups, rules = attrition(rows)
    body = [("", ["images", "patients", *map(audit_rows.group_name, groups)]), *rules]
    widths = [max(len(cells[i]) for _, cells in body) for i in range(len(groups) + 2)]
    first = max(len(rule) for rule, _ in body)
    lines = (f"  {rule:{first}}  " + "  ".join(f"{c:>{w}}" for c, w in zip(cells, widths)) for rule, cells in body)
    return page.for_terminal("\n".join(line.rstrip() for line in lines))


# ------------------------------------------------------------------------------------------------- rows and cells


@dataclasses.dataclass
class _Part:
    """A section: rows of cohort.csv, tables and figures of the page, and sentences."""

    rows: list[dict] = dataclasses.field(default_factory=list)
    tables: list[dict] = dataclasses.field(default_factory=list)
    drawn: list[figures.Drawing] = dataclasses.field(default_factory=list)
    said: list[str] = dataclasses.field(default_factory=list)

    def draw(self, drawing: figures.Drawing | None) -> None:
        if drawing is not None:
            self.drawn.append(drawing)


def _row(section: str, attribute: str, group: str, what: str, value: float = np.nan, **more) -> dict:
    """A row of cohort.csv. Where it is suppressed its numbers are empty, whatever was passed."""
    row = dict.fromkeys(NUMBERS, np.nan) | {"split": ALL, "suppressed": False, "note": "", "value": value}
    row |= {"section": section, "attribute": attribute, "group": group, "what": what, **more}
    row["suppressed"] = bool(row["suppressed"])
    if row["suppressed"]:
        row |= dict.fromkeys(NUMBERS, np.nan)
    # Counts in a column with empty cells would be written as 12.0.
    counted = {k: "" if np.isnan(row[k]) else int(row[k]) for k in ("n_images", "n_patients")}
    return row | counted | {k: "" if not np.isfinite(row[k]) else row[k] for k in ("value", "low", "high")}


def _count(number: float, hidden: bool = False) -> str:
    return WITHHELD if hidden else f"{int(number):,}" if np.isfinite(number) else UNDEFINED


def _with_ends(value: float, low: float, high: float, write) -> list[str]:
    """A value and, on a line of its own, its interval; a dash for NaN."""
    if not np.isfinite(value):
        return [UNDEFINED]
    return [write(value), f"{write(low)} to {write(high)}"] if np.isfinite(low) else [write(value), "no interval"]


def _percent(value: float) -> str:
    return f"{value * 100:.1f}\N{NO-BREAK SPACE}%"


def _columns(study: Study, attribute: str, unit: str) -> list[str]:
    """Heads for the groups of an attribute, each with its n, and for everybody. unit: images or patients."""
    everybody = f"everybody\n{_n(study, unit, ALL, ALL)}"
    names = study.of(attribute).names if attribute != ALL else []
    return [*(f"{audit_rows.group_name(g)}\n{_n(study, unit, attribute, g)}" for g in names), everybody]


def _n(study: Study, unit: str, attribute: str, group: str) -> str:
    """`1,234 patients` of a group, at their first image, or `1,234 images`."""
    groups = study.at_first(attribute) if unit == "patients" else study.of(attribute)
    at = 0 if group == ALL else groups.names.index(group)
    n = len(groups.code) if group == ALL else int((groups.code == at).sum())
    return f"{unit} {WITHHELD}" if study.hides(key(**{groups.of: group})) else f"{n:,} {unit}"


# ------------------------------------------------------------------------------------------------- counts


def _counts(study: Study) -> _Part:
    part, every = _Part(), []
    for attribute in study.groups:
        counts = study.counts(attribute)
        every.append(counts)
        unit = "patients" if study.at_first(attribute).of == attribute else AT_FIRST
        lines = []
        for i, group in enumerate([*counts.groups, ALL]):
            cells = []
            for j, split in enumerate([*counts.splits, ALL]):
                images, few_images = counts.images[i, j], counts.hidden_images[i, j]
                patients, few_patients = counts.patients[i, j], counts.hidden_patients[i, j]
                told = f"{_count(patients, few_patients)} / {_count(images, few_images)}"
                cells.append(WITHHELD if few_images and few_patients else told)
                more = {"split": split, "n_images": images, "suppressed": few_images}
                part.rows.append(_row("counts", attribute, group, "images", images, **more))
                more = {"split": split, "n_patients": patients, "suppressed": few_patients}
                part.rows.append(_row("counts", attribute, group, unit, patients, **more))
            lines.append(("everybody" if group == ALL else audit_rows.group_name(group), cells))
        name = study.name_of(attribute)
        part.tables.append(page.table(f"By {name}: {unit} / images", [name, *counts.splits, "all"], lines))
        small = [group for group, members in study.members[attribute].items() if len(members) > 1]
        if small:
            told = "; ".join(small)
            part.said.append(f"By {name}, groups of fewer than {study.least} patients are counted with another: {told}.")
    for attribute in study.attributes:
        if attribute in study.crowded:
            values = study.crowded[attribute]
            note = f"{values} different values, more than {cohort.MOST_GROUPS}: left out of the table by split"
            part.rows.append(_row("counts", attribute, ALL, "distinct values", values, note=note))
            part.said.append(f"{study.name_of(attribute).capitalize()} has {note}.")
        elif attribute not in study.groups:
            note = "nobody's is recorded"
            part.rows.append(_row("counts", attribute, ALL, "images", note=note))
            part.said.append(f"By {study.name_of(attribute)} there is no table: {note}.")
    part.draw(figures.counts(every, study.name_of) if every else None)
    return part


# ------------------------------------------------------------------------------------------------- who is left


def _flow(study: Study) -> _Part:
    """What each rule removes and leaves, overall and by race; patients are removed when no image is left."""
    part, flow = _Part(), study.flow
    removed = {"images": flow.removed_images, "patients": flow.removed_patients}
    left = {"images": flow.images, "patients": flow.patients}
    groups = [*flow.groups, ALL]
    for t, rule in enumerate(flow.rules):
        for i, group in enumerate(groups):
            for unit in ("images", "patients"):
                for what, numbers, hidden in (
                    ("removed", removed[unit], flow.hidden_removed), ("left", left[unit], flow.hidden_left),
                ):  # fmt: skip
                    more = {f"n_{unit}": numbers[i, t], "suppressed": hidden[i, t], "note": rule}
                    part.rows.append(_row("attrition", "race", group, f"{unit} {what}", numbers[i, t], **more))

    def cells(unit: str, i: int, t: int) -> list[str]:
        gone = _count(removed[unit][i, t], flow.hidden_removed[i, t]) if t else ""
        return [gone, _count(left[unit][i, t], flow.hidden_left[i, t])]

    last = len(groups) - 1
    lines = [(rule, [*cells("images", last, t), *cells("patients", last, t)]) for t, rule in enumerate(flow.rules)]
    for split in study.splits:
        hidden, rule = study.hides(key(split=split)), f"{cohort.OF_WHICH}in {split}"
        here = (study.table["split"] == split).to_numpy()
        n = {"images": int(here.sum()), "patients": len(np.unique(study.patient[here]))}
        lines.append((rule, ["", _count(n["images"], hidden), "", _count(n["patients"], hidden)]))
        for unit, number in n.items():
            more = {f"n_{unit}": number, "suppressed": hidden, "note": rule}
            part.rows.append(_row("attrition", "race", ALL, f"{unit} left", number, **more))
    head = ["rule", "images\nremoved", "images\nleft", "patients\nremoved", "patients\nleft"]
    part.tables.append(page.table("Rules in their order; a patient is removed when no image is left", head, lines))
    for unit in ("images", "patients") if flow.groups else ():
        lines = []
        for t, rule in enumerate(flow.rules):
            told = [cells(unit, i, t) for i in range(len(groups))]
            lines.append((rule, [[kept, _less(gone)] if t else kept for gone, kept in told]))
        names = [*map(audit_rows.group_name, flow.groups), "everybody"]
        name = study.name_of("race")
        caption = f"By {name}: {unit} left, and below how many the rule has removed"
        part.tables.append(page.table(caption, ["rule", *names], lines))
    return part


def _less(gone: str) -> str:
    return gone if gone in (WITHHELD, "0") else f"\N{MINUS SIGN}{gone}"


# ------------------------------------------------------------------------------------------------- findings


def _findings(study: Study) -> _Part:
    """States of each finding of everybody, and positive ones by split."""
    part, lines = _Part(), []
    split = study.table["split"].to_numpy(object)
    for name, state in study.states.items():
        cells = []
        for k, what in enumerate(STATES):
            hidden = study.hides(key(**{name: what}))
            cells.append(_finding_cell(part, name, state == k, ALL, f"images {what}", hidden))
        ever = study.ever(name)
        n, hidden = int((ever.code == 0).sum()), study.hides(key(**{ever.of: "ever"}))
        part.rows.append(_row("findings", name, ALL, "patients positive", n, n_patients=n, suppressed=hidden))
        cells.append(_count(n, hidden))
        for one in study.splits:
            hidden = study.hides(key(**{name: "positive", "split": one}))
            here = (state == 0) & (split == one)
            cells.append(_finding_cell(part, name, here, one, "images positive", hidden))
        lines.append((name, cells))
    if lines:
        head = ["finding", *(f"images\n{state}" for state in STATES), "patients\never positive"]
        head += [f"positive\nin {one}" for one in study.splits]
        part.tables.append(page.table("Findings as released: images, and patients who have one in any image", head, lines))
    return part


def _finding_cell(part: _Part, name: str, here: np.ndarray, split: str, what: str, hidden: bool) -> str:
    n = int(here.sum())
    more = {"n_images": n, "split": split, "suppressed": hidden}
    part.rows.append(_row("findings", name, ALL, what, n, **more))
    return _count(n, hidden)


def _prevalence(study: Study) -> _Part:
    part = _Part()
    named = [f for f, state in study.states.items() if (state != STATES.index("not mentioned")).any()]
    if not named:
        part.said.append("The data set has no findings, or none is mentioned in any image.")
        return part
    has = {f: study.states[f] == 0 for f in named}
    values = ("positive", "not positive")
    everybody = _shares(study, ALL, has, values)
    for attribute in (a for a in ("race", "sex", "age_band") if a in study.groups):
        shares = _shares(study, attribute, has, values)
        part.rows += _share_rows("prevalence", attribute, shares)
        part.tables.append(_share_table(study, attribute, "finding", shares, everybody, "percentage of images positive"))
        part.draw(figures.prevalence(shares, study.name_of(attribute), study.least, study.level))
    if not part.tables:
        part.tables.append(_share_table(study, ALL, "finding", everybody, everybody, "percentage of images positive"))
    part.rows += _share_rows("prevalence", ALL, everybody)
    return part


def _shares(study: Study, attribute: str, has: Mapping[str, np.ndarray], values: tuple[str, str]) -> pd.DataFrame:
    """Share of each group's images that have something, bool [n] by name, with an interval over patients.

    values: what the cells of those that do and do not are called. Columns: what, group, value, low, high, n_images,
    n_patients (NaN where patients may be in several groups), with_images (that have it), suppressed.
    """
    made = []
    groups = study.of(attribute)
    steady = study.at_first(attribute).of == attribute
    for name, mask in has.items():
        for i, group in enumerate(groups.names):
            here = groups.code == i
            y, m = description.by_patient(mask[here], study.patient[here])
            value, low, high = description.share(y, m, study.level)
            cells = [key(**{name: value, attribute: group}) for value in values]
            row = {"what": name, "group": group, "value": value, "low": low, "high": high}
            row |= {"n_images": int(m.sum()), "n_patients": len(m) if steady else np.nan, "with_images": int(y.sum())}
            # From a share and the group's size anybody has the number with and the number without.
            made.append(row | {"suppressed": study.hides(key(**{attribute: group}), *cells)})
    shares = pd.DataFrame(made)
    shares.loc[shares["suppressed"], ["value", "low", "high"]] = np.nan
    return shares


def _share_rows(section: str, attribute: str, shares: pd.DataFrame) -> list[dict]:
    rows = []
    for s in shares.to_dict("records"):
        note = "one patient alone has no interval" if np.isfinite(s["value"]) and np.isnan(s["low"]) else ""
        values = {k: round(float(s[k]), 4) for k in ("value", "low", "high")}
        values |= {k: s[k] for k in ("n_images", "n_patients", "suppressed")}
        rows.append(_row(section, attribute, s["group"], s["what"], note=note, **values))
    return rows


def _share_table(
    study: Study, attribute: str, first: str, shares: pd.DataFrame, everybody: pd.DataFrame, what: str
) -> dict:
    names = study.of(attribute).names if attribute != ALL else []
    cell = {(s["what"], s["group"]): _share_cell(s) for s in [*shares.to_dict("records"), *everybody.to_dict("records")]}
    whats = [w for w in audit_rows.in_order(everybody["what"]) if w in set(shares["what"])]
    lines = [(_variable(study, w), [cell[w, g] for g in [*names, ALL]]) for w in whats]
    caption = f"By {study.name_of(attribute)}" if attribute != ALL else "Everybody"
    caption += f": {what}, {audit_rows.percent(study.level)} interval"
    return page.table(caption, [first, *_columns(study, attribute, "images")], lines)


def _share_cell(share: Mapping) -> list[str]:
    if share["suppressed"]:
        return [WITHHELD]
    percents = [share[k] * 100 for k in ("value", "low", "high")]
    return _with_ends(*percents, lambda x: f"{x:.1f}")


# ------------------------------------------------------------------------------------------------- ages


def _ages(study: Study) -> _Part:
    part, age = _Part(), study.age[study.first]
    if not np.isfinite(age).any():
        part.said.append("No age is recorded.")
        part.rows.append(_row("age", ALL, ALL, "mean", note="no age is recorded"))
        return part
    head = ["patients", "mean, interval", "SD", "median", "quartiles", "note"]
    everybody = _age_line(study, ALL, ALL, age)
    for attribute in (a for a in ("race", "sex") if a in study.groups):
        groups = study.at_first(attribute)
        told = [_age_line(study, attribute, g, age[groups.code == i]) for i, g in enumerate(groups.names)]
        name = study.name_of(attribute)
        lines = [(audit_rows.group_name(line["group"]), line["cells"]) for line in told]
        lines.append(("everybody", everybody["cells"]))
        part.rows += [row for line in told for row in line["rows"]]
        part.tables.append(page.table(f"By {name}: years, at the first image", [name, *head], lines))
        part.draw(figures.ages([line for line in told if "mean" in line], attribute, name, study.level))
    part.rows += everybody["rows"]
    if not part.tables:
        part.tables.append(page.table("Years, at the first image", ["", *head], [("everybody", everybody["cells"])]))
    return part


def _age_line(study: Study, attribute: str, group: str, ages: np.ndarray) -> dict:
    """The ages of one group's patients, float [k], NaN unknown: group, cells, rows; and figures where they are shown."""
    n = len(ages)
    ages = ages[np.isfinite(ages)]
    cell = ("ages", attribute, group) if group != ALL else ("ages", ALL)
    hidden = study.hides(cell, key(**{study.at_first(attribute).of: group}))
    told = {"group": group}
    about, note = _about(study, len(ages), n)
    if hidden:
        note = f"fewer than {study.least} patients, or such a group would follow"
    elif not len(ages):
        note = "no age is recorded"
    mean, low, high = description.mean(ages, about, study.level)
    if len(ages) and np.isnan(low) and not hidden:
        note = "one patient alone has no SD and no interval"
    many = len(ages) >= (FEWEST * study.least if study.least > 1 else 1)
    first, median, third = np.quantile(ages, [0.25, 0.5, 0.75]) if many else np.full(3, np.nan)
    if len(ages) and not many and not hidden:
        note = "; ".join(filter(None, [note, f"of fewer than {FEWEST * study.least} patients quartiles would be single ones' ages"]))
    deviation = float(np.std(ages, ddof=1)) if len(ages) > 1 else np.nan
    measured = {"mean": mean, "SD": deviation, "first quartile": first, "median": median, "third quartile": third}
    told["rows"] = [
        _row("age", attribute, group, what, round(float(value), 1), n_patients=about, suppressed=hidden,
             note=note or ("" if what == "mean" else "no interval is given for this one"),
             **({"low": round(low, 1), "high": round(high, 1)} if what == "mean" else {}))
        for what, value in measured.items()
    ]  # fmt: skip
    if hidden:
        return told | {"cells": [*[WITHHELD] * 5, note]}
    write = lambda x: audit_rows.number(x, 1) if np.isfinite(x) else UNDEFINED  # noqa: E731
    between = f"{first:.1f} to {third:.1f}" if many else UNDEFINED
    n_told = _count(n, study.hides(key(**{study.at_first(attribute).of: group})))
    told["cells"] = [n_told, _with_ends(mean, low, high, write), write(deviation), write(median), between, note]
    return told | (measured | {"low": low, "high": high, "n": n} if len(ages) else {})


def _about(study: Study, known: int, n: int) -> tuple[int, str]:
    """How many values an interval may be told to rest on, and a note.

    Where a few of n patients have none, the number of those who have one would tell how many. A multiple of `least`,
    rounded down, leaves that open and makes the interval no narrower than it should be.
    """
    if known == n or study.least == 1:
        return known, "" if known == n else f"recorded of {known:,} patients"
    rounded = known // study.least * study.least
    return rounded, f"not recorded of all; the interval is that of {rounded:,} patients"


# ------------------------------------------------------------------------------------------------- missingness


def _missing(study: Study) -> _Part:
    """Share of images without a value, by variable and race; of findings, without a mention."""
    part, by = _Part(), study.by
    absent = [v for v in ("race", "sex", "age_band", "view", "study_id") if v not in study.variables]
    part.rows += [_row("missingness", ALL, ALL, v, note="the data set has no such field") for v in absent]
    if absent:
        part.said.append(f"The data set has no field for {', '.join(map(study.name_of, absent))}.")
    lines = []
    values = {"missing": study.variables, "not mentioned": {f: s == 3 for f, s in study.states.items()}}
    whole = {}
    for word, has in values.items():
        overall = _shares(study, ALL, has, _either(word)) if has else pd.DataFrame()
        whole[word] = overall
        part.rows += _missing_rows(ALL, overall)
        for s in overall.to_dict("records"):
            n = _count(s["with_images"], s["suppressed"])
            lines.append((_variable(study, s["what"]), [n, _share_cell(s)]))
    head = ["", "images\nwithout", "% of images,\ninterval"]
    n = " of ".join(_n(study, unit, ALL, ALL) for unit in ("images", "patients"))
    part.tables.append(page.table(f"Not recorded, or of a finding not mentioned, of {n}", head, lines))
    for word, has in values.items() if by != ALL else ():
        told = {v: mask for v, mask in has.items() if v != by}
        if told:
            shares = _shares(study, by, told, _either(word))
            part.rows += _missing_rows(by, shares)
            what = "percentage of images without it" if word == "missing" else "percentage of images that do not mention it"
            part.tables.append(_share_table(study, by, "", shares, whole[word], what))
    return part


def _either(word: str) -> tuple[str, str]:
    return (word, "recorded") if word == "missing" else (word, "mentioned")


def _missing_rows(attribute: str, shares: pd.DataFrame) -> list[dict]:
    """Rows on shares, and beside each on the images that it is of."""
    rows = _share_rows("missingness", attribute, shares)
    for s in shares.to_dict("records"):
        n, what = s["with_images"], f"{s['what']}: images missing"
        rows.append(_row("missingness", attribute, s["group"], what, n, n_images=n, suppressed=s["suppressed"]))
    return rows


def _variable(study: Study, name: str) -> str:
    return name if name in study.states else study.name_of(name)


# ------------------------------------------------------------------------------------------------- differences


@dataclasses.dataclass(frozen=True)
class _Covariate:
    """What groups are compared in, one value a patient at the first image, or ever.

    values: float [patients] of a quantity, or category numbers; NaN or -1 where unknown. categories: how many, 0 for a
    quantity. cells: group, or ALL -> the cells of the ledger that a difference would tell of.
    """

    name: str
    values: np.ndarray
    categories: int
    cells: dict[str, list[Hashable]]

    @property
    def known(self) -> np.ndarray:
        return self.values >= 0 if self.categories else np.isfinite(self.values)


def _covariates(study: Study, attribute: str) -> list[_Covariate]:
    made, groups = [], study.at_first(attribute)
    names = [*groups.names, ALL]
    if np.isfinite(study.age).any():
        cells = {g: [("ages", attribute, g) if g != ALL else ("ages", ALL)] for g in names}
        made.append(_Covariate("age", study.age[study.first], 0, cells))
    for other in study.covariates(attribute):
        kept = [name for name in other.names if name != MISSING]
        to = np.array([kept.index(name) if name != MISSING else -1 for name in other.names])
        cells = {g: [key(**{other.of: name, groups.of: g}) for name in kept] for g in names}
        called = other.of.split(" ")[0].removesuffix(",")
        made.append(_Covariate(f"{called} ({', '.join(kept)})", to[other.code], max(len(kept), 1), cells))
    for finding, state in study.states.items():
        if (state != STATES.index("not mentioned")).any():
            ever = study.ever(finding)
            cells = {g: [key(**{ever.of: value, groups.of: g}) for value in ever.names] for g in names}
            made.append(_Covariate(finding, 1 - ever.code, 2, cells))
    return made


def _differences(study: Study) -> _Part:
    part = _Part()
    for attribute in ("race", "sex"):
        called = study.name_of(attribute)
        if attribute not in study.groups:
            why = "it is recorded in too many ways" if attribute in study.crowded else "nobody's is recorded"
            part.said.append(f"By {called} nothing can be compared: {why}.")
            continue
        groups = study.at_first(attribute)
        pairs = _pairs(study, attribute, groups.names)
        if not pairs:
            why = "it is not recorded as F and M" if attribute == "sex" else "there is one group alone"
            part.said.append(f"By {called} nothing can be compared: {why}.")
            continue
        drawn = [
            _difference(study, attribute, groups, covariate, one, other)
            for covariate in _covariates(study, attribute)
            for one, other in pairs
        ]
        part.rows += [d["row"] for d in drawn]
        if all(d["suppressed"] for d in drawn):
            why = f"since fewer than {study.least} patients are behind it, or would follow from it"
            part.said.append(f"By {called} every standardised difference is withheld, {why}.")
            continue
        frame = pd.DataFrame([{k: v for k, v in d.items() if k != "row"} for d in drawn])
        against = "everybody else" if attribute == "race" else pairs[0][1]
        part.draw(figures.differences(frame, against, called, study.least, study.level))
        heads = _columns(study, attribute, "patients")
        heads = [heads[groups.names.index(one)] for one, _ in pairs]
        cells = {(d["covariate"], d["group"]): d["cell"] for d in drawn}
        lines = [(c, [cells[c, one] for one, _ in pairs]) for c in audit_rows.in_order(frame["covariate"])]
        caption = "each group less everybody else" if attribute == "race" else f"{pairs[0][0]} less {pairs[0][1]}"
        caption = f"By {called}, {caption}: standardised difference, {audit_rows.percent(study.level)} interval"
        part.tables.append(page.table(caption, ["", *heads], lines))
    return part


def _pairs(study: Study, attribute: str, names: Sequence[str]) -> list[tuple[str, str]]:
    """Which groups are compared: each race with all others, F with M; few who are not recorded count with one of them."""
    if attribute == "race":
        return [(name, ALL) for name in names] if len(names) > 1 else []
    f, m = (next((g for g in names if sex in study.members["sex"][g]), None) for sex in ("F", "M"))
    return [(f, m)] if f and m and f != m else []


def _difference(
    study: Study, attribute: str, groups: cohort.Groups, covariate: _Covariate, one: str, other: str
) -> dict:
    """A row of cohort.csv, and the same for the page. other: a group, or ALL, which here means all but `one`."""
    these = groups.code == groups.names.index(one)
    those = ~these if other == ALL else groups.code == groups.names.index(other)
    sides = [key(**{groups.of: group}) for group in (one, other)]
    hidden = study.hides(*sides, *(cell for group in (one, other, ALL) for cell in covariate.cells[group]))
    a, b = (covariate.values[who & covariate.known] for who in (these, those))
    value, low, high = description.standardised(a, b, covariate.categories, study.level)
    (n, some), (m, more) = (_about(study, len(x), int(who.sum())) for x, who in ((a, these), (b, those)))
    note = f"against {m:,} patients ({'everybody else' if other == ALL else audit_rows.group_name(other)})"
    if some or more:
        note += "; an n is rounded down where it is not recorded of all" if study.least > 1 else ""
    if hidden:
        value, low, high, n, note = *[np.nan] * 4, f"fewer than {study.least} patients are behind it, or would follow from it"
    elif np.isnan(value):
        note = "undefined: nobody's is known, or all are alike"
    value, low, high = (round(float(x), 3) for x in (value, low, high))
    row = _row(
        "differences", attribute, one, covariate.name, value, low=low, high=high, n_patients=n, suppressed=hidden,
        note=note,
    )  # fmt: skip
    cell = [WITHHELD] if hidden else _with_ends(value, low, high, lambda x: audit_rows.number(x, 2))
    told = {"covariate": covariate.name, "group": one, "value": value, "low": low, "high": high, "n_patients": n}
    return told | {"suppressed": hidden, "cell": cell, "against": m, "other": other, "row": row}


# ------------------------------------------------------------------------------------------------- the release


def _release(dataset: Mapping) -> _Part:
    """What is published of the release against what was found in it.

    Of data that are not open it is said whether they agree, and no more: the release's own words and what is wrong with
    single files stay in the record of the run.
    """
    part = _Part()
    integrity = dataset["integrity"] if "integrity" in dataset else {}
    if not integrity:
        return part
    if not any(c["expected"] is not None for c in integrity["counts"]):  # a hospital's own, of which nothing is published
        part.said += list(integrity.get("statements", ())) if dataset["open_data"] else []
        return part
    complete = "The release is complete." if integrity.get("complete") else "The release is not the complete one."
    part.said.append(complete if "complete" in integrity else "")
    lines, open_data = [], dataset["open_data"]
    for c in (c for c in integrity["counts"] if c["expected"] is not None):
        name, expected, found = c["count"], c["expected"], c["found"]
        verdict = "as published" if found == expected else "differs"
        apart = f"{found - expected:,}".replace("-", "\N{MINUS SIGN}")
        lines.append((name, [f"{expected:,}", *([f"{found:,}", apart] if open_data else [verdict])]))
        value = found if open_data else np.nan
        part.rows.append(_row("release", ALL, ALL, name, value, note=f"published: {expected}; found: {verdict}"))
    part.tables.append(page.table("", ["count", "published", "found", *(["difference"] if open_data else [])], lines))
    statements = list(integrity.get("statements", ()))
    part.said += statements if open_data else []
    if len(lines) < len(integrity["counts"]) or (statements and not open_data):
        private = "" if open_data else "; it is not for sharing"
        part.said.append(f"What else was found in the release is in run.json, under dataset.integrity{private}.")
    return part


# ------------------------------------------------------------------------------------------------- in words


def _in_words(study: Study, dataset: Mapping, apart: _Part) -> list[str]:
    rules = study.flow.rules[1:]
    n = " of ".join(_n(study, unit, ALL, ALL) for unit in ("images", "patients"))
    after = f" after {len(rules)} {'rule' if len(rules) == 1 else 'rules'} ({'; '.join(rules)})"
    said = [f"The cohort is {n} of the data set {page.called(dataset)}{after if rules else ', which no rule narrows'}."]
    if "race" in study.crowded:
        said.append(f"Race is recorded in {study.crowded['race']} ways, too many for anything here to be told by it.")
    elif "race" not in study.groups:
        said.append("No race is recorded, so nothing here is told by race.")
    else:
        name = "group" if study.invented else "race"
        groups = study.groups["race"]
        first = study.at_first("race")
        known = study.patients - int((first.code == groups.names.index(MISSING)).sum() if MISSING in groups.names else 0)
        together = study.variables["race"].any() and MISSING not in groups.names
        if together or (known < study.patients and study.hides(key(**{first.of: MISSING}))):
            said.append(f"Of not all patients the {name} is recorded; of how many is withheld, lest fewer than {study.least} show.")
        else:
            ends = wilson(known / study.patients, study.patients, study.level)
            said.append(
                f"Of {known:,} of {study.patients:,} patients the {name} is recorded: {_percent(known / study.patients)}"
                f" ({audit_rows.percent(study.level)} interval {ends[0] * 100:.1f} to {ends[1] * 100:.1f})."
                if not study.hides(EVERYBODY) else f"Of how many patients the {name} is recorded is withheld."
            )  # fmt: skip
    shown = [row for row in apart.rows if row["value"] != "" and row["low"] != ""]
    sure = [row for row in shown if row["low"] > 0 or row["high"] < 0]
    top = sorted(sure, key=lambda row: -abs(row["value"]))[:3]
    if top:
        told = "; ".join(map(_apart, top))
        which = f"The largest of {len(sure)} standardised differences whose interval leaves out 0"
        said.append(f"{which}, {len(shown)} being shown: {told}.")
    elif shown:
        said.append(f"Of {len(shown)} standardised differences between groups, none has an interval that leaves out 0.")
    else:
        said.append("There is no standardised difference between groups that can be shown.")
    return said


def _apart(row: Mapping) -> str:
    value, ends = _with_ends(row["value"], row["low"], row["high"], lambda x: audit_rows.number(x, 2))
    against = row["note"].split(";")[0]
    return f"{row['what']}, {audit_rows.group_name(row['group'])}, {value} ({ends}), n = {row['n_patients']:,} {against}"
