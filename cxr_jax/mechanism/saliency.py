"""Where a network looks: maps of what a logit leans on, their means over patients in a common frame, and whether they may be believed.

A map is made from a function of images as stored, float32 [b, h, w, 1] of gray levels in 0 … 255, to logits, float32 [b], which judges each image by itself
(a network in inference). Three ways, which err differently:

    Grad-CAM              ReLU(Σ_k α_k A_k), α_k the spatial mean of ∂y/∂A_k, A the last maps              Selvaraju et al. 2017, ICCV
    integrated gradients  (x - x₀) ∫₀¹ ∂y/∂x at x₀ + t (x - x₀) dt; its sum is y(x) - y(x₀)                Sundararajan et al. 2017, ICML
    occlusion             y(x) - y(x with a box taken out), the mean over the boxes that cover a pixel     Zeiler and Fergus 2014, ECCV

**What stands where something was taken out.** All that compare with an image that shows less take it as `baseline`, anything that broadcasts to [b, h, w, 1].
By default it is flat, at each image's own mean gray level: what is then taken away is structure, while the exposure stays, so that a map says nothing of mere
brightness. A flat baseline is blind where the image has its gray level; black would be blind to the air around the body, and to the lungs nearly so.

**Whether a map may be believed.** A map that stays as it was when the network's weights are mixed up (`randomised`), or when it was trained on labels at
random, shows the image and not the network (Adebayo et al. 2018, NeurIPS); `similarity` tells how far it stays. A map is faithful where taking out what it
ranks first moves the logit more than taking out as much at random (Samek et al. 2017, IEEE TNNLS 28:2660; Petsiuk et al. 2018, BMVC): `deletion`, `faithful`.

The networks' functions are traced: make a `Network` of traced parameters inside what is jitted, and those are its arguments and no constants of the program.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from cxr_jax.data import augment, perturbations

Images = Float[Array, "b h w 1"]
Maps = Float[Array, "b h w"]
Logits = Callable[[Images], Float[Array, " b"]]

# Gray levels between which a pixel comes to count as body: a twentieth of the range, a seventh.
_AIR, _BODY = 13.0, 38.0
# The body's standard deviation by axis in the common frame, a share of the side. A body that fills the image has 1/√12 = .289.
SPREAD = 0.28


class Network(NamedTuple):
    """A logit in two steps. maps: images to the last maps, float32 [b, m, n, F]. read: these to logits, float32 [b]."""

    maps: Callable
    read: Callable

    def logits(self, images: Images) -> Float[Array, " b"]:
        return self.read(self.maps(images))


def of_reading(
    graphdef: nnx.GraphDef, params, stats, image_size: int, weights: Float[Array, " F"], bias: ArrayLike, *, shown: Sequence = ()
) -> Network:
    """A linear reading of a DenseNet's pooled features as they are: where a probe standardises them, that is to be in its weights and bias.

    The last maps are those after the last normalisation and its ReLU, whose means the features are. In bfloat16 gradients are coarse; completeness asks for a
    float32 network. shown: what of an image the network sees, as `inference.Forward.of` takes it; maps are of the image before.
    """

    def maps(images):
        network = nnx.merge(graphdef, params, stats)
        return network(augment.to_model_input(perturbations.seen(images, shown), image_size), train=False, last_maps=True).maps.astype(jnp.float32)

    return Network(maps, lambda maps: maps.mean((1, 2)) @ weights + bias)


def of_head(
    graphdef: nnx.GraphDef, params, stats, image_size: int, target: str, number: int, against: Sequence[int] = (), *, shown: Sequence = ()
) -> Network:
    """The logit of class `number` of a head; less the mean logit of the classes `against`. The rest as for `of_reading`.

    Classes that exclude one another are told apart by differences of logits; what all of them have in common no loss ever moves, so that one alone shows noise
    as well. For those, `against` are the others; for a finding of its own, none.
    """
    head = nnx.merge(graphdef, params, stats).heads[target]
    kernel, bias = head.kernel[...], head.bias[...]
    weights, level = kernel[:, number], bias[number]
    if against:
        others = jnp.asarray(tuple(against))
        weights, level = weights - kernel[:, others].mean(1), level - bias[others].mean()
    return of_reading(graphdef, params, stats, image_size, weights, level, shown=shown)


# ------------------------------------------------------------------------------------------------------------------ maps


def flat(images: Images) -> Images:
    """Each image's mean gray level, [b, 1, 1, 1]."""
    return images.mean((1, 2, 3), keepdims=True)


