import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from scipy import special

from cxr_jax.tables import Target, UserError
from cxr_jax.training import objectives, optimizers
from configs import base
from cxr_jax import experiment

RNG = np.random.default_rng(0)


def test_cross_entropy_is_the_mean_over_what_is_known():
    logits = RNG.normal(size=(6, 4)).astype(np.float32)
    labels = np.array([0, 3, -1, 2, 1, 1], np.int32)
    mask = np.array([1, 1, 1, 1, 0, 1], bool)
    log_p = special.log_softmax(logits.astype(np.float64), axis=1)
    wanted = -np.mean([log_p[i, labels[i]] for i in (0, 1, 3, 5)])
    got = jax.jit(objectives.categorical_cross_entropy)(logits, labels, mask)
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


def test_binary_cross_entropy_leaves_unknown_labels_out_and_their_gradient_is_nought():
    logits = RNG.normal(size=(5, 3)).astype(np.float32)
    labels = RNG.integers(0, 2, (5, 3)).astype(np.float32)
    labels[1, 2] = labels[3, 0] = np.nan
    mask = np.array([1, 1, 0, 1, 1], bool)
    known = mask[:, None] & ~np.isnan(labels)
    p = special.expit(logits.astype(np.float64))
    wanted = -np.mean(np.where(labels == 1, np.log(p), np.log1p(-p))[known])
    value, gradient = jax.value_and_grad(objectives.binary_cross_entropy)(jnp.asarray(logits), labels, mask)
    np.testing.assert_allclose(value, wanted, rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(gradient)[~known], 0)
    np.testing.assert_allclose(np.asarray(gradient)[known], ((p - labels) / known.sum())[known], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("unknown", [-1, "mask"])
def test_a_batch_in_which_nothing_is_known_costs_nothing(unknown):
    labels = np.full(3, -1 if unknown == -1 else 0, np.int32)
    mask = np.full(3, unknown == -1)
    value, gradient = jax.value_and_grad(objectives.categorical_cross_entropy)(jnp.ones((3, 4)), labels, mask)
    assert value == 0 and not np.any(gradient)


def test_heads_add_up_and_probabilities_match_their_kind():
    targets = {"race": Target("multiclass", ("a", "b")), "findings": Target("multilabel", ("x", "y", "z"))}
    logits = {"race": jnp.asarray(RNG.normal(size=(4, 2)), jnp.float32), "findings": jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32)}
    labels = {"race": np.array([0, 1, 1, -1], np.int32), "findings": np.ones((4, 3), np.float32)}
    mask = np.ones(4, bool)
    total = objectives.total_loss(targets, logits, labels, mask)
    parts = objectives.categorical_cross_entropy(logits["race"], labels["race"], mask), objectives.binary_cross_entropy(
        logits["findings"], labels["findings"], mask
    )
    np.testing.assert_allclose(total, sum(parts), rtol=1e-6)
    p = objectives.probabilities(targets, logits)
    np.testing.assert_allclose(p["race"], special.softmax(np.asarray(logits["race"]), axis=1), rtol=1e-5)
    np.testing.assert_allclose(p["findings"], special.expit(np.asarray(logits["findings"])), rtol=1e-5)


def test_the_rate_rises_then_falls_to_nothing():
    train = experiment.apply_diff(
        base.get_config(), {"train.schedule": "cosine", "train.warmup_epochs": 1.0, "train.epochs": 4, "train.learning_rate": 0.5}
    ).train
    rate = optimizers.learning_rate(train, steps_per_epoch=10)
    np.testing.assert_allclose([rate(s) for s in (0, 5, 10, 25, 40)], [0, 0.25, 0.5, 0.25, 0], atol=1e-6)
    assert optimizers.learning_rate(base.get_config().train, 10)(10**6) == np.float32(1e-4)


