"""Images a second of the network without a gradient, beside torchvision's DenseNet in torch eager and through torch.compile.

    python -m cxr_jax.benchmarks.inference [--batch=N --pixels=N --dtype=float32|bfloat16 --rounds=5 --steps=3] [--without=compile] [--json=FILE]

Ours is the forward pass that validation, `predict` and `extract` run (`training.inference.Forward`): from uint8 images to
probabilities; features and the means of the blocks' maps come too. Theirs gives probabilities alone, in evaluation mode under
torch.inference_mode. Both normalise by the running statistics that a network begins with, 0 and 1. How they are set beside
each other, what each column is and what the bounds are: `cxr_jax.benchmarks.densenets`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cxr_jax import benchmarks

if __name__ == "__main__":  # before JAX reads it
    benchmarks.leave_memory_to_torch()

import jax
from flax import nnx

from cxr_jax import mesh as meshes
from cxr_jax.benchmarks import densenets
from cxr_jax.training.inference import Forward


def ours(setting: densenets.Setting) -> tuple[densenets.Contestant, densenets.Program]:
    graphdef, params, stats = nnx.split(setting.network(), nnx.Param, nnx.BatchStat)
    params, stats = meshes.replicate(setting.mesh, (params, stats))
    images = meshes.shard_batch(setting.mesh, setting.images)
    lowered = Forward.of(graphdef, densenets.TARGETS, setting.pixels, setting.mesh).run.lower(params, stats, images)
    compiled = lowered.compile()

    def run():
        return jax.block_until_ready(compiled(params, stats, images)).scores[densenets.TARGET]

    return densenets.ours_of(run, setting.mesh), densenets.program(lowered, compiled, setting.batch)


def theirs(torch: densenets.Torch, treated: Callable) -> Callable:
    network = torch.network().eval()

    @treated
    def probabilities(images):
        return network(torch.scaled(images)).float().softmax(1)

    def run():
        with torch.torch.inference_mode(), torch.autocast():
            found = probabilities(torch.images)
        torch.wait()
        return found

    return run


def main(argv: Sequence[str] | None = None) -> None:
    densenets.compare("inference", False, ours, theirs, argv)


if __name__ == "__main__":
    main()
