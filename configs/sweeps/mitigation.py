"""The field of mitigations on five seeds: encoding, accuracy and harm of each beside the reference, with intervals over patients and seeds.

    bash launch/local.sh python -m cxr_jax.main --config=configs/sweeps/mitigation.py
        22 methods, the reference among them, on 5 seeds: 110 runs in runs/mitigation. On the phantom called shortcut, by DenseNet-121 at 64×64 pixels; on real data its base is
        another: --config.dataset.name=… and so on hold for every run
    …configs/sweeps/mitigation.py:leace-0         one of them, as a job of its own; what is done after training needs erm-0 done first
    bash launch/local.sh python -m cxr_jax.compare runs/mitigation --html runs/mitigation.html

Cost: erm-0 took 3:20 minutes and leace-0 2:50 on two cores, which other work shared at times; so the whole takes five to six hours there. It has not been run as a
whole.
"""

from configs import mitigate

SEEDS = range(5)
# What takes an ERM's weights as they are need not train.
AFTER = ("leace", "orthogonalise", "null_space", "prune", "dfr", "oracle", "quadratic", "thresholds_by_view", "thresholds_by_group", "equalised_odds")
STAGES_AFTER = ("prepare", "extract", "mitigate", "probe", "audit", "report")


def get_base():
    config = mitigate.get_config("phantom.shortcut")
    config.mitigate.halvings = 0  # a question to each method by itself
    return config


def get_diffs():
    return field(mitigate.METHODS, SEEDS)


def field(methods, seeds):
    """{METHOD-SEED: diff}, the reference `erm` first of each seed. methods: of `mitigate.METHODS`, by name."""
    diffs = {}
    for seed in seeds:
        of_seed = {"seed": seed} if seed else {}
        diffs[f"erm-{seed}"] = of_seed
        for name in methods:
            reused = {"extract.weights": f"sweep:erm-{seed}", "stages": STAGES_AFTER} if name in AFTER else {}
            diffs[f"{name}-{seed}"] = mitigate.METHODS[name] | reused | of_seed
    return diffs
