"""Exact nearest neighbours, and the vote of k of them.

The bulk of the work is one matrix product. With rows a of the queries and b of the database, both less the database's
mean,

    ‖a − b‖² = ‖a‖² + s(a, b),    s(a, b) = ‖b‖² − 2 a·b,

and only s orders the rows b. The database streams through the mesh in tiles, split over the devices; each device
keeps, per query, the few rows of smallest s that it has met. In a tile they are found through minima: of the minima of
groups of columns the smallest are taken, and the rows wanted are all in those groups.

Float32 spoils s by more than it spoils a distance, so s only proposes. Its error is bounded by

    e = 8 √d u (2‖a‖ + r)²,    u = 2⁻²⁴,

for rows within r of a, by the probabilistic bound on rounding in inner products (Higham and Mary 2019, "A new approach
to probabilistic rounding error analysis"). A row among the k nearest has s ≤ s_k + 2e, where s_k is the k-th smallest
s. A few more rows than k are kept; all of them within that limit have their distances taken again, from differences,
and the k nearest are chosen by these. Where even the last row kept lies within the limit, rows beyond it might too:
such queries (many equal rows: binary features) are sought again among the distinct rows, with four times the
candidates, until none is left in doubt. The outcome therefore depends neither on tiles nor on the number of devices.

The cosine of two rows follows from the distance of their unit vectors: 1 − cos = ½‖a − b‖².
"""

from __future__ import annotations

import concurrent.futures
import copy
import functools
import hashlib
import os
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from cxr_jax.mesh import batch_sharded, data_mesh, replicate, to_host
from cxr_jax.tables import UserError, not_finite

METRICS = ("l2", "cosine")
WEIGHTINGS = ("uniform", "distance")
QUERY_BLOCK = 4096  # queries on the devices at once
QUERY_CHUNK = 512  # queries whose s with a whole tile exist at once; their part then stays in a processor's cache
GROUP = 16  # columns that share a minimum
SPARE = 8  # candidates beyond k
KEPT = 2**24  # candidates that a device keeps, over the queries of a block, at most
READ_ROWS = 4096  # rows of an input looked at together
PAIR_ROWS = 256  # pairs of rows whose differences exist at once; they about fit a core's second cache at 1,024 features


class Neighbours(NamedTuple):
    """Nearest first, equal distances by index. index: int32 [q, k], rows of the database. distance: float32 [q, k]."""

    index: np.ndarray
    distance: np.ndarray


def neighbours(
    database,
    queries,
    k: int,
    *,
    metric: str,
    allowed: np.ndarray | None = None,
    mesh: Mesh | None = None,
    tile_rows: int = 32_768,
) -> Neighbours:
    """The k rows of `database` nearest to each query, exactly; equal distances by the lower index.

    database: [n, d] and queries: [q, d], of any numeric type, used as float32. NumPy arrays, memory-maps or JAX arrays.
    metric: `l2`, the Euclidean distance (not squared), or `cosine`, 1 − cos.
    allowed: bool [n], which rows may be neighbours; all by default. Others are not even read.
    mesh: whose devices share the work; all devices by default.
    tile_rows: rows of the database on one device at once. It changes time and memory, never the result.

    Memory, in float32 numbers, whatever n and q: on a device 2 tiles of `tile_rows` × d, 4,096 × d for queries,
    512 × `tile_rows` for s, and at most 2²⁴ candidates; on the host, beside inputs and result, a tile for each device
    and a block of queries. Only where equal rows are many does the host also hold a list of 4-byte positions of the n
    rows.

    Raises UserError where fewer rows are allowed than k, where a value is NaN, infinite or so large that its square
    overflows, where widths differ, and under `cosine` for a row of length 0. Raises ValueError for another metric or
    shape of `allowed`.
    """
    if metric not in METRICS:
        raise ValueError(f"metric {metric!r}, not one of {', '.join(METRICS)}")
    if database.ndim != 2 or queries.ndim != 2 or database.shape[1] != queries.shape[1]:
        raise UserError(f"features of shape {database.shape} and queries of shape {queries.shape}: widths must agree")
    if allowed is not None and np.shape(allowed) != (len(database),):
        raise ValueError(f"allowed has shape {np.shape(allowed)}, not {(len(database),)}")
    positions = None if allowed is None else np.flatnonzero(allowed)
    n = len(database) if positions is None else len(positions)
    if not 1 <= k <= n:
        raise UserError(f"k={k} neighbours asked of {n} rows that may be neighbours; take k between 1 and {n}")
    mesh = data_mesh() if mesh is None else mesh
    rows, asked = _Rows(database, positions, metric, "database"), _Rows(queries, None, metric, "queries")

    squares = np.empty((len(asked), k), np.float32)
    index = np.empty((len(asked), k), np.int32)
    doubtful = _search(rows, asked, np.arange(len(asked)), k, k + SPARE, mesh, tile_rows, squares, index)
    if len(doubtful):
        distinct, members, starts = _distinct(rows)
        few = min(k, len(distinct))
        near, of = np.empty((len(asked), few), np.float32), np.empty((len(asked), few), np.int32)
        left, candidates = doubtful, k + SPARE
        while len(left):
            candidates *= 4
            left = _search(distinct, asked, left, few, candidates, mesh, tile_rows, near, of)
        for q in doubtful:
            # The k nearest rows are among the first k of each of the k nearest distinct ones.
            alike = [members[starts[row] : starts[row + 1]][:k] for row in of[q]]
            every, square = np.concatenate(alike), np.repeat(near[q], [len(some) for some in alike])
            best = np.lexsort((every, square))[:k]
            index[q], squares[q] = every[best], square[best]
    if positions is not None:
        index = positions[index].astype(np.int32)
    return Neighbours(index, np.sqrt(squares) if metric == "l2" else squares / 2)


