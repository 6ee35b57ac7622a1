"""The releases that tests draw: each promise of `tests.releases` held against the files, read here on their own."""

import ast
import csv
import gzip
import io
import re

import numpy as np
import openpyxl
import pandas as pd
import pytest
from PIL import Image

from tests import releases

WRITERS = {
    "mimic": releases.mimic,
    "chexpert": releases.chexpert,
    "padchest": releases.padchest,
    "nih": releases.nih,
}
QUIRKS = {
    "mimic": {
        "no admission", "no patients row", "two groups", "known, then unknown", "unknown, then known", "only unknown",
        "repeated", "White and Hispanic", "one group in other words", "admissions out of order", "top-coded",
        "unlabelled", "no mention", "no view", "rare view", "colour",
    },
    "chexpert": {
        "not in demo", "race blank", "ethnicity blank", "Hispanic in race alone", "White and Hispanic", "sex unknown",
        "age 0", "age 90", "LL", "RL", "colour",
    },
    "padchest": {
        "sex O", "sex nan", "birth empty", "two sexes", "study of two patients", "labels nan", "labels empty",
        "empty label", "space before label", "label twice", "12 bit", "10 bit", "AP", "AP_horizontal", "COSTAL",
        "EXCLUDE", "UNK",
    },
    "nih": {"first image is not 000", "RGBA", "two findings", "infant"},
}  # fmt: skip


def read(path) -> list[dict[str, str]]:
    """The rows of a CSV, as text, packed or not."""
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("ascii")
    assert "\r" not in text and text.endswith("\n")
    return list(csv.DictReader(io.StringIO(text, newline=""), strict=True))


def header(path) -> str:
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode().split("\n")[0]


def cell(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.1f}"


def labels_of(row: pd.Series) -> dict[str, str]:
    return {name.removeprefix("finding_"): cell(row[name]) for name in row.index if name.startswith("finding_")}


def in_files(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- all of them ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRITERS)
def test_every_quirk_is_there_for_every_seed(name, tmp_path):
    for seed in range(6):
        truth = WRITERS[name](tmp_path / str(seed), seed=seed, picture=(16, 12), faults=True)
        assert {quirk for quirks in truth.images["quirks"] for quirk in quirks} == QUIRKS[name]
        # A fault takes no quirk away, and leaves nearly all pictures whole.
        assert sorted(truth.images["fault"][truth.images["fault"] != ""]) == sorted(releases.FAULTS)
        assert not truth.images["quirks"][truth.images["fault"] != ""].map(len).any()


@pytest.mark.parametrize("name", WRITERS)
def test_few_patients_do(name, tmp_path):
    least = {"mimic": 17, "chexpert": 14, "padchest": 12, "nih": 10}[name]
    for seed in range(6):
        truth = WRITERS[name](tmp_path / str(seed), seed=seed, patients=least, picture=(16, 12))
        assert truth.images["patient_id"].nunique() == least
    with pytest.raises(ValueError, match=f"patients: {least - 1} found, at least {least} expected"):
        WRITERS[name](tmp_path, patients=least - 1)


@pytest.mark.parametrize("name", WRITERS)
def test_a_seed_says_all(name, tmp_path):
    one, same, other = (
        WRITERS[name](tmp_path / k, seed=s, picture=(16, 12)) for k, s in (("a", 3), ("b", 3), ("c", 4))
    )
    pd.testing.assert_frame_equal(one.images, same.images)
    files, again = in_files(one.folder), in_files(same.folder)
    if name == "chexpert":  # a workbook notes the time of writing
        pd.testing.assert_frame_equal(*(pd.read_excel(t.folder / releases.CHEXPERT_DEMO) for t in (one, same)))
        del files[releases.CHEXPERT_DEMO], again[releases.CHEXPERT_DEMO]
    assert files == again
    assert set(other.images["image_id"]).isdisjoint(one.images["image_id"]) or name in ("chexpert", "nih")
    assert not other.images.equals(one.images)


