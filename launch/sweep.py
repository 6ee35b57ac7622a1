"""All runs of a sweep: one after another here, as an array of SLURM, or as launches on Kubernetes.

    bash launch/local.sh python launch/sweep.py local --config=configs/sweeps/NAME.py --submit
    python launch/sweep.py slurm --config=configs/sweeps/NAME.py --option=--gpus-per-node=8 --at-once=4 --submit
    python launch/sweep.py kubernetes --config=configs/sweeps/NAME.py --option=GPU_HOSTS=2 --submit

Without --submit it says what it would do, and does nothing. Runs that are done by the same config are left out, so that the same command goes on
with a sweep of which some were cut off. A run that trains what another one needs comes before it. Further flags are the program's own
(`--workdir`, `--config.field=value`), and hold for every run.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import shlex
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
        runs = program.parse([argv[0], *flags])
        if not runs[0][2]:
            raise UserError("--config: a sweep, configs/sweeps/NAME.py, expected")
        if runs[0][2] and len(runs) == 1 and ":" in next(f for f in flags if f.startswith("--config=")):
            raise UserError("--config: the whole sweep expected, without a colon and a run's name")
        waves = in_waves(runs, next(flag.partition("=")[2] for flag in flags if flag.startswith("--config=")))
        return {"local": local, "slurm": slurm, "kubernetes": kubernetes}[asked.where](asked, flags, waves, runs[0][1].parent)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except FileNotFoundError as error:
        print(f"error: {error.filename}: not found here; run this where it is installed", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"error: {shlex.join(error.cmd[:2])} ended with status {error.returncode}: {(error.stderr or '').strip()}", file=sys.stderr)
        return 1


def in_waves(runs: list[tuple], path: str) -> list[dict[str, pathlib.Path]]:
    """What is left to do, {run's name: workdir} by wave: the runs of a wave need nothing but those of waves before. Prints the state of every run."""
    diffs, depth = sweeps.read(path).diffs, {}
    waves: dict[int, dict] = {}
    for config, workdir, sweep in runs:
        name = sweep["run"]
        needed = [value.removeprefix(sweeps.SIBLING) for value in diffs[name].values() if isinstance(value, str) and value.startswith(sweeps.SIBLING)]
        depth[name] = 1 + max((depth[other] for other in needed), default=-1)
        told = state_of(config, workdir)
        print(f"  {name}: {told}{f', after {needed[0]}' if needed else ''}")
        if told != "done":
            waves.setdefault(depth[name], {})[name] = workdir
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


def local(asked, flags: list[str], waves: list[Mapping], folder: pathlib.Path) -> int:
    failed = []
    for name in (name for wave in waves for name in wave):
        words = [sys.executable, "-m", "cxr_jax.main", *command(flags, name)]
        print(shlex.join(["python", *words[1:]]), flush=True)
        lost = 0
        while asked.submit:
            ended = subprocess.run(words, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}).returncode
            if ended == processes.INTERRUPTED or ended < 0:
                return processes.INTERRUPTED
            lost += ended == processes.LOST
            if ended == processes.PREEMPTED or ended == processes.LOST and lost <= RETRIES:
                continue
            failed += [name] * bool(ended)
            break
    _closing(asked, waves, folder)
    if failed:
        print(f"error: {len(failed)} of the runs failed: {', '.join(failed)}", file=sys.stderr)
    return processes.FAILED if failed else processes.DONE


def slurm(asked, flags: list[str], waves: list[Mapping], folder: pathlib.Path) -> int:
    before = ""
    for wave in waves:
        array = f"0-{len(wave) - 1}" + (f"%{asked.at_once}" if asked.at_once else "")
        words = ["sbatch", "--parsable", f"--array={array}", f"--job-name={folder.name}", "--output=%x-%A_%a.out", *asked.option]
        if before or not asked.submit and wave is not waves[0]:
            # afterok alone would let a failed one's successors wait for ever.
            words += [f"--dependency=afterok:{before or 'THE-ONE-BEFORE'}", "--kill-on-invalid-dep=yes"]
        words += ["launch/slurm.sbatch", *command(flags, NAME)]
        print(f"CXR_JAX_RUNS={shlex.quote(chr(10).join(wave))} {shlex.join(words)}")
        if asked.submit:
            done = subprocess.run(words, cwd=ROOT, env=os.environ | {"CXR_JAX_RUNS": "\n".join(wave)}, capture_output=True, text=True, check=True)
            before = done.stdout.strip().partition(";")[0]
            print(f"  job {before}: {', '.join(wave)}")
    _closing(asked, waves, folder)
    return processes.DONE


def kubernetes(asked, flags: list[str], waves: list[Mapping], folder: pathlib.Path) -> int:
    if len(waves) > 1 and asked.submit:
        print(f"runs that need others wait: the same command starts them once {', '.join(waves[0])} {'is' if len(waves[0]) == 1 else 'are'} done")
    # Where pods see the runs; all of a sweep in one folder, by which they find each other.
    flags = [*(flag for flag in flags if not flag.startswith("--workdir=")), f"--workdir=/runs/{folder.name}"]
    for name in waves[0] if waves else ():
        run = re.sub(r"[^a-z0-9]+", "-", f"{folder.name}-{name}".lower()).strip("-")
        words = [sys.executable, "launch/kubernetes/render.py", asked.accelerator, f"RUN={run}", f"ARGS={shlex.join(command(flags, name))}", *asked.option]
        print(f"{shlex.join(['python', *words[1:]])} | kubectl apply -f -")
        if asked.submit:
            made = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
            print(subprocess.run(["kubectl", "apply", "-f", "-"], input=made.stdout, capture_output=True, text=True, check=True).stdout, end="")
    _closing(asked, waves, folder)
    return processes.DONE


def _closing(asked, waves: list[Mapping], folder: pathlib.Path) -> None:
    left = sum(map(len, waves))
    if not left:
        print("all runs are done")
    elif not asked.submit:
        print(f"{left} runs; nothing was started: add --submit")
    print(f"to see how far they are: python -m cxr_jax.status {shlex.quote(str(folder))}; to compare them: python -m cxr_jax.compare {shlex.quote(str(folder))}")


if __name__ == "__main__":
    sys.exit(main(sys.argv))
