"""A sweep's file, what is made of it, and the command line that runs it."""

import json
import pathlib
import subprocess
import sys
import types

import numpy as np
import pandas as pd
import pytest

from configs import base, mitigate
from cxr_jax import experiment, main, sweeps, tables
from cxr_jax.tables import Predictions, Target, UserError
from tests.phantoms import ROOT, SMALL, as_user, command, small_config

FILE = """
from configs import base, race
from cxr_jax import experiment

def get_base():
    return experiment.apply_diff(race.get_config(), {small!r} | {{"stages": {stages!r}}})

def get_diffs():
    return {diffs!r}
"""
DIFFS = {"wide": {"model.growth": 8}, "plain": {}, "short": {"train.epochs": 1}}


def write(tmp_path, diffs=DIFFS, stages=("prepare",), name="widths"):
    """A sweep's file with two functions and no more."""
    path = tmp_path / "sweeps" / f"{name}.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text(FILE.format(small=SMALL, stages=stages, diffs=diffs))
    return path


def test_each_run_is_the_base_its_diff_and_the_overrides(tmp_path):
    sweep = sweeps.read(str(write(tmp_path)))
    configs = sweep.configs({"seed": 7})
    assert list(configs) == ["wide", "plain", "short"]
    plain = experiment.apply_diff(race_small(), {"seed": 7, "stages": ("prepare",)})
    assert experiment.fields(configs["plain"]) == experiment.fields(plain)
    changed = {name: {field: v["run"] for field, v in experiment.diff(config, plain).items()} for name, config in configs.items()}
    assert changed == {"wide": {"model.growth": 8}, "plain": {}, "short": {"train.epochs": 1}}  # and none has another's
    assert list(sweep.configs({}, only="short")) == ["short"]
    assert sweep.record("short") == {"name": "widths", "run": "short", "runs": ["plain", "wide", "short"]}


def race_small():
    config = small_config("")
    return experiment.apply_diff(config, {"dataset.data_dir": ""})


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("signal", {"full": {}, "half": {"dataset.phantom.signal": 0.5}, "none": {"dataset.phantom.signal": 0.0}}),
        ("batch", {"of_32": {}, "of_256": {"train.batch_size": 256, "train.recipe_batch_size": 32}, "of_256_unscaled": {"train.batch_size": 256}}),
    ],
)
def test_a_shipped_sweep_changes_its_own_fields_alone(name, changed):
    sweep = sweeps.read(str(ROOT / "configs" / "sweeps" / f"{name}.py"))
    found = {run: experiment.diff(config, sweep.base()) for run, config in sweep.configs({}).items()}
    assert {run: {field: values["run"] for field, values in diff.items()} for run, diff in found.items()} == changed
    assert experiment.fields(sweep.base()).keys() == experiment.fields(base.get_config()).keys()


@pytest.mark.parametrize(
    ("diffs", "overrides", "only", "told"),
    [
        (DIFFS, {}, "widest", "no run 'widest'; known: wide, plain, short"),
        ({"a": {}, "b": {"train.epoch": 1}}, {}, "a", "in 'b': no config field 'train.epoch'; did you mean 'train.epochs'"),
        ({"a": {}, "b": {"train.schedule": "linear"}}, {}, "", "in 'b': config.train.schedule='linear'"),
        ({"a": {}, "b": {"train.epochs": "many"}}, {}, "", "in 'b': Could not override field 'epochs'"),
        (DIFFS, {"model.growth": 16}, "", "--config.model.growth: the sweep itself sets it, in 'wide'"),
        ({}, {}, "", "get_diffs.. must give"),
        ({"a": 3}, {}, "", "get_diffs.. must give"),
        ({"a/b": {}}, {}, "", "'a/b' is to name a run and its folder"),
        ({".hidden": {}}, {}, "", "'.hidden' is to name a run"),
        ({"a": {"extract.weights": "sweep:b"}, "b": {}}, {}, "", "in 'a': 'sweep:b' is to be a run of this sweep that comes before; there are none"),
    ],
)
def test_a_mistake_in_a_sweep_is_told(tmp_path, diffs, overrides, only, told):
    with pytest.raises(UserError, match=told) as caught:
        sweeps.read(str(write(tmp_path, diffs))).configs(overrides, only)
    assert "\n" not in str(caught.value)


