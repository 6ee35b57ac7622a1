"""The builder on drawn releases of each layout, on TFDS's own test case, and on releases that are wrong."""

import gzip
import pathlib
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import tensorflow_datasets as tfds

from cxr_jax.tables import UserError
from tests import built, releases
from tfds_builders import released
from tfds_builders.images_test import dicom
from tfds_builders.cxr_mimic import cxr_mimic_dataset_builder as mimic

SMALL = (24, 20)  # rows and columns of the drawn pictures, where they do not matter


class CxrMimicTest(built.OnADrawnRelease, tfds.testing.DatasetBuilderTestCase):
    """What TFDS asks of every builder, on a release that is drawn for it."""

    DATASET_CLASS = mimic.Builder

    @staticmethod
    def draw(folder):
        return releases.mimic(folder, picture=SMALL)


@pytest.fixture
def raw(tmp_path) -> pathlib.Path:
    """A release that a test may spoil: plain tables, MIMIC-IV v2.2."""
    releases.mimic(tmp_path / "raw", gz=False, picture=SMALL)
    return tmp_path / "raw"


def read(raw, **options) -> released.Release:
    return mimic.read_release(released.builder_config(raw, **options))


def edit(path: pathlib.Path, change) -> None:
    """Changes line `change[0]` (the header is 1) by re.sub(change[1], change[2]), once."""
    line, old, new = change
    lines = path.read_text().splitlines(keepends=True)
    lines[line - 1], found = re.subn(old, new, lines[line - 1], count=1)
    assert found == 1, f"{old!r} is not in line {line} of {path.name}"
    path.write_text("".join(lines))


# ---- what is stored ------------------------------------------------------------------------------


