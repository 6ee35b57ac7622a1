"""The page of what a release gives away: `leakage.html`, from leakage_audit.json and, of labels, probe_audit.json.

For who would release a model, its scores or its embeddings. What is said follows intervals: more than chance only where they lie above it. That none can be shown is not that there is none.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from cxr_jax import tables
from cxr_jax.audit import subgroups
from cxr_jax.report import html, page
from cxr_jax.report import rows as audit_rows
from cxr_jax.report.figures import BLUE, FAINT, GREEN, VERMILION, Drawing, new_figure, short, styled
from cxr_jax.report.probe_figures import PROBES
from cxr_jax.tables import FEATURES, SCORES

FILE, PAGE = "leakage_audit.json", "leakage.html"
SOURCES = {SCORES: "its scores of findings", FEATURES: "its features", "images": "the images"}
MEMBERSHIP = {"auc": "AUC", "advantage": "advantage", "tpr_at_fpr_0.01": "members found, 1 in 100 others called one"}
READ = (
    "A risk figure for who would release a model, its scores or its features. Nothing here finds anybody: only rates over many patients are computed and told.",
    "What labels tell: AUC of each class against the rest, macro their mean. From scores and features by probes that were fitted on training patients and chosen on validation; from images by a network that was"
    " trained to tell them. Scores are log-odds of all findings together, and nothing else.",
    "Found again: of patients with two studies or more, how often the right one of all test patients is the most similar to a later study, or among the 5 or 10 most similar: cosine of features less their mean."
    " Within the own group only patients of that group stand to choose from, so that nothing is won by telling groups apart. Chance is the number of guesses by how many there are to choose from; the rate falls as more are.",
    "Membership: whether a lower loss tells patients of training from those of test. Advantage: true- less false-positive rate below the mean training loss. Patients are counted, and all of their images used.",
    "Each is one plain attack, and what it finds is a lower bound: attackers who fit metrics, train shadow models or know more find more. A rate at chance does not show that there is no leak.",
)


def write(workdir: os.PathLike | str) -> pathlib.Path:
    """Writes `leakage.html` and its figures in `workdir`; returns the page's path. Raises UserError for a file that is missing or is not what its stage writes."""
    workdir = pathlib.Path(workdir)
    read, found = html.read_workdir(workdir), tables.read_json(workdir / FILE)
    least = 1 if read.judged["open_data"] and "dataset" in read.run else read.config["audit"]["min_patients"]
    sections = [_labels(read, found), _again(read, found, least), _members(read, found, least)]
    return page.write_sections(workdir, PAGE, page.BESIDE[PAGE], read.run.get("headline", ""), read.invented, sections, READ)


# ------------------------------------------------------------------------------------------------------------ labels


def told(read, found: Mapping) -> pd.DataFrame:
    """Rows of AUCs, of everyone, with a column `source` of SOURCES: from scores and features by the probes of a run, and from images."""
    parts = []
    if read.probed is not None:
        rows = read.probed.rows
        rows = rows[(rows["metric"] == "auc") & (rows["attribute"] == subgroups.ALL) & ~rows["shuffled"].astype(bool) & rows["input"].isin((SCORES, FEATURES)) & rows["probe"].isin(PROBES)]
        parts.append(rows.assign(source=rows["input"]))
    if found["images"] is not None and found["images"]["rows"]:
        made = read.withhold(audit_rows.frame(found["images"]["rows"], FILE))
        parts.append(made.assign(source="images", probe="trained", input="images", shuffled=False))
    return pd.concat(parts, ignore_index=True) if parts else audit_rows.frame([]).assign(source="", probe="")


def _labels(read, found: Mapping) -> page.Section:
    section = page.Section("labels", "Which labels can be read")
    rows = told(read, found)
    if not len(rows):
        section.said.append("Nothing was read from scores or features; add probe to config.stages.")
        return section
    for target in audit_rows.in_order(rows["target"]):
        macro = rows[(rows["target"] == target) & (rows["class"] == subgroups.MACRO)]
        called = read.name_of(target)
        said = []
        for source, words in SOURCES.items():
            here = macro[macro["source"] == source]
            if len(here):
                # One reader, named beforehand: of several the best is best by luck, too.
                chosen = here[here["probe"].isin(("logistic_regression", "trained"))]
                row = (chosen if len(chosen) else here).iloc[0]
                beyond = "" if not np.isfinite(row["low"]) or row["low"] > 0.5 else ", not shown to be better than guessing"
                why = "" if np.isfinite(row["value"]) else f" ({audit_rows.note(row, positives=False)})"
                said.append(f"from {words} {audit_rows.estimate(row)}{beyond}{why}")
        n = macro.iloc[0]
        section.said.append(f"{called[:1].upper()}{called[1:]}, macro AUC (by logistic regression, where that was asked): {'; '.join(said)}. {audit_rows.count(n['n_images'])} test images of {audit_rows.count(n['n_patients'])} patients.")
        drawing = sources(macro, target, called)
        section.drawn += [drawing] if drawing else []
        section.details.append((f"All AUCs: {called}", [_auc_table(rows[rows["target"] == target])]))
    section.said += [found["reasons"]["images"][:1].upper() + found["reasons"]["images"][1:] + "."] if "images" in found["reasons"] else [f"{one}." for one in found["images"]["absent"]]
    section.said += [f"{one[:1].upper()}{one[1:]}." for one in (read.probed.absent if read.probed else ()) if SCORES in one]
    return section


