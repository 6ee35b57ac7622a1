"""What chooses an epoch: loss, AUCs, the group that fares worst, and the error gap; against scikit-learn and written out."""

import numpy as np
import pytest
import sklearn.metrics

from cxr_jax.audit import validation
from cxr_jax.tables import Target, UserError

TARGETS = {"findings": Target("multilabel", ("x", "y")), "sex": Target("multiclass", ("F", "M"))}


def drawn(n=600):
    rng = np.random.default_rng(0)
    group = rng.integers(-1, 3, n)
    findings = (rng.random((n, 2)) < 0.4).astype(np.float32)
    scores = {"findings": 1 / (1 + np.exp(-(findings + rng.normal(size=(n, 2)) + 0.7 * (group == 1)[:, None])))}
    findings[rng.random((n, 2)) < 0.1] = np.nan
    sex = rng.integers(-1, 2, n).astype(np.int32)
    p = rng.random(n)
    return {"findings": findings, "sex": sex}, scores | {"sex": np.stack([1 - p, p], 1)}, rng.integers(0, 200, n), group


def test_groups_are_judged_as_scikit_learn_judges_them():
    labels, scores, patients, group = drawn()
    found = validation.measure(TARGETS, labels, scores, patients, group, 3, "worst_group_auc")
    truths = [*labels["findings"].T, *(np.where(labels["sex"] < 0, np.nan, labels["sex"] == k) for k in (0, 1))]
    columns = [*scores["findings"].T, *scores["sex"].T]
    known = [~np.isnan(truth) for truth in truths]
    wanted = [sklearn.metrics.roc_auc_score(t[k], s[k]) for t, s, k in zip(truths, columns, known)]
    np.testing.assert_allclose(list(found["auc"].values()), wanted)
    assert found["macro_auc"] == pytest.approx(np.mean(wanted)) and list(found["auc"]) == ["x", "y", "F", "M"]
    each = [[sklearn.metrics.roc_auc_score(t[k & (group == g)], s[k & (group == g)]) for t, s, k in zip(truths, columns, known)] for g in range(3)]
    assert found["worst_group_auc"] == found["score"] == pytest.approx(min(np.mean(each, axis=1)))
    gaps = []
    for t, s, k in zip(truths, columns, known):
        fpr, tpr, at = sklearn.metrics.roc_curve(t[k], s[k], drop_intermediate=False)
        called = s >= at[np.argmax(tpr - fpr)]
        rates = [[np.mean(called[k & (group == g) & (t == side)]) for g in range(3)] for side in (1, 0)]
        gaps.append(np.mean([max(r) - min(r) for r in rates]))
    assert found["gap"] == pytest.approx(np.mean(gaps))
    y, p = labels["findings"], scores["findings"]
    of_findings = sklearn.metrics.log_loss(y[~np.isnan(y)], p[~np.isnan(y)])
    sex = labels["sex"] >= 0
    assert found["loss"] == pytest.approx(of_findings + sklearn.metrics.log_loss(labels["sex"][sex], scores["sex"][sex]), rel=1e-6)
    assert (found["n_images"], found["n_patients"]) == (600, len(set(patients)))


def test_without_groups_nothing_is_said_of_them():
    labels, scores, patients, _ = drawn()
    found = validation.measure(TARGETS, labels, scores, patients)
    assert set(found) == {"loss", "macro_auc", "auc", "n_images", "n_patients", "score"} and found["score"] == found["macro_auc"]


def test_a_class_that_one_group_lacks_is_no_part_of_what_groups_are_compared_by():
    labels, scores, patients, group = drawn()
    labels["findings"][group == 2, 0] = 0
    found = validation.measure(TARGETS, labels, scores, patients, group, 3)
    left = {k: v for k, v in TARGETS.items()} | {"findings": Target("multilabel", ("y",))}
    alone = validation.measure(left, labels | {"findings": labels["findings"][:, 1:]}, scores | {"findings": scores["findings"][:, 1:]}, patients, group, 3)
    assert found["worst_group_auc"] == alone["worst_group_auc"] and found["gap"] == alone["gap"] and found["macro_auc"] != alone["macro_auc"]
    labels["findings"][:], labels["sex"][:] = np.nan, -1
    nothing = validation.measure(TARGETS, labels, scores, patients, group, 3, "gap")
    assert all(np.isnan(nothing[k]) for k in ("macro_auc", "worst_group_auc", "gap", "score", "loss") if k != "loss")


def test_the_smallest_gap_counts_only_above_the_floor():
    def score(auc, gap):
        return validation._score({"macro_auc": auc, "gap": gap, "worst_group_auc": 0.0}, "gap", 0.8)

    assert score(0.81, 0.1) > score(0.95, 0.2) > score(0.79, 0.0) > score(0.6, 0.0)


def test_what_is_wrong():
    labels, scores, _, _ = drawn()
    found = validation.wrong(TARGETS, labels, scores)
    np.testing.assert_array_equal(found["sex"], (labels["sex"] >= 0) & ((scores["sex"][:, 1] > 0.5) != labels["sex"]))
    known = ~np.isnan(labels["findings"])
    assert not found["findings"][~known].any()
    for k in range(2):
        t, s = labels["findings"][known[:, k], k], scores["findings"][known[:, k], k]
        fpr, tpr, at = sklearn.metrics.roc_curve(t, s, drop_intermediate=False)
        np.testing.assert_array_equal(found["findings"][known[:, k], k], (s >= at[np.argmax(tpr - fpr)]) != t)


def test_groups_none_of_which_can_be_judged_by_any_class_are_refused():
    findings = {"f": Target("multilabel", ("x", "y"))}
    group = np.array([0, 0, 0, 1, 1, 1])
    labels = {"f": np.array([[0, 0], [1, 1], [0, 1], [0, 1], [0, 1], [0, np.nan]])}
    with pytest.raises(UserError, match=r"^config.train.select=gap: validation has no class with images that have it and images that lack it in every group \(a, b\)"):
        validation.check_groups(findings, labels, group, ("a", "b"), "gap")
    labels["f"][5, 1] = 0
    validation.check_groups(findings, labels, group, ("a", "b"), "gap")
    sex = {"sex": Target("multiclass", ("F", "M"))}
    validation.check_groups(sex, {"sex": np.array([0, 1, -1, 0, 1, 1])}, group, ("a", "b"), "gap")
    with pytest.raises(UserError, match="worst_group_auc"):
        validation.check_groups(sex, {"sex": np.array([0, 1, -1, 1, 1, 1])}, group, ("a", "b"), "worst_group_auc")
