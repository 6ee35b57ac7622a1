"""Mitigations beside one another: what probes still find, what findings are told by, and how the group fares that fares worst.

Runs whose configs differ in nothing but the seed are one method; the reference is the one that takes nothing and weighs nothing (ERM). What figures and
intervals are is said in `audit.frontier`. A method that needs the attribute of who is judged is said to, and has no part in the line that is drawn.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence

import numpy as np

from cxr_jax import experiment
from cxr_jax.audit import comparisons, frontier
from cxr_jax.audit.estimates import Estimate
from cxr_jax.audit.frontier import METRICS, STRONGEST, Measured, Over, within
from cxr_jax.report import figures, probes
from cxr_jax.report import rows as audit_rows
from cxr_jax.report.probes import ALPHA
from cxr_jax.tables import Predictions, Readings

PROBES = {"logistic_regression": "logistic regression", "knn": "nearest neighbours", "network": "the small network"}
ENCODING, ACCURACY, HARM = STRONGEST, "auc", "error"  # what the figure is of
LEAST_TOLD = 0.001  # of a difference, in words: numbers have three decimals
# Where less is better.
LESS = {STRONGEST, *PROBES, "brier", "error", "gap"}  # and the gap of a class


@dataclasses.dataclass(frozen=True)
class Method:
    """name: of its runs; seeds: theirs. needs: the attribute of who is judged that it needs, or ''. erases: whether it takes it from features.

    figures, differences: by metric; differences from the reference, {} of itself. p_adjusted: by metric, by Holm over the methods; p_of_these: the same over
    patients alone. each: by metric, every run's figure. worst: groups
    that fare worst, one a run. counts: (images, patients) of `findings`, of `probes`, and of metrics within strata, these rounded as `probes.roughly` does. notes: what is missing, and why.
    """

    name: str
    seeds: Sequence[int]
    needs: str
    erases: bool
    figures: Mapping[str, Over]
    differences: Mapping[str, Over]
    p_adjusted: Mapping[str, float]
    p_of_these: Mapping[str, float]
    each: Mapping[str, Sequence[float]]
    worst: Sequence[str]
    counts: Mapping[str, tuple[int, int]]
    notes: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Frontier:
    """target: of findings; attribute, called: what is encoded, and its name for readers. methods: the reference first. classes: those that the
    rates are over. strata: in words, by their metric; least: patients that a number within them must be of. said: what of it all can be told apart, in sentences."""

    target: str
    attribute: str
    called: str
    methods: Sequence[Method]
    level: float
    classes: Sequence[str]
    strata: Mapping[str, str]
    least: int
    said: Sequence[str]


def _is_one(fields: Mapping) -> bool:
    """Whether a run, by its config's dotted fields, is of a mitigation or a reference for some."""
    return bool(fields.get("mitigate.method")) or fields.get("train.objective.name", "erm") != "erm"


def _is_reference(fields: Mapping) -> bool:
    plain = {"mitigate.method": ("", "none"), "train.objective.name": ("erm",), "train.select": ("auc",), "audit.threshold_by": ("",)}
    moved = [name for name in ("window", "field_of_view", "exposure") if fields.get(f"train.augment.{name}", 0.0)]
    return not moved and all(fields.get(name, allowed[0]) in allowed for name, allowed in plain.items())


