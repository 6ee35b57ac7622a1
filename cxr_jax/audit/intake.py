"""A user's own predictions, a table made by any model with columns of any names, as `Predictions`.

Columns are found by name, whatever their case, spaces, dots, dashes and underscores, and what was taken for what is said.
Where two columns would do equally well nothing is guessed: the error names both, and the field of the config that settles it.

    image, patient, split, age, sex, view, race   `NAMES`, the likelier first; other attributes by their own name
    scores           score_X, X_score, prob_X, p_X, pred_X and the like (`SCORES`); for exclusive classes also X itself
    findings' labels label_X, X_label, true_X, X_true, gt_X, y_X, target_X (`LABELS`), or X itself beside a score of X
    a text label     a column whose words are the X of scores: X are then classes that exclude one another
    binary           y_true and y_score and the like: names of which nothing is left

A score of X goes to X's own label of 1 and 0 where there is one, and to a text label else. Every cell that is used is
checked here, under the user's own name of its column, before anything is written.
"""

from __future__ import annotations

import csv
import gzip
import os
import pathlib
import re
import warnings
import zlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from cxr_jax import tables
from cxr_jax.tables import KEY_COLUMNS, LABEL, SCORE, Predictions, Target, UserError

# Groups of names without case and punctuation, the likelier group first; two columns of one group are ambiguous. Which
# column is the patient decides what an interval means, and which the split who is judged: there all names are one group.
NAMES = {
    "image_id": (
        ("imageid",),
        ("image", "imageindex", "imagename", "imagefile", "imagepath", "path", "filepath", "file", "filename", "dicom", "dicomid", "img", "imgid", "imgpath", "studyimage", "sopinstanceuid"),
        ("id", "uid"),
    ),
    "patient_id": (("patientid", "patient", "subjectid", "subject", "personid", "person", "pid", "ptid", "mrn", "patientnumber"),),
    "study_id": (("studyid",), ("study", "accession", "accessionnumber", "studyinstanceuid")),
    "split": (("split", "set", "subset", "partition", "datasplit"),),
    "race": (("race",), ("primaryrace", "patientrace", "raceethnicity"), ("ethnicity", "ethnicgroup")),
    "sex": (("sex",), ("gender", "patientsex", "patientgender")),
    "age": (("age",), ("patientage", "ageyears", "anchorage", "ageatcxr", "ageatstudy", "ageatexam")),
    "view": (("view",), ("viewposition", "viewpos", "appa", "projection"), ("frontallateral",)),
}  # fmt: skip
SPLIT_WORDS = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test", "testing": "test", "holdout": "test", "heldout": "test",
}  # fmt: skip
# Words before and behind an X. One letter alone counts only in front, once: `X_p` may be a test's, and `X_y` a merge's.
SCORES = ("score", "scores", "prob", "probs", "proba", "probability", "pred", "prediction", "predicted")
LABELS = ("label", "labels", "true", "truth", "gt", "target")
NOT_TAKEN = ("pred", "preds", "predicted", "prediction", "predictions", "called", "yhat")  # text in such a column is no truth
BINARY = "positive"  # the class of labels and scores that name none
SUM_TOLERANCE = 0.01  # of the scores of exclusive classes
ROUNDING = 1e-6  # float32 softmax gives 1.0000001
AT_MOST_CLASSES = 1000


def read(path: os.PathLike | str, settings) -> tuple[Predictions, dict]:
    """The predictions in a .csv, .csv.gz, .tsv or .parquet file, and what is to be known of them.

    settings: the config's `audit` section: label, scores, labels and columns, which settle what names do not; attributes,
        which are kept; splits, which are to be judged.

    The second is JSON: `file`, its name; `columns`, {ours: theirs}; `said`, sentences; `images`, how many; and
    `without_patients`, whether each image passes for a patient. No sentence tells a count of people or labels, so
    that all may be shared.

    Raises UserError, one line with file, row and column, for a file that cannot be read or has no row; for columns that
    are missing or ambiguous; for an identifier that is empty or there twice, a patient in two splits, a split, age,
    label or score that is none; and where nothing can be judged, since all labels are the same.
    """
    path = pathlib.Path(path).expanduser()
    raw, said = _table(path)
    reader = _Reader(raw, str(path), settings)
    reader.said += said
    return reader.predictions(path.name)


