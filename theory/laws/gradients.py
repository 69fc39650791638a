"""Laws that hold a Lipschitz constant or a rung of the mask ladder against gradients at points."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from theory.laws.measure import at_most, equal
from theory.laws.relu import ENUMERATION_TOLERANCE, IDENTITY_TOLERANCE, Constants, Rung, largest_gradient
from theory.norms import dual, norm
from theory.relu.lipschitz import gradient_norms, lipschitz_constants, path_norm
from theory.types import ReLUNetwork


def is_attained(constants: Constants, net: ReLUNetwork, x: np.ndarray, *, p: float) -> float:
    """A network made positive, every unit active and nothing cancelling, attains the constant at |x|."""
    hidden = tuple(np.abs(w) + 0.125 for w in net.weights[:-1])
    last = np.abs(net.weights[-1])
    last[1:] = 0.0  # so that w_0 - w_k is positive too
    positive = ReLUNetwork((*hidden, last), tuple(np.abs(b) + 1 for b in net.biases))
    attained = gradient_norms(positive, np.abs(x), np.array([[0, 1]]), p=p)[0, 0]
    return equal(constants(positive, p=p)[0, 1], attained, scale=attained, tolerance=IDENTITY_TOLERANCE)


def bounds_quotients(constants: Constants, net: ReLUNetwork, ends: np.ndarray, *, p: float) -> float:
    """Between two inputs, the rows of ``ends``, no g_i - g_k rises faster than its constant."""
    scores, size = net.scores(ends), np.abs(ends)
    for weight, bias in zip(net.weights, net.biases, strict=True):
        size = size @ np.abs(weight).T + np.abs(bias)
    rise = np.abs((scores[0] - scores[1])[:, None] - (scores[0] - scores[1]))
    largest = constants(net, p=p) * norm(ends[:1] - ends[1:], p=p)
    rounding = 1e-12 * (largest + np.abs(scores).max() + size.max())
    return at_most(rise, largest, slack=rounding)


def falls_with_masks(
    constants: Constants, net: ReLUNetwork, keep: tuple[np.ndarray, ...], x: np.ndarray, *, p: float
) -> float:
    """Path norm of a masked network: at least its gradients and constants, at most that without masks.

    ``keep`` holds one array per hidden layer; positive entries keep their weight.
    """
    kept = [mask > 0 for mask in keep] + [np.ones(net.weights[-1].shape)]
    thinned = ReLUNetwork(tuple(w * m for w, m in zip(net.weights, kept, strict=True)), net.biases)
    masked, dense = constants(thinned, p=p)[0, 1], constants(net, p=p)[0, 1]
    at_x = gradient_norms(thinned, x, np.array([[0, 1]]), p=p).max()
    below = lipschitz_constants(thinned, p=p)[0, 1]
    rounding = ENUMERATION_TOLERANCE * below + 1e-15 * path_norm(net, p=p)[0, 1]
    return min(
        at_most(at_x, below, slack=rounding),
        at_most(below, masked),
        at_most(masked, dense, slack=IDENTITY_TOLERANCE * dense),
    )


def is_global_without_masks(
    rung: Rung, net: ReLUNetwork, alphas: np.ndarray, pair: tuple[int, int], *, p: float
) -> float:
    """At alpha = 0 a rung bounds every gradient of the network; a layer removed in whole makes it 0."""
    for j in range(len(alphas)):
        removed = alphas.copy()
        removed[j] = 1.0
        assert rung(net, removed, pair) == 0
    reached = largest_gradient(net, [w[None] for w in net.weights], pair, q=dual(p))[0]
    return at_most(reached, rung(net, np.zeros_like(alphas), pair), slack=reached * ENUMERATION_TOLERANCE)


def equals_dense_path_norm(rung: Rung, net: ReLUNetwork, pair: tuple[int, int], *, p: float) -> float:
    """At alpha = 0 a path rung is the path norm."""
    truth = path_norm(net, p=p)[pair]
    found = rung(net, np.zeros(len(net.weights)), pair)
    return equal(found, truth, scale=truth, tolerance=IDENTITY_TOLERANCE)


def ignores_order(rung: Rung, net: ReLUNetwork, alphas: np.ndarray, pair: tuple[int, int]) -> float:
    """Swapping the pair of classes changes nothing."""
    one, other = rung(net, alphas, pair), rung(net, alphas, (pair[1], pair[0]))
    return equal(one, other, scale=np.abs(other), tolerance=1e-13)


def is_smallest(
    best: Callable, ladder: Callable, net: ReLUNetwork, alphas: np.ndarray, pair: tuple[int, int], *, p: float
) -> None:
    """The best bound is the smallest of its ladder."""
    assert best(net, alphas, pair, p=p) == min(ladder(net, alphas, pair, p=p).values())
