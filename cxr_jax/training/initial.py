"""What training begins from: drawn weights, those of another run, or weights from elsewhere."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

import jax
import ml_collections
from flax import nnx

from cxr_jax import mesh as meshes
from cxr_jax.models import densenet, pretrained
from cxr_jax.tables import Target, UserError
from cxr_jax.training import checkpoints, inference
from cxr_jax.training.checkpoints import ModelDescription

# Of a network's description; the rest of it is what both must have in common.
_MAY_DIFFER = ("dtype", "stem_constant")


def network(config: ml_collections.ConfigDict, targets: Mapping[str, Target]) -> tuple[densenet.DenseNet, ModelDescription, str]:
    """(the network with the weights that training begins from, what it is, where they are from in a sentence, or "").

    config.model.init_from: a torch state dict (see `models.pretrained`), of which the classifier is left out, since what its outputs mean
    is not known; or a run's folder, whose best checkpoint it takes, with the heads whose classes are these targets'. Everything else is
    drawn from config.seed. Raises UserError where that is no such file or folder, or of a network of another size.
    """
    m = config.model
    given = pathlib.Path(m.init_from).expanduser()
    model = {name: m[name] for name in densenet.FIELDS}
    if not m.init_from:
        params, told, there = None, "", model
    elif given.suffix in pretrained.SUFFIXES:
        found = pretrained.read(given, classifier=False, inputs=m.init_inputs or None)
        params, told, there = nnx.state(found.network), f"{given.name} (inputs {found.inputs})", found.model
    else:
        if m.init_inputs:
            raise UserError(f"config.model.init_inputs={m.init_inputs}: says how a file of weights is fed; {given} is none, and a run's network is fed as it was")
        params, told, there = _of_run(given, targets)
    model["blocks"], there = tuple(model["blocks"]), {**there, "blocks": tuple(there["blocks"])}
    differing = [k for k in densenet.FIELDS if k not in _MAY_DIFFER and model[k] != there[k]]
    if differing:
        what = "; ".join(f"model.{k} is {there[k]} there, {model[k]} here" for k in differing)
        remedy = " ".join(f"--config.model.{k}='{there[k]}'" for k in differing)
        raise UserError(f"config.model.init_from={m.init_from}: {what}; set {remedy}")
    model["stem_constant"] = bool(model["stem_constant"] or there["stem_constant"])

    drawn, described = _drawn(model, config, targets)
    if params is not None:
        nnx.update(drawn, params)
    return drawn, described, f"training begins from {told}" if told else ""


def network_to_go_on_with(config: ml_collections.ConfigDict, targets: Mapping[str, Target], folder: pathlib.Path):
    """(a network of the shape that the checkpoints in `folder` have, what it is), whose weights these are to replace: what it began from is no longer asked for."""
    return _drawn(ModelDescription.read(folder).model, config, targets)


def begun_or_gone_on_with(config: ml_collections.ConfigDict, targets: Mapping[str, Target], folder: pathlib.Path) -> tuple[densenet.DenseNet, ModelDescription, str]:
    """`network_to_go_on_with`, and "", where the checkpoints in `folder` have a state; else `network`."""
    if checkpoints.has_state(folder):
        return *network_to_go_on_with(config, targets, folder), ""
    return network(config, targets)


def _drawn(model: Mapping, config: ml_collections.ConfigDict, targets: Mapping[str, Target]) -> tuple[densenet.DenseNet, ModelDescription]:
    heads = {name: len(target.classes) for name, target in targets.items()}
    network = densenet.from_config(ml_collections.ConfigDict(dict(model)), heads, config.seed)
    return network, ModelDescription(model, targets, config.dataset.image_size, tuple(config.train.shown))


def _of_run(given: pathlib.Path, targets: Mapping[str, Target]) -> tuple[nnx.State, str, Mapping]:
    """(parameters and statistics, which they are, the network's description) of a run's best checkpoint."""
    if not given.is_dir():
        raise UserError(f"config.model.init_from={given}: no folder of a run, and no file of weights ({', '.join(pretrained.SUFFIXES)})")
    folder = given / "checkpoints"
    if not folder.is_dir():
        raise UserError(f"config.model.init_from={given}: holds no checkpoints; name the folder of a run that was trained")
    there, described = inference.restored_network(folder, "best", meshes.data_mesh(jax.local_devices()[:1]))
    state = jax.device_get(nnx.state(there))
    shared = [name for name, target in described.targets.items() if targets.get(name) == target]
    state = nnx.State({**state, "heads": {name: state["heads"][name] for name in shared}})
    heads_told = f", with its head{'s' * (len(shared) > 1)} for {' and '.join(shared)}" if shared else ", without its heads"
    return state, f"the {checkpoints.identity(folder, 'best')} of {given}{heads_told}", described.model
