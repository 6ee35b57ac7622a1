import numpy as np
import pandas as pd
import pytest
from scipy import optimize, stats

from cxr_jax.report import cohort

LEAST = 11


def with_totals(cells):
    cells = np.asarray(cells)
    cells = np.vstack([cells, cells.sum(0)])
    return np.hstack([cells, cells.sum(1, keepdims=True)])


def could_be(counts, hidden, cell):
    """The least and the most that a hidden cell can be, given all shown cells, with counts of 0 or more."""
    shown, unknown = ~hidden, np.flatnonzero(hidden)
    rows, columns = counts.shape
    equations, right = [], []
    for line in [np.s_[i, :] for i in range(rows)] + [np.s_[:, j] for j in range(columns)]:
        mask = np.zeros(counts.shape, bool)
        mask[line] = True
        sign = np.ones(counts.shape)
        sign[-1, :] *= -1
        sign[:, -1] *= -1
        equations.append((mask * sign).ravel()[unknown])
        right.append(-(mask * sign * shown * counts).sum())
    objective = (unknown == cell).astype(float)
    ends = [optimize.linprog(s * objective, A_eq=np.array(equations), b_eq=right, bounds=(0, None)) for s in (1, -1)]
    return [s * end.fun if end.status == 0 else np.inf for s, end in zip((1, -1), ends, strict=True)]


def test_nothing_is_withheld_where_no_cell_is_small():
    assert not cohort.withhold(with_totals([[20, 30, 40], [0, 50, 60]]), LEAST).any()


def test_a_small_cell_takes_a_second_in_its_row_and_column():
    hidden = cohort.withhold(with_totals([[100, 90, 80], [70, 5, 60], [50, 40, 30]]), LEAST)
    assert hidden[1, 1]
    assert hidden[1, :].sum() >= 2 and hidden[:, 1].sum() >= 2
    assert not hidden[-1].any()  # the sizes of splits are known anyway


def test_two_small_cells_whose_sum_is_small_take_a_third():
    hidden = cohort.withhold(with_totals([[2, 3, 80, 90], [100, 100, 70, 60], [100, 100, 50, 40]]), LEAST)
    assert hidden[0, :2].all() and hidden[0].sum() >= 3


def test_the_split_that_is_judged_is_spared_where_others_will_do():
    cells = with_totals([[300, 50, 100], [200, 30, 60], [80, 5, 20]])
    assert not cohort.withhold(cells, LEAST, keep=2)[:, 2].any()
    assert cohort.withhold(cells, LEAST)[:, 2].any()


@pytest.mark.parametrize("seed", range(25))
def test_no_small_count_can_be_worked_out(seed):
    rng = np.random.default_rng(seed)
    counts = with_totals(rng.choice([0, 1, 4, 9, 12, 25, 80, 300], size=(rng.integers(2, 6), rng.integers(2, 4))))
    hidden = cohort.withhold(counts, LEAST)
    assert hidden[(counts > 0) & (counts < LEAST)].all()
    assert not hidden[counts == 0].any()
    for cell in np.flatnonzero(hidden & (counts > 0) & (counts < LEAST)):
        row, column = np.unravel_index(cell, counts.shape)
        if (hidden | (counts == 0))[row].all() or (hidden | (counts == 0))[:, column].all():
            continue  # all that could be hidden is
        low, high = could_be(counts, hidden, cell)
        assert high - low > 1e-6, (counts, hidden, cell)


def test_what_is_withheld_in_a_row_adds_up_to_enough():
    for seed in range(25):
        rng = np.random.default_rng(seed)
        counts = with_totals(rng.choice([0, 3, 6, 15, 60], size=(4, 3)))
        hidden = cohort.withhold(counts, LEAST)
        for row in range(4):
            if hidden[row, -1] or (hidden | (counts == 0))[row, :-1].all():
                continue
            together = counts[row, :-1][hidden[row, :-1]].sum()
            assert together == 0 or together >= LEAST


def test_counts_are_of_patients_and_of_images():
    table = pd.DataFrame(
        {
            "image_id": [f"i{i}" for i in range(60)],
            "patient_id": [f"p{i // 2}" for i in range(60)],
            "split": ["train"] * 30 + ["test"] * 30,
            "sex": (["F"] * 16 + ["M"] * 14) + ([None] * 30),
            "age": np.repeat([19.9, 20.0, np.nan], 20).astype(np.float32),
        }
    )
    counts = cohort.counts(table, "sex", [0, 20], least=1)
    assert counts.groups == ["F", "M", "missing"] and counts.splits == ["train", "test"]
    np.testing.assert_array_equal(counts.patients, [[8, 0, 8], [7, 0, 7], [0, 15, 15], [15, 15, 30]])
    np.testing.assert_array_equal(counts.images, 2 * counts.patients)
    assert not counts.hidden.any()
    bands = cohort.counts(table, "age_band", [0, 20], least=1)
    assert bands.groups == ["0-19", "20+", "missing"]
    np.testing.assert_array_equal(bands.patients[:, -1], [10, 10, 10, 30])


