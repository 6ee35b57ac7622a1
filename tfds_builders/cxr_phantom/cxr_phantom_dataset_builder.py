"""cxr_phantom: writes the phantoms that `phantom.py` draws as a TFDS data set."""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow_datasets as tfds

from tfds_builders import released
from tfds_builders.cxr_phantom import phantom

_CHUNK = 64  # images held at a time while they are written


@dataclasses.dataclass(eq=False, kw_only=True)
class PhantomConfig(tfds.core.BuilderConfig):
    """A variant at given size and strengths; made by `builder_config`, which names it after what it holds."""

    parameters: phantom.Parameters
    storage: str = "png"


def _name(parameters: phantom.Parameters, storage: str) -> str:
    # A folder is found by its config's name alone, so the name says whatever is not at its default.
    end = "_raw" if storage == "raw" else ""
    if parameters == phantom.Parameters(variant=parameters.variant):
        return parameters.variant + end
    name = f"{parameters.variant}_p{parameters.patients}_s{parameters.seed}_g{float(parameters.signal)!r}"
    default = phantom.Parameters()
    if parameters.effect != default.effect:
        name += f"_e{float(parameters.effect)!r}"
    if parameters.underdiagnosed_share != default.underdiagnosed_share:
        name += f"_u{float(parameters.underdiagnosed_share)!r}"
    return name + end


def _config(parameters: phantom.Parameters, storage: str = "png") -> PhantomConfig:
    return PhantomConfig(
        name=_name(parameters, storage),
        description=phantom.VARIANTS[parameters.variant],
        parameters=parameters,
        storage=storage,
    )


class Builder(tfds.core.GeneratorBasedBuilder):
    """Chest-like phantoms with known truth, in six variants of what a made-up group changes."""

    # Whatever changes a pixel, or a label, needs another version, or records drawn before would pass for today's.
    VERSION = tfds.core.Version("1.2.0")
    RELEASE_NOTES = {"1.0.0": "First release.", "1.1.0": "A texture of 7 gray levels instead of 8.", "1.2.0": "Dogwood is underdiagnosed instead of Cedar."}
    BUILDER_CONFIGS = [_config(phantom.Parameters(variant=variant)) for variant in phantom.VARIANTS]
    DEFAULT_BUILDER_CONFIG_NAME = "planted"

    def _info(self) -> tfds.core.DatasetInfo:
        findings, groups = len(phantom.FINDINGS), len(phantom.GROUPS)
        parameters = self.builder_config.parameters
        underdiagnosed = parameters.variant == "underdiagnosed"
        text, number = tfds.features.Text(), tfds.features.Scalar
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": released.image_feature(self.builder_config.storage),
                    "image_id": text,
                    "patient_id": text,
                    "study_id": text,
                    "released_split": text,
                    "race": text,
                    "sex": text,
                    "view": text,
                    "age": number(np.float32),
                    "findings": tfds.features.Tensor(shape=(findings,), dtype=np.float32),
                    "true_findings": tfds.features.Tensor(shape=(findings,), dtype=np.float32),
                    "relabelled": number(np.int64),
                    "latent": number(np.float32),
                    "posterior": tfds.features.Tensor(shape=(groups,), dtype=np.float32),
                    "image_index": number(np.int64),
                    "severity": tfds.features.Tensor(shape=(findings,), dtype=np.float32),
                    "side": tfds.features.Tensor(shape=(findings,), dtype=np.float32),
                    "place": tfds.features.Tensor(shape=(findings, 2), dtype=np.float32),
                    "shapes": tfds.features.Tensor(shape=(len(phantom.SHAPES),), dtype=np.float32),
                    "texture": tfds.features.Tensor(shape=(3,), dtype=np.float32),
                }
            ),
            supervised_keys=("image", "race"),
            metadata=tfds.core.MetadataDict(
                {
                    "findings": list(phantom.FINDINGS),
                    "races": list(phantom.GROUPS),
                    "open_data": True,
                    "invented_groups": True,
                    "ceiling": True,
                    **dataclasses.asdict(parameters),
                    "underdiagnosed_share": float(parameters.underdiagnosed_share) if underdiagnosed else 0.0,
                    "underdiagnosed_group": phantom.UNDERDIAGNOSED_GROUP if underdiagnosed else "",
                    "shortcut_finding": phantom.SHORTCUT_FINDING if parameters.variant == "shortcut" else "",
                    "group_prior": list(phantom.PRIOR),
                    "latent_means": parameters.latent_means().tolist(),
                    "shapes": list(phantom.SHAPES),
                }
            ),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        del dl_manager  # nothing is downloaded
        return {"train": self._generate_examples()}  # TFDS keeps the name `all` for itself

    def _generate_examples(self):
        population = phantom.sample_population(self.builder_config.parameters)
        columns = dict(population.columns)
        columns["race"] = np.array(phantom.GROUPS)[columns.pop("group")]
        columns["released_split"] = np.full(len(population), "")
        for start in range(0, len(population), _CHUNK):
            indices = range(start, min(start + _CHUNK, len(population)))
            for index, image in zip(indices, phantom.draw_images(population, indices)):
                row = {name: values[index] for name, values in columns.items()}
                row = {name: str(value) if isinstance(value, np.str_) else value for name, value in row.items()}
                yield row["image_id"], {"image": image, **row}


def builder_config(
    variant: str = "planted",
    patients: int = 1000,
    seed: int = 0,
    signal: float = 1.0,
    effect: float = 1.0,
    underdiagnosed_share: float = 0.4,
    storage: str = "png",
) -> PhantomConfig:
    """The config for these parameters (see `phantom.Parameters`) and storage (`png`, `raw`), for `Builder(config=...)`.

    At the defaults it is the builder's own config, `planted` and so on; else one that is named after its parameters, so
    that no two share a folder. Raises UserError where a value is out of range.
    """
    parameters = phantom.Parameters(variant, patients, seed, signal, effect, underdiagnosed_share)
    name = _name(parameters, storage)
    return Builder.builder_configs[name] if name in Builder.builder_configs else _config(parameters, storage)
