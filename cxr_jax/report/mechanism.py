"""The page of what a network reads: `mechanism.html`, from mechanism_audit.json.

Sentences follow intervals: a fall is called one only where the interval of the difference lies below 0. That none can be told is not that there is none, and is not said so.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from cxr_jax import tables
from cxr_jax.audit import subgroups
from cxr_jax.report import html, page
from cxr_jax.report import rows as audit_rows
from cxr_jax.report.figures import COLOURS, FAINT, MARKERS, Drawing, new_figure, short, styled

FILE, PAGE = "mechanism_audit.json", "mechanism.html"
# In words: what a series does; what its strengths are; what is said of one strength; whether strengths are in an order, and so joined by a line.
SERIES = {
    "low_pass": ("Low-pass: only coarse structure", "radii up to, cycles per image", "of radii up to {}", True),
    "high_pass": ("High-pass: only fine structure", "radii above, cycles per image", "of radii above {}", True),
    "band_pass": ("Band-pass: one band alone", "radii, cycles per image", "of radii {} alone", False),
    "notch": ("Notch: all but one band", "radii taken out, cycles per image", "without radii {}", False),
    "published_low_pass": ("Low-pass as published", "“diameter”, taken for the radius", "low-pass of the published “diameter” {}", True),
    "published_high_pass": ("High-pass as published", "“diameter”, taken for the radius", "high-pass of the published “diameter” {}", True),
    "published_clipped": ("Clipped as published", "threshold after normalising", "clipped at the published {}", True),
    "down_sampled": ("Down-sampled, and enlarged again", "pixels a side", "of {} pixels a side", True),
    "blurred": ("Blurred", "standard deviation, pixels of 256", "blurred by {} pixels", True),
    "noisy": ("With noise", "standard deviation, gray levels of 256", "with noise of {} gray levels", True),
    "clipped": ("Clipped gray levels", "window, shares of the range", "clipped to {} of the range", False),
    "histogram_matched": ("Gray levels as in training images together", "share of the way", "with matched gray levels ({} of the way)", True),
    "cell_alone": ("One cell of 3×3 alone", "cell of the picture", "of the {} cell alone", False),
    "cell_out": ("One cell of 3×3 black", "cell of the picture", "without the {} cell", False),
    "middle_alone": ("The middle alone", "side of the box, share of the image's", "of the middle {} alone", True),
    "border_alone": ("The border alone: the middle black", "side of the box, share of the image's", "without the middle {}", True),
    "attacked": ("Under attack (FGSM)", "step, gray levels of 256", "moved by {} gray levels against it", True),
}
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")  # of the picture
FOLLOWED = 3  # perturbations that are told of a feature, those that move it most


def write(workdir: os.PathLike | str, examples: Mapping[str, Sequence[tuple[np.ndarray, str]]] = {}) -> pathlib.Path:
    """Writes `mechanism.html` and its figures in `workdir`; returns the page's path.

    examples: by series, pictures (uint8 [h, w], caption) of one test image along it; shown where run.json says that the data are open. Raises UserError for a file that is
    missing or is not what its stage writes.
    """
    workdir = pathlib.Path(workdir)
    read, found = html.read_workdir(workdir), tables.read_json(workdir / FILE)
    open_data = bool(read.run["dataset"]["open_data"])
    sections = _curves(found, read.withhold, read.name_of, {k: page.pictures(v) for k, v in examples.items()} if open_data else {})
    sections.insert(1, _acquisition(found, read.withhold, read.name_of))
    if "maps" in found:
        sections.insert(2, _maps(workdir, found, read.name_of, 1 if open_data else read.config["audit"]["min_patients"]))
    return page.write_sections(workdir, PAGE, page.BESIDE[PAGE], read.run.get("headline", ""), read.invented, sections, READ)


READ = (
    "AUCs are of each class against the rest, macro their mean over classes. Race is recorded by hospitals; an AUC says how well images are told apart by it, and nothing of anybody.",
    "Intervals are Obuchowski's (DeLong's where each patient has one image), over test patients, on the logit scale; of a difference to images as they are, of the same images. Each is of one"
    " figure by itself: of many that are compared some miss by chance.",
    "The network is as it was trained, on whole images. Where its AUC falls without something, it made use of that; where it does not fall, it can do without, which is not that nothing is there. What"
    " could be learnt from what is left, a network says that is trained on it (train.shown).",
    "A filter takes from a structure only what lies in its band: edges are of all frequencies. Perturbed images look like nothing that the network has seen, and a fall may come of that as well: beside a target stand"
    " others, which the same images are read for.",
)


def _of(strength, series: str) -> str:
    """A strength as an axis has it."""
    if series.startswith("cell"):
        return f"{ROWS[int(strength) // 3]} {COLUMNS[int(strength) % 3]}"
    several = strength if isinstance(strength, list) else [strength]
    return "\N{EN DASH}".join(f"{x:g}" for x in several)


def _curves(found: Mapping, withhold: Callable, name_of: Callable[[str], str], examples: Mapping[str, list]) -> list[page.Section]:
    less = ["less_value", "less_low", "less_high"]
    rows = withhold(audit_rows.frame(found["rows"], FILE, ("series", "strength", "reader", *less)))
    rows[less] = rows[less].astype(np.float64)
    targets = audit_rows.in_order(rows["target"])
    shown = [series for series in SERIES if (rows["series"] == series).any()]
    whole = page.Section("told", "What is told from images as they are")
    for target in targets:
        macro = audit_rows.first(rows[rows["series"].isna()], target=target, class_=subgroups.MACRO)
        by = "the network's own head" if macro["reader"] == "head" else "logistic regression on its features, of which the network was told nothing"
        whole.said.append(f"{_called(target, name_of)}, by {by}: macro AUC {audit_rows.estimate(macro)}; {audit_rows.count(macro['n_images'])} images of {audit_rows.count(macro['n_patients'])} patients.")
        whole.said += _falls(rows[(rows["target"] == target) & (rows["class"] == subgroups.MACRO)], target, name_of)
    sections = [whole]
    for series in shown:
        here = rows[(rows["series"] == series) | rows["series"].isna()]
        title, _, _, _ = SERIES[series]
        drawing = curve(here[here["class"] == subgroups.MACRO], series, {t: _called(t, name_of) for t in targets})
        section = page.Section(series, title, drawn=[drawing] if drawing else [])
        if series in examples:
            section.examples.append(("A test image, of data that are open", examples[series]))
        section.details.append(("All AUCs", [_table(here[here["target"] == t], series, _called(t, name_of)) for t in targets]))
        sections.append(section)
    if found["features"]:
        sections.append(_features(found, name_of))
    return sections


def _called(target: str, name_of: Callable[[str], str]) -> str:
    name = name_of(target)
    return name[:1].upper() + name[1:]


def _falls(rows: pd.DataFrame, target: str, name_of) -> list[str]:
    """Where the macro AUC of a target falls, of the series that take one thing out at a time, and how far a low-pass filter may go."""
    said = []
    for series, what in (("notch", "bands of radii"), ("cell_out", "cells")):
        here = rows[(rows["series"] == series) & rows["less_value"].notna()]
        if not len(here):
            continue
        fallen = here[here["less_high"] < 0].sort_values("less_value")
        told = ", ".join(f"{_of(row['strength'], series)} ({audit_rows.number(row['less_value'])}; {audit_rows.number(row['less_low'])} to {audit_rows.number(row['less_high'])})" for _, row in fallen.iterrows())
        if len(fallen):
            said.append(f"It falls without these {what}: {told}; without any of {len(here) - len(fallen)} others, no fall can be told.")
        else:
            said.append(f"Without any one of {len(here)} {what}, no fall can be told.")
    low = rows[(rows["series"] == "low_pass") & rows["less_value"].notna()]
    if len(low):
        below = low[low["less_high"] < 0]["strength"].astype(float)
        enough = sorted(float(s) for s in low["strength"] if not (below >= float(s)).any())
        if enough:
            said.append(f"From radii up to {enough[0]:g} on, it is not shown to be below that of whole images.")
        elif len(below) == len(low):
            said.append("It is below that of whole images after each of the low-pass filters.")
        else:
            said.append(f"Up to the largest radius, {below.max():g}, it is below that of whole images.")
    return said


@styled
def curve(rows: pd.DataFrame, series: str, called: Mapping[str, str]) -> Drawing | None:
    """Macro AUC of every target along a series, with intervals; as the images are, at the left of it."""
    title, axis, _, joined = SERIES[series]
    along = rows[rows["series"] == series]
    places = list(dict.fromkeys(_of(s, series) for s in along["strength"]))
    if not along["value"].notna().any():
        return None
    figure = new_figure(2.9)
    panel = figure.subplots()
    said = []
    for i, target in enumerate(t for t in called if (along["target"] == t).any()):
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        whole = rows[(rows["target"] == target) & rows["series"].isna()]
        here = along[along["target"] == target]
        shift = (i - (len(called) - 1) / 2) * 0.12
        x = 1 + np.arange(len(here)) + shift
        for at, part in ((np.array([shift]), whole), (x, here)):
            panel.vlines(at, part["low"], part["high"], color=colour, lw=1.1)
        panel.plot([shift], whole["value"], marker, color=colour, mfc="white", ms=5)
        panel.axhline(float(whole["value"].iloc[0]), color=colour, lw=0.6, ls=":")
        panel.plot(x, here["value"], marker, ls="-" if joined else "", color=colour, lw=1.2, ms=4.5, label=short(called[target], 30))
        said.append(f"{called[target]}: as it is {audit_rows.number(whole['value'].iloc[0], 2)}, " + ", ".join(f"{p} {audit_rows.number(v, 2)}" for p, v in zip(places, here["value"])))
    panel.axhline(0.5, color=FAINT, lw=0.9, ls=":")
    panel.set_xticks(range(len(places) + 1), ["whole", *(place.replace(" ", "\n") for place in places)])
    panel.tick_params(axis="x", labelsize=7.5 if len(places) > 8 else 8.5)
    panel.set_xlabel(axis)
    panel.set_ylabel("macro AUC")
    panel.set_ylim(min(0.4, np.nanmin(along["low"]) - 0.02), 1.01)
    panel.grid(axis="x", visible=False)
    figure.legend(loc="outside upper left", ncols=2, handlelength=1.6, columnspacing=1.2)
    level, n = audit_rows.percent(along["level"].iloc[0]), along.iloc[0]
    counted = f"; {audit_rows.count(n['n_images'])} test images of {audit_rows.count(n['n_patients'])} patients" if np.isfinite(n["n_images"]) else ""
    caption = f"{title}. Open marks and dotted lines: images as they are. Bars: {level} intervals over patients{counted}. Dotted at 0.5: guessing."
    return f"curve_{series}", figure, f"{title}. " + "; ".join(said) + ".", caption


def _table(rows: pd.DataFrame, series: str, called: str) -> dict:
    """AUCs of one target along a series: a line a strength, a column a class."""
    classes = audit_rows.in_order(rows["class"])
    classes = [subgroups.MACRO] + [c for c in classes if c != subgroups.MACRO]

    def cell(row) -> list[str]:
        less = f"{audit_rows.number(row['less_value'])} ({audit_rows.number(row['less_low'])} to {audit_rows.number(row['less_high'])})" if np.isfinite(row["less_value"]) else ""
        return [audit_rows.estimate(row), *([f"less whole: {less}"] if less else [])]

    lines = []
    for strength in dict.fromkeys("" if s is None else _of(s, series) for s in rows["strength"].where(rows["strength"].notna(), None)):
        here = rows[[("" if row["series"] != series else _of(row["strength"], series)) == strength for _, row in rows.iterrows()]]
        cells = [audit_rows.first(here, class_=c) for c in classes]
        lines.append((strength or "whole", [cell(row) for row in cells]))
    heads = []
    for c in classes:
        row = audit_rows.first(rows, class_=c)
        n = f"\n{audit_rows.count(row['n_images'])} images" if np.isfinite(row["n_images"]) else ""
        heads.append(audit_rows.class_name(c) + n + (f"\n{audit_rows.count(row['n_positive'])} positive" if np.isfinite(row["n_positive"]) else ""))
    return page.table(called, [SERIES[series][1], *heads], lines)


# ------------------------------------------------------------------------------------------- acquisition against demography

FACTORS = {
    "view": "view", "machine": "machine", "exposure": "exposure and window, of the picture", "recorded_exposure": "exposure and window, as recorded", "field_of_view": "field of view, of the picture",
    "picture_size": "size of the picture as acquired", "age": "age", "sex": "sex", "findings": "findings", "body": "body height and weight",
}  # fmt: skip
WHAT = {"alone": "told by it alone", "within": "among images equal in it", "matched": "with its mix made equal", "explained": "gone where it is equal", "explained_matched": "gone where its mix is equal", "pairs": "pairs compared"}


def _acquisition(found: Mapping, withhold: Callable, name_of: Callable[[str], str]) -> page.Section:
    section = page.Section("acquisition", "Acquisition against demography")
    of = found["acquisition"]
    if not of["rows"]:
        section.said.append("Nothing that is read here is a class label, which this is asked of.")
        return section
    if not of["groups"]:
        section.said.append("No factor is recorded." if of["missing"] else "Not asked.")
        return section
    rows = withhold(audit_rows.frame(of["rows"], FILE, ("factor", "what")))
    for target in audit_rows.in_order(rows["target"]):
        here = rows[rows["target"] == target]
        macro = here[here["class"] == subgroups.MACRO]
        whole = audit_rows.first(macro, what="whole")
        section.said.append(f"{_called(target, name_of)}: macro AUC {audit_rows.estimate(whole)}; {audit_rows.count(whole['n_images'])} images of {audit_rows.count(whole['n_patients'])} patients. {_gone(macro)}")
        section.tables.append(_factor_table(macro, f"{_called(target, name_of)}, macro"))
        classes = [c for c in audit_rows.in_order(here["class"]) if c != subgroups.MACRO]
        section.details.append((f"By class: {_called(target, name_of)}", [_factor_table(here[here["class"] == c], audit_rows.class_name(c)) for c in classes]))
    if of["missing"]:
        section.said.append(f"Not recorded here: {', '.join(FACTORS.get(name, name.replace('_', ' ')) for name in of['missing'])}.")
    matched = [row for row in found["rows"] if row["series"] == "histogram_matched" and row["class"] == subgroups.MACRO and row["strength"] == 1]
    for row in matched:
        if row["value"] is not None and row["low"] is not None:
            section.said.append(f"{_called(row['target'], name_of)}, once every image has as many pixels of each gray level as training images together: macro AUC {audit_rows.estimate(pd.Series(row))}.")
    section.said.append(
        "Alone: by logistic regression on it, fitted on training patients. Equal in it: pairs of images with the same value (numbers cut at quantiles, so that what goes with a number is"
        " understated). A share that is gone is no effect, and no excuse: who is imaged how is itself how people are treated. Shares do not add up. What a network learns when exposure, window and field of view"
        " are varied in training is another run: configs/mitigate.py:acquisition."
    )
    return section


def _gone(macro: pd.DataFrame) -> str:
    """Of which factors a share of what is told is gone, by intervals."""
    said = []
    for factor in audit_rows.in_order(f for f in macro["factor"] if isinstance(f, str)):
        row = audit_rows.first(macro, factor=factor, what="explained_matched")
        if row is not None and np.isfinite(row["low"]) and row["low"] > 0:
            said.append(f"{FACTORS.get(factor, factor)} {audit_rows.estimate(row, 2)}")
    return f"Of what is told beyond chance, a share goes with {', '.join(said)}." if said else "No share of what is told is shown to go with any factor."


def _factor_table(rows: pd.DataFrame, caption: str) -> dict:
    lines = []
    for factor in audit_rows.in_order(f for f in rows["factor"] if isinstance(f, str)):
        cells, notes = [], []
        for what in WHAT:
            row = audit_rows.first(rows, factor=factor, what=what)
            cells.append("" if row is None else audit_rows.estimate(row, 2 if what.startswith(("explained", "pairs")) else 3))
            notes += [part for part in audit_rows.note(row).split("; ") if part and not part.startswith("no interval: it is counted")] if row is not None else []
        lines.append((FACTORS.get(factor, factor.replace("_", " ")), [*cells, "; ".join(dict.fromkeys(notes))]))
    return page.table(caption, ["", *WHAT.values(), "note"], lines)


# ----------------------------------------------------------------------------------------------------- where it looks

METHODS = {"grad_cam": "Grad-CAM", "integrated_gradients": "integrated gradients", "occlusion": "occlusion"}


def _maps(workdir: pathlib.Path, found: Mapping, name_of: Callable[[str], str], least: int) -> page.Section:
    section = page.Section("maps", "Where it looks")
    if not found["maps"]:
        section.said.append("Nothing that the network tells was asked: no class label, and none of config.mechanism.maps.findings.")
        return section
    rows = pd.DataFrame(found["maps"])
    for column in ("value", "low", "high", "level", "n_patients"):
        rows[column] = rows[column].astype(np.float64)
    arrays = tables.read_arrays(workdir / "mechanism" / "maps.npz", "mechanism")
    attribute, groups = str(arrays["attribute"]), [str(g) for g in arrays["groups"]]
    section.said.append(f"Mean maps over test patients, one image each, by {name_of(attribute)}, in a rough common frame (the body's centroid and spread; nothing is registered). A map is the share of all that speaks for or against in its image."
        " Below, alike is Spearman's correlation of absolute values: near 1 under noise that nobody sees. A map that stays nearly as alike without what was learnt shows the image, not the network; and a network trained again on the same labels has other maps, too.")
    section.said += _believed(rows)
    for target, name in dict.fromkeys((t, c) for t, c in zip(rows["target"], rows["class"])):
        made = mean_maps(arrays, groups, target, name, f"{_called(target, name_of)}: {name}", least)
        section.drawn += [made] if made else []
    drawing = deletion(arrays, rows, least)
    section.drawn += [drawing] if drawing else []
    lines = []
    for (target, name, method), part in rows.groupby(["target", "class", "method"], sort=False):
        by = {row["figure"]: row for _, row in part.iterrows()}
        cells = [_figure(by.get(f)) for f in ("similarity_noise", "similarity_randomised", "similarity_shuffled", "area", "incompleteness")]
        why = dict.fromkeys(row["reason"] for row in by.values() if isinstance(row["reason"], str) and not row["reason"].startswith("no interval"))
        n = by["area"]["n_patients"] // least * least
        lines.append((f"{_called(target, name_of)}: {name}, {METHODS[method]}", [audit_rows.count(n), *cells, "; ".join(why)]))
    head = ["", "patients", "alike under unseen noise", "with weights mixed up", "of shuffled labels", "area of deletion", "incompleteness", "note"]
    section.details.append(("Whether maps may be believed: all figures", [page.table("", head, lines)]))
    return section


def _figure(row) -> str:
    if row is None:
        return ""
    if not np.isfinite(row["value"]):
        return "undefined"
    ends = f" ({audit_rows.number(row['low'], 2)} to {audit_rows.number(row['high'], 2)})" if np.isfinite(row["low"]) else ""
    return f"{audit_rows.number(row['value'], 2)}{ends}"


def _believed(rows: pd.DataFrame) -> list[str]:
    """What the sanity checks and deletion say of each way, in how many of its maps."""
    said = []
    for method in audit_rows.in_order(rows["method"]):
        here, parts = rows[rows["method"] == method], []
        for figure, words, side in (("changed_randomised", "change by more than noise does when the network's weights are mixed up", -1), ("changed_shuffled", "are others than those of a network trained on shuffled labels", -1), ("area", "are faithful: the logit falls sooner along them than at random", 1)):
            part = here[(here["figure"] == figure) & here["low"].notna()]
            if len(part):
                passes = (part["high"] < 0) if side < 0 else (part["low"] > 0)
                alike = here[(here["figure"] == figure.replace("changed", "similarity")) & here["value"].notna()]["value"]
                left = f" (on average they stay {audit_rows.number(alike.mean(), 2)} alike)" if side < 0 else ""
                parts.append(f"{int(passes.sum())} of {len(part)} {words}{left}")
        if parts:
            name = METHODS[method]
            said.append(f"{name[:1].upper()}{name[1:]}, maps of {here['class'].nunique()} classes: {'; '.join(parts)}.")
    return said


def _patients(n: float, least: int) -> str:
    """How many; of data that are not open only on which side of `least`, since what is left of all would tell the last."""
    return f"{int(n):,}" if least == 1 else f"≥{least}" if n >= least else f"<{least}"


@styled
def mean_maps(arrays: Mapping[str, np.ndarray], groups: Sequence[str], target: str, name: str, called: str, least: int) -> Drawing | None:
    """The mean map of each group, a row a way of making them, over the group's mean image. least: patients that a mean must be of."""
    of = {m: {part: arrays[f"{target}\n{name}\n{m}\n{part}"] for part in ("mean", "patients")} for m in METHODS if f"{target}\n{name}\n{m}\nmean" in arrays}
    shown = [g for g in range(len(groups)) if any(one["patients"][g] >= max(1, least) for one in of.values())]
    if not shown:
        return None
    columns = max(4, len(shown))  # so that of few groups maps are as small
    figure = new_figure(0.55 + 1.12 * len(of), 0.6 + 1.05 * columns)
    panels = figure.subplots(len(of), columns, squeeze=False)
    said = []
    for row, (method, one) in zip(panels, of.items()):
        there = [g for g in shown if one["patients"][g] >= max(1, least)]
        strongest = np.nanquantile(np.abs(one["mean"][there]), 0.99) if there else 0.0
        for panel in row[len(shown) :]:
            panel.axis("off")
        for panel, g in zip(row, shown):
            panel.set(xticks=[], yticks=[])
            panel.grid(visible=False)
            panel.spines[:].set_visible(False)
            if g in there:
                panel.imshow(arrays["frame"][g], cmap="gray", vmin=0, vmax=255)
                panel.imshow(one["mean"][g], cmap="PuOr_r", vmin=-strongest, vmax=strongest, alpha=0.6)
            panel.set_title(f"{short(groups[g], 14)}, {_patients(one['patients'][g], least)}", fontsize=7.5)
        row[0].set_ylabel(METHODS[method], fontsize=7.5)
        counted = [f"{groups[g]} ({_patients(one['patients'][g], least)} patients)" for g in there]
        said.append(f"{METHODS[method]} of {', '.join(counted) or 'nobody'}")
    left_out = [groups[g] for g in range(len(groups)) if g not in shown]
    note = f" Not shown, since fewer than {least} patients: {', '.join(left_out)}." if left_out and least > 1 else ""
    caption = f"{called}. Mean maps over each group's patients who have one, whose number stands above, over the group's mean image: orange speaks for it, purple against. No interval is drawn{': standard errors are in maps.npz' if least == 1 else ''}.{note}"
    return f"maps_{target}_{name}", figure, f"Mean maps for {called}: " + "; ".join(said) + ".", caption


