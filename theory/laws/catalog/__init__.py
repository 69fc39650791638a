"""Every law of the theory, one entry each, with its formula and the cases it is hunted in.

A new law is one more entry in the tuple of its part.
"""

from __future__ import annotations

from dataclasses import replace

from theory.laws.catalog import linear, relu
from theory.laws.law import Law


def _with_source(law: Law) -> Law:
    code = f"from theory.laws.catalog import law_named\n\nlaw = law_named({law.name!r})"
    return replace(law, source=code)


LAWS: tuple[Law, ...] = tuple(map(_with_source, (*linear.LAWS, *relu.LAWS)))


def law_named(name: str) -> Law:
    """The law of this name. Raises: KeyError if there is none."""
    return {law.name: law for law in LAWS}[name]
