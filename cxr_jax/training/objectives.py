"""What the network is asked to do: losses of labels, and objectives, which say whose losses count how much and what is to be unlearnt.

An objective is one small object that training asks four things of (`Objective`); a config chooses it by name:

    erm                 the mean loss, nothing else (empirical risk minimisation): the reference of all others
    reweight            losses weighed so that cells (groups, or groups by label) count alike, or as if labels did not depend on groups
    resample            the same by drawing images, a cell as often as any other
    group_dro           the cells that fare worst count most (Sagawa et al. 2020, "Distributionally robust neural networks for group shifts")
    dann, cdann         an adversary reads the attribute off the features, and its gradient comes back reversed (Ganin and Lempitsky 2015,
                        "Unsupervised domain adaptation by backpropagation"); cdann shows it the labels, too (Li et al. 2018,
                        "Deep domain generalization via conditional invariant adversarial networks")
    mmd, coral          distances between the groups' features in a batch are part of the loss (Gretton et al. 2012, "A kernel two-sample
                        test"; Sun and Saenko 2016, "Deep CORAL")
    jtt                 what a first short training gets wrong counts more (Liu et al. 2021, "Just train twice")
    domain_independent  a head for each group, whose mean is read (Wang et al. 2020, "Towards fairness in visual recognition")

None needs the attribute of an image that is judged, and jtt none at all. Every objective is a sum over a batch's images, or of distances
between all of them, so that it is the same over any number of devices; and all that it remembers is in the state of the run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from cxr_jax.tables import Target, UserError

Labels = Mapping[str, ArrayLike]
Tree = Any


# --- losses of labels ------------------------------------------------------------------------------------------------


def categorical_cross_entropy(
    logits: Float[ArrayLike, "b classes"],
    labels: Int[ArrayLike, " b"],
    mask: Bool[ArrayLike, " b"],
    count: Float[ArrayLike, ""] | None = None,
    weights: Float[ArrayLike, " b"] | None = None,
) -> Float[Array, ""]:
    """Mean over the images whose label is known (>= 0) and that are not padding; nats. 0 where there is none.

    count: what the sum is divided by where these images are a part of a batch: how many the whole of it has. weights: what each counts.
    """
    known = _known_class(labels, mask)
    return _mean(_each_class(logits, labels, known), known, count, weights)


def binary_cross_entropy(
    logits: Float[ArrayLike, "b findings"],
    labels: Float[ArrayLike, "b findings"],
    mask: Bool[ArrayLike, " b"],
    count: Float[ArrayLike, ""] | None = None,
    weights: Float[ArrayLike, "b findings"] | None = None,
) -> Float[Array, ""]:
    """Mean over all known labels (1 or 0; NaN is unknown) of all findings; nats. 0 where there is none. count, weights: as above."""
    known = _known_findings(labels, mask)
    return _mean(_each_finding(logits, labels, known), known, count, weights)


def _each_class(logits, labels, known):
    return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(known, labels, 0))


def _each_finding(logits, labels, known):
    # The unknown are replaced before the loss, not after: the gradient of a NaN that is masked later is still NaN.
    return optax.sigmoid_binary_cross_entropy(logits, jnp.where(known, labels, jnp.zeros_like(labels)))


def _known_class(labels: ArrayLike, mask: ArrayLike) -> ArrayLike:
    return mask & (labels >= 0)


def _known_findings(labels: ArrayLike, mask: ArrayLike) -> ArrayLike:
    return mask[:, None] & ~jnp.isnan(labels)


def _mean(each: Array, known: ArrayLike, count: ArrayLike | None, weights: ArrayLike | None = None) -> Array:
    count = jnp.maximum(known.sum(), 1).astype(each.dtype) if count is None else count
    each = each if weights is None else each * weights
    return jnp.where(known, each, jnp.zeros_like(each)).sum() / count


_LOSSES = {"multiclass": categorical_cross_entropy, "multilabel": binary_cross_entropy}
_EACH = {"multiclass": _each_class, "multilabel": _each_finding}
_KNOWN = {"multiclass": _known_class, "multilabel": _known_findings}


def total_loss(
    targets: Mapping[str, Target], logits: Mapping[str, Array], labels: Labels, mask: ArrayLike,
    counts: Mapping[str, Array] | None = None, weights: Labels | None = None,
) -> Float[Array, ""]:  # fmt: skip
    """The sum over heads, each a mean of its own, so that a head with fewer known labels is not drowned.

    counts: by head, the whole batch's `known_labels`, where these images are a part of it; the losses of its parts then
        add up to its loss. weights: by head, what each label counts, in the shape of the labels.
    """
    return sum(
        _LOSSES[target.kind](
            logits[name], labels[name], mask, None if counts is None else counts[name], None if weights is None else weights[name]
        )
        for name, target in targets.items()
    )


def known_labels(targets: Mapping[str, Target], labels: Labels, mask: Bool[ArrayLike, " b"]) -> dict[str, Array]:
    """How many labels each head's loss is a mean of, float32; not yet at least 1."""
    return {name: _KNOWN[target.kind](labels[name], mask).sum().astype(jnp.float32) for name, target in targets.items()}


