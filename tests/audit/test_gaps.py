"""What is made of several groups: differences to the rest, families of tests, intersections, and that these hide what they must."""

import collections
import itertools

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics

from configs import base
from cxr_jax.audit import comparisons, gaps, judgement
from cxr_jax.audit.subgroups import audit, select
from cxr_jax.audit.suppression import null_space
from cxr_jax.tables import Predictions, Target, UserError

FINDINGS = ("No Finding", "Edema")


def settings(**changes):
    config = base.get_config().audit
    config.update(replicates=100, attributes=("race", "sex"), intersections=("race*sex",), threshold="fixed:0.5")
    config.update(changes)
    return config


def people(seed=0, patients=400, races=("a", "b", "c"), shares=(0.5, 0.3, 0.2), hurt=0.0, prevalence=(0.4, 0.3), missing=0.0):
    """Findings of 1 to 3 images a patient; those of race c score higher for No Finding by `hurt` though they have a finding."""
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(patients), rng.integers(1, 4, patients))
    n = len(who)
    race = np.array(races, object)[rng.choice(len(races), patients, p=shares)][who]
    table = pd.DataFrame({
        "image_id": [f"i{i}" for i in range(n)], "patient_id": [f"p{i:04}" for i in who],
        "race": race, "sex": np.array(["F", "M"], object)[rng.integers(0, 2, patients)][who],
    })  # fmt: skip
    table.loc[(rng.random(patients) < missing)[who], "sex"] = None
    for name, share in zip(FINDINGS, prevalence):
        truth = (rng.random(patients) < share)[who]
        raised = hurt * ((race == "c") & ~truth) if name == "No Finding" else 0
        table[f"label_{name}"] = truth.astype(float)
        table[f"score_{name}"] = np.clip(0.35 + 0.3 * truth + 0.15 * rng.normal(size=patients)[who] + 0.1 * rng.normal(size=n) + raised, 0, 1)
    return Predictions(table, {"findings": Target("multilabel", FINDINGS)}).check()


def test_differences_are_to_all_others_and_to_the_reference():
    predictions = people()
    rows = audit(predictions, settings(reference=("race=b",)))
    table = predictions.table
    for row in select(rows, metric="auc", effect="difference", class_="Edema"):
        if row["reference"] == "like":  # tests/audit/test_case_mix.py
            continue
        inside = table[row["attribute"]] == row["group"]
        others = ~inside if row["reference"] == "rest" else table[row["attribute"]] == row["reference"]
        own, theirs = (sklearn.metrics.roc_auc_score(table["label_Edema"][m], table["score_Edema"][m]) for m in (inside, others))
        assert row["value"] == pytest.approx(own - theirs, abs=1e-12) and row["low"] < row["value"] < row["high"]
        assert (row["n_images"], row["n_patients"]) == (inside.sum(), table["patient_id"][inside].nunique())
    against = {(row["attribute"], row["group"], row["reference"]) for row in select(rows, metric="false_positive_rate", effect="ratio", class_="Edema")}
    assert {(r, f) for a, r, f in against if a == "race"} == {("a", "rest"), ("b", "rest"), ("c", "rest"), ("a", "b"), ("c", "b")}
    largest = table.groupby("sex")["patient_id"].nunique().idxmax()
    assert {f for a, _, f in against if a == "sex"} == {"rest", largest}


def test_the_family_is_every_test_once():
    rows = audit(people(hurt=0.15), settings())
    have = [row for row in rows if row["p"] is not None]
    assert {row["metric"] for row in have} == set(gaps.TESTED)
    assert {(row["effect"], row["reference"]) for row in have} == {("difference", "rest")}
    # Of F and M one is the other's rest.
    family = [row for row in have if (row["attribute"], row["group"]) != ("sex", "M")]
    assert {row["family"] for row in have} == {len(family)} and len(have) > len(family)
    p = np.array([row["p"] for row in family])
    np.testing.assert_allclose([row["p_holm"] for row in family], comparisons.holm(p))
    np.testing.assert_allclose([row["p_by"] for row in family], comparisons.benjamini_yekutieli(p))
    for row in (row for row in have if (row["attribute"], row["group"]) == ("sex", "M")):
        (mirror,) = select(rows, **{k: row[k] for k in ("metric", "class", "attribute", "effect", "reference")}, group="F")
        assert row["p"] == pytest.approx(mirror["p"], rel=1e-9) and row["p_holm"] == mirror["p_holm"] and row["value"] == pytest.approx(-mirror["value"])
    assert all(row["p_bootstrap"] >= 1 / 101 for row in have)