@pytest.mark.parametrize("name", WRITERS)
def test_pictures_are_those_drawn(name, tmp_path):
    truth = WRITERS[name](tmp_path)
    assert not truth.images["fault"].any()
    assert truth.images["image_id"].is_unique and truth.images["path"].is_unique
    for _, row in truth.images.iterrows():
        drawn = truth.pictures[row["image_id"]]
        with Image.open(truth.folder / row["path"]) as picture:
            assert (picture.mode, picture.size) == (row["mode"], (row["columns"], row["rows"]))
            assert picture.format == ("JPEG" if row["path"].endswith(".jpg") else "PNG")
            pixels = np.asarray(picture)
        if pixels.ndim == 3:
            assert (pixels[..., :3] == pixels[..., :1]).all()
            pixels = pixels[..., 0]
        assert pixels.dtype == drawn.dtype
        if picture.format == "PNG":
            np.testing.assert_array_equal(pixels, drawn)
        else:
            assert np.abs(pixels.astype(int) - drawn).max() <= 4
        assert row["gray_mean"] == pytest.approx(drawn.mean())
        assert np.ptp(drawn) > 0.3 * np.iinfo(drawn.dtype).max or "bit" in " ".join(row["quirks"])
    written = {path for path in in_files(tmp_path) if path.endswith((".jpg", ".png"))}
    assert written == set(truth.images["path"])


@pytest.mark.parametrize("name", WRITERS)
def test_faults(name, tmp_path):
    truth = WRITERS[name](tmp_path, faults=True)
    fault = truth.images.set_index("fault")["path"]
    assert not (tmp_path / fault["missing"]).exists()
    assert (tmp_path / fault["empty"]).read_bytes() == b""
    with pytest.raises(Image.UnidentifiedImageError):
        Image.open(tmp_path / fault["not an image"])
    with Image.open(tmp_path / fault["truncated"]) as picture, pytest.raises(OSError, match="truncated"):
        picture.load()
    for path in fault[""]:
        with Image.open(tmp_path / path) as picture:
            picture.load()


def test_a_quirk_that_no_image_has(tmp_path):
    truth = releases.nih(tmp_path, picture=(16, 12))
    assert (truth.having("RGBA")["mode"] == "RGBA").all()
    with pytest.raises(ValueError, match="no image has the quirk 'RGB'; there are RGBA, first image is not 000"):
        truth.having("RGB")


