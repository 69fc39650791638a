"""Formulas become MathML while the site is built: no script, no font and no network show them.

Browsers draw MathML themselves (Chromium since 109, Firefox, Safari), and it can be read aloud and copied.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from xml.etree import ElementTree as XML

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page
from mkdocs.structure.toc import AnchorLink

# What pymdownx.arithmatex makes of $...$ and $$...$$, with the punctuation around it.
_FORMULA = re.compile(
    r'(?P<before>[(\[]?)<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<latex>.*?)\\[)\]]</(?P=tag)>'
    r"(?P<after>[.,;:)\]]*)",
    flags=re.DOTALL,
)
_IN_TITLE = re.compile(r"\\\((?P<latex>.*?)\\\)")
# A formula on lines of its own within a paragraph: the host of a repository sets it apart, so do we.
_DISPLAYED = re.compile(r"^\$\$(.+?)\$\$$", flags=re.DOTALL | re.MULTILINE)
# What the converter does not know, in what it does.
_KNOWN_AS = (
    (re.compile(r"\\arg(?![A-Za-z])"), r"\\operatorname{arg}"),
    (re.compile(r"\\mathbb (\w)"), r"\\mathbb{\1}"),
)
_MATHML = "http://www.w3.org/1998/Math/MathML"
# Symbols that stand for a thing, not for an operation on what is beside them.
_THINGS = frozenset("∞⊤")
# Where a long formula may go on in the next line: before a relation, else before a sign.
_RELATIONS = frozenset("=≤≥<>∈≠→≈∼:↦")
_SIGNS = frozenset("+−-/±·")
_BRACKETS = {"(": 1, "[": 1, ")": -1, "]": -1}
_LONG = 24  # symbols


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page with its displayed formulas in paragraphs of their own."""
    return _DISPLAYED.sub(lambda found: f"\n{found[0]}\n", markdown)


def on_page_content(content: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page with its formulas as MathML. Raises: PluginError naming a formula that cannot be."""

    def drawn(found: re.Match[str]) -> str:
        latex = html.unescape(found["latex"])
        if found["tag"] == "div":
            return "".join([found["before"], *mathml(latex, block=True), found["after"]])
        return _kept_together(found["before"], mathml(latex, block=False), found["after"])

    try:
        _draw_titles(page.toc)
        return _FORMULA.sub(drawn, content)
    except ValueError as error:
        raise PluginError(f"{page.file.src_uri}: {error}") from error


def mathml(latex: str, *, block: bool) -> list[str]:
    """LaTeX as MathML elements: one, or several where a long formula within a line may be broken.

    Raises: ValueError if it is no formula, or has an unknown command.
    """
    known = latex
    for command, same in _KNOWN_AS:
        known = command.sub(same, known)
    try:
        formula = XML.fromstring(convert(known, display="block" if block else "inline"))
    except Exception as error:  # its parser has many errors of its own
        raise ValueError(f"formula {latex!r} cannot be read ({error!r})") from error
    unknown = [text for text in formula.itertext() if "\\" in text]
    if unknown:
        raise ValueError(f"formula {latex!r} has {', '.join(unknown)}, which MathML has no word for")
    for symbol in formula.iter(f"{{{_MATHML}}}mo"):
        if symbol.text in _THINGS:
            symbol.tag = f"{{{_MATHML}}}mi"
    parts = [formula] if block else _pieces(formula)
    XML.register_namespace("", _MATHML)
    return [XML.tostring(part, encoding="unicode") for part in parts]


def _pieces(formula: XML.Element) -> list[XML.Element]:
    """A long formula cut before its relations and after its commas, what is still long before its signs."""
    pieces = [list(formula[0])]
    for where, inside in ((_RELATIONS, 0), (_SIGNS, 1)):
        pieces = [part for piece in pieces for part in _cut(piece, where, inside=inside)]
    return [formula] if len(pieces) == 1 else [_formula(formula.attrib, piece) for piece in pieces]


def _cut(symbols: list[XML.Element], where: frozenset[str], *, inside: int) -> list[list[XML.Element]]:
    """What is long, cut before ``where`` and after commas, in at most so many brackets."""
    if sum(len("".join(symbol.itertext())) for symbol in symbols) < _LONG:
        return [symbols]
    pieces: list[list[XML.Element]] = [[]]
    depth = 0  # of round and square brackets; what stands in braces is a set, and may go on
    for symbol in symbols:
        depth += _BRACKETS.get(symbol.text or "", 0)
        if symbol.text in where and pieces[-1] and depth <= inside:
            pieces.append([])
            symbol.set("form", "infix")  # else it would lose the space on its left
        pieces[-1].append(symbol)
        if symbol.text == "," and depth <= 0:
            pieces.append([])
    return [piece for piece in pieces if piece]


def _formula(attributes: dict[str, str], symbols: Iterable[XML.Element]) -> XML.Element:
    made = XML.Element(f"{{{_MATHML}}}math", attributes)
    XML.SubElement(made, f"{{{_MATHML}}}mrow").extend(symbols)
    return made


def _kept_together(before: str, parts: list[str], after: str) -> str:
    """No line begins with the punctuation that follows a formula, or ends with the bracket before it."""
    if before:
        parts[0] = f'<span class="formula">{before}{parts[0]}</span>'
    if after:
        parts[-1] = f'<span class="formula">{parts[-1]}{after}</span>'
    return "".join(parts)


def _draw_titles(items: Iterable[AnchorLink]) -> None:
    for item in items:
        item.title = _IN_TITLE.sub(
            lambda found: "".join(mathml(html.unescape(found["latex"]), block=False)), item.title
        )
        _draw_titles(item.children)
