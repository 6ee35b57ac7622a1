"""The protocol on vectors whose signal is known: found where it is, not where it is not, and nobody looks at test before the end."""

import dataclasses

import jax
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from cxr_jax import mesh
from cxr_jax.probes import kmeans, protocol
from cxr_jax.tables import AS_MANY, FEATURES, Features, Reading, UserError
from tests.probes.vectors import CLASSES, SIZES, settings, splits

PROBES = ("logistic_regression", "knn", "kmeans", "network")


def changed(made, split, **columns):
    return {**made, split: dataclasses.replace(made[split], table=made[split].table.assign(**columns))}


def run(made, **changes):
    readings, arrays, _ = protocol.run(made, settings(**changes), mesh.data_mesh(jax.devices()[:1]))
    return readings, arrays


def macro(readings, reading) -> float:
    """By scikit-learn, in the reading's stratum, on the labels that it was fitted to tell."""
    table = readings.table
    inside = np.ones(len(table), bool)
    if reading.attribute:
        inside = (table[f"stratum_{reading.attribute}"] == reading.group).to_numpy()
    truth = table["shuffled_race" if reading.shuffled else "label_race"][inside]
    scores = readings.scores[reading.name][inside]
    return np.mean([roc_auc_score(truth == c, scores[:, k]) for k, c in enumerate(CLASSES)])


@pytest.fixture(scope="module")
def planted():
    """All probes on vectors of one width, so that each compiles once."""
    return run(splits(), controls=("shuffled", "untrained", "histogram"))


def test_what_is_planted_is_found_and_controls_are_near_chance(planted):
    readings, _ = planted
    by_name = {reading.name: macro(readings, reading) for reading in readings.readings}
    for probe in PROBES:
        assert by_name[Reading("race", probe, FEATURES).name] > 0.8, probe
        assert abs(by_name[Reading("race", probe, "untrained").name] - 0.5) < 0.12, probe
        assert abs(by_name[Reading("race", probe, FEATURES, shuffled=True).name] - 0.5) < 0.12, probe
    for place in ("stem", "block1"):
        assert by_name[Reading("race", "logistic_regression", place).name] > 0.6


def test_features_that_something_was_taken_from_are_read_before_it_and_as_fewer_would_have_left_them():
    made, asked = splits(), {"probes": ("logistic_regression", "knn"), "controls": ("unerased",), "strata": (), "refits": 0}
    erased = {"attribute": "race", "patients": {FEATURES: 75, "halved1": 37}}

    def of(attribute):
        about = {"classes": {}, "erased": {**erased, "attribute": attribute}}
        arrays = {split: {name: part.arrays[FEATURES] for name in (FEATURES, "unerased", "halved1")} for split, part in made.items()}
        return run({split: dataclasses.replace(part, arrays=arrays[split], about=about) for split, part in made.items()}, **asked)[0]

    found = of("race")
    assert {(r.probe, r.input) for r in found.readings} == {*((p, i) for p in asked["probes"] for i in (FEATURES, "unerased")), ("logistic_regression", "halved1")}
    linear = [found.scores[Reading("race", "logistic_regression", name).name] for name in (FEATURES, "unerased", "halved1")]
    assert all(np.array_equal(linear[0], one) for one in linear) and found.found["erased"] == erased
    assert not any(r.input == "halved1" for r in of("sex").readings)


def test_on_other_data_the_same_probes_are_judged_by_the_classes_that_are_known_here():
    made, settings_ = splits(), settings(probes=("logistic_regression",), controls=("shuffled", "untrained"), strata=("view",), refits=0)
    there = dataclasses.replace(made["test"], table=made["test"].table.assign(race=made["test"].table["race"].replace("B", "D"), dataset="there"))
    nothing = dataclasses.replace(there, table=there.table.drop(columns="race"))
    home = {split: dataclasses.replace(part, table=part.table.assign(dataset="here")) for split, part in made.items()}
    here, _, abroad = protocol.run(home, settings_, mesh.data_mesh(jax.devices()[:1]), elsewhere={"there": there, "nowhere": nothing})
    found = abroad["there"]
    # Among all images, from vectors, with labels as recorded.
    assert {(r.input, r.shuffled, r.attribute) for r in found.readings} == {(name, False, "") for name in (FEATURES, "untrained", "stem", "block1")}
    for reading in found.readings:
        np.testing.assert_array_equal(found.scores[reading.name], here.scores[reading.name])
    recorded = found.table["label_race"]
    assert set(recorded.dropna()) == {"A", "C"} and (recorded.isna() == (made["test"].table["race"] == "B")).all()
    assert not abroad["nowhere"].readings and abroad["nowhere"].found["absent"] == ["race is not recorded on nowhere, or in one class alone that is known here"]
    same = dataclasses.replace(there, table=there.table.assign(dataset="here", patient_id=made["train"].table["patient_id"].iloc[0]))
    with pytest.raises(UserError, match="config.extract.datasets: 1 test patients of there are patients whom probes are fitted or chosen on"):
        protocol.run(home, settings_, mesh.data_mesh(jax.devices()[:1]), elsewhere={"there": same})


