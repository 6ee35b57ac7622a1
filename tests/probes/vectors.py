"""Vectors with a known signal, beside the tables that `extract` would write; for tests of the protocol and of what follows it."""

import numpy as np
import pandas as pd

from configs import base
from cxr_jax.tables import FEATURES, Features

CLASSES = ("A", "B", "C")
SIZES = {"train": 150, "validation": 60, "test": 90}  # patients, of two images each


def settings(**changes):
    """config.probe, small."""
    config = base.get_config().probe
    config.update(
        {
            "penalties": (1e-3, 1e1, 4), "refits": 5, "neighbours": (1, 5, 15), "clusters": (2, 4), "restarts": 2, "permutations": 50,
            "network": {"hidden": 8, "epochs": 40, "patience": 4, "batch_size": 64, "learning_rate": 1e-2},
        }
    )  # fmt: skip
    config.update({name.replace("__", "."): value for name, value in changes.items()})
    return config


def splits(signal: float = 2.0, through: str = "", width: int = 6, seed: int = 0) -> dict[str, Features]:
    """Three classes of race whose means differ along three of the vectors' columns by `signal`.

    through: a column (`view` or `label_No Finding`) that race determines for the most part and that alone carries the signal, so
    that within its values there is none; '' for race itself.
    """
    random = np.random.default_rng(seed)
    made = {}
    for split, patients in SIZES.items():
        race = random.integers(0, 3, patients).repeat(2)
        n = len(race)
        chance = np.array([0.1, 0.5, 0.9])[race] if through else 0.5
        shows = random.random(n) < chance
        other = random.random(n) < 0.5
        view, no_finding = (shows, other) if through == "view" else (other, shows)
        means = signal * (np.eye(3)[race] if not through else np.outer(shows, [1.0, -1.0, 1.0]))
        vectors = random.normal(size=(n, width)).astype(np.float32)
        vectors[:, :3] += means.astype(np.float32)
        untrained = random.normal(size=(n, width)).astype(np.float32)
        table = pd.DataFrame(
            {
                "image_id": [f"{split}{i}" for i in range(n)],
                "patient_id": [f"{split}{i // 2}" for i in range(n)],
                "split": split,
                "race": pd.array(np.array(CLASSES, object)[race], dtype="str"),
                "sex": pd.array(np.where(np.arange(n) // 2 % 2, "F", "M"), dtype="str"),
                "age": random.normal(60, 10, n),
                "view": pd.array(np.where(view, "AP", "PA"), dtype="str"),
                "label_No Finding": no_finding.astype(float),
                "label_Edema": np.where(random.random(n) < 0.1, np.nan, (random.random(n) < 0.3).astype(float)),
            }
        )
        # All of one width, so that probes of them compile once.
        arrays = {
            FEATURES: vectors,
            "untrained": untrained,
            "stem": vectors * np.array([0, 0, 1, 1, 1, 1], np.float32),
            "block1": vectors * np.array([0, 1, 1, 1, 1, 0], np.float32),
        }
        made[split] = Features(table, arrays, {"classes": {"race": list(CLASSES)}})
    return made
