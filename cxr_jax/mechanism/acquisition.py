"""What an image itself tells of how it was acquired: exposure, window, saturation, field of view. Headers say more, where a release has them; these, every image has.

Which gray level belongs to which dose is the processing's to choose: what is called exposure here is what is left of it in the picture, as a reader sees it. All are of
images as stored, so a picture that was made square by padding has a black margin, and a narrower field of view.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

# exposure         mean gray level, 0 … 255
# contrast         gray levels from the 5th to the 95th percentile: how narrow a window was chosen
# black, white     shares of pixels, 0 … 1, at either end of the gray levels
# field_of_view    share of the frame, 0 … 1, within the box around all rows and columns that are not black: what collimation left
# The first two are of pixels that are not black: of all of them they would tell mostly how wide the black margin is, which has numbers of its own.
MEASURED = ("exposure", "contrast", "black", "white", "field_of_view")

BLACK, WHITE = 5.0, 250.0  # gray levels up to, and from, which a pixel is so: lossy compression leaves black not quite black
LIT = 0.05  # of a row's or column's pixels, above which it is not black: a side marker beyond the shutters is no field of view
TAIL = 0.05


def measured(images: Float[Array, "b h w 1"] | UInt8[Array, "b h w 1"]) -> Float[Array, "b k"]:
    """The numbers of `MEASURED`, in that order: float32 [b, 5]. images: gray levels 0 … 255. Of a wholly black image exposure, contrast and field of view are 0.

    To be called under jit; percentiles are interpolated linearly.
    """
    levels = images[..., 0].astype(jnp.float32)
    count, height, width = levels.shape
    lit = levels > BLACK
    pixels = lit.sum(axis=(1, 2), dtype=jnp.int32)
    exposure = jnp.where(lit, levels, 0.0).sum(axis=(1, 2)) / jnp.maximum(pixels, 1).astype(jnp.float32)
    ordered = jnp.sort(jnp.where(lit, levels, 256.0).reshape(count, -1), axis=1)  # what is not black comes first

    def percentile(share: float):
        place = share * jnp.maximum(pixels - 1, 0).astype(jnp.float32)
        below = jnp.floor(place).astype(jnp.int32)
        above = jnp.minimum(below + 1, jnp.maximum(pixels - 1, 0))
        low, high = (jnp.take_along_axis(ordered, at[:, None], axis=1)[:, 0] for at in (below, above))
        return low + (high - low) * (place - below.astype(jnp.float32))

    contrast = percentile(1 - TAIL) - percentile(TAIL)
    shares = [of.mean(axis=(1, 2), dtype=jnp.float32) for of in (~lit, levels >= WHITE)]
    down, across = (_extent(lit.mean(axis=axis, dtype=jnp.float32) > LIT) for axis in (2, 1))
    return jnp.stack([exposure, contrast, *shares, down * across], axis=1)


def _extent(lit: Array) -> Array:
    """From the first to the last that is lit, as a share of all: float32 [b]. lit: bool [b, n]."""
    n = lit.shape[1]
    first, behind = jnp.argmax(lit, axis=1), jnp.argmax(lit[:, ::-1], axis=1)
    return jnp.where(lit.any(axis=1), n - first - behind, 0).astype(jnp.float32) / n
