"""What the README promises of the phantom, held to whole runs of the shipped configs. Slow."""

import numpy as np
import pytest

from cxr_jax import tables
from tests.phantoms import command

pytestmark = pytest.mark.slow


def audited(*arguments, workdir, data_dir):
    done = command(*arguments, f"--config.dataset.data_dir={data_dir}", workdir=workdir)
    assert done.returncode == 0, done.stderr
    return [row for row in tables.read_json(workdir / "audit.json") if row["attribute"] == "all"]


def only(rows, metric, class_name):
    return next(r for r in rows if r["metric"] == metric and r["class"] == class_name)


def test_the_race_run_finds_what_is_planted_and_no_more(phantom_dir, tmp_path):
    rows = audited("--config=configs/race.py", workdir=tmp_path, data_dir=phantom_dir)
    for name in ("Alder", "Birch", "Cedar", "Dogwood", "macro"):
        assert only(rows, "auc", name)["low"] > 0.5, name
        assert only(rows, "auc_difference", name)["low"] <= 0, f"{name}: above what the images allow"


def test_where_nothing_is_planted_the_shipped_seed_finds_nothing(phantom_dir, tmp_path):
    rows = audited("--config=configs/race.py:phantom.null", workdir=tmp_path, data_dir=phantom_dir)
    macro = only(rows, "auc", "macro")
    assert macro["low"] < 0.5 < macro["high"]
    assert only(rows, "auc_ceiling", "macro")["value"] == 0.5


def test_where_nothing_is_planted_intervals_cover_a_half_as_often_as_they_should(phantom_dir, tmp_path):
    """20 populations, each with a model of its own. Were the 95 % intervals right, fewer than 17 would cover in 1.6 %."""
    covered = []
    for seed in range(20):
        seeds = (f"--config.seed={seed}", f"--config.dataset.phantom.seed={seed}")
        rows = audited("--config=configs/race.py:phantom.null,tiny", *seeds, workdir=tmp_path / str(seed), data_dir=phantom_dir)
        macro = only(rows, "auc", "macro")
        covered.append(macro["low"] <= 0.5 <= macro["high"])
    assert np.sum(covered) >= 17, covered
