import hashlib

import numpy as np
import pandas as pd
import pytest

from configs import base
from cxr_jax import tables
from cxr_jax.data import cohorts
from cxr_jax.tables import Target, UserError
from tests import releases

RACES = ("Kor", "Bel", "Ani")
FINDINGS = ("No Finding", "Edema", "Fracture")
FIRST_TWO = (0.027371231836824772, 0.06189088002556842)  # of patients "1" and "2" under the shipped salt


def config(**fields):
    dataset = base.get_config().dataset
    dataset.update({"name": "invented", "views": (), **fields})
    return dataset


def key_table(patients=60, released=""):
    """Two images a patient; race, sex and view by turns, some unknown."""
    n = np.arange(2 * patients)
    patient = n // 2
    text = lambda values: pd.Series([v or None for v in values], dtype="str")  # noqa: E731
    return pd.DataFrame(
        {
            "stored_split": text(["images"] * len(n)),
            "record": n,
            "image_id": text([f"i{i}" for i in n]),
            "patient_id": text([f"p{p}" for p in patient]),
            "study_id": text([""] * len(n)),
            "released_split": text([released] * len(n)),
            "race": text(["" if p % 10 == 9 else RACES[p % 3] for p in patient]),
            "sex": text(["FM"[p % 2] for p in patient]),
            "view": text([("PA", "AP", "")[i % 3] for i in n]),
            "age": n / 2.0,
            "finding_No Finding": (n % 2).astype(float),
            "finding_Edema": np.array([-1, 0, 1, np.nan])[n % 4],
            "finding_Fracture": np.zeros(len(n)),
        }
    )


def select(keys=None, races=RACES, **fields):
    return cohorts.select(key_table() if keys is None else keys, FINDINGS, races, config(**fields))


# ---- selection -----------------------------------------------------------------------------------


def test_every_image_is_in_one_split_and_no_patient_in_two():
    keys = key_table()
    before = keys.copy()
    cohort = select(keys)
    pd.testing.assert_frame_equal(keys, before)
    assert list(cohort.table["image_id"]) == list(keys["image_id"])
    assert list(cohort.table.index) == list(range(120))
    assert (cohort.table.groupby("patient_id")["split"].nunique() == 1).all()
    assert set(cohort.table["split"]) == set(tables.SPLITS)
    assert (cohort.table["dataset"] == "invented").all()
    pd.testing.assert_series_equal(cohort.table["race_recorded"], keys["race"], check_names=False)


def test_a_patient_hash_can_be_recomputed_by_hand():
    digest = hashlib.blake2b(b"salt\x00p17", digest_size=8).digest()
    (drawn,) = cohorts.uniform_of_patient(["p17"], "salt")
    assert drawn == (int.from_bytes(digest, "big") >> 11) / 2**53
    # Written down, so that no later version can move a patient unnoticed.
    np.testing.assert_allclose(cohorts.uniform_of_patient(["1", "2"], "cxr_jax"), FIRST_TWO, rtol=0, atol=1e-15)


def test_hash_is_uniform_and_another_salt_is_another_split():
    patients = [str(p) for p in range(20_000)]
    one, two = cohorts.uniform_of_patient(patients, "a"), cohorts.uniform_of_patient(patients, "b")
    counts = np.histogram(one, 20, (0, 1))[0]
    # chi-square on 19 degrees of freedom: above 50 once in 7,000 times
    assert ((counts - 1000) ** 2 / 1000).sum() < 50
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.03


def test_fractions_are_of_patients_and_adding_patients_moves_none():
    small, large = select(key_table(500)), select(key_table(4000), split_fractions=(0.6, 0.1, 0.3))
    share = large.table.drop_duplicates("patient_id")["split"].value_counts(normalize=True)
    np.testing.assert_allclose(share[list(tables.SPLITS)], (0.6, 0.1, 0.3), atol=0.025)
    assert list(small.table["split"]) == list(large.table["split"][: len(small.table)])
    assert list(select(key_table(500), split_salt="other").table["split"]) != list(small.table["split"])


