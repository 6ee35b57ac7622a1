"""A cohort as its page tells of it: groups, the cells behind every number, and which of these are withheld.

All numbers of the page are in one `audit.suppression.Ledger`, since its tables share their totals, and what one of them
withholds another would give away. A cell is named by what its images have in common, {("race", "Asian"), ("split",
"test")}, everybody by nothing, so that the same cell of two tables is one. What is added up are

    counts          images by group and split, patients by group at their first image and split
    rules           images and patients left after each, and removed by it, by race
    findings        images by state, by split, and by race, sex and age band; patients who ever and never have one
    missing values  images by race
    comparisons     patients by race or sex, and by sex, view or finding

Patients are told of only where each is in one group. With one in two, that the groups have more patients together than
there are would say how many are in both, and all less a group's how many never are in it.

Small groups are told of together with a neighbour ("F or not recorded"): they would be withheld otherwise, and the
neighbour with them.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import pandas as pd

from cxr_jax import tables
from cxr_jax.audit import subgroups
from cxr_jax.audit.subgroups import ALL, MISSING
from cxr_jax.audit.suppression import Ledger
from cxr_jax.experiment import nearest_first
from cxr_jax.report import rows as audit_rows

FINDING = "finding_"
STATES = ("positive", "negative", "uncertain", "not mentioned")
MOST_GROUPS = 30  # of an attribute that gets a table
MOST_TEXT_VALUES = 200  # of a text column that is a category; with more it is free text or names something
RARE = 0.01  # categories of fewer patients than this share count as one in a comparison
OF_WHICH = "of which "
EVERYBODY: frozenset = frozenset()


@dataclasses.dataclass(frozen=True)
class Groups:
    """Images, or patients, shared out. names: of the groups; code: int [k], which each is in; who: int [k], patients."""

    of: str
    names: list[str]
    code: np.ndarray
    who: np.ndarray


@dataclasses.dataclass(frozen=True)
class Counts:
    """Images and patients, at their first image, by group and split.

    groups [g] and splits [s]: names. patients, images, hidden_…: [g + 1, s + 1], whose last row is all groups and whose
    last column is all splits; what the latter mark must not be shown.
    """

    attribute: str
    groups: list[str]
    splits: list[str]
    patients: np.ndarray
    images: np.ndarray
    hidden_patients: np.ndarray
    hidden_images: np.ndarray


@dataclasses.dataclass(frozen=True)
class Flow:
    """What the rules leave and remove, by group and last everybody: int [g + 1, rules + 1], the first being the start.

    removed_…: by each rule, patients of whom no image is left. hidden_left, hidden_removed: bool of the same shape.
    """

    rules: list[str]
    groups: list[str]
    images: np.ndarray
    patients: np.ndarray
    removed_images: np.ndarray
    removed_patients: np.ndarray
    hidden_left: np.ndarray
    hidden_removed: np.ndarray


def key(**values: str) -> frozenset:
    """The name of a cell: key(race="Asian", split="test"); ALL says nothing."""
    return frozenset((of, value) for of, value in values.items() if value != ALL)


class Study:
    """A cohort, and what may be shown of it.

    table: rows in their order. patient: int [n], codes from 0. first: int [patients], where each one's first image is.
    groups: by attribute, of images; those of which nothing is recorded are absent. members: by attribute, the values that
    each group is of. crowded: attributes with too many groups, and how many. settings: the config's `audit` section.
    """

    def __init__(self, table: pd.DataFrame, settings, invented: bool, races: Sequence[str], attrition: Sequence[Mapping]):
        subgroups.check_attributes(settings.attributes)
        for attribute in settings.attributes:
            if attribute == "age" or attribute.startswith((FINDING, "race_", "ceiling_")):
                raise tables.UserError(f"config.audit.attributes: {attribute} makes no groups of its own; use race, sex, age_band, view")
            if attribute not in table and attribute not in ("race", "sex", "age_band", "view"):
                near = nearest_first(attribute, [c for c in table if c not in tables.IDENTIFIERS and not c.startswith(FINDING)] + ["age_band"])
                raise tables.UserError(f"config.audit.attributes: the cohort has no {attribute!r}; it has {', '.join(near)}")
        self.settings, self.invented, self.races = settings, invented, races
        self.least, self.level = settings.min_patients, settings.level
        self.attributes = list(dict.fromkeys(("race", "sex", "age_band", "view", *settings.attributes)))
        self.patient = pd.factorize(table["patient_id"])[0].astype(np.int32)
        # Texts as objects: what follows goes over them many times.
        texts = [c for c in (*self.attributes, "split") if c in table and not pd.api.types.is_numeric_dtype(table[c])]
        self.table = table.assign(**{c: pd.Series(table[c].to_numpy(object), table.index, object) for c in texts})
        self.age = table["age"].to_numpy(np.float64, na_value=np.nan) if "age" in table else np.full(len(table), np.nan)
        self.first = first_images(self.age, self.patient)
        self.splits = [split for split in tables.SPLITS if (self.table["split"] == split).any()]
        self.groups: dict[str, Groups] = {}
        self.members: dict[str, dict[str, list[str]]] = {}
        self._alone: dict[str, dict[str, np.ndarray]] = {}  # patients of values that are told of together
        self.crowded: dict[str, int] = {}
        for attribute in self.attributes:
            self._group(attribute)
        self.findings = [c.removeprefix(FINDING) for c in table.columns if c.startswith(FINDING)]
        self.states = {name: _states(table[FINDING + name]) for name in self.findings}
        self.variables = {v: _empty(table[column]) for v, column in self._variables().items()}
        self.ledger = Ledger(self.least)
        self.ledger.cell(EVERYBODY, np.arange(self.patients), reluctance=9)
        self._add_counts()
        self._add_findings()
        self._add_missing()
        self._add_comparisons()
        self.flow = self._add_flow(attrition)

    # ---- who

    @property
    def patients(self) -> int:
        return len(self.first)

    @property
    def by(self) -> str:
        """The attribute by which missing values are told; ALL where no race is recorded."""
        return "race" if "race" in self.groups else ALL

    def name_of(self, attribute: str) -> str:
        return "everybody" if attribute == ALL else audit_rows.attribute_name(attribute, self.invented)

    def of(self, attribute: str) -> Groups:
        """Images by the groups of an attribute, ALL having one."""
        if attribute == ALL:
            return Groups(ALL, [ALL], np.zeros(len(self.patient), int), self.patient)
        return self.groups[attribute]

    def at_first(self, attribute: str) -> Groups:
        """Patients by group at their first image. Its name is the attribute's own where patients stay in one group."""
        images = self.of(attribute)
        steady = (images.code == images.code[self.first][self.patient]).all()
        of = attribute if steady else f"{attribute} at the first image"
        return Groups(of, images.names, images.code[self.first], np.arange(self.patients, dtype=np.int32))

    def hides(self, *keys: Hashable) -> bool:
        return self.ledger.hides(*keys)

    def counts(self, attribute: str) -> Counts:
        """Of the groups of an attribute, by split: images, and patients at their first image."""
        groups, first = self.groups[attribute], self.at_first(attribute)
        shape = len(groups.names) + 1, len(self.splits) + 1

        def counted(code: np.ndarray, split: np.ndarray) -> np.ndarray:
            found = np.zeros(shape, int)
            np.add.at(found, (code, split), 1)
            found[-1] = found.sum(axis=0)
            found[:, -1] = found.sum(axis=1)
            return found

        def hidden(of: str) -> np.ndarray:
            names = [[key(**{of: g, "split": s}) for s in [*self.splits, ALL]] for g in [*groups.names, ALL]]
            return np.array([[self.hides(name) for name in line] for line in names])

        split = self._split.code
        return Counts(
            attribute,
            groups.names,
            self.splits,
            patients=counted(first.code, split[self.first]),
            images=counted(groups.code, split),
            hidden_patients=hidden(first.of),
            hidden_images=hidden(attribute),
        )

    def _group(self, attribute: str) -> None:
        if attribute in self.table and self.table[attribute].nunique() > MOST_GROUPS:
            self.crowded[attribute] = self.table[attribute].nunique()
            return
        for reserved in (ALL, MISSING):
            if attribute in self.table and (self.table[attribute] == reserved).any():
                raise tables.UserError(f"cohort: {attribute} is recorded as {reserved!r}, which stands for something else here; rename it")
        first = self.races if attribute == "race" else ()
        masks = subgroups.groups(self.table, attribute, tuple(self.settings.age_bands), first)
        if masks:
            code, names = np.argmax(np.stack(list(masks.values())), axis=0), list(masks)
            who = {name: np.unique(self.patient[code == i]) for i, name in enumerate(names)}
            together = _together(names, list(map(len, who.values())), self.least, in_order=attribute == "age_band")
            self._alone[attribute] = {name: who[name] for members in together if len(members) > 1 for name in members}
            self.members[attribute] = {_joined(members): members for members in together}
            to = {name: i for i, members in enumerate(together) for name in members}
            code = np.array([to[name] for name in names])[code]
            self.groups[attribute] = Groups(attribute, list(self.members[attribute]), code, self.patient)

    def _variables(self) -> dict[str, str]:
        """What may be missing, and the column that says whether it is. A release's own words on race stay in the workdir."""
        table = self.table
        found = {"race": "race", "sex": "sex", "age_band": "age", "view": "view", "study_id": "study_id"}
        for column in table.columns:
            words = re.split(r"[_\W]+", column.lower())
            telling = any(word.startswith(("race", "ethnic")) for word in words) or words[-1] in ("id", "path", "file")
            if telling or column in tables.IDENTIFIERS or column.startswith(FINDING) or pd.api.types.is_numeric_dtype(table[column]):
                continue
            if table[column].nunique() <= MOST_TEXT_VALUES:
                found.setdefault(column, column)
        return {v: column for v, column in found.items() if column in table}

    # ---- cells and sums

    def _cross(self, *groups: Groups, unit: str, reluctance: int = 0) -> None:
        """Cells of one or two sharings of the same images or patients, and how they add up. unit: images, patients, both."""
        a, b = groups if len(groups) == 2 else (groups[0], None)
        other = b if b is not None else Groups(ALL, [ALL], np.zeros(len(a.code), int), a.who)
        cells = _cells(a.code, other.code, a.who, (len(a.names), len(other.names)))
        names = [[*a.names, ALL], [*other.names, ALL]]
        keys = [[key(**{a.of: v, other.of: w}) for w in names[1]] for v in names[0]]
        for line, who in zip(keys, cells, strict=True):
            for name, patients in zip(line, who, strict=True):
                # Totals go last, and what readers look for, the split that is judged, after other splits.
                order = reluctance + 4 * (2 - len(name)) + (("split", "test") in name)
                self.ledger.cell(name, patients, order)
        for line in [*(keys if b is not None else ()), *zip(*keys, strict=True)]:
            self.ledger.add_up(line[:-1], line[-1], images=unit != "patients", patients=unit != "images")

    def _add_counts(self) -> None:
        code = np.argmax([self.table["split"] == split for split in self.splits], axis=0)
        self._split = Groups("split", self.splits, code, self.patient)
        of_patients = Groups("split", self.splits, code[self.first], np.arange(self.patients, dtype=np.int32))
        self._cross(self._split, unit="both", reluctance=1)
        for attribute, groups in self.groups.items():
            first = self.at_first(attribute)
            self._cross(groups, self._split, unit="both" if first.of == attribute else "images")
            if first.of != attribute:
                self._cross(first, of_patients, unit="patients")
            # What groups are made of is told nowhere, but for those not recorded: see `_add_missing`.
            for name, who in self._alone[attribute].items():
                self.ledger.cell(key(**{attribute: name}), who, published=False)
            for group, members in self.members[attribute].items():
                if len(members) > 1:
                    self.ledger.add_up([key(**{attribute: name}) for name in members], key(**{attribute: group}))

    def _add_findings(self) -> None:
        for name, state in self.states.items():
            self._cross(Groups(name, list(STATES), state, self.patient), unit="images")
            two = Groups(name, ["positive", "not positive"], np.where(state == 0, 0, 1), self.patient)
            three = ["positive", "negative or uncertain", "not mentioned"]
            three = Groups(name, three, np.array([0, 1, 1, 2])[state], self.patient)
            for attribute in (a for a in ("sex", "age_band") if a in self.groups):
                self._cross(two, self.groups[attribute], unit="images")
            self._cross(two, self._split, unit="images")
            mentioned = Groups(name, ["mentioned", "not mentioned"], np.where(state == 3, 1, 0), self.patient)
            by = [self.of(self.by)] if self.by != ALL else []
            for states in (two, three, mentioned):
                self._cross(states, *by, unit="images")
            for group in dict.fromkeys([*self.of(self.by).names, ALL]):
                self._link(["negative or uncertain", "not mentioned"], "not positive", name, group)
                self._link(["positive", "negative or uncertain"], "mentioned", name, group)
            self._link(["negative", "uncertain"], "negative or uncertain", name, ALL)

    def _link(self, parts: Sequence[str], total: str, finding: str, group: str) -> None:
        cells = [key(**{finding: state, self.by: group}) for state in (*parts, total)]
        self.ledger.add_up(cells[:-1], cells[-1], patients=False)

    def _add_missing(self) -> None:
        for variable, empty in self.variables.items():
            by = [self.of(self.by)] if self.by not in (ALL, variable) else []
            self._cross(self._missing(variable), *by, unit="images")

    def _missing(self, variable: str) -> Groups:
        return Groups(variable, [MISSING, "recorded"], np.where(self.variables[variable], 0, 1), self.patient)

    def _add_comparisons(self) -> None:
        """Patients by what groups are compared in, and in cells of their own those whose age is known: means add up too."""
        for name in self.findings:
            self._cross(self.ever(name), unit="patients")
        everybody = np.flatnonzero(np.isfinite(self.age[self.first])).astype(np.int32)
        self.ledger.cell(("ages", ALL), everybody, reluctance=9)
        for attribute in (a for a in ("race", "sex") if a in self.groups):
            groups = self.at_first(attribute)
            for name in self.findings:
                self._cross(self.ever(name), groups, unit="patients")
            for covariate in self.covariates(attribute):
                self._cross(covariate, groups, unit="patients")
            for i, name in enumerate(groups.names):
                who = everybody[groups.code[everybody] == i]
                self.ledger.cell(("ages", attribute, name), who)
            self.ledger.add_up([("ages", attribute, name) for name in groups.names], ("ages", ALL))

    def ever(self, finding: str) -> Groups:
        """Patients by whether any of their images has a finding."""
        never = np.ones(self.patients, int)
        never[self.patient[self.states[finding] == 0]] = 0
        return Groups(f"{finding} in any image", ["ever", "never"], never, np.arange(self.patients, dtype=np.int32))

    def covariates(self, attribute: str) -> list[Groups]:
        """Sex and view of patients at their first image, as far as they are not `attribute` itself; rare ones as one."""
        return [_rare_as_one(self.at_first(a)) for a in ("sex", "view") if a != attribute and a in self.groups]

    def _add_flow(self, attrition: Sequence[Mapping]) -> Flow:
        """What each rule removes and leaves, of which numbers alone are known, and not which patients.

        Withheld cells must have `least` patients together. That holds for sure if it does where each smaller set is
        part of the larger, as the first n of some people are.
        """
        steps = [step for step in attrition if not step["rule"].startswith(OF_WHICH)]
        standing = self._flow_groups(steps)
        names = list(standing)

        def grid(what: str) -> np.ndarray:
            lines = [[sum(step["by_race"][s][what] for s in standing[n]) for step in steps] for n in names]
            return np.array([*lines, [step[what] for step in steps]], int)

        images, patients, removed, touched = map(grid, ("images", "patients", "removed_images", "removed_patients"))
        wholly = np.diff(patients, axis=1, prepend=patients[:, :1]) * -1
        if (np.diff(images, axis=1) != -removed[:, 1:]).any() or (wholly < 0).any() or (touched < wholly).any():
            raise ValueError("attrition: what the rules remove is not what the numbers left differ by")
        if (images[-1, -1], patients[-1, -1]) != (len(self.patient), self.patients):
            raise ValueError("attrition: what the rules leave is not the cohort")
        ledger, last, stride = self.ledger, len(steps) - 1, int(patients.max()) + 1

        def left(i: int, t: int) -> Hashable:
            return EVERYBODY if (i, t) == (len(names), last) else ("left", i, t)

        for i in range(len(names) + 1):
            total = 6 if i == len(names) else 0
            for t in range(last + 1):
                # The counts tell what is left in the end, and it goes after what there was.
                order = total + (4 if t == last else 2)
                if left(i, t) != EVERYBODY:
                    ledger.cell(left(i, t), i * stride + np.arange(patients[i, t]), order)
                if t:
                    few = wholly[i, t] if 0 < wholly[i, t] < self.least else touched[i, t]
                    ledger.cell(("removed", i, t), i * stride + np.arange(few), total)
                # Of all rules between two, since those that are withheld must not be few together.
                for before in range(t):
                    between = [("removed", i, u) for u in range(before + 1, t + 1)]
                    ledger.add_up([left(i, t), *between], left(i, before), patients=True)
        for t in range(last + 1 if names else 0):
            ledger.add_up([left(i, t) for i in range(len(names))], left(len(names), t), patients=True)
            if t:
                parts = [("removed", i, t) for i in range(len(names))]
                ledger.add_up(parts, ("removed", len(names), t), patients=True)
        if names:
            self._link_flow(steps[-1]["by_race"], standing, [left(i, last) for i in range(len(names))], stride)
        keys = [[left(i, t) for t in range(last + 1)] for i in range(len(names) + 1)]
        hidden_left = np.array([[ledger.hides(name) for name in line] for line in keys])
        gone = [[t > 0 and ledger.hides(("removed", i, t)) for t in range(last + 1)] for i in range(len(names) + 1)]
        return Flow([step["rule"] for step in steps], names, images, patients, removed, wholly, hidden_left, np.array(gone))

    def _flow_groups(self, steps: Sequence[Mapping]) -> dict[str, list[str]]:
        """Groups by which the flow is told, and what of the attrition each is made of: race, or why there is none.

        {} where there is one alone, or patients are in several at once.
        """
        start = steps[0]["by_race"]
        additive = all(sum(s["by_race"][g]["patients"] for g in s["by_race"]) == s["patients"] for s in steps)
        if "race" not in self.groups or len(start) < 2 or not additive:
            return {}
        order = [race for race in self.races if race in start]
        names = [*order, *(name for name in start if name not in order)]
        together = _together(names, [start[name]["patients"] for name in names], self.least)
        return {_joined(members): members for members in together} if len(together) > 1 else {}

    def _link_flow(self, found: Mapping, standing: Mapping[str, list[str]], left: Sequence[Hashable], stride: int) -> None:
        """The last line of the flow and the counts by race share out the same images, each in its own way."""
        recorded = set(self.table["race"].dropna()) - {""}
        parts: dict[str, list[Hashable]] = {group: [] for group in self.groups["race"].names}
        for at, name in enumerate(found):
            self.ledger.cell(("standing", name), at * stride + np.arange(found[name]["patients"]), published=False)
            value = name if name in recorded else MISSING
            for group, members in self.members["race"].items():
                parts[group] += [("standing", name)] if value in members else []
        for members, total in zip(standing.values(), left, strict=True):
            self.ledger.add_up([("standing", name) for name in members], total)
        for group, cells in parts.items():
            if cells:
                self.ledger.add_up(cells, key(race=group))