# ---- MIMIC ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gz", [True, False])
@pytest.mark.parametrize("layout", releases.MIMIC_LAYOUTS)
def test_mimic_says_what_was_drawn(layout, gz, tmp_path):
    truth = releases.mimic(tmp_path, layout=layout, gz=gz, patients=60, iv_folder="mimiciv/x", picture=(24, 16))
    ending = ".csv.gz" if gz else ".csv"
    tables = tmp_path / "mimiciv" / "x" / ("core" if layout == "1.0" else "hosp")
    assert truth.iv_folder == tmp_path / "mimiciv" / "x"
    metadata = tmp_path / f"mimic-cxr-2.0.0-metadata{ending}"
    assert header(metadata) == (
        "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,StudyTime,"
        "ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,PatientOrientationCodeSequence_CodeMeaning"
    )
    images = {row["dicom_id"]: row for row in read(metadata)}
    splits = {row["dicom_id"]: row for row in read(tmp_path / f"mimic-cxr-2.0.0-split{ending}")}
    labels = {row["study_id"]: row for row in read(tmp_path / f"mimic-cxr-2.0.0-chexpert{ending}")}
    negbio = {row["study_id"]: row for row in read(tmp_path / f"mimic-cxr-2.0.0-negbio{ending}")}
    patients = {row["subject_id"]: row for row in read(tables / f"patients{ending}")}
    admissions = pd.DataFrame(read(tables / f"admissions{ending}"))
    race = "ethnicity" if layout == "1.0" else "race"
    provider = "" if layout == "1.0" else "admit_provider_id,"
    assert header(tables / f"admissions{ending}") == (
        f"subject_id,hadm_id,admittime,dischtime,deathtime,admission_type,{provider}admission_location,"
        f"discharge_location,insurance,language,marital_status,{race},edregtime,edouttime,hospital_expire_flag"
    )
    assert header(tables / f"patients{ending}") == "subject_id,gender,anchor_age,anchor_year,anchor_year_group,dod"
    assert header(tmp_path / f"mimic-cxr-2.0.0-chexpert{ending}") == (
        "subject_id,study_id,Atelectasis,Cardiomegaly,Consolidation,Edema,Enlarged Cardiomediastinum,Fracture,"
        "Lung Lesion,Lung Opacity,No Finding,Pleural Effusion,Pleural Other,Pneumonia,Pneumothorax,Support Devices"
    )
    assert header(tmp_path / f"mimic-cxr-2.0.0-split{ending}") == "dicom_id,study_id,subject_id,split"
    assert labels.keys() == negbio.keys() and labels != negbio
    assert admissions["hadm_id"].is_unique and admissions[race].ne("").all()
    assert not set(admissions["subject_id"]) <= set(truth.images["patient_id"])  # more patients than were X-rayed
    assert list(images) == truth.images["image_id"].tolist()

    by_time = admissions.sort_values("admittime").groupby("subject_id")[race].agg(tuple)
    in_file = admissions.groupby("subject_id")[race].first()
    for _, row in truth.images.iterrows():
        found, patient = images[row["image_id"]], patients.get(row["patient_id"])
        assert re.fullmatch("[0-9a-f]{8}(-[0-9a-f]{8}){4}", row["image_id"])
        assert (found["subject_id"], found["study_id"]) == (row["patient_id"], row["study_id"])
        assert (found["ViewPosition"], found["StudyDate"]) == (row["view"], row["study_date"])
        assert (int(found["Rows"]), int(found["Columns"])) == (row["rows"], row["columns"])
        assert 0 <= float(found["StudyTime"]) < 240_000 and "2110" <= found["StudyDate"] < "2210"
        assert row["path"] == "files/p{}/p{}/s{}/{}.jpg".format(
            found["subject_id"][:2], found["subject_id"], found["study_id"], found["dicom_id"]
        )
        assert splits[row["image_id"]] == {
            "dicom_id": row["image_id"], "study_id": row["study_id"], "subject_id": row["patient_id"],
            "split": row["split"],
        }  # fmt: skip
        assert by_time.get(row["patient_id"], ()) == row["race_records"]
        assert in_file.get(row["patient_id"], "") == row["first_in_file"]
        if patient is None:
            assert row["sex"] == "" and np.isnan(row["age"]) and row["race_records"] == ()
        else:
            assert row["sex"] == patient["gender"]
            year = int(found["StudyDate"]) // 10_000
            assert row["age"] == int(patient["anchor_age"]) + year - int(patient["anchor_year"])
        if row["labelled"]:
            expected = {"subject_id": row["patient_id"], "study_id": row["study_id"], **labels_of(row)}
            assert labels[row["study_id"]] == expected
        else:
            assert row["study_id"] not in labels and set(labels_of(row).values()) == {""}

    assert set(truth.images["split"]) == {"train", "validate", "test"}
    assert truth.images.groupby("patient_id")["split"].nunique().max() == 1
    assert truth.images.groupby("study_id")["patient_id"].nunique().max() == 1
    assert (truth.images["age"] != truth.images["anchor_age"]).mean() > 0.6
    values = releases.V1_RACES if layout == "1.0" else releases.V2_RACES
    assert len(values) == (8 if layout == "1.0" else 33)
    assert {value for records in truth.images["race_records"] for value in records} == set(values)
    assert any("," in procedure for procedure in truth.images["procedure"])


