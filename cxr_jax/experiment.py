"""What a run is: its config, how that differs from the base, and the record of what was done with which versions.

A run owns a workdir. The config that first ran there stays with it: a second start with the same config carries on, one that
changes only how results are judged runs the later stages again, and one that would need another model is refused.
"""

from __future__ import annotations

import ast
import contextlib
import datetime
import difflib
import hashlib
import importlib.metadata
import itertools
import json
import math
import os
import pathlib
import platform
import re
import shlex
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterable, Mapping

import ml_collections

from cxr_jax import processes, tables
from cxr_jax.tables import UserError

# What each stage's result depends on, over and above the stages before it. A field is named by its dotted prefix.
STAGE_FIELDS = {
    "prepare": ("dataset",),
    "train": ("model", "train", "seed"),
    "predict": ("predict",),
    "extract": ("extract",),
    "mitigate": ("mitigate",),
    "probe": ("probe",),
    "mechanism": ("mechanism",),
    "audit": ("audit",),
    "report": ("name",),
}
# These change no result: where things lie, what is run now, how often a checkpoint is taken.
FREE_FIELDS = (
    "stages", "checkpoint", "profile", "train.log_every_steps", "dataset.data_dir", "dataset.beam_runner", "dataset.beam_options",
    "dataset.raw_dir", "dataset.mimic_iv_dir", "dataset.device_cache_share", "predict.raw_dir", "predict.mimic_iv_dir",
)  # fmt: skip

DATASETS = ("phantom", "mimic", "chexpert", "nih", "padchest", "brax", "table")
HOSPITAL_WORDS = ("mimic", "chexpert", "table")  # record race in words of their own, of which a rule makes groups; of table, if it is asked to
PHANTOM_VARIANTS = ("planted", "null", "confounded", "acquisition", "underdiagnosed", "shortcut")
SIZES = ("tiny", "paper")
PROBES = ("logistic_regression", "knn", "kmeans", "network")
THRESHOLD = re.compile(r"youden|f1|(sensitivity|specificity|fixed):(0|0?\.\d+|1|[01]\.0*)")
THRESHOLDS = "youden, f1, sensitivity:0.9, specificity:0.9 or fixed:0.5, the number from 0 to 1"
OBJECTIVES = ("erm", "reweight", "resample", "group_dro", "dann", "cdann", "mmd", "coral", "jtt", "domain_independent")
WITHOUT_GROUPS = ("erm", "jtt")  # of those, that read no attribute
MITIGATIONS = ("none", "leace", "orthogonalise", "null_space", "prune", "oracle", "quadratic", "dfr", "equalised_odds")
NEED_ATTRIBUTE = ("oracle", "quadratic", "equalised_odds")  # of those, that of an image that is judged
MAPS = ("grad_cam", "integrated_gradients", "occlusion")
CONTROLS = ("shuffled", "untrained", "findings", "demographics", "histogram", "scores", "as_many", "unerased")


# ---------------------------------------------------------------------------------------------------------------- config


def fields(config: ml_collections.ConfigDict | Mapping, prefix: str = "") -> dict:
    """The leaves of a config by dotted name, tuples as lists, so that a config and its JSON compare equal."""
    leaves = {}
    for name, value in config.items():
        if isinstance(value, (ml_collections.ConfigDict, Mapping)):
            leaves.update(fields(value, f"{prefix}{name}."))
        else:
            leaves[prefix + name] = _as_lists(value)
    return leaves


def _as_lists(value):
    return [_as_lists(one) for one in value] if isinstance(value, (tuple, list)) else value


def apply_diff(config: ml_collections.ConfigDict, diff: Mapping) -> ml_collections.ConfigDict:
    """Sets dotted fields in place and returns the config. Raises UserError for a field that is not there."""
    for name, value in diff.items():
        check_field(name, config)
        config.update_from_flattened_dict({name: value})
    return config


def check_field(name: str, config: ml_collections.ConfigDict) -> None:
    """Raises UserError that names the nearest field where `name` is none."""
    known = fields(config)
    if name not in known:
        raise UserError(f"no config field {name!r}{nearest(name, known)}")


