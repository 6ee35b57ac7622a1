"""What goes with how images were acquired: pairs counted one by one, weights by scikit-learn, errors by leaving patients out, and truths known in closed form."""

import functools
import itertools

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from configs import base
from cxr_jax import tables
from cxr_jax.audit import acquisition, comparisons, judgement
from cxr_jax.audit.intervals import Bootstrap, RankedCell
from cxr_jax.tables import Predictions, Target, UserError

SETTINGS = base.get_config().audit
WHATS = ("whole", "alone", "within", "matched", "explained", "explained_matched", "pairs")


def predictions(table: pd.DataFrame, label, score, patient=None, open_data: bool = True, classes=("a", "b")) -> Predictions:
    """label: int [n], -1 unknown. score: float [n] of the last of two classes, or [n, classes]."""
    score = 1 / (1 + np.exp(-np.asarray(score))) if np.ndim(score) == 1 else np.asarray(score)
    score = np.stack([1 - score, score], axis=1) if score.ndim == 1 else score
    n = len(score)
    keys = {"image_id": [f"i{i}" for i in range(n)], "patient_id": [f"p{i}" for i in (np.arange(n) if patient is None else patient)], "split": "test"}
    keys["label_race"] = np.where(np.asarray(label) < 0, None, np.array(classes, object)[label])
    keys |= {f"score_{name}": score[:, c] for c, name in enumerate(classes)}
    return Predictions(table.assign(**keys), {"race": Target("multiclass", tuple(classes))}, open_data).check()


def the(rows, what, class_="b", factor="view"):
    (row,) = [row for row in rows if (row["what"], row["class"], row["factor"]) == (what, class_, None if what == "whole" else factor)]
    return row


def told(rows, class_="b", factor="view"):
    return {what: the(rows, what, class_, factor) for what in WHATS}


def covers(row, truth):
    return row["low"] < truth < row["high"]


# --- figures, one by one ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def three():
    """Three classes in patients of 1 to 3 images, ties in the scores, strata without a class, views that are missing, labels that are unknown."""
    rng = np.random.default_rng(0)
    patient = np.repeat(np.arange(60), rng.integers(1, 4, 60))
    label = rng.choice([0, 1, 2], 60, p=[0.5, 0.3, 0.2])[patient]
    view = np.array(["AP", "PA", "LL", None], object)[np.minimum(rng.integers(0, 3, len(patient)) + (rng.random(len(patient)) < 0.2), 3)]
    view[label == 2] = np.where(rng.random((label == 2).sum()) < 0.7, "AP", None)
    score = np.round(rng.dirichlet((1, 1, 1), len(patient)) + 0.3 * np.eye(3)[label] + 0.2 * (view == "AP")[:, None], 1) / 2
    label = np.where(rng.random(len(patient)) < 0.1, -1, label)
    return predictions(pd.DataFrame({"view": view}), label, score, patient, classes=("a", "b", "c")), label, view, score, patient


def brute(label, view, score, c):
    """(pairs won, pairs compared, pairs) of class c."""
    won = compared = pairs = 0
    for i, j in itertools.product(*(np.flatnonzero(mask) for mask in (label == c, (label >= 0) & (label != c)))):
        pairs += 1
        if view[i] == view[j]:  # None is None
            compared += 1
            won += (score[i, c] > score[j, c]) + 0.5 * (score[i, c] == score[j, c])
    return won, compared, pairs


def overlap(label, view, c):
    """Overlap weights of images whose label is known, with pandas."""
    table = pd.DataFrame({"y": label == c, "v": [v or "none" for v in view]})[label >= 0]
    propensity = table.groupby("v")["y"].transform("mean")
    return table["y"].to_numpy(), np.where(table["y"], 1 - propensity, propensity)


