"""A model judged elsewhere, as a user runs it: to its page, again with other places, and to the matrix of several homes."""

import json
import shutil

import pandas as pd
import pytest

from cxr_jax import compare as program
from cxr_jax import experiment, main, tables
from cxr_jax.report import compare, travel
from cxr_jax.tables import Predictions, UserError
from tests.phantoms import PLAIN, small_config

STAGES = ("prepare", "train", "predict", "audit", "report")
DIFF = {"train.targets": ("findings", "sex"), "train.epochs": 1, "stages": STAGES, "audit.min_patients": 2, "audit.case_mix": (), "audit.intersections": ()}


def config_of(phantom_dir, *places, **diff):
    return experiment.apply_diff(small_config(phantom_dir, **PLAIN), {**DIFF, "predict.datasets": places, **diff})


@pytest.fixture(scope="module")
def finished(phantom_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("travel")
    main.run(config_of(phantom_dir, "phantom.null"), folder / "planted", command="the command")
    return folder


def test_what_is_judged_elsewhere_is_the_same_network_on_other_images(finished):
    home, there = (Predictions.read(finished / "planted" / path) for path in ("predictions.parquet", "predictions_on/phantom.null.parquet"))
    assert home.targets == there.targets and set(there.table["split"]) == {"validation", "test"}
    # Variants hold the same patients, drawn anew: scores differ, who is who does not.
    assert set(home.table["patient_id"]) == set(there.table["patient_id"])
    assert not home.table["score_F"].equals(there.table["score_F"])
    found = tables.read_json(finished / "planted" / "travel_audit.json")
    assert list(found) == ["phantom.null"]
    rows = [row for row in found["phantom.null"]["rows"] if row["attribute"] == "all" and row["effect"] is None]
    recorded = json.loads((finished / "planted" / "audit.json").read_text())
    for row in (row for row in rows if row["where"] == "home" and row["class"] != "macro"):
        (own,) = (one for one in recorded if one["metric"] == "auc" and one["class"] == row["class"] and one["attribute"] == "all" and one["split"] == "test")
        assert (row["value"], row["low"], row["n_images"]) == (own["value"], own["low"], own["n_images"])


def test_its_page_says_what_holds_there(finished):
    text = (finished / "planted" / "travel.html").read_text()
    assert "On phantom.null" in text and "Sex: macro AUC" in text and "What the mix explains" in text
    assert {path.name for path in (finished / "planted" / "figures").glob("travel_*")} == {"travel_phantom.null_findings.svg", "travel_phantom.null_sex.svg"}


@pytest.mark.slow
def test_homes_and_places_make_a_matrix(finished, phantom_dir, tmp_path, capsys):
    main.run(config_of(phantom_dir, "phantom.planted", **{"dataset.variant": "null"}), finished / "null", command="the command")
    found = compare.read([finished])
    assert [one.everyone.title.split(",")[0] for one in found.travelled] == ["Macro AUC of findings", "Macro AUC of sex"]
    for one in found.travelled:
        assert {line.run for line in one.everyone.lines} == {f"learnt on phantom.{h}, judged on phantom.{p}" for h in ("planted", "null") for p in ("planted", "null")}
        assert "learnt on" in one.drawn.svg or one.drawn.alt.count("from phantom.") == 4
    assert program.main(["compare", str(finished), f"--html={tmp_path / 'page.html'}"]) == 0
    assert "learnt on phantom.null, judged on phantom.planted" in capsys.readouterr().out
    assert "by where it was learnt and where it is judged" in (tmp_path / "page.html").read_text()


@pytest.mark.slow
def test_places_are_gone_with_the_predictions_on_them(finished, phantom_dir, tmp_path):
    workdir = shutil.copytree(finished / "planted", tmp_path / "planted")
    main.run(config_of(phantom_dir, **{"stages": ("prepare", "train", "predict")}), workdir, command="the command")
    assert not (workdir / "predictions_on").exists() and not (workdir / "travel_audit.json").exists()
    main.run(config_of(phantom_dir), workdir, command="the command")
    assert not (workdir / "travel.html").exists() and "travel.html" not in (workdir / "report.html").read_text()


def test_counts_of_data_that_are_not_open_are_rounded(finished):
    of = tables.read_json(finished / "planted" / "travel_audit.json")["phantom.null"]
    about = tables.read_json(finished / "planted" / "run.json")["travelled"]["phantom.null"]
    closed = travel._place("phantom.null", of, str, {**about, "open_data": False}, lambda rows: rows, 11)
    (table, *_), (n,) = closed.details[0][1], {row["n_images"] for row in of["rows"] if row["where"] == "abroad" and row["class"] == "F" and row["attribute"] == "all" and row["effect"] is None}
    shown = pd.Series([cells[1][0].split(" / ")[0] for _, cells in table["lines"]]).str.replace(",", "").astype(int)
    assert n % 11 and (shown % 11 == 0).all() and (shown <= n).all()
    assert "902" not in " ".join(closed.said)


@pytest.mark.parametrize(
    ("places", "told"),
    [
        (("phantom.planted",), "phantom.planted is the data set trained on"),
        (("phantom.nul",), "no such phantom; did you mean 'null'"),
        (("nih",), "config.predict.datasets=nih: config.dataset.raw_dir of a config of its own is not set"),
        (("phantom.null", "phantom.null"), "each once"),
        (("phantom.acquisition", "phantom.null", "phantom.null"), "each once"),
    ],
)
def test_places_that_there_are_not_are_told_before_training(phantom_dir, tmp_path, places, told):
    config = config_of(phantom_dir, *places)
    with pytest.raises(UserError, match=told):
        experiment.validate(config)
        main.run(config, tmp_path, command="the command")
    assert not (tmp_path / "checkpoints").exists()
