"""The import contracts of pyproject.toml hold, and what GPU machines without TensorFlow import does not import it."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def test_import_contracts():
    command = [pathlib.Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("module", ["models.densenet", "training.train", "audit.readings", "probes.protocol", "report.html", "data.augment", "benchmarks.train_step", "benchmarks.inference", "benchmarks.input_pipeline"])
def test_no_tensorflow_behind(module):
    program = f"import sys, cxr_jax.{module}; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0
