import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from cxr_jax.data import augment

MOVES = dict(flip=True, rotate_degrees=10.0, zoom=0.1, shift=0.05)
ACQUISITION = dict(window=0.2, field_of_view=0.3, exposure=0.5)
ALL = MOVES | ACQUISITION


jitted_affine = jax.jit(augment.affine)
jitted_augment = jax.jit(augment.augment, static_argnames=tuple(ALL))


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
    assert augment.augment(images, jax.random.key(0), jnp.arange(16), window=0.0, field_of_view=0.0, exposure=0.0) is images
    traced = jax.make_jaxpr(lambda x: augment.augment(x, jax.random.key(0), jnp.arange(16)))(images)
    assert not [e for e in traced.eqns if e.outvars[0] in traced.jaxpr.outvars]


@pytest.mark.parametrize("field", list(ALL))
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


@pytest.mark.parametrize("options", [MOVES, ACQUISITION, ALL])
def test_an_image_is_moved_alike_wherever_it_stands(options):
    images, index = pictures(), np.arange(100, 116)
    move = jax.jit(lambda x, i: augment.augment(x, jax.random.key(3), i, **options))
    out = np.asarray(move(images, index))
    order = np.random.default_rng(1).permutation(16)
    np.testing.assert_array_equal(np.asarray(move(images[order], index[order])), out[order])
    np.testing.assert_allclose(np.asarray(move(images[:4], index[:4])), out[:4], atol=1e-3)
    assert not np.array_equal(np.asarray(move(images, index + 1)), out)
    other = jitted_augment(jnp.asarray(images), jax.random.key(4), jnp.asarray(index), **options)
    assert not np.array_equal(np.asarray(other), out)


def test_padding_is_let_pass():
    images, index = np.zeros((2, 8, 8, 1), np.uint8), np.full(2, -1, np.int32)
    out = jitted_augment(jnp.asarray(images), jax.random.key(0), jnp.asarray(index), **MOVES)
    np.testing.assert_array_equal(np.asarray(out), images)
    out = jitted_augment(jnp.asarray(images), jax.random.key(0), jnp.asarray(index), **ALL)
    assert np.isfinite(np.asarray(out)).all()


def as_before(images, key, index):
    """`augment` under MOVES, as it was before there was acquisition to vary."""

    def one(image, i):
        side, turn, scale, across, down = jax.random.split(jax.random.fold_in(key, i), 5)

        def draw(key, bound):
            return jax.random.uniform(key, (), jnp.float32, -bound, bound)

        return augment.affine(
            image,
            flip=jax.random.bernoulli(side),
            radians=jnp.deg2rad(draw(turn, MOVES["rotate_degrees"])),
            zoom=1 + draw(scale, MOVES["zoom"]),
            right=draw(across, MOVES["shift"]),
            down=draw(down, MOVES["shift"]),
        )

    return jax.vmap(one)(images, index)


def test_the_moves_are_what_they_were_before_acquisition():
    images, key, index = jnp.asarray(pictures()), jax.random.key(5), jnp.arange(16)
    out = np.asarray(jitted_augment(images, key, index, **MOVES))
    np.testing.assert_array_equal(out, np.asarray(jax.jit(as_before)(images, key, index)))
    off = dict(window=0.0, field_of_view=0.0, exposure=0.0)
    np.testing.assert_array_equal(out, np.asarray(jitted_augment(images, key, index, **MOVES, **off)))


def test_acquisition_has_keys_of_its_own():
    own = jax.random.fold_in(jax.random.key(5), 3)
    acquisition = jax.random.fold_in(own, augment._ACQUISITION)
    keys = [acquisition, *jax.random.split(own, 5), *jax.random.split(acquisition, 6)]
    assert len({tuple(np.asarray(jax.random.key_data(k)).tolist()) for k in keys}) == 12


# The draws of an image, read off what becomes of an image that shows them, without a look at the keys.


def drawn_octaves(key, index, **options):
    grey = jnp.full((len(index), 2, 2, 1), 64, jnp.uint8)
    out = np.asarray(jitted_augment(grey, key, jnp.asarray(index), **options), np.float64)[:, 0, 0, 0]
    return np.log2(np.log(out / 255) / np.log(64 / 255))


def drawn_window(key, index, **options):
    """(lower, upper) in intensities, from two greys that no window below 1/4 clips."""
    greys = np.broadcast_to(np.array([80, 160], np.uint8)[None, :, None, None], (len(index), 2, 1, 1))
    out = np.asarray(jitted_augment(jnp.asarray(greys), key, jnp.asarray(index), **options), np.float64)[..., 0, 0]
    slope = (out[:, 1] - out[:, 0]) / 80
    lower = 80 - out[:, 0] / slope
    return lower, lower + 255 / slope


