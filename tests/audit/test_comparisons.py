"""Variances of AUCs against the published formulas read pair by pair, and against what simulation shows."""

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from cxr_jax.audit import comparisons


def clustered(rng, patients=40, models=3, both=True, decimals=None):
    """1 to 4 images a patient. both: a patient may have images of either kind."""
    who = np.repeat(np.arange(patients), rng.integers(1, 5, patients))
    positive = rng.random(len(who)) < 0.4 if both else (rng.random(patients) < 0.4)[who]
    shared = rng.normal(size=(patients, 1))[who] + rng.normal(size=(patients, models))[who]
    scores = 0.7 * shared + positive[:, None] * np.linspace(1, 0.3, models) + rng.normal(size=(len(who), models))
    return positive, scores if decimals is None else scores.round(decimals), np.char.mod("p%d", who)


def placements(positive, score):
    """(of positives, of negatives), by comparing every pair."""
    up, down = score[positive][:, None], score[~positive][None]
    wins = (up > down) + 0.5 * (up == down)
    return wins.mean(1), wins.mean(0)


def delong(positive, scores):
    """Covariance by DeLong et al. 1988: S10 / m + S01 / n, the sample covariances of placements."""
    of = [placements(positive, score) for score in scores.T]
    parts = [np.cov(np.array([one[k] for one in of])) / len(of[0][k]) for k in range(2)]
    return np.reshape(parts[0] + parts[1], (scores.shape[1],) * 2)


def obuchowski(positive, scores, patient):
    """Covariance by Obuchowski 1997, in her symbols: components S10, S01, S11 of sums within each of I clusters."""
    ids = sorted(set(patient))
    X = [[i for i in np.flatnonzero(patient == one) if positive[i]] for one in ids]
    Y = [[i for i in np.flatnonzero(patient == one) if not positive[i]] for one in ids]
    m, n = np.array([len(x) for x in X]), np.array([len(y) for y in Y])
    M, N, I, I10, I01 = m.sum(), n.sum(), len(ids), (m > 0).sum(), (n > 0).sum()
    V10, V01, A = [], [], []
    for score in scores.T:
        pairs = [(i, j) for x in X for i in x for y in Y for j in y]
        psi = {(i, j): float(score[i] > score[j]) + 0.5 * float(score[i] == score[j]) for i, j in pairs}
        V10.append([sum(sum(psi[i, j] for y in Y for j in y) / N for i in x) for x in X])
        V01.append([sum(sum(psi[i, j] for x in X for i in x) / M for j in y) for y in Y])
        A.append(sum(psi.values()) / (M * N))
    out = np.zeros((len(A), len(A)))
    for r in range(len(A)):
        for s in range(len(A)):
            x = [np.array(V10[t]) - m * A[t] for t in (r, s)]
            y = [np.array(V01[t]) - n * A[t] for t in (r, s)]
            S10 = I10 / ((I10 - 1) * M) * np.sum(x[0] * x[1])
            S01 = I01 / ((I01 - 1) * N) * np.sum(y[0] * y[1])
            S11 = I / (I - 1) * np.sum(x[0] * y[1]), I / (I - 1) * np.sum(x[1] * y[0])
            out[r, s] = S10 / M + S01 / N + (S11[0] + S11[1]) / (M * N)
    return out


@pytest.mark.parametrize("decimals", [None, 0])
def test_with_one_image_a_patient_it_is_delong(decimals):
    positive, scores, _ = clustered(np.random.default_rng(0), decimals=decimals)
    auc, covariance = comparisons.auc_covariance(positive, scores, np.arange(len(positive)))
    np.testing.assert_allclose(auc, [sklearn.metrics.roc_auc_score(positive, s) for s in scores.T], rtol=0, atol=1e-14)
    np.testing.assert_allclose(covariance, delong(positive, scores), rtol=1e-11, atol=0)


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize("decimals", [None, 0])
def test_it_is_obuchowskis_formula(both, decimals):
    positive, scores, patient = clustered(np.random.default_rng(1), both=both, decimals=decimals)
    _, covariance = comparisons.auc_covariance(positive, scores, patient)
    np.testing.assert_allclose(covariance, obuchowski(positive, scores, patient), rtol=1e-11, atol=0)
    assert np.linalg.eigvalsh(covariance).min() > 0
    assert not np.allclose(covariance, delong(positive, scores), rtol=0.05)