def probabilities(targets: Mapping[str, Target], logits: Mapping[str, Array]) -> dict[str, Array]:
    """Softmax over the classes of a multiclass head, a sigmoid for each finding of a multilabel one; float32 [b, classes]."""
    links = {"multiclass": jax.nn.softmax, "multilabel": jax.nn.sigmoid}
    return {name: links[target.kind](logits[name].astype(jnp.float32)) for name, target in targets.items()}


# --- cells: groups, or groups by label -------------------------------------------------------------------------------


class Cells(NamedTuple):
    """Which cell every label of a cohort is in, by head; and what it counts where cells are to count alike.

    cell: int32, in the shape of the labels; -1 where the label or the group is unknown. weight: float32, likewise; of mean 1 over what is
    known of each class in training, and 1 where there is no cell. there: bool [classes or 1, cells], which have a label in training.
    """

    cell: Mapping[str, np.ndarray]
    weight: Mapping[str, np.ndarray]
    there: Mapping[str, np.ndarray]


def cells_of(
    targets: Mapping[str, Target], labels: Mapping[str, np.ndarray], group: np.ndarray, groups: int, training: np.ndarray, by: str
) -> Cells:
    """labels: as `cohorts.labels` gives them. group: int32 [n], -1 unknown. training: bool [n]. by: 'group', 'group_label' or 'independent'.

    Of several findings each has cells of its own: group by whether it is there. 'independent' is groups by label, of which each counts as much as
    it would if labels did not depend on groups (Kamiran and Calders 2012, "Data preprocessing techniques for classification without
    discrimination", reweighing): labels stay as common as they are, but where a cell is empty, which no weight can fill.
    """
    found = Cells({}, {}, {})
    for name, target in targets.items():
        of = labels[name]
        known = (of >= 0) if target.kind == "multiclass" else ~np.isnan(of)
        own = group if of.ndim == 1 else np.broadcast_to(group[:, None], of.shape)
        values = 1 if by == "group" else len(target.classes) if target.kind == "multiclass" else 2
        value = 0 if by == "group" else np.where(known, of, 0).astype(np.int32)
        cell = np.where(known & (own >= 0), own * values + value, -1).astype(np.int32)
        weight, columns = np.ones((len(cell), cell[0].size), np.float32), cell.reshape(len(cell), -1)
        there = np.zeros((columns.shape[1], groups * values), bool)
        for c, column in enumerate(columns.T):
            counts = np.bincount(column[training & (column >= 0)], minlength=groups * values)
            there[c] = counts > 0
            wanted = there[c] * counts.sum() / max(there[c].sum(), 1)
            if by == "independent":
                table = counts.reshape(groups, values)
                wanted = there[c] * (table.sum(1, keepdims=True) * table.sum(0) / max(counts.sum(), 1)).ravel()
                wanted *= counts.sum() / max(wanted.sum(), 1)
            each = wanted / np.maximum(counts, 1)
            # What training lacks, validation may have; it is not trained on.
            weight[:, c] = np.where(column >= 0, np.where(there[c], each, 1.0)[column], 1.0)
        found.cell[name], found.there[name] = cell, there
        found.weight[name] = weight.reshape(cell.shape)
    return found


# --- objectives ------------------------------------------------------------------------------------------------------


