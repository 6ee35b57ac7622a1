"""What training begins from, and what of it stays as it was."""

import json
import shutil

import jax
import numpy as np
import pytest
from flax import nnx

from configs import base
from cxr_jax import experiment, stages
from cxr_jax import mesh as meshes
from cxr_jax.data import cohorts
from cxr_jax.models import pretrained
from cxr_jax.tables import Target, UserError
from cxr_jax.training import inference, initial
from tests.models.test_pretrained import safetensors, state_dict
from tests.phantoms import PLAIN, command, small_config
from tests.training.test_train import fit

RACE = {"race": Target("multiclass", ("Alder", "Birch", "Cedar", "Dogwood"))}
# The network of `state_dict`.
SIZE = {"model__growth": 4, "model__blocks": (2, 2), "model__stem": 8, "model__bottleneck": 2}


def assert_equal(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), one, other)


def parts(params, stats):
    """By part of the network, from the images on, its parameters and running statistics; the heads last."""
    trees = [{"stem": [tree["stem"] for tree in (params, stats)]}]
    blocks = len(params["blocks"])
    for i in range(blocks):
        after = params["transitions"][i] if i < blocks - 1 else params["reader"]
        trees.append({"block": [params["blocks"][i], stats["blocks"][i], after]})
    return [jax.device_get(tree) for tree in (*trees, {"heads": params["heads"]})]


@pytest.fixture(scope="module")
def trained(phantom, phantom_dir, tmp_path_factory):
    """(config, folder of a run of D_race)"""
    folder = tmp_path_factory.mktemp("trained")
    config = small_config(phantom_dir, train__epochs=1, **PLAIN)
    fit(config, phantom, folder)
    return config, folder


def test_from_nothing_it_is_drawn(phantom_dir):
    network, described, told = initial.network(small_config(phantom_dir), RACE)
    assert told == "" and described.targets == RACE and network.stem.constant is None


def test_from_a_run_with_the_heads_that_are_the_same(trained, phantom, phantom_dir):
    config, folder = trained
    targets, _ = cohorts.targets(phantom[1], ("race", "sex"), config.dataset)
    network, described, told = initial.network(small_config(phantom_dir, model__init_from=str(folder)), targets)
    assert told.startswith("training begins from the best checkpoint, step 6, of 20") and told.endswith(f" of {folder}, with its head for race")
    _, params, stats = inference.restore(folder / "checkpoints", "best", meshes.data_mesh(jax.devices()[:1]))
    begun = nnx.split(network, nnx.Param, nnx.BatchStat)[1:]
    assert_equal(parts(*begun)[:-1], parts(params, stats)[:-1])
    assert_equal(begun[0]["heads"]["race"], params["heads"]["race"])
    assert set(begun[0]["heads"]) == {"race", "sex"} and described.targets == targets
    other = {"race": Target("multiclass", ("a", "b"))}
    assert initial.network(small_config(phantom_dir, model__init_from=str(folder)), other)[2].endswith(", without its heads")


@pytest.mark.parametrize(("channels", "inputs"), [pytest.param(3, "", marks=pytest.mark.slow), (1, "gray")])
def test_from_a_state_dict(phantom, phantom_dir, tmp_path, channels, inputs):
    """Its features, to begin with; and a checkpoint afterwards that can be read, whatever stem it has."""
    file = safetensors(tmp_path / "weights.safetensors", state_dict(channels))
    config = small_config(phantom_dir, model__init_from=str(file), model__init_inputs=inputs, train__epochs=1, **SIZE, **PLAIN)
    experiment.validate(config)
    dataset, cohort = phantom
    targets, _ = cohorts.targets(cohort, ("race",), config.dataset)
    network, described, told = initial.network(config, targets)
    assert told == f"training begins from weights.safetensors (inputs {inputs or 'imagenet'})"
    assert described.model["stem_constant"] == (channels == 3) == (network.stem.constant is not None)
    images = np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 1)).astype(np.float32)
    theirs = pretrained.read(file, classifier=False, inputs=inputs or None).network
    np.testing.assert_array_equal(network(images, train=False).features, theirs(images, train=False).features)

    state = fit(config, phantom, tmp_path / "run", network=network, description=described)
    _, params, stats = inference.restore(tmp_path / "run" / "checkpoints", "best", meshes.data_mesh())
    assert_equal(params, state.params), assert_equal(stats, state.stats)
    assert not np.array_equal(params["stem"]["kernel"][...], network.stem.kernel[...])


