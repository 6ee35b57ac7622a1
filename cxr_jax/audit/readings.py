"""The audit of probes: how well each reading tells the label, and whether readings differ.

`audit` takes the readings and the config's `audit` section and gives what `probe_audit.json` holds:

    rows            AUCs: the keys of `subgroups.KEYS`, and `probe`, `input`, `shuffled`. metric: auc; auc_ceiling where the
                    data's truth is known, with '' for probe and input. attribute, group: the stratum that the reading was
                    fitted and judged in. n and suppression are those of `subgroups`, which does not ask who gave the scores
    comparisons     differences of macro AUCs of two readings on the same images: target, first, second (names), value, low,
                    high (paired patient bootstrap), standard_error, p (Wald's, Obuchowski's covariance; DeLong's where
                    each patient has one image), p_adjusted (Holm's over the target's family), family (its size), reason
    against_guessing    of every reading of the features with recorded labels, among all images and in each stratum: reading (its
                    name), target, p (Wald's, that the macro AUC is .5, on the logit scale), p_adjusted (Holm's over the
                    target's family), family, reason
    readings        how each was fitted and chosen, as the probes tell it
    agreement       as the probes tell it, with p_adjusted (Holm's over all); of a label that has a group whose size is
                    withheld there are no numbers, since purity tells it
    absent, strata_by_truth     as the probes tell it
    space           what the features look like, as `feature_space.describe` tells it

A shuffled reading is judged on shuffled labels, so that its AUC is .5 but for chance.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import ml_collections
import numpy as np
import pandas as pd

from cxr_jax.audit import comparisons, feature_space, subgroups
from cxr_jax.audit.intervals import Bootstrap, percentile_interval
from cxr_jax.tables import CEILING, FEATURES, LABEL, SCORE, SHUFFLED, STRATUM, Predictions, Reading, Readings, Target

KEYS = (*subgroups.KEYS, "probe", "input", "shuffled")
SPLIT = "test"


def audit(readings: Readings, features: np.ndarray, settings, open_data: bool) -> dict[str, Any]:
    """What the module says, for readings as `Readings.read` gives them.

    features: float32 [n, d], of the rows of the readings' table. settings: the config's `audit` section: level, replicates, seed,
    min_patients; its attributes and splits are not used. open_data: whether single images may be shown.
    """
    bootstrap = Bootstrap(readings.table["patient_id"].to_numpy(), settings.replicates, settings.seed)
    rows, compared, guessing = [], [], []
    for target in readings.targets:
        mine = [reading for reading in readings.readings if reading.target == target]
        attributes = tuple(dict.fromkeys(reading.attribute for reading in mine if reading.attribute))
        judges = {
            shuffled: _judge(readings, target, shuffled, attributes if not shuffled else (), settings, bootstrap)
            for shuffled in (False, True)
        }
        macros = {}
        for reading in mine:
            where = (reading.attribute, reading.group) if reading.attribute else (subgroups.ALL, subgroups.ALL)
            unscored = reading.about["reason"] if "reason" in reading.about else ""
            told = {"probe": reading.probe, "input": reading.input, "shuffled": reading.shuffled}
            found = judges[reading.shuffled].aucs(readings.scores[reading.name], *where, unscored=unscored)
            for row, figure in found or [(row, None) for row in _no_image(judges[False], where)]:
                rows.append(row | told)
                if row["class"] == subgroups.MACRO and figure is not None:
                    macros[reading.name] = figure
        rows += _ceilings(readings, target, mine, judges[False])
        compared += _compare(readings, target, mine, macros, judges, settings)
        guessing += _against_guessing(readings, target, mine, macros, judges[False], settings)
    labels = _labels(readings)
    hidden = _hidden(readings, labels, settings, bootstrap.patient)
    return {
        **readings.found,
        "rows": [{key: row[key] for key in KEYS} for row in rows],
        "comparisons": compared,
        "against_guessing": guessing,
        "readings": [dataclasses.asdict(reading) | {"name": reading.name} for reading in readings.readings],
        "agreement": _agreement(readings, {} if open_data else hidden),
        "space": feature_space.describe(features, labels, list(readings.targets), bootstrap.patient, settings, hidden, open_data),
    }


def _no_image(judge, where: tuple[str, str]) -> list[dict]:
    """Rows that say that the test split has no image of a stratum."""
    return [row | {"attribute": where[0], "group": where[1]} for row in judge.empty("auc", "no test image here")]


def _labels(readings: Readings) -> dict[str, tuple[np.ndarray, tuple[str, ...]]]:
    """The targets, race, sex, view and the strata, as far as these are recorded: (numbers of classes, -1 unknown; classes)."""
    table, labels = readings.table, {}
    for name in dict.fromkeys((*readings.targets, "race", "sex", "view", *(c.removeprefix(STRATUM) for c in table if c.startswith(STRATUM)))):
        column = STRATUM + name if STRATUM + name in table else name
        if column not in table or table[column].isna().all():
            continue
        classes = readings.targets.get(name, tuple(sorted(set(table[column].dropna()))))
        labels[name] = (pd.Index(classes).get_indexer(table[column]), classes)
    return labels


def _hidden(readings: Readings, labels, settings, patient: np.ndarray) -> dict[str, set[str]]:
    """By label, the groups whose size is withheld."""
    asked = ml_collections.ConfigDict(settings)
    asked.attributes = tuple(labels)
    table = readings.table
    table = table.assign(**{name: table[STRATUM + name] for name in labels if STRATUM + name in table})
    targets = {name: Target("multiclass", classes) for name, classes in readings.targets.items()}
    return subgroups.hidden_groups(Predictions(table, targets), asked, patient)


def _agreement(readings: Readings, hidden) -> list[dict]:
    rows = [dict(row) for row in readings.found["agreement"]]
    for row in rows:
        if hidden.get(row["label"]):
            row |= {k: None for k in ("value", "null_mean", "null_low", "null_high", "p", "n_images", "n_patients")}
            row["reason"] = "a group's size is withheld"
    p = np.array([np.nan if row["p"] is None else row["p"] for row in rows], np.float64)
    adjusted = comparisons.holm(p)
    return [row | {"p_adjusted": float(one), "family": int(np.isfinite(p).sum())} for row, one in zip(rows, adjusted, strict=True)]


def _against_guessing(readings: Readings, target: str, mine, macros, judge, settings) -> list[dict]:
    rows = []
    for reading in (r for r in mine if r.input == FEATURES and not r.shuffled):
        row = {"reading": reading.name, "target": target, "p": np.nan, "reason": ""}
        figure = macros.get(reading.name)
        if figure is None or figure.replicates is None:
            row["reason"] = "the AUC is undefined or withheld"
        elif figure.decimals is not None:
            row["reason"] = "without p, lest a count of few patients show"
        else:
            auc, influence = _influence(readings, reading, judge)
            found = comparisons.against(np.array([auc]), np.sqrt([influence @ influence]), 0.5, settings.level)
            row |= {"p": float(found.p[0]), "reason": str(found.reason[0])}
        rows.append(row)
    adjusted = comparisons.holm(np.array([row["p"] for row in rows], np.float64))
    return [row | {"p_adjusted": float(p), "family": int(np.isfinite(adjusted).sum())} for row, p in zip(rows, adjusted, strict=True)]


def _judge(readings: Readings, target: str, shuffled: bool, attributes, settings, bootstrap: Bootstrap):
    """What is to be withheld of a target's labels by strata, whoever scores them."""
    table = readings.table.copy()
    classes = readings.targets[target]
    if shuffled:
        table[LABEL + target] = table[SHUFFLED + target]
    for attribute in attributes:
        table[attribute] = table[STRATUM + attribute]
    # Scores are put in later; a prediction must have some.
    table = table.assign(**{SCORE + c: 1 / len(classes) for c in classes})
    predictions = Predictions(table, {target: Target("multiclass", classes)})
    settings = ml_collections.ConfigDict(settings)
    settings.attributes = attributes
    (found,) = subgroups.judgements(predictions, SPLIT, settings, bootstrap)
    return found


