"""Runs beside one another: where their configs differ, their AUCs, and the differences of those that were judged on the same images.

    read(folders) -> Comparison         each a run, or the folder of a sweep, which stands for its runs
    text(comparison) -> str             for a terminal
    write(comparison, path)             one self-contained page

AUCs, their intervals and n are those of each run's audit.json, less what its report withholds. A difference, another run's AUC less
the first one's, is computed anew from both predictions.parquet (`audit.paired`), and told only where both audits show all that it
is made of: the AUC of a class and how many are positive; of a mean over classes, those of each of them.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
import textwrap
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import ticker

from cxr_jax import experiment, tables
from cxr_jax.audit import comparisons, subgroups
from cxr_jax.audit.frontier import gap_of
from cxr_jax.audit.paired import Paired, Reference, Scored
from cxr_jax.report import figures, frontier, html, leakage, page, probes, travel
from cxr_jax.report import rows as audit_rows
from cxr_jax.tables import AS_MANY, FEATURES, Predictions, UserError

COLUMNS = 100  # of a terminal
MOST_LINES = 40  # of a figure
NO_TEST = "In each run probes were fitted anew; their differences are not tested here."


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run: its folder as the user gave it, what to call it, its config's leaves by dotted name, and what its files say."""

    folder: pathlib.Path
    name: str
    fields: Mapping[str, Any]
    read: Any

    @property
    def settings(self) -> Mapping[str, Any]:
        return self.read.config["audit"]


@dataclasses.dataclass(frozen=True)
class Line:
    """One run's AUC. row: of the audit, None where it has none; difference: from the first run; note: why something is missing.

    p_adjusted: NaN where there is no p. counts: n of images and of patients, in words.
    """

    run: str
    row: pd.Series | None
    counts: tuple[str, str] = ("", "")
    difference: Paired | None = None
    p_adjusted: float = np.nan
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
    """Blocks of lines, a block a class or a reading of a probe; family: of how many comparisons the adjusted p are; measure: what values are; test: what p is of."""

    title: str
    blocks: Sequence[tuple[str, Sequence[Line]]]
    family: int = 0
    measure: str = "AUC"
    test: str = "Wald's test, clustered by patient"

    @property
    def lines(self) -> list[Line]:
        return [line for _, lines in self.blocks for line in lines]


@dataclasses.dataclass(frozen=True)
class Compared:
    """One target. macro: all classes together; classes: each by itself. said: what intervals and tests allow to be said."""

    called: str
    macro: Table
    classes: Table
    said: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """runs: the first is what the others are compared with. fields: (dotted name, its value in each run), where these differ.

    targets: that at least two of the runs have. probed: a table a label that probes of at least two of them were asked for. frontier: of
    mitigations, None where the runs are of none. notes: what else must be known.
    """

    runs: Sequence[Run]
    fields: Sequence[tuple[str, Sequence[str]]]
    targets: Sequence[Compared]
    probed: Sequence[Table]
    frontier: frontier.Frontier | None
    travelled: Sequence[Travelled]
    leaks: Table | None
    notes: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Travelled:
    """What is told of one target, by where it was learnt and where it is judged: a matrix, and tables of everyone and of groups."""

    drawn: figures.Drawing | None
    everyone: Table
    groups: Table


def read(folders: Sequence[os.PathLike | str]) -> Comparison:
    """Reads and compares the runs of folders, in the order given; one without a run.json stands for the runs in it.

    Raises UserError for fewer than two runs, one named twice, one that is not done, a folder that holds none, and for a file
    that is not what its stage writes.
    """
    found = [run for folder in folders for run in _runs(pathlib.Path(folder))]
    if len(found) < 2:
        raise UserError("name at least two runs, or the folder of a sweep of two: python -m cxr_jax.compare RUN RUN …")
    resolved = [folder.resolve() for folder in found]
    for folder, where in zip(found, resolved, strict=True):
        if resolved.count(where) > 1:
            raise UserError(f"{folder}: named twice; a run has no difference from itself")
    runs = [_open(folder, name) for folder, name in zip(found, _names(resolved), strict=True)]
    notes = _notes(runs)
    targets = [target for target in audit_rows.in_order(t for run in runs for t in _targets(run)) if sum(target in _targets(run) for run in runs) > 1]
    if not targets and any(_targets(run) for run in runs):
        have = "; ".join(f"{run.name}: {', '.join(_targets(run)) or 'nothing'}" for run in runs)
        notes.append(f"No two of the runs have predictions of one target. What was predicted: {have}.")
    compared = [_compare(runs, target) for target in targets]
    return Comparison(runs, _differing(runs), compared, _probed(runs), frontier.read(runs), _travelled(runs), _leaks(runs), notes)


