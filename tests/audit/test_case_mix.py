"""Others weighted to be like a group, beside what it stands for: test sets drawn again and again until their mix is the group's."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from configs import base
from cxr_jax.audit import case_mix, comparisons, estimates, gaps, intervals, metrics
from cxr_jax.audit.subgroups import audit, select
from cxr_jax.tables import Predictions, Target
from tests.audit.test_gaps import people


def settings(**changes):
    config = base.get_config().audit
    config.update(replicates=200, attributes=("race",), intersections=(), threshold="fixed:0.5", case_mix=("age_band",))
    config.update(changes)
    return config


def aged(seed=0, patients=900, harm=0.0):
    """Race c is old, and of the old, whoever they are, more is missed; of c `harm` more besides. One image a patient."""
    rng = np.random.default_rng(seed)
    predictions = people(seed, patients)
    table = predictions.table.drop_duplicates("patient_id").reset_index(drop=True)
    c = (table["race"] == "c").to_numpy()
    old = rng.random(len(table)) < np.where(c, 0.8, 0.2)
    table["age"] = np.where(old, 70.0, 30.0)
    missed = rng.random(len(table)) < np.where(old, 0.6, 0.1) + harm * c
    table["score_Edema"] = np.where(table["label_Edema"] == 1, np.where(missed, 0.2, 0.8), 0.3) + 0.1 * rng.random(len(table))
    return Predictions(table, predictions.targets, open_data=True)


def the_gap(rows, reference, effect="difference", **fields):
    wanted = {"metric": "false_negative_rate", "class": "Edema", "attribute": "race", "group": "c"} | fields
    (row,) = select(rows, effect=effect, reference=reference, **wanted)
    return row


def test_a_gap_that_is_all_mix_goes_and_one_that_is_not_stays():
    rows = audit(aged(), settings())
    raw, like, mix = the_gap(rows, "rest"), the_gap(rows, "like"), the_gap(rows, "like", "mix")
    assert raw["low"] > 0.1 and raw["p_holm"] < 0.05  # about .6 of (.8 - .2)
    assert like["low"] < 0 < like["high"] and abs(like["value"]) < 0.15
    assert mix["value"] == pytest.approx(raw["value"] - like["value"]) and mix["low"] is None and "of the mix of these images" in mix["reason"]
    assert like["p"] is None and "all of the images have others like them in labels, age_band" in like["reason"]
    hurt = audit(aged(harm=0.35), settings())
    assert the_gap(hurt, "like")["low"] > 0.1
    # Others weighted like it in nothing but labels are all others, where no other finding is tied to the rate.
    none = audit(aged(), settings(case_mix=("sex",)))
    assert the_gap(none, "like")["value"] == pytest.approx(raw["value"], abs=0.06)
    assert not [row for row in audit(aged(), settings(case_mix=())) if row["reference"] == "like"]


def test_weights_are_what_drawn_test_sets_come_to():
    """Of each stratum of the group as many others are drawn, 2,000 times; the mean over draws is the weighted figure."""
    predictions = aged(3)
    table, rng = predictions.table, np.random.default_rng(0)
    rows = audit(predictions, settings())
    group = (table["race"] == "c").to_numpy()
    stratum = table["label_Edema"].astype(str) + (table["age"] > 60).astype(str)
    drawn = {"false_negative_rate": [], "auc": [], "ppv": []}
    pools = {s: (np.flatnonzero(~group & (stratum == s)), int((group & (stratum == s)).sum())) for s in set(stratum)}
    truth, score = (table[name].to_numpy() for name in ("label_Edema", "score_Edema"))
    for _ in range(2000):
        at = np.concatenate([rng.choice(pool, n) for pool, n in pools.values()])
        positive, called = truth[at] == 1, score[at] >= 0.5
        drawn["false_negative_rate"].append(1 - called[positive].mean())
        drawn["auc"].append(metrics.auc(positive, score[at]))
        drawn["ppv"].append(positive[called].mean())
    for metric, values in drawn.items():
        (own,) = select(rows, metric=metric, class_="Edema", attribute="race", group="c")
        of_others = own["value"] - the_gap(rows, "like", metric=metric)["value"]
        # Other findings are a stratum of the audit too, on which this score does not depend.
        error = np.std(values) / np.sqrt(len(values))
        assert of_others == pytest.approx(np.mean(values), abs=max(5 * error, 0.006)), metric


def test_the_mix_is_the_groups_own():
    rng = np.random.default_rng(5)
    n = 3000
    group = rng.random(n) < 0.2
    own, age, view = rng.random(n) < 0.3, rng.integers(0, 4, n) + group, rng.integers(0, 2, n)
    found = case_mix.alike(group, ~group, case_mix.nested([own, age, view]), np.arange(n), 1)
    weight = found.weight[~group]
    assert (found.weight[group] == 0).all() and weight.sum() == pytest.approx(group.sum())
    for label in (own, view):
        np.testing.assert_allclose(np.bincount(label[~group], weight), np.bincount(label[group]), rtol=0.12)
    # Of age 4 there is nobody among the others: these images are compared with those of the same label, of whatever age.
    assert (group & (age == 4)).any() and found.whole == pytest.approx(1 - (group & (age == 4)).sum() / group.sum())
    np.testing.assert_allclose(np.bincount(own[~group], weight), np.bincount(own[group]))


def test_a_few_do_not_stand_for_many_and_nobody_for_none():
    group = np.array([True] * 20 + [False] * 24)
    rare = np.array([1] * 10 + [0] * 10 + [1] * 4 + [0] * 20)
    patient = np.arange(44)
    found = case_mix.alike(group, ~group, case_mix.nested([np.zeros(44, int), rare]), patient, 1)
    assert found.whole == 0.5  # four images are fewer than FEWEST
    np.testing.assert_allclose(found.weight[20:], np.where(rare[20:] == 1, 10 / 24, 10 / 24 + 10 / 20))
    lone = case_mix.alike(group, ~group, [group.astype(int)], patient, 1)
    assert np.isnan(lone.weight).all() and lone.whole == 0


def test_weighted_ranks_have_the_plain_functions_values_in_every_replicate():
    rng = np.random.default_rng(1)
    who, positive = rng.integers(0, 40, 200).astype(str), rng.random(200) < 0.4
    score, weight = rng.integers(0, 15, 200) / 15, rng.random(200) * 3 + 0.01
    bootstrap = intervals.Bootstrap(who, 30, 0)
    rows = np.flatnonzero(rng.random(200) < 0.8)
    auc, precision = bootstrap.ranking([intervals.RankedCell(rows, positive[rows], score[rows], weight[rows])])
    for b in range(30):
        each = bootstrap.counts[bootstrap.patient[rows], b] * weight[rows]
        assert auc[0, b] == pytest.approx(metrics.auc(positive[rows], score[rows], each), abs=1e-12)
        assert precision[0, b] == pytest.approx(metrics.average_precision(positive[rows], score[rows], each), abs=1e-12)


def test_weighted_influence_is_the_derivative_by_a_patients_weight():
    rng = np.random.default_rng(2)
    who, positive = rng.integers(0, 30, 150), rng.random(150) < 0.4
    score, weight = rng.integers(0, 12, 150) / 12, rng.random(150) + 0.1
    auc, found = comparisons.influence(positive, score[:, None], who, weight)
    assert auc[0] == pytest.approx(metrics.auc(positive, score, weight))
    sides = [len(np.unique(who[positive == side])) for side in (True, False)]
    step = 1e-6
    for k, patient in enumerate(np.unique(who)):
        by_side = [
            (metrics.auc(positive, score, weight * (1 + step * ((who == patient) & (positive == side)))) - auc[0]) / step for side in (True, False)
        ]
        expected = sum(d * np.sqrt(m / (m - 1)) for d, m in zip(by_side, sides))
        assert found[k, 0] == pytest.approx(expected, abs=1e-5)
    plain, ones = (comparisons.influence(positive, score[:, None], who, w)[1] for w in (None, np.ones(150)))
    np.testing.assert_allclose(ones, plain, atol=1e-12)


def test_patients_are_counted_by_their_weight():
    patient = np.array([0, 0, 1, 2])
    assert estimates.count(patient) == estimates.count(patient, np.full(4, 0.7)) == 3 and estimates.count(patient[:0], np.zeros(0)) == 0
    assert estimates.count(patient, np.array([50.0, 50, 1, 1])) == 1


def test_closed_data_are_told_of_in_round_numbers():
    predictions = dataclasses.replace(aged(), open_data=False)
    rows = audit(predictions, settings())
    like = the_gap(rows, "like")
    assert like["value"] == round(like["value"], 2) and like["low"] == round(like["low"], 2) and gaps.how_alike(like["reason"]) == ("most", ("age_band",))
    # A group whose number of positives is hidden has no such difference either.
    table = predictions.table.copy()
    few = table.index[(table["race"] == "c") & (table["label_Edema"] == 1)][9:]
    table.loc[few, "label_Edema"] = 0.0
    rows = audit(Predictions(table, predictions.targets), settings())
    for reference in ("rest", "like"):
        assert the_gap(rows, reference)["value"] is None


@pytest.mark.parametrize("metric", gaps.COMPARED)
def test_weights_by_a_hidden_number_of_positives_are_in_nothing(metric):
    """Others that are called as often as a group of 60 is ill would tell, with what is known of both, that nine of it are."""
    predictions = dataclasses.replace(aged(), open_data=False)
    table = predictions.table.copy()
    table.loc[table.index[(table["race"] == "c") & (table["label_Edema"] == 1)][9:], "label_Edema"] = 0.0
    rows = [row for row in audit(Predictions(table, predictions.targets), settings()) if row["metric"] == metric and row["group"] == "c"]
    (own,) = (row for row in rows if row["class"] == "Edema" and row["effect"] is None)
    assert own["n_positive"] is None
    like = [row for row in rows if row["class"] in ("Edema", "macro") and row["reference"] == "like"]
    assert len(like) >= 2 and all(row["value"] is None for row in like)
    # And of the other finding, among whose strata it is no more, there is something to tell.
    assert [row for row in rows if row["class"] == "No Finding" and row["reference"] == "like" and row["value"] is not None]


def test_of_closed_data_a_stratum_has_enough_of_the_groups_patients():
    n = 600
    patient, group, rare = np.repeat(np.arange(n // 2), 2), np.arange(n) < 200, np.zeros(n, int)
    rare[:20] = rare[300:400] = 1  # ten patients of the group
    strata = case_mix.nested([np.zeros(n, int), rare])
    assert case_mix.alike(group, ~group, strata, patient, 1).whole == 1
    kept = case_mix.alike(group, ~group, strata, patient, 11)
    assert kept.whole == 0.9
    weight = kept.weight[200:]  # 20 spread over all, 180 over those who are not of the rare stratum
    np.testing.assert_allclose(weight, np.where(rare[200:] == 1, 20 / 400, 20 / 400 + 180 / 300))


def test_weights_leave_what_is_certain_certain():
    rng = np.random.default_rng(7)
    for _ in range(100):
        weight, positive = rng.random(30) * 3 + 0.01, np.arange(30) < 9
        assert metrics.mean(np.ones(30), weight) == 1 == metrics.auc(positive, positive + 0.5 * rng.random(30), weight)
    # Many images a patient, of which few count for much.
    patient = np.repeat(np.arange(30), 40)
    weight = np.where(np.arange(1200) % 40 == 0, 5.0, 1e-3)
    assert estimates.count(patient, weight) == 30


@pytest.mark.parametrize("interval", ["bca", "analytic", "percentile"])
def test_few_weighty_images_of_many_have_an_interval_or_a_reason(interval):
    rng = np.random.default_rng(0)
    who = np.concatenate([np.repeat(np.arange(30), 40), 30 + np.repeat(np.arange(40), 2)])
    table = pd.DataFrame({"image_id": [f"i{i}" for i in range(len(who))], "patient_id": [f"p{i:03}" for i in who], "race": np.where(who < 30, "a", "b")})
    table["view"] = np.where((who < 30) & (rng.random(len(who)) < 0.96), "AP", "PA")
    table["label_Edema"] = (rng.random(len(who)) < 0.4).astype(float)
    table["score_Edema"] = np.where(who < 30, 0.1, rng.random(len(who)))
    rows = audit(Predictions(table, {"findings": Target("multilabel", ("Edema",))}, open_data=True), settings(case_mix=("view",), interval=interval))
    like = [row for row in rows if row["reference"] == "like" and row["effect"] == "difference" and row["value"] is not None]
    assert len(like) > 5 and all(row["low"] is not None or row["reason"] for row in like)


def test_what_is_said_of_likeness_can_be_read_again():
    for share, is_open, many in ((1.0, True, "all"), (0.996, True, "more than 99 %"), (0.004, True, "fewer than 1 %"), (0.61, True, "61 %"), (0.61, False, "most"), (0.4, False, "fewer than half")):
        for names in ((), ("view",), ("view", "age_band")):
            text = gaps.told(share, names, is_open)
            assert gaps.how_alike(text) == gaps.how_alike(f"threshold; {text}; more") == (many, names), text
            assert ("the rest" in text) == (many != "all")
    assert gaps.how_alike("withheld: few") is gaps.how_alike(None) is None


def test_classes_that_exclude_one_another():
    rng = np.random.default_rng(4)
    predictions = aged(4)
    table = predictions.table[["image_id", "patient_id", "sex", "age"]].copy()
    table["label_race"] = predictions.table["race"]
    scores = rng.random((len(table), 3)) + 0.5 * np.stack([table["label_race"] == c for c in "abc"], axis=1)
    table[[f"score_{c}" for c in "abc"]] = scores / scores.sum(axis=1, keepdims=True)
    one = Predictions(table, {"race": Target("multiclass", tuple("abc"))}).check()
    rows = [row for row in audit(one, settings(attributes=("sex",))) if row["reference"] == "like"]
    assert {row["class"] for row in rows if row["metric"] == "auc"} == {"a", "b", "c", "macro"}
    assert all(row["value"] is not None for row in rows if row["metric"] == "auc")
