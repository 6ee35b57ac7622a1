"""Adam and the course of its rate, from config."""

from __future__ import annotations

import math

import jax
import ml_collections
import optax

BETAS, EPSILON = (0.9, 0.999), 1e-8  # as published (Kingma and Ba 2015)


def times(train: ml_collections.ConfigDict) -> float:
    """k: how many times as many images train.batch_size has as the batch that the recipe is meant for; 1 where there is no such."""
    return train.batch_size / train.recipe_batch_size if train.recipe_batch_size else 1.0


def learning_rate(train: ml_collections.ConfigDict, steps_per_epoch: int) -> optax.Schedule:
    """Step to rate. `constant`, or `cosine`: a linear rise over train.warmup_epochs, then half a cosine down to 0.

    The greatest is train.learning_rate times the root of `times`, for which see `adam`. Of a run of few steps at least one is left to the
    cosine, which optax asks for.
    """
    peak = train.learning_rate * math.sqrt(times(train))
    if train.schedule == "constant":
        return optax.constant_schedule(peak)
    steps = train.epochs * steps_per_epoch
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=peak,
        warmup_steps=min(round(train.warmup_epochs * steps_per_epoch), steps - 1),
        decay_steps=steps,
    )


def adam(train: ml_collections.ConfigDict, steps_per_epoch: int) -> optax.GradientTransformation:
    """Adam, for batches of `times` = k times as many images as train.recipe_batch_size.

    With k = 1 its constants are as published. Else the square-root rule (Malladi et al. 2022, "On the SDEs and Scaling Rules for
    Adaptive Gradient Algorithms"): rate and 1/epsilon times the root of k, 1 - beta times k for both betas. Where gradients are mostly noise, a
    step of the larger batch then does, on average and in spread, what k steps of the smaller one do: moments forget per image, not
    per step, and noise grows by the root of k over as many images.
    """
    k = times(train)
    first, second = (1 - k * (1 - beta) for beta in BETAS)
    inner = optax.adam(learning_rate(train, steps_per_epoch), b1=max(first, 0.0), b2=second, eps=EPSILON / math.sqrt(k))

    def update(updates, state, params=None):
        # Optax raises a Python float to an integer array, which the strict promotion of our tests refuses.
        with jax.numpy_dtype_promotion("standard"):
            return inner.update(updates, state, params)

    return optax.GradientTransformation(inner.init, update)