class Seen(NamedTuple):
    """What an objective sees of some rows of a batch.

    logits, labels: by head. features: float32 [b, F], what the heads read; 0 where padded. mask: bool [b]. carried: what `Objective.carried`
    has of these rows. counts: of the whole batch, by head, how many labels are known, at least 1; under 'group' how many images
    whose group is known. progress: float32, the share of training that is done. axis: of the mesh, or None for a device that is alone.
    """

    logits: Mapping[str, Array]
    features: Array
    labels: Labels
    mask: Array
    carried: Mapping[str, Tree]
    counts: Mapping[str, Array]
    progress: Array
    axis: str | None


@dataclasses.dataclass(frozen=True)
class Objective:
    """Empirical risk minimisation, and what the others differ from.

    targets: what is learnt. settings: a config's `train.objective`. groups: classes of its attribute. carried: of every row of the cohort what
    `loss` reads, a tree of arrays [n, …] that travel with the batches. draw: float64 [n], how often a row is to be drawn, of mean 1 over
    training; None: each once an epoch. there: `Cells.there`, for those that have cells. said: what must be known of it, in a sentence, or ''.
    """

    targets: Mapping[str, Target]
    settings: Any = None
    groups: Sequence[str] = ()
    carried: Mapping[str, Tree] = dataclasses.field(default_factory=dict)
    draw: np.ndarray | None = None
    there: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    said: str = ""

    def begin(self, features: int, seed: int) -> tuple[Tree, Tree]:
        """(parameters of its own, to be learnt beside the network's; what it remembers from step to step); trees of float32 arrays."""
        return {}, {}

    def counts(self, labels: Labels, mask: Array, carried: Mapping[str, Tree]) -> dict[str, Array]:
        """What losses are divided by, of some rows: float32, to be added up over the batch."""
        known = known_labels(self.targets, labels, mask)
        return known | ({"group": (mask & (carried["group"] >= 0)).sum().astype(jnp.float32)} if "group" in carried else {})

    def loss(self, own: Tree, memory: Tree, seen: Seen) -> tuple[Array, Tree]:
        """(loss, sums to remember) of some rows; both add up to those of the batch."""
        return self.of_labels(seen), {}

    def remember(self, memory: Tree, sums: Tree) -> Tree:
        """What it remembers after a step in which the whole batch had these sums."""
        return memory

    def told(self, memory: Tree) -> dict[str, float | dict[str, float]]:
        """What of it, as numpy arrays, is worth a line in the log of an epoch: numbers by name."""
        return {}

    def of_labels(self, seen: Seen) -> Array:
        return total_loss(self.targets, seen.logits, seen.labels, seen.mask, seen.counts, seen.carried.get("weight"))


class GroupDRO(Objective):
    """Σ share · loss over cells, where the share of a cell grows by exp(settings.step · its loss) at every step.

    As Algorithm 1 of Sagawa et al., but that images come as they are, not a cell as often as any other: the loss of a cell in a batch is estimated by
    the inverse of its share of training, so that it is right on average however few images of a cell a batch has, or none. What a batch says of a cell
    that one in thousands is of is little, and loud; so no share grows by more than e in one step. Shares are those before the step. What is remembered are
    their logarithms, so that one that has become small can come back; NOWHERE of a cell that training lacks.
    """

    def begin(self, features, seed):
        return {}, {name: jnp.asarray(np.where(there, -np.log(np.maximum(there.sum(1, keepdims=True), 1)), NOWHERE), jnp.float32) for name, there in self.there.items()}

    def loss(self, own, memory, seen):
        weights, sums = {}, {}
        for name, target in self.targets.items():
            cell, share = seen.carried["cell"][name], jnp.exp(memory[name])
            column = jnp.arange(len(share)) if cell.ndim == 2 else 0
            cells = jnp.asarray(self.there[name].sum(1), jnp.float32)[column]
            mine = jnp.where(cell >= 0, share[column, jnp.maximum(cell, 0)] * cells, jnp.float32(1.0))
            weights[name] = seen.carried["weight"][name] * mine
            known = _KNOWN[target.kind](seen.labels[name], seen.mask)
            each = jax.lax.stop_gradient(_EACH[target.kind](seen.logits[name], seen.labels[name], known)) * seen.carried["weight"][name]
            counted = known & (cell >= 0)
            inside = (cell[..., None] == jnp.arange(share.shape[1])) & counted[..., None]
            sums[name] = {
                "loss": jnp.where(inside, each[..., None], jnp.float32(0.0)).sum(0).reshape(share.shape) * jnp.atleast_1d(cells)[:, None],
                "count": counted.sum(0).astype(jnp.float32).reshape(-1),
            }
        return total_loss(self.targets, seen.logits, seen.labels, seen.mask, seen.counts, weights), sums

    def remember(self, memory, sums):
        def moved(logarithm, of, there):
            loss = of["loss"] / jnp.maximum(of["count"], 1)[:, None]
            grown = logarithm + jnp.minimum(jnp.float32(self.settings.step) * loss, jnp.float32(1.0))
            return jnp.where(there, grown - jax.nn.logsumexp(grown, axis=1, keepdims=True), jnp.float32(NOWHERE))

        return {name: moved(logarithm, sums[name], jnp.asarray(self.there[name])) for name, logarithm in memory.items()}

    def told(self, memory):
        shares = {}
        for name, share in ((name, np.exp(logarithm)) for name, logarithm in memory.items()):
            target, values = self.targets[name], share.shape[1] // len(self.groups)
            of_values = [""] if values == 1 else [", absent", ", present"] if target.kind == "multilabel" else [f", {c}" for c in target.classes]
            cells = [group + value for group in self.groups for value in of_values]
            for column, of in zip(target.classes if target.kind == "multilabel" else [name], share, strict=True):
                shares |= {f"{column}: {cell}": float(s) for cell, s in zip(cells, of, strict=True)}
        return {"shares": shares}


