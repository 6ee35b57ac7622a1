"""Erasers beside what the theory promises, and beside regressions written out. Beside concept-erasure: test_erasure_concept_erasure.py."""

import jax
import numpy as np
import pytest

from cxr_jax.probes import erasure, logistic_regression
from cxr_jax.tables import UserError

RNG = np.random.default_rng(0)


def population(n=600, d=12, classes=3, rng=RNG, strength=1.0):
    """Features whose means and one of whose deviations depend on the class; correlated, on scales from .01 to 100; a dead one."""
    labels = rng.integers(0, classes, n)
    latent = rng.standard_normal((n, d)) + strength * rng.standard_normal((classes, d))[labels]
    latent[:, 0] *= 1 + labels
    features = latent @ (rng.standard_normal((d, d)) * np.logspace(-2, 2, d)) + 5 * rng.standard_normal(d)
    features[:, 3] = 0.7  # not a sum of few powers of two, so that its mean is off by a rounding
    return features.astype(np.float32), labels


def cross_covariance(features, labels):
    """Class means less the common one, in deviations of each feature."""
    x = features.astype(np.float64)
    x = (x - x.mean(axis=0)) / np.where(x.std(axis=0) > 0, x.std(axis=0), 1)
    return np.array([x[labels == c].mean(axis=0) for c in np.unique(labels)])


def gain(features, labels):
    """Nats by which the best linear probe, hardly penalised, is better than the constant."""
    fit = logistic_regression.fit(features, labels, np.array([1e-7]), tolerance=1e-9)
    share = np.bincount(labels) / len(labels)
    return -(share * np.log(share)).sum() - fit.objective[0, 0]


@pytest.mark.parametrize("shrink", [False, True])
@pytest.mark.parametrize(("n", "rounding"), [(600, 1e-6), (9, 1e-4)])
def test_no_linear_probe_beats_the_constant_on_the_patients_that_leace_was_fitted_on(n, rounding, shrink):
    """With fewer patients than features, too, where a probe without penalty reads the rounding of float32."""
    features, labels = population(n, rng=np.random.default_rng(n))
    eraser = erasure.leace(features, labels, np.arange(n), shrink=shrink)
    erased = eraser(features)
    assert gain(features, labels) > 0.1
    assert gain(erased, labels) < rounding
    assert abs(cross_covariance(erased, labels)).max() < 1e-5 < abs(cross_covariance(features, labels)).max()
    assert eraser.rank == 2 and eraser.covariance_rank == (12 if shrink else min(11, n - 1))
    np.testing.assert_allclose(erased.mean(axis=0), features.mean(axis=0), rtol=1e-4, atol=1e-3)


@pytest.mark.slow
def test_what_a_probe_of_other_patients_finds_fades_with_the_erasers_sample():
    """The refitted probe is given many; 20 features, of which the eraser sees 60 to 20,000 patients."""
    rng = np.random.default_rng(1)
    centres = 0.5 * rng.standard_normal((2, 20))
    labels = rng.integers(0, 2, 60_000)
    features = (rng.standard_normal((60_000, 20)) + centres[labels]).astype(np.float32)
    left = []
    for n in (60, 1_000, 20_000):
        erased = erasure.leace(features[:n], labels[:n], np.arange(n))(features[20_000:])
        left.append(gain(erased, labels[20_000:]))
    assert left[0] > 3 * left[1] > 9 * left[2] and left[2] < 2e-3 < 0.1 < gain(features[20_000:], labels[20_000:])


