"""Figures to reckon with: their arithmetic against replicates by hand, their errors against the jackknife and SciPy."""

import dataclasses

import numpy as np
import pytest
import scipy.stats

from cxr_jax.audit import estimates, metrics
from cxr_jax.audit.estimates import Estimate, bca_interval, difference, interval, logit, mean, ratio, spread, undefined
from cxr_jax.audit.intervals import Bootstrap, RankedCell


def estimate(values, patients=None, scale="", replicates=400, seed=0):
    """The mean of one value a patient, with a bootstrap of patients."""
    values = np.asarray(values, np.float64)
    n = len(values)
    drawn = np.random.default_rng(seed).integers(0, n, (replicates, n))
    moves = (values - values.mean()) / n * np.sqrt(n / (n - 1))
    return Estimate(values.mean(), values[drawn].mean(axis=1), lambda: moves, patients or n, n, scale)


A = estimate(np.random.default_rng(1).gamma(2.0, 1.0, 50))
B = estimate(np.random.default_rng(2).gamma(3.0, 1.0, 50))


def test_arithmetic_is_replicate_by_replicate():
    apart, share, average = difference(A, B), ratio(A, B), mean([A, B])
    np.testing.assert_allclose(apart.replicates, A.replicates - B.replicates)
    np.testing.assert_allclose(share.replicates, A.replicates / B.replicates)
    np.testing.assert_allclose(average.replicates, (A.replicates + B.replicates) / 2)
    assert (apart.value, share.value) == (A.value - B.value, A.value / B.value)
    assert apart.images == 100 and apart.patients == 50


@pytest.mark.parametrize("function", [lambda a, b: difference(a, b), lambda a, b: ratio(a, b), lambda a, b: mean([a, b]), lambda a, b: logit(ratio(a, b))])
def test_errors_of_functions_are_about_those_of_their_replicates(function):
    """The delta method against a large bootstrap of the same patients."""
    rng = np.random.default_rng(3)
    x, y = rng.gamma(4.0, 1.0, 400), 5 + rng.gamma(4.0, 1.0, 400)
    x[:200] += y[:200] / 3  # paired
    a, b = (estimate(v, replicates=4000) for v in (x, y))
    made = function(a, b)
    drawn = made.replicates
    if drawn is None:
        drawn = scipy.special.logit(a.replicates / b.replicates)
    assert made.standard_error == pytest.approx(np.std(drawn), rel=0.06)


def test_the_undefined_stays_undefined_and_says_why():
    none = undefined("no image")
    for made in (difference(A, none), ratio(none, A), mean([A, none]), difference(none, none)):
        assert not made.defined and made.reason == "no image"
    zero = dataclasses.replace(A, value=0.0)
    assert ratio(A, zero).reason == "a ratio to 0" and logit(dataclasses.replace(A, value=1.0)).reason == "0 or 1 has no logit"
    assert np.isnan(estimates.tested(A, none).p) and estimates.tested(A, none).reason == "no image"
    assert difference(dataclasses.replace(A, decimals=3), dataclasses.replace(B, decimals=2)).decimals == 2


def test_a_ratio_whose_replicates_divide_by_zero_counts_them_undefined():
    rare = estimate([1.0] + [0.0] * 19)
    none = (rare.replicates == 0).sum()
    assert none > 20
    found = interval(ratio(estimate(np.arange(20.0)), rare), 0.95, "bca")
    assert np.isnan(found.low) and found.reason == f"interval withheld: undefined in {none} of 400 replicates"


def test_a_spread_has_no_interval():
    several = {name: estimate(np.random.default_rng(i).normal(i / 10, 1, 60), seed=i) for i, name in enumerate("abc")}
    made, high, low = spread(several)
    assert made.value == several[high].value - several[low].value == max(o.value for o in several.values()) - min(o.value for o in several.values())
    found = interval(made, 0.95, "bca")
    assert np.isnan(found.low) and "by chance alone" in found.reason


def shares(k1, n1, k2, n2):
    return [dataclasses.replace(estimate((np.arange(n) < k).astype(float), scale="share"), influence=None) for k, n in ((k1, n1), (k2, n2))]


def test_few_events_have_newcombe_s_interval():
    """His paper's table II, method 10: 9/10 - 3/10, 0/10 - 0/20 and 10/10 - 0/20. Of one image a patient, at n patients."""
    for counts, expected in (((9, 10, 3, 10), (0.1705, 0.8090)), ((0, 10, 0, 20), (-0.1611, 0.2775)), ((10, 10, 0, 20), (0.6791, 1.0))):
        a, b = shares(*counts)
        a, b = (dataclasses.replace(one, influence=lambda: np.zeros(1)) for one in (a, b))
        found = interval(difference(a, b), 0.95, "bca")
        np.testing.assert_allclose(found[:2], expected, atol=1e-4)
        assert found.method.startswith("Newcombe's")
    many = [estimate((np.arange(100) < k).astype(float), scale="share", seed=k) for k in (30, 40)]
    assert "BCa" in interval(difference(*many), 0.95, "bca").method
    assert interval(ratio(*shares(0, 10, 5, 20)), 0.95, "bca").reason == estimates.CERTAIN


