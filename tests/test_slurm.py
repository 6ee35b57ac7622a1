"""launch/slurm.sbatch and launch/sweep.py on a SLURM of the test's own: preempted, put back in the queue, on two nodes, and as an array."""

import pathlib
import subprocess
import sys
import textwrap
import time

import pytest

from cxr_jax import tables
from cxr_jax.training import metrics_log
from tests import hosts, phantoms, slurm
from tests.phantoms import ROOT, SMALL, as_user

# The environment that these tests run in must be the one that local.sh would make: else it would make one.
_MADE = (pathlib.Path(sys.prefix) / ".installed").exists()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not _MADE, reason="these tests do not run in an environment that launch/local.sh made"),
    pytest.mark.skipif(bool(slurm.missing()), reason=f"no SLURM: {slurm.missing()}"),
]

FIELDS = {**SMALL, "dataset.phantom.patients": 120, "stages": ("prepare", "train", "predict"), "train.epochs": 14, "train.log_every_steps": 1, "checkpoint.every_steps": 1000}


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slurm")
    made = {"CXR_JAX_VENV": sys.prefix, "CXR_JAX_ACCELERATOR": "cpu", "CXR_JAX_ROOT": str(ROOT)}
    return as_user(JAX_PLATFORMS="cpu", TFDS_DATA_DIR=str(folder / "data"), JAX_COMPILATION_CACHE_DIR=str(folder / "compiled"), **made)


def flags(workdir):
    return phantoms.flags("configs/race.py:tiny", workdir, FIELDS)


def options(tasks=2, nodes=1):
    return [f"--nodes={nodes}", f"--ntasks-per-node={tasks // nodes}", "--cpus-per-task=1", "--mem=0", "--time=20"]


def losses(workdir):
    rows = metrics_log.read_rows(workdir / "metrics.jsonl") if (workdir / "metrics.jsonl").exists() else []
    return [row["loss"] for row in rows if row["split"] == "train"]


def completed(cluster, job, timeout=400):
    state = cluster.wait(job, timeout=timeout)
    assert state == "COMPLETED", f"{state}\n{cluster.output(job)}"
    return cluster.output(job)


