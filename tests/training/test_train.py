"""The training loop: interrupted and resumed to the same bits, equal on any number of devices, loud when it diverges."""

import json
import os
import shutil
import signal

import jax
import ml_collections
import numpy as np
import optax
import pytest
from flax import nnx

from configs import race
from cxr_jax import experiment, processes
from cxr_jax import mesh as meshes
from cxr_jax.data import cohorts, pipeline
from cxr_jax.models import densenet
from cxr_jax.training import inference, metrics_log, objectives, optimizers, train
from cxr_jax.tables import Target, UserError
from cxr_jax.training.checkpoints import Checkpoints, ModelDescription
from tests.phantoms import PLAIN, small_config


class Killed(Exception):
    pass


class KilledAfter:
    """A source that dies when it has given so many batches, as a machine does."""

    def __init__(self, source, batches: int):
        self._source, self._left = source, batches

    def __len__(self):
        return len(self._source)

    def __getattr__(self, name):
        return getattr(self._source, name)

    def batches(self, *args, **kwargs):
        for batch in self._source.batches(*args, **kwargs):
            if not self._left:
                raise Killed
            self._left -= 1
            yield batch


def measure(index, scores):
    """Not an AUC, but a number that differs between epochs and runs as one would."""
    mean = float(next(iter(scores.values()))[:, 0].mean())
    return {"score": mean, "macro_auc": mean, "auc": {}, "n_images": len(index), "n_patients": 1}


def fit(config, phantom, workdir, kill_after=None, devices=8, network=None, description=None, objective=None):
    dataset, cohort = phantom
    targets, _ = cohorts.targets(cohort, config.train.targets, config.dataset)
    labels = cohorts.labels(cohort, targets, config.dataset)
    mesh = meshes.data_mesh(jax.devices()[:devices])
    sources = pipeline.sources(dataset, cohort.table, config.dataset, mesh, objective and objective.draw)
    source = sources["train"] if kill_after is None else KilledAfter(sources["train"], kill_after)
    network = network or densenet.from_config(config.model, {name: len(target.classes) for name, target in targets.items()}, config.seed)
    description = description or ModelDescription(config.model.to_dict(), targets, config.dataset.image_size)
    workdir.mkdir(exist_ok=True)
    with Checkpoints(workdir / "checkpoints", description, config.checkpoint.keep) as kept:
        return train.fit(config, objective or objectives.Objective(targets), labels, source, sources["validation"], measure, kept, workdir, mesh, network)


def assert_same_bits(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b), strict=True), one, other)


@pytest.fixture(scope="module")
def undisturbed(phantom, phantom_dir, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    config = small_config(phantom_dir)
    return config, workdir, fit(config, phantom, workdir)


def test_a_run_that_died_ends_as_one_that_did_not(undisturbed, phantom, tmp_path):
    """Of twelve steps, six an epoch, with a checkpoint every two: killed before the first checkpoint, between two, between
    two epochs, and twice after one and the same checkpoint."""
    config, workdir, wanted = undisturbed
    reached = []
    for batches in (1, 3, 4, 1, 2):
        with pytest.raises(Killed):
            fit(config, phantom, tmp_path, kill_after=batches)
        reached.append(max((int(p.name) for p in (tmp_path / "checkpoints" / "last").glob("[0-9]*")), default=0))
    assert reached == [0, 2, 6, 6, 8] and int(wanted.step) == 12
    assert_same_bits(fit(config, phantom, tmp_path), wanted)

    def told(folder):
        rows = metrics_log.read_rows(folder / "metrics.jsonl")
        return [{k: v for k, v in row.items() if k != "images_per_second"} for row in rows if row["split"] == "validation"]

    assert told(tmp_path) == told(workdir)
    steps = [row["step"] for row in metrics_log.read_rows(tmp_path / "metrics.jsonl") if row["split"] == "train"]
    assert steps == sorted(set(steps))


def test_a_run_that_is_over_is_left_as_it_is(undisturbed, phantom):
    config, workdir, wanted = undisturbed
    before = (workdir / "metrics.jsonl").read_bytes()
    assert_same_bits(fit(config, phantom, workdir), wanted)
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_another_seed_is_another_run(undisturbed, phantom, tmp_path):
    config, workdir, _ = undisturbed
    other = config.copy_and_resolve_references()
    other.seed = 1
    with pytest.raises(Killed):
        fit(other, phantom, tmp_path, kill_after=3)
    one, two = (next(r["loss"] for r in metrics_log.read_rows(folder / "metrics.jsonl") if r["split"] == "train") for folder in (workdir, tmp_path))
    assert one != two


def test_the_log_is_whole(undisturbed):
    config, workdir, state = undisturbed
    rows = metrics_log.read_rows(workdir / "metrics.jsonl")
    assert [r["epoch"] for r in rows if r["split"] == "validation"] == [1.0, 2.0]
    assert rows[-1]["step"] == int(state.step)
    assert all(r["loss"] > 0 and r["learning_rate"] >= 0 for r in rows if r["split"] == "train")
    assert list((workdir / "tensorboard").glob("events.out.tfevents.*"))


def test_a_line_cut_in_half_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "split": "train"}\n{"step": 2, "sp')
    assert metrics_log.read_rows(path) == [{"step": 1, "split": "train"}]
    with metrics_log.MetricsLog(tmp_path, resume_after=1) as log:
        log.write(step=2, split="train", loss=float("nan"))
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1, "split": "train"},
        {"step": 2, "split": "train", "loss": None},
    ]


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_step(phantom, phantom_dir, tmp_path):
    config = small_config(phantom_dir, train__learning_rate=1e30, train__schedule="constant", train__warmup_epochs=0.0, **PLAIN)
    with pytest.raises(FloatingPointError, match=r"the loss is (nan|inf) at step \d+"):
        fit(config, phantom, tmp_path)


