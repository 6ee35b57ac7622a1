"""Calls by group and lot: fairlearn's own, written as scores that the audit can judge."""

import numpy as np
import pytest
from fairlearn.postprocessing import ThresholdOptimizer
from sklearn.base import BaseEstimator, ClassifierMixin

from cxr_jax.audit import equalised_odds, metrics
from cxr_jax.tables import Predictions, Target, UserError
from tests.audit.test_frontier import predictions


def rates(table, finding, called):
    of = {(g, side): called[(table["race"] == g) & (table[f"label_{finding}"] == side)].mean() for g in "abc" for side in (1, 0)}
    return [np.ptp([of[g, side] for g in "abc"]) for side in (1, 0)]


def test_rates_come_together_and_order_stays():
    before = predictions(6000)
    after, said = equalised_odds.post_processed(before, "race", 0)
    assert "needs race of everyone who is judged" in said and "2 findings" in said and "validation images of 1,500 patients" in said
    table, test = after.table, (after.table["split"] == "test").to_numpy()
    for finding in ("x", "y"):
        score, new = before.table[f"score_{finding}"].to_numpy(), table[f"score_{finding}"].to_numpy()
        called = new >= 0.5
        for side in (called, ~called):
            assert (np.argsort(score[side], kind="stable") == np.argsort(new[side], kind="stable")).all()
        apart = rates(table[test], finding, called[test])
        plain = rates(table[test], finding, (score >= 0.5)[test])
        assert max(apart) < 0.12 and (finding == "y" or max(plain) > 0.25)
        assert metrics.auc((table[f"label_{finding}"] == 1).to_numpy()[test], new[test]) > 0.6
    others = [c for c in table if not c.startswith("score_")]
    assert table[others].equals(before.table[others])


def test_calls_are_fairlearns_and_the_same_again():
    before = predictions(1000)
    after, _ = equalised_odds.post_processed(before, "race", 7)
    again, _ = equalised_odds.post_processed(before, "race", 7)
    assert after.table.equals(again.table)
    table = before.table
    use = (table["split"] == "validation") & table["label_y"].notna()

    class Same(ClassifierMixin, BaseEstimator):
        def __sklearn_is_fitted__(self):
            return True

        def fit(self, X, y):
            return self

        def predict(self, X):
            return X[:, 0]

    theirs = ThresholdOptimizer(estimator=Same(), constraints="equalized_odds", objective="balanced_accuracy_score", prefit=True, predict_method="predict")
    theirs.fit(table.loc[use, ["score_y"]].to_numpy(), table.loc[use, "label_y"].astype(int), sensitive_features=table.loc[use, "race"])
    wanted = theirs.predict(table[["score_y"]].to_numpy(), sensitive_features=table["race"], random_state=8)
    np.testing.assert_array_equal(after.table["score_y"] >= 0.5, wanted == 1)


def test_who_has_no_group_is_called_by_a_threshold_for_all_and_counted():
    before = predictions(1000)
    unknown = (before.table["split"] == "test") & (np.arange(1000) % 10 == 0)
    table = before.table.assign(race=before.table["race"].mask(unknown))
    after, said = equalised_odds.post_processed(Predictions(table, before.targets, True), "race", 0)
    assert f"which {unknown.sum()} images lack: these are called at a threshold for all" in said
    score, called = table["score_x"][unknown], after.table["score_x"][unknown] >= 0.5
    assert score[called].min() > score[~called].max()
    table = before.table.assign(race=before.table["race"].mask(unknown, "another"))
    elsewhere, said = equalised_odds.post_processed(Predictions(table, before.targets, True), "race", 0)
    assert f"; {unknown.sum()} images of groups that validation lacks are called at one for all, too" in said and "images lack" not in said
    np.testing.assert_array_equal(elsewhere.table["score_x"][unknown], after.table["score_x"][unknown])
    # Of fewer patients than may be told of, how many they are is not.
    few = (before.table["split"] == "test") & before.table["patient_id"].isin(before.table.loc[before.table["split"] == "test", "patient_id"].unique()[:2])
    for value, told in ((None, ", which some images lack:"), ("another", "; some images of groups that validation lacks")):
        _, said = equalised_odds.post_processed(Predictions(before.table.assign(race=before.table["race"].mask(few, value)), before.targets, False), "race", 0, 11)
        assert told in said


def test_a_score_of_one_that_is_not_called_stays_below_what_is():
    before = predictions(1000)
    ones = Predictions(before.table.assign(score_x=before.table["score_x"].where(np.arange(1000) % 7 > 0, 1.0)), before.targets, True)
    after, _ = equalised_odds.post_processed(ones, "race", 0)
    plain = before.table["score_x"].where(np.arange(1000) % 7 > 0, 1.0).to_numpy()
    scores = after.table["score_x"].to_numpy()
    assert set(np.flatnonzero(scores == 0.5)) <= set(np.flatnonzero(plain == 0.0)) and (scores[plain == 1] < 0.5).any()


def test_a_finding_of_one_kind_in_a_group_is_called_alike_in_all():
    before = predictions(1000)
    table = before.table.assign(label_x=before.table["label_x"].mask(before.table["race"] == "c", 0.0))
    after, said = equalised_odds.post_processed(Predictions(table, before.targets, True), "race", 0)
    assert "at one for all x, since a group has validation images of one kind alone" in said and "each of 1 findings" in said
    called = after.table["score_x"] >= 0.5
    assert table["score_x"][called].min() > table["score_x"][~called].max()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda table: table.drop(columns="race"), "config.mitigate.attribute=race: not in the predictions"),
        (lambda table: table.assign(split="test"), "fitted on validation; put that in config.predict.splits"),
        (lambda table: table.assign(label_x=0.0, label_y=1.0), "no finding is both there and absent in two groups or more"),
    ],
)
def test_what_cannot_be_done(change, told):
    before = predictions(400)
    with pytest.raises(UserError, match=told):
        equalised_odds.post_processed(Predictions(change(before.table), before.targets, True), "race", 0)
    sex = Predictions(before.table.assign(label_sex="F", score_F=0.5, score_M=0.5), {"sex": Target("multiclass", ("F", "M"))}, True)
    with pytest.raises(UserError, match="is for findings; sex has classes that exclude one another"):
        equalised_odds.post_processed(sex, "race", 0)
