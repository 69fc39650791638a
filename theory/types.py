"""The nouns both sides share: classifiers as plain arrays, and the error for bad input."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array


class InvalidInput(ValueError):
    """Input that breaks a stated precondition; the message names argument, value and remedy."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its class, without what a terminal would obey."""
    text = (str(error).strip() or type(error).__name__).split("\n", 1)[0]
    return "".join(c if c.isprintable() else "?" for c in text)


def finite_array(name: str, value: object, *, ndim: int) -> np.ndarray:
    """Return ``value`` as a read-only float64 array of ``ndim`` dimensions.

    Raises: InvalidInput if it is not numeric, has another number of dimensions, is empty, or holds
    NaN or infinity, or as ``check_subnormal_numbers``.
    """
    check_subnormal_numbers()
    try:
        given = np.asarray(value)
        if given.dtype.kind not in "biuf":
            raise TypeError(f"its type is {given.dtype}")
        array = given.astype(np.float64)
    except (TypeError, ValueError, RuntimeError) as error:  # the last of a tensor with gradients
        raise InvalidInput(f"{name} is not a numeric array ({error}); pass real numbers") from error
    if array.ndim != ndim:
        raise InvalidInput(f"{name} has shape {array.shape}; expected {ndim} dimension(s)")
    if array.size == 0:
        raise InvalidInput(f"{name} has shape {array.shape}; expected at least one entry")
    if not np.isfinite(array).all():
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise InvalidInput(f"{name}{list(where)} is {array[where]}; remove NaN and infinite values")
    array.setflags(write=False)
    return array


def check_subnormal_numbers() -> None:
    """Raises: InvalidInput where this thread rounds subnormal numbers to 0, which no bound accounts for."""
    if sys.float_info.min / 2 == 0:
        raise InvalidInput(
            "numbers below 2.2e-308 are rounded to 0 in this thread; call torch.set_flush_denormal(False)"
        )


def check_p(p: float) -> float:
    """Return the attack norm as a float.

    Raises: InvalidInput unless it is 2 or inf, or as ``check_subnormal_numbers``: most bounds begin here.
    """
    check_subnormal_numbers()
    if p not in (2, math.inf):
        raise InvalidInput(f"p is {p!r}; the attack norm must be 2 or math.inf")
    return float(p)


def check_sparsity(name: str, alpha: float) -> float:
    """Return ``alpha`` as a float. Raises: InvalidInput unless it lies in [0, 1]."""
    if not (isinstance(alpha, int | float | np.floating | np.integer) and 0 <= alpha <= 1):
        raise InvalidInput(f"{name} is {alpha!r}; sparsity is the fraction of weights removed, in [0, 1]")
    return float(alpha)


WHOLE_WITHIN = 1e-9  # how far m * sparsity, itself rounded, may be from a whole number


def count_removed(name: str, sparsity: float, m: int) -> int:
    """How many of every m weights a sparsity removes.

    Raises: InvalidInput for m < 2, or unless the sparsity is a multiple of 1/m in [0, 1].
    """
    check_sparsity(name, sparsity)
    if m < 2:
        raise InvalidInput(f"m is {m}; give groups of at least 2 weights")
    if abs(m * sparsity - round(m * sparsity)) > WHOLE_WITHIN:
        raise InvalidInput(f"{name} is {sparsity}; of {m} weights give a multiple of 1/{m}")
    return round(m * sparsity)


def check_pair(pair: Sequence[int], *, classes: int) -> None:
    """Refuse a bad pair of classes. Raises: InvalidInput unless they are two different ones."""
    whole = len(pair) == 2 and all(isinstance(k, int | np.integer) and 0 <= k < classes for k in pair)
    if not whole or pair[0] == pair[1]:
        raise InvalidInput(f"pair is {pair}; give two different classes in [0, {classes})")


def check_labels(name: str, y: object, *, n: int, classes: int | None) -> np.ndarray:
    """Return labels as int64. Raises: InvalidInput unless they are ``n`` integers in [0, classes).

    Without ``classes`` they need only be non-negative.
    """
    array = np.asarray(y)
    if array.shape != (n,):
        told = f"{name} has shape {array.shape}; expected ({n},), one label per example"
        raise InvalidInput(told + _as_vector(name, array, n))
    most = np.iinfo(np.int64).max if classes is None else classes
    allowed = "from 0 on" if classes is None else f"in [0, {classes})"
    if array.dtype.kind not in "iu":
        told = f"{name} has dtype {array.dtype}; labels must be integers {allowed}"
        raise InvalidInput(told + _as_integers(name, array))
    bad = np.flatnonzero((array < 0) | (array >= most))
    if bad.size:
        raise InvalidInput(
            f"{name}[{bad[0]}] is {array[bad[0]]}; labels must lie {allowed}: number the classes from 0"
        )
    return array.astype(np.int64)


def _as_vector(name: str, array: np.ndarray, n: int) -> str:
    """What makes labels of a column, or of rows with a single 1; empty for others."""
    if array.shape == (n, 1):
        return f": {name}.ravel()"
    numeric = array.shape[:1] == (n,) and array.ndim == 2 and array.dtype.kind in "biuf"
    one_hot = numeric and bool(np.isin(array, (0, 1)).all() and (array.sum(axis=1) == 1).all())
    return f": {name}.argmax(1)" if one_hot else ""