def _ceilings(readings: Readings, target: str, mine, judge) -> list[dict]:
    """The AUC of the exact posterior, for all images and in each stratum; [] where it is not known."""
    columns = [CEILING + c for c in readings.targets[target]]
    if target != "race" or not all(column in readings.table for column in columns):
        return []
    ceiling = readings.table[columns].to_numpy(np.float64)
    places = dict.fromkeys((r.attribute or subgroups.ALL, r.group or subgroups.ALL) for r in mine)
    empty = {"metric": "auc_ceiling", "probe": "", "input": "", "shuffled": False}
    return [row | empty for place in places for row, _ in judge.aucs(ceiling, *place)]


def _compare(readings: Readings, target: str, mine: list[Reading], macros, judges, settings) -> list[dict]:
    """Every probe against every other on the features, and against its own controls."""
    own = [r for r in mine if r.input == FEATURES and not r.shuffled and not r.attribute]
    pairs = list(itertools.combinations(own, 2))
    for one in own:
        pairs += [(one, r) for r in mine if r.probe == one.probe and not r.attribute and _is_control(r)]
    names = list(dict.fromkeys(r.name for pair in pairs for r in pair))
    influences = {r.name: _influence(readings, r, judges[r.shuffled]) for r in mine if r.name in names}
    rows = []
    for first, second in pairs:
        a, b = macros[first.name], macros[second.name]
        row = {
            "target": target, "first": first.name, "second": second.name, "value": np.nan, "low": np.nan, "high": np.nan,
            "standard_error": np.nan, "p": np.nan, "reason": "",
        }  # fmt: skip
        rounded = [x for x in (a.decimals, b.decimals) if x is not None]
        if a.replicates is None or b.replicates is None:
            row["reason"] = "; ".join(dict.fromkeys(f.reason for f in (a, b) if f.replicates is None))
        else:
            interval = percentile_interval(a.replicates - b.replicates, settings.level)
            row |= {"value": a.value - b.value, "low": interval.low, "high": interval.high, "reason": interval.reason}
            if rounded:
                row |= {k: round(row[k], min(rounded)) for k in ("value", "low", "high")}
                row["reason"] = "rounded, and without p, lest a count of few patients show"
            else:
                row |= _test(influences[first.name], influences[second.name])
        rows.append(row)
    adjusted = comparisons.holm(np.array([row["p"] for row in rows], np.float64)) if rows else []
    family = int(np.isfinite(adjusted).sum()) if rows else 0
    return [row | {"p_adjusted": float(p), "family": family, "level": settings.level} for row, p in zip(rows, adjusted, strict=True)]


