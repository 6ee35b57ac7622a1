"""The whole of a run, as a user starts it: from a config to a report, again, elsewhere, and with every mistake in one line."""

import errno
import json
import shutil
import subprocess
import sys
import time
import types

import jax
import numpy as np
import orbax.checkpoint as ocp
import pandas as pd
import pytest

from configs import base, race, sex
from cxr_jax import experiment, main, stages, tables
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


def test_a_prepared_run_names_the_page_that_it_has(phantom_dir, tmp_path, capsys):
    config = small_config(phantom_dir, stages=("prepare",))
    for _ in range(2):
        main.run(config, tmp_path, command="the command")
    told = capsys.readouterr().out.splitlines()[-1]
    assert told.startswith("this run is done") and told.endswith(f"its cohort: {tmp_path / 'cohort.html'}")
    assert (tmp_path / "cohort.html").exists() and "report" not in told


def status_of(monkeypatch, config, workdir) -> int:
    """Of the program, within this process, as if the command line had asked for `config` and `workdir`."""
    monkeypatch.setattr(main, "parse", lambda argv: [(config, workdir, None)])
    monkeypatch.setattr(main, "DISTRIBUTED", types.SimpleNamespace(value=False))  # absl gives it only after parsing
    return main.main(["main"])


@pytest.mark.parametrize(
    ("workdir", "data_dir", "told"),
    [
        ("/proc/nowhere/run", "data", "/proc/nowhere: No such file or directory; mend that, or name another folder with --workdir"),
        ("file/run", "data", "file/run: Not a directory; mend that"),
        ("dangling", "data", "dangling: a link to nothing; mend that"),
        ("odd", "data", "run.json: Is a directory; mend that"),
        ("run", "file/data", "Not a directory; mend that, or name another folder with --config.dataset.data_dir"),
        ("run", "dangling", "dangling: a link to nothing; mend that, or name another folder with --config.dataset.data_dir"),
        ("run", "/proc/nowhere", "/proc/nowhere: No such file or directory; mend that, or name another folder with --config"),
    ],
)
def test_a_folder_that_cannot_be_made_is_told_in_one_line(tmp_path, monkeypatch, capsys, workdir, data_dir, told):
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    (tmp_path / "odd" / "run.json").mkdir(parents=True)
    config = small_config(tmp_path / data_dir, stages=("prepare",))
    assert status_of(monkeypatch, config, tmp_path / workdir) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and error[0].startswith("error: ") and told in error[0]


def test_which_errors_are_of_the_folders_that_a_run_makes(tmp_path):
    config, workdir = small_config(tmp_path / "data"), tmp_path / "run"
    said = main._of_the_disk(OSError(errno.EROFS, "Read-only file system", str(workdir / ".run.json.x.partial")), config, workdir)
    assert said == f"{workdir}: Read-only file system; mend that, or name another folder with --workdir"
    said = main._of_the_disk(IsADirectoryError(21, "Is a directory", "x.partial", None, str(workdir / "cohort.html")), config, workdir)
    assert said.startswith(f"{workdir / 'cohort.html'}: Is a directory; ")
    # Anything else is for us to mend, and keeps its traceback.
    for other in (OSError(errno.EIO, "", str(tmp_path / "elsewhere")), OSError(errno.EPIPE, ""), OSError(errno.EBADF, "", 3)):
        assert main._of_the_disk(other, config, workdir) == ""


@pytest.mark.parametrize(("stage", "checkpoint", "told"), [
    ("prepare", False, "starts this stage again"), ("train", False, "starts this stage again"),
    ("train", True, "carries on from the last checkpoint"), ("predict", True, "starts this stage again"),
])  # fmt: skip
def test_interrupted_a_run_says_what_the_same_command_does(tmp_path, phantom_dir, monkeypatch, capsys, stage, checkpoint, told):
    config = small_config(phantom_dir)
    if checkpoint:
        (tmp_path / "checkpoints" / "last" / "4").mkdir(parents=True)
    experiment.Run(tmp_path, config, base.get_config(), "the command").write(
        stages={name: {"status": "done"} for name in config.stages[: config.stages.index(stage)]}
    )

    def interrupted(config, run):
        raise KeyboardInterrupt

    monkeypatch.setitem(stages.STAGES, stage, interrupted)
    assert status_of(monkeypatch, config, tmp_path) == 130
    assert capsys.readouterr().err.strip() == f"interrupted; the same command {told}"


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


@pytest.mark.slow
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
