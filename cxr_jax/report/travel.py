"""The page of how a model travels: `travel.html`, from travel_audit.json; and the matrix of several runs, each of another home.

What is said is by intervals: a figure is called lower abroad only where the interval of the difference lies below 0.
"""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import colors

from cxr_jax import tables
from cxr_jax.audit import subgroups
from cxr_jax.report import html, page
from cxr_jax.report import rows as audit_rows
from cxr_jax.report.figures import BLUE, FAINT, INK, VERMILION, Drawing, new_figure, short, styled

FILE, PAGE = "travel_audit.json", "travel.html"
PARTS = {
    "home": "at home", "demographics": "home, with the demographics of there", "acquisition": "home, with the acquisition of there", "prevalence": "home, with the findings of there",
    "all": "home, with all three", "abroad": "there", "remainder": "what remains",
}  # fmt: skip
RATES = {"sensitivity": "sensitivity", "specificity": "specificity", "false_negative_rate": "missed", "called": "called"}
COUNTS = ["n_images", "n_patients", "n_positive"]
CALIBRATION = {"calibration_in_the_large": "in the large", "calibration_slope": "slope", "ece_debiased": "expected error (debiased)"}

READ = (
    "AUCs are of each class against the rest on test images, macro their mean over the classes that have an AUC in both places. Intervals are over patients, those of differences of two places as of different people.",
    "Sensitivity and the like are at the threshold of home, carried there unchanged: chosen by the run's rule on its validation images, or where there are none on its test images (home's own figures are then"
    " cross-fitted); a fixed one is the same everywhere. Beside them what the same rule would have chosen there. Counts of data that are not open are rounded down.",
    "In the large: mean score less share of positives. A slope below 1: scores are too extreme.",
    "What the mix explains: home's images weighted so that what is recorded of them has the mix of the place (age band, sex and race as far as both record it; view, and manufacturer; a class's label and"
    " whether there is another finding). The three go together, and do not add up. What remains is whatever else differs: pictures, labels, people; it is not shown to be the model's doing.",
    "Labels of different places are made in different ways, by reports, programs or hand. A loss may be a loss of agreement.",
)


def write(workdir: os.PathLike | str) -> pathlib.Path:
    """Writes `travel.html` and its figures in `workdir`; returns the page's path. Raises UserError for a file that is missing or is not what its stage writes."""
    workdir = pathlib.Path(workdir)
    read = html.read_workdir(workdir)
    found = tables.read_json(workdir / FILE)
    least = read.config["audit"]["min_patients"]
    invented = read.invented and all(of["invented_groups"] for of in read.run["travelled"].values())
    name_of = functools.partial(audit_rows.attribute_name, invented=invented)
    sections = [_place(name, of, name_of, read.run["travelled"][name], read.withhold, least) for name, of in found.items()]
    return page.write_sections(workdir, PAGE, page.BESIDE[PAGE], read.run.get("headline", ""), invented, sections, READ)


