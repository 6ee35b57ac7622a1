"""The records that stages exchange: one row an image, in Parquet, checked on the way in and on the way out.

A stage never hands another stage an object. It writes a file, and the next one reads it; so a user's own predictions can
enter wherever ours would. What a file must hold is said here, once.

Key columns, of which `image_id` and `patient_id` are required and the rest are kept where the data set has them:

    image_id, patient_id, study_id, split   str
    sex, view, race                         str, missing as null
    age                                     float, years, missing as NaN

`split` is one of train, validation, test. Further attributes may stand beside them, under names of their own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import numbers
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

KEY_COLUMNS = ("image_id", "patient_id", "study_id", "split", "race", "sex", "age", "view")
SPLITS = ("train", "validation", "test")
# Columns that say which image or patient, or where it lies, and so make no groups.
IDENTIFIERS = ("image_id", "patient_id", "study_id", "split", "stored_split", "released_split", "dataset", "record")

LABEL = "label_"  # label_TARGET: what the release says
SCORE = "score_"  # score_CLASS: what the model says, a probability
STRATUM = "stratum_"  # stratum_NAME: the group of an image among which probes are fitted and judged anew
AS_MANY = "as many as "  # a stratification for control: the groups of another one, dealt at random
SHUFFLED = "shuffled_"  # shuffled_TARGET: the labels of other patients, for control
TRUE = "true_"  # true_FINDING: what is so, where the data's truth is known
CEILING = "ceiling_"  # ceiling_CLASS: the best that any model could say, where the data's truth is known


class UserError(Exception):
    """A mistake that the user can mend. `main` prints its one line and exits with status 1, without a traceback."""


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error, what it came from, and so on: libraries wrap what they meet, and what they call."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


@dataclasses.dataclass(frozen=True)
class Target:
    """What is predicted.

    kind: `multiclass`, whose classes exclude one another and whose scores add up to 1, or `multilabel`, whose classes
        are findings, each with a label of its own.
    classes: names, in the order of the model's outputs.
    """

    kind: str
    classes: tuple[str, ...]

    def __post_init__(self):
        if self.kind not in ("multiclass", "multilabel"):
            raise ValueError(f"a target is multiclass or multilabel, not {self.kind!r}")
        if len(set(self.classes)) != len(self.classes) or not self.classes:
            raise ValueError(f"the classes of a target must be distinct and at least one: {self.classes}")


def targets_as_json(targets: Mapping[str, Target]) -> dict:
    return {name: {"kind": target.kind, "classes": list(target.classes)} for name, target in targets.items()}


def targets_from_json(stored: Mapping[str, Mapping]) -> dict[str, Target]:
    """What `targets_as_json` gave. Raises KeyError, TypeError or AttributeError for anything else."""
    return {name: Target(target["kind"], tuple(target["classes"])) for name, target in stored.items()}


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Scores of a model, or of a user's own, beside the truth and the key columns.

    table: one row an image. For a multiclass target T: `label_T` (str, null where unknown) and `score_CLASS` for each
        class. For a multilabel target: `label_CLASS` (1, 0, NaN where unknown) and `score_CLASS` for each class. Where
        the data's generative model is known, `ceiling_CLASS` holds the exact posterior; and `true_FINDING`, 1 or 0, what is
        so, whatever the label says.
    targets: by name. Class names are distinct over all targets, so that a score column has one owner.
    open_data: whether single images may be shown outside a workdir.
    """

    table: pd.DataFrame
    targets: Mapping[str, Target]
    open_data: bool = False

    def label(self, target: str, name: str) -> np.ndarray:
        """One-vs-rest truth of class `name`: float64 [n], 1 or 0, NaN where unknown."""
        if self.targets[target].kind == "multilabel":
            return self.table[LABEL + name].to_numpy(np.float64)
        recorded = self.table[LABEL + target]
        return np.where(recorded.isna(), np.nan, (recorded == name).astype(np.float64))

    def labels(self, target: str) -> np.ndarray:
        """`label` of every class: float64 [n, classes], in the order of the target's classes."""
        return np.stack([self.label(target, name) for name in self.targets[target].classes], axis=1)

    def scores(self, target: str, prefix: str = SCORE) -> np.ndarray:
        """float64 [n, classes], in the order of the target's classes. Raises KeyError where a column is missing."""
        return self.table[[prefix + name for name in self.targets[target].classes]].to_numpy(np.float64)

    def has_ceiling(self, target: str) -> bool:
        return all(CEILING + name in self.table for name in self.targets[target].classes)

    def check(self, source: str = "predictions") -> "Predictions":
        """Returns self, or raises UserError that names `source`, the column and the first row at fault."""
        names = [name for target in self.targets.values() for name in target.classes]
        if len(set(names)) != len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise UserError(f"{source}: class {twice[0]!r} belongs to two targets; rename one of them")
        check_keys(self.table, source)
        for target_name, target in self.targets.items():
            labels = [LABEL + target_name] if target.kind == "multiclass" else [LABEL + c for c in target.classes]
            for column in [*labels, *(SCORE + c for c in target.classes)]:
                if column not in self.table:
                    raise UserError(f"{source}: no column {column!r}, which target {target_name!r} needs")
            # Part of the ceilings is none: see `has_ceiling`.
            prefixes = (SCORE, CEILING) if self.has_ceiling(target_name) else (SCORE,)
            for column in (prefix + c for prefix in prefixes for c in target.classes):
                wanted = "a score in [0, 1]"
                values = _numbers(self.table, source, column, wanted)
                refuse(~((values >= 0) & (values <= 1)), source, column, self.table, wanted)
            if target.kind == "multiclass":
                recorded = self.table[labels[0]]
                unknown = ~(recorded.isna() | recorded.isin(target.classes)).to_numpy()
                refuse(unknown, source, labels[0], self.table, f"one of {', '.join(target.classes)}, or empty")
            else:
                for column in [*labels, *(TRUE + c for c in target.classes if TRUE + c in self.table)]:
                    values = _numbers(self.table, source, column, "1, 0 or empty")
                    refuse(~(np.isnan(values) | np.isin(values, (0, 1))), source, column, self.table, "1, 0 or empty")
        return self

    def write(self, path: os.PathLike | str) -> None:
        """Writes Parquet at `path`, whole or not at all; targets travel in the file's own metadata."""
        self.check(str(path))
        write_parquet(self.table, path, {"targets": targets_as_json(self.targets), "open_data": self.open_data})

    @classmethod
    def read(cls, path: os.PathLike | str) -> "Predictions":
        """Reads what `write` wrote. Raises UserError for a missing file, one that is not ours, or one that fails `check`."""
        table, meta = read_parquet(path)
        if "targets" not in meta:
            raise UserError(f"{path}: not written by `predict` (the file does not say which targets it holds)")
        with _as_written(path, "predict"):
            targets, open_data = targets_from_json(meta["targets"]), bool(meta["open_data"])
        return cls(table, targets, open_data).check(str(path))


