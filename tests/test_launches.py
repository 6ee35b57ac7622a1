"""Launches of several processes, as users start them: they give what one process gives, and survive what happens to machines.

All are real processes of `python -m cxr_jax.main`, joined by JAX's own runtime, with collectives on CPUs.
"""

import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

from cxr_jax import processes, tables
from cxr_jax.training import metrics_log
from tests import hosts, phantoms
from tests.phantoms import ROOT, SMALL, as_user
from tests.processes import ended, places, start

pytestmark = pytest.mark.slow

FIELDS = {
    **SMALL,
    "dataset.phantom.patients": 120,
    "audit.intersections": (),
    "probe.probes": ("logistic_regression", "knn"),
    "probe.controls": ("shuffled", "untrained"),
    "probe.strata": (),
    "probe.refits": 5,
    "probe.neighbours": (1, 5),
}


def arguments(workdir, **fields):
    return phantoms.arguments("configs/probe.py:tiny", workdir, FIELDS | {name.replace("__", "."): value for name, value in fields.items()})


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Where data sets and compiled programs are, for all launches of this file."""
    return places(tmp_path_factory.mktemp("launches"))


def alone(workdir, environment, **fields):
    done = subprocess.run([sys.executable, *arguments(workdir, **fields)], env=as_user(**environment), cwd=ROOT, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return workdir


@pytest.fixture(scope="module")
def one(environment, tmp_path_factory):
    """The whole run by one process."""
    return alone(tmp_path_factory.mktemp("one") / "run", environment)


def together(workdir, environment, count, **fields):
    all_ = ended(start(arguments(workdir, **fields), count, **environment))
    assert [status for status, _ in all_] == [0] * count, "\n".join(printed for _, printed in all_)
    return [printed for _, printed in all_]


def losses(workdir):
    return [row["loss"] for row in metrics_log.read_rows(workdir / "metrics.jsonl") if row["split"] == "train"]


def assert_same_judgement(workdir, wanted):
    """Predictions, features and what probes make of them, within what the order of sums makes of float32."""
    for name in ("predictions.parquet", "probes/readings.parquet"):
        (ours, _), (theirs, _) = (tables.read_parquet(folder / name) for folder in (workdir, wanted))
        numbers = ours.select_dtypes("number").columns
        pd.testing.assert_frame_equal(ours.drop(columns=numbers), theirs.drop(columns=numbers))
        np.testing.assert_allclose(ours[numbers], theirs[numbers], atol=2e-3, err_msg=name)
    for path in sorted((wanted / "features").glob("*.npy")):
        np.testing.assert_allclose(np.load(workdir / "features" / path.name), np.load(path), atol=1e-4, err_msg=path.name)
    ours, theirs = (sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file() and not {"checkpoints", "tensorboard"} & set(p.parts)) for folder in (workdir, wanted))
    assert ours == theirs


@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_give_what_one_gives(one, environment, tmp_path, count):
    # Trained anew: the same steps, until rounding has grown. Then, with the very same weights, the same judgement.
    printed = together(tmp_path / "anew", environment, count, stages=("prepare", "train"))
    assert len(losses(tmp_path / "anew")) == len(losses(one)) > 10
    np.testing.assert_allclose(losses(tmp_path / "anew")[:5], losses(one)[:5], rtol=1e-4)
    np.testing.assert_allclose(losses(tmp_path / "anew"), losses(one), rtol=0.05)
    assert all("images" not in text for text in printed[1:]), "one of them speaks"
    assert len(list((tmp_path / "anew" / "tensorboard").iterdir())) == 1
    record = tables.read_json(tmp_path / "anew" / "run.json")
    assert record["status"] == "done" and record["processes"] == count and record["device"]["count"] == count

    if count == 2:
        # A checkpoint is read by all of them together, also where the first one looks after the rest alone.
        together(tmp_path / "begun", environment, count, stages=("prepare", "train"), train__epochs=1, seed=1, model__init_from=one)
        assert losses(tmp_path / "begun")[0] < losses(one)[0]

    shutil.copytree(one, tmp_path / "run")
    record = tables.read_json(one / "run.json")
    record["stages"] = {name: record["stages"][name] for name in ("prepare", "train")}
    tables.write_json(tmp_path / "run" / "run.json", record)
    for name in ("features", "probes"):
        shutil.rmtree(tmp_path / "run" / name)
    (tmp_path / "run" / "predictions.parquet").unlink()
    together(tmp_path / "run", environment, count)
    assert_same_judgement(tmp_path / "run", one)


def steps_done(workdir):
    rows = metrics_log.read_rows(workdir / "metrics.jsonl") if (workdir / "metrics.jsonl").exists() else []
    return max((row["step"] for row in rows), default=0)


def until_step(workdir, step, started, timeout=240):
    """Waits until training has done a step. Fails where a process ends before that."""
    until = time.monotonic() + timeout
    while steps_done(workdir) < step:
        assert time.monotonic() < until and all(process.poll() is None for process in started), "\n".join(printed for _, printed in ended(started, 1))
        time.sleep(0.1)


LONG = {"stages": ("prepare", "train", "predict"), "train.epochs": 25, "checkpoint.every_steps": 20, "train.log_every_steps": 1}


@pytest.fixture(scope="module")
def undisturbed(environment, tmp_path_factory):
    """A longer training by two processes, in which there is time for something to happen."""
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    together(workdir, environment, 2, **LONG)
    return workdir


def within_a_minute(started, survivors):
    """(status, what it printed) of those that are to end by themselves; all are ended after it."""
    since = time.monotonic()
    for process in survivors:
        process.wait(timeout=60)
    assert time.monotonic() - since < 60
    for process in started:
        if process not in survivors:
            process.kill()
    return ended(started, 5)


def test_a_launch_ends_and_is_gone_on_with_whatever_happens_to_it(undisturbed, environment, tmp_path):
    """One training: told to stop, a process killed, the first one killed; then let be."""
    workdir, total = tmp_path / "run", steps_done(undisturbed)
    moments = [int(total * share) for share in (0.15, 0.4, 0.65)]

    def begin(step):
        started = start(arguments(workdir, **LONG), 2, **environment)
        until_step(workdir, step, started)
        return started

    started = begin(moments[0])
    started[1].send_signal(signal.SIGTERM)
    all_ = within_a_minute(started, started)
    assert [status for status, _ in all_] == [processes.PREEMPTED] * 2, all_
    assert tables.read_json(workdir / "run.json")["status"] == "preempted"
    saved = max(int(path.name) for path in (workdir / "checkpoints" / "last").iterdir() if path.name.isdigit())
    assert saved == steps_done(workdir) >= moments[0], "the step at which both stopped is the one that was saved"

    started = begin(moments[1])
    started[1].kill()
    (status, printed), _ = within_a_minute(started, started[:1])
    assert status == processes.LOST and "error: process 1 of 2" in printed and "no sign" in printed, printed
    assert tables.read_json(workdir / "run.json")["status"] == "lost a process"

    started = begin(moments[2])
    started[0].kill()
    _, (status, printed) = within_a_minute(started, started[1:])
    # In JAX's own words, which ends a process by an abort where the first one is gone.
    assert status == -signal.SIGABRT and "leader" in printed, printed

    together(workdir, environment, 2, **LONG)
    assert losses(workdir) == losses(undisturbed), "to the same bits"
    ours, theirs = (tables.read_parquet(folder / "predictions.parquet")[0] for folder in (workdir, undisturbed))
    pd.testing.assert_frame_equal(ours, theirs)


def test_a_mistake_of_one_ends_all_in_one_line_each(one, environment, tmp_path):
    shutil.copytree(one, tmp_path / "run")
    all_ = ended(start(arguments(tmp_path / "run", model__growth=5), 2, **environment), 120)
    assert [status for status, _ in all_] == [processes.FAILED] * 2
    for _, printed in all_:
        assert "Traceback" not in printed and "holds a run of another config" in printed.splitlines()[-1], printed


def test_another_host_is_reached_by_its_address_and_missed_when_it_is_cut_off(undisturbed, environment, tmp_path):
    if hosts.missing():
        pytest.skip(hosts.missing())
    workdir = tmp_path / "run"

    def begin(pair):
        launch = as_user(**environment) | {"JAX_COORDINATOR_ADDRESS": f"{pair.addresses[0]}:5555", "JAX_NUM_PROCESSES": "2"}
        command = [sys.executable, *arguments(workdir, **LONG)]
        return [
            pair.popen(host, command, env=launch | {"JAX_PROCESS_ID": str(host)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            for host in (0, 1)
        ]

    with hosts.Hosts() as pair:
        started = begin(pair)
        until_step(workdir, steps_done(undisturbed) // 3, started)
        pair.cut()
        (status, printed), (other, _) = within_a_minute(started, started)
        assert status == processes.LOST and f"process 1 of 2 (on {pair.names[1]}) has given no sign" in printed, printed
        assert other != 0
        pair.mend()
        assert [status for status, _ in ended(begin(pair))] == [0, 0]
    assert losses(workdir) == losses(undisturbed)


def test_a_first_process_that_nobody_reaches_is_told():
    program = "from cxr_jax import processes; processes._JOINING = 3; processes.join()"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT,
        env=as_user(JAX_COORDINATOR_ADDRESS="localhost:9", JAX_NUM_PROCESSES="2", JAX_PROCESS_ID="1"),
    )  # fmt: skip
    assert "process 1 of 2 does not reach the first one at localhost:9" in done.stderr.splitlines()[-1]
