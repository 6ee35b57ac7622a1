"""The report's figures, each drawn from what the audit and the cohort say and from nothing else.

Every function returns a Drawing: SVG that needs no font, no network and no script, the words that stand in for it, and
a caption that says what is drawn, on how many and with which interval. The same input gives the same bytes. All share
one style: Okabe and Ito's colours, which the colour-blind tell apart, with a marker or a place of its own beside each
colour; and a width that a phone shows without shrinking the type below reading.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import re
import textwrap
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.transforms import ScaledTranslation

from cxr_jax.audit import subgroups
from cxr_jax.report import cohort
from cxr_jax.report import rows as audit_rows

# Okabe and Ito, Color Universal Design (2008), less its yellow, which is too pale for a line on white.
BLUE, VERMILION, GREEN, PURPLE, SKY, ORANGE, BLACK = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000",
)  # fmt: skip
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, SKY, ORANGE, BLACK)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
SPLIT_COLOURS = {"train": SKY, "validation": ORANGE, "test": BLUE}
MODEL, CEILING = BLUE, VERMILION
INK, FAINT, GRID = "#222222", "#767676", "#DDDDDD"
WIDTH = 4.7  # inches; 451 CSS pixels

STYLE = {
    "font.family": ["DejaVu Sans"],  # comes with matplotlib, so every machine draws the same
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.fonttype": "path",
    "svg.hashsalt": "cxr_jax",
    "text.parse_math": False,  # a class may be called $50
    "axes.unicode_minus": True,
    "axes.formatter.use_mathtext": False,
}
MOST_PANELS = 6  # of small multiples: those with the most positive images


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A figure.

    name: of the file. svg: the picture. alt: what it shows, for who cannot see it. caption: what, of how many, how.
    """

    name: str
    svg: str
    alt: str
    caption: str
    width: int  # CSS pixels, as drawn
    height: int


def styled(draw):
    """Runs a function that gives (name, figure, alt, caption) under the common style, and makes a Drawing of it."""

    @functools.wraps(draw)
    def in_style(*arguments, **keywords):
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(STYLE)
            drawn = draw(*arguments, **keywords)
            if drawn is None:
                return None
            name, figure, alt, caption = drawn
            text = io.StringIO()
            # Straight to the canvas: savefig would draw everything once more, for a crop that we do not ask for.
            FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None, "Creator": None})
        width, height = (round(float(x) * 96) for x in figure.get_size_inches())
        name = re.sub(r"[^\w.-]", "_", name)  # a target may be called anything; a file may not
        if len(name.encode()) > 200:
            name = f"{name.encode()[:180].decode(errors='ignore')}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        return Drawing(name, _numbered(_body(text.getvalue()), name), alt, caption, width, height)

    return in_style


