"""Does what a model tells at home hold at another hospital? Its figures there beside those at home, and what of the difference the mix explains.

`travel` takes the predictions of one model for the data set that it was trained on and for others, and gives for each of these, by name:

    rows         AUCs of test images: overall and by group, at home and abroad, and abroad less home
    calibration  calibration_in_the_large, calibration_slope and ece_debiased of everyone, likewise
    thresholds   sensitivity, specificity, false_negative_rate and `called` at the threshold that home chose, likewise; and at the one that the
                 data set abroad would choose by the same rule (on its validation images, else cross-fitted), and how far the two are apart
    shift        what of a difference goes with the mix of images; see below
    absent       target, class, reason: of what the model tells and the data set does not record
    classes      by target, those that macro AUCs are over, abroad as at home: whose AUC is defined and shown in both
    reason       why there is nothing, or null

Rows have the keys of `subgroups.KEYS`, and `where`, 'home' or 'abroad', and `chosen`, where the threshold was, null of other metrics. effect
'difference' has reference 'home', or 'own', the same images called by the data set's own threshold; its counts are of the images abroad. What is
withheld of home is what its own audit withholds (each data set is judged whole, as `subgroups` does), and of another what its own would. Home's
threshold is chosen on its validation images; where it has none, home's figures are cross-fitted, and what is carried abroad is chosen on all of
its test images. Labels are what is recorded.

Patients of two data sets are taken to be different people: replicates are drawn for each by itself, and variances add up.

**Shift.** An image of home in cell c weighs p_abroad(c) / p_home(c), so that home has the mix of the data set abroad: direct standardisation
(Rothman, Greenland and Lash, Modern Epidemiology, chapter 15), which parts a loss into what a shift of the mix brings and what remains as
Cai, Namkoong and Yadlowsky do ("Diagnosing Model Performance Under Distribution Shift", arXiv:2303.02011, 2023). `part` says by what:

    home, abroad  the figures as they are
    demographics  age band, sex and race, as far as both record them
    acquisition   view, and what else is asked for, likewise
    prevalence    the class's label and whether there is another finding; of classes that exclude one another, the class
    all           all of these at once. It is not the sum of the three: they go together
    remainder     abroad less home weighted by all

and `by`, the attributes used. A part has a row of the weighted figure, and one of its difference to home: what the shift explains. An AUC does
not depend on the prevalence of its own class, nor do sensitivity and specificity: they are of positives and negatives apart. What moves them is
which positives and which negatives there are: how many have other findings as well, or are seen from the front.

Cells of fewer than `FEWEST` images at home are no reference. What the data set abroad has in such cells has the like of a wider one, without the last
of `by`, and so on as in `case_mix`, in the end of everyone; so nobody is left out, and what the wider cells leave of the mix is in the remainder.
`covered` is the share of the images abroad that have their like in all of `by`. `effective` is to how many patients of home the weights come (Kish
1965). Where data are not open a cell has `min_patients` patients in both data sets, or is not used; figures made of weights are rounded, and so are
`covered` and `effective`.

The mixes are those of samples. With g the influence on a weighted figure of home by the weight of each image, and G(c) its mean over home's images of
a cell, an image abroad moves the figure by G(c), through the mix, and one at home by w g - G(c) n_abroad(c) / n_home(c); intervals are of these, summed
by patient (see `estimates`). With weights held fixed intervals of what two like mixes explain would be of a quarter to a half of their width. In
samples of known truth, of 500 patients each, they cover as they should or more often (94 to 100 %). What remains is not shown to be the model's doing:
images differ in more than what is recorded.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from cxr_jax.audit import case_mix, comparisons, estimates, subgroups
from cxr_jax.audit.case_mix import FEWEST
from cxr_jax.audit.disclosure import Group, check_attributes, masks_of
from cxr_jax.audit.estimates import Estimate
from cxr_jax.audit.gaps import DECIMALS, NO_FINDING
from cxr_jax.audit.intervals import Bootstrap
from cxr_jax.audit.judgement import MACRO, ByClass, Judgement, Row, judgements
from cxr_jax.experiment import threshold_rule
from cxr_jax.tables import Predictions, Target, UserError

HOME, ABROAD, OWN = "home", "abroad", "own"
KEYS = (*subgroups.KEYS, "where", "chosen")
SHIFT_KEYS = (*subgroups.KEYS, "part", "by", "covered", "effective")
RATES = ("sensitivity", "specificity", "false_negative_rate", "called")
CALIBRATION = ("calibration_in_the_large", "calibration_slope", "ece_debiased")
DECOMPOSED = ("auc", "sensitivity", "specificity")
DEMOGRAPHICS, ACQUISITION, LABELS = ("age_band", "sex", "race"), ("view", "manufacturer"), "labels"
MOST = 0.9  # of images abroad; where fewer are covered, the row says so


def travel(home: Predictions, abroad: Mapping[str, Predictions], settings, acquisition: Sequence[str] = ACQUISITION) -> dict[str, Any]:
    """What the module says, by the name of the data set abroad, ready for JSON.

    home, abroad: such as pass `Predictions.check`, of one model. Test images are judged, or all of a table without `split`. settings: the config's
    `audit` section; its truth, splits, intersections, reference and case_mix are not used. acquisition: columns that say how images were made.

    Raises UserError where home has no test image, for an attribute that says which image or patient, and for a `threshold_by` that a table lacks.
    """
    check_attributes(settings.attributes)
    here, validation = _images(home, "test"), _images(home, "validation")
    if not len(here.table):
        raise UserError("predictions of home: no image of split 'test'; predict that split, too")
    _check_strata(here, HOME, settings)
    chosen_on = validation if len(validation.table) else None
    at_home = {one.name: _Side(HOME, one) for one in _judged(here, chosen_on, settings, settings.seed)}
    chooser = here if chosen_on is None else chosen_on
    return {name: _abroad(name, there, at_home, chooser, home.open_data, settings, acquisition) for name, there in abroad.items()}


def _images(predictions: Predictions, split: str) -> Predictions:
    table = predictions.table
    inside = table["split"] == split if "split" in table else np.full(len(table), split == "test")
    return dataclasses.replace(predictions, table=table[inside].reset_index(drop=True))


def _check_strata(part: Predictions, name: str, settings) -> None:
    if settings.threshold_by and not masks_of(part, settings.threshold_by, settings):
        raise UserError(f"config.audit.threshold_by: no {settings.threshold_by} is recorded in the predictions of {name}; leave it empty")


def _judged(part: Predictions, chosen_on: Predictions | None, settings, seed: int) -> list[Judgement]:
    """As `subgroups.audit` judges a split."""
    masks = {a: masks_of(part, a, settings) for a in settings.attributes if a not in part.targets}
    bootstrap = Bootstrap(part.table["patient_id"].to_numpy(), settings.replicates, seed, [mask for of in masks.values() for mask in of.values()])
    return judgements(part, "test", settings, bootstrap, chosen_on)


class _Side:
    """One target in one data set. chosen: where its thresholds were. figures: (group, by metric, by class) of everyone, who comes first, and of groups."""

    def __init__(self, where: str, judged: Judgement, chosen: str = HOME):
        self.where, self.judged, self.chosen = where, judged, chosen
        groups = [group for group in judged.groups if group.attribute != judged.name]
        own = chosen == where == ABROAD  # of which nothing but rates is another than at home's threshold
        found = judged.figures(groups, lambda g: RATES if own else ("auc", *RATES, *(("ece", *CALIBRATION) if g is judged.everyone else ())))
        self.figures: list[tuple[Group, dict[str, ByClass]]] = list(zip(groups, found, strict=True))

    def of(self, classes: Sequence[str], macro: Sequence[str]) -> _Side:
        """The same with these classes alone, and with macro AUCs over some of them."""
        other = copy.copy(self)
        other.figures = []
        for group, by_metric in self.figures:
            kept = {metric: {name: by_class[name] for name in classes} for metric, by_class in by_metric.items()}
            kept["auc"][MACRO] = _macro(group, kept["auc"], macro)
            other.figures.append((group, kept))
        return other

    def row(self, metric: str, name: str, group: Group, figure: Estimate, **keys) -> Row:
        """One row, with the keys of `subgroups.KEYS`."""
        c = self.judged.classes.index(name) if name != MACRO else None
        row = self.judged.row(metric, name, group, c, figure, threshold=self.judged.threshold(metric, group, c), **keys)
        return {key: row[key] for key in subgroups.KEYS}

    def rows(self, metric: str, place: str = "") -> list[Row]:
        """Rows of a metric, and, if there is a place to name, one for each attribute that is not recorded."""
        rows = [self.row(metric, name, group, one) for group, of in self.figures if metric in of for name, one in of[metric].items()]
        for attribute in self.judged.absent if place else ():
            row = self.row(metric, MACRO, self.figures[0][0], estimates.undefined(f"{attribute} is not recorded {place}"))
            rows.append(row | {"attribute": attribute, "n_images": 0, "n_patients": 0})
        return self.placed(metric, rows)

    def differences(self, metric: str, other: _Side, reference: str) -> list[Row]:
        """Rows of what the figures here are more than those there: of other patients, or, with reference 'own', of the same."""
        there, rows = {(group.attribute, group.name): of for group, of in other.figures}, []
        patients = (other.judged.bootstrap.patients, self.judged.bootstrap.patients) if reference == HOME else (0, 0)
        for group, of in self.figures:
            for name, a in of.get(metric, {}).items():
                if group.any_suppressed if name == MACRO else group.suppressed[self.judged.classes.index(name)]:
                    continue
                same = there.get((group.attribute, group.name))
                b = estimates.undefined("no such group") if same is None else same[metric][name]
                if not b.defined:
                    b = estimates.undefined(f"{reference}: {b.reason}")
                apart = estimates.difference(_among(a, patients[0], 0), _among(b, 0, patients[1]))
                if apart.defined:
                    apart = dataclasses.replace(apart, scale="error" if a.scale == "error" else "", reason=a.reason if name == MACRO else "")
                rows.append(self.row(metric, name, group, apart.rounded(), effect="difference", reference=reference))
        return self.placed(metric, rows)

    def placed(self, metric: str, rows: Sequence[Row]) -> list[Row]:
        return [row | {"where": self.where, "chosen": self.chosen if metric in RATES else None} for row in rows]


def _macro(group: Group, of: ByClass, used: Sequence[str]) -> Estimate:
    """The mean over classes, by the rule of the audit: a group's is over everyone's, or is not."""
    lacking = [name for name in used if not of[name].defined]
    if group.any_suppressed or lacking or not used:
        why = f"undefined or withheld for {', '.join(lacking)}" if lacking else "no class has an AUC both at home and abroad"
        return estimates.undefined(group.any_suppressed or why)
    reason = "" if len(used) == len(of) else f"mean over {len(used)} of {len(of)} classes: {', '.join(used)}"
    return estimates.mean([of[name] for name in used], reason)


def _among(figure: Estimate, before: int, after: int) -> Estimate:
    """The same among so many more patients, who do nothing to it: home's come first, those abroad after them."""
    if figure.influence is None or before == after == 0:
        return figure
    own = figure.influence
    return dataclasses.replace(figure, influence=lambda: np.concatenate([np.zeros(before), own(), np.zeros(after)]))


