"""What the README promises of the audit, held to whole runs on phantoms whose truth is known. Slow."""

import pytest

from cxr_jax import tables
from cxr_jax.audit.subgroups import select
from tests.phantoms import command

pytestmark = pytest.mark.slow

BY_TRUTH = ("--config.audit.truth=true", "--config.audit.attributes=('race',)", "--config.dataset.storage=raw")


def audited(config, *arguments, workdir, data_dir):
    done = command(f"--config={config}", *BY_TRUTH, *arguments, f"--config.dataset.data_dir={data_dir}", workdir=workdir)
    assert done.returncode == 0, done.stderr
    return tables.read_json(workdir / "audit.json")


def test_who_is_underdiagnosed_is_found_and_nobody_else(phantom_dir, tmp_path):
    """.4 of Cedar's images with a pathology are recorded as No Finding, and the network is told of the groups as well: a small one
    does not find out by itself, from so few pictures, to whom it may say so."""
    rows = audited(
        "configs/disease.py:phantom.underdiagnosed,tiny", "--config.train.targets=('findings','race')", "--config.dataset.phantom.patients=3000",
        "--config.train.epochs=15", workdir=tmp_path, data_dir=phantom_dir,
    )  # fmt: skip
    recorded = {row["group"]: row for row in select(rows, metric="recorded_if_absent", class_="No Finding", attribute="race")}
    assert recorded["Cedar"]["low"] < 0.4 < recorded["Cedar"]["high"]
    assert all(recorded[group]["value"] == 0 for group in ("Alder", "Birch", "Dogwood"))
    missed = {"metric": "false_positive_rate", "class_": "No Finding", "attribute": "race", "effect": "difference"}
    against = {row["group"]: row for row in select(rows, **missed, reference="rest")}
    assert against["Cedar"]["low"] > 0
    assert all(against[group]["p_holm"] > 0.05 for group in ("Alder", "Birch", "Dogwood"))
    # It is no matter of who has what, in which view, at which age.
    (like,) = select(rows, **missed, group="Cedar", reference="like")
    assert like["low"] > 0
    page = (tmp_path / "report.html").read_text()
    assert "Underdiagnosis, images with a finding that are called No Finding, is highest, against all others, in group (invented): Cedar" in page


def test_where_nothing_is_planted_no_gap_survives(phantom_dir, tmp_path):
    rows = audited("configs/disease.py:phantom.null,tiny", workdir=tmp_path, data_dir=phantom_dir)
    tested = [row for row in rows if row["p_holm"] is not None]
    assert len(tested) > 50 and min(row["p_holm"] for row in tested) > 0.05
    assert "Of these none survive Holm's correction" in (tmp_path / "report.html").read_text()
