"""How much worse a group fares than others: differences, ratios and their tests, ranges, and the same beside others like it.

Every figure is of one target on one split, and made by a `Judgement`; the rows are those that `subgroups` describes.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from cxr_jax.audit import case_mix, estimates
from cxr_jax.audit.disclosure import ALL, LIKE, MISSING, REST, Group, masks_of
from cxr_jax.audit.estimates import Estimate
from cxr_jax.audit.judgement import MACRO, Judgement, Row, or_null

COMPARED = ("auc", "false_positive_rate", "false_negative_rate", "ppv", "called", "calibration_in_the_large")
TESTED = ("auc", "false_positive_rate", "false_negative_rate")
RATIOS = ("false_positive_rate", "false_negative_rate", "ppv", "called")
RANGES = ("auc", "false_positive_rate", "false_negative_rate", "called")
NO_FINDING = "No Finding"
# Of data that are not open: to how many decimals what is made of weights is rounded. Of the sizes of strata nothing is told.
DECIMALS = 2
MIX = "no interval: it is of the mix of these images, whose weights are taken as they are"

Figures = Mapping[str, Mapping[str, Estimate]]


def rows(judged: Judgement) -> list[Row]:
    """Of each attribute that is not the target: every group against all others, others like it and a reference group, and ranges."""
    found: list[Row] = []
    for attribute in dict.fromkeys(group.attribute for group in judged.groups[1:] if group.attribute != judged.name):
        here = [(g, of) for g, of in zip(judged.groups, judged.of_groups, strict=True) if g.attribute == attribute]
        shown = [(group, of) for group, of in here if not group.any_suppressed]
        rests = [group.rest(judged.everyone, judged.labels) for group, _ in shown]
        of_rests = judged.figures(rests, lambda _: COMPARED)
        mirrored: dict[tuple, Row] = {}
        for (group, of), of_rest in zip(shown, of_rests, strict=True):
            for metric in COMPARED:
                tests = {row["class"]: row for row in _against(judged, metric, group, of, of_rest, REST, found)}
                if metric in TESTED:
                    _mark_mirrored(judged, metric, group, tests, len(here) == 2, mirrored)
        if judged.settings.case_mix:
            found += _beside_their_like(judged, attribute, shown, rests, of_rests)
        reference = _reference(judged, attribute, shown)
        for group, of in shown:
            if reference is not None and group is not reference[0]:
                for metric in TESTED:
                    _against(judged, metric, group, of, reference[1], reference[0].name, found)
        found += _ranges(judged, attribute, [(g, of) for g, of in shown if g.name != MISSING], len(here))
    return found


def _mark_mirrored(judged: Judgement, metric: str, group: Group, tests: Mapping[str, Row], two: bool, first_of: dict[tuple, Row]) -> None:
    """Notes in each row the one whose test it repeats: of two groups one is the other's rest; of two classes that exclude each
    other, with scores that add up to 1, one's AUC is the other's, and their mean; and of one class the mean is its own."""
    for name, row in tests.items():
        same = (metric, name) if two else (group.name, metric, name)
        if metric == "auc" and (judged.is_binary or len(judged.classes) == 1):
            same = (*same[:-1], "")
        first = first_of.setdefault(same, row)
        row["mirrored"] = None if first is row else first


def _reference(judged: Judgement, attribute: str, shown):
    """(group, its figures) that settings.reference names for an attribute, 'race=White', or else the largest."""
    named = dict(entry.split("=", 1) for entry in judged.settings.reference)
    recorded = [(group, of) for group, of in shown if group.name != MISSING]
    if attribute in named:
        return next(((group, of) for group, of in recorded if group.name == named[attribute]), None)
    return max(recorded, key=lambda pair: len(judged.labels.patients(pair[0].mask)), default=None)


def _against(judged: Judgement, metric: str, group: Group, of: Figures, others: Figures, reference: str, rows: list[Row]) -> list[Row]:
    """Appends rows of a group's difference, and ratio, to others; returns those of the differences."""
    added = []
    for name, a in of[metric].items():
        b = others[metric][name]
        c = judged.classes.index(name) if name in judged.classes else None
        if c is not None and group.suppressed[c]:
            continue
        keys = {"threshold": judged.threshold(metric, group, c), "reference": reference}
        apart = estimates.difference(a, b)
        row = judged.row(metric, name, group, c, apart, effect="difference", **keys)
        if metric in TESTED and reference == REST and apart.defined:
            if apart.decimals is not None:
                row["reason"] = _joined(row["reason"], f"without p {judged.lest_few_show}")
            else:
                found = estimates.tested(a, b)
                row |= {"p": or_null(found.p), "p_bootstrap": or_null(found.p_bootstrap)}
                row["reason"] = _joined(row["reason"], found.reason and f"no p: {found.reason}")
        added.append(row)
        rows.append(row)
        if metric in RATIOS:
            rows.append(judged.row(metric, name, group, c, estimates.ratio(a, b), effect="ratio", **keys))
    return added


