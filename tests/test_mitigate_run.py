"""Features and what heads make of them, before and after an attribute is taken from them: as a user runs it."""

import shutil

import numpy as np
import pytest
from scipy import special
from sklearn.metrics import roc_auc_score

from configs import base, mitigate
from cxr_jax import experiment, main, stages, tables
from cxr_jax.audit import equalised_odds, subgroups
from cxr_jax.data import cohorts
from cxr_jax.probes import last_layer, logistic_regression, mitigation
from cxr_jax.report import compare
from cxr_jax.tables import FEATURES, UNERASED, Features, Predictions, Readings, UserError
from tests import processes
from tests.test_probe_run import probe_config

ERASURES = [m for m in experiment.MITIGATIONS if m not in ("none", "dfr", "equalised_odds")]
STAGES = ("prepare", "train", "predict", "extract", "mitigate", "probe", "audit", "report")
LEAST = {"probe.probes": ("logistic_regression",), "probe.controls": (), "probe.strata": (), "probe.refits": 0, "extract.untrained": False}


def config_of(phantom_dir, method, **diff):
    return experiment.apply_diff(probe_config(phantom_dir), {**LEAST, "stages": STAGES, "mitigate.method": method, **diff})


@pytest.fixture(scope="module")
def reference(phantom_dir, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("reference")
    main.run(config_of(phantom_dir, "none"), workdir, command="the command")
    return workdir


def mitigated(phantom_dir, reference, workdir, method, **diff):
    further = {"stages": tuple(s for s in STAGES if s not in ("train", "predict")), "extract.weights": str(reference), **diff}
    main.run(config_of(phantom_dir, method, **further), workdir, command="the command")
    return {split: Features.read(workdir / "mitigated" / method / "features", split) for split in tables.SPLITS}


def test_heads_make_of_untouched_features_what_the_network_did(reference):
    """And the patients whom a method would be fitted on are not those whom probes are."""
    ours = Predictions.read(reference / "mitigated" / "none" / "predictions.parquet")
    network = Predictions.read(reference / "predictions.parquet")
    assert ours.targets == network.targets and list(ours.table["image_id"]) == list(network.table["image_id"])
    scores = [c for c in ours.table if c.startswith("score_")]
    np.testing.assert_allclose(ours.table[scores], network.table[scores], atol=1e-5)
    same = [c for c in network.table if c not in scores]
    assert list(ours.table) == list(network.table) and ours.table[same].equals(network.table[same]) and ours.open_data == network.open_data
    whole, half = Features.read(reference / "features", "train"), Features.read(reference / "mitigated" / "none" / "features", "train")
    assert 0 < len(half.table) < len(whole.table)
    left = set(whole.table["image_id"]) - set(half.table["image_id"])
    assert not set(half.table["patient_id"]) & set(whole.table.loc[whole.table["image_id"].isin(left), "patient_id"])


@pytest.mark.parametrize("method", ["leace", pytest.param("quadratic", marks=pytest.mark.slow)])
def test_what_a_method_leaves_is_what_probes_and_audit_judge(phantom_dir, reference, tmp_path, method, capsys):
    diff = {"mitigate.share": 1.0, "mitigate.halvings": 2, "probe.controls": ("unerased",)}
    parts = mitigated(phantom_dir, reference, tmp_path / "run", method, **diff)
    before = {split: Features.read(tmp_path / "run" / "features", split) for split in tables.SPLITS}
    for split, part in parts.items():
        assert list(part.table["image_id"]) == list(before[split].table["image_id"])
        assert not np.allclose(part.arrays[FEATURES], before[split].arrays[FEATURES])
        assert set(part.arrays) == {FEATURES, UNERASED, "histogram", "scores", "halved1"}
        np.testing.assert_array_equal(part.arrays[UNERASED], before[split].arrays[FEATURES])
    # By construction: of a method's own patients a linear probe tells less, and after leace nothing.
    codes = parts["train"].table["race"].astype("category").cat.codes.to_numpy(np.int64)
    left, was = (logistic_regression.fit(of["train"].arrays[FEATURES], codes, np.array([1e-4])).objective[0, 0] for of in (parts, before))
    share = np.bincount(codes) / len(codes)
    constant = -(share * np.log(share)).sum()
    assert was < left <= constant + 1e-9 and (method not in ("leace", "oracle", "quadratic") or left > constant - 1e-6)

    record = tables.read_json(tmp_path / "run" / "run.json")
    needs = method in experiment.NEED_ATTRIBUTE
    assert record["mitigated"].startswith(f"{method} of race")
    assert ("needs the attribute of every image that is judged" if needs else "no attribute is needed of an image that is judged") in record["mitigated"]
    assert ("(needs race of everyone who is judged)" in record["headline"]) == needs
    assert f"judged after {method} of race" in record["headline"] and record["mitigated"] in capsys.readouterr().out
    judged = Predictions.read(tmp_path / "run" / "mitigated" / method / "predictions.parquet")
    tables.write_json(tmp_path / "again.json", subgroups.audit(judged, config_of(phantom_dir, method).audit))
    assert tables.read_json(tmp_path / "again.json") == tables.read_json(tmp_path / "run" / "audit.json")
    # Probes read the features as they were, and as fewer patients would have had them.
    rows = {row["input"]: row for row in tables.read_json(tmp_path / "run" / "probe_audit.json")["rows"] if row["class"] == "macro" and row["metric"] == "auc"}
    assert set(rows) == {FEATURES, UNERASED, "halved1"} and (tmp_path / "run" / "figures" / "probe_fewer_race.svg").exists()
    assert "; by 1 of 2 halvings of its patients, too, since then: " in record["mitigated"]
    assert method in compare.text(compare.read([reference, tmp_path / "run"]))


@pytest.fixture(scope="module")
def erased(tmp_path_factory):
    """A workdir whose features every method starts from."""
    return tmp_path_factory.mktemp("erased")


@pytest.mark.parametrize("method", ERASURES)
def test_a_method_is_fitted_on_its_own_half_with_the_config_s_settings(phantom_dir, reference, erased, method):
    """And what is left for probes are the others' images, all of them."""
    tmp_path = erased
    diff = {"mitigate.pruned_share": 0.4, "mitigate.rounds": 2, "mitigate.shrink": method == "quadratic", "mitigate.penalty": 0.3, "mitigate.confounders": ("view",), "stages": ("prepare", "extract", "mitigate")}
    parts = mitigated(phantom_dir, reference, tmp_path, method, **diff)
    whole = {split: Features.read(tmp_path / "features", split) for split in tables.SPLITS}
    config = config_of(phantom_dir, method, **diff)
    own = cohorts.uniform(whole["train"].table, f"{config.dataset.split_salt} mitigate") < 0.5
    found = mitigation.eraser(whole, own, config.mitigate)
    for split, part in parts.items():
        rows = ~own if split == "train" else slice(None)
        assert list(part.table["image_id"]) == list(whole[split].table["image_id"][rows])
        wanted = found.erase(whole[split].arrays[FEATURES][rows], stages.attribute_of(part, "race", found.classes))
        np.testing.assert_allclose(part.arrays[FEATURES], wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


LARGER = {"dataset.phantom.patients": 150, "dataset.split_fractions": (0.2, 0.5, 0.3), "train.epochs": 1}


@pytest.fixture(scope="module")
def larger(phantom_dir, tmp_path_factory):
    """A reference with many in validation."""
    workdir = tmp_path_factory.mktemp("larger")
    main.run(config_of(phantom_dir, "none", **LARGER), workdir, command="the command")
    return workdir


@pytest.mark.slow
def test_heads_fitted_anew_are_of_half_of_validation_and_thresholds_of_the_other(phantom_dir, larger, tmp_path):
    parts = mitigated(phantom_dir, larger, tmp_path, "dfr", **LARGER, **{"mitigate.penalty": 0.5})
    whole = {split: Features.read(tmp_path / "features", split) for split in tables.SPLITS}
    np.testing.assert_array_equal(parts["test"].arrays[FEATURES], whole["test"].arrays[FEATURES])
    judged = Predictions.read(tmp_path / "mitigated" / "dfr" / "predictions.parquet")
    table = whole["validation"].table
    own = (cohorts.uniform(table, "cxr_jax mitigate") < 0.5).astype(bool)
    assert list(judged.table.loc[judged.table["split"] == "validation", "image_id"]) == list(table["image_id"][~own]) and 0 < own.sum() < len(own)
    name, target = next(iter(judged.targets.items()))
    assert target.kind == "multilabel"
    labels = table[[f"label_{c}" for c in target.classes]].to_numpy(np.float32)[own]
    # Groups by label alike, of each finding, written out.
    weight = np.ones(labels.shape)
    for k, column in enumerate(labels.T):
        cells = table["race"][own].to_numpy() + np.where(column == 1, "+", "-")
        counts = {cell: (cells == cell).sum() for cell in set(cells)}
        weight[:, k] = [len(cells) / (len(counts) * counts[cell]) for cell in cells]
    read = last_layer.refitted({name: target}, whole["validation"].arrays[FEATURES][own], {name: labels}, {name: weight}, 0.5)
    scores = judged.table.loc[judged.table["split"] == "test", [f"score_{c}" for c in target.classes]]
    wanted = read(whole["test"].arrays[FEATURES])[name]
    old = Predictions.read(larger / "mitigated" / "none" / "predictions.parquet").table
    wanted = np.where(np.isnan(wanted), old.loc[old["split"] == "test", scores.columns], wanted)
    np.testing.assert_allclose(scores, wanted, atol=1e-5)
    assert "among whom every race by label counts alike" in tables.read_json(tmp_path / "run.json")["mitigated"]


@pytest.mark.slow
def test_calls_by_group_and_lot(phantom_dir, larger, tmp_path):
    mitigated(phantom_dir, larger, tmp_path, "equalised_odds", **LARGER, **{"audit.threshold": "fixed:0.5"})
    plain = Predictions.read(larger / "mitigated" / "none" / "predictions.parquet")
    judged = Predictions.read(tmp_path / "mitigated" / "equalised_odds" / "predictions.parquet")
    wanted, said = equalised_odds.post_processed(plain, "race", 0)
    scores = [c for c in wanted.table if c.startswith("score_")]
    np.testing.assert_allclose(judged.table[scores], wanted.table[scores], atol=1e-5)
    record = tables.read_json(tmp_path / "run.json")
    assert record["mitigated"].startswith(said) and "needs race of everyone who is judged" in record["headline"]


@pytest.mark.slow
def test_heads_of_another_checkpoint_are_refused(phantom_dir, reference, tmp_path):
    short = {"stages": ("prepare", "extract", "mitigate")}
    mitigated(phantom_dir, reference, tmp_path / "run", "none", **short)
    other = tmp_path / "other"
    main.run(config_of(phantom_dir, "none", seed=5, stages=("prepare", "train")), other, command="the command")
    (tmp_path / "run" / "features").rename(tmp_path / "kept")
    mitigated(phantom_dir, other, tmp_path / "second", "none", **short)
    (tmp_path / "second" / "features").rename(tmp_path / "second" / "own")
    (tmp_path / "kept").rename(tmp_path / "second" / "features")
    with pytest.raises(UserError, match="made by the best checkpoint, step .*, and the heads are of the best checkpoint.*; run the extract stage again"):
        mitigated(phantom_dir, other, tmp_path / "second", "none", **short, **{"mitigate.share": 0.4})


@pytest.mark.slow
def test_what_is_judged_is_what_the_config_says_now(phantom_dir, reference, tmp_path):
    """After a mitigation, without it: neither headline nor numbers are left of it; and probes of another attribute have it done anew."""
    mitigated(phantom_dir, reference, tmp_path, "leace")
    main.run(config_of(phantom_dir, "", **{"extract.weights": str(reference), "stages": ("prepare", "extract", "probe", "audit", "report")}), tmp_path, "the command")
    record = tables.read_json(tmp_path / "run.json")
    assert "leace" not in record["headline"] and "mitigated" not in record and "judged after" not in (tmp_path / "report.html").read_text()
    assert not (tmp_path / "audit.json").exists()  # the run has no predictions but those after leace
    for diff in ({}, {"mitigate.attribute": "sex"}):
        config = config_of(phantom_dir, "leace", **{"extract.weights": str(reference), "stages": ("probe", "audit", "report"), **diff})
        with pytest.raises(UserError, match="mitigate.method=leace: the stage mitigate is not done with these features and this config; add it"):
            main.run(config, tmp_path, "the command")


def test_probes_and_an_erasure_that_were_fitted_here_are_judged_on_other_data(phantom_dir, reference, tmp_path):
    name, stages_ = "on_phantom.acquisition", ("prepare", "extract", "mitigate", "probe", "audit")
    diff = {"extract.datasets": ("phantom.acquisition",), "stages": stages_, "audit.min_patients": 1}
    mitigated(phantom_dir, reference, tmp_path, "leace", **diff)
    before, after = (Features.read(folder / "features", name) for folder in (tmp_path, tmp_path / "mitigated" / "leace"))
    whole = {split: Features.read(tmp_path / "features", split) for split in tables.SPLITS}
    assert set(before.table["split"]) == {"test"} and not set(before.table["patient_id"]) & set(whole["train"].table["patient_id"])
    assert not np.allclose(before.arrays[FEATURES], whole["test"].arrays[FEATURES][: len(before.table)])
    config = config_of(phantom_dir, "leace", **diff)
    own = cohorts.uniform(whole["train"].table, f"{config.dataset.split_salt} mitigate") < 0.5
    found = mitigation.eraser(whole, own, config.mitigate)
    np.testing.assert_allclose(after.arrays[FEATURES], found.erase(before.arrays[FEATURES], None), rtol=1e-4, atol=1e-5)
    read = Readings.read(tmp_path / "probes" / f"{name}.parquet")
    (reading,) = (r for r in read.readings if r.input == FEATURES)
    fitted = np.load(tmp_path / "probes" / "0.npz")
    logits = after.arrays[FEATURES] @ fitted["coefficients"].T + fitted["intercepts"]
    np.testing.assert_allclose(read.scores[reading.name], special.softmax(logits, axis=1), atol=1e-4)
    rows = tables.read_json(tmp_path / "probe_audit.json")["elsewhere"]["phantom.acquisition"]["rows"]
    classes = read.targets["race"]
    for row in (row for row in rows if row["input"] == FEATURES and row["class"] != "macro"):
        truth = (read.table["label_race"] == row["class"]).to_numpy()
        assert row["value"] == pytest.approx(roc_auc_score(truth, read.scores[reading.name][:, classes.index(row["class"])]), abs=1e-6)
        assert (row["n_images"], row["n_patients"]) == (len(truth), before.table["patient_id"].nunique())
    # Others beside it change nothing of its own.
    made = (tmp_path / "features" / "train.npy").stat().st_mtime_ns
    mitigated(phantom_dir, reference, tmp_path, "leace", **{**diff, "extract.datasets": (), "stages": ("prepare", "extract", "mitigate")})
    assert (tmp_path / "features" / "train.npy").stat().st_mtime_ns == made


def test_features_of_weights_that_changed_are_made_anew(phantom_dir, reference, tmp_path):
    shutil.copytree(reference, tmp_path / "reference")
    diff = {"stages": ("prepare", "extract", "mitigate")}
    mitigated(phantom_dir, tmp_path / "reference", tmp_path / "run", "leace", **diff)
    there = tables.read_json(tmp_path / "reference" / "config.json")
    told = tables.read_json(tmp_path / "run" / "run.json")["trained_as"]
    assert told["seed"] == there["seed"] and told["train.objective.name"] == "erm" and told["model.growth"] == there["model"]["growth"]
    config = config_of(phantom_dir, "leace", **diff, **{"extract.weights": str(tmp_path / "reference")})

    def done():
        run = experiment.Run(tmp_path / "run", config, base.get_config(), "the command")
        return [stage for stage in diff["stages"] if run.done(stage)]

    assert done() == ["prepare", "extract", "mitigate"]
    shutil.move(tmp_path / "reference", tmp_path / "elsewhere")  # gone, it is not needed for what was made by it
    assert done() == ["prepare", "extract", "mitigate"]
    shutil.copytree(tmp_path / "elsewhere", tmp_path / "reference")
    path = next((tmp_path / "reference" / "checkpoints" / "best").rglob("_METADATA"))
    path.write_text(path.read_text() + " ")
    assert done() == ["prepare"]


def test_another_method_keeps_what_was_extracted(phantom_dir, reference, tmp_path):
    mitigated(phantom_dir, reference, tmp_path, "leace", stages=("prepare", "extract", "mitigate"))
    before = (tmp_path / "features" / "train.npy").stat().st_mtime_ns
    parts = mitigated(phantom_dir, reference, tmp_path, "prune", **{"mitigate.pruned_share": 0.3, "stages": ("prepare", "extract", "mitigate")})
    assert (tmp_path / "features" / "train.npy").stat().st_mtime_ns == before
    changed = (parts["test"].arrays[FEATURES] != Features.read(tmp_path / "features", "test").arrays[FEATURES]).any(axis=0)
    assert changed.sum() == 3


def test_data_elsewhere_that_were_never_built_are_told_before_anything_else(phantom_dir, reference, tmp_path):
    with pytest.raises(UserError, match="config.extract.datasets=nih: config.dataset.raw_dir of a config of its own is not set, and there is no data set at"):
        mitigated(phantom_dir, reference, tmp_path, "leace", **{"extract.datasets": ("nih",)})
    assert not (tmp_path / "cohort.parquet").exists()


IN_PROCESSES = {**LARGER, "mitigate.halvings": 1, "mitigate.share": 0.8, "audit.threshold": "fixed:0.5"}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["leace", "dfr", "equalised_odds"])
def test_two_processes_write_what_one_does(phantom_dir, larger, tmp_path, method):
    mitigated(phantom_dir, larger, tmp_path / "one", method, **IN_PROCESSES, stages=("prepare", "extract", "mitigate"))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    shutil.rmtree(tmp_path / "two" / "mitigated")
    program = """
import pathlib
import jax
from configs import base
from cxr_jax import experiment, stages
from tests.test_mitigate_run import IN_PROCESSES, config_of
phantoms, reference, workdir, method = sys.argv[1:]
assert jax.process_count() == 2
config = config_of(pathlib.Path(phantoms), method, **{"extract.weights": reference, **IN_PROCESSES})
stages.mitigate(config, experiment.Run(workdir, config, base.get_config(), "the command"))
"""
    printed = processes.launch(program, str(phantom_dir), str(larger), str(tmp_path / "two"), method)
    assert all(method in text for text in printed)
    for path in (tmp_path / "one" / "mitigated").rglob("*"):
        if path.suffix == ".npy":  # in another number of threads sums differ in their last bits
            np.testing.assert_allclose(np.load(tmp_path / "two" / path.relative_to(tmp_path / "one")), np.load(path), rtol=1e-4, atol=1e-5)
    ours, theirs = (Predictions.read(tmp_path / name / "mitigated" / method / "predictions.parquet").table for name in ("one", "two"))
    numbers = ours.select_dtypes("number").columns
    np.testing.assert_allclose(theirs[numbers], ours[numbers], atol=1e-5)
    assert theirs.drop(columns=numbers).equals(ours.drop(columns=numbers))


@pytest.mark.parametrize(
    ("diff", "told"),
    [
        ({"mitigate.attribute": "rase"}, "config.mitigate.attribute: rase is not recorded beside these features"),
        ({"mitigate.attribute": "dataset"}, "config.mitigate.attribute: dataset says which image or patient"),
        ({"mitigate.confounders": ("height",)}, "config.mitigate.confounders: height is not recorded"),
        ({"mitigate.share": 1e-9}, "config.mitigate.share=1e-09: 0 training images are for the method"),
    ],
)
def test_what_cannot_be_taken(phantom_dir, reference, tmp_path, diff, told):
    with pytest.raises(UserError, match=told):
        mitigated(phantom_dir, reference, tmp_path, "orthogonalise", **diff)
    assert not (tmp_path / "mitigated").exists()
    assert (tmp_path / "cohort.parquet").exists() == ("mitigate.attribute" not in diff)  # which can be told before anything is made


@pytest.mark.parametrize(
    ("diff", "told"),
    [
        ({"mitigate.method": "erase"}, "none, leace, orthogonalise, null_space, prune, oracle, quadratic, dfr, equalised_odds or empty"),
        ({"mitigate.method": "leace", "predict.dataset": "nih"}, "leave predict.dataset empty"),
        ({"mitigate.method": "leace", "probe.embeddings": "x.npy", "stages": ("probe",)}, "leave probe.embeddings"),
        ({"mitigate.method": "orthogonalise", "mitigate.confounders": ("race",)}, "and not mitigate.attribute"),
        ({"mitigate.method": "leace", "stages": ("prepare", "train", "extract", "probe", "audit")}, "is what the stage mitigate does; add it"),
        ({"mitigate.method": "equalised_odds"}, "take --config.audit.threshold=fixed:0.5"),
        ({"mitigate.share": 0.0}, "a share above 0"),
        ({"mitigate.rounds": 0}, "at least 1"),
        ({"mitigate.halvings": -1}, "0 or more"),
        ({"extract.datasets": ("phantom.nul",)}, "config.extract.datasets: no such phantom; did you mean 'null'"),
        ({"extract.datasets": ("nih", "nih")}, "each once"),
        ({"mitigate.method": "dfr", "mitigate.share": 1.0}, "below 1 with mitigate.method=dfr"),
        ({"mitigate.method": "equalised_odds", "audit.threshold": "fixed:0.5", "audit.attributes": ("sex",)}, "race .mitigate.attribute. among them"),
        ({"mitigate.method": "equalised_odds", "audit.threshold": "fixed:0.5", "predict.splits": ("test",), "audit.splits": ("test",)}, "validation among them"),
        ({"mitigate.method": "equalised_odds", "audit.threshold": "fixed:0.5", "train.targets": ("findings", "sex")}, "findings alone"),
        ({"mitigate.penalty": 0.0}, "more than 0"),
    ],
)
def test_settings_that_cannot_be(diff, told):
    with pytest.raises(UserError, match=told):
        experiment.validate(experiment.apply_diff(mitigate.get_config(), diff))


def test_methods_sizes_and_data_sets_combine():
    config = mitigate.get_config("tiny,phantom.shortcut,leace")
    assert (config.mitigate.method, config.dataset.variant, config.model.growth) == ("leace", "shortcut", 12)
    assert mitigate.get_config().mitigate.method == "none" and list(config.stages) == list(STAGES)
    with pytest.raises(UserError, match="names two methods"):
        mitigate.get_config("leace,prune")
    assert list(stages.STAGES) == list(experiment.STAGE_FIELDS)
