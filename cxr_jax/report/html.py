"""The report: one page, read from a workdir's files, that says what was run, on whom, and how far its figures go.

    write(workdir) -> path of report.html, with figures/NAME.svg beside it
    auc_table(workdir) -> the same AUCs as plain text, for a terminal

Words on the first screen are made from audit.json by rules that look at intervals, not at values: a difference is
called one only where its interval leaves out 0, and an AUC better than guessing only where its interval lies above
0.5. Nothing here counts or scores anything that the audit has not; what is said of the cohort comes from cohort.csv, or
from judged_cohort.csv where the model was judged on other data than it was trained on, where small cells are withheld.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import pathlib
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from cxr_jax import tables
from cxr_jax.audit import subgroups
from cxr_jax.report import cards, demographics, figures, gaps, page, probes
from cxr_jax.report import rows as audit_rows

MOST_EXAMPLES = 24


def write(
    workdir: os.PathLike | str,
    examples: Sequence[tuple[np.ndarray, str]] = (),
    excited: Sequence[tuple[str, Sequence[tuple[np.ndarray, str]]]] = (),
) -> pathlib.Path:
    """Writes `report.html` and `figures/*.svg` in `workdir`, each whole or not at all; returns the path of the page.

    Reads config.json, config_diff.json, run.json and audit.json, which must be there, and judged_cohort.csv where
    run.json has `judged`, data other than those of training; and cohort.csv, metrics.jsonl and quarantine.csv where
    they are: a run that only audits predictions has none of these.

    examples: (uint8 image [h, w], caption). excited: (a feature in words, such images that excite it most). Both are shown
        only where run.json says that the data are open, whatever is passed.

    The page holds its figures, and asks for nothing from anywhere else. The same files give the same bytes. Raises
    UserError for a file that is missing or is not what its stage writes.
    """
    workdir = pathlib.Path(workdir)
    read = read_workdir(workdir)
    config, run, rows, name_of = read.config, read.run, read.rows, read.name_of
    least, level = (config["audit"][name] for name in ("min_patients", "level"))
    checkpoint = pathlib.Path(_field(config, "predict.checkpoint", workdir / "config.json")).name
    diff = tables.read_json(workdir / "config_diff.json")
    records = _records(workdir / "metrics.jsonl")
    quarantine = _quarantine(workdir / "quarantine.csv", read)
    split = audit_rows.main_split(rows) if len(rows) else "test"
    probed = read.probed
    drawn: dict[str, Any] = {"training": [], "roc": [], "forest": [], "confusion": [], "calibration": []}
    drawn["training"] = [figures.learning_curves(records, checkpoint, _validation_is_hidden(workdir))]
    for target in audit_rows.targets(rows):
        drawn["roc"].append(figures.roc(rows, target, split))
        drawn["forest"] += _forests(rows, target, split, name_of)
        drawn["confusion"].append(figures.confusion(rows, target, split))
        drawn["calibration"].append(figures.calibration(rows, target, split))
    drawn = {key: [d for d in several if d is not None] for key, several in drawn.items()}
    found = [] if probed is None else probes.context(probed, name_of, read.invented)
    space = None if probed is None else probes.space(probed, name_of)
    worse = gaps.context(read.every, split, name_of, config["audit"]) if len(rows) else None
    words = [_in_words(rows, target, split, name_of, read.invented, bool(worse)) for target in audit_rows.targets(rows)]
    cohort = None if read.cohort is None else _cohort_tables(read)
    every = [d for several in drawn.values() for d in several]
    every += [d for one in found for d in one["drawn"]] + (space["drawn"] if space else [])
    every += worse["drawn"] + worse["reliability"] if worse else []
    for drawing in every:
        tables.write_text(workdir / "figures" / f"{drawing.name}.svg", drawing.svg)

    made = page.render(
        "report.html.jinja",
        headline=run["headline"]
        if "headline" in run
        else f"{config['name'] or 'Predictions'}: an audit of {'vectors' if read.probed else 'predictions'} from outside",
        beside=[(name, title) for name, title in page.BESIDE.items() if (workdir / name).exists()],
        run=_run_facts(run, checkpoint),
        unfinished=_unfinished(run),
        judged_on=page.called(read.judged) if read.elsewhere else "",
        trained_on=page.called(run["dataset"]) if "dataset" in run else "",
        invented=read.invented,
        outside=run["outside"] if "outside" in run else None,
        probes=found,
        gaps=worse,
        space=space,
        excited=[(title, page.pictures(images[:MOST_EXAMPLES])) for title, images in excited] if read.judged["open_data"] else [],
        agreement=[] if probed is None else probes.agreement_table(probed, name_of),
        permutations=config["probe"]["permutations"] if probed is not None else 0,
        absent=[] if probed is None else probed.absent,
        short=_in_short(read, words, found, worse),
        words=words,
        card=cards.model_card(config, run, rows, split, read.invented, name_of, worse["thresholds"] if worse else "", [s for word in words for s in word["sentences"]])
        if len(rows)
        else [],
        sheet=cards.data_sheet(
            config, run, read.judged if "dataset" in run else None, cohort,
            quarantine["told"] if quarantine and quarantine["total"] else "", read.elsewhere,
        ),
        diff=[(f, _shown(v["base"]), _shown(v["run"])) for f, v in sorted(diff.items())],
        config=json.dumps(config, indent=1),
        packages=sorted(run["packages"].items()) if "packages" in run and run["packages"] else [],
        cohort=cohort,
        least=least,
        rounded=read.rounded,
        quarantine=quarantine,
        drawn=drawn,
        auc_tables=_auc_tables(rows, name_of),
        other=_other_measures(rows, split),
        methods=audit_rows.in_order(m for m in rows.loc[rows["low"].notna(), "method"] if m),
        level=level,
        examples=page.pictures(examples[:MOST_EXAMPLES]) if read.judged["open_data"] else [],
        judged=audit_rows.images_of(split),
        targets=audit_rows.targets(rows),
    )
    tables.write_text(workdir / "report.html", made)
    return workdir / "report.html"


def auc_table(workdir: os.PathLike | str) -> str:
    """A plain-text table of AUCs with intervals, ceilings and counts: classes first, then macro AUC by group.

    Reads what `write` reads and withholds the same counts. Footnotes say why an AUC is undefined or withheld. About 100
    columns wide.
    """
    read = read_workdir(pathlib.Path(workdir))
    table = read.rows
    lines = [] if read.probed is None else [probes.text(read.probed, read.name_of), ""]
    split = audit_rows.main_split(table) if len(table) else "test"
    for target in audit_rows.targets(table):
        here = audit_rows.select(table, metric="auc", target=target, split=split)
        overall = here[here["attribute"] == subgroups.ALL]
        by_group = here[(here["attribute"] != subgroups.ALL) & (here["class"] == subgroups.MACRO)]
        level = f"{here['level'].iloc[0] * 100:g} %"
        ceiling = len(audit_rows.select(table, metric="auc_ceiling", target=target)) > 0
        columns = ["ceiling", "minus ceiling"] if ceiling else []
        body = [["", "AUC", f"{level} interval", *columns, "images", "patients"]]
        notes: list[str] = []
        for _, row in pd.concat([overall, by_group]).iterrows():
            if row["attribute"] == subgroups.ALL:
                name = audit_rows.class_name(row["class"])
            else:
                attribute = read.name_of(row["attribute"]).removesuffix(" (years)")
                # Of an attribute that nobody recorded, the audit has one row, for all.
                name = f"  {attribute}: {audit_rows.group_name(row['group'])}".removesuffix(f": {subgroups.ALL}")
            note = audit_rows.note(row, positives=False)
            if note:
                notes += [note] if note not in notes else []
                name += f" [{notes.index(note) + 1}]"
            beside = audit_rows.beside(table, row)
            top, difference = (r if r is not None and np.isfinite(r["value"]) else None for r in beside)
            cells = [name, audit_rows.value(row), audit_rows.interval(row)]
            if ceiling:
                cells += ["" if top is None else audit_rows.number(top["value"]), audit_rows.estimate(difference)]
            body.append([*cells, audit_rows.count(row["n_images"]), audit_rows.count(row["n_patients"])])
        widths = [max(len(cells[i]) for cells in body) for i in range(len(body[0]))]
        lines.append(f"AUC of {target}, {audit_rows.images_of(split)}")
        for name, *cells in body:
            lines.append(
                "  ".join([name.ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells, widths[1:], strict=True))])
            )
        lines += [f"[{i}] {note}" for i, note in enumerate(notes, 1)]
        if read.rounded:
            least = read.config["audit"]["min_patients"]
            lines.append(f"n is rounded down to a multiple of {least} where a label is not known of all,")
            lines.append("and n of patients where one may be in several groups")
        lines.append("")
    return page.for_terminal("\n".join(lines).rstrip())


# ------------------------------------------------------------------------------------------------- reading


@dataclasses.dataclass(frozen=True)
class _Read:
    """What a workdir says.

    every: rows of audit.json, less the counts that would undo what the cohort's table withholds; none where a run has probed
        features and no more. rows: of these the figures of everyone and of the groups of one attribute. probed: what the probes found, with the same counts withheld; None where none did. rounded: whether some of the
        others are for that rounded down.
    judged: what run.json says of the data set that the model was judged on; elsewhere: whether it is another than that
        of training. cohort: the rows of cohort.csv about these data, None where there is none. stem: of its name.
    """

    config: dict
    run: dict
    rows: pd.DataFrame
    every: pd.DataFrame
    probed: probes.Probed | None
    rounded: bool
    judged: dict
    elsewhere: bool
    cohort: pd.DataFrame | None
    stem: str
    withhold: Callable[[pd.DataFrame], pd.DataFrame]  # of rows of other files on the same images, the same counts

    @property
    def invented(self) -> bool:
        return bool(self.judged["invented_groups"])

    def name_of(self, attribute: str) -> str:
        return audit_rows.attribute_name(attribute, self.invented)


def read_workdir(workdir: pathlib.Path) -> _Read:
    """What the page and the table of a workdir are made of. Raises UserError for a file that is missing or is not what its stage writes."""
    config, run = tables.read_json(workdir / "config.json"), tables.read_json(workdir / "run.json")
    own = "probe" in config and bool(config["probe"]["embeddings"])
    if own:  # a user's own vectors have nothing to do with data that this workdir may have held before
        run = {key: value for key, value in run.items() if key not in ("dataset", "judged", "headline")}
    alone = any((workdir / f"{name}_audit.json").exists() for name in ("probe", "mechanism")) and not (workdir / "audit.json").exists()
    rows = audit_rows.frame([]) if alone else audit_rows.read(workdir / "audit.json")
    if not len(rows) and not alone:
        raise tables.UserError(f"{workdir / 'audit.json'}: no rows; run the audit stage again")
    for name in ("audit.min_patients", "audit.level", "predict.dataset"):
        _field(config, name, workdir / "config.json")
    judged = run["judged"]["asked"] if "judged" in run else ""
    if "dataset" in run and judged != config["predict"]["dataset"]:
        # Or the data of training would pass for those judged, or the other way round.
        raise tables.UserError(
            f"{workdir / 'run.json'}: the predictions are of {judged or 'the data of training'}, the config asks for"
            f" {config['predict']['dataset'] or 'the data of training'}; run the predict and audit stages again"
        )
    elsewhere = "judged" in run
    which = "judged" if elsewhere else "dataset"
    # Predictions that come from outside have a record without a data set: nobody has said that they may be shown.
    about = {which: run[which] if which in run else {"open_data": False, "invented_groups": False}}
    for name in ("invented_groups", "open_data"):
        _field(about, f"{which}.{name}", workdir / "run.json")
    stem = "judged_cohort" if elsewhere else "cohort"
    path = workdir / f"{stem}.csv"
    found = demographics.read(path) if (elsewhere or path.exists()) and not own else None
    rounded = []

    def withhold(rows: pd.DataFrame) -> pd.DataFrame:
        if found is None or not len(rows):
            return rows
        rows, some_rounded = _withhold_counts(rows, found, config["audit"]["min_patients"])
        rounded.append(some_rounded)
        return rows

    def unspoken(label: str) -> bool:
        if found is None:
            return False
        here = found[found["split"].isin(("test", subgroups.ALL)) & found["suppressed"]]
        of_groups = (here["section"] == "counts") & (here["attribute"] == label)
        of_finding = (here["section"] == "findings") & (here["attribute"] == label)
        return bool((of_groups | of_finding).any())

    every = withhold(rows)
    rows = audit_rows.of_groups(every)
    rows = _with_reasons(rows) if len(rows) else rows
    is_open = bool(about[which]["open_data"])
    least = config["audit"]["min_patients"]
    abroad = {name: 1 if of["open_data"] else least for name, of in run.get("elsewhere", {}).items()}
    probed = probes.read(workdir, withhold, unspoken, 1 if is_open else least, abroad)
    return _Read(config, run, rows, every, probed, any(rounded), about[which], elsewhere, found, stem, withhold)


def _field(record: Mapping, dotted: str, source: pathlib.Path):
    """The value of a dotted field, or a UserError that names it."""
    for part in dotted.split("."):
        if not isinstance(record, Mapping) or part not in record:
            raise tables.UserError(f"{source}: no field {dotted!r}; run the stage that writes it again")
        record = record[part]
    return record


def _records(path: pathlib.Path) -> list[dict]:
    """metrics.jsonl, one record a step and split. Where a run was taken up again the later record holds; a last line
    that a kill cut short is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    records = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            records[record["split"], record["step"]] = record
        except (json.JSONDecodeError, KeyError, TypeError):
            if number == len(lines):
                break
            raise tables.UserError(f"{path}: row {number} is not a record of step and split; train again") from None
    return sorted(records.values(), key=lambda r: r["step"])