# --- one data set ----------------------------------------------------------------------------------------------------


def _abroad(name: str, there: Predictions, at_home: Mapping[str, _Side], chooser: Predictions, home_is_open: bool, settings, acquisition) -> dict[str, Any]:
    found: dict[str, Any] = {"rows": [], "calibration": [], "thresholds": [], "shift": [], "absent": [], "classes": {}, "reason": None}
    part, validation = _images(there, "test"), _images(there, "validation")
    if not len(part.table):
        return found | {"reason": f"no test image in {name}"}
    _check_strata(part, name, settings)
    targets, found["absent"] = _common(name, part, chooser.targets)
    if not targets:
        return found | {"reason": f"nothing that the model tells is recorded in {name}"}
    part, validation, chooser = (dataclasses.replace(one, targets=targets) for one in (part, validation, chooser))
    is_open = home_is_open and there.open_data
    # A seed of its own: two data sets of as many patients would else be drawn alike.
    seed = int.from_bytes(hashlib.sha256(f"{settings.seed} {name}".encode()).digest()[:6], "big")
    for judged in _judged(part, chooser, settings, seed):
        own = copy.copy(judged)
        own.chosen_on = validation if len(validation.table) else None
        # By home's threshold, and it is said that it is home's.
        how, *reasons = (said.replace("on validation", "at home").replace("in validation", "at home") for said in (judged.calls.how, *judged.calls.reasons))
        judged.calls = dataclasses.replace(judged.calls, how=how, reasons=tuple(reasons))
        home, away = at_home[judged.name], _Side(ABROAD, judged)
        both = [side.figures[0][1]["auc"] for side in (home, away)]
        macro = [c for c in judged.classes if all(aucs[c].defined for aucs in both)]
        found["classes"][judged.name] = macro
        home, away = home.of(judged.classes, macro), away.of(judged.classes, macro)
        for section, metrics in (("rows", ("auc",)), ("calibration", CALIBRATION), ("thresholds", RATES)):
            for metric in metrics:
                places = ("at home", f"in {name}") if section != "calibration" else ("", "")
                found[section] += home.rows(metric, places[0]) + away.rows(metric, places[1]) + away.differences(metric, home, HOME)
        if threshold_rule(settings.threshold)[0] != "fixed":
            mine = _Side(ABROAD, own, ABROAD)
            for metric in RATES:
                found["thresholds"] += mine.rows(metric) + away.differences(metric, mine, OWN)
        found["shift"] += _shift(home, away, name, settings, acquisition, is_open)
    return found


