"""TFDS builder of PadChest: its table, its 16-bit pictures, its labels made into shared findings; see README.md."""

from __future__ import annotations

import ast
import pathlib

import numpy as np
import pandas as pd
import tensorflow_datasets as tfds

from cxr_jax.tables import UserError
from tfds_builders import release, released

TABLE = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
MAPPING = pathlib.Path(__file__).parent / "findings.csv"  # label -> shared finding, reviewed

# CheXpert's, then NIH's that CheXpert lacks. NIH's Effusion is CheXpert's Pleural Effusion.
FINDINGS = (
    *release.CHEXPERT_FINDINGS,
    "Infiltration",
    "Mass",
    "Nodule",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
)
# The release's own word for a view -> the shared one. Lying patients' AP is AP; `projection` keeps the difference.
VIEWS = {"PA": "PA", "AP": "AP", "AP_horizontal": "AP", "L": "LATERAL", "COSTAL": "COSTAL", "EXCLUDE": "", "UNK": ""}

# Of the table as torchxrayvision 1.5.7 ships it. One of this many rows that counts otherwise has been altered.
PUBLISHED = {"images": 160_861, "patients": 67_625}

_OF_THE_STUDY = ("unchanged", "suboptimal study")  # labels that say nothing of the chest
PEDIATRIC = {"PED": "yes", "No": "no", "": ""}
_MISSING = ("", "nan", "None")  # how the table leaves a cell out
_COLUMNS = {
    "ImageID": "image_id",
    "ImageDir": "folder",
    "PatientID": "patient_id",
    "StudyID": "study_id",
    "StudyDate_DICOM": "study_date",
    "PatientBirth": "birth_year",
    "PatientSex_DICOM": "sex",
    "Projection": "projection",
    "ViewPosition_DICOM": "view_position",
    "Pediatric": "pediatric",
    "Labels": "labels",
    "MethodLabel": "method_label",
    "Manufacturer_DICOM": "manufacturer",
    "WindowCenter_DICOM": "window_center",
    "WindowWidth_DICOM": "window_width",
    "Exposure_DICOM": "exposure",
    "BitsStored_DICOM": "bits_stored",
    "Rows_DICOM": "original_height",
    "Columns_DICOM": "original_width",
}
_NUMBERS = ("window_center", "window_width", "exposure", "bits_stored", "original_height", "original_width")
_WHAT = f"PadChest, with {TABLE} and the folders of pictures in it (BIMCV, on request)"


def read_release(config: released.ReleaseConfig) -> released.Release:
    """Reads and checks the table. Raises UserError naming what is missing or wrong, and where."""
    root = release.folder(config.raw_dir, _WHAT)
    path = release.table_path(root, TABLE)
    records = read_table(path)
    name = records["image_id"]
    if config.pictures == "dicom":
        name = name.str.replace(r"\.png$", ".dcm", regex=True)
    # Archives unpack into folders that are numbered as the table says; some copies hold all pictures in one.
    below = records.pop("folder") + "/"
    if not any((root / folder).is_dir() for folder in below.unique()):
        below = "images/" if (root / "images").is_dir() else ""
    records["path"] = below + name
    records["size"] = release.sizes(root, records["path"])
    records["released_split"] = ""
    return released.of_one_table(root, path, records, TABLE, PUBLISHED, FINDINGS)


