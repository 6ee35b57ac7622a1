"""The device mesh, what XLA is told for it, and the way of arrays between host and devices.

One axis, `AXIS`: a batch is split over it, parameters are copied to every device.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import pathlib
import re
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cxr_jax.tables import UserError


AXIS = "data"


def data_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh of one axis, `data`, over `devices` (all of them by default)."""
    devices = jax.devices() if devices is None else devices
    # Auto, since under Explicit (the default) gathers on a sharded axis raise instead of being partitioned.
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharded(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(AXIS))


_COLLECTIVE = re.compile(r"= (\S+|\(.*?\)) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-\w+)(?:-start)?\(")
_ARRAY = re.compile(r"(\w+?)(\d+)\[([\d,]*)\]")


def collectives(compiled: str) -> list[tuple[str, int]]:
    """(kind, bytes of its result on a device) of everything that goes between devices in a compiled program's text."""
    found = []
    for shapes, kind in _COLLECTIVE.findall(compiled):
        sizes = [int(bits) * math.prod(map(int, filter(None, shape.split(",")))) for _, bits, shape in _ARRAY.findall(shapes)]
        found.append((kind, sum(sizes) // 8))
    return found


def check_batch(size: int, mesh: Mesh, field: str, parts: int = 1) -> None:
    """Raises UserError where a batch cannot be split evenly over the mesh, and on each device into so many parts."""
    if size % (mesh.size * parts):
        in_parts = f", and on each of them in {parts} parts (train.accumulate)" if parts > 1 else ""
        raise UserError(f"config.{field}={size}: not a multiple of the {mesh.size} devices that share a batch{in_parts}")


def on_cpu(mesh: Mesh) -> bool:
    return mesh.devices.flat[0].platform == "cpu"


@functools.cache
def compiler_options(mesh: Mesh) -> dict[str, str] | None:
    """What XLA is told when it compiles the network, as `jax.jit` takes it. The one place for it.

    On CPU, XLA hands products, convolutions and sums to a library (YNNPACK) that, in jaxlib 0.10.2, runs a convolution on
    one core. Without it for these alone, training on two cores takes 0.8 times as long. Other versions of jaxlib may not know the option: it
    is tried first, and done without.
    """
    if not on_cpu(mesh):
        return None
    kept = ("INDIVIDUAL_DOT", "REDUCE")
    options = {"xla_cpu_experimental_ynn_fusion_type": ",".join(f"LIBRARY_FUSION_TYPE_{kind}" for kind in kept)}
    try:
        jax.jit(lambda x: x, compiler_options=options).lower(np.float32(0)).compile()
    except Exception:  # of which kind depends on the version, too
        return None
    return options


def shard_batch(mesh: Mesh, batch):
    """Puts this process's rows of a global batch (a tree of arrays [local rows, …]) on its devices.

    Returns the tree of global arrays, split over `data`.
    """
    sharding = batch_sharded(mesh)
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, np.asarray(rows)), batch)


def replicate(mesh: Mesh, tree):
    """Copies a tree of arrays to every device of the mesh."""
    return jax.device_put(tree, replicated(mesh))


def to_host(tree):
    """A tree of arrays as numpy arrays, on every process: one over all processes' devices whole, one over a process's own as it has it."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    def whole(x):
        own = not isinstance(x, jax.Array) or x.is_fully_addressable  # which gathering would lay end to end
        return jax.device_get(x) if own else multihost_utils.process_allgather(x, tiled=True)

    return jax.tree.map(whole, tree)


def anybody(mesh: Mesh, here: bool) -> jax.Array | bool:
    """Whether it is so on any process: the same on all of them, as an array that nobody has to wait for yet. To be called by all equally often."""
    if jax.process_count() == 1:
        return here
    devices = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
    return _any(mesh)(shard_batch(mesh, np.full(len(devices), here)))


@functools.cache
def _any(mesh: Mesh):
    return jax.jit(lambda x: x.any(), in_shardings=batch_sharded(mesh), out_shardings=replicated(mesh))


@contextlib.contextmanager
def float64_on_host() -> Iterator[None]:
    """What is computed inside is in float64 and on the host: TPUs have no float64, and of accelerators few have it at speed."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.enable_x64(True))
        with contextlib.suppress(RuntimeError):  # JAX was told to use an accelerator alone; it then has to do
            stack.enter_context(jax.default_device(jax.local_devices(backend="cpu")[0]))
        yield


def describe_devices() -> dict:
    devices = jax.devices()
    return {"platform": devices[0].platform, "kind": devices[0].device_kind, "count": len(devices)}


def keep_compiled_programs() -> None:
    """Keeps compiled programs in the user's cache folder, so that a second start skips compilation.

    $JAX_COMPILATION_CACHE_DIR, where set, names another folder.
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "cxr_jax" / "xla"))
