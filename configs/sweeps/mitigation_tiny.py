"""Seven mitigations by a small network on two seeds, in minutes: what a frontier looks like.

    bash launch/local.sh python -m cxr_jax.main --config=configs/sweeps/mitigation_tiny.py
    bash launch/local.sh python -m cxr_jax.compare runs/mitigation_tiny --html runs/mitigation_tiny.html

RESULT
"""

from configs import mitigate
from configs.sweeps import mitigation
from cxr_jax import experiment


def get_base():
    # A shortcut that so small a network takes in so few steps; its patients are drawn by a program, and cells of five are shown.
    data = {"dataset.phantom.patients": 3000, "dataset.phantom.effect": 1.5, "train.epochs": 8}
    audit = {"audit.attributes": ("race",), "audit.intersections": (), "audit.case_mix": (), "audit.replicates": 200, "audit.min_patients": 5}
    probes = {"probe.probes": ("logistic_regression", "network"), "probe.controls": (), "probe.strata": (), "probe.refits": 0}
    features = {"extract.untrained": False, "extract.depths": False}
    return experiment.apply_diff(mitigate.get_config("tiny,phantom.shortcut"), data | audit | probes | features)


def get_diffs():
    return mitigation.field(("reweight", "independent", "group_dro", "dann", "leace", "thresholds_by_group"), seeds=(0, 1))
