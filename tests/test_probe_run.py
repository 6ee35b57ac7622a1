"""From a config to probed features: as a user runs it, again, after a kill, with a model of another run, with vectors of their own."""

import numpy as np
import pandas as pd
import pytest

from cxr_jax import experiment, main, stages, tables
from cxr_jax.data import augment, cohorts, datasets, pipeline
from cxr_jax.models import pretrained
from cxr_jax.tables import FEATURES, Features, Readings, UserError
from tests.models.test_pretrained import safetensors, state_dict
from tests.phantoms import PLAIN, small_config

PROBE = {
    "name": "Probes", "train.targets": ("findings",), "stages": ("prepare", "train", "extract", "probe", "audit", "report"),
    "probe.probes": ("logistic_regression", "knn"), "probe.penalties": (1e-2, 1e1, 4), "probe.refits": 3, "probe.neighbours": (1, 5),
    "probe.permutations": 20, "probe.strata": ("view",),  # of findings: tests/probes
}  # fmt: skip


def probe_config(phantom_dir, **diff):
    config = experiment.apply_diff(small_config(phantom_dir, **PLAIN, train__epochs=1), PROBE)
    return experiment.apply_diff(config, {k.replace("__", "."): v for k, v in diff.items()})


@pytest.fixture(scope="module")
def finished(phantom_dir, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("probed")
    config = probe_config(phantom_dir)
    main.run(config, workdir, command="the command")
    return config, workdir


def test_features_are_of_every_image_of_the_cohort(finished):
    _, workdir = finished
    cohort, _ = tables.read_parquet(workdir / "cohort.parquet")
    for split in tables.SPLITS:
        part = Features.read(workdir / "features", split)
        assert list(part.table["image_id"]) == list(cohort.loc[cohort["split"] == split, "image_id"])
        assert set(part.arrays) == {"features", "untrained", "histogram", "scores", "stem", "block1", "block2"}
        for name, array in part.arrays.items():
            assert np.isfinite(array).all() and np.ptp(array, axis=0).max() > 0, name
        np.testing.assert_allclose(part.arrays["histogram"].sum(axis=1), 1, rtol=1e-5)
        assert "label_No Finding" in part.table and "true_No Finding" in part.table and "ceiling_Alder" in part.table
        assert not [c for c in part.table if c.startswith("finding_")]  # by the cohort's policy, not as released


def test_readings_and_report(finished, capsys):
    _, workdir = finished
    readings = Readings.read(workdir / "probes" / "readings.parquet")
    assert {reading.probe for reading in readings.readings} == {"logistic_regression", "knn"}
    assert {reading.input for reading in readings.readings if reading.probe == "knn"} == {"features", "untrained", "findings", "demographics", "histogram"}
    fitted = np.load(workdir / "probes" / "0.npz")
    assert fitted["reading"] == readings.readings[0].name == "race by logistic_regression from features"
    assert fitted["coefficients"].shape == (4, Features.read(workdir / "features", "test").arrays[FEATURES].shape[1])
    text = (workdir / "report.html").read_text()
    assert "What the features know" in text and "All AUCs" not in text  # no model was judged
    assert not (workdir / "audit.json").exists()


def test_run_again_it_says_so_and_another_way_of_judging_fits_nothing_anew(finished, capsys):
    config, workdir = finished
    main.run(config, workdir, command="the command")
    assert f"its report: {workdir / 'report.html'}" in capsys.readouterr().out
    before = (workdir / "probes" / "readings.parquet").stat().st_mtime_ns
    changed = experiment.apply_diff(config.copy_and_resolve_references(), {"audit.replicates": 150})
    main.run(changed, workdir, command="the command")
    assert (workdir / "probes" / "readings.parquet").stat().st_mtime_ns == before
    assert "150 replicates" in (workdir / "probe_audit.json").read_text()


def test_extraction_goes_on_where_it_was_stopped(finished, phantom_dir, tmp_path, monkeypatch):
    _, whole = finished
    config = probe_config(phantom_dir, stages=("prepare", "extract"), extract__weights=str(whole), train__evaluate_batch_size=8)
    begun = []
    original = pipeline.Source.ordered

    def stopped(self, batch_size, process_index=0, process_count=1, start_step=0):
        begun.append((self.split, start_step))
        for number, batch in enumerate(original(self, batch_size, process_index, process_count, start_step)):
            if self.split == "test" and number == 2 and len(begun) < 4:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(pipeline.Source, "ordered", stopped)
    with pytest.raises(KeyboardInterrupt):
        main.run(config, tmp_path, command="the command")
    assert begun == [("train", 0), ("validation", 0), ("test", 0)]
    main.run(config, tmp_path, command="the command")
    assert begun[3:] == [("test", 2)]  # what was whole is left alone
    for split in tables.SPLITS:
        one, other = (Features.read(folder / "features", split) for folder in (whole, tmp_path))
        for name in (FEATURES, "block1", "histogram"):
            np.testing.assert_allclose(one.arrays[name], other.arrays[name], rtol=1e-4, atol=1e-5)


def test_a_model_is_not_judged_on_patients_that_it_has_seen(finished, phantom_dir, tmp_path):
    _, whole = finished
    config = probe_config(phantom_dir, stages=("prepare", "extract"), extract__weights=str(whole), dataset__split_salt="another")
    with pytest.raises(UserError, match=r"\d+ test patients of this cohort were in training or validation of that model"):
        main.run(config, tmp_path, command="the command")
    config.extract.weights = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match="config.extract.weights: .*nowhere: not a readable file .No such file or directory"):
        main.run(config, tmp_path / "other", command="the command")