def test_official_split_with_its_own_validation():
    keys = key_table()
    part = np.array(["train", "validate", "test"])[np.arange(120) // 2 % 3]
    cohort = select(keys.assign(released_split=pd.Series(part, dtype="str")), split_rule="official")
    assert list(cohort.table["split"]) == list(np.where(part == "validate", "validation", part))


def test_official_split_without_validation_takes_its_share_of_the_rest():
    keys = key_table(3000)
    part = pd.Series(np.where(np.arange(6000) // 2 % 4 == 0, "test", "train_val"), dtype="str")
    cohort = select(keys.assign(released_split=part), split_rule="official", split_fractions=(0.6, 0.2, 0.2))
    table = cohort.table
    assert ((table["split"] == "test") == (part == "test")).all()
    rest = table[table["split"] != "test"].drop_duplicates("patient_id")
    assert abs((rest["split"] == "validation").mean() - 0.25) < 0.03


def test_official_split_that_is_missing_partial_or_leaky():
    with pytest.raises(UserError, match="invented has no official split.*patient_hash"):
        select(split_rule="official")
    keys = key_table(released="train")
    keys.loc[5, "released_split"] = None
    with pytest.raises(UserError, match="image 'i5' has the released split none"):
        select(keys, split_rule="official")
    keys = key_table(released="train")
    keys.loc[7, "released_split"] = "test"  # the patient's other image is in train
    with pytest.raises(UserError, match="patient 'p3' is in splits test and .*must not share a patient"):
        select(keys, split_rule="official", split_salt="x")


def test_views_and_attrition():
    cohort = select(views=("PA", "AP"))
    assert set(cohort.table["view"]) == {"PA", "AP"}
    first, views, *splits = cohort.attrition
    assert (first["images"], first["patients"], first["removed_images"], first["removed_patients"]) == (120, 60, 0, 0)
    assert list(first["by_race"]) == [*RACES, "no record"]
    none = {"removed_images": 0, "removed_patients": 0}
    assert first["by_race"]["no record"] == {"images": 12, "patients": 6, **none}
    assert sum(group["images"] for group in first["by_race"].values()) == 120
    assert (views["rule"], views["images"], views["removed_images"]) == ("view is PA or AP", 80, 40)
    # Image i has no view where i % 3 == 2: each such image is another patient's, who keeps the other one.
    assert (views["patients"], views["removed_patients"]) == (60, 40)
    assert [row["rule"] for row in splits] == ["of which in train", "of which in validation", "of which in test"]
    assert sum(row["images"] for row in splits) == 80 and sum(row["patients"] for row in splits) == views["patients"]
    for row in cohort.attrition:
        for what in ("images", "patients", "removed_images", "removed_patients"):
            assert sum(group[what] for group in row["by_race"].values()) == row[what]


def test_a_patient_of_two_races_counts_under_both_and_once_in_all():
    keys = key_table()
    keys.loc[1, "race"] = "Bel"  # the first image of p0 says Kor
    first = select(keys).attrition[0]
    assert (first["images"], first["patients"]) == (120, 60)
    counts = {name: (group["images"], group["patients"]) for name, group in first["by_race"].items()}
    assert counts == {"Kor": (35, 18), "Bel": (37, 19), "Ani": (36, 18), "no record": (12, 6)}


def test_views_that_the_data_set_lacks():
    keys = key_table()
    keys["view"] = keys["view"].where(keys["view"] != "AP")
    # The frontal views are what every run asks for, whatever the data set has.
    assert set(select(keys, views=("AP", "PA")).table["view"]) == {"PA"}
    with pytest.raises(UserError, match="rule 'view is AP' leaves no image of 120"):
        select(keys, views=("AP",))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"views": ("LL",)}, r"views: no image of data set invented is 'LL'; its views are AP, PA"),
        ({"race_rule": "recoded"}, "race_rule: no rule 'recoded'; there are recorded, "),
        ({"race_rule": "four_race"}, "four_race, but data set invented names groups of its own, Kor, Bel, Ani; use recorded"),
        ({"split_rule": "oficial"}, "split_rule: no rule 'oficial'; there are official, patient_hash"),
    ],
)
def test_unknown_rules_and_views(fields, message):
    with pytest.raises(UserError, match=message):
        select(**fields)