@pytest.mark.parametrize(
    ("batch", "recipe", "rate", "beta1", "beta2", "epsilon"),
    [(32, 0, 1e-4, 0.9, 0.999, 1e-8), (32, 32, 1e-4, 0.9, 0.999, 1e-8), (128, 32, 2e-4, 0.6, 0.996, 5e-9), (320, 32, 10**-3.5, 0.0, 0.99, 10**-8.5)],
)
def test_adam_takes_the_published_step_scaled_to_the_batch(batch, recipe, rate, beta1, beta2, epsilon):
    """Kingma and Ba's Algorithm 1, written out for two steps of two parameters, one of whose gradients is near epsilon."""
    config = experiment.apply_diff(base.get_config(), {"train.batch_size": batch, "train.recipe_batch_size": recipe})
    optimizer = optimizers.adam(config.train, 10)
    x = jnp.asarray([0.0, 0.0])
    state, m, v, wanted = optimizer.init(x), 0.0, 0.0, np.zeros(2)
    for step, gradient in enumerate((np.array([0.3e-8, -4.0]), np.array([-0.1e-8, 2.0])), 1):
        updates, state = optimizer.update(jnp.asarray(gradient, jnp.float32), state, x)
        x = x + updates
        m, v = beta1 * m + (1 - beta1) * gradient, beta2 * v + (1 - beta2) * gradient**2
        wanted = wanted - rate * (m / (1 - beta1**step)) / (np.sqrt(v / (1 - beta2**step)) + epsilon)
    np.testing.assert_allclose(x, wanted, rtol=2e-5)


def test_a_large_batch_forgets_and_moves_by_the_image_as_a_small_one_does():
    """What the rule is for: with gradients that are noise, as an image's share of a batch, k steps of the one are one of the other, in spread."""
    rng, images, ends = np.random.default_rng(0), 64 * 600, {}
    noise = rng.standard_normal((images, 500)).astype(np.float32)
    for batch in (8, 64):
        config = experiment.apply_diff(base.get_config(), {"train.batch_size": batch, "train.recipe_batch_size": 8})
        optimizer = optimizers.adam(config.train, 1)
        gradients = jnp.asarray(noise.reshape(-1, batch, noise.shape[1]).mean(axis=1))

        def step(carry, gradient):
            x, state = carry
            updates, state = optimizer.update(gradient, state, x)
            return (x + updates, state), None

        start = jnp.zeros(noise.shape[1])
        ends[batch] = np.asarray(jax.lax.scan(step, (start, optimizer.init(start)), gradients)[0][0])
    assert ends[64].std() == pytest.approx(ends[8].std(), rel=0.1)
    assert np.corrcoef(ends[8], ends[64])[0, 1] > 0.95


def test_shapes_in_signatures_are_checked_while_tests_run():
    with pytest.raises(jaxtyping.TypeCheckError):
        objectives.categorical_cross_entropy(jnp.ones((3, 4)), np.zeros(5, np.int32), np.ones(3, bool))


# --- objectives that see groups ----------------------------------------------------------------------------------------

FINDINGS = {"findings": Target("multilabel", ("x", "y", "z"))}
BOTH = FINDINGS | {"sex": Target("multiclass", ("F", "M"))}


def settings(name, **further):
    return experiment.apply_diff(base.get_config(), {"train.objective.name": name, **{f"train.objective.{k}": v for k, v in further.items()}}).train.objective


def cohort(n=200, groups=3, seed=1):
    """(labels, group, training): findings and sex, some unknown; groups of unlike sizes, some unknown."""
    rng = np.random.default_rng(seed)
    group = rng.choice(groups + 1, n, p=[0.6, 0.25, 0.1, 0.05]).astype(np.int32)
    group[group == groups] = -1
    findings = (rng.random((n, 3)) < np.where(group == 1, 0.7, 0.3)[:, None]).astype(np.float32)
    findings[rng.random((n, 3)) < 0.1] = np.nan
    return {"findings": findings, "sex": rng.integers(-1, 2, n).astype(np.int32)}, group, rng.random(n) < 0.8


