"""The order in which training visits images: a pure function of (seed, epoch), given how many there are and how they lie."""

from __future__ import annotations

import numpy as np


def _random(seed: int, epoch: int) -> np.random.Philox:
    """Philox (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, 2011) keyed by SeedSequence((seed, epoch)).

    Orders sort its raw 64-bit outputs, one a row. NumPy promises these outputs for good, which it does not for its own
    shuffles. Sorting random keys gives every order equal chances, but for ties, of chance n²/2⁶⁵.
    """
    return np.random.Philox(np.random.SeedSequence((seed % 2**64, epoch)))


def block_order(n: int, seed: int, epoch: int, block: int, window_blocks: int) -> list[np.ndarray]:
    """The order in which epoch `epoch` visits rows 0 … n-1 where they stream: windows, each an int64 array; together a permutation.

    block: rows of a block. window_blocks: blocks of a window. Blocks are shuffled by outputs of their own, before the rows of each window.
    """
    random = _random(seed, epoch)

    def shuffled(rows: np.ndarray) -> np.ndarray:
        return rows[np.argsort(random.random_raw(len(rows)), kind="stable")]

    blocks = shuffled(np.arange(-(-n // block)))
    windows = (blocks[i : i + window_blocks] for i in range(0, len(blocks), window_blocks))
    return [shuffled(np.concatenate([np.arange(b * block, min(n, (b + 1) * block)) for b in w])) for w in windows]


def resampled(weight: np.ndarray, seed: int, epoch: int, shards: int = 1) -> np.ndarray:
    """The rows that an epoch visits in the place of rows 0 … n-1, where row i is to come weight[i] times as often as the mean: int64 [n].

    Each comes its expected number of times, rounded down or up: systematic sampling along a random order of the rows. Ascending within each shard
    (`shard_starts`), which draws from its own rows. weight: float64 [n], 0 or more, not all 0 in any shard.
    """
    starts = shard_starts(len(weight), shards)
    # Outputs of their own, apart from those that shuffle.
    random = np.random.Philox(np.random.SeedSequence((seed % 2**64, epoch, 1)))
    drawn = np.empty(len(weight), np.int64)
    for start, stop in zip(starts, starts[1:]):
        rows = start + np.argsort(random.random_raw(stop - start), kind="stable")
        up_to = np.cumsum(weight[rows], dtype=np.float64)
        begin = float(random.random_raw() >> 11) * 2.0**-53
        places = (np.arange(len(rows)) + begin) * (up_to[-1] / len(rows))
        # Rounding may put the last place past the end, or on a row of no weight there.
        at = np.minimum(np.searchsorted(up_to, places, side="right"), np.flatnonzero(weight[rows])[-1])
        drawn[start:stop] = np.sort(rows[at])
    return drawn


def in_batches(values: np.ndarray, batch_size: int) -> np.ndarray:
    """int64 [n] as [batches, batch_size], the last one filled up with -1."""
    return np.pad(values, (0, -len(values) % batch_size), constant_values=-1).reshape(-1, batch_size)


def shard_starts(n: int, shards: int) -> np.ndarray:
    """int64 [shards + 1]: shard s has rows starts[s] to below starts[s + 1], neighbours; sizes differ by one at most."""
    return np.cumsum([0, *(n // shards + (s < n % shards) for s in range(shards))])


def shard_batches(n: int, seed: int, epoch: int, batch_size: int, shards: int, draw: np.ndarray | None = None) -> np.ndarray:
    """The batches of an epoch in which every shard gives its share of each batch, from its own rows, shuffled: int64 [steps, b].

    Each row once, or with draw as often as `resampled` has it; -1 where a shard has no more. Columns s * b / shards on are of shard s. One shard shuffles all rows together. Raises
    ValueError where the shards cannot share a batch evenly.
    """
    if batch_size % shards:
        raise ValueError(f"{shards} shards cannot share a batch of {batch_size}")
    keys, starts, share = _random(seed, epoch).random_raw(n), shard_starts(n, shards), batch_size // shards
    steps = -(-n // batch_size)
    out = np.full((steps, shards, share), -1, np.int64)
    for s, (start, stop) in enumerate(zip(starts, starts[1:])):
        rows = in_batches(start + np.argsort(keys[start:stop], kind="stable"), share)
        out[: len(rows), s] = rows
    out = out.reshape(steps, batch_size)
    return out if draw is None else np.where(out < 0, -1, resampled(draw, seed, epoch, shards)[out])
