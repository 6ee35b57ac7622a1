"""The patient bootstrap: its draws, its replicates against a plain loop, and whether its intervals keep their word."""

import jax
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from cxr_jax.audit import intervals, metrics
from cxr_jax.audit.intervals import Bootstrap, MeanCell, RankedCell, percentile_interval


def clustered(seed, patients=60, spread=1.0, shift=1.0, decimals=None):
    """1 to 4 images a patient, who share a truth and, with `spread`, part of their score."""
    rng = np.random.default_rng(seed)
    images = rng.integers(1, 5, patients)
    who = np.repeat(np.arange(patients), images)
    truth = rng.random(patients) < 0.4
    score = (rng.normal(0, spread, patients) + shift * truth)[who] + rng.normal(0, 0.5, len(who))
    score = scipy.stats.norm.cdf(score)
    return np.array([f"p{i:04}" for i in who]), truth[who], score if decimals is None else score.round(decimals)


def cell(positive, score, keep=None):
    rows = np.arange(len(score)) if keep is None else np.flatnonzero(keep)
    return RankedCell(rows, positive[rows], score[rows])


def test_draws_depend_on_the_seed_and_the_patients_alone():
    patient, _, _ = clustered(0)
    first, again, other = Bootstrap(patient, 50, 3), Bootstrap(patient[::-1], 50, 3), Bootstrap(patient, 50, 4)
    np.testing.assert_array_equal(first.counts, again.counts)
    np.testing.assert_array_equal(first.patient, again.patient[::-1])
    assert (first.counts != other.counts).any()
    # More replicates go on where fewer stopped, so a quick look and the full run agree.
    np.testing.assert_array_equal(first.counts, Bootstrap(patient, 80, 3).counts[:, :50])


def test_draws_are_multinomial_over_patients():
    counts = intervals.draw(40, 5000, 0).astype(int)
    assert counts.shape == (40, 5000) and (counts.sum(0) == 40).all()
    # Each patient's number is binomial(40, 1/40); pooled, its frequencies are known up to chance.
    seen = np.bincount(counts.ravel(), minlength=6)[:6] / counts.size
    np.testing.assert_allclose(seen, scipy.stats.binom.pmf(np.arange(6), 40, 1 / 40), atol=0.005)
    np.testing.assert_allclose(counts.mean(1), 1, atol=0.07)


@pytest.mark.parametrize("decimals", [None, 1, 0])
@pytest.mark.parametrize("replicates", [1, 37, intervals.LANES + 20])
def test_replicates_are_what_a_loop_over_scikit_learn_gives(decimals, replicates):
    patient, positive, score = clustered(1, decimals=decimals)
    bootstrap = Bootstrap(patient, replicates, 0)
    third = np.random.default_rng(0).random(len(score)) < 0.3
    keeps = [np.ones(len(score), bool), third, ~third]
    auc, precision = bootstrap.ranking([cell(positive, score, keep) for keep in keeps])
    accuracy = bootstrap.means([MeanCell(np.flatnonzero(k), (score[k] > 0.5) == positive[k]) for k in keeps])
    brier = bootstrap.means([MeanCell(np.flatnonzero(k), (score[k] - positive[k]) ** 2) for k in keeps])
    for b in {*range(min(replicates, 12)), replicates - 1}:
        weight = bootstrap.counts[bootstrap.patient, b].astype(float)
        for g, keep in enumerate(keeps):
            kw = {"sample_weight": weight[keep]}
            truth, s = positive[keep], score[keep]
            tolerance = {"rel": 0, "abs": 1e-10}
            assert auc[g, b] == pytest.approx(sklearn.metrics.roc_auc_score(truth, s, **kw), **tolerance)
            ap = sklearn.metrics.average_precision_score(truth, s, **kw)
            assert precision[g, b] == pytest.approx(ap, **tolerance)
            assert brier[g, b] == pytest.approx(sklearn.metrics.brier_score_loss(truth, s, **kw), **tolerance)
            assert accuracy[g, b] == pytest.approx(sklearn.metrics.accuracy_score(truth, s > 0.5, **kw), **tolerance)


