"""Rung S: half cuts. A sharper bound on E sup ||J||_q that halves what every activation layer can add.

Write J = v' D_h W_h ... D_1 W_1 with masked W_j. A 0/1 diagonal is D = (I + Sigma)/2 with Sigma a diagonal of
signs, so J is the mean over the 2^h sets C of hidden layers of J_C, in which the layers of C keep their Sigma
and the others vanish: they no longer cut the product. J_C is a chain of blocks, v' W_h .. | W .. W | .. W_1,
cut at C. Three facts bound a chain whatever the signs:

- entry by entry by the product of the absolute values of its blocks; a block of several layers keeps the
  cancellation inside it;
- in l_2 by |first block| times the spectral norms of the others; a positive diagonal T commutes with Sigma, so
  every T_j^{-1} W_j T_{j-1} with T_0 = I may stand for W_j;
- a chain may change from the first to the second at any cut.

Blocks hold different layers, so they are independent, and sqrt(E ||J_C||^2) is at most the product of the
blocks' root mean squares: of |entries| by exact second moments, of spectral norms by
:mod:`theory.relu.trace_moments`. The mean over C is a bound of sqrt(E sup ||J||_2^2) by Minkowski.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from theory.relu.lipschitz import EPS, magnitudes, product, scaled, spectral_norm
from theory.relu.masked_layers import keep_probabilities, last_layer
from theory.relu.trace_moments import (
    ORDERS,
    Polynomial,
    Sums,
    noise_norm,
    noise_sums,
    product_norm,
    product_sums,
)
from theory.types import ReLUNetwork

# Hidden layers whose diagonal is halved, the first from the output; the number of chains doubles with each.
HALVED = 5
# Keep probabilities for which scalings T are sought; every T is valid for all sparsities.
TUNED = (1.0, 0.4)
STEPS, LARGEST_LOG = 200, 3.0
# Below this, squares of mantissas may have underflowed: far above what that can lose.
TRUSTED = 2.0**-200


@dataclass(frozen=True)
class _Layers:
    """One scaling of the hidden layers and every coefficient that does not depend on the sparsity."""

    scale: tuple[np.ndarray, ...]  # T at levels 0 (inputs, all ones) to h
    weights: tuple[np.ndarray, ...]  # T_j^{-1} W_j T_{j-1}
    noise: tuple[dict[int, Polynomial], ...]
    fourth: tuple[Sums, ...]
    pairs: tuple[Sums, ...]  # of layers j + 1 and j
    means: dict[tuple[int, int], float]  # spectral norm of W_{i-1} ... W_j, levels i > j


def halfcut_bound(
    net: ReLUNetwork, alphas: Float[Array, "*batch d"], pair: tuple[int, int]
) -> Float[Array, "*batch"]:
    """Rung S, a bound: E sup ||J||_2 <= sqrt(E sup ||J||_2^2) <= mean over cut sets of chains of blocks.

    Never above P2, and so never above F: a chain entry by entry is at most the path vector.

    Raises: InvalidInput as :func:`theory.relu.masks.frobenius_bound`.
    Reference: this project.
    """
    keep = keep_probabilities(net, alphas)
    first, second, exponent = last_layer(net, keep, alphas, pair)
    hidden = [scaled(weight) for weight in net.weights[:-1]]
    if not hidden:
        return product([np.sqrt(second.sum(axis=-1))], exponent, roundings=2 * second.shape[-1] + 20)
    rows = zip(*(a.reshape(-1, a.shape[-1]) for a in (keep, first, second)), strict=True)
    mantissas = tuple(mantissa for mantissa, _ in hidden)
    (a, b), _ = scaled(net.weights[-1][list(pair)])
    layers = [_prepared(mantissas, t) for t in _scalings(mantissas, np.abs(a - b))]
    values = [_chains(layers, net, (a - b) * k[-1], f, s, k[:-1]) for k, f, s in rows]
    total = np.reshape(values, keep.shape[:-1])
    roundings = 64 * sum(sum(weight.shape) for weight in net.weights) + 4096
    bound = product([total], exponent + sum(e for _, e in hidden), roundings=roundings)
    return np.where(total > TRUSTED, bound, np.inf)


def _chains(
    layers: list[_Layers],
    net: ReLUNetwork,
    mean: Float[Array, " h"],
    first: Float[Array, " h"],
    second: Float[Array, " h"],
    keep: Float[Array, " l"],
) -> float:
    """Mean over the cut sets of the smallest bound of each chain."""
    if not keep.all():
        return 0.0
    depth = len(keep)
    sizes = tuple(magnitudes(weight)[0] for weight in net.weights[:-1])
    prefixes = _prefixes(sizes, layers[0].weights, mean, first, second, keep)
    norms = [_block_norms(scaling, keep) for scaling in layers]
    total = 0.0
    for cuts in _cut_sets(depth):
        levels = (*cuts, 0)
        best = math.inf
        for used in range(1, len(levels) + 1):
            entries, level = prefixes[levels[:used]], levels[used - 1]
            rest = list(itertools.pairwise(levels[used - 1 :]))
            for scaling, norm in zip(layers, norms, strict=True):
                value = float(np.sqrt((entries * scaling.scale[level] ** 2).sum()))
                best = min(best, value * math.prod(norm[block] for block in rest))
        total += best
    return total / 2 ** min(depth, HALVED)


def _cut_sets(depth: int) -> Iterator[tuple[int, ...]]:
    """Sets of cut levels, from the output down; levels below the halved ones are always cut."""
    halved = range(depth, max(depth - HALVED, 0), -1)
    always = tuple(range(depth - len(halved), 0, -1))
    for kept in itertools.product((True, False), repeat=len(halved)):
        yield (*(level for level, cut in zip(halved, kept, strict=True) if cut), *always)


def _prefixes(
    sizes: tuple[Float[Array, "_ _"], ...],
    weights: tuple[Float[Array, "_ _"], ...],
    mean: Float[Array, " h"],
    first: Float[Array, " h"],
    second: Float[Array, " h"],
    keep: Float[Array, " l"],
) -> dict[tuple[int, ...], Float[Array, " _"]]:
    """E of the squared entries of | first block | ... | last block | for every prefix of levels, a bound."""
    depth = len(sizes)
    paths = {depth: np.outer(first, first)}
    np.fill_diagonal(paths[depth], second)
    signed = np.outer(mean, mean)
    np.fill_diagonal(signed, second)
    known: dict[tuple[int, ...], np.ndarray] = {(depth,): paths[depth]}
    for level in range(depth - 1, -1, -1):
        paths[level] = _through(sizes[level], paths[level + 1], keep[level])
        signed = _through(weights[level], signed, keep[level])
        # What cancellation may have lost is below the rounding of the path sums.
        slack = 8 * EPS * sum(sum(size.shape) for size in sizes[level:])
        square = np.maximum(np.diag(signed), 0.0) + slack * np.diag(paths[level])
        known[(level,)] = np.minimum(np.sqrt(np.outer(square, square)), paths[level])
    for cuts in _cut_sets(depth):
        levels = (*cuts, 0)
        for used in range(2, len(levels) + 1):
            if levels[:used] not in known:
                before, (above, below) = known[levels[: used - 1]], levels[used - 2 : used]
                known[levels[:used]] = _through_block(sizes, weights, before, above, below, keep)
    return {levels: np.diag(moment) for levels, moment in known.items()}


def _through(
    weight: Float[Array, "r s"], moment: Float[Array, "r r"], keep: np.floating
) -> Float[Array, "s s"]:
    """E[x x'] of x = (W * M)' z from E[z z'], an identity."""
    after = keep**2 * (weight.T @ moment @ weight)
    after[np.diag_indices_from(after)] += keep * (1 - keep) * (weight**2).T @ np.diag(moment)
    return after


def _through_block(
    sizes: tuple[Float[Array, "_ _"], ...],
    weights: tuple[Float[Array, "_ _"], ...],
    moment: Float[Array, "r r"],
    above: int,
    below: int,
    keep: Float[Array, " l"],
) -> Float[Array, "s s"]:
    """E[|x| |x|'] of |x| <= |block|' |z| from a bound of E[|z| |z|'], a bound.

    The block |W_{above-1} ... W_below| is at most the product of the |W|; one of two layers also has
    E|B_ua| |B_u'b| <= s_ua s_u'b with s the root mean square of its entries.
    """
    paths = moment
    for level in range(above - 1, below - 1, -1):
        paths = _through(sizes[level], paths, keep[level])
    if above - below != 2:
        return paths
    (lower, upper), both = keep[below:above], keep[below] * keep[below + 1]
    slack = 4 * EPS * sum(weights[below].shape)
    mean = np.abs(weights[above - 1] @ weights[below]) + slack * (sizes[above - 1] @ sizes[below])
    square = (lower * upper) ** 2 * mean**2 + both * (1 - both) * (
        sizes[above - 1] ** 2 @ sizes[below] ** 2
    )
    root = np.sqrt(square)
    return np.minimum(paths, root.T @ moment @ root)


def _block_norms(scaling: _Layers, keep: Float[Array, " l"]) -> dict[tuple[int, int], float]:
    """sqrt( E||block||_2^2 ) for the block between any two levels, a bound."""
    depth = len(keep)
    means = [keep[j] * scaling.means[j + 1, j] for j in range(depth)]
    noise = [float(noise_norm(scaling.noise[j], keep[j])) for j in range(depth)]
    found: dict[tuple[int, int], float] = {}
    for j, weight in enumerate(scaling.weights):
        fourth = float(product_norm((weight,), scaling.fourth[j], keep[j : j + 1]))
        frobenius = math.sqrt(keep[j]) * float(np.linalg.norm(weight))
        found[j + 1, j] = min(means[j] + noise[j], fourth, frobenius)
    for low, high in itertools.combinations(range(depth + 1), 2):
        if high - low == 1:
            continue
        inside = range(low, high)
        # Every word but that of the means alone, which keeps its cancellation.
        words = math.prod(means[j] + noise[j] for j in inside) - math.prod(means[j] for j in inside)
        mean = scaling.means[high, low] * math.prod(keep[j] for j in inside)
        value = min(mean + words * (1 + 64 * EPS), math.prod(found[j + 1, j] for j in inside))
        if high - low == 2:
            weights = (scaling.weights[low + 1], scaling.weights[low])
            value = min(value, float(product_norm(weights, scaling.pairs[low], keep[[low + 1, low]])))
        found[high, low] = value
    return found


def _prepared(weights: tuple[Float[Array, "_ _"], ...], scale: tuple[Float[Array, " _"], ...]) -> _Layers:
    """All coefficients of one scaling."""
    depth = len(weights)
    changed = tuple(w / scale[j + 1][:, None] * scale[j] for j, w in enumerate(weights))
    means = {}
    for low, high in itertools.combinations(range(depth + 1), 2):
        block = changed[low]
        for weight in changed[low + 1 : high]:
            block = weight @ block
        # A product's entries are off by (inner widths) eps times those of the product of magnitudes.
        lost = 4 * EPS * sum(w.shape[1] for w in changed[low:high])
        size = math.prod(float(np.linalg.norm(w)) for w in changed[low:high])
        means[high, low] = float(spectral_norm(block)) + lost * size
    return _Layers(
        scale=scale,
        weights=changed,
        noise=tuple({p: noise_sums(w, p) for p in ORDERS} for w in changed),
        fourth=tuple(product_sums((w,), 4) for w in changed),
        pairs=tuple(product_sums((w, below), 2) for below, w in itertools.pairwise(changed)),
        means=means,
    )


def _scalings(
    weights: tuple[Float[Array, "_ _"], ...], v: Float[Array, " h"]
) -> Iterator[tuple[Float[Array, " _"], ...]]:
    """Positive diagonals T_0 = I, ..., T_h worth trying, an estimate of the best: none, and one for each TUNED."""
    yield tuple(np.ones(n) for n in (weights[0].shape[1], *(len(w) for w in weights)))
    for keep in TUNED:
        yield _tuned(weights, v, keep)


def _tuned(
    weights: tuple[Float[Array, "_ _"], ...], v: Float[Array, " h"], keep: float
) -> tuple[Float[Array, " _"], ...]:
    """T that lowers ||T v|| prod_j ( E||X||_row + E||X||_col ) by gradient steps on log T.

    The norms of E X X' and E X' X stand in for the spectral norm; their leading vectors follow by one power
    step for each gradient step. Any T gives a bound, so nothing here needs to converge.
    """
    logs = [np.zeros(len(w)) for w in weights]
    left = [np.full(len(w), len(w) ** -0.5) for w in weights]
    right = [np.full(w.shape[1], w.shape[1] ** -0.5) for w in weights]
    drop = keep * (1 - keep)
    for step in range(STEPS):
        slopes = [np.zeros_like(log) for log in logs]
        for j, weight in enumerate(weights):
            scaled_weight = weight * np.exp(-logs[j])[:, None] * (np.exp(logs[j - 1]) if j else 1.0)
            squares = scaled_weight**2
            by_row = drop * squares.sum(axis=1)
            by_column = drop * squares.sum(axis=0)
            u, c = left[j], right[j]
            down, up = scaled_weight.T @ u, scaled_weight @ c
            row = keep**2 * (scaled_weight @ down) + by_row * u
            column = keep**2 * (scaled_weight.T @ up) + by_column * c
            a, b = np.linalg.norm(row), np.linalg.norm(column)
            if a == 0 or b == 0:
                continue
            left[j], right[j] = row / a, column / b
            a, b = math.sqrt(a), math.sqrt(b)
            into_rows = keep**2 * up**2 + drop * (squares @ c**2)
            into_columns = keep**2 * down**2 + drop * (squares.T @ u**2)
            slopes[j] -= (a * u**2 + into_rows / b) / (a + b)
            if j:
                slopes[j - 1] += (b * c**2 + into_columns / a) / (a + b)
        energy = (v * np.exp(logs[-1])) ** 2
        slopes[-1] += energy / energy.sum() if energy.any() else 0.0
        rate = 0.6 / (20 + step)
        for log, slope in zip(logs, slopes, strict=True):
            log -= rate * len(log) * slope
            np.clip(log, -LARGEST_LOG, LARGEST_LOG, out=log)
    return (np.ones(weights[0].shape[1]), *(np.exp(log) for log in logs))
