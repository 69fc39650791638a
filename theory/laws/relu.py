"""Laws of the Lipschitz, certificate and random-mask bounds, each for any candidate formula.

A law raises AssertionError when the candidate breaks it, so a test can also show that it rejects a wrong one.
A law of a bound returns the ratio bound / truth, a law of an identity the relative error
(``theory.laws.measure``).
The truths here are slow and plain: all masks, all activation patterns, exact fractions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from fractions import Fraction

import numpy as np

from theory.laws.measure import at_most, equal
from theory.norms import dual, norm
from theory.types import ReLUNetwork

# The enumerated truth is itself a float64 sum over at most 2**12 masks, each term good to about 1e-15.
ENUMERATION_TOLERANCE = 1e-12
# A formula rounded outward stays this close to the exact value: (entries of the net) * eps, about 1e-14.
IDENTITY_TOLERANCE = 1e-12
# Of the largest entry of a layer: what a bound may take smaller ones for, so that no product underflows.
SMALLEST = Fraction(1, 2**299)
# 1 - eta loses digits near alpha = 1: this much of the value without masks.
ETA_TOLERANCE = 2e-12
# The Chernoff minimum is found to about 1e-3 in log(theta), where the value is flat: 1e-6 of it.
CHERNOFF_TOLERANCE = 1e-5

STEPS = (0.1, 0.5, 0.9, 1.0)  # fractions of a radius at which its ball is attacked
BEYOND = (1.001, 1.01, 1.1, 1.5, 2.0, 5.0, 20.0)  # and multiples, to see how far the next mistake is

Constants = Callable[..., np.ndarray]  # (net, *, p) -> (c, c)
Rung = Callable[[ReLUNetwork, np.ndarray, tuple[int, int]], np.ndarray]


def all_pairs(net: ReLUNetwork) -> list[tuple[int, int]]:
    """Every ordered pair of different classes."""
    return list(itertools.permutations(range(net.classes), 2))


def activation_patterns(net: ReLUNetwork) -> Iterator[list[np.ndarray]]:
    """Every 0/1 pattern of the hidden units, reached by an input or not."""
    sizes = [len(weight) for weight in net.weights[:-1]]
    for bits in itertools.product((0.0, 1.0), repeat=sum(sizes)):
        yield np.split(np.array(bits), np.cumsum(sizes)[:-1]) if sizes else []


def largest_gradient(
    net: ReLUNetwork, weights: list[np.ndarray], pair: tuple[int, int], *, q: float
) -> np.ndarray:
    """max over all activation patterns of ||J||_q for each of K masked copies, weights (K, out, in)."""
    gradient = (weights[-1][:, pair[0]] - weights[-1][:, pair[1]])[None]
    for weight in reversed(weights[:-1]):  # (patterns above, K, in), every pattern of a layer at once
        on = np.array(list(itertools.product((0.0, 1.0), repeat=weight.shape[1])))
        through = (gradient[:, None] * on[:, None]).reshape(-1, *gradient.shape[1:])
        gradient = np.zeros((*through.shape[:2], weight.shape[2]))
        for unit in range(weight.shape[1]):
            gradient += through[..., unit, None] * weight[:, unit]
    return norm(gradient, p=q).max(axis=0)


def path_vectors(weights: list[np.ndarray], pair: tuple[int, int]) -> np.ndarray:
    """|W_1|' ... |W_{d-1}|' |v| of each masked copy, (K, n)."""
    rows = np.abs(weights[-1][:, pair[0]] - weights[-1][:, pair[1]])[:, None, :]
    for weight in reversed(weights[:-1]):
        rows = rows @ np.abs(weight)
    return rows[:, 0]


def all_masks(net: ReLUNetwork, alphas: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Probabilities (2^N,) and masked weights of every mask that matters, of a network with N free weights.

    A weight that is 0, or that its layer keeps or removes for certain, is not free.
    """
    sizes = [weight.size for weight in net.weights]
    sparsity = np.repeat(alphas, sizes)
    nonzero = np.concatenate([weight.ravel() != 0 for weight in net.weights])
    free = np.flatnonzero(nonzero & (sparsity > 0) & (sparsity < 1))
    bits = np.zeros((2**free.size, sparsity.size), dtype=np.int64)
    bits[:, sparsity == 0] = 1
    bits[:, free] = (np.arange(2**free.size)[:, None] >> np.arange(free.size)) & 1
    kept = bits[:, free] == 1
    probabilities = np.where(kept, 1.0 - sparsity[free], sparsity[free]).prod(axis=1)
    parts = np.split(bits, np.cumsum(sizes)[:-1], axis=1)
    weights = [w * part.reshape(-1, *w.shape) for w, part in zip(net.weights, parts, strict=True)]
    return probabilities, weights


