"""Hypothesis strategies for the whole suite: norms, sparsities, data, linear models, ReLU nets, graphs.

Entries are quarters of small integers half of the time, so that ties, zeros, repeated rows and points
exactly on a decision boundary occur and float64 arithmetic on them is exact, and generic reals otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch.nn import functional

from theory.graph.builder import Builder, Place
from theory.graph.network import Conv2d, Graph, Shape
from theory.linear import ClassStatistics, GaussianClasses
from theory.types import BinaryLinear, LinearClassifier, ReLUNetwork

MODERATE = (1.0, 1e-3, 1e3)
EXTREME = (1.0, 1e-150, 1e-12, 1e12, 1e150)


# A strategy made anew is validated anew, at every draw, which takes longer than drawing.
@cache
def _whole(least: int, most: int) -> st.SearchStrategy[int]:
    return st.integers(least, most)


@lru_cache(maxsize=None, typed=True)  # 1 is not 1.0 here
def _one_of(*values: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(values)


@cache
def _several(each: st.SearchStrategy[Any], least: int, most: int) -> st.SearchStrategy[list[Any]]:
    return st.lists(each, min_size=least, max_size=most)


_BOOLEANS = st.booleans()
_QUARTERS = st.integers(-12, 12).map(lambda k: k / 4)
_REALS = st.floats(-3, 3, width=32, allow_subnormal=False)


@cache
def attack_norms() -> st.SearchStrategy[float]:
    """The attack exponent p: 2 or inf."""
    return st.sampled_from([2.0, math.inf])


@cache
def sparsities(*, edges: bool = True) -> st.SearchStrategy[float]:
    """A fraction of removed weights, in [0, 1] with its edges, or strictly inside if ``edges`` is false."""
    ends = [0.0, 1.0] if edges else []
    near = [1e-17, 1e-12, 1e-3, 0.5, 0.9, 1 - 1e-12]
    return st.sampled_from(ends + near) | st.floats(1e-9, 1 - 1e-9)


@cache
@st.composite
def arrays(draw: st.DrawFn, shape: tuple[int, ...], *, scales: tuple[float, ...] = (1.0,)) -> np.ndarray:
    """A float64 array of this shape, with entries of at most 3 times a scale drawn from ``scales``."""
    return draw(draw(_entries(shape))) * draw(_one_of(*scales))


@cache
def _entries(shape: tuple[int, ...]) -> st.SearchStrategy[st.SearchStrategy[np.ndarray]]:
    return st.sampled_from([hnp.arrays(np.float64, shape, elements=e) for e in (_QUARTERS, _REALS)])


@st.composite
def binary_linear(
    draw: st.DrawFn, *, width: int | None = None, scales: tuple[float, ...] = MODERATE
) -> BinaryLinear:
    """A binary linear classifier with a non-zero weight, often sparse."""
    n = draw(_whole(1, 6)) if width is None else width
    weight = draw(arrays((n,)))
    weight = np.where(draw(hnp.arrays(bool, n)), 0.0, weight) if draw(_BOOLEANS) else weight
    if not weight.any():
        weight[draw(_whole(0, n - 1))] = 1.0
    scale = draw(_one_of(*scales))
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
    n = draw(_whole(1, 5)) if width is None else width
    c = draw(_whole(2, 5)) if classes is None else classes
    weight, bias = draw(arrays((c, n))), draw(arrays((c,)))
    if draw(_BOOLEANS):
        source, target = draw(_whole(0, c - 1)), draw(_whole(0, c - 1))
        weight[target] = weight[source]
        if draw(_BOOLEANS):
            bias[target] = bias[source]
    scale = draw(_one_of(*scales))
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
    extra = draw(_several(_whole(0, classes - 1), 0, max(0, max_points - classes)))
    y = np.array([*range(classes), *extra], dtype=np.int64)
    return draw(arrays((y.size, width), scales=scales)), y


@st.composite
def linear_problems(
    draw: st.DrawFn, kind: str = "any", *, scales: tuple[float, ...] = MODERATE
) -> tuple[BinaryLinear | LinearClassifier, np.ndarray, np.ndarray]:
    """A classifier with data of its width and classes: "binary", "multiclass", "two rows" or "any"."""
    if kind == "binary" or (kind == "any" and draw(_BOOLEANS)):
        clf = draw(binary_linear(scales=scales))
        width, classes = clf.weight.size, 2
    else:
        clf = draw(linear_classifiers(classes=2 if kind == "two rows" else None, scales=scales))
        classes, width = clf.weight.shape
    return clf, *draw(labelled_data(width=width, classes=classes))


@st.composite
def labelled_points(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Inputs of up to three features and labels of two to four classes, nine points at most."""
    width, classes = draw(_whole(1, 3)), draw(_whole(2, 4))
    return draw(labelled_data(width=width, classes=classes, max_points=9))


