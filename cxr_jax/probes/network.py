"""A small neural network on frozen features: what a nonlinear reader could find that logistic regression cannot.

One hidden layer, h = max(0, W₁ z + b₁), and a softmax of W₂ h + b₂, on features z standardised by the training rows.
It minimises cross-entropy by Adam in minibatches, with weight decay decoupled from the gradient (Loshchilov and Hutter
2019) and on W₁ and W₂ alone. After each epoch the loss on the validation rows is taken; training stops when it has
not fallen for `patience` epochs, and the parameters of the best epoch are kept.

The whole training is one compiled program. Rows without weight take no place in a minibatch: their number is a value
and not a shape, so one program serves any subset of rows, and a row left out by weight gives the network that one gets
without that row.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from cxr_jax.tables import UserError, not_finite

SCORED_ROWS = 4096  # at a time


@dataclasses.dataclass(frozen=True)
class Network:
    """A trained network, float32.

    centre, scale: [d], of the training rows; a column constant there has scale 0 and is not read.
    parameters: `hidden` [d, H], `hidden_bias` [H], `output` [H, K], `output_bias` [K].
    present: bool [K], whether a class had weight in training. The scores of one that had none are NaN.
    validation_loss: float32 [epochs run], mean cross-entropy in nats.
    best_epoch: position in it of the parameters kept.
    """

    centre: np.ndarray
    scale: np.ndarray
    parameters: dict[str, np.ndarray]
    present: np.ndarray
    validation_loss: np.ndarray
    best_epoch: int

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Probabilities, float32 [m, K], of features, float32 [m, d].

        Raises UserError for a feature that is NaN or infinite, ValueError for another number of columns.
        """
        features = _checked(features, len(self.centre))
        chunk = min(SCORED_ROWS, len(features))
        scores = np.empty((len(features), len(self.present)), np.float32)
        for first in range(0, len(features), max(chunk, 1)):
            block = features[first : first + chunk]
            filled = np.pad(block, ((0, chunk - len(block)), (0, 0)))
            probability = jax.nn.softmax(_logits(self.parameters, filled, self.centre, self.scale, self.present))
            scores[first : first + chunk] = np.asarray(probability)[: len(block)]
        return np.where(self.present, scores, np.nan)


def fit(
    features: np.ndarray,
    labels: np.ndarray,
    validation_features: np.ndarray,
    validation_labels: np.ndarray,
    classes: int,
    *,
    hidden: int,
    learning_rate: float,
    weight_decay: float,
    batch_size: int,
    epochs: int,
    patience: int,
    seed: int,
    weights: np.ndarray | None = None,
    validation_weights: np.ndarray | None = None,
) -> Network:
    """Trains one network. The same arguments give the same network on one kind of machine.

    features, validation_features: float32 [n, d] and [v, d]. labels, validation_labels: int, 0 … classes - 1.
    hidden: units. learning_rate: of Adam. weight_decay: times the rate, what a step takes off W₁ and W₂, relative.
    batch_size: rows of one step; the last of an epoch has what is left. epochs: at most. patience: epochs without a
    lower validation loss after which it stops.
    weights [n], validation_weights [v]: float, how often each row counts; None for ones.
    Equal shapes, classes, hidden, batch_size and epochs share a compiled program.

    Raises UserError for a feature that is NaN or infinite. Raises ValueError for shapes that do not agree, labels out of
    range, negative or NaN weights, no weight in training or validation, a validation class that training lacks.
    """
    features, validation_features = _checked(features), _checked(validation_features)
    if features.shape[1] != validation_features.shape[1]:
        raise ValueError(f"{features.shape[1]} columns for training, {validation_features.shape[1]} for validation")
    labels, weights = _checked_rows(labels, weights, len(features), classes, "training")
    validation = _checked_rows(validation_labels, validation_weights, len(validation_features), classes, "validation")
    present = np.bincount(labels, weights, classes) > 0
    if not present[validation[0][validation[1] > 0]].all():
        raise ValueError("validation has a class that training lacks: its loss would be infinite")
    for name, value in {"hidden": hidden, "batch_size": batch_size, "epochs": epochs, "patience": patience}.items():
        if value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")
    centre, scale = _moments(features, weights)
    parameters, losses, best = jax.device_get(
        _train(
            (features, labels.astype(np.int32), weights.astype(np.float32)),
            (validation_features, validation[0].astype(np.int32), validation[1].astype(np.float32)),
            centre, scale, present, jax.random.key(seed),
            *(np.float32(x) for x in (learning_rate, weight_decay)), np.int32(patience),
            hidden=hidden, batch_size=min(batch_size, len(features)), epochs=epochs,
        )
    )
    return Network(centre, scale, parameters, present, losses[~np.isnan(losses)], int(best))


def _logits(parameters, x, centre, scale, present):
    product = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)
    hidden = jax.nn.relu(product((x - centre) * scale, parameters["hidden"]) + parameters["hidden_bias"])
    return jnp.where(present, product(hidden, parameters["output"]) + parameters["output_bias"], -jnp.inf)