def test_replicates_agree_with_drawing_images_by_hand():
    """Independently of every weighted formula: write each drawn patient's images out and count the pairs won."""
    patient, positive, score = clustered(2, patients=20, decimals=1)
    bootstrap = Bootstrap(patient, 10, 0)
    auc, _ = bootstrap.ranking([cell(positive, score)])
    for b in range(10):
        rows = np.repeat(np.arange(len(score)), bootstrap.counts[bootstrap.patient, b])
        up, down = score[rows][positive[rows]], score[rows][~positive[rows]]
        won = np.mean((up[:, None] > down) + 0.5 * (up[:, None] == down))
        assert auc[0, b] == pytest.approx(won, abs=1e-12)


@pytest.mark.parametrize("decimals", [None, 1])
def test_roc_replicates_are_the_point_curve_with_weights(decimals):
    patient, positive, score = clustered(3, decimals=decimals)
    bootstrap = Bootstrap(patient, intervals.ROC_LANES + 7, 0)
    grid = np.arange(51) / 50
    curves = bootstrap.roc(cell(positive, score), grid)
    assert curves.shape == (51, intervals.ROC_LANES + 7)
    for b in range(bootstrap.replicates):
        weight = bootstrap.counts[bootstrap.patient, b]
        np.testing.assert_allclose(curves[:, b], metrics.tpr_at_fpr(positive, score, grid, weight), atol=1e-10, rtol=0)


def test_undefined_replicates_are_nan_and_counted():
    patient = np.array(["a", "b", "c", "d", "e"])
    positive = np.array([True, False, False, False, False])
    score = np.array([0.9, 0.1, 0.2, 0.3, 0.4])
    bootstrap = Bootstrap(patient, 400, 0)
    auc, precision = bootstrap.ranking([cell(positive, score)])
    undrawn = bootstrap.counts[0] == 0
    alone = bootstrap.counts[0] == 5
    np.testing.assert_array_equal(np.isnan(auc[0]), undrawn | alone)
    np.testing.assert_array_equal(np.isnan(precision[0]), undrawn)
    assert np.isnan(bootstrap.roc(cell(positive, score), np.array([0.5]))[0]).sum() == (undrawn | alone).sum()
    interval = percentile_interval(auc[0], 0.95)
    assert np.isnan(interval.low) and np.isnan(interval.high)
    assert interval.reason == f"interval withheld: undefined in {(undrawn | alone).sum()} of 400 replicates"


def test_five_percent_undefined_is_the_limit():
    values = np.linspace(0, 1, 100)
    values[:5] = np.nan
    assert percentile_interval(values, 0.9).reason == "" and percentile_interval(values, 0.9).low > 0
    values[5] = np.nan
    assert np.isnan(percentile_interval(values, 0.9).low)
    assert np.isnan(percentile_interval(np.full(10, np.nan), 0.9).low)


def test_percentiles():
    interval = percentile_interval(np.arange(101.0)[::-1], 0.9)
    np.testing.assert_allclose((interval.low, interval.high), (5, 95))


