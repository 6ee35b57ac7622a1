"""Do intervals hold what they promise, and tests what they claim? Counted on patients whose truth is known.

    python -m cxr_jax.benchmarks.coverage [--simulations=2000 --replicates=600 --jobs=2] [--write=docs]

Populations are drawn of patients with 1 to 4 images each, who share part of their score and most of their truth; three
scores of the same images have AUCs of .60, .75 and .90. In each the audit's own intervals are made, and beside them what most
others report, percentiles of a bootstrap that draws images. Printed is the share of intervals that cover the truth, with
a 95 % interval for that share. Then populations in which groups do not differ at
all: in how many is any of 50 differences, between groups and the rest, called one after Holm's correction?

--write puts coverage.md and coverage.svg in a folder, each whole or not at all.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import multiprocessing
import pathlib
from collections.abc import Sequence

import numpy as np
from scipy import special

from cxr_jax import tables
from cxr_jax.audit import comparisons, estimates
from cxr_jax.audit.estimates import Estimate, Estimator
from cxr_jax.audit.intervals import Bootstrap, MeanCell, RankedCell, wilson

LEVEL = 0.95
AUCS = (0.60, 0.75, 0.90)
METHODS = ("bca", "percentile", "analytic", "images")


@dataclasses.dataclass(frozen=True)
class Population:
    """Whom patients are drawn from.

    patients: in a sample. prevalence: of patients who mostly have positive images; persistence: the chance that an image
    follows its patient, and is not drawn anew. shared: the part of a score's variance that a patient's images share. small: the
    share of patients in the smaller of two groups, which do not differ.
    """

    name: str
    patients: int
    prevalence: float = 0.25
    persistence: float = 0.8
    shared: float = 0.5
    small: float = 0.4


POPULATIONS = (
    Population("200 patients, 50 of them with positive images", 200),
    Population("600 patients, images alike within a patient", 600, shared=0.8),
    Population("200 patients, each image on its own", 200, persistence=0.0, shared=0.0),
    Population("60 patients", 60),
    Population("30 patients", 30),
)


@dataclasses.dataclass(frozen=True)
class Sample:
    """patient: int [n]; positive: bool [n]; scores: float64 [n, AUCs]; small: bool [n], in the smaller group."""

    patient: np.ndarray
    positive: np.ndarray
    scores: np.ndarray
    small: np.ndarray


def draw(rng: np.random.Generator, of: Population, classes: int = 1, groups: int = 2) -> list[Sample]:
    """One sample, with `classes` findings that are independent of one another; `small`: int number of the patient's group."""
    images = rng.integers(1, 5, of.patients)
    who = np.repeat(np.arange(of.patients), images)
    n = len(who)
    group = rng.integers(0, groups, of.patients) if groups > 2 else (rng.random(of.patients) < of.small).astype(int)
    apart = np.sqrt(2) * special.ndtri(AUCS)  # of unit normals whose AUC is that
    found = []
    for _ in range(classes):
        own, usual = rng.random(n) < of.prevalence, (rng.random(of.patients) < of.prevalence)[who]
        positive = np.where(rng.random(n) < of.persistence, usual, own)
        noise = np.sqrt(of.shared) * rng.normal(size=(of.patients, 3))[who] + np.sqrt(1 - of.shared) * rng.normal(size=(n, 3))
        found.append(Sample(who, positive, noise + apart * positive[:, None], group[who]))
    return found


def truths() -> dict[str, float]:
    """What is estimated, by name, and what is so. A score above its own 70th percentile among negatives is called."""
    cut = special.ndtri(0.7)
    found = {f"AUC {auc:.2f}": auc for auc in AUCS}
    found |= {f"AUC {auc:.2f}, group less rest": 0.0 for auc in AUCS}
    found |= {f"sensitivity {1 - special.ndtr(cut - np.sqrt(2) * special.ndtri(auc)):.2f}": float(1 - special.ndtr(cut - np.sqrt(2) * special.ndtri(auc))) for auc in AUCS}
    return found | {"false-positive rate 0.30": 0.3, "false-positive rate, group less rest": 0.0, "false-positive rate, group by rest": 1.0}