def _quarantine(path: pathlib.Path, read: _Read) -> dict | None:
    """Files, which are no patients, that could not be read of the data that were judged; None where nothing says.

    Reasons are told of open data alone, most first. quarantine.csv is about the data of training: of others only the
    number is known.
    """
    if read.elsewhere or not path.exists():
        if "quarantined" not in read.judged:
            return None
        total, reasons = read.judged["quarantined"], []
    else:
        with open(path, newline="", encoding="utf-8") as handle:
            listed = list(csv.DictReader(handle))
        if listed and "reason" not in listed[0]:
            raise tables.UserError(f"{path}: no column 'reason'")
        total = len(listed)
        reasons = Counter(row["reason"] for row in listed).most_common() if read.judged["open_data"] else []
    told, others = f"{total:,} {'file' if total == 1 else 'files'}", sum(n for _, n in reasons[12:])
    return {"total": total, "told": told, "reasons": reasons[:12], "others": others}


def _with_reasons(rows: pd.DataFrame) -> pd.DataFrame:
    """Where one class alone keeps a macro figure undefined, that class's own reason goes with the macro's."""
    rows = rows.copy()
    undefined = rows[rows["value"].isna()]
    for _, cell in undefined.groupby(["metric", "target", "attribute", "group", "split"], sort=False):
        macro, classes = (cell[keep] for keep in (cell["class"] == subgroups.MACRO, cell["class"] != subgroups.MACRO))
        if len(macro) == len(classes) == 1 and not macro["suppressed"].any():
            own = audit_rows.note(classes.iloc[0], positives=False)
            rows.loc[macro.index, "reason"] = f"{audit_rows.note(macro.iloc[0])}: {own}"
    return rows


