"""A SLURM of the test's own on this machine: munged, slurmctld and slurmd from Debian's packages, with everything that they write below one folder.

Beside `tests.hosts` it has two nodes, one on each of the hosts, else one. Jobs run as root, in this machine's file system.
"""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence

from tests.hosts import Hosts

# Debian keeps daemons where a user's PATH may not look.
_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
# States that a job does not leave by itself. Neither COMPLETING, which it is in before any of them, nor the wait to run again.
ENDED = frozenset(("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"))

# cred_expire: a job put back in the queue waits for as long before it may start again, two minutes where nothing is said. It is how long the order to start
#   may take from slurmctld to slurmd, too, hence not shorter.
# CPUs: as many as asked for, whatever the machine has (config_overrides).
# Scheduling is looked at every second, not every half or whole minute; but limits, and with them `--signal`, only every 30 s, which cannot be set.
# Jobs that have ended stay in slurmctld's list (MinJobAge), since there is no accounting to ask.
# A job in `urgent` takes the place of those in `test`: they have GraceTime seconds from SIGTERM, then are put back in the queue.
_CONFIG = """\
ClusterName=cxr
SlurmctldHost={names[0]}({addresses[0]})
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={sockets}/munge,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
JobRequeue=1
KillWait={kill_seconds}
BatchStartTimeout=30
MinJobAge=86400
StateSaveLocation={folder}/state
SlurmdSpoolDir={sockets}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
{nodes}
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime={grace_seconds}
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
"""


