"""Weights from elsewhere, against the network that they were made for, written here in float64 NumPy from its paper."""

import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.lib.stride_tricks import sliding_window_view

from cxr_jax.models import pretrained
from cxr_jax.models.densenet import DenseNet
from cxr_jax.tables import UserError

GROWTH, BLOCKS, STEM, BOTTLENECK, CLASSES = 4, (2, 2), 8, 2, 3


def state_dict(channels=1, seed=0):
    """A small DenseNet in torchvision's names: every number random, every reader with statistics of its own."""
    rng = np.random.default_rng(seed)
    state = {}

    def convolution(name, out, into, width):
        state[f"{name}.weight"] = rng.normal(size=(out, into, width, width)) / np.sqrt(into * width * width)

    def norm(name, channels):
        state[f"{name}.weight"] = rng.uniform(0.5, 1.5, channels) * rng.choice((-1, 1), channels)
        state[f"{name}.bias"] = 0.5 + rng.normal(size=channels)
        state[f"{name}.running_mean"] = rng.normal(size=channels)
        state[f"{name}.running_var"] = rng.uniform(0.1, 2, channels)
        state[f"{name}.num_batches_tracked"] = np.array(7, np.int64)

    convolution("features.conv0", STEM, channels, 7)
    norm("features.norm0", STEM)
    width = STEM
    for i, layers in enumerate(BLOCKS, 1):
        for j in range(1, layers + 1):
            name = f"features.denseblock{i}.denselayer{j}"
            norm(f"{name}.norm1", width)
            convolution(f"{name}.conv1", BOTTLENECK * GROWTH, width, 1)
            norm(f"{name}.norm2", BOTTLENECK * GROWTH)
            convolution(f"{name}.conv2", GROWTH, BOTTLENECK * GROWTH, 3)
            width += GROWTH
        if i < len(BLOCKS):
            norm(f"features.transition{i}.norm", width)
            convolution(f"features.transition{i}.conv", width // 2, width, 1)
            width //= 2
    norm("features.norm5", width)
    state["classifier.weight"], state["classifier.bias"] = rng.normal(size=(CLASSES, width)), rng.normal(size=CLASSES)
    return {key: values if values.dtype == np.int64 else values.astype(np.float32) for key, values in state.items()}


def convolve(x, kernel, stride=1):
    """Centred, zeros around: x [b, c, h, w], kernel [out, c, k, k]."""
    reach = kernel.shape[-1] // 2
    windows = sliding_window_view(np.pad(x, [(0, 0)] * 2 + [(reach, reach)] * 2), kernel.shape[2:], (2, 3))
    return np.einsum("bchwij,ocij->bohw", windows[:, :, ::stride, ::stride], kernel)


def forward(state, x):
    """(per-block pooled maps, features, logits) of the network, in inference; x [b, c, h, w], torchvision's names."""
    state = {key: np.asarray(values, np.float64) for key, values in state.items()}

    def read(name, x):
        scale, offset, mean, variance = (
            state[f"{name}.{part}"][:, None, None] for part in ("weight", "bias", "running_mean", "running_var")
        )
        return np.maximum((x - mean) / np.sqrt(variance + 1e-5) * scale + offset, 0)

    x = read("features.norm0", convolve(x, state["features.conv0.weight"], stride=2))
    around = np.pad(x, [(0, 0)] * 2 + [(1, 1)] * 2, constant_values=-np.inf)
    x = sliding_window_view(around, (3, 3), (2, 3))[:, :, ::2, ::2].max((-2, -1))
    pooled = [x.mean((2, 3))]
    for i, layers in enumerate(BLOCKS, 1):
        for j in range(1, layers + 1):
            name = f"features.denseblock{i}.denselayer{j}"
            z = convolve(read(f"{name}.norm1", x), state[f"{name}.conv1.weight"])
            x = np.concatenate([x, convolve(read(f"{name}.norm2", z), state[f"{name}.conv2.weight"])], 1)
        pooled.append(x.mean((2, 3)))
        if i < len(BLOCKS):
            x = convolve(read(f"features.transition{i}.norm", x), state[f"features.transition{i}.conv.weight"])
            b, c, h, w = x.shape
            x = x[:, :, : h // 2 * 2, : w // 2 * 2].reshape(b, c, h // 2, 2, w // 2, 2).mean((3, 5))
    features = read("features.norm5", x).mean((2, 3))
    return pooled, features, features @ state["classifier.weight"].T + state["classifier.bias"]


def fed(inputs, gray):
    """What the network of the file saw, [b, c, h, w], of pictures in [0, 1], [b, h, w]."""
    if inputs == "imagenet":
        mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
        return (gray[:, None] - mean[:, None, None]) / deviation[:, None, None]
    return (2 * gray[:, None] - 1) * (1024 if inputs == "xrv" else 1)


TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "BF16": jnp.bfloat16}


def safetensors(path, state, kinds=("F32", "I64"), change=lambda header: header, tail=b""):
    """Writes `state`; `change` may spoil the header."""
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for key, values in state.items():
        kind = kinds[1] if values.dtype == np.int64 else kinds[0]
        stored = values.astype(TYPES[kind]).tobytes()
        entry = {"dtype": kind, "shape": list(values.shape), "data_offsets": [len(data), len(data) + len(stored)]}
        header[key], data = entry, data + stored
    text = json.dumps(change(header)).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data + tail)
    return path


