"""How much of what a model tells of a label goes with how images were acquired, or with anything else that is recorded: view, exposure, age, findings.

`decompose` gives rows with the keys of `subgroups.KEYS`, of everyone, a class or the macro, and besides `factor`, the name of a group of factors, and `what`:

    whole      AUC of the model's scores; factor null, as it is the same beside all of them
    alone      AUC of a model that knows these factors and nothing else: what they tell by themselves
    within     AUC among pairs of images with equal factors: pairs won / pairs, each summed over strata, so the mean of the strata's AUCs by their numbers of pairs
    matched    AUC with images weighted so that those with the label and those without have the same mix of strata
    explained, explained_matched    1 - (within - 1/2) / (whole - 1/2), and the same of matched: the share of what is told beyond chance that is gone where factors are
               equal, or their mixes. Not clipped: below 0 where more is told then, above 1 where what is told is then wrong. Undefined where whole's interval has 1/2 in
               it: of nothing there is no share
    pairs      the share of all pairs that are compared in `within`

metric is auc, explained or pairs. Counts are of all whose label is known; how many pairs are left, `pairs` says.

**Strata** are the joint values of a group's factors, an empty cell being a value of its own. Where there are more than `MOST_STRATA` of these, numbers are cut at quantiles of
the images at hand, equal ones never apart, into 5, or as many fewer, down to halves, as make no more strata; if there are more even so, only the largest are compared. A cut
number is not quite equal. Of a model that reads one normal number and nothing else, 27 to 29 % of what it tells is left in `within` where that is cut into five, and about 60 % in
halves; in `matched` 5 to 6 %, and 30 % (of a difference of means Cochran, 1968, Biometrics 24:295-313, has 10 % and 36 %). So of numbers both shares are too small, the first more so.

**Formulas.** Of a stratum's P positive and N negative images, `matched` weighs the positive ones N / (P + N), the negative ones P / (P + N): overlap weights (Li, Morgan and
Zaslavsky 2018, JASA 113:390-400), the propensity score (Rosenbaum and Rubin 1983, Biometrika 70:41-55) being the stratum's share of positives. Either side then has PN / (P + N) of
each stratum, and images are compared across strata, too. `within` is near the covariate-adjusted AUC of Janes and Pepe (2009, Biometrika 96:371-382), whose weights are P, not PN.

Intervals are analytic, by what patients do (`estimates`), summed by side as for any AUC (`comparisons`). With `won` the images of the other side in its stratum that a positive
image beats, or that beat a negative one, ties half, and `of` all there, an image does (won - within of) / pairs to `within`, strata being as large as they happen to be. With w its
weight, T either side's sum of these, p its placement by weight, m the mean of p over its side of its stratum, and D the sum of both sides' m less 2 matched, it does
w (p - m) / T + w² D / T to `matched`: the second term, since its stratum's share is a sample's, too. The explained are ratios of AUCs of the same patients (delta method).

**What a share is not.** It is no effect. Groups are imaged differently because of how, where and how late they are treated: what goes with the view may go with all of that, and is
not thereby innocent. Nor need a factor be what the model reads. Where a factor follows from both the group and disease (a portable unit, for whoever cannot stand or was not taken
to radiology), equal values tie the two together where nothing did (a collider): shares can be too small for that, or below 0. What is recorded coarsely, or wrongly, is made equal
as coarsely. Factors go together, so that shares do not add up to 1, and what is left when all are equal is not therefore anatomy.

**Withheld** is what is withheld of the label's AUC for everyone. Of data that are not open strata have `min_patients` patients on either side, or are not compared; all but `whole`
is rounded; nothing is compared where a number of positives is hidden. Where a stratum has fewer of a class, `pairs` would tell of them, and so would `alone` of factors of few
values.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections
import numpy as np
import pandas as pd
from scipy import stats

from cxr_jax.audit import case_mix, estimates, judgement, metrics, subgroups
from cxr_jax.audit.estimates import Estimate, undefined
from cxr_jax.audit.gaps import DECIMALS
from cxr_jax.audit.intervals import Bootstrap
from cxr_jax.audit.judgement import MACRO, Judgement
from cxr_jax.tables import IDENTIFIERS, LABEL, Predictions, UserError

KEYS = (*subgroups.KEYS, "factor", "what")
SPLIT = "test"
MOST_STRATA = 20
CUTS = (5, 4, 3, 2)
EXPLAINED = {"explained": "within", "explained_matched": "matched"}
COUNTED = "no interval: it is counted"


def decompose(
    predictions: Predictions, factors: Mapping[str, Sequence[str]], alone: Mapping[str, Mapping[str, np.ndarray]], settings
) -> list[dict[str, Any]]:  # fmt: skip
    """Rows as above, of every target whose classes exclude one another.

    predictions: of the test split alone. factors: by name of a group, columns of the table, numbers or text; what is the target itself is left out. alone: by target, by group,
    float [n, classes], scores of a model that was fitted elsewhere to other patients; without them the row says that there are none. settings: the config's `audit` section.

    Raises UserError for a factor that says which image or patient, ValueError for scores of another shape.
    """
    for factor, columns in factors.items():
        for column in set(columns) & set(IDENTIFIERS):
            raise UserError(f"factors of {factor!r}: {column} says which image or patient, and can be equal for no two; leave it out")
    settings = ml_collections.ConfigDict(settings)
    settings.interval = "analytic"
    bootstrap = Bootstrap(predictions.table["patient_id"].to_numpy(), 1, settings.seed)  # of which nothing is read
    rows = []
    for judge in judgement.judgements(predictions, SPLIT, settings, bootstrap):
        if judge.target.kind != "multiclass":
            continue
        found = judge.aucs(judge.scores)
        rows += [row | {"factor": None, "what": "whole"} for row, _ in found]
        whole = {row["class"]: _kept(figure) for row, figure in found}
        own = {judge.name, LABEL + judge.name, *(("age",) if judge.name == "age_band" else ())}
        for factor, columns in factors.items():
            asked = [column for column in columns if column not in own]
            if asked:
                scores = alone.get(judge.name, {}).get(factor)
                rows += [row | {"factor": factor} for row in _of_factor(judge, whole, asked, scores)]
    return [{key: row[key] for key in KEYS} for row in rows]


def _kept(figure: Estimate) -> Estimate:
    """The same without its one replicate, its influence computed once."""
    return dataclasses.replace(figure, replicates=None, influence=figure.influence and functools.cache(figure.influence))


# --- strata ----------------------------------------------------------------------------------------------------------


class _Strata(NamedTuple):
    """of: int64 [n], -1 of images that are not compared. exact: whether they are the factors' own values, none cut or left out. told: what must be known of them, or ''."""

    of: np.ndarray
    exact: bool
    told: str


