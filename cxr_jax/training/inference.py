"""The frozen network over a split: every image exactly once, in the order of the cohort; scores, features, maps by depth."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from cxr_jax import mesh as meshes
from cxr_jax.data import augment, perturbations
from cxr_jax.models import densenet, pretrained
from cxr_jax.tables import Target
from cxr_jax.training import checkpoints, objectives


class Seen(NamedTuple):
    """What a network makes of b images.

    scores: by head, float32 [b, classes], probabilities. features: float32 [b, F], what the heads read. blocks: float32
    [b, channels] for the stem and each dense block, the mean of its maps.
    """

    scores: dict
    features: jax.Array
    blocks: tuple


@dataclasses.dataclass(frozen=True)
class Forward:
    """A jitted forward pass over a mesh: (params, stats, images uint8 [b, 256, 256, 1]) to `Seen`.

    Validation while training, `predict` and `extract` all run this one, so that it is compiled once. (The means by block,
    which only the last one wants, cost next to nothing.) plain: the same, not jitted, to be traced inside something else. graphdef, image_size, shown: as `of` took them.
    """

    targets: Mapping[str, Target]
    mesh: Mesh
    run: Callable
    plain: Callable
    graphdef: nnx.GraphDef
    image_size: int
    shown: Sequence = ()

    @classmethod
    def of(cls, graphdef: nnx.GraphDef, targets: Mapping[str, Target], image_size: int, mesh: Mesh, shown: Sequence = ()) -> "Forward":
        """shown: what of an image the network sees, as `data.perturbations.seen` takes it."""

        def run(params, stats, images):
            model = nnx.merge(graphdef, params, stats)
            out = model(augment.to_model_input(perturbations.seen(images, shown), image_size), train=False, pooled_blocks=True)
            features, blocks = jax.tree.map(lambda x: x.astype(jnp.float32), (out.features, out.blocks))
            return Seen(objectives.probabilities(targets, out.logits), features, blocks)

        copied, split = meshes.replicated(mesh), meshes.batch_sharded(mesh)
        jitted = jax.jit(run, in_shardings=(copied, copied, split), out_shardings=split, compiler_options=meshes.compiler_options(mesh))
        return cls(targets, mesh, jitted, run, graphdef, image_size, tuple(shown))


def restored_network(folder: os.PathLike | str, which: str, mesh: Mesh) -> tuple[densenet.DenseNet, checkpoints.ModelDescription]:
    """(the network of the `best` or `last` checkpoint below `folder`, on every device of the mesh; what it is). Raises UserError where there is none."""
    described = checkpoints.ModelDescription.read(folder)
    heads = {name: len(target.classes) for name, target in described.targets.items()}
    network = nnx.eval_shape(lambda: densenet.from_config(ml_collections.ConfigDict(described.model), heads, seed=0))
    _, params, stats = nnx.split(network, nnx.Param, nnx.BatchStat)
    copied = meshes.replicated(mesh)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=copied), {"params": params, "stats": stats})
    found = checkpoints.restore(folder, which, like)
    nnx.update(network, found["params"], found["stats"])
    return network, described


def head_kernels(params: nnx.State) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(float32 [features, classes], float32 [classes]) of each head among a network's parameters."""
    return {name: (np.asarray(head["kernel"][...]), np.asarray(head["bias"][...])) for name, head in params["heads"].items()}


def restore(folder: os.PathLike | str, which: str, mesh: Mesh) -> tuple[Forward, nnx.State, nnx.State]:
    """`restored_network` as its forward pass, parameters and running statistics."""
    network, described = restored_network(folder, which, mesh)
    graphdef, params, stats = nnx.split(network, nnx.Param, nnx.BatchStat)
    return Forward.of(graphdef, described.targets, described.image_size, mesh, described.shown), params, stats


def imported(path: os.PathLike | str, inputs: str, image_size: int, mesh: Mesh):
    """(Forward, parameters, running statistics, config.model, pixels a side) of a network whose weights come from torch.

    path, inputs: as `models.pretrained.read` takes them, inputs '' where the file tells. image_size: what it is shown, unless networks of its kind have a size of their
    own. Raises UserError for what is no such file.
    """
    found = pretrained.read(path, classifier=False, inputs=inputs or None)
    size = found.image_size or image_size
    graphdef, params, stats = nnx.split(found.network, nnx.Param, nnx.BatchStat)
    params, stats = meshes.replicate(mesh, (params, stats))
    return Forward.of(graphdef, {}, size, mesh), params, stats, ml_collections.ConfigDict(dict(found.model)), size


SETTLING_STEPS = 44  # the weight of the statistics that a network begins with is then (1 - .1)^44, about 1/100


