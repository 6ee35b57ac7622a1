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
from cxr_jax.audit.frontier import METRICS, STRONGEST, Measured, Over, on, within
from cxr_jax.report import figures, probes
from cxr_jax.report import rows as audit_rows
from cxr_jax.report.probes import ALPHA
from cxr_jax.tables import FEATURES, ON, Predictions, Readings

LINEAR = "logistic_regression"
PROBES = {LINEAR: "logistic regression", "knn": "nearest neighbours", "network": "the small network"}
ENCODING, ACCURACY, HARM = STRONGEST, "auc", "error"  # what the figure is of
LEAST_TOLD = 0.001  # of a difference, in words: numbers have three decimals
# Where less is better.
LESS = {STRONGEST, *PROBES, "brier", "error", "gap"}  # and the gap of a class


@dataclasses.dataclass(frozen=True)
class Method:
    """name: of its runs; seeds: theirs. needs: the attribute of who is judged that it needs, or ''. erases: whether it takes it from features.

    figures, differences: by metric; differences from the reference, {} of itself. beyond: by probe, how much more it finds than logistic regression.
    p_adjusted: by metric, of differences, by Holm over the methods; p_of_these: the same over patients alone. lacking: why there is no difference, by
    metric, 'all' where there is none of anything. each: by metric, every run's figure. worst: groups that fare worst, one a run. classes: those that error and gap are over. counts: (images, patients) in
    words of `findings`, of `probes`, and of metrics within strata and on other data sets. notes: what else must be known.
    """

    name: str
    seeds: Sequence[int]
    needs: str
    erases: bool
    figures: Mapping[str, Over]
    differences: Mapping[str, Over]
    beyond: Mapping[str, Over]
    p_adjusted: Mapping[str, float]
    p_of_these: Mapping[str, float]
    lacking: Mapping[str, str]
    each: Mapping[str, Sequence[float]]
    worst: Sequence[str]
    classes: Sequence[str]
    counts: Mapping[str, tuple[str, str]]
    notes: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Frontier:
    """target: of findings; attribute, called: what is encoded, and its name for readers. methods: the reference first. images: which were judged, in
    words. places: strata and other data sets in words, by the metric of encoding there. said: what of it all can be told apart, in sentences."""

    target: str
    attribute: str
    called: str
    methods: Sequence[Method]
    level: float
    images: str
    places: Mapping[str, str]
    said: Sequence[str]


def _is_one(fields: Mapping) -> bool:
    """Whether a run, by its config's dotted fields, is of a mitigation or a reference for some."""
    return bool(fields.get("mitigate.method")) or fields.get("train.objective.name", "erm") != "erm"


def _is_reference(fields: Mapping) -> bool:
    plain = {"mitigate.method": ("", "none"), "train.objective.name": ("erm",), "train.select": ("auc",), "audit.threshold_by": ("",)}
    moved = [name for name in ("window", "field_of_view", "exposure") if fields.get(f"train.augment.{name}", 0.0)]
    return not moved and all(fields.get(name, allowed[0]) in allowed for name, allowed in plain.items())


def _fields(run) -> dict:
    """A run's config by dotted name; of how its network was trained what is true of it, where another run trained it."""
    return {**run.fields, **run.read.run.get("trained_as", {})}


def _own_attribute(fields: Mapping) -> str:
    """What a method is about, '' for one that is about none."""
    if fields.get("mitigate.method") not in ("", "none", None):
        return fields["mitigate.attribute"]
    return fields["train.objective.attribute"] if fields.get("train.objective.name", "erm") not in experiment.WITHOUT_GROUPS else ""