def test_mimic_quirks(tmp_path):
    truth = releases.mimic(tmp_path, picture=(24, 16))
    records = {quirk: set(truth.having(quirk)["race_records"]) for quirk in QUIRKS["mimic"]}
    assert records["no admission"] == records["no patients row"] == {()}
    assert records["two groups"] == {("WHITE", "ASIAN"), ("BLACK/AFRICAN AMERICAN", "WHITE", "WHITE")}
    assert records["known, then unknown"] == {("WHITE", "UNKNOWN")}
    assert records["unknown, then known"] == {("UNKNOWN", "BLACK/AFRICAN AMERICAN")}
    assert ("WHITE", "WHITE - RUSSIAN") in records["one group in other words"]
    assert ("WHITE", "HISPANIC/LATINO - PUERTO RICAN") in records["White and Hispanic"]
    assert (truth.having("no admission")["sex"] != "").all() and (truth.having("no patients row")["sex"] == "").all()
    assert (truth.having("top-coded")["anchor_age"] == 91).all()
    unlabelled, silent = truth.having("unlabelled"), truth.having("no mention")
    assert unlabelled["study_id"].nunique() == 1 and not unlabelled["labelled"].any() and silent["labelled"].all()
    assert (truth.having("no view")["view"] == "").all()
    assert set(truth.having("rare view")["view"]) <= set(releases.RARE_VIEWS)
    assert (truth.having("colour")["mode"] == "RGB").all()
    assert {"AP", "PA", "LATERAL", "LL", ""} < set(truth.images["view"])
    # A builder that takes the file's first admission for the first in time gets some wrong.
    turned = truth.having("admissions out of order")
    assert (turned["first_in_file"] != turned["race_records"].str[0]).any()
    tables = pd.read_csv(tmp_path / "hosp" / "admissions.csv.gz", parse_dates=["admittime"])
    late = tables.groupby("subject_id")["admittime"].apply(lambda times: not times.is_monotonic_increasing)
    assert set(late.index[late].astype(str)) == set(turned["patient_id"])


def test_mimic_layouts_that_are_not(tmp_path):
    with pytest.raises(ValueError, match="layout: '2.0' found, one of 1.0, 2.2, 3.1 expected"):
        releases.mimic(tmp_path, layout="2.0")


# ---- MIMIC at the size of the release ------------------------------------------------------------------------------


@pytest.mark.slow
def test_mimic_tables_count_as_the_release(tmp_path):
    truth = releases.mimic_tables(tmp_path, releases.V22_FIRST_ADMISSION)
    assert sorted(in_files(tmp_path)) == [
        "hosp/admissions.csv",
        "hosp/patients.csv",
        "mimic-cxr-2.0.0-chexpert.csv",
        "mimic-cxr-2.0.0-metadata.csv",
        "mimic-cxr-2.0.0-split.csv",
    ]
    text = {"dtype": "str", "keep_default_na": False}
    images = pd.read_csv(tmp_path / "mimic-cxr-2.0.0-metadata.csv", **text)
    labels = pd.read_csv(tmp_path / "mimic-cxr-2.0.0-chexpert.csv", **text)
    splits = pd.read_csv(tmp_path / "mimic-cxr-2.0.0-split.csv", **text)
    patients = pd.read_csv(tmp_path / "hosp" / "patients.csv", **text).set_index("subject_id")
    admissions = pd.read_csv(tmp_path / "hosp" / "admissions.csv", **text)
    assert tuple(images.columns) == releases.METADATA_COLUMNS
    assert tuple(admissions.columns) == releases.ADMISSIONS_COLUMNS["2.2"]

    assert len(images) == images["dicom_id"].nunique() == 377_110
    assert images["subject_id"].nunique() == 65_379 and images["study_id"].nunique() == 227_835
    assert images.groupby("study_id")["subject_id"].nunique().max() == 1
    assert images["ViewPosition"].value_counts().to_dict() == releases.MIMIC_VIEWS
    assert images.groupby("subject_id").size().nunique() > 20

    first = admissions.sort_values("admittime").groupby("subject_id")["race"].first()
    found = images["subject_id"].map(first)
    counts = {value: int(number) for value, number in found.value_counts().items()}
    counts[None] = int(found.isna().sum())
    assert counts == releases.V22_FIRST_ADMISSION and len(counts) == 34 and sum(counts.values()) == 377_110
    assert (~images["subject_id"].isin(patients.index)).sum() == 19_568
    # The file's own order would count otherwise, and so would an exact match of every record.
    in_file = images["subject_id"].map(admissions.groupby("subject_id")["race"].first())
    assert (in_file.fillna("") != found.fillna("")).sum() > 1_000
    assert admissions.groupby("subject_id")["race"].nunique().gt(1).sum() > 1_000

    assert labels["study_id"].is_unique and len(labels) == 227_827
    assert set(labels["No Finding"]) == {"", "1.0"} and set(labels["Edema"]) == {"", "1.0", "0.0", "-1.0"}
    assert splits["dicom_id"].equals(images["dicom_id"]) and set(splits["split"]) == {"train", "validate", "test"}
    assert splits.groupby("subject_id")["split"].nunique().max() == 1

    drawn = truth.images
    assert drawn["image_id"].tolist() == images["dicom_id"].tolist()
    assert drawn["view"].tolist() == images["ViewPosition"].tolist()
    assert drawn["split"].tolist() == splits["split"].tolist()
    assert drawn["sex"].tolist() == images["subject_id"].map(patients["gender"]).fillna("").tolist()
    year = images["StudyDate"].astype(int) // 10_000
    anchored = images["subject_id"].map((patients["anchor_age"].astype(int) - patients["anchor_year"].astype(int)))
    np.testing.assert_array_equal(drawn["age"], (anchored + year).astype(float))
    by_time = admissions.sort_values("admittime").groupby("subject_id")["race"].agg(tuple).to_dict()
    assert drawn["race_records"].tolist() == [by_time.get(patient, ()) for patient in images["subject_id"]]
    edema = images["study_id"].map(labels.set_index("study_id")["Edema"]).replace("", np.nan).astype(float)
    np.testing.assert_array_equal(drawn["finding_Edema"], edema)
    assert drawn["labelled"].tolist() == images["study_id"].isin(labels["study_id"]).tolist()