# ------------------------------------------------------------------------------------------------- groups


def _together(names: Sequence[str], sizes: Sequence[int], least: int, in_order: bool = False) -> list[list[str]]:
    """Names of groups, the smallest with the next until none has 1 to `least` - 1 patients.

    sizes: of patients. in_order: a group goes with one beside it, those not recorded with the smallest.
    """
    parts, sizes = [[name] for name in names], list(sizes)
    while len(parts) > 1 and any(0 < n < least for n in sizes):
        i = min((i for i, n in enumerate(sizes) if 0 < n < least), key=lambda i: (parts[i] == [MISSING], sizes[i]))
        others = [j for j in range(len(parts)) if j != i]
        if in_order and parts[i] != [MISSING]:
            beside = [j for j in others if abs(i - j) == 1 and parts[j] != [MISSING]]
            others = beside or others
        j = min((j for j in others if sizes[j]), key=lambda j: sizes[j], default=others[0])
        to, gone = (j, i) if MISSING in parts[i] or not in_order else sorted((i, j))
        parts[to], sizes[to] = [*parts[to], *parts[gone]], sizes[to] + sizes[gone]
        del parts[gone], sizes[gone]
    return parts


def _joined(members: Sequence[str]) -> str:
    return " or ".join(map(audit_rows.group_name, members)) if len(members) > 1 else members[0]


