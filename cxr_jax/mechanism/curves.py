"""What a network tells from images that lack some of what they show: scores of every test image at every strength of a series of perturbations.

What is scored is what is linear in the network's features: its own heads, and logistic regressions on its features that the stage `probe` fitted, for labels that it
was never told. So both are judged by one pass, and weights from elsewhere by probes alone. Nothing is fitted anew on changed images: a curve says what the network as it
is makes of them. What it could learn from them is another run's question (train.shown).

Under attack (`attacked`, FGSM) each target has images of its own: every gray level moved to where the loss of that target's labels grows, the mean of known findings being
one loss. An image whose label is unknown stays as it is.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cxr_jax import mesh as meshes
from cxr_jax.data import perturbations
from cxr_jax.tables import Target
from cxr_jax.training import inference, objectives

MATCHED_IMAGES = 1000  # of training, by whose gray levels histograms are matched


@dataclasses.dataclass(frozen=True)
class Readers:
    """What is linear in a network's features. linear: by target, (float32 [features, classes], float32 [classes]). heads: which of them are the network's own.
    watched: by target, the features of most weight in it, which are followed."""

    targets: Mapping[str, Target]
    linear: Mapping[str, tuple[np.ndarray, np.ndarray]]
    heads: tuple[str, ...]
    watched: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)

    @property
    def followed(self) -> tuple[int, ...]:
        """All that is watched, each once."""
        return tuple(dict.fromkeys(k for of in self.watched.values() for k in of))

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits of what they are."""
        digest = hashlib.sha256(repr({name: target.classes for name, target in self.targets.items()}).encode())
        for name in sorted(self.linear):
            for part in self.linear[name]:
                digest.update(np.ascontiguousarray(part, np.float32).tobytes())
        return digest.hexdigest()[:12]

    def logits(self, features: jax.Array, linear: Mapping) -> dict[str, jax.Array]:
        """float32 [b, classes] by target. linear: as `self.linear`, handed in so that it is no constant of a compiled program."""
        exact = jax.lax.Precision.HIGHEST
        return {name: jnp.matmul(features, kernel, precision=exact) + bias for name, (kernel, bias) in linear.items()}


