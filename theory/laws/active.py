"""Laws of random masks with few active units: all masks times all patterns with at most k_j units on."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

from theory.laws.measure import at_most
from theory.laws.relu import ENUMERATION_TOLERANCE, IDENTITY_TOLERANCE, all_masks
from theory.norms import dual, norm
from theory.types import ReLUNetwork

Rung = Callable[..., np.ndarray]  # (net, alphas, pair)
ActiveRung = Callable[..., np.ndarray]  # (net, alphas, pair, active)
LargestSum = Callable[[np.ndarray, np.ndarray, np.ndarray, int], np.ndarray]  # mean, variance, largest, count


def largest_active_gradient(
    net: ReLUNetwork,
    weights: list[np.ndarray],
    pair: tuple[int, int],
    active: tuple[int, ...],
    *,
    q: float,
) -> np.ndarray:
    """max ||J||_q over the patterns with at most ``active[j]`` units, for each of K masked copies."""
    gradient = (weights[-1][:, pair[0]] - weights[-1][:, pair[1]])[None]
    for weight, count in zip(reversed(weights[:-1]), reversed(active), strict=True):
        patterns = itertools.product((0.0, 1.0), repeat=weight.shape[1])
        on = np.array([pattern for pattern in patterns if sum(pattern) <= count])
        through = (gradient[:, None] * on[:, None]).reshape(-1, *gradient.shape[1:])
        gradient = np.einsum("pku,kua->pka", through, weight)
    return norm(gradient, p=q).max(axis=0)


def law_bounds_active_supremum(
    bound: ActiveRung,
    net: ReLUNetwork,
    alphas: np.ndarray,
    pair: tuple[int, int],
    active: tuple[int, ...],
    *,
    p: float,
) -> float:
    """The rung is at least E[ sup ||J||_q ], the supremum over patterns with few active units."""
    probabilities, weights = all_masks(net, alphas)
    truth = probabilities @ largest_active_gradient(net, weights, pair, active, q=dual(p))
    return at_most(truth, bound(net, alphas, pair, active), slack=truth * ENUMERATION_TOLERANCE)


def law_grows_with_active(
    rung: ActiveRung,
    net: ReLUNetwork,
    alphas: np.ndarray,
    pair: tuple[int, int],
    active: tuple[int, ...],
    more: tuple[int, ...],
) -> float:
    """Fewer active units (the smaller of ``active`` and ``more``) never raise the rung; none make it 0."""
    fewer = tuple(min(counts) for counts in zip(active, more, strict=True))
    low, high = rung(net, alphas, pair, fewer), rung(net, alphas, pair, more)
    assert low == 0 or all(fewer)
    return at_most(low, high, slack=high * IDENTITY_TOLERANCE)


def law_below_all_patterns(
    rung: ActiveRung,
    plain: Rung,
    net: ReLUNetwork,
    alphas: np.ndarray,
    pair: tuple[int, int],
    active: tuple[int, ...],
) -> float:
    """The rung is at most the one without counts."""
    above = plain(net, alphas, pair)
    return at_most(rung(net, alphas, pair, active), above, slack=above * IDENTITY_TOLERANCE)


def law_bounds_largest_sum(bound: LargestSum, outcomes: np.ndarray, chances: np.ndarray, count: int) -> float:
    """E sum of the ``count`` largest of n variables with K joint outcomes (K, n) is at most the bound.

    ``chances`` (K,) are made to add up to 1, negative entries of either count as positive ones.
    """
    outcomes, chances = np.abs(outcomes), np.abs(chances)
    total = chances.sum()
    chances = chances / total if total > 0 else np.full(len(chances), 1 / len(chances))
    mean = chances @ outcomes
    variance = chances @ (outcomes - mean) ** 2
    truth = chances @ np.sort(outcomes, axis=1)[:, ::-1][:, :count].sum(axis=1)
    found = bound(mean, variance, outcomes.max(axis=0), count)
    return at_most(truth, found, slack=truth * ENUMERATION_TOLERANCE)
