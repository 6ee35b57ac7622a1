"""Scores of changed images: those of the network shown one changed image after another, on any number of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cxr_jax import mesh as meshes
from cxr_jax.data import augment, perturbations, pipeline
from cxr_jax.mechanism import curves
from cxr_jax.models import densenet
from cxr_jax.tables import Target
from cxr_jax.training import inference
from tests.phantoms import small_config

TARGETS = {"race": Target("multiclass", ("a", "b", "c")), "findings": Target("multilabel", ("x", "y"))}


@pytest.fixture(scope="module")
def source(phantom):
    dataset, cohort = phantom
    return pipeline.Source(dataset, cohort.table, "test", host_cache_gib=1.0, block_images=1024)


@pytest.fixture(scope="module")
def labels(phantom):
    rng = np.random.default_rng(0)
    n = len(phantom[1].table)
    findings = rng.integers(0, 2, (n, 2)).astype(np.float32)
    findings[rng.random((n, 2)) < 0.2] = np.nan
    return {"race": rng.integers(-1, 3, n).astype(np.int32), "findings": findings}


def network(phantom_dir, devices):
    config, mesh = small_config(phantom_dir), meshes.data_mesh(jax.devices()[:devices])
    graphdef, params, stats = nnx.split(densenet.from_config(config.model, {}, 0), nnx.Param, nnx.BatchStat)
    return inference.Forward.of(graphdef, {}, 32, mesh), *meshes.replicate(mesh, (params, stats))


@pytest.fixture(scope="module")
def readers(phantom_dir):
    width = densenet.from_config(small_config(phantom_dir).model, {}, 0).features
    rng = np.random.default_rng(1)
    linear = {k: (rng.normal(size=(width, len(t.classes))).astype(np.float32), rng.normal(size=len(t.classes)).astype(np.float32)) for k, t in TARGETS.items()}
    return curves.Readers(TARGETS, linear, ("race",), {"race": (3, 1), "findings": (1, 5)})


def judged(phantom_dir, readers, labels, source, name, strengths, devices=8):
    reference = np.arange(256.0)
    return curves.judge(network(phantom_dir, devices), readers, labels, source, name, strengths, 8, reference, 7)


def by_hand(phantom_dir, readers, images):
    """(probabilities by target, features) of images already changed, without jit, meshes or batches of a source."""
    model = densenet.from_config(small_config(phantom_dir).model, {}, 0)
    features = np.asarray(model(augment.to_model_input(jnp.asarray(images), 32), train=False).features, np.float64)
    z = {k: features @ kernel.astype(np.float64) + bias for k, (kernel, bias) in readers.linear.items()}
    race = np.exp(z["race"] - z["race"].max(axis=1, keepdims=True))
    return {"race": race / race.sum(axis=1, keepdims=True), "findings": 1 / (1 + np.exp(-z["findings"]))}, features


@pytest.mark.parametrize(("name", "strengths"), [("", (0.0,)), ("low_pass", (3.0, 40.0)), ("notch", ((2.0, 5.0),)), ("down_sampled", (16, 64))])
def test_scores_are_those_of_images_changed_by_hand(phantom_dir, readers, labels, source, name, strengths):
    found = judged(phantom_dir, readers, labels, source, name, strengths)
    (images,) = source.read([np.arange(len(source))])
    for s, strength in enumerate(strengths):
        apply = perturbations.PERTURBATIONS[name].apply if name else lambda images, *_: images
        wanted, features = by_hand(phantom_dir, readers, np.asarray(apply(jnp.asarray(images, jnp.float32), strength, None)))
        for target in TARGETS:
            np.testing.assert_allclose(found[target][s], wanted[target], atol=2e-5)
        np.testing.assert_allclose(found[""][s], features[:, [3, 1, 5]], rtol=1e-3, atol=1e-4)


def test_an_attack_lowers_the_chance_of_what_is_so_and_leaves_the_unknown(phantom_dir, readers, labels, source):
    found = judged(phantom_dir, readers, labels, source, "attacked", (0.0, 1.0))
    assert "" not in found
    race, findings = (labels[k][source.index] for k in ("race", "findings"))
    known = race >= 0
    chance = np.take_along_axis(found["race"], np.maximum(race, 0)[None, :, None], axis=2)[..., 0]
    assert (chance[1, known] < chance[0, known]).mean() > 0.9
    assert (~known).any()
    np.testing.assert_array_equal(found["race"][1, ~known], found["race"][0, ~known])
    right = np.where(findings == 1, found["findings"], 1 - found["findings"])
    log = np.nanmean(np.where(np.isnan(findings), np.nan, np.log(right))[:, ~np.isnan(findings).all(axis=1)], axis=2)
    assert (log[1] < log[0]).mean() > 0.9
    plain = judged(phantom_dir, readers, labels, source, "", (0.0,))
    np.testing.assert_allclose(found["race"][0], plain["race"][0], atol=1e-6)


def test_noise_and_scores_do_not_depend_on_devices(phantom_dir, readers, labels, source):
    one, eight = (judged(phantom_dir, readers, labels, source, "noisy", (20.0,), devices) for devices in (1, 8))
    for target in TARGETS:
        np.testing.assert_allclose(one[target], eight[target], atol=2e-5)


def test_gray_levels_are_counted(source):
    (images,) = source.read([np.arange(len(source))])
    np.testing.assert_array_equal(curves.gray_levels(source, 0), np.bincount(images.ravel(), minlength=256))


def test_a_network_that_is_shown_less_sees_what_is_left(phantom_dir, source):
    (images,) = source.read([np.arange(8)])
    config, mesh = small_config(phantom_dir), meshes.data_mesh(jax.devices()[:1])
    graphdef, params, stats = nnx.split(densenet.from_config(config.model, {}, 0), nnx.Param, nnx.BatchStat)
    whole, shown = inference.Forward.of(graphdef, {}, 32, mesh), inference.Forward.of(graphdef, {}, 32, mesh, ["notch", 2.0, 6.0])
    left = perturbations.notch(jnp.asarray(images, jnp.float32), 2.0, 6.0)
    wanted, found = whole.run(params, stats, left).features, shown.run(params, stats, images).features
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert np.abs(found - whole.run(params, stats, images).features).max() > 1e-3
