"""A matrix of homes and places: a small network learns findings, sex and the invented groups on each of three variants of the phantom, and is judged on all of them.

    bash launch/local.sh python -m cxr_jax.main --config=configs/sweeps/travel.py
        three runs of two to three minutes on two cores
    bash launch/local.sh python -m cxr_jax.compare runs/travel

For data sets of your own name them here: each home's run is judged on the others, which are built before.
"""

from configs import travel
from cxr_jax import experiment

PLACES = ("planted", "confounded", "acquisition")


def get_base():
    return experiment.apply_diff(travel.get_config("tiny"), {"dataset.phantom.patients": 2000, "train.targets": ("findings", "sex", "race"), "train.epochs": 5})


def get_diffs():
    return {home: {"dataset.variant": home, "predict.datasets": tuple(f"phantom.{place}" for place in PLACES if place != home)} for home in PLACES}
