"""What do frozen features know? The protocol by which probes are fitted, chosen and judged, so that a sceptic believes it.

A probe is a simple reader of vectors: logistic regression, nearest neighbours, clusters, a network of one hidden layer. How
well it tells a label says how much of that label the vectors hold *and* how easily it is to be had; it says nothing of
whether a model uses it. What would fool us, and what is done about it:

- **Memory of patients.** Training, validation and test share no patient. Probes are fitted on training; what there is to
  choose is chosen on validation, penalty, k and number of clusters by macro AUC, and when to stop by the loss; test is
  scored once, after all choices of all probes are made.
- **A probe that finds a label anywhere.** Every reading is repeated with the labels shuffled among patients, in each split.
- **Pictures, not training.** The same on the features of a network that has learnt nothing.
- **An erasure that was fitted on few.** Where an attribute was taken from the features, they are read as they were before, too; and, by logistic
  regression, as they are where half as many patients tell what is to be taken, a fourth as many, and so on.
- **Other things that stand in for the label.** The same from the findings alone; from age, sex and view alone; from the
  histogram of gray levels alone, or the scores of findings by the network's own heads. And on the features again within strata, in which a finding or the view is the same for
  all: fitted there, chosen there, judged there.
- **One hospital.** The probes that were fitted here are judged on other data sets, too, where their vectors are at hand.
- **Fewer images.** A label is harder to find among the fewer images of a stratum, even if nothing stood in for it. So beside
  each stratum the same is done among as many images of as many patients drawn at random: every patient takes over the places
  in the strata of one with as many images, so that what the stratum has to do with the pictures is gone.

A reading is one combination of these. What comes out is its scores for the images of the test split; intervals and
differences are the audit's.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jax.sharding import Mesh
from scipy import stats

from cxr_jax import tables
from cxr_jax.probes import kmeans, knn, logistic_regression, network
from cxr_jax.tables import AS_MANY, FEATURES, LABEL, SCORES, SHUFFLED, STRATUM, TRUE, Features, Reading, Readings, UserError

TOP = 10  # features whose share of a probe's weight is told
WEIGHTINGS = ("uniform", "distance")
MOST_MEANS, TOLERANCE = 300, 1e-4  # of K-means: iterations, and the movement of centres below which it stops
BLOCK = "block"  # arrays `stem`, `block1`, …: the mean of the maps there

# Inputs that are made of the table and not of pictures.
FINDINGS, DEMOGRAPHICS = "findings", "demographics"


def run(
    splits: Mapping[str, Features], settings, mesh: Mesh, say: Callable[[str], None] = lambda text: None, elsewhere: Mapping[str, Features] = {}
) -> tuple[Readings, dict[str, Mapping[str, np.ndarray]], dict[str, Readings]]:
    """Fits, chooses and scores every reading of `settings`. Returns them, the fitted arrays by a reading's name, and what is said elsewhere.

    splits: train, validation and test. settings: a config's `probe` section. say: told what is being done. elsewhere: vectors of the images of
    other data sets by the same network, by name; of what is read among all images, from vectors, the scores there too.

    A reading that cannot be made is kept, with its reason and NaN for scores. Raises UserError for a patient in two
    splits, for a target that is not recorded or has one class only, and for features that are no numbers.
    """
    tables.check_disjoint(pd.concat([part.table[["patient_id", "split"]] for part in splits.values()]), "features")
    targets = {name: classes_of(splits, name) for name in settings.targets}
    for name in settings.strata:
        check_no_identifier("config.probe.strata", name)
    train, validation = (_Part(splits[name], name, settings.seed) for name in ("train", "validation"))
    plan, absent = readings(splits["train"], targets, settings)
    for text in absent:
        say(text)

    fitted: dict[str, _Fitted] = {}
    fitter = _Fitter(train, validation, settings, mesh)
    for number, reading in enumerate(plan, 1):
        say(f"{number} of {len(plan)}: {reading.name}")
        fitted[reading.name] = fitter.fit(reading, targets[reading.target])
    # Nothing above has looked at the test split, and nothing below chooses anything.
    test = _Part(splits["test"], "test", settings.seed)
    table, scores = _judged(test, plan, fitted, fitter, targets)
    strata = {r.attribute: test.groups(r.attribute) for r in plan if r.attribute}
    for name, groups in strata.items():
        groups = np.full(len(table), None) if groups is None else groups
        table[STRATUM + name] = pd.array(groups.tolist(), dtype="str")
    done = [dataclasses.replace(reading, about=fitted[reading.name].about) for reading in plan]
    arrays = {reading.name: fitted[reading.name].arrays for reading in plan if fitted[reading.name].arrays}
    by_truth = [name for name in strata if _truth(train.table, name).startswith(TRUE)]
    found = {"absent": absent, "agreement": [], "strata_by_truth": by_truth, "erased": splits["train"].about.get("erased", {})}
    if "kmeans" in settings.probes:
        say("clusters beside labels")
        clusterings = fitter.clusterings(train.features.arrays[FEATURES], np.ones(len(train.table), bool), ("all",))
        labels = {name: test.labels(name, classes) for name, classes in _compared(splits, targets).items()}
        for name, groups in strata.items():
            if name not in labels and groups is not None and not name.startswith(AS_MANY):
                labels[name] = pd.factorize(pd.Series(groups, dtype="str"), sort=True)[0]
        found["agreement"] = agreement(clusterings, test, test.features.arrays[FEATURES], labels, settings)
    kept = {name: tuple(c) for name, c in targets.items()}
    abroad = {name: _elsewhere(name, vectors, done, fitted, fitter, kept) for name, vectors in elsewhere.items()}
    return Readings(table, kept, done, scores, found), arrays, abroad


def _judged(part: _Part, plan: Sequence[Reading], fitted: Mapping[str, _Fitted], fitter: _Fitter, targets) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """The table of a part with labels as recorded and shuffled, and every reading's scores of it."""
    scores = {}
    for reading in plan:
        one = fitted[reading.name]
        if one.score is None:
            scores[reading.name] = np.full((len(part.table), len(targets[reading.target])), np.nan, np.float32)
        else:
            scores[reading.name] = np.asarray(one.score(fitter.encode(reading.input, reading.target, part)), np.float32)
    table = part.table.copy()
    for name, classes in targets.items():
        codes = part.labels(name, classes)
        dealt = shuffled(codes, part.patient, np.random.default_rng(_seed(fitter.settings.seed, part.name, name)))[0]
        for column, numbers in ((LABEL + name, codes), (SHUFFLED + name, dealt)):
            table[column] = pd.array([classes[c] if c >= 0 else None for c in numbers], dtype="str")
    return table, scores