def read(runs: Sequence) -> Frontier | None:
    """The frontier of finished runs, `report.compare.Run`s; None where they are not of mitigations, or there is no reference among them.

    A run whose predictions are gone, or are not of its audit, has no part in it, and is said to have none.
    """
    runs = [run for run in runs if len(run.read.rows)]
    if sum(_is_one(run.fields) for run in runs) < 2 or all(_is_reference(run.fields) for run in runs):
        return None
    first = next((run for run in runs if _is_reference(run.fields)), None)
    attribute = first.fields.get("mitigate.attribute", "race") if first else ""
    target = next((t for t in audit_rows.targets(first.read.rows) if t != attribute), None) if first else None
    if target is None:
        return None
    found = [(run, *_measured(run, target, attribute)) for run in runs]
    without = [f"{run.name} has no part in this: {why}." for run, _, why in found if why]
    measured = {run.name: of for run, of, why in found if not why}
    runs = [run for run in runs if run.name in measured]
    if first.name not in measured:
        return None
    groups: dict[str, list] = {}
    for run in runs:
        # What was trained elsewhere was so with the seed that this run names.
        fields = {k: v for k, v in run.fields.items() if k not in ("seed", "name", "extract.weights") and not experiment.is_free(k)}
        key = json.dumps(fields, sort_keys=True)
        if run.fields["seed"] in (other.fields["seed"] for other in groups.get(key, ())):
            key += f" {run.name}"  # the same twice, of other weights
        groups.setdefault(key, []).append(run)
    ordered = sorted(groups.values(), key=lambda of: not _is_reference(of[0].fields))
    if len(ordered) < 2:
        return None
    least = max((run.read.probed.least for run in runs if run.read.probed is not None), default=1)
    level, names = first.settings["level"], _distinct([_name(of) for of in ordered])
    by_seed = [{run.fields["seed"]: measured[run.name] for run in sorted(of, key=lambda run: run.fields["seed"])} for of in ordered]
    told = [_estimates(its, by_seed[0]) for its in by_seed]
    figures_, differences = (_over_seeds([one[k] for one in told], level, bounded=k == 0) for k in (0, 1))
    methods = _adjusted([
        Method(
            name, sorted(its), experiment.needs_attribute(of[0].read.config), of[0].fields.get("mitigate.method", "") not in ("", "none"), mine, apart, {}, {},
            {metric: [one.value for one in several] for metric, several in runs_.items()}, [one[0].worst for one in its.values()],
            _counts(next(iter(its.values())), least), notes,
        )
        for name, of, its, mine, apart, (runs_, _, notes) in zip(names, ordered, by_seed, figures_, differences, told, strict=True)
    ])  # fmt: skip
    called = first.read.name_of(attribute)
    classes = next(iter(by_seed[0].values()))[0].classes
    probed = next((run.read.probed for run in runs if run.read.probed is not None), None)
    places = audit_rows.in_order(place for its in by_seed for _, of in its.values() if of is not None for place in of.strata)
    strata = {within(*place): probes.strata_words(probed, first.read.name_of)(*place) for place in places}
    return Frontier(target, attribute, called, methods, level, classes, strata, least, [*_said(methods, target, called), *without])


def _name(runs: Sequence) -> str:
    """What the names of the runs have in common, without their seed."""
    names = [run.name for run in runs]
    alike = names[0] if len(names) == 1 else re.match(r".*?(?=[-_. ]?\d*$)", names[0])[0]
    return alike if all(name.startswith(alike) for name in names) and alike else names[0]


def _distinct(names: Sequence[str]) -> list[str]:
    return [name if names.count(name) == 1 else f"{name} ({names[:i].count(name) + 1})" for i, name in enumerate(names)]


def _measured(run, target: str, attribute: str) -> tuple[tuple[Measured, Measured | None] | None, str]:
    """((of findings, of probes or None where these were not asked for the attribute), or None; why there is nothing, or '')."""
    path = experiment.mitigated_folder(run.folder, run.read.config) / "predictions.parquet"
    if not path.exists():
        return None, "there is no predictions.parquet"
    predictions = Predictions.read(path)
    if target not in audit_rows.targets(run.read.rows):
        return None, f"it has no target {target}"
    stale = "predictions.parquet and audit.json are not of each other; run the audit stage again"
    if target not in predictions.targets or "split" not in predictions.table:
        return None, stale
    split = audit_rows.main_split(run.read.rows)
    of_findings = frontier.measured(predictions, target, split, run.settings, attribute)
    macro = audit_rows.first(audit_rows.select(run.read.rows, metric="auc", target=target, split=split, attribute="all"), class_="macro")
    if macro is None or not (abs(of_findings.figures["auc"].value - macro["value"]) < 1e-9 or np.isnan(macro["value"])):
        return None, stale
    path = run.folder / "probes" / "readings.parquet"
    if run.read.probed is None or not path.exists():
        return (of_findings, None), ""
    readings = Readings.read(path)
    return (of_findings, frontier.encoded(readings, attribute, run.settings) if attribute in readings.targets else None), ""


ByMetric = Mapping[str, Sequence[Estimate]]
BySeed = Mapping[int, tuple[Measured, Measured | None]]