FEATURES = "features"  # the array of what the heads of a network read; a user's own embeddings are called so too
SCORES = "scores"  # the array of log-odds that the network's own heads give findings: what is known from scores alone
ON = "on_"  # on_NAME, a split: the test images of another data set
UNERASED = "unerased"  # where something was taken from the features: these as they were
HALVED = "halved"  # halved1, halved2, …: features from which it was taken by what half as many patients tell, a fourth as many, …


@dataclasses.dataclass(frozen=True)
class Features:
    """Vectors of the images of one split, beside the key columns and the truth.

    table: one row an image, as for Predictions but without scores: key columns and attributes; `label_FINDING` (1, 0, NaN);
        where the data's truth is known, `true_FINDING` and `ceiling_CLASS`.
    arrays: by name, float32 [n, width], row i for row i of the table. `features` is what the heads read, or a user's own;
        further ones are other views of the same images. Memory-mapped where they were read from disk.
    about: what else a reader must know, as JSON: `classes`, {attribute: its classes in their order}, is always there.
    """

    table: pd.DataFrame
    arrays: Mapping[str, np.ndarray]
    about: Mapping

    @classmethod
    def read(cls, folder: os.PathLike | str, split: str) -> "Features":
        """The split that `FeatureFiles` wrote in `folder`. Raises UserError for one that is missing or only half there."""
        path = pathlib.Path(folder) / f"{split}.parquet"
        if not path.exists():
            raise UserError(f"{path}: no such file; run the extract stage first")
        table, about = read_parquet(path)
        if "arrays" not in about:
            raise UserError(f"{path}: not written by `extract` (the file does not say which arrays it goes with)")
        check_keys(table, str(path))
        arrays = {}
        with _as_written(path, "extract"):
            widths = dict(about["arrays"])
        for name, width in widths.items():
            if os.sep in name:  # what a file says of itself leads nowhere else
                raise UserError(f"{path}: names an array {name!r}, which is a path; run the extract stage again")
            file = _array_path(path.parent, split, name)
            try:
                arrays[name] = map_array(file)
            except (OSError, ValueError) as error:
                raise UserError(f"{file}: cannot be read ({first_line(error)}); run the extract stage again") from None
            if arrays[name].shape != (len(table), width) or arrays[name].dtype != np.float32:
                found = f"{arrays[name].dtype} {list(arrays[name].shape)}"
                raise UserError(f"{file}: {found} found, float32 [{len(table)}, {width}] expected; run the extract stage again")
        return cls(table, arrays, about)


