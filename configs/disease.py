"""D_disease: a DenseNet-121 learns the data set's findings (CheXpert's 14; NIH's 14 and No Finding), a sigmoid each.

    bash launch/local.sh python -m cxr_jax.main --config=configs/disease.py
    …configs/disease.py:nih --config.dataset.raw_dir=DIR      NIH ChestX-ray14, DIR as downloaded
    …configs/disease.py:nih,tiny --config.dataset.raw_dir=DIR
    …configs/disease.py:mimic, :chexpert, :padchest, :brax    likewise
    …configs/disease.py:table.NAME --config.dataset.raw_dir=DIR --config.dataset.table=FILE …     your own (tfds_builders/cxr_table/README.md)
"""

from configs import base
from cxr_jax import experiment


def get_config(argument=None):
    config = base.get_config()
    config.name = "D_disease"
    config.train.targets = ("findings",)
    return experiment.apply_argument(config, argument, base.SIZES)
