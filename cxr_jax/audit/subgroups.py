"""The audit: every figure of `audit.json`, overall and by group, with its interval, its n, and what may not be shown.

`audit` takes the predictions and the config's `audit` section and gives tidy rows, each with the keys of `KEYS`:

    metric      see below
    target      name of the target
    class       the class or finding; 'macro': mean over classes; 'all': all classes at once (accuracy of a multiclass
                target). confusion: the true class
    attribute, group    'all', 'all' is everyone; 'missing' is the group of those whose attribute is not recorded. Of an
                intersection both are joined by '*': 'race*sex', 'White * F'
    split
    threshold   of metrics of called images: the score from which an image is called, null where there are several (method
                says how they were chosen). roc_tpr: the false-positive rate; calibration: mean score of the bin; accuracy of
                a finding: 0.5
    effect      null: the figure itself. 'difference', 'ratio': of the group's to that of `reference`. 'range': greatest
                less least over the groups of an attribute, `group` has the greatest, `reference` the least; it has no interval.
                'mix': what of the difference to all others goes with the mix of labels and attributes, that is this less the
                difference to others like the group. 'shrunk': of an intersection, moved towards what its groups alone would
                have (see `pooling`)
    reference   'rest', all others of the split; 'like', these weighted to be like the group (see `case_mix`), of which what is
                not of open data is rounded; or the name of a group; auc_difference: 'ceiling'; confusion: the class called
    value, low, high    null where undefined, withheld or suppressed
    level, method       of the interval
    n_images, n_patients, n_positive    of the group, whose label is known. n_positive is null for 'macro' and 'all', in
                calibration and confusion (whose n is of the bin, or of the true class), and where it is hidden
    p, p_bootstrap, p_holm, p_by, family    of differences to the rest in `gaps.TESTED`: Wald's, the bootstrap's own (see
                `estimates`), Holm's and Benjamini and Yekutieli's over all that have a p on this split, and how many those
                are. Of two groups that are each other's rest the test is one, and counted once
    suppressed  true: value and all counts of the row are null, lest they tell of too few patients. Where n_images is
                shown it is false, though value or n_positive may be null for that same cause, which `reason` gives
    reason      why something is null, or what else must be known; null where there is nothing to say

Metrics of ranks: auc, average_precision; auc_ceiling and auc_difference (model - ceiling) where the data's truth is known.
Of called images (`thresholds` says which those are): sensitivity, specificity, false_negative_rate, false_positive_rate,
ppv, npv, f1, and `called`, the share that is. A finding is underdiagnosed where its false-negative rate, or that of No
Finding's positives, is high. equalised_odds: the greater of the ranges of sensitivity and of false-positive rate (Hardt,
Price and Srebro 2016, as a difference); the range of `called` is that of demographic parity. Of scores as probabilities: brier,
the mean squared distance from the truth (1950), its macro for exclusive classes being Brier's own sum by their number;
calibration_in_the_large, mean score less share of positives; calibration_slope; ece, over at most 10 bins of everyone's
scores, and ece_debiased (`metrics.calibration_error`). accuracy: the share called rightly, at .5 or by the highest score.
recorded_if_present, recorded_if_absent: of findings of open data whose truth is known, the share of images that have it, or
have it not, in which it is recorded. Curves: roc_tpr and confusion, overall only; calibration, by group as well.

**Suppression** of groups is that of `disclosure`. Metrics of ranks tell numbers of positives too: AUC x positives x
negatives counts the pairs won, in halves, and one positive's AUC is its rank. So AUC, average precision, of model and
ceiling, and Brier score are withheld where fewer than `min_patients` patients are positive, or negative; and where
n_positive is hidden for another's sake they are rounded, the AUC until every number of positives would do (see
`Judgement._decimals`), the others alike. Whatever else is made of labels goes wherever n_positive does; and rates go where they are of
fewer than `min_patients` patients. Bins of scores are made so wide that each has `min_patients` patients.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cxr_jax.audit import comparisons, gaps
from cxr_jax.audit.disclosure import ALL, MISSING, TIMES, Group, age_band, check_attributes, groups, hidden_groups, masks_of
from cxr_jax.audit.intervals import Bootstrap
from cxr_jax.audit.judgement import AS_RECORDED, KEYS, MACRO, Judgement, Row, judgements
from cxr_jax.tables import LABEL, TRUE, Predictions, UserError

__all__ = ["ALL", "MACRO", "MISSING", "TIMES", "KEYS", "age_band", "audit", "check_attributes", "groups", "hidden_groups", "select"]


def audit(predictions: Predictions, settings) -> list[Row]:
    """Rows for every split of `settings.splits`, target, metric, class and group; see above.

    predictions: such as pass `Predictions.check`.
    settings: the config's `audit` section.
    A table without a column `split` is judged as one split, called 'all'.
    Raises UserError for a split without images, for an attribute that says which image or patient, and for
    settings.truth 'true' where the truth is not known.
    """
    check_attributes(settings.attributes)
    recorded, rows = predictions, []
    if settings.truth == "true":
        predictions = with_truth(predictions)
    for split in settings.splits if "split" in predictions.table else (ALL,):
        part, chosen_on = _split(predictions, split), None
        if not len(part.table):
            raise UserError(f"audit.splits: no image of split {split!r} in the predictions")
        if split != VALIDATION and "split" in predictions.table and (recorded.table["split"] == VALIDATION).any():
            # Whoever chooses a threshold has what is recorded.
            chosen_on = _split(recorded, VALIDATION)
        masks = {a: masks_of(part, a, settings) for a in settings.attributes}
        _check_groups(masks, settings)
        # What is judged must vary as it does among people: no stratum is made of a target's classes.
        strata = [mask for a, of in masks.items() if a not in part.targets for mask in of.values()]
        bootstrap = Bootstrap(part.table["patient_id"].to_numpy(), settings.replicates, settings.seed, strata)
        found = judgements(part, split, settings, bootstrap, chosen_on, _split(recorded, split))
        cells = _settled(found)
        rows += _with_family([row for one in found for row in (*one.rows(), *gaps.rows(one), *one.of_intersections(cells[one.name]))])
    return rows


def _check_groups(masks: Mapping[str, Mapping[str, np.ndarray]], settings) -> None:
    """Raises UserError for a reference group that there is not."""
    for entry in settings.reference:
        attribute, _, group = entry.partition("=")
        if group not in masks[attribute]:
            known = ", ".join(masks[attribute]) or "none is recorded"
            raise UserError(f"config.audit.reference: no group {group!r} of {attribute}; there are: {known}")


def _settled(found: Sequence[Judgement]) -> dict[str, list[Group]]:
    """The intersections of each target. What one hides the others must, and with it perhaps more, until all agree."""
    hidden: set[tuple[str, str]] = set()
    while True:
        cells = {one.name: one.intersections(hidden) for one in found}
        more = {(cell.attribute, cell.name) for of in cells.values() for cell in of if cell.any_suppressed}
        if more <= hidden or len(found) == 1:
            return cells
        hidden |= more


VALIDATION = "validation"


def _split(predictions: Predictions, split: str) -> Predictions:
    table = predictions.table
    table = table[table["split"] == split] if "split" in table else table
    return dataclasses.replace(predictions, table=table.reset_index(drop=True))


def with_truth(predictions: Predictions) -> Predictions:
    """The same with what is true in the place of what is recorded, for findings whose truth is known.

    Raises UserError where it is known of none.
    """
    known = [c for t in predictions.targets.values() if t.kind == "multilabel" for c in t.classes if TRUE + c in predictions.table]
    if not known:
        raise UserError("config.audit.truth='true': the predictions have no column 'true_FINDING'; only data whose truth is known do")
    table = predictions.table
    columns = {LABEL + c: table[TRUE + c] for c in known} | {AS_RECORDED + c: table[LABEL + c] for c in known}
    return dataclasses.replace(predictions, table=table.assign(**columns))


def _with_family(rows: list[Row]) -> list[Row]:
    """With p adjusted over all tests of these rows; mirrored ones, which come after their own, are no further tests."""
    own = [row for row in rows if row["p"] is not None and (row["mirrored"] is None or row["mirrored"]["p"] is None)]
    p = np.array([row["p"] for row in own], np.float64)
    adjusted = {id(row): pair for row, *pair in zip(own, comparisons.holm(p), comparisons.benjamini_yekutieli(p), strict=True)}
    for row in rows:
        mirrored = row.pop("mirrored")
        if row["p"] is not None:
            holm, by = adjusted[id(row if id(row) in adjusted else mirrored)]
            row |= {"p_holm": float(holm), "p_by": float(by), "family": len(own)}
    return rows


def select(rows: Sequence[Mapping[str, Any]], **fields) -> list[Row]:
    """The rows in which every named field has the given value; `class_` stands for `class`.

    Figures themselves, unless `effect` is named.

    select(rows, metric="auc", class_="macro", attribute="all")
    """
    fields = {"effect": None} | {name.removesuffix("_"): value for name, value in fields.items()}
    unknown = sorted(set(fields) - set(KEYS))
    if unknown:
        raise KeyError(f"no field {unknown[0]!r} in an audit row; there are {', '.join(KEYS)}")
    return [dict(row) for row in rows if all(row[name] == value for name, value in fields.items())]
