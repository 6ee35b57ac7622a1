"""Features and what heads make of them, before and after an attribute is taken from them: as a user runs it."""

import numpy as np
import pytest

from configs import mitigate
from cxr_jax import experiment, main, stages, tables
from cxr_jax.audit import subgroups
from cxr_jax.probes import logistic_regression
from cxr_jax.report import compare
from cxr_jax.tables import FEATURES, Features, Predictions, UserError
from tests.test_probe_run import probe_config

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


@pytest.mark.parametrize("method", [m for m in experiment.MITIGATIONS if m != "none"])
def test_what_a_method_leaves_is_what_probes_and_audit_judge(phantom_dir, reference, tmp_path, method, capsys):
    parts = mitigated(phantom_dir, reference, tmp_path / "run", method, **{"mitigate.features": 5, "mitigate.rounds": 2, "mitigate.share": 1.0})
    before = {split: Features.read(tmp_path / "run" / "features", split) for split in tables.SPLITS}
    for split, part in parts.items():
        assert list(part.table["image_id"]) == list(before[split].table["image_id"])
        assert not np.allclose(part.arrays[FEATURES], before[split].arrays[FEATURES])
        assert set(part.arrays) == {FEATURES, "histogram"}
    # By construction: of a method's own patients a linear probe tells less, and after leace nothing.
    codes = parts["train"].table["race"].astype("category").cat.codes.to_numpy(np.int64)
    left, was = (logistic_regression.fit(of["train"].arrays[FEATURES], codes, np.array([1e-4])).objective[0, 0] for of in (parts, before))
    share = np.bincount(codes) / len(codes)
    constant = -(share * np.log(share)).sum()
    assert was < left <= constant + 1e-9 and (method != "leace" or left > constant - 1e-6)

    record = tables.read_json(tmp_path / "run" / "run.json")
    assert record["mitigated"].startswith(f"{method} of race") and "no attribute is needed of an image that is judged" in record["mitigated"]
    assert f"judged after {method} of race" in record["headline"] and record["mitigated"] in capsys.readouterr().out
    judged = Predictions.read(tmp_path / "run" / "mitigated" / method / "predictions.parquet")
    tables.write_json(tmp_path / "again.json", subgroups.audit(judged, config_of(phantom_dir, method).audit))
    assert tables.read_json(tmp_path / "again.json") == tables.read_json(tmp_path / "run" / "audit.json")
    assert method in compare.text(compare.read([reference, tmp_path / "run"]))


def test_another_method_keeps_what_was_extracted(phantom_dir, reference, tmp_path):
    mitigated(phantom_dir, reference, tmp_path, "leace")
    before = (tmp_path / "features" / "train.npy").stat().st_mtime_ns
    parts = mitigated(phantom_dir, reference, tmp_path, "prune", **{"mitigate.features": 3})
    assert (tmp_path / "features" / "train.npy").stat().st_mtime_ns == before
    changed = (parts["test"].arrays[FEATURES] != Features.read(tmp_path / "features", "test").arrays[FEATURES]).any(axis=0)
    assert changed.sum() == 3


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


@pytest.mark.parametrize(
    ("diff", "told"),
    [
        ({"mitigate.method": "erase"}, "none, leace, orthogonalise, null_space, prune or empty"),
        ({"mitigate.method": "leace", "predict.dataset": "nih"}, "leave predict.dataset empty"),
        ({"mitigate.method": "leace", "probe.embeddings": "x.npy", "stages": ("probe",)}, "leave probe.embeddings"),
        ({"mitigate.confounders": ("race",)}, "and not mitigate.attribute"),
        ({"mitigate.share": 0.0}, "a share above 0"),
        ({"mitigate.rounds": 0}, "at least 1"),
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
