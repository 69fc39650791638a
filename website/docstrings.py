"""Our docstrings as Markdown: references, tables and the words that open a part.

They are written for a terminal: ``:func:`load``` names a function, a table has borders of ``=``, and Raises,
Assumes and Source begin a line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from griffe import Alias, Extension, GriffeError, GriffeLoader, Module, Object

_ROLE = re.compile(r":(?:func|class|mod|meth|data|attr):`~?([\w.]+)`")
_PART = re.compile(r"^(Raises|Assumes|Source|Reference|Proof): ", flags=re.MULTILINE)
# What Markdown must not read: code in backquotes, and lines set in by four spaces.
_CODE = re.compile(r"(``.*?``|`[^`]*`|^ {4}[^\n]*$)", flags=re.DOTALL | re.MULTILINE)
_EMPHASIS = re.compile(r"(?<![\w*])\*(\w+)\*(?![\w*])")
_BORDER = re.compile(r"^=+(?: +=+)+$")


class Docstrings(Extension):
    """Rewrites every docstring of a package once all of it is loaded."""

    def on_package(self, *, pkg: Module, loader: GriffeLoader, **_: Any) -> None:
        """Called by griffe for each package."""
        for item in _objects(pkg):
            if item.docstring:
                item.docstring.value = as_markdown(item.docstring.value, item)


def as_markdown(text: str, item: Object | None = None) -> str:
    """The docstring of ``item`` with references resolved from where it stands."""
    tabled = "\n".join(_with_tables(text.splitlines()))
    plain = "".join(_literal(part) for part in _CODE.split(tabled))
    opened = _PART.sub(r"\n**\1:** ", plain)
    return _ROLE.sub(lambda found: _reference(found[1], item), opened)


def _literal(part: str) -> str:
    """Text in which only *a word* is emphasised: w_i * w_j is a product; code stays as it is."""
    if _CODE.fullmatch(part):
        return part
    starred = re.sub(r"([_<])", r"\\\1", part)
    return _EMPHASIS.sub(r"<em>\1</em>", starred).replace("*", r"\*")


def _objects(item: Object) -> Iterator[Object]:
    yield item
    for member in item.members.values():
        if not isinstance(member, Alias):
            yield from _objects(member)


def _reference(name: str, item: Object | None) -> str:
    """A link to an object, where some page shows it, else its name as code."""
    try:
        path = item.modules_collection[item.resolve(name)].canonical_path if item else name
    except (GriffeError, KeyError):  # a module of another package, or no object at all
        path = name
    return f'<autoref identifier="{path}" optional><code>{name}</code></autoref>'


def _with_tables(lines: list[str]) -> Iterator[str]:
    """Tables with borders of = as Markdown tables; a cell ends where the border above it does."""
    rows: list[list[str]] = []
    spans: list[tuple[int, int | None]] = []
    borders = 0
    for line in lines:
        if _BORDER.match(line.strip()):
            if not borders:
                starts = [found.start() for found in re.finditer("=+", line)]
                spans = list(zip(starts, [*starts[1:], None], strict=True))
            borders += 1
            if borders == 3:
                head, *body = rows
                yield from ("", _row(head), _row(["---"] * len(head)), *map(_row, body), "")
                rows, borders = [], 0
        elif borders:
            cells = [line[start:end].strip() for start, end in spans]
            if cells[0] or not rows:
                rows.append(cells)
            else:  # goes on the row above
                rows[-1] = [f"{above} {cell}".strip() for above, cell in zip(rows[-1], cells, strict=True)]
        else:
            yield line


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