def seen(labels, group, rows, features=None, carried=None, logits=None, progress=0.5):
    rng = np.random.default_rng(7)
    made = {name: jnp.asarray(rng.normal(size=(len(rows), 3 if name == "findings" else 2)), jnp.float32) for name in labels}
    mask = jnp.ones(len(rows), bool)
    carried = jax.tree.map(lambda x: jnp.asarray(x[rows]), {"group": group, **(carried or {})})
    mine = {name: jnp.asarray(of[rows]) for name, of in labels.items()}
    targets = {name: BOTH[name] for name in labels}
    features = jnp.asarray(rng.normal(size=(len(rows), 5)), jnp.float32) if features is None else features
    counts = objectives.Objective(targets).counts(mine, mask, carried)
    return objectives.Seen(logits or made, features, mine, mask, carried, counts, jnp.float32(progress), None)


@pytest.mark.parametrize("by", ["group", "group_label"])
def test_cells_count_alike(by):
    labels, group, training = cohort()
    cells = objectives.cells_of(BOTH, labels, group, 3, training, by)
    for name, values in labels.items():
        columns = (x.reshape(len(group), -1).T for x in (values, cells.cell[name], cells.weight[name]))
        for value, cell, weight in zip(*columns):
            known = ~np.isnan(value) & (value >= 0) & (group >= 0)
            wanted = np.where(known, group * 2 + np.nan_to_num(value) if by == "group_label" else group, -1)
            np.testing.assert_array_equal(cell, wanted)
            sums = [weight[training & (cell == c)].sum() for c in np.unique(cell[known])]
            np.testing.assert_allclose(sums, sums[0], rtol=1e-5)
            assert weight[training & known].mean() == pytest.approx(1, abs=1e-6) and (weight[~known] == 1).all()


def test_reweighing_makes_labels_independent_of_groups_and_leaves_them_as_common():
    labels, group, training = cohort(4000)
    cells = objectives.cells_of(BOTH, labels, group, 3, training, "independent")
    for name, values in labels.items():
        for value, weight in zip(values.reshape(4000, -1).T, cells.weight[name].reshape(4000, -1).T):
            known = training & ~np.isnan(value) & (value >= 0) & (group >= 0)
            share = np.average(value[known], weights=weight[known])
            assert share == pytest.approx(value[known].mean(), abs=1e-5) and weight[known].mean() == pytest.approx(1, abs=1e-5)
            for g in range(3):
                of = known & (group == g)
                assert np.average(value[of], weights=weight[of]) == pytest.approx(share, abs=1e-5) and weight[of].sum() == pytest.approx(of.sum(), rel=1e-5)


def test_a_cell_that_training_lacks_counts_nothing_of_the_others():
    labels, group, training = cohort()
    labels["findings"][training & (group == 2), 0] = 0
    cells = objectives.cells_of(FINDINGS, labels, group, 3, training, "group_label")
    assert not cells.there["findings"][0, 5] and cells.there["findings"].sum() == 17
    first = cells.weight["findings"][training & (cells.cell["findings"][:, 0] >= 0), 0]
    assert first.mean() == pytest.approx(1, abs=1e-6)


def test_weighted_losses_are_means_of_weighted_losses():
    labels, group, training = cohort(40)
    weight = {name: RNG.random(of.shape).astype(np.float32) for name, of in labels.items()}
    rows = np.arange(40)
    view = seen(labels, group, rows, carried={"weight": weight})
    logits = {name: np.asarray(x, np.float64) for name, x in view.logits.items()}
    y, p, known = labels["findings"], special.expit(logits["findings"]), ~np.isnan(labels["findings"])
    of_findings = (-np.where(y == 1, np.log(p), np.log1p(-p)) * weight["findings"])[known].mean()
    sex = labels["sex"] >= 0
    of_sex = (-special.log_softmax(logits["sex"], axis=1)[rows, labels["sex"]] * weight["sex"])[sex].mean()
    np.testing.assert_allclose(objectives.Objective(BOTH).loss({}, {}, view)[0], of_findings + of_sex, rtol=1e-5)


