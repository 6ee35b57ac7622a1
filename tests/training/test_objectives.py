import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from scipy import special

from cxr_jax.tables import Target
from cxr_jax.training import objectives, optimizers
from configs import base
from cxr_jax import experiment

RNG = np.random.default_rng(0)


def test_cross_entropy_is_the_mean_over_what_is_known():
    logits = RNG.normal(size=(6, 4)).astype(np.float32)
    labels = np.array([0, 3, -1, 2, 1, 1], np.int32)
    mask = np.array([1, 1, 1, 1, 0, 1], bool)
    log_p = special.log_softmax(logits.astype(np.float64), axis=1)
    wanted = -np.mean([log_p[i, labels[i]] for i in (0, 1, 3, 5)])
    got = jax.jit(objectives.categorical_cross_entropy)(logits, labels, mask)
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


def test_binary_cross_entropy_leaves_unknown_labels_out_and_their_gradient_is_nought():
    logits = RNG.normal(size=(5, 3)).astype(np.float32)
    labels = RNG.integers(0, 2, (5, 3)).astype(np.float32)
    labels[1, 2] = labels[3, 0] = np.nan
    mask = np.array([1, 1, 0, 1, 1], bool)
    known = mask[:, None] & ~np.isnan(labels)
    p = special.expit(logits.astype(np.float64))
    wanted = -np.mean(np.where(labels == 1, np.log(p), np.log1p(-p))[known])
    value, gradient = jax.value_and_grad(objectives.binary_cross_entropy)(jnp.asarray(logits), labels, mask)
    np.testing.assert_allclose(value, wanted, rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(gradient)[~known], 0)
    np.testing.assert_allclose(np.asarray(gradient)[known], ((p - labels) / known.sum())[known], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("unknown", [-1, "mask"])
def test_a_batch_in_which_nothing_is_known_costs_nothing(unknown):
    labels = np.full(3, -1 if unknown == -1 else 0, np.int32)
    mask = np.full(3, unknown == -1)
    value, gradient = jax.value_and_grad(objectives.categorical_cross_entropy)(jnp.ones((3, 4)), labels, mask)
    assert value == 0 and not np.any(gradient)


def test_heads_add_up_and_probabilities_match_their_kind():
    targets = {"race": Target("multiclass", ("a", "b")), "findings": Target("multilabel", ("x", "y", "z"))}
    logits = {"race": jnp.asarray(RNG.normal(size=(4, 2)), jnp.float32), "findings": jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32)}
    labels = {"race": np.array([0, 1, 1, -1], np.int32), "findings": np.ones((4, 3), np.float32)}
    mask = np.ones(4, bool)
    total = objectives.total_loss(targets, logits, labels, mask)
    parts = objectives.categorical_cross_entropy(logits["race"], labels["race"], mask), objectives.binary_cross_entropy(
        logits["findings"], labels["findings"], mask
    )
    np.testing.assert_allclose(total, sum(parts), rtol=1e-6)
    p = objectives.probabilities(targets, logits)
    np.testing.assert_allclose(p["race"], special.softmax(np.asarray(logits["race"]), axis=1), rtol=1e-5)
    np.testing.assert_allclose(p["findings"], special.expit(np.asarray(logits["findings"])), rtol=1e-5)


def test_the_rate_rises_then_falls_to_nothing():
    train = experiment.apply_diff(
        base.get_config(), {"train.schedule": "cosine", "train.warmup_epochs": 1.0, "train.epochs": 4, "train.learning_rate": 0.5}
    ).train
    rate = optimizers.learning_rate(train, steps_per_epoch=10)
    np.testing.assert_allclose([rate(s) for s in (0, 5, 10, 25, 40)], [0, 0.25, 0.5, 0.25, 0], atol=1e-6)
    assert optimizers.learning_rate(base.get_config().train, 10)(10**6) == np.float32(1e-4)


@pytest.mark.parametrize(
    ("batch", "recipe", "rate", "beta1", "beta2", "epsilon"),
    [(32, 0, 1e-4, 0.9, 0.999, 1e-8), (32, 32, 1e-4, 0.9, 0.999, 1e-8), (128, 32, 2e-4, 0.6, 0.996, 5e-9), (320, 32, 10**-3.5, 0.0, 0.99, 10**-8.5)],
)
def test_adam_takes_the_published_step_scaled_to_the_batch(batch, recipe, rate, beta1, beta2, epsilon):
    """Kingma and Ba's Algorithm 1, written out for two steps of two parameters, one of whose gradients is near epsilon."""
    config = experiment.apply_diff(base.get_config(), {"train.batch_size": batch, "train.recipe_batch_size": recipe})
    optimizer = optimizers.adam(config.train, 10)
    x = jnp.asarray([0.0, 0.0])
    state, m, v, wanted = optimizer.init(x), 0.0, 0.0, np.zeros(2)
    for step, gradient in enumerate((np.array([0.3e-8, -4.0]), np.array([-0.1e-8, 2.0])), 1):
        updates, state = optimizer.update(jnp.asarray(gradient, jnp.float32), state, x)
        x = x + updates
        m, v = beta1 * m + (1 - beta1) * gradient, beta2 * v + (1 - beta2) * gradient**2
        wanted = wanted - rate * (m / (1 - beta1**step)) / (np.sqrt(v / (1 - beta2**step)) + epsilon)
    np.testing.assert_allclose(x, wanted, rtol=2e-5)


def test_a_large_batch_forgets_and_moves_by_the_image_as_a_small_one_does():
    """What the rule is for: with gradients that are noise, as an image's share of a batch, k steps of the one are one of the other, in spread."""
    rng, images, ends = np.random.default_rng(0), 64 * 600, {}
    noise = rng.standard_normal((images, 500)).astype(np.float32)
    for batch in (8, 64):
        config = experiment.apply_diff(base.get_config(), {"train.batch_size": batch, "train.recipe_batch_size": 8})
        optimizer = optimizers.adam(config.train, 1)
        gradients = jnp.asarray(noise.reshape(-1, batch, noise.shape[1]).mean(axis=1))

        def step(carry, gradient):
            x, state = carry
            updates, state = optimizer.update(gradient, state, x)
            return (x + updates, state), None

        start = jnp.zeros(noise.shape[1])
        ends[batch] = np.asarray(jax.lax.scan(step, (start, optimizer.init(start)), gradients)[0][0])
    assert ends[64].std() == pytest.approx(ends[8].std(), rel=0.1)
    assert np.corrcoef(ends[8], ends[64])[0, 1] > 0.95


def test_shapes_in_signatures_are_checked_while_tests_run():
    with pytest.raises(jaxtyping.TypeCheckError):
        objectives.categorical_cross_entropy(jnp.ones((3, 4)), np.zeros(5, np.int32), np.ones(3, bool))
