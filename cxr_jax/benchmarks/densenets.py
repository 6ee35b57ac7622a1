"""Our DenseNet beside torchvision's on one device: what `train_step` and `inference` have in common.

Contestants: ours; torchvision's `DenseNet` in eager torch; the same through torch.compile. All have the same weights at the
start (ours, written by `models.pretrained.state_dict`), the same uint8 images, which lie on the device and are scaled to
[-1, 1] inside what is timed, and the same batch. torchvision's has a stem of one channel, NHWC memory (channels_last), and, for
bfloat16, autocast; ours has bfloat16 activations. torch may try cuDNN's algorithms and use TF32, as XLA does.

They take turns in one process: in every round each runs once untimed, then a few steps, each waited for. A copy of a large
array takes its turn too, for the bandwidth of the device at that time. To be run on a machine that does nothing else: on a
CPU, torch's threads wait for each other busily, and where another process has their core, each wait lasts until that one's
slice of time is over. With one core of two taken, steps of a small network took hundreds of times as long. The load average at
the start is printed where it is above a half.

Columns:

    img/s          median over all timed steps, and their least and greatest
    times ours     their seconds over ours: the median over rounds of the ratios of a round's medians, with the least and the
                   greatest; "not told apart" where 1 lies between these, or where there was one round only
    peak memory    ours: what JAX had in use at most (on a device that counts it, trials of algorithms while compiling
                   included) and what the compiled program takes by itself (arguments, results and temporaries; what is given
                   back in an argument's place counts once). torch: what it allocated at most in a step beyond what was there
                   before it was made; "-" on a CPU, where nobody counts
    agreement      how far the outcome of the first step is from ours, the weights being equal

Then, of our program: bytes accessed, as XLA counts them in what it compiled, and FLOP, as it counts them in what we wrote
(what it compiled calls libraries, whose work it may not know). And bounds: what the dense layers alone must move by a scheme,
at the bandwidth that the copy reached, with the share of that rate that we reach. Stem, transitions and writing the blocks'
maps come on top, so that no network reaches a bound of its scheme; unless what is read again is still in a cache.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh

from configs import base
from cxr_jax import benchmarks, tables
from cxr_jax import mesh as meshes
from cxr_jax.models import densenet, pretrained
from cxr_jax.tables import Target

TARGET = "class"
TARGETS = {TARGET: Target("multiclass", ("a", "b", "c", "d"))}
TINY = {"growth": 4, "blocks": (1, 1), "stem": 8}  # to see that it runs: compiles in seconds
PEERS = ("eager", "compile")
_MIB, _GIB = 2**20, 2**30


# --------------------------------------------------------------------------------------------------------------- setting


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all contestants are given.

    config: a run's, of our network and its training. mesh: of one device. images: uint8 [b, pixels, pixels, 1], on the host.
    labels: int32 [b]. copied: bytes of the array that is copied.
    """

    config: ml_collections.ConfigDict
    mesh: Mesh
    images: np.ndarray
    labels: np.ndarray
    copied: int

    @property
    def platform(self) -> str:
        return self.mesh.devices.flat[0].platform

    @property
    def batch(self) -> int:
        return len(self.images)

    @property
    def pixels(self) -> int:
        return self.config.dataset.image_size

    def network(self) -> densenet.DenseNet:
        """Ours, as it begins; the same each time."""
        return densenet.from_config(self.config.model, {name: len(target.classes) for name, target in TARGETS.items()}, seed=0)


def of_platform(on_cpu, elsewhere):
    """A default that depends on what JAX runs on."""
    return on_cpu if jax.devices()[0].platform == "cpu" else elsewhere


def count(text: str) -> int:
    """A whole number above 0, for argparse."""
    if (number := int(text)) < 1:
        raise ValueError
    return number


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """The flags that every benchmark of the network has."""
    parser.add_argument("--batch", type=count, help="images of a batch; without it 16 on a CPU, else 256")
    parser.add_argument("--pixels", type=count, help="a side that the network sees; without it 128 on a CPU, else 256")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of activations; without it float32 on a CPU, else bfloat16")
    parser.add_argument("--rounds", type=count, default=5, help="turns that each takes")
    parser.add_argument("--json", help="a file that the figures go to")
    parser.add_argument("--tiny", action="store_true", help="a network of a few maps in the place of DenseNet-121, to see that this runs")


