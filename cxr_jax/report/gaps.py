"""For whom a model is worse: differences between groups, whom it misses, and how far its scores can be believed in each.

What is said is made from the audit's rows by rules that look at intervals and at corrected tests. Rates of groups are
written, and drawn, in whole per cent: exact ones are fractions, whose denominators count people.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.lines import Line2D

from cxr_jax.audit import subgroups
from cxr_jax.audit.disclosure import LIKE
from cxr_jax.audit.gaps import NO_FINDING, TESTED, how_alike
from cxr_jax.audit.subgroups import TIMES
from cxr_jax.report import rows as audit_rows
from cxr_jax.report.figures import COLOURS, FAINT, INK, MARKERS, VERMILION, Drawing, new_figure, short, styled, wrapped

MOST_MIXED = 12  # differences beside which those to others like the group are shown, unless more survive correction
ERROR = 0.05  # of a family of tests, at which one is called real
MOST = 24  # gaps drawn
MOST_GROUPS = len(COLOURS)
# What each metric is called of a class, and whether more of it is worse.
CALLED = {
    "auc": ("AUC for {}", False),
    "false_positive_rate": ("{} called where it is not", True),
    "false_negative_rate": ("{} missed", True),
}

IN_SHORT = {"auc": "AUC", "false_positive_rate": "falsely called", "false_negative_rate": "missed"}  # before the class, whose name may be cut


def gaps(rows: pd.DataFrame, split: str) -> pd.DataFrame:
    """Differences of groups to all others that are tested, of two groups that are each other's rest the worse alone.

    Rates to two decimals. With `worse`, by how much the group fares worse, and its interval in `worse_low`, `worse_high`; the clearest first.
    """
    found = rows[(rows["effect"] == "difference") & (rows["reference"] == "rest") & (rows["split"] == split)]
    found = found[found["metric"].isin(TESTED) & found["value"].notna() & ~found["attribute"].str.contains(TIMES, regex=False)].copy()
    shares = (found["metric"] != "auc").to_numpy()
    for column in ("value", "low", "high"):
        found[column] = np.where(shares, found[column].round(2), found[column])
    sign = np.where(found["metric"].map(lambda metric: CALLED[metric][1]), 1.0, -1.0)
    ends = np.sort(np.stack([sign * found["low"], sign * found["high"]]), axis=0)
    found = found.assign(worse=sign * found["value"], worse_low=ends[0], worse_high=ends[1])
    groups = rows[rows["effect"].isna() & (rows["metric"] == "auc") & (rows["split"] == split)].groupby("attribute")["group"].nunique()
    both = found["attribute"].map(groups) == 2
    mirrored = both & (found["worse"] < 0) & found.groupby(["target", "class", "metric", "attribute"])["worse"].transform(lambda w: len(w) == 2)
    found = found[~mirrored]
    # Of two that fare exactly alike, one.
    first = ~found.duplicated(["target", "class", "metric", "attribute"]) | (found["attribute"].map(groups) != 2)
    return found[first].sort_values(["p", "worse"], ascending=[True, False], kind="stable", na_position="last")


def title(row: pd.Series, targets: int) -> str:
    """`Edema missed`; with the target in front where there are several."""
    what = row["class"] if row["class"] != subgroups.MACRO else "all classes (macro)"
    said = CALLED[row["metric"]][0].format(what)
    return f"{row['target']}: {said}" if targets > 1 else said


def _in_short(row: pd.Series, targets: int) -> str:
    """`missed: Edema`."""
    said = f"{IN_SHORT[row['metric']]}: {row['class'] if row['class'] != subgroups.MACRO else 'all classes'}"
    return f"{row['target']}, {said}" if targets > 1 else said


def who(row: pd.Series, name_of: Callable[[str], str]) -> str:
    """`sex F`, `age 60-79`."""
    return f"{name_of(row['attribute']).removesuffix(' (years)')}: {audit_rows.group_name(row['group'])}"


def difference(row: pd.Series, prefix: str = "", digits: int = 3) -> str:
    """`12 points (5 to 19)` of a rate, `0.042 (0.010 to 0.080)` of an AUC. prefix: of the columns; digits: of an AUC."""
    value, low, high = row[prefix or "value"], row[f"{prefix}_low" if prefix else "low"], row[f"{prefix}_high" if prefix else "high"]
    if row["metric"] == "auc":
        ends = f" ({audit_rows.number(low, digits)} to {audit_rows.number(high, digits)})" if np.isfinite(low) else ""
        return audit_rows.number(value, digits) + ends
    ends = f" ({audit_rows.number(100 * low, 0)} to {audit_rows.number(100 * high, 0)})" if np.isfinite(low) else ""
    told = audit_rows.number(100 * value, 0)
    return f"{told} point{'' if told.lstrip(chr(0x2212)) == '1' else 's'}{ends}"


def share(row: pd.Series | None) -> str:
    """`23 % (15 to 33)`; `undefined`, `withheld` or nothing, as `rows.estimate`."""
    if row is None or not np.isfinite(row["value"]):
        return audit_rows.estimate(row)
    ends = f" ({100 * row['low']:.0f} to {100 * row['high']:.0f})" if np.isfinite(row["low"]) else ""
    return f"{100 * row['value']:.0f} %{ends}"


# ------------------------------------------------------------------------------------------------------- in words


def sentences(found: pd.DataFrame, name_of: Callable[[str], str], level: float, replicates: int) -> list[str]:
    """What the tests say, and what they do not. found: as `gaps` gives it."""
    tested = found[found["p"].notna()]
    if not len(found):
        return ["No difference between groups could be estimated; the table of figures by group says why."]
    if not len(tested):
        return ["Differences between groups have no tests here; the table says why."]
    family, targets = int(tested["family"].iloc[0]), tested["target"].nunique()
    kind = _kind(tested)
    real = tested[tested["p_holm"] < ERROR]
    several = tested[tested["p_by"] < ERROR]
    said = [
        f"{family:,} difference{'s' if family > 1 else ''} between a group and all others {'were' if family > 1 else 'was'} tested: AUCs, {kind} missed (false-negative rates) and"
        f" {kind} called where there are none (false-positive rates). Of these {_number(len(real))} survive{'s' if len(real) == 1 else ''} Holm's correction at"
        f" {100 * ERROR:g} %" + (f", and {_number(len(several))} Benjamini and Yekutieli's, of which one in twenty may be false." if len(several) != len(real) else ".")
    ]
    if family == 1:
        said = [f"One difference between a group and all others was tested; it {'survives' if len(real) else 'does not survive'} at {100 * ERROR:g} %."]
    worse = real[real["worse"] > 0].sort_values("worse", ascending=False)
    for _, row in worse.head(6).iterrows():
        where = f"in {name_of(row['attribute']).removesuffix(' (years)')} {audit_rows.group_name(row['group'])}"
        said.append(f"{title(row, targets)}: {where} {difference(row, 'worse')} worse than in all others; corrected p\N{NO-BREAK SPACE}{audit_rows.p_value(row['p_holm'])}.")
    if len(worse) > 6:
        said.append(f"{len(worse) - 6} more are in the table.")
    better = len(real) - len(worse)
    if better:
        said.append(f"In {_number(better)} of those that survive, the group fares better than all others.")
    if not len(real):
        widest = (tested["worse_high"] - tested["worse_low"]).max() / 2
        said.append(
            "That does not show that groups fare alike: intervals reach as far as"
            f" {audit_rows.number(widest, 2)} to either side of what was found, and what is smaller than that cannot be told from chance here."
        )
    return said


def underdiagnosis(found: pd.DataFrame, name_of: Callable[[str], str], exclusive: Sequence[str]) -> list[str]:
    """In whom No Finding is called where there is one the most; of models without that class, which finding is missed in whom.

    found: as `gaps` gives it. exclusive: targets whose classes exclude one another, and are no findings.
    """
    tested = found[found["p"].notna() & ~found["target"].isin(exclusive)]
    called = tested[(tested["class"] == NO_FINDING) & (tested["metric"] == "false_positive_rate")].sort_values("worse", ascending=False)
    missed = tested[(tested["class"] != subgroups.MACRO) & (tested["metric"] == "false_negative_rate") & (tested["worse"] > 0)]
    if not len(called) and not len(missed):
        return []
    row = (called if len(called) else missed).iloc[0]
    clear = "the interval leaves out 0" if row["low"] > 0 else "the interval covers 0"
    tail = f"{difference(row)} more, {clear}; corrected p\N{NO-BREAK SPACE}{audit_rows.p_value(row['p_holm'])}."
    if len(called):
        return [f"Underdiagnosis, images with a finding that are called {NO_FINDING}, is highest, against all others, in {who(row, name_of)}: {tail}"]
    return [f"The clearest difference in what is missed: {title(row, tested['target'].nunique())}, in {who(row, name_of)}, against all others {tail}"]


def _kind(rows: pd.DataFrame) -> str:
    """What is missed or called: of a target of races, say, no findings."""
    return "findings" if (rows["target"] == "findings").any() else "classes"


def _number(n: int) -> str:
    return {0: "none", 1: "one", 2: "two", 3: "three"}.get(n, f"{n:,}")


# ------------------------------------------------------------------------------------------------------ the pictures


@styled
def forest(found: pd.DataFrame, name_of: Callable[[str], str], level: float) -> Drawing | None:
    """By how much groups fare worse than all others: the clearest differences, the worst first; survivors filled.

    found: as `gaps` gives it.
    """
    shown = found[found["worse_low"].notna()].head(MOST).sort_values("worse", ascending=False)
    if not len(shown):
        return None
    figure = new_figure(1.15 + 0.4 * len(shown))
    panel = figure.subplots()
    targets, said = found["target"].nunique(), []
    for y, (_, row) in enumerate(shown.iterrows()):
        real = row["p_holm"] < ERROR
        colour = VERMILION if real else FAINT
        panel.hlines(y, row["worse_low"], row["worse_high"], color=colour, lw=2 if real else 1.3)
        panel.plot(row["worse"], y, "o", color=colour, mfc=colour if real else "white", ms=5.5, mew=1.2)
        n = f"{audit_rows.count(row['n_patients'])}"
        panel.annotate(n, (1, y), (34, 0), xycoords=panel.get_yaxis_transform(), textcoords="offset points", va="center", ha="right", fontsize=8, color=INK)
        said.append(f"{title(row, targets)}, {who(row, name_of)}: {difference(row, 'worse')}{', survives correction' if real else ''}")
    panel.axvline(0, color=INK, lw=0.8)
    panel.set_yticks(range(len(shown)), [f"{short(_in_short(row, targets), 34)}\n{short(who(row, name_of), 34)}" for _, row in shown.iterrows()], fontsize=8)
    panel.set_ylim(len(shown) - 0.5, -0.7)
    panel.annotate("patients", (1, -0.7), (34, 2), xycoords=panel.get_yaxis_transform(), textcoords="offset points", ha="right", fontsize=8, color=FAINT)
    panel.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    panel.grid(axis="y", visible=False)
    panel.tick_params(axis="y", length=0)
    panel.set_xlabel("worse than all others by (AUC, or share of images)", fontsize=8.5)
    handles = [
        Line2D([], [], color=VERMILION, marker="o", ms=5.5, lw=2, label="survives Holm's correction"),
        Line2D([], [], color=FAINT, marker="o", mfc="white", ms=5.5, lw=1.3, label="does not"),
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=2, handlelength=1.8)
    left_out = len(found) - len(shown)
    caption = (
        f"How much worse each group fares than all others, beside it how many patients it has. Lines: {audit_rows.percent(level)} intervals over patients, each for"
        " itself; what survives correction for all that were tested is filled."
        + (f" Shown are the {len(shown)} with the lowest p of {len(found):,}; all are in the table." if left_out else "")
    )
    return "gaps", figure, "How much worse groups fare than all others. " + "; ".join(said) + ".", caption


@styled
def reliability(rows: pd.DataFrame, target: str, attribute: str, split: str, called: str, level: float) -> Drawing | None:
    """Share of positives by mean score in bins, a line a group, for the classes with most positive images, at most four."""
    bins = rows[(rows["metric"] == "calibration") & (rows["target"] == target) & (rows["attribute"] == attribute) & (rows["split"] == split) & rows["value"].notna()]
    groups = [g for g in audit_rows.in_order(bins["group"]) if g != subgroups.MISSING][:MOST_GROUPS]
    several = bins[bins["group"].isin(groups)].groupby(["class", "group"]).size()
    names = [name for name in audit_rows.in_order(bins["class"]) if (several[name] > 1).sum() > 1]
    positives = audit_rows.select(rows, metric="auc", target=target, attribute=subgroups.ALL, split=split).set_index("class")["n_positive"]
    most = sorted(names, key=lambda name: -np.nan_to_num(positives.get(name, 0)))[:4]
    names = [NO_FINDING] * (NO_FINDING in names) + [name for name in most if name != NO_FINDING]
    if not names or len(groups) < 2:
        return None
    across = min(2, len(names))
    down = -(-len(names[:4]) // across)
    figure = new_figure(0.75 + 2.2 * down, 5.4 if across == 2 else 3.9)
    panels = list(figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).flat)
    for panel in panels[len(names[:4]) :]:
        panel.set_visible(False)
    for panel, name in zip(panels, names[:4], strict=False):
        panel.plot([0, 1], [0, 1], color=FAINT, lw=0.9, ls=":")
        for k, group in enumerate(groups):
            here = bins[(bins["class"] == name) & (bins["group"] == group)].sort_values("threshold").round(2)
            panel.vlines(here["threshold"], here["low"], here["high"], color=COLOURS[k], lw=0.9, alpha=0.7)
            panel.plot(here["threshold"], here["value"], MARKERS[k] + "-", color=COLOURS[k], ms=3.5, lw=1, label=audit_rows.group_name(group))
        panel.set_title(short(name, 26))
        panel.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    handles = [Line2D([], [], color=COLOURS[k], marker=MARKERS[k], ms=4, lw=1, label=wrapped(audit_rows.group_name(g))) for k, g in enumerate(groups)]
    figure.legend(handles=handles, loc="outside upper left", ncols=min(4, len(handles)), handlelength=1.6)
    figure.supxlabel("mean score in the bin", fontsize=9)
    figure.supylabel("share of images that are positive", fontsize=9)
    caption = (
        f"Calibration by {called}: a line above the diagonal means that the class is more frequent than the scores say. At most five bins a"
        f" group, each of enough patients; bars: {audit_rows.percent(level)} intervals over patients. Dotted: a calibrated model."
    )
    return f"reliability_{attribute}_{target}", figure, caption, caption


# -------------------------------------------------------------------------------------------------------- the tables


def gap_table(found: pd.DataFrame, name_of: Callable[[str], str]) -> list[dict]:
    """Every tested difference, the clearest first."""
    targets = found["target"].nunique()
    return [
        {
            "what": title(row, targets), "who": who(row, name_of), "worse": difference(row, "worse"), "patients": audit_rows.count(row["n_patients"]),
            "p": audit_rows.p_value(row["p"]), "holm": audit_rows.p_value(row["p_holm"]), "by": audit_rows.p_value(row["p_by"]), "real": row["p_holm"] < ERROR,
            "note": audit_rows.note(row, positives=False),
        }
        for _, row in found.iterrows()
    ]  # fmt: skip


def mix_table(rows: pd.DataFrame, found: pd.DataFrame, split: str, name_of: Callable[[str], str]) -> list[dict]:
    """Beside each tested difference to all others the one to others like the group: those that survive correction, or else the clearest.

    found: as `gaps` gives it. [] where the audit has none.
    """
    here = rows[(rows["reference"] == LIKE) & (rows["split"] == split)]
    keys = ["target", "class", "metric", "attribute", "group"]
    beside = {tuple(row[k] for k in keys): row for _, row in here[here["effect"] == "difference"].iterrows()}
    mixed = {tuple(row[k] for k in keys): row for _, row in here[here["effect"] == "mix"].iterrows()}
    aucs = here.loc[here["metric"] == "auc", "value"].dropna()
    digits = 2 if (aucs.round(2) == aucs).all() else 3  # of data that are not open the audit rounds
    targets, lines = found["target"].nunique(), []
    for _, row in found.iterrows():
        key = tuple(row[k] for k in keys)
        if key not in beside or (len(lines) >= MOST_MIXED and not row["p_holm"] < ERROR):
            continue
        sign = 1 if CALLED[row["metric"]][1] else -1
        like, mix = (_turned(of[key], sign) for of in (beside, mixed))
        alike = how_alike(like["reason"])
        others = [part for part in audit_rows.note(like, positives=False).split("; ") if how_alike(part) is None]
        lines.append({
            "what": title(row, targets), "who": who(row, name_of), "rest": difference(row, "worse"), "patients": audit_rows.count(row["n_patients"]),
            "like": difference(like, digits=digits) if np.isfinite(like["value"]) else audit_rows.value(like),
            "mix": difference(mix, digits=digits) if np.isfinite(mix["value"]) else audit_rows.value(mix),
            "real": row["p_holm"] < ERROR, "worse": row["worse"] > 0, "clear": None if np.isnan(like["low"]) else bool(like["low"] > 0),
            "many": "" if alike is None else alike.many, "names": () if alike is None else alike.names, "note": "; ".join(others),
        })  # fmt: skip
    return lines


def _turned(row: pd.Series, sign: int) -> pd.Series:
    """The difference as how much worse the group fares; rates to two decimals."""
    row = row.copy()
    ends = sorted([sign * row["low"], sign * row["high"]]) if np.isfinite(row["low"]) else [np.nan, np.nan]
    row["value"], row["low"], row["high"] = (x if row["metric"] == "auc" else np.round(x, 2) for x in (sign * row["value"], *ends))
    return row


def mix_sentences(lines: Sequence[dict], name_of: Callable[[str], str]) -> list[str]:
    """What becomes of the differences that survive correction, beside others like the group. lines: of `mix_table`; [] where there are none."""
    worse = [line for line in lines if line["real"] and line["worse"]]
    if not worse:
        return []
    clear, covers, unknown = (sum(line["clear"] is kind for line in worse) for kind in (True, False, None))
    subject = "The one difference" if len(worse) == 1 else f"Of the {_number(len(worse))} differences"
    subject += f" to a group's disadvantage that survive{'s' if len(worse) == 1 else ''} correction"
    if len(worse) == 1:
        kept = "stays clear of 0" if clear else "is no longer clear of 0" if covers else "cannot be told"
    else:
        parts = [f"{_number(clear)} stay{'s' if clear == 1 else ''} clear of 0"] if clear else []
        parts += [f"{_number(covers)} {'is' if covers == 1 else 'are'} no longer clear of 0"] if covers else []
        parts += [f"of {_number(unknown)} it cannot be told"] if unknown else []
        kept = ", ".join(parts)
    names = list(dict.fromkeys(name for line in worse for name in line["names"]))
    told = [name_of(name).removesuffix(" (years)") for name in names]
    attribute = " and, but for the attribute itself, in " + ", ".join(told) if names else " alone, since nothing else is recorded"
    said = [f"{subject} {kept} when others are weighted to be like the group in labels{attribute}."]
    few = [line for line in worse if line["many"].startswith("fewer than") or re.fullmatch(r"[1-4]?\d %", line["many"])]
    if few:
        said.append(f"For {_number(len(few))} of them fewer than half of the images have others like them in all of these: part of the mix remains there.")
    return said


def missed_tables(rows: pd.DataFrame, split: str, name_of: Callable[[str], str]) -> list[dict]:
    """False positives of No Finding and false negatives of every other class: a table an attribute, a column a group."""
    here = rows[rows["effect"].isna() & (rows["split"] == split) & rows["metric"].isin(("false_positive_rate", "false_negative_rate"))]
    lines = []
    for target, name in here[["target", "class"]].drop_duplicates().itertuples(index=False):
        if name == NO_FINDING:
            lines.insert(0, (target, name, "false_positive_rate"))
        else:
            lines.append((target, name, "false_negative_rate"))
    cells = {(r["target"], r["class"], r["metric"], r["attribute"], r["group"]): r for _, r in here.iterrows()}
    targets, everybody = here["target"].nunique(), (subgroups.ALL, subgroups.ALL)
    attributes = [a for a in audit_rows.in_order(here["attribute"]) if a != subgroups.ALL]
    made = []
    for attribute in attributes or [subgroups.ALL]:
        groups = [(attribute, g) for g in audit_rows.in_order(here.loc[here["attribute"] == attribute, "group"]) if attribute != subgroups.ALL]
        columns = [everybody, *groups]
        sizes = []
        for column in columns:
            counted = [cells[(*line, *column)]["n_patients"] for line in lines if (*line, *column) in cells]
            known = [n for n in counted if np.isfinite(n)]
            sizes.append(audit_rows.count(max(known) if known else np.nan))
        made.append({
            "title": f"By {name_of(attribute)}" if groups else "Everybody",
            "columns": [("everybody" if c == everybody else audit_rows.group_name(c[1]), n) for c, n in zip(columns, sizes, strict=True)],
            "lines": [{"what": _missed(line, targets), "cells": [share(cells.get((*line, *column))) for column in columns]} for line in lines],
        })  # fmt: skip
    return made


def _missed(line: tuple[str, str, str], targets: int) -> str:
    target, name, metric = line
    said = CALLED[metric][0].format(name) if name != NO_FINDING else f"{name} called where there is a finding"
    return f"{target}: {said}" if targets > 1 else said


def calibration_table(rows: pd.DataFrame, split: str, name_of: Callable[[str], str]) -> list[dict]:
    """Mean score less share of positives, slope and debiased error of each class, overall and by group."""
    metrics = ("calibration_in_the_large", "calibration_slope", "ece_debiased")
    here = rows[rows["effect"].isna() & (rows["split"] == split) & rows["metric"].isin(metrics)]
    lines = []
    for (target, name, attribute, group), cell in here.groupby(["target", "class", "attribute", "group"], sort=False):
        of = {row["metric"]: row for _, row in cell.iterrows()}
        if not any(np.isfinite(row["value"]) for row in of.values()):
            continue
        label = "everybody" if attribute == subgroups.ALL else f"{name_of(attribute).removesuffix(' (years)')}: {audit_rows.group_name(group)}"
        patients = audit_rows.count(of[metrics[0]]["n_patients"])
        lines.append({"target": target, "class": name, "group": label, "patients": patients, "cells": [audit_rows.estimate(of.get(m), 2) for m in metrics]})
    return lines


def intersection_tables(rows: pd.DataFrame, split: str, name_of: Callable[[str], str]) -> list[dict]:
    """Rates of No Finding, or else of every class, in intersections: as they are, and shrunk."""
    here = rows[(rows["split"] == split) & rows["attribute"].str.contains(TIMES, regex=False)]
    classes = audit_rows.in_order(here["class"])
    wanted = [(NO_FINDING, "false_positive_rate")] if NO_FINDING in classes else [(c, "false_negative_rate") for c in classes if c != subgroups.MACRO]
    made = []
    for attribute in audit_rows.in_order(here["attribute"]):
        for name, metric in wanted:
            of = here[(here["attribute"] == attribute) & (here["class"] == name) & (here["metric"] == metric)]
            lines = []
            for group, cell in of.groupby("group", sort=False):
                raw, shrunk = (audit_rows.first(cell, effect=effect) for effect in (None, "shrunk"))
                if raw is not None:
                    told = shrunk is not None and np.isfinite(shrunk["value"])
                    why = raw if not np.isfinite(raw["value"]) else None if told else shrunk
                    lines.append({
                        "group": group.replace(f" {TIMES} ", " × "), "patients": audit_rows.count(raw["n_patients"]), "raw": share(raw),
                        "shrunk": share(shrunk) if told else "", "note": "" if why is None else audit_rows.note(why, positives=False),
                    })  # fmt: skip
            if any(line["shrunk"] for line in lines) or any("%" in line["raw"] for line in lines):
                called = " × ".join(name_of(a).removesuffix(" (years)") for a in attribute.split(TIMES))
                made.append({"title": f"{CALLED[metric][0].format(name)}, by {called}", "lines": lines})
    return made


def unsaid(rows: pd.DataFrame, split: str, name_of: Callable[[str], str], least: int) -> list[str]:
    """What cannot be said, and why."""
    here = rows[(rows["split"] == split) & rows["effect"].isna()]
    absent = [name_of(a).removesuffix(" (years)") for a, cell in here.groupby("attribute", sort=False) if (cell["n_images"] == 0).all()]
    said = [f"By {', '.join(absent)} nothing can be said: it is not recorded."] if absent else []
    for attribute, cell in here[~here["attribute"].isin((subgroups.ALL,))].groupby("attribute", sort=False):
        called = " × ".join(name_of(a).removesuffix(" (years)") for a in attribute.split(TIMES))
        groups = cell.groupby("group", sort=False)["suppressed"].all()
        gone = [g for g, all_gone in groups.items() if all_gone]
        if gone and TIMES in attribute:
            said.append(f"Of {called}, {len(gone)} of {len(groups)} groups that occur are withheld: fewer than {least} patients, or found by subtraction if shown.")
        elif gone:
            names = ", ".join(audit_rows.group_name(g) for g in gone)
            said.append(f"Of {called}, nothing is shown of {names}: fewer than {least} patients, or such a group would follow by subtraction.")
    rates = here[here["metric"].isin(("false_positive_rate", "false_negative_rate")) & ~here["suppressed"] & here["value"].isna()]
    if len(rates):
        total = len(here[here["metric"].isin(("false_positive_rate", "false_negative_rate"))])
        said.append(f"Of {total:,} rates of missed and of falsely called {_kind(here)}, {len(rates):,} are not shown, of groups with too few patients on one side.")
    return said


def context(rows: pd.DataFrame, split: str, name_of: Callable[[str], str], settings: dict) -> dict | None:
    """What the template draws of gaps; None where the audit was made without them. rows: all, counts withheld."""
    if not (rows["effect"] == "difference").any():
        return None
    level, found = settings["level"], gaps(rows, split)
    mixed = mix_table(rows, found, split, name_of)
    plain = rows[~rows["attribute"].str.contains(TIMES, regex=False)]
    drawings: Sequence[Drawing | None] = [forest(found, name_of, level)]
    curves = [
        reliability(plain, target, attribute, split, name_of(attribute), level)
        for target in audit_rows.targets(plain)
        for attribute in audit_rows.in_order(plain["attribute"])
        if attribute not in (subgroups.ALL, target)
    ]
    return {
        "sentences": sentences(found, name_of, level, settings["replicates"]),
        "underdiagnosis": underdiagnosis(found, name_of, [t for t in audit_rows.targets(plain) if audit_rows.multiclass(plain, t)]),
        "drawn": [d for d in drawings if d is not None],
        "reliability": [d for d in curves if d is not None],
        "table": gap_table(found, name_of),
        "floor": 1 / (settings["replicates"] + 1),
        "family": int(found["family"].max()) if found["family"].notna().any() else 0,
        "missed": missed_tables(plain, split, name_of),
        "intersections": intersection_tables(rows, split, name_of),
        "mix": mixed,
        "mix_sentences": mix_sentences(mixed, name_of),
        "calibration": calibration_table(plain, split, name_of),
        "unsaid": unsaid(rows, split, name_of, settings["min_patients"]),
        "thresholds": _thresholds(plain, split),
        "truth": settings["truth"] if "truth" in settings else "recorded",
    }


def _thresholds(rows: pd.DataFrame, split: str) -> str:
    methods = rows.loc[(rows["split"] == split) & rows["method"].fillna("").str.contains("; threshold ", regex=False), "method"]
    return methods.iloc[0].partition("; threshold ")[2] if len(methods) else ""