def test_shares_of_cells_grow_with_their_losses():
    """Two steps of Sagawa et al.'s Algorithm 1, written out; and the loss is the shares' mean of the cells' losses where the batch is all of training."""
    labels, group, training = cohort(300)
    training[:] = True
    objective = objectives.of_config(settings("group_dro", step=0.5), BOTH, labels, training, group, ("a", "b", "c"))
    _, memory = objective.begin(5, 0)
    view = seen(labels, group, np.arange(300), carried=objective.carried)
    each, q, sizes, wanted = {}, {}, {}, 0.0
    for name, y in (("findings", labels["findings"]), ("sex", labels["sex"][:, None].astype(float))):
        y = np.where(y < 0, np.nan, y)
        z = np.asarray(view.logits[name], np.float64)
        loss = np.logaddexp(0, np.where(y == 1, -z, z)) if name == "findings" else -special.log_softmax(z, 1)[np.arange(300), labels[name]][:, None]
        inside = [[(group == g) & (column == v) for g in range(3) for v in (0, 1)] for column in y.T]
        each[name] = np.array([[loss[of, k].mean() for of in cells] for k, cells in enumerate(inside)])
        sizes[name] = np.array([[of.sum() for of in cells] for cells in inside])
        q[name] = np.full(each[name].shape, 1 / 6)
        unknown = np.array([loss[(group < 0) & ~np.isnan(column), k].sum() for k, column in enumerate(y.T)])
        # A label's share of the head's known ones; of those without a group each counts as it is.
        wanted += ((q[name] * each[name]).sum(1) * sizes[name].sum(1) + unknown).sum() / (~np.isnan(y)).sum()
    loss, sums = objective.loss({}, memory, view)
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)
    for _ in range(2):
        memory = objective.remember(memory, objective.loss({}, memory, view)[1])
        for name in q:
            q[name] = q[name] * np.exp(0.5 * each[name])
            q[name] /= q[name].sum(1, keepdims=True)
            np.testing.assert_allclose(np.exp(memory[name]), q[name], rtol=1e-4)
    memory = jax.device_get(memory)
    shares = objective.told(memory)["shares"]
    for k, column in enumerate(BOTH["findings"].classes):
        assert [shares[f"{column}: {cell}"] for cell in ("a, absent", "a, present", "b, absent", "b, present", "c, absent", "c, present")] == list(np.exp(memory["findings"][k]))
    first, second = BOTH["sex"].classes
    assert [shares[f"sex: {g}, {value}"] for g in "abc" for value in (first, second)] == list(np.exp(memory["sex"][0]))
    assert len(shares) == 6 * (len(BOTH["findings"].classes) + 1)
    alone = objectives.of_config(settings("group_dro", cells="group"), FINDINGS, {"findings": labels["findings"]}, training, group, ("a", "b", "c"))
    column = FINDINGS["findings"].classes[0]
    assert list(alone.told(jax.device_get(alone.begin(5, 0)[1]))["shares"])[:3] == [f"{column}: {g}" for g in "abc"]


