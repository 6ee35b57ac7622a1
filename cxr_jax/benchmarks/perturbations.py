"""Images a second through a series of low-pass filters, beside the usual loop over images.

    python -m cxr_jax.benchmarks.perturbations [--images=16 --pixels=256 --radii=4 --rounds=5]

The loop takes one image after another through NumPy's whole two-dimensional transform, puts the origin in the middle, keeps the frequencies of a mask, and goes back: once
with a mask made anew for every image, pixel by pixel, as published code for this does (`as published`), and once with the mask of each radius made beforehand (`mask kept`). Ours is
`data.perturbations.low_pass`, jitted, as the stage mechanism runs it before the network: a batch at once, host array to host array. They take turns in one process. Prints medians and spread over
rounds, how many times our seconds theirs take (the median of the ratios of a round), and how far the filtered images are apart at most, in gray levels of 255.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import jax
import numpy as np

from cxr_jax import benchmarks
from cxr_jax.benchmarks import densenets
from cxr_jax.data import perturbations


def pixel_by_pixel(height: int, width: int, radius: float) -> np.ndarray:
    """float64 [h, w]: 1 within the radius of the middle, 0 outside."""
    mask = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            if np.sqrt((i - height / 2) ** 2 + (j - width / 2) ** 2) <= radius:
                mask[i, j] = 1
    return mask


def one_image(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """float64 [h, w]: the frequencies of a mask whose middle is the origin."""
    return np.real(np.fft.ifft2(np.fft.ifftshift(np.fft.fftshift(np.fft.fft2(image)) * mask)))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m cxr_jax.benchmarks.perturbations")
    parser.add_argument("--images", type=densenets.count, default=16, help="of a batch")
    parser.add_argument("--pixels", type=densenets.count, default=256, help="a side")
    parser.add_argument("--radii", type=densenets.count, default=4, help="filters that each image goes through")
    parser.add_argument("--rounds", type=densenets.count, default=5, help="times that each is run")
    asked = parser.parse_args(argv)
    side, rng = asked.pixels, np.random.default_rng(0)
    images = rng.integers(0, 256, (asked.images, side, side, 1), np.uint8)
    radii = np.linspace(2, side / 2, asked.radii)
    filtered = jax.jit(lambda images, radius: perturbations.low_pass(images.astype(np.float32), radius))
    found: dict[str, list] = {}

    def ours():
        found["ours"] = [np.asarray(filtered(images, np.float32(radius)))[..., 0] for radius in radii]

    def kept():
        masks = [pixel_by_pixel(side, side, radius) for radius in radii] if "masks" not in found else found["masks"]
        found["masks"] = masks
        found["mask kept"] = [np.stack([one_image(image[..., 0], mask) for image in images]) for mask in masks]

    def published():
        found["as published"] = [np.stack([one_image(image[..., 0], pixel_by_pixel(side, side, radius)) for image in images]) for radius in radii]

    turns = {name: densenets.Turn(lambda: None, run) for name, run in (("ours", ours), ("mask kept", kept), ("as published", published))}
    for name in ("ours", "mask kept"):
        turns[name].timed()  # compiles, and makes the masks that are kept
    taken, failed = densenets.take_turns(turns, asked.rounds, 1)
    print(benchmarks.machine("jax", "numpy"))
    print(f"{asked.images} images of {side}×{side} through {asked.radii} low-pass filters, {asked.rounds} rounds, ours on {jax.default_backend()}")
    for name, times in taken.items():
        rates = [asked.images * asked.radii / seconds for seconds in times]
        line = f"  {name}: {densenets.said(densenets.spread(rates), '.4g')} images/s"
        if name != "ours":
            apart = max(np.abs(a - b).max() for a, b in zip(found["ours"], found[name], strict=True))
            line += f", {densenets.said_ratio(densenets.ratio(times, taken['ours']))} times our seconds; apart by at most {apart:.1e}"
        print(line)
    for name, why in failed.items():
        print(f"  {name}: {why}")


if __name__ == "__main__":
    main()
