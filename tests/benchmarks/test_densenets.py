"""That ours and torchvision's are set side by side, are one network, and that what is said of them follows from what was run.

Never how fast any is.
"""

import re
import sys

import numpy as np
import pytest

from cxr_jax import benchmarks, tables
from cxr_jax.benchmarks import densenets, inference, train_step

TINY = ["--tiny", "--batch=2", "--pixels=32", "--steps=2"]
SPREAD = r"\S+ \(\S+ to \S+\)"
RATIO = r"[\d.]+ \([\d.]+ to [\d.]+\)(, not told apart)?"
BOTH = pytest.mark.parametrize("name, module", [("train_step", train_step), ("inference", inference)])


def test_elements_of_densenet_121_at_256_pixels():
    of = densenets.elements(32, (6, 12, 24, 16), 64, 256)
    assert of.inputs == pytest.approx(11.88e6, abs=5e3) and of.bottlenecks == pytest.approx(5.64e6, abs=5e3)


def test_elements_by_hand():
    """growth 3, blocks (2, 1), stem 6, 18 pixels: maps of 5x5 (18, 9, 5), then of 2x2, with 6, 9 and, halved from 12, 6 channels."""
    assert densenets.elements(3, (2, 1), 6, 18, bottleneck=2) == (25 * (6 + 9) + 4 * 6, 25 * 2 * 6 + 4 * 6)


def test_bounds_are_passes_times_elements_times_bytes():
    asked = densenets.parse("train_step", ["--batch=2", "--pixels=256", "--dtype=bfloat16"])
    setting = densenets.setting_of(asked)
    a, z = 11_878_400, 5_636_096
    for training, passes in ((False, (1, 2)), (True, (4, 7))):
        of = densenets.bounds(setting, training, bytes_per_second=3e12, ours=1000.0)
        assert (of["a"], of["z"], of["bytes_per_element"]) == (a, z, 2)
        ideal = of["schemes"][-1]
        assert (ideal["passes_a"], ideal["passes_z"]) == passes
        assert ideal["bytes_per_image"] == 2 * (passes[0] * a + passes[1] * z)
        assert ideal["images_per_second"] == pytest.approx(3e12 / ideal["bytes_per_image"])
        assert ideal["share"] == pytest.approx(1000 / ideal["images_per_second"])
        moved = [scheme["bytes_per_image"] for scheme in of["schemes"]]
        assert moved == sorted(moved, reverse=True)


def test_a_ratio_is_of_rounds_and_tells_nothing_apart_within_its_range():
    ours = np.array([[1.0, 1.0, 9.0], [2.0, 2.0, 2.0], [4.0, 4.0, 4.0]])
    theirs = np.array([[2.0, 2.0, 2.0], [3.0, 3.0, 0.1], [4.4, 4.4, 4.4]])
    assert densenets.ratio(theirs, ours) == {"median": 1.5, "min": pytest.approx(1.1), "max": 2.0, "told_apart": True}
    assert not densenets.ratio(theirs * [[1.0], [1.0], [0.5]], ours)["told_apart"]
    assert not densenets.ratio(theirs[:1], ours[:1])["told_apart"]  # one round


def test_a_turn_is_untimed_once_then_timed_and_one_that_fails_is_out():
    done = []

    def fails():
        raise MemoryError("all gone\nand more")

    turns = {
        "fine": densenets.Turn(lambda: done.append("first"), lambda: done.append("timed"), lambda: done.append("last")),
        "bad": densenets.Turn(lambda: None, fails),
    }
    taken, failed = densenets.take_turns(turns, rounds=2, steps=3)
    assert done == ["first", *["timed"] * 3, "last"] * 2
    assert taken.keys() == {"fine"} and taken["fine"].shape == (2, 3) and failed == {"bad": "failed: MemoryError: all gone"}


