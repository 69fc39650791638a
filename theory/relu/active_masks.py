"""Random masks and few active units: rungs F, P1, P2, B where at most k_j units of hidden layer j are active.

``active`` holds one count k_j for each hidden layer: known, because an activation keeps the k largest units,
or measured, the largest number of active units over a data set. Every rung bounds E[ sup ||J||_q ], masks and
J as in :mod:`theory.relu.masks`, but the supremum is over the activation patterns with at most k_j active
units in layer j alone. J then reads rows A_j and columns A_{j-1} of W_j, |A_j| <= k_j, and entries A_h of v,
so sums over all units become expected sums of the k_j largest (:mod:`theory.relu.largest_sums`).

No rung exceeds the one without counts, none decreases in any k_j, all are equal to it (B: no larger) at k_j =
width and 0 at k_j = 0. Counts are about the masked network: a count measured without masks need not hold with
them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from theory.norms import dual
from theory.relu.largest_sums import knapsack_bound, scarf_bound
from theory.relu.lipschitz import l1_from_l2, outward, product, scaled
from theory.relu.masked_layers import keep_probabilities, last_layer
from theory.relu.masks import (
    bernstein_bound,
    best_bound,
    expected_path_norm,
    expected_spectral_norm,
    frobenius_bound,
    second_moment_bound,
)
from theory.relu.path_levels import (
    SMALL,
    Paths,
    grams_below,
    last_layer_spread,
    paths_above,
    paths_below,
    sizes_of,
)
from theory.types import InvalidInput, ReLUNetwork


def active_frobenius_bound(
    net: ReLUNetwork, alphas: Float[Array, "*batch d"], pair: tuple[int, int], active: Sequence[int]
) -> Float[Array, "*batch"]:
    """Rung F for few active units, a bound: E sup ||J||_2 <= sqrt(t_v) prod_j sqrt(t_j).

    t_j bounds the expected sum of the k_j largest squared row norms of W_j * M_j, or of the k_{j-1} largest
    squared column norms where that is smaller (j > 1); t_v that of the k_h largest v_u^2.

    Raises: InvalidInput as :func:`theory.relu.masks.frobenius_bound`, or unless ``active`` holds one count >=
      0 for each hidden layer.
    Reference: the paper, section 3.2 and its remark on sparse activations; this project for the expectation.
    """
    plain = frobenius_bound(net, alphas, pair)
    return np.asarray(np.minimum(_norm_product(net, alphas, pair, active, spectral=False), plain))


def active_bernstein_bound(
    net: ReLUNetwork, alphas: Float[Array, "*batch d"], pair: tuple[int, int], active: Sequence[int]
) -> Float[Array, "*batch"]:
    """Rung B for few active units, a bound: rung F with E||W_j * M_j||_2 (Bernstein) where that is smaller.

    Raises: InvalidInput as :func:`active_frobenius_bound`.
    Reference: this project.
    """
    plain = bernstein_bound(net, alphas, pair)
    return np.asarray(np.minimum(_norm_product(net, alphas, pair, active, spectral=True), plain))


def active_path_bound(
    net: ReLUNetwork, alphas: Float[Array, "*batch d"], pair: tuple[int, int], active: Sequence[int]
) -> Float[Array, "*batch"]:
    """Rung P1 for few active units, a bound of E sup ||J||_1: the smallest of three.

    The expected sum of the k_j largest in_u out_u over the units of one layer, the best j, by exact means and
    variances; and sums of the k_j largest in every layer, one inside the other, from the inputs up or from
    the margin down, by means and ranges. Without masks the latter are exact for what they nest.

    Raises: InvalidInput as :func:`active_frobenius_bound`.
    Reference: this project.
    """
    plain = expected_path_norm(net, alphas, pair)
    return np.asarray(np.minimum(_each(net, alphas, pair, active, _path_values), plain))


def active_second_moment_bound(
    net: ReLUNetwork, alphas: Float[Array, "*batch d"], pair: tuple[int, int], active: Sequence[int]
) -> Float[Array, "*batch"]:
    """Rung P2 for few active units, a bound of E sup ||J||_2 by Q = E[out out'] * H, the best layer.

    ||J||_2^2 <= sum_{u, w in A_j} out_u out_w (B B')_uw, the sum of the k_j largest sums of the k_j largest
    entries of a row at most; and, as the matrix is positive semi-definite, k_j times the sum of the k_j
    largest diagonal entries. Expectations by means and ranges.

    Raises: InvalidInput as :func:`active_frobenius_bound`.
    Reference: this project.
    """
    plain = second_moment_bound(net, alphas, pair)
    return np.asarray(np.minimum(_each(net, alphas, pair, active, _square_values), plain))


def active_ladder(
    net: ReLUNetwork,
    alphas: Float[Array, "*batch d"],
    pair: tuple[int, int],
    active: Sequence[int],
    *,
    p: float,
) -> dict[str, Float[Array, "*batch"]]:
    """Every rung for few active units, each a bound of E sup ||J||_q, by its label.

    p = 2 (q = 2): F, P1, P2, B; p = inf (q = 1): P1, and B times sqrt(n) for n inputs.

    Raises: InvalidInput as :func:`active_frobenius_bound`, or unless p is 2 or inf.
    """
    q, paths = dual(p), active_path_bound(net, alphas, pair, active)
    norms = active_bernstein_bound(net, alphas, pair, active)
    if q == 1:
        return {"P1": paths, "B": l1_from_l2(norms, width=net.weights[0].shape[1])}
    return {
        "F": active_frobenius_bound(net, alphas, pair, active),
        "P1": paths,
        "P2": active_second_moment_bound(net, alphas, pair, active),
        "B": norms,
    }


def best_active_bound(
    net: ReLUNetwork,
    alphas: Float[Array, "*batch d"],
    pair: tuple[int, int],
    active: Sequence[int],
    *,
    p: float,
) -> Float[Array, "*batch"]:
    """The smallest rung with counts or without, for each alpha, a bound of E sup ||J||_q.

    Raises: InvalidInput as :func:`active_ladder`.
    """
    rungs = active_ladder(net, alphas, pair, active, p=p)
    return np.asarray(np.min([best_bound(net, alphas, pair, p=p), *rungs.values()], axis=0))


def check_active(net: ReLUNetwork, active: Sequence[int]) -> list[int]:
    """The counts, none above its width. Raises: InvalidInput unless there is one >= 0 per hidden layer."""
    widths = [len(weight) for weight in net.weights[:-1]]
    if len(active) != len(widths):
        raise InvalidInput(f"active holds {len(active)} counts; give {len(widths)}, one per hidden layer")
    for j, count in enumerate(active):
        if not (count >= 0 and float(count).is_integer()):
            raise InvalidInput(f"active[{j}] is {count}; give the number of active units, at least 0")
    return [min(int(count), width) for count, width in zip(active, widths, strict=True)]


def _norm_product(
    net: ReLUNetwork,
    alphas: Float[Array, "*batch d"],
    pair: tuple[int, int],
    active: Sequence[int],
    *,
    spectral: bool,
) -> Float[Array, "*batch"]:
    counts, keep = check_active(net, active), keep_probabilities(net, alphas)
    _, second, exponent = last_layer(net, keep, alphas, pair)
    rows, _ = scaled(net.weights[-1][list(pair)])
    chances = zip(keep[..., -1].flat, alphas[..., -1].flat, strict=True)
    spreads = [last_layer_spread(rows, float(k), float(a), power=2) for k, a in chances]
    variance, largest = (np.reshape([spread[i] for spread in spreads], second.shape) for i in (0, 1))
    largest = np.maximum(largest, second)
    factors = [np.sqrt(scarf_bound(second, variance, largest, counts[-1] if counts else second.shape[-1]))]
    roundings = second.shape[-1] + 60
    for j, weight in enumerate(net.weights[:-1]):
        mantissa, shift = scaled(weight)
        squares, kept = mantissa**2, np.asarray(keep[..., j])
        size = _largest_squares(squares, kept, counts[j])
        if j:
            size = np.minimum(size, _largest_squares(squares.T, kept, counts[j - 1]))
        factor = np.asarray(np.sqrt(size))
        factors.append(np.minimum(factor, expected_spectral_norm(mantissa, kept)) if spectral else factor)
        exponent, roundings = exponent + shift, roundings + 2 * weight.size + 60
    return product(factors, exponent, roundings=roundings)


def _largest_squares(
    squares: Float[Array, "r s"], keep: Float[Array, "*batch"], count: int
) -> Float[Array, "*batch"]:
    """E sum of the ``count`` largest sums of squares of the masked rows, a bound."""
    whole, keep = squares.sum(axis=1), np.asarray(keep)[..., None]
    variance = keep * (1.0 - keep) * (squares**2).sum(axis=1)
    largest = np.broadcast_to(whole, variance.shape)
    more = 4 * squares.shape[1] + 8
    return scarf_bound(
        outward(keep * whole, roundings=more),
        outward(variance, roundings=more),
        outward(largest, roundings=more),
        count,
    )


def _each(
    net: ReLUNetwork,
    alphas: Float[Array, "*batch d"],
    pair: tuple[int, int],
    active: Sequence[int],
    values: Callable[..., tuple[float, int]],
) -> Float[Array, "*batch"]:
    """A rung for each vector of sparsities: ``values`` gives its mantissa and exponent."""
    counts, keep = check_active(net, active), keep_probabilities(net, alphas)
    first, _, shift = last_layer(net, keep, alphas, pair)
    if not counts:
        return np.full(keep.shape[:-1], np.inf)
    rows, _ = scaled(net.weights[-1][list(pair)])
    sizes, exponents = sizes_of(net)
    roundings = 8 * sum(sum(size.shape) for size in sizes) + 8 * first.shape[-1] + 200
    mantissas, powers = np.zeros(keep.shape[:-1]), np.zeros(keep.shape[:-1], dtype=np.int64)
    for index in np.ndindex(keep.shape[:-1]):
        kept, dropped = float(keep[index][-1]), float(alphas[index][-1])
        variance, largest = last_layer_spread(rows, kept, dropped, power=1)
        largest = np.maximum(largest, first[index])
        last = Paths(first[index], np.diag(variance), largest, 0)
        mantissas[index], powers[index] = values(sizes, last, keep[index][:-1], counts, roundings)
    return product([mantissas], powers + shift + sum(exponents), roundings=roundings)


def _path_values(
    sizes: list[Float[Array, "_ _"]],
    last: Paths,
    keep: Float[Array, " h"],
    counts: list[int],
    roundings: int,
) -> tuple[float, int]:
    """Rung P1 as mantissa and exponent, in units of the weights' own."""
    below, above = paths_below(sizes, keep), paths_above(sizes, keep, last)
    found = []
    for into, out, count in zip(below, above, counts, strict=True):
        first, second = np.diag(into.covariance), np.diag(out.covariance)
        variance = first * second + first * out.mean**2 + second * into.mean**2
        parts = into.mean * out.mean, variance, into.largest * out.largest
        mean, variance, largest = (outward(part, roundings=roundings) for part in parts)
        value = scarf_bound(mean, variance, largest, count)
        found.append((float(value), into.exponent + out.exponent))
    inputs, share = np.ones(sizes[0].shape[1]), _ratio(last.mean, last.largest)
    up = [*zip(sizes, keep, strict=True), (last.largest[None], share)]
    found.append(_nested(up, [inputs.size, *counts], inputs, inputs))
    down = [*zip((size.T for size in reversed(sizes)), reversed(keep), strict=True), (inputs[None], 1.0)]
    found.append(_nested(down, [*reversed(counts), inputs.size], last.largest, share))
    with np.errstate(over="ignore"):
        return min(found, key=lambda value: np.ldexp(value[0], value[1] - found[0][1]))


def _nested(
    steps: Sequence[tuple[Float[Array, "_ _"], float | Float[Array, " _"]]],
    counts: list[int],
    worth: Float[Array, " n"],
    share: Float[Array, " n"],
) -> tuple[float, int]:
    """E of sums of the largest within sums of the largest, layer by layer, as mantissa and exponent.

    Each unit holds a value in [0, worth] of mean at most share * worth; a step multiplies by ``size``, whose
    entries have a mean of ``kept`` times them, and adds up the ``count`` largest for each row.
    """
    exponent = 0
    for (size, kept), count in zip(steps, counts, strict=True):
        table = size * worth
        held = np.where((share > 0) & (kept > 0), np.maximum(share * kept, SMALL), 0.0)
        mean = knapsack_bound(table, held, count)
        whole = knapsack_bound(table, np.ones(()), count)
        share = _ratio(mean, whole)
        worth, shift = scaled(whole)
        worth, exponent = np.where(whole > 0, np.maximum(worth, SMALL), 0.0), exponent + int(shift)
    return float(share[0] * worth[0]), exponent


def _square_values(
    sizes: list[Float[Array, "_ _"]],
    last: Paths,
    keep: Float[Array, " h"],
    counts: list[int],
    roundings: int,
) -> tuple[float, int]:
    """Rung P2 as mantissa and exponent, in units of the weights' own."""
    above, best = paths_above(sizes, keep, last), (np.inf, 0)
    for gram, out, count in zip(grams_below(sizes, keep), above, counts, strict=True):
        worth = gram.largest * np.outer(out.largest, out.largest)
        share = _ratio(gram.moment * (np.outer(out.mean, out.mean) + out.covariance), worth)
        share = np.minimum(outward(share, roundings=roundings), 1.0)
        mean, whole = (knapsack_bound(worth, part, count) for part in (share, np.ones(())))
        rows = knapsack_bound(whole, _ratio(mean, whole), count)
        diagonal = count * knapsack_bound(np.diag(worth), np.diag(share), count)
        odd = gram.exponent % 2
        value = float(np.sqrt(np.ldexp(min(rows, diagonal), odd))), (gram.exponent - odd) // 2 + out.exponent
        best = min(best, value, key=lambda pair: np.ldexp(pair[0], pair[1] - value[1]))
    return best


def _ratio(part: Float[Array, "*s"], whole: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """part / whole, at most 1, and 0 where there is nothing."""
    return np.minimum(np.divide(part, whole, out=np.zeros(whole.shape), where=whole > 0), 1.0)