def _body(svg: str) -> str:
    """The picture without its prologue and metadata, whose addresses a page without a network need not hold, and without what no XML may hold."""
    return re.sub(r"<metadata>.*?</metadata>|[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "", svg[svg.index("<svg") :], flags=re.DOTALL)


def _numbered(svg: str, name: str) -> str:
    """The picture with its clip paths numbered: matplotlib names some by where they lie in memory, anew in each run."""
    order = {clip: f"{name}-clip{i}" for i, clip in enumerate(dict.fromkeys(re.findall(r"#(p[0-9a-f]{10})\b", svg)))}
    return re.sub(r"\bp[0-9a-f]{10}\b", lambda found: order.get(found[0], found[0]), svg)


def new_figure(height: float, width: float = WIDTH) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


def _share(axis) -> None:
    axis.set_major_formatter(ticker.PercentFormatter(1, decimals=0))


def _beside_axes(panel):
    """Where x = 0 is just left of the axes, and y is the data's."""
    return panel.get_yaxis_transform() + ScaledTranslation(-6 / 72, 0, panel.figure.dpi_scale_trans)


def short(text: str, width: int = 28) -> str:
    return textwrap.shorten(text, width, placeholder="\N{HORIZONTAL ELLIPSIS}") if len(text) > width else text


def wrapped(text: str, width: int = 27) -> str:
    """A label in as many lines as it takes."""
    return "\n".join(textwrap.wrap(text, width, break_long_words=False))


# ------------------------------------------------------------------------------------------------- the cohort


@styled
def counts(tables: Sequence[cohort.Counts], name_of) -> Drawing | None:
    """Patients by group and split, one panel an attribute. name_of: attribute -> what to call it."""
    bars = [len(c.groups) for c in tables]
    figure = new_figure(0.9 + sum(0.24 * n + 0.42 for n in bars))
    panels = figure.subplots(len(tables), 1, sharex=True, squeeze=False, height_ratios=[n + 1.2 for n in bars])[:, 0]
    longest = 1.0
    some_hidden = False
    for panel, table in zip(panels, tables, strict=True):
        y = np.arange(len(table.groups))
        left = np.zeros(len(y))
        for j, split in enumerate(table.splits):
            size = np.where(table.hidden_patients[:-1, j], 0, table.patients[:-1, j]).astype(float)
            panel.barh(y, size, left=left, height=0.72, color=SPLIT_COLOURS[split], edgecolor="white", linewidth=0.6)
            left += size
        for i in y:
            withheld = [s for j, s in enumerate(table.splits) if table.hidden_patients[i, j]]
            some_hidden |= bool(withheld)
            if table.hidden_patients[i, -1]:
                note = " and ".join(withheld) + " withheld"
            else:
                note = f"{table.patients[i, -1]:,}"
                rest = table.patients[i, -1] - left[i]  # what is withheld, together: from the totals anybody knows it
                if withheld:
                    panel.barh(
                        i,
                        rest,
                        left=left[i],
                        height=0.72,
                        color="white",
                        edgecolor=FAINT,
                        hatch="//////",
                        linewidth=0.6,
                    )
                left[i] += rest
            longest = max(longest, left[i])
            panel.annotate(note, (left[i], i), (3, 0), textcoords="offset points", va="center", fontsize=8)
        panel.set_yticks(y, [wrapped(audit_rows.group_name(g)) for g in table.groups])
        panel.set_ylim(len(y) - 0.5, -0.5)
        panel.set_title(f"by {name_of(table.attribute)}")
        panel.grid(axis="y", visible=False)
        panel.tick_params(axis="y", length=0)
    panels[-1].set_xlim(0, longest * 1.15)
    panels[-1].xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
    panels[-1].xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
    panels[-1].set_xlabel("patients")
    splits = audit_rows.in_order(s for c in tables for s in c.splits)
    handles = [Patch(color=SPLIT_COLOURS[s], label=s) for s in splits]
    if some_hidden:
        handles.append(Patch(facecolor="white", edgecolor=FAINT, hatch="//////", linewidth=0.6, label="withheld"))
    figure.legend(handles=handles, loc="outside upper left", ncols=4, handlelength=1.2, columnspacing=1.2)
    alt = "Bars: patients by group and split. " + " ".join(
        f"By {name_of(c.attribute)}: "
        + ", ".join(
            f"{audit_rows.group_name(g)} {'withheld' if c.hidden_patients[i, -1] else format(c.patients[i, -1], ',')}"
            for i, g in enumerate(c.groups)
        )
        + "."
        for c in tables
    )
    caption = (
        "Patients by group and split, each in the group of the first image; the figure at a bar's end is the total."
    )
    if some_hidden:
        caption += " Hatched: splits whose numbers are withheld, together."
    return "cohort_counts", figure, alt, caption


@styled
def ages(lines: Sequence[Mapping], attribute: str, called: str, level: float) -> Drawing | None:
    """Ages by group: quartiles as a box, the mean with its interval as a point. lines: as `demographics` makes them."""
    if not lines:
        return None
    figure = new_figure(0.85 + 0.42 * len(lines))
    panel = figure.subplots()
    for y, line in enumerate(lines):
        first, median, third = line["first quartile"], line["median"], line["third quartile"]
        if np.isfinite(median):
            panel.barh(y, third - first, left=first, height=0.5, color="white", edgecolor=FAINT, linewidth=1.1)
            panel.vlines(median, y - 0.25, y + 0.25, color=INK, linewidth=1.4)
        panel.plot(line["mean"], y, "o", color=BLUE)
        if np.isfinite(line["low"]):
            panel.hlines(y, line["low"], line["high"], color=BLUE, linewidth=1.6)
    panel.set_yticks(range(len(lines)), [f"{wrapped(audit_rows.group_name(g['group']))}\nn = {g['n']:,}" for g in lines])
    panel.set_ylim(len(lines) - 0.5, -0.5)
    panel.set_xlim(0, np.nanmax([90.0, *(line[end] for line in lines for end in ("third quartile", "high"))]))
    panel.grid(axis="y", visible=False)
    panel.tick_params(axis="y", length=0)
    panel.set_xlabel("age at the first image, years")
    said = "; ".join(
        f"{audit_rows.group_name(g['group'])}: mean {g['mean']:.1f}, n = {g['n']:,}" for g in lines
    )
    caption = (
        f"Age of patients at their first image, by {called}; n counts patients. Boxes: quartiles, with the median, of"
        f" groups that are large enough. Points: means, with {audit_rows.percent(level)} intervals (Student's)."
    )
    return f"cohort_ages_{attribute}", figure, f"Ages by {called}. {said}.", caption


@styled
def prevalence(table: pd.DataFrame, called: str, least: int, level: float) -> Drawing | None:
    """Share of images with each finding, by group, with intervals.

    table: what (the finding), group, value, low, high, n_images, n_patients, suppressed.
    """
    sizes = table.drop_duplicates("group").set_index("group")["n_patients"]
    told = set(table.loc[~table["suppressed"], "group"])  # of the others not one share can be shown
    groups = [g for g in sizes.index if g in told]
    groups = [g for g in groups if g in set(sizes[groups].sort_values(ascending=False).index[: len(COLOURS)])]
    findings = audit_rows.in_order(table["what"])
    if not groups or not findings:
        return None
    step = 0.72 / len(groups)
    figure = new_figure(0.85 + 0.18 * -(-len(groups) // 3) + len(findings) * max(0.3, 0.085 * len(groups)))
    panel = figure.subplots()
    withheld, alone = 0, False
    for i, group in enumerate(groups):
        here = table[table["group"] == group].set_index("what").loc[findings]
        y = np.arange(len(findings)) + (i - (len(groups) - 1) / 2) * step
        shown = ~here["suppressed"].to_numpy(bool)
        withheld += int((~shown).sum())
        low, high, value = (here[c].to_numpy(float) for c in ("low", "high", "value"))
        alone |= bool(np.isnan(low[shown]).any())
        panel.hlines(y[shown], low[shown], high[shown], color=COLOURS[i], linewidth=1.3)
        panel.plot(value[shown], y[shown], MARKERS[i], color=COLOURS[i], ms=3.6, clip_on=False)
        panel.plot(
            np.zeros((~shown).sum()),
            y[~shown],
            "x",
            color=COLOURS[i],
            ms=3,
            mew=0.9,
            transform=_beside_axes(panel),
            clip_on=False,
        )
    panel.set_yticks(np.arange(len(findings)), [wrapped(f) for f in findings])
    panel.set_ylim(len(findings) - 0.5, -0.5)
    panel.set_xlim(left=0)
    panel.grid(axis="y", visible=False)
    panel.tick_params(axis="y", length=0, pad=9)
    for edge in np.arange(1, len(findings)) - 0.5:
        panel.axhline(edge, color=GRID, linewidth=0.5)
    _share(panel.xaxis)
    panel.set_xlabel("share of images with the finding")
    images = table.drop_duplicates("group").set_index("group")["n_images"]
    handles = [
        Line2D(
            [],
            [],
            color=COLOURS[i],
            marker=MARKERS[i],
            ms=4,
            lw=1.3,
            label=f"{wrapped(audit_rows.group_name(g))} (n = {images[g]:,})",
        )
        for i, g in enumerate(groups)
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=2, handlelength=1.6, columnspacing=1.2)
    spread = []
    for finding in findings:
        here = table[(table["what"] == finding) & table["group"].isin(groups) & ~table["suppressed"]]
        if len(here):
            spread.append(f"{finding} {here['value'].min():.0%} to {here['value'].max():.0%}")
    alt = f"Prevalence of recorded findings by {called}, lowest to highest group: " + "; ".join(spread) + "."
    caption = (
        f"Share of images in which each finding is recorded as positive, by {called}, all splits together; n counts"
        f" images. Bars: {audit_rows.percent(level)} intervals (Wilson's, at the effective sample size of a ratio"
        " estimate clustered by patient)."
    )
    if withheld:
        caption += f" A cross left of the axis: withheld, lest a number of fewer than {least} patients show."
    if alone:
        caption += " A group of one patient has no interval."
    if len(groups) < len(sizes):
        caption += f" Shown are the {len(groups)} largest groups of which anything can be shown."
    return f"cohort_prevalence_{called}", figure, alt, caption


@styled
def differences(table: pd.DataFrame, against: str, called: str, least: int, level: float) -> Drawing | None:
    """Sizes of standardised differences, one line a covariate, one marker a group.

    table: covariate, group, value, low, high, n_patients (NaN where it must not be shown), suppressed. against: whom
    each group is compared with. called: what the groups are of.
    """
    sizes = table.groupby("group", sort=False)["n_patients"].max()
    shown_at_all = table[~table["suppressed"] & table["value"].notna()]
    groups = [g for g in sizes.index if g in set(shown_at_all["group"])]
    # A group whose size is withheld sorts last, so that its place tells nothing.
    most = sizes[groups].fillna(0).sort_values(ascending=False, kind="stable").index[: len(COLOURS)]
    dropped, groups = len(groups) > len(most), [g for g in groups if g in set(most)]
    covariates = audit_rows.in_order(table["covariate"])
    if not groups or not covariates:
        return None
    step = 0.72 / len(groups)
    figure = new_figure(0.85 + 0.18 * -(-len(groups) // 2) + len(covariates) * max(0.3, 0.085 * len(groups)))
    panel = figure.subplots()
    panel.axvline(0.1, color=FAINT, lw=0.9, ls=":")
    withheld, farthest = 0, 0.1
    for i, group in enumerate(groups):
        here = table[table["group"] == group].set_index("covariate").reindex(covariates)
        y = np.arange(len(covariates)) + (i - (len(groups) - 1) / 2) * step
        value, low, high = (here[c].to_numpy(float) for c in ("value", "low", "high"))
        # A signed interval that covers 0 folds to one that begins there.
        ends = np.sort(np.abs(np.stack([low, high])), axis=0)
        ends[0, (low < 0) & (high > 0)] = 0
        panel.hlines(y, ends[0], ends[1], color=COLOURS[i], linewidth=1.3)
        panel.plot(np.abs(value), y, MARKERS[i], color=COLOURS[i], ms=3.6, clip_on=False)
        gone = here["suppressed"].fillna(False).to_numpy(bool)
        withheld += int(gone.sum())
        panel.plot(
            np.zeros(gone.sum()), y[gone], "x", color=COLOURS[i], ms=3, mew=0.9, transform=_beside_axes(panel),
            clip_on=False,
        )  # fmt: skip
        farthest = np.nanmax([farthest, *np.abs(value), *ends[1]])
    panel.set_yticks(np.arange(len(covariates)), [wrapped(c) for c in covariates])
    panel.set_ylim(len(covariates) - 0.5, -0.5)
    panel.set_xlim(0, farthest * 1.05)
    panel.grid(axis="y", visible=False)
    panel.tick_params(axis="y", length=0, pad=9)
    for edge in np.arange(1, len(covariates)) - 0.5:
        panel.axhline(edge, color=GRID, linewidth=0.5)
    panel.set_xlabel("size of the standardised difference")
    count = {g: f" (n = {int(sizes[g]):,})" if np.isfinite(sizes[g]) else "" for g in groups}
    handles = [
        Line2D([], [], color=COLOURS[i], marker=MARKERS[i], ms=4, lw=1.3,
               label=f"{wrapped(audit_rows.group_name(g))}{count[g]}")
        for i, g in enumerate(groups)
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside upper left", ncols=2, handlelength=1.6, columnspacing=1.2)
    said = []
    for group in groups:
        here = shown_at_all[shown_at_all["group"] == group]
        top = here.loc[here["value"].abs().idxmax()]
        said.append(f"{audit_rows.group_name(group)}: largest for {top['covariate']}, {abs(top['value']):.2f}")
    alt = f"Sizes of standardised differences, each group against {against}. " + "; ".join(said) + "."
    caption = (
        f"Size of the standardised difference of each group against {against}, by {called}; n counts patients. Lines:"
        f" {audit_rows.percent(level)} intervals. Dotted: 0.1, above which a difference is customarily called one."
    )
    if withheld:
        caption += f" A cross left of the axis: withheld, since a cell of fewer than {least} patients would show."
    if dropped:
        caption += f" Shown are the {len(groups)} largest groups."
    return f"cohort_differences_{called}", figure, alt, caption


# ------------------------------------------------------------------------------------------------- training


@styled
def learning_curves(records: Sequence[Mapping], checkpoint: str, n_hidden: bool = False) -> Drawing | None:
    """Loss in training and validation, and macro AUC in validation, by epoch.

    checkpoint: which one was judged: best, last, or the name of another run. n_hidden: whether it must not be said of how
    many images and patients validation is.
    """
    train = pd.DataFrame([(r["epoch"], r["loss"]) for r in records if r["split"] == "train"], columns=["epoch", "loss"])
    held = pd.DataFrame(
        [
            (
                r["epoch"],
                r["loss"],
                np.nan if r["macro_auc"] is None else r["macro_auc"],
                r["n_images"],
                r["n_patients"],
            )
            for r in records
            if r["split"] == "validation"
        ],
        columns=["epoch", "loss", "auc", "images", "patients"],
    ).astype(float)
    train = train.astype(float)
    if not len(train) and not len(held):
        return None
    figure = new_figure(3.9)
    above, below = figure.subplots(2, 1, sharex=True)
    if len(train) > 300:  # a long run logs tens of thousands of steps; the mean of each 300th part draws the same curve
        part = np.minimum((np.arange(len(train)) * 300) // len(train), 299)
        train = train.groupby(part).mean()
    above.plot(train["epoch"], train["loss"], color=BLUE, lw=1.2, label="training, batches")
    if len(held):
        above.plot(held["epoch"], held["loss"], "s", color=VERMILION, ls="--", label="validation")
    above.set_ylabel("loss")
    above.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, borderaxespad=0.2)
    says = f"Training loss goes from {train['loss'].iloc[0]:.3g} to {train['loss'].iloc[-1]:.3g}." if len(train) else ""
    caption = "Loss by epoch, in training (batches, as logged) and in validation"
    known = held.dropna(subset="auc")
    if len(known):
        best = known.loc[known["auc"].idxmax()]
        below.plot(known["epoch"], known["auc"], "s", color=VERMILION, ls="--")
        below.plot(best["epoch"], best["auc"], "o", ms=10, mfc="none", mec=INK, mew=1.1)
        # Nothing lies above the best point, so its label does.
        side = "right" if best["epoch"] > 0.8 * max(known["epoch"].max(), 1e-9) else "center"
        below.annotate(
            f"best {best['auc']:.3f}",
            (best["epoch"], best["auc"]),
            (0, 8),
            textcoords="offset points",
            va="bottom",
            ha=side,
        )
        below.axhline(0.5, color=FAINT, lw=0.9, ls=":")
        low, high = min(0.5, known["auc"].min()), max(known["auc"].max(), 0.5)
        pad = max(0.01, 0.12 * (high - low))
        below.set_ylim(low - pad, high + 2 * pad)
        says += f" Validation macro AUC is best, {best['auc']:.3f}, at epoch {best['epoch']:.3g}."
        chosen = {
            "best": "The checkpoint judged is that of the best",
            "last": "The checkpoint judged is the last, not that of the best",
        }
        caption += (
            "; and macro AUC in validation"
            + (" (n withheld)" if n_hidden else f" ({int(best['images']):,} images of {int(best['patients']):,} patients)")
            + ", for"
            " choosing only; without interval. "
            + (chosen[checkpoint] if checkpoint in chosen else f"The checkpoint judged is that of the run {checkpoint}")
            + ". Dotted: 0.5, what guessing reaches"
        )
    else:
        below.text(0.5, 0.5, "no macro AUC in validation", transform=below.transAxes, ha="center", color=FAINT)
    below.set_ylabel("validation macro AUC")
    below.set_xlabel("epoch")
    below.set_xlim(left=0)
    figure.align_ylabels()
    return "learning_curves", figure, "Learning curves. " + says, caption + "."


# ------------------------------------------------------------------------------------------------- the audit


def _panels_for(rows: pd.DataFrame, target: str, split: str) -> tuple[list[str], bool]:
    """Classes that get a panel, at most MOST_PANELS, and whether some were left out for that.

    Of two classes that exclude each other one is enough, since the other is its mirror.
    """
    names = [
        c for c in audit_rows.classes(rows, target)
        if len(audit_rows.select(rows, metric="roc_tpr", target=target, class_=c, split=split).dropna(subset="value"))
    ]  # fmt: skip
    if len(names) == 2 and audit_rows.multiclass(rows, target):
        return names[:1], False
    if len(names) > MOST_PANELS:
        positive = {c: _auc(rows, target, c, split)["n_positive"] for c in names}
        most = sorted(names, key=lambda c: -np.nan_to_num(positive[c]))[:MOST_PANELS]
        return [c for c in names if c in most], True
    return names, False


def _auc(rows: pd.DataFrame, target: str, name: str, split: str) -> pd.Series:
    here = audit_rows.select(rows, metric="auc", target=target, class_=name, attribute=subgroups.ALL, split=split)
    return here.iloc[0]


def _multiples(panels: int, each: float = 2.15):
    """A grid of square panels that share their axes, two across."""
    across = min(2, panels)
    down = -(-panels // across)
    figure = new_figure(0.35 + each * down if across == 2 else 3.6, WIDTH if across == 2 else 3.9)
    grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    for panel in list(grid.flat)[panels:]:
        panel.set_visible(False)
        grid[-2, -1].tick_params(labelbottom=True)
    return figure, list(grid.flat)[:panels]


def _panel_title(name: str, auc: pd.Series) -> str:
    n, positive = (audit_rows.count(auc[key]) for key in ("n_images", "n_positive"))
    return f"{short(name, 26)}\nn = {n}, {positive} positive"


@styled
def roc(rows: pd.DataFrame, target: str, split: str) -> Drawing | None:
    """One-vs-rest ROC curves with pointwise bands, one panel a class."""
    names, cut = _panels_for(rows, target, split)
    if not names:
        return None
    figure, panels = _multiples(len(names))
    for panel, name in zip(panels, names, strict=True):
        curve = audit_rows.select(rows, metric="roc_tpr", target=target, class_=name, split=split)
        curve = curve[curve["attribute"] == subgroups.ALL].sort_values("threshold", kind="stable")
        panel.plot([0, 1], [0, 1], color=FAINT, lw=0.9, ls=":")
        band = curve.dropna(subset=["low", "high"])
        panel.fill_between(band["threshold"], band["low"], band["high"], color=MODEL, alpha=0.22, linewidth=0)
        panel.plot(curve["threshold"], curve["value"], color=MODEL)
        auc = _auc(rows, target, name, split)
        panel.set_title(_panel_title(name, auc))
        label = f"AUC {audit_rows.value(auc)}\n{audit_rows.interval(auc)}"
        panel.text(
            0.98,
            0.04,
            label,
            transform=panel.transAxes,
            ha="right",
            va="bottom",
            fontsize=8,
            bbox={"fc": "white", "ec": "none", "alpha": 0.8, "pad": 1},
        )
        panel.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
        panel.xaxis.set_major_locator(ticker.MultipleLocator(0.25))
        panel.yaxis.set_major_locator(ticker.MultipleLocator(0.25))
        panel.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        panel.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    figure.supxlabel("false-positive rate", fontsize=9)
    figure.supylabel("true-positive rate", fontsize=9)
    alt = f"ROC curves on {audit_rows.images_of(split)}. " + "; ".join(
        f"{name}: AUC {audit_rows.estimate(_auc(rows, target, name, split))}" for name in names
    )
    level = audit_rows.percent(auc["level"])
    caption = (
        f"ROC curves, each class against the rest, on {audit_rows.images_of(split)}. Band: {level}"
        " interval at each false-positive rate, over patients, not for the curve as a whole. Dotted: guessing."
    )
    if cut:
        caption += f" Shown are the {MOST_PANELS} classes with the most positive images; all are in the table of AUCs."
    elif len(audit_rows.classes(rows, target)) == 2 and audit_rows.multiclass(rows, target):
        other = [c for c in audit_rows.classes(rows, target) if c not in names][0]
        caption += f" With two classes the curve for {other} is this one mirrored."
    return f"roc_{target}", figure, alt + ".", caption


@styled
def calibration(rows: pd.DataFrame, target: str, split: str) -> Drawing | None:
    """Observed frequency by mean score in bins, one panel a class."""
    all_bins = audit_rows.select(rows, metric="calibration", target=target, split=split).dropna(subset="value")
    names = [c for c in _panels_for(rows, target, split)[0] if c in set(all_bins["class"])]
    if not names:
        return None
    figure, panels = _multiples(len(names))
    level, farthest = all_bins["level"].iloc[0], []
    for panel, name in zip(panels, names, strict=True):
        bins = audit_rows.select(rows, metric="calibration", target=target, class_=name, split=split)
        bins = (
            bins[bins["attribute"] == subgroups.ALL]
            .dropna(subset=["value", "threshold"])
            .sort_values("threshold", kind="stable")
        )
        panel.plot([0, 1], [0, 1], color=FAINT, lw=0.9, ls=":")
        panel.vlines(bins["threshold"], bins["low"], bins["high"], color=MODEL, lw=1.1)
        panel.plot(bins["threshold"], bins["value"], "o-", color=MODEL, lw=0.9, ms=3.5)
        gap = bins.loc[(bins["value"] - bins["threshold"]).abs().idxmax()]
        farthest.append(
            f"{name}: farthest from the diagonal at score {gap['threshold']:.2f}, where {gap['value']:.2f} are positive"
        )
        panel.set_title(_panel_title(name, _auc(rows, target, name, split)))
        panel.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_major_locator(ticker.MultipleLocator(0.25))
            axis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    figure.supxlabel("mean score in the bin", fontsize=9)
    figure.supylabel("share of images that are positive", fontsize=9)
    caption = (
        f"Calibration on {audit_rows.images_of(split)}: how often the class is true where the model gives it such a"
        f" score. Bars: {audit_rows.percent(level)} intervals over patients. Dotted: a perfectly calibrated model."
    )
    if len(names) < len(audit_rows.classes(rows, target)):
        caption += " The classes are those of the ROC curves."
    return (
        f"calibration_{target}",
        figure,
        f"Calibration on {audit_rows.images_of(split)}. " + "; ".join(farthest) + ".",
        caption,
    )


@styled
def confusion(rows: pd.DataFrame, target: str, split: str) -> Drawing | None:
    """Share of each true class's images by predicted class."""
    cells = audit_rows.select(rows, metric="confusion", target=target, split=split, attribute=subgroups.ALL)
    if not cells["value"].notna().any():
        return None
    names = audit_rows.in_order(cells["class"])
    predicted = audit_rows.in_order([*names, *cells["reference"]])
    share = np.full((len(names), len(predicted)), np.nan)
    for _, cell in cells.iterrows():
        share[names.index(cell["class"]), predicted.index(cell["reference"])] = cell["value"]
    figure = new_figure(1.0 + 0.46 * len(names), WIDTH)
    panel = figure.subplots()
    blues = matplotlib.colors.LinearSegmentedColormap.from_list("share", ["#FFFFFF", "#9CC9E6", BLUE])
    panel.imshow(np.nan_to_num(share), cmap=blues, vmin=0, vmax=1, aspect="auto")
    for i, j in np.ndindex(share.shape):
        text = f"{share[i, j]:.0%}" if np.isfinite(share[i, j]) else "\N{EN DASH}"
        panel.text(j, i, text, ha="center", va="center", color="white" if share[i, j] > 0.62 else INK)
    sizes = []
    for name in names:
        sizes.append(
            f"{short(name, 18)}\nn = {audit_rows.count(cells.loc[cells['class'] == name, 'n_images'].iloc[0])}"
        )
    panel.set_xticks(range(len(predicted)), [textwrap.fill(short(p, 24), 11) for p in predicted])
    panel.set_yticks(range(len(names)), sizes)
    panel.set_xticks(np.arange(len(predicted) + 1) - 0.5, minor=True)
    panel.set_yticks(np.arange(len(names) + 1) - 0.5, minor=True)
    panel.grid(visible=False, which="major")
    panel.grid(which="minor", color="white", linewidth=1.5)
    panel.tick_params(which="both", length=0)
    for spine in panel.spines.values():
        spine.set_visible(False)
    panel.set_xlabel("class with the highest score")
    panel.set_ylabel("recorded class")
    own = [cell for _, cell in cells[cells["class"] == cells["reference"]].iterrows()]
    right = [f"{c['class']} " + (f"{c['value']:.0%}" if np.isfinite(c["value"]) else audit_rows.value(c)) for c in own]
    alt = "Confusion matrix. Share of images given their recorded class: " + ", ".join(right) + "."
    caption = (
        f"Of the {audit_rows.images_of(split)} of each recorded class, the share whose highest score is each class; n"
        " counts images. Rows add up to 100 %. Intervals, for which the cells have no room, are in audit.json."
    )
    if np.isnan(share).any():
        caption += " A dash: withheld, or a class without images."
    return f"confusion_{target}", figure, alt, caption


@styled
def forest(
    rows: pd.DataFrame,
    target: str,
    blocks: Sequence[tuple[str, Sequence[tuple[str, pd.Series]]]],
    name: str,
    what: str,
    n: str,
) -> Drawing | None:
    """AUCs with intervals, and the ceiling beside each where the truth is known.

    blocks: (heading, [(label, audit row of metric auc)]), top to bottom; a heading may be ''. what: for the caption.
    n: which count stands beside each, n_patients or n_positive.
    """
    blocks = [(heading, list(entries)) for heading, entries in blocks if entries]
    entries = [entry for _, inside in blocks for entry in inside]
    if not entries:
        return None
    lines = len(entries) + sum(bool(heading) for heading, _ in blocks)
    figure = new_figure(0.85 + 0.27 * lines)
    panel = figure.subplots()
    ceilings = {}
    for _, row in entries:
        found, _ = audit_rows.beside(rows, row)
        if found is not None and np.isfinite(found["value"]):
            ceilings[id(row)] = found
    smallest = np.nanmin([0.5, *(r["low"] for _, r in entries), *(r["value"] for _, r in entries)])
    left = max(0.0, np.floor(smallest * 20 - 0.2) / 20)
    y, ticks, labels = 0, [], []
    said = []
    across = panel.get_yaxis_transform()

    def at_right(line: float, points: float, text: str, **keywords) -> None:
        panel.annotate(
            text,
            (1, line),
            (points, 0),
            xycoords=across,
            textcoords="offset points",
            va="center",
            fontsize=8,
            **keywords,
        )

    for heading, inside in blocks:
        if heading:
            panel.text(-0.02, y, heading, transform=across, ha="right", va="center", fontsize=8.5, color=FAINT)
            y += 1
        for label, row in inside:
            ticks.append(y)
            labels.append(short(label, 26))
            ceiling = ceilings[id(row)] if id(row) in ceilings else None
            if np.isfinite(row["value"]):
                shift = -0.14 if ceiling is not None else 0
                panel.hlines(y + shift, row["low"], row["high"], color=MODEL, lw=1.7)
                panel.plot(row["value"], y + shift, "o", color=MODEL, ms=5, clip_on=False)
                beside = (
                    f"{row['value']:.2f} ({row['low']:.2f}\N{EN DASH}{row['high']:.2f})"
                    if audit_rows.interval(row)
                    else f"{row['value']:.2f}"
                )
            else:
                beside = audit_rows.value(row)
            if ceiling is not None:
                panel.hlines(y + 0.2, ceiling["low"], ceiling["high"], color=CEILING, lw=1)
                panel.plot(ceiling["value"], y + 0.2, "D", color=CEILING, mfc="white", ms=4, clip_on=False)
            at_right(y, 8, beside, color=INK if np.isfinite(row["value"]) else FAINT)
            no_count = n == "n_positive" and row["class"] == subgroups.MACRO
            at_right(y, 130, "" if no_count else audit_rows.count(row[n]), ha="right")
            said.append(
                f"{label}: {audit_rows.estimate(row)}"
                + (f", ceiling {audit_rows.number(ceiling['value'])}" if ceiling is not None else "")
            )
            y += 1
    panel.axvline(0.5, color=FAINT, lw=0.9, ls=":")
    panel.set_yticks(ticks, labels)
    panel.set_ylim(y - 0.4, -0.6)
    panel.set_xlim(left, 1.0)
    panel.xaxis.set_major_locator(ticker.MaxNLocator(5, steps=[1, 2, 5, 10]))
    panel.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    panel.grid(axis="y", visible=False)
    panel.tick_params(axis="y", length=0)
    panel.set_xlabel("AUC")
    level = entries[0][1]["level"]
    at_right(-1, 8, "AUC (interval)", color=FAINT)
    at_right(-1, 130, n.removeprefix("n_"), color=FAINT, ha="right")
    handles = [Line2D([], [], color=MODEL, marker="o", ms=5, lw=1.7, label="model")]
    if ceilings:
        handles.append(
            Line2D(
                [],
                [],
                color=CEILING,
                marker="D",
                mfc="white",
                ms=4,
                lw=1,
                label="ceiling: the best to expect of any model",
            )
        )
    figure.legend(handles=handles, loc="outside upper left", ncols=2, handlelength=1.8, columnspacing=1.2)
    caption = f"{what} Lines: {audit_rows.percent(level)} intervals over patients. Dotted: 0.5, what guessing reaches."
    return f"forest_{name}_{target}", figure, "AUCs. " + "; ".join(said) + ".", caption
