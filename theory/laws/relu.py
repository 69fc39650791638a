"""Laws of the Lipschitz, certificate and random-mask bounds, each for any candidate formula.

A law raises AssertionError when the candidate breaks it, so a test can also show that it rejects a wrong one.
The truths here are slow and plain: all masks, all activation patterns, exact fractions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from fractions import Fraction

import numpy as np

from theory.norms import dual, norm
from theory.types import ReLUNetwork

# The enumerated truth is itself a float64 sum over at most 2**12 masks, each term good to about 1e-15.
ENUMERATION_TOLERANCE = 1e-12
# A formula rounded outward stays this close to the exact value: (entries of the net) * eps, about 1e-14.
IDENTITY_TOLERANCE = 1e-12
# The Chernoff minimum is found to about 1e-3 in log(theta), where the value is flat: 1e-6 of it.
CHERNOFF_TOLERANCE = 1e-5

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
    largest = np.zeros(len(weights[0]))
    for pattern in activation_patterns(net):
        gradient = (weights[-1][:, pair[0]] - weights[-1][:, pair[1]])[:, None, :]
        for weight, on in zip(reversed(weights[:-1]), reversed(pattern), strict=True):
            gradient = (gradient * on) @ weight
        largest = np.maximum(largest, norm(gradient[:, 0], p=q))
    return largest


def path_vectors(weights: list[np.ndarray], pair: tuple[int, int]) -> np.ndarray:
    """|W_1|' ... |W_{d-1}|' |v| of each masked copy, (K, n)."""
    rows = np.abs(weights[-1][:, pair[0]] - weights[-1][:, pair[1]])[:, None, :]
    for weight in reversed(weights[:-1]):
        rows = rows @ np.abs(weight)
    return rows[:, 0]


def all_masks(net: ReLUNetwork, alphas: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Probabilities (2^N,) and masked weights of every mask of a network with N weights."""
    sizes = [weight.size for weight in net.weights]
    total = sum(sizes)
    bits = (np.arange(2**total)[:, None] >> np.arange(total)) & 1
    sparsity = np.repeat(alphas, sizes)
    probabilities = np.where(bits == 1, 1.0 - sparsity, sparsity).prod(axis=1)
    parts = np.split(bits, np.cumsum(sizes)[:-1], axis=1)
    weights = [w * part.reshape(-1, *w.shape) for w, part in zip(net.weights, parts, strict=True)]
    return probabilities, weights


def expected_supremum(net: ReLUNetwork, alphas: np.ndarray, pair: tuple[int, int], *, p: float) -> float:
    """E[ sup over patterns of ||J||_q ] by enumeration of all masks and patterns."""
    probabilities, weights = all_masks(net, alphas)
    return float(probabilities @ largest_gradient(net, weights, pair, q=dual(p)))


def exact_path_norm(net: ReLUNetwork, pair: tuple[int, int]) -> Fraction:
    """|| |W_1|' ... |w_i - w_k| ||_1 in rational arithmetic."""
    i, k = pair
    last = net.weights[-1]
    rows = [abs(Fraction(a) - Fraction(b)) for a, b in zip(last[i], last[k], strict=True)]
    for weight in reversed(net.weights[:-1]):
        columns = range(weight.shape[1])
        rows = [sum(r * abs(Fraction(weight[u, a])) for u, r in enumerate(rows)) for a in columns]
    return Fraction(sum(rows))


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


# ---- Lipschitz constants


def law_bounds_every_gradient(constants: Constants, net: ReLUNetwork, *, p: float) -> None:
    """L[i, k] is at least ||J||_q for every activation pattern; symmetric, with a zero diagonal."""
    table = constants(net, p=p)
    assert table.shape == (net.classes, net.classes)
    assert not np.isnan(table).any()
    assert (np.diag(table) == 0).all()
    assert (table == table.T).all()
    copies = [weight[None] for weight in net.weights]
    for i, k in all_pairs(net):
        truth = largest_gradient(net, copies, (i, k), q=dual(p))[0]
        assert table[i, k] >= truth * (1 - ENUMERATION_TOLERANCE)


def law_equals_exact_path_norm(constants: Constants, net: ReLUNetwork) -> None:
    """For p = inf the path norm is at least its rational value, and no further off than rounding."""
    table = constants(net, p=math.inf)
    for i, k in all_pairs(net):
        exact = exact_path_norm(net, (i, k))
        if math.isinf(table[i, k]):
            assert exact > Fraction(np.finfo(np.float64).max) * (1 - Fraction(IDENTITY_TOLERANCE))
            continue
        assert Fraction(table[i, k]) >= exact
        slack = exact * Fraction(IDENTITY_TOLERANCE) + Fraction(5e-324) * 4
        assert Fraction(table[i, k]) <= exact + slack


def law_exact_for_linear(constants: Constants, net: ReLUNetwork, *, p: float) -> None:
    """Without hidden layers the constant is ||w_i - w_k||_q."""
    (weight,) = net.weights
    table = constants(net, p=p)
    np.testing.assert_allclose(table, norm(weight[:, None] - weight, p=dual(p)), rtol=IDENTITY_TOLERANCE)


def law_homogeneous(constants: Constants, net: ReLUNetwork, layer: int, *, p: float) -> None:
    """Doubling one layer doubles every constant, without any rounding."""
    doubled = [2.0 * w if j == layer else w for j, w in enumerate(net.weights)]
    table = constants(ReLUNetwork(tuple(doubled), net.biases), p=p)
    np.testing.assert_array_equal(table, 2.0 * constants(net, p=p))


