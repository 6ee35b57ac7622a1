"""The frontier of mitigations: which runs are one method, what is said of it, and what is drawn."""

import dataclasses
import shutil
import types

import ml_collections
import numpy as np
import pandas as pd
import pytest

from cxr_jax import tables
from cxr_jax.audit import readings as probed
from cxr_jax.audit import subgroups
from cxr_jax.report import compare, frontier
from cxr_jax.tables import FEATURES, Predictions, Reading, Readings, Target
from tests.report.test_compare import FINDINGS, GROUPS, images, make_run

TABLE = images(400)
PLAIN = {"audit__attributes": ("race",), "audit__intersections": (), "audit__case_mix": (), "audit__min_patients": 2, "mitigate__method": "none", "train__targets": ("findings",)}
SHIFT = np.array([1.5, 0.0, -1.5])  # what the group adds to a score


def method(folder, seed, encoding=1.0, shift=1.0, strength=2.0, nonlinear=None, target="findings", given=None, changed=lambda table: table, probes=3, fit=10, record=None, abroad="", **diff):
    """A run whose scores lean on the group as `shift` says, and whose probes find it as `encoding` says; the network as `nonlinear`.

    changed: what is done to the table of its predictions. probes: how many of its three readings there are; fit: on how many images and patients. record: of run.json. abroad: another data set, of three in four of the images.
    """
    rng = np.random.default_rng([seed, 7])
    noise = np.random.default_rng(0).normal(size=(len(TABLE), 3))  # what images do to every model
    raw = strength * TABLE[[f"label_{f}" for f in FINDINGS]].to_numpy() - 1 + noise + 0.1 * rng.normal(size=noise.shape)
    raw[:, 0] += shift * SHIFT[pd.Index(GROUPS).get_indexer(TABLE["race"])]
    make_run(folder, targets=("findings",), table=TABLE, judged=False, **{**PLAIN, **diff})
    config = tables.read_json(folder / "config.json") | {"seed": seed}
    tables.write_json(folder / "config.json", config)
    columns = TABLE.assign(**{f"score_{f}": 1 / (1 + np.exp(-raw[:, k])) for k, f in enumerate(FINDINGS)})
    if record:
        tables.write_json(folder / "run.json", tables.read_json(folder / "run.json") | record)
    predictions = Predictions(changed(columns), {target: Target("multilabel", FINDINGS)}, True)
    (folder / "mitigated" / config["mitigate"]["method"]).mkdir(parents=True)
    predictions.write(folder / "mitigated" / config["mitigate"]["method"] / "predictions.parquet")
    settings = types.SimpleNamespace(**config["audit"])
    tables.write_json(folder / "audit.json", subgroups.audit(predictions, settings))

    test = TABLE[TABLE["split"] == "test"].reset_index(drop=True)
    kept = test[["image_id", "patient_id", "split"]].assign(race=test["race"], label_race=test["race"], shuffled_race=test["race"])
    about = {"fit_images": fit, "fit_patients": fit}
    kept["stratum_view"] = pd.array(np.where(np.arange(len(test)) % 3, "AP", "PA"), dtype="str")
    places = [("logistic_regression", {}), ("network", {}), ("logistic_regression", {"attribute": "view", "group": "AP"})]
    several = [Reading("race", probe, FEATURES, about=about, **where) for probe, where in places[:probes]]
    codes, base = pd.Index(GROUPS).get_indexer(test["race"]), np.random.default_rng(5).normal(size=(len(test), 3))
    scores = {
        reading.name: np.exp(base + how * np.eye(3)[codes] + 0.05 * rng.normal(size=base.shape)).astype(np.float32)
        for reading, how in zip(several, (encoding, encoding if nonlinear is None else nonlinear, encoding), strict=False)
    }
    scores = {name: of / of.sum(1, keepdims=True) for name, of in scores.items()}
    found = {"agreement": [], "absent": [], "strata_by_truth": []}
    readings = Readings(kept, {"race": GROUPS}, several, scores, found)
    (folder / "probes").mkdir()
    readings.write(folder / "probes" / "readings.parquet")
    features = np.random.default_rng(0).normal(size=(len(test), 4)).astype(np.float32)
    settings = ml_collections.ConfigDict(config["audit"])
    # The first one's serves all: of its page no test here asks, and its map takes half a minute.
    audited = probed.audit(readings, features, settings, True) if given is None else tables.read_json(given / "probe_audit.json") | {"elsewhere": {}}
    if abroad:
        some = np.arange(len(kept)) % 4 > 0
        there = {name: of[some] for name, of in scores.items() if name in (several[0].name, several[1].name)}
        elsewhere = Readings(kept[some].reset_index(drop=True), {"race": GROUPS}, several[:2], there, found)
        elsewhere.write(folder / "probes" / f"on_{abroad}.parquet")
        audited["elsewhere"] = {abroad: probed.elsewhere(elsewhere, settings)}
    tables.write_json(folder / "probe_audit.json", audited)
    return folder


