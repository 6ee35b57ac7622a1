"""Heads fitted anew, beside scikit-learn's logistic regression with the same weights."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from cxr_jax.probes import last_layer
from cxr_jax.tables import Target, UserError

TARGETS = {"findings": Target("multilabel", ("x", "y")), "sex": Target("multiclass", ("F", "M", "O"))}


def drawn(n=300, d=6):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(n, d)).astype(np.float32) * np.geomspace(0.1, 10, d).astype(np.float32)
    findings = (features[:, :2] / features[:, :2].std(0) + rng.normal(size=(n, 2)) > 0.5).astype(np.float32)
    findings[rng.random((n, 2)) < 0.1] = np.nan
    labels = {"findings": findings, "sex": rng.integers(-1, 3, n).astype(np.int32)}
    return features, labels, {name: rng.gamma(1.0, size=of.shape) for name, of in labels.items()}


def test_heads_are_those_of_scikit_learn():
    features, labels, weights = drawn()
    read = last_layer.refitted(TARGETS, features, labels, weights, 0.05)
    others = np.random.default_rng(1).normal(size=(20, 6)).astype(np.float32)
    scores = read(others)
    for name, columns in (("findings", [(labels["findings"][:, k], weights["findings"][:, k]) for k in (0, 1)]), ("sex", [(np.where(labels["sex"] < 0, np.nan, labels["sex"]), weights["sex"])])):
        for k, (label, weight) in enumerate(columns):
            known = ~np.isnan(label)
            mean = np.average(features[known], axis=0, weights=weight[known])
            scale = np.sqrt(np.average((features[known] - mean) ** 2, axis=0, weights=weight[known]))
            model = LogisticRegression(C=1 / (0.05 * weight[known].sum()), tol=1e-10, max_iter=10000)
            model.fit((features[known] - mean) / scale, label[known].astype(int), sample_weight=weight[known])
            wanted = model.predict_proba((others - mean) / scale)
            np.testing.assert_allclose(scores[name][:, [k]] if name == "findings" else scores[name], wanted[:, 1:] if name == "findings" else wanted, atol=2e-4)


def test_a_finding_that_nobody_has_has_no_head_and_a_class_is_told():
    features, labels, weights = drawn()
    labels["findings"][:, 1] = 0
    scores = last_layer.refitted(TARGETS, features, labels, weights, 0.05)(features)["findings"]
    assert np.isnan(scores[:, 1]).all() and np.isfinite(scores[:, 0]).all()
    labels["sex"][labels["sex"] == 2] = 1
    with pytest.raises(UserError, match="dfr: none of 300 validation images is 'O'; take a larger validation split"):
        last_layer.refitted(TARGETS, features, labels, weights, 0.05)
