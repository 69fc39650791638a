"""What random masks do to the certified radius: a lower and an upper bound, and where sparsity is too much.

For an example (x, y) let X = min_k (g_y - g_k)(x) be the margin of the masked network and L any random number
that bounds the Lipschitz constants of all g_y - g_k on the ball of radius R around x; gamma = min(X / L, R)
where X > 0, else 0, is then a certified radius. With L the largest ||J||_q over all activation patterns,
E L <= c (1 - eta(alpha)) by the rungs of :mod:`theory.relu.masks`. By min(u, R) >= u R / (u + R) and
Cauchy-Schwarz

    E gamma >= (E sqrt X_+)^2 / (E L + E X_+ / R),
    E gamma >= (E X_+)^2 / ( sqrt(E X_+^2 E L^2) + E X_+^2 / R ),

and (E sqrt X_+)^2 >= (E X_+)^3 / E X_+^2 by Hölder.

Both fall with the margin. Without biases E X_+ <= prod_j (1 - alpha_j) |v|'|W_{d-1}| ... |W_1||x|, which dies
faster than the rung F of L: sparsity beyond a threshold is too much (:func:`oversparse_kept_fraction`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

from theory.linear.exact import mean_of
from theory.norms import norm
from theory.relu.certificate import margin_lower_bounds
from theory.relu.lipschitz import EPS, SMALLEST, TINY, outward
from theory.relu.mask_margins import expected_margin_bound, margin_moment_bounds
from theory.relu.masked_layers import check_sparsities
from theory.relu.masks import best_bound, second_moment_bound, unsigned_ladder
from theory.relu.moments import check_keep, near_one
from theory.types import (
    InvalidInput,
    ReLUNetwork,
    check_examples,
    check_inputs,
    check_p,
    check_pair,
    finite_array,
)

INWARD = 1 - 32 * EPS  # lower bounds end with fewer roundings than this undoes
LARGEST = float(np.finfo(float).max)


@dataclass(frozen=True)
class RadiusCurve:
    """Bounds of E_M[gamma], averaged over examples, for one sparsity of all hidden layers each (a).

    best: the sparsity with the largest lower bound, the first of several.
    """

    sparsity: Float[Array, " a"]
    lower: Float[Array, " a"]
    upper: Float[Array, " a"]
    best: float


def radius_curve(
    net: ReLUNetwork,
    x: Float[Array, "m n"],
    y: Int[Array, " m"],
    sparsity: Float[Array, " a"],
    *,
    p: float,
    domain_radius: float = math.inf,
) -> RadiusCurve:
    """Lower and upper bound of the mean expected certified radius over sparsity, a bound each.

    All hidden layers have the same sparsity, and the last layer is not masked, as in the paper. The optimum
    is that of the lower bound on the grid given, not of the expectation itself.

    Raises: InvalidInput as :func:`expected_radius_lower_bound`.
    """
    sparsity = finite_array("sparsity", sparsity, ndim=1)
    alphas = np.repeat(sparsity[:, None], len(net.weights), axis=1)
    alphas[:, -1] = 0.0
    lower = expected_radius_lower_bound(net, x, y, alphas, p=p, domain_radius=domain_radius)
    lower = np.maximum(mean_of(lower.T) * (1 - (len(x) + 4) * EPS) - SMALLEST, 0.0)
    upper = expected_radius_upper_bound(net, x, y, alphas, p=p, domain_radius=domain_radius)
    with np.errstate(over="ignore"):
        upper = outward(mean_of(upper.T), roundings=len(x) + 4)
    return RadiusCurve(sparsity, lower, upper, float(sparsity[int(np.argmax(lower))]))


def expected_radius_lower_bound(
    net: ReLUNetwork,
    x: Float[Array, "m n"],
    y: Int[Array, " m"],
    alphas: Float[Array, "a d"],
    *,
    p: float,
    domain_radius: float = math.inf,
) -> Float[Array, "a m"]:
    """E_M[gamma] from below, a bound, without sampling: the better of the two forms above.

    Moments of the margin by :func:`theory.relu.mask_margins.margin_moment_bounds`; 0 where the lower end of
    its mean is not positive. At alpha = 0 the margin over the smaller constant of :func:`expected_lipschitz`,
    up to rounding and the loss of min(u, R) >= u R / (u + R) where R is finite: for two classes a certificate
    by a constant of the whole network, for more at most the smallest of such certificates against each class.
    Powers of 2 of x and of each layer are carried apart where the entries of each lie within 1e120 of one
    another and the biases near their products; elsewhere squares may overflow or vanish, and less is left.

    Raises: InvalidInput for bad x, y, alphas or p, or domain_radius not positive.
    """
    _check_radius(domain_radius)
    x, y = check_examples(net, x, y)
    near, inputs, power, _ = near_one(net, x)
    with np.errstate(over="ignore", under="ignore"):
        reach = float(np.ldexp(float(domain_radius), -power))
        if np.ldexp(reach, power) != domain_radius:
            near, inputs, power, reach = net, x, 0, domain_radius
    # What a bias loses to underflow is less than the margins are widened by.
    mean, square = margin_moment_bounds(near, inputs, y, alphas)
    lipschitz, root_square = _expected_lipschitz_rows(near, y, alphas, p=p)
    root = np.sqrt(square)
    # Hölder: mean * ratio^2 with ratio = mean / root <= 1 in exact arithmetic.
    known = (mean > 0) & np.isfinite(root)
    ratio = np.divide(mean, root, out=np.zeros_like(mean), where=known)
    mean = np.where(known, mean, 0.0)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        beyond = _over_radius(root, reach)
        first = _quotient(mean * ratio * ratio, lipschitz + beyond)
        second = _quotient(mean * ratio, root_square + beyond)
        best = np.where(known, np.maximum(first, second) * INWARD, 0.0)
        found = np.where(np.isinf(best), math.inf, np.minimum(np.ldexp(best, power), LARGEST))
    return np.clip(found - SMALLEST, 0.0, domain_radius)  # a number below the normal ones was rounded


def expected_radius_confidence(
    net: ReLUNetwork,
    x: Float[Array, "m n"],
    y: Int[Array, " m"],
    alphas: Float[Array, "a d"],
    margins: Float[Array, "a k m"],
    *,
    p: float,
    delta: float = 0.01,
    domain_radius: float = math.inf,
) -> Float[Array, "a m"]:
    """E_M[gamma] from below, an estimate: each entry holds with probability 1 - delta over the sampled masks.

    The first form, with the empirical Bernstein lower limit of E sqrt(X_+) from ``margins``, X for k sampled
    masks (:func:`theory.relu.mask_sampling.sample`): with sample variance V and 0 <= sqrt(X_+) <= B, E >=
    mean - sqrt(2 V log(2/delta) / k) - 7 B log(2/delta) / (3 (k-1)). B^2 bounds the margin under every mask.

    Raises: InvalidInput as :func:`expected_radius_lower_bound`, for delta outside (0, 1), or margins
      of another shape.
    Reference: Maurer and Pontil 2009, Empirical Bernstein bounds, Theorem 4.
    """
    _check_radius(domain_radius)
    if not 0 < delta < 1:
        raise InvalidInput(f"delta is {delta!r}; a probability of failure lies in (0, 1)")
    x, y = check_examples(net, x, y)
    check_keep(alphas, layers=len(net.weights))
    margins = np.asarray(margins, dtype=np.float64)
    if margins.ndim != 3 or margins.shape[::2] != (len(alphas), len(x)) or margins.shape[1] < 2:
        raise InvalidInput(
            f"margins has shape {margins.shape}; expected ({len(alphas)}, masks > 1, {len(x)})"
        )
    lipschitz, _ = _expected_lipschitz_rows(net, y, alphas, p=p)
    roots = np.sqrt(np.maximum(margins, 0.0))
    masks = roots.shape[1]
    largest = np.sqrt(_largest_margins(net, x, y))
    log_term = math.log(2 / delta)
    mean = roots.mean(axis=1) - np.sqrt(2 * roots.var(axis=1, ddof=1) * log_term / masks)
    mean = np.maximum(mean - 7 * largest * log_term / (3 * (masks - 1)), 0.0)
    expected = smallest_expected_margin(net, x, y, alphas)
    with np.errstate(over="ignore", under="ignore"):
        found = _quotient(mean**2, lipschitz + _over_radius(expected, domain_radius))
    return np.where(mean > 0, np.clip(found * INWARD - SMALLEST, 0.0, domain_radius), 0.0)


def expected_radius_upper_bound(
    net: ReLUNetwork,
    x: Float[Array, "m n"],
    y: Int[Array, " m"],
    alphas: Float[Array, "a d"],
    *,
    p: float,
    domain_radius: float = math.inf,
) -> Float[Array, "a m"]:
    """E_M[gamma] from above, a bound for every gamma = min(X / L, R), also with exact local constants L.

    Without biases t -> g(t x) is linear for t >= 0, so X <= L ||x||_p and gamma <= min(||x||_p, R); and X > 0
    needs a path of kept weights from an input with x_i != 0: P(X > 0) <= :func:`path_probability`, which goes
    to 0 as any alpha_j -> 1. So does this bound, their product. It holds for the true minimal perturbation
    too if that is capped at R (a network that ignores x has margin 0: a tie, an error) with R in the place of
    min(||x||_p, R). With any bias not 0 the bound is R: a network cut off from x is constant, and where
    its constant class is y, gamma = R.

    Raises: InvalidInput as :func:`expected_radius_lower_bound`.
    """
    _check_radius(domain_radius)
    check_p(p)
    x, y = check_examples(net, x, y)
    check_keep(alphas, layers=len(net.weights))
    if any(bias.any() for bias in net.biases):
        return np.full((len(alphas), len(x)), domain_radius)
    largest = np.minimum(outward(norm(x, p=p), roundings=x.shape[1] + 8), domain_radius)
    alive = np.empty((len(alphas), len(x)))
    for e, (point, label) in enumerate(zip(x, y, strict=True)):
        rivals = [k for k in range(net.classes) if k != label]
        alive[:, e] = np.min([path_probability(net, point, alphas, (int(label), k)) for k in rivals], axis=0)
    with np.errstate(under="ignore"):
        return np.minimum(_product_above(alive, largest), largest)


def path_probability(
    net: ReLUNetwork, x: Float[Array, " n"], alphas: Float[Array, "a d"], pair: tuple[int, int]
) -> Float[Array, " a"]:
    """P(a path of kept weights joins an input with x_i != 0 to g_i - g_k), a bound from above.

    q_u <= 1 - prod_v (1 - k q_v) over the weights that are not 0, upwards. Being joined is an increasing
    function of the masks, so by Harris' inequality E prod_v (1 - k A_v) >= prod_v (1 - k E A_v): treating
    units that share paths as independent gives too much. At most the expected number of such paths.

    Raises: InvalidInput for a bad x or pair, or alphas outside [0, 1] or of another length than the layers.
    Reference: Harris 1960; Fortuin, Kasteleyn, Ginibre 1971.
    """
    alphas, keep = check_sparsities(alphas), check_keep(alphas, layers=len(net.weights))
    check_pair(pair, classes=net.classes)
    x = check_inputs(np.asarray(x)[None], width=net.weights[0].shape[1])[0]
    reached = np.broadcast_to((x != 0).astype(float), (len(keep), len(x)))
    for weight, k in zip(net.weights[:-1], keep.T[:-1], strict=True):
        reached = _any_of(_product_above(k[:, None], reached), (weight != 0).T)
    rows = net.weights[-1][list(pair)]
    # v_u = w_iu m_iu - w_ku m_ku: never 0 but where both are cut, or both kept and equal.
    # The last two in forms without cancellation: 1 - alpha^2 and 1 - alpha^2 - k^2.
    kept, cut = keep[:, -1:], alphas[:, -1:]
    one, two = rows.astype(bool).sum(axis=0) == 1, rows.all(axis=0)
    alive = np.where(one, kept, 0.0) + np.where(two, kept * (1 + cut), 0.0)
    alive = np.where(two & (rows[0] == rows[1]), _product_above(2 * kept, cut), alive)
    both = _product_above(np.minimum(alive, 1.0), reached)
    return _any_of(both, np.ones((rows.shape[1], 1), dtype=bool))[:, 0]


def _product_above(first: Float[Array, "*#s"], second: Float[Array, "*#s"]) -> Float[Array, "*s"]:
    """first * second of non-negative numbers, not below it where that is not normal, 0 where one is."""
    both = np.asarray((first > 0) & (second > 0))
    found = np.multiply(first, second, out=np.zeros(both.shape), where=both)
    return np.where(both, np.maximum(found, TINY), 0.0)


def _any_of(chance: Float[Array, "a h"], edges: Bool[Array, "h v"]) -> Float[Array, "a v"]:
    """1 - prod_u (1 - chance_u) over the edges of each v, rounded up."""
    with np.errstate(divide="ignore"):
        logs = np.maximum(np.log1p(-chance), -1e3)  # exp(-1000) is 0, and 0 * inf is not a number
    none = logs @ edges.astype(float)
    return np.minimum(outward(-np.expm1(none), roundings=4 * len(edges) + 16), 1.0)


def oversparse_kept_fraction(
    net: ReLUNetwork, x: Float[Array, "m n"], y: Int[Array, " m"]
) -> Float[Array, " m"]:
    """Over-sparsification as a formula, a bound: kappa = ( X(0) / min_k P_k )^2, for networks without biases.

    P_k = |w_y - w_k|'|W_{d-1}| ... |W_1||x|, X(0) the margin of the dense network, last layer not masked.
    E X_+ <= prod_j (1-alpha_j) P_k and rung F is c prod_j sqrt(1-alpha_j), so the lower bound (E sqrt X_+)^2
    / F is at most (P_k / c) prod_j sqrt(1-alpha_j): below its dense value X(0) / c wherever prod_j
    (1-alpha_j) < kappa. The best sparsity for that bound keeps at least the fraction kappa of all paths.
    Values are rounded down, and 0 where the example is not classified correctly.

    Raises: InvalidInput for bad x or y, or a network with a bias.
    """
    x, y = check_examples(net, x, y)
    if any(bias.any() for bias in net.biases):
        raise InvalidInput("net has a bias that is not 0; the threshold needs a network without biases")
    margins = np.maximum(margin_lower_bounds(net, x, y).min(axis=1), 0.0)
    paths = smallest_expected_margin(net, x, y, np.zeros((1, len(net.weights))))[0]
    ratio = np.divide(margins, paths, out=np.zeros_like(margins), where=(paths > 0) & np.isfinite(paths))
    return (ratio * INWARD) ** 2


def smallest_expected_margin(
    net: ReLUNetwork, x: Float[Array, "m n"], y: Int[Array, " m"], alphas: Float[Array, "a d"]
) -> Float[Array, "a m"]:
    """min_k of :func:`theory.relu.mask_margins.expected_margin_bound`, a bound of E max(X, 0).

    Raises: InvalidInput for bad x, y or alphas.
    """
    x, y = check_examples(net, x, y)
    check_keep(alphas, layers=len(net.weights))
    out = np.full((len(alphas), len(x)), math.inf)
    for label in np.unique(y):
        rows = np.flatnonzero(y == label)
        for k in range(net.classes):
            if k != label:
                found = expected_margin_bound(net, x[rows], alphas, (int(label), k))
                out[:, rows] = np.minimum(out[:, rows], found)
    return out


def expected_lipschitz(
    net: ReLUNetwork, alphas: Float[Array, "a d"], label: int, *, p: float
) -> tuple[Float[Array, " a"], Float[Array, " a"]]:
    """E L and sqrt(E L^2), L = max_k sup ||J_k||_q over the classes k != label, a bound each.

    The smaller of two: sums over k; and, where the last layer is not masked, the rungs for |v_u| = max_k
    |w_label,u - w_k,u|. Those take no notice of the signs of v and rise with its sizes, so they bound every
    k; rung S, in which signs cancel, does not. The second moment is that of rung P2; for q = 1 the same
    recursion with the ones of the l_1 norm as one more layer below.

    Raises: InvalidInput for bad alphas, a label that is no class, or p.
    """
    check_keep(alphas, layers=len(net.weights))
    if not 0 <= label < net.classes:
        raise InvalidInput(f"label is {label}; classes lie in [0, {net.classes})")
    rivals = [k for k in range(net.classes) if k != label]
    each = [
        (best_bound(net, alphas, (label, k), p=p), _root_square(net, alphas, (label, k), p=p)) for k in rivals
    ]
    with np.errstate(over="ignore"):
        mean, square = np.sum([m for m, _ in each], axis=0), np.hypot.reduce([s for _, s in each], axis=0)
    mean, square = outward(mean, roundings=len(rivals)), outward(square, roundings=6 * len(rivals))
    last = net.weights[-1]
    with np.errstate(over="ignore"):
        widest = np.abs(last[label] - last).max(axis=0) * (1 + 2 * EPS)
    if len(rivals) > 1 and np.isfinite(widest).all():
        cover = np.stack([widest, np.zeros_like(widest)])
        covered = ReLUNetwork((*net.weights[:-1], cover), (*net.biases[:-1], np.zeros(2)))
        whole = alphas[:, -1] == 0
        once = np.min(list(unsigned_ladder(covered, alphas, (0, 1), p=p).values()), axis=0)
        twice = _root_square(covered, alphas, (0, 1), p=p)
        mean = np.where(whole, np.minimum(mean, once), mean)
        square = np.where(whole, np.minimum(square, twice), square)
    return mean, square


def _root_square(
    net: ReLUNetwork, alphas: Float[Array, "a d"], pair: tuple[int, int], *, p: float
) -> Float[Array, " a"]:
    """sqrt(E sup ||J||_q^2), an upper bound by the second moment of the path vector or of its sum."""
    if check_p(p) == 2:
        return second_moment_bound(net, alphas, pair)
    width = net.weights[0].shape[1]
    below = ReLUNetwork((np.ones((width, 1)), *net.weights), (np.zeros(width), *net.biases))
    return second_moment_bound(below, np.concatenate([np.zeros((len(alphas), 1)), alphas], axis=1), pair)


def _expected_lipschitz_rows(
    net: ReLUNetwork, y: Int[Array, " m"], alphas: Float[Array, "a d"], *, p: float
) -> Float[Array, "2 a m"]:
    """:func:`expected_lipschitz` of every example's label."""
    labels, which = np.unique(y, return_inverse=True)
    found = np.array([expected_lipschitz(net, alphas, int(label), p=p) for label in labels])
    return np.moveaxis(found[which], 0, -1)


