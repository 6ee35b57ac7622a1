"""Our exact neighbours against those of faiss's flat indexes."""

import numpy as np
import pytest

from cxr_jax.probes import knn

pytestmark = pytest.mark.peers
faiss = pytest.importorskip("faiss")


@pytest.mark.parametrize("metric", knn.METRICS)
def test_neighbours_are_those_of_the_flat_index_wherever_float32_can_tell(metric):
    rng = np.random.default_rng(0)
    database = rng.standard_normal((3000, 64)).astype(np.float32)
    queries = rng.standard_normal((200, 64)).astype(np.float32)
    k = 15
    ours = knn.neighbours(database, queries, k, metric=metric)
    if metric == "l2":
        index = faiss.IndexFlatL2(64)
        index.add(database)
        square, found = index.search(queries, k)
        distance = np.sqrt(square)
    else:
        index = faiss.IndexFlatIP(64)
        index.add(database / np.linalg.norm(database, axis=1, keepdims=True))
        similarity, found = index.search(queries / np.linalg.norm(queries, axis=1, keepdims=True), k)
        distance = 1 - similarity
    np.testing.assert_allclose(ours.distance, distance, rtol=1e-5)
    gap = np.diff(ours.distance, axis=1) > 1e-5
    clear = np.pad(gap, ((0, 0), (1, 0)), constant_values=True) & np.pad(gap, ((0, 0), (0, 1)))
    assert clear.mean() > 0.8
    np.testing.assert_array_equal(ours.index[clear], found[clear])