def _rare_as_one(groups: Groups) -> Groups:
    """Groups of patients with those of a smaller share than RARE as one, last, but for those not recorded."""
    sizes = np.bincount(groups.code, minlength=len(groups.names))
    rare = [i for i, name in enumerate(groups.names) if name != MISSING and sizes[i] < RARE * sizes.sum()]
    if not rare:
        return groups
    kept = [i for i in range(len(groups.names)) if i not in rare]
    to = np.full(len(groups.names), len(kept))
    to[kept] = np.arange(len(kept))
    together = " or ".join(groups.names[i] for i in rare) if len(rare) < 3 else f"{len(rare)} rare ones"
    return Groups(f"{groups.of}, rare as one", [*(groups.names[i] for i in kept), together], to[groups.code], groups.who)


def first_images(age: np.ndarray, patient: np.ndarray) -> np.ndarray:
    """Where each patient's first image is: int [patients], by patient code.

    age: float [n], years, NaN unknown; patient: int [n], codes from 0. First is lowest in age, then in the table; an
    image of known age comes before one of unknown.
    """
    order = np.argsort(age, kind="stable")
    return order[np.unique(patient[order], return_index=True)[1]]


def _states(column: pd.Series) -> np.ndarray:
    """The position in STATES of each value of a finding, int [n]."""
    values = column.to_numpy(np.float64, na_value=np.nan)
    return np.select([values == 1, values == 0, values == -1], [0, 1, 2], 3)


