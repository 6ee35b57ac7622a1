"""D_disease, with a bias removed in training or after it: what do probes still find, what is lost, and who is missed?

    bash launch/local.sh python -m cxr_jax.main --config=configs/mitigate.py:leace
    …configs/mitigate.py:phantom.shortcut,group_dro,tiny      data set, method and size combine in any order
    …configs/mitigate.py                  the reference: the mean loss, and nothing is taken from what it made (ERM)

In training (cxr_jax/training/objectives.py):

    reweight, resample      groups by label count, or come, as often as each other
    independent             they count as if labels did not depend on groups; labels stay as common as they are
    group_dro               the group by label that fares worst counts most
    dann, cdann             an adversary reads the group off the features, and is unlearnt; cdann's knows the labels
    mmd, coral              distances between groups' features are part of the loss
    jtt                     what a first training gets wrong counts more
    domain_independent      a head for each group, whose mean is read
    acquisition             window, field of view and exposure are varied

After it, from features (cxr_jax/probes/erasure.py), heads (last_layer.py) or calls (cxr_jax/audit/):

    leace                   least-squares concept erasure
    orthogonalise           without the directions in which groups differ at equal age, sex and view
    null_space              iterative null-space projection
    prune                   without the tenth of features of most weight in a linear probe
    dfr                     heads fitted anew on validation patients, groups by label balanced
    thresholds_by_view      a threshold for each view

and, needing the group of everyone who is judged, for comparison rather than use:

    oracle, quadratic       erasure that is told it; quadratic makes means and covariances alike
    thresholds_by_group     a threshold for each group
    equalised_odds          thresholds and lots by group, so that rates of error are alike

What is done after training is fitted on half of the patients of training (dfr: of validation), and probes on the other half (mitigate.share), here and for every
method in training too, so that all are compared by the same probes. How an erasure fares that knows fewer patients is drawn (mitigate.halvings). A model that is trained already is not trained again:

    …configs/mitigate.py:leace --config.extract.weights=runs/mitigate --config.stages="('prepare','extract','mitigate','probe','audit','report')"

and runs are told apart by `python -m cxr_jax.compare runs/mitigate runs/mitigate-leace`; the whole field, on seeds, is configs/sweeps/mitigation.py.
"""

from configs import base
from cxr_jax import experiment

# What each method is, as a diff on the reference. At these strengths a small network on `shortcut` lost no more than .01 of its macro AUC of findings (two seeds,
# batch 16); at three to ten times as much it forgot findings, by .02 to .1. They are to be found anew on the data at hand. mmd compares two images or more of a
# group with another's in the same batch, and coral four, which a batch of eight hardly ever has.
METHODS = {
    "independent": {"train.objective.name": "reweight", "train.objective.cells": "independent"},
    **{name: {"train.objective.name": name} for name in ("reweight", "resample", "group_dro", "jtt", "domain_independent")},
    **{name: {"train.objective.name": name, "train.objective.strength": 0.1} for name in ("dann", "cdann")},
    **{name: {"train.objective.name": name, "train.objective.strength": strength, "train.batch_size": 32} for name, strength in (("mmd", 0.03), ("coral", 0.1))},
    "acquisition": {"train.augment.window": 0.1, "train.augment.field_of_view": 0.15, "train.augment.exposure": 0.5},
    **{name: {"mitigate.method": name} for name in ("leace", "orthogonalise", "null_space", "prune", "dfr", "oracle", "quadratic")},
    "thresholds_by_view": {"audit.threshold_by": "view"},
    "thresholds_by_group": {"audit.threshold_by": "race"},
    "equalised_odds": {"mitigate.method": "equalised_odds", "audit.threshold": "fixed:0.5"},
}


def get_config(argument=None):
    config = base.get_config()
    config.name = "D_disease, mitigated"
    config.stages = ("prepare", "train", "predict", "extract", "mitigate", "probe", "audit", "report")
    config.train.targets = ("findings",)
    config.mitigate.method = "none"
    config.mitigate.halvings = 4
    config.probe.controls += ("scores",)
    return experiment.apply_argument(config, argument, base.SIZES, METHODS)