@pytest.mark.slow
def test_weights_of_torch(finished, phantom_dir, tmp_path):
    """A state dict in torchvision's naming takes the place of a checkpoint; its features are those of its own network."""
    path = safetensors(tmp_path / "weights.safetensors", state_dict(channels=3))
    config = probe_config(phantom_dir, stages=("prepare", "extract"), extract__weights=str(path), extract__depths=False)
    main.run(config, tmp_path / "run", command="the command")
    part = Features.read(tmp_path / "run" / "features", "test")
    assert part.about["weights"].startswith("weights.safetensors, ")
    network = pretrained.read(path, classifier=False).network
    dataset, cohort = datasets.open(config.dataset), cohorts.Cohort.read(tmp_path / "run" / "cohort.parquet")
    source = pipeline.sources(dataset, cohort.table, config.dataset)["test"]
    images = augment.to_model_input(next(source.ordered(4))["image"], 224)
    np.testing.assert_allclose(part.arrays[FEATURES][:4], network(images, train=False).features, rtol=1e-3, atol=1e-4)


def test_vectors_of_ones_own(phantom_dir, finished, tmp_path):
    """The same vectors, written as a user would, give the same readings; nothing of ours has to be there."""
    _, whole = finished
    parts = [Features.read(whole / "features", split) for split in tables.SPLITS]
    table = pd.concat([part.table for part in parts], ignore_index=True)
    table[["image_id", "patient_id", "split", "race", "sex", "view", "age"]].to_csv(tmp_path / "keys.csv", index=False)
    np.save(tmp_path / "vectors.npy", np.concatenate([part.arrays[FEATURES] for part in parts]))
    own = {"probe__embeddings": str(tmp_path / "vectors.npy"), "probe__table": str(tmp_path / "keys.csv")}
    config = probe_config(phantom_dir, stages=("probe", "audit", "report"), **own)
    main.run(config, tmp_path / "run", command="the command")
    ours, theirs = (Readings.read(folder / "probes" / "readings.parquet") for folder in (whole, tmp_path / "run"))
    # The order of classes is by name here, and of the race rule there; these are the same.
    for name in ("race by logistic_regression from features", "race by knn from features, view: PA"):
        np.testing.assert_allclose(ours.scores[name], theirs.scores[name], rtol=1e-3, atol=1e-4)
    assert "no control by untrained: these features come without it" in theirs.found["absent"]
    assert (tmp_path / "run" / "report.html").exists() and not (tmp_path / "run" / "features").exists()
    pd.read_csv(tmp_path / "keys.csv").drop(columns="split").to_csv(tmp_path / "keys.csv", index=False)
    split = stages.own_vectors(config)
    assert {s: set(part.table["patient_id"]) for s, part in split.items()} == {
        s: set(part.table["patient_id"]) for s, part in zip(tables.SPLITS, parts)
    }  # by the hash that data sets are split by