@pytest.mark.parametrize("freeze", [1, 2, 3])
def test_what_is_frozen_stays_to_the_bit(trained, phantom, phantom_dir, tmp_path, freeze):
    """1: the stem; 2: the first block, too; 3: all but the heads, running statistics among it."""
    _, folder = trained
    config = small_config(phantom_dir, model__init_from=str(folder), train__freeze=freeze, train__epochs=1, **PLAIN)
    experiment.validate(config)
    network, described, _ = initial.network(config, RACE)
    begun = parts(*nnx.split(network, nnx.Param, nnx.BatchStat)[1:])
    state = fit(config, phantom, tmp_path, network=network, description=described)
    for number, (one, other) in enumerate(zip(begun, parts(state.params, state.stats), strict=True)):
        if number < freeze:
            assert_equal(one, other)
        else:
            assert not any(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other)))


@pytest.mark.parametrize(
    ("given", "diff", "told"),
    [
        ("nowhere", {"model__init_inputs": ""}, "no folder of a run, and no file of weights"),
        ("weights.safetensors", {**SIZE, "model__blocks": (1, 1)}, r"model.blocks is \(2, 2\) there, \(1, 1\) here; set --config.model.blocks='\(2, 2\)'$"),
        ("weights.safetensors", {**SIZE, "model__growth": 8, "model__stem": 4}, "model.growth is 4 there, 8 here; model.stem is 8 there, 4 here; set .*growth='4' .*stem='8'"),
        ("missing.safetensors", SIZE, "no such file of weights"),
        ("", {"model__init_inputs": ""}, "config.model.init_from=.*: holds no checkpoints; name the folder of a run"),
        ("", {}, "config.model.init_inputs=gray: says how a file of weights is fed"),
    ],
)
def test_what_training_cannot_begin_from(phantom_dir, tmp_path, given, diff, told):
    safetensors(tmp_path / "weights.safetensors", state_dict())
    config = small_config(phantom_dir, **{"model__init_from": str(tmp_path / given), "model__init_inputs": "gray", **diff})
    with pytest.raises(UserError, match=told):
        initial.network(config, RACE)


@pytest.mark.parametrize(
    ("diff", "told"),
    [
        ({"train.freeze": 1}, "name it with --config.model.init_from"),
        ({"train.freeze": 4, "model.init_from": "x"}, "0 to 3, the parts of this network"),
        ({"model.init_inputs": "rgb"}, "imagenet, xrv, gray or empty"),
        ({"train.accumulate": 3}, "a divisor of train.batch_size, 16, that leaves a part two images at least"),
        ({"train.accumulate": 16}, "a divisor of train.batch_size, 16, that leaves a part two images at least"),
        ({"train.recipe_batch_size": 1}, "0, or at least a tenth of train.batch_size, 16"),
        ({"train.recipe_batch_size": -16}, "0, or at least a tenth"),
        ({"train.statistics": "local"}, "global or shard"),
        ({"train.recompute": "all"}, "readings or bottlenecks"),
        ({"dataset.cache": "disk"}, "host or device"),
        ({"dataset.order": "random"}, "global, shard or empty"),
        ({"dataset.device_cache_share": 0.0}, "a share above 0, at most 1"),
    ],
)
def test_settings_that_cannot_be(phantom_dir, diff, told):
    config = experiment.apply_diff(small_config(phantom_dir), diff)
    with pytest.raises(UserError, match=told):
        experiment.validate(config)


