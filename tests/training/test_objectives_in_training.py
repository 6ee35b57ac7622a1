"""Objectives in the step and in a run: the same on any number of devices, gone on with to the same bits, chosen by a config."""

import jax
import numpy as np
import optax
import pytest

from configs import base, disease
from cxr_jax import experiment, main, stages, tables
from cxr_jax import mesh as meshes
from cxr_jax.data import cohorts, pipeline
from cxr_jax.models import densenet
from cxr_jax.tables import UserError
from cxr_jax.training import metrics_log, objectives, train
from tests.phantoms import PLAIN, small_config
from tests.training.test_train import Killed, assert_same_bits, fit

SLOW = pytest.mark.slow  # what differs from another by a line
WITH_GROUPS = [name for name in experiment.OBJECTIVES if name not in ("erm", "jtt")]


def config_of(phantom_dir, name, **diff):
    own = {"train__objective__name": name, "train__targets": ("findings",), "train__objective__hidden": 8}
    return small_config(phantom_dir, **{**PLAIN, **own, **diff})


def prepared(config, phantom):
    """(targets, labels, objective)"""
    _, cohort = phantom
    targets, _ = cohorts.targets(cohort, config.train.targets, config.dataset)
    labels = cohorts.labels(cohort, targets, config.dataset)
    training = (cohort.table["split"] == "train").to_numpy()
    return targets, labels, objectives.of_config(config.train.objective, targets, labels, training, *stages.groups_of(config, cohort))


def two_steps(config, phantom, devices):
    """State and losses after two steps of plain descent on the first batch, of which three rows are padding."""
    dataset, cohort = phantom
    targets, labels, objective = prepared(config, phantom)
    batch = next(pipeline.sources(dataset, cohort.table, config.dataset)["train"].batches(0, 0, 0, config.train.batch_size))
    batch = {"image": batch["image"].copy(), "mask": batch["mask"].copy(), "index": batch["index"].astype(np.int32)}
    batch["mask"][-3:] = False
    batch["image"][-3:] = 0
    batch |= {"labels": train.take_rows(labels, batch["index"]), "carried": train.take_rows(objective.carried, batch["index"])}
    mesh = meshes.data_mesh(jax.devices()[:devices])
    optimizer = optax.sgd(0.1)
    model = densenet.from_config(config.model, {n: len(t.classes) for n, t in targets.items()}, config.seed)
    graphdef, state = train.init_state(model, optimizer, config.seed, mesh, objective)
    step = train.make_step(graphdef, optimizer, objective, config, mesh, steps=2)
    losses = []
    for _ in range(2):
        state, loss = step(state, meshes.shard_batch(mesh, batch))
        losses.append(float(loss))
    return state, losses


@pytest.fixture(scope="module")
def plain(phantom, phantom_dir):
    return two_steps(config_of(phantom_dir, "erm"), phantom, 1)[0]


@pytest.mark.parametrize("name", [pytest.param(name, marks=SLOW) if name not in ("group_dro", "dann") else name for name in WITH_GROUPS])
def test_a_step_is_the_same_on_any_number_of_devices(phantom, phantom_dir, plain, name):
    config = config_of(phantom_dir, name)
    (one, losses), (eight, losses_of_eight) = (two_steps(config, phantom, devices) for devices in (1, 8))
    np.testing.assert_allclose(losses, losses_of_eight, rtol=2e-5)
    trees = ((state.params, state.stats, state.own, state.memory) for state in (one, eight))
    for a, b in zip(*map(jax.tree.leaves, trees)):
        np.testing.assert_allclose(a, b, rtol=5e-4, atol=5e-5)
    if name not in ("resample",):
        changed = [not np.allclose(a, b, rtol=1e-5, atol=1e-7) for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(plain.params))]
        assert any(changed)


