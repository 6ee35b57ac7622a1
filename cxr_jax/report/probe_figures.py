"""The figures of the probes: AUCs beside their controls, by depth, by how many patients an erasure knows, and in strata. Drawn as `figures` draws its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cxr_jax.audit import subgroups
from cxr_jax.report import rows as audit_rows
from cxr_jax.report.figures import (
    BLUE, CEILING, COLOURS, FAINT, GREEN, INK, MARKERS, ORANGE, PURPLE, Drawing, new_figure, short, styled,
)  # fmt: skip
from cxr_jax.tables import FEATURES, SCORES, UNERASED

PROBES = {
    "logistic_regression": ("logistic regression", BLUE, "o"),
    "knn": ("nearest neighbours", GREEN, "s"),
    "kmeans": ("K-means", PURPLE, "^"),
    "network": ("small network", ORANGE, "D"),
}
# Controls in gray, told apart by markers.
GRAY, GRAY_LINE = "#8C8C8C", "#A6A6A6"
CONTROLS = {
    "untrained": ("an untrained network's features", "D"),
    "histogram": ("gray levels alone", "s"),
    SCORES: ("the model's scores of findings alone", "*"),
    "findings": ("findings alone", "^"),
    "demographics": ("demographics alone", "v"),  # which ones: see `probes.control_words`
    UNERASED: ("the features before erasure", "P"),
    "shuffled": ("shuffled labels", "x"),
}


def control_of(row: pd.Series) -> str:
    """Which control a reading is; '' for one of the features themselves."""
    if row["shuffled"]:
        return "shuffled"
    return row["input"] if row["input"] in CONTROLS else ""


def _limits(rows: pd.DataFrame) -> tuple[float, float]:
    """Of an axis of AUCs: down to .4, or to what is below."""
    least = np.nanmin([0.45, *rows["low"], *rows["value"]])
    return max(0.0, np.floor(least * 20) / 20 - 0.02), 1.01


def _axis(panel, rows: pd.DataFrame) -> None:
    panel.set_xlim(*_limits(rows))
    panel.xaxis.set_major_locator(ticker.MultipleLocator(0.1))
    panel.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))


@styled
def answer(rows: pd.DataFrame, target: str, called: str, words: Mapping[str, str]) -> Drawing | None:
    """AUC of every probe on the features, by class, with its controls beneath in gray, and the ceiling as a line.

    rows: of one target, all images; columns as audit rows with probe, input, shuffled. called: the target in words. words:
    what to call each control.
    """
    aucs = rows[(rows["metric"] == "auc") & rows["value"].notna()]
    probes = [probe for probe in PROBES if (aucs["probe"] == probe).any()]
    classes = audit_rows.in_order(rows.loc[rows["metric"] == "auc", "class"])
    classes = [subgroups.MACRO] + [c for c in classes if c != subgroups.MACRO]  # the answer in short comes first
    if len(classes) == 3:  # of two classes: the AUC of one is that of the other, and their mean
        classes = classes[1:2]
    classes = [c for c in classes if (aucs["class"] == c).any()]
    if not classes or not probes:
        return None
    controls = [c for c in CONTROLS if (aucs.apply(control_of, axis=1) == c).any()]
    step = 0.16
    height = 0.42 + step * len(controls)
    figure = new_figure(1.2 + len(classes) * (0.3 + height * len(probes) * 0.46), 5.4)
    panels = figure.subplots(len(classes), 1, sharex=True, squeeze=False)[:, 0]
    said = []
    for panel, name in zip(panels, classes, strict=True):
        here = aucs[aucs["class"] == name]
        for p, probe in enumerate(probes):
            mine = here[here["probe"] == probe]
            top = p * height
            for c, control in enumerate(controls):
                found = mine[mine.apply(control_of, axis=1) == control]
                y = top + 0.2 + step * c
                panel.hlines([y] * len(found), found["low"], found["high"], color=GRAY_LINE, lw=0.9)
                marker = CONTROLS[control][1]
                panel.plot(found["value"], [y] * len(found), marker, color=GRAY, ms=3, mew=0.9)
            label, colour, marker = PROBES[probe]
            found = mine[(mine["input"] == FEATURES) & ~mine["shuffled"]]
            panel.hlines([top] * len(found), found["low"], found["high"], color=colour, lw=2)
            panel.plot(found["value"], [top] * len(found), marker, color=colour, ms=5.5, clip_on=False)
            for _, row in found.iterrows():
                text = f"{row['value']:.2f}" + (f" ({row['low']:.2f}\N{EN DASH}{row['high']:.2f})" if audit_rows.interval(row) else "")
                panel.annotate(
                    text, (1, top), (6, 0), xycoords=panel.get_yaxis_transform(), textcoords="offset points",
                    va="center", fontsize=8, color=INK,
                )  # fmt: skip
                said.append(f"{audit_rows.class_name(name)}, {label}: {audit_rows.estimate(row, 2)}")
        ceiling = audit_rows.first(rows, metric="auc_ceiling", class_=name)
        if ceiling is not None and np.isfinite(ceiling["value"]):
            panel.axvline(ceiling["value"], color=CEILING, lw=1.3, ls="--")
        panel.axvline(0.5, color=FAINT, lw=0.9, ls=":")
        panel.set_yticks([p * height for p in range(len(probes))], [PROBES[p][0] for p in probes])
        panel.set_ylim(len(probes) * height - 0.2, -0.25)
        panel.grid(axis="y", visible=False)
        panel.tick_params(axis="y", length=0)
        panel.set_title(short(audit_rows.class_name(name) if len(classes) > 1 else called, 40), fontweight="bold")
    _axis(panels[-1], aucs)
    panels[-1].set_xlabel("AUC")
    handles = [Line2D([], [], color=INK, marker="o", ms=5, lw=2, label="the model's features")]
    if (rows["metric"] == "auc_ceiling").any() and rows.loc[rows["metric"] == "auc_ceiling", "value"].notna().any():
        handles.append(Line2D([], [], color=CEILING, lw=1.3, ls="--", label="ceiling: the best to expect of any model"))
    for control in controls:
        handles.append(Line2D([], [], color=GRAY, marker=CONTROLS[control][1], ms=3.5, lw=0.9, label=short(words[control], 34)))
    figure.legend(handles=handles, loc="outside upper left", ncols=2, handlelength=1.6, columnspacing=1.2)
    level = audit_rows.percent(aucs["level"].iloc[0])
    n = aucs[(aucs["class"] == subgroups.MACRO) & (aucs["input"] == FEATURES)]
    counted = ""
    if len(n) and np.isfinite(n["n_images"].iloc[0]):
        counted = f" {audit_rows.count(n['n_images'].iloc[0])} test images of {audit_rows.count(n['n_patients'].iloc[0])} patients."
    caption = (
        f"What probes find of {called}, each class against the rest, in the features (in colour) and in what could stand"
        f" in for them (in gray).{counted} Lines: {level} intervals over patients. Dotted: 0.5, what guessing reaches."
    )
    return f"probes_{target}", figure, "AUC by probe. " + "; ".join(said) + ".", caption


@styled
def depth(rows: pd.DataFrame, target: str, called: str) -> Drawing | None:
    """AUC of logistic regression after the stem and each block, and on the features: a line a class."""
    aucs = rows[(rows["metric"] == "auc") & (rows["probe"] == "logistic_regression") & ~rows["shuffled"].astype(bool)]
    places = [n for n in audit_rows.in_order(aucs["input"]) if n == "stem" or n.startswith("block")]
    if not places:
        return None
    places = {name: name.replace("block", "block ") for name in (*sorted(places, key=lambda n: (n != "stem", n)), FEATURES)}
    figure, said = _along(aucs, places)
    caption = (
        f"Where in the network {called} can be read: logistic regression on the mean of the maps after the stem and after"
        f" each dense block, and on the features. Lines: {audit_rows.percent(aucs['level'].iloc[0])} intervals over patients."
        " Later ones have more maps, and more maps may hold more."
    )
    return f"probe_depth_{target}", figure, f"AUC by depth. {said}", caption


@styled
def fewer(rows: pd.DataFrame, target: str, called: str, patients: Mapping[str, int]) -> Drawing | None:
    """AUC of logistic regression on features before erasure, and after it by what fewer or more patients tell: a line a class.

    patients: on how many what erased an array was fitted, by the array's name.
    """
    aucs = rows[(rows["metric"] == "auc") & (rows["probe"] == "logistic_regression") & ~rows["shuffled"].astype(bool)]
    places = {name: f"{n:,}" for name, n in sorted(patients.items(), key=lambda one: one[1])}
    if not aucs["input"].isin(set(places) - {FEATURES}).any():
        return None
    if (aucs["input"] == UNERASED).any():
        places = {UNERASED: "before", **places}
    figure, said = _along(aucs[aucs["input"].isin(places)], places)
    figure.axes[0].set_xlabel("patients whom the erasure was fitted on")
    caption = (
        f"What logistic regression, refitted, finds of {called} on patients whom the erasure never saw, by how many it was fitted on; each point has all of"
        f" those of the point to its left. Lines: {audit_rows.percent(aucs['level'].iloc[0])} intervals over test patients, of erasures as they were fitted;"
        " which patients these happened to be moves the points too, the more the fewer they are."
    )
    return f"probe_fewer_{target}", figure, f"AUC by how many patients the erasure was fitted on. {said}", caption


def _along(aucs: pd.DataFrame, places: Mapping[str, str]) -> tuple[Figure, str]:
    """(AUCs of one probe at inputs side by side, a line a class; the same in words). places: what to call each input, left to right."""
    classes = [c for c in audit_rows.in_order(aucs["class"]) if c != subgroups.MACRO][: len(COLOURS) - 1]
    if len(classes) == 2:  # the AUC of one is that of the other, and their mean
        classes = classes[:1]
    figure = new_figure(3.0)
    panel = figure.subplots()
    said, lines = [], [*classes, *([subgroups.MACRO] if len(classes) > 1 else [])]
    for i, name in enumerate(lines):
        found = aucs[aucs["class"] == name].set_index("input").reindex(list(places))
        x = np.arange(len(places)) + (i - (len(lines) - 1) / 2) * 0.09
        colour, marker = ("#222222", "*") if name == subgroups.MACRO else (COLOURS[i], MARKERS[i])
        panel.vlines(x, found["low"], found["high"], color=colour, lw=1)
        panel.plot(x, found["value"], color=colour, marker=marker, lw=1.2, ms=4.5, label=short(audit_rows.class_name(name), 22))
        said.append(f"{audit_rows.class_name(name)}: " + ", ".join(f"{p} {audit_rows.number(v, 2)}" for p, v in zip(places.values(), found["value"])))
    panel.axhline(0.5, color=FAINT, lw=0.9, ls=":")
    panel.set_xticks(range(len(places)), list(places.values()))
    panel.set_ylabel("AUC")
    panel.set_ylim(*_limits(aucs))
    panel.grid(axis="x", visible=False)
    figure.legend(loc="outside upper left", ncols=3, handlelength=1.6, columnspacing=1.2)
    return figure, "; ".join(said) + "."


@styled
def strata(
    blocks: Sequence[tuple[str, str, pd.DataFrame, pd.DataFrame, pd.Series | None]], target: str, called: str, level: float
) -> Drawing | None:
    """Macro AUC of every probe among all images and within each stratum, in gray among as many images drawn at random.

    blocks: (stratum in words, how many in words, its macro rows, those of as many images, the ceiling there or None), top to
    bottom.
    """
    blocks = [block for block in blocks if block[2]["value"].notna().any()]
    if len(blocks) < 2:
        return None
    everything = pd.concat([rows for _, _, own, as_many, _ in blocks for rows in (own, as_many) if len(rows)])
    lines = sum(len(block[2]) + 1 for block in blocks)
    figure = new_figure(1.0 + 0.25 * lines, 5.0)
    panel = figure.subplots()
    y, ticks, labels, said, ceilings, drawn_at_random = 0.0, [], [], [], False, False
    for heading, counted, rows, as_many, ceiling in blocks:
        panel.text(
            0.01, y, f"{heading}: {counted}" if counted else heading, transform=panel.get_yaxis_transform(), va="center",
            fontsize=8.5, color=INK, fontweight="bold",
        )  # fmt: skip
        first = y + 0.6
        y += 1
        for _, row in rows.iterrows():
            label, colour, marker = PROBES[row["probe"]]
            ticks.append(y)
            labels.append(label)
            if np.isfinite(row["value"]):
                panel.hlines(y, row["low"], row["high"], color=colour, lw=1.8)
                panel.plot(row["value"], y, marker, color=colour, ms=5, clip_on=False)
            panel.annotate(
                audit_rows.estimate(row, 2).replace(" to ", "\N{EN DASH}"), (1, y), (6, 0), xycoords=panel.get_yaxis_transform(),
                textcoords="offset points", va="center", fontsize=8,
            )  # fmt: skip
            said.append(f"{heading}, {label}: {audit_rows.estimate(row, 2)}")
            for _, beside in as_many[(as_many["probe"] == row["probe"]) & as_many["value"].notna()].iterrows():
                drawn_at_random = True
                panel.hlines(y + 0.3, beside["low"], beside["high"], color=GRAY_LINE, lw=0.9)
                panel.plot(beside["value"], y + 0.3, "o", color=GRAY, ms=3, clip_on=False)
                said[-1] += f", among as many at random {audit_rows.estimate(beside, 2)}"
            y += 1
        if ceiling is not None and np.isfinite(ceiling["value"]):
            ceilings = True
            panel.vlines(ceiling["value"], first, y - 0.6, color=CEILING, lw=1.4, ls="--")
    panel.axvline(0.5, color=FAINT, lw=0.9, ls=":")
    panel.set_yticks(ticks, labels)
    panel.set_ylim(y - 0.4, -0.6)
    panel.grid(axis="y", visible=False)
    panel.tick_params(axis="y", length=0)
    _axis(panel, everything)
    panel.set_xlabel("macro AUC")
    handles = []
    if ceilings:
        handles.append(Line2D([], [], color=CEILING, lw=1.4, ls="--", label="ceiling: the best to expect of any model there"))
    if drawn_at_random:
        handles.append(Line2D([], [], color=GRAY, marker="o", ms=3, lw=0.9, label="as many images, drawn at random"))
    if handles:
        figure.legend(handles=handles, loc="outside upper left", handlelength=1.8)
    caption = (
        f"What probes find of {called} in the features of all images, and within images that are alike in one thing:"
        f" fitted there, chosen there and judged there. Lines: {audit_rows.percent(level)} intervals over patients"
        f"{', of the probes as they were fitted; in gray one random draw' if drawn_at_random else ''}."
    )
    return f"probe_strata_{target}", figure, "Macro AUC within strata. " + "; ".join(said) + ".", caption


KINDS = {"components": "first two principal components", "neighbours": "a map that keeps neighbours together (t-SNE)"}


@styled
def feature_map(space: dict, kind: str, name_of, of: str) -> Drawing | None:
    """The test images' features on a plane, by attribute: as points where the data are open, else as shares of a grid's cells.

    space: as `audit.feature_space.describe` gives it. kind: of KINDS. of: how many images of how many patients, in words.
    """
    found = space["maps"][kind]
    if "points" in found:
        place, codes = np.array(found["points"]), {a: np.array(c) for a, c in found["codes"].items()}
        across = 2
        down = -(-len(codes) // across)
        figure = new_figure(0.5 + 2.5 * down)
        panels = list(figure.subplots(down, across, squeeze=False).flat)
        for panel, (attribute, number) in zip(panels, codes.items()):
            for i, name in enumerate(space["classes"][attribute][: len(COLOURS)]):
                here = place[number == i]
                # Hollow, so that one class does not hide another.
                panel.plot(*here.T, MARKERS[i], ms=2.6, mew=0.6, mfc="none", color=COLOURS[i], label=short(str(name), 14))
            panel.set_title(short(name_of(attribute), 30))
            panel.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=2, fontsize=7.5, markerscale=1.6, handletextpad=0.2)
        caption = f"Each point is one of {of}, which data open to all allow; the same points in every panel."
    elif "images" in found:
        grids = [
            (attribute, name, np.array([[np.nan if v is None else v for v in row] for row in cells]))
            for attribute, groups in found["images"].items()
            for name, cells in zip(space["classes"][attribute], groups)
        ]
        grids = [(a, n, cells) for a, n, cells in grids if np.nansum(cells) > 0]
        if not grids:
            return None
        across = min(4, len(grids))
        down = -(-len(grids) // across)
        figure = new_figure(0.4 + 1.5 * down, 5.4)
        panels = list(figure.subplots(down, across, squeeze=False).flat)
        for panel, (attribute, name, cells) in zip(panels, grids):
            panel.set_facecolor("#E8E8E8")
            panel.imshow(cells.T / np.nansum(cells), origin="lower", cmap="Blues", vmin=0, aspect="auto")
            panel.set_title(short(f"{name_of(attribute)}: {name}", 20), fontsize=7.5)
            panel.grid(visible=False)
        codes = dict.fromkeys(a for a, _, _ in grids)
        caption = (
            f"How {of} lie on a coarse grid: the darker a cell, the more of the group's images. Gray cells are withheld, lest a"
            " count of few patients show."
        )
    else:
        return None
    for panel in panels:
        panel.set_xticks([])
        panel.set_yticks([])
        panel.grid(visible=False)
    for panel in panels[len(codes if "points" in found else grids) :]:
        panel.set_visible(False)
    words = ", ".join(name_of(a) for a in codes)
    if kind == "components":
        share = [audit_rows.percent(round(float(s), 3)) for s in space["share"][:2]]
        caption = f"The features' first two principal components, with {share[0]} and {share[1]} of all variance. {caption}"
    else:
        caption = f"A map of the features that keeps neighbours together (t-SNE); distances on it mean little. {caption}"
    return f"features_{kind}", figure, f"The features of images on a plane, by {words}: {KINDS[kind]}.", caption
