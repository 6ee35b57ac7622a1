"""Every experiment on what a network reads, whether it travels and what it gives away, on real X-rays and to its page; through NIH's builder and as a hospital's own table."""

import pytest

from configs import leakage, mechanism, travel
from cxr_jax import experiment, main, tables
from tests.phantoms import SMALL
from tests.test_mechanism_run import NONE

pytestmark = pytest.mark.slow
MAP = {
    "dataset.table": "Data_Entry_2017_v2020.csv", "dataset.findings": ("*=Finding Labels",), "dataset.open_data": True,
    "dataset.columns": ("image_id=Image Index", "patient_id=Patient ID", "sex=Patient Gender", "age=Patient Age", "view=View Position"),
}  # fmt: skip


def run(module, argument, nih_sample, folder, **diff):
    config = module.get_config(argument)
    small = {name: value for name, value in SMALL.items() if not name.startswith(("train.augment", "checkpoint"))}
    data = {"dataset.raw_dir": str(nih_sample), "dataset.data_dir": str(folder / "data"), "dataset.host_cache_gib": 1.0}
    config = experiment.apply_diff(config, {**small, **data, "train.epochs": 4, **diff})
    experiment.validate(config)
    main.run(config, folder / module.__name__, command="the command")
    return folder / module.__name__


@pytest.mark.parametrize(("argument", "more"), [("nih", {}), ("table.clinic", MAP)])
def test_what_a_network_reads(nih_sample, tmp_path, argument, more):
    few = {
        **NONE, "mechanism.series.low_pass": (4.0, 16.0), "mechanism.series.published_low_pass": (8.0, 32.0), "mechanism.series.histogram_matched": (1.0,), "mechanism.series.attacked": (1.0,),
        "mechanism.maps.patients": 24, "mechanism.maps.steps": 4, "mechanism.maps.box": 128, "mechanism.maps.stride": 64, "mechanism.maps.shuffled_labels": True,
    }  # fmt: skip
    workdir = run(mechanism, argument, nih_sample, tmp_path, **few, **more, **{"train.targets": ("sex", "findings"), "probe.targets": ("sex",)})
    found, text = tables.read_json(workdir / "mechanism_audit.json"), (workdir / "mechanism.html").read_text()
    (sex,) = (row for row in found["rows"] if row["target"] == "sex" and row["series"] is None and row["class"] == "macro")
    assert sex["n_patients"] == sex["n_images"] > 100 and sex["low"] < sex["value"] < sex["high"]
    assert "A test image, of data that are open" in text and "Low-pass as published" in text and "Where it looks" in text and "by sex" in text
    assert {row["factor"] for row in found["acquisition"]["rows"]} >= {None, "view", "exposure", "field_of_view", "age", "findings"}


def test_what_holds_elsewhere_and_what_is_given_away(nih_sample, tmp_path):
    travels = run(travel, "nih", nih_sample, tmp_path, **{"predict.datasets": ("phantom.planted",), "audit.case_mix": ()})
    found, text = tables.read_json(travels / "travel_audit.json")["phantom.planted"], (travels / "travel.html").read_text()
    assert {row["class"] for row in found["absent"]} >= {"Hernia", "Nodule"} and "On phantom.planted" in text and "says anything about people" not in text
    diff = {"probe.targets": ("sex", "age_band"), "mitigate.attribute": "sex", "audit.case_mix": ()}
    leaks = run(leakage, "nih", nih_sample, tmp_path, **diff)
    found, text = tables.read_json(leaks / "leakage_audit.json"), (leaks / "leakage.html").read_text()
    assert all(row["value"] is None and row["n_patients"] == 0 for row in found["reidentification"]["rows"]) and "no patient has two studies here" in text
    (auc,) = (row for row in found["membership"]["rows"] if row["metric"] == "auc" and row["attribute"] == "all")
    assert auc["n_members"] > 200 and auc["low"] < auc["value"] < auc["high"]