@pytest.mark.parametrize("name", ["group_dro", pytest.param("dann", marks=SLOW), pytest.param("domain_independent", marks=SLOW)])
def test_a_batch_in_parts_adds_up(phantom, phantom_dir, name):
    """On one device and on two the parts are the same rows; what they add up to is the same."""
    config = config_of(phantom_dir, name, train__accumulate=2)
    (one, losses), (two, of_two) = (two_steps(config, phantom, devices) for devices in (1, 2))
    np.testing.assert_allclose(losses, of_two, rtol=2e-5)
    for a, b in zip(jax.tree.leaves((one.own, one.memory)), jax.tree.leaves((two.own, two.memory))):
        np.testing.assert_allclose(a, b, rtol=5e-4, atol=5e-5)


@pytest.mark.parametrize("name", ["group_dro", pytest.param("dann", marks=SLOW), pytest.param("resample", marks=SLOW)])
def test_a_run_that_died_remembers(phantom, phantom_dir, tmp_path, name):
    """Twelve steps, killed twice, once inside the second epoch: the same bits, of what the objective learnt and remembers too."""
    config = config_of(phantom_dir, name)
    _, _, objective = prepared(config, phantom)
    wanted = fit(config, phantom, tmp_path / "undisturbed", objective=objective)
    for batches in (3, 6):
        with pytest.raises(Killed):
            fit(config, phantom, tmp_path / "killed", objective=objective, kill_after=batches)
    assert_same_bits(fit(config, phantom, tmp_path / "killed", objective=objective), wanted)
    assert name == "resample" or len(jax.tree.leaves((wanted.own, wanted.memory))) > 0
    if name == "group_dro":
        last = [row for row in metrics_log.read_rows(tmp_path / "killed" / "metrics.jsonl") if row["split"] == "validation"][-1]
        assert last["shares"] == pytest.approx(objective.told(jax.device_get(wanted.memory))["shares"])


def run(phantom_dir, workdir, name, **diff):
    config = experiment.apply_diff(config_of(phantom_dir, name, **diff), {"stages": ("prepare", "train", "predict", "audit")})
    main.run(config, workdir, command="the command")
    return config


@pytest.mark.slow
def test_training_twice(phantom_dir, tmp_path):
    """What the first one gets wrong counts more in the second; started again, the first is read from its checkpoints."""
    run(phantom_dir, tmp_path, "jtt", train__objective__upweight=20.0)
    record = tables.read_json(tmp_path / "run.json")
    assert record["status"] == "done" and record["first_training"].startswith("a first training of 1 epochs got ")
    first, second = (metrics_log.read_rows(folder / "metrics.jsonl") for folder in (tmp_path / "first", tmp_path))
    assert [max(row["epoch"] for row in rows) for rows in (first, second)] == [1.0, 2.0]
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "first").rglob("*") if p.is_file() and "last" in p.parts}
    record["stages"].pop("train")
    tables.write_json(tmp_path / "run.json", record)
    run(phantom_dir, tmp_path, "jtt", train__objective__upweight=20.0)
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert tables.read_json(tmp_path / "run.json")["first_training"] == record["first_training"]


def test_a_first_training_by_another_config_is_no_first_training_of_this(phantom_dir, tmp_path):
    """What was killed before the second had a checkpoint is gone on with by the same config alone."""

    def opened(**diff):
        return experiment.Run(tmp_path, config_of(phantom_dir, "jtt", **diff), base.get_config(), "the command")

    opened()
    (tmp_path / "first" / "checkpoints").mkdir(parents=True)
    opened(audit__replicates=7)
    assert (tmp_path / "first").exists()
    opened(train__learning_rate=0.5)
    assert not (tmp_path / "first").exists()