def nearest(word: str, known: Iterable[str]) -> str:
    """'; did you mean X?' or, where nothing is near, '; known: …'. For the end of an error message."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


def nearest_first(word: str, known: Iterable[str]) -> list[str]:
    """All of `known`, the likeliest meant by `word` first. For the end of an error message."""
    known = list(known)
    return difflib.get_close_matches(word, known, n=len(known), cutoff=0.0)


def choose_dataset(dataset: ml_collections.ConfigDict, token: str, source: str) -> None:
    """Sets name and variant of a `config.dataset` from NAME[.VARIANT]; the phantom without one is `planted`.

    The race rule stays where it suits the data set: those that record race in a hospital's words need one that makes
    groups of them (`four_race` unless another is set), the others have groups of their own, or none (`recorded`).

    A table's variant is what its user calls the hospital, and its words for race are its groups, unless dataset.race_table says
    what they mean: then the rule stays.

    Raises UserError, which begins with `source`, for a data set or a variant that there is not.
    """
    name, _, variant = token.partition(".")
    if name not in DATASETS:
        raise UserError(f"{source}: no data set {name!r}{nearest(name, DATASETS)}")
    if name == "table" and not re.fullmatch(r"[A-Za-z0-9_]+", variant):
        raise UserError(f"{source}: table.NAME expected, NAME being what you call your hospital, of letters, digits and _")
    if variant and name not in ("phantom", "table"):
        raise UserError(f"{source}: {name} has no variants; only phantom and table have")
    if variant and name == "phantom" and variant not in PHANTOM_VARIANTS:
        raise UserError(f"{source}: no such phantom{nearest(variant, PHANTOM_VARIANTS)}")
    dataset.name = name
    dataset.variant = (variant or "planted") if name == "phantom" else variant
    if name == "table":
        dataset.race_rule = dataset.race_rule if dataset.race_table else "recorded"
    elif (name in HOSPITAL_WORDS) == (dataset.race_rule == "recorded"):
        dataset.race_rule = "four_race" if name in HOSPITAL_WORDS else "recorded"


def apply_argument(
    config: ml_collections.ConfigDict, argument: str | None, sizes: Mapping[str, Mapping], methods: Mapping[str, Mapping] = {}
) -> ml_collections.ConfigDict:
    """Applies the text after the colon of `--config=FILE:ARGUMENT`, the same grammar for every config.

    argument: comma-separated tokens in any order: at most one data set, with its variant after a dot; at most one of
        `sizes` (`tiny`, `paper`); at most one of `methods`.
    sizes: the diffs that the size tokens stand for; `reduced` among them is what the phantom gets where none is named,
        since the published recipe takes hours on a laptop. A real data set gets the published recipe unless told otherwise.
    Raises UserError for an unknown token, or two of a kind.
    """
    dataset, size, method = None, None, None
    for token in filter(None, (argument or "").split(",")):
        if token.partition(".")[0] in DATASETS:
            if dataset:
                raise UserError(f"config argument {argument!r} names two data sets: {dataset!r} and {token!r}")
            dataset = token
            choose_dataset(config.dataset, token, f"config argument {token!r}")
        elif token in SIZES:
            if size:
                raise UserError(f"config argument {argument!r} names two sizes: {size!r} and {token!r}")
            size = token
        elif token in methods:
            if method:
                raise UserError(f"config argument {argument!r} names two methods: {method!r} and {token!r}")
            method = token
            apply_diff(config, methods[token])
        else:
            raise UserError(f"unknown token {token!r} in config argument; known: {', '.join([*DATASETS, *SIZES, *methods])}")
    if size is None and config.dataset.name == "phantom":
        size = "reduced"
    return apply_diff(config, sizes[size]) if size else config


def validate(config: ml_collections.ConfigDict) -> None:
    """Raises UserError for a value that no stage could use; what depends on the data is checked where the data are.

    The rooms take these settings for granted. Rules and targets are named in `data.cohorts`, which knows them, and the
    phantom's parameters judged in its builder.
    """

    def require(name: str, holds: bool, wanted: str) -> None:
        if not holds:
            raise UserError(f"config.{name}={fields(told(config))[name]!r}: {wanted}")

    d, t, a = config.dataset, config.train, config.audit
    for stage in config.stages:
        require("stages", stage in STAGE_FIELDS, f"no stage {stage!r}{nearest(stage, STAGE_FIELDS)}")
    require("stages", sorted(config.stages, key=list(STAGE_FIELDS).index) == list(config.stages), f"stages run in the order {', '.join(STAGE_FIELDS)}")
    require("dataset.image_size", 32 <= d.image_size <= 256, "32 to 256 pixels (records are stored at 256)")
    require("dataset.aspect", d.aspect in ("squash", "pad"), "squash or pad")
    require("dataset.pictures", d.pictures in ("released", "dicom"), "released or dicom")
    require("dataset.storage", d.storage in ("png", "raw"), "png or raw")
    require("dataset.beam_options", d.beam_runner or not d.beam_options, "options of a runner that dataset.beam_runner names")
    named = {token.partition(".")[0] for token in (d.name, config.predict.dataset, *config.predict.datasets, *config.extract.datasets)}
    for name in ("table", "columns", "findings", "words", "open_data"):
        require(f"dataset.{name}", not d[name] or "table" in named, "of a data set table.NAME alone")
    require("dataset.max_unreadable_share", 0 <= d.max_unreadable_share <= 1, "a share from 0 to 1")
    require("dataset.split_rule", d.split_rule in ("patient_hash", "official"), "patient_hash or official")
    fractions = list(d.split_fractions)
    require("dataset.split_fractions", len(fractions) == 3 and min(fractions) > 0 and abs(sum(fractions) - 1) < 1e-6, "three shares above 0 that add up to 1")
    require("dataset.uncertain", d.uncertain in ("ignore", "zeros", "ones"), "ignore, zeros or ones")
    require("dataset.unmentioned", d.unmentioned in ("zeros", "ignore"), "zeros or ignore")
    require("dataset.cache", d.cache in ("host", "device"), "host or device")
    require("dataset.device_cache_share", 0 < d.device_cache_share <= 1, "a share above 0, at most 1")
    require("dataset.order", d.order in ("", "global", "shard"), "global, shard or empty")
    require("dataset.host_cache_gib", d.host_cache_gib > 0, "more than 0 GiB")
    require("dataset.block_images", d.block_images > 0, "at least 1 image")
    require("dataset.phantom.patients", d.phantom.patients >= 10, "at least 10 patients")
    require("model.dtype", config.model.dtype in ("float32", "bfloat16"), "float32 or bfloat16")
    for name in ("growth", "stem", "bottleneck"):
        require(f"model.{name}", config.model[name] > 0, "at least 1")
    require("model.blocks", len(config.model.blocks) > 0 and min(config.model.blocks) > 0, "at least one layer a block")
    require("train.targets", len(t.targets) > 0 and len(set(t.targets)) == len(t.targets), "at least one target, each once")
    require("train.epochs", t.epochs >= 1, "at least 1")
    require("train.batch_size", t.batch_size >= 2, "at least 2 images: batch statistics need two")
    parts = len(config.model.blocks) + 1
    require("train.freeze", _whole(t.freeze) and 0 <= t.freeze <= parts, f"0 to {parts}, the parts of this network")
    require("train.freeze", not t.freeze or config.model.init_from, "what is frozen comes from somewhere: name it with --config.model.init_from")
    require("model.init_inputs", config.model.init_inputs in ("", "imagenet", "xrv", "gray"), "imagenet, xrv, gray or empty")
    scalable = _whole(t.recipe_batch_size) and (t.recipe_batch_size == 0 or 0 < t.batch_size <= 10 * t.recipe_batch_size)  # beyond, Adam's first beta falls below 0
    require("train.recipe_batch_size", scalable, f"0, or at least a tenth of train.batch_size, {t.batch_size}")
    divides = _whole(t.accumulate) and t.accumulate >= 1 and t.batch_size % t.accumulate == 0 and t.batch_size // t.accumulate >= 2
    require("train.accumulate", divides, f"a divisor of train.batch_size, {t.batch_size}, that leaves a part two images at least, which batch statistics need")
    require("train.statistics", t.statistics in ("global", "shard"), "global or shard")
    require("train.recompute", t.recompute in ("readings", "bottlenecks"), "readings or bottlenecks")
    require("train.evaluate_batch_size", t.evaluate_batch_size >= 1, "at least 1")
    require("train.learning_rate", t.learning_rate > 0, "more than 0")
    require("train.schedule", t.schedule in ("constant", "cosine"), "constant or cosine")
    require("train.warmup_epochs", 0 <= t.warmup_epochs < t.epochs, "0 or more, and fewer than train.epochs")
    o = t.objective
    require("train.objective.name", o.name in OBJECTIVES, f"no {o.name!r}{nearest(str(o.name), OBJECTIVES)}")
    require("train.objective.cells", o.cells in ("group", "group_label", "independent"), "group, group_label or independent")
    require("train.objective.cells", o.cells != "independent" or o.name != "group_dro", "group_dro has shares of its own: group or group_label")
    require("train.objective.step", _number(o.step) and o.step > 0, "more than 0")
    require("train.objective.strength", _number(o.strength) and o.strength >= 0, "0 or more")
    require("train.objective.hidden", _whole(o.hidden) and o.hidden > 0, "at least 1 unit")
    require("train.objective.first_epochs", _whole(o.first_epochs) and o.first_epochs > 0, "at least 1")
    require("train.objective.upweight", _number(o.upweight) and o.upweight > 0, "more than 0")
    one = o.name != "resample" or o.cells == "group" or len(t.targets) == 1
    require("train.objective.name", one, f"resample by {o.cells} draws by one target; name one, or take --config.train.objective.cells=group")
    learns = t.freeze <= len(config.model.blocks) or o.name not in ("dann", "cdann", "mmd", "coral")
    require("train.freeze", learns, f"fewer parts with train.objective.name={o.name}, which works by the features, and these stay as they are")
    shared = config.dataset.order == "shard" or (not config.dataset.order and config.dataset.cache == "device")
    require("dataset.order", o.name != "resample" or not shared, "global with train.objective.name=resample: a device draws from its own images alone, whatever cells these are of")
    require("train.select", t.select in ("auc", "worst_group_auc", "gap"), "auc, worst_group_auc or gap")
    require("train.auc_floor", _number(t.auc_floor) and 0 <= t.auc_floor <= 1, "from 0 to 1")
    require("train.log_every_steps", t.log_every_steps >= 1, "at least 1")
    require("train.augment.rotate_degrees", 0 <= t.augment.rotate_degrees <= 180, "0 to 180 degrees")
    require("train.augment.zoom", 0 <= t.augment.zoom < 1, "0 to below 1")
    require("train.augment.shift", 0 <= t.augment.shift < 1, "0 to below 1")
    require("train.augment.window", 0 <= t.augment.window < 0.5, "0 to below 0.5")
    require("train.augment.field_of_view", 0 <= t.augment.field_of_view < 1, "0 to below 1")
    require("train.augment.exposure", 0 <= t.augment.exposure <= 4, "0 to 4")
    require("checkpoint.every_steps", config.checkpoint.every_steps >= 1, "at least 1")
    require("checkpoint.keep", config.checkpoint.keep >= 1, "at least 1")
    require("profile.steps", _whole(config.profile.steps) and config.profile.steps >= 0, "0 or more")
    if config.predict.dataset:  # told now, not after training
        choose_dataset(ml_collections.ConfigDict(d), config.predict.dataset, f"config.predict.dataset={config.predict.dataset!r}")
    require("extract.inputs", config.extract.inputs in ("", "imagenet", "xrv", "gray"), "imagenet, xrv, gray or empty")
    p = config.probe
    require("probe.targets", len(p.targets) > 0 and len(set(p.targets)) == len(p.targets), "at least one label, each once")
    for name, known in (("probes", PROBES), ("controls", CONTROLS)):
        for value in p[name]:
            require(f"probe.{name}", value in known, f"no {value!r}{nearest(value, known)}")
    require("probe.probes", len(p.probes) > 0, f"at least one of {', '.join(PROBES)}")
    for name in ("probes", "controls", "strata", "neighbours", "clusters"):
        require(f"probe.{name}", len(set(p[name])) == len(p[name]), "each once")
    least, greatest, count = (*p.penalties, "", "", "")[:3]
    fits = len(p.penalties) == 3 and _number(least) and _number(greatest) and _whole(count)
    require("probe.penalties", fits and 0 < least <= greatest and count >= 1, "least and greatest, above 0, and how many")
    for name in ("neighbours", "clusters"):
        require(f"probe.{name}", len(p[name]) > 0 and all(_whole(n) and n > 0 for n in p[name]), "whole numbers above 0, at least one")
    require("probe.metric", p.metric in ("l2", "cosine"), "l2 or cosine")
    for name, lowest in (("refits", 0), ("seed", 0), ("restarts", 1), ("permutations", 1)):
        require(f"probe.{name}", p[name] >= lowest, f"{lowest} or more")
    ours = [stage for stage in config.stages if stage in ("prepare", "train", "predict", "extract")]
    require("probe.embeddings", not (p.embeddings and ours), "vectors of your own need no stage but --config.stages=\"('probe','audit','report')\"")
    require("audit.predictions", a.predictions is not None, "name the file of your predictions with --config.audit.predictions=FILE")
    require("audit.predictions", not (a.predictions and ours), "predictions of your own need no stage but --config.stages=\"('audit','report')\"")
    _check_mappings(a, require)
    require("extract.datasets", len(set(config.extract.datasets)) == len(config.extract.datasets), "each once")
    require("audit.told_by_images", not a.told_by_images or a.leakage, "of what leaks: set audit.leakage")
    require("audit.told_by_images", not (a.told_by_images and (p.embeddings or a.predictions)), "of a run of ours; leave probe.embeddings and audit.predictions empty")
    w = config.mechanism
    require("mechanism.watched", _whole(w.watched) and w.watched >= 0, "0 or more")
    w = w.maps
    require("mechanism.maps.patients", _whole(w.patients) and w.patients >= 0, "0 or more")
    require("mechanism.maps.methods", len(w.methods) > 0 and set(w.methods) <= set(MAPS), f"of {', '.join(MAPS)}")
    require("mechanism.maps.stride", _whole(w.stride) and _whole(w.box) and 0 < w.stride <= w.box <= 256, "pixels from 1 to mechanism.maps.box, which is at most 256")
    require("mechanism.maps.cell", _whole(w.cell) and w.cell > 0 and 256 % w.cell == 0, "a divisor of 256 pixels")
    for name in ("steps", "shares", "batch_size"):
        require(f"mechanism.maps.{name}", _whole(w[name]) and w[name] >= 1, "at least 1")
    places = []
    require("predict.datasets", not config.predict.datasets or "test" in config.predict.splits, "of a model whose own test images are judged: add test to predict.splits")
    for field, names in (("extract.datasets", config.extract.datasets), ("predict.datasets", config.predict.datasets)):
        for name in names:
            other = ml_collections.ConfigDict(d.to_dict())
            choose_dataset(other, name, f"config.{field}")
            home = field == "predict.datasets" and (other.name, other.variant) == (d.name, d.variant)
            require(field, not home, f"{name} is the data set trained on, which is judged anyhow")
            places.append((field, other.name, other.variant))
    require("predict.datasets", len(set(places)) == len(places), "each once")
    g = config.mitigate
    require("predict.datasets", not (config.predict.datasets and config.predict.dataset), "beside the data set trained on; leave predict.dataset empty")
    require("predict.datasets", not (config.predict.datasets and g.method not in ("", "none")), "of the network itself; leave mitigate.method empty")
    require("mitigate.method", g.method in ("", *MITIGATIONS), f"{', '.join(MITIGATIONS)} or empty")
    require("mitigate.method", not (g.method and config.predict.dataset), "features are of the data set trained on; leave predict.dataset empty")
    require("mitigate.method", not (g.method and (p.embeddings or a.predictions)), "takes features of ours; leave probe.embeddings and audit.predictions empty")
    needed = bool(g.method and "mitigate" not in config.stages and {"train", "extract"} & set(config.stages) and {"probe", "audit"} & set(config.stages))
    require("mitigate.method", not needed, "is what the stage mitigate does; add it to --config.stages, after extract")
    calls = g.method != "equalised_odds" or a.threshold == "fixed:0.5"
    require("audit.threshold", calls, "mitigate.method=equalised_odds calls images itself, from scores of 0.5 up: take --config.audit.threshold=fixed:0.5")
    if g.method == "equalised_odds":
        require("audit.attributes", g.attribute in a.attributes, f"with mitigate.method=equalised_odds, {g.attribute} (mitigate.attribute) among them")
        require("predict.splits", "validation" in config.predict.splits, "with mitigate.method=equalised_odds, validation among them: it is fitted there")
        only = "train" not in config.stages or set(config.train.targets) == {"findings"}
        require("train.targets", only, "with mitigate.method=equalised_odds, findings alone: classes that exclude one another have no calls of their own")
    mixed = g.method == "orthogonalise" and g.attribute in g.confounders
    require("mitigate.confounders", not mixed and len(set(g.confounders)) == len(g.confounders), "each once, and not mitigate.attribute")
    require("mitigate.share", _number(g.share) and 0 < g.share <= 1, "a share above 0, at most 1")
    require("mitigate.share", g.method != "dfr" or g.share < 1, "below 1 with mitigate.method=dfr: thresholds are chosen on the rest of validation")
    require("mitigate.penalty", _number(g.penalty) and g.penalty > 0, "more than 0")
    require("mitigate.rounds", _whole(g.rounds) and g.rounds >= 1, "at least 1")
    require("mitigate.halvings", _whole(g.halvings) and g.halvings >= 0, "0 or more")
    require("mitigate.pruned_share", _number(g.pruned_share) and 0 < g.pruned_share < 1, "a share above 0, below 1")
    elsewhere = config.predict.dataset and "probe" in config.stages
    require("predict.dataset", not elsewhere, "probes read the data set trained on; on another one run them by themselves, with --config.extract.weights=RUN")
    require("probe.table", bool(p.embeddings or not p.table), "a table of the images of what probe.embeddings names")
    for name in ("hidden", "learning_rate", "batch_size", "epochs", "patience"):
        require(f"probe.network.{name}", p.network[name] > 0, "more than 0")
    require("probe.network.weight_decay", p.network.weight_decay >= 0, "0 or more")
    require("predict.splits", len(config.predict.splits) > 0 and set(config.predict.splits) <= set(tables.SPLITS), f"some of {', '.join(tables.SPLITS)}")
    judged, which = (tables.SPLITS, ", ".join(tables.SPLITS)) if a.predictions else (config.predict.splits, "predict.splits")
    require("audit.splits", len(a.splits) > 0 and set(a.splits) <= set(judged), f"some of {which}")
    require("audit.seed", a.seed >= 0, "0 or more")
    for name in ("attributes", "intersections", "case_mix"):
        require(f"audit.{name}", len(set(a[name])) == len(a[name]), "each once")
    for name in a.attributes:
        require("audit.attributes", "*" not in name and "=" not in name, f"{name!r}: no * or = in a name; intersections are audit.intersections")
    for entry in a.intersections:
        parts = entry.split("*")
        require("audit.intersections", 1 < len(parts) == len(set(parts)), f"{entry!r}: two or more attributes, joined by *")
        for part in parts:
            require("audit.intersections", part in (*a.attributes, "race", "sex", "age_band", "view"), f"no attribute {part!r}{nearest(part, a.attributes)}")
    for name in a.case_mix:
        known = (*a.attributes, "race", "sex", "age_band", "view")
        require("audit.case_mix", name in known, f"no attribute {name!r}{nearest(name, known)}; labels are among what is alike in any case")
    for entry in a.reference:
        attribute, equals, group = entry.partition("=")
        require("audit.reference", attribute in a.attributes and equals and group, f"{entry!r}: ATTRIBUTE=GROUP, the attribute of audit.attributes")
    require("audit.reference", len({entry.partition("=")[0] for entry in a.reference}) == len(a.reference), "one group an attribute")
    require("audit.truth", a.truth in ("recorded", "true"), "recorded or true")
    require("audit.threshold", bool(THRESHOLD.fullmatch(a.threshold)), THRESHOLDS)
    require("audit.interval", a.interval in ("bca", "percentile", "analytic"), "bca, percentile or analytic")
    require("audit.level", 0 < a.level < 1, "between 0 and 1")
    require("audit.replicates", a.replicates >= 100, "at least 100")
    require("audit.min_patients", a.min_patients >= 1, "at least 1")
    require("audit.age_bands", len(a.age_bands) > 0 and list(a.age_bands) == sorted(set(a.age_bands)), "at least one age, rising, years")


def threshold_rule(rule: str) -> tuple[str, float]:
    """What `audit.threshold` says: ('youden', NaN) or ('sensitivity', 0.9). Raises ValueError for what is no rule."""
    if not THRESHOLD.fullmatch(rule):
        raise ValueError(f"{rule!r}: {THRESHOLDS}")
    name, _, number = rule.partition(":")
    return name, float(number or "nan")


def _check_mappings(audit: ml_collections.ConfigDict, require) -> None:
    """That `audit.columns`, `labels` and `scores` are of NAME=COLUMN, each name once. require: of `validate`."""
    require("audit.label", bool(audit.predictions or not audit.label), "a column of the file that audit.predictions names")
    known = (*tables.KEY_COLUMNS, *audit.attributes)
    for field, left in (("columns", "NAME"), ("labels", "FINDING"), ("scores", "CLASS")):
        entries = audit[field]
        require(f"audit.{field}", bool(audit.predictions or not entries), "columns of the file that audit.predictions names")
        for entry in entries:
            whole = isinstance(entry, str) and "=" in entry
            name, _, column = entry.partition("=") if whole else ("", "", "")
            require(f"audit.{field}", whole and name.strip() and (column.strip() or field == "columns"), f"{entry!r} is not of the form {left}=COLUMN")
            if field == "columns":
                further = "; further attributes are to be in audit.attributes"
                require("audit.columns", name.strip() in known, f"no {name.strip()!r}{nearest(name.strip(), known)}{further}")
        names = [entry.partition("=")[0].strip() for entry in entries]
        require(f"audit.{field}", len(set(names)) == len(names), "each name once")


def _number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def mitigated_folder(workdir: pathlib.Path | str, config: ml_collections.ConfigDict | Mapping) -> pathlib.Path:
    """Where the features and predictions lie that probes and the audit judge: the workdir, or what `mitigate` made there.

    Raises UserError for a method that there is not: a config that was read from a run may name any folder.
    """
    method = config.get("mitigate", {}).get("method", "")
    if method not in ("", *MITIGATIONS):
        raise UserError(f"{workdir}: its config's mitigate.method is {method!r}{nearest(str(method), MITIGATIONS)}")
    return pathlib.Path(workdir) / "mitigated" / method if method else pathlib.Path(workdir)


def needs_attribute(config: ml_collections.ConfigDict | Mapping) -> str:
    """The attribute of everyone who is judged without which a run's mitigation cannot be done; '' for none."""
    g = config.get("mitigate", {})
    if g.get("method", "") in NEED_ATTRIBUTE:
        return g["attribute"]
    by = config["audit"].get("threshold_by", "")
    return by if by != "view" else ""  # which every picture has


