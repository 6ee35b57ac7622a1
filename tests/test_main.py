"""The whole of a run, as a user starts it: from a config to a report, again, elsewhere, and with every mistake in one line."""

import json
import shutil
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pandas as pd
import pytest

from configs import race, sex
from cxr_jax import experiment, main, tables
from cxr_jax.tables import Predictions, Target, UserError
from cxr_jax.training import metrics_log
from tests.phantoms import PLAIN, ROOT, SMALL, as_user, command, small_config


@pytest.fixture(scope="module")
def finished(phantom_dir, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    config = small_config(phantom_dir)
    main.run(config, workdir, command="the command")
    return config, workdir


def test_a_run_leaves_what_it_should(finished):
    config, workdir = finished
    for name in ("config.json", "config_diff.json", "run.json", "cohort.parquet", "metrics.jsonl", "predictions.parquet", "audit.json", "report.html", "quarantine.csv"):
        assert (workdir / name).stat().st_size > 0, name
    record = tables.read_json(workdir / "run.json")
    assert record["status"] == "done" and record["dataset"]["name"] == "phantom" and record["wall_seconds"] > 0
    assert "A reduced run" in record["headline"] and record["headline"] in (workdir / "report.html").read_text()
    assert not list(workdir.glob(".*partial"))


def test_predictions_are_the_cohort_s_held_out_rows(finished):
    _, workdir = finished
    predictions = Predictions.read(workdir / "predictions.parquet")
    cohort, _ = tables.read_parquet(workdir / "cohort.parquet")
    held_out = cohort[cohort["split"] != "train"].set_index("image_id")
    table = predictions.table.set_index("image_id")
    assert set(table.index) == set(held_out.index)
    held_out = held_out.loc[table.index]
    np.testing.assert_array_equal(table["label_race"], held_out["race"])
    np.testing.assert_array_equal(predictions.scores("race", "ceiling_"), held_out[[f"ceiling_{g}" for g in predictions.targets["race"].classes]])
    np.testing.assert_allclose(predictions.scores("race").sum(1), 1, rtol=1e-5)
    assert predictions.has_ceiling("race") and predictions.open_data


def test_the_audit_judges_the_test_split_with_its_n(finished):
    _, workdir = finished
    rows = tables.read_json(workdir / "audit.json")
    cohort, _ = tables.read_parquet(workdir / "cohort.parquet")
    test = cohort[cohort["split"] == "test"]
    macro = [r for r in rows if (r["metric"], r["class"], r["attribute"]) == ("auc", "macro", "all")]
    assert len(macro) == 1
    assert macro[0]["n_images"] == len(test) and macro[0]["n_patients"] == test["patient_id"].nunique()
    assert {"auc", "auc_ceiling", "auc_difference", "average_precision", "accuracy", "brier"} <= {r["metric"] for r in rows}


def test_run_again_it_says_so_and_touches_nothing(finished, capsys):
    config, workdir = finished
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*")}
    main.run(config, workdir, command="the command")
    assert f"its report: {workdir / 'report.html'}" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in workdir.rglob("*")} == before


def test_judged_otherwise_the_model_is_kept(finished, phantom_dir, tmp_path):
    workdir = shutil.copytree(finished[1], tmp_path / "run")  # the others judge the run as it is
    checkpoint = max((workdir / "checkpoints" / "best").iterdir()).stat().st_mtime_ns
    other = small_config(phantom_dir, audit__replicates=200)
    main.run(other, workdir, command="the command")
    assert max((workdir / "checkpoints" / "best").iterdir()).stat().st_mtime_ns == checkpoint
    assert json.loads((workdir / "config.json").read_text())["audit"]["replicates"] == 200


def test_another_model_is_refused(finished, phantom_dir):
    with pytest.raises(UserError, match="holds a run of another config .model.growth: 4 there, 8 here"):
        main.run(small_config(phantom_dir, model__growth=8), finished[1], command="the command")