def untrained(model, targets: Mapping[str, Target], image_size: int, seed: int, source, batch_size: int, mesh: Mesh, shown: Sequence = ()):
    """(Forward, parameters, running statistics) of a network that has learnt nothing, in the place of a restored one.

    model: a config's `model` section. targets: its heads. shown: what it sees of images. Parameters are those that training with `seed` would begin from.
    Running statistics are not left at 0 and 1, by which maps grow from layer to layer: they are those of the images of
    `source`, over SETTLING_STEPS batches in random order, so that what is compared with a trained network differs in what was
    learnt alone.
    """
    heads = {name: len(target.classes) for name, target in targets.items()}
    graphdef, params, stats = nnx.split(densenet.from_config(model, heads, seed), nnx.Param, nnx.BatchStat)

    def settle(params, stats, images, mask):
        network = nnx.merge(graphdef, params, stats, copy=True)
        network(augment.to_model_input(perturbations.seen(images, shown), image_size), train=True, mask=mask)
        return nnx.state(network, nnx.BatchStat)

    copied, split = meshes.replicated(mesh), meshes.batch_sharded(mesh)
    told = meshes.compiler_options(mesh)
    settle = jax.jit(settle, in_shardings=(copied, copied, split, split), out_shardings=copied, compiler_options=told)
    processes = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    params, stats = meshes.replicate(mesh, (params, stats))
    step = 0
    for epoch in range(-(-SETTLING_STEPS // source.steps_per_epoch(batch_size))):
        with contextlib.closing(source.batches(seed, epoch, 0, batch_size, **processes)) as batches:
            for batch in itertools.islice(batches, SETTLING_STEPS - step):
                sharded = meshes.shard_batch(mesh, {k: batch[k] for k in ("image", "mask")})
                stats = settle(params, stats, sharded["image"], sharded["mask"])
                step += 1
    return Forward.of(graphdef, targets, image_size, mesh, shown), params, stats


def walk(run: Callable, source, batch_size: int, mesh: Mesh, start: int = 0) -> Iterator[tuple[np.ndarray, Any]]:
    """(rows of the cohort int64 [b], what `run` makes of their images) for each batch of `source` from batch `start` on.

    run: from a sharded global batch of images to a tree of arrays [b, …]. source: gives `ordered(batch_size, process_index,
    process_count, start_step)`, batches of {image, mask, index}. Padding is dropped, so that every image comes once.
    """
    for batch in source.ordered(batch_size, jax.process_index(), jax.process_count(), start):
        sharded = meshes.shard_batch(mesh, {k: batch[k] for k in ("image", "mask", "index")})
        # Mask and index take the same way as the scores: over several processes each then has all rows, in one order.
        out, real, rows = meshes.to_host((run(sharded["image"]), sharded["mask"], sharded["index"]))
        yield rows[real].astype(np.int64), jax.tree.map(lambda x: x[real], out)


def predict(forward: Forward, params, stats, source, batch_size: int, advance: Callable[[int], None] = lambda images: None):
    """Scores and features of every image of `source`.

    source: as for `walk`, and says by `len` how many images these are. advance: told of the images done, for a bar.
    Returns (index int64 [n], {target: float32 [n, classes]}, features float32 [n, F]), rows in the order of `index`, which
    are rows of the cohort. Raises RuntimeError where a row came twice, or not at all.
    """
    indices, parts = [], []
    for rows, seen in walk(lambda images: forward.run(params, stats, images), source, batch_size, forward.mesh):
        indices.append(rows)
        parts.append((seen.scores, seen.features))
        advance(len(rows))
    index = np.concatenate(indices)
    order = np.argsort(index, kind="stable")
    if not len(np.unique(index)) == len(index) == len(source):
        raise RuntimeError(f"{len(source)} images to predict, {len(index)} came, {len(np.unique(index))} of them distinct")
    scores, features = jax.tree.map(lambda *several: np.concatenate(several)[order], *parts)
    return index[order], scores, features


HISTOGRAM_BINS = 64


def histogram(mesh: Mesh) -> Callable:
    """A jitted function of images, uint8 [b, h, w, 1]: the share of pixels in each of 64 equal bins of gray, float32 [b, 64]."""

    def run(images):
        bins = (images // (256 // HISTOGRAM_BINS)).reshape(len(images), -1)
        counts = jax.vmap(lambda pixels: jnp.bincount(pixels, length=HISTOGRAM_BINS))(bins)
        return counts.astype(jnp.float32) / bins.shape[1]

    split = meshes.batch_sharded(mesh)
    return jax.jit(run, in_shardings=split, out_shardings=split)