# ------------------------------------------------------------------------------------------------- reading


def _runs(folder: pathlib.Path) -> list[pathlib.Path]:
    """The folder itself, or, where it is no run, those in it that are, in the order of their sweep."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    if (folder / "run.json").exists():
        return [folder]
    inside = sorted(child for child in folder.iterdir() if (child / "run.json").exists())
    if not inside:
        raise UserError(f"{folder}: no run; neither it nor any folder in it has a run.json")
    order: list[str] = []
    for child in inside:
        of = _record(child).get("sweep")
        order = of["runs"] if of and len(of["runs"]) > len(order) else order
    names = [child.name for child in inside]
    missing = [name for name in order if name not in names]
    if missing:
        raise UserError(f"{folder}: {', '.join(missing)} of this sweep has not been run; run it, or name those that are done one by one")
    return sorted(inside, key=lambda child: order.index(child.name) if child.name in order else len(order))


def _record(folder: pathlib.Path) -> dict:
    record = tables.read_json(folder / "run.json")
    if not isinstance(record, dict) or "status" not in record or "stages" not in record:
        raise UserError(f"{folder / 'run.json'}: not the record of a run that was begun; start it with cxr_jax.main")
    return record


def _open(folder: pathlib.Path, name: str) -> Run:
    record = _record(folder)
    if record["status"] != "done":
        raise UserError(f"{folder}: this run's status is {record['status']!r}; only runs that are done are compared, so end it or leave it out")
    config = tables.read_json(folder / "config.json")
    undone = [stage for stage in config["stages"] if stage != "report" and record["stages"].get(stage, {}).get("status") != "done"]
    if undone:
        raise UserError(f"{folder}: its stage {undone[0]} is not done; start the run again, with the same command, or leave it out")
    if not any((folder / file).exists() for file in ("audit.json", "probe_audit.json")):
        raise UserError(f"{folder}: nothing was judged in this run: it has neither audit.json nor probe_audit.json")
    fields = experiment.fields(config)
    for field, digest in record.get("files", {}).items():  # a file of the same name may say something else
        fields[field] = f"{fields.get(field, '')} ({digest})"
    return Run(folder, name, fields, html.read_workdir(folder))


def _names(resolved: Sequence[pathlib.Path]) -> list[str]:
    """As much of the end of each path as tells them all apart."""
    for parts in range(1, max(len(path.parts) for path in resolved)):
        names = ["/".join(path.parts[-parts:]) for path in resolved]
        if len(set(names)) == len(names):
            break
    return names


def _differing(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Where the configs differ, in what results depend on."""
    lines = []
    for field in audit_rows.in_order(field for run in runs for field in run.fields):
        values = [_shown(run.fields[field]) if field in run.fields else "no such field" for run in runs]
        if len(set(values)) > 1 and not experiment.is_free(field):
            lines.append((field, values))
    return lines


def _shown(value) -> str:
    return value if isinstance(value, str) and value else json.dumps(value)


def _notes(runs: Sequence[Run]) -> list[str]:
    notes = []
    commits = {run.read.run.get("git_commit"): bool(run.read.run.get("git_dirty")) for run in runs}
    if len(commits) > 1:
        told = [f"{(commit or 'unknown')[:10]}{', with changes' if dirty else ''}" for commit, dirty in commits.items()]
        notes.append(f"The runs are not of the same code: commits {'; '.join(told)}.")
    data = [name for name, _ in _differing(runs) if name.startswith(("dataset.", "predict.")) and name != "predict.checkpoint"]
    if data:
        notes.append(f"The runs differ in their data ({', '.join(data)}). Images are taken for the same by their ids; the pictures need not be.")
    if len({run.settings["level"] for run in runs}) > 1:
        notes.append("Intervals are not all at one level, see audit.level.")
    return notes


# ------------------------------------------------------------------------------------------------- comparing


def _targets(run: Run) -> list[str]:
    return audit_rows.targets(run.read.rows)


def _audited(run: Run, target: str) -> pd.DataFrame:
    """Rows of a target's AUCs on the run's main split, everybody's."""
    if not len(run.read.rows):
        return run.read.rows
    split = audit_rows.main_split(run.read.rows)
    return audit_rows.select(run.read.rows, metric="auc", target=target, split=split, attribute=subgroups.ALL)


