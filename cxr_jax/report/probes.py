"""What the report says of probes: words made from intervals, figures, tables; from probe_audit.json alone.

A probe is said to find something only where its interval lies above .5, and to find more than a control only where the
paired difference does and survives the correction for how many were compared.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from cxr_jax import tables
from cxr_jax.audit import readings as probe_audit
from cxr_jax.audit import subgroups
from cxr_jax.report import figures, probe_figures
from cxr_jax.report import rows as audit_rows
from cxr_jax.report.probe_figures import CONTROLS, PROBES
from cxr_jax.tables import FEATURES

ALPHA = 0.05


@dataclasses.dataclass(frozen=True)
class Probed:
    """rows: AUCs, as audit rows with probe, input, shuffled. The rest as `audit.readings` has them."""

    rows: pd.DataFrame
    comparisons: list[dict]
    readings: list[dict]
    agreement: list[dict]
    absent: list[str]
    space: dict


def read(workdir: pathlib.Path, withhold: Callable[[pd.DataFrame], pd.DataFrame]) -> Probed | None:
    """The probes' part of a workdir, None where there is none. withhold: blanks counts that must not be told.

    Raises UserError for a file that is not what the audit stage writes.
    """
    path = workdir / "probe_audit.json"
    if not path.exists():
        return None
    found = tables.read_json(path)
    for name in ("rows", "comparisons", "readings", "agreement", "absent", "space"):
        if not isinstance(found, Mapping) or name not in found:
            raise tables.UserError(f"{path}: no field {name!r}; run the audit stage again")
    rows = audit_rows.frame(found["rows"], str(path))
    for name in ("probe", "input", "shuffled"):
        rows[name] = [row[name] for row in found["rows"]]
    rows = withhold(rows)
    # Of strata and of shuffled labels only how many there are is told, not how many of each class.
    rows.loc[(rows["attribute"] != subgroups.ALL) | rows["shuffled"].astype(bool), "n_positive"] = np.nan
    return Probed(rows, found["comparisons"], found["readings"], found["agreement"], found["absent"], found["space"])


def context(probed: Probed, name_of: Callable[[str], str], invented: bool) -> list[dict]:
    """One dict a target for the page's template: words, figures and tables."""
    made = []
    for target in audit_rows.in_order(probed.rows["target"]):
        rows = probed.rows[probed.rows["target"] == target]
        called = f"the {_classes(rows)} invented groups" if target == "race" and invented else name_of(target)
        everyone = rows[rows["attribute"] == subgroups.ALL]
        drawn = [
            probe_figures.answer(everyone, target, called),
            probe_figures.strata(_blocks(rows, name_of), target, called, float(rows["level"].iloc[0])),
            probe_figures.depth(everyone, target, called),
        ]
        made.append(
            {
                "target": target,
                "called": called,
                "sentences": sentences(rows, probed.comparisons, target, called, name_of),
                "drawn": [d for d in drawn if d is not None],
                "table": auc_lines(rows, name_of),
                "comparisons": comparison_lines(probed, target),
                "family": next((c["family"] for c in probed.comparisons if c["target"] == target), 0),
                "fits": fit_lines(probed, target, name_of),
            }
        )
    return made


def _classes(rows: pd.DataFrame) -> int:
    return len(set(rows.loc[rows["metric"] == "auc", "class"]) - {subgroups.MACRO})


def told(probe: str, input: str, shuffled: bool, attribute: str = "", group: str = "") -> str:
    """A reading in words: `logistic regression on the features`."""
    where = "shuffled labels" if shuffled else CONTROLS[input][0] if input in CONTROLS else input.replace("block", "block ")
    stratum = f", {in_stratum(attribute, group)}" if attribute and attribute != subgroups.ALL else ""
    return f"{PROBES[probe][0]} on {'the features' if where == FEATURES else where}{stratum}"


def in_stratum(attribute: str, group: str) -> str:
    """`within No Finding`, `within AP`."""
    return f"within {attribute if group == 'present' else group}"


def _own(rows: pd.DataFrame) -> pd.DataFrame:
    """Readings of the features themselves."""
    return rows[(rows["metric"] == "auc") & (rows["input"] == FEATURES) & ~rows["shuffled"].astype(bool)]


def _blocks(rows: pd.DataFrame, name_of):
    """For `probe_figures.strata`."""
    own = _own(rows)
    macros = own[own["class"] == subgroups.MACRO]
    for attribute, group in audit_rows.in_order(zip(macros["attribute"], macros["group"])):
        here = macros[(macros["attribute"] == attribute) & (macros["group"] == group)]
        heading = "All images" if attribute == subgroups.ALL else in_stratum(attribute, group).capitalize()
        if attribute != subgroups.ALL:
            heading = "Within " + (attribute if group == "present" else f"{name_of(attribute)} {group}")
        n = here.iloc[0]
        counted = f"n = {audit_rows.count(n['n_images'])}" if np.isfinite(n["n_images"]) else ""
        ceiling = audit_rows.first(rows, metric="auc_ceiling", class_=subgroups.MACRO, attribute=attribute, group=group)
        yield heading, counted, here, ceiling


