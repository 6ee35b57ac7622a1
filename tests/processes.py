"""Several processes of one launch on this machine, as a cluster would start them: JAX's own runtime, with collectives on CPUs."""

import os
import pathlib
import socket
import subprocess
import sys

_JOIN = "import sys, jax; jax.distributed.initialize(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])); del sys.argv[1:4]\n"


def launch(program: str, *arguments: str, count: int = 2, timeout: float = 300) -> list[str]:
    """What each of `count` processes printed that run a program, which finds `arguments` in sys.argv[1:], each on a CPU device of its own.

    Raises AssertionError with all that they printed where one fails; where one has not ended in `timeout` seconds, TimeoutExpired. None is left running.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(pathlib.Path(__file__).resolve().parents[1])}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", _JOIN + program, address, str(count), str(number), *arguments],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for number in range(count)
    ]  # fmt: skip
    try:
        printed = [process.communicate(timeout=timeout)[0] for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert not any(process.returncode for process in started), "\n".join(printed)
    return printed
