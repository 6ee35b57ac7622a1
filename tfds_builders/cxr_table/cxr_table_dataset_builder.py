"""TFDS builder of a hospital's own data: a folder of pictures, a table, and a map of its columns; see README.md."""

from __future__ import annotations

import concurrent.futures
import csv
import dataclasses
import functools
import hashlib
import io
import json
import os
import pathlib
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
import tensorflow_datasets as tfds
from etils import epath

from cxr_jax import tables
from cxr_jax.experiment import nearest
from cxr_jax.tables import UserError
from tfds_builders import release, released

OURS = ("image_id", "patient_id", "study_id", "path", "split", "race", "ethnicity", "sex", "age", "view")
LISTED = "*"  # the finding whose column lists findings
OLDEST = 120  # years
MOST_FINDINGS = 500  # that a column may list; one that has more is no list of findings

SEXES = {"f": "F", "female": "F", "m": "M", "male": "M", "": ""}
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "validate", "valid", "val"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
    "train_val": "train_val",
}
SUFFIXES = {"released": (".png", ".jpg", ".jpeg"), "dicom": (".dcm", ".dicom", "")}
TABLES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet", ".xlsx")

# Columns of the key table, and of what is made of it, that no further column may be called.
_TAKEN = (
    "image", "findings", "released_split", "stored_split", "record", "size", "dataset", "index", "labelled", "age_band",
    "race_recorded", "race_standing",
)  # fmt: skip
_PREFIXES = ("finding_", "label_", "score_", "true_", "ceiling_", "severity_", "side_", "shape_", "shuffled_", "stratum_")
_WHAT = "your pictures, with or without the table of config.dataset.table in it"


@dataclasses.dataclass(eq=False)
class TableConfig(released.ReleaseConfig):
    """What is built, and from what. The name follows from hospital, aspect, pictures and storage.

    table: the file, below raw_dir or a path of its own.
    columns: ours -> the table's column, '' where there is to be none. findings: finding -> column; of LISTED alone, a column
    that lists them with | between. words: field -> {the table's word: ours}. open_data: whether single images may be shown.
    """

    table: str = ""
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    findings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    words: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    open_data: bool = False


def builder_config(
    hospital: str,
    table: str = "",
    columns: Sequence[str] = (),
    findings: Sequence[str] = (),
    words: Sequence[str] = (),
    open_data: bool = False,
    **options,
) -> TableConfig:
    """The config to hand to the builder.

    hospital: names the data set, in letters, digits and _. columns, findings, words: as `config.dataset` has them, of
    NAME=COLUMN, FINDING=COLUMN and FIELD:WORD=OURS. options: of `released.builder_config`.
    Raises UserError for what is not of that form.
    """
    if not re.fullmatch(r"[A-Za-z0-9_]+", hospital):
        raise UserError(f"config.dataset.variant: {hospital!r} found, a name of letters, digits and _ expected")
    named = _pairs(columns, "columns", "NAME=COLUMN")
    for name in named:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or (name not in OURS and (name in _TAKEN or name.startswith(_PREFIXES))):
            raise UserError(f"config.dataset.columns: nothing may be called {name!r}{nearest(name, OURS)}; further names are of small letters, digits and _")
    found = _pairs(findings, "findings", "FINDING=COLUMN")
    if "" in found.values() or (LISTED in found and len(found) > 1):
        raise UserError(f"config.dataset.findings: {tuple(findings)!r}: FINDING=COLUMN of each, or {LISTED}=COLUMN and nothing besides, expected")
    general = released.builder_config(**options)
    return TableConfig(
        **{
            **{field.name: getattr(general, field.name) for field in dataclasses.fields(general)},
            "name": f"{hospital}_{general.name}",
            "table": table,
            "columns": named,
            "findings": found,
            "words": _translations(words, [*OURS[4:], *(name for name in named if name not in OURS), "findings"]),
            "open_data": open_data,
        }
    )


