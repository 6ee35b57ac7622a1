"""`python -m cxr_jax.status RUNS …`

Lists runs with their state: each argument a run's folder, or a folder of runs, such as `runs` or a sweep's. Reads, and changes nothing.

    done          all its stages
    partial       the stages that it was asked for; the config has others by now, or their results are out of date
    running       and gave a sign within the last minute; with what it does, how fast, and what is left of it
    silent        was running, and gave no sign for longer: killed, or its machine is gone; the same command carries on
    preempted, interrupted, lost a process, diverged, failed
"""

from __future__ import annotations

import json
import math
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

from cxr_jax import experiment
from cxr_jax.tables import UserError

SILENCE = 60.0  # seconds; signs come every experiment.SECONDS_BETWEEN_SIGNS, and file systems that are shared show them late


class Status(NamedTuple):
    """state: one of those above. doing: in words; "" where there is nothing to tell."""

    workdir: pathlib.Path
    state: str
    doing: str


def of(workdir: pathlib.Path | str) -> Status:
    """A run's state. Raises UserError where the folder holds none."""
    workdir = pathlib.Path(workdir)
    try:
        record = json.loads((workdir / "run.json").read_text(encoding="utf-8"))
        stages = record["stages"]
        state = record.get("status", "not begun")
    except FileNotFoundError:
        raise UserError(f"{workdir}: holds no run (no run.json)") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{workdir / 'run.json'}: not a run's record ({error or type(error).__name__})") from None
    under_way = next((name for name, stage in stages.items() if stage.get("status") == "running"), "")
    if state == "done" or not under_way and state == "partial":
        return Status(workdir, state, f"{_time(record.get('wall_seconds', 0))} in all, ended {record.get('ended')}")
    if state != "running":
        return Status(workdir, state, f"in {under_way}, {record.get('ended')}" if under_way else "")
    sign, age = _last_sign(workdir)
    gone = not experiment.may_live(record)
    if gone or age > SILENCE:
        since = "its process is gone" if gone else "no sign since the start" if math.isinf(age) else f"no sign for {_time(age)}"
        return Status(workdir, "silent", f"{f'in {under_way}, ' if under_way else ''}{since}")
    return Status(workdir, "running", _doing(sign, under_way))


def _last_sign(workdir: pathlib.Path) -> tuple[dict, float]:
    """(what it said, seconds ago by the file system's time, which may be another machine's). ({}, inf) where it said nothing."""
    path = workdir / experiment.SIGNS_FILE
    sign = experiment.read_sign(path)
    try:
        return sign, max(0.0, time.time() - path.stat().st_mtime) if sign else math.inf
    except OSError:
        return {}, math.inf


def _doing(sign: dict, stage: str) -> str:
    words = [sign.get("doing") or sign.get("stage") or stage]
    done, total = sign.get("done"), sign.get("total")
    if total:
        words[0] += f" {done / total:.0%} of {total:,} images"
    if sign.get("images_per_second"):
        words.append(f"{sign['images_per_second']:.1f} images/s")
    if sign.get("seconds_left") is not None:
        words.append(f"{_time(sign['seconds_left'])} left of it")
    if sign.get("said"):
        words.append(sign["said"])
    return ", ".join(words)


def _time(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


def runs(folders: Sequence[str]) -> list[pathlib.Path]:
    """The folders of runs that these are or hold, however deep, each once. Raises UserError where one holds none."""
    found: dict[pathlib.Path, None] = {}
    for folder in map(pathlib.Path, folders):
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder")
        there = [folder] if (folder / "run.json").exists() else sorted(path.parent for path in folder.rglob("run.json"))
        if not there:
            raise UserError(f"{folder}: holds no run (no run.json), nor folders that do")
        found |= dict.fromkeys(there)
    return list(found)


def main(argv: list[str]) -> int:
    """Returns the exit status: 0, or 1 for a user's mistake."""
    try:
        if len(argv) < 2 or any(word.startswith("-") for word in argv[1:]):
            raise UserError("name folders of runs: python -m cxr_jax.status runs")
        found = [of(path) for path in runs(argv[1:])]
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    widths = [max(len(str(row[k])) for row in found) for k in (0, 1)]
    # A record may have been written by anybody: nothing in it is to move the cursor.
    found = [Status(*("".join(c for c in str(word) if c.isprintable()) for word in row)) for row in found]
    print(*(f"{str(row.workdir):{widths[0]}}  {row.state:{widths[1]}}  {row.doing}".rstrip() for row in found), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
