"""Two hosts on this machine: network namespaces joined by one cable, so that neither finds the other on localhost.

Each has its own loopback, address and name (the kernel's too, which is what `hostname` and JAX's collectives go by), and both know both names.
Nothing else can be reached from them: no other network, no name server. Files and processes are the machine's own.
"""

from __future__ import annotations

import functools
import os
import pathlib
import secrets
import shutil
import signal
import subprocess
import time

# Which /etc/hosts a namespace sees: `ip netns exec` lays this folder's files over those in /etc.
_ETC = pathlib.Path("/etc/netns")
# The same for every pair, since a namespace sees no address but its own pair's.
_ADDRESSES = ("10.77.0.1", "10.77.0.2")


class Hosts:
    """Two hosts, 0 and 1, from `with` until its end, when all that still runs on them is killed. Needs root: see `missing`.

    names: what each is called, and finds in its /etc/hosts; new with every pair.
    addresses: IPv4, one each.
    """

    def __init__(self):
        pair = f"cxr-{os.getpid()}-{secrets.token_hex(2)}"
        # Numbered at the end, as a cluster's nodes are: SLURM then writes both as NAME-[0-1].
        self.names = (f"{pair}-0", f"{pair}-1")
        self.addresses = _ADDRESSES
        self._started: list[subprocess.Popen] = []

    def __enter__(self) -> Hosts:
        try:
            for name in self.names:
                _ip("netns", "add", name)
                (_ETC / name).mkdir(parents=True)
                known = zip((*self.addresses, "127.0.0.1"), (*self.names, "localhost"), strict=True)
                (_ETC / name / "hosts").write_text("".join(f"{address} {host}\n" for address, host in known))
            # Both ends are made where they belong, so that no name is taken on the machine itself.
            _ip("-n", self.names[0], "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", self.names[1])
            for name, address in zip(self.names, self.addresses, strict=True):
                _ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
                for link in ("lo", "eth0"):
                    _ip("-n", name, "link", "set", link, "up")
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *_) -> None:
        self._remove()

    def within(self, host: int, command: list[str]) -> list[str]:
        """The command that runs `command` on host 0 or 1. Each program replaces the one before it: a signal to the process reaches `command` itself."""
        name = self.names[host]
        named = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', name]
        return ["ip", "netns", "exec", name, *named, *map(str, command)]

    def popen(self, host: int, command: list[str], **options) -> subprocess.Popen:
        """Starts a command on host 0 or 1; `options` are subprocess.Popen's."""
        process = subprocess.Popen(self.within(host, command), **options)
        self._started.append(process)
        return process

    def cut(self, host: int = 1) -> None:
        """Takes a host's end of the cable down: that host is told that there is no network, the other merely hears nothing more, as when a host dies."""
        _ip("-n", self.names[host], "link", "set", "eth0", "down")

    def mend(self, host: int = 1) -> None:
        _ip("-n", self.names[host], "link", "set", "eth0", "up")

    def _remove(self) -> None:
        for name in self.names:
            # Once more until none is left: a process may start others while it is being killed.
            for _ in range(100):
                running = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout.split()
                for number in map(int, running):
                    try:
                        os.kill(number, signal.SIGKILL)
                    except ProcessLookupError:
                        pass
                for process in self._started:
                    process.poll()
                if not running:
                    break
                time.sleep(0.05)
            # The cable goes with either namespace.
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)
            shutil.rmtree(_ETC / name, ignore_errors=True)
        for process in self._started:
            # Which closes its pipes and waits.
            with process:
                pass


@functools.cache
def missing() -> str:
    """Why there can be no `Hosts` here, in a few words; "" where there can."""
    for program in ("ip", "unshare", "hostname"):
        if not shutil.which(program):
            return f"{program} is not installed"
    if os.geteuid():
        return "not root"
    # Root in a container may be refused namespaces, or find no veth in the kernel.
    try:
        with Hosts() as hosts:
            tried = hosts.popen(0, ["true"], stderr=subprocess.PIPE, text=True)
            complaint = tried.communicate()[1]
            return f"nothing runs in a network namespace: {complaint.strip()}" if tried.returncode else ""
    except subprocess.CalledProcessError as error:
        return f"no network namespaces: {error.stderr.strip()}"
    except OSError as error:
        return f"no network namespaces: {error}"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
