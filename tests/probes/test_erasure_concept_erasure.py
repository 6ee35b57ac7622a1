"""Our erasers against those of the concept-erasure package, whose authors proved the theorem."""

import numpy as np
import pytest

from cxr_jax.probes import erasure

pytestmark = pytest.mark.peers
torch = pytest.importorskip("torch")
theirs = pytest.importorskip("concept_erasure")

RNG = np.random.default_rng(0)
N, D, CLASSES = 400, 30, 4
LABELS = RNG.permutation(np.repeat(np.arange(CLASSES), [40, 80, 120, 160]))
LATENT = RNG.standard_normal((N, D)) * (1 + 0.3 * LABELS[:, None]) + RNG.standard_normal((CLASSES, D))[LABELS]
FEATURES = (LATENT @ RNG.standard_normal((D, D)) + 3).astype(np.float32)
X, Z = torch.tensor(FEATURES, dtype=torch.float64), torch.tensor(np.eye(CLASSES)[LABELS])


def assert_close(ours, their):
    np.testing.assert_allclose(ours, their.numpy(), atol=1e-5 * abs(FEATURES).max())
    assert abs(ours - FEATURES).max() > 0.1


@pytest.mark.parametrize("shrink", [False, True])
def test_leace(shrink):
    """Theirs may also keep the trace of the covariance from growing, which is another eraser; ours does not."""
    fitter = theirs.LeaceFitter(D, CLASSES, dtype=torch.float64, shrinkage=shrink, constrain_cov_trace=False, svd_tol=1e-6)
    their = fitter.update(X, Z).eraser(X)
    assert_close(erasure.leace(FEATURES, LABELS, np.arange(N), shrink=shrink)(FEATURES), their)


def test_oracle():
    their = theirs.OracleFitter(D, CLASSES, dtype=torch.float64, svd_tol=1e-6).update(X, Z).eraser(X, Z)
    assert_close(erasure.oracle(FEATURES, LABELS)(FEATURES, LABELS), their)


def test_shrinkage():
    covariance = np.cov(FEATURES.T.astype(np.float64), bias=True)
    from concept_erasure.shrinkage import optimal_linear_shrinkage

    for patients in (40, 400):
        their = optimal_linear_shrinkage(torch.tensor(covariance), patients)
        np.testing.assert_allclose(erasure.shrunk(covariance[None], np.array([patients]))[0], their.numpy(), rtol=1e-9, atol=1e-9 * covariance.max())


def test_quadratic():
    """Of classes of one size: theirs moves to the mean of class means, ours to that of all; and divides by one image less."""
    labels = RNG.permutation(np.repeat(np.arange(CLASSES), 100))
    codes = torch.tensor(labels)
    their = theirs.QuadraticFitter.fit(X, codes, shrinkage=False).eraser(X, codes)
    assert_close(erasure.quadratic(FEATURES, labels, np.arange(N), shrink=False)(FEATURES, labels), their)
