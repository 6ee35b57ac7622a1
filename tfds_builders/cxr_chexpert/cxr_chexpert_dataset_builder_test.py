"""The builder on drawn releases, on TFDS's own test case, on the real train.csv, and on releases that are wrong."""

import pathlib
import shutil

import numpy as np
import openpyxl
import pandas as pd
import pytest
import tensorflow_datasets as tfds

from cxr_jax.tables import UserError
from tests import built, releases
from tfds_builders import released
from tfds_builders.cxr_chexpert import cxr_chexpert_dataset_builder as chexpert

SMALL = (20, 24)


class CxrChexpertTest(built.OnADrawnRelease, tfds.testing.DatasetBuilderTestCase):
    """What TFDS asks of every builder, on a release that is drawn for it."""

    DATASET_CLASS = chexpert.Builder

    @staticmethod
    def draw(folder):
        return releases.chexpert(folder, picture=SMALL)


@pytest.fixture
def raw(tmp_path) -> pathlib.Path:
    releases.chexpert(tmp_path / "raw", picture=SMALL)
    return tmp_path / "raw"


def read(raw, **options) -> released.Release:
    return chexpert.read_release(released.builder_config(raw, **options))


@pytest.mark.parametrize("small, below", [(True, ""), (False, "CheXpert-v1.0")])
def test_full_and_small_are_stored_as_drawn(tmp_path, small, below):
    truth = releases.chexpert(tmp_path / "raw", small=small, faults=True)
    builder = built.build(chexpert.Builder, tmp_path / "raw" / below, tmp_path / "out", max_unreadable_share=0.1)
    found = built.assert_as_drawn(builder, truth, views=lambda view: view or "LATERAL")
    drawn = truth.images.set_index("image_id").loc[found.index]
    assert list(found["race"]) == ["|".join(filter(None, records)) for records in drawn["race_records"]]
    assert list(found["ethnicity"]) == list(drawn["ethnicity"].fillna(""))
    for quirk in ("not in demo", "race blank", "ethnicity blank", "sex unknown", "age 0", "LL", "RL", "colour"):
        truth.having(quirk)


def test_the_full_version_as_it_is_downloaded(tmp_path):
    truth = releases.chexpert(tmp_path / "raw", small=False)
    whole, batches = tmp_path / "raw" / "CheXpert-v1.0", []
    for name in ("1 (validate & csv)", "2 (train 1)", "3 (train 2)"):
        batches.append(tmp_path / "raw" / f"CheXpert-v1.0 batch {name}")
        batches[-1].mkdir()
    for name in ("train.csv", "valid.csv", "valid"):
        (whole / name).rename(batches[0] / name)
    for i, patient in enumerate(sorted((whole / "train").iterdir())):
        patient.rename(batches[1 + i % 2] / patient.name)
    shutil.rmtree(whole)
    for where, data_dir in ((tmp_path / "raw", "one"), (batches[0], "two")):
        builder = built.build(chexpert.Builder, where, tmp_path / data_dir)
        found = built.assert_as_drawn(builder, truth, views=lambda view: view or "LATERAL")
        assert (found["race"] != "").any()


def test_the_workbook_may_be_missing(tmp_path):
    releases.chexpert(tmp_path / "raw", picture=SMALL, demo=False)
    found = read(tmp_path / "raw")
    assert (found.records["race"] == "").all() and (found.records["ethnicity"] == "").all()
    assert "CHEXPERT DEMO.xlsx is missing: no race is recorded" in found.statements


def test_valid_csv_may_be_missing(raw):
    (raw / "CheXpert-v1.0-small" / "valid.csv").unlink()
    found = read(raw)
    assert set(found.records["released_split"]) == {"train"}
    assert "valid.csv is missing: no image of split 'valid'" in found.statements


def test_statements_count_who_is_not_in_the_workbook(tmp_path):
    truth = releases.chexpert(tmp_path / "raw", picture=SMALL)
    images = len(truth.having("not in demo"))
    assert f"images of patients who are not in CHEXPERT DEMO.xlsx, so without race: {images}" in read(tmp_path / "raw").statements


# ---- the real train.csv --------------------------------------------------------------------------


@pytest.mark.peers
def test_the_real_table_counts_as_published(xrayvision):
    records = chexpert.read_table(xrayvision / "chexpert_train.csv.gz")
    counts = released.held_against(released.count(records, chexpert.FINDINGS), chexpert.PUBLISHED, True, "train.csv")
    found = {row["count"]: row["found"] for row in counts}
    assert {what: found[what] for what in chexpert.PUBLISHED} == {
        "images": 223_414,
        "patients": 64_540,
        "studies": 187_641,
        "view AP": 161_590,
        "view PA": 29_420,
        "view LL": 16,
        "view RL": 1,
        "finding No Finding": 22_381,
    }
    assert (found["sex unknown"], (records["age"] == 0).sum(), found["view LATERAL"]) == (1, 3, 32_387)


