"""D_sex: a DenseNet-121 learns the recorded sex; an attribute that every release records, so a check on the whole chain.

    bash launch/local.sh python -m cxr_jax.main --config=configs/sex.py:nih --config.dataset.raw_dir=DIR
    …configs/sex.py:nih,tiny --config.dataset.raw_dir=DIR
"""

from configs import base
from cxr_jax import experiment


def get_config(argument=None):
    config = base.get_config()
    config.name = "D_sex"
    config.train.targets = ("sex",)
    return experiment.apply_argument(config, argument, base.SIZES)
