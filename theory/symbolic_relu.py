"""SymPy derivations behind the random-mask bounds, each from the definition: a sum over all masks.

Every function returns (expectation over masks, closed form); the two are equal for all values of the symbols.
"""

from __future__ import annotations

import itertools

import sympy as sp

ALPHA = sp.Symbol("alpha", nonnegative=True)
THETA = sp.Symbol("theta", positive=True)
W_I, W_K = sp.symbols("w_i w_k", real=True)
# |weights| of one hidden layer: A[a][u], from unit u down to input a.
A = sp.Matrix(2, 2, sp.symbols("a11 a12 a21 a22", nonnegative=True))
# Second moments E[x x'] of what arrives at its units.
S = sp.Matrix(2, 2, sp.symbols("s11 s12 s12 s22", nonnegative=True))


def prove_absolute_difference() -> tuple[sp.Expr, sp.Expr]:
    """E|w_i m_i - w_k m_k| = k^2 |w_i - w_k| + k (1-k) (|w_i| + |w_k|), k = 1 - alpha, an identity."""
    kept = 1 - ALPHA
    closed = kept**2 * sp.Abs(W_I - W_K) + kept * ALPHA * (sp.Abs(W_I) + sp.Abs(W_K))
    return _expectation(lambda m: sp.Abs(W_I * m[0] - W_K * m[1]), 2), closed


def prove_squared_difference() -> tuple[sp.Expr, sp.Expr]:
    """E (w_i m_i - w_k m_k)^2 = k (w_i^2 + w_k^2) - 2 k^2 w_i w_k, k = 1 - alpha, an identity."""
    kept = 1 - ALPHA
    closed = kept * (W_I**2 + W_K**2) - 2 * kept**2 * W_I * W_K
    return _expectation(lambda m: (W_I * m[0] - W_K * m[1]) ** 2, 2), closed


def prove_second_moment_step() -> tuple[sp.Matrix, sp.Matrix]:
    """E[y y'] = k^2 A S A' + k (1-k) diag( A^2 diag S ), y = (A * M) x, S = E[x x'], an identity (2 x 2)."""

    def moment(m: tuple[int, ...]) -> sp.Matrix:
        masked = A.multiply_elementwise(sp.Matrix(2, 2, m))
        return masked * S * masked.T

    kept = 1 - ALPHA
    spread = A.multiply_elementwise(A) * sp.Matrix([S[0, 0], S[1, 1]])
    closed = kept**2 * A * S * A.T + kept * ALPHA * sp.diag(spread[0], spread[1])
    return _expectation(moment, 4), closed


def prove_chernoff_factor() -> tuple[sp.Expr, sp.Expr]:
    """E exp(theta |w| m) = alpha + (1-alpha) exp(theta |w|), an identity: a Chernoff factor."""
    closed = ALPHA + (1 - ALPHA) * sp.exp(THETA * sp.Abs(W_I))
    return _expectation(lambda m: sp.exp(THETA * sp.Abs(W_I) * m[0]), 1), closed


def _expectation(value, entries: int):
    """Sum of value(mask) over all 0/1 masks, weighted by their Bernoulli(1 - alpha) probabilities."""
    terms = []
    for mask in itertools.product((0, 1), repeat=entries):
        probability = (1 - ALPHA) ** sum(mask) * ALPHA ** (entries - sum(mask))
        terms.append(value(mask) * probability)
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