def _validation_is_hidden(workdir: pathlib.Path) -> bool:
    """Whether the table of the cohort that was trained on withholds how large validation is."""
    if not (workdir / "cohort.csv").exists():
        return False
    rows = demographics.read(workdir / "cohort.csv")
    rows = rows[(rows["section"] == "attrition") & (rows["note"] == "of which in validation")]
    return bool(rows["suppressed"].any())


# Whose n are those of a bin of scores, or of a true class; of all others they are of the group.
_OF_A_PART = ("calibration", "confusion")


def _withhold_counts(rows: pd.DataFrame, cohort: pd.DataFrame, least: int) -> tuple[pd.DataFrame, bool]:
    """Blanks counts that the cohort's table does not show, since with it they would give away others; values stay.

    Where a label is not known of all images of a group, the number of those of which it is known is rounded down to a
    multiple of `least`, lest it tell of how few it is not; and so is the number of patients where one may be in several
    groups, of whom the table counts each in one. Returns whether that was so, too.
    """
    told = cohort[(cohort["section"] == "counts") & cohort["split"].isin(rows["split"])]
    overlapping = set(told.loc[told["what"] == demographics.AT_FIRST, "attribute"])
    told = told[told["what"] == "images"]
    attributes = set(told["attribute"])
    sizes = told[~told["suppressed"]].set_index(["attribute", "group", "split"])["n_images"].to_dict()
    everybody = {split: n for (_, group, split), n in sizes.items() if group == subgroups.ALL}
    sizes |= {(subgroups.ALL, subgroups.ALL, split): n for split, n in everybody.items()}
    # The positive images of a finding are told by split; of those in no table, nothing can be given away.
    positive = cohort["what"].isin(("images positive", "patients positive"))
    found = cohort[(cohort["section"] == "findings") & positive & cohort["suppressed"]]
    few_positive = set(found[["attribute", "split"]].itertuples(index=False, name=None))
    # All less those of whom a target is known are those of whom it is not.
    without = told["group"].map(lambda group: not {subgroups.MISSING, "not recorded"}.isdisjoint(group.split(" or ")))
    gone = told[without & (told["suppressed"] | (told["group"] != subgroups.MISSING))]
    unknown = set(gone[["attribute", "split"]].itertuples(index=False, name=None))

    def hides(attribute: str, group: str, split: str) -> bool:
        return attribute in attributes and (attribute, group, split) not in sizes

    # Of an intersection no table tells the size; of another target, or class, it may be known of more.
    cells = rows[rows["attribute"].str.contains(subgroups.TIMES, regex=False)]
    largest = cells.groupby(["attribute", "group", "split"])["n_images"].max().to_dict()
    blank, no_positives, of_some, in_several = [], [], [], []
    for row in rows.itertuples():
        split, name = row.split, row[rows.columns.get_loc("class") + 1]
        # As many images as in a stratum tell how many are in the stratum.
        attribute = row.attribute.removeprefix(tables.AS_MANY)
        group = (attribute, row.group, split)
        of_class = hides(row.target, name, split) and name not in (subgroups.MACRO, subgroups.ALL)
        hidden = bool(attributes) and split not in everybody
        several = attribute.split(subgroups.TIMES)
        parts = list(zip(several, row.group.split(f" {subgroups.TIMES} "), strict=False)) if len(several) > 1 else [group[:2]]
        hidden = hidden or any(hides(*part, split) for part in parts) or (of_class and row.metric == "confusion")
        hidden = hidden or (row.attribute == subgroups.ALL and (row.target, split) in unknown)
        hidden = hidden or (attribute, split) in few_positive  # a stratum of the images that have a finding
        blank.append(hidden or (bool(attributes) and row.metric == "calibration"))
        no_positives.append(hidden or of_class or (name, split) in few_positive)
        whole = largest.get(group, np.nan) if len(several) > 1 else sizes.get(group, np.nan)
        # Of everybody the table of the target's own groups tells it.
        elsewhere = row.attribute == subgroups.ALL and row.target in attributes
        some = row.metric not in _OF_A_PART and row.attribute != row.target and not elsewhere and row.n_images < whole
        of_some.append(some)
        in_several.append(bool(overlapping.intersection(several)) and row.n_patients > 0)
    rows = rows.copy()
    rows.loc[np.array(blank, bool), ["n_images", "n_patients"]] = np.nan
    rows.loc[np.array(no_positives, bool), "n_positive"] = np.nan
    for number, which in (("n_images", of_some), ("n_patients", [a or b for a, b in zip(of_some, in_several, strict=True)])):
        at = np.array(which, bool)
        rows.loc[at, number] = rows.loc[at, number] // least * least
    return rows, least > 1 and any(a or b for a, b in zip(of_some, in_several, strict=True))