def _compare(runs: Sequence[Run], target: str) -> Compared:
    called = next(run.read.name_of(target) for run in runs if target in _targets(run))
    audited = [_audited(run, target) for run in runs]
    classes = audit_rows.in_order(name for rows in audited for name in rows["class"] if name != subgroups.MACRO)
    found = _differences(runs, target, audited)
    images = audit_rows.in_order(audit_rows.images_of(rows["split"].iloc[0]) for rows in audited if len(rows))
    made = []
    for title, names in (("Macro AUC", [subgroups.MACRO]), ("AUC", classes)):
        blocks = []
        for name in names:
            lines = []
            for run, rows, (differences, why) in zip(runs, audited, found, strict=True):
                row = audit_rows.first(rows, class_=name)
                if row is None:
                    lines.append(Line(run.name, None, note=f"no such {'target' if not len(rows) else 'class'}"))
                    continue
                paired = differences.get(name)
                note = [audit_rows.note(row, positives=False), why.get(name, why.get("", "")) if paired is None else paired.reason]
                counts = tuple(audit_rows.count(row[n]) for n in ("n_images", "n_patients"))
                lines.append(Line(run.name, row, counts, paired, note="; ".join(filter(None, note))))
            blocks.append((audit_rows.class_name(name), lines))
        made.append(_adjusted(Table(f"{title} of {called}, {' or '.join(images)}", blocks)))
    macro, by_class = made
    return Compared(called, macro, by_class, _said(macro, runs))


def _differences(runs: Sequence[Run], target: str, audited: Sequence[pd.DataFrame]) -> list[tuple[dict[str, Paired], dict[str, str]]]:
    """Of each run, the differences from the first by class and `macro`; and by class why there is none, '' for all of them."""
    first, rows = runs[0], audited[0]
    if not len(rows):
        return [({}, {"": "" if run is first else f"no difference: the first run has no target {target}"}) for run in runs]
    scored, why_none = _scored(first, target, rows)
    if why_none:
        return [({}, {"": "" if run is first else f"no difference: of the first run, {why_none}"}) for run in runs]
    reference = Reference(scored, _of_intervals(first))
    found: list[tuple[dict[str, Paired], dict[str, str]]] = [({}, {"": ""})]
    for run, its in zip(runs[1:], audited[1:], strict=True):
        other, why = _scored(run, target, its)
        why = why or reference.why_not(other, max(first.settings["min_patients"], run.settings["min_patients"]))
        if why:
            found.append(({}, {"": f"no difference: {why}"}))
            continue
        defined = [name for name in scored.classes if all(np.isfinite(_row(of, name)["value"]) for of in (rows, its))]
        whole = [name for name in defined if all(_is_whole(_row(of, name)) for of in (rows, its))]
        macro = bool(whole) and whole == defined and all(np.isfinite(_row(of, subgroups.MACRO)["value"]) for of in (rows, its))
        withheld = "no difference, lest a count of few patients show"
        reasons = {name: withheld for name in defined if name not in whole}
        if whole != defined:
            reasons[subgroups.MACRO] = withheld
        found.append((reference.less(other, whole, macro), {"": "", **reasons}))
    return found


def _of_intervals(run: Run) -> types.SimpleNamespace:
    """What the run's audit was told of the bootstrap and of intervals. UserError where its config is of before there was such a field."""
    names = ("level", "interval", "replicates", "seed")
    for name in names:
        if name not in run.settings:
            raise UserError(f"{run.folder / 'config.json'}: no field 'audit.{name}'; run the audit stage again")
    return types.SimpleNamespace(**{name: run.settings[name] for name in names})


def _row(rows: pd.DataFrame, name: str) -> pd.Series:
    return audit_rows.first(rows, class_=name)


def _is_whole(row: pd.Series) -> bool:
    """Whether the audit shows the AUC of a class as it is: where it hides how many are positive, it rounds what would tell."""
    return bool(np.isfinite(row["value"]) and np.isfinite(row["n_positive"]) and not row["suppressed"])


def _scored(run: Run, target: str, rows: pd.DataFrame) -> tuple[Scored | None, str]:
    """The scores that an audit is of, or why they cannot be compared."""
    if not len(rows):
        return None, f"it has no target {target}"
    path = experiment.mitigated_folder(run.folder, run.read.config) / "predictions.parquet"
    if not path.exists():
        return None, "there is no predictions.parquet"
    predictions, split = Predictions.read(path), rows["split"].iloc[0]
    stale = "predictions.parquet and audit.json are not of each other; run the audit stage again"
    if target not in predictions.targets or set(predictions.targets[target].classes) != set(rows["class"]) - {subgroups.MACRO}:
        return None, stale
    if split != subgroups.ALL:
        if "split" not in predictions.table:
            return None, stale
        table = predictions.table[predictions.table["split"] == split]
        predictions = dataclasses.replace(predictions, table=table.reset_index(drop=True))
    scored = Scored.of(predictions, target)
    for _, row in rows[rows["class"] != subgroups.MACRO].iterrows():
        if _is_whole(row) and not abs(scored.auc(row["class"]) - row["value"]) < 1e-9:
            return None, stale
    return scored, ""


