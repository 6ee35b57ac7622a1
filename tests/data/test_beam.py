"""A build by Apache Beam is the build without it, byte for byte: records, quarantine, integrity."""

import pathlib
import subprocess
import sys

import pytest

from configs import base
from cxr_jax.data import datasets
from cxr_jax.tables import UserError
from tests import releases


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> pathlib.Path:
    """A release of some 160 images, four of which cannot be read."""
    folder = tmp_path_factory.mktemp("release")
    releases.mimic(folder, faults=True, picture=(40, 32))
    return folder


def config(raw, data_dir, *options, runner="DirectRunner", share=0.1):
    dataset = base.get_config().dataset
    dataset.update(
        name="mimic",
        race_rule="all",
        raw_dir=str(raw),
        data_dir=str(data_dir),
        max_unreadable_share=share,
        beam_runner=runner,
        beam_options=tuple(options),
    )
    return dataset


def files(dataset) -> dict[str, bytes]:
    # TFDS notes in dataset_info.json when and where it was built.
    return {p.name: p.read_bytes() for p in sorted(dataset.folder.iterdir()) if p.name != "dataset_info.json"}


def assert_same(one, two):
    assert files(one).keys() == files(two).keys() and len(one.quarantine) == 4
    for name, content in files(one).items():
        assert content == files(two)[name], name
    assert one.integrity == two.integrity and one.integrity["quarantined"]["truncated"] == 1
    assert one.keys.equals(two.keys)


def test_in_this_process(raw, tmp_path):
    without = datasets.prepare(config(raw, tmp_path / "without", runner=""))
    with_beam = datasets.prepare(config(raw, tmp_path / "with"))
    assert_same(without, with_beam)


@pytest.mark.slow
def test_in_two_processes(raw, tmp_path):
    """In a process of its own, as a run is: Beam's workers import what started them."""
    without = datasets.prepare(config(raw, tmp_path / "without", runner=""))
    options = "('--direct_running_mode=multi_processing','--direct_num_workers=2')"
    arguments = [
        "--config=configs/disease.py:mimic,tiny", "--config.stages=('prepare',)", f"--workdir={tmp_path / 'run'}",
        f"--config.dataset.raw_dir={raw}", f"--config.dataset.data_dir={tmp_path / 'with'}",
        "--config.dataset.max_unreadable_share=0.1", "--config.dataset.race_rule=all",
        "--config.dataset.beam_runner=DirectRunner", f"--config.dataset.beam_options={options}",
    ]  # fmt: skip
    root = pathlib.Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-m", "cxr_jax.main", *arguments], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "sdk_worker" not in done.stderr and "Traceback" not in done.stderr
    assert_same(without, datasets.open(config(raw, tmp_path / "with", runner="")))


def test_too_many_unreadable_images_end_it_in_one_line(raw, tmp_path):
    with pytest.raises(UserError, match="or more cannot be read .* above the share of 0.01") as caught:
        datasets.prepare(config(raw, tmp_path, share=0.01))
    assert "\n" not in str(caught.value)
    assert not [p for p in (tmp_path / "cxr_mimic" / "squash").iterdir() if p.is_dir()]
