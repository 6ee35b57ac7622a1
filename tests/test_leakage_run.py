"""What a release gives away, from a config to its page: of a network, after a mitigation, beside a network that was trained to tell."""

import re
import shutil

import numpy as np
import pytest
from scipy import special
from sklearn.metrics import roc_auc_score

from cxr_jax import experiment, main, tables
from cxr_jax.audit import subgroups
from cxr_jax.report import compare
from cxr_jax.report import leakage as report_leakage
from cxr_jax.tables import FEATURES, SCORES, Features, Predictions, Readings, UserError
from tests.phantoms import PLAIN, small_config
from tests.test_probe_run import probe_config

STAGES = ("prepare", "train", "predict", "extract", "mitigate", "probe", "audit", "report")
DIFF = {
    "stages": STAGES, "predict.splits": ("train", "validation", "test"), "extract.depths": False, "extract.untrained": False, "mitigate.method": "none",
    "probe.targets": ("race", "age_band"), "probe.probes": ("logistic_regression",), "probe.controls": ("scores", "demographics"), "probe.strata": (), "probe.refits": 0,
    "audit.leakage": True, "audit.min_patients": 2, "audit.case_mix": (), "audit.intersections": (), "audit.age_bands": (0, 60),
}  # fmt: skip


@pytest.fixture(scope="module")
def of_images(phantom_dir, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("race")
    main.run(small_config(phantom_dir, **PLAIN, stages=("prepare", "train", "predict")), workdir, command="the command")
    return workdir


@pytest.fixture(scope="module")
def finished(phantom_dir, of_images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("leaks")
    config = experiment.apply_diff(probe_config(phantom_dir), {**DIFF, "audit.told_by_images": str(of_images)})
    main.run(config, folder / "none", command="the command")
    further = {"mitigate.method": "leace", "mitigate.share": 1.0, "extract.weights": str(folder / "none"), "stages": tuple(s for s in STAGES if s not in ("train", "predict"))}
    main.run(experiment.apply_diff(config, further), folder / "leace", command="the command")
    return folder


@pytest.mark.slow
def test_scores_that_are_read_are_those_of_the_heads_of_findings(finished):
    for folder in (finished / "none", finished / "leace"):
        method = folder.name
        features, predictions = Features.read(folder / "mitigated" / method / "features", "test"), Predictions.read(folder / "mitigated" / method / "predictions.parquet")
        of_test = predictions.scores("findings")[(predictions.table["split"] == "test").to_numpy()]
        np.testing.assert_allclose(features.arrays[SCORES], special.logit(np.clip(of_test, 1e-7, 1 - 1e-7)), rtol=1e-3, atol=1e-3)
    plain = Features.read(finished / "none" / "features", "test")
    np.testing.assert_allclose(plain.arrays[SCORES], Features.read(finished / "none" / "mitigated" / "none" / "features", "test").arrays[SCORES], atol=1e-3)
    erased = Features.read(finished / "leace" / "mitigated" / "leace" / "features", "test")
    assert np.abs(plain.arrays[SCORES] - erased.arrays[SCORES]).max() > 0.01 and erased.arrays[FEATURES].shape == plain.arrays[FEATURES].shape


@pytest.mark.slow
def test_labels_are_read_from_scores_features_and_images(finished, of_images):
    readings = Readings.read(finished / "none" / "probes" / "readings.parquet")
    assert {(r.target, r.input) for r in readings.readings} == {(t, i) for t in ("race", "age_band") for i in (FEATURES, SCORES, "demographics")}
    assert readings.targets["age_band"] == ("0-59", "60+")
    # Of an age band, age is no control.
    assert next(r for r in readings.readings if (r.target, r.input) == ("age_band", "demographics")).about["attributes"] == ["sex", "view"]
    found = tables.read_json(finished / "none" / "leakage_audit.json")
    (row,) = (r for r in found["images"]["rows"] if r["class"] == "Alder")
    told = Predictions.read(of_images / "predictions.parquet").table
    told = told[told["split"] == "test"]
    assert row["value"] == pytest.approx(roc_auc_score(told["label_race"] == "Alder", told["score_Alder"])) and row["n_images"] == len(told)
    assert found["images"]["absent"] == ["age_band from images: the network of config.audit.told_by_images was not trained to tell it"]
    text = (finished / "none" / "leakage.html").read_text()
    assert "from its scores of findings" in text and "from the images" in text and "Whether a patient is found again" in text and "patients of training" in text


@pytest.mark.slow
def test_patients_are_counted_and_nobody_is_named(finished):
    found = tables.read_json(finished / "none" / "leakage_audit.json")
    everyone = [r for r in found["membership"]["rows"] if r["attribute"] == subgroups.ALL]
    cohort, _ = tables.read_parquet(finished / "none" / "cohort.parquet")
    patients = cohort.groupby("split")["patient_id"].nunique()
    assert {(r["n_members"], r["n_others"]) for r in everyone} == {(patients["train"], patients["test"])}
    (rank,) = (r for r in found["reidentification"]["rows"] if r["metric"] == "rank_1" and r["attribute"] == subgroups.ALL and r["gallery"] == "all")
    assert rank["gallery_patients"] == patients["test"] and rank["chance"] == pytest.approx(1 / patients["test"])
    for name in ("leakage_audit.json", "leakage.html"):
        text = (finished / "none" / name).read_text()
        assert not any(f'"{one}"' in text or f">{one}<" in text for one in [*cohort["patient_id"], *cohort["image_id"]])


@pytest.mark.slow
def test_of_data_that_are_not_open_counts_of_groups_are_not_told(finished, tmp_path):
    """Nor what would follow from them: other pages have a group's other splits, and all of it."""
    closed = shutil.copytree(finished / "none", tmp_path / "closed")
    record = tables.read_json(closed / "run.json")
    record["dataset"]["open_data"] = False
    tables.write_json(closed / "run.json", record)
    text = report_leakage.write(closed).read_text()
    found = tables.read_json(closed / "leakage_audit.json")
    of_own = text[text.index("Among patients of the own group") : text.index("Whether it is told", text.index("Among patients of the own group"))]
    own = [r for r in found["reidentification"]["rows"] if r["gallery"] == "own group" and r["chance"]]
    assert own and "chance" not in of_own and "2 or more" in of_own
    (row, *_) = (r for r in found["membership"]["rows"] if r["attribute"] == "sex" and r["group"] == "F")
    cells = re.search(r'<th scope="row" class="wrap">sex: F</th>(.*?)</tr>', text[text.index("patients of training") :], re.S).group(1)
    assert f">{row['n_members']}<" not in cells and "2 or more" in cells


@pytest.mark.slow
def test_ages_in_other_bands_are_read_anew(finished, phantom_dir, of_images, tmp_path):
    workdir = shutil.copytree(finished / "none", tmp_path / "none")
    config = experiment.apply_diff(probe_config(phantom_dir), {**DIFF, "audit.told_by_images": str(of_images), "audit.age_bands": (0, 50)})
    main.run(config, workdir, command="the command")
    assert Readings.read(workdir / "probes" / "readings.parquet").targets["age_band"] == ("0-49", "50+")


@pytest.mark.slow
def test_mitigations_are_compared_by_what_they_give_away(finished, tmp_path):
    found = compare.read([finished])
    assert [name.partition(" (")[0] for name, _ in found.leaks.blocks] == ["The right patient is the most similar", "The right patient is among the 10 most similar", "Who was trained on, by the loss", "Who was trained on, by the mean loss of training"]
    compare.write(found, tmp_path / "page.html")
    assert "What a release gives away about patients" in (tmp_path / "page.html").read_text()
    assert "What a release gives away about patients" in compare.text(found)


@pytest.mark.parametrize(
    ("diff", "told"),
    [
        ({"audit.told_by_images": "/nowhere"}, "config.audit.told_by_images: /nowhere: not a readable file"),
        ({"audit.leakage": False, "audit.told_by_images": "there"}, "set audit.leakage"),
        ({"audit.told_by_images": "there", "probe.embeddings": "mine.npy", "stages": ("probe", "audit")}, "leave probe.embeddings and audit.predictions empty"),
    ],
)
def test_what_is_not_there_is_told_in_a_line(phantom_dir, tmp_path, of_images, diff, told):
    with pytest.raises(UserError, match=told):
        config = experiment.apply_diff(probe_config(phantom_dir), {**DIFF, **diff})
        experiment.validate(config)
        main.run(config, tmp_path, command="the command")


@pytest.mark.slow
def test_a_network_that_was_trained_on_patients_who_are_judged_is_refused(phantom_dir, tmp_path, of_images):
    diff = {**DIFF, "audit.told_by_images": str(of_images), "dataset.split_salt": "another", "stages": ("prepare", "extract", "probe", "audit"), "extract.weights": "untrained", "mitigate.method": ""}
    with pytest.raises(UserError, match="were in training or validation of that model"):
        main.run(experiment.apply_diff(probe_config(phantom_dir), diff), tmp_path, command="the command")


@pytest.mark.slow
def test_without_training_images_or_features_the_page_says_what_is_missing(phantom_dir, tmp_path):
    diff = {**DIFF, "stages": ("prepare", "train", "predict", "audit", "report"), "predict.splits": ("validation", "test"), "mitigate.method": ""}
    main.run(experiment.apply_diff(probe_config(phantom_dir), diff), tmp_path, command="the command")
    text = (tmp_path / "leakage.html").read_text()
    assert "add train to config.predict.splits" in text and "add extract to config.stages" in text and "add probe to config.stages" in text