# ---------------------------------------------------------------------------------------------------------------- the file


def _table(path: pathlib.Path) -> tuple[pd.DataFrame, list[str]]:
    """The table as it lies there, cells of CSV as text and empty ones as null; and what is to be said of it."""
    suffix = path.suffix.lower()
    if not path.is_file():
        raise UserError(f"{path}: {'a folder, not a file' if path.is_dir() else 'no such file'}")
    if suffix == ".parquet":
        raw, _ = tables.read_parquet(path)
        named = [name for name in raw.index.names if name is not None]  # pandas keeps an index apart from the columns
        raw, said = raw.reset_index(named).reset_index(drop=True), []
    elif suffix in (".csv", ".tsv") or path.name.lower().endswith(".csv.gz"):
        raw, said = _csv(path)
    else:
        raise UserError(f"{path}: a name that ends in .csv, .csv.gz, .tsv or .parquet expected")
    raw.columns = [str(name).strip() for name in raw]
    twice = raw.columns[raw.columns.duplicated()]
    if len(twice):
        raise UserError(f"{path}: two columns are called {twice[0]!r}; rename one of them")
    if not len(raw):
        raise UserError(f"{path}: no row")
    for name in raw.columns[[dtype == object for dtype in raw.dtypes]]:
        tables.refuse(tables.no_text(raw[name]), str(path), name, raw, "text (leave the column out where it is to hold something else)")
    return raw, said


def _csv(path: pathlib.Path) -> tuple[pd.DataFrame, list[str]]:
    try:
        with gzip.open(path, "rt", encoding="utf-8-sig") if path.suffix.lower() == ".gz" else open(path, encoding="utf-8-sig") as file:
            first = file.readline()
        if not first.strip():
            raise UserError(f"{path}: empty; a first line with the names of columns expected")
        header = {separator: next(csv.reader([first], delimiter=separator)) for separator in ",;\t|"}
        separator = max(header, key=lambda one: len(header[one]))  # the first of those that do equally well
        names = [name.strip() for name in header[separator]]
        twice = [name for name in names if name and names.count(name) > 1]
        if twice:  # pandas would rename one without a word
            raise UserError(f"{path}: two columns are called {twice[0]!r}; rename one of them")
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # of rows longer than the header
            # NA, None and the like are words that a class may be called; nothing is what is empty.
            raw = pd.read_csv(
                path, sep=separator, dtype="str", keep_default_na=False, na_values=[""], index_col=False, encoding="utf-8-sig", skipinitialspace=True
            )
    except UnicodeDecodeError:
        raise UserError(f"{path}: not text in UTF-8; save it as that") from None
    except pd.errors.ParserWarning:
        raise UserError(f"{path}: rows have more cells than the first line has names") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, csv.Error, OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not a CSV file, or only half of one ({str(error).strip().splitlines()[-1]})") from None
    called = {";": "a semicolon", "\t": "a tab", "|": "a bar"}
    return raw, [f"Between its columns the file has {called[separator]}, not a comma."] if separator in called else []


# --------------------------------------------------------------------------------------------------------------- names


def _plain(name: str) -> str:
    """A name without case and the punctuation that people choose freely; itself where it has nothing else. `40+` is not `40`."""
    return re.sub(r"[\s._/(),-]+", "", name.casefold()) or name


def _stem(name: str, words: Sequence[str], letter: str) -> tuple[str, str] | None:
    """What is left of a name without `words` before or behind it, and what was taken away: `p_White` is White, 'p …'.

    letter: counts as one of `words` where it is the first. None where nothing is to be taken away.
    """
    parts = [part for part in re.split(r"[\s._-]+", name) if part]
    low = [part.casefold() for part in parts]
    start = 1 if low and (low[0] == letter or low[0] in words or (low[0] == "y" and low[1:2] and low[1] in words)) else 0
    while start and start < len(low) and low[start] in words:
        start += 1
    if start:
        left, taken = name.strip(), " ".join(low[:start]) + " …"
        for part in parts[:start]:
            left = left.lstrip(" ._-\t")[len(part) :]
        return left.strip(" ._-\t"), taken
    end = len(low)
    while end and low[end - 1] in words:
        end -= 1
    if end == len(low):
        return None
    left = name.strip()
    for part in reversed(parts[end:]):
        left = left.rstrip(" ._-\t")[: -len(part)]
    return left.strip(" ._-\t"), "… " + " ".join(low[end:])


