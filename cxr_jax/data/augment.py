"""What is done to images on the device: augmentation, resizing, scaling. JAX alone; to be called under jit.

The random draw of an image depends on (key, the image's index) and on nothing else: not on its place in the batch, the
batch's size, or how many devices share it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def augment(
    images: jax.Array,
    key: jax.Array,
    index: jax.Array,
    *,
    flip: bool = False,
    rotate_degrees: float = 0.0,
    zoom: float = 0.0,
    shift: float = 0.0,
) -> jax.Array:
    """Moves each image at random, by one affine map and one bilinear resampling.

    images: uint8 or float [b, h, w, 1], where 0 is black. key: scalar, a new one each step. index: int [b], each
        image's own number; equal numbers get equal draws. The rest must be Python values, known when tracing:
    flip: left-right, with probability 1/2.
    rotate_degrees, zoom, shift: bounds of uniform draws: an angle in ± rotate_degrees, a magnification in 1 ± zoom, and
        displacements in ± shift of the width and of the height.

    Returns float32 [b, h, w, 1]; black comes in at the edges. With everything off, returns `images` as they are.
    """
    if not (flip or rotate_degrees or zoom or shift):
        return images

    def one(image, i):
        side, turn, scale, across, down = jax.random.split(jax.random.fold_in(key, i), 5)

        def draw(key, bound):
            return jax.random.uniform(key, (), jnp.float32, -bound, bound)

        return affine(
            image,
            flip=jax.random.bernoulli(side) if flip else jnp.bool_(False),
            radians=jnp.deg2rad(draw(turn, rotate_degrees)),
            zoom=1 + draw(scale, zoom),
            right=draw(across, shift),
            down=draw(down, shift),
        )

    return jax.vmap(one)(images, index)


def affine(
    image: jax.Array, *, flip: jax.Array, radians: jax.Array, zoom: jax.Array, right: jax.Array, down: jax.Array
) -> jax.Array:
    """One image moved: mirrored left-right, magnified, turned counter-clockwise as seen, then displaced.

    image: [h, w, 1]; flip: bool; radians, zoom: float32; right, down: float32, shares of the width and of the
        height. All about the image's centre, ((h - 1)/2, (w - 1)/2) in pixels.
    Returns float32 [h, w, 1]. Each pixel is looked up where it came from, bilinearly among the four nearest there; what
    lies outside is 0.
    """
    height, width, _ = image.shape
    y = jnp.arange(height, dtype=jnp.float32)[:, None] - (height - 1) / 2 - down * height
    x = jnp.arange(width, dtype=jnp.float32)[None, :] - (width - 1) / 2 - right * width
    cos, sin = jnp.cos(radians), jnp.sin(radians)
    # The inverse of the turn and of the magnification. Rows count downwards, hence the signs.
    from_x = (x * cos - y * sin) / zoom
    from_y = (x * sin + y * cos) / zoom
    from_x = jnp.where(flip, -from_x, from_x) + (width - 1) / 2
    from_y = from_y + (height - 1) / 2
    moved = jax.scipy.ndimage.map_coordinates(
        image[..., 0].astype(jnp.float32), [from_y, from_x], order=1, mode="constant", cval=0.0
    )
    return moved[..., None]


def to_model_input(images: jax.Array, size: int, dtype=jnp.float32) -> jax.Array:
    """What the model sees: `size` pixels a side, black -1, white +1.

    images: uint8 or float [b, h, w, 1] in 0 … 255. Shrinks by a triangle filter as wide as the shrinking (bilinear,
    antialiased), so that no fine texture folds over into a coarse one; enlarges bilinearly. Then x / 127.5 - 1, the
    same for every data set: statistics of a data set would say which one an image is from.
    Returns dtype [b, size, size, 1]; computed in float32.
    """
    scaled = images.astype(jnp.float32) / 127.5 - 1
    b, height, width, channels = images.shape
    if (height, width) != (size, size):
        scaled = jax.image.resize(scaled, (b, size, size, channels), "linear", antialias=True)
    return scaled.astype(dtype)
