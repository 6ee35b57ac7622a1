"""Training: a pure step over a mesh, and the loop that evaluates, keeps checkpoints and can be killed at any moment.

The state of a run is `State`; everything else that a step uses (the batch, the random key) is a function of the config's seed
and the step's number. A run that restores the state of step s and goes on therefore does what it would have done.
"""

from __future__ import annotations

import collections
import contextlib
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from flax import nnx
from jax import flatten_util
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array

from cxr_jax import mesh as meshes, processes
from cxr_jax.data import augment, perturbations
from cxr_jax.models import densenet
from cxr_jax.tables import Target, UserError
from cxr_jax.training import inference, objectives, optimizers
from cxr_jax.training.checkpoints import Checkpoints
from cxr_jax.training.metrics_log import MetricsLog, Profile, Progress


class State(NamedTuple):
    """All that a run must remember.

    params, stats: float32 trees of the network's parameters and running statistics. own, memory: float32 trees, what the objective learns beside
    the network, and what it remembers. opt_state: Adam's, of (params, own).
    step: int32, updates done. key: uint32 key data, the root of all randomness after initialisation.
    epoch, step_in_epoch: int32, the place in the data; shards: int32, in how many the data are shuffled. best_score: float32, the best score in validation so far (-inf before
    the first). best_step: int32.
    """

    params: nnx.State
    stats: nnx.State
    own: objectives.Tree
    memory: objectives.Tree
    opt_state: optax.OptState
    step: Array
    key: Array
    epoch: Array
    step_in_epoch: Array
    shards: Array
    best_score: Array
    best_step: Array


def init_state(
    model: nnx.Module, optimizer: optax.GradientTransformation, seed: int, mesh: Mesh, objective: objectives.Objective
) -> tuple[nnx.GraphDef, State]:
    """The state before the first step, copied to every device, and the network's definition."""
    graphdef, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    own, memory = objective.begin(model.features, seed)
    zero = jnp.zeros((), jnp.int32)
    state = State(
        params=params,
        stats=stats,
        own=own,
        memory=memory,
        opt_state=optimizer.init((params, own)),
        step=zero,
        key=jax.random.key_data(jax.random.key(seed)),
        epoch=zero,
        step_in_epoch=zero,
        shards=zero + 1,
        best_score=jnp.full((), -jnp.inf, jnp.float32),
        best_step=zero,
    )
    # Each leaf a buffer of its own: the step donates them, and a buffer can be given away once only.
    return graphdef, meshes.replicate(mesh, jax.tree.map(lambda x: jnp.array(x, copy=True), state))


