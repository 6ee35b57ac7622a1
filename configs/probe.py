"""What do frozen features know? A small disease model is trained, its features are probed for race, with controls.

    bash launch/local.sh python -m cxr_jax.main --config=configs/probe.py
        the phantom: DenseNet-121 learns 14 findings at 64x64; are the invented groups in its features? Logistic regression
        finds them (macro AUC .59, .82 after the first block, of a ceiling of .90). About 8 minutes on two cores
    …configs/probe.py:phantom.null         no group in any picture: AUCs near .5, or something leaks
    …configs/probe.py:phantom.confounded   groups differ in disease alone: found, but not within true No Finding
    …configs/probe.py:phantom.acquisition  groups differ in the view alone: found, but not within a view
    …configs/probe.py:mimic --config.dataset.raw_dir=DIR      the published recipe, then the probes
    …configs/probe.py:nih --config.dataset.raw_dir=DIR --config.probe.targets="('sex',)"
    …configs/probe.py:tiny                 two minutes, with a small network

A model that is trained already: its run's folder. It is not trained again.

    …configs/probe.py --config.extract.weights=runs/disease --config.stages="('prepare','extract','probe','audit','report')"
    …                 --config.extract.weights=untrained       a network that has learnt nothing
    …                 --config.extract.weights=densenet.safetensors       a torch state dict, see extract in configs/base.py

Vectors of your own, from any model and of any width, enter at `probe`:

    …configs/probe.py --workdir=runs/mine --config.stages="('probe','audit','report')" --config.probe.embeddings=FILE

FILE is a Parquet or CSV table, one row an image: `image_id`, `patient_id`; `split` (train, validation, test; without it patients
are split by dataset.split_rule patient_hash); the label that is asked for (`race`, or another by --config.probe.targets);
`sex`, `age`, `view` and findings as `label_FINDING` (1, 0, empty) as far as there are any, for the controls; and the vector in
columns `feature_0`, `feature_1`, … (--config.probe.columns=PREFIX for other names, or the name of one column of lists). Or FILE is
a .npy array [images, width] and --config.probe.table=TABLE has the rest, row for row.
"""

from configs import base
from cxr_jax import experiment


def get_config(argument=None):
    config = base.get_config()
    config.name = "Probes of D_disease"
    config.stages = ("prepare", "train", "predict", "extract", "probe", "audit", "report")
    config.train.targets = ("findings",)
    return experiment.apply_argument(config, argument, base.SIZES)
