"""That every search is timed and compared with ours, and one that is absent is named. Never how fast any is."""

import re
import sys

import numpy as np
import pytest

from cxr_jax.benchmarks import knn

TINY = ["--database=300", "--queries=50", "--width=8", "--k=3", "--rounds=2"]
PEER = (
    r"  {}: \S+ s \(\S+ to \S+\), ([\d.]+) times ours;"
    r" ([\d.]+)% of neighbours equal, distances apart by at most (\S+)"
)


def test_it_prints_times_ratios_and_agreement_and_names_what_is_missing(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    knn.main(TINY)
    machine, what, ours, sklearn, faiss = capsys.readouterr().out.splitlines()
    assert re.search(r"\d+ cores, Python [\d.]+, jax [\d.]+, sklearn [\d.]+, numpy [\d.]+$", machine)
    assert what == "50 queries × 300 rows × 8, k=3, 2 rounds, ours on 8 cpu devices"
    assert re.fullmatch(r"  ours: \S+ s \(\S+ to \S+\)", ours)
    ratio, equal, apart = map(float, re.fullmatch(PEER.format("scikit-learn"), sklearn).groups())
    assert ratio > 0 and equal == 100 and apart < 1e-5
    assert faiss == "  faiss: not installed (faiss-cpu)"


def test_a_search_that_errs_is_seen(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    right = knn.knn.neighbours

    def wrong(*inputs, **options):
        found = right(*inputs, **options)
        index, distance = found.index.copy(), found.distance.copy()
        index[:, 0], distance[0, 0] = -1, 2 * distance[0, 0]
        return knn.knn.Neighbours(index, distance)

    monkeypatch.setattr(knn.knn, "neighbours", wrong)
    knn.main(TINY)
    line = capsys.readouterr().out.splitlines()[3]
    _, equal, apart = map(float, re.fullmatch(PEER.format("scikit-learn"), line).groups())
    assert equal == pytest.approx(200 / 3, abs=0.01) and apart == pytest.approx(0.5, abs=0.01)


@pytest.mark.peers
def test_faiss_is_measured_where_it_is_installed(capsys):
    pytest.importorskip("faiss")
    knn.main(TINY)
    line = capsys.readouterr().out.splitlines()[4]
    ratio, equal, apart = map(float, re.fullmatch(PEER.format("faiss"), line).groups())
    assert ratio > 0 and equal == 100 and np.isfinite(apart) and apart < 1e-4