# ------------------------------------------------------------------------------------------------- in words


def sentences(rows: pd.DataFrame, comparisons: Sequence[Mapping], target: str, called: str, name_of) -> list[str]:
    """What is found, beside its controls, within strata; no more than the intervals allow."""
    own = _own(rows)
    macros = own[(own["class"] == subgroups.MACRO) & (own["attribute"] == subgroups.ALL)]
    defined = [row for _, row in macros.iterrows() if np.isfinite(row["value"])]
    if not defined:
        why = "; ".join(dict.fromkeys(audit_rows.note(row) for _, row in macros.iterrows())) or "no probe was fitted"
        return [f"What the features know of {called} cannot be said: {why}."]
    best = max(defined, key=lambda row: row["value"])
    n = f"{audit_rows.count(best['n_images'])} test images of {audit_rows.count(best['n_patients'])} patients"
    value = "AUC" if _classes(rows) == 2 else "macro AUC"
    said = [
        f"On {n}, {PROBES[best['probe']][0]} tells {called} from the features with {value} {audit_rows.estimate(best)}, the"
        f" highest of {len(defined)} kinds of probe."
        if len(defined) > 1
        else f"On {n}, {PROBES[best['probe']][0]} tells {called} from the features with {value} {audit_rows.estimate(best)}."
    ]
    by_words: dict[str, list[str]] = {}
    for row in defined:
        by_words.setdefault(_verdict(row), []).append(f"{PROBES[row['probe']][0]} {audit_rows.estimate(row)}")
    for verdict, which in by_words.items():
        said.append(f"{verdict}: {'; '.join(which)}.")
    ceiling = audit_rows.first(
        rows, metric="auc_ceiling", class_=subgroups.MACRO, attribute=subgroups.ALL, group=subgroups.ALL
    )
    if ceiling is not None and np.isfinite(ceiling["value"]):
        said.append(f"The ceiling, the best that any reader of these images could reach, is {audit_rows.estimate(ceiling)}.")
    said += _controls(rows, comparisons, target, best)
    said += _strata(rows, name_of)
    return said


def _verdict(row: pd.Series) -> str:
    if not audit_rows.interval(row):
        return "Without an interval, nothing can be said"
    if row["low"] > 0.5:
        return "The whole interval lies above 0.5, what guessing reaches"
    return "The interval covers 0.5: no evidence of it" if row["high"] >= 0.5 else "The whole interval lies below 0.5, by chance or by an error"


def _controls(rows: pd.DataFrame, comparisons: Sequence[Mapping], target: str, best: pd.Series) -> list[str]:
    """The best probe beside its own controls."""
    first = tables.Reading(target, best["probe"], FEATURES).name
    more, same, untested = [], [], []
    for control, (label, _) in CONTROLS.items():
        shuffled = control == "shuffled"
        second = tables.Reading(target, best["probe"], FEATURES if shuffled else control, shuffled=shuffled).name
        found = next((c for c in comparisons if (c["first"], c["second"]) == (first, second)), None)
        here = rows[(rows["probe"] == best["probe"]) & (rows["class"] == subgroups.MACRO) & (rows["attribute"] == subgroups.ALL)]
        here = here[here["shuffled"].astype(bool) if shuffled else (here["input"] == control)]
        if not len(here):
            continue
        label = f"{label} ({audit_rows.estimate(here.iloc[0])})"
        if found is None or found["p_adjusted"] is None or found["low"] is None:
            untested.append(label)
        elif found["low"] > 0 and found["p_adjusted"] < ALPHA:
            more.append(label)
        else:
            same.append(label)
    said = []
    if more:
        said.append(f"That is more than the same probe finds in {_listed(more)}.")
    if same:
        said.append(f"It is not shown to be more than the same probe finds in {_listed(same)}.")
    if untested:
        said.append(f"Not compared: {_listed(untested)}.")
    return said


