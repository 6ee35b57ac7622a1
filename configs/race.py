"""D_race: a DenseNet-121 learns the four recorded races, so that an audit knows how much of them an image carries.

    bash launch/local.sh python -m cxr_jax.main --config=configs/race.py
        the phantom at 64x64, about 4 minutes on two cores; its ceilings are .80 to .97
    …configs/race.py:phantom.null      a phantom that carries no group: every AUC should be near .5
    …configs/race.py:phantom,paper     256x256, 10 epochs, batch 32: for a GPU
    …configs/race.py:mimic --config.dataset.raw_dir=DIR       the published recipe on MIMIC-CXR: four races, frontal
    …configs/race.py:chexpert --config.dataset.raw_dir=DIR    and on CheXpert
    …configs/race.py:tiny              a minute, with a small network
"""

from configs import base
from cxr_jax import experiment


def get_config(argument=None):
    config = base.get_config()
    config.name = "D_race"
    config.train.targets = ("race",)
    return experiment.apply_argument(config, argument, base.SIZES)