def test_figures_are_those_of_pairs_counted_and_of_scikit_learn(three):
    given, label, view, score, _ = three
    rows = acquisition.decompose(given, {"view": ["view"]}, {"race": {"view": score[::-1]}}, SETTINGS)
    assert len(rows) == 4 * len(WHATS) and all(tuple(row) == acquisition.KEYS for row in rows)
    values = {}
    for c, name in enumerate("abc"):
        found = told(rows, name)
        won, compared, pairs = brute(label, view, score, c)
        y, weight = overlap(label, view, c)
        known = label >= 0
        assert found["whole"]["value"] == pytest.approx(roc_auc_score(y, score[known, c]), abs=1e-12)
        assert found["alone"]["value"] == pytest.approx(roc_auc_score(y, score[::-1][known, c]), abs=1e-12)
        assert found["within"]["value"] == pytest.approx(won / compared, abs=1e-12)
        assert found["pairs"]["value"] == pytest.approx(compared / pairs) and "it is counted" in found["pairs"]["reason"] and found["pairs"]["low"] is None
        assert found["matched"]["value"] == pytest.approx(roc_auc_score(y, score[known, c], sample_weight=weight), abs=1e-12)
        for row in found.values():
            assert (row["n_images"], row["n_positive"], row["suppressed"]) == (known.sum(), y.sum(), False)
        values[name] = found
    for what in ("whole", "alone", "within", "matched", "pairs"):
        assert the(rows, what, "macro")["value"] == pytest.approx(np.mean([of[what]["value"] for of in values.values()]))
    for of in (*values.values(), told(rows, "macro")):
        for what, equal in (("explained", "within"), ("explained_matched", "matched")):
            assert of[what]["value"] == pytest.approx(1 - (of[equal]["value"] - 0.5) / (of["whole"]["value"] - 0.5))


def test_in_one_stratum_each_is_the_aucs_own_and_nothing_is_explained(three):
    given, *_ = three
    constant = Predictions(given.table.assign(view="AP"), given.targets, True)
    found = told(acquisition.decompose(constant, {"view": ["view"]}, {}, SETTINGS))
    for what in ("within", "matched"):
        for key in ("value", "low", "high"):
            assert found[what][key] == pytest.approx(found["whole"][key], abs=1e-12)
    assert found["explained"]["value"] == pytest.approx(0, abs=1e-12) and found["pairs"]["value"] == 1
    assert found["alone"]["value"] is None and "no model was fitted" in found["alone"]["reason"]


def test_what_a_patient_does_is_what_leaving_her_out_does():
    rng = np.random.default_rng(3)
    patient = np.repeat(np.arange(400), 2)
    label = rng.integers(0, 2, 400)[patient]
    view = (rng.random(800) < 0.3 + 0.3 * label).astype(int)
    score = label + view + rng.normal(size=400)[patient] + rng.normal(size=800)
    given = predictions(pd.DataFrame({"view": view}), label, score, patient)
    (judge,) = judgement.judgements(given, "test", SETTINGS, Bootstrap(given.table["patient_id"].to_numpy(), 1, 0))
    ((whole, _),) = judge.estimator.rank([RankedCell(np.arange(800), label == 1, judge.scores[:, 1])])

    def by_hand(at):
        y, s, v = label[at] == 1, score[at], view[at]
        pairs = [(y & (v == k)).sum() * (~y & (v == k)).sum() for k in (0, 1)]
        within = np.average([roc_auc_score(y[v == k], s[v == k]) for k in (0, 1)], weights=pairs)
        propensity = np.where(v == 1, y[v == 1].mean(), y[v == 0].mean())
        matched = roc_auc_score(y, s, sample_weight=np.where(y, 1 - propensity, propensity))
        return np.array([within, matched, *(1 - (of - 0.5) / (roc_auc_score(y, s) - 0.5) for of in (within, matched))])

    figures = acquisition._compared(judge, 1, view)
    figures = [figures["within"], figures["matched"], *(acquisition._explained(whole, figures[of], 0.95) for of in ("within", "matched"))]
    all_in, some = by_hand(np.ones(800, bool)), np.arange(0, 400, 8)
    moves = np.stack([all_in - by_hand(judge.patient != who) for who in some], axis=1)
    for figure, value, of in zip(figures, all_in, moves, strict=True):
        influence = figure.influence()[some]
        assert figure.value == pytest.approx(value)
        np.testing.assert_allclose(of, influence, atol=0.05 * np.abs(influence).max())
    whole = comparisons.influence(label == 1, score[:, None], judge.patient)[1][:, 0]
    for what in ("within", "matched"):
        np.testing.assert_allclose(acquisition._compared(judge, 1, np.zeros(800, int))[what].influence(), whole, atol=1e-12)


# --- known truths ----------------------------------------------------------------------------------------------------


def population(rng, patients, by_view, by_label, images=1):
    """Label, view (PA of 70 % of those with it, of 30 % of the others), and a score of both and of noise, some of it the patient's own."""
    patient = np.repeat(np.arange(patients), images)
    label = (rng.random(patients) < 0.4).astype(int)[patient]
    view = (rng.random(len(patient)) < np.where(label == 1, 0.7, 0.3)).astype(int)
    noise = np.sqrt(0.5) * (rng.normal(size=patients)[patient] + rng.normal(size=len(patient)))
    return predictions(pd.DataFrame({"view": np.array(["AP", "PA"])[view]}), label, by_view * view + by_label * label + noise, patient), label, view


