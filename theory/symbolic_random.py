"""SymPy derivations behind Gaussian classes, magnitude pruning and Bernoulli masks."""

from __future__ import annotations

import math
from itertools import product
from typing import Literal

import sympy as sp

from theory.symbolic import ProofFailed, Theorem
from theory.types import check_p


def prove_mean_positive_part() -> Theorem:
    """Gaussian classes, identity: E[max(N(a, s^2), 0)], by integrating the density. Variables: a, s."""
    a, s = sp.Symbol("a", real=True), sp.Symbol("s", positive=True)
    t = sp.Symbol("t", real=True)
    density = sp.exp(-((t - a) ** 2) / (2 * s**2)) / (s * sp.sqrt(2 * sp.pi))
    return Theorem(sp.simplify(sp.integrate(t * density, (t, 0, sp.oo))), (a, s))


def prove_pruning_limit(p: float, weights: Literal["gaussian", "laplace"]) -> tuple[Theorem, Theorem]:
    """Magnitude pruning, identity as n -> inf: sparsity and mean radius as functions of the threshold tau.

    By the law of large numbers over i.i.d. entries, w.m / n and the norms of the kept entries are moments
    over |z| > tau: R_p / sqrt(n) = E[z^2] / sqrt(E[z^2]) for p = 2 and R_p = E[z^2] / E|z| for p = inf.
    Returns (alpha, radius), both in the variable tau.
    """
    tau, z = sp.symbols("tau z", positive=True)
    density = sp.exp(-(z**2) / 2) / sp.sqrt(2 * sp.pi) if weights == "gaussian" else sp.exp(-z) / 2
    kept, first, second = (sp.simplify(2 * sp.integrate(z**k * density, (z, tau, sp.oo))) for k in range(3))
    radius = second / (sp.sqrt(second) if check_p(p) == 2 else first)
    return Theorem(1 - kept, (tau,)), Theorem(radius, (tau,))


def prove_mask_integral(p: float, n: int = 2) -> Theorem:
    """Bernoulli masks, identity: the product integral equals the sum over all 2^n masks.

    The integrand is a sum of terms C u^(s-1) exp(-u A); each integrates to C Gamma(s) / A^s, itself proved
    by integration. Variables: c (n), a (n), alpha; returns the sum over masks.
    """
    power = sp.S(1) if check_p(p) == math.inf else sp.Rational(1, 2)
    u, total = sp.symbols("u A", positive=True)
    alpha = sp.Symbol("alpha", positive=True)
    c = tuple(sp.Symbol(f"c{i}", real=True) for i in range(n))
    a = tuple(sp.Symbol(f"a{i}", positive=True) for i in range(n))
    gamma = sp.integrate(u ** (power - 1) * sp.exp(-u * total), (u, 0, sp.oo)) / sp.gamma(power)
    if sp.simplify(gamma - total**-power) != 0:
        raise ProofFailed(f"Gamma integral: {gamma}")
    decay = [sp.Symbol(f"e{i}", positive=True) for i in range(n)]  # exp(-u a_i)
    survives = [alpha + (1 - alpha) * e for e in decay]
    integrand = sp.expand(
        sum(
            c[i] * (1 - alpha) * decay[i] * sp.Mul(*(survives[j] for j in range(n) if j != i))
            for i in range(n)
        )
    )
    polynomial = sp.Poly(integrand, *decay)
    integral = sp.Add(
        *(
            coefficient * sp.Add(*(k * v for k, v in zip(powers, a, strict=True))) ** -power
            for powers, coefficient in polynomial.terms()
        )
    )
    masks = sp.S(0)
    for mask in product((0, 1), repeat=n):
        if any(mask):
            chance = sp.Mul(*(1 - alpha if m else alpha for m in mask))
            value = sp.Add(*(m * v for m, v in zip(mask, c, strict=True)))
            masks += chance * value * sp.Add(*(m * v for m, v in zip(mask, a, strict=True))) ** -power
    if sp.expand(integral - masks) != 0:
        raise ProofFailed("the integral is not the sum over masks")
    return Theorem(masks, (*c, *a, alpha))


def prove_laplace_inversion() -> Theorem:
    """Gaussian classes under masks, identity: 1/(2 pi i) int e^(z t) / z^2 dz over Re z > 0 is max(t, 0).

    For t > 0 the contour closes to the left around the only pole, whose residue is the value; for t <= 0 it
    closes to the right around none. Conversely, max(t, 0) has the Laplace transform 1/z^2. With the moment
    generating function of N(a, v) in place of e^(z t), E[max(N(a, v), 0)] has the transform that the double
    integral uses. Also, A / A^(s+1) = A^-s by the Gamma integral. Variable: t > 0.
    """
    z, t, a, v, u, x = sp.symbols("z t a v u x", positive=True)
    residue = sp.residue(sp.exp(z * t) / z**2, z, 0)
    if sp.simplify(sp.integrate(t * sp.exp(-z * t), (t, 0, sp.oo)) - z**-2) != 0:
        raise ProofFailed("the Laplace transform of max(t, 0)")
    density = sp.exp(-((x - a) ** 2) / (2 * v)) / sp.sqrt(2 * sp.pi * v)
    generating = sp.integrate(sp.exp(z * x) * density, (x, -sp.oo, sp.oo))
    if sp.simplify(generating - sp.exp(z * a + z**2 * v / 2)) != 0:
        raise ProofFailed(f"moment generating function: {generating}")
    for power in (sp.S(1), sp.Rational(1, 2)):
        gamma = sp.integrate(u**power * a * sp.exp(-u * a), (u, 0, sp.oo)) / sp.gamma(power + 1)
        if sp.simplify(gamma - a**-power) != 0:
            raise ProofFailed(f"Gamma integral: {gamma}")
    return Theorem(residue, (t,))
