"""That the comparison with peers runs, says what it compares, and compares like with like. Never how fast anything is."""

import re

import numpy as np
import pytest
from PIL import Image

from cxr_jax.benchmarks import decode


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of three drawn JPEGs, large enough for ours to decode them reduced."""
    folder = tmp_path_factory.mktemp("jpegs")
    for i, data in enumerate(decode.drawn(3, 768, 640)):
        (folder / f"{i}.jpg").write_bytes(data)
    return folder


def test_a_drawn_picture_is_as_large_a_file_as_mimic_s(tmp_path):
    (data,) = decode.drawn(1, 3056, 2544)
    assert 1.3e6 < len(data) < 1.7e6
    (tmp_path / "one.jpg").write_bytes(data)
    with Image.open(tmp_path / "one.jpg") as picture:
        assert (picture.size, picture.mode) == ((2544, 3056), "L")


@pytest.mark.peers
def test_it_prints_every_way_s_rate_its_ratio_and_its_difference(pictures, capsys):
    decode.main([f"--images={pictures}", "--rounds=1"])
    printed = capsys.readouterr().out
    machine, what, *_ = printed.splitlines()
    assert re.search(r"\d+ cores, Python [\d.]+, PIL [\d.]+, skimage [\d.]+, numpy [\d.]+; one core used$", machine)
    assert re.fullmatch(rf"{pictures}: 3 pictures of 0\.\d\d MB on average, 1 rounds", what)
    assert re.search(r"^  ours +[\d.]+ images/s$", printed, re.M)
    for peer in ("Pillow", "scikit-image"):
        assert re.search(rf"^  {peer} +[\d.]+ images/s   ours is [\d.]+ times as fast$", printed, re.M)
    told = {way: float(value) for value, way in re.findall(r"^ +([\d.]+) from (.+)$", printed, re.M)}
    assert told.keys() == BOUNDS.keys()


# Gray levels of 255. The peers' filters are others than ours, the full decode's is the same.
BOUNDS = {"a full decode with our own filter": 0.5, "Pillow's full decode with Lanczos": 1.0, "scikit-image": 1.0}


@pytest.mark.peers
def test_all_ways_give_the_same_picture_but_for_their_filter(pictures):
    data = [path.read_bytes() for path in sorted(pictures.iterdir())]
    found = decode.differences(data)
    assert found.keys() == BOUNDS.keys()
    for way, bound in BOUNDS.items():
        assert 0 < found[way] < bound, way
    assert decode.rates(data[:1], 1).keys() == {"ours", "Pillow", "scikit-image"}
    # What the bounds are worth: another picture is further off than any of them.
    assert np.abs(decode.ours(data[0]).astype(float) - decode.ours(data[1])).mean() > max(BOUNDS.values())


@pytest.mark.peers
def test_a_folder_without_pictures_ends_it(tmp_path):
    with pytest.raises(SystemExit, match="no .jpg in it, nor below"):
        decode.main([f"--images={tmp_path}"])