def read(runs: Sequence) -> Frontier | None:
    """The frontier of finished runs, `report.compare.Run`s; None where they are not of mitigations, or there is no reference among them.

    The attribute is what most mitigations are about, or the reference's where none is about one; the target the first of the reference's that is
    another. A run whose predictions are gone, or are not of its audit, and one about another attribute have no part in it, and are said to have none.
    """
    fields = {run.name: _fields(run) for run in runs}
    runs = [run for run in runs if len(run.read.rows)]
    references = [run for run in runs if _is_reference(fields[run.name])]
    if sum(_is_one(fields[run.name]) for run in runs) < 2 or not references:
        return None
    about = [_own_attribute(fields[run.name]) for run in runs]
    named = [name for name in about if name] or [fields[references[0].name].get("mitigate.attribute", "race")]
    attribute = max(dict.fromkeys(named), key=named.count)
    target = next((t for t in audit_rows.targets(references[0].read.rows) if t != attribute), None)
    if target is None:
        return None
    measured, without = {}, []
    for run, own in zip(runs, about, strict=True):
        of, why = (None, f"it is about {own}") if own not in ("", attribute) else _measured(run, target, attribute)
        measured |= {} if why else {run.name: of}
        without += [f"{run.name} has no part in this: {why}."] if why else []
    runs = [run for run in runs if run.name in measured]
    first = next((run for run in references if run.name in measured), None)
    if first is None:
        return None
    groups: dict[str, list] = {}
    for run in runs:
        of = {k: v for k, v in fields[run.name].items() if k not in ("seed", "name", "extract.weights") and not experiment.is_free(k)}
        key = json.dumps(of, sort_keys=True)
        if _seed(fields, run) in (_seed(fields, other) for other in groups.get(key, ())):
            key += f" {run.name}"  # the same twice
        groups.setdefault(key, []).append(run)
    ordered = sorted(groups.values(), key=lambda of: all(run is not first for run in of))
    if len(ordered) < 2:
        return None
    level, names = first.settings["level"], _distinct([_name(of) for of in ordered])
    by_seed = [{_seed(fields, run): measured[run.name] for run in sorted(of, key=lambda run: _seed(fields, run))} for of in ordered]
    methods = []
    for name, of, its in zip(names, ordered, by_seed, strict=True):
        figures_, apart, lacking, notes = _estimates(its, by_seed[0])
        told = {metric: frontier.over_seeds(several, level) for metric, several in figures_.items()}
        differences = {metric: frontier.over_seeds(several, level, bounded=False) for metric, several in apart.items()}
        beyond = {p: frontier.over_seeds(frontier.differences(figures_[p], figures_[LINEAR]), level, bounded=False) for p in PROBES if p != LINEAR and {p, LINEAR} <= set(figures_)}
        each = {metric: [one.value for one in several] for metric, several in figures_.items()}
        erases = fields[of[0].name].get("mitigate.method", "") not in ("", "none")
        worst = [one.worst for one, *_ in its.values()]
        needs = experiment.needs_attribute(of[0].read.config)
        methods.append(Method(name, sorted(its), needs, erases, told, differences, beyond, {}, {}, lacking, each, worst, next(iter(its.values()))[0].classes, _counts(of[0], target, attribute), notes))
    methods = _adjusted(methods)
    strata = audit_rows.in_order(place for its in by_seed for _, of, _ in its.values() if of is not None for place in of.strata)
    probed = next((run.read.probed for run in runs if run.read.probed is not None), None)
    places = {within(*place): f"within {probes.strata_words(probed, first.read.name_of)(*place)}" for place in strata}
    places |= {on(name): f"on {name}, by probes fitted here" for its in by_seed for *_, abroad in its.values() for name in abroad}
    called = first.read.name_of(attribute)
    images = audit_rows.images_of(audit_rows.main_split(first.read.rows))
    return Frontier(target, attribute, called, methods, level, images, places, [*_said(methods, target, called), *without])


def _seed(fields: Mapping[str, Mapping], run) -> int:
    return fields[run.name]["seed"]


def _name(runs: Sequence) -> str:
    """What the names of the runs have in common, without their seed."""
    names = [run.name for run in runs]
    alike = names[0] if len(names) == 1 else re.match(r".*?(?=[-_. ]?\d*$)", names[0])[0]
    return alike if all(name.startswith(alike) for name in names) and alike else names[0]


def _distinct(names: Sequence[str]) -> list[str]:
    return [name if names.count(name) == 1 else f"{name} ({names[:i].count(name) + 1})" for i, name in enumerate(names)]