def _common(name: str, part: Predictions, told: Mapping[str, Target]) -> tuple[dict[str, Target], list[dict[str, str]]]:
    """What both know of what the model tells, and rows of what the images abroad have no label of."""
    targets, absent = {}, []
    for target, of in told.items():
        there = part.targets[target] if target in part.targets else Target(of.kind, of.classes)
        known = [c for c in of.classes if target in part.targets and c in there.classes and not np.isnan(part.label(target, c)).all()]
        reason = f"no label of it is known in {name}"
        if known and (there.kind != of.kind or of.kind == "multiclass" and set(there.classes) != set(of.classes)):
            known, reason = [], f"the classes of {target} are others in {name}"
        absent += [{"target": target, "class": c, "reason": reason} for c in of.classes if c not in known]
        if known:
            targets[target] = Target(of.kind, tuple(known))
    return targets, absent


# --- what the mix explains -------------------------------------------------------------------------------------------


class _Mix(NamedTuple):
    """weight: float64 [n], of each image of home, 0 where it has none. depths: from the narrowest cells on, the cell of each image of home, int [n],
    and of each image abroad that has its like there, -1 of the others. covered: share of the images abroad in the narrowest. of: how many there are."""

    weight: np.ndarray
    depths: list[tuple[np.ndarray, np.ndarray]]
    covered: float
    of: int