def _adjusted(table: Table) -> Table:
    """With p adjusted by Holm over all comparisons of the table that have one."""
    p = np.array([np.nan if line.difference is None else line.difference.p for line in table.lines], np.float64)
    adjusted = iter(comparisons.holm(p).tolist())
    blocks = [(name, [dataclasses.replace(line, p_adjusted=next(adjusted)) for line in lines]) for name, lines in table.blocks]
    return dataclasses.replace(table, blocks=blocks, family=int(np.isfinite(p).sum()))


def _said(macro: Table, runs: Sequence[Run]) -> list[str]:
    """A sentence for each run but the first, and one on the ceilings where there are any."""
    first, said = runs[0].name, []
    for line in macro.lines[1:]:
        found = line.difference
        if found is None or not np.isfinite(found.value):
            said.append(f"{line.run}: {line.note or 'no difference from the first run'}.")
            continue
        n = f"{line.counts[0]} images of {line.counts[1]} patients"
        if not np.isfinite(found.low):
            said.append(f"{line.run} less {first}: {audit_rows.number(found.value)}, on {n}; nothing can be said of it: {found.reason}.")
            continue
        apart, tested = found.low > 0 or found.high < 0, np.isfinite(line.p_adjusted)
        than = f"{'higher' if found.value > 0 else 'lower'} than that of {first}"
        if apart and tested and line.p_adjusted < probes.ALPHA:
            verdict = f"The macro AUC of {line.run} is {than}"
        elif apart:
            after = f"after correction for {_comparisons(macro.family)}" if tested else "by a test, of which there is none"
            verdict = f"The macro AUC of {line.run} is {than} by its interval, but not {after}"
        else:
            verdict = f"The macro AUC of {line.run} is not shown to differ from that of {first}"
        p = f", adjusted p {audit_rows.p_value(line.p_adjusted)}" if tested else ""
        said.append(f"{verdict}: {_estimate(found)}{p}, on {n}.")
    ceilings: dict[str, list[str]] = {}
    for run, line in zip(runs, macro.lines, strict=True):
        top = None if line.row is None else audit_rows.beside(run.read.rows, line.row)[0]
        if top is not None and np.isfinite(top["value"]):
            ceilings.setdefault(audit_rows.estimate(top), []).append(run.name)
    if ceilings:
        told = "; ".join(f"{value} for {', '.join(names)}" for value, names in ceilings.items())
        said.append(f"The ceiling, the best to expect of any reader of the same images: {told}.")
    return said


def _estimate(found: Paired) -> str:
    return audit_rows.estimate(pd.Series({**found._asdict(), "suppressed": False}))


def _probed(runs: Sequence[Run]) -> list[Table]:
    """Macro AUCs of every reading that probes of two runs have in common."""
    made = []
    have = [run.read.probed for run in runs]
    for target in audit_rows.in_order(t for found in have if found is not None for t in found.rows["target"]):
        each = [{} if found is None else {m[0]: m for m in probes.macros(found, target, run.read.name_of)} for run, found in zip(runs, have, strict=True)]
        blocks = []
        for name in audit_rows.in_order(name for readings in each for name in readings):
            if sum(name in readings for readings in each) < 2:
                continue
            lines = []
            for run, readings in zip(runs, each, strict=True):
                if name not in readings:
                    lines.append(Line(run.name, None, note="no such reading"))
                    continue
                _, row, counts = readings[name]
                lines.append(Line(run.name, row, counts, note=audit_rows.note(row, positives=False)))
            blocks.append((name, lines))
        if blocks:
            called = next(run.read.name_of(target) for run, readings in zip(runs, each, strict=True) if readings)
            made.append(Table(f"Macro AUC of probes for {called}, test images", blocks))
    return made