def grad_cam(network: Network, images: Images) -> Maps:
    """float32 [b, h, w], at least 0, enlarged bilinearly from the last maps.

    With a linear reading w of averages over m × n places, α_k = w_k / mn: the map is ReLU(Σ_k w_k A_k) / mn, the class activation map of Zhou et al. (2016,
    CVPR). Before the ReLU it adds up to the logit less its bias; so a map may be 0 all over, where nothing speaks for the class.
    """
    maps = network.maps(images)
    alpha = jax.grad(lambda maps: network.read(maps).sum())(maps).mean((1, 2), keepdims=True)
    return jax.image.resize(jax.nn.relu((alpha * maps).sum(-1)), images.shape[:3], "linear")


def integrated_gradients(logits: Logits, images: Images, steps: int, baseline: ArrayLike | None = None) -> Maps:
    """Signed, float32 [b, h, w], in logits; adds up to logits(images) - logits(baseline) but for the error of the midpoint rule at `steps` points, static.

    The gradient of a network of ReLUs jumps on its way, so that a rule of higher order gains nothing, and a deep one may want hundreds of steps: tell
    `incompleteness` beside the map.
    """
    start = jnp.broadcast_to(flat(images) if baseline is None else baseline, images.shape)
    gradient = jax.grad(lambda images: logits(images).sum())

    def further(total, t):
        return total + gradient(start + t * (images - start)), None

    total, _ = jax.lax.scan(further, jnp.zeros_like(images), (jnp.arange(steps, dtype=jnp.float32) + 0.5) / steps)
    return ((images - start) * total / steps)[..., 0]


def incompleteness(logits: Logits, images: Images, maps: Maps, baseline: ArrayLike | None = None) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """(what integrated gradients add up to less what they should, what they should: logits(images) - logits(baseline)), float32 [b] each."""
    start = jnp.broadcast_to(flat(images) if baseline is None else baseline, images.shape)
    difference = logits(images) - logits(start)
    return maps.sum((1, 2)) - difference, difference


def occlusion(logits: Logits, images: Images, size: int, stride: int, baseline: ArrayLike | None = None) -> Maps:
    """Signed, float32 [b, h, w], in logits: above 0 where taking the pixel's surroundings out lowers the logit.

    size, stride: static, of the boxes, in pixels, at most the image's sides, stride at most size. The last box of a row or column is flush with the edge, so
    that each pixel is covered.
    """
    height, width = images.shape[1:3]
    if not 0 < stride <= size <= min(height, width):
        raise ValueError(f"boxes of {size} pixels at a stride of {stride} do not cover images of {height}x{width}")
    instead = flat(images) if baseline is None else baseline
    down, across = (np.append(np.arange(0, n - size, stride), n - size) for n in (height, width))
    corners = np.stack(np.meshgrid(down, across, indexing="ij"), -1).reshape(-1, 2)
    whole = logits(images)

    def further(kept, corner):
        drops, covered = kept
        rows, columns = (jnp.arange(n) - start for n, start in zip((height, width), corner))
        box = ((rows >= 0) & (rows < size))[:, None] & ((columns >= 0) & (columns < size))
        drop = whole - logits(jnp.where(box[..., None], instead, images))
        inside = box.astype(jnp.float32)
        return (drops + drop[:, None, None] * inside, covered + inside), None

    (drops, covered), _ = jax.lax.scan(further, (jnp.zeros(images.shape[:3]), jnp.zeros((height, width))), jnp.asarray(corners))
    return drops / covered


# ------------------------------------------------------------------------------------------------------------ common frame