@styled
def sources(macro: pd.DataFrame, target: str, called: str) -> Drawing | None:
    """Macro AUCs from scores, features and images, a line a reader."""
    macro = macro[macro["value"].notna()]
    lines = [(source, row) for source in SOURCES for _, row in macro[macro["source"] == source].iterrows()]
    if not lines:
        return None
    figure = new_figure(0.9 + 0.3 * len(lines))
    panel = figure.subplots()
    for y, (source, row) in enumerate(lines):
        colour = {SCORES: GREEN, FEATURES: BLUE, "images": VERMILION}[source]
        panel.hlines(y, row["low"], row["high"], color=colour, lw=2)
        panel.plot(row["value"], y, "o", color=colour, ms=5)
        panel.annotate(audit_rows.estimate(row, 2), (1, y), (6, 0), xycoords=panel.get_yaxis_transform(), textcoords="offset points", va="center", fontsize=8)
    panel.axvline(0.5, color=FAINT, lw=0.9, ls=":")
    panel.set_yticks(range(len(lines)), [short(f"{SOURCES[s]}, {_by(row)}", 44) for s, row in lines])
    panel.set_ylim(len(lines) - 0.5, -0.5)
    panel.set_xlim(min(0.45, np.nanmin([row["low"] for _, row in lines] + [0.45])), 1.01)
    panel.set_xlabel(f"macro AUC: {short(called, 40)}")
    panel.grid(axis="y", visible=False)
    alt = "; ".join(f"{SOURCES[s]}, {_by(row)}: {audit_rows.estimate(row, 2)}" for s, row in lines)
    level = audit_rows.percent(macro["level"].iloc[0])
    return f"leak_{target}", figure, alt + ".", f"What is told of {called}, and from what. Lines: {level} intervals over patients. Dotted: guessing."


def _by(row: pd.Series) -> str:
    return "a network trained for it" if row["probe"] == "trained" else PROBES[row["probe"]][0]


def _auc_table(rows: pd.DataFrame) -> dict:
    lines = []
    classes = audit_rows.in_order(rows["class"])
    for source, words in SOURCES.items():
        for probe in audit_rows.in_order(rows.loc[rows["source"] == source, "probe"]):
            here = rows[(rows["source"] == source) & (rows["probe"] == probe)]
            cells = [audit_rows.estimate(audit_rows.first(here, class_=c)) for c in classes]
            lines.append((f"{words}, {_by(here.iloc[0])}", cells))
    heads = []
    for c in classes:
        row = audit_rows.first(rows, class_=c)
        heads.append(f"{audit_rows.class_name(c)}\n{audit_rows.count(row['n_images'])} images" + (f", {audit_rows.count(row['n_positive'])} positive" if np.isfinite(row["n_positive"]) else ""))
    return page.table("", ["from", *heads], lines)


# ------------------------------------------------------------------------------------------------------------ patients


def rates(rows: Sequence[Mapping]) -> pd.DataFrame:
    """Rows of re-identification or membership as a table, NaN for null numbers."""
    made = pd.DataFrame(list(rows))
    for column in ("value", "low", "high", "level", "chance", "threshold", "n_images", "n_patients", "gallery_patients", "n_members", "n_others"):
        if column in made:
            made[column] = made[column].astype(np.float64)
    return made