def _strata(columns: Sequence[pd.Series]) -> _Strata:
    for cut in (None, *CUTS):
        joint = case_mix.nested([_codes(column, cut) for column in columns])[0]
        if joint.max(initial=0) < MOST_STRATA:
            break
    numbers = any(map(pd.api.types.is_numeric_dtype, columns))
    told = [f"numbers cut into {cut} at quantiles"] if cut and numbers else []
    size = np.bincount(joint)
    if len(size) > MOST_STRATA:
        joint = np.where(np.isin(joint, np.argsort(-size, kind="stable")[:MOST_STRATA]), joint, -1)
        told.append(f"the {MOST_STRATA} largest strata alone are compared")
    return _Strata(joint, cut is None, "; ".join(told))


def _codes(column: pd.Series, cut: int | None) -> np.ndarray:
    """The number of each image's value, int64 [n]; of numbers, of the quantile that it lies in, unless cut is None. A missing one has a number of its own."""
    if not pd.api.types.is_numeric_dtype(column):
        recorded = column.to_numpy(object)
        return np.unique(np.where(pd.isna(recorded), "", recorded).astype(str), return_inverse=True)[1]
    value = column.to_numpy(np.float64, na_value=np.nan)
    if cut is None:
        return np.unique(value, return_inverse=True)[1]
    known = ~np.isnan(value)
    # By the middle rank of equal ones, which keeps them together wherever they lie: many images have no black pixel, or a full field.
    middle = (stats.rankdata(value[known]) - 0.5) / max(known.sum(), 1)
    codes = np.full(len(value), cut)
    codes[known] = np.floor(middle * cut)
    return codes


def _fewest(judge: Judgement, stratum: np.ndarray) -> bool:
    """Whether a stratum has patients of a class, but fewer than may be told of."""
    at = np.flatnonzero(judge.known[:, 0])
    own = judge.positive[at].argmax(axis=1)
    of = np.unique(np.stack([stratum[at], own, judge.patient[at]]), axis=1)
    cells = np.unique(of[:2], axis=1, return_counts=True)[1]
    return bool((cells < judge.settings.min_patients).any())