def test_an_empty_split_and_a_duplicate_image_are_refused():
    with pytest.raises(UserError, match=r"leaves split \w+ of data set invented empty \(train \d"):
        select(key_table(2))
    keys = key_table()
    keys.loc[3, "image_id"] = "i0"
    with pytest.raises(UserError, match="each image once"):
        select(keys)


def test_cohort_file_gives_back_what_was_written(tmp_path):
    cohort = select(views=("PA",))
    cohort.write(tmp_path / "cohort.parquet")
    again = cohorts.Cohort.read(tmp_path / "cohort.parquet")
    pd.testing.assert_frame_equal(again.table, cohort.table)
    assert (again.findings, again.races, again.attrition) == (cohort.findings, cohort.races, cohort.attrition)
    leaky = cohort.table.copy()
    leaky.loc[leaky.index[0], "patient_id"] = leaky.loc[leaky["split"] != leaky["split"][0], "patient_id"].iloc[0]
    cohorts.Cohort(leaky, FINDINGS, RACES, []).write(tmp_path / "leaky.parquet")
    with pytest.raises(UserError, match="leaky.parquet: patient .* is in splits"):
        cohorts.Cohort.read(tmp_path / "leaky.parquet")
    tables.write_parquet(cohort.table, tmp_path / "other.parquet", {})
    with pytest.raises(UserError, match="not a cohort"):
        cohorts.Cohort.read(tmp_path / "other.parquet")


# ---- published cohorts ---------------------------------------------------------------------------


def chexpert_keys(valid=234):
    """As many images as the whole release, of which the published rule keeps what is published, and most of valid.csv besides."""
    races = {"White": 99_027, "Asian": 18_830, "Black or African American": 9_261, "Other": 223_414 - 127_118}
    rows = np.arange(223_414 + valid)
    train = rows < 223_414
    race = np.where(train, np.repeat([*races, ""], [*races.values(), valid]), "White")
    number = np.where(train, np.where(rows < 127_118, rows % 42_884, 50_000 + rows % 21_656), 64_541 + rows - 223_414)
    text = lambda values: pd.Series(values, dtype="str")  # noqa: E731
    return pd.DataFrame(
        {
            "image_id": text(rows.astype(str)),
            "patient_id": text(number.astype(str)),
            "released_split": text(np.where(train, "train", "valid")),
            "race": text(race),
            "ethnicity": text(np.full(len(rows), "Not Hispanic")),
            "sex": text(np.full(len(rows), "F")),
            "view": text(np.full(len(rows), "AP")),
        }
    )


def test_chexpert_s_published_cohort_is_of_train_csv_alone():
    dataset = config(name="chexpert", race_rule="three_race", views=("AP", "PA"))
    keys = chexpert_keys()
    cohort = cohorts.select(keys, (), (), dataset)
    assert len(cohort.table) == 127_118 + 234  # the rule itself keeps valid.csv's too
    told = cohorts.against_published(cohort, dataset)
    assert told == [
        f"published for three_race on CheXpert v1.0: {n} {what}; here {n}"
        for n, what in (
            ("127,118", "images"), ("42,884", "patients"), ("99,027", "images of race White"),
            ("18,830", "images of race Asian"), ("9,261", "images of race Black"),
        )
    ]  # fmt: skip
    assert cohorts.against_published(cohorts.select(chexpert_keys(valid=0), (), (), dataset), dataset) == told
    # One image fewer, and it is not the whole release; another view, and the count is not the published one.
    assert cohorts.against_published(cohorts.select(keys[1:], (), (), dataset), dataset) == []
    other = cohorts.select(keys.assign(view=keys["view"].mask(keys.index == 0, "LATERAL")), (), (), dataset)
    assert cohorts.against_published(other, dataset)[0].endswith("127,118 images; here 127,117 (differs)")


