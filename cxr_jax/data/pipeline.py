"""Batches of stored images. The only home of tf.data.

The records of each global batch are a pure function of (seed, epoch, step), given the cohort and the config. Nothing
that was read before counts, nor how many processes share the batch: a resumed run recomputes the order and goes on,
and P processes take P neighbouring slices of the very batch that one would have.

Order. A split whose images fit in memory is decoded once and visited in a full random permutation each epoch. A
larger one is block-shuffled: its rows, in stored order, are cut into blocks of `block_images`; the blocks are
permuted; as many consecutive ones as fit in memory make a window; and rows are permuted within each window. Either
way each epoch visits every row exactly once (unless rows are to be drawn by weights), and batches run across the borders of windows. See
`data.order`.

Memory. One process holds a window (or the whole split), the next window while it is being read, and a few batches.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import tensorflow as tf
import tensorflow_datasets as tfds
from jax.sharding import Mesh

from cxr_jax.data import datasets, order, resident
from cxr_jax.tables import SPLITS, UserError

Batch = dict[str, np.ndarray]

_AHEAD = 3  # batches that wait for the device
_CHUNK = 64  # images that leave tf.data together
# Reading over this many unwanted records costs less than opening the file anew at the next wanted one.
_GAP = 512

_GIB = 2**30


def sources(
    dataset: datasets.Dataset, cohort: pd.DataFrame, config, mesh: Mesh | None = None, draw: np.ndarray | None = None
) -> dict[str, "Source | resident.Resident"]:
    """What gives the images of each split of the cohort, all within `host_cache_gib` of `config` (a run's `config.dataset`).

    dataset, cohort: as for Source. Memory is given out in the order train, validation, test: a split that fits in what
    is left is held whole; any other streams, in half of what is left. mesh: to be trained on; the training split is then
    kept and shuffled as `config.cache` and `config.order` say: on the devices it takes no host memory. draw: float64
    [images of the cohort], how often a training image comes beside the mean; None: each once an epoch.
    Raises UserError where it does not fit there, or has to stream and is to be shuffled by shards.
    """
    left = config.host_cache_gib
    given: dict[str, Source | resident.Resident] = {}
    order_of_training = config.order or ("shard" if config.cache == "device" else "global")
    for split in SPLITS:
        if not (cohort["split"] == split).any():
            continue
        source = Source(dataset, cohort, split, host_cache_gib=left, block_images=config.block_images)
        if not source.cached:
            source = Source(dataset, cohort, split, host_cache_gib=left / 2, block_images=config.block_images)
        if split == "train" and draw is not None:
            source.draw = draw[source.index]
        if split == "train" and mesh is not None:
            if config.cache == "device":
                given[split] = resident.Resident.fill(source, order_of_training, mesh, config.device_cache_share)
                continue
            if order_of_training == "shard" and not source.cached:
                size = len(source) * np.prod(dataset.image_shape) / _GIB
                raise UserError(
                    f"config.dataset.order='shard': training images take {size:.2f} GiB, more than dataset.host_cache_gib"
                    f"={config.host_cache_gib:g}, and what streams is shuffled in blocks; raise it, or take dataset.order='global'"
                )
            source.shards = mesh.size if order_of_training == "shard" else 1
        given[split] = source
        left = max(0.0, left - source.gib)
    return given


class Source:
    """The images of one split, in batches.

    dataset: where they are stored. cohort: a `cohorts.Cohort`'s table, or any frame with `split`, `stored_split` and
        `record` in stored order. split: train, validation or test.
    host_cache_gib: memory for decoded images, GiB: the whole split where it fits, else two windows, each of one block
        at least.
    block_images: images of a block; one of less than a TFRecord file costs reading over what precedes it in the file.

    shards, an attribute, 1 until it is set: how many neighbouring parts of the split shuffle by themselves and share every batch, as on
    devices that hold them (`data.resident`); for a split held whole.
    draw, an attribute, None until it is set: float64 [n], how often a row comes beside the mean (`order.resampled`); an epoch has as many
    images as ever.

    A batch is a dict of NumPy arrays:
        image   uint8 [b, height, width, 1]; zeros where padded
        mask    bool [b]; False where padded
        index   int32 [b]; row of `cohort`, -1 where padded
    where b is the process's share of the global batch. Padding stands at the end of every shard's share of the last batch and nowhere
    else (where shards differ by an image, that of one may be in the batch before).

    Images are decoded once and kept for as long as the Source is, whatever asks for them first; threads may share one.
    """

    # None of its images is on the devices: a batch has them. See `data.resident.Resident`.
    on_devices, gather = (), None

    def __init__(self, dataset, cohort: pd.DataFrame, split: str, *, host_cache_gib: float, block_images: int):
        self.dataset = dataset
        self.split = split
        self.index = np.flatnonzero((cohort["split"] == split).to_numpy()).astype(np.int32)
        if not len(self.index):
            raise UserError(f"split {split!r} of the cohort holds no image")
        rows = cohort.iloc[self.index]
        stored_splits = list(dataset.info.splits)
        self._split_code = rows["stored_split"].map({s: i for i, s in enumerate(stored_splits)}).to_numpy(np.int64)
        self._record = rows["record"].to_numpy(np.int64)
        if not np.array_equal(np.lexsort((self._record, self._split_code)), np.arange(len(rows))):
            raise ValueError("the rows of a cohort must be in stored order")

        image_gib = np.prod(dataset.image_shape) / _GIB
        self.cached = len(self) * image_gib <= host_cache_gib
        self._block = 0 if self.cached else block_images
        self._window_blocks = max(1, int(host_cache_gib / 2 / (block_images * image_gib)))
        # What is held at once, GiB.
        self.gib = image_gib * (len(self) if self.cached else 2 * self._window_blocks * block_images)
        self.shards = 1
        self.draw: np.ndarray | None = None
        self._images: np.ndarray | None = None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Images of the split."""
        return len(self.index)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Global batches that visit every image once: the last one may be padded, none is dropped."""
        return -(-len(self) // batch_size)

    def batches(
        self,
        seed: int,
        epoch: int,
        start_step: int,
        batch_size: int,
        process_index: int = 0,
        process_count: int = 1,
    ) -> Iterator[Batch]:
        """The batches of one epoch of training, from `start_step` on, each image once, or as `draw` has it.

        batch_size: of the global batch; process p of P gets its rows p·b/P to (p+1)·b/P. Raises ValueError where P does
        not divide b. Reading and gathering run ahead in threads of their own, which end with the iterator: exhaust
        it or `close()` it. What a thread raises, the iterator raises.
        """
        if self.cached:
            rows = order.shard_batches(len(self), seed, epoch, batch_size, self.shards, self.draw)
            return self._batches(rows, np.where(rows < 0, -1, 0), start_step, batch_size, process_index, process_count)
        windows = order.block_order(len(self), seed, epoch, self._block, self._window_blocks)
        if self.draw is not None:
            drawn = order.resampled(self.draw, seed, epoch)
            windows = [drawn[window] for window in windows]
        return self._windows(windows, start_step, batch_size, process_index, process_count)

    def ordered(
        self, batch_size: int, process_index: int = 0, process_count: int = 1, start_step: int = 0
    ) -> Iterator[Batch]:
        """The batches of an evaluation from `start_step` on: stored order, each image exactly once; else as `batches`."""
        size = self._window_blocks * self._block or len(self)
        windows = [np.arange(i, min(len(self), i + size)) for i in range(0, len(self), size)]
        return self._windows(windows, start_step, batch_size, process_index, process_count)

    def read(self, runs: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        """Decoded images of each run of rows, uint8 [n, height, width, 1]; rows ascend, from run to run too."""
        return self._read(runs, threading.Event())

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(height, width, 1)"""
        return self.dataset.image_shape

    def _windows(self, windows, start_step, batch_size, process_index, process_count) -> Iterator[Batch]:
        rows = order.in_batches(np.concatenate(windows), batch_size)
        window = order.in_batches(np.repeat(np.arange(len(windows)), [len(w) for w in windows]), batch_size)
        return self._batches(rows, window, start_step, batch_size, process_index, process_count)

    def _batches(self, rows, window, start_step, batch_size, process_index, process_count) -> Iterator[Batch]:
        """rows, window: int64 [steps, batch_size], of each place of each batch the row and its window, -1 where padded."""
        if batch_size % process_count or not 0 <= process_index < process_count:
            raise ValueError(f"process {process_index} of {process_count} cannot share a batch of {batch_size}")
        share = batch_size // process_count
        ours = (slice(start_step, None), slice(process_index * share, (process_index + 1) * share))
        stop = threading.Event()
        return _ahead(self._gathered(rows[ours], window[ours], stop), _AHEAD, stop)

    def _gathered(self, rows: np.ndarray, window: np.ndarray, stop: threading.Event) -> Iterator[Batch]:
        loaded = self._loaded(rows, window, stop)
        try:
            here, held, images = -1, np.empty(0, np.int64), np.empty(0)
            for step_rows, step_window in zip(rows, window, strict=True):
                mask = step_rows >= 0
                out = np.zeros((len(step_rows), *self.dataset.image_shape), np.uint8)
                for w in np.unique(step_window[mask]):
                    if w > here:
                        images = None  # lets go of the last window before the next one is asked for
                        here, held, images = next(loaded)
                    assert w == here, "windows are visited in order, each once"
                    at = step_window == w
                    out[at] = images[np.searchsorted(held, step_rows[at])]
                yield {"image": out, "mask": mask, "index": np.where(mask, self.index[step_rows], np.int32(-1))}
        finally:
            loaded.close()

    def _loaded(self, rows: np.ndarray, window: np.ndarray, stop: threading.Event) -> Iterator[tuple]:
        """(number of the window, its rows that this process needs in ascending order, their images)."""
        if self.cached:
            yield 0, np.arange(len(self)), self._whole(stop)
            return

        flat_rows, flat_window = rows.ravel(), window.ravel()
        windows = np.unique(flat_window[flat_rows >= 0])
        needed = [np.unique(flat_rows[flat_window == w]) for w in windows]
        decoded = _ahead(self._read(needed, stop), 1, stop)
        try:
            for w, held in zip(windows, needed, strict=True):
                yield w, held, next(decoded)
        finally:
            decoded.close()

    def _whole(self, stop: threading.Event) -> np.ndarray:
        with self._lock:
            if self._images is None:
                (self._images,) = self._read([np.arange(len(self))], stop)
            return self._images

    def _read(self, windows: Sequence[np.ndarray], stop: threading.Event) -> Iterator[np.ndarray]:
        """Decoded images of each window's rows (ascending): uint8 [n, height, width, 1].

        All windows come out of one tf.data pipeline, which is costly to set up and reads on while a window is in use.
        Raises UserError where records are damaged, and _Stopped once `stop` is set.
        """
        rows = np.concatenate(windows)
        code, record = self._split_code[rows], self._record[rows]
        step = np.diff(record)
        apart = (np.diff(code) != 0) | (step > _GAP) | (step <= 0)
        first, last = np.flatnonzero(np.r_[True, apart]), np.flatnonzero(np.r_[apart, True])
        names = list(self.dataset.info.splits)
        ranges = [
            tfds.core.ReadInstruction(names[code[a]], from_=int(record[a]), to=int(record[b]) + 1, unit="abs")
            for a, b in zip(first, last, strict=True)
        ]
        # Among the records of those ranges, which ones are wanted: other splits' images lie between them.
        lengths = record[last] - record[first] + 1
        start = np.cumsum(lengths) - lengths
        wanted = np.zeros(lengths.sum(), bool)
        wanted[np.repeat(start - record[first], last - first + 1) + record] = True

        feature = self.dataset.info.features["image"]
        is_wanted = tf.constant(wanted)
        with datasets.reading(self.dataset.folder):
            stored = self.dataset.builder.as_dataset(
                split=sum(ranges[1:], ranges[0]),
                shuffle_files=False,
                read_config=datasets.STORED_ORDER,
                decoders=tfds.decode.PartialDecoding({"image": True}, decoders={"image": tfds.decode.SkipDecoding()}),
            )
            decoded = (
                stored.enumerate()
                .filter(lambda i, _: is_wanted[i])
                .map(
                    lambda _, example: feature.decode_example(example["image"]),
                    num_parallel_calls=tf.data.AUTOTUNE,
                    deterministic=True,
                )
                .batch(_CHUNK)
                .prefetch(2)
            )
            chunks = decoded.as_numpy_iterator()
            chunk = np.empty(0)
            for window in windows:
                images = np.empty((len(window), *self.dataset.image_shape), np.uint8)
                filled = 0
                while filled < len(window):
                    if stop.is_set():
                        raise _Stopped
                    if not len(chunk):
                        chunk = next(chunks)  # as many as asked for: TFDS and `reading` see to that
                    taken = chunk[: len(window) - filled]
                    images[filled : filled + len(taken)] = taken
                    filled, chunk = filled + len(taken), chunk[len(taken) :]
                yield images
                del images  # or this frame would keep a window alive while the next one is read


class _Stopped(Exception):
    """Nobody waits for what was being read."""


def _ahead(items: Iterator, depth: int, stop: threading.Event) -> Iterator:
    """`items`, computed in a thread up to `depth` ahead, the one in the making included.

    Raises what `items` raises. Closing it sets `stop` and ends the thread.
    """
    free = threading.Semaphore(depth)
    ready: queue.SimpleQueue[tuple[str, object]] = queue.SimpleQueue()

    def work() -> None:
        try:
            while True:
                free.acquire()
                if stop.is_set():
                    raise _Stopped
                ready.put(("item", next(items)))
        except StopIteration:
            ready.put(("end", None))
        except BaseException as error:  # whatever it is, _Stopped too, it belongs to the one who waits
            ready.put(("error", error))
        finally:
            items.close()

    thread = threading.Thread(target=work, name="cxr_jax-ahead", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            free.release()
            yield value
            del value  # or this frame would keep a window alive while the next one is read
    finally:
        stop.set()
        free.release()
        thread.join()