# --- figures ---------------------------------------------------------------------------------------------------------


def _of_factor(judge: Judgement, whole: Mapping[str, Estimate], asked: Sequence[str], scores: np.ndarray | None) -> list[dict[str, Any]]:
    """Rows of one group of factors, all but `factor` in them."""
    table, is_open = judge.predictions.table, judge.predictions.open_data
    absent = [column for column in asked if column not in table or table[column].isna().all()]
    used = [column for column in asked if column not in absent]
    lacking = f"no {', '.join(absent)} is recorded" if absent else ""
    strata = _strata([table[column] for column in used]) if used else None
    few = strata is not None and not is_open and _fewest(judge, strata.of)
    told = "; ".join(filter(None, (lacking, strata.told if strata else "")))

    figures: dict[str, dict[str, Estimate]] = {what: {} for what in ("alone", "within", "matched", *EXPLAINED, "pairs")}
    if not used or scores is None:
        figures["alone"] = dict.fromkeys(whole, undefined(lacking if not used else "no model was fitted to these factors alone"))
    elif np.shape(scores) != judge.scores.shape:
        raise ValueError(f"scores from {', '.join(asked)} alone of {judge.name}: {np.shape(scores)}, not {judge.scores.shape}")
    else:
        by_class = judge.aucs(np.asarray(scores, np.float64), unscored="a score from these factors alone is missing")
        hides = few and strata.exact
        figures["alone"] = {row["class"]: undefined(f"hidden {judge.lest_few_show}") if hides and figure.defined else _kept(figure) for row, figure in by_class}
    hidden = not is_open and (judge.everyone.hidden_positives.any() or any(judge.everyone.suppressed))
    for c, name in enumerate(judge.classes):
        why = whole[name].reason if not whole[name].defined else f"not compared {judge.lest_few_show}" if hidden else "" if used else lacking
        both = dict.fromkeys(("within", "matched", "pairs"), undefined(why)) if why else _compared(judge, c, strata.of)
        for what, figure in both.items():
            figures[what][name] = figure
        if few and both["pairs"].defined:
            figures["pairs"][name] = undefined(f"hidden {judge.lest_few_show}")
    for what in ("within", "matched", "pairs"):
        figures[what][MACRO] = _macro(figures[what], whole[MACRO])
    for name, figure in whole.items():
        for what, of in EXPLAINED.items():
            figures[what][name] = _explained(figure, figures[of][name], judge.settings.level)

    rows = []
    for what, of in figures.items():
        for name, figure in of.items():
            if not is_open and figure.defined:
                figure = dataclasses.replace(figure, decimals=DECIMALS if figure.decimals is None else min(DECIMALS, figure.decimals)).rounded()
            c = None if name == MACRO else judge.classes.index(name)
            metric = "explained" if what in EXPLAINED else "pairs" if what == "pairs" else "auc"
            row = judge.row(metric, name, judge.everyone, c, figure) | ({"method": None} if what == "pairs" else {})
            said = row["reason"], (lacking if what == "alone" else told) if figure.defined else ""
            rows.append(row | {"what": what, "reason": "; ".join(filter(None, said)) or None})
    return rows


def _macro(of: Mapping[str, Estimate], whole: Estimate) -> Estimate:
    """The plain mean over classes, which exclude one another: one undefined, and it is."""
    if not whole.defined:
        return undefined(whole.reason)
    lacking = [name for name, figure in of.items() if not figure.defined]
    if lacking:
        reason = "; ".join(dict.fromkeys(of[name].reason for name in lacking))
        return undefined(reason if len(lacking) == len(of) else f"undefined for {', '.join(lacking)}: {reason}")
    made = estimates.mean(list(of.values()))
    return dataclasses.replace(made, no_interval=next(iter(of.values())).no_interval)


