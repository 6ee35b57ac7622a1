"""Maps of some test images for every logit that a network is read for: what groups' maps look like on average, whether they are the network's, and whether they are faithful.

One image a patient, so that patients count alike without more ado. Of each image, logit and way of making a map (`saliency`):

    mean             over the patients of a group, of maps in the common frame as shares of all that speaks for or against
    randomised       how alike the map is to that of the same network with its weights mixed up (Spearman's rank correlation of absolute values)
    shuffled         the same, of a network that was trained on labels dealt anew among images; NaN where there is none
    noise            the same, of the network as it is, on the image with noise that no eye would see: how alike a map stays where nothing has changed
    area             of deletion: how much sooner the logit falls along the map than in a random order
    incompleteness   of integrated gradients: what they add up to less what they should, beside that
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cxr_jax import experiment
from cxr_jax import mesh as meshes
from cxr_jax.data import perturbations
from cxr_jax.mechanism import saliency
from cxr_jax.mechanism.curves import Readers

METHODS = experiment.MAPS
SIDE = 64  # pixels of a stored mean
NOISE = 2.0  # gray levels, standard deviation


class Logit(NamedTuple):
    """What is asked: a class of a target. weights: float32 [features], bias: float; of classes that exclude one another less the mean of the others'."""

    target: str
    name: str
    weights: np.ndarray
    bias: float


def logits(readers: Readers, findings: Sequence[str]) -> list[Logit]:
    """Of every class of a target whose classes exclude one another (of two the first alone: the other is its mirror), and of the findings that are asked for."""
    found = []
    for name, target in readers.targets.items():
        kernel, bias = readers.linear[name]
        for c, of in enumerate(target.classes):
            if target.kind == "multilabel":
                if of in findings:
                    found.append(Logit(name, of, kernel[:, c], float(bias[c])))
            elif len(target.classes) > 2 or c == 0:
                others = [k for k in range(len(target.classes)) if k != c]
                found.append(Logit(name, of, kernel[:, c] - kernel[:, others].mean(axis=1), float(bias[c] - bias[others].mean())))
    return found


class Looked(NamedTuple):
    """What one way shows of one logit. mean, error: float64 [groups, SIDE, SIDE]; patients: int [groups]. The rest float32 [n] of the images, curves [3, n, steps + 1] (along the
    map, against it, at random); incompleteness float32 [2, n], of integrated gradients alone."""

    mean: np.ndarray
    error: np.ndarray
    patients: np.ndarray
    randomised: np.ndarray
    shuffled: np.ndarray
    noise: np.ndarray
    area: np.ndarray
    curves: np.ndarray
    incompleteness: np.ndarray | None


