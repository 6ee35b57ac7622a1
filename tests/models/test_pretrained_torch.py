"""Weights from elsewhere, against torch running them in TorchXRayVision's own class, whose names are torchvision's."""

import argparse
import functools
import importlib
import importlib.util
import pathlib
import re
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from cxr_jax.models import densenet, pretrained
from cxr_jax.tables import UserError

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.peers

PIXELS = 64


@pytest.fixture(scope="module")
def their_densenet():
    """`torchxrayvision.models.DenseNet`, got past the package's imports of what the class makes no use of."""
    found = importlib.util.find_spec("torchxrayvision")  # without importing it
    if found is None:
        pytest.skip("torchxrayvision is not installed: `bash launch/local.sh --peers …` brings it")
    package = types.ModuleType("torchxrayvision")
    package.__path__ = found.submodule_search_locations
    datasets, utils = types.ModuleType("torchxrayvision.datasets"), types.ModuleType("torchxrayvision.utils")
    datasets.default_pathologies = []
    package.datasets, package.utils = datasets, utils
    with pytest.MonkeyPatch.context() as patch:
        for module in (package, datasets, utils, types.ModuleType("torchvision"), types.ModuleType("requests")):
            patch.setitem(sys.modules, module.__name__, module)
        models = importlib.import_module("torchxrayvision.models")
        patch.setitem(sys.modules, models.__name__, models)  # so that it, too, is gone afterwards
        yield models.DenseNet


def uneven(network, channels):
    """Scales, offsets and running statistics off what they start at, each reader's by itself, and none far off."""
    generator = torch.Generator().manual_seed(0)
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.weight.uniform_(0.5, 1.5, generator=generator)
            norm.bias.uniform_(-0.5, 0.5, generator=generator)
            norm.momentum = 1.0
        network.train()(torch.randn(4, channels, PIXELS, PIXELS, generator=generator))
        for norm in norms:
            norm.running_mean += 0.3 * norm.running_var.sqrt() * torch.randn(len(norm.bias), generator=generator)
            norm.running_var *= torch.empty(len(norm.bias)).uniform_(0.3, 3, generator=generator)
    return network.eval()


def theirs(network, x):
    """(per-block pooled maps, features, logits), float64."""
    network = network.double()
    pooled = []
    blocks = [module for name, module in network.features.named_children() if re.match("pool0|denseblock", name)]
    hooks = [module.register_forward_hook(lambda _, __, out: pooled.append(out.mean((2, 3)))) for module in blocks]
    with torch.no_grad():
        features = network.features2(torch.from_numpy(x))
        logits = network.classifier(features)
    for hook in hooks:
        hook.remove()
    network.float()
    return [np.asarray(values) for values in (*pooled, features, logits)]


def save_torchvision(network, folder):
    torch.save(network.state_dict(), folder / "weights.pth")
    return folder / "weights.pth"


def save_xrv(network, folder):
    torch.save(network.state_dict() | {"op_threshs": torch.full((18,), torch.nan)}, folder / "weights.pt")
    return folder / "weights.pt"


def save_chexnet(network, folder):
    """As torch wrote files in 2017: a checkpoint in the old serialisation, in parallel training's names."""
    state = {re.sub(r"(denselayer\d+\.\w+)([12]\.)", r"\1.\2", k): v for k, v in network.state_dict().items()}
    state = {"module.densenet121." + k.replace("classifier.", "classifier.0."): v for k, v in state.items()}
    state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    checkpoint = {"epoch": 1, "arch": "densenet121", "state_dict": state, "best_loss": 0.5}
    torch.save(checkpoint, folder / "model.pth.tar", _use_new_zipfile_serialization=False)
    return folder / "model.pth.tar"


def run(network, images):
    graph, state = nnx.split(network)
    return _forward(graph, state, images)


# Compiled without optimisation, which takes a third of the time; what is computed is the same.
@functools.partial(jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0})
def _forward(graph, state, images):
    return nnx.merge(graph, state)(images, train=False, pooled_blocks=True)


