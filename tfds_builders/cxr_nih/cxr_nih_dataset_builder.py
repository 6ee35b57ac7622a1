"""TFDS builder of NIH ChestX-ray14: the release's table and pictures, stored once; see README.md."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
import tensorflow_datasets as tfds
from etils import epath

from cxr_jax.tables import UserError
from tfds_builders import release, released

# The fourteen in the order in which the release's documentation numbers them, then the one that we derive: 1 where the
# table says `No Finding`, which is where none of the fourteen was found.
FINDINGS = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
    "No Finding",
)
_NO_FINDING = FINDINGS[-1]

TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")  # the newer is taken where both are there
LISTS = {"train_val": "train_val_list.txt", "test": "test_list.txt"}  # stored split -> official list of image names
_FOLDERS = 12  # images_001 ... images_012, where pictures are not all in images/

# The header puts commas inside the brackets of a pair, so that each pair fills two columns.
COLUMNS = (
    "Image Index",
    "Finding Labels",
    "Follow-up #",
    "Patient ID",
    "Patient Age",
    "Patient Gender",
    "View Position",
    "OriginalImage[Width",
    "Height]",
    "OriginalImagePixelSpacing[x",
    "y]",
)

PUBLISHED_ROWS = {**dict.fromkeys(TABLES, 112_120), LISTS["train_val"]: 86_524, LISTS["test"]: 25_596}
# What the release says of itself. A table of this many rows that counts otherwise has been altered.
PUBLISHED = {
    "images": 112_120,
    "patients": 30_805,
    "sex M": 63_340,
    "view PA": 67_310,
    f"finding {_NO_FINDING}": 60_361,
}

OLDEST = 120  # years; the older table has ages up to 414, which are slips of the pen, stored as unknown
_YEARS = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}  # units of a DICOM age such as 058Y
_WHAT = "the NIH ChestX-ray14 release, with Data_Entry_2017_v2020.csv and images/ in it"


def read_release(config: released.ReleaseConfig) -> released.Release:
    """Reads and checks table, lists and folders. Raises UserError naming what is missing or wrong, and where."""
    root = release.folder(config.raw_dir, _WHAT)
    path = release.table_path(root, *TABLES)
    files = _pictures(root)
    records, ages_refused = read_table(path)
    records["released_split"], rows = _released_splits(root, records)
    release.refuse_shared_patients(records, root, path.name)
    wanted = records["image_id"]
    if config.pictures == "dicom":
        wanted = wanted.str.replace(r"\.[A-Za-z]+$", ".dcm", regex=True)
    records["path"] = [files[name].relative_to(root).as_posix() if name in files else name for name in wanted]
    records["size"] = release.sizes(root, records["path"])
    lists = [root / name for name in LISTS.values() if (root / name).is_file()]
    foreign = sorted(set(files) - set(wanted))
    whole = len(records) == PUBLISHED["images"]
    statements = _what_is_missing(root, records, foreign, ages_refused)
    counts = released.rows({path.name: len(records), **rows}, PUBLISHED_ROWS, whole, root)
    counts += released.held_against(released.count(records, FINDINGS), PUBLISHED, whole, path)
    return released.Release(root, (path, *lists), records, counts, statements, whole, tuple(foreign))


def read_table(path: os.PathLike | str) -> tuple[pd.DataFrame, int]:
    """The records of `Release`, `released_split` aside, and how many ages were refused. Takes .csv and .csv.gz.

    Raises UserError naming file, line and column for whatever is not as the release writes it.
    """
    table = release.read_table(path, COLUMNS)
    name, labels, follow_up, patient, age, sex, view, width, height, spacing_x, spacing_y = (table[c] for c in COLUMNS)

    # An image name becomes part of a path, so it may not lead anywhere else.
    plain = name.str.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*\.(?:png|jpe?g)", flags=re.IGNORECASE)
    release.refuse(~plain, name, path, "a plain file name ending in .png")
    release.refuse_duplicates(name, path)
    release.refuse(~patient.str.fullmatch(r"\d+"), patient, path, "a whole number")
    release.refuse(~sex.isin(("F", "M", "")), sex, path, "F, M or an empty cell")
    release.refuse(~view.isin(("PA", "AP", "")), view, path, "PA, AP or an empty cell")
    years, refused = _years(age, path)
    follow_ups = release.numbers(follow_up, path, whole=True)
    # Leading zeros, which some copies have, do not make another patient.
    patients = patient.str.lstrip("0").mask(lambda p: p == "", "0")

    records = pd.DataFrame(
        {
            "image_id": name,
            "patient_id": patients,
            "race": "",
            # The release numbers a patient's visits and names no study; a visit is one.
            "study_id": patients + "_" + follow_ups.astype("str"),
            "sex": sex,
            "age": years,
            "view": view,
            "follow_up": follow_ups,
            "original_width": release.numbers(width, path, whole=True, least=1),
            "original_height": release.numbers(height, path, whole=True, least=1),
            "pixel_spacing_x": release.numbers(spacing_x, path, whole=False),
            "pixel_spacing_y": release.numbers(spacing_y, path, whole=False),
        }
    )
    for finding, values in _findings(labels, path).items():
        records[released.FINDING + finding] = values
    return records, refused


def _pictures(root: epath.Path) -> dict[str, epath.Path]:
    # Tarballs unpacked one upon another leave one images/; unpacked each in its own folder, images_001/images/ and on.
    folders = [root / "images", *(p / "images" for p in sorted(root.glob("images_*")))]
    folders = [folder for folder in folders if folder.is_dir()]
    if not folders:
        raise UserError(f"{root}: the pictures are missing: neither images/ nor images_001/images/ is there")
    return release.picture_files(folders)


def _years(age: pd.Series, path) -> tuple[pd.Series, int]:
    parts = age.str.extract(r"^(\d{1,4})([YMWD]?)$")
    release.refuse(parts[0].isna() & (age != ""), age, path, "an age such as 58 or 058Y, or an empty cell")
    years = parts[0].astype("float64") * parts[1].replace("", "Y").map(_YEARS).astype("float64")
    refused = years > OLDEST
    return years.mask(refused), int(refused.sum())


def _findings(labels: pd.Series, path) -> dict[str, np.ndarray]:
    named = labels.str.split("|").explode().str.strip()
    strange = ~named.isin(FINDINGS)
    if strange.any():
        first = named[strange]
        raise UserError(
            f"{path}: line {first.index[0]}, column {labels.name!r}: {first.iloc[0]!r} found, one or more of"
            f" {', '.join(FINDINGS)}, separated by |, expected ({int(strange.sum())} such)"
        )
    found = {
        finding: labels.index.isin(named.index[(named == finding).to_numpy()]).astype(np.float32)
        for finding in FINDINGS
    }
    torn = (found[_NO_FINDING] == 1) & (sum(found[finding] for finding in FINDINGS[:-1]) > 0)
    release.refuse(pd.Series(torn, labels.index), labels, path, f"either {_NO_FINDING!r} or findings")
    return found


def _released_splits(root: epath.Path, records: pd.DataFrame) -> tuple[pd.Series, dict[str, int]]:
    """Each record's official list, or '' where the release has no lists; and how many images each list names."""
    paths = {split: root / name for split, name in LISTS.items()}
    missing = [path.name for path in paths.values() if not path.is_file()]
    if len(missing) == len(paths):
        return pd.Series("", records.index, dtype="str"), dict.fromkeys(LISTS.values(), 0)
    if missing:
        raise UserError(f"{root}: {missing[0]} is missing beside its fellow; add it, or do without both")

    listed = {
        split: {line.strip() for line in release.read_text(path).splitlines()} - {""} for split, path in paths.items()
    }
    names = records["image_id"]
    membership = pd.DataFrame({split: names.isin(listed[split]) for split in paths})
    both, neither = membership.all(axis=1), ~membership.any(axis=1)
    if both.any():
        raise UserError(
            f"{root}: image {names[both].iloc[0]!r} is in both {' and '.join(LISTS.values())}"
            f" ({int(both.sum())} such); splits must not share an image"
        )
    if neither.any():
        raise UserError(
            f"{root}: image {names[neither].iloc[0]!r} of the table is in neither {' nor '.join(LISTS.values())}"
            f" ({int(neither.sum())} such); take the lists that belong to the table, or remove both"
        )
    splits = membership.idxmax(axis=1).astype("str")
    return splits, {LISTS[split]: len(names) for split, names in listed.items()}


