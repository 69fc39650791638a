"""Bounds on the moments of the margins of a randomly masked ReLU network, without sampling.

Layer j keeps each weight independently with probability k_j = 1 - alpha_j; biases are not masked. For every
unit an interval that holds E z, and an upper bound of Var z, go through the layers:

- E W h M + b lies in k W [E h] + b, interval arithmetic;
- Jensen and Cauchy-Schwarz: max(E z, 0) <= E max(z, 0) = (E z + E|z|) / 2 with E|z| <= sqrt((E z)^2 + Var z);
- max(., 0) is 1-Lipschitz, so Var max(z, 0) <= Var z;
- Efron-Stein, layer by layer: given the layers below, the units of layer l have independent masks, and the
  expected output changes by at most a_u per unit change of unit u, a = k_d ... k_{l+1} |v|'|W_{d-1}| ...
  |W_{l+1}|; hence Var(output) <= sum_l sum_u a_u^2 k_l (1-k_l) sum_v W_uv^2 E h_v^2.

Exact for one layer. With more layers the interval widens by about half a standard deviation per unit, so the
lower end of the mean is positive for small alpha only. All values include their floating-point rounding.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from theory.relu.lipschitz import EPS, TINY, outward
from theory.relu.masked_layers import check_sparsities
from theory.relu.moments import check_keep
from theory.types import ReLUNetwork, check_examples, check_inputs, check_pair

EXTRA = 16  # roundings per entry beyond those of its sum, counted generously


def margin_moment_bounds(
    net: ReLUNetwork, x: Float[Array, "m n"], y: Int[Array, " m"], alphas: Float[Array, "a d"]
) -> tuple[Float[Array, "a m"], Float[Array, "a m"]]:
    """E min_k (g_y - g_k) from below and E max(min_k (g_y - g_k), 0)^2 from above, a bound each.

    With mu_k the mean of a margin and V_k its variance, n = c - 1 margins: E min_k >= min_k mu_k -
    sqrt((n-1)/n sum_k V_k) (Aven), and the second moment is at most min_k (mu_k^2 + V_k). For one layer and
    two classes the first is E X and the second E X^2, which is E max(X, 0)^2 where no mask errs. Overflow
    gives -inf and inf.

    Raises: InvalidInput for bad x, y or alphas.
    Reference: Aven 1985, Upper (lower) bounds on the mean of the maximum (minimum) of a number of random
    variables; Boucheron, Lugosi, Massart 2013, Theorem 3.1 (Efron-Stein).
    """
    x, y = check_examples(net, x, y)
    alphas, keep = check_sparsities(alphas), check_keep(alphas, layers=len(net.weights))
    mean, square = np.empty((2, len(keep), len(x)))
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        for a, kept in enumerate(keep):
            for label in np.unique(y):
                rows = np.flatnonzero(y == label)
                low, high, spread = _margins(net, x[rows], int(label), kept, alphas[a])
                # 2-norm and Aven's constant, rounded away from the truth.
                others = net.classes - 1
                total = outward(np.sqrt((others - 1) / others * spread.sum(axis=1)), roundings=others + 8)
                least = low.min(axis=1)
                mean[a, rows] = least - total - 2 * EPS * (np.abs(least) + total)
                largest = np.maximum(np.abs(low), np.abs(high))
                square[a, rows] = outward((largest**2 + spread).min(axis=1), roundings=4) + TINY
    return np.where(np.isnan(mean), -math.inf, mean), np.where(np.isnan(square), math.inf, square)


def _margins(
    net: ReLUNetwork, x: Float[Array, "m n"], label: int, keep: Float[Array, " d"], alphas: Float[Array, " d"]
) -> tuple[Float[Array, "m r"], Float[Array, "m r"], Float[Array, "m r"]]:
    """Ends of the mean, and an upper bound of the variance, of g_label - g_k for every other class k."""
    low = high = x
    second, own, reach = x**2 + TINY, [], []
    for weight, bias, k, alpha in zip(net.weights[:-1], net.biases[:-1], keep[:-1], alphas[:-1], strict=True):
        low, high = _interval(k * weight, bias, low, high)
        reach = _reach(k * weight, reach)
        own.append(_own_variance(weight**2, second, k * alpha))
        spread = _total_variance(reach, own)
        size = np.hypot(high, np.sqrt(spread))
        # (high + size) / 2 without cancellation
        positive = np.where(high > 0, (high + size) / 2, spread / np.maximum(2 * (size - high), TINY))
        low, high = np.maximum(low, 0.0), outward(positive, roundings=12) + TINY
        second = outward(spread + high**2, roundings=6) + TINY
    others = np.delete(np.arange(net.classes), label)
    last, bias, k = net.weights[-1], net.biases[-1], keep[-1]
    rows = k * (last[label] - last[others])
    low, high = _interval(rows, bias[label] - bias[others], low, high)
    own.append(_own_variance(last[label] ** 2 + last[others] ** 2, second, k * alphas[-1]))
    return low, high, _total_variance(_reach(rows, reach), own)


def _reach(rows: Float[Array, "k h"], below: list[Float[Array, "h _"]]) -> list[Float[Array, "k _"]]:
    """|rows| a for every layer's a, and the identity for the new layer: upper bounds of unit changes."""
    terms = rows.shape[1]
    further = [outward(np.abs(rows) @ a, roundings=terms + EXTRA) + terms * TINY for a in below]
    return [*further, np.eye(len(rows))]