def _estimates(its: BySeed, reference: BySeed) -> tuple[ByMetric, ByMetric, list[str]]:
    """(figures of all seeds, differences from the reference of those that it has too, what is missing and why)."""
    shared, notes = [seed for seed in its if seed in reference], []
    figures_, apart = {}, {}
    if len(shared) < len(its):
        notes.append(f"differences are of {len(shared)} of {len(its)} seeds, which the reference has too")
    for part in (0, 1):
        mine, theirs = ({seed: of[seed][part] for seed in seeds} for of, seeds in ((its, its), (reference, shared)))
        if any(one is None for one in mine.values()):
            notes.append("probes were not asked for it")
            continue
        alike = [metric for metric in next(iter(mine.values())).figures if all(metric in one.figures for one in mine.values())]
        figures_ |= {metric: [one.figures[metric] for one in mine.values()] for metric in alike}
        notes += audit_rows.in_order(one.reason for metric in (*METRICS, STRONGEST) for one in figures_.get(metric, ()) if not one.defined)
        if its is reference or not shared or any(theirs[seed] is None for seed in shared):
            continue
        why = next(filter(None, (frontier.why_not_paired(mine[seed], theirs[seed]) for seed in shared)), "")
        if why:
            notes.append(f"no difference from the reference: {why}")
            continue
        both = [metric for metric in alike if all(metric in one.figures for one in theirs.values())]
        apart |= {m: frontier.differences([mine[s].figures[m] for s in shared], [theirs[s].figures[m] for s in shared]) for m in both}
    return figures_, apart, audit_rows.in_order(notes)


def _over_seeds(methods: Sequence[ByMetric], level: float, bounded: bool) -> list[dict[str, Over]]:
    return [{metric: frontier.over_seeds(runs, level, bounded) for metric, runs in method.items()} for method in methods]


def _counts(measured: tuple[Measured, Measured | None], least: int) -> dict[str, tuple[int, int]]:
    counts = {kind: (of.n_images, of.n_patients) for kind, of in zip(("findings", "probes"), measured, strict=True) if of is not None}
    strata = measured[1].strata if measured[1] is not None else {}
    return counts | {within(*place): tuple(probes.roughly(n, least) for n in of) for place, of in strata.items()}


def _adjusted(methods: Sequence[Method]) -> list[Method]:
    """With p adjusted by Holm, of each metric over the methods."""
    adjusted: list[dict[str, float]] = [{} for _ in methods]
    these: list[dict[str, float]] = [{} for _ in methods]
    for metric in audit_rows.in_order(metric for method in methods for metric in method.differences):
        have = [i for i, method in enumerate(methods) if metric in method.differences]
        found = [methods[i].differences[metric] for i in have]
        for put, p in ((adjusted, [of.p for of in found]), (these, [of.these.p for of in found])):
            for i, one in zip(have, comparisons.holm(np.array(p)), strict=True):
                put[i][metric] = float(one)
    return [dataclasses.replace(method, p_adjusted=p, p_of_these=q) for method, p, q in zip(methods, adjusted, these, strict=True)]


# ------------------------------------------------------------------------------------------------- in words


def names_of(target: str, called: str) -> dict[str, str]:
    """What every metric is called."""
    by_probe = {probe: f"AUC of {words}, refitted, for {called}" for probe, words in PROBES.items()}
    return {
        STRONGEST: f"encoding of {called} (AUC of the strongest refitted probe)",
        **by_probe,
        "auc": f"macro AUC of {target}",
        "brier": "Brier score",
        "error": "worst error of a group",
        "gap": "error gap between groups",
    }


def distinguishable(method: Method, metric: str) -> bool:
    """Whether a difference from the reference is told apart from none, by its interval and after correction for the number of methods."""
    found = method.differences.get(metric)
    apart = found is not None and np.isfinite(found.low) and (found.low > 0 or found.high < 0)
    return bool(apart and method.p_adjusted[metric] < ALPHA)


def of_these(method: Method, metric: str) -> bool:
    """Whether these runs, as they are, are told apart from the reference's, over patients alone."""
    found = method.differences.get(metric)
    return bool(found is not None and (found.these.low > 0 or found.these.high < 0) and method.p_of_these[metric] < ALPHA)


