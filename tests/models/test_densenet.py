"""The network on tiny sizes: what it returns, what it keeps, and what must not change it (padding, devices)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from configs.base import get_config
from cxr_jax.models import densenet
from cxr_jax.models.densenet import DenseNet, Moments, from_config, parameter_count
from cxr_jax.tables import UserError

TINY = dict(growth=8, blocks=(2, 2), stem=16)


@pytest.fixture
def float64():
    """Arguments of a network in float64, which a test then runs in: what is exact by algebra is then seen to be."""
    with jax.enable_x64(True):
        yield dict(dtype=jnp.float64, param_dtype=jnp.float64)


def tiny(heads=None, **own):
    return DenseNet(heads or {"race": 4}, **{**TINY, **own}, rngs=nnx.Rngs(0))


def uneven(model, seed=0):
    """The model with every parameter and statistic moved off the value it starts at, so that none can hide."""
    rng = np.random.default_rng(seed)

    def move(x):
        return jnp.asarray(np.asarray(x) + 0.2 * rng.uniform(0.1, 1, x.shape), x.dtype)

    graph, state = nnx.split(model)
    return nnx.merge(graph, jax.tree.map(move, state))


def pictures(n, size=32, seed=1, dtype=np.float32):
    # Off zero and of uneven contrast, as radiographs are.
    rng = np.random.default_rng(seed)
    return jnp.asarray(0.5 + rng.uniform(0.1, 1, (n, 1, 1, 1)) * rng.normal(size=(n, size, size, 1)), dtype)


@functools.partial(jax.jit, static_argnums=0)
def _step(graph, params, stats, images, mask):
    def loss(params):
        inside = nnx.merge(graph, params, stats, copy=True)
        out = inside(images, train=True, mask=mask, pooled_blocks=True)
        weights = jnp.cos(jnp.arange(out.features.shape[-1], dtype=out.features.dtype))
        each = jnp.square(out.logits["race"]).sum(1) + jnp.sin(out.features) @ weights
        each = each + sum(jnp.square(block).sum(1) for block in out.blocks)
        valid = jnp.ones(len(images), bool) if mask is None else mask
        return jnp.where(valid, each, 0).sum() / jnp.maximum(valid.sum(), 1).astype(each.dtype), (out, nnx.state(inside, nnx.BatchStat))

    (value, (out, new)), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    return value, out, gradients, new


def train_once(model, images, mask=None):
    """A pure step as the trainer makes it: loss over valid rows, output, gradients, new statistics."""
    return _step(*nnx.split(model, nnx.Param, nnx.BatchStat), images, mask)


@functools.partial(nnx.jit, static_argnames=("train", "pooled_blocks"))
def run(model, images, *, train, mask=None, pooled_blocks=False):
    return model(images, train=train, mask=mask, pooled_blocks=pooled_blocks)


def assert_close(got, expected, rtol):
    """Each array within rtol of the expected one's largest value, so that entries near 0 ask for nothing more."""
    got, expected = (jax.tree_util.tree_leaves_with_path(t) for t in (got, expected))
    assert [path for path, _ in got] == [path for path, _ in expected]
    for (path, a), (_, b) in zip(got, expected):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert a.shape == b.shape, path
        assert np.isfinite(b).all(), path
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * np.abs(b).max(), err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_shapes_and_types(dtype, train):
    model = tiny({"race": 4, "findings": 14}, dtype=dtype)
    # 33 pixels: odd sizes are rounded up twice by the stem (to 9) and down by the transition (to 4).
    out = run(model, pictures(3, 33), train=train, pooled_blocks=True)
    assert {name: x.shape for name, x in out.logits.items()} == {"race": (3, 4), "findings": (3, 14)}
    assert out.features.shape == (3, 32)
    assert [x.shape for x in out.blocks] == [(3, 16), (3, 32), (3, 32)]
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(out))
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(nnx.state(model)))
    assert run(model, pictures(3, 33), train=False).blocks == ()


@pytest.mark.parametrize("train", [True, False])
def test_bfloat16_is_near_float32(train):
    images = pictures(8)
    exact = run(uneven(tiny()), images, train=train, pooled_blocks=True)
    rough = run(uneven(tiny(dtype=jnp.bfloat16)), images, train=train, pooled_blocks=True)
    for a, b in zip(jax.tree.leaves(rough), jax.tree.leaves(exact)):
        assert 1e-6 < np.linalg.norm(a - b) / np.linalg.norm(b) < 0.03


