"""Against DenseNet as its paper draws it, in torch, normalising anew at every reader: outputs, gradients, statistics.

The reference is written here from the paper: concatenate, normalise, ReLU, 1x1, normalise, ReLU, 3x3; between blocks
normalise, ReLU, 1x1, then average-pool. It shares nothing with ours but the numbers its parameters start from.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cxr_jax.models.densenet import DenseNet

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.peers

CLASSES = 4


class Size(NamedTuple):
    growth: int
    blocks: tuple[int, ...]
    stem: int
    pixels: int
    batch: int


TINY = Size(8, (2, 3), 16, 32, 6)
DENSENET121 = Size(32, (6, 12, 24, 16), 64, 64, 8)


class TorchLayer(torch.nn.Module):
    def __init__(self, channels, growth):
        super().__init__()
        self.norm1, self.norm2 = torch.nn.BatchNorm2d(channels), torch.nn.BatchNorm2d(4 * growth)
        self.conv1 = torch.nn.Conv2d(channels, 4 * growth, 1, bias=False)
        self.conv2 = torch.nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x):
        return torch.cat([x, self.conv2(self.norm2(self.conv1(self.norm1(x).relu())).relu())], 1)


class TorchDenseNet(torch.nn.Module):
    def __init__(self, size: Size):
        super().__init__()
        self.conv = torch.nn.Conv2d(1, size.stem, 7, stride=2, padding=3, bias=False)
        self.norm = torch.nn.BatchNorm2d(size.stem)
        self.blocks, self.transitions = torch.nn.ModuleList(), torch.nn.ModuleList()
        channels = size.stem
        for i, layers in enumerate(size.blocks):
            self.blocks.append(torch.nn.ModuleList())
            for _ in range(layers):
                self.blocks[i].append(TorchLayer(channels, size.growth))
                channels += size.growth
            if i < len(size.blocks) - 1:
                norm, conv = torch.nn.BatchNorm2d(channels), torch.nn.Conv2d(channels, channels // 2, 1, bias=False)
                self.transitions.append(torch.nn.ModuleList([norm, conv]))
                channels //= 2
        self.last = torch.nn.BatchNorm2d(channels)
        self.head = torch.nn.Linear(channels, CLASSES)

    def forward(self, x):
        x = torch.nn.functional.max_pool2d(self.norm(self.conv(x)).relu(), 3, stride=2, padding=1)
        pooled = [x.mean((2, 3))]
        for i, block in enumerate(self.blocks):
            for layer in block:
                x = layer(x)
            pooled.append(x.mean((2, 3)))
            if i < len(self.transitions):
                norm, conv = self.transitions[i]
                x = torch.nn.functional.avg_pool2d(conv(norm(x).relu()), 2)
        features = self.last(x).relu().mean((2, 3))
        return self.head(features), features, pooled




def hwio(x):
    """A kernel [.., in, out] in torch's order, [out, in, kh, kw]."""
    return x.transpose(3, 2, 0, 1) if x.ndim == 4 else x.T[:, :, None, None]


def parameters_as_torch(ours):
    """Our parameters, or gradients that stand in their place, under the reference's names: numpy."""

    def array(variable):
        return np.asarray(variable[...])

    out = {"conv.weight": hwio(array(ours.stem.kernel))}

    def reader(name, module):
        out[f"{name}.weight"], out[f"{name}.bias"] = array(module.scale), array(module.offset)

    reader("norm", ours.stem.reader)
    for i, block in enumerate(ours.blocks):
        for j, layer in enumerate(block.layers):
            name = f"blocks.{i}.{j}"
            reader(f"{name}.norm1", layer.reader)
            reader(f"{name}.norm2", layer.inner_reader)
            out[f"{name}.conv1.weight"] = hwio(array(layer.squeeze))
            out[f"{name}.conv2.weight"] = hwio(array(layer.kernel))
    for i, transition in enumerate(ours.transitions):
        reader(f"transitions.{i}.0", transition.reader)
        out[f"transitions.{i}.1.weight"] = hwio(array(transition.squeeze))
    reader("last", ours.reader)
    out["head.weight"], out["head.bias"] = array(ours.heads["race"].kernel).T, array(ours.heads["race"].bias)
    return out


def statistics_as_torch(ours):
    """Every reader of the reference holds the statistics of the maps that it reads: the first ones of its block."""
    out = {}

    def put(name, statistics, width):
        out[f"{name}.running_mean"] = np.asarray(statistics.mean[...])[:width]
        out[f"{name}.running_var"] = np.asarray(statistics.variance[...])[:width]

    put("norm", ours.stem.statistics, None)
    for i, block in enumerate(ours.blocks):
        for j, layer in enumerate(block.layers):
            put(f"blocks.{i}.{j}.norm1", block.statistics, layer.reader.scale[...].size)
            put(f"blocks.{i}.{j}.norm2", layer.inner_statistics, None)
        put(f"transitions.{i}.0" if i < len(ours.transitions) else "last", block.statistics, None)
    return out