def _measured(run, target: str, attribute: str) -> tuple[tuple[Measured, Measured | None, Mapping[str, Measured]] | None, str]:
    """((of findings, of probes or None where these were not asked for the attribute, of probes by other data set), or None; why there is nothing, or '')."""
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
        return (of_findings, None, {}), ""
    readings = Readings.read(path)
    of_probes = frontier.encoded(readings, attribute, run.settings) if attribute in readings.targets else None
    abroad = {name: Readings.read(path.parent / f"{ON}{name}.parquet") for name in run.read.probed.abroad}
    return (of_findings, of_probes, {name: frontier.encoded_on(name, of, attribute, run.settings) for name, of in abroad.items() if attribute in of.targets}), ""


ByMetric = Mapping[str, Sequence[Estimate]]
BySeed = Mapping[int, tuple[Measured, Measured | None, Mapping[str, Measured]]]


def _estimates(its: BySeed, reference: BySeed) -> tuple[ByMetric, ByMetric, dict[str, str], list[str]]:
    """(figures of all seeds; differences from the reference of those that both have; why a metric has none; what else must be known)."""
    shared, notes = [seed for seed in its if seed in reference], []
    figures_, apart, lacking = {}, {}, {}
    if not shared:
        lacking["all"] = "the reference has none of its seeds"
    elif len(shared) < max(len(its), len(reference)):
        notes.append(f"differences are of the {len(shared)} seed{'s' * (len(shared) > 1)} that both have, of its {len(its)} and the reference's {len(reference)}")
    left_out = audit_rows.in_order(group for of, *_ in its.values() for group in of.left_out)
    if left_out:
        notes.append(f"worst error and gap are without {' and '.join(left_out)}, of whom too few were judged")
    names = audit_rows.in_order(name for *_, abroad in its.values() for name in abroad)
    for called in ("findings", "probes", *map(on, names)):
        mine, theirs = ({seed: _part(of[seed], called) for seed in seeds} for of, seeds in ((its, its), (reference, shared)))
        metric = called if called in map(on, names) else STRONGEST
        if any(one is None for one in mine.values()):
            lacking[metric] = "probes were not asked for it"
            continue
        alike = [metric for metric in next(iter(mine.values())).figures if all(metric in one.figures for one in mine.values())]
        figures_ |= {metric: [one.figures[metric] for one in mine.values()] for metric in alike}
        if its is reference or not shared:
            continue
        if any(theirs[seed] is None for seed in shared):
            lacking[metric] = "the reference's probes were not asked for it"
            continue
        why = next(filter(None, (frontier.why_not_paired(mine[seed], theirs[seed]) for seed in shared)), "")
        if why:
            lacking |= dict.fromkeys(alike, why)
            continue
        for metric in alike:
            unlike = next(filter(None, (_unlike(mine[s].over.get(metric), theirs[s].over.get(metric), called) for s in shared)), "")
            if unlike or any(metric not in one.figures for one in theirs.values()):
                lacking[metric] = unlike or "the reference lacks it"
            else:
                apart[metric] = frontier.differences([mine[s].figures[metric] for s in shared], [theirs[s].figures[metric] for s in shared])
    return figures_, apart, lacking, notes


def _part(of: tuple, called: str) -> Measured | None:
    findings, probed, abroad = of
    return findings if called == "findings" else probed if called == "probes" else {on(name): there for name, there in abroad.items()}.get(called)


def _unlike(mine: tuple | None, theirs: tuple | None, called: str) -> str:
    """Why figures are of other things; of `Measured.over`."""
    if mine == theirs or mine is None or theirs is None:
        return ""
    if called == "findings":
        moved = [sorted(set(a) ^ set(b)) for a, b in zip(mine, theirs, strict=True)]
        what = "classes" if moved[0] else "groups"
        return f"it is over other {what} than the reference's ({', '.join(moved[0] or moved[1])} in one of the two alone)"
    kinds = [{one[0] for one in (of if isinstance(of[0], tuple) else (of,))} if of else set() for of in (mine, theirs)]
    if kinds[0] != kinds[1]:
        return f"{' and '.join(PROBES.get(probe, probe) for probe in sorted(kinds[0] ^ kinds[1]))} read one of the two alone"
    return "the reference's probes were fitted on other images"


