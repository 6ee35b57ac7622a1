"""What the README promises of probes, held to whole runs of the shipped config and one disease model for all. Slow."""

import pytest

from cxr_jax import tables
from tests.phantoms import command

pytestmark = pytest.mark.slow

PROBES = ("logistic_regression", "knn", "kmeans", "network")
FROZEN = "--config.stages=('prepare','extract','probe','audit','report')"
# What one reading comes to does not depend on which others are made; those that a test does not look at are left out.
REGRESSION_ALONE = (
    "--config.probe.probes=('logistic_regression',)", "--config.probe.controls=('as_many',)", "--config.probe.refits=0",
    "--config.extract.untrained=False", "--config.extract.depths=False",
)  # fmt: skip


def found(workdir):
    return tables.read_json(workdir / "probe_audit.json")


def macro(rows, probe="logistic_regression", input="features", shuffled=False, attribute="all", group="all"):
    wanted = {"metric": "auc", "class": "macro", "probe": probe, "input": input, "shuffled": shuffled, "attribute": attribute, "group": group}
    (row,) = (row for row in rows if all(row[k] == v for k, v in wanted.items()))
    return row


@pytest.fixture(scope="module")
def disease(phantom_dir, tmp_path_factory):
    """The shipped run: a disease model on the planted phantom, probed."""
    workdir = tmp_path_factory.mktemp("disease")
    done = command("--config=configs/probe.py", f"--config.dataset.data_dir={phantom_dir}", workdir=workdir)
    assert done.returncode == 0, done.stderr
    return workdir


def of_variant(variant, disease, phantom_dir, tmp_path, *further):
    """Another phantom's images, through the model that was trained on the planted one."""
    arguments = (f"--config=configs/probe.py:{variant}", FROZEN, f"--config.extract.weights={disease}", f"--config.dataset.data_dir={phantom_dir}", *further)
    done = command(*arguments, workdir=tmp_path)
    assert done.returncode == 0, done.stderr
    return found(tmp_path)


def test_what_is_planted_is_found(disease):
    told = found(disease)
    own = macro(told["rows"])
    assert own["low"] > 0.5
    assert macro(told["rows"], shuffled=True)["low"] <= 0.5 <= macro(told["rows"], shuffled=True)["high"]
    (beside,) = (c for c in told["comparisons"] if c["second"].endswith("features, shuffled") and "logistic" in c["first"])
    assert beside["low"] > 0 and beside["p_adjusted"] < 0.05
    # A view has half of the images, 300 in test: one network's luck is in each of the two, less of it in both together.
    within, at_random = (
        [macro(told["rows"], attribute=attribute, group=group) for group in ("AP", "PA")] for attribute in ("view", tables.AS_MANY + "view")
    )
    mean_within, mean_at_random = (sum(row["value"] for row in rows) / 2 for rows in (within, at_random))
    assert max(row["low"] for row in within) > 0.5 and mean_within > 0.5 and abs(mean_within - mean_at_random) < 0.06
    # No Finding has a third of the images: too few to be sure of, but nothing else than among all.
    within = macro(told["rows"], attribute="No Finding", group="present")
    assert within["low"] <= own["value"] <= within["high"] and within["value"] > 0.5
    # Early in the network it is nearly all there.
    assert macro(told["rows"], input="block1")["low"] > 0.75


def test_where_nothing_is_planted_nothing_is_found(disease, phantom_dir, tmp_path):
    told = of_variant("phantom.null", disease, phantom_dir, tmp_path)
    for probe_name in PROBES:
        own = macro(told["rows"], probe_name)
        assert own["low"] <= 0.5 <= own["high"], probe_name
    assert all(c["p_adjusted"] is None or c["p_adjusted"] > 0.05 for c in told["comparisons"])  # agrees with its controls
    assert sum(one["carry"] for one in told["space"]["each"]["race"].values()) == 0


def test_what_disease_confounds_disappears_without_disease(disease, phantom_dir, tmp_path):
    rows = of_variant("phantom.confounded", disease, phantom_dir, tmp_path, *REGRESSION_ALONE)["rows"]
    assert macro(rows)["low"] > 0.5
    within = macro(rows, attribute="No Finding", group="present")
    assert within["low"] <= 0.5 <= within["high"]


def test_what_acquisition_carries_disappears_within_a_view(disease, phantom_dir, tmp_path):
    rows = of_variant("phantom.acquisition", disease, phantom_dir, tmp_path, *REGRESSION_ALONE)["rows"]
    assert macro(rows)["low"] > 0.5
    for group in ("AP", "PA"):
        within = macro(rows, attribute="view", group=group)
        assert within["low"] <= 0.5 <= within["high"], group
        # Not for want of images.
        assert macro(rows, attribute=tables.AS_MANY + "view", group=group)["low"] > 0.5, group


def test_sex_on_real_x_rays_from_a_phantom_trained_and_an_untrained_network(disease, nih_sample, phantom_dir, tmp_path):
    arguments = (
        "--config=configs/probe.py:nih", FROZEN, f"--config.extract.weights={disease}", "--config.probe.targets=('sex',)",
        f"--config.dataset.raw_dir={nih_sample}", f"--config.dataset.data_dir={phantom_dir}",
        "--config.probe.probes=('logistic_regression',)", "--config.probe.controls=('untrained',)", "--config.probe.refits=0",
    )  # fmt: skip
    done = command(*arguments, workdir=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = found(tmp_path)["rows"]
    for name in ("features", "untrained"):
        row = macro(rows, input=name)
        assert row["n_images"] > 100 and 0.5 < row["low"] < row["value"] < row["high"]