def test_an_example_worked_by_hand():
    """3 positives, 2 negatives, AUC 5/6; V10 = (1/2, 1, 1), V01 = (2/3, 1)."""
    positive = np.array([True, True, True, False, False])
    score = np.array([0.4, 0.6, 0.8, 0.5, 0.1])
    auc, covariance = comparisons.auc_covariance(positive, score[:, None], np.arange(5))
    # Sample variances of the placements over their numbers: (1/12) / 3 + (1/18) / 2.
    assert auc[0] == pytest.approx(5 / 6, abs=1e-15)
    assert covariance[0, 0] == pytest.approx((1 / 12) / 3 + (1 / 18) / 2, abs=1e-15)


def test_it_depends_on_the_order_of_scores_alone_and_mirrors():
    positive, scores, patient = clustered(np.random.default_rng(2), models=2)
    pair = np.column_stack([scores[:, 0], np.exp(scores[:, 1]), -scores[:, 0]])
    auc, covariance = comparisons.auc_covariance(positive, pair, patient)
    plain, of_plain = comparisons.auc_covariance(positive, scores, patient)
    np.testing.assert_allclose(covariance[:2, :2], of_plain, rtol=1e-12)
    assert auc[2] == pytest.approx(1 - plain[0], abs=1e-14)
    assert covariance[0, 2] == pytest.approx(-covariance[0, 0], rel=1e-12)
    # Positives and negatives change places: the AUC of a score is then that of its mirror image.
    swapped, of_swapped = comparisons.auc_covariance(~positive, scores, patient)
    np.testing.assert_allclose(swapped, 1 - plain, atol=1e-14)
    np.testing.assert_allclose(of_swapped, of_plain, rtol=1e-12)


def test_each_patient_twice_changes_nothing_but_the_small_sample_factors():
    """Copies of all images add no knowledge, if they are known to be the same patients'."""
    positive, scores, patient = clustered(np.random.default_rng(3))
    _, once = comparisons.auc_covariance(positive, scores, patient)
    _, twice = comparisons.auc_covariance(np.tile(positive, 2), np.tile(scores, (2, 1)), np.tile(patient, 2))
    _, naive = comparisons.auc_covariance(np.tile(positive, 2), np.tile(scores, (2, 1)), np.arange(2 * len(patient)))
    np.testing.assert_allclose(once, twice, rtol=1e-11)
    assert (np.diag(naive) < 0.6 * np.diag(once)).all()


def test_influence_adds_up_to_the_covariance():
    positive, scores, patient = clustered(np.random.default_rng(4), both=False)
    auc, values = comparisons.influence(positive, scores, patient)
    expected, covariance = comparisons.auc_covariance(positive, scores, patient)
    assert values.shape == (40, 3) and values.dtype == np.float64
    np.testing.assert_array_equal(auc, expected)
    np.testing.assert_allclose(values.T @ values, covariance, rtol=1e-11)
    np.testing.assert_allclose(values.sum(0), 0, atol=1e-14)
    # Patients with both kinds of image: only the factor of the cross term differs, by less than 1 in I10 - 1.
    positive, scores, patient = clustered(np.random.default_rng(4))
    _, values = comparisons.influence(positive, scores, patient)
    _, covariance = comparisons.auc_covariance(positive, scores, patient)
    np.testing.assert_allclose(np.diag(values.T @ values), np.diag(covariance), rtol=0.02)


def test_macro_is_the_mean_of_classes():
    rng = np.random.default_rng(5)
    race = rng.integers(0, 3, 60)
    who = np.repeat(np.arange(60), rng.integers(1, 4, 60))
    positive = race[who][:, None] == np.arange(3)
    scores = positive[:, :, None] + rng.normal(size=(60, 3, 2))[who] + rng.normal(size=(len(who), 3, 2))
    auc, covariance = comparisons.auc_covariance(positive, scores, who)
    each = [sklearn.metrics.roc_auc_score(positive, scores[:, :, j], average="macro") for j in range(2)]
    np.testing.assert_allclose(auc, each, atol=1e-14)
    # Of one class, macro is the class.
    one = comparisons.auc_covariance(positive[:, :1], scores[:, :1], who)
    for got, expected in zip(one, comparisons.auc_covariance(positive[:, 0], scores[:, 0], who), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-11)
    # The jackknife over patients knows nothing of placements.
    macro = sklearn.metrics.roc_auc_score
    left_out = np.array([[macro(positive[who != i], scores[who != i][:, :, j]) for j in range(2)] for i in range(60)])
    jackknife = 59 / 60 * (left_out - left_out.mean(0)).T @ (left_out - left_out.mean(0))
    np.testing.assert_allclose(covariance, jackknife, rtol=0, atol=0.06 * jackknife.max())


