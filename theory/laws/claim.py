"""Conjectures: a function that claims smaller <= larger, or true, becomes a law that can be hunted."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.errors import UnsatisfiedAssumption

from theory.laws.law import Law
from theory.laws.measure import at_most
from theory.types import InvalidInput

SHIPPED = Path(__file__).parent / "conjectures"
# Relative to ``larger``: the rounding of a few thousand operations, well below any effect worth a conjecture.
ROUNDING = 1e-12


class BadConjecture(InvalidInput):
    """A conjecture that cannot be hunted: its file, its arguments, what it raises or returns.

    ``program`` checks the case in which it raised or returned that; empty where there is none.
    """

    def __init__(self, message: str, program: str = "") -> None:
        super().__init__(message, program)  # all arguments, so that it travels between processes
        self.program = program

    def __str__(self) -> str:
        return str(self.args[0])


def conjecture(**cases: st.SearchStrategy) -> Callable[[Callable[..., Any]], Law]:
    """Turn a function into a law: one strategy for each of its arguments, by name.

    The function returns a pair (smaller, larger), numbers or arrays, and claims smaller <= larger up to
    ``ROUNDING`` times |larger|; or it returns a bool. Raises: BadConjecture if arguments and strategies
    disagree.
    """
    for name, strategy in cases.items():
        if not isinstance(strategy, st.SearchStrategy):
            raise BadConjecture(f"{name} is {strategy!r}; pass a strategy, for example sparsities()")

    def decorate(function: Callable[..., Any]) -> Law:
        taken = set(inspect.signature(function).parameters)
        if taken != set(cases):
            raise BadConjecture(
                f"{function.__name__} takes {sorted(taken)}, @conjecture draws {sorted(cases)}; name the same"
            )
        summary = (inspect.getdoc(function) or function.__name__).splitlines()[0].rstrip(".")
        drawn = st.fixed_dictionaries(cases)  # and nothing else: only the strategies know their domain
        return Law(function.__name__, summary, "bound", _claim, function, drawn, free=False)

    return decorate


def _claim(function: Callable[..., Any], **case: Any) -> float | None:
    name = getattr(function, "__name__", "the conjecture")
    try:
        claim = function(**case)
    except (AssertionError, BadConjecture, UnsatisfiedAssumption):
        raise
    except Exception as error:
        raise BadConjecture(f"{name} raised {type(error).__name__}: {error}") from error
    if isinstance(claim, bool | np.bool_):
        assert claim, "the claim is false"
        return None
    try:
        smaller, larger = (np.asarray(side, dtype=np.float64) for side in claim)
        if np.isnan(smaller).any() or np.isnan(larger).any():
            raise BadConjecture(
                f"{name} returned {claim!r}, and NaN cannot be compared; exclude what is undefined by "
                "hypothesis.assume"
            )
        return at_most(smaller, larger, slack=ROUNDING * np.abs(larger))
    except BadConjecture:
        raise
    except (TypeError, ValueError) as error:
        raise BadConjecture(
            f"{name} returned {claim!r}; return a pair of numbers (smaller, larger), or a bool"
        ) from error


def shipped() -> list[str]:
    """Names of the conjectures that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.py") if path.stem != "__init__")


def load(source: str) -> tuple[Law, ...]:
    """The conjectures in a Python file, which is run, or in the shipped one of this name.

    Raises: BadConjecture if there is no such file, it cannot be run, or holds no conjecture.
    """
    path = SHIPPED / f"{source}.py" if source in shipped() else Path(source)
    if not path.is_file():
        raise BadConjecture(f"{source} is no file, and no shipped conjecture: {', '.join(shipped())}")
    module = _run(path)
    laws = [value for value in vars(module).values() if isinstance(value, Law)]
    if not laws:
        raise BadConjecture(f"{path} holds no conjecture; decorate a function with @conjecture(...)")
    place = repr(source if source in shipped() else str(path.resolve()))
    return tuple(_with_source(law, place) for law in laws)


def _run(path: Path) -> Any:
    name = f"conjecture_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise BadConjecture(f"{path} is no Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # so that what it defines can travel between processes
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise BadConjecture(f"{path}, line {error.lineno}: {error.msg}") from error
    except BadConjecture:
        raise
    except (Exception, SystemExit) as error:
        raise BadConjecture(f"{path} raised {type(error).__name__}: {error}") from error
    return module


def _with_source(law: Law, place: str) -> Law:
    code = (
        "from theory.laws.claim import load\n\n"
        f"law = {{law.name: law for law in load({place})}}[{law.name!r}]"
    )
    return replace(law, source=code)