@dataclasses.dataclass(frozen=True)
class Reading:
    """One probe, fitted to tell the classes of a target from one kind of vectors, in some images.

    input: the name of an array of Features, or `findings` or `demographics`, vectors made of the table. shuffled: the labels
    are other patients'. attribute, group: the stratum that it is fitted and judged in; '' for all images. An attribute that
    begins with AS_MANY is a control: about as many images as in that group of the attribute it names, drawn at random. about: how it was
    fitted, as JSON: always `fit_images` and `fit_patients`; `reason` where something is missing.
    """

    target: str
    probe: str
    input: str
    shuffled: bool = False
    attribute: str = ""
    group: str = ""
    about: Mapping = dataclasses.field(default_factory=dict, compare=False)

    @property
    def name(self) -> str:
        stratum = f", {self.attribute}: {self.group}" if self.attribute else ""
        return f"{self.target} by {self.probe} from {self.input}{', shuffled' if self.shuffled else ''}{stratum}"


@dataclasses.dataclass(frozen=True)
class Readings:
    """What probes say of the images of the test split.

    table: one row an image, as for Features; for each target T `label_T` and `shuffled_T`, and for each attribute of a
        reading `stratum_ATTRIBUTE` (str, null where unknown).
    targets: classes by target. readings: what was read. scores: by a reading's name, float32 [n, classes]; NaN where nothing
    could be fitted, or of a class that training lacks. found: what else the probes have found, as JSON.
    """

    table: pd.DataFrame
    targets: Mapping[str, tuple[str, ...]]
    readings: Sequence[Reading]
    scores: Mapping[str, np.ndarray]
    found: Mapping

    def write(self, path: os.PathLike | str) -> None:
        """Writes Parquet at `path`, whole or not at all; what is no table travels in the file's own metadata."""
        columns = {}
        for i, reading in enumerate(self.readings):
            for k, values in enumerate(self.scores[reading.name].T):
                columns[f"{SCORE}{i}_{k}"] = values
        table = pd.concat([self.table.reset_index(drop=True), pd.DataFrame(columns)], axis=1)
        meta = {
            "targets": {name: list(classes) for name, classes in self.targets.items()},
            "readings": [dataclasses.asdict(reading) for reading in self.readings],
            "found": self.found,
        }
        write_parquet(table, path, without_nan(meta))

    @classmethod
    def read(cls, path: os.PathLike | str) -> "Readings":
        """Reads what `write` wrote. Raises UserError for a missing file or one that is not ours."""
        table, meta = read_parquet(path)
        if "readings" not in meta:
            raise UserError(f"{path}: not written by `probe` (the file does not say which readings it holds)")
        check_keys(table, str(path))
        scores, drop = {}, []
        with _as_written(path, "probe"):
            readings = [Reading(**stored) for stored in meta["readings"]]
            targets = {name: tuple(classes) for name, classes in meta["targets"].items()}
            for i, reading in enumerate(readings):
                names = [f"{SCORE}{i}_{k}" for k in range(len(targets[reading.target]))]
                scores[reading.name] = table[names].to_numpy(np.float32)
                drop += names
            return cls(table.drop(columns=drop), targets, readings, scores, meta["found"])