def test_a_file_of_the_same_name_that_says_something_else_is_another_run(phantom_dir, tmp_path, trained):
    file = safetensors(tmp_path / "weights.safetensors", state_dict())
    config = small_config(phantom_dir, model__init_from=str(file))
    before = experiment.fingerprint(config, ("train",))
    assert before == experiment.fingerprint(config, ("train",))
    safetensors(file, state_dict(seed=1))
    assert experiment.fingerprint(config, ("train",)) != before
    config.model.init_from = str(trained[1])
    assert experiment.fingerprint(config, ("train",)) == experiment.fingerprint(config, ("train",)) != before
    config.model.init_from = str(tmp_path / "nothing")
    with pytest.raises(UserError, match="config.model.init_from: .*nothing: not a readable file"):
        experiment.fingerprint(config)


def test_a_run_is_the_one_it_began_from_wherever_that_lies_and_needs_it_no_more_once_it_has_begun(phantom_dir, tmp_path, trained):
    source = tmp_path / "source"
    shutil.copytree(trained[1], source)
    config = small_config(phantom_dir, model__init_from=str(source))

    def opened():
        return experiment.Run(tmp_path / "run", config, base.get_config(), "the command")

    with opened().recording({}) as run, run.stage("train"):
        (tmp_path / "run" / "checkpoints").mkdir()
    before = experiment.fingerprint(config)
    shutil.rmtree(source)
    shutil.copytree(trained[1], source, copy_function=shutil.copy)  # which does not keep times
    assert opened().done("train") and experiment.fingerprint(config) == before
    shutil.rmtree(source)
    assert opened().done("train") and opened().record["files"]["model.init_from"]


def test_going_on_takes_the_network_from_the_checkpoint(trained, phantom, phantom_dir, tmp_path):
    """What it began from, which had a stem with a constant, is gone."""
    file = safetensors(tmp_path / "weights.safetensors", state_dict(3))
    config = small_config(phantom_dir, model__init_from=str(file), train__epochs=1, **SIZE, **PLAIN)
    network, described, _ = initial.network(config, RACE)
    state = fit(config, phantom, tmp_path / "run", network=network, description=described)
    file.unlink()
    network, again = initial.network_to_go_on_with(config, RACE, tmp_path / "run" / "checkpoints")
    assert again.as_json() == described.as_json() and network.stem.constant is not None
    assert_equal(fit(config, phantom, tmp_path / "run", network=network, description=again).params, state.params)


def test_what_training_cannot_begin_from_is_told_before_the_data_are_made(tmp_path):
    safetensors(tmp_path / "weights.safetensors", state_dict())
    done = command("--config=configs/race.py:tiny", f"--config.model.init_from={tmp_path}/weights.safetensors", f"--config.dataset.data_dir={tmp_path}/data", workdir=tmp_path / "run")
    (line,) = done.stderr.strip().splitlines()
    assert done.returncode == 1 and line.startswith("error: config.model.init_from=") and not (tmp_path / "data").exists()


def run_of(folder, cohort, split, init_from=""):
    """A run's folder, as far as it tells whom it was trained on."""
    folder.mkdir()
    of = cohort.table.assign(split=split)
    cohorts.Cohort(of, cohort.findings, cohort.races, cohort.attrition, cohort.race_table).write(folder / stages.COHORT)
    (folder / "config.json").write_text(json.dumps({"model": {"init_from": str(init_from)}}))
    return folder


def test_a_model_that_knows_the_test_patients_is_refused(phantom, tmp_path, capsys):
    """Its run was split otherwise, or that of a model which it began from."""
    _, cohort = phantom
    first = run_of(tmp_path / "first", cohort, "train")
    with pytest.raises(UserError, match="config.model.init_from: .* test patients of this cohort were in training or validation of that model; take"):
        stages.check_unseen(cohort, first, "config.model.init_from")
    second = run_of(tmp_path / "second", cohort, "test", init_from=first)
    third = run_of(tmp_path / "third", cohort, cohort.table["split"], init_from=second)
    with pytest.raises(UserError, match="validation of that model, by way of .*first; take"):
        stages.check_unseen(cohort, third, "config.extract.weights")
    assert capsys.readouterr().out == ""
    for unknown in (tmp_path / "absent", tmp_path / "weights.pt", run_of(tmp_path / "fourth", cohort, "test", init_from=tmp_path / "weights.pt")):
        stages.check_unseen(cohort, unknown, "config.model.init_from")
        assert "does not tell whom it was trained on; patients of this test may be among them" in capsys.readouterr().out
