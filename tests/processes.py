"""Several processes of one launch on this machine, as a cluster would start them: JAX's own runtime, with collectives on CPUs."""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

ROOT = pathlib.Path(__file__).resolve().parents[1]
_JOIN = "import sys; from cxr_jax import processes; processes.join(); sys.stdout = sys.__stdout__\n"


def places(folder: pathlib.Path) -> dict[str, str]:
    """The environment by which data sets and compiled programs of several starts lie in one folder."""
    return {"TFDS_DATA_DIR": str(folder / "data"), "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"), "JAX_PLATFORMS": "cpu"}


def start(arguments: list[str], count: int, before: Mapping[int, Sequence[str]] = {}, **environment: str) -> list[subprocess.Popen]:
    """`count` processes of one launch, each on a CPU device of its own, that run Python with `arguments`; what they print is in their `stdout`, errors too.

    before: by a process's number, a command that starts it.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    shared = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(ROOT), "JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)} | environment
    return [
        subprocess.Popen(
            [*before.get(number, ()), sys.executable, *arguments], cwd=ROOT, env=shared | {"JAX_PROCESS_ID": str(number)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for number in range(count)
    ]  # fmt: skip


def ended(started: list[subprocess.Popen], timeout: float = 300) -> list[tuple[int, str]]:
    """(status, what it printed) of each, once all have ended. None is left running.

    Raises AssertionError where one has not ended in `timeout` seconds, with all that they printed: most often one waits in vain for one that failed.
    """
    until = time.monotonic() + timeout
    try:
        for process in started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=until - time.monotonic())
    finally:
        late = [number for number, process in enumerate(started) if process.poll() is None]
        for process in started:
            process.kill()
    printed = [process.communicate()[0] for process in started]
    assert not late, f"still running after {timeout:.0f} seconds: {late}\n" + "\n".join(printed)
    return [(process.returncode, text) for process, text in zip(started, printed)]


def launch(program: str, *arguments: str, count: int = 2, timeout: float = 300) -> list[str]:
    """What each of `count` processes printed that run a program, which finds `arguments` in sys.argv[1:].

    Raises AssertionError with all that they printed where one fails.
    """
    all_ = ended(start(["-c", _JOIN + program, *arguments], count), timeout)
    assert not any(status for status, _ in all_), "\n".join(printed for _, printed in all_)
    return [printed for _, printed in all_]
