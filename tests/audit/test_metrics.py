"""Point metrics against scikit-learn and SciPy, with weights and with ties."""

import numpy as np
import pytest
import scipy.stats
import sklearn.calibration
import sklearn.metrics

from cxr_jax.audit import metrics


def sample(seed, n=200, decimals=None):
    """Scores with many ties where `decimals` is small; weights are whole, and a third of them 0."""
    rng = np.random.default_rng(seed)
    positive = rng.random(n) < 0.3
    score = np.clip(rng.normal(0.4 + 0.2 * positive, 0.2), 0, 1)
    if decimals is not None:
        score = score.round(decimals)
    return positive, score, rng.poisson(1.1, n).astype(float)


CASES = [(seed, decimals, weighted) for seed in range(3) for decimals in (None, 1, 0) for weighted in (False, True)]


@pytest.mark.parametrize("seed, decimals, weighted", CASES)
def test_agrees_with_scikit_learn(seed, decimals, weighted):
    positive, score, weight = sample(seed, decimals=decimals)
    weight = weight if weighted else None
    kw = {"sample_weight": weight}
    exact = {"rel": 0, "abs": 1e-12}
    assert metrics.auc(positive, score, weight) == pytest.approx(
        sklearn.metrics.roc_auc_score(positive, score, **kw), **exact
    )
    assert metrics.average_precision(positive, score, weight) == pytest.approx(
        sklearn.metrics.average_precision_score(positive, score, **kw), **exact
    )
    assert metrics.mean((score - positive) ** 2, weight) == pytest.approx(
        sklearn.metrics.brier_score_loss(positive, score, **kw), **exact
    )


def test_auc_is_the_mann_whitney_statistic():
    positive, score, _ = sample(7, decimals=1)
    u = scipy.stats.mannwhitneyu(score[positive], score[~positive]).statistic
    assert metrics.auc(positive, score) == pytest.approx(u / (positive.sum() * (~positive).sum()), abs=1e-14)


@pytest.mark.parametrize("metric", [metrics.auc, metrics.average_precision])
@pytest.mark.parametrize("decimals", [None, 1])
def test_a_weight_is_the_image_written_that_often(metric, decimals):
    positive, score, weight = sample(1, decimals=decimals)
    often = np.repeat(np.arange(len(score)), weight.astype(int))
    assert metric(positive, score, weight) == pytest.approx(metric(positive[often], score[often]), abs=1e-12)


def test_undefined_is_nan():
    nothing = np.zeros(0)
    score = np.array([0.2, 0.7, 0.7])
    yes, no = np.ones(3, bool), np.zeros(3, bool)
    for metric in (metrics.auc, metrics.average_precision):
        assert np.isnan(metric(nothing, nothing))
        assert np.isnan(metric(yes, score, np.zeros(3)))
    assert np.isnan(metrics.auc(yes, score)) and np.isnan(metrics.auc(no, score))
    assert np.isnan(metrics.average_precision(no, score))
    assert metrics.average_precision(yes, score) == 1
    # Positives that carry no weight are no positives.
    assert np.isnan(metrics.auc(np.array([True, False, False]), score, np.array([0.0, 1, 1])))
    assert np.isnan(metrics.tpr_at_fpr(yes, score, np.array([0.0, 0.5]))).all()
    assert np.isnan(metrics.mean(nothing)) and np.isnan(metrics.mean(score, np.zeros(3)))


def test_bad_arguments_are_refused():
    positive, score, weight = sample(0)
    with pytest.raises(ValueError, match="NaN score"):
        metrics.auc(positive, np.where(positive, np.nan, score))
    with pytest.raises(ValueError, match="one value an image"):
        metrics.auc(positive[1:], score)
    with pytest.raises(ValueError, match="weights for"):
        metrics.auc(positive, score, weight[1:])
    with pytest.raises(ValueError, match="negative or NaN"):
        metrics.mean(score, -weight)