def _as_integers(name: str, array: np.ndarray) -> str:
    """What makes integers of labels that are whole numbers, or names; empty for others."""
    whole = array.dtype.kind == "f" and bool((np.isfinite(array) & (array == np.floor(array))).all())
    if whole or array.dtype.kind == "b":
        return f": {name}.astype(int)"
    if array.dtype.kind in "US":
        return f": np.unique({name}, return_inverse=True)[1]"
    return ""


@dataclass(frozen=True)
class BinaryLinear:
    """The classifier sign(weight . x + bias): class 1 where it is positive, class 0 elsewhere.

    weight: (n,), bias: scalar. Raises: InvalidInput for NaN, infinity or a wrong shape.
    """

    weight: Float[Array, " n"]
    bias: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight", finite_array("weight", self.weight, ndim=1))
        object.__setattr__(self, "bias", float(finite_array("bias", self.bias, ndim=0)))

    def scores(self, x: Float[Array, "m n"]) -> Float[Array, " m"]:
        """weight . x + bias for every row of ``x``. Raises: InvalidInput if the widths disagree."""
        return check_inputs(x, width=self.weight.size) @ self.weight + self.bias


@dataclass(frozen=True)
class LinearClassifier:
    """The classifier argmax_k (weight[k] . x + bias[k]).

    weight: (c, n) with c >= 2, bias: (c,). Raises: InvalidInput for NaN, infinity or wrong shapes.
    """

    weight: Float[Array, "c n"]
    bias: Float[Array, " c"]

    def __post_init__(self) -> None:
        weight = finite_array("weight", self.weight, ndim=2)
        bias = finite_array("bias", self.bias, ndim=1)
        if weight.shape[0] < 2:
            raise InvalidInput(f"weight has {weight.shape[0]} row; use BinaryLinear for a single score")
        if bias.shape != (weight.shape[0],):
            raise InvalidInput(
                f"bias has shape {bias.shape}; weight {weight.shape} needs ({weight.shape[0]},)"
            )
        object.__setattr__(self, "weight", weight)
        object.__setattr__(self, "bias", bias)

    def scores(self, x: Float[Array, "m n"]) -> Float[Array, "m c"]:
        """Scores of every row of ``x``. Raises: InvalidInput if the widths disagree."""
        return check_inputs(x, width=self.weight.shape[1]) @ self.weight.T + self.bias


@dataclass(frozen=True)
class ReLUNetwork:
    """g(x) = W_d relu(W_{d-1} ... relu(W_1 x + b_1) ...) + b_d, fully connected.

    weights: d arrays (n_l, n_{l-1}); biases: d arrays (n_l,). d = 1 is a linear classifier.
    Raises: InvalidInput for NaN, infinity, or widths that do not chain.
    """

    weights: tuple[Float[Array, "_ _"], ...]
    biases: tuple[Float[Array, " _"], ...]

    def __post_init__(self) -> None:
        weights = tuple(finite_array(f"weights[{i}]", w, ndim=2) for i, w in enumerate(self.weights))
        biases = tuple(finite_array(f"biases[{i}]", b, ndim=1) for i, b in enumerate(self.biases))
        if not weights:
            raise InvalidInput("weights is empty; a network needs at least one layer")
        if len(biases) != len(weights):
            raise InvalidInput(f"biases has {len(biases)} entries; weights has {len(weights)} layers")
        for i, (w, b) in enumerate(zip(weights, biases, strict=True)):
            if b.shape != (w.shape[0],):
                raise InvalidInput(f"biases[{i}] has shape {b.shape}; weights[{i}] needs ({w.shape[0]},)")
            if i and w.shape[1] != weights[i - 1].shape[0]:
                raise InvalidInput(
                    f"weights[{i}] takes {w.shape[1]} inputs; layer {i - 1} gives {weights[i - 1].shape[0]}"
                )
        if weights[-1].shape[0] < 2:
            raise InvalidInput("weights[-1] has one row; give one row per class (two for a binary network)")
        object.__setattr__(self, "weights", weights)
        object.__setattr__(self, "biases", biases)

    @property
    def classes(self) -> int:
        """Number of classes c."""
        return self.weights[-1].shape[0]

    def scores(self, x: Float[Array, "m n"]) -> Float[Array, "m c"]:
        """Logits of every row of ``x``. Raises: InvalidInput if the widths disagree."""
        hidden = check_inputs(x, width=self.weights[0].shape[1])
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            hidden = np.maximum(hidden @ weight.T + bias, 0.0)
        return hidden @ self.weights[-1].T + self.biases[-1]


def check_inputs(x: object, *, width: int) -> Float[Array, "m n"]:
    """Return inputs as float64 (m, width). Raises: InvalidInput for NaN, infinity or another shape."""
    array = finite_array("x", x, ndim=2)
    if array.shape[1] != width:
        raise InvalidInput(f"x has shape {array.shape}; the classifier takes {width} features")
    return array


def check_examples(net: ReLUNetwork, x: object, y: object) -> tuple[Float[Array, "m n"], Int[Array, " m"]]:
    """Return x as float64 and y as int64. Raises: InvalidInput unless they are examples of the network."""
    x = check_inputs(x, width=net.weights[0].shape[1])
    return x, check_labels("y", y, n=len(x), classes=net.classes)


def check_domain_radius(domain_radius: float) -> float:
    """Return the radius as a float. Raises: InvalidInput unless it is a number >= 0, or math.inf."""
    if not (isinstance(domain_radius, int | float | np.floating | np.integer) and domain_radius >= 0):
        raise InvalidInput(f"domain_radius is {domain_radius!r}; pass a number >= 0, math.inf for no limit")
    return float(domain_radius)
