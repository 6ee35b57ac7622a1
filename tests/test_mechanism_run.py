"""What a network reads, from a config to its page: as a user runs it, again after a kill, with what cannot be asked; and on the phantom, whose texture lies in a known band."""

import shutil

import numpy as np
import pytest

from configs import mechanism
from cxr_jax import experiment, main, tables
from cxr_jax.report import mechanism as report_mechanism
from cxr_jax.tables import Features, Predictions, UserError
from tests.phantoms import run_as_user
from tests.test_probe_run import probe_config

STAGES = ("prepare", "train", "extract", "probe", "mechanism", "audit", "report")
NONE = {f"mechanism.series.{name}": () for name in mechanism.get_config("tiny").mechanism.series}
FEW = {**NONE, "mechanism.series.low_pass": (4.0, 64.0), "mechanism.series.notch": ((8.0, 16.0),), "mechanism.series.attacked": (2.0,), "mechanism.watched": 2, "mechanism.maps.patients": 6, "mechanism.maps.methods": ("grad_cam",), "mechanism.maps.cell": 64, "mechanism.maps.shares": 2}
LEAST = {"probe.probes": ("logistic_regression",), "probe.controls": (), "probe.strata": (), "probe.refits": 0, "extract.untrained": False, "extract.depths": False}


def config_of(phantom_dir, **diff):
    return experiment.apply_diff(probe_config(phantom_dir), {**LEAST, **FEW, "stages": STAGES, "audit.min_patients": 2, **diff})