class Slurm:
    """One SLURM, from `with` until its end, when its daemons and all that its jobs still run are killed. See `missing` for what it needs.

    folder: of its own, empty or absent; slurm.conf, state, spools and logs are written there, and jobs start there.
    cpus: of a node, which need not be as many as the machine has; a task takes one.
    hosts: two nodes, on these; without, one node called localhost.
    kill_seconds: what a process has from SIGTERM until it is killed, where its job is cancelled, put back in the queue or out of time. While one is being
        waited for, nothing new starts on the node.
    grace_seconds: what a job has from SIGTERM until it is put back in the queue, where one in the partition `urgent` wants its place; 0: it is put back
        at once.

    Whatever fails here raises AssertionError, with the ends of the daemons' logs (where one of SLURM's commands hangs, TimeoutExpired); where a test fails
    within `with`, these are printed.
    """

    def __init__(self, folder: pathlib.Path, cpus: int = 4, *, hosts: Hosts | None = None, kill_seconds: int = 30, grace_seconds: int = 30):
        self.folder = pathlib.Path(folder).resolve()
        self.nodes = hosts.names if hosts else ("localhost",)
        # A job's own environment comes from where it is submitted; what an outer SLURM or a user's habits would tell ours stays out.
        self.environment = {name: value for name, value in os.environ.items() if not re.match("(SLURM|SBATCH|SRUN|SCANCEL|SQUEUE|SINFO)_", name)}
        self.environment |= {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": _PATH}
        self._hosts, self._cpus, self._seconds = hosts, cpus, {"kill_seconds": kill_seconds, "grace_seconds": grace_seconds}
        self._daemons: list[subprocess.Popen] = []

    def __enter__(self) -> Slurm:
        self.folder.mkdir(parents=True, exist_ok=True)
        # A folder elsewhere, since a socket's path has 107 characters at most and a test's own folder may take most of them.
        self._sockets = pathlib.Path(tempfile.mkdtemp(prefix="slurm-"))
        try:
            longest = self._sockets / self.nodes[0] / f"{self.nodes[0]}_10000.4294967291"
            assert len(str(longest)) <= 107, f"the folder for temporary files has too long a path for SLURM: a socket would be {longest}"
            self._configure()
            # Forced, since a test's folder is closed to other users, which munged has misgivings about.
            door = self._sockets / "munge"
            files = [f"--{file}-file={self.folder}/munge.{file}" for file in ("key", "pid", "seed")]
            self._start("munged", 0, "munged", "--foreground", "--force", f"--socket={door}", *files)
            self._until(door.exists, 30, "munged does not answer")
            self._start("slurmctld", 0, "slurmctld", "-D")
            for number, node in enumerate(self.nodes):
                self._start(f"slurmd.{node}", number, "slurmd", "-D", "-N", node)
            self._until(self._idle, 60, "a node is not idle")
        except BaseException:
            self._stop()
            raise
        return self

    def _configure(self) -> None:
        addresses = self._hosts.addresses if self._hosts else ("127.0.0.1",)
        machines = self._hosts.names if self._hosts else (socket.gethostname().partition(".")[0],)
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
        nodes = "\n".join(
            f"NodeName={node} NodeHostname={machine} NodeAddr={address} CPUs={self._cpus} RealMemory={memory} State=UNKNOWN"
            for node, machine, address in zip(self.nodes, machines, addresses, strict=True)
        )
        (self.folder / "slurm.conf").write_text(
            _CONFIG.format(folder=self.folder, sockets=self._sockets, names=machines, addresses=addresses, ports=_free_ports(2), nodes=nodes, **self._seconds)
        )
        # slurmd loads one of the two plugins whether it is used or not. The first does nothing until it is asked. The second wants systemd; and where nothing
        # is said, slurmd looks about in /sys, which has no cgroups on `hosts`.
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        (self.folder / "state").mkdir()
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))

    def __exit__(self, kind, *_) -> None:
        self._stop()
        if kind is not None:
            print(self.logs())

    def client(self, *words: str | pathlib.Path, env: dict | None = None, cwd: pathlib.Path | None = None) -> str:
        """What one of SLURM's commands prints, such as ("scancel", "--signal=TERM", job), run where slurmctld is. env: added to `environment`."""
        command = list(map(str, words))
        done = subprocess.run(
            self._hosts.within(0, command) if self._hosts else command,
            env=self.environment | (env or {}), cwd=cwd or self.folder, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert not done.returncode, f"{' '.join(command)} exits with {done.returncode}: {done.stderr.strip()}\n{self.logs()}"
        return done.stdout

    def sbatch(
        self, script: str | pathlib.Path, *arguments: str, options: Sequence[str] = (), env: dict | None = None, cwd: pathlib.Path | None = None
    ) -> str:
        """Submits a script with its arguments, and returns the job's number. options: sbatch's own. env: added to `environment`, which the job is given.

        What it prints lands in `cwd`, else in the folder, unless script or options say where.
        """
        return self.client("sbatch", "--parsable", *options, script, *arguments, env=env, cwd=cwd).strip()

    def scontrol(self, *words: str) -> str:
        return self.client("scontrol", *words)

    def squeue(self) -> str:
        """One line a job that has not ended: number, state in short, why it waits."""
        return self.client("squeue", "--noheader", "--array", "--format=%i %t %r")

    def show(self, job: str) -> list[dict[str, str]]:
        """What slurmctld knows of a job, by its own names (JobState, Restarts, StdOut, ...); of an array, of each of its tasks, in their order.

        Tasks of an array that have not started yet share one.
        """
        # Values may have blanks in them, and even be nothing.
        field = re.compile(r"(?:^| )([A-Z][\w:/]*)=(.*?)(?= +[A-Z][\w:/]*=|$)")
        records = [dict(field.findall(line)) for line in self.scontrol("--oneliner", "show", "job", job).splitlines()]
        return sorted(records, key=lambda record: int(re.match(r"\d*", record.get("ArrayTaskId", "0"))[0] or 0))

    def state(self, job: str) -> str:
        """Such as RUNNING; of an array, each of its tasks' states once, in the alphabet's order, with commas between."""
        return ",".join(sorted({record["JobState"] for record in self.show(job)}))

    def output(self, job: str) -> str:
        """What a job has printed until now; of an array, its tasks one after another."""
        files = [pathlib.Path(record["StdOut"]) for record in self.show(job)]
        return "".join(file.read_text(errors="replace") for file in files if file.exists())

    def wait(self, job: str, timeout: float = 60, until: str | None = None) -> str:
        """Waits until a job has ended, or is in the state `until`, an array with all its tasks, and returns its state. timeout: seconds."""

        def there() -> bool:
            states = set(self.state(job).split(","))
            if until is None:
                return states <= ENDED
            # What has ended otherwise would be waited for to the last.
            assert states == {until} or not states <= ENDED, f"job {job} ended {','.join(states)}, not {until}\n{self._told(job)}"
            return states == {until}

        self._until(there, timeout, f"job {job} is not {until or 'at its end'}", job)
        return self.state(job)

    def logs(self) -> str:
        """The ends of all daemons' logs."""
        ends = []
        for file in sorted(self.folder.glob("*.stderr")):
            # SLURM's say all twice, once a log is open; until then, and munged always, here alone.
            log = file.with_suffix(".log")
            lines = (log if log.exists() else file).read_text(errors="replace").splitlines()
            # Debian's build looks for a PMIx that its package does not ask for, and says so at length.
            ends.append("\n".join((f"--- {file.stem}", *[line for line in lines if "pmix" not in line][-30:])))
        return "\n".join(ends)

    def _told(self, job: str) -> str:
        return f"{self.scontrol('show', 'job', job)}--- what it printed\n{self.output(job)}\n{self.logs()}"

    def _until(self, there, timeout: float, complaint: str, job: str | None = None) -> None:
        end = time.monotonic() + timeout
        while not there():
            dead = [daemon.args for daemon in self._daemons if daemon.poll() is not None]
            assert not dead, f"{dead} ended\n{self.logs()}"
            assert time.monotonic() < end, f"{complaint} after {timeout} s\n{self._told(job) if job else self.logs()}"
            time.sleep(0.2)

    def _idle(self) -> bool:
        # Not by `client`, which would take slurmctld's not answering yet for a failure.
        command = ["sinfo", "--noheader", "--partition=test", "--Node", "--format=%T"]
        command = self._hosts.within(0, command) if self._hosts else command
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=120)
        return done.stdout.split() == ["idle"] * len(self.nodes)

    def _start(self, name: str, host: int, *command: str) -> None:
        # Told to stop when this process dies, too, however it dies (to the kernel: the thread that starts it).
        words = ["setpriv", "--pdeathsig", "TERM", *(self._hosts.within(host, list(command)) if self._hosts else command)]
        with (self.folder / f"{name}.stderr").open("w") as out:
            self._daemons.append(subprocess.Popen(words, env=self.environment, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=out, stderr=out))

    def _stop(self) -> None:
        # Newest first: nodes, slurmctld, munged. Then what they have left, by the one thing that all of it was given.
        for daemon in reversed(self._daemons):
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        # Once more until none is left: a process may start others while it is being killed.
        for _ in range(100):
            left = _processes(self.environment["SLURM_CONF"])
            for number in left:
                try:
                    os.kill(number, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            if not left:
                break
            time.sleep(0.05)
        shutil.rmtree(self._sockets, ignore_errors=True)


def missing() -> str:
    """Why there can be no `Slurm` here, in a few words; "" where there can."""
    for program in ("munged", "slurmctld", "slurmd", "sbatch", "srun", "setpriv"):
        if not shutil.which(program, path=_PATH):
            return f"{program} is not installed"
    return "not root" if os.geteuid() else ""


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _processes(config: str) -> list[int]:
    """Numbers of the processes that were started with that slurm.conf: a SLURM's daemons, and all that its jobs run."""
    mark, found = f"SLURM_CONF={config}".encode(), []
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:
            # It has ended meanwhile.
            continue
    return [number for number in found if number != os.getpid()]
