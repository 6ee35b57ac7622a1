"""Seven mitigations by a small network on two seeds, in minutes: what a frontier looks like.

    bash launch/local.sh python -m cxr_jax.main --config=configs/sweeps/mitigation_tiny.py
    bash launch/local.sh python -m cxr_jax.compare runs/mitigation_tiny --html runs/mitigation_tiny.html

Fourteen runs took 8.6 minutes on two cores. Macro AUC of findings, on 1,944 test images of 870 patients, and of the strongest probe of the group (.738 in the
reference, of whose two seeds one leans on the group far more than the other): `independent` .822 and .577, `dann` .825 and .596, `group_dro` .795 and .532, `reweight` .800 and
.547, `leace` .800 and .679, reference .832. Over patients these differences from the reference are all told apart; over seeds, of which there
are two, none is.
"""

from configs import mitigate
from configs.sweeps import mitigation
from cxr_jax import experiment


def get_base():
    # A shortcut that so small a network takes in so few steps; its patients are drawn by a program, and cells of five are shown.
    data = {"dataset.phantom.patients": 3000, "dataset.phantom.effect": 1.5, "train.epochs": 8}
    audit = {"audit.attributes": ("race",), "audit.intersections": (), "audit.case_mix": (), "audit.replicates": 200, "audit.min_patients": 5}
    probes = {"probe.probes": ("logistic_regression", "network"), "probe.controls": (), "probe.strata": (), "probe.refits": 0, "mitigate.halvings": 0}
    features = {"extract.untrained": False, "extract.depths": False}
    return experiment.apply_diff(mitigate.get_config("tiny,phantom.shortcut"), data | audit | probes | features)


def get_diffs():
    return mitigation.field(("reweight", "independent", "group_dro", "dann", "leace", "thresholds_by_group"), seeds=(0, 1))