def chexnet_names(state):
    renamed = {re.sub(r"(denselayer\d\.\w+)([12]\.)", r"\1.\2", key): values for key, values in state.items()}
    renamed = {key.replace("classifier.", "classifier.0."): values for key, values in renamed.items()}
    return {f"module.densenet121.{key}": values for key, values in renamed.items()}


@nnx.jit
def run(network, images):
    return network(images, train=False, pooled_blocks=True)


def gray(n=2):
    return np.random.default_rng(1).uniform(size=(n, 18, 21))


def assert_same(network, expected, gray, tolerance=3e-6):
    out = run(network, jnp.asarray(2 * gray - 1, jnp.float32)[..., None])
    pooled, features, logits = expected
    pairs = [*zip(out.blocks, pooled, strict=True), (out.features, features)]
    pairs += [(values, logits) for values in out.logits.values()]
    for got, wanted in pairs:
        np.testing.assert_allclose(got, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


@pytest.mark.parametrize(
    "channels, rename, asked, inputs, image_size",
    [
        (3, lambda state: state, None, "imagenet", 224),
        (3, chexnet_names, None, "imagenet", 224),
        (1, lambda state: state | {"op_threshs": np.full(CLASSES, np.nan)}, None, "xrv", 224),
        (1, lambda state: {f"model.module.{key}": values for key, values in state.items()}, "gray", "gray", None),
    ],
    ids=["torchvision", "chexnet", "xrv", "gray"],
)
def test_equals_the_network_it_was_made_for(tmp_path, channels, rename, asked, inputs, image_size):
    state = state_dict(channels)
    if inputs == "xrv":  # as trained on numbers that large
        state["features.conv0.weight"] /= np.float32(500)
    got = pretrained.read(safetensors(tmp_path / "w.safetensors", rename(state)), classifier=True, inputs=asked)
    size = dict(growth=GROWTH, blocks=BLOCKS, stem=STEM, bottleneck=BOTTLENECK, dtype="float32")
    assert got.model == {**size, "stem_constant": got.inputs == "imagenet"}
    assert (got.heads, got.inputs, got.image_size) == ({"imported": CLASSES}, inputs, image_size)
    leaves = jax.tree.leaves(nnx.state(got.network))
    assert all(isinstance(leaf, jax.Array) and leaf.dtype == jnp.float32 for leaf in leaves)
    expected = forward(state, fed(inputs, gray()))
    assert all((np.abs(part).max(0) > 0).mean() > 0.6 for part in (*expected[0], expected[1]))  # most are alive
    assert_same(got.network, expected, gray())


def test_colour_fed_as_gray(tmp_path):
    """Three channels of one picture, in [-1, 1]: then there is no level, and the stem is as ours."""
    state = state_dict(3)
    got = pretrained.read(safetensors(tmp_path / "w.safetensors", state), classifier=False, inputs="gray")
    assert got.heads == {} and not got.network.heads and got.network.stem.constant is None
    assert_same(got.network, forward(state, np.repeat(fed("gray", gray()), 3, 1)), gray())


def test_borders_are_not_as_the_interior(tmp_path):
    """With the level added everywhere alike, equality is lost: there is something at the border to get right."""
    network = pretrained.read(safetensors(tmp_path / "w.safetensors", state_dict(3)), classifier=True).network
    exact = forward(state_dict(3), fed("imagenet", gray()))
    assert_same(network, exact, gray())
    stem = network.stem
    stem.statistics.mean.set_value(stem.statistics.mean[...] - stem.constant[...].sum((0, 1, 2)))
    stem.constant.set_value(jnp.zeros_like(stem.constant[...]))
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_same(network, exact, gray(), 1e-3)


def test_variances_of_zero(tmp_path):
    """A map that never varied for one reader and did for another: torch divides by sqrt(1e-5), and so must the fold."""
    state = state_dict()
    rng = np.random.default_rng(2)
    for key in state:
        if key.endswith("norm1.running_var"):
            state[key] *= rng.choice(np.float32([0, 1e-30, 1]), len(state[key]))
    got = pretrained.read(safetensors(tmp_path / "w.safetensors", state), classifier=True, inputs="gray")
    assert_same(got.network, forward(state, fed("gray", gray())), gray(), 1e-5)


@pytest.mark.parametrize("kind, tolerance", [("F64", 0), ("F16", 1e-3), ("BF16", 8e-3)])
def test_types_of_numbers(tmp_path, kind, tolerance):
    state = state_dict()
    wanted = state["classifier.weight"].T
    got = pretrained.read(safetensors(tmp_path / "w.safetensors", state, (kind, "I64")), classifier=True)
    kernel = got.network.heads["imported"].kernel[...]
    np.testing.assert_allclose(kernel, wanted, rtol=tolerance, atol=tolerance * 1e-3)


def test_readers_that_agree_keep_scale_and_offset(tmp_path):
    """A map's statistics are those of the first that reads it: with readers that agree nothing is left to take up."""
    state = state_dict()
    after = {1: "features.transition1.norm", 2: "features.norm5"}
    for i, last in after.items():
        for j in (1, 2):
            for part in ("running_mean", "running_var"):
                narrow = state[f"features.denseblock{i}.denselayer{j}.norm1.{part}"]
                narrow[:] = state[f"{last}.{part}"][: len(narrow)]
    network = pretrained.read(safetensors(tmp_path / "w.safetensors", state), classifier=True).network
    for i, block in enumerate(network.blocks, 1):
        np.testing.assert_array_equal(block.statistics.mean[...], state[f"{after[i]}.running_mean"])
        np.testing.assert_array_equal(block.statistics.variance[...], state[f"{after[i]}.running_var"])
        reader = block.layers[1].reader
        name = f"features.denseblock{i}.denselayer2.norm1"
        np.testing.assert_allclose(reader.scale[...], state[f"{name}.weight"], rtol=1e-6)
        np.testing.assert_allclose(reader.offset[...], state[f"{name}.bias"], rtol=1e-6)


def test_bfloat16_in_the_places_of_our_own(tmp_path):
    path = safetensors(tmp_path / "w.safetensors", state_dict())
    got = pretrained.read(path, classifier=True, inputs="gray", dtype="bfloat16")
    assert got.network.dtype == jnp.bfloat16 and got.model["dtype"] == "bfloat16"
    # The arrays have the places that our own network of that size has: a checkpoint of one is one of the other.
    ours = nnx.eval_shape(lambda: DenseNet(got.heads, **got.model, rngs=nnx.Rngs(0)))
    one, other = (jax.tree_util.tree_leaves_with_path(nnx.state(network)) for network in (ours, got.network))
    assert [(path, x.shape, x.dtype) for path, x in one] == [(path, x.shape, x.dtype) for path, x in other]


def without(*keys):
    return lambda state: {key: values for key, values in state.items() if key not in keys}


def with_(key, values):
    return lambda state: state | {key: np.asarray(values, np.float32)}


def spoilt(key, value):
    def change(state):
        state[key].flat[-1] = value
        return state

    return change


LAYER = "features.denseblock2.denselayer1"


@pytest.mark.parametrize(
    "change, message",
    [
        (without(f"{LAYER}.conv2.weight"), f"{LAYER}.conv2.weight: missing"),
        (without(f"{LAYER}.norm1.running_var"), f"{LAYER}.norm1.running_var: missing"),
        (without("features.denseblock1.denselayer1.conv2.weight"), "denselayer1.conv2.weight: missing"),
        (without("classifier.bias"), "classifier.bias: missing"),
        (with_("aux.weight", [1.0]), "aux.weight: left over"),
        (with_("features.denseblock1.denselayer9.norm1.weight", [1.0]), "denselayer3.norm1.weight: missing"),
        (with_("features.denseblock7.denselayer1.norm1.weight", [1.0]), "features.transition2.norm.weight: missing"),
        (with_("features.denseblock1.denselayer1.norm.1.weight", [1.0]), "stands for the same array"),
        (with_("backbone.features.conv0.weight", [1.0]), "2 keys"),
        (with_(f"{LAYER}.norm2.bias", np.zeros(7)), rf"{LAYER}.norm2.bias: of shape \[7\]; .* has \[8\]"),
        (with_("features.transition1.conv.weight", np.zeros((9, 16, 1, 1))), r"has \[8, 16, 1, 1\]"),
        (with_("classifier.weight", np.zeros((3, 15))), r"classifier.weight: of shape \[3, 15\]"),
        (with_("features.conv0.weight", np.zeros((8, 2, 7, 7))), "reads 2 channels"),
        (with_("features.conv0.weight", np.zeros((8, 1, 3, 3))), r"has \[8, 1, 7, 7\]"),
        (with_("features.conv0.weight", np.zeros(8)), "not a convolution's kernel"),
        (with_("features.denseblock1.denselayer1.conv2.weight", np.zeros((3, 8, 3, 3))), "no multiple of the growth"),
        (without("features.conv0.weight"), "no keys end in features.conv0.weight"),
        (lambda state: {"conv1.weight": np.zeros((2, 2, 3, 3), np.float32)}, "a DenseNet's state dict has one"),
        (spoilt(f"{LAYER}.conv1.weight", np.nan), f"{LAYER}.conv1.weight: holds NaN"),
        (spoilt("features.norm5.running_mean", np.inf), "features.norm5.running_mean: holds NaN"),
        (spoilt("features.norm5.running_var", -0.5), "features.norm5.running_var: holds a negative variance"),
    ],
)
def test_refuses_what_is_no_densenet(tmp_path, change, message):
    path = safetensors(tmp_path / "w.safetensors", change(state_dict()))
    with pytest.raises(UserError, match=message) as refusal:
        pretrained.read(path, classifier=True)
    assert str(refusal.value).startswith(str(path)) and "\n" not in str(refusal.value)


def test_the_classifier_may_be_anything_where_it_is_not_wanted(tmp_path):
    state = state_dict() | {"classifier.3.weight": np.zeros((2, 2), np.float32)}
    path = safetensors(tmp_path / "w.safetensors", state)
    assert pretrained.read(path, classifier=False).heads == {}
    with pytest.raises(UserError, match="classifier.3.weight: left over"):
        pretrained.read(path, classifier=True)


def header_with(**fields):
    def change(header):
        header["classifier.bias"].update(fields)
        return header

    return change


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(dtype="F8_E4M3"), "classifier.bias: numbers of type F8_E4M3"),
        (dict(dtype=None), "classifier.bias: numbers of type None"),
        (dict(shape=[5]), "classifier.bias: 12 bytes do not hold F32 of shape"),
        (dict(shape=[0, 2**80], data_offsets=[0, 0]), "classifier.bias: its header entry"),
        (dict(shape=[-3]), "classifier.bias: its header entry"),
        (dict(shape="3"), "classifier.bias: its header entry"),
        (dict(data_offsets=[0, 10**12]), "classifier.bias: lies beyond the end"),
        (dict(data_offsets=[-12, 0]), "classifier.bias: its header entry"),
        (dict(data_offsets=[12, 0]), "classifier.bias: -12 bytes"),
        (dict(data_offsets=[0]), "classifier.bias: its header entry"),
    ],
)
def test_refuses_a_header_that_lies(tmp_path, fields, message):
    path = safetensors(tmp_path / "w.safetensors", state_dict(), change=header_with(**fields))
    with pytest.raises(UserError, match=message):
        pretrained.read(path, classifier=True)