def diff(config: ml_collections.ConfigDict | Mapping, base: ml_collections.ConfigDict | Mapping) -> dict:
    """{dotted field: {"base": value, "run": value}} for the fields that differ."""
    ours, theirs = fields(config), fields(base)
    return {
        name: {"base": theirs.get(name), "run": ours.get(name)}
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    }


def fingerprint(
    config: ml_collections.ConfigDict | Mapping, stages: Iterable[str] = tuple(STAGE_FIELDS), files: Mapping[str, str] | None = None
) -> str:
    """Twelve hexadecimal digits that change when a field does on which results of `stages` depend, or a file that one names.

    files: `file_digests` of the config, where they are known.
    """
    kept = {k: v for k, v in fields(told(config)).items() if _stage_of(k) in stages}
    kept |= {name: digest for name, digest in (file_digests(config) if files is None else files).items() if _stage_of(name) in stages}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]


# Fields that name a file whose content results depend on.
FILES = ("dataset.race_table", "model.init_from", "extract.weights", "probe.embeddings", "probe.table", "audit.predictions", "audit.told_by_images")
OWN_WEIGHTS = ("best", "last", "untrained")  # values of extract.weights that name no file


def file_digests(config: ml_collections.ConfigDict | Mapping, known: Mapping[str, str] | None = None) -> dict[str, str]:
    """Twelve hexadecimal digits of the content of each file of FILES that is named (of a run, of its best checkpoint's files, or of its predictions).

    known: digests of those that are no longer needed, and may be gone. Raises UserError for any other that is not there.
    """
    named, digests = fields(config), {}
    for field in (field for field in FILES if named[field] and named[field] not in OWN_WEIGHTS):
        path = pathlib.Path(named[field]).expanduser()
        path = path / "predictions.parquet" if field == "audit.told_by_images" else path
        try:
            if field in ("model.init_from", "extract.weights") and path.is_dir():
                digest, best = hashlib.sha256(), path / "checkpoints" / "best"
                for file in sorted(file for file in best.rglob("*") if file.is_file()):
                    digest.update(f"{file.relative_to(best)} {_sha256(file)}\n".encode())
                digests[field] = digest.hexdigest()[:12]
            else:
                digests[field] = _sha256(path)[:12]
        except OSError as error:
            if known is None or field not in known:
                raise UserError(f"config.{field}: {named[field]}: not a readable file ({error.strerror})") from None
            digests[field] = known[field]
    return digests


