import numpy as np
import pandas as pd
import pytest
from scipy import stats

from cxr_jax.report import cohort

LEAST = 11


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


def test_ages_withhold_what_the_totals_of_bins_would_give_away():
    sizes = {("F", 15): 5, ("F", 35): 100, ("F", 55): 100, ("M", 15): 100, ("M", 35): 100, ("M", 55): 100}
    sizes |= {("X", 15): 100, ("X", 35): 100, ("X", 55): 100}
    people = [key for key, n in sizes.items() for _ in range(n)]
    table = pd.DataFrame(people, columns=["sex", "age"]).assign(patient_id=range(len(people)))
    counts, starts = cohort.ages(table, "sex", [0], LEAST)
    hidden = counts.hidden[:-1, : len(starts)]
    assert hidden[0, list(counts.patients[0]).index(5)]
    # In a row or a column of which all but one is shown, that one is the total less the others.
    assert set(hidden.sum(axis=0)) | set(hidden.sum(axis=1)) == {0, 2}


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


def test_one_patient_has_a_prevalence_and_no_interval():
    row = one_group([1], [2])
    assert row["value"] == 0.5 and not row["suppressed"] and np.isnan(row["low"]) and np.isnan(row["high"])


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
    assert hidden[2, 1] and hidden[2].sum() == 2 and hidden[:, 1].sum() == 2  # nor does it follow from what is shown


def test_the_split_that_is_judged_and_totals_are_spared_where_others_will_do():
    sizes = {("F", "train"): 300, ("F", "validation"): 50, ("F", "test"): 100}
    sizes |= {("M", "train"): 200, ("M", "validation"): 30, ("M", "test"): 60}
    sizes |= {("X", "train"): 80, ("X", "validation"): 5, ("X", "test"): 20}
    rows = [key for key, n in sizes.items() for _ in range(n)]
    table = pd.DataFrame(rows, columns=["sex", "split"]).assign(patient_id=range(len(rows)))
    hidden = cohort.counts(table, "sex", [0], LEAST).hidden
    assert hidden[2, 1] and not hidden[:, 2:].any() and not hidden[-1].any()