def _strata(rows: pd.DataFrame, name_of) -> list[str]:
    """In how many strata which probes still find it."""
    own = _own(rows)
    own = own[(own["class"] == subgroups.MACRO) & (own["attribute"] != subgroups.ALL)]
    said = []
    for attribute, group in audit_rows.in_order(zip(own["attribute"], own["group"])):
        here = [r for _, r in own[(own["attribute"] == attribute) & (own["group"] == group)].iterrows()]
        where = f"Within {attribute if group == 'present' else f'{name_of(attribute)} {group}'} alone"
        finite = [r for r in here if np.isfinite(r["value"]) and audit_rows.interval(r)]
        if not finite:
            said.append(f"{where} nothing can be said: {audit_rows.note(here[0]) or 'no interval'}.")
            continue
        still = [r for r in finite if r["low"] > 0.5]
        if still:
            top = max(still, key=lambda r: r["value"])
            said.append(f"{where} it is still found, best by {PROBES[top['probe']][0]}: {audit_rows.estimate(top)}.")
        else:
            top = max(finite, key=lambda r: r["value"])
            said.append(f"{where} no probe's interval lies above 0.5; the highest is {PROBES[top['probe']][0]}, {audit_rows.estimate(top)}.")
    return said


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


# ------------------------------------------------------------------------------------------------- tables


def auc_lines(rows: pd.DataFrame, name_of) -> dict:
    """Every reading's AUCs, macro and by class, one line a reading."""
    aucs = rows[rows["metric"].isin(("auc", "auc_ceiling"))]
    classes = [c for c in audit_rows.in_order(aucs["class"]) if c != subgroups.MACRO]
    lines = []
    keys = ["probe", "input", "shuffled", "attribute", "group"]
    for (probe, input, shuffled, attribute, group), here in aucs.groupby(keys, sort=False):
        macro = audit_rows.first(here, class_=subgroups.MACRO)
        stratum = "" if attribute == subgroups.ALL else attribute if group == "present" else f"{name_of(attribute)} {group}"
        what = "shuffled labels" if shuffled else CONTROLS[input][0] if input in CONTROLS else input.replace("block", "block ")
        lines.append(
            {
                "probe": PROBES[probe][0] if probe else "ceiling",
                "input": what,
                "stratum": stratum or "all images",
                "macro": audit_rows.estimate(macro),
                "classes": [audit_rows.estimate(audit_rows.first(here, class_=c)) for c in classes],
                "images": audit_rows.count(macro["n_images"]),
                "patients": audit_rows.count(macro["n_patients"]),
                "note": audit_rows.note(macro, positives=False),
            }
        )
    return {"classes": classes, "lines": lines, "notes": any(line["note"] for line in lines)}


def comparison_lines(probed: Probed, target: str) -> list[dict]:
    names = {r["name"]: told(r["probe"], r["input"], r["shuffled"]) for r in probed.readings}
    lines = []
    for row in (c for c in probed.comparisons if c["target"] == target):
        number = {k: np.nan if row[k] is None else row[k] for k in ("value", "low", "high", "p", "p_adjusted")}
        lines.append(
            {
                "first": names[row["first"]],
                "second": names[row["second"]],
                "value": audit_rows.number(number["value"]),
                "interval": audit_rows.interval(pd.Series(number)),
                "p": _p(number["p"]),
                "p_adjusted": _p(number["p_adjusted"]),
                "note": row["reason"] or "",
            }
        )
    return lines


def _p(p: float) -> str:
    if not np.isfinite(p):
        return ""
    return "< .0001" if p < 1e-4 else f"{p:.4f}".lstrip("0") if p < 1 else "1"


def fit_lines(probed: Probed, target: str, name_of) -> list[dict]:
    """How each reading was fitted and chosen."""
    lines = []
    for reading in (r for r in probed.readings if r["target"] == target):
        about = reading["about"]
        chosen = []
        for key, word in _CHOSEN.items():
            if about.get(key) is not None:
                value = about[key]
                chosen.append(word.format(f"{value:.3g}" if isinstance(value, float) else value))
        if about.get("converged") is False:
            chosen.append("NOT CONVERGED")
        lines.append(
            {
                "name": told(reading["probe"], reading["input"], reading["shuffled"], reading["attribute"], reading["group"]),
                "chosen": ", ".join(chosen),
                "by": about.get("chosen_by", ""),
                "note": about.get("reason", ""),
            }
        )
    return lines


_CHOSEN = {
    "penalty": "penalty {}",
    "gradient_norm": "gradient norm {}",
    "k": "k = {}",
    "weighting": "{} votes",
    "metric": "{} distance",
    "clusters": "{} clusters",
    "hidden": "{} hidden units",
    "best_epoch": "best epoch {}",
}


