"""What the report says of probes: words made from intervals, figures, tables; from probe_audit.json alone.

A probe is said to find something only where its interval lies above .5 and the test against .5 survives the correction for
how many probes and strata were asked; and to find more than a control only where the same holds of their difference.
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
from cxr_jax.tables import AS_MANY, FEATURES

ALPHA = 0.05


@dataclasses.dataclass(frozen=True)
class Probed:
    """rows: AUCs, as audit rows with probe, input, shuffled. The rest as `audit.readings` has them."""

    rows: pd.DataFrame
    comparisons: list[dict]
    readings: list[dict]
    fitted: list[float]  # images that each was fitted on, NaN where that must not be told
    agreement: list[dict]
    absent: list[str]
    space: dict
    guessing: dict[tuple[str, str], dict]  # by a reading's name and a class or `macro`, its test against .5
    by_truth: list[str]  # strata by what is so, not by what is recorded
    least: int  # patients that a number must be of; 1 where the data are open
    erased: dict  # the attribute that was taken from the features, and on how many patients what took it was fitted; or {}
    abroad: dict[str, pd.DataFrame]  # by other data set: rows of its images, by probes that were fitted here
    least_abroad: Mapping[str, int]  # by other data set, patients that a number must be of


def read(
    workdir: pathlib.Path, withhold: Callable[[pd.DataFrame], pd.DataFrame], unspoken: Callable[[str], bool], least: int,
    least_abroad: Mapping[str, int] = {},
) -> Probed | None:  # fmt: skip
    """The probes' part of a workdir, None where there is none.

    withhold: blanks counts that must not be told. unspoken: whether the number of test images by a label is one of them. least:
    patients that a number must be of; 1 where the data are open to all; least_abroad: the same by other data set.

    Raises UserError for a file that is not what the audit stage writes.
    """
    path = workdir / "probe_audit.json"
    if not path.exists():
        return None
    found = tables.read_json(path)
    for name in ("rows", "comparisons", "against_guessing", "readings", "agreement", "absent", "strata_by_truth", "space"):
        if not isinstance(found, Mapping) or name not in found:
            raise tables.UserError(f"{path}: no field {name!r}; run the audit stage again")

    def frame(several: list[dict]) -> pd.DataFrame:
        return audit_rows.frame(several, str(path), ("probe", "input", "shuffled")).astype({"shuffled": bool})

    rows = _roughly(withhold(frame(found["rows"])), least)
    # Of shuffled labels, too, only how many there are is told.
    rows.loc[(rows["attribute"] != subgroups.ALL).to_numpy() | rows["shuffled"].to_numpy(bool), "n_positive"] = np.nan
    fitted = [{"split": "train", "class": subgroups.MACRO, "metric": "auc", "n_positive": np.nan, **_place(r), **_fitted(r)} for r in found["readings"]]
    fitted = _roughly(withhold(pd.DataFrame(fitted)), least)
    agreement = [row for row in found["agreement"] if row["value"] is not None and not unspoken(row["label"])]
    guessing = {(row["reading"], row["class"]): row for row in found["against_guessing"]}
    abroad = {name: frame(of["rows"]) for name, of in found.get("elsewhere", {}).items()}
    absent = found["absent"] + [line for of in found.get("elsewhere", {}).values() for line in of["absent"]]
    return Probed(
        rows, found["comparisons"], found["readings"], fitted["n_images"].tolist(), agreement, absent, found["space"], guessing,
        found["strata_by_truth"], least, found.get("erased", {}), abroad, least_abroad,
    )  # fmt: skip


def _place(reading: Mapping) -> dict:
    return {"target": reading["target"], "attribute": reading["attribute"] or subgroups.ALL, "group": reading["group"] or subgroups.ALL}


def _fitted(reading: Mapping) -> dict:
    return {"n_images": float(reading["about"]["fit_images"]), "n_patients": float(reading["about"]["fit_patients"])}


def _roughly(rows: pd.DataFrame, least: int) -> pd.DataFrame:
    """Of strata, whose groups share patients and whose rest is in no table, only about how many there are: rounded down.

    Fewer than `least` stay as they are; `in_count` tells them from none, and tells no more.
    """
    apart = (rows["attribute"] != subgroups.ALL).to_numpy()
    for count in ("n_images", "n_patients"):
        rows.loc[apart, count] = [roughly(n, least) for n in rows.loc[apart, count]]
    return rows


def roughly(n: float, least: int) -> float:
    """A count within a stratum, rounded down to a multiple of `least` where it is not below that."""
    return n if 1 <= n < least else n // least * least


def context(probed: Probed, name_of: Callable[[str], str], invented: bool) -> list[dict]:
    """One dict a target for the page's template: words, figures and tables."""
    made = []
    for target in audit_rows.in_order(probed.rows["target"]):
        rows = probed.rows[probed.rows["target"] == target]
        called = f"the {_classes(rows)} invented groups" if target == "race" and invented else name_of(target)
        everyone = rows[rows["attribute"] == subgroups.ALL]
        words = control_words(probed, target)
        in_words = strata_words(probed, name_of)
        drawn = [
            probe_figures.answer(everyone, target, called, words),
            probe_figures.strata(_blocks(rows, in_words, probed.least), target, called, float(rows["level"].iloc[0])),
            probe_figures.depth(everyone, target, called),
            probe_figures.fewer(everyone, target, called, _fitted_on(probed, target)),
        ]
        made.append(
            {
                "target": target,
                "called": called,
                "sentences": sentences(probed, rows, target, called, words, in_words),
                "drawn": [d for d in drawn if d is not None],
                "table": auc_lines(rows, words, in_words, probed.least),
                "abroad": [(name, auc_lines(of, words, in_words, 1)) for name, of in rows_abroad(probed, target)],
                "comparisons": comparison_lines(probed, target, words),
                "family": next((c["family"] for c in probed.comparisons if c["target"] == target), 0),
                "by_class": any(c["class"] != subgroups.MACRO for c in probed.comparisons if c["target"] == target),
                "fits": fit_lines(probed, target, words, in_words),
            }
        )
    return made


