"""That both are fitted to the same and told side by side. Never how fast either is."""

import re
import sys

import pytest

from cxr_jax.benchmarks import erasure

SMALL = ["--rows=3000", "--width=16", "--rounds=2", "--folds=3"]
SPREAD = r"\S+ \(\S+ to \S+\)"


def test_ours_alone_where_the_package_is_absent(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "concept_erasure", None)
    erasure.main(SMALL)
    out = capsys.readouterr().out
    assert re.search(rf"^  all rows, ours: {SPREAD} s$", out, re.M) and re.search(rf"^  3 folds, ours: {SPREAD} s$", out, re.M)
    assert re.search(r"^  concept-erasure: not installed", out, re.M) and "times ours" not in out


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # by concept-erasure, when it is imported
def test_both_erase_the_same(capsys):
    erasure.main(SMALL)
    apart = re.findall(r"concept-erasure: .* times ours; apart by at most (\S+)$", capsys.readouterr().out, re.M)
    assert len(apart) == 2 and all(float(each) < 1e-5 for each in apart)