# ---- Certificates


def attack_points(net: ReLUNetwork, x: np.ndarray, radius: float, *, p: float) -> np.ndarray:
    """Points of the closed l_p ball around x: dual directions of every pattern's gradients, axes, corners."""
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
    steps = radius * np.array([0.1, 0.5, 0.9, 1.0])
    return x + (steps[:, None, None] * unit).reshape(-1, n)


def law_no_attack_inside(
    radius: np.ndarray, net: ReLUNetwork, x: np.ndarray, y: np.ndarray, *, p: float
) -> None:
    """No point of the certified ball is misclassified, up to the rounding of the float64 evaluation there."""
    for point, label, gamma in zip(x, y, radius, strict=True):
        assert gamma >= 0
        if gamma == 0:
            continue
        # A finite stand-in where everything, or a huge ball, is certified.
        scores = net.scores(attack_points(net, point, min(gamma, 1e6), p=p))
        size = max(np.abs(scores).max(), np.abs(net.scores(point[None])).max())
        assert (scores[:, [label]] - scores >= -1e-9 * size).all()


def law_margins_below_exact(margins: np.ndarray, net: ReLUNetwork, x: np.ndarray, y: np.ndarray) -> None:
    """Margins are at most their rational values, and close to them for the sizes of the terms they sum."""
    for point, label, row in zip(x, y, margins, strict=True):
        exact = exact_scores(net, point)
        for k, value in enumerate(row):
            if k == label:
                assert value == math.inf
            elif math.isfinite(value):
                assert Fraction(value) <= exact[label] - exact[k]


# ---- Expectations over masks


def law_bounds_expected_supremum(
    bound: Rung, net: ReLUNetwork, alphas: np.ndarray, pair: tuple[int, int], *, p: float
) -> None:
    """The rung is at least E[ sup ||J||_q ] over all masks and all activation patterns."""
    truth = expected_supremum(net, alphas, pair, p=p)
    value = bound(net, alphas, pair)
    assert not np.isnan(value)
    assert value >= truth * (1 - ENUMERATION_TOLERANCE), (float(value), float(truth))


def law_bounds_expected_norm_product(
    bound: Rung, net: ReLUNetwork, alphas: np.ndarray, pair: tuple[int, int], *, p: float
) -> None:
    """F, B (p = 2) and M (p = inf) bound even E[ ||v||_q prod_j ||W_j * M_j|| ] >= E sup ||J||_q."""
    probabilities, weights = all_masks(net, alphas)
    products = norm(weights[-1][:, pair[0]] - weights[-1][:, pair[1]], p=dual(p))
    for weight in weights[:-1]:
        rows = np.abs(weight).sum(axis=2).max(axis=1)
        products = products * (np.linalg.norm(weight, ord=2, axis=(1, 2)) if p == 2 else rows)
    truth = probabilities @ products
    assert bound(net, alphas, pair) >= truth * (1 - ENUMERATION_TOLERANCE)


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
) -> None:
    """P1 is E || |W_1|' ... |v| ||_1, summed over all masks."""
    probabilities, weights = all_masks(net, alphas)
    truth = probabilities @ norm(path_vectors(weights, pair), p=1.0)
    np.testing.assert_allclose(identity(net, alphas, pair), truth, rtol=2 * ENUMERATION_TOLERANCE)


def law_squares_to_second_moment(
    identity: Rung, net: ReLUNetwork, alphas: np.ndarray, pair: tuple[int, int]
) -> None:
    """P2 squared is E || |W_1|' ... |v| ||_2^2, summed over all masks."""
    probabilities, weights = all_masks(net, alphas)
    truth = np.sqrt(probabilities @ norm(path_vectors(weights, pair), p=2.0) ** 2)
    np.testing.assert_allclose(identity(net, alphas, pair), truth, rtol=2 * ENUMERATION_TOLERANCE)


def law_non_increasing(
    rung: Rung, net: ReLUNetwork, alphas: np.ndarray, higher: np.ndarray, pair: tuple[int, int]
) -> None:
    """More sparsity in hidden layers (``higher`` >= ``alphas``, equal last entries) never raises the rung."""
    low, high = rung(net, alphas, pair), rung(net, higher, pair)
    assert high <= low * (1 + CHERNOFF_TOLERANCE), (float(low), float(high))


def law_dominates(
    smaller: Rung, larger: Rung, net: ReLUNetwork, alphas: np.ndarray, pair: tuple[int, int]
) -> None:
    """One rung is at most another for this network and these sparsities."""
    assert smaller(net, alphas, pair) <= larger(net, alphas, pair) * (1 + IDENTITY_TOLERANCE)


def law_factor(
    rung: Rung,
    eta: Callable[[np.ndarray], np.ndarray],
    net: ReLUNetwork,
    alphas: np.ndarray,
    pair: tuple[int, int],
) -> None:
    """With the last layer unmasked the rung is c (1 - eta(alpha)), c its value without masks."""
    unmasked_last = np.concatenate([alphas[:-1], [0.0]])
    dense = float(rung(net, np.zeros_like(alphas), pair))
    # 1 - eta loses digits near alpha = 1: absolute in eta, so relative to the dense value.
    np.testing.assert_allclose(
        rung(net, unmasked_last, pair), dense * (1 - eta(unmasked_last)), atol=IDENTITY_TOLERANCE * dense
    )
