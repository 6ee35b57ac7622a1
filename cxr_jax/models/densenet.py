"""DenseNet (Huang et al. 2017, "Densely Connected Convolutional Networks"), one gray channel, shared statistics.

Every layer of a dense block reads all the maps made before it through a batch normalisation of its own. The batch mean
and variance of a map are the same whoever reads it; only scale and offset differ. So they are computed once, when the
map is made, the block keeps its maps *normalised*, and a reader applies no more than its scale and offset:

    map k of a block:     m_k = mean(x_k),  v_k = var(x_k),  u_k = (x_k - m_k) / sqrt(v_k + 1e-5)
    layer l, reading u = (u_0 .. u_{c-1}):
                          z = squeeze_l^T relu(scale_l * u + offset_l)           1x1, to bottleneck * growth channels
                          x_{c ..} = kernel_l (*) relu(inner_scale_l * normalise(z) + inner_offset_l)      3x3

This is the published network, not an approximation: forward, gradients and running statistics agree with one that
normalises anew at every reader (Ioffe and Szegedy 2015). Running statistics, too, belong to the map. A checkpoint from
elsewhere that keeps a mean r and a variance s for each reader still fits: with the map's own m and v, the reader's
scale a and offset b become a * sqrt((v + 1e-5) / (s + 1e-5)) and b + a * (m - r) / sqrt(s + 1e-5).

Arrays are NHWC. Parameters and statistics are float32, activations float32 or bfloat16.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from cxr_jax.tables import UserError

EPSILON = 1e-5  # added to a variance before its root is taken
MOMENTUM = 0.1  # weight of the newest batch in the running statistics

_OVER = (0, 1, 2)  # statistics run over rows, height and width

# Uniform within 1/sqrt(fan_in), zero bias: what the usual DenseNet-121 gives its classifier.
_head_uniform = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Output(NamedTuple):
    """What the network says of a batch of b images.

    logits: by head, float32 [b, classes].
    features: float32 [b, features], what the heads read.
    blocks: when asked, float32 [b, channels] for the stem and for each dense block, in order: the spatial mean of the
        maps as the published network has them there (after the stem's max-pool; at a block's end, before any
        normalisation). Else ().
    """

    logits: dict[str, jax.Array]
    features: jax.Array
    blocks: tuple[jax.Array, ...]


class Moments(NamedTuple):
    """Mean and (biased) variance by channel, [c]."""

    mean: jax.Array
    variance: jax.Array


class _BlockMoments(NamedTuple):
    maps: Moments  # of every map of the block, [channels]
    inner: tuple[Moments, ...]  # of every layer's bottleneck


class _LayerParameters(NamedTuple):
    scale: jax.Array
    offset: jax.Array
    squeeze: jax.Array
    inner_scale: jax.Array
    inner_offset: jax.Array
    kernel: jax.Array


# --------------------------------------------------------------------------------------------------------------- pieces


def _wide(x):
    """At least float32: what sums and per-channel arithmetic are done in."""
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def _count(x, mask):
    """Values of one channel that statistics are taken of; at least those of one row, so that no division is by 0."""
    pixels = x.shape[1] * x.shape[2]
    if mask is None:
        return x.shape[0] * pixels
    return jnp.maximum(mask.sum(), 1).astype(_wide(x).dtype) * pixels


def _kept(x, mask):
    """x with padding rows put to 0."""
    return x if mask is None else jnp.where(mask, x, jnp.zeros_like(x))


def _moments(x, mask) -> Moments:
    # Two passes, not E[x^2] - E[x]^2: a dim, even picture has a mean far above its deviation, where that cancels.
    count = _count(x, mask)
    mean = _kept(_wide(x), mask).sum(_OVER) / count
    return Moments(mean, jnp.square(_kept(_wide(x) - mean, mask)).sum(_OVER) / count)


def _normalise(x, moments: Moments):
    return ((_wide(x) - moments.mean) * lax.rsqrt(moments.variance + EPSILON)).astype(x.dtype)


def _read(maps, scale, offset):
    """relu(scale * maps + offset), in the type of `maps`."""
    return jax.nn.relu(_wide(maps) * scale + offset).astype(maps.dtype)


def _convolve(x, kernel, stride: int = 1):
    """A square, odd kernel [k, k, in, out], centred on the pixel: padding k // 2 on every side."""
    reach = kernel.shape[0] // 2
    return lax.conv_general_dilated(
        x, kernel.astype(x.dtype), (stride, stride), [(reach, reach)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _mix(x, matrix):
    """A 1x1 convolution as the matrix product that it is: [b, h, w, c] and [c, k] to [b, h, w, k]."""
    return jnp.einsum("bhwc,ck->bhwk", x, matrix.astype(x.dtype))


def _max_pool(x):
    """3x3 maximum at stride 2 with padding 1, one axis after the other.

    Slices, not a window reduction, whose gradient is a scatter and costs more than the stem's convolution on CPU. Of
    equal values the gradient goes to the first in reading order, as torch has it; NaN passes through.
    """

    def larger(first, second):
        return jnp.where((second > first) | (second != second), second, first)

    for axis in (2, 1):
        size = (x.shape[axis] + 1) // 2
        padding = [(0, 0)] * 4
        padding[axis] = (1, 1)
        padded = jnp.pad(x, padding, constant_values=-jnp.inf)
        one, two, three = (lax.slice_in_dim(padded, k, k + 2 * size - 1, 2, axis) for k in range(3))
        x = larger(larger(one, two), three)
    return x


def _average_pool(x):
    """Mean of 2x2; an odd last row or column is left out."""
    b, h, w, c = x.shape
    if min(h, w) < 2:
        raise UserError(
            f"images are too small for this network: maps of {h}x{w} cannot be halved; raise config.dataset.image_size"
        )
    x = x[:, : h // 2 * 2, : w // 2 * 2]
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


# ---------------------------------------------------------------------------------------------------------- dense block


def _block_forward(layers: Sequence[_LayerParameters], x, mask, running: _BlockMoments | None):
    """The block on x [b, h, w, c]: its normalised maps [b, h, w, c + layers * growth], moments, normalised bottlenecks.

    With `running` these statistics normalise, else the batch's own.
    """

    def normalise(x, moments):
        moments = _moments(x, mask) if running is None else moments
        return _normalise(x, moments), moments

    def of_maps(start, stop):
        return None if running is None else Moments(running.maps.mean[start:stop], running.maps.variance[start:stop])

    made, inner, bottlenecks = [], [], []
    maps, moments = normalise(x, of_maps(0, x.shape[-1]))
    made.append(moments)
    for i, p in enumerate(layers):
        z, moments = normalise(_mix(_read(maps, p.scale, p.offset), p.squeeze), running and running.inner[i])
        inner.append(moments)
        bottlenecks.append(z)
        new = _convolve(_read(z, p.inner_scale, p.inner_offset), p.kernel)
        new, moments = normalise(new, of_maps(maps.shape[-1], maps.shape[-1] + new.shape[-1]))
        made.append(moments)
        maps = jnp.concatenate([maps, new], -1)
    moments = _BlockMoments(Moments(*(jnp.concatenate(m) for m in zip(*made))), tuple(inner))
    return maps, moments, bottlenecks


@jax.custom_vjp
def _train_block(layers, x, mask):
    """`_block_forward` by the batch's own statistics, with a gradient that keeps less and passes memory fewer times.

    Plain differentiation keeps what every reader read, which grows as the square of the depth. This keeps the block's
    maps and bottlenecks, computes a reader's input again from them, and adds all readers' gradients into one array.
    """
    maps, moments, _ = _block_forward(layers, x, mask, None)
    return maps, moments


def _train_block_forward(layers, x, mask):
    maps, moments, bottlenecks = _block_forward(layers, x, mask, None)
    return (maps, moments), (layers, maps, moments, bottlenecks, mask)


def _normalise_backward(total, total_product, cotangent, normalised, moments, cotangent_moments, mask):
    """Gradient by x of u = (x - m) / s, s = sqrt(v + eps), where m and v are x's own.

    Given g = `cotangent` of u, its sum and that of g * u over the n kept rows' pixels, and the cotangents of m and v:

        dx = g / s + kept * [ (dm - total / s) + u * (2 s dv - total_product / s) ] / n

    since dm/dx = 1/n and dv/dx = 2 (x - m) / n = 2 s u / n. (u has mean 0, so m's own part in v adds nothing.)
    """
    inverse = lax.rsqrt(moments.variance + EPSILON)
    count = _count(cotangent, mask)
    constant = (cotangent_moments.mean - total * inverse) / count
    slope = (2 * cotangent_moments.variance / inverse - total_product * inverse) / count
    own = _kept(constant + _wide(normalised) * slope, mask)
    return (_wide(cotangent) * inverse + own).astype(cotangent.dtype)


def _sums(cotangent, normalised):
    """Sums of g and of g * u: the gradients by an offset and by a scale, and what normalising itself gives back."""
    return _wide(cotangent).sum(_OVER), (_wide(cotangent) * _wide(normalised)).sum(_OVER)


def _train_block_backward(kept, cotangents):
    layers, maps, moments, bottlenecks, mask = kept
    g, g_moments = cotangents  # g: of the maps still to be dealt with; it narrows as layers are gone through backwards

    def of_maps(which: Moments, start, stop):
        return Moments(which.mean[start:stop], which.variance[start:stop])

    def made_backward(g, start):
        """Gradient by the maps from `start` on, before they were normalised, all of whose readers have been seen."""
        u = maps[..., start : start + g.shape[-1]]
        here = (start, start + g.shape[-1])
        own, own_cotangents = of_maps(moments.maps, *here), of_maps(g_moments.maps, *here)
        return _normalise_backward(*_sums(g, u), g, u, own, own_cotangents, mask)

    gradients = []
    for i in reversed(range(len(layers))):
        p, z = layers[i], bottlenecks[i]
        width = len(p.scale)
        g_new = made_backward(g[..., width:], width)

        read = _read(z, p.inner_scale, p.inner_offset)
        _, convolve_backward = jax.vjp(_convolve, read, p.kernel)
        g_read, g_kernel = convolve_backward(g_new)
        g_read = jnp.where(read > 0, g_read, jnp.zeros_like(g_read))
        g_inner_offset, g_inner_scale = _sums(g_read, z)
        g_z = _normalise_backward(
            p.inner_scale * g_inner_offset,
            p.inner_scale * g_inner_scale,
            (_wide(g_read) * p.inner_scale).astype(g_read.dtype),
            z, moments.inner[i], g_moments.inner[i], mask,
        )  # fmt: skip

        u = maps[..., :width]
        read = _read(u, p.scale, p.offset)
        # The narrower array stands first, since the first is what XLA transposes on CPU.
        g_squeeze = jnp.einsum("bhwk,bhwc->kc", g_z, read).T.astype(p.squeeze.dtype)
        g_read = jnp.einsum("bhwk,ck->bhwc", g_z, p.squeeze.astype(g_z.dtype))
        g_read = jnp.where(read > 0, g_read, jnp.zeros_like(g_read))
        g_offset, g_scale = _sums(g_read, u)
        g = (_wide(g[..., :width]) + _wide(g_read) * p.scale).astype(g.dtype)
        gradients.append(_LayerParameters(g_scale, g_offset, g_squeeze, g_inner_scale, g_inner_offset, g_kernel))
    return gradients[::-1], made_backward(g, 0), None


_train_block.defvjp(_train_block_forward, _train_block_backward)


# -------------------------------------------------------------------------------------------------------------- modules


def _filled(value: float, shape, dtype):
    """A constant array made on the host: XLA would compile a program for each shape, and DenseNet-121 has hundreds."""
    return jnp.asarray(np.full(shape, value, dtype))


def _undrawn(shape, dtype) -> nnx.Param:
    """A kernel that `_draw` fills."""
    return nnx.Param(_filled(0, shape, dtype))


def _draw(kernels: Sequence[nnx.Param], key) -> None:
    """Fills kernels [.., in, out] by He et al. 2015: normal, variance 2 / fan_in, not truncated.

    One draw, cut into pieces: DenseNet-121's 120 kernels drawn one by one take XLA half a minute to compile on CPU.
    """
    drawn = jax.random.normal(key, (sum(kernel[...].size for kernel in kernels),), kernels[0][...].dtype)
    if not isinstance(drawn, jax.core.Tracer):
        drawn = np.asarray(drawn)  # so that cutting, too, compiles nothing
    start = 0
    for kernel in kernels:
        shape, size = kernel[...].shape, kernel[...].size
        fan_in = size // shape[-1]
        kernel[...] = jnp.asarray(drawn[start : start + size].reshape(shape) * (2 / fan_in) ** 0.5)
        start += size


class Statistics(nnx.Module):
    """Running mean and (unbiased) variance of c channels, [c] each, in nnx.BatchStat variables."""

    def __init__(self, channels: int, *, param_dtype):
        self.mean = nnx.BatchStat(_filled(0, channels, param_dtype))
        self.variance = nnx.BatchStat(_filled(1, channels, param_dtype))

    def moments(self) -> Moments:
        return Moments(self.mean[...], self.variance[...])

    def update(self, batch: Moments, count) -> None:
        """new = (1 - .1) old + .1 batch, with the batch's variance count / (count - 1) times the biased one.

        A count of 1 (one small image in an epoch's last batch) has no variance; the running one then stays.
        """
        unbiased = batch.variance * (count / jnp.maximum(count - 1, 1))
        unbiased = jnp.where(count > 1, unbiased, self.variance[...].astype(unbiased.dtype))
        for running, newest in ((self.mean, batch.mean), (self.variance, unbiased)):
            newest = lax.stop_gradient(newest).astype(running[...].dtype)
            running[...] = (1 - MOMENTUM) * running[...] + MOMENTUM * newest


class Reader(nnx.Module):
    """A batch normalisation's own part: scale and offset of c normalised channels, [c] each; then a ReLU."""

    def __init__(self, channels: int, *, param_dtype):
        self.scale = nnx.Param(_filled(1, channels, param_dtype))
        self.offset = nnx.Param(_filled(0, channels, param_dtype))

    def __call__(self, maps):
        return _read(maps, self.scale[...], self.offset[...])


class Stem(nnx.Module):
    """7x7 convolution at stride 2, normalisation, ReLU, 3x3 max-pool at stride 2: [b, h, w, 1] to [b, h/4, w/4, c].

    constant: whether a second kernel is there, which convolves a picture of ones. A network that was fed scale * x +
        level has its level there: not the same at every pixel, since the zeros around the picture have none.
    """

    def __init__(self, channels: int, *, param_dtype, constant: bool = False):
        self.kernel = _undrawn((7, 7, 1, channels), param_dtype)
        self.constant = _undrawn((7, 7, 1, channels), param_dtype) if constant else None
        self.statistics = Statistics(channels, param_dtype=param_dtype)
        self.reader = Reader(channels, param_dtype=param_dtype)

    def __call__(self, images, mask, train: bool):
        x = _convolve(images, self.kernel[...], stride=2)
        if self.constant is not None:
            one = jnp.ones((1, *images.shape[1:]), self.constant[...].dtype)
            x = (_wide(x) + _convolve(one, self.constant[...], stride=2)).astype(x.dtype)
        moments = _moments(x, mask) if train else self.statistics.moments()
        if train:
            self.statistics.update(moments, _count(x, mask))
        return _max_pool(self.reader(_normalise(x, moments)))


class DenseLayer(nnx.Module):
    """The parameters of one layer of a dense block; the block runs it."""

    def __init__(self, channels: int, growth: int, bottleneck: int, *, param_dtype):
        inner = bottleneck * growth
        self.reader = Reader(channels, param_dtype=param_dtype)
        self.squeeze = _undrawn((channels, inner), param_dtype)
        self.inner_statistics = Statistics(inner, param_dtype=param_dtype)
        self.inner_reader = Reader(inner, param_dtype=param_dtype)
        self.kernel = _undrawn((3, 3, inner, growth), param_dtype)

    def parameters(self) -> _LayerParameters:
        outer, inner = self.reader, self.inner_reader
        own = (outer.scale, outer.offset, self.squeeze, inner.scale, inner.offset, self.kernel)
        return _LayerParameters(*(variable[...] for variable in own))


class DenseBlock(nnx.Module):
    """[b, h, w, c] to the normalised [b, h, w, c + layers * growth], with the moments that they were normalised by."""

    def __init__(self, channels: int, layers: int, growth: int, bottleneck: int, *, param_dtype):
        self.layers = nnx.List(
            DenseLayer(channels + i * growth, growth, bottleneck, param_dtype=param_dtype) for i in range(layers)
        )
        self.statistics = Statistics(channels + layers * growth, param_dtype=param_dtype)

    def __call__(self, x, mask, train: bool) -> tuple[jax.Array, Moments]:
        layers = [layer.parameters() for layer in self.layers]
        if not train:
            running = _BlockMoments(
                self.statistics.moments(), tuple(layer.inner_statistics.moments() for layer in self.layers)
            )
            maps, moments, _ = _block_forward(layers, x, None, running)
            return maps, moments.maps
        maps, moments = _train_block(layers, x, mask)
        count = _count(x, mask)
        self.statistics.update(moments.maps, count)
        for layer, inner in zip(self.layers, moments.inner):
            layer.inner_statistics.update(inner, count)
        return maps, moments.maps


class Transition(nnx.Module):
    """Normalised [b, h, w, c] to [b, h/2, w/2, c/2].

    Pooling comes before the 1x1 convolution, a quarter of the work: both are linear, one over pixels and one over
    channels, so that their order is free.
    """

    def __init__(self, channels: int, *, param_dtype):
        self.reader = Reader(channels, param_dtype=param_dtype)
        self.squeeze = _undrawn((channels, channels // 2), param_dtype)

    def __call__(self, maps):
        return _mix(_average_pool(self.reader(maps)), self.squeeze[...])


class DenseNet(nnx.Module):
    """DenseNet-121 by its defaults, with a linear head for every target.

    heads: name -> number of outputs. growth: maps that a layer adds. blocks: layers of each dense block. stem: maps of
    the first convolution. bottleneck: a layer's 1x1 convolution has bottleneck * growth maps. dtype: of activations.
    param_dtype: of parameters, statistics, features and logits; float32 but for tests in float64.
    """

    def __init__(
        self,
        heads: Mapping[str, int],
        *,
        growth: int = 32,
        blocks: Sequence[int] = (6, 12, 24, 16),
        stem: int = 64,
        bottleneck: int = 4,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.dtype, self.param_dtype = jnp.dtype(dtype), jnp.dtype(param_dtype)
        own = dict(param_dtype=self.param_dtype)
        self.stem = Stem(stem, **own)
        made, between, channels = [], [], stem
        for i, layers in enumerate(blocks):
            made.append(DenseBlock(channels, layers, growth, bottleneck, **own))
            channels += layers * growth
            if i < len(blocks) - 1:
                between.append(Transition(channels, **own))
                channels //= 2
        self.blocks, self.transitions = nnx.List(made), nnx.List(between)
        self.reader = Reader(channels, param_dtype=self.param_dtype)
        self.features = channels
        linear = functools.partial(nnx.Linear, channels, kernel_init=_head_uniform, rngs=rngs, **own)
        self.heads = nnx.Dict({name: linear(size) for name, size in heads.items()})
        _draw(self._kernels(), rngs.params())

    def _kernels(self) -> list[nnx.Param]:
        layers = [layer for block in self.blocks for layer in block.layers]
        return [
            self.stem.kernel,
            *(kernel for layer in layers for kernel in (layer.squeeze, layer.kernel)),
            *(transition.squeeze for transition in self.transitions),
        ]

    def __call__(
        self, images: jax.Array, *, train: bool, mask: jax.Array | None = None, pooled_blocks: bool = False
    ) -> Output:
        """Runs the network.

        images: float [b, h, w, 1]. With k blocks, h and w of at least 2^(k + 1) pixels; else UserError.
        train: normalise by the batch's statistics and add them to the running ones (in place: inside a gradient, on a
            copy of the model); else normalise by the running ones. Over sharded images the statistics are those of the
            whole batch.
        mask: bool [b]; False marks the padding of a last batch, which statistics then ignore. Their rows are computed
            all the same, and are for the caller to drop.
        pooled_blocks: whether `Output.blocks` is wanted.
        """
        if images.ndim != 4 or images.shape[-1] != 1:
            raise ValueError(f"images are [batch, height, width, 1], not {list(images.shape)}")
        if mask is not None:
            mask = mask.reshape(-1, 1, 1, 1)
        x = self.stem(images.astype(self.dtype), mask, train)
        pooled = [self._pool(x)] if pooled_blocks else []
        for i, block in enumerate(self.blocks):
            x, moments = block(x, mask, train)
            if pooled_blocks:  # undoing a normalisation commutes with the mean
                pooled.append(self._pool(x) * jnp.sqrt(moments.variance + EPSILON) + moments.mean)
            if i < len(self.transitions):
                x = self.transitions[i](x)
        features = self._pool(self.reader(x))
        return Output({name: head(features) for name, head in self.heads.items()}, features, tuple(pooled))

    def _pool(self, x):
        return x.astype(self.param_dtype).mean((1, 2))


def from_config(model, heads: Mapping[str, int], seed: int) -> DenseNet:
    """The network of `config.model` (growth, blocks, stem, bottleneck, dtype), with parameters drawn from `seed`."""
    return DenseNet(
        heads,
        growth=model.growth,
        blocks=tuple(model.blocks),
        stem=model.stem,
        bottleneck=model.bottleneck,
        dtype=model.dtype,
        rngs=nnx.Rngs(seed),
    )


def parameter_count(model: nnx.Module) -> int:
    """How many numbers training fits; running statistics are not among them."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
