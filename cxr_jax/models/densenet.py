"""DenseNet (Huang et al. 2017, "Densely Connected Convolutional Networks"), one gray channel, shared statistics.

Every layer of a dense block reads all the maps made before it through a batch normalisation of its own. The batch mean
and variance of a map are the same whoever reads it; only scale and offset differ. So they are computed once, when the
map is made, and a reader of the maps x_0 .. x_{c-1} of a block applies one scale and one offset a channel:

    map k of a block:     m_k = mean(x_k),  v_k = var(x_k)
    layer l, reading x:   z = squeeze_l^T relu(a_l * (x - m) + offset_l),  a_l = scale_l / sqrt(v + 1e-5)     1x1
                          x_{c ..} = kernel_l (*) relu(the same of z, with statistics of its own)             3x3

This is the published network, not an approximation: forward, gradients and running statistics agree with one that
computes statistics anew at every reader (Ioffe and Szegedy 2015). Running statistics, too, belong to the map. A
checkpoint from elsewhere that keeps a mean r and a variance s for each reader still fits: with the map's own m and v,
the reader's scale a and offset b become a * sqrt((v + 1e-5) / (s + 1e-5)) and b + a * (m - r) / sqrt(s + 1e-5).

The gradient through the statistics needs no look at the maps beyond what each reader's own gradient takes. Of a reader
let g be the gradient by its output where that is above 0, and u = (x - m) / sqrt(v + 1e-5). It gives

    to offset: G = sum(g);  to scale: U = sum(g u);  to x: a g;  to m: -a G;  to v: -scale U / (2 (v + 1e-5))

and since m and v are means over n values, x gets (what all readers give to m)/n + 2 (x - m) (what all give to v)/n.

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
FIELDS = ("growth", "blocks", "stem", "bottleneck", "dtype", "stem_constant")  # of config.model, that say what a network is
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
    maps: when asked, in the type of activations [b, h, w, features]: the last maps, normalised and past their ReLU, whose
        spatial means the features are. Else ().
    """

    logits: dict[str, jax.Array]
    features: jax.Array
    blocks: tuple[jax.Array, ...]
    maps: jax.Array | tuple[()] = ()


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


class _Rows(NamedTuple):
    """Which rows of a batch statistics are taken of.

    mask: bool [b, 1, 1, 1], False where padded; None where none is.
    counts: float [shards], how many count on each device that shares the statistics; [1] where they are not shared.
    """

    mask: jax.Array | None
    counts: jax.Array


# --------------------------------------------------------------------------------------------------------------- pieces


def _wide(x):
    """At least float32: what sums and per-channel arithmetic are done in."""
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def _rows(axis, batch: int, mask, dtype) -> _Rows:
    """axis: of the mesh, inside a shard_map, over which statistics are shared; None: they are of the rows at hand."""
    here = jnp.asarray(batch, dtype) if mask is None else mask.sum().astype(dtype)
    return _Rows(mask, here[None] if axis is None else lax.all_gather(here, axis))


def _count(x, rows: _Rows):
    """Values of one channel that statistics are taken of; at least those of one row, so that no division is by 0."""
    return jnp.maximum(rows.counts.sum(), 1) * (x.shape[1] * x.shape[2])


def _kept(x, mask):
    """x with padding rows put to 0."""
    return x if mask is None else jnp.where(mask, x, jnp.zeros_like(x))


def _moments(axis, x, rows: _Rows) -> Moments:
    """Mean and variance of each channel over the rows that count, on all devices along `axis`."""
    # Two passes, not E[x^2] - E[x]^2: a dim, even picture has a mean far above its deviation, where that cancels.
    pixels = x.shape[1] * x.shape[2]
    here = x.shape[0] if rows.mask is None else jnp.maximum(rows.mask.sum(), 1).astype(_wide(x).dtype)
    mean = _kept(_wide(x), rows.mask).sum(_OVER) / (here * pixels)
    squares = jnp.square(_kept(_wide(x) - mean, rows.mask)).sum(_OVER)
    if axis is None:
        return Moments(mean, squares / (here * pixels))
    # Sums of squares about the devices' own means, and those means about the common one (Chan et al. 1983): one
    # collective, where a mean that all must know before they square takes two.
    means, squares = jnp.moveaxis(lax.all_gather(jnp.stack([mean, squares]), axis), 1, 0)
    share = (rows.counts / jnp.maximum(rows.counts.sum(), 1))[:, None]
    mean = (share * means).sum(0)
    return Moments(mean, squares.sum(0) / _count(x, rows) + (share * jnp.square(means - mean)).sum(0))