class _Rows:
    """Rows of an array as the search sees them: float32, of length 1 under `cosine`, those at `positions` alone.

    Attributes:
        centre: float32 [d], about the mean of the rows.
    """

    def __init__(self, array, positions: np.ndarray | None, metric: str, name: str):
        # A JAX array is read from the host, like any other: what it takes there is its own size.
        self._array = np.asarray(array) if isinstance(array, jax.Array) else array
        self._positions, self._inverse = positions, None
        lengths, total = [], np.zeros(array.shape[1])
        for first in range(0, len(self), READ_ROWS):
            block = self._raw(slice(first, first + READ_ROWS))
            if not np.isfinite(np.vdot(block, block)):
                raise not_finite(self._array, name, self._positions)
            if metric == "cosine":
                lengths.append(np.sqrt(np.einsum("nd,nd->n", block, block, dtype=np.float64)))
                empty = np.flatnonzero(lengths[-1] < np.finfo(np.float32).tiny)
                if len(empty):
                    raise UserError(
                        f"{name}: row {self._named(first + empty[0])} has length 0, so its cosine is"
                        " undefined; leave such rows out, or use l2"
                    )
                block = (block / lengths[-1][:, None]).astype(np.float32)
            total += block.sum(axis=0)
        if metric == "cosine":
            self._inverse = (1 / np.concatenate([*lengths, np.zeros(0)])).astype(np.float32)
        self.centre = (total / max(len(self), 1)).astype(np.float32)

    def __len__(self) -> int:
        return len(self._array) if self._positions is None else len(self._positions)

    @property
    def width(self) -> int:
        return self._array.shape[1]

    def __getitem__(self, which) -> np.ndarray:
        """float32 [m, d]; `which` is a slice or positions."""
        rows = self._raw(which)
        return rows if self._inverse is None else rows * self._inverse[which, None]

    def at(self, which: np.ndarray) -> "_Rows":
        """These rows alone."""
        part = copy.copy(self)
        part._positions = which if self._positions is None else self._positions[which]
        part._inverse = None if self._inverse is None else self._inverse[which]
        return part

    def _raw(self, which) -> np.ndarray:
        return np.asarray(self._array[which if self._positions is None else self._positions[which]], np.float32)

    def _named(self, row: int) -> int:
        """Counted from 1, in the array that was given."""
        return int(row if self._positions is None else self._positions[row]) + 1


