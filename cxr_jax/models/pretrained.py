"""Weights from elsewhere, and for elsewhere: a torch state dict of a DenseNet, read as a network of ours that gives the
same numbers, and written of one.

Names. torchvision's and TorchXRayVision's (`features.denseblock1.denselayer1.norm1.weight`), and CheXNet's, older
(`module.densenet121.features.denseblock1.denselayer1.norm.1.weight`, `classifier.0.weight`), below any prefix. Depth,
growth and width are told by the names and shapes.

Pictures. Our network sees x in [-1, 1], theirs saw s_c * x + l_c in channel c:

    imagenet   gray g = (x + 1) / 2 in three channels, less ImageNet's mean m_c, over its deviation d_c:
               s_c = 1 / (2 d_c), l_c = (1/2 - m_c) / d_c
    xrv        TorchXRayVision's -1024 ... 1024: s_c = 1024, l_c = 0
    gray       as ours: s_c = 1, l_c = 0

The stem is linear, so that its kernels W_c become sum_c s_c W_c on x and sum_c l_c W_c on a picture of ones, which the
same zeros surround. That is exact up to the border. So is the way back: of three channels any two are independent
functions of x and one, so that there are W_c with these two sums, whatever they are; the smallest are written. One channel
has its sum on x alone, and cannot stand for a network that has another on ones.

Statistics. Torch keeps a running mean and variance for every reader of a map, we keep one of each for the map. It is
given those of the first layer that reads it; the other readers' scale and offset take up the difference, by the formula
in `cxr_jax.models.densenet`. On the way back every reader is given the map's.

Files. `.safetensors` is read and written here. `.pt`, `.pth` and `.tar` are read by torch, tensors only: such a file may be a
program, and is never run. What holds more than tensors (a whole pickled module, as TorchXRayVision publishes, or a
checkpoint with its options) is refused. Whoever trusts it turns it into a state dict, where the code of its classes is
installed, by:

    python -c "import torch; m = torch.load('m.pt', map_location='cpu', weights_only=False);
    torch.save(getattr(m, 'state_dict', lambda: m['state_dict'])(), 'm.state.pt')"
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from cxr_jax import tables
from cxr_jax.models.densenet import EPSILON, DenseNet, Reader, Statistics, Stem
from cxr_jax.tables import UserError

HEAD = "imported"  # the name of the head that a file's classifier becomes

# Of the colours in [0, 1], red, green, blue: what torchvision's weights were trained with.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)

# How a network was fed, and the pixels a side that such networks are published for, where there is a usage.
INPUTS = {"imagenet": 224, "xrv": 224, "gray": None}

_TORCH_SUFFIXES = (".pt", ".pth", ".tar")
SUFFIXES = (".safetensors", *_TORCH_SUFFIXES)  # of files that `read` takes
WRITTEN_SUFFIXES = (".safetensors", ".pt", ".pth")  # of those that `write` makes
WRITTEN_INPUTS = ("gray", "imagenet")  # how a network that `state_dict` gives can be fed


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A network with weights from elsewhere.

    model: densenet.FIELDS, as in config.model. heads: name -> outputs; {} without a classifier,
    else `HEAD` alone, whose logits are the file's own, before any sigmoid. inputs: a key of INPUTS, how it was fed.
    image_size: pixels a side that the file asks for, or that networks so fed are published for; or None. network: takes images in [-1, 1] as any
    DenseNet of ours. Where `inputs` is imagenet its stem has a second kernel, so that its parameters are one array more
    than those of `densenet.from_config`.
    """

    model: Mapping[str, Any]
    heads: Mapping[str, int]
    inputs: str
    image_size: int | None
    network: DenseNet