@pytest.mark.parametrize(("n", "d"), [(300, 60), (60, 100)])
def test_a_refitted_linear_probe_does_not_tell_shrunk_from_unshrunk_from_orthogonalised(n, d):
    """All take away what changes along the differences between class means, and differ in how far along these an image is moved."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 10_000)
    latent = 3 * np.arange(1, d + 1) ** -0.5 * rng.standard_normal((10_000, d)) @ np.linalg.qr(rng.standard_normal((d, d)))[0]
    features = (latent + 0.4 * rng.standard_normal((2, d))[labels]).astype(np.float32)
    own, others, patients = features[:n], features[n:], np.arange(n)
    fits = {shrink: erasure.leace(own, labels[:n], patients, shrink=shrink) for shrink in (False, True)}
    fits["orthogonalised"] = erasure.orthogonalised(own, labels[:n])
    left = [gain(fit(others), labels[n:]) for fit in fits.values()]
    np.testing.assert_allclose(left, left[0], atol=1e-6)
    assert 0.05 < left[0] < gain(others, labels[n:]) - 0.01
    changed = [np.square(fit(own).astype(float) - own).mean() for fit in fits.values()]
    assert changed[0] < min(changed[1:])
    assert abs(fits[False](others) - fits[True](others)).max() > 0.05 < abs(fits[True](others) - fits["orthogonalised"](others)).max()


@pytest.mark.parametrize("scale", [1e-3, 1e-5, 1e-7])
def test_a_small_feature_that_tells_the_class_is_erased_too(scale):
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 2, 2_000)
    features = rng.standard_normal((2_000, 8))
    features[:, 3] = scale * (labels + 0.3 * rng.standard_normal(2_000))
    features = features.astype(np.float32)
    assert gain(features, labels) > 0.5
    for shrink in (False, True):
        eraser = erasure.leace(features, labels, np.arange(2_000), shrink=shrink)
        assert gain(eraser(features), labels) < 1e-6 and eraser.covariance_rank == 8, shrink


def test_leace_that_is_not_shrunk_is_the_same_in_other_units():
    """Of powers of 2, which float32 takes exactly; and of fewer patients than features, on other patients."""
    features, labels = population(200, rng=np.random.default_rng(3))
    units = np.exp2(np.random.default_rng(3).integers(-30, 30, 12)).astype(np.float32)
    for n in (150, 9):
        fit = [erasure.leace(x[:n], labels[:n], np.arange(n), shrink=False) for x in (features, features * units)]
        assert fit[0].covariance_rank == fit[1].covariance_rank == min(11, n - 1)
        apart = fit[1](features * units).astype(float) / units - fit[0](features)
        assert (abs(apart) <= 1e-5 * abs(features).max(axis=0)).all()


def test_leace_changes_features_least():
    """Of oblique projections that leave no cross-covariance: along the same directions, by any other kernel, the change is greater."""
    features, labels = population()
    x = features.astype(np.float64)
    eraser = erasure.leace(features, labels, np.arange(len(x)), shrink=False)
    change = np.square(eraser(features) - x).sum(axis=1).mean()
    directions = cross_covariance(features, labels).T * x.std(axis=0)[:, None]
    for seed in range(20):
        other = eraser.right[0] + 0.02 * abs(eraser.right).max() * np.random.default_rng(seed).standard_normal(eraser.right[0].shape) * (seed > 0)
        # Maps x - D (RᵀD)⁺ Rᵀ (x - μ) erase whatever R is: with R of the eraser it is the eraser.
        oblique = directions @ np.linalg.pinv(other.T @ directions, rcond=1e-8) @ other.T
        moved = (x - eraser.mean[0]) @ oblique.T
        assert abs(cross_covariance((x - moved).astype(np.float32), labels)).max() < 1e-3
        assert np.square(moved).sum(axis=1).mean() >= change * (1 - 1e-6)
        if seed == 0:
            assert np.square(moved).sum(axis=1).mean() == pytest.approx(change, rel=1e-5)


def test_folds_together_are_folds_one_by_one():
    """And what has no weight, or no label, has no say."""
    features, labels = population()
    patients, weights = np.arange(len(labels)) // 2, RNG.integers(0, 2, (3, len(labels))).astype(float)
    labels[::7] = -1
    together = erasure.leace(features, labels, patients, weights=weights)
    for b, weight in enumerate(weights):
        rows = (weight > 0) & (labels >= 0)
        alone = erasure.leace(features[rows], labels[rows], patients[rows])
        np.testing.assert_allclose(together(features, b), alone(features), rtol=1e-5, atol=1e-3)
        assert together.rank[b] == alone.rank[0]


def test_images_of_one_patient_are_not_as_many_patients():
    """Shrinkage is by patients: of each image twice, the same eraser as of each once."""
    features, labels = population(60)
    once = erasure.leace(features, labels, np.arange(60))
    twice = erasure.leace(np.repeat(features, 2, axis=0), np.repeat(labels, 2), np.repeat(np.arange(60), 2))
    np.testing.assert_allclose(once(features), twice(features), rtol=1e-5, atol=1e-4)
    as_many = erasure.leace(np.repeat(features, 2, axis=0), np.repeat(labels, 2), np.arange(120))
    assert not np.allclose(once(features), as_many(features), rtol=1e-3, atol=1e-2)


def test_shrinkage_by_hand():
    """Of diag(1, 3) and 40 patients: trace 4, squares 10, so that 16 / 40 / (10 - 16 / 2) = .2 of it is 2 times the identity."""
    found = erasure.shrunk(np.array([np.diag([1.0, 3.0]), 5 * np.eye(2), np.diag([1.0, 3.0])]), np.array([40, 40, 2]))
    np.testing.assert_allclose(found, [np.diag([1.2, 2.8]), 5 * np.eye(2), 2 * np.eye(2)])


def regressed(features, labels, confounders):
    """Coefficients [classes - 1, d] of the classes but the first, beside confounders, by least squares."""
    design = np.column_stack([np.ones(len(labels)), labels[:, None] == np.arange(1, labels.max() + 1), confounders])
    return np.linalg.lstsq(design.astype(float), features.astype(float), rcond=None)[0][1 : labels.max() + 1]


def test_orthogonalised_features_differ_by_class_no_more_among_images_that_are_alike():
    features, labels = population()
    confounders = np.column_stack([labels + RNG.standard_normal(600), RNG.integers(0, 2, 600)])
    features[:, 5] += 30 * confounders[:, 0]  # which tells the class, by way of the confounder
    eraser = erasure.orthogonalised(features, labels, confounders)
    before, after = regressed(features, labels, confounders), regressed(eraser(features), labels, confounders)
    assert abs(after).max() < 1e-4 * abs(before).max() and eraser.rank == 2
    x, deviation = features.astype(float), features.std(axis=0, dtype=float) + (np.arange(features.shape[1]) == 3)
    span = np.linalg.svd((before / deviation).T, full_matrices=False)[0]
    np.testing.assert_allclose(eraser(features), x - (x - x.mean(axis=0)) / deviation @ span @ span.T * deviation, rtol=1e-4, atol=1e-2)
    # Without confounders: the differences between class means.
    plain = erasure.orthogonalised(features, labels)(features)
    assert abs(cross_covariance(plain, labels)).max() < 1e-4


def test_the_oracle_moves_each_class_to_the_common_mean():
    features, labels = population()
    moved = erasure.oracle(features, labels)(features, labels)
    for c in range(3):
        np.testing.assert_allclose(moved[labels == c].mean(axis=0), features.mean(axis=0), rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(
            moved[labels == c] - features[labels == c], np.tile(features.mean(axis=0) - features[labels == c].mean(axis=0), ((labels == c).sum(), 1)), rtol=1e-3, atol=1e-2
        )
    with pytest.raises(UserError, match="needs the class of every image"):
        erasure.oracle(features, labels)(features[:2], np.array([0, -1]))


def test_null_spaces_are_projected_out_until_nothing_is_told():
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 3, 600)
    features = (rng.standard_normal((600, 30)) + 0.3 * rng.standard_normal((3, 30))[labels]).astype(np.float32)
    eraser = erasure.nullspace_projected(features, labels, 1e-3, rounds=30)
    fit = logistic_regression.fit(eraser(features), labels, np.array([1e-3]))
    share = np.bincount(labels) / len(labels)
    assert -(share * np.log(share)).sum() - fit.objective[0, 0] < erasure.LEAST_GAIN
    assert 2 < eraser.rank < 30 and eraser.rank % 2 == 0
    deviation = features.std(axis=0, dtype=float)
    span = eraser.left[0] / deviation[:, None]
    np.testing.assert_allclose(span.T @ span, np.eye(eraser.rank[0]), atol=1e-9)
    # One round: the span of one probe's coefficients.
    first = erasure.nullspace_projected(features, labels, 1e-3, rounds=1)
    plain = logistic_regression.fit(features, labels, np.array([1e-3])).coefficients[0, 0].T * deviation[:, None]
    plain = plain - plain.mean(axis=1, keepdims=True)
    basis = first.left[0] / deviation[:, None]
    np.testing.assert_allclose(basis @ (basis.T @ plain), plain, atol=1e-5 * abs(plain).max())
    assert first.rank == 2


def test_what_has_most_weight_is_pruned():
    features, labels = population()
    features[:, 7] += 1e3 * labels
    features[:, 9] += 300 * (labels == 1)
    eraser = erasure.pruned(features, labels, 1e-3, 2)
    erased = eraser(features)
    changed = np.flatnonzero((erased != features).any(axis=0))
    np.testing.assert_array_equal(changed, [7, 9])
    np.testing.assert_allclose(erased[:, changed], np.tile(features[:, changed].mean(axis=0), (600, 1)), rtol=1e-5)


def in_deviations(covariance, deviations):
    return covariance / np.outer(deviations, deviations)


@pytest.mark.parametrize("ratio", [1.0, 300.0, 1e4, 1e6])
def test_quadratic_erasure_leaves_one_mean_and_one_covariance(ratio):
    """Of features whose deviations are up to so many times the least; each in its own."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 900)
    latent = rng.standard_normal((900, 6)) * (1 + labels[:, None] * np.array([0.5, 0, 0.3, 0.1, 0.7, 0.2])) + rng.standard_normal((3, 6))[labels]
    features = (latent @ np.linalg.qr(rng.standard_normal((6, 6)))[0] * np.geomspace(1, ratio, 6)).astype(np.float32)
    eraser = erasure.quadratic(features, labels, np.arange(900), shrink=False)
    moved, deviations = eraser(features, labels).astype(float), features.std(axis=0, dtype=float)
    common, was = in_deviations(eraser.covariance, deviations), np.cov(features.T.astype(float), bias=True)
    assert (np.diag(common) > 0.1).all() and abs(common - in_deviations(was, deviations)).max() < 1
    before = [in_deviations(np.cov(features[labels == c].T.astype(float), bias=True), deviations) for c in range(3)]
    assert abs(before - common).max() > 0.5
    for c in range(3):
        np.testing.assert_allclose(in_deviations(np.cov(moved[labels == c].T, bias=True), deviations), common, atol=1e-3)
        np.testing.assert_allclose(moved[labels == c].mean(axis=0) / deviations, features.mean(axis=0, dtype=float) / deviations, atol=1e-5)
    with pytest.raises(UserError, match=r"the covariance of class 0 has rank 5 of 6"):
        erasure.quadratic(np.where(np.arange(6) == 3, np.float32(0.7), features), labels, np.arange(900), shrink=False)


