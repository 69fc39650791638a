"""Hypothesis strategies for the whole suite: norms, sparsities, labelled data, linear models, ReLU nets.

Entries are quarters of small integers half of the time, so that ties, zeros, repeated rows and points
exactly on a decision boundary occur and float64 arithmetic on them is exact, and generic reals otherwise.
"""

from __future__ import annotations

import math

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from theory.linear import ClassStatistics, GaussianClasses
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
def linear_problems(
    draw: st.DrawFn, kind: str = "any", *, scales: tuple[float, ...] = MODERATE
) -> tuple[BinaryLinear | LinearClassifier, np.ndarray, np.ndarray]:
    """A classifier with data of its width and classes: "binary", "multiclass", "two rows" or "any"."""
    if kind == "binary" or (kind == "any" and draw(st.booleans())):
        clf = draw(binary_linear(scales=scales))
        width, classes = clf.weight.size, 2
    else:
        clf = draw(linear_classifiers(classes=2 if kind == "two rows" else None, scales=scales))
        classes, width = clf.weight.shape
    return clf, *draw(labelled_data(width=width, classes=classes))


@st.composite
def labelled_points(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Inputs of up to three features and labels of two to four classes, nine points at most."""
    width, classes = draw(st.integers(1, 3)), draw(st.integers(2, 4))
    return draw(labelled_data(width=width, classes=classes, max_points=9))


@st.composite
def class_statistics_of_many(draw: st.DrawFn) -> ClassStatistics:
    """Class statistics with any priors, accuracies (zero included) and means (equal ones included)."""
    classes, width = draw(st.integers(2, 5)), draw(st.integers(1, 3))
    counts = np.array(draw(st.lists(st.integers(1, 9), min_size=classes, max_size=classes)), dtype=float)
    shares = st.sampled_from([0.0, 0.25, 0.5, 1.0])
    accuracy = np.array(draw(st.lists(shares, min_size=classes, max_size=classes)))
    x, _ = draw(labelled_data(width=width, classes=classes, max_points=classes))
    return ClassStatistics(counts / counts.sum(), accuracy, x)


@st.composite
def weights_and_gains(draw: st.DrawFn, most: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """A non-zero weight with entries up to 300 decades apart, and a gain of its length."""
    n = draw(st.integers(1, most))
    exponents = draw(st.sampled_from([[0], [0, -3, 3], [-150, 0, 150], [-12, 0]]))
    scales = 10.0 ** np.array(draw(st.lists(st.sampled_from(exponents), min_size=n, max_size=n)))
    weight, gain = draw(arrays((n,))) * scales, draw(arrays((n,)))
    if not weight.any():
        weight[0] = 1.0
    return weight, gain


@st.composite
def gaussian_problems(draw: st.DrawFn) -> tuple[BinaryLinear, GaussianClasses]:
    """A classifier and Gaussian classes; the covariance is often singular, sometimes 0 along the weight."""
    clf = draw(binary_linear())
    n = clf.weight.size
    factor = draw(arrays((n, n))) * draw(st.sampled_from([0.0, 1.0, 1e-3]))
    covariance = factor @ factor.T
    prior = draw(st.sampled_from([0.0, 0.25, 0.5, 1.0]))
    mean = draw(arrays((2, n)))
    return clf, GaussianClasses(mean, (covariance + covariance.T) / 2, np.array([prior, 1 - prior]))


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


@st.composite
def masked_networks(
    draw: st.DrawFn, networks: st.SearchStrategy[ReLUNetwork] | None = None
) -> tuple[ReLUNetwork, np.ndarray]:
    """A network, by default of at most 12 weights, and one sparsity per layer, the last one often 0."""
    tiny = relu_networks(width=draw(st.integers(1, 2)), classes=2, max_hidden=2)
    net = draw(tiny if networks is None else networks)
    alphas = [draw(sparsities()) for _ in net.weights]
    if draw(st.booleans()):
        alphas[-1] = 0.0
    return net, np.array(alphas)
