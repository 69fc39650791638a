"""Random masks with high probability: sup ||J||_q <= a bound for all but a fraction delta of the masks."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from theory.norms import dual
from theory.relu.halfcut import halfcut_bound
from theory.relu.lipschitz import TINY, l1_from_l2, outward, path_norm, product, scaled, spectral_norm
from theory.relu.masked_layers import check_sparsities, keep_probabilities, last_layer
from theory.relu.masks import expected_path_norm, second_moment_bound
from theory.relu.trace_moments import ORDERS, noise_norm, noise_sums
from theory.types import InvalidInput, ReLUNetwork, check_pair


def high_probability_bound(
    net: ReLUNetwork, alphas: Float[Array, "*batch d"], pair: tuple[int, int], *, p: float, delta: float
) -> Float[Array, "*batch"]:
    """sup ||J||_q over all activation patterns, a bound with probability at least 1 - delta over the masks.

    The smallest of tails each valid by itself, so that no union is paid: Markov on the expected path norm
    (P1 / delta); Markov on the second moment (P2 and S over sqrt(delta)); the norm product with every layer
    at level delta / h, by matrix Bernstein or by Markov on E tr (N N')^p; and the dense path norm, which no
    mask exceeds where the last layer is not masked. For q = 1 the l_2 tails count sqrt(n) times.

    Raises: InvalidInput as :func:`theory.relu.masks.frobenius_bound`, unless p is 2 or inf, or unless delta
      lies in [1e-300, 1).
    Reference: Tropp 2015, Theorem 6.1.1 (tail); this project for the rest.
    """
    q = dual(p)
    if not 1e-300 <= delta < 1:
        raise InvalidInput(f"delta is {delta}; give a probability from 1e-300 to below 1")
    check_pair(pair, classes=len(net.weights[-1]))
    pair = (pair[0], pair[1])  # as an index, a list or an array would choose rows
    alphas, keep = check_sparsities(alphas), keep_probabilities(net, alphas)
    roots = math.sqrt(delta) * (1 - 1e-15)
    squares = np.minimum(second_moment_bound(net, alphas, pair), halfcut_bound(net, alphas, pair))
    with np.errstate(over="ignore"):
        layers = _layer_tails(net, keep, alphas, pair, delta)
        euclidean = np.asarray(np.minimum(squares / roots, layers))
        tails = [expected_path_norm(net, alphas, pair) / (delta * (1 - 1e-15))]
    tails.append(euclidean if q == 2 else l1_from_l2(euclidean, width=net.weights[0].shape[1]))
    tails.append(np.where(alphas[..., -1] == 0, path_norm(net, p=p)[pair], np.inf))
    smallest = np.min(tails, axis=0)
    return np.where(smallest > 0, np.nextafter(smallest, np.inf), 0.0)


def _layer_tails(
    net: ReLUNetwork,
    keep: Float[Array, "*batch d"],
    alphas: Float[Array, "*batch d"],
    pair: tuple[int, int],
    delta: float,
) -> Float[Array, "*batch"]:
    """||v||_2 prod_j ||W_j * M_j||_2 with probability 1 - delta, a bound by a union over the hidden layers.

    A masked v has |v_u| <= max(|a - b|, |a|, |b|) for its two weights a and b, whatever the mask.
    """
    _, _, exponent = last_layer(net, keep, alphas, pair)
    rows = net.weights[-1][list(pair)]
    (a, b), _ = scaled(rows)
    apart = np.abs(a - b)
    masked = np.maximum(apart, np.maximum(np.abs(a), np.abs(b)))
    sure = np.where(alphas[..., -1:] == 0, apart, masked)
    factors, roundings = [np.linalg.norm(sure, axis=-1)], 4 * sure.shape[-1] + 40
    # What the rows themselves say: mantissas of a wide range may have lost their smaller entries.
    alive = np.where(alphas[..., -1] == 0, (rows[0] != rows[1]).any(), rows.any())
    factors[0] = np.maximum(factors[0], np.where(alive, 2.0**-500, 0.0))
    hidden = net.weights[:-1]
    for j, weight in enumerate(hidden):
        mantissa, shift = scaled(weight)
        factors.append(_layer_tail(mantissa, keep[..., j], alphas[..., j], delta / len(hidden)))
        exponent, roundings = exponent + shift, roundings + 4 * weight.size + 40
    return np.where((keep == 0).any(axis=-1), 0.0, product(factors, exponent, roundings=roundings))


def _layer_tail(
    mantissa: Float[Array, "r s"], keep: Float[Array, "*batch"], alphas: Float[Array, "*batch"], delta: float
) -> Float[Array, "*batch"]:
    """||W * M||_2 with probability 1 - delta, a bound: the smallest of Bernstein, Markov and ||W||_F."""
    mean = keep * spectral_norm(mantissa)
    drop = np.where(alphas > 0, np.maximum(alphas, TINY), 0.0)  # 1 - keep, which may have rounded to 0
    squares = mantissa**2
    spread = keep * drop * max(squares.sum(axis=0).max(), squares.sum(axis=1).max())
    largest = np.maximum(keep, drop) * np.abs(mantissa).max()
    level = math.log(sum(mantissa.shape) / delta) * (1 + 1e-15)
    # t with t^2 / 2 = (spread + largest t / 3) level.
    reach = largest * level / 3
    tails = [np.where(drop > 0, reach + np.sqrt(reach**2 + 2 * spread * level), 0.0)]
    # Markov: ||N|| exceeds (E tr (N N')^p / delta)^(1/2p) with probability delta at most.
    tails += [
        noise_norm({p: noise_sums(mantissa, p)}, keep, drop) * delta ** (-1 / (2 * p)) * (1 + 1e-14)
        for p in ORDERS
    ]
    capped = np.minimum(mean + np.min(tails, axis=0), np.linalg.norm(mantissa))
    return outward(np.asarray(capped), roundings=mantissa.size)
