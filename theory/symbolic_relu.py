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


def prove_trace_moment() -> tuple[sp.Expr, sp.Expr]:
    """E tr (X X')^2 of X = A * M (2 x 2), an identity: joint cumulants over set partitions of its steps.

    The closed walk r0 - c0 - r1 - c1 - r0 takes four entries; a block of a partition makes its steps use one
    entry, with the cumulant of that order: kappa_1 = k, kappa_{n+1} = k (1-k) d kappa_n / dk.
    """

    def squared(m: tuple[int, ...]) -> sp.Matrix:
        masked = A.multiply_elementwise(sp.Matrix(2, 2, m))
        return (masked * masked.T) ** 2

    k = sp.Symbol("k")
    cumulants: list[sp.Expr] = [k]
    for _ in range(3):
        cumulants.append(sp.expand(k * (1 - k) * sp.diff(cumulants[-1], k)))
    # The block of a step is named by its first step.
    partitions = {tuple(b.index(n) for n in b) for b in itertools.product(range(4), repeat=4)}
    closed = sp.Integer(0)
    for r0, c0, r1, c1 in itertools.product((0, 1), repeat=4):
        steps = [(r0, c0), (r1, c0), (r1, c1), (r0, c1)]
        for blocks in partitions:
            if all(steps[s] == steps[block] for s, block in enumerate(blocks)):
                factors = [cumulants[blocks.count(b) - 1] for b in set(blocks)]
                closed += sp.prod(factors) * sp.prod([A[entry] for entry in steps])
    return _expectation(squared, 4).trace(), closed.subs(k, 1 - ALPHA)


def prove_fluctuation_moment() -> tuple[sp.Expr, sp.Expr]:
    """E (m - k)^n = k (1-k) ( (1-k)^(n-1) + (-1)^n k^(n-1) ), an identity, for n = 2..6.

    The powers of theta in the sum keep the orders apart.
    """
    kept = 1 - ALPHA
    closed = sum(
        THETA**n * kept * ALPHA * (ALPHA ** (n - 1) + (-1) ** n * kept ** (n - 1)) for n in range(2, 7)
    )
    moments = _expectation(lambda m: sum(THETA**n * (m[0] - kept) ** n for n in range(2, 7)), 1)
    return moments, sp.sympify(closed)


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
