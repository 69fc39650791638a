"""A case as Python code that, pasted into a file and run, meets the same failure."""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

import numpy as np

from theory.laws.law import Case, Law
from theory.types import ReLUNetwork

FEW = 4  # entries of an array that a summary spells out
WIDTH = 96  # where an expression is broken into lines


def reproduction(law: Law, case: Case) -> str:
    """A program that checks one case of the law; it raises AssertionError where the law fails."""
    modules = {f"from {kind.__module__} import {kind.__name__}" for kind in _dataclasses(case)}
    lines = [
        f'"""{law.name}: {law.statement}"""',
        "",
        "import numpy as np",
        "",
        *sorted(modules),
        *law.source.splitlines(),
        "",
        "case = dict(",
        *(f"    {name}={expression(value, indent=4)}," for name, value in case.items()),
        ")",
        f'print("{_MEASURE[law.kind]}:", law.ratio(case))  # raises AssertionError where the law fails',
    ]
    return "\n".join(lines) + "\n"


_MEASURE = {"bound": "(bound + rounding) / truth", "identity": "relative error", "property": "holds"}


def expression(value: Any, *, indent: int = 0) -> str:
    """Python code of a value: floats to the last bit, arrays, tuples and dataclasses as constructors."""
    if isinstance(value, Enum):
        return f"{type(value).__name__}.{value.name}"
    if isinstance(value, np.ndarray):
        return _array(value)
    if isinstance(value, np.generic):
        return expression(value.item())
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else f"float('{value}')"
    if isinstance(value, tuple):
        return _call("", [expression(v, indent=indent + 4) for v in value], indent, comma=len(value) == 1)
    if isinstance(value, list):
        return f"[{', '.join(expression(v) for v in value)}]"
    if is_dataclass(value):
        parts = [f"{f.name}={expression(getattr(value, f.name), indent=indent + 4)}" for f in fields(value)]
        return _call(type(value).__name__, parts, indent)
    return repr(value)


def _array(array: np.ndarray) -> str:
    if array.size == 0:
        return f"np.zeros({array.shape}, dtype=np.{array.dtype})"
    text = repr(array.tolist()).replace("inf", "np.inf").replace("nan", "np.nan")
    default = np.array(array.ravel()[:1].tolist()).dtype == array.dtype
    return f"np.array({text})" if default else f"np.array({text}, dtype=np.{array.dtype})"


def _call(name: str, parts: list[str], indent: int, *, comma: bool = False) -> str:
    line = f"{name}({', '.join(parts)}{',' if comma else ''})"
    if len(line) + indent <= WIDTH and "\n" not in line:
        return line
    pad = " " * (indent + 4)
    return f"{name}(\n" + "".join(f"{pad}{part},\n" for part in parts) + " " * indent + ")"


def _dataclasses(value: Any) -> set[type]:
    if isinstance(value, dict):
        return set().union(*map(_dataclasses, value.values()))
    if isinstance(value, tuple | list):
        return set().union(*map(_dataclasses, value))
    if not is_dataclass(value) or isinstance(value, type):
        return set()
    return {type(value)}.union(*(_dataclasses(getattr(value, f.name)) for f in fields(value)))


def summary(case: Case) -> str:
    """A case on one line: numbers as they are, larger arrays by their shape, networks by their widths."""
    return ", ".join(f"{name} {_short(value)}" for name, value in case.items())


def _short(value: Any) -> str:
    if isinstance(value, ReLUNetwork):
        return "-".join(str(n) for n in (value.weights[0].shape[1], *(len(w) for w in value.weights)))
    if isinstance(value, np.ndarray):
        numbers = " ".join(f"{v:.4g}" for v in value.ravel().tolist())
        return f"[{numbers}]" if value.size <= FEW else "x".join(map(str, value.shape))
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, tuple):
        return f"({', '.join(map(_short, value))})"
    if is_dataclass(value):
        return f"({', '.join(f'{f.name} {_short(getattr(value, f.name))}' for f in fields(value))})"
    return str(value)
