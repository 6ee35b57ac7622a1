"""Reading a release's tables and folders so that whatever is wrong with them is named by file, line and column."""

from __future__ import annotations

import concurrent.futures
import csv
import functools
import gzip
import hashlib
import io
import os
import stat
import zlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
from etils import epath

from cxr_jax.data.race_rules import BETWEEN
from cxr_jax.tables import UserError, check_disjoint


# CheXpert's fourteen in its order, which are MIMIC-CXR's too.
CHEXPERT_FINDINGS = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)


def folder(raw_dir: os.PathLike | str, what: str, field: str = "config.dataset.raw_dir") -> epath.Path:
    """`raw_dir` as a path. Raises UserError where it is empty or no folder.

    what: what should lie there. field: of the config, which the error names.
    """
    if not os.fspath(raw_dir):
        raise UserError(f"{field} is not set: it names the folder of {what}")
    path = epath.Path(raw_dir).expanduser()
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; {field} names the folder of {what}")
    return path


def read_text(path: os.PathLike | str) -> str:
    """Text of a UTF-8 file, unpacked where its name ends in .gz. Raises UserError."""
    try:
        return _content(epath.Path(path)).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a readable text file ({error})") from None


def _content(path: epath.Path) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.suffix == ".gz" else data
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (EOFError, OSError, zlib.error) as error:
        raise UserError(f"{path}: not a readable text file ({error})") from None


def read_table(path: os.PathLike | str, required: Sequence[str]) -> pd.DataFrame:
    """The `required` columns of a CSV as stripped text, in that order, indexed by line of the file (the header is 1).

    A header cell that holds commas stands for several columns: some releases name a pair `Size[Width,Height]`, quoted
    or not, over two columns of values. Commas at the end of a line, which give empty cells, are let pass.

    Raises UserError for a missing or unreadable file, a missing column (naming it and those that are there), a column
    that is there twice, and the first line that has too many or too few cells.
    """
    text = read_text(path)
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    columns: list[list[str]] = [[] for _ in required]
    numbers: list[int] = []
    rows: list[list[str]] = []
    try:
        header = [name.strip() for cell in next(lines, []) for name in cell.split(",")]
        while header and not header[-1]:
            header.pop()
        if not header:
            raise UserError(f"{path}: empty; a table with the columns {', '.join(required)} expected")
        for name in required:
            if header.count(name) != 1:
                found = "no column" if name not in header else "more than one column"
                raise UserError(f"{path}: {found} {name!r}; the table has {', '.join(header)}")
        wanted, width = [header.index(name) for name in required], len(header)
        if plain := _read_plain(text, wanted, width):
            index = pd.RangeIndex(2, plain.num_rows + 2, name="line")
            return pd.DataFrame({name: _text(cells, index) for name, cells in zip(required, plain.columns, strict=True)})

        def keep() -> None:
            # Some rows at a time: a million lists of cells would be slow to make, and larger than the table.
            for column, i in zip(columns, wanted, strict=True):
                column.extend([cells[i] for cells in rows])
            rows.clear()

        for cells in lines:
            if len(cells) != width:
                if not cells:
                    continue
                if len(cells) < width or any(cells[width:]):
                    raise UserError(
                        f"{path}: line {lines.line_num}: {len(cells)} cells found, {width} expected; the file may be cut"
                        " short or edited"
                    )
            rows.append(cells)
            numbers.append(lines.line_num)
            if len(rows) == 4096:
                keep()
        keep()
    except csv.Error as error:
        raise UserError(f"{path}: line {lines.line_num}: not valid CSV ({error})") from None
    if not numbers:
        raise UserError(f"{path}: a header and no rows")
    index = pd.Index(numbers, name="line")
    return pd.DataFrame({name: _text(cells, index) for name, cells in zip(required, columns, strict=True)})