@pytest.mark.slow
def test_mimic_tables_take_other_counts(tmp_path):
    counts = {"WHITE": 300_000, "ASIAN": 57_000, "OTHER": 1, None: 20_109}
    truth = releases.mimic_tables(tmp_path, counts, gz=True, seed=1)
    assert truth.images["race_records"].map(lambda r: r[0] if r else "").value_counts().to_dict() == {
        "WHITE": 300_000, "ASIAN": 57_000, "OTHER": 1, "": 20_109,
    }  # fmt: skip
    assert (tmp_path / "hosp" / "admissions.csv.gz").is_file()


def test_mimic_tables_of_another_size(tmp_path):
    counts = {**releases.V22_FIRST_ADMISSION, "OTHER": 11_722}
    with pytest.raises(ValueError, match="race_counts: 377,111 images in all, 377,110 expected"):
        releases.mimic_tables(tmp_path, counts)
    counts.update({"OTHER": 11_721, "WHITE": 203_169 + 46_663 - 19_568, None: 19_568})
    with pytest.raises(ValueError, match="an image of each value and 19,569 of None expected"):
        releases.mimic_tables(tmp_path, counts)
    assert not list(tmp_path.iterdir())


# ---- CheXpert ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("small", [True, False])
def test_chexpert_says_what_was_drawn(small, tmp_path):
    truth = releases.chexpert(tmp_path, small=small, picture=(16, 20))
    version = "CheXpert-v1.0-small" if small else "CheXpert-v1.0"
    found = {split: read(tmp_path / version / f"{split}.csv") for split in ("train", "valid")}
    assert header(tmp_path / version / "train.csv") == (
        "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,"
        "Lung Lesion,Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,"
        "Support Devices"
    )
    sheet = openpyxl.load_workbook(tmp_path / "CHEXPERT DEMO.xlsx").active
    first, *others = sheet.iter_rows(values_only=True)
    assert first == ("PATIENT", "GENDER", "AGE_AT_CXR", "PRIMARY_RACE", "ETHNICITY")
    demo = {row[0]: row[1:] for row in others}
    assert len(demo) == len(others) and demo.keys() - set(truth.images["patient_id"])

    rows = [(split, row) for split in found for row in found[split]]
    for (split, row), (_, drawn) in zip(rows, truth.images.iterrows(), strict=True):
        assert row["Path"] == drawn["path"] == f"{version}/{drawn['image_id']}"
        assert re.fullmatch(split + r"/patient\d{5}/study\d/view\d_(frontal|lateral)\.jpg", drawn["image_id"])
        assert row["Path"].split("/")[2:4] == drawn["study_id"].split("/") and split == drawn["split"]
        assert row["Sex"] == {"F": "Female", "M": "Male", "": "Unknown"}[drawn["sex"]]
        assert (float(row["Age"]), row["AP/PA"]) == (drawn["age"], drawn["view"])
        assert (row["AP/PA"] == "") == (row["Frontal/Lateral"] == "Lateral")
        assert row["Frontal/Lateral"].lower() in row["Path"]
        assert {name: row[name] for name in releases.CHEXPERT_FINDINGS} == labels_of(drawn)
        gender, _, race, ethnicity = demo.get(drawn["patient_id"], (row["Sex"], 0, None, None))
        assert gender == row["Sex"] and (ethnicity or "") == drawn["ethnicity"]
        assert drawn["race_records"] == ((race or "",) if drawn["patient_id"] in demo else ())
    assert {row[name] for row in found["valid"] for name in releases.CHEXPERT_FINDINGS} == {"0.0", "1.0"}
    assert {row[name] for row in found["train"] for name in releases.CHEXPERT_FINDINGS} == {"", "0.0", "1.0", "-1.0"}
    assert set(truth.images["view"]) == {"AP", "PA", "LL", "RL", ""}
    assert len(releases.CHEXPERT_RACES) == 23
    assert {r for records in truth.images["race_records"] for r in records} == {*releases.CHEXPERT_RACES, ""}
    assert set(truth.images["ethnicity"]) == set(releases.CHEXPERT_ETHNICITIES)


