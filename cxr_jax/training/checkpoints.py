"""Checkpoints on disk: the only home of Orbax.

    checkpoints/model.json    what the network is, so that a checkpoint can be read without the config that made it
    checkpoints/last/STEP/    the last K states, from which a run carries on
    checkpoints/best/STEP/    the state with the best validation score

Orbax writes under a temporary name and renames, so a step that can be seen is whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import functools
import logging
import os
import pathlib
import shutil
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from cxr_jax import mesh as meshes, processes, tables
from cxr_jax.tables import Target, UserError


@dataclasses.dataclass(frozen=True)
class ModelDescription:
    """What a checkpoint must say of its network.

    model: densenet.FIELDS of config.model. targets: its heads. image_size: pixels a side that it was trained on. shown: config.train.shown, of images.
    """

    model: Mapping
    targets: Mapping[str, Target]
    image_size: int
    shown: Sequence = ()

    def as_json(self) -> dict:
        model = {k: list(v) if isinstance(v, (tuple, list)) else v for k, v in self.model.items()}
        return {"model": model, "targets": tables.targets_as_json(self.targets), "image_size": self.image_size, "shown": list(self.shown)}

    @classmethod
    def read(cls, folder: os.PathLike | str) -> "ModelDescription":
        """Raises UserError where `folder` holds no checkpoints of ours."""
        path = pathlib.Path(folder) / "model.json"
        if not path.exists():
            raise UserError(f"{folder}: holds no checkpoint of ours (no model.json); train first, or name a run's folder")
        stored = tables.read_json(path)
        try:
            # What was written before a stem could have a constant had none, and before images could be changed saw them whole.
            return cls({"stem_constant": False, **stored["model"]}, tables.targets_from_json(stored["targets"]), stored["image_size"], stored.get("shown", []))
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: lacks {error}; it was not written by this version of cxr_jax") from None


class Checkpoints:
    """The checkpoints of one run, written in the background. Use as a context, so that the last write is awaited.

    Raises UserError where `folder` already holds checkpoints of another network.
    """

    def __init__(self, folder: os.PathLike | str, description: ModelDescription, keep: int):
        self.folder = pathlib.Path(folder).resolve()
        described = self.folder / "model.json"
        # Asked of the first process: another one may come here when it has written already.
        if processes.agreed(described.exists()):
            before, now = ModelDescription.read(self.folder).as_json(), description.as_json()
            differing = [part for part in now if before[part] != now[part]]
            if differing:
                part = differing[0]
                raise UserError(
                    f"{self.folder}: a checkpoint of another model ({part} is {before[part]} there, {now[part]} here);"
                    " give this run a workdir of its own"
                )
        elif processes.first():
            tables.write_json(described, description.as_json())
        self._managers = {name: _manager(self.folder / name, keep_last) for name, keep_last in (("last", keep), ("best", 1))}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with _explained(self.folder):
            for manager in self._managers.values():
                manager.close()  # which waits for what is being written

    def save(self, which: str, step: int, state) -> None:
        """Queues `state` (a tree of arrays) as `last` or `best`. A step that is already there is left as it is.

        The arrays may be donated as soon as this returns. Raises UserError where the disk is full.
        """
        manager = self._managers[which]
        if step in manager.all_steps():
            return
        # On CPU, Orbax's host copy can share memory with the device array, which the next step overwrites by donation.
        state = jax.tree.map(jnp.copy, state)
        with _explained(self.folder):
            if processes.count() > 1:  # whose barriers Orbax knows by names that both managers would use
                self.wait()
            manager.save(step, args=ocp.args.StandardSave(state), force=True)

    def restore_last(self, like):
        """The newest whole state, shaped and sharded as `like` (arrays or ShapeDtypeStructs); None where none was saved.

        Where the newest cannot be read (a disk that lost part of it), it is set aside as `unreadable/STEP` with a
        warning, and the one before it is taken. Raises UserError, and changes nothing, where none can be read.
        """
        manager = self._managers["last"]
        like = _abstract(like)
        unreadable: dict[int, Exception] = {}
        # The first process says which there are: another one may have an older list of the folder.
        for step in processes.agreed(sorted(manager.all_steps(), reverse=True)):
            failed = None
            try:
                _look_for(manager, step)
                state = manager.restore(step, args=ocp.args.StandardRestore(like))
            except Exception as error:  # Orbax and TensorStore raise many kinds, none of them their own
                failed = error
            if not bool(meshes.anybody(meshes.data_mesh(), failed is not None)):
                break
            unreadable[step] = failed or RuntimeError("another process could not read it")
        else:
            if not unreadable:
                return None
            step, error = next(iter(unreadable.items()))
            raise UserError(
                f"{self.folder / 'last'}: none of {len(unreadable)} checkpoints can be read (step {step}: {_first_line(error)});"
                f" to train anew, remove {self.folder}"
            )
        for step, error in unreadable.items() if processes.first() else ():
            logging.getLogger(__name__).warning(
                "%s: cannot be read (%s) and is set aside; going back to the one before", self.folder / "last" / str(step), _first_line(error)
            )
            aside = self.folder / "unreadable"
            aside.mkdir(exist_ok=True)
            shutil.rmtree(aside / str(step), ignore_errors=True)
            (self.folder / "last" / str(step)).rename(aside / str(step))
        processes.agreed()  # nobody looks there before that is done
        if unreadable:
            manager.reload()
        return state

    def wait(self) -> None:
        """Returns when all that was queued is on disk. Raises UserError where the disk is full."""
        with _explained(self.folder):
            for manager in self._managers.values():
                manager.wait_until_finished()


def has_state(folder: os.PathLike | str) -> bool:
    """Whether there is a state to go on from. To be asked by all processes, which hear the same."""
    return processes.agreed(any(path.name.isdigit() for path in (pathlib.Path(folder) / "last").glob("*")))


def identity(folder: os.PathLike | str, which: str) -> str:
    """Says which state `restore` would give: its step, and when it was written. To be asked by all processes. Raises UserError where there is none."""
    if not processes.first():
        return processes.agreed()
    steps = [path for path in (pathlib.Path(folder) / which).glob("*") if path.name.isdigit()]
    if not steps:
        raise UserError(f"{folder}: holds no {which!r} checkpoint; train first, or name a run's folder")
    newest = max(steps, key=lambda path: int(path.name))
    written = datetime.datetime.fromtimestamp(newest.stat().st_mtime, datetime.timezone.utc)
    return processes.agreed(f"{which} checkpoint, step {newest.name}, of {written.isoformat(timespec='seconds')}")


def restore(folder: os.PathLike | str, which: str, like):
    """The parts that `like` has of the `best` or `last` state below `folder`, shaped and sharded as they are there.

    like: a dict by the state's fields. Raises UserError where there is no state, or where it does not fit.
    """
    place = pathlib.Path(folder).resolve() / which
    if not place.is_dir():
        raise UserError(f"{folder}: holds no {which!r} checkpoint; train first, or name a run's folder")
    manager = _manager(place, 1, read_only=True)
    try:
        step = processes.agreed(manager.latest_step())
        if step is None:
            raise UserError(f"{folder}: holds no {which!r} checkpoint; train first, or name a run's folder")
        try:
            _look_for(manager, step)
            like = _abstract(like)
            how = ocp.checkpoint_utils.construct_restore_args(like)
            return manager.restore(step, args=ocp.args.PyTreeRestore(like, restore_args=how, partial_restore=True))
        except Exception as error:
            raise UserError(f"{place / str(step)}: cannot be read, or is of another model ({_first_line(error)})") from error
    finally:
        manager.close()


def _look_for(manager: ocp.CheckpointManager, step: int) -> None:
    """Waits until a step that the first process sees is seen here, too: file systems that are shared show new folders late."""
    until = time.monotonic() + 60
    while step not in manager.all_steps() and time.monotonic() < until:
        time.sleep(1)
        manager.reload()


@functools.cache  # once a process, however many runs it makes
def leave_errors_to_us() -> None:
    """Keeps from the terminal what Orbax and TensorStore say of a failure beside raising it; for a program, not a library.

    With the first part of a checkpoint that fails, Orbax closes its event loop. The other parts, hundreds, then each have
    a traceback of their own: of a callback that finds the loop closed, a future or a coroutine that nobody waited for.
    """
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    before = sys.unraisablehook

    def hook(unraisable) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = hook


def _manager(folder: pathlib.Path, keep: int, read_only: bool = False) -> ocp.CheckpointManager:
    if read_only:
        options = ocp.CheckpointManagerOptions(read_only=True, create=False)
    else:
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, cleanup_tmp_directories=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return ocp.CheckpointManager(folder, options=options)


def _abstract(like):
    """Shapes, types and shardings alone, so that what is restored into need not be held beside what is restored."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


@contextlib.contextmanager
def _explained(folder: pathlib.Path) -> Iterator[None]:
    """Turns a full disk, whichever library met it first, into a UserError; lets every other error through."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        told = f"{error} {error.__cause__ or ''} {error.__context__ or ''}"
        if "No space left" in told or "ENOSPC" in told or getattr(error, "errno", None) == errno.ENOSPC:
            raise UserError(f"{folder}: no space left on the disk; free some and run the same command again") from error
        raise