NOWHERE = -1e4  # whose exponential is 0
_LATELY = 0.01  # share of a step in a running mean


def _running(before: Array, value: Array) -> Array:
    """float32 [2], a running sum and its weight, after one more value."""
    return jnp.float32(1 - _LATELY) * before + jnp.float32(_LATELY) * jnp.stack([value, jnp.ones_like(value)])


def _mean_of(running: np.ndarray) -> float:
    return float(running[0] / running[1]) if running[1] > 0 else float("nan")


@jax.custom_vjp
def reversed_gradient(x: Array, times: Array) -> Array:
    """x; its gradient comes back times -`times`."""
    return x


reversed_gradient.defvjp(lambda x, times: (x, times), lambda times, cotangent: (-times * cotangent, jnp.zeros_like(times)))


class Adversarial(Objective):
    """Labels' loss, and the cross-entropy of an adversary that reads the attribute off the features, whose gradient is reversed for them.

    The adversary has one hidden layer of settings.hidden units (ReLU). The reversed gradient counts settings.strength times 2/(1 + exp(-10 p)) - 1, p the
    share of training that is done, as published. cdann shows it each label too, as 1, -1 or 0 where unknown.
    """

    def _shown(self, features, labels, mask):
        if self.settings.name == "dann":
            return features
        shown = [features]
        for name, target in self.targets.items():
            known = _KNOWN[target.kind](labels[name], mask)
            of = jax.nn.one_hot(labels[name], len(target.classes)) if target.kind == "multiclass" else labels[name]
            known = known if known.ndim == 2 else known[:, None]
            shown.append(jnp.where(known, 2 * of - 1, jnp.zeros_like(of)))
        return jnp.concatenate(shown, axis=1)

    def begin(self, features, seed):
        inputs = features + (sum(len(t.classes) for t in self.targets.values()) if self.settings.name == "cdann" else 0)
        sizes = (inputs, self.settings.hidden, len(self.groups))
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1), 2)
        return {
            "kernel": [jax.random.normal(key, pair) * np.float32(np.sqrt(2 / pair[0])) for key, pair in zip(keys, zip(sizes, sizes[1:]))],
            "bias": [jnp.zeros(size) for size in sizes[1:]],
        }, {"loss": jnp.zeros(2)}

    def loss(self, own, memory, seen):
        times = jnp.float32(self.settings.strength) * (2 / (1 + jnp.exp(-10 * seen.progress)) - 1)
        shown = self._shown(reversed_gradient(seen.features, times), seen.labels, seen.mask)
        hidden = jax.nn.relu(shown @ own["kernel"][0] + own["bias"][0])
        logits = hidden @ own["kernel"][1] + own["bias"][1]
        told = categorical_cross_entropy(logits, seen.carried["group"], seen.mask, seen.counts["group"])
        return self.of_labels(seen) + told, {"loss": jax.lax.stop_gradient(told)}

    def remember(self, memory, sums):
        return {"loss": _running(memory["loss"], sums["loss"])}

    def told(self, memory):
        return {"adversary_loss": _mean_of(memory["loss"])}