def test_one_image_of_a_rare_cell_moves_its_share_by_little_and_a_small_share_comes_back():
    n = 30000
    label, group = np.zeros((n, 1), np.float32), np.zeros(n, np.int32)
    label[: n // 2], group[n // 4 : -n // 4], group[0] = 1, 1, 2  # the third group has one image, and so no other cell
    x = {"findings": Target("multilabel", ("x",))}
    objective = objectives.of_config(settings("group_dro", step=1.0), x, {"findings": label}, np.ones(n, bool), group, ("a", "b", "c"))
    _, memory = objective.begin(1, 0)
    before = np.exp(memory["findings"][0])
    np.testing.assert_allclose(before, [0.2, 0.2, 0.2, 0.2, 0, 0.2], rtol=1e-5)
    rows, mask = np.arange(8) * (n // 8), jnp.ones(8, bool)
    mine, carried = {"findings": jnp.asarray(label[rows])}, jax.tree.map(lambda x: jnp.asarray(x[rows]), dict(objective.carried))
    view = objectives.Seen({"findings": jnp.full((8, 1), -4.0)}, jnp.zeros((8, 1)), mine, mask, carried, objective.counts(mine, mask, carried), jnp.float32(0), None)

    def after(memory, logits=view.logits["findings"]):
        return objective.remember(memory, objective.loss({}, memory, view._replace(logits={"findings": logits}))[1])

    memory = after(memory)
    assert before[5] < np.exp(memory["findings"][0, 5]) <= before[5] * np.e and np.exp(memory["findings"][0]).sum() == pytest.approx(1, rel=1e-5)
    low = {"findings": memory["findings"].at[0, 5].set(-200.0)}
    # Where the others cost nothing: label by label right, but of the image that the rare cell has.
    right = jnp.asarray(np.where(label[rows] == 1, 20.0, -20.0) * np.where(rows[:, None] == 0, -1, 1), jnp.float32)
    for _ in range(300):
        low = after(low, right)
    assert np.isfinite(low["findings"]).all() and np.exp(low["findings"][0, 5]) > 0.1 and np.exp(low["findings"][0, 4]) == 0


def test_what_a_small_batch_says_of_a_cell_is_right_on_average():
    labels, group, training = cohort(300)
    training[:] = True
    objective = objectives.of_config(settings("group_dro"), FINDINGS, {"findings": labels["findings"]}, training, group, ("a", "b", "c"))
    _, memory = objective.begin(5, 0)
    whole = seen({"findings": labels["findings"]}, group, np.arange(300), carried=objective.carried)
    logits = np.asarray(whole.logits["findings"])
    order, found = np.random.default_rng(0).permutation(300), []
    for rows in order.reshape(-1, 6):
        part = seen({"findings": labels["findings"]}, group, rows, carried=objective.carried, logits={"findings": jnp.asarray(logits[rows])})
        found.append(objective.loss({}, memory, part)[1]["findings"])
    of_parts = sum(one["loss"] for one in found) / sum(one["count"] for one in found)[:, None]
    sums = objective.loss({}, memory, whole)[1]["findings"]
    np.testing.assert_allclose(of_parts, sums["loss"] / sums["count"][:, None], rtol=1e-4)


def test_mmd_is_that_of_its_definition():
    x, group = RNG.normal(size=(12, 4)).astype(np.float32), np.array([0, 0, 1, 1, 1, 2, 2, -1, 0, 1, 2, 3], np.int32)
    x[group == 1] += 1
    known = group >= 0
    squared = ((x[:, None].astype(np.float64) - x[None]) ** 2).sum(-1)
    middle = squared[np.ix_(known, known)].mean()
    kernel = np.mean([np.exp(-squared / (s * middle)) for s in (0.25, 0.5, 1, 2, 4)], axis=0)

    def mean(a, b):
        return np.mean([kernel[i, j] for i in np.flatnonzero(group == a) for j in np.flatnonzero(group == b) if i != j])

    wanted = np.mean([mean(a, a) + mean(b, b) - 2 * mean(a, b) for a, b in ((0, 1), (0, 2), (1, 2))])  # of the fourth there is one image
    np.testing.assert_allclose(jax.jit(objectives.mmd, static_argnums=2)(x, group, 4), wanted, rtol=1e-5)
    np.testing.assert_allclose(objectives.mmd(x, group, 6), wanted, rtol=1e-5)  # groups that the batch lacks have no part in it
    assert objectives.mmd(x, np.where(group == 1, 1, -1).astype(np.int32), 3) == 0


def test_coral_of_many_images_is_that_of_its_definition():
    rng = np.random.default_rng(4)
    group = np.sort(rng.integers(0, 3, 6000)).astype(np.int32)
    x = (rng.normal(size=(6000, 4)) * (1 + group[:, None]) + 0.5 * group[:, None]).astype(np.float32)

    def apart(a, b):
        a, b = x[group == a].astype(np.float64), x[group == b].astype(np.float64)
        return np.mean((a.mean(0) - b.mean(0)) ** 2) + np.mean((np.cov(a.T) - np.cov(b.T)) ** 2)

    wanted = np.mean([apart(a, b) for a, b in ((0, 1), (0, 2), (1, 2))])
    np.testing.assert_allclose(jax.jit(objectives.coral, static_argnums=2)(x, group, 5), wanted, rtol=0.01)


@pytest.mark.parametrize(("distance", "alike"), [(objectives.mmd, 0.02), (objectives.coral, 0.05)])
def test_of_few_images_distances_are_right_on_average(distance, alike):
    """Of groups that are alike 0, which the plain estimates are far from; of others as of very many images."""
    rng = np.random.default_rng(2)
    group = np.repeat([0, 1], [6, 5]).astype(np.int32)
    draws = rng.gamma(2.0, size=(20000, 11, 3)).astype(np.float32)
    shifted = draws.copy()
    shifted[:, 6:] = 2 * shifted[:, 6:] + 1
    of_each = jax.jit(jax.vmap(lambda x: distance(x, group, 2)))
    assert abs(float(of_each(draws).mean())) < alike
    if distance is objectives.coral:
        # means 2 and 5, variances 2 and 8, of three independent features
        assert float(of_each(shifted).mean()) == pytest.approx(9 + 3 * 36 / 9, rel=0.03)
    else:
        assert float(of_each(shifted).mean()) > 10 * alike


@pytest.mark.parametrize("distance", [objectives.mmd, objectives.coral])
def test_distances_have_gradients_where_images_are_alike(distance):
    group = np.array([0, 0, 1, 1, -1], np.int32)
    for x in (jnp.zeros((5, 3)), jnp.ones((5, 3))):
        value, gradient = jax.value_and_grad(lambda x: distance(x, group, 2))(x)
        assert abs(float(value)) < 1e-6 and np.isfinite(gradient).all()


@pytest.mark.parametrize("name", ["dann", "cdann"])
def test_an_adversary_learns_and_features_unlearn(name):
    labels, group, training = cohort(60)
    objective = objectives.of_config(settings(name, strength=2.0, hidden=8), BOTH, labels, training, group, ("a", "b", "c"))
    own, _ = objective.begin(5, 0)
    assert own["kernel"][0].shape == (5 + (5 if name == "cdann" else 0), 8)
    view = seen(labels, group, np.arange(60), progress=0.3)

    def adversary(features, own):
        shown = [features] + ([jnp.where(jnp.isnan(labels["findings"]), 0.0, 2 * labels["findings"] - 1)] if name == "cdann" else [])
        if name == "cdann":
            shown.append(jnp.where(labels["sex"][:, None] >= 0, 2.0 * np.eye(2)[labels["sex"]] - 1, 0.0))
        hidden = jax.nn.relu(jnp.concatenate(shown, 1).astype(jnp.float32) @ own["kernel"][0] + own["bias"][0])
        each = jax.nn.log_softmax(hidden @ own["kernel"][1] + own["bias"][1])[np.arange(60), group]
        return -jnp.where(group >= 0, each, 0.0).sum() / np.float32((group >= 0).sum())

    by_features, by_own = jax.grad(lambda f, own: objective.loss(own, {}, view._replace(features=f))[0], argnums=(0, 1))(view.features, own)
    wanted = jax.grad(adversary, argnums=(0, 1))(view.features, own)
    times = 2.0 * (2 / (1 + np.exp(-3.0)) - 1)
    np.testing.assert_allclose(by_features, -times * wanted[0], rtol=1e-4, atol=1e-7)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), by_own, wanted[1])


