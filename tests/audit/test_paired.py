"""Paired differences of two runs against DeLong's formula, SciPy's BCa of a plain loop over the same draws, and the jackknife."""

import types

import numpy as np
import pandas as pd
import pytest
import scipy.special
import scipy.stats

from cxr_jax.audit import intervals
from cxr_jax.audit.paired import Reference, Scored
from cxr_jax.audit.subgroups import MACRO
from cxr_jax.tables import Predictions, Target

SETTINGS = types.SimpleNamespace(level=0.9, interval="percentile", replicates=40, seed=3)
CLASSES = ("Alder", "Birch", "Cedar")


def images(rng, patients, most=3):
    """image_id and patient_id of 1 to `most` images a patient, in no order."""
    who = np.repeat(np.arange(patients), rng.integers(1, most + 1, patients))
    table = pd.DataFrame({"image_id": [f"i{i:04d}" for i in range(len(who))], "patient_id": np.char.mod("p%d", who)})
    return table.sample(frac=1, random_state=int(rng.integers(1000))).reset_index(drop=True)


def findings(rng, strength, table, truth=None, unknown=0.0):
    """Predictions of findings whose scores follow the truth, float [n, 3], as strongly as `strength` says."""
    truth = (rng.random((len(table), 3)) < (0.5, 0.3, 0.2)).astype(float) if truth is None else truth
    truth = np.where(rng.random(truth.shape) < unknown, np.nan, truth)
    scores = 1 / (1 + np.exp(-strength * np.nan_to_num(truth) - rng.normal(size=truth.shape).round(1)))
    labels = pd.DataFrame(truth, columns=[f"label_{c}" for c in CLASSES])
    made = pd.concat([table, labels, pd.DataFrame(scores, columns=[f"score_{c}" for c in CLASSES])], axis=1)
    return Predictions(made, {"findings": Target("multilabel", CLASSES)})


def pair(rng, patients=60, most=3, unknown=0.0):
    """(first, other) Predictions of the same images."""
    table = images(rng, patients, most)
    first = findings(rng, 1.5, table, unknown=unknown)
    truth = first.table[[f"label_{c}" for c in CLASSES]].to_numpy()
    other = findings(rng, 0.7, table, truth)
    return first, other


def scored(predictions):
    return Scored.of(predictions, "findings")


def less(first, other, names=CLASSES, macro=True, **settings):
    reference = Reference(scored(first), types.SimpleNamespace(**{**vars(SETTINGS), **settings}))
    assert reference.why_not(scored(other), 11) == ""
    return reference.less(scored(other), names, macro)


def values(predictions, prefix):
    return predictions.table.sort_values("image_id")[[prefix + c for c in CLASSES]].to_numpy()


def placements(positive, score):
    wins = np.mean(score[positive][:, None] > score[~positive][None], 1), np.mean(score[~positive][None] < score[positive][:, None], 0)
    ties = np.mean(score[positive][:, None] == score[~positive][None], 1), np.mean(score[positive][:, None] == score[~positive][None], 0)
    return wins[0] + ties[0] / 2, wins[1] + ties[1] / 2


def test_with_one_image_a_patient_p_and_analytic_interval_are_delongs():
    """The test on the logit scale, where the variance of each placement is divided by that of its AUC's logit."""
    first, other = pair(np.random.default_rng(0), most=1)
    found = less(first, other, interval="analytic")
    truth, old, new = values(first, "label_"), values(first, "score_"), values(other, "score_")
    for k, name in enumerate(CLASSES):
        positive = truth[:, k] == 1
        (v10, v01), (w10, w01) = placements(positive, new[:, k]), placements(positive, old[:, k])
        a, b = v10.mean(), w10.mean()
        t = scipy.stats.t(min(positive.sum(), (~positive).sum()) - 1)

        def error(of_a, of_b):
            apart = (v10 * of_a - w10 * of_b, v01 * of_a - w01 * of_b)
            return np.sqrt(sum(np.var(side, ddof=1) / len(side) for side in apart))

        on_logits = error(1 / (a * (1 - a)), 1 / (b * (1 - b)))
        z = (scipy.special.logit(a) - scipy.special.logit(b)) / on_logits
        assert found[name].p == pytest.approx(2 * t.sf(abs(z)), rel=1e-9)
        assert found[name].value == pytest.approx(a - b, abs=1e-12)
        half = t.ppf(0.95) * error(1, 1)
        np.testing.assert_allclose((found[name].low, found[name].high), (a - b - half, a - b + half), rtol=1e-9)
        assert (found[name].n_images, found[name].n_patients) == (60, 60)


