"""Does it hold elsewhere? Findings and sex, and race where it is recorded, learnt at home and judged at other hospitals: AUCs, calibration, thresholds; what of the loss the mix explains.

    bash launch/local.sh python -m cxr_jax.main --config=configs/travel.py
        the phantom: learnt on `planted`, judged on its variants `confounded` and `acquisition`, whose findings and views differ
    …configs/travel.py:tiny               two minutes, with a small network
    …configs/travel.py:chexpert --config.dataset.raw_dir=DIR --config.predict.datasets="('nih','padchest','brax','table.mine')"
        data sets that were built before, by the stage prepare of a config of their own, in the same data_dir

The page is travel.html. Runs that were trained in several places are put side by side, each home a row of a matrix, each place a column:

    …configs/sweeps/travel.py
    python -m cxr_jax.compare runs/travel

Variants of the phantom hold the same patients; they are compared as if they were other people, so that intervals of differences are too wide, if anything.
"""

from configs import base
from cxr_jax import experiment

OTHERS = ("confounded", "acquisition")


def get_config(argument=None):
    config = base.get_config()
    config.name = "Travel"
    config.train.targets = ("findings", "sex")
    experiment.apply_argument(config, argument, base.SIZES)
    if config.dataset.name == "phantom":
        config.predict.datasets = tuple(f"phantom.{variant}" for variant in OTHERS if variant != config.dataset.variant)
    return config
