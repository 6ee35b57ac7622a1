"""Logistic regression against scikit-learn and plain float64 NumPy: one optimum, honest certificates, odd problems."""

import dataclasses

import jax
import numpy as np
import pytest
import scipy.special
import sklearn.linear_model

from cxr_jax import mesh
from cxr_jax.probes import logistic_regression as lr
from cxr_jax.tables import UserError

N, D, K = 240, 12, 3
PENALTIES = np.array([1e-4, 1e-2, 1.0])


def made_up(n=N, d=D, classes=K, seed=0, shift=5.0):
    """Correlated columns of unequal place and spread, and labels that lean on three of them."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) @ (np.eye(d) + 0.3 * rng.normal(size=(d, d)))
    y = (x[:, :3] @ rng.normal(size=(3, classes)) * 0.7 + rng.gumbel(size=(n, classes))).argmax(1)
    return (shift + x * np.linspace(0.1, 10, d)).astype(np.float32), y


@pytest.fixture(scope="module")
def problem():
    """(features, labels, weights): all rows, a bootstrap replicate, a fold."""
    x, y = made_up()
    rng = np.random.default_rng(1)
    weights = np.stack([np.ones(N), rng.multinomial(N, np.full(N, 1 / N)), rng.random(N) < 0.8])
    return x, y, weights.astype(np.float32)


@pytest.fixture(scope="module")
def fitted(problem):
    x, y, weights = problem
    return lr.fit(x, y, PENALTIES, weights, tolerance=1e-8)


def standardised(x, w):
    mean = np.average(x.astype(float), axis=0, weights=w)
    return (x - mean) / np.sqrt(np.average((x - mean) ** 2, axis=0, weights=w)), mean


def objective(x, y, w, coefficients, intercepts, penalty):
    """F and its gradient, by hand, from coefficients for features as given."""
    z, mean = standardised(x, w)
    deviation = np.sqrt(np.average((x - mean) ** 2, axis=0, weights=w))
    W, c = coefficients * deviation, intercepts + coefficients @ mean
    logits = z @ W.T + c
    losses = scipy.special.logsumexp(logits, axis=1) - logits[np.arange(len(y)), y]
    residual = w[:, None] * (scipy.special.softmax(logits, 1) - np.eye(len(c))[y]) / w.sum()
    gradient = residual.T @ z + penalty * W
    return np.average(losses, weights=w) + penalty / 2 * np.sum(W**2), gradient, residual.sum(0)


def of_scikit_learn(x, y, w, C):
    """(model on standardised features, coefficients and intercepts for features as given)."""
    z, mean = standardised(x, w)
    scale = np.sqrt(np.average((x - mean) ** 2, axis=0, weights=w))
    # newton-cholesky reaches the optimum to the last digits, unlike lbfgs.
    model = sklearn.linear_model.LogisticRegression(C=C, solver="newton-cholesky", tol=1e-12, max_iter=200)
    model.fit(z, y, sample_weight=w)
    coefficients = model.coef_ / scale
    return coefficients, model.intercept_ - coefficients @ mean


def centred(a):
    return a - a.mean(0)


def test_every_problem_of_a_batch_has_scikit_learns_optimum(problem, fitted):
    x, y, weights = problem
    assert fitted.converged.all() and fitted.coefficients.shape == (3, 3, K, D)
    for b, w in enumerate(weights):
        for s, penalty in enumerate(PENALTIES):
            coefficients, intercepts = of_scikit_learn(x, y, w, 1 / (penalty * w.sum()))
            best = objective(x, y, w, coefficients, intercepts, penalty)[0]
            ours = objective(x, y, w, fitted.coefficients[b, s], fitted.intercepts[b, s], penalty)[0]
            assert abs(ours - best) <= 1e-7 * best
            spread = x.std(0)
            np.testing.assert_allclose(
                centred(fitted.coefficients[b, s]) * spread, centred(coefficients) * spread, atol=2e-3
            )
            np.testing.assert_allclose(
                centred(fitted.intercepts[b, s]), centred(intercepts), atol=5e-3 * max(1, np.abs(intercepts).max())
            )


def test_the_certificate_is_what_plain_float64_gives(problem, fitted):
    x, y, weights = problem
    for b, w in enumerate(weights):
        for s, penalty in enumerate(PENALTIES):
            value, gW, gc = objective(x, y, w, fitted.coefficients[b, s], fitted.intercepts[b, s], penalty)
            assert fitted.objective[b, s] == pytest.approx(value, rel=1e-12)
            assert fitted.gradient[b, s] == pytest.approx(np.linalg.norm(gW), rel=1e-5, abs=1e-13)
            assert fitted.gap[b, s] == pytest.approx(np.sum(gW**2) / (2 * penalty), rel=1e-5, abs=1e-20)
            assert fitted.intercept_gradient[b, s] == pytest.approx(np.linalg.norm(gc), rel=1e-5, abs=1e-13)


def test_the_certified_gap_is_never_below_the_true_one(problem):
    x, y, weights = problem
    rough = lr.fit(x, y, PENALTIES, weights, max_iterations=2)
    assert not rough.converged[:, 0].any() and (rough.iterations <= 2).all()
    for b, w in enumerate(weights):
        for s, penalty in enumerate(PENALTIES):
            best = objective(x, y, w, *of_scikit_learn(x, y, w, 1 / (penalty * w.sum())), penalty)[0]
            # The intercepts are off by less than 10.
            assert rough.objective[b, s] - best <= rough.gap[b, s] + 10 * rough.intercept_gradient[b, s] + 1e-12


def test_restarts_from_float64_go_where_float32_stalls(problem, monkeypatch):
    x, y, weights = problem
    strict = {"penalties": [1e-6, 1e-5, 1e-4], "weights": weights, "tolerance": 1e-12, "max_iterations": 3000}
    with_restarts = lr.fit(x, y, **strict)
    monkeypatch.setattr(lr, "RESTARTS", 1)
    without = lr.fit(x, y, **strict)
    assert np.median(with_restarts.gap / without.gap) < 0.1


def test_features_far_from_zero_lose_no_digits():
    x, y = made_up(shift=0)
    far = x + np.float32(4096) * np.linspace(0.1, 10, D).astype(np.float32)
    fit = lr.fit(far, y, PENALTIES, np.ones((3, N)), tolerance=1e-8)
    assert fit.converged.all()
    for s, penalty in enumerate(PENALTIES):
        best = objective(far, y, np.ones(N), *of_scikit_learn(far, y, np.ones(N), 1 / (penalty * N)), penalty)[0]
        assert fit.objective[0, s] == pytest.approx(best, rel=1e-7)
    logits = far.astype(float) @ fit.coefficients[0, 1].T + fit.intercepts[0, 1]
    np.testing.assert_allclose(fit.scores(far)[0, 1], scipy.special.softmax(logits, 1), atol=2e-6)


def test_scores_are_the_softmax_of_the_coefficients_in_chunks_too(problem, fitted, monkeypatch):
    x, _, _ = problem
    logits = np.einsum("nd,bsod->bsno", x.astype(float), fitted.coefficients) + fitted.intercepts[:, :, None]
    expected = scipy.special.softmax(logits, -1)
    np.testing.assert_allclose(fitted.scores(x), expected, atol=2e-6)
    monkeypatch.setattr(lr, "SCORED_LOGITS", 100 * fitted.intercepts.size)
    np.testing.assert_allclose(fitted.scores(x), expected, atol=2e-6)
    one = fitted.select(1, 2)
    assert one.penalties == PENALTIES[2:] and one.gap == fitted.gap[1, 2]
    np.testing.assert_allclose(one.scores(x[:1]), expected[1:2, 2:3, :1], atol=2e-6)
    assert fitted.scores(x[:0]).shape == (3, 3, 0, K)


def test_a_warm_start_saves_iterations_and_changes_nothing(problem, fitted):
    x, y, weights = problem
    again = lr.fit(x, y, PENALTIES, weights, start=fitted)
    assert (again.iterations < fitted.iterations).all() and again.iterations.max() <= 1
    from_one = lr.fit(x, y, PENALTIES, weights, start=fitted.select(0, 1), tolerance=1e-8)
    np.testing.assert_allclose(from_one.objective, fitted.objective, rtol=1e-7)


def test_blocks_and_orders_of_strengths_change_nothing(problem, fitted, monkeypatch):
    x, y, weights = problem
    monkeypatch.setattr(lr, "STRENGTHS", 2)
    monkeypatch.setattr(lr, "MAX_LOGITS", 2 * N * K * 2)
    order = np.array([2, 0, 1])
    blocks = lr.fit(x, y, PENALTIES[order], weights, tolerance=1e-8)
    np.testing.assert_allclose(blocks.objective, fitted.objective[:, order], rtol=1e-7)
    np.testing.assert_allclose(blocks.scores(x), fitted.scores(x)[:, order], atol=2e-4)


def test_features_split_over_a_mesh_give_the_same(problem, fitted):
    x, y, weights = problem
    split = mesh.shard_batch(mesh.data_mesh(), x)
    assert len(split.sharding.device_set) == 8
    fit = lr.fit(split, y, PENALTIES, weights, tolerance=1e-8)
    assert fit.converged.all()
    np.testing.assert_allclose(fit.objective, fitted.objective, rtol=1e-7)
    np.testing.assert_allclose(fit.scores(x), fitted.scores(x), atol=2e-4)


def test_equal_shapes_share_the_compiled_program(problem, fitted):
    x, y, weights = problem
    before = lr._solve._cache_size()
    lr.fit(x + 1, y[::-1].copy(), 10 * PENALTIES, weights[::-1], tolerance=1e-3)
    assert lr._solve._cache_size() == before


def test_findings_are_problems_of_their_own_on_the_rows_where_they_are_known(problem):
    x, y, weights = problem
    findings = (y[:, None] == np.arange(K)).astype(np.float32)
    findings[np.random.default_rng(0).random(findings.shape) < 0.3] = np.nan
    fit = lr.fit(x, findings, PENALTIES, weights, tolerance=1e-8)
    assert fit.converged.shape == (3, 3, K) and fit.converged.all()
    scores = fit.scores(x)
    for b, w in enumerate(weights):
        for f in range(K):
            at = np.flatnonzero(~np.isnan(findings[:, f]) & (w > 0))
            for s, penalty in enumerate(PENALTIES):
                coefficients, intercepts = of_scikit_learn(
                    x[at], findings[at, f], w[at].astype(float), 1 / (penalty * w[at].sum(dtype=float))
                )
                np.testing.assert_allclose(
                    fit.coefficients[b, s, f] * x.std(0), coefficients[0] * x.std(0), atol=2e-3
                )
                expected = scipy.special.expit(x.astype(float) @ coefficients[0] + intercepts[0])
                np.testing.assert_allclose(scores[b, s, :, f], expected, atol=1e-3)


def test_a_class_without_rows_has_no_scores_and_the_others_are_fitted_without_it(problem):
    """What is left are two classes, which scikit-learn writes with one vector, at twice the C."""
    x, y, _ = problem
    weights = np.stack([np.ones(N), y != 1, y == 2]).astype(np.float32)
    fit = lr.fit(x, y, PENALTIES, weights, classes=K, tolerance=1e-8)
    np.testing.assert_array_equal(fit.converged, np.array([[True], [True], [False]]) & np.ones(3, bool))
    scores = fit.scores(x)
    assert np.isnan(fit.coefficients[2]).all() and np.isnan(scores[2]).all() and np.isnan(fit.gap[2]).all()
    assert np.isnan(scores[1, :, :, 1]).all() and np.isfinite(scores[0]).all()
    kept = y != 1
    for s, penalty in enumerate(PENALTIES):
        coefficients, intercepts = of_scikit_learn(x[kept], y[kept] == 2, np.ones(kept.sum()), 2 / (penalty * kept.sum()))
        expected = scipy.special.expit(x.astype(float) @ coefficients[0] + intercepts[0])
        np.testing.assert_allclose(scores[1, s][:, [0, 2]], np.stack([1 - expected, expected], 1), atol=1e-3)


def test_findings_of_one_class_are_nan_and_others_are_not_disturbed(problem):
    x, y, weights = problem
    findings = (y[:, None] == np.arange(K)).astype(np.float32)
    whole = lr.fit(x, findings, PENALTIES, weights)
    findings[:, 0], findings[:, 1] = 1, np.nan
    fit = lr.fit(x, findings, PENALTIES, weights)
    assert np.isnan(fit.coefficients[:, :, :2]).all() and not fit.converged[..., :2].any()
    assert np.isnan(fit.scores(x)[..., :2]).all()
    np.testing.assert_allclose(fit.scores(x)[..., 2], whole.scores(x)[..., 2], atol=2e-3)


def test_a_constant_column_has_no_coefficient(problem, fitted):
    x, y, weights = problem
    constant = x.copy()
    constant[:, 4] = 7
    constant[weights[2] > 0, 5] = 3  # constant in the third problem alone
    fit = lr.fit(constant, y, PENALTIES, weights)
    assert (fit.coefficients[:, :, :, 4] == 0).all() and (fit.coefficients[2, :, :, 5] == 0).all()
    assert (fit.coefficients[:2, :, :, 5] != 0).all() and fit.converged.all()


def test_separable_classes_have_a_finite_optimum(problem):
    x, _, weights = problem
    y = (standardised(x, np.ones(N))[0] @ np.random.default_rng(3).normal(size=(D, K))).argmax(1)
    fit = lr.fit(x, y, PENALTIES, weights)
    assert fit.converged.all() and np.isfinite(fit.coefficients).all()
    assert (fit.scores(x)[0, 0].argmax(-1) == y).mean() > 0.95
    best = objective(x, y, np.ones(N), *of_scikit_learn(x, y, np.ones(N), 1e4 / N), 1e-4)[0]
    assert fit.objective[0, 0] == pytest.approx(best, rel=1e-6)


def test_more_columns_than_rows():
    x, y = made_up(n=30, d=64)
    fit = lr.fit(x, y, [1e-4, 1e-3, 1.0])
    # With hardly a penalty it depends on how a processor rounds float32 whether the intercepts, too, get there.
    assert fit.converged[0, 1:].all() and (fit.gap <= 1e-6 * fit.objective).all() and (fit.scores(x)[0, 0].argmax(-1) == y).all()
    best = objective(x, y, np.ones(30), *of_scikit_learn(x, y, np.ones(30), 1 / (1e-3 * 30)), 1e-3)[0]
    assert fit.objective[0, 1] == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("change", ["features", "columns", "labels", "rows", "weights", "penalty", "findings", "start"])
def test_mistakes_are_told(problem, fitted, change):
    x, y, weights = (a.copy() for a in problem)
    arguments = {"features": x, "labels": y, "penalties": PENALTIES, "weights": weights}
    if change == "features":
        x[100, 3], x[7, 2], weights[:, 7] = np.inf, np.nan, 0
        with pytest.raises(UserError, match=r"^features: 2 NaN or infinite, the first in row 8, column 3;"):
            lr.fit(**arguments)
        with pytest.raises(UserError, match="row 8, column 3;"):
            fitted.scores(x)
        return
    if change == "columns":
        with pytest.raises(ValueError, match="features"):
            fitted.scores(x[:, 1:])
        return
    wrong = {
        "labels": {"classes": 2},
        "rows": {"features": x[:0], "labels": y[:0], "weights": weights[:, :0]},
        "weights": {"weights": -weights},
        "penalty": {"penalties": [0.0]},
        "findings": {"labels": np.full((N, 2), 0.5)},
        "start": {"start": dataclasses.replace(fitted, coefficients=fitted.coefficients[..., 1:])},
    }[change]
    with pytest.raises(ValueError):
        lr.fit(**{**arguments, **wrong})


def test_nothing_is_left_in_float64(problem, fitted):
    assert not jax.config.jax_enable_x64 and fitted.scores(problem[0]).dtype == np.float32
