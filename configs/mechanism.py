"""What of an image does a network read? Race, sex and findings told from images that lack frequencies, places, gray levels; and what is made of the rest.

    bash launch/local.sh python -m cxr_jax.main --config=configs/mechanism.py
        the phantom: DenseNet-121 learns race, sex and 14 findings at 64x64, and is shown the test images in some eighty ways. Its groups lie in
        a texture of 12 to 14 cycles along the diagonals: that is where their curve falls
    …configs/mechanism.py:tiny            about four minutes, with a small network
    …configs/mechanism.py:published       filters, clipping and sizes as a published study ran them, beside what it meant
    …configs/mechanism.py:nih --config.dataset.raw_dir=DIR --config.train.targets="('sex','findings')" --config.probe.targets="('sex',)"

A model that is trained already: its run's folder, or a file of weights, as for configs/probe.py. Labels that it has no head for are read off its features by logistic
regression, and it is not trained again:

    …configs/mechanism.py --config.extract.weights=runs/disease --config.stages="('prepare','extract','probe','mechanism','audit','report')"

What a network can learn from less is another run, and another column of a comparison: it is shown no more in training and after it.

    …configs/race.py --workdir=runs/race-low --config.train.shown="('low_pass',10.0)"
"""

from configs import base
from cxr_jax import experiment

# As it was run, and as it was meant: numbers that are called diameters, taken as radii; and half of them.
NUMBERS = (1.0, 5.0, 10.0, 25.0, 50.0, 75.0, 100.0, 125.0, 150.0, 200.0)
PUBLISHED = {
    "mechanism.series.published_low_pass": NUMBERS,
    "mechanism.series.published_high_pass": NUMBERS,
    "mechanism.series.low_pass": tuple(x / 2 for x in NUMBERS),
    "mechanism.series.high_pass": tuple(x / 2 for x in NUMBERS),
}


def get_config(argument=None):
    config = base.get_config()
    config.name = "What a network reads"
    config.stages = ("prepare", "train", "predict", "extract", "probe", "mechanism", "audit", "report")
    config.train.targets = ("race", "sex", "findings")
    config.probe.targets = ("race", "sex")
    config.probe.probes = ("logistic_regression",)
    config.probe.controls, config.probe.strata = ("shuffled",), ()
    config.extract.depths = config.extract.untrained = False
    config.mechanism.maps.patients, config.mechanism.maps.shuffled_labels = 64, True
    return experiment.apply_argument(config, argument, base.SIZES, {"published": PUBLISHED})
