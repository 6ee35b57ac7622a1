"""Encoding, accuracy and harm: against numbers counted by hand, and intervals that cover patients and seeds alike."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics
from scipy import stats

from configs import base
from cxr_jax import experiment
from cxr_jax.audit import estimates, frontier, metrics, subgroups
from cxr_jax.audit.intervals import Bootstrap, MeanCell
from cxr_jax.tables import FEATURES, Predictions, Reading, Readings, Target

FINDINGS = ("x", "y")


def settings(**diff):
    return experiment.apply_diff(base.get_config(), {f"audit.{k}": v for k, v in {"min_patients": 1, "threshold": "fixed:0.5", **diff}.items()}).audit


def predictions(n=800, seed=0, split=("validation", "test")):
    rng = np.random.default_rng(seed)
    group = rng.choice(["a", "b", "c"], n, p=[0.5, 0.3, 0.2])
    table = pd.DataFrame({"image_id": [f"i{k:05d}" for k in rng.permutation(n)], "patient_id": [f"p{k // 2}" for k in range(n)]})
    table = table.assign(study_id=table["image_id"], dataset="d", split=[split[k // 2 % 2] for k in range(n)], race=pd.array(group, dtype="str"))
    for finding, shift in zip(FINDINGS, (1.5, 0.0)):
        label = (rng.random(n) < 0.4).astype(float)
        score = 1 / (1 + np.exp(-(2 * label - 1 + rng.normal(size=n) - shift * (group == "c"))))
        table[f"label_{finding}"] = np.where(rng.random(n) < 0.05, np.nan, label)
        table[f"score_{finding}"] = score
    return Predictions(table, {"findings": Target("multilabel", FINDINGS)}, True)


def test_figures_are_those_counted_by_hand():
    made = predictions()
    found = frontier.measured(made, "findings", "test", settings(), "race")
    test = made.table[made.table["split"] == "test"]
    aucs, briers, worst, gaps, whose = [], [], [], [], []
    for finding in FINDINGS:
        known = test[test[f"label_{finding}"].notna()]
        y, s = known[f"label_{finding}"], known[f"score_{finding}"]
        aucs.append(sklearn.metrics.roc_auc_score(y, s))
        briers.append(((y - s) ** 2).mean())
        rates = {(g, side): ((s >= 0.5) != (y == 1))[(known["race"] == g) & (y == side)].mean() for g in "abc" for side in (1, 0)}
        worst.append(max(rates.values()))
        whose.append(max(rates, key=rates.get)[0])
        gaps.append(np.mean([np.ptp([rates[g, side] for g in "abc"]) for side in (1, 0)]))
    values = {metric: figure.value for metric, figure in found.figures.items()}
    assert values == pytest.approx({"auc": np.mean(aucs), "brier": np.mean(briers), "error": np.mean(worst), "gap": np.mean(gaps), "gap of x": gaps[0], "gap of y": gaps[1]})
    assert found.worst == whose[0] and found.classes == FINDINGS
    assert found.over["error"] == found.over["gap"] == (FINDINGS, ("a", "b", "c")) and found.over["gap of x"] == (("x",), ("a", "b", "c"))
    assert list(found.images) == sorted(test["image_id"]) and found.left_out == ()


def test_a_group_of_too_few_is_left_out_by_name_and_the_others_are_judged():
    made = predictions()
    few = made.table["patient_id"].isin(made.table.loc[made.table["split"] == "test", "patient_id"].unique()[:3])
    with_few = Predictions(made.table.assign(race=made.table["race"].mask(few, "d")), made.targets, False)
    found = frontier.measured(with_few, "findings", "test", settings(min_patients=11), "race")
    # With it another has to be withheld, lest it follow by subtraction.
    assert "d" in found.left_out and len(found.left_out) == 2 and found.figures["error"].defined
    assert set(found.over["error"][1]) == set("abc") - set(found.left_out)


def test_on_validation_thresholds_are_the_audits():
    made = predictions()
    found = frontier.measured(made, "findings", "validation", settings(threshold="youden"), "race")
    asked = settings(threshold="youden", splits=("validation",), attributes=("race",), replicates=1)
    rows = pd.DataFrame(subgroups.audit(made, asked))
    rows = rows[(rows["attribute"] == "race") & rows["class"].isin(FINDINGS) & rows["effect"].isna()]
    rates = [rows[rows["metric"] == f"false_{side}_rate"].pivot(index="class", columns="group", values="value") for side in ("negative", "positive")]
    worst = np.mean([max(rate.loc[finding].max() for rate in rates) for finding in FINDINGS])
    assert found.figures["error"].value == pytest.approx(worst)


def test_order_of_rows_and_other_runs_do_not_matter():
    made = predictions()
    other = Predictions(made.table.sample(frac=1, random_state=1), made.targets, True)
    one, two = (frontier.measured(p, "findings", "test", settings(), "race") for p in (made, other))
    assert frontier.why_not_paired(one, two) == ""
    for metric in one.figures:
        np.testing.assert_allclose(one.figures[metric].influence(), two.figures[metric].influence(), atol=1e-12)
        apart = frontier.over_seeds(frontier.differences([one.figures[metric]], [two.figures[metric]]), 0.95, bounded=False)
        assert apart.reason == "every patient and every seed says the same"
    assert frontier.why_not_paired(one, frontier.measured(predictions(400), "findings", "test", settings(), "race")) == "they were judged on other images"
    relabelled = made.table.assign(label_x=1 - made.table["label_x"])
    assert "labels" in frontier.why_not_paired(one, frontier.measured(Predictions(relabelled, made.targets, True), "findings", "test", settings(), "race"))


def test_a_class_that_a_group_cannot_be_judged_by_is_left_out_of_all():
    made = predictions()
    few = made.table["race"].eq("c") & made.table["label_x"].eq(1)
    table = made.table.assign(label_x=made.table["label_x"].mask(few & (few.cumsum() > 3), 0.0))
    found = frontier.measured(Predictions(table, made.targets, True), "findings", "test", settings(min_patients=5), "race")
    assert found.classes == ("y",) and "gap of x" not in found.figures and found.figures["gap"].value == found.figures["gap of y"].value
    nobody = frontier.measured(Predictions(table.assign(race=pd.array([None] * len(table), dtype="str")), made.targets, True), "findings", "test", settings(), "race")
    assert np.isnan(nobody.figures["error"].value) and nobody.figures["error"].reason == "no two groups of race are recorded"
    told = frontier.over_seeds([nobody.figures["gap"]], 0.95)
    assert np.isnan(told.value) and told.reason == "no two groups of race are recorded"


def test_encoding_is_the_macro_auc_of_each_probe_of_the_features():
    rng, made = np.random.default_rng(3), predictions(split=("test", "test"))
    group = made.table["race"].to_numpy()
    table = made.table[["image_id", "patient_id", "study_id", "dataset", "split"]].assign(label_race=made.table["race"], shuffled_race=made.table["race"])
    readings = [Reading("race", probe, FEATURES) for probe in ("logistic_regression", "network", "kmeans")] + [Reading("race", "logistic_regression", "histogram"), Reading("race", "logistic_regression", FEATURES, shuffled=True)]
    scores = {r.name: rng.dirichlet(np.ones(3), len(table)).astype(np.float32) + 0.3 * k * (group[:, None] == ["a", "b", "c"]).astype(np.float32) for k, r in enumerate(readings)}
    found = frontier.encoded(Readings(table, {"race": ("a", "b", "c")}, readings, scores, {}), "race", settings())
    assert set(found.figures) == {"logistic_regression", "network", "strongest"}
    for k, probe in enumerate(("logistic_regression", "network")):
        wanted = np.mean([metrics.auc(group == c, scores[readings[k].name][:, i]) for i, c in enumerate("abc")])
        assert found.figures[probe].value == pytest.approx(wanted)
    assert found.figures["strongest"].value == found.figures["network"].value
    assert list(found.patients) == list(table.set_index("image_id")["patient_id"].loc[found.images]) and list(found.images) == sorted(table["image_id"])
    assert [one[0] for one in found.over["strongest"]] == ["logistic_regression", "network"]


def test_encoding_within_strata_is_of_the_images_there_by_the_probe_that_is_strongest_there():
    rng, made = np.random.default_rng(4), predictions(split=("test", "test"))
    group = made.table["race"].to_numpy()
    view = np.array(["AP", "PA", None], object)[rng.choice(3, len(group), p=(0.5, 0.4, 0.1))]
    table = made.table[["image_id", "patient_id", "study_id", "dataset", "split"]].assign(label_race=made.table["race"], shuffled_race=made.table["race"], stratum_view=pd.array(view, dtype="str"))
    table["stratum_as many as view"] = table["stratum_view"]
    places = [("view", "AP"), ("view", "PA"), ("as many as view", "AP")]
    readings = [Reading("race", probe, FEATURES, attribute=a, group=g) for a, g in [("", ""), *places] for probe in ("logistic_regression", "network")]
    scores = {r.name: rng.dirichlet(np.ones(3), len(table)).astype(np.float32) + 0.2 * (group[:, None] == ["a", "b", "c"]) for r in readings}
    order = rng.permutation(len(table))  # runs that are compared need not have their images in one order
    shuffled = Readings(table.iloc[order].reset_index(drop=True), {"race": ("a", "b", "c")}, readings, {name: of[order] for name, of in scores.items()}, {})
    found = frontier.encoded(shuffled, "race", settings())
    assert set(found.figures) == {"logistic_regression", "network", "strongest", "within view: AP", "within view: PA"}
    for name in ("AP", "PA"):
        inside = view == name
        mine = [scores[r.name][inside] for r in readings if (r.attribute, r.group) == ("view", name)]
        wanted = max(np.mean([metrics.auc(group[inside] == c, of[:, i]) for i, c in enumerate("abc")]) for of in mine)
        assert found.figures[frontier.within("view", name)].value == pytest.approx(wanted)
    assert found.strata == (("view", "AP"), ("view", "PA"))


def means(values, patients):
    """Estimates of one mean a run. values: [runs, n]."""
    bootstrap = Bootstrap(patients, 1, 0)
    return [estimates.Estimator(bootstrap).means([MeanCell(np.arange(len(run)), run)])[0] for run in values]


def test_one_seed_is_students_interval_over_patients():
    values = np.random.default_rng(0).normal(0.4, 0.2, 40)
    found = frontier.over_seeds(means([values], np.arange(40)), 0.9)
    wanted = stats.t.interval(0.9, 39, values.mean(), stats.sem(values))
    np.testing.assert_allclose([found.low, found.high], wanted)
    assert frontier.over_seeds(means([values - values.mean()], np.arange(40)), 0.9, bounded=False).p == pytest.approx(1)
    tested = stats.ttest_1samp(values, 0)
    assert found.p == pytest.approx(tested.pvalue)


def test_what_is_rounded_lest_a_count_show_has_no_p():
    (one,) = means(np.array([[0.12345, 0.2, 0.4, 0.7]]), np.arange(4))
    (told, plain) = (frontier.over_seeds([of], 0.95) for of in (dataclasses.replace(one, decimals=2), one))
    assert told.value == round(plain.value, 2) and np.isnan([told.p, told.these.p]).all() and told.reason.startswith("rounded, and without p")
    assert (told.low, told.high) == (round(plain.low, 2), round(plain.high, 2)) and np.isfinite(plain.p)


def test_seeds_that_disagree_have_few_degrees_of_freedom():
    """Patients who all say the same within a run: what is left is Student's interval over the runs."""
    values = np.array([[0.2], [0.5], [0.6]]) + np.random.default_rng(0).normal(0, 1e-6, (3, 50))
    found = frontier.over_seeds(means(values, np.arange(50)), 0.95, bounded=False)
    wanted = stats.t.interval(0.95, 2, values.mean(), stats.sem(values.mean(axis=1)))
    np.testing.assert_allclose([found.low, found.high], wanted, rtol=1e-4)