def expected_supremum(net: ReLUNetwork, alphas: np.ndarray, pair: tuple[int, int], *, p: float) -> float:
    """E[ sup over patterns of ||J||_q ] by enumeration of all masks and patterns."""
    probabilities, weights = all_masks(net, alphas)
    return float(probabilities @ largest_gradient(net, weights, pair, q=dual(p)))


def exact_path_norm(net: ReLUNetwork, pair: tuple[int, int], *, floor: Fraction = Fraction(0)) -> Fraction:
    """|| |W_1|' ... |w_i - w_k| ||_1 in rational arithmetic.

    Of every layer, and of every product, entries other than 0 count at least ``floor`` times the largest.
    """

    def least(values: list[Fraction]) -> list[Fraction]:
        return [max(value, floor * max(values)) if value else value for value in values]

    i, k = pair
    last = net.weights[-1]
    rows = least([abs(Fraction(a) - Fraction(b)) for a, b in zip(last[i], last[k], strict=True)])
    for weight in reversed(net.weights[:-1]):
        sizes = least([abs(Fraction(value)) for value in weight.flat])
        width = weight.shape[1]
        rows = least(
            [
                sum((r * s for r, s in zip(rows, sizes[a::width], strict=True)), Fraction(0))
                for a in range(width)
            ]
        )
    return sum(rows, Fraction(0))


def exact_scores(net: ReLUNetwork, x: np.ndarray) -> list[Fraction]:
    """Logits at one input in rational arithmetic."""
    hidden = [Fraction(value) for value in x]
    for layer, (weight, bias) in enumerate(zip(net.weights, net.biases, strict=True)):
        hidden = [max(h, Fraction(0)) for h in hidden] if layer else hidden
        hidden = [
            Fraction(b) + sum(Fraction(w) * h for w, h in zip(row, hidden, strict=True))
            for row, b in zip(weight, bias, strict=True)
        ]
    return hidden