def look(
    network: tuple, asked: Sequence[Logit], images: np.ndarray, group: np.ndarray, groups: Sequence[str], settings, seed: int, trained_anew: tuple | None = None,
    others: Mapping[tuple[str, str], tuple[np.ndarray, float]] = {}, advance: Callable[[int], None] = lambda images: None,
) -> tuple[dict[tuple[str, str, str], Looked], np.ndarray]:  # fmt: skip
    """(by target, class and method what is seen; the mean of each group's images in the common frame, float64 [groups, SIDE, SIDE]).

    network: (Forward, parameters, running statistics). images: uint8 [n, h, w, 1], one a patient. group: int [n], -1 in none of `groups`. settings: the config's `mechanism.maps`
    section. trained_anew: (parameters, running statistics) of a network trained on shuffled labels, others: its logits' weights and biases. advance: told of images done.

    Each process of a launch does all of it, on devices of its own.
    """
    forward, params, stats = network
    params, stats = meshes.to_host((params, stats))
    mesh = meshes.data_mesh(jax.local_devices())
    b = -(-settings.batch_size // mesh.size) * mesh.size
    key = jax.random.key(seed)
    params, stats = meshes.replicate(mesh, (params, stats))
    mixed = saliency.randomised(params, key)
    anew = None if trained_anew is None else meshes.replicate(mesh, meshes.to_host(trained_anew))
    copied, split = meshes.replicated(mesh), meshes.batch_sharded(mesh)
    jitted = functools.partial(jax.jit, compiler_options=meshes.compiler_options(mesh))

    def made(method, params, stats, weights, bias, images):
        network = saliency.of_reading(forward.graphdef, params, stats, forward.image_size, weights, bias, shown=forward.shown)
        if method == "grad_cam":
            return network, saliency.grad_cam(network, images)
        if method == "occlusion":
            return network, saliency.occlusion(network.logits, images, settings.box, settings.stride)
        return network, saliency.integrated_gradients(network.logits, images, settings.steps)

    @functools.cache
    def first(method):
        def run(params, stats, weights, bias, images, index):
            network, maps = made(method, params, stats, weights, bias, images)
            curves = saliency.deletion(network.logits, images, maps, key, index, cell=settings.cell, steps=settings.shares)
            apart = saliency.incompleteness(network.logits, images, maps) if method == "integrated_gradients" else ()
            _, moved = saliency.aligned(images, maps)
            return _small(maps), _small(saliency.shares(moved)) * (images.shape[1] / SIDE) ** 2, jnp.stack(curves, axis=1), saliency.faithful(curves), apart

        return jitted(run, in_shardings=(copied,) * 4 + (split,) * 2, out_shardings=split)

    @functools.cache
    def again(method):
        return jitted(lambda *given: _small(made(method, *given)[1]), in_shardings=(copied,) * 4 + (split,), out_shardings=split)

    alike = jax.jit(saliency.similarity)
    frame = jitted(lambda images: _small(saliency.aligned(images, images[..., 0])[0][..., 0]), in_shardings=split, out_shardings=split)
    noisy = jitted(lambda images, index: perturbations.noisy(images, key, index, NOISE), in_shardings=split, out_shardings=split)
    every = np.arange(len(images))
    rng = np.random.default_rng(seed)
    shuffled_weights = {one[:2]: rng.permutation(one.weights) for one in asked}
    means = {(*one[:2], method): saliency.MapMeans(groups, group, every) for one in asked for method in settings.methods}
    shown, kept = saliency.MapMeans(groups, group, every), {place: [] for place in means}
    for start in range(0, len(images), b):
        at = every[start : start + b]
        rows = np.resize(at, b)  # filled up with some that came already, which are dropped
        batch = images[rows].astype(np.float32)
        shown.add(at, np.asarray(frame(batch))[: len(at)])
        noised = noisy(batch, rows)
        for one in asked:
            weights, bias = jnp.asarray(one.weights, jnp.float32), jnp.float32(one.bias)
            for method in settings.methods:
                maps, own, curves, area, apart = first(method)(params, stats, weights, bias, batch, rows)
                near = alike(maps, again(method)(params, stats, weights, bias, noised))
                random = alike(maps, again(method)(mixed, stats, jnp.asarray(shuffled_weights[one[:2]], jnp.float32), bias, batch))
                anew_of = others.get(one[:2]) if anew else None
                labels = np.full(b, np.nan, np.float32)
                if anew_of is not None:
                    labels = alike(maps, again(method)(*anew, jnp.asarray(anew_of[0], jnp.float32), jnp.float32(anew_of[1]), batch))
                place = (*one[:2], method)
                means[place].add(at, np.asarray(own)[: len(at)])
                kept[place].append([np.asarray(x)[: len(at)] for x in (random, labels, near, area, curves, *apart)])
        advance(len(at))
    found = {}
    for place, parts in kept.items():
        random, labels, near, area, curves, *apart = (np.concatenate(several) for several in zip(*parts, strict=True))
        of = _by_group(means[place], groups)
        found[place] = Looked(*of, random, labels, near, area, np.moveaxis(curves, 1, 0), np.stack(apart) if apart else None)
    return found, _by_group(shown, groups)[0]


def _small(maps: jax.Array) -> jax.Array:
    b, h, w = maps.shape
    return maps.reshape(b, SIDE, h // SIDE, SIDE, w // SIDE).mean((2, 4))


def _by_group(means: saliency.MapMeans, groups: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    of = means.result()
    nothing = np.full((SIDE, SIDE), np.nan)
    mean, error = (np.stack([getattr(of[g], part) if g in of else nothing for g in groups]) for part in ("mean", "error"))
    return mean, error, np.array([of[g].patients if g in of else 0 for g in groups])