# ---- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("Frontal/Lateral", "View", "no column 'Frontal/Lateral'"),
        ("train/patient", "../patient", "line 2, column 'Path'"),
        (",Female,", ",Weiblich,", "column 'Sex': 'Weiblich' found, Female, Male or Unknown"),
        (",Frontal,AP", ",Frontal,XX", "column 'AP/PA': 'XX' found"),
        (",Frontal,", ",Front,", "column 'Frontal/Lateral': 'Front' found"),
        (",-1.0", ",-2.0", "'-2.0' found, 1, 0, -1 or an empty cell"),
    ],
)
def test_a_table_that_is_wrong(raw, old, new, message):
    path = raw / "CheXpert-v1.0-small" / "train.csv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(UserError) as caught:
        read(raw)
    assert str(caught.value).startswith(str(path)) and message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_whole_table_that_was_altered_is_refused(raw, monkeypatch):
    """Of a release that counts as the whole one, each published count is held against the table by `read_release`."""
    found = {row["count"]: row["found"] for row in read(raw).counts}
    published = {what: found[what] for what in ("images", "patients", "studies", "view AP")}
    monkeypatch.setattr(chexpert, "PUBLISHED", published)
    rows = {name: found[f"rows of {name}"] for name in chexpert.PUBLISHED_ROWS}
    monkeypatch.setattr(chexpert, "PUBLISHED_ROWS", rows)
    assert read(raw).complete
    monkeypatch.setattr(chexpert, "PUBLISHED", {**published, "view AP": published["view AP"] + 1})
    with pytest.raises(UserError, match="train.csv: view AP: .* found, .* published"):
        read(raw)
    monkeypatch.setattr(chexpert, "PUBLISHED", {**published, "view RLL": 1})  # of which there is none
    with pytest.raises(UserError, match="train.csv: view RLL: 0 found, 1 published"):
        read(raw)
    monkeypatch.setattr(chexpert, "PUBLISHED", published)
    monkeypatch.setattr(chexpert, "PUBLISHED_ROWS", {**rows, "valid.csv": 234})
    with pytest.raises(UserError, match="valid.csv: 6 rows found, 234 published; it may be cut short"):
        read(raw)
    (raw / "CheXpert-v1.0-small" / "valid.csv").unlink()
    assert not read(raw).complete


def test_another_workbook_is_another_release(raw):
    before = read(raw).fingerprint
    assert read(raw).fingerprint == before
    workbook = openpyxl.load_workbook(raw / "CHEXPERT DEMO.xlsx")
    workbook.active["D3"] = "Other"
    workbook.save(raw / "CHEXPERT DEMO.xlsx")
    assert read(raw).fingerprint != before


def test_a_patient_in_both_tables(raw):
    folder = raw / "CheXpert-v1.0-small"
    row = (folder / "train.csv").read_text().splitlines()[1]
    with open(folder / "valid.csv", "a") as table:
        table.write(row.replace("view1", "view9") + "\n")
    with pytest.raises(UserError, match="patient .* is in splits train and valid .* must not share a patient") as caught:
        read(raw)
    assert "first images in train (line 2 of train.csv) and valid (line 8 of valid.csv)" in str(caught.value)


def test_missing_pieces_and_two_versions(raw, tmp_path):
    with pytest.raises(UserError, match="train.csv is not in it, nor in CheXpert-v1.0, CheXpert-v1.0-small or"):
        read(tmp_path)
    shutil.copytree(raw / "CheXpert-v1.0-small", raw / "CheXpert-v1.0")
    with pytest.raises(UserError, match="both hold train.csv; name one of them"):
        read(raw)
    shutil.rmtree(raw / "CheXpert-v1.0")
    (raw / "CheXpert-v1.0-small" / "train.csv").unlink()
    with pytest.raises(UserError, match="no train.csv"):
        read(raw)


def test_workbooks_that_are_wrong(raw):
    path = raw / "CHEXPERT DEMO.xlsx"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="CHEXPERT DEMO.xlsx: not a readable workbook"):
        read(raw)
    for change, message in (
        (("E1", "PRIMARY_RACE"), "line 1: more than one column 'PRIMARY_RACE'"),
        (("A1", "PATIENTS"), "no column 'PATIENT'; the workbook has PATIENTS, GENDER"),
        (("A3", "00002"), "line 3, column 'PATIENT': '00002' found, a patient such as patient00001"),
        (("D3", "White|Black"), "line 3, column 'PRIMARY_RACE': 'White|Black' found, a value without '|'"),
    ):
        path.write_bytes(whole)
        workbook = openpyxl.load_workbook(path)
        workbook.active[change[0]] = change[1]
        workbook.save(path)
        with pytest.raises(UserError) as caught:
            read(raw)
        assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_workbook_with_only_its_header(raw):
    path = raw / "CHEXPERT DEMO.xlsx"
    workbook = openpyxl.load_workbook(path)
    workbook.active.delete_rows(2, workbook.active.max_row)
    workbook.save(path)
    with pytest.raises(UserError, match="CHEXPERT DEMO.xlsx: a header and no rows"):
        read(raw)


def test_a_patient_with_two_rows_has_the_values_of_both(raw):
    path = raw / "CHEXPERT DEMO.xlsx"
    workbook = openpyxl.load_workbook(path)
    patient = read(raw).records["patient_id"].iloc[0]
    for race in ("Asian", "Other", "Asian"):
        workbook.active.append([patient, "Female", 50, race, "Unknown"])
    workbook.save(path)
    recorded = chexpert.read_workbook(path).loc[patient]
    assert recorded["race"].split("|")[-2:] == ["Asian", "Other"] or "Asian" in recorded["race"].split("|")[:-1]
    assert len(set(recorded["race"].split("|"))) == len(recorded["race"].split("|"))
    assert isinstance(recorded, pd.Series) and not np.any(recorded.isna())
