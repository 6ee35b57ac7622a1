"""The rows of the audit against scikit-learn and pandas, and what must never be in them."""

import collections
import dataclasses
import itertools
import json
import re

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import sklearn.metrics

from configs import base
from cxr_jax import tables
from cxr_jax.audit import subgroups
from cxr_jax.audit.intervals import Bootstrap
from cxr_jax.audit.subgroups import KEYS, audit, select
from cxr_jax.tables import Predictions, Target, UserError

CLASSES = ("Ada", "Bel", "Cyr", "Dov")
FINDINGS = ("Edema", "Pneumonia", "Fracture")


def settings(**changes):
    config = base.get_config().audit
    config.replicates = 60
    config.interval = "percentile"
    config.update(changes)
    return config


def people(seed=0, patients=160, kind="race", classes=CLASSES):
    """A table with 1 to 4 images a patient, scores that know something, ties, unknown labels and missing attributes."""
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(patients), rng.integers(1, 5, patients))
    n = len(who)
    race = np.array(classes, object)[rng.integers(0, len(classes), patients)][who]
    table = pd.DataFrame({
        "image_id": [f"i{i}" for i in range(n)],
        "patient_id": [f"p{i:04}" for i in who],
        "split": np.where(who < patients // 4, "validation", "test"),
        "race": race,
        "sex": np.array(["F", "M", None], object)[rng.choice(3, patients, p=[0.45, 0.4, 0.15])[who]],
        "age": np.where(rng.random(patients) < 0.15, np.nan, rng.uniform(1, 99, patients))[who],
        "view": rng.choice(["PA", "AP"], n),
    })  # fmt: skip
    if kind == "race":
        logits = 1.5 * (race[:, None] == np.array(classes)) + rng.normal(0, 1, (patients, len(classes)))[who]
        share = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        table["label_race"] = np.where(rng.random(n) < 0.05, None, race)
        for k, name in enumerate(classes):
            table[f"score_{name}"] = share[:, k].round(2)
            table[f"ceiling_{name}"] = np.clip(0.8 * share[:, k] + 0.2 * (race == name), 0, 1)
        return Predictions(table, {"race": Target("multiclass", classes)}).check()
    for name in FINDINGS:
        truth = (rng.random(patients) < 0.4)[who].astype(float)
        table[f"score_{name}"] = np.clip(0.3 + 0.3 * truth + rng.normal(0, 0.2, n), 0, 1).round(2)
        table[f"label_{name}"] = np.where(rng.random(n) < 0.1, np.nan, truth)
    return Predictions(table, {"findings": Target("multilabel", FINDINGS)}).check()


def edited(predictions, **columns):
    return dataclasses.replace(predictions, table=predictions.table.assign(**columns)).check()


def drop(predictions, *columns):
    return dataclasses.replace(predictions, table=predictions.table.drop(columns=list(columns)))


def rounding(row):
    """How far a value may lie from the exact one: half of its last decimal, where the row says that it is rounded."""
    told = re.search(r"rounded to (\d) decimals", row["reason"] or "")
    return (0.5 * 10 ** -int(told[1]) if told else 0) + 1e-12


def plain(rows):
    """Figures of everyone and of the groups of one attribute, without what is made of several groups."""
    return [row for row in rows if row["effect"] is None and "*" not in row["attribute"]]


@pytest.fixture(scope="module")
def race():
    predictions = people(patients=480)
    return predictions, audit(predictions, settings(splits=("validation", "test")))


@pytest.fixture(scope="module")
def findings():
    predictions = people(1, patients=480, kind="findings")
    return predictions, audit(predictions, settings())


def members(table, row):
    """The row's images, found with pandas alone: split, group, known label of the class."""
    part = table[table["split"] == row["split"]]
    names = ["0-19", "20-39", "40-59", "60-79", "80+"]
    bands = pd.cut(part["age"], [0, 20, 40, 60, 80, 200], right=False, labels=names)
    part = part.assign(age_band=bands.astype(object), all="all")
    column = part[row["attribute"]]
    return part[column.isna() if row["group"] == "missing" else column == row["group"]]


def test_every_row_has_the_keys_and_survives_json(race, findings, tmp_path):
    for _, rows in (race, findings):
        assert all(tuple(row) == KEYS for row in rows)
        tables.write_json(tmp_path / "audit.json", rows)
        assert tables.read_json(tmp_path / "audit.json") == rows
        json.dumps(rows, allow_nan=False)
        for row in rows:
            assert type(row["suppressed"]) is bool
            assert all(row[k] is None or type(row[k]) is int for k in ("n_images", "n_patients", "n_positive"))
            assert all(row[k] is None or type(row[k]) is float for k in ("value", "low", "high", "threshold"))
            assert all(type(row[k]) is str for k in ("metric", "target", "class", "attribute", "group", "split"))
            assert row["reason"] is None or row["reason"]
            assert row["value"] is not None or row["reason"], f"null without a reason: {row}"
            assert row["low"] is None or row["low"] <= row["high"]


def test_each_figure_is_there_once(race, findings):
    for _, rows in (race, findings):
        keys = ("metric", "target", "class", "attribute", "group", "split", "threshold", "effect", "reference")
        times = collections.Counter(tuple(row[k] for k in keys) for row in rows)
        assert max(times.values()) == 1


def test_multiclass_values_are_scikit_learns(race):
    predictions, rows = race
    metrics = {"auc", "average_precision", "brier", "accuracy", "auc_ceiling"}
    checked = collections.Counter()
    for row in plain(rows):
        if row["value"] is None or row["attribute"] in ("race", "age_band") or row["metric"] not in metrics:
            continue
        part = members(predictions.table, row)
        part = part[part["label_race"].notna()]
        prefix = "ceiling_" if row["metric"] == "auc_ceiling" else "score_"
        found = {}
        for name in CLASSES if row["class"] == "macro" else set(CLASSES) & {row["class"]}:
            truth, score = part["label_race"] == name, part[prefix + name]
            if row["metric"] in ("auc", "auc_ceiling"):
                found[name] = sklearn.metrics.roc_auc_score(truth, score)
            elif row["metric"] == "average_precision":
                found[name] = sklearn.metrics.average_precision_score(truth, score)
            elif row["metric"] == "brier":
                found[name] = sklearn.metrics.brier_score_loss(truth, score)
        if row["class"] == "macro":  # of the classes as they are shown, so that it tells no more than they do
            where = {key: row[key] for key in ("metric", "attribute", "group", "split")}
            shown = {r["class"]: r for r in select(rows, **where)}
            assert all(shown[name]["value"] == pytest.approx(found[name], abs=rounding(shown[name])) for name in found)
            found["macro"] = np.mean([shown[name]["value"] for name in found])
        called = np.array(CLASSES)[part[["score_" + c for c in CLASSES]].to_numpy().argmax(1)]
        found["all"] = (called == part["label_race"]).mean()
        assert row["value"] == pytest.approx(found[row["class"]], abs=rounding(row)), row
        assert (row["n_images"], row["n_patients"]) == (len(part), part["patient_id"].nunique())
        if row["n_positive"] is not None:
            assert row["n_positive"] == (part["label_race"] == row["class"]).sum()
        checked[row["metric"]] += 1
    assert set(checked) == metrics and min(checked.values()) > 8


def test_multilabel_values_are_scikit_learns(findings):
    predictions, rows = findings
    checked = collections.Counter()
    ranked = ("auc", "average_precision", "brier", "accuracy")
    for row in plain(rows):
        if row["value"] is None or row["class"] == "macro" or row["metric"] not in ranked:
            continue
        part = members(predictions.table, row)
        part = part[part["label_" + row["class"]].notna()]
        truth, score = part["label_" + row["class"]] == 1, part["score_" + row["class"]]
        expected = {
            "auc": lambda: sklearn.metrics.roc_auc_score(truth, score),
            "average_precision": lambda: sklearn.metrics.average_precision_score(truth, score),
            "brier": lambda: sklearn.metrics.brier_score_loss(truth, score),
            "accuracy": lambda: sklearn.metrics.accuracy_score(truth, score >= 0.5),
        }[row["metric"]]()
        assert row["value"] == pytest.approx(expected, abs=rounding(row)), row
        assert row["n_images"] == len(part) and row["n_positive"] in (None, truth.sum())
        assert row["threshold"] == (0.5 if row["metric"] == "accuracy" else None)
        checked[row["metric"]] += 1
    assert min(checked.values()) > 8 and len(checked) == 4


def test_intervals_are_quantiles_of_a_plain_loop(race):
    predictions, rows = race
    part = predictions.table.query("split == 'test'").reset_index(drop=True)
    masks = [m for a in settings().attributes for m in subgroups.groups(part, a, settings().age_bands, CLASSES).values()]
    bootstrap = Bootstrap(part["patient_id"].to_numpy(), 60, 0, masks)
    known, women = part["label_race"].notna().to_numpy(), (part["sex"] == "F").to_numpy()
    by_class = []
    for name in CLASSES:
        truth, score = (part["label_race"] == name).to_numpy(), part["score_" + name].to_numpy()
        keep = known & women
        counts = bootstrap.counts[bootstrap.patient][keep].astype(float)
        auc = [sklearn.metrics.roc_auc_score(truth[keep], score[keep], sample_weight=c) for c in counts.T]
        by_class.append(auc)
    for name, replicates in [*zip(CLASSES, by_class), ("macro", np.mean(by_class, axis=0))]:
        (row,) = select(rows, metric="auc", class_=name, attribute="sex", group="F", split="test")
        np.testing.assert_allclose((row["low"], row["high"]), np.quantile(replicates, [0.025, 0.975]), atol=1e-10)
        assert (row["level"], row["method"]) == (0.95, "patient bootstrap, percentile, 60 replicates")


def test_difference_is_paired(race):
    predictions, rows = race
    for row in select(rows, metric="auc_difference"):
        if row["value"] is None:
            continue
        where = {k if k != "class" else "class_": row[k] for k in ("class", "attribute", "group", "split")}
        (own,), (best,) = select(rows, metric="auc", **where), select(rows, metric="auc_ceiling", **where)
        assert row["value"] == pytest.approx(own["value"] - best["value"], abs=1e-15) and row["reference"] == "ceiling"
    (row,) = select(rows, metric="auc_difference", class_="macro", attribute="all", split="test")
    where = {"class_": "macro", "attribute": "all", "split": "test"}
    (own,), (best,) = (select(rows, metric=metric, **where) for metric in ("auc", "auc_ceiling"))
    assert row["high"] - row["low"] < (own["high"] - own["low"]) + (best["high"] - best["low"])


def test_identical_scores_differ_by_exactly_nothing():
    predictions = people()
    same = edited(predictions, **{f"ceiling_{c}": predictions.table[f"score_{c}"] for c in CLASSES})
    rows = select(audit(same, settings()), metric="auc_difference")
    found = [row for row in rows if row["value"] is not None]
    assert len(found) > 20
    assert all(row["value"] == 0 for row in found)
    held = [row for row in found if "withheld" not in (row["reason"] or "")]
    assert len(held) > 20 and all((row["low"], row["high"]) == (0, 0) for row in held)


def test_no_ceiling_no_ceiling_rows(race, findings):
    predictions = drop(people(), "ceiling_Ada")
    with_ceiling, without = ({row["metric"] for row in rows} for rows in (race[1], audit(predictions, settings())))
    assert with_ceiling - without == {"auc_ceiling", "auc_difference"} and without < with_ceiling
    assert without - {row["metric"] for row in findings[1]} == {"confusion"}


def test_rows_do_not_depend_on_the_order_of_images():
    predictions = people()
    config = settings(attributes=("sex",))
    shuffled = dataclasses.replace(predictions, table=predictions.table.sort_values("view", ignore_index=True))
    for one, other in zip(audit(predictions, config), audit(shuffled, config), strict=True):
        assert one == pytest.approx(other, abs=1e-12)


def test_a_group_of_the_target_itself_is_not_ranked(race):
    _, rows = race
    own = select(rows, attribute="race", split="test")
    assert {row["metric"] for row in own} == {"accuracy", "brier"}
    for name in CLASSES:
        (accuracy,) = select(own, metric="accuracy", group=name)
        (confusion,) = select(rows, metric="confusion", class_=name, reference=name, split="test")
        assert accuracy["value"] == pytest.approx(confusion["value"])
        assert accuracy["low"] == pytest.approx(confusion["low"])


def test_macro_of_exclusive_classes_needs_them_all():
    predictions = people()
    gone = predictions.table["label_race"].where(predictions.table["label_race"] != "Dov", None)
    rows = audit(edited(predictions, label_race=gone), settings(attributes=("sex",)))
    (row,) = select(rows, metric="auc", class_="Dov", attribute="all")
    assert row["value"] is None and row["n_positive"] == 0 and row["reason"] == "one class only: no positive"
    (row,) = select(rows, metric="auc", class_="macro", attribute="all")
    assert row["value"] is None and row["reason"] == "undefined for Dov" and not row["suppressed"]
    (row,) = select(rows, metric="auc", class_="Ada", attribute="all")
    assert row["value"] is not None
    (row,) = select(rows, metric="roc_tpr", class_="Dov")
    assert row["value"] is None and row["reason"] == "one class only: no positive"
    assert all(row["reason"] == "no image of this class" for row in select(rows, metric="confusion", class_="Dov"))


def test_macro_of_findings_says_which_it_used():
    predictions = people(1, kind="findings")
    n = len(predictions.table)
    changed = edited(predictions, label_Fracture=np.zeros(n), label_Edema=np.full(n, np.nan))
    rows = audit(changed, settings(attributes=()))
    (macro,) = select(rows, metric="auc", class_="macro")
    (pneumonia,) = select(rows, metric="auc", class_="Pneumonia")
    assert macro["value"] == pneumonia["value"] and macro["low"] == pneumonia["low"]
    assert macro["reason"] == "mean over 1 of 3 classes; left out: Edema, Fracture"
    (edema,) = select(rows, metric="auc", class_="Edema")
    assert (edema["n_images"], edema["value"], edema["reason"]) == (0, None, "no image with a known label")
    (fracture,) = select(rows, metric="brier", class_="Fracture")
    assert fracture["value"] is not None


def test_a_groups_macro_is_over_everyones_findings_or_none():
    predictions = people(1, patients=480, kind="findings")
    table = predictions.table
    men = (table["sex"] == "M").to_numpy()
    no_fracture = {"label_Fracture": np.where(men, 0.0, table["label_Fracture"]), "label_Edema": np.zeros(len(men))}
    rows = audit(edited(predictions, **no_fracture), settings(attributes=("sex",)))

    def macro(metric, group):
        (row,) = select(rows, metric=metric, class_="macro", group=group)
        return row["value"], row["reason"]

    left_out = "mean over 2 of 3 classes; left out: Edema"
    for metric in ("auc", "average_precision"):
        assert macro(metric, "all")[1] == macro(metric, "F")[1] == left_out and macro(metric, "F")[0] is not None
        assert macro(metric, "M") == (None, "undefined for Fracture")
    value, reason = macro("brier", "M")
    assert value is not None and reason is None
    few = np.zeros(len(men))
    few[np.flatnonzero(men & (table["split"] == "test"))[:3]] = 1
    rows = audit(edited(predictions, label_Fracture=np.where(men, few, table["label_Fracture"])), settings())
    assert macro("auc", "M") == (None, "withheld for Fracture")


def test_rare_positives_have_no_interval_but_a_reason():
    predictions = people(1, kind="findings")
    patient = predictions.table["patient_id"]
    label = patient.isin(patient[predictions.table["split"] == "test"].unique()[:2]).astype(float)
    rows = audit(edited(predictions, label_Edema=label), settings(attributes=(), min_patients=2))
    (row,) = select(rows, metric="auc", class_="Edema")
    assert row["value"] is not None and row["low"] is None and row["high"] is None
    assert "interval withheld: undefined in" in row["reason"]


def test_alike_replicates_are_no_certainty():
    """Who never errs here may yet err elsewhere: shares get Wilson's interval, ranks none, and a ceiling is certain."""
    predictions = people(patients=240)
    truth = {c: (predictions.table["race"] == c).astype(float) for c in CLASSES}
    perfect = {f"score_{c}": truth[c] for c in CLASSES} | {f"ceiling_{c}": truth[c] * 0 + 0.5 for c in CLASSES}
    rows = audit(edited(predictions, **perfect), settings(attributes=("sex",)))
    kinds = collections.Counter()
    for row in plain(rows):
        if row["value"] is None:
            continue
        kinds[row["metric"]] += 1
        if row["metric"] in ("accuracy", "confusion", "calibration"):
            n = row["n_patients"]
            expected = scipy.stats.binomtest(round(row["value"]) * n, n).proportion_ci(0.95, method="wilson")
            np.testing.assert_allclose((row["low"], row["high"]), expected, atol=1e-12)
            assert row["value"] in (0, 1) and row["method"].startswith("Wilson")
        elif row["metric"] in ("auc", "average_precision"):
            assert row["value"] == 1 and row["low"] is None and "every replicate gives the same value" in row["reason"]
        elif row["metric"] == "auc_ceiling":
            assert (row["value"], row["low"], row["high"]) == (0.5, 0.5, 0.5)
    assert {"accuracy", "confusion", "calibration", "auc", "average_precision", "auc_ceiling"} <= set(kinds)


def test_all_positive_average_precision_says_what_it_is_worth():
    predictions = people(1, kind="findings")
    rows = audit(edited(predictions, label_Edema=np.ones(len(predictions.table))), settings(attributes=()))
    (row,) = select(rows, metric="average_precision", class_="Edema")
    assert row["value"] == 1 and "whatever the scores" in row["reason"]


def test_missing_is_a_group_and_a_missing_column_is_said(race):
    predictions, rows = race
    (row,) = select(rows, metric="accuracy", attribute="sex", group="missing", split="test")
    part = predictions.table.query("split == 'test'")
    assert row["n_images"] == (part["sex"].isna() & part["label_race"].notna()).sum()
    without = drop(predictions, "view").table.assign(sex=None)
    found = audit(Predictions(without, predictions.targets), settings())
    for attribute in ("view", "sex"):
        (row,) = select(found, attribute=attribute)
        assert row["value"] is None and row["reason"] == f"no {attribute} is recorded" and not row["suppressed"]


@pytest.mark.parametrize(
    "cells, names",
    [
        (pd.array([1, None, 2], "Int64"), ["1", "2"]),
        (pd.array(["b", None, "a"], "string"), ["a", "b"]),
        (pd.array([True, None, False], "boolean"), ["False", "True"]),
        (pd.Categorical(["b", None, "a"]), ["a", "b"]),
        (np.array(["b", pd.NA, "a"], object), ["a", "b"]),
    ],
)
def test_groups_of_every_type_of_column(cells, names):
    found = subgroups.groups(pd.DataFrame({"site": cells}), "site", ())
    assert list(found) == [*names, "missing"] and found["missing"].tolist() == [False, True, False]
    assert all(found[name].sum() == 1 for name in names)


def test_groups():
    table = pd.DataFrame({"age": [0, 19.5, 20, 79, 80, 101, np.nan], "race": ["b", "", None, "a", "c", "b", "missing"]})
    found = subgroups.groups(table, "age_band", (0, 20, 40, 60, 80))
    assert {k: np.flatnonzero(v).tolist() for k, v in found.items()} == {
        "0-19": [0, 1], "20-39": [2], "60-79": [3], "80+": [4, 5], "missing": [6],
    }  # fmt: skip
    assert list(found) == ["0-19", "20-39", "60-79", "80+", "missing"]
    found = subgroups.groups(table, "race", (), first=("c", "a", "z"))
    assert list(found) == ["c", "a", "b", "missing"] and np.flatnonzero(found["missing"]).tolist() == [1, 2, 6]
    assert subgroups.groups(table, "sex", ()) == {} and subgroups.groups(table.assign(race=None), "race", ()) == {}
    assert subgroups.age_band(np.array([3, 30, 9.9]), (10, 12.5)).tolist() == ["below 10", "12.5+", "below 10"]
    assert subgroups.age_band(np.array([11]), (10, 12.5)).tolist() == ["10-<12.5"]


# --- suppression -----------------------------------------------------------------------------------------------------


def with_groups(sizes, images=1, seed=0):
    """Findings on one split, with an attribute `site` whose groups have these numbers of patients."""
    rng = np.random.default_rng(seed)
    site = np.repeat(np.repeat(list(sizes), list(sizes.values())), images)
    n = len(site)
    who = np.repeat(np.arange(sum(sizes.values())), images)
    table = pd.DataFrame({
        "image_id": [f"i{i}" for i in range(n)], "patient_id": [f"p{i:04}" for i in who], "split": "test", "site": site,
        "label_Edema": rng.integers(0, 2, n).astype(float), "score_Edema": rng.random(n),
    })  # fmt: skip
    return Predictions(table, {"edema": Target("multilabel", ("Edema",))}).check()


@pytest.mark.parametrize(
    "sizes, hidden",
    [
        ({"a": 50, "b": 40, "c": 30}, set()),
        ({"a": 50, "b": 40, "c": 11}, set()),
        ({"a": 50, "b": 40, "c": 10}, {"b", "c"}),  # c alone would follow from the total
        ({"a": 50, "b": 6, "c": 7}, {"b", "c"}),  # together they are 13
        ({"a": 50, "b": 40, "c": 3, "d": 4}, {"b", "c", "d"}),  # together they would be 7
        ({"a": 50, "b": 2}, {"a", "b"}),
    ],
)
def test_small_groups_and_those_that_give_them_away(sizes, hidden):
    rows = audit(with_groups(sizes, images=2), settings(attributes=("site",)))
    for name, size in sizes.items():
        found = select(rows, attribute="site", group=name)
        assert len(found) > 15 and {row["suppressed"] for row in found} == {name in hidden}
        for row in found if name in hidden else ():
            assert all(row[k] is None for k in ("value", "low", "high", "n_images", "n_patients", "n_positive"))
            few = row["reason"] == "fewer than 11 patients"
            assert few == (size < 11) and (few or row["reason"].startswith("hidden lest a group of fewer than 11"))
    assert not any(row["suppressed"] for row in select(rows, attribute="all", metric="auc"))


def test_a_small_split_shows_nothing():
    rows = audit(with_groups({"a": 6, "b": 4}), settings(attributes=("site",)))
    assert rows and all(row["suppressed"] and row["value"] is None and row["n_images"] is None for row in rows)


def test_counts_of_positives_cannot_be_subtracted():
    """Of the positives in one group few are patients enough to show, though the group itself is large."""
    predictions = with_groups({"a": 60, "b": 50, "c": 40})
    label = (np.arange(150) % 2 == 0).astype(float)
    label[110:] = 0
    label[110:114] = 1  # 4 patients of c
    rows = audit(edited(predictions, label_Edema=label), settings(attributes=("site",)))
    for metric, class_name in itertools.product(("auc", "average_precision", "brier"), ("Edema", "macro")):
        found = {row["group"]: row for row in select(rows, metric=metric, class_=class_name)}
        for key in ("value", "low", "high"):
            assert found["b"][key] == round(found["b"][key], 2) and found["a"][key] != round(found["a"][key], 3)
            assert found["c"][key] is None
        if class_name == "macro":
            continue
        assert {group: row["n_positive"] for group, row in found.items()} == {"all": 59, "a": 30, "b": None, "c": None}
        assert not any(row["suppressed"] for row in found.values()) and found["c"]["n_images"] == 40
        assert found["c"]["reason"] == "fewer than 11 patients have it"
        assert found["b"]["reason"].startswith("n_positive hidden and the rest rounded to 2 decimals")
    # Of a model that never calls it, the share of errors would be that of the positives.
    accuracy = {row["group"]: row["value"] for row in select(rows, metric="accuracy", class_="Edema")}
    assert accuracy["b"] is accuracy["c"] is None and accuracy["a"] is not None
    rows = audit(edited(predictions, label_Edema=1 - label), settings(attributes=("site",)))
    (few,) = select(rows, metric="auc", class_="Edema", group="c")
    assert few["value"] is None and few["reason"] == "fewer than 11 patients are without it"


def test_that_a_group_has_one_class_only_is_not_told_where_it_would_tell_of_another():
    """Nobody of a lacks it; so a's n would be its number of positives, and the total less that b's few."""
    predictions = with_groups({"a": 50, "b": 60})
    label = (np.arange(110) < 54).astype(float)
    rows = audit(edited(predictions, label_Edema=label), settings(attributes=("site",)))
    for metric in ("auc", "average_precision"):
        (row,) = select(rows, metric=metric, class_="Edema", group="a")
        assert (row["value"], row["n_positive"], row["reason"]) == (None, None, "fewer than 11 patients are without it")


def test_a_small_class_is_hidden_in_counts_curves_and_confusion():
    predictions = people(patients=240)
    patient = predictions.table["patient_id"]
    few = set(patient[(predictions.table["split"] == "test") & (predictions.table["label_race"] == "Dov")].unique()[:5])
    label = predictions.table["label_race"].where((predictions.table["label_race"] != "Dov") | patient.isin(few), None)
    changed = edited(predictions, label_race=label, race=label)
    rows = audit(changed, settings(attributes=("race", "sex")))
    overall = {row["class"]: row["n_positive"] for row in select(rows, metric="auc", attribute="all")}
    others = [c for c in ("Ada", "Bel", "Cyr") if overall[c] is None]
    assert overall["Dov"] is None and len(others) == 1, "one more, else 'Dov' follows from the total"
    for metric in ("auc", "average_precision", "auc_ceiling", "auc_difference"):
        found = {row["class"]: row for row in select(rows, metric=metric, attribute="all")}
        assert found["Dov"]["value"] is None and found["Dov"]["reason"] == "fewer than 11 patients have it"
        assert found["macro"]["value"] is None and found["macro"]["reason"] == "withheld for Dov"
        assert found["Dov"]["n_images"] == found["macro"]["n_images"] and not found["Dov"]["suppressed"]
        assert "rounded to 3 decimals" in found[others[0]]["reason"]
    for row in rows:
        if row["class"] in ("Dov", *others) and row["metric"] in ("roc_tpr", "calibration", "confusion") and row["attribute"] == "all":
            assert row["suppressed"] and row["value"] is None and row["n_images"] is None
        if row["attribute"] == "race" and row["group"] in ("Dov", *others):
            assert row["suppressed"]
    # A hidden total must not follow from its parts either.
    for name in ("Dov", *others):
        assert any(row["n_positive"] is None for row in select(rows, metric="auc", class_=name, attribute="sex"))


# What was shown is what an attacker has: every count, whether small or not, and the rounded AUCs.


def rare(seed, kind):
    """People of whom few have some class, so that much must be hidden."""
    predictions = people(seed, patients=300, kind=kind)
    rng, who = np.random.default_rng(seed), pd.factorize(predictions.table["patient_id"])[0]
    if kind == "race":
        race = np.array(CLASSES, object)[rng.choice(4, 300, p=rng.permutation([0.5, 0.3, 0.14, 0.06]))[who]]
        return edited(predictions, label_race=np.where(rng.random(len(who)) < 0.05, None, race))
    labels = {f"label_{name}": (rng.random(300) < share)[who] for name, share in zip(FINDINGS, (0.4, 0.1, 0.04))}
    return edited(predictions, **{name: label.astype(float) for name, label in labels.items()})


def could_be(row, ceiling, images):
    """Numbers of positive images that the rows of a cell allow by themselves, bool [images + 1]."""
    if row["n_positive"] is not None:
        return np.arange(images + 1) == row["n_positive"]
    if row["n_images"] is None:
        return np.ones(images + 1, bool)
    p, n = np.arange(images + 1), row["n_images"]
    possible = p <= n
    for figure in (row, ceiling):
        if figure and figure["value"] is not None:  # then there are 11 patients or more on both sides
            pairs = p * (n - p)
            lowest, highest = ((figure["value"] + s * rounding(figure)) * pairs * 2 for s in (-1, 1))
            possible &= (p >= 11) & (n - p >= 11) & (np.floor(highest + 1e-9) >= np.ceil(lowest - 1e-9))
    return possible


def narrowed(cells, total):
    """The same cells less what cannot be if they add up to `total`, each bool [images + 1]."""
    found = []
    for k in range(len(cells)):
        others = np.array([True])
        for cell in cells[:k] + cells[k + 1 :]:
            others = np.convolve(others, cell)[: total + 1] > 0.5
        left = total - np.arange(len(cells[k]))
        found.append(cells[k] & (left >= 0) & others[np.clip(left, 0, len(others) - 1)] & (left < len(others)))
    return found


@pytest.mark.parametrize("kind, attribute", [(k, a) for k in ("race", "findings") for a in ("sex", "age_band")])
@pytest.mark.parametrize("seed", range(4))
def test_no_hidden_number_of_positives_can_be_solved_for(seed, kind, attribute):
    rows = audit(rare(seed, kind), settings(attributes=(attribute,), replicates=2))
    names = CLASSES if kind == "race" else FINDINGS
    auc = {(r["group"], r["class"]): r for r in select(rows, metric="auc")}
    ceiling = {(r["group"], r["class"]): r for r in select(rows, metric="auc_ceiling")}
    of_groups = list(dict.fromkeys(group for group, _ in auc))
    images = auc["all", "macro"]["n_images"]
    cells = {k: could_be(auc[k], ceiling.get(k), images) for k in auc if k[1] != "macro"}
    hidden = [k for k in cells if auc[k]["n_positive"] is None]
    assert hidden
    for _ in range(5):
        for group in of_groups if kind == "race" else ():
            if auc[group, "macro"]["n_images"] is not None:  # classes exclude one another
                line = [(group, name) for name in names]
                cells.update(zip(line, narrowed([cells[k] for k in line], auc[group, "macro"]["n_images"])))
        for name in names:
            if auc["all", name]["n_positive"] is not None:
                line = [(group, name) for group in of_groups if group != "all"]
                cells.update(zip(line, narrowed([cells[k] for k in line], auc["all", name]["n_positive"])))
    for k in cells:
        assert cells[k].any() and (k not in hidden or cells[k].sum() > 1), (k, np.flatnonzero(cells[k]))


def two_targets(missing, **sizes):
    """A race target and a finding that all have a label for, one image a patient; `missing` have no race."""
    race = np.repeat(np.array([*sizes, None], object), [*sizes.values(), missing])
    n = len(race)
    rng = np.random.default_rng(0)
    share = rng.dirichlet(np.ones(len(sizes)), n)
    table = pd.DataFrame({
        "image_id": [f"i{i}" for i in range(n)], "patient_id": [f"p{i}" for i in range(n)], "split": "test",
        "race": race, "label_race": race, "label_Edema": rng.integers(0, 2, n).astype(float),
        "score_Edema": rng.random(n), **{f"score_{name}": share[:, k] for k, name in enumerate(sizes)},
    })  # fmt: skip
    targets = {"race": Target("multiclass", tuple(sizes)), "findings": Target("multilabel", ("Edema",))}
    return Predictions(table, targets).check()


def shown_of_race(rows):
    """Numbers of images by race that can be read anywhere."""
    counts = {row["group"]: row["n_images"] for row in select(rows, attribute="race") if row["n_images"]}
    overall = select(rows, target="race", attribute="all", metric="auc")
    return counts | {row["class"]: row["n_positive"] for row in overall if row["n_positive"]}


def test_one_target_does_not_undo_what_another_hides():
    rows = audit(two_targets(12, Ada=100, Bel=50, Cyr=30, Dov=5), settings(replicates=5))
    assert shown_of_race(rows) == {"Ada": 100, "Bel": 50, "missing": 12}


@pytest.mark.parametrize("label", ["label_race", "label_Edema"])
def test_what_is_hidden_does_not_hang_on_whose_labels_are_known(label):
    """30 of Bel have no label, so that by itself this target would hide Bel for Dov's sake, and show Cyr."""
    predictions = two_targets(12, Ada=100, Bel=50, Cyr=30, Dov=5)
    unknown = (np.arange(197) >= 100) & (np.arange(197) < 130)
    rows = audit(edited(predictions, **{label: predictions.table[label].mask(unknown)}), settings(replicates=5))
    assert set(shown_of_race(rows)) == {"Ada", "Bel", "missing"}


def test_two_targets_that_are_attributes_hide_the_same_cells():
    """Alone, race by sex would hide Bel beside the 5 of Dov and M, and sex by race those without a race."""
    sizes = {
        ("Ada", "F"): 60, ("Ada", "M"): 70, ("Bel", "F"): 50, ("Bel", "M"): 40, ("Dov", "F"): 30, ("Dov", "M"): 5,
        (None, "F"): 20, (None, "M"): 15, ("Ada", None): 13, ("Bel", None): 14,
    }  # fmt: skip
    race, sex = (np.repeat(np.array([cell[k] for cell in sizes], object), list(sizes.values())) for k in range(2))
    ids = [f"{k}" for k in range(len(race))]
    table = pd.DataFrame({"image_id": ids, "patient_id": ids, "race": race, "sex": sex})
    targets = {"race": Target("multiclass", ("Ada", "Bel", "Dov")), "sex": Target("multiclass", ("F", "M"))}
    scores = {f"score_{name}": np.linspace(0, 1, len(ids)) for target in targets.values() for name in target.classes}
    predictions = Predictions(table.assign(label_race=race, label_sex=sex, **scores), targets).check()
    rows = audit(predictions, settings(replicates=2))
    by_sex = {(r["class"], r["group"]): r for r in select(rows, target="race", attribute="sex", metric="auc")}
    by_race = {(r["group"], r["class"]): r for r in select(rows, target="sex", attribute="race", metric="auc")}
    both = [cell for cell in sizes if cell in by_sex and cell in by_race]
    hidden = {cell for cell in both if by_sex[cell]["n_positive"] is None}
    assert hidden == {cell for cell in both if by_race[cell]["n_positive"] is None}
    assert ("Dov", "M") in hidden and len(both) == 6
    assert all(sum(cell[k] == mine for cell in hidden) > 1 for k, mine in enumerate(("Dov", "M")))


def test_those_not_recorded_are_no_cover_where_a_target_tells_them():
    """All less the labelled are 4, which nothing can hide; hence Dov is not hidden for them, and Cyr is for Bel."""
    rows = audit(two_targets(4, Ada=100, Bel=50, Cyr=30, Dov=20), settings(replicates=5))
    assert shown_of_race(rows) == {"Ada": 100, "Bel": 50, "Cyr": 30, "Dov": 20}
    rows = audit(two_targets(8, Ada=100, Bel=6, Cyr=30, Dov=50), settings(replicates=5))
    assert shown_of_race(rows) == {"Ada": 100, "Dov": 50}


# --- curves ----------------------------------------------------------------------------------------------------------


def test_roc_rows(race):
    _, rows = race
    for name in CLASSES:
        curve = select(rows, metric="roc_tpr", class_=name, split="test")
        assert [row["threshold"] for row in curve] == (np.arange(51) / 50).tolist()
        for key in ("value", "low", "high"):
            read = np.array([row[key] for row in curve])
            assert (np.diff(read) >= -1e-12).all() and read[-1] == pytest.approx(1, abs=1e-12)
        assert all(row["low"] <= row["value"] <= row["high"] for row in curve[5:])
        assert {row["attribute"] for row in curve} == {"all"}


def test_calibration_rows(race, findings):
    for (predictions, rows), classes in ((race, CLASSES), (findings, FINDINGS)):
        for name in classes:
            bins = select(rows, metric="calibration", class_=name, split="test", attribute="all")
            (whole,) = select(rows, metric="auc", class_=name, split="test", attribute="all")
            assert 2 <= len(bins) <= 10 and sum(row["n_images"] for row in bins) == whole["n_images"]
            assert all(row["n_patients"] >= 11 for row in bins)
            assert (np.diff([row["threshold"] for row in bins]) > 0).all()
            positives = sum(row["value"] * row["n_images"] for row in bins)
            assert positives == pytest.approx(whole["n_positive"])


def test_confusion_rows(race):
    predictions, rows = race
    part = predictions.table.query("split == 'test' and label_race.notna()")
    called = np.array(CLASSES)[part[["score_" + c for c in CLASSES]].to_numpy().argmax(1)]
    expected = sklearn.metrics.confusion_matrix(part["label_race"], called, labels=CLASSES, normalize="true")
    found = select(rows, metric="confusion", split="test")
    assert [(row["class"], row["reference"]) for row in found] == [(t, p) for t in CLASSES for p in CLASSES]
    np.testing.assert_allclose(np.reshape([row["value"] for row in found], (4, 4)), expected, atol=1e-12)
    for row in found:
        assert row["n_images"] == (part["label_race"] == row["class"]).sum()


# --- what is asked wrongly -------------------------------------------------------------------------------------------


def test_a_split_without_images_is_told():
    with pytest.raises(UserError, match="no image of split 'train'"):
        audit(people(), settings(splits=("train",)))


@pytest.mark.parametrize("attribute", ["patient_id", "image_id", "study_id"])
def test_what_says_which_patient_is_refused_before_a_row_names_it(attribute):
    with pytest.raises(UserError, match=f"config.audit.attributes: {attribute} says which image or patient"):
        audit(people(), settings(attributes=("sex", attribute)))


def test_a_table_without_splits_is_one():
    predictions = drop(people(), "split")
    rows = audit(predictions, settings(attributes=()))
    assert {row["split"] for row in rows} == {"all"}
    (row,) = select(rows, metric="accuracy")
    assert row["n_images"] == predictions.table["label_race"].notna().sum()


def test_several_targets_in_one_table():
    one, other = people(0), people(0, kind="findings")
    columns = {c: other.table[c] for c in other.table if c[:6] in ("label_", "score_")}
    both = Predictions(one.table.assign(**columns), one.targets | other.targets)
    rows = audit(both.check(), settings(attributes=("sex", "race")))
    assert {row["target"] for row in rows} == {"race", "findings"}
    # Race is the race target's own attribute, and a fair question to the findings.
    assert select(rows, target="findings", attribute="race", metric="auc")
    assert not select(rows, target="race", attribute="race", metric="auc")


def test_select_refuses_an_unknown_field(race):
    with pytest.raises(KeyError, match="no field 'metrics'"):
        select(race[1], metrics="auc")
