"""Maps against what is known in closed form or written out in NumPy, planted signals that they must find, and checks that tell a good map from a bad one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import ndimage, stats

from cxr_jax.data import augment, perturbations
from cxr_jax.mechanism import saliency as s
from cxr_jax.models.densenet import DenseNet

RNG = np.random.default_rng(0)
IMAGES = (RNG.random((3, 32, 32, 1)) * 180 + 35).astype(np.float32)
WEIGHTS = RNG.normal(size=(32, 32, 1)).astype(np.float32)
KEY = jax.random.key(0)


def linear(images):
    return (images * WEIGHTS).sum((1, 2, 3))


def curved(images):
    """No sum of what single pixels say."""
    return jnp.tanh(linear(images) / 2000) + jnp.square(images[:, 3, 4, 0] * images[:, 20, 9, 0] / 1e4)


def uneven(seed=0):
    """(graphdef, params, stats) of a small DenseNet with nothing left at the value it starts at."""
    rng = np.random.default_rng(seed)
    network = DenseNet({"race": 3, "finding": 2}, growth=8, blocks=(1, 1), stem=8, rngs=nnx.Rngs(0))
    graph, params, others = nnx.split(network, nnx.Param, nnx.BatchStat)
    return graph, *jax.tree.map(lambda x: jnp.asarray(x * rng.uniform(0.7, 1.3, x.shape) + rng.uniform(0, 0.05, x.shape), x.dtype), (params, others))


@pytest.fixture(scope="module")
def densenet():
    return uneven()


# ------------------------------------------------------------------------------------------------------------------ maps


def test_gradients_of_a_linear_logit_are_weight_times_distance():
    for baseline in (None, 0.0, IMAGES[::-1]):
        start = IMAGES.mean((1, 2, 3), keepdims=True) if baseline is None else baseline
        got = jax.jit(lambda images, baseline=baseline: s.integrated_gradients(linear, images, 3, baseline))(IMAGES)
        assert got.shape == (3, 32, 32) and got.dtype == jnp.float32
        np.testing.assert_allclose(got, (WEIGHTS * (IMAGES - start))[..., 0], atol=1e-3)


def test_gradients_along_a_curve_are_its_integral():
    """y = (x_p x_q)² from 0: half of it is each one's, whatever the way between; the midpoint rule errs by 1/n²."""
    logits = lambda images: jnp.square(images[:, 3, 4, 0] * images[:, 20, 9, 0] / 1e4)
    got, whole = np.asarray(s.integrated_gradients(logits, IMAGES, 64, 0.0)), np.asarray(logits(IMAGES))
    for place in ((3, 4), (20, 9)):
        np.testing.assert_allclose(got[:, *place], whole / 2, rtol=1e-3)
    assert np.count_nonzero(got) == 6


def occluded(image, size, starts, fill):
    drops, covered = np.zeros((32, 32)), np.zeros((32, 32))
    for y in starts:
        for x in starts:
            less = image.copy()
            less[y : y + size, x : x + size] = fill
            drops[y : y + size, x : x + size] += float(curved(image[None])[0]) - float(curved(less[None])[0])
            covered[y : y + size, x : x + size] += 1
    return drops / covered


@pytest.mark.parametrize("size, stride, starts", [(8, 8, (0, 8, 16, 24)), (12, 9, (0, 9, 18, 20))])
def test_occlusion_is_the_mean_drop_over_boxes(size, stride, starts):
    got = jax.jit(lambda images: s.occlusion(curved, images, size, stride))(IMAGES)
    for image, of in zip(IMAGES, got):
        np.testing.assert_allclose(of, occluded(image, size, starts, image.mean()), atol=1e-4)
    black = s.occlusion(curved, IMAGES[:1], size, stride, 0.0)
    np.testing.assert_allclose(black[0], occluded(IMAGES[0], size, starts, 0), atol=1e-4)


@pytest.mark.parametrize("size, stride", [(4, 5), (33, 2), (4, 0)])
def test_boxes_that_leave_pixels_out_are_refused(size, stride):
    with pytest.raises(ValueError, match=f"boxes of {size} pixels at a stride of {stride}"):
        s.occlusion(linear, IMAGES, size, stride)