def _place(name: str, of: Mapping, name_of: Callable[[str], str], about: Mapping, withhold: Callable, least: int) -> page.Section:
    """about: what run.json says of the data set there. withhold: of rows at home, the counts that its cohort's page hides."""
    section = page.Section("on-" + name.replace(".", "-"), f"On {name}")
    if of["reason"]:
        section.said.append(f"Nothing can be said: {of['reason']}.")
        return section

    def told(rows: Sequence[Mapping], *more: str) -> pd.DataFrame:
        made = audit_rows.frame(rows, FILE, more)
        if "where" in made and (made["where"] == "home").any():
            made.loc[made["where"] == "home", COUNTS] = withhold(made[made["where"] == "home"])[COUNTS]
        if not about["open_data"]:  # of which no page says how many there are
            here = made["where"] == "abroad" if "where" in made else made["part"].isin(("abroad", "remainder"))
            made.loc[here, COUNTS] = made.loc[here, COUNTS] // least * least
        return made

    rows = told(of["rows"], "where")
    everyone = rows[rows["attribute"] == subgroups.ALL]
    size = f": {about['images']:,} images of {about['patients']:,} patients, open data" if about["open_data"] else f", data that are not open: counts are rounded down to a multiple of {least}"
    section.said.append(f"{page.called(about)}{size}.")
    for target in audit_rows.in_order(rows["target"]):
        section.said.append(_verdict(everyone[everyone["target"] == target], name_of(target)))
    if of["absent"]:
        by: dict[str, list[str]] = {}
        for one in of["absent"]:
            by.setdefault(one["reason"], []).append(one["class"])
        section.said += [f"Not judged there: {', '.join(classes)} ({reason})." for reason, classes in by.items()]
    for target in audit_rows.in_order(rows["target"]):
        here = everyone[everyone["target"] == target]
        drawing = dumbbells(here, f"{name}_{target}", name_of(target), name)
        section.drawn += [drawing] if drawing else []
    groups = rows[(rows["attribute"] != subgroups.ALL) & (rows["class"] == subgroups.MACRO)]
    for target in audit_rows.in_order(rows["target"]):
        called = name_of(target)
        section.details.append((f"AUCs: {called}", [_side_by_side(everyone[everyone["target"] == target], "AUC of everyone", lambda row: audit_rows.class_name(row["class"])),
            _side_by_side(groups[groups["target"] == target], "Macro AUC by group", lambda row: f"{name_of(row['attribute'])}: {audit_rows.group_name(row['group'])}")]))  # fmt: skip
        section.details.append((f"At home's thresholds: {called}", _thresholds(told([r for r in of["thresholds"] if r["target"] == target], "where", "chosen"), name_of)))
        calibration = told([r for r in of["calibration"] if r["target"] == target], "where")
        made = [_side_by_side(calibration[calibration["metric"] == metric], words, lambda row: audit_rows.class_name(row["class"]), counts=False) for metric, words in CALIBRATION.items()]
        section.details.append((f"Calibration: {called}", made))
        section.details.append((f"What the mix explains: {called}", _shift(told([r for r in of["shift"] if r["target"] == target], "part", "by", "covered", "effective"))))
    return section


def _verdict(rows: pd.DataFrame, called: str) -> str:
    home, there, apart = _three(rows[rows["class"] == subgroups.MACRO])
    said = f"{called[:1].upper()}{called[1:]}: macro AUC {audit_rows.estimate(home)} at home ({_n(home)}), {audit_rows.estimate(there)} there ({_n(there)})"
    if apart is None or not np.isfinite(apart["value"]):
        reason = "" if there is None else audit_rows.note(there, positives=False)
        return f"{said}{f': {reason}' if reason else ''}."
    if not audit_rows.interval(apart):
        return f"{said}; {audit_rows.number(apart['value'])} apart, without an interval: {audit_rows.note(apart, positives=False)}."
    word = "lower there" if apart["high"] < 0 else "higher there" if apart["low"] > 0 else "not shown to be other there"
    return f"{said}; {word}, by {audit_rows.estimate(apart)}."


def _n(row) -> str:
    return "none" if row is None else f"{audit_rows.count(row['n_images'])} images of {audit_rows.count(row['n_patients'])} patients"


def _three(rows: pd.DataFrame) -> list[pd.Series | None]:
    """The row at home, that abroad, and their difference."""
    return [audit_rows.first(rows[(rows["where"] == where) & (rows["effect"].isna() if effect is None else rows["effect"] == effect)]) for where, effect in (("home", None), ("abroad", None), ("abroad", "difference"))]


def _side_by_side(rows: pd.DataFrame, caption: str, called: Callable[[pd.Series], str], counts: bool = True) -> dict:
    """A line for each class or group: at home, abroad, difference."""
    lines = []
    names = [called(row) for _, row in rows.iterrows()]
    for name in dict.fromkeys(names):
        home, there, apart = _three(rows[[n == name for n in names]])
        reason = next((audit_rows.note(row, positives=False) for row in (there, home, apart) if row is not None and not np.isfinite(row["value"])), "")
        n = [_counted(home), _counted(there)] if counts else []
        lines.append((name, [*n, *(audit_rows.estimate(row) for row in (home, there, apart)), reason]))
    return page.table(caption, ["", *(["n at home", "n there"] if counts else []), "at home", "there", "difference", "note"], lines)