# ------------------------------------------------------------------------------------------------- in words


def _in_short(read: _Read, words: Sequence[dict], probed: Sequence[dict], worse: dict | None) -> list[tuple[str, list[str]]]:
    """The first screen: (what is asked, what can be said of it), in the order of the sections."""
    told = [(one["called"], one["sentences"][:2]) for one in probed]
    short = [("What the features know" + (f": {called}" if len(told) > 1 else ""), said) for called, said in told]
    for word in words:
        short.append(("How good it is" + (f": {word['what']}" if len(words) > 1 else ""), word["sentences"]))
    if worse:
        parts = [("For whom it is worse", worse["sentences"]), ("Who is missed", worse["underdiagnosis"]), ("What case mix explains", worse["mix_sentences"])]
        short += [(asked, said[:4]) for asked, said in parts if any(said)]
        short.append(("What cannot be said", worse["unsaid"][:3] or ["No group is withheld. Intervals do not cover training the model again, nor another hospital."]))
    return short


def _in_words(rows: pd.DataFrame, target: str, split: str, name_of, invented: bool, tested: bool = False) -> dict:
    """Sentences about one target, and a small table of its classes. Claims no more than the intervals allow.

    tested: the page says elsewhere which differences between groups are real.
    """
    overall = audit_rows.select(rows, metric="auc", target=target, split=split, attribute=subgroups.ALL)
    macro = audit_rows.first(overall, class_=subgroups.MACRO)
    classes = [row for _, row in overall.iterrows() if row["class"] != subgroups.MACRO]
    what = name_of(target)
    two = len(classes) == 2 and audit_rows.multiclass(rows, target)
    said, points = [], []
    if macro is None or not np.isfinite(macro["value"]):
        reason = "it is not in audit.json" if macro is None else audit_rows.note(macro)
        word = "undefined" if macro is None else audit_rows.value(macro)
        reason = reason if reason.startswith(word) else f"{word}: {reason}"
        said.append(f"The macro AUC for {what} is {reason}.")
    else:
        n = _how_many(macro)
        interval = (
            f"{audit_rows.percent(macro['level'])} interval {audit_rows.interval(macro)}"
            if audit_rows.interval(macro)
            else "no interval"
        )
        task = f"telling the {len(classes)} classes of {what} apart"
        if not audit_rows.multiclass(rows, target):
            several = f"{len(classes)} " + ("findings" if target == "findings" else f"classes of {what}")
            task = f"recognising {several if len(classes) > 1 else classes[0]['class']}"
        elif target == "race" and invented:
            task = f"telling the {len(classes)} invented groups apart"
        mean = "AUC" if two or len(classes) == 1 else "macro AUC"
        said.append(f"On {n}, the model's {mean} for {task} is {audit_rows.number(macro['value'])} ({interval}).")
        said.append(_against_guessing(macro))
        if audit_rows.note(macro, positives=False):
            points.append(f"On the macro AUC: {audit_rows.note(macro, positives=False)}.")
    defined = [row for row in classes if np.isfinite(row["value"])]
    if len(defined) > 1 and not two:
        low, high = min(defined, key=lambda r: r["value"]), max(defined, key=lambda r: r["value"])
        ends = [f"{audit_rows.estimate(row)} for {row['class']}" for row in (low, high)]
        by_class = f"By class: from {ends[0]} to {ends[1]}."
        unsure = [row["class"] for row in defined if row["low"] <= 0.5 <= row["high"]]
        points.append(by_class + (f" For {_listed(unsure)} the interval covers 0.5." if unsure else ""))
    missing = [row["class"] for row in classes if not np.isfinite(row["value"])]
    if missing:
        points.append(f"There is no AUC for {_listed(missing)}; the table of AUCs says why.")
    if macro is not None and np.isfinite(macro["value"]):
        points += _against_ceiling(rows, macro)
        points += _across_groups(rows, target, split, name_of, tested)
    shown = classes if two or macro is None else [macro, *classes]
    return {
        "target": target,
        "what": what,
        "sentences": said,
        "points": points,
        "table": _auc_rows(rows, shown, "class"),
    }