def _travelled(runs: Sequence[Run]) -> list[Travelled]:
    """One a target that was judged elsewhere; counts are of open data alone, the others' are in each run's own pages."""
    homes = [".".join(filter(None, (run.fields["dataset.name"], run.fields["dataset.variant"]))) for run in runs]
    found, is_open = {}, {}
    for run, home in zip(runs, homes, strict=True):
        if (run.folder / travel.FILE).exists() and "travelled" in run.read.run:
            name = home if homes.count(home) == 1 else f"{home} ({run.name})"
            found[name] = {place: of for place, of in tables.read_json(run.folder / travel.FILE).items() if not of["reason"]}
            is_open |= {name: run.read.judged["open_data"]} | {place: about["open_data"] for place, about in run.read.run["travelled"].items()}
    invented = all(about["invented_groups"] for run in runs if "travelled" in run.read.run for about in (run.read.judged, *run.read.run["travelled"].values()))
    made, name_of = [], functools.partial(audit_rows.attribute_name, invented=invented)
    for target in audit_rows.in_order(t for places in found.values() for of in places.values() for t in of["classes"]):
        rows, everyone, groups = travel.by_group(found, target), {}, {}
        for (home, place, attribute, group), row in rows.items():
            counts = (audit_rows.count(row["n_images"]), audit_rows.count(row["n_patients"])) if is_open[place] else ("", "")
            line = Line(f"learnt on {home}, judged on {place}", row, counts, note=audit_rows.note(row, positives=False))
            if attribute == subgroups.ALL:
                everyone.setdefault("", []).append(line)
            else:
                groups.setdefault(f"{name_of(attribute)}: {audit_rows.group_name(group)}", []).append(line)
        title = f"Macro AUC of {name_of(target)}, by where it was learnt and where it is judged"
        made.append(Travelled(travel.matrix(rows, target, name_of(target)), Table(title, list(everyone.items())), Table(f"{title}, by group", list(groups.items()))))
    return made


_LEAKS = {
    ("reidentification", "rank_1"): "The right patient is the most similar (share)",
    ("reidentification", "rank_10"): "The right patient is among the 10 most similar (share)",
    ("membership", "auc"): "Who was trained on, by the loss (AUC; chance is 0.5)",
    ("membership", "advantage"): "Who was trained on, by the mean loss of training (advantage; chance is 0)",
}


def _leaks(runs: Sequence[Run]) -> Table | None:
    """What releases give away about patients, a block a figure, where two runs or more were asked."""
    found = {run.name: tables.read_json(run.folder / leakage.FILE) for run in runs if (run.folder / leakage.FILE).exists()}
    open_data = {run.name: bool(run.read.judged["open_data"]) for run in runs}
    blocks = []
    for (part, metric), words in _LEAKS.items():
        lines = []
        for name, of in found.items():
            if of[part] is None:
                lines.append(Line(name, None, note=of["reasons"][part]))
                continue
            rows = leakage.rates(of[part]["rows"])
            rows = rows[(rows["metric"] == metric) & (rows["attribute"] == subgroups.ALL)]
            row = rows[rows["gallery"] == "all"].iloc[0] if part == "reidentification" else rows.iloc[-1]  # of several targets the last is of all
            images, patients = row["n_images"], row["n_patients"] if part == "reidentification" else row["n_members"] + row["n_others"]
            of_what = f"chance {audit_rows.number(row['chance'], 4)}" if part == "reidentification" else f"by the loss on {row['target']}"
            counts = (audit_rows.count(images), audit_rows.count(patients)) if open_data[name] else ("", "")
            lines.append(Line(name, row, counts, note="; ".join(filter(None, (of_what, row["reason"] if isinstance(row["reason"], str) else "")))))
        blocks.append((words, lines))
    return Table("What a release gives away about patients", blocks, measure="value") if len(found) > 1 else None


_OVER_SEEDS = "Student's, over patients and seeds"


def _of_methods(found: frontier.Frontier) -> list[Table]:
    """A table a metric, a line a method."""
    names, made = frontier.names_of(found.target, found.called), []
    for metric in (frontier.STRONGEST, *frontier.PROBES, *frontier.METRICS):
        if sum(metric in method.figures for method in found.methods) > 1:
            title = f"{names[metric][0].upper() + names[metric][1:]}, {found.images}"
            made.append(_adjusted(Table(title, [("", _lines_of_methods(found, metric))], measure="value", test=_OVER_SEEDS)))
    return made


def _gaps_of_classes(found: frontier.Frontier) -> Table | None:
    """The error gap of every class, a block a class; None where none is shown."""
    names = audit_rows.in_order(name for method in found.methods for name in method.classes)
    blocks = [(name, _lines_of_methods(found, gap_of(name))) for name in names]
    return _adjusted(Table(f"Error gap between groups, by class, {found.images}", blocks, measure="value", test=_OVER_SEEDS)) if blocks else None