class Matching(Objective):
    """Labels' loss, and settings.strength times how far the groups' features in the batch are apart: the mean over pairs of groups in it.

    Of a batch that is worked through in parts (train.accumulate) distances are within a part, as its statistics are.
    """

    def begin(self, features, seed):
        return {}, {"distance": jnp.zeros(2)}

    def loss(self, own, memory, seen):
        group = jnp.where(seen.mask, seen.carried["group"], -1)
        features, everyone, here = seen.features, group, (group >= 0).sum().astype(jnp.float32)
        if seen.axis is not None:
            features, everyone = (jax.lax.all_gather(x, seen.axis, tiled=True) for x in (features, group))
        # A device's part of what is the same on all of them, and a part's of the batch, by how many images are its own.
        apart = _DISTANCES[self.settings.name](features, everyone, len(self.groups)) * here / seen.counts["group"]
        return self.of_labels(seen) + jnp.float32(self.settings.strength) * apart, {"distance": jax.lax.stop_gradient(apart)}

    def remember(self, memory, sums):
        return {"distance": _running(memory["distance"], sums["distance"])}

    def told(self, memory):
        return {"distance": _mean_of(memory["distance"])}


def mmd(features: Float[ArrayLike, "b F"], group: Int[ArrayLike, " b"], groups: int) -> Float[Array, ""]:
    """Squared maximum mean discrepancy, the mean over pairs of groups that have two images or more; 0 where there is no such pair.

    The kernel is the mean of five Gaussians, exp(-|x - y|² / (s · m)), m the mean squared distance of the images here (no gradient through it)
    and s of 1/4, 1/2, 1, 2, 4. Unbiased (Gretton et al. 2012, lemma 6), so that it may be below 0: the biased one is above 0 for groups that are alike, and of
    the few images that a batch has of a group that is most of it, which features can only lower by telling nothing apart.
    """
    features, group = jnp.asarray(features), jnp.asarray(group)
    known = group >= 0
    # Distances are differences of large numbers where features lie far from 0, and accelerators multiply in few digits unless told.
    centred = features - jax.lax.stop_gradient((features * known[:, None].astype(features.dtype)).sum(0) / jnp.maximum(known.sum(), 1).astype(features.dtype))
    squares = (centred * centred).sum(1)
    squared = jnp.maximum(squares[:, None] + squares[None, :] - 2 * jnp.matmul(centred, centred.T, precision=jax.lax.Precision.HIGHEST), 0)
    both = (known[:, None] & known[None, :]).astype(features.dtype)
    middle = jax.lax.stop_gradient((squared * both).sum() / jnp.maximum(both.sum(), 1))
    scale = jnp.asarray((0.25, 0.5, 1.0, 2.0, 4.0), features.dtype) * jnp.maximum(middle, 1e-12)
    kernel = jnp.exp(-squared[..., None] / scale).mean(-1)
    inside, size = _members(group, groups, features.dtype)
    sums = inside.T @ kernel @ inside
    own = (jnp.diag(sums) - inside.T @ jnp.diag(kernel)) / jnp.maximum(size * (size - 1), 1)
    across = sums / jnp.maximum(size[:, None] * size[None, :], 1)
    return _over_pairs(own[:, None] + own[None, :] - 2 * across, size > 1)