def truth(by_view, by_label):
    """whole, within, matched and both explained of that population."""
    mix = {1: (0.3, 0.7), 0: (0.7, 0.3)}
    share = np.array([0.4 * p * 0.6 * n / (0.4 * p + 0.6 * n) for p, n in zip(mix[1], mix[0], strict=True)])
    share /= share.sum()

    def area(positives, negatives):
        return sum(positives[v] * negatives[u] * norm.cdf((by_label + by_view * (v - u)) / np.sqrt(2)) for v in (0, 1) for u in (0, 1))

    whole, within, matched = area(mix[1], mix[0]), norm.cdf(by_label / np.sqrt(2)), area(share, share)
    explained = {what: 1 - (of - 0.5) / (whole - 0.5) for what, of in (("explained", within), ("explained_matched", matched))}
    return {"whole": whole, "within": within, "matched": matched} | explained


@pytest.mark.parametrize(("by_view", "by_label"), [(2.0, 0.0), (0.0, 1.0), (1.0, 0.7)])
def test_what_goes_with_the_view_is_found(by_view, by_label):
    given, _, view = population(np.random.default_rng(5), 3000, by_view, by_label)
    from_view = np.where(view == 1, 0.6, 0.2)
    found = told(acquisition.decompose(given, {"view": ["view"]}, {"race": {"view": np.stack([1 - from_view, from_view], axis=1)}}, SETTINGS))
    for what, of in truth(by_view, by_label).items():
        assert covers(found[what], of)
    assert covers(found["alone"], 0.7)  # .5 + (.7 - .3) / 2
    if not by_label:
        assert covers(found["within"], 0.5) and found["explained"]["low"] > 0.8
    if not by_view:
        assert abs(found["explained"]["value"]) < 0.1


def test_intervals_cover_a_truth_known_in_closed_form():
    rng, hits, wanted = np.random.default_rng(11), [], truth(1.0, 0.7)
    for _ in range(200):
        given, *_ = population(rng, 200, 1.0, 0.7, images=2)
        found = told(acquisition.decompose(given, {"view": ["view"]}, {}, SETTINGS))
        hits.append([covers(found[what], of) for what, of in wanted.items()])
    # Fewer than 180 or all of 200 come about in less than 1 of 300, were each .95.
    assert (np.mean(hits, axis=0) >= 0.9).all() and (np.mean(hits, axis=0) < 1).all()


def test_a_number_is_cut_at_quintiles_and_several_into_fewer():
    rng = np.random.default_rng(2)
    label = rng.integers(0, 2, 4000)
    exposure = rng.normal(size=4000) + 0.8 * label
    score = exposure + 0.01 * rng.normal(size=4000)  # nothing but the exposure
    table = pd.DataFrame({"exposure": exposure, "contrast": rng.normal(size=4000), "black": rng.random(4000), "white": np.where(rng.random(4000) < 0.6, 1.0, rng.random(4000))})
    factors = {"exposure": ["exposure"], "all": ["exposure", "contrast", "black", "white"]}
    rows = acquisition.decompose(predictions(table, label, score), factors, {}, SETTINGS)
    five = pd.qcut(exposure, 5, labels=False)
    pairs = [(label[five == k].sum(), (1 - label)[five == k].sum()) for k in range(5)]
    by_hand = sum(p * n * roc_auc_score(label[five == k], score[five == k]) for k, (p, n) in enumerate(pairs)) / sum(p * n for p, n in pairs)
    found = told(rows, factor="exposure")
    assert found["within"]["value"] == pytest.approx(by_hand, abs=1e-12) and "cut into 5 at quantiles" in found["within"]["reason"]
    assert found["pairs"]["value"] == pytest.approx(sum(p * n for p, n in pairs) / (label.sum() * (1 - label).sum()))
    # What the module says is left of one normal number.
    joint = told(rows, factor="all")
    assert "cut into 2 at quantiles" in joint["within"]["reason"]
    for of, what, left in ((found, "explained", 0.28), (found, "explained_matched", 0.055), (joint, "explained", 0.6), (joint, "explained_matched", 0.3)):
        assert of[what]["value"] == pytest.approx(1 - left, abs=0.05)
    # Halves of four numbers, of which one is mostly at its end and yet cut in two.
    codes = [acquisition._codes(table[column], 2) for column in table]
    assert all(set(np.unique(of)) == {0, 1} for of in codes)