def test_a_state_that_is_no_number_is_not_kept(phantom, phantom_dir, tmp_path):
    """One step an epoch: the loss before the update is sound, what the update leaves is not."""
    config = small_config(
        phantom_dir, train__learning_rate=1e38, train__schedule="constant", train__warmup_epochs=0.0, train__batch_size=1024, **PLAIN
    )
    with pytest.raises(FloatingPointError, match="at step 1|after step 1"):
        fit(config, phantom, tmp_path)
    assert not [p for p in (tmp_path / "checkpoints").glob("*/*") if p.name.isdigit()]


@pytest.mark.parametrize(("warmup", "epochs"), [(0.6, 1), (1.6, 2), (0.0, 1)])
def test_a_run_of_one_step_an_epoch_has_a_rate(warmup, epochs):
    config = race.get_config()
    experiment.apply_diff(config, {"train.epochs": epochs, "train.warmup_epochs": warmup})
    experiment.validate(config)
    rate = optimizers.learning_rate(config.train, 1)
    assert np.isfinite([float(rate(step)) for step in range(epochs)]).all()


def one_step(config, phantom, devices, padded=3):
    """State and loss after one step on the first batch, of which so many rows are padding, over so many devices."""
    dataset, cohort = phantom
    targets, _ = cohorts.targets(cohort, config.train.targets, config.dataset)
    labels = cohorts.labels(cohort, targets, config.dataset)
    batch = next(pipeline.sources(dataset, cohort.table, config.dataset)["train"].batches(0, 0, 0, config.train.batch_size))
    batch = {"image": batch["image"].copy(), "mask": batch["mask"].copy(), "index": batch["index"].astype(np.int32)}
    batch["mask"][-padded:] = False
    batch["image"][-padded:] = 0
    batch |= {"labels": train.take_rows(labels, batch["index"]), "carried": {}}
    mesh = meshes.data_mesh(jax.devices()[:devices])
    # Plain descent, since Adam turns a rounding error in a gradient near 0 into a whole step.
    optimizer = optax.sgd(0.1)
    model = densenet.from_config(config.model, {n: len(t.classes) for n, t in targets.items()}, config.seed)
    graphdef, state = train.init_state(model, optimizer, config.seed, mesh, objectives.Objective(targets))
    step = train.make_step(graphdef, optimizer, objectives.Objective(targets), config, mesh)
    return step(state, meshes.shard_batch(mesh, batch))


def test_a_step_is_the_same_on_any_number_of_devices(phantom, phantom_dir):
    """With every kind of head at once: one class of several, several findings, and one of two."""
    config = small_config(phantom_dir, train__targets=("findings", "sex", "race"), train__augment__rotate_degrees=0.0)
    one, one_loss = one_step(config, phantom, 1)
    for devices in (2, 4, 8):
        some, loss = one_step(config, phantom, devices)
        np.testing.assert_allclose(one_loss, loss, rtol=1e-5)
        for a, b in zip(jax.tree.leaves((one.params, one.stats)), jax.tree.leaves((some.params, some.stats))):
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


