"""What every test runs under: eight fake CPU devices, strict promotion of types, warnings as errors (pyproject.toml).

The flags must be set before JAX starts, hence at import and not in a fixture.
"""
import os

os.environ["XLA_FLAGS"] = (os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8").strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "Agg")

import pathlib
import tempfile
import time

# What one test compiles another need not; the user's own cache of compiled programs stays out of it.
_COMPILED = tempfile.TemporaryDirectory(prefix="cxr_jax-compiled-")
os.environ["JAX_COMPILATION_CACHE_DIR"] = _COMPILED.name

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")


def pytest_configure(config):
    """Half of the default tests' time would be LLVM's, making programs fast that run for milliseconds: there it takes less care. Slow ones run for minutes.

    (JAX reads the flags once, when it looks for devices.) What `phantoms.as_user` and `processes.start` have a process of its own for is compiled as a user's is, in either.
    """
    if "not slow" in config.option.markexpr and "xla_backend_optimization_level" not in os.environ["XLA_FLAGS"]:
        os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0"


def pytest_runtest_setup(item):
    """Where somebody else ends us at a certain time, slow tests that would begin too late for it step aside, each by name."""
    deadline = os.environ.get("CXR_JAX_TESTS_UNTIL")  # seconds since 1970
    if deadline and item.get_closest_marker("slow") and time.time() > float(deadline):
        pytest.skip("no time was left for this slow test (CXR_JAX_TESTS_UNTIL)")


SHARED_NIH = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data" / "nih_sample"


@pytest.fixture(scope="session")
def nih_sample() -> pathlib.Path:
    """The 496 real X-rays that lie beside a checkout, in the NIH release's own layout."""
    if not SHARED_NIH.is_dir():
        pytest.skip(f"the sample of real NIH X-rays is absent: no folder {SHARED_NIH}")
    return SHARED_NIH


@pytest.fixture(scope="session")
def phantom_dir(tmp_path_factory) -> pathlib.Path:
    """Where the TFRecords of the tests' phantoms lie."""
    return tmp_path_factory.mktemp("phantoms")


@pytest.fixture(scope="session")
def phantom(phantom_dir):
    """(dataset, cohort) of `tests.phantoms.small_config`, built once."""
    from cxr_jax.data import cohorts, datasets
    from tests.phantoms import small_config

    config = small_config(phantom_dir).dataset
    dataset = datasets.prepare(config)
    return dataset, cohorts.select(dataset.keys, dataset.findings, dataset.races, config)


@pytest.fixture(scope="session")
def torchvision():
    """The package, as our benchmarks import it."""
    from cxr_jax import benchmarks

    pytest.importorskip("torch")
    try:
        return benchmarks.import_torchvision()[1]
    except ImportError:
        pytest.skip("torchvision is not installed")
