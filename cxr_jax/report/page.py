"""What all pages share: how templates are filled, the style, and what a data set is called."""

from __future__ import annotations

import base64
import dataclasses
import importlib.resources
import io
import pathlib
import re
from collections.abc import Mapping, Sequence

import jinja2
import markupsafe
import numpy as np
from PIL import Image

from cxr_jax import tables


def render(template: str, **values) -> str:
    """A page that needs nothing from anywhere else. Raises jinja2.UndefinedError for a value that it lacks."""
    folder = importlib.resources.files(__package__)
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: folder.joinpath(name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_uri"] = lambda svg: "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
    # Long names of groups may be broken after a slash, where browsers would not.
    environment.filters["breakable"] = lambda text: markupsafe.escape(text).replace("/", markupsafe.Markup("/<wbr>"))
    style = folder.joinpath("style.css").read_text(encoding="utf-8")
    return environment.get_template(template).render(style=style, **values)


def for_terminal(text: str) -> str:
    """Text without what a terminal would obey: a name from somebody's table may hold any character."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\N{REPLACEMENT CHARACTER}", text)


def called(dataset: Mapping) -> str:
    """Name, variant and version of a data set, as `Dataset.summary()` has them."""
    return " ".join(str(dataset[k]) for k in ("name", "variant", "version") if k in dataset and dataset[k])


def table(caption: str, head: Sequence[str], lines: Sequence[tuple[str, Sequence]]) -> dict:
    """head: of every column; a line break parts a name from its n. lines: (name, other cells), each a text or several
    lines of it. A last column headed 'note' is of words, and left out where there are none."""
    notes = bool(head) and head[-1] == "note"
    if notes and not any(cells[-1] for _, cells in lines):
        head, lines, notes = head[:-1], [(name, cells[:-1]) for name, cells in lines], False
    lines = [(name, [[cell] if isinstance(cell, str) else cell for cell in cells]) for name, cells in lines]
    return {"caption": caption, "head": [name.split("\n") for name in head], "lines": lines, "notes": notes}


@dataclasses.dataclass
class Section:
    """A part of a page of sections. said: sentences. tables: as `table` makes them. drawn: figures.Drawing. examples: (caption, pictures as `pictures` makes them), of open
    data alone. details: (summary, tables), folded."""

    name: str
    title: str
    said: list[str] = dataclasses.field(default_factory=list)
    tables: list[dict] = dataclasses.field(default_factory=list)
    drawn: list = dataclasses.field(default_factory=list)
    examples: list[tuple[str, list]] = dataclasses.field(default_factory=list)
    details: list[tuple[str, list[dict]]] = dataclasses.field(default_factory=list)


def write_sections(folder: pathlib.Path, name: str, title: str, headline: str, invented: bool, sections: Sequence[Section], read: Sequence[str]) -> pathlib.Path:
    """Writes the page `name` and its figures in `folder`, each whole or not at all; returns the page's path. read: sentences on how it is to be read."""
    for drawing in (d for section in sections for d in section.drawn):
        tables.write_text(folder / "figures" / f"{drawing.name}.svg", drawing.svg)
    made = render("sections.html.jinja", title=title, headline=headline, invented=invented, sections=sections, read=read)
    tables.write_text(folder / name, made)
    return folder / name


# Pages that may lie beside a report, and what they are called; whoever writes one says so here.
BESIDE = {"mechanism.html": "What the network reads", "travel.html": "Does it hold elsewhere?", "leakage.html": "What a release gives away"}


def pictures(examples: Sequence[tuple[np.ndarray, str]]) -> list[tuple[str, str, int, int]]:
    """(PNG as base64, caption, width, height) of images, uint8 [h, w]. Raises ValueError for others."""
    made = []
    for image, caption in examples:
        image = np.asarray(image)
        if image.ndim != 2 or image.dtype != np.uint8:
            raise ValueError(f"an example is a uint8 image [h, w], not {image.dtype} {list(image.shape)}")
        data = io.BytesIO()
        Image.fromarray(image).save(data, format="PNG", optimize=True)
        made.append((base64.b64encode(data.getvalue()).decode(), caption, image.shape[1], image.shape[0]))
    return made