def trained_as(folder: pathlib.Path) -> dict:
    """The fields that say how a run's network was trained, by dotted name; {} where its config is gone."""
    path = folder / "config.json"
    return {k: v for k, v in fields(tables.read_json(path)).items() if _stage_of(k) == "train"} if path.exists() else {}


def _sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_free(field: str) -> bool:
    """Whether no result depends on a field, by its dotted name."""
    return _under(field, FREE_FIELDS)


def _stage_of(field: str) -> str | None:
    """The first stage whose result depends on the field; None where none does."""
    return None if is_free(field) else next(stage for stage, prefixes in STAGE_FIELDS.items() if _under(field, prefixes))


def _under(field: str, prefixes: Iterable[str]) -> bool:
    return any(field == prefix or field.startswith(prefix + ".") for prefix in prefixes)


# --------------------------------------------------------------------------------------------------------------- secrets

HIDDEN = "***"
OPTIONS = "dataset.beam_options"
# Of a runner's options those whose values may be written down. Hundreds take a password, a key or a whole environment, under names
# that do not say so (azure_connection_string, profiler_extra_env_vars): what is not known here to be harmless is hidden.
SHOWN_OPTIONS = frozenset((
    "artifact_endpoint", "autoscaling_algorithm", "dataflow_endpoint", "direct_num_workers", "direct_runner_bundle_repeat", "direct_running_mode",
    "disk_size_gb", "environment_type", "flink_master", "flink_version", "hdfs_host", "hdfs_port", "hdfs_user", "job_endpoint", "job_name",
    "machine_type", "max_num_workers", "max_parallelism", "min_cpu_platform", "network", "num_workers", "number_of_worker_harness_threads",
    "parallelism", "project", "region", "runner", "s3_endpoint_url", "s3_region_name", "sdk_container_image", "sdk_location",
    "sdk_worker_parallelism", "service_account_email", "spark_master_url", "spark_version", "staging_location", "subnetwork", "temp_location",
    "worker_disk_type", "worker_harness_container_image", "worker_machine_type", "worker_region", "worker_zone", "zone",
))  # fmt: skip