def _counts(run, target: str, attribute: str) -> dict[str, tuple[str, str]]:
    """As the pages of the run tell them, with what must not be told withheld. Runs of one method are of the same images."""

    def words(row, least=1):
        return ("", "") if row is None else tuple(probes.in_count(row[n], least) for n in ("n_images", "n_patients"))

    split, everyone = audit_rows.main_split(run.read.rows), {"metric": "auc", "attribute": "all"}
    counts = {"findings": words(audit_rows.first(audit_rows.select(run.read.rows, target=target, split=split, **everyone), class_="macro"))}
    if run.read.probed is not None:
        rows = run.read.probed.rows
        rows = rows[(rows["target"] == attribute) & (rows["metric"] == "auc") & (rows["input"] == FEATURES) & ~rows["shuffled"].astype(bool)]
        rows = rows[(rows["class"] == "macro") & (rows["probe"] != "kmeans")].drop_duplicates(["attribute", "group"])
        for _, row in rows.iterrows():
            everyone = row["attribute"] == "all"
            counts["probes" if everyone else within(row["attribute"], row["group"])] = words(row, 1 if everyone else run.read.probed.least)
        for name, rows in probes.rows_abroad(run.read.probed, attribute):
            counts[on(name)] = words(audit_rows.first(rows, class_="macro"))
    return counts


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
    for probe in audit_rows.in_order(probe for method in methods for probe in method.beyond):
        have = [i for i, method in enumerate(methods) if probe in method.beyond]
        for i, one in zip(have, comparisons.holm(np.array([methods[i].beyond[probe].these.p for i in have])), strict=True):
            these[i][_beyond(probe)] = float(one)
    return [dataclasses.replace(method, p_adjusted=p, p_of_these=q) for method, p, q in zip(methods, adjusted, these, strict=True)]


def _beyond(probe: str) -> str:
    return f"{probe} beyond {LINEAR}"


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
    """Whether a difference from the reference is told apart from none over patients and seeds, by its interval and after correction for the number of methods."""
    found = method.differences.get(metric)
    apart = found is not None and found.seeds > 1 and (found.low > 0 or found.high < 0)
    return bool(apart and method.p_adjusted[metric] < ALPHA)


def of_these(method: Method, metric: str) -> bool:
    """Whether these runs, as they are, are told apart from the reference's, over patients alone."""
    found = method.differences.get(metric)
    return bool(found is not None and (found.these.low > 0 or found.these.high < 0) and method.p_of_these[metric] < ALPHA)


IN_WORDS = (ENCODING, ACCURACY, "brier", HARM, "gap")  # metrics that sentences are about
_VERDICTS = ("Better than", "Worse than", "By these runs alone better than", "By these runs alone worse than", "Not told apart from", "Without a test, beside")


def _said(methods: Sequence[Method], target: str, called: str) -> list[str]:
    reference, names, said = methods[0], names_of(target, called), []
    for method in methods[1:]:
        told, lacking = {verdict: [] for verdict in _VERDICTS}, {}
        for metric in IN_WORDS:
            found, name = method.differences.get(metric), names[metric].split(" (")[0]
            if found is None or not np.isfinite(found.value):
                lacking.setdefault(_why_not(method, reference, metric), []).append(name)
                continue
            verdict = _verdict(method, metric)
            ends = _ends(found.these if "alone" in verdict else found) or f"no interval: {found.reason}"
            direction = "alike in" if found.value == 0 else "lower" if found.value < 0 else "higher"
            by = f"{audit_rows.number(abs(found.value))} ({ends})" if abs(found.value) >= LEAST_TOLD else f"less than {LEAST_TOLD}"
            told[verdict].append(f"{direction} {name}" + f" by {by}" * (found.value != 0))
        parts = [f"{how} {reference.name}: {'; '.join(several)}" for how, several in told.items() if several]
        parts += [f"No difference can be told in {', '.join(several)}{f': {why}' * bool(why)}" for why, several in lacking.items()]
        parts += [f"It needs {method.needs} of everyone who is judged, and is no answer where that is not known or may not be used"] if method.needs else []
        parts += [note[0].upper() + note[1:] for note in method.notes]
        said.append(f"{method.name}, {seeds(method)}. {'. '.join(parts)}.{_undone(method)}")
    fewest = min((found.seeds for method in methods[1:] for found in method.differences.values()), default=0)
    compared = any(method.differences for method in methods[1:])
    if fewest > 1 and compared and not any(distinguishable(method, metric) for method in methods[1:] for metric in IN_WORDS):
        said.append(f"Over patients and seeds together no method is told apart from {reference.name} in encoding, accuracy or harm.")
    if compared and fewest < 3:
        few = (
            "One seed says nothing of how far another would be from it"
            if fewest == 1
            else "Two seeds say next to nothing of how far a third would be from them: where they disagree, intervals over seeds are very wide"
        )
        said.append(f"{few}. Take five. What is said of these runs alone is over patients, and holds for these trained networks.")
    return said


