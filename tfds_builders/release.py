"""Reading a release's tables and folders so that whatever is wrong with them is named by file, line and column."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd
from etils import epath

from cxr_jax.tables import UserError


def folder(raw_dir: os.PathLike | str, what: str) -> epath.Path:
    """`raw_dir` as a path. Raises UserError where it is empty or no folder; `what` says what should lie there."""
    if not os.fspath(raw_dir):
        raise UserError(f"dataset.raw_dir is not set: it names the folder of {what}")
    path = epath.Path(raw_dir).expanduser()
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; dataset.raw_dir names the folder of {what}")
    return path


def read_text(path: os.PathLike | str) -> str:
    """Text of a UTF-8 file, unpacked where its name ends in .gz. Raises UserError."""
    path = epath.Path(path)
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
        return data.decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (UnicodeDecodeError, EOFError, OSError, zlib.error) as error:
        raise UserError(f"{path}: not a readable text file ({error})") from None


def read_table(path: os.PathLike | str, required: Sequence[str]) -> pd.DataFrame:
    """The `required` columns of a CSV as stripped text, in that order, indexed by line of the file (the header is 1).

    A header cell that holds commas stands for several columns: some releases name a pair `Size[Width,Height]`, quoted
    or not, over two columns of values. Commas at the end of a line, which give empty cells, are let pass.

    Raises UserError for a missing or unreadable file, a missing column (naming it and those that are there), a column
    that is there twice, and the first line that has too many or too few cells.
    """
    lines = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    rows: list[list[str]] = []
    numbers: list[int] = []
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
        for cells in lines:
            if not cells:
                continue
            if len(cells) < len(header) or any(cells[len(header) :]):
                raise UserError(
                    f"{path}: line {lines.line_num}: {len(cells)} cells found, {len(header)} expected; the file may be"
                    " cut short or edited"
                )
            rows.append(cells[: len(header)])
            numbers.append(lines.line_num)
    except csv.Error as error:
        raise UserError(f"{path}: line {lines.line_num}: not valid CSV ({error})") from None
    if not rows:
        raise UserError(f"{path}: a header and no rows")
    table = pd.DataFrame(rows, columns=header, index=pd.Index(numbers, name="line"), dtype="str")
    return table[list(required)].apply(lambda column: column.str.strip())


def refuse(bad: pd.Series, column: pd.Series, path: os.PathLike | str, expected: str) -> None:
    """Raises UserError for the first line where `bad` (bool, indexed as `column`), naming file, line, column, value."""
    if bad.any():
        line = bad.index[bad.to_numpy()][0]
        count = int(bad.sum())
        raise UserError(
            f"{path}: line {line}, column {column.name!r}: {column.loc[line]!r} found, {expected} expected"
            f" ({count} such line{'s' if count > 1 else ''})"
        )


def refuse_duplicates(column: pd.Series, path: os.PathLike | str) -> None:
    """Raises UserError naming the first value that stands on several lines, these lines, and how many there are."""
    again = column.index[column.duplicated().to_numpy()]
    if len(again):
        value = column.loc[again[0]]
        both = [str(line) for line in column.index[(column == value).to_numpy()]]
        raise UserError(
            f"{path}: lines {' and '.join(both)}, column {column.name!r}: {value!r} found more than once, each image"
            f" once expected ({column[column.duplicated()].nunique()} such)"
        )


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


def fingerprint(documents: Iterable[epath.Path], files: Mapping[str, epath.Path]) -> str:
    """sha256 (hexadecimal) over the documents' names and contents, and over the names and sizes of `files`.

    Pictures are not read: a second for a hundred thousand of them. It does not depend on where the release lies, nor on
    the folders that its pictures are in.
    """
    digest = hashlib.sha256()
    for path in documents:
        content = path.read_bytes()
        digest.update(f"{path.name}\0{len(content)}\0".encode())
        digest.update(content)
    for name in sorted(files):
        try:
            size = files[name].stat().length
        except OSError:  # a link whose target is gone, or goes in circles: the build sets such a picture aside
            size = -1
        digest.update(f"{name}\0{size}\n".encode())
    return digest.hexdigest()