def read(
    path: os.PathLike | str, *, classifier: bool, inputs: str | None = None, dtype: str = "float32"
) -> Pretrained:
    """The network of a torch state dict.

    path: .safetensors, .pt, .pth or .tar; a checkpoint that holds the state dict as `state_dict` or `model` will do.
    classifier: whether its last layer is wanted, as a head. inputs: how the network was fed, a key of INPUTS; None
    leaves it to what `write` noted in a .safetensors file, and else to the number of channels: imagenet for 3, xrv for 1.
    dtype: of activations. Parameters and statistics are
    float32, computed in float64. Buffers that inference of logits has no use for are ignored: num_batches_tracked and
    TorchXRayVision's op_threshs.
    Raises UserError, which names file and key, for what is no file of that kind, no DenseNet, or has a key missing,
    left over, of a wrong shape, not finite or with a negative variance.
    """
    if inputs is not None and inputs not in INPUTS:
        raise UserError(f"inputs={inputs!r}: not one of {', '.join(INPUTS)}")
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file of weights")
    noted = _Noted()
    if path.suffix == ".safetensors":
        found, noted = _from_safetensors(path)
    elif path.suffix in _TORCH_SUFFIXES:
        found = _from_torch(path)
    else:
        endings = ", ".join(SUFFIXES)
        raise UserError(f"{path}: not a file of weights by its name; they end in {endings}")
    keys = _plain_names(path, found, classifier)
    size = _size(path, keys, found)
    weights = _checked(path, keys, found, size, classifier)
    inputs = inputs or noted.inputs or ("imagenet" if size.channels == 3 else "xrv")
    if inputs == "imagenet" and size.channels == 1:
        key = keys["features.conv0.weight"]
        raise UserError(f"{path}: {key}: reads 1 channel, and inputs='imagenet' is colour; say xrv or gray")
    model = dict(growth=size.growth, blocks=size.blocks, stem=size.stem, bottleneck=size.bottleneck, dtype=dtype)
    model["stem_constant"] = inputs == "imagenet"
    heads = {HEAD: len(weights["classifier.bias"])} if classifier else {}
    image_size = noted.image_size or INPUTS[inputs]
    return Pretrained(model, heads, inputs, image_size, _network(model, heads, inputs, weights))


def state_dict(network: DenseNet, heads: Iterable[str], *, inputs: str = "gray") -> dict[str, np.ndarray]:
    """The torch state dict of a network of ours, as torchvision's DenseNet of that size loads it: the inverse of `read`.

    heads: the names of those that the classifier is made of; its outputs are theirs, one head's after another's. Without
    any there is no classifier. inputs: how the written network is to be fed: `gray`, one channel of x in [-1, 1], or
    `imagenet`, as torchvision's own weights are, in three channels.
    Returns arrays by torchvision's names and in its order, float32, but num_batches_tracked, int64 and 0. The written network
    gives this one's logits, up to the rounding of activations in bfloat16, where ours are: a state dict has no say in that.
    Raises KeyError for a head that is not there; UserError for other inputs, and for `gray` where the stem has a constant, as
    weights read as `imagenet` give it.
    """
    if inputs not in WRITTEN_INPUTS:
        raise UserError(f"inputs={inputs!r}: not one of {', '.join(WRITTEN_INPUTS)}")
    state: dict[str, np.ndarray] = {}

    def put(name, values):
        state[name] = np.array(values, np.float32, order="C")

    def put_norm(name, reader: Reader, statistics: Statistics):
        # Each reader of a block reads the maps from the first on, and has its own copy of their statistics.
        scale, offset = reader.arrays()
        parts = dict(weight=scale, bias=offset, running_mean=statistics.mean[...], running_var=statistics.variance[...])
        for part, values in parts.items():
            put(f"{name}.{part}", np.asarray(values)[: len(scale)])
        state[f"{name}.num_batches_tracked"] = np.zeros((), np.int64)

    def put_mixing(name, squeeze):
        put(f"{name}.weight", np.asarray(squeeze[...]).T[:, :, None, None])

    put(_STEM_KEY, _stem_weight(network.stem, inputs))
    put_norm("features.norm0", network.stem.reader, network.stem.statistics)
    for i, block in enumerate(network.blocks, 1):
        for j, layer in enumerate(block.layers, 1):
            name = f"features.denseblock{i}.denselayer{j}"
            put_norm(f"{name}.norm1", layer.reader, block.statistics)
            put_mixing(f"{name}.conv1", layer.squeeze)
            put_norm(f"{name}.norm2", layer.inner_reader, layer.inner_statistics)
            put(f"{name}.conv2.weight", np.asarray(layer.kernel[...]).transpose(3, 2, 0, 1))
        if i <= len(network.transitions):
            transition = network.transitions[i - 1]
            put_norm(f"features.transition{i}.norm", transition.reader, block.statistics)
            put_mixing(f"features.transition{i}.conv", transition.squeeze)
        else:
            put_norm("features.norm5", network.reader, block.statistics)
    if chosen := [network.heads[name] for name in heads]:
        put("classifier.weight", np.concatenate([np.asarray(head.kernel[...]).T for head in chosen]))
        put("classifier.bias", np.concatenate([np.asarray(head.bias[...]) for head in chosen]))
    return state