def test_who_is_missed_is_found_and_nobody_else():
    rows = audit(people(hurt=0.15, patients=700), settings())
    found = [row for row in rows if row["p_holm"] is not None and row["p_holm"] < 0.05]
    assert {(row["class"], row["attribute"]) for row in found} - {("macro", "race")} == {("No Finding", "race")}
    (row,) = select(rows, metric="false_positive_rate", class_="No Finding", group="c", effect="difference", reference="rest")
    assert row["p_holm"] < 0.001 and row["low"] > 0
    (shrunk,) = select(rows, metric="false_positive_rate", class_="No Finding", attribute="race*sex", group="c * F", effect="shrunk")
    (raw,) = select(rows, metric="false_positive_rate", class_="No Finding", attribute="race*sex", group="c * F")
    (everyone,) = select(rows, metric="false_positive_rate", class_="No Finding", attribute="all")
    assert everyone["value"] < shrunk["value"] and shrunk["high"] - shrunk["low"] <= raw["high"] - raw["low"]
    assert "own weight" in shrunk["reason"] and "partial pooling" in shrunk["method"]


def test_truth_in_the_place_of_what_is_recorded():
    predictions = people(prevalence=(0.5, 0.3))
    table = predictions.table
    rng = np.random.default_rng(1)
    recorded = table["label_No Finding"].copy()
    recorded[(table["race"] == "c") & (rng.random(len(table)) < 0.4)] = 1.0
    told = predictions.table.assign(**{"true_No Finding": table["label_No Finding"], "label_No Finding": recorded})
    with_truth = Predictions(told, predictions.targets, open_data=True)
    by_truth, by_record = (audit(with_truth, settings(truth=truth)) for truth in ("true", "recorded"))
    wanted = {"metric": "false_positive_rate", "class": "No Finding", "attribute": "all"}
    (plain,), (as_true,) = select(audit(predictions, settings()), **wanted), select(by_truth, **wanted)
    assert plain["value"] == as_true["value"] and select(by_record, **wanted)[0]["value"] < plain["value"]
    for rows in (by_truth, by_record):
        found = {row["group"]: row for row in select(rows, metric="recorded_if_absent", class_="No Finding", attribute="race")}
        assert found["c"]["low"] < 0.4 < found["c"]["high"] and found["a"]["value"] == 0 and found["a"]["high"] < 0.1
        assert select(rows, metric="recorded_if_absent", class_="Edema", attribute="all")[0]["reason"] == "its truth is not known"
    with pytest.raises(UserError, match="no column 'true_FINDING'"):
        audit(predictions, settings(truth="true"))
    # Of data that are not open the two together would be cells that nothing protects.
    assert not select(audit(Predictions(told, predictions.targets), settings()), metric="recorded_if_absent")


def test_thresholds_are_chosen_on_validation_by_what_is_recorded():
    predictions = people(patients=600)
    table = predictions.table.assign(split=np.where(predictions.table["patient_id"] < "p0200", "validation", "test"))
    rows = audit(Predictions(table, predictions.targets), settings(threshold="sensitivity:0.9"))
    validation = table[(table["split"] == "validation") & (table["label_Edema"] == 1)]["score_Edema"].sort_values(ascending=False).to_numpy()
    expected = validation[int(np.ceil(0.9 * len(validation) - 1e-9)) - 1]
    (row,) = select(rows, metric="sensitivity", class_="Edema", attribute="all")
    test = table[(table["split"] == "test") & (table["label_Edema"] == 1)]["score_Edema"]
    assert row["threshold"] == expected and row["value"] == pytest.approx((test >= expected).mean()) and "chosen on validation" in row["method"]
    (fitted,) = select(audit(predictions, settings(threshold="youden")), metric="sensitivity", class_="Edema", attribute="all")
    assert fitted["threshold"] is None and "cross-fitted" in fitted["method"]