def aligned(images: Images, maps: Maps, spread: float = SPREAD) -> tuple[Images, Maps]:
    """Both moved and scaled by axis so that the body has its centroid in the middle, and a standard deviation of `spread` sides down and across.

    A pixel counts as body from a gray level of 13 on, wholly from 38 on, and then as much as any other: were gray levels the weights, then bone density,
    breasts, fluid or exposure, in which the groups that are compared may differ, would move the frame. Scales are kept within 1/2 … 2; an image without body
    stays as it is; what comes from outside is 0. Values of maps are those of the places they were at, not spread thinner: normalise afterwards.

    This is rough. No landmark is found and nothing is turned. Where the body fills the image, as it does in most (in 120 of NIH's, the median of the share
    that counts is 96%), scales are near 1 wherever lungs and heart lie.
    """

    def one(image, of):
        shape = image.shape[:2]
        body = jnp.clip((image[..., 0] - _AIR) / (_BODY - _AIR), 0, 1)
        scales, offsets = [], []
        for axis, side in enumerate(shape):
            weight, place = body.sum(1 - axis), jnp.arange(side, dtype=jnp.float32) + 0.5
            total = weight.sum()
            some = jnp.where(total > 0, total, 1)
            centre = (weight * place).sum() / some
            deviation = jnp.sqrt((weight * jnp.square(place - centre)).sum() / some)
            scale = jnp.where(total > 0, jnp.clip(spread * side / deviation, 0.5, 2), 1)
            scales.append(scale)
            offsets.append(jnp.where(total > 0, side / 2 - scale * centre, 0))
        both = jnp.stack([image[..., 0], of], -1)
        moved = jax.image.scale_and_translate(both, both.shape, (0, 1), jnp.stack(scales), jnp.stack(offsets), "linear")
        return moved[..., :1], moved[..., 1]

    return jax.vmap(one)(images, maps)


def shares(maps: Maps) -> Maps:
    """Each map over the sum of its absolute values, signs kept: what share of all that speaks for or against lies in a pixel. A map that is 0 all over: NaN.

    So no image counts more because its logit is steeper. Ranks would do that too, but raise the noise of a flat map to the height of another's peak.
    """
    total = jnp.abs(maps).sum((1, 2), keepdims=True)
    return jnp.where(total > 0, maps / jnp.where(total > 0, total, 1), jnp.nan)


class GroupMap(NamedTuple):
    """A group's map, the mean over patients of each one's mean.

    patients: that are in it. images: that are, of theirs. undefined: images that are not, since their map has no shares.
    mean: float64 [h, w], NaN without patients. error: float64 [h, w], its standard error by patient, NaN below two.
    """

    patients: int
    images: int
    undefined: int
    mean: np.ndarray
    error: np.ndarray


class MapMeans:
    """Means and standard errors of maps by group, patients counting alike, on host in float64.

    Both are exact with several images a patient: a patient's maps are added up until the last has come, then taken into the group's moments (Welford 1962)
    and dropped. What is held is a map for each patient of whom some images are still to come, so that images in order of patients cost least; where they come
    in any order, shrink maps first.
    """

    def __init__(self, groups: Sequence[str], group: np.ndarray, patient: np.ndarray):
        """groups: their names. group: int [n], of each row of the cohort, -1 where it is in none. patient: [n], whose image it is; hashable."""
        self._groups = tuple(groups)
        self._keys = [(int(g), p) if g >= 0 else None for g, p in zip(group, patient, strict=True)]
        self._came = np.zeros(len(self._keys), bool)
        self._left = collections.Counter(key for key in self._keys if key is not None)
        self._open: dict = {}  # (group, patient): [images, sum of their maps]
        self._counts = np.zeros((len(groups), 3), np.int64)  # patients, images, undefined
        self._moments: np.ndarray | None = None  # mean and sum of squares about it, [groups, 2, h, w]

    def add(self, rows: Sequence[int], maps: Float[np.ndarray, "b h w"]) -> None:
        """Maps of these rows; each row of a group once, in any order. A map with NaN counts as undefined. Raises RuntimeError for a row that came before."""
        maps = np.asarray(maps, np.float64)
        if self._moments is None:
            self._moments = np.zeros((len(self._groups), 2, *maps.shape[1:]))
        for row, own in zip(rows, maps, strict=True):
            key = self._keys[row]
            if self._came[row]:
                raise RuntimeError(f"the map of row {row} came twice")
            self._came[row] = True
            if key is None:
                continue
            if np.isnan(own).any():
                self._counts[key[0], 2] += 1
            else:
                images, total = self._open.get(key, (0, 0))
                self._open[key] = images + 1, total + own
            self._left[key] -= 1
            if not self._left[key] and key in self._open:
                images, total = self._open.pop(key)
                self._counts[key[0]] += (1, images, 0)
                mean, squares = self._moments[key[0]]
                off = total / images - mean
                mean += off / self._counts[key[0], 0]
                squares += off * (total / images - mean)

    def result(self) -> dict[str, GroupMap]:
        """By group, of those that any row is in. Groups of few patients are the caller's to withhold. Raises RuntimeError where maps are missing."""
        missing = sum(self._left.values())
        if missing:
            raise RuntimeError(f"{missing:,} images of the groups have no map yet")
        results = {}
        for g in sorted({g for g, _ in self._left}):
            (patients, images, undefined), (mean, squares) = map(int, self._counts[g]), self._moments[g]
            error = np.sqrt(squares / (patients - 1) / patients) if patients > 1 else np.full_like(mean, np.nan)
            results[self._groups[g]] = GroupMap(patients, images, undefined, mean.copy() if patients else np.full_like(mean, np.nan), error)
        return results