def judge(
    network: tuple, readers: Readers, labels: Mapping[str, np.ndarray], source, name: str, strengths: Sequence, batch_size: int, reference: np.ndarray, seed: int,
    advance: Callable[[int], None] = lambda images: None,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Probabilities by target, float32 [strengths, n, classes], of a split's images changed by one perturbation, and of all but `attacked` the watched features,
    float32 [strengths, n, watched], under ''; rows in the order of the cohort.

    network: (Forward, parameters, running statistics). labels: of every row of the cohort, as `cohorts.labels` gives them; for `attacked` alone. source: as for `inference.walk`.
    name, strengths: as `perturbations.check` allows them; '' for images as they are, at one strength. reference: counts of gray levels, float [256], for `histogram_matched`. seed: of noise. advance: told of images done.
    Raises RuntimeError where a row came twice, or not at all.
    """
    forward, params, stats = network
    perturbation, mesh = perturbations.PERTURBATIONS[name] if name else perturbations.UNCHANGED, forward.mesh
    copied, split = meshes.replicated(mesh), meshes.batch_sharded(mesh)
    linear = meshes.replicate(mesh, {k: tuple(jnp.asarray(x) for x in of) for k, of in readers.linear.items()})
    key, reference = jax.random.key(seed), jnp.asarray(reference, jnp.float32)
    told = meshes.compiler_options(mesh)

    watched = np.array(readers.followed, np.int32)

    def logits(params, stats, linear, images):
        return readers.logits(forward.plain(params, stats, images).features, linear)

    def run(params, stats, linear, images, index, strength):
        images = perturbation.apply(images.astype(jnp.float32), strength, perturbations.Given(index, key, reference))
        features = forward.plain(params, stats, images).features
        return objectives.probabilities(readers.targets, readers.logits(features, linear)) | {"": features[:, watched]}

    def gradients(params, stats, linear, images, of):
        """Of each target's loss by the images, by target. They do not depend on the strength."""
        images = images.astype(jnp.float32)
        return {k: jax.grad(lambda x: _loss(readers.targets[k], logits(params, stats, {k: linear[k]}, x)[k], of[k]))(images) for k in linear}

    def attacked(params, stats, linear, images, gradient, strength):
        found = {}
        for k in linear:
            moved = perturbations.attacked(images.astype(jnp.float32), gradient[k], strength)
            found[k] = logits(params, stats, {k: linear[k]}, moved)[k]
        return objectives.probabilities(readers.targets, found)

    held = {"in_shardings": (copied, copied, copied, split, split, copied), "out_shardings": split, "compiler_options": told}
    static = {"static_argnums": 5} | {**held, "in_shardings": held["in_shardings"][:5]} if perturbation.static else held
    run, attacked = jax.jit(run, **static), jax.jit(attacked, **held)
    gradients = jax.jit(gradients, in_shardings=(copied, copied, copied, split, split), out_shardings=split, compiler_options=told)

    parts, indices = [], []
    for batch in source.ordered(batch_size, jax.process_index(), jax.process_count()):
        sharded = meshes.shard_batch(mesh, {k: batch[k] for k in ("image", "mask", "index")})
        images = sharded["image"]
        if perturbation.apply is None:
            mine = meshes.shard_batch(mesh, {k: labels[k][np.maximum(batch["index"], 0)] for k in readers.linear})
            gradient = gradients(params, stats, linear, images, mine)
            found = [attacked(params, stats, linear, images, gradient, jnp.float32(strength)) for strength in strengths]
        else:
            found = [run(params, stats, linear, images, sharded["index"], strength if perturbation.static else jnp.asarray(strength, jnp.float32)) for strength in strengths]
        found, real, rows = meshes.to_host((found, sharded["mask"], sharded["index"]))
        parts.append({k: np.stack([one[k] for one in found])[:, real] for k in found[0]})
        indices.append(rows[real])
        advance(int(real.sum()))
    index = np.concatenate(indices)
    if not np.array_equal(np.sort(index), np.sort(source.index)):
        raise RuntimeError(f"{len(source)} images to judge, {len(index)} came, {len(np.unique(index))} of them distinct")
    order = np.argsort(index, kind="stable")
    return {k: np.concatenate([part[k] for part in parts], axis=1)[:, order] for k in parts[0]}


def _loss(target: Target, logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The sum over images of minus the logarithm of the chance that is given to what is so: of the class, or the mean of the known findings'."""
    if target.kind == "multiclass":
        chance = jax.nn.log_softmax(logits)
        of = jnp.take_along_axis(chance, jnp.maximum(labels, 0)[:, None], axis=1)[:, 0]
        return -jnp.where(labels >= 0, of, jnp.zeros_like(of)).sum()
    known = ~jnp.isnan(labels)
    truth = jnp.where(known, labels, jnp.zeros_like(labels))
    each = -(truth * jax.nn.log_sigmoid(logits) + (1 - truth) * jax.nn.log_sigmoid(-logits))
    return (jnp.where(known, each, jnp.zeros_like(each)).sum(axis=1) / jnp.maximum(known.sum(axis=1), 1).astype(jnp.float32)).sum()


def gray_levels(source, seed: int) -> np.ndarray:
    """Counts of the gray levels 0 … 255 in up to MATCHED_IMAGES images of a source, drawn at random: int64 [256]."""
    rows = np.sort(np.random.default_rng(seed).permutation(len(source))[:MATCHED_IMAGES])
    counts = np.zeros(256, np.int64)
    for part in np.array_split(rows, -(-len(rows) // 256)):
        (images,) = source.read([part])
        counts += np.bincount(images.ravel(), minlength=256)
    return counts
