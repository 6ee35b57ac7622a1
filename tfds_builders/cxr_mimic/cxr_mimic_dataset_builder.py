"""TFDS builder of MIMIC-CXR-JPG with MIMIC-IV: whose X-ray it is comes from the one, what is known of them from the other.

See README.md.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator

import numpy as np
import pandas as pd
import tensorflow_datasets as tfds
from etils import epath

from cxr_jax.data.race_rules import PUBLISHED_V22
from cxr_jax.tables import UserError
from tfds_builders import release, released

FINDINGS = release.CHEXPERT_FINDINGS
SPLITS = ("train", "validate", "test")
METADATA = "mimic-cxr-2.0.0-metadata.csv"
LABELS = "mimic-cxr-2.0.0-chexpert.csv"
OFFICIAL = "mimic-cxr-2.0.0-split.csv"

# A metadata table of this many rows that counts otherwise has been altered.
PUBLISHED = {"images": 377_110, "patients": 65_379}
VIEWS = (  # all that the release's images have
    "AP", "PA", "LATERAL", "LL", "", "PA LLD", "PA RLD", "AP LLD", "AP RLD", "AP AXIAL", "LAO", "RAO", "LPO",
    "XTABLE LATERAL", "SWIMMERS",
)  # fmt: skip
# A few studies have images and no labels, so that the metadata names some more than the label table has.
PUBLISHED_ROWS = {METADATA: 377_110, LABELS: 227_827, OFFICIAL: 377_110}

# MIMIC-IV's folder and column of race: v1.0, and v2.x with v3.x.
LAYOUTS = {"core": "ethnicity", "hosp": "race"}

_ID = r"[A-Za-z0-9_.-]+"
_WHAT = f"MIMIC-CXR-JPG ({METADATA}.gz beside files/) with MIMIC-IV (hosp/ or core/) in it; both: PhysioNet, credentialed"


def read_release(config: released.ReleaseConfig) -> released.Release:
    """Reads both releases' tables and joins them. Raises UserError naming what is missing or wrong, and where.

    Every image of the metadata table is a record. Joins are from the left: a patient without an admission has no race,
    one without a row in MIMIC-IV's patients has neither sex nor age, and a study without labels has no findings; each
    is counted in the statements.
    """
    top = release.folder(config.raw_dir, _WHAT)
    root = _holding(top, [METADATA, METADATA + ".gz"], "config.dataset.raw_dir", _WHAT)
    iv = release.folder(config.mimic_iv_dir, "MIMIC-IV", "config.dataset.mimic_iv_dir") if config.mimic_iv_dir else top
    tables = [f"{folder}/admissions.csv{end}" for folder in LAYOUTS for end in ("", ".gz")]
    iv_root = _holding(iv, tables, "config.dataset.mimic_iv_dir", "MIMIC-IV, with hosp/admissions.csv.gz (v1.0: core/) in it")
    folder, *other = [folder for folder in LAYOUTS if release.optional_path(iv_root / folder, "admissions.csv")]
    if other:
        raise UserError(f"{iv_root}: core/ and hosp/ both hold admissions.csv, of two versions of MIMIC-IV; keep one")

    metadata_path = release.table_path(root, METADATA)
    records = _images(metadata_path)
    labels_path = release.table_path(root, LABELS)
    labels = _labels(labels_path)
    records = records.join(labels, on="study_id")
    records["labelled"] = records["labelled"].fillna(0).astype("int32")
    documents = [metadata_path, labels_path]
    rows = {metadata_path.name: len(records), labels_path.name: len(labels)}
    statements = []
    split_path = release.optional_path(root, OFFICIAL)
    if split_path:
        documents.append(split_path)
        records["released_split"], rows[split_path.name] = _released_splits(records, split_path)
        release.refuse_shared_patients(records, split_path, metadata_path.name)
    else:
        records["released_split"] = ""
        rows[OFFICIAL] = 0
        statements.append(f"{OFFICIAL} is missing: no official split; all images are in split {released.WHOLE!r}")

    patients_path = release.table_path(iv_root / folder, "patients.csv")
    admissions_path = release.table_path(iv_root / folder, "admissions.csv")
    documents += [patients_path, admissions_path]
    records = _with_patients(records, patients_path)
    recorded = _races(admissions_path, LAYOUTS[folder])
    records["race"] = records["patient_id"].map(recorded).fillna("").astype("str")

    kind = ".dcm" if config.pictures == "dicom" else ".jpg"
    patient = "p" + records["patient_id"]
    parts = ("files/" + patient.str[:3], patient, "s" + records["study_id"], records["image_id"] + kind)
    records["path"] = parts[0].str.cat(parts[1:], sep="/")
    records["size"] = release.sizes(root, records["path"], top)

    whole = len(records) == PUBLISHED["images"]
    if not whole:
        statements.append(f"{metadata_path.name}: {len(records):,} of {PUBLISHED['images']:,} rows")
    for what, lacking in (
        ("of patients without a row in patients.csv, so without sex and age", records["age"].isna()),
        ("of patients without an admission, so without race", records["race"] == ""),
        ("of studies without labels", records["labelled"] == 0),
    ):
        if lacking.any():
            statements.append(f"images {what}: {int(lacking.sum()):,}")
    statements += released.missing_pictures(records)

    counts = released.rows(rows, PUBLISHED_ROWS, whole, root)
    counts += released.held_against(released.count(records, FINDINGS), PUBLISHED, whole, metadata_path)
    first = records["race"].str.partition(release.BETWEEN)[0].value_counts()
    first_counts = [
        {
            "count": f"first admission {value or 'missing'}",
            "expected": PUBLISHED_V22.get(value) if whole and folder == "hosp" else None,
            "found": int(first.get(value, 0)),
            "of": "MIMIC-IV v2.2",
        }
        for value in dict.fromkeys([*(PUBLISHED_V22 if folder == "hosp" else ()), *first.index])
    ]
    statements += [
        f"{c['count']}: {c['found']:,} images; published of {c['of']}: {c['expected']:,}"
        for c in first_counts
        if c["expected"] not in (None, c["found"])
    ]
    return released.Release(root, tuple(documents), records, counts + first_counts, statements, whole)


def _holding(top: epath.Path, names: list[str], field: str, what: str) -> epath.Path:
    """The one folder, `top` or at most four below it, that holds any of the files `names`. Raises UserError."""
    found = [folder for folder in _folders(top, 4) if any((folder / name).is_file() for name in names)]
    if not found:
        raise UserError(f"{top}: {names[-1]} is not in it, nor up to four folders below; {field} names the folder of {what}")
    if len(found) > 1:
        raise UserError(f"{top}: {found[0]} and {found[1]} both hold such a table; name one of them in {field}")
    return found[0]


def _folders(top: epath.Path, deep: int) -> Iterator[epath.Path]:
    yield top
    if deep:
        for path in sorted(top.iterdir()):
            # Pictures lie in sixty thousand folders, and no table among them. (A folder `files` may also be PhysioNet's.)
            if not re.fullmatch(r"p1\d|\..*", path.name) and path.is_dir():
                yield from _folders(path, deep - 1)


def _images(path: epath.Path) -> pd.DataFrame:
    columns = {
        "dicom_id": "image_id",
        "subject_id": "patient_id",
        "study_id": "study_id",
        "ViewPosition": "view",
        "StudyDate": "study_date",
        "StudyTime": "study_time",
        "Rows": "original_height",
        "Columns": "original_width",
        "PerformedProcedureStepDescription": "procedure",
        "ProcedureCodeSequence_CodeMeaning": "procedure_code",
        "ViewCodeSequence_CodeMeaning": "view_code",
        "PatientOrientationCodeSequence_CodeMeaning": "orientation",
    }
    table = release.read_table(path, list(columns))
    release.refuse(~table["dicom_id"].str.fullmatch(_ID), table["dicom_id"], path, "an image's identifier")
    release.refuse_duplicates(table["dicom_id"], path)
    for name in ("subject_id", "study_id"):
        release.refuse(~table[name].str.fullmatch(r"\d{8}"), table[name], path, "a number of eight digits")
    study, patient = (pd.factorize(table[name])[0] for name in ("study_id", "subject_id"))
    other = patient != pd.Series(patient).groupby(study).transform("first").to_numpy()
    release.refuse(pd.Series(other, table.index), table["study_id"], path, "a study of one patient")
    date = table["StudyDate"].str.removesuffix(".0")
    days = {day: _is_day(day) for day in date.unique()}
    release.refuse(~date.map(days).astype(bool), table["StudyDate"], path, "a date such as 21800506")
    table["StudyDate"] = date.astype("int32")
    # Whole seconds are exact in the 32 bits that TFDS stores of any real number; the release's thousandths are not.
    table["StudyTime"] = np.floor(release.optional_numbers(table["StudyTime"], path))
    view = table["ViewPosition"]
    release.refuse(~view.isin(VIEWS), view, path, f"one of {', '.join(filter(None, VIEWS))}, or an empty cell")
    for name in ("Rows", "Columns"):
        table[name] = release.numbers(table[name].str.removesuffix(".0"), path, whole=True, least=1)
    records = table.rename(columns=columns)
    portable = records["procedure"].str.contains("PORT", case=False)
    records["portable"] = pd.Series(np.where(portable, "yes", "no"), records.index, dtype="str").where(
        records["procedure"] != "", ""
    )
    return records


def _is_day(text: str) -> bool:
    """Whether it is eight digits that name a day of the calendar."""
    try:
        return bool(re.fullmatch(r"\d{8}", text)) and bool(datetime.date(int(text[:4]), int(text[4:6]), int(text[6:])))
    except ValueError:
        return False


def _labels(path: epath.Path) -> pd.DataFrame:
    """`finding_NAME`, indexed by study, and `labelled`, which is 1."""
    table = release.read_table(path, ["study_id", *FINDINGS])
    release.refuse_duplicates(table["study_id"], path, "each study once")
    found = released.findings(table, FINDINGS, path).assign(labelled=np.int32(1))
    found.index = pd.Index(table["study_id"], name="study_id")
    return found


def _released_splits(records: pd.DataFrame, path: epath.Path) -> tuple[pd.Series, int]:
    """The split of each record, and how many images the table lists."""
    table = release.read_table(path, ["dicom_id", "split"])
    release.refuse_duplicates(table["dicom_id"], path)
    release.refuse(~table["split"].isin(SPLITS), table["split"], path, f"one of {', '.join(SPLITS)}")
    split = records["image_id"].map(pd.Series(table["split"].to_numpy(), table["dicom_id"].to_numpy()))
    if split.isna().any():
        absent = records.loc[split.isna(), "image_id"]
        raise UserError(f"{path}: image {absent.iloc[0]!r} of the metadata is not in it ({len(absent):,} such)")
    return split.astype("str"), len(table)


def _with_patients(records: pd.DataFrame, path: epath.Path) -> pd.DataFrame:
    """`sex` and `age`: age at the study, the age in a patient's anchor year and the years from then to the study.

    Years of both are shifted alike for a patient (MIMIC-IV, patients), so that their difference is right to a year. Ages
    above 89 are recorded as 91.
    """
    table = release.read_table(path, ["subject_id", "gender", "anchor_age", "anchor_year"])
    release.refuse_duplicates(table["subject_id"], path, "each patient once")
    release.refuse(~table["gender"].isin(("F", "M", "")), table["gender"], path, "F, M or an empty cell")
    known = pd.DataFrame(
        {
            "sex": table["gender"].to_numpy(),
            "born": (
                release.numbers(table["anchor_year"], path, whole=True)
                - release.numbers(table["anchor_age"], path, whole=True)
            ).to_numpy(np.float64),
        },
        index=table["subject_id"].to_numpy(),
    )
    joined = records.join(known, on="patient_id")
    joined["sex"] = joined["sex"].fillna("").astype("str")
    joined["age"] = joined["study_date"] // 10_000 - joined.pop("born")
    return joined


def _races(path: epath.Path, column: str) -> pd.Series:
    """By patient, the values of race that admissions record, each once, in the order in which they were recorded."""
    table = release.read_table(path, ["subject_id", "admittime", column])
    time = table["admittime"]
    release.refuse(~time.str.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"), time, path, "a time such as 2180-05-06 22:23:00")
    # Times are written so that their order as text is their order in time.
    ordered = table.sort_values(["subject_id", "admittime"], kind="stable")
    return release.each_once(ordered["subject_id"], ordered[column], path)


class Builder(released.Builder):
    """MIMIC-CXR-JPG with MIMIC-IV. See README.md, beside this file."""

    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES = {"1.0.0": "First release.", "1.1.0": "Time of the study, and the code of the procedure."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    Download MIMIC-CXR-JPG 2.x and, of MIMIC-IV, patients.csv.gz and admissions.csv.gz (both credentialed, PhysioNet)
    into manual_dir, as they are: mimic-cxr-2.0.0-metadata.csv.gz, -chexpert.csv.gz and -split.csv.gz beside files/, and
    hosp/ (of v1.0: core/).
    """

    FINDINGS = FINDINGS
    HOMEPAGE = "https://physionet.org/content/mimic-cxr-jpg/"
    EXTRA = {
        "study_date": tfds.features.Scalar(np.int32),
        "study_time": tfds.features.Scalar(np.float32),
        "original_width": tfds.features.Scalar(np.int32),
        "original_height": tfds.features.Scalar(np.int32),
        "portable": tfds.features.Text(),
        "procedure": tfds.features.Text(),
        "procedure_code": tfds.features.Text(),
        "view_code": tfds.features.Text(),
        "orientation": tfds.features.Text(),
        "labelled": tfds.features.Scalar(np.int32),
    }
    read_release = staticmethod(read_release)
