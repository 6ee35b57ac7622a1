"""A small run on a small phantom, and the program started as a user starts it; for tests of whole runs."""

import os
import pathlib
import pickle
import subprocess
import sys

import ml_collections

from configs import race
from cxr_jax import experiment

ROOT = pathlib.Path(__file__).parents[1]

# A network that compiles in seconds, on few small pictures. The code is DenseNet-121's; only the sizes differ. What several
# layers in a block do to each other is for tests/models to hold.
SMALL = {
    "dataset.phantom.patients": 60,
    "dataset.image_size": 32,
    "model.growth": 4,
    "model.blocks": (1, 1),
    "model.stem": 8,
    "train.augment.shift": 0.1,
    "train.augment.rotate_degrees": 5.0,
    "train.batch_size": 16,
    "train.evaluate_batch_size": 16,
    "train.epochs": 2,
    "train.log_every_steps": 2,
    "checkpoint.every_steps": 2,
    "audit.replicates": 100,
}

# Without augmentation a step compiles sooner; with it as above, runs of the same model share what is compiled.
PLAIN = {"train__augment__shift": 0.0, "train__augment__rotate_degrees": 0.0}


def small_config(data_dir: pathlib.Path | str, **diff) -> ml_collections.ConfigDict:
    """D_race on a phantom of 60 patients in `data_dir`; further fields with `__` for the dot."""
    config = race.get_config()
    experiment.apply_diff(config, {"dataset.data_dir": str(data_dir), **SMALL})
    return experiment.apply_diff(config, {k.replace("__", "."): v for k, v in diff.items()})


def flags(config: str, workdir: pathlib.Path | str, fields: dict) -> list[str]:
    """The program's flags for a run: of a config, in a folder, with further fields by dotted name."""
    return [f"--config={config}", f"--workdir={workdir}", *(f"--config.{name}={value}" for name, value in fields.items())]


def arguments(config: str, workdir: pathlib.Path | str, fields: dict) -> list[str]:
    """What Python is handed for it."""
    return ["-m", "cxr_jax.main", *flags(config, workdir, fields)]


def as_user(**environment) -> dict[str, str]:
    """The environment of a process outside of the tests: the machine's own devices, not eight fake ones."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    return {**inherited, "PYTHONPATH": str(ROOT), **environment}


def command(*arguments, workdir, **environment) -> subprocess.CompletedProcess:
    """Runs `python -m cxr_jax.main` in a process of its own, as a user does; returns what it did and printed."""
    return subprocess.run(
        [sys.executable, "-m", "cxr_jax.main", *arguments, f"--workdir={workdir}"],
        cwd=ROOT, env=as_user(**environment), capture_output=True, text=True,
    )  # fmt: skip


def run_as_user(config: ml_collections.ConfigDict, workdir: pathlib.Path | str) -> None:
    """`main.run` in a process of its own, which on the machine's own devices trains more than twice as fast as on eight fake ones; for long trainings.

    As strict as tests are. Raises AssertionError, with all that it printed, where it fails.
    """
    program = "import pickle, sys; from cxr_jax import main; main.run(pickle.load(sys.stdin.buffer), sys.argv[1], command='the command')"
    strictly = ["-W", "error", "-W", "ignore:label() is deprecated:DeprecationWarning"]  # pyproject.toml says why that one is left out
    done = subprocess.run(
        [sys.executable, *strictly, "-c", program, workdir],
        input=pickle.dumps(config), cwd=ROOT, env=as_user(JAX_NUMPY_DTYPE_PROMOTION="strict"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert not done.returncode, done.stdout.decode()
