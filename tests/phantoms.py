"""The config of a small run on a small phantom; for tests of what is done with a data set."""

import pathlib

import ml_collections

from configs import race
from cxr_jax import experiment

# A network that compiles in seconds, on few small pictures. The code is DenseNet-121's; only the sizes differ.
SMALL = {
    "dataset.phantom.patients": 60,
    "dataset.image_size": 32,
    "model.growth": 4,
    "model.blocks": (2, 2),
    "model.stem": 8,
    "train.batch_size": 16,
    "train.evaluate_batch_size": 16,
    "train.epochs": 2,
    "train.log_every_steps": 2,
    "checkpoint.every_steps": 2,
    "audit.replicates": 100,
}


def small_config(data_dir: pathlib.Path | str, **diff) -> ml_collections.ConfigDict:
    """D_race on a phantom of 60 patients in `data_dir`; further fields with `__` for the dot."""
    config = race.get_config()
    experiment.apply_diff(config, {"dataset.data_dir": str(data_dir), **SMALL})
    return experiment.apply_diff(config, {k.replace("__", "."): v for k, v in diff.items()})