def _counted(row) -> str:
    if row is None:
        return ""
    positive = f", {audit_rows.count(row['n_positive'])} positive" if np.isfinite(row["n_positive"]) else ""
    return f"{audit_rows.count(row['n_images'])} / {audit_rows.count(row['n_patients'])}{positive}"


def _thresholds(rows: pd.DataFrame, name_of) -> list[dict]:
    """A table a rate: by class, for everyone and by group; at home, there by home's threshold, their difference, and there by one chosen there."""
    made = []
    for metric, words in RATES.items():
        here, lines = rows[rows["metric"] == metric], []
        for (name, attribute, group), part in here.groupby(["class", "attribute", "group"], sort=False):
            by_home = part[part["chosen"] == "home"]
            home, there, apart = _three(by_home[by_home["reference"].isna() | (by_home["reference"] == "home")])
            own = audit_rows.first(part[part["chosen"] == "abroad"])
            where = "" if attribute == subgroups.ALL else f", {name_of(attribute)}: {audit_rows.group_name(group)}"
            if there is None or (where and not np.isfinite(there["value"])):
                continue
            lines.append((f"{audit_rows.class_name(name)}{where}", [_counted(there), *(audit_rows.estimate(row) for row in (home, there, apart, own))]))
        made.append(page.table(words[:1].upper() + words[1:], ["", "n there", "at home", "there, by home's threshold", "difference", "there, by its own"], lines))
    return made


def _shift(rows: pd.DataFrame) -> list[dict]:
    """A table a metric: by class, the figure under every mix, with what it explains."""
    made = []
    for metric, words in (("auc", "AUC"), ("sensitivity", "Sensitivity at home's threshold"), ("specificity", "Specificity at home's threshold")):
        here, lines = rows[rows["metric"] == metric], []
        for name in audit_rows.in_order(here["class"]):
            cells, notes = [], []
            for part in PARTS:
                mine = here[(here["class"] == name) & (here["part"] == part)]
                figure, apart = (audit_rows.first(mine[mine["effect"].isna()]), audit_rows.first(mine[mine["effect"] == "difference"]))
                cell = [audit_rows.estimate(figure)] if figure is not None else []
                cell += [("" if part == "remainder" else "change ") + audit_rows.estimate(apart)] if apart is not None and np.isfinite(apart["value"]) else []
                covered = (figure if figure is not None else apart)["covered"]
                cell += [f"{100 * covered:.0f} % covered"] if covered is not None and np.isfinite(covered) and part not in ("home", "abroad", "remainder") else []
                cells.append(cell or [""])
                notes += [audit_rows.note(row, positives=False) for row in (figure, apart) if row is not None and not np.isfinite(row["value"])]
            lines.append((name, [*cells, "; ".join(dict.fromkeys(filter(None, notes)))]))
        by = {part: next((row["by"] for _, row in here[here["part"] == part].iterrows() if row["by"]), []) for part in PARTS}
        heads = [f"{words_}\n{', '.join(by[part])}" if part in ("demographics", "acquisition") and by[part] else words_ for part, words_ in PARTS.items()]
        made.append(page.table(words, ["", *heads, "note"], lines))
    return made


@styled
def dumbbells(rows: pd.DataFrame, name: str, called: str, place: str) -> Drawing | None:
    """AUC of every class at home and abroad, with intervals. rows: of everyone and one target."""
    classes = [c for c in audit_rows.in_order(rows["class"]) if len(rows[(rows["class"] == c) & rows["value"].notna() & rows["effect"].isna()]) == 2]
    classes = [subgroups.MACRO] * (subgroups.MACRO in classes) + [c for c in classes if c != subgroups.MACRO]
    if not classes:
        return None
    figure = new_figure(1.0 + 0.3 * len(classes))
    panel = figure.subplots()
    said = []
    for y, c in enumerate(classes):
        home, there, _ = _three(rows[rows["class"] == c])
        for row, shift, colour, marker in ((home, -0.13, BLUE, "o"), (there, 0.13, VERMILION, "s")):
            panel.hlines(y + shift, row["low"], row["high"], color=colour, lw=1.5)
            panel.plot(row["value"], y + shift, marker, color=colour, ms=4.5, label=("at home" if colour == BLUE else f"on {place}") if y == 0 else None)
        said.append(f"{audit_rows.class_name(c)}: at home {audit_rows.estimate(home, 2)}, on {place} {audit_rows.estimate(there, 2)}")
    panel.axvline(0.5, color=FAINT, lw=0.9, ls=":")
    panel.set_yticks(range(len(classes)), [short(audit_rows.class_name(c), 28) for c in classes])
    panel.set_ylim(len(classes) - 0.5, -0.5)
    panel.set_xlabel("AUC")
    panel.grid(axis="y", visible=False)
    figure.legend(loc="outside upper left", ncols=2, handlelength=1.2, columnspacing=1.2)
    level = audit_rows.percent(rows["level"].iloc[0])
    return f"travel_{name}", figure, "; ".join(said) + ".", f"AUC of {called}, at home and on {place}; numbers of images and patients are in the table. Lines: {level} intervals over patients. Dotted: guessing."