def _elsewhere(name: str, vectors: Features, done: Sequence[Reading], fitted, fitter: _Fitter, targets: Mapping[str, tuple[str, ...]]) -> Readings:
    """Those of the readings that are of vectors and among all images, on another data set; a class that is unknown here is no label there."""
    here = pd.concat([part.table[["dataset", "patient_id"]] for part in (fitter.train, fitter.validation)]) if "dataset" in vectors.table else None
    both = 0 if here is None else len(vectors.table[["dataset", "patient_id"]].drop_duplicates().merge(here.drop_duplicates()))
    if both:
        raise UserError(f"config.extract.datasets: {both:,} test patients of {name} are patients whom probes are fitted or chosen on; take the same config.dataset.split_rule")
    part, absent = _Part(vectors, name, fitter.settings.seed), []
    recorded = {t: c for t, c in targets.items() if t in vectors.table and len(set(vectors.table[t]) & set(c)) > 1}
    absent += [f"{target} is not recorded on {name}, or in one class alone that is known here" for target in targets if target not in recorded]
    plan = [r for r in done if r.target in recorded and r.input in vectors.arrays and not r.shuffled and not r.attribute]
    table, scores = _judged(part, plan, fitted, fitter, recorded)
    return Readings(table, recorded, plan, scores, {"agreement": [], "absent": absent, "strata_by_truth": [], "erased": {}})