def _how_many(row: pd.Series) -> str:
    images = f"{audit_rows.count(row['n_images'])} {audit_rows.images_of(row['split'])}"
    return f"{images} of {audit_rows.count(row['n_patients'])} patients"


def _against_guessing(row: pd.Series) -> str:
    if not audit_rows.interval(row):
        return "Without an interval, nothing can be said of how it compares with guessing."
    if row["low"] > 0.5:
        return "The whole interval lies above 0.5, which is what guessing reaches."
    if row["high"] < 0.5:
        return "The whole interval lies below 0.5: worse than guessing, which points to an error in labels or scores."
    return "The interval covers 0.5, which is what guessing reaches: no evidence that the model does better."


def _against_ceiling(rows: pd.DataFrame, row: pd.Series) -> list[str]:
    top, difference = audit_rows.beside(rows, row)
    if top is None or not np.isfinite(top["value"]):
        return []
    said = "The ceiling, the best that can be expected of any model on these images, follows from how the data are"
    said += f" made: {audit_rows.estimate(top)}."
    if difference is None or not audit_rows.interval(difference):
        return [said]
    said += f" Model minus ceiling, paired over the same resampled patients: {audit_rows.estimate(difference)}. "
    if difference["high"] < 0:
        return [said + "The model stays below the ceiling."]
    if difference["low"] > 0:
        # On a finite sample even a perfect model comes out above: as often as an interval misses on one side.
        said += f"The model is above the ceiling, which one run in {2 / (1 - row['level']):.0f} would be by chance;"
        return [said + " otherwise something gives the answer away: check before using this run."]
    return [said + "The interval covers 0, so this run does not tell the model from the ceiling."]


