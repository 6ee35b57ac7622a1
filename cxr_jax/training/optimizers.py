"""Adam and the course of its rate, from config."""

from __future__ import annotations

import jax
import ml_collections
import optax


def learning_rate(train: ml_collections.ConfigDict, steps_per_epoch: int) -> optax.Schedule:
    """Step to rate. `constant`, or `cosine`: a linear rise over train.warmup_epochs, then half a cosine down to 0.

    Of a run of few steps at least one is left to the cosine, which optax asks for.
    """
    if train.schedule == "constant":
        return optax.constant_schedule(train.learning_rate)
    steps = train.epochs * steps_per_epoch
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=train.learning_rate,
        warmup_steps=min(round(train.warmup_epochs * steps_per_epoch), steps - 1),
        decay_steps=steps,
    )


def adam(train: ml_collections.ConfigDict, steps_per_epoch: int) -> optax.GradientTransformation:
    """Adam with its published constants (Kingma and Ba 2015: beta 0.9 and 0.999, epsilon 1e-8)."""
    inner = optax.adam(learning_rate(train, steps_per_epoch))

    def update(updates, state, params=None):
        # Optax raises a Python float to an integer array, which the strict promotion of our tests refuses.
        with jax.numpy_dtype_promotion("standard"):
            return inner.update(updates, state, params)

    return optax.GradientTransformation(inner.init, update)