def _interval(
    weight: Float[Array, "k h"], bias: Float[Array, " k"], low: Float[Array, "m h"], high: Float[Array, "m h"]
) -> tuple[Float[Array, "m k"], Float[Array, "m k"]]:
    """weight h + bias for all low <= h <= high, outward; weight and bias may each be rounded a few times."""
    centre, spread = low / 2 + high / 2, high / 2 - low / 2
    # What is rounded below the normal numbers is absolute, and the other factor may be huge.
    size = (np.abs(low) + np.abs(high) + TINY) @ (np.abs(weight) + TINY).T + np.abs(bias)
    middle, reach = centre @ weight.T + bias, spread @ np.abs(weight).T
    slack = (weight.shape[1] + EXTRA) * (EPS * size + TINY)
    return middle - reach - slack, middle + reach + slack


def _own_variance(
    squares: Float[Array, "k h"], second: Float[Array, "m h"], chance: float
) -> Float[Array, "m k"]:
    """chance W^2 E h^2 for chance = k (1-k), an upper bound; 0 where nothing is random."""
    if chance == 0:
        return np.zeros((len(second), len(squares)))
    terms = squares.shape[1]
    return outward(chance * (second @ (squares + TINY).T), roundings=terms + EXTRA) + terms * TINY


def _total_variance(reach: list[Float[Array, "k _"]], own: list[Float[Array, "m _"]]) -> Float[Array, "m k"]:
    """sum_l a_l^2 own_l over the layers, an upper bound."""
    total = sum(part @ (a**2 + TINY).T for part, a in zip(own, reach, strict=True))
    return outward(np.asarray(total), roundings=sum(a.shape[1] for a in reach) + EXTRA)


def expected_margin_bound(
    net: ReLUNetwork, x: Float[Array, "m n"], alphas: Float[Array, "a d"], pair: tuple[int, int]
) -> Float[Array, "a m"]:
    """E|g_i - g_k| <= E|v|' e_{d-1} + |b_i - b_k|, a bound; e_j = k_j |W_j| e_{j-1} + max(b_j, 0), e_0 = |x|.

    Without biases this is prod_j (1 - alpha_j) |v|'|W_{d-1}| ... |W_1||x|. Biases are not masked: at alpha =
    1 what they alone compute is left. E|v_u| is that of the last layer, :mod:`theory.relu.masks`.

    Raises: InvalidInput for bad x or alphas, or a pair that is not two different classes.
    """
    x = check_inputs(x, width=net.weights[0].shape[1])
    alphas, keep = check_sparsities(alphas), check_keep(alphas, layers=len(net.weights))
    check_pair(pair, classes=net.classes)
    i, k = pair
    last, offset = net.weights[-1], abs(net.biases[-1][i] - net.biases[-1][k])
    out = np.empty((len(keep), len(x)))
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        for a, kept in enumerate(keep):
            size = np.abs(x)
            for weight, bias, probability in zip(net.weights[:-1], net.biases[:-1], kept[:-1], strict=True):
                size = _expected_size(size, probability * np.abs(weight), np.maximum(bias, 0.0), probability)
            both, one = kept[-1] ** 2, kept[-1] * alphas[a, -1]
            first = both * np.abs(last[i] - last[k]) + one * (np.abs(last[i]) + np.abs(last[k]))
            out[a] = _expected_size(size, first[None], np.array([offset]), kept[-1])[:, 0]
    return np.where(np.isnan(out), math.inf, out)


def _expected_size(
    size: Float[Array, "m h"], weight: Float[Array, "k h"], bias: Float[Array, " k"], keep: float
) -> Float[Array, "m k"]:
    """weight size + bias of non-negative numbers, rounded up; the bias alone where nothing is kept."""
    terms, tiny = weight.shape[1], TINY if keep > 0 else 0.0
    return outward(size @ (weight + tiny).T + bias, roundings=terms + EXTRA) + terms * tiny
