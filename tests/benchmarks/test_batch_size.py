"""That each run of a sweep is measured with its own batch, beside the first by the image. Never how fast any is."""

import re

import numpy as np
import pytest

from cxr_jax import tables
from cxr_jax.benchmarks import batch_size, densenets

SWEEP = """
from configs import race
from cxr_jax import experiment

def get_base():
    return experiment.apply_diff(race.get_config("tiny"), {"model.blocks": (1, 1), "model.growth": 4, "model.stem": 8, "train.batch_size": 4})

def get_diffs():
    return {"small": {}, "large": {"train.batch_size": 10}, "half": {"model.dtype": "bfloat16"}}
"""


def write(folder):
    path = folder / "sweeps" / "sizes.py"
    path.parent.mkdir()
    path.write_text(SWEEP)
    return path


@pytest.mark.slow
def test_it_prints_and_writes_each_run_beside_the_first(tmp_path, capsys, monkeypatch):
    calls = []
    take_turns = densenets.take_turns

    def taken(turns, rounds, steps):
        calls.append(list(turns))
        seconds, failed = take_turns(turns, rounds, steps)
        assert all(times.shape == (2, 1) for times in seconds.values()) and not failed
        # As if each step took as many seconds as here: images of a turn over seconds are what is printed.
        return {name: np.array([[steps_of], [2 * steps_of]]) for name, steps_of in (("small", 12.0), ("large", 5.0), ("half", 3.0))}, failed

    monkeypatch.setattr(densenets, "take_turns", taken)
    file = tmp_path / "figures.json"
    batch_size.main([f"--sweep={write(tmp_path)}", "--pixels=32", "--rounds=2", f"--json={file}"])
    assert calls == [["small", "large", "half"]]
    out = capsys.readouterr().out
    lines = {name: re.search(rf"^  {name} .*$", out, re.M)[0] for name in calls[0]}
    # 3 steps of 4 images, one of 10, and 3 of 4.
    assert re.search(r" 4 .* 32×32, float32 +0.75 \(0.5 to 1\) +-$", lines["small"])
    assert re.search(r" 10 .* 32×32, float32 +1.5 \(1 to 2\) +2.000 \(2.000 to 2.000\)$", lines["large"])
    assert re.search(r" 4 .* 32×32, bfloat16 +3 \(2 to 4\) +4.000 \(4.000 to 4.000\)$", lines["half"])
    written = tables.read_json(file)
    assert written["runs"]["large"]["batch"] == 10 and written["runs"]["small"]["of_first"] is None


def test_a_turn_takes_as_many_steps_as_make_the_largest_batch(tmp_path, monkeypatch):
    steps = []
    monkeypatch.setattr(batch_size.train_step, "ours", lambda setting: (densenets.Contestant(lambda: steps.append(setting.batch), np.zeros(()), None), None))
    batch_size.measure(batch_size.parse([f"--sweep={write(tmp_path)}", "--rounds=1"]))
    assert steps == [4] * (1 + 3) + [10] * (1 + 1) + [4] * (1 + 3)


def test_a_sweep_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(SystemExit, match="^error: .*no such sweep$"):
        batch_size.main([f"--sweep={tmp_path}/none.py"])


def test_densenet_121_in_the_place_of_the_runs_own(tmp_path):
    settings = batch_size.settings(batch_size.parse([f"--sweep={write(tmp_path)}", "--densenet121"]))
    models = [setting.config.model for setting in settings.values()]
    assert all((m.growth, m.blocks, m.stem) == (32, (6, 12, 24, 16), 64) for m in models)
    assert [setting.batch for setting in settings.values()] == [4, 10, 4] and {s.pixels for s in settings.values()} == {64}