def _across_groups(rows: pd.DataFrame, target: str, split: str, name_of, tested: bool) -> list[str]:
    """The spread over groups of each attribute, as a spread and not as a finding."""
    said = []
    macros = audit_rows.select(rows, metric="auc", target=target, split=split, class_=subgroups.MACRO)
    for attribute in audit_rows.in_order(macros["attribute"]):
        here = [r for _, r in macros[macros["attribute"] == attribute].iterrows() if np.isfinite(r["value"])]
        if attribute == subgroups.ALL or len(here) < 2:
            continue
        low, high = min(here, key=lambda r: r["value"]), max(here, key=lambda r: r["value"])
        if not (audit_rows.interval(low) and audit_rows.interval(high)):
            apart = "not both of which have an interval"
        else:
            apart = "whose intervals " + ("do not overlap" if low["high"] < high["low"] else "overlap")
        ends = [f"{audit_rows.number(r['value'])} ({audit_rows.group_name(r['group'])})" for r in (low, high)]
        said.append(f"by {name_of(attribute)} from {ends[0]} to {ends[1]}, {apart}")
    if not said:
        return []
    more = "Which differences are real is tested under For whom it is worse." if tested else "The differences themselves have not been tested."
    return ["Lowest and highest group: " + "; ".join(said) + f". {more}"]


def _listed(names: Sequence[str], most: int = 6) -> str:
    names = list(names)
    if len(names) > most:
        names = [*names[:most], f"{len(names) - most} more"]
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


# ------------------------------------------------------------------------------------------------- tables


