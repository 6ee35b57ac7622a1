"""launch/: several processes from local.sh, what sweep.py would submit and what it runs here, and what the scripts say to mistakes."""

import importlib.util
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from configs import base
from cxr_jax import experiment, processes, tables
from tests.phantoms import ROOT, as_user

# The environment that these tests run in is the one that local.sh would make.
MADE = {"CXR_JAX_VENV": sys.prefix, "CXR_JAX_ACCELERATOR": "cpu", "JAX_PLATFORMS": "cpu"}
made_here = pytest.mark.skipif(not (pathlib.Path(sys.prefix) / ".installed").exists(), reason="these tests do not run in an environment that launch/local.sh made")

# Written in one piece: several write at once.
TOLD = "import os; e = os.environ; os.write(1, f'process {e[\"JAX_PROCESS_ID\"]} of {e[\"JAX_NUM_PROCESSES\"]} {e[\"JAX_COORDINATOR_ADDRESS\"]}\\n'.encode())"


def script(name, *words, **environment):
    return subprocess.run(["bash", f"launch/{name}", *words], cwd=ROOT, env=as_user(**MADE, **environment), capture_output=True, text=True)


@made_here
def test_local_starts_processes_that_know_of_each_other():
    done = script("local.sh", "--processes=3", "python", "-c", TOLD)
    assert not done.returncode, done.stderr
    lines = sorted(done.stdout.splitlines())
    assert [line.split()[:4] for line in lines] == [["process", str(i), "of", "3"] for i in range(3)]
    assert len({line.split()[4] for line in lines}) == 1, "one address for all"


@made_here
@pytest.mark.parametrize(
    ("ends", "status"), [((0, 0), 0), ((75, 75), 75), ((0, 69), 69), ((75, 137), 69), ((0, 143), 69), ((1, 69), 1), ((1, 75), 1)]
)
def test_local_ends_as_its_processes_do(ends, status):
    program = f"import os, sys; sys.exit({ends}[int(os.environ['JAX_PROCESS_ID'])])"
    assert script("local.sh", "--processes=2", "python", "-c", program).returncode == status


@made_here
def test_local_says_which_of_its_processes_was_killed():
    program = "import os, signal; os.environ['JAX_PROCESS_ID'] == '0' and os.kill(os.getpid(), signal.SIGKILL)"
    done = script("local.sh", "--processes=2", "python", "-c", program)
    assert done.returncode == 69 and "process 0 of 2 was killed, by signal 9" in done.stderr and "process 1" not in done.stderr


@made_here
def test_local_hands_sigterm_on_and_waits(tmp_path):
    program = (
        "import os, pathlib, signal, sys, time\n"
        "def hear(*_): time.sleep(0.5); sys.exit(75)\n"
        "signal.signal(signal.SIGTERM, hear)\n"
        f"pathlib.Path({str(tmp_path)!r}, os.environ['JAX_PROCESS_ID']).touch()\n"
        "time.sleep(60)"
    )
    started = subprocess.Popen(["bash", "launch/local.sh", "--processes=2", "python", "-c", program], cwd=ROOT, env=as_user(**MADE))
    until = time.monotonic() + 30
    while len(list(tmp_path.iterdir())) < 2:
        assert time.monotonic() < until and started.poll() is None
        time.sleep(0.05)
    started.send_signal(signal.SIGTERM)
    assert started.wait(timeout=30) == 75


def test_numbers_of_processes_that_are_none_are_told():
    for given in ("0", "two", ""):
        done = script("local.sh", f"--processes={given}", "true")
        assert done.returncode == 1 and "a number of processes" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", ["beam.sh", "tpu.sh"])
@pytest.mark.parametrize("words", [(), ("unknown", "name"), ("flink", "name"), ("run", "name")])
def test_scripts_say_how_they_are_used(name, words):
    done = script(name, *words)
    assert done.returncode == 1 and f"launch/{name}" in done.stderr and not done.stdout


def test_tpu_hands_flags_on_whole():
    done = script("tpu.sh", "run", "myslice", "--", "--config=configs/race.py:mimic", "--config.dataset.views=('AP',)", CXR_JAX_PRINT="1", CXR_JAX_GCLOUD="--zone=here")
    printed = subprocess.run(["bash", "-c", f"printf '%s\\n' {done.stdout}"], capture_output=True, text=True).stdout
    assert printed.splitlines()[:7] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "myslice", "--zone=here"] and "--worker=all" in printed
    there = printed.partition("--command=")[2]
    assert not subprocess.run(["bash", "-n", "-c", there]).returncode
    line = next(line for line in there.splitlines() if "cxr_jax.main" in line)
    words = subprocess.run(["bash", "-c", "printf '%s\\n' " + line.partition("cxr_jax.main ")[2].partition(" >>run.log")[0]], capture_output=True, text=True).stdout.splitlines()
    assert words == ["--distributed", "--config=configs/race.py:mimic", "--config.dataset.views=('AP',)"]


