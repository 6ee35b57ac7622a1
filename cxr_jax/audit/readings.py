"""The audit of probes: how well each reading tells the label, and whether readings differ.

`audit` takes the readings and the config's `audit` section and gives what `probe_audit.json` holds:

    rows            AUCs: the keys of `subgroups.KEYS`, and `probe`, `input`, `shuffled`. metric: auc; auc_ceiling where the
                    data's truth is known, with '' for probe and input. attribute, group: the stratum that the reading was
                    fitted and judged in. n and suppression are those of `subgroups`, which does not ask who gave the scores
    comparisons     differences of AUCs of two readings on the same images: target, class, first, second (names), value, low,
                    high (paired patient bootstrap), standard_error, p (Wald's, Obuchowski's covariance; DeLong's where
                    each patient has one image), p_adjusted (Holm's over the target's family), family (its size), reason
    against_guessing    of every reading of the features with recorded labels, among all images and in each stratum: reading (its
                    name), target, class, p (Wald's, that the AUC is .5, on the logit scale), p_adjusted (Holm's over the
                    target's family), family, reason
    readings        how each was fitted and chosen, as the probes tell it
    agreement       as the probes tell it, with p_adjusted (Holm's over all); of a label that has a group whose size is
                    withheld there are no numbers, since purity tells it
    absent, strata_by_truth, erased     as the probes tell it; erased: the attribute that was taken from the features, and by the name of an array on how many
                    patients what took it was fitted; {} where this is not asked
    space           what the features look like, as `feature_space.describe` tells it
    elsewhere       of other data sets, by name, rows and absent (put beside the rest by the stage)

Tests are of macro AUCs, class `macro`; where a class is undefined or withheld, so that there is none, of every class that is
there, and each of these counts in the family. What is read among as many images as in a stratum is not compared with the stratum:
other images were fitted, which intervals over test patients know nothing of. A shuffled reading is judged on shuffled labels, so
that its AUC is .5 but for chance.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import ml_collections
import numpy as np
import pandas as pd

from cxr_jax.audit import comparisons, estimates, feature_space, judgement, subgroups
from cxr_jax.audit.estimates import Estimate
from cxr_jax.audit.intervals import Bootstrap
from cxr_jax.tables import AS_MANY, CEILING, FEATURES, LABEL, SCORE, SCORES, SHUFFLED, STRATUM, UNERASED, Predictions, Reading, Readings, Target, UserError

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
        figures = {reading.name: {} for reading in mine}
        for reading in mine:
            where = (reading.attribute, reading.group) if reading.attribute else (subgroups.ALL, subgroups.ALL)
            unscored = reading.about["reason"] if "reason" in reading.about else ""
            told = {"probe": reading.probe, "input": reading.input, "shuffled": reading.shuffled}
            found = judges[reading.shuffled].aucs(readings.scores[reading.name], *where, unscored=unscored)
            for row, figure in found or [(row, None) for row in _no_image(judges[False], where)]:
                rows.append(row | told)
                if figure is not None:
                    figures[reading.name][row["class"]] = figure
        rows += _ceilings(readings, target, mine, judges[False])
        tested = _Tested(readings, figures)
        compared += _compare(tested, target, mine, settings)
        guessing += _against_guessing(tested, target, mine, settings)
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


def elsewhere(readings: Readings, settings) -> dict[str, Any]:
    """rows and absent, as in `audit`, of readings that were fitted on other data than the images judged; nothing is compared."""
    bootstrap = Bootstrap(readings.table["patient_id"].to_numpy(), settings.replicates, settings.seed)
    rows = []
    for target in readings.targets:
        judge = _judge(readings, target, False, (), settings, bootstrap)
        for reading in (r for r in readings.readings if r.target == target):
            told = {"probe": reading.probe, "input": reading.input, "shuffled": False}
            rows += [row | told for row, _ in judge.aucs(readings.scores[reading.name], unscored=reading.about.get("reason", ""))]
    return {"rows": [{key: row[key] for key in KEYS} for row in rows], "absent": readings.found["absent"]}


def by_images(readings: Readings, predictions: Predictions, settings) -> dict[str, Any]:
    """rows and absent, as in `audit`, of a network that was trained to tell the readings' targets from images; input `images`, probe `trained`.

    predictions: of that network, with the readings' test images among them. Raises UserError where one of these is missing, or has another label there.
    """
    bootstrap = Bootstrap(readings.table["patient_id"].to_numpy(), settings.replicates, settings.seed)
    table = predictions.table.set_index("image_id")
    lacking = ~readings.table["image_id"].isin(table.index)
    if lacking.any():
        raise UserError(f"config.audit.told_by_images: {lacking.sum():,} of {len(lacking):,} test images here have no prediction there; take the same data set, views and splits")
    table, rows, absent = table.loc[readings.table["image_id"]], [], []
    for target, classes in readings.targets.items():
        if target not in predictions.targets or predictions.targets[target].kind != "multiclass":
            absent.append(f"{target} from images: the network of config.audit.told_by_images was not trained to tell it")
            continue
        differ = (table[LABEL + target].fillna("").to_numpy() != readings.table[LABEL + target].fillna("").to_numpy()).sum()
        if differ or set(predictions.targets[target].classes) != set(classes):
            raise UserError(f"config.audit.told_by_images: {target} is another there, of {differ:,} images; take the same rules for it")
        scores = table[[SCORE + c for c in classes]].to_numpy(np.float64)
        told = {"probe": "trained", "input": "images", "shuffled": False}
        rows += [row | told for row, _ in _judge(readings, target, False, (), settings, bootstrap).aucs(scores)]
    return {"rows": [{key: row[key] for key in KEYS} for row in rows], "absent": absent}


def of_features(readings: Readings, target: str, settings, bootstrap: Bootstrap) -> dict[tuple[str, str], dict[str, Estimate]]:
    """The macro AUC of each kind of probe of the features for a target's recorded labels: by (attribute, group), ('', '') among all images, and the probe's name.

    bootstrap: of the readings' rows. What is withheld is what `audit` withholds.
    """
    mine = [r for r in readings.readings if (r.target, r.input, r.shuffled) == (target, FEATURES, False) and r.probe != "kmeans" and not r.attribute.startswith(AS_MANY)]
    judge = _judge(readings, target, False, tuple(dict.fromkeys(r.attribute for r in mine if r.attribute)), settings, bootstrap)
    found: dict[tuple[str, str], dict[str, Estimate]] = {("", ""): {}}
    for reading in mine:
        where = (reading.attribute or subgroups.ALL, reading.group or subgroups.ALL)
        for row, figure in judge.aucs(readings.scores[reading.name], *where, unscored=reading.about.get("reason", "")):
            if row["class"] == judgement.MACRO:
                found.setdefault((reading.attribute, reading.group), {})[reading.probe] = figure
    return found


def _no_image(judge, where: tuple[str, str]) -> list[dict]:
    """Rows that say that the test split has no image of a stratum."""
    return [row | {"attribute": where[0], "group": where[1]} for row in judge.empty("auc", "no test image here")]


def _labels(readings: Readings) -> dict[str, tuple[np.ndarray, tuple[str, ...]]]:
    """The targets, race, sex, view and the strata, as far as these are recorded: (numbers of classes, -1 unknown; classes)."""
    table, labels = readings.table, {}
    strata = [c.removeprefix(STRATUM) for c in table if c.startswith(STRATUM)]
    for name in dict.fromkeys((*readings.targets, "race", "sex", "view", *(s for s in strata if not s.startswith(AS_MANY)))):
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
    return _adjusted(rows)


class _Tested:
    """What tests are made of: each reading's figures by class. figures: by a reading's name and the class."""

    def __init__(self, readings: Readings, figures: Mapping[str, Mapping[str, Estimate]]):
        self.figures, self._readings = figures, readings

    def classes(self, *several: Reading) -> list[str]:
        """What readings are tested by: macro, or where one has no macro AUC, each class of which all have one."""
        figures = [self.figures[reading.name] for reading in several]
        defined = [c for c in self._readings.targets[several[0].target] if all(self.has(one, c) for one in figures)]
        whole = all(self.has(one, subgroups.MACRO) for one in figures)
        return [subgroups.MACRO] if whole or not defined else defined

    @staticmethod
    def has(figures: Mapping[str, Estimate], name: str) -> bool:
        return name in figures and figures[name].replicates is not None and figures[name].defined


def _against_guessing(tested: _Tested, target: str, mine: list[Reading], settings) -> list[dict]:
    rows = []
    for reading in (r for r in mine if r.input == FEATURES and not r.shuffled and not r.attribute.startswith(AS_MANY)):
        for name in tested.classes(reading):
            row = {"reading": reading.name, "target": target, "class": name, "p": np.nan, "reason": ""}
            figures = tested.figures[reading.name]
            if not tested.has(figures, name):
                row["reason"] = "the AUC is undefined or withheld"
            elif figures[name].decimals is not None:
                row["reason"] = "without p, lest a count of few patients show"
            else:
                one = figures[name]
                found = comparisons.against(np.array([one.value]), np.array([one.standard_error]), 0.5, settings.level)
                row |= {"p": float(found.p[0]), "reason": str(found.reason[0])}
            rows.append(row)
    return _adjusted(rows)


def _adjusted(rows: list[dict]) -> list[dict]:
    """With p_adjusted, Holm's over all that have a p, and how many these are."""
    adjusted = comparisons.holm(np.array([row["p"] for row in rows], np.float64))  # None is NaN
    family = int(np.isfinite(adjusted).sum())
    return [row | {"p_adjusted": float(p), "family": family} for row, p in zip(rows, adjusted, strict=True)]


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
    (found,) = judgement.judgements(predictions, SPLIT, settings, bootstrap)
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


