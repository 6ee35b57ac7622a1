"""Does a batch of 256 learn what one of 32 learns? D_race on a phantom of 4,000 patients, by all layers of DenseNet-121 with an eighth of its maps.

    bash launch/local.sh python -m cxr_jax.main --config=configs/sweeps/batch.py
        three runs of two to three minutes on two cores
    bash launch/local.sh python -m cxr_jax.compare runs/batch
    bash launch/local.sh python -m cxr_jax.benchmarks.batch_size      what a step of each costs on this machine

The large batch takes one field more than its size: train.recipe_batch_size says which batch rate and Adam's constants are meant for, and
they are scaled from there. Macro AUC on 2,684 test images of 1,194 patients, ceiling .894 (.883 to .904), in three draws (two seeds, and the first
again by a program that rounded otherwise): .880, .876, .884 by the batch of 32; .880, .880, .878 by that of 256, on average less by .001 (-.001, .004 and
-.006, of which the last interval, -.009 to -.001, leaves out 0); .866, .856, .857 by that of 256 with rate and constants as they are, each interval of the difference below 0. All have 12
epochs; after half of them the larger batch is still behind.
"""

from configs import race
from cxr_jax import experiment


def get_base():
    # Few maps, so that 32 images do not fill two cores, as those of the whole network do not fill a GPU.
    narrow = {"model.blocks": (6, 12, 24, 16), "model.growth": 4, "model.stem": 8}
    course = {"train.batch_size": 32, "train.epochs": 12, "train.warmup_epochs": 1.0}
    return experiment.apply_diff(race.get_config("tiny"), {"dataset.phantom.patients": 4000, **narrow, **course})


def get_diffs():
    return {
        "of_32": {},
        "of_256": {"train.batch_size": 256, "train.recipe_batch_size": 32},
        "of_256_unscaled": {"train.batch_size": 256},
    }