def test_a_checkpoint_judged_on_another_data_set(finished, phantom_dir, tmp_path):
    """Trained on `planted`, judged on `null`: every patient of the other cohort's test split, with its own labels."""
    config = small_config(
        phantom_dir, stages=("prepare", "predict", "audit", "report"), predict__dataset="phantom.null",
        predict__checkpoint=str(finished[1]), predict__splits=("test",),
    )  # fmt: skip
    main.run(config, tmp_path, command="the command")
    table = Predictions.read(tmp_path / "predictions.parquet").table
    assert set(table["split"]) == {"test"}
    np.testing.assert_array_equal(table["ceiling_Alder"].nunique(), 1)  # of `null`, whose posterior is the prior
    record, (judged, _) = tables.read_json(tmp_path / "run.json"), tables.read_parquet(tmp_path / "judged_cohort.parquet")
    assert (record["dataset"]["variant"], record["judged"]["variant"]) == ("planted_p60_s0_g1.0", "null_p60_s0_g1.0")
    assert set(table["image_id"]) == set(judged.loc[judged["split"] == "test", "image_id"])


def test_predictions_of_one_s_own_are_audited_without_a_model(finished, phantom_dir, tmp_path):
    table = Predictions.read(finished[1] / "predictions.parquet").table
    own = Predictions(table[["image_id", "patient_id", "split", "sex", "label_race", *(c for c in table if c.startswith("score_"))]], {"race": Target("multiclass", ("Alder", "Birch", "Cedar", "Dogwood"))})
    own.write(tmp_path / "predictions.parquet")
    main.run(small_config(phantom_dir, stages=("audit", "report")), tmp_path, command="the command")
    assert (tmp_path / "report.html").exists()
    assert tables.read_json(tmp_path / "run.json")["status"] == "done"


def test_several_heads_at_once(phantom_dir, tmp_path):
    config = small_config(phantom_dir, train__targets=("race", "findings", "sex"), train__epochs=1, train__warmup_epochs=0.0, **PLAIN)
    main.run(config, tmp_path, command="the command")
    targets = {r["target"] for r in tables.read_json(tmp_path / "audit.json")}
    assert targets == {"race", "findings", "sex"}


@pytest.fixture(scope="module")
def real(nih_sample, tmp_path_factory) -> dict[str, str]:
    """Where the sample of real X-rays is, and where its records are, which the first run builds."""
    return {"dataset.raw_dir": str(nih_sample), "dataset.data_dir": str(tmp_path_factory.mktemp("real"))}


def real_config(real, **diff):
    config = sex.get_config("nih,tiny")
    experiment.apply_diff(config, {k: v for k, v in SMALL.items() if not k.startswith("dataset.phantom")})
    return experiment.apply_diff(config, {**real, **diff})


def test_the_real_sample_has_its_own_counts(real, nih_sample, tmp_path):
    main.run(real_config(real, stages=("prepare",)), tmp_path / "run", command="the command")
    released = pd.read_csv(nih_sample / "Data_Entry_2017_v2020.csv", index_col=False)
    cohort, _ = tables.read_parquet(tmp_path / "run" / "cohort.parquet")
    assert len(cohort) == len(released) == 496
    assert cohort["sex"].value_counts().to_dict() == released["Patient Gender"].value_counts().to_dict()
    effusion = released["Finding Labels"].str.split("|").apply(lambda names: "Effusion" in names).sum()
    assert (cohort["finding_Effusion"] == 1).sum() == effusion


# Slow: what `prepare` makes of the real sample is held above, and every later stage by `finished`, on a phantom.
@pytest.mark.slow
def test_the_real_sample_goes_through(real, tmp_path):
    main.run(real_config(real), tmp_path / "run", command="the command")
    cohort, _ = tables.read_parquet(tmp_path / "run" / "cohort.parquet")
    rows = tables.read_json(tmp_path / "run" / "audit.json")
    auc = next(r for r in rows if (r["metric"], r["class"], r["attribute"]) == ("auc", "macro", "all"))
    assert auc["n_images"] == (cohort["split"] == "test").sum()


