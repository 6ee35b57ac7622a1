"""The builder under TFDS's own test case, and what it stores against what was drawn."""

import numpy as np
import pytest
import tensorflow_datasets as tfds

from cxr_jax.tables import UserError
from tfds_builders.cxr_phantom import cxr_phantom_dataset_builder, phantom

PATIENTS = 4


class CxrPhantomTest(tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS = cxr_phantom_dataset_builder.Builder
    # All variants of one seed hold the same patients with the same number of images.
    SPLITS = {"train": len(phantom.sample_population(phantom.Parameters(patients=PATIENTS)))}
    BUILDER_CONFIG_NAMES_TO_TEST = [
        cxr_phantom_dataset_builder.builder_config(variant, patients=PATIENTS) for variant in phantom.VARIANTS
    ]


def test_everything_drawn_is_stored_and_reads_back(tmp_path):
    config = cxr_phantom_dataset_builder.builder_config("underdiagnosed", patients=12, seed=3)
    cxr_phantom_dataset_builder.Builder(config=config, data_dir=tmp_path).download_and_prepare()
    builder = cxr_phantom_dataset_builder.Builder(config=config, data_dir=tmp_path)  # as a later run finds it
    population = phantom.sample_population(config.parameters)
    stored = {row["image_id"].decode(): row for row in tfds.as_numpy(builder.as_dataset(split="train"))}
    assert sorted(stored) == sorted(population["image_id"])
    pictures = phantom.draw_images(population, range(len(population)))
    for i, image_id in enumerate(population["image_id"]):
        row = stored[image_id]
        np.testing.assert_array_equal(row["image"], pictures[i])
        assert row["race"].decode() == phantom.GROUPS[population["group"][i]]
        assert row["released_split"] == b""
        for name, values in population.columns.items():
            if name != "group":
                kept = row[name].decode() if isinstance(row[name], bytes) else row[name]
                np.testing.assert_array_equal(kept, values[i], err_msg=name)

    metadata = builder.info.metadata
    assert metadata["findings"] == list(phantom.FINDINGS) and metadata["races"] == list(phantom.GROUPS)
    assert metadata["shapes"] == list(phantom.SHAPES)
    assert metadata["open_data"] is True and metadata["invented_groups"] is True and metadata["ceiling"] is True
    assert metadata["underdiagnosed_group"] == "Dogwood" and metadata["underdiagnosed_share"] == 0.4
    assert (metadata["variant"], metadata["patients"], metadata["seed"]) == ("underdiagnosed", 12, 3)


def test_only_a_variant_at_its_defaults_has_its_plain_name():
    make = cxr_phantom_dataset_builder.builder_config
    for variant in phantom.VARIANTS:
        assert make(variant) is cxr_phantom_dataset_builder.Builder.builder_configs[variant]
    changed = [
        make(),
        make(patients=999),
        make(seed=1),
        make(signal=0.5),
        make(signal=0.5000001),
        make(effect=0.5),
        make(underdiagnosed_share=0.1),
        make("null", signal=0.5),
    ]
    assert len({config.name for config in changed}) == len(changed)
    assert make(signal=1).name == "planted"  # the same number, whether typed 1 or 1.0


def test_an_unknown_variant_names_the_known_ones():
    with pytest.raises(UserError, match="planted, null, confounded"):
        cxr_phantom_dataset_builder.builder_config("plantd")