def _slope(moments: Moments, scale):
    return scale * lax.rsqrt(moments.variance + EPSILON)


def _read(maps, moments: Moments, scale, offset):
    """relu(scale * (maps - mean) / sqrt(variance + eps) + offset), in the type of `maps`."""
    return jax.nn.relu((_wide(maps) - moments.mean) * _slope(moments, scale) + offset).astype(maps.dtype)


class _ReadGradient(NamedTuple):
    """maps: gradient of a reader by its maps, as if moments were constants. scale, offset: by these, of the rows at hand."""

    maps: jax.Array
    scale: jax.Array
    offset: jax.Array


def _read_backward(cotangent, maps, moments: Moments, scale, offset) -> _ReadGradient:
    slope = _slope(moments, scale)
    g = jnp.where((_wide(maps) - moments.mean) * slope + offset > 0, _wide(cotangent), 0)
    by_offset = g.sum(_OVER)
    # The mean is taken off the sum and not off the maps, of which XLA would write another copy on CPU. That cancels where a
    # mean is far above its deviation: in float32 an error of 5e-5 of the gradient by a scale at 100 deviations, by experiment.
    by_scale = ((g * _wide(maps)).sum(_OVER) - moments.mean * by_offset) * lax.rsqrt(moments.variance + EPSILON)
    return _ReadGradient((g * slope).astype(cotangent.dtype), by_scale, by_offset)


def _to_moments(axis, gradient: _ReadGradient, moments: Moments, scale) -> Moments:
    """Gradient of a reader by its moments, of the rows on all devices along `axis`."""
    sums = jnp.stack([gradient.scale, gradient.offset])
    by_scale, by_offset = sums if axis is None else lax.psum(sums, axis)
    return Moments(-_slope(moments, scale) * by_offset, -scale * by_scale / (2 * (moments.variance + EPSILON)))


def _through_moments(cotangent, maps, moments: Moments, to_moments: Moments, rows: _Rows):
    """Gradient by maps: `cotangent`, what comes by another way, and what comes through their moments."""
    count = _count(maps, rows)
    own = to_moments.mean / count + (_wide(maps) - moments.mean) * (2 * to_moments.variance / count)
    return (_wide(cotangent) + _kept(own, rows.mask)).astype(cotangent.dtype)


def _channels(moments: Moments, start: int, stop: int) -> Moments:
    return Moments(moments.mean[start:stop], moments.variance[start:stop])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _normalised(axis, x, scale, offset, rows: _Rows):
    """(`_read` of x by its own moments, the moments). Moments have no gradient: they are for running statistics."""
    moments = _moments(axis, x, rows)
    return _read(x, moments, scale, offset), moments


def _normalised_forward(axis, x, scale, offset, rows):
    out = _normalised(axis, x, scale, offset, rows)
    return out, (x, out[1], scale, offset, rows)


def _normalised_backward(axis, kept, cotangents):
    x, moments, scale, offset, rows = kept
    g = _read_backward(cotangents[0], x, moments, scale, offset)
    g_x = _through_moments(g.maps, x, moments, _to_moments(axis, g, moments, scale), rows)
    return g_x, g.scale, g.offset, None


_normalised.defvjp(_normalised_forward, _normalised_backward)