def test_what_the_table_alone_tells():
    """Findings and demographics that have nothing to do with race find nothing; a finding that goes with race does."""
    made = splits()
    before, _ = run(made, probes=("logistic_regression",), controls=("findings", "demographics"), strata=(), refits=0)
    for control in ("findings", "demographics"):
        assert abs(macro(before, Reading("race", "logistic_regression", control)) - 0.5) < 0.12, control
    made = {name: changed(made, name, **{"label_No Finding": (part.table["race"] == "A").astype(float)})[name] for name, part in made.items()}
    after, _ = run(made, probes=("logistic_regression",), controls=("findings",), strata=(), refits=0)
    assert macro(after, Reading("race", "logistic_regression", "findings")) > 0.7
    assert next(r for r in before.readings if r.input == "demographics").about["attributes"] == ["age", "sex", "view"]


def test_every_reading_says_how_it_was_made(planted):
    readings, arrays = planted
    named = {reading.name: reading.about for reading in readings.readings}
    assert all(about["fit_images"] > 0 and about["fit_patients"] * 2 >= about["fit_images"] for about in named.values())
    linear = named[Reading("race", "logistic_regression", FEATURES).name]
    assert linear["converged"] and linear["fit_images"] == 2 * SIZES["train"]
    top = linear["weight_in_top"]
    assert top["features"] == top["of"] == 6 and top["value"] == pytest.approx(1)  # fewer than ten: all of the weight
    assert arrays[Reading("race", "logistic_regression", FEATURES).name]["coefficients"].shape == (3, 6)
    assert readings.found["absent"] == ["no control by histogram: these features come without it"]
    clusters = {(r["label"], r["clusters"], r["measure"]): r for r in readings.found["agreement"]}
    assert {label for label, *_ in clusters} == {"race", "sex", "view", "No Finding"}
    race, sex = (clusters[label, 4, "adjusted_rand"] for label in ("race", "sex"))
    assert race["value"] > race["null_high"] and race["p"] == pytest.approx(1 / 51)
    assert sex["null_low"] <= sex["value"] <= sex["null_high"] and sex["p"] > 0.025


@pytest.mark.parametrize("through", ["view", "No Finding"])
def test_what_stands_in_for_race_disappears_within_its_stratum(through):
    """The signal is the stratum's, which goes with race: found among all, gone where the stratum is the same for all.

    That it is gone is not for want of images: among as many at random it is there.
    """
    readings, _ = run(splits(signal=3.0, through=through), probes=("logistic_regression",), controls=("as_many",))
    by_name = {reading.name: macro(readings, reading) for reading in readings.readings}
    assert by_name[Reading("race", "logistic_regression", FEATURES).name] > 0.65
    within = [r for r in readings.readings if r.attribute == through]
    assert [r.group for r in within] == (["AP", "PA"] if through == "view" else ["present"])
    images = {r.name: r.about["fit_images"] for r in readings.readings}
    for reading in within:
        beside = dataclasses.replace(reading, attribute=AS_MANY + through)
        assert abs(by_name[reading.name] - 0.5) < 0.12
        assert by_name[beside.name] > 0.62
        assert images[beside.name] == images[reading.name]  # every patient has two images here
        there, at_random = (readings.table[f"stratum_{name}"] == reading.group for name in (through, AS_MANY + through))
        assert there.sum() == at_random.sum() and (there != at_random).any()
    assert {r.attribute for r in readings.readings} == {"", *(beside + name for name in ("No Finding", "view") for beside in ("", AS_MANY))}


class Locked(dict):
    """Arrays that complain when they are looked at too early."""

    def __init__(self, arrays, allowed):
        super().__init__(arrays)
        self.allowed = allowed

    def __getitem__(self, name):
        assert self.allowed(), f"{name} of test was looked at while probes were still being fitted and chosen"
        return super().__getitem__(name)


def test_the_test_split_is_not_looked_at_before_all_is_chosen(monkeypatch):
    made, changes = splits(), {"probes": ("logistic_regression", "knn"), "refits": 0}
    plan, _ = protocol.readings(made["train"], {"race": CLASSES}, settings(**changes))
    fitted = []

    def fit(self, reading, classes):
        made_of_it = original(self, reading, classes)
        fitted.append(reading.name)
        return made_of_it

    original = protocol._Fitter.fit
    monkeypatch.setattr(protocol._Fitter, "fit", fit)
    test = made["test"]
    made["test"] = dataclasses.replace(test, arrays=Locked(test.arrays, lambda: len(fitted) == len(plan)))
    run(made, **changes)
    assert fitted == [reading.name for reading in plan]


