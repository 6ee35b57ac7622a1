"""TFDS builder of CheXpert v1.0, full or small, with its demographics workbook; see README.md."""

from __future__ import annotations

import zipfile

import pandas as pd
import tensorflow_datasets as tfds
from etils import epath

from cxr_jax.tables import UserError
from tfds_builders import release, released

FINDINGS = release.CHEXPERT_FINDINGS
VERSIONS = ("CheXpert-v1.0", "CheXpert-v1.0-small")
TABLES = {"train": "train.csv", "valid": "valid.csv"}  # released split -> table
WORKBOOK = "CHEXPERT DEMO.xlsx"
LATERAL = "LATERAL"  # the view of lateral images, of which the release says no more

PUBLISHED_ROWS = {"train.csv": 223_414, "valid.csv": 234, WORKBOOK: 65_401}
# Of train.csv. A table of this many rows that counts otherwise has been altered.
PUBLISHED = {
    "images": 223_414,
    "patients": 64_540,
    "studies": 187_641,
    "view AP": 161_590,
    "view PA": 29_420,
    "view LL": 16,
    "view RL": 1,
    "finding No Finding": 22_381,
}
_WHAT = (
    "CheXpert v1.0 (train.csv and valid.csv beside train/ and valid/) with 'CHEXPERT DEMO.xlsx' beside or above it; both:"
    " Stanford AIMI, on registration"
)


def read_release(config: released.ReleaseConfig) -> released.Release:
    """Reads both tables and the workbook. Raises UserError naming what is missing or wrong, and where."""
    top = release.folder(config.raw_dir, _WHAT)
    root = _root(top)
    parts, documents, statements = {}, [], []
    for split, name in TABLES.items():
        path = release.optional_path(root, name)
        if path is None:
            statements.append(f"{name} is missing: no image of split {split!r}")
            continue
        documents.append(path)
        parts[split] = read_table(path).assign(released_split=split)
    if "train" not in parts:
        raise UserError(f"{root}: the table is missing: no train.csv, with or without .gz")
    records = pd.concat(parts.values(), keys=parts, names=["table", "line"])
    release.refuse_duplicates(records["image_id"], root)
    release.refuse_shared_patients(records, root, TABLES)

    workbook = next((f / WORKBOOK for f in (top, root, root.parent) if (f / WORKBOOK).is_file()), None)
    if workbook:
        documents.append(workbook)
        recorded = read_workbook(workbook)
        for column in recorded:
            records[column] = records["patient_id"].map(recorded[column]).fillna("").astype("str")
    else:
        records = records.assign(race="", ethnicity="")
        statements.append(f"{WORKBOOK} is missing: no race is recorded")

    records["path"] = _below(root, records)
    if config.pictures == "dicom":
        records["path"] = records["path"].str.replace(r"\.jpg$", ".dcm", regex=True)
    batches = [root.parent] if root.name.startswith(_BATCH) else []
    records["size"] = release.sizes(root, records["path"], top, *batches)

    train = records[records["released_split"] == "train"]
    whole = len(train) == PUBLISHED["images"]
    rows = {name: len(parts[split]) if split in parts else 0 for split, name in TABLES.items()}
    counts = released.rows({**rows, WORKBOOK: len(recorded) if workbook else 0}, PUBLISHED_ROWS, whole, root)
    counts += released.held_against(released.count(train, FINDINGS), PUBLISHED, whole, documents[0])
    if not whole:
        statements.append(f"{documents[0].name}: {len(train):,} of {PUBLISHED['images']:,} rows")
    if workbook:
        unlisted = ~records["patient_id"].isin(recorded.index)
        if unlisted.any():
            statements.append(f"images of patients who are not in {WORKBOOK}, so without race: {int(unlisted.sum()):,}")
    if (records["age"] == 0).any():
        statements.append(f"images with age 0, stored as it is: {int((records['age'] == 0).sum()):,}")
    statements += released.missing_pictures(records)
    return released.Release(root, tuple(documents), records, counts, statements, whole)