def _in_places(found: frontier.Frontier) -> Table | None:
    """What the strongest probe finds among images alike in one thing, fitted there, and on other data sets, fitted here: a block each; None where there are none."""
    blocks = [(words, _lines_of_methods(found, metric)) for metric, words in found.places.items()]
    if not blocks:
        return None
    where = "by place" if len(blocks) > 1 else blocks[0][0]  # one block has no heading of its own
    return _adjusted(Table(f"Encoding of {found.called} {where} (AUC of the strongest refitted probe), {found.images}", blocks, measure="value", test=_OVER_SEEDS))


def _lines_of_methods(found: frontier.Frontier, metric: str) -> list[Line]:
    lines, in_blocks = [], metric in found.places or metric.startswith(gap_of(""))
    for method in found.methods:
        if metric not in method.figures:
            continue
        of, apart = method.figures[metric], method.differences.get(metric)
        kind = metric if metric in found.places else "probes" if metric in (frontier.STRONGEST, *frontier.PROBES) else "findings"
        row = pd.Series({"value": of.value, "low": of.low, "high": of.high, "level": found.level, "suppressed": False, "reason": of.reason})
        paired = None if apart is None else Paired(*apart[:3], "", apart.p, apart.reason, 0, 0)
        these = ""
        if apart is not None and apart.seeds > 1 and np.isfinite(apart.these.low):
            ends = f"{audit_rows.number(apart.these.low)} to {audit_rows.number(apart.these.high)}"
            # In a table of several blocks the column is adjusted over all of them, which this is not.
            p = "" if in_blocks else f", adjusted p {audit_rows.p_value(method.p_of_these[metric])}"
            these = f"over patients alone the difference of these runs is {ends}{p}"
        over = f"over {len(method.classes)} class{'es' * (len(method.classes) != 1)}" if metric in ("error", "gap") and method.classes else ""
        worst = f"most often worst: {', '.join(audit_rows.in_order(method.worst))}" if metric == "error" and any(method.worst) else ""
        needs = f"needs {method.needs} of who is judged" if method.needs else ""
        lacking = f"no difference: {method.lacking[metric]}" if metric in method.lacking else ""
        note = "; ".join(filter(None, (these, over, worst, needs, lacking, of.reason)))
        lines.append(Line(f"{method.name}, {frontier.seeds(method)}", row, method.counts.get(kind, ("", "")), paired, note=note))
    return lines


def _foremost(table: Table) -> Table:
    """Of a table of probes the readings of the features themselves: in a terminal the controls would hide them."""
    keep = []
    for name, lines in table.blocks:
        row = next(line.row for line in lines if line.row is not None)
        if row["input"] in (FEATURES, "") and not row["shuffled"] and not row["attribute"].startswith(AS_MANY):
            keep.append((name, lines))
    return Table(table.title, keep)


# ------------------------------------------------------------------------------------------------- for the terminal


def text(comparison: Comparison, classes: bool = False) -> str:
    """Plain tables, about 100 columns wide where names allow. classes: each class by itself, too."""
    runs, lines = comparison.runs, []
    lines.append(f"{len(runs)} runs; differences are from the first, {runs[0].name}")
    lines += [f"  {run.name}  {run.folder}" for run in runs if run.name != str(run.folder)]
    lines += ["", *_fields_text(comparison), ""]
    for target in comparison.targets:
        lines += [*_table_text(target.macro), ""]
        lines += [line for sentence in target.said for line in textwrap.wrap(sentence, COLUMNS, subsequent_indent="  ")] + [""]
        if classes:
            lines += [*_table_text(target.classes), ""]
    for table in comparison.probed:
        lines += [*_table_text(_foremost(table)), NO_TEST, ""]
    if comparison.frontier is not None:
        further = [_in_places(comparison.frontier), _gaps_of_classes(comparison.frontier) if classes else None]
        for table in [*_of_methods(comparison.frontier), *filter(None, further)]:
            lines += [*_table_text(table), ""]
        lines += [line for sentence in comparison.frontier.said for line in textwrap.wrap(sentence, COLUMNS, subsequent_indent="  ")] + [""]
    for table in [*(one.everyone for one in comparison.travelled), *filter(None, [comparison.leaks])]:
        lines += [*_table_text(table), ""]
    for note in comparison.notes:
        lines += textwrap.wrap(note, COLUMNS, subsequent_indent="  ")
    return page.for_terminal("\n".join(lines).rstrip())