def told(config: ml_collections.ConfigDict | Mapping) -> dict:
    """The config as it may be written down and shown: a tree of dicts, in which `***` stands for what may be a secret.

    That is: in a URL, who asks (`//USER:PASSWORD@`) and the values behind `?`; of dataset.beam_options, values of all but SHOWN_OPTIONS.
    What is told of what is told is the same, so that a config can be compared with one that was written down.
    """

    def of(tree: Mapping, prefix: str) -> dict:
        return {
            name: of(value, f"{prefix}{name}.") if isinstance(value, (ml_collections.ConfigDict, Mapping))
            else _told_options(value) if prefix + name == OPTIONS
            else _told(value)
            for name, value in tree.items()
        }  # fmt: skip

    return of(config, "")


def told_command(command: str) -> str:
    """A command line, as `shlex.join` gives it, with the same hidden as in `told`."""
    words, value_follows = [], False
    for word in shlex.split(command):
        flag, equals, value = word.partition("=")
        if value_follows:
            words.append(_told_text_of_options(word))
        elif flag.lstrip("-") == f"config.{OPTIONS}" and equals:
            words.append(f"{flag}={_told_text_of_options(value)}")
        else:
            words.append(_told(word))
        value_follows = flag.lstrip("-") == f"config.{OPTIONS}" and not equals and not value_follows
    return shlex.join(words)