def agreement_table(probed: Probed, name_of) -> list[dict]:
    """How far clusters line up with each label: a line a label and number of clusters."""
    lines: dict[tuple, dict] = {}
    for row in probed.agreement:
        line = lines.setdefault(
            (row["label"], row["clusters"]),
            {
                "label": name_of(row["label"]),
                "clusters": row["clusters"],
                "measures": {},
            },
        )
        value, low, high, p = (np.nan if row[k] is None else row[k] for k in ("value", "null_low", "null_high", "p"))
        null = f"{audit_rows.number(low)} to {audit_rows.number(high)}" if np.isfinite(low) else ""
        line["measures"][row["measure"]] = (audit_rows.number(value), null, _p(p))
    return list(lines.values())


def space(probed: Probed, name_of) -> dict:
    """Maps of the features, which of them carry a label, and where groups lie apart, for the page's template."""
    found = probed.space
    tests: dict[tuple, dict] = {}
    for row in found["tests"]:
        line = tests.setdefault(
            (row["attribute"], row["group"], row["against"]),
            {"attribute": name_of(row["attribute"]), "group": row["group"], "against": row["against"], "cells": [], "note": row["reason"]},
        )
        if row["statistic"] is None:
            line["cells"].append("")
        else:
            line["cells"].append(f"{audit_rows.number(row['statistic'], 2)}{'*' if row['p_holm'] < ALPHA else ''}")
    shown = 5
    for line in tests.values():
        line["apart"] = sum(cell.endswith("*") for cell in line["cells"])
        line["cells"] = line["cells"][:shown]
    weight = [
        (told(r["probe"], r["input"], r["shuffled"]), r["about"]["weight_in_top"])
        for r in probed.readings
        if "weight_in_top" in r["about"]
    ]
    each = []
    for target, classes in found["each"].items():
        for name, of in classes.items():
            best = of["best"][0] if of["best"] else None
            each.append(
                {
                    "target": name_of(target),
                    "class": name,
                    "carry": f"{of['carry']:,} of {of['features']:,}",
                    "best": "" if best is None else f"feature {best['feature']}: {_estimate(best, 'auc')}",
                    "others": ", ".join(f"{b['feature']} ({audit_rows.number(b['auc'] if b['auc'] is not None else np.nan, 2)})" for b in of["best"][1:]),
                }
            )
    drawn = {kind: probe_figures.feature_map(found, kind, name_of) for kind in probe_figures.KINDS}
    why = {kind: found["maps"][kind].get("reason", "every cell would show too few patients") for kind, d in drawn.items() if d is None}
    return {
        "drawn": [d for d in drawn.values() if d is not None],
        "none": [f"{probe_figures.KINDS[kind]}: {reason}" for kind, reason in why.items()],
        "tests": list(tests.values()),
        "components": [f"{i} ({audit_rows.percent(round(s, 3))})" for i, s in enumerate(found["share"][:shown], 1)],
        "family": found["tests"][0]["family"] if found["tests"] else 0,
        "tested": len(found["share"]),
        "each": each,
        "weight": [
            f"The {w['features']} heaviest of {w['of']:,} features have {audit_rows.percent(round(w['value'], 3))} of the weight of"
            f" {name} ({audit_rows.percent(round(w['low'], 3))} to {audit_rows.percent(round(w['high'], 3))} in the middle 95 % of"
            f" {w['refits']} refits on resampled patients)."
            for name, w in weight
            if w["value"] is not None
        ],
    }


def _estimate(row: Mapping, key: str) -> str:
    number = {k: np.nan if row[k] is None else row[k] for k in (key, "low", "high")}
    interval = audit_rows.interval(pd.Series(number), 2)
    return audit_rows.number(number[key], 2) + (f" ({interval})" if interval else "")


# ------------------------------------------------------------------------------------------------- for the terminal


def text(probed: Probed, name_of) -> str:
    """The macro AUCs as plain text, a line a reading."""
    lines = []
    for target in audit_rows.in_order(probed.rows["target"]):
        rows = probed.rows[(probed.rows["target"] == target) & (probed.rows["class"] == subgroups.MACRO)]
        body = [["", "AUC", "interval", "images", "patients"]]
        for _, row in rows.iterrows():
            ceiling = row["metric"] == "auc_ceiling"
            name = "ceiling" if ceiling else told(row["probe"], row["input"], row["shuffled"])
            if row["attribute"] != subgroups.ALL:
                name += f", {in_stratum(row['attribute'], row['group'])}"
            counts = [audit_rows.count(row[k]) for k in ("n_images", "n_patients")]
            body.append([name, audit_rows.value(row), audit_rows.interval(row), *counts])
        widths = [max(len(cells[i]) for cells in body) for i in range(5)]
        lines.append(f"AUC of probes for {target}, test images, macro over classes")
        lines += ["  ".join([c[0].ljust(widths[0]), *(x.rjust(w) for x, w in zip(c[1:], widths[1:]))]) for c in body]
        lines.append("")
    return "\n".join(lines).rstrip()
