"""The processes of one launch: how they find each other, which of them writes, and how each leaves when it has to.

A launch of several processes computes together what one alone would; one process a machine, with all its accelerators, is
the usual way. JAX's own distributed runtime joins them. Here is what a program owes to it, and to the scheduler:

- the first process writes, and decides what depends on files (`first`, `agreed`);
- SIGTERM, by which schedulers announce that they want the machine back, ends a run as soon as what it has is safe
  (`Preempted`, `finishing`), with a status that asks to be started again;
- a process that ends, is killed or is cut off ends the others within a minute, each with a line that names it; of the first one, by which they are
  joined, JAX itself tells, and aborts.

Statuses are what launch/ acts upon: PREEMPTED is started again for ever, LOST some times, anything else never.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NoReturn

from cxr_jax import tables
from cxr_jax.tables import UserError

DONE, FAILED, LOST, PREEMPTED, INTERRUPTED = 0, 1, 69, 75, 130

SILENCE = 20.0  # seconds without a sign, after which a process is taken for lost
_EVERY = 1.0  # seconds between signs
# Seconds, after which at the latest, and after half of them at the earliest, JAX's runtime ends what we did not: where an interpreter hangs. (Of the
# first process it learns at once, when the connection breaks.) By an abort, hence later than we.
_HEARTBEAT = 55
_JOINING = 300  # seconds that processes wait for each other at the start


class NotJoined(UserError):
    """The first process of the launch was not reached; it may be on another try."""


class Preempted(BaseException):
    """SIGTERM was heard, and what there is can be gone on with. Not an Exception: nothing on the way is to take it for a failure."""


@dataclasses.dataclass(frozen=True)
class Launch:
    """address: HOST:PORT of the first process, where JAX's runtime listens. count, index: of processes. devices: ids of this machine's
    accelerators that are this process's; None: all that it sees."""

    address: str
    count: int
    index: int
    devices: tuple[int, ...] | None = None


_launch: Launch | None = None
_roll_call: "_RollCall | None" = None
_agreements = 0


# ------------------------------------------------------------------------------------------------------------- joining


