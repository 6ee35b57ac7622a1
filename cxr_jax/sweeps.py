"""Sweeps: runs that differ in a few named fields, from one file of configs/sweeps/.

Such a file gives `get_base()`, a config as any `get_config` gives it, and `get_diffs()`, {name: {dotted field: value}}, in the
order in which the runs are made; an empty diff is the base itself. A value `sweep:NAME` stands for the folder of the run called NAME, which
comes before: what that trained need not be trained again (`extract.weights`). `--config=configs/sweeps/FILE.py` stands for all of them and
`…/FILE.py:NAME` for one; either way the run called NAME is made in the folder NAME of the sweep's own.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import pathlib
from collections.abc import Callable, Mapping

import ml_collections
from absl import flags

from cxr_jax import experiment
from cxr_jax.tables import UserError


SIBLING = "sweep:"


@dataclasses.dataclass(frozen=True)
class Sweep:
    """source: the file. base: makes what a run begins with. diffs: by a run's name, in order, what is set over it."""

    source: pathlib.Path
    base: Callable[[], ml_collections.ConfigDict]  # made anew for each run: copies of a ConfigDict share their sections
    diffs: Mapping[str, Mapping]

    def configs(self, overrides: Mapping, only: str = "", folder: pathlib.Path = pathlib.Path()) -> dict[str, ml_collections.ConfigDict]:
        """The validated config of every run, by name; or of one run alone. folder: of the sweep, that the runs' are in.

        overrides: {dotted field: value} from the command line, for every run. Raises UserError for any run's mistake, whichever is
        asked for: a sweep is told to be wrong before its first run, not after hours.
        """
        if only and only not in self.diffs:
            raise UserError(f"{self.source}: no run {only!r}; known: {', '.join(self.diffs)}")
        made = {}
        for name, diff in self.diffs.items():
            both = sorted(diff.keys() & overrides.keys())
            if both:
                raise UserError(f"--config.{both[0]}: the sweep itself sets it, in {name!r}; give a run of your own another config")
            config = self.base()
            try:
                experiment.apply_diff(config, {**{field: self._placed(value, made, folder) for field, value in diff.items()}, **overrides})
                experiment.validate(config)
            except (UserError, TypeError, ValueError) as error:
                raise UserError(f"{self.source}: in {name!r}: {str(error).splitlines()[0]}") from error
            made[name] = config.lock()
        return {only: made[only]} if only else made

    def _placed(self, value, before: Mapping, folder: pathlib.Path):
        """A field's value, with the folder in the place of a run's name."""
        if not isinstance(value, str) or not value.startswith(SIBLING):
            return value
        name = value.removeprefix(SIBLING)
        if name not in before:
            raise UserError(f"{value!r} is to be a run of this sweep that comes before; there are {', '.join(before) or 'none'}")
        return str(folder / name)

    def record(self, name: str) -> dict:
        """What run.json says of a run's sweep, so that the runs can be put in order again: the base first, if it is among them."""
        order = sorted(self.diffs, key=lambda one: bool(self.diffs[one]))
        return {"name": self.source.stem, "run": name, "runs": order}


def is_sweep(path: str) -> bool:
    """Whether what `--config` names, with or without a colon and what follows, lies in a folder called sweeps."""
    return pathlib.Path(path.partition(":")[0]).parent.name == "sweeps"


def read(path: str) -> Sweep:
    """The sweep of a file. Raises UserError for one that is missing, or lacks a function, or whose runs cannot be folders."""
    source = pathlib.Path(path.partition(":")[0])
    if not source.is_file():
        raise UserError(f"{source}: no such sweep")
    spec = importlib.util.spec_from_file_location(f"sweep_{source.stem}", source)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("get_base", "get_diffs"):
        if not hasattr(module, name):
            raise UserError(f"{source}: no {name}(); a sweep gives get_base() and get_diffs()")
    diffs = module.get_diffs()
    if not isinstance(diffs, Mapping) or not diffs or not all(isinstance(diff, Mapping) for diff in diffs.values()):
        raise UserError(f"{source}: get_diffs() must give {{name: {{dotted field: value}}}}, at least one")
    for name in diffs:
        if not isinstance(name, str) or not name or name.startswith(".") or set(name) & set("/\\:"):
            raise UserError(f"{source}: {name!r} is to name a run and its folder; it cannot")
    return Sweep(source, module.get_base, diffs)


class Parser(flags.ArgumentParser):
    """Reads what `--config` names: a sweep's base for a sweep, and all else as `files`, the flag's own parser, does.

    Overrides `--config.field=value` are then read and typed by that base, like those of any config.
    """

    def __init__(self, files: flags.ArgumentParser):
        self._files = files

    def parse(self, path):
        if is_sweep(path):
            return read(path).base().lock()
        try:
            return self._files.parse(path)
        except AttributeError as error:
            if error.name != "get_config":
                raise
            file = path.partition(":")[0]
            raise UserError(f"{file}: no get_config(); a config has one, and a sweep, with get_base() and get_diffs(), lies in a folder called sweeps") from None

    def flag_type(self):
        return self._files.flag_type()