class Loop:
    """The differences of all classes and of their mean, pair by pair of images, of patients drawn so and so often."""

    def __init__(self, first, other):
        self.ids, self.whose = np.unique(first.table.sort_values("image_id")["patient_id"].to_numpy(str), return_inverse=True)
        self.truth, *scores = values(first, "label_"), values(other, "score_"), values(first, "score_")
        self.known, self.pairs = ~np.isnan(self.truth), []
        for k in range(3):
            sides = positive, negative = [np.flatnonzero(self.truth[:, k] == side) for side in (1, 0)]
            won = [np.sign(score[positive, k][:, None] - score[negative, k]) / 2 + 0.5 for score in scores]
            self.pairs.append((*(self.whose[side] for side in sides), won))

    def aucs(self, counts):
        """float [3, 2]: of each class, of the other and of the first run."""
        found = []
        for positive, negative, won in self.pairs:
            weight = np.outer(counts[positive], counts[negative])
            found.append([(weight * of).sum() / weight.sum() for of in won])
        return np.array(found)

    def __call__(self, counts):
        apart = self.aucs(counts) @ (1, -1)
        return [*apart, np.mean(apart)]

    def replicates(self, replicates):
        drawn = intervals.draw(len(self.ids), replicates, SETTINGS.seed).T
        return dict(zip((*CLASSES, MACRO), np.transpose([self(counts) for counts in drawn]), strict=True))

    def fewest(self, k):
        """Patients of the side that has fewer."""
        return min(len(np.unique(self.whose[self.known[:, k] & (self.truth[:, k] == side)])) for side in (0, 1))


def test_intervals_are_those_of_a_plain_loop_over_the_same_draws():
    """And where a label is unknown, its image counts for other classes alone."""
    first, other = pair(np.random.default_rng(1), patients=40, unknown=0.2)
    found, loop = less(first, other), Loop(first, other)
    for name, replicates in loop.replicates(SETTINGS.replicates).items():
        np.testing.assert_allclose((found[name].low, found[name].high), np.quantile(replicates, (0.05, 0.95)), atol=1e-12)
        assert found[name].method == "patient bootstrap, percentile, 40 replicates"
    known = loop.known[:, 1]
    assert found["Birch"].n_images == known.sum() and found["Birch"].n_patients == len(np.unique(loop.whose[known]))
    assert found["Birch"].n_images < len(known)
    assert found[MACRO].n_images == loop.known.any(axis=1).sum()