def not_finite(vectors: np.ndarray, name: str, rows: Sequence[int] | None = None) -> UserError:
    """What to raise where some of `vectors`, [n, d], are NaN or infinite, or so large that their squares are.

    rows: positions of those that count, all by default. They are looked at 4,096 at a time, so that `vectors` may be a memory-map.
    In the message rows and columns are counted from 1.
    """
    rows = np.arange(len(vectors)) if rows is None else np.asarray(rows)
    count, where, largest = 0, None, 0.0
    for first in range(0, len(rows), 4096):
        some = rows[first : first + 4096]
        block = np.asarray(vectors[some], np.float32)
        bad = np.argwhere(~np.isfinite(block))
        largest = max(largest, float(np.abs(block).max()))
        if len(bad) and where is None:
            where = some[bad[0, 0]] + 1, bad[0, 1] + 1
        count += len(bad)
    if where is None:
        return UserError(f"{name}: values up to {largest:.3g} overflow when squared; scale the features")
    return UserError(f"{name}: {count:,} NaN or infinite, the first in row {where[0]}, column {where[1]}; mend or leave out such rows")


def _array_path(folder: pathlib.Path, split: str, name: str) -> pathlib.Path:
    return folder / (f"{split}.npy" if name == FEATURES else f"{split}.{name}.npy")


class FeatureFiles:
    """The files of one split while they grow: batches are appended, and a writer that was killed goes on where it was.

    folder, split: where. rows: of the whole split. about: goes with the files, and says what made them: parts that were
        written under another one are begun anew.

    Until `finish`, arrays lie beside their places under names that end in .partial. Nobody reads those.
    """

    def __init__(self, folder: os.PathLike | str, split: str, rows: int, about: Mapping):
        self.folder, self.split, self.rows, self.about = pathlib.Path(folder), split, rows, dict(about)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._made = self.folder / f".{split}.json.partial"  # what made the parts that are there
        self._open: dict[str, io.BufferedWriter] = {}

    @property
    def whole(self) -> bool:
        """Whether the split is there already, made by the same."""
        path = self.folder / f"{self.split}.parquet"
        if not path.exists():
            return False
        _, about = read_parquet(path)
        about.pop("arrays", None)
        return about == without_nan(self.about) and self._is_readable()

    def _is_readable(self) -> bool:
        try:
            Features.read(self.folder, self.split)
        except UserError:
            return False
        return True

    def start(self, widths: Mapping[str, int], batch_size: int) -> int:
        """Opens the arrays, {name: width}; returns how many whole batches all of them hold already."""
        self._widths = dict(widths)
        if not self._made.exists() or read_json(self._made) != without_nan(self.about):
            for part in self.folder.glob(f".{self.split}.*.npy.partial"):
                part.unlink()
            write_json(self._made, self.about)
        paths = {name: self.folder / f".{self.split}.{name}.npy.partial" for name in widths}
        headers = {name: _npy_header(self.rows, width) for name, width in widths.items()}
        bytes_a_row = {name: 4 * width for name, width in widths.items()}

        def done(name: str) -> int:
            path = paths[name]
            if not path.exists():
                return 0
            with open(path, "rb") as part:
                if part.read(len(headers[name])) != headers[name]:
                    return 0
            return (path.stat().st_size - len(headers[name])) // bytes_a_row[name]

        rows = min(self.rows, min(done(name) for name in widths))
        batches = rows // batch_size if rows < self.rows else -(-rows // batch_size)
        kept = min(self.rows, batches * batch_size)
        for name, path in paths.items():
            self._open[name] = open(path, "r+b" if path.exists() else "w+b")
            self._open[name].write(headers[name])
            self._open[name].truncate(len(headers[name]) + kept * bytes_a_row[name])
            self._open[name].seek(0, os.SEEK_END)
        return batches

    def append(self, arrays: Mapping[str, np.ndarray]) -> None:
        """The next rows of every array, float32 [b, width]."""
        for name, handle in self._open.items():
            handle.write(np.ascontiguousarray(arrays[name], np.float32).tobytes())

    def finish(self, table: pd.DataFrame) -> None:
        """Puts everything in its place, the table last, which alone says that the rest is there.

        Raises RuntimeError where rows are missing.
        """
        (self.folder / f"{self.split}.parquet").unlink(missing_ok=True)
        for name, handle in self._open.items():
            handle.flush()
            os.fsync(handle.fileno())
            handle.close()
            part = pathlib.Path(handle.name)
            if np.load(part, mmap_mode="r").shape != (len(table), self._widths[name]):
                raise RuntimeError(f"{part}: not all of {len(table)} rows were written")
            os.replace(part, _array_path(self.folder, self.split, name))
        write_parquet(table, self.folder / f"{self.split}.parquet", without_nan({**self.about, "arrays": self._widths}))
        self._made.unlink(missing_ok=True)

    def close(self) -> None:
        """Lets go of the files, whole or not; what was appended stays for the next writer."""
        for handle in self._open.values():
            handle.close()