@pytest.mark.parametrize("ones", [0.001, 0.1, 0.5, 0.9, 0.999])
def test_equal_numbers_stay_together_and_two_values_stay_apart(ones):
    value = pd.Series(np.r_[np.zeros(round(1000 * (1 - ones))), np.ones(round(1000 * ones)), np.nan])
    for cut in (None, 5, 2):
        codes = acquisition._codes(value, cut)
        assert len(set(codes[value == 0])) == len(set(codes[value == 1])) == 1 and len(np.unique(codes)) == 3


@pytest.mark.parametrize("dtype", [bool, "boolean", "Int64", "float32", "category"])
def test_values_of_any_kind_make_strata(dtype):
    value = pd.Series([1, 0, 0, 1]).astype(bool if dtype in (bool, "boolean") else int).astype(dtype)
    np.testing.assert_array_equal(acquisition._codes(value, None), [1, 0, 0, 1])


def test_where_classes_are_wholly_apart_nothing_is_explained():
    rng = np.random.default_rng(10)
    label = rng.integers(0, 2, 300)
    found = told(acquisition.decompose(predictions(pd.DataFrame({"view": rng.choice(["x", "y", "z"], 300)}), label, label + 0.1 * rng.random(300)), {"view": ["view"]}, {}, SETTINGS))
    for what in ("whole", "within", "matched"):
        assert found[what]["value"] == 1 and "an AUC of 0 or 1" in found[what]["reason"]
    for what in ("explained", "explained_matched"):
        assert found[what]["value"] == 0 and found[what]["low"] is None and found[what]["reason"]


def test_of_many_values_the_largest_strata_are_compared():
    rng = np.random.default_rng(4)
    maker = np.where(rng.random(3000) < 0.9, rng.integers(0, 20, 3000), rng.integers(20, 60, 3000))
    label, score = rng.integers(0, 2, 3000), rng.normal(size=3000)
    given = predictions(pd.DataFrame({"manufacturer": [f"m{m}" for m in maker]}), label, score + label)
    found = told(acquisition.decompose(given, {"view": ["manufacturer"]}, {}, SETTINGS))
    compared = sum(label[maker == m].sum() * (1 - label)[maker == m].sum() for m in range(20))
    assert found["pairs"]["value"] == pytest.approx(compared / (label.sum() * (1 - label).sum()))
    assert "the 20 largest strata alone" in found["within"]["reason"]


# --- what there is not, and what is not told -------------------------------------------------------------------------


def test_what_is_not_there_is_said():
    given, label, view = population(np.random.default_rng(6), 200, 1.0, 1.0)
    factors = {"maker": ["manufacturer"], "view": ["view", "kvp"], "itself": ["race", "label_race"], "apart": ["label_race", "apart"]}
    table = given.table.assign(kvp=np.nan, apart=np.where(label == 1, "x", "y"))
    rows = acquisition.decompose(Predictions(table, given.targets, True), factors, {}, SETTINGS)
    assert {row["factor"] for row in rows} == {None, "maker", "view", "apart"}
    for what in WHATS[1:]:
        for name in ("a", "b", "macro"):
            row = the(rows, what, name, "maker")
            assert row["value"] is None and row["reason"] == "no manufacturer is recorded"
    found = told(rows)
    assert found["within"]["value"] is not None and "no kvp is recorded" in found["within"]["reason"]
    # A factor that is the label by another name leaves nobody to compare.
    for what in ("within", "matched", "explained", "explained_matched", "pairs"):
        assert the(rows, what, factor="apart")["value"] is None and "in any stratum" in the(rows, what, factor="apart")["reason"]
    with pytest.raises(UserError, match="patient_id says which image or patient"):
        acquisition.decompose(given, {"view": ["view", "patient_id"]}, {}, SETTINGS)
    with pytest.raises(ValueError, match=r"\(3, 2\), not \(200, 2\)"):
        acquisition.decompose(given, {"view": ["view"]}, {"race": {"view": np.zeros((3, 2))}}, SETTINGS)


