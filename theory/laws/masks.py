"""Laws of the moments of masked matrices, of the half-cut rung and of the tails over masks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from theory.laws.measure import at_most, equal
from theory.laws.relu import ENUMERATION_TOLERANCE, all_masks, largest_gradient
from theory.norms import dual
from theory.types import ReLUNetwork

Moment = Callable[[tuple[np.ndarray, ...], np.ndarray, int], float]  # (weights from the left, keep, p)
Tail = Callable[..., np.ndarray]  # (net, alphas, pair, *, p, delta)
# A moment of order 2p is a sum over the set partitions of 2p <= 12 entries, of either sign.
MOMENT_TOLERANCE = 1e-11


def masked_products(
    weights: tuple[np.ndarray, ...], keep: np.ndarray, *, centred: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and the products X_1 ... X_L, X_l = W_l * M_l or W_l * (M_l - k_l), of all masks."""
    sizes = [weight.size for weight in weights]
    bits = (np.arange(2 ** sum(sizes))[:, None] >> np.arange(sum(sizes))) & 1
    kept = np.repeat(keep, sizes)
    probabilities = np.where(bits == 1, kept, 1.0 - kept).prod(axis=1)
    parts = np.split(bits - (kept if centred else 0.0), np.cumsum(sizes)[:-1], axis=1)
    product = np.eye(weights[0].shape[0])[None]
    for weight, part in zip(weights, parts, strict=True):
        product = product @ (weight * part.reshape(-1, *weight.shape))
    return probabilities, product


def trace_moment(probabilities: np.ndarray, products: np.ndarray, p: int) -> float:
    """E tr (Z Z')^p over enumerated masks."""
    gram = products @ products.mT
    return float(probabilities @ np.linalg.matrix_power(gram, p).trace(axis1=1, axis2=2))


def law_equals_trace_moment(
    identity: Moment, weights: tuple[np.ndarray, ...], keep: np.ndarray, p: int
) -> float:
    """The moment is E tr (Z Z')^p, summed over all masks, up to rounding of its largest possible size."""
    truth = trace_moment(*masked_products(weights, keep), p)
    size = float(np.prod([np.linalg.norm(weight) for weight in weights])) ** (2 * p)
    return equal(identity(weights, keep, p), truth, scale=size, tolerance=MOMENT_TOLERANCE)


def law_bounds_root_mean_square_norm(
    bound: Callable[[tuple[np.ndarray, ...], np.ndarray], float],
    weights: tuple[np.ndarray, ...],
    keep: np.ndarray,
    *,
    centred: bool = False,
) -> float:
    """The bound is at least sqrt( E||Z||_2^2 ) over all masks."""
    probabilities, products = masked_products(weights, keep, centred=centred)
    truth = np.sqrt(probabilities @ np.linalg.norm(products, ord=2, axis=(1, 2)) ** 2)
    return at_most(truth, bound(weights, keep), slack=truth * ENUMERATION_TOLERANCE)


def law_bounds_second_moment_of_supremum(
    bound: Callable[[ReLUNetwork, np.ndarray, tuple[int, int]], np.ndarray],
    net: ReLUNetwork,
    alphas: np.ndarray,
    pair: tuple[int, int],
) -> float:
    """The rung squared bounds even E[ sup ||J||_2^2 ] over all masks and all activation patterns."""
    probabilities, weights = all_masks(net, alphas)
    truth = np.sqrt(probabilities @ largest_gradient(net, weights, pair, q=2.0) ** 2)
    return at_most(truth, bound(net, alphas, pair), slack=truth * ENUMERATION_TOLERANCE)


def law_holds_with_probability(
    tail: Tail, net: ReLUNetwork, alphas: np.ndarray, pair: tuple[int, int], *, p: float, delta: float
) -> float:
    """Masks whose supremum over all patterns exceeds the tail have probability delta at most.

    That is, the tail is at least the smallest value that suprema exceed with probability delta at most.
    """
    probabilities, weights = all_masks(net, alphas)
    largest = largest_gradient(net, weights, pair, q=dual(p))
    falling = np.argsort(-largest)
    common = np.cumsum(probabilities[falling]) > delta * (1 + ENUMERATION_TOLERANCE)
    quantile = float(largest[falling][common].max(initial=0.0))
    value = tail(net, alphas, pair, p=p, delta=delta)
    return at_most(quantile, value, slack=quantile * ENUMERATION_TOLERANCE)