def test_refuses_damaged_files(tmp_path):
    whole = safetensors(tmp_path / "w.safetensors", state_dict()).read_bytes()
    cut = tmp_path / "cut.safetensors"
    header = 8 + int.from_bytes(whole[:8], "little")
    for content in (b"", whole[:5], whole[:8], whole[: header - 1], b"\xff" * 64):
        cut.write_bytes(content)
        with pytest.raises(UserError, match="cut short"):
            pretrained.read(cut, classifier=True)
    for content in (whole[:header], whole[:-1]):
        cut.write_bytes(content)
        with pytest.raises(UserError, match="beyond the end of the file"):
            pretrained.read(cut, classifier=True)
    for text in (b"[1, 2]", b"{\xff}", b"[" * 100_000, b"{"):
        cut.write_bytes(len(text).to_bytes(8, "little") + text)
        with pytest.raises(UserError, match="not safetensors' JSON"):
            pretrained.read(cut, classifier=True)


def test_refuses_other_arguments(tmp_path):
    path = safetensors(tmp_path / "w.safetensors", state_dict())
    with pytest.raises(UserError, match="inputs='rgb': not one of imagenet, xrv, gray"):
        pretrained.read(path, classifier=True, inputs="rgb")
    with pytest.raises(UserError, match="reads 1 channel, and inputs=.imagenet. is colour"):
        pretrained.read(path, classifier=True, inputs="imagenet")
    for name in ("absent.safetensors", "."):
        with pytest.raises(UserError, match="no such file"):
            pretrained.read(tmp_path / name, classifier=True)
    with pytest.raises(UserError, match="they end in .safetensors, .pt"):
        pretrained.read(path.rename(tmp_path / "w.onnx"), classifier=True)


