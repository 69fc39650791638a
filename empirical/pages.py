"""HTML pages that need nothing but themselves, and the files of the figures in them."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from empirical.runs.locations import Location, write_atomically
from paper_figures.gallery import FORMATS, render

_PATH, _DIGITS = re.compile(rb' d="[^"]*"'), re.compile(rb"(\d\.\d\d)\d+")
_METADATA, _BETWEEN = re.compile(rb"<metadata>.*?</metadata>", re.DOTALL), re.compile(rb">\s+<")


def write_page(path: Location, template: str, content: Mapping[str, object]) -> None:
    """Write the template filled with ``content``; all pages share the layout and style of base.html.j2."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(template).render(content)
    write_atomically(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))


def save_figure(folder: Location, name: str, figure: Figure, *, formats: Sequence[str] = FORMATS) -> bytes:
    """Write the figure in these formats, SVG among them; returns the SVG, made light."""
    contents = {format: render(figure, format) for format in formats}
    contents["svg"] = _light(contents["svg"])
    for format, content in contents.items():
        write_atomically(
            folder / f"{name}.{format}",
            lambda temporary, content=content: temporary.write_bytes(content),
        )
    return contents["svg"]


@dataclass(frozen=True)
class Picture:
    """A figure as sources of an image: for a window, and for a phone's screen."""

    wide: str
    narrow: str


def save_picture(
    folder: Location, name: str, *, wide: Figure, narrow: Figure, formats: Sequence[str] = FORMATS
) -> Picture:
    """Write the figure, and as ``name``-narrow, an SVG alone, what it looks like in one column."""
    return Picture(
        _data_uri(save_figure(folder, name, wide, formats=formats)),
        _data_uri(save_figure(folder, f"{name}-narrow", narrow, formats=("svg",))),
    )


def _data_uri(svg: bytes) -> str:
    """An SVG as the source of an image."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"


def _light(svg: bytes) -> bytes:
    """The same picture without metadata and indentation, paths rounded to what can be seen."""
    plain = _BETWEEN.sub(b"><", _METADATA.sub(b"", svg))
    return _PATH.sub(lambda path: _DIGITS.sub(rb"\1", path.group()), plain)


def setting(value: object) -> str:
    """A setting as text."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {setting(part)}" for name, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)