def _fields_text(comparison: Comparison) -> list[str]:
    if not comparison.fields:
        return ["The configs are the same in all that results depend on."]
    table = _columns([["config", *(run.name for run in comparison.runs)], *([field, *values] for field, values in comparison.fields)])
    if len(table[0]) <= COLUMNS:
        return table
    lines = ["Where the configs differ"]  # too wide for columns
    for field, values in comparison.fields:
        lines.append(field)
        for value in dict.fromkeys(values):
            who = ", ".join(run.name for run, its in zip(comparison.runs, values, strict=True) if its == value)
            lines += textwrap.wrap(f"{value}  ({who})", COLUMNS, initial_indent="    ", subsequent_indent="      ")
    return lines


def _table_text(table: Table) -> list[str]:
    paired = any(line.difference is not None for line in table.lines)
    body, notes = [["", *_head(table, paired)]], []
    for name, lines in table.blocks:
        indent = "  " if len(table.blocks) > 1 else ""
        if indent:
            body.append([name] + [""] * (len(body[0]) - 1))
        for line in lines:
            if line.note and line.note not in notes:
                notes.append(line.note)
            mark = f" [{notes.index(line.note) + 1}]" if line.note else ""
            body.append([f"{indent}{line.run}{mark}", *_cells(line, paired)])
    told = [table.title, *_columns(body)]
    for number, note in enumerate(notes, 1):
        told += textwrap.wrap(f"[{number}] {note}", COLUMNS, subsequent_indent="    ")
    if table.family:
        told.append(f"p: {table.test}; adjusted by Holm over the {_comparisons(table.family)} of this table")
    return told


def _comparisons(family: int) -> str:
    return "1 comparison" if family == 1 else f"{family} comparisons"


def _level(table: Table) -> str:
    """The title of a column of intervals: `95 % interval`, without the number where they have several."""
    levels = {line.row["level"] for line in table.lines if line.row is not None}
    return f"{audit_rows.percent(levels.pop())} interval" if len(levels) == 1 else "interval"


def _head(table: Table, paired: bool) -> list[str]:
    more = ["less first", _level(table), "p", "adjusted p"] if paired else []
    return [table.measure, _level(table), *more, "images", "patients"]


def _cells(line: Line, paired: bool) -> list[str]:
    if line.row is None:
        cells = ["", ""]
    else:
        cells = [audit_rows.value(line.row), audit_rows.interval(line.row)]
    if paired and line.difference is None:
        cells += [""] * 4
    elif paired:
        found = pd.Series(line.difference._asdict())
        cells += [audit_rows.number(found["value"]), audit_rows.interval(found), *map(audit_rows.p_value, (found["p"], line.p_adjusted))]
    return [*cells, *line.counts]


