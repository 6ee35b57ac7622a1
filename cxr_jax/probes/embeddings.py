"""A user's own vectors, of any width and from any model, in the place of extracted features.

Two ways to give them:

    one table (Parquet or CSV)      key columns, labels and the vectors' columns, whose names begin alike (`feature_0`, …);
                                    or, in Parquet, one column of lists
    vectors and a key table         the vectors as .npy [n, d], row for row those of the key table; or as a table with
                                    `image_id`, whose rows are matched with those of the key table

Key columns are those of `cxr_jax.tables`: `image_id` and `patient_id` must be there; `split` where there is one; `race`, `sex`,
`view`, `age` and findings (`label_FINDING`: 1, 0, empty) as far as they are known.
"""

from __future__ import annotations

import contextlib
import os
import pathlib

import numpy as np
import pandas as pd

from cxr_jax import tables
from cxr_jax.tables import UserError

TEXT = ("image_id", "patient_id", "study_id", "split", "race", "sex", "view")


def read(path: os.PathLike | str, keys: os.PathLike | str | None, columns: str) -> tuple[pd.DataFrame, np.ndarray]:
    """The table of the images and their vectors, float32 [n, d].

    path: of the vectors. keys: of the table of the images, where it is another file; None or '' where not. columns: how the
    names of the vectors' columns begin, or the name of one column of lists.

    Raises UserError for a missing file, a row count that differs, an image without vector or without key, a missing
    column, an identifier that is empty or there twice, and a number that is none or infinite.
    """
    path = pathlib.Path(path).expanduser()
    keys = pathlib.Path(keys).expanduser() if keys else None
    if path.suffix == ".npy":
        if not keys:
            raise UserError(f"{path}: which images are these? Name the table of their keys with --config.probe.table")
        vectors, names = _npy(path), None
        table = _table(keys)
        if len(table) != len(vectors):
            raise UserError(f"{path}: {len(vectors):,} rows found, {len(table):,} expected, one for each row of {keys}")
    else:
        table = _table(path)
        names, vectors = _vectors(table, columns, path)
        _refuse_not_finite(vectors, names, path)
        if keys:
            if "image_id" not in table:
                raise UserError(f"{path}: no column 'image_id', by which rows are matched with {keys}")
            vectors, table = _matched(table, vectors, _table(keys), path, keys)
        else:
            table = table.drop(columns=names)
    _refuse_not_finite(vectors, names, path)
    source = str(keys or path)
    tables.check_keys(table, source)
    tables.check_findings(table, source)
    ours = [name for name in table if name.startswith((tables.SCORE, tables.STRATUM, tables.SHUFFLED, tables.TRUE, tables.CEILING))]
    if ours:
        raise UserError(f"{source}: column {ours[0]!r}: a name that begins as our own results do; rename it or leave it out")
    return table, vectors


LARGEST = 1e15  # whose square, summed over thousands of columns, float32 still holds


def _refuse_not_finite(vectors: np.ndarray, names: list[str] | None, path: pathlib.Path) -> None:
    bad = ~(np.abs(vectors) <= LARGEST)
    if bad.any():
        row, column = (int(i) for i in np.argwhere(bad)[0])
        where = f"column {names[column]!r}" if names and len(names) > 1 else f"vector entry {column + 1}"
        raise UserError(
            f"{path}: row {row + 1}, {where}: {float(vectors[row, column]):g} found, a number within ±{LARGEST:g} expected"
            f" ({int(bad.any(axis=1).sum()):,} such rows)"
        )