def test_ages_count_each_patient_once_at_the_first_image():
    table = pd.DataFrame(
        {"patient_id": ["a", "a", "b", "c"], "age": [31.0, 29.0, 55.0, np.nan], "sex": ["F", "F", "F", "M"]}
    )
    counts, starts = cohort.ages(table, "sex", [0], least=1)
    np.testing.assert_array_equal(starts, [0, 10, 20, 30, 40, 50])
    np.testing.assert_array_equal(counts.patients[0], [0, 0, 1, 0, 0, 1, 0, 2])
    np.testing.assert_array_equal(counts.patients[1], [0, 0, 0, 0, 0, 0, 1, 1])


def one_group(y, m, least=1):
    """Prevalence in one group of patients with y positive of m images each."""
    patient = np.repeat(np.arange(len(m)), m)
    positive = np.concatenate([[1.0] * a + [0.0] * (b - a) for a, b in zip(y, m, strict=True)])
    table = pd.DataFrame({"patient_id": patient, "finding_Edema": positive})
    return cohort.prevalence(table, ["g"], np.zeros(len(table), int), least, 0.95).iloc[0]


def test_prevalence_of_single_images_is_wilsons():
    row = one_group([1] * 30 + [0] * 70, [1] * 100)
    wanted = stats.binomtest(30, 100).proportion_ci(0.95, method="wilson")
    assert row["value"] == pytest.approx(0.3)
    # The variance of clusters divides by k - 1, a hundredth more than the binomial's.
    np.testing.assert_allclose([row["low"], row["high"]], wanted, atol=1e-3)


def test_images_that_repeat_a_patient_add_no_certainty():
    once, four = one_group([1] * 30 + [0] * 70, [1] * 100), one_group([4] * 30 + [0] * 70, [4] * 100)
    np.testing.assert_allclose(
        once[["value", "low", "high"]].astype(float), four[["value", "low", "high"]].astype(float)
    )
    assert four["n_images"] == 400 and four["n_patients"] == 100


def test_prevalence_interval_agrees_with_resampling_patients():
    rng = np.random.default_rng(0)
    m = rng.integers(1, 5, 400)
    y = rng.binomial(m, rng.beta(1, 3, 400))
    row = one_group(y, m)
    who = rng.integers(0, 400, (4000, 400))
    wanted = np.percentile(y[who].sum(1) / m[who].sum(1), [2.5, 97.5])
    np.testing.assert_allclose([row["low"], row["high"]], wanted, atol=0.006)


@pytest.mark.parametrize(
    "ill,shown", [(0, True), (1, False), (10, False), (11, True), (39, True), (40, False), (50, True)]
)
def test_prevalence_of_few_patients_is_withheld(ill, shown):
    row = one_group([1] * ill + [0] * (50 - ill), [1] * 50, least=LEAST)
    assert row["suppressed"] == (not shown)
    assert np.isfinite(row["value"]) == shown


def test_a_group_too_small_shows_no_prevalence():
    row = one_group([0] * 10, [1] * 10, least=LEAST)
    assert row["suppressed"] and np.isnan(row["value"])


def test_uncertain_and_unmentioned_findings_are_not_positive():
    table = pd.DataFrame({"patient_id": range(4), "finding_Edema": [1, -1, np.nan, 0], "finding_Mass": [np.nan] * 4})
    found = cohort.prevalence(table, ["g"], np.zeros(4, int), 1, 0.95)
    assert list(found["finding"]) == ["Edema"] and found["value"].iloc[0] == 0.25


def test_what_another_table_withholds_is_withheld_here():
    table = pd.DataFrame(
        {"patient_id": range(400), "split": ["train", "test"] * 200, "sex": np.repeat(["F", "M", "X"], [150, 150, 100])}
    )
    assert not cohort.counts(table, "sex", [0], LEAST).hidden.any()
    hidden = cohort.counts(table, "sex", [0], LEAST, hide={("X", "test")}).hidden
    np.testing.assert_array_equal(np.argwhere(hidden), [[2, 1]])