def test_grad_cam_by_hand():
    """A convolution and a reading that is not linear, their gradient written out."""
    kernel, weights = RNG.normal(size=(5, 5, 1, 4)).astype(np.float32), np.array([1.0, -0.3, 0.5, -0.2], np.float32)

    def maps(images):
        form = ("NHWC", "HWIO", "NHWC")
        return jax.nn.relu(jax.lax.conv_general_dilated((images - 125) / 100, kernel, (4, 4), "VALID", dimension_numbers=form))

    network = s.Network(maps, lambda maps: (jnp.square(maps).sum((1, 2)) * weights).sum(1))
    got = jax.jit(functools.partial(s.grad_cam, network))(IMAGES)
    for image, of in zip(IMAGES, got):
        patches = np.lib.stride_tricks.sliding_window_view((image[..., 0] - 125) / 100, (5, 5))[::4, ::4]
        a = np.maximum((patches[..., None] * kernel[..., 0, :]).sum((2, 3)), 0)
        small = np.maximum(((2 * a * weights).mean((0, 1)) * a).sum(-1), 0)
        where = (np.arange(32) + 0.5) * 7 / 32 - 0.5
        large = ndimage.map_coordinates(small, np.meshgrid(where, where, indexing="ij"), order=1, mode="nearest")
        assert small.max() > 0
        np.testing.assert_allclose(of, large, rtol=1e-3, atol=1e-3)