def compiled_step(config, devices):
    """The text of the program of one step of `config.train.batch_size` images over so many devices."""
    mesh, b = meshes.data_mesh(jax.devices()[:devices]), config.train.batch_size
    targets = {"race": Target("multiclass", ("a", "b", "c")), "findings": Target("multilabel", ("x", "y"))}
    optimizer = optax.sgd(0.1)
    model = densenet.from_config(config.model, {n: len(t.classes) for n, t in targets.items()}, config.seed)
    graphdef, state = train.init_state(model, optimizer, config.seed, mesh, objectives.Objective(targets))
    batch = {
        "image": jax.ShapeDtypeStruct((b, 256, 256, 1), np.uint8),
        "mask": jax.ShapeDtypeStruct((b,), bool),
        "index": jax.ShapeDtypeStruct((b,), np.int32),
        "labels": {"race": jax.ShapeDtypeStruct((b,), np.int32), "findings": jax.ShapeDtypeStruct((b, 2), np.float32)},
        "carried": {},
    }
    return train.make_step(graphdef, optimizer, objectives.Objective(targets), config, mesh).lower(state, batch).compile().as_text(), state


@pytest.mark.slow
@pytest.mark.parametrize("statistics", ["global", "shard"])
def test_between_devices_go_gradients_statistics_and_the_loss_alone(phantom_dir, statistics):
    config = small_config(phantom_dir, train__statistics=statistics, model__blocks=(2, 1), **PLAIN)
    text, state = compiled_step(config, 8)
    found = meshes.collectives(text)
    stem, growth, inner = config.model.stem, config.model.growth, config.model.bottleneck * config.model.growth
    parameters, running = (sum(x.size for x in jax.tree.leaves(tree)) for tree in (state.params, state.stats))
    size = 4  # bytes of a float32
    labels = [("all-reduce", 2 * size)]  # how many are known, of two heads
    gradients = [("all-reduce", size * (parameters + 1))]  # and the loss
    if statistics == "shard":
        wanted = labels + [("all-reduce", size * (parameters + 1 + running))]
    else:
        second = (stem + 2 * growth) // 2  # channels that the second block begins with
        read = [stem, stem, stem + growth, stem + 2 * growth, second, second + growth]  # by the stem's reader, layers, and after each block
        moments = [stem, stem, second, *[growth] * 3, *[inner] * 3]
        wanted = labels + gradients + [("all-gather", 8 * size)]  # rows that are no padding
        wanted += [("all-gather", 8 * 2 * size * c) for c in moments] + [("all-reduce", 2 * size * c) for c in [*read, *[inner] * 3]]
    assert sorted(found) == sorted(wanted)
    assert meshes.collectives(compiled_step(config, 1)[0]) == []


@pytest.mark.slow
def test_statistics_of_each_device_by_itself(phantom, phantom_dir):
    """One device has no other; eight, of two images each, normalise otherwise, and agree on running statistics all the same."""
    plain, by_shard = (small_config(phantom_dir, train__statistics=which, **PLAIN) for which in ("global", "shard"))
    alone, same = (one_step(config, phantom, 1)[0] for config in (plain, by_shard))
    for a, b in zip(jax.tree.leaves((alone.params, alone.stats)), jax.tree.leaves((same.params, same.stats))):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    eight = one_step(by_shard, phantom, 8)[0]
    means = [state.stats["stem"]["statistics"]["mean"][...] for state in (alone, eight)]
    assert not np.allclose(eight.params["stem"]["kernel"][...], alone.params["stem"]["kernel"][...], rtol=1e-3, atol=1e-6)
    assert np.isfinite(means[1]).all() and all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(eight))


