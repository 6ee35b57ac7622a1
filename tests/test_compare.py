"""The comparison as a user starts it; what it says is for tests/report/test_compare.py."""

import subprocess
import sys

import pytest

from cxr_jax import compare
from tests.phantoms import as_user
from tests.report.test_compare import make_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    for i, name in enumerate(("one", "other")):
        make_run(folder / "runs" / name, 1.5 - i, seed=i, train__epochs=3 + i)
    return folder


def test_it_prints_tables_and_writes_a_page(runs):
    command = [sys.executable, "-m", "cxr_jax.compare", "runs/one", "runs/other", "--html", "pages/both.html", "--classes"]
    done = subprocess.run(command, cwd=runs, env=as_user(), capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert done.stdout.startswith("2 runs; differences are from the first, one\n") and "\nAlder\n" in done.stdout
    assert "train.epochs" in done.stdout and "Macro AUC of group (invented), test images" in done.stdout
    assert done.stdout.endswith("\npage: pages/both.html\n") and (runs / "pages" / "both.html").read_text().startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["runs/one", "runs/three"], "error: runs/three: no such folder"),
        (["runs/one", "--hmtl=x"], "error: Unknown command line flag 'hmtl'"),
        ([], "error: name at least two runs"),
        (["runs", "--html=runs/one/run.json/page.html"], "error: runs/one/run.json: "),
    ],
)
def test_a_mistake_is_one_line_and_status_one(runs, monkeypatch, capsys, arguments, told):
    """Within this process, whose own arguments absl has not parsed."""
    monkeypatch.chdir(runs)
    assert compare.main(["compare", *arguments]) == 1
    out, error = capsys.readouterr()
    assert error.startswith(told) and error.count("\n") == 1 and out == ""
