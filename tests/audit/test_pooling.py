"""Partial pooling: against what it estimates, against statsmodels' τ² worked by hand, and where there is nothing to pool."""

import numpy as np
import pytest
from scipy import special

from cxr_jax.audit import pooling
from cxr_jax.audit.estimates import Estimate, undefined

RACES, SEXES, AGES = "abcd", "FM", ("young", "old", "older")
CELLS = [(r, s, a) for r in RACES for s in SEXES for a in AGES]


def cell(value, error, scale="share", patients=40):
    """A share whose standard error, on the logit scale, is `error`."""
    one = np.zeros(patients)
    one[0] = error * value * (1 - value)
    return Estimate(value, None, lambda: one, patients, patients, scale)


def drawn(seed, between=0.5, errors=(0.2, 1.0)):
    """Main effects, interactions of variance between², and cells measured with errors: truth, measured, errors."""
    rng = np.random.default_rng(seed)
    main = [dict(zip(names, rng.normal(0, 0.6, len(names)))) for names in (RACES, SEXES, AGES)]
    truth = np.array([sum(m[g] for m, g in zip(main, groups)) for groups in CELLS]) + rng.normal(0, between, len(CELLS))
    error = rng.uniform(*errors, len(CELLS))
    return truth, truth + rng.normal(0, error), error


def shrunk(y, error):
    found = pooling.shrink([cell(special.expit(v), e) for v, e in zip(y, error)], CELLS, 0.95)
    return np.array([special.logit([one.value, one.low, one.high]) for one in found])


def test_shrunk_estimates_are_nearer_the_truth_and_their_intervals_hold():
    raw, pooled, inside = [], [], []
    for seed in range(60):
        truth, y, error = drawn(seed)
        found = shrunk(y, error)
        raw.append(np.mean((y - truth) ** 2))
        pooled.append(np.mean((found[:, 0] - truth) ** 2))
        inside.append(np.mean((found[:, 1] <= truth) & (truth <= found[:, 2])))
    assert np.mean(pooled) < 0.75 * np.mean(raw)
    assert 0.90 < np.mean(inside) < 0.97


def test_the_spread_between_cells_is_paule_and_mandel_s():
    """Of six measurements the τ² for which the weighted residuals' sum of squares is 5, found by a plain search."""
    y, v = np.array([0.1, 0.9, 0.4, -0.3, 0.6, 1.3]), np.array([0.02, 0.05, 0.03, 0.04, 0.02, 0.09])
    found = pooling._between(y, v, np.ones((6, 1)))

    def residuals(tau):
        w = 1 / (v + tau)
        return (w * (y - (w @ y) / w.sum()) ** 2).sum()

    grid = np.linspace(0, 2, 200_001)
    assert found == pytest.approx(grid[np.argmin(np.abs([residuals(t) - 5 for t in grid[::100]])) * 100], abs=1e-3)
    assert residuals(found) == pytest.approx(5, abs=1e-8)
    assert pooling._between(np.full(6, 0.4), v, np.ones((6, 1))) == 0


def test_without_a_spread_all_go_where_their_groups_put_them():
    main = {"a": 0.0, "b": 1.0, "c": -1.0, "d": 0.5}
    y = np.array([main[r] + 0.3 * (s == "M") for r, s, _ in CELLS])
    found = shrunk(y, np.full(len(CELLS), 0.5))
    np.testing.assert_allclose(found[:, 0], y, atol=1e-9)
    # The error of a cell of 24 from six main effects is sqrt(7/24) of one alone.
    assert np.mean((found[:, 2] - found[:, 0]) / 1.96) == pytest.approx(0.5 * np.sqrt(7 / 24), rel=0.02)


def test_a_cell_measured_well_stays_and_one_measured_badly_goes():
    truth, y, error = drawn(3, errors=(0.3, 0.3))
    error[0], error[1] = 0.01, 20.0
    y[1] = 5.0
    found = shrunk(y, error)
    assert found[0, 0] == pytest.approx(y[0], abs=0.02) and abs(found[1, 0] - truth[1]) < 2


def test_few_cells_are_pooled_towards_their_mean_and_fewer_not_at_all():
    cells = [cell(v, 0.4) for v in (0.2, 0.3, 0.4)]
    found = pooling.shrink(cells, [("a", "F"), ("a", "M"), ("b", "F")], 0.95)
    assert found[0].value > 0.2 and found[2].value < 0.4 and "among 3 cells" in found[0].reason
    two = pooling.shrink(cells[:2], [("a", "F"), ("a", "M")], 0.95)
    assert np.isnan(two[0].value) and "fewer than 3 cells" in two[0].reason


def test_what_is_undefined_has_no_part():
    cells = [cell(0.2, 0.4), cell(0.3, 0.4), cell(0.35, 0.4), undefined("no image"), cell(1.0, 0.0, "auc"), cell(0.0, 0.0)]
    found = pooling.shrink(cells, [("a",), ("b",), ("c",), ("d",), ("e",), ("f",)], 0.95)
    assert np.isnan(found[3].value) and found[3].reason == "no image" and np.isnan(found[4].value)
    assert 0 < found[5].value < 0.2 and "among 4 cells" in found[5].reason, "none of 40 patients is not nothing"