def write(path: os.PathLike | str, state: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
    """Writes what `state_dict` gave, whole or not at all; a file that is there already is replaced.

    path: .safetensors, or .pt or .pth, which torch writes: the state dict itself, for `load_state_dict`. about: what else is
    to be known of the network, as JSON, which a .safetensors file has a place for. Of that `read` takes `inputs`, a key of
    INPUTS, and `image_size`.
    Raises UserError for another ending, a folder, or where torch is needed and absent; OSError where it cannot be written.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a file in it, ending in {', '.join(WRITTEN_SUFFIXES)}")
    if path.suffix not in WRITTEN_SUFFIXES:
        raise UserError(f"{path}: not a file of weights by its name; write one that ends in {', '.join(WRITTEN_SUFFIXES)}")
    content = _as_safetensors(state, about) if path.suffix == ".safetensors" else _as_torch(path, state)
    with tables.whole_file(path) as temporary:
        temporary.write_bytes(content)


# ---------------------------------------------------------------------------------------------------------------- files

_SAFETENSORS_TYPES = {
    "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(jnp.bfloat16),
    "I64": np.dtype("<i8"), "I32": np.dtype("<i4"), "I16": np.dtype("<i2"), "I8": np.dtype("i1"),
    "U8": np.dtype("u1"), "BOOL": np.dtype("?"),
}  # fmt: skip


def _is_count(x) -> bool:
    return isinstance(x, int) and not isinstance(x, bool) and x >= 0


class _Noted(NamedTuple):
    """What a file that `write` made says of itself; None each in a file from elsewhere."""

    inputs: str | None = None
    image_size: int | None = None


_OWN = "cxr_jax"  # among the texts of `__metadata__`: what `write` was told about the network, as JSON


def _from_safetensors(path: pathlib.Path) -> tuple[dict[str, np.ndarray], _Noted]:
    """Arrays by key. The file: a length n (8 bytes, little-endian), n bytes of JSON, the arrays' bytes.

    The JSON has, by key, `dtype`, `shape` and `data_offsets`: [first, past the last] byte of the array, counted from
    the end of the JSON. (`__metadata__` is no array, but texts by name.) Nothing is taken on trust.
    """
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > len(content) - 8:
        raise UserError(f"{path}: cut short, or no safetensors file; fetch it again")
    try:
        header = json.loads(content[8 : 8 + length])
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise UserError(f"{path}: its header is not safetensors' JSON; fetch it again")
    data = memoryview(content)[8 + length :]
    arrays = {}
    for key, entry in header.items():
        if key == "__metadata__":
            continue
        try:
            kind, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
            # An array of no numbers belongs to no DenseNet, and could have any length along its other axes.
            well_formed = isinstance(shape, list) and all(map(_is_count, [*shape, start, stop])) and 0 not in shape
        except (TypeError, KeyError, ValueError):
            well_formed = False
        if not well_formed:
            raise UserError(f"{path}: {key}: its header entry has no sound dtype, shape and data_offsets")
        if not isinstance(kind, str) or kind not in _SAFETENSORS_TYPES:
            raise UserError(f"{path}: {key}: numbers of type {kind}; save it as one of {', '.join(_SAFETENSORS_TYPES)}")
        dtype = _SAFETENSORS_TYPES[kind]
        if stop > len(data):
            raise UserError(f"{path}: {key}: lies beyond the end of the file, which was cut short; fetch it again")
        if stop - start != math.prod(shape) * dtype.itemsize:
            raise UserError(f"{path}: {key}: {stop - start} bytes do not hold {kind} of shape {shape}; fetch it again")
        arrays[key] = np.frombuffer(data[start:stop], dtype).reshape(shape)
    return arrays, _noted(path, header.get("__metadata__"))


def _noted(path: pathlib.Path, metadata) -> _Noted:
    if not isinstance(metadata, dict) or _OWN not in metadata:
        return _Noted()
    try:
        about = json.loads(metadata[_OWN])
        noted = _Noted(about.get("inputs"), about.get("image_size"))
        sound = noted.inputs in (None, *INPUTS) and (noted.image_size is None or _is_count(noted.image_size))
    except (ValueError, TypeError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise UserError(f"{path}: what its header says under {_OWN}, of inputs and image_size, cannot be; export it again")
    return noted


def _as_safetensors(state: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt", _OWN: json.dumps(about)}}
    # Wider numbers first, so that every array begins at a multiple of its own numbers' width, where readers may map it.
    ordered = sorted(state.items(), key=lambda item: -item[1].dtype.itemsize)
    parts, start = [], 0
    for key, values in ordered:
        kind = next(kind for kind, dtype in _SAFETENSORS_TYPES.items() if dtype == values.dtype)
        parts.append(values.astype(_SAFETENSORS_TYPES[kind]).tobytes())
        stop = start + len(parts[-1])
        header[key] = {"dtype": kind, "shape": list(values.shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


def _as_torch(path: pathlib.Path, state: Mapping[str, np.ndarray]) -> bytes:
    try:
        import torch
    except ImportError:
        raise UserError(f"{path}: torch writes such files: pip install torch; or name one that ends in .safetensors") from None
    # By way of memory: torch's own writer says what a disk refuses in an error of its own kind.
    content = io.BytesIO()
    torch.save({key: torch.tensor(values) for key, values in state.items()}, content)
    return content.getvalue()


def _from_torch(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Arrays by key, floats as float64."""
    # What is told to be typed must not do another thing where a file is called so that a shell or Python would run its name.
    name = path.name if re.fullmatch(r"[\w.,+ -]+", path.name) else f"FILE{path.suffix}"
    stem = name.removesuffix(path.suffix)
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{path}: torch reads such files: pip install torch; or convert it where torch and safetensors are:"
            ' python -c "import torch, safetensors.torch as s;'
            f" d = torch.load('{name}', map_location='cpu', weights_only=True);"
            " d = d.get('state_dict', d.get('model', d));"
            f" s.save_file({{k: v.clone().contiguous() for k, v in d.items()}}, '{stem}.safetensors')\""
        ) from None
    # Before 2.6 a crafted file could run code in spite of weights_only (CVE-2025-32434).
    if tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2]) < (2, 6):
        raise UserError(f"{path}: torch {torch.__version__} does not read such files safely; install torch 2.6 or later, or convert it to .safetensors")
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of a dozen types: what a damaged pickle raises depends on where the damage is
        raise UserError(
            f"{path}: torch does not load it with weights_only=True: it is damaged, or holds more than tensors, such as"
            " a whole pickled module, which could run anything; if you trust it, turn it into a state dict where its"
            f" code is installed: python -c \"import torch;"
            f" m = torch.load('{name}', map_location='cpu', weights_only=False);"
            f" torch.save(getattr(m, 'state_dict', lambda: m['state_dict'])(), '{stem}.state.pt')\""
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(stored, Mapping) and isinstance(stored.get(key), Mapping):
            stored = stored[key]
    if not isinstance(stored, Mapping):
        raise UserError(f"{path}: holds a {type(stored).__name__}, not a state dict; save the module's state_dict()")
    arrays = {}
    for key, value in stored.items():
        if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.is_quantized:
            raise UserError(f"{path}: {key}: not a plain tensor; save the module's state_dict() alone")
        value = value.detach()
        arrays[str(key)] = (value.double() if value.is_floating_point() else value).numpy()
    return arrays


# ---------------------------------------------------------------------------------------------------------------- names

_STEM_KEY = "features.conv0.weight"
_UNUSED = ("num_batches_tracked", "op_threshs")
_OLD_LAYER = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")


def _plain_names(path: pathlib.Path, found: Mapping[str, np.ndarray], classifier: bool) -> dict[str, str]:
    """torchvision's name -> the file's key, of every array that is wanted."""
    stems = [key for key in found if key == _STEM_KEY or key.endswith("." + _STEM_KEY)]
    if len(stems) != 1:
        found_so = len(stems) or "no"
        raise UserError(f"{path}: {found_so} keys end in {_STEM_KEY}; a DenseNet's state dict has one such key")
    prefix = stems[0].removesuffix(_STEM_KEY)
    keys: dict[str, str] = {}
    for key in found:
        if key.rsplit(".", 1)[-1] in _UNUSED:
            continue
        name = key.removeprefix(prefix) if key.startswith(prefix) else key
        if name.startswith("classifier.") and not classifier:
            continue
        name = _OLD_LAYER.sub(r"\1\2", name)
        name = re.sub(r"^classifier\.0\.", "classifier.", name)
        if name in keys:
            raise UserError(f"{path}: {key}: stands for the same array as {keys[name]}; remove one of them")
        keys[name] = key
    return keys


class _Size(NamedTuple):
    channels: int  # of the stem's input
    stem: int
    growth: int
    bottleneck: int
    blocks: tuple[int, ...]


def _size(path: pathlib.Path, keys: Mapping[str, str], found: Mapping[str, np.ndarray]) -> _Size:
    """What a few shapes and the names of layers say of the network; `_checked` sees to the rest."""

    def kernel(name):
        if name not in keys:
            raise UserError(f"{path}: {name}: missing; a DenseNet's state dict has it")
        shape = found[keys[name]].shape
        if len(shape) != 4 or 0 in shape:
            raise UserError(f"{path}: {keys[name]}: of shape {list(shape)}, not a convolution's kernel")
        return shape

    stem, channels = kernel(_STEM_KEY)[:2]
    inner = kernel("features.denseblock1.denselayer1.conv1.weight")[0]
    growth = kernel("features.denseblock1.denselayer1.conv2.weight")[0]
    if channels not in (1, 3):
        raise UserError(f"{path}: {keys[_STEM_KEY]}: reads {channels} channels; gray (1) or colour (3) can be read")
    if inner % growth:
        key = keys["features.denseblock1.denselayer1.conv1.weight"]
        raise UserError(f"{path}: {key}: makes {inner} maps, which is no multiple of the growth, {growth}")
    layers: dict[str, set[str]] = {}
    for name in keys:
        if match := re.match(r"features\.denseblock(\d+)\.denselayer(\d+)\.", name):
            layers.setdefault(match[1], set()).add(match[2])
    # Counts, not the largest number, which a file could set to anything. A gap in the numbers shows as a missing key.
    blocks = tuple(len(layers.get(str(i + 1), ())) for i in range(len(layers)))
    return _Size(channels, stem, growth, inner // growth, blocks)


def _shapes(size: _Size) -> dict[str, tuple[int, ...]]:
    """The shape of every array of a DenseNet of that size, but the classifier's, by torchvision's names."""
    shapes: dict[str, tuple[int, ...]] = {}

    def convolution(name, out, into, width):
        shapes[f"{name}.weight"] = (out, into, width, width)

    def norm(name, channels):
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{part}"] = (channels,)

    convolution("features.conv0", size.stem, size.channels, 7)
    norm("features.norm0", size.stem)
    channels, inner = size.stem, size.bottleneck * size.growth
    for i, layers in enumerate(size.blocks, 1):
        for j in range(1, layers + 1):
            name = f"features.denseblock{i}.denselayer{j}"
            norm(f"{name}.norm1", channels)
            convolution(f"{name}.conv1", inner, channels, 1)
            norm(f"{name}.norm2", inner)
            convolution(f"{name}.conv2", size.growth, inner, 3)
            channels += size.growth
        if i < len(size.blocks):
            norm(f"features.transition{i}.norm", channels)
            convolution(f"features.transition{i}.conv", channels // 2, channels, 1)
            channels //= 2
    norm("features.norm5", channels)  # so called whatever the number of blocks
    return shapes


def _checked(
    path: pathlib.Path, keys: Mapping[str, str], found: Mapping[str, np.ndarray], size: _Size, classifier: bool
) -> dict[str, np.ndarray]:
    """The arrays of a DenseNet of that size, float64, by torchvision's names."""
    shapes = _shapes(size)
    if classifier:
        bias = found[keys["classifier.bias"]] if "classifier.bias" in keys else np.zeros(0)
        outputs, features = max(bias.size, 1), shapes["features.norm5.weight"][0]
        shapes |= {"classifier.bias": (outputs,), "classifier.weight": (outputs, features)}
    told = f"a DenseNet of growth {size.growth} with {', '.join(map(str, size.blocks))} layers"
    for name in shapes:
        if name not in keys:
            raise UserError(f"{path}: {name}: missing; {told} has it")
    for name, key in keys.items():
        if name not in shapes:
            raise UserError(f"{path}: {key}: left over; {told} has no place for it")
        if found[key].shape != shapes[name]:
            raise UserError(f"{path}: {key}: of shape {list(found[key].shape)}; {told} has {list(shapes[name])}")
    weights = {name: found[keys[name]].astype(np.float64) for name in shapes}
    for name, values in weights.items():
        if not (np.abs(values) <= np.finfo(np.float32).max).all():
            raise UserError(f"{path}: {keys[name]}: holds NaN, or numbers beyond float32; take other weights")
        if name.endswith(".running_var") and (values < 0).any():
            raise UserError(f"{path}: {keys[name]}: holds a negative variance; the file is damaged")
    return weights


# -------------------------------------------------------------------------------------------------------------- network


class _Norm(NamedTuple):
    """A batch normalisation in torch's terms, float64 [c] each."""

    scale: np.ndarray
    offset: np.ndarray
    mean: np.ndarray
    variance: np.ndarray


def _scale_and_offset(norm: _Norm, mean: np.ndarray, variance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What makes of maps normalised by [mean, variance] what `norm` makes of the maps."""
    deviation = np.sqrt(norm.variance + EPSILON)
    scale = norm.scale * np.sqrt(variance[: len(norm.mean)] + EPSILON) / deviation
    return scale, norm.offset + norm.scale * (mean[: len(norm.mean)] - norm.mean) / deviation


def _first_read(norms: Sequence[_Norm], part: str) -> np.ndarray:
    """`part` of each map of a block, as its first reader has it. Each reads what those before read, and more."""
    values = [getattr(norm, part) for norm in norms]
    return np.concatenate([new[len(old) :] for old, new in zip([(), *values], values)])


def _feeding(inputs: str, channels: int) -> np.ndarray:
    """(s_c, l_c) of every channel, [2, channels]: a network so fed sees s_c x + l_c."""
    if inputs == "imagenet":
        deviation = np.array(IMAGENET_DEVIATION)
        return np.stack([0.5 / deviation, (0.5 - np.array(IMAGENET_MEAN)) / deviation])
    return np.stack([np.full(channels, 1024.0 if inputs == "xrv" else 1.0), np.zeros(channels)])


def _stem_kernels(weight: np.ndarray, inputs: str) -> tuple[np.ndarray, np.ndarray | None]:
    """(kernel, constant), [7, 7, 1, out] each, from torch's [out, channels, 7, 7]; None where there is no constant."""
    kernel, constant = np.einsum("kc,ochw->khwo", _feeding(inputs, weight.shape[1]), weight)[..., None, :]
    return kernel, constant if inputs == "imagenet" else None


def _stem_weight(stem: Stem, inputs: str) -> np.ndarray:
    """Torch's [out, channels, 7, 7], float64, from our kernel and constant: what `_stem_kernels` makes them of."""
    kernel = np.asarray(stem.kernel[...], np.float64)[:, :, 0]
    if inputs == "gray":
        if stem.constant is not None:
            raise UserError(
                "inputs='gray': this network was read from weights that are fed as ImageNet's pictures are, and one channel"
                " cannot stand for the level that they see; export it with inputs='imagenet'"
            )
        return kernel.transpose(2, 0, 1)[:, None]
    constant = np.zeros_like(kernel) if stem.constant is None else np.asarray(stem.constant[...], np.float64)[:, :, 0]
    # Two equations for three channels: of all that solve them, the pseudo-inverse gives the smallest, which rounds best.
    return np.einsum("ck,khwo->ochw", np.linalg.pinv(_feeding(inputs, 3)), np.stack([kernel, constant]))


def _network(model: Mapping, heads: Mapping[str, int], inputs: str, weights: Mapping[str, np.ndarray]) -> DenseNet:
    network = nnx.eval_shape(lambda: DenseNet(heads, **model, rngs=nnx.Rngs(0)))

    def put(variable, values):
        if variable.shape != values.shape:
            raise AssertionError(f"{values.shape} into {variable.shape}")
        variable.set_value(jnp.asarray(values.astype(np.float32)))

    def norm(name):
        return _Norm(*(weights[f"{name}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")))

    def put_norms(norms, readers, statistics):
        mean, variance = _first_read(norms, "mean"), _first_read(norms, "variance")
        put(statistics.mean, mean)
        put(statistics.variance, variance)
        for own, reader in zip(norms, readers, strict=True):
            scale, offset = _scale_and_offset(own, mean, variance)
            put(reader.scale, scale)
            put(reader.offset, offset)

    def mixing(name):
        return weights[f"{name}.weight"][:, :, 0, 0].T

    kernel, constant = _stem_kernels(weights[_STEM_KEY], inputs)
    if constant is not None:
        put(network.stem.constant, constant)
    put(network.stem.kernel, kernel)
    put_norms([norm("features.norm0")], [network.stem.reader], network.stem.statistics)
    # The last normalisation reads the last block as a transition would.
    after = [(f"features.transition{i}.norm", each.reader) for i, each in enumerate(network.transitions, 1)]
    after.append(("features.norm5", network.reader))
    for i, (block, (name_after, reader_after)) in enumerate(zip(network.blocks, after, strict=True), 1):
        names = [f"features.denseblock{i}.denselayer{j}" for j in range(1, len(block.layers) + 1)]
        for name, layer in zip(names, block.layers):
            put(layer.squeeze, mixing(f"{name}.conv1"))
            put_norms([norm(f"{name}.norm2")], [layer.inner_reader], layer.inner_statistics)
            put(layer.kernel, weights[f"{name}.conv2.weight"].transpose(2, 3, 1, 0))
        norms = [*(norm(f"{name}.norm1") for name in names), norm(name_after)]
        put_norms(norms, [*(layer.reader for layer in block.layers), reader_after], block.statistics)
    for i, transition in enumerate(network.transitions, 1):
        put(transition.squeeze, mixing(f"features.transition{i}.conv"))
    for head in network.heads.values():
        put(head.kernel, weights["classifier.weight"].T)
        put(head.bias, weights["classifier.bias"])
    return network