def _joined(*reasons: str | None) -> str | None:
    return "; ".join(filter(None, reasons)) or None


# --- others like the group -------------------------------------------------------------------------------------------


def _beside_their_like(judged: Judgement, attribute: str, shown, rests: Sequence[Group], of_rests: Sequence[Figures]) -> list[Row]:
    """Differences of groups to others like them, and what of those to all others goes with the mix; see `case_mix`."""
    is_open, settings = judged.predictions.open_data, judged.settings
    mixed = [name for name in settings.case_mix if name not in (attribute, judged.name)]
    labels = {name: _codes(masks) for name in mixed if (masks := masks_of(judged.predictions, name, settings))}
    strata = [case_mix.nested([*own, *labels.values()]) for own in _own_labels(judged, [group for group, _ in shown])]
    likes, weights, shares = [], [], []
    for (group, _), rest in zip(shown, rests, strict=True):
        weight, whole = np.zeros(judged.known.shape), np.full(len(judged.classes), np.nan)
        for c in (c for c, hidden in enumerate(group.suppressed) if not hidden):
            least = 1 if is_open else settings.min_patients
            found, whole[c] = case_mix.alike(group.known[c], rest.known[c], strata[c], judged.patient, least)
            weight[:, c] = np.nan_to_num(found)
        # Who has no weight is not there, and of those who are there must be enough.
        known = rest.known & (weight > 0).T
        few = tuple(judged.labels.too_few_to_rank(mask, c) for c, mask in enumerate(known))
        likes.append(dataclasses.replace(rest, name=LIKE, known=known, few=few))
        weights.append(weight)
        shares.append(whole)
    rows = []
    of_like = judged.figures(likes, lambda _: COMPARED, weights)
    for (group, of), of_rest, like, whole in zip(shown, of_rests, of_like, shares, strict=True):
        for metric in COMPARED:
            for name, a in of[metric].items():
                c = judged.classes.index(name) if name in judged.classes else None
                if c is not None and group.suppressed[c]:
                    continue
                b, all_others = like[metric][name], of_rest[metric][name]
                if _tells(judged, group, c):
                    a = b = estimates.undefined(f"hidden {judged.lest_few_show}")
                apart, mix = estimates.difference(a, b), estimates.difference(b, all_others)
                mix = dataclasses.replace(mix, replicates=None, influence=None, no_interval=MIX) if a.defined else estimates.undefined(a.reason)
                keys = {"threshold": judged.threshold(metric, group, c), "reference": LIKE}
                for effect, figure in (("difference", apart), ("mix", mix)):
                    if figure.defined and not is_open:
                        figure = dataclasses.replace(figure, decimals=DECIMALS if figure.decimals is None else min(DECIMALS, figure.decimals)).rounded()
                    row = judged.row(metric, name, group, c, figure, effect=effect, **keys)
                    if figure.defined and effect == "difference":
                        used = [k for k, one in enumerate(judged.classes) if of[metric][one].defined] if c is None else [c]
                        row["reason"] = _joined(row["reason"], told(float(np.min(whole[used])), [*labels], is_open))
                    rows.append(row)
    return rows


def _tells(judged: Judgement, group: Group, c: int | None) -> bool:
    """Whether weights by the labels of a group would tell of a number of positives that is hidden.

    Others that are called as often as a group is ill, times what is known of both, are an equation for how many are ill. Of classes
    that exclude one another all are in each one's weights.
    """
    return bool(group.hidden_positives.any()) if c is None or judged.target.kind == "multiclass" else bool(group.hidden_positives[c])


def _codes(masks: Mapping[str, np.ndarray]) -> np.ndarray:
    """The number of each image's group: int64 [n]."""
    return np.argmax(list(masks.values()), axis=0)


