"""K-means beside scikit-learn's, from equal starts and over seeds; agreement with labels beside its scores."""

import numpy as np
import pytest
import sklearn.metrics
from sklearn.cluster import KMeans

from cxr_jax.probes import kmeans
from cxr_jax.tables import UserError

ONCE = {"restarts": 1, "seed": 0, "max_iterations": 300, "tolerance": 0.0}


def blobs(n=700, d=12, groups=6, seed=0, spread=1.5):
    """Groups near enough to one another for k-means to end in different optima."""
    rng = np.random.default_rng(seed)
    middles = rng.normal(0, 1, (groups, d))
    return (middles[rng.integers(0, groups, n)] + rng.normal(0, spread, (n, d))).astype(np.float32)


def inertia(features, centres, weights=None):
    square = ((features[:, None].astype(np.float64) - centres) ** 2).sum(axis=2).min(axis=1)
    return float(square.sum() if weights is None else square @ weights)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("tolerance", [0.0, 1e-3])
def test_from_equal_centres_it_ends_where_scikit_learn_does(weighted, tolerance):
    features = blobs()
    weights = np.random.default_rng(1).integers(0, 4, len(features)).astype(float) if weighted else None
    start = features[:6]
    peer = KMeans(6, init=start, n_init=1, tol=tolerance, algorithm="lloyd").fit(features, sample_weight=weights)
    found = kmeans.fit(features, 6, **{**ONCE, "tolerance": tolerance}, centres=start, weights=weights)
    assert found.inertia == pytest.approx(peer.inertia_, rel=1e-6)
    assert found.inertia == pytest.approx(inertia(features, found.centres, weights), rel=1e-6)
    np.testing.assert_array_equal(found.assignment, peer.labels_)
    np.testing.assert_allclose(found.centres, peer.cluster_centers_, atol=1e-5)
    assert found.converged and found.iterations == peer.n_iter_
    assert found.centres.dtype == np.float32 and found.assignment.dtype == np.int32


def test_over_seeds_it_is_as_good_as_scikit_learn():
    features = blobs(spread=0.5, groups=10)
    ours = [kmeans.fit(features, 6, **{**ONCE, "seed": seed}).inertia for seed in range(20)]
    peer = [KMeans(6, n_init=1, tol=0, random_state=seed).fit(features).inertia_ for seed in range(20)]
    assert min(peer) <= np.median(ours) <= max(peer)
    assert len({round(x, 2) for x in ours}) > 3  # there are several optima, so that seeds matter


def test_seeding_finds_groups_that_lie_apart():
    features = blobs(spread=0.1)
    seeded = [kmeans.fit(features, 6, **{**ONCE, "seed": seed}).inertia for seed in range(20)]
    rng = np.random.default_rng(0)
    blind = [features[rng.choice(len(features), 6, replace=False)] for _ in range(20)]
    blind = [kmeans.fit(features, 6, **ONCE, centres=start).inertia for start in blind]
    assert np.max(seeded) < 1.001 * min(seeded) and np.median(blind) > 2 * min(seeded)


def test_the_best_restart_is_kept_and_the_same_seed_gives_it_again():
    features = blobs(spread=0.5, groups=10)
    several = {**ONCE, "restarts": 8, "seed": 3}
    found = kmeans.fit(features, 6, **several)
    assert found.inertias.shape == (8,) and len(set(found.inertias.round(3))) > 1
    assert found.inertia == found.inertias.min()
    assert found.inertia == pytest.approx(inertia(features, found.centres), rel=1e-6)
    # Each has gone on to a fixed point, however long the others took: from there nothing moves.
    again = kmeans.fit(features, 6, **ONCE, centres=found.centres)
    assert again.iterations <= 2 and again.inertia == pytest.approx(found.inertia, rel=1e-9)
    np.testing.assert_array_equal(again.assignment, found.assignment)
    same = kmeans.fit(features, 6, **several)
    np.testing.assert_array_equal(same.inertias, found.inertias)
    np.testing.assert_array_equal(same.assignment, found.assignment)
    assert (kmeans.fit(features, 6, **{**several, "seed": 4}).inertias != found.inertias).any()


