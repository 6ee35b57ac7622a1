"""That two hosts of `tests.hosts` reach each other by address and name, over the cable alone, and nothing outlives them."""

import pathlib
import socket
import subprocess
import sys

import pytest

from tests import hosts

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _where_they_can_be_had():
    if reason := hosts.missing():
        pytest.skip(f"no two hosts here: {reason}")


# Says where it listens, then answers whoever calls.
SERVER = """
import socket, sys
server = socket.create_server((sys.argv[1], 0))
print(server.getsockname()[1], flush=True)
while True:
    caller, _ = server.accept()
    caller.sendall(socket.gethostname().encode())
    caller.close()
"""
CLIENT = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=2) as server:
    print(server.recv(100).decode())
"""


def call(pair: hosts.Hosts, host: int, address: str, port: str) -> tuple[str, str]:
    """What a client on `host` prints, and its last line of complaint."""
    client = pair.popen(host, [sys.executable, "-c", CLIENT, address, port], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    out, err = client.communicate(timeout=30)
    return out.strip(), err.strip().rpartition("\n")[2]


def test_a_server_is_reached_by_address_and_by_name_until_the_cable_is_cut():
    with hosts.Hosts() as pair:
        server = pair.popen(0, [sys.executable, "-c", SERVER, pair.addresses[0]], stdout=subprocess.PIPE, text=True)
        port = server.stdout.readline().strip()
        for address in (pair.addresses[0], pair.names[0]):
            assert call(pair, 1, address, port) == (pair.names[0], "")
        # The other host's localhost is its own, and so is this machine's.
        out, complaint = call(pair, 1, "localhost", port)
        assert not out and "refused" in complaint
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("localhost", int(port)), timeout=2)

        pair.cut()
        out, complaint = call(pair, 1, pair.addresses[0], port)
        assert not out and "unreachable" in complaint
        pair.mend()
        assert call(pair, 1, pair.addresses[0], port) == (pair.names[0], "")
        # The server's own end: callers hear nothing, and give up when they have waited long enough.
        pair.cut(0)
        out, complaint = call(pair, 1, pair.addresses[0], port)
        assert not out and complaint == "TimeoutError: timed out"


def runs(number: int) -> bool:
    """Whether there is a process of that number that is not merely waiting for its parent to take note of its end."""
    try:
        return pathlib.Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_nothing_outlives_them():
    class OfTheTest(Exception):
        pass

    with pytest.raises(OfTheTest), hosts.Hosts() as pair:
        # One that heeds no signal it can help, with a child that is not ours to wait for.
        parent = pair.popen(1, ["sh", "-c", "trap '' TERM HUP INT; sleep 1000 & echo $!; wait"], stdout=subprocess.PIPE, text=True)
        child = int(parent.stdout.readline())
        assert runs(child)
        raise OfTheTest
    assert parent.returncode == -9 and not runs(child)
    assert not set(pair.names) & set(subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout.split())
    assert not any((pathlib.Path("/etc/netns") / name).exists() for name in pair.names)
