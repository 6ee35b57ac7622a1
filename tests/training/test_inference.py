"""Features of the frozen network: of trained and untrained ones, by depth, from any batch on."""

import jax
import numpy as np
import pytest
from flax import nnx

from cxr_jax import mesh as meshes
from cxr_jax.data import augment, pipeline
from cxr_jax.models import densenet
from cxr_jax.training import inference
from tests.phantoms import small_config


@pytest.fixture(scope="module")
def source(phantom):
    dataset, cohort = phantom
    return pipeline.Source(dataset, cohort.table, "test", host_cache_gib=1.0, block_images=1024)


@pytest.fixture(scope="module")
def untrained(phantom_dir, source):
    config = small_config(phantom_dir)
    return inference.untrained(config.model, {}, 32, 0, source, 8, meshes.data_mesh())


def test_walk_gives_every_image_once_from_any_batch_on(untrained, source):
    forward, params, stats = untrained
    whole = list(inference.walk(lambda images: forward.run(params, stats, images), source, 8, forward.mesh))
    rows = np.concatenate([rows for rows, _ in whole])
    np.testing.assert_array_equal(rows, source.index)
    rest = list(inference.walk(lambda images: forward.run(params, stats, images), source, 8, forward.mesh, start=2))
    assert len(rest) == len(whole) - 2
    for (a, seen), (b, again) in zip(whole[2:], rest, strict=True):
        np.testing.assert_array_equal(a, b)
        jax.tree.map(np.testing.assert_array_equal, seen, again)


def test_maps_by_depth_are_those_of_the_network(untrained, source):
    forward, params, stats = untrained
    _, seen = next(inference.walk(lambda images: forward.run(params, stats, images), source, 8, forward.mesh))
    config = small_config("")
    graphdef, *_ = nnx.split(densenet.from_config(config.model, {}, 0), nnx.Param, nnx.BatchStat)
    images = next(source.ordered(8))["image"]
    params, stats = jax.device_get((params, stats))
    out = nnx.merge(graphdef, params, stats)(augment.to_model_input(images, 32), train=False, pooled_blocks=True)
    assert len(seen.blocks) == 3  # the stem and two blocks
    for ours, theirs in zip((seen.features, *seen.blocks), (out.features, *out.blocks), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_an_untrained_network_has_settled_statistics(untrained, source):
    """Its last maps before the heads are neither blown up nor all alike, and another start is another network."""
    forward, params, stats = untrained
    run = lambda images: forward.run(params, stats, images).blocks[-1]  # noqa: E731
    maps = np.concatenate([maps for _, maps in inference.walk(run, source, 8, forward.mesh)])
    running = stats["blocks"][1]["statistics"]["mean"][...]
    # What the running mean says is what the images have, on average.
    np.testing.assert_allclose(maps.mean(axis=0), running, atol=0.1 * np.abs(maps).max())
    assert (maps.std(axis=0) > 0).mean() > 0.9


def test_histogram_is_numpys(source):
    images = next(source.ordered(8))["image"]
    found = inference.histogram(meshes.data_mesh())(images)
    for image, shares in zip(images, np.asarray(found), strict=True):
        counts, _ = np.histogram(image, bins=inference.HISTOGRAM_BINS, range=(0, 256))
        np.testing.assert_allclose(shares, counts / image.size, rtol=1e-6)