def test_bfloat16_gradients_are_near_float32():
    exact = train_once(uneven(tiny()), pictures(8))[2]
    rough = train_once(uneven(tiny(dtype=jnp.bfloat16)), pictures(8))[2]
    for a, b in zip(jax.tree.leaves(rough), jax.tree.leaves(exact)):
        assert a.dtype == jnp.float32
        assert np.linalg.norm(a - b) / np.linalg.norm(b) < 0.15


@pytest.mark.parametrize("masked", [True, False])
def test_block_gradient_is_that_of_plain_differentiation(masked, float64):
    """The hand-written gradient, against JAX's own of the same forward pass, in float64 and by every output."""
    model = uneven(tiny(**float64))
    layers = [layer.parameters() for layer in model.blocks[0].layers]
    rng = np.random.default_rng(0)
    x, scale, offset = (jnp.asarray(rng.normal(size=size)) for size in ((4, 5, 5, 16), 32, 32))
    mask = jnp.array([True, True, False, True]).reshape(-1, 1, 1, 1) if masked else None
    rows = densenet._rows(None, len(x), mask, x.dtype)

    def value(block):
        def of(*arrays):
            read, means, _ = block(*arrays)
            weights = jnp.asarray(np.random.default_rng(1).normal(size=read.shape))
            weights = weights if mask is None else jnp.where(mask, weights, 0)  # of padding nobody makes use
            return (weights * read).sum() + (weights.mean((1, 2)) * jnp.sin(3 * means)).sum()

        return jax.jit(jax.value_and_grad(of, argnums=(0, 1, 2, 3)))(layers, scale, offset, x)

    def plain(layers, scale, offset, x):
        maps, _, moments = densenet._block_forward(None, layers, x, rows)
        return densenet._read(maps, moments.maps, scale, offset), maps.mean((1, 2)), moments

    expected = value(plain)
    for keep_bottlenecks in (True, False):
        got = value(lambda *arrays: densenet._train_block(None, keep_bottlenecks, *arrays, rows))  # noqa: B023
        assert_close(got, expected, 1e-12)


def test_gradient_by_a_convolution_s_kernel_is_convolution_s_own(float64):
    """On CPU it is made of products."""
    rng = np.random.default_rng(0)
    x, kernel = jnp.asarray(rng.normal(size=(2, 5, 6, 3))), jnp.asarray(rng.normal(size=(3, 3, 3, 4)))
    out, backward = jax.vjp(densenet._convolve, x, kernel)
    cotangent = jnp.asarray(rng.normal(size=out.shape))
    assert_close(densenet._convolve_backward(cotangent, x, kernel), backward(cotangent), 1e-13)


def test_padding_changes_nothing(float64):
    """Of a batch of 13 filled up to 16 with other pictures, the 13 rows, gradients and statistics are those of 13 alone."""
    model, images = uneven(tiny(**float64)), pictures(16, dtype=np.float64)
    alone = train_once(model, images[:13])
    padded = train_once(model, images, jnp.arange(16) < 13)  # as on one device below: compiled once
    assert_close(padded[0], alone[0], 1e-11)
    assert_close(jax.tree.map(lambda x: x[:13], padded[1]), alone[1], 1e-11)
    assert_close(padded[2:], alone[2:], 1e-11)

    unmasked = train_once(model, images)
    assert_close(train_once(model, images, jnp.ones(16, bool)), unmasked, 1e-11)
    assert not np.allclose(unmasked[1].logits["race"][:13], alone[1].logits["race"], rtol=1e-3)


def test_padding_alone_teaches_nothing():
    """As on a device that the last batch of an epoch has no image for: running statistics stay, and nothing is NaN."""
    model = uneven(tiny())
    before = jax.tree.map(np.asarray, nnx.state(model, nnx.BatchStat))
    _, out, gradients, after = train_once(model, pictures(4), jnp.zeros(4, bool))
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.asarray, after))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((out.features, gradients)))