def fill_sizes(asked: argparse.Namespace) -> argparse.Namespace:
    asked.batch = asked.batch or of_platform(16, 256)
    asked.pixels = asked.pixels or of_platform(128, 256)
    asked.dtype = asked.dtype or of_platform("float32", "bfloat16")
    return asked


def parse(name: str, argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m cxr_jax.benchmarks.{name}")
    add_sizes(parser)
    parser.add_argument("--steps", type=count, default=3, help="timed steps of a turn")
    parser.add_argument("--without", action="append", choices=PEERS, default=[], help="leave this one out; may be repeated")
    return fill_sizes(parser.parse_args(argv))


def config_of(asked: argparse.Namespace) -> ml_collections.ConfigDict:
    config = base.get_config()
    config.dataset.image_size, config.model.dtype = asked.pixels, asked.dtype
    if asked.tiny:
        config.model.update(TINY)
    return config


def setting_of(asked: argparse.Namespace) -> Setting:
    return drawn(config_of(asked), asked.batch, _MIB if asked.tiny else of_platform(256 * _MIB, _GIB))


def drawn(config: ml_collections.ConfigDict, batch: int, copied: int = 0) -> Setting:
    """Random images and labels for a config, on one device."""
    rng, pixels = np.random.default_rng(0), config.dataset.image_size
    images = rng.integers(0, 256, (batch, pixels, pixels, 1), np.uint8)
    labels = rng.integers(0, len(TARGETS[TARGET].classes), batch, np.int32)
    return Setting(config, meshes.data_mesh(jax.devices()[:1]), images, labels, copied)


# ---------------------------------------------------------------------------------------------------------------- bounds


class Elements(NamedTuple):
    """inputs: A, elements that the dense layers of a network read, each its own input once. bottlenecks: Z, of all bottlenecks. Of one image."""

    inputs: int
    bottlenecks: int


def elements(growth: int, blocks: Sequence[int], stem: int, pixels: int, bottleneck: int = 4) -> Elements:
    """A and Z of a DenseNet: 11.88 and 5.64 million for DenseNet-121 at 256 pixels."""
    side, channels, inputs, bottlenecks = pixels, stem, 0, 0
    for _ in range(2):  # the stem's convolution and its pool round up
        side = (side + 1) // 2
    for layers in blocks:
        inputs += side**2 * sum(channels + i * growth for i in range(layers))
        bottlenecks += side**2 * layers * bottleneck * growth
        channels, side = (channels + layers * growth) // 2, side // 2
    return Elements(inputs, bottlenecks)


class Scheme(NamedTuple):
    """How often a way to run the dense layers reads or writes A and Z: (times A, times Z), forward and backward."""

    name: str
    forward: tuple[int, int]
    backward: tuple[int, int]

    def passes(self, training: bool) -> tuple[int, int]:
        return tuple(f + training * b for f, b in zip(self.forward, self.backward))


SCHEMES = (
    Scheme("eager: every reader normalises anew", (8, 7), (12, 11)),
    Scheme("compiler, concatenations materialised", (6, 5), (9, 9)),
    Scheme("shared statistics", (3, 5), (6, 9)),
    Scheme("and 1x1 products that normalise what they read", (1, 5), (6, 9)),
    Scheme("ideal fused kernels", (1, 2), (3, 5)),
)


def bounds(setting: Setting, training: bool, bytes_per_second: float, ours: float) -> dict:
    """What A and Z are, and for each scheme passes, bytes an image, images/s at that bandwidth and the share that `ours` has."""
    model = setting.config.model
    of = elements(model.growth, model.blocks, model.stem, setting.pixels, model.bottleneck)
    width, schemes = jnp.dtype(model.dtype).itemsize, []
    for scheme in SCHEMES:
        a, z = scheme.passes(training)
        moved = (a * of.inputs + z * of.bottlenecks) * width
        rate = bytes_per_second / moved
        schemes.append(
            {"name": scheme.name, "passes_a": a, "passes_z": z, "bytes_per_image": moved, "images_per_second": rate, "share": ours / rate}
        )
    return {"a": of.inputs, "z": of.bottlenecks, "bytes_per_element": width, "schemes": schemes}


# ----------------------------------------------------------------------------------------------------------------- turns


class Turn(NamedTuple):
    """first: run before the clock starts, in every turn. timed: what is timed. last: after it has stopped."""

    first: Callable[[], Any]
    timed: Callable[[], Any]
    last: Callable[[], Any] = lambda: None


def take_turns(turns: Mapping[str, Turn], rounds: int, steps: int) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Seconds [rounds, steps] of each; and of those that failed, the reason."""
    taken, failed = {name: [] for name in turns}, {}
    for _ in range(rounds):
        for name, turn in turns.items():
            if name in failed:
                continue
            try:
                # On a CPU, memory that the one before gave back to the system is to be had again first, and its threads may
                # still wait for work: both would be charged to whoever comes next.
                turn.first()
                taken[name].append([seconds(turn.timed) for _ in range(steps)])
                turn.last()
            except Exception as error:
                failed[name] = reason(error)
    return {name: np.array(times) for name, times in taken.items() if name not in failed}, failed


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def reason(error: Exception) -> str:
    """An error in a line."""
    if isinstance(error, ImportError):
        return f"not installed ({error}); launch/local.sh --peers brings torch and torchvision"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"failed: {type(error).__name__}{': ' + lines[0][:200] if lines else ''}"


def spread(values: np.ndarray) -> dict[str, float]:
    return {"median": float(np.median(values)), "min": float(np.min(values)), "max": float(np.max(values))}


def ratio(theirs: np.ndarray, ours: np.ndarray) -> dict:
    """Seconds [rounds, steps] over ours, by round; and whether all rounds agree on which is the greater."""
    by_round = np.median(theirs, axis=1) / np.median(ours, axis=1)
    # One round has no spread, and so tells nothing apart.
    told_apart = len(by_round) > 1 and not by_round.min() <= 1 <= by_round.max()
    return {**spread(by_round), "told_apart": bool(told_apart)}


def said(of: Mapping[str, float], form: str = ".4g") -> str:
    return f"{of['median']:{form}} ({of['min']:{form}} to {of['max']:{form}})"


def said_ratio(of: Mapping[str, Any] | None) -> str:
    return "-" if of is None else said(of, ".3f") + ("" if of["told_apart"] else ", not told apart")


def print_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print(("  " + "   ".join(cell.ljust(width) for cell, width in zip(row, widths))).rstrip())


# ----------------------------------------------------------------------------------------------------------- contestants


@dataclasses.dataclass(frozen=True)
class Contestant:
    """run: one step, waited for. outcome: of the first step, to be compared. peak: bytes of memory, None where nobody counts."""

    run: Callable[[], Any]
    outcome: np.ndarray
    peak: int | None


@dataclasses.dataclass(frozen=True)
class Program:
    """Of what XLA compiled, for one image or in all; None what it does not tell."""

    bytes_accessed_per_image: float | None
    flop_per_image: float | None  # in what we wrote
    compiled_flop_per_image: float | None  # in what was compiled of it
    memory_bytes: int | None


def program(lowered, compiled, batch: int) -> Program:
    def told(of, what: str) -> float | None:
        try:
            return of.cost_analysis()[what] / batch
        except Exception:  # of which kind depends on the device
            return None

    of = compiled.memory_analysis()
    taken = of and of.argument_size_in_bytes + of.output_size_in_bytes + of.temp_size_in_bytes - of.alias_size_in_bytes
    return Program(told(compiled, "bytes accessed"), told(lowered, "flops"), told(compiled, "flops"), taken)


def ours_of(run: Callable[[], jax.Array], mesh: Mesh) -> Contestant:
    """run: one step of ours, waited for; gives what is to be compared."""
    outcome = np.asarray(run(), np.float64)
    run()
    # Now, before the copy takes memory: JAX counts over the life of the process.
    stats = mesh.devices.flat[0].memory_stats() or {}
    return Contestant(run, outcome, stats.get("peak_bytes_in_use"))


class Torch:
    """torch and torchvision on the device that JAX runs on; its network, images and labels are those of `setting`.

    Raises ImportError where they are not installed, RuntimeError where torch cannot use the device.
    """

    def __init__(self, setting: Setting):
        self.torch, self.torchvision = benchmarks.import_torchvision()
        self.setting = setting
        kind = {"cpu": "cpu", "gpu": "cuda"}.get(setting.platform)
        if kind is None or (kind == "cuda" and not self.torch.cuda.is_available()):
            raise RuntimeError(f"torch {self.torch.__version__} cannot use this {setting.platform}")
        self.device = self.torch.device(kind)
        self.torch.backends.cudnn.benchmark = True
        self.torch.backends.cudnn.allow_tf32 = self.torch.backends.cuda.matmul.allow_tf32 = kind == "cuda"
        # NHWC with strides to match, which a single channel has only if it comes from there: by these torch decides in which
        # order convolutions write.
        self.images = self.torch.from_numpy(setting.images).permute(0, 3, 1, 2).to(self.device)
        self.labels = self.torch.from_numpy(setting.labels.astype(np.int64)).to(self.device)

    def network(self):
        """torchvision's DenseNet of the size and with the weights of ours."""
        model, own = self.setting.config.model, self.torchvision.models.DenseNet
        network = own(model.growth, tuple(model.blocks), model.stem, model.bottleneck, num_classes=len(TARGETS[TARGET].classes))
        network.features.conv0 = self.torch.nn.Conv2d(1, model.stem, 7, stride=2, padding=3, bias=False)
        weights = pretrained.state_dict(self.setting.network(), TARGETS)
        network.load_state_dict({name: self.torch.tensor(values) for name, values in weights.items()})
        return network.to(self.device, memory_format=self.torch.channels_last)

    @staticmethod
    def scaled(images):
        """uint8 to [-1, 1], as `data.augment.to_model_input` does."""
        return images.float() / 127.5 - 1

    def autocast(self):
        half = self.setting.config.model.dtype == "bfloat16"
        return self.torch.autocast(self.device.type, dtype=self.torch.bfloat16, enabled=half)

    def wait(self) -> None:
        if self.device.type == "cuda":
            self.torch.cuda.synchronize()

    def contestant(self, make: Callable, way: str) -> Contestant:
        """make: (self, a function that does to a function what `way`, one of PEERS, asks for) to one step, waited for."""
        counted = self.device.type == "cuda"
        before = self.torch.cuda.memory_allocated() if counted else 0
        run = make(self, self.torch.compile if way == "compile" else lambda function: function)
        outcome = run().detach().double().cpu().numpy()  # compiles, and tries algorithms
        if counted:
            self.torch.cuda.reset_peak_memory_stats()
        run()
        return Contestant(run, outcome, self.torch.cuda.max_memory_allocated() - before if counted else None)


def torch_contestants(setting: Setting, make: Callable, ways: Sequence[str]) -> tuple[dict[str, Contestant], dict[str, str]]:
    """Those that run, by name; and of those that do not, the reason. make: as `Torch.contestant` takes it."""
    running, failed = {}, {}
    for way in ways:
        try:
            running[f"torch {way}"] = Torch(setting).contestant(make, way)
        except Exception as error:  # what a compiler or a driver raises is anybody's guess
            failed[f"torch {way}"] = reason(error)
    return running, failed


def copy_of(setting: Setting) -> Turn:
    """Adds 1 to every number of a large array, which reads and writes it once."""
    held: list[jax.Array] = []

    # In its own place: else a CPU would also find and clear memory for the result, and read that before it writes there.
    @functools.partial(jax.jit, donate_argnums=0)
    def add(x):
        return x + 1

    def first():
        held.append(jnp.zeros(setting.copied // 4, jnp.float32, device=setting.mesh.devices.flat[0]))
        timed()

    def timed():
        held.append(jax.block_until_ready(add(held.pop())))

    return Turn(first, timed, held.clear)


# ------------------------------------------------------------------------------------------------------------ comparison


def compare(name: str, training: bool, ours: Callable, theirs: Callable, argv: Sequence[str] | None) -> None:
    """Runs a benchmark: parses, measures, prints, writes.

    ours: Setting to (Contestant, Program). theirs: as `make` of `Torch.contestant`.
    """
    asked, load = parse(name, argv), benchmarks.load()
    setting = setting_of(asked)
    own, compiled = ours(setting)
    peers, failed = torch_contestants(setting, theirs, [way for way in PEERS if way not in asked.without])
    contestants = {"ours": own, **peers}
    turns = {who: Turn(contestant.run, contestant.run) for who, contestant in contestants.items()}
    taken, failed_later = take_turns({**turns, "copy": copy_of(setting)}, asked.rounds, asked.steps)
    failed |= failed_later
    if "ours" in failed:
        raise RuntimeError(f"ours {failed['ours']}")

    figures: dict[str, Any] = {
        "benchmark": name,
        "machine": benchmarks.machine("jax", *(["torch", "torchvision"] if peers else [])),
        "device": setting.mesh.devices.flat[0].device_kind,
        "platform": setting.platform,
        "load_before": load,
        "batch": setting.batch,
        "pixels": setting.pixels,
        "dtype": setting.config.model.dtype,
        "model": setting.config.model.to_dict(),
        "parameters": densenet.parameter_count(setting.network()),
        "rounds": asked.rounds,
        "steps": asked.steps,
        "contestants": {
            who: {
                "images_per_second": spread(setting.batch / taken[who]),
                "times_ours": None if who == "ours" else ratio(taken[who], taken["ours"]),
                "peak_bytes": contestant.peak,
                "apart": float(np.max(np.abs(contestant.outcome - own.outcome))),
                "seconds": taken[who],
            }
            for who, contestant in contestants.items()
            if who in taken
        },
        "failed": failed,
        "program": dataclasses.asdict(compiled),
    }
    if "copy" in taken:
        rates = spread(2 * setting.copied / taken["copy"])
        rate = figures["contestants"]["ours"]["images_per_second"]["median"]
        figures["copy"] = {"bytes": setting.copied, "bytes_per_second": rates}
        figures["bounds"] = bounds(setting, training, rates["median"], rate)
    report(figures, "a training step" if training else "inference", "loss" if training else "probabilities")
    if asked.json:
        tables.write_json(asked.json, figures)


def print_machine(figures: Mapping[str, Any]) -> None:
    print(f"{figures['machine']}; {figures['device']}")
    if figures["load_before"] > 0.5:
        print(f"load average {figures['load_before']:.1f} before it began: other processes ran beside it, and may have cost some more than others")


def memory(size: int | None) -> str:
    if size is None:
        return "-"
    return f"{size / _GIB:.3g} GiB" if size >= _GIB else f"{size / _MIB:.3g} MiB"


def report(figures: Mapping[str, Any], what: str, outcome: str) -> None:
    print_machine(figures)
    print(
        f"{what} of a DenseNet of {figures['parameters']:,} parameters, {figures['batch']} images of {figures['pixels']}×{figures['pixels']},"
        f" {figures['dtype']}, {figures['rounds']} rounds of {figures['steps']} steps, one device"
    )
    rows = [("", "img/s (min to max)", "times ours (min to max over rounds)", "peak memory", f"agreement of {outcome}")]
    compiled = figures["program"]
    for who, of in figures["contestants"].items():
        peak, agreement = memory(of["peak_bytes"]), f"apart by at most {of['apart']:.1e}"
        if who == "ours":
            own = f"{memory(compiled['memory_bytes'])} the program's own"
            peak, agreement = own if of["peak_bytes"] is None else f"{peak}, {own}", "-"
        rows.append((who, said(of["images_per_second"]), said_ratio(of["times_ours"]), peak, agreement))
    print_table(rows)
    for who, why in figures["failed"].items():
        print(f"  {who}: {why}")

    def per_image(value, unit: float, name: str) -> str:
        return f"no {name}" if value is None else f"{value / unit:.4g} {name}"

    moved, work = compiled["bytes_accessed_per_image"], compiled["flop_per_image"]
    print(f"ours, an image: {per_image(moved, 1e6, 'MB accessed')}, {per_image(work, 1e9, 'GFLOP')}, as XLA counts")
    if "bounds" not in figures:
        return
    rates, of = figures["copy"]["bytes_per_second"], figures["bounds"]
    print(
        f"x + 1 on {figures['copy']['bytes'] / _MIB:,.0f} MiB, in its place: {said({k: v / 1e9 for k, v in rates.items()})} GB/s read and"
        f" written; at the median of that, for A = {of['a'] / 1e6:.4g} and Z = {of['z'] / 1e6:.4g} million elements of"
        f" {of['bytes_per_element']} bytes an image:"
    )
    rows = [("traffic of the dense layers alone", "passes", "MB an image", "img/s", "share that ours reaches")]
    for scheme in of["schemes"]:
        passes = f"{scheme['passes_a']}A + {scheme['passes_z']}Z"
        rate = f"{scheme['images_per_second']:,.4g}"
        rows.append((scheme["name"], passes, f"{scheme['bytes_per_image'] / 1e6:.4g}", rate, f"{scheme['share']:.1%}"))
    print_table(rows)
