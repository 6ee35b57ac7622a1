"""Paired differences of two runs against DeLong's formula, a plain loop of scikit-learn over the same draws, and the jackknife."""

import types

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import sklearn.metrics

from cxr_jax.audit import intervals
from cxr_jax.audit.paired import Reference, Scored
from cxr_jax.audit.subgroups import MACRO
from cxr_jax.tables import Predictions, Target

SETTINGS = types.SimpleNamespace(level=0.9, replicates=40, seed=3)
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


def less(first, other, names=CLASSES, macro=True):
    reference = Reference(scored(first), SETTINGS)
    assert reference.why_not(scored(other), 11) == ""
    return reference.less(scored(other), names, macro)


def values(predictions, prefix):
    return predictions.table.sort_values("image_id")[[prefix + c for c in CLASSES]].to_numpy()


def placements(positive, score):
    wins = np.mean(score[positive][:, None] > score[~positive][None], 1), np.mean(score[~positive][None] < score[positive][:, None], 0)
    ties = np.mean(score[positive][:, None] == score[~positive][None], 1), np.mean(score[positive][:, None] == score[~positive][None], 0)
    return wins[0] + ties[0] / 2, wins[1] + ties[1] / 2


def test_with_one_image_a_patient_p_is_delongs():
    first, other = pair(np.random.default_rng(0), most=1)
    found = less(first, other)
    truth, old, new = values(first, "label_"), values(first, "score_"), values(other, "score_")
    for k, name in enumerate(CLASSES):
        positive = truth[:, k] == 1
        (v10, v01), (w10, w01) = placements(positive, new[:, k]), placements(positive, old[:, k])
        variance = np.var(v10 - w10, ddof=1) / positive.sum() + np.var(v01 - w01, ddof=1) / (~positive).sum()
        z = (v10.mean() - w10.mean()) / np.sqrt(variance)
        assert found[name].p == pytest.approx(2 * scipy.stats.norm.sf(abs(z)), rel=1e-9)
        assert found[name].value == pytest.approx(v10.mean() - w10.mean(), abs=1e-12)
        assert (found[name].n_images, found[name].n_patients) == (60, 60)


def test_intervals_are_those_of_a_plain_loop_over_the_same_draws():
    """And where a label is unknown, its image counts for other classes alone."""
    first, other = pair(np.random.default_rng(1), patients=40, unknown=0.2)
    found = less(first, other)
    table = first.table.sort_values("image_id")
    ids, whose = np.unique(table["patient_id"].to_numpy(str), return_inverse=True)
    truth, old, new = values(first, "label_"), values(first, "score_"), values(other, "score_")
    apart = []
    for draw in intervals.draw(len(ids), SETTINGS.replicates, SETTINGS.seed).T:
        weight, line = draw[whose], []
        for k in range(3):
            known = ~np.isnan(truth[:, k]) & (weight > 0)
            auc = [sklearn.metrics.roc_auc_score(truth[known, k], s[known, k], sample_weight=weight[known]) for s in (new, old)]
            line.append(auc[0] - auc[1])
        apart.append([*line, np.mean(line)])
    for name, replicates in zip((*CLASSES, MACRO), np.transpose(apart), strict=True):
        np.testing.assert_allclose((found[name].low, found[name].high), np.quantile(replicates, (0.05, 0.95)), atol=1e-12)
    k = 1
    known = ~np.isnan(truth[:, k])
    assert found["Birch"].n_images == known.sum() and found["Birch"].n_patients == len(np.unique(whose[known]))
    assert found["Birch"].n_images < len(truth)
    assert found[MACRO].n_images == (~np.isnan(truth)).any(axis=1).sum()


def test_the_macro_s_p_is_about_that_of_the_jackknife_over_patients():
    """The classes go together, so that it matters whose influence on one is whose on another; and some patients have not all of them."""
    first, other = pair(np.random.default_rng(2), patients=60, most=2)
    rng = np.random.default_rng(0)
    known = rng.random((len(first.table), 3)) < 0.6
    for one in (first, other):
        for k, name in enumerate(CLASSES):
            one.table[f"label_{name}"] = one.table["label_Alder"].where(known[:, k]) if k else one.table["label_Alder"]
            one.table[f"score_{name}"] = one.table["score_Alder"] * (1 - 0.01 * rng.random(len(known)))
        one.table["label_Alder"] = one.table["label_Alder"].where(known[:, 0])
    found = less(first, other)[MACRO]
    truth, old, new = values(first, "label_"), values(first, "score_"), values(other, "score_")
    whose, known = first.table.sort_values("image_id")["patient_id"].to_numpy(), ~np.isnan(truth)
    assert len(np.unique(whose[known[:, 0]])) < 60

    def difference(keep):
        of = [np.mean([sklearn.metrics.roc_auc_score(truth[keep & known[:, k], k], s[keep & known[:, k], k]) for k in range(3)]) for s in (new, old)]
        return of[0] - of[1]

    assert found.value == pytest.approx(difference(np.ones(len(whose), bool)), abs=1e-12)
    left_out = np.array([difference(whose != one) for one in np.unique(whose)])
    error = np.sqrt((len(left_out) - 1) * np.var(left_out))
    assert abs(found.value) / scipy.stats.norm.isf(found.p / 2) == pytest.approx(error, rel=0.05)
    assert np.mean([found.low, found.high]) == pytest.approx(found.value, abs=error)


def test_rows_and_classes_come_in_any_order():
    first, other = pair(np.random.default_rng(3))
    turned = Predictions(other.table.sample(frac=1, random_state=0).reset_index(drop=True), {"findings": Target("multilabel", CLASSES[::-1])})
    assert less(first, turned) == less(first, other)


def test_the_same_scores_differ_by_nothing_and_have_no_p():
    first, _ = pair(np.random.default_rng(4))
    for found in less(first, first).values():
        assert found.value == 0 and np.isnan([found.low, found.high, found.p]).all()
        assert "no variance" in found.reason and "every replicate gives the same value" in found.reason


def test_a_class_of_one_value_has_no_difference():
    first, other = pair(np.random.default_rng(5))
    for one in (first, other):
        one.table["label_Cedar"] = 0.0
        one.table["label_Birch"] = np.nan
    found = less(first, other, macro=False)
    assert np.isnan([found["Cedar"].value, found["Cedar"].p]).all() and "no positive or no negative" in found["Cedar"].reason
    assert np.isnan(found["Birch"].value) and found["Birch"].n_images == 0 and "known label" in found["Birch"].reason
    assert np.isfinite(found["Alder"].value)
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
