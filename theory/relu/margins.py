"""What a ReLU network can do inside an l_p ball: bounds of pre-activations, margins and gradients.

Every function takes one ball per example, of centre x and closed l_p radius ``radius``, and includes its own
floating-point rounding: a sum of n products is enlarged by a small multiple of n eps times the sum of their
sizes (Higham 2002, section 3.1) and of the smallest normal number, for underflow. What overflows becomes an
infinite bound. Cost and memory are those of (m, width, width) arrays; give fewer examples to limit them.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from theory.norms import dual, norm
from theory.relu.lipschitz import EPS, TINY, lipschitz_constants, outward
from theory.types import InvalidInput, ReLUNetwork, check_examples, check_inputs, finite_array

Bounds = list[tuple[np.ndarray, np.ndarray]]  # (lower, upper), each (m, width), one per hidden layer
# Roundings per entry beyond those of its sum: slopes, centres, the last additions. Counted generously.
EXTRA = 12


def preactivation_bounds(
    net: ReLUNetwork, x: Float[Array, "m n"], *, p: float, radius: Float[Array, " m"]
) -> Bounds:
    """Lower and upper bounds of every hidden pre-activation over the ball, a bound: CROWN and intervals.

    The first layer is exact; from the second on the tighter of interval bound propagation and the backward
    linear relaxation (CROWN) is taken, unit by unit.

    Raises: InvalidInput for bad x or p, or a radius that is negative, not finite or of another length.
    Reference: Gowal et al. 2018 (intervals); Zhang et al. 2018, Theorem 3.2 (CROWN).
    """
    q, (x, radius) = dual(p), check_balls(net, x, radius)
    bounds: Bounds = []
    with np.errstate(over="ignore", invalid="ignore"):
        for weight, bias in zip(net.weights[:-1], net.biases[:-1], strict=True):
            if bounds:
                below, above = interval_step(weight, bias, *bounds[-1])
                rows = np.concatenate([weight, -weight])[None]
                offsets = np.concatenate([bias, -bias])[None]
                linear = _linear_lower(net, rows, offsets, bounds, x, radius, q=q)
                lower = np.fmax(below, linear[:, : len(bias)])
                upper = np.fmin(above, -linear[:, len(bias) :])
            else:
                centre, spread = x @ weight.T + bias, radius[:, None] * upper_norm(weight, q=q)
                size = np.abs(x) @ np.abs(weight).T + np.abs(bias) + spread
                slack = (weight.shape[1] + EXTRA) * (EPS * size + TINY)
                lower, upper = centre - spread - slack, centre + spread + slack
            bounds.append((_or_else(lower, -math.inf), _or_else(upper, math.inf)))
    return bounds


def interval_step(
    weight: Float[Array, "k h"],
    bias: Float[Array, " k"],
    lower: Float[Array, "m h"],
    upper: Float[Array, "m h"],
) -> tuple[Float[Array, "m k"], Float[Array, "m k"]]:
    """W relu(z) + b for all lower <= z <= upper, a bound for each unit: interval bound propagation."""
    low, high = np.maximum(lower, 0.0), np.maximum(upper, 0.0)
    centre, spread = low / 2 + high / 2, high / 2 - low / 2 + TINY  # TINY: halving may underflow
    size = np.abs(weight).T
    middle, reach = centre @ weight.T + bias, spread @ size
    terms = weight.shape[1] + EXTRA
    slack = terms * (EPS * (high @ size + np.abs(bias)) + TINY)
    return _or_else(middle - reach - slack, -math.inf), _or_else(middle + reach + slack, math.inf)


def margin_bounds(
    net: ReLUNetwork,
    x: Float[Array, "m n"],
    y: Int[Array, " m"],
    *,
    p: float,
    radius: Float[Array, " m"],
) -> Float[Array, "m c"]:
    """Lower bounds of g_y - g_k over the ball for every class k, a bound by CROWN; +inf at k = y.

    Exact without hidden layers, or where every unit is stable. Positive for all k means that no point of the
    ball is misclassified; -inf where the bound overflows.

    Raises: InvalidInput as :func:`preactivation_bounds`, or for bad labels.
    Reference: Zhang et al. 2018, Theorem 3.2, with the adaptive lower slope of its section 3.3.
    """
    q, (x, labels) = dual(p), check_examples(net, x, y)
    x, radius = check_balls(net, x, radius)
    bounds = preactivation_bounds(net, x, p=p, radius=radius)
    rows, offsets = _label_rows(net, labels), net.biases[-1][labels][:, None] - net.biases[-1]
    with np.errstate(over="ignore", invalid="ignore"):
        margins = _linear_lower(net, rows, offsets, bounds, x, radius, q=q)
    margins = np.where(np.isfinite(margins), margins, -math.inf)
    margins[np.arange(len(labels)), labels] = math.inf
    return margins


def local_lipschitz(
    net: ReLUNetwork,
    x: Float[Array, "m n"],
    y: Int[Array, " m"],
    *,
    p: float,
    radius: Float[Array, " m"],
    constants: Float[Array, "c c"] | None = None,
) -> Float[Array, "m c"]:
    """Lipschitz constants of g_y - g_k in l_p on the ball, a bound by the interval Jacobian (Fast-Lip).

    Units that keep one sign on the whole ball, by :func:`preactivation_bounds`, are fixed; the others may be
    on or off. Never above the global ``constants`` (default:
    :func:`theory.relu.lipschitz.lipschitz_constants`).

    Raises: InvalidInput as :func:`margin_bounds`, or for constants of another shape, negative or NaN.
    Reference: Weng et al. 2018, Towards Fast Computation of Certified Robustness, section 3.4.
    """
    x, labels = check_examples(net, x, y)
    everywhere = lipschitz_constants(net, p=p) if constants is None else np.asarray(constants)
    if everywhere.shape != (net.classes, net.classes) or not (everywhere >= 0).all():
        raise InvalidInput(
            f"constants has shape {everywhere.shape} or a negative entry or NaN; pass Lipschitz constants of "
            f"({net.classes}, {net.classes}), as lipschitz_constants gives them"
        )
    bounds = preactivation_bounds(net, x, p=p, radius=radius)
    found = gradient_bounds(net, _label_rows(net, labels), bounds, q=dual(p))
    found = np.minimum(found, everywhere[labels])
    found[np.arange(len(labels)), labels] = 0.0
    return found


def gradient_bounds(
    net: ReLUNetwork, rows: Float[Array, "m r h"], bounds: Bounds, *, q: float
) -> Float[Array, "m r"]:
    """Largest ||grad (rows . h)||_q where the pre-activations keep to ``bounds``, a bound: interval Jacobian.

    h is the output of the last hidden layer (the input without any). inf where the sums overflow.
    """
    low = high = rows
    with np.errstate(over="ignore", invalid="ignore"):
        for (lower, upper), weight in zip(reversed(bounds), reversed(net.weights[:-1]), strict=True):
            on, off = (lower >= 0)[:, None], (upper <= 0)[:, None]
            low = np.where(off, 0.0, np.where(on, low, np.minimum(low, 0.0)))
            high = np.where(off, 0.0, np.where(on, high, np.maximum(high, 0.0)))
            centre, spread = low / 2 + high / 2, high / 2 - low / 2
            terms = weight.shape[0] + EXTRA
            rounding = terms * EPS * (np.abs(centre) + spread)
            reach = (spread + rounding + TINY) @ np.abs(weight) + terms * TINY
            connected = ((low != 0) | (high != 0)) * 1.0 @ ((weight != 0) * 1.0) > 0
            middle, reach = centre @ weight, np.where(connected, reach, 0.0)  # no path: a true zero
            low, high = middle - reach, middle + reach
        size = _or_else(np.maximum(np.abs(low), np.abs(high)), math.inf)
        constants = norm(np.where(np.isinf(size), 1.0, size), p=q)
        constants = outward(constants, roundings=size.shape[-1] + EXTRA)
    return np.where(np.isinf(size).any(axis=-1), math.inf, constants)


def _linear_lower(
    net: ReLUNetwork,
    rows: Float[Array, "_ r h"],
    offsets: Float[Array, "_ r"],
    bounds: Bounds,
    x: Float[Array, "m n"],
    radius: Float[Array, " m"],
    *,
    q: float,
) -> Float[Array, "m r"]:
    """Lower bounds over the ball of rows . h + offsets, h the output of the last layer in ``bounds``."""
    coefficients, constants = linear_below(net, rows, offsets, bounds, x, radius, q=q)
    return constants - radius[:, None] * upper_norm(coefficients, q=q)


def upper_norm(values: Float[Array, "*s n"], *, q: float) -> Float[Array, "*s"]:
    """The norm over the last axis, a bound from above: rounding down subnormal numbers is much."""
    return outward(norm(values, p=q), roundings=values.shape[-1] + 4)


def linear_below(
    net: ReLUNetwork,
    rows: Float[Array, "_ r h"],
    offsets: Float[Array, "_ r"],
    bounds: Bounds,
    x: Float[Array, "m n"],
    radius: Float[Array, " m"],
    *,
    q: float,
) -> tuple[Float[Array, "m r n"], Float[Array, "m r"]]:
    """Lines below rows . h + offsets, a bound: slopes s and constants c with s . d + c <= value at x + d.

    h is the output of the last layer in ``bounds``, or x + d where there are none. The lines hold for every
    d of the ball for which the pre-activations keep to ``bounds``, and allow for one later rounding of
    c - radius ||s||_q; ``rows`` and ``offsets`` may carry a rounding each. Each ReLU is replaced, backwards,
    by the line below or above it that its coefficient's sign asks for. The computed coefficients of a layer
    stand for exact ones at a price: their error times the largest value of the layer they multiply, collected
    in ``slack``.
    """
    coefficients = np.broadcast_to(rows, (len(x), *rows.shape[1:]))
    offset = np.broadcast_to(offsets, coefficients.shape[:2])
    slack = EPS * np.abs(offset)
    inputs = [np.abs(x) + radius[:, None], *(np.maximum(upper, 0.0) for _, upper in bounds)]
    for layer in reversed(range(len(bounds))):
        weight, bias = net.weights[layer], net.biases[layer]
        below, above, intercept = relaxation(*bounds[layer])
        negative = np.minimum(coefficients, 0.0)
        through = np.maximum(coefficients, 0.0) * below[:, None] + negative * above[:, None]
        offset = offset + (negative @ intercept[:, :, None])[..., 0] + through @ bias
        size = inputs[layer] @ np.abs(weight).T + np.abs(bias) + np.abs(bounds[layer][0])
        # Errors of the slopes, of both sums and of the product with the weights, and their underflow.
        terms = sum(weight.shape) + EXTRA
        relative = (np.abs(through) @ size[:, :, None])[..., 0] + np.abs(offset)
        absolute = ((np.abs(coefficients) + 1.0) @ (size + 1.0)[:, :, None])[..., 0]
        absolute = absolute + inputs[layer].sum(axis=-1)[:, None]
        slack = slack + terms * (EPS * relative + TINY * absolute)
        coefficients = through @ weight
    size = np.abs(coefficients)
    spread = radius[:, None] * upper_norm(coefficients, q=q)
    reach = (size @ np.abs(x)[:, :, None])[..., 0] + spread
    terms = x.shape[1] + EXTRA
    slack = slack + terms * (EPS * (reach + np.abs(offset)) + TINY * (size.sum(axis=-1) + 1.0))
    centre = (coefficients @ x[:, :, None])[..., 0] + offset
    rounded = outward(slack, roundings=2 * sum(len(b) for b in net.biases) + x.shape[1])
    return coefficients, centre - rounded


def relaxation(
    lower: Float[Array, "m h"], upper: Float[Array, "m h"]
) -> tuple[Float[Array, "m h"], Float[Array, "m h"], Float[Array, "m h"]]:
    """Slopes below and above, and intercept above, with below z <= relu(z) <= above z + intercept, a bound.

    The upper line joins the ends, its slope rounded up (at most 1, where it is still a bound); the lower
    slope is 0 or 1, whichever leaves the smaller area.
    """
    unstable = (lower < 0) & (upper > 0)
    slope = np.minimum(upper / np.where(unstable, upper - lower, 1.0) * (1 + 8 * EPS), 1.0)
    above = np.where(unstable, slope, (lower >= 0) * 1.0)
    below = np.where(unstable, (upper > -lower) * 1.0, above)
    return below, above, np.where(unstable, -lower * slope, 0.0)


def _label_rows(net: ReLUNetwork, labels: Int[Array, " m"]) -> Float[Array, "m c h"]:
    last = net.weights[-1]
    with np.errstate(over="ignore"):
        return last[labels][:, None] - last


def check_balls(
    net: ReLUNetwork, x: Float[Array, "m n"], radius: Float[Array, " m"]
) -> tuple[Float[Array, "m n"], Float[Array, " m"]]:
    """The centres and radii of balls. Raises: InvalidInput unless x fits and radii are finite and >= 0."""
    x = check_inputs(x, width=net.weights[0].shape[1])
    radius = finite_array("radius", radius, ndim=1)
    if radius.shape != (len(x),):
        raise InvalidInput(f"radius has shape {radius.shape}; expected ({len(x)},), one per example")
    if (radius < 0).any():
        raise InvalidInput("radius has a negative entry; a ball needs a radius >= 0")
    return x, radius


def _or_else(values: Float[Array, "*s"], otherwise: float) -> Float[Array, "*s"]:
    return np.where(np.isnan(values), otherwise, values)
