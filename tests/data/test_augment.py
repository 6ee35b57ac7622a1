import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from cxr_jax.data import augment

ALL = dict(flip=True, rotate_degrees=10.0, zoom=0.1, shift=0.05)


jitted_affine = jax.jit(augment.affine)
jitted_augment = jax.jit(augment.augment, static_argnames=("flip", "rotate_degrees", "zoom", "shift"))


def pictures(n=16, height=24, width=24):
    return np.random.default_rng(0).integers(0, 256, (n, height, width, 1), dtype=np.uint8)


def moved(image, flip=False, radians=0.0, zoom=1.0, right=0.0, down=0.0):
    f = jnp.float32
    out = jitted_affine(
        jnp.asarray(image), flip=jnp.bool_(flip), radians=f(radians), zoom=f(zoom), right=f(right), down=f(down)
    )
    assert out.dtype == jnp.float32 and out.shape == image.shape
    return np.asarray(out)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    "radians, zoom, right, down", [(0.3, 1.0, 0, 0), (0, 1.2, 0, 0), (0, 1, 0.1, -0.2), (-0.2, 0.8, 0.05, 0.1)]
)
def test_affine_agrees_with_scipy(flip, radians, zoom, right, down):
    image = pictures(1, 20, 30)[0]
    height, width, _ = image.shape
    # forward, in (row, column): mirror, magnify, turn counter-clockwise as seen (rows count downwards), displace
    mirror = np.diag([1.0, -1.0 if flip else 1.0])
    turn = np.array([[np.cos(radians), -np.sin(radians)], [np.sin(radians), np.cos(radians)]])
    inverse = np.linalg.inv(turn @ (zoom * np.eye(2)) @ mirror)
    centre = np.array([(height - 1) / 2, (width - 1) / 2])
    offset = centre - inverse @ (centre + np.array([down * height, right * width]))
    expected = scipy.ndimage.affine_transform(
        image[..., 0].astype(np.float64), inverse, offset, order=1, mode="grid-constant", cval=0.0
    )
    np.testing.assert_allclose(moved(image, flip, radians, zoom, right, down)[..., 0], expected, atol=0.01)


def test_directions():
    image = np.zeros((9, 9, 1), np.uint8)
    image[4, 8] = 255  # right of the centre, at 3 o'clock
    assert np.unravel_index(moved(image, flip=True).argmax(), (9, 9)) == (4, 0)
    assert np.unravel_index(moved(image, radians=np.pi / 2).argmax(), (9, 9)) == (0, 4)  # to 12 o'clock
    assert np.unravel_index(moved(image, right=-1 / 9).argmax(), (9, 9)) == (4, 7)
    assert np.unravel_index(moved(image, down=2 / 9).argmax(), (9, 9)) == (6, 8)
    image = np.zeros((9, 9, 1), np.uint8)
    image[4, 6] = 255
    assert np.unravel_index(moved(image, zoom=2.0).argmax(), (9, 9)) == (4, 8)


def test_identity_map_changes_nothing():
    image = pictures(1)[0]
    np.testing.assert_array_equal(moved(image), image)


def test_off_is_exactly_off():
    images = jnp.asarray(pictures())
    out = augment.augment(images, jax.random.key(0), jnp.arange(16))
    assert out is images
    traced = jax.make_jaxpr(lambda x: augment.augment(x, jax.random.key(0), jnp.arange(16)))(images)
    assert not [e for e in traced.eqns if e.outvars[0] in traced.jaxpr.outvars]


@pytest.mark.parametrize("field", ["flip", "rotate_degrees", "zoom", "shift"])
def test_each_one_alone(field):
    images = pictures(64)
    out = np.asarray(jitted_augment(jnp.asarray(images), jax.random.key(1), jnp.arange(64), **{field: ALL[field]}))
    assert out.dtype == np.float32 and out.shape == images.shape
    same = np.array([np.array_equal(a, b) for a, b in zip(out, images, strict=True)])
    if field == "flip":
        mirrored = np.array([np.array_equal(a, b[:, ::-1]) for a, b in zip(out, images, strict=True)])
        assert (same ^ mirrored).all()
        assert 16 < mirrored.sum() < 48  # 4 standard deviations about 32
    else:
        assert not same.any()