def make_step(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    objective: objectives.Objective,
    config: ml_collections.ConfigDict,
    mesh: Mesh,
    images_of: Callable | None = None,
    steps: int = 1,
) -> Callable:
    """The jitted update: (state, batch, *resident) to (state, loss).

    batch: image uint8 [b, 256, 256, 1], mask bool [b], index int32 [b], labels {target: [b] or [b, findings]}, carried, the objective's own
    of these rows; split over the mesh. steps: of the whole training. images_of, resident: where images lie on the devices, `data.resident.gather`'s function and the array that it
    takes them from; batch then has `row` in the place of `image`. loss: float32, of the whole global batch; NaN also where the update leaves parameters
    that are no numbers, so that a state whose loss is finite is sound itself, and may be kept.

    Every device works on its rows. Between devices go, and nothing else (a test reads them off the compiled program): how
    many labels are known; for each normalisation its moments and, backwards, the two sums that their gradient takes
    (train.statistics=global; else running statistics, once); in one piece the gradients, the loss and the objective's sums; of one that
    compares the images of a batch, their features and groups. With images on the devices in a
    global order, a batch's images too (`data.resident`).
    """
    a, accumulate, shown = config.train.augment, config.train.accumulate, tuple(config.train.shown)
    image_size = config.dataset.image_size
    alone = mesh.size == 1  # a device that is alone has nobody to ask
    axis = meshes.AXIS if config.train.statistics == "global" and not alone else None

    def part(learnt, stats, memory, progress, counts, key, images, index, mask, labels, carried):
        """(running statistics, (loss, sums, gradients)) of some rows; the latter add up to the batch's."""
        images = augment.augment(
            images, key, index, flip=a.flip, rotate_degrees=a.rotate_degrees, zoom=a.zoom, shift=a.shift,
            window=a.window, field_of_view=a.field_of_view, exposure=a.exposure,
        )  # fmt: skip
        images = augment.to_model_input(perturbations.seen(images, shown), image_size)

        def loss_of(learnt):
            params, own = learnt
            # A copy, since running statistics may not be written to a module that was traced outside the gradient.
            model = nnx.merge(graphdef, params, stats, copy=True)
            keep = config.train.recompute == "readings"
            out = model(images, train=True, mask=mask, axis=axis, keep_bottlenecks=keep, frozen=config.train.freeze)
            # What the network makes of padding is anything, infinite too.
            features = jnp.where(mask[:, None], out.features, jnp.zeros_like(out.features))
            seen = objectives.Seen(out.logits, features, labels, mask, carried, counts, progress, None if alone else meshes.AXIS)
            loss, sums = objective.loss(own, memory, seen)
            return loss, (nnx.state(model, nnx.BatchStat), sums)

        (loss, (stats, sums)), gradients = jax.value_and_grad(loss_of, has_aux=True)(learnt)
        # Where all rows are padding, as in parts and on devices that the last batch of an epoch has no image for, nothing is learnt. Maps
        # that were normalised by the statistics of nothing overflow in a deep network, and no share of the loss makes that a 0.
        real = mask.any()
        return stats, jax.tree.map(lambda x: jnp.where(real, x, jnp.zeros_like(x)), (loss, sums, gradients))

    def gradients_of(learnt, stats, memory, progress, key, batch, *resident):
        """The same of the global batch; runs on each device, on its rows of it."""
        counts = objective.counts(batch["labels"], batch["mask"], batch["carried"])
        counts = jax.tree.map(lambda n: jnp.maximum(n, 1), counts if alone else jax.lax.psum(counts, meshes.AXIS))
        images = images_of(*resident, batch["row"]) if images_of else batch["image"]
        rows = (images, batch["index"], batch["mask"], batch["labels"], batch["carried"])
        before = (memory, progress, counts, key)
        if accumulate == 1:
            stats, added = part(learnt, stats, *before, *rows)
        else:
            # Part j has rows j, j + k, …, which are the same however many devices share the batch.
            parts = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, accumulate, *x.shape[1:]), 0, 1), rows)

            def add(carry, rows):
                stats, added = carry
                stats, more = part(learnt, stats, *before, *rows)
                return (stats, jax.tree.map(jnp.add, added, more)), None

            shapes = jax.eval_shape(lambda rows: part(learnt, stats, *before, *rows)[1], jax.tree.map(lambda x: x[0], parts))
            nothing = (stats, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes))
            # XLA runs what is inside a loop on one core of a CPU, so that there is none there.
            unroll = accumulate if meshes.on_cpu(mesh) else 1
            (stats, added), _ = jax.lax.scan(add, nothing, parts, unroll=unroll)
        if not alone:
            added = _in_one_piece(jax.lax.psum, added)
            stats = stats if axis else _in_one_piece(jax.lax.pmean, stats)
        return stats, added

    here, everywhere = PartitionSpec(meshes.AXIS), PartitionSpec()
    data = (here,) if images_of else ()
    spread = jax.shard_map(
        gradients_of, mesh=mesh, in_specs=(*[everywhere] * 5, here, *data), out_specs=everywhere, check_vma=False
    )

    def step(state: State, batch, *resident) -> tuple[State, Array]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        learnt, progress = (state.params, state.own), state.step.astype(jnp.float32) / steps
        stats, (loss, sums, grads) = spread(learnt, state.stats, state.memory, progress, key, batch, *resident)
        updates, opt_state = optimizer.update(grads, state.opt_state, learnt)
        params, own = optax.apply_updates(learnt, updates)
        memory = objective.remember(state.memory, sums)
        loss = jnp.where(jnp.isfinite(optax.tree.norm((params, own, memory))), loss, jnp.nan)
        return (
            state._replace(
                params=params,
                stats=stats,
                own=own,
                memory=memory,
                opt_state=opt_state,
                step=state.step + 1,
                step_in_epoch=state.step_in_epoch + 1,
            ),
            loss,
        )

    copied, split = meshes.replicated(mesh), meshes.batch_sharded(mesh)
    return jax.jit(
        step,
        in_shardings=(copied, split, *((split,) if images_of else ())),
        out_shardings=copied,
        donate_argnums=0,
        compiler_options=meshes.compiler_options(mesh),
    )


