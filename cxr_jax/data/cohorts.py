"""Who is in a study, in which split, and with which labels: pure functions of the key table.

Images are stored once. That one study keeps four races and another one three, that one splits by a hash and another
one by the official lists, is decided here, at load, in a second, and written down as `cohort.parquet`. The order of
things is

    key table → race rule → views → split rule → cohort → targets → label arrays

Each rule that may drop images leaves rows in the attrition table, so that a reader can follow how the study's n came
about. No rule looks at an image, or at the outcome of any model.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from cxr_jax import tables
from cxr_jax.data import race_rules
from cxr_jax.experiment import nearest_first
from cxr_jax.tables import SPLITS, Target, UserError

FRONTAL = ("AP", "PA")  # views that may be asked for of any data set, whether or not it holds one
FINDING = "finding_"  # finding_<Name>: as released: 1, 0, -1 (uncertain), NaN

# What a finding counts as that is uncertain (-1), and one that is not mentioned (NaN) where others are.
UNCERTAIN = {"ignore": np.nan, "zeros": 0.0, "ones": 1.0}
UNMENTIONED = {"ignore": np.nan, "zeros": 0.0}

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Cohort:
    """The images of a study.

    table: rows of the key table, in its order, numbered from 0, with `split` (train, validation or test), `race` as the
        race rule has it (null where unknown), `race_standing` (the group, or why there is none), `race_recorded` (the
        release's own words) and `dataset`. A row's position is the `index` by which batches refer to it.
    findings: names, in the release's order.
    races: classes of race, in the rule's order; empty where the release records none.
    attrition: after each rule, {"rule": str, "images", "patients": what is left, "removed_images", "removed_patients":
        what the rule removed (patients: who lose an image or more by it), "by_race": {group: the same four}}, all int.
        The groups are the same throughout: the rule's classes, and what `race_rules` has in the place of a group. A patient
        recorded with two races counts under both. Rows of splits ("of which in …") come last, and remove nothing.
    race_table: fingerprint of the tables by which the release's words became groups (`race_rules.fingerprint`); "" where
        the data set has groups of its own.
    """

    table: pd.DataFrame
    findings: tuple[str, ...]
    races: tuple[str, ...]
    attrition: list[dict]
    race_table: str = ""

    @functools.cached_property
    def labelled(self) -> np.ndarray:
        """Whether anybody looked for findings in an image's report, bool [n]: what the release says, or what it shows."""
        if "labelled" in self.table:
            return (self.table["labelled"] == 1).to_numpy()
        columns = [FINDING + name for name in self.findings if FINDING + name in self.table]
        return self.table[columns].notna().any(axis=1).to_numpy(bool)

    def write(self, path: os.PathLike | str) -> None:
        """Writes Parquet at `path`, whole or not at all; what is not the table travels in the file's own metadata."""
        meta = {name: getattr(self, name) for name in ("findings", "races", "attrition", "race_table")}
        tables.write_parquet(self.table, path, meta)

    @classmethod
    def read(cls, path: os.PathLike | str) -> "Cohort":
        """Reads what `write` wrote. Raises UserError for a file that is missing or not ours, or a patient in two splits."""
        table, meta = tables.read_parquet(path)
        if "attrition" not in meta:
            raise UserError(f"{path}: not a cohort written by cxr_jax")
        tables.check_keys(table, str(path))
        races = tuple(meta["races"])
        return cls(table, tuple(meta["findings"]), races, meta["attrition"], meta.get("race_table", ""))


def select(keys: pd.DataFrame, findings: Sequence[str], races: Sequence[str], config) -> Cohort:
    """The cohort that `config` (a run's `config.dataset`) draws from a key table.

    keys, findings, races: as a `datasets.Dataset` has them.
    Raises UserError where a rule is unknown, leaves no image or an empty split, or a patient would be in two splits.
    """
    source = f"data set {config.name}"
    tables.check_keys(keys.drop(columns="split", errors="ignore"), source)
    ruled = race_rules.apply(keys, races, config)
    # Every row of the table of attrition has the same groups, so that its columns can be read down.
    groups = [*ruled.classes, *sorted(set(ruled.standing.unique()) - set(ruled.classes))]
    count = _counter(keys["patient_id"], ruled.standing, groups)
    kept, nobody = np.ones(len(keys), bool), np.zeros(len(keys), bool)
    attrition = [count("every image of the data set", kept, nobody)]

    def keep(rule: str, mask: np.ndarray) -> None:
        nonlocal kept
        attrition.append(count(rule, kept & mask, kept & ~mask))
        kept = kept & mask
        if not kept.any():
            raise UserError(f"{source}: rule {rule!r} leaves no image of {attrition[-2]['images']:,}")

    for rule, mask in ruled.steps:
        keep(rule, mask.to_numpy(bool))

    if config.views:
        known = sorted(keys["view"].dropna().unique())
        for view in config.views:
            if view not in (*known, *FRONTAL):
                raise UserError(
                    f"config.dataset.views: no image of {source} is {view!r}; its views are {', '.join(known)}"
                )
        keep(f"view is {' or '.join(config.views)}", keys["view"].isin(config.views).to_numpy(bool))

    table = keys.assign(
        race_recorded=keys["race"],
        race=ruled.race,
        race_standing=ruled.standing,
        dataset=pd.Series(config.name, index=keys.index, dtype="str"),
    )[kept]
    split = _named(SPLIT_RULES, config.split_rule, "config.dataset.split_rule")(table, config)
    table = table.assign(split=pd.Series(split, index=table.index, dtype="str")).reset_index(drop=True)
    tables.check_keys(table, f"{source}, split rule {config.split_rule}")
    sizes = table["split"].value_counts().reindex(SPLITS, fill_value=0)
    if (sizes == 0).any():
        empty = sizes.index[sizes == 0][0]
        found = ", ".join(f"{name} {n:,}" for name, n in sizes.items())
        if config.split_rule == "official":
            raise UserError(
                f"config.dataset.split_rule: official, but no image of {source} that the rules keep is in the release's"
                f" own {empty} part ({found} images); use patient_hash"
            )
        raise UserError(
            f"config.dataset.split_rule: {config.split_rule} leaves split {empty} of {source} empty ({found} images);"
            " change config.dataset.split_fractions or split_salt, or take more patients"
        )
    for name in SPLITS:
        in_it = kept.copy()
        in_it[kept] = split == name
        attrition.append(count(f"of which in {name}", in_it, nobody))
    return Cohort(table, tuple(findings), ruled.classes, attrition, ruled.table)


# Cohorts that studies have published, by (data set, race rule, views): what a correct builder gives on the whole release.
# release: images of the whole one, for CheXpert with and without valid.csv. with, without: words of its records by which
# versions before v2.0 are told from later ones. recorded: images by the release's own words for race, which our reviewed
# table makes into groups.
_PUBLISHED = {
    ("mimic", "three_race", FRONTAL): {
        "on": "MIMIC-IV v1.0",
        "release": (377_110,),
        "without": "WHITE - RUSSIAN",
        "images": 183_207,
        "patients": 43_209,
        "sex": {"M": 98_014, "F": 85_193},
    },
    ("mimic", "first_admission", ()): {
        "on": "MIMIC-IV v2.2",
        "release": (377_110,),
        "with": "WHITE - RUSSIAN",
        "images": 377_110,
        "recorded": race_rules.PUBLISHED_V22,
    },
    ("chexpert", "three_race", FRONTAL): {
        "on": "CheXpert v1.0",
        "release": (223_414, 223_414 + 234),
        "images": 127_118,
        "patients": 42_884,
        "race": {"White": 99_027, "Asian": 18_830, "Black": 9_261},
    },
}


def against_published(cohort: Cohort, config) -> list[str]:
    """The cohort beside what a study has published for this rule and these views; [] where none has.

    One statement for each count, whether or not it differs. Only a whole release is compared; one image that could not
    be read is enough for none.
    """
    published = _PUBLISHED.get((config.name, config.race_rule, tuple(sorted(config.views))))
    table = cohort.table
    if published is None:
        return []
    # CheXpert's published counts are of train.csv, without the 234 images of valid.csv.
    if config.name == "chexpert":
        table = table[table["released_split"] == "train"]
    words = "|".join(table["race_recorded"].dropna().unique())
    whole = cohort.attrition[0]["images"] in published["release"]
    if not whole or published.get("without", "\0") in words or published.get("with", "") not in words:
        return []
    found = {"images": (len(table), published["images"])}
    if "patients" in published:
        found["patients"] = (table["patient_id"].nunique(), published["patients"])
    expected = {column: published.get(column, {}) for column in ("race", "sex")}
    if "recorded" in published:
        group = {value: group for value, (group, _) in race_rules.known_values(config.name)["race"].items()}
        sums = pd.Series(published["recorded"]).groupby(group).sum()
        expected["race"] = {name: int(sums[name]) for name in race_rules.RULES["four_race"].keeps}
    for column, values in expected.items():
        counts = table[column].value_counts()
        for value, n in values.items():
            found[f"images of {column} {value}"] = (int(counts.get(value, 0)), n)
    return [
        f"published for {config.race_rule} on {published['on']}: {n:,} {what}; here {m:,}{'' if m == n else ' (differs)'}"
        for what, (m, n) in found.items()
    ]


def _counter(patients: pd.Series, standing: pd.Series, groups: Sequence[str]) -> Callable[..., dict]:
    """A function (rule, images that it left, those that it removed; bool [n] each) → row of `Cohort.attrition`."""
    patient, group = pd.factorize(patients)[0], pd.Index(groups).get_indexer(standing)

    def count(rule: str, left: np.ndarray, removed: np.ndarray) -> dict:
        row, by_race = {"rule": rule}, {name: {} for name in groups}
        for what, mask in (("", left), ("removed_", removed)):
            images = np.bincount(group[mask], minlength=len(groups))
            there = np.zeros((patient.max() + 1, len(groups)), bool)
            there[patient[mask], group[mask]] = True
            row |= {f"{what}images": int(mask.sum()), f"{what}patients": int(there.any(axis=1).sum())}
            for name, n, m in zip(groups, images.tolist(), there.sum(axis=0).tolist(), strict=True):
                by_race[name] |= {f"{what}images": n, f"{what}patients": m}
        return {**row, "by_race": by_race}

    return count


def _named(rules: Mapping[str, Callable], name: str, field: str) -> Callable:
    if name not in rules:
        raise UserError(f"{field}: no rule {name!r}; there are {', '.join(nearest_first(name, rules))}")
    return rules[name]


# ---- split rules ---------------------------------------------------------------------------------


def uniform_of_patient(patient_ids: Iterable[str], salt: str) -> np.ndarray:
    """A number in [0, 1) for each patient, the same on every machine and in every year: float64 [n].

    The first 8 bytes, big-endian, of BLAKE2b (RFC 7693) with an 8-byte digest of the UTF-8 text `salt`, a zero byte,
    `patient_id`; its upper 53 bits divided by 2^53, so that the quotient is exact in float64. Whoever knows the salt
    can tell a patient's split without us, and adding patients moves none of those that were there.
    """
    digests = (hashlib.blake2b(f"{salt}\0{p}".encode(), digest_size=8).digest() for p in patient_ids)
    return np.fromiter((int.from_bytes(d, "big") >> 11 for d in digests), np.float64) / 2.0**53


def _patient_hash(table: pd.DataFrame, config) -> np.ndarray:
    """Train below the first fraction, validation below the first two, else test, by `uniform_of_patient`."""
    edges = np.cumsum(config.split_fractions)[:2]
    return np.array(SPLITS)[np.searchsorted(edges, uniform(table, config.split_salt), side="right")]


# What releases call their splits. None: a part that holds training and validation together.
_OFFICIAL = {
    "train": "train",
    "train_val": None,
    "validate": "validation",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
}


def _official(table: pd.DataFrame, config) -> np.ndarray:
    """The release's own split. Where it has no validation part, that is hashed by patient out of what is not test.

    Its share of those patients is validation / (train + validation) of `split_fractions`.
    """
    released = table["released_split"]
    if released.isna().all():
        raise UserError(
            f"config.dataset.split_rule: data set {config.name} has no official split (its files do not hold one);"
            " use patient_hash"
        )
    wrong = ~released.isin(list(_OFFICIAL)).to_numpy()
    if wrong.any():
        row = table.iloc[int(np.flatnonzero(wrong)[0])]
        said = "none" if pd.isna(row["released_split"]) else repr(row["released_split"])
        raise UserError(
            f"config.dataset.split_rule: official, but image {row['image_id']!r} has the released split {said}"
            f" ({wrong.sum():,} such images); one of {', '.join(_OFFICIAL)} expected; use patient_hash"
        )
    split = released.map(_OFFICIAL).to_numpy(object)
    if "validation" not in split:
        train, validation, _ = config.split_fractions
        held_out = uniform(table, config.split_salt) < validation / (train + validation)
        split = np.where(split == "test", "test", np.where(held_out, "validation", "train"))
    return np.where(pd.isna(split), "train", split)


def uniform(table: pd.DataFrame, salt: str) -> np.ndarray:
    """`uniform_of_patient` of each row's patient_id, float64 [n]."""
    codes, patients = pd.factorize(table["patient_id"])
    return uniform_of_patient(patients.to_list(), salt)[codes]


# A rule is a function (cohort so far, config.dataset) → a split for each row.
SPLIT_RULES: dict[str, Callable[..., np.ndarray]] = {"patient_hash": _patient_hash, "official": _official}


# ---- targets and labels --------------------------------------------------------------------------


def targets(
    cohort: Cohort, names: Sequence[str], policy, field: str = "config.train.targets"
) -> tuple[dict[str, Target], tuple[str, ...]]:
    """What a model that is trained on `cohort` predicts, and which findings had to be dropped.

    names: `findings`, or class labels: race, sex, view, or any other text column. race has the race rule's classes in
        its order, other labels their sorted values.
    policy: a run's `config.dataset`, of which `uncertain` and `unmentioned` are read: see `labels`. field: of the config, that names them.

    Returns the targets by name, in the order of `names`, and the findings that have no positive or no negative image in
    training: no model can learn them, and they are logged. Raises UserError for an unknown name (the nearest known one
    first), race where none is recorded, a class that training lacks, a class name that two targets share, and findings
    of which none is left.
    """
    chosen: dict[str, Target] = {}
    dropped: tuple[str, ...] = ()
    for name in names:
        if name == "findings":
            chosen[name], dropped = _findings_target(cohort, policy, field)
        else:
            chosen[name] = _class_target(cohort, name, field)
    owner: dict[str, str] = {}
    for name, target in chosen.items():
        for class_name in target.classes:
            if class_name in owner:
                raise UserError(
                    f"{field}: {owner[class_name]} and {name} share the class {class_name!r}; drop one"
                )
            owner[class_name] = name
    return chosen, dropped


def labels(cohort: Cohort, targets: Mapping[str, Target], policy) -> dict[str, np.ndarray]:
    """The truth for each target, in the cohort's rows; also for targets of a model that was trained on another data
    set.

    multiclass: int32 [n], index into the target's classes, -1 where unknown or not one of them.
    multilabel: float32 [n, classes], 1 or 0, NaN where unknown, and all NaN for a finding that this data set lacks. A
        finding released as -1 (uncertain) is NaN, 0 or 1 under `policy.uncertain` = ignore, zeros or ones. One that
        the report does not mention is 0 or NaN under `policy.unmentioned` = zeros or ignore; an image whose report was
        not labelled at all has NaN for every finding.
    """
    arrays = {}
    for name, target in targets.items():
        if target.kind == "multilabel":
            arrays[name] = np.stack([_finding(cohort, c, policy) for c in target.classes], axis=1).astype(np.float32)
        else:
            # get_indexer gives -1 for what is null or no class
            known = pd.Index(target.classes).get_indexer(cohort.table[name]) if name in cohort.table else -1
            arrays[name] = np.full(len(cohort.table), known, np.int32)
    return arrays


# What releases call by two names: NIH's documentation has Effusion for what CheXpert calls Pleural Effusion.
_SAME = {"Effusion": "Pleural Effusion", "Pleural Effusion": "Effusion"}


def _finding(cohort: Cohort, name: str, policy) -> np.ndarray:
    """float64 [n]: 1, 0, NaN."""
    if FINDING + name not in cohort.table:
        name = _SAME.get(name, name)
    if FINDING + name not in cohort.table:
        return np.full(len(cohort.table), np.nan)
    released = cohort.table[FINDING + name].to_numpy(np.float64)
    values = np.where(released == -1, UNCERTAIN[policy.uncertain], released)
    return np.where(np.isnan(released) & cohort.labelled, UNMENTIONED[policy.unmentioned], values)


def _findings_target(cohort: Cohort, policy, field: str) -> tuple[Target, tuple[str, ...]]:
    training = (cohort.table["split"] == "train").to_numpy()
    kept, dropped = [], []
    for name in cohort.findings:
        values = _finding(cohort, name, policy)[training]
        learnable = (values == 1).any() and (values == 0).any()
        (kept if learnable else dropped).append(name)
        if not learnable:
            missing = "negative" if (values == 1).any() else "positive"
            _log.warning("finding %r has no %s image in training and is dropped", name, missing)
    if not kept:
        raise UserError(
            f"{field}: findings: none of {', '.join(cohort.findings)} has both a positive and a negative"
            " image in training"
        )
    return Target("multilabel", tuple(kept)), tuple(dropped)


def _class_target(cohort: Cohort, name: str, field: str) -> Target:
    table = cohort.table
    text = [c for c in table.columns if pd.api.types.is_string_dtype(table[c]) and c not in tables.IDENTIFIERS]
    if name not in text:
        known = [c for c in text if table[c].notna().any() and c not in ("race_recorded", "race_standing")]
        known += ["findings"] * bool(cohort.findings)
        if name in cohort.findings:
            hint = "it is one of the findings, which are learnt together: give findings"
        elif name in table:
            hint = f"it is no class label; there are {', '.join(nearest_first(name, known))}"
        else:
            hint = f"there are {', '.join(nearest_first(name, known))}"
        raise UserError(f"{field}: no target {name!r}; {hint}")
    data = table["dataset"].iloc[0]
    if name == "race" and (not cohort.races or table["race"].isna().all()):
        raise UserError(
            f"{field}: data set {data} records no race, so none can be learnt from it; try"
            f" configs/sex.py:{data} or configs/disease.py:{data}"
        )
    classes = cohort.races if name == "race" else tuple(sorted(table[name].dropna().unique()))
    if len(classes) < 2:
        raise UserError(
            f"{field}: {name} is {classes[0] if classes else 'unknown'} in every image of data set {data};"
            " at least two classes are needed to tell apart"
        )
    counts = table.loc[table["split"] == "train", name].value_counts().reindex(list(classes), fill_value=0)
    if (counts == 0).any():
        absent = counts.index[counts == 0][0]
        raise UserError(
            f"{field}: class {absent!r} of {name} has no image in training"
            f" ({int((table[name] == absent).sum())} in the other splits); a model cannot learn it"
        )
    return Target("multiclass", classes)