def _compare(tested: _Tested, target: str, mine: list[Reading], settings) -> list[dict]:
    """Every probe against every other on the features, and against its own controls."""
    own = [r for r in mine if r.input == FEATURES and not r.shuffled and not r.attribute]
    pairs = list(itertools.combinations(own, 2))
    for one in own:
        pairs += [(one, r) for r in mine if r.probe == one.probe and not r.attribute and _is_control(r)]
    return _adjusted([_difference(tested, target, *pair, name, settings) for pair in pairs for name in tested.classes(*pair)])


def _difference(tested: _Tested, target: str, first: Reading, second: Reading, name: str, settings) -> dict[str, Any]:
    row = {
        "target": target, "class": name, "first": first.name, "second": second.name, "level": settings.level,
        "value": np.nan, "low": np.nan, "high": np.nan, "standard_error": np.nan, "p": np.nan, "reason": "",
    }  # fmt: skip
    a, b = (tested.figures[reading.name].get(name) for reading in (first, second))
    if a is None or b is None:
        return row | {"reason": "no test image here"}
    if a.replicates is None or b.replicates is None:
        return row | {"reason": "; ".join(dict.fromkeys(f.reason for f in (a, b) if f.replicates is None))}
    apart = estimates.difference(a, b)
    if not apart.defined:
        return row | {"reason": apart.reason}
    limits = estimates.interval(apart, settings.level, settings.interval)
    row |= {"value": apart.value, "low": limits.low, "high": limits.high, "reason": limits.reason}
    if apart.decimals is not None:
        row["value"] = round(apart.value, apart.decimals)
        return row | {"reason": "rounded, and without p, lest a count of few patients show"}
    both = np.stack([a.influence(), b.influence()], axis=1)
    found = comparisons.difference(np.array([a.value, b.value]), both.T @ both, 0, 1)
    return row | {"standard_error": found.standard_error, "p": found.p} | ({"reason": found.reason} if found.reason else {})


def _is_control(reading: Reading) -> bool:
    return reading.shuffled or reading.input in ("untrained", "findings", "demographics", "histogram", SCORES, UNERASED)