@st.composite
def class_statistics_of_many(draw: st.DrawFn) -> ClassStatistics:
    """Class statistics with any priors, accuracies (zero included) and means (equal ones included)."""
    classes, width = draw(_whole(2, 5)), draw(_whole(1, 3))
    counts = np.array(draw(_several(_whole(1, 9), classes, classes)), dtype=float)
    accuracy = np.array(draw(_several(_one_of(0.0, 0.25, 0.5, 1.0), classes, classes)))
    x, _ = draw(labelled_data(width=width, classes=classes, max_points=classes))
    return ClassStatistics(counts / counts.sum(), accuracy, x)


@st.composite
def weights_and_gains(draw: st.DrawFn, most: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """A non-zero weight with entries up to 300 decades apart, and a gain of its length."""
    n = draw(_whole(1, most))
    exponents = draw(_one_of((0,), (0, -3, 3), (-150, 0, 150), (-12, 0)))
    scales = 10.0 ** np.array(draw(_several(_one_of(*exponents), n, n)))
    weight, gain = draw(arrays((n,))) * scales, draw(arrays((n,)))
    if not weight.any():
        weight[0] = 1.0
    return weight, gain


@st.composite
def gaussian_problems(draw: st.DrawFn) -> tuple[BinaryLinear, GaussianClasses]:
    """A classifier and Gaussian classes; the covariance is often singular, sometimes 0 along the weight."""
    clf = draw(binary_linear())
    n = clf.weight.size
    factor = draw(arrays((n, n))) * draw(_one_of(0.0, 1.0, 1e-3))
    covariance = factor @ factor.T
    prior = draw(_one_of(0.0, 0.25, 0.5, 1.0))
    mean = draw(arrays((2, n)))
    return clf, GaussianClasses(mean, (covariance + covariance.T) / 2, np.array([prior, 1 - prior]))


@st.composite
def independent_gaussian_problems(draw: st.DrawFn) -> tuple[BinaryLinear, GaussianClasses]:
    """A classifier of up to five weights and independent features of different variance."""
    clf = draw(binary_linear(width=draw(_whole(1, 5))))
    n = clf.weight.size
    variance = np.array(draw(_several(_one_of(0.01, 0.5, 1.0, 7.0), n, n)))
    prior = draw(_one_of(0.0, 0.25, 0.5, 1.0))
    return clf, GaussianClasses(draw(arrays((2, n))), np.diag(variance), np.array([prior, 1 - prior]))


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
    n = draw(_whole(1, 4)) if width is None else width
    c = draw(_whole(2, 4)) if classes is None else classes
    hidden = draw(_several(_whole(1, max_hidden), 0, max_depth - 1))
    sizes = [n, *hidden, c]
    weights, offsets = [], []
    for before, after in zip(sizes[:-1], sizes[1:], strict=True):
        weight = draw(arrays((after, before)))
        bias = draw(arrays((after,))) if biases else np.zeros(after)
        unit = draw(_whole(0, after - 1))
        match draw(_one_of("plain", "plain", "repeat", "dead", "ignore")):
            case "repeat":
                weight[unit], bias[unit] = weight[0], bias[0]
            case "dead":
                weight[unit], bias[unit] = 0.0, -1.0 if biases else 0.0
            case "ignore":
                weight[:, draw(_whole(0, before - 1))] = 0.0
            case _:
                pass
        scale = draw(_one_of(*scales))
        weights.append(scale * weight)
        offsets.append(scale * bias)
    return ReLUNetwork(tuple(weights), tuple(offsets))


@st.composite
def masked_networks(
    draw: st.DrawFn, networks: st.SearchStrategy[ReLUNetwork] | None = None
) -> tuple[ReLUNetwork, np.ndarray]:
    """A network, by default of at most 12 weights, and one sparsity per layer, the last one often 0."""
    tiny = relu_networks(width=draw(_whole(1, 2)), classes=2, max_hidden=2)
    net = draw(tiny if networks is None else networks)
    alphas = [draw(sparsities()) for _ in net.weights]
    if draw(_BOOLEANS):
        alphas[-1] = 0.0
    return net, np.array(alphas)


def active_counts(net: ReLUNetwork) -> st.SearchStrategy[tuple[int, ...]]:
    """How many units of each hidden layer may be active: 0 to one more than it has."""
    return st.tuples(*(_whole(0, len(weight) + 1) for weight in net.weights[:-1]))


@st.composite
def masked_problems(
    draw: st.DrawFn, *, biases: bool = True, max_depth: int = 3
) -> tuple[ReLUNetwork, np.ndarray, np.ndarray, np.ndarray]:
    """A network of at most 12 weights, two inputs with labels, and one sparsity per layer."""
    classes = draw(_one_of(2, 2, 3))
    width = draw(_whole(1, 2)) if classes == 2 else 1
    net = draw(relu_networks(width=width, classes=classes, max_hidden=2, max_depth=max_depth, biases=biases))
    x = draw(arrays((2, width)))
    y = np.array(draw(_several(_whole(0, classes - 1), 2, 2)))
    # Half of the time the labels are those of the dense network, else little is certified.
    y = net.scores(x).argmax(axis=1) if draw(_BOOLEANS) else y
    alphas = [draw(sparsities()) for _ in net.weights]
    if draw(_BOOLEANS):
        alphas[-1] = 0.0
    return net, x, y, np.array(alphas)


@st.composite
def masked_products(draw: st.DrawFn) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """One masked matrix, or a product of two, of at most 12 weights, and keep probabilities."""
    n, m, r = (draw(_whole(1, 3)) for _ in range(3))
    shapes = [(n, m)] if draw(_BOOLEANS) else [(min(n, 2), min(m, 3)), (min(m, 3), min(r, 2))]
    keep = np.array([1.0 - draw(sparsities()) for _ in shapes])
    return tuple(draw(arrays(shape, scales=(1.0, 1e-3))) for shape in shapes), keep


@cache
@st.composite
def tensors(draw: st.DrawFn, shape: tuple[int, ...], *, scales: tuple[float, ...] = (1.0,)) -> torch.Tensor:
    """A float64 tensor with entries as in :func:`arrays`."""
    return torch.tensor(draw(arrays(shape, scales=scales)))


@cache
@st.composite
def kernels(draw: st.DrawFn, shape: tuple[int, ...]) -> torch.Tensor:
    """Weights of a layer: plain, with two equal output channels, a zero channel, or all zero."""
    weight = draw(tensors(shape, scales=(1.0, 0.25)))
    match draw(_one_of("plain", "plain", "plain", "repeat", "dead", "zero")):
        case "repeat":
            weight[-1] = weight[0]
        case "dead":
            weight[draw(_whole(0, shape[0] - 1))] = 0.0
        case "zero":
            weight[:] = 0.0
        case _:
            pass
    return weight


@st.composite
def convolutions(draw: st.DrawFn, inputs: Shape) -> tuple[Conv2d, Shape]:
    """A convolution of images of this shape, of any stride, padding, dilation and groups, and its output."""
    channels, *sides = inputs
    groups = draw(_one_of(1, channels))
    into = channels // groups
    out = groups * draw(_whole(1, 2))
    padding = (draw(_whole(0, 1)), draw(_whole(0, 1)))
    kernel, dilation = [], []
    for side, pad in zip(sides, padding, strict=True):
        kernel.append(draw(_whole(1, min(3, side + 2 * pad))))
        widest = (side + 2 * pad - 1) // (kernel[-1] - 1) if kernel[-1] > 1 else 3
        dilation.append(draw(_whole(1, min(3, widest))))
    stride = (draw(_whole(1, 3)), draw(_whole(1, 3)))
    weight = draw(kernels((out, into, *kernel)))
    found = Conv2d(weight, stride, padding, (dilation[0], dilation[1]), groups, inputs)
    return found, tuple(found.apply(torch.zeros(1, *inputs, dtype=torch.float64)).shape[1:])


@st.composite
def graphs(
    draw: st.DrawFn, *, image: bool | None = None, most_blocks: int = 4, dtype: torch.dtype = torch.float64
) -> Graph:
    """A small network: dense or on images, with residual blocks, pooling and normalisation, or all affine.

    Its last node may be a sum or a ReLU, as well as a dense layer.
    """
    image = draw(_BOOLEANS) if image is None else image
    shape: Shape = (draw(_whole(1, 2)), 3, draw(_whole(2, 3))) if image else (draw(_whole(1, 4)),)
    builder, x = Builder(shape, dtype, torch.device("cpu")), Place(0)
    for _ in range(draw(_whole(0, most_blocks))):
        x = draw(_blocks(builder, x))
    shape = builder.nodes[x].shape
    if len(shape) > 1:
        builder.output = (math.prod(shape),)
        x = Place(builder.reshape(x))
    x = draw(_dense(builder, x, draw(_whole(2, 3))))
    match draw(_one_of("dense", "dense", "dense", "relu", "sum")):
        case "relu":
            x = Place(builder.relu(x))
        case "sum":
            x = Place(builder.minus(draw(tensors(builder.output)), x))
        case _:
            pass
    return builder.finish(x)


@st.composite
def _dense(draw: st.DrawFn, builder: Builder, x: Place, width: int) -> Place:
    (before,) = builder.nodes[x].shape
    builder.output = (width,)
    bias = draw(tensors((width,))) if draw(_BOOLEANS) else None
    return Place(builder.linear(x, draw(kernels((width, before))), bias))


@st.composite
def _blocks(draw: st.DrawFn, builder: Builder, x: Place) -> Place:
    """One more layer after the value at ``x``."""
    builder.output = shape = builder.nodes[x].shape
    here = ["relu", "relu", "residual", "scale", "move"]
    here += ["dense"] if len(shape) == 1 else ["conv", "conv", "max", "max", "average"]
    match draw(_one_of(*here)):
        case "relu":
            return Place(builder.relu(x))
        case "dense":
            return draw(_dense(builder, x, draw(_whole(1, 4))))
        case "scale":
            factors = (shape[0], *(1,) * (len(shape) - 1))
            scaled = Place(builder.times(x, draw(tensors(factors))))
            return Place(builder.plus(scaled, draw(tensors(factors))))
        case "residual":
            # Of x itself too, and with x once more around it: a sum may read one value twice.
            same = draw(_one_of("layer", "layer", "same")) == "same"
            inner = x if same else builder.relu(draw(_same_shape(builder, x)))
            sign = draw(st.sampled_from([builder.plus, builder.minus]))
            total = Place(sign(Place(inner), x))
            return Place(builder.plus(total, x)) if draw(_BOOLEANS) else total
        case "move":
            return draw(_moves(builder, x))
        case "conv":
            operation, builder.output = draw(convolutions(shape))
            bias = draw(tensors((builder.output[0],))) if draw(_BOOLEANS) else None
            arguments = (operation.stride, operation.padding, operation.dilation, operation.groups)
            return Place(builder.conv2d(x, operation.weight, bias, *arguments))
        case name:
            sides = [*shape[1:]]
            kernel = (min(2, sides[0]), min(draw(_whole(1, 3)), sides[1]))
            stride, padding = (draw(_whole(1, 2)), 1), (kernel[0] // 2, 0)
            pool = torch.nn.functional.max_pool2d if name == "max" else torch.nn.functional.avg_pool2d
            builder.output = tuple(pool(torch.zeros(1, *shape), kernel, stride, padding).shape[1:])
            method = builder.max_pool2d if name == "max" else builder.avg_pool2d
            return Place(method(x, kernel, stride, padding))


@st.composite
def _moves(draw: st.DrawFn, builder: Builder, x: Place) -> Place:
    """Entries padded, left out, in another order, copied, or beside those of another value."""
    shape = builder.output

    def made(operation: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
        builder.output = tuple(operation(torch.zeros(1, *shape)).shape[1:])
        return operation

    match draw(_one_of("pad", "crop", "flip", "every second", "copies", "cat")):
        case "pad":
            sides, value = (1, 0) if len(shape) == 1 else (0, 0, 0, 1, 1, 0), draw(_one_of(0.0, 0.1))
            made(lambda entries: functional.pad(entries, sides))
            return Place(builder.pad(x, sides, value=value))
        case "crop":
            sides = (1, 0 if shape[-1] == 1 else -1)
            made(lambda entries: functional.pad(entries, sides))
            return Place(builder.pad(x, sides))
        case "flip":
            return Place(builder.move(x, lambda entries: entries.flip(-1)))
        case "every second":
            return Place(builder.move(x, made(lambda entries: entries[..., ::2])))
        case "copies":
            return Place(builder.move(x, made(lambda entries: entries.repeat_interleave(2, 1))))
        case _:
            other = Place(builder.relu(x))
            made(lambda entries: torch.cat([entries, entries], 1))
            return Place(builder.cat([x, other], 1))


@st.composite
def _same_shape(draw: st.DrawFn, builder: Builder, x: Place) -> Place:
    """A dense layer, or a padded convolution, that keeps the shape."""
    builder.output = shape = builder.nodes[x].shape
    if len(shape) == 1:
        return draw(_dense(builder, x, shape[0]))
    weight = draw(kernels((shape[0], shape[0], 3, 1)))
    return Place(builder.conv2d(x, weight, None, 1, (1, 0)))