def test_a_head_is_read_as_the_network_reads_it(densenet):
    @jax.jit
    def run(params, others, images):
        network = densenet[0], params, others, 64
        out = nnx.merge(*network[:3])(augment.to_model_input(images, 64), train=False)
        weights = jnp.cos(jnp.arange(out.features.shape[1], dtype=jnp.float32))
        probe = s.of_reading(*network, weights, 0.5)
        heads = s.of_head(*network, "race", 2).logits(images), s.of_head(*network, "race", 2, (0, 1)).logits(images)
        return out, heads, weights, probe.logits(images), probe.maps(images), s.grad_cam(probe, images)

    out, (one, against), weights, read, maps, cam = jax.device_get(run(*densenet[1:], IMAGES))
    race = out.logits["race"]
    np.testing.assert_allclose(one, race[:, 2], rtol=1e-5)
    np.testing.assert_allclose(against, race[:, 2] - race[:, :2].mean(1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(read, out.features @ weights + 0.5, rtol=1e-4, atol=1e-5)
    # The closed form of Grad-CAM, and that it adds up.
    assert maps.shape[1:3] == (8, 8) and maps.min() == 0
    evidence = (maps * weights).sum(-1) / 64
    np.testing.assert_allclose(evidence.sum((1, 2)) + 0.5, read, rtol=1e-4)
    wanted = jax.image.resize(np.maximum(evidence, 0), (3, 32, 32), "linear")
    assert wanted.max() > 0
    np.testing.assert_allclose(cam, wanted, atol=1e-5 * np.abs(evidence).max())


def test_a_network_sees_what_it_is_shown(densenet):
    smooth = perturbations.low_pass(IMAGES, 4.0)
    run = jax.jit(lambda images, shown: s.of_head(*densenet, 32, "race", 0, shown=shown).logits(images), static_argnums=1)
    got, plain = run(IMAGES, ("low_pass", 4.0)), run(IMAGES, ())
    np.testing.assert_allclose(got, run(smooth, ()), rtol=1e-4)
    assert (np.abs(got - plain) > 1e-3 * np.abs(plain)).all()


def test_gradients_of_a_densenet_are_complete(densenet):
    graph, params, others = densenet

    @jax.jit
    def run(params, others, images):
        logits = s.of_head(graph, params, others, 32, "finding", 1).logits
        fine, coarse = (s.integrated_gradients(logits, images, steps) for steps in (64, 1))
        at_flat = logits(jnp.broadcast_to(images.mean((1, 2, 3), keepdims=True), images.shape))
        return fine.sum((1, 2)), logits(images) - at_flat, s.incompleteness(logits, images, fine), s.incompleteness(logits, images, coarse)

    got, difference, (off, should), (far_off, _) = run(params, others, IMAGES)
    assert np.abs(difference).min() > 0.01
    np.testing.assert_allclose(got, difference, rtol=0.02)
    np.testing.assert_allclose(should, difference, rtol=1e-5)
    np.testing.assert_allclose(off, got - difference, atol=1e-5)
    assert (np.abs(far_off) > 5 * np.abs(off)).all()


# ------------------------------------------------------------------------------------------------------- a planted signal

CORNER = np.zeros((32, 32), bool)
CORNER[24:, 24:] = True
MANY = (RNG.random((48, 32, 32, 1)) * 180 + 35).astype(np.float32)


def contrast(images):
    """Maps of 4 x 4 places, one kernel that sees the contrast of the last place, and one that sees nothing."""
    there = (jnp.square(images - 125) * CORNER[..., None].astype(np.float32)).reshape(-1, 4, 8, 4, 8).mean((2, 4))
    return jnp.stack([there, jnp.ones_like(there)], -1) / 1000


PLANTED = s.Network(contrast, lambda maps: maps.mean((1, 2)) @ jnp.array([16.0, -1.0]))
WAYS = {
    "cam": functools.partial(s.grad_cam, PLANTED),
    "gradients": functools.partial(s.integrated_gradients, PLANTED.logits, steps=8),
    "occlusion": functools.partial(s.occlusion, PLANTED.logits, size=8, stride=8),
}


@functools.partial(jax.jit, static_argnums=0)
def curves_of(cell, maps, images):
    return s.deletion(PLANTED.logits, images, maps, KEY, jnp.arange(len(images)), cell=cell, steps=8)


@pytest.mark.parametrize("way", WAYS)
def test_what_was_planted_is_found_and_is_faithful(way):
    maps = np.asarray(jax.jit(WAYS[way])(MANY))
    assert CORNER.ravel()[np.abs(maps).reshape(len(MANY), -1).argmax(1)].all()
    assert (np.abs(maps)[:, CORNER].sum(1) > (0.6 if way == "cam" else 0.99) * np.abs(maps).sum((1, 2))).all()  # an enlarged map is blurred
    curves = curves_of(8, maps, MANY)
    np.testing.assert_allclose(curves.first[:, 0], PLANTED.logits(MANY), rtol=1e-5)
    at_flat = PLANTED.logits(jnp.broadcast_to(s.flat(MANY), MANY.shape))
    for curve in curves:
        assert curve.shape == (len(MANY), 9)
        np.testing.assert_allclose(curve[:, -1], at_flat, atol=1e-5)
    # The corner is one of 16 cells and so within the first share of 1/8: the area beside a curve that never moves is all but half of a share.
    whole = np.asarray(curves.first[:, 0] - curves.first[:, -1])
    np.testing.assert_allclose(curves.first[:, 1], at_flat, atol=1e-5)
    np.testing.assert_allclose(jnp.trapezoid(curves.last - curves.first, dx=1 / 8, axis=1), whole * 7 / 8, rtol=1e-3)
    areas = np.asarray(s.faithful(curves))
    assert (areas >= -1e-4).all() and areas.mean() > 0.3 * whole.mean()


def test_noise_is_not_faithful():
    areas = np.asarray(s.faithful(curves_of(8, jnp.asarray(RNG.normal(size=MANY.shape[:3]), jnp.float32), MANY)))
    assert areas.std() > 0.1 and abs(areas.mean()) < 3 * areas.std() / np.sqrt(len(areas))


def test_deletion_by_hand():
    """A map without equals, in cells of 4, by shares that do not divide 64 cells; 0 in place of what is taken out."""
    maps = RNG.normal(size=(3, 32, 32)).astype(np.float32)
    got = s.deletion(curved, IMAGES, jnp.asarray(maps), KEY, jnp.arange(3), cell=4, steps=5, baseline=0.0)
    for which, sign in (("first", 1), ("last", -1)):
        for i, image in enumerate(IMAGES):
            ranked = sorted(((sign * maps[i, y : y + 4, x : x + 4].astype(float).mean(), y, x) for y in range(0, 32, 4) for x in range(0, 32, 4)), reverse=True)
            for step, count in enumerate((0, 13, 26, 38, 51, 64)):
                less = image.copy()
                for _, y, x in ranked[:count]:
                    less[y : y + 4, x : x + 4] = 0
                np.testing.assert_allclose(getattr(got, which)[i, step], curved(less[None])[0], rtol=1e-4, atol=1e-3)


def test_equals_are_taken_out_at_random():
    """A map of equals is the random order, each image's own by its number, wherever it stands in a batch."""
    got = curves_of(8, jnp.zeros((48, 32, 32)), MANY)
    np.testing.assert_array_equal(got.first, got.random)
    np.testing.assert_array_equal(got.last, got.random)
    alone = s.deletion(PLANTED.logits, MANY[5:7], jnp.zeros((2, 32, 32)), KEY, jnp.array([5, 6]), cell=8, steps=8)
    np.testing.assert_allclose(alone.random, got.random[5:7], rtol=1e-5)
    assert len({int(np.argmin(np.diff(curve))) for curve in got.random}) > 3  # when the corner went


def test_cells_that_do_not_divide_the_image_are_refused():
    with pytest.raises(ValueError, match="cells of 5 pixels do not divide images of 32x32"):
        s.deletion(linear, IMAGES, jnp.zeros((3, 32, 32)), KEY, jnp.arange(3), cell=5, steps=4)


# ------------------------------------------------------------------------------------------------------------ common frame


def body(height=64, width=64, *, down=0.0, right=0.0, tall=1.0, wide=1.0, gain=1.0):
    """A bright ellipse with two dark lungs in black, moved by shares of a side and scaled, and a map that has a bump in one lung."""
    y = ((np.arange(height) + 0.5) / height - 0.5 - down)[:, None] / tall
    x = ((np.arange(width) + 0.5) / width - 0.5 - right)[None, :] / wide
    image = 150 / (1 + np.exp(80 * (np.hypot(y / 0.32, x / 0.28) - 1)))
    bump = np.exp(-((y - 0.08) ** 2 + (x - 0.12) ** 2) / 0.004)
    image = image - 90 * np.exp(-(y**2 / 0.02 + (x - 0.12) ** 2 / 0.003)) - 60 * np.exp(-(y**2 / 0.02 + (x + 0.12) ** 2 / 0.003))
    return np.clip(gain * image, 0, 255)[..., None].astype(np.float32), bump.astype(np.float32)


def test_a_body_moved_and_scaled_comes_back():
    here, there = body(), body(down=0.08, right=-0.1, tall=0.8, wide=1.15, gain=1.1)
    images, maps = (np.stack(pair) for pair in zip(here, there))
    moved, of = jax.jit(functools.partial(s.aligned, spread=0.2))(images, maps)
    assert moved.shape == images.shape and of.shape == maps.shape
    for before, after in ((images, moved), (maps, of)):
        unlike, alike = (np.corrcoef(np.ravel(x[0]), np.ravel(x[1]))[0, 1] for x in (before, after))
        assert unlike < 0.75 and alike > 0.98
    # In the frame the body's moments are those that were asked for.
    weight = np.clip((np.asarray(moved)[..., 0] - 13) / 25, 0, 1)
    for axis in (1, 2):
        marginal, place = weight.sum(3 - axis), (np.arange(64) + 0.5) / 64
        centre = (marginal * place).sum(1) / marginal.sum(1)
        np.testing.assert_allclose(centre, 0.5, atol=0.003)
        np.testing.assert_allclose(np.sqrt((marginal * (place - centre[:, None]) ** 2).sum(1) / marginal.sum(1)), 0.2, atol=0.004)


def test_alignment_leaves_what_has_no_body_and_blows_nothing_up():
    black, dot = np.zeros((64, 64, 1), np.float32), np.zeros((64, 64, 1), np.float32)
    dot[10, 10] = 255
    maps = RNG.random((2, 64, 64)).astype(np.float32)
    moved, of = s.aligned(np.stack([black, dot]), maps)
    np.testing.assert_allclose(of[0], maps[0], atol=1e-6)
    assert np.isfinite(of).all() and 1 <= (np.asarray(moved[1]) > 60).sum() <= 9 and moved[1, 30:34, 30:34].max() > 100


# ------------------------------------------------------------------------------------------------------------------ means


def test_shares_add_up_and_keep_signs():
    maps = RNG.normal(size=(3, 8, 8)).astype(np.float32) * np.array([1, 1000, 0], np.float32)[:, None, None]
    got = np.asarray(s.shares(maps))
    np.testing.assert_allclose(np.abs(got[:2]).sum((1, 2)), 1, rtol=1e-5)
    assert (np.sign(got[:2]) == np.sign(maps[:2])).all() and np.isnan(got[2]).all()


def test_means_are_over_patients():
    """Against NumPy, images in any order, some with no map, some patients with none at all; errors as SciPy has them."""
    n = 60
    group, patient = RNG.integers(-1, 3, n), RNG.integers(0, 12, n).astype(str)
    group[patient == "3"], group[7] = 2, 3
    maps = RNG.normal(size=(n, 4, 4)) + 5
    maps[(patient == "3") | (RNG.random(n) < 0.1)] = np.nan
    maps[7] = 1.0
    means = s.MapMeans(["a", "b", "c", "one", "empty"], group, patient)
    order = RNG.permutation(n)
    for rows in np.array_split(order, 7):
        means.add(rows, maps[rows])
    got = means.result()
    assert list(got) == ["a", "b", "c", "one"]
    known = ~np.isnan(maps).any((1, 2))
    for g, of in enumerate(got.values()):
        mine = (group == g) & known
        by_patient = np.stack([maps[mine & (patient == p)].mean(0) for p in np.unique(patient[mine])])
        assert (of.patients, of.images, of.undefined) == (len(by_patient), mine.sum(), ((group == g) & ~known).sum())
        np.testing.assert_allclose(of.mean, by_patient.mean(0), rtol=1e-12)
        if g == 3:
            assert np.isnan(of.error).all()
        else:
            np.testing.assert_allclose(of.error, stats.sem(by_patient), rtol=1e-10)
    assert got["c"].undefined >= (patient == "3").sum() > 0


def test_means_ask_for_every_map_once():
    means = s.MapMeans(["a"], np.array([0, 0, -1]), np.array(["p", "q", "q"]))
    means.add([0, 2], np.ones((2, 2, 2)))
    with pytest.raises(RuntimeError, match="1 images of the groups have no map yet"):
        means.result()
    for row in (0, 2):
        with pytest.raises(RuntimeError, match=f"row {row} came twice"):
            means.add([row], np.ones((1, 2, 2)))
    means.add([1], np.full((1, 2, 2), np.nan))
    only = means.result()["a"]
    assert (only.patients, only.images, only.undefined) == (1, 1, 1) and (only.mean == 1).all()


def test_a_group_without_any_map_has_no_mean():
    means = s.MapMeans(["a"], np.array([0]), np.array(["p"]))
    means.add([0], np.full((1, 2, 2), np.nan))
    only = means.result()["a"]
    assert only.patients == 0 and only.undefined == 1 and np.isnan(only.mean).all() and np.isnan(only.error).all()


# ---------------------------------------------------------------------------------------------------------- sanity checks


def test_similarity_is_spearmans():
    a, b = (RNG.normal(size=(5, 24, 24)).astype(np.float32) for _ in range(2))
    b[1] = a[1] ** 3  # the same order
    b[2] += 2 * a[2]
    a[3], b[3] = np.round(a[3]), np.round(a[3] + b[3])  # many equals
    a[4] = np.maximum(a[4], 0)
    got = jax.jit(s.similarity)(a, b)
    for one, x, y in zip(got, a, b):
        np.testing.assert_allclose(one, stats.spearmanr(np.abs(x).ravel(), np.abs(y).ravel()).statistic, atol=1e-5)
    np.testing.assert_allclose([s.similarity(a, -a)[0], got[1]], 1, atol=1e-5)
    assert np.isnan(s.similarity(a, np.ones_like(a))).all()


def test_kernels_are_mixed_and_nothing_else(densenet):
    graph, params, others = densenet
    heads = {path for path, _ in jax.tree_util.tree_leaves_with_path(params) if "heads" in jax.tree_util.keystr(path)}
    assert heads
    for heads_only in (False, True):
        mixed = s.randomised(params, KEY, heads_only)
        changed = 0
        for (path, was), now in zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(mixed), strict=True):
            assert now.dtype == was.dtype and now.shape == was.shape and now.sharding == was.sharding
            np.testing.assert_array_equal(np.sort(np.ravel(was)), np.sort(np.ravel(now)))
            moved = (np.asarray(was) != np.asarray(now)).any()
            assert moved == (was.ndim > 1 and (path in heads or not heads_only)), path
            changed += moved
        assert changed == (2 if heads_only else 2 + 1 + 2 * 2 + 1)
    again, other = s.randomised(params, KEY), s.randomised(params, jax.random.key(1))
    whole = s.randomised(params, KEY)
    assert all((x == y).all() for x, y in zip(jax.tree.leaves(whole), jax.tree.leaves(again)))
    assert any((x != y).any() for x, y in zip(jax.tree.leaves(whole), jax.tree.leaves(other)))


def test_a_map_of_another_network_is_another(densenet):
    """The model-randomisation test: maps of the network itself agree, those of it with kernels mixed up do not."""
    graph, params, others = densenet
    run = jax.jit(lambda params: s.integrated_gradients(s.of_head(graph, params, others, 32, "race", 0).logits, IMAGES, 4))
    mine = run(params)
    assert (s.similarity(mine, run(params)) > 0.999).all()
    assert (s.similarity(mine, run(s.randomised(params, KEY))) < 0.8).all()
