"""That both ways are timed and agree. Never how fast either is."""

import re

from cxr_jax.benchmarks import bootstrap


def test_it_prints_a_ratio_and_that_both_agree(capsys):
    bootstrap.main(["--images=3000", "--findings=2", "--replicates=20", "--rounds=1"])
    machine, what, ours, loop = capsys.readouterr().out.splitlines()
    assert "sklearn" in machine and "20 replicates of 3,000 images × 2 findings × (everybody and 12 groups)" in what
    assert re.fullmatch(r"  ours: \S+ s \(\S+ to \S+\), average precision included", ours)
    ratio, apart = re.fullmatch(r"  loop over roc_auc_score: (\S+) times ours \(\S+ to \S+\), AUCs apart by at most (\S+)", loop).groups()
    assert float(ratio) > 0 and float(apart) < 1e-10