def _compared(splits: Mapping[str, Features], targets: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """The labels that clusters are held against: the targets, and race, sex and view where they are recorded."""
    compared = dict(targets)
    for name in ("race", "sex", "view"):
        if name not in compared:
            with contextlib.suppress(UserError):
                compared[name] = classes_of(splits, name)
    return compared


# ---------------------------------------------------------------------------------------------------- what is to be read


def attribute_columns(here: pd.Series, train: pd.Series) -> np.ndarray:
    """float64 [n, c]: a number in standard deviations of training, another attribute as a column a class of training; NaN: unknown."""
    if pd.api.types.is_numeric_dtype(train):
        spread = float(train.std(ddof=0)) or 1.0
        return ((here.to_numpy(np.float64, na_value=np.nan) - float(train.mean())) / spread)[:, None]
    columns = [(here == value).where(here.notna(), np.nan).to_numpy(np.float64) for value in sorted(set(train.dropna()))]
    return np.stack(columns, axis=1)


def classes_of(splits: Mapping[str, Features], target: str, field: str = "config.probe.targets") -> tuple[str, ...]:
    """The classes of a label: in the order that the features' own record has, else sorted. field: of the config, that names it.

    Raises UserError where no image has the label, or all have the same.
    """
    where = f"{field}: {target}"
    check_no_identifier(field, target)
    parts = [part.table for part in splits.values()]
    if any(target not in table for table in parts):
        known = sorted(c for c in parts[0] if pd.api.types.is_string_dtype(parts[0][c]) and not c.endswith("_id"))
        raise UserError(f"{where} is not recorded beside these features; there are {', '.join(known)}")
    if pd.api.types.is_numeric_dtype(parts[0][target]):
        raise UserError(f"{where} is a number, not a class label")
    found = sorted(set(pd.concat([table[target] for table in parts]).dropna()))
    ordered = [c for c in splits["train"].about["classes"].get(target, found) if c in found]
    if len(ordered) < 2:
        only = f"{ordered[0]!r} in every image" if ordered else "recorded of no image"
        raise UserError(f"{where} is {only}; a probe needs two classes to tell apart")
    if splits["test"].table[target].isna().all():
        raise UserError(f"{where} is recorded of no test image, so nothing can be judged")
    check_no_word_of_ours(f"{where} has a class", ordered)
    return tuple(ordered)


def check_no_word_of_ours(whose: str, names: Sequence[str]) -> None:
    """Raises UserError for a class or group called as the audit calls something else."""
    taken = sorted({"all", "macro", "missing"} & set(names))
    if taken:
        raise UserError(f"{whose} called {taken[0]!r}, a word that the audit has a use for; rename it")


def check_no_identifier(field: str, name: str) -> None:
    """Raises UserError for a column that says which image or patient, and so makes no groups."""
    if name in tables.IDENTIFIERS:
        raise UserError(f"{field}: {name} says which image or patient, and makes no groups")


def readings(features: Features, targets: Mapping[str, Sequence[str]], settings) -> tuple[list[Reading], list[str]]:
    """Every reading that `settings` asks for and these features allow, and a line for each that they do not."""
    plan, absent = [], []
    blocks = [name for name in features.arrays if name == "stem" or name.startswith(BLOCK)]
    erased = features.about.get("erased", {})
    findings = _finding_columns(features.table, targets)
    for control in (c for c in settings.controls if c in ("untrained", "histogram", SCORES) and c not in features.arrays):
        absent.append(f"no control by {control}: these features come without it")
    if FINDINGS in settings.controls and not findings:
        absent.append("no control by findings: none are recorded")
    for target in targets:
        attributes = _demographics(features.table, target)
        if DEMOGRAPHICS in settings.controls and not attributes:
            absent.append(f"no control of {target} by demographics: neither age nor sex nor view is recorded")
        strata = list(_strata(features.table, target, settings.strata))
        there = {attribute for attribute, _ in strata} | {target}
        absent += [f"no stratum by {name}: it is not recorded, or numbers that are not all whole" for name in settings.strata if name not in there]
        for probe in settings.probes:
            plan.append(Reading(target, probe, FEATURES))
            for control in settings.controls:
                if control == "shuffled":
                    plan.append(Reading(target, probe, FEATURES, shuffled=True))
                elif control in features.arrays:
                    plan.append(Reading(target, probe, control))
                elif (control == FINDINGS and findings) or (control == DEMOGRAPHICS and attributes):
                    plan.append(Reading(target, probe, control))
            for attribute, group in strata:
                plan.append(Reading(target, probe, FEATURES, attribute=attribute, group=group))
                if "as_many" in settings.controls:
                    plan.append(Reading(target, probe, FEATURES, attribute=AS_MANY + attribute, group=group))
        if blocks and "logistic_regression" in settings.probes:
            plan += [Reading(target, "logistic_regression", name) for name in blocks]
        if target == erased.get("attribute") and "logistic_regression" in settings.probes:
            plan += [Reading(target, "logistic_regression", name) for name in erased["patients"] if name != FEATURES]
    return plan, list(dict.fromkeys(absent))


def _finding_columns(table: pd.DataFrame, targets) -> list[str]:
    """Those of recorded findings; a target's own label is none."""
    numbers = [c for c in table if c.startswith(LABEL) and pd.api.types.is_numeric_dtype(table[c])]
    return [c for c in numbers if c.removeprefix(LABEL) not in targets]


def _demographics(table: pd.DataFrame, target: str) -> list[str]:
    own = {target, "age" if target == "age_band" else target}
    return [a for a in ("age", "sex", "view") if a in table and a not in own and table[a].notna().any()]


def _strata(table: pd.DataFrame, target: str, names: Sequence[str]):
    """(attribute, group) of every stratum: images with a finding, or of one class of a label."""
    for name in names:
        of_images = stratum_of(table, name)
        if of_images is None or name == target:
            continue
        groups = [PRESENT] if _truth(table, name) else sorted({group for group in of_images if group is not None})
        check_no_word_of_ours(f"config.probe.strata: {name} has a group", groups)
        yield from ((name, group) for group in groups)


PRESENT = "present"


def stratum_of(table: pd.DataFrame, name: str) -> np.ndarray | None:
    """Each image's group in a stratification, str or None where unknown: object [n]. Of a finding, `present` or `absent`.

    A finding's truth is taken where the data have it, else what is recorded. None where `name` is no column that makes
    groups: not there, empty, or of numbers that are not all whole (an empty cell is none).
    """
    column = _truth(table, name)
    if column:
        value = table[column].to_numpy(np.float64, na_value=np.nan)
        return np.where(np.isnan(value), None, np.where(value == 1, PRESENT, "absent"))
    if name not in table or table[name].isna().all() or pd.api.types.is_float_dtype(table[name]):
        return None
    return np.array([None if pd.isna(value) else str(value) for value in table[name]], object)


def _truth(table: pd.DataFrame, name: str) -> str:
    """The column that says whether an image has a finding, the truth where the data have it; '' where `name` is no finding."""
    columns = (TRUE + name, LABEL + name)
    return next((c for c in columns if c in table and pd.api.types.is_numeric_dtype(table[c])), "")


class _Part:
    """One split, with patients as numbers."""

    def __init__(self, features: Features, name: str, seed: int):
        self.features, self.table, self.name, self._seed = features, features.table, name, seed
        self.patient = np.unique(self.table["patient_id"].to_numpy(str), return_inverse=True)[1]
        self._groups: dict[str, np.ndarray | None] = {}

    def labels(self, target: str, classes: Sequence[str]) -> np.ndarray:
        """int64 [n], the class's position; -1 where unknown."""
        return pd.Index(classes).get_indexer(self.table[target])

    def inside(self, reading: Reading) -> np.ndarray:
        """bool [n]: the images of the reading's stratum."""
        if not reading.attribute:
            return np.ones(len(self.table), bool)
        groups = self.groups(reading.attribute)
        return np.zeros(len(self.table), bool) if groups is None else groups == reading.group

    def groups(self, attribute: str) -> np.ndarray | None:
        """As `stratum_of`; of an attribute that begins with AS_MANY, those of the one it names, dealt anew among patients."""
        if attribute not in self._groups:
            groups = stratum_of(self.table, attribute.removeprefix(AS_MANY))
            if attribute.startswith(AS_MANY) and groups is not None:
                random = np.random.default_rng(_seed(self._seed, "as many", self.name, attribute))
                groups = groups[shuffled(np.arange(len(groups)), self.patient, random, alike=True)[0]]
            self._groups[attribute] = groups
        return self._groups[attribute]


ENOUGH_ALIKE = 10  # patients among whom labels are dealt, where these are to have as many images


def shuffled(labels: np.ndarray, patient: np.ndarray, random: np.random.Generator, times: int = 1, alike: bool = False) -> np.ndarray:
    """Labels dealt anew among patients: int [times, n]. labels: int [n]; patient: int [n], numbered from 0.

    Every patient takes over the labels of one other (or the same), nobody's twice: image by image, from the first again
    where the other has fewer. So what a patient's images have in common stays, and what they have to do with the label goes.
    alike: only among patients with as many images, so that every label stays as frequent among images, even where it goes with
    how many a patient has. Numbers of images that fewer than 10 patients have are joined with the next.
    """
    order = np.argsort(patient, kind="stable")
    count = np.bincount(patient)
    first = np.cumsum(count) - count
    place = np.empty(len(patient), np.int64)
    place[order] = np.arange(len(patient)) - np.repeat(first, count)
    dealt = np.empty((times, len(labels)), labels.dtype)
    among = _alike(count) if alike else [np.arange(len(count))]
    for row in dealt:
        taken = np.empty(len(count), np.int64)
        for some in among:
            taken[some] = random.permutation(some)
        other = taken[patient]
        row[:] = labels[order[first[other] + place % count[other]]]
    return dealt


def _alike(count: np.ndarray) -> list[np.ndarray]:
    """Patients of about equal counts, ascending: positions, ENOUGH_ALIKE of them at least where there are as many."""
    order = np.argsort(count, kind="stable")
    ends = [0]
    for end in (*(np.flatnonzero(np.diff(count[order])) + 1), len(count)):
        if end - ends[-1] >= ENOUGH_ALIKE:
            ends.append(end)
    # What is left over at the end joins the last of them.
    return np.split(order, ends[1:-1])


def _seed(seed: int, *what: str) -> list[int]:
    """Entropy for a generator of its own for each use, so that leaving one out changes no other."""
    return [seed, *(int.from_bytes(word.encode(), "little") for word in what)]


# ------------------------------------------------------------------------------------------------------- fit and choose


@dataclasses.dataclass(frozen=True)
class _Fitted:
    """score: float32 [m, d] to [m, classes]; None where nothing could be fitted. about: for the record."""

    score: Callable | None
    about: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


class _Fitter:
    def __init__(self, train: _Part, validation: _Part, settings, mesh: Mesh):
        self.train, self.validation, self.settings, self.mesh = train, validation, settings, mesh
        self._found: dict[tuple, Any] = {}

    def encode(self, name: str, target: str, part: _Part) -> np.ndarray:
        """The vectors of an input, float32 [n, d]."""
        if name in part.features.arrays:
            return part.features.arrays[name]
        if name == FINDINGS:
            columns = _finding_columns(self.train.table, self.settings.targets)
            values = part.table.reindex(columns=columns).to_numpy(np.float64, na_value=np.nan)
        else:
            values = np.concatenate([attribute_columns(part.table[a], self.train.table[a]) for a in _demographics(self.train.table, target)], axis=1)
        # A missing value counts as the mean, and that it is missing counts too.
        return np.concatenate([np.nan_to_num(values), np.isnan(values)], axis=1).astype(np.float32)

    def fit(self, reading: Reading, classes: Sequence[str]) -> _Fitted:
        data = []
        for name, part in (("train", self.train), ("validation", self.validation)):
            labels = part.labels(reading.target, classes)
            if reading.shuffled:
                labels = shuffled(labels, part.patient, np.random.default_rng(_seed(self.settings.seed, name, reading.target)))[0]
            use = part.inside(reading) & (labels >= 0)
            data.append((self.encode(reading.input, reading.target, part), labels, use))
        (x, y, use), (x_validation, y_validation, use_validation) = data
        about = {"fit_images": int(use.sum()), "fit_patients": len(np.unique(self.train.patient[use]))}
        counts = np.bincount(y[use], minlength=len(classes))
        if reading.input == DEMOGRAPHICS:
            about["attributes"] = _demographics(self.train.table, reading.target)
        if (counts > 0).sum() < 2:
            return _Fitted(None, about | {"reason": "training has images of one class at most here"})
        if kmeans.distinct(x, use, 2) < 2:
            return _Fitted(None, about | {"reason": "all training images are alike here"})
        if (counts == 0).any():
            missing = ", ".join(c for c, n in zip(classes, counts) if not n)
            about["reason"] = f"no image of {missing} in training here"
            use_validation = use_validation & (counts[y_validation] > 0)
        choose = Chooser(y_validation, use_validation, len(classes))
        method = {"logistic_regression": self._logistic, "knn": self._neighbours, "kmeans": self._clusters, "network": self._network}
        fitted = method[reading.probe](reading, x, y, use, x_validation, choose, len(classes))
        if fitted.score is None:
            return _Fitted(None, about | fitted.about)
        absent = counts == 0

        def score(vectors):
            scores = np.array(fitted.score(vectors), np.float32)
            scores[:, absent] = np.nan
            return scores

        return _Fitted(score, about | {"chosen_by": choose.how} | fitted.about, fitted.arrays)

    def _logistic(self, reading, x, y, use, x_validation, choose, classes) -> _Fitted:
        least, greatest, count = self.settings.penalties
        penalties = np.geomspace(least, greatest, int(count))[::-1]  # of equally good ones the strongest is taken
        y = np.where(use, y, 0)
        path = logistic_regression.fit(x, y, penalties, use[None].astype(np.float32), classes=classes)
        best = choose.best(path.scores(x_validation)[0])
        chosen = path.select(0, best)
        about = {
            "penalty": float(penalties[best]),
            "gradient_norm": float(chosen.gradient[0, 0]),
            "gap": float(chosen.gap[0, 0]),
            "converged": bool(chosen.converged[0, 0]),
        }
        arrays = {"coefficients": chosen.coefficients[0, 0], "intercepts": chosen.intercepts[0, 0]}
        if reading == Reading(reading.target, reading.probe, FEATURES) and self.settings.refits:
            about["weight_in_top"] = self._weight_in_top(x, y, use, penalties[best], chosen, classes)
        return _Fitted(lambda vectors: chosen.scores(vectors)[0, 0], about, arrays)

    def _weight_in_top(self, x, y, use, penalty: float, chosen, classes: int) -> dict:
        """The share of the probe's weight in its ten heaviest features, and in as many refits on resampled patients.

        A feature's weight is the norm of its coefficients over classes, per standard deviation of the feature in
        training. Refits differ by which patients were drawn, and spread the weight a little less: the interval is of the
        refits, and need not hold the value.
        """
        columns = [slice(first, first + 64) for first in range(0, x.shape[1], 64)]
        spread = np.concatenate([np.asarray(x[:, some], np.float64)[use].std(axis=0) for some in columns])

        def share(coefficients) -> float:
            weight = np.linalg.norm(coefficients * spread, axis=0)
            # Of a class that was not drawn there are no coefficients, and no share then.
            return float(np.sort(weight)[::-1][:TOP].sum() / weight.sum()) if weight.sum() > 0 else np.nan

        random = np.random.default_rng(_seed(self.settings.seed, "refits", "train"))
        patients = int(self.train.patient.max()) + 1
        drawn = [np.bincount(random.integers(0, patients, patients), minlength=patients) for _ in range(self.settings.refits)]
        weights = (np.stack(drawn)[:, self.train.patient] * use).astype(np.float32)
        refits = logistic_regression.fit(x, y, [penalty], weights, classes=classes, start=chosen)
        shares = [share(coefficients) for coefficients in refits.coefficients[:, 0]]
        # Where a replicate has drawn one class only, or no feature has weight, there is no share.
        defined = [one for one in shares if np.isfinite(one)]
        low, high = np.quantile(defined, [0.025, 0.975]) if defined else (np.nan, np.nan)
        return {
            "defined": len(defined),
            "features": min(TOP, x.shape[1]),
            "of": x.shape[1],
            "value": share(chosen.coefficients[0, 0]),
            "low": float(low),
            "high": float(high),
            "refits": self.settings.refits,
        }

    def _neighbours(self, reading, x, y, use, x_validation, choose, classes) -> _Fitted:
        ks = [k for k in self.settings.neighbours if k <= use.sum()]
        if not ks:
            return _Fitted(None, {"reason": "training has fewer images here than any number of neighbours asked for"})
        metric = self.settings.metric if reading.input in self.train.features.arrays else "l2"

        def votes(vectors, ks, weightings):
            # Shuffled labels have the same neighbours: they follow at once, so the last search is kept.
            key = (reading.input, reading.target, use.tobytes(), id(vectors), max(ks))
            if key not in self._found:
                self._found.clear()
                found = knn.neighbours(x, vectors, max(ks), metric=metric, allowed=use, mesh=self.mesh)
                self._found[key] = (found, vectors)  # which keeps the vectors, and so their id, alive
            return knn.vote(self._found[key][0], y, classes, ks, weightings)

        given = np.asarray(votes(x_validation, ks, WEIGHTINGS))
        best = choose.best(given.reshape(-1, *given.shape[2:]))
        k, weighting = ks[best // len(WEIGHTINGS)], WEIGHTINGS[best % len(WEIGHTINGS)]
        about = {"k": k, "weighting": weighting, "metric": metric}
        return _Fitted(lambda vectors: votes(vectors, [k], [weighting])[0, 0], about)

    def clusterings(self, x, use, key) -> dict[int, kmeans.Clustering]:
        """By number of clusters, as far as there are distinct images for them. The last are kept, as with neighbours."""
        key = ("clusters", *key, use.tobytes())
        if key not in self._found:
            self._found.clear()
            distinct = kmeans.distinct(x, use, max(self.settings.clusters))
            seed = int(np.random.default_rng(_seed(self.settings.seed, "clusters")).integers(2**31))
            self._found[key] = {
                k: kmeans.fit(
                    x, k, restarts=self.settings.restarts, seed=seed, weights=use.astype(np.float32),
                    max_iterations=MOST_MEANS, tolerance=TOLERANCE,
                )  # fmt: skip
                for k in self.settings.clusters
                if k <= distinct
            }
        return self._found[key]

    def _clusters(self, reading, x, y, use, x_validation, choose, classes) -> _Fitted:
        found = self.clusterings(x, use, (reading.input, reading.target))
        if not found:
            return _Fitted(None, {"reason": "training has not as many distinct images here as clusters"})
        # A cluster's score is the share of each class among its training images, with one image's worth of all images'.
        shares = {}
        prior = np.bincount(y[use], minlength=classes) / use.sum()
        for k, clustering in found.items():
            inside = np.bincount(clustering.assignment[use] * classes + y[use], minlength=k * classes).reshape(k, classes)
            shares[k] = (inside + prior) / (inside.sum(axis=1, keepdims=True) + 1)
        given = np.stack([shares[k][kmeans.assign(x_validation, found[k].centres)] for k in found])
        k = list(found)[choose.best(given)]
        about = {"clusters": k, "inertia": found[k].inertia, "converged": found[k].converged}
        return _Fitted(lambda vectors: shares[k][kmeans.assign(vectors, found[k].centres)], about, {"centres": found[k].centres, "shares": shares[k]})

    def _network(self, reading, x, y, use, x_validation, choose, classes) -> _Fitted:
        if not choose.use.any():
            return _Fitted(None, {"reason": "no image in validation here, by which to stop training"})
        made = network.fit(
            x, np.where(use, y, 0), x_validation, np.where(choose.use, choose.labels, 0), classes,
            **self.settings.network, seed=self.settings.seed,
            weights=use.astype(np.float32), validation_weights=choose.use.astype(np.float32),
        )  # fmt: skip
        about = {"chosen_by": "loss in validation", "epochs": len(made.validation_loss), "best_epoch": int(made.best_epoch) + 1, "hidden": self.settings.network.hidden}
        return _Fitted(made.scores, about, {"centre": made.centre, "scale": made.scale, **made.parameters})


class Chooser:
    """Chooses among ways of scoring validation, by macro AUC over the classes that can be judged there.

    labels: int [m]. use: bool [m], the images that count. how: for the record.
    """

    def __init__(self, labels: np.ndarray, use: np.ndarray, classes: int):
        self.labels, self.use = labels, use
        counts = np.bincount(labels[use], minlength=classes)
        self._judged = np.flatnonzero((counts > 0) & (counts < use.sum()))
        if len(self._judged) == classes:
            self.how = "macro AUC in validation"
        elif len(self._judged):
            self.how = f"mean AUC in validation of {len(self._judged)} of {classes} classes, the others lack images there"
        else:
            self.how = "nothing: validation has images of fewer than two classes here; the first option is taken"

    def best(self, scores: np.ndarray) -> int:
        """Of scores [options, m, classes] the first with the highest AUC; 0 where none can be told."""
        if not len(self._judged):
            return 0
        labels = self.labels[self.use]
        mean = []
        for one in np.asarray(scores)[:, self.use]:
            mean.append(np.mean([one_vs_rest_auc(labels == c, one[:, c]) for c in self._judged]))
        return int(np.argmax(np.nan_to_num(mean, nan=-1)))


def one_vs_rest_auc(positive: np.ndarray, score: np.ndarray) -> float:
    """The chance that a positive scores above a negative, ties half; NaN for a score that is none. bool [n], float [n]."""
    if np.isnan(score).any():
        return np.nan
    n = int(positive.sum())
    ranks = stats.rankdata(score)[positive].sum()
    return float((ranks - n * (n + 1) / 2) / (n * (len(score) - n)))


# ------------------------------------------------------------------------------------------- clusters beside the labels


def agreement(clusterings, part: _Part, vectors: np.ndarray, labels: Mapping[str, np.ndarray], settings) -> list[dict]:
    """How far clusters line up with labels among the images of `part`, beside labels shuffled among patients of as many images.

    clusterings: by number of clusters, found among training images. labels: by name, int [n], -1 unknown.
    Each row: label, clusters, measure, value, null_mean, null_low, null_high (the middle 95 % of the permutations), p =
    (1 + permutations that reach the value) / (1 + permutations), n_images, n_patients.
    """
    rows = []
    for name, numbers in labels.items():
        known = numbers >= 0
        patient = np.unique(part.patient[known], return_inverse=True)[1]
        classes = int(numbers.max()) + 1
        for k, clustering in clusterings.items():
            assigned = kmeans.assign(vectors, clustering.centres)[known]
            found = kmeans.agreement(assigned, numbers[known], k, classes)
            # In blocks, since a thousand shufflings of many images are large. All numbers of clusters see the same ones.
            random = np.random.default_rng(_seed(settings.seed, "agreement", name))
            blocks = [min(50, settings.permutations - first) for first in range(0, settings.permutations, 50)]
            # Purity follows how frequent a label is among images, which dealing freely would change.
            chances = [kmeans.agreement(assigned, shuffled(numbers[known], patient, random, n, alike=True), k, classes) for n in blocks]
            chance = {measure: np.concatenate([np.atleast_1d(one[measure]) for one in chances]) for measure in found}
            for measure, value in found.items():
                value, by_chance = float(value), np.asarray(chance[measure])
                low, high = np.quantile(by_chance, [0.025, 0.975]) if known.any() else (np.nan, np.nan)
                # Sums in another order may differ in the last digits.
                reached = int((by_chance >= value - 1e-12).sum())
                rows.append(
                    {
                        "label": name, "clusters": k, "measure": measure, "value": value,
                        "null_mean": float(by_chance.mean()) if known.any() else np.nan,
                        "null_low": float(low), "null_high": float(high),
                        "p": (1 + reached) / (1 + settings.permutations) if known.any() else np.nan,
                        "n_images": int(known.sum()), "n_patients": len(np.unique(patient)),
                    }
                )  # fmt: skip
    return rows
