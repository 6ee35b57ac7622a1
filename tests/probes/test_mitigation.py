"""What `mitigate` makes of each method's name: which rows and classes it is fitted on, what it says, and what it refuses."""

import dataclasses
import re

import numpy as np
import pandas as pd
import pytest

from configs import base
from cxr_jax.probes import erasure, mitigation
from cxr_jax.tables import FEATURES, UserError
from tests.probes.vectors import CLASSES, splits

METHODS = ("leace", "orthogonalise", "null_space", "prune", *mitigation.NEED_ATTRIBUTE)


def settings(method, **changes):
    config = base.get_config().mitigate
    config.update({"method": method, "pruned_share": 0.34, "rounds": 2, **changes})
    return config


def changed(made, split="train", **columns):
    """columns: new values by name, or what is to be done with those that are there."""
    table = made[split].table
    columns = {name: value(table[name]) if callable(value) else value for name, value in columns.items()}
    return {**made, split: dataclasses.replace(made[split], table=table.assign(**columns))}


def half(made):
    return np.arange(len(made["train"].table)) // 2 % 2 == 0


def fit(made, method, own=None, **changes):
    return mitigation.eraser(made, half(made) if own is None else own, settings(method, **changes))


def codes(made, split, classes):
    return pd.Index(classes).get_indexer(made[split].table["race"])


def test_every_method_takes_features_and_labels_and_only_some_read_these():
    made = splits()
    test = made["test"].arrays[FEATURES]
    for method in METHODS:
        done = fit(made, method)
        labels = codes(made, "test", done.classes)
        out = done.erase(test, labels)
        assert out.dtype == np.float32 and out.shape == test.shape and done.classes == CLASSES
        assert abs(out - test).max() > 0.1 and done.said.startswith(f"{method} of race")
        assert "fitted on 150 training images of 75 patients" in done.said
        needs = method in mitigation.NEED_ATTRIBUTE
        assert needs == (not np.array_equal(out, done.erase(test, (labels + 1) % 3)))
        told = "needs the attribute of every image that is judged: not deployable where that is not known"
        assert (told in done.said) == needs == ("no attribute is needed" not in done.said)
    none = fit(made, "none")
    np.testing.assert_array_equal(none.erase(test, np.zeros(len(test), int)), test)
    assert none.classes == CLASSES and none.said == "none: nothing is taken from the features"


def test_methods_are_those_of_erasure_on_the_rows_that_are_theirs():
    made = splits()
    own, test = half(made), made["test"].arrays[FEATURES]
    x, patients = made["train"].arrays[FEATURES][own], made["train"].table["patient_id"][own].to_numpy()
    y, labels = codes(made, "train", CLASSES)[own], codes(made, "test", CLASSES)
    for shrink in (False, True):
        expected = {
            "leace": erasure.leace(x, y, patients, shrink=shrink)(test),
            "oracle": erasure.oracle(x, y)(test, labels),
            "quadratic": erasure.quadratic(x, y, patients, shrink=shrink)(test, labels),
        }
        for method, out in expected.items():
            np.testing.assert_array_equal(fit(made, method, shrink=shrink).erase(test, labels), out)
    train = made["train"].table[own]
    confounders = np.column_stack([train["age"], train["sex"] == "F", train["view"] == "PA"])
    np.testing.assert_allclose(fit(made, "orthogonalise").erase(test, labels), erasure.orthogonalised(x, y, confounders)(test), atol=1e-5)


@pytest.mark.parametrize("method", mitigation.NEED_ATTRIBUTE)
def test_where_the_attribute_is_not_known_what_needs_it_does_as_leace(method):
    made = splits()
    done, test = fit(made, method), made["test"].arrays[FEATURES]
    labels = codes(made, "test", done.classes)
    unknown = np.arange(len(labels)) % 3 == 0
    out = done.erase(test, np.where(unknown, -1, labels))
    np.testing.assert_array_equal(out[unknown], fit(made, "leace").erase(test, labels)[unknown])
    np.testing.assert_array_equal(out[~unknown], done.erase(test, labels)[~unknown])
    assert abs(out - done.erase(test, labels)).max() > 0.1
    assert "what it does not know it treats as leace does" in done.said
    with pytest.raises(UserError, match="some have none that it knows"):
        done.erase(test, labels + 1)
    test[4, 2] = np.nan
    with pytest.raises(UserError, match="row 5, column 3"):
        done.erase(test, labels)