def drawn_boxes(key, index, height, width, **options):
    """(top, bottom, left, right): pixels of the source at which the outermost pixels of the crop are looked up."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    looked_up = [
        np.asarray(jitted_augment(jnp.asarray(np.tile(c[None, ..., None], (len(index), 1, 1, 1))), key, jnp.asarray(index), **options))
        for c in (y, x)
    ]
    return np.stack([looked_up[0][:, 0, 1], looked_up[0][:, -1, 1], looked_up[1][:, 1, 0], looked_up[1][:, 1, -1]])[..., 0].astype(np.float64)


def crop_by_scipy(image, top, bottom, left, right):
    height, width = image.shape
    at = np.meshgrid(np.linspace(top, bottom, height), np.linspace(left, right, width), indexing="ij")
    return scipy.ndimage.map_coordinates(image.astype(np.float64), at, order=1, mode="nearest")


def test_exposure_is_a_power():
    images, key, index = pictures(64), jax.random.key(2), np.arange(64)
    octaves = drawn_octaves(key, index, exposure=0.5)
    out = np.asarray(jitted_augment(jnp.asarray(images), key, jnp.asarray(index), exposure=0.5))
    expected = 255 * (images / 255.0) ** (2.0 ** octaves[:, None, None, None])
    np.testing.assert_allclose(out, expected, atol=0.01)
    assert np.abs(octaves).max() <= 0.5 + 1e-5
    assert octaves.max() > 0.4 and octaves.min() < -0.4


def test_window_is_a_stretch():
    images, key, index = pictures(64), jax.random.key(2), np.arange(64)
    lower, upper = (ends[:, None, None, None] for ends in drawn_window(key, index, window=0.2))
    out = np.asarray(jitted_augment(jnp.asarray(images), key, jnp.asarray(index), window=0.2))
    np.testing.assert_allclose(out, np.clip((images - lower) / (upper - lower) * 255, 0, 255), atol=0.01)
    for moved_by in (lower / 255, upper / 255 - 1):
        assert np.abs(moved_by).max() <= 0.2 + 1e-5
        assert moved_by.max() > 0.17 and moved_by.min() < -0.17
    assert abs(np.corrcoef(lower.ravel(), upper.ravel())[0, 1]) < 0.5  # each has its own draw: 4 standard deviations


def test_field_of_view_is_a_crop():
    height, width, n = 24, 36, 300
    images, key, index = pictures(n, height, width), jax.random.key(2), np.arange(n)
    boxes = drawn_boxes(key, index, height, width, field_of_view=0.3)
    out = np.asarray(jitted_augment(jnp.asarray(images), key, jnp.asarray(index), field_of_view=0.3))
    expected = [crop_by_scipy(image[..., 0], *box) for image, box in zip(images, boxes.T, strict=True)]
    np.testing.assert_allclose(out[..., 0], expected, atol=0.02)

    top, bottom, left, right = boxes
    share = 1 - (bottom - top) / (height - 1)
    np.testing.assert_allclose(1 - (right - left) / (width - 1), share, atol=1e-5)
    assert -1e-5 <= share.min() < 0.01 and 0.29 < share.max() <= 0.3 + 1e-5
    large = share > 0.05
    for start, length in ((top, height - 1), (left, width - 1)):
        place = (start / length / share)[large]
        assert -1e-3 < place.min() < 0.03 and 0.97 < place.max() < 1 + 1e-3
        assert abs(place.mean() - 0.5) < 4 * np.sqrt(1 / 12 / large.sum())
    assert abs(np.corrcoef((top / share)[large], (left / share)[large])[0, 1]) < 0.3


def test_a_crop_brings_no_black_in():
    white = jnp.full((500, 17, 24, 1), 255, jnp.uint8)
    for most in (0.01, 0.3, 0.9):
        out = np.asarray(jitted_augment(white, jax.random.key(0), jnp.arange(500), field_of_view=most))
        np.testing.assert_allclose(out, 255, atol=0.01)


@pytest.mark.parametrize("aside, below", [(-0.5, -0.5), (-0.5, 0.5), (0.5, -0.5), (0.5, 0.5)])
def test_a_crop_flush_with_a_corner_keeps_that_corner(aside, below):
    image, f = pictures(1, 20, 30)[0], np.float32
    place = augment.cropped(
        zoom=f(1), right=f(0), down=f(0), share=f(0.4), aside=f(aside), below=f(below), height=20, width=30
    )
    out = moved(image, **place)
    y, x = (-1 if below > 0 else 0), (-1 if aside > 0 else 0)
    assert abs(out[y, x, 0] - image[y, x, 0]) < 0.01


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("share, aside, below", [(0.0, 0.5, 0.5), (0.3, -0.4, 0.2), (0.6, 0.5, -0.5)])
def test_a_crop_comes_after_the_moves(flip, share, aside, below):
    image, f = pictures(1, 20, 30)[0], np.float32
    (height, width, _), radians, zoom, right, down = image.shape, 0.3, 0.9, 0.1, -0.2

    # In (row, column, 1), forward: from the centre, mirror, magnify, turn, displace, back; then the box to the whole.
    def displace(rows, columns):
        return np.array([[1, 0, rows], [0, 1, columns], [0, 0, 1.0]])

    centre = (height - 1) / 2, (width - 1) / 2
    cos, sin = np.cos(radians), np.sin(radians)
    moves = (
        displace(down * height, right * width)
        @ np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
        @ np.diag([zoom, zoom, 1])
        @ np.diag([1.0, -1.0 if flip else 1.0, 1])
    )
    moves = displace(*centre) @ moves @ np.linalg.inv(displace(*centre))
    corner = (below + 0.5) * share * (height - 1), (aside + 0.5) * share * (width - 1)
    crop = np.diag([1 / (1 - share), 1 / (1 - share), 1]) @ np.linalg.inv(displace(*corner))
    inverse = np.linalg.inv(crop @ moves)
    expected = scipy.ndimage.affine_transform(
        image[..., 0].astype(np.float64), inverse[:2, :2], inverse[:2, 2], order=1, mode="grid-constant", cval=0.0
    )
    place = augment.cropped(
        zoom=f(zoom), right=f(right), down=f(down), share=f(share), aside=f(aside), below=f(below), height=height, width=width
    )
    np.testing.assert_allclose(moved(image, flip, radians, **place)[..., 0], expected, atol=0.02)


def test_all_together_is_one_after_the_other():
    # A slope of grey, on which two bilinear resamplings are one; and white, to tell where black has come in.
    n, height, width = 32, 24, 36
    key, index = jax.random.key(6), np.arange(n)
    y, x = np.mgrid[:height, :width]
    slope = np.tile((20 + 3 * x + 4 * y).astype(np.uint8)[None, ..., None], (n, 1, 1, 1))
    white = np.full_like(slope, 255)
    boxes = drawn_boxes(key, index, height, width, field_of_view=0.3).T
    octaves = drawn_octaves(key, index, exposure=0.5)
    windows = np.transpose(drawn_window(key, index, window=0.2))

    def crop_of_moved(images):
        moves = np.asarray(jitted_augment(jnp.asarray(images), key, jnp.asarray(index), **MOVES))[..., 0]
        return np.array([crop_by_scipy(image, *box) for image, box in zip(moves, boxes, strict=True)])

    inside = crop_of_moved(white) > 254.99
    assert 0.5 < inside.mean() < 1
    expected = 255 * (crop_of_moved(slope) / 255) ** (2 ** octaves[:, None, None])
    lower, upper = windows.T[..., None, None]
    expected = np.clip((expected - lower) / (upper - lower) * 255, 0, 255)
    out = np.asarray(jitted_augment(jnp.asarray(slope), key, jnp.asarray(index), **ALL))[..., 0]
    np.testing.assert_allclose(out[inside], expected[inside], atol=0.05)


@pytest.mark.parametrize("options", [dict(exposure=1.0), dict(window=0.4), dict(exposure=1.0, window=0.4)])
def test_intensities_alone_are_not_resampled(options):
    every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    images, key, index = pictures(32), jax.random.key(7), jnp.arange(32)
    table = np.asarray(jitted_augment(jnp.asarray(np.tile(every, (32, 1, 1, 1))), key, index, **options)).reshape(32, 256)
    out = np.asarray(jitted_augment(jnp.asarray(images), key, index, **options))
    np.testing.assert_allclose(out, [t[image] for t, image in zip(table, images, strict=True)], atol=1e-3)
    assert (np.diff(table) >= -1e-4).all() and table.min() >= 0 and table.max() <= 255
    traced = str(jax.make_jaxpr(lambda x: augment.augment(x, key, index, **options))(jnp.asarray(images)))
    assert "floor" not in traced  # what a look-up between pixels begins with
    assert "floor" in str(jax.make_jaxpr(lambda x: augment.augment(x, key, index, **MOVES))(jnp.asarray(images)))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_black_and_white_have_every_exposure(dtype):
    images = np.stack([np.zeros((200, 4, 4, 1)), np.full((200, 4, 4, 1), 255)]).astype(dtype)
    for options in (dict(exposure=2.0), dict(exposure=2.0, field_of_view=0.5)):
        for image, value in zip(images, (0, 255), strict=True):
            out = np.asarray(jitted_augment(jnp.asarray(image), jax.random.key(0), jnp.arange(200), **options))
            np.testing.assert_allclose(out, value, atol=0.05)
    # What rounding has left outside 0 … 255 is taken for black and white.
    assert augment.exposed(jnp.float32([-1e-6, 255.0001]), jnp.float32(0.3)).tolist() == [0, 255]


@pytest.mark.parametrize("options", [dict(window=0.5), dict(window=-0.1), dict(field_of_view=1.0), dict(field_of_view=-0.1), dict(exposure=-1.0)])
def test_impossible_bounds_are_told(options):
    with pytest.raises(ValueError, match="window < 0.5"):
        augment.augment(jnp.asarray(pictures(1)), jax.random.key(0), jnp.arange(1), **options)


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