def test_the_test_split_has_no_part_in_any_choice():
    """Other test images, other labels there: the same choices."""
    made = splits()
    before, _ = run(made, probes=("knn", "logistic_regression"), refits=0)
    made["test"] = dataclasses.replace(made["test"], arrays={k: v + 5 for k, v in made["test"].arrays.items()})
    after, _ = run(made, probes=("knn", "logistic_regression"), refits=0)
    assert [r.about for r in before.readings] == [r.about for r in after.readings]


def test_shuffling_keeps_patients_whole_and_deals_every_label_once():
    patient = np.array([0, 0, 1, 2, 2, 2, 3, 3])
    labels = np.array([5, 5, 6, 7, 7, 7, 8, 8])
    dealt = protocol.shuffled(labels, patient, np.random.default_rng(0), 200)
    for row in dealt:
        assert sorted({(p, v) for p, v in zip(patient, row)})[3][0] == 3  # one label a patient
        assert len({v for v in row}) == 4  # and nobody's twice
    # Patient 0 gets each label about as often.
    assert np.bincount(dealt[:, 0], minlength=9)[5:].min() > 30
    # Of a patient with labels of two kinds, image by image.
    mixed = protocol.shuffled(np.array([1, 2, 3, 4, 5]), np.array([0, 0, 1, 1, 1]), np.random.default_rng(3), 20)
    assert {tuple(row) for row in mixed} == {(1, 2, 3, 4, 5), (3, 4, 1, 2, 1)}


def test_as_many_images_are_as_many_even_where_a_stratum_goes_with_how_many_a_patient_has():
    """700 patients of one image have no finding, 300 of four to ten have some: freely dealt, there would be three times as many."""
    random = np.random.default_rng(0)
    count = np.concatenate([np.ones(700, int), random.integers(4, 11, 300)])[random.permutation(1000)]
    patient = np.repeat(np.arange(1000), count)
    healthy = (count == 1)[patient]
    dealt = protocol.shuffled(healthy, patient, random, 5, alike=True)
    assert (dealt.sum(axis=1) == 700).all()
    mixed = random.random(len(patient)) < np.where(healthy, 0.8, 0.3)
    dealt = protocol.shuffled(mixed, patient, random, 20, alike=True)
    assert (dealt.sum(axis=1) == mixed.sum()).all() and (dealt != mixed).any()
    patients = [len(np.unique(patient[row])) for row in dealt]
    assert np.allclose(patients, len(np.unique(patient[mixed])))
    # Numbers of images that few patients have are joined with the next, and nobody's labels come twice.
    odd = np.repeat(np.arange(25), [*[1] * 12, *range(2, 15)])
    among = protocol._alike(np.bincount(odd))
    assert np.cumsum([len(some) for some in among]).tolist() == [12, 25]
    (row,) = protocol.shuffled(odd, odd, random, alike=True)
    assert len({(p, v) for p, v in zip(odd, row)}) == 25 == len(set(row))
    assert all((a < 12) == (b < 12) for a, b in zip(odd, row))


def test_clusters_of_noise_are_not_told_from_chance_where_a_label_goes_with_how_many_images_a_patient_has():
    """Purity is at least the share of the commonest class among images, which the null must have as well."""
    random = np.random.default_rng(1)
    patient = np.repeat(np.arange(200), np.repeat([6, 3], 100))
    part = protocol._Part(Features(pd.DataFrame({"patient_id": patient.astype(str)}), {}, {}), "test", 0)
    vectors = random.normal(size=(len(patient), 4)).astype(np.float32)
    clustering = kmeans.fit(vectors, 4, restarts=1, seed=0, max_iterations=50, tolerance=0)
    (purity,) = (
        row for row in protocol.agreement({4: clustering}, part, vectors, {"kind": (part.patient >= 100).astype(int)}, settings(permutations=200))
        if row["measure"] == "purity"
    )  # fmt: skip
    assert purity["null_low"] <= purity["value"] <= purity["null_high"] and purity["p"] > 0.05


def test_strata_and_targets_are_as_recorded():
    made = splits()
    plan, absent = protocol.readings(made["train"], {"view": ("AP", "PA")}, settings())
    assert not [r for r in plan if r.attribute == "view"]  # a label is not sought among images that share it
    assert not [text for text in absent if "view" in text]
    table = made["test"].table.assign(**{"true_No Finding": 1.0})
    assert set(protocol.stratum_of(table, "No Finding")) == {"present"}  # the truth goes before what is recorded
    assert protocol.stratum_of(table.drop(columns="view"), "view") is None
    # A label in words is no finding.
    plan, _ = protocol.readings(changed(made, "train", label_race=made["train"].table["race"])["train"], {"sex": ("F", "M")}, settings(strata=("race",)))
    assert {r.group for r in plan if r.attribute == "race"} == set(CLASSES)


