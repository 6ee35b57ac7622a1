"""What the features of images look like, which of them carry an attribute, and whether groups lie apart.

**Each feature** is read as a score by itself: its one-vs-rest AUC for every class, tested against .5 with the patient
as the unit (`comparisons`), and all tests together corrected by Benjamini and Yekutieli (2001), since features are as
dependent as they like.

**Components.** Features are standardised, so that one of large numbers does not stand for all, and turned to their
principal components. Along each, a group's patients are compared with the others by the two-sample test of Kolmogorov
and Smirnov: a map shows any difference of two distributions, and that is what this test answers to. (A test of ranks is
blind to a difference in spread, and what it tells is an AUC, which `each_feature` has.) A patient counts once, by one
image on that side that is drawn at random: the mean of several is spread less than one image, and where groups differ in
images a patient that alone would tell them apart. P-values are exact where SciPy can compute that, else asymptotic; they are
corrected by Holm (1979) over all attributes, groups and components.

**Maps of data that are not open** show no image, but the number of images in the cells of a coarse grid, by group. The
cells of all groups of an attribute add up to the number of images in their place of the grid, which all attributes
share, and those of a group to the group; `binned` withholds as many as it takes for no small one to follow from that.

Groups are given as whole numbers from 0, with -1 for those unknown, who are in none.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from cxr_jax.audit import comparisons
from cxr_jax.audit.suppression import Ledger

COMPONENTS = 10  # that are tested, and that a map by t-SNE is made of
MOST_ON_A_MAP = 1000  # images; t-SNE takes some 10 s for so many
PERPLEXITY = 30.0  # the usual one
BINS = 10  # of a grid, either way
TOP = 10  # features told of each class
SIGNIFICANT = 0.05
BLOCK = 1 << 27  # bytes of features held at once, as they are stored
LEAST_PERPLEXITY = 2.0  # a map of fewer neighbours than that tells nothing
CENTRAL = (0.01, 0.99)  # of the images, along each axis of a grid; those outside are in its outermost cells

OTHERS = -1


def each_feature(
    features: np.ndarray, labels: np.ndarray, classes: Sequence[str], patient: np.ndarray, level: float
) -> pd.DataFrame:
    """How well each feature alone tells each class from the rest: a row for every feature and class.

    features: float [n, d], perhaps a memory map, of which only some columns are read at a time. labels: int [n],
    position in `classes`, -1 unknown and left out. patient: [n], whose image each is. level: of the intervals.

    Columns: feature (int), class (str), n_images, n_positive (int), auc, standard_error, low, high, p (of an AUC of
    .5), q (over all features and classes), reason (str: why something is NaN, or ''). A constant feature is NaN, and
    one that is NaN of some image. For use where the images are: a class of few patients is not hidden.

    Raises ValueError for lengths that differ, labels beyond the classes, no known label, and a level not in (0, 1).
    """
    labels = np.asarray(labels)
    if features.ndim != 2 or not len(features) == len(labels) == len(patient):
        raise ValueError(f"features {features.shape}, {len(labels)} labels and {len(patient)} patients do not fit")
    if len(labels) and not (-1 <= labels.min() and labels.max() < len(classes)):
        raise ValueError(f"a label is not among -1 and the positions of {len(classes)} classes")
    known = np.flatnonzero(labels >= 0)
    if not len(known):
        raise ValueError("no image has a known label")
    positive, whose = labels[known, None] == np.arange(len(classes)), np.asarray(patient)[known]
    wide = features.shape[1]
    auc, error = np.full((2, len(classes), wide), np.nan)
    unfit = np.full(wide, "", object)
    for columns in _blocks(features):
        block = np.asarray(features[:, columns])[known]
        with_nan = np.isnan(block).sum(axis=0)
        # A NaN makes both ends NaN, which are not equal.
        constant = block.min(axis=0) == block.max(axis=0)
        at = np.arange(wide)[columns]
        unfit[at[constant]] = "constant"
        unfit[at[with_nan > 0]] = [f"NaN of {n} images" for n in with_nan[with_nan > 0]]
        good = ~constant & (with_nan == 0)
        auc[:, at[good]], error[:, at[good]] = comparisons.variances(positive, block[:, good], whose)
    test = comparisons.against(auc, error, 0.5, level)
    table = pd.DataFrame({
        "feature": np.repeat(np.arange(wide), len(classes)),
        "class": np.tile(np.array(classes, object), wide),
        "n_images": len(known),
        "n_positive": np.tile(positive.sum(axis=0), wide),
        "auc": auc.T.ravel(), "standard_error": error.T.ravel(),
        "low": test.low.T.ravel(), "high": test.high.T.ravel(), "p": test.p.T.ravel(),
        "q": comparisons.benjamini_yekutieli(test.p).T.ravel(),
    })  # fmt: skip
    table["reason"] = np.where(unfit[:, None] == "", test.reason.T, unfit[:, None]).ravel()
    return table


def _blocks(features: np.ndarray) -> list[slice]:
    step = max(1, BLOCK // max(1, len(features) * features.dtype.itemsize))
    return [slice(first, first + step) for first in range(0, features.shape[1], step)]


# --- components ------------------------------------------------------------------------------------------------------


class Components(NamedTuple):
    """scores: float [n, c]; loadings: float [d, c], columns of length 1; share: float [c], of all variance."""

    scores: np.ndarray
    loadings: np.ndarray
    share: np.ndarray


def principal_components(features: np.ndarray, components: int, seed: int) -> Components:
    """The leading principal components of standardised features, the one of most variance first.

    features: float [n, d]. Constant ones have no part in any component. There are fewer than `components`, perhaps
    none, where fewer images or features vary. Where only few of many components are wanted they are found by random
    projections (Halko, Martinsson and Tropp 2011), of `seed`. The loading farthest from 0 is positive. float64, or
    float32 where features take no more. Raises ValueError where a feature is NaN or infinite.
    """
    n, d = features.shape
    standard = np.zeros((n, d), np.result_type(features.dtype, np.float32))
    varied = 0
    for columns in _blocks(features):
        block = np.asarray(features[:, columns]).astype(np.float64)
        if not np.isfinite(block).all():
            raise ValueError("a feature is NaN or infinite, and has no components")
        if n:
            varies = block.min(axis=0) < block.max(axis=0)
            block = block[:, varies]
            at = np.arange(d)[columns][varies]
            standard[:, at] = (block - block.mean(axis=0)) / block.std(axis=0)
            varied += len(at)
    components = min(components, n - 1, varied)
    if components < 1:
        return Components(standard[:, :0], np.zeros((d, 0), standard.dtype), np.zeros(0, standard.dtype))
    fitted = PCA(components, copy=False, svd_solver="auto", random_state=seed)
    scores = fitted.fit_transform(standard)
    loadings = fitted.components_.T
    largest = loadings[np.abs(loadings).argmax(axis=0), np.arange(components)]
    sign = np.where(largest < 0, -1, 1).astype(loadings.dtype)
    return Components(scores * sign, loadings * sign, fitted.explained_variance_ratio_)


class Embedding(NamedTuple):
    """rows: int64 [k], images drawn; positions: float32 [k, 2], or None; perplexity: as used; reason: why None, or ''."""

    rows: np.ndarray
    positions: np.ndarray | None
    perplexity: float
    reason: str


def embedding(scores: np.ndarray, patient: np.ndarray, perplexity: float, most: int, seed: int) -> Embedding:
    """A map by t-SNE (van der Maaten and Hinton 2008) that keeps neighbours together; distances on it mean little.

    scores: float [n, c], of leading components, in which images are compared; the first two are where it starts from.
    patient: [n]. All images of patients drawn at random, of `seed`, at most `most` images. perplexity: about how many
    neighbours of an image count; less where there are not three times as many others. Positions may depend on the
    number of threads as well as on the seed.
    """
    ids, whose = np.unique(np.asarray(patient), return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(ids))
    images = np.bincount(whose, minlength=len(ids))[order]
    rows = np.flatnonzero(np.isin(whose, order[np.cumsum(images) <= most]))
    perplexity = min(perplexity, (len(rows) - 1) / 3)
    if perplexity < LEAST_PERPLEXITY:
        return Embedding(rows, None, np.nan, f"{len(rows)} images are too few for a map")
    drawn = np.asarray(scores)[rows]
    spread = drawn[:, 0].std() if drawn.shape[1] >= 2 else 0.0
    if not spread > 0:
        return Embedding(rows, None, np.nan, "a map takes two components, the first of which varies")
    # scikit-learn's scale for a start; its own start would be the components of these components.
    start = (drawn[:, :2] / spread * 1e-4).astype(np.float32)
    fit = TSNE(2, perplexity=perplexity, learning_rate="auto", init=start, random_state=seed)
    return Embedding(rows, fit.fit_transform(drawn), perplexity, "")


def component_tests(
    scores: np.ndarray,
    groups: Mapping[str, np.ndarray],
    patient: np.ndarray,
    min_patients: int,
    hidden: Mapping[str, Collection[int]],
    seed: int,
) -> pd.DataFrame:
    """Whether the patients of each group lie elsewhere than the others along each component: a row for every such test.

    scores: float [n, c]. groups: by attribute, int [n], -1 unknown and left out. patient: [n]. hidden: by attribute,
    those groups whose size is withheld elsewhere. They, and groups of fewer than `min_patients` patients, have a row of
    NaN and no part in the others. seed: of the drawing of one image a patient. A group is compared with all others of its attribute, which from three groups on
    makes no more tests than pairs do; of two groups that is one test.

    Columns: attribute, group (int), against (int; -1 stands for all others), component (int), statistic (the largest
    gap between the two shares of patients at or below a place), p, p_holm, family (how many tests Holm's correction
    counts), n_patients, n_against, n_both (float, patients), reason (str, or ''). Patients with images on both sides
    would make the samples dependent; they are left out, and counted in n_both. A row is NaN, but for its family, where
    either side has fewer than `min_patients` patients, or 1 to `min_patients` - 1 are on both. Nothing guards against
    putting together the numbers of three or more groups that share patients. Raises ValueError for lengths that differ.
    """
    ids, whose = np.unique(np.asarray(patient), return_inverse=True)
    tests = []
    for attribute, number in groups.items():
        number = np.asarray(number)
        if not len(scores) == len(number) == len(whose):
            raise ValueError(f"{len(scores)} images, {len(number)} of {attribute} and {len(whose)} patients do not fit")
        number, left_out = _without_small(number, whose, min_patients, hidden.get(attribute, ()))
        missing = {"statistic": np.nan, "p": np.nan, "n_patients": np.nan, "n_against": np.nan, "n_both": np.nan}
        for group, reason in left_out.items():
            row = {"attribute": attribute, "group": group, "against": OTHERS, **missing, "reason": reason}
            tests += [{**row, "component": component} for component in range(scores.shape[1])]
        there = np.unique(number[number >= 0]).tolist()
        for group in there[:1] if len(there) == 2 else there:
            against = there[1] if len(there) == 2 else OTHERS
            row = {"attribute": attribute, "group": group, "against": against}
            sides = [number == group, (number >= 0) & (number != group)]
            images = np.array([np.bincount(whose[side], minlength=len(ids)) for side in sides])
            both = (images > 0).all(axis=0)
            inside = [np.flatnonzero((n > 0) & ~both) for n in images]
            counts = {"n_patients": len(inside[0]), "n_against": len(inside[1]), "n_both": int(both.sum())}
            reason = ""
            if min(counts["n_patients"], counts["n_against"]) < min_patients:
                reason = f"fewer than {min_patients} patients on a side"
            elif 0 < counts["n_both"] < min_patients:
                reason = f"fewer than {min_patients} patients on both sides"
            # One image of each patient: the first of its patient in a random order of those on that side.
            order = np.random.default_rng(seed).permutation(len(whose))
            drawn = [_one_each(order[np.isin(order, np.flatnonzero(side))], whose, who) for side, who in zip(sides, inside, strict=True)]
            for component in range(scores.shape[1]):
                found = missing
                if not reason:
                    with warnings.catch_warnings():
                        # Of some samples the exact p comes out beyond 0 to 1 by rounding: SciPy then gives the asymptotic one, and says so.
                        warnings.filterwarnings("ignore", "ks_2samp: Exact calculation unsuccessful", RuntimeWarning)
                        test = stats.ks_2samp(*(scores[rows, component] for rows in drawn), method="auto")
                    found = {"statistic": float(test.statistic), "p": float(test.pvalue), **counts}
                tests.append({**row, "component": component, **found, "reason": reason})
    columns = ["attribute", "group", "against", "component", "statistic", "p", "p_holm", "family",
               "n_patients", "n_against", "n_both", "reason"]  # fmt: skip
    table = pd.DataFrame(tests, columns=columns)
    table["p_holm"] = comparisons.holm(table["p"].to_numpy(np.float64))
    table["family"] = int(table["p"].notna().sum())
    return table


def _one_each(rows: np.ndarray, whose: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """The first of `rows` of each of `patients`, in the order of these. rows: int [m]; whose: int [n]; patients: sorted."""
    of, first = np.unique(whose[rows], return_index=True)
    return rows[first[np.isin(of, patients)]]


def _without_small(
    number: np.ndarray, whose: np.ndarray, min_patients: int, hidden: Collection[int]
) -> tuple[np.ndarray, dict[int, str]]:
    """(groups without those of few patients, or hidden, which are as if unknown: int [n]; why each of them is)."""
    number, left_out = np.array(number), {}
    for group in range(int(number.max(initial=-1)) + 1):
        inside = number == group
        if group in hidden:
            left_out[group] = "the size of the group is withheld"
        elif len(np.unique(whose[inside])) < min_patients:
            left_out[group] = f"fewer than {min_patients} patients"
        if group in left_out:
            number[inside] = OTHERS
    return number, left_out


# --- maps ------------------------------------------------------------------------------------------------------------


def describe(
    features: np.ndarray,
    labels: Mapping[str, tuple[np.ndarray, Sequence[str]]],
    targets: Sequence[str],
    patient: np.ndarray,
    settings,
    hidden: Mapping[str, Collection[str]],
    open_data: bool,
) -> dict[str, Any]:
    """All of the above about the features of one split, as JSON that holds no image unless the data are open.

    features: float [n, d]. labels: by attribute, (int [n], -1 unknown; classes). targets: those of them whose classes are
    sought in each feature. settings: the config's `audit` section: level, seed, min_patients. hidden: by attribute, classes
    whose size is withheld elsewhere; where data are not open, a target that has one is not sought.

    each: by target and class, how many features of how many with an AUC carry it (q < .05), and the ten farthest from .5.
    tests: rows of `component_tests`, with classes for groups. share: of the variance, by component. maps: for `components`
    (the first two) and `neighbours` (t-SNE) either `points`, [[x, y], …] with `codes` by attribute, or `edges` and `images`, as
    `binned` has them; `reason` where there is none; always `n_images`, `n_patients`.
    """
    codes = {name: np.asarray(number) for name, (number, _) in labels.items()}
    at_hidden = {name: [list(labels[name][1]).index(c) for c in gone if c in labels[name][1]] for name, gone in hidden.items()}
    if open_data:
        at_hidden = {}
    each = {}
    for target in targets:
        if (codes[target] >= 0).any() and not at_hidden.get(target):
            table = each_feature(features, codes[target], labels[target][1], patient, settings.level)
            each[target] = {str(name): _carriers(rows) for name, rows in table.groupby("class", sort=False)}
    found = principal_components(features, COMPONENTS, settings.seed)
    tests = component_tests(found.scores, codes, patient, settings.min_patients, at_hidden, settings.seed)
    for column in ("group", "against"):
        tests[column] = [labels[a][1][g] if g >= 0 else "all others" for a, g in zip(tests["attribute"], tests[column], strict=True)]
    drawn = embedding(found.scores, patient, PERPLEXITY, MOST_ON_A_MAP, settings.seed)
    positions = {"components": found.scores[drawn.rows, :2], "neighbours": drawn.positions}
    maps = {}
    for name, place in positions.items():
        whose = np.asarray(patient)[drawn.rows]
        maps[name] = {"n_images": len(drawn.rows), "n_patients": len(np.unique(whose))}
        if place is None or place.shape[1] < 2:
            maps[name]["reason"] = drawn.reason or "fewer than two components"
            continue
        mine = {attribute: number[drawn.rows] for attribute, number in codes.items() if (number[drawn.rows] >= 0).any()}
        if open_data:
            maps[name] |= {"points": np.round(place.astype(np.float64), 3).tolist(), "codes": {a: c.tolist() for a, c in mine.items()}}
        else:
            grid = binned(place, mine, whose, BINS, settings.min_patients, at_hidden)
            maps[name] |= {"edges": grid.edges.tolist(), "images": {a: x.tolist() for a, x in grid.images.items()}}
    return {
        "each": each,
        "tests": tests.to_dict("records"),
        "share": found.share.astype(np.float64).tolist(),
        "classes": {name: [str(c) for c in classes] for name, (_, classes) in labels.items()},
        "maps": maps,
    }


def _carriers(rows: pd.DataFrame) -> dict[str, Any]:
    """Of one class: how many features carry it, and those that tell it best; first of those that carry it, so that none is missed."""
    defined = rows[rows["auc"].notna()]
    carries = defined["q"] < SIGNIFICANT
    order = pd.DataFrame({"carries": carries, "far": (defined["auc"] - 0.5).abs()}).sort_values(["carries", "far"], ascending=False, kind="stable")
    best = defined.loc[order.index[:TOP]]
    return {
        "features": len(defined),
        "carry": int(carries.sum()),
        "best": best[["feature", "auc", "low", "high", "q"]].to_dict("records"),
    }


class Binned(NamedTuple):
    """edges: float64 [2, bins + 1], along either axis, the outermost cells being open; images: by attribute, float64
    [groups, bins, bins], images of a group in each cell (first axis first), NaN withheld."""

    edges: np.ndarray
    images: dict[str, np.ndarray]


def binned(
    positions: np.ndarray,
    groups: Mapping[str, np.ndarray],
    patient: np.ndarray,
    bins: int,
    min_patients: int,
    hidden: Mapping[str, Collection[int]],
) -> Binned:
    """How many images of each group lie where on a map: on a grid of bins x bins cells, fit to be shown.

    positions: float [n, 2]. groups: by attribute, int [n], -1 unknown. patient: [n]. hidden: by attribute, those groups
    whose size is withheld elsewhere.

    The size of every other group is taken to be known, as is the number of those unknown or hidden together, unless
    fewer than `min_patients` patients. What cannot be worked out then, by adding and subtracting, are cells of 1 to
    `min_patients` - 1 patients, be it of a group, of those unknown or hidden, or of everyone. A group that is hidden or
    has fewer patients is not shown at all. Edges are rounded, and tell of no image.

    Raises ValueError for lengths that differ and positions that are not finite.
    """
    positions = np.asarray(positions, np.float64)
    _, whose = np.unique(np.asarray(patient), return_inverse=True)
    if positions.shape != (len(whose), 2) or any(len(number) != len(whose) for number in groups.values()):
        raise ValueError(f"positions {positions.shape}, groups and {len(whose)} patients do not fit")
    if not len(positions) or not np.isfinite(positions).all():
        raise ValueError("no position, or one that is not finite")
    edges = np.array([_edges(x, bins) for x in positions.T])
    place = [np.searchsorted(edge[1:-1], x, side="right") for edge, x in zip(edges, positions.T, strict=True)]
    place = place[0] * bins + place[1]
    places = range(bins * bins)
    ledger = Ledger(min_patients)

    def cells(of: str | None, group: int | None, members: np.ndarray, published: bool) -> None:
        inside, where = whose[members], place[members]
        order = np.argsort(where, kind="stable")
        ends = np.cumsum(np.bincount(where, minlength=len(places)))
        for here, who in zip(places, np.split(inside[order], ends[:-1]), strict=True):
            ledger.cell((of, group, here), np.unique(who), published=published)

    cells(None, None, np.arange(len(place)), False)
    images, shown = {}, {}
    for attribute, number in groups.items():
        number = np.asarray(number)
        of_group = [np.bincount(place[number == g], minlength=len(places)) for g in range(int(number.max()) + 1)]
        images[attribute] = np.array(of_group, np.float64).reshape(len(of_group), len(places))
        number, _ = _without_small(number, whose, min_patients, hidden.get(attribute, ()))
        shown[attribute] = np.unique(number).tolist()
        for group in shown[attribute]:
            members = np.flatnonzero(number == group)
            everyone = np.unique(whose[members])
            cells(attribute, group, members, group != OTHERS)
            ledger.cell((attribute, group), everyone, reluctance=-1, published=len(everyone) >= min_patients)
            ledger.add_up([(attribute, group, here) for here in places], (attribute, group))
        for here in places:
            ledger.add_up([(attribute, group, here) for group in shown[attribute]], (None, None, here))
    for attribute, counts in images.items():
        for group, here in np.ndindex(*counts.shape):
            if group not in shown[attribute] or ledger.hides((attribute, group, here)):
                counts[group, here] = np.nan
    return Binned(edges, {attribute: counts.reshape(len(counts), bins, bins) for attribute, counts in images.items()})


def _edges(along: np.ndarray, bins: int) -> np.ndarray:
    """Equal steps over the middle of the values; to two figures of a step."""
    low, high = np.quantile(along, CENTRAL)
    step = (high - low) / bins if high > low else 1.0
    digits = 1 - int(np.floor(np.log10(step)))
    return np.linspace(low, low + bins * step, bins + 1).round(digits)