def _auc_rows(rows: pd.DataFrame, chosen: Sequence[pd.Series], first: str) -> dict:
    """Cells of a table of AUCs. first: `class`, or `group` to have both."""
    lines = []
    for row in chosen:
        top, difference = audit_rows.beside(rows, row)
        lines.append(
            {
                "class": audit_rows.class_name(row["class"]),
                "group": audit_rows.group_name(row["group"]),
                "value": audit_rows.value(row),
                "interval": audit_rows.interval(row),
                "ceiling": "" if top is None or not np.isfinite(top["value"]) else audit_rows.estimate(top),
                "difference": ""
                if difference is None or not np.isfinite(difference["value"])
                else audit_rows.estimate(difference),
                "images": audit_rows.count(row["n_images"]),
                "patients": audit_rows.count(row["n_patients"]),
                "positive": audit_rows.count(row["n_positive"]) if row["class"] != subgroups.MACRO else "",
                "note": audit_rows.note(row, positives=first == "class"),
            }
        )
    return {
        "by_group": first == "group",
        "ceiling": any(line["ceiling"] for line in lines),
        "notes": any(line["note"] for line in lines),
        "lines": lines,
    }


def _auc_tables(rows: pd.DataFrame, name_of) -> list[tuple[str, dict]]:
    """Every AUC of the audit, in a table for each target, split and attribute."""
    made = []
    aucs = audit_rows.select(rows, metric="auc")
    several_targets, several_splits = aucs["target"].nunique() > 1, aucs["split"].nunique() > 1
    for (target, split, attribute), here in aucs.groupby(["target", "split", "attribute"], sort=False):
        title = "Overall" if attribute == subgroups.ALL else f"By {name_of(attribute)}"
        title += f": {name_of(target)}" if several_targets else ""
        title += f", {split}" if several_splits else ""
        first = "class" if attribute == subgroups.ALL else "group"
        # One line says that a group is too small to report; its classes need not say it again.
        shown = here[~here["suppressed"] | (here["class"] == subgroups.MACRO)]
        if not (here["class"] == subgroups.MACRO).any():
            shown = here
        made.append((title, _auc_rows(rows, [row for _, row in shown.iterrows()], first)))
    return made


def _other_measures(rows: pd.DataFrame, split: str) -> dict:
    """Average precision, Brier score and accuracy, overall, as far as the audit has them."""
    names = {"average_precision": "average precision", "brier": "Brier score", "accuracy": "accuracy"}
    here = audit_rows.select(rows, attribute=subgroups.ALL, split=split)
    here = here[here["metric"].isin(names)]
    measures = [metric for metric in names if metric in set(here["metric"])]
    lines = []
    for (target, name), cells in here.groupby(["target", "class"], sort=False):
        notes: dict[str, list[str]] = {}
        for _, row in cells.iterrows():
            notes.setdefault(audit_rows.note(row, positives=False), []).append(names[row["metric"]])
        lines.append(
            {
                "target": target,
                "class": "all classes" if name == subgroups.ALL else audit_rows.class_name(name),
                "cells": [audit_rows.estimate(audit_rows.first(cells, metric=m)) for m in measures],
                "images": audit_rows.count(cells["n_images"].iloc[0]),
                "patients": audit_rows.count(cells["n_patients"].iloc[0]),
                "note": "; ".join(f"{', '.join(which)}: {note}" for note, which in notes.items() if note),
            }
        )
    return {"measures": [names[m] for m in measures], "lines": lines, "notes": any(line["note"] for line in lines)}


def _cohort_tables(read: _Read) -> dict:
    """What the rules left, and images and patients by group and split."""
    steps = [(rule, *cells[:2]) for rule, cells in demographics.attrition(read.cohort)[1]]
    units = ["images", "patients", demographics.AT_FIRST]
    counts = read.cohort[(read.cohort["section"] == "counts") & read.cohort["what"].isin(units)]
    groups = []
    for attribute, here in counts.groupby("attribute", sort=False):
        splits = [split for split in audit_rows.in_order(here["split"]) if split != subgroups.ALL]
        if not splits:  # nothing of it is recorded
            continue
        unit = demographics.AT_FIRST if (here["what"] == demographics.AT_FIRST).any() else "patients"
        cells = {(row.group, row.split, row.what): row for row in here.itertuples()}
        lines = []
        for group in (g for g in audit_rows.in_order(here["group"]) if g != subgroups.ALL):
            told = [[cells[group, split, what] for what in (unit, "images")] for split in [*splits, subgroups.ALL]]
            told = [["withheld" if c.suppressed else f"{int(c.value):,}" for c in both] for both in told]
            lines.append((audit_rows.group_name(group), [p if p == i == "withheld" else f"{p} / {i}" for p, i in told]))
        groups.append({"unit": unit, "name": read.name_of(attribute), "splits": [*splits, "all"], "lines": lines})
    withheld = bool(counts["suppressed"].any())
    return {"steps": steps, "groups": groups, "withheld": withheld, "page": f"{read.stem}.html"}