def _mix(codes: Sequence[Sequence[np.ndarray]], known: Sequence[np.ndarray], patient: Sequence[np.ndarray], least: int) -> _Mix:
    """Weighs home to be like the data set abroad.

    codes: for each attribute int [n] of home and of the images abroad, from 0 on. known: bool [n] each, likewise, who takes part; patient: int [n] each.
    least: how many patients a cell must have in both, the widest apart.
    """
    n, left = len(known[0]), known[1].copy()
    weight, depths, missed = np.zeros(n), [], []
    strata = case_mix.nested([np.zeros(n + len(left), np.int64), *map(np.concatenate, codes)])
    for depth, stratum in enumerate(strata):
        size, here, there = int(stratum.max()) + 1, stratum[:n], stratum[n:]
        mine, theirs = np.bincount(here[known[0]], minlength=size), np.bincount(there[left], minlength=size)
        widest = depth == len(strata) - 1
        used = (theirs > 0) & (mine >= (1 if widest else FEWEST))
        for cell, mask, who in () if widest or least == 1 else ((here, known[0], patient[0]), (there, left, patient[1])):
            patients = int(who.max()) + 1
            used &= np.bincount(np.unique(cell[mask] * patients + who[mask]) // patients, minlength=size) >= least
        weight += np.where(known[0], np.where(used, theirs / np.maximum(mine, 1), 0.0)[here], 0.0)
        depths.append((np.where(known[0] & used[here], here, -1), np.where(left & used[there], there, -1)))
        left &= ~used[there]
        missed.append(float(left.sum()))
    of = int(known[1].sum())
    return _Mix(weight, depths, 1 - missed[0] / max(of, 1), of)


def _shift(home: _Side, abroad: _Side, name: str, settings, acquisition: Sequence[str], is_open: bool) -> list[Row]:
    """Rows of the decomposition of every class of one target."""
    sides = home.judged, abroad.judged
    codes = {n: made for n in dict.fromkeys((*DEMOGRAPHICS, *acquisition)) if n != home.judged.name and (made := _codes(sides, n, settings))}
    parts = {"demographics": [n for n in DEMOGRAPHICS if n in codes], "acquisition": [n for n in acquisition if n in codes], "prevalence": [LABELS]}
    parts["all"] = [LABELS, *parts["acquisition"], *parts["demographics"]]
    hidden = {c for one in sides for k, c in enumerate(one.classes) if one.everyone.suppressed[k] or one.everyone.hidden_positives[k]}
    mixes: dict[tuple[str, str], _Mix] = {}
    for c in abroad.judged.classes:
        known = [one.known[:, one.classes.index(c)] for one in sides]
        labels = list(zip(*(_labels(one, c, [other for other in abroad.judged.classes if other not in hidden]) for one in sides), strict=True))
        for part, names in parts.items():
            columns = [code for n in names for code in (labels if n == LABELS else [codes[n]])]
            if columns:
                mixes[part, c] = _mix(columns, known, [one.patient for one in sides], 1 if is_open else settings.min_patients)
    weighted, rows = _weighted(home.judged, mixes, settings), []
    for metric in DECOMPOSED:
        for c in abroad.judged.classes:
            both = {HOME: home.figures[0][1][metric][c], name: abroad.figures[0][1][metric][c]}
            why = "; ".join(f"{place}: {figure.reason}" for place, figure in both.items() if not figure.defined)
            if not why and (hidden if home.judged.target.kind == "multiclass" else c in hidden):
                why = f"not weighted {home.judged.lest_few_show}"  # by labels whose number is hidden
            figures = {}
            for part, names in parts.items():
                reason = why or ("" if names else f"nothing of it is recorded both at home and in {name}")
                if not reason and not mixes[part, c].covered:
                    reason = f"no image in {name} has its like at home"
                figures[part] = estimates.undefined(reason) if reason else _with_mix(metric, c, *sides, mixes[part, c], weighted[part][metric][c])
            for row in _parts(metric, c, home, abroad, parts, figures, is_open):
                mix = None if why else mixes.get(("all" if row["part"] == "remainder" else row["part"], c))
                rows.append(row | _coverage(row, mix, sides[0], name, is_open))
    return rows


def _codes(sides: Sequence[Judgement], attribute: str, settings) -> list[np.ndarray]:
    """The number of each image's group, int [n] of home and of the images abroad; [] where one of them does not record the attribute."""
    masks = [masks_of(one.predictions, attribute, settings) for one in sides]
    if not all(masks):
        return []
    groups = list(dict.fromkeys([*masks[0], *masks[1]]))
    return [np.select(list(of.values()), [groups.index(g) for g in of]) for of in masks]


def _labels(judged: Judgement, name: str, shown: Sequence[str]) -> list[np.ndarray]:
    """What of the labels is a cell, int [n] each: a class's own, and whether there is another finding of those `shown`; of classes that exclude
    one another, the class. An unknown label counts as absent."""
    positive = judged.positive & judged.known
    if judged.target.kind == "multiclass":
        return [np.select(list(positive.T), np.argsort(np.argsort(judged.classes)))]
    others = [judged.classes.index(other) for other in shown if other not in (name, NO_FINDING)]
    return [positive[:, judged.classes.index(name)].astype(int), positive[:, others].any(axis=1).astype(int)]


def _weighted(h: Judgement, mixes: Mapping[tuple[str, str], _Mix], settings) -> dict[str, dict[str, ByClass]]:
    """Figures of home, by part, metric and class, with the weights of each mix; of replicates there is one, which nobody looks at."""
    weights, groups = [], []
    parts = list(dict.fromkeys(part for part, _ in mixes))
    for part in parts:
        weight = np.stack([mixes[part, c].weight if (part, c) in mixes else np.zeros(len(h.known)) for c in h.classes], axis=1)
        # Who has no weight is not there, and of those who are there must be enough.
        known = h.everyone.known & (weight > 0).T
        few = tuple(h.labels.too_few_to_rank(mask, k) for k, mask in enumerate(known))
        weights.append(weight)
        groups.append(dataclasses.replace(h.everyone, attribute=part, name=part, known=known, few=few))
    quick = copy.copy(h)
    quick.estimator = estimates.Estimator(Bootstrap(h.predictions.table["patient_id"].to_numpy(), 1, settings.seed))
    return dict(zip(parts, quick.figures(groups, lambda _: DECOMPOSED, weights), strict=True))


def _parts(metric: str, c: str, home: _Side, abroad: _Side, parts: Mapping[str, list[str]], figures: Mapping[str, Estimate], is_open: bool) -> list[Row]:
    """Rows of one metric of one class: home, abroad, each part with what it explains, and the remainder. figures: of home, weighted, by part."""
    here, there = home.figures[0][1][metric][c], abroad.figures[0][1][metric][c]
    own, other = _among(here, 0, abroad.judged.bootstrap.patients), _among(there, home.judged.bootstrap.patients, 0)

    def row(side: _Side, part: str, by: list[str], figure: Estimate, **keys) -> Row:
        if by and figure.defined and not is_open:
            figure = dataclasses.replace(figure, decimals=DECIMALS).rounded()
        return side.row(metric, c, side.figures[0][0], figure, **keys) | {"part": part, "by": by}

    rows = [row(home, HOME, [], here), row(abroad, ABROAD, [], there)]
    for part, figure in figures.items():
        rows.append(row(home, part, parts[part], figure))
        rows.append(row(home, part, parts[part], estimates.difference(figure, own), effect="difference", reference=HOME))
    rows.append(row(abroad, "remainder", parts["all"], estimates.difference(other, figures["all"]), effect="difference", reference="all"))
    return rows


def _with_mix(metric: str, name: str, h: Judgement, a: Judgement, mix: _Mix, figure: Estimate) -> Estimate:
    """A weighted figure of home with the influence of all patients, home's first, on it and on the mix; see above."""
    if not figure.defined:
        return figure
    c, at = h.classes.index(name), np.flatnonzero(mix.weight > 0)
    positive, weight = h.positive[at, c], mix.weight[at]
    if metric == "auc":
        moves = comparisons.influence(positive, h.scores[at, c][:, None], np.arange(len(at)), weight)[1][:, 0]
    else:
        among, so = (positive, h.calls.called[at, c]) if metric == "sensitivity" else (~positive, ~h.calls.called[at, c])
        moves = weight * among * (so - figure.value) / (weight @ among)
    g, of_home, of_abroad = np.zeros(len(mix.weight)), np.zeros(len(mix.weight)), np.zeros(len(a.known))
    g[at], of_home[at] = moves / weight, moves
    for here, there in mix.depths:
        inside, like = here >= 0, there >= 0
        size = int(here.max()) + 1  # the cells used have images in both
        mine, theirs = np.bincount(here[inside], minlength=size), np.bincount(there[like], minlength=size)
        mean = np.bincount(here[inside], g[inside], minlength=size) / np.maximum(mine, 1)
        of_home[inside] -= (mean * theirs / np.maximum(mine, 1))[here[inside]]
        of_abroad[like] = mean[there[like]]
    theirs = np.flatnonzero(a.known[:, a.classes.index(name)])

    def influence():
        return np.concatenate([h.estimator.by_patient(at, of_home[at]), a.estimator.by_patient(theirs, of_abroad[theirs])])

    return dataclasses.replace(figure, replicates=None, influence=functools.cache(influence))


def _coverage(row: Row, mix: _Mix | None, h: Judgement, name: str, is_open: bool) -> dict[str, Any]:
    """covered, effective and reason of a row; what is not open in numbers so round that those left out may be none, or many."""
    if mix is None:
        return dict.fromkeys(("covered", "effective"))
    at = np.flatnonzero(mix.weight > 0)
    covered, effective = mix.covered, estimates.count(h.patient[at], mix.weight[at])
    if not is_open:
        ample = mix.of / (2 * h.settings.min_patients)
        covered, effective = round(covered, min(2, max(0, int(np.log10(max(ample, 1)))))), int(float(f"{effective:.2g}"))
    low = f"{100 * covered:.0f} % of the images in {name} have their like at home in all of these, the rest in fewer" if covered < MOST else ""
    told = "" if is_open or row["value"] is None else f"rounded to {DECIMALS} decimals {h.lest_few_show}"
    return {"covered": covered, "effective": effective, "reason": "; ".join(filter(None, (row["reason"], low, told))) or None}
