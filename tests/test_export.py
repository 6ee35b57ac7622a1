"""The export as a user starts it; that what it writes gives the same numbers is for tests/models to hold."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from flax import nnx

from cxr_jax import export, tables
from cxr_jax.models import densenet, pretrained
from cxr_jax.tables import Target
from cxr_jax.training.checkpoints import Checkpoints, ModelDescription
from tests.phantoms import ROOT, as_user

TARGETS = {"race": Target("multiclass", ("White", "Black", "Asian")), "disease": Target("multilabel", ("Edema", "Pneumonia"))}
MODEL = {"growth": 4, "blocks": (2, 1), "stem": 8, "bottleneck": 2, "dtype": "float32", "stem_constant": False}


def make_run(folder, seed=0, model=MODEL):
    """A run's checkpoints as training leaves them, of a network that has not learnt; returns the network."""
    network = densenet.from_config(ml_collections.ConfigDict(model), {name: len(t.classes) for name, t in TARGETS.items()}, seed)
    rng = np.random.default_rng(seed)
    for block in network.blocks:
        block.statistics.mean.set_value(jnp.asarray(rng.normal(size=block.statistics.mean.shape), jnp.float32))
    _, params, stats = nnx.split(network, nnx.Param, nnx.BatchStat)
    with Checkpoints(folder / "checkpoints", ModelDescription(model, TARGETS, 32), keep=1) as kept:
        for which, step in (("best", 2), ("last", 3)):
            marked = jax.tree.map(lambda x: x + (step - 2), stats)  # so that the two can be told apart
            kept.save(which, step, {"params": params, "stats": marked, "step": jnp.asarray(step, jnp.int32)})
    return network


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder, network): in the folder a run, `runs/one`."""
    folder = tmp_path_factory.mktemp("exported")
    return folder, make_run(folder / "runs" / "one")


@pytest.fixture
def folder(made, monkeypatch):
    monkeypatch.chdir(made[0])
    return made[0]


@nnx.jit
def logits(network, images):
    out = network(images, train=False)
    return jnp.concatenate([out.logits[name] for name in TARGETS if name in out.logits] or list(out.logits.values()), axis=1)


def images():
    return np.random.default_rng(5).uniform(-1, 1, size=(2, 32, 32, 1)).astype(np.float32)


def test_it_writes_a_file_and_says_what_it_is(made):
    folder, network = made
    command = [sys.executable, "-m", "cxr_jax.export", "runs/one", "out/one.safetensors"]
    done = subprocess.run(command, cwd=folder, env=as_user(), capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("out/one.safetensors: best checkpoint, step 2, of ")
    assert "  race: 0 White, 1 Black, 2 Asian; its scores are the softmax over these outputs" in lines
    assert "  disease: 3 Edema, 4 Pneumonia; its scores are the sigmoid of each of these outputs" in lines
    assert "x / 127.5 - 1, in one channel: [n, 1, 32, 32]" in done.stdout
    assert "  network.load_state_dict(safetensors.torch.load_file('out/one.safetensors'))" in lines
    assert "bfloat16" not in done.stdout
    read = pretrained.read(folder / "out" / "one.safetensors", classifier=True)
    assert (read.inputs, read.image_size, read.model) == ("gray", 32, {**MODEL, "stem_constant": False})
    np.testing.assert_allclose(logits(read.network, images()), logits(network, images()), rtol=0, atol=1e-5)


def test_the_last_checkpoint_fed_as_torchvisions_weights_are(folder, capsys):
    assert export.main(["export", "runs/one", "last.safetensors", "--checkpoint=last", "--inputs=imagenet"]) == 0
    out, error = capsys.readouterr()
    assert out.startswith("last.safetensors: last checkpoint, step 3, ") and error == ""
    assert "less 0.485, 0.456, 0.406 and over 0.229, 0.224, 0.225, as torchvision's own weights are: [n, 3, 32, 32]" in out
    assert "conv0" not in out
    read = pretrained.read("last.safetensors", classifier=True)
    assert (read.inputs, read.image_size) == ("imagenet", 32)
    network, described, _ = export.restored(folder / "runs" / "one", "last")
    assert described.targets == TARGETS
    np.testing.assert_allclose(logits(read.network, images()), logits(network, images()), rtol=0, atol=1e-5)


def test_it_tells_of_rounding_that_torch_does_not_do(tmp_path, capsys):
    make_run(tmp_path, model={**MODEL, "blocks": (1,), "dtype": "bfloat16"})
    assert export.main(["export", str(tmp_path), str(tmp_path / "w.safetensors")]) == 0
    assert "computed in bfloat16; torch's, in float32, differ by that rounding" in capsys.readouterr().out


def test_it_names_densenet121_where_it_is_one():
    model = {"growth": 32, "blocks": [6, 12, 24, 16], "stem": 64, "bottleneck": 4, "dtype": "float32"}
    lines = export.in_torch(pathlib.Path("w.pt"), ModelDescription(model, TARGETS, 256), "gray")
    assert "network = torchvision.models.densenet121(num_classes=5)" in lines
    assert "network.features.conv0 = torch.nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)" in lines


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["runs/two", "w.pt"], "error: runs/two: no such folder"),
        (["runs", "w.pt"], "error: runs/checkpoints: holds no checkpoint of ours"),
        (["runs/one", "w.onnx"], "error: w.onnx: not a file of weights by its name; write one that ends in .safetensors"),
        (["runs/one", "runs"], "error: runs: is a folder; name a file in it"),
        (["runs/one", "w.pt"], "error: w.pt: torch writes such files: pip install torch"),
        (["runs/one", "runs/one/checkpoints/model.json/w.safetensors"], "error: runs/one/checkpoints/model.json: "),
        (["runs/one"], "error: the following arguments are required: FILE"),
        (["runs/one", "w.pt", "--inputs=xrv"], "error: argument --inputs: invalid choice: 'xrv'"),
        (["runs/one", "w.pt", "--checkpoint=worst"], "error: argument --checkpoint: invalid choice: 'worst'"),
        (["runs/one", "w.pt", "--input=gray"], "error: unrecognized arguments: --input=gray"),
    ],
)
def test_a_mistake_is_one_line_and_status_one(folder, monkeypatch, capsys, arguments, told):
    monkeypatch.setitem(sys.modules, "torch", None)
    before = sorted(folder.rglob("*"))
    assert export.main(["export", *arguments]) == 1
    out, error = capsys.readouterr()
    assert error.startswith(told) and error.count("\n") == 1 and out == ""
    assert sorted(folder.rglob("*")) == before


def test_a_state_that_is_missing_or_torn_is_told_in_one_line(tmp_path, made):
    shutil.copytree(made[0] / "runs" / "one", tmp_path / "torn")
    shutil.rmtree(tmp_path / "torn" / "checkpoints" / "last")
    for path in (tmp_path / "torn" / "checkpoints" / "best" / "2").rglob("*"):
        if path.is_file() and "_METADATA" not in path.name:
            path.write_bytes(b"")
    for which, told in (("best", "cannot be read, or is of another model"), ("last", "holds no 'last' checkpoint")):
        command = [sys.executable, "-m", "cxr_jax.export", "torn", "w.safetensors", f"--checkpoint={which}"]
        done = subprocess.run(command, cwd=tmp_path, env=as_user(), capture_output=True, text=True)
        assert done.returncode == 1 and done.stdout == ""
        assert done.stderr.startswith("error: ") and "torn/checkpoints" in done.stderr and told in done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
    assert os.listdir(tmp_path) == ["torn"]


def test_it_imports_neither_tensorflow_nor_torch():
    program = "import sys, cxr_jax.export; sys.exit('tensorflow' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


@pytest.mark.peers
@pytest.mark.parametrize("inputs", pretrained.WRITTEN_INPUTS)
def test_what_it_says_of_torch_is_so(made, folder, capsys, torchvision, inputs):
    """The printed lines, run as they stand, and the pictures fed as it says."""
    import torch

    assert export.main(["export", "runs/one", "w.pth", f"--inputs={inputs}"]) == 0
    printed = capsys.readouterr().out.partition("in torch:\n")[2]
    names = {}
    exec(re.sub("^  ", "", printed, flags=re.MULTILINE), names)
    x = 127.5 * (np.moveaxis(images(), -1, 1).astype(np.float64) + 1)  # from 0 to 255
    if inputs == "gray":
        fed = x / 127.5 - 1
    else:
        fed = (x / 255 - np.array([0.485, 0.456, 0.406]).reshape(3, 1, 1)) / np.array([0.229, 0.224, 0.225]).reshape(3, 1, 1)
    with torch.no_grad():
        got = names["network"](torch.tensor(fed, dtype=torch.float32)).numpy()
    wanted = np.asarray(logits(made[1], images()))
    assert np.abs(got - wanted).max() <= 1e-4 * np.abs(wanted).max()


def test_a_network_that_was_shown_less_is_not_exported(tmp_path, capsys):
    """Weights alone would be shown all of an image by whoever loads them."""
    make_run(tmp_path)
    stored = tables.read_json(tmp_path / "checkpoints" / "model.json")
    tables.write_json(tmp_path / "checkpoints" / "model.json", stored | {"shown": ["low_pass", 6.0]})
    assert export.main(["export", str(tmp_path), str(tmp_path / "w.safetensors")]) == 1
    assert "low_pass 6.0 of images" in capsys.readouterr().err and not (tmp_path / "w.safetensors").exists()