def coral(features: Float[ArrayLike, "b F"], group: Int[ArrayLike, " b"], groups: int) -> Float[Array, ""]:
    """Mean squared difference of means, and of covariances, of the features of two groups; over pairs of groups that have four images or more.

    Means beside covariances as in Gulrajani and Lopez-Paz 2021, "In search of lost domain generalization". Unbiased, for the reason given in `mmd`: from the
    squared difference of means goes what chance adds, and tr ΣΣ is Himeno and Yamada's (2014, Journal of Multivariate Analysis 130:27-38). Covariances
    themselves are not made: |A - B|² = tr AA - 2 tr AB + tr BB, and tr AB is a sum of squared products of images.
    """
    features, group = jnp.asarray(features), jnp.asarray(group)
    inside, size = _members(group, groups, features.dtype)
    n = jnp.maximum(size, 4)
    mean = inside.T @ features / jnp.maximum(size, 1)[:, None]
    centred = (features - inside @ mean) * inside.sum(1, keepdims=True)
    gram = centred @ centred.T
    length = jnp.diag(gram)
    products = inside.T @ jnp.square(gram) @ inside / ((n - 1)[:, None] * (n - 1)[None, :])
    trace, fourth = inside.T @ length / (n - 1), inside.T @ jnp.square(length) / (n - 1)
    squared = (n - 1) / (n * (n - 2) * (n - 3)) * ((n - 1) * (n - 2) * jnp.diag(products) + jnp.square(trace) - n * fourth)
    chance = trace / n
    apart = jnp.square(mean[:, None] - mean[None, :]).sum(-1) - chance[:, None] - chance[None, :]
    covariances = squared[:, None] + squared[None, :] - 2 * products
    width = features.shape[1]
    return _over_pairs(apart / width + covariances / width**2, size > 3)


def _members(group, groups, dtype):
    inside = (group[:, None] == jnp.arange(groups)).astype(dtype)
    return inside, inside.sum(0)


def _over_pairs(apart, there):
    pairs = jnp.triu(there[:, None] & there[None, :], 1)
    return jnp.where(pairs, apart, jnp.zeros_like(apart)).sum() / jnp.maximum(pairs.sum(), 1).astype(apart.dtype)


_DISTANCES: Mapping[str, Callable] = {"mmd": mmd, "coral": coral}


class DomainIndependent(Objective):
    """An image's loss is by its group's head; what is read is the mean over the groups' logits, which is a linear head itself.

    So the network's own head is that mean, and what is learnt beside it is how far each group's is from it. An image whose group is unknown has
    its loss by the mean, and so has, for a class, one of a group that training has only with it or only without: a head of its own would learn just that,
    and what is read be off by it for everyone.
    """

    @property
    def _whole(self) -> dict[str, np.ndarray]:
        """Which groups have a head of their own for each class, float32 [groups, classes]."""
        both = {name: there.reshape(len(there), len(self.groups), -1).all(2).T for name, there in self.there.items()}
        return {name: np.broadcast_to(both[name], (len(self.groups), len(target.classes))).astype(np.float32) for name, target in self.targets.items()}

    def begin(self, features, seed):
        def head(classes):
            return {"kernel": jnp.zeros((len(self.groups), features, classes)), "bias": jnp.zeros((len(self.groups), classes))}

        return {name: head(len(target.classes)) for name, target in self.targets.items()}, {}

    def loss(self, own, memory, seen):
        group = seen.carried["group"]

        def of_group(logits, head, whole):
            share = whole / np.maximum(whole.sum(0), 1)
            kernel = (head["kernel"] - jnp.einsum("gfc,gc->fc", head["kernel"], share)) * whole[:, None]
            bias = (head["bias"] - (head["bias"] * share).sum(0)) * whole
            apart = jnp.einsum("bf,gfc->bgc", seen.features, kernel) + bias
            mine = jnp.take_along_axis(apart, jnp.maximum(group, 0)[:, None, None], axis=1)[:, 0]
            return logits + jnp.where((group >= 0)[:, None], mine, jnp.zeros_like(mine))

        whole = self._whole
        logits = {name: of_group(logits, own[name], whole[name]) for name, logits in seen.logits.items()}
        return self.of_labels(seen._replace(logits=logits)), {}


OBJECTIVES: Mapping[str, type[Objective]] = {
    "erm": Objective,
    "reweight": Objective,
    "resample": Objective,
    "group_dro": GroupDRO,
    "dann": Adversarial,
    "cdann": Adversarial,
    "mmd": Matching,
    "coral": Matching,
    "jtt": Objective,
    "domain_independent": DomainIndependent,
}