def _told(value):
    if isinstance(value, (tuple, list)):
        return type(value)(_told(one) for one in value)
    if not isinstance(value, str) or "://" not in value:
        return value
    value = re.sub(r"(?<=://)[^/?#\s]*@", f"{HIDDEN}@", value)
    return re.sub(r"([#?&;][^=#?&;\s]+=)[^&;#\s]*", rf"\g<1>{HIDDEN}", value)


def _told_options(options):
    if not isinstance(options, (tuple, list)):
        return HIDDEN if options else options
    words, shown = [], False  # whether what follows belongs to an option that is shown
    for option in map(str, options):
        name, equals, value = re.fullmatch(r"(--[\w-]+|)(=?)(.*)", option, re.DOTALL).groups()
        if name:
            shown = name.removeprefix("--").replace("-", "_") in SHOWN_OPTIONS
        words.append(name + equals + (_told(value) if shown else HIDDEN if value else ""))
    return type(options)(words)


def _told_text_of_options(text: str) -> str:
    """Of a flag's text, which is a tuple as Python writes it, or one option."""
    try:
        options = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        options = text
    return repr(_told_options(options if isinstance(options, (tuple, list)) else (options,)))


# ------------------------------------------------------------------------------------------------------------ run record


class UnderWay(UserError):
    """Another process is at work in the workdir; it may be gone on another try."""


