"""The frozen network over a split: every image exactly once, in the order of the cohort."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from cxr_jax import mesh as meshes
from cxr_jax.data import augment
from cxr_jax.models import densenet
from cxr_jax.tables import Target
from cxr_jax.training import checkpoints, objectives


@dataclasses.dataclass(frozen=True)
class Forward:
    """A jitted forward pass over a mesh: images uint8 [b, 256, 256, 1] to scores and features.

    Made once and used for validation while training and for `predict`, so that it is compiled once.
    """

    targets: Mapping[str, Target]
    mesh: Mesh
    run: Callable

    @classmethod
    def of(cls, graphdef: nnx.GraphDef, targets: Mapping[str, Target], image_size: int, mesh: Mesh) -> "Forward":
        def run(params, stats, images):
            model = nnx.merge(graphdef, params, stats)
            out = model(augment.to_model_input(images, image_size), train=False)
            return objectives.probabilities(targets, out.logits), out.features.astype(jnp.float32)

        copied, split = meshes.replicated(mesh), meshes.batch_sharded(mesh)
        return cls(targets, mesh, jax.jit(run, in_shardings=(copied, copied, split), out_shardings=split))


def restore(folder: os.PathLike | str, which: str, mesh: Mesh) -> tuple[Forward, nnx.State, nnx.State]:
    """The network of the `best` or `last` checkpoint below `folder`: its forward pass, parameters and running statistics.

    Raises UserError where there is none.
    """
    described = checkpoints.ModelDescription.read(folder)
    heads = {name: len(target.classes) for name, target in described.targets.items()}
    model = nnx.eval_shape(lambda: densenet.from_config(ml_collections.ConfigDict(described.model), heads, seed=0))
    graphdef, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    copied = meshes.replicated(mesh)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=copied), {"params": params, "stats": stats})
    found = checkpoints.restore(folder, which, like)
    return Forward.of(graphdef, described.targets, described.image_size, mesh), found["params"], found["stats"]


def predict(forward: Forward, params, stats, source, batch_size: int, advance: Callable[[int], None] = lambda images: None):
    """Scores and features of every image of `source`.

    source: gives `ordered(batch_size, process_index, process_count)`, batches of {image, mask, index}, and by `len` how many
    images these are. advance: told of the images done, for a bar.
    Returns (index int64 [n], {target: float32 [n, classes]}, features float32 [n, F]), rows in the order of `index`, which
    are rows of the cohort. Raises RuntimeError where a row came twice, or not at all.
    """
    indices, scores, features = [], {name: [] for name in forward.targets}, []
    for batch in source.ordered(batch_size, jax.process_index(), jax.process_count()):
        sharded = meshes.shard_batch(forward.mesh, {k: batch[k] for k in ("image", "mask", "index")})
        out = forward.run(params, stats, sharded["image"])
        # Mask and index take the same way as the scores: over several processes each then has all rows, in one order.
        (batch_scores, batch_features), real, rows = meshes.to_host((out, sharded["mask"], sharded["index"]))
        indices.append(rows[real])
        features.append(batch_features[real])
        for name in scores:
            scores[name].append(batch_scores[name][real])
        advance(int(real.sum()))
    index = np.concatenate(indices).astype(np.int64)
    order = np.argsort(index, kind="stable")
    if not len(np.unique(index)) == len(index) == len(source):
        raise RuntimeError(f"{len(source)} images to predict, {len(index)} came, {len(np.unique(index))} of them distinct")
    return index[order], {name: np.concatenate(parts)[order] for name, parts in scores.items()}, np.concatenate(features)[order]
