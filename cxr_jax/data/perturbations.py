"""Images without some of what they show: by frequency, resolution, gray level, place or noise. What a model reads is what it cannot read without.

All take images as stored, float32 [b, h, w, 1] of gray levels in 0 … 255, and give the same; nothing is normalised before, nothing clipped after, unless it says so.
They are pure functions of arrays, so that they run inside a jitted pass on whatever device the images are on; strengths are traced but where it says static, and
a series of them compiles once. By its name in `PERTURBATIONS` one is asked for in a config: of a network that is to be judged on images so changed (mechanism.series),
or to see no others, in training and after it (train.shown).

**Frequencies** are in cycles per image: a frequency (u, v), u periods from side to side and v from top to bottom, has the radius √(u² + v²), and the highest that
an image of w pixels a side holds in either direction is w / 2. A filter keeps what its pass band holds, and the mean gray level with it, which is no structure.

    low_pass     radii up to r              band_pass    radii above r, up to s
    high_pass    radii above r              notch        all but these

**As published.** Gichoya et al. (2022, "AI recognition of patient race in medical imaging", Lancet Digital Health 4:e406) filter with circles that they name by a
diameter; their code takes that number for the radius, and leaves the rim, and in high-pass filters the mean, out. It clips gray levels at a threshold of 0 to 1
after these were normalised to another mean and deviation than 0 and 1. `published_*` are those; the others, at half the number, are what the paper says.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from cxr_jax.experiment import nearest
from cxr_jax.tables import UserError

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


# ---------------------------------------------------------------------------------------------------------------- by name

STORED = 256  # pixels a side of stored images
NYQUIST = STORED / 2  # cycles per image, the highest frequency that they hold along a side


class Given(NamedTuple):
    """What some perturbations need besides images and a strength. index: int [b], each image's number. key: of noise. reference: counts of gray levels, float [256]."""

    index: Array
    key: Array
    reference: Array


@dataclasses.dataclass(frozen=True)
class Perturbation:
    """One that has a name.

    apply: (images, strength, Given) to images; None for what needs the gradient of a loss. strength: what it is, and its unit. least, greatest: its bounds. numbers: how many
    a strength has; two ascend. whole: whether they are whole numbers. static: whether each strength is compiled by itself. alone: whether it needs images and strength alone.
    """

    apply: Callable | None
    strength: str
    least: float
    greatest: float
    numbers: int = 1
    whole: bool = False
    static: bool = False
    alone: bool = True

    def why_not(self, strength) -> str:
        """What is wrong with a strength; '' for nothing."""
        numbers = strength if isinstance(strength, (tuple, list)) else (strength,)
        if len(numbers) != self.numbers or not all(isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x) for x in numbers):
            return f"{strength!r} is not {'two numbers' if self.numbers == 2 else 'a number'}"
        if self.whole and any(x != int(x) for x in numbers):
            return f"{strength!r} is not a whole number"
        if min(numbers) < self.least or max(numbers) > self.greatest:
            nyquist = f", Nyquist's frequency of images of {STORED} pixels" if self.greatest == NYQUIST else ""
            return f"{strength!r} is not within {self.least:g} to {self.greatest:g}{nyquist}"
        if self.numbers == 2 and numbers[0] >= numbers[1]:
            return f"{strength!r}: the first is to be below the second"
        return ""


def _pair(of: Callable) -> Callable:
    return lambda images, strength, _: of(images, strength[0], strength[1])


def _one(of: Callable) -> Callable:
    return lambda images, strength, _: of(images, strength)


UNCHANGED = Perturbation(lambda images, strength, given: images, "", 0, 0)
_RADIUS, _BAND = "radius, cycles per image", "band of radii, cycles per image"
_SHARE, _CELL = "side of the box, share of the image's", f"cell of {CELLS}×{CELLS}, by rows"
PERTURBATIONS = {
    "low_pass": Perturbation(_one(low_pass), _RADIUS, 0, NYQUIST),
    "high_pass": Perturbation(_one(high_pass), _RADIUS, 0, NYQUIST),
    "band_pass": Perturbation(_pair(band_pass), _BAND, 0, NYQUIST, 2),
    "notch": Perturbation(_pair(notch), _BAND, 0, NYQUIST, 2),
    # Numbers of the published series go beyond what an image holds, whose filter then is none.
    "published_low_pass": Perturbation(_one(published_low_pass), "the paper's diameter, by its code a radius", 0, 2 * NYQUIST),
    "published_high_pass": Perturbation(_one(published_high_pass), "the paper's diameter, by its code a radius", 0, 2 * NYQUIST),
    "down_sampled": Perturbation(lambda images, size, _: down_sampled(images, int(size)), "side, pixels", 1, STORED, whole=True, static=True),
    "blurred": Perturbation(_one(blurred), "standard deviation, pixels of 256", 0, STORED / 8, static=True),
    "noisy": Perturbation(lambda images, strength, given: noisy(images, given.key, given.index, strength), "standard deviation, gray levels of 256", 0, 255, alone=False),
    "clipped": Perturbation(_pair(clipped), "window, shares of the gray levels", 0, 1, 2),
    "published_clipped": Perturbation(_one(published_clipped), "threshold after normalising", -2, 2.5),
    "histogram_matched": Perturbation(
        lambda images, strength, given: images + jnp.float32(strength) * (histogram_matched(images, given.reference) - images),
        "share of the way to the histogram of training images", 0, 1, alone=False,
    ),
    "cell_alone": Perturbation(_one(cell_alone), _CELL, 0, CELLS**2 - 1, whole=True),
    "cell_out": Perturbation(_one(cell_out), _CELL, 0, CELLS**2 - 1, whole=True),
    "middle_alone": Perturbation(_one(middle_alone), _SHARE, 0, 1),
    "border_alone": Perturbation(_one(border_alone), _SHARE, 0, 1),
    "attacked": Perturbation(None, "step, gray levels of 256", 0, 255, alone=False),
}  # fmt: skip


def check(name: str, strengths: Sequence, field: str) -> None:
    """Raises UserError, which begins with the field's name, for no such perturbation, or a strength that it has not."""
    if name not in PERTURBATIONS:
        raise UserError(f"{field}: no perturbation {name!r}{nearest(str(name), PERTURBATIONS)}")
    for strength in strengths:
        why = PERTURBATIONS[name].why_not(strength)
        if why:
            raise UserError(f"{field}: {name} {why} ({PERTURBATIONS[name].strength})")


def check_shown(shown: Sequence, field: str = "config.train.shown") -> None:
    """Raises UserError for what `seen` cannot do."""
    if not shown:
        return
    if len(shown) not in (2, 3):
        raise UserError(f"{field}={tuple(shown)!r}: a name and its strength, such as ('low_pass', 10.0)")
    name, *strength = shown
    check(name, [strength[0] if len(strength) == 1 else strength], field)
    if not PERTURBATIONS[name].alone:
        raise UserError(f"{field}: {name} needs more than an image; for training there is config.train.augment")


def seen(images: Array, shown: Sequence) -> Array:
    """What a network is shown of images, float32 or uint8 [b, h, w, 1]: all of them, where `shown` is empty; else (name, strength), or (name, low, high), of PERTURBATIONS."""
    if not shown:
        return images
    name, *strength = shown
    return PERTURBATIONS[name].apply(images.astype(jnp.float32), strength[0] if len(strength) == 1 else tuple(strength), None)