class Run:
    """A workdir and the record of what happened in it (`run.json`).

    Opening one writes config.json and config_diff.json. Raises UserError where the workdir holds checkpoints of a run
    whose data or model were of another config.
    """

    def __init__(self, workdir: pathlib.Path | str, config: ml_collections.ConfigDict, base: ml_collections.ConfigDict, command: str):
        self.workdir = pathlib.Path(workdir)
        self.config = config
        # Of several processes the first one opens the workdir, and the others have its record.
        self.record = processes.agreed(self._alone() or self._open(base) if processes.first() else None)
        self.record["command"] = told_command(command)

    def path(self, name: str) -> pathlib.Path:
        return self.workdir / name

    def _alone(self) -> None:
        """Raises UnderWay where another process is at work in this folder: one whose signs of life go on."""
        path = self.path(SIGNS_FILE)
        # (In a container that is started again, an earlier process had this one's number.)
        if not (sign := read_sign(path)) or not may_live(sign) or (sign.get("host"), sign.get("pid")) == (socket.gethostname(), os.getpid()):
            return
        until = time.monotonic() + 3 * SECONDS_BETWEEN_SIGNS
        while time.monotonic() < until:
            time.sleep(SECONDS_BETWEEN_SIGNS / 10)
            if (now := read_sign(path)) and now != sign:
                raise UnderWay(f"{self.workdir}: a run is under way there (on {now.get('host')}, process {now.get('pid')}); stop it, wait for it, or give this one another folder with --workdir")

    def _open(self, base) -> dict:
        record_path, config_path = self.path("run.json"), self.path("config.json")
        if self.workdir.exists() and not self.workdir.is_dir():
            raise UserError(f"{self.workdir}: the workdir is a file; name a folder with --workdir")
        self.workdir.mkdir(parents=True, exist_ok=True)
        tables.remove_half_files(self.workdir)
        goes_on = config_path.exists() and record_path.exists()
        record = tables.read_json(record_path) if goes_on else {"stages": {}, "wall_seconds": 0.0}
        before = record.get("files", {})
        # Once there is a checkpoint, what it began from is in it.
        begun = "model.init_from" in before and self.path("checkpoints").exists()
        known = {"model.init_from": before["model.init_from"]} if begun else {}
        # And what features were made by is not needed for what is done with them.
        if "extract.weights" in before and record["stages"].get("extract", {}).get("status") == "done":
            known["extract.weights"] = before["extract.weights"]
        files = file_digests(self.config, known)
        record["files"] = files
        if goes_on:
            stored, ours = tables.read_json(config_path), told(self.config)
            there = fields(told(stored))
            # A field that came later says there what base says: that is how it was before.
            there = {name: there.get(name, value) for name, value in fields(base).items()} | there
            differing = diff(ours, there)
            for field in FILES:  # a file of the same name that says something else is another one
                if before.get(field, "") != files.get(field, ""):
                    was = f"{there.get(field, '')} {before.get(field, '')}".strip()
                    differing[field] = {"base": was, "run": f"{fields(ours)[field]} {files.get(field, '')}".strip()}
            if not differing and told(stored) == stored:  # else secrets are in it, from before they were hidden
                return record
            changed = {k: v for k, v in differing.items() if _stage_of(k)}
            # Until there is a checkpoint nothing is lost by starting over, as after a mistake in a first command.
            kept = [k for k in changed if _stage_of(k) in ("prepare", "train")]
            if kept and self.path("checkpoints").exists():
                shown = "; ".join(f"{k}: {changed[k]['base']!r} there, {changed[k]['run']!r} here" for k in kept[:3])
                raise UserError(
                    f"{self.workdir}: holds a run of another config ({shown}{'; …' if len(kept) > 3 else ''});"
                    " give this one a folder of its own with --workdir, or remove that one"
                )
            if kept:
                for name in ("first", "shuffled"):  # trainings by another config, for jtt and for the check of maps
                    shutil.rmtree(self.path(name), ignore_errors=True)
            order = list(STAGE_FIELDS)
            first = min((order.index(_stage_of(k)) for k in changed), default=len(order))
            if "audit.age_bands" in changed:  # by which these read ages
                first = min([first, *(order.index(stage) for stage, of in (("mitigate", (self.config.mitigate.attribute,)), ("probe", self.config.probe.targets)) if "age_band" in of)])
            for stage in order[first:]:
                record["stages"].pop(stage, None)
            if changed and list(self.config.stages) == ["prepare"]:
                record["stages"].clear()  # it draws the cohort by audit.*, which otherwise the report does again
        self._keep_predictions(record)
        # The record goes first: were we stopped between the two, stages would run again, never pass for up to date.
        tables.write_json(record_path, record)
        tables.write_json(config_path, told(self.config))
        tables.write_json(self.path("config_diff.json"), diff(told(self.config), told(base)))
        return record

    def _keep_predictions(self, record: Mapping) -> None:
        """Raises UserError where predictions from outside would take the place of others."""
        others = self.path("predictions.parquet").exists() and "outside" not in record
        if self.config.audit.predictions and (others or "dataset" in record or self.path("checkpoints").exists()):
            raise UserError(
                f"{self.workdir}: holds a run, or predictions, of its own, which config.audit.predictions would overwrite;"
                " give this one a folder of its own with --workdir"
            )

    def done(self, stage: str) -> bool:
        return self.record["stages"].get(stage, {}).get("status") == "done"

    @property
    def complete(self) -> bool:
        return all(self.done(stage) for stage in self.config.stages)

    def settle(self) -> None:
        """Has the record of a run whose stages are all done say so, where it was ended before it could."""
        if self.record.get("status") != "done":
            self.write(status="done", ended=self.record.get("ended") or _now())

    def forget_after(self, stage: str) -> None:
        """What came after a stage that runs again is out of date."""
        order = list(STAGE_FIELDS)
        for later in order[order.index(stage) + 1 :]:
            self.record["stages"].pop(later, None)

    def write(self, **changes) -> None:
        self.record.update(changes)
        if processes.first():
            tables.write_json(self.path("run.json"), self.record)

    @contextlib.contextmanager
    def recording(self, device: Mapping):
        """Writes the run's status, versions and times around whatever runs inside; the status is written whatever happens.

        A process that is killed outright leaves `running`, which the next start takes for what it is, and `cxr_jax.status` by its silence.
        """
        started = time.monotonic()
        before = self.record["wall_seconds"]
        self.write(
            status="running",
            name=self.config.name,
            fingerprint=fingerprint(self.config, files=self.record["files"]),
            packages=package_versions(),
            python=platform.python_version(),
            device=dict(device),
            processes=processes.count(),
            host=socket.gethostname(),
            pid=os.getpid(),
            started=_now(),
            ended=None,
            **git_state(),
        )
        status = "failed"

        def end(status: str) -> None:
            # A full disk must not hide the error that brought us here behind one of our own.
            with contextlib.suppress(OSError):
                self.write(status=status, ended=_now(), wall_seconds=round(before + time.monotonic() - started, 1))

        def at_loss(code: int) -> None:
            end("preempted" if code == processes.PREEMPTED else "interrupted" if code == processes.INTERRUPTED else "failed" if code == processes.FAILED else "lost a process")

        with processes.at_loss(at_loss), _signs_of_life(self.path(SIGNS_FILE)):
            try:
                yield self
                status = "done" if self.complete else "partial"
            except KeyboardInterrupt:
                status = "interrupted"
                raise
            except processes.Preempted:
                status = "preempted"
                raise
            except FloatingPointError:
                status = "diverged"
                raise
            except Exception as error:
                processes.wait_for_verdict(error)
                raise
            finally:
                end(status)

    @contextlib.contextmanager
    def stage(self, name: str):
        self.forget_after(name)
        started = time.monotonic()
        self.record["stages"][name] = {"status": "running"}
        self.write()
        SIGNS.clear()
        SIGNS["stage"] = name
        yield
        self.record["stages"][name] = {"status": "done", "seconds": round(time.monotonic() - started, 1)}
        self.write()


