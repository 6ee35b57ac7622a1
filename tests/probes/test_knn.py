"""Neighbours against scikit-learn and plain float64, whatever the tiles and devices; votes against scikit-learn's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.neighbors

from cxr_jax import mesh
from cxr_jax.probes import knn
from cxr_jax.tables import UserError


def normal(n, d, seed):
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def nearest(database, queries, k, metric):
    """In float64, from differences, ties by index: a sort of everything."""
    a, b = queries.astype(np.float64), database.astype(np.float64)
    if metric == "cosine":
        a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    square = ((a[:, None] - b) ** 2).sum(axis=2)
    distance = np.sqrt(square) if metric == "l2" else square / 2
    index = np.argsort(distance, axis=1, kind="stable")[:, :k]
    return index, np.take_along_axis(distance, index, 1)


@pytest.mark.parametrize("metric", knn.METRICS)
def test_neighbours_are_scikit_learns_and_the_same_over_all_tiles_and_devices(metric):
    database, queries = normal(1500, 24, 0), normal(70, 24, 1)
    model = sklearn.neighbors.NearestNeighbors(
        n_neighbors=9, algorithm="brute", metric={"l2": "euclidean", "cosine": "cosine"}[metric]
    )
    distance, index = model.fit(database.astype(np.float64)).kneighbors(queries.astype(np.float64))
    # One tile, several, a last one of few rows, and tiles with fewer rows than neighbours.
    for devices, tile_rows in ((8, 16_384), (8, 48), (1, 16_384), (1, 499), (1, 16)):
        found = knn.neighbours(
            database, queries, 9, metric=metric, mesh=mesh.data_mesh(jax.devices()[:devices]), tile_rows=tile_rows
        )
        assert found.index.dtype == np.int32 and found.distance.dtype == np.float32
        np.testing.assert_array_equal(found.index, index)
        np.testing.assert_allclose(found.distance, distance, rtol=2e-6)


@pytest.mark.parametrize("metric", knn.METRICS)
def test_ties_go_to_the_lower_index_whatever_the_tiles_and_devices(metric):
    # 63 patterns among 700 rows: each query has dozens of equal rows, and more at equal distance.
    binary = np.random.default_rng(0).integers(0, 2, (800, 6)).astype(np.float32)
    binary[:, 0] = 1
    database, queries = binary[:700], binary[700:]
    index, distance = nearest(database, queries, 20, "l2")
    if metric == "cosine":  # only exact ties tell: rows with the very pattern of the query
        database = np.random.default_rng(1).permutation(np.unique(database, axis=0).repeat(30, axis=0))
        index = np.stack([np.flatnonzero((database == q).all(1))[:20] for q in queries])
        distance = np.zeros(index.shape)
    for devices, tile_rows in ((1, 16_384), (1, 100), (8, 16)):
        on = mesh.data_mesh(jax.devices()[:devices])
        found = knn.neighbours(database, queries, 20, metric=metric, mesh=on, tile_rows=tile_rows)
        np.testing.assert_array_equal(found.index, index)
        np.testing.assert_allclose(found.distance, distance, rtol=1e-6)


def test_equal_rows_in_any_number_do_not_hide_others():
    database = np.concatenate([np.full((400, 5), 3), np.zeros((400, 5)), np.full((2, 5), -0.0)]).astype(np.float32)
    found = knn.neighbours(database, np.array([[0, 0, 0, 0, 0], [3, 3, 3, 3, 3.0]], np.float32), 402, metric="l2")
    np.testing.assert_array_equal(found.index[0, :401], np.arange(400, 801))
    np.testing.assert_array_equal(found.index[1], [*range(400), 400, 401])
    np.testing.assert_allclose(found.distance[1, -3:], [0, np.sqrt(45), np.sqrt(45)], rtol=1e-6)
    everything = knn.neighbours(np.ones((50, 3)), np.ones((1, 3)), 50, metric="cosine")
    np.testing.assert_array_equal(everything.index[0], np.arange(50))


@pytest.mark.parametrize("metric", knn.METRICS)
def test_a_large_mean_spoils_nothing(metric):
    """‖a‖² + ‖b‖² − 2ab in float32 would lose all of a spread of 1 about a mean of 3,000."""
    database, queries = 3000 + normal(1000, 40, 2), 3000 + normal(50, 40, 3)
    index, distance = nearest(database, queries, 5, metric)
    found = knn.neighbours(database, queries, 5, metric=metric)
    if metric == "l2":
        np.testing.assert_array_equal(found.index, index)
        np.testing.assert_allclose(found.distance, distance, rtol=1e-6)
    else:  # cosines of about 1e-7, from unit vectors held in float32
        np.testing.assert_allclose(found.distance, distance, rtol=2e-3)


def test_an_outlier_does_not_blur_the_others():
    database, queries = normal(1000, 16, 4), normal(30, 16, 5)
    database[7] = 1e6
    index, distance = nearest(database, queries, 8, "l2")
    found = knn.neighbours(database, queries, 8, metric="l2")
    np.testing.assert_array_equal(found.index, index)
    np.testing.assert_allclose(found.distance, distance, rtol=1e-6)


def test_allowed_rows_alone_are_neighbours_and_others_are_not_read():
    database, queries = normal(600, 12, 6), normal(20, 12, 7)
    allowed = np.random.default_rng(0).random(600) < 0.3
    rows = np.flatnonzero(allowed)
    index, distance = nearest(database[rows], queries, 4, "l2")
    database[~allowed] = np.nan
    found = knn.neighbours(database, queries, 4, metric="l2", allowed=allowed)
    np.testing.assert_array_equal(found.index, rows[index])
    np.testing.assert_allclose(found.distance, distance, rtol=1e-6)
    # Through the search among distinct rows as well.
    binary = (database > 0).astype(np.float32)[:, :2]
    index, _ = nearest(binary[rows], binary[:20], 4, "l2")
    found = knn.neighbours(binary, binary[:20], 4, metric="l2", allowed=allowed)
    np.testing.assert_array_equal(found.index, rows[index])


def test_inputs_may_be_memory_maps_jax_arrays_and_other_types(tmp_path):
    database, queries = normal(300, 8, 8), normal(10, 8, 9)
    np.save(tmp_path / "database.npy", database)
    expected = knn.neighbours(database, queries, 3, metric="l2")
    mapped = np.load(tmp_path / "database.npy", mmap_mode="r")
    for other in (mapped, jnp.asarray(database), database.astype(np.float64), np.asfortranarray(database)):
        found = knn.neighbours(other, jnp.asarray(queries), 3, metric="l2")
        np.testing.assert_array_equal(found.index, expected.index)
        np.testing.assert_array_equal(found.distance, expected.distance)
    halves = knn.neighbours(database.astype(np.float16), queries, 3, metric="l2")
    np.testing.assert_array_equal(halves.index, nearest(database.astype(np.float16), queries, 3, "l2")[0])


class Read:
    """An array that remembers the most rows ever read of it at once."""

    def __init__(self, array):
        self.array, self.shape, self.ndim, self.most = array, array.shape, array.ndim, 0

    def __len__(self):
        return len(self.array)

    def __getitem__(self, which):
        rows = self.array[which]
        self.most = max(self.most, len(rows))
        return rows


def test_rows_are_read_a_tile_and_a_block_at_a_time(monkeypatch):
    monkeypatch.setattr(knn, "READ_ROWS", 50)
    monkeypatch.setattr(knn, "QUERY_BLOCK", 32)
    monkeypatch.setattr(knn, "PAIR_ROWS", 60)
    database, queries = Read(normal(1000, 6, 10)), Read(normal(100, 6, 11))
    on = mesh.data_mesh(jax.devices()[:1])
    found = knn.neighbours(database, queries, 3, metric="l2", mesh=on, tile_rows=80)
    assert database.most <= 80 and queries.most <= 50
    np.testing.assert_array_equal(found.index, nearest(database.array, queries.array, 3, "l2")[0])


def test_no_queries_have_no_neighbours():
    found = knn.neighbours(normal(20, 4, 0), np.zeros((0, 4), np.float32), 3, metric="cosine")
    assert found.index.shape == found.distance.shape == (0, 3)


def test_what_cannot_be_searched_is_refused_in_plain_words():
    database, queries = normal(30, 4, 12), normal(5, 4, 13)
    allowed = np.arange(30) < 6
    with pytest.raises(UserError, match="k=7 neighbours asked of 6 rows"):
        knn.neighbours(database, queries, 7, metric="l2", allowed=allowed)
    with pytest.raises(UserError, match="k=0 "):
        knn.neighbours(database, queries, 0, metric="l2")
    with pytest.raises(UserError, match=r"\(30, 4\) and queries of shape \(5, 3\)"):
        knn.neighbours(database, queries[:, :3], 2, metric="l2")
    with pytest.raises(ValueError, match="'L2', not one of l2, cosine"):
        knn.neighbours(database, queries, 2, metric="L2")
    spoilt = database.copy()
    spoilt[[11, 20], [2, 0]] = np.nan, np.inf
    with pytest.raises(UserError, match=r"^database: 2 NaN or infinite, the first in row 12, column 3;"):
        knn.neighbours(spoilt, queries, 2, metric="l2")
    with pytest.raises(UserError, match=r"^queries: 1 NaN or infinite, the first in row 21, column 1;"):
        knn.neighbours(database, np.where(np.isnan(spoilt), 0, spoilt), 2, metric="l2")
    with pytest.raises(UserError, match="row 12, column 3;"):  # counted in the whole, not among the allowed
        knn.neighbours(spoilt, queries, 2, metric="cosine", allowed=np.arange(30) > 3)
    huge = database.copy()
    huge[3] = 1e20
    with pytest.raises(UserError, match=r"^database: values up to 1e\+20 overflow"):
        knn.neighbours(huge, queries, 2, metric="l2")
    empty = database.copy()
    empty[9] = 0
    with pytest.raises(UserError, match=r"^database: row 10 has length 0"):
        knn.neighbours(empty, queries, 2, metric="cosine")
    assert knn.neighbours(empty, queries, 2, metric="l2").index.shape == (5, 2)


@pytest.mark.parametrize("metric", knn.METRICS)
def test_votes_are_scikit_learns_for_every_k_and_weighting(metric):
    # Whole numbers, so that scikit-learn too finds distances of exactly 0; queries 0 to 9 are rows of the database.
    rng = np.random.default_rng(0)
    database = rng.integers(-20, 20, (400, 8)).astype(np.float64)
    queries = np.concatenate([database[:10], rng.integers(-20, 20, (50, 8))])
    labels = rng.integers(0, 4, 400)
    ks = (1, 3, 12)
    found = knn.neighbours(database, queries, max(ks), metric=metric)
    assert (found.distance[:10, 0] == 0).all()
    shares = knn.vote(found, labels, 4, ks, knn.WEIGHTINGS)
    assert shares.shape == (3, 2, 60, 4) and shares.dtype == np.float32
    name = {"l2": "euclidean", "cosine": "cosine"}[metric]
    for i, k in enumerate(ks):
        for j, weighting in enumerate(knn.WEIGHTINGS):
            # Cosines of scikit-learn miss 0 by rounding; rows of the database are then left to the case of l2.
            some = slice(10, None) if metric == "cosine" else slice(None)
            model = sklearn.neighbors.KNeighborsClassifier(k, weights=weighting, metric=name, algorithm="brute")
            expected = model.fit(database, labels).predict_proba(queries[some])
            np.testing.assert_allclose(shares[i, j, some], expected, atol=1e-6)


def test_rows_at_no_distance_outvote_all_others():
    found = knn.Neighbours(np.array([[0, 1, 2, 3]], np.int32), np.array([[0, 0, 1, 2]], np.float32))
    shares = knn.vote(found, np.array([1, 0, 2, 2]), 3, (1, 2, 4), ("distance", "uniform"))
    np.testing.assert_allclose(shares[:, 0, 0], [[0, 1, 0], [0.5, 0.5, 0], [0.5, 0.5, 0]])
    np.testing.assert_allclose(shares[2, 1, 0], [0.25, 0.25, 0.5])


def test_votes_that_cannot_be_counted_are_refused():
    found = knn.Neighbours(np.array([[0, 1]], np.int32), np.array([[1, 2]], np.float32))
    with pytest.raises(ValueError, match="2 neighbours were found"):
        knn.vote(found, np.array([0, 1]), 2, (1, 3), ("uniform",))
    with pytest.raises(ValueError, match="'squared'"):
        knn.vote(found, np.array([0, 1]), 2, (1,), ("squared",))
    with pytest.raises(ValueError, match="from -1 to 1, of 2 classes"):
        knn.vote(found, np.array([-1, 1]), 2, (1,), ("uniform",))