def _empty(column: pd.Series) -> np.ndarray:
    """Where nothing is recorded: bool [n]."""
    empty = column.isna().to_numpy()
    return empty if pd.api.types.is_numeric_dtype(column) else empty | (column.to_numpy(object) == "")


def _cells(rows: np.ndarray, columns: np.ndarray, who: np.ndarray, shape: tuple[int, int]) -> list[list[np.ndarray]]:
    """Distinct patients by row and column, with totals last: [r + 1][c + 1]. rows, columns, who: int [n]."""
    people = int(who.max()) + 1 if len(who) else 1
    there = np.zeros((shape[0], shape[1], people), bool)
    there[rows, columns, who] = True
    whole = np.zeros((shape[0] + 1, shape[1] + 1, people), bool)
    whole[:-1, :-1], whole[:-1, -1], whole[-1, :-1], whole[-1, -1] = there, there.any(1), there.any(0), there.any((0, 1))
    cell, person = np.nonzero(whole.reshape(-1, people))
    ends = np.searchsorted(cell, np.arange((shape[0] + 1) * (shape[1] + 1) + 1))
    flat = [person[a:b].astype(np.int32) for a, b in itertools.pairwise(ends)]
    return [flat[i * (shape[1] + 1) : (i + 1) * (shape[1] + 1)] for i in range(shape[0] + 1)]
