"""What is measured in time, beside the way that others do it or the other way that we could."""

import importlib
import os
import platform


def machine(*packages: str) -> str:
    """What a benchmark ran on, in a line: processor, cores, Python, and the versions of these packages."""
    try:
        with open("/proc/cpuinfo") as lines:
            model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):  # not Linux, or a processor that it does not name
        model = platform.processor() or platform.machine()
    versions = [f"{name} {importlib.import_module(name).__version__}" for name in packages]
    return ", ".join([model, f"{os.cpu_count()} cores", f"Python {platform.python_version()}", *versions])


def load() -> float:
    """How many cores' worth of processes have lately been running or waiting to (over a minute); NaN where nobody tells."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return float("nan")


def leave_memory_to_torch() -> None:
    """Of an accelerator's memory JAX would take most at once. To be called before it starts; what the user has set stays."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def import_torchvision():
    """(torch, torchvision), past two operators on boxes that the latter's wheel lacks where it was compiled for another build of torch.

    A DenseNet makes no use of these. Raises ImportError where either is not installed.
    """
    import torch

    try:
        import torchvision
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision
    return torch, torchvision