def test_the_barycentre_is_where_the_maps_to_the_classes_are_the_identity_in_the_mean():
    """Which is what defines it, and holds for small features as for large ones."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 900)
    small = np.einsum("nd,nde->ne", rng.standard_normal((900, 4)) * np.geomspace(0.1, 1, 4), np.linalg.qr(rng.standard_normal((3, 4, 4)))[0][labels])
    large = rng.standard_normal((900, 2)) * (1 + labels[:, None])
    features = np.concatenate([3e-4 * small, large], axis=1).astype(np.float32)
    eraser = erasure.quadratic(features, labels, np.arange(900), shrink=False)
    mean = np.einsum("c,cde->de", np.bincount(labels) / 900, np.linalg.inv(eraser.maps))
    deviations = np.sqrt(np.diag(eraser.covariance))
    np.testing.assert_allclose(mean * deviations[:, None] / deviations, np.eye(6), atol=1e-5)
    np.testing.assert_allclose(mean / deviations[:, None] * deviations, np.eye(6), atol=1e-5)


@pytest.mark.parametrize("shrink", [False, True])
def test_quadratic_erasure_keeps_every_direction_of_a_falling_spectrum(shrink):
    """Deviations of k^-2 over 256 directions, none of them a feature's."""
    rng = np.random.default_rng(1)
    labels, turn = rng.integers(0, 2, 4_000), np.linalg.qr(rng.standard_normal((256, 256)))[0]
    deviations = np.arange(1, 257) ** -2.0
    features = (rng.standard_normal((4_000, 256)) * (1 + 0.2 * labels[:, None]) * deviations @ turn.T).astype(np.float32)
    eraser = erasure.quadratic(features, labels, np.arange(4_000), shrink=shrink)
    moved = eraser(features, labels).astype(float) @ turn / deviations
    np.testing.assert_allclose([moved[labels == c].std(axis=0) for c in (0, 1)], 1.1, rtol=0.2 if shrink else 0.05)


