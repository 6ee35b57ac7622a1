"""The frontier of mitigations: which runs are one method, what is said of it, and what is drawn."""

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


def method(folder, seed, encoding=1.0, shift=1.0, strength=2.0, nonlinear=None, target="findings", given=None, **diff):
    """A run whose scores lean on the group as `shift` says, and whose probes find it as `encoding` says; the network as `nonlinear`."""
    rng = np.random.default_rng([seed, 7])
    noise = np.random.default_rng(0).normal(size=(len(TABLE), 3))  # what images do to every model
    raw = strength * TABLE[[f"label_{f}" for f in FINDINGS]].to_numpy() - 1 + noise + 0.1 * rng.normal(size=noise.shape)
    raw[:, 0] += shift * SHIFT[pd.Index(GROUPS).get_indexer(TABLE["race"])]
    make_run(folder, targets=("findings",), table=TABLE, judged=False, **{**PLAIN, **diff})
    config = tables.read_json(folder / "config.json") | {"seed": seed}
    tables.write_json(folder / "config.json", config)
    columns = TABLE.assign(**{f"score_{f}": 1 / (1 + np.exp(-raw[:, k])) for k, f in enumerate(FINDINGS)})
    predictions = Predictions(columns, {target: Target("multilabel", FINDINGS)}, True)
    (folder / "mitigated" / config["mitigate"]["method"]).mkdir(parents=True)
    predictions.write(folder / "mitigated" / config["mitigate"]["method"] / "predictions.parquet")
    settings = types.SimpleNamespace(**config["audit"])
    tables.write_json(folder / "audit.json", subgroups.audit(predictions, settings))

    test = TABLE[TABLE["split"] == "test"].reset_index(drop=True)
    kept = test[["image_id", "patient_id", "split"]].assign(race=test["race"], label_race=test["race"], shuffled_race=test["race"])
    about = {"fit_images": 10, "fit_patients": 10}
    kept["stratum_view"] = pd.array(np.where(np.arange(len(test)) % 3, "AP", "PA"), dtype="str")
    places = [("logistic_regression", {}), ("network", {}), ("logistic_regression", {"attribute": "view", "group": "AP"})]
    several = [Reading("race", probe, FEATURES, about=about, **where) for probe, where in places]
    codes, base = pd.Index(GROUPS).get_indexer(test["race"]), np.random.default_rng(5).normal(size=(len(test), 3))
    scores = {
        reading.name: np.exp(base + how * np.eye(3)[codes] + 0.05 * rng.normal(size=base.shape)).astype(np.float32)
        for reading, how in zip(several, (encoding, encoding if nonlinear is None else nonlinear, encoding))
    }
    scores = {name: of / of.sum(1, keepdims=True) for name, of in scores.items()}
    found = {"agreement": [], "absent": {}, "strata_by_truth": []}
    readings = Readings(kept, {"race": GROUPS}, several, scores, found)
    (folder / "probes").mkdir()
    readings.write(folder / "probes" / "readings.parquet")
    if given is not None:  # of its page no test here asks, and its map takes half a minute
        return shutil.copy(given / "probe_audit.json", folder) and folder
    features = np.random.default_rng(0).normal(size=(len(test), 4)).astype(np.float32)
    tables.write_json(folder / "probe_audit.json", probed.audit(readings, features, ml_collections.ConfigDict(config["audit"]), True))
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
    assert of.target == "findings" and of.attribute == "race" and set(of.classes) == set(FINDINGS)
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
    assert "Worst error of a group, over 3 classes, test images" in text and "Error gap between groups, by class" in text and "erm, 2 seeds" in text
    reweight = found.frontier.methods[1]
    inside = text.partition("Encoding of group (invented) within view AP")[2]
    line = next(line for line in inside.splitlines() if "reweight, 2 seeds" in line)
    n = (TABLE["split"] == "test").sum() - -(-(TABLE["split"] == "test").sum() // 3)
    assert f"{reweight.figures['within view: AP'].value:.3f}" in line and f" {n} " in line
    assert f"{reweight.figures['error'].value:.3f}" in text and "needs race of who is judged" in text
    compare.write(found, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "Encoding, accuracy and harm" in page and "Error gap of each class" in page and "Encoding within strata" in page and "a linear erasure that is undone" in page


def test_without_a_reference_or_a_mitigation_there_is_no_frontier(field, tmp_path):
    assert compare.read([f for f in field if not f.name.startswith("erm")]).frontier is None
    assert compare.read([f for f in field if f.name.startswith("erm")]).frontier is None


def test_seeds_that_the_reference_lacks_are_told(field):
    some = [f for f in field if f.name in ("erm-0", "reweight-0", "reweight-1", "leace-1")]
    _, reweight, leace = compare.read(some).frontier.methods
    assert reweight.differences["auc"].seeds == 1 and reweight.figures["auc"].seeds == 2 and "differences are of 1 of 2 seeds, which the reference has too" in reweight.notes
    assert leace.differences == {}
    told = compare.text(compare.read(some))
    assert "differences are of 1 of 2 seeds" in told and "leace-1, 1 seed. No difference can be told." in told


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
