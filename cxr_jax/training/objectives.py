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
    logits: Float[ArrayLike, "b classes"],
    labels: Int[ArrayLike, " b"],
    mask: Bool[ArrayLike, " b"],
    count: Float[ArrayLike, ""] | None = None,
) -> Float[Array, ""]:
    """Mean over the images whose label is known (>= 0) and that are not padding; nats. 0 where there is none.

    count: what the sum is divided by where these images are a part of a batch: how many the whole of it has.
    """
    known = _known_class(labels, mask)
    each = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(known, labels, 0))
    return _mean(each, known, count)


def binary_cross_entropy(
    logits: Float[ArrayLike, "b findings"],
    labels: Float[ArrayLike, "b findings"],
    mask: Bool[ArrayLike, " b"],
    count: Float[ArrayLike, ""] | None = None,
) -> Float[Array, ""]:
    """Mean over all known labels (1 or 0; NaN is unknown) of all findings; nats. 0 where there is none. count: as above."""
    known = _known_findings(labels, mask)
    # The unknown are replaced before the loss, not after: the gradient of a NaN that is masked later is still NaN.
    each = optax.sigmoid_binary_cross_entropy(logits, jnp.where(known, labels, jnp.zeros_like(labels)))
    return _mean(each, known, count)


def _known_class(labels: ArrayLike, mask: ArrayLike) -> ArrayLike:
    return mask & (labels >= 0)


def _known_findings(labels: ArrayLike, mask: ArrayLike) -> ArrayLike:
    return mask[:, None] & ~jnp.isnan(labels)


def _mean(each: Array, known: ArrayLike, count: ArrayLike | None) -> Array:
    count = jnp.maximum(known.sum(), 1).astype(each.dtype) if count is None else count
    return jnp.where(known, each, jnp.zeros_like(each)).sum() / count


_LOSSES = {"multiclass": categorical_cross_entropy, "multilabel": binary_cross_entropy}
_KNOWN = {"multiclass": _known_class, "multilabel": _known_findings}


def total_loss(
    targets: Mapping[str, Target], logits: Mapping[str, Array], labels: Labels, mask: ArrayLike, counts: Mapping[str, Array] | None = None
) -> Float[Array, ""]:
    """The sum over heads, each a mean of its own, so that a head with fewer known labels is not drowned.

    counts: by head, the whole batch's `known_labels`, where these images are a part of it; the losses of its parts then
        add up to its loss.
    """
    return sum(
        _LOSSES[target.kind](logits[name], labels[name], mask, None if counts is None else counts[name])
        for name, target in targets.items()
    )


def known_labels(targets: Mapping[str, Target], labels: Labels, mask: Bool[ArrayLike, " b"]) -> dict[str, Array]:
    """How many labels each head's loss is a mean of, float32; not yet at least 1."""
    return {name: _KNOWN[target.kind](labels[name], mask).sum().astype(jnp.float32) for name, target in targets.items()}


def probabilities(targets: Mapping[str, Target], logits: Mapping[str, Array]) -> dict[str, Array]:
    """Softmax over the classes of a multiclass head, a sigmoid for each finding of a multilabel one; float32 [b, classes]."""
    links = {"multiclass": jax.nn.softmax, "multilabel": jax.nn.sigmoid}
    return {name: links[target.kind](logits[name].astype(jnp.float32)) for name, target in targets.items()}