@pytest.mark.parametrize(
    ("made", "targets", "told"),
    [
        (lambda: changed(splits(), "test", patient_id="train0"), ("race",), "patient 'train0' is in splits test and train"),
        (splits, ("ethnicity",), "ethnicity is not recorded .* there are .*race"),
        (splits, ("patient_id",), "patient_id says which image or patient"),
        (lambda: {s: changed(splits(), s, sex=np.where(np.arange(2 * SIZES[s]) % 2, "macro", "F"))[s] for s in SIZES}, ("sex",), "a class called 'macro'"),
        (lambda: changed(splits(), "train", view=np.where(np.arange(2 * SIZES["train"]) % 2, "missing", "AP")), ("race",), "view has a group called 'missing'"),
        (lambda: changed(splits(), "test", race=None), ("race",), "race is recorded of no test image"),
        (splits, ("age",), "age is a number, not a class label"),
        (lambda: {s: changed(splits(), s, sex="F")[s] for s in SIZES}, ("sex",), "sex is 'F' in every image; a probe needs two classes"),
        (lambda: {s: changed(splits(), s, sex=None)[s] for s in SIZES}, ("sex",), "sex is recorded of no image"),
    ],
)  # fmt: skip
def test_what_cannot_be_probed_is_told(made, targets, told):
    with pytest.raises(UserError, match=told):
        run(made(), targets=targets)


def test_features_that_are_no_numbers_are_told():
    made = splits()
    made["train"].arrays[FEATURES][4, 2] = np.nan
    for probe in PROBES:
        with pytest.raises(UserError, match="NaN or infinite"):
            run(made, probes=(probe,), controls=(), strata=())


def test_classes_and_rows_that_are_missing_leave_a_reading_with_its_reason():
    made = splits()
    # No C in training; only one class where the view is AP; 4 images where it is PA.
    race = made["train"].table["race"].where(made["train"].table["race"] != "C", "B")
    view = np.where(race == "A", "AP", None).astype(object)
    view[np.flatnonzero(race == "B")[:2]] = "PA"
    view[np.flatnonzero(race == "A")[:2]] = "PA"
    made = changed(made, "train", race=race, view=view)
    readings, _ = run(made, neighbours=(5, 15), controls=())
    for reading in readings.readings:
        scores = readings.scores[reading.name]
        if reading.group == "AP":
            assert reading.about["reason"] == "training has images of one class at most here" and np.isnan(scores).all()
        elif reading.group == "PA" and reading.probe == "knn":
            assert reading.about["reason"] == "training has fewer images here than any number of neighbours asked for" and np.isnan(scores).all()
        else:
            assert reading.about["reason"].startswith("no image of C in training here"), reading.name
            assert np.isnan(scores[:, 2]).all() and not np.isnan(scores[:, :2]).any(), reading.name


def test_constant_features_leave_a_reading_with_its_reason():
    made = splits()
    for part in made.values():
        part.arrays[FEATURES][:] = 1.0
    readings, _ = run(made, controls=(), strata=(), refits=2)
    for reading in readings.readings:
        if reading.input == FEATURES:
            assert reading.about["reason"] == "all training images are alike here", reading.name
            assert np.isnan(readings.scores[reading.name]).all()


def test_a_stratum_that_test_lacks_and_strata_by_whole_numbers():
    """Nobody in test has a view: scores are there, and nobody is in the stratum. Sites are numbers, and make groups all the same."""
    made = changed(splits(), "test", view=None)
    made = {name: changed(made, name, site=np.arange(len(part.table)) // 2 % 2)[name] for name, part in made.items()}
    readings, _ = run(made, probes=("logistic_regression",), controls=(), strata=("view", "site", "age"), refits=0)
    assert {(r.attribute, r.group) for r in readings.readings if r.attribute} == {("view", "AP"), ("view", "PA"), ("site", "0"), ("site", "1")}
    assert readings.table["stratum_view"].isna().all() and set(readings.table["stratum_site"]) == {"0", "1"}
    assert "no stratum by age: it is not recorded, or numbers that are not all whole" in readings.found["absent"]


def test_a_target_is_no_finding_of_its_own():
    made = {name: changed(splits(), name, label_race=1.0)[name] for name in SIZES}
    assert protocol._finding_columns(made["train"].table, ("race",)) == ["label_No Finding", "label_Edema"]