# ------------------------------------------------------------------------------------------------------------ the matrix


def by_group(found: Mapping[str, Mapping[str, Mapping]], target: str) -> dict[tuple[str, str, str, str], pd.Series]:
    """The macro AUC of a target by (home, place, attribute, group), of everyone first. found: travel_audit.json of each home, by its name.

    At home it is over the classes that the first of its places tells, too.
    """
    made: dict[tuple[str, str, str, str], pd.Series] = {}
    for home, places in found.items():
        for place, of in places.items():
            if target not in of["classes"]:
                continue
            rows = audit_rows.frame(of["rows"], FILE, ("where",))
            rows = rows[(rows["target"] == target) & (rows["class"] == subgroups.MACRO) & rows["effect"].isna()]
            for where, at in (("home", home), ("abroad", place)):
                for _, row in rows[rows["where"] == where].iterrows():
                    made.setdefault((home, at, row["attribute"], row["group"]), row)
    return made


@styled
def matrix(rows: Mapping[tuple[str, str, str, str], pd.Series], target: str, called: str) -> Drawing | None:
    """Macro AUCs of everyone, a row a home and a column a place, with their intervals. rows: as `by_group` gives them."""
    made = {(home, place): row for (home, place, attribute, _), row in rows.items() if attribute == subgroups.ALL}
    homes, places = list(dict.fromkeys(h for h, _ in made)), list(dict.fromkeys([*(h for h, _ in made), *(p for _, p in made)]))
    if not any(np.isfinite(row["value"]) for row in made.values()):
        return None
    figure = new_figure(0.9 + 0.55 * len(homes), max(3.2, 1.6 + 1.15 * len(places)))
    panel = figure.subplots()
    values = np.array([[made[h, p]["value"] if (h, p) in made else np.nan for p in places] for h in homes], np.float64)
    scale = colors.LinearSegmentedColormap.from_list("auc", ["#FFFFFF", BLUE])
    panel.imshow(np.ma.masked_invalid(values), cmap=scale, vmin=0.5, vmax=1, aspect="auto")
    said = []
    for i, home in enumerate(homes):
        for j, place in enumerate(places):
            row = made.get((home, place))
            text = "" if row is None else audit_rows.value(row, 2)
            ends = audit_rows.interval(row, 2)
            dark = np.isfinite(values[i, j]) and values[i, j] > 0.82
            panel.text(j, i, text + (f"\n{ends}" if ends else ""), ha="center", va="center", fontsize=8, color="white" if dark else INK)
            said.append(f"from {home} to {place}: {audit_rows.estimate(row, 2) or 'not judged'}")
    panel.set_xticks(range(len(places)), [short(p, 20) for p in places])
    panel.set_yticks(range(len(homes)), [short(h, 20) for h in homes])
    panel.set_xlabel("judged on")
    panel.set_ylabel("learnt on")
    panel.grid(visible=False)
    differ = [p for p in places if len({made[h, p]["n_images"] for h in homes if (h, p) in made}) > 1]
    apart = f" Test images are not the same in all rows of {', '.join(differ)}." if differ else ""
    caption = f"Macro AUC of {called}, by where it was learnt and where it is judged: over the classes that both places tell, at home over those of the first other place. Intervals over patients; n is in the tables.{apart}"
    return f"matrix_{target}", figure, "; ".join(said) + ".", caption
