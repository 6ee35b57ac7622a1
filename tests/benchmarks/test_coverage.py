"""That intervals hold what they promise. A few samples by default; slow, as many as it takes to tell."""

import re

import numpy as np
import pytest

from cxr_jax.benchmarks import coverage
from cxr_jax.benchmarks.coverage import METHODS, POPULATIONS, Population


def test_what_is_drawn_has_the_truth_that_is_claimed():
    """By a large sample: AUCs, rates at the threshold, and groups that do not differ."""
    (sample,) = coverage.draw(np.random.default_rng(0), Population("many", 40_000))
    true, made = coverage.truths(), coverage.figures(sample, sample.patient, 2, 0, False)
    assert list(true) == list(made)
    for name, value in true.items():
        assert made[name].value == pytest.approx(value, abs=0.05 if "by rest" in name else 0.015), name
    patients = np.unique(sample.patient[sample.positive])
    assert 0.25 < len(patients) / 40_000 < 0.45
    independent = coverage.draw(np.random.default_rng(0), POPULATIONS[2])[0]
    assert len(independent.patient) > 400


def test_it_prints_and_writes_what_it_counted(capsys, tmp_path):
    coverage.main(["--simulations=3", "--replicates=100", "--jobs=1", f"--write={tmp_path}"])
    printed = capsys.readouterr().out
    assert all(f"**{of.name}**" in printed for of in POPULATIONS)
    cells = re.findall(r"\| (–|[\d.]+ \([\d.]+–[\d.]+\)) (?=\|)", printed)
    assert len(cells) == len(POPULATIONS) * len(coverage.truths()) * len(METHODS) + 3 * len(coverage.FAMILIES)
    page = (tmp_path / "coverage.md").read_text()
    assert printed.strip() in page and "--simulations=3 --replicates=100" in page
    assert (tmp_path / "coverage.svg").read_text().startswith("<svg")


@pytest.mark.slow
def test_intervals_of_patients_cover_and_those_of_images_do_not():
    """2,000 samples of 200 patients, 50 of them with positive images; of groups within them as few as 20, so figures of all alone."""
    counts = coverage.misses(POPULATIONS[0], range(2000), 600)
    covered = counts[:, :, 2] / counts[:, :, :3].sum(axis=2)
    bca, images = covered[METHODS.index("bca")], covered[METHODS.index("images")]
    for s, name in enumerate(coverage.truths()):
        if "group" not in name:
            assert 0.93 <= bca[s] <= 0.97, (name, bca[s])
        assert images[s] < 0.93, (name, images[s])
        assert 0.91 <= bca[s] <= 0.975, (name, bca[s])


@pytest.mark.slow
@pytest.mark.parametrize("patients", coverage.FAMILIES.values())
def test_of_fifty_null_differences_none_is_called_real_in_19_of_20_samples(patients):
    samples = 2000
    holm, by, uncorrected = coverage.false_alarms(patients, range(samples)) / samples
    # Two Monte-Carlo standard errors above 5 %.
    assert holm <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / samples) and by <= holm
    assert uncorrected > 0.8, "or there would be nothing to correct"
