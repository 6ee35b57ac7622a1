"""All runs of a sweep: one after another here, as an array of SLURM, or as launches on Kubernetes.

    bash launch/local.sh python launch/sweep.py local --config=configs/sweeps/NAME.py --submit
    python launch/sweep.py slurm --config=configs/sweeps/NAME.py --option=--gpus-per-node=8 --at-once=4 --submit
    python launch/sweep.py kubernetes --config=configs/sweeps/NAME.py --option=GPU_HOSTS=2 --submit

Without --submit it says what it would do, and does nothing. Runs that are done by the same config, or under way, are left out, so that the same
command goes on with a sweep of which some were cut off. A run that trains what another one needs comes before it. Further flags are the program's own
(`--workdir`, `--config.field=value`), and hold for every run.
"""

from __future__ import annotations

import argparse
import collections
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from cxr_jax import experiment, main as program, processes, status, sweeps, tables
from cxr_jax.tables import UserError

RETRIES = 5  # of a run that lost a process; one that was told to stop is started again for ever
NAME = "@RUN@"  # stands for a run's name in what slurm.sbatch is handed


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(message)


def main(argv: list[str]) -> int:
    """Returns the exit status: 0, 1 for a mistake or where a run failed."""
    parser = _Parser(prog="launch/sweep.py", allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("where", choices=("local", "slurm", "kubernetes"))
    parser.add_argument("--submit", action="store_true", help="do it, rather than say what would be done")
    parser.add_argument("--at-once", type=int, metavar="N", help="slurm: so many runs of the array at most")
    parser.add_argument("--option", action="append", default=[], metavar="OPTION", help="slurm: of sbatch; kubernetes: NAME=value for launch/kubernetes/render.py")
    parser.add_argument("--accelerator", choices=("gpu", "tpu"), default="gpu", help="kubernetes: which manifest")
    try:
        asked, flags = parser.parse_known_args(argv[1:])
        named = [flag.removeprefix("--config=") for flag in flags if flag.startswith("--config=")]
        if len(named) != 1 or not sweeps.is_sweep(named[0]):
            raise UserError("--config=configs/sweeps/NAME.py expected, a sweep, once")
        if ":" in named[0]:
            raise UserError("--config: the whole sweep expected, without a colon and a run's name")
        if pathlib.Path.cwd() != ROOT:
            raise UserError(f"run this from the checkout's own folder, {ROOT}")
        runs = program.parse([argv[0], *flags])
        folder = runs[0][1].parent
        states = states_on_kubernetes(asked, folder.name) if asked.where == "kubernetes" else {sweep["run"]: state_of(config, workdir) for config, workdir, sweep in runs}
        waves = in_waves([sweep["run"] for _, _, sweep in runs], sweeps.read(named[0]).diffs, states)
        return {"local": local, "slurm": slurm, "kubernetes": kubernetes}[asked.where](asked, flags, waves, folder)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except FileNotFoundError as error:
        print(f"error: {error.filename}: not found here; run this where it is installed", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"error: {shlex.join(error.cmd[:2])} ended with status {error.returncode}: {(error.stderr or '').strip()}", file=sys.stderr)
        return 1


def in_waves(names: list[str], diffs: Mapping, states: Mapping[str, str]) -> list[list[str]]:
    """Runs to be started, by wave: those of a wave need none but those of waves before. Prints the state of every run."""
    depth: dict[str, int] = {}
    waves: dict[int, list] = {}
    for name in names:
        needed = [value.removeprefix(sweeps.SIBLING) for value in diffs[name].values() if isinstance(value, str) and value.startswith(sweeps.SIBLING)]
        depth[name] = 1 + max((depth[other] for other in needed), default=-1)
        print(f"  {name}: {states[name]}{f', after {needed[0]}' if needed else ''}")
        if states[name] not in ("done", "running"):
            waves.setdefault(depth[name], []).append(name)
    return [waves[k] for k in sorted(waves)]


def state_of(config, workdir: pathlib.Path) -> str:
    """`status.of` a run by this very config; what is done by another one is not done."""
    if not (workdir / "run.json").exists():
        return "not begun"
    found = status.of(workdir)
    record = tables.read_json(workdir / "run.json")
    if found.state in ("done", "partial"):
        try:
            same = record.get("fingerprint") == experiment.fingerprint(config, files=experiment.file_digests(config, record.get("files", {})))
        except UserError:
            same = False  # what it reads is still to be made
        done = all(record["stages"].get(stage, {}).get("status") == "done" for stage in config.stages)
        return "done" if same and done else "done by another config"
    return found.state


def command(flags: list[str], name: str) -> list[str]:
    """The program's own flags for one run."""
    return [f"{flag}:{name}" if flag.startswith("--config=") else flag for flag in flags]


def attended(words: list[str]) -> int:
    """The status of a command that is told what this process is told, and is waited for."""
    child = subprocess.Popen(words, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    # Ctrl-C reaches it without us.
    before = {number: signal.signal(number, lambda number, _: number == signal.SIGTERM and child.terminate()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        return child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def local(asked, flags: list[str], waves: list[list[str]], folder: pathlib.Path) -> int:
    failed = []
    for name in (name for wave in waves for name in wave):
        words = [sys.executable, "-m", "cxr_jax.main", *command(flags, name)]
        print(shlex.join(["python", *words[1:]]), flush=True)
        lost = 0
        while asked.submit:
            ended = attended(words)
            if ended == processes.INTERRUPTED:
                return ended
            again = ended in (processes.LOST, -signal.SIGKILL, -signal.SIGABRT, -signal.SIGSEGV)
            lost += again
            if ended == processes.PREEMPTED or again and lost <= RETRIES:
                continue
            failed += [name] * bool(ended)
            break
    _closing(asked, waves, folder)
    if failed:
        print(f"error: {len(failed)} of the runs failed: {', '.join(failed)}", file=sys.stderr)
    return processes.FAILED if failed else processes.DONE


def slurm(asked, flags: list[str], waves: list[list[str]], folder: pathlib.Path) -> int:
    before = ""
    for wave in waves:
        array = f"0-{len(wave) - 1}" + (f"%{asked.at_once}" if asked.at_once else "")
        words = ["sbatch", "--parsable", f"--array={array}", f"--job-name={folder.name}", "--output=%x-%A_%a.out", *asked.option]
        if before or not asked.submit and wave is not waves[0]:
            # Whether they succeed or not: of one that failed, only those fail that need it, and say why.
            words.append(f"--dependency=afterany:{before or 'THE-ONE-BEFORE'}")
        words += ["launch/slurm.sbatch", *command(flags, NAME)]
        print(f"CXR_JAX_RUNS={shlex.quote(chr(10).join(wave))} {shlex.join(words)}")
        if asked.submit:
            done = subprocess.run(words, cwd=ROOT, env=os.environ | {"CXR_JAX_RUNS": "\n".join(wave)}, capture_output=True, text=True, check=True)
            before = done.stdout.strip().partition(";")[0]
            print(f"  job {before}: {', '.join(wave)}")
    _closing(asked, waves, folder)
    return processes.DONE


def kubernetes(asked, flags: list[str], waves: list[list[str]], folder: pathlib.Path) -> int:
    # Where pods see the runs; all of a sweep in one folder, by which they find each other.
    flags = [*(flag for flag in flags if not flag.startswith("--workdir=")), f"--workdir=/runs/{folder.name}"]
    for name in waves[0] if waves else ():
        run = re.sub(r"[^a-z0-9]+", "-", f"{folder.name}-{name}".lower()).strip("-")
        words = [sys.executable, "launch/kubernetes/render.py", asked.accelerator, f"RUN={run}", f"ARGS={shlex.join(command(flags, name))}", *asked.option]
        print(f"{shlex.join(['python', *words[1:]])} | kubectl apply -f -")
        if asked.submit:
            made = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
            print(subprocess.run(["kubectl", "apply", "-f", "-"], input=made.stdout, capture_output=True, text=True, check=True).stdout, end="")
    if len(waves) > 1:
        print(f"then, once these are done, by the same command: {', '.join(name for wave in waves[1:] for name in wave)}")
    _closing(asked, waves[:1], folder)
    return processes.DONE


def states_on_kubernetes(asked, name: str) -> Mapping[str, str]:
    """By a run's name what the pod `look` (launch/kubernetes/look.yaml) says of it; without --submit, and without that pod, nothing is known."""
    told = dict(option.split("=", 1) for option in asked.option if "=" in option)
    lines = (ROOT / "launch" / "kubernetes" / "parameters.env").read_text().splitlines()
    namespace = told.get("NAMESPACE") or next(line.partition("=")[2] for line in lines if line.startswith("NAMESPACE="))
    try:
        done = subprocess.run(
            ["kubectl", "--namespace", namespace, "exec", "look", "--", "python", "-m", "cxr_jax.status", f"/runs/{name}"], capture_output=True, text=True
        )
    except FileNotFoundError:
        if asked.submit:
            raise
        return collections.defaultdict(lambda: "not looked at, without kubectl")
    begun = {}
    if not done.returncode:
        for line in done.stdout.splitlines():
            workdir, state, *_ = re.split(r" {2,}", line)
            begun[pathlib.PurePosixPath(workdir).name] = state
    elif "no such folder" not in done.stderr and "holds no run" not in done.stderr:
        if asked.submit:
            raise UserError(f"what is done already is asked of the pod look, which does not answer ({done.stderr.strip().splitlines()[-1]}); start it: docs/kubernetes.md")
        return collections.defaultdict(lambda: "not looked at, without the pod look")
    return collections.defaultdict(lambda: "not begun", begun)


def _closing(asked, waves: list[list[str]], folder: pathlib.Path) -> None:
    left = sum(map(len, waves))
    if not left:
        print("all runs are done")
    elif not asked.submit:
        print(f"{left} runs; nothing was started: add --submit")
    print(f"to see how far they are: python -m cxr_jax.status {shlex.quote(str(folder))}; to compare them: python -m cxr_jax.compare {shlex.quote(str(folder))}")


if __name__ == "__main__":
    sys.exit(main(sys.argv))