def test_bca_is_scipy_s_of_the_same_draws_but_for_the_expansion():
    """SciPy's bias and its acceleration, from leaving out each patient with all her images, of the replicates of the plain loop.

    The expansion is put in by the level that SciPy is asked for. The first run is nearly always right, so that differences are skewed.
    """
    rng = np.random.default_rng(12)
    table = images(rng, 60, 2)
    first = findings(rng, 3.5, table, unknown=0.1)
    other = findings(rng, 1.0, table, first.table[[f"label_{c}" for c in CLASSES]].to_numpy())
    found, loop = less(first, other, interval="bca", replicates=200), Loop(first, other)
    fewest, corrected = [loop.fewest(k) for k in range(3)], {}
    for j, (name, replicates) in enumerate(loop.replicates(200).items()):
        k = min(fewest) if name == MACRO else fewest[j]
        half = scipy.stats.t.ppf(0.95, k - 1) * np.sqrt(k / (k - 1))
        theirs = scipy.stats.bootstrap(
            (np.arange(len(loop.ids)),),
            lambda who, j=j: loop(np.bincount(who, minlength=len(loop.ids)))[j],
            n_resamples=0,
            bootstrap_result=types.SimpleNamespace(bootstrap_distribution=replicates),
            vectorized=False,
            method="BCa",
            confidence_level=2 * scipy.stats.norm.cdf(half) - 1,
        ).confidence_interval
        plain = np.quantile(replicates, scipy.stats.norm.cdf((-half, half)))
        width = plain[1] - plain[0]
        np.testing.assert_allclose((found[name].low, found[name].high), theirs, atol=0.005 * width)
        corrected[name] = np.abs(np.subtract(theirs, plain)).max() / width
        assert found[name].method == "patient bootstrap, BCa, expanded, 200 replicates"
    assert min(corrected["Cedar"], corrected[MACRO]) > 0.05, "else percentiles would pass"


def test_the_macro_s_errors_are_about_those_of_the_jackknife_over_patients():
    """The classes go together, so that it matters whose influence on one is whose on another; and some patients have not all of them."""
    first, other = pair(np.random.default_rng(2), patients=60, most=2)
    rng = np.random.default_rng(0)
    known = rng.random((len(first.table), 3)) < 0.6
    for one in (first, other):
        for k, name in enumerate(CLASSES):
            one.table[f"label_{name}"] = one.table["label_Alder"].where(known[:, k]) if k else one.table["label_Alder"]
            one.table[f"score_{name}"] = one.table["score_Alder"] * (1 - 0.01 * rng.random(len(known)))
        one.table["label_Alder"] = one.table["label_Alder"].where(known[:, 0])
    found = less(first, other, interval="analytic")[MACRO]
    loop = Loop(first, other)
    assert len(np.unique(loop.whose[loop.known[:, 0]])) < 60

    def error(of):
        return np.sqrt((len(of) - 1) * np.var(of[:, 0] - of[:, 1]))

    each = np.ones(len(loop.ids), np.int64)
    both, left_out = loop.aucs(each).mean(axis=0), np.array([loop.aucs(each - one).mean(axis=0) for one in np.eye(len(each), dtype=int)])
    t = scipy.stats.t(min(map(loop.fewest, range(3))) - 1)
    assert found.value == pytest.approx(both[0] - both[1], abs=1e-12)
    assert (found.high - found.low) / 2 / t.ppf(0.95) == pytest.approx(error(left_out), rel=0.05)
    assert np.mean([found.low, found.high]) == pytest.approx(found.value, abs=1e-12)
    apart = abs(np.diff(scipy.special.logit(both))[0])
    assert apart / t.isf(found.p / 2) == pytest.approx(error(scipy.special.logit(left_out)), rel=0.05)


def test_rows_and_classes_come_in_any_order():
    first, other = pair(np.random.default_rng(3))
    turned = Predictions(other.table.sample(frac=1, random_state=0).reset_index(drop=True), {"findings": Target("multilabel", CLASSES[::-1])})
    assert less(first, turned) == less(first, other)


@pytest.mark.parametrize("kind", ["bca", "percentile", "analytic"])
def test_the_same_scores_differ_by_nothing_and_have_no_p(kind):
    first, _ = pair(np.random.default_rng(4))
    for found in less(first, first, interval=kind).values():
        assert found.value == 0 and np.isnan([found.low, found.high, found.p]).all() and found.method == ""
        assert "no variance" in found.reason and "every replicate gives the same value" in found.reason