def test_running_statistics_by_hand():
    model, images = tiny(), pictures(6)
    out = run(model, images, train=True, pooled_blocks=True)
    x = np.asarray(lax.conv_general_dilated(
        images, model.stem.kernel[...], (2, 2), [(3, 3), (3, 3)], dimension_numbers=("NHWC", "HWIO", "NHWC")
    ), np.float64).reshape(-1, 16)  # fmt: skip
    mean, variance = x.mean(0), x.var(0, ddof=1)
    running = model.stem.statistics
    np.testing.assert_allclose(running.mean[...], 0.1 * mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(running.variance[...], 0.9 + 0.1 * variance, rtol=1e-5)
    # The mean over rows of the pooled maps is the mean of each map, whichever layer made it.
    for block, pooled in zip(model.blocks, out.blocks[1:]):
        np.testing.assert_allclose(block.statistics.mean[...], 0.1 * pooled.mean(0), rtol=1e-4, atol=1e-6)
    run(model, images, train=True)
    np.testing.assert_allclose(running.mean[...], (0.9 * 0.1 + 0.1) * mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(running.variance[...], 0.81 + 0.19 * variance, rtol=1e-5)


def test_inference_normalises_by_running_statistics():
    """With the statistics of one batch put in place of the running ones, inference on it is what training computed."""
    start, images = tiny(), pictures(6)
    trained = nnx.clone(start)
    expected = run(trained, images, train=True, pooled_blocks=True)

    counts = {"stem": 6 * 16 * 16, 0: 6 * 8 * 8, 1: 6 * 4 * 4}

    def settle(statistics, count):
        unbiased = (statistics.variance[...] - 0.9) / 0.1
        statistics.mean[...] = statistics.mean[...] / 0.1
        statistics.variance[...] = unbiased * (count - 1) / count

    settle(trained.stem.statistics, counts["stem"])
    for i, block in enumerate(trained.blocks):
        settle(block.statistics, counts[i])
        for layer in block.layers:
            settle(layer.inner_statistics, counts[i])
    before = jax.tree.map(np.asarray, nnx.state(trained))
    got = run(trained, images, train=False, pooled_blocks=True)
    assert_close(got, expected, 1e-4)
    # Row by row the same: at inference nothing passes between pictures, and nothing is learnt.
    assert_close(run(trained, images[2:3], train=False).features, got.features[2:3], 1e-5)
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.asarray, nnx.state(trained)))
    assert not np.allclose(run(start, images, train=False).features, expected.features, rtol=0.01)


def test_pure_step_leaves_the_model_alone():
    model = uneven(tiny())
    before = jax.tree.map(np.array, nnx.state(model))
    _, _, gradients, new = train_once(model, pictures(8))
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.array, nnx.state(model)))
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(gradients))
    old = jax.tree.leaves(nnx.state(model, nnx.BatchStat))
    assert len(jax.tree.leaves(new)) == len(old) == 2 * (1 + 2 + 4)  # stem, blocks, layers
    assert all(not np.allclose(a, b) for a, b in zip(jax.tree.leaves(new), old))


# Slow without a mask: that this is a mask of ones `test_padding_changes_nothing` holds, and training always has one.
@pytest.mark.parametrize("masked", [pytest.param(False, marks=pytest.mark.slow), True])
def test_one_and_eight_devices_agree(masked, float64):
    model, images = uneven(tiny(**float64)), pictures(16, dtype=np.float64)
    mask = jnp.arange(16) < 13 if masked else None
    one = train_once(model, images, mask)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    graph, state = nnx.split(model)
    spread = nnx.merge(graph, jax.device_put(state, whole))
    eight = train_once(spread, jax.device_put(images, rows), mask if mask is None else jax.device_put(mask, rows))
    assert len(eight[1].features.sharding.device_set) == 8
    assert not eight[1].features.sharding.is_fully_replicated
    assert_close(eight, one, 1e-11)


