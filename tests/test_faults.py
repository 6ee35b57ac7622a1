"""Disks that fill, data that vanish, checkpoints cut in half, clocks apart: nothing is lost but the time since the last checkpoint."""

import os
import pathlib
import shutil
import subprocess
import sys

import pandas as pd
import pytest

from cxr_jax import processes, tables
from cxr_jax.training import metrics_log
from tests import phantoms
from tests.phantoms import ROOT, SMALL, as_user
from tests.processes import ended, places, start

pytestmark = pytest.mark.slow

FIELDS = {**SMALL, "dataset.phantom.patients": 120, "stages": ("prepare", "train", "predict"), "train.epochs": 12, "train.log_every_steps": 1, "checkpoint.every_steps": 10}


def arguments(workdir, **fields):
    return phantoms.arguments("configs/race.py:tiny", workdir, FIELDS | {name.replace("__", "."): value for name, value in fields.items()})


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    return places(tmp_path_factory.mktemp("faults"))


def run(workdir, environment, *before):
    return subprocess.run([*before, sys.executable, *arguments(workdir)], cwd=ROOT, env=as_user(**environment), capture_output=True, text=True)


def losses(workdir):
    return [row["loss"] for row in metrics_log.read_rows(workdir / "metrics.jsonl") if row["split"] == "train"]


def same(workdir, wanted):
    (ours, _), (theirs, _) = (tables.read_parquet(folder / "predictions.parquet") for folder in (workdir, wanted))
    pd.testing.assert_frame_equal(ours, theirs)
    assert losses(workdir) == losses(wanted)


@pytest.fixture(scope="module")
def undisturbed(environment, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    done = run(workdir, environment)
    assert not done.returncode, done.stderr
    return workdir


def half_way(workdir, environment, step=60):
    """A run that is killed outright once it has done so many steps."""
    started = subprocess.Popen([sys.executable, *arguments(workdir)], cwd=ROOT, env=as_user(**environment), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (workdir / "metrics.jsonl").exists() or len(losses(workdir)) < step:
        assert started.poll() is None
    started.kill()
    started.wait()
    return workdir


def one_line(done):
    """What a run that ended by a mistake said last; it said it without a traceback."""
    assert done.returncode == processes.FAILED and "Traceback" not in done.stderr, done.stderr
    return done.stderr.splitlines()[-1]


@pytest.fixture
def disk(tmp_path):
    """(a folder on a disk of its own, a function that gives it so many MiB)."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def sized(mib: int, *options: str) -> None:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join([*options, f"size={mib}m"]), "tmpfs", str(folder)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no disk of its own: {done.stderr.strip()}")

    if os.geteuid():
        pytest.skip("no disk of its own: not root")
    sized(1)
    yield folder, lambda mib: sized(mib, "remount")
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_that_fills_ends_a_run_in_one_line_and_costs_nothing_else(undisturbed, environment, disk):
    folder, sized = disk
    told = one_line(run(folder / "run", environment))
    assert "no space left on the disk" in told and "run the same command again" in told
    sized(200)
    done = run(folder / "run", environment)
    assert not done.returncode, done.stderr
    same(folder / "run", undisturbed)
    assert not list((folder / "run").rglob("*.partial"))


def test_data_that_vanish_are_named_and_waited_for(undisturbed, environment, tmp_path):
    workdir, data = half_way(tmp_path / "run", environment), pathlib.Path(environment["TFDS_DATA_DIR"])
    data.rename(tmp_path / "elsewhere")
    try:
        told = one_line(run(workdir, environment))
        assert "no data set at" in told and str(data) in told
    finally:
        shutil.rmtree(data, ignore_errors=True)
        (tmp_path / "elsewhere").rename(data)
    assert not run(workdir, environment).returncode
    same(workdir, undisturbed)


def test_a_checkpoint_cut_in_half_is_set_aside_for_the_one_before(undisturbed, environment, tmp_path):
    workdir = half_way(tmp_path / "run", environment)
    newest, before = sorted((path for path in (workdir / "checkpoints" / "last").iterdir() if path.name.isdigit()), key=lambda path: -int(path.name))[:2]
    for path in newest.rglob("*"):
        if path.is_file():
            os.truncate(path, path.stat().st_size // 2)
    done = run(workdir, environment)
    assert not done.returncode and "set aside; going back to the one before" in done.stderr, done.stderr
    assert (workdir / "checkpoints" / "unreadable" / newest.name).is_dir() and int(before.name) < int(newest.name)
    same(workdir, undisturbed)


@pytest.fixture
def slow_clock(tmp_path):
    """A command that starts another one with the clock on the wall three days slow. The time since the machine's start goes on as it does."""
    if not shutil.which("faketime"):
        pytest.skip("faketime is not installed")
    # Under faketime 0.9.10, Python's sleep ends at once with "Invalid argument", since that release tells the system a wrong time to sleep until.
    (tmp_path / "sitecustomize.py").write_text("import threading, time\ntime.sleep = lambda seconds: threading.Event().wait(seconds)\n")
    return ["env", f"PYTHONPATH={tmp_path}{os.pathsep}{ROOT}", "FAKETIME_DONT_FAKE_MONOTONIC=1", "faketime", "-f", "-3d"]


def test_a_clock_that_is_days_slow_changes_nothing(undisturbed, environment, slow_clock, tmp_path):
    workdir = half_way(tmp_path / "run", environment)
    done = run(workdir, environment, *slow_clock)
    assert not done.returncode, done.stderr
    same(workdir, undisturbed)


def test_processes_need_not_agree_on_the_time(environment, slow_clock, tmp_path):
    """Two processes, the clock of the second three days slow."""
    runs = {}
    for name, before in (("apart", slow_clock), ("alike", [])):
        all_ = ended(start(arguments(tmp_path / name, train__epochs=4), 2, before={1: before}, **environment))
        assert [status for status, _ in all_] == [0, 0], "\n".join(printed for _, printed in all_)
        runs[name] = losses(tmp_path / name)
    assert runs["apart"] == runs["alike"]