def test_variances_are_those_of_one_score_at_a_time():
    rng = np.random.default_rng(6)
    _, scores, patient = clustered(rng, models=5, decimals=1)
    positive = rng.integers(0, 4, len(patient))[:, None] == np.arange(4)
    auc, error = comparisons.variances(positive, scores.astype(np.float32), patient)
    assert auc.shape == error.shape == (4, 5) and auc.dtype == np.float64
    for k in range(4):
        expected, covariance = comparisons.auc_covariance(positive[:, k], scores, patient)
        np.testing.assert_allclose(auc[k], expected, atol=1e-14)
        np.testing.assert_allclose(error[k] ** 2, np.diag(covariance), rtol=1e-11)


@pytest.mark.parametrize("both", [True, False])
def test_the_variance_is_right_and_tests_keep_their_level(both):
    """Two scores of equal AUC, 1 to 4 images of 80 patients: true variances are those of 800 simulated samples."""
    rng = np.random.default_rng(7)
    aucs, estimates, naive, ps, alone = [], [], [], [], []
    truth = scipy.stats.norm.cdf(0.8 / np.sqrt(2 * 2.25))  # of images of different patients, which nearly all pairs are
    for _ in range(800):
        who = np.repeat(np.arange(80), rng.integers(1, 5, 80))
        positive = rng.random(len(who)) < 0.4 if both else (rng.random(80) < 0.4)[who]
        common = rng.normal(size=(80, 1))[who] + rng.normal(size=(80, 2))[who]
        scores = common + 0.5 * rng.normal(size=(len(who), 2)) + 0.8 * positive[:, None]
        auc, covariance = comparisons.auc_covariance(positive, scores, who)
        aucs.append(auc)
        estimates.append(covariance)
        ps.append(comparisons.difference(auc, covariance, 0, 1).p)
        naive.append(comparisons.auc_covariance(positive, scores, np.arange(len(who)))[1][0, 0])
        alone.append(comparisons.against(auc[0], np.sqrt(covariance[0, 0]), truth, 0.95).p)
    true = np.cov(np.array(aucs).T)
    # The standard error of a variance from 800 samples is 5 %, of a covariance more.
    np.testing.assert_allclose(np.mean(estimates, 0), true, rtol=0, atol=0.15 * true[0, 0])
    if not both:
        assert np.mean(naive) < 0.6 * true[0, 0]
    assert 0.03 < np.mean(np.array(ps) < 0.05) < 0.08
    assert 0.03 < np.mean(np.array(alone) < 0.05) < 0.08


def test_a_difference_is_walds_test():
    positive, scores, patient = clustered(np.random.default_rng(8))
    auc, covariance = comparisons.auc_covariance(positive, scores, patient)
    found = comparisons.difference(auc, covariance, 0, 2)
    error = np.sqrt(np.array([1, 0, -1]) @ covariance @ np.array([1, 0, -1]))
    z = (auc[0] - auc[2]) / error
    np.testing.assert_allclose(found[:3], (auc[0] - auc[2], error, scipy.stats.chi2.sf(z**2, 1)), rtol=1e-10)
    mirror = comparisons.difference(auc, covariance, 2, 0)
    assert mirror.value == -found.value and mirror.p == found.p and found.reason == ""


def test_against_a_fixed_auc():
    auc, error = np.array([[0.7, 0.5], [0.9, 0.3]]), np.full((2, 2), 0.05)
    found = comparisons.against(auc, error, 0.5, 0.9)
    z = np.log(auc / (1 - auc)) / (error / (auc * (1 - auc)))
    np.testing.assert_allclose(found.p, scipy.stats.chi2.sf(z**2, 1), rtol=1e-10)
    assert found.p[0, 1] == 1 and (found.low < auc).all() and (auc < found.high).all() and (found.reason == "").all()
    # Interval and test are one: the interval ends where p is 1 less its level.
    at_end = comparisons.against(auc[0, 0], error[0, 0], float(found.low[0, 0]), 0.9)
    assert at_end.p == pytest.approx(0.1, rel=1e-9)
    for fixed, level in ((0.0, 0.9), (0.5, 1.0)):
        with pytest.raises(ValueError, match="between 0 and 1"):
            comparisons.against(auc, error, fixed, level)