def _compared(judge: Judgement, c: int, stratum: np.ndarray) -> dict[str, Estimate]:
    """within, matched and pairs of a class."""
    known = judge.known[:, c]
    pairs = int((known & judge.positive[:, c]).sum()) * int((known & ~judge.positive[:, c]).sum())
    least = 1 if judge.predictions.open_data else judge.settings.min_patients
    rows = np.flatnonzero(known & (stratum >= 0))
    sides = []
    for side in (True, False):
        here = rows[judge.positive[rows, c] == side]
        of = np.unique(np.stack([stratum[here], judge.patient[here]]), axis=1)[0]
        sides.append(np.bincount(of, minlength=stratum.max() + 1) >= least)
    rows = rows[(sides[0] & sides[1])[stratum[rows]]]
    if not len(rows):
        few = "" if judge.predictions.open_data else f" of at least {least} patients each"
        return dict.fromkeys(("within", "matched", "pairs"), undefined(f"no two sides{few} to compare in any stratum"))
    positive, score, stratum = judge.positive[rows, c], judge.scores[rows, c], np.unique(stratum[rows], return_inverse=True)[1]

    won, of = _wins(positive, score, stratum, np.ones(len(rows)))
    compared = of[positive].sum()
    value = won[positive].sum() / compared
    within = _estimate(judge, rows, positive, value, (won - value * of) / compared)

    mine, theirs = (np.bincount(stratum[positive == side]) for side in (True, False))
    share = mine / (mine + theirs)
    weight = np.where(positive, 1 - share[stratum], share[stratum])
    won, of = _wins(positive, score, np.zeros_like(stratum), weight)
    placement = won / of
    total, value = weight[positive].sum(), metrics.auc(positive, score, weight)
    means = [np.bincount(stratum[positive == side], placement[positive == side]) / n for side, n in ((True, mine), (False, theirs))]
    apart = (means[0] + means[1] - 2 * value)[stratum]
    mean = np.where(positive, means[0][stratum], means[1][stratum])
    matched = _estimate(judge, rows, positive, value, weight * (placement - mean + weight * apart) / total, weight)
    return {"within": within, "matched": matched, "pairs": Estimate(float(compared / pairs), images=len(rows), no_interval=COUNTED)}


def _wins(positive: np.ndarray, score: np.ndarray, stratum: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(won, of), float64 [n] each: the weight of the other side's images in its stratum that a positive image beats, or that beat a negative one, ties half; of all there."""
    order = np.lexsort((score, stratum))
    positive, score, stratum, weight = positive[order], score[order], stratum[order], weight[order]
    new = np.concatenate(([True], stratum[1:] != stratum[:-1]))

    def runs(starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each place, where its run begins and where it ends."""
        first = np.flatnonzero(starts)
        size = np.diff(np.append(first, len(starts)))
        return np.repeat(first, size), np.repeat(first + size, size)

    (begin, end), (first, last) = runs(new), runs(new | np.concatenate(([True], score[1:] != score[:-1])))
    won, of = np.empty((2, len(order)))
    for side in (True, False):
        up_to, at = np.concatenate(([0.0], np.cumsum(weight * (positive != side)))), positive == side
        there, below = up_to[end] - up_to[begin], (up_to[first] + up_to[last]) / 2 - up_to[begin]
        of[order[at]], won[order[at]] = there[at], (below if side else there - below)[at]
    return won, of


def _estimate(judge: Judgement, rows: np.ndarray, positive: np.ndarray, value: float, moves: np.ndarray, weight: np.ndarray | None = None) -> Estimate:
    """An AUC of some images, of what each of them does to it."""
    sides = [positive == side for side in (True, False)]
    patients = min(estimates.count(judge.patient[rows[side]], None if weight is None else weight[side]) for side in sides)
    found = functools.cache(lambda: sum(judge.estimator.by_patient(rows[side], moves[side]) for side in sides))
    return Estimate(float(value), None, found, patients, len(rows), "auc")


def _explained(whole: Estimate, equal: Estimate, level: float) -> Estimate:
    """equal: where factors are equal, or their mixes."""
    if not (whole.defined and equal.defined):
        return undefined(equal.reason if whole.defined else whole.reason)
    limits = estimates.interval(whole, level, "analytic")
    if whole.value == 0.5 or limits.low <= 0.5 <= limits.high:
        return undefined("the interval of the AUC reaches 0.5: of nothing told there is no share")
    left, all_of_it = (dataclasses.replace(one, value=one.value - 0.5, scale="") for one in (equal, whole))
    kept = estimates.ratio(left, all_of_it)
    return dataclasses.replace(kept, value=1 - kept.value, influence=lambda: -kept.influence())
