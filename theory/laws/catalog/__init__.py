"""Every law of the theory, one entry each, with its formula and the cases it is hunted in.

A new law is one more entry in the tuple of its part.
"""

from __future__ import annotations

from dataclasses import replace
from difflib import get_close_matches
from fnmatch import fnmatchcase

from theory.laws.catalog import active, exact, graph, linear, masks, relu
from theory.laws.law import Law
from theory.types import InvalidInput


def _with_source(law: Law) -> Law:
    code = f"from theory.laws.catalog import law_named\n\nlaw = law_named({law.name!r})"
    return replace(law, source=code)


LAWS: tuple[Law, ...] = tuple(
    map(_with_source, (*linear.LAWS, *relu.LAWS, *masks.LAWS, *active.LAWS, *exact.LAWS, *graph.LAWS))
)


def law_named(name: str) -> Law:
    """The law of this name. Raises: KeyError if there is none."""
    return {law.name: law for law in LAWS}[name]


def select(patterns: tuple[str, ...]) -> tuple[Law, ...]:
    """The laws whose names match any of the patterns (``relu.*``), in order; all for none.

    Raises: InvalidInput if a pattern matches no law.
    """
    for pattern in patterns:
        if not any(fnmatchcase(law.name, pattern) for law in LAWS):
            near = get_close_matches(pattern, [law.name for law in LAWS], n=3, cutoff=0.3)
            raise InvalidInput(f"{pattern} is no law; the nearest names are {', '.join(near) or 'none'}")
    return tuple(law for law in LAWS if not patterns or any(fnmatchcase(law.name, p) for p in patterns))
