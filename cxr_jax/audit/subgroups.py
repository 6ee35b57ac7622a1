"""The audit: every figure of `audit.json`, overall and by group, with its interval, its n, and what may not be shown.

`audit` takes the predictions and the config's `audit` section and gives tidy rows, each with the keys of `KEYS`:

    metric      auc, average_precision, accuracy, brier; auc_ceiling and auc_difference (model - ceiling) where the
                data's truth is known; and as curves, overall only: roc_tpr, calibration, confusion
    target      name of the target
    class       the class or finding; 'macro': mean over classes; 'all': all classes at once (accuracy of a multiclass
                target). confusion: the true class
    attribute, group    'all', 'all' is everyone; 'missing' is the group of those whose attribute is not recorded
    split
    threshold   roc_tpr: the false-positive rate; calibration: mean score of the bin; accuracy of a finding: 0.5
    reference   auc_difference: 'ceiling'; confusion: the class called
    value, low, high    null where undefined, withheld or suppressed
    level, method       of the interval
    n_images, n_patients, n_positive    whose label is known; n_positive is null where no one class is meant
    suppressed  true: too few patients, and everything that could tell of them is null
    reason      why something is null, or what else must be known; null where there is nothing to say

**Suppression.** A group of fewer than `min_patients` patients is suppressed, and with it as many others of its
attribute as it takes for it not to follow by subtraction (see `suppression`). Numbers of positive images are held to
the same rule, in the table of groups by classes with its totals, but then only n_positive goes: an AUC is no count. Curves go
further, because every step of a small class's ROC curve is one patient: they need `min_patients` patients on both
sides. What a model says of people is not a recorded attribute, so cells of scores and of called classes are not cells
in this sense; bins of scores are nevertheless made so wide that each has `min_patients` patients. Nothing here guards
against subtracting two audits of almost the same people.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from cxr_jax.audit import metrics
from cxr_jax.audit.intervals import Bootstrap, MeanCell, RankedCell, percentile_interval
from cxr_jax.audit.suppression import withhold
from cxr_jax.tables import CEILING, Predictions, Target, UserError

KEYS = (
    "metric", "target", "class", "attribute", "group", "split", "threshold", "reference", "value", "low", "high",
    "level", "method", "n_images", "n_patients", "n_positive", "suppressed", "reason",
)  # fmt: skip
ALL, MACRO, MISSING = "all", "macro", "missing"
FALSE_POSITIVE_RATES = np.arange(51) / 50
CALIBRATION_BINS = 10  # at most
_NO_COUNTS = {"n_images": None, "n_patients": None, "n_positive": None}
CALLED = 0.5  # a finding scored at least this is called present; no choice of threshold, and the row says so

Row = dict[str, Any]


def audit(predictions: Predictions, settings) -> list[Row]:
    """Rows for every split of `settings.splits`, target, metric, class and group; see above.

    settings: the config's `audit` section: attributes, splits, age_bands (lower edges, years), level, replicates, seed,
        min_patients.
    A table without a column `split` is judged as one split, called 'all'.
    Raises UserError for a split without images, and a ceiling that is not a number in [0, 1].
    """
    rows = []
    for split in settings.splits if "split" in predictions.table else (ALL,):
        table = predictions.table
        if "split" in table:
            table = table[table["split"] == split]
        if not len(table):
            raise UserError(f"audit.splits: no image of split {split!r} in the predictions")
        part = dataclasses.replace(predictions, table=table.reset_index(drop=True))
        bootstrap = Bootstrap(part.table["patient_id"].to_numpy(), settings.replicates, settings.seed)
        for name in part.targets:
            rows += _Judgement(part, name, split, settings, bootstrap).rows()
    return rows


def select(rows: Sequence[Mapping[str, Any]], **fields) -> list[Row]:
    """The rows in which every named field has the given value; `class_` stands for `class`.

    select(rows, metric="auc", class_="macro", attribute="all")
    """
    fields = {name.removesuffix("_"): value for name, value in fields.items()}
    unknown = sorted(set(fields) - set(KEYS))
    if unknown:
        raise KeyError(f"no field {unknown[0]!r} in an audit row; there are {', '.join(KEYS)}")
    return [dict(row) for row in rows if all(row[name] == value for name, value in fields.items())]


# --- groups ----------------------------------------------------------------------------------------------------------


def age_band(age: np.ndarray, edges: Sequence[float]) -> np.ndarray:
    """Name of each age's band, object [n]: '20-39' is 20 and more and below 40, '80+' the last; None where unknown."""
    edges = list(edges)
    upper = [f"{high - 1:g}" if float(high).is_integer() else f"<{high:g}" for high in edges[1:]]
    names = [f"{low:g}-{high}" for low, high in zip(edges, upper)] + [f"{edges[-1]:g}+"]
    names = [f"below {edges[0]:g}", *names]
    age = np.asarray(age, np.float64)
    band = np.array(names, object)[np.searchsorted(edges, age, side="right")]
    band[np.isnan(age)] = None
    return band