def test_deviations_too_far_apart_for_float64_are_told():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 900)
    latent = np.einsum("nd,nde->ne", rng.standard_normal((900, 6)), rng.standard_normal((3, 6, 6))[labels])
    with pytest.raises(UserError, match=r"features' deviations, up to \de\+\d+ times the least, are too far apart for quadratic erasure"):
        erasure.quadratic((latent * np.geomspace(1, 1e9, 6)).astype(np.float32), labels, np.arange(900), shrink=False)


@pytest.mark.parametrize("shrink", [False, True])
def test_a_class_that_has_no_covariance(shrink):
    features, labels = population(60, classes=2, rng=np.random.default_rng(5))
    labels[:3], patients = 2, np.arange(60)
    with pytest.raises(UserError, match="class 2 has 3 images of one patient: that has no covariance"):
        erasure.quadratic(features, labels, np.maximum(patients, 2), shrink=shrink)
    labels[:2] = 1
    with pytest.raises(UserError, match="Cedar has 1 image of one patient"):
        erasure.quadratic(features, labels, patients, shrink=shrink, names=["Alder", "Birch", "Cedar"])
    features[labels == 0] = 1.5
    labels[2] = 1
    with pytest.raises(UserError, match="no feature varies among the training images of class 0"):
        erasure.quadratic(features, labels, patients, shrink=shrink)