def _read_plain(text: str, wanted: Sequence[int], width: int) -> pa.Table | None:
    """Columns `wanted` of a table without quotes, a row a line, in a tenth of the time that csv takes.

    None where it is not so plain, or anything is wrong with it: csv says what, and where.
    """
    if '"' in text:
        return None
    names = [str(i) for i in range(width)]
    as_text = dict.fromkeys(names, pa.large_string())
    try:
        found = pa.csv.read_csv(
            pa.BufferReader(text.encode()),
            pa.csv.ReadOptions(column_names=names, skip_rows=1),
            pa.csv.ParseOptions(quote_char=False),
            pa.csv.ConvertOptions(column_types=as_text, include_columns=[names[i] for i in wanted]),
        )
    except pa.ArrowInvalid:
        return None
    return found if found.num_rows == text.rstrip("\n").count("\n") else None  # blank lines are no rows


def _text(cells: pa.ChunkedArray | list[str], index: pd.Index) -> pd.Series:
    return pd.Series(pd.array(cells, dtype="str"), index).str.strip()


def table_path(root: epath.Path, *names: str) -> epath.Path:
    """The first of the files `names` that is in `root`, each as it is or with .gz. Raises UserError for none."""
    found = optional_path(root, *names)
    if found is None:
        raise UserError(f"{root}: the table is missing: no {' or '.join(names)}, with or without .gz")
    return found


def optional_path(root: epath.Path, *names: str) -> epath.Path | None:
    """As `table_path`, None where there is none."""
    paths = (root / (name + end) for name in names for end in _ENDS)
    return next((path for path in paths if path.is_file()), None)


_ENDS = ("", ".gz")


def refuse(bad: pd.Series, column: pd.Series, path: os.PathLike | str, expected: str) -> None:
    """Raises UserError for the first line where `bad` (bool, indexed as `column`), naming file, line, column, value."""
    if bad.any():
        line = bad.index[bad.to_numpy()][0]
        count = int(bad.sum())
        raise UserError(
            f"{path}: line {line}, column {column.name!r}: {column.loc[line]!r} found, {expected} expected"
            f" ({count} such line{'s' if count > 1 else ''})"
        )


def refuse_duplicates(column: pd.Series, path: os.PathLike | str, expected: str = "each image once") -> None:
    """Raises UserError naming the first value that stands on several lines, these lines, and how many there are."""
    again = column.index[column.duplicated().to_numpy()]
    if len(again):
        value = column.loc[again[0]]
        both = [str(line) for line in column.index[(column == value).to_numpy()]]
        raise UserError(
            f"{path}: lines {' and '.join(both)}, column {column.name!r}: {value!r} found more than once, {expected}"
            f" expected ({column[column.duplicated()].nunique()} such)"
        )


def refuse_shared_patients(records: pd.DataFrame, source: os.PathLike | str, table: str | Mapping[str, str]) -> None:
    """Raises UserError for a patient in two released splits, naming `source` and the patient's first line in each split.

    table: name of the file that the index of `records` counts the lines of; of an index by table and line, such a name for
        each table.
    """
    try:
        check_disjoint(records.rename(columns={"released_split": "split"}), source)
    except UserError as error:
        splits = records.groupby("patient_id", observed=True)["released_split"].nunique()
        of = records[records["patient_id"] == splits.index[splits > 1][0]]
        first = of[~of["released_split"].duplicated()]
        where = [f"line {i} of {table}" if isinstance(table, str) else f"line {i[1]} of {table[i[0]]}" for i in first.index]
        said = " and ".join(f"{split} ({line})" for split, line in zip(first["released_split"], where))
        raise UserError(f"{error}; the patient's first images in {said}") from None


def numbers(column: pd.Series, path: os.PathLike | str, *, whole: bool, least: float = 0) -> pd.Series:
    """A text column as int32 (`whole`, of at most nine digits) or float64.

    Raises UserError where a cell is no such number or below `least`.
    """
    pattern = r"\d{1,9}" if whole else r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
    kind = "a whole number" if whole else "a number"
    expected = f"{kind} of at least {least:g}"
    refuse(~column.str.fullmatch(pattern), column, path, expected)
    values = column.astype("int32" if whole else "float64")
    refuse(values < least, column, path, expected)
    return values


def optional_numbers(column: pd.Series, path: os.PathLike | str) -> pd.Series:
    """A text column as float64, NaN for an empty cell. Raises UserError for anything else that is no number."""
    values = pd.to_numeric(column.mask(column == ""), errors="coerce").astype("float64")
    refuse(values.isna() & (column != ""), column, path, "a number or an empty cell")
    return values