# ---------------------------------------------------------------------------------------------------------- sanity checks


def similarity(a: Maps, b: Maps) -> Float[Array, " b"]:
    """Spearman's rank correlation of |a| and |b| over an image's pixels, equal values at their mean rank; NaN where all of one map's are equal.

    Integrated gradients of any two networks have the factor x - x₀ in common, and agree in part by that alone.
    """

    def centred(values):
        values = jnp.abs(values).ravel()
        ordered = jnp.sort(values)
        below, upto = (jnp.searchsorted(ordered, values, side=side, method="sort") for side in ("left", "right"))
        # The sum of these is twice the rank, but for a constant; over all pixels it is exactly n².
        return (below + upto - values.size).astype(jnp.float32) / values.size

    def one(a, b):
        a, b = centred(a), centred(b)
        scale = jnp.sqrt((a * a).sum()) * jnp.sqrt((b * b).sum())
        return jnp.where(scale > 0, (a * b).sum() / jnp.where(scale > 0, scale, 1), jnp.nan)

    return jax.vmap(one)(a, b)


def randomised(params, key: Array, heads_only: bool = False):
    """The parameters with the entries of each kernel mixed up among themselves; of the heads' kernels alone, or of all.

    A kernel keeps the distribution of its weights, and with it about the size of the maps, which running statistics were taken of; drawn anew, as by
    `inference.untrained`, they want statistics of their own. What is no kernel (scales, offsets, biases) stays. On host, with arrays where they were.
    """
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))

    def mixed(path, x):
        if x.ndim < 2 or (heads_only and "heads" not in (getattr(part, "key", None) for part in path)):
            return x
        return jax.device_put(rng.permutation(np.asarray(x).ravel()).reshape(x.shape), x.sharding)

    return jax.tree_util.tree_map_with_path(mixed, params)


# ----------------------------------------------------------------------------------------------------------- faithfulness


class Curves(NamedTuple):
    """Logits after each share of the image was taken out, [b, steps + 1], from none to all: what a map ranks first, first; last, first; and in random order."""

    first: Float[Array, "b steps"]
    last: Float[Array, "b steps"]
    random: Float[Array, "b steps"]


def deletion(
    logits: Logits, images: Images, maps: Maps, key: Array, index: Int[ArrayLike, " b"], *, cell: int, steps: int, baseline: ArrayLike | None = None
) -> Curves:
    """What is left of the logit as cells of `cell` × `cell` pixels are taken out in `steps` shares; both static, and cells divide the image's sides.

    maps: by whose mean in a cell, signs kept, cells are ranked; equals are in random order, as the half of a Grad-CAM is that its ReLU cut. index: numbers of
    the images, by which each has a random order of its own.

    Cells taken out at random leave more edges than a compact region does, which no network was trained on (Hooker et al. 2019, NeurIPS). A control that keeps
    a map's compactness is the map of another image: `maps` in another order, and `Curves.first` of the two compared.
    """
    b, height, width, _ = images.shape
    if height % cell or width % cell:
        raise ValueError(f"cells of {cell} pixels do not divide images of {height}x{width}")
    instead = flat(images) if baseline is None else baseline
    down, across = height // cell, width // cell
    scores = maps.reshape(b, down, cell, across, cell).mean((2, 4)).reshape(b, -1)
    chance = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i), scores.shape[1:]))(jnp.asarray(index))

    def curve(scores):
        rank = jnp.argsort(jnp.lexsort((chance, -scores), axis=-1), axis=-1).reshape(b, down, across)
        rank = jnp.repeat(jnp.repeat(rank, cell, 1), cell, 2)[..., None]
        taken = jnp.asarray(np.round(np.linspace(0, down * across, steps + 1)).astype(np.int32))
        return jax.lax.map(lambda count: logits(jnp.where(rank < count, instead, images)), taken).T

    return Curves(curve(scores), curve(-scores), curve(jnp.zeros_like(scores)))


def faithful(curves: Curves) -> Float[Array, " b"]:
    """The area between the random order's curve and the map's over the share taken out, in logits: above 0 where the map finds what the logit leans on."""
    return jnp.trapezoid(curves.random - curves.first, dx=1 / (curves.first.shape[1] - 1), axis=1)