def test_what_another_run_of_the_sweep_trained_is_named_by_its_folder(tmp_path):
    sweep = sweeps.read(str(write(tmp_path, {"a": {}, "b": {"extract.weights": "sweep:a"}})))
    configs = sweep.configs({}, folder=tmp_path / "runs")
    assert configs["b"].extract.weights == str(tmp_path / "runs" / "a") and configs["a"].extract.weights == "best"
    assert sweep.configs({}, "b", tmp_path / "runs")["b"].extract.weights == str(tmp_path / "runs" / "a")


@pytest.mark.parametrize("name", ["mitigation", "mitigation_tiny"])
def test_the_field_of_mitigations_has_every_method_on_every_seed(name):
    sweep = sweeps.read(str(ROOT / "configs" / "sweeps" / f"{name}.py"))
    configs = sweep.configs({}, folder=pathlib.Path("runs"))
    methods = {run.rpartition("-")[0] for run in configs}
    seeds = {run.rpartition("-")[2] for run in configs}
    assert set(configs) == {f"{method}-{seed}" for method in methods for seed in seeds}
    assert methods == {"erm", *mitigate.METHODS} if name == "mitigation" else methods >= {"erm", "reweight", "group_dro", "dann", "leace", "thresholds_by_group"}
    for run, config in configs.items():
        method, _, seed = run.rpartition("-")
        assert config.seed == int(seed) and ("train" in config.stages) == (config.extract.weights == "best")
        assert config.extract.weights in ("best", f"runs/erm-{seed}")
        changed = experiment.diff(config, sweep.base())
        wanted = experiment.apply_diff(sweep.base(), mitigate.METHODS.get(method, {}))
        own = {"extract.weights", "stages"} if config.extract.weights != "best" else set()
        assert set(changed) == set(experiment.diff(wanted, sweep.base())) | own | ({"seed"} if config.seed else set())


def test_a_sweep_needs_both_functions(tmp_path):
    path = write(tmp_path)
    path.write_text("def get_base():\n    pass\n")
    with pytest.raises(UserError, match=r"no get_diffs\(\)"):
        sweeps.read(str(path))
    with pytest.raises(UserError, match="no such sweep"):
        sweeps.read(str(tmp_path / "sweeps" / "other.py"))