def test_mimic_s_published_cohort_is_told_by_group():
    values = [value or None for value in releases.V22_FIRST_ADMISSION]
    rows = np.arange(377_110).astype(str)
    keys = pd.DataFrame({"image_id": rows, "patient_id": rows, "view": "PA", "sex": "F"}, dtype="str")
    keys["race"] = pd.Series(np.repeat(values, list(releases.V22_FIRST_ADMISSION.values())), dtype="str")
    dataset = config(name="mimic", race_rule="first_admission")
    told = cohorts.against_published(cohorts.select(keys, (), (), dataset), dataset)
    assert told == [
        f"published for first_admission on MIMIC-IV v2.2: {n:,} {what}; here {n:,}"
        for n, what in (
            (377_110, "images"), (218_203 + 1_299, "images of race White"), (55_837, "images of race Black"),
            (10_930, "images of race Asian"), (18_869 + 473, "images of race Hispanic/Latino"),
        )
    ]  # fmt: skip


# ---- targets and labels --------------------------------------------------------------------------


def test_class_labels():
    cohort = select()
    chosen, dropped = cohorts.targets(cohort, ("race", "sex", "view"), config())
    assert dropped == ()
    assert chosen == {
        "race": Target("multiclass", RACES),
        "sex": Target("multiclass", ("F", "M")),
        "view": Target("multiclass", ("AP", "PA")),
    }
    arrays = cohorts.labels(cohort, chosen, config())
    assert all(a.dtype == np.int32 and a.shape == (120,) for a in arrays.values())
    for name, target in chosen.items():
        recorded = [None if label < 0 else target.classes[label] for label in arrays[name]]
        assert recorded == [None if pd.isna(v) else v for v in cohort.table[name]]


@pytest.mark.parametrize(
    "uncertain, edema",
    [("ignore", [np.nan, 0, 1, np.nan]), ("zeros", [0, 0, 1, np.nan]), ("ones", [1, 0, 1, np.nan])],
)
def test_findings_under_each_policy(uncertain, edema):
    cohort = select()
    chosen, dropped = cohorts.targets(cohort, ("findings",), config(uncertain=uncertain, unmentioned="ignore"))
    assert chosen["findings"] == Target("multilabel", ("No Finding", "Edema")) and dropped == ("Fracture",)
    values = cohorts.labels(cohort, chosen, config(uncertain=uncertain, unmentioned="ignore"))["findings"]
    assert values.dtype == np.float32 and values.shape == (120, 2)
    np.testing.assert_array_equal(values[:4, 1], edema)
    np.testing.assert_array_equal(values[:, 0], np.arange(120) % 2)


def test_what_a_report_does_not_mention():
    keys = key_table()
    keys["finding_No Finding"] = np.where(np.arange(120) % 3 == 0, 1.0, np.nan)  # as CheXpert's labeller: 1 or nothing
    nothing = np.arange(120) % 10 == 7
    keys.loc[nothing, [c for c in keys if c.startswith("finding_")]] = np.nan
    cohort = select(keys)
    chosen, dropped = cohorts.targets(cohort, ("findings",), config())
    assert chosen["findings"].classes == ("No Finding", "Edema") and dropped == ("Fracture",)
    values = cohorts.labels(cohort, chosen, config())["findings"]
    assert np.isnan(values[nothing]).all()
    assert set(values[~nothing, 0]) == {0, 1} and (values[~nothing, 0] == 1).sum() == (keys["finding_No Finding"] == 1).sum()
    assert np.isnan(values[4, 1]) and values[3, 1] == 0  # uncertain stays unknown, unmentioned is 0
    # Ignored, No Finding has no negatives, and cannot be learnt.
    assert cohorts.targets(cohort, ("findings",), config(unmentioned="ignore"))[1] == ("No Finding", "Fracture")
    # Where the release says whose report was labelled, its word counts.
    read = select(keys.assign(labelled=np.where(nothing, 1, 0)))
    values = cohorts.labels(read, chosen, config())["findings"]
    assert (values[nothing] == 0).all() and np.isnan(values[1, 0])