@pytest.mark.parametrize(("runs", "of_patients", "of_runs", "of_both"), [(2, 1.0, 0.3, 0.5), (2, 1.0, 0.05, 0.5), *(pytest.param(*one, marks=pytest.mark.slow) for one in ((3, 1.0, 0.1, 1.0), (5, 0.3, 0.1, 0.3), (3, 0.2, 0.2, 0.1)))])
def test_intervals_cover_patients_and_seeds(runs, of_patients, of_runs, of_both):
    """Of a thousand draws from patients, seeds, and what a patient gets of a seed, intervals hold the truth about as often as they say, or oftener."""
    rng, n, held = np.random.default_rng(1), 60, 0
    for _ in range(1000):
        values = rng.normal(0, of_patients, n) + rng.normal(0, of_runs, runs)[:, None] + rng.normal(0, of_both, (runs, n))
        found = frontier.over_seeds(means(values, np.arange(n)), 0.95, bounded=False)
        held += found.low <= 0 <= found.high
    assert 0.935 <= held / 1000


def test_differences_are_of_the_same_seed_and_patient():
    rng = np.random.default_rng(2)
    shared = rng.normal(0, 5, 50) + rng.normal(0, 5, (3, 1))
    one, other = (means(shared + rng.normal(shift, 0.1, (3, 50)), np.arange(50)) for shift in (1.0, 0.0))
    found = frontier.over_seeds(frontier.differences(one, other), 0.95, bounded=False)
    assert found.low > 0.9 and found.high < 1.1 and found.p < 1e-3 and found.seeds == 3 and found.reason == ""
