"""Random masks on a ReLU network: bounds on the expected gradient norm, a ladder of rungs F, M, P1, P2, B, S.

Layer j keeps each weight independently with probability k_j = 1 - alpha_j. For a fixed pair (i, k) of
classes let J be the gradient of g_i - g_k; every rung bounds E[ sup ||J||_q ], the supremum over all
activation patterns (so over all inputs), since it bounds ||J|| for every pattern before the expectation is
taken.

``alphas`` holds one sparsity per layer, the last layer included; any batch of such vectors may be given. The
paper's theorem leaves v = w_i - w_k unmasked: alpha_d = 0. For alpha_d > 0 the entries v_u = w_iu m_iu -
w_ku m_ku are independent over u with E|v_u| = k^2 |w_iu - w_ku| + k (1-k) (|w_iu| + |w_ku|) and
E v_u^2 = k^2 (w_iu - w_ku)^2 + k (1-k) (w_iu^2 + w_ku^2), and every rung uses these.

F, M, P1 and P2 do not increase with the sparsity of any hidden layer. In alpha_d they can: a mask undoes the
cancellation in w_i - w_k. The expected norm itself can rise with the sparsity of any layer. P1 <= M and P2
<= F for every network and every alpha. All values are rounded outward as in :mod:`theory.relu.lipschitz`.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array
from scipy.optimize import fminbound

from theory.norms import dual, norm
from theory.relu.halfcut import halfcut_bound, halfcut_path_bound
from theory.relu.lipschitz import (
    EPS,
    l1_from_l2,
    magnitudes,
    outward,
    path_sums,
    product,
    scaled,
    spectral_norm,
)
from theory.relu.masked_layers import (
    check_sparsities,
    keep_probabilities,
    last_layer,
    path_moment,
)
from theory.types import InvalidInput, ReLUNetwork, check_inputs, check_pair

CHUNK_BYTES = 2**28  # memory of one chunk of masked copies in monte_carlo
LOG_THETA_TOLERANCE = 1e-3  # the Chernoff bound is flat at its minimum: about 1e-6 of its value is lost


def frobenius_bound(
    net: ReLUNetwork, alphas: Float[Array, "*batch d"], pair: tuple[int, int]
) -> Float[Array, "*batch"]:
    """Rung F, a bound: E sup ||J||_2 <= sqrt(E||v||_2^2) prod_j sqrt(1 - alpha_j) ||W_j||_F.

    Raises: InvalidInput for alphas outside [0, 1] or of another length than the layers, or a bad pair.
    Reference: the paper, theorem on nonlinear networks (section 3.2), q = 2.
    """
    keep = keep_probabilities(net, alphas)
    _, second, exponent = last_layer(net, keep, alphas, pair)
    factors, roundings = [np.sqrt(second.sum(axis=-1))], second.shape[-1] + 10
    for j, weight in enumerate(net.weights[:-1]):
        mantissa, shift = scaled(weight)
        factors += [np.sqrt(keep[..., j]), np.linalg.norm(mantissa)]
        exponent, roundings = exponent + shift, roundings + weight.size + 8
    return product(factors, exponent, roundings=roundings)


def column_sum_bound(
    net: ReLUNetwork, alphas: Float[Array, "*batch d"], pair: tuple[int, int]
) -> Float[Array, "*batch"]:
    """Rung M, a bound: E sup ||J||_1 <= E||v||_1 prod_j E max_u sum_v |W_uv| M_uv, the maxima by Chernoff.

    E max_u S_u <= inf_{theta > 0} (1/theta) log sum_u prod_v (alpha + (1 - alpha) exp(theta |W_uv|)),
    capped by its limit max_u sum_v |W_uv| (exact at alpha = 0) and by (1 - alpha) sum_uv |W_uv| (exact for
    one unit). Every theta gives a bound, so an optimiser that stops early costs tightness only.
    M bounds the expected norm product. For E sup ||J||_1 alone the closed form
    E||v||_1 prod_j (1 - alpha_j) max_u sum_v |W_uv| suffices; it lies between P1 and M.

    Raises: InvalidInput as :func:`frobenius_bound`.
    Reference: the paper, theorem on nonlinear networks (section 3.2), q = 1, for the product form; this
    project for the expectation.
    """
    keep = keep_probabilities(net, alphas)
    first, _, exponent = last_layer(net, keep, alphas, pair)
    factors, roundings = [first.sum(axis=-1)], first.shape[-1] + 10
    for j, weight in enumerate(net.weights[:-1]):
        mantissa, shift = magnitudes(weight)
        sparsity = np.asarray(alphas[..., j])
        values = [_expected_largest_row_sum(mantissa, float(alpha)) for alpha in sparsity.ravel()]
        factors.append(np.reshape(values, sparsity.shape))
        exponent = exponent + shift
    return product(factors, exponent, roundings=roundings)


def expected_path_norm(
    net: ReLUNetwork, alphas: Float[Array, "*batch d"], pair: tuple[int, int]
) -> Float[Array, "*batch"]:
    """Rung P1, an identity for the expected path norm, so a bound of E sup ||J||_1.

    E || |W_1|' ... |W_{d-1}|' |v| ||_1 = prod_j (1 - alpha_j) || |W_1|' ... |W_{d-1}|' E|v| ||_1 (hidden
    j): every path is a product of distinct, independent mask entries. So computed where weights, and path
    sums from the margin to a unit, are within 2^-299 of the largest of their layer and E|v_u| of the largest
    weight of its rows; smaller ones are raised, and a bound is left.

    Raises: InvalidInput as :func:`frobenius_bound`.
    Reference: this project; the path norm is that of Neyshabur, Tomioka, Srebro 2015.
    """
    keep = keep_probabilities(net, alphas)
    first, _, exponent = last_layer(net, keep, alphas, pair)
    rows = first.reshape(-1, first.shape[-1])
    paths, exponents, roundings = path_sums(net, rows, np.zeros((len(rows), 1), dtype=np.int32))
    shape = keep.shape[:-1]
    factors = [paths.sum(axis=1).reshape(shape), *np.moveaxis(keep[..., :-1], -1, 0)]
    total = exponents.reshape(shape) + exponent
    return product(factors, total, roundings=roundings + paths.shape[1] + len(factors) + 10)


def second_moment_bound(
    net: ReLUNetwork, alphas: Float[Array, "*batch d"], pair: tuple[int, int]
) -> Float[Array, "*batch"]:
    """Rung P2, a bound: E sup ||J||_2 <= sqrt( E || |W_1|' ... |v| ||_2^2 ), the second moment an identity.

    With B the product of the masked |W_{d-1}| ... |W_1|, H = E[B B'] follows from the input upwards,
    H <- k^2 |W| H |W|' + k (1-k) diag( |W|^2 diag H ), H = I at the input, whatever the pair; then
    E||B'|v|||^2 = E|v|' H E|v| + sum_u Var|v_u| H_uu. So computed where weights and E|v_u| are as in P1 and
    entries of H within 2^-299 of its largest, path sums thus within 2^-149; else a bound.

    Raises: InvalidInput as :func:`frobenius_bound`.
    Reference: this project.
    """
    keep = keep_probabilities(net, alphas)
    first, second, exponent = last_layer(net, keep, alphas, pair)
    hidden = net.weights[:-1]
    roundings = sum(2 * (weight.shape[1] + 6) for weight in hidden) + 2 * first.shape[-1] + 20
    if not hidden:
        return product([np.sqrt(second.sum(axis=-1))], exponent, roundings=roundings)
    layers = [magnitudes(weight) for weight in hidden]
    gram = layers[0][0] @ layers[0][0].T
    values, shifts = [], []
    rows = zip(*(a.reshape(-1, a.shape[-1]) for a in (keep, first, second)), strict=True)
    for probability, mean, square in rows:
        moment, shift = path_moment([mantissa for mantissa, _ in layers], gram, probability)
        values.append(mean @ moment @ mean + (square - mean**2) @ np.diag(moment))
        shifts.append(shift)
    # Half of an odd exponent stays in the mantissa.
    powers = np.array(shifts, dtype=int)
    odd = powers % 2
    root = np.sqrt(np.ldexp(np.array(values, dtype=float), odd)).reshape(keep.shape[:-1])
    half = ((powers - odd) // 2).reshape(keep.shape[:-1])
    return product([root], exponent + half + sum(e for _, e in layers), roundings=roundings)


def bernstein_bound(
    net: ReLUNetwork, alphas: Float[Array, "*batch d"], pair: tuple[int, int]
) -> Float[Array, "*batch"]:
    """Rung B, a bound: E sup ||J||_2 <= sqrt(E||v||_2^2) prod_j E||W_j * M_j||_2, by matrix Bernstein.

    E||W * M||_2 <= k ||W||_2 + sqrt(2 k (1-k) nu log(m+n)) + max(k, 1-k) max|W_uv| log(m+n) / 3, nu the
    largest sum of squares of a row or a column, without the last two terms where k is 0 or 1; or sqrt(k)
    ||W||_F where that is smaller, so B <= F. Not monotone in alpha near 0.

    Raises: InvalidInput as :func:`frobenius_bound`.
    Reference: Tropp 2015, An Introduction to Matrix Concentration Inequalities, Theorem 6.1.1; this
      project for
    its use here.
    """
    keep = keep_probabilities(net, alphas)
    _, second, exponent = last_layer(net, keep, alphas, pair)
    factors, roundings = [np.sqrt(second.sum(axis=-1))], second.shape[-1] + 10
    for j, weight in enumerate(net.weights[:-1]):
        mantissa, shift = scaled(weight)
        factors.append(expected_spectral_norm(mantissa, keep[..., j]))
        exponent, roundings = exponent + shift, roundings + weight.size + 20
    return product(factors, exponent, roundings=roundings)


def unsigned_ladder(
    net: ReLUNetwork, alphas: Float[Array, "*batch d"], pair: tuple[int, int], *, p: float
) -> dict[str, Float[Array, "*batch"]]:
    """The rungs of :func:`ladder` but S, each a bound: they look at the sizes of v and rise with them.

    Raises: InvalidInput as :func:`ladder`.
    """
    q = dual(p)
    paths, spectral = expected_path_norm(net, alphas, pair), bernstein_bound(net, alphas, pair)
    if q == 2:
        return {
            "F": frobenius_bound(net, alphas, pair),
            "P1": paths,
            "P2": second_moment_bound(net, alphas, pair),
            "B": spectral,
        }
    widened = l1_from_l2(spectral, width=net.weights[0].shape[1])
    return {"M": column_sum_bound(net, alphas, pair), "P1": paths, "B": widened}


def ladder(
    net: ReLUNetwork, alphas: Float[Array, "*batch d"], pair: tuple[int, int], *, p: float
) -> dict[str, Float[Array, "*batch"]]:
    """Every rung valid for E sup ||J||_q, each a bound, by its label.

    p = 2 (q = 2): F, P2, B, S, and P1, as ||J||_2 <= ||J||_1. p = inf (q = 1): M, P1, S, and B times sqrt(n),
    as ||J||_1 <= sqrt(n) ||J||_2 for n inputs. The conversions left out are never smaller than these. S
    (:mod:`theory.relu.halfcut`) is capped by P2 and P1, which it exceeds by rounding alone.

    Raises: InvalidInput as :func:`frobenius_bound`, or unless p is 2 or inf.
    """
    rungs = unsigned_ladder(net, alphas, pair, p=p)
    if dual(p) == 2:
        return rungs | {"S": np.minimum(halfcut_bound(net, alphas, pair), rungs["P2"])}
    return rungs | {"S": np.minimum(halfcut_path_bound(net, alphas, pair), rungs["P1"])}


def best_bound(
    net: ReLUNetwork, alphas: Float[Array, "*batch d"], pair: tuple[int, int], *, p: float
) -> Float[Array, "*batch"]:
    """The smallest rung of :func:`ladder` for each alpha, a bound of E sup ||J||_q.

    Raises: InvalidInput as :func:`ladder`.
    """
    return np.asarray(np.min(list(ladder(net, alphas, pair, p=p).values()), axis=0))


def eta_frobenius(alphas: Float[Array, "*batch d"]) -> Float[Array, "*batch"]:
    """eta(alpha) = 1 - prod_j sqrt(1 - alpha_j), an identity: rung F is c (1 - eta), c rung F at 0.

    Raises: InvalidInput for alphas outside [0, 1], or unless the last one is 0 (v unmasked, as in the
      theorem).
    Reference: the paper, theorem on nonlinear networks (section 3.2), q = 2.
    """
    return _lost_of_product(_hidden_sparsities(alphas), power=0.5)


def eta_path(alphas: Float[Array, "*batch d"]) -> Float[Array, "*batch"]:
    """eta(alpha) = 1 - prod_j (1 - alpha_j), an identity: rung P1 is c (1 - eta), c rung P1 at 0.

    Raises: InvalidInput for alphas outside [0, 1], or unless the last one is 0 (v unmasked, as in the
      theorem).
    Reference: this project, after the paper's theorem on nonlinear networks.
    """
    return _lost_of_product(_hidden_sparsities(alphas), power=1.0)


def _lost_of_product(alphas: Float[Array, "*batch d"], *, power: float) -> Float[Array, "*batch"]:
    """1 - prod_j (1 - alpha_j)^power, without cancellation for small sparsities."""
    with np.errstate(divide="ignore"):
        return np.asarray(-np.expm1(power * np.log1p(-alphas).sum(axis=-1)))


def monte_carlo(
    net: ReLUNetwork,
    x: Float[Array, "m n"],
    alphas: Float[Array, " d"],
    pair: tuple[int, int],
    *,
    p: float,
    masks: int,
    rng: np.random.Generator,
) -> Float[Array, " masks"]:
    """Largest ||J(x)||_q over the rows of ``x`` for each of ``masks`` random masks, an estimate.

    Its mean estimates E[ max_{rows} ||J(x)||_q ], which is at most E[ sup ||J||_q ]: a *lower* estimate of
    what the rungs bound. All layers are masked, the last one included. Chunks of about 256 MiB; the
    samples do not depend on the chunk size.

    Raises: InvalidInput for bad x, p, alphas or pair, or masks < 1.
    """
    q, x = dual(p), check_inputs(x, width=net.weights[0].shape[1])
    if masks < 1:
        raise InvalidInput(f"masks is {masks}; draw at least one")
    if np.ndim(alphas) != 1:
        raise InvalidInput(f"alphas has shape {np.shape(alphas)}; give one sparsity per layer, (d,)")
    check_pair(pair, classes=net.classes)
    sizes = [weight.size for weight in net.weights]
    keep = np.repeat(keep_probabilities(net, alphas), sizes)
    widths = sum(weight.shape[0] + weight.shape[1] for weight in net.weights)
    chunk = max(1, CHUNK_BYTES // (8 * (3 * sum(sizes) + len(x) * widths)))
    samples = []
    for start in range(0, masks, chunk):
        drawn = rng.random((min(chunk, masks - start), len(keep))) < keep
        parts = np.split(drawn, np.cumsum(sizes)[:-1], axis=1)
        weights = [w * part.reshape(-1, *w.shape) for w, part in zip(net.weights, parts, strict=True)]
        samples.append(norm(_masked_gradients(net, weights, x, pair), p=q).max(axis=1))
    return np.concatenate(samples)


def _masked_gradients(
    net: ReLUNetwork, weights: list[Float[Array, "k _ _"]], x: Float[Array, "m n"], pair: tuple[int, int]
) -> Float[Array, "k m n"]:
    """Gradient of g_i - g_k at every row of x, for each of k masked copies of the network."""
    hidden = np.broadcast_to(x, (len(weights[0]), *x.shape))
    active = []
    for weight, bias in zip(weights[:-1], net.biases[:-1], strict=True):
        pre_activation = hidden @ weight.mT + bias
        active.append(pre_activation > 0)
        hidden = np.maximum(pre_activation, 0.0)
    gradient = (weights[-1][:, pair[0]] - weights[-1][:, pair[1]])[:, None, :]
    for weight, on in zip(reversed(weights[:-1]), reversed(active), strict=True):
        gradient = (gradient * on) @ weight
    return gradient


def _hidden_sparsities(alphas: Float[Array, "*batch d"]) -> Float[Array, "*batch h"]:
    alphas = check_sparsities(alphas)
    if alphas[..., -1].any():
        raise InvalidInput(
            "alphas masks the last layer; eta needs alphas[..., -1] == 0, use the rung instead"
        )
    return alphas[..., :-1]


def _expected_largest_row_sum(rows: Float[Array, "r s"], alpha: float) -> float:
    """E max_u sum_v |W_uv| M_uv, a bound: the smallest of Chernoff, largest row sum and expected total."""
    sums = rows.sum(axis=1)
    largest = sums.max()
    if largest == 0 or alpha == 1:
        return 0.0
    live = rows[sums > 0] / largest
    slack = live.size + 10
    capped = outward(np.asarray(min(largest, (1.0 - alpha) * sums.sum())), roundings=slack)
    if alpha == 0 or len(live) == 1:
        return float(capped)

    def chernoff(log_theta: float) -> float:
        theta = math.exp(log_theta)
        log_moments = theta * live + np.log(1.0 - alpha + alpha * np.exp(-theta * live))
        return float(np.logaddexp.reduce(log_moments.sum(axis=1))) / theta

    # Below log(rows) the value exceeds 1, the largest row sum; beyond the upper end every entry is saturated.
    ends = (math.log(math.log(len(live))), math.log(64.0 * live.size))
    best, value = fminbound(chernoff, *ends, xtol=LOG_THETA_TOLERANCE, full_output=True)[:2]
    # Each logarithm is off by a few eps in absolute terms, and their sum is divided by theta.
    absolute = slack * EPS * (2.0 + 4.0 / math.exp(float(best)))
    return float(min(capped, largest * (float(value) + absolute) * (1.0 + 4 * EPS)))


def expected_spectral_norm(
    mantissa: Float[Array, "r s"], keep: Float[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """E||W * M||_2, a bound: the smaller of matrix Bernstein and sqrt(k) ||W||_F."""
    squares = mantissa**2
    spread = max(squares.sum(axis=0).max(), squares.sum(axis=1).max())
    log_size = math.log(sum(mantissa.shape))
    deviation = np.sqrt(2.0 * keep * (1.0 - keep) * spread * log_size)
    largest = np.maximum(keep, 1.0 - keep) * np.abs(mantissa).max() * log_size / 3.0
    random = (keep > 0) & (keep < 1)
    bernstein = keep * spectral_norm(mantissa) + np.where(random, deviation + largest, 0.0)
    return np.asarray(np.minimum(bernstein, np.sqrt(keep) * np.linalg.norm(mantissa)))