def _npy_header(rows: int, width: int) -> bytes:
    """What a .npy file of float32 [rows, width] begins with."""
    header = io.BytesIO()
    described = {"descr": "<f4", "fortran_order": False, "shape": (rows, width)}
    np.lib.format.write_array_header_1_0(header, described)
    return header.getvalue()


def check_keys(table: pd.DataFrame, source: str) -> None:
    """Raises UserError for ids missing or repeated, an age that is no number, a split unknown or sharing a patient."""
    for column in ("image_id", "patient_id"):
        if column not in table:
            raise UserError(f"{source}: no column {column!r}")
        refuse(table[column].isna().to_numpy(), source, column, table, "an identifier, not an empty cell")
    refuse(table["image_id"].duplicated().to_numpy(), source, "image_id", table, "each image once")
    if "age" in table:
        _numbers(table, source, "age", "a number of years, or an empty cell")
    if "split" in table:
        refuse(~table["split"].isin(SPLITS).to_numpy(), source, "split", table, f"one of {', '.join(SPLITS)}")
        check_disjoint(table, source)


def check_findings(table: pd.DataFrame, source: str) -> None:
    """Raises UserError for a `label_FINDING` that holds anything but 1, 0 and nothing; labels that are words are no findings."""
    for column in (c for c in table if c.startswith(LABEL)):
        if pd.api.types.is_numeric_dtype(table[column]):
            values = table[column].to_numpy(np.float64, na_value=np.nan)
            refuse(~(np.isnan(values) | np.isin(values, (0, 1))), source, column, table, "1, 0 or empty")
        elif set(table[column].dropna().astype(str).str.lower()) <= {"yes", "no", "true", "false", "y", "n", "t", "f"}:
            refuse(table[column].notna().to_numpy(), source, column, table, "1, 0 or empty")


def check_disjoint(table: pd.DataFrame, source: str) -> None:
    """Raises UserError that names the first patient found in two splits, and counts the others."""
    splits = table.groupby("patient_id", observed=True)["split"].nunique()
    leaked = splits.index[splits > 1]
    if len(leaked):
        where = sorted(table.loc[table["patient_id"] == leaked[0], "split"].unique())
        raise UserError(
            f"{source}: patient {leaked[0]!r} is in splits {' and '.join(where)}"
            f" ({len(leaked)} such patient{'s' if len(leaked) > 1 else ''}); splits must not share a patient"
        )


def _numbers(table: pd.DataFrame, source: str, column: str, wanted: str) -> np.ndarray:
    """The column, float64 [n], NaN where empty. Raises UserError at the first cell that holds anything but a number."""
    cells = table[column]
    if not pd.api.types.is_numeric_dtype(cells):
        other = [not pd.isna(cell) and not isinstance(cell, numbers.Real) for cell in cells]
        refuse(np.array(other, bool), source, column, table, wanted)
    return cells.to_numpy(np.float64, na_value=np.nan)


def refuse(bad: np.ndarray, source: str, column: str, table: pd.DataFrame, wanted: str) -> None:
    """Raises UserError for the first row of `table` where `bad`, bool [n], is true, counted from 1; nothing where none is."""
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        cell = table[column].iloc[row]
        found = repr(cell.item() if isinstance(cell, np.generic) else cell)
        found = found if len(found) <= 100 else f"{found[:100]} and more"
        raise UserError(
            f"{source}: row {row + 1}, column {column!r}: {found} found, {wanted} expected"
            f" ({int(bad.sum()):,} such row{'s' if bad.sum() > 1 else ''})"
        )


def no_text(column: pd.Series) -> np.ndarray:
    """Which cells hold bytes, as some programs write text in Parquet, that are none in UTF-8: bool [n]."""

    def is_none(cell) -> bool:
        try:
            return isinstance(cell, bytes) and cell.decode() is None
        except UnicodeDecodeError:
            return True

    return column.map(is_none).to_numpy(bool)


_UMASK = os.umask(0)  # which can only be read by setting it, for all threads: once, before there are any
os.umask(_UMASK)


