"""Fills in a manifest of this folder and prints it.

    python launch/kubernetes/render.py gpu RUN=race ARGS=--config=configs/race.py | kubectl apply -f -

`${NAME}` in a manifest becomes NAME's value of parameters.env, or of NAME=value on the command line. Python alone, so that it runs wherever kubectl
does. A mistake ends in one line and exit status 1, and nothing is printed that kubectl could take.
"""

from __future__ import annotations

import math
import pathlib
import re
import sys

HERE = pathlib.Path(__file__).parent
_NAME = re.compile(r"\$\{([A-Z_]+)\}")
# Pods are RUN-host-0-NUMBER-xxxxx, and that is a host name: 63 characters, as far as 9,999 hosts.
_RUN = re.compile(r"[a-z]([-a-z0-9]{0,43}[a-z0-9])?")


def main(argv: list[str]) -> int:
    try:
        if len(argv) < 2:
            raise ValueError(f"name a manifest: {', '.join(manifests())}")
        print(render(argv[1], dict(_pair(word, "the command line") for word in argv[2:])), end="")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def manifests() -> list[str]:
    return sorted(path.stem for path in HERE.glob("*.yaml"))


def parameters() -> dict[str, str]:
    """{NAME: value} of parameters.env."""
    lines = (HERE / "parameters.env").read_text().splitlines()
    return dict(_pair(line, "parameters.env") for line in lines if line.strip() and not line.startswith("#"))


def render(name: str, given: dict[str, str]) -> str:
    """The text of the manifest `name`.yaml, filled in. Raises ValueError."""
    if name not in manifests():
        raise ValueError(f"{name}: no such manifest; there are {', '.join(manifests())}")
    known = parameters()
    for unknown in given.keys() - known.keys():
        raise ValueError(f"{unknown}: no such parameter; there are {', '.join(known)}")
    known |= given
    text = (HERE / f"{name}.yaml").read_text()
    needed = dict.fromkeys(_NAME.findall(text))  # in their order
    for parameter in needed:
        if not known.get(parameter):
            raise ValueError(f"{parameter} is empty: fill it in, in {HERE / 'parameters.env'}, or add {parameter}=… to this command")
        if "\n" in known[parameter]:
            raise ValueError(f"{parameter}: a parameter is one line")
    if "RUN" in needed and not _RUN.fullmatch(known["RUN"]):
        form = "up to 45 small letters, digits and hyphens, a letter first and no hyphen last"
        raise ValueError(f"RUN={known['RUN']}: pods and hosts are named after it: {form}")
    if "TPU_TOPOLOGY" in needed:
        topology, hosts, chips = (known[key] for key in ("TPU_TOPOLOGY", "TPU_HOSTS", "TPU_CHIPS"))
        numbers = re.fullmatch(r"\d+(x\d+)+ \d+ \d+", f"{topology} {hosts} {chips}")
        if not numbers or math.prod(map(int, topology.split("x"))) != int(hosts) * int(chips):
            told = f"TPU_TOPOLOGY={topology}: not as many chips as TPU_HOSTS={hosts} with TPU_CHIPS={chips} each"
            raise ValueError(f"{told}; no such slice would ever be found")
    return _NAME.sub(lambda found: known[found[1]], text)


def _pair(word: str, where: str) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    if not equals:
        raise ValueError(f"{word!r} in {where}: not NAME=value")
    return name.strip(), value.strip()


if __name__ == "__main__":
    sys.exit(main(sys.argv))