def _convolve(x, kernel, stride: int = 1):
    """A square, odd kernel [k, k, in, out], centred on the pixel: padding k // 2 on every side."""
    reach = kernel.shape[0] // 2
    return lax.conv_general_dilated(
        x, kernel.astype(x.dtype), (stride, stride), [(reach, reach)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _convolve_backward(cotangent, x, kernel):
    """Gradients of `_convolve` at stride 1 by x and by the kernel."""
    (g_x,) = jax.linear_transpose(lambda x: _convolve(x, kernel), x)(cotangent)

    def convolution(x, cotangent):
        (g_kernel,) = jax.linear_transpose(lambda kernel: _convolve(x, kernel), kernel.astype(x.dtype))(cotangent)
        return g_kernel

    def product(x, cotangent):
        """One matrix product, of x and the cotangent moved to each place of the kernel."""
        (b, h, w, c), side, growth = x.shape, len(kernel), kernel.shape[-1]
        padded = jnp.pad(cotangent, [(0, 0), (side // 2, side // 2), (side // 2, side // 2), (0, 0)])
        places = [padded[:, i : i + h, j : j + w] for i in reversed(range(side)) for j in reversed(range(side))]
        g_kernel = x.reshape(-1, c).T @ jnp.concatenate(places, -1).reshape(b * h * w, -1)
        return jnp.moveaxis(g_kernel.reshape(c, side, side, growth), 0, 2)

    # On CPU, XLA transposes both arrays in memory for the convolution that this gradient is.
    return g_x, lax.platform_dependent(x, cotangent, cpu=product, default=convolution).astype(kernel.dtype)


@jax.custom_vjp
def _mix(x, matrix):
    """A 1x1 convolution as the matrix product that it is: [b, h, w, c] and [c, k] to [b, h, w, k]."""
    return jnp.einsum("bhwc,ck->bhwk", x, matrix.astype(x.dtype))


def _mix_backward(kept, cotangent):
    """Gradients of `_mix` by x and by the matrix; kept: these two."""
    x, matrix = kept
    # Rows and pixels as one axis before the product: else XLA transposes x in memory on CPU.
    g_matrix = x.reshape(-1, x.shape[-1]).T @ cotangent.reshape(-1, cotangent.shape[-1])
    return jnp.einsum("bhwk,ck->bhwc", cotangent, matrix.astype(cotangent.dtype)), g_matrix.astype(matrix.dtype)


_mix.defvjp(lambda x, matrix: (_mix(x, matrix), (x, matrix)), _mix_backward)


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


def _mean_maps(x):
    """[b, h, w, c] to its spatial mean, at least float32 [b, c]."""
    return _wide(x).mean((1, 2))


def _block_forward(axis, layers: Sequence[_LayerParameters], x, rows: _Rows):
    """The block on x [b, h, w, c]: maps [b, h, w, c + layers * growth], bottlenecks of its layers, and all their moments."""
    maps, moments, bottlenecks, inner = x, _moments(axis, x, rows), [], []
    for p in layers:
        z = _mix(_read(maps, moments, p.scale, p.offset), p.squeeze)
        bottlenecks.append(z)
        inner.append(_moments(axis, z, rows))
        new = _convolve(_read(z, inner[-1], p.inner_scale, p.inner_offset), p.kernel)
        moments = Moments(*map(jnp.append, moments, _moments(axis, new, rows)))
        maps = jnp.concatenate([maps, new], -1)
    return maps, bottlenecks, _BlockMoments(moments, tuple(inner))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _train_block(axis, keep_bottlenecks: bool, layers, scale, offset, x, rows: _Rows):
    """A dense block and what reads all of it, by the batch's own statistics.

    layers: of the block. scale, offset: of the reader after it. x: [b, h, w, c]. Returns the reader's output [b, h, w,
    channels], the spatial means [b, channels] of what it reads, and the moments, which have no gradient.

    Plain differentiation keeps what every reader read, which grows as the square of the depth. This keeps the block's
    maps and, where so told, the bottlenecks; it computes a reader's input again from them, and adds all readers'
    gradients into one array.
    """
    maps, _, moments = _block_forward(axis, layers, x, rows)
    return _read(maps, moments.maps, scale, offset), _mean_maps(maps), moments


def _train_block_forward(axis, keep_bottlenecks, layers, scale, offset, x, rows):
    maps, bottlenecks, moments = _block_forward(axis, layers, x, rows)
    out = _read(maps, moments.maps, scale, offset), _mean_maps(maps), moments
    return out, (layers, scale, offset, maps, bottlenecks if keep_bottlenecks else None, moments, rows)


def _train_block_backward(axis, keep_bottlenecks, kept, cotangents):
    layers, scale, offset, maps, bottlenecks, moments, rows = kept
    after = _read_backward(cotangents[0], maps, moments.maps, scale, offset)
    pixels = maps.shape[1] * maps.shape[2]
    # Of the maps still to be dealt with, and of their moments; both narrow as layers are gone through backwards.
    g = (_wide(after.maps) + cotangents[1][:, None, None] / pixels).astype(maps.dtype)
    to_moments = _to_moments(axis, after, moments.maps, scale)

    gradients = []
    for i in reversed(range(len(layers))):
        p, width, end = layers[i], len(layers[i].scale), g.shape[-1]
        of_new = _channels(moments.maps, width, end)
        g_new = _through_moments(g[..., width:], maps[..., width:end], of_new, _channels(to_moments, width, end), rows)

        u, of_u = maps[..., :width], _channels(moments.maps, 0, width)
        if not keep_bottlenecks:  # else XLA sees that they were computed before, and keeps them after all
            u, g_new = lax.optimization_barrier((u, g_new))
        read = _read(u, of_u, p.scale, p.offset)
        z, of_z = bottlenecks[i] if keep_bottlenecks else _mix(read, p.squeeze), moments.inner[i]
        g_read, g_kernel = _convolve_backward(g_new, _read(z, of_z, p.inner_scale, p.inner_offset), p.kernel)
        inner = _read_backward(g_read, z, of_z, p.inner_scale, p.inner_offset)
        g_z = _through_moments(inner.maps, z, of_z, _to_moments(axis, inner, of_z, p.inner_scale), rows)

        g_read, g_squeeze = _mix_backward((read, p.squeeze), g_z)
        outer = _read_backward(g_read, u, of_u, p.scale, p.offset)
        g = (_wide(g[..., :width]) + _wide(outer.maps)).astype(g.dtype)
        from_outer = _to_moments(axis, outer, of_u, p.scale)
        to_moments = Moments(*(total[:width] + more for total, more in zip(to_moments, from_outer)))
        gradients.append(
            _LayerParameters(outer.scale, outer.offset, g_squeeze, inner.scale, inner.offset, g_kernel)
        )
    g_x = _through_moments(g, maps[..., : g.shape[-1]], _channels(moments.maps, 0, g.shape[-1]), to_moments, rows)
    return gradients[::-1], after.scale, after.offset, g_x, None


_train_block.defvjp(_train_block_forward, _train_block_backward)


def _infer_block(layers: Sequence[_LayerParameters], x, running: _BlockMoments):
    """The maps of a block, by running statistics.

    A bottleneck's normalisation becomes part of the product that makes it: a scale of the matrix's columns, and an offset.
    """
    # Written into one array, in place. (Where a gradient keeps the maps, XLA makes copies of it, and joining them is faster.)
    width = x.shape[-1]
    maps = jnp.pad(x, [(0, 0)] * 3 + [(0, len(running.maps.mean) - width)])
    for p, inner in zip(layers, running.inner):
        slope = _slope(inner, p.inner_scale)
        read = _read(maps[..., :width], _channels(running.maps, 0, width), p.scale, p.offset)
        z = _wide(_mix(read, p.squeeze * slope)) + (p.inner_offset - inner.mean * slope)
        new = _convolve(jax.nn.relu(z).astype(maps.dtype), p.kernel)
        maps = lax.dynamic_update_slice_in_dim(maps, new, width, 3)
        width += new.shape[-1]
    return maps


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

    def update(self, batch: Moments, count, rows: _Rows) -> None:
        """new = (1 - .1) old + .1 batch, with the batch's variance count / (count - 1) times the biased one.

        A count of 1 (one small image in an epoch's last batch) has no variance; the running one then stays. So does
        everything where no row counts, as on a device that has padding alone.
        """
        unbiased = batch.variance * (count / jnp.maximum(count - 1, 1))
        unbiased = jnp.where(count > 1, unbiased, self.variance[...].astype(unbiased.dtype))
        for running, newest in ((self.mean, batch.mean), (self.variance, unbiased)):
            old, newest = running[...], lax.stop_gradient(newest).astype(running[...].dtype)
            running[...] = jnp.where(rows.counts.sum() > 0, (1 - MOMENTUM) * old + MOMENTUM * newest, old)


class Reader(nnx.Module):
    """A batch normalisation's own part: scale and offset of c normalised channels, [c] each; then a ReLU."""

    def __init__(self, channels: int, *, param_dtype):
        self.scale = nnx.Param(_filled(1, channels, param_dtype))
        self.offset = nnx.Param(_filled(0, channels, param_dtype))

    def arrays(self) -> tuple[jax.Array, jax.Array]:
        return self.scale[...], self.offset[...]


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

    def __call__(self, images, rows: _Rows | None, axis: str | None = None):
        """rows: those that statistics are taken of, over the devices along `axis`; None: normalise by the running ones."""
        x = _convolve(images, self.kernel[...], stride=2)
        if self.constant is not None:
            one = jnp.ones((1, *images.shape[1:]), self.constant[...].dtype)
            x = (_wide(x) + _convolve(one, self.constant[...], stride=2)).astype(x.dtype)
        if rows is None:
            return _max_pool(_read(x, self.statistics.moments(), *self.reader.arrays()))
        read, moments = _normalised(axis, x, *self.reader.arrays(), rows)
        self.statistics.update(moments, _count(x, rows), rows)
        return _max_pool(read)


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
    """[b, h, w, c] to what its reader makes of [b, h, w, c + layers * growth], and the spatial means of the latter."""

    def __init__(self, channels: int, layers: int, growth: int, bottleneck: int, *, param_dtype):
        self.layers = nnx.List(
            DenseLayer(channels + i * growth, growth, bottleneck, param_dtype=param_dtype) for i in range(layers)
        )
        self.statistics = Statistics(channels + layers * growth, param_dtype=param_dtype)

    def __call__(
        self, x, reader: Reader, rows: _Rows | None, axis: str | None = None, keep_bottlenecks: bool = True
    ) -> tuple[jax.Array, jax.Array]:
        """reader: what reads the whole block. rows, axis: as for `Stem`. keep_bottlenecks: as for `DenseNet`."""
        layers = [layer.parameters() for layer in self.layers]
        if rows is None:
            running = self.statistics.moments()
            inner = tuple(layer.inner_statistics.moments() for layer in self.layers)
            maps = _infer_block(layers, x, _BlockMoments(running, inner))
            return _read(maps, running, *reader.arrays()), _mean_maps(maps)
        read, means, moments = _train_block(axis, keep_bottlenecks, layers, *reader.arrays(), x, rows)
        count = _count(x, rows)
        self.statistics.update(moments.maps, count, rows)
        for layer, inner in zip(self.layers, moments.inner):
            layer.inner_statistics.update(inner, count, rows)
        return read, means


class Transition(nnx.Module):
    """Reads a block [b, h, w, c], and makes of it [b, h/2, w/2, c/2].

    Pooling comes before the 1x1 convolution, a quarter of the work: both are linear, one over pixels and one over
    channels, so that their order is free.
    """

    def __init__(self, channels: int, *, param_dtype):
        self.reader = Reader(channels, param_dtype=param_dtype)
        self.squeeze = _undrawn((channels, channels // 2), param_dtype)

    def __call__(self, read):
        """read: what `self.reader` made of the block."""
        return _mix(_average_pool(read), self.squeeze[...])


class DenseNet(nnx.Module):
    """DenseNet-121 by its defaults, with a linear head for every target.

    heads: name -> number of outputs. growth: maps that a layer adds. blocks: layers of each dense block. stem: maps of
    the first convolution. bottleneck: a layer's 1x1 convolution has bottleneck * growth maps. dtype: of activations.
    param_dtype: of parameters, statistics, features and logits; float32 but for tests in float64. stem_constant: see `Stem`.
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
        stem_constant: bool = False,
        rngs: nnx.Rngs,
    ):
        self.dtype, self.param_dtype = jnp.dtype(dtype), jnp.dtype(param_dtype)
        own = dict(param_dtype=self.param_dtype)
        self.stem = Stem(stem, constant=stem_constant, **own)
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
        self,
        images: jax.Array,
        *,
        train: bool,
        mask: jax.Array | None = None,
        pooled_blocks: bool = False,
        axis: str | None = None,
        keep_bottlenecks: bool = True,
        frozen: int = 0,
        last_maps: bool = False,
    ) -> Output:
        """Runs the network.

        images: float [b, h, w, 1]. With k blocks, h and w of at least 2^(k + 1) pixels; else UserError.
        train: normalise by the batch's statistics and add them to the running ones (in place: inside a gradient, on a
            copy of the model); else normalise by the running ones.
        mask: bool [b]; False marks the padding of a last batch, which statistics then ignore. Their rows are computed
            all the same, and are for the caller to drop.
        pooled_blocks: whether `Output.blocks` is wanted.
        axis: inside a `jax.shard_map`, the mesh axis over which images are split and statistics are to be those of the
            whole batch; None: of the images at hand. Gradients by parameters are those of the rows at hand, to be added up.
        keep_bottlenecks: whether the gradient keeps the bottlenecks, 5.6 of some 18 million numbers an image for
            DenseNet-121 at 256 pixels, or computes them again, one more product a layer.
        frozen: how many parts, from the images on, are as in inference even where train, and have no gradient: 1 is the stem,
            each further one a dense block with the transition or last reader after it.
        last_maps: whether `Output.maps` is wanted.
        """
        if images.ndim != 4 or images.shape[-1] != 1:
            raise ValueError(f"images are [batch, height, width, 1], not {list(images.shape)}")
        mask = None if mask is None else mask.reshape(-1, 1, 1, 1)
        rows = _rows(axis, len(images), mask, self.param_dtype) if train else None
        x = self.stem(images.astype(self.dtype), rows if frozen < 1 else None, axis)
        x = x if frozen < 1 else lax.stop_gradient(x)
        pooled = [self._pool(x)]
        readers = [*(transition.reader for transition in self.transitions), self.reader]
        for i, (block, reader) in enumerate(zip(self.blocks, readers)):
            trained = frozen < i + 2
            x, means = block(x, reader, rows if trained else None, axis, keep_bottlenecks)
            if i < len(self.transitions):
                x = self.transitions[i](x)
            x, means = (x, means) if trained else lax.stop_gradient((x, means))
            pooled.append(means.astype(self.param_dtype))
        features = self._pool(x)
        heads = {name: head(features) for name, head in self.heads.items()}
        return Output(heads, features, tuple(pooled) if pooled_blocks else (), x if last_maps else ())

    def _pool(self, x):
        return _mean_maps(x).astype(self.param_dtype)


def from_config(model, heads: Mapping[str, int], seed: int) -> DenseNet:
    """The network of `config.model` (its FIELDS), with parameters drawn from `seed`."""
    return DenseNet(
        heads,
        growth=model.growth,
        blocks=tuple(model.blocks),
        stem=model.stem,
        bottleneck=model.bottleneck,
        dtype=model.dtype,
        stem_constant=model.stem_constant,
        rngs=nnx.Rngs(seed),
    )


def parameter_count(model: nnx.Module) -> int:
    """How many numbers training fits; running statistics are not among them."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
