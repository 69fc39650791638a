"""Change the arrays of a case: at random to come near a failure, and step by step to simplify one.

A case is a dict of arrays, of frozen dataclasses and tuples that hold arrays, and of values that are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np

from theory.laws.law import Case
from theory.types import InvalidInput, ReLUNetwork

Path = tuple[Any, ...]  # keys, indices and field names that lead from a case to an array in it
ATTEMPTS = 2000  # of simplifying one case: ten seconds at 5 ms each
DECIMALS = (0, 1, 2, 3)


def float_arrays(value: Any, path: Path = ()) -> Iterator[tuple[Path, np.ndarray]]:
    """Every float64 array in ``value``, with the path to it."""
    if isinstance(value, np.ndarray):
        if value.dtype == np.float64 and value.size:
            yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from float_arrays(item, (*path, key))
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from float_arrays(item, (*path, index))
    elif is_dataclass(value):
        for entry in fields(value):
            yield from float_arrays(getattr(value, entry.name), (*path, entry.name))


def with_value(value: Any, path: Path, new: Any) -> Any:
    """``value`` with ``new`` at the end of the path. Raises: InvalidInput if a dataclass refuses it."""
    if not path:
        return new
    first, *rest = path
    if isinstance(value, dict):
        return {**value, first: with_value(value[first], tuple(rest), new)}
    if isinstance(value, tuple):
        return (*value[:first], with_value(value[first], tuple(rest), new), *value[first + 1 :])
    return replace(value, **{first: with_value(getattr(value, first), tuple(rest), new)})


def mutant(case: Case, rng: np.random.Generator) -> Case:
    """A case with one to three of its arrays changed. Raises: InvalidInput if a dataclass refuses one."""
    for _ in range(rng.integers(1, 4)):
        places = list(float_arrays(case))
        if not places:
            return case
        path, array = places[rng.integers(len(places))]
        case = with_value(case, path, _changed(array, rng))
    return case


def _changed(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Zeros, ties, repeated and dead rows, nudges, shrunken, rounded or fresh entries."""
    largest, low, high = np.abs(array).max(), array.min(), array.max()
    fraction = low >= 0 and high <= 1
    lowest, highest = (0.0, 1.0) if fraction else (0.0 if low >= 0 else -largest, largest)
    new = array.copy()
    flat = new.reshape(-1)
    i, j = rng.integers(flat.size, size=2)
    match rng.integers(9):
        case 0:
            flat[i] = rng.choice([lowest, highest, 0.0])
        case 1:
            flat[i] = rng.choice([-1.0, 1.0]) * flat[j]
        case 2 | 3 if new.ndim > 1:
            axis = rng.integers(new.ndim)
            lines = np.moveaxis(new, axis, 0)
            a, b = rng.integers(len(lines), size=2)
            lines[a] = rng.choice([-1.0, 0.0, 1.0, 1.0]) * lines[b]
        case 4:
            flat[i] *= 1 + 10.0 ** rng.uniform(-12, 0) * rng.choice([-1.0, 1.0])
        case 5:
            flat[i] *= rng.random()
        case 6:
            new[...] = np.round(new * 4 / (largest or 1.0)) * ((largest or 1.0) / 4)
        case 7:
            flat[i] = rng.uniform(lowest, highest)
        case _:
            new += rng.normal(size=new.shape) * (highest - lowest) * 10.0 ** rng.uniform(-3, 0)
    return np.clip(new, lowest, highest)


def simplified(case: Case, fails: Callable[[Case], bool]) -> Case:
    """The smallest case found on which ``fails`` is still true: fewer units and examples, plain entries."""
    left = ATTEMPTS
    progress = True
    while progress and left:
        progress = False
        for attempt in _simpler(case):
            if not left:
                break
            left -= 1
            try:
                better = attempt()
                if fails(better):
                    case, progress = better, True
                    break
            except InvalidInput:
                continue
    return case


def _simpler(case: Case) -> Iterator[Callable[[], Case]]:
    """Simpler cases, the boldest first, as functions because a dataclass may refuse one."""
    for key, value in case.items():
        if isinstance(value, ReLUNetwork):
            for layer in range(len(value.weights) - 1):
                for unit in range(len(value.weights[layer])):
                    if len(value.weights[layer]) > 1:
                        yield lambda k=key, n=value, a=layer, u=unit: {**case, k: _without_unit(n, a, u)}
    if "x" in case and "y" in case and len(case["y"]) > 1:
        for row in range(len(case["y"])):
            yield lambda r=row: {**case, **{k: np.delete(case[k], r, axis=0) for k in ("x", "y")}}
    for path, array in float_arrays(case):
        if array.any():
            yield lambda p=path, a=array: with_value(case, p, np.zeros_like(a))
    for path, array in float_arrays(case):
        for index in np.ndindex(array.shape):
            for value in _plainer(float(array[index])):
                if value < 0 <= array.min():  # a size or a probability
                    continue
                yield lambda p=path, a=array, i=index, v=value: with_value(case, p, _with_entry(a, i, v))


def _plainer(entry: float) -> list[float]:
    """Values simpler than ``entry``, the simplest first; simple values lead to simpler ones only."""
    order = [0.0, 1.0, -1.0, *(round(entry, d) for d in DECIMALS)]
    return order[: order.index(entry)] if entry in order else order


def _with_entry(array: np.ndarray, index: tuple[int, ...], value: float) -> np.ndarray:
    new = array.copy()
    new[index] = value
    return new


def _without_unit(net: ReLUNetwork, layer: int, unit: int) -> ReLUNetwork:
    weights, biases = list(net.weights), list(net.biases)
    weights[layer] = np.delete(weights[layer], unit, axis=0)
    biases[layer] = np.delete(biases[layer], unit)
    weights[layer + 1] = np.delete(weights[layer + 1], unit, axis=1)
    return ReLUNetwork(tuple(weights), tuple(biases))
