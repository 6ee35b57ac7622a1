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
    n_images, n_patients, n_positive    whose label is known. n_positive is null for 'macro' and 'all', in calibration
                and confusion (whose n is of the bin, or of the true class), and where it is hidden
    suppressed  true: value and all counts of the row are null, lest they tell of too few patients. Where n_images is
                shown it is false, though value or n_positive may be null for that same cause, which `reason` gives
    reason      why something is null, or what else must be known; null where there is nothing to say

Accuracy of a class is the share called rightly; the Brier score (1950) is the mean squared distance of its score from
the truth, one class against the rest, and its macro for exclusive classes is Brier's own sum by their number.

**Suppression.** A group of fewer than `min_patients` patients is suppressed, and with it as many others of its
attribute as it takes for it not to follow by subtraction (see `suppression`). That is decided on all rows of a split
first and holds for every target, since what one target shows another would hide in vain; a target hides more where
labels are unknown. Numbers of positive images are held to the same rule, in the table of groups by classes with its
totals. Metrics of ranks tell them too: AUC x positives x negatives counts the pairs won, in halves, and one positive's
AUC is its rank. So AUC, average precision, of model and ceiling, and Brier score are withheld where fewer than
`min_patients` patients are positive, or negative; and where n_positive is hidden for another's sake they are rounded,
the AUC until every number of positives would do (see `_decimals`), the others alike. Curves, whose every step is a
patient, go wherever n_positive does, and so does the accuracy of a finding: where it is never called, errors are its
positives.
What a model says of people is not a recorded attribute, so cells of scores and of called classes are not cells in this
sense; bins of scores are nevertheless made so wide that each has `min_patients` patients. Nothing here guards against
subtracting two audits of almost the same people.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from cxr_jax.audit import metrics
from cxr_jax.audit.intervals import Bootstrap, MeanCell, RankedCell, percentile_interval, wilson
from cxr_jax.audit.suppression import withhold
from cxr_jax.tables import CEILING, IDENTIFIERS, Predictions, Target, UserError

KEYS = (
    "metric", "target", "class", "attribute", "group", "split", "threshold", "reference", "value", "low", "high",
    "level", "method", "n_images", "n_patients", "n_positive", "suppressed", "reason",
)  # fmt: skip
ALL, MACRO, MISSING = "all", "macro", "missing"
FALSE_POSITIVE_RATES = np.arange(51) / 50
CALIBRATION_BINS = 10  # at most
SHARES = ("accuracy", "calibration", "confusion")  # means of values that are 0 or 1
_NO_COUNTS = {"n_images": None, "n_patients": None, "n_positive": None}
CALLED = 0.5  # a finding scored at least this is called present; no choice of threshold, and the row says so

Row = dict[str, Any]


def audit(predictions: Predictions, settings) -> list[Row]:
    """Rows for every split of `settings.splits`, target, metric, class and group; see above.

    predictions: such as pass `Predictions.check`.
    settings: the config's `audit` section: attributes, splits, age_bands (lower edges, years), level, replicates, seed,
        min_patients.
    A table without a column `split` is judged as one split, called 'all'.
    Raises UserError for a split without images, and for an attribute that says which image or patient.
    """
    check_attributes(settings.attributes)
    rows = []
    for split in settings.splits if "split" in predictions.table else (ALL,):
        table = predictions.table
        if "split" in table:
            table = table[table["split"] == split]
        if not len(table):
            raise UserError(f"audit.splits: no image of split {split!r} in the predictions")
        part = dataclasses.replace(predictions, table=table.reset_index(drop=True))
        bootstrap = Bootstrap(part.table["patient_id"].to_numpy(), settings.replicates, settings.seed)
        for judgement in judgements(part, split, settings, bootstrap):
            rows += judgement.rows()
    return rows


def check_attributes(attributes: Sequence[str]) -> None:
    """Raises UserError for one that says which image or which patient, and so makes no groups."""
    for attribute in attributes:
        if attribute in IDENTIFIERS:
            raise UserError(f"config.audit.attributes: {attribute} says which image or patient, and makes no groups")


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
        recorded = age_band(table["age"].to_numpy(np.float64, na_value=np.nan), age_bands)
        first = list(dict.fromkeys(age_band(np.array([-np.inf, *age_bands]), age_bands)))
    else:
        return {}
    names = np.where(pd.isna(recorded), "", recorded).astype(str)
    empty = names == ""
    found = sorted(set(names[~empty].tolist()))
    if not found:
        return {}
    order = [name for name in first if name in found] + [name for name in found if name not in first]
    masks = {name: ~empty & (names == name) for name in order}
    if empty.any():
        masks[MISSING] = empty | masks.get(MISSING, False)
    return masks


