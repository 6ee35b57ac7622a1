"""AUCs along a series against scikit-learn, and their falls against the paired test of two scores."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from configs import base
from cxr_jax.audit import comparisons, perturbed
from cxr_jax.tables import Predictions, Target

SETTINGS = base.get_config().audit


def drawn(patients: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(patients), 2)
    sex = rng.integers(0, 2, patients)[who]
    score = 1 / (1 + np.exp(-(1.5 * (sex - 0.5) + rng.normal(size=len(who)))))
    table = pd.DataFrame({"image_id": [f"i{i}" for i in range(len(who))], "patient_id": [f"p{i}" for i in who], "split": "test", "label_sex": np.array(["F", "M"])[sex]})
    table["score_F"], table["score_M"] = 1 - score, score
    return Predictions(table, {"sex": Target("multiclass", ("F", "M"))}), sex, score, rng


def test_rows_are_sklearns_and_falls_those_of_paired_scores():
    predictions, sex, score, rng = drawn(200)
    worse = np.clip(score + rng.normal(scale=0.4, size=len(score)), 0, 1)
    both = np.stack([np.stack([1 - s, s], axis=1) for s in (score, worse)])
    rows = perturbed.audit(predictions, {"notch": perturbed.Series([[0, 4], [4, 8]], {"sex": both}, None)}, ("sex",), SETTINGS)
    male = {row["strength"] and tuple(row["strength"]): row for row in rows if row["class"] == "M"}
    assert list(male) == [None, (0, 4), (4, 8)]
    for row, s in zip(male.values(), (score, score, worse), strict=True):
        assert row["value"] == pytest.approx(roc_auc_score(sex, s)) and row["low"] < row["value"] < row["high"] and row["reader"] == "head"
        assert (row["n_images"], row["n_patients"], row["n_positive"]) == (400, 200, sex.sum())
    assert [male[0, 4][k] for k in ("less_value", "less_low", "less_high")] == [0, 0, 0] and male[None]["less_value"] is None
    _, patient = np.unique(predictions.table["patient_id"], return_inverse=True)
    influence = comparisons.influence(sex == 1, np.stack([worse, score], axis=1), patient)[1]
    error = np.sqrt(np.square(influence[:, 0] - influence[:, 1]).sum())
    fall = male[4, 8]
    assert fall["less_value"] == pytest.approx(roc_auc_score(sex, worse) - roc_auc_score(sex, score)) and fall["less_high"] < 0
    assert fall["less_high"] - fall["less_low"] == pytest.approx(2 * 1.97 * error, rel=0.02)


def test_of_few_patients_nothing_is_told():
    predictions, _, score, _ = drawn(9)
    series = {"notch": perturbed.Series([[0, 4]], {"sex": np.stack([1 - score, score], axis=1)[None]}, np.zeros((1, 18, 1)))}
    for row in perturbed.audit(predictions, series, (), SETTINGS):
        assert row["value"] is None and row["less_value"] is None and row["n_images"] is None and row["suppressed"] and row["reader"] == "probe"
    (row,) = perturbed.features(predictions.table["patient_id"].to_numpy(), [0], score[:, None], series, SETTINGS)
    assert row["value"] is None and row["n_patients"] is None and "fewer than 11" in row["reason"]


def test_features_move_by_so_many_deviations():
    predictions, _, score, rng = drawn(100)
    whole = np.stack([rng.normal(5, 3, len(score)), np.ones(len(score))], axis=1)
    moved = whole + [6.0, 1.0]
    series = {"blurred": perturbed.Series((2.0,), {}, moved[None]), "attacked": perturbed.Series((1.0,), {}, None)}
    first, second = perturbed.features(predictions.table["patient_id"].to_numpy(), [7, 9], whole, series, SETTINGS)
    assert first["feature"] == 7 and first["value"] == pytest.approx(6 / whole[:, 0].std()) and first["correlation"] == pytest.approx(1)
    assert second["value"] is None and "the same in every image" in second["reason"]