def figures(sample: Sample, patient: np.ndarray, replicates: int, seed: int, stratify: bool) -> dict[str, Estimate]:
    """What the audit makes of a sample. patient: whom a replicate draws; images themselves, for the usual bootstrap."""
    masks = [sample.small == 1, sample.small == 0]
    estimator = Estimator(Bootstrap(patient, replicates, seed, masks if stratify else ()))
    names, everyone = list(truths()), np.ones(len(patient), bool)
    cells = [(np.flatnonzero(mask), k) for mask in (everyone, *masks) for k in range(len(AUCS))]
    ranked = estimator.rank([RankedCell(rows, sample.positive[rows], sample.scores[rows, k]) for rows, k in cells])
    auc = [area for area, _ in ranked]
    called = sample.scores > special.ndtri(0.7)
    shares = [MeanCell(rows := np.flatnonzero(sample.positive), called[rows, k]) for k in range(len(AUCS))]
    shares += [MeanCell(rows := np.flatnonzero(~sample.positive & mask), called[rows, 0]) for mask in (everyone, *masks)]
    share = estimator.means(shares, "share")
    n = len(AUCS)
    of_group, of_rest = share[n + 1], share[n + 2]
    several = [*auc[:n], *(estimates.difference(auc[n + k], auc[2 * n + k]) for k in range(n)), *share[: n + 1]]
    several += [estimates.difference(of_group, of_rest), estimates.ratio(of_group, of_rest)]
    return dict(zip(names, several, strict=True))


def misses(of: Population, simulations: Sequence[int], replicates: int) -> np.ndarray:
    """How many intervals lie above, below and around the truth, and are withheld: int [METHODS, statistics, 4]."""
    true = truths()
    counts = np.zeros((len(METHODS), len(true), 4), int)
    for simulation in simulations:
        rng = np.random.default_rng([simulation, of.patients])
        (sample,) = draw(rng, of)
        both = {"patients": figures(sample, sample.patient, replicates, simulation, True)}
        both["images"] = figures(sample, np.arange(len(sample.patient)), replicates, simulation, False)
        for m, method in enumerate(METHODS):
            made = both["images" if method == "images" else "patients"]
            for s, (name, value) in enumerate(true.items()):
                if not made[name].defined:
                    counts[m, s, 3] += 1
                    continue
                limits = estimates.interval(made[name], LEVEL, "percentile" if method == "images" else method)
                where = 3 if np.isnan(limits.low) else 0 if limits.low > value else 1 if limits.high < value else 2
                counts[m, s, where] += 1
    return counts


FAMILIES = {"5 groups of about 80 patients": 400, "5 groups of about 40 patients": 200}


def false_alarms(patients: int, simulations: Sequence[int]) -> np.ndarray:
    """In how many populations without differences any of 50 is called one: int [3], by Holm, by Benjamini and Yekutieli, uncorrected.

    5 groups against the rest, 5 findings, AUC and false-positive rate.
    """
    found = np.zeros(3, int)
    for simulation in simulations:
        rng = np.random.default_rng([simulation, patients, 50])
        samples = draw(rng, Population("null", patients), classes=5, groups=5)
        estimator = Estimator(Bootstrap(samples[0].patient, 1, 0))
        ranked, shared = [], []
        for sample in samples:
            for g in range(5):
                for mask in (sample.small == g, sample.small != g):
                    rows, negative = np.flatnonzero(mask), np.flatnonzero(mask & ~sample.positive)
                    ranked.append(RankedCell(rows, sample.positive[rows], sample.scores[rows, 1]))
                    shared.append(MeanCell(negative, sample.scores[negative, 1] > special.ndtri(0.7)))
        several = [area for area, _ in estimator.rank(ranked)], estimator.means(shared, "share")
        p = np.array([estimates.tested(a, b).p for one in several for a, b in zip(one[::2], one[1::2], strict=True)])
        adjusted = comparisons.holm(p), comparisons.benjamini_yekutieli(p), p
        found += [bool(np.nanmin(one, initial=1) <= 1 - LEVEL) for one in adjusted]
    return found


def spread_out(function, arguments: Sequence, simulations: int, jobs: int) -> list[np.ndarray]:
    """Sums of function(argument, some simulations, …) over all simulations, in as many processes as there are jobs."""
    if jobs == 1:
        return [function(argument[0], range(simulations), *argument[1:]) for argument in arguments]
    with concurrent.futures.ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        parts = [[pool.submit(function, a[0], range(j, simulations, jobs), *a[1:]) for j in range(jobs)] for a in arguments]
        return [np.sum([part.result() for part in several], axis=0) for several in parts]


def told(counts: np.ndarray) -> str:
    """`94.8 (93.8–95.7)`: per cent of intervals that cover, and the interval of that; '–' where more than 5 % are withheld."""
    above, below, inside, none = counts
    made = above + below + inside
    if none > 0.05 * (made + none):
        return "–"
    low, high = wilson(inside / made, made, LEVEL)
    return f"{100 * inside / made:.1f} ({100 * low:.1f}–{100 * high:.1f})"