@styled
def deletion(arrays: Mapping[str, np.ndarray], rows: pd.DataFrame, least: int) -> Drawing | None:
    """How the logit changes as cells are taken out along the map, against it and at random: mean over patients, a panel a method, of the first class."""
    first = rows.iloc[0]
    methods = [m for m in METHODS if f"{first['target']}\n{first['class']}\n{m}\ncurves" in arrays]
    if not methods or not np.isfinite(first["n_patients"]) or first["n_patients"] < least:
        return None
    figure = new_figure(2.5, 2.1 * len(methods))
    panels = figure.subplots(1, len(methods), sharey=True, squeeze=False)[0]
    for panel, method in zip(panels, methods):
        curves = arrays[f"{first['target']}\n{first['class']}\n{method}\ncurves"].astype(np.float64)
        share = np.linspace(0, 1, curves.shape[2])
        for curve_of, label, colour in zip(curves, ("what it ranks first, first", "last, first", "at random"), (COLOURS[1], COLOURS[0], FAINT)):
            mean, error = curve_of.mean(axis=0), curve_of.std(axis=0, ddof=1) / np.sqrt(len(curve_of)) if len(curve_of) > 1 else 0.0
            panel.plot(share, mean, color=colour, label=label if method == methods[0] else None)
            panel.fill_between(share, mean - 1.96 * error, mean + 1.96 * error, color=colour, alpha=0.2, lw=0)
        panel.set_title(METHODS[method])
        panel.set_xlabel("share taken out")
    panels[0].set_ylabel("logit")
    figure.legend(loc="outside upper left", ncols=3, handlelength=1.4)
    n = curves.shape[1]
    caption = f"Deletion, {first['class']}: the logit as cells of the image are taken out in the order of its map; means over {n // least * least:,} patients{' or more' if least > 1 else ''}, bands 95 % by their standard error. A faithful map falls first."
    return "deletion", figure, f"Deletion curves of {first['class']} by {', '.join(METHODS[m] for m in methods)}.", caption


