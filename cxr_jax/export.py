"""`python -m cxr_jax.export RUN FILE [--checkpoint=best|last] [--inputs=gray|imagenet]`

Writes the network of a run as torch weights, which torchvision's DenseNet loads: FILE ends in .safetensors, .pt or .pth. Prints what its
outputs are and how it is to be fed. A user's mistake ends in one line and exit status 1.
"""

from __future__ import annotations

import argparse
import logging
import pathlib
import sys

import jax

from cxr_jax import mesh, tables
from cxr_jax.models import densenet, pretrained
from cxr_jax.tables import UserError
from cxr_jax.training import checkpoints, inference
from cxr_jax.training.checkpoints import ModelDescription

FED = {
    "gray": "gray x from 0 to 255 as x / 127.5 - 1, in one channel",
    "imagenet": f"gray x from 0 to 255 as x / 255, three times over, less {', '.join(map(str, pretrained.IMAGENET_MEAN))}"
    f" and over {', '.join(map(str, pretrained.IMAGENET_DEVIATION))}, as torchvision's own weights are",
}
SCORED = {"multiclass": "softmax over these outputs", "multilabel": "sigmoid of each of these outputs"}


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(message)


def parse(argv: list[str]) -> argparse.Namespace:
    """Raises UserError, but for --help, which prints and exits."""
    parser = _Parser(prog="python -m cxr_jax.export", allow_abbrev=False, description="A run's network as torch weights.")
    parser.add_argument("run", metavar="RUN", help="folder of a run that was trained")
    parser.add_argument("file", metavar="FILE", help=f"to write; ends in {', '.join(pretrained.WRITTEN_SUFFIXES)}")
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best", help="of the run's; default: best")
    parser.add_argument("--inputs", choices=pretrained.WRITTEN_INPUTS, default="gray", help="how it is to be fed; default: gray")
    return parser.parse_args(argv[1:])


def restored(run: pathlib.Path, which: str) -> tuple[densenet.DenseNet, ModelDescription, str]:
    """(network, what it is, which state of it) of the `best` or `last` checkpoint of a run. Raises UserError where there is none."""
    if not run.is_dir():
        raise UserError(f"{run}: no such folder; name that of a run")
    folder = run / "checkpoints"
    network, described = inference.restored_network(folder, which, mesh.data_mesh(jax.devices()[:1]))
    if described.shown:
        raise UserError(f"{run}: this network was shown no more than {' '.join(map(str, described.shown))} of images (train.shown), which weights of torch cannot say; it is not exported")
    return network, described, checkpoints.identity(folder, which)


def in_torch(path: pathlib.Path, described: ModelDescription, inputs: str) -> list[str]:
    """The lines of Python that make the network of what was written."""
    model, outputs = described.model, sum(len(target.classes) for target in described.targets.values())
    size = dict(
        growth_rate=model["growth"],
        block_config=tuple(model["blocks"]),
        num_init_features=model["stem"],
        bn_size=model["bottleneck"],
    )
    if size == dict(growth_rate=32, block_config=(6, 12, 24, 16), num_init_features=64, bn_size=4):
        made = f"densenet121(num_classes={outputs})"
    else:
        made = f"DenseNet({', '.join(f'{field}={value}' for field, value in size.items())}, num_classes={outputs})"
    if path.suffix == ".safetensors":
        module, loaded = "safetensors.torch", f"safetensors.torch.load_file({str(path)!r})"
    else:
        module, loaded = "torch", f"torch.load({str(path)!r}, weights_only=True)"
    one_channel = f"network.features.conv0 = torch.nn.Conv2d(1, {model['stem']}, 7, stride=2, padding=3, bias=False)"
    return [
        f"import torchvision, {', '.join(dict.fromkeys(['torch', module]))}",
        f"network = torchvision.models.{made}",
        *([one_channel] if inputs == "gray" else []),
        f"network.load_state_dict({loaded})",
        "network.eval()",
    ]


def text(path: pathlib.Path, described: ModelDescription, told: str, inputs: str) -> str:
    """What a user of the file must know. told: which state of the network was written."""
    lines = [f"{path}: {told}", "outputs, from 0:"]
    first = 0
    for name, target in described.targets.items():
        numbered = ", ".join(f"{i} {each}" for i, each in enumerate(target.classes, first))
        lines.append(f"  {name}: {numbered}; its scores are the {SCORED[target.kind]}")
        first += len(target.classes)
    pixels, channels = described.image_size, 3 if inputs == "imagenet" else 1
    lines.append(f"pictures: {pixels} pixels a side, made smaller bilinearly with antialiasing; {FED[inputs]}: [n, {channels}, {pixels}, {pixels}]")
    if described.model["dtype"] != "float32":
        lines.append(f"numbers: this run's own scores were computed in {described.model['dtype']}; torch's, in float32, differ by that rounding")
    return "\n".join([*lines, "in torch:", *(f"  {line}" for line in in_torch(path, described, inputs))])


def main(argv: list[str]) -> int:
    """Returns the exit status: 0, or 1 for a user's mistake."""
    path = ""
    try:
        asked = parse(argv)
        path = pathlib.Path(asked.file)
        checkpoints.leave_errors_to_us()
        logging.getLogger("absl").setLevel(logging.CRITICAL)  # by which Orbax warns of its own ways, here that it only reads
        network, described, told = restored(pathlib.Path(asked.run), asked.checkpoint)
        state = pretrained.state_dict(network, described.targets, inputs=asked.inputs)
        about = {
            "targets": tables.targets_as_json(described.targets),
            "image_size": described.image_size,
            "inputs": asked.inputs,
            "fed": FED[asked.inputs],
            "checkpoint": told,
        }
        pretrained.write(path, state, about)
    except UserError as error:
        print(f"error: {str(error).splitlines()[0]}", file=sys.stderr)
        return 1
    except OSError as error:
        named = str(error.filename2 or error.filename or path)
        named = path if named.endswith(".partial") else named  # a name that only `tables.whole_file` knows
        print(f"error: {named}: {error.strerror or error}", file=sys.stderr)
        return 1
    print(text(path, described, told, asked.inputs))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
