"""Maps of some images: those of `saliency`, one after another; one a patient; and what they change by."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cxr_jax import mesh as meshes
from cxr_jax.mechanism import curves, maps, saliency
from cxr_jax.models import densenet
from cxr_jax.tables import Target
from cxr_jax.training import inference
from tests.phantoms import small_config

WIDTH = densenet.from_config(small_config("").model, {}, 0).features
SETTINGS = types.SimpleNamespace(methods=("grad_cam", "integrated_gradients"), steps=2, box=128, stride=64, cell=64, shares=2, batch_size=4)


@pytest.fixture(scope="module")
def network(phantom_dir):
    graphdef, params, stats = nnx.split(densenet.from_config(small_config(phantom_dir).model, {}, 0), nnx.Param, nnx.BatchStat)
    mesh = meshes.data_mesh()
    return inference.Forward.of(graphdef, {}, 32, mesh), *meshes.replicate(mesh, (params, stats))


def readers(width, rng):
    targets = {"race": Target("multiclass", ("a", "b", "c")), "sex": Target("multiclass", ("F", "M")), "findings": Target("multilabel", ("x", "y"))}
    linear = {k: (rng.normal(size=(width, len(t.classes))).astype(np.float32), rng.normal(size=len(t.classes)).astype(np.float32)) for k, t in targets.items()}
    return curves.Readers(targets, linear, ())


def test_what_is_asked_is_told_against_the_others():
    found = maps.logits(readers(4, np.random.default_rng(0)), ("y",))
    assert [(one.target, one.name) for one in found] == [("race", "a"), ("race", "b"), ("race", "c"), ("sex", "F"), ("findings", "y")]
    kernel, bias = readers(4, np.random.default_rng(0)).linear["race"]
    np.testing.assert_allclose(found[1].weights, kernel[:, 1] - (kernel[:, 0] + kernel[:, 2]) / 2, rtol=1e-6)
    assert found[1].bias == pytest.approx(bias[1] - (bias[0] + bias[2]) / 2)


def test_maps_are_saliencys_and_change_with_the_network(network):
    rng = np.random.default_rng(0)
    (asked,) = maps.logits(readers(WIDTH, rng), ("x",))[-1:]
    asked = asked._replace(weights=np.abs(asked.weights))  # or no image need have a Grad-CAM
    smooth = jax.image.resize(jnp.asarray(rng.random((11, 8, 8, 1)), jnp.float32), (11, 256, 256, 1), "linear")
    images = np.asarray(smooth * 255).astype(np.uint8)
    group = np.array([0, 1, 0, 1, 0, 1, 0, -1, 1, 0, 0])
    other = jax.tree.map(lambda x: jnp.flip(x), network[1])
    anew = {("findings", "x"): (asked.weights[::-1].copy(), 0.0)}
    told = []
    found, frame = maps.look(network, [asked], images, group, ("g", "h"), SETTINGS, 0, (other, network[2]), anew, told.append)
    assert sum(told) == 11 and set(found) == {("findings", "x", m) for m in SETTINGS.methods} and frame.shape == (2, 64, 64)
    forward, params, stats = jax.device_get(network[0].graphdef), *jax.device_get(network[1:])
    alone = saliency.of_reading(forward, params, stats, 32, jnp.asarray(asked.weights), jnp.float32(asked.bias))
    for method, looked in ((place[2], one) for place, one in found.items()):
        assert looked.noise.shape == (11,) and looked.curves.shape == (3, 11, 3) and (looked.incompleteness is not None) == (method == "integrated_gradients")
        x = jnp.asarray(images, jnp.float32)
        whole = {
            "grad_cam": lambda: saliency.grad_cam(alone, x), "occlusion": lambda: saliency.occlusion(alone.logits, x, 128, 64),
            "integrated_gradients": lambda: saliency.integrated_gradients(alone.logits, x, 2),
        }[method]()  # fmt: skip
        _, moved = saliency.aligned(x, whole)
        shares = np.asarray(saliency.shares(moved), np.float64)
        in_frame = shares.reshape(11, 64, 4, 64, 4).mean((2, 4)) * 16
        for g in (0, 1):
            mine = in_frame[(group == g) & ~np.isnan(shares).any((1, 2))]
            assert looked.patients[g] == len(mine)
            np.testing.assert_allclose(looked.mean[g], mine.mean(0), atol=1e-4 * np.abs(mine).max())
        known = ~np.isnan(looked.noise)
        assert (looked.noise[known] > 0.9).mean() > 0.8
        for control, most in ((looked.randomised, 0.8), (looked.shuffled, 1.0)):
            both = known & ~np.isnan(control)  # a Grad-CAM may be 0 all over
            assert (both.any() or method == "grad_cam") and (not both.any() or control[both].mean() < most * looked.noise[both].mean())
        np.testing.assert_allclose(looked.curves[0, :, 0], np.asarray(alone.logits(x)), atol=1e-4)