def test_the_mean_of_the_groups_heads_is_the_networks_own():
    labels, group, training = cohort(60)
    labels = {"findings": labels["findings"]}
    objective = objectives.of_config(settings("domain_independent"), FINDINGS, labels, training, group, ("a", "b", "c"))
    own, _ = objective.begin(5, 0)
    assert all(not leaf.any() for leaf in jax.tree.leaves(own))
    own = jax.tree.map(lambda x: jnp.asarray(RNG.normal(size=x.shape), jnp.float32), own)
    view = seen(labels, group, np.arange(60))
    kernel, bias = (np.asarray(own["findings"][k], np.float64) for k in ("kernel", "bias"))
    apart = np.einsum("bf,gfc->gbc", np.asarray(view.features, np.float64), kernel) + bias[:, None]
    logits = np.asarray(view.logits["findings"], np.float64) + apart - apart.mean(0)
    assert np.allclose(logits.mean(0), view.logits["findings"], atol=1e-6)
    mine = np.where(group[:, None] >= 0, logits[group, np.arange(60)], view.logits["findings"])
    y = labels["findings"]
    wanted = np.nanmean(np.where(np.isnan(y), np.nan, np.logaddexp(0, np.where(y == 1, -mine, mine))))
    np.testing.assert_allclose(objective.loss(own, {}, view)[0], wanted, rtol=1e-5)