def test_draws_keep_within_their_bounds():
    # A dot at the centre stays within the shift, and a shift reaches far towards its bounds.
    images = np.zeros((200, 41, 41, 1), np.uint8)
    images[:, 20, 20] = 255
    out = np.asarray(jitted_augment(jnp.asarray(images), jax.random.key(0), jnp.arange(200), shift=0.1))[..., 0]
    grid = np.arange(41) - 20
    weight = out.sum((1, 2))
    for axis in (1, 2):
        displacement = (out.sum(3 - axis) * grid).sum(1) / weight / 41
        assert np.abs(displacement).max() <= 0.1 + 1e-5
        assert displacement.max() > 0.09 and displacement.min() < -0.09


def test_an_image_is_moved_alike_wherever_it_stands():
    images, index = pictures(), np.arange(100, 116)
    move = jax.jit(lambda x, i: augment.augment(x, jax.random.key(3), i, **ALL))
    out = np.asarray(move(images, index))
    order = np.random.default_rng(1).permutation(16)
    np.testing.assert_array_equal(np.asarray(move(images[order], index[order])), out[order])
    np.testing.assert_allclose(np.asarray(move(images[:4], index[:4])), out[:4], atol=1e-3)
    assert not np.array_equal(np.asarray(move(images, index + 1)), out)
    other = jitted_augment(jnp.asarray(images), jax.random.key(4), jnp.asarray(index), **ALL)
    assert not np.array_equal(np.asarray(other), out)


def test_padding_is_let_pass():
    images, index = np.zeros((2, 8, 8, 1), np.uint8), np.full(2, -1, np.int32)
    out = jitted_augment(jnp.asarray(images), jax.random.key(0), jnp.asarray(index), **ALL)
    np.testing.assert_array_equal(np.asarray(out), images)


def test_one_and_eight_devices_agree():
    images, index = pictures(), np.arange(16, dtype=np.int32)
    move = jax.jit(lambda x, i: augment.to_model_input(augment.augment(x, jax.random.key(3), i, **ALL), 12))
    one = np.asarray(move(images, index))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    eight = move(jax.device_put(images, sharding), jax.device_put(index, sharding))
    assert len(eight.sharding.device_set) == 8
    np.testing.assert_allclose(np.asarray(eight), one, atol=1e-5)


def triangle_weights(size_in, size_out):
    """Rows of the published antialiased bilinear filter: a triangle about each output pixel's centre, as wide as the
    shrinking."""
    scale = max(1.0, size_in / size_out)
    centre = (np.arange(size_out)[:, None] + 0.5) * size_in / size_out - 0.5
    weight = np.maximum(0, 1 - np.abs(np.arange(size_in)[None] - centre) / scale)
    return weight / weight.sum(1, keepdims=True)


@pytest.mark.parametrize("size", [8, 10, 24, 32])
def test_model_input_is_the_stated_filter_and_scale(size):
    images = pictures(3)
    weights = triangle_weights(24, size)
    expected = np.einsum("iy,nyxc,jx->nijc", weights, images.astype(np.float64), weights) / 127.5 - 1
    out = augment.to_model_input(jnp.asarray(images), size)
    assert out.dtype == jnp.float32 and out.shape == (3, size, size, 1)
    np.testing.assert_allclose(np.asarray(out), expected, atol=2e-6)
    low = augment.to_model_input(jnp.asarray(images), size, jnp.bfloat16)
    assert low.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(low), np.asarray(out.astype(jnp.bfloat16)))


def test_black_is_minus_one_and_white_one():
    images = np.stack([np.zeros((8, 8, 1)), np.full((8, 8, 1), 255)]).astype(np.uint8)
    for size in (4, 8):
        out = np.asarray(augment.to_model_input(jnp.asarray(images), size))
        np.testing.assert_allclose(out[0], -1, atol=1e-6)
        np.testing.assert_allclose(out[1], 1, atol=1e-6)


def test_no_tensorflow():
    code = "import sys, cxr_jax.data.augment, cxr_jax.data.cohorts; assert 'tensorflow' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