def _pairs(entries: Sequence[str], field: str, form: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for entry in entries:
        name, equals, column = (part.strip() for part in str(entry).partition("="))
        if not equals or not name or name in found:
            raise UserError(f"config.dataset.{field}: {entry!r} found, {form} expected, each name once")
        found[name] = column
    return found


def _translations(entries: Sequence[str], fields: Sequence[str]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for entry in entries:
        field, colon, rest = str(entry).partition(":")
        word, equals, ours = (part.strip() for part in rest.rpartition("="))
        if not colon or not equals or word in found.get(field, {}):
            raise UserError(f"config.dataset.words: {entry!r} found, FIELD:WORD=OURS expected, each word of a field once")
        if field not in fields or field == "age":
            raise UserError(f"config.dataset.words: {entry!r}: no words to be translated in {field!r}{nearest(field, set(fields) - {'age'})}")
        found.setdefault(field, {})[word] = ours
    return found


# ---- the table -----------------------------------------------------------------------------------


def table_path(root: epath.Path, name: str) -> epath.Path:
    """The file `name`, below `root` or a path of its own. Raises UserError where it is not set, absent, or of no known kind."""
    if not name:
        raise UserError("config.dataset.table is not set: it names the table of your images, below config.dataset.raw_dir or by a path of its own")
    path = root / name
    if not path.is_file():
        path = epath.Path(name).expanduser()
    if not path.is_file():
        raise UserError(f"config.dataset.table: no file {name!r}, neither below {root} nor by itself")
    if not path.name.lower().endswith(TABLES):
        raise UserError(f"{path}: a name that ends in {', '.join(TABLES[:-1])} or {TABLES[-1]} expected")
    return path


def read_table(path: epath.Path, choose: Callable[[list[str]], Iterable[str]]) -> pd.DataFrame:
    """Columns of a table as stripped text, '' where a cell is empty, indexed by line of the file.

    choose: from the names of all columns to those that are read. The first line, or the first row of a workbook's first
    sheet, has the names; rows of Parquet, which has no such line, are numbered from 1. Between the cells of CSV stands a
    comma, semicolon, tab or bar, whichever the first line has most of.

    Raises UserError for a file that cannot be read or has no row, a line of too many or too few cells, and a column that is
    chosen and there twice.
    """
    kind = path.name.lower().removesuffix(".gz")
    if kind.endswith(".parquet"):
        found, _ = tables.read_parquet(path)
        index = found.index
        found = found.reset_index([name for name in index.names if name is not None])
        header, first = [str(name).strip() for name in found], 1
        rows = {i: _words(found.iloc[:, i]) for i in range(len(header))}
    elif kind.endswith(".xlsx"):
        sheet = _sheet(path)
        header, first = list(sheet.iloc[0]) if len(sheet) else [], 2
        rows = {i: sheet.iloc[1:, i] for i in range(len(header))}
    else:
        return _read_text(path, choose)
    wanted = _positions(header, choose, path)
    found = pd.DataFrame({name: pd.Series(rows[i].to_numpy(), dtype="str") for name, i in wanted.items()})
    found.index = pd.RangeIndex(first, first + len(found), name="line")
    filled = (found != "").any(axis=1)  # a workbook may end with rows that only look empty
    if not filled.any():
        raise UserError(f"{path}: no row")
    return found[filled]


def _positions(header: Sequence[str], choose, path) -> dict[str, int]:
    """Where the chosen columns are."""
    if not any(header):
        raise UserError(f"{path}: empty; a first line with the names of columns expected")
    chosen = list(dict.fromkeys(choose(list(header))))
    for name in chosen:
        if header.count(name) > 1:
            raise UserError(f"{path}: more than one column {name!r}; rename one")
    return {name: header.index(name) for name in chosen}


def _read_text(path: epath.Path, choose) -> pd.DataFrame:
    text = release.read_text(path)
    first = text.partition("\n")[0]
    separator = max(",;\t|", key=first.count)  # the first of those that do equally well
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        header = [name.strip() for name in next(lines, [])]
        while header and not header[-1]:
            header.pop()
        wanted, width = _positions(header, choose, path), len(header)
        columns: list[list[str]] = [[] for _ in wanted]
        numbers: list[int] = []
        for cells in lines:
            if not any(cells):
                continue
            if len(cells) < width or any(cells[width:]):
                raise UserError(f"{path}: line {lines.line_num}: {len(cells)} cells found, {width} expected; the file may be cut short or edited")
            for column, i in zip(columns, wanted.values(), strict=True):
                column.append(cells[i])
            numbers.append(lines.line_num)
    except csv.Error as error:
        raise UserError(f"{path}: line {lines.line_num}: not valid CSV ({error})") from None
    if not numbers:
        raise UserError(f"{path}: a header and no rows")
    index = pd.Index(numbers, name="line")
    return pd.DataFrame({name: pd.Series(pd.array(cells, dtype="str"), index).str.strip() for name, cells in zip(wanted, columns, strict=True)})


def _sheet(path: epath.Path) -> pd.DataFrame:
    """The first sheet of a workbook as stripped text, its names in the first row."""
    try:
        with path.open("rb") as file:
            sheet = pd.read_excel(file, dtype="str", keep_default_na=False, header=None, engine="openpyxl")
    except (zipfile.BadZipFile, KeyError, ValueError, OSError, SyntaxError) as error:  # XML's own error is the last
        raise UserError(f"{path}: not a readable workbook ({error})") from None
    return sheet.apply(_words)


def _words(cells: pd.Series) -> pd.Series:
    """Cells of any kind as stripped text, '' for null; 1 and not 1.0 in a column of whole numbers."""
    if pd.api.types.is_float_dtype(cells):
        known = cells.dropna().to_numpy(np.float64)
        if (np.abs(known) < 2**53).all() and (known == np.round(known)).all():
            cells = cells.astype("Int64")
    return cells.astype("str").where(cells.notna(), "").str.strip()


# ---- the release ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Table(released.Release):
    """A hospital's pictures and table, read.

    map: what became of which column, as JSON; another map is another release. races: values of race, sorted. kinds: further
    columns that are stored -> `text`, `whole` or `number`.
    """

    map: str = ""
    races: tuple[str, ...] = ()
    kinds: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 over the table, the map, and the names and sizes of the pictures."""
        files = release.fingerprint(self.documents, self.records["image_id"], self.records["size"])
        return hashlib.sha256(f"{files}\0{self.map}".encode()).hexdigest()


def read_release(config: TableConfig) -> Table:
    """Reads and checks the table, and finds the pictures. Raises UserError naming what is missing or wrong, and where."""
    root = release.folder(config.raw_dir, _WHAT)
    if "://" in os.fspath(root):
        raise UserError(f"config.dataset.raw_dir: {root}: mount it, and name the folder where it is mounted")
    path = table_path(root, config.table)
    columns: dict[str, str] = {}  # ours -> theirs, as far as there are any

    def choose(header: list[str]) -> list[str]:
        for field, named in (("columns", config.columns), ("findings", config.findings)):
            for name, column in named.items():
                if column and column not in header:
                    raise UserError(f"{path}: no column {column!r}, which config.dataset.{field} names for {name}{nearest(column, header)}")
        by_name = {name: name for name in OURS if name in header and name not in config.columns}
        columns.update(by_name | {name: column for name, column in config.columns.items() if column})
        for needed in ("patient_id", "image_id"):
            if needed not in columns and not (needed == "image_id" and "path" in columns):
                raise UserError(
                    f"{path}: no column {needed!r}; name the one that it is with --config.dataset.columns=\"('{needed}=COLUMN',)\"{nearest(needed, header)}"
                )
        return [*columns.values(), *config.findings.values()]

    table = read_table(path, choose)
    idle: list[str] = []

    def cells(name: str) -> pd.Series:
        """Ours as the table has it, its words translated, under the table's own name; empty where there is none."""
        if name not in columns:
            return pd.Series("", table.index, dtype="str")
        column = table[columns[name]]
        words = config.words.get(name, {})
        there = set(column.unique())
        idle.extend(f"{name}:{word}" for word in words if word not in there)
        return _translated(column, words)

    identifier = cells("image_id" if "image_id" in columns else "path")
    release.refuse(identifier == "", identifier, path, "an identifier, not an empty cell")
    release.refuse_duplicates(identifier, path)
    patient = cells("patient_id")
    release.refuse(patient == "", patient, path, "an identifier, not an empty cell")
    race, ethnicity = (_of_patients(patient, cells(name), path) for name in ("race", "ethnicity"))
    parts = {
        "image_id": identifier,
        "patient_id": patient,
        "study_id": cells("study_id"),
        "released_split": _splits(cells("split"), path) if "split" in columns else "",
        "race": race,
        "sex": _sexes(cells("sex"), path),
        "view": cells("view"),
        "age": _ages(cells("age"), path),
    }
    if "ethnicity" in columns:
        parts["ethnicity"] = ethnicity
    further = {name: _kind(cells(name)) for name in columns if name not in OURS}
    kinds = ({"ethnicity": "text"} if "ethnicity" in columns else {}) | {name: kind for name, (kind, _) in further.items()}
    records = pd.concat(
        [pd.DataFrame(parts | {name: values for name, (_, values) in further.items()}, index=table.index), _findings(table, config, path, idle)], axis=1
    )
    if "split" in columns:
        release.refuse_shared_patients(records, path, path.name)
    if "path" in columns:
        files, foreign, unfollowed = _by_path(root, cells("path"), config.pictures, path), (), 0
    else:
        files, foreign, unfollowed = _by_name(root, identifier, config.pictures, path)
    records["path"] = files.mask(files == "", identifier)  # what was looked for and is not there keeps its name
    records["size"] = np.where(files == "", -1, release.sizes(root, files))

    found = released.count(records, [name.removeprefix(released.FINDING) for name in records if name.startswith(released.FINDING)])
    if "study_id" not in columns:
        del found["studies"]
    counts = released.held_against({f"rows of {path.name}": len(records), **found}, {}, False, path)
    taken = columns | {"findings" if name == LISTED else name: column for name, column in config.findings.items()}
    said = ", ".join(f"{name} from {column!r}" for name, column in taken.items())
    absent = [name for name in OURS if name not in columns and name not in ("path", "image_id")]
    several = int(patient[race.str.contains(release.BETWEEN, regex=False)].nunique())
    statements = [
        f"columns: {said}",
        *([f"no column is {', '.join(absent)}"] if absent else []),
        *([f"words of config.dataset.words that no cell has: {', '.join(idle)}"] if idle else []),
        *([f"patients of whom several races are recorded, which race_rule=recorded takes for none: {several:,}"] if several else []),
        *([f"links to folders that are not followed: {unfollowed:,}"] if unfollowed else []),
        *released.missing_pictures(records),
        *([f"pictures that are not in the table, and not stored: {len(foreign):,}, the first {foreign[0]}"] if foreign else []),
    ]
    mapped = {"columns": dict(sorted(columns.items())), "findings": list(config.findings.items()), "words": config.words, "open_data": config.open_data}
    races = tuple(sorted({word for word in race.unique() if word and release.BETWEEN not in word}))
    return Table(root, (path,), records, counts, statements, True, foreign, json.dumps(mapped, sort_keys=True), races, kinds)


def _translated(column: pd.Series, words: Mapping[str, str]) -> pd.Series:
    return column.map(words).astype("str").where(column.isin(words.keys()), column) if words else column


def _of_patients(patient: pd.Series, column: pd.Series, path) -> pd.Series:
    """All that is recorded of each image's patient, each value once, in the order of the rows, with | between."""
    return patient.map(release.each_once(patient, column, path)).astype("str").fillna("")


def _splits(column: pd.Series, path) -> pd.Series:
    known = column.str.casefold().map(SPLITS)
    release.refuse(known.isna(), column, path, "train, validation or test")
    return known.astype("str")


def _sexes(column: pd.Series, path) -> pd.Series:
    known = column.str.casefold().map(SEXES)
    release.refuse(known.isna(), column, path, "F, M, Female, Male or an empty cell, or a word that config.dataset.words translates, such as sex:W=F,")
    return known.astype("str")


def _ages(column: pd.Series, path) -> pd.Series:
    """float64, NaN for an empty cell."""
    years = pd.to_numeric(column.mask(column == ""), errors="coerce").astype("float64")
    release.refuse((column != "") & ~years.between(0, OLDEST), column, path, f"a number of years from 0 to {OLDEST} or an empty cell")
    return years


def _kind(column: pd.Series) -> tuple[str, pd.Series]:
    """How a further column is stored, and its values.

    whole: int64, where every cell is a whole number of at most 15 digits. number: float32, NaN for an empty cell, where all that are not
    empty are numbers. text: else, and where numbers are codes or would be rounded: 007, or a date such as 20140915 among empty cells.
    """
    known = column[column != ""]
    whole, decimal = r"-?(?:0|[1-9]\d{0,14})", r"[+-]?(?:0|[1-9]\d*)?(?:\.\d+|\.)?(?:[eE][+-]?\d+)?"
    if len(known) and known.str.fullmatch(whole).all():
        if len(known) == len(column):
            return "whole", column.astype("int64")
        if (known.astype("int64").abs() <= 2**24).all():
            return "number", pd.to_numeric(column.mask(column == "")).astype("float64")
        return "text", column
    values = pd.to_numeric(column.mask(column == ""), errors="coerce").astype("float64")
    if len(known) and known.str.fullmatch(decimal).all() and values[known.index].notna().all():
        return "number", values
    return "text", column


def _findings(table: pd.DataFrame, config: TableConfig, path, idle: list[str]) -> pd.DataFrame:
    """`finding_NAME`, float32. idle: takes the words of config.words that no cell has."""
    words = config.words.get("findings", {})
    if LISTED not in config.findings:
        if words:
            raise UserError(f"config.dataset.words: findings:… translates words of a column that lists findings, {LISTED}=COLUMN of config.dataset.findings")
        read = released.findings(table, list(dict.fromkeys(config.findings.values())), path)
        return pd.DataFrame({released.FINDING + name: read[released.FINDING + column] for name, column in config.findings.items()}, index=table.index)
    column = table[config.findings[LISTED]]
    listed = column.str.split(release.BETWEEN, regex=False).explode().str.strip()
    listed = listed[(listed != "") | (column == "").reindex(listed.index)]  # nothing between two bars is no word, an empty cell may be one
    there = set(listed)
    idle.extend(f"findings:{word}" for word in words if word not in there)
    named = _translated(listed, words)
    names = sorted(set(named) - {""})
    if len(names) > MOST_FINDINGS:
        raise UserError(f"{path}: column {column.name!r}: {len(names):,} different findings, at most {MOST_FINDINGS} expected; it may be no list of findings")
    if not names:
        raise UserError(f"{path}: column {column.name!r}, which config.dataset.findings names: no finding is listed in it")
    read = column.index.isin(named.index[named != ""])  # where nothing is listed nobody has looked
    return pd.DataFrame(
        {
            released.FINDING + name: np.where(read, column.index.isin(named.index[(named == name).to_numpy()]), np.nan).astype(np.float32)
            for name in names
        },
        index=table.index,
    )


# ---- pictures ------------------------------------------------------------------------------------


def _by_path(root: epath.Path, column: pd.Series, pictures: str, path) -> pd.Series:
    """Paths of pictures as the table has them. Raises UserError for one that leads out of `root`, by itself or by a link."""
    parts = column.map(lambda name: pathlib.PurePosixPath(name).parts)
    outside = (column == "") | column.str.startswith("/") | column.str.contains(r"\\|^[A-Za-z]:", regex=True) | parts.map(lambda names: ".." in names)
    release.refuse(outside, column, path, "a path below config.dataset.raw_dir, with / between folders,")
    files = column.map(lambda name: str(pathlib.PurePosixPath(name)))
    if pictures == "dicom":
        files = files.str.replace(r"\.(?:png|jpe?g)$", ".dcm", regex=True, flags=re.IGNORECASE)
    _refuse_links(root, files, column, path)
    return files


def _by_name(root: epath.Path, column: pd.Series, pictures: str, path) -> tuple[pd.Series, tuple[str, ...], int]:
    """Where below `root` the picture of each image lies, '' where none does; pictures of no image; how many links to folders were met.

    A picture is called as its image, or so but for SUFFIXES, of which one may also stand for another that is read as DICOM.
    Raises UserError for a name that is a path, for an image with two pictures, and for a link out of `root`.
    """
    release.refuse(column.str.contains(r"[/\\]", regex=True), column, path, "a name without folders (name the column as path, too)")
    found: dict[str, list[str]] = {}
    unfollowed = 0
    for folder, folders, names in os.walk(root):
        below = os.path.relpath(folder, root)
        unfollowed += sum(os.path.islink(os.path.join(folder, name)) for name in folders)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            found.setdefault(_plain(name), []).append(pathlib.PurePosixPath(below, name).as_posix())

    def of(image: str) -> list[str]:
        stem, suffix = os.path.splitext(_plain(image))
        if pictures == "dicom":
            image = stem if suffix in SUFFIXES["released"] else image
        elif _plain(image) in found:
            return found[_plain(image)]
        return [file for end in SUFFIXES[pictures] for file in found.get(_plain(image) + end, ())]

    files = column.map(of)
    several = files.map(len) > 1
    if several.any():
        line, both = several.idxmax(), sorted(files[several.idxmax()])
        raise UserError(
            f"{path}: line {line}, column {column.name!r}: {column[line]!r} is both {both[0]} and {both[1]} ({int(several.sum())} such);"
            " keep one, or name a column of paths with --config.dataset.columns=\"('path=COLUMN',)\""
        )
    chosen = files.map(lambda there: there[0] if there else "")
    foreign = {file for there in found.values() for file in there if os.path.splitext(file.lower())[1] in [*SUFFIXES["released"], ".dcm", ".dicom"]}
    _refuse_links(root, chosen[chosen != ""], column, path)
    return chosen, tuple(sorted(foreign - set(chosen))), unfollowed


def _plain(name: str) -> str:
    """A name with its suffix in small letters."""
    stem, suffix = os.path.splitext(name)
    return stem + suffix.lower()


def _refuse_links(root: epath.Path, files: pd.Series, column: pd.Series, path) -> None:
    """Raises UserError for the first of `files`, some rows of `column`, that a link leads out of `root`."""
    top = os.path.realpath(root)

    def inside(file: str) -> bool:
        real = os.path.realpath(os.path.join(top, file))
        return real == top or real.startswith(top.rstrip(os.sep) + os.sep)

    folders = {folder: inside(folder) for folder in {os.path.dirname(file) for file in files}}
    with concurrent.futures.ThreadPoolExecutor(32) as pool:  # on a network's disk a matter of waiting
        linked = list(pool.map(lambda file: os.path.islink(os.path.join(top, file)), files))
    bad = pd.Series([not folders[os.path.dirname(file)] or (link and not inside(file)) for file, link in zip(files, linked)], files.index, dtype=bool)
    release.refuse(bad, column.loc[files.index], path, "a picture that no link leads out of config.dataset.raw_dir for")


# ---- the builder ---------------------------------------------------------------------------------


def check_features(path: epath.Path) -> None:
    """Raises UserError where what a built data set says of its features names anything but TFDS's own: TFDS imports what is named there."""
    if not path.exists():
        return

    def named(tree) -> Iterable[str]:
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree if isinstance(tree, list) else ()):
            # The last are of older forms, which hold descriptions as text, and are not written here.
            if isinstance(value, str) and str(key).replace("_", "").lower() in ("pythonclassname", "type", "json"):
                yield value
            yield from named(value)

    foreign = [name for name in named(tables.read_json(path)) if not re.fullmatch(r"tensorflow_datasets\.core\.features(\.\w+)+", name)]
    if foreign:
        raise UserError(f"{path}: names {foreign[0][:80]!r}, which is no feature of TFDS; delete the folder and run `prepare` again")


class Builder(released.Builder):
    """A hospital's own data. See README.md, beside this file. What it stores is known once its table is read."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Nothing is downloaded: `builder_config` names a folder of pictures and a table."

    HOMEPAGE = ""
    BUILDER_CONFIGS = []
    DEFAULT_BUILDER_CONFIG_NAME = None
    read_release = staticmethod(read_release)

    _FEATURES = {
        "text": tfds.features.Text,
        "whole": functools.partial(tfds.features.Scalar, np.int64),
        "number": functools.partial(tfds.features.Scalar, np.float32),
    }

    def _create_builder_config(self, builder_config, version):
        """Every config is its user's own."""
        del builder_config, version
        if not isinstance(self._source, TableConfig):
            raise UserError("cxr_table: a config of `builder_config`, which names a table and its columns, expected")
        return self._source

    @property
    def FINDINGS(self) -> tuple[str, ...]:
        return tuple(name.removeprefix(released.FINDING) for name in self.release.records if name.startswith(released.FINDING))

    @property
    def EXTRA(self) -> dict[str, tfds.features.FeatureConnector]:
        return {name: self._FEATURES[kind]() for name, kind in self.release.kinds.items()}

    @property
    def OPEN_DATA(self) -> bool:
        return self._source.open_data

    def _info(self) -> tfds.core.DatasetInfo:
        if (self.data_path / "dataset_info.json").exists() or not self._source.raw_dir:
            # What was built says itself what it holds; without a table nobody can.
            check_features(self.data_path / "features.json")
            return self.dataset_info_from_configs()
        info = super()._info()
        info.metadata["races"] = list(self.release.races)
        return info

    def _split_generators(self, dl_manager):
        release.folder(self._source.raw_dir, _WHAT)  # there is no other folder to look in
        return super()._split_generators(dl_manager)
