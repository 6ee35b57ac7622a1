"""Losses: what the network is asked to do, one function of (logits, labels, mask) for each kind of target."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from cxr_jax.tables import Target

Labels = Mapping[str, ArrayLike]


def categorical_cross_entropy(
    logits: Float[ArrayLike, "b classes"], labels: Int[ArrayLike, " b"], mask: Bool[ArrayLike, " b"]
) -> Float[Array, ""]:
    """Mean over the images whose label is known (>= 0) and that are not padding; nats. 0 where there is none."""
    known = mask & (labels >= 0)
    each = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(known, labels, 0))
    return _mean(each, known)


def binary_cross_entropy(
    logits: Float[ArrayLike, "b findings"], labels: Float[ArrayLike, "b findings"], mask: Bool[ArrayLike, " b"]
) -> Float[Array, ""]:
    """Mean over all known labels (1 or 0; NaN is unknown) of all findings; nats. 0 where there is none."""
    known = mask[:, None] & ~jnp.isnan(labels)
    # The unknown are replaced before the loss, not after: the gradient of a NaN that is masked later is still NaN.
    each = optax.sigmoid_binary_cross_entropy(logits, jnp.where(known, labels, jnp.zeros_like(labels)))
    return _mean(each, known)


def _mean(each: Array, known: ArrayLike) -> Array:
    count = jnp.maximum(known.sum(), 1).astype(each.dtype)
    return jnp.where(known, each, jnp.zeros_like(each)).sum() / count


def total_loss(targets: Mapping[str, Target], logits: Mapping[str, Array], labels: Labels, mask: ArrayLike) -> Float[Array, ""]:
    """The sum over heads, each a mean of its own, so that a head with fewer known labels is not drowned."""
    losses = {"multiclass": categorical_cross_entropy, "multilabel": binary_cross_entropy}
    return sum(losses[target.kind](logits[name], labels[name], mask) for name, target in targets.items())


def probabilities(targets: Mapping[str, Target], logits: Mapping[str, Array]) -> dict[str, Array]:
    """Softmax over the classes of a multiclass head, a sigmoid for each finding of a multilabel one; float32 [b, classes]."""
    links = {"multiclass": jax.nn.softmax, "multilabel": jax.nn.sigmoid}
    return {name: links[target.kind](logits[name].astype(jnp.float32)) for name, target in targets.items()}
