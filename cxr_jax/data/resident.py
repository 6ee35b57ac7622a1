"""Training images held in accelerator memory as uint8, and taken from there inside the jitted step.

A release fits: 377,110 images of 256×256 are 23 GiB, over all devices together. Images lie in their stored order, cut
into as many shards as there are devices. Per step, row numbers alone go from the host to the devices.

Orders. `shard`: each device shuffles its own images and gives its share of every batch, so that no image moves between
devices. `global`: one permutation of all, the very one that a split held in host memory is visited in; each device then
looks up what it has of the whole batch, and one reduce-scatter brings every image to the device that works on it.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from cxr_jax import mesh as meshes
from cxr_jax.data import order as orders
from cxr_jax.tables import UserError

ORDERS = ("shard", "global")
_GIB, _MIB = 2**30, 2**20
_CHUNK = 1024  # images that go to a device together


@dataclasses.dataclass(frozen=True)
class Resident:
    """One split on the devices of a mesh; gives batches as `data.pipeline.Source` does, rows in the place of images.

    images: uint8 [shards * images of the largest shard, height, width, 1], split over the mesh along the first axis; zeros
        at the end of smaller shards. index: int32 [n], rows of the cohort. order: one of ORDERS. draw: as `data.pipeline.Source` has it.
    """

    images: jax.Array
    index: np.ndarray
    order: str
    mesh: Mesh
    draw: np.ndarray | None = None

    @classmethod
    def fill(cls, source, order: str, mesh: Mesh, memory_share: float) -> "Resident":
        """Reads a split onto the devices.

        source: gives `index`, `image_shape` and, by `read`, the images of runs of rows. memory_share: of each device's
        memory that images may take. Raises UserError, before anything is read, where they would take more.
        """
        starts = orders.shard_starts(len(source.index), mesh.size)
        rows = int(np.diff(starts).max())
        check_fits(len(source.index), rows, source.image_shape, mesh, memory_share)
        here = [(s, device) for s, device in enumerate(mesh.devices.flat) if device.process_index == jax.process_index()]
        runs = [(s, at, min(at + _CHUNK, starts[s + 1])) for s, _ in here for at in range(starts[s], starts[s + 1], _CHUNK)]
        shards = {s: jnp.zeros((rows, *source.image_shape), jnp.uint8, device=device) for s, device in here}
        for (s, start, _), images in zip(runs, source.read([np.arange(a, b) for _, a, b in runs]), strict=True):
            shards[s] = _put(shards[s], images, start - starts[s])
        shape, sharding = (mesh.size * rows, *source.image_shape), meshes.batch_sharded(mesh)
        images = jax.make_array_from_single_device_arrays(shape, sharding, [shards[s] for s, _ in here])
        return cls(images, source.index, order, mesh, source.draw)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def on_devices(self) -> tuple[jax.Array]:
        """What the step is handed beside each batch, and takes images from."""
        return (self.images,)

    @property
    def shards(self) -> int:
        """How many there are that an epoch's order depends on."""
        return self.mesh.size if self.order == "shard" else 1

    def steps_per_epoch(self, batch_size: int) -> int:
        """Global batches that visit every image once: the last one may be padded, none is dropped."""
        return -(-len(self) // batch_size)

    def batches(
        self, seed: int, epoch: int, start_step: int, batch_size: int, process_index: int = 0, process_count: int = 1
    ) -> Iterator[dict[str, np.ndarray]]:
        """The batches of one epoch from `start_step` on, each image once, or as `draw` has it; this process's share of each.

        A batch: row int32 [b], where `gather` finds the image, -1 where padded; mask bool [b]; index int32 [b], row of the
        cohort, -1 where padded. A split in host memory gives the same images in the same places for the same order.
        """
        starts, share = orders.shard_starts(len(self), self.mesh.size), batch_size // process_count
        rows = orders.shard_batches(len(self), seed, epoch, batch_size, self.shards, self.draw)
        for step in rows[start_step:, process_index * share : (process_index + 1) * share]:
            shard = np.searchsorted(starts, step, side="right") - 1
            place = step - starts[shard]
            if self.order == "global":
                place = place + shard * (len(self.images) // self.mesh.size)
            mask = step >= 0
            yield {
                "row": np.where(mask, place, -1).astype(np.int32),
                "mask": mask,
                "index": np.where(mask, self.index[step], np.int32(-1)),
            }

    @property
    def gather(self) -> Callable:
        """(the images on a device, its share of `row`) to uint8 [b / devices, height, width, 1]; inside a shard_map."""
        return _gather_global if self.order == "global" else _take

    def told(self, batch_size: int) -> str:
        """What lies where, and what goes between devices, in a sentence."""
        each, all_ = self.images.nbytes / self.mesh.size / _GIB, self.images.nbytes / _GIB
        held = f"{len(self):,} training images on {self.mesh.size} devices, {all_:.2f} GiB, {each:.2f} GiB on each"
        if self.mesh.size == 1:
            return held.replace("1 devices", "1 device").partition(", ")[0] + f", {all_:.2f} GiB"
        if self.order == "shard":
            return f"{held}; each shuffles its own, none goes between them"
        moved = batch_size * np.prod(self.images.shape[1:]) / _MIB
        return f"{held}; shuffled globally, for which a reduce-scatter of {moved:.1f} MiB goes between them every step"


def check_fits(n: int, rows: int, image_shape: tuple[int, ...], mesh: Mesh, memory_share: float) -> None:
    """Raises UserError where `rows` images a device, of `n` in all, take more than that share of a device's memory."""
    needed, has = rows * int(np.prod(image_shape)), min(_memory(device) for device in mesh.local_devices)
    if needed > memory_share * has:
        raise UserError(
            f"config.dataset.cache='device': {n:,} training images take {n * np.prod(image_shape) / _GIB:.2f} GiB, {needed / _GIB:.2f} GiB on"
            f" each of {mesh.size} device{'s' * (mesh.size > 1)}; of its {has / _GIB:.2f} GiB they may take {memory_share:.0%}"
            " (dataset.device_cache_share); take more devices, or dataset.cache='host'"
        )


def _memory(device: jax.Device) -> int:
    """Bytes of a device; of a CPU its share of the machine's."""
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // jax.local_device_count()


@functools.partial(jax.jit, donate_argnums=0)
def _put(images, some, at):
    return jax.lax.dynamic_update_slice_in_dim(images, some, at, 0)


def _take(images, row):
    # Along the first axis alone: of a whole release, positions of single pixels are beyond what int32 can count.
    return jnp.where(_of_rows(row >= 0), jnp.take(images, jnp.maximum(row, 0), axis=0), jnp.uint8(0))


def _gather_global(images, row):
    rows = jax.lax.all_gather(row, meshes.AXIS, tiled=True)
    place = rows - jax.lax.axis_index(meshes.AXIS) * len(images)
    mine = (rows >= 0) & (place >= 0) & (place < len(images))
    return jax.lax.psum_scatter(_take(images, jnp.where(mine, place, -1)), meshes.AXIS, tiled=True)


def _of_rows(mask):
    return mask.reshape(-1, 1, 1, 1)
