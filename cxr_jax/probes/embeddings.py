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
    if path.suffix == ".npy":
        if not keys:
            raise UserError(f"{path}: which images are these? Name the table of their keys with --config.probe.table")
        vectors = _npy(path)
        table = _table(pathlib.Path(keys).expanduser())
        if len(table) != len(vectors):
            raise UserError(f"{path}: {len(vectors):,} rows found, {len(table):,} expected, one for each row of {keys}")
        source = str(path)
    else:
        whole = _table(path)
        names, vectors = _vectors(whole, columns, path)
        table, source = whole.drop(columns=names), str(path)
        if keys:
            if "image_id" not in table:
                raise UserError(f"{path}: no column 'image_id', by which rows are matched with {keys}")
            vectors, table = _matched(table, vectors, _table(pathlib.Path(keys).expanduser()), path, keys)
    tables.check_keys(table, str(keys or path))
    bad = ~np.isfinite(vectors)
    if bad.any():
        row, column = (int(i) for i in np.argwhere(bad)[0])
        found = float(vectors[row, column])
        raise UserError(
            f"{source}: row {row + 1}, vector entry {column + 1}: {found} found, a finite number expected"
            f" ({int(bad.any(axis=1).sum()):,} such rows)"
        )
    return table, vectors


def _npy(path: pathlib.Path) -> np.ndarray:
    try:
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path}: not a .npy file, or only half of one ({error})") from None
    if vectors.ndim != 2 or not (np.issubdtype(vectors.dtype, np.floating) or np.issubdtype(vectors.dtype, np.integer)):
        raise UserError(f"{path}: {vectors.dtype} {list(vectors.shape)} found, numbers [images, width] expected")
    return np.asarray(vectors, np.float32)


def _table(path: pathlib.Path) -> pd.DataFrame:
    """A Parquet or CSV file; identifiers and class labels as text, whatever they look like."""
    if path.suffix == ".parquet":
        table, _ = tables.read_parquet(path)
    elif path.suffix in (".csv", ".gz"):
        try:
            table = pd.read_csv(path, dtype={name: "str" for name in TEXT}, low_memory=False)
        except FileNotFoundError:
            raise UserError(f"{path}: no such file") from None
        except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, OSError, EOFError) as error:
            raise UserError(f"{path}: not a CSV file, or only half of one ({str(error).splitlines()[0]})") from None
    else:
        raise UserError(f"{path}: a name that ends in .parquet, .csv, .csv.gz or .npy expected")
    for name in (name for name in TEXT if name in table):
        table[name] = table[name].astype("str").where(table[name].notna(), None)
    return table


def _vectors(table: pd.DataFrame, columns: str, path: pathlib.Path) -> tuple[list[str], np.ndarray]:
    """Names of the columns that hold the vectors, and these, float32 [n, d]."""
    if columns in table:
        lengths = table[columns].map(np.size)
        if lengths.nunique() > 1:
            row = int(np.flatnonzero(lengths != lengths.iloc[0])[0])
            raise UserError(f"{path}: row {row + 1}, column {columns!r}: {lengths.iloc[row]} numbers found, {lengths.iloc[0]} expected")
        return [columns], np.stack(table[columns].map(lambda one: np.asarray(one, np.float32)).to_list())
    names = [name for name in table if name.startswith(columns)]
    if not names:
        raise UserError(f"{path}: no column whose name begins with {columns!r}; say how they begin with --config.probe.columns")
    for name in names:
        if not pd.api.types.is_numeric_dtype(table[name]):
            numbers = pd.to_numeric(table[name], errors="coerce")
            row = int(np.flatnonzero(numbers.isna())[0])
            raise UserError(f"{path}: row {row + 1}, column {name!r}: {table[name].iloc[row]!r} found, a number expected")
    return names, table[names].to_numpy(np.float32, na_value=np.nan)


def _matched(table, vectors, keys: pd.DataFrame, path, keys_path) -> tuple[np.ndarray, pd.DataFrame]:
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