def _score_stem(name: str) -> tuple[str, str] | None:
    found = _stem(name, SCORES, "p")
    # `label_score` and `prob_positive` name no class.
    return found and (("", found[1]) if _plain(found[0]) in (*LABELS, "class", "pos", "positive") else found)


def _label_stem(name: str) -> str | None:
    if _plain(name) in ("y", "class", "groundtruth"):
        return ""
    found = _stem(name, LABELS, "y")
    # `y_pred` and `score_label` are no labels.
    return None if found is None or found[0].casefold() in (*SCORES, "p") or _score_stem(name) else found[0]


class _Score(NamedTuple):
    """A column of scores. name: X, '' where it says none. make: what was taken away to find X, '' where the config names X."""

    name: str
    column: str
    make: str


def _mapping(entries: Iterable[str]) -> dict[str, str]:
    """{left: right} of LEFT=RIGHT; `experiment.validate` has seen to the form."""
    return {left.strip(): right.strip() for left, _, right in (entry.partition("=") for entry in entries)}


def _listed(names: Sequence[str], most: int = 6) -> str:
    names = list(names)
    return ", ".join(repr(name) for name in names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _are(names: Sequence[str], plural: str = "are", singular: str = "is") -> str:
    return plural if len(names) > 1 else singular


# ---------------------------------------------------------------------------------------------------------- the columns


class _Reader:
    """Finds out what is what in one table. raw: as it lies there. source: its name in errors."""

    def __init__(self, raw: pd.DataFrame, source: str, settings):
        self.raw, self.source, self.settings = raw, source, settings
        self.columns: dict[str, str] = {}  # ours: theirs
        self.out: dict[str, object] = {}  # ours: cells
        self.targets: dict[str, Target] = {}
        self.said: list[str] = []
        self._distinct: dict[str, pd.Series] = {}

    def predictions(self, name: str) -> tuple[Predictions, dict]:
        self._read_keys()
        self._read_targets()
        table = pd.DataFrame(self.out)
        self._judge_splits(table)
        unused = [column for column in self.raw if column not in self.columns.values() and column not in self._told]
        if unused:
            self.said.append(f"Not used {_are(unused)} {len(unused):,} further column{'s' * (len(unused) > 1)}: {_listed(unused)}.")
        about = {
            "file": name,
            "columns": self.columns,
            "said": self.said,
            "images": len(table),
            "without_patients": "patient_id" not in self.columns,
        }
        return Predictions(table, self.targets).check(self.source), about

    # -- cells

    def _refuse(self, bad: np.ndarray, column: str, wanted: str) -> None:
        tables.refuse(np.asarray(bad, bool), self.source, column, self.raw, wanted)

    def _values(self, column: str) -> pd.Series:
        """The distinct cells of a column, as text."""
        if column not in self._distinct:
            self._distinct[column] = pd.Series(self._text(column).dropna().unique(), dtype="str")
        return self._distinct[column]

    def _text(self, column: str) -> pd.Series:
        """Cells as text without blanks around it, null where nothing is left; 1 and not 1.0 for whole numbers."""
        cells = self.raw[column]
        if pd.api.types.is_float_dtype(cells):
            known = cells.dropna().to_numpy(np.float64)
            if (np.abs(known) < 2**53).all() and (known == np.round(known)).all():
                cells = cells.astype("Int64")
        text = cells.astype("str").str.strip()
        text = text.where((cells.notna() & (text != "")).to_numpy(bool), None)
        # As whole numbers are written where one was missing.
        return text.str.removesuffix(".0") if text.dropna().str.fullmatch(r"-?\d+\.0").all() else text

    def _parsed(self, cells: pd.Series) -> np.ndarray:
        """float64 [n], NaN for what is no number."""
        if pd.api.types.is_numeric_dtype(cells) and not pd.api.types.is_bool_dtype(cells):
            return cells.to_numpy(np.float64, na_value=np.nan)
        return pd.to_numeric(cells.astype("str"), errors="coerce").to_numpy(np.float64, na_value=np.nan)

    def _numbers(self, column: str, wanted: str, empty: bool = True) -> np.ndarray:
        """float64 [n], NaN where empty. empty: whether a cell may be."""
        values = self._parsed(self.raw[column])
        none = np.isnan(values)
        if none.any() and empty:
            text = self._text(column)
            none &= (text.notna() & ~text.isin(("nan", "NaN", "NA"))).to_numpy(bool)  # as programs write a number that is none
        if none.any() and self._text(column)[none].str.contains(",").any():
            wanted += ", its decimals behind a point,"
        self._refuse(none | np.isinf(values), column, wanted)
        return values

    def _is_text(self, column: str) -> bool:
        """Whether a column has words, not very many different ones, and no number."""
        values = self._values(column)
        return 0 < len(values) <= AT_MOST_CLASSES and bool(np.isnan(self._parsed(values)).all())

    def _has_numbers(self, column: str) -> bool:
        cells = self.raw[column]
        if pd.api.types.is_numeric_dtype(cells):
            return not pd.api.types.is_bool_dtype(cells)
        # Those that have a comma for a point are refused later, by what they are.
        return not np.isnan(self._parsed(self._values(column).str.replace(",", "."))).all()

    def _is_called(self, column: str) -> bool:
        """Whether a column of numbers has 0 and 1 alone: classes called, not probabilities."""
        return set(np.unique(self._parsed(self._values(column)))) <= {0.0, 1.0}

    def _binary(self, column: str) -> np.ndarray:
        """float64 [n]: 1, 0, NaN where empty; of 0 and 1, or true and false."""
        values = self._values(column)
        words = values.str.casefold().map({"true": 1.0, "false": 0.0})
        if words.notna().any():
            known = dict(zip(values, words.where(words.notna(), self._parsed(values))))
            cells = self._text(column).map(known).to_numpy(np.float64, na_value=np.nan)
            wrong = np.isnan(cells) & self._text(column).notna().to_numpy(bool)
        else:
            cells, wrong = self._numbers(column, "1, 0 or empty"), False
        advice = "; a finding that is uncertain, -1, has to be decided or left empty" if (cells == -1).any() else ""
        self._refuse(wrong | ~(np.isnan(cells) | np.isin(cells, (0, 1))), column, f"1, 0 or empty{advice}")
        return cells

    # -- which column

    def _column(self, name: str, field: str) -> str:
        """The column that the config names. Raises UserError where there is none."""
        if name in self.raw:
            return name
        alike = [column for column in self.raw if _plain(column) == _plain(name)]
        if len(alike) != 1:
            raise UserError(f"{self.source}: no column {name!r}, which config.audit.{field} names; there are {_listed(list(self.raw), 20)}")
        return alike[0]

    def _one(self, found: Sequence[str], what: str, field: str, how: str) -> str:
        """The one that was found. Raises UserError where two were."""
        if len(found) > 1:
            value = how.format(found[0])
            value = value if field == "label" else f"\"('{value}',)\""
            raise UserError(f"{self.source}: columns {found[0]!r} and {found[1]!r} could both be {what}; say which with --config.audit.{field}={value}")
        return found[0]

    # -- keys and attributes

    def _read_keys(self) -> None:
        named, n = _mapping(self.settings.columns), len(self.raw)
        mapped = {name: self._column(theirs, "columns") for name, theirs in named.items() if theirs}
        for name in dict.fromkeys((*KEY_COLUMNS, *self.settings.attributes)):
            if name in named:
                found = mapped.get(name)
            else:
                # A column that is said to be one thing is not guessed to be another; age bands are made from ages.
                free = [column for column in self.raw if column not in mapped.values()]
                found = self._by_name(name, free)
            if found is None:
                continue
            self.columns[name] = found
            self.out[name] = getattr(self, f"_as_{name}", self._as_attribute)(found)
            if name in mapped and name not in ("image_id", "patient_id", "split") and not len(self._values(found)):
                raise UserError(f"{self.source}: column {found!r}, which config.audit.columns takes for {name}: nothing is recorded in it")
        if "image_id" not in self.columns:
            self.out["image_id"] = [str(row) for row in range(1, n + 1)]
            self.said.append("No column says which image a row is of: images are called by the number of their row.")
        if "patient_id" not in self.columns:
            self.out["patient_id"] = list(self.out["image_id"])
            least = self.settings.min_patients
            self.said.append(
                "No column says which patient an image is of: each image passes for a patient. If patients have several images, intervals are"
                f" too narrow, groups of fewer than {least} patients are not all withheld, and a patient may be in several splits unnoticed."
            )
        if "split" not in self.columns:
            self.said.append(
                "No column says which split an image is in: all are judged together. If the model was trained on some of them, it is"
                " judged too well."
            )

    def _by_name(self, name: str, free: Sequence[str]) -> str | None:
        for names in NAMES.get(name, ((_plain(name),),)):
            found = [column for column in free if _plain(column) in names]
            if found:
                return self._one(found, name, "columns", f"{name}={{}}")
        return None

    def _as_attribute(self, column: str) -> pd.Series:
        return self._text(column)

    def _as_image_id(self, column: str) -> pd.Series:
        cells = self._as_patient_id(column)
        hint = "; if these are no images, --config.audit.columns=\"('image_id=',)\" numbers the rows"
        self._refuse(cells.duplicated().to_numpy(), column, f"each image once{hint}")
        return cells

    def _as_patient_id(self, column: str) -> pd.Series:
        cells = self._text(column)
        self._refuse(cells.isna().to_numpy(), column, "an identifier, not an empty cell")
        return cells

    def _as_split(self, column: str) -> pd.Series:
        known = {value: SPLIT_WORDS.get(_plain(value)) for value in self._values(column)}
        cells = self._text(column).map(known)
        wanted = f"{', '.join(tables.SPLITS)}, or words that mean these; if it is no split, --config.audit.columns=\"('split=',)\""
        self._refuse(cells.isna().to_numpy(), column, wanted)
        return cells

    def _as_age(self, column: str) -> np.ndarray:
        return self._numbers(column, "a number of years, or an empty cell")

    # -- labels and scores

    def _read_targets(self) -> None:
        self._taken = {self.columns[name] for name in (*tables.IDENTIFIERS, "age") if name in self.columns}
        mapped = [{name: self._column(column, field) for name, column in _mapping(self.settings[field]).items()} for field in ("scores", "labels")]
        self._named_scores, self._named_labels = mapped
        label = self._column(self.settings.label, "label") if self.settings.label else ""
        self._taken |= {*self._named_scores.values(), *self._named_labels.values()}
        free = [column for column in self.raw if column not in self._taken and column != label]
        self._own_names = {column: _plain(column) for column in free}
        # By X without case and punctuation; '' for scores and labels that name none.
        self._scores: dict[str, list[_Score]] = {_plain(name): [_Score(name, column, "")] for name, column in self._named_scores.items()}
        named = set(self._scores)
        if len(named) < len(self._named_scores):
            raise UserError(f"{self.source}: config.audit.scores names two classes that differ in case and punctuation alone; rename one")
        for column in (column for column in free if column not in self.columns.values()):
            found = _score_stem(column)
            key = found and (_plain(found[0]) if found[0] else "")
            if found and key not in named and self._has_numbers(column):
                self._scores.setdefault(key, []).append(_Score(found[0], column, found[1]))
        scored = {one.column for found in self._scores.values() for one in found}
        self._labels: dict[str, list[str]] = {}
        for column in (column for column in free if column not in scored):
            stem = _label_stem(column)
            if stem is not None:
                self._labels.setdefault(_plain(stem) if stem else "", []).append(column)
        words, binary = set(self._values(label).str.casefold()) if label else set(), {"0", "1", "true", "false"}
        if words and words <= binary and not binary & set(self._scores):
            self._named_labels, label = {BINARY: label, **self._named_labels}, ""  # the one label of a binary model

        findings = self._findings({self.columns[name] for name in KEY_COLUMNS if name in self.columns} | scored)
        texts = self._text_labels(label, findings)
        for column, matched in texts.items():
            self._take_text(column, matched, findings, alone=len(texts) == 1)
        if not findings and not texts:
            findings = self._sole()
        self._take_findings(findings)
        if not self.targets:
            raise UserError(
                f"{self.source}: no labels with scores found. Looked for score_X, prob_X, p_X, X_score and the like beside label_X, X_true,"
                " X and the like, for y_true beside y_score, and for a text label whose classes have scores. Name them:"
                " --config.audit.label=COLUMN for a text label, --config.audit.scores=\"('CLASS=COLUMN',)\","
                f" --config.audit.labels=\"('FINDING=COLUMN',)\". There are {_listed(list(self.raw), 20)}"
            )
        self._leave_out()

    def _score(self, key: str) -> _Score:
        """The score of X. Where one of two is of 0 and 1 alone, the other is the probability."""
        found = self._scores[key]
        if len(found) > 1:
            graded = [one for one in found if not self._is_called(one.column)]
            if len(graded) == 1:
                names = [graded[0].column, *(one.column for one in found if one not in graded)]
                self.said.append(f"Of {_listed(names)} the first is taken for the score: where there are 0 and 1 alone, classes are called.")
                self._scores[key] = found = graded
        name = found[0].name or BINARY
        self._one([one.column for one in found], f"the score of {name}", "scores", f"{name}={{}}")
        return found[0]

    def _findings(self, taken: set[str]) -> dict[str, tuple[str, str]]:
        """{key of X: (X, column of its label)} for every X that has a score and a label of its own."""
        named = {_plain(name): (name, column) for name, column in self._named_labels.items()}
        found = {}
        for key, scores in self._scores.items():
            if key in named:
                found[key] = named[key]
                continue
            own = [column for column, plain in self._own_names.items() if plain == key and column not in taken]
            labels = list(dict.fromkeys(self._labels.get(key, []) + own))
            if key and labels:
                name = scores[0].name
                column = self._one(labels, f"the label of {name}", "labels", f"{name}={{}}")
                found[key] = (_label_stem(column) or column, column)
        return found

    def _text_labels(self, label: str, findings: dict) -> dict[str, dict[str, str]]:
        """{column: {value: column of its score}} of the columns whose words are classes with scores."""
        found, scored = {}, {one.column for scores in self._scores.values() for one in scores}
        for column in [label] if label else [c for c in self.raw if c not in self._taken and c not in scored]:
            is_label = _label_stem(column) is not None
            words = set(re.split(r"[\W_]+", column.casefold()))
            if not label and not (is_label or (self._is_text(column) and words.isdisjoint(NOT_TAKEN))):
                continue
            values = self._values(column)
            if len(values) > AT_MOST_CLASSES:
                if label:
                    raise UserError(f"{self.source}: column {label!r}, which config.audit.label names: {len(values):,} different labels found, at most {AT_MOST_CLASSES:,} expected")
                continue
            keys = {value: _plain(value) for value in values}
            own = {plain: c for c, plain in self._own_names.items() if c != column and c not in self.columns.values()}
            by_score = {value: key for value, key in keys.items() if key in self._scores}
            by_name = {value: own[key] for value, key in keys.items() if key not in self._scores and key in own and self._has_numbers(own[key])}
            contested = [key for key in by_score.values() if key in findings]
            if not label and contested and len(by_score) > 1 and not self._named_labels:
                x, theirs = findings[contested[0]]
                raise UserError(
                    f"{self.source}: are the scores for the classes of column {column!r}, which exclude one another, or for findings such as"
                    f" column {theirs!r}? Say --config.audit.label={column}, or --config.audit.labels=\"('{x}={theirs}',)\""
                )
            if label:
                for key in contested:
                    del findings[key]
            matched = {value: key for value, key in by_score.items() if key not in findings}
            whole = len(matched) + len(by_name) == len(values)
            # Numbers are classes only where each has a score: a 0 and 1 may be anything.
            enough = (matched or len(by_name) > 1) and (self._is_text(column) or (whole and len(values) > 1))
            if label or enough:
                found[column] = {value: self._score(key).column for value, key in matched.items()} | by_name
        if label:
            return found
        best: dict[str, dict[str, str]] = {}
        # Of columns for the same scores one that is called a label is it: label_race, not race.
        for column in sorted(found, key=lambda one: _label_stem(one) is None):
            rivals = [other for other, theirs in best.items() if set(theirs.values()) & set(found[column].values())]
            if not rivals:
                best[column] = found[column]
            elif (_label_stem(rivals[0]) is None) == (_label_stem(column) is None):
                self._one([rivals[0], column], "the label", "label", "{}")
        return best

    def _take_text(self, column: str, matched: dict[str, str], findings: dict, alone: bool) -> None:
        """One target of classes that exclude one another."""
        classes: dict[str, str] = {}  # {column of the score: class}
        for value, score in matched.items():
            if classes.setdefault(score, value) != value:
                raise UserError(f"{self.source}: column {column!r}: {classes[score]!r} and {value!r} both go with scores {score!r}; write one of them throughout")
        makes = {one.make for found in self._scores.values() for one in found if one.column in classes}
        never = []
        for key, found in self._scores.items() if alone else ():
            # Scores of the same make are of classes that no label happens to have.
            of_these = not makes or not found[0].make or found[0].make in makes
            if key and key not in findings and of_these and not any(one.column in classes for one in found):
                one = self._score(key)
                classes[one.column] = one.name
                never.append(one.name)
        if not classes:
            raise UserError(f"{self.source}: no score found for the classes of column {column!r}; name them with --config.audit.scores=\"('CLASS=COLUMN',)\"")
        classes = {theirs: classes[theirs] for theirs in self.raw if theirs in classes}
        text = self._text(column)
        unknown = text.notna() & ~text.isin(list(classes.values()))
        names = ", ".join(classes.values())
        self._refuse(unknown.to_numpy(bool), column, f"unknown label: one of {names}, which have scores, or empty (or name its score in config.audit.scores)")
        name = self._target_name(column)
        self._take_scores(classes, "softmax")
        self.columns[LABEL + name], self.out[LABEL + name] = column, text
        self.targets[name] = Target("multiclass", tuple(classes.values()))
        if name in (*KEY_COLUMNS, *self.settings.attributes) and name not in self.out:
            self.columns[name], self.out[name] = column, text
        if not len(self._values(column)):
            self.said.append(f"No label is recorded in {column!r}: nothing can be judged by it.")
        elif never:
            self.said.append(f"There {_are(never)} scores of {_listed(never)}, which no label in {column!r} says.")
        off = np.abs(np.sum([self.out[SCORE + c] for c in classes.values()], axis=0) - 1)
        wrong = int((off > SUM_TOLERANCE).sum())
        if wrong:
            # How many rows there are in all is not said: less those whose label is known, it would tell of how few it is not.
            rows = "any row" if wrong == len(off) else f"{wrong:,} row{'s' * (wrong > 1)}"
            self.said.append(
                f"Warning: the scores of {name} do not add up to 1 in {rows}; they are off by up to {off.max():.2g}. They are judged as they are."
            )

    def _target_name(self, column: str) -> str:
        """race of a label that is called label_race or PRIMARY_RACE; else as the column is called."""
        attributes = [name for name in dict.fromkeys((*KEY_COLUMNS, *self.settings.attributes)) if name not in tables.IDENTIFIERS]
        name = next((ours for ours in attributes if self.columns.get(ours) == column), None)
        if name is None:
            stem = _label_stem(column) or column
            name = next((ours for ours in attributes if _plain(stem) in {_plain(ours), *sum(NAMES.get(ours, ()), ())}), stem)
        return name

    def _sole(self) -> dict[str, tuple[str, str]]:
        """One label and one score, of which at most one says what of: {key of the score: (class, column of the label)}."""
        scores = [""] if "" in self._scores else list(self._scores)
        named = {column: name for name, column in self._named_labels.items()}
        # The label that names nothing goes before those of findings that have no score.
        labels = list(named) or self._labels.get("") or [column for found in self._labels.values() for column in found]
        if len(scores) != 1 or not labels:
            return {}
        name = self._scores[scores[0]][0].name
        if len(labels) > 1 and "" in self._labels and not named:
            self._one(labels, "the label", "labels", f"{name or BINARY}={{}}")
        if len(labels) > 1:
            return {}
        return {scores[0]: (name or named.get(labels[0]) or _label_stem(labels[0]) or BINARY, labels[0])}

    def _take_findings(self, findings: dict[str, tuple[str, str]]) -> None:
        """One target of findings, each with a label of its own."""
        without = [name for name in self._named_labels if name not in [x for x, _ in findings.values()]]
        if without:
            raise UserError(f"{self.source}: no score found for {without[0]!r}; name it with --config.audit.scores=\"('{without[0]}=COLUMN',)\"")
        if not findings:
            return
        self._take_scores({self._score(key).column: name for key, (name, _) in findings.items()}, "sigmoid")
        for name, column in findings.values():
            self.columns[LABEL + name], self.out[LABEL + name] = column, self._binary(column)
        target = "findings" if "findings" not in self.targets else "labels"
        self.targets[target] = Target("multilabel", tuple(name for name, _ in findings.values()))

    def _take_scores(self, classes: dict[str, str], function: str) -> None:
        """classes: {column: class}. function: that makes probabilities of logits."""
        called = []
        for column, name in classes.items():
            if name in ("all", "macro"):
                raise UserError(f"{self.source}: a class must not be called {name!r}, which stands for all of them; rename it")
            wanted = f"a score from 0 to 1 (percentages are to be divided by 100, logits to go through a {function})"
            values = self._numbers(column, wanted, empty=False)
            self._refuse((values < -ROUNDING) | (values > 1 + ROUNDING), column, wanted)
            self.columns[SCORE + name], self.out[SCORE + name] = column, np.clip(values, 0, 1)
            if np.isin(values, (0, 1)).all():
                called.append(column)
        if called:
            it = "them" if len(called) > 1 else "it"
            self.said.append(f"In {_listed(called)} there are 0 and 1 alone, so {_are(called, 'these are classes', 'it is a class')} called, not a probability: an AUC of {it} knows one threshold.")

    # -- what is to be said of it all

    def _leave_out(self) -> None:
        used = set(self.columns.values())
        scores = [one.column for found in self._scores.values() for one in found if one.column not in used]
        labels = [column for found in self._labels.values() for column in found if column not in used]
        self._told = {*scores, *labels}
        if scores:
            self.said.append(f"Left out, since no label goes with {_are(scores, 'them', 'it')}: {_listed(scores)}.")
        if labels:
            self.said.append(f"Left out, since no score goes with {_are(labels, 'them', 'it')}: {_listed(labels)}.")

    def _judge_splits(self, table: pd.DataFrame) -> None:
        """Raises UserError where a split that is to be judged has no image, or labels that are all the same."""
        if "split" not in table:
            return self._judge(table, "")
        tables.check_disjoint(table, self.source)
        for split in self.settings.splits:
            here = table[table["split"] == split]
            if not len(here):
                there = [one for one in tables.SPLITS if (table["split"] == one).any()]
                raise UserError(
                    f"{self.source}: column {self.columns['split']!r}: no image of split {split!r}, which is to be judged;"
                    f" choose with --config.audit.splits=\"('{there[-1]}',)\" (there {_are(there)} {', '.join(there)})"
                )
            self._judge(here, f" in split {split}")

    def _judge(self, table: pd.DataFrame, where: str) -> None:
        """The images of one split, which `where` says."""
        same, judged = [], 0
        for name, target in self.targets.items():
            columns = [LABEL + name] if target.kind == "multiclass" else [LABEL + c for c in target.classes]
            for column in columns:
                values = table[column].nunique()
                if values > 1 or (values == 0 and target.kind == "multiclass"):
                    judged += 1
                else:
                    same.append(self.columns[column])
        if not judged:
            many = f"columns {_listed(same)}" if len(same) > 1 else f"column {same[0]!r}"
            raise UserError(f"{self.source}: {many}: {'no two' if len(same) == 1 else 'in none two'} different labels{where}, so there is nothing to tell apart")
        # Of so few patients it would say what all of them have, or have not.
        if same and table["patient_id"].nunique() >= self.settings.min_patients:
            self.said.append(f"Nothing is to be told apart{where} by {_listed(same)}: no two different labels.")