def rows_abroad(probed: Probed, target: str):
    """(other data set, rows of a target there, n rounded down where its data are not open), as far as there are."""
    for name, rows in probed.abroad.items():
        mine, least = rows[rows["target"] == target].copy(), probed.least_abroad.get(name, probed.least)
        for count in ("n_images", "n_patients"):
            # Of what is recorded there is a table elsewhere, from which an exact number could be subtracted.
            mine[count] = [n // least * least if np.isfinite(n) else n for n in mine[count]]
        if len(mine):
            yield name, mine


def _classes(rows: pd.DataFrame) -> int:
    return len(set(rows.loc[rows["metric"] == "auc", "class"]) - {subgroups.MACRO})


def control_words(probed: Probed, target: str) -> dict[str, str]:
    """What to call each control, and features that were erased by fewer; of demographics, which ones: a target is never among its own."""
    words = {name: label for name, (label, _) in CONTROLS.items()}
    words |= {name: f"features erased by {n:,} patients" for name, n in _fitted_on(probed, target).items() if name != FEATURES}
    for reading in probed.readings:
        if reading["target"] == target and reading["about"].get("attributes"):
            words["demographics"] = f"{_listed(reading['about']['attributes'])} alone"
    return words


def _fitted_on(probed: Probed, target: str) -> dict[str, int]:
    """On how many patients what took the target from the features was fitted, by the name of the features; {} where nothing did, or it is not asked."""
    return probed.erased["patients"] if probed.erased.get("attribute") == target else {}


def told(reading: Mapping, words: Mapping[str, str], stratum: str = "") -> str:
    """A reading in words: `logistic regression on the features`. reading: with probe, input, shuffled and attribute."""
    where = "the features" if reading["input"] == FEATURES and not reading["shuffled"] else reads(reading, words)
    return f"{PROBES[reading['probe']][0]} on {where}{_inside(reading['attribute'], stratum)}"


def _inside(attribute: str, stratum: str) -> str:
    """The end of a sentence that says where: `, within view AP`; '' for all images. stratum: in words."""
    return f", {'among' if attribute.startswith(AS_MANY) else 'within'} {stratum}" if stratum else ""


def reads(reading: Mapping, words: Mapping[str, str]) -> str:
    if reading["shuffled"]:
        return words["shuffled"]
    return words[reading["input"]] if reading["input"] in words else reading["input"].replace("block", "block ")


def strata_words(probed: Probed, name_of) -> Callable[[str, str], str]:
    """(attribute, group) of a stratum to words: `true No Finding`, `recorded No Finding`, `view AP`."""

    def words(attribute: str, group: str) -> str:
        if attribute == subgroups.ALL or not attribute:
            return ""
        if attribute.startswith(AS_MANY):
            return f"as many images as {words(attribute.removeprefix(AS_MANY), group)}, at random"
        if group == "present":
            return f"{'true' if attribute in probed.by_truth else 'recorded'} {attribute}"
        return f"{name_of(attribute)} {group}"

    return words


def in_count(n: float, least: int) -> str:
    """A count of a stratum, which is rounded down where data are not open."""
    if least <= 1 or not np.isfinite(n) or n == 0:
        return audit_rows.count(n)
    return f"fewer than {least}" if n < least else f"{int(n):,} or more"


def _own(rows: pd.DataFrame) -> pd.DataFrame:
    """Readings of the features themselves."""
    return rows[(rows["metric"] == "auc") & (rows["input"] == FEATURES) & ~rows["shuffled"].astype(bool)]


def _places(rows: pd.DataFrame):
    """(attribute, group, macro rows of the features there, those among as many images at random), of all images and each stratum."""
    own = _own(rows)
    macros = own[own["class"] == subgroups.MACRO]

    def of(attribute, group):
        return macros[(macros["attribute"] == attribute) & (macros["group"] == group)]

    for attribute, group in audit_rows.in_order(zip(macros["attribute"], macros["group"])):
        if not attribute.startswith(AS_MANY):
            yield attribute, group, of(attribute, group), of(AS_MANY + attribute, group)


def _blocks(rows: pd.DataFrame, in_words, least: int):
    """For `probe_figures.strata`."""
    for attribute, group, here, beside in _places(rows):
        heading = f"Within {in_words(attribute, group)}" if attribute != subgroups.ALL else "All images"
        n = here.iloc[0]["n_images"]
        counted = f"n = {in_count(n, 1 if attribute == subgroups.ALL else least)}" if np.isfinite(n) else ""
        ceiling = audit_rows.first(rows, metric="auc_ceiling", class_=subgroups.MACRO, attribute=attribute, group=group)
        yield heading, counted, here, beside, ceiling


# ------------------------------------------------------------------------------------------------- in words


def sentences(probed: Probed, rows: pd.DataFrame, target: str, called: str, words, in_words) -> list[str]:
    """What is found, beside its controls, within strata; no more than the intervals and the tests allow."""
    own = _own(rows)
    macros = own[(own["class"] == subgroups.MACRO) & (own["attribute"] == subgroups.ALL)]
    defined = [row for _, row in macros.iterrows() if np.isfinite(row["value"])]
    if not defined:
        why = "; ".join(dict.fromkeys(audit_rows.note(row) for _, row in macros.iterrows())) or "no probe was fitted"
        lead = f"What the features know of {called} cannot be said for all classes together: {why}. The figure and the table have the others."
        return [lead, *_by_class(probed, own, target), "Controls and strata, too, are told by class: in the tables below."]
    best = max(defined, key=lambda row: row["value"])
    n = f"{audit_rows.count(best['n_images'])} test images of {audit_rows.count(best['n_patients'])} patients"
    value = "AUC" if _classes(rows) == 2 else "macro AUC"
    said = [f"Judged on {n}. {value[0].upper() + value[1:]} for telling {called} from the features, and its interval:"]
    by_words: dict[str, list[str]] = {}
    for row in defined:
        verdict = _verdict(row, _test(probed, target, row))
        by_words.setdefault(verdict, []).append(f"{PROBES[row['probe']][0]} {audit_rows.estimate(row)}")
    said += [f"{verdict}: {'; '.join(which)}." for verdict, which in by_words.items()]
    ceiling = audit_rows.first(
        rows, metric="auc_ceiling", class_=subgroups.MACRO, attribute=subgroups.ALL, group=subgroups.ALL
    )
    if ceiling is not None and np.isfinite(ceiling["value"]):
        said.append(f"The ceiling, the best to expect of any reader of these images, is {audit_rows.estimate(ceiling)}.")
    return said + _controls(probed, rows, target, best, words) + _strata(probed, rows, target, in_words)


def _by_class(probed: Probed, own: pd.DataFrame, target: str) -> list[str]:
    """A sentence for each class that has AUCs: the highest of them and what its test says."""
    here = own[(own["attribute"] == subgroups.ALL) & own["value"].notna()]
    said = []
    for name in audit_rows.in_order(here["class"]):
        top = max((row for _, row in here[here["class"] == name].iterrows()), key=lambda row: row["value"])
        verdict = _verdict(top, _test(probed, target, top))
        said.append(f"{name} against the rest: the highest is {PROBES[top['probe']][0]}, {audit_rows.estimate(top)}. {verdict}.")
    return said


def _test(probed: Probed, target: str, row: pd.Series) -> Mapping | None:
    """The test against .5 of a row of the features, None where there is none."""
    stratum = {} if row["attribute"] == subgroups.ALL else {"attribute": row["attribute"], "group": row["group"]}
    return probed.guessing.get((tables.Reading(target, row["probe"], FEATURES, **stratum).name, row["class"]))


def _verdict(row: pd.Series, test: Mapping | None) -> str:
    """What an interval, and the test against .5 that is corrected for how many there are, say of one reading."""
    if not audit_rows.interval(row):
        return "Without an interval, nothing can be said"
    if row["low"] > 0.5:
        if test is None or test["p_adjusted"] is None:
            return "Above 0.5 by its interval, without a test"
        if test["p_adjusted"] < ALPHA:
            return "Above 0.5, what guessing reaches"
        return f"Above 0.5 by its interval, but not after correction for {test['family']} tests"
    return "Not told from 0.5, what guessing reaches" if row["high"] >= 0.5 else "Below 0.5, by chance or by an error"


def _controls(probed: Probed, rows: pd.DataFrame, target: str, best: pd.Series, words) -> list[str]:
    """The probe of the highest AUC beside its own controls."""
    first = tables.Reading(target, best["probe"], FEATURES).name
    said: dict[str, list[str]] = {"more": [], "less": [], "same": [], "untested": []}
    for control in CONTROLS:
        shuffled = control == "shuffled"
        second = tables.Reading(target, best["probe"], FEATURES if shuffled else control, shuffled=shuffled).name
        found = next((c for c in probed.comparisons if (c["first"], c["second"], c["class"]) == (first, second, subgroups.MACRO)), None)
        here = rows[(rows["probe"] == best["probe"]) & (rows["class"] == subgroups.MACRO) & (rows["attribute"] == subgroups.ALL)]
        here = here[here["shuffled"].astype(bool) if shuffled else (here["input"] == control)]
        if not len(here):
            continue
        label = f"{words[control]} ({audit_rows.estimate(here.iloc[0])})"
        if found is None or found["p_adjusted"] is None or found["low"] is None:
            said["untested"].append(label)
        elif found["p_adjusted"] < ALPHA and (found["low"] > 0 or found["high"] < 0):
            said["more" if found["low"] > 0 else "less"].append(label)
        else:
            said["same"].append(label)
    probe = PROBES[best["probe"]][0]
    sentences = {
        "more": f"For {probe} that is more than from {{}}.",
        "less": f"For {probe} that is less than from {{}}.",
        "same": f"For {probe} it is not shown to differ from {{}}.",
        "untested": f"For {probe} there is no test, of all classes together, against {{}}.",
    }
    return [sentences[which].format(_listed(labels)) for which, labels in said.items() if labels]


def _strata(probed: Probed, rows: pd.DataFrame, target: str, in_words) -> list[str]:
    """In which strata how many probes still find it."""
    said = []
    for attribute, group, here, beside in _places(rows):
        if attribute == subgroups.ALL:
            continue
        where = f"Within {in_words(attribute, group)} alone ({in_count(here['n_images'].iloc[0], probed.least)} test images)"
        finite = [r for _, r in here.iterrows() if np.isfinite(r["value"]) and audit_rows.interval(r)]
        if not finite:
            said.append(f"{where} nothing can be said of all classes together: {audit_rows.note(here.iloc[0]) or 'no interval'}.")
            continue
        above = sum(_verdict(r, _test(probed, target, r)) == "Above 0.5, what guessing reaches" for r in finite)
        top = max(finite, key=lambda r: r["value"])
        how_many = f"{above} of {len(finite)} probes find it" if above else "no probe is shown to find it"
        sentence = f"{where} {how_many}; the highest is {PROBES[top['probe']][0]}, {audit_rows.estimate(top)}."
        for _, row in beside[beside["probe"] == top["probe"]].iterrows():
            n = in_count(row["n_images"], probed.least)
            sentence += f" Among as many images drawn at random ({n}) the same probe reaches {audit_rows.estimate(row)}."
        if not above and not len(beside):
            sentence += " With fewer images, less can be shown."
        said.append(sentence)
    return said


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


# ------------------------------------------------------------------------------------------------- tables


def auc_lines(rows: pd.DataFrame, words, in_words, least: int) -> dict:
    """Every reading's AUCs, macro and by class, one line a reading."""
    aucs = rows[rows["metric"].isin(("auc", "auc_ceiling"))]
    classes = [c for c in audit_rows.in_order(aucs["class"]) if c != subgroups.MACRO]
    lines = []
    keys = ["probe", "input", "shuffled", "attribute", "group"]
    for (probe, input, shuffled, attribute, group), here in aucs.groupby(keys, sort=False):
        macro = audit_rows.first(here, class_=subgroups.MACRO)
        lines.append(
            {
                "probe": PROBES[probe][0] if probe else "ceiling",
                "input": reads({"input": input, "shuffled": shuffled}, words) if probe else "",
                "stratum": in_words(attribute, group) or "all images",
                "macro": audit_rows.estimate(macro),
                "classes": [audit_rows.estimate(audit_rows.first(here, class_=c)) for c in classes],
                **{name: in_count(macro[f"n_{name}"], least if attribute != subgroups.ALL else 1) for name in ("images", "patients")},
                "note": audit_rows.note(macro, positives=False),
            }
        )
    return {"classes": classes, "lines": lines, "notes": any(line["note"] for line in lines)}


def comparison_lines(probed: Probed, target: str, words) -> list[dict]:
    names = {r["name"]: told(r, words) for r in probed.readings}
    lines = []
    for row in (c for c in probed.comparisons if c["target"] == target):
        number = {k: np.nan if row[k] is None else row[k] for k in ("value", "low", "high", "p", "p_adjusted")}
        lines.append(
            {
                "class": audit_rows.class_name(row["class"]),
                "first": names[row["first"]],
                "second": names[row["second"]],
                "value": audit_rows.number(number["value"]),
                "interval": audit_rows.interval(pd.Series(number)),
                "p": audit_rows.p_value(number["p"]),
                "p_adjusted": audit_rows.p_value(number["p_adjusted"]),
                "note": row["reason"] or "",
            }
        )
    return lines


def fit_lines(probed: Probed, target: str, words, in_words) -> list[dict]:
    """How each reading was fitted and chosen."""
    lines = []
    for reading, images in zip(probed.readings, probed.fitted, strict=True):
        if reading["target"] != target:
            continue
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
                "name": told(reading, words, in_words(reading["attribute"], reading["group"])),
                "images": in_count(images, probed.least if reading["attribute"] else 1),
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
                "images": in_count(row["n_images"] // probed.least * probed.least, probed.least),
                "measures": {},
            },
        )
        value, low, high, p = (np.nan if row[k] is None else row[k] for k in ("value", "null_low", "null_high", "p_adjusted"))
        null = f"{audit_rows.number(low)} to {audit_rows.number(high)}" if np.isfinite(low) else ""
        line["measures"][row["measure"]] = (audit_rows.number(value), null, audit_rows.p_value(p))
    return list(lines.values())