def _said(methods: Sequence[Method], target: str, called: str) -> list[str]:
    reference, names, said = methods[0], names_of(target, called), []
    for method in methods[1:]:
        told = {"Better than": [], "Worse than": [], "By these runs alone better than": [], "By these runs alone worse than": [], "Not told apart from": []}
        for metric in (ENCODING, ACCURACY, "brier", HARM, "gap"):
            found = method.differences.get(metric)
            if found is None or not np.isfinite(found.value):
                continue
            better, few = "better" if (found.value < 0) == (metric in LESS) else "worse", not distinguishable(method, metric)
            how = "Not told apart from" if few and not of_these(method, metric) else f"By these runs alone {better} than" if few else f"{better.capitalize()} than"
            ends = _ends(found.these if few and of_these(method, metric) else found) or f"no interval: {found.reason}"
            direction = "alike in" if found.value == 0 else "lower" if found.value < 0 else "higher"
            by = f"{audit_rows.number(abs(found.value))} ({ends})" if abs(found.value) >= LEAST_TOLD else f"less than {LEAST_TOLD}"
            told[how].append(f"{direction} {names[metric].split(' (')[0]}" + f" by {by}" * (found.value != 0))
        parts = [f"{how} {reference.name}: {'; '.join(several)}" for how, several in told.items() if several]
        needs = f" It needs {method.needs} of everyone who is judged, and is no answer where that is not known or may not be used." if method.needs else ""
        told_parts = ". ".join(parts) or "No difference can be told"
        said.append(f"{method.name}, {seeds(method)}. {told_parts}.{needs}{_undone(method)}")
    if not any(distinguishable(method, metric) for method in methods[1:] for metric in (ENCODING, ACCURACY, HARM, "gap")):
        said.append(f"Over patients and seeds together no method is told apart from {reference.name} in encoding, accuracy or harm.")
    most = max(len(method.seeds) for method in methods)
    if most < 3:
        few = (
            "One seed says nothing of how far another would be from it"
            if most == 1
            else "Two seeds say next to nothing of how far a third would be from them: where they disagree, intervals over seeds are very wide"
        )
        alone = "All that is said" if most == 1 else "What is said of these runs alone"
        said.append(f"{few}. Take five. {alone} is over patients, and holds for these trained networks.")
    return said


def _ends(found) -> str:
    """The interval of a difference without its sign where it leaves out 0, as beside `by`; '' where there is none."""
    if not np.isfinite(found.low):
        return ""
    low, high = sorted((abs(found.low), abs(found.high))) if found.low > 0 or found.high < 0 else (found.low, found.high)
    return f"{audit_rows.number(low)} to {audit_rows.number(high)}"


def seeds(method: Method) -> str:
    return "1 seed" if len(method.seeds) == 1 else f"{len(method.seeds)} seeds"


def _undone(method: Method) -> str:
    """What a linear probe no longer finds, or finds less of than the reference's did, and another does."""
    linear, apart = method.figures.get("logistic_regression"), method.differences.get("logistic_regression")
    if linear is None or not np.isfinite(linear.these.low):
        return ""
    nothing, less = linear.these.low <= 0.5, apart is not None and apart.these.high < 0
    more = 0.5 if nothing else linear.these.high
    others = [probe for probe in ("knn", "network") if probe in method.figures and method.figures[probe].these.low > more]
    if not others or not (nothing or less):
        return ""
    undone, s = ": a linear erasure that is undone" * method.erases, "s" * (len(others) == 1)
    found = " and ".join(f"{PROBES[probe]} ({audit_rows.number(method.figures[probe].value)})" for probe in others)
    if nothing:
        return f" What logistic regression does not find in these runs, {found} find{s}{undone}."
    return f" Where logistic regression finds less in these runs, {audit_rows.number(linear.value)}, {found} find{s} more{undone}."


# ------------------------------------------------------------------------------------------------- the figure


def undominated(methods: Sequence[Method], other: str) -> list[Method]:
    """The deployable methods than which none is better in both encoding and `other`, by their figures alone; by encoding."""
    sign = -1 if other in LESS else 1
    have = [m for m in methods if not m.needs and all(k in m.figures and np.isfinite(m.figures[k].value) for k in (ENCODING, other))]
    points = {m.name: (m.figures[ENCODING].value, -sign * m.figures[other].value) for m in have}

    def beaten(m):
        mine = points[m.name]
        return any(p != mine and p[0] <= mine[0] and p[1] <= mine[1] for p in points.values())

    return sorted((m for m in have if not beaten(m)), key=lambda m: points[m.name])