def test_the_barycentre_of_one_feature_has_the_mean_deviation():
    """Of normal distributions in one dimension, it is known."""
    labels = np.repeat([0, 1], [100, 300])
    features = (RNG.standard_normal(400) * np.array([1.0, 3.0])[labels])[:, None].astype(np.float32)
    deviations = [features[labels == c].std(dtype=float) for c in (0, 1)]
    found = erasure.quadratic(features, labels, np.arange(400), shrink=False).covariance
    assert found[0, 0] == pytest.approx((0.25 * deviations[0] + 0.75 * deviations[1]) ** 2)


ERASERS = {
    "leace": lambda x, y, **more: erasure.leace(x, y, np.arange(len(x)), **more),
    "orthogonalised": erasure.orthogonalised,
    "nullspace_projected": lambda x, y, **more: erasure.nullspace_projected(x, y, 1e-3, 2, **more),
    "pruned": lambda x, y, **more: erasure.pruned(x, y, 1e-3, 2, **more),
    "oracle": erasure.oracle,
}


@pytest.mark.parametrize("fit", ERASERS.values(), ids=ERASERS)
def test_what_cannot_be_erased(fit):
    features, labels = population(50)
    for one_class in (np.zeros(50, int), np.full(50, -1)):
        with pytest.raises(UserError, match="one class only"):
            fit(features, one_class)
    with pytest.raises(UserError, match="class 3 of the attribute has no training image"):
        fit(features, labels, classes=4)
    with pytest.raises(UserError, match="one class only"):
        fit(features, labels, weights=np.array([np.ones(50), labels == 1]))
    with pytest.raises(UserError, match="no feature varies"):
        fit(np.ones_like(features), labels)
    holes = features.copy()
    holes[4, 2] = np.nan
    with pytest.raises(UserError, match="row 5, column 3"):
        fit(holes, labels)
    for wrong in (labels[:-1], labels.astype(float), labels - 2):
        with pytest.raises(ValueError, match="labels"):
            fit(features, wrong)
    with pytest.raises(ValueError, match="weights"):
        fit(features, labels, weights=-np.ones((1, 50)))
    with pytest.raises(ValueError, match="patients"):
        erasure.leace(features, labels, np.arange(49))