def read_table(path: epath.Path) -> pd.DataFrame:
    """The records of one table, but for race and ethnicity. Raises UserError naming file, line and column.

    An image_id is its path below the version's folder, the same in the full and the small version.
    """
    table = release.read_table(path, ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *FINDINGS])
    # A path may not lead anywhere else.
    pattern = r"(?:CheXpert-v1\.0(?:-small)?/)?((?:train|valid)/(patient\d+)/(study\d+)/view\d+_(?:frontal|lateral)\.jpg)"
    parts = table["Path"].str.extract(f"^{pattern}$")
    release.refuse(
        parts[0].isna(), table["Path"], path, "a path such as CheXpert-v1.0/train/patient00001/study1/view1_frontal.jpg"
    )
    release.refuse_duplicates(table["Path"], path)
    sexes = {"Female": "F", "Male": "M", "Unknown": "", "": ""}
    release.refuse(~table["Sex"].isin(sexes.keys()), table["Sex"], path, "Female, Male or Unknown")
    frontal, projection = table["Frontal/Lateral"], table["AP/PA"]
    release.refuse(~frontal.isin(("Frontal", "Lateral")), frontal, path, "Frontal or Lateral")
    release.refuse(~projection.isin(("AP", "PA", "LL", "RL", "")), projection, path, "AP, PA, LL, RL or an empty cell")
    records = pd.DataFrame(
        {
            "image_id": parts[0],
            "patient_id": parts[1],
            "study_id": parts[1] + "/" + parts[2],
            "sex": table["Sex"].map(sexes).astype("str"),
            "age": release.numbers(table["Age"].str.removesuffix(".0"), path, whole=True).astype("float64"),
            "view": projection.mask(frontal == "Lateral", LATERAL),
        }
    )
    return pd.concat([records, released.findings(table, FINDINGS, path)], axis=1)


def read_workbook(path: epath.Path) -> pd.DataFrame:
    """Race and ethnicity as recorded ('' where a cell is empty), indexed by patient.

    A patient with several rows has the distinct values of them all, with | between. Raises UserError.
    """
    try:
        with path.open("rb") as file:
            table = pd.read_excel(file, dtype="str", keep_default_na=False, engine="openpyxl")
    except (zipfile.BadZipFile, KeyError, ValueError, OSError, SyntaxError) as error:  # XML's own error is the last
        raise UserError(f"{path}: not a readable workbook ({error})") from None
    wanted = ["PATIENT", "PRIMARY_RACE", "ETHNICITY"]
    for name in wanted:
        if name not in table:
            raise UserError(f"{path}: no column {name!r}; the workbook has {', '.join(map(str, table.columns))}")
        if f"{name}.1" in table:  # what pandas makes of a name that is there again
            raise UserError(f"{path}: line 1: more than one column {name!r}; keep the released one")
    if table.empty:
        raise UserError(f"{path}: a header and no rows; download it again, or remove it to go without race")
    table = table[wanted].apply(lambda column: column.fillna("").astype("str").str.strip())
    table.index = pd.RangeIndex(2, len(table) + 2, name="line")
    patient = table["PATIENT"]
    release.refuse(~patient.str.fullmatch(r"patient\d+"), patient, path, "a patient such as patient00001")
    columns = {"race": "PRIMARY_RACE", "ethnicity": "ETHNICITY"}
    recorded = {name: release.each_once(patient, table[column], path) for name, column in columns.items()}
    return pd.DataFrame(recorded, index=pd.Index(patient.unique(), name="patient")).fillna("").astype("str")


def _root(top: epath.Path) -> epath.Path:
    """The folder that holds the tables: `top`, or a version's or batch's folder in it."""
    folders = [top, *(top / name for name in VERSIONS), *_batches(top)]
    found = [folder for folder in folders if release.optional_path(folder, *TABLES.values())]
    if not found:
        raise UserError(
            f"{top}: train.csv is not in it, nor in {', '.join(VERSIONS)} or '{_BATCH}1…'; config.dataset.raw_dir names the"
            f" folder of {_WHAT}"
        )
    if len(found) > 1:
        raise UserError(f"{top}: {found[0]} and {found[1]} both hold train.csv; name one of them in config.dataset.raw_dir")
    return found[0]


_BATCH = "CheXpert-v1.0 batch "  # the full version comes as '… batch 1 (validate & csv)', '… batch 2 (train 1)', and on


def _batches(folder: epath.Path) -> list[epath.Path]:
    return sorted(path for path in folder.iterdir() if path.name.startswith(_BATCH) and path.is_dir())


def _below(root: epath.Path, records: pd.DataFrame) -> pd.Series:
    """Where each image lies below `root`: as its id says, or, of training, in a batch beside the one of the tables."""
    batches = [path for path in _batches(root.parent) if path != root] if root.name.startswith(_BATCH) else []
    where = {patient.name: f"../{batch.name}/" for batch in batches for patient in batch.iterdir()}
    train = records["image_id"].str.removeprefix("train/")
    batch = records["patient_id"].map(where).astype("str")
    return (batch + train).where(batch.notna() & (train != records["image_id"]), records["image_id"])


class Builder(released.Builder):
    """CheXpert v1.0. See README.md, beside this file."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    Register at Stanford AIMI and download CheXpert v1.0, full or small, and 'CHEXPERT DEMO.xlsx'. Lay the folder that
    holds train.csv, valid.csv, train/ and valid/, and the workbook, into manual_dir.
    """

    FINDINGS = FINDINGS
    HOMEPAGE = "https://stanfordmlgroup.github.io/competitions/chexpert/"
    EXTRA = {"ethnicity": tfds.features.Text()}
    read_release = staticmethod(read_release)