def test_a_group_that_has_a_class_in_every_image_or_none_has_no_head_for_it():
    labels, group, training = cohort(60)
    training[:] = True
    labels["findings"][group == 1, 0] = 0
    labels["sex"][group == 2] = np.where(labels["sex"][group == 2] >= 0, 1, -1)
    objective = objectives.of_config(settings("domain_independent"), BOTH, labels, training, group, ("a", "b", "c"))
    assert objective.said == "for 3 of 15 classes by group there is no head, since training has images of one kind alone"
    own = jax.tree.map(lambda x: jnp.asarray(RNG.normal(size=x.shape), jnp.float32), objective.begin(5, 0)[0])
    view = seen(labels, group, np.arange(60))

    def losses(own):
        return objective.loss(own, {}, view)[0]

    gradient = jax.grad(losses)(own)
    assert not gradient["findings"]["kernel"][1, :, 0].any() and gradient["findings"]["kernel"][1, :, 1].any() and gradient["findings"]["kernel"][0, :, 0].any()
    assert not gradient["sex"]["kernel"][2].any() and gradient["sex"]["kernel"][0].any()
    # The two that have one are read by their mean, which is the network's own.
    moved = jax.tree.map(jnp.asarray, jax.device_get(own))
    moved["findings"]["kernel"] = moved["findings"]["kernel"].at[1, :, 0].set(100.0)
    np.testing.assert_allclose(losses(moved), losses(own), rtol=1e-6)


def test_groups_that_batches_hardly_ever_compare_are_refused():
    labels, group, training = cohort(2000)
    labels = {"findings": labels["findings"]}

    def made(name, images):
        return objectives.of_config(settings(name), FINDINGS, labels, training, group, ("a", "b", "c"), None, images)

    shares = np.array([0.6, 0.25, 0.1, 0.05])
    for name, images, least in (("mmd", 8, 2), ("coral", 32, 4)):
        counts = np.random.default_rng(3).multinomial(images, shares, 20000)[:, :3] >= least
        pair = counts.sum(1) > 1
        told = [float(word.rstrip("%,")) / 100 for word in made(name, images).said.split() if "%" in word]
        np.testing.assert_allclose(told, [pair.mean(), (counts & pair[:, None]).mean(0).min()], atol=0.04)
    for name, images in (("mmd", 2), ("coral", 8)):
        with pytest.raises(UserError, match=rf"config.train.batch_size: in \d+% of batches, or of their parts, of {images} images two groups have the . that {name} compares"):
            made(name, images)


