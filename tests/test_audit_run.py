"""Predictions made outside, from a file to a report, as a user starts it: what is said of them, and what is left alone."""

import numpy as np
import pytest

from configs import audit, base, race
from cxr_jax import experiment, main, tables
from cxr_jax.tables import Predictions, UserError
from tests.audit.test_intake import races
from tests.phantoms import command


def config(path, **fields):
    diff = {"predictions": str(path), "replicates": 100, **fields}
    return experiment.apply_diff(audit.get_config(), {f"audit.{name}": value for name, value in diff.items()})


@pytest.fixture
def table():
    return races(2000)


def test_one_command_makes_a_report_of_a_file(tmp_path, table):
    """No split, no patient: the page says what was taken for what, and what the missing patients cost."""
    table.to_csv(tmp_path / "mine.csv", index=False)
    arguments = ["--config=configs/audit.py", f"--config.audit.predictions={tmp_path / 'mine.csv'}", "--config.audit.replicates=100"]
    done = command(*arguments, workdir=tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "2,000 images" in done.stdout and "score_White <- p_white" in done.stdout and "each image passes for a patient" in done.stdout
    outside = tables.read_json(tmp_path / "run" / "run.json")["outside"]
    assert outside["columns"]["sex"] == "gender" and outside["images"] == 2000 and outside["without_patients"]
    predictions = Predictions.read(tmp_path / "run" / "predictions.parquet")
    np.testing.assert_allclose(predictions.table["score_Black"], table["p_black"])
    rows = tables.read_json(tmp_path / "run" / "audit.json")
    assert {row["group"] for row in rows if row["attribute"] == "race"} >= {"White", "Black", "Asian"}
    page = (tmp_path / "run" / "report.html").read_text()
    assert "What was taken for what" in page and "<code>score_White</code>" in page and "p_white" in page
    assert "does not say which images are of the same patient" in page and all(one in page for one in outside["said"])


def test_without_a_file_it_says_how_to_name_one(tmp_path):
    done = command("--config=configs/audit.py", workdir=tmp_path / "run")
    assert done.returncode == 1 and not (tmp_path / "run").exists()
    assert done.stderr.strip() == "error: config.audit.predictions=None: name the file of your predictions with --config.audit.predictions=FILE"


def test_a_file_that_says_something_else_is_judged_anew(tmp_path, table, capsys):
    path, workdir, table = tmp_path / "mine.parquet", tmp_path / "run", table[:400]
    few = {"attributes": ("race",), "intersections": ()}  # which groups are judged, others tell
    table.to_parquet(path)
    main.run(config(path, **few), workdir, command="the command")
    main.run(config(path, **few), workdir, command="the command")
    assert "this run is done" in capsys.readouterr().out
    table.assign(patient_id=table.index // 2).to_parquet(path)
    main.run(config(path, **few), workdir, command="the command")
    assert len(set(Predictions.read(workdir / "predictions.parquet").table["patient_id"])) == 200
    assert "of the same patient" not in (workdir / "report.html").read_text()


def test_nothing_but_what_came_from_outside_is_overwritten(tmp_path, table):
    path, workdir = tmp_path / "mine.csv", tmp_path / "run"
    table.to_csv(path, index=False)
    ours = experiment.apply_diff(race.get_config(), {"stages": ("audit", "report")})
    experiment.Run(workdir, ours, base.get_config(), "the command").write()
    (workdir / "predictions.parquet").write_bytes(b"another's")
    before = {p.name: p.read_bytes() for p in workdir.iterdir()}
    same_model = experiment.apply_diff(ours.copy_and_resolve_references(), {"audit.predictions": str(path)})
    with pytest.raises(UserError, match="holds a run, or predictions, of its own, which config.audit.predictions would overwrite"):
        main.run(same_model, workdir, command="the command")
    assert {p.name: p.read_bytes() for p in workdir.iterdir()} == before
    (workdir / "predictions.parquet").unlink()
    (workdir / "checkpoints").mkdir()
    with pytest.raises(UserError, match="holds a run"):
        main.run(same_model, workdir, command="the command")


def test_a_mistake_leaves_no_predictions(tmp_path, table):
    table.assign(p_white=2.0).to_csv(tmp_path / "mine.csv", index=False)
    with pytest.raises(UserError, match="row 1, column 'p_white'"):
        main.run(config(tmp_path / "mine.csv"), tmp_path / "run", command="the command")
    assert not (tmp_path / "run" / "predictions.parquet").exists()
    with pytest.raises(UserError, match="config.audit.predictions: .*gone.csv: not a readable file"):
        main.run(config(tmp_path / "gone.csv"), tmp_path / "other", command="the command")


def test_what_is_not_recorded_is_said_by_the_audit(tmp_path, table):
    """A label without a single word, and an attribute that there is not."""
    table.assign(race=None, patient_id=table.index).to_csv(tmp_path / "mine.csv", index=False)
    main.run(config(tmp_path / "mine.csv", label="race", attributes=("race", "insurance")), tmp_path / "run", command="the command")
    rows = tables.read_json(tmp_path / "run" / "audit.json")
    assert {row["reason"] for row in rows if row["attribute"] in ("race", "insurance")} == {"no race is recorded", "no insurance is recorded"}
    assert (tmp_path / "run" / "report.html").exists()
