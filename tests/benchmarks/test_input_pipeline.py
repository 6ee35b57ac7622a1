"""That every way in is measured, beside steps that need none, and says so where there is no TensorFlow. Never how fast any is."""

import re
import sys

import jax
import numpy as np
import pytest

from cxr_jax import mesh as meshes
from cxr_jax import tables
from cxr_jax.benchmarks import input_pipeline
from cxr_jax.data import resident

TINY = ["--tiny", "--batch=16", "--pixels=32", "--patients=40", "--rounds=2"]
SPREAD = r"\S+ \(\S+ to \S+\)"
RATIO = r"[\d.]+ \([\d.]+ to [\d.]+\)(, not told apart)?"
WAYS = [input_pipeline.PNG, input_pipeline.RAW, input_pipeline.HOST, input_pipeline.DEVICE]


@pytest.mark.slow
def test_it_prints_and_writes_passes_and_epochs(tmp_path, capsys):
    file = tmp_path / "figures.json"
    input_pipeline.main([*TINY, f"--data_dir={tmp_path}", f"--json={file}"])
    out = capsys.readouterr().out
    assert re.search(r"jax [\d.]+, tensorflow [\d.]+; cpu$", out, re.M)
    assert re.search(r"^a phantom's training split of \d+ images of 256×256, batches of 16, 2 rounds$", out, re.M)
    for way in WAYS:
        assert re.search(rf"^  {way} +{SPREAD} +{'-' if way == 'PNG records' else RATIO}$", out, re.M), way
    assert re.search(rf"^  bare steps +{SPREAD} +-$", out, re.M)

    written = tables.read_json(file)
    assert list(written["passes"]) == WAYS and written["passes_failed"] == written["epochs_failed"] == {} and not written["synthetic"]
    assert list(written["epochs"]) == ["bare steps", "host memory", "device memory"]
    n, steps = written["images"], written["steps"]
    assert 40 <= n <= 90 and steps == -(-n // 16)
    png, raw = (np.array(written["passes"][way]["seconds"]) for way in WAYS[:2])
    assert png.shape == (2,) and written["passes"]["raw records"]["images_per_second"]["max"] == pytest.approx(n / raw.min())
    assert written["passes"]["raw records"]["of_PNG records"]["median"] == pytest.approx(np.median(png / raw))
    bare, host = (np.array(written["epochs"][way]["seconds"]) for way in ("bare steps", "host memory"))
    assert written["epochs"]["host memory"]["of_bare steps"]["median"] == pytest.approx(np.median(bare / host))
    assert written["epochs"]["bare steps"]["images_per_second"]["min"] == pytest.approx(steps * 16 / bare.max())


def test_without_tensorflow_the_device_s_rows_are_left(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    file = tmp_path / "figures.json"
    input_pipeline.main([*TINY, f"--json={file}"])
    out = capsys.readouterr().out
    assert re.search(r"^random 60 images of 256×256, batches of 16, 2 rounds$", out, re.M)
    for way in WAYS[:3]:
        assert re.search(rf"^  {way}: TensorFlow, which reads records, is not installed \(.+\)$", out, re.M)
    written = tables.read_json(file)
    assert list(written["passes"]) == ["device memory"] and list(written["epochs"]) == ["bare steps", "device memory"]
    assert written["synthetic"] and list(written["passes_failed"]) == WAYS[:3] and list(written["epochs_failed"]) == ["host memory"]
    assert written["passes"]["device memory"]["of_PNG records"] is None and written["steps"] == 4


def test_an_epoch_takes_every_image_once_and_as_many_steps_as_bare_ones():
    mesh = meshes.data_mesh(jax.devices()[:1])
    held = resident.Resident.fill(input_pipeline.synthetic(20), "shard", mesh, 1.0)
    training = input_pipeline.Training(input_pipeline.parse([*TINY, "--batch=8"]), mesh, 20)
    turns = input_pipeline.epochs(training, {"device memory": held}, steps=3)
    seen = []
    run = training.run
    training.run = lambda step, batches, images=(): run(step, seen_of(batches), images)

    def seen_of(batches):
        for batch in batches:
            seen.append(np.asarray(batch["index"]))
            yield batch

    for part, steps in (("timed", 3), ("first", 1)):
        for turn in turns.values():
            seen.clear()
            before = int(training.state.step)
            getattr(turn, part)()
            assert len(seen) == int(training.state.step) - before == steps
        visited = np.concatenate(seen)
        if part == "timed":
            assert sorted(visited) == [-1, -1, -1, -1, *range(20)]


def test_stand_in_images_are_the_same_whoever_asks():
    source = input_pipeline.synthetic(100)
    rows = np.array([3, 64, 99])
    (found,) = source.read([rows])
    assert found.shape == (3, 256, 256, 1) and found.dtype == np.uint8 and source.image_shape == (256, 256, 1)
    np.testing.assert_array_equal(found, next(source.read([rows])))