def _search(rows, asked, which, k, candidates, mesh, tile_rows, squares, index) -> np.ndarray:
    """Writes squared distances and positions of the k nearest of `rows` for the queries `which`, at their places.

    Returns those of `which` for which `candidates` did not settle the matter; their places are left alone.
    """
    doubtful = []
    candidates = min(candidates, len(rows))
    size = max(min(QUERY_BLOCK, KEPT // candidates), 1)
    for first in range(0, len(which), size):
        block = which[first : first + size]
        queries = asked[block]
        centred = queries - rows.centre
        s, row = _propose(rows, centred, candidates, mesh, tile_rows)
        length = np.sqrt(np.einsum("qd,qd->q", centred, centred, dtype=np.float64))
        # r a little above the k-th distance, to hold for the rows that s misplaces.
        kth = s[:, k - 1].astype(np.float64)
        reach = np.sqrt(1.1 * np.maximum(kth + length**2, 0) + 0.01 * length**2)
        error = 8 * np.sqrt(rows.width + 8) * 2.0**-24 * (2 * length + reach) ** 2
        near = s <= (kth + 2 * error)[:, None]
        settled = ~near[:, -1] if candidates < len(rows) else np.ones(len(block), bool)
        doubtful.append(block[~settled])
        q, c = np.nonzero(near & settled[:, None])
        pairs = _squares(rows, queries, row[q, c], q)
        order = np.lexsort((row[q, c], pairs, q))
        found = np.bincount(q, minlength=len(block))
        starts = (np.cumsum(found) - found)[settled]
        best = order[starts[:, None] + np.arange(k)]
        squares[block[settled]], index[block[settled]] = pairs[best], row[q, c][best]
    return np.concatenate([*doubtful, which[:0]])


def _propose(rows: _Rows, queries: np.ndarray, candidates: int, mesh: Mesh, tile_rows: int):
    """The smallest s of centred queries [q, d], ascending, and whose they are: float32 and int32 [q, candidates]."""
    n, d = len(rows), rows.width
    tiles = -(-n // (tile_rows * mesh.size))
    step = GROUP * mesh.size
    height = -(-n // (tiles * step)) * step
    # Chunks of equal length leave little to fill up; few queries share few lengths, since each is compiled anew.
    chunk = -(-len(queries) // -(-len(queries) // QUERY_CHUNK))
    chunk = chunk + -chunk % 8 if len(queries) > QUERY_CHUNK else max(32, 1 << (chunk - 1).bit_length())
    padded = np.pad(queries, ((0, -len(queries) % chunk), (0, 0)))
    chunks, centre = replicate(mesh, (padded.reshape(-1, chunk, d), rows.centre))
    sharding = batch_sharded(mesh)
    shape = (mesh.size, *chunks.shape[:2], candidates)
    best = jax.make_array_from_callback(shape, sharding, lambda at: np.full((1, *shape[1:]), np.inf, np.float32))
    whose = jax.make_array_from_callback(shape, sharding, lambda at: np.full((1, *shape[1:]), -1, np.int32))
    for first in range(0, n, height):
        tile = rows[slice(first, first + height)]
        real = len(tile)
        if real < height:
            tile = np.pad(tile, ((0, height - real), (0, 0)))
        on_devices = jax.make_array_from_callback((height, d), sharding, lambda at, tile=tile: tile[at])
        # The tile before must be done with, or tiles would queue up on the devices.
        jax.block_until_ready(best)
        best, whose = _keep_nearest(best, whose, chunks, on_devices, centre, np.int32(first), np.int32(real), mesh)
    best, whose = (np.moveaxis(x, 0, 2).reshape(len(padded), -1)[: len(queries)] for x in to_host((best, whose)))
    order = np.argsort(best, axis=1, kind="stable")[:, :candidates]
    return np.take_along_axis(best, order, 1), np.take_along_axis(whose, order, 1)


@functools.partial(jax.jit, static_argnames="mesh")
def _keep_nearest(best, whose, chunks, tile, centre, first, real, mesh):
    """The smallest s so far, [devices, chunks, queries, candidates], after a tile whose first `real` rows count."""

    def device(best, whose, chunks, tile, centre, first, real):
        height, candidates = tile.shape[0], best.shape[-1]
        start = lax.axis_index("data") * height
        tile = tile - centre
        length = jnp.where(start + jnp.arange(height) < real, jnp.sum(tile * tile, axis=1), jnp.inf)

        def one(chunk):
            best, whose, queries = chunk
            s = length - 2 * lax.dot_general(queries, tile, (((1,), (1,)), ((), ())), precision=lax.Precision.HIGHEST)
            value, column = _smallest(s, candidates)
            value, at = _smallest(jnp.concatenate([best, value], 1), candidates)
            return value, jnp.take_along_axis(jnp.concatenate([whose, first + start + column], 1), at, 1)

        best, whose = lax.map(one, (best[0], whose[0], chunks))
        return best[None], whose[None]

    split, whole = PartitionSpec("data"), PartitionSpec()
    specs = (split, split, whole, split, whole, whole, whole)
    sharded = jax.shard_map(device, mesh=mesh, in_specs=specs, out_specs=split)
    return sharded(best, whose, chunks, tile, centre, first, real)


def _smallest(values: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """The `count` smallest of each row (all where there are fewer), ascending, and their columns."""
    rows, width = values.shape
    if width % GROUP or width // GROUP < count:
        smallest, column = lax.top_k(-values, min(count, width))
        return -smallest, column
    # A group is every (width / GROUP)-th column: its minimum is then one of GROUP long vectors, element by element.
    groups = values.reshape(rows, GROUP, width // GROUP)
    _, group = lax.top_k(-jnp.min(groups, axis=1), count)
    column = jnp.arange(0, width, width // GROUP)[None, :, None] + group[:, None, :]
    inside = jnp.take_along_axis(groups, group[:, None, :], axis=2).reshape(rows, -1)
    smallest, at = lax.top_k(-inside, count)
    return -smallest, jnp.take_along_axis(column.reshape(rows, -1), at, 1)


def _squares(rows: _Rows, queries: np.ndarray, row: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Squared distances of pairs of rows from their differences: float32 [pairs]."""
    squares = np.empty(len(row), np.float32)

    def some(first: int) -> None:
        part = slice(first, first + PAIR_ROWS)
        difference = rows[row[part]]  # a copy, as ever where positions are given
        difference -= queries[query[part]]
        np.einsum("pd,pd->p", difference, difference, out=squares[part])

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
        list(threads.map(some, range(0, len(row), PAIR_ROWS)))
    return squares


def _distinct(rows: _Rows) -> tuple[_Rows, np.ndarray, np.ndarray]:
    """The distinct rows in order of their first position, and where each occurs.

    Returns the rows; the positions of all rows, those of one distinct row in a run, ascending; where the runs start,
    with the end of the last. Rows are told apart by a 128-bit digest, so that no copy of them need be sorted.
    """
    number: dict[bytes, int] = {}
    of = np.empty(len(rows), np.int32)
    for first in range(0, len(rows), READ_ROWS):
        block = np.ascontiguousarray(rows[slice(first, first + READ_ROWS)] + np.float32(0))  # −0 is 0
        for place, row in enumerate(block, first):
            of[place] = number.setdefault(hashlib.blake2b(row, digest_size=16).digest(), len(number))
    members = np.argsort(of, kind="stable").astype(np.int32)
    starts = np.concatenate([[0], np.cumsum(np.bincount(of))])
    return rows.at(members[starts[:-1]]), members, starts


def vote(
    found: Neighbours, labels: np.ndarray, classes: int, ks: Sequence[int], weightings: Sequence[str]
) -> np.ndarray:
    """Each class's share of the votes of the first k neighbours: float32 [len(ks), len(weightings), q, classes].

    labels: int [n], the class of each row of the database, from 0.
    ks: each at most the number of neighbours found.
    weightings: `uniform`, or `distance`: votes weigh 1 / distance, and rows at distance 0 outvote all others.

    Raises ValueError for a k, a weighting or a neighbour's label that is out of range.
    """
    q, most = found.index.shape
    if unknown := set(weightings) - set(WEIGHTINGS):
        raise ValueError(f"weighting {sorted(unknown)[0]!r}, not one of {', '.join(WEIGHTINGS)}")
    if not all(1 <= k <= most for k in ks):
        raise ValueError(f"k of {list(ks)}: {most} neighbours were found")
    label = np.asarray(labels)[found.index].astype(np.int64)
    if label.size and not (label.min() >= 0 and label.max() < classes):
        raise ValueError(f"labels of neighbours from {label.min()} to {label.max()}, of {classes} classes")
    ballot = np.arange(q)[:, None] * classes + label
    zero = found.distance == 0
    # Neighbours are in order, so a row at distance 0 among the first k is the first of all.
    weight = np.where(zero[:, :1], zero, 1 / np.where(zero, 1, found.distance.astype(np.float64)))
    shares = np.empty((len(ks), len(weightings), q, classes), np.float32)
    for i, k in enumerate(ks):
        for j, weighting in enumerate(weightings):
            weights = weight[:, :k].ravel() if weighting == "distance" else None
            votes = np.bincount(ballot[:, :k].ravel(), weights, q * classes).reshape(q, classes)
            shares[i, j] = votes / votes.sum(axis=1, keepdims=True)
    return shares