def test_what_would_leave_nothing_is_not_pruned():
    """Of 12 features, of which one is dead."""
    features, labels = population(50)
    for count in (11, 12, 100):
        with pytest.raises(UserError, match=f"{count} features are to be pruned, and 11 of 12 vary: nothing would be left"):
            erasure.pruned(features, labels, 1e-3, count)
    assert erasure.pruned(features, labels, 1e-3, 10).rank == 10


def test_confounders_that_tell_the_class_entirely():
    features, labels = population(50, classes=2)
    with pytest.raises(UserError, match="confounders tell the class of every image: no difference"):
        erasure.orthogonalised(features, labels, np.column_stack([labels, RNG.standard_normal(50)]))
    with pytest.raises(UserError, match="confounders: row 4 has one that is no number"):
        erasure.orthogonalised(features, labels, np.where(np.arange(50) == 3, np.nan, 1.0)[:, None])
    # One that does not vary tells nothing.
    erasure.orthogonalised(features, labels, np.full((50, 1), 0.7))


def test_confounders_that_tell_some_classes():
    rng = np.random.default_rng(6)
    features, labels = population(80, classes=4, rng=rng)
    three, noise = labels % 3, rng.standard_normal((80, 1))
    for scale in (1e-6, 1.0, 1e6):
        with pytest.raises(UserError, match="confounders alone tell class 2 from class 0 or class 1: no difference"):
            erasure.orthogonalised(features, three, scale * np.column_stack([three == 2, noise]))
        with pytest.raises(UserError, match="confounders tell the class of every image: no difference"):
            erasure.orthogonalised(features, labels, scale * np.column_stack([labels, noise]))
    with pytest.raises(UserError, match="alone tell Alder or Cedar from Birch or Dogwood: no"):
        erasure.orthogonalised(features, labels, labels[:, None] % 2, names=["Alder", "Birch", "Cedar", "Dogwood"])
    # Of all but one image it is not of every one.
    erasure.orthogonalised(features, three, (three == 2)[:, None] ^ (np.arange(80) == 0)[:, None])
    with pytest.raises(UserError, match=r"tell class 2 from class 0 or class 1 \(weights 1\): no"):
        erasure.orthogonalised(features, three, ((three == 2) ^ (np.arange(80) == 0))[:, None], weights=np.array([np.ones(80), np.arange(80) > 0]))


@pytest.mark.parametrize("scale", [1e-7, 1e5, 1e9])
def test_confounders_may_come_in_any_unit_and_from_anywhere(scale):
    """And in folds, in one of which a confounder does not vary."""
    rng = np.random.default_rng(7)
    features, labels = population(300, rng=rng)
    confounders = np.column_stack([labels + rng.standard_normal(300), rng.integers(0, 2, 300)])
    weights = np.array([np.ones(300), confounders[:, 1]])
    fits = [erasure.orthogonalised(features, labels, scaled, weights=weights) for scaled in (confounders, scale * (confounders + [1e7, 0]))]
    for b in (0, 1):
        assert (abs(fits[0](features, b) - fits[1](features, b)) <= 1e-5 * abs(features).max(axis=0)).all()
    alone = erasure.orthogonalised(features[weights[1] > 0], labels[weights[1] > 0], confounders[weights[1] > 0, :1])
    assert (abs(fits[0](features, 1) - alone(features)) <= 1e-5 * abs(features).max(axis=0)).all()


