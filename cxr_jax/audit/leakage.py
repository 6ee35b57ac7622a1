"""What a release gives away about its patients: whether embeddings find them again, and whether scores tell who was trained on.

For the one who is about to release a model, its scores or its embeddings. Only rates over many patients leave this module, never a pair,
an image or the rank of one patient.

**Re-identification.** Somebody has an embedding of each patient, the gallery, and asks whose another embedding is. The gallery has the first
image, as stored, of the first study of every patient of the split; those with one study are distractors. Queries are the first images of all
further studies: two images of one study show one visit, tubes and machine included, and would flatter the rate. An image whose study is not
recorded counts as a study of its own, and `notes` says so. Compared are cosines of vectors less the gallery's mean: what all vectors share
makes none of them alike. A right patient who is level with t others, after c that are more similar, is among the first k by the chance that
lots would have it so, (k - c) / (t + 1) within [0, 1]; vectors that are all the same then have chance, where by mean ranks they would never,
or always, be found. rank_k (Phillips et al. 2000, IEEE TPAMI 22:1090-1104, cumulative match) is the mean over patients of the mean over their
queries. A patient's group is that of the image in the gallery, so that groups share out the patients. gallery: `all`, or `own group`, only
the patient's, in which nothing is won by telling groups apart. Chance is k by that gallery's size. Rates fall as galleries grow; intervals are
of the patients who are sought, the gallery held fixed.

**Membership**, without shadow models: a network has a lower loss on what it was trained on. An image's loss is -log of the score of its true
class, or the mean cross-entropy of its known findings, in nats, scores kept EPSILON from 0 and 1; target `all`, of several, is the mean over
those that are known of it. A patient's loss is the mean over his images (in a group, over those in it), and members are patients. auc: of minus the
loss, members against others. advantage: true- less false-positive rate of calling members those below the mean loss of all members, which
whoever has the training loss knows (Yeom et al. 2018, IEEE CSF, 268-282); one threshold a target, held fixed. tpr_at_fpr_0.01: the share of
members found where 1 in 100 others is called one, of which an average tells nothing (Carlini et al. 2022, IEEE S&P, 1897-1914). It hangs on
the others of lowest loss: of few others it runs high, below LEAST_OTHERS it has no value, and bootstrap intervals cover far too seldom; its own
is by order statistics (see `_at_low_fpr`), wide, and from 0 on where others are below some 440. Members and others must be of one
distribution, as a split at random by patient gives: else all of this tells the shift too, and proves no leak. Within a group its own shift is gone.

**What these do not show.** Each is one plain attack, and a lower bound on what attackers can do: metrics that are fitted, several images of a
patient at once, shadow models and likelihood ratios, and knowledge from elsewhere find more. A rate at chance does not show that there is no leak.

**Suppression**, of data that are not open: a group is withheld where fewer than `min_patients` patients have a part in a number of its row,
where an audit of the same images hides it, and where it would follow by subtraction. How many studies patients have and what an attack makes
of them are no recorded attributes, and so no cells.

Rows have metric, attribute, group, value, low, high, level, method, chance, suppressed and reason, as in `subgroups`; figures undefined or
withheld are NaN, counts withheld None. Of re-identification also gallery, n_images (queries), n_patients (who have some), gallery_patients; of
membership target, threshold (advantage: a loss), n_images (of both sides), n_members, n_others (patients).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jax import lax
from scipy import stats

from cxr_jax import mesh
from cxr_jax.audit import estimates, metrics
from cxr_jax.audit.disclosure import ALL, MISSING, check_attributes, groups, hidden_groups, some
from cxr_jax.audit.estimates import Estimate, Estimator
from cxr_jax.audit.intervals import Bootstrap, MeanCell, RankedCell, distinct, wilson
from cxr_jax.audit.suppression import Ledger
from cxr_jax.tables import FEATURES, Features, Predictions, Target, UserError, not_finite

RANKS = (1, 5, 10)
OWN = "own group"
KEYS = (
    "metric", "gallery", "attribute", "group", "value", "low", "high", "level", "method", "chance",
    "n_images", "n_patients", "gallery_patients", "suppressed", "reason",
)  # fmt: skip
MEMBERSHIP_KEYS = (
    "metric", "target", "attribute", "group", "value", "low", "high", "level", "method", "chance", "threshold",
    "n_images", "n_members", "n_others", "suppressed", "reason",
)  # fmt: skip
QUERIES = 1024  # compared with the gallery at once
LEVEL = 1e-12  # cosines nearer than that are equal: float64 sums of the same products differ by less, whatever their order
EPSILON = 1e-7  # about what a float32 softmax resolves; no loss is above 16.2
LOW_FPR, LEAST_OTHERS = 0.01, 100
METRICS = {"auc": 0.5, "advantage": 0.0, f"tpr_at_fpr_{LOW_FPR}": LOW_FPR}  # and their chance


# --- re-identification -----------------------------------------------------------------------------------------------


def reidentification(features: Features, settings, open_data: bool, array: str = FEATURES) -> dict[str, Any]:
    """How often patients are found again by the vectors of a later study: {rows, absent, notes}.

    features: of one split; `array`, float32 [n, d], perhaps memory-mapped, is what is to be released. settings: the config's `audit` section:
    attributes, age_bands, interval, level, replicates, seed, min_patients. rows: with KEYS, by attribute ('all' first), group, gallery and
    rank. absent: attributes that are not recorded. Raises UserError for a vector that is not finite, and for an attribute that says which patient.
    """
    check_attributes(settings.attributes)
    table, least = features.table.reset_index(drop=True), 1 if open_data else settings.min_patients
    patient = pd.factorize(table["patient_id"])[0]
    first, notes = _first_of_studies(table, least)
    later = pd.Series(patient[first]).duplicated().to_numpy()
    gallery, queries = first[~later], first[later]
    own = patient[queries]  # patients are numbered as they come, so this is a place in the gallery
    masks, hidden = _masks(table, settings), {} if open_data else _hidden(table, settings)
    code = np.stack([np.argmax(list(of.values()), axis=0)[gallery] for of in masks.values()])
    nearer, level = _nearer(features.arrays[array], array, gallery, queries, own, code)

    asked = np.bincount(own, minlength=len(gallery))  # queries of each patient
    asks = asked > 0
    rows, cells = [], []
    for a, (attribute, of) in enumerate(masks.items()):
        inside = {name: mask[gallery] for name, mask in of.items()}
        withheld = _withheld(inside, [(part, hidden.get(attribute, ())) for part in (np.ones_like(asks), asks)], np.arange(len(gallery)), least)
        for name, mask in inside.items():
            counts = {"n_images": int(asked[mask].sum()), "n_patients": int((mask & asks).sum())}
            for kind, place, size in ((ALL, 0, len(gallery)), (OWN, a, int(mask.sum())))[: 1 + (attribute != ALL)]:
                for k in RANKS:
                    row = {"metric": f"rank_{k}", "gallery": kind, "attribute": attribute, "group": name, "suppressed": bool(withheld[name])}
                    row |= counts | {"gallery_patients": size, "chance": min(1.0, k / size) if size else np.nan}
                    if withheld[name]:
                        row |= dict.fromkeys((*counts, "gallery_patients")) | {"chance": np.nan}
                    elif counts["n_images"]:
                        found = np.clip((k - nearer[place]) / (level[place] + 1), 0, 1)
                        mean = np.bincount(own, found, len(gallery))[asks] / asked[asks]
                        cells.append((len(rows), MeanCell(np.flatnonzero(mask[asks]), mean[mask[asks]])))
                    rows.append(row | _told(estimates.undefined(withheld[name] or "no patient has two studies here"), settings))
    figures = []
    if cells:
        bootstrap = Bootstrap(table["patient_id"].to_numpy(str)[gallery[asks]], settings.replicates, settings.seed)
        figures = Estimator(bootstrap).means([cell for _, cell in cells], "share")
    for (at, _), figure in zip(cells, figures, strict=True):
        # Of its effective number an interval of a share needs to know how many were counted.
        rows[at] |= _told(dataclasses.replace(figure, images=rows[at]["n_images"]), settings)
    absent = [attribute for attribute in settings.attributes if attribute not in masks]
    return {"rows": [{key: row[key] for key in KEYS} for row in rows], "absent": absent, "notes": notes}


def _first_of_studies(table: pd.DataFrame, least: int) -> tuple[np.ndarray, list[str]]:
    """(Rows that come first of a patient's study, int [m]; what must be known of them.)"""
    recorded = table["study_id"] if "study_id" in table else pd.Series(None, index=table.index, dtype="object")
    study = pd.factorize(recorded)[0]
    unknown = study < 0
    study = np.where(unknown, -1 - np.arange(len(table)), study)
    again = pd.DataFrame({"patient": table["patient_id"].to_numpy(), "study": study}).duplicated().to_numpy()
    of = "any image" if unknown.all() else some(table.loc[unknown, "patient_id"], least)
    note = f"no study is recorded of {of}: each counts as a study of its own, and where two are of one visit rates are too high"
    return np.flatnonzero(~again), [note] if unknown.any() else []


def _nearer(vectors: np.ndarray, name: str, gallery: np.ndarray, queries: np.ndarray, own: np.ndarray, code: np.ndarray) -> np.ndarray:
    """How many of the gallery are more similar to a query than its patient, and how many others as similar: int [2, a, q].

    gallery, queries: rows of `vectors`, int [g] and [q]. own: int [q], places in the gallery. code: int [a, g], groups by attribute; those of
    the patient's own are counted.
    """
    if not len(queries):
        return np.zeros((2, len(code), 0), int)

    def read(rows: np.ndarray) -> np.ndarray:
        block = np.asarray(vectors[rows], np.float64)
        if not np.isfinite(block).all():
            raise not_finite(vectors, name, rows)
        return block

    kept, found, step = read(gallery), [], min(QUERIES, len(queries))
    centre = kept.mean(axis=0)
    with mesh.float64_on_host():
        kept, code = jnp.asarray(_unit(kept - centre)), jnp.asarray(code)
        for start in range(0, len(queries), step):
            block = _unit(read(queries[start : start + step]) - centre)
            left = step - len(block)  # filled up, so that one compiled function serves all blocks
            counts = _counts(np.pad(block, ((0, left), (0, 0))), np.pad(own[start : start + step], (0, left)), kept, code)
            found.append(np.asarray(counts)[..., : len(block)])
    return np.concatenate(found, axis=-1)


def _unit(x: np.ndarray) -> np.ndarray:
    """Rows at length 1; those of length 0 stay, and are level with everything."""
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(length > 0, length, 1.0)


@jax.jit
def _counts(queries, own, gallery, code):
    """[2, a, q] of queries [q, d], own [q], gallery [g, d], code [a, g]."""
    cosine = queries @ gallery.T
    apart = cosine - jnp.take_along_axis(cosine, own[:, None], axis=1)

    def among(group):
        same = group[own][:, None] == group
        return (same & (apart > LEVEL)).sum(axis=1), (same & (jnp.abs(apart) <= LEVEL)).sum(axis=1) - 1  # less the patient

    return jnp.stack(lax.map(among, code))


# --- membership ------------------------------------------------------------------------------------------------------


def membership(members: Predictions, others: Predictions, settings, note: str = "") -> dict[str, Any]:
    """How well the loss tells patients who were trained on from others: {rows, absent, notes}.

    members, others: scores of one model, of images it was trained on and of others. settings, absent: as for `reidentification`. note: how
    far both are of one distribution, such as that the split is not at random; it is all of `notes`. rows: with MEMBERSHIP_KEYS, by target,
    attribute ('all' first), group and metric. Raises UserError for targets that differ, a patient on both sides, a side without images, and
    for an attribute that says which patient.
    """
    check_attributes(settings.attributes)
    if members.targets != others.targets:
        raise UserError(f"members have targets {', '.join(members.targets)}, others {', '.join(others.targets)}, or other classes; judge both by one model")
    sides = [side.table.reset_index(drop=True) for side in (members, others)]
    if not all(map(len, sides)):
        raise UserError("membership: one side has no image; give predictions of patients trained on, and of others")
    twice = len(np.intersect1d(*(side["patient_id"].to_numpy(str) for side in sides)))
    if twice:
        raise UserError(f"membership, column 'patient_id': {twice:,} patient{'s' * (twice > 1)} found both as member and as other; leave such out of the others")
    kept = ("patient_id", "age", *settings.attributes)
    table = pd.concat([side[[column for column in side if column in kept]].astype(object) for side in sides], ignore_index=True)
    member = np.arange(len(table)) < len(sides[0])
    ids, patient = np.unique(table["patient_id"].to_numpy(str), return_inverse=True)
    trained_on = np.isin(np.arange(len(ids)), patient[member])
    losses = {name: np.concatenate([_loss(side, name) for side in (members, others)]) for name in members.targets}
    if len(losses) > 1:
        losses[ALL] = _mean_known(np.stack(list(losses.values()), axis=1))
    masks, is_open = _masks(table, settings), members.open_data and others.open_data
    least, hides = (1, [{}, {}]) if is_open else (settings.min_patients, [_hidden(side, settings) for side in sides])
    estimator, rows = Estimator(Bootstrap(ids, settings.replicates, settings.seed)), []
    for target, loss in losses.items():
        known = ~np.isnan(loss)
        of_members = _by_patient(loss, patient, known & member)[1]
        threshold = float(of_members.mean()) if len(of_members) else np.nan
        for attribute, of in masks.items():
            parts = [(known & side, hide.get(attribute, ())) for side, hide in zip((member, ~member), hides, strict=True)]
            withheld = _withheld(of, parts, patient, least)
            for name, mask in of.items():
                who, mean = _by_patient(loss, patient, mask & known)
                counts = {"n_images": int((mask & known).sum()), "n_members": int(trained_on[who].sum()), "n_others": int((~trained_on[who]).sum())}
                why = withheld[name] or ("" if counts["n_members"] and counts["n_others"] else "no known label here on one side, or both")
                figures = [_told(estimates.undefined(why), settings)] * len(METRICS) if why else _figures(estimator, who, trained_on[who], mean, threshold, settings)
                for (metric, chance), told in zip(METRICS.items(), figures, strict=True):
                    row = {"metric": metric, "target": target, "attribute": attribute, "group": name, "chance": chance, "suppressed": bool(withheld[name])}
                    row |= dict.fromkeys(counts) if withheld[name] else counts
                    rows.append(row | told | {"threshold": threshold if metric == "advantage" and not why else np.nan})
    absent = [attribute for attribute in settings.attributes if attribute not in masks]
    return {"rows": [{key: row[key] for key in MEMBERSHIP_KEYS} for row in rows], "absent": absent, "notes": [note] if note else []}


def _loss(predictions: Predictions, name: str) -> np.ndarray:
    """Each image's loss: float64 [n], NaN where nothing is known."""
    labels, scores = predictions.labels(name), np.clip(predictions.scores(name), EPSILON, 1 - EPSILON)
    if predictions.targets[name].kind == "multiclass":
        return _mean_known(np.where(labels == 1, -np.log(scores), np.nan))
    return _mean_known(np.where(np.isnan(labels), np.nan, -np.log(np.where(labels == 1, scores, 1 - scores))))


def _mean_known(x: np.ndarray) -> np.ndarray:
    """Mean of what is not NaN in each row of x, [n, c]; NaN where nothing is."""
    known = (~np.isnan(x)).sum(axis=1)
    return np.where(known > 0, np.nansum(x, axis=1) / np.maximum(known, 1), np.nan)


def _by_patient(loss: np.ndarray, patient: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(Distinct patients of some images, sorted; the mean loss of each.)"""
    who = distinct(patient[mask])
    return who, np.bincount(patient[mask], loss[mask])[who] / np.bincount(patient[mask])[who]


def _figures(estimator: Estimator, who: np.ndarray, member: np.ndarray, loss: np.ndarray, threshold: float, settings) -> list[dict]:
    """As METRICS has them. who: int [k], patients; member: bool [k], of both kinds; loss: float [k]."""
    ((auc, _),) = estimator.rank([RankedCell(who, member, -loss)])
    called = estimator.means([MeanCell(who[side], loss[side] < threshold) for side in (member, ~member)], "share")
    found = [_told(figure, settings) for figure in (auc, estimates.difference(*called))]
    if (~member).sum() < LEAST_OTHERS:
        return [*found, _told(estimates.undefined(f"fewer than {LEAST_OTHERS} patients that are no members"), settings)]
    value, low, high = _at_low_fpr(member, -loss, settings.level)
    method = "order statistics of the others, and Wilson's of the members, of half the error each"
    return [*found, {"value": value, "low": low, "high": high, "level": float(settings.level), "method": method, "reason": None}]


def _at_low_fpr(member: np.ndarray, score: np.ndarray, level: float) -> tuple[float, float, float]:
    """(Share of members above the score that LOW_FPR of the others exceed, its interval.)

    How many of n others exceed the true threshold is binomial, so that it lies between two of their scores, whatever their distribution (Thompson
    1936, Annals of Mathematical Statistics 7:122-128); at either, the share of members has Wilson's limit. Each of the four errors is (1 - level) / 4.
    """
    others, tail = -np.sort(-score[~member]), (1 - level) / 4
    few, many = (int(stats.binom.ppf(q, len(others), LOW_FPR)) for q in (tail, 1 - tail))
    shares = np.mean(score[member] > others[few - 1]) if few else 0.0, np.mean(score[member] >= others[many]) if many < len(others) else 1.0
    low, high = (wilson(float(share), int(member.sum()), 1 - 2 * tail)[side] for side, share in enumerate(shares))
    return float(metrics.tpr_at_fpr(member, score, np.array([LOW_FPR]))[0]), low, high


# --- of both ---------------------------------------------------------------------------------------------------------


def _masks(table: pd.DataFrame, settings) -> dict[str, dict[str, np.ndarray]]:
    """Everyone, and the groups of each attribute that is recorded: bool [n] each."""
    found = {attribute: groups(table, attribute, tuple(settings.age_bands)) for attribute in settings.attributes}
    return {ALL: {ALL: np.ones(len(table), bool)}} | {attribute: of for attribute, of in found.items() if of}


def _hidden(table: pd.DataFrame, settings) -> dict[str, set[str]]:
    """By attribute, the groups that an audit of these images hides. Whom it hides depends on whether the attribute is a target too: both count."""
    patient = pd.factorize(table["patient_id"])[0]
    recorded = {a: tuple(name for name in of if name != MISSING) for a, of in _masks(table, settings).items() if a != ALL}
    targets = {a: Target("multiclass", classes) for a, classes in recorded.items() if classes}
    found = [hidden_groups(Predictions(table, of), settings, patient) for of in ({}, targets)]
    return {attribute: set().union(*(one[attribute] for one in found)) for attribute in settings.attributes}


def _withheld(masks: Mapping[str, np.ndarray], parts: Sequence[tuple[np.ndarray, Collection[str]]], patient: np.ndarray, least: int) -> dict[str, str]:
    """By group, why nothing is shown of it, or ''.

    masks: bool [n] each, which share out all. parts: whose patients a row counts apart, bool [n], and the groups that an audit of these hides.
    """
    ledger, few, found = Ledger(least), f"fewer than {least} patients", {}
    for p, (part, hidden) in enumerate(parts):
        for name, mask in masks.items():
            ledger.cell((p, name), distinct(patient[mask & part]), secret=name in hidden)
        ledger.cell((p, None), distinct(patient[part]), -1)
        ledger.add_up([(p, name) for name in masks], (p, None))
    for name, mask in masks.items():
        sizes = [len(distinct(patient[mask & part])) for part, _ in parts]
        gone = ledger.hides(*((p, name) for p in range(len(parts))))
        found[name] = "" if not gone else few if any(0 < size < least for size in sizes) else f"hidden lest a group of {few} be found by subtraction"
    return found


def _told(figure: Estimate, settings) -> dict[str, Any]:
    """The part of a row that a figure fills."""
    told = {"value": figure.value, "low": np.nan, "high": np.nan, "level": float(settings.level), "method": None, "reason": figure.reason or None}
    if not figure.defined:
        return told
    low, high, method, reason = estimates.interval(figure, settings.level, settings.interval)
    return told | {"low": low, "high": high, "method": method, "reason": "; ".join(r for r in (figure.reason, reason) if r) or None}
