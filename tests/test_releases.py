"""That the releases which tests draw are still in the real ones' form: files, columns, words, and each quirk.

What is drawn is held against docs/cohorts.md, written out here, and where the real table is at hand against that one. That
the files say what `Truth` does is for the builders' own tests to notice, which hold what they read against it.
"""

import csv
import gzip
import importlib.util
import io
import pathlib
import re

import numpy as np
import openpyxl
import pandas as pd
import pytest
from PIL import Image

from tests import releases

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
    "brax": {"sex O", "85 or more", "age empty", "two bins", "no view", "RLO", "AP LLD"},
}  # fmt: skip
LEAST = {"mimic": 17, "chexpert": 14, "padchest": 12, "nih": 10, "brax": 8}
SMALL = (16, 12)


def draw(name, folder, **options) -> releases.Truth:
    return getattr(releases, name)(folder, **{"picture": SMALL, **options})


def table(path) -> pd.DataFrame:
    """A CSV as text, packed or not, its header untouched."""
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("ascii")
    assert "\r" not in text and text.endswith("\n")
    return pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False, index_col=False)


def header(path) -> str:
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", newline="") as lines:
        return next(lines).rstrip("\r\n")


def in_files(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- all of them ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", QUIRKS)
def test_every_quirk_is_there_for_every_seed(name, tmp_path):
    for seed in range(4):
        truth = draw(name, tmp_path / str(seed), seed=seed, faults=True)
        assert {quirk for quirks in truth.images["quirks"] for quirk in quirks} == QUIRKS[name]
        # A fault takes no quirk away, and leaves nearly all pictures whole.
        assert sorted(truth.images["fault"][truth.images["fault"] != ""]) == sorted(releases.FAULTS)
        assert not truth.images["quirks"][truth.images["fault"] != ""].map(len).any()
        few = draw(name, tmp_path / "few" / str(seed), seed=seed, patients=LEAST[name])
        assert few.images["patient_id"].nunique() == LEAST[name]
    again = draw(name, tmp_path / "again", seed=3, faults=True)
    files, same = in_files(truth.folder), in_files(again.folder)
    for each in (files, same):
        each.pop(releases.CHEXPERT_DEMO, None)  # a workbook notes the time of writing
    assert files == same
    pd.testing.assert_frame_equal(truth.images, again.images)
    with pytest.raises(ValueError, match=f"patients: {LEAST[name] - 1} found, at least {LEAST[name]} expected"):
        draw(name, tmp_path, patients=LEAST[name] - 1)
    with pytest.raises(ValueError, match="no image has the quirk 'none'; there are "):
        truth.having("none")


@pytest.mark.parametrize("name", QUIRKS)
def test_pictures_are_those_drawn_or_spoilt(name, tmp_path):
    truth = draw(name, tmp_path, faults=True, picture=(96, 80))
    assert truth.images["image_id"].is_unique and truth.images["path"].is_unique
    for row in truth.images.itertuples():
        path, drawn = tmp_path / row.path, truth.pictures[row.image_id]
        if row.fault == "missing":
            assert not path.exists()
        elif row.fault == "empty":
            assert path.read_bytes() == b""
        elif row.fault == "not an image":
            with pytest.raises(Image.UnidentifiedImageError):
                Image.open(path)
        else:
            with Image.open(path) as picture:
                assert (picture.mode, picture.size) == (row.mode, (row.columns, row.rows)) == (row.mode, drawn.shape[::-1])
                assert picture.format == ("JPEG" if path.suffix == ".jpg" else "PNG")
                if row.fault == "truncated":
                    with pytest.raises(OSError, match="truncated"):
                        picture.load()
                    continue
                pixels = np.asarray(picture).reshape(row.rows, row.columns, -1)
            assert pixels.dtype == drawn.dtype and (pixels[..., :3] == pixels[..., :1]).all()
            assert np.abs(pixels[..., 0].astype(int) - drawn).max() <= (4 if path.suffix == ".jpg" else 0)
    modes = {"mimic": {"L", "RGB"}, "chexpert": {"L", "RGB"}, "padchest": {"I;16"}, "nih": {"L", "RGBA"}, "brax": {"L"}}
    assert modes[name] == set(truth.images["mode"])
    if name == "padchest":  # what a machine of so many bits can say, and in most pictures the whole range
        top = {q: max(truth.pictures[i].max() for i in truth.having(q)["image_id"]) for q in ("12 bit", "10 bit")}
        assert 2_048 < top["12 bit"] < 4_096 and 512 < top["10 bit"] < 1_024
        assert max(picture.max() for picture in truth.pictures.values()) > 60_000


# ---- MIMIC ---------------------------------------------------------------------------------------------------------

MIMIC_HEADERS = {
    "metadata": "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,StudyTime,"
    "ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,PatientOrientationCodeSequence_CodeMeaning",
    "chexpert": "subject_id,study_id,Atelectasis,Cardiomegaly,Consolidation,Edema,Enlarged Cardiomediastinum,Fracture,"
    "Lung Lesion,Lung Opacity,No Finding,Pleural Effusion,Pleural Other,Pneumonia,Pneumothorax,Support Devices",
    "split": "dicom_id,study_id,subject_id,split",
}
PATIENTS_HEADER = "subject_id,gender,anchor_age,anchor_year,anchor_year_group,dod"
ADMISSIONS_HEADER = (
    "subject_id,hadm_id,admittime,dischtime,deathtime,admission_type,{}admission_location,discharge_location,insurance,"
    "language,marital_status,{},edregtime,edouttime,hospital_expire_flag"
)


@pytest.mark.parametrize("layout, gz", [("1.0", False), ("2.2", True), ("3.1", False)])
def test_mimic_is_written_as_its_release(layout, gz, tmp_path):
    truth = draw("mimic", tmp_path, layout=layout, gz=gz, patients=60, iv_folder="mimiciv/x")
    iv = tmp_path / "mimiciv" / "x" / ("core" if layout == "1.0" else "hosp")
    ending = ".csv.gz" if gz else ".csv"
    paths = {name: tmp_path / f"mimic-cxr-2.0.0-{name}{ending}" for name in ("metadata", "chexpert", "negbio", "split")}
    paths |= {name: iv / f"{name}{ending}" for name in ("admissions", "patients")}
    assert {p for p in tmp_path.rglob("*.csv*")} == set(paths.values()) and truth.iv_folder == iv.parent
    race = ("", "ethnicity") if layout == "1.0" else ("admit_provider_id,", "race")
    for name, columns in {
        **MIMIC_HEADERS, "negbio": MIMIC_HEADERS["chexpert"], "patients": PATIENTS_HEADER,
        "admissions": ADMISSIONS_HEADER.format(*race),
    }.items():  # fmt: skip
        assert header(paths[name]) == columns
    metadata, labels, split, patients, admissions = (
        table(paths[name]) for name in ("metadata", "chexpert", "split", "patients", "admissions")
    )
    assert metadata["dicom_id"].str.fullmatch("[0-9a-f]{8}(-[0-9a-f]{8}){4}").all()
    assert metadata["subject_id"].str.fullmatch(r"1\d{7}").all() and metadata["study_id"].str.fullmatch(r"5\d{7}").all()
    assert metadata["StudyDate"].str.fullmatch(r"2[12]\d{6}").all() and metadata["StudyTime"].astype(float).between(0, 240_000).all()
    m = metadata
    assert list(truth.images["path"]) == list(
        "files/p" + m["subject_id"].str[:2] + "/p" + m["subject_id"] + "/s" + m["study_id"] + "/" + m["dicom_id"] + ".jpg"
    )
    assert {"AP", "PA", "LATERAL", "LL", ""} < set(m["ViewPosition"]) <= set(releases.MIMIC_VIEWS)
    assert m["PerformedProcedureStepDescription"].str.contains(",").any()  # hence quotes
    assert set(split["split"]) == {"train", "validate", "test"} and split.groupby("subject_id")["split"].nunique().max() == 1
    assert set(labels["No Finding"]) == {"", "1.0"} and set(labels["Edema"]) == {"", "1.0", "0.0", "-1.0"}
    assert not table(paths["negbio"]).equals(labels) and len(labels) < metadata["study_id"].nunique()
    assert set(patients["gender"]) == {"F", "M"} and patients["anchor_age"].str.fullmatch(r"\d\d").all()
    assert admissions["admittime"].str.fullmatch(r"2\d{3}-\d\d-\d\d \d\d:\d\d:\d\d").all() and admissions["hadm_id"].is_unique
    assert admissions["subject_id"].is_monotonic_increasing and not set(admissions["subject_id"]) <= set(m["subject_id"])
    assert admissions[race[1]].nunique() == (8 if layout == "1.0" else 33)  # values, as each version writes them


def test_mimic_quirks(tmp_path):
    truth = draw("mimic", tmp_path)
    records = {quirk: set(truth.having(quirk)["race_records"]) for quirk in QUIRKS["mimic"]}
    assert records["no admission"] == records["no patients row"] == {()}
    assert records["two groups"] == {("WHITE", "ASIAN"), ("BLACK/AFRICAN AMERICAN", "WHITE", "WHITE")}
    assert ("WHITE", "WHITE - RUSSIAN") in records["one group in other words"]
    assert ("WHITE", "HISPANIC/LATINO - PUERTO RICAN") in records["White and Hispanic"]
    assert (truth.having("no admission")["sex"] != "").all() and (truth.having("no patients row")["sex"] == "").all()
    assert (truth.having("top-coded")["anchor_age"] == 91).all()
    assert not truth.having("unlabelled")["labelled"].any() and truth.having("no mention")["labelled"].all()
    assert set(truth.having("rare view")["view"]) <= set(releases.RARE_VIEWS) and set(truth.having("no view")["view"]) == {""}
    # A builder that takes anchor_age for the age, or the file's first admission for the first in time, gets many wrong.
    assert (truth.images["age"] != truth.images["anchor_age"]).mean() > 0.6
    turned = truth.having("admissions out of order")
    assert (turned["first_in_file"] != turned["race_records"].str[0]).any()
    admissions = table(tmp_path / "hosp" / "admissions.csv.gz")
    late = admissions.groupby("subject_id")["admittime"].apply(lambda times: not times.is_monotonic_increasing)
    assert set(late.index[late]) == set(turned["patient_id"])


@pytest.mark.slow
def test_mimic_tables_count_as_the_release(tmp_path):
    releases.mimic_tables(tmp_path)
    cxr = {name: tmp_path / f"mimic-cxr-2.0.0-{name}.csv" for name in MIMIC_HEADERS}
    assert {name: header(path) for name, path in cxr.items()} == MIMIC_HEADERS
    assert header(tmp_path / "hosp" / "patients.csv") == PATIENTS_HEADER
    assert header(tmp_path / "hosp" / "admissions.csv") == ADMISSIONS_HEADER.format("admit_provider_id,", "race")
    images, labels, splits = (table(cxr[name]) for name in ("metadata", "chexpert", "split"))
    patients, admissions = (table(tmp_path / "hosp" / f"{name}.csv") for name in ("patients", "admissions"))

    assert len(images) == images["dicom_id"].nunique() == 377_110
    assert images["subject_id"].nunique() == 65_379 and images["study_id"].nunique() == 227_835
    assert images.groupby("study_id")["subject_id"].nunique().max() == 1
    assert images["ViewPosition"].value_counts().to_dict() == releases.MIMIC_VIEWS
    assert labels["study_id"].is_unique and len(labels) == 227_827
    assert set(labels["No Finding"]) == {"", "1.0"} and set(labels["Edema"]) == {"", "1.0", "0.0", "-1.0"}
    assert splits["dicom_id"].equals(images["dicom_id"]) and splits.groupby("subject_id")["split"].nunique().max() == 1
    assert (~images["subject_id"].isin(patients["subject_id"])).sum() == 19_568

    first = admissions.sort_values("admittime").groupby("subject_id")["race"].first()
    found = images["subject_id"].map(first)
    counts = found.value_counts().to_dict() | {None: int(found.isna().sum())}
    assert counts == releases.V22_FIRST_ADMISSION and sum(counts.values()) == 377_110
    # The file's own order would count otherwise, and so would an exact match of every record.
    in_file = images["subject_id"].map(admissions.groupby("subject_id")["race"].first())
    assert (in_file.fillna("") != found.fillna("")).sum() > 1_000
    assert admissions.groupby("subject_id")["race"].nunique().gt(1).sum() > 1_000


# ---- the others, and where they are at hand the real tables --------------------------------------------------------


@pytest.mark.parametrize("small", [True, False])
def test_chexpert_is_written_as_its_release(small, tmp_path):
    truth = draw("chexpert", tmp_path, small=small)
    version = "CheXpert-v1.0-small" if small else "CheXpert-v1.0"
    train, valid = (table(tmp_path / version / f"{split}.csv") for split in ("train", "valid"))
    for split, listed in (("train", train), ("valid", valid)):
        assert listed["Path"].str.fullmatch(rf"{version}/{split}/patient\d{{5}}/study\d/view\d_(frontal|lateral)\.jpg").all()
        assert ((listed["AP/PA"] == "") == (listed["Frontal/Lateral"] == "Lateral")).all()
    findings = list(releases.CHEXPERT_FINDINGS)
    assert set(valid[findings].to_numpy().flat) == {"0.0", "1.0"}
    assert set(train[findings].to_numpy().flat) == {"", "0.0", "1.0", "-1.0"}
    assert (truth.having("RL")["projection"] == "Frontal").all()
    first, *others = openpyxl.load_workbook(tmp_path / "CHEXPERT DEMO.xlsx").active.iter_rows(values_only=True)
    assert first == ("PATIENT", "GENDER", "AGE_AT_CXR", "PRIMARY_RACE", "ETHNICITY")
    patients, _, _, races, ethnicities = zip(*others)
    assert len(set(patients)) == len(patients) and set(patients) - set(truth.images["patient_id"])
    assert set(races) == {*releases.CHEXPERT_RACES, None} and len(set(races)) == 23 + 1
    assert {*ethnicities} == {e or None for e in releases.CHEXPERT_ETHNICITIES}
    # Some patients of each of the three large groups meet the common rule.
    kept = truth.images[truth.images["ethnicity"].isin(("Non-Hispanic/Non-Latino", "Not Hispanic"))]
    for group in ("White", "Black", "Asian"):
        assert kept["race_records"].map(lambda records, g=group: g in "".join(records)).any()
    without = draw("chexpert", tmp_path / "without", small=small, demo=False)
    assert not list(without.folder.glob("*.xlsx"))
    assert set(without.images["race_records"]) == {()} and set(without.images["ethnicity"]) == {""}


def test_padchest_is_written_as_its_release(tmp_path):
    truth = draw("padchest", tmp_path, gz=True)
    found = table(tmp_path / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz")
    assert list(found["ImageDir"] + "/" + found["ImageID"]) == list(truth.images["path"])
    written = {quirk: set(truth.having(quirk)["labels_written"]) for quirk in QUIRKS["padchest"]}
    assert written["labels nan"] == {"nan"} and written["labels empty"] == {"['']"}
    assert written["empty label"] == {"['cardiomegaly', '', 'unchanged']"}
    assert written["space before label"] == {"['cardiomegaly', ' pacemaker']"}
    assert truth.having("two sexes").groupby("patient_id")["sex"].nunique().tolist() == [2]
    shared = truth.having("study of two patients")
    assert shared["patient_id"].nunique() == 2 and shared["study_id"].nunique() == 1
    assert (truth.images["age"] < 18).any()


def test_nih_is_written_as_the_real_one(nih_sample, tmp_path):
    truth = draw("nih", tmp_path)
    path, real = tmp_path / "Data_Entry_2017_v2020.csv", nih_sample / "Data_Entry_2017_v2020.full.csv.gz"
    assert header(path) == header(real)
    with gzip.open(real, "rt", newline="") as lines:
        theirs = list(zip(*list(csv.reader(lines))[1:]))
    ours = list(zip(*list(csv.reader(io.StringIO(path.read_text())))[1:]))
    forms = (r"\d{8}_\d{3}\.png", r"[A-Za-z_ |]+", r"\d{1,3}", r"\d{1,5}", r"\d{1,3}", "F|M", "PA|AP", r"\d{3,4}", r"\d{3,4}", r"0\.\d+", r"0\.\d+")
    for form, one, other in zip(forms, ours, theirs, strict=True):
        assert all(re.fullmatch(form, cell) for cells in (one, set(other)) for cell in cells), form
    assert {name for cell in set(theirs[1]) for name in cell.split("|")} == set(releases.NIH_FINDINGS)
    lists = {split: (tmp_path / name).read_text().split() for split, name in releases.NIH_LISTS.items()}
    assert sorted(lists) == ["test", "train_val"] and sorted(sum(lists.values(), [])) == sorted(ours[0])
    assert {path.split("/")[0] for path in truth.images["path"]} == {f"images_{i:03d}" for i in range(1, 13)}
    assert set(draw("nih", tmp_path / "without", lists=False).images["split"]) == {""}
    assert not list((tmp_path / "without").glob("*.txt"))


def test_brax_is_written_as_its_release(tmp_path):
    truth = draw("brax", tmp_path)
    assert header(tmp_path / "master_spreadsheet_update.csv") == (
        "DicomPath,PngPath,PatientID,PatientSex,PatientAge,AccessionNumber,StudyDate,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,"
        "Lung Lesion,Lung Opacity,Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,"
        "Support Devices,ViewPosition,Rows,Columns,Manufacturer"
    )
    found = table(tmp_path / "master_spreadsheet_update.csv")
    assert list(found["PngPath"]) == list(truth.images["path"]) and {"F", "M", "O"} == set(found["PatientSex"])
    assert set(found["PatientAge"]) <= {"", "85 or more", *(str(edge) for edge in range(0, 85, 5))}
    assert set(truth.having("two bins")["age_written"]) == {"40", "45"}
    assert set(truth.having("85 or more")["age_written"]) == {"85 or more"} and truth.having("age empty")["age"].isna().all()
    assert set(found["Edema"]) == {"", "0.0", "1.0", "-1.0"}


@pytest.mark.peers
@pytest.mark.parametrize("name, free", [("chexpert", "Path"), ("padchest", "|ImageID|Study.*|PatientID|Report.*|Label.*|Local.*|label.*|Rows.*|Columns.*")])
def test_no_word_is_written_that_the_real_table_has_not(name, free, tmp_path):
    """Against the whole tables that torchxrayvision ships: the same header, and their cells, but for the `free` columns."""
    shipped = pathlib.Path(importlib.util.find_spec("torchxrayvision").origin).parent / "data"
    ours, theirs = {
        "chexpert": ("CheXpert-v1.0-small/train.csv", "chexpert_train.csv.gz"),
        "padchest": (releases.PADCHEST_TABLE, f"{releases.PADCHEST_TABLE}.gz"),
    }[name]
    draw(name, tmp_path)
    assert header(tmp_path / ours) == header(shipped / theirs)
    ours, theirs = table(tmp_path / ours), pd.read_csv(shipped / theirs, dtype=str, keep_default_na=False)
    for column in (column for column in ours if not re.fullmatch(f"{free}|Unnamed: 0", column)):
        assert set(ours[column]) <= set(theirs[column]), column
    if name == "padchest":
        for found in (ours, theirs):
            assert found["ImageID"].str.fullmatch(r"[\d_-]+_[a-z\d-]+\.png").mean() > 0.999
            assert {"nan", "['']"} <= set(found["Labels"])
            for slip in ("['\"], ''", "['\"], ' "):  # an empty label, and a space before one
                assert found["Labels"].str.contains(slip).any(), slip
        theirs_too = {label.strip() for cell in theirs["Labels"].unique() for label in re.findall("'([^']*)'", cell)}
        assert set(releases.PADCHEST_LABELS) <= theirs_too