def test_distances_of_features_far_from_nought_are_those_of_the_same_features_near_it():
    rng = np.random.default_rng(5)
    features, group = rng.normal(size=(40, 6)) * 0.01, rng.integers(0, 2, 40).astype(np.int32)
    features[group == 1] += 0.005
    near, far = (objectives.mmd(jnp.asarray(features + shift, jnp.float32), group, 2) for shift in (0.0, 1.0))
    np.testing.assert_allclose(far, near, rtol=1e-3)


def test_what_is_unlearnt_and_matched_is_in_the_log():
    labels, group, training = cohort(80)
    for name, called in (("dann", "adversary_loss"), ("mmd", "distance")):
        objective = objectives.of_config(settings(name, hidden=4), FINDINGS, {"findings": labels["findings"]}, training, group, ("a", "b", "c"))
        own, memory = objective.begin(5, 0)
        assert np.isnan(objective.told(jax.device_get(memory))[called])
        values = []
        for rows in np.arange(80).reshape(4, 20):
            view = seen({"findings": labels["findings"]}, group, rows, carried=objective.carried)
            loss, sums = objective.loss(own, memory, view)
            values.append(float(loss - objective.of_labels(view)))
            memory = objective.remember(memory, sums)
        weights = 0.99 ** np.arange(4)[::-1]
        assert objective.told(jax.device_get(memory))[called] == pytest.approx(np.average(values, weights=weights), rel=1e-3)


def test_images_are_drawn_by_group_or_by_group_and_one_finding():
    labels, group, training = cohort(2000)
    labels = {"findings": labels["findings"]}
    for cells, finding, cell in (("group", "x", group), ("group_label", "y", np.where(np.isnan(labels["findings"][:, 1]) | (group < 0), -1, group * 2 + np.nan_to_num(labels["findings"][:, 1])))):
        objective = objectives.of_config(settings("resample", cells=cells, finding=finding), FINDINGS, labels, training, group, ("a", "b", "c"))
        assert objective.carried == {}
        sums = [objective.draw[training & (cell == c)].sum() for c in np.unique(cell[cell >= 0])]
        np.testing.assert_allclose(sums, sums[0], rtol=1e-5)
    with pytest.raises(UserError, match="objective.finding='w': images are drawn by one finding and group, and it is not learnt; there are x, y, z"):
        objectives.of_config(settings("resample", finding="w"), FINDINGS, labels, training, group, ("a", "b", "c"))


def test_what_was_got_wrong_counts_more():
    labels, _, training = cohort(50)
    known = {name: (of >= 0) & (training if of.ndim == 1 else training[:, None]) for name, of in labels.items()}
    wrong = {name: (RNG.random(of.shape) < 0.3) & known[name] for name, of in labels.items()}
    objective = objectives.of_config(settings("jtt", upweight=4.0), BOTH, labels, training, wrong=wrong)
    for name, weight in objective.carried["weight"].items():
        assert weight[known[name]].mean() == pytest.approx(1, abs=1e-6)
        np.testing.assert_allclose(weight[wrong[name]], 4 * weight[~wrong[name]][0], rtol=1e-6)


@pytest.mark.parametrize("name", [name for name in experiment.OBJECTIVES if name not in ("erm", "jtt")])
def test_a_group_that_training_lacks_is_told(name):
    labels, group, training = cohort()
    training &= group != 1
    with pytest.raises(UserError, match="config.train.objective.attribute=race: no training image is of 'b'"):
        objectives.of_config(settings(name), BOTH, labels, training, group, ("a", "b", "c"))


def test_the_config_knows_all_objectives():
    assert tuple(objectives.OBJECTIVES) == experiment.OBJECTIVES
