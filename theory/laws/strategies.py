"""Hypothesis strategies for the whole suite: norms, sparsities, labelled data, linear models, ReLU nets.

Entries are quarters of small integers half of the time, so that ties, zeros, repeated rows and points
exactly on a decision boundary occur and float64 arithmetic on them is exact, and generic reals otherwise.
"""

from __future__ import annotations

import math

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from theory.types import BinaryLinear, LinearClassifier, ReLUNetwork

MODERATE = (1.0, 1e-3, 1e3)
EXTREME = (1.0, 1e-150, 1e-12, 1e12, 1e150)

_QUARTERS = st.integers(-12, 12).map(lambda k: k / 4)
_REALS = st.floats(-3, 3, width=32, allow_subnormal=False)


def attack_norms() -> st.SearchStrategy[float]:
    """The attack exponent p: 2 or inf."""
    return st.sampled_from([2.0, math.inf])


def sparsities(*, edges: bool = True) -> st.SearchStrategy[float]:
    """A fraction of removed weights, in [0, 1] with its edges, or strictly inside if ``edges`` is false."""
    ends = [0.0, 1.0] if edges else []
    near = [1e-12, 1e-3, 0.5, 0.9, 1 - 1e-12]
    return st.sampled_from(ends + near) | st.floats(1e-9, 1 - 1e-9)


@st.composite
def arrays(draw: st.DrawFn, shape: tuple[int, ...], *, scales: tuple[float, ...] = (1.0,)) -> np.ndarray:
    """A float64 array of this shape, with entries of at most 3 times a scale drawn from ``scales``."""
    elements = draw(st.sampled_from([_QUARTERS, _REALS]))
    return draw(hnp.arrays(np.float64, shape, elements=elements)) * draw(st.sampled_from(scales))


@st.composite
def binary_linear(
    draw: st.DrawFn, *, width: int | None = None, scales: tuple[float, ...] = MODERATE
) -> BinaryLinear:
    """A binary linear classifier with a non-zero weight, often sparse."""
    n = draw(st.integers(1, 6)) if width is None else width
    weight = draw(arrays((n,)))
    weight = np.where(draw(hnp.arrays(bool, n)), 0.0, weight) if draw(st.booleans()) else weight
    if not weight.any():
        weight[draw(st.integers(0, n - 1))] = 1.0
    scale = draw(st.sampled_from(scales))
    return BinaryLinear(scale * weight, scale * draw(st.just(0.0) | _QUARTERS | _REALS))


@st.composite
def linear_classifiers(
    draw: st.DrawFn,
    *,
    width: int | None = None,
    classes: int | None = None,
    scales: tuple[float, ...] = MODERATE,
) -> LinearClassifier:
    """A multi-class linear classifier; rows may repeat, and may share their bias too."""
    n = draw(st.integers(1, 5)) if width is None else width
    c = draw(st.integers(2, 5)) if classes is None else classes
    weight, bias = draw(arrays((c, n))), draw(arrays((c,)))
    if draw(st.booleans()):
        source, target = draw(st.integers(0, c - 1)), draw(st.integers(0, c - 1))
        weight[target] = weight[source]
        if draw(st.booleans()):
            bias[target] = bias[source]
    scale = draw(st.sampled_from(scales))
    return LinearClassifier(scale * weight, scale * bias)


@st.composite
def labelled_data(
    draw: st.DrawFn,
    *,
    width: int,
    classes: int = 2,
    max_points: int = 12,
    scales: tuple[float, ...] = (1.0,),
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs (m, width) and int64 labels (m,) in which every class occurs; points may coincide."""
    extra = draw(st.lists(st.integers(0, classes - 1), max_size=max(0, max_points - classes)))
    y = np.array([*range(classes), *extra], dtype=np.int64)
    return draw(arrays((y.size, width), scales=scales)), y


@st.composite
def relu_networks(
    draw: st.DrawFn,
    *,
    width: int | None = None,
    classes: int | None = None,
    max_depth: int = 3,
    max_hidden: int = 5,
    biases: bool = True,
    scales: tuple[float, ...] = (1.0, 1e-6, 1e6),
) -> ReLUNetwork:
    """A fully connected ReLU net of 1 to ``max_depth`` layers.

    Layers may hold repeated rows (equal classes in the last one), dead units (a zero row with a negative
    bias), zero columns (ignored inputs), and each layer has its own scale, huge and tiny ones included.
    """
    n = draw(st.integers(1, 4)) if width is None else width
    c = draw(st.integers(2, 4)) if classes is None else classes
    hidden = draw(st.lists(st.integers(1, max_hidden), max_size=max_depth - 1))
    sizes = [n, *hidden, c]
    weights, offsets = [], []
    for before, after in zip(sizes[:-1], sizes[1:], strict=True):
        weight = draw(arrays((after, before)))
        bias = draw(arrays((after,))) if biases else np.zeros(after)
        unit = draw(st.integers(0, after - 1))
        match draw(st.sampled_from(["plain", "plain", "repeat", "dead", "ignore"])):
            case "repeat":
                weight[unit], bias[unit] = weight[0], bias[0]
            case "dead":
                weight[unit], bias[unit] = 0.0, -1.0 if biases else 0.0
            case "ignore":
                weight[:, draw(st.integers(0, before - 1))] = 0.0
            case _:
                pass
        scale = draw(st.sampled_from(scales))
        weights.append(scale * weight)
        offsets.append(scale * bias)
    return ReLUNetwork(tuple(weights), tuple(offsets))