def test_chunks_change_nothing(monkeypatch):
    features = blobs()
    whole = kmeans.fit(features, 6, **ONCE, centres=features[:6])
    np.testing.assert_array_equal(kmeans.assign(features, whole.centres), whole.assignment)
    monkeypatch.setattr(kmeans, "CHUNK", 256)  # the last of 3 is filled up
    parts = kmeans.fit(features, 6, **ONCE, centres=features[:6])
    np.testing.assert_array_equal(parts.assignment, whole.assignment)
    assert parts.inertia == pytest.approx(whole.inertia, rel=1e-6)  # float32 sums, in another order
    np.testing.assert_array_equal(kmeans.assign(features, whole.centres), whole.assignment)


def test_it_stops_when_told_to_and_says_so():
    features = blobs()
    found = kmeans.fit(features, 6, **{**ONCE, "max_iterations": 2}, centres=features[:6])
    assert found.iterations == 2 and not found.converged
    assert found.inertia == pytest.approx(inertia(features, found.centres), rel=1e-6)


def test_weight_zero_leaves_a_row_out_whatever_it_holds():
    features = blobs()
    kept = np.arange(700) % 3 > 0
    spoilt = features.copy()
    spoilt[0], spoilt[3] = np.nan, 1e6
    start = features[kept][:6]
    found = kmeans.fit(spoilt, 6, **ONCE, weights=kept.astype(float), centres=start)
    peer = KMeans(6, init=start, n_init=1, tol=0).fit(features[kept])
    np.testing.assert_array_equal(found.assignment[kept], peer.labels_)
    assert found.inertia == pytest.approx(peer.inertia_, rel=1e-6) and found.iterations == peer.n_iter_
    drawn = kmeans.fit(spoilt, 6, **ONCE, weights=kept.astype(float))
    assert np.abs(drawn.centres).max() < 100


def test_an_empty_cluster_takes_the_farthest_row():
    features = np.array([[0, 0], [0, 1], [10, 0], [10, 1], [30, 0]], np.float32)
    start = np.array([[5, 0], [1000, 0], [-1000, 0]], np.float32)  # two centres that no row is near to
    found = kmeans.fit(features, 3, **ONCE, centres=start)
    assert found.converged and found.inertia == pytest.approx(1)
    assert len(set(found.assignment)) == 3 and (found.assignment == found.assignment[4]).sum() == 1
    peer = KMeans(3, init=start, n_init=1, tol=0).fit(features)
    assert found.inertia == pytest.approx(peer.inertia_)


def test_as_many_clusters_as_distinct_rows_leave_nothing():
    features = np.eye(6, 12, dtype=np.float32)[np.random.default_rng(0).integers(0, 6, 700)]
    for start in (None, np.repeat(features[:1], 6, axis=0)):  # and from six centres in one place
        found = kmeans.fit(features, 6, **ONCE, centres=start)
        assert found.converged and found.inertia == pytest.approx(0, abs=1e-9) and len(set(found.assignment)) == 6


def test_a_large_mean_spoils_nothing():
    features = blobs()
    start = features[:6]
    found = kmeans.fit(features + 3000, 6, **ONCE, centres=start + 3000)
    near = kmeans.fit(features, 6, **ONCE, centres=start)
    assert found.inertia == pytest.approx(near.inertia, rel=1e-4)
    np.testing.assert_array_equal(kmeans.assign(features + 3000, found.centres), found.assignment)
    assert kmeans.fit(features + 3000, 6, **ONCE).inertia < 1.2 * near.inertia


