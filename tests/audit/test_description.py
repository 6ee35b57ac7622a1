"""Statistics of description, held against SciPy, closed forms and resampling."""

import numpy as np
import pytest
from scipy import stats

from cxr_jax.audit import description


def one_group(y, m):
    """(share, low, high) of patients with y positive of m images each."""
    return description.share(np.array(y), np.array(m), 0.95)


def test_share_of_single_images_is_wilsons():
    value, *ends = one_group([1] * 30 + [0] * 70, [1] * 100)
    wanted = stats.binomtest(30, 100).proportion_ci(0.95, method="wilson")
    assert value == pytest.approx(0.3)
    # The variance of clusters divides by k - 1, a hundredth more than the binomial's.
    np.testing.assert_allclose(ends, wanted, atol=1e-3)


def test_images_that_repeat_a_patient_add_no_certainty():
    np.testing.assert_allclose(one_group([1] * 30 + [0] * 70, [1] * 100), one_group([4] * 30 + [0] * 70, [4] * 100))


def test_interval_of_a_share_agrees_with_resampling_patients():
    rng = np.random.default_rng(0)
    m = rng.integers(1, 5, 400)
    y = rng.binomial(m, rng.beta(1, 3, 400))
    who = rng.integers(0, 400, (4000, 400))
    wanted = np.percentile(y[who].sum(1) / m[who].sum(1), [2.5, 97.5])
    np.testing.assert_allclose(one_group(y, m)[1:], wanted, atol=0.006)


def test_one_patient_has_a_share_and_no_interval():
    value, low, high = one_group([1], [2])
    assert value == 0.5 and np.isnan(low) and np.isnan(high)


def test_images_of_patients_are_counted():
    y, m = description.by_patient(np.array([True, False, True, False]), np.array([0, 0, 3, 1]))
    np.testing.assert_array_equal(y, [1, 0, 1])
    np.testing.assert_array_equal(m, [2, 1, 1])


def test_mean_has_students_interval():
    values = np.random.default_rng(0).normal(50, 15, 40)
    wanted = stats.t.interval(0.95, 39, values.mean(), stats.sem(values))
    np.testing.assert_allclose(description.mean(values, 40, 0.95), [values.mean(), *wanted])
    fewer = description.mean(values, 33, 0.95)
    assert fewer[1] < wanted[0] and fewer[2] > wanted[1]
    assert np.isnan(description.mean(values[:0], 0, 0.95)).all()
    assert np.isnan(description.mean(values[:1], 1, 0.95)[1:]).all()


def test_standardised_difference_of_a_quantity_and_of_a_share():
    rng = np.random.default_rng(0)
    a, b = rng.normal(60, 15, 80), rng.normal(55, 10, 200)
    d, low, high = description.standardised(a, b, 0, 0.95)
    wanted = (a.mean() - b.mean()) / np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2)
    half = 1.959964 * np.sqrt(280 / (80 * 200) + wanted**2 / (2 * 280))
    np.testing.assert_allclose([d, low, high], [wanted, wanted - half, wanted + half], rtol=1e-6)
    a, b = np.repeat([1, 0], [30, 70]), np.repeat([1, 0], [10, 190])
    d = description.standardised(a, b, 2, 0.95)[0]
    assert d == pytest.approx((0.3 - 0.05) / np.sqrt((0.3 * 0.7 + 0.05 * 0.95) / 2))


def test_standardised_difference_of_several_categories_by_hand():
    a, b = np.repeat([0, 1, 2], [50, 30, 20]), np.repeat([0, 1, 2], [120, 40, 40])
    p, q = np.array([0.5, 0.3]), np.array([0.6, 0.2])
    s = np.zeros((2, 2))
    for i in range(2):
        for j in range(2):
            s[i, j] = (p[i] * ((i == j) - p[j]) + q[i] * ((i == j) - q[j])) / 2
    wanted = np.sqrt((p - q) @ np.linalg.inv(s) @ (p - q))
    d, low, high = description.standardised(a, b, 3, 0.9)
    assert d == pytest.approx(wanted)
    # At the ends of the interval what was found is as unlikely as the level says; the low one may be 0.
    scale = 100 * 200 / 300
    assert stats.ncx2.cdf(d**2 * scale, 2, high**2 * scale) == pytest.approx(0.05, abs=1e-6)
    assert low == 0 or stats.ncx2.cdf(d**2 * scale, 2, low**2 * scale) == pytest.approx(0.95, abs=1e-6)
    # Which category comes last makes no difference.
    turned = description.standardised((a + 1) % 3, (b + 1) % 3, 3, 0.9)
    np.testing.assert_allclose(turned, [d, low, high], rtol=1e-8)


def test_a_category_that_nobody_has_counts_for_nothing():
    a, b = np.repeat([0, 2], [40, 60]), np.repeat([0, 2], [90, 110])
    three, two = description.standardised(a, b, 3, 0.95), description.standardised(a // 2, b // 2, 2, 0.95)
    np.testing.assert_allclose(three, two)


def test_the_interval_of_a_distance_covers_no_difference_as_often_as_it_says():
    rng = np.random.default_rng(0)
    shares, covered = [0.5, 0.3, 0.2], 0
    for _ in range(300):
        a, b = rng.choice(3, 150, p=shares), rng.choice(3, 250, p=shares)
        covered += description.standardised(a, b, 3, 0.9)[1] == 0
    assert 0.92 < covered / 300 < 0.98  # one-sided: 95 %


@pytest.mark.parametrize(
    "a, b, categories",
    [([], [1.0, 2.0], 0), ([1.0], [2.0, 3.0], 0), ([1, 1], [1, 1], 2), ([1.0, 1.0], [2.0, 2.0], 0),
     ([0, 0], [1, 1], 3), ([0, 0], [0, 0], 3)],
)  # fmt: skip
def test_a_difference_without_spread_is_undefined(a, b, categories):
    found = description.standardised(np.array(a), np.array(b), categories, 0.95)
    assert np.isnan(found).all()