def test_far_out_an_end_stays_where_it_was_going():
    drawn = np.random.default_rng(0).normal(size=2000)
    low, high, reason = bca_interval(drawn, 0.0, 0.3, 3, 0.95)
    assert reason == "" and low < 0 < high and high == drawn.max()


def test_bca_is_scipy_s_but_for_the_expansion():
    """The same replicates, SciPy's acceleration by jackknife; with many patients the expansion is next to nothing."""
    rng = np.random.default_rng(5)
    values = rng.gamma(1.0, 1.0, 3000)
    found = scipy.stats.bootstrap((values,), np.mean, n_resamples=3000, method="BCa", rng=np.random.default_rng(0))
    drawn = found.bootstrap_distribution
    moves = values - values.mean()
    acceleration = (moves**3).sum() / (6 * (moves @ moves) ** 1.5)
    low, high, reason = bca_interval(drawn, values.mean(), acceleration, 10**9, 0.95)
    assert reason == ""
    np.testing.assert_allclose((low, high), found.confidence_interval, atol=2e-4)
    plain = np.quantile(drawn, [0.025, 0.975])
    assert low > plain[0] and high > plain[1], "a right-skewed mean's interval moves right"


def test_expansion_is_student_s():
    """Of a mean of few normal values, whose bootstrap is normal with the n-divisor's error, the ends are Student's."""
    values = scipy.stats.norm.ppf((np.arange(12) + 0.5) / 12)
    error = values.std() / np.sqrt(12)
    drawn = scipy.stats.norm.ppf((np.arange(200_000) + 0.5) / 200_000) * error
    low, high, _ = bca_interval(drawn, 0.0, 0.0, 12, 0.9)
    np.testing.assert_allclose((low, high), scipy.stats.ttest_1samp(values, 0).confidence_interval(0.9), rtol=1e-3)


def test_replicates_all_on_one_side_of_the_value_have_an_interval_still():
    low, high, reason = bca_interval(np.linspace(1, 2, 1000), 0.5, 0.0, 40, 0.95)
    assert 1 < low < 1.03 and 1.97 < high < 2 and reason == ""


def test_single_shares_have_wilson_s_interval_at_the_effective_size():
    positive = (np.arange(40) < 9).astype(float)
    alone = estimate(positive, scale="share")
    expected = scipy.stats.binomtest(9, 40).proportion_ci(0.95, method="wilson")
    found = interval(alone, 0.95, "bca")
    # Of one image a patient the effective number is n - 1 over n of the patients.
    np.testing.assert_allclose((found.low, found.high), expected, atol=5e-3)
    assert found.method == "Wilson, at the effective number of patients"
    # Each patient twice, the same both times, tells no more; were they other people, it would.
    doubled = dataclasses.replace(alone, images=80)
    assert interval(doubled, 0.95, "bca")[:2] == found[:2]
    none = estimate(np.zeros(20), scale="share")
    np.testing.assert_allclose(interval(none, 0.95, "bca")[:2], scipy.stats.binomtest(0, 20).proportion_ci(0.95, method="wilson"), atol=1e-12)


def test_kinds_of_interval():
    percentile = interval(A, 0.9, "percentile")
    np.testing.assert_allclose(percentile[:2], np.quantile(A.replicates, [0.05, 0.95]))
    analytic = interval(A, 0.9, "analytic")
    half = scipy.stats.t.ppf(0.95, 49) * A.standard_error
    np.testing.assert_allclose(analytic[:2], (A.value - half, A.value + half))
    assert "percentile" in percentile.method and "Student" in analytic.method
    alone = dataclasses.replace(A, replicates=None)
    assert interval(alone, 0.9, "bca") == analytic
    assert "fewer than 2 patients" in interval(dataclasses.replace(alone, patients=1), 0.9, "bca").reason
    rounded = interval(dataclasses.replace(A, decimals=2), 0.9, "bca")
    assert rounded.low == round(rounded.low, 2) and rounded.high == round(rounded.high, 2)


def test_two_means_are_tested_as_by_welch_but_for_the_degrees():
    found = estimates.tested(A, B)
    x, y = (np.asarray(e.replicates) for e in (A, B))
    z = (A.value - B.value) / np.hypot(A.standard_error, B.standard_error)
    # A and B are of other patients here, whose influences the estimates place on the same: make them independent.
    apart = np.concatenate([A.influence(), np.zeros(50)]), np.concatenate([np.zeros(50), B.influence()])
    a, b = (dataclasses.replace(e, influence=lambda v=v: v) for e, v in zip((A, B), apart))
    assert estimates.tested(a, b).p == pytest.approx(2 * scipy.stats.t.sf(abs(z), 49), rel=1e-12)
    drawn = x - y
    assert found.p_bootstrap == (1 + (np.abs(drawn - (A.value - B.value)) >= abs(A.value - B.value)).sum()) / 401


