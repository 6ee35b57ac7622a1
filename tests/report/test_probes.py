"""The report of probes: says what the intervals allow and no more, holds nothing about one image, and stands alone."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from configs import base
from cxr_jax import tables
from cxr_jax.audit import readings
from cxr_jax.report import html as report
from cxr_jax.report import probes
from tests.audit.test_readings import IMAGES, drawn, settings
from tests.report.test_html import Page


def workdir_of(folder, made, vectors, open_data=False, **changes):
    """A workdir of a user's own embeddings: probes, and nothing of our models."""
    config = base.get_config()
    config.name = "Probes"
    tables.write_json(folder / "config.json", config.to_dict())
    tables.write_json(folder / "config_diff.json", {})
    record = {"stages": {}, "dataset": {"name": "mine", "open_data": open_data, "invented_groups": False}}
    tables.write_json(folder / "run.json", record)
    tables.write_json(folder / "probe_audit.json", {**readings.audit(made, vectors, settings(), open_data), **changes})
    return folder


@pytest.fixture(scope="module")
def vectors():
    return np.random.default_rng(1).normal(size=(IMAGES, 12)).astype(np.float32)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, vectors):
    return workdir_of(tmp_path_factory.mktemp("probed"), drawn(), vectors)


@pytest.fixture(scope="module")
def page(workdir):
    path = report.write(workdir)
    return Page(path.read_text())


def test_the_page_answers_first_and_asks_for_nothing_from_elsewhere(page, workdir):
    first = next(attrs for tag, attrs in page.elements if tag == "img")
    assert first["alt"].startswith("AUC by probe.") and first["src"].startswith("data:image/svg+xml")
    assert not [attrs for _, attrs in page.elements for key in ("src", "href") if str(attrs.get(key, "")).startswith("http")]
    for name in ("probes_race", "probe_strata_race"):
        assert (workdir / "figures" / f"{name}.svg").exists(), name
    before = (workdir / "report.html").read_bytes()
    assert report.write(workdir).read_bytes() == before


def test_words_claim_what_the_intervals_allow(page):
    assert re.search(r"On 240 test images of 120 patients, logistic regression tells race as recorded from the features", page.text)
    assert "The whole interval lies above 0.5, what guessing reaches: logistic regression" in page.text
    assert "That is more than the same probe finds in an untrained network's features" in page.text
    assert "Within view AP alone it is still found, best by logistic regression" in page.text
    assert "Within view PA alone nothing can be said" in page.text


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.51, 0.6, "The whole interval lies above 0.5, what guessing reaches"),
        (0.49, 0.6, "The interval covers 0.5: no evidence of it"),
        (0.5, 0.6, "The interval covers 0.5: no evidence of it"),
        (0.3, 0.49, "The whole interval lies below 0.5, by chance or by an error"),
        (np.nan, np.nan, "Without an interval, nothing can be said"),
    ],
)
def test_verdicts(low, high, verdict):
    assert probes._verdict(pd.Series({"low": low, "high": high, "value": 0.5})) == verdict


def test_a_difference_that_does_not_survive_correction_is_not_claimed(tmp_path, vectors):
    found = readings.audit(drawn(), vectors, settings(), False)
    compared = [c | {"p_adjusted": 0.2} for c in found["comparisons"]]
    text = Page(report.write(workdir_of(tmp_path, drawn(), vectors, comparisons=compared)).read_text()).text
    assert "That is more than" not in text and "It is not shown to be more than the same probe finds in" in text


def test_a_map_of_cells_that_are_all_withheld_is_not_drawn(page):
    assert "Not drawn: first two principal components: every cell would show too few patients" in page.text


def test_nothing_about_one_image_or_patient(page, workdir):
    told = (workdir / "report.html").read_text() + "".join(p.read_text() for p in (workdir / "figures").glob("*.svg"))
    made = drawn().table
    for name in [*made["image_id"].head(20), *made["patient_id"].head(20)]:
        assert not re.search(rf"\b{name}\b", told), name
    shown = json.loads((workdir / "probe_audit.json").read_text())
    assert "points" not in json.dumps(shown["space"]["maps"])


def test_a_small_class_is_withheld_in_words_and_tables(tmp_path, vectors):
    made = drawn(few=True)
    text = Page(report.write(workdir_of(tmp_path, made, vectors)).read_text()).text
    assert "What the features know of race as recorded cannot be said: withheld for C" in text
    assert str(int((made.table["label_race"] == "C").sum())) not in re.findall(r"(?<![\d.])\d+(?![\d.])", text.split("Every reading")[1].split("Do clusters")[0].split("Which features")[0])


def test_open_data_show_points(tmp_path, vectors):
    path = report.write(workdir_of(tmp_path, drawn(), vectors, open_data=True))
    assert "Each point is one of 240 test images of 120 patients" in Page(path.read_text()).text
    for name in ("features_components", "features_neighbours"):
        assert (tmp_path / "figures" / f"{name}.svg").exists(), name


def test_terminal(workdir):
    lines = report.auc_table(workdir).splitlines()
    assert lines[0] == "AUC of probes for race, test images, macro over classes"
    assert any(re.match(r"logistic regression on the features +0\.\d{3} +0\.\d{3} to 0\.\d{3} +240 +120$", line) for line in lines)


def test_a_broken_file_is_told(tmp_path, vectors):
    folder = workdir_of(tmp_path, drawn(), vectors)
    found = json.loads((folder / "probe_audit.json").read_text())
    del found["space"]
    (folder / "probe_audit.json").write_text(json.dumps(found))
    with pytest.raises(tables.UserError, match="probe_audit.json: no field 'space'; run the audit stage again"):
        report.write(folder)
    (folder / "probe_audit.json").write_text("{")
    with pytest.raises(tables.UserError, match="not JSON"):
        report.write(folder)