def test_chexpert_quirks(tmp_path):
    truth = releases.chexpert(tmp_path, picture=(16, 20))
    assert (truth.having("age 0")["age"] == 0).all() and (truth.having("age 90")["age"] == 90).all()
    assert truth.having("sex unknown")["sex_written"].unique().tolist() == ["Unknown"]
    assert (truth.having("RL")["projection"] == "Frontal").all()
    assert truth.having("White and Hispanic")["ethnicity"].unique().tolist() == ["Hispanic/Latino"]
    assert set(truth.having("Hispanic in race alone")["race_records"]) == {("White, Hispanic",)}
    # Some patients of each of the three large groups meet the common rule.
    kept = truth.images[truth.images["ethnicity"].isin(("Non-Hispanic/Non-Latino", "Not Hispanic"))]
    for group in ("White", "Black", "Asian"):
        assert kept["race_records"].map(lambda records, g=group: g in "".join(records)).any()


def test_chexpert_without_a_workbook(tmp_path):
    truth = releases.chexpert(tmp_path, demo=False, picture=(16, 20))
    assert not (tmp_path / "CHEXPERT DEMO.xlsx").exists()
    assert set(truth.images["race_records"]) == {()} and set(truth.images["ethnicity"]) == {""}


# ---- PadChest ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gz", [True, False])
def test_padchest_says_what_was_drawn(gz, tmp_path):
    truth = releases.padchest(tmp_path, gz=gz, picture=(24, 16))
    path = tmp_path / ("PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv" + ".gz" * gz)
    assert header(path).startswith(",ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,PatientBirth,PatientSex_DICOM,")
    assert len(header(path).split(",")) == 36 and header(path).endswith(",Labels,Localizations,"
        "LabelsLocalizationsBySentence,labelCUIS,LocalizationsCUIS")  # fmt: skip
    for i, (row, (_, drawn)) in enumerate(zip(read(path), truth.images.iterrows(), strict=True)):
        assert row[""] == str(i)
        assert (row["ImageID"], row["StudyID"], row["PatientID"]) == tuple(
            drawn[["image_id", "study_id", "patient_id"]]
        )
        assert row["ImageID"].startswith(row["StudyID"]) and drawn["path"] == f"{row['ImageDir']}/{row['ImageID']}"
        assert drawn["sex"] == {"F": "F", "M": "M", "O": "", "nan": ""}[row["PatientSex_DICOM"]]
        if row["PatientBirth"]:
            assert drawn["age"] == int(row["StudyDate_DICOM"][:4]) - float(row["PatientBirth"]) >= 0
        else:
            assert np.isnan(drawn["age"])
        assert row["Projection"] == drawn["view"] and row["MethodLabel"] == drawn["method"]
        assert (int(row["Rows_DICOM"]), int(row["Columns_DICOM"])) == (drawn["rows"], drawn["columns"])
        if row["Labels"] == "nan":
            assert not drawn["labelled"] and row["labelCUIS"] == "" and row["Localizations"] == "nan"
            assert truth.images.filter(like="finding_").loc[drawn.name].isna().all()
        else:
            labels = {label.strip() for label in ast.literal_eval(row["Labels"])} - {""}
            assert labels == set(drawn["labels"])
            assert labels == {name for name in releases.PADCHEST_LABELS if drawn[f"finding_{name}"] == 1}
            assert set(truth.images.filter(like="finding_").loc[drawn.name]) <= {0, 1}
            assert row["labelCUIS"].startswith("[") and isinstance(
                ast.literal_eval(row["LabelsLocalizationsBySentence"]), list
            )
    assert set(truth.images["view"]) == set(releases.PADCHEST_PROJECTIONS)
    assert "None" in set(truth.images["Exposure_DICOM"]) and "5.115000e+02" in set(truth.images["WindowCenter_DICOM"])