def test_rates_of_few_are_withheld():
    predictions = people(patients=300, prevalence=(0.4, 0.3))
    table = predictions.table.copy()
    few = table["patient_id"].unique()[:5]
    table["score_Edema"] = np.where(table["patient_id"].isin(few), 0.9, np.minimum(table["score_Edema"], 0.4))
    rows = audit(Predictions(table, predictions.targets), settings(attributes=(), intersections=()))
    (ppv,), (npv,) = (select(rows, metric=m, class_="Edema", attribute="all") for m in ("ppv", "npv"))
    assert ppv["value"] is None and ppv["reason"] == "withheld: fewer than 11 patients are called" and npv["value"] is not None
    table["score_Edema"] = 0.1
    rows = audit(Predictions(table, predictions.targets), settings(attributes=(), intersections=()))
    assert select(rows, metric="ppv", class_="Edema", attribute="all")[0]["reason"] == "no image: none are called"


# --- what intersections hide -----------------------------------------------------------------------------------------


def rare(seed):
    shares = np.random.default_rng(seed).permutation([0.55, 0.25, 0.13, 0.07])
    return people(seed, patients=260, races=tuple("abcd"), shares=shares, prevalence=(0.3, 0.06), missing=0.05)


def solved(unknown, equations):
    """Cells of one possible value, given sums of them that are known."""
    matrix = np.array([[float(cell in parts) for cell in unknown] for parts in equations if any(c in unknown for c in parts)])
    free = null_space(matrix) if len(matrix) else np.eye(len(unknown))
    return [cell for cell, row in zip(unknown, free) if np.abs(row).max(initial=0) < 1e-9]


@pytest.mark.parametrize("seed", range(4))
def test_no_small_intersection_follows_from_what_is_shown(seed):
    """Every number of images, positive ones and the others of race by sex, with the totals of each: an attacker solves for the rest."""
    predictions = rare(seed)
    table = predictions.table.assign(sex=predictions.table["sex"].fillna("missing"))
    rows = [row for row in audit(predictions, settings()) if row["effect"] is None and row["metric"] == "auc"]
    hidden_small = 0
    for name in FINDINGS:
        atoms = list(itertools.product(sorted(set(table["race"])), sorted(set(table["sex"])), (0, 1)))
        images = {a: (table["race"] == a[0]) & (table["sex"] == a[1]) & (table[f"label_{name}"] == a[2]) for a in atoms}
        atoms = [a for a in atoms if images[a].any()]

        def inside(row):
            race, sex = {"race": (row["group"], None), "sex": (None, row["group"]), "all": (None, None), "race*sex": tuple(row["group"].split(" * "))}[row["attribute"]]
            return [a for a in atoms if race in (None, a[0]) and sex in (None, a[1])]

        known = []
        for row in (row for row in rows if row["class"] == name):
            if row["n_images"] is not None:
                known.append(inside(row))
                assert row["n_images"] == sum(images[a].sum() for a in inside(row))
            if row["n_positive"] is not None:
                known.append([a for a in inside(row) if a[2] == 1])
                assert row["n_positive"] == sum(images[a].sum() for a in inside(row) if a[2] == 1)
        followed = solved(atoms, known)
        small = [a for a in atoms if table["patient_id"][images[a]].nunique() < 11]
        assert not set(followed) & set(small), (name, set(followed) & set(small))
        hidden_small += len(small)
    assert hidden_small > 10
    shown = collections.Counter(row["n_images"] is not None for row in rows if row["attribute"] == "race*sex")
    assert shown[True] and shown[False]


def test_intersections_of_what_is_not_recorded_are_left_out():
    rows = audit(people(), settings(attributes=("race",), intersections=("race*sex", "race*view")))
    assert not any("*" in row["attribute"] for row in rows)


def test_everything_of_a_hidden_cell_is_null():
    rows = audit(rare(0), settings())
    gone = [row for row in rows if row["suppressed"]]
    assert len(gone) > 20
    for row in gone:
        assert all(row[k] is None for k in ("value", "low", "high", "n_images", "n_patients", "n_positive", "p")) and row["reason"]
    hidden = {(row["class"], row["attribute"], row["group"]) for row in rows if row["metric"] == "auc" and row["effect"] is None and row["n_positive"] is None}
    label_based = set(judgement.RATES) - {"called"} | {"accuracy", "calibration_in_the_large", "ece", "ece_debiased", "calibration_slope"}
    for row in rows:
        if (row["class"], row["attribute"], row["group"]) in hidden and row["class"] != "macro" and row["metric"] in label_based and row["effect"] != "range":
            assert row["value"] is None, row


