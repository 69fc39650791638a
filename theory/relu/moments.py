"""Moment propagation: margin, gradient and first-order radius of a randomly masked network, without sampling.

Layer j keeps each weight independently with probability k_j = 1 - alpha_j; biases stay. Everything here is
an *estimate*, but for one layer: given h the masked pre-activation has exactly

    E z = k W E h + b,   Cov z = k^2 W Cov(h) W' + k (1-k) diag( W^2 E h^2 ),

so the first hidden layer is exact in mean and variance, and so is a network of one layer. The closures are:
pre-activations are Gaussian (rectified-Gaussian moments); covariances of rectified pairs to second order in
their covariance (Price's theorem); the gradient that arrives at a layer is independent of its activation
pattern, patterns of different layers are independent, and of one layer pairwise correlated to first order.
With ``covariance=False`` units of a layer count as independent, which is true of the first hidden layer only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array
from scipy.special import gammaln, ndtri

from theory.relu.masked_layers import check_sparsities
from theory.relu.rectified import folded_mean, rectified_moments
from theory.types import InvalidInput, ReLUNetwork, check_examples, check_labels, check_p

NODES = 1024  # cubature nodes of the Gaussian logits; the error of a probability is about 1e-3
LARGE_SHAPE = 1e4  # from here on the two forms of the mean of a gamma variable's root agree to 1e-10
FARTHEST = 1e120  # between numbers whose squares, and products of squares, are added
CHUNK_ENTRIES = 2**23  # entries of one covariance array of a chunk of examples: 64 MiB


@dataclass(frozen=True)
class Prediction:
    """Expectations over masks, per sparsity vector (a) and example (m).

    margin: E of min_k max(g_y - g_k, 0); accuracy: P(all g_y - g_k > 0); gradient_l2 and gradient_l1:
    E ||grad(g_y - g_r)(x)||, r the rival class of the example.
    """

    margin: Float[Array, "a m"]
    accuracy: Float[Array, "a m"]
    gradient_l2: Float[Array, "a m"]
    gradient_l1: Float[Array, "a m"]

    def radius(self, *, p: float, cap: float = math.inf) -> Float[Array, "a m"]:
        """First-order radius, an estimate of E[rho_p]: min(margin / ||gradient||_q, cap); 0 at margin 0."""
        size = self.gradient_l2 if check_p(p) == 2 else self.gradient_l1
        return first_order_radius(self.margin, size, cap=cap)


def first_order_radius(
    margin: Float[Array, "*s"], size: Float[Array, "*s"], *, cap: float
) -> Float[Array, "*s"]:
    """min(margin / size, cap) for gradients of norm ``size``, an estimate: 0 at margin <= 0, NaN for NaN."""
    ratio = np.where(np.isnan(margin), math.nan, math.inf)
    np.divide(margin, size, out=ratio, where=size != 0)
    return np.where(margin <= 0, 0.0, np.minimum(ratio, cap))


@dataclass(frozen=True)
class Layer:
    """A pre-activation or a gradient: mean and variance (m, h), covariance (m, h, h).

    covariance is None where the entries are independent.
    """

    mean: Float[Array, "m h"]
    variance: Float[Array, "m h"]
    covariance: Float[Array, "m h h"] | None


def runner_up(net: ReLUNetwork, x: Float[Array, "m n"], y: Int[Array, " m"]) -> Int[Array, " m"]:
    """The class with the largest logit but y, an identity: the usual rival of :func:`predict`.

    Raises: InvalidInput for bad x or y.
    """
    scores = net.scores(x)
    labels = check_labels("y", y, n=len(scores), classes=net.classes)
    scores[np.arange(len(labels)), labels] = -math.inf
    return scores.argmax(axis=1)


def predict(
    net: ReLUNetwork,
    x: Float[Array, "m n"],
    y: Int[Array, " m"],
    rivals: Int[Array, " m"],
    alphas: Float[Array, "a d"],
    *,
    covariance: bool = True,
) -> Prediction:
    """Margin, accuracy and gradient norms under random masks, an estimate; exact at alpha = 0.

    ``alphas`` holds one sparsity per layer in each row, ``rivals`` the class r whose g_y - g_r is
    differentiated. Cost with covariances is that of (m, h, h) products, h the widths of the hidden layers.

    Raises: InvalidInput for bad x, labels or alphas, a rival equal to its label, or squares that overflow.
    """
    x, y = check_examples(net, x, y)
    rivals = check_rivals(rivals, y, classes=net.classes)
    keep = check_keep(alphas, layers=len(net.weights))
    widest = max(max(weight.shape) for weight in net.weights)
    chunk = max(1, CHUNK_ENTRIES // widest**2) if covariance else len(x)
    out = np.zeros((4, len(keep), len(x)))
    powers = [_exponent(weight) for weight in net.weights]
    weights = [np.ldexp(weight, -power) for weight, power in zip(net.weights, powers, strict=True)]
    steepness = sum(powers)
    net, x, _, exponent = near_one(net, x)
    for first in range(0, len(x), chunk):
        rows = slice(first, first + chunk)
        for a, kept in enumerate(keep):
            with np.errstate(over="ignore", invalid="ignore"):
                layers = preactivation_moments(net, x[rows], kept, covariance=covariance)
                if not all(np.isfinite([layer.mean, layer.variance]).all() for layer in layers):
                    raise InvalidInput("net has scores whose squares overflow at x; give x in smaller units")
                out[:2, a, rows] = margin_statistics(layers[-1], y[rows])
                out[2:, a, rows] = _gradient_norms(weights, layers[:-1], y[rows], rivals[rows], kept)
    with np.errstate(over="ignore"):  # squares stay within the floats, results may leave them
        out[0], out[2:] = np.ldexp(out[0], exponent), np.ldexp(out[2:], steepness)
    return Prediction(*out)


def near_one(net: ReLUNetwork, x: Float[Array, "m n"]) -> tuple[ReLUNetwork, Float[Array, "m n"], int, int]:
    """Network and inputs over powers of 2, with the powers of x and of the scores: an identity.

    ReLU passes positive factors on, so all activation patterns stay; what underflows of a bias is lost. x, or
    both, stay as they are, with the power 0, where the biases would be far above the rest.
    """
    for start in (_exponent(x), 0):
        power, weights, biases = start, [], []
        for weight, bias in zip(net.weights, net.biases, strict=True):
            exponent = _exponent(weight)
            power += exponent
            weights.append(np.ldexp(weight, -exponent))
            with np.errstate(over="ignore"):
                biases.append(np.ldexp(bias, -power))
        if all((np.abs(bias) <= FARTHEST).all() for bias in biases):
            return ReLUNetwork(tuple(weights), tuple(biases)), np.ldexp(x, -start), start, power
    return net, x, 0, 0


def _exponent(values: Array) -> int:
    """The power of 2 that brings the largest entry into [1/2, 1); 0 where squares of others would vanish."""
    sizes = np.abs(values[values != 0])
    if not sizes.size or sizes.min() < sizes.max() / FARTHEST:
        return 0
    return int(np.frexp(sizes.max())[1])


def check_keep(alphas: Float[Array, "a d"], *, layers: int) -> Float[Array, "a d"]:
    """Return 1 - alphas. Raises: InvalidInput unless each row holds one sparsity in [0, 1] per layer."""
    alphas = check_sparsities(alphas)
    if alphas.ndim != 2 or alphas.shape[1] != layers:
        raise InvalidInput(f"alphas has shape {alphas.shape}; expected (a, {layers}), one column per layer")
    return 1.0 - alphas


def check_rivals(rivals: Int[Array, " m"], y: Int[Array, " m"], *, classes: int) -> Int[Array, " m"]:
    """Return rivals as int64. Raises: InvalidInput unless each is a class other than its label."""
    checked = check_labels("rivals", rivals, n=len(y), classes=classes)
    if (checked == y).any():
        row = int(np.flatnonzero(checked == y)[0])
        raise InvalidInput(f"rivals[{row}] is the label {y[row]}; give another class")
    return checked


def preactivation_moments(
    net: ReLUNetwork, x: Float[Array, "m n"], keep: Float[Array, " d"], *, covariance: bool = True
) -> list[Layer]:
    """Mean and (co)variance of every pre-activation, logits last: an estimate; first layer an identity.

    keep: probability per layer that a weight is kept. The covariance of the first layer is diagonal: its
    units have their own masks, and x is fixed.
    """
    mean, variance, shared = x, np.zeros_like(x), None
    layers: list[Layer] = []
    for j, (weight, bias, k) in enumerate(zip(net.weights, net.biases, keep, strict=True)):
        if j:
            mean, variance, shared = rectified_layer(layers[-1])
        own = _variances(k * (1 - k), variance + mean**2, weight.T)
        if j == 0 or not covariance:
            total = own + _variances(k**2, variance, weight.T)
            layers.append(Layer(k * (mean @ weight.T) + bias, total, None))
            continue
        spread = weight * variance[:, None, :] if shared is None else weight @ shared
        full = k**2 * (spread @ weight.T)
        total = np.maximum(np.einsum("muu->mu", full), 0.0) + own
        layers.append(Layer(k * (mean @ weight.T) + bias, total, with_diagonal(full, total)))
    return layers


def _variances(
    chance: float, squares: Float[Array, "m h"], weight: Float[Array, "h k"]
) -> Float[Array, "m k"]:
    """chance squares W^2, an identity; 0 where nothing is random, however large the weights."""
    if not (chance and squares.any()):
        return np.zeros((len(squares), weight.shape[1]))
    return chance * (squares @ weight**2)


def rectified_layer(
    layer: Layer,
) -> tuple[Float[Array, "m h"], Float[Array, "m h"], Float[Array, "m h h"] | None]:
    """Mean, variance and covariance after ReLU, an estimate: identities for Gaussian units but for the last.

    Off the diagonal Cov = P P' C + (f f') C^2 / 2 with P(z > 0) and the density f of z at 0: the first two
    terms of Price's series sum_n C^n / n! E relu^(n)(z) E relu^(n)(z').
    """
    mean, variance, active, density = rectified_moments(layer.mean, layer.variance)
    if layer.covariance is None:
        return mean, variance, None
    linear, curved = pairs(active), pairs(density)
    after = layer.covariance * (linear + 0.5 * curved * layer.covariance)
    return mean, variance, with_diagonal(after, variance)


def pairs(values: Float[Array, "m h"]) -> Float[Array, "m h h"]:
    """The products v_u v_w of every two entries of a row, an identity."""
    return values[:, :, None] * values[:, None, :]


@cache
def _normal_nodes(dimensions: int) -> Float[Array, "nodes k"]:
    """Sobol points, moved half a cell into the cube, as standard normal vectors."""
    from scipy.stats import qmc  # slow to import

    return ndtri(qmc.Sobol(dimensions, scramble=False).random(NODES) + 0.5 / NODES)


def margin_statistics(logits: Layer, y: Int[Array, " m"]) -> Float[Array, "2 m"]:
    """E min_k max(g_y - g_k, 0) and P(all g_y > g_k) of Gaussian logits, an estimate by fixed Sobol nodes.

    Logits without a covariance count as independent. Where they are constant the result is exact.
    """
    count, classes = logits.mean.shape
    root = np.zeros((count, classes, classes))
    if logits.covariance is None:
        root[:, np.arange(classes), np.arange(classes)] = np.sqrt(logits.variance)
    else:
        values, vectors = np.linalg.eigh(logits.covariance)
        root = vectors * np.sqrt(np.maximum(values, 0.0))[:, None, :]
    nodes = _normal_nodes(classes)
    margin, accuracy = np.zeros(count), np.zeros(count)
    for e in range(count):
        noise = nodes @ root[e].T
        gaps = (logits.mean[e, y[e]] - logits.mean[e]) + (noise[:, [y[e]]] - noise)
        gaps[:, y[e]] = math.inf
        smallest = gaps.min(axis=1)
        margin[e], accuracy[e] = np.maximum(smallest, 0.0).mean(), (smallest > 0).mean()
    return np.stack([margin, accuracy])


def _gradient_norms(
    weights: list[Float[Array, "_ _"]],
    hidden: list[Layer],
    y: Int[Array, " m"],
    rivals: Int[Array, " m"],
    keep: Float[Array, " d"],
) -> Float[Array, "2 m"]:
    """E ||grad(g_y - g_r)||_2 and ||.||_1 from the moments of the gradient, layer by layer downwards."""
    last = weights[-1]
    chance = keep[-1] * (1 - keep[-1])
    variance = chance * (last[y] ** 2 + last[rivals] ** 2) if chance else np.zeros_like(last[y])
    gradient = Layer(keep[-1] * (last[y] - last[rivals]), variance, None)
    for layer, weight, k in zip(reversed(hidden), weights[-2::-1], keep[-2::-1], strict=True):
        pulled = pull_back_relu(layer, gradient)
        own = _variances(k * (1 - k), pulled.variance + pulled.mean**2, weight)
        mean = k * (pulled.mean @ weight)
        if pulled.covariance is None and len(hidden) > 1:
            gradient = Layer(mean, own + _variances(k**2, pulled.variance, weight), None)
            continue
        # One hidden layer: its units are independent, and the full moments of the gradient cost little.
        spread = (
            weight.T * pulled.variance[:, None] if pulled.covariance is None else weight.T @ pulled.covariance
        )
        full = k**2 * (spread @ weight)
        total = np.maximum(np.einsum("mvv->mv", full), 0.0) + own
        gradient = Layer(mean, total, with_diagonal(full, total))
    return norm_means(gradient)


def pull_back_relu(layer: Layer, gradient: Layer) -> Layer:
    """Moments of D J for a gradient J independent of the pattern D of ``layer``, an estimate.

    With P = P(active), f the density of z at 0 and C = Cov(z), Cov(D_u, D_w) = f f' C to first order, so
    Cov(D J) = Cov(J) (P P' + f f' C) + E J E J' f f' C; on the diagonal P Var J + P (1-P) (E J)^2 exactly.
    """
    _, _, active, density = rectified_moments(layer.mean, layer.variance)
    variance = active * gradient.variance + active * (1 - active) * gradient.mean**2
    mean = active * gradient.mean
    if layer.covariance is None and gradient.covariance is None:
        return Layer(mean, variance, None)
    together = pairs(density) * (layer.covariance if layer.covariance is not None else 0.0)
    covariance = pairs(gradient.mean) * together
    if gradient.covariance is not None:
        covariance = covariance + gradient.covariance * (pairs(active) + together)
    return Layer(mean, variance, with_diagonal(covariance, variance))


def with_diagonal(matrix: Float[Array, "m h h"], diagonal: Float[Array, "m h"]) -> Float[Array, "m h h"]:
    """The matrices with their diagonals replaced in place, an identity."""
    units = np.arange(diagonal.shape[1])
    matrix[:, units, units] = diagonal
    return matrix


def norm_means(gradient: Layer) -> Float[Array, "2 m"]:
    """E||J||_2 and E||J||_1 of a Gaussian vector: an identity for l_1, an estimate for l_2.

    ||J||_2^2 has mean t = sum (E J)^2 + Var J and, for Gaussian J, variance v = 2 tr C^2 + 4 E J' C E J; the
    root of the gamma variable with these two has mean sqrt(t / s) Gamma(s + 1/2) / Gamma(s), s = t^2 / v.
    """
    largest = np.maximum(np.abs(gradient.mean), np.sqrt(gradient.variance)).max(axis=1, keepdims=True)
    power = np.frexp(largest)[1]  # of 2: squares of gradients over it, and squares of those, are floats
    mean, variance = np.ldexp(gradient.mean, -power), np.ldexp(gradient.variance, -2 * power)
    total = (variance + mean**2).sum(axis=1)
    if gradient.covariance is None:
        spread = 2 * (variance**2).sum(axis=1) + 4 * (variance * mean**2).sum(axis=1)
    else:
        covariance = np.ldexp(gradient.covariance, -2 * power[:, :, None])
        along = np.einsum("mi,mij,mj->m", mean, covariance, mean)
        spread = 2 * (covariance**2).sum(axis=(1, 2)) + 4 * np.maximum(along, 0.0)
    # Gamma(s + 1/2) / (Gamma(s) sqrt s) = 1 - 1/(8 s) + O(s^-2), the better form for large s.
    inverse = np.divide(spread, total**2, out=np.zeros_like(total), where=total > 0)
    shape = 1 / np.clip(inverse, 1 / LARGE_SHAPE, None)
    exact = np.exp(gammaln(shape + 0.5) - gammaln(shape)) / np.sqrt(shape)
    factor = np.where(shape < LARGE_SHAPE, exact, 1 - inverse / 8)
    euclidean = np.ldexp(np.sqrt(total) * factor, power[:, 0])
    return np.stack([euclidean, folded_mean(gradient.mean, gradient.variance).sum(axis=1)])


def best_sparsity(
    sparsity: Float[Array, " a"], radius: Float[Array, "a m"], rows: Bool[Array, " m"] | None = None
) -> float:
    """The sparsity with the largest mean radius on the grid given, an estimate of alpha*; ties: the first.

    Raises: InvalidInput if the grids disagree, a radius is NaN, or there is none.
    """
    sparsity, radius = (np.asarray(part, dtype=np.float64) for part in (sparsity, radius))
    if len(sparsity) != len(radius):
        raise InvalidInput(f"radius has {len(radius)} rows; sparsity has {len(sparsity)} entries")
    chosen = radius if rows is None else radius[:, rows]
    if not chosen.size or np.isnan(chosen).any():
        raise InvalidInput(
            f"radius has {chosen.size} entries, or NaN among them; choose rows where it is known"
        )
    mean = chosen.mean(axis=1)
    return float(sparsity[int(np.argmax(mean))])
