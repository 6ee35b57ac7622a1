"""Groups, counts and ages of a cohort, held against pandas and by hand."""

import types

import numpy as np
import pandas as pd
import pytest

from cxr_jax.report import cohort
from cxr_jax.report.cohort import EVERYBODY, key
from cxr_jax.tables import UserError
from tests.report.conftest import narrowed

LEAST = 11


def study(table, least=LEAST, edges=(0, 20), attributes=("race", "sex", "age_band", "view")):
    table = table.assign(image_id=[f"i{i}" for i in range(len(table))])
    table = table if "split" in table else table.assign(split="train")
    settings = types.SimpleNamespace(attributes=attributes, age_bands=edges, level=0.95, min_patients=least)
    return cohort.Study(table, settings, False, (), narrowed(table)[1])


def test_counts_are_of_patients_and_of_images():
    table = pd.DataFrame(
        {
            "patient_id": [f"p{i // 2}" for i in range(60)],
            "split": ["train"] * 30 + ["test"] * 30,
            "sex": (["F"] * 16 + ["M"] * 14) + ([None] * 30),
            "age": np.repeat([19.9, 20.0, np.nan], 20).astype(np.float32),
        }
    )
    found = study(table, least=1)
    counts = found.counts("sex")
    assert counts.groups == ["F", "M", "missing"] and counts.splits == ["train", "test"]
    np.testing.assert_array_equal(counts.patients, [[8, 0, 8], [7, 0, 7], [0, 15, 15], [15, 15, 30]])
    np.testing.assert_array_equal(counts.images, 2 * counts.patients)
    assert not counts.hidden_images.any() and not counts.hidden_patients.any()
    bands = found.counts("age_band")
    assert bands.groups == ["0-19", "20+", "missing"]
    np.testing.assert_array_equal(bands.patients[:, -1], [10, 10, 10, 30])


def of_sizes(sizes):
    """One image a patient; sizes: {(values): patients}, the columns being sex and split."""
    rows = [values for values, n in sizes.items() for _ in range(n)]
    return pd.DataFrame(rows, columns=["sex", "split"]).assign(patient_id=[f"p{i}" for i in range(len(rows))])


def test_the_split_that_is_judged_and_totals_are_spared_where_others_will_do():
    sizes = {("F", "train"): 300, ("F", "validation"): 50, ("F", "test"): 100}
    sizes |= {("M", "train"): 200, ("M", "validation"): 30, ("M", "test"): 60}
    sizes |= {("X", "train"): 80, ("X", "validation"): 5, ("X", "test"): 20}
    hidden = study(of_sizes(sizes)).counts("sex").hidden_images
    assert hidden[2, 1] and not hidden[:, 2:].any() and not hidden[-1].any()


def test_a_split_of_few_patients_is_not_told():
    found = study(of_sizes({("F", "train"): 300, ("M", "train"): 200, ("F", "test"): 4, ("M", "validation"): 60}))
    assert found.hides(key(split="test")) and found.hides(key(sex="F", split="test"))
    hidden = found.counts("sex").hidden_images
    assert hidden[-1].sum() >= 2 and (hidden.sum(axis=1) != 1).all()


@pytest.mark.parametrize(
    "sizes, in_order, wanted",
    [
        ({"a": 40, "b": 30}, False, [["a"], ["b"]]),
        ({"a": 400, "b": 30, "missing": 2}, False, [["a"], ["b", "missing"]]),
        ({"a": 400, "b": 30, "c": 4, "missing": 2}, False, [["a"], ["b", "c", "missing"]]),
        ({"0": 3, "1": 50, "2": 20, "missing": 1}, True, [["0", "1"], ["2", "missing"]]),
        ({"a": 0, "b": 5, "c": 70}, False, [["a"], ["c", "b"]]),
        ({"a": 4, "b": 5}, False, [["b", "a"]]),
    ],
)
def test_small_groups_are_told_of_together_with_a_neighbour(sizes, in_order, wanted):
    found = cohort._together(list(sizes), list(sizes.values()), LEAST, in_order)
    assert sorted(map(sorted, found)) == sorted(map(sorted, wanted))


def test_first_images_are_those_of_the_lowest_age():
    age = np.array([31.0, 29.0, 55.0, np.nan, np.nan, 40.0, 40.0])
    patient = np.array([0, 0, 1, 2, 3, 3, 3])
    np.testing.assert_array_equal(cohort.first_images(age, patient), [1, 2, 3, 5])


def test_rare_categories_count_as_one():
    code = np.repeat([0, 1, 2, 3, 4], [500, 490, 5, 5, 7])
    found = cohort._rare_as_one(cohort.Groups("view", [*"abcd", "missing"], code, np.arange(len(code))))
    assert found.names == ["a", "b", "missing", "c or d"] and found.of == "view, rare as one"
    np.testing.assert_array_equal(np.bincount(found.code), [500, 490, 7, 10])


def test_a_patient_of_two_groups_counts_in_that_of_the_first_image():
    """That the groups have more patients together than there are would say how many are in both."""
    table = pd.DataFrame({"patient_id": np.repeat(np.arange(60), 2), "age": np.tile([40.0, 41.0], 60), "sex": "F"})
    table.loc[table.index[1:100:2], "sex"] = "M"  # 50 patients are F at first and M later
    found = study(table.astype({"patient_id": str}))
    counts = found.counts("sex")
    assert list(counts.images[:, -1]) == [70, 50, 120] and list(counts.patients[:, -1]) == [60, 0, 60]
    assert found.at_first("sex").of == "sex at the first image" and not found.hides(EVERYBODY)


@pytest.mark.parametrize("word", ["all", "missing"])
def test_a_group_that_is_called_as_something_else_here_is_refused(word):
    table = of_sizes({("F", "train"): 50, (word, "test"): 50})
    with pytest.raises(UserError, match=f"sex is recorded as '{word}'"):
        study(table)


@pytest.mark.parametrize(
    "attribute, said", [("finding_Edema", "no groups of its own"), ("study_id", "which image or patient"), ("sx", "has no 'sx'; it has sex")]
)
def test_what_makes_no_groups_is_refused(attribute, said):
    with pytest.raises(UserError, match=said):
        study(of_sizes({("F", "train"): 50}).assign(finding_Edema=1.0), attributes=("race", attribute))