def _loss(parameters, x, label, weight, centre, scale, present):
    """Weighted mean cross-entropy."""
    logits = _logits(parameters, x, centre, scale, present)
    own = jnp.take_along_axis(logits, label[:, None], axis=1)[:, 0]
    # A row without weight may be of an absent class, whose loss is infinite, and 0 × ∞ is NaN.
    losses = jnp.where(weight > 0, jax.nn.logsumexp(logits, axis=1) - own, 0)
    return jnp.sum(weight * losses) / jnp.sum(weight)


@functools.partial(jax.jit, static_argnames=("hidden", "batch_size", "epochs"))
def _train(
    training, validation, centre, scale, present, key, learning_rate, weight_decay, patience,
    *, hidden, batch_size, epochs,
):
    x, label, weight = training
    d, classes = x.shape[1], present.shape[0]
    first, second, shuffling = jax.random.split(key, 3)
    he = jax.nn.initializers.he_normal()
    parameters = {
        "hidden": he(first, (d, hidden)),
        "hidden_bias": jnp.zeros(hidden),
        "output": he(second, (hidden, classes)),
        "output_bias": jnp.zeros(classes),
    }
    decayed = {name: not name.endswith("bias") for name in parameters}
    optimizer = optax.adamw(learning_rate, weight_decay=weight_decay, mask=decayed)
    used = weight > 0
    rows = jnp.sum(used)
    place = jnp.cumsum(used) - 1  # of a row among those with weight
    check = functools.partial(_loss, centre=centre, scale=scale, present=present)

    def epoch(state):
        parameters, moments, best_parameters, lowest, best, losses, i = state
        # One draw for each place among the rows with weight, so that the others have no part in the order.
        draws = jax.random.bits(jax.random.fold_in(shuffling, i), (len(x),), jnp.uint32) >> 1
        order = jnp.argsort(jnp.where(used, draws[place], jnp.uint32(0xFFFFFFFF)))
        order = jnp.pad(order, (0, batch_size))

        def step(j, state):
            parameters, moments = state
            at = lax.dynamic_slice_in_dim(order, j * batch_size, batch_size)
            taken = jnp.where(j * batch_size + jnp.arange(batch_size) < rows, weight[at], 0)
            gradient = jax.grad(check)(parameters, x[at], label[at], taken)
            with jax.numpy_dtype_promotion("standard"):  # optax raises Python floats to integer arrays
                updates, moments = optimizer.update(gradient, moments, parameters)
            return optax.apply_updates(parameters, updates), moments

        parameters, moments = lax.fori_loop(0, (rows + batch_size - 1) // batch_size, step, (parameters, moments))
        loss = check(parameters, *validation)
        better = loss < lowest
        best_parameters = jax.tree.map(lambda new, old: jnp.where(better, new, old), parameters, best_parameters)
        lowest, best = jnp.where(better, loss, lowest), jnp.where(better, i, best)
        return parameters, moments, best_parameters, lowest, best, losses.at[i].set(loss), i + 1

    state = parameters, optimizer.init(parameters), parameters, jnp.float32(jnp.inf), jnp.int32(0)
    state = (*state, jnp.full(epochs, jnp.nan), jnp.int32(0))
    state = lax.while_loop(lambda s: (s[-1] < epochs) & (s[-1] - s[4] <= patience), epoch, state)
    return state[2], state[5], state[4]


def _moments(features: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean and 1 / deviation, float32 [d]; 0 for a column that is constant in float32's resolution."""
    total = weights.sum()
    mean, square = np.zeros((2, features.shape[1]))
    for first in range(0, len(features), SCORED_ROWS):
        mean += weights[first : first + SCORED_ROWS] @ features[first : first + SCORED_ROWS].astype(np.float64) / total
    for first in range(0, len(features), SCORED_ROWS):
        off = features[first : first + SCORED_ROWS].astype(np.float64) - mean
        square += weights[first : first + SCORED_ROWS] @ (off * off) / total
    deviation = np.sqrt(square)
    constant = deviation <= 1e-7 * np.abs(mean)
    return mean.astype(np.float32), np.where(constant, 0, 1 / np.where(constant, 1, deviation)).astype(np.float32)


def _checked(features: np.ndarray, columns: int | None = None) -> np.ndarray:
    features = np.asarray(features, np.float32)
    if features.ndim != 2 or not features.shape[1] or columns not in (None, features.shape[1]):
        raise ValueError(f"features {features.shape}: not [n, {columns or 'd'}]")
    if not np.isfinite(features).all():
        raise not_finite(features, "features")
    return features


def _checked_rows(labels, weights, n: int, classes: int, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and weights in float64."""
    labels = np.asarray(labels)
    weights = np.ones(n) if weights is None else np.asarray(weights, np.float64)
    if labels.shape != (n,) or weights.shape != (n,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{split}: {labels.dtype} labels {labels.shape} and weights {weights.shape} for {n} rows")
    if n and (labels.min() < 0 or labels.max() >= classes):
        raise ValueError(f"{split}: labels from {labels.min()} to {labels.max()} for {classes} classes")
    if not (np.isfinite(weights) & (weights >= 0)).all() or not weights.sum() > 0:
        raise ValueError(f"{split}: weights must be 0 or more, and some of them above 0")
    return labels, weights
