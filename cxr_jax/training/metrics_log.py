"""What a person sees of a run while it trains: a progress bar, metrics.jsonl, and TensorBoard events."""

from __future__ import annotations

import json
import os
import pathlib
import sys
import time

import jax
import tensorboardX
import tqdm

from cxr_jax import tables


class MetricsLog:
    """Writes each row to metrics.jsonl and, its numbers, to TensorBoard events below `tensorboard/`.

    resume_after: rows of later steps are removed on opening; a last line that a kill cut in half goes with them.
    Only the first process writes.
    """

    def __init__(self, workdir: os.PathLike | str, resume_after: int):
        self._writes = jax.process_index() == 0
        if not self._writes:
            return
        path = pathlib.Path(workdir) / "metrics.jsonl"
        rows = [row for row in read_rows(path) if row["step"] <= resume_after] if resume_after else []
        tables.write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
        self._file = open(path, "a", encoding="utf-8")
        self._events = tensorboardX.SummaryWriter(str(path.parent / "tensorboard"), purge_step=resume_after + 1)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._writes:
            self._file.close()
            self._events.close()

    def write(self, *, step: int, split: str, **values) -> None:
        if not self._writes:
            return
        row = tables.without_nan({"step": step, "split": split, **values})
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for name, value in row.items():
            for label, number in value.items() if isinstance(value, dict) else [("", value)]:
                if name != "step" and isinstance(number, (int, float)):
                    self._events.add_scalar(f"{split}/{name}{'/' + label if label else ''}", number, step)


def read_rows(path: os.PathLike | str) -> list[dict]:
    """The rows of a metrics.jsonl; [] for a file that is not there. A line that is no JSON ends the reading."""
    path = pathlib.Path(path)
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class Progress:
    """A bar with images done, images/s and the time left; on a terminal it moves, in a log it is a line now and then.

    The rate leaves out what was done before this start and the first batch, whose time is compilation.
    """

    def __init__(self, name: str, total: int, done: int = 0):
        interactive = sys.stderr.isatty()
        self._bar = tqdm.tqdm(
            desc=name,
            total=total,
            initial=done,
            unit="images",
            mininterval=0.5 if interactive else 10,
            maxinterval=1 if interactive else 20,
            disable=jax.process_index() != 0,
            dynamic_ncols=interactive,
            file=sys.stderr,
        )
        self._started: float | None = None
        self._images = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._bar.close()

    def advance(self, images: int) -> None:
        self._bar.update(images)
        if self._started is None:
            self._started = time.monotonic()
        else:
            self._images += images

    def rate(self) -> float:
        """Images/s since the first batch; 0 before the second."""
        return self._images / max(time.monotonic() - self._started, 1e-9) if self._images else 0.0

    def say(self, text: str) -> None:
        self._bar.set_postfix_str(text, refresh=False)
