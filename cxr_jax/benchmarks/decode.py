"""How fast a radiograph's JPEG becomes 256×256, beside the way peers do it.

    python -m cxr_jax.benchmarks.decode [--images=DIR] [--rounds=5] [--drawn=4] [--grain=1.75]

Without --images it draws phantoms at 3056×2544 pixels, the usual size in MIMIC-CXR-JPG, and compresses them at that
release's quality of 95, with as much film grain as makes the files as large as its own, 1.5 MB on average: how many bytes a
picture takes decides how long any decoder needs, and with fewer (--grain=0) ours gains most. One process that uses one core;
in each round every way reads every picture, so that all ways meet the same machine. Prints the median over rounds, as images
a second and as ratios, and how far our outcome is from that of every other way, and from that of decoding the whole picture
before our own filter.

    ours          libjpeg-turbo's scaled decoding, then a triangle filter as wide as what is left of the reduction
    Pillow        the whole picture decoded, then resize(LANCZOS)
    scikit-image  imread(as_gray=True), then resize(anti_aliasing=True): what published pipelines call
"""

from __future__ import annotations

import os

if __name__ == "__main__":  # before any library that would take more
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")

import argparse
import io
import pathlib
import time
from collections.abc import Sequence

import numpy as np
from PIL import Image

from cxr_jax import benchmarks
from tfds_builders import images
from tfds_builders.cxr_phantom import phantom

GRAIN = 1.75  # standard deviation of the film grain, gray levels, that makes 1.5 MB of a picture of the usual size
QUALITY = 95  # what MIMIC-CXR-JPG was made with


def drawn(count: int, height: int, width: int, grain: float = GRAIN) -> list[bytes]:
    """JPEGs of phantoms, enlarged, with grain of so many gray levels."""
    population = phantom.sample_population(phantom.Parameters(patients=count))
    random = np.random.default_rng(0)
    pictures = []
    for small in phantom.draw_images(population, range(count)):
        large = np.asarray(Image.fromarray(small[..., 0]).resize((width, height), Image.Resampling.BICUBIC), np.float32)
        large = np.clip(large + grain * random.standard_normal(large.shape, np.float32), 0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(large).save(file, "JPEG", quality=QUALITY)
        pictures.append(file.getvalue())
    return pictures


def ours(data: bytes) -> np.ndarray:
    return images.from_bytes(data)[..., 0]


def pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture.convert("L").resize((images.SIZE, images.SIZE), Image.Resampling.LANCZOS))


def scikit_image(data: bytes) -> np.ndarray:
    from skimage import io as skimage_io, transform

    picture = skimage_io.imread(io.BytesIO(data), as_gray=True)
    return transform.resize(picture, (images.SIZE, images.SIZE), anti_aliasing=True)  # in [0, 1]


PEERS = {"Pillow": pillow, "scikit-image": scikit_image}


def rates(pictures: list[bytes], rounds: int) -> dict[str, float]:
    """Median images a second of each way, by its name."""
    ways = {"ours": ours, **PEERS}
    for way in ways.values():
        way(pictures[0])
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            for data in pictures:
                way(data)
            seconds[name].append(time.perf_counter() - start)
    return {name: len(pictures) / float(np.median(taken)) for name, taken in seconds.items()}


def differences(pictures: list[bytes]) -> dict[str, float]:
    """Mean absolute difference of ours from each other way, in gray levels of 255."""
    others = {
        "a full decode with our own filter": lambda data: images.resize(images.decode(data)),
        "Pillow's full decode with Lanczos": pillow,
        "scikit-image": lambda data: 255 * scikit_image(data),
    }
    return {
        name: float(np.mean([np.abs(ours(data).astype(float) - other(data)).mean() for data in pictures]))
        for name, other in others.items()
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m cxr_jax.benchmarks.decode")
    parser.add_argument("--images", type=pathlib.Path, help="folder of JPEGs; without it they are drawn")
    parser.add_argument("--rounds", type=int, default=5, help="times that every way reads every picture")
    parser.add_argument("--drawn", type=int, default=4, help="pictures that are drawn")
    parser.add_argument("--height", type=int, default=3056, help="of a drawn picture, pixels")
    parser.add_argument("--width", type=int, default=2544, help="of a drawn picture, pixels")
    parser.add_argument("--grain", type=float, default=GRAIN, help="of a drawn picture, gray levels")
    asked = parser.parse_args(argv)
    try:
        import skimage  # noqa: F401
    except ImportError:
        raise SystemExit("scikit-image is not installed; start this with `bash launch/local.sh --peers python -m …`")

    if asked.images:
        files = [p for p in sorted(asked.images.rglob("*")) if p.suffix.lower() in (".jpg", ".jpeg")]
        if not files:
            raise SystemExit(f"{asked.images}: no .jpg in it, nor below")
        what, pictures = str(asked.images), [path.read_bytes() for path in files]
    else:
        what, pictures = f"drawn, {asked.height}×{asked.width} pixels", drawn(asked.drawn, asked.height, asked.width, asked.grain)
    size = np.mean([len(data) for data in pictures]) / 1e6
    print(benchmarks.machine("PIL", "skimage", "numpy") + "; one core used")
    print(f"{what}: {len(pictures)} pictures of {size:.2f} MB on average, {asked.rounds} rounds")
    found = rates(pictures, asked.rounds)
    for way, rate in found.items():
        ratio = "" if way == "ours" else f"   ours is {found['ours'] / rate:.1f} times as fast"
        print(f"  {way:13} {rate:6.1f} images/s{ratio}")
    print("  ours differs, on average over pixels and in gray levels of 255, by")
    for way, difference in differences(pictures).items():
        print(f"  {difference:6.2f} from {way}")


if __name__ == "__main__":
    main()
