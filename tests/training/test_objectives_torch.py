"""The adversary beside the one that most others use: torch, with a gradient-reversal function as published."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxr_jax.tables import Target
from cxr_jax.training import objectives
from tests.training.test_objectives import settings

pytestmark = pytest.mark.peers
torch = pytest.importorskip("torch", reason="torch is not installed (requirements-peers.txt)")


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, times):
        ctx.times = times
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return -ctx.times * gradient, None


def test_loss_and_gradients_are_those_of_torch():
    """Of an encoder, a finding's head and the adversary, all three at once."""
    rng = np.random.default_rng(0)
    targets = {"findings": Target("multilabel", ("x", "y"))}
    x, y, group = rng.normal(size=(30, 6)).astype(np.float32), (rng.random((30, 2)) < 0.4).astype(np.float32), rng.integers(0, 3, 30).astype(np.int32)
    objective = objectives.of_config(settings("dann", strength=0.7, hidden=5), targets, {"findings": y}, np.ones(30, bool), group, ("a", "b", "c"))
    own, _ = objective.begin(4, 0)
    network = {"encoder": rng.normal(size=(6, 4)).astype(np.float32), "head": rng.normal(size=(4, 2)).astype(np.float32)}
    mask, carried = jnp.ones(30, bool), {"group": jnp.asarray(group)}

    def loss(network, own):
        features = jnp.tanh(x @ network["encoder"])
        labels = {"findings": jnp.asarray(y)}
        counts = objective.counts(labels, mask, carried)
        logits = {"findings": features @ network["head"]}
        return objective.loss(own, {}, objectives.Seen(logits, features, labels, mask, carried, counts, jnp.float32(0.2), None))[0]

    value, gradients = jax.value_and_grad(loss, argnums=(0, 1))(jax.tree.map(jnp.asarray, network), own)

    theirs = jax.tree.map(lambda a: torch.tensor(np.asarray(a), requires_grad=True), (network, own))
    features = torch.tanh(torch.tensor(x) @ theirs[0]["encoder"])
    kernels, biases = theirs[1]["kernel"], theirs[1]["bias"]
    hidden = torch.relu(Reversed.apply(features, 0.7 * (2 / (1 + np.exp(-2.0)) - 1)) @ kernels[0] + biases[0])
    told = torch.nn.functional.cross_entropy(hidden @ kernels[1] + biases[1], torch.tensor(group).long())
    total = torch.nn.functional.binary_cross_entropy_with_logits(features @ theirs[0]["head"], torch.tensor(y)) + told
    total.backward()
    assert float(value) == pytest.approx(total.item(), rel=1e-5)
    jax.tree.map(lambda ours, their: np.testing.assert_allclose(ours, their.grad.numpy(), rtol=1e-4, atol=1e-6), gradients, theirs)