@functools.partial(jax.jit, static_argnums=0)
def train_step(graph, params, stats, images, labels, weights):
    """One step of plain gradient descent at rate .05, on a loss that every output has a part in."""

    def loss(params):
        model = nnx.merge(graph, params, stats, copy=True)
        out = model(images, train=True, pooled_blocks=True)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(out.logits["race"]), labels[:, None], 1)
        return (out.features @ weights).mean() - chosen.mean(), (out, nnx.state(model, nnx.BatchStat))

    (value, (out, stats)), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    params = jax.tree.map(lambda p, g: p - jnp.asarray(0.05, p.dtype) * g, params, gradients)
    return value, out, gradients, params, stats


@functools.partial(jax.jit, static_argnums=0)
def infer(graph, params, stats, images):
    return nnx.merge(graph, params, stats)(images, train=False, pooled_blocks=True)


def compare(size: Size, dtype: str, close):
    """Two training steps and an inference by both, from the same parameters; `close(name, ours, reference)` judges."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    real = jnp.dtype(dtype)
    ours = DenseNet(
        {"race": CLASSES}, growth=size.growth, blocks=size.blocks, stem=size.stem, dtype=real, param_dtype=real,
        rngs=nnx.Rngs(0),
    )  # fmt: skip
    graph, params, stats = nnx.split(ours, nnx.Param, nnx.BatchStat)
    # Scales and offsets off 1 and 0, so that no reader's can be taken for another's.
    params = jax.tree.map(
        lambda x: jnp.asarray(np.asarray(x) + 0.2 * rng.uniform(-1, 1, x.shape), real) if x.ndim == 1 else x, params
    )
    ours = nnx.merge(graph, params, stats)
    reference = TorchDenseNet(size).double()
    missing = reference.load_state_dict(
        {k: torch.from_numpy(np.array(v, np.float64)) for k, v in parameters_as_torch(ours).items()}, strict=False
    )
    assert not missing.unexpected_keys
    assert {k.rsplit(".", 1)[1] for k in missing.missing_keys} <= {"running_mean", "running_var", "num_batches_tracked"}

    images = (0.5 + rng.normal(size=(size.batch, size.pixels, size.pixels, 1))).astype(real)
    labels = np.arange(size.batch) % CLASSES
    weights = rng.normal(size=ours.features).astype(real)
    theirs = torch.from_numpy(images.astype(np.float64)).permute(0, 3, 1, 2)

    def outputs(when, out, expected):
        logits, features, pooled = expected
        assert len(out.blocks) == len(pooled) == 1 + len(size.blocks)
        for i, (a, b) in enumerate(zip(out.blocks, pooled)):  # the first to fail is at fault
            close(f"{when}, block {i}", a, b)
        close(f"{when}, features", out.features, features)
        close(f"{when}, logits", out.logits["race"], logits)

    for step in (1, 2):
        reference.train()
        expected = reference(theirs)
        loss = (expected[1] @ torch.from_numpy(weights.astype(np.float64))).mean()
        loss = loss + torch.nn.functional.cross_entropy(expected[0], torch.from_numpy(labels))
        reference.zero_grad()
        loss.backward()
        with torch.no_grad():
            for p in reference.parameters():
                p -= 0.05 * p.grad
        value, out, gradients, params, stats = train_step(
            graph, params, stats, jnp.asarray(images), jnp.asarray(labels), jnp.asarray(weights)
        )
        outputs(f"step {step}", out, expected)
        close(f"step {step}, loss", value, loss)
        got = parameters_as_torch(nnx.merge(graph, gradients, stats))
        wanted = dict(reference.named_parameters())
        assert set(got) == set(wanted)
        for name in wanted:
            # The gradient of a scale that stands before another normalisation all but cancels, and torch's own float32
            # is 1e-4 off there; so the size that it is judged by is its module's: scale and offset together.
            module = name.rsplit(".", 1)[0]
            together = [p.grad for n, p in wanted.items() if n.rsplit(".", 1)[0] == module]
            size_of = np.sqrt(sum(float(gradient.square().sum()) for gradient in together))
            close(f"step {step}, gradient of {name}", got[name], wanted[name].grad, size_of)
        got = statistics_as_torch(nnx.merge(graph, params, stats))
        wanted = {k: v for k, v in reference.named_buffers() if not k.endswith("num_batches_tracked")}
        assert set(got) == set(wanted)
        for name in wanted:
            close(f"step {step}, {name}", got[name], wanted[name])

    reference.eval()
    with torch.no_grad():
        expected = reference(theirs)
    outputs("inference", infer(graph, params, stats, jnp.asarray(images)), expected)


def within(tolerance):
    def close(name, got, expected, size_of=None):
        got, expected = np.asarray(got, np.float64), np.asarray(expected.detach(), np.float64)
        assert got.shape == expected.shape, name
        assert np.isfinite(expected).all(), name
        error = np.linalg.norm(got - expected) / (np.linalg.norm(expected) if size_of is None else size_of)
        assert error <= tolerance, f"{name}: relative difference {error:.2g}"

    return close


def test_float64_tiny():
    with jax.enable_x64(True):
        compare(TINY, "float64", within(1e-10))


def test_float32_tiny():
    compare(TINY, "float32", within(1e-4))


def test_float64_densenet121():
    with jax.enable_x64(True):
        compare(DENSENET121, "float64", within(1e-10))