@pytest.mark.parametrize("decimals", [None, 1])
@pytest.mark.parametrize("weighted", [False, True])
def test_tpr_is_scikit_learns_curve_read_at_each_rate(decimals, weighted):
    positive, score, weight = sample(3, decimals=decimals)
    weight = weight if weighted else np.ones_like(weight)
    fpr, tpr, _ = sklearn.metrics.roc_curve(positive, score, sample_weight=weight, drop_intermediate=False)
    # Rates that no vertex has: there the polygon is unambiguous.
    grid = np.linspace(0.0123, 0.987, 60)
    np.testing.assert_allclose(metrics.tpr_at_fpr(positive, score, grid, weight), np.interp(grid, fpr, tpr), atol=1e-12)


def test_tpr_takes_the_upper_end_of_a_vertical_piece():
    # Scores from the top: + - + + - ; at a false-positive rate of 1/2 the curve rises from 1/3 to 1.
    positive = np.array([True, False, True, True, False])
    score = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    np.testing.assert_allclose(metrics.tpr_at_fpr(positive, score, np.array([0, 0.25, 0.5, 1])), [1 / 3, 1 / 3, 1, 1])
    # 0.58 x 50 is 28.999999999999996 in floating point, and still means 29 negatives.
    positive = np.repeat([False, True, False], [29, 10, 21])
    score = np.linspace(1, 0, 60)
    assert metrics.tpr_at_fpr(positive, score, np.array([0.58]))[0] == 1


@pytest.mark.parametrize("decimals", [None, 1])
def test_area_under_the_curve_is_the_auc(decimals):
    positive, score, weight = sample(5, decimals=decimals)
    grid = np.linspace(0, 1, 20001)
    area = np.trapezoid(metrics.tpr_at_fpr(positive, score, grid, weight), grid)
    assert area == pytest.approx(metrics.auc(positive, score, weight), abs=1e-3)


@pytest.mark.parametrize("decimals", [None, 1])
def test_calibration_agrees_with_scikit_learn(decimals):
    positive, score, _ = sample(4, decimals=decimals)
    frequency, expected = sklearn.calibration.calibration_curve(positive, score, n_bins=7, strategy="quantile")
    found = metrics.calibration(positive, score, metrics.calibration_bins(score, 7))
    np.testing.assert_allclose(found, (expected, frequency), atol=1e-12)


def test_calibration_bins_are_equal_and_keep_ties_together():
    score = np.random.default_rng(0).permutation(1000) / 1000
    assert set(np.bincount(metrics.calibration_bins(score, 10))) == {100}
    bins = metrics.calibration_bins(score.round(1), 10)
    assert all(len(set(bins[score.round(1) == value])) == 1 for value in set(score.round(1)))
    assert len(metrics.calibration_bins(np.zeros(0), 10)) == 0


def test_confusion_agrees_with_scikit_learn():
    rng = np.random.default_rng(0)
    true, called = rng.integers(0, 4, (2, 300))
    true[true == 2] = 1  # a class that nobody has keeps its row
    weight = rng.poisson(1, 300)
    expected = sklearn.metrics.confusion_matrix(true, called, labels=range(4), sample_weight=weight)
    np.testing.assert_array_equal(metrics.confusion(true, called, 4, weight), expected)


@pytest.mark.parametrize("decimals", [None, 1, 0])
def test_rank_marks_ties(decimals):
    positive, score, _ = sample(2, n=50, decimals=decimals)
    ranking = metrics.rank(positive, score)
    ordered = score[ranking.order]
    assert (np.diff(ordered) <= 0).all()
    for i, value in enumerate(ordered):
        same = np.flatnonzero(ordered == value)
        assert ranking.last[i] == same[-1] and ranking.tied[i] == (i != same[0])
        kinds = positive[ranking.order][same]
        assert (np.diff(kinds.astype(int)) <= 0).all(), "positives come first among equal scores"