def test_padchest_quirks(tmp_path):
    truth = releases.padchest(tmp_path)
    assert set(truth.having("sex O")["sex_written"]) == {"O"} and set(truth.having("sex nan")["sex"]) == {""}
    assert set(truth.having("birth empty")["birth_written"]) == {""}
    assert truth.having("two sexes").groupby("patient_id")["sex"].nunique().tolist() == [2]
    shared = truth.having("study of two patients")
    assert shared["patient_id"].nunique() == 2 and shared["study_id"].nunique() == 1
    written = {quirk: set(truth.having(quirk)["labels_written"]) for quirk in QUIRKS["padchest"]}
    assert written["labels nan"] == {"nan"} and written["labels empty"] == {"['']"}
    assert written["empty label"] == {"['cardiomegaly', '', 'unchanged']"}
    assert written["space before label"] == {"['cardiomegaly', ' pacemaker']"}
    top = {
        quirk: max(truth.pictures[i].max() for i in truth.having(quirk)["image_id"]) for quirk in ("12 bit", "10 bit")
    }
    assert 2_048 < top["12 bit"] < 4_096 and 512 < top["10 bit"] < 1_024
    assert max(picture.max() for picture in truth.pictures.values()) > 60_000
    assert (truth.images["age"] < 18).any()


# ---- NIH -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gz", [True, False])
def test_nih_says_what_was_drawn(gz, tmp_path):
    truth = releases.nih(tmp_path, gz=gz, picture=(16, 20))
    path = tmp_path / ("Data_Entry_2017_v2020.csv" + ".gz" * gz)
    data = gzip.decompress(path.read_bytes()) if gz else path.read_bytes()
    rows = list(csv.reader(io.StringIO(data.decode(), newline="")))[1:]
    lists = {s: (tmp_path / name).read_text().split() for s, name in releases.NIH_LISTS.items()}
    for cells, (_, drawn) in zip(rows, truth.images.iterrows(), strict=True):
        name, labels, visit, patient, age, sex, view, width, height, x, y = cells
        assert name == drawn["image_id"] and re.fullmatch(r"\d{8}_\d{3}\.png", name)
        assert (patient, sex, view) == (drawn["patient_id"], drawn["sex"], drawn["view"])
        assert int(name[:8]) == int(patient) and drawn["study_id"] == f"{patient}_{visit}"
        assert (float(age), int(visit)) == (drawn["age"], drawn["follow_up"])
        assert [int(width), int(height), float(x), float(y)] == drawn[
            ["original_width", "original_height", "spacing_x", "spacing_y"]
        ].tolist()
        assert set(labels.split("|")) == {f for f in releases.NIH_FINDINGS if drawn[f"finding_{f}"] == 1}
        assert [split for split in lists if name in lists[split]] == [drawn["split"]]
        assert re.fullmatch(rf"images_0(0[1-9]|1[0-2])/images/{name}", drawn["path"])
    assert len({path.split("/")[0] for path in truth.images["path"]}) == 12
    assert truth.images.groupby("patient_id")["split"].nunique().max() == 1
    assert not truth.having("first image is not 000")["image_id"].str.endswith("_000.png").any()
    assert truth.having("infant")["age"].tolist() == [0]


def test_nih_without_lists(tmp_path):
    truth = releases.nih(tmp_path, lists=False, picture=(16, 20))
    assert not list(tmp_path.glob("*.txt")) and set(truth.images["split"]) == {""}


def test_nih_header_is_that_of_the_real_table(nih_sample, tmp_path):
    releases.nih(tmp_path, picture=(16, 20))
    ours, theirs = (header(folder / "Data_Entry_2017_v2020.csv") for folder in (tmp_path, nih_sample))
    assert ours == theirs.rstrip("\r")