def _masks(predictions: Predictions, attribute: str, settings) -> dict[str, np.ndarray]:
    """`groups` of an attribute; where it is itself a target, in the order of its classes."""
    first = predictions.targets[attribute].classes if attribute in predictions.targets else ()
    return groups(predictions.table, attribute, tuple(settings.age_bands), first)


def hidden_groups(predictions: Predictions, settings, patient: np.ndarray) -> dict[str, set[str]]:
    """By attribute of `settings`, the groups that every target must hide, whatever labels it knows. patient: int [n]."""
    masks = {attribute: _masks(predictions, attribute, settings) for attribute in settings.attributes}
    return {a: _too_few(masks[a], patient, settings, a in predictions.targets) for a in settings.attributes}


def _too_few(
    masks: Mapping[str, np.ndarray], patient: np.ndarray, settings, target: bool, hidden: Collection[str] = ()
) -> set[str]:
    """The groups to hide, of `masks` that share out some images, bool [n] each; `hidden` are, unless they are empty.

    target: the attribute is itself a target, and how many are 'missing' therefore known (all less the labelled):
        hiding them would protect nobody.
    """
    patients = {name: np.unique(patient[mask]) for name, mask in masks.items()}
    gone = {name for name, who in patients.items() if len(who) and (name in hidden or len(who) < settings.min_patients)}
    secret = [name for name in masks if not (target and name == MISSING)]
    if secret:
        everyone = np.unique(np.concatenate([patients[name] for name in secret]))
        cells = [[patients[name]] for name in secret] + [[everyone]]
        already = np.array([[name in gone] for name in secret] + [[False]])
        total_is_known = np.append(np.zeros(len(secret), int), -1)[:, None]
        found = withhold(cells, settings.min_patients, already, total_is_known, rows_add_up=False)
        gone |= {name for name, is_hidden in zip(secret, found[:-1, 0]) if is_hidden}
    return gone


def judgements(predictions: Predictions, split: str, settings, bootstrap: Bootstrap) -> list[_Judgement]:
    """One a target. Where two targets are attributes as well, say race and sex, the numbers of F by race are those of
    the races by sex: what either hides the other has to, and with it perhaps more, until both agree.
    """
    hidden = hidden_groups(predictions, settings, bootstrap.patient)
    crossed: dict[str, set[tuple[str, str, str]]] = {name: set() for name in predictions.targets}
    while True:
        found = [
            _Judgement(predictions, name, split, settings, bootstrap, hidden, crossed[name])
            for name in predictions.targets
        ]
        cells = [(one.name, cell) for one in found for cell in one.hidden_cells()]
        more = {name: {(of, c, group) for of, (a, group, c) in cells if a == name} for name in crossed}
        if all(more[name] <= crossed[name] for name in crossed):
            return found
        crossed = {name: crossed[name] | more[name] for name in crossed}


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
    few: tuple[str, ...]  # by class: which side, of hidden ones, has too few patients to rank, or ''


@dataclasses.dataclass(frozen=True)
class _Figure:
    value: float
    replicates: np.ndarray | None
    reason: str = ""
    decimals: int | None = None  # of value, already, and of the interval; None: unrounded