def each_once(owner: pd.Series, value: pd.Series, path: os.PathLike | str) -> pd.Series:
    """The values of each owner, each once, in the order of the rows, with BETWEEN between: str, indexed by owner.

    Empty values are left out, and owners who have no other. Raises UserError for a value that holds BETWEEN.
    """
    refuse(value.str.contains(BETWEEN, regex=False), value, path, f"a value without {BETWEEN!r}")
    once = pd.DataFrame({"owner": owner, "value": value})[value != ""].drop_duplicates()
    # Most owners have one value, and need no joining.
    several = once["owner"].duplicated(keep=False)
    joined = once[several].groupby("owner")["value"].agg(BETWEEN.join)
    return pd.concat([once[~several].set_index("owner")["value"], joined])


def picture_files(folders: Iterable[epath.Path]) -> dict[str, epath.Path]:
    """Every file in `folders` by name, hidden ones aside. Raises UserError where two folders hold the same name."""
    found: dict[str, epath.Path] = {}
    for directory in folders:
        for path in sorted(directory.iterdir()):
            if path.name.startswith("."):
                continue
            if path.name in found:
                raise UserError(f"{path}: also there as {found[path.name]}; keep one of the two")
            found[path.name] = path
    return found


MISSING, LEADS_OUT, NO_FILE = -1, -2, -3  # in the place of a size


def sizes(root: epath.Path, paths: pd.Series, *also: epath.Path) -> np.ndarray:
    """Bytes of each file `paths` (below `root`), 0 where it cannot be looked at: int64 [n].

    MISSING where it is; LEADS_OUT where a link leads out of `root`, and out of the folders `also`: whoever packed a release could
    have it end anywhere; NO_FILE for a device or a pipe, of which reading may never end.

    What cannot be looked at, for lack of permission or as a link in circles, is not missing: reading it says what is wrong.
    Hundreds of thousands of files on a network's disk are a matter of waiting, so that many are asked for at once.
    """
    local = os.fspath(root) if "://" not in os.fspath(root) else ""
    tops = [os.path.realpath(folder) for folder in (local, *map(os.fspath, also))] if local else []

    def within(path: str) -> bool:
        real = os.path.realpath(path)
        return any(real == top or real.startswith(top.rstrip(os.sep) + os.sep) for top in tops)

    @functools.cache
    def reached(folder: str) -> bool:
        """Whether the way to a folder below `root` stays within."""
        if folder == local:
            return True
        above = os.path.dirname(folder)
        return within(folder) if ".." in folder[len(local) :].split(os.sep) or os.path.islink(folder) else above != folder and reached(above)

    def size(path: str) -> int:
        try:
            if not local:
                return (root / path).stat().length
            file = os.path.join(local, path)
            found = os.lstat(file)
            if not reached(os.path.dirname(file)):
                return LEADS_OUT
            if stat.S_ISLNK(found.st_mode):
                found = os.stat(file)
                if not within(file):
                    return LEADS_OUT
            return found.st_size if stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode) else NO_FILE
        except (FileNotFoundError, NotADirectoryError):
            return MISSING
        except OSError:
            return 0

    listed = paths.to_list()
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        chunks = [listed[i : i + 1024] for i in range(0, len(listed), 1024)]
        found = list(pool.map(lambda chunk: [size(path) for path in chunk], chunks))
    return np.array([n for chunk in found for n in chunk], np.int64)


def fingerprint(documents: Iterable[epath.Path], names: pd.Series, sizes: pd.Series) -> str:
    """sha256 (hexadecimal) over the documents' names and contents, and over the pictures' names and sizes.

    Pictures are not read. It does not depend on where the release lies, nor on the folders that its pictures are in, nor
    on whether a table is gzipped. Raises UserError for a document that cannot be unpacked.
    """
    digest = hashlib.sha256()
    for path in documents:
        content = _content(path)
        digest.update(f"{path.name.removesuffix('.gz')}\0{len(content)}\0".encode())
        digest.update(content)
    digest.update("".join(f"{name}\0{size}\n" for name, size in sorted(zip(names.to_list(), sizes.to_list()))).encode())
    return digest.hexdigest()
