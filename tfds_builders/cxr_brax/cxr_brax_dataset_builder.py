"""TFDS builder of BRAX v1.1.0: its one table, PNG or DICOM, ages in bins of five years; see README.md."""

from __future__ import annotations

import numpy as np
import pandas as pd
import tensorflow_datasets as tfds
from etils import epath

from tfds_builders import release, released

FINDINGS = release.CHEXPERT_FINDINGS
TABLE = "master_spreadsheet_update.csv"
FOLDERS = {"released": "images", "dicom": "Anonymized_DICOMs"}  # which pictures -> where they lie

# A table of this many rows that counts otherwise has been altered.
PUBLISHED = {"images": 40_967, "studies": 24_959}

BIN = 5  # years
OLDEST = "85 or more"
_LATERALS = ("L", "LL", "RL")  # `view_position` keeps the side
_WHAT = f"BRAX v1.1.0, with {TABLE} and {FOLDERS['released']}/ in it (PhysioNet, credentialed)"


def read_release(config: released.ReleaseConfig) -> released.Release:
    """Reads and checks the table. Raises UserError naming what is missing or wrong, and where."""
    root = release.folder(config.raw_dir, _WHAT)
    path = release.table_path(root, TABLE)
    records = read_table(path)
    dicom = records.pop("dicom_path")
    records["path"] = dicom if config.pictures == "dicom" else f"{FOLDERS['released']}/" + records["image_id"]
    records["size"] = release.sizes(root, records["path"])
    records["released_split"] = ""

    ages = f"ages are of bins of {BIN} years, stored as the middle of each; images of {OLDEST} years, stored as 85: {int((records['age'] == 85).sum()):,}"
    return released.of_one_table(root, path, records, TABLE, PUBLISHED, FINDINGS, [ages])


def read_table(path: epath.Path) -> pd.DataFrame:
    """The records, but for path, size and released_split, with `dicom_path`. Raises UserError naming file, line and column.

    An image_id is its PngPath below images/, whichever pictures are read. Age: see `years`.
    """
    columns = ("PngPath", "DicomPath", "PatientID", "PatientSex", "PatientAge", "AccessionNumber", "StudyDate", "ViewPosition", "Rows", "Columns", "Manufacturer")
    table = release.read_table(path, [*columns, *FINDINGS])
    # A path may not lead anywhere else.
    for column, pattern, example in (
        ("PngPath", rf"{FOLDERS['released']}(?:/[A-Za-z0-9_-][A-Za-z0-9_.-]*)+\.png", "images/id_1/Study_1/Series_1/image-1.png"),
        ("DicomPath", rf"{FOLDERS['dicom']}(?:/[A-Za-z0-9_-][A-Za-z0-9_.-]*)+", "Anonymized_DICOMs/id_1/Study_1/Series_1/image-1.dcm"),
    ):
        release.refuse(~table[column].str.fullmatch(pattern), table[column], path, f"a path such as {example}")
        release.refuse_duplicates(table[column], path)
    for column in ("PatientID", "AccessionNumber"):
        release.refuse(~table[column].str.fullmatch(r"[A-Za-z0-9_.-]+"), table[column], path, "an identifier")
    sex, view = table["PatientSex"], table["ViewPosition"]
    release.refuse(~sex.isin(("F", "M", "O", "")), sex, path, "F, M, O or an empty cell")
    release.refuse(~view.str.fullmatch(r"(?:[A-Z][A-Z -]*)?"), view, path, "a view such as PA, AP or L, or an empty cell")
    records = pd.DataFrame(
        {
            "image_id": table["PngPath"].str.removeprefix(f"{FOLDERS['released']}/"),
            "patient_id": table["PatientID"],
            "study_id": table["AccessionNumber"],
            "race": "",
            "sex": sex.mask(sex == "O", ""),
            "age": years(table["PatientAge"], path),
            "view": view.mask(view.isin(_LATERALS), "LATERAL"),
            "dicom_path": table["DicomPath"],
            "age_bin": table["PatientAge"],
            "view_position": view,
            "study_date": table["StudyDate"],
            "manufacturer": table["Manufacturer"],
            "original_height": release.optional_numbers(table["Rows"], path),
            "original_width": release.optional_numbers(table["Columns"], path),
        }
    )
    return pd.concat([records, released.findings(table, FINDINGS, path)], axis=1)


def years(column: pd.Series, path) -> pd.Series:
    """PatientAge as one number, float64: the middle of a bin, lower edge + 2; 85 for 85 or more; NaN for an empty cell.

    A bin is of five ages in whole years, 70 to 74, of which 72 is the middle one and the mean where they are equally many.
    It lies in the same age band as all of them, whatever multiples of five the bands begin with. The last bin has no upper
    edge: 85 is the least that its people are.

    A bin is written as its lower edge (70, or 70.0), or as both ages (70-74, 70 to 74). Raises UserError for anything else.
    """
    parts = column.str.extract(r"^(\d{1,2})(?:\.0)?(?:\s*(?:-|to)\s*(\d{1,2}))?$")
    low, high = (parts[i].astype("float64") for i in (0, 1))
    oldest = (column == OLDEST) | ((low == 85) & high.isna())
    bins = (low % BIN == 0) & (low < 85) & (high.isna() | (high == low + BIN - 1))
    release.refuse(~(oldest | bins | (column == "")), column, path, f"the lower edge of {BIN} years such as 70, {OLDEST!r} or an empty cell")
    return (low + BIN // 2).mask(oldest, 85.0)


class Builder(released.Builder):
    """BRAX. See README.md, beside this file."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"""\
    Download BRAX v1.1.0 from PhysioNet, as a credentialed user, into manual_dir: {TABLE} and {FOLDERS['released']}/ (or, for
    the DICOM files, {FOLDERS['dicom']}/).
    """

    FINDINGS = FINDINGS
    HOMEPAGE = "https://physionet.org/content/brax/1.1.0/"
    EXTRA = {
        "age_bin": tfds.features.Text(),
        "view_position": tfds.features.Text(),
        "study_date": tfds.features.Text(),
        "manufacturer": tfds.features.Text(),
        "original_height": tfds.features.Scalar(np.float32),
        "original_width": tfds.features.Scalar(np.float32),
    }
    read_release = staticmethod(read_release)