def test_copies_of_an_image_in_a_batch_are_varied_each_by_itself(phantom, phantom_dir, tmp_path, monkeypatch):
    """Augmentation draws by the number that an image has, of which copies have the same, or by its place in the batch."""
    seen, shard = [], meshes.shard_batch
    monkeypatch.setattr(meshes, "shard_batch", lambda mesh, batch: seen.append(np.asarray(batch["index"])) or shard(mesh, batch))
    config = config_of(phantom_dir, "resample")
    with pytest.raises(Killed):
        fit(config, phantom, tmp_path, objective=prepared(config, phantom)[2], kill_after=2)
    assert len(seen) == 2 and all(list(numbers) == list(range(config.train.batch_size)) for numbers in seen)


@pytest.mark.slow
@pytest.mark.parametrize("select", ["gap", pytest.param("worst_group_auc", marks=SLOW)])
def test_the_best_epoch_is_told_by_what_the_config_names(phantom_dir, tmp_path, select):
    run(phantom_dir, tmp_path, "reweight", train__select=select, train__auc_floor=0.0, train__objective__attribute="sex")
    rows = [row for row in metrics_log.read_rows(tmp_path / "metrics.jsonl") if row["split"] == "validation"]
    best = int(next((tmp_path / "checkpoints" / "best").glob("[0-9]*")).name)
    key = {"worst_group_auc": lambda row: -row["worst_group_auc"], "gap": lambda row: row["gap"]}[select]
    assert best == min(rows, key=key)["step"]
    assert all({"worst_group_auc", "gap", "score", "judged_in_groups"} <= set(row) for row in rows)


@pytest.mark.parametrize(
    ("diff", "told"),
    [
        ({"train__objective__attribute": "rase"}, "config.train.objective.attribute: no target 'rase'"),
        ({"train__objective__attribute": "findings"}, "config.train.objective.attribute=findings: "),
        ({"train__objective__attribute": "race", "train__targets": ("race",)}, "what is learnt cannot be unlearnt"),
        ({"train__objective__attribute": "dataset"}, "config.train.objective.attribute: no target 'dataset'; it is no class label"),
        ({"train__objective__name": "resample", "train__objective__finding": "Edemma"}, "config.train.objective.finding='Edemma': "),
        ({"train__objective__name": "coral", "train__accumulate": 4}, "config.train.batch_size: in 0% of batches, or of their parts, of "),
        ({"train__objective__name": "erm", "train__targets": ("race",), "train__select": "gap"}, "train.select=gap is by groups, of which what is learnt makes none"),
    ],
)
def test_a_mistake_is_told_before_anything_is_written(phantom_dir, tmp_path, diff, told):
    with pytest.raises(UserError) as error:
        run(phantom_dir, tmp_path, "dann", **diff)
    assert str(error.value).startswith(told) or told in str(error.value)
    assert not (tmp_path / "cohort.parquet").exists()


@pytest.mark.parametrize(
    ("diff", "told"),
    [
        ({"train.objective.name": "dan"}, "did you mean 'dann'"),
        ({"train.objective.cells": "label"}, "group, group_label or independent"),
        ({"train.objective.cells": "independent", "train.objective.name": "group_dro"}, "group or group_label"),
        ({"train.objective.step": 0.0}, "more than 0"),
        ({"train.objective.strength": -1.0}, "0 or more"),
        ({"train.objective.hidden": 0}, "at least 1 unit"),
        ({"train.objective.first_epochs": 0}, "at least 1"),
        ({"train.objective.upweight": 0.0}, "more than 0"),
        ({"train.objective.name": "resample", "train.targets": ("findings", "sex")}, "draws by one target"),
        ({"train.select": "loss"}, "auc, worst_group_auc or gap"),
        ({"train.objective.name": "dann", "train.freeze": 5, "model.init_from": "runs/other"}, "fewer parts with train.objective.name=dann"),
        ({"train.objective.name": "resample", "dataset.cache": "device"}, "global with train.objective.name=resample"),
        ({"train.auc_floor": 2.0}, "from 0 to 1"),
    ],
)
def test_settings_that_cannot_be(diff, told):
    with pytest.raises(UserError, match=told):
        experiment.validate(experiment.apply_diff(disease.get_config(), diff))