class _Judgement:
    """One target on one split.

    predictions: that split's images alone. hidden: as `hidden_groups` has it. crossed: (attribute, group, class) whose
        number of positive images is to be hidden.
    """

    def __init__(
        self, predictions: Predictions, name: str, split: str, settings, bootstrap: Bootstrap,
        hidden: Mapping[str, set[str]], crossed: Collection[tuple[str, str, str]],
    ):  # fmt: skip
        self.targets, self.hidden, self.crossed = predictions.targets, hidden, crossed
        self.name, self.split, self.settings, self.bootstrap = name, split, settings, bootstrap
        self.target: Target = predictions.targets[name]
        self.patient = bootstrap.patient
        self.classes = self.target.classes
        self.labels = np.stack([predictions.label(name, c) for c in self.classes], axis=1)  # [n, classes]
        self.known = ~np.isnan(self.labels)
        self.positive = self.labels == 1
        self.scores = predictions.scores(name)
        self.ceiling = predictions.scores(name, CEILING) if predictions.has_ceiling(name) else None
        self._few = f"fewer than {settings.min_patients} patients"
        self._unscored = "a score is missing"
        self._lest_few_show = f"lest a count of {self._few} show"
        self.method = f"patient bootstrap, percentile, {settings.replicates} replicates"
        self.groups, self.absent = self._groups(predictions)

    # -- who

    def _patients(self, mask: np.ndarray) -> np.ndarray:
        return np.unique(self.patient[mask])

    def _groups(self, predictions: Predictions) -> tuple[list[_Group], list[str]]:
        (everyone,) = self._protected(ALL, {ALL: np.ones(len(self.known), bool)}, None)
        found, absent = [everyone], []
        for attribute in self.settings.attributes:
            masks = _masks(predictions, attribute, self.settings)
            if masks:
                found += self._protected(attribute, masks, everyone)
            else:
                absent.append(attribute)
        return found, absent

    def _protected(self, attribute: str, masks: dict[str, np.ndarray], everyone: _Group | None) -> list[_Group]:
        """The groups of one attribute with what must be hidden of them; `everyone` is their sum, or None for itself."""
        minimum, known, few = self.settings.min_patients, self.known, self._few
        members = list(masks.values())

        def reasons(labelled: np.ndarray) -> list[str]:
            parts = {name: mask & labelled for name, mask in masks.items()}
            is_target, hidden = attribute in self.targets, self.hidden.get(attribute, ())
            gone = _too_few(parts, self.patient, self.settings, is_target, hidden)
            small = {name for name in gone if len(self._patients(parts[name])) < minimum}
            subtraction = f"hidden lest a group of {few} be found by subtraction"
            return ["" if name not in gone else few if name in small else subtraction for name in masks]

        any_label = reasons(known.any(axis=1))
        by_class = [reasons(known[:, c]) for c in range(len(self.classes))]
        # A group that is hidden is hidden for every class: figures by class would otherwise add up to it.
        by_class = [[one or whole for one, whole in zip(column, any_label)] for column in by_class]
        gone = np.array([[bool(reason) for reason in column] for column in by_class]).T  # [groups, classes]

        def hidden_parts(
            parts: list[np.ndarray], gone: np.ndarray, of_everyone, crossed=False, empty_may_go=False
        ) -> np.ndarray:
            """bool [groups, parts]: which numbers of images to hide, where a group's parts add up to its n."""
            columns = [*parts, np.any(parts, axis=0)]
            rows = members if everyone is None else [*members, np.ones_like(columns[0])]
            hidden = np.zeros((len(rows), len(columns)), bool)
            hidden[: len(members)] = gone[:, None]
            hidden[: len(members), :-1] |= crossed
            hidden[-1, :-1] |= of_everyone
            reluctance = np.zeros(hidden.shape, int)
            reluctance[:, -1] = -1
            if everyone is not None:
                reluctance[-1] = -1
            cells = [[self._patients(row & column) for column in columns] for row in rows]
            add_up = everyone is not None
            hidden = withhold(cells, minimum, hidden, reluctance, columns_add_up=add_up, empty_may_go=empty_may_go)
            return hidden[: len(members), :-1]

        if everyone is None:
            # The classes of an attribute that is the target are its groups, and hidden where these are.
            as_groups = [name in self.hidden.get(self.name, ()) for name in self.classes]
            of_everyone = np.array(as_groups) & self.positive.any(axis=0)
        else:
            of_everyone = everyone.hidden_positives
        if self.target.kind == "multiclass":
            # Classes exclude one another: the positives of all classes add up to the group.
            positives = [known[:, c] & self.positive[:, c] for c in range(len(self.classes))]
            crossed = np.array([[(attribute, name, c) in self.crossed for c in self.classes] for name in masks])
            hidden = hidden_parts(positives, gone.all(axis=1), of_everyone, crossed)
        else:
            hidden = np.zeros_like(gone)
            for c in range(len(self.classes)):
                both = [known[:, c] & self.positive[:, c], known[:, c] & ~self.positive[:, c]]
                # That none lacks it would tell how many have it.
                hidden[:, c] = hidden_parts(both, gone[:, c], of_everyone[c], empty_may_go=True).any(axis=1)

        def too_few_to_rank(mask: np.ndarray, c: int) -> str:
            if len(self._patients(mask & known[:, c] & self.positive[:, c])) < minimum:
                return f"{few} have it"
            without = self._patients(mask & known[:, c] & ~self.positive[:, c])
            return f"{few} are without it" if len(without) < minimum else ""

        found = []
        for g, (name, mask) in enumerate(masks.items()):
            # A small side is hidden in any case, an empty one where saying so would give another group's away.
            sides = tuple(too_few_to_rank(mask, c) if hidden[g, c] else "" for c in range(len(self.classes)))
            suppressed = tuple(column[g] for column in by_class)
            known_here = (known & mask[:, None]).T
            found.append(_Group(attribute, name, known_here, suppressed, any_label[g], hidden[g], sides))
        return found

    def hidden_cells(self) -> set[tuple[str, str, str]]:
        """(attribute, group, class) whose number of positive images is hidden, and is not 0."""
        return {
            (group.attribute, group.name, name)
            for group in self.groups
            for c, name in enumerate(self.classes)
            if group.hidden_positives[c] and (group.known[c] & self.positive[:, c]).any()
        }

    # -- rows

    def aucs(self, scores: np.ndarray, attribute: str = ALL, name: str = ALL, unscored: str = "") -> list[tuple[Row, _Figure]]:
        """Rows of metric auc, and the figures behind them, of other scores of the same images, in one group.

        scores: float [n, classes]; a class whose column holds a NaN has no AUC, for the reason `unscored`. What is withheld
        is what would be of the scores that this judgement was made with: it does not depend on them. [] for a group that
        there is not.
        """
        other = copy.copy(self)
        other.scores, other.ceiling, other._unscored = scores, None, unscored or self._unscored
        other.groups = [group for group in self.groups if (group.attribute, group.name) == (attribute, name)]
        found = []
        for group in other.groups:
            for of, figure in other._figures(("auc",))["auc", attribute, name].items():
                c = self.classes.index(of) if of in self.classes else None
                found.append((other._row("auc", of, group, c, figure), figure))
        return found

    def empty(self, metric: str, reason: str) -> list[Row]:
        """Rows of a metric, one a class and one for the macro, of a group in which there is nobody."""
        nobody = _Group("", "", np.zeros_like(self.known.T), ("",) * len(self.classes), "", np.zeros(len(self.classes), bool), ("",) * len(self.classes))
        figure = _Figure(np.nan, None, reason)
        return [self._row(metric, name, nobody, c, figure) for c, name in [*enumerate(self.classes), (None, MACRO)]]

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

    def _figures(self, only: Collection[str] | None = None) -> dict[tuple[str, str, str], dict[str, _Figure]]:
        """By metric, attribute and group: the figure of each class, of 'macro' or of 'all'. only: metrics; None for all."""
        figures: dict[tuple[str, str, str], dict[str, _Figure]] = {}
        ranked, averaged = [], []  # (metric, group, class, cell)
        unscored = []
        for group in self.groups:
            wanted = self._metrics(group) if only is None else only
            for c, name in enumerate(self.classes):
                if group.suppressed[c]:
                    continue
                rows = np.flatnonzero(group.known[c])
                positive, score = self.positive[rows, c], self.scores[rows, c]
                if np.isnan(score).any():
                    unscored.append((group, name))
                    continue
                if "auc" in wanted and not group.few[c]:
                    ranked.append(("auc", group, name, RankedCell(rows, positive, score)))
                    if self.ceiling is not None:
                        ranked.append(("auc_ceiling", group, name, RankedCell(rows, positive, self.ceiling[rows, c])))
                if "brier" in wanted and not group.few[c]:
                    averaged.append(("brier", group, name, MeanCell(rows, (score - positive) ** 2)))
                if "accuracy" in wanted and self.target.kind == "multilabel" and not group.hidden_positives[c]:
                    averaged.append(("accuracy", group, name, MeanCell(rows, (score >= CALLED) == positive)))
            if "accuracy" in wanted and self.target.kind == "multiclass" and not group.any_suppressed:
                rows = np.flatnonzero(group.known[0])
                right = self._called()[rows] == self.positive[rows].argmax(axis=1)
                averaged.append(("accuracy", group, ALL, MeanCell(rows, right)))

        def put(metric, group, name, value, replicates, reason="", decimals=None):
            # Rounded here and not when written: macros and differences, made of these, then tell no more than they do.
            value = value if decimals is None else round(value, decimals)
            of_class = figures.setdefault((metric, group.attribute, group.name), {})
            of_class[name] = _Figure(value, replicates, reason, decimals)
            return of_class[name]

        for group, name in unscored:
            for metric in only or ():
                put(metric, group, name, np.nan, None, self._unscored)
        auc, precision = self.bootstrap.ranking([cell for *_, cell in ranked])
        for k, (metric, group, name, cell) in enumerate(ranked):
            reason, decimals = _one_class(cell.positive), self._decimals(group, self.classes.index(name))
            found = put(metric, group, name, metrics.auc(cell.positive, cell.score), auc[k], reason, decimals)
            if metric == "auc_ceiling":
                own = figures["auc", group.attribute, group.name][name]
                difference, replicates = own.value - found.value, own.replicates - found.replicates
                put("auc_difference", group, name, difference, replicates, reason, decimals)
                continue
            if only is not None and "average_precision" not in only:
                continue
            if cell.positive.all() and len(cell.rows):
                reason = "every image is positive: 1 whatever the scores"
            value = metrics.average_precision(cell.positive, cell.score)
            put("average_precision", group, name, value, precision[k], reason, decimals)
        means = self.bootstrap.means([cell for *_, cell in averaged])
        for k, (metric, group, name, cell) in enumerate(averaged):
            reason = "" if len(cell.rows) else "no image with a known label"
            decimals = self._decimals(group, self.classes.index(name)) if metric == "brier" else None
            put(metric, group, name, metrics.mean(cell.value), means[k], reason, decimals)

        for group in self.groups:
            for metric in self._metrics(group) if only is None else only:
                of_class = figures.setdefault((metric, group.attribute, group.name), {})
                whole = metric == "accuracy" and self.target.kind == "multiclass"
                for c, name in enumerate(() if whole else self.classes):
                    why = group.suppressed[c] or group.few[c] or f"hidden {self._lest_few_show}"
                    of_class.setdefault(name, _Figure(np.nan, None, why))
                if whole:
                    of_class.setdefault(ALL, _Figure(np.nan, None, group.any_suppressed))
                else:
                    in_order = {name: of_class[name] for name in self.classes}
                    everyone = figures.get((metric, ALL, ALL), in_order)  # where that is not asked for, it is not needed
                    in_order[MACRO] = self._macro(in_order, everyone, group)
                    figures[metric, group.attribute, group.name] = in_order
        return figures

    def _decimals(self, group: _Group, c: int) -> int | None:
        """To how many decimals, 3 at most, a metric of ranks is rounded for a hidden number of positives; None: not.

        Where it is shown, m patients or more of n images are positive, and as many negative. Rounding leaves the pairs
        won open by 10**-decimals x positives x negatives. Pairs come in halves; so each number of positives will do if
        that is 1/2 at least, as it is if 2 m (n - m) has more than `decimals` digits.
        """
        if not group.hidden_positives[c]:
            return None
        least, images = self.settings.min_patients, int(group.known[c].sum())
        return min(3, len(str(2 * least * (images - least))) - 1)

    def _macro(self, of_class: Mapping[str, _Figure], of_everyone: Mapping[str, _Figure], group: _Group) -> _Figure:
        """The plain mean over classes, replicate by replicate.

        Classes that exclude one another belong together: one undefined, and the mean is. Findings do not: everyone's
        mean is over those that are defined, and says which. A group's is over the same, or it could not be compared.
        """
        if group.any_suppressed:
            return _Figure(np.nan, None, group.any_suppressed)
        used = [name for name in self.classes if not np.isnan(of_everyone[name].value)]
        if self.target.kind == "multiclass" or not used:
            used = list(self.classes)
        lacking = [name for name in used if np.isnan(of_class[name].value)]
        if lacking:
            hidden = {n for c, n in enumerate(self.classes) if group.suppressed[c] or group.hidden_positives[c]}
            why = {"undefined": [], "withheld": []}
            for name in lacking:
                why["withheld" if name in hidden else "undefined"].append(name)
            reason = "; ".join(f"{word} for {', '.join(names)}" for word, names in why.items() if names)
            if all(of_class[name].reason == self._unscored for name in lacking):
                reason = self._unscored
            return _Figure(np.nan, None, reason)
        reason = ""
        if len(used) < len(self.classes):
            left_out = [name for name in self.classes if name not in used]
            reason = f"mean over {len(used)} of {len(self.classes)} classes; left out: {', '.join(left_out)}"
        figures = [of_class[name] for name in used]
        value = float(np.mean([figure.value for figure in figures]))
        replicates = np.mean([figure.replicates for figure in figures], axis=0)
        # The interval of a mean over one class is that class's.
        decimals = min((figure.decimals for figure in figures if figure.decimals is not None), default=None)
        return _Figure(value, replicates, reason, decimals)

    def _called(self) -> np.ndarray:
        """The class with the highest score, int [n]; of equal ones the first in the target's order."""
        return self.scores.argmax(axis=1)

    def _row(
        self, metric: str, name: str, group: _Group, c: int | None, figure: _Figure,
        threshold: float | None = None, reference: str | None = None, rows: np.ndarray | None = None,
    ) -> Row:  # fmt: skip
        """One row. c: position of the class, None for 'macro' and 'all'. rows: the images, if not all the group's."""
        why = group.any_suppressed if c is None else group.suppressed[c]
        reasons, method = [figure.reason], self.method
        counts = dict(_NO_COUNTS)
        low = high = None
        if not why:
            mask = group.known.any(axis=0) if c is None else group.known[c]
            rows = np.flatnonzero(mask) if rows is None else rows
            counts |= {"n_images": len(rows), "n_patients": len(np.unique(self.patient[rows]))}
            if c is not None and metric not in ("calibration", "confusion"):
                if not group.hidden_positives[c]:
                    counts["n_positive"] = int(self.positive[rows, c].sum())
                elif not np.isnan(figure.value):
                    rounded = "" if figure.decimals is None else f" and the rest rounded to {figure.decimals} decimals"
                    reasons.append(f"n_positive hidden{rounded} {self._lest_few_show}")
            if figure.replicates is not None and not np.isnan(figure.value):
                low, high, reason = percentile_interval(figure.replicates, self.settings.level)
                if low == high and metric in SHARES and figure.value in (0, 1):
                    low, high = wilson(figure.value, counts["n_patients"], self.settings.level)
                    method = "Wilson, at the number of patients, as every replicate gives the same value"
                elif low == high and metric in ("auc", "average_precision"):
                    low, high, reason = np.nan, np.nan, "interval withheld: every replicate gives the same value"
                elif figure.decimals is not None:
                    low, high = round(low, figure.decimals), round(high, figure.decimals)
                low, high = _or_null(low), _or_null(high)
                reasons.append(reason)
        values = {
            "metric": metric, "target": self.name, "class": name, "attribute": group.attribute, "group": group.name,
            "split": self.split, "threshold": threshold, "reference": reference,
            "value": None if why else _or_null(figure.value), "low": low, "high": high,
            "level": float(self.settings.level), "method": method, **counts,
            "suppressed": bool(why), "reason": "; ".join(r for r in reasons if r) or None,
        }  # fmt: skip
        return {key: values[key] for key in KEYS}

    # -- curves, overall

    def _withheld(self, metric: str, c: int, both_sides: bool) -> Row | None:
        """The one row that stands for a curve that cannot be shown or does not exist."""
        everyone = self.groups[0]
        positive = self.positive[everyone.known[c], c]
        if not everyone.suppressed[c] and everyone.hidden_positives[c]:
            reason = f"the curve would show {self._few}"
            row = self._row(metric, self.classes[c], everyone, c, _Figure(np.nan, None, reason))
            return row | _NO_COUNTS | {"suppressed": True}
        reason = everyone.suppressed[c] or (_one_class(positive) if both_sides or not len(positive) else "")
        return self._row(metric, self.classes[c], everyone, c, _Figure(np.nan, None, reason)) if reason else None

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
                    reason = everyone.suppressed[c] or f"hidden lest a class of {self._few} show"
                    row = self._row("confusion", name, everyone, c, _Figure(np.nan, None, reason), None, predicted)
                    rows.append(row | _NO_COUNTS | {"suppressed": True})
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