def launched(environment: Mapping[str, str]) -> Launch | None:
    """The launch that a process's environment tells of; None where it tells of none.

    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, all three, from whoever starts processes; or SLURM's variables of a job step.
    Raises UserError for what cannot be a launch.
    """
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    given = {name: environment[name] for name in names if environment.get(name)}
    if {"JAX_NUM_PROCESSES", "JAX_PROCESS_ID"} & given.keys():
        if len(given) < 3:
            raise UserError(f"{' and '.join(given)} set in the environment, but not {' and '.join(n for n in names if n not in given)}; set all three, or none")
        count, index = (_whole(given[name], name) for name in names[1:])
        if not 0 <= index < count or ":" not in given[names[0]]:
            raise UserError(f"{', '.join(f'{k}={v}' for k, v in given.items())}: a host with a port, a number of processes, and which of them this is, from 0, expected")
        return Launch(given[names[0]], count, index)
    # Outside of srun, in the batch script itself, there is no step.
    if all(environment.get(name) for name in ("SLURM_STEP_NODELIST", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_JOB_ID")):
        count, index = (_whole(environment[name], name) for name in ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"))
        address = given.get(names[0]) or f"{_first_host(environment['SLURM_STEP_NODELIST'])}:{_port(_whole(environment['SLURM_JOB_ID'], 'SLURM_JOB_ID'))}"
        return Launch(address, count, index, _own_devices(environment))
    return None


def _whole(text: str, name: str) -> int:
    if not re.fullmatch(r"\d+", text):
        raise UserError(f"{name}={text!r} in the environment: a whole number expected")
    return int(text)


def _first_host(nodes: str) -> str:
    """The first of a list as SLURM writes it: gpu01, gpu01,gpu02, gpu[01-04,07] or gpu[01,03]-ib."""
    prefix, inside, first, suffix = re.match(r"([^,\[]*)(\[([^,\-\]]+)[^\]]*\])?([^,\[]*)", nodes).groups()
    return prefix + (first if inside else "") + suffix


def _port(job: int) -> int:
    """One that every process of a job finds, and that jobs of one machine seldom share: beyond those that Linux gives out by itself."""
    return 61000 + job % 4000


def _own_devices(environment: Mapping[str, str]) -> tuple[int, ...] | None:
    """All that are seen, where a task is alone on its machine or SLURM shows it its own alone; else the one of its number.

    (JAX by itself would give a task that is alone on a machine of eight the first one only.)
    """
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE", "")
    counts = [int(count) for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", tasks) for _ in range(int(times or 1))]
    node = int(environment.get("SLURM_NODEID") or 0)
    alone = (counts[node] if node < len(counts) else 1) == 1
    shown = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")
    own = alone or shown != [""] and len(shown) == 1 or environment.get("SLURM_GPUS_PER_TASK")
    return None if own else (int(environment.get("SLURM_LOCALID") or 0),)


def join(asked: bool = False) -> None:
    """Joins the other processes of this launch, where there are any; before any other JAX call. Once a process, however many runs it makes.

    asked: the user says that there are others, whom JAX itself is to find where the environment does not tell (TPU slices).
    What is printed on stdout is the first one's. Raises NotJoined where the first process is not reached, UserError where none is known.
    """
    global _launch, _roll_call
    found = launched(os.environ)
    if _launch is not None or not (found or asked) or found and found.count == 1:
        return
    import jax

    # Its own way of hearing SIGTERM would take the signal from us, and knows of training steps only.
    jax.config.update("jax_enable_preemption_service", False)
    if found:
        if found.index:
            _reach(found)
        told = {"coordinator_address": found.address, "num_processes": found.count, "process_id": found.index, "local_device_ids": found.devices}
        told["cluster_detection_method"] = "deactivate"
    else:
        told = {}
    try:
        jax.distributed.initialize(**told, initialization_timeout=_JOINING, heartbeat_timeout_seconds=_HEARTBEAT, shutdown_timeout_seconds=60)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"--distributed: {str(error).splitlines()[0]} Start it by srun, by launch/local.sh --processes=N, or set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID") from error
    _launch = found or Launch("", jax.process_count(), jax.process_index())
    if _launch.count > 1:
        _roll_call = _RollCall(_launch)
        _roll_call.start()
    if not first():
        sys.stdout = open(os.devnull, "w")


def _reach(launch: Launch) -> None:
    """Waits until the first process listens, which JAX, where it does not, tells of by an abort."""
    host, _, port = launch.address.rpartition(":")
    until = time.monotonic() + _JOINING
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except (OSError, ValueError) as error:
            if time.monotonic() > until or isinstance(error, ValueError):
                raise NotJoined(
                    f"process {launch.index} of {launch.count} does not reach the first one at {launch.address} ({error}):"
                    " it did not start, or that is not its address, or a firewall is between them"
                ) from error
        time.sleep(0.5)


def count() -> int:
    """How many processes the launch has; 1 until it was joined."""
    return _launch.count if _launch else 1


def index() -> int:
    """Which of them this is, from 0."""
    return _launch.index if _launch else 0


def first() -> bool:
    """Whether this is the process that writes."""
    return index() == 0


# ------------------------------------------------------------------------------------------------ one of them goes ahead


def agreed(value=None):
    """The first process's value, as JSON has it, on every process; they wait until the first has come here. It does not wait for them.

    To be called by all processes equally often. With no value it says that what the first one did before is done.
    """
    global _agreements
    if count() == 1:
        return value
    _agreements += 1
    key = f"{_KEY}agreed/{_agreements}"
    if first():
        told = json.dumps(tables.without_nan(value)) if isinstance(value, (dict, list)) else json.dumps(value)
        _store().key_value_set(key, told)
        return json.loads(told)
    while True:
        try:
            return json.loads(_store().blocking_key_value_get(key, 10_000))
        except Exception as error:  # which is JAX's own, and has no kind of its own
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


_KEY = "cxr_jax/"


def _store():
    """The launch's own store of keys and values, which JAX has no public name for."""
    from jax._src import distributed

    return distributed.global_state.client


# -------------------------------------------------------------------------------------------------------------- leaving

_heard = False
_deaf = False
_finishing = 0
_leaving = False
_told_at_loss: list[Callable[[int], None]] = []


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM inside raises Preempted, or waits for the end of what is `finishing`. In the main thread; elsewhere nothing changes."""
    global _heard, _deaf

    def hear(*_) -> None:
        global _heard
        # Said twice, as schedulers and the impatient do, it is one message: what leaves is not to be interrupted on its way.
        again, _heard = _heard or _deaf, True
        if not again and not _finishing:
            raise Preempted

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _heard, _deaf, before = False, False, signal.signal(signal.SIGTERM, hear)
    try:
        yield
    finally:
        _heard = _deaf = False
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def finishing() -> Iterator[None]:
    """What is inside asks by itself, by `asked_to_stop`, and ends when it can be gone on with; until then SIGTERM does not break it off."""
    global _finishing
    _finishing += 1
    try:
        yield
    finally:
        _finishing -= 1
    if _heard and not _finishing:
        raise Preempted


def asked_to_stop() -> bool:
    """Whether this process has heard SIGTERM."""
    return _heard


def stop_if_asked() -> None:
    """Raises Preempted where SIGTERM was heard in a moment in which Python drops what is raised."""
    if _heard:
        raise Preempted


def hear_no_more() -> None:
    """From here on SIGTERM changes nothing: this process is about to end."""
    global _deaf
    _deaf = True


def all_stop() -> None:
    """To be called once all processes have agreed to stop: whoever leaves first from here on is not taken for lost."""
    global _leaving
    _leaving = True


@contextlib.contextmanager
def at_loss(tell: Callable[[int], None]) -> Iterator[None]:
    """`tell` is called with the status of this process where, inside, another one is lost, which ends this one whatever it is doing."""
    _told_at_loss.append(tell)
    try:
        yield
    finally:
        _told_at_loss.remove(tell)


def leave(status: int, reason: str = "") -> int:
    """Ends what `join` began, and returns `status` for the caller to end with. Never returns in a launch that fails: others would be waited for.

    reason: what the others say why they end, too.
    """
    if count() == 1:
        return status
    _roll_call.leave(status, reason)
    if status == DONE:
        import jax

        jax.distributed.shutdown()
        return status
    _end(status)


def wait_for_verdict(error: BaseException) -> None:
    """Where an error looks as if another process was lost, waits for the roll call to say which, which ends this process. Else returns."""
    if count() > 1 and any(word in str(error) for word in ("Gloo", "NCCL", "nccl", "UNAVAILABLE", "Connection", "DEADLINE_EXCEEDED", "coordination")):
        time.sleep(SILENCE + 15 * _EVERY)


def _end(status: int) -> NoReturn:
    # Not sys.exit: JAX would wait in its exit handlers for those who do not come.
    sys.stderr.flush()
    sys.__stdout__.flush()
    os._exit(status)


class _RollCall(threading.Thread):
    """Gives a sign of this process every second, and ends it where another one has left or is silent."""

    def __init__(self, launch: Launch):
        super().__init__(name="cxr_jax-roll-call", daemon=True)
        self._launch, self._store = launch, _store()
        self._host = socket.gethostname()
        self._stop_it = threading.Event()

    def run(self) -> None:
        # Who never gives a sign is missed, too.
        seen = {j: ("", time.monotonic()) for j in range(self._launch.count)}
        me, beat, hosts = self._launch.index, 0, dict.fromkeys(seen, "")
        while not self._stop_it.wait(_EVERY):
            beat += 1
            try:
                self._store.key_value_set(f"{_KEY}alive/{me}", f"{beat} {self._host}", allow_overwrite=True)
                alive, left = self._all("alive"), self._all("left")
            except Exception:
                if self._stop_it.is_set() or _leaving:
                    return
                # Mostly JAX is quicker, says so in its own words, and aborts.
                self._lost(LOST, f"process 0 of {self._launch.count}, at {self._launch.address}, is gone; this one ends with it")
            if _leaving:
                continue
            for j, told in left.items():
                status, _, reason = told.partition(" ")
                if j != me and int(status) != DONE:
                    self._lost(int(status), f"process {j} of {self._launch.count}{hosts[j]} {reason}; this one ends with it")
            now = time.monotonic()
            for j, (before, since) in list(seen.items()):
                sign = alive.get(j, "")
                if sign != before:
                    seen[j], hosts[j] = (sign, now), f" (on {sign.partition(' ')[2]})"
                elif j != me and j not in left and now - since > SILENCE:
                    self._lost(LOST, f"process {j} of {self._launch.count}{hosts[j]} has given no sign for {SILENCE:.0f} s: it was killed, or its machine is cut off; this one ends with it")

    def _all(self, what: str) -> dict[int, str]:
        return {int(key.rpartition("/")[2]): value for key, value in self._store.key_value_dir_get(f"{_KEY}{what}/")}

    def _lost(self, status: int, told: str) -> NoReturn:
        print(f"\nerror: {told}", file=sys.stderr)
        for tell in list(_told_at_loss):
            with contextlib.suppress(Exception):
                tell(status)
        self.leave(status, "ended, since another one had", lost=status == LOST)
        _end(status)

    def leave(self, status: int, reason: str, lost: int = 0) -> None:
        """Tells the others. The first process, by whom they learn of it, waits until they have ended, but for so many who are lost, or for some seconds."""
        self._stop_it.set()
        with contextlib.suppress(Exception):
            self._store.key_value_set(f"{_KEY}left/{self._launch.index}", f"{status} {reason}", allow_overwrite=True)
            until = time.monotonic() + 8 * _EVERY
            while self._launch.index == 0 and status != DONE and len(self._all("left")) < self._launch.count - lost and time.monotonic() < until:
                time.sleep(_EVERY / 4)
