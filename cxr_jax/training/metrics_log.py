"""What a person sees of a run while it trains: a progress bar, metrics.jsonl, TensorBoard events, and a profile of some steps."""

from __future__ import annotations

import json
import math
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Iterable, Iterator

import jax
import tqdm
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from cxr_jax import experiment, processes, tables


class MetricsLog:
    """Writes each row to metrics.jsonl and, its numbers, to TensorBoard events below `tensorboard/`.

    resume_after: rows of later steps are removed on opening; a last line that a kill cut in half goes with them.
    Only the first process writes.
    """

    def __init__(self, workdir: os.PathLike | str, resume_after: int):
        self._writes = processes.first()
        if not self._writes:
            return
        path = pathlib.Path(workdir) / "metrics.jsonl"
        rows = [row for row in read_rows(path) if row["step"] <= resume_after] if resume_after else []
        tables.write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
        self._file = open(path, "a", encoding="utf-8")
        # Written here and not in tensorboardX's thread, which a full disk would end in silence, leaving us to wait for it.
        folder = path.parent / "tensorboard"
        folder.mkdir(exist_ok=True)
        self._events = EventsWriter(str(folder / "events"))
        # TensorBoard then forgets what an earlier start wrote of later steps.
        self._events.write_event(Event(wall_time=time.time(), step=resume_after + 1, session_log=SessionLog(status=SessionLog.START)))

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
                    scalar = summary.scalar(f"{split}/{name}{'/' + label if label else ''}", number)
                    self._events.write_event(Event(wall_time=time.time(), step=step, summary=scalar))
        self._events.flush()


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
    """A bar with images done, images/s and the time left; on a terminal it moves, in a log it is a line now and then. Told to `experiment.SIGNS`, too.

    The rate leaves out what was done before this start, the first batch, whose time is compilation, and pauses.
    """

    def __init__(self, name: str, total: int, done: int = 0):
        interactive = sys.stderr.isatty()
        self._name, self._total, self._done = name, total, done
        self._bar = tqdm.tqdm(
            desc=name,
            total=total,
            initial=done,
            # The rate and the time left are ours, since tqdm's count compilation and pauses too.
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} images [{elapsed}{postfix}]",
            mininterval=0.5 if interactive else 10,
            maxinterval=1 if interactive else 20,
            disable=not processes.first(),
            dynamic_ncols=interactive,
            file=sys.stderr,
        )
        self._said = ""
        self._last: float | None = None  # when the last batch was done
        self._seconds = 0.0
        self._images = 0
        self._waited = 0.0  # of these seconds, for input

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._bar.close()

    def waiting_for(self, batches: Iterable) -> Iterator:
        """The same batches; how long each was waited for counts as a stall of the input."""
        batches = iter(batches)
        while True:
            began = time.monotonic()
            try:
                batch = next(batches)
            except StopIteration:
                return
            if self._last is not None:
                self._waited += time.monotonic() - began
            yield batch

    def advance(self, images: int) -> None:
        now = time.monotonic()
        if self._last is not None:
            self._seconds += now - self._last
            self._images += images
        self._last = now
        self._done += images
        self._show()
        self._bar.update(images)

    def pause(self) -> None:
        """What happens until the next batch is done is no part of the rate."""
        self._last = None

    def rate(self) -> float:
        """Images/s; 0 as long as no two batches have followed each other."""
        return self._images / self._seconds if self._images else 0.0

    def figures(self) -> dict:
        """For the log: images/s, share of the time that was spent waiting for input, seconds to the end (of pauses nothing is known), and GiB of the
        fullest device at their highest, where it tells. Of nothing yet: 0, NaN."""
        figures = {"images_per_second": round(self.rate(), 2)}
        figures["waiting_for_input"] = round(self._waited / self._seconds, 4) if self._seconds else math.nan
        figures["seconds_left"] = round((self._total - self._done) / self.rate(), 1) if self.rate() else math.nan
        peaks = [stats["peak_bytes_in_use"] for device in jax.local_devices() if "peak_bytes_in_use" in (stats := device.memory_stats() or {})]
        return figures | ({"device_gib": round(max(peaks) / 2**30, 3)} if peaks else {})

    def say(self, text: str) -> None:
        self._said = text
        self._show()

    def _show(self) -> None:
        rate = self.rate()
        left = (self._total - self._done) / rate if rate else None
        told = f"{rate:.1f} images/s, {tqdm.tqdm.format_interval(left)} left" if rate else ""
        self._bar.set_postfix_str(", ".join(filter(None, [told, self._said])), refresh=False)
        experiment.SIGNS.update({"doing": self._name, "done": self._done, "total": self._total, "images_per_second": round(rate, 2), "seconds_left": left, "said": self._said})


class Profile:
    """JAX's own profile of some steps, once those that compile are over, as `profile/` of a workdir: for TensorBoard's profiler, or, its .trace.json.gz, for Perfetto.

    steps: how many; 0: none. The first process's, whole or not at all.
    """

    _AFTER = 5  # steps

    def __init__(self, workdir: os.PathLike | str, steps: int):
        self._folder = pathlib.Path(workdir) / "profile"
        self._partial = self._folder.with_suffix(".partial")
        self._left = self._AFTER + steps if steps and processes.first() else 0
        self._steps, self._running = steps, False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._steps and self._left >= self._steps:
            print(f"  no profile: training had {self._AFTER} steps or fewer left")
        self._end()

    def step_begins(self) -> None:
        if self._left == self._steps and self._left:
            shutil.rmtree(self._partial, ignore_errors=True)
            jax.profiler.start_trace(self._partial)
            self._running = True
        elif not self._left:
            self._end()
        self._left = max(0, self._left - 1)

    def _end(self) -> None:
        if not self._running:
            return
        self._running = False
        jax.profiler.stop_trace()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._partial.rename(self._folder)
        print(f"  a profile of {self._steps - self._left} steps: {self._folder}")
