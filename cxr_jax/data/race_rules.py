"""What a release records of race, made into groups: one reviewed table, and named rules that are applied on load.

The table, race_groups.csv beside this file, maps every raw value to a coarse group and to what the value itself says of
Hispanic origin, with its source. It is data: who disagrees with a row lays a table of their own over it
(`config.dataset.race_table`), and the difference is there to be seen. A rule then looks at all that is recorded of a
patient, coarsened first: `WHITE` at one admission and `WHITE - RUSSIAN` at the next do not contradict each other.

These are categories that a hospital recorded, by whatever custom it has; they are not traits of a body.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from cxr_jax.experiment import HOSPITAL_WORDS, nearest_first
from cxr_jax.tables import UserError

TABLE = pathlib.Path(__file__).parent / "race_groups.csv"
COLUMNS = ("dataset", "field", "value", "group", "hispanic", "source")

HISPANIC = "Hispanic/Latino"
GROUPS = (
    "White",
    "Black",
    "Asian",
    HISPANIC,
    "American Indian/Alaska Native",
    "Native Hawaiian/Pacific Islander",
    "Multiple",
    "Other",
)
UNKNOWN = "Unknown"  # a record that says that race is not known, or not told
BETWEEN = "|"  # in a key table, between several values of one thing

# Images of MIMIC-CXR by what their patient's first admission of MIMIC-IV v2.2 records, as a published notebook counts
# them. Other versions of MIMIC-IV revise admissions, so that a difference is reported and no error.
PUBLISHED_V22 = {
    "WHITE": 203_169,
    "WHITE - OTHER EUROPEAN": 7_287,
    "WHITE - RUSSIAN": 5_993,
    "WHITE - EASTERN EUROPEAN": 996,
    "WHITE - BRAZILIAN": 758,
    "PORTUGUESE": 1_299,
    "BLACK/AFRICAN AMERICAN": 47_278,
    "BLACK/CAPE VERDEAN": 4_193,
    "BLACK/CARIBBEAN ISLAND": 2_403,
    "BLACK/AFRICAN": 1_963,
    "ASIAN": 3_499,
    "ASIAN - CHINESE": 4_736,
    "ASIAN - SOUTH EAST ASIAN": 1_285,
    "ASIAN - ASIAN INDIAN": 1_003,
    "ASIAN - KOREAN": 407,
    "HISPANIC OR LATINO": 3_747,
    "HISPANIC/LATINO - PUERTO RICAN": 7_200,
    "HISPANIC/LATINO - DOMINICAN": 3_953,
    "HISPANIC/LATINO - GUATEMALAN": 1_019,
    "HISPANIC/LATINO - SALVADORAN": 726,
    "HISPANIC/LATINO - COLUMBIAN": 511,
    "HISPANIC/LATINO - HONDURAN": 481,
    "HISPANIC/LATINO - CUBAN": 459,
    "HISPANIC/LATINO - MEXICAN": 387,
    "HISPANIC/LATINO - CENTRAL AMERICAN": 386,
    "SOUTH AMERICAN": 473,
    "OTHER": 11_721,
    "UNKNOWN": 10_037,
    "AMERICAN INDIAN/ALASKA NATIVE": 893,
    "UNABLE TO OBTAIN": 849,
    "PATIENT DECLINED TO ANSWER": 652,
    "MULTIPLE RACE/ETHNICITY": 407,
    "NATIVE HAWAIIAN OR OTHER PACIFIC ISLANDER": 277,
    "": 46_663,  # no admission
}

# What stands in the place of a group where there is none.
NO_RECORD, NOT_KNOWN, SEVERAL = "no record", "recorded as unknown", "several groups recorded"


@dataclasses.dataclass(frozen=True)
class Ruled:
    """What a rule says of the images of a key table.

    standing: str, indexed as the key table: the group, or why there is none (NO_RECORD, NOT_KNOWN, SEVERAL).
    race: the group, null where there is none.
    classes: of `race`, in the order of a model's outputs.
    steps: (what is asked of an image, bool mask indexed as the key table), in order, for what the rule drops.
    table: `fingerprint` of the tables by which values became groups; "" where the data set has groups of its own.
    """

    standing: pd.Series
    classes: tuple[str, ...]
    steps: tuple[tuple[str, pd.Series], ...] = ()
    table: str = ""

    @property
    def race(self) -> pd.Series:
        return self.standing.where(self.standing.isin(self.classes), None).astype("str")


def apply(keys: pd.DataFrame, races: Sequence[str], config) -> Ruled:
    """What the rule `config.race_rule` (`config` is a run's `config.dataset`) says of the images of a key table.

    keys: column `race` (str or null): the group itself where the data set has groups of its own (`races`, in its order),
        else the raw values recorded of the patient, the first first, with | between; and, where the release has one,
        `ethnicity` likewise.
    Raises UserError for a rule that there is not, or that does not suit the data set, and for raw values that the table
    lacks, each with the number of its images.
    """
    check(config)
    own = bool(races) or keys["race"].isna().all()
    if own and config.race_rule in ("recorded", "all"):
        return _as_recorded(keys, races)
    if own:
        said = f"names groups of its own, {', '.join(races)}" if races else "records no race"
        raise UserError(f"config.dataset.race_rule: {config.race_rule}, but data set {config.name} {said}; use recorded")
    if config.race_rule == "recorded":
        raise UserError(
            f"config.dataset.race_rule: recorded, but data set {config.name} records race in the hospital's own words;"
            f" use one of {', '.join(RULES)}"
        )
    return _ruled(keys, config)


def check(config) -> None:
    """Raises UserError for what can be known to be wrong before any image is read: the rule's name, a table of one's own."""
    if config.race_rule != "recorded" and config.race_rule not in RULES:
        near = nearest_first(config.race_rule, ["recorded", *RULES])
        raise UserError(f"config.dataset.race_rule: no rule {config.race_rule!r}; there are {', '.join(near)}")
    if config.race_table:
        read_table(os.path.expanduser(config.race_table))


def _as_recorded(keys: pd.DataFrame, races: Sequence[str]) -> Ruled:
    """Race exactly as the data set has it. Images without one stay: no race model sees them, every other one does."""
    beyond = sorted(set(keys["race"].dropna()) - set(races))
    if beyond:
        raise ValueError(f"the key table records race {beyond[0]!r}, which the data set's own list {list(races)} lacks")
    return Ruled(keys["race"].fillna(NO_RECORD).astype("str"), tuple(races))


# ---- the reviewed table --------------------------------------------------------------------------


def read_table(path: os.PathLike | str = TABLE) -> pd.DataFrame:
    """The columns COLUMNS as text, indexed by line of the file. Raises UserError for what is not as COLUMNS has it."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:  # spreadsheets begin a file with a mark of its encoding
            reader = csv.reader(file)
            numbered = [(reader.line_num, row) for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a readable table ({error})") from None
    if not numbered or tuple(numbered[0][1]) != COLUMNS:
        first = numbered[0][0] if numbered else 1
        raise UserError(f"{path}: line {first}: the columns {','.join(COLUMNS)} expected")
    lines, rows = [line for line, _ in numbered[1:]], [row for _, row in numbered[1:]]
    for line, row in zip(lines, rows, strict=True):
        if len(row) != len(COLUMNS):
            raise UserError(f"{path}: line {line}: {len(row)} cells found, {len(COLUMNS)} expected")
    table = pd.DataFrame(rows, columns=list(COLUMNS), index=pd.Index(lines, dtype="int64"), dtype="str")
    groups = {"race": (*GROUPS, UNKNOWN), "ethnicity": ("",)}
    for line, row in table.iterrows():
        for column, known in (
            ("dataset", HOSPITAL_WORDS),
            ("field", tuple(groups)),
            ("group", groups.get(row["field"], ())),
            ("hispanic", ("yes", "no", "unknown")),
        ):
            if row[column] not in known:
                wanted = " or ".join(map(repr, known))
                raise UserError(f"{path}: line {line}, column {column!r}: {row[column]!r} found, {wanted} expected")
    again = table[table.duplicated(["dataset", "field", "value"])]
    if len(again):
        raise UserError(f"{path}: line {again.index[0]}: value {again['value'].iloc[0]!r} is there twice")
    return table


Known = Mapping[str, Mapping[str, tuple[str, str]]]


def known_values(dataset: str, own: str = "") -> Known:
    """{field: {raw value: (group, hispanic)}} of a data set: our rows, and over them those of the user's `own` table."""
    known: dict[str, dict[str, tuple[str, str]]] = {"race": {}, "ethnicity": {}}
    for path in (TABLE, os.path.expanduser(own)) if own else (TABLE,):
        table = read_table(path)
        for row in table[table["dataset"] == dataset].itertuples():
            known[row.field][row.value] = (row.group, row.hispanic)
    return known


def unmatched(keys: pd.DataFrame, config) -> list[str]:
    """At most one statement: of the rows of `config.race_table`, those that no image of the key table `keys` asks for."""
    if not config.race_table:
        return []
    table = read_table(os.path.expanduser(config.race_table))
    ours = table[table["dataset"] == config.name]
    if ours.empty:
        return [f"no row of {config.race_table} is of {config.name}"]
    recorded = {
        (field, value)
        for field in ("race", "ethnicity")
        if field in keys
        for text in keys[field].dropna().unique()
        for value in text.split(BETWEEN)
    }
    idle = [line for line, pair in zip(ours.index, zip(ours["field"], ours["value"])) if pair not in recorded]
    if not idle:
        return []
    rows, match, line = ("1 row", "matches", "line") if len(idle) == 1 else (f"{len(idle)} rows", "match", "lines")
    first = ", ".join(map(str, idle[:5])) + ", …" * (len(idle) > 5)
    return [f"{rows} of {config.race_table} {match} nothing that {config.name} records: {line} {first}"]


def fingerprint(known: Known) -> str:
    """Sixteen hexadecimal digits that change when any value is in another group, or says otherwise of Hispanic origin."""
    return hashlib.blake2b(json.dumps(known, sort_keys=True).encode(), digest_size=8).hexdigest()


# ---- rules ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Records:
    """All that is recorded of a patient.

    groups: of each value of race, the first recorded first; UNKNOWN among them.
    hispanic: whether any value of race or ethnicity says so.
    not_hispanic: whether ethnicity is recorded, and as not Hispanic.
    """

    groups: tuple[str, ...]
    hispanic: bool
    not_hispanic: bool


def _agreed(records: Records) -> str:
    """The one group that all records name; unknown ones say nothing, and Hispanic origin takes precedence."""
    named = set(records.groups) - {UNKNOWN}
    if records.hispanic:
        return HISPANIC
    if len(named) > 1:
        return SEVERAL
    return named.pop() if named else NOT_KNOWN if records.groups else NO_RECORD


def _single(records: Records) -> str:
    """The group, where all records name the same; a record of unknown is a value like any other."""
    named = set(records.groups)
    if len(named) > 1:
        return SEVERAL
    return NO_RECORD if not named else NOT_KNOWN if named == {UNKNOWN} else named.pop()


def _first(records: Records) -> str:
    """The group of the first record, whatever later ones say; ethnicity is left aside."""
    if not records.groups:
        return NO_RECORD
    return NOT_KNOWN if records.groups[0] == UNKNOWN else records.groups[0]


@dataclasses.dataclass(frozen=True)
class Rule:
    """How race is decided, and who is dropped.

    of: from a patient's records to a group or NO_RECORD, NOT_KNOWN, SEVERAL.
    keeps: the groups that are kept; () keeps everyone, those without a group too.
    strict: also drops who is not recorded as non-Hispanic, where the release records ethnicity, and images whose study
        has no labels, as the studies did whose rule this is.
    """

    of: Callable[[Records], str]
    keeps: tuple[str, ...] = ()
    strict: bool = False


RULES: Mapping[str, Rule] = {
    # This project's source study.
    "four_race": Rule(_agreed, ("White", "Black", "Asian", HISPANIC)),
    # The rule of most studies of race in chest X-rays: one value at all admissions; on CheXpert, not Hispanic.
    "three_race": Rule(_single, ("White", "Black", "Asian"), strict=True),
    # Everyone, by the first admission alone.
    "first_admission": Rule(_first),
    # Everyone, by all admissions.
    "all": Rule(_agreed),
}


def _ruled(keys: pd.DataFrame, config) -> Ruled:
    rule = RULES[config.race_rule]
    fields = [field for field in ("race", "ethnicity") if field in keys]
    # A release has few distinct combinations of what is recorded: each is judged once.
    texts = keys[fields].fillna("")
    code = texts.groupby(fields, sort=False).ngroup().to_numpy()
    known = known_values(config.name, config.race_table)
    records = _records(texts.drop_duplicates(), np.bincount(code), known, config.name)
    standing = pd.Series(np.array([rule.of(r) for r in records], object)[code], keys.index, dtype="str")
    if not rule.keeps:
        found = set(standing.unique())
        return Ruled(standing, tuple(group for group in GROUPS if group in found), table=fingerprint(known))
    steps = [
        ("race is recorded", ~standing.isin((NO_RECORD, NOT_KNOWN))),
        ("records of race agree", standing != SEVERAL),
        (f"race is {', '.join(rule.keeps[:-1])} or {rule.keeps[-1]}", standing.isin(rule.keeps)),
    ]
    if rule.strict and "ethnicity" in fields:
        not_hispanic = np.array([r.not_hispanic for r in records])[code]
        steps.append(("ethnicity is recorded as not Hispanic", pd.Series(not_hispanic, keys.index)))
    if rule.strict and "labelled" in keys:
        steps.append(("the study has labels", keys["labelled"] == 1))
    return Ruled(standing, rule.keeps, tuple(steps), fingerprint(known))


def _records(combinations: pd.DataFrame, images: np.ndarray, known: Known, name: str) -> list[Records]:
    """Records of each combination of raw values.

    images: how many images have it, for the error on unknown values. name: of the data set.
    """
    strange: dict[tuple[str, str], int] = {}
    found = []
    for row, n in zip(combinations.to_dict("records"), images, strict=True):
        said: dict[str, list[tuple[str, str]]] = {"race": [], "ethnicity": []}
        for field, text in row.items():
            for value in filter(None, text.split(BETWEEN)):
                if value in known[field]:
                    said[field].append(known[field][value])
                else:
                    strange[field, value] = strange.get((field, value), 0) + int(n)
        origins = {origin for _, origin in said["ethnicity"]}
        found.append(
            Records(
                tuple(group for group, _ in said["race"]),
                hispanic="yes" in {origin for values in said.values() for _, origin in values},
                not_hispanic=origins == {"no"},
            )
        )
    if strange:
        listed = ", ".join(f"{field} {value!r} ({n:,} images)" for (field, value), n in sorted(strange.items()))
        raise UserError(
            f"data set {name}: values that {TABLE.name} does not know: {listed}; put a row for each, with the"
            f" columns {','.join(COLUMNS)}, into a table of your own and name it in config.dataset.race_table"
        )
    return found
