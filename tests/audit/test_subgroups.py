"""The rows of the audit against scikit-learn and pandas, and what must never be in them."""

import collections
import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
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


@pytest.fixture(scope="module")
def race():
    predictions = people()
    return predictions, audit(predictions, settings(splits=("validation", "test")))


@pytest.fixture(scope="module")
def findings():
    predictions = people(1, kind="findings")
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
        keys = ("metric", "target", "class", "attribute", "group", "split", "threshold", "reference")
        times = collections.Counter(tuple(row[k] for k in keys) for row in rows)
        assert max(times.values()) == 1


def test_multiclass_values_are_scikit_learns(race):
    predictions, rows = race
    metrics = {"auc", "average_precision", "brier", "accuracy", "auc_ceiling"}
    checked = collections.Counter()
    for row in rows:
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
        found["macro"] = np.mean(list(found.values())) if found else None
        called = np.array(CLASSES)[part[["score_" + c for c in CLASSES]].to_numpy().argmax(1)]
        found["all"] = (called == part["label_race"]).mean()
        assert row["value"] == pytest.approx(found[row["class"]], abs=1e-12), row
        assert (row["n_images"], row["n_patients"]) == (len(part), part["patient_id"].nunique())
        if row["n_positive"] is not None:
            assert row["n_positive"] == (part["label_race"] == row["class"]).sum()
        checked[row["metric"]] += 1
    assert set(checked) == metrics and min(checked.values()) > 8


def test_multilabel_values_are_scikit_learns(findings):
    predictions, rows = findings
    checked = collections.Counter()
    for row in rows:
        if row["value"] is None or row["class"] == "macro" or row["metric"] in ("roc_tpr", "calibration"):
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
        assert row["value"] == pytest.approx(expected, abs=1e-12), row
        assert row["n_images"] == len(part) and row["n_positive"] in (None, truth.sum())
        assert row["threshold"] == (0.5 if row["metric"] == "accuracy" else None)
        checked[row["metric"]] += 1
    assert min(checked.values()) > 8 and len(checked) == 4


def test_intervals_are_quantiles_of_a_plain_loop(race):
    predictions, rows = race
    part = predictions.table.query("split == 'test'").reset_index(drop=True)
    bootstrap = Bootstrap(part["patient_id"].to_numpy(), 60, 0)
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
    for row in select(rows, metric="auc_difference", suppressed=False):
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
    found = [row for row in audit(same, settings()) if row["metric"] == "auc_difference" and not row["suppressed"]]
    assert len(found) > 20
    assert all(row["value"] == 0 for row in found)
    held = [row for row in found if "withheld" not in (row["reason"] or "")]
    assert len(held) > 20 and all((row["low"], row["high"]) == (0, 0) for row in held)


def test_no_ceiling_no_ceiling_rows(findings):
    predictions = drop(people(), "ceiling_Ada")
    assert {row["metric"] for row in audit(predictions, settings())} == {
        "auc", "average_precision", "accuracy", "brier", "roc_tpr", "calibration", "confusion",
    }  # fmt: skip
    assert {row["metric"] for row in findings[1]} == {
        "auc", "average_precision", "accuracy", "brier", "roc_tpr", "calibration",
    }  # fmt: skip


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


def test_rare_positives_have_no_interval_but_a_reason():
    predictions = people(1, kind="findings")
    label = np.zeros(len(predictions.table))
    label[predictions.table["split"] == "test"] = 0
    label[np.flatnonzero(predictions.table["split"] == "test")[0]] = 1
    rows = audit(edited(predictions, label_Edema=label), settings(attributes=()))
    (row,) = select(rows, metric="auc", class_="Edema")
    assert row["value"] is not None and row["low"] is None and row["high"] is None
    assert "interval withheld: undefined in" in row["reason"] and "n_positive hidden" in row["reason"]
    assert row["n_positive"] is None
    (curve,) = select(rows, metric="roc_tpr", class_="Edema")
    assert curve["suppressed"] and curve["n_images"] is None
    (curve,) = select(rows, metric="calibration", class_="Edema")
    assert curve["suppressed"]


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
        assert len(found) == 8 and {row["suppressed"] for row in found} == {name in hidden}
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
    positives = {row["group"]: row["n_positive"] for row in select(rows, metric="auc", class_="Edema")}
    assert positives == {"all": 59, "a": 30, "b": None, "c": None}
    (row,) = select(rows, metric="auc", class_="Edema", group="c")
    assert row["value"] is not None and row["n_images"] == 40 and "n_positive hidden" in row["reason"]


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
    for row in rows:
        if row["class"] == "Dov" and row["metric"] in ("roc_tpr", "calibration", "confusion"):
            assert row["suppressed"] and row["value"] is None and row["n_images"] is None
        if row["attribute"] == "race" and row["group"] in ("Dov", *others):
            assert row["suppressed"]
        if row["metric"] == "confusion" and row["class"] in others:
            assert row["suppressed"] and row["value"] is None
    # A hidden total must not follow from its parts either.
    for name in ("Dov", *others):
        assert any(row["n_positive"] is None for row in select(rows, metric="auc", class_=name, attribute="sex"))


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
            bins = select(rows, metric="calibration", class_=name, split="test")
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


def test_a_ceiling_must_be_a_probability():
    predictions = people()
    ceiling = predictions.table["ceiling_Bel"].to_numpy().copy()
    ceiling[-1] = np.nan
    image = predictions.table["image_id"].iloc[-1]
    with pytest.raises(UserError, match=f"image '{image}', column 'ceiling_Bel': nan found"):
        audit(edited(predictions, ceiling_Bel=ceiling), settings())


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
