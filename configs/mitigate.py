"""D_disease, and race taken from its features after training: what do probes still find, what is lost, and who is missed?

    bash launch/local.sh python -m cxr_jax.main --config=configs/mitigate.py:leace
    …configs/mitigate.py                           the reference: nothing is taken from what training made (ERM)
    …configs/mitigate.py:leace                     least-squares concept erasure
    …configs/mitigate.py:orthogonalise             without the directions in which groups differ at equal age, sex and view
    …configs/mitigate.py:null_space                iterative null-space projection
    …configs/mitigate.py:prune                     without the hundred features of most weight in a linear probe
    …configs/mitigate.py:phantom.shortcut,leace,tiny      data set, method and size combine in any order

A method is fitted on half of the training patients, probes on the other half (mitigate.share); both, and the audit, judge what is left. A model that is trained already is not trained again:

    …configs/mitigate.py:leace --config.extract.weights=runs/mitigate --config.stages="('prepare','extract','mitigate','probe','audit','report')"

and two runs are told apart by `python -m cxr_jax.compare runs/mitigate runs/mitigate-leace`. No method needs the attribute of an image that is judged.
"""

from configs import base
from cxr_jax import experiment

METHODS = {method: {"mitigate.method": method} for method in experiment.MITIGATIONS if method != "none"}


def get_config(argument=None):
    config = base.get_config()
    config.name = "D_disease, mitigated"
    config.stages = ("prepare", "train", "predict", "extract", "mitigate", "probe", "audit", "report")
    config.train.targets = ("findings",)
    config.mitigate.method = "none"
    return experiment.apply_argument(config, argument, base.SIZES, METHODS)
