"""That both ways of our own storage are read and told apart by size and rate. Never how fast either is."""

import re

import pytest

from cxr_jax.benchmarks import storage


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> str:
    """Where the records of both tests lie."""
    return str(tmp_path_factory.mktemp("records"))


def test_it_prints_both_ways_sizes_rates_and_their_ratios(data_dir, capsys):
    storage.main([f"--data_dir={data_dir}", "--patients=40", "--rounds=1"])
    machine, what, *ways, ratios = capsys.readouterr().out.splitlines()[-5:]
    assert re.search(r"\d+ cores, Python [\d.]+, tensorflow [\d.]+, tensorflow_datasets [\d.]+, numpy [\d.]+$", machine)
    assert re.fullmatch(r"phantom: \d+ images, 1 rounds, records in the page cache", what)
    form = r"  (png|raw): +([\d.]+) KiB an image on disk, +([\d,]+) images/s read"
    sizes = {name: float(size) for name, size, _ in (re.fullmatch(form, line).groups() for line in ways)}
    assert sizes["png"] < sizes["raw"] and 64 < sizes["raw"] < 66  # 256×256 bytes, and what a record has besides
    disk, read = re.fullmatch(r"  raw takes ([\d.]+) times the disk of PNG, and is read ([\d.]+) times as fast", ratios).groups()
    assert float(disk) == pytest.approx(sizes["raw"] / sizes["png"], rel=0.02) and float(read) > 0


def test_both_ways_are_read_to_the_same_images(data_dir):
    asked = storage.parse(["--patients=40"])
    (png, cohort), (raw, other) = (storage.opened(way, asked, data_dir) for way in storage.STORAGES)
    assert png.folder != raw.folder and cohort.table.equals(other.table) and png.images == raw.images == len(cohort.table)