@pytest.mark.parametrize("method", METHODS)
def test_a_class_that_the_fitted_rows_lack_is_named_and_has_no_part(method):
    made = splits()
    own = half(made) & (made["train"].table["race"] != "B").to_numpy()
    done = fit(made, method, own)
    assert done.classes == ("A", "C") and "; 1 of 3 classes has no image among them;" in done.said
    test = made["test"].arrays[FEATURES]
    labels = codes(made, "test", done.classes)
    assert set(labels) == {-1, 0, 1} and np.isfinite(done.erase(test, labels)).all()
    alone = {split: changed(made, split, race=lambda race: race.where(race != "B", None))[split] for split in made}
    np.testing.assert_array_equal(fit(alone, method, own).erase(test, labels), done.erase(test, labels))


def test_halves_of_halves_are_fitted_on_fewer_of_the_same_patients():
    made = splits()
    dealt, test = np.random.default_rng(0).random(150).repeat(2), made["test"].arrays[FEATURES]
    for method in ("leace", "oracle"):
        found, why = mitigation.by_fewer(made, dealt, settings(method, share=0.8, halvings=3))
        assert list(found) == ["halved1", "halved2", "halved3"] and why == ""
        for k, one in enumerate(found.values(), 1):
            own = dealt < 0.8 / 2**k
            assert one.images == own.sum() == 2 * one.patients and abs(one.patients - 120 / 2**k) < 15
            labels = codes(made, "test", CLASSES)
            np.testing.assert_array_equal(one.erase(test, labels), fit(made, method, own).erase(test, labels))


def test_halving_ends_where_too_few_are_left():
    made = splits()
    dealt = np.random.default_rng(0).random(150).repeat(2)
    found, why = mitigation.by_fewer(made, dealt, settings("leace", share=0.8, halvings=9))
    assert list(found) == ["halved1", "halved2", "halved3"] and why == "fewer than 11 patients are left"
    found, why = mitigation.by_fewer(made, np.where(made["train"].table["race"] == "A", dealt, 1.0), settings("leace", share=0.8, halvings=2))
    assert not found and "two classes are needed" in why
    for method in mitigation.LEAVE_FEATURES:
        assert mitigation.by_fewer(made, dealt, settings(method, halvings=2)) == ({}, "")


def test_fewer_than_two_classes():
    made = splits()
    only = half(made) & (made["train"].table["race"] == "B").to_numpy()
    n = only.sum()
    told = f"of the training images that leace is fitted on, A has n=0, B has n={n}, C has n=0, and two classes are needed"
    with pytest.raises(UserError, match=f"^config.mitigate.attribute=race: {re.escape(told)}; take another config.mitigate.share$"):
        fit(made, "leace", only)
    # Those whose confounders are not known are not among them.
    race, age = made["train"].table["race"], made["train"].table["age"]
    holes = changed(made, age=age.where(race == "B"))
    with pytest.raises(UserError, match=r"orthogonalise is fitted on whose confounders are recorded, A has n=0, B has n=\d+, C has n=0"):
        fit(holes, "orthogonalise")
    assert fit(holes, "orthogonalise", confounders=("sex", "view")).classes == CLASSES


def test_confounders_that_cannot_be():
    made = splits()
    for name in ("patient_id", "image_id", "split"):
        with pytest.raises(UserError, match=f"^config.mitigate.confounders: {name} says which image or patient"):
            fit(made, "orthogonalise", confounders=("age", name))
    for column, empty in {"age": np.nan, "view": pd.array([None] * 300, dtype="str")}.items():
        with pytest.raises(UserError, match=f"^config.mitigate.confounders: {column} is recorded of none of the n=150 training images"):
            fit(changed(made, **{column: empty}), "orthogonalise")
        # Recorded, but of rows that are not for the method.
        with pytest.raises(UserError, match=f"^config.mitigate.confounders: {column} is recorded of none of the n=150"):
            fit(changed(made, **{column: lambda values: values.where(~half(made), None)}), "orthogonalise")
    first = np.arange(300) < 150
    apart = changed(made, age=lambda age: age.where(first), sex=lambda sex: sex.where(~first, None))
    with pytest.raises(UserError, match=r"of the n=150 training images that .* none has all, age of n=76, sex of n=74, view of n=150; leave"):
        fit(apart, "orthogonalise")
    # Methods that have none ask nothing of them.
    fit(made, "leace", confounders=("height",))


