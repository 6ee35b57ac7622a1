"""The tiny data set, built once, in the dict of data sets where `datasets` looks for builders."""

import pytest

from cxr_jax.data import datasets
from tests.data import tiny

SPLITS = {
    "": (("images", 30),),
    "official": (("train_val", 40), ("test", 20)),
    "large": (("train_val", 150), ("test", 53)),
}


def tiny_builder(dataset):
    name = dataset.variant if dataset.variant != "planted" else ""
    builder_config = tiny.TinyConfig(
        name=name or "plain", splits=SPLITS.get(name, SPLITS[""]), fail=name if name in ("killed", "full") else ""
    )
    return tiny.Tiny(config=builder_config, data_dir=dataset.data_dir)


@pytest.fixture(autouse=True, scope="package")
def tiny_is_known():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(datasets.BUILDERS, "tiny", datasets._Known(tiny_builder))
        yield


@pytest.fixture(scope="package")
def tiny_datasets(tmp_path_factory):
    """`tiny_datasets("large")`: the tiny data set of that variant, built once."""
    built = {}

    def get(variant=""):
        if variant not in built:
            config = tiny.config(tmp_path_factory.getbasetemp() / "tiny", variant=variant)
            built[variant] = datasets.prepare(config)
        return built[variant]

    return get