def test_max_pool_is_a_window_maximum():
    def window(x):
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0)))

    rng = np.random.default_rng(0)
    for size in (1, 6):
        x = jnp.asarray(rng.normal(size=(2, size, size + 1, 3)), jnp.float32)
        np.testing.assert_array_equal(jax.jit(densenet._max_pool)(x), window(x))
        weights = jnp.asarray(rng.normal(size=window(x).shape), jnp.float32)
        both = (jax.jit(jax.grad(lambda x, f=f: (weights * f(x)).sum())) for f in (densenet._max_pool, window))
        got, expected = (gradient(x) for gradient in both)
        np.testing.assert_allclose(got, expected, atol=1e-6)
    # Among equals the first in reading order is the maximum: a flat picture has just one gradient path a window.
    flat = jax.grad(lambda x: densenet._max_pool(x).sum())(jnp.ones((1, 4, 4, 1)))[0, ..., 0]
    np.testing.assert_array_equal(flat, [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    assert np.isnan(densenet._max_pool(jnp.ones((1, 4, 4, 1)).at[0, 1, 1].set(jnp.nan))).all()


def test_densenet121_has_the_published_size():
    """7,978,856 parameters with 1,000 classes and a colour stem (its paper's and torchvision's DenseNet-121)."""
    heads = {"race": 4, "findings": 14}
    abstract = nnx.eval_shape(lambda: DenseNet(heads, rngs=nnx.Rngs(0)))
    assert abstract.features == 1024
    gray_stem_saves, classifier = 2 * 7 * 7 * 64, 1024 * 1000 + 1000
    assert parameter_count(abstract) == 7_978_856 - gray_stem_saves - classifier + (1024 + 1) * (4 + 14)


def test_from_config_draws_as_he_et_al():
    config = get_config().model
    config.update(blocks=(3, 3), dtype="bfloat16")
    model, again, other = (from_config(config, {"sex": 2}, seed) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, nnx.state(model), nnx.state(again))
    assert model.dtype == jnp.bfloat16 and model.features == (64 + 3 * 32) // 2 + 3 * 32
    for got, elsewhere, fan_in in (
        (model.stem.kernel, other.stem.kernel, 49),
        (model.blocks[1].layers[2].kernel, other.blocks[1].layers[2].kernel, 9 * 128),
        (model.blocks[1].layers[2].squeeze, other.blocks[1].layers[2].squeeze, 80 + 64),
        (model.transitions[0].squeeze, other.transitions[0].squeeze, 160),
    ):
        drawn = np.asarray(got[...]) * np.sqrt(fan_in / 2)
        assert abs(drawn.mean()) < 5 / np.sqrt(drawn.size)
        assert abs(drawn.std() - 1) < 5 / np.sqrt(2 * drawn.size)
        assert np.abs(drawn).max() > 2.5  # not cut off at two deviations
        assert not np.array_equal(got[...], elsewhere[...])
    head = model.heads["sex"]
    assert 0.5 / np.sqrt(176) < np.asarray(head.kernel[...]).std() < 0.65 / np.sqrt(176)
    np.testing.assert_array_equal(head.bias[...], 0)
    reader = model.blocks[0].layers[0].reader
    np.testing.assert_array_equal(reader.scale[...], 1)
    np.testing.assert_array_equal(reader.offset[...], 0)
    # Built inside jit, as a checkpoint's abstract target may be, it is the same model.
    inside = nnx.jit(lambda: from_config(config, {"sex": 2}, 0))()
    assert_close(nnx.state(inside), nnx.state(model), 1e-6)


def test_refusals():
    with pytest.raises(UserError, match="too small"):
        nnx.eval_shape(lambda: tiny(blocks=(1, 1, 1, 1))(pictures(1, 16), train=False))
    assert np.isfinite(run(tiny(blocks=(1, 1, 1, 1)), pictures(1, 32), train=False).features).all()
    for wrong in (jnp.zeros((2, 32, 32, 3)), jnp.zeros((2, 32, 32))):
        with pytest.raises(ValueError, match="height, width, 1"):
            nnx.eval_shape(lambda wrong=wrong: tiny()(wrong, train=False))


def test_foreign_statistics_fold_into_scale_and_offset(float64):
    """What the module's docstring says of checkpoints that keep a mean and a variance for every reader."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 3, 5))
    a, b, m, r = rng.normal(size=(4, 5))
    v, s = rng.uniform(0.1, 2, (2, 5))
    own = Moments(jnp.asarray(m), jnp.asarray(v))
    got = densenet._read(jnp.asarray(x), own, a * np.sqrt((v + 1e-5) / (s + 1e-5)), b + a * (m - r) / np.sqrt(s + 1e-5))
    np.testing.assert_allclose(got, np.maximum(a * (x - r) / np.sqrt(s + 1e-5) + b, 0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("train", [True, False])
def test_stem_with_a_constant(train, float64):
    """A constant whose kernel is the picture's own is 1 more at every pixel, and not in the zeros around them."""
    param = dict(param_dtype=float64["param_dtype"])
    plain = uneven(densenet.Stem(16, **param))
    assert plain.constant is None
    stem = densenet.Stem(16, constant=True, **param)
    nnx.update(stem, nnx.state(plain))
    stem.constant[...] = plain.kernel[...]
    images = pictures(3, 18, dtype=np.float64)
    rows = densenet._rows(None, len(images), None, images.dtype) if train else None
    assert_close(stem(images, rows), plain(images + 1, rows), 1e-12)
    assert_close(nnx.state(stem, nnx.BatchStat), nnx.state(plain, nnx.BatchStat), 1e-12)