@pytest.mark.parametrize("positive, n", [(0, 20), (20, 20), (1, 11), (300, 1000)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_wilsons_interval_is_scipys(positive, n, level):
    expected = scipy.stats.binomtest(positive, n).proportion_ci(level, method="wilson")
    found = intervals.wilson(positive / n, n, level)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert (found[0] == 0) == (positive == 0) and (found[1] == 1) == (positive == n)


def test_no_replicates_are_refused():
    with pytest.raises(ValueError, match="0 replicates"):
        Bootstrap(np.array(["a"]), 0, 0)


def test_empty_cells_and_empty_requests():
    patient, positive, score = clustered(0)
    bootstrap = Bootstrap(patient, 20, 0)
    none = RankedCell(np.zeros(0, int), np.zeros(0, bool), np.zeros(0))
    auc, precision = bootstrap.ranking([none, cell(positive, score), none])
    assert np.isnan(auc[[0, 2]]).all() and np.isnan(precision[[0, 2]]).all() and not np.isnan(auc[1]).any()
    assert np.isnan(bootstrap.ranking([none])[0]).all() and bootstrap.ranking([])[0].shape == (0, 20)
    assert np.isnan(bootstrap.means([MeanCell(none.rows, none.score)])).all() and bootstrap.means([]).shape == (0, 20)
    assert np.isnan(bootstrap.roc(none, np.array([0.1, 0.2]))).all()


def test_many_means_are_those_of_one_at_a_time():
    patient, positive, score = clustered(4)
    bootstrap = Bootstrap(patient, 30, 0)
    rng = np.random.default_rng(0)
    cells = []
    for _ in range(intervals.MEAN_CELLS + 3):
        rows = np.flatnonzero(rng.random(len(score)) < 0.5)
        cells.append(MeanCell(rows, rng.random(len(rows))))
    together = bootstrap.means(cells)
    for k in (0, 1, intervals.MEAN_CELLS - 1, intervals.MEAN_CELLS + 2):
        weights = bootstrap.counts[bootstrap.patient[cells[k].rows]]
        expected = [metrics.mean(cells[k].value, weight) for weight in weights.T]
        np.testing.assert_allclose(together[k], expected, atol=1e-12)


def test_a_cells_replicates_do_not_depend_on_its_neighbours():
    patient, positive, score = clustered(5, decimals=1)
    bootstrap = Bootstrap(patient, 40, 0)
    half = np.arange(len(score)) % 2 == 0
    both, _ = bootstrap.ranking([cell(positive, score, half), cell(positive, 1 - score)])
    alone, _ = bootstrap.ranking([cell(positive, 1 - score)])
    np.testing.assert_array_equal(both[1], alone[0])
    # Every pair won by the score is lost by its mirror image, to the last bit of what float64 can say.
    forward, _ = bootstrap.ranking([cell(positive, score)])
    np.testing.assert_allclose(forward[0] + alone[0], 1, atol=1e-15)


def test_float64_stays_inside():
    patient, positive, score = clustered(0)
    auc, _ = Bootstrap(patient, 5, 0).ranking([cell(positive, score)])
    assert auc.dtype == np.float64
    assert jax.numpy.arange(3.0).dtype == np.float32


def test_large_counts_stay_exact():
    """Pairs beyond 2**31, which float32 and int32 sums would lose; perfectly ranked, so the AUC is exactly 1."""
    n = 120_000
    positive = np.arange(n) % 2 == 0
    patient = np.char.mod("%05d", np.arange(n) // 12)
    auc, precision = Bootstrap(patient, 3, 0).ranking([RankedCell(np.arange(n), positive, positive * 0.5 + 0.25)])
    assert (auc == 1).all() and np.allclose(precision, 1, rtol=0, atol=1e-12)
    tied, _ = Bootstrap(patient, 3, 0).ranking([RankedCell(np.arange(n), positive, np.full(n, 0.5))])
    assert (tied == 0.5).all()


def test_patient_intervals_are_wider_than_image_intervals_on_clustered_data():
    patient, positive, score = clustered(6, patients=150)
    images = np.array([f"i{i:05}" for i in range(len(score))])
    widths = {}
    for unit, ids in {"patient": patient, "image": images}.items():
        interval = percentile_interval(Bootstrap(ids, 1000, 0).ranking([cell(positive, score)])[0][0], 0.95)
        widths[unit] = interval.high - interval.low
    assert widths["patient"] > 1.2 * widths["image"]


def coverage(simulations, replicates, patients):
    """Share of 95 % intervals, by patients and by images, that hold the true AUC of `clustered`."""
    # Two images of different patients differ by N(shift, 2 (spread² + 0.5²)), whatever the number of images of each.
    truth = scipy.stats.norm.cdf(1.0 / np.sqrt(2 * (1.0 + 0.25)))
    held = {"patient": 0, "image": 0}
    for seed in range(simulations):
        patient, positive, score = clustered(10_000 + seed, patients=patients)
        for unit, ids in {"patient": patient, "image": np.arange(len(score)).astype(str)}.items():
            auc, _ = Bootstrap(ids, replicates, seed).ranking([cell(positive, score)])
            interval = percentile_interval(auc[0], 0.95)
            held[unit] += interval.low <= truth <= interval.high
    return {unit: n / simulations for unit, n in held.items()}


def test_intervals_roughly_cover():
    held = coverage(simulations=30, replicates=200, patients=100)
    assert held["patient"] >= 0.8, held


@pytest.mark.slow
def test_patient_intervals_cover_where_image_intervals_do_not():
    """Between .90 and .99 of 300 nominal 95 % intervals, 3 Monte-Carlo standard errors wide around .95."""
    held = coverage(simulations=300, replicates=1000, patients=200)
    assert 0.90 <= held["patient"] <= 0.99, held
    assert held["image"] < 0.90, held


def test_of_an_unknown_number_there_is_no_interval():
    assert np.isnan(intervals.wilson(0.0, np.nan, 0.95)).all() and np.isnan(intervals.wilson(1.0, np.nan, 0.95)).all()