def _npy(path: pathlib.Path) -> np.ndarray:
    try:
        vectors = tables.map_array(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: not a .npy file, or only half of one ({error})") from None
    if vectors.ndim != 2 or not vectors.size or not (np.issubdtype(vectors.dtype, np.floating) or np.issubdtype(vectors.dtype, np.integer)):
        raise UserError(f"{path}: {vectors.dtype} {list(vectors.shape)} found, numbers [images, width] expected")
    return np.asarray(vectors, np.float32)


def _table(path: pathlib.Path) -> pd.DataFrame:
    """A Parquet or CSV file; identifiers and class labels as text, whatever they look like."""
    if path.suffix == ".parquet":
        table, _ = tables.read_parquet(path)
        named = [name for name in table.index.names if name is not None]  # pandas keeps an index apart from the columns
        table = table.reset_index(named).rename(columns=str)
    elif path.suffix in (".csv", ".gz"):
        try:
            # NA, None and the like are words that a class may be called; nothing is what is empty.
            words = {name: "str" for name in TEXT}
            table = pd.read_csv(path, dtype=words, low_memory=False, keep_default_na=False, na_values={c: [""] for c in _header(path)})
            for name in (c for c in table if c not in TEXT and not pd.api.types.is_numeric_dtype(table[c])):
                # "nan" is how many programs write a number that is none.
                table[name] = table[name].where(~table[name].isin(("nan", "NaN", "NA")))
                with contextlib.suppress(ValueError, TypeError):
                    table[name] = pd.to_numeric(table[name])
        except FileNotFoundError:
            raise UserError(f"{path}: no such file") from None
        except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, OSError, EOFError) as error:
            raise UserError(f"{path}: not a CSV file, or only half of one ({str(error).splitlines()[0]})") from None
    else:
        raise UserError(f"{path}: a name that ends in .parquet, .csv, .csv.gz or .npy expected")
    if not len(table):
        raise UserError(f"{path}: no row")
    for name in (name for name in TEXT if name in table):
        tables.refuse(tables.no_text(table[name]), str(path), name, table, "text")
        table[name] = table[name].astype("str").where(table[name].notna(), None)
    if "age" in table and not pd.api.types.is_numeric_dtype(table["age"]):
        _refuse_words(table, "age", path, "a number of years, or an empty cell")
    return table


def _header(path: pathlib.Path) -> list[str]:
    return list(pd.read_csv(path, nrows=0))


def _refuse_words(table: pd.DataFrame, name: str, path: pathlib.Path, wanted: str) -> None:
    """Raises UserError at the first cell of a column that is neither empty nor a number."""
    bad = (pd.to_numeric(table[name], errors="coerce").isna() & table[name].notna()).to_numpy()
    if not bad.any():  # numbers that Parquet holds as text
        bad = table[name].notna().to_numpy()
    tables.refuse(bad, str(path), name, table, wanted)


def _vectors(table: pd.DataFrame, columns: str, path: pathlib.Path) -> tuple[list[str], np.ndarray]:
    """Names of the columns that hold the vectors, and these, float32 [n, d]."""
    if columns in table:
        rows = table[columns].to_list()
        for row, one in enumerate(rows):
            if not isinstance(one, (list, np.ndarray)) or np.ndim(one) != 1 or not len(one) or not np.issubdtype(np.asarray(one).dtype, np.number):
                raise UserError(f"{path}: row {row + 1}, column {columns!r}: {one!r} found, a list of numbers expected")
            if len(one) != len(rows[0]):
                raise UserError(f"{path}: row {row + 1}, column {columns!r}: {len(one)} numbers found, {len(rows[0])} expected")
        return [columns], np.stack([np.asarray(one, np.float32) for one in rows])
    names = [name for name in table if name.startswith(columns)]
    if not names:
        raise UserError(f"{path}: no column whose name begins with {columns!r}; say how they begin with --config.probe.columns")
    for name in names:
        if not pd.api.types.is_numeric_dtype(table[name]):
            _refuse_words(table, name, path, "a number")
    return names, table[names].to_numpy(np.float32, na_value=np.nan)


def _matched(table: pd.DataFrame, vectors: np.ndarray, keys: pd.DataFrame, path, keys_path) -> tuple[np.ndarray, pd.DataFrame]:
    """Vectors in the order of the key table. Every image must be in both."""
    if "image_id" not in keys:
        raise UserError(f"{keys_path}: no column 'image_id'")
    for ids, where in ((table["image_id"], path), (keys["image_id"], keys_path)):
        twice = ids.duplicated().to_numpy()
        if twice.any():
            row = int(np.flatnonzero(twice)[0])
            raise UserError(f"{where}: row {row + 1}, column 'image_id': {ids.iloc[row]!r} is there twice")
    at = pd.Index(table["image_id"]).get_indexer(keys["image_id"])
    if (at < 0).any():
        row = int(np.flatnonzero(at < 0)[0])
        raise UserError(
            f"{keys_path}: row {row + 1}, image {keys['image_id'].iloc[row]!r} has no vector in {path}"
            f" ({int((at < 0).sum()):,} such images)"
        )
    if len(table) > len(keys):
        without = ~table["image_id"].isin(keys["image_id"]).to_numpy()
        row = int(np.flatnonzero(without)[0])
        raise UserError(
            f"{path}: row {row + 1}, image {table['image_id'].iloc[row]!r} is not in {keys_path} ({int(without.sum()):,} such images)"
        )
    return vectors[at], keys
