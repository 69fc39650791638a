"""Laws of random-mask expectations: margins, certified radii, moments, and the decomposition of a change.

Every law takes the candidate under test. Truths are sums over all masks and, for Lipschitz constants, over
all activation patterns as well; rectified moments are integrated in 40 digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import mpmath
import numpy as np

from theory.laws.measure import at_most, equal
from theory.laws.relu import ENUMERATION_TOLERANCE, all_masks, exact_scores, largest_gradient
from theory.norms import dual, norm
from theory.relu.decomposition import Decomposition, Robustness
from theory.relu.masks import frobenius_bound
from theory.relu.moments import Layer, Prediction
from theory.types import ReLUNetwork

# Margins below this share of the sizes they are the difference of are rounding, not a decision.
DECISION_TOLERANCE = 1e-12
# Squares of margins, relative: their rounding counts twice, and beside a larger mean once more.
SQUARE_TOLERANCE = 1e-9
# t = mean / sd down to -30: the tail moments lose t^4 eps there, 2e-10.
RECTIFIED_TOLERANCE = 1e-9
NOTHING = 1e-300  # what float64 may round to 0
# Moments of a layer are sums of products of a few numbers; the enumeration adds up to 2^12 of them.
MOMENT_TOLERANCE = 1e-11

Radii = Callable[..., np.ndarray]


def masked_scores(net: ReLUNetwork, weights: list[np.ndarray], x: np.ndarray) -> np.ndarray:
    """Logits (K, m, c) of K masked copies."""
    hidden = np.broadcast_to(x, (len(weights[0]), *x.shape))
    for j, (weight, bias) in enumerate(zip(weights, net.biases, strict=True)):
        hidden = np.maximum(hidden, 0.0) if j else hidden
        hidden = hidden @ weight.mT + bias
    return hidden


def masked_margins(net: ReLUNetwork, weights: list[np.ndarray], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """min_k (g_y - g_k) of K masked copies, (K, m)."""
    scores, rows = masked_scores(net, weights, x), np.arange(len(x))
    own = scores[:, rows, y].copy()
    scores[:, rows, y] = -math.inf
    return own - scores.max(axis=2)


def masked_lipschitz(net: ReLUNetwork, weights: list[np.ndarray], label: int, *, p: float) -> np.ndarray:
    """max over k and over activation patterns of ||J_k||_q, (K,)."""
    rivals = [k for k in range(net.classes) if k != label]
    return np.max([largest_gradient(net, weights, (label, k), q=dual(p)) for k in rivals], axis=0)


def rounding_of_margins(net: ReLUNetwork, x: np.ndarray) -> np.ndarray:
    """The size of what cancels in a margin, times DECISION_TOLERANCE, (m,)."""
    size = np.abs(x)
    for weight, bias in zip(net.weights, net.biases, strict=True):
        size = size @ np.abs(weight).T + np.abs(bias)
    return DECISION_TOLERANCE * size.max(axis=1)


def expected_certified_radius(
    net: ReLUNetwork, x: np.ndarray, y: np.ndarray, alphas: np.ndarray, *, p: float, cap: float, side: int
) -> np.ndarray:
    """E_M min(X / L, cap) over all masks, L from all patterns.

    From above if ``side`` is 1 and from below if it is -1, by what rounding can do to a margin, however small
    L is; 0 for neither. A margin that no input changes counts as it is from above, in rational arithmetic
    where rounding could decide: an infinite radius hangs on its sign.
    """
    probabilities, weights = all_masks(net, alphas)
    margins, least = masked_margins(net, weights, x, y), rounding_of_margins(net, x)
    out = np.zeros(len(x))
    for e, label in enumerate(y):
        lipschitz = masked_lipschitz(net, weights, int(label), p=p)
        margin = margins[:, e] + np.where((lipschitz > 0) | (side < 0), side * least[e], 0.0)
        if side >= 0:
            for k in np.flatnonzero((lipschitz == 0) & (np.abs(margin) <= least[e])):
                margin[k] = _sign_of_margin(net, [weight[k] for weight in weights], x[e], int(label))
        ratio = np.full(len(margins), math.inf)
        np.divide(margin, lipschitz, out=ratio, where=lipschitz > 0)
        gamma = np.where(margin > 0, np.minimum(ratio, cap), 0.0)
        used = probabilities > 0
        out[e] = probabilities[used] @ gamma[used]
    return out


def _sign_of_margin(net: ReLUNetwork, weights: list[np.ndarray], x: np.ndarray, label: int) -> int:
    """Of min_k (g_y - g_k)(x) of one masked copy, in rational arithmetic."""
    scores = exact_scores(ReLUNetwork(tuple(weights), net.biases), x)
    own = scores.pop(label)
    return (own > max(scores)) - (own < max(scores))


# ---- Expected certified radius


def law_below_expected_radius(
    lower: Radii, net: ReLUNetwork, x: np.ndarray, y: np.ndarray, alphas: np.ndarray, *, p: float, cap: float
) -> float:
    """The lower bound is non-negative and at most the enumerated expectation."""
    truth = expected_certified_radius(net, x, y, alphas, p=p, cap=cap, side=1)
    found = lower(net, x, y, alphas[None], p=p, domain_radius=cap)[0]
    assert (found >= 0).all()
    return at_most(found, truth, slack=truth * ENUMERATION_TOLERANCE)


def law_above_expected_radius(
    upper: Radii, net: ReLUNetwork, x: np.ndarray, y: np.ndarray, alphas: np.ndarray, *, p: float, cap: float
) -> float:
    """The upper bound is at least the enumerated expectation with the smallest valid constant."""
    truth = expected_certified_radius(net, x, y, alphas, p=p, cap=cap, side=-1)
    found = upper(net, x, y, alphas[None], p=p, domain_radius=cap)[0]
    return at_most(truth, found, slack=found * ENUMERATION_TOLERANCE)


def law_bounds_margin_moments(
    moments: Callable[..., tuple[np.ndarray, np.ndarray]],
    net: ReLUNetwork,
    x: np.ndarray,
    y: np.ndarray,
    alphas: np.ndarray,
) -> float:
    """The first value is at most E X, the second at least E max(X, 0)^2."""
    probabilities, weights = all_masks(net, alphas)
    margins = masked_margins(net, weights, x, y)
    low, high = moments(net, x, y, alphas[None])
    slack = rounding_of_margins(net, x)
    square = probabilities @ np.maximum(margins, 0.0) ** 2
    mean = at_most(low[0], probabilities @ margins, slack=slack)
    return min(mean, at_most(square, high[0], slack=square * SQUARE_TOLERANCE + slack**2))


def law_bounds_expected_margin(
    bound: Callable[..., np.ndarray],
    net: ReLUNetwork,
    x: np.ndarray,
    alphas: np.ndarray,
    pair: tuple[int, int],
) -> float:
    """The value is at least E|g_i - g_k| over all masks."""
    probabilities, weights = all_masks(net, alphas)
    scores = masked_scores(net, weights, x)
    truth = probabilities @ np.abs(scores[..., pair[0]] - scores[..., pair[1]])
    return at_most(truth, bound(net, x, alphas[None], pair)[0], slack=rounding_of_margins(net, x))


def law_bounds_expected_lipschitz(
    bounds: Callable[..., tuple[np.ndarray, np.ndarray]], net: ReLUNetwork, alphas: np.ndarray, *, p: float
) -> float:
    """Both values are at least E L and sqrt(E L^2), L the maximum over classes and patterns."""
    probabilities, weights = all_masks(net, alphas)
    ratio = math.inf
    for label in range(net.classes):
        lipschitz = masked_lipschitz(net, weights, label, p=p)
        mean, root = bounds(net, alphas[None], label, p=p)
        truth = np.array([probabilities @ lipschitz, math.sqrt(probabilities @ lipschitz**2)])
        ratio = min(ratio, at_most(truth, [mean[0], root[0]], slack=truth * ENUMERATION_TOLERANCE))
    return ratio


def law_bounds_path_probability(
    bound: Callable[..., np.ndarray],
    net: ReLUNetwork,
    x: np.ndarray,
    alphas: np.ndarray,
    pair: tuple[int, int],
) -> float:
    """The value is a probability, at least that of a non-zero path from a non-zero input."""
    probabilities, weights = all_masks(net, alphas)
    joined = (weights[-1][:, pair[0]] != weights[-1][:, pair[1]])[:, None, :]
    for weight in reversed(weights[:-1]):
        joined = (joined.astype(float) @ (weight != 0)) > 0
    truth = probabilities @ (joined[:, 0] & (x != 0)).any(axis=1)
    found = bound(net, x, alphas[None], pair)[0]
    assert found <= 1
    return at_most(truth, found, slack=truth * ENUMERATION_TOLERANCE)


def law_sparser_than_kappa_is_worse(
    kappa: Callable[..., np.ndarray], net: ReLUNetwork, x: np.ndarray, y: np.ndarray, alphas: np.ndarray
) -> None:
    """If prod k_j < kappa, (E sqrt X_+)^2 / F(alpha) is at most its dense value, by enumeration."""
    probabilities, weights = all_masks(net, alphas)
    roots = probabilities @ np.sqrt(np.maximum(masked_margins(net, weights, x, y), 0.0))
    dense = masked_margins(net, [weight[None] for weight in net.weights], x, y)[0]
    kept = np.prod(1 - alphas)
    rungs = [frobenius_bound(net, sparsity, (0, 1)) for sparsity in (alphas, np.zeros_like(alphas))]
    for e, threshold in enumerate(kappa(net, x, y)):
        if kept < threshold:
            assert roots[e] ** 2 * rungs[1] <= dense[e] * rungs[0] * (1 + 1e-9)


# ---- Moments


def law_rectified(candidate: Callable[..., tuple[np.ndarray, ...]], mean: float, sd: float) -> float:
    """E and Var of max(z, 0) and P(z > 0), against their formulas in 40 digits."""
    found = [float(v[0]) for v in candidate(np.array([mean]), np.array([sd]) ** 2)[:3]]
    with mpmath.workdps(60):
        m, s = mpmath.mpf(mean), mpmath.sqrt(mpmath.mpf(float((np.array([sd]) ** 2)[0])))
        inside, density = mpmath.ncdf(m / s), mpmath.npdf(m / s)
        first = m * inside + s * density
        truth = [first, (m * m + s * s) * inside + m * s * density - first**2, inside]
        for value, exact in zip(found, truth, strict=True):
            assert abs(value - exact) <= RECTIFIED_TOLERANCE * abs(exact) + NOTHING, (value, exact)
        pairs = zip(found, truth, strict=True)
        return max((float(abs(v - exact) / exact) for v, exact in pairs if exact > NOTHING), default=0.0)


def law_first_layer_exact(
    candidate: Callable[..., list[Layer]], net: ReLUNetwork, x: np.ndarray, keep: np.ndarray
) -> float:
    """Mean and covariance of the first pre-activation equal the sums over all masks of its weights."""
    layer = candidate(net, x, keep)[0]
    weight = net.weights[0]
    bits = (np.arange(2**weight.size)[:, None] >> np.arange(weight.size)) & 1
    chance = np.where(bits == 1, keep[0], 1 - keep[0]).prod(axis=1)
    values = x @ (weight * bits.reshape(-1, *weight.shape)).mT + net.biases[0]
    mean = np.einsum("k,kmu->mu", chance, values)
    covariance = np.einsum("k,kmu,kmv->muv", chance, values - mean, values - mean)
    size = (np.abs(x) @ np.abs(weight).T + np.abs(net.biases[0])).max()
    off = covariance * (1 - np.eye(len(weight)))
    np.testing.assert_allclose(off, 0.0, atol=MOMENT_TOLERANCE * size**2)
    variance = np.einsum("muu->mu", covariance)
    return max(
        equal(layer.mean, mean, scale=size, tolerance=MOMENT_TOLERANCE),
        equal(layer.variance, variance, scale=size**2, tolerance=MOMENT_TOLERANCE),
    )


def law_dense_exact(
    candidate: Callable[..., Prediction], net: ReLUNetwork, x: np.ndarray, y: np.ndarray, rivals: np.ndarray
) -> None:
    """Without masks the prediction is the network: margin, decision and gradient norms."""
    found = candidate(net, x, y, rivals, np.zeros((1, len(net.weights))))
    copies = [weight[None] for weight in net.weights]
    margin = masked_margins(net, copies, x, y)[0]
    slack = rounding_of_margins(net, x)
    assert (np.abs(found.margin[0] - np.maximum(margin, 0.0)) <= slack).all()
    decided = np.abs(margin) > slack
    assert (found.accuracy[0][decided] == (margin > 0)[decided]).all()
    hidden, active = x, []
    for weight, bias in zip(net.weights[:-1], net.biases[:-1], strict=True):
        active.append(hidden @ weight.T + bias > 0)
        hidden = np.maximum(hidden @ weight.T + bias, 0.0)
    gradient = net.weights[-1][y] - net.weights[-1][rivals]
    for weight, on in zip(reversed(net.weights[:-1]), reversed(active), strict=True):
        gradient = (gradient * on) @ weight
    size = np.prod([np.abs(weight).sum() for weight in net.weights])
    for norms, p in ((found.gradient_l2[0], 2.0), (found.gradient_l1[0], 1.0)):
        np.testing.assert_allclose(norms, norm(gradient, p=p), rtol=1e-9, atol=DECISION_TOLERANCE * size)


# ---- Decomposition


def law_terms_add_up(
    candidate: Callable[..., Decomposition], pruned: Robustness, dense: Robustness, *, cap: float
) -> None:
    """The three terms add to the change of the log mean radius, and swapping the networks flips each sign."""
    found, back = candidate(pruned, dense, cap=cap), candidate(dense, pruned, cap=cap)
    means = [np.minimum(network.radius, cap).mean() for network in (pruned, dense)]
    change = math.log(means[0]) - math.log(means[1])
    assert math.isclose(found.change, change, rel_tol=1e-12, abs_tol=1e-12)
    total = found.margin + found.lipschitz + found.remainder
    assert math.isclose(total, change, rel_tol=1e-12, abs_tol=1e-9)
    for name in ("change", "margin", "lipschitz", "remainder"):
        assert math.isclose(getattr(found, name), -getattr(back, name), rel_tol=1e-9, abs_tol=1e-9)


def law_scaling_is_not_robustness(
    candidate: Callable[..., Decomposition], dense: Robustness, factor: float, *, cap: float
) -> None:
    """Scaling all logits moves margin and constant by the same factor: no change, terms that cancel."""
    scaled = Robustness(dense.radius, factor * dense.margin, factor * dense.lipschitz)
    found = candidate(scaled, dense, cap=cap)
    assert found.change == 0
    assert found.through == "remainder"
    assert math.isclose(found.margin, math.log(factor), rel_tol=1e-9, abs_tol=1e-9)
    assert math.isclose(found.lipschitz, -math.log(factor), rel_tol=1e-9, abs_tol=1e-9)
