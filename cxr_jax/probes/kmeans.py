"""K-means, and how far its clusters line up with something known.

Sought are k centres c that make the inertia Σ_i w_i min_c ‖x_i − c‖² small. Lloyd's iteration takes each row to its
nearest centre (the lowest of equals) and each centre to the weighted mean of its rows, until no row moves. It starts
from the greedy variant of k-means++ (Arthur and Vassilvitskii 2007, "k-means++: the advantages of careful seeding",
there as a remark; it is scikit-learn's default too): a row is drawn with a chance in proportion to w, and then, for
each further centre, 2 + ⌊ln k⌋ rows with chances in proportion to w times the squared distance to the nearest centre
yet; of these the one stays that leaves the smallest inertia.

All restarts run in one compiled call. Their centres lie side by side, so that a step of all of them is one matrix
product with the features, in chunks of rows, and another with the clusters' members as ones and zeros. A restart that
has converged waits for the others.

A cluster that loses all its rows takes the row farthest from its own centre, the second empty one the second farthest,
and so on; the row leaves the mean of its former cluster.

Everything is less the weighted mean of the features, since ‖x‖² + ‖c‖² − 2 x·c in float32 loses what a large mean
leaves of it. Distances that enter an inertia are taken from differences, and summed in float64.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cxr_jax.tables import UserError, not_finite

CHUNK = 2048  # rows whose distances to all centres exist at once


class Clustering(NamedTuple):
    """The best of some restarts.

    centres: float32 [k, d]. assignment: int32 [n], rows of weight 0 included. inertia: of rows by weight.
    inertias: float64 [restarts], all of them. iterations: means taken. converged: whether it stopped by itself.
    """

    centres: np.ndarray
    assignment: np.ndarray
    inertia: float
    inertias: np.ndarray
    iterations: int
    converged: bool


def fit(
    features,
    clusters: int,
    *,
    restarts: int,
    seed: int,
    max_iterations: int,
    tolerance: float,
    weights: np.ndarray | None = None,
    centres: np.ndarray | None = None,
) -> Clustering:
    """Of `restarts` runs the one of least inertia, the first of equals.

    features: [n, d], used as float32; they lie on the device whole.
    seed: the same seed, features and restarts give the same result on the same machine.
    tolerance: a run stops where no row changes its cluster, or where the squared shifts of its centres add up to no
    more
        than `tolerance` times the mean variance of a feature (as scikit-learn's `tol`); 0 waits for the former.
    weights: float [n], not negative; 1 each by default. 0 leaves a row out.
    centres: [k, d] to start from instead of k-means++; there is then nothing to restart.

    Raises UserError for NaN or infinite features and for fewer distinct rows than clusters (rows of weight 0 count for
    neither), ValueError for weights, centres, restarts or iterations that make no sense.
    """
    features = np.asarray(features, np.float32)
    weights = np.ones(len(features), np.float32) if weights is None else np.asarray(weights, np.float32)
    sound = features.ndim == 2 and weights.shape == features.shape[:1]
    if not sound or not np.isfinite(weights).all() or (weights < 0).any():
        raise ValueError(f"features [n, d] and weights [n] ≥ 0 expected, not {features.shape} and {weights.shape}")
    if restarts < 1 or max_iterations < 1 or clusters < 1 or (centres is not None and restarts != 1):
        asked = f"{clusters} clusters, {restarts} restarts, {max_iterations} iterations"
        raise ValueError(f"{asked}: each at least 1, and given centres take 1 restart")
    if centres is not None and np.shape(centres) != (clusters, features.shape[1]):
        raise ValueError(f"centres of shape {np.shape(centres)}, not {(clusters, features.shape[1])}")
    counts = weights > 0
    if not np.isfinite(features[counts]).all():
        raise not_finite(features, "features", np.flatnonzero(counts))
    found = distinct(features, counts, clusters)
    if found < clusters:
        raise UserError(f"{clusters} clusters asked of {found} distinct rows; ask for at most {found}")
    # A row left out may hold anything; its nearest centre is still wanted where it has one.
    usable = np.where(counts[:, None] | np.isfinite(features), features, 0) if not counts.all() else features
    mean = _weighted_mean(usable, weights).astype(np.float32)
    centred = usable - mean
    variance = float(_weighted_mean(centred, weights, power=2).mean())

    n, chunk = len(features), min(CHUNK, len(features))
    padding = -n % chunk
    rows = jnp.asarray(np.pad(centred, ((0, padding), (0, 0))))
    weight = jnp.asarray(np.pad(weights, (0, padding)))
    if centres is None:
        start = _plus_plus(jax.random.key(seed), rows, weight, restarts, clusters)
    else:
        start = jnp.asarray((np.asarray(centres, np.float32) - mean)[None])
    shift = np.float32(tolerance * variance)
    found = jax.device_get(_lloyd(rows, weight, start, np.int32(max_iterations), shift, chunk))
    inertias = (found["square"][:, :n].astype(np.float64) * weights).sum(axis=1)
    best = int(np.argmin(inertias))
    return Clustering(
        centres=found["centres"][best] + mean,
        assignment=found["cluster"][best, :n],
        inertia=float(inertias[best]),
        inertias=inertias,
        iterations=int(found["iterations"][best]),
        converged=bool(found["done"][best]),
    )


def assign(features, centres: np.ndarray) -> np.ndarray:
    """The nearest of `centres` [k, d], the lowest of equals, for each row of `features` [m, d]: int32 [m].

    Rows are read, and lie on the device, 2,048 at a time. Raises UserError for NaN or infinite features.
    """
    centres = np.asarray(centres, np.float32)
    middle = centres.mean(axis=0)
    moved = jnp.asarray((centres - middle)[None])
    nearest = np.empty(len(features), np.int32)
    for first in range(0, len(features), CHUNK):
        block = np.asarray(features[first : first + CHUNK], np.float32)
        if not np.isfinite(block).all():
            raise not_finite(features, "features")
        rows = np.pad(block - middle, ((0, CHUNK - len(block)), (0, 0)))
        nearest[first : first + CHUNK] = np.asarray(_nearest(jnp.asarray(rows), moved))[0, : len(block)]
    return nearest


def agreement(assignment: np.ndarray, labels: np.ndarray, clusters: int, classes: int) -> dict[str, np.ndarray]:
    """How far clusters and classes are the same division of the rows: float64 arrays of the leading shape of `labels`.

    assignment: int [n], from 0. labels: int [n] or [P, n], from 0, −1 where unknown; such rows are left out.

    adjusted_rand: the share of pairs of rows on which both divisions agree (together in both or apart in both),
    adjusted
        to 0 for chance and 1 for equality (Hubert and Arabie 1985).
    normalised_mutual_information: mutual information over the arithmetic mean of both entropies.
    purity: Σ over clusters of the rows of its commonest class, over all rows.

    NaN where nothing is known. Where both divisions are a single whole, adjusted Rand and mutual information are 1, as
    scikit-learn has it. Raises ValueError for values out of range.
    """
    assignment, labels = np.asarray(assignment, np.int64), np.asarray(labels, np.int64)
    for name, values, lowest, end in (("assignment", assignment, 0, clusters), ("labels", labels, -1, classes)):
        if values.size and not (values.min() >= lowest and values.max() < end):
            raise ValueError(f"{name} from {values.min()} to {values.max()}, not from {lowest} to {end - 1}")
    cell = assignment * (classes + 1) + 1  # column 0 counts the unknown
    cells = clusters * (classes + 1)
    many = labels.reshape(math.prod(labels.shape[:-1]), labels.shape[-1])
    table = np.array([np.bincount(cell + one, minlength=cells) for one in many], np.float64)
    table = table.reshape(len(many), clusters, classes + 1)[:, :, 1:]
    of_cluster, of_class, n = table.sum(axis=2), table.sum(axis=1), table.sum(axis=(1, 2))

    counts = (table.reshape(len(many), cells - clusters), of_cluster, of_class)
    together, in_cluster, in_class = (_pairs(count).sum(axis=1) for count in counts)
    with np.errstate(invalid="ignore", divide="ignore"):
        by_chance = in_cluster * in_class / _pairs(n)
        rand = (together - by_chance) / ((in_cluster + in_class) / 2 - by_chance)
        purity = table.max(axis=2, initial=0).sum(axis=1) / n
        shared = table / n[:, None, None]
        chance = of_cluster[:, :, None] * of_class[:, None, :] / (n**2)[:, None, None]
        information = np.where(table > 0, shared * np.log(np.where(table > 0, shared / chance, 1)), 0).sum(axis=(1, 2))
        entropies = _entropy(of_cluster, n) + _entropy(of_class, n)
        normalised = np.maximum(information, 0) / (entropies / 2)
    equal = ((table > 0).sum(axis=1) <= 1).all(axis=1) & ((table > 0).sum(axis=2) <= 1).all(axis=1)
    rand, normalised = (np.where(n == 0, np.nan, np.where(equal, 1, x)) for x in (rand, normalised))
    scores = {"adjusted_rand": rand, "normalised_mutual_information": normalised, "purity": purity}
    return {name: score.reshape(labels.shape[:-1]) for name, score in scores.items()}


def _pairs(count: np.ndarray) -> np.ndarray:
    return count * (count - 1) / 2


def _entropy(count: np.ndarray, n: np.ndarray) -> np.ndarray:
    share = count / n[:, None]
    return -(share * np.log(np.where(share > 0, share, 1))).sum(axis=1)


def distinct(features: np.ndarray, counts: np.ndarray, enough: int) -> int:
    """How many distinct rows count, looking no further than `enough`."""
    seen = set()
    for i in np.flatnonzero(counts):
        seen.add((features[i] + np.float32(0)).tobytes())  # −0 is 0
        if len(seen) == enough:
            break
    return len(seen)


def _weighted_mean(features: np.ndarray, weights: np.ndarray, power: int = 1) -> np.ndarray:
    """float64 [d], of powers; by chunks, since a float64 copy of all features would be twice their size."""
    parts = (slice(first, first + CHUNK) for first in range(0, len(features), CHUNK))
    total = sum(weights[part].astype(np.float64) @ features[part].astype(np.float64) ** power for part in parts)
    return total / weights.sum(dtype=np.float64)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    """a [m, d] with b [n, d]: [m, n], in float32 where a device would rather multiply in less."""
    return lax.dot_general(a, b, (((1,), (1,)), ((), ())), precision=lax.Precision.HIGHEST)


def _squares_less_own(rows: jax.Array, centres: jax.Array) -> jax.Array:
    """‖x − c‖² − ‖x‖² of rows [n, d] and centres [..., d]: [n, ...]. The order of centres needs no more."""
    flat = centres.reshape(-1, centres.shape[-1])
    return (jnp.sum(flat * flat, axis=1) - 2 * _product(rows, flat)).reshape(len(rows), *centres.shape[:-1])


@jax.jit
def _nearest(rows: jax.Array, centres: jax.Array) -> jax.Array:
    """int32 [restarts, n] of rows [n, d] and centres [restarts, k, d]."""
    return jnp.argmin(_squares_less_own(rows, centres), axis=2).astype(jnp.int32).T


@functools.partial(jax.jit, static_argnames=("restarts", "clusters"))
def _plus_plus(key, rows, weight, restarts: int, clusters: int) -> jax.Array:
    """Centres to start from, [restarts, clusters, d]."""
    n, d = rows.shape
    trials = 2 + int(math.log(clusters))
    log_weight = jnp.log(weight)
    own = jnp.sum(rows * rows, axis=1)

    def draw(step, log_chance, count):
        """int32 [restarts, count], from log chances that broadcast to [restarts, n]. A chance of 0 is never drawn."""
        noise = jax.random.gumbel(jax.random.fold_in(key, step), (restarts, count, n))
        return jnp.argmax(log_chance[:, None] + noise, axis=2)

    first = rows[draw(0, log_weight[None], 1)[:, 0]]
    centres = jnp.zeros((restarts, clusters, d)).at[:, 0].set(first)
    square = jnp.maximum(_squares_less_own(rows, first) + own[:, None], 0).T

    def add(step, state):
        centres, square = state
        trial = rows[draw(step, log_weight + jnp.log(square), trials)]
        then = jnp.moveaxis(_squares_less_own(rows, trial), 0, 2) + own
        then = jnp.minimum(square[:, None], jnp.maximum(then, 0))
        best = jnp.argmin(jnp.sum(then * weight, axis=2), axis=1)
        which = jnp.arange(restarts)
        return centres.at[:, step].set(trial[which, best]), then[which, best]

    return lax.fori_loop(1, clusters, add, (centres, square))[0]


@functools.partial(jax.jit, static_argnames="chunk")
def _lloyd(rows, weight, centres, max_iterations, shift, chunk: int) -> dict[str, jax.Array]:
    """Iterates centres [restarts, k, d] on rows [n, d], n a multiple of `chunk`, until `shift` is not exceeded.

    Returns centres; cluster, int32 [restarts, n]; square, the squared distance to its centre [restarts, n]; iterations
    and done [restarts].
    """
    restarts, clusters, d = centres.shape
    n = len(rows)
    own = jnp.sum(rows * rows, axis=1)
    chunks = jax.tree.map(lambda x: x.reshape(-1, chunk, *x.shape[1:]), (rows, weight, own))

    def sums_of(centres):
        """Clusters and squared distances [restarts, n], weighted sums [restarts, k, d], weights [restarts, k]."""

        def one(sums, part):
            total, count = sums
            rows, weight, own = part
            s = _squares_less_own(rows, centres)
            cluster = jnp.argmin(s, axis=2)
            member = jax.nn.one_hot(cluster, clusters, dtype=rows.dtype) * weight[:, None, None]
            total += _product(member.reshape(chunk, -1).T, rows.T).reshape(centres.shape)
            return (total, count + member.sum(axis=0)), (cluster.astype(jnp.int32), jnp.min(s, axis=2) + own[:, None])

        nothing = (jnp.zeros(centres.shape), jnp.zeros(centres.shape[:2]))
        (total, count), parts = lax.scan(one, nothing, chunks)
        cluster, square = (x.reshape(n, restarts).T for x in parts)
        return cluster, square, total, count

    def fill(total, count, cluster, square):
        """One restart: gives each empty cluster a far row, and takes that from its former cluster's sum."""
        empty = count == 0
        _, far = lax.top_k(jnp.where(weight > 0, square, -jnp.inf), min(clusters, n))
        row = far[jnp.maximum(jnp.cumsum(empty) - 1, 0)]
        moved = jnp.where(empty, weight[row], 0)
        taken = moved[:, None] * rows[row]
        total = total.at[cluster[row]].add(-taken) + taken
        return total, count.at[cluster[row]].add(-moved) + moved

    def go_on(state):
        return (state["step"] < max_iterations) & ~state["done"].all()

    def step(state):
        centres, done = state["centres"], state["done"]
        cluster, square, total, count = sums_of(centres)
        refill = functools.partial(jax.vmap(fill), cluster=cluster, square=square)
        full = (count > 0).all(axis=1)
        total, count = lax.cond(~full.all(), refill, lambda total, count: (total, count), total, count)
        means = jnp.where(count[..., None] > 0, total / jnp.where(count > 0, count, 1)[..., None], centres)
        centres_now = jnp.where(done[:, None, None], centres, means)
        # Rows without weight follow the centres, and hold nothing up.
        same = ((cluster == state["cluster"]) | (weight == 0)).all(axis=1)
        near = jnp.sum((centres_now - centres) ** 2, axis=(1, 2)) <= shift
        return {
            "centres": centres_now,
            "cluster": jnp.where(done[:, None], state["cluster"], cluster),
            "iterations": state["iterations"] + (~done).astype(jnp.int32),
            "done": done | (full & (same | near)),
            "step": state["step"] + 1,
        }

    state = {
        "centres": centres,
        "cluster": jnp.full((restarts, n), -1, jnp.int32),
        "iterations": jnp.zeros(restarts, jnp.int32),
        "done": jnp.zeros(restarts, bool),
        "step": jnp.int32(0),
    }
    state = lax.while_loop(go_on, step, state)
    cluster = sums_of(state["centres"])[0]

    def exactly(one):
        centres, cluster = one
        return jnp.sum((rows - centres[cluster]) ** 2, axis=1)

    square = lax.map(exactly, (state["centres"], cluster))
    return {**state, "cluster": cluster, "square": square}