def of_config(
    settings, targets: Mapping[str, Target], labels: Mapping[str, np.ndarray], training: np.ndarray,
    group: np.ndarray | None = None, groups: Sequence[str] = (), wrong: Mapping[str, np.ndarray] | None = None, images: int = 0,
) -> Objective:  # fmt: skip
    """The objective of a config's `train.objective` section, on a cohort.

    labels: of every row, as `cohorts.labels` gives them. training: bool [n]. group: int32 [n], number of each row's group, -1 unknown; groups:
    their names; for those that need them. wrong: of jtt, by head in the shape of the labels, bool, which a first training got wrong.
    images: that are compared with one another, of those that compare: of a batch, or of a part of it; 0: not asked whether they are enough.
    Raises UserError for a finding that is not learnt, a group that training lacks, and batches in which hardly ever two groups are to be compared.
    """
    name = settings.name
    if name in ("erm", "jtt"):
        if name == "erm":
            return Objective(targets, settings)
        weight = {head: np.where(of, settings.upweight, 1.0) for head, of in wrong.items()}
        known = {head: (training if of.ndim == 1 else training[:, None]) & (of >= 0) for head, of in labels.items()}  # NaN is not
        # Of mean 1 over what the loss is a mean over, so that the rate keeps its meaning, and heads theirs beside each other.
        return Objective(targets, settings, carried={"weight": {k: (w / w[known[k]].mean()).astype(np.float32) for k, w in weight.items()}})
    sizes = np.bincount(group[training & (group >= 0)], minlength=len(groups))
    if not sizes.all():
        raise UserError(
            f"config.train.objective.attribute={settings.attribute}: no training image is of {groups[int(np.argmin(sizes))]!r}; {name} needs some of every group"
        )
    draw, there, carried, said = None, {}, {"group": np.asarray(group, np.int32)}, ""
    if name in _DISTANCES and images:
        said = _compared(name, sizes / training.sum(), images)
    if name == "domain_independent":
        there = cells_of(targets, labels, group, len(groups), training, "group_label").there
        found = OBJECTIVES[name](targets, settings, tuple(groups), carried, draw, there)
        lacking, of = sum(int((1 - x).sum()) for x in found._whole.values()), sum(x.size for x in found._whole.values())
        return dataclasses.replace(found, said=f"for {lacking} of {of} classes by group there is no head, since training has images of one kind alone" if lacking else "")
    if name in ("reweight", "group_dro", "resample"):
        cells = cells_of(targets, labels, group, len(groups), training, settings.cells)
        there = cells.there
        if name == "resample":
            carried, draw = {}, _draw(cells, targets, group, sizes, settings)
        else:
            carried = {"weight": cells.weight} | ({"cell": cells.cell} if name == "group_dro" else {})
    return OBJECTIVES[name](targets, settings, tuple(groups), carried, draw, there, said)


_LEAST_OF_A_GROUP = {"mmd": 2, "coral": 4}  # images, to be compared


def _compared(name: str, shares: np.ndarray, images: int) -> str:
    """In how many batches of so many images groups are compared, in a sentence. shares: of groups in training. Raises UserError where it is in fewer than half."""
    counts = np.random.default_rng(0).multinomial(images, [*shares, max(1 - shares.sum(), 0)], 2000)[:, :-1]
    there = counts >= _LEAST_OF_A_GROUP[name]
    pair = there.sum(1) > 1
    if pair.mean() < 0.5:
        raise UserError(
            f"config.train.batch_size: in {pair.mean():.0%} of batches, or of their parts, of {images} images two groups have the {_LEAST_OF_A_GROUP[name]} that {name}"
            " compares; take larger batches, or fewer parts (train.accumulate)"
        )
    rarest = (there & pair[:, None]).mean(0).min()
    return f"{name} compares groups in {pair.mean():.0%} of batches, and the rarest of them in {rarest:.0%}"


def _draw(cells: Cells, targets: Mapping[str, Target], group: np.ndarray, sizes: np.ndarray, settings) -> np.ndarray:
    """How often each row is to be drawn, float64 [n]: by its group, or by group and the one label that an image is drawn by."""
    name, target = next(iter(targets.items()))
    if settings.cells == "group":
        return np.where(group >= 0, (sizes.sum() / (len(sizes) * sizes))[group], 1.0)
    if target.kind == "multiclass":
        return cells.weight[name].astype(np.float64)
    if settings.finding not in target.classes:
        known = ", ".join(target.classes)
        raise UserError(f"config.train.objective.finding={settings.finding!r}: images are drawn by one finding and group, and it is not learnt; there are {known}")
    return cells.weight[name][:, target.classes.index(settings.finding)].astype(np.float64)