@pytest.fixture(scope="module")
def field(tmp_path_factory):
    """Two seeds each of ERM, one that takes the shortcut away, one that does nothing, one that erases for a linear probe alone, and one that needs the group."""
    where, made = tmp_path_factory.mktemp("field"), []
    first = method(where / "erm-0", 0)
    for seed in (0, 1):
        made.append(method(where / f"erm-{seed}", seed, given=first) if seed else first)
        made.append(method(where / f"reweight-{seed}", seed, given=first, encoding=0.4, shift=0.0, train__objective__name="reweight"))
        made.append(method(where / f"coral-{seed}", seed, given=first, train__objective__name="coral"))
        made.append(method(where / f"leace-{seed}", seed, given=first, encoding=0.0, nonlinear=1.0, mitigate__method="leace", extract__weights=f"runs/erm-{seed}"))
        made.append(method(where / f"oracle-{seed}", seed, given=first, encoding=0.0, shift=0.0, strength=1.0, mitigate__method="oracle"))
    return made


@pytest.fixture(scope="module")
def found(field):
    return compare.read(field)


def test_runs_that_differ_in_their_seed_are_one_method(found):
    of = found.frontier
    assert [(m.name, list(m.seeds), m.needs) for m in of.methods] == [
        ("erm", [0, 1], ""), ("reweight", [0, 1], ""), ("coral", [0, 1], ""), ("leace", [0, 1], ""), ("oracle", [0, 1], "race"),
    ]  # fmt: skip
    assert of.target == "findings" and of.attribute == "race" and all(set(m.classes) == set(FINDINGS) for m in of.methods)
    assert of.methods[0].differences == {} and all({"strongest", "auc", "brier", "error", "gap"} <= set(m.differences) for m in of.methods[1:])


def test_what_is_told_apart_is_and_what_is_not_is_not(found):
    erm, reweight, coral, leace, oracle = found.frontier.methods
    for metric in ("strongest", "within view: AP", "gap", "error", "gap of Edema"):
        assert frontier.of_these(reweight, metric) and reweight.differences[metric].these.high < 0
    assert not any(frontier.distinguishable(coral, metric) or frontier.of_these(coral, metric) for metric in coral.differences)
    assert frontier.of_these(leace, "logistic_regression") and frontier.of_these(leace, "within view: AP") and not frontier.of_these(leace, "strongest")
    assert frontier.of_these(oracle, "auc") and oracle.differences["auc"].these.high < 0
    said = {sentence.partition(",")[0]: sentence for sentence in found.frontier.said}
    assert "etter than erm: lower encoding of" in said["reweight"] and "lower worst error of a group by" in said["reweight"]
    assert "etter" not in said["coral"] and "orse than" not in said["coral"] and "Not told apart from erm" in said["coral"]
    network = f"the small network ({leace.figures['network'].value:.3f})"
    assert said["leace"].endswith(f"What logistic regression does not find in these runs, {network} finds: a linear erasure that is undone.")
    assert "orse than erm: lower macro AUC of findings" in said["oracle"] and "It needs race of everyone who is judged" in said["oracle"]
    assert any("Two seeds say next to nothing" in sentence for sentence in found.frontier.said)


def test_the_line_is_of_methods_that_can_be_deployed(found):
    names = [m.name for m in frontier.undominated(found.frontier.methods, "error")]
    assert "reweight" in names and "oracle" not in names and "coral" not in names[1:]
    drawing = frontier.draw(found.frontier)
    assert "oracle" in drawing.alt and "Hollow: needs the attribute of who is judged" in drawing.caption and "over patients alone (2 runs a method)" in drawing.caption
    assert drawing.svg.startswith("<svg")