# What a run that is under way is doing now, for those who look at its workdir from elsewhere: `stage`, and of a walk over images what `training.metrics_log.Progress` says.
SIGNS: dict = {}
SIGNS_FILE, SECONDS_BETWEEN_SIGNS = "progress.json", 5.0


def read_sign(path: pathlib.Path) -> dict:
    """What a run said last of what it does (`SIGNS`, `host`, `pid`, `at`, `beat`); {} where there is nothing."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def may_live(said: Mapping) -> bool:
    """Whether the process may be alive that said where it runs (`host`, `pid`): not, if that is this machine, and there is none of that number."""
    if said.get("host") != socket.gethostname() or not isinstance(said.get("pid"), int):
        return True
    try:
        os.kill(said["pid"], 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


@contextlib.contextmanager
def _signs_of_life(path: pathlib.Path):
    """Writes SIGNS to a file every few seconds, as long as this process lives and something runs inside; then removes it."""
    over, beats = threading.Event(), itertools.count()

    def write() -> None:
        while True:
            with contextlib.suppress(OSError):  # of a full disk the run itself tells
                tables.write_json(path, {**SIGNS, "host": socket.gethostname(), "pid": os.getpid(), "at": _now(), "beat": next(beats)})
            if over.wait(SECONDS_BETWEEN_SIGNS):
                return

    if not processes.first():
        yield
        return
    SIGNS.clear()
    thread = threading.Thread(target=write, name="cxr_jax-signs-of-life", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def package_versions() -> dict[str, str]:
    """Versions of the installed packages that a result can depend on."""
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-cpu", "tensorflow-datasets", "scikit-learn", "ml-collections", "numpy", "pandas")
    versions = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def git_state() -> dict:
    """The commit that the code is at and whether the tree differs from it; where it is no checkout, CXR_JAX_COMMIT of the environment, or None."""
    root = pathlib.Path(__file__).resolve().parents[1]

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=20, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    changes = git("status", "--porcelain")
    return {"git_commit": git("rev-parse", "HEAD") or os.environ.get("CXR_JAX_COMMIT") or None, "git_dirty": None if changes is None else bool(changes)}


def check_overrides(arguments: Iterable[str], config: ml_collections.ConfigDict) -> None:
    """Raises UserError for a `--config.field=…` whose field the config lacks, before the flag parser meets it."""
    for argument in arguments:
        flag, _, _ = argument.lstrip("-").partition("=")
        if argument.startswith("-") and flag.startswith("config."):
            check_field(flag.removeprefix("config."), config)
