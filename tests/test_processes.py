"""What a process knows of its launch, and how SIGTERM ends it."""

import os
import signal
import threading
import time

import pytest

from cxr_jax import processes
from cxr_jax.tables import UserError

STEP = {
    "SLURM_JOB_ID": "4242", "SLURM_STEP_NODELIST": "gpu[03-04,07]", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2", "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1", "SLURM_STEP_TASKS_PER_NODE": "2,1(x2)",
}  # fmt: skip


def test_nothing_is_launched_where_nothing_says_so():
    assert processes.launched({}) is None
    assert processes.launched({"JAX_COORDINATOR_ADDRESS": "a:1"}) is None
    # As a batch script has it outside of srun: of many tasks, but of no step.
    assert processes.launched({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}) is None


def test_whoever_starts_processes_can_say_so():
    given = {"JAX_COORDINATOR_ADDRESS": "gpu03:1234", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
    assert processes.launched(given) == processes.Launch("gpu03:1234", 2, 1)
    assert processes.launched(STEP | given) == processes.Launch("gpu03:1234", 2, 1)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"JAX_PROCESS_ID": ""}, "but not JAX_PROCESS_ID"),
        ({"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES='two'"),
        ({"JAX_PROCESS_ID": "2"}, "from 0, expected"),
        ({"JAX_COORDINATOR_ADDRESS": "gpu03"}, "a host with a port"),
    ],
)
def test_half_a_launch_is_told(changed, told):
    given = {"JAX_COORDINATOR_ADDRESS": "gpu03:1234", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"} | changed
    with pytest.raises(UserError, match=told):
        processes.launched(given)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("gpu01", "gpu01"), ("gpu01,gpu02", "gpu01"), ("gpu[01-04,07]", "gpu01"), ("gpu[03,05-06]", "gpu03"), ("a-b[7-9],c", "a-b7"), ("n[1-2]-ib", "n1-ib")],
)
def test_a_step_of_slurm_is_a_launch(nodes, first):
    found = processes.launched(STEP | {"SLURM_STEP_NODELIST": nodes})
    assert (found.address.split(":")[0], found.count, found.index) == (first, 4, 2)
    assert 61000 <= int(found.address.split(":")[1]) < 65000
    assert found.address == processes.launched(STEP | {"SLURM_STEP_NODELIST": nodes, "SLURM_PROCID": "0"}).address


@pytest.mark.parametrize(
    ("changed", "devices"),
    [
        ({}, None),  # alone on its node: all that it sees, of which JAX by itself would take the first
        ({"SLURM_NODEID": "0", "SLURM_LOCALID": "1"}, (1,)),
        ({"SLURM_NODEID": "0", "SLURM_LOCALID": "1", "CUDA_VISIBLE_DEVICES": "0,1"}, (1,)),
        ({"SLURM_NODEID": "0", "SLURM_LOCALID": "1", "CUDA_VISIBLE_DEVICES": "3"}, None),  # SLURM shows it its own alone
        ({"SLURM_NODEID": "2"}, None),
    ],
)
def test_a_task_takes_the_accelerators_that_are_its_own(changed, devices):
    assert processes.launched(STEP | changed).devices == devices


def test_one_process_needs_nobody():
    assert processes.count() == 1 and processes.index() == 0 and processes.first()
    assert processes.agreed({"a": (1, 2)}) == {"a": (1, 2)}
    assert processes.leave(processes.FAILED, "why") == processes.FAILED


def told_to_stop():
    os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_ends_what_runs_at_once():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(processes.Preempted):
        with processes.terminable():
            told_to_stop()
            time.sleep(10)
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_waits_for_what_ends_by_itself():
    reached = []
    with processes.terminable():
        with pytest.raises(processes.Preempted):
            with processes.finishing():
                assert not processes.asked_to_stop()
                told_to_stop(), told_to_stop()  # schedulers may say it twice
                assert processes.asked_to_stop()
                reached.append("the end")
        told_to_stop()  # once more: what leaves is not interrupted on its way
        with pytest.raises(processes.Preempted):
            processes.stop_if_asked()
    assert not processes.asked_to_stop()
    assert reached == ["the end"]


def test_who_is_about_to_end_hears_nothing_more():
    with processes.terminable():
        processes.hear_no_more()
        told_to_stop()


def test_an_error_is_not_hidden_by_sigterm():
    with processes.terminable(), pytest.raises(ZeroDivisionError):
        with processes.finishing():
            told_to_stop()
            1 / 0


def test_outside_the_main_thread_signals_are_left_alone():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work():
        with processes.terminable():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