def _own_labels(judged: Judgement, groups: Sequence[Group]) -> list[list[np.ndarray]]:
    """For each class, what of the labels is a stratum: int [n] each. Its own; of findings, whether there is another, too, of
    those whose numbers are hidden in none of the groups."""
    positive = judged.positive & judged.known
    if judged.target.kind == "multiclass":
        return [[positive.argmax(axis=1)]] * len(judged.classes)
    hidden = np.any([group.hidden_positives | np.array([bool(why) for why in group.suppressed]) for group in (judged.everyone, *groups)], axis=0)
    used = ~hidden & np.array([name != NO_FINDING for name in judged.classes])
    others = [positive[:, used & (np.arange(len(used)) != c)].any(axis=1) for c in range(len(used))]
    return [[positive[:, c].astype(int), other.astype(int)] for c, other in enumerate(others)]


def told(share: float, names: Sequence[str], is_open: bool) -> str:
    """How far the others are like the group, in words, which `how_alike` reads. names: of attributes, beside labels.

    share: of the group's images, that have others like them in all; of data that are not open it is not told in numbers, which
    would count those who have not.
    """
    rest = ", the rest in fewer of these"
    if not is_open:
        many = "most" if share >= 0.5 else "fewer than half"
    elif share == 1:
        many, rest = "all", ""
    else:
        many = "more than 99 %" if share > 0.99 else "fewer than 1 %" if share < 0.01 else f"{100 * share:.0f} %"
    return f"{many} of the images have others like them in {', '.join(['labels', *names])}{rest}"


class Like(NamedTuple):
    """How many of a group's images have others like them, in words; in which attributes, beside labels."""

    many: str
    names: tuple[str, ...]


def how_alike(reason: str | None) -> Like | None:
    """What `told` says in a row's reason; None where it says nothing."""
    found = re.search(r"(?:^|; )([^;]*) of the images have others like them in labels((?:, (?!the rest)[^,;]*)*)", reason or "")
    return None if found is None else Like(found[1], tuple(name.strip() for name in found[2].split(",") if name.strip()))


# --- ranges ----------------------------------------------------------------------------------------------------------


def _ranges(judged: Judgement, attribute: str, shown, number: int) -> list[Row]:
    rows = []
    for name in (*judged.classes, MACRO):
        c = judged.classes.index(name) if name in judged.classes else None

        def over(*several: str):
            """Groups in which all these metrics are defined; [] where fewer than two are."""
            used = [(g, of) for g, of in shown if all(name in of.get(m, {}) and of[m][name].defined for m in several)]
            return used if len(used) > 1 else []

        for metric in RANGES:
            used = over(metric)
            if used:
                apart, high, low = estimates.spread({g.name: of[metric][name] for g, of in used})
                rows.append(_range_row(judged, metric, name, c, attribute, used, number, apart, high, low))
        rates = ("sensitivity", "false_positive_rate")
        used = over(*rates)
        if used:
            found = [estimates.spread({g.name: of[m][name] for g, of in used})[0] for m in rates]
            odds = max(found, key=lambda one: one.value)
            rows.append(_range_row(judged, "equalised_odds", name, c, attribute, used, number, odds, ALL, None))
    return rows


def _range_row(judged: Judgement, metric, name, c, attribute, used, number: int, apart: Estimate, high: str, low: str | None) -> Row:
    groups = [g for g, _ in used]
    known = np.logical_or.reduce([g.known for g in groups])
    gone = np.logical_or.reduce([g.hidden_positives for g in groups])
    together = dataclasses.replace(judged.everyone, attribute=attribute, name=high, known=known, hidden_positives=gone)
    reason = "" if len(groups) == number else f"over {len(groups)} of {number} groups"
    threshold = judged.threshold(metric, together, c)
    row = judged.row(metric, name, together, c, dataclasses.replace(apart, reason=reason), threshold=threshold, effect="range", reference=low)
    # Patients of several groups would be counted once, and so tell of those who are in another group alone.
    patients = [judged.labels.patients(g.mask) for g in groups]
    shared = len(np.unique(np.concatenate(patients))) < sum(map(len, patients))
    row["reason"] = _joined(row["reason"], apart.no_interval)
    return row | {"n_patients": None if shared else row["n_patients"]}