def test_a_run_that_errs_nowhere_has_a_difference_without_test_or_interval():
    """None of its patients says how far its AUC could be from 1."""
    first, other = pair(np.random.default_rng(9))
    first.table["score_Alder"] = first.table["label_Alder"]
    found = less(first, other)
    assert -1 < found["Alder"].value < 0 and np.isnan([found["Alder"].low, found["Alder"].p]).all()
    assert "no logit" in found["Alder"].reason and "interval withheld" in found["Alder"].reason
    assert np.isfinite([found[MACRO].low, found[MACRO].p, found["Birch"].p]).all()


def test_a_class_of_one_value_has_no_difference():
    first, other = pair(np.random.default_rng(5))
    for one in (first, other):
        one.table["label_Cedar"] = 0.0
        one.table["label_Birch"] = np.nan
    found = less(first, other)
    assert np.isnan([found["Cedar"].value, found["Cedar"].p]).all() and "no positive or no negative" in found["Cedar"].reason
    assert np.isnan(found["Birch"].value) and found["Birch"].n_images == 0 and "known label" in found["Birch"].reason
    assert np.isfinite(found["Alder"].value)
    assert np.isnan(found[MACRO].value) and "no positive or no negative" in found[MACRO].reason and "known label" in found[MACRO].reason
    assert MACRO not in less(first, other, macro=False)
    assert set(less(first, other, names=("Alder",))) == {"Alder", MACRO}


def without(predictions, patients):
    table = predictions.table
    gone = np.unique(table["patient_id"])[:patients]
    return Predictions(table[~table["patient_id"].isin(gone)].reset_index(drop=True), predictions.targets)


def flipped(predictions, patients):
    table = predictions.table.copy()
    chosen = table["patient_id"].isin(np.unique(table["patient_id"])[:patients])
    table.loc[chosen, "label_Alder"] = 1 - table.loc[chosen, "label_Alder"]
    return Predictions(table, predictions.targets)


def renamed(predictions):
    return Predictions(predictions.table.assign(image_id="x" + predictions.table["image_id"]), predictions.targets)


def reassigned(predictions):
    return Predictions(predictions.table.assign(patient_id="p" + predictions.table["image_id"]), predictions.targets)


def fewer_classes(predictions):
    return Predictions(predictions.table, {"findings": Target("multilabel", CLASSES[:2])})


@pytest.mark.parametrize(
    ("change", "told", "number"),
    [
        (lambda p: without(p, 20), "some of which are shared", True),
        (lambda p: without(p, 10), "a part has fewer than 11 patients", False),
        (lambda p: without(p, 50), "a part has fewer than 11 patients", False),
        (renamed, "none of which is shared", False),
        (lambda p: flipped(p, 20), "their labels differ", True),
        (lambda p: flipped(p, 10), "their labels differ, in those of fewer than 11 patients", False),
        (reassigned, "their patients differ", True),
        (fewer_classes, "its classes are others", False),
    ],
)
def test_why_others_cannot_be_paired_is_told_without_small_numbers(change, told, number):
    first, other = pair(np.random.default_rng(6))
    changed = change(other)
    for one, another in ((first, changed), (changed, first)):
        why = Reference(scored(one), SETTINGS).why_not(scored(another), 11)
        assert told in why and any(c.isdigit() for c in why.replace("11 patients", "")) == number


def test_how_many_images_are_shared_is_counted():
    first, other = pair(np.random.default_rng(7))
    left = without(other, 20)
    why = Reference(scored(first), SETTINGS).why_not(scored(left), 11)
    assert f"{len(left.table)} are shared, of {len(first.table)} and {len(left.table)}" in why


def test_unknown_labels_are_the_same_only_where_both_are():
    first, other = pair(np.random.default_rng(8), unknown=0.3)
    reference = Reference(scored(first), SETTINGS)
    assert reference.why_not(scored(other), 11) == ""
    told = Predictions(other.table.fillna(0.0), other.targets)
    assert "their labels differ" in reference.why_not(scored(told), 1)
