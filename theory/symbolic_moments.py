"""SymPy derivations behind moment propagation and the expected certified radius, each from its definition.

Every function returns (left side, right side), equal for all values of the symbols, or an expression that is
not negative where it says so.
"""

from __future__ import annotations

import itertools

import sympy as sp

MEAN = sp.Symbol("mu", real=True)
SD = sp.Symbol("sigma", positive=True)
KEEP = sp.Symbol("k", nonnegative=True)
# Weights of two units over two inputs, and the joint law of the inputs: values h[s] with probability P[s].
U = sp.symbols("u1 u2", real=True)
W = sp.symbols("w1 w2", real=True)
H = (sp.symbols("h11 h12", real=True), sp.symbols("h21 h22", real=True))
P = sp.Symbol("pi", nonnegative=True)
BIAS = sp.Symbol("b", real=True)
M_VALUES = sp.symbols("m1 m2", nonnegative=True)
L_VALUES = sp.symbols("l1 l2", positive=True)

_T = MEAN / SD
PHI = sp.exp(-(_T**2) / 2) / sp.sqrt(2 * sp.pi)
CDF = (1 + sp.erf(_T / sp.sqrt(2))) / 2


def prove_rectified_mean() -> tuple[sp.Expr, sp.Expr]:
    """E max(z, 0) = mu Phi(mu/sigma) + sigma phi(mu/sigma), z ~ N(mu, sigma^2), an identity."""
    return _rectified_integral(1), MEAN * CDF + SD * PHI


def prove_rectified_square() -> tuple[sp.Expr, sp.Expr]:
    """E max(z, 0)^2 = (mu^2 + sigma^2) Phi(mu/sigma) + mu sigma phi(mu/sigma), an identity."""
    return _rectified_integral(2), (MEAN**2 + SD**2) * CDF + MEAN * SD * PHI


def prove_active_probability() -> tuple[sp.Expr, sp.Expr]:
    """P(z > 0) = Phi(mu/sigma), an identity."""
    return _rectified_integral(0), CDF


def prove_variance_by_the_other_side() -> tuple[sp.Expr, sp.Expr]:
    """Var max(z,0) = sigma^2 - n_2 - 2 mu n_1 - n_1^2, n_j = E max(-z, 0)^j, an identity: no mu^2 cancels."""
    first, second = prove_rectified_mean()[1], prove_rectified_square()[1]
    tail_first, tail_second = first.subs(MEAN, -MEAN), second.subs(MEAN, -MEAN)
    return second - first**2, SD**2 - tail_second - 2 * MEAN * tail_first - tail_first**2


def prove_masked_mean() -> tuple[sp.Expr, sp.Expr]:
    """E z = k w'E h + b for z = sum_v w_v m_v h_v + b, an identity over all masks and values of h."""
    return _expect(lambda m, h: _unit(W, m[:2], h)), KEEP * _dot(W, _means()) + BIAS


def prove_masked_variance() -> tuple[sp.Expr, sp.Expr]:
    """Var z = k^2 w'Cov(h) w + k (1-k) sum_v w_v^2 E h_v^2, an identity."""
    square = _expect(lambda m, h: _unit(W, m[:2], h) ** 2)
    squares = _expect_inputs(lambda h: KEEP * (1 - KEEP) * (W[0] ** 2 * h[0] ** 2 + W[1] ** 2 * h[1] ** 2))
    return square - prove_masked_mean()[0] ** 2, KEEP**2 * _quadratic(W, W) + squares


def prove_masked_covariance() -> tuple[sp.Expr, sp.Expr]:
    """Cov(z, z') = k^2 w'Cov(h) u for two units with their own masks, an identity."""
    both = _expect(lambda m, h: _unit(W, m[:2], h) * _unit(U, m[2:], h))
    other = KEEP * _dot(U, _means()) + BIAS
    return both - prove_masked_mean()[0] * other, KEEP**2 * _quadratic(W, U)


def prove_cauchy_schwarz_step() -> tuple[sp.Expr, sp.Expr]:
    """E[m/l] E[l] - (E sqrt m)^2 = pi (1-pi) (sqrt(m1/l1 l2) - sqrt(m2/l2 l1))^2 >= 0, an identity.

    For two values of (m, l) with probabilities pi and 1 - pi; for more it is the sum of such terms over all
    pairs of values, by Lagrange's identity.
    """
    (m1, m2), (l1, l2), rest = M_VALUES, L_VALUES, 1 - P
    gap = (P * m1 / l1 + rest * m2 / l2) * (P * l1 + rest * l2) - (P * sp.sqrt(m1) + rest * sp.sqrt(m2)) ** 2
    return gap, P * rest * (sp.sqrt(m1 * l2 / l1) - sp.sqrt(m2 * l1 / l2)) ** 2


def prove_capped_ratio() -> tuple[sp.Expr, sp.Expr]:
    """min(u, R) - u R / (u + R) = min(u, R)^2 / (u + R) >= 0, an identity; here for u <= R, R = u + s."""
    u, s = M_VALUES[0], L_VALUES[0]
    return u - u * (u + s) / (2 * u + s), u**2 / (2 * u + s)


def _rectified_integral(power: int) -> sp.Expr:
    """Integral of z^power over z > 0 against the Gaussian density, from the definition."""
    z = sp.Symbol("z", positive=True)
    density = sp.exp(-((z - MEAN) ** 2) / (2 * SD**2)) / (SD * sp.sqrt(2 * sp.pi))
    return sp.integrate(z**power * density, (z, 0, sp.oo), conds="none").rewrite(sp.erf)


def _unit(weights: tuple, mask: tuple, h: tuple) -> sp.Expr:
    return sum((w * m * v for w, m, v in zip(weights, mask, h, strict=True)), start=BIAS)


def _dot(weights: tuple, values: tuple) -> sp.Expr:
    return weights[0] * values[0] + weights[1] * values[1]


def _expect_inputs(value) -> sp.Expr:
    """Sum over the two values of h, with probabilities pi and 1 - pi."""
    return P * value(H[0]) + (1 - P) * value(H[1])


def _means() -> tuple[sp.Expr, sp.Expr]:
    return _expect_inputs(lambda h: h[0]), _expect_inputs(lambda h: h[1])


def _quadratic(left: tuple, right: tuple) -> sp.Expr:
    """left' Cov(h) right."""
    product = _expect_inputs(lambda h: _dot(left, h) * _dot(right, h))
    return product - _dot(left, _means()) * _dot(right, _means())


def _expect(value) -> sp.Expr:
    """Sum over all masks of four entries and both values of h, weighted by their probabilities."""
    total = sp.S.Zero
    for mask in itertools.product((0, 1), repeat=4):
        kept = sum(mask)
        chance = KEEP**kept * (1 - KEEP) ** (4 - kept)
        total += chance * _expect_inputs(lambda h, mask=mask: value(mask, h))
    return total