def test_a_confounder_that_is_not_there_is_told_with_a_few_that_are():
    made = splits()
    many = {f"place_{i}": 0.5 for i in range(40)} | {f"label_Finding {i}": 1.0 for i in range(30)} | {"empty": np.nan, "dataset": "ours"}
    with pytest.raises(UserError) as error:
        fit(changed(made, **many), "orthogonalise", confounders=("age", "viev"))
    text = str(error.value)
    assert text.startswith("config.mitigate.confounders: viev is not recorded beside these features; there are, nearest first, view, ")
    named = text.split("nearest first, ")[1].split(", ")
    assert len(named) == 15 and not {"race", "dataset", "empty", "split", "patient_id"} & set(named) and not any(n.startswith("place") for n in named)
    with pytest.raises(UserError, match="height is not recorded") as error:
        fit(made, "orthogonalise", confounders=("height",))
    assert set(str(error.value).split("nearest first, ")[1].split(", ")) == {"age", "sex", "view", "label_No Finding", "label_Edema"}


def test_what_confounders_tell_entirely_is_told_by_name():
    made = splits()
    race = made["train"].table["race"]
    with pytest.raises(UserError, match=r"^config.mitigate.attribute=race: confounders alone tell C from A or B: no difference"):
        fit(changed(made, site=pd.array(np.where(race == "C", "x", "y"), dtype="str")), "orthogonalise", confounders=("age", "site"))
    with pytest.raises(UserError, match="confounders tell the class of every image"):
        fit(changed(made, site=race), "orthogonalise", confounders=("site",))
    # The others are told of a class that has no image.
    own, sites = half(made) & (race != "B").to_numpy(), pd.array(np.where(race == "B", "x", "y"), dtype="str")
    assert fit(changed(made, site=sites), "orthogonalise", own, confounders=("site",)).classes == ("A", "C")


def test_a_class_of_one_patient_has_no_covariance_to_carry_over():
    made = splits()
    race = made["train"].table["race"].to_numpy()
    own = half(made) & ((race != "C") | (np.arange(300) == np.flatnonzero((race == "C") & half(made))[0]))
    with pytest.raises(UserError, match="^config.mitigate.attribute=race: C has 1 image of one patient"):
        fit(made, "quadratic", own)
    assert fit(made, "oracle", own).classes == CLASSES


def test_what_would_leave_nothing_is_not_pruned():
    made = splits()
    assert "5 of 6 directions" in fit(made, "prune", pruned_share=0.85).said and "1 of 6 directions" in fit(made, "prune", pruned_share=0.01).said
    with pytest.raises(UserError, match="^config.mitigate.attribute=race: 6 features are to be pruned, and 6 of 6 vary"):
        fit(made, "prune", pruned_share=0.99)
    live = np.array([0, 1, 1, 1, 1, 1], np.float32)
    dead = {split: dataclasses.replace(part, arrays={FEATURES: part.arrays[FEATURES] * live}) for split, part in made.items()}
    with pytest.raises(UserError, match="5 features are to be pruned, and 5 of 6 vary"):
        fit(dead, "prune", pruned_share=0.85)


def test_what_is_no_attribute():
    made = splits()
    for attribute, told in {"age": "age is a number", "split": "split says which image", "rase": "rase is not recorded"}.items():
        with pytest.raises(UserError, match=f"^config.mitigate.attribute: {told}"):
            fit(made, "leace", attribute=attribute)
    with pytest.raises(ValueError, match="no method of erasure: 'erase'"):
        fit(made, "erase")