def read_table(path) -> pd.DataFrame:
    """The records, but for path, size and released_split, with `folder`. Raises UserError naming file, line and column.

    Age is the year of the study less the year of birth, so that it may be a year too high.
    """
    table = release.read_table(path, list(_COLUMNS))
    name = table["ImageID"]
    release.refuse(~name.str.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*\.png"), name, path, "a plain file name ending in .png")
    release.refuse_duplicates(name, path)
    folder = table["ImageDir"].str.removesuffix(".0")
    release.refuse(~folder.str.fullmatch(r"\d+"), table["ImageDir"], path, "the number of a folder")
    for column in ("PatientID", "StudyID"):
        release.refuse(~table[column].str.fullmatch(r"[A-Za-z0-9_.-]+"), table[column], path, "an identifier")
    known = table.mask(table.isin(_MISSING), "")
    sex, view = known["PatientSex_DICOM"], table["Projection"]
    release.refuse(~sex.isin(("F", "M", "O", "")), sex, path, "F, M, O or an empty cell")
    release.refuse(~view.isin(VIEWS.keys()), view, path, f"one of {', '.join(VIEWS)}")
    pediatric = known["Pediatric"]
    release.refuse(~pediatric.isin(PEDIATRIC.keys()), pediatric, path, "PED, No or an empty cell")
    birth = release.optional_numbers(known["PatientBirth"], path)
    date = known["StudyDate_DICOM"].str.removesuffix(".0")
    release.refuse(~date.str.fullmatch(r"(?:\d{8})?"), known["StudyDate_DICOM"], path, "a date such as 20140915")
    year = pd.to_numeric(date.str[:4].replace("", np.nan)).astype("float64")
    labels = labels_of(table["Labels"], path)
    records = pd.DataFrame(
        {
            "image_id": name,
            "patient_id": table["PatientID"],
            "study_id": table["StudyID"],
            "race": "",
            "sex": sex.mask(sex == "O", ""),
            "age": year - birth,
            "view": view.map(VIEWS).astype("str"),
            "folder": folder,
            "projection": view,
            "view_position": known["ViewPosition_DICOM"],
            "pediatric": pediatric.map(PEDIATRIC).astype("str"),
            "study_date": pd.to_numeric(date.replace("", "0")).astype("int32"),
            "labels": labels,
            "method_label": known["MethodLabel"],
            "manufacturer": known["Manufacturer_DICOM"],
            **{name: release.optional_numbers(known[column], path) for column, name in _COLUMNS.items() if name in _NUMBERS},
        }
    )
    return pd.concat([records, findings_of(labels, path)], axis=1)


def labels_of(column: pd.Series, path) -> pd.Series:
    """Labels, each once, in the table's order with | between, from Python lists of text; '' where there are none."""
    parsed = {}
    for text in column.unique():
        if text in _MISSING:
            parsed[text] = ""
            continue
        try:
            listed = ast.literal_eval(text)
            words = [label.strip().lower() for label in listed]
        except (ValueError, SyntaxError, AttributeError, TypeError):
            release.refuse(column == text, column, path, "a Python list of labels")
        parsed[text] = release.BETWEEN.join(dict.fromkeys(filter(None, words)))
    return column.map(parsed).astype("str")


def findings_of(labels: pd.Series, path) -> pd.DataFrame:
    """`finding_NAME` (float32) by the reviewed mapping: 1 where a label says so, else 0; all NaN where nothing was read.

    Nothing was read where there is no label, where `exclude` is one (the report says nothing of use), and where no label
    is left but words on the study itself. No Finding is `normal` beside no other finding than Support Devices.
    Raises UserError for labels that the mapping lacks, each with its count.
    """
    mapping = pd.read_csv(MAPPING, dtype="str", keep_default_na=False)
    found = labels.str.split(release.BETWEEN, regex=False).explode()
    found = found[found != ""]
    strange = found[~found.isin(mapping["label"])]
    if len(strange):
        listed = ", ".join(f"{label!r} ({n:,})" for label, n in strange.value_counts().items())
        raise UserError(
            f"{path}: line {strange.index[0]}, column 'Labels': labels that {MAPPING.name} lacks: {listed}; add a row for each"
            f" to {MAPPING}"
        )

    def with_any(wanted) -> np.ndarray:
        return labels.index.isin(found.index[found.isin(wanted).to_numpy()])

    read = labels.index.isin(found.index[~found.isin(_OF_THE_STUDY).to_numpy()]) & ~with_any(["exclude"])
    positive = {name: with_any(mapping.loc[mapping["finding"] == name, "label"]) for name in FINDINGS}
    positive["No Finding"] &= ~np.any([positive[n] for n in FINDINGS if n not in ("No Finding", "Support Devices")], axis=0)
    return pd.DataFrame(
        {
            released.FINDING + name: np.where(read, values, np.nan).astype(np.float32)
            for name, values in positive.items()
        },
        index=labels.index,
    )


class Builder(released.Builder):
    """PadChest. See README.md, beside this file."""

    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES = {
        "1.0.0": "First release.",
        "1.1.0": "Pictures of 10 or 12 bits are as bright as the others; view and bits of the DICOM header; who is a child.",
    }
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"""\
    Request PadChest from BIMCV and unpack its archives into manual_dir: {TABLE} (or .gz), and the folders 0 to 54 of
    pictures.
    """

    FINDINGS = FINDINGS
    HOMEPAGE = "https://bimcv.cipf.es/bimcv-projects/padchest/"
    EXTRA = {
        "study_date": tfds.features.Scalar(np.int32),
        **{name: tfds.features.Scalar(np.float32) for name in _NUMBERS},
        "projection": tfds.features.Text(),
        "view_position": tfds.features.Text(),
        "pediatric": tfds.features.Text(),
        "labels": tfds.features.Text(),
        "method_label": tfds.features.Text(),
        "manufacturer": tfds.features.Text(),
    }
    read_release = staticmethod(read_release)
