"""A run that is killed outright, twenty times, wherever it happens to be: started again as often, it ends as if nothing had been."""

import json
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

from configs import base
from cxr_jax import experiment, tables
from tests.phantoms import ROOT, SMALL, arguments, as_user

KILLS = 20

FIELDS = {
    **SMALL,
    "train.epochs": 6,
    "predict.splits": ("train", "validation", "test"),
    "mitigate.halvings": 0,
    "probe.probes": ("logistic_regression", "knn"),
    "probe.controls": ("shuffled",),
    "probe.strata": (),
    "probe.refits": 5,
    "probe.neighbours": (1, 5),
    "mechanism.maps.patients": 4,
    "mechanism.maps.methods": ("grad_cam",),
    **{f"mechanism.series.{name}": () for name in base.get_config().mechanism.series},
    "mechanism.series.low_pass": (4.0, 16.0),
    "mechanism.series.cell_out": (0, 4),
    "audit.leakage": True,
}
# Two commands for one folder, since the stage mechanism asks a network as it was trained: the second one mitigates, and judges anew.
STAGES = tuple(experiment.STAGE_FIELDS)
COMMANDS = {
    "as it is": {"mitigate.method": "", "stages": tuple(stage for stage in STAGES if stage != "mitigate")},
    "mitigated": {"mitigate.method": "leace", "stages": tuple(stage for stage in STAGES if stage != "mechanism")},
}
# Where each kill is meant to hit; what runs longest is hit most.
MEANT = {
    "as it is": ["prepare", "prepare", *["train"] * 5, "predict", "predict", "extract", "extract", "probe", "probe", "mechanism", "mechanism", "audit"],
    "mitigated": ["mitigate", "mitigate", "probe", "probe"],
}


def begin(workdir, which, environment) -> subprocess.Popen:
    command = [sys.executable, *arguments("configs/mitigate.py:tiny", workdir, {**FIELDS, **COMMANDS[which]})]
    return subprocess.Popen(command, cwd=ROOT, env=as_user(**environment), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def read(workdir) -> dict:
    path = workdir / "run.json"
    return tables.read_json(path) if path.exists() else {}


def stages_of(workdir) -> dict:
    return read(workdir).get("stages", {})


def finished(workdir, which, environment):
    done = begin(workdir, which, environment)
    printed = done.communicate(timeout=600)[0]
    assert not done.returncode, printed


def told(text: str) -> str:
    """A page without what differs between two runs anyhow: moments, durations, folders, and how often it was started."""
    return re.sub(r"\d{4}-\d\d-\d\d[T ][\d:+]*|\d+(\.\d+)? (s|seconds|minutes)\b|/\S+", "", text)


def same(workdir, wanted):
    tables_, arrays = ([path.relative_to(wanted) for path in wanted.rglob(pattern) if "checkpoints" not in path.parts] for pattern in ("*.parquet", "*.npy"))
    for name in tables_:
        (ours, _), (theirs, _) = (tables.read_parquet(folder / name) for folder in (workdir, wanted))
        pd.testing.assert_frame_equal(ours, theirs, obj=str(name))
    for name in arrays:
        np.testing.assert_array_equal(np.load(workdir / name), np.load(wanted / name), str(name))
    for path in wanted.glob("*audit.json"):
        ours, theirs = (told(json.dumps(tables.read_json(folder / path.name))) for folder in (workdir, wanted))
        assert ours == theirs, path.name
    assert tables_ and arrays
    ours, theirs = (sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if not {"checkpoints", "tensorboard"} & set(p.parts)) for folder in (workdir, wanted))
    assert ours == theirs, "nothing half made is left behind"


@pytest.mark.slow
def test_twenty_kills_change_nothing(tmp_path):
    # What is compiled once is compiled for all: kills then hit what stages do. Each folder has its own data set, so that building it is hit, too.
    shared = {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")}
    of_wanted, of_run = (shared | {"TFDS_DATA_DIR": str(tmp_path / name)} for name in ("data", "other_data"))
    wanted, workdir, hit, rng = tmp_path / "undisturbed", tmp_path / "run", [], random.Random(20)
    for which, meant in MEANT.items():
        finished(wanted, which, of_wanted)
        seconds = {name: stage["seconds"] for name, stage in stages_of(wanted).items()}
        for stage in meant:
            started, until = begin(workdir, which, of_run), time.monotonic() + 300
            try:
                # A stage that an earlier start left as running is not under way before this one opens the folder; one that is done will not come.
                while read(workdir).get("pid") != started.pid or stages_of(workdir).get(stage, {}).get("status") is None:
                    assert started.poll() is None and time.monotonic() < until, started.communicate()[0]
                    time.sleep(0.02)
                # Half the time, since what was compiled for the undisturbed run is quicker now.
                time.sleep(rng.uniform(0, seconds[stage] / 2))
                assert started.poll() is None, "it was killed too late"
            finally:
                started.send_signal(signal.SIGKILL)
                started.communicate()
            hit.append(next((name for name, of in stages_of(workdir).items() if of["status"] == "running"), "between two stages"))
        finished(workdir, which, of_run)
        same(workdir, wanted)
    print(", ".join(hit))
    assert len(hit) == KILLS and len(set(hit) - {"between two stages"}) >= 7, hit
