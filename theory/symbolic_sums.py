"""SymPy derivations behind the sums of the k largest: E max(X - t, 0) by mean m, variance s and range [0, b].

Each function gives a quadratic q >= max(x - t, 0) on [0, b], its expectation, the closed form, and two points
with their chances that have these moments and attain it. So the closed form is the smallest bound there is.
"""

from __future__ import annotations

from dataclasses import dataclass

import sympy as sp

M, S, B, T = sp.symbols("m s b t", positive=True)
X = sp.Symbol("x", real=True)


@dataclass(frozen=True)
class Excess:
    """A quadratic in X, the closed form in M, S, B, T, and a distribution on two points ((x, chance), ...).

    ``off`` and ``on`` are the quadratic's distances from 0 and from x - t, in a form that shows their sign.
    """

    quadratic: sp.Expr
    closed: sp.Expr
    points: tuple[tuple[sp.Expr, sp.Expr], tuple[sp.Expr, sp.Expr]]
    off: sp.Expr
    on: sp.Expr

    def expectation(self) -> sp.Expr:
        """E q(X), from E X = m and E X^2 = s + m^2."""
        constant, linear, square = (self.quadratic.expand().coeff(X, n) for n in range(3))
        return constant + linear * M + square * (S + M**2)


def prove_excess_below() -> Excess:
    """m (1 - t m / (s + m^2)) where 2 m t <= s + m^2: the quadratic through 0 that touches x - t at c."""
    c = (S + M**2) / M
    return Excess(
        quadratic=X - T * (1 - (1 - X / c) ** 2),
        closed=M * (1 - T * M / (S + M**2)),
        points=((sp.Integer(0), 1 - M / c), (c, M / c)),
        off=X * (1 - 2 * T / c) + T * X**2 / c**2,
        on=T * (1 - X / c) ** 2,
    )


def prove_excess_between() -> Excess:
    """(d - (t - m)) / 2, d^2 = s + (t - m)^2 (Scarf): the quadratic touches 0 at t - d and x - t at t + d."""
    d = sp.sqrt(S + (T - M) ** 2)
    return Excess(
        quadratic=(X - T + d) ** 2 / (4 * d),
        closed=(d - (T - M)) / 2,
        points=((T - d, (1 - (M - T) / d) / 2), (T + d, (1 + (M - T) / d) / 2)),
        off=(X - T + d) ** 2 / (4 * d),
        on=(X - T - d) ** 2 / (4 * d),
    )


def prove_excess_above() -> Excess:
    """(b - t) s / (s + (b - m)^2) where 2 (b - m) (b - t) <= s + (b - m)^2: as below, from b."""
    c = (S + (B - M) ** 2) / (B - M)
    y, gap = B - X, B - T
    return Excess(
        quadratic=gap * (1 - y / c) ** 2,
        closed=gap * S / (S + (B - M) ** 2),
        points=((B - c, (B - M) / c), (B, 1 - (B - M) / c)),
        off=gap * (1 - y / c) ** 2,
        on=y * (1 - 2 * gap / c) + gap * y**2 / c**2,
    )
