"""The small network: it reads what a line cannot, stops in time, and depends on nothing but its arguments."""

import numpy as np
import pytest
import sklearn.linear_model
import sklearn.metrics

from cxr_jax.probes import network
from cxr_jax.tables import UserError

SETTINGS = {
    "hidden": 16, "learning_rate": 0.02, "weight_decay": 1e-4, "batch_size": 32, "epochs": 60, "patience": 10, "seed": 0,
}


def quadrants(seed, n=300, noise=0.0):
    """Class 1 where the first two columns have unequal signs: no line tells them. Columns of unequal place and spread."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 5))
    y = (x[:, 0] * x[:, 1] < 0) ^ (rng.random(n) < noise)
    return (x * [1, 100, 3, 1e-3, 1] + [0, 50, 7, 2, 0]).astype(np.float32), y.astype(int)


@pytest.fixture(scope="module")
def data():
    return *quadrants(0), *quadrants(1)


@pytest.fixture(scope="module")
def fitted(data):
    return network.fit(*data, 3, **SETTINGS)


def test_it_reads_what_no_line_can(fitted):
    x, y = quadrants(2, n=1000)
    line = sklearn.linear_model.LogisticRegression().fit(*quadrants(0))
    assert sklearn.metrics.roc_auc_score(y, line.decision_function(x)) < 0.6
    scores = fitted.scores(x)
    assert scores.dtype == np.float32 and sklearn.metrics.roc_auc_score(y, scores[:, 1]) > 0.95
    np.testing.assert_allclose(scores[:, :2].sum(1), 1, atol=1e-6)
    assert np.isnan(scores[:, 2]).all()  # no row of that class


def test_scores_are_those_of_its_parameters_at_the_best_epoch(data, fitted):
    x, y = data[2:]
    p = {name: value.astype(float) for name, value in fitted.parameters.items()}
    z = (x - data[0].mean(0, dtype=float)) / data[0].std(0, dtype=float)
    logits = np.maximum(z @ p["hidden"] + p["hidden_bias"], 0) @ p["output"] + p["output_bias"]
    expected = np.exp(logits[:, :2]) / np.exp(logits[:, :2]).sum(1, keepdims=True)
    np.testing.assert_allclose(fitted.scores(x)[:, :2], expected, atol=1e-5)
    loss = fitted.validation_loss
    assert fitted.best_epoch == loss.argmin()
    assert loss[fitted.best_epoch] == pytest.approx(sklearn.metrics.log_loss(y, expected), abs=1e-5)


def test_it_stops_early_on_noise(data):
    x, y, validation_x, validation_y = data
    rng = np.random.default_rng(0)
    noise = network.fit(x, rng.permutation(y), validation_x, rng.permutation(validation_y), 3, **SETTINGS)
    assert len(noise.validation_loss) == noise.best_epoch + 1 + SETTINGS["patience"] < SETTINGS["epochs"]


def test_the_seed_alone_decides(data, fitted):
    again, other = network.fit(*data, 3, **SETTINGS), network.fit(*data, 3, **{**SETTINGS, "seed": 1})
    for name, value in fitted.parameters.items():
        np.testing.assert_array_equal(again.parameters[name], value)
    assert (other.parameters["hidden"] != fitted.parameters["hidden"]).any()


def test_a_row_without_weight_is_a_row_left_out(data):
    x, y, validation_x, validation_y = data
    keep, valid = np.random.default_rng(0).random((2, 300)) < 0.7
    few = {**SETTINGS, "epochs": 5}
    wild = np.where(keep[:, None], x, 1e6).astype(np.float32)
    weighted = network.fit(
        wild, np.where(keep, y, 2), validation_x, np.where(valid, validation_y, 2), 3, **few,
        weights=keep, validation_weights=valid,
    )
    without = network.fit(x[keep], y[keep], validation_x[valid], validation_y[valid], 3, **few)
    np.testing.assert_allclose(weighted.validation_loss, without.validation_loss, rtol=1e-4)
    for name, value in without.parameters.items():
        np.testing.assert_allclose(weighted.parameters[name], value, atol=1e-4)


def test_weight_decay_shrinks_and_a_constant_column_is_not_read(data, fitted):
    x, *rest = data
    constant = x.copy()
    constant[:, 2] = 7
    shrunk = network.fit(constant, *rest, 3, **{**SETTINGS, "weight_decay": 1.0})
    assert np.linalg.norm(shrunk.parameters["hidden"]) < 0.7 * np.linalg.norm(fitted.parameters["hidden"])
    moved = rest[1].copy()
    moved[:, 2] = 1e6
    np.testing.assert_array_equal(shrunk.scores(moved), shrunk.scores(rest[1] * [1, 1, 0, 1, 1]))


def test_equal_shapes_share_the_compiled_program(data, fitted):
    before = network._train._cache_size()
    changed = {"learning_rate": 0.1, "weight_decay": 0.0, "patience": 2, "seed": 9, "weights": np.arange(300) % 2}
    network.fit(*data, 3, **{**SETTINGS, **changed})
    assert network._train._cache_size() == before


@pytest.mark.parametrize(
    "wrong",
    [
        {"classes": 1}, {"weights": np.zeros(300)}, {"validation_weights": -np.ones(300)}, {"epochs": 0},
        {"validation_labels": np.full(300, 2)}, {"labels": np.zeros(299, int)}, {"validation_features": np.zeros((300, 4))},
    ],
    ids=lambda wrong: next(iter(wrong)),
)  # fmt: skip
def test_mistakes_raise(data, wrong):
    names = ("features", "labels", "validation_features", "validation_labels")
    with pytest.raises(ValueError):
        network.fit(**{**dict(zip(names, data, strict=True)), "classes": 3, **SETTINGS, **wrong})


def test_a_feature_that_is_no_number_is_a_users_mistake(data, fitted):
    x, *rest = data
    broken = x.copy()
    broken[8, 1] = np.nan
    for call in (lambda: network.fit(broken, *rest, 3, **SETTINGS), lambda: fitted.scores(broken)):
        with pytest.raises(UserError, match=r"^features: 1 NaN or infinite, the first in row 9, column 2;"):
            call()
