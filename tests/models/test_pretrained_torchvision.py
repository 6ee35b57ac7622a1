"""What is written for elsewhere, against torchvision running it in its own class."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cxr_jax.models import pretrained
from tests.models.test_pretrained_torch import PIXELS, run, uneven

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.peers

HEADS = {"race": 4, "disease": 14}  # not as the alphabet has them


def gray_stem(network):
    network.features.conv0 = torch.nn.Conv2d(1, network.features.conv0.out_channels, 7, stride=2, padding=3, bias=False)
    return network


def pictures(inputs, x):
    """What is to be fed, of x in [-1, 1], [n, 1, h, w]."""
    if inputs == "gray":
        return x
    mean, deviation = (np.array(values).reshape(1, 3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return ((x + 1) / 2 - mean) / deviation


@pytest.fixture(scope="module")
def networks(torchvision, tmp_path_factory):
    """By how it was read, gray or imagenet: a DenseNet-121 of ours with statistics off 0 and 1, and two heads."""
    made = {}

    def make(read_as):
        if read_as not in made:
            torch.manual_seed(0)
            source = torchvision.models.densenet121()
            channels = 3 if read_as == "imagenet" else 1
            source = uneven(source if channels == 3 else gray_stem(source), channels)
            path = tmp_path_factory.mktemp("source") / "w.pth"
            torch.save(source.state_dict(), path)
            network = pretrained.read(path, classifier=False, inputs=read_as).network
            rngs = nnx.Rngs(1)
            network.heads = nnx.Dict({name: nnx.Linear(network.features, size, rngs=rngs) for name, size in HEADS.items()})
            made[read_as] = network
        return made[read_as]

    return make


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("read_as, inputs", [("gray", "gray"), ("gray", "imagenet"), ("imagenet", "imagenet")])
def test_densenet121(tmp_path, torchvision, networks, read_as, inputs, suffix):
    network, path = networks(read_as), tmp_path / f"w{suffix}"
    pretrained.write(path, pretrained.state_dict(network, HEADS, inputs=inputs), {"inputs": inputs})
    if suffix == ".pt":
        state = torch.load(path, weights_only=True)
    else:
        arrays, _ = pretrained._from_safetensors(path)
        state = {name: torch.tensor(values) for name, values in arrays.items()}
    theirs = torchvision.models.densenet121(num_classes=18)
    theirs = theirs if inputs == "imagenet" else gray_stem(theirs)
    theirs.load_state_dict(state, strict=True)
    x = np.random.default_rng(0).uniform(-1, 1, size=(3, 1, PIXELS, PIXELS))
    out = run(network, jnp.asarray(x, jnp.float32).reshape(3, PIXELS, PIXELS, 1))
    with torch.no_grad():
        got = theirs.eval()(torch.tensor(pictures(inputs, x), dtype=torch.float32)).numpy()
    wanted = np.concatenate([out.logits[name] for name in HEADS], axis=1)
    assert got.dtype == np.float32 and wanted.std(0).min() > 1e-3  # pictures differ
    assert np.abs(got - wanted).max() <= 1e-4 * np.abs(wanted).max()


@pytest.mark.parametrize("inputs", pretrained.WRITTEN_INPUTS)
def test_names_and_order_are_its_own(torchvision, networks, inputs):
    own = torchvision.models.densenet121(num_classes=18)
    own = (own if inputs == "imagenet" else gray_stem(own)).state_dict()
    state = pretrained.state_dict(networks("gray"), HEADS, inputs=inputs)
    assert [(name, x.shape) for name, x in state.items()] == [(name, tuple(x.shape)) for name, x in own.items()]
