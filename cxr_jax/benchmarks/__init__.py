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