@pytest.fixture(scope="module")
def undisturbed(environment, tmp_path_factory):
    """A job of two tasks that nothing happens to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with slurm.Slurm(folder / "slurm") as cluster:
        job = cluster.sbatch(ROOT / "launch/slurm.sbatch", *flags(folder / "run"), options=options(), env=environment)
        assert "start 1" in completed(cluster, job)
    assert tables.read_json(folder / "run" / "run.json")["processes"] == 2
    return folder / "run"


def test_a_preempted_job_is_put_back_and_ends_as_if_nothing_had_been(undisturbed, environment, tmp_path):
    """Told to stop, as `--signal=TERM@120` does when its time is nearly over; then its place is taken by a more urgent job, in a time of grace."""
    workdir, total = tmp_path / "run", len(losses(undisturbed))
    (tmp_path / "urgent.sh").write_text("#!/bin/sh\nsleep 1\n")
    with slurm.Slurm(tmp_path / "slurm", cpus=2) as cluster:
        job = cluster.sbatch(ROOT / "launch/slurm.sbatch", *flags(workdir), options=options(), env=environment)
        until = time.monotonic() + 300

        def waits(while_):
            while while_():
                assert time.monotonic() < until and cluster.state(job) not in slurm.ENDED, cluster.output(job)
                time.sleep(0.2)

        def saved():
            """How many steps a job that is told to stop has done when it is safe."""
            waits(lambda: tables.read_json(workdir / "run.json")["status"] == "running")
            assert tables.read_json(workdir / "run.json")["status"] == "preempted"
            return len(losses(workdir))

        waits(lambda: len(losses(workdir)) < total // 4)
        cluster.client("scancel", "--signal=TERM", job)
        first = saved()
        waits(lambda: len(losses(workdir)) < first + total // 4)
        urgent = cluster.sbatch(tmp_path / "urgent.sh", options=["--partition=urgent", "--cpus-per-task=2", "--mem=0"])
        second = saved()
        assert total // 4 <= first < second < total
        assert cluster.wait(urgent, timeout=100) == "COMPLETED"
        printed = completed(cluster, job)
    assert "status 75: back in the queue" in printed and "start 3" in printed
    assert losses(workdir) == losses(undisturbed)


def test_a_job_that_loses_its_processes_is_put_back_so_many_times_and_then_fails(environment, tmp_path):
    workdir = tmp_path / "run"
    with slurm.Slurm(tmp_path / "slurm") as cluster:
        job = cluster.sbatch(ROOT / "launch/slurm.sbatch", *flags(workdir), options=options(), env=environment | {"CXR_JAX_RETRIES": "1"})
        until, killed = time.monotonic() + 200, set()
        while cluster.state(job) not in slurm.ENDED:
            assert time.monotonic() < until, cluster.output(job)
            record = tables.read_json(workdir / "run.json") if (workdir / "run.json").exists() else {}
            if record.get("status") == "running" and record["started"] not in killed:
                killed.add(record["started"])
                cluster.client("scancel", "--signal=KILL", f"{job}.0")
            time.sleep(0.2)
        assert cluster.state(job) == "FAILED" and len(killed) == 2
        assert cluster.output(job).count("status 137: back in the queue") == 1


def test_two_nodes_share_a_job(undisturbed, environment, tmp_path):
    if hosts.missing():
        pytest.skip(hosts.missing())
    with hosts.Hosts() as pair, slurm.Slurm(tmp_path / "slurm", hosts=pair) as cluster:
        job = cluster.sbatch(ROOT / "launch/slurm.sbatch", *flags(tmp_path / "run"), options=options(nodes=2), env=environment)
        completed(cluster, job)
    assert losses(tmp_path / "run") == losses(undisturbed)


SWEEP = f"""
    from configs import race
    from cxr_jax import experiment

    def get_base():
        return experiment.apply_diff(race.get_config("tiny"), {SMALL | {"stages": ("prepare", "train", "predict", "audit", "report")}!r})

    def get_diffs():
        return {{"first": {{}}, "second": {{"seed": 1}}, "third": {{"seed": 2}}, "fourth": {{"seed": 3}}}}
"""


def test_a_sweep_is_an_array_that_ends_in_one_comparison(environment, tmp_path):
    (tmp_path / "sweeps").mkdir()
    sweep, folder = tmp_path / "sweeps" / "four.py", tmp_path / "runs"
    sweep.write_text(textwrap.dedent(SWEEP))

    def command(*words, env=environment):
        done = subprocess.run([sys.executable, *words], cwd=ROOT, env=env, capture_output=True, text=True)
        assert not done.returncode, done.stderr
        return done.stdout

    asked = ["launch/sweep.py", "slurm", f"--config={sweep}", f"--workdir={folder}", "--at-once=2"]
    asked += [f"--option={option}" for option in (*options(tasks=1), f"--output={tmp_path}/%A_%a.out")]
    with slurm.Slurm(tmp_path / "slurm") as cluster:
        there = environment | {name: value for name, value in cluster.environment.items() if name.startswith("SLURM")}
        said = command(*asked, env=there)
        assert "add --submit" in said and said.count("not begun") == 4 and not cluster.squeue().strip()
        job = command(*asked, "--submit", env=there).partition("  job ")[2].partition(":")[0]
        completed(cluster, job, timeout=500)
    assert command("-m", "cxr_jax.status", str(folder)).count("  done  ") == 4
    compared = command("-m", "cxr_jax.compare", str(folder))
    assert all(name in compared for name in ("first", "second", "third", "fourth")), compared
    again = command(*asked)
    assert "all runs are done" in again
