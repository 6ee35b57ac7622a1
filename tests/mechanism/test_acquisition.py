"""What images tell of their acquisition, against NumPy one image at a time, and against what was done to them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxr_jax.mechanism.acquisition import BLACK, LIT, MEASURED, WHITE, measured


def by_hand(image):
    """Of one image [h, w], written out."""
    lit = image > BLACK
    inside = image[lit].astype(np.float64)
    rows, columns = np.flatnonzero(lit.mean(axis=1) > LIT), np.flatnonzero(lit.mean(axis=0) > LIT)
    box = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1) / image.size if len(rows) and len(columns) else 0.0
    low, high = np.percentile(inside, [5, 95]) if len(inside) else (0, 0)
    return [inside.mean() if len(inside) else 0.0, high - low, np.mean(image <= BLACK), np.mean(image >= WHITE), box]


def collimated(rng, top, bottom, left, right, height=64, width=48):
    image = np.zeros((height, width))
    image[top:bottom, left:right] = rng.integers(20, 240, (bottom - top, right - left))
    return image


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    whole = rng.integers(0, 256, (64, 48))
    burnt = np.where(rng.random((64, 48)) < 0.3, 255, whole)
    one_pixel = np.zeros((64, 48))
    one_pixel[10, 10] = 200
    return np.stack([whole, burnt, collimated(rng, 5, 60, 8, 40), collimated(rng, 0, 64, 0, 47), np.zeros((64, 48)), np.full((64, 48), 255), one_pixel])[..., None]


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_numbers_are_those_of_one_image_after_the_other(images, dtype):
    found = jax.jit(measured)(jnp.asarray(images.astype(dtype)))
    assert found.dtype == jnp.float32 and found.shape == (len(images), len(MEASURED))
    np.testing.assert_allclose(np.asarray(found), [by_hand(image[..., 0]) for image in images.astype(dtype)], rtol=2e-5, atol=1e-6)


def test_gray_levels_that_are_no_whole_numbers(images):
    moved = (images * 0.7 + 3.3).astype(np.float32)
    np.testing.assert_allclose(np.asarray(measured(jnp.asarray(moved))), [by_hand(image[..., 0]) for image in moved], rtol=2e-5, atol=1e-6)


def test_each_number_tells_what_was_done():
    rng = np.random.default_rng(1)
    base = rng.integers(60, 160, (64, 64)).astype(np.float32)
    margin = np.zeros((64, 64), np.float32)
    margin[16:48] = base[16:48]
    marker = margin.copy()
    marker[2:4, 2:4] = 255  # 2 of 64 pixels of its rows
    changed = [base, base + 30, (base - 110) * 2 + 110, margin, marker]
    rows = np.asarray(measured(jnp.asarray(np.stack(changed)[..., None])), np.float64)
    own, brighter, narrower, collimated_, marked = ({name: value for name, value in zip(MEASURED, row, strict=True)} for row in rows)
    assert own["field_of_view"] == 1 and own["black"] == 0 == own["white"]
    assert brighter["exposure"] == pytest.approx(own["exposure"] + 30, abs=1e-3) and brighter["contrast"] == pytest.approx(own["contrast"], abs=1e-3)
    assert narrower["contrast"] == pytest.approx(2 * own["contrast"], abs=0.01)
    assert collimated_["field_of_view"] == 0.5 == collimated_["black"]
    assert collimated_["exposure"] == pytest.approx(base[16:48].mean(), rel=1e-5)  # of what there is to see, not of the margin
    assert marked["field_of_view"] == 0.5 and marked["white"] == pytest.approx(4 / 64**2)
