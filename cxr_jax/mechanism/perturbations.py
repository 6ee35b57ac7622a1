"""Images without some of what they show: by frequency, resolution, gray level, place or noise. What a model reads is what it cannot read without.

All take images as stored, float32 [b, h, w, 1] of gray levels in 0 … 255, and give the same; nothing is normalised before, nothing clipped after, unless it says so.
They are pure functions of arrays, so that they run inside a jitted pass on whatever device the images are on; strengths are traced but where it says static, and
a series of them compiles once.

**Frequencies** are in cycles per image: a frequency (u, v), u periods from side to side and v from top to bottom, has the radius √(u² + v²), and the highest that
an image of w pixels a side holds in either direction is w / 2. A filter keeps what its pass band holds, and the mean gray level with it, which is no structure.

    low_pass     radii up to r              band_pass    radii above r, up to s
    high_pass    radii above r              notch        all but these

**As published.** Gichoya et al. (2022, "AI recognition of patient race in medical imaging", Lancet Digital Health 4:e406) filter with circles that they name by a
diameter; their code takes that number for the radius, and leaves the rim, and in high-pass filters the mean, out. It clips gray levels at a threshold of 0 to 1
after these were normalised to another mean and deviation than 0 and 1. `published_*` are those; the others, at half the number, are what the paper says.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

Images = Float[Array, "b h w 1"]
CELLS = 3  # a side: of an image that is taken apart in places
# Of the first channel of ImageNet, by which the published series normalises before it clips.
PUBLISHED_MEAN, PUBLISHED_DEVIATION = 0.485, 0.229


# ------------------------------------------------------------------------------------------------------------- frequency


def radii(height: int, width: int) -> Float[np.ndarray, "h f"]:
    """Of every frequency of a real transform (`rfft2`), in cycles per image: float32 [height, width // 2 + 1]."""
    down, across = np.fft.fftfreq(height, 1 / height), np.fft.rfftfreq(width, 1 / width)
    return np.hypot(down[:, None], across[None, :]).astype(np.float32)


def band_pass(images: Images, above: ArrayLike, to: ArrayLike, *, mean: bool = True) -> Images:
    """Radii above `above`, up to `to`; with the mean, or without it."""
    radius = jnp.asarray(radii(*images.shape[1:3]))
    return _kept(images, (radius > above) & (radius <= to), mean)


def notch(images: Images, above: ArrayLike, to: ArrayLike) -> Images:
    """All but radii above `above`, up to `to`."""
    radius = jnp.asarray(radii(*images.shape[1:3]))
    return _kept(images, (radius <= above) | (radius > to), True)


def low_pass(images: Images, radius: ArrayLike) -> Images:
    return band_pass(images, -1.0, radius)


def high_pass(images: Images, radius: ArrayLike) -> Images:
    return band_pass(images, radius, jnp.inf)


def published_low_pass(images: Images, diameter: ArrayLike) -> Images:
    """Radii below the number that is called a diameter."""
    return _kept(images, jnp.asarray(radii(*images.shape[1:3])) < diameter, False)


def published_high_pass(images: Images, diameter: ArrayLike) -> Images:
    """Radii of that number and above; without the mean, so that gray levels lie about 0."""
    return _kept(images, jnp.asarray(radii(*images.shape[1:3])) >= diameter, False)


def _kept(images, band, mean):
    spectrum = jnp.fft.rfft2(images[..., 0])
    band = band.at[0, 0].set(True) if mean else band
    return jnp.fft.irfft2(jnp.where(band, spectrum, 0), s=images.shape[1:3])[..., None].astype(jnp.float32)


def down_sampled(images: Images, size: int) -> Images:
    """Shrunk to `size` pixels a side, static, by a triangle filter as wide as the shrinking, and enlarged again, bilinearly."""
    b, height, width, _ = images.shape
    small = jax.image.resize(images, (b, size, size, 1), "linear", antialias=True)
    return jax.image.resize(small, (b, height, width, 1), "linear")


def blurred(images: Images, deviation: float) -> Images:
    """By a Gaussian of this standard deviation, in pixels, static; 0: as they are. Mirrored at the edges, cut off at four deviations."""
    if not deviation:
        return images
    reach = int(4 * deviation + 0.5)
    weight = np.exp(-0.5 * np.square(np.arange(-reach, reach + 1) / deviation))
    kernel = jnp.asarray(weight / weight.sum(), jnp.float32)
    for axis in (1, 2):
        padded = jnp.pad(images, [(0, 0)] + [(reach, reach) if a == axis else (0, 0) for a in (1, 2)] + [(0, 0)], mode="symmetric")
        moved = jnp.moveaxis(padded, axis, -1)
        rows = moved.reshape(-1, 1, moved.shape[-1])
        smooth = jax.lax.conv_general_dilated(rows, kernel[None, None], (1,), "VALID", precision=jax.lax.Precision.HIGHEST)
        images = jnp.moveaxis(smooth.reshape(*moved.shape[:-1], -1), -1, axis)
    return images


# ------------------------------------------------------------------------------------------------------------- gray level


def clipped(images: Images, low: ArrayLike, high: ArrayLike) -> Images:
    """Gray levels below `low` at it, above `high` at that; shares of the range, 0 … 1."""
    return jnp.clip(images, 255 * jnp.float32(low), 255 * jnp.float32(high))


def published_clipped(images: Images, threshold: ArrayLike) -> Images:
    """Gray levels above a threshold at it, which is of levels that were normalised: .6 is .62 of the range, and 1 is .71."""
    return jnp.minimum(images, 255 * (PUBLISHED_MEAN + PUBLISHED_DEVIATION * jnp.float32(threshold)))


def histogram_matched(images: Images, reference: Float[ArrayLike, " 256"]) -> Images:
    """Gray levels changed so that as many pixels lie at or below each as in `reference`, counts of levels 0 … 255; levels are rounded first.

    The order of levels stays. As the usual matching does it: a level of quantile q among the image's own goes to the level of that quantile there, interpolated.
    """
    levels = jnp.clip(jnp.round(images), 0, 255).astype(jnp.int32)
    theirs = jnp.cumsum(jnp.asarray(reference, jnp.float32))
    # Levels that the reference lacks would be reached by interpolation where two have the same quantile; the first of them is the one that is there.
    there, grays = jnp.asarray(reference) > 0, jnp.arange(256, dtype=jnp.float32)
    quantile = jnp.where(there, theirs / theirs[-1], jnp.inf)
    order = jnp.argsort(jnp.where(there, grays, 256.0))

    def one(image):
        mine = jnp.cumsum(jnp.zeros(256, jnp.float32).at[image].add(1.0)) / image.size
        known = jnp.where(jnp.isfinite(quantile[order]), quantile[order], 2.0)
        target = jnp.where(jnp.isfinite(quantile[order]), grays[order], jnp.where(there, grays, -1.0).max())
        return jnp.interp(mine, known, target)[image]

    return jax.vmap(one)(levels[..., 0])[..., None]


# ------------------------------------------------------------------------------------------------------------------ noise


def noisy(images: Images, key: Array, index: Int[ArrayLike, " b"], deviation: ArrayLike) -> Images:
    """With Gaussian noise of this deviation in gray levels, each image's own by its number, kept within 0 … 255."""
    noise = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), images.shape[1:], jnp.float32))(jnp.asarray(index))
    return jnp.clip(images + jnp.float32(deviation) * noise, 0, 255)


