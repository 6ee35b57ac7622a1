"""What all pages share: how templates are filled, the style, and what a data set is called."""

from __future__ import annotations

import base64
import importlib.resources
from collections.abc import Mapping

import jinja2
import markupsafe


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


def called(dataset: Mapping) -> str:
    """Name, variant and version of a data set, as `Dataset.summary()` has them."""
    return " ".join(str(dataset[k]) for k in ("name", "variant", "version") if k in dataset and dataset[k])