SMALL_FLAGS = [f"--config.{k}={v}" for k, v in SMALL.items()]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--config=configs/race.py:phantm"], "unknown token 'phantm'"),
        (["--config=configs/race.py", "--config.train.epoch=3"], "no config field 'train.epoch'; did you mean 'train.epochs'?"),
        (["--config=configs/race.py", "--config.train.epochs=many"], "invalid literal"),
        (["--config=configs/rcae.py"], "configs/rcae.py: no such config"),
        ([], "name an experiment"),
        (["--config=configs/race.py", "--config.train.schedule=linear"], "config.train.schedule='linear'"),
        (["--config=configs/race.py", "--config.train.targets=('rcae',)", *SMALL_FLAGS], "no target 'rcae'"),
    ],
)
def test_a_mistake_is_one_line_and_status_one(tmp_path, phantom_dir, arguments, told):
    done = command(*arguments, workdir=tmp_path / "run", TFDS_DATA_DIR=str(phantom_dir))
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 1 and lines[-1].startswith("error: ") and told in lines[-1], done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("argument", "raw_dir", "told"), [("mimic", "", "PhysioNet"), ("nih", "nowhere", "config.dataset.raw_dir: no folder 'nowhere'")]
)
def test_a_release_that_is_not_there_is_told_in_one_line(tmp_path, argument, raw_dir, told):
    """Within this process; that such an error is the program's last line and status is held above, by the target 'rcae'."""
    config = experiment.apply_diff(race.get_config(argument), {"dataset.raw_dir": raw_dir, "dataset.data_dir": str(tmp_path / "data")})
    with pytest.raises(UserError) as caught:
        main.run(config, tmp_path / "run", command="the command")
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_nih_has_no_race_and_says_so(real, tmp_path):
    config = experiment.apply_diff(race.get_config("nih"), real)
    with pytest.raises(UserError, match="nih records no race") as caught:
        main.run(config, tmp_path / "run", command="the command")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_killed_at_three_random_moments_a_run_ends_with_the_same_parameters(tmp_path, phantom_dir):
    """kill -9 of the real program, three times; then the same command to its end. Compared with a run left alone."""
    flags = ["--config=configs/race.py", *SMALL_FLAGS, "--config.train.epochs=6", f"--config.dataset.data_dir={phantom_dir}"]
    environment = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
    assert command(*flags, workdir=tmp_path / "alone", **environment).returncode == 0
    steps = metrics_log.read_rows(tmp_path / "alone" / "metrics.jsonl")[-1]["step"]
    seed = np.random.SeedSequence().entropy
    print(f"moments drawn from seed {seed}")
    random = np.random.default_rng(seed)
    carried_on_from = []
    for step in np.sort(random.choice(np.arange(1, steps), 3, replace=False)):
        process = subprocess.Popen(
            [sys.executable, "-m", "cxr_jax.main", *flags, f"--workdir={tmp_path / 'killed'}"],
            cwd=ROOT, env=as_user(**environment), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        while not any(row["step"] >= step for row in metrics_log.read_rows(tmp_path / "killed" / "metrics.jsonl")):
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.002)
        time.sleep(random.uniform(0, 0.1))  # into the next steps, or into the writing of a checkpoint
        assert process.poll() is None
        process.kill()
        process.wait()
        carried_on_from += [int(p.name) for p in (tmp_path / "killed" / "checkpoints" / "last").glob("*") if p.name.isdigit()]
    assert max(carried_on_from, default=0) > 0, "every kill came before the first checkpoint"
    assert command(*flags, workdir=tmp_path / "killed", **environment).returncode == 0
    one, other = (Predictions.read(tmp_path / name / "predictions.parquet").table for name in ("alone", "killed"))
    pd.testing.assert_frame_equal(one, other, check_exact=True)
    one, other = _last_state(tmp_path / "alone"), _last_state(tmp_path / "killed")
    assert one.keys() == other.keys()
    for name, values in one.items():
        np.testing.assert_array_equal(values, other[name], err_msg=name)


def _last_state(workdir) -> dict:
    """The last checkpoint's arrays by path, as they lie on disk."""
    step = max((p for p in (workdir / "checkpoints" / "last").iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
    with ocp.PyTreeCheckpointer() as reader:
        tree = reader.metadata(step / "default").item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        stored = reader.restore(step / "default", restore_args=as_numpy)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(stored)}
