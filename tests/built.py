"""What a builder stored, held against what was drawn (`tests.releases`)."""

from __future__ import annotations

import pathlib
import tempfile

import numpy as np
import pandas as pd
import tensorflow_datasets as tfds

from tests import releases
from tfds_builders import images, released


class OnADrawnRelease:
    """Beside TFDS's own test case: gives it a release that is drawn for it. A subclass says which in `draw(folder)`."""

    BUILDER_CONFIG_NAMES_TO_TEST = ["squash", "pad_raw"]

    @classmethod
    def setUpClass(cls):
        cls._folder = tempfile.TemporaryDirectory(prefix=f"{cls.__name__}-")
        truth = cls.draw(pathlib.Path(cls._folder.name))
        cls.EXAMPLE_DIR = cls._folder.name
        cls.SPLITS = truth.images["split"].replace("", released.WHOLE).value_counts().to_dict()
        super().setUpClass()

    @classmethod
    def tearDownClass(cls):
        super().tearDownClass()
        cls._folder.cleanup()


def build(builder_class, raw, data_dir, **options) -> released.Builder:
    builder = builder_class(config=released.builder_config(raw, **options), data_dir=data_dir)
    builder.download_and_prepare()
    return builder


def stored(builder) -> pd.DataFrame:
    """One row a record of all splits, indexed by image: text decoded, findings by name, the image as an array."""
    rows = []
    for split in builder.info.splits:
        for example in tfds.as_numpy(builder.as_dataset(split=split)):
            findings = example.pop("findings")
            row = {name: value.decode() if isinstance(value, bytes) else value for name, value in example.items()}
            row |= dict(zip((f"finding_{name}" for name in builder.info.metadata["findings"]), findings, strict=True))
            rows.append({**row, "stored_split": split})
    return pd.DataFrame(rows).set_index("image_id")


def assert_as_drawn(builder, truth: releases.Truth, views=lambda view: view, gray: float = 2.0) -> pd.DataFrame:
    """Identity, attributes, findings and pictures of every readable image are as drawn; the others are quarantined.

    views: from the release's word to the stored one. gray: mean absolute difference of a picture from a reduction of
        what was drawn, gray levels. Returns the stored records, in the order of `truth.images`.
    """
    drawn = truth.images.set_index("image_id")
    found = stored(builder)
    good = drawn[drawn["fault"] == ""]
    assert set(found.index) == set(good.index)
    found = found.loc[good.index]
    for column in ("patient_id", "study_id", "sex"):
        assert list(found[column]) == list(good[column]), column
    assert list(found["released_split"]) == list(good["split"])
    assert list(found["view"]) == [views(view) for view in good["view"]]
    np.testing.assert_array_equal(found["age"].to_numpy(np.float64), good["age"].to_numpy(np.float64))
    for column in (c for c in good if c.startswith("finding_") and c in found):
        np.testing.assert_array_equal(found[column].to_numpy(np.float64), good[column].to_numpy(np.float64), column)
    for image_id, image in found["image"].items():
        assert image.shape == (256, 256, 1) and image.dtype == np.uint8
        pixels = truth.pictures[image_id].astype(np.float32)
        whole = pixels / 257 if truth.pictures[image_id].dtype == np.uint16 else pixels
        expected = images.resize(whole, builder.builder_config.aspect)
        assert np.abs(image[..., 0].astype(float) - expected).mean() < gray, image_id

    faults = drawn.loc[drawn["fault"] != "", "fault"]
    set_aside = pd.read_csv(pathlib.Path(builder.data_dir) / "quarantine.csv", dtype=str).set_index("image_id")
    assert set_aside["reason"].to_dict() == faults.to_dict()
    return found
