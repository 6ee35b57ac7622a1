"""Training images on the devices: the batches that host memory gives, whatever the order and however many devices."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from configs import base
from cxr_jax import mesh as meshes
from cxr_jax.data import cohorts, pipeline, resident
from cxr_jax.tables import UserError
from tests.data import tiny

PLENTY = 1.0  # of a device's memory


@pytest.fixture(scope="module")
def train(tiny_datasets):
    """(data set, the rows of a training split of 61)"""
    dataset = tiny_datasets("large")
    config = base.get_config().dataset
    config.views = ()
    table = cohorts.select(dataset.keys, dataset.findings, dataset.races, config).table
    return dataset, table.iloc[:61].assign(split="train")


def source_of(train, order="global", mesh=None):
    """The training split in host memory."""
    config = base.get_config().dataset
    config.order = order
    return pipeline.sources(*train, config, mesh)["train"]


def gathered(held, batch):
    """The images of one batch, as the step sees them, put together again."""
    rows = meshes.shard_batch(held.mesh, batch["row"])
    split = PartitionSpec(meshes.AXIS)
    gather = jax.shard_map(held.gather, mesh=held.mesh, in_specs=(split, split), out_specs=split, check_vma=False)
    return np.asarray(jax.jit(gather)(held.images, rows))


@pytest.mark.parametrize("order", resident.ORDERS)
@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_host_and_device_give_the_same_batches_of_the_same_order(train, order, devices):
    mesh = meshes.data_mesh(jax.devices()[:devices])
    held = resident.Resident.fill(source_of(train), order, mesh, PLENTY)
    assert held.images.sharding.is_equivalent_to(meshes.batch_sharded(mesh), 4) and held.images.dtype == np.uint8
    assert len(held) == 61 and held.shards == (devices if order == "shard" else 1)
    host = source_of(train, order, mesh)
    assert host.shards == held.shards and host.steps_per_epoch(16) == held.steps_per_epoch(16)
    for start in (0, 2):  # from the beginning, and as a run that is gone on with
        theirs, ours = list(host.batches(3, 1, start, 16)), list(held.batches(3, 1, start, 16))
        assert len(ours) == len(theirs) == 4 - start
        for a, b in zip(theirs, ours):
            np.testing.assert_array_equal(a["index"], b["index"])
            np.testing.assert_array_equal(a["mask"], b["mask"])
            np.testing.assert_array_equal(a["image"], gathered(held, b))
    visited = np.concatenate([batch["index"][batch["mask"]] for batch in held.batches(3, 1, 0, 16)])
    assert sorted(visited) == sorted(held.index)


def test_processes_take_their_share(train):
    held = resident.Resident.fill(source_of(train), "shard", meshes.data_mesh(), PLENTY)
    whole = list(held.batches(0, 0, 0, 16))
    shares = [list(held.batches(0, 0, 0, 16, process, 2)) for process in range(2)]
    for step, batch in enumerate(whole):
        for name, values in batch.items():
            np.testing.assert_array_equal(values, np.concatenate([share[step][name] for share in shares]))


def test_a_global_order_moves_each_image_once_and_says_so(train):
    """One reduce-scatter of the batch's pixels, and row numbers; a shard's own order moves nothing."""
    for order, wanted in (("shard", []), ("global", ["all-gather", "reduce-scatter"])):
        held = resident.Resident.fill(source_of(train), order, meshes.data_mesh(), PLENTY)
        split = PartitionSpec(meshes.AXIS)
        gather = jax.shard_map(held.gather, mesh=held.mesh, in_specs=(split, split), out_specs=split, check_vma=False)
        compiled = jax.jit(gather).lower(held.images, jax.ShapeDtypeStruct((16,), np.int32)).compile().as_text()
        assert [name for name, _ in meshes.collectives(compiled)] == wanted
        told = held.told(16)
        assert told.startswith("61 training images on 8 devices, 0.00 GiB, 0.00 GiB on each; ")
        assert ("a reduce-scatter of 0.0 MiB goes between them every step" in told) == (order == "global")
    alone = resident.Resident.fill(source_of(train), "shard", meshes.data_mesh(jax.devices()[:1]), PLENTY)
    assert alone.told(16) == "61 training images on 1 device, 0.00 GiB"


def test_what_does_not_fit_is_refused_with_its_size_before_it_is_read():
    def read(runs):
        raise AssertionError("nothing is to be read")

    source = types.SimpleNamespace(index=np.arange(377_110), image_shape=(256, 256, 1), read=read)
    told = r"377,110 training images take 23.02 GiB, 2.88 GiB on each of 8 devices; of its [\d.]+ GiB they may take 1% \(dataset.device_cache_share\)"
    with pytest.raises(UserError, match=told):
        resident.Resident.fill(source, "shard", meshes.data_mesh(), 0.01)


def test_a_split_that_streams_has_no_order_by_shards(train):
    config = base.get_config().dataset
    config.order, config.host_cache_gib = "shard", 1e-6
    with pytest.raises(UserError, match=r"dataset.order='shard': training images take .* GiB, more than dataset.host_cache_gib=1e-06"):
        pipeline.sources(*train, config, meshes.data_mesh())


def test_on_the_device_the_training_split_takes_no_host_memory(train):
    dataset, table = train
    config = base.get_config().dataset
    config.host_cache_gib = 41 * tiny.SIDE**2 / 2**30
    table = table.assign(split=np.where(np.arange(61) < 40, "train", "validation"))
    for cache, cached in (("host", False), ("device", True)):
        config.cache = cache
        given = pipeline.sources(dataset, table, config, meshes.data_mesh())
        assert given["validation"].cached == cached and bool(given["train"].on_devices) == (cache == "device")
    # Who does not train, as when features are extracted, reads batches.
    assert not pipeline.sources(dataset, table, config)["train"].on_devices


@pytest.mark.slow
def test_rows_beyond_two_to_the_31_pixels():
    """A shard of 32,769 images of 256x256 has 65,536 pixels too many for int32 to count; the last rows are what was put there."""
    n, pixels = 2**15 + 1, 256
    source = types.SimpleNamespace(index=np.arange(n), image_shape=(pixels, pixels, 1), draw=None)

    def picture(row):
        return np.full((pixels, pixels, 1), row % 251, np.uint8)

    source.read = lambda runs: (np.stack([picture(row) for row in run]) for run in runs)
    held = resident.Resident.fill(source, "shard", meshes.data_mesh(jax.devices()[:1]), PLENTY)
    assert held.images.size > 2**31
    for rows in ([n - 1, 0, n - 2, -1], [2**14, n - 1, 1, 250]):
        for image, row in zip(gathered(held, {"row": np.array(rows, np.int32)}), rows):
            np.testing.assert_array_equal(image, picture(row) if row >= 0 else np.zeros_like(image))
    assert jnp.all(held.images[-1] == (n - 1) % 251)