def check_batches(train: ml_collections.ConfigDict, mesh: Mesh) -> None:
    """Raises UserError where batches cannot be shared out over the mesh, or statistics would be of a single image."""
    meshes.check_batch(train.batch_size, mesh, "train.batch_size", train.accumulate)
    meshes.check_batch(train.evaluate_batch_size, mesh, "train.evaluate_batch_size")
    shared = 1 if train.statistics == "global" else mesh.size
    if train.batch_size // (train.accumulate * shared) < 2:
        raise UserError(
            f"config.train.batch_size={train.batch_size}: batch statistics need two images, and in train.accumulate={train.accumulate} parts"
            + (f" over {shared} devices, each with its own (train.statistics=shard)," if shared > 1 else "")
            + " they have one; take a larger batch, or fewer parts"
        )


def _in_one_piece(collective: Callable, tree):
    """`collective` over the mesh of a tree of float32 arrays: one message instead of hundreds, each of which takes its time."""
    flat, back = flatten_util.ravel_pytree(tree)
    return back(collective(flat, meshes.AXIS))


def take_rows(of_cohort, index: np.ndarray):
    """A batch's rows of a tree of arrays [n, …], such as labels. Padding (index -1) takes the last row's, which the mask keeps out of the loss."""
    return jax.tree.map(lambda values: values[index], of_cohort)


