"""What a model loses on the way to another hospital, in populations whose truth is known, and against scikit-learn."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import scipy.special
import sklearn.metrics

from configs import base
from cxr_jax.audit import thresholds
from cxr_jax.audit.subgroups import audit
from cxr_jax.audit.travel import DECOMPOSED, KEYS, RATES, SHIFT_KEYS, travel
from cxr_jax.tables import Predictions, Target, UserError

FINDINGS = ("Edema", "Fracture", "No Finding")
RACES = ("Black", "White")


YOUDEN = {"threshold": "youden", "age_bands": (0, 50)}


def settings(**changes):
    config = base.get_config().audit
    config.update({"replicates": 200, "attributes": ("sex", "view"), "threshold": "fixed:0.5"} | changes)
    return config


def hospital(seed, patients=2000, frontal=0.8, noise=(0.8, 2.5), moved=0.0, female=0.5, open_data=True, validation=0.2, most=2):
    """1 to 2 images a patient; those seen from the front (PA) have scores with less noise than the others. moved: all logits, by so much."""
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(patients), rng.integers(1, most + 1, patients))
    n = len(who)
    view = np.where(rng.random(n) < frontal, "PA", "AP").astype(object)
    table = pd.DataFrame({
        "image_id": [f"i{i}" for i in range(n)], "patient_id": [f"p{i:05}" for i in who], "view": view,
        "split": np.where(who < validation * patients, "validation", "test"),
        "sex": np.where(rng.random(patients) < female, "F", "M").astype(object)[who], "age": rng.uniform(20, 80, patients)[who],
        "race": np.array(RACES, object)[rng.integers(0, 2, patients)][who],
    })  # fmt: skip
    for name in FINDINGS[:2]:
        table["label_" + name] = (rng.random(patients) < 0.4)[who].astype(float)
    table["label_No Finding"] = 1.0 - table[["label_Edema", "label_Fracture"]].max(axis=1)
    for name in FINDINGS:
        logit = 2 * table["label_" + name] - 1 + np.where(view == "PA", *noise) * rng.normal(size=n) + moved
        table["score_" + name] = scipy.special.expit(logit)
    return Predictions(table, {"findings": Target("multilabel", FINDINGS)}, open_data).check()


def images(predictions):
    return predictions.table[predictions.table["split"] == "test"].reset_index(drop=True)


def the(rows, **fields):
    (row,) = [row for row in rows if all(row[name.removesuffix("_")] == value for name, value in fields.items())]
    return row


def part(found, name, metric="auc", effect=None, class_="Edema"):
    return the(found["shift"], metric=metric, class_=class_, part=name, effect=effect)


def explained(found, name, metric="auc"):
    return part(found, name, metric, "difference")


@pytest.fixture(scope="module")
def other_views():
    """Home, a data set abroad in which most are seen from behind, and what the module says."""
    home, abroad = hospital(1, 4000), hospital(2, 4000, frontal=0.2)
    return home, abroad, travel(home, {"NIH": abroad}, settings(**YOUDEN))["NIH"]


def test_the_same_population_loses_nothing():
    found = travel(hospital(1), {"same": hospital(2)}, settings())["same"]
    apart = [row for section in ("rows", "calibration", "thresholds") for row in found[section] if row["effect"] == "difference"]
    held = [row["low"] <= 0 <= row["high"] for row in apart if row["low"] is not None]
    assert len(held) > 60 and np.mean(held) > 0.85  # of intervals at 95 %, many of which go together
    for metric in DECOMPOSED:
        remainder = part(found, "remainder", metric, "difference")
        assert remainder["low"] < 0 < remainder["high"] and abs(remainder["value"]) < 0.04 and remainder["covered"] > 0.95
    assert found["reason"] is None and found["absent"] == [] and found["classes"] == {"findings": list(FINDINGS)}


def test_rows_are_json_with_the_keys_and_say_why_they_are_empty(other_views):
    *_, found = other_views
    json.dumps(found, allow_nan=False)
    assert all(tuple(row) == KEYS for section in ("rows", "calibration", "thresholds") for row in found[section])
    assert all(tuple(row) == SHIFT_KEYS for row in found["shift"])
    for row in (row for section in ("rows", "calibration", "thresholds", "shift") for row in found[section]):
        assert (row["value"] is not None and row["low"] is not None) or row["reason"], row
        assert row["low"] is None or row["low"] <= row["value"] <= row["high"], row


def test_what_other_views_cost_is_acquisition_and_nothing_else(other_views):
    home, abroad, found = other_views
    lost = the(found["rows"], metric="auc", class_="Edema", attribute="all", effect="difference")
    assert lost["high"] < -0.03
    acquisition = explained(found, "acquisition")
    many = [images(hospital(3, 60000, frontal=share)) for share in (0.8, 0.2)]
    truth = [sklearn.metrics.roc_auc_score(table["label_Edema"], table["score_Edema"]) for table in many]
    assert acquisition["by"] == ["view"] and acquisition["low"] < truth[1] - truth[0] < acquisition["high"] < -0.1
    for name in ("demographics", "prevalence"):
        assert abs(explained(found, name)["value"]) < 0.01
    remainder = explained(found, "remainder")
    assert remainder["low"] < 0 < remainder["high"]
    assert explained(found, "all")["value"] + remainder["value"] == pytest.approx(lost["value"], abs=1e-12)
    assert part(found, "acquisition")["low"] < truth[1] < part(found, "acquisition")["high"]
    assert part(found, "acquisition")["effective"] < part(found, "demographics")["effective"] <= images(home)["patient_id"].nunique()


def test_a_model_that_is_worse_abroad_is_worse_whatever_the_mix():
    found = travel(hospital(1), {"worse": hospital(2, noise=(2.5, 2.5))}, settings())["worse"]
    lost = the(found["rows"], metric="auc", class_="Edema", attribute="all", effect="difference")
    remainder = explained(found, "remainder")
    assert lost["high"] < -0.08 and remainder["high"] < -0.08 and remainder["value"] == pytest.approx(lost["value"], abs=0.02)
    for name in ("demographics", "acquisition", "prevalence", "all"):
        assert abs(explained(found, name)["value"]) < 0.02 and explained(found, name)["low"] < 0 < explained(found, name)["high"]
    assert explained(found, "remainder", "sensitivity")["high"] < 0


def weights(here, there, columns):
    """Written out with pandas: share of a cell abroad by that at home."""
    shares = [table.groupby(columns).size() / len(table) for table in (here, there)]
    ratio = (shares[1] / shares[0]).dropna()
    return pd.MultiIndex.from_frame(here[columns]).map(ratio).to_numpy(float) if len(columns) > 1 else here[columns[0]].map(ratio).to_numpy(float)


def test_weighted_figures_are_scikit_learns(other_views):
    home, abroad, found = other_views
    here, there = (images(one).assign(other=lambda t: t["label_Fracture"], band=lambda t: t["age"] // 50) for one in (home, abroad))
    threshold = thresholds.choose(*(home.table.query("split == 'validation'")[c].to_numpy() for c in ("label_Edema", "score_Edema")), "youden")
    columns = {"acquisition": ["view"], "demographics": ["band", "sex", "race"], "prevalence": ["label_Edema", "other"]}
    columns["all"] = sum(columns.values(), [])
    for name, used in columns.items():
        weight = weights(here, there, used)
        assert weight.mean() == pytest.approx(1) and part(found, name)["covered"] == 1
        expected = sklearn.metrics.roc_auc_score(here["label_Edema"], here["score_Edema"], sample_weight=weight)
        assert part(found, name)["value"] == pytest.approx(expected, abs=1e-12)
        called = here["score_Edema"] >= threshold
        for metric, side in (("sensitivity", 1), ("specificity", 0)):
            expected = sklearn.metrics.recall_score(here["label_Edema"], called, pos_label=side, sample_weight=weight)
            assert part(found, name, metric)["value"] == pytest.approx(expected, abs=1e-12)
            assert part(found, name, metric)["threshold"] == threshold


def test_errors_know_that_the_mixes_are_of_samples():
    """Against the jackknife: every patient of either data set is left out once, and all is made anew, weights too."""
    home, abroad = (hospital(seed, 100, 0.6, validation=0.0) for seed in (4, 5))
    found = travel(home, {"x": abroad}, settings(min_patients=2))["x"]

    def figures(table, weight=None):
        label, score = table["label_Edema"].to_numpy(), table["score_Edema"].to_numpy()
        recalls = [sklearn.metrics.recall_score(label, score >= 0.5, pos_label=side, sample_weight=weight) for side in (1, 0)]
        return np.array([sklearn.metrics.roc_auc_score(label, score, sample_weight=weight), *recalls])

    def explains(here, there):
        return figures(here, weights(here, there, ["view"])) - figures(here)

    variance = 0.0
    for side, table in enumerate((home.table, abroad.table)):
        without = [table[table["patient_id"] != one] for one in table["patient_id"].unique()]
        left = np.array([explains(one, abroad.table) if side == 0 else explains(home.table, one) for one in without])
        variance = variance + (len(left) - 1) / len(left) * ((left - left.mean(axis=0)) ** 2).sum(axis=0)
    for metric, value, error in zip(DECOMPOSED, explains(home.table, abroad.table), np.sqrt(variance), strict=True):
        row = explained(found, "acquisition", metric)
        assert row["value"] == pytest.approx(value, abs=1e-12)
        # Student's quantile at some 40 to 100 patients. With weights held fixed intervals would be of less than half this width.
        assert (row["high"] - row["low"]) / 2 == pytest.approx(2.0 * error, rel=0.12)


def test_homes_own_rows_are_those_of_its_audit(other_views):
    home, _, found = other_views
    for row in audit(home, settings(**YOUDEN, intersections=())):
        if row["metric"] in ("auc", "calibration_slope", "ece_debiased", *RATES) and row["effect"] is None and "*" not in row["attribute"]:
            section = "rows" if row["metric"] == "auc" else "thresholds" if row["metric"] in RATES else "calibration"
            same = [r for r in found[section] if r["where"] == "home" and all(r[k] == row[k] for k in ("metric", "class", "attribute", "group"))]
            assert section == "calibration" and row["attribute"] != "all" or [{k: r[k] for k in row} for r in same] == [row]


def test_the_threshold_of_home_is_carried_and_the_other_stands_beside_it():
    home, abroad = hospital(1), hospital(2, moved=-1.0)
    rule = "sensitivity:0.9"
    found = travel(home, {"lower": abroad}, settings(threshold=rule))["lower"]
    here, there = images(home), images(abroad)
    chosen = {
        where: thresholds.choose(*(one.table.query("split == 'validation'")[c].to_numpy() for c in ("label_Edema", "score_Edema")), rule)
        for where, one in (("home", home), ("abroad", abroad))
    }
    for attribute, group in (("all", "all"), ("view", "AP")):
        parts = [t if attribute == "all" else t[t["view"] == "AP"] for t in (here, there)]
        for where, table, by in (("home", parts[0], "home"), ("abroad", parts[1], "home"), ("abroad", parts[1], "abroad")):
            called, ill = table["score_Edema"] >= chosen[by], table["label_Edema"] == 1
            expected = called[ill].mean(), 1 - called[~ill].mean(), 1 - called[ill].mean(), called.mean()
            for metric, value in zip(RATES, expected, strict=True):
                row = the(found["thresholds"], metric=metric, class_="Edema", group=group, where=where, chosen=by, effect=None)
                assert row["value"] == pytest.approx(value, abs=1e-12) and row["threshold"] == chosen[by] and row["low"] < value < row["high"]
    sensitivity = {"metric": "sensitivity", "class": "Edema", "group": "all"}
    assert the(found["thresholds"], **sensitivity, where="home", effect=None)["value"] == pytest.approx(0.9, abs=0.04)
    lost, kept = (the(found["thresholds"], **sensitivity, effect="difference", reference=r) for r in ("home", "own"))
    # The 10th percentile at home, of a mixture of normals, is crossed by more of those whose logits are one lower.
    many = images(hospital(6, 60000, moved=-1.0)).query("label_Edema == 1")["score_Edema"]
    truth = (many >= chosen["home"]).mean() - (images(hospital(7, 60000)).query("label_Edema == 1")["score_Edema"] >= chosen["home"]).mean()
    assert lost["low"] < truth < lost["high"] < 0 and kept["high"] < 0
    assert "chosen at home" in lost["method"] and lost["chosen"] == "home"
    # What does not hang on the threshold has not moved.
    auc = the(found["rows"], metric="auc", class_="Edema", group="all", effect="difference")
    assert auc["low"] < 0 < auc["high"]
    calibration = the(found["calibration"], metric="calibration_in_the_large", class_="Edema", effect="difference")
    expected = [(t["score_Edema"] - t["label_Edema"]).mean() for t in (there, here)]
    assert calibration["value"] == pytest.approx(expected[0] - expected[1], abs=1e-12) and calibration["high"] < 0


def test_without_validation_abroad_is_called_by_all_of_home():
    home, abroad = hospital(1, 300, validation=0.0), hospital(2, 300, validation=0.0)
    found = travel(home, {"x": abroad}, settings(threshold="youden"))["x"]
    chosen = thresholds.choose(home.table["label_Edema"].to_numpy() == 1, home.table["score_Edema"].to_numpy(), "youden")
    places = (("home", "home"), ("abroad", "home"), ("abroad", "abroad"))
    rows = [the(found["thresholds"], metric="called", class_="Edema", group="all", effect=None, where=w, chosen=c) for w, c in places]
    assert [row["threshold"] for row in rows] == [None, chosen, None] and "cross-fitted" in rows[0]["method"] and "cross-fitted" in rows[2]["method"]


def test_what_is_not_recorded_abroad_is_said():
    home, abroad = hospital(1, 600), hospital(2, 600)
    table = abroad.table.drop(columns=["race"]).assign(label_Fracture=np.nan)
    abroad = Predictions(table, {"findings": Target("multilabel", FINDINGS[:2])}, True).check()
    found = travel(home, {"NIH": abroad}, settings(attributes=("race", "sex")))["NIH"]
    row = the(found["rows"], attribute="race", where="abroad")
    assert row["reason"] == "race is not recorded in NIH" and row["value"] is None and row["n_images"] == 0
    assert len([r for r in found["rows"] if r["attribute"] == "race" and r["where"] == "home"]) == 4  # two groups, class and macro
    assert [(r["class"], r["reason"]) for r in found["absent"]] == [(c, "no label of it is known in NIH") for c in FINDINGS[1:]]
    assert found["classes"] == {"findings": ["Edema"]} and {r["class"] for r in found["rows"]} == {"Edema", "macro"}
    assert explained(found, "demographics")["by"] == ["age_band", "sex"]
    # A macro is of the same classes at home and abroad: here of one.
    home_macro = the(found["rows"], class_="macro", where="home", group="all")
    assert home_macro["value"] == the(found["rows"], class_="Edema", where="home", group="all")["value"]
    nothing = Predictions(table.drop(columns=["age", "sex"]), abroad.targets, True)
    found = travel(home, {"NIH": nothing}, settings(attributes=()))["NIH"]
    assert explained(found, "demographics")["value"] is None and explained(found, "demographics")["reason"] == "nothing of it is recorded both at home and in NIH"


def test_one_class_only_has_no_auc_and_leaves_the_macro_on_both_sides():
    home, abroad = hospital(1, 600), hospital(2, 600)
    abroad = dataclasses.replace(abroad, table=abroad.table.assign(label_Edema=0.0))
    found = travel(home, {"x": abroad}, settings())["x"]
    assert found["classes"] == {"findings": ["Fracture", "No Finding"]}
    row = the(found["rows"], metric="auc", class_="Edema", where="abroad", group="all", effect=None)
    assert row["value"] is None and row["reason"] == "one class only: no positive"
    macro = the(found["rows"], class_="macro", where="home", group="all")
    aucs = [the(found["rows"], class_=c, where="home", group="all")["value"] for c in found["classes"]["findings"]]
    assert macro["value"] == pytest.approx(np.mean(aucs)) and macro["reason"] == "mean over 2 of 3 classes: Fracture, No Finding"
    for name in ("all", "remainder"):
        assert explained(found, name)["value"] is None and explained(found, name)["reason"]


def test_classes_that_exclude_one_another_travel_as_well():
    def race(seed, frontal):
        predictions = hospital(seed, 800, frontal)
        score = scipy.special.expit(2 * (predictions.table["race"] == "White") - 1 + np.random.default_rng(seed).normal(size=len(predictions.table)))
        table = predictions.table.assign(label_race=predictions.table["race"], score_White=score, score_Black=1 - score)
        return Predictions(table, {"race": Target("multiclass", RACES)}, True).check()

    found = travel(race(1, 0.8), {"x": race(2, 0.8)}, settings(attributes=("race", "sex")))["x"]
    assert {row["attribute"] for row in found["rows"]} == {"all", "sex"}  # a group of one race has no other to be told from
    demographics = part(found, "demographics", class_="White")
    assert demographics["by"] == ["age_band", "sex"] and demographics["value"] is not None
    remainder = part(found, "remainder", class_="White", effect="difference")
    assert remainder["low"] < 0 < remainder["high"]
    assert len([row for row in found["rows"] if row["class"] == "macro" and row["effect"] is None and row["group"] == "all"]) == 2


def test_closed_data_tell_of_no_few():
    """Nine patients abroad, or at home, are in a view of their own: no group of theirs is shown, and no weight made of them."""
    for closed, odd in ((True, "abroad"), (True, "home"), (False, "abroad")):
        home, abroad = hospital(1, 500, most=1, open_data=not closed), hospital(2, 500, most=1, open_data=True)
        one = abroad if odd == "abroad" else home
        at = one.table.index[one.table["split"] == "test"][:9]
        one.table.loc[at, "view"] = "LATERAL"
        other = home if odd == "abroad" else abroad
        # The other data set has many of these.
        other.table.loc[other.table.index[-60:], "view"] = "LATERAL"
        found = travel(home, {"x": abroad}, settings())["x"]
        few = [row for row in found["rows"] if row["group"] == "LATERAL" and row["where"] == odd and row["effect"] is None]
        assert few and all(row["suppressed"] and row["value"] is None and row["n_images"] is None for row in few)
        row = part(found, "acquisition")
        here, there = images(home), images(abroad)
        weight = weights(here, there, ["view"])
        if closed:  # The lateral ones abroad are given to all of home alike.
            lateral = (there["view"] == "LATERAL").mean()
            weight = np.where(here["view"] == "LATERAL", 0.0, weight) + lateral
        expected = sklearn.metrics.roc_auc_score(here["label_Edema"], here["score_Edema"], sample_weight=weight)
        assert row["value"] == pytest.approx(round(expected, 2) if closed else expected, abs=1e-12)
        covered = 1 - lateral if closed else 1
        assert row["covered"] == (round(covered, 1) if closed else covered)  # tenths: 400 images, of 40 and more each
        assert not closed or (row["low"] == round(row["low"], 2) and row["effective"] == float(f"{row['effective']:.2g}") and "rounded to 2 decimals" in row["reason"])


def test_where_home_lacks_the_like_it_is_said():
    home, abroad = hospital(1, 600, frontal=1.0), hospital(2, 600, frontal=0.3)
    row = explained(travel(home, {"NIH": abroad}, settings())["NIH"], "acquisition")
    share = (images(abroad)["view"] == "PA").mean()
    assert row["covered"] == pytest.approx(share) and f"{100 * share:.0f} % of the images in NIH have their like at home" in row["reason"]
    found = travel(home, {"NIH": hospital(2, 600, frontal=0.0)}, settings())["NIH"]
    assert explained(found, "acquisition")["value"] is None and explained(found, "acquisition")["covered"] == 0


def test_patients_of_two_data_sets_are_drawn_apart():
    """The same images under another name: were replicates the same, a difference would have no width."""
    home = hospital(1, 400)
    found = travel(home, {"twin": home}, settings(interval="percentile"))["twin"]
    row, own = (the(found["rows"], class_="Edema", group="all", effect=e, where="abroad") for e in ("difference", None))
    assert row["value"] == 0 and (row["high"] - row["low"]) == pytest.approx(np.sqrt(2) * (own["high"] - own["low"]), rel=0.25)
    assert explained(found, "acquisition")["value"] == pytest.approx(0, abs=1e-12)
    # Few of so few have their like in all, and the rest in fewer: all but nothing is explained.
    assert explained(found, "all")["covered"] < 0.9 and abs(explained(found, "all")["value"]) < 0.015


def test_no_image_is_no_error_abroad_and_one_at_home():
    home = hospital(1, 200)
    empty = dataclasses.replace(home, table=home.table[home.table["split"] == "validation"])
    found = travel(home, {"x": empty}, settings())["x"]
    assert found["reason"] == "no test image in x" and found["rows"] == found["shift"] == []
    unlabelled = dataclasses.replace(home, table=home.table.assign(**{f"label_{c}": np.nan for c in FINDINGS}))
    found = travel(home, {"x": unlabelled}, settings())["x"]
    assert found["reason"] == "nothing that the model tells is recorded in x" and [row["class"] for row in found["absent"]] == list(FINDINGS)
    with pytest.raises(UserError, match="no image of split 'test'"):
        travel(empty, {"x": home}, settings())
    with pytest.raises(UserError, match="threshold_by: no view is recorded in the predictions of x"):
        travel(home, {"x": dataclasses.replace(home, table=home.table.drop(columns="view"))}, settings(threshold_by="view", attributes=("sex",)))
