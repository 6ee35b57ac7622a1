"""A build by Apache Beam is the build without it, byte for byte: records, quarantine, integrity."""

import os
import pathlib
import subprocess
import sys

import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from configs import base
from cxr_jax.data import datasets
from cxr_jax.tables import UserError
from tests import releases
from tfds_builders import released
from tfds_builders.cxr_mimic import cxr_mimic_dataset_builder as mimic


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
    # TFDS notes in the one when and where it was built; the other is a run's own copy of the key table.
    return {p.name: p.read_bytes() for p in sorted(dataset.folder.iterdir()) if p.name not in ("dataset_info.json", "keys.parquet")}


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


def test_in_several_files_the_records_are_the_same_in_the_same_order(raw, tmp_path):
    """Where a release fills several files, TFDS cuts them elsewhere with Beam and without; what is in them is the same."""
    found = []
    for beam in (False, True):
        builder_config = released.builder_config(raw, max_unreadable_share=0.1, storage="raw", beam=beam)
        builder = mimic.Builder(config=builder_config, data_dir=tmp_path / str(beam))
        runner = "DirectRunner" if beam else None
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=3, beam_runner=runner))
        paths = [path for split in builder.info.splits.values() for path in split.filepaths]
        assert len(paths) > 3
        found.append([record.numpy() for path in paths for record in tf.data.TFRecordDataset(os.fspath(path))])
    assert found[0] == found[1] and len(found[0]) > 100


@pytest.mark.parametrize(
    ("runner", "options", "message"),
    [
        ("DirectRuner", (), "config.dataset.beam_runner: 'DirectRuner'"),
        ("DirectRunner", ("--direct_num_workers=many",), "config.dataset.beam_options: .*direct_num_workers"),
    ],
)
def test_a_runner_or_option_that_there_is_not(raw, tmp_path, runner, options, message):
    with pytest.raises(UserError, match=message) as caught:
        datasets.prepare(config(raw, tmp_path, *options, runner=runner))
    assert "\n" not in str(caught.value)


def test_too_many_unreadable_images_end_it_in_one_line(raw, tmp_path):
    with pytest.raises(UserError, match="or more cannot be read .* above the share of 0.01") as caught:
        datasets.prepare(config(raw, tmp_path, share=0.01))
    assert "\n" not in str(caught.value)
    assert not [p for p in (tmp_path / "cxr_mimic" / "squash").iterdir() if p.is_dir()]