def table(found: Sequence[np.ndarray], simulations: int, replicates: int) -> str:
    """Coverage as Markdown."""
    lines = []
    for of, counts in zip(POPULATIONS, found, strict=True):
        lines += [f"**{of.name}**: truth follows the patient in {of.persistence:.0%} of images, {of.shared:.0%} of a score's variance is shared", ""]
        lines += ["| | BCa, by patient | percentiles, by patient | analytic | percentiles, by image |", "| --- | --- | --- | --- | --- |"]
        for s, name in enumerate(truths()):
            lines.append(f"| {name} | " + " | ".join(told(counts[m, s]) for m in range(len(METHODS))) + " |")
        lines.append("")
    return "\n".join(lines)


def figure(found: Sequence[np.ndarray], simulations: int) -> str:
    """Coverage of AUCs and differences in the first population, patients' intervals beside images': SVG."""
    from cxr_jax.report import figures as drawings

    @drawings.styled
    def drawn():
        names = list(truths())
        canvas = drawings.new_figure(0.9 + 0.3 * len(names))
        panel = canvas.subplots()
        panel.axvspan(93, 97, color=drawings.GRID, linewidth=0)
        panel.axvline(95, color=drawings.FAINT, lw=0.9, ls=":")
        told = []
        for m, colour, marker, label, shift in ((0, drawings.BLUE, "o", "by patient, as the audit has them", -0.14), (3, drawings.VERMILION, "s", "by image, as is usual", 0.14)):
            for s in range(len(names)):
                above, below, inside, _ = found[0][m, s]
                low, high = wilson(inside / (above + below + inside), above + below + inside, LEVEL)
                panel.hlines(s + shift, 100 * low, 100 * high, color=colour, lw=1.4)
                panel.plot(100 * inside / (above + below + inside), s + shift, marker, color=colour, ms=4, label=label if not s else None)
            told.append(f"{label}: " + ", ".join(f"{name} {100 * found[0][m, s][2] / found[0][m, s][:3].sum():.1f} %" for s, name in enumerate(names)))
        panel.set_yticks(range(len(names)), [drawings.wrapped(name) for name in names])
        panel.set_ylim(len(names) - 0.5, -0.5)
        panel.grid(axis="y", visible=False)
        panel.set_xlabel("per cent of intervals that cover the truth")
        canvas.legend(loc="outside upper left", ncols=1, handlelength=1.4)
        return "coverage", canvas, "Coverage. " + "; ".join(told) + ".", f"{simulations:,} simulations of {POPULATIONS[0].name}"

    return drawn().svg


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m cxr_jax.benchmarks.coverage")
    parser.add_argument("--simulations", type=int, default=2000)
    parser.add_argument("--replicates", type=int, default=600, help="of each bootstrap")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--write", default="", help="folder for coverage.md and coverage.svg")
    asked = parser.parse_args(arguments)
    n = asked.simulations
    found = spread_out(misses, [(of, asked.replicates) for of in POPULATIONS], n, asked.jobs)
    families = spread_out(false_alarms, [(patients,) for patients in FAMILIES.values()], n, asked.jobs)
    text = table(found, n, asked.replicates)
    text += "\n**No group differs; 50 differences are tested**: per cent of samples in which any is called one at 5 %\n\n"
    text += "| | Holm | Benjamini and Yekutieli | uncorrected |\n| --- | --- | --- | --- |\n"
    for name, counts in zip(FAMILIES, families, strict=True):
        cells = [f"{100 * k / n:.1f} ({100 * wilson(k / n, n, LEVEL)[0]:.1f}–{100 * wilson(k / n, n, LEVEL)[1]:.1f})" for k in counts]
        text += f"| {name} | {' | '.join(cells)} |\n"
    print(text)
    if asked.write:
        folder = pathlib.Path(asked.write)
        told_above = (
            "# Do the audit's intervals hold what they promise?\n\n"
            "Per cent of 95 % intervals that cover the truth, each with its own 95 % interval, on drawn patients with 1 to 4 images"
            f" each: {n:,} samples of each population, {asked.replicates:,} replicates of each bootstrap. BCa is what the audit"
            " reports unless told otherwise (of a single share, Wilson's interval at the effective number of patients). The audit"
            " promises 93 to 97 % for figures of at least 200 patients and 50 with positive images, as are those of everybody in the first"
            " three populations; the rest is as it was found. A dash: more than 5 % of intervals"
            " are withheld, since too many replicates were undefined.\n\n![coverage](coverage.svg)\n\n"
        )
        made_by = f"\nMade by `python -m cxr_jax.benchmarks.coverage --simulations={n} --replicates={asked.replicates} --write=docs`.\n"
        tables.write_text(folder / "coverage.md", told_above + text + made_by)
        tables.write_text(folder / "coverage.svg", figure(found, n))


if __name__ == "__main__":
    main()
