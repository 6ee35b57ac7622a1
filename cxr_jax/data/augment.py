"""What is done to images on the device: augmentation, resizing, scaling. JAX alone; to be called under jit.

The random draw of an image depends on (key, the image's index) and on nothing else: not on its place in the batch, the
batch's size, or how many devices share it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


# What is folded into an image's key for the draws of its acquisition. Past the five keys that the moves are drawn from:
# split(key, 5)[j] may be the very key that fold_in(key, j) is.
_ACQUISITION = 100


def augment(
    images: jax.Array,
    key: jax.Array,
    index: jax.Array,
    *,
    flip: bool = False,
    rotate_degrees: float = 0.0,
    zoom: float = 0.0,
    shift: float = 0.0,
    window: float = 0.0,
    field_of_view: float = 0.0,
    exposure: float = 0.0,
) -> jax.Array:
    """Moves each image at random, by one affine map and one bilinear resampling, and varies how it was acquired.

    images: uint8 or float [b, h, w, 1], where 0 is black (and 255 white, for exposure and window). key: scalar, a new
        one each step. index: int [b], each image's own number; equal numbers get equal draws. The rest must be Python
        values, known when tracing:
    flip: left-right, with probability 1/2.
    rotate_degrees, zoom, shift: bounds of uniform draws: an angle in ± rotate_degrees, a magnification in 1 ± zoom, and
        displacements in ± shift of the width and of the height.
    field_of_view: below 1; the bound of a uniform draw from 0: the share cut off the height and the width alike. The box
        that is left lies anywhere, uniformly, in the image already moved, and is enlarged to h x w (see `cropped`).
    exposure: the bound in octaves of a uniform draw of the logarithm of gamma, in ± exposure (see `exposed`).
    window: below 0.5; either end of the window of intensities moves by a uniform draw of its own, in ± window of 255
        (see `windowed`).

    In this order: moves and field of view, in one resampling; exposure; window. Each draw is the same whichever other
    options are on. Returns float32 [b, h, w, 1]; black comes in at the edges where the moves bring it, not from
    field_of_view. With exposure and window alone, nothing is resampled. With everything off, returns `images` as they are.
    """
    if not (0 <= window < 0.5 and 0 <= field_of_view < 1 and exposure >= 0):
        raise ValueError(f"0 <= window < 0.5, 0 <= field_of_view < 1, 0 <= exposure; not {window}, {field_of_view}, {exposure}")
    moves = flip or rotate_degrees or zoom or shift or field_of_view
    if not (moves or exposure or window):
        return images
    _, height, width, _ = images.shape

    def one(image, i):
        own = jax.random.fold_in(key, i)
        side, turn, scale, across, down = jax.random.split(own, 5)
        share, aside, below, gamma, low, high = jax.random.split(jax.random.fold_in(own, _ACQUISITION), 6)

        def draw(key, bound):
            return jax.random.uniform(key, (), jnp.float32, -bound, bound)

        if moves:
            place = dict(zoom=1 + draw(scale, zoom), right=draw(across, shift), down=draw(down, shift))
            if field_of_view:
                place = cropped(
                    **place,
                    share=jax.random.uniform(share, (), jnp.float32, 0.0, field_of_view),
                    aside=draw(aside, 0.5),
                    below=draw(below, 0.5),
                    height=height,
                    width=width,
                )
            image = affine(
                image,
                flip=jax.random.bernoulli(side) if flip else jnp.bool_(False),
                radians=jnp.deg2rad(draw(turn, rotate_degrees)),
                **place,
            )
        if exposure:
            image = exposed(image, draw(gamma, exposure))
        if window:
            image = windowed(image, draw(low, window), draw(high, window))
        return image

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


def cropped(
    *,
    zoom: jax.Array,
    right: jax.Array,
    down: jax.Array,
    share: jax.Array,
    aside: jax.Array,
    below: jax.Array,
    height: int,
    width: int,
) -> dict[str, jax.Array]:
    """`affine`'s zoom, right and down, such that a box of the image so moved is cut out and enlarged to the whole.

    zoom, right, down: float32, as for `affine`. share: float32, 0 to below 1, cut off the height and the width alike.
        aside, below: float32 in ± 1/2, where the box lies: from flush left to flush right, from flush top to flush
        bottom. height, width: of the image, in pixels.

    The crop comes last, as collimation does after the patient was placed. With p and q measured from the image's centre,
    `affine` takes p to q = zoom turn(mirror(p)) + moved, and the crop takes q to (q - box) / (1 - share), where `box` is
    the box's centre. Together: the magnification zoom / (1 - share) and the displacement (moved - box) / (1 - share),
    with the same mirror and turn. So displacements grow with the magnification, and the box stands upright in what is
    returned, not in the image before its turn.

    Lengths are from centre to centre of the outermost pixels: the box is (1 - share) (width - 1) wide, and its edge is
    where the outermost pixels are looked up, so never outside the image. Measured over whole pixels, a box flush with
    the edge would be looked up as far as share / 2 of a pixel outside, and darken there.
    """
    left = 1 - share
    return dict(
        zoom=zoom / left,
        right=(right - aside * share * ((width - 1) / width)) / left,
        down=(down - below * share * ((height - 1) / height)) / left,
    )


def exposed(image: jax.Array, octaves: jax.Array) -> jax.Array:
    """255 (x / 255) ** gamma, where gamma = 2 ** octaves: black and white stay, and with octaves > 0 all between darkens.

    image: uint8 or float, any shape, in 0 … 255. octaves: float32. Returns float32, the same shape.
    """
    # Clipped, since what rounding brings below 0 has no power.
    x = jnp.clip(image.astype(jnp.float32) / 255, 0, 1)
    return 255 * x ** jnp.exp2(octaves)


def windowed(image: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """The window of intensities from 255 low to 255 (1 + high), stretched to 0 … 255; what lies outside is clipped.

    image: uint8 or float, any shape, in 0 … 255. low, high: float32 shares of 255, where low < 1 + high.
    Returns float32, the same shape.
    """
    lower, upper = 255 * low, 255 + 255 * high
    return jnp.clip((image.astype(jnp.float32) - lower) / (upper - lower) * 255, 0, 255)


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