@pytest.fixture(scope="module")
def sweep():
    spec = importlib.util.spec_from_file_location("launch_sweep", ROOT / "launch" / "sweep.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def launched(*words, **environment):
    return subprocess.run([sys.executable, "launch/sweep.py", *words], cwd=ROOT, env=as_user(JAX_PLATFORMS="cpu", **environment), capture_output=True, text=True)


def test_a_sweep_is_printed_before_it_is_submitted(tmp_path):
    done = launched("slurm", "--config=configs/sweeps/mitigation_tiny.py", f"--workdir={tmp_path}", "--option=--gpus-per-node=8", "--at-once=3", "--config.audit.replicates=200")
    assert not done.returncode, done.stderr
    arrays = [line for line in done.stdout.splitlines() if "sbatch" in line]
    assert len(arrays) == 2, "runs that need another one's network are an array of their own"
    assert "--array=0-9%3" in arrays[0] and "--dependency" not in arrays[0] and "--gpus-per-node=8" in arrays[0]
    assert "--array=0-3%3" in arrays[1] and "--dependency=afterany:" in arrays[1]
    assert all("--config=configs/sweeps/mitigation_tiny.py:@RUN@" in line and "--config.audit.replicates=200" in line for line in arrays)
    assert "leace-0: not begun, after erm-0" in done.stdout and "add --submit" in done.stdout and not list(tmp_path.iterdir())


def test_a_sweep_on_kubernetes_is_a_launch_a_run():
    done = launched("kubernetes", "--config=configs/sweeps/signal.py", "--option=GPU_HOSTS=1")
    assert not done.returncode, done.stderr
    lines = [line for line in done.stdout.splitlines() if "kubectl" in line]
    assert len(lines) == 3 and all("--workdir=/runs/signal" in line and "GPU_HOSTS=1" in line for line in lines)
    assert "RUN=signal-half" in "".join(lines) and "--config=configs/sweeps/signal.py:half" in "".join(lines)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("slurm", "--config=configs/race.py"), "--config=configs/sweeps/NAME.py expected"),
        (("slurm", "--config=configs/sweeps/signal.py:half"), "the whole sweep expected"),
        (("slurm", "--config=configs/sweeps/none.py"), "no such sweep"),
        (("slurm", "--config", "configs/sweeps/signal.py"), "--config=configs/sweeps/NAME.py expected"),
        (("kubernetes", "--config=configs/sweeps/signal.py", "--submit"), "kubectl: not found here"),
        (("moon", "--config=configs/sweeps/signal.py"), "invalid choice"),
        (("slurm", "--config=configs/sweeps/signal.py", "--submit"), "sbatch: not found here"),
    ],
)
def test_a_mistake_is_told_in_one_line(tmp_path, words, told):
    (tmp_path / "python").symlink_to(sys.executable)
    done = launched(*words, f"--workdir={tmp_path / 'runs'}", PATH=str(tmp_path))
    assert done.returncode == 1 and told in done.stderr and done.stderr.count("\n") == 1, done.stderr


# Runs that end as their turn says, by a program in the place of ours: what is held here is the queue.
QUEUE = """
    from configs import race

    def get_base():
        return race.get_config("tiny")

    def get_diffs():
        return {"first": {}, "second": {"seed": 1}, "third": {"seed": 2}}
"""


def test_a_local_queue_tries_again_what_may_be_and_nothing_else(sweep, tmp_path, monkeypatch, capsys):
    (tmp_path / "sweeps").mkdir()
    path = tmp_path / "sweeps" / "queue.py"
    path.write_text(textwrap.dedent(QUEUE))
    ends = {"first": [processes.PREEMPTED] * 9 + [processes.LOST, -9, 0], "second": [processes.FAILED], "third": [processes.LOST] * 99}
    tried = []

    class Ended:
        def __init__(self, words, **_):
            name = next(word for word in words if word.startswith("--config=")).rpartition(":")[2]
            tried.append(name)
            self.status = ends[name].pop(0)

        def wait(self):
            return self.status

    from absl import flags

    monkeypatch.setattr(sweep.subprocess, "Popen", Ended)
    saved = {name: flags.FLAGS[name].present for name in ("config", "workdir")}
    try:
        assert sweep.main(["sweep.py", "local", f"--config={path}", f"--workdir={tmp_path / 'runs'}", "--submit"]) == 1
    finally:
        for name, present in saved.items():
            flags.FLAGS[name].present = present
    assert [tried.count(name) for name in ends] == [12, 1, sweep.RETRIES + 1]
    assert "2 of the runs failed: second, third" in capsys.readouterr().err


def test_what_is_done_by_the_same_config_is_left_out(sweep, tmp_path):
    config = experiment.apply_diff(base.get_config(), {"stages": ("prepare",)})
    run = experiment.Run(tmp_path, config, config, "the command")
    assert sweep.state_of(config, tmp_path / "nowhere") == "not begun" == sweep.state_of(config, tmp_path)
    with run.recording({"platform": "cpu"}), run.stage("prepare"):
        pass
    assert tables.read_json(tmp_path / "run.json")["status"] == "done"
    assert sweep.state_of(config, tmp_path) == "done"
    other = experiment.apply_diff(base.get_config(), {"stages": ("prepare",), "dataset.uncertain": "ones"})
    assert sweep.state_of(other, tmp_path) == "done by another config"