@pytest.fixture(scope="module")
def densenet121(their_densenet):
    """By channels: a DenseNet-121 with 18 outputs, float32."""
    made = {}

    def make(channels):
        if channels not in made:
            torch.manual_seed(0)
            network = their_densenet(weights=None, in_channels=channels, num_classes=18, op_threshs=None)
            made[channels] = uneven(network, channels)
        return made[channels]

    return make


@pytest.mark.parametrize(
    "channels, save, inputs", [(3, save_torchvision, "imagenet"), (3, save_chexnet, "imagenet"), (1, save_xrv, "xrv")]
)
def test_densenet121(tmp_path, densenet121, channels, save, inputs):
    network = densenet121(channels)
    if inputs == "xrv":  # the stem's statistics as pictures of that scale leave them
        network.features.norm0.running_mean *= 1024
        network.features.norm0.running_var *= 1024**2
    read = pretrained.read(save(network, tmp_path), classifier=True)
    size = dict(growth=32, blocks=(6, 12, 24, 16), stem=64, bottleneck=4, dtype="float32")
    assert read.model == {**size, "stem_constant": inputs == "imagenet"}
    assert (read.inputs, read.heads) == (inputs, {"imported": 18})
    gray = np.random.default_rng(0).uniform(size=(3, 1, PIXELS, PIXELS))
    if inputs == "imagenet":
        x = gray - np.array([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1)
        x /= np.array([0.229, 0.224, 0.225]).reshape(1, 3, 1, 1)
    else:
        x = 1024 * (2 * gray - 1)
    out = run(read.network, jnp.asarray(2 * gray - 1, jnp.float32).reshape(3, PIXELS, PIXELS, 1))
    expected = theirs(network, x)
    assert len(expected) == 7
    got = (*out.blocks, out.features, out.logits["imported"])
    for i, (ours, wanted) in enumerate(zip(got, expected, strict=True)):
        assert (np.abs(wanted).max(0) > 0).mean() > 0.7  # most units are alive
        error = np.abs(ours - wanted).max() / np.abs(wanted).max()
        assert error <= 1e-5, f"output {i}: {error:.2g} of the largest"


def maps_of(network, x):
    """What each dense block hands on, whole [b, h, w, c], and before them what the stem does; in inference."""
    x = network.stem(x, None)
    found = [x]
    readers = [*(transition.reader for transition in network.transitions), network.reader]
    for i, (block, reader) in enumerate(zip(network.blocks, readers)):
        layers = [layer.parameters() for layer in block.layers]
        inner = tuple(layer.inner_statistics.moments() for layer in block.layers)
        found.append(densenet._infer_block(layers, x, densenet._BlockMoments(block.statistics.moments(), inner)))
        x, _ = block(x, reader, None)
        x = network.transitions[i](x) if i < len(network.transitions) else x
    return found


@pytest.mark.parametrize(
    "channels, save, inputs", [(3, save_torchvision, "imagenet"), (3, save_chexnet, "imagenet"), (1, save_xrv, "xrv")]
)
def test_real_radiographs_pixel_by_pixel(tmp_path, densenet121, nih_sample, channels, save, inputs):
    """Every map of every block, not its mean alone, and the logits, of X-rays of NIH: within 1e-4 of each block's largest."""
    network = densenet121(channels)
    read = pretrained.read(save(network, tmp_path), classifier=True).network
    files = sorted((nih_sample / "images").glob("*.png"))[:3]
    gray = np.stack([np.asarray(Image.open(file).convert("L").resize((160, 160))) for file in files])[:, None] / 255.0
    mean, deviation = (np.reshape(v, (1, 3, 1, 1)) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    x = (gray - mean) / deviation if inputs == "imagenet" else 1024 * (2 * gray - 1)
    network, wanted = network.double(), []
    blocks = [module for name, module in network.features.named_children() if re.match("pool0|denseblock", name)]
    hooks = [module.register_forward_hook(lambda _, __, out: wanted.append(out.permute(0, 2, 3, 1))) for module in blocks]
    with torch.no_grad():
        wanted.append(network(torch.from_numpy(x)))
    for hook in hooks:
        hook.remove()
    network.float()
    images = jnp.asarray(2 * gray - 1, jnp.float32).reshape(3, 160, 160, 1)
    graph, state = nnx.split(read)
    maps = jax.jit(lambda state, images: maps_of(nnx.merge(graph, state), images))(state, images)
    got = [*maps, run(read, images).logits["imported"]]
    for i, (ours, expected) in enumerate(zip(got, wanted, strict=True)):
        assert ours.shape == expected.shape and not np.allclose(expected[0], expected[1])
        error = np.abs(np.asarray(ours) - expected.numpy()).max() / np.abs(expected.numpy()).max()
        assert error <= 1e-4, f"output {i}: {error:.2g} of the largest"


def test_another_depth(tmp_path, their_densenet):
    network = their_densenet(
        growth_rate=12, block_config=(3, 2, 4, 1, 2), num_init_features=20, bn_size=2,
        in_channels=3, num_classes=2,
    )  # fmt: skip
    got = pretrained.read(save_torchvision(network, tmp_path), classifier=False)
    size = dict(growth=12, blocks=(3, 2, 4, 1, 2), stem=20, bottleneck=2, dtype="float32")
    assert got.model == {**size, "stem_constant": True}
    assert got.heads == {} and got.network.features == network.classifier.in_features


@pytest.mark.parametrize("options", [None, argparse.Namespace(rate=0.1)])
def test_what_holds_more_than_tensors_is_refused_and_can_be_converted(tmp_path, densenet121, monkeypatch, options):
    network = densenet121(1)
    torch.save({"state_dict": network.state_dict(), "options": options} if options else network, tmp_path / "whole.pt")
    with pytest.raises(UserError, match="weights_only=True") as refusal:
        pretrained.read(tmp_path / "whole.pt", classifier=True)
    assert "\n" not in str(refusal.value)
    monkeypatch.chdir(tmp_path)
    exec(re.search(r'python -c "(.*)"$', str(refusal.value))[1], {})
    got = pretrained.read("whole.state.pt", classifier=True).network
    np.testing.assert_array_equal(got.heads["imported"].bias[...], network.classifier.bias.detach())


class Payload:
    def __reduce__(self):
        return (pathlib.Path.touch, (pathlib.Path("executed"),))


def test_nothing_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for new in (True, False):
        torch.save({"state_dict": {"x": Payload()}}, "evil.pth", _use_new_zipfile_serialization=new)
        with pytest.raises(UserError, match="weights_only=True"):
            pretrained.read("evil.pth", classifier=True)
    assert not pathlib.Path("executed").exists()
    torch.load("evil.pth", weights_only=False)
    assert pathlib.Path("executed").exists()  # it would have been


def test_refuses_other_torch_files(tmp_path):
    path = tmp_path / "w.pt"
    torch.save({"features.conv0.weight": torch.zeros(4)}, path)
    whole = path.read_bytes()
    for content in (b"", whole[:100], whole[: len(whole) // 2], b"\x80\x02garbage"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="damaged"):
            pretrained.read(path, classifier=True)
    for stored, message in (
        ([torch.zeros(3)], "holds a list, not a state dict"),
        ({"model": {"features.conv0.weight": 3}}, "features.conv0.weight: not a plain tensor"),
        ({"state_dict": {"x": torch.eye(3).to_sparse()}}, "x: not a plain tensor"),
    ):
        torch.save(stored, path)
        with pytest.raises(UserError, match=message):
            pretrained.read(path, classifier=True)


def test_a_torch_that_would_run_what_it_reads_is_refused(tmp_path, monkeypatch):
    torch.save({}, tmp_path / "weights.pt")
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    with pytest.raises(UserError, match="torch 2.5.1.cpu does not read such files safely; install torch 2.6 or later, or convert it to .safetensors"):
        pretrained.read(tmp_path / "weights.pt", classifier=True)
