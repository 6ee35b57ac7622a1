"""What `cxr_jax.status` says of runs: from records as runs write them, and of a process that really runs and is really killed."""

import os
import pathlib
import socket
import subprocess
import sys
import time

import pytest

from configs import base
from cxr_jax import experiment, processes, status, tables
from cxr_jax.tables import UserError
from tests.phantoms import ROOT, as_user

DEVICE = {"platform": "cpu", "kind": "cpu", "count": 1}


def new_run(folder: pathlib.Path) -> experiment.Run:
    return experiment.Run(folder, experiment.apply_diff(base.get_config(), {"stages": ("prepare",)}), base.get_config(), "the command")


def printed(capsys, *folders) -> str:
    assert status.main(["status", *map(str, folders)]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "state"),
    [(None, "done"), (KeyboardInterrupt(), "interrupted"), (processes.Preempted(), "preempted"), (FloatingPointError(), "diverged"), (ValueError(), "failed")],
)
def test_a_run_that_has_ended_says_how(tmp_path, capsys, error, state):
    run = new_run(tmp_path / "run")
    try:
        with run.recording(DEVICE), run.stage("prepare"):
            if error:
                raise error
    except BaseException as raised:
        assert raised is error
    assert status.of(tmp_path / "run").state == state
    assert state in printed(capsys, tmp_path)
    assert not (tmp_path / "run" / experiment.SIGNS_FILE).exists()


def test_a_run_that_lost_another_process_says_so(tmp_path):
    run = new_run(tmp_path)
    with run.recording(DEVICE), run.stage("prepare"):
        for tell in processes._told_at_loss:
            tell(processes.LOST)
        assert status.of(tmp_path).state == "lost a process"


def test_a_run_that_is_under_way_says_what_it_does(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(experiment, "SECONDS_BETWEEN_SIGNS", 0.05)
    run = new_run(tmp_path / "run")
    with run.recording(DEVICE), run.stage("prepare"):
        experiment.SIGNS.update({"doing": "train", "done": 30, "total": 120, "images_per_second": 12.5, "seconds_left": 7.2, "said": "loss 0.7"})
        until = time.monotonic() + 10
        while "train" not in status.of(tmp_path / "run").doing and time.monotonic() < until:
            time.sleep(0.05)
        assert "running  train 25% of 120 images, 12.5 images/s, 0:00:07 left of it, loss 0.7" in printed(capsys, tmp_path / "run")
        # Signs that are old, of a process that may be of another machine.
        run.write(host="another")
        monkeypatch.setattr(status, "SILENCE", -1.0)
        assert status.of(tmp_path / "run").state == "silent" and "in prepare, no sign for 0:00:0" in status.of(tmp_path / "run").doing


def test_a_process_that_was_killed_is_not_running_and_one_that_lives_is_not_disturbed(tmp_path, capsys, monkeypatch):
    program = f"""
import time
from tests.test_status import DEVICE, new_run, pathlib
run = new_run(pathlib.Path({str(tmp_path / "run")!r}))
with run.recording(DEVICE), run.stage("prepare"):
    time.sleep(600)
"""
    started = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, env=as_user())
    until = time.monotonic() + 60
    while "running" not in (status.of(tmp_path / "run").state if (tmp_path / "run" / experiment.SIGNS_FILE).exists() else ""):
        assert time.monotonic() < until and started.poll() is None
        time.sleep(0.1)
    with pytest.raises(UserError, match=f"a run is under way there .on {socket.gethostname()}, process {started.pid}"):
        new_run(tmp_path / "run")
    started.kill()
    started.wait()
    new_run(tmp_path / "run")  # at once
    # Of one that was killed on another machine it shows by its silence.
    sign = tables.read_json(tmp_path / "run" / experiment.SIGNS_FILE)
    tables.write_json(tmp_path / "run" / experiment.SIGNS_FILE, sign | {"host": "another"})
    monkeypatch.setattr(experiment, "SECONDS_BETWEEN_SIGNS", 0.1)
    new_run(tmp_path / "run")
    assert status.of(tmp_path / "run") == status.Status(tmp_path / "run", "silent", "in prepare, its process is gone")
    assert "silent" in printed(capsys, tmp_path)


def test_folders_of_runs_stand_for_the_runs_in_them(tmp_path, capsys):
    for name in ("a/one", "a/two", "b"):
        new_run(tmp_path / name)
    lines = printed(capsys, tmp_path, tmp_path / "b").splitlines()
    assert [pathlib.Path(line.split()[0]).name for line in lines] == ["one", "two", "b"] and all("not begun" in line for line in lines)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda folder: None, "no such folder"),
        (lambda folder: folder.mkdir(), "holds no run"),
        (lambda folder: (folder.mkdir(), (folder / "run.json").write_text('{"stages": ')), "run.json: not a run's record"),
        (lambda folder: (folder.mkdir(), (folder / "run.json").write_text("[]")), "run.json: not a run's record"),
    ],
)
def test_what_is_no_run_is_told_in_one_line(tmp_path, capsys, make, told):
    make(tmp_path / "given")
    assert status.main(["status", str(tmp_path / "given")]) == 1
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1


def test_folders_must_be_named(capsys):
    assert status.main(["status"]) == 1 and "name folders of runs" in capsys.readouterr().err


def test_where_and_by_whom_is_recorded(tmp_path):
    run = new_run(tmp_path)
    with run.recording(DEVICE), run.stage("prepare"):
        pass
    record = tables.read_json(tmp_path / "run.json")
    assert (record["host"], record["pid"], record["processes"]) == (socket.gethostname(), os.getpid(), 1)
    with pytest.raises(UserError):
        status.of(tmp_path / "nowhere")
