"""What does a released model give away? Race, sex and age from its scores, from its features; whether a patient is found again, and whether it is told who was trained on.

    bash launch/local.sh python -m cxr_jax.main --config=configs/leakage.py
        the phantom: DenseNet-121 learns 14 findings at 64x64; the page is leakage.html
    …configs/leakage.py:tiny              two minutes, with a small network
    …configs/leakage.py:leace             after a mitigation, any of configs/mitigate.py; runs are put side by side by python -m cxr_jax.compare
    …configs/leakage.py:mimic --config.dataset.raw_dir=DIR

What images themselves tell, a network says that was trained to tell it, on the same data set and splits:

    …configs/race.py --config.train.targets="('race','sex')"
    …configs/leakage.py --config.audit.told_by_images=runs/race

A risk figure for who would release a model: only rates over many patients leave, and nothing here finds anybody.
"""

from configs import base, mitigate
from cxr_jax import experiment


def get_config(argument=None):
    config = base.get_config()
    config.name = "Leakage of D_disease"
    config.stages = ("prepare", "train", "predict", "extract", "mitigate", "probe", "audit", "report")
    config.train.targets = ("findings",)
    config.predict.splits = ("train", "validation", "test")
    config.extract.depths = config.extract.untrained = False
    config.mitigate.method = "none"
    config.probe.targets = ("race", "sex", "age_band")
    config.probe.probes = ("logistic_regression", "network")
    config.probe.controls, config.probe.strata = ("shuffled", "scores"), ()
    config.audit.leakage = True
    return experiment.apply_argument(config, argument, base.SIZES, mitigate.METHODS)
