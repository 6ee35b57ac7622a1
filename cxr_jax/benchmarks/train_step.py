"""Images a second of one training step, beside torchvision's DenseNet in torch eager and through torch.compile.

    python -m cxr_jax.benchmarks.train_step [--batch=N --pixels=N --dtype=float32|bfloat16 --rounds=5 --steps=3] [--without=compile] [--json=FILE]

Ours is the step that a run takes (`training.train.make_step`): scaling of uint8 images, forward, cross-entropy, gradient,
Adam, and the check that parameters are numbers; augmentation is off. Theirs is the same with torch's fused Adam, without
the check. How they are set beside each other, what each column is and what the bounds are: `cxr_jax.benchmarks.densenets`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cxr_jax import benchmarks

if __name__ == "__main__":  # before JAX reads it
    benchmarks.leave_memory_to_torch()

import jax
import numpy as np

from cxr_jax import mesh as meshes
from cxr_jax.benchmarks import densenets
from cxr_jax.training import objectives, optimizers, train


def ours(setting: densenets.Setting) -> tuple[densenets.Contestant, densenets.Program]:
    optimizer = optimizers.adam(setting.config.train, steps_per_epoch=1)
    objective = objectives.Objective(densenets.TARGETS)
    graphdef, state = train.init_state(setting.network(), optimizer, 0, setting.mesh, objective)
    batch = meshes.shard_batch(
        setting.mesh,
        {
            "image": setting.images,
            "mask": np.ones(setting.batch, bool),
            "index": np.arange(setting.batch, dtype=np.int32),
            "labels": {densenets.TARGET: setting.labels},
            "carried": {},
        },
    )
    lowered = train.make_step(graphdef, optimizer, objective, setting.config, setting.mesh).lower(state, batch)
    compiled = lowered.compile()

    def run():
        nonlocal state
        state, loss = jax.block_until_ready(compiled(state, batch))
        return loss

    return densenets.ours_of(run, setting.mesh), densenets.program(lowered, compiled, setting.batch)


def theirs(torch: densenets.Torch, treated: Callable) -> Callable:
    network = torch.network().train()
    adam = torch.torch.optim.Adam(network.parameters(), torch.setting.config.train.learning_rate, fused=True)

    @treated
    def loss_of(images, labels):
        return torch.torch.nn.functional.cross_entropy(network(torch.scaled(images)), labels)

    def run():
        with torch.autocast():
            loss = loss_of(torch.images, torch.labels)
        adam.zero_grad()
        loss.backward()
        adam.step()
        torch.wait()
        return loss

    return run


def main(argv: Sequence[str] | None = None) -> None:
    densenets.compare("train_step", True, ours, theirs, argv)


if __name__ == "__main__":
    main()