def test_a_batch_in_parts_is_one_update(phantom, phantom_dir):
    """The parts' gradients add up to the gradient of the whole, statistics apart; on any number of devices."""
    config = small_config(phantom_dir, train__accumulate=2, train__targets=("findings", "race"), **PLAIN)
    (one, one_loss), (four, four_loss) = (one_step(config, phantom, devices) for devices in (1, 4))
    np.testing.assert_allclose(one_loss, four_loss, rtol=1e-5)
    for a, b in zip(jax.tree.leaves((one.params, one.stats)), jax.tree.leaves((four.params, four.stats))):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)

    # Of a batch that is one half twice over, the halves (rows in turn) have the statistics of the whole.
    dataset, cohort = phantom
    targets, _ = cohorts.targets(cohort, config.train.targets, config.dataset)
    labels = cohorts.labels(cohort, targets, config.dataset)
    half = next(pipeline.sources(dataset, cohort.table, config.dataset)["train"].batches(0, 0, 0, 8))
    batch = {name: np.repeat(half[name], 2, axis=0) for name in ("image", "mask", "index")}
    batch |= {"labels": train.take_rows(labels, batch["index"]), "carried": {}}
    mesh = meshes.data_mesh(jax.devices()[:1])
    ends = []
    for accumulate in (1, 2):
        config.train.accumulate = accumulate
        model = densenet.from_config(config.model, {n: len(t.classes) for n, t in targets.items()}, config.seed)
        graphdef, state = train.init_state(model, optax.sgd(0.1), config.seed, mesh, objectives.Objective(targets))
        ends.append(train.make_step(graphdef, optax.sgd(0.1), objectives.Objective(targets), config, mesh)(state, meshes.shard_batch(mesh, batch)))
    (whole, loss), (parts, loss_of_parts) = ends
    np.testing.assert_allclose(loss, loss_of_parts, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(parts.params)):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(("devices", "diff"), [pytest.param(1, {"train__accumulate": 4}, marks=pytest.mark.slow), (8, {"train__statistics": "shard"})])
def test_parts_and_devices_that_the_last_batch_has_no_image_for_teach_nothing(phantom, phantom_dir, devices, diff):
    """Of sixteen rows three are real. The network is deep: where statistics are of nothing, its maps overflow."""
    config = small_config(phantom_dir, model__blocks=(3, 6, 6), model__growth=8, **diff, **PLAIN)
    state, loss = one_step(config, phantom, devices, padded=13)
    assert np.isfinite(loss) and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.params, state.stats)))


@pytest.mark.parametrize(("devices", "diff", "told"), [
    (1, {"train__accumulate": 16}, "batch_size=16: batch statistics need two images, and in train.accumulate=16 parts they have one"),
    (8, {"train__statistics": "shard", "train__batch_size": 8}, r"over 8 devices, each with its own \(train.statistics=shard\)"),
    (8, {"train__batch_size": 12}, "train.batch_size=12: not a multiple of the 8 devices"),
])  # fmt: skip
def test_statistics_of_one_image_are_none(phantom_dir, devices, diff, told):
    with pytest.raises(UserError, match=told):
        train.check_batches(small_config(phantom_dir, **diff).train, meshes.data_mesh(jax.devices()[:devices]))


@pytest.mark.parametrize("order", ["shard", pytest.param("global", marks=pytest.mark.slow)])
def test_images_on_the_devices_train_as_those_on_the_host(phantom, phantom_dir, tmp_path, order):
    """Two epochs over eight devices, killed on the way and gone on with: the same parameters."""
    host, device = (small_config(phantom_dir, dataset__cache=cache, dataset__order=order, **PLAIN) for cache in ("host", "device"))
    wanted = fit(host, phantom, tmp_path / "host")
    with pytest.raises(Killed):
        fit(device, phantom, tmp_path / "device", kill_after=9)
    got = fit(device, phantom, tmp_path / "device")
    for a, b in zip(jax.tree.leaves((wanted.params, wanted.stats)), jax.tree.leaves((got.params, got.stats))):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_an_epoch_that_eight_devices_shuffled_is_not_gone_on_with_by_four(phantom, phantom_dir, tmp_path):
    config = small_config(phantom_dir, dataset__cache="device", **PLAIN)
    with pytest.raises(Killed):
        fit(config, phantom, tmp_path, kill_after=3)
    with pytest.raises(UserError, match="step 2 is inside an epoch that was shuffled in 8 parts, one a device, and there are 4 now"):
        fit(config, phantom, tmp_path, devices=4)


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_thirteen_images_in_batches_of_eight_are_thirteen_rows(phantom, phantom_dir, devices):
    dataset, cohort = phantom
    config = small_config(phantom_dir)
    targets, _ = cohorts.targets(cohort, ("race",), config.dataset)
    table = cohort.table.iloc[:13].assign(split="test")
    source = pipeline.Source(dataset, table, "test", host_cache_gib=1.0, block_images=1024)
    mesh = meshes.data_mesh(jax.devices()[:devices])
    model = densenet.from_config(config.model, {"race": 4}, 0)
    graphdef, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    params, stats = meshes.replicate(mesh, (params, stats))
    forward = inference.Forward.of(graphdef, targets, 32, mesh)
    index, scores, features = inference.predict(forward, params, stats, source, 8)
    np.testing.assert_array_equal(index, np.arange(13))
    assert scores["race"].shape == (13, 4) and len(features) == 13
    np.testing.assert_allclose(scores["race"].sum(1), 1, rtol=1e-5)
    # One by one, so that no neighbour and no padding can have had a part in it.
    alone = inference.predict(inference.Forward.of(graphdef, targets, 32, meshes.data_mesh(jax.devices()[:1])), *jax.device_get((params, stats)), source, 1)
    np.testing.assert_allclose(scores["race"], alone[1]["race"], rtol=1e-4, atol=1e-6)