@pytest.mark.parametrize("layout, gz", [("1.0", True), ("2.2", False), ("3.1", True)])
def test_every_layout_is_stored_as_drawn(tmp_path, layout, gz):
    iv_folder = {"1.0": "", "2.2": "mimiciv/2.2", "3.1": "mimic-iv"}[layout]
    truth = releases.mimic(tmp_path / "raw", layout=layout, gz=gz, iv_folder=iv_folder, faults=True)
    builder = built.build(mimic.Builder, tmp_path / "raw", tmp_path / "out", max_unreadable_share=0.1)
    found = built.assert_as_drawn(builder, truth)
    drawn = truth.images.set_index("image_id").loc[found.index]
    # Each value once, the first admission's first: the files are not in the order of time.
    assert list(found["race"]) == ["|".join(dict.fromkeys(records)) for records in drawn["race_records"]]
    assert list(found["labelled"] == 1) == list(drawn["labelled"])
    assert list(found["study_date"]) == [int(date) for date in drawn["study_date"]]
    assert list(found["procedure"]) == list(drawn["procedure"])
    metadata = pd.read_csv(tmp_path / "raw" / f"mimic-cxr-2.0.0-metadata.csv{'.gz' * gz}", index_col="dicom_id").loc[found.index]
    np.testing.assert_array_equal(found["study_time"], metadata["StudyTime"] // 1)
    assert list(found["procedure_code"]) == list(metadata["ProcedureCodeSequence_CodeMeaning"].fillna(""))
    assert (found["procedure_code"] != "").any() and found["study_time"].nunique() > 50
    portable = {"": "", **{p: "yes" if "PORT" in p else "no" for p in drawn["procedure"] if p}}
    assert list(found["portable"]) == [portable[p] for p in drawn["procedure"]] and {"yes", "no"} <= set(found["portable"])
    for quirk in ("admissions out of order", "no admission", "no patients row", "unlabelled", "top-coded", "colour"):
        truth.having(quirk)


def test_age_is_age_at_the_study(tmp_path):
    truth = releases.mimic(tmp_path / "raw", picture=SMALL)
    records = read(tmp_path / "raw").records
    drawn = truth.images
    np.testing.assert_array_equal(records["age"], drawn["age"])
    known = drawn["age"].notna()
    assert (drawn["age"] != drawn["anchor_age"])[known].mean() > 0.5  # so that anchor_age itself would not pass


def test_raw_storage_holds_the_same_pictures(tmp_path):
    truth = releases.mimic(tmp_path / "raw", patients=17)
    png, raw = (
        built.build(mimic.Builder, tmp_path / "raw", tmp_path / "out", storage=storage) for storage in ("png", "raw")
    )
    assert png.data_dir != raw.data_dir
    one, two = built.stored(png), built.stored(raw)
    for image_id in truth.images["image_id"]:
        np.testing.assert_array_equal(one["image"][image_id], two["image"][image_id])


def test_dicom_files_are_read_where_they_are_asked_for(tmp_path):
    truth = releases.mimic(tmp_path / "raw", patients=17, picture=(80, 64))
    for image_id, path in zip(truth.images["image_id"], truth.images["path"], strict=True):
        stored = truth.pictures[image_id].astype(np.uint16) * 16  # 12 bits of a detector
        (tmp_path / "raw" / path).with_suffix(".dcm").write_bytes(dicom(stored))
        (tmp_path / "raw" / path).unlink()
    builder = built.build(mimic.Builder, tmp_path / "raw", tmp_path / "out", pictures="dicom")
    assert builder.builder_config.name == "squash_dicom"
    built.assert_as_drawn(builder, truth)


def test_a_picture_that_may_not_be_read_is_not_missing(tmp_path):
    truth = releases.mimic(tmp_path / "raw", picture=SMALL)
    gone, circle = (tmp_path / "raw" / path for path in truth.images["path"][:2])
    gone.unlink()
    circle.unlink()
    circle.symlink_to(circle.name)  # refused to root too
    builder = built.build(mimic.Builder, tmp_path / "raw", tmp_path / "out", max_unreadable_share=0.1)
    set_aside = pd.read_csv(pathlib.Path(builder.data_dir) / "quarantine.csv").set_index("image_id")["reason"]
    assert set_aside.to_dict() == dict(zip(truth.images["image_id"], ("missing", "not readable")))
    assert f"images of the table that are missing: 1, the first {truth.images['image_id'][0]}" in builder.release.statements


def test_integrity_says_what_the_whole_release_has_besides(tmp_path):
    truth = releases.mimic(tmp_path / "raw", picture=SMALL)
    builder = built.build(mimic.Builder, tmp_path / "raw", tmp_path / "out")
    integrity = builder.info.metadata["integrity"]
    counts = {row["count"]: (row["expected"], row["found"]) for row in integrity["counts"]}
    drawn = truth.images
    assert counts["images"] == (377_110, len(drawn)) and counts["patients"] == (65_379, drawn["patient_id"].nunique())
    assert counts["finding Edema"] == (None, int((drawn["finding_Edema"] == 1).sum()))
    assert not integrity["complete"] and integrity["quarantined"] == {}
    lacking = sum(not records for records in drawn["race_records"])
    assert f"images of patients without an admission, so without race: {lacking}" in integrity["statements"]
    assert f"images of studies without labels: {(~drawn['labelled']).sum()}" in integrity["statements"]
    assert any("patients.csv, so without sex and age" in statement for statement in integrity["statements"])
    assert counts["first admission missing"] == (None, lacking)


def test_the_split_table_may_be_missing(raw):
    (raw / "mimic-cxr-2.0.0-split.csv").unlink()
    found = read(raw)
    assert set(found.records["released_split"]) == {""}
    assert "mimic-cxr-2.0.0-split.csv is missing: no official split; all images are in split 'train'" in found.statements


def test_mimic_iv_may_lie_elsewhere(raw, tmp_path):
    shutil.move(raw / "hosp", tmp_path / "iv" / "hosp")
    with pytest.raises(UserError, match="admissions.csv.gz is not in it, nor up to four folders below; config.dataset.mimic_iv_dir"):
        read(raw)
    assert (read(raw, mimic_iv_dir=tmp_path / "iv").records["race"] != "").any()


# ---- the whole release's tables ------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> released.Release:
    folder = tmp_path_factory.mktemp("whole")
    releases.mimic_tables(folder)
    return read(folder)


@pytest.mark.slow
def test_the_whole_release_counts_as_published(whole):
    counts = {row["count"]: (row["expected"], row["found"]) for row in whole.counts}
    assert whole.whole and len(whole.records) == 377_110
    assert counts["patients"] == (65_379, 65_379)
    for value, images in releases.V22_FIRST_ADMISSION.items():
        assert counts[f"first admission {value or 'missing'}"] == (images, images)
    assert counts["sex unknown"][1] == 19_568


def test_a_whole_table_that_was_altered_is_refused():
    counts = {"images": 377_110, "patients": 65_378}
    with pytest.raises(UserError, match="metadata.csv: patients: 65,378 found, 65,379 published; .* download it again"):
        released.held_against(counts, mimic.PUBLISHED, True, "metadata.csv")


def test_every_table_is_part_of_what_a_release_is(raw):
    before = read(raw).fingerprint
    for name in ("mimic-cxr-2.0.0-split.csv", "hosp/admissions.csv", "hosp/patients.csv", "mimic-cxr-2.0.0-chexpert.csv"):
        text = (raw / name).read_bytes()
        (raw / name).write_bytes(text + b"\n")
        assert read(raw).fingerprint != before, name
        # Gzipped it is the same table.
        (raw / name).with_suffix(".csv.gz").write_bytes(gzip.compress(text))
        (raw / name).unlink()
        assert read(raw).fingerprint == before, name


def test_physionet_s_own_folders(tmp_path):
    truth = releases.mimic(tmp_path / "flat", picture=SMALL)
    top = tmp_path / "physionet.org" / "files"
    (top / "mimiciv" / "2.2").mkdir(parents=True)
    shutil.move(tmp_path / "flat" / "hosp", top / "mimiciv" / "2.2" / "hosp")
    shutil.move(tmp_path / "flat", top / "mimic-cxr-jpg" / "2.0.0")
    for raw in (tmp_path, tmp_path / "physionet.org", top):
        records = read(raw).records
        assert (records["size"] > 0).all() and len(records) == len(truth.images) and (records["race"] != "").any()


def test_two_versions_of_mimic_iv_in_one_folder(tmp_path):
    releases.mimic(tmp_path, picture=SMALL)
    releases.mimic(tmp_path / "old", picture=SMALL, layout="1.0")
    shutil.move(tmp_path / "old" / "core", tmp_path / "core")
    shutil.rmtree(tmp_path / "old")
    with pytest.raises(UserError, match="core/ and hosp/ both hold admissions.csv, of two versions of MIMIC-IV"):
        read(tmp_path)


def test_a_study_of_two_patients_is_refused(raw):
    path = raw / "mimic-cxr-2.0.0-metadata.csv"
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    other = table.index[table["subject_id"] != table["subject_id"][0]][0]
    table.loc[other, "study_id"] = table["study_id"][0]
    table.to_csv(path, index=False)
    with pytest.raises(UserError, match="column 'study_id': .* a study of one patient expected"):
        read(raw)


# ---- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("mimic-cxr-2.0.0-metadata.csv", (1, "ViewPosition", "View"), "no column 'ViewPosition'; the table has dicom_id"),
        ("mimic-cxr-2.0.0-metadata.csv", (4, r"^[^,]*", "../../x"), "line 4, column 'dicom_id': '../../x' found, an image"),
        ("mimic-cxr-2.0.0-metadata.csv", (4, r"(,\d{8},\d{8},)", ",1,2,"), "line 4, column 'subject_id': '1' found"),
        ("mimic-cxr-2.0.0-metadata.csv", (4, r",2[12]\d{6},", ",05/06/2180,"), "line 4, column 'StudyDate': '05/06/2180'"),
        ("mimic-cxr-2.0.0-metadata.csv", (4, r",2[12]\d{6},", ",21801399,"), "line 4, column 'StudyDate': '21801399' found"),
        ("mimic-cxr-2.0.0-metadata.csv", (4, r",(AP|PA|LATERAL|LL),", ",SIDEWAYS,"), "line 4, column 'ViewPosition': 'SIDEWAYS'"),
        ("mimic-cxr-2.0.0-metadata.csv", (4, r",\d+\.\d+,", ",noon,"), "line 4, column 'StudyTime': 'noon' found, a number"),
        ("mimic-cxr-2.0.0-metadata.csv", (5, r",[^,]*\n$", "\n"), "line 5: 11 cells found, 12 expected"),
        ("mimic-cxr-2.0.0-chexpert.csv", (3, r"(1|0|-1)\.0", "2.0"), "found, 1, 0, -1 or an empty cell expected"),
        ("mimic-cxr-2.0.0-split.csv", (2, r"\w+\n$", "tarin\n"), "line 2, column 'split': 'tarin' found, one of train"),
        ("hosp/patients.csv", (2, ",[FM],", ",X,"), "line 2, column 'gender': 'X' found, F, M or an empty cell"),
        ("hosp/patients.csv", (3, r"(,[FM],)\d+", r"\1old"), "line 3, column 'anchor_age': 'old' found, a whole number"),
        ("hosp/admissions.csv", (2, r",2\d\d\d-", ",year "), "line 2, column 'admittime'"),
        ("hosp/admissions.csv", (1, ",race,", ",rase,"), "no column 'race'"),
    ],
)
def test_a_table_that_is_wrong(raw, name, change, message):
    edit(raw / name, change)
    with pytest.raises(UserError) as caught:
        read(raw)
    assert str(caught.value).startswith(str(raw / name)) and message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name, message",
    [
        ("mimic-cxr-2.0.0-metadata.csv", "metadata.csv.gz is not in it, nor up to four folders below; config.dataset.raw_dir"),
        ("mimic-cxr-2.0.0-chexpert.csv", "the table is missing: no mimic-cxr-2.0.0-chexpert.csv, with or without .gz"),
        ("hosp/patients.csv", "the table is missing: no patients.csv, with or without .gz"),
    ],
)
def test_missing_pieces(raw, name, message):
    (raw / name).unlink()
    with pytest.raises(UserError) as caught:
        read(raw)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_half_a_file(raw):
    path = raw / "mimic-cxr-2.0.0-metadata.csv"
    packed = gzip.compress(path.read_bytes())
    path.unlink()
    path.with_name(path.name + ".gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(UserError, match="metadata.csv.gz: not a readable text file"):
        read(raw)


def test_an_image_twice_a_patient_in_two_splits_and_two_copies(raw):
    metadata, split = raw / "mimic-cxr-2.0.0-metadata.csv", raw / "mimic-cxr-2.0.0-split.csv"
    text = metadata.read_text()
    metadata.write_text(text + text.splitlines()[1] + "\n")
    with pytest.raises(UserError, match=r"lines 2 and \d+, column 'dicom_id': .* found more than once, each image once"):
        read(raw)
    metadata.write_text(text)

    table = pd.read_csv(split, dtype=str)
    several = table["subject_id"].value_counts().index[0]
    row = table.index[table["subject_id"] == several][0]
    table.loc[row, "split"] = "test" if table.loc[row, "split"] == "train" else "train"
    table.to_csv(split, index=False)
    with pytest.raises(UserError, match=f"split.csv: patient '{several}' is in splits .* must not share .* of mimic-cxr-2.0.0-meta"):
        read(raw)
    table.iloc[1:].to_csv(split, index=False)
    with pytest.raises(UserError, match=r"split.csv: image .* of the metadata is not in it \(1 such\)"):
        read(raw)

    shutil.copytree(raw / "hosp", raw / "mimic-iv-2.2" / "hosp")
    with pytest.raises(UserError, match="both hold such a table; name one of them in config.dataset.mimic_iv_dir"):
        read(raw)
