"""Every figure of one target on one split, overall and by group, with what may be shown of it: the rows of `audit.json`.

What the rows hold, and what is withheld and why, is said in `subgroups`.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from cxr_jax.audit import estimates, metrics, pooling, thresholds
from cxr_jax.audit.disclosure import ALL, TIMES, Group, Labels, hidden_groups, intersections, masks_of, protected
from cxr_jax.audit.estimates import Estimate
from cxr_jax.audit.intervals import Bootstrap, MeanCell, RankedCell, distinct
from cxr_jax.tables import CEILING, LABEL, TRUE, Predictions, UserError

KEYS = (
    "metric", "target", "class", "attribute", "group", "split", "threshold", "effect", "reference", "value", "low", "high",
    "level", "method", "n_images", "n_patients", "n_positive", "p", "p_bootstrap", "p_holm", "p_by", "family", "suppressed", "reason",
)  # fmt: skip
MACRO = "macro"
FALSE_POSITIVE_RATES = np.arange(51) / 50
CALIBRATION_BINS, CALIBRATION_BINS_OF_A_GROUP = 10, 5  # at most
# Of called images: (which images, what of them), by truth and call.
RATES = {
    "sensitivity": ("positive", "called"),
    "specificity": ("negative", "not called"),
    "false_negative_rate": ("positive", "not called"),
    "false_positive_rate": ("negative", "called"),
    "ppv": ("called", "positive"),
    "npv": ("not called", "negative"),
    "called": ("all", "called"),
    "f1": ("called or positive", "called and positive"),
}
CALIBRATION = ("calibration_in_the_large", "calibration_slope", "ece", "ece_debiased")
RECORDED = ("recorded_if_present", "recorded_if_absent")
OF_INTERSECTIONS = ("auc", "false_positive_rate", "false_negative_rate")
_NO_COUNTS = {"n_images": None, "n_patients": None, "n_positive": None}
CALLED = 0.5  # accuracy of a finding: one scored at least this is called present; no choice of threshold, and the row says so

Row = dict[str, Any]
AS_RECORDED = "recorded_"  # column of what is recorded, where labels are what is true


def judgements(
    predictions: Predictions, split: str, settings, bootstrap: Bootstrap, chosen_on: Predictions | None = None,
    recorded: Predictions | None = None,
) -> list[Judgement]:  # fmt: skip
    """One a target. Where two targets are attributes as well, say race and sex, the numbers of F by race are those of
    the races by sex: what either hides the other has to, and with it perhaps more, until both agree.

    chosen_on: images on which thresholds are chosen, other patients'; None for cross-fitting, by the labels of `recorded`,
    the same images as predictions, where these have others.
    """
    hidden = hidden_groups(predictions, settings, bootstrap.patient)
    crossed: dict[str, set[tuple[str, str, str]]] = {name: set() for name in predictions.targets}
    while True:
        found = [
            Judgement(predictions, name, split, settings, bootstrap, hidden, crossed[name], chosen_on, recorded or predictions)
            for name in predictions.targets
        ]
        cells = [(one.name, cell) for one in found for cell in one.hidden_cells()]
        more = {name: {(of, c, group) for of, (a, group, c) in cells if a == name} for name in crossed}
        if all(more[name] <= crossed[name] for name in crossed):
            return found
        crossed = {name: crossed[name] | more[name] for name in crossed}


ByClass = dict[str, Estimate]


class Judgement:
    """One target on one split.

    predictions: that split's images alone. hidden: as `hidden_groups` has it. crossed: (attribute, group, class) whose
        number of positive images is to be hidden. chosen_on, recorded: as `judgements` has them.
    """

    def __init__(
        self, predictions: Predictions, name: str, split: str, settings, bootstrap: Bootstrap,
        hidden: Mapping[str, set[str]], crossed: Collection[tuple[str, str, str]],
        chosen_on: Predictions | None, recorded: Predictions,
    ):  # fmt: skip
        self.targets, self.predictions, self.chosen_on, self.recorded = predictions.targets, predictions, chosen_on, recorded
        self.name, self.split, self.settings, self.bootstrap = name, split, settings, bootstrap
        self.target = predictions.targets[name]
        self.patient, self.estimator = bootstrap.patient, estimates.Estimator(bootstrap)
        self.classes = self.target.classes
        labels = predictions.labels(name)
        self.known, self.positive = ~np.isnan(labels), labels == 1
        self.labels = Labels(name, self.target, self.known, self.positive, self.patient, settings.min_patients)
        self.scores = predictions.scores(name)
        self.ceiling = predictions.scores(name, CEILING) if predictions.has_ceiling(name) else None
        self._few = self.labels.few
        self._unscored = "a score is missing"
        self.lest_few_show = f"lest a count of {self._few} show"
        self.groups, self.absent = self._groups(predictions, hidden, crossed)
        self.everyone = self.groups[0]

    def _groups(self, predictions: Predictions, hidden, crossed) -> tuple[list[Group], list[str]]:
        rest = {"settings": self.settings, "targets": self.targets, "hidden": hidden, "crossed": crossed}
        (everyone,) = protected(self.labels, ALL, {ALL: np.ones(len(self.known), bool)}, None, **rest)
        found, absent = [everyone], []
        for attribute in self.settings.attributes:
            masks = masks_of(predictions, attribute, self.settings)
            if masks:
                found += protected(self.labels, attribute, masks, everyone, **rest)
            else:
                absent.append(attribute)
        return found, absent

    def hidden_cells(self) -> set[tuple[str, str, str]]:
        """(attribute, group, class) whose number of positive images is hidden, and is not 0."""
        return {
            (group.attribute, group.name, name)
            for group in self.groups
            for c, name in enumerate(self.classes)
            if group.hidden_positives[c] and (group.known[c] & self.positive[:, c]).any()
        }

    @functools.cached_property
    def calls(self) -> thresholds.Calls:
        """Which images are called. Chosen where there is a validation split on its images, else by cross-fitting."""
        # Whoever chooses a threshold has what is recorded, not what is true.
        judged, other = _scored(self.recorded, self.name, self.settings), None
        if self.chosen_on is not None:
            other = _scored(self.chosen_on, self.name, self.settings)
        return thresholds.call(judged, other, self.settings.threshold, self.settings.threshold_by, self.settings.min_patients)

    # -- rows

    def aucs(self, scores: np.ndarray, attribute: str = ALL, name: str = ALL, unscored: str = "") -> list[tuple[Row, Estimate]]:
        """Rows of metric auc, and the figures behind them, of other scores of the same images, in one group.

        scores: float [n, classes]; a class whose column holds a NaN has no AUC, for the reason `unscored`. What is withheld
        is what would be of the scores that this judgement was made with: it does not depend on them. [] for a group that
        there is not.
        """
        other = copy.copy(self)
        other.scores, other.ceiling, other._unscored = scores, None, unscored or self._unscored
        found = []
        for group in (group for group in self.groups if (group.attribute, group.name) == (attribute, name)):
            for of, figure in other.figures([group], lambda _: ("auc",))[0]["auc"].items():
                c = self.classes.index(of) if of in self.classes else None
                found.append((other.row("auc", of, group, c, figure), figure))
        return [({key: row[key] for key in KEYS}, figure) for row, figure in found]

    def empty(self, metric: str, reason: str) -> list[Row]:
        """Rows of a metric, one a class and one for the macro, of a group in which there is nobody."""
        none, nothing = np.zeros_like(self.known.T), np.zeros(len(self.classes), bool)
        nobody = Group("", "", none[0], none, ("",) * len(self.classes), "", nothing, ("",) * len(self.classes))
        rows = [self.row(metric, name, nobody, c, estimates.undefined(reason)) for c, name in [*enumerate(self.classes), (None, MACRO)]]
        return [{key: row[key] for key in KEYS} for row in rows]

    @functools.cached_property
    def of_groups(self) -> list[dict[str, ByClass]]:
        """The figures of `groups`, in their order."""
        return self.figures(self.groups, self._metrics)

    def rows(self) -> list[Row]:
        """Every row of the target, what compares groups and intersections apart."""
        rows = []
        for group, of in zip(self.groups, self.of_groups, strict=True):
            for metric, by_class in of.items():
                reference = "ceiling" if metric == "auc_difference" else None
                rows += self._rows_of(metric, group, by_class, reference=reference)
        for attribute in self.absent:
            row = self.row("auc", MACRO, self.everyone, None, estimates.undefined(f"no {attribute} is recorded"))
            rows.append(row | {"attribute": attribute, "n_images": 0, "n_patients": 0})
        rows += self._roc() + self._calibration()
        return rows + (self._confusion() if self.target.kind == "multiclass" else [])

    def intersections(self, hidden: Collection[tuple[str, str]]) -> list[Group]:
        """The cells of the intersections that settings.intersections names. hidden: (attribute, group) of cells to hide.

        Where several targets are judged, their tables tell of one another's cells by way of those that are attributes too;
        these then have no part in intersections, neither as a target nor as an attribute.
        """
        singles: dict[str, list[Group]] = {}
        for group in self.groups[1:]:
            singles.setdefault(group.attribute, []).append(group)
        both = [name for name in self.targets if name in singles] if len(self.targets) > 1 else [self.name]
        usable = set(singles) - set(both)
        if len(self.targets) > 1 and self.name in both:
            return []
        names = [name for name in self.settings.intersections if set(name.split(TIMES)) <= usable]
        return intersections(self.labels, self.everyone, singles, names, hidden)

    def of_intersections(self, cells: Sequence[Group]) -> list[Row]:
        """Rows of intersections, as they are and shrunk. `rows` comes first, which finds out what a macro is over."""
        rows, found = [], self.figures(cells, lambda _: OF_INTERSECTIONS)
        for name in dict.fromkeys(cell.attribute for cell in cells):
            here = [(cell, of) for cell, of in zip(cells, found, strict=True) if cell.attribute == name]
            for metric in OF_INTERSECTIONS:
                for cell, of in here:
                    rows += self._rows_of(metric, cell, of[metric])
                for c, class_name in enumerate(self.classes):
                    shown = [(cell, of[metric][class_name]) for cell, of in here if not cell.suppressed[c]]
                    parts = [cell.name.split(f" {TIMES} ") for cell, _ in shown]
                    pooled = pooling.shrink([one for _, one in shown], parts, self.settings.level)
                    for (cell, one), moved in zip(shown, pooled, strict=True):
                        if one.defined:
                            rows.append(self._pooled_row(metric, class_name, cell, c, moved))
        return rows

    def _pooled_row(self, metric: str, name: str, cell: Group, c: int, moved: pooling.Shrunk) -> Row:
        threshold = self.threshold(metric, cell, c)
        row = self.row(metric, name, cell, c, Estimate(moved.value, reason=moved.reason), threshold=threshold, effect="shrunk")
        return row | {"low": or_null(moved.low), "high": or_null(moved.high), "method": pooling.METHOD}

    def _rows_of(self, metric: str, group: Group, by_class: ByClass, **keys) -> list[Row]:
        rows = []
        for name, figure in by_class.items():
            c = self.classes.index(name) if name in self.classes else None
            rows.append(self.row(metric, name, group, c, figure, threshold=self.threshold(metric, group, c), **keys))
        return rows

    def threshold(self, metric: str, group: Group, c: int | None) -> float | None:
        if metric == "accuracy":
            return CALLED if self.target.kind == "multilabel" else None
        if c is None or metric not in (*RATES, "equalised_odds"):
            return None
        used = np.unique(self.calls.threshold[group.known[c], c])
        return or_null(used[0]) if len(used) == 1 else None

    def _metrics(self, group: Group) -> tuple[str, ...]:
        if group.attribute == self.name:
            # A group of one true class has no other class to be told from; how often it is called right remains.
            return ("accuracy", "brier")
        ceiling = ("auc_ceiling", "auc_difference") if self.ceiling is not None else ()
        # Recorded by true are cells that no total protects: of open data alone, which all that are drawn are.
        known = self.predictions.open_data and any(TRUE + c in self.predictions.table for c in self.classes)
        truth = RECORDED if known else ()
        return ("auc", "average_precision", "accuracy", "brier", *ceiling, *RATES, *CALIBRATION, *truth)

    # -- figures

    def figures(self, groups: Sequence[Group], wanted, weights: Sequence[np.ndarray] = ()) -> list[dict[str, ByClass]]:
        """For each group, by metric, the figure of each class, of 'macro' or of 'all'.

        wanted: group -> its metrics. weights: of each group float64 [n, classes], above 0 where its labels are known, or none
        at all; for the metrics of `gaps.COMPARED` alone.
        """
        groups, everyones = list(groups), [g for g in groups if g.attribute == ALL]
        figures: list[dict[str, ByClass]] = [{metric: {} for metric in wanted(group)} for group in groups]
        ranked, averaged = [], []  # (group's number, metric, class, cell, keywords of the Estimate)
        for g, group in enumerate(groups):
            for c, name in enumerate(self.classes):
                for metric in figures[g]:
                    if metric == "accuracy" and self.target.kind == "multiclass":
                        continue
                    figures[g][metric][name] = estimates.undefined(self._withheld_here(metric, group, c))
                if group.suppressed[c]:
                    continue
                rows = np.flatnonzero(group.known[c])
                if np.isnan(self.scores[rows, c]).any():
                    for metric in figures[g]:
                        figures[g][metric][name] = estimates.undefined(self._unscored)
                    continue
                self._cells(g, group, c, rows, figures[g], ranked, averaged, weights[g][rows, c] if weights else None)
            if "accuracy" in figures[g] and self.target.kind == "multiclass":
                figures[g]["accuracy"][ALL] = estimates.undefined(group.any_suppressed)
                if not group.any_suppressed:
                    rows = np.flatnonzero(group.known[0])
                    right = self._called()[rows] == self.positive[rows].argmax(axis=1)
                    averaged.append((g, "accuracy", ALL, MeanCell(rows, right), {"scale": "share"}))

        found = self.estimator.rank([cell for *_, cell in ranked])
        for (g, metric, name, cell), both in zip(ranked, found, strict=True):
            self._rank(figures[g], metric, name, cell, both, self._decimals(groups[g], self.classes.index(name)))
        found = self.estimator.means([cell for *_, cell, _ in averaged])
        for (g, metric, name, cell, keywords), mean in zip(averaged, found, strict=True):
            decimals = self._decimals(groups[g], self.classes.index(name)) if metric == "brier" else None
            reason = "" if len(cell.rows) else "no image with a known label"
            figures[g][metric][name] = dataclasses.replace(mean, **{"reason": reason, "decimals": decimals, **keywords}).rounded()
        self._calibration_errors([(group, of) for group, of in zip(groups, figures, strict=True) if "ece" in of])
        # A group's macro is over the classes that everyone's is over.
        whole = self._everyones(figures[groups.index(everyones[0])]) if everyones else self._whole
        self._whole = whole
        for g, group in enumerate(groups):
            for metric in ("auc", "average_precision", "brier", "auc_ceiling", "auc_difference"):
                if metric in figures[g]:
                    figures[g][metric][MACRO] = self._macro(figures[g][metric], whole.get(metric, figures[g][metric]), group)
        return figures

    _whole: Mapping[str, ByClass] = {}

    @staticmethod
    def _everyones(figures: Mapping[str, ByClass]) -> dict[str, ByClass]:
        """Whether each class has a figure, without what it takes much memory to keep."""
        return {
            metric: {name: dataclasses.replace(one, replicates=None, influence=None) for name, one in of.items()}
            for metric, of in figures.items()
        }

    def _withheld_here(self, metric: str, group: Group, c: int) -> str:
        """Why a metric of a class is not there, unless it is put there later."""
        if metric == "called":
            return group.suppressed[c]
        return group.suppressed[c] or group.few[c] or f"hidden {self.lest_few_show}"

    def _cells(
        self, g: int, group: Group, c: int, rows: np.ndarray, wanted, ranked: list, averaged: list, weight: np.ndarray | None
    ) -> None:  # fmt: skip
        """Appends what is to be ranked and averaged of a class in a group that is not suppressed. weight: of the rows."""
        name, positive, score = self.classes[c], self.positive[rows, c], self.scores[rows, c]
        shows_positives = not group.hidden_positives[c]
        if not group.few[c]:
            if "auc" in wanted:
                ranked.append((g, "auc", name, RankedCell(rows, positive, score, weight)))
            if "auc_ceiling" in wanted:
                ranked.append((g, "auc_ceiling", name, RankedCell(rows, positive, self.ceiling[rows, c])))
            if "brier" in wanted:
                averaged.append((g, "brier", name, MeanCell(rows, (score - positive) ** 2), {}))
        if "accuracy" in wanted and self.target.kind == "multilabel" and shows_positives:
            averaged.append((g, "accuracy", name, MeanCell(rows, (score >= CALLED) == positive), {"scale": "share"}))
        if "calibration_in_the_large" in wanted and shows_positives:
            averaged.append((g, "calibration_in_the_large", name, MeanCell(rows, score - positive, weight), {}))
        for metric in (metric for metric in RATES if metric in wanted and (shows_positives or metric == "called")):
            self._rate(g, metric, group, c, rows, averaged, weight)
        for metric in (metric for metric in RECORDED if metric in wanted and shows_positives):
            if TRUE + name not in self.predictions.table:
                averaged.append((g, metric, name, MeanCell(rows[:0], positive[:0]), {"reason": "its truth is not known"}))
                continue
            truth = self.predictions.table[TRUE + name].to_numpy(np.float64, na_value=np.nan)
            rows = rows[~np.isnan(truth[rows])]
            present = truth[rows] == 1
            table = self.predictions.table
            recorded = table[AS_RECORDED + name if AS_RECORDED + name in table else LABEL + name].to_numpy(np.float64)[rows] == 1
            self._share(g, metric, name, rows, present if metric == RECORDED[0] else ~present, recorded, averaged, "are so")

    def _rate(self, g: int, metric: str, group: Group, c: int, rows: np.ndarray, averaged: list, weight: np.ndarray | None) -> None:
        positive, called = self.positive[rows, c], self.calls.called[rows, c]
        if self.calls.reasons[c] and np.isnan(self.calls.threshold[rows, c]).any():
            averaged.append((g, metric, self.classes[c], MeanCell(rows[:0], positive[:0]), {"reason": self.calls.reasons[c]}))
            return
        sets = {
            "positive": positive, "negative": ~positive, "called": called, "not called": ~called, "all": np.ones(len(rows), bool),
            "called or positive": called | positive, "called and positive": called & positive,
        }  # fmt: skip
        of, what = RATES[metric]
        told = "have a known label" if of == "all" else f"are {of}"
        self._share(g, metric, self.classes[c], rows, sets[of], sets[what], averaged, told, self.calls.how, weight)

    def _share(
        self, g: int, metric: str, name: str, rows: np.ndarray, among: np.ndarray, so: np.ndarray, averaged: list, told: str,
        how: str = "", weight: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        """Appends the share that is `so` of the images in `among`; withheld where these are of too few patients."""
        keywords = {"scale": "" if metric == "f1" else "share", "how": how}
        few = len(self.labels.patients(rows[among]))
        if few < self.settings.min_patients:
            keywords["reason"] = f"no image: none {told}" if not few else f"withheld: {self._few} {told}"
            among = np.zeros_like(among)
        # F1 = 2 TP / (2 TP + FP + FN): a mean over what is called or positive, in which true positives count twice.
        weight = 1.0 + so[among] if metric == "f1" else None if weight is None else weight[among]
        averaged.append((g, metric, name, MeanCell(rows[among], so[among], weight), keywords))

    def _rank(self, figures, metric: str, name: str, cell: RankedCell, both: tuple[Estimate, Estimate], decimals: int | None) -> None:
        reason = _one_class(cell.positive)
        auc, precision = (dataclasses.replace(one, reason=reason, decimals=decimals).rounded() for one in both)
        figures[metric][name] = auc
        if metric == "auc_ceiling":
            figures["auc_difference"][name] = dataclasses.replace(estimates.difference(figures["auc"][name], auc), reason=reason)
        elif "average_precision" in figures:
            if cell.positive.all() and len(cell.rows):
                precision = dataclasses.replace(precision, reason="every image is positive: 1 whatever the scores")
            figures["average_precision"][name] = precision

    def _calibration_errors(self, several: Sequence[tuple[Group, Mapping[str, ByClass]]]) -> None:
        places, asked = [], []
        for group, figures in several:
            for c, name in enumerate(self.classes):
                in_the_large = figures["calibration_in_the_large"][name]
                if not in_the_large.defined:
                    for metric in ("ece", "ece_debiased", "calibration_slope"):
                        figures[metric][name] = in_the_large
                    continue
                rows = np.flatnonzero(group.known[c])
                everyones = self.scores[self.everyone.known[c], c]
                bins = metrics.calibration_bins(everyones, CALIBRATION_BINS, self.scores[rows, c])
                places.append((figures, name))
                asked.append((rows, self.positive[rows, c], self.scores[rows, c], bins))
        for (figures, name), found in zip(places, self.estimator.calibration(asked), strict=True):
            for metric, figure in found.items():
                figures[metric][name] = figure

    def _decimals(self, group: Group, c: int) -> int | None:
        """To how many decimals, 3 at most, a metric of ranks is rounded for a hidden number of positives; None: not.

        Where it is shown, m patients or more of n images are positive, and as many negative. Rounding leaves the pairs
        won open by 10**-decimals x positives x negatives. Pairs come in halves; so each number of positives will do if
        that is 1/2 at least, as it is if 2 m (n - m) has more than `decimals` digits.
        """
        if not group.hidden_positives[c]:
            return None
        least, images = self.settings.min_patients, int(group.known[c].sum())
        return min(3, len(str(2 * least * (images - least))) - 1)

    def _macro(self, of_class: ByClass, of_everyone: ByClass, group: Group) -> Estimate:
        """The plain mean over classes, replicate by replicate.

        Classes that exclude one another belong together: one undefined, and the mean is. Findings do not: everyone's
        mean is over those that are defined, and says which. A group's is over the same, or it could not be compared.
        """
        if group.any_suppressed:
            return estimates.undefined(group.any_suppressed)
        used = [name for name in self.classes if of_everyone[name].defined]
        if self.target.kind == "multiclass" or not used:
            used = list(self.classes)
        lacking = [name for name in used if not of_class[name].defined]
        if lacking:
            hidden = {n for c, n in enumerate(self.classes) if group.suppressed[c] or group.hidden_positives[c]}
            why = {"undefined": [], "withheld": []}
            for name in lacking:
                why["withheld" if name in hidden else "undefined"].append(name)
            reason = "; ".join(f"{word} for {', '.join(names)}" for word, names in why.items() if names)
            if all(of_class[name].reason == self._unscored for name in lacking):
                reason = self._unscored
            return estimates.undefined(reason)
        reason = ""
        if len(used) < len(self.classes):
            left_out = [name for name in self.classes if name not in used]
            reason = f"mean over {len(used)} of {len(self.classes)} classes; left out: {', '.join(left_out)}"
        return estimates.mean([of_class[name] for name in used], reason)

    @property
    def is_binary(self) -> bool:
        return self.target.kind == "multiclass" and len(self.classes) == 2 and bool(np.allclose(self.scores.sum(axis=1), 1, atol=1e-6))

    def _called(self) -> np.ndarray:
        """The class with the highest score, int [n]; of equal ones the first in the target's order."""
        return self.scores.argmax(axis=1)

    # -- one row

    def row(
        self, metric: str, name: str, group: Group, c: int | None, figure: Estimate,
        threshold: float | None = None, effect: str | None = None, reference: str | None = None, rows: np.ndarray | None = None,
    ) -> Row:  # fmt: skip
        """One row. c: position of the class, None for 'macro' and 'all'. rows: the images, if not all the group's."""
        why = group.any_suppressed if c is None else group.suppressed[c]
        reasons, method = [figure.reason], self._default_method
        counts = dict(_NO_COUNTS)
        low = high = None
        if not why:
            mask = group.known.any(axis=0) if c is None else group.known[c]
            rows = np.flatnonzero(mask) if rows is None else rows
            counts |= {"n_images": len(rows), "n_patients": len(distinct(self.patient[rows]))}
            if c is not None and metric not in ("calibration", "confusion"):
                if not group.hidden_positives[c]:
                    counts["n_positive"] = int(self.positive[rows, c].sum())
                elif figure.defined:
                    rounded = "" if figure.decimals is None else f" and the rest rounded to {figure.decimals} decimals"
                    reasons.append(f"n_positive hidden{rounded} {self.lest_few_show}")
            if figure.defined and figure.no_interval and effect != "range":
                reasons.append(figure.no_interval)
            elif figure.defined and (figure.replicates is not None or figure.influence is not None):
                low, high, method, reason = estimates.interval(figure, self.settings.level, self.settings.interval)
                low, high = or_null(low), or_null(high)
                reasons.append(reason)
        if figure.how:
            method = f"{method}; threshold {figure.how}, held fixed"
        values = {
            "metric": metric, "target": self.name, "class": name, "attribute": group.attribute, "group": group.name,
            "split": self.split, "threshold": threshold, "effect": effect, "reference": reference,
            "value": None if why else or_null(figure.value), "low": low, "high": high,
            "level": float(self.settings.level), "method": method, **counts,
            "p": None, "p_bootstrap": None, "p_holm": None, "p_by": None, "family": None,
            "suppressed": bool(why), "reason": "; ".join(r for r in reasons if r) or None,
        }  # fmt: skip
        return {key: values[key] for key in KEYS} | {"mirrored": None}

    @property
    def _default_method(self) -> str:
        return f"patient bootstrap, {self.settings.interval}, {self.settings.replicates} replicates"

    # -- curves

    def _withheld(self, metric: str, c: int, both_sides: bool) -> Row | None:
        """The one row that stands for a curve that cannot be shown or does not exist."""
        everyone = self.everyone
        positive = self.positive[everyone.known[c], c]
        if not everyone.suppressed[c] and everyone.hidden_positives[c]:
            reason = f"the curve would show {self._few}"
            row = self.row(metric, self.classes[c], everyone, c, estimates.undefined(reason))
            return row | _NO_COUNTS | {"suppressed": True}
        reason = everyone.suppressed[c] or (_one_class(positive) if both_sides or not len(positive) else "")
        return self.row(metric, self.classes[c], everyone, c, estimates.undefined(reason)) if reason else None

    def _roc(self) -> list[Row]:
        rows = []
        for c, name in enumerate(self.classes):
            withheld = self._withheld("roc_tpr", c, both_sides=True)
            if withheld:
                rows.append(withheld)
                continue
            at = np.flatnonzero(self.everyone.known[c])
            cell = RankedCell(at, self.positive[at, c], self.scores[at, c])
            values = metrics.tpr_at_fpr(cell.positive, cell.score, FALSE_POSITIVE_RATES)
            replicates = self.bootstrap.roc(cell, FALSE_POSITIVE_RATES)
            sides = min(len(distinct(self.patient[at[cell.positive == side]])) for side in (True, False))
            for fpr, value, band in zip(FALSE_POSITIVE_RATES, values, replicates):
                figure = Estimate(float(value), band, patients=sides, images=len(at))
                rows.append(self.row("roc_tpr", name, self.everyone, c, figure, float(fpr)))
        return rows

    def _calibration(self) -> list[Row]:
        """A row a bin: at most 10 bins of nearly equal counts, 5 of a group, fewer where one would have too few patients.

        Bins are cut on the images themselves and then held fixed: a replicate reweights the images of a bin.
        """
        rows, cells, pending = [], [], []
        for group in self.groups:
            for c, name in enumerate(self.classes):
                if group is self.everyone:
                    withheld = self._withheld("calibration", c, both_sides=False)
                    if withheld:
                        rows.append(withheld)
                        continue
                elif group.attribute == self.name or group.suppressed[c] or group.hidden_positives[c]:
                    continue  # the table of its figures says why
                at = np.flatnonzero(group.known[c])
                score, positive = self.scores[at, c], self.positive[at, c]
                if not len(at):
                    continue
                for bins in range(CALIBRATION_BINS if group is self.everyone else CALIBRATION_BINS_OF_A_GROUP, 0, -1):
                    bin_of = metrics.calibration_bins(score, bins)
                    inside = [at[bin_of == b] for b in np.unique(bin_of)]
                    if all(len(distinct(self.patient[i])) >= self.settings.min_patients for i in inside):
                        break
                for images, x, _ in zip(inside, *metrics.calibration(positive, score, bin_of)):
                    cells.append(MeanCell(images, self.positive[images, c]))
                    pending.append((name, group, c, images, float(x)))
        for (name, group, c, images, x), figure in zip(pending, self.estimator.means(cells, "share"), strict=True):
            rows.append(self.row("calibration", name, group, c, figure, x, rows=images))
        return rows

    def _confusion(self) -> list[Row]:
        everyone, called = self.everyone, self._called()
        rows, cells, pending = [], [], []
        at = np.flatnonzero(everyone.known[0])
        true = self.positive[at].argmax(axis=1)
        for c, name in enumerate(self.classes):
            images = at[true == c]
            for p, predicted in enumerate(self.classes):
                if everyone.suppressed[c] or everyone.hidden_positives[c]:
                    reason = everyone.suppressed[c] or f"hidden lest a class of {self._few} show"
                    row = self.row("confusion", name, everyone, c, estimates.undefined(reason), reference=predicted)
                    rows.append(row | _NO_COUNTS | {"suppressed": True})
                elif not len(images):
                    figure = estimates.undefined("no image of this class")
                    rows.append(self.row("confusion", name, everyone, c, figure, reference=predicted, rows=images))
                else:
                    cells.append(MeanCell(images, called[images] == p))
                    pending.append((name, c, predicted))
        for (name, c, predicted), cell, figure in zip(pending, cells, self.estimator.means(cells, "share"), strict=True):
            rows.append(self.row("confusion", name, everyone, c, figure, reference=predicted, rows=cell.rows))
        return rows


def _scored(predictions: Predictions, target: str, settings) -> thresholds.Scored:
    labels, table = predictions.labels(target), predictions.table
    by = settings.threshold_by
    strata = np.zeros(len(table), object)
    masks = masks_of(predictions, by, settings) if by else {}
    if by and not masks:
        raise UserError(f"config.audit.threshold_by: no {by} is recorded")
    for name, mask in masks.items():
        strata[mask] = name
    return thresholds.Scored(labels == 1, ~np.isnan(labels), predictions.scores(target), table["patient_id"].to_numpy(str), strata.astype(str))


def _one_class(positive: np.ndarray) -> str:
    if not len(positive):
        return "no image with a known label"
    if positive.all():
        return "one class only: no negative"
    return "" if positive.any() else "one class only: no positive"


def or_null(value: float) -> float | None:
    """The value, None where it is NaN, for which JSON has no word."""
    return None if np.isnan(value) else float(value)
