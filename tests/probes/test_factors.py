"""What factors tell by themselves, against scikit-learn."""

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from cxr_jax.probes import factors


def drawn(n, seed):
    rng = np.random.default_rng(seed)
    race = rng.integers(0, 3, n)
    view = np.where(rng.random(n) < np.array([0.1, 0.5, 0.9])[race], "AP", "PA").astype(object)
    age = 50 + 10 * rng.normal(size=n)
    view[rng.random(n) < 0.1] = None
    age[rng.random(n) < 0.1] = np.nan
    labels = np.array(["a", "b", "c"], object)[race]
    labels[:5] = None
    return pd.DataFrame({"race": pd.array(labels, "str"), "view": pd.array(view, "str"), "age": age, "empty": np.nan})


TABLES = {"train": drawn(600, 0), "validation": drawn(200, 1), "test": drawn(300, 2)}


def test_one_penalty_is_scikit_learns():
    found = factors.alone(TABLES, ("view", "age", "empty"), "race", ("a", "b", "c"), (0.1, 0.1, 1))

    def vectors(table):
        train = TABLES["train"]
        number = ((table["age"] - train["age"].mean()) / train["age"].std(ddof=0)).to_numpy()
        text = np.stack([np.where(table["view"].isna(), np.nan, table["view"] == v) for v in ("AP", "PA")], axis=1).astype(np.float64)
        values = np.concatenate([text, number[:, None]], axis=1)
        return np.concatenate([np.nan_to_num(values), np.isnan(values)], axis=1)

    train = TABLES["train"]
    use = train["race"].notna().to_numpy()
    x = vectors(train)
    # Probes penalise standardised features, and the loss is a mean.
    centre, scale = x[use].mean(axis=0), x[use].std(axis=0)
    model = LogisticRegression(C=1 / (0.1 * use.sum()), tol=1e-9, max_iter=5000).fit((x[use] - centre) / scale, train["race"][use].astype(str))
    np.testing.assert_allclose(found, model.predict_proba((vectors(TABLES["test"]) - centre) / scale), atol=2e-4)


def test_a_factor_tells_what_it_knows():
    test = TABLES["test"]
    known = test["race"].notna().to_numpy()
    view, age = (factors.alone(TABLES, (c,), "race", ("a", "b", "c"), (1e-4, 1e2, 6)) for c in ("view", "age"))
    assert roc_auc_score(test["race"][known] == "c", view[known, 2]) > 0.7
    assert roc_auc_score(test["race"][known] == "c", age[known, 2]) == pytest.approx(0.5, abs=0.1)


def test_nothing_known_is_nothing_told():
    assert factors.alone(TABLES, ("empty",), "race", ("a", "b", "c"), (0.1, 1, 2)) is None
    one = {split: table.assign(race=pd.array(["a"] * len(table), "str")) for split, table in TABLES.items()}
    assert factors.alone(one, ("view",), "race", ("a", "b"), (0.1, 1, 2)) is None