def test_the_terminal_and_the_page_say_it(found, tmp_path):
    text = compare.text(found, classes=True)
    assert "Worst error of a group, test images" in text and "over 3 classes; most often worst" in text and "Error gap between groups, by class" in text and "erm, 2 seeds" in text
    reweight = found.frontier.methods[1]
    inside = text.partition("Encoding of group (invented) within view AP (AUC")[2]
    line = next(line for line in inside.splitlines() if "reweight, 2 seeds" in line)
    n = (TABLE["split"] == "test").sum() - -(-(TABLE["split"] == "test").sum() // 3)
    assert f"{reweight.figures['within view: AP'].value:.3f}" in line and f" {n} " in line
    assert f"{reweight.figures['error'].value:.3f}" in text and "needs race of who is judged" in text
    compare.write(found, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "Encoding, accuracy and harm" in page and "Error gap of each class" in page and "Encoding within strata, and on other data" in page and "a linear erasure that is undone" in page


def test_without_a_reference_or_a_mitigation_there_is_no_frontier(field, tmp_path):
    assert compare.read([f for f in field if not f.name.startswith("erm")]).frontier is None
    assert compare.read([f for f in field if f.name.startswith("erm")]).frontier is None


def test_seeds_that_the_reference_lacks_are_told(field):
    some = [f for f in field if f.name in ("erm-0", "reweight-0", "reweight-1", "leace-1")]
    _, reweight, leace = compare.read(some).frontier.methods
    assert reweight.differences["auc"].seeds == 1 and reweight.figures["auc"].seeds == 2 and reweight.notes == ["differences are of the 1 seed that both have, of its 2 and the reference's 1"]
    assert leace.differences == {}
    told = compare.text(compare.read(some))
    told = " ".join(told.split())
    assert "Differences are of the 1 seed that both have, of its 2 and the reference's 1." in told
    assert "leace-1, 1 seed. No difference can be told in encoding of group" in told and "error gap between groups: the reference has none of its seeds." in told


def test_runs_without_predictions_of_their_audit_have_no_part_in_it(field, tmp_path):
    made = [method(tmp_path / f"{of}-0", 0, given=field[0], train__objective__name=of) for of in ("erm", "mmd", "coral", "jtt")]
    path = made[1] / "mitigated" / "none" / "predictions.parquet"
    changed = Predictions.read(path)
    changed.table["score_Edema"] = 1 - changed.table["score_Edema"]
    changed.write(path)
    (made[3] / "mitigated" / "none" / "predictions.parquet").unlink()
    found = frontier.read(compare.read(made).runs)
    assert [m.name for m in found.methods] == ["erm-0", "coral-0"]
    assert "mmd-0 has no part in this: predictions.parquet and audit.json are not of each other; run the audit stage again." in found.said
    assert "jtt-0 has no part in this: there is no predictions.parquet." in found.said
    (made[0] / "mitigated" / "none" / "predictions.parquet").unlink()
    assert frontier.read(compare.read(made).runs) is None


def test_encoding_on_other_data_stands_beside_that_within_strata(field, tmp_path):
    record = {"elsewhere": {"phantom.null": {"open_data": False}}}
    erm, reweight = (
        method(tmp_path / name, 0, given=field[0], encoding=how, abroad="phantom.null", record=record, audit__min_patients=11, **diff)
        for name, how, diff in (("erm-0", 1.0, {}), ("reweight-0", 0.3, {"train__objective__name": "reweight"}))
    )
    found = frontier.read(compare.read([erm, reweight, next(run for run in field if run.name == "coral-0")]).runs)
    _, weighed, coral = found.methods
    assert frontier.of_these(weighed, "on phantom.null") and weighed.differences["on phantom.null"].value < -0.1
    assert "on phantom.null" not in coral.figures and "on phantom.null" not in coral.lacking
    images = (np.arange((TABLE["split"] == "test").sum()) % 4 > 0).sum()
    assert weighed.counts["on phantom.null"][0] == f"{images // 11 * 11}"  # of data that are not open
    text = compare.text(compare.read([erm, reweight]))
    assert "Encoding of group (invented) by place" in text and "on phantom.null, by probes fitted here" in text
    assert "logistic regression on the features, on phantom.null" in text


def test_one_seed_is_told_of_its_runs_alone(field):
    found = frontier.read(compare.read([run for run in field if run.name in ("erm-0", "reweight-0")]).runs)
    (told, caveat) = found.said
    assert "By these runs alone better than erm-0: lower encoding" in told and " Better than" not in told and "over seeds" not in told
    assert caveat.startswith("One seed says nothing of how far another would be from it.")
    assert not frontier.distinguishable(found.methods[1], "strongest") and frontier.of_these(found.methods[1], "strongest")


def test_figures_of_other_things_have_no_difference(field, tmp_path):
    """Of other classes, groups, probes, images of training or patients: told, with the reason, and the rest is compared."""
    erm, other = field[0], {"given": field[0], "encoding": 0.4}
    without = method(tmp_path / "one", 0, changed=lambda t: t.assign(label_Edema=t["label_Edema"].mask(t["split"] == "validation", 0.0)), train__objective__name="jtt", **other)
    linear = method(tmp_path / "two", 0, probes=1, train__objective__name="mmd", **other)
    fitted = method(tmp_path / "three", 0, fit=20, train__objective__name="coral", **other)
    _, *methods = frontier.read(compare.read([erm, without, linear, fitted]).runs).methods
    why = [method.lacking for method in methods]
    assert why[0]["error"] == why[0]["gap"] == "it is over other classes than the reference's (Edema in one of the two alone)" and "strongest" not in why[0]
    assert why[1]["strongest"] == "the small network read one of the two alone" and "logistic_regression" in methods[1].differences and "error" in methods[1].differences
    assert why[2]["strongest"] == why[2]["network"] == "the reference's probes were fitted on other images" and "auc" in methods[2].differences
    text = " ".join(compare.text(compare.read([erm, without, linear, fitted])).split())
    assert f"No difference can be told in worst error of a group, error gap between groups: {why[0]['error']}." in text
    assert "no difference: the small network read one of the two alone" in text
    whose = method(tmp_path / "four", 0, changed=lambda t: t.assign(patient_id=t["patient_id"] + "x"), train__objective__name="dann", **other)
    (_, moved) = frontier.read(compare.read([erm, whose]).runs).methods
    assert set(moved.differences) == {"logistic_regression", "network", "strongest", "within view: AP"} and moved.lacking["auc"] == "their images are of other patients"


def test_a_network_is_what_it_was_trained_as(field, tmp_path):
    """Whatever the config of the run that took its weights says of training, which is nothing."""
    weighed = {"seed": 0, "train.objective.name": "reweight"}
    borrowed = method(tmp_path / "borrowed-0", 0, given=field[0], record={"trained_as": weighed}, extract__weights="runs/reweight-0")
    found = frontier.read(compare.read([borrowed, *field]).runs)
    assert found.methods[0].name == "erm" and "borrowed-0" in [m.name for m in found.methods[1:]]
    # And its seed is that of training: both are of one method, each beside the reference of its own seed.
    after = [method(tmp_path / f"leace-{seed}", 0, given=field[0], record={"trained_as": {"seed": seed}}, mitigate__method="leace", extract__weights=f"runs/erm-{seed}") for seed in (0, 1)]
    erm, leace = frontier.read(compare.read([*[run for run in field if run.name.startswith("erm")], *after]).runs).methods
    assert (leace.name, leace.seeds, leace.differences["auc"].seeds) == ("leace", [0, 1], 2)


def test_what_is_about_another_attribute_has_no_part_in_it(field, tmp_path):
    other = method(tmp_path / "dro-0", 0, given=field[0], train__objective__name="group_dro", train__objective__attribute="sex")
    found = frontier.read(compare.read([field[0], next(run for run in field if run.name == "leace-0"), other]).runs)
    assert [m.name for m in found.methods] == ["erm-0", "leace-0"] and "dro-0 has no part in this: it is about sex." in found.said


def test_counts_are_those_that_the_pages_of_runs_tell(field):
    runs = compare.read(field[:2]).runs
    hidden = [dataclasses.replace(run, read=dataclasses.replace(run.read, rows=run.read.rows.assign(n_images=np.nan, n_patients=np.nan))) for run in runs]
    found = frontier.read(hidden)
    assert found.methods[0].counts["findings"] == ("–", "–") and found.methods[0].counts["probes"] == ("675", "322")
    assert "– test images of – patients; probes, 675 of 322." in frontier.draw(found).caption


def test_figures_that_are_rounded_have_no_test(field):
    runs = compare.read(field[:2]).runs
    _, reweight = frontier.read(runs).methods
    told = frontier._verdict(dataclasses.replace(reweight, differences={"auc": reweight.differences["auc"]._replace(p=np.nan)}), "auc")
    assert np.isfinite(reweight.differences["auc"].p) and told == "Without a test, beside"


def test_without_its_first_run_the_reference_is_the_others(field, tmp_path):
    gone = method(tmp_path / "erm-9", 9, given=field[0])
    (gone / "mitigated" / "none" / "predictions.parquet").unlink()
    found = frontier.read(compare.read([gone, *field]).runs)
    assert found.methods[0].seeds == [0, 1] and "erm-9 has no part in this: there is no predictions.parquet." in found.said