@pytest.fixture(scope="module")
def finished(phantom_dir, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("mechanism")
    config = config_of(phantom_dir)
    main.run(config, workdir, command="the command")
    return config, workdir


def test_heads_and_probes_are_read_along_series_to_a_page(finished):
    config, workdir = finished
    whole = Predictions.read(workdir / "mechanism" / "as_they_are.parquet")
    features = Features.read(workdir / "features", "test")
    assert list(whole.targets) == ["findings", "race"] and list(whole.table["image_id"]) == list(features.table["image_id"])
    # What the probe says of the features that were extracted, and nothing else, is said of images as they are.
    read = tables.Readings.read(workdir / "probes" / "readings.parquet")
    np.testing.assert_allclose(whole.scores("race"), read.scores["race by logistic_regression from features"], atol=1e-4)
    found = tables.read_json(workdir / "mechanism_audit.json")
    assert {(row["target"], row["reader"]) for row in found["rows"]} == {("findings", "head"), ("race", "probe")}
    assert {row["series"] for row in found["rows"]} == {None, "low_pass", "notch", "attacked"}
    assert {row["series"] for row in found["features"]} == {"low_pass", "notch"} and len({row["feature"] for row in found["features"]}) == 2
    text = (workdir / "mechanism.html").read_text()
    assert "Notch: all but one band" in text and "Group (invented), by logistic regression on its features" in text and "A test image, of data that are open" in text
    assert "Acquisition against demography" in text and "Not recorded here: body height and weight" in text
    factors = {row["factor"] for row in found["acquisition"]["rows"]}
    assert factors == {None, "view", "exposure", "field_of_view", "age", "sex", "findings"}
    assert {row["target"] for row in found["acquisition"]["rows"]} == {"race"}
    assert "Where it looks" in text and {row["method"] for row in found["maps"]} == {"grad_cam"}
    assert {(row["target"], row["class"]) for row in found["maps"]} == {("findings", "No Finding"), ("findings", "Cardiomegaly"), *(("race", c) for c in ("Alder", "Birch", "Cedar", "Dogwood"))}
    assert {path.name for path in (workdir / "figures").glob("curve_*")} == {f"curve_{name}.svg" for name in ("low_pass", "notch", "attacked")}


def arrays_of(path):
    with np.load(path) as arrays:
        return dict(arrays)


@pytest.mark.slow
def test_what_is_whole_is_left_and_what_is_no_longer_asked_goes(finished, phantom_dir):
    config, workdir = finished
    low, notch = (workdir / "mechanism" / f"{name}.npz" for name in ("low_pass", "notch"))
    kept, before = low.stat().st_mtime_ns, arrays_of(notch)
    notch.write_bytes(notch.read_bytes()[:100])  # as a kill might leave it, were files not put in place whole
    record = tables.read_json(workdir / "run.json")
    record["stages"]["mechanism"]["status"] = "running"
    for stage in ("audit", "report"):
        record["stages"].pop(stage)
    tables.write_json(workdir / "run.json", record)
    main.run(config, workdir, command="the command")
    assert low.stat().st_mtime_ns == kept
    for name, array in arrays_of(notch).items():
        np.testing.assert_array_equal(array, before[name])
    # Without a series, what was made of it is no part of the stage; the audit has none of it either. The others stay.
    kept = low.stat().st_mtime_ns
    main.run(config_of(phantom_dir, **{"mechanism.series.attacked": ()}), workdir, command="the command")
    assert low.stat().st_mtime_ns == kept
    assert not (workdir / "mechanism" / "attacked.npz").exists()
    assert "attacked" not in {row["series"] for row in tables.read_json(workdir / "mechanism_audit.json")["rows"]}


def test_of_data_that_are_not_open_no_image_is_shown_and_no_mean_of_few(finished, tmp_path):
    config, workdir = finished
    closed = shutil.copytree(workdir, tmp_path / "closed")
    shutil.rmtree(closed / "figures")
    for name, change in (("run.json", lambda of: of["dataset"].update(open_data=False)), ("config.json", lambda of: of["audit"].update(min_patients=11))):
        record = tables.read_json(closed / name)
        change(record)
        tables.write_json(closed / name, record)
    page = report_mechanism.write(closed, {"low_pass": [(np.zeros((256, 256), np.uint8), "4")]})
    text = page.read_text()
    assert "A test image" not in text and "data:image/png" not in text
    assert not list((closed / "figures").glob("maps_*")) and list((closed / "figures").glob("curve_*"))


@pytest.mark.parametrize(
    ("diff", "told"),
    [
        ({"mechanism.series.low_pass": (4.0, 200.0)}, "config.mechanism.series: low_pass 200.0 is not within 0 to 128, Nyquist"),
        ({"train.shown": ("low_pass",)}, "config.train.shown"),
        ({"mechanism.factors.view": ("patient_id",)}, "config.mechanism.factors.view: patient_id says which image or patient"),
        ({"mechanism.maps.methods": ("gradcam",)}, "of grad_cam, integrated_gradients, occlusion"),
        ({"mechanism.maps.cell": 15}, "a divisor of 256 pixels"),
        ({"mechanism.maps.stride": 128}, "from 1 to mechanism.maps.box"),
        ({"mechanism.maps.patients": -5}, "0 or more"),
        ({"mitigate.method": "leace", "stages": ("prepare", "train", "extract", "mitigate", "mechanism")}, "the stage mechanism asks the network itself"),
        ({"extract.weights": "untrained", "stages": ("prepare", "extract", "mechanism")}, "has no heads, and nothing was fitted to its features"),
    ],
)
def test_what_cannot_be_asked_is_told_in_a_line(phantom_dir, tmp_path, diff, told):
    with pytest.raises(UserError, match=told) as error:
        experiment.validate(config_of(phantom_dir, **diff))
        main.run(config_of(phantom_dir, **diff), tmp_path, command="the command")
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_model_that_is_trained_already_is_asked_as_the_config_says(finished, phantom_dir, tmp_path):
    """With one series of single strengths, ages in bands, and no network of shuffled labels, which only who trained it could train."""
    series = {**NONE, "mechanism.series.down_sampled": (16, 64), "mechanism.maps.shuffled_labels": True, "mechanism.maps.attribute": "insurance", "audit.age_bands": (0, 60)}
    diff = {**series, "extract.weights": str(finished[1]), "probe.targets": ("age_band",), "stages": ("prepare", "extract", "probe", "mechanism", "audit", "report")}
    main.run(config_of(phantom_dir, **diff), tmp_path, command="the command")
    text = (tmp_path / "mechanism.html").read_text()
    assert "Age band (years), by logistic regression on its features" in text and "Down-sampled, and enlarged again" in text
    rows = [row for row in tables.read_json(tmp_path / "mechanism_audit.json")["rows"] if row["target"] == "age_band" and row["class"] == "60+"]
    assert [row["strength"] for row in rows] == [None, 16, 64] and all(row["n_images"] for row in rows)
    with np.load(tmp_path / "mechanism" / "maps.npz") as arrays:
        assert str(arrays["attribute"]) == "sex" and np.isnan(arrays["age_band\n0-59\ngrad_cam\nshuffled"]).all()


def test_a_run_that_is_shown_less_says_so_and_is_no_other_runs(phantom_dir, tmp_path):
    shown = {"train.shown": ("low_pass", 6.0), "stages": ("prepare", "train", "predict")}
    main.run(config_of(phantom_dir, **shown), tmp_path, command="the command")
    assert tables.read_json(tmp_path / "checkpoints" / "model.json")["shown"] == ["low_pass", 6.0]
    assert "shown low_pass 6 of images" in tables.read_json(tmp_path / "run.json")["headline"]
    with pytest.raises(UserError, match="train.shown"):
        main.run(config_of(phantom_dir, **{**shown, "train.shown": ()}), tmp_path, command="the command")


@pytest.mark.slow
def test_where_the_texture_lies_the_curves_of_groups_fall_and_nowhere_else(phantom_dir, tmp_path):
    """cxr_phantom's gratings have 12 to 14 cycles across the side, along the diagonals, whose phases wander by about a radian."""
    config = mechanism.get_config("tiny")
    bands = ((0.0, 2.0), (2.0, 9.0), (9.0, 18.0), (18.0, 32.0), (32.0, 128.0))
    diff = {
        **NONE, "mechanism.maps.patients": 0, "mechanism.series.notch": bands, "mechanism.series.band_pass": ((9.0, 18.0),), "dataset.data_dir": str(phantom_dir), "dataset.phantom.patients": 3000,
        "train.targets": ("race", "sex"), "probe.targets": ("race",), "train.epochs": 6, "stages": ("prepare", "train", "mechanism", "audit"),
    }  # fmt: skip
    run_as_user(experiment.apply_diff(config, diff), tmp_path)
    rows = [r for r in tables.read_json(tmp_path / "mechanism_audit.json")["rows"] if r["class"] == "macro"]
    race, sex = ({tuple(r["strength"]): r for r in rows if r["target"] == t and r["series"] == "notch"} for t in ("race", "sex"))
    (whole,) = (r for r in rows if r["target"] == "race" and r["series"] is None)
    assert whole["low"] > 0.75
    fallen = race[9.0, 18.0]
    assert fallen["less_high"] < -0.15 and fallen["low"] < 0.55
    for band in bands:
        if band != (9.0, 18.0):
            # Without its coarsest structure a picture is none that the network has seen: a little goes with that.
            assert race[band]["less_value"] > fallen["less_value"] / 6, band
    assert sex[0.0, 2.0]["less_high"] < 0 or sex[2.0, 9.0]["less_high"] < 0  # shape, which coarse structure tells
    assert sex[9.0, 18.0]["less_value"] > -0.05


@pytest.mark.slow
def test_where_groups_differ_in_the_view_alone_all_of_it_goes_with_the_view_and_maps_pass_their_checks(phantom_dir, tmp_path):
    config = mechanism.get_config("phantom.acquisition,tiny")
    diff = {
        **NONE, "dataset.data_dir": str(phantom_dir), "dataset.phantom.patients": 2000, "train.targets": ("race",), "probe.targets": ("race",), "train.epochs": 5,
        "mechanism.maps.patients": 24, "mechanism.maps.methods": ("grad_cam", "integrated_gradients"), "mechanism.maps.steps": 8, "stages": ("prepare", "train", "mechanism", "audit"),
    }  # fmt: skip
    run_as_user(experiment.apply_diff(config, diff), tmp_path)
    found = tables.read_json(tmp_path / "mechanism_audit.json")
    rows = {(r["factor"], r["what"]): r for r in found["acquisition"]["rows"] if r["class"] == "macro"}
    assert rows[None, "whole"]["low"] > 0.55
    for what in ("explained", "explained_matched"):
        view = rows["view", what]
        assert view["low"] < 1 < view["high"] + 0.05 and view["low"] > 0.75
        for factor in ("age", "sex"):
            assert rows[factor, what]["high"] < 0.3
    assert rows["view", "within"]["low"] < 0.5 + 0.02 and rows["view", "alone"]["value"] > rows[None, "whole"]["value"] - 0.03
    for row in found["maps"]:
        if row["figure"].startswith("changed_") and row["n_patients"] and row["n_patients"] > 10:
            assert row["high"] < 0, row
    assert all(row["low"] > 0 for row in found["maps"] if row["figure"] == "area" and row["method"] == "integrated_gradients")