def attacked(images: Images, gradient: Images, step: ArrayLike) -> Images:
    """Every gray level moved by `step` to where a loss grows, by the loss's `gradient` there, within 0 … 255 (the fast gradient sign method, Goodfellow et al. 2015)."""
    return jnp.clip(images + jnp.float32(step) * jnp.sign(gradient), 0, 255)


# ------------------------------------------------------------------------------------------------------------------ place


def cell(height: int, width: int, number: ArrayLike):
    """bool [height, width], one cell of CELLS × CELLS, counted by rows from 0; the last of a row or column takes what is left over."""
    row, column = (jnp.minimum(jnp.arange(n) // (n // CELLS), CELLS - 1) for n in (height, width))
    return row[:, None] * CELLS + column[None, :] == number


def cell_alone(images: Images, number: ArrayLike) -> Images:
    """One cell, black around it."""
    return jnp.where(cell(*images.shape[1:3], number)[..., None], images, jnp.zeros_like(images))


def cell_out(images: Images, number: ArrayLike) -> Images:
    """One cell black."""
    return jnp.where(cell(*images.shape[1:3], number)[..., None], jnp.zeros_like(images), images)


def middle(height: int, width: int, share: ArrayLike):
    """bool [height, width], the box in the middle that has this share of the height and of the width."""
    inside = (jnp.abs(jnp.arange(n, dtype=jnp.float32) - (n - 1) / 2) < n * jnp.float32(share) / 2 for n in (height, width))
    down, across = inside
    return down[:, None] & across[None, :]


def middle_alone(images: Images, share: ArrayLike) -> Images:
    """The middle, where lungs and heart are, black around it."""
    return jnp.where(middle(*images.shape[1:3], share)[..., None], images, jnp.zeros_like(images))


def border_alone(images: Images, share: ArrayLike) -> Images:
    """What is around it: shoulders, arms, markers, collimation; the middle black."""
    return jnp.where(middle(*images.shape[1:3], share)[..., None], jnp.zeros_like(images), images)
