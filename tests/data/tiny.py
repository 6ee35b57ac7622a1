"""A small but real TFDS data set with the fields of every builder, for tests of what is done with one.

Pictures are noise from a generator keyed by the image's number, so that a test can say what the picture of any row
must be.
"""

import dataclasses
import os
import signal

import ml_collections
import numpy as np
import tensorflow_datasets as tfds

from configs import base

FINDINGS = ("No Finding", "Edema", "Fracture")
RACES = ("Kor", "Bel", "Ani")
SIDE = 12  # pixels


def picture(number: int) -> np.ndarray:
    """uint8 [12, 12, 1]: the picture of image `number`."""
    return np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 1), dtype=np.uint8)


@dataclasses.dataclass
class TinyConfig(tfds.core.BuilderConfig):
    splits: tuple[tuple[str, int], ...] = (("images", 30),)  # stored split, images; patients have two images each
    fail: str = ""  # killed: the process dies half-way; full: the disk does


class Tiny(tfds.core.GeneratorBasedBuilder):
    """Noise with labels."""

    VERSION = tfds.core.Version("1.2.3")
    builder_config: TinyConfig

    def _info(self):
        text, number = tfds.features.Text(), tfds.features.Scalar(np.float32)
        texts = ("image_id", "patient_id", "study_id", "released_split", "race", "sex", "view")
        return tfds.core.DatasetInfo(
            builder=self,
            description="Noise,\n  with labels.\n\nAnd more that is for the README.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(SIDE, SIDE, 1), dtype=np.uint8, encoding_format="png"),
                    **dict.fromkeys(texts, text),
                    "age": number,
                    "latent": number,
                    "follow_up": tfds.features.Scalar(np.int32),
                    "findings": tfds.features.Tensor(shape=(3,), dtype=np.float32),
                    "true_findings": tfds.features.Tensor(shape=(3,), dtype=np.float32),
                    "posterior": tfds.features.Tensor(shape=(3,), dtype=np.float32),
                    "drawn": tfds.features.Tensor(shape=(2,), dtype=np.float32),
                }
            ),
            metadata=tfds.core.MetadataDict(
                findings=list(FINDINGS), races=list(RACES), open_data=True, invented_groups=True, ceiling=True
            ),
        )

    def _split_generators(self, dl_manager):
        first = 0
        generators = {}
        for split, images in self.builder_config.splits:
            generators[split] = self._generate_examples(split, range(first, first + images))
            first += images
        return generators

    def _generate_examples(self, split, numbers):
        (self.data_path / "quarantine.csv").write_text("image_id,reason\nbroken.png,not an image\n")
        for number in numbers:
            if self.builder_config.fail == "killed" and number == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            if self.builder_config.fail == "full" and number == 5:
                raise OSError(28, "No space left on device")
            patient = number // 2
            yield number, {
                "image": picture(number),
                "image_id": f"i{number:04d}",
                "patient_id": f"p{patient:04d}",
                "study_id": "",
                "released_split": "" if split == "images" else split,
                "race": "" if patient % 7 == 6 else RACES[patient % 3],
                "sex": "FM"[patient % 2],
                "view": ("PA", "AP", "")[number % 3],
                "age": np.nan if number == 3 else number / 2,
                "latent": -number,
                "follow_up": number % 2,
                "findings": (number % 2, (-1, 0, 1, np.nan)[number % 4], 0),
                "true_findings": (number % 2, 1, 0),
                "posterior": (0.5, 0.25, 0.25),
                "drawn": (number, number + 0.5),
            }


def config(data_dir, **fields) -> ml_collections.ConfigDict:
    """`config.dataset` for the tiny data set in `data_dir`."""
    dataset = base.get_config().dataset
    dataset.update({"name": "tiny", "data_dir": str(data_dir), "views": (), **fields})
    return dataset