def test_what_is_undefined_says_so():
    rng = np.random.default_rng(9)
    score, who = rng.normal(size=(20, 2)), np.arange(20)
    nobody = comparisons.auc_covariance(np.zeros(20, bool), score, who)
    assert np.isnan(nobody[0]).all() and np.isnan(nobody[1]).all()
    assert "no positive or no negative" in comparisons.difference(*nobody, 0, 1).reason

    one = comparisons.auc_covariance(who == 3, score, who)
    assert np.isfinite(one[0]).all() and np.isnan(one[1]).all()
    found = comparisons.difference(*one, 0, 1)
    assert np.isfinite(found.value) and np.isnan(found.p) and found.reason == comparisons.FEW
    # 5 images of one patient are one patient.
    assert np.isnan(comparisons.auc_covariance(who < 5, score, np.maximum(who, 4))[1]).all()

    alike = np.column_stack([score[:, 0], 2 * score[:, 0] + 1])
    same = comparisons.difference(*comparisons.auc_covariance(who < 8, alike, who), 0, 1)
    assert same.value == 0 and np.isnan(same.p) and "no variance" in same.reason

    perfect = np.column_stack([who < 8, np.zeros(20)]).astype(float)
    auc, error = comparisons.variances((who < 8)[:, None], perfect, who)
    np.testing.assert_array_equal(auc, [[1, 0.5]])
    found = comparisons.against(auc, error, 0.5, 0.95)
    assert np.isnan([found.p, found.low, found.high]).all()
    assert found.reason[0, 0].startswith("an AUC of 0 or 1") and found.reason[0, 1] == "the AUC has no variance"
    reasons = comparisons.against(np.array([np.nan, 0.7]), np.array([np.nan, np.nan]), 0.5, 0.95).reason
    assert reasons[0].startswith("no positive") and reasons[1] == comparisons.FEW


def test_what_does_not_fit_is_refused():
    positive, scores, patient = clustered(np.random.default_rng(10))
    with pytest.raises(ValueError, match="do not fit"):
        comparisons.auc_covariance(positive, scores[:-1], patient)
    with pytest.raises(ValueError, match="NaN score"):
        comparisons.variances(positive[:, None], np.where(scores > 0, scores, np.nan), patient)
    with pytest.raises(ValueError, match="no image"):
        comparisons.influence(positive[:0], scores[:0], patient[:0])
    with pytest.raises(ValueError, match=r"\[n, K, m\]"):
        comparisons.auc_covariance(positive[:, None], scores, patient)


def test_holm():
    # R: p.adjust(c(.01, .02, .03, .04, .05), "holm"), and with an NA and out of order.
    in_order = comparisons.holm(np.array([0.01, 0.02, 0.03, 0.04, 0.05]))
    np.testing.assert_allclose(in_order, [0.05, 0.08, 0.09, 0.09, 0.09])
    found = comparisons.holm(np.array([[0.04, np.nan], [0.01, 0.5]]))
    np.testing.assert_allclose(found, [[0.08, np.nan], [0.03, 0.5]])
    assert comparisons.holm(np.full(3, 0.6)).tolist() == [1, 1, 1]
    assert np.isnan(comparisons.holm(np.full(2, np.nan))).all() and comparisons.holm(np.zeros(0)).shape == (0,)


def test_benjamini_yekutieli():
    p = np.random.default_rng(11).random(30) ** 3
    got = comparisons.benjamini_yekutieli(np.append(p, np.nan))
    # The definition: the least level at which a test is among the rejected, p(i) <= i level / (m Σ 1/j).
    m, harmonic = len(p), np.sum(1 / np.arange(1, 31))
    ordered = np.sort(p) * m * harmonic / np.arange(1, m + 1)
    expected = [min(1.0, ordered[i:].min()) for i in range(m)]
    np.testing.assert_allclose(np.sort(got[:-1]), expected, rtol=1e-12)
    assert np.isnan(got[-1]) and np.isnan(comparisons.benjamini_yekutieli(np.full(2, np.nan))).all()
    for adjust in (comparisons.holm, comparisons.benjamini_yekutieli):
        with pytest.raises(ValueError, match="between 0 and 1"):
            adjust(np.array([0.5, 1.1]))