def groups(
    table: pd.DataFrame, attribute: str, age_bands: Sequence[float], first: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """The groups of an attribute and who is in them, bool [n] each; {} where nothing at all is recorded.

    `age_band` is made from `age` where the table has no such column. A group is a value as recorded; an empty cell
    belongs to 'missing', which comes last. Those in `first` come first, in that order, then the others by name;
    bands by age.
    """
    if attribute in table:
        recorded = table[attribute].to_numpy(object)
    elif attribute == "age_band" and "age" in table:
        recorded = age_band(table["age"].to_numpy(np.float64), age_bands)
        first = list(dict.fromkeys(age_band(np.array([-np.inf, *age_bands]), age_bands)))
    else:
        return {}
    empty = np.asarray(pd.isna(recorded)) | (recorded == "")
    names = np.where(empty, "", recorded.astype(str))
    found = sorted(set(names[~empty].tolist()))
    if not found:
        return {}
    order = [name for name in first if name in found] + [name for name in found if name not in first]
    masks = {name: ~empty & (names == name) for name in order}
    if empty.any():
        masks[MISSING] = empty | masks.get(MISSING, False)
    return masks


# --- one target on one split -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Group:
    """A group and, for each class, whose label is known [n], and what may be shown of them."""

    attribute: str
    name: str
    known: np.ndarray  # bool [classes, n]
    suppressed: tuple[str, ...]  # by class: why, or ''
    any_suppressed: str  # the same for all images with any label
    hidden_positives: np.ndarray  # bool [classes]


@dataclasses.dataclass(frozen=True)
class _Figure:
    value: float
    replicates: np.ndarray | None
    reason: str = ""


class _Judgement:
    """One target on one split. `predictions` holds that split's images alone."""

    def __init__(self, predictions: Predictions, name: str, split: str, settings, bootstrap: Bootstrap):
        self.name, self.split, self.settings, self.bootstrap = name, split, settings, bootstrap
        self.target: Target = predictions.targets[name]
        self.patient = bootstrap.patient
        self.classes = self.target.classes
        self.labels = np.stack([predictions.label(name, c) for c in self.classes], axis=1)  # [n, classes]
        self.known = ~np.isnan(self.labels)
        self.positive = self.labels == 1
        self.scores = predictions.scores(name)
        self.ceiling = predictions.scores(name, CEILING) if predictions.has_ceiling(name) else None
        if self.ceiling is not None:
            bad = ~((self.ceiling >= 0) & (self.ceiling <= 1))
            if bad.any():
                row, column = np.argwhere(bad)[0]
                image = predictions.table["image_id"].iloc[row]
                raise UserError(
                    f"predictions: image {image!r}, column {CEILING + self.classes[column]!r}:"
                    f" {self.ceiling[row, column]} found, a probability expected"
                )
        self.method = f"patient bootstrap, percentile, {settings.replicates} replicates"
        self.groups, self.absent = self._groups(predictions.table)

    # -- who

    def _patients(self, mask: np.ndarray) -> np.ndarray:
        return np.unique(self.patient[mask])

    def _groups(self, table: pd.DataFrame) -> tuple[list[_Group], list[str]]:
        (everyone,) = self._protected(ALL, {ALL: np.ones(len(table), bool)}, None)
        found, absent = [everyone], []
        for attribute in self.settings.attributes:
            first = self.classes if attribute == self.name else ()
            masks = groups(table, attribute, tuple(self.settings.age_bands), first)
            if masks:
                found += self._protected(attribute, masks, everyone)
            else:
                absent.append(attribute)
        return found, absent

    def _protected(self, attribute: str, masks: dict[str, np.ndarray], everyone: _Group | None) -> list[_Group]:
        """The groups of one attribute with what must be hidden of them; `everyone` is their sum, where they have one."""
        minimum, known = self.settings.min_patients, self.known
        few = f"fewer than {minimum} patients"
        members = list(masks.values())

        def reasons(labelled: np.ndarray) -> list[str]:
            cells = [[self._patients(mask & labelled)] for mask in [*members, np.ones_like(labelled)]]
            total_is_known = np.append(np.zeros(len(members), int), -1)[:, None]
            hidden = withhold(cells, minimum, reluctance=total_is_known, rows_add_up=False)[:-1, 0]
            return [
                "" if not h else few if len(p) < minimum else f"hidden lest a group of {few} be found by subtraction"
                for h, (p,) in zip(hidden, cells)
            ]

        any_label = reasons(known.any(axis=1))
        by_class = [reasons(known[:, c]) for c in range(len(self.classes))]
        # A group that is hidden is hidden for every class: figures by class would otherwise add up to it.
        by_class = [[one or whole for one, whole in zip(column, any_label)] for column in by_class]
        gone = np.array([[bool(reason) for reason in column] for column in by_class]).T  # [groups, classes]

        def hidden_parts(parts: list[np.ndarray], gone: np.ndarray, of_everyone: bool | np.ndarray) -> np.ndarray:
            """bool [groups, parts]: which numbers of images to hide, where a group's parts add up to its n."""
            columns = [*parts, np.any(parts, axis=0)]
            rows = members if everyone is None else [*members, np.ones_like(columns[0])]
            hidden = np.zeros((len(rows), len(columns)), bool)
            hidden[: len(members)] = gone[:, None]
            reluctance = np.zeros(hidden.shape, int)
            reluctance[:, -1] = -1
            if everyone is not None:
                hidden[-1, :-1], reluctance[-1] = of_everyone, -1
            cells = [[self._patients(row & column) for column in columns] for row in rows]
            hidden = withhold(cells, minimum, hidden, reluctance, columns_add_up=everyone is not None)
            return hidden[: len(members), :-1]

        of_everyone = np.zeros(len(self.classes), bool) if everyone is None else everyone.hidden_positives
        if self.target.kind == "multiclass":
            # Classes exclude one another: the positives of all classes add up to the group.
            positives = [known[:, c] & self.positive[:, c] for c in range(len(self.classes))]
            hidden = hidden_parts(positives, gone.all(axis=1), of_everyone)
        else:
            hidden = np.zeros_like(gone)
            for c in range(len(self.classes)):
                both = [known[:, c] & self.positive[:, c], known[:, c] & ~self.positive[:, c]]
                hidden[:, c] = hidden_parts(both, gone[:, c], of_everyone[c]).any(axis=1)
        return [
            _Group(attribute, name, (known & mask[:, None]).T, tuple(c[g] for c in by_class), any_label[g], hidden[g])
            for g, (name, mask) in enumerate(masks.items())
        ]

    # -- rows

    def rows(self) -> list[Row]:
        rows = []
        figures = self._figures()
        for group in self.groups:
            for metric in self._metrics(group):
                of_class = figures[metric, group.attribute, group.name]
                threshold = CALLED if metric == "accuracy" and self.target.kind == "multilabel" else None
                reference = "ceiling" if metric == "auc_difference" else None
                for name, figure in of_class.items():
                    c = self.classes.index(name) if name in self.classes else None
                    rows.append(self._row(metric, name, group, c, figure, threshold, reference))
        for attribute in self.absent:
            figure = _Figure(np.nan, None, f"no {attribute} is recorded")
            row = self._row("auc", MACRO, self.groups[0], None, figure)
            rows.append(row | {"attribute": attribute, "n_images": 0, "n_patients": 0})
        rows += self._roc() + self._calibration()
        return rows + (self._confusion() if self.target.kind == "multiclass" else [])

    def _metrics(self, group: _Group) -> list[str]:
        if group.attribute == self.name:
            # A group of one true class has no other class to be told from; how often it is called right remains.
            return ["accuracy", "brier"]
        ceiling = ["auc_ceiling", "auc_difference"] if self.ceiling is not None else []
        return ["auc", "average_precision", "accuracy", "brier", *ceiling]

    def _figures(self) -> dict[tuple[str, str, str], dict[str, _Figure]]:
        """By metric, attribute and group: the figure of each class, of 'macro' or of 'all'."""
        figures: dict[tuple[str, str, str], dict[str, _Figure]] = {}
        asked: dict[str, list] = {"auc": [], "auc_ceiling": [], "mean": []}  # (key, class, cell)
        for group in self.groups:
            wanted = self._metrics(group)
            for c, name in enumerate(self.classes):
                if group.suppressed[c]:
                    continue
                rows = np.flatnonzero(group.known[c])
                positive, score = self.positive[rows, c], self.scores[rows, c]
                where = (group.attribute, group.name)
                if "auc" in wanted:
                    asked["auc"].append((where, name, RankedCell(rows, positive, score)))
                if "auc_ceiling" in wanted:
                    asked["auc_ceiling"].append((where, name, RankedCell(rows, positive, self.ceiling[rows, c])))
                asked["mean"].append((("brier", *where), name, MeanCell(rows, (score - positive) ** 2)))
                if self.target.kind == "multilabel":
                    asked["mean"].append((("accuracy", *where), name, MeanCell(rows, (score >= CALLED) == positive)))
            if self.target.kind == "multiclass" and not group.any_suppressed:
                rows = np.flatnonzero(group.known[0])
                right = self._called()[rows] == self.positive[rows].argmax(axis=1)
                asked["mean"].append((("accuracy", group.attribute, group.name), ALL, MeanCell(rows, right)))

        def put(metric, where, name, value, replicates, reason=""):
            figures.setdefault((metric, *where), {})[name] = _Figure(value, replicates, reason)

        ranked = asked["auc"] + asked["auc_ceiling"]
        auc, precision = self.bootstrap.ranking([cell for *_, cell in ranked])
        for k, (where, name, cell) in enumerate(ranked):
            reason = _one_class(cell.positive)
            value = metrics.auc(cell.positive, cell.score)
            if k >= len(asked["auc"]):
                put("auc_ceiling", where, name, value, auc[k], reason)
                own = figures["auc", *where][name]
                put("auc_difference", where, name, own.value - value, own.replicates - auc[k], reason)
                continue
            put("auc", where, name, value, auc[k], reason)
            if cell.positive.all() and len(cell.rows):
                reason = "every image is positive: 1 whatever the scores"
            value = metrics.average_precision(cell.positive, cell.score)
            put("average_precision", where, name, value, precision[k], reason)
        means = self.bootstrap.means([cell for *_, cell in asked["mean"]])
        for k, ((metric, *where), name, cell) in enumerate(asked["mean"]):
            reason = "" if len(cell.rows) else "no image with a known label"
            put(metric, where, name, metrics.mean(cell.value), means[k], reason)

        for group in self.groups:
            for metric in self._metrics(group):
                of_class = figures.setdefault((metric, group.attribute, group.name), {})
                whole = metric == "accuracy" and self.target.kind == "multiclass"
                for c, name in enumerate(() if whole else self.classes):
                    of_class.setdefault(name, _Figure(np.nan, None, group.suppressed[c]))
                if whole:
                    of_class.setdefault(ALL, _Figure(np.nan, None, group.any_suppressed))
                else:
                    in_order = {name: of_class[name] for name in self.classes}
                    in_order[MACRO] = self._macro(list(in_order.values()), group)
                    figures[metric, group.attribute, group.name] = in_order
        return figures

    def _macro(self, of_class: list[_Figure], group: _Group) -> _Figure:
        """The plain mean over classes, replicate by replicate.

        Classes that exclude one another belong together: one undefined, and the mean is. Findings do not: the mean is
        over those that are defined, and says how many.
        """
        if group.any_suppressed:
            return _Figure(np.nan, None, group.any_suppressed)
        left_out = [name for name, figure in zip(self.classes, of_class) if np.isnan(figure.value)]
        used = [figure for figure in of_class if not np.isnan(figure.value)]
        if not used or (left_out and self.target.kind == "multiclass"):
            return _Figure(np.nan, None, f"undefined for {', '.join(left_out)}")
        reason = ""
        if left_out:
            reason = f"mean over {len(used)} of {len(of_class)} classes; left out: {', '.join(left_out)}"
        replicates = np.mean([figure.replicates for figure in used], axis=0)
        return _Figure(float(np.mean([figure.value for figure in used])), replicates, reason)

    def _called(self) -> np.ndarray:
        """The class with the highest score, int [n]; of equal ones the first in the target's order."""
        return self.scores.argmax(axis=1)

    def _row(
        self, metric: str, name: str, group: _Group, c: int | None, figure: _Figure,
        threshold: float | None = None, reference: str | None = None, rows: np.ndarray | None = None,
    ) -> Row:  # fmt: skip
        """One row. c: position of the class, None for 'macro' and 'all'. rows: the images, if not all the group's."""
        why = group.any_suppressed if c is None else group.suppressed[c]
        reasons = [figure.reason]
        counts = dict(_NO_COUNTS)
        low = high = None
        if not why:
            mask = group.known.any(axis=0) if c is None else group.known[c]
            rows = np.flatnonzero(mask) if rows is None else rows
            counts |= {"n_images": len(rows), "n_patients": len(np.unique(self.patient[rows]))}
            if c is not None and metric not in ("calibration", "confusion"):
                if group.hidden_positives[c]:
                    few = f"fewer than {self.settings.min_patients} patients"
                    reasons.append(f"n_positive hidden lest a count of {few} show")
                else:
                    counts["n_positive"] = int(self.positive[rows, c].sum())
            if figure.replicates is not None and not np.isnan(figure.value):
                interval = percentile_interval(figure.replicates, self.settings.level)
                low, high = _or_null(interval.low), _or_null(interval.high)
                reasons.append(interval.reason)
        values = {
            "metric": metric, "target": self.name, "class": name, "attribute": group.attribute, "group": group.name,
            "split": self.split, "threshold": threshold, "reference": reference,
            "value": None if why else _or_null(figure.value), "low": low, "high": high,
            "level": float(self.settings.level), "method": self.method, **counts,
            "suppressed": bool(why), "reason": "; ".join(r for r in reasons if r) or None,
        }  # fmt: skip
        return {key: values[key] for key in KEYS}

    # -- curves, overall

    def _withheld(self, metric: str, c: int, both_sides: bool) -> Row | None:
        """The one row that stands for a curve that cannot be shown or does not exist."""
        everyone, minimum = self.groups[0], self.settings.min_patients
        rows = np.flatnonzero(everyone.known[c])
        positive = self.positive[rows, c]
        sides = [len(self._patients(rows[side])) for side in (positive, ~positive)]
        reason = everyone.suppressed[c]
        if not reason and (both_sides or not len(rows)):
            reason = _one_class(positive)
        if reason:
            return self._row(metric, self.classes[c], everyone, c, _Figure(np.nan, None, reason))
        if any(0 < side < minimum for side in sides) or (not both_sides and everyone.hidden_positives[c]):
            reason = f"the curve would show fewer than {minimum} patients"
            row = self._row(metric, self.classes[c], everyone, c, _Figure(np.nan, None, reason))
            return row | _NO_COUNTS | {"suppressed": True, "reason": reason}
        return None

    def _roc(self) -> list[Row]:
        rows = []
        for c, name in enumerate(self.classes):
            withheld = self._withheld("roc_tpr", c, both_sides=True)
            if withheld:
                rows.append(withheld)
                continue
            at = np.flatnonzero(self.groups[0].known[c])
            cell = RankedCell(at, self.positive[at, c], self.scores[at, c])
            values = metrics.tpr_at_fpr(cell.positive, cell.score, FALSE_POSITIVE_RATES)
            replicates = self.bootstrap.roc(cell, FALSE_POSITIVE_RATES)
            for fpr, value, band in zip(FALSE_POSITIVE_RATES, values, replicates):
                rows.append(self._row("roc_tpr", name, self.groups[0], c, _Figure(value, band), float(fpr), None))
        return rows

    def _calibration(self) -> list[Row]:
        """A row a bin: at most 10 bins of nearly equal counts, fewer where one would have too few patients to show.

        Bins are cut on the images themselves and then held fixed: a replicate reweights the images of a bin.
        """
        rows, cells, pending = [], [], []
        for c, name in enumerate(self.classes):
            withheld = self._withheld("calibration", c, both_sides=False)
            if withheld:
                rows.append(withheld)
                continue
            at = np.flatnonzero(self.groups[0].known[c])
            score, positive = self.scores[at, c], self.positive[at, c]
            for bins in range(CALIBRATION_BINS, 0, -1):
                bin_of = metrics.calibration_bins(score, bins)
                inside = [at[bin_of == b] for b in np.unique(bin_of)]
                if all(len(self._patients(i)) >= self.settings.min_patients for i in inside):
                    break
            for images, x, y in zip(inside, *metrics.calibration(positive, score, bin_of)):
                cells.append(MeanCell(images, self.positive[images, c]))
                pending.append((name, c, images, float(x), float(y)))
        for (name, c, images, x, y), replicates in zip(pending, self.bootstrap.means(cells)):
            rows.append(self._row("calibration", name, self.groups[0], c, _Figure(y, replicates), x, None, images))
        return rows

    def _confusion(self) -> list[Row]:
        everyone, called = self.groups[0], self._called()
        rows, cells, pending = [], [], []
        at = np.flatnonzero(everyone.known[0])
        true = self.positive[at].argmax(axis=1)
        counts = metrics.confusion(true, called[at], len(self.classes))
        for c, name in enumerate(self.classes):
            images = at[true == c]
            for p, predicted in enumerate(self.classes):
                if everyone.suppressed[c] or everyone.hidden_positives[c]:
                    few = f"fewer than {self.settings.min_patients} patients"
                    reason = everyone.suppressed[c] or f"hidden lest a class of {few} show"
                    row = self._row("confusion", name, everyone, c, _Figure(np.nan, None, reason), None, predicted)
                    rows.append(row | _NO_COUNTS | {"suppressed": True, "reason": reason})
                elif not len(images):
                    figure = _Figure(np.nan, None, "no image of this class")
                    rows.append(self._row("confusion", name, everyone, c, figure, None, predicted, images))
                else:
                    cells.append(MeanCell(images, called[images] == p))
                    pending.append((name, c, predicted, images, counts[c, p] / counts[c].sum()))
        for (name, c, predicted, images, value), replicates in zip(pending, self.bootstrap.means(cells)):
            rows.append(self._row("confusion", name, everyone, c, _Figure(value, replicates), None, predicted, images))
        return rows


def _one_class(positive: np.ndarray) -> str:
    if not len(positive):
        return "no image with a known label"
    if positive.all():
        return "one class only: no negative"
    return "" if positive.any() else "one class only: no positive"


def _or_null(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
