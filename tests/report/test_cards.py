"""The model card and the data sheet say what the run wrote down, and of the rest that nobody did."""

import json
import re

import pytest

from cxr_jax.report import cards, html

MODEL = ["Model", "Intended use", "Factors", "Metrics", "Training data", "Evaluation data", "Quantitative analyses", "Ethical considerations", "Caveats"]
SHEET = ["Motivation", "Composition", "Collection", "Preprocessing and labels", "Uses", "Distribution", "Maintenance"]


def both(path):
    """{heading: text} of the model card, and of the data sheet, on a workdir's page."""
    page = html.write(path).read_text()
    sections = [re.search(f'<section id="{name}">(.*?)</section>', page, re.DOTALL)[1] for name in ("card", "sheet")]
    return [dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", section, re.DOTALL)) for section in sections]


def edit(path, name, change):
    value = json.loads((path / name).read_text())
    change(value)
    (path / name).write_text(json.dumps(value))


def test_of_a_model_of_ours(workdir):
    path = workdir("race")
    edit(path, "config.json", lambda c: c.update(model={"blocks": [6, 12, 24, 16], "growth": 32}))
    edit(path, "config.json", lambda c: c["train"].update(learning_rate=1e-4, schedule="constant", batch_size=32))
    edit(path, "config.json", lambda c: c["dataset"].update(views=["AP", "PA"], aspect="squash", uncertain="ignore", split_rule="patient_hash"))
    model, sheet = both(path)
    assert list(model) == MODEL and list(sheet) == SHEET
    assert "DenseNet-121, growth 32" in model["Model"] and "Adam at 0.0001 (constant), 3 epochs, batches of 32, seed 0" in model["Model"]
    assert "must not be used on anybody" in model["Intended use"] and "group (invented)" in model["Factors"]
    assert re.search(r"Test images of phantom planted 1.0.0: [\d,]+ of [\d,]+ patients", model["Evaluation data"])
    assert "chosen on" in model["Metrics"] or "cross-fitted" in model["Metrics"]
    assert "macro AUC" in model["Quantitative analyses"] and "invented" in model["Ethical considerations"]
    assert "Drawn by a program" in sheet["Collection"] and "AP or PA" in sheet["Preprocessing and labels"] and "counts as unknown" in sheet["Preprocessing and labels"]
    assert "3 files of the release could not be read" in sheet["Composition"]
    assert "Trained from random weights by Adam" in model["Model"]

    edit(path, "config.json", lambda c: c["model"].update(init_from="/home/somebody/xrv.safetensors"))
    edit(path, "config.json", lambda c: c["train"].update(freeze=3))
    model = both(path)[0]["Model"]
    assert "Trained from the weights of xrv.safetensors by Adam" in model and "somebody" not in model
    assert "; the stem and 2 of 4 dense blocks stayed as they were." in model


def test_of_data_that_are_not_open_no_totals_are_told(workdir):
    path = workdir("findings")
    edit(path, "run.json", lambda run: run["dataset"].update(open_data=False, invented_groups=False))
    model, sheet = both(path)
    patients = json.loads((path / "run.json").read_text())["dataset"]["images"]
    assert f"{patients:,}" not in sheet["Composition"] and "in the tables above" in sheet["Composition"]
    assert sheet["Motivation"] == cards.UNKNOWN and "who agreed" in sheet["Collection"] and "by agreement" in sheet["Distribution"]
    assert "no medical device" in model["Intended use"] and "as they were recorded" in model["Ethical considerations"]


@pytest.mark.parametrize("without_patients", [False, True])
def test_of_predictions_from_outside_it_claims_nothing(audit_only, without_patients):
    path = audit_only("sex")
    outside = {"file": "mine.csv", "images": 400, "columns": {"image_id": "a"}, "said": [], "without_patients": without_patients}

    def replace(run):
        del run["dataset"], run["headline"]
        run["outside"] = outside

    edit(path, "run.json", replace)
    model, sheet = both(path)
    assert "Unknown: its predictions came from outside, in mine.csv" in model["Model"]
    assert model["Intended use"] == model["Training data"] == sheet["Collection"] == cards.UNKNOWN
    assert "DenseNet" not in model["Model"] and "Adam" not in model["Model"]
    assert "400 rows, one an image" in sheet["Composition"] and ("which images are of the same patient" in sheet["Composition"]) == without_patients