def test_findings_are_factors_and_no_targets():
    given, _, view = population(np.random.default_rng(9), 500, 1.0, 1.0)
    table = given.table.assign(label_Edema=np.where(np.arange(500) % 7, view.astype(float), np.nan), score_Edema=0.5)
    both = Predictions(table, given.targets | {"findings": Target("multilabel", ("Edema",))}, True).check()
    rows = acquisition.decompose(both, {"findings": ["label_Edema"]}, {}, SETTINGS)
    assert {row["target"] for row in rows} == {"race"} and {row["factor"] for row in rows} == {None, "findings"}
    own = np.where(np.isnan(table["label_Edema"]), 2, table["label_Edema"])
    y, score = (table["label_race"] == "b").to_numpy(), table["score_b"].to_numpy()
    pairs = [(y & (own == k)).sum() * (~y & (own == k)).sum() for k in range(3)]  # who is not known is compared with others who are not
    wanted = np.average([roc_auc_score(y[own == k], score[own == k]) for k in range(3)], weights=pairs)
    assert the(rows, "within", factor="findings")["value"] == pytest.approx(wanted)


def test_of_nothing_told_there_is_no_share_and_of_one_class_no_auc(tmp_path):
    given, *_ = population(np.random.default_rng(7), 200, 0.0, 0.0)
    row = the(acquisition.decompose(given, {"view": ["view"]}, {}, SETTINGS), "explained")
    assert row["value"] is None and row["low"] is None and "reaches 0.5" in row["reason"]
    one = predictions(pd.DataFrame({"view": ["AP", "PA"] * 20}), np.ones(40, int), np.arange(40.0))
    rows = acquisition.decompose(one, {"view": ["view"]}, {"race": {"view": np.full((40, 2), 0.5)}}, SETTINGS)
    assert len(rows) == 3 * len(WHATS) and all(row["value"] is None for row in rows)
    assert all("one class only" in row["reason"] for row in rows if row["class"] != "macro")
    tables.write_json(tmp_path / "rows.json", rows)
    assert len(tables.read_json(tmp_path / "rows.json")) == len(rows)


def closed(seed, few):
    """150 patients of either class in view AP; in PA 100 of class a and so many of b, of whom the model is wrong there."""
    rng = np.random.default_rng(seed)
    label, view = np.r_[np.zeros(250, int), np.ones(150 + few, int)], np.r_[np.zeros(150, int), np.ones(100, int), np.zeros(150, int), np.ones(few, int)]
    given = predictions(pd.DataFrame({"view": np.array(["AP", "PA"])[view]}), label, label * (1 - 4 * view) + rng.normal(size=len(label)), open_data=False)
    from_view = np.where(view == 1, 0.1, 0.5)
    return given, {"race": {"view": np.stack([1 - from_view, from_view], axis=1)}}, label, view


def test_of_closed_data_small_strata_are_not_compared_and_not_counted():
    given, alone, label, view = closed(0, 10)
    decompose = functools.partial(acquisition.decompose, factors={"view": ["view"]}, alone=alone, settings=SETTINGS)
    found, score = told(decompose(given)), given.table["score_b"]
    in_ap = roc_auc_score(label[view == 0], score[view == 0])
    assert found["within"]["value"] == round(in_ap, 2) == found["matched"]["value"] and found["within"]["low"] == round(found["within"]["low"], 2)
    assert found["explained"]["value"] == round(found["explained"]["value"], 2)
    for what in ("alone", "pairs"):
        assert found[what]["value"] is None and "lest a count of fewer than 11 patients show" in found[what]["reason"]
    given, alone, label, view = closed(0, 11)
    found = told(decompose(given, alone=alone))
    assert found["alone"]["value"] == round(roc_auc_score(label, alone["race"]["view"][:, 1]), 2)
    assert found["pairs"]["value"] == round((150 * 150 + 100 * 11) / (250 * 161), 2)
    assert found["within"]["value"] < in_ap - 0.02
    open_data = told(decompose(Predictions(given.table, given.targets, True), alone=alone))
    assert open_data["within"]["value"] != found["within"]["value"] == round(open_data["within"]["value"], 2)


@pytest.mark.parametrize("few", [9, 3])
def test_what_is_withheld_of_the_label_is_withheld_here(few):
    rng = np.random.default_rng(8)
    label = np.r_[np.zeros(40, int), np.ones(40, int), np.full(few, 2)]
    given = predictions(pd.DataFrame({"view": rng.choice(["AP", "PA"], len(label))}), label, rng.dirichlet((1, 1, 1), len(label)), open_data=False, classes=("a", "b", "c"))
    rows = acquisition.decompose(given, {"view": ["view"]}, {"race": {"view": given.scores("race")}}, SETTINGS)
    assert {row["class"] for row in rows if row["what"] == "whole" and row["value"] is not None} <= {"a", "b"}
    assert all(row["n_positive"] is None for row in rows if row["class"] == "c")
    assert all(row["value"] is None and row["low"] is None for row in rows if row["what"] != "whole")