def _n(row: pd.Series, column: str, least: int) -> str:
    """A count as it may be shown: of data that are not open a group's not at all, since other pages have its other splits, and everyone's rounded down."""
    if not np.isfinite(row[column]) or least == 1:
        return audit_rows.count(row[column])
    return audit_rows.count(row[column] // least * least) if row["attribute"] == subgroups.ALL else f"{least} or more"


def _rounded(row: pd.Series, least: int) -> pd.Series:
    """A group's rate of data that are not open in whole per cent, since finer ones tell of how many they are."""
    if least == 1 or row["attribute"] == subgroups.ALL:
        return row
    row = row.copy()
    row[["value", "low", "high"]] = row[["value", "low", "high"]].astype(np.float64).round(2)
    return row


def _beyond(row: pd.Series) -> str:
    if not np.isfinite(row["low"]):
        return ""
    return "more than chance" if row["low"] > row["chance"] else "less than chance" if row["high"] < row["chance"] else "not shown to be more than chance"


def _by_metric(read, rows: pd.DataFrame) -> Iterator[tuple[str, dict[str, pd.Series]]]:
    """(what to call a group, its rows by metric) for everyone and every group."""
    for (attribute, group), part in rows.groupby(["attribute", "group"], sort=False):
        name = "everyone" if attribute == subgroups.ALL else f"{read.name_of(attribute)}: {audit_rows.group_name(group)}"
        yield name, {row["metric"]: row for _, row in part.iterrows()}


def _why(row: pd.Series) -> str:
    return row["reason"] if isinstance(row["reason"], str) else "no reason given"


def _again(read, found: Mapping, least: int) -> page.Section:
    section = page.Section("again", "Whether a patient is found again")
    of = found["reidentification"]
    if of is None:
        section.said.append(f"Not judged: {found['reasons']['reidentification']}.")
        return section
    rows = rates(of["rows"])
    everyone = rows[rows["attribute"] == subgroups.ALL]
    for _, row in everyone[everyone["gallery"] == "all"].iterrows():
        k = row["metric"].removeprefix("rank_")
        among = "the most similar" if k == "1" else f"among the {k} most similar"
        if not np.isfinite(row["value"]):
            section.said.append(f"How often the right patient is {among}: {'withheld' if row['suppressed'] else 'undefined'}, {_why(row)}.")
            continue
        section.said.append(
            f"The right patient is {among}: {audit_rows.estimate(row)}, chance {audit_rows.number(row['chance'], 4)}; {_beyond(row)}. {_n(row, 'n_patients', least)} patients sought by"
            f" {_n(row, 'n_images', least)} later studies, among {_n(row, 'gallery_patients', least)}."
        )
    section.said += [f"{note[:1].upper()}{note[1:]}." for note in of["notes"]]
    made = []
    for gallery, words in (("all", "Among all patients"), ("own group", "Among patients of the own group")):
        here = rows[(rows["gallery"] == gallery)]
        lines = []
        for name, by in _by_metric(read, here):
            first = next(iter(by.values()))
            # Chance in the own group would tell how many these are.
            told = [np.isfinite(by[m]["chance"]) and (least == 1 or gallery == "all") for m in by]
            cells = [[_shown(_rounded(by[m], least)), *([f"chance {audit_rows.number(by[m]['chance'], 4)}"] if tell else [])] for m, tell in zip(by, told, strict=True)]
            n = [_n(first, c, least) if c != "gallery_patients" or gallery == "own group" else _n(everyone.iloc[0], c, least) for c in ("n_patients", "n_images", "gallery_patients")]
            lines.append((name, [*n, *cells, "" if np.isfinite(first["value"]) else _why(first)]))
        if lines and (rows["n_patients"] != 0).any():
            made.append(page.table(words, ["", "patients sought", "later studies", "to choose from", "the most similar", "among 5", "among 10", "note"], lines))
    section.tables += made
    return section


def _shown(row: pd.Series) -> str:
    if not np.isfinite(row["value"]):
        return "withheld" if row["suppressed"] else "undefined"
    return audit_rows.estimate(row)


def _members(read, found: Mapping, least: int) -> page.Section:
    section = page.Section("members", "Whether it is told who was trained on")
    of = found["membership"]
    if of is None:
        section.said.append(f"Not judged: {found['reasons']['membership']}.")
        return section
    rows = rates(of["rows"])
    everyone = rows[rows["attribute"] == subgroups.ALL]
    for target in audit_rows.in_order(everyone["target"]):
        by = {row["metric"]: row for _, row in everyone[everyone["target"] == target].iterrows()}
        row = by["auc"]
        if not np.isfinite(row["value"]):
            section.said.append(f"By the loss on {_loss(read, target)}: {'withheld' if row['suppressed'] else 'undefined'}, {_why(row)}.")
            continue
        told = [f"{MEMBERSHIP[m]} {_shown(by[m])}" + (f" ({_why(by[m])})" if not np.isfinite(by[m]["value"]) else f", {_beyond(by[m])}") for m in by]
        section.said.append(f"By the loss on {_loss(read, target)}: {'; '.join(told)}. {_n(row, 'n_members', least)} patients of training, {_n(row, 'n_others', least)} of test.")
    section.said += [f"{note[:1].upper()}{note[1:]}." for note in of["notes"]]
    for target in audit_rows.in_order(rows["target"]):
        lines = []
        for name, by in _by_metric(read, rows[rows["target"] == target]):
            first = next(iter(by.values()))
            n = [_n(first, c, least) for c in ("n_members", "n_others", "n_images")]
            why = dict.fromkeys(_why(row) for row in by.values() if not np.isfinite(row["value"]))
            lines.append((name, [*n, *(_shown(_rounded(by[m], least)) for m in MEMBERSHIP), "; ".join(why)]))
        section.tables.append(page.table(f"By the loss on {_loss(read, target)}", ["", "patients of training", "of test", "images", *(f"{words}\nchance {c:g}" for words, c in zip(MEMBERSHIP.values(), (0.5, 0, 0.01)))] + ["note"], lines))
    return section


def _loss(read, target: str) -> str:
    return "all targets" if target == subgroups.ALL else read.name_of(target)
