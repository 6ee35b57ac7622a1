"""How fast a radiograph's JPEG becomes 256×256, beside the way peers do it.

    python -m cxr_jax.benchmarks.decode [--images=DIR] [--rounds=5]

Without --images it draws phantoms at 3056×2544 pixels, the usual size in MIMIC-CXR-JPG, with film grain, and compresses
them at two qualities: how many bytes a picture takes decides how long any decoder needs. One core, one process; in each
round every way reads every picture, so that all ways meet the same machine. Prints the median over rounds, as images a
second and as ratios, and how far our outcome is from that of a full decode.

    ours          libjpeg-turbo's scaled decoding, then a triangle filter as wide as what is left of the reduction
    scikit-image  imread(as_gray=True), then resize(anti_aliasing=True): what published pipelines call
    Pillow        the whole picture decoded, then resize(LANCZOS)
"""

from __future__ import annotations

import io
import os
import pathlib
import platform
import time

# Before any library that would take more.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import numpy as np
from absl import app, flags
from PIL import Image

from tfds_builders import images
from tfds_builders.cxr_phantom import phantom

IMAGES = flags.DEFINE_string("images", "", "Folder of JPEGs; empty: drawn ones.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Times that every way reads every picture.", lower_bound=1)

HEIGHT, WIDTH = 3056, 2544
GRAIN = 1.0  # standard deviation of the drawn film grain, gray levels
DRAWN = 4  # pictures of each quality
QUALITIES = (75, 95)  # Pillow's own default, and what MIMIC-CXR-JPG was made with


def drawn(quality: int) -> list[bytes]:
    """JPEGs of phantoms, enlarged, with grain."""
    population = phantom.sample_population(phantom.Parameters(patients=10))
    random = np.random.default_rng(0)
    pictures = []
    for small in phantom.draw_images(population, range(DRAWN)):
        large = np.asarray(Image.fromarray(small[..., 0]).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.float32)
        large = np.clip(large + GRAIN * random.standard_normal(large.shape, np.float32), 0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(large).save(file, "JPEG", quality=quality)
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
    return transform.resize(picture, (images.SIZE, images.SIZE), anti_aliasing=True)


def measure(pictures: list[bytes], rounds: int) -> dict[str, float]:
    """Median images a second of each way, by its name."""
    ways = {"ours": ours, "Pillow": pillow, "scikit-image": scikit_image}
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


def difference(pictures: list[bytes]) -> float:
    """Mean absolute difference of ours from a full decode with the same filter, gray levels of 255."""
    full = (images.resize(images.decode(data)).astype(float) for data in pictures)
    return float(np.mean([np.abs(ours(data) - whole).mean() for data, whole in zip(pictures, full, strict=True)]))


def main(_) -> None:
    try:
        import skimage
    except ImportError:
        raise SystemExit("scikit-image is not installed; start this with `bash launch/local.sh --peers python -m …`")
    import PIL

    if IMAGES.value:
        files = [p for p in sorted(pathlib.Path(IMAGES.value).rglob("*")) if p.suffix.lower() in (".jpg", ".jpeg")]
        if not files:
            raise SystemExit(f"{IMAGES.value}: no .jpg in it, nor below")
        sets = {IMAGES.value: [path.read_bytes() for path in files]}
    else:
        sets = {f"drawn, quality {quality}": drawn(quality) for quality in QUALITIES}
    print(f"{platform.processor() or platform.machine()}, one core; Pillow {PIL.__version__}, scikit-image {skimage.__version__}")
    for name, pictures in sets.items():
        rates = measure(pictures, ROUNDS.value)
        size = np.mean([len(data) for data in pictures]) / 1e6
        print(f"{name}: {len(pictures)} pictures of {size:.2f} MB on average, {ROUNDS.value} rounds")
        for way, rate in rates.items():
            ratio = "" if way == "ours" else f"   ours is {rates['ours'] / rate:.1f} times as fast"
            print(f"  {way:13} {rate:6.1f} images/s{ratio}")
        print(f"  mean absolute difference from a full decode: {difference(pictures):.2f} of 255 gray levels")


if __name__ == "__main__":
    app.run(main)
