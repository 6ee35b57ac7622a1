"""That both loops are timed beside ours and give the same images. Never how fast any is."""

import re

from cxr_jax.benchmarks import perturbations


def test_it_prints_rates_ratios_and_agreement(capsys):
    perturbations.main(["--images=3", "--pixels=32", "--radii=2", "--rounds=2"])
    machine, what, ours, kept, published = capsys.readouterr().out.splitlines()
    assert re.search(r"\d+ cores, Python [\d.]+, jax [\d.]+, numpy [\d.]+$", machine)
    assert what == "3 images of 32×32 through 2 low-pass filters, 2 rounds, ours on cpu"
    assert re.fullmatch(r"  ours: \S+ \(\S+ to \S+\) images/s", ours)
    for name, line in (("mask kept", kept), ("as published", published)):
        ratio, apart = re.fullmatch(rf"  {name}: \S+ \(\S+ to \S+\) images/s, ([\d.]+) \(\S+ to \S+\).* times our seconds; apart by at most (\S+)", line).groups()
        assert float(ratio) > 0 and float(apart) < 1e-3


def test_images_that_differ_are_seen(capsys, monkeypatch):
    right = perturbations.one_image
    monkeypatch.setattr(perturbations, "one_image", lambda image, mask: right(image, mask) + 1)
    perturbations.main(["--images=2", "--pixels=32", "--radii=1", "--rounds=2"])
    assert "apart by at most 1.0e+00" in capsys.readouterr().out
