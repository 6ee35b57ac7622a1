"""That the SLURM of `tests.slurm` starts, warns, preempts and requeues jobs as a cluster's does, within seconds, and nothing outlives it."""

import pathlib
import re
import time

import pytest

from tests import hosts, slurm

pytestmark = pytest.mark.slow

# A task that leaves with status 75 when it is told to end, as one that has saved its state would; the script around it asks for another turn.
PATIENT = """#!/bin/bash
#SBATCH --ntasks=2 --open-mode=append
echo "turn ${SLURM_RESTART_COUNT:-0}"
[ "${SLURM_RESTART_COUNT:-0}" = 0 ] || exit 0
srun bash -c 'trap "echo task $SLURM_PROCID told; exit 75" TERM; echo task $SLURM_PROCID ready; for i in $(seq 1000); do sleep .1; done'
status=$?
echo "srun: $status"
"""
AGAIN = 'scontrol requeue "$SLURM_JOB_ID"\n'


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if reason := slurm.missing():
        pytest.skip(f"no SLURM here: {reason}")
    with slurm.Slurm(tmp_path_factory.mktemp("slurm") / "cluster") as cluster:
        yield cluster


def write(folder: pathlib.Path, text: str) -> pathlib.Path:
    path = folder / "job.sbatch"
    path.write_text(text)
    return path


def wait_until_it_says(cluster: slurm.Slurm, job: str, *words: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not all(word in cluster.output(job) for word in words):
        assert time.monotonic() < end, f"{cluster.output(job)}\n{cluster.logs()}"
        time.sleep(0.1)


def test_two_tasks_are_told_their_numbers(cluster, tmp_path):
    said = '"task $SLURM_PROCID of $SLURM_STEP_NUM_TASKS on $SLURM_STEP_NODELIST, $0"'
    script = write(tmp_path, f"#!/bin/bash\n#SBATCH --ntasks=2\nsrun bash -c 'echo {said}' \"$1 $WORD\"\n")
    job = cluster.sbatch(script, "argument", env={"WORD": "and word"}, cwd=tmp_path)
    assert cluster.wait(job) == "COMPLETED"
    assert sorted(cluster.output(job).splitlines()) == [f"task {number} of 2 on localhost, argument and word" for number in (0, 1)]
    # Where it was submitted, as on a cluster.
    assert (tmp_path / f"slurm-{job}.out").exists()


def test_tasks_are_told_to_end_before_the_limit(cluster, tmp_path):
    # SLURM looks every 30 s, and sends it up to 30 s early: from 10 to 40 s after the start.
    job = cluster.sbatch(write(tmp_path, PATIENT), options=["--time=1", "--signal=TERM@20"])
    assert cluster.wait(job, timeout=100) == "COMPLETED"
    said = cluster.output(job)
    assert set(re.findall(r"task (\d) told", said)) == {"0", "1"}
    # The script itself is not told, and hears what the tasks left with.
    assert said.endswith("srun: 75\n") and "TIME LIMIT" not in said


def test_a_job_puts_itself_back_in_the_queue(cluster, tmp_path):
    first = '#!/bin/bash\n#SBATCH --open-mode=append\necho "turn ${SLURM_RESTART_COUNT:-0}"\n[ "$SLURM_RESTART_COUNT" = 1 ] || '
    script = write(tmp_path, first + AGAIN)
    start = time.monotonic()
    job = cluster.sbatch(script)
    assert cluster.wait(job) == "COMPLETED"
    # Two minutes, where cred_expire does not say otherwise.
    assert time.monotonic() - start < 40
    assert re.findall(r"turn \d", cluster.output(job)) == ["turn 0", "turn 1"]
    assert cluster.show(job)[0]["Restarts"] == "1"


def test_one_that_is_more_urgent_takes_its_place(cluster, tmp_path):
    job = cluster.sbatch(write(tmp_path, PATIENT + AGAIN))
    wait_until_it_says(cluster, job, "task 0 ready", "task 1 ready")
    urgent = cluster.sbatch(write(tmp_path, "#!/bin/bash\nsleep 1\n"), options=["--partition=urgent", "--exclusive"])
    assert cluster.wait(urgent) == cluster.wait(job) == "COMPLETED"
    said = cluster.output(job)
    assert set(re.findall(r"task (\d) told", said)) == {"0", "1"} and "srun: 75\n" in said
    assert re.findall(r"turn \d", said) == ["turn 0", "turn 1"]


def test_an_array_runs_all_its_tasks(cluster, tmp_path):
    array = cluster.sbatch(write(tmp_path, '#!/bin/bash\necho "task $SLURM_ARRAY_TASK_ID of $SLURM_ARRAY_JOB_ID"\n'), options=["--array=0-3%2"])
    assert cluster.wait(array) == "COMPLETED"
    assert cluster.output(array).splitlines() == [f"task {number} of {array}" for number in range(4)]
    assert not cluster.squeue()


def test_what_goes_wrong_is_told_at_once(cluster, tmp_path):
    job = cluster.sbatch(write(tmp_path, "#!/bin/bash\necho not today\nexit 3\n"))
    with pytest.raises(AssertionError, match="(?s)ended FAILED, not COMPLETED.*ExitCode=3:0.*not today.*--- slurmctld\n"):
        cluster.wait(job, until="COMPLETED")
    with pytest.raises(AssertionError, match="exits with 1: sbatch: error: .*no/such"):
        cluster.sbatch("no/such")


def test_nothing_outlives_it(tmp_path, capsys):
    if reason := slurm.missing():
        pytest.skip(f"no SLURM here: {reason}")

    class OfTheTest(Exception):
        pass

    with pytest.raises(OfTheTest), slurm.Slurm(tmp_path / "cluster") as cluster:
        # A task that heeds no signal, and one that leaves the job's session.
        script = "#!/bin/bash\ntrap '' TERM HUP\nsetsid sleep 1000 &\nsrun sh -c 'echo here; sleep 1000'\n"
        job = cluster.sbatch(write(tmp_path, script))
        wait_until_it_says(cluster, job, "here")
        assert len(running(cluster)) >= 8
        raise OfTheTest
    assert not running(cluster)
    assert "--- slurmd.localhost\n" in capsys.readouterr().out


def running(cluster: slurm.Slurm) -> list[str]:
    """Commands of all processes on this machine that know of this SLURM's folder."""
    found = []
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if str(cluster.folder).encode() in (process / "environ").read_bytes() + (process / "cmdline").read_bytes():
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


def test_two_hosts_are_two_nodes(tmp_path):
    if reason := slurm.missing() or hosts.missing():
        pytest.skip(f"no SLURM on two hosts here: {reason}")
    said = "$SLURM_PROCID $SLURM_LOCALID $(hostname) $SLURM_STEP_NODELIST"
    script = write(tmp_path, f"#!/bin/bash\n#SBATCH --nodes=2 --ntasks-per-node=1\nsrun bash -c 'echo {said}'\n")
    with hosts.Hosts() as pair, slurm.Slurm(tmp_path / "cluster", hosts=pair) as cluster:
        job = cluster.sbatch(script)
        assert cluster.wait(job) == "COMPLETED"
        both = pair.names[0].removesuffix("0") + "[0-1]"
        assert sorted(cluster.output(job).splitlines()) == [f"{number} 0 {name} {both}" for number, name in enumerate(pair.names)]
