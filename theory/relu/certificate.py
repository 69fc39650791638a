"""Certified radii: margin over Lipschitz constant."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from theory.relu.lipschitz import EPS, TINY, lipschitz_constants, outward
from theory.relu.margins import local_lipschitz, margin_bounds
from theory.types import InvalidInput, ReLUNetwork, check_domain_radius, check_examples, check_p

CHUNK_ENTRIES = 2**24  # entries of the largest array of a chunk of examples: 128 MiB
LARGEST_RADIUS = 1e300  # where the doubling of a radius stops


def certified_radius(
    net: ReLUNetwork,
    x: Float[Array, "m n"],
    y: Int[Array, " m"],
    *,
    p: float,
    lipschitz: Float[Array, "c c"] | None = None,
    domain_radius: float = math.inf,
) -> Float[Array, " m"]:
    """Lipschitz-margin certificate, a bound: gamma(x) <= the minimal l_p perturbation that changes the class.

    gamma(x) = min( min_{k != y} (g_y - g_k)(x) / L[y, k], R ), and 0 where x is not classified as y.
    ``lipschitz`` holds constants of g_i - g_k in l_p, valid on the ball of radius R = ``domain_radius``
    around every x (default: :func:`theory.relu.lipschitz.lipschitz_constants`, valid everywhere). Margins
    enter as the lower bounds of :func:`margin_lower_bounds`, so the result holds for the network in
    exact arithmetic; a margin too small to be told from rounding (an exact tie included) is certified 0.

    Raises: InvalidInput for bad x, y or p, a lipschitz of another shape, negative or NaN, or domain_radius
      < 0.
    Reference: the paper, section 3.2; Hein and Andriushchenko 2017, Theorem 2.1; Weng et al. 2018, Theorem
      3.2.
    """
    check_p(p)
    classes = net.classes
    constants = lipschitz_constants(net, p=p) if lipschitz is None else np.asarray(lipschitz)
    if constants.shape != (classes, classes):
        raise InvalidInput(f"lipschitz has shape {constants.shape}; expected ({classes}, {classes})")
    x, labels = check_examples(net, x, y)
    return radius_from_margins(
        margin_lower_bounds(net, x, labels), constants[labels], domain_radius=domain_radius
    )


def local_certified_radius(
    net: ReLUNetwork,
    x: Float[Array, "m n"],
    y: Int[Array, " m"],
    *,
    p: float,
    domain_radius: float = math.inf,
    iterations: int = 18,
) -> Float[Array, " m"]:
    """Certificate with local Lipschitz constants, a bound: the best R <= min_k margin / L[k] on its ball.

    Bisection on R, with the constants of :func:`theory.relu.margins.local_lipschitz`; every R tried gives a
    certificate and the largest is kept, so ``iterations`` costs tightness only. Never below
    :func:`certified_radius` with its default constants.

    Raises: InvalidInput as :func:`certified_radius`.
    Reference: the paper, section 3.2; Weng et al. 2018, section 3.4 (Fast-Lip).
    """
    x, y = check_examples(net, x, y)
    everywhere = lipschitz_constants(net, p=p)
    start = certified_radius(net, x, y, p=p, lipschitz=everywhere, domain_radius=domain_radius)
    margins = margin_lower_bounds(net, x, y)

    def certify(rows: Int[Array, " k"], radius: Float[Array, " k"]) -> Float[Array, " k"]:
        constants = local_lipschitz(net, x[rows], y[rows], p=p, radius=radius, constants=everywhere)
        return np.minimum(radius_from_margins(margins[rows], constants), radius)

    return _largest_certified(net, start, certify, domain_radius=domain_radius, iterations=iterations)


def crown_certified_radius(
    net: ReLUNetwork,
    x: Float[Array, "m n"],
    y: Int[Array, " m"],
    *,
    p: float,
    domain_radius: float = math.inf,
    iterations: int = 18,
) -> Float[Array, " m"]:
    """Certificate by linear relaxation, a bound: the largest R found with all margins positive on the ball.

    Bisection on R, with the margins of :func:`theory.relu.margins.margin_bounds`; ``iterations`` costs
    tightness only. Never below :func:`certified_radius` with its default constants.

    Raises: InvalidInput as :func:`certified_radius`.
    Reference: Zhang et al. 2018 (CROWN).
    """
    x, y = check_examples(net, x, y)
    start = certified_radius(net, x, y, p=p, domain_radius=domain_radius)

    def certify(rows: Int[Array, " k"], radius: Float[Array, " k"]) -> Float[Array, " k"]:
        margins = margin_bounds(net, x[rows], y[rows], p=p, radius=radius)
        return np.where((margins > 0).all(axis=1), radius, 0.0)

    return _largest_certified(net, start, certify, domain_radius=domain_radius, iterations=iterations)


def _largest_certified(
    net: ReLUNetwork,
    start: Float[Array, " m"],
    certify: Callable[[np.ndarray, np.ndarray], np.ndarray],
    *,
    domain_radius: float,
    iterations: int,
) -> Float[Array, " m"]:
    """Double the radius from ``start`` until ``certify`` gives less, then bisect; the largest certified.

    Examples at 0, at infinity or at the domain radius stay there. The others go in chunks of bounded memory.
    """
    best = start.copy()
    sizes = [weight.size + weight.shape[0] * net.classes for weight in net.weights]
    chunk = max(1, CHUNK_ENTRIES // max(sizes))
    open_rows = np.flatnonzero((start > 0) & (start < min(domain_radius, LARGEST_RADIUS)))
    for first in range(0, len(open_rows), chunk):
        rows = open_rows[first : first + chunk]
        low, high = start[rows], np.full(len(rows), math.inf)
        for _ in range(iterations):
            trial = np.where(np.isinf(high), 2 * low, low / 2 + high / 2)
            trial = np.minimum(trial, min(domain_radius, LARGEST_RADIUS))
            found = certify(rows, trial)
            best[rows] = np.maximum(best[rows], found)
            high = np.where(found < trial, np.minimum(high, trial), high)
            low = np.maximum(low, found)
    return best


def radius_from_margins(
    margins: Float[Array, "m c"], constants: Float[Array, "m c"], *, domain_radius: float = math.inf
) -> Float[Array, " m"]:
    """min( min_k margins / constants, domain_radius ) rounded down, a bound if margins and constants are.

    margins[e, k] <= (g_y - g_k)(x_e), +inf where there is nothing to beat (k = y); constants[e, k] bounds the
    Lipschitz constant of g_y - g_k on the ball of radius ``domain_radius`` around x_e. A margin that is not
    positive gives 0, whatever its constant; a positive margin over the constant 0 is never lost.

    Raises: InvalidInput if a constant is negative or NaN, or domain_radius is.
    """
    margins, constants = (np.asarray(part, dtype=np.float64) for part in (margins, constants))
    if not (constants >= 0).all():
        raise InvalidInput("lipschitz has a negative or NaN entry; Lipschitz constants are non-negative")
    domain_radius = check_domain_radius(domain_radius)
    positive = margins > 0  # False for NaN
    divide = positive & np.isfinite(margins) & (constants > 0)
    ratio = np.full(margins.shape, math.inf)
    with np.errstate(over="ignore", under="ignore"):
        np.divide(margins, constants, out=ratio, where=divide)
    ratio = np.where(divide, np.maximum(np.nextafter(ratio, -math.inf), 0.0), ratio)
    return np.minimum(np.where(positive, ratio, 0.0).min(axis=1), domain_radius)


def margin_lower_bounds(net: ReLUNetwork, x: Float[Array, "m n"], y: Int[Array, " m"]) -> Float[Array, "m c"]:
    """Lower bounds of (g_y - g_k)(x) in exact arithmetic, a bound: float64 margins less a running error.

    One layer computes W h + b with an error of at most |W| e + gamma_{n+2} (|W||h| + |b|) + n 2**-1022,
    where e bounds the error of h, gamma_n = n u / (1 - n u), and the last term covers underflow (Higham
    2002, sections 3.1 and 3.3); ReLU does not enlarge it. The column k = y is +inf; overflow gives -inf.

    Raises: InvalidInput for NaN or infinite x, or labels that are not integers in [0, c).
    """
    hidden, labels = check_examples(net, x, y)
    error = np.zeros_like(hidden)
    with np.errstate(over="ignore", invalid="ignore"):
        for layer, (weight, bias) in enumerate(zip(net.weights, net.biases, strict=True)):
            hidden = np.maximum(hidden, 0.0) if layer else hidden
            terms = weight.shape[1] + 2
            size = np.abs(weight)
            error = error @ size.T + terms * EPS * (np.abs(hidden) @ size.T + np.abs(bias))
            error = outward(error, roundings=terms + 4) + terms * TINY
            hidden = hidden @ weight.T + bias
        rows = np.arange(len(labels))
        own, own_error = hidden[rows, labels, None], error[rows, labels, None]
        slack = own_error + error + 4 * EPS * (np.abs(own) + np.abs(hidden))
        margins = own - hidden - outward(slack, roundings=8)
    margins = np.where(np.isfinite(margins), margins, -math.inf)
    margins[rows, labels] = math.inf
    return margins
