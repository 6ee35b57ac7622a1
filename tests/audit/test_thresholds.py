"""Thresholds against scikit-learn's curves, and that nobody is judged by a threshold that she had a part in."""

import numpy as np
import pytest
import sklearn.metrics

from cxr_jax.audit import thresholds
from cxr_jax.audit.thresholds import Scored, call, choose, folds


def drawn(seed=0, n=300, decimals=3):
    rng = np.random.default_rng(seed)
    positive = rng.random(n) < 0.3
    return positive, (1 / (1 + np.exp(-(rng.normal(size=n) + 1.2 * positive)))).round(decimals)


@pytest.mark.parametrize("decimals", [1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_rules_are_best_on_scikit_learn_s_curves(seed, decimals):
    positive, score = drawn(seed, decimals=decimals)
    fpr, tpr, at = sklearn.metrics.roc_curve(positive, score, drop_intermediate=False)

    def rates(threshold):
        called = score >= threshold
        return called[positive].mean(), 1 - called[~positive].mean()

    sensitivity, specificity = rates(choose(positive, score, "youden"))
    assert sensitivity + specificity == pytest.approx((tpr + 1 - fpr).max())
    found = [sklearn.metrics.f1_score(positive, score >= t) for t in at[1:]]
    assert sklearn.metrics.f1_score(positive, score >= choose(positive, score, "f1")) == pytest.approx(max(found))
    assert choose(positive, score, "sensitivity:0.9") == at[tpr >= 0.9].max()
    assert choose(positive, score, "specificity:0.9") == at[1 - fpr >= 0.9].min()


def test_a_specificity_that_only_calling_nobody_has():
    positive, score = np.array([False, True, True]), np.array([0.9, 0.5, 0.4])
    threshold = choose(positive, score, "specificity:1")
    assert 0.9 < threshold and not (score >= threshold).any()
    assert choose(positive, score, "sensitivity:1") == 0.4


def test_one_class_has_no_threshold_but_a_fixed_one():
    score = np.array([0.2, 0.3])
    assert np.isnan(choose(np.array([True, True]), score, "youden")) and np.isnan(choose(np.zeros(0, bool), np.zeros(0), "f1"))
    assert choose(np.array([True, True]), score, "fixed:0.25") == 0.25


def scored(seed=0, patients=120, strata=("AP", "PA")):
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(patients), rng.integers(1, 4, patients))
    n = len(who)
    positive = rng.random((n, 2)) < 0.4
    strata = np.array(strata)[rng.integers(0, len(strata), n)]
    scores = rng.random((n, 2)) * 0.5 + positive * 0.3 + (strata == "AP")[:, None] * 0.1
    return Scored(positive, rng.random((n, 2)) < 0.9, scores, np.array([f"p{i}" for i in who]), strata)


def test_thresholds_of_validation():
    judged, validation = scored(0), scored(1)
    found = call(judged, validation, "youden", "", 11)
    for c in range(2):
        known = validation.known[:, c]
        wanted = choose(validation.positive[known, c], validation.scores[known, c], "youden")
        assert (found.threshold[:, c] == wanted).all()
    np.testing.assert_array_equal(found.called, judged.scores >= found.threshold)
    assert found.how == "by youden, chosen on validation" and found.reasons == ("", "")


def test_cross_fitting_never_uses_those_judged():
    judged = scored(0)
    found, fold = call(judged, None, "youden", "", 11), folds(judged.patients)
    assert len(np.unique(fold)) == thresholds.FOLDS and "cross-fitted" in found.how
    for patient in np.unique(judged.patients):
        assert len(np.unique(fold[judged.patients == patient])) == 1
    for k in range(thresholds.FOLDS):
        mine = fold == k
        turned = judged.positive.copy()
        turned[mine] = ~turned[mine]
        changed = judged.scores.copy()
        changed[mine] = 0.5
        again = call(Scored(turned, judged.known, changed, judged.patients, judged.strata), None, "youden", "", 11)
        np.testing.assert_array_equal(again.threshold[mine], found.threshold[mine])
        assert (again.threshold[~mine] != found.threshold[~mine]).any(), "others' thresholds do depend on them"


def test_a_view_has_its_own_threshold_unless_it_is_too_small():
    judged, validation = scored(0), scored(1)
    found = call(judged, validation, "youden", "view", 11)
    own = [np.unique(found.threshold[judged.strata == view, 0]) for view in ("AP", "PA")]
    assert all(len(one) == 1 for one in own) and own[0] != own[1] and "one for each view" in found.how
    common = call(judged, validation, "youden", "", 11).threshold[0]
    alone = call(judged, validation, "youden", "view", 1000)
    assert (alone.threshold == common).all()


def test_a_class_that_validation_lacks_has_no_threshold():
    judged, validation = scored(0), scored(1)
    validation.positive[:, 1] = False
    found = call(judged, validation, "youden", "", 11)
    assert np.isnan(found.threshold[:, 1]).all() and not found.called[:, 1].any()
    assert found.reasons == ("", "no threshold: one class only in validation")
    assert call(judged, validation, "fixed:0.5", "view", 11).reasons == ("", "")