def _forests(rows: pd.DataFrame, target: str, split: str, name_of) -> list[figures.Drawing | None]:
    """One forest of classes, one of the macro AUC by group."""
    overall = [
        r
        for _, r in audit_rows.select(
            rows, metric="auc", target=target, split=split, attribute=subgroups.ALL
        ).iterrows()
    ]
    macro = [r for r in overall if r["class"] == subgroups.MACRO]
    classes = [r for r in overall if r["class"] != subgroups.MACRO]
    if len(classes) == 2 and audit_rows.multiclass(rows, target):
        classes = classes[:1]
    by_class = [("", [(audit_rows.class_name(r["class"]), r) for r in [*macro, *classes]])]
    groups = audit_rows.select(rows, metric="auc", target=target, split=split, class_=subgroups.MACRO)
    by_group = [("", [("everybody", r) for r in macro])]
    left_out = []
    for attribute in audit_rows.in_order(groups["attribute"]):
        if attribute == subgroups.ALL:
            continue
        here = [r for _, r in groups[groups["attribute"] == attribute].iterrows()]
        if not any(np.isfinite(r["value"]) for r in here):
            why = audit_rows.in_order(audit_rows.note(r) for r in here)
            left_out.append(f"by {name_of(attribute)} ({why[0] if len(why) == 1 else 'the table of AUCs says why'})")
            continue
        by_group.append((name_of(attribute), [(audit_rows.group_name(r["group"]), r) for r in here]))
    if not overall:
        return []
    n = f"on {_how_many((macro or overall)[0])}"
    if not audit_rows.multiclass(rows, target):
        n = f"on {audit_rows.images_of(split)}, whose number differs by class: see the table of AUCs"
    what = f"Macro AUC for {name_of(target)} by group, on {audit_rows.images_of(split)}."
    if left_out:
        what += f" There is none {_listed(left_out)}."
    return [
        figures.forest(
            rows,
            target,
            by_class,
            "classes",
            f"AUC for {name_of(target)}, each class against the rest, {n}; beside it, how many are positive.",
            "n_positive",
        ),
        figures.forest(rows, target, by_group, "groups", what, "n_patients") if len(by_group) > 1 else None,
    ]


# ------------------------------------------------------------------------------------------------- the rest


def _unfinished(run: Mapping) -> list[str]:
    """Stages that were begun and not ended, so that files may be those of half a stage. This report is one, as ever."""
    stages = run["stages"] if "stages" in run else {}
    return [name for name, stage in stages.items() if name != "report" and stage["status"] != "done"]


def _run_facts(run: Mapping, checkpoint: str) -> list[tuple[str, str]]:
    """What was run, as (name, words); what the record does not say is left out."""
    commit = run["git_commit"] if "git_commit" in run else None
    seconds = run["wall_seconds"] if "wall_seconds" in run else None
    stages = run["stages"] if "stages" in run and run["stages"] else {}
    took = [
        f"{name} {_duration(s['seconds'])}"
        for name, s in stages.items()
        if isinstance(s, Mapping) and s.get("seconds") is not None
    ]
    told = []
    for name, key in (("data set", "dataset"), ("judged on", "judged")):
        dataset = run[key] if key in run else {}
        told.append((name, page.called(dataset)))
        description = dataset["description"] if "description" in dataset else ""
        told.append(("what it is", textwrap.shorten(description, 400, placeholder=" …")))
    told.append(("checkpoint", checkpoint if "predict" in stages else None))
    told.append(("command", run["command"] if "command" in run else None))
    told.append(
        ("commit", f"{commit}{', with uncommitted changes' if run.get('git_dirty') else ''}" if commit else None)
    )
    told.append(("device", _device(run["device"]) if "device" in run and run["device"] else None))
    told.append(("started", run["started"] if "started" in run else None))
    told.append(("wall time", _duration(seconds) if seconds else None))
    told.append(("time by stage", ", ".join(took)))
    told.append(("Python", run["python"] if "python" in run else None))
    told.append(("fingerprint", run["fingerprint"] if "fingerprint" in run else None))
    return [(name, str(value)) for name, value in told if value]


def _device(device: Mapping) -> str:
    platform = f" ({device['platform']})" if device["platform"] != device["kind"] else ""
    return f"{device['count']} × {device['kind']}{platform}"


def _duration(seconds: float) -> str:
    seconds = float(seconds)
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"


def _shown(value) -> str:
    return value if isinstance(value, str) and value else json.dumps(value)