def test_without_torch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    path = tmp_path / "w.pth"
    path.write_bytes(b"")
    with pytest.raises(UserError, match="pip install torch; or convert it") as refusal:
        pretrained.read(path, classifier=True)
    command = re.search(r'python -c "(.*)"$', str(refusal.value))[1]
    compile(command, "command", "exec")


# ---------------------------------------------------------------------------------------------------- written for elsewhere


def network_fed(tmp_path, inputs):
    """A network of ours with every number random: read as `inputs`, so that under imagenet its stem has a constant."""
    path = safetensors(tmp_path / "source.safetensors", state_dict(3 if inputs == "imagenet" else 1, seed=3))
    return pretrained.read(path, classifier=True, inputs=inputs).network


def outputs(network):
    out = run(network, jnp.asarray(2 * gray() - 1, jnp.float32)[..., None])
    return out.blocks, out.features, out.logits["imported"]


@pytest.mark.parametrize("read_as, inputs", [("gray", "gray"), ("gray", "imagenet"), ("imagenet", "imagenet")])
def test_what_is_written_gives_the_same(tmp_path, read_as, inputs):
    network = network_fed(tmp_path, read_as)
    state = pretrained.state_dict(network, ["imported"], inputs=inputs)
    like = state_dict(3 if inputs == "imagenet" else 1)
    assert [(key, x.shape, x.dtype) for key, x in state.items()] == [(key, x.shape, x.dtype) for key, x in like.items()]
    # By the network written in NumPy, which pads with zeros what it is fed: at the border, too, it is the same.
    assert_same(network, forward(state, fed(inputs, gray())), gray(), 1e-5)
    pretrained.write(tmp_path / "w.safetensors", state, {"inputs": inputs})
    again = pretrained.read(tmp_path / "w.safetensors", classifier=True)
    assert again.inputs == inputs and again.heads == {"imported": CLASSES}
    assert_same(again.network, outputs(network), gray(), 1e-5)