@contextlib.contextmanager
def whole_file(path: os.PathLike | str) -> Iterator[pathlib.Path]:
    """Gives a temporary path beside `path`; on leaving without an error it takes the place of `path`, else it is removed.

    A reader therefore never sees half a file, whenever the writer is killed or the disk is full.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    os.close(handle)
    temporary = pathlib.Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        # mkstemp makes files for the owner alone; a run's files follow the user's umask like any other file.
        temporary.chmod(0o666 & ~_UMASK)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_half_files(folder: os.PathLike | str) -> None:
    """Removes what `whole_file` leaves in a folder, however deep, where it is killed. Parts that `FeatureFiles` goes on with stay."""
    for path in pathlib.Path(folder).rglob(".*.partial"):
        if re.fullmatch(r"\..+\.[a-z0-9_]{8}\.partial", path.name):  # as mkstemp names files
            path.unlink(missing_ok=True)


def write_text(path: os.PathLike | str, text: str) -> None:
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: os.PathLike | str, value) -> None:
    """Writes JSON at `path`, whole or not at all. NaN, which JSON lacks, becomes null."""
    write_text(path, json.dumps(without_nan(value), indent=1, allow_nan=False) + "\n")


def without_nan(value):
    """The same tree of dicts and lists with plain Python numbers in it, and None for what is not finite."""
    if isinstance(value, Mapping):
        return {str(k): without_nan(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [without_nan(v) for v in value]
    if isinstance(value, np.ndarray):
        return without_nan(value.tolist())
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value


def read_json(path: os.PathLike | str):
    """Raises UserError where the file is missing or is not JSON."""
    try:
        return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})") from None


def write_parquet(table: pd.DataFrame, path: os.PathLike | str, meta: Mapping) -> None:
    """Writes `table` and, under the schema's key `cxr_jax`, `meta` as JSON; whole or not at all."""
    arrow = pa.Table.from_pandas(table, preserve_index=False)
    arrow = arrow.replace_schema_metadata({**(arrow.schema.metadata or {}), b"cxr_jax": json.dumps(dict(meta)).encode()})
    with whole_file(path) as temporary:
        pq.write_table(arrow, temporary)


def read_parquet(path: os.PathLike | str) -> tuple[pd.DataFrame, dict]:
    """The table and its `meta` ({} for a file that carries none). Raises UserError for a missing or broken file."""
    try:
        arrow = pq.read_table(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: not a Parquet file, or only half of one ({str(error).splitlines()[0]})") from None
    try:
        meta = json.loads((arrow.schema.metadata or {}).get(b"cxr_jax", b"{}"))
        table = arrow.to_pandas()
    except Exception as error:  # of any type: pandas makes an index, types and names of what the file says of itself
        raise UserError(f"{path}: a Parquet file whose own description cannot be read ({first_line(error)})") from None
    return table, meta if isinstance(meta, dict) else {}


@contextlib.contextmanager
def _as_written(path: os.PathLike | str, stage: str) -> Iterator[None]:
    """For what a file says of itself: raises UserError where it is not what `stage` has written."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path}: not as `{stage}` writes it ({first_line(error)}); run that stage again") from None


def first_line(error: BaseException) -> str:
    """Of an error's words, or, where it has none, its kind: what goes into the one line of a UserError."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def map_array(path: os.PathLike | str) -> np.ndarray:
    """The numbers of a .npy file, memory-mapped. What is pickled, and could be a program, is never loaded.

    Raises FileNotFoundError, and ValueError or another OSError for what is no such file.
    """
    with open(path, "rb") as file:
        if file.read(6) != b"\x93NUMPY":  # else NumPy asks whether it is an archive, or pickled objects
            raise ValueError("it does not begin as one")
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # of any type: the header is parsed as Python's literals are
        raise ValueError("it holds Python objects, which are not loaded" if "Python objects" in str(error) else first_line(error)) from None


def read_arrays(path: os.PathLike | str, stage: str) -> dict[str, np.ndarray]:
    """The arrays of a .npz file by name. What is pickled, and could be a program, is never loaded.

    stage: which writes it. Raises UserError for a file that is missing, damaged, or holds anything but plain arrays.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:  # which leaves a path that it cannot read open
            arrays = dict(stored)
        if not all(isinstance(array, np.ndarray) for array in arrays.values()):  # as bytes it gives what is none
            raise ValueError("a part of it is no array")
        return arrays
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run the stage {stage} again") from None
    except Exception as error:  # of any type: zip's, zlib's, or of a header that is parsed as Python's literals are
        why = "it holds Python objects, which are not loaded" if "allow_pickle" in str(error) else first_line(error)
        raise UserError(f"{path}: not a file of plain arrays ({why}); run the stage {stage} again") from None