def _columns(body: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines, the first column to the left, the others to the right."""
    widths = [max(len(cells[i]) for cells in body) for i in range(len(body[0]))]
    lines = []
    for name, *cells in body:
        lines.append("  ".join([name.ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells, widths[1:], strict=True))]).rstrip())
    return [lines[0].ljust(sum(widths) + 2 * (len(widths) - 1)), *lines[1:]]


# ------------------------------------------------------------------------------------------------- the page


def write(comparison: Comparison, path: os.PathLike | str) -> None:
    """Writes the page at `path`, whole or not at all. It holds its figures, and asks for nothing from anywhere else."""
    runs = comparison.runs
    invented = [run.read.invented for run in runs]
    tables.write_text(path, page.render(
        "compare.html.jinja",
        title=f"{len(runs)} runs beside one another",
        first=runs[0].name,
        runs=[(run.name, str(run.folder), run.read.run.get("headline", run.read.config["name"]), run.read.run.get("started", "")) for run in runs],
        fields=comparison.fields,
        invented="" if not any(invented) else "all" if all(invented) else "some",
        targets=[{
            "called": target.called,
            "said": target.said,
            "macro": _on_page(target.macro),
            "classes": _on_page(target.classes),
            "drawn": [drawing for drawing in [forest(target)] if drawing is not None],
        } for target in comparison.targets],
        probed=[_on_page(table) for table in comparison.probed],
        no_test=NO_TEST,
        frontier=None if comparison.frontier is None else {
            "called": comparison.frontier.called,
            "said": comparison.frontier.said,
            "tables": [_on_page(table) for table in _of_methods(comparison.frontier)],
            "further": [
                (summary, _on_page(table))
                for summary, table in (
                    ("Encoding within strata, and on other data", _in_places(comparison.frontier)), ("Error gap of each class", _gaps_of_classes(comparison.frontier)),
                )
                if table is not None
            ],
            "drawn": [drawing for drawing in [frontier.draw(comparison.frontier)] if drawing is not None],
        },
        travelled=[{"drawn": [one.drawn] if one.drawn else [], "everyone": _on_page(one.everyone), "groups": _on_page(one.groups)} for one in comparison.travelled],
        leaks=None if comparison.leaks is None else _on_page(comparison.leaks),
        notes=comparison.notes,
        rounded=any(run.read.rounded for run in runs),
        least=max(run.settings["min_patients"] for run in runs),
        methods=audit_rows.in_order(of.method for target in comparison.targets for of in _paired(target) if of.method),
        level=runs[0].settings["level"],
    ))  # fmt: skip


def _paired(target: Compared) -> list[Paired]:
    return [line.difference for table in (target.macro, target.classes) for line in table.lines if line.difference is not None]


def _on_page(table: Table) -> dict:
    paired = any(line.difference is not None for line in table.lines)
    notes = any(line.note for line in table.lines)
    blocks = [(name, [(line.run, _cells(line, paired), line.note) for line in lines]) for name, lines in table.blocks]
    return {"title": table.title, "head": _head(table, paired), "blocks": blocks, "notes": notes, "family": table.family}


def forest(target: Compared) -> figures.Drawing | None:
    """Differences from the first run with their intervals: of all classes together, and of each as far as there is room."""
    blocks = []
    for name, lines in [*target.macro.blocks, *target.classes.blocks]:
        shown = [(line.run, line.difference) for line in lines if line.difference is not None and np.isfinite(line.difference.value)]
        if shown and sum(len(lines) for _, lines in blocks) + len(shown) <= MOST_LINES:
            blocks.append((name, shown))
    return _forest(target, blocks) if blocks else None


@figures.styled
def _forest(target: Compared, blocks: Sequence[tuple[str, Sequence[tuple[str, Paired]]]]):
    several = len({run for _, shown in blocks for run, _ in shown}) > 1
    figure = figures.new_figure(0.75 + 0.25 * (sum(len(shown) for _, shown in blocks) + several * len(blocks)), 5.2)
    panel = figure.subplots()
    said, ticks = [], []
    for y, heading, run, found in _places(blocks, several):
        if found is None:
            at_left = {"transform": panel.get_yaxis_transform(), "ha": "right", "va": "center"}
            panel.text(-0.02, y, figures.short(heading, 26), **at_left, fontsize=8.5, color=figures.FAINT)
            continue
        ticks.append((y, figures.short(run if several else heading, 26)))
        panel.hlines(y, found.low, found.high, color=figures.MODEL, lw=1.7)
        panel.plot(found.value, y, "o", color=figures.MODEL, ms=5, clip_on=False)
        panel.annotate(
            _estimate(found), (1, y), (8, 0), xycoords=panel.get_yaxis_transform(), textcoords="offset points",
            va="center", fontsize=8, color=figures.INK,
        )  # fmt: skip
        said.append(f"{heading}, {run}: {_estimate(found)}")
    panel.axvline(0, color=figures.FAINT, lw=0.9, ls=":")
    panel.set_yticks([y for y, _ in ticks], [name for _, name in ticks])
    panel.set_ylim(y + 0.6, -0.6)
    ends = [end for _, shown in blocks for _, found in shown for end in (found.value, found.low, found.high) if np.isfinite(end)]
    span = max(*ends, 0) - min(*ends, 0) or 0.1
    panel.set_xlim(min(*ends, 0) - 0.05 * span, max(*ends, 0) + 0.05 * span)
    panel.xaxis.set_major_locator(ticker.MaxNLocator(4, steps=[1, 2, 5, 10]))
    panel.xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: f"{x:g}".replace("-", "\N{MINUS SIGN}")))
    panel.grid(axis="y", visible=False)
    panel.tick_params(axis="y", length=0)
    first = target.macro.lines[0]
    panel.set_xlabel(f"AUC less that of {figures.short(first.run, 30)}")
    level = audit_rows.percent(first.row["level"])
    caption = (
        f"Differences of AUCs for {target.called} from {first.run}, on the same images; their numbers are in the tables."
        f" Lines: {level} intervals over patients, paired. Dotted: 0, no difference."
    )
    return f"differences_{target.called}", figure, "Differences of AUCs. " + "; ".join(said) + ".", caption


def _places(blocks, several: bool) -> Iterator[tuple[int, str, str, Paired | None]]:
    """(height, class, run, difference), top to bottom; before each class a line of its own where several runs share it."""
    y = 0
    for heading, shown in blocks:
        if several:
            yield y, heading, "", None
            y += 1
        for run, found in shown:
            yield y, heading, run, found
            y += 1
