"""Rung S: half cuts. A sharper bound on E sup ||J||_q that halves what every activation layer can add.

Write J = v' D_h W_h ... D_1 W_1 with masked W_j. A 0/1 diagonal is D = (I + Sigma)/2 with Sigma a diagonal of
signs, so J is the mean over the 2^h sets C of hidden layers of J_C, in which the layers of C keep their Sigma
and the others vanish: they no longer cut the product. J_C is a chain of blocks, v' W_h .. | W .. W | .. W_1,
cut at C. Three facts bound a chain whatever the signs:

- entry by entry by the product of the absolute values of its blocks; a block of several layers keeps the
  cancellation inside it;
- in l_2 by |first block| times the spectral norms of the others; a positive diagonal T commutes with Sigma,
  so every T_j^{-1} W_j T_{j-1} with T_0 = I may stand for W_j;
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
from functools import lru_cache
from typing import TypeAlias

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
# Keep probabilities for which scalings T are sought, and the power of T taken: the stand-in for the spectral
# norm looks at the largest rows alone, the bound of a sparse layer at all. Every T gives a bound.
Tuned: TypeAlias = tuple[tuple[float, float], ...]
TUNED: Tuned = ((1.0, 1.0), (0.5, 1.0), (0.2, 0.75), (0.05, 0.6))
# Steps of that search, fewer where no layer is wide; the rate falls as 1 / (steps / 10 + step).
FEWEST_STEPS, STEPS, STEPS_PER_UNIT = 20, 200, 4
LARGEST_LOG = 3.0
TOGETHER = 2**12  # entries of the largest matrix whose scalings are worked on at once
# Below this, squares of mantissas may have underflowed: far above what that can lose.
TRUSTED = 2.0**-200


@dataclass(frozen=True)
class _Layers:
    """A few scalings of the hidden layers, the first axis, and what does not depend on the sparsity."""

    scale: tuple[np.ndarray, ...]  # T at levels 0 (inputs, all ones) to h, (t, n)
    weights: tuple[np.ndarray, ...]  # T_j^{-1} W_j T_{j-1}, (t, out, in)
    noise: tuple[dict[int, Polynomial], ...]
    single: tuple[tuple[Sums, Sums], ...]  # traces of orders 2 and 4 of one layer
    double: tuple[tuple[Sums, Sums], ...]  # of orders 1 and 2 of the layers j + 1 and j
    means: dict[tuple[int, int], np.ndarray]  # spectral norm of W_{i-1} ... W_j, levels i > j, (t, 1)


def halfcut_bound(
    net: ReLUNetwork, alphas: Float[Array, "*batch d"], pair: tuple[int, int]
) -> Float[Array, "*batch"]:
    """Rung S for q = 2, a bound: E sup ||J||_2 <= sqrt(E sup ||J||_2^2) <= mean over C of the chains' bounds.

    Never above P2, and so never above F, where it is finite: a chain entry by entry is at most the path
    vector. Not monotone in the sparsity. It is inf where mantissas are too far apart for squares, and where
    the network has no path of weights at all; P2 holds there.

    Raises: InvalidInput as :func:`theory.relu.masks.frobenius_bound`.
    Reference: this project.
    """
    return _mean_over_cuts(net, alphas, pair, absolute=False)


def halfcut_path_bound(
    net: ReLUNetwork, alphas: Float[Array, "*batch d"], pair: tuple[int, int]
) -> Float[Array, "*batch"]:
    """Rung S for q = 1, a bound: E sup ||J||_1 <= mean over C of E||J_C||_1.

    A chain is bounded entry by entry, or by sqrt(n) times its l_2 bound for n inputs. Never above P1, nor
    above sqrt(n) times the rung for q = 2. inf where that one is.

    Raises: InvalidInput as :func:`theory.relu.masks.frobenius_bound`.
    Reference: this project.
    """
    return _mean_over_cuts(net, alphas, pair, absolute=True)


def _mean_over_cuts(
    net: ReLUNetwork, alphas: Float[Array, "*batch d"], pair: tuple[int, int], *, absolute: bool
) -> Float[Array, "*batch"]:
    keep = keep_probabilities(net, alphas)
    first, second, exponent = last_layer(net, keep, alphas, pair)
    hidden = [scaled(weight) for weight in net.weights[:-1]]
    roundings = 64 * sum(sum(weight.shape) for weight in net.weights) + 4096
    if not hidden:
        size = first.sum(axis=-1) if absolute else np.sqrt(second.sum(axis=-1))
        return product([size], exponent, roundings=roundings)
    mantissas = tuple(mantissa for mantissa, _ in hidden)
    sizes = tuple(magnitudes(weight)[0] for weight in net.weights[:-1])
    (a, b), _ = scaled(net.weights[-1][list(pair)])
    layers = _layers(tuple((part.shape, part.tobytes()) for part in (*mantissas, np.abs(a - b))), TUNED)
    norms = [_block_norms(scaling, keep[..., :-1].reshape(-1, len(hidden))) for scaling in layers]
    values = []
    rows = zip(*(part.reshape(-1, part.shape[-1]) for part in (keep, first, second)), strict=True)
    for row, (k, mean, square) in enumerate(rows):
        chosen = [{block: norm[..., row] for block, norm in table.items()} for table in norms]
        moments = _Moments(sizes, mantissas, (a - b) * k[-1], mean, square, k[:-1])
        values.append(_chains(layers, chosen, moments, absolute=absolute) if k.all() else 0.0)
    total = np.reshape(values, keep.shape[:-1])
    bound = product([total], exponent + sum(e for _, e in hidden), roundings=roundings)
    return np.where((total > TRUSTED) | (keep == 0).any(axis=-1), bound, np.inf)


@dataclass(frozen=True)
class _Moments:
    """One network, pair and sparsity: |W|, W, and the mean, E|v| and E v^2 of v, all as mantissas."""

    sizes: tuple[np.ndarray, ...]
    weights: tuple[np.ndarray, ...]
    mean: np.ndarray
    first: np.ndarray
    second: np.ndarray
    keep: np.ndarray


def _chains(
    layers: list[_Layers],
    norms: list[dict[tuple[int, int], np.ndarray]],
    moments: _Moments,
    *,
    absolute: bool,
) -> float:
    """Mean over the cut sets of the smallest bound of each chain."""
    depth = len(moments.keep)
    squares, firsts = _prefixes(moments)
    widen = math.sqrt(len(squares[(0,)])) if absolute else 1.0
    total = 0.0
    for cuts in _cut_sets(depth):
        levels = (*cuts, 0)
        best = float(firsts[levels].sum()) if absolute else math.inf
        for used in range(1, len(levels) + 1):
            entries, level = squares[levels[:used]], levels[used - 1]
            rest = list(itertools.pairwise(levels[used - 1 :]))
            for scaling, norm in zip(layers, norms, strict=True):
                value = widen * np.sqrt((entries * scaling.scale[level] ** 2).sum(axis=1))
                best = min(best, float(np.min(value * math.prod(norm[block] for block in rest))))
        total += best
    return total / 2 ** min(depth, HALVED)


def _cut_sets(depth: int) -> Iterator[tuple[int, ...]]:
    """Sets of cut levels, from the output down; levels below the halved ones are always cut."""
    halved = range(depth, max(depth - HALVED, 0), -1)
    always = tuple(range(depth - len(halved), 0, -1))
    for kept in itertools.product((True, False), repeat=len(halved)):
        yield (*(level for level, cut in zip(halved, kept, strict=True) if cut), *always)


def _prefixes(
    given: _Moments,
) -> tuple[dict[tuple[int, ...], Float[Array, " _"]], dict[tuple[int, ...], Float[Array, " _"]]]:
    """E z^2 and E |z| of every entry of | first block | ... | last block | by its levels, bounds."""
    depth = len(given.sizes)
    paths, signed = np.outer(given.first, given.first), np.outer(given.mean, given.mean)
    np.fill_diagonal(paths, given.second)
    np.fill_diagonal(signed, given.second)
    walked = given.first
    moments: dict[tuple[int, ...], np.ndarray] = {(depth,): paths}
    firsts: dict[tuple[int, ...], np.ndarray] = {(depth,): walked}
    for level in range(depth - 1, -1, -1):
        paths = _through(given.sizes[level], paths, given.keep[level])
        signed = _through(given.weights[level], signed, given.keep[level])
        walked = given.keep[level] * (given.sizes[level].T @ walked)
        # What cancellation may have lost is below the rounding of the path sums.
        slack = 8 * EPS * sum(sum(size.shape) for size in given.sizes[level:])
        root = np.sqrt(np.maximum(np.diag(signed), 0.0) + slack * np.diag(paths))
        moments[(level,)] = np.minimum(np.outer(root, root), paths)
        firsts[(level,)] = np.minimum(root, walked)
    for cuts in _cut_sets(depth):
        levels = (*cuts, 0)
        for used in range(2, len(levels) + 1):
            if levels[:used] not in moments:
                before, block = levels[: used - 1], levels[used - 2 : used]
                after = _through_block(given, moments[before], firsts[before], *block)
                moments[levels[:used]], firsts[levels[:used]] = after
    return {levels: np.diag(moment) for levels, moment in moments.items()}, firsts


def _through(
    weight: Float[Array, "r s"], moment: Float[Array, "r r"], keep: np.floating
) -> Float[Array, "s s"]:
    """E[x x'] of x = (W * M)' z from E[z z'], an identity."""
    after = keep**2 * (weight.T @ moment @ weight)
    after[np.diag_indices_from(after)] += keep * (1 - keep) * (weight**2).T @ np.diag(moment)
    return after


def _through_block(
    given: _Moments, moment: Float[Array, "r r"], first: Float[Array, " r"], above: int, below: int
) -> tuple[Float[Array, "s s"], Float[Array, " s"]]:
    """E[|x| |x|'] and E|x| of |x| <= |block|' |z| from those of |z|, bounds.

    The block |W_{above-1} ... W_below| is at most the product of the |W|; one of two layers also has E|B_ua|
    <= s_ua and E|B_ua| |B_wb| <= s_ua s_wb with s the root mean square of its entries.
    """
    paths, walked = moment, first
    for level in range(above - 1, below - 1, -1):
        paths = _through(given.sizes[level], paths, given.keep[level])
        walked = given.keep[level] * (given.sizes[level].T @ walked)
    if above - below != 2:
        return paths, walked
    size, other = given.sizes[below + 1], given.sizes[below]
    slack = 4 * EPS * sum(other.shape)
    mean = np.abs(given.weights[below + 1] @ given.weights[below]) + slack * (size @ other)
    both = given.keep[below] * given.keep[below + 1]
    root = np.sqrt(both**2 * mean**2 + both * (1 - both) * (size**2 @ other**2))
    return np.minimum(paths, root.T @ moment @ root), np.minimum(walked, root.T @ first)


def _block_norms(scaling: _Layers, keep: Float[Array, "b l"]) -> dict[tuple[int, int], Float[Array, "t b"]]:
    """sqrt( E||block||_2^2 ) for the block between any two levels, a bound."""
    depth = keep.shape[1]
    means = [keep[:, j] * scaling.means[j + 1, j] for j in range(depth)]
    either = [means[j] + noise_norm(scaling.noise[j], keep[:, j]) for j in range(depth)]
    found: dict[tuple[int, int], np.ndarray] = {}
    for j, weight in enumerate(scaling.weights):
        traces = product_norm((weight,), *scaling.single[j], keep[:, j : j + 1])
        frobenius = np.multiply.outer(np.linalg.norm(weight, axis=(-2, -1)), np.sqrt(keep[:, j]))
        found[j + 1, j] = np.min([either[j], traces, frobenius], axis=0)
    for low, high in itertools.combinations(range(depth + 1), 2):
        if high - low == 1:
            continue
        inside = range(low, high)
        # Every word of means and fluctuations but that of the means alone, which keeps its cancellation.
        every, alone = math.prod(either[j] for j in inside), math.prod(means[j] for j in inside)
        mean = scaling.means[high, low] * keep[:, low:high].prod(axis=1)
        choices = [mean + every * (1 + 64 * EPS) - alone, math.prod(found[j + 1, j] for j in inside)]
        if high - low == 2:
            weights = (scaling.weights[low + 1], scaling.weights[low])
            choices.append(product_norm(weights, *scaling.double[low], keep[:, [low + 1, low]]))
        found[high, low] = np.min(choices, axis=0)
    return found


@lru_cache(maxsize=2)
def _layers(contents: tuple[tuple[tuple[int, ...], bytes], ...], tuned: Tuned) -> list[_Layers]:
    """What does not depend on the sparsity, of the hidden weights and |v|: nearly all the work.

    Kept for the next call, since both norms and several sparsities of one pair are often asked for.
    """
    *weights, v = (np.frombuffer(content).reshape(shape) for shape, content in contents)
    return _prepared(tuple(weights), _scalings(tuple(weights), v, tuned))


def _prepared(
    weights: tuple[Float[Array, "_ _"], ...], scale: tuple[Float[Array, "t _"], ...]
) -> list[_Layers]:
    """All coefficients of the scalings: of small matrices at once, of large ones one by one."""
    together = len(scale[0]) if max(weight.size for weight in weights) <= TOGETHER else 1
    parts = [slice(start, start + together) for start in range(0, len(scale[0]), together)]
    return [_coefficients(weights, tuple(t[part] for t in scale)) for part in parts]


def _coefficients(
    weights: tuple[Float[Array, "_ _"], ...], scale: tuple[Float[Array, "t _"], ...]
) -> _Layers:
    depth = len(weights)
    changed = tuple(w / scale[j + 1][:, :, None] * scale[j][:, None] for j, w in enumerate(weights))
    means = {}
    for low, high in itertools.combinations(range(depth + 1), 2):
        block = changed[low]
        for weight in changed[low + 1 : high]:
            block = weight @ block
        # A product's entries are off by (inner widths) eps times those of the product of magnitudes.
        lost = 4 * EPS * sum(w.shape[2] for w in changed[low:high])
        size = math.prod(np.linalg.norm(w, axis=(1, 2)) for w in changed[low:high])
        means[high, low] = (spectral_norm(block) + lost * size)[:, None]
    return _Layers(
        scale=scale,
        weights=changed,
        noise=tuple({p: noise_sums(w, p) for p in ORDERS} for w in changed),
        single=tuple((product_sums((w,), 2), product_sums((w,), 4)) for w in changed),
        double=tuple(
            (product_sums((w, below), 1), product_sums((w, below), 2))
            for below, w in itertools.pairwise(changed)
        ),
        means=means,
    )


def _scalings(
    weights: tuple[Float[Array, "_ _"], ...], v: Float[Array, " h"], tuned: Tuned
) -> tuple[Float[Array, "t _"], ...]:
    """Positive diagonals T_0 = I, ..., T_h worth trying: the identity, and one for each of ``tuned``."""
    ones = [np.ones((1, n)) for n in (weights[0].shape[1], *(len(w) for w in weights))]
    if not tuned:
        return tuple(ones)
    keep, power = np.transpose(tuned)
    found = _tuned(weights, v, keep)
    return tuple(np.concatenate([one, t ** power[:, None]]) for one, t in zip(ones, found, strict=True))


def _tuned(
    weights: tuple[Float[Array, "_ _"], ...], v: Float[Array, " h"], keep: Float[Array, " t"]
) -> tuple[Float[Array, "t _"], ...]:
    """T that lowers ||T v|| prod_j ( E||X||_row + E||X||_col ) by gradient steps on log T, for each keep.

    The norms of E X X' and E X' X stand in for the spectral norm; their leading vectors follow by one power
    step for each gradient step. Any T gives a bound, so nothing here needs to converge.
    """
    count, kept, drop = len(keep), keep[:, None] ** 2, (keep * (1 - keep))[:, None]
    squares = [weight**2 for weight in weights]
    logs = [np.zeros((count, len(w))) for w in weights]
    left = [np.full((count, len(w)), len(w) ** -0.5) for w in weights]
    right = [np.full((count, w.shape[1]), w.shape[1] ** -0.5) for w in weights]
    steps = min(STEPS, max(FEWEST_STEPS, STEPS_PER_UNIT * max(map(len, weights))))
    for step in range(steps):
        slopes = [np.zeros_like(log) for log in logs]
        grown = [np.ones((count, weights[0].shape[1])), *(np.exp(log) for log in logs)]
        for j, (weight, square) in enumerate(zip(weights, squares, strict=True)):
            # T_j^{-1} W T_{j-1}, and its square entry by entry, only ever meet vectors.
            into, out = grown[j], grown[j + 1]
            into2, out2 = into**2, out**2
            u, c = left[j], right[j]
            u2, c2 = u**2, c**2
            down, up = ((u / out) @ weight) * into, ((c * into) @ weight.T) / out
            row = kept * ((down * into) @ weight.T / out) + drop * (into2 @ square.T / out2) * u
            column = kept * ((up / out) @ weight * into) + drop * ((1 / out2) @ square * into2) * c
            a, b = (np.sqrt(np.einsum("tn,tn->t", side, side))[:, None] for side in (row, column))
            some = (a > 0) & (b > 0)
            if not some.any():
                continue
            a, b = np.where(some, a, 1.0), np.where(some, b, 1.0)
            left[j], right[j] = np.where(some, row / a, u), np.where(some, column / b, c)
            a, b = np.sqrt(a), np.sqrt(b)
            into_rows = kept * up**2 + drop * ((c2 * into2) @ square.T / out2)
            into_columns = kept * down**2 + drop * ((u2 / out2) @ square * into2)
            slopes[j] -= some * (a * u2 + into_rows / b) / (a + b)
            if j:
                slopes[j - 1] += some * (b * c2 + into_columns / a) / (a + b)
        energy = (v * grown[-1]) ** 2
        whole = energy.sum(axis=1, keepdims=True)
        slopes[-1] += energy / np.where(whole > 0, whole, 1.0)
        rate = 0.6 / (steps / 10 + step)
        for log, slope in zip(logs, slopes, strict=True):
            log -= rate * log.shape[1] * slope
            np.clip(log, -LARGEST_LOG, LARGEST_LOG, out=log)
    return (np.ones((count, weights[0].shape[1])), *(np.exp(log) for log in logs))