def test_every_reader_is_given_the_statistics_of_the_maps(tmp_path):
    network = network_fed(tmp_path, "gray")
    state = pretrained.state_dict(network, [])
    assert not any(key.startswith("classifier") for key in state)
    mean = np.asarray(network.blocks[1].statistics.mean[...])
    for name in ("features.denseblock2.denselayer1.norm1", "features.denseblock2.denselayer2.norm1", "features.norm5"):
        values = state[f"{name}.running_mean"]
        np.testing.assert_array_equal(values, mean[: len(values)])
    np.testing.assert_array_equal(state["features.norm5.weight"], network.reader.scale[...])


def test_a_classifier_of_several_heads_has_them_in_order(tmp_path):
    network = DenseNet({"race": 3, "age": 2}, growth=4, blocks=(1,), stem=8, bottleneck=2, rngs=nnx.Rngs(0))
    pretrained.write(tmp_path / "w.safetensors", pretrained.state_dict(network, ["race", "age"]), {})
    again = pretrained.read(tmp_path / "w.safetensors", classifier=True, inputs="gray")
    x = jnp.asarray(2 * gray() - 1, jnp.float32)[..., None]
    logits = run(network, x).logits
    wanted = np.concatenate([logits["race"], logits["age"]], axis=1)
    np.testing.assert_allclose(run(again.network, x).logits["imported"], wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_what_one_channel_cannot_stand_for_is_refused(tmp_path):
    network = network_fed(tmp_path, "imagenet")
    with pytest.raises(UserError, match="fed as ImageNet's pictures are, .* export it with inputs='imagenet'"):
        pretrained.state_dict(network, ["imported"])
    with pytest.raises(UserError, match="inputs='xrv': not one of gray, imagenet"):
        pretrained.state_dict(network, ["imported"], inputs="xrv")


def test_a_file_says_how_it_is_fed_and_may_be_overruled(tmp_path):
    state, path = pretrained.state_dict(network_fed(tmp_path, "gray"), ["imported"]), tmp_path / "w.safetensors"
    for about, asked, wanted in (
        ({"inputs": "gray", "image_size": 64}, None, ("gray", 64)),
        ({"inputs": "gray", "image_size": 64}, "xrv", ("xrv", 64)),
        ({}, None, ("xrv", 224)),
    ):
        pretrained.write(path, state, about)
        got = pretrained.read(path, classifier=False, inputs=asked)
        assert (got.inputs, got.image_size) == wanted
    for said in ({"inputs": "rgb"}, {"inputs": ["gray"]}, {"image_size": "64"}, {"image_size": -1}, [], 3):
        pretrained.write(path, state, said)
        with pytest.raises(UserError, match="inputs and image_size, cannot be"):
            pretrained.read(path, classifier=False)
    for text in ("{", 3, "[" * 100_000):
        spoil = {"__metadata__": {"format": "pt", "cxr_jax": text}}
        safetensors(path, state, change=lambda header: header | spoil)
        with pytest.raises(UserError, match="inputs and image_size, cannot be"):
            pretrained.read(path, classifier=False)


def test_a_written_file_is_what_the_format_asks_for(tmp_path):
    state, about = state_dict(), {"targets": {"sex": ["F", "M"]}, "image_size": 64}
    pretrained.write(tmp_path / "new" / "w.safetensors", state, about)
    content = (tmp_path / "new" / "w.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert length % 8 == 0 and content[8:9] == b"{"
    header = json.loads(content[8 : 8 + length])
    metadata = header.pop("__metadata__")
    assert metadata.keys() == {"format", "cxr_jax"} and metadata["format"] == "pt"
    assert json.loads(metadata["cxr_jax"]) == about
    assert header.keys() == state.keys()
    end = 0  # arrays lie side by side, with no byte between them, each where its numbers may be mapped
    for key, entry in header.items():
        start, stop = entry["data_offsets"]
        values, kind = state[key], "I64" if key.endswith("num_batches_tracked") else "F32"
        assert entry["dtype"] == kind and entry["shape"] == list(values.shape)
        assert start == end and start % values.itemsize == 0
        stored = np.frombuffer(content[8 + length :][start:stop], TYPES[kind]).reshape(values.shape)
        np.testing.assert_array_equal(stored, values)
        end = stop
    assert len(content) == 8 + length + end


def test_refuses_to_write_there(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "folder.pt").mkdir()
    for name, message in (
        ("w.onnx", "write one that ends in .safetensors, .pt, .pth"),
        ("w.tar", "write one that ends in .safetensors, .pt, .pth"),
        ("w", "write one that ends in .safetensors, .pt, .pth"),
        ("folder.pt", "is a folder; name a file in it"),
        (".", "is a folder; name a file in it"),
        ("w.pt", "pip install torch; or name one that ends in .safetensors"),
        ("w.pth", "pip install torch; or name one that ends in .safetensors"),
    ):
        with pytest.raises(UserError, match=message) as refusal:
            pretrained.write(tmp_path / name, state_dict(), {})
        assert str(refusal.value).startswith(str(tmp_path)) and "\n" not in str(refusal.value)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.pt"]


def test_a_disk_that_refuses_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"before")

    def full(self, content):
        with open(self, "wb") as half:
            half.write(content[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        pretrained.write(path, state_dict(), {})
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]
