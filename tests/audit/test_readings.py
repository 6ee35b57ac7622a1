"""The audit of probes: AUCs, differences and what is withheld, on scores that are drawn and need no probe."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from configs import base
from cxr_jax.audit import comparisons, readings
from cxr_jax.tables import AS_MANY, FEATURES, Reading, Readings

CLASSES = ("A", "B", "C")
PATIENTS, IMAGES = 120, 240


def settings(**changes):
    config = base.get_config().audit
    config.update({"replicates": 200, **changes})
    return config


def softmax(x):
    return np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)


def drawn(seed: int = 0, few: bool = False) -> Readings:
    """Logistic regression that knows the class well, nearest neighbours less, controls nothing; in two views."""
    random = np.random.default_rng(seed)
    race = random.choice(3, PATIENTS, p=(0.5, 0.46, 0.04) if few else (0.4, 0.3, 0.3)).repeat(2)
    table = pd.DataFrame(
        {
            "image_id": [f"i{i}" for i in range(IMAGES)],
            "patient_id": [f"p{i // 2}" for i in range(IMAGES)],
            "split": "test",
            "sex": pd.array(np.where(random.random(IMAGES) < 0.5, "F", "M"), dtype="str"),
            "label_race": pd.array(np.array(CLASSES, object)[race], dtype="str"),
            "shuffled_race": pd.array(np.array(CLASSES, object)[random.permutation(race[::2]).repeat(2)], dtype="str"),
            "stratum_view": pd.array(np.where(np.arange(IMAGES) % 2, "AP", "PA"), dtype="str"),
        }
    )
    table["race"] = table["label_race"]
    table["stratum_" + AS_MANY + "view"] = table["stratum_view"].to_numpy()[random.permutation(IMAGES)]

    def scores(signal):
        return softmax(signal * np.eye(3)[race] + random.normal(size=(IMAGES, 3))).astype(np.float32)

    plan = [
        (Reading("race", "logistic_regression", FEATURES), scores(2.0)),
        (Reading("race", "knn", FEATURES), scores(0.7)),
        (Reading("race", "logistic_regression", "untrained"), scores(0.0)),
        (Reading("race", "logistic_regression", FEATURES, shuffled=True), scores(0.0)),
        (Reading("race", "logistic_regression", FEATURES, attribute="view", group="AP"), scores(2.0)),
        (Reading("race", "logistic_regression", FEATURES, attribute="view", group="PA", about={"reason": "none fitted"}), scores(np.nan)),
        (Reading("race", "logistic_regression", FEATURES, attribute="view", group="LL"), scores(2.0)),
        (Reading("race", "logistic_regression", FEATURES, attribute=AS_MANY + "view", group="AP"), scores(1.5)),
    ]
    made = [dataclasses.replace(r, about={"fit_images": 700, "fit_patients": 350, **r.about}) for r, _ in plan]
    return Readings(table, {"race": CLASSES}, made, {r.name: s for r, s in plan}, {"agreement": [], "absent": [], "strata_by_truth": []})


@pytest.fixture(scope="module")
def vectors():
    return np.random.default_rng(1).normal(size=(IMAGES, 12)).astype(np.float32)


@pytest.fixture(scope="module")
def found(vectors):
    return readings.audit(drawn(), vectors, settings(), open_data=False)


def rows(found, **wanted):
    return [row for row in found["rows"] if all(row[k] == v for k, v in wanted.items())]


def test_aucs_are_scikit_learns_each_on_its_own_labels_and_stratum(found):
    made = drawn()
    for reading in (*made.readings[:5], made.readings[-1]):
        table, scores = made.table, made.scores[reading.name]
        inside = (table[f"stratum_{reading.attribute}"] == reading.group).to_numpy() if reading.attribute else np.ones(IMAGES, bool)
        truth = table["shuffled_race" if reading.shuffled else "label_race"]
        where = {"attribute": reading.attribute or "all", "group": reading.group or "all"}
        mine = rows(found, probe=reading.probe, input=reading.input, shuffled=reading.shuffled, **where)
        assert [row["class"] for row in mine] == [*CLASSES, "macro"]
        expected = [roc_auc_score(truth[inside] == c, scores[inside, k]) for k, c in enumerate(CLASSES)]
        np.testing.assert_allclose([row["value"] for row in mine], [*expected, np.mean(expected)], rtol=1e-12)
        assert all(row["low"] < row["value"] < row["high"] for row in mine)
        assert {row["n_images"] for row in mine} == {int(inside.sum())}
        assert {row["n_patients"] for row in mine} == {table.loc[inside, "patient_id"].nunique()}
    (nothing,) = rows(found, group="PA", **{"class": "macro"})
    assert nothing["value"] is None and nothing["n_images"] == IMAGES // 2


def test_what_was_not_fitted_says_why(found):
    of_class = rows(found, group="PA", **{"class": "A"})
    assert [row["reason"] for row in of_class] == ["none fitted"]


def test_a_stratum_without_test_images_has_rows_that_say_so(found):
    empty = rows(found, group="LL")
    assert [row["class"] for row in empty] == [*CLASSES, "macro"]
    assert all(row["value"] is None and row["n_images"] == 0 and row["reason"] == "no test image here" for row in empty)


def test_every_reading_of_the_features_is_tested_against_guessing(found):
    made = drawn()
    tests = {row["reading"]: row for row in found["against_guessing"]}
    assert {row["class"] for row in found["against_guessing"]} == {"macro"}
    own = [r for r in made.readings[:-1] if r.input == FEATURES and not r.shuffled]  # the last is a control of a stratum
    assert set(tests) == {r.name for r in own}
    linear = made.readings[0]
    truth = np.stack([made.table["label_race"] == c for c in CLASSES], axis=1)
    auc, covariance = comparisons.auc_covariance(truth, made.scores[linear.name][:, :, None], made.table["patient_id"].to_numpy())
    logit, error = np.log(auc[0] / (1 - auc[0])), np.sqrt(covariance[0, 0]) / (auc[0] * (1 - auc[0]))
    assert tests[linear.name]["p"] == pytest.approx(2 * stats.norm.sf(logit / error), rel=1e-6)
    tests = found["against_guessing"]
    np.testing.assert_allclose([row["p_adjusted"] for row in tests], comparisons.holm([row["p"] for row in tests]))
    assert {row["family"] for row in tests} == {3}  # of five, two have no AUC


def test_differences_of_macro_aucs(found):
    made = drawn()
    by_names = {(c["first"], c["second"]): c for c in found["comparisons"]}
    linear, knn, untrained, shuffled = (r.name for r in made.readings[:4])
    assert set(by_names) == {(linear, knn), (linear, untrained), (linear, shuffled)}
    assert {c["class"] for c in found["comparisons"]} == {"macro"}
    one = by_names[linear, knn]
    truth = np.stack([made.table["label_race"] == c for c in CLASSES], axis=1)
    scores = np.stack([made.scores[linear], made.scores[knn]], axis=2)
    auc, covariance = comparisons.auc_covariance(truth, scores, made.table["patient_id"].to_numpy())
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    assert one["value"] == pytest.approx(auc[0] - auc[1], rel=1e-12)
    assert one["standard_error"] == pytest.approx(np.sqrt(variance), rel=1e-9)
    assert one["p"] == pytest.approx(2 * stats.norm.sf((auc[0] - auc[1]) / np.sqrt(variance)), rel=1e-6)
    assert 0 < one["low"] < one["value"] < one["high"]
    # The bootstrap, which shares nothing with the formula but the data, has about the same width.
    assert (one["high"] - one["low"]) / (2 * 1.96 * one["standard_error"]) == pytest.approx(1, abs=0.25)
    p = [c["p"] for c in found["comparisons"]]
    np.testing.assert_allclose([c["p_adjusted"] for c in found["comparisons"]], comparisons.holm(p))
    assert {c["family"] for c in found["comparisons"]} == {3}


def test_a_class_of_few_patients_is_withheld_and_tells_nothing_by_other_ways(vectors):
    made = drawn(few=True)
    patients = made.table.loc[made.table["label_race"] == "C", "patient_id"].nunique()
    assert 0 < patients < 11
    found = readings.audit(made, vectors, settings(), open_data=False)
    for row in (row for row in rows(found, **{"class": "C"}) if row["n_images"] != 0):
        assert row["value"] is None and row["n_positive"] is None
    for row in rows(found, **{"class": "macro"}):
        assert row["value"] is None
    # What is tested instead are the classes that are shown; one more is hidden, lest C follow from the others.
    shown = {row["class"] for row in rows(found, probe="knn") if row["n_positive"] is not None}
    assert len(shown) == 1
    for tests in (found["comparisons"], found["against_guessing"]):
        assert {one["class"] for one in tests if not np.isnan(one["p"])} == shown
        assert "macro" not in {one["class"] for one in tests if not np.isnan(one["value" if "value" in one else "p"])}
    assert found["space"]["each"] == {}  # which features carry it would tell of the few
    assert not [t for t in found["space"]["tests"] if t["group"] == "C" and not np.isnan(t["p"])]


def test_the_space_shows_no_image_unless_the_data_are_open(vectors):
    closed = readings.audit(drawn(), vectors, settings(), open_data=False)["space"]
    for one in closed["maps"].values():
        assert "points" not in one and one["n_images"] == IMAGES
        for cells in one["images"].values():
            assert np.isnan(np.array(cells)).any()  # 240 images on 100 cells: few have 11 patients
    opened = readings.audit(drawn(), vectors, settings(), open_data=True)["space"]
    assert len(opened["maps"]["components"]["points"]) == IMAGES
    assert set(opened["maps"]["components"]["codes"]) == {"race", "sex", "view"}


def test_noise_is_carried_by_no_feature_and_signal_is(vectors):
    made = drawn()
    signal = vectors.copy()
    signal[:, 3] += 2 * (made.table["label_race"] == "B")
    of = readings.audit(made, signal, settings(), open_data=False)["space"]["each"]["race"]
    assert of["B"]["best"][0]["feature"] == 3 and of["B"]["carry"] == 1
    assert of["B"]["features"] == 12
    noise = readings.audit(made, vectors, settings(), open_data=False)["space"]["each"]["race"]
    assert sum(one["carry"] for one in noise.values()) == 0