# --- what a reader of this code found, and would have found again ----------------------------------------------------


def test_nobody_is_certain_where_nobody_was_seen_to_err():
    """None of 40 against 2 % of the rest: an interval of the difference that leaves 0 out would be false half the time."""
    rng, covered = np.random.default_rng(0), []
    for _ in range(60):
        n = 440
        table = pd.DataFrame({
            "image_id": np.arange(n).astype(str), "patient_id": np.arange(n).astype(str), "site": np.repeat(["a", "b"], [40, 400]),
            "label_Edema": 0.0, "score_Edema": np.where(rng.random(n) < 0.02, 0.9, 0.1),
        })  # fmt: skip
        predictions = Predictions(table, {"findings": Target("multilabel", ("Edema",))})
        rows = audit(predictions, settings(attributes=("site",), intersections=()))
        (row,) = select(rows, metric="false_positive_rate", group="a", effect="difference", reference="rest")
        assert row["low"] is not None
        covered.append(row["low"] <= 0 <= row["high"])
        for ratio in select(rows, metric="false_positive_rate", group="a", effect="ratio", reference="rest"):
            assert ratio["value"] or ratio["low"] is None
    assert np.mean(covered) > 0.9


def test_a_difference_of_nothing_is_no_certainty():
    predictions = people()
    table = predictions.table.assign(score_Edema=predictions.table["label_Edema"] * 0.8 + 0.1)
    rows = audit(Predictions(table, predictions.targets), settings())
    for row in rows:
        if row["class"] == "Edema" and row["effect"] in ("difference", "ratio", "range") and row["metric"] in gaps.COMPARED:
            assert row["low"] is None or row["low"] < row["high"], row


def test_what_is_judged_varies_as_it_does_among_people():
    """Groups that are the target's classes make no strata: mean score less prevalence has the width that it has without."""
    rng = np.random.default_rng(0)
    race = np.repeat(["a", "b"], [160, 240])[rng.permutation(400)]
    table = pd.DataFrame({"image_id": np.arange(400).astype(str), "patient_id": np.arange(400).astype(str), "race": race, "label_race": race})
    table["score_a"] = rng.uniform(0.3, 0.5, 400)
    table["score_b"] = 1 - table["score_a"]
    predictions = Predictions(table, {"race": Target("multiclass", ("a", "b"))})
    widths = []
    for attributes in (("race",), ()):
        (row,) = select(audit(predictions, settings(attributes=attributes, intersections=())), metric="calibration_in_the_large", class_="a", attribute="all")
        widths.append(row["high"] - row["low"])
    assert widths[0] == pytest.approx(widths[1], rel=1e-9) and widths[0] > 0.08


def classes(seed, patients=500):
    """A target of four exclusive classes, one of them rare."""
    rng = np.random.default_rng(seed)
    names = ("w", "x", "y", "z")
    label = np.array(names)[rng.choice(4, patients, p=[0.5, 0.3, 0.15, 0.05])]
    table = pd.DataFrame({
        "image_id": np.arange(patients).astype(str), "patient_id": np.arange(patients).astype(str), "label_kind": label,
        "race": np.array(["a", "b", "c"])[rng.choice(3, patients, p=[0.6, 0.3, 0.1])], "sex": np.array(["F", "M"])[rng.integers(0, 2, patients)],
    })  # fmt: skip
    raw = rng.random((patients, 4)) + (label[:, None] == np.array(names))
    table[[f"score_{c}" for c in names]] = raw / raw.sum(1, keepdims=True)
    return Predictions(table, {"kind": Target("multiclass", names)})