def test_effusion_goes_by_two_names():
    keys = key_table().rename(columns={"finding_Edema": "finding_Pleural Effusion"})
    cohort = cohorts.select(keys, ("No Finding", "Pleural Effusion", "Fracture"), RACES, config())
    values = cohorts.labels(cohort, {"findings": Target("multilabel", ("Effusion", "Edema"))}, config())["findings"]
    np.testing.assert_array_equal(values[:4, 0], [np.nan, 0, 1, 0])
    assert np.isnan(values[:, 1]).all()


def test_a_finding_without_a_positive_is_dropped_and_named(caplog):
    keys = key_table()
    keys["finding_Edema"] = np.where(keys["finding_Edema"] == 1, -1, keys["finding_Edema"])
    assert cohorts.targets(select(keys), ("findings",), config())[1] == ("Edema", "Fracture")
    assert "'Edema' has no positive image in training" in caplog.text
    assert cohorts.targets(select(keys), ("findings",), config(uncertain="ones"))[1] == ("Fracture",)
    keys["finding_No Finding"] = 1.0
    with pytest.raises(UserError, match="none of No Finding, Edema, Fracture has both"):
        cohorts.targets(select(keys), ("findings",), config(uncertain="zeros"))
    assert "'No Finding' has no negative image" in caplog.text


def test_labels_of_a_model_from_another_data_set():
    cohort = select()
    elsewhere = {
        "race": Target("multiclass", ("White", "Kor")),
        "scanner": Target("multiclass", ("old", "new")),
        "findings": Target("multilabel", ("Hernia", "No Finding")),
    }
    arrays = cohorts.labels(cohort, elsewhere, config())
    assert ((arrays["race"] == 1) == (cohort.table["race"] == "Kor")).all() and set(arrays["race"]) == {-1, 1}
    assert (arrays["scanner"] == -1).all()
    assert np.isnan(arrays["findings"][:, 0]).all()
    np.testing.assert_array_equal(arrays["findings"][:, 1], np.arange(120) % 2)


def test_a_class_that_training_lacks_is_named():
    keys = key_table()
    sex = keys["sex"].mask(select(keys).table["split"] == "train", "F")
    with pytest.raises(UserError, match=r"class 'M' of sex has no image in training \(\d+ in the other splits\)"):
        cohorts.targets(select(keys.assign(sex=sex)), ("sex",), config())
    with pytest.raises(UserError, match="class 'Zor' of race has no image in training"):
        cohorts.targets(select(races=(*RACES, "Zor")), ("race",), config())
    with pytest.raises(UserError, match="sex is F in every image of data set invented"):
        cohorts.targets(select(keys.assign(sex="F")), ("sex",), config())


def test_race_where_none_is_recorded():
    keys = key_table()
    keys["race"] = pd.Series([None] * 120, dtype="str")
    cohort = select(keys, races=())
    with pytest.raises(UserError, match="records no race.*try configs/sex.py:invented"):
        cohorts.targets(cohort, ("race",), config())
    (group,) = cohort.attrition[0]["by_race"].items()
    assert group == ("no record", {"images": 120, "patients": 60, "removed_images": 0, "removed_patients": 0})


@pytest.mark.parametrize(
    "names, message",
    [
        (("rase",), "no target 'rase'; there are race, "),
        (("age",), "no target 'age'; it is no class label"),
        (("patient_id",), "no target 'patient_id'; it is no class label"),
        (("Edema",), "give findings"),
        (("race", "race_recorded"), "race and race_recorded share the class 'Ani'; drop one"),
    ],
)
def test_targets_that_cannot_be(names, message):
    with pytest.raises(UserError, match=message):
        cohorts.targets(select(), names, config())