def rounded_preactivations(net: ReLUNetwork, x: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pre-activations of every layer, the scores last, and bounds of their rounding errors: (m, h) each.

    An entry sums n products: it is off by n + 2 roundings of the sizes, and what its inputs are off by.
    """
    eps, tiny = np.finfo(np.float64).eps, np.finfo(np.float64).tiny
    hidden, off, found = x, np.zeros_like(x), []
    with np.errstate(over="ignore", invalid="ignore"):
        for weight, bias in zip(net.weights, net.biases, strict=True):
            size, terms = np.abs(weight), weight.shape[1] + 4
            value = hidden @ weight.T + bias
            reach = np.abs(hidden) @ size.T + np.abs(bias)
            error = (off @ size.T + terms * (eps * reach + tiny)) * (1 + 2 * terms * eps)
            found.append((value, error))
            hidden, off = np.maximum(value, 0.0), error
    return found


# ---- Lipschitz constants


def law_bounds_every_gradient(constants: Constants, net: ReLUNetwork, *, p: float) -> float:
    """L[i, k] is at least ||J||_q for every activation pattern; symmetric, with a zero diagonal."""
    table = constants(net, p=p)
    assert table.shape == (net.classes, net.classes)
    assert not np.isnan(table).any()
    assert (np.diag(table) == 0).all()
    assert (table == table.T).all()
    copies = [weight[None] for weight in net.weights]
    truth = np.zeros_like(table)
    for i, k in itertools.combinations(range(net.classes), 2):
        truth[i, k] = largest_gradient(net, copies, (i, k), q=dual(p))[0]
    return at_most(truth, table, slack=truth * ENUMERATION_TOLERANCE)


def law_equals_exact_path_norm(constants: Constants, net: ReLUNetwork) -> float:
    """For p = inf the path norm is at least its rational value, and no further off than rounding.

    What is smaller by more than the floating point can tell apart may count as ``SMALLEST`` of the largest.
    """
    table, worst = constants(net, p=math.inf), 0.0
    for i, k in all_pairs(net):
        exact = exact_path_norm(net, (i, k))
        if math.isinf(table[i, k]):
            assert exact > Fraction(np.finfo(np.float64).max) * (1 - Fraction(IDENTITY_TOLERANCE))
            continue
        assert Fraction(table[i, k]) >= exact
        most = exact_path_norm(net, (i, k), floor=SMALLEST)
        assert Fraction(table[i, k]) <= most * (1 + Fraction(IDENTITY_TOLERANCE)) + Fraction(5e-324) * 4
        worst = max(worst, float((Fraction(table[i, k]) - most) / most) if most else 0.0)
    return worst


def law_exact_for_linear(constants: Constants, net: ReLUNetwork, *, p: float) -> float:
    """Without hidden layers the constant is ||w_i - w_k||_q."""
    (weight,) = net.weights
    table = constants(net, p=p)
    truth = norm(weight[:, None] - weight, p=dual(p))
    return equal(table, truth, scale=truth, tolerance=IDENTITY_TOLERANCE)


def law_homogeneous(constants: Constants, net: ReLUNetwork, layer: int, *, p: float) -> None:
    """Doubling one layer doubles every constant, without any rounding."""
    doubled = [2.0 * w if j == layer else w for j, w in enumerate(net.weights)]
    table = constants(ReLUNetwork(tuple(doubled), net.biases), p=p)
    np.testing.assert_array_equal(table, 2.0 * constants(net, p=p))


# ---- Certificates


def attack_points(
    net: ReLUNetwork, x: np.ndarray, radius: float, *, p: float, steps: tuple[float, ...] = STEPS
) -> np.ndarray:
    """Points ``steps`` times the radius away from x in l_p: along gradients of all patterns, axes, corners.

    (steps, directions, n), flattened to (points, n), the directions of a gradient being its dual ones.
    """
    n = len(x)
    directions = [*np.eye(n), *-np.eye(n), *(np.array(c) for c in itertools.product((-1.0, 1.0), repeat=n))]
    for pattern in activation_patterns(net):
        rows = net.weights[-1][:, None] - net.weights[-1]
        for weight, on in zip(reversed(net.weights[:-1]), reversed(pattern), strict=True):
            rows = (rows * on) @ weight
        rows = rows.reshape(-1, n)
        directions += [*(rows if p == 2 else np.sign(rows))]
    stacked = np.array(directions)
    length = norm(stacked, p=p)
    unit = stacked[length > 0] / length[length > 0, None]
    return x + (radius * np.array(steps)[:, None, None] * unit).reshape(-1, n)


def law_no_attack_inside(
    radius: np.ndarray, net: ReLUNetwork, x: np.ndarray, y: np.ndarray, *, p: float
) -> float:
    """No point of the certified ball is misclassified, up to the rounding of the float64 evaluation there.

    The ratio is that of the nearest misclassified point found outside to the certified radius.
    """
    nearest = math.inf
    for point, label, gamma in zip(x, y, radius, strict=True):
        assert gamma >= 0
        if gamma == 0:
            continue
        # A finite stand-in where everything, or a huge ball, is certified.
        points = attack_points(net, point, min(gamma, 1e6), p=p, steps=STEPS + BEYOND)
        scores = net.scores(points)
        margins = (scores[:, [label]] - scores).min(axis=1).reshape(len(STEPS + BEYOND), -1)
        inside, outside = np.split(np.abs(scores), [margins.shape[1] * len(STEPS)])
        size = max(inside.max(), np.abs(net.scores(point[None])).max())
        assert (margins[: len(STEPS)] >= -1e-9 * size).all()
        failed = (margins[len(STEPS) :] < -1e-9 * outside.max()).any(axis=1)
        nearest = min(nearest, *np.array(BEYOND)[failed], math.inf)
    return nearest


def law_margins_below_exact(margins: np.ndarray, net: ReLUNetwork, x: np.ndarray, y: np.ndarray) -> float:
    """Margins are at most their rational values.

    Where float64 and its rounding do not settle it, rational arithmetic does.
    """
    scores, error = rounded_preactivations(net, x)[-1]
    each = np.arange(len(x))
    assert (margins[each, y] == math.inf).all()
    with np.errstate(over="ignore", invalid="ignore"):
        truth = scores[each, y, None] - scores
        slack = (error[each, y, None] + error + np.abs(truth) * 1e-15) * (1 + 1e-15)
        counts = np.isfinite(margins)
        settled = margins <= truth - slack
        ratio = truth / np.where(margins > 0, margins, 1.0)
    closest = float(ratio[counts & settled & (margins > 0)].min(initial=math.inf))
    for e in np.flatnonzero((counts & ~settled).any(axis=1)):
        exact = exact_scores(net, x[e])
        for k in np.flatnonzero(counts[e]):
            value, true_margin = margins[e, k], exact[y[e]] - exact[k]
            assert Fraction(value) <= true_margin
            closest = min(closest, float(true_margin / Fraction(value)) if value > 0 else math.inf)
    return closest


# ---- Expectations over masks


def law_bounds_expected_supremum(
    bound: Rung, net: ReLUNetwork, alphas: np.ndarray, pair: tuple[int, int], *, p: float
) -> float:
    """The rung is at least E[ sup ||J||_q ] over all masks and all activation patterns."""
    truth = expected_supremum(net, alphas, pair, p=p)
    return at_most(truth, bound(net, alphas, pair), slack=truth * ENUMERATION_TOLERANCE)


def law_bounds_expected_norm_product(
    bound: Rung, net: ReLUNetwork, alphas: np.ndarray, pair: tuple[int, int], *, p: float
) -> float:
    """F, B (p = 2) and M (p = inf) bound even E[ ||v||_q prod_j ||W_j * M_j|| ] >= E sup ||J||_q."""
    probabilities, weights = all_masks(net, alphas)
    products = norm(weights[-1][:, pair[0]] - weights[-1][:, pair[1]], p=dual(p))
    for weight in weights[:-1]:
        rows = np.abs(weight).sum(axis=2).max(axis=1)
        products = products * (np.linalg.norm(weight, ord=2, axis=(1, 2)) if p == 2 else rows)
    truth = probabilities @ products
    return at_most(truth, bound(net, alphas, pair), slack=truth * ENUMERATION_TOLERANCE)


def law_bounds_sampled_spectral_norms(bound: Rung, weight: np.ndarray, alpha: float) -> None:
    """For one hidden layer read by v with ||v|| = 1 the rung bounds the mean of 100 sampled ||W * M||_2.

    Spectral norms of masked matrices concentrate: at five standard errors a correct bound fails by chance
    once in 3.5 million seeds, and one without its variance term fails where the matrix is large and flat.
    """
    rng = np.random.default_rng(0)
    draws = rng.random((100, *weight.shape)) >= alpha
    norms = np.linalg.norm(weight * draws, ord=2, axis=(1, 2))
    last = np.zeros((2, len(weight)))
    last[0, 0] = 1.0
    net = ReLUNetwork((weight, last), (np.zeros(len(weight)), np.zeros(2)))
    assert bound(net, np.array([alpha, 0.0]), (0, 1)) >= norms.mean() - 0.5 * norms.std()


def law_equals_expected_path_norm(
    identity: Rung, net: ReLUNetwork, alphas: np.ndarray, pair: tuple[int, int]
) -> float:
    """P1 is E || |W_1|' ... |v| ||_1, summed over all masks."""
    probabilities, weights = all_masks(net, alphas)
    truth = probabilities @ norm(path_vectors(weights, pair), p=1.0)
    return equal(identity(net, alphas, pair), truth, scale=truth, tolerance=2 * ENUMERATION_TOLERANCE)


def law_squares_to_second_moment(
    identity: Rung, net: ReLUNetwork, alphas: np.ndarray, pair: tuple[int, int]
) -> float:
    """P2 squared is E || |W_1|' ... |v| ||_2^2, summed over all masks."""
    probabilities, weights = all_masks(net, alphas)
    truth = np.sqrt(probabilities @ norm(path_vectors(weights, pair), p=2.0) ** 2)
    return equal(identity(net, alphas, pair), truth, scale=truth, tolerance=2 * ENUMERATION_TOLERANCE)


def law_non_increasing(
    rung: Rung, net: ReLUNetwork, alphas: np.ndarray, higher: np.ndarray, pair: tuple[int, int]
) -> float:
    """More sparsity in hidden layers (``higher`` >= ``alphas``, equal last entries) never raises the rung."""
    low, high = rung(net, alphas, pair), rung(net, higher, pair)
    return at_most(high, low, slack=low * CHERNOFF_TOLERANCE)


def law_dominates(
    smaller: Rung, larger: Rung, net: ReLUNetwork, alphas: np.ndarray, pair: tuple[int, int]
) -> float:
    """One rung is at most another for this network and these sparsities."""
    above = larger(net, alphas, pair)
    return at_most(smaller(net, alphas, pair), above, slack=above * IDENTITY_TOLERANCE)


def law_factor(
    rung: Rung,
    eta: Callable[[np.ndarray], np.ndarray],
    net: ReLUNetwork,
    alphas: np.ndarray,
    pair: tuple[int, int],
) -> float:
    """With the last layer unmasked the rung is c (1 - eta(alpha)), c its value without masks."""
    unmasked_last = np.concatenate([alphas[:-1], [0.0]])
    dense = float(rung(net, np.zeros_like(alphas), pair))
    fallen = dense * (1 - eta(unmasked_last))
    return equal(rung(net, unmasked_last, pair), fallen, scale=dense, tolerance=ETA_TOLERANCE)
