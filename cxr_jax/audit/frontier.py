"""Encoding, accuracy and harm of a run, each one figure; and of several runs that differ in their seed, over patients and seeds.

What is measured of a run (`measured`), all on its test patients:

    auc        macro AUC of a target
    brier      mean over classes of the mean squared distance of scores from labels: calibration and discrimination in one
    error      where errors are worst: the mean over classes of the greatest rate, of positives that are missed in a group or negatives that are called in one,
               at the run's own thresholds. The worst of groups by label, as those who train for it judge it (Sagawa et al. 2020); a group that
               is missed more often and called less often, or the other way round, has both seen
    gap        the mean over classes of the mean of two ranges over groups, of either rate; by class, too, as `gap_of`
    encoding   of the attribute, by each kind of probe refitted on the run's features: its macro AUC; and by the strongest of them, of which there is also that
               within each stratum, `within`, and on each other data set that it is judged on, `on`

The greatest of several is above what it would be of an endless supply of patients, the more the fewer there are and the more alike the groups are, and is
taken at its groups as if these were given: so a method that makes groups alike is told to help a little less than it does. Groups are those of which anything is
shown, and classes those whose rates are shown in every one of them. Where two runs have other classes, groups or probes, or probes of other patients, these
figures of theirs are not of the same thing, and have no difference.

**Intervals** (`over_seeds`). With k runs the figure is the mean of theirs. Two things move it: patients, by the standard error of that mean by influence,
and seeds, by the standard deviation between runs over the root of k. Half the interval is the root of the sum of two squares, each error times
Student's quantile at its own degrees of freedom. Satterthwaite's common degrees of freedom would be narrower, and are estimated: of two runs that happen
to agree they are far too many, and intervals that should hold the truth 95 times of 100 do so 90 times (seen in the test that draws such). Two seeds
that disagree give very wide intervals, since two say next to nothing of how far runs are apart: take five. Nor is that borrowed from other methods, of which one that does
not settle would widen all. Beside it stands the interval over patients alone, which is of these runs as they are. One run's interval is over patients alone. Differences from a reference are of runs of the same seed,
on the same patients, and their variance is of the differences.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import ml_collections
import numpy as np
from scipy import optimize, stats

from cxr_jax.audit import estimates, judgement, subgroups
from cxr_jax.audit import readings as probed
from cxr_jax.audit.disclosure import MISSING
from cxr_jax.audit.estimates import Estimate
from cxr_jax.audit.intervals import Bootstrap
from cxr_jax.tables import FEATURES, Predictions, Readings

METRICS = ("auc", "brier", "error", "gap")
STRONGEST = "strongest"
_RATES = ("false_negative_rate", "false_positive_rate")


@dataclasses.dataclass(frozen=True)
class Measured:
    """figures: Estimates by metric, influences by patient in the order of sorted ids. images: sorted ids; patients: whose each is, and labels: float64
    [n, classes], in their order. over: of metrics that are made of several things, these: error and gap of (classes, groups), encoding of
    (probe, images and patients that it was fitted on) each. worst: the group that most often has the worst error; '' where there is none.
    left_out: groups of which nothing may be shown. strata: (attribute, group) of every stratum within which there is encoding.
    """

    figures: Mapping[str, Estimate]
    images: np.ndarray
    patients: np.ndarray
    labels: np.ndarray
    over: Mapping[str, tuple]
    worst: str = ""
    left_out: tuple[str, ...] = ()
    strata: tuple[tuple[str, str], ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """Those that error and gap are over."""
        return self.over.get("error", ((), ()))[0]


def measured(predictions: Predictions, target: str, split: str, settings, attribute: str) -> Measured:
    """auc, brier, error and gap of a target between the groups of an attribute. settings: a config's `audit` section.

    predictions: of all splits; thresholds are chosen on validation, as in the audit. What the audit would withhold has no part in it: an undefined
    Estimate says why.
    """
    settings = _settings(settings, attribute)
    predictions = dataclasses.replace(predictions, targets={target: predictions.targets[target]})

    def part(name):
        table = predictions.table[predictions.table["split"] == name]
        return dataclasses.replace(predictions, table=table.sort_values("image_id").reset_index(drop=True))

    recorded, chosen_on = part(split), None
    if split != subgroups.VALIDATION and (predictions.table["split"] == subgroups.VALIDATION).any():
        chosen_on = part(subgroups.VALIDATION)  # whoever chooses a threshold has what is recorded
    judged = subgroups.with_truth(recorded) if settings.truth == "true" else recorded
    bootstrap = _influences_alone(judged.table["patient_id"].to_numpy())
    (of,) = judgement.judgements(judged, split, settings, bootstrap, chosen_on, recorded)
    _, *groups = of.groups
    figures = of.figures(of.groups, lambda _: ("auc", "brier", *_RATES))
    found = {metric: figures[0][metric][judgement.MACRO] for metric in ("auc", "brier")}
    there = {group.name: rates for group, rates in zip(groups, figures[1:], strict=True) if group.name != MISSING}
    shown = {name: rates for name, rates in there.items() if any(rates[rate][c].defined for c in of.classes for rate in _RATES)}
    classes = [name for name in of.classes if all(rates[rate][name].defined for rates in shown.values() for rate in _RATES)]
    over, worst = {}, ""
    if len(shown) < 2 or not classes:
        few = f"no two groups of {attribute} are recorded" if len(there) < 2 else f"rates of no two groups of {attribute} are shown"
        why = few if len(shown) < 2 else "rates of no class are shown in every group"
        found |= {"error": estimates.undefined(why), "gap": estimates.undefined(why)}
    else:
        over = dict.fromkeys(("error", "gap"), (tuple(classes), tuple(shown))) | {gap_of(one): ((one,), tuple(shown)) for one in classes}
        cells = {one: {(group, rate): rates[rate][one] for group, rates in shown.items() for rate in _RATES} for one in classes}
        at = {one: max(of, key=lambda cell: of[cell].value) for one, of in cells.items()}
        groups_ = [group for group, _ in at.values()]
        worst = max(shown, key=groups_.count)
        found["error"] = estimates.mean([cells[one][at[one]] for one in classes])
        found |= {gap_of(one): _gap(of) for one, of in cells.items()}
        found["gap"] = estimates.mean([found[gap_of(one)] for one in classes])
    return Measured(found, *_images(judged.table), judged.labels(target), over, worst, tuple(name for name in there if name not in shown))


def gap_of(name: str) -> str:
    """The metric that is the error gap of one class."""
    return f"gap of {name}"


def _gap(cells: Mapping[tuple[str, str], Estimate]) -> Estimate:
    """cells: rates by group and which rate it is."""
    ranges = []
    for rate in _RATES:
        of = sorted((one for (_, which), one in cells.items() if which == rate), key=lambda one: one.value)
        ranges.append(estimates.difference(of[-1], of[0]))
    return estimates.mean(ranges)


def encoded(readings: Readings, target: str, settings) -> Measured:
    """The macro AUC of each probe of the features for `target`, among all images; under STRONGEST that of the greatest, and under `within` in each stratum."""
    order = np.argsort(readings.table["image_id"].to_numpy(str))
    table = readings.table.iloc[order].reset_index(drop=True)
    ordered = dataclasses.replace(readings, table=table, scores={name: of[order] for name, of in readings.scores.items()})
    places = probed.of_features(ordered, target, settings, _influences_alone(table["patient_id"].to_numpy()))
    fitted = {(r.attribute, r.group, r.probe): (r.probe, r.about.get("fit_images"), r.about.get("fit_patients")) for r in readings.readings if r.target == target and r.input == FEATURES and not r.shuffled}
    figures, over = dict(places[("", "")]), {probe: fitted["", "", probe] for probe in places[("", "")]}
    for place, of in places.items():
        name = within(*place) if place[0] else STRONGEST
        defined = {probe: one for probe, one in of.items() if one.defined}
        why = next((one.reason for one in of.values()), "no probe was fitted")
        figures[name] = max(defined.values(), key=lambda one: one.value) if defined else estimates.undefined(why)
        over[name] = tuple(sorted(fitted[(*place, probe)] for probe in defined))
    labels = np.stack([table[f"label_{target}"] == name for name in readings.targets[target]], axis=1).astype(np.float64)
    labels[table[f"label_{target}"].isna()] = np.nan
    return Measured(figures, *_images(table), labels, over, strata=tuple(place for place in places if place[0]))


def encoded_on(name: str, readings: Readings, target: str, settings) -> Measured:
    """The AUC of the strongest probe on the data set called `name`, by readings of its images."""
    there = encoded(readings, target, settings)
    return dataclasses.replace(there, figures={on(name): there.figures[STRONGEST]}, over={on(name): there.over[STRONGEST]}, strata=())


def on(name: str) -> str:
    """The metric that is the AUC of the strongest probe on another data set than that it was fitted on."""
    return f"on {name}"


def _images(table) -> tuple[np.ndarray, np.ndarray]:
    return table["image_id"].to_numpy(str), table["patient_id"].to_numpy(str)


def within(attribute: str, group: str) -> str:
    """The metric that is the AUC of the strongest of the probes that were fitted and judged in a stratum."""
    return f"within {attribute}: {group}"


def why_not_paired(one: Measured, other: Measured) -> str:
    """Why figures of two runs cannot be told apart image by image, or ''."""
    if not np.array_equal(one.images, other.images):
        return "they were judged on other images"
    if not np.array_equal(one.patients, other.patients):
        return "their images are of other patients"
    return "" if np.array_equal(one.labels, other.labels, equal_nan=True) else "the labels of their images differ"


class Of(NamedTuple):
    """An interval, and p of 0; NaN where undefined."""

    low: float = np.nan
    high: float = np.nan
    p: float = np.nan


class Over(NamedTuple):
    """A figure, or a difference, over runs that differ in their seed. low, high, p: NaN where undefined. seeds: how many runs. reason: why, or ''.

    these: over patients alone, of these runs as they are: what other seeds would give it does not say.
    """

    value: float
    low: float
    high: float
    p: float
    seeds: int
    reason: str = ""
    these: Of = Of()


def over_seeds(runs: Sequence[Estimate], level: float, bounded: bool = True) -> Over:
    """The mean of one figure over runs, its interval, and p of its being 0; see above. bounded: it cannot be outside 0 … 1; else -1 … 1."""
    lacking = next((one.reason for one in runs if not one.defined), "")
    k = len(runs)
    if not k or any(not one.defined for one in runs):
        return Over(np.nan, np.nan, np.nan, np.nan, k, lacking or "no run")
    value = float(np.mean([one.value for one in runs]))
    decimals = min((one.decimals for one in runs if one.decimals is not None), default=None)
    moves = sum(one.influence() for one in runs) / k
    patients = float(moves @ moves)
    seeds = float(np.var([one.value for one in runs], ddof=1)) / k if k > 1 else 0.0
    if not np.isfinite(patients + seeds) or patients + seeds <= 0:
        return Over(value, np.nan, np.nan, np.nan, k, "every patient and every seed says the same")
    freedom = max(min(one.patients for one in runs) - 1, 1), max(k - 1, 1)

    def of(seeds: float) -> Of:
        def half(p: float) -> float:
            of_patients, of_runs = (stats.t.isf(p / 2, n) for n in freedom)
            return float(np.sqrt(of_patients**2 * patients + of_runs**2 * seeds))

        # p is that of the interval which just reaches 0.
        p = float(optimize.brentq(lambda p: half(p) - abs(value), _LEAST_P, 1.0)) if half(_LEAST_P) > abs(value) else _LEAST_P
        low, high = max(value - half(1 - level), 0.0 if bounded else -1.0), min(value + half(1 - level), 1.0)
        return Of(low, high, p) if decimals is None else Of(round(low, decimals), round(high, decimals))

    told = (value, "") if decimals is None else (round(value, decimals), "rounded, and without p, lest a count of few patients show")
    return Over(told[0], *of(seeds), k, told[1], of(0.0) if patients > 0 else Of())


_LEAST_P = 1e-12


def differences(runs: Sequence[Estimate], reference: Sequence[Estimate]) -> list[Estimate]:
    """What figures are more than those of a reference, run by run of the same seed."""
    return [estimates.difference(one, other) for one, other in zip(runs, reference, strict=True)]


def _settings(settings, attribute: str) -> ml_collections.ConfigDict:
    made = ml_collections.ConfigDict(settings)
    made.attributes, made.intersections = (attribute,), ()
    return made


def _influences_alone(patients: np.ndarray) -> Bootstrap:
    """Intervals here are of influences; of replicates, which every figure of the audit has, there is one."""
    return Bootstrap(patients, 1, 0)