def test_a_sweep_that_lies_elsewhere_is_told_where_sweeps_lie(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def get_base():\n    pass\n\ndef get_diffs():\n    return {}\n")
    done = subprocess.run([sys.executable, "-m", "cxr_jax.main", f"--config={path}"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode and f"{path}: no get_config(); a config has one, and a sweep" in done.stderr and "Traceback" not in done.stderr


def test_which_configs_are_sweeps():
    assert sweeps.is_sweep("configs/sweeps/signal.py") and sweeps.is_sweep("configs/sweeps/signal.py:half")
    assert not sweeps.is_sweep("configs/race.py:tiny") and not sweeps.is_sweep("configs/sweeps.py")


def run(path, workdir, *more, **environment):
    """Of the program in a process of its own: (status, lines of stdout, lines of stderr)."""
    done = command(f"--config={path}", *more, workdir=workdir, **environment)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout.splitlines(), done.stderr.strip().splitlines()


@pytest.mark.parametrize(("end", "names", "own"), [("", ["wide", "plain", "short"], False), (":plain", ["plain"], True)])
def test_the_command_line_asks_for_all_runs_or_for_one_in_the_same_folder(tmp_path, end, names, own):
    program = (
        "import json, sys; from cxr_jax import main\n"
        "print(json.dumps([(str(w), s['run'], c.model.growth, c.train.epochs, c.train.learning_rate) for c, w, s in main.parse(sys.argv)]))"
    )
    folder = tmp_path / "runs" if own else "runs/widths"
    asked = [f"--config={write(tmp_path)}{end}", "--config.train.learning_rate=0.25", *([f"--workdir={folder}"] if own else [])]
    done = subprocess.run([sys.executable, "-c", program, *asked], cwd=ROOT, env=as_user(), capture_output=True, text=True)
    values = {"wide": (8, 2), "plain": (4, 2), "short": (4, 1)}
    assert json.loads(done.stdout) == [[f"{folder}/{name}", name, *values[name], 0.25] for name in names], done.stderr


def sweep_of(tmp_path, monkeypatch, diffs) -> int:
    """The status of the program, within this process, for all runs of a sweep that audits what lies in its runs' folders."""
    sweep = sweeps.read(str(write(tmp_path, diffs, stages=("audit",))))
    runs = [(config, tmp_path / "runs" / name, sweep.record(name)) for name, config in sweep.configs({}).items()]
    monkeypatch.setattr(main, "parse", lambda argv: runs)
    monkeypatch.setattr(main, "DISTRIBUTED", types.SimpleNamespace(value=False))  # absl gives it only after parsing
    return main.main(["main"])


def predict(folder):
    """Predictions of one's own, for the audit stage."""
    ids = np.arange(60).astype(str)
    table = pd.DataFrame({"image_id": ids, "patient_id": ids, "split": "test", "label_sex": np.where(ids.astype(int) % 2, "F", "M")})
    score = np.random.default_rng(0).random(60)
    Predictions(table.assign(score_F=score, score_M=1 - score), {"sex": Target("multiclass", ("F", "M"))}).write(folder / "predictions.parquet")


def test_a_sweep_stops_at_a_mistake_and_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    runs, diffs = tmp_path / "runs", {"first": {}, "second": {"audit.seed": 2}, "third": {"audit.seed": 1}}
    for name in ("first", "third"):
        predict(runs / name)
    assert sweep_of(tmp_path, monkeypatch, diffs) == 1
    said, told = capsys.readouterr()
    assert told.startswith(f"error: in 'second': {runs / 'second' / 'predictions.parquet'}: ") and told.count("\n") == 1
    record = tables.read_json(runs / "first" / "run.json")
    assert record["status"] == "done" and record["sweep"] == {"name": "widths", "run": "first", "runs": ["first", "second", "third"]}
    assert tables.read_json(runs / "second" / "run.json")["status"] == "failed"
    assert not (runs / "third" / "run.json").exists() and "compare" not in said

    predict(runs / "second")
    assert sweep_of(tmp_path, monkeypatch, diffs) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"to compare them: python -m cxr_jax.compare {runs}"
    assert [line for line in lines if line.startswith("widths: ")] == [
        f"widths: {name}, {i} of 3, in {runs / name}" for i, name in enumerate(diffs, 1)
    ]
    assert len([line for line in lines if line.startswith("this run is done")]) == 1
    assert tables.read_json(runs / "first" / "run.json") == record
    assert [tables.read_json(runs / name / "config.json")["audit"]["seed"] for name in diffs] == [0, 2, 1]


@pytest.mark.parametrize(("end", "more", "told"), [
    (":widest", [], "no run 'widest'; known: wide, plain, short"),
    ("", ["--config.train.warmup_epochs=1.5"], "in 'short': config.train.warmup_epochs=1.5"),
])  # fmt: skip
def test_a_mistake_is_one_line_before_anything_runs(tmp_path, end, more, told):
    status, _, lines = run(f"{write(tmp_path)}{end}", tmp_path / "runs", *more)
    assert status == 1 and len(lines) == 1 and lines[0].startswith("error: ") and told in lines[0]
    assert not (tmp_path / "runs").exists()


def test_a_sweep_is_not_run_in_the_folder_of_a_run(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "run.json").write_text("{}")
    status, _, lines = run(write(tmp_path), tmp_path / "runs")
    assert status == 1 and "holds a run; name another folder" in lines[-1]


# Slow: three whole runs. That a sweep's runs are those of main is held above, and what such a run does by tests/test_main.py.
@pytest.mark.slow
def test_a_whole_sweep_can_be_compared(tmp_path, phantom_dir):
    from cxr_jax.report import compare

    path = write(tmp_path, stages=("prepare", "train", "predict", "audit", "report"))
    status, said, _ = run(path, tmp_path / "runs", TFDS_DATA_DIR=str(phantom_dir))
    assert status == 0
    told = compare.text(compare.read([tmp_path / "runs"]))
    assert "3 runs; differences are from the first, plain" in told and "model.growth" in told and "train.epochs" in told


@pytest.mark.slow
def test_a_batch_of_256_learns_what_one_of_32_learns_if_its_rate_is_scaled(tmp_path, phantom_dir):
    """As far as one run tells: from draw to draw the difference moves by half a hundredth. Without scaling it has less, and is behind the scaled."""
    from cxr_jax.report import compare

    status, *_ = run("configs/sweeps/batch.py", tmp_path / "runs", f"--config.dataset.data_dir={phantom_dir}")
    assert status == 0
    (race,) = compare.read([tmp_path / "runs"]).targets
    differences = {line.run: line.difference for line in race.macro.lines}
    scaled, unscaled = differences["of_256"], differences["of_256_unscaled"]
    assert abs(scaled.value) < 0.015
    assert unscaled.high < 0 and unscaled.value < scaled.value - 0.005