def _verdict(method: Method, metric: str) -> str:
    found = method.differences[metric]
    if not np.isfinite(found.p):
        return "Without a test, beside" if found.value else "Not told apart from"
    better = "better" if (found.value < 0) == (metric in LESS) else "worse"
    if distinguishable(method, metric):
        return f"{better.capitalize()} than"
    return f"By these runs alone {better} than" if of_these(method, metric) else "Not told apart from"


def _why_not(method: Method, reference: Method, metric: str) -> str:
    """Why there is no difference."""
    lacking = method.lacking.get(metric) or method.lacking.get("all")
    own = [of.figures[metric].reason for of in (method, reference) if metric in of.figures and not np.isfinite(of.figures[metric].value)]
    return lacking or (own[0] if own else method.lacking.get(STRONGEST, ""))


def _ends(found) -> str:
    """The interval of a difference without its sign where it leaves out 0, as beside `by`; '' where there is none."""
    if not np.isfinite(found.low):
        return ""
    low, high = sorted((abs(found.low), abs(found.high))) if found.low > 0 or found.high < 0 else (found.low, found.high)
    return f"{audit_rows.number(low)} to {audit_rows.number(high)}"


def seeds(method: Method) -> str:
    return "1 seed" if len(method.seeds) == 1 else f"{len(method.seeds)} seeds"


def _undone(method: Method) -> str:
    """What a linear probe no longer finds, or finds less of than the reference's did, and another does; told by the difference of the two, corrected."""
    linear, apart = method.figures.get(LINEAR), method.differences.get(LINEAR)
    if linear is None or not np.isfinite(linear.these.low):
        return ""
    nothing, less = linear.these.low <= 0.5, apart is not None and apart.these.high < 0
    others = [p for p, more in method.beyond.items() if more.these.low > 0 and method.p_of_these[_beyond(p)] < ALPHA and method.figures[p].these.low > 0.5]
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
    n, p = (methods[0].counts.get(of, ("", "")) for of in ("findings", "probes"))
    level, runs = audit_rows.percent(found.level), [len(m.seeds) for m in methods]
    over = "over patients and seeds" if min(runs) > 2 else "over patients alone" if max(runs) < 3 else "over patients, and seeds where there are three or more"
    over += f" ({min(runs)}{f' to {max(runs)}' * (min(runs) != max(runs))} runs a method)"
    caption = (
        f"Encoding of {found.called} against accuracy (left) and harm (right, better is up): to the left and up is better. Small dots: single runs."
        f" Lines: {level} intervals {over}. Dotted: {reference.name}. Joined: methods than which none that can be"
        f" deployed is better in both, by the points alone. Hollow: needs the attribute of who is judged. {n[0]} {found.images} of {n[1]} patients; probes, {p[0]} of {p[1]}."
    )
    return f"frontier_{found.target}_{found.attribute}", figure, "Encoding, accuracy and harm. " + "; ".join(said) + ".", caption


def _estimate(found: Over) -> str:
    return f"{audit_rows.number(found.value)}" + (f" ({_plain(found)})" if np.isfinite(found.low) else "")


def _plain(found: Over) -> str:
    return f"{audit_rows.number(found.low)} to {audit_rows.number(found.high)}"