def test_what_cannot_be_clustered_is_refused_in_plain_words():
    features = blobs(40, 3)
    with pytest.raises(UserError, match="5 clusters asked of 2 distinct rows"):
        kmeans.fit(np.repeat(features[:2], 10, axis=0), 5, **ONCE)
    with pytest.raises(UserError, match="5 clusters asked of 4 distinct rows"):
        kmeans.fit(features, 5, **ONCE, weights=(np.arange(40) < 4).astype(float))
    spoilt = features.copy()
    spoilt[[7, 9], [1, 2]] = np.nan, np.inf
    for call in (lambda: kmeans.fit(spoilt, 2, **ONCE), lambda: kmeans.assign(spoilt, features[:2])):
        with pytest.raises(UserError, match="^features: 2 NaN or infinite, the first in row 8, column 2;"):
            call()
    with pytest.raises(ValueError, match="weights"):
        kmeans.fit(features, 2, **ONCE, weights=-np.ones(40))
    with pytest.raises(ValueError, match="given centres take 1 restart"):
        kmeans.fit(features, 2, **{**ONCE, "restarts": 2}, centres=features[:2])
    with pytest.raises(ValueError, match=r"centres of shape \(3, 3\), not \(2, 3\)"):
        kmeans.fit(features, 2, **ONCE, centres=features[:3])


def divisions(seed, n, clusters, classes, unknown=0.2):
    rng = np.random.default_rng(seed)
    assignment = rng.integers(0, clusters, n)
    labels = np.where(rng.random(n) < 0.4, assignment % classes, rng.integers(0, classes, n))
    return assignment, np.where(rng.random(n) < unknown, -1, labels)


@pytest.mark.parametrize("n, clusters, classes", [(500, 8, 4), (30, 3, 5), (4, 2, 2)])
def test_agreement_is_scikit_learns_for_one_and_for_many_labels(n, clusters, classes):
    assignment, labels = divisions(n, n, clusters, classes)
    many = np.stack([labels, *(np.random.default_rng(s).permutation(labels) for s in range(20))])
    scores = kmeans.agreement(assignment, many, clusters, classes)
    one = kmeans.agreement(assignment, labels, clusters, classes)
    for p, permuted in enumerate(many):
        of, label = assignment[permuted >= 0], permuted[permuted >= 0]
        expected = {
            "adjusted_rand": sklearn.metrics.adjusted_rand_score(label, of),
            "normalised_mutual_information": sklearn.metrics.normalized_mutual_info_score(label, of),
            "purity": sum(np.bincount(label[of == c]).max() for c in set(of)) / len(label),
        }
        assert scores.keys() == expected.keys()
        for name, value in expected.items():
            assert scores[name][p] == pytest.approx(value, abs=1e-12), name
    for name in one:
        assert one[name].shape == () and one[name] == scores[name][0] and one[name].dtype == np.float64


@pytest.mark.parametrize(
    "assignment, labels",
    [
        ([0, 0, 0], [1, 1, 1]),  # one whole each
        ([0, 1, 2], [2, 0, 1]),  # all apart
        ([0, 0, 1, 1], [1, 1, 0, 0]),  # the same, by other names
        ([0, 0, 0, 0], [0, 1, 0, 1]),  # a whole, and halves
        ([0], [0]),
    ],
)
def test_agreement_at_its_ends_is_scikit_learns(assignment, labels):
    scores = kmeans.agreement(assignment, labels, 3, 3)
    assert scores["adjusted_rand"] == pytest.approx(sklearn.metrics.adjusted_rand_score(labels, assignment), abs=1e-12)
    expected = sklearn.metrics.normalized_mutual_info_score(labels, assignment)
    assert scores["normalised_mutual_information"] == pytest.approx(expected, abs=1e-12)


def test_agreement_is_undefined_where_nothing_is_known():
    scores = kmeans.agreement([0, 1, 1], [[-1, -1, -1], [0, 1, 1]], 2, 2)
    assert all(np.isnan(score[0]) and score[1] == 1 for score in scores.values())
    assert all(np.isnan(score) for score in kmeans.agreement([], [], 2, 2).values())


def test_agreement_refuses_what_is_out_of_range():
    with pytest.raises(ValueError, match="labels from 0 to 2, not from -1 to 1"):
        kmeans.agreement([0, 1], [0, 2], 2, 2)
    with pytest.raises(ValueError, match="assignment from -1 to 1, not from 0 to 1"):
        kmeans.agreement([-1, 1], [0, 1], 2, 2)