def draw(found: Frontier) -> figures.Drawing | None:
    """Encoding against accuracy, and against the error of the group that fares worst; None where no two methods have all three."""
    wanted = (ENCODING, ACCURACY, HARM)
    have = [m for m in found.methods if all(k in m.figures and np.isfinite(m.figures[k].value) for k in wanted)]
    return _draw(found, have) if len(have) > 1 else None


@figures.styled
def _draw(found: Frontier, methods: Sequence[Method]):
    names = names_of(found.target, found.called)
    figure = figures.new_figure(3.3 + 0.17 * (len(methods) + 1) // 2, 7.4)
    panels = figure.subplots(1, 2)
    reference, said = methods[0], []
    for panel, other in zip(panels, (ACCURACY, HARM), strict=True):
        panel.axhline(reference.figures[other].value, color=figures.FAINT, lw=0.8, ls=":")
        panel.axvline(reference.figures[ENCODING].value, color=figures.FAINT, lw=0.8, ls=":")
        line = undominated(methods, other)
        panel.plot([m.figures[ENCODING].value for m in line], [m.figures[other].value for m in line], color=figures.FAINT, lw=1.0, zorder=1)
        for i, method in enumerate(methods):
            x, y, colour = method.figures[ENCODING], method.figures[other], figures.COLOURS[i % len(figures.COLOURS)]
            marker = figures.MARKERS[(i // len(figures.COLOURS) + i) % len(figures.MARKERS)]
            few = len(method.seeds) < 3
            panel.plot(method.each[ENCODING], method.each[other], ".", color=colour, ms=3, alpha=0.6, zorder=2)
            for at, ends, over in (("x", x.these if few else x, y), ("y", y.these if few else y, x)):
                if np.isfinite(ends.low):
                    (panel.hlines if at == "x" else panel.vlines)(over.value, ends.low, ends.high, color=colour, lw=0.9, alpha=0.55)
            inside = "white" if method.needs else colour
            label = f"{figures.short(method.name, 30)}{' (needs the attribute)' if method.needs else ''}" if other == ACCURACY else None
            panel.plot(x.value, y.value, marker, color=colour, mfc=inside, ms=6, label=label, zorder=3)
        if other == HARM:
            panel.invert_yaxis()
        panel.set_xlabel("AUC of the strongest refitted probe")
        panel.set_ylabel(figures.wrapped(names[other][0].upper() + names[other][1:], 34))
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    for method in methods:
        said.append(f"{method.name}: " + ", ".join(f"{names[k].split(' (')[0]} {_estimate(method.figures[k])}" for k in (ENCODING, ACCURACY, HARM)))
    n, p = methods[0].counts["findings"], methods[0].counts["probes"]
    level, runs = audit_rows.percent(found.level), [len(m.seeds) for m in methods]
    over = "over patients and seeds" if min(runs) > 2 else "over patients alone" if max(runs) < 3 else "over patients, and seeds where there are three or more"
    over += f" ({min(runs)}{f' to {max(runs)}' * (min(runs) != max(runs))} runs a method)"
    caption = (
        f"Encoding of {found.called} against accuracy (left) and harm (right, better is up): to the left and up is better. Small dots: single runs."
        f" Lines: {level} intervals {over}. Dotted: {reference.name}. Joined: methods than which none that can be"
        f" deployed is better in both, by the points alone. Hollow: needs the attribute of who is judged. {n[0]:,} test images of {n[1]:,} patients; probes, {p[0]:,} of {p[1]:,}."
    )
    return f"frontier_{found.target}_{found.attribute}", figure, "Encoding, accuracy and harm. " + "; ".join(said) + ".", caption


def _estimate(found: Over) -> str:
    return f"{audit_rows.number(found.value)}" + (f" ({_plain(found)})" if np.isfinite(found.low) else "")


def _plain(found: Over) -> str:
    return f"{audit_rows.number(found.low)} to {audit_rows.number(found.high)}"
