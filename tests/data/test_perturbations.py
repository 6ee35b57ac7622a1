"""Perturbations against NumPy and SciPy written out for one image at a time, and what each must leave as it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage, stats

from configs import base, mechanism
from cxr_jax.data import perturbations as p
from cxr_jax.tables import UserError

RNG = np.random.default_rng(0)
IMAGES = (RNG.random((3, 48, 48, 1)) * 180 + 35 + 30 * np.sin(np.arange(48) / 3)[:, None, None]).astype(np.float32)


def by_radius(image, keep, mean=True):
    """One image, its frequencies by a whole transform whose origin is in the middle."""
    spectrum = np.fft.fftshift(np.fft.fft2(image.astype(np.float64)))
    h, w = image.shape
    y, x = np.mgrid[:h, :w]
    band = keep(np.hypot(y - h // 2, x - w // 2))
    band[h // 2, w // 2] |= mean
    return np.real(np.fft.ifft2(np.fft.ifftshift(np.where(band, spectrum, 0))))


FILTERS = {
    "low": (lambda x, r: p.low_pass(x, r), lambda r: lambda q: q <= r, True),
    "high": (lambda x, r: p.high_pass(x, r), lambda r: lambda q: q > r, True),
    "band": (lambda x, r: p.band_pass(x, r, r + 6), lambda r: lambda q: (q > r) & (q <= r + 6), True),
    "notch": (lambda x, r: p.notch(x, r, r + 6), lambda r: lambda q: (q <= r) | (q > r + 6), True),
    "published low": (p.published_low_pass, lambda r: lambda q: q < r, False),
    "published high": (p.published_high_pass, lambda r: lambda q: q >= r, False),
}


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("radius", [1.0, 5.0, 12.5])
def test_filters_keep_true_radii(name, radius):
    ours, keep, mean = FILTERS[name]
    out = jax.jit(ours)(IMAGES, radius)
    assert out.shape == IMAGES.shape and out.dtype == jnp.float32
    for image, got in zip(IMAGES, out):
        np.testing.assert_allclose(got[..., 0], by_radius(image[..., 0], keep(radius), mean), atol=2e-3)


def test_a_wave_passes_or_not_by_its_cycles():
    """Twelve from side to side and five from top to bottom have the radius 13."""
    x = np.arange(64) / 64
    wave = (100 + 50 * np.cos(2 * np.pi * (12 * x[None, :] + 5 * x[:, None])))[None, ..., None].astype(np.float32)
    flat = np.full_like(wave, 100)
    for out, wanted in (
        (p.low_pass(wave, 13), wave), (p.low_pass(wave, 12.9), flat), (p.high_pass(wave, 13), flat), (p.high_pass(wave, 12.9), wave),
        (p.band_pass(wave, 12, 13), wave), (p.band_pass(wave, 13, 20), flat), (p.notch(wave, 12, 13), flat), (p.notch(wave, 13, 20), wave),
        # The number that is called a diameter: its circle is twice as wide.
        (p.published_low_pass(wave, 14), wave), (p.published_low_pass(wave, 13), flat), (p.published_high_pass(wave, 13), wave - 100),
    ):  # fmt: skip
        np.testing.assert_allclose(out, wanted, atol=1e-3)


def test_bands_that_do_not_meet_add_up_to_the_image():
    mean = IMAGES.mean((1, 2, 3), keepdims=True)
    parts = [p.band_pass(IMAGES, low, high, mean=False) for low, high in ((-1, 0), (0, 4), (4, 9), (9, np.inf))]
    np.testing.assert_allclose(sum(parts), IMAGES, atol=2e-3)
    np.testing.assert_allclose(parts[0], np.broadcast_to(mean, IMAGES.shape), atol=1e-3)
    np.testing.assert_allclose(p.notch(IMAGES, 4, 9) + parts[2], IMAGES, atol=2e-3)


@pytest.mark.parametrize("deviation", [0.0, 0.7, 2.5])
def test_blur_is_scipys(deviation):
    wanted = np.stack([ndimage.gaussian_filter(image[..., 0].astype(np.float64), deviation, mode="reflect") for image in IMAGES])[..., None]
    np.testing.assert_allclose(jax.jit(p.blurred, static_argnums=1)(IMAGES, deviation), wanted, atol=1e-3)


def test_shrinking_loses_what_lies_beyond_the_pixels_left():
    x = np.arange(64) / 64
    coarse, fine = (100 + 50 * np.cos(2 * np.pi * f * x)[None, None, :, None] * np.ones((1, 64, 64, 1)) for f in (2, 28))
    out = p.down_sampled((coarse + fine - 100).astype(np.float32), 16)
    assert np.abs(out - coarse)[:, :, 8:-8].mean() < 12 and np.corrcoef(np.ravel(out), np.ravel(coarse))[0, 1] > 0.98
    np.testing.assert_allclose(p.down_sampled(IMAGES, 48), IMAGES, atol=1e-3)


def matched(image, reference):
    """As the usual matching does it, of one image: levels that are there, and those that are there in the reference."""
    values, place, counts = np.unique(image.ravel(), return_inverse=True, return_counts=True)
    theirs = np.flatnonzero(reference)
    quantiles = np.cumsum(reference[theirs]) / reference.sum()
    return np.interp(np.cumsum(counts) / image.size, quantiles, theirs)[place].reshape(image.shape)


def test_histograms_are_matched_level_by_level():
    images = np.round(IMAGES)
    for reference in (np.bincount(RNG.integers(0, 256, 5000), minlength=256), np.bincount(RNG.normal(90, 12, 4000).astype(int), minlength=256), np.eye(256, dtype=int)[77] * 10):
        out = jax.jit(p.histogram_matched)(images, reference.astype(np.float32))
        for image, got in zip(images, out):
            np.testing.assert_allclose(got[..., 0], matched(image[..., 0], reference), atol=0.05)
            assert reference.max() == reference.sum() or stats.spearmanr(image.ravel(), np.ravel(got)).statistic > 0.999
    own = np.bincount(images[0].astype(int).ravel(), minlength=256).astype(np.float32)
    np.testing.assert_allclose(p.histogram_matched(images[:1], own), images[:1], atol=0.05)


def test_clipping_is_of_gray_levels_and_the_published_one_of_normalised_ones():
    np.testing.assert_allclose(p.clipped(IMAGES, 0.2, 0.6), np.clip(IMAGES, 51, 153), rtol=1e-6)
    normalised = (IMAGES / 255 - 0.485) / 0.229
    normalised[normalised > 0.6] = 0.6
    np.testing.assert_allclose(p.published_clipped(IMAGES, 0.6), (normalised * 0.229 + 0.485) * 255, atol=1e-4)


def test_noise_is_each_images_own():
    gray = np.full((3, 64, 64, 1), 128, np.float32)
    key = jax.random.key(1)
    out = np.asarray(p.noisy(gray, key, np.array([5, 9, 5]), 20.0)) - 128
    np.testing.assert_array_equal(out[0], out[2])
    np.testing.assert_array_equal(np.asarray(p.noisy(gray[:1], key, np.array([9]), 20.0))[0] - 128, out[1])
    assert stats.kstest(out[:2].ravel() / 20, "norm").pvalue > 0.01 and abs(np.corrcoef(out[0].ravel(), out[1].ravel())[0, 1]) < 0.1
    bright = np.asarray(p.noisy(np.full_like(gray, 250), key, np.arange(3), 20.0))
    assert bright.max() == 255


def test_an_attack_moves_by_the_sign():
    gradient = RNG.normal(size=IMAGES.shape).astype(np.float32)
    gradient[0] = 0
    out = p.attacked(IMAGES, gradient, 3.0)
    np.testing.assert_allclose(out, np.clip(IMAGES + 3 * np.sign(gradient), 0, 255), rtol=1e-6)


@pytest.mark.parametrize("size", [48, 50])
def test_places_make_up_the_image(size):
    images = RNG.random((2, size, size, 1)).astype(np.float32) + 1
    alone = [np.asarray(p.cell_alone(images, number)) for number in range(9)]
    np.testing.assert_array_equal(sum(alone), images)
    for number, part in enumerate(alone):
        np.testing.assert_array_equal(part + p.cell_out(images, number), images)
    # Counted by rows; the last takes what is left over.
    n = size // 3
    assert (alone[1][:, :n, n : 2 * n] > 0).all() and (alone[1] > 0).sum() == 2 * n * n and (alone[8][:, 2 * n :, 2 * n :] > 0).all()
    for share in (0.0, 0.5, 1.0):
        inside, around = (np.asarray(f(images, share)) for f in (p.middle_alone, p.border_alone))
        np.testing.assert_array_equal(inside + around, images)
        assert (inside > 0).sum() == 2 * (2 * (size * share // 2)) ** 2


def test_what_is_shown_of_images_is_what_its_name_says():
    for shown, wanted in [((), IMAGES), (("low_pass", 5.0), p.low_pass(IMAGES, 5.0)), (["notch", 3, 6], p.notch(IMAGES, 3.0, 6.0)), (("down_sampled", 16), p.down_sampled(IMAGES, 16))]:
        p.check_shown(shown)
        np.testing.assert_allclose(p.seen(jnp.asarray(IMAGES), shown), wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("shown", "told"),
    [
        (("low_pass", 129.0), r"129.0 is not within 0 to 128, Nyquist's frequency of images of 256 pixels"),
        (("low_pas", 3.0), "no perturbation 'low_pas'; did you mean 'low_pass'"),
        (("notch", 3.0), "not two numbers"),
        (("notch", 6.0, 3.0), "the first is to be below the second"),
        (("down_sampled", 8.5), "not a whole number"),
        (("low_pass", float("nan")), "not a number"),
        (("low_pass",), "a name and its strength"),
        (("noisy", 3.0), "config.train.augment"),
    ],
)
def test_what_cannot_be_shown_is_told_in_a_line(shown, told):
    with pytest.raises(UserError, match=told) as error:
        p.check_shown(shown)
    assert "\n" not in str(error.value) and str(error.value).startswith("config.train.shown")


def test_every_strength_of_the_base_config_can_be_had():
    series = base.get_config().mechanism.series
    assert set(series) == set(p.PERTURBATIONS)
    for name, strengths in series.items():
        p.check(name, strengths, "config.mechanism.series")
    for name, strengths in mechanism.PUBLISHED.items():
        p.check(name.rpartition(".")[2], strengths, "config.mechanism.series")