def test_the_bootstrap_s_p_has_a_floor():
    far = dataclasses.replace(A, value=A.value + 100, replicates=A.replicates + 100)
    assert estimates.tested(far, B).p_bootstrap == 1 / 401 and estimates.tested(far, B).p < 1e-8


def test_what_cannot_be_tested_says_why():
    one = estimate(np.ones(30), scale="share")
    some = estimate((np.arange(30) < 9).astype(float), scale="share")
    assert "share of 0 or 1" in estimates.tested(one, some).reason and np.isnan(estimates.tested(one, some).p)
    perfect = dataclasses.replace(A, value=1.0, scale="auc")
    assert estimates.tested(perfect, dataclasses.replace(A, value=0.7, scale="auc")).reason == "0 or 1 has no logit"
    assert estimates.tested(A, A).reason == "the difference has no variance"


# --- what each patient does, against leaving each out ----------------------------------------------------------------


def test_calibration_slope_and_what_moves_it():
    rng = np.random.default_rng(0)
    score = rng.beta(2, 3, 600)
    positive = rng.random(600) < scipy.special.expit(0.3 + 0.7 * scipy.special.logit(score))
    fit = metrics.recalibration(positive, score)
    from sklearn.linear_model import LogisticRegression

    x = scipy.special.logit(score)[:, None]
    reference = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(x, positive)
    assert fit.slope == pytest.approx(reference.coef_[0, 0], rel=1e-5) and fit.intercept == pytest.approx(reference.intercept_[0], abs=1e-5)
    assert abs(fit.moves.sum()) < 1e-9
    without = np.array([metrics.recalibration(np.delete(positive, i), np.delete(score, i)).slope for i in range(0, 600, 20)])
    np.testing.assert_allclose(fit.moves[::20], fit.slope - without, rtol=0.15, atol=2e-4)


@pytest.mark.parametrize(
    ("positive", "score"),
    [([0, 0, 0], [0.1, 0.2, 0.3]), ([0, 1, 1], [0.4, 0.4, 0.4]), ([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4]), ([1, 1, 0], [0.1, 0.2, 0.3]), ([], [])],
)
def test_no_slope_where_there_is_none(positive, score):
    assert np.isnan(metrics.recalibration(np.array(positive, bool), np.array(score, float)).slope)


def test_certain_scores_do_not_break_the_slope():
    positive = np.array([0, 0, 1, 1, 0, 1], bool)
    assert np.isfinite(metrics.recalibration(positive, np.array([0.0, 0.2, 1.0, 0.7, 0.8, 0.1])).slope)


def test_calibration_error_is_the_plain_sum_and_its_bias_is_taken_off():
    rng = np.random.default_rng(0)
    score = rng.random(20_000)
    bins = metrics.calibration_bins(score, 10)
    plain, corrected = [], []
    for _ in range(60):  # small samples of a calibrated model
        rows = rng.integers(0, len(score), 300)
        positive = rng.random(300) < score[rows]
        off = score[rows] - positive
        apart = np.array([np.mean(off * (bins[rows] == b)) for b in range(10)])
        by_bin = [(abs(off[bins[rows] == b].mean()), (bins[rows] == b).mean()) for b in range(10)]
        plain.append(metrics.calibration_error(apart))
        assert plain[-1] == pytest.approx(sum(gap * share for gap, share in by_bin))
        error = np.array([np.std(off * (bins[rows] == b)) for b in range(10)]) / np.sqrt(300)
        corrected.append(metrics.calibration_error(apart, error))
    # Of |N(0, s)| sqrt(2/pi) s is expected, and of what stands in its place 2 sqrt(2/pi) - 2/sqrt(pi) of s.
    left = (2 * np.sqrt(2 / np.pi) - 2 / np.sqrt(np.pi)) / np.sqrt(2 / np.pi)
    assert np.mean(plain) > 0.05 and np.mean(corrected) / np.mean(plain) == pytest.approx(left, abs=0.06)
    far = metrics.calibration_error(np.array([[0.3, -0.3]]).T, np.array([0.01, 0.01]))
    assert far == pytest.approx(0.6, abs=1e-9), "where the distance is far beyond its error there is nothing to take off"


@pytest.mark.parametrize("kind", estimates.KINDS)
def test_what_cannot_vary_lends_a_difference_no_certainty(kind):
    """Of two AUCs one is 1: its error comes out as 0, and the other's alone would be too little."""
    rng = np.random.default_rng(0)
    positive = rng.random(80) < 0.4
    estimator = estimates.Estimator(Bootstrap(np.arange(80).astype(str), 100, 0))
    (sure, _), (other, _) = estimator.rank([RankedCell(np.arange(80), positive, score) for score in (positive.astype(float), positive + 2 * rng.random(80))])
    found = interval(estimates.difference(sure, other), 0.95, kind)
    assert np.isnan(found.low) and found.reason == estimates.CERTAIN
