"""What the tests of several builders share."""

import importlib.util
import pathlib

import pytest


@pytest.fixture(scope="session")
def xrayvision() -> pathlib.Path:
    """The folder of the tables that the package torchxrayvision ships: CheXpert's, NIH's and PadChest's, whole."""
    spec = importlib.util.find_spec("torchxrayvision")  # finds it without importing it, which would need its dependencies
    if spec is None:
        pytest.skip("torchxrayvision is not installed: `bash launch/local.sh --peers …` brings its tables")
    return pathlib.Path(spec.origin).parent / "data"