def _what_is_missing(root: epath.Path, records: pd.DataFrame, foreign: Sequence[str], refused: int) -> list[str]:
    """One statement for each thing that the whole release has and this one lacks, or that is not stored as it is."""
    statements = []
    if not (root / LISTS["test"]).is_file():
        statements.append(
            f"{' and '.join(LISTS.values())} are missing: no official split; all images are in split {released.WHOLE!r}"
        )
    # Where no numbered folder is there, the pictures are in images/.
    folders = [f"images_{n:03d}/images" for n in range(1, _FOLDERS + 1)]
    missing = [folder for folder in folders if not (root / folder).is_dir()]
    if 0 < len(missing) < len(folders):
        statements.append(f"folders are missing: {', '.join(missing)}")
    if len(records) < PUBLISHED["images"]:
        statements.append(f"{release.table_path(root, *TABLES).name}: {len(records):,} of {PUBLISHED['images']:,} rows")
    statements += released.missing_pictures(records)
    if foreign:
        statements.append(f"files not in the table, and not stored: {len(foreign):,}, the first {foreign[0]}")
    if refused:
        statements.append(f"ages above {OLDEST} years, stored as unknown: {refused:,}")
    return statements


class Builder(released.Builder):
    """NIH ChestX-ray14. See README.md, beside this file."""

    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES = {
        "1.0.0": "First release.",
        "1.1.0": "The release's fingerprint is over the pictures that the table lists, as for every data set.",
    }
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    Download NIH ChestX-ray14 (open access, no account needed) from https://nihcc.app.box.com/v/ChestXray-NIHCC and lay
    it into manual_dir: Data_Entry_2017_v2020.csv; the pictures, in images/ or in images_001/images/ to
    images_012/images/; and train_val_list.txt with test_list.txt where the official split is wanted.
    """

    FINDINGS = FINDINGS
    HOMEPAGE = "https://nihcc.app.box.com/v/ChestXray-NIHCC"
    OPEN_DATA = True
    EXTRA = {
        "follow_up": tfds.features.Scalar(np.int32),
        "original_width": tfds.features.Scalar(np.int32),
        "original_height": tfds.features.Scalar(np.int32),
        "pixel_spacing_x": tfds.features.Scalar(np.float32),
        "pixel_spacing_y": tfds.features.Scalar(np.float32),
    }
    read_release = staticmethod(read_release)
