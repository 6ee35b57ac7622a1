"""Figures of maps: Student's intervals over patients, and what is said where there are none."""

import numpy as np
import pytest
from scipy import stats

from configs import base
from cxr_jax.audit import maps

SETTINGS = base.get_config().audit


def arrays(n=30, shuffled=True, seed=0):
    rng = np.random.default_rng(seed)
    made = {"noise": 0.9 + 0.05 * rng.random(n), "randomised": rng.normal(0.2, 0.1, n), "shuffled": rng.normal(0.3, 0.1, n) if shuffled else np.full(n, np.nan), "area": rng.normal(0.5, 1, n)}
    made["randomised"][0] = np.nan
    made["incompleteness"] = np.stack([np.full(n, -0.1), np.full(n, 2.0)])
    return {f"race\nAlder\ngrad_cam\n{part}": values for part, values in made.items()} | {"groups": np.array(["a"]), "made_by": "x"}


def test_means_have_students_intervals_over_patients():
    of = arrays()
    rows = {row["figure"]: row for row in maps.audit(of, SETTINGS, True)}
    apart = (of["race\nAlder\ngrad_cam\nrandomised"] - of["race\nAlder\ngrad_cam\nnoise"])[1:]
    low, high = stats.t.interval(0.95, 28, apart.mean(), stats.sem(apart))
    row = rows["changed_randomised"]
    assert (row["value"], row["low"], row["high"], row["n_patients"]) == (pytest.approx(apart.mean()), pytest.approx(low), pytest.approx(high), 29)
    assert rows["incompleteness"]["value"] == pytest.approx(0.05) and rows["incompleteness"]["low"] is None
    assert rows["area"]["n_patients"] == 30 and rows["area"]["class"] == "Alder"


def test_what_is_not_there_says_why():
    rows = {row["figure"]: row for row in maps.audit(arrays(shuffled=False), SETTINGS, True)}
    assert "no network was trained on shuffled labels" in rows["similarity_shuffled"]["reason"] and rows["similarity_shuffled"]["value"] is None
    few = {row["figure"]: row for row in maps.audit(arrays(10), SETTINGS, False)}
    assert all(row["value"] is None and row["n_patients"] is None and "fewer than 11" in row["reason"] for row in few.values())
    one = {row["figure"]: row for row in maps.audit(arrays(1), SETTINGS, True)}
    assert one["area"]["low"] is None and "one patient" in one["area"]["reason"]