def _largest_margins(net: ReLUNetwork, x: Float[Array, "m n"], y: Int[Array, " m"]) -> Float[Array, " m"]:
    """An upper bound of the margin under every mask: both rows of v kept where they add up."""
    rows = net.weights[-1]
    spread = np.concatenate([np.abs(rows), -np.abs(rows)])
    widened = ReLUNetwork((*net.weights[:-1], spread), (*net.biases[:-1], np.tile(net.biases[-1], 2)))
    out = np.full(len(x), math.inf)
    dense = np.zeros((1, len(net.weights)))
    for label in np.unique(y):
        chosen = np.flatnonzero(y == label)
        for k in range(net.classes):
            if k != label:
                found = expected_margin_bound(widened, x[chosen], dense, (int(label), net.classes + k))[0]
                out[chosen] = np.minimum(out[chosen], found)
    return out


def _quotient(above: Float[Array, "*s"], below: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """above / below from below: infinite where only ``below`` is 0, a float elsewhere."""
    above = np.maximum(above - SMALLEST, 0.0)
    found = np.divide(above, below, out=np.where(above > 0, math.inf, 0.0), where=below > 0)
    return np.where(below > 0, np.minimum(found, LARGEST), found)


def _over_radius(values: Float[Array, "*s"], radius: float) -> Float[Array, "*s"]:
    """values / radius from above: not 0 where it is not."""
    return np.where((values > 0) & (radius < math.inf), values / radius + SMALLEST, 0.0)


def _check_radius(domain_radius: float) -> None:
    if not domain_radius > 0:
        raise InvalidInput(
            f"domain_radius is {domain_radius!r}; give a positive radius, math.inf for no limit"
        )