def space(probed: Probed, name_of) -> dict:
    """Maps of the features, which of them carry a label, and where groups lie apart, for the page's template."""
    found = probed.space
    tests: dict[tuple, dict] = {}
    for row in found["tests"]:
        line = tests.setdefault(
            (row["attribute"], row["group"], row["against"]),
            {
                "attribute": name_of(row["attribute"]),
                "group": row["group"],
                "against": row["against"],
                "cells": [],
                "n": f"{row['n_patients']:,.0f} / {row['n_against']:,.0f}" if probed.least <= 1 and row["n_patients"] is not None else "",
                "note": row["reason"],
            },
        )
        if row["statistic"] is None:
            line["cells"].append("")
        else:
            line["cells"].append(f"{audit_rows.number(row['statistic'], 2)}{'*' if row['p_holm'] < ALPHA else ''}")
    shown = 5
    for line in tests.values():
        line["apart"] = sum(cell.endswith("*") for cell in line["cells"])
        line["cells"] = line["cells"][:shown]
    weight = [(r["target"], r["about"]["weight_in_top"]) for r in probed.readings if "weight_in_top" in r["about"]]
    each = []
    for target, classes in found["each"].items():
        for name, of in classes.items():
            # Of features that do not carry it the farthest from .5 is the luckiest; no interval of its own says how lucky.
            best = [b for b in of["best"] if b["q"] is not None and b["q"] < ALPHA]
            each.append(
                {
                    "target": name_of(target),
                    "class": name,
                    "carry": f"{of['carry']:,} of {of['features']:,}",
                    "best": ", ".join(f"{b['feature']} ({audit_rows.number(b['auc'], 2)}, q {audit_rows.p_value(b['q'])})" for b in best) or "none",
                }
            )
    unread = [name_of(target) for target in audit_rows.in_order(probed.rows["target"]) if target not in found["each"]]
    test = probed.rows[(probed.rows["class"] == subgroups.MACRO) & (probed.rows["attribute"] == subgroups.ALL)].iloc[0]
    drawn = {}
    for kind, of in found["maps"].items():
        # How many lie on a map is told as exactly as how many were judged.
        n_images, n_patients = (of[k] // probed.least * probed.least for k in ("n_images", "n_patients"))
        whom = f"{in_count(n_images, probed.least)} test images of {in_count(n_patients, probed.least)} patients"
        drawn[kind] = probe_figures.feature_map(found, kind, name_of, whom)
    why = {kind: found["maps"][kind].get("reason", "every cell would show too few patients") for kind, d in drawn.items() if d is None}
    return {
        "drawn": [d for d in drawn.values() if d is not None],
        "none": [f"{probe_figures.KINDS[kind]}: {reason}" for kind, reason in why.items()],
        "tests": list(tests.values()),
        "components": [f"{i} ({audit_rows.percent(round(s, 3))})" for i, s in enumerate(found["share"][:shown], 1)],
        "family": found["tests"][0]["family"] if found["tests"] else 0,
        "tested": len(found["share"]),
        "each": each,
        "open": probed.least <= 1,
        "n": f"{audit_rows.count(test['n_images'])} test images of {audit_rows.count(test['n_patients'])} patients",
        "unread": unread,
        "weight": [
            f"The {w['features']} heaviest of {w['of']:,} features have {audit_rows.percent(round(w['value'], 3))} of the weight of"
            f" logistic regression for {name_of(target)}"
            + (
                f" ({audit_rows.percent(round(w['low'], 3))} to {audit_rows.percent(round(w['high'], 3))} in the middle 95 % of"
                f" {w['defined']} refits on resampled training patients)."
                if w["low"] is not None
                else " (without an interval: no refit has all classes)."
            )
            for target, w in weight
            if w["value"] is not None
        ],
    }


# ------------------------------------------------------------------------------------------------- for the terminal


def macros(probed: Probed, target: str, name_of) -> list[tuple[str, pd.Series, tuple[str, str]]]:
    """The rows of macro AUCs, of ceilings too: (reading in words, row, its n of images and of patients in words)."""
    words, in_words, found = control_words(probed, target), strata_words(probed, name_of), []
    for _, row in probed.rows[(probed.rows["target"] == target) & (probed.rows["class"] == subgroups.MACRO)].iterrows():
        stratum = in_words(row["attribute"], row["group"])
        name = told(row, words, stratum) if row["probe"] else f"ceiling{_inside(row['attribute'], stratum)}"
        least = 1 if row["attribute"] == subgroups.ALL else probed.least
        found.append((name, row, (in_count(row["n_images"], least), in_count(row["n_patients"], least))))
    for where, rows in rows_abroad(probed, target):
        for _, row in rows[rows["class"] == subgroups.MACRO].iterrows():
            found.append((f"{told(row, words)}, on {where}", row, (in_count(row["n_images"], 1), in_count(row["n_patients"], 1))))
    return found


def text(probed: Probed, name_of) -> str:
    """The macro AUCs as plain text, a line a reading; footnotes say why one is missing."""
    lines = []
    for target in audit_rows.in_order(probed.rows["target"]):
        notes, body = [], [["", "AUC", "interval", "images", "patients"]]
        for name, row, counts in macros(probed, target, name_of):
            note = audit_rows.note(row, positives=False)
            if note:
                notes += [note] if note not in notes else []
                name += f" [{notes.index(note) + 1}]"
            body.append([name, audit_rows.value(row), audit_rows.interval(row), *counts])
        widths = [max(len(cells[i]) for cells in body) for i in range(5)]
        lines.append(f"AUC of probes for {target}, test images, macro over classes")
        lines += ["  ".join([c[0].ljust(widths[0]), *(x.rjust(w) for x, w in zip(c[1:], widths[1:]))]) for c in body]
        lines += [*(f"[{i}] {note}" for i, note in enumerate(notes, 1)), ""]
    return "\n".join(lines).rstrip()