def _features(found: Mapping, name_of) -> page.Section:
    """What moves the features that weigh most in each probe."""
    section = page.Section("features", "Which features, and what moves them")
    moved = pd.DataFrame(found["features"])
    n = moved.iloc[0]
    if n["n_images"] is None or not np.isfinite(n["n_images"]):
        section.said.append(f"Withheld: {n['reason']}.")
        return section
    section.said.append(
        "The features of most weight in each logistic regression (weight times the feature's standard deviation), and the perturbations that move each most: mean change over"
        f" {int(n['n_images']):,} test images of {int(n['n_patients']):,} patients, in standard deviations of the feature, and r, the correlation of the feature before and after. Of many, the"
        " greatest are shown: they are the more likely to be great by chance. Images that excite a feature most stand in the report, of data that are open."
    )
    moved = moved[moved["value"].notna()]
    for target, watched in found["readers"]["watched"].items():
        lines = []
        for feature in watched:
            here = moved[moved["feature"] == feature]
            here = here.reindex(here["value"].abs().sort_values(ascending=False).index)
            best = here.drop_duplicates("series").head(FOLLOWED)
            cells = []
            for _, row in best.iterrows():
                r = "" if row["correlation"] is None or not np.isfinite(row["correlation"]) else f"r {audit_rows.number(row['correlation'], 2)}"
                interval = f" ({audit_rows.number(row['low'], 2)} to {audit_rows.number(row['high'], 2)})" if row["low"] is not None and np.isfinite(row["low"]) else ""
                cells.append([SERIES[row["series"]][2].format(_of(row["strength"], row["series"])), f"{audit_rows.number(row['value'], 2)}{interval}", r])
            lines.append((f"feature {feature}", cells + [[""]] * (FOLLOWED - len(cells))))
        section.tables.append(page.table(_called(target, name_of), ["", "moved most", "then", "then"], lines))
    return section