@BOTH
def test_it_prints_and_writes_what_it_measured_and_says_that_torch_is_absent(name, module, capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(benchmarks, "load", lambda: 1.25)
    file = tmp_path / "figures.json"
    module.main([*TINY, "--rounds=2", f"--json={file}"])
    machine, busy, what, head, ours, eager, compile_, program, copy, bounds, *schemes = capsys.readouterr().out.splitlines()
    assert re.search(r"\d+ cores, Python [\d.]+, jax [\d.]+; cpu$", machine) and busy.startswith("load average 1.2 before it began")
    assert "2 images of 32×32, float32, 2 rounds of 2 steps, one device" in what
    assert re.fullmatch(rf"  ours +{SPREAD} +- +[\d.]+ (M|G)iB the program's own +-", ours)
    assert re.match(r"  torch eager: not installed \(.*torch.*\); launch/local.sh --peers brings", eager)
    assert compile_.startswith("  torch compile: not installed")
    assert re.fullmatch(r"ours, an image: \S+ MB accessed, \S+ GFLOP, as XLA counts", program)
    assert re.match(rf"x \+ 1 on 1 MiB, in its place: {SPREAD} GB/s read and written; ", copy)
    assert [line.split("  ")[1] for line in schemes] == [scheme.name for scheme in densenets.SCHEMES]

    written = tables.read_json(file)
    assert written["benchmark"] == name and written["failed"].keys() == {"torch eager", "torch compile"}
    figures = written["contestants"]["ours"]
    assert np.array(figures["seconds"]).shape == (2, 2) and figures["times_ours"] is None and figures["peak_bytes"] is None
    rates = 2 / np.array(figures["seconds"])
    assert figures["images_per_second"] == pytest.approx({"median": np.median(rates), "min": rates.min(), "max": rates.max()})
    assert all(value > 0 for value in written["program"].values())
    # The stem on 16x16, a layer on 8x8, the transition and a layer on 4x4; XLA leaves out the zeros around, and counts what is no product.
    products = 256 * 49 * 8 + 64 * (8 * 16 + 9 * 16 * 4) + 16 * 12 * 6 + 16 * (6 * 16 + 9 * 16 * 4)
    least, most = (2.4, 4) if name == "train_step" else (0.9, 1.2)
    assert least < written["program"]["flop_per_image"] / (2 * products) < most
    a, z = densenets.elements(4, (1, 1), 8, 32)
    assert (written["bounds"]["a"], written["bounds"]["z"]) == (a, z)
    for scheme, of in zip(densenets.SCHEMES, written["bounds"]["schemes"], strict=True):
        assert (of["passes_a"], of["passes_z"]) == scheme.passes(name == "train_step")
        expected = written["copy"]["bytes_per_second"]["median"] / of["bytes_per_image"]
        assert of["share"] == pytest.approx(figures["images_per_second"]["median"] / expected)


def test_who_is_left_out_is_not_tried(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    inference.main([*TINY, "--rounds=1", "--without=eager", "--without=compile", "--dtype=bfloat16"])
    out = capsys.readouterr().out
    assert "torch" not in out and ", bfloat16, 1 rounds" in out and "elements of 2 bytes" in out


def test_sizes_must_be_sizes(capsys):
    with pytest.raises(SystemExit):
        densenets.parse("inference", ["--batch=0"])
    assert "--batch: invalid count value: '0'" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------------------- peers


@pytest.mark.peers
@BOTH
def test_torch_is_measured_and_is_the_same_network(name, module, capsys, tmp_path, torchvision):
    file = tmp_path / "figures.json"
    module.main([*TINY, "--rounds=2", "--without=compile", f"--json={file}"])
    out = capsys.readouterr().out
    assert re.search(rf"^  torch eager +{SPREAD} +{RATIO} +- +apart by at most \S+$", out, re.M) and "torch compile" not in out
    written = tables.read_json(file)
    eager, own = written["contestants"]["torch eager"], written["contestants"]["ours"]
    assert eager["apart"] < 1e-5 and written["failed"] == {} and "torchvision" in written["machine"]
    by_round = np.median(eager["seconds"], axis=1) / np.median(own["seconds"], axis=1)
    assert eager["times_ours"]["median"] == pytest.approx(np.median(by_round))


@pytest.fixture(scope="module")
def setting():
    return densenets.setting_of(densenets.parse("train_step", TINY))


@pytest.mark.peers
@BOTH
def test_outcomes_of_the_same_weights_and_images_are_equal(name, module, setting, torchvision):
    """Loss, also of the third step, after two of Adam's; or probabilities."""
    torch = densenets.Torch(setting)
    own, _ = module.ours(setting)  # which takes two steps
    run = module.theirs(torch, lambda function: function)
    theirs = run().detach().numpy()
    np.testing.assert_allclose(theirs, own.outcome, atol=1e-5)
    if name == "train_step":
        run()
        third = run().detach().numpy()
        assert abs(third - theirs) > 1e-4
        np.testing.assert_allclose(third, np.asarray(own.run()), atol=1e-5)
    else:
        assert np.ptp(own.outcome, axis=0).min() > 1e-6 and own.outcome.shape == (2, 4)  # images differ


@pytest.mark.peers
def test_torchs_network_has_our_shape_its_own_size_and_runs_in_nhwc(setting, torchvision):
    import torch

    side = densenets.Torch(setting)
    network = side.network()
    assert sum(p.numel() for p in network.parameters()) == densenets.densenet.parameter_count(setting.network())
    with torch.no_grad():
        for x in (network.features.conv0(side.scaled(side.images)), network.features(side.scaled(side.images))):
            assert x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    full = torchvision.models.densenet121(num_classes=4)
    full.features.conv0 = torch.nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
    asked = densenets.parse("train_step", ["--batch=1", "--pixels=32"])
    ours = densenets.Torch(densenets.setting_of(asked)).network()
    assert [(k, v.shape) for k, v in ours.state_dict().items()] == [(k, v.shape) for k, v in full.state_dict().items()]


@pytest.mark.peers
def test_who_fails_to_compile_is_told(setting, torchvision):
    def make(side, treated):
        def run():
            raise RuntimeError("no compiler found\nlong story")

        return run

    running, failed = densenets.torch_contestants(setting, make, ["eager", "compile"])
    assert running == {} and failed["torch compile"] == "failed: RuntimeError: no compiler found"


@pytest.mark.peers
def test_a_device_that_torch_cannot_use_is_told(setting, torchvision, monkeypatch):
    monkeypatch.setattr(densenets.Setting, "platform", "tpu")
    with pytest.raises(RuntimeError, match=r"torch \S+ cannot use this tpu"):
        densenets.Torch(setting)
