"""That both are run to one optimum, and that what is printed follows from what was run. Never how fast either is."""

import re

import numpy as np
import pytest
import scipy.special

from cxr_jax.benchmarks import logistic_regression


def test_it_prints_times_ratios_and_gaps_of_one_optimum(capsys):
    sizes = ["--rows=300", "--width=12", "--classes=3", "--strengths=2", "--folds=2", "--rounds=1", "--fits=2"]
    logistic_regression.main(sizes)
    out = capsys.readouterr().out
    assert re.search(r"\d+ cores, Python [\d.]+, jax [\d.]+, sklearn [\d.]+, numpy [\d.]+\n300 rows, 12 columns, 3 classes", out)
    gaps = [float(gap) for gap in re.findall(r"objective (?:at most )?(\S+) above the lower one", out)]
    assert len(gaps) == 4 and min(gaps) >= 0 and max(gaps) < 1e-6
    assert "4 of 4 converged" in out and "scikit-learn timed on 2 of its fits" in out
    assert all(float(ratio) > 0 for ratio in re.findall(r"ours is (\S+) times as fast", out))


def test_the_objective_is_the_definition():
    x, y = logistic_regression.made_up(50, 4, 3)
    W, c = np.random.default_rng(0).normal(size=(3, 4)), np.array([0.1, 0.2, 0.3])
    losses = [-scipy.special.log_softmax(W @ row + c)[label] for row, label in zip(x.astype(float), y, strict=True)]
    expected = np.mean(losses) + 0.05 * (W**2).sum()
    assert logistic_regression.objective(x, y, W, c, 0.1) == pytest.approx(expected, rel=1e-12)