@pytest.mark.parametrize("fit", ERASERS.values(), ids=ERASERS)
def test_a_feature_that_does_not_vary_stays_and_changes_no_other(fit):
    features, labels = population(300)
    live = np.delete(features, 3, axis=1)
    if fit is ERASERS["oracle"]:
        erased, alone = fit(features, labels)(features, labels), fit(live, labels)(live, labels)
    else:
        erased, alone = fit(features, labels)(features), fit(live, labels)(live)
    assert abs(erased[:, 3] - features[:, 3]).max() < 1e-6
    if fit is not ERASERS["leace"]:  # whose shrinkage knows how many features there are
        np.testing.assert_allclose(np.delete(erased, 3, axis=1), alone, rtol=1e-4, atol=1e-2)


def test_an_eraser_is_of_its_own_columns():
    features, labels = population(50)
    eraser = erasure.leace(features, labels, np.arange(50))
    with pytest.raises(ValueError, match="eraser of 12 columns"):
        eraser(features[:, :5])
    features[1, 1] = np.inf
    with pytest.raises(UserError, match="row 2, column 2"):
        eraser(features)


@pytest.mark.parametrize("fit", [erasure.oracle, lambda x, y: erasure.quadratic(x, y, np.arange(len(x)))], ids=["oracle", "quadratic"])
def test_what_takes_the_class_refuses_what_an_eraser_does(fit):
    features, labels = population(50)
    eraser = fit(features, labels)
    with pytest.raises(ValueError, match="eraser of 12 columns"):
        eraser(features[:, :5], labels)
    for wrong in (labels[:-1], labels.astype(float)):
        with pytest.raises(ValueError, match="for 50 rows"):
            eraser(features, wrong)
    for unknown in (np.where(np.arange(50) == 3, -1, labels), np.where(np.arange(50) == 3, 3, labels)):
        with pytest.raises(UserError, match="needs the class of every image"):
            eraser(features, unknown)
    features[1, 1] = np.nan
    with pytest.raises(UserError, match="row 2, column 2"):
        eraser(features, labels)


def test_more_rows_than_are_in_float64_at_a_time(monkeypatch):
    features, labels = population(50)
    fits = [erasure.oracle(features, labels), erasure.quadratic(features, labels, np.arange(50))]
    whole = [fit(features, labels) for fit in fits]
    monkeypatch.setattr(erasure, "ROWS", 7)
    for fit, expected in zip(fits, whole):
        np.testing.assert_allclose(fit(features, labels), expected, rtol=1e-6)


def test_float64_is_on_the_host(monkeypatch):
    """As TPUs have none. Of eight devices of these tests, which all are the host, the first is where it belongs."""
    seen = []
    for name in ("_add", "_eigen", "_right_singular"):
        inner = getattr(erasure, name)

        def watched(*inputs, inner=inner, name=name):
            out = inner(*inputs)
            seen.extend((name, leaf.dtype, *leaf.devices()) for leaf in jax.tree.leaves(out))
            return out

        monkeypatch.setattr(erasure, name, watched)
    features, labels = population(50)
    with jax.default_device(jax.devices()[3]):
        erasure.leace(features, labels, np.arange(50))
        erasure.quadratic(features, labels, np.arange(50))
    assert {name for name, *_ in seen} == {"_add", "_eigen", "_right_singular"}
    assert {(dtype, device) for _, dtype, device in seen} == {(np.dtype(np.float64), jax.devices()[0])}