@pytest.mark.parametrize("seed", range(4))
def test_exclusive_classes_do_not_tell_of_the_one_that_is_hidden(seed):
    predictions = classes(seed)
    rows = [r for r in audit(predictions, settings()) if r["metric"] == "auc" and r["effect"] is None and r["attribute"] == "race*sex"]
    groups = {row["group"] for row in rows}
    hidden = 0
    for group in groups:
        here = {row["class"]: row for row in rows if row["group"] == group}
        if here["w"]["n_images"] is None:
            continue
        gone = [c for c in "wxyz" if here[c]["n_positive"] is None]
        hidden += len(gone)
        if len(gone) == 1:  # all less the others is the one
            race, sex = group.split(" * ")
            table = predictions.table
            assert ((table["race"] == race) & (table["sex"] == sex) & (table["label_kind"] == gone[0])).sum() >= 11, (group, gone)
    assert hidden > 4


def test_odds_are_over_groups_that_have_both_rates():
    predictions = people(patients=500)
    table = predictions.table
    table.loc[table["race"] == "c", "label_Edema"] = 0.0
    table.loc[table["race"] == "c", "score_Edema"] = 0.9
    rows = audit(Predictions(table, predictions.targets), settings())
    (odds,) = select(rows, metric="equalised_odds", class_="Edema", attribute="race", effect="range")
    assert odds["value"] < 0.5 and "over 2 of 3 groups" in odds["reason"]
    assert odds["n_images"] == (table["race"] != "c").sum()


def test_ranges_tell_no_number_of_patients_who_are_in_one_group_alone():
    predictions = people()
    rng = np.random.default_rng(3)
    table = predictions.table.assign(view=rng.choice(["AP", "PA"], len(predictions.table)))
    rows = audit(Predictions(table, predictions.targets), settings(attributes=("view", "sex"), intersections=()))
    told = {row["attribute"]: row["n_patients"] for row in select(rows, metric="called", class_="Edema", effect="range")}
    assert told["view"] is None and told["sex"] == table["patient_id"].nunique()


def test_of_two_complementary_classes_the_test_is_one():
    predictions = people()
    table = predictions.table.assign(label_kind=np.where(predictions.table["label_Edema"] == 1, "ill", "well"))
    table["score_ill"] = table["score_Edema"]
    table["score_well"] = 1 - table["score_ill"]
    rows = audit(Predictions(table, {"kind": Target("multiclass", ("ill", "well"))}), settings(attributes=("sex",), intersections=()))
    aucs = [row for row in rows if row["metric"] == "auc" and row["p"] is not None]
    assert len(aucs) == 6 and len({round(row["p"], 9) for row in aucs}) == 1
    rates = {round(row["p"], 9) for row in rows if row["p"] is not None and row["metric"] != "auc"}
    assert aucs[0]["family"] == 1 + 4 and len(rates) <= 4


@pytest.mark.parametrize(("changes", "told"), [
    ({"reference": ("race=zed",)}, "no group 'zed' of race; there are: a, b, c"),
    ({"threshold": "youden", "threshold_by": "vieww"}, "no vieww is recorded"),
])  # fmt: skip
def test_what_is_asked_of_what_is_not_there_is_told(changes, told):
    with pytest.raises(UserError, match=told):
        audit(people(), settings(**changes))


@pytest.mark.parametrize("name", ["rest", "a * b"])
def test_groups_that_cannot_be_told_apart_are_refused(name):
    predictions = people()
    with pytest.raises(UserError, match="cannot be told from"):
        audit(Predictions(predictions.table.replace({"race": {"a": name}}), predictions.targets), settings())


def test_thresholds_of_each_age_band():
    predictions = people(patients=600)
    table = predictions.table.assign(age=np.where(predictions.table["patient_id"] < "p0300", 30.0, np.nan))
    rows = audit(Predictions(table, predictions.targets), settings(threshold="youden", threshold_by="age_band"))
    (row,) = select(rows, metric="sensitivity", class_="Edema", attribute="all")
    assert "one for each age_band" in row["method"] and row["threshold"] is None


def test_several_targets_of_which_one_is_an_attribute():
    predictions = people(patients=600)
    table = predictions.table.assign(label_sex=predictions.table["sex"], score_F=0.5, score_M=0.5)
    both = Predictions(table, predictions.targets | {"sex": Target("multiclass", ("F", "M"))})
    rows = audit(both, settings(attributes=("race", "sex"), intersections=("race*sex",)))
    assert not any("*" in row["attribute"] for row in rows)