def _is_control(reading: Reading) -> bool:
    return reading.shuffled or reading.input in ("untrained", "findings", "demographics", "histogram")


def _influence(readings: Readings, reading: Reading, judge) -> tuple[float, np.ndarray] | None:
    """(Macro AUC, what each patient does to it: float64 [patients]); None where it is undefined."""
    known = judge.known.any(axis=1)
    if reading.attribute:
        known &= (readings.table[STRATUM + reading.attribute] == reading.group).fillna(False).to_numpy(bool)
    scores = readings.scores[reading.name][known].astype(np.float64)
    if np.isnan(scores).any() or not known.any():
        return None
    # All patients of the split, in one order, those whose label is unknown without influence.
    ids, whose = np.unique(readings.table["patient_id"].to_numpy(str), return_inverse=True)
    present = np.unique(whose[known])
    total, auc = np.zeros(len(ids)), 0.0
    for k in range(scores.shape[1]):
        value, influence = comparisons.influence(judge.positive[known, k], scores[:, [k]], whose[known])
        total[present] += influence[:, 0] / scores.shape[1]
        auc += float(value[0]) / scores.shape[1]
    return auc, total


def _test(first, second) -> dict[str, Any]:
    if first is None or second is None:
        return {"reason": "an AUC is undefined"}
    values = np.stack([first[1], second[1]], axis=1)
    found = comparisons.difference(np.array([first[0], second[0]]), values.T @ values, 0, 1)
    return {"standard_error": found.standard_error, "p": found.p} | ({"reason": found.reason} if found.reason else {})