def fit(
    config: ml_collections.ConfigDict,
    objective: objectives.Objective,
    labels: Mapping[str, np.ndarray],
    train_source,
    validation_source,
    measure: Callable[[np.ndarray, Mapping[str, np.ndarray]], dict],
    checkpoints: Checkpoints,
    workdir: pathlib.Path,
    mesh: Mesh,
    network: densenet.DenseNet,
) -> State:
    """Trains to config.train.epochs, from the last checkpoint if there is one, and returns the last state.

    objective: what the network is asked to do (`objectives.of_config`). labels: by target, over all rows of the cohort: int32 [n] (-1 unknown) or float32 [n, findings] (NaN unknown).
    train_source: a `data.pipeline.Source` or a `data.resident.Resident`: gives `steps_per_epoch(batch_size)`, `batches(seed, epoch,
        start_step, batch_size, process_index, process_count)`, `shards`, which the order depends on, and where images are on the devices
        already `gather` and `on_devices`. validation_source: gives `ordered(batch_size, process_index, process_count)`. Both give their
        number of images by `len`.
    measure: (rows of the cohort, scores by target) to {"score", by which epochs are chosen, "macro_auc", "auc": {class: value}, "n_images",
        "n_patients", …}, as `audit.validation.measure`; all of it is logged.
    network: what a run that has no checkpoint begins from.
    Raises FloatingPointError that names the step where the loss is not a number, and processes.Preempted, with its last state saved, where a process was told to stop.
    """
    t = config.train
    check_batches(t, mesh)
    steps_per_epoch = train_source.steps_per_epoch(t.batch_size)
    optimizer = optimizers.adam(t, steps_per_epoch)
    rate = optimizers.learning_rate(t, steps_per_epoch)
    graphdef, state = init_state(network, optimizer, config.seed, mesh, objective)
    train_step = make_step(graphdef, optimizer, objective, config, mesh, train_source.gather, t.epochs * steps_per_epoch)
    forward = inference.Forward.of(graphdef, objective.targets, config.dataset.image_size, mesh, tuple(config.train.shown))

    # Restored in one piece: parameters, statistics, optimizer, place in the data. Then the log is cut back to that step,
    # since what came after it is about to be done, and written, again.
    restored = checkpoints.restore_last(state)
    state = state if restored is None else restored
    step = int(state.step)
    if int(state.step_in_epoch) and int(state.shards) != train_source.shards:
        raise UserError(
            f"{checkpoints.folder}: step {step} is inside an epoch that was shuffled in {int(state.shards)} parts, one a device, and there are"
            f" {train_source.shards} now; go on with as many devices, or train anew with --config.dataset.order=global in a folder of its own"
        )
    state = state._replace(shards=_like(state.shards, train_source.shards))
    log = MetricsLog(workdir, resume_after=step)
    shared = {"process_index": jax.process_index(), "process_count": jax.process_count()}

    def numbers(index: np.ndarray) -> np.ndarray:
        """What augmentation knows images by: their own numbers, or, where a batch may have several copies of one, their places in it."""
        own = index if objective.draw is None else jax.process_index() * len(index) + np.arange(len(index))
        return own.astype(np.int32)

    total_images = t.epochs * len(train_source)
    done = int(state.epoch) * len(train_source) + min(int(state.step_in_epoch) * t.batch_size, len(train_source))
    asked: collections.deque = collections.deque()  # of the last steps, whether any process was told to stop
    with contextlib.ExitStack() as stack:
        stack.enter_context(processes.finishing())
        stack.enter_context(log)
        progress = stack.enter_context(Progress("train", total_images, done=done))
        profile = stack.enter_context(Profile(workdir, config.profile.steps))
        for epoch in range(int(state.epoch), t.epochs):
            losses: list[tuple[int, Array]] = []
            start = int(state.step_in_epoch)
            batches = stack.enter_context(
                contextlib.closing(train_source.batches(config.seed, epoch, start, t.batch_size, **shared))
            )
            for step_in_epoch, batch in enumerate(progress.waiting_for(batches), start):
                profile.step_begins()
                sharded = meshes.shard_batch(
                    mesh,
                    {
                        **{name: batch[name] for name in ("image", "row") if name in batch},
                        "mask": batch["mask"],
                        "index": numbers(batch["index"]),
                        "labels": take_rows(labels, batch["index"]),
                        "carried": take_rows(objective.carried, batch["index"]),
                    },
                )
                state, loss = train_step(state, sharded, *train_source.on_devices)
                step += 1
                losses.append((step, loss))
                progress.advance(min(t.batch_size, len(train_source) - step_in_epoch * t.batch_size))
                last_of_epoch = step_in_epoch + 1 == steps_per_epoch
                asked.append(meshes.anybody(mesh, processes.asked_to_stop()))
                stop = len(asked) > _STEPS_UNTIL_HEARD and bool(asked.popleft())
                checkpoint_due = (stop or step % config.checkpoint.every_steps == 0) and not last_of_epoch
                if step % t.log_every_steps == 0 or last_of_epoch or checkpoint_due:
                    # Before a state is kept it must be known to be sound.
                    values = _sound(losses)
                    losses.clear()
                    log.write(
                        step=step,
                        epoch=round(step / steps_per_epoch, 4),
                        split="train",
                        loss=float(np.mean(values)),
                        learning_rate=float(rate(step - 1)),
                        **progress.figures(),
                    )
                    progress.say(f"loss {np.mean(values):.3f}")
                if checkpoint_due:
                    checkpoints.save("last", step, state)
                if stop and not last_of_epoch:
                    _stop(checkpoints)

            index, scores, _ = inference.predict(forward, state.params, state.stats, validation_source, t.evaluate_batch_size)
            if not all(np.isfinite(s).all() for s in scores.values()):
                raise FloatingPointError(f"scores of validation are no numbers after step {step}; {_REMEDY}")
            measured = measure(index, scores)
            log.write(step=step, epoch=float(epoch + 1), split="validation", **measured, **objective.told(meshes.to_host(state.memory)))
            progress.pause()
            progress.say(f"validation macro AUC {measured['macro_auc']:.3f}")
            score = measured["score"]
            state = state._replace(epoch=_like(state.epoch, epoch + 1), step_in_epoch=_like(state.step_in_epoch, 0))
            # An undefined score (a class without validation patients) is below any other, but the first epoch is kept
            # whatever it scores, so that a run always ends with a best.
            score = -math.inf if math.isnan(score) else score
            if int(state.best_step) == 0 or score > float(state.best_score):
                state = state._replace(best_score=_like(state.best_score, score), best_step=_like(state.best_step, step))
                checkpoints.save("best", step, state)
            checkpoints.save("last", step, state)
            if bool(meshes.anybody(mesh, processes.asked_to_stop())):
                _stop(checkpoints)
        checkpoints.wait()
    return state


# Steps that are under way before a process learns what another one has heard: to ask about the newest would be to wait for it.
_STEPS_UNTIL_HEARD = 2


def _stop(checkpoints: Checkpoints) -> None:
    """Leaves training, once all processes know of it and what was saved is on disk."""
    processes.all_stop()
    checkpoints.wait()
    raise processes.Preempted


def _like(old: Array, value) -> Array:
    return jax.device_put(jnp.asarray(value, old.dtype), old.sharding)


def _sound(losses: list[tuple[int, Array]]) -> list[float]:
    values = [float(v) for v in jax.device_get([loss for _, loss in losses])]
    for (step, _), value in zip(losses, values):
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss is {value} at step {step}; {_REMEDY}")
    return values


_REMEDY = "try a smaller config.train.learning_rate, or model.dtype=float32"