def test_progress_counts_neither_the_first_batch_nor_pauses(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(metrics_log.time, "monotonic", lambda: clock[0])

    def batch(seconds):
        clock[0] += seconds
        progress.advance(8)

    with metrics_log.Progress("train", 80) as progress:
        batch(50.0)  # compilation
        assert progress.rate() == 0
        batch(2.0), batch(2.0)
        progress.pause()
        batch(30.0)  # validation
        batch(2.0)
        assert progress.rate() == 4


def test_waiting_for_input_is_told_apart_from_the_rest(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(metrics_log.time, "monotonic", lambda: clock[0])

    def slow_input():
        for _ in range(5):
            clock[0] += 3.0
            yield 8

    with metrics_log.Progress("train", 80) as progress:
        assert np.isnan(progress.figures()["waiting_for_input"]) and np.isnan(progress.figures()["seconds_left"])
        for images in progress.waiting_for(slow_input()):
            clock[0] += 1.0
            progress.advance(images)
        # Of five batches the first, with compilation, does not count: 3 of 4 seconds each; 40 of 80 images are left at 2 images/s.
        assert progress.figures() == {"images_per_second": 2.0, "waiting_for_input": 0.75, "seconds_left": 20.0}
        assert experiment.SIGNS["done"] == 40 and experiment.SIGNS["seconds_left"] == 20.0


class ToldToStop(KilledAfter):
    """A source during whose so many-th batch the scheduler says that it wants the machine."""

    def batches(self, *args, **kwargs):
        for batch in self._source.batches(*args, **kwargs):
            self._left -= 1
            if not self._left:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch


@pytest.mark.parametrize(
    ("batches", "saved"),
    [(5, 6), pytest.param(1, 3, marks=pytest.mark.slow), (9, 11), *(pytest.param(*one, marks=pytest.mark.slow) for one in ((6, 6), (12, None)))],
)
def test_told_to_stop_it_saves_what_it_has_and_goes_on_from_there(undisturbed, phantom, tmp_path, monkeypatch, batches, saved):
    """Of twelve steps, six an epoch: after two further steps, after the validation that comes first, or not, where it is over anyway."""
    config, workdir, wanted = undisturbed
    config = ml_collections.ConfigDict(config.to_dict())
    config.checkpoint.every_steps = 1000  # free, so that the results are those of the undisturbed run
    monkeypatch.setitem(globals(), "KilledAfter", ToldToStop)
    with processes.terminable(), pytest.raises(processes.Preempted):
        fit(config, phantom, tmp_path, kill_after=batches)
    steps = [int(path.name) for path in (tmp_path / "checkpoints" / "last").glob("[0-9]*")]
    assert max(steps) == (saved or 12)
    assert_same_bits(fit(config, phantom, tmp_path), wanted)


@pytest.mark.slow
def test_a_profile_of_some_steps_is_kept(undisturbed, phantom, tmp_path, capsys):
    config, _, wanted = undisturbed
    config = ml_collections.ConfigDict(config.to_dict())
    config.profile.steps = 3
    assert_same_bits(fit(config, phantom, tmp_path), wanted)
    assert list((tmp_path / "profile").rglob("*.xplane.pb")) and list((tmp_path / "profile").rglob("*.trace.json.gz"))
    assert not (tmp_path / "profile.partial").exists() and "a profile of 3 steps" in capsys.readouterr().out
    # A run that is over has none to show, and says so.
    shutil.rmtree(tmp_path / "profile")
    fit(config, phantom, tmp_path)
    assert "no profile" in capsys.readouterr().out and not (tmp_path / "profile").exists()


def test_other_processes_show_no_bar(monkeypatch, capsys):
    monkeypatch.setattr(processes, "first", lambda: False)
    with metrics_log.Progress("train", 16) as progress:
        progress.advance(8), progress.advance(8), progress.say("loss 1")
    assert not capsys.readouterr().err
