"""One SymPy derivation per theorem, each from the definition to the closed form it returns.

The numeric functions are tested against these formulas, so that no formula is believed because it was typed
twice. A step that does not hold raises ProofFailed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import cast

import sympy as sp

from theory.norms import dual
from theory.types import check_p


class ProofFailed(ArithmeticError):
    """A step of a derivation did not simplify to what it claims."""


@dataclass(frozen=True)
class Theorem:
    """A derived closed form: ``formula`` in the symbols ``variables``, to be called with numbers."""

    formula: sp.Expr
    variables: tuple[sp.Symbol, ...]

    def __call__(self, *values: float) -> float:
        """The formula at these values of ``variables``, in float64 precision."""
        return float(self.formula.subs(dict(zip(self.variables, values, strict=True))).evalf())


def _require(claim: str, *, zero: sp.Expr) -> None:
    if sp.simplify(zero) != 0:
        raise ProofFailed(f"{claim}: {zero} is not 0")


def _require_nonnegative(claim: str, value: sp.Expr) -> None:
    if not value.is_nonnegative:
        raise ProofFailed(f"{claim}: {value} is not known to be >= 0")


def _vector(name: str, n: int, **assumptions: bool) -> tuple[sp.Symbol, ...]:
    return tuple(sp.Symbol(f"{name}{i}", **(assumptions or {"real": True})) for i in range(n))


def _dot(a: Sequence[sp.Expr], b: Sequence[sp.Expr]) -> sp.Expr:
    return sp.Add(*(u * v for u, v in zip(a, b, strict=True)))


def _minus(a: Sequence[sp.Expr], b: Sequence[sp.Expr]) -> tuple[sp.Expr, ...]:
    return tuple(u - v for u, v in zip(a, b, strict=True))


def _norm(v: Sequence[sp.Expr], p: float) -> sp.Expr:
    if p == math.inf:
        return sp.Max(*(sp.Abs(e) for e in v))
    return sp.Add(*(sp.Abs(e) for e in v)) if p == 1 else sp.sqrt(_dot(v, v))


def prove_linear_radius(p: float, n: int) -> Theorem:
    """Linear radius, identity: min ||d||_p subject to w.(x + d) + b = 0, where w.x + b > 0.

    p = 2: the stationary point of the Lagrangian (the problem is convex). p = inf: min t with |d_i| <= t is a
    linear program; a primal and a dual point of equal value, in every orthant of w, prove each other.
    Variables: x (n), w (n), b.
    """
    x, w, b = _vector("x", n), _vector("w", n), sp.Symbol("b", real=True)
    score = _dot(w, x) + b
    if check_p(p) == 2:
        d, multiplier = _vector("d", n), sp.Symbol("l", real=True)
        lagrangian = _dot(d, d) + multiplier * (score + _dot(w, d))
        (point,) = sp.solve([sp.diff(lagrangian, v) for v in (*d, multiplier)], [*d, multiplier], dict=True)
        squared = sp.factor(_dot(d, d).subs(point))
        formula = score / sp.sqrt(_dot(w, w))
        _require("squared length of the stationary point", zero=squared - formula**2)
        return Theorem(formula, (*x, *w, b))
    f, t, price = sp.symbols("f t u", positive=True)
    size = _vector("a", n, positive=True)
    (primal,) = sp.solve(f - t * sp.Add(*size), t)
    (dual_price,) = sp.solve(price * sp.Add(*size) - 1, price)
    for signs in product((-1, 1), repeat=n):
        weight = [s * a for s, a in zip(signs, size, strict=True)]
        corner = [-s * primal for s in signs]
        _require("the corner is on the boundary", zero=f + _dot(weight, corner))
        # Dual: max u f subject to ||u w||_1 <= 1, for u f = -u w.d <= ||u w||_1 t at every feasible (d, t).
        _require("dual feasible", zero=_norm([dual_price * v for v in weight], 1.0) - 1)
    _require("equal primal and dual values", zero=primal - dual_price * f)
    formula = primal.subs({f: score, **{a: sp.Abs(v) for a, v in zip(size, w, strict=True)}})
    return Theorem(formula, (*x, *w, b))


def prove_binary_mean_radius(p: float, n: int) -> Theorem:
    """Binary mean radius, identity: averaging the linear radius over a sample needs only the class means.

    From a sample with two correct inputs per class, of unequal probabilities.
    Variables: probability of a correct input of class -1 and +1, mu_- (n), mu_+ (n), w (n), b.
    """
    radius = prove_linear_radius(p, n)
    w, b = _vector("w", n), sp.Symbol("b", real=True)
    mass, means, total, closed = sp.symbols("c0 c1", positive=True), [], sp.S(0), sp.S(0)
    for k, sign in enumerate((-1, 1)):
        first, second = _vector(f"y{k}_", n), _vector(f"z{k}_", n)
        share = sp.Symbol(f"s{k}", positive=True)
        mean = [share * u + (1 - share) * v for u, v in zip(first, second, strict=True)]
        signed = [sign * v for v in (*w, b)]
        for point, weight in ((first, share), (second, 1 - share)):
            total += mass[k] * weight * _substitute(radius, (*point, *signed))
        symbols = _vector(f"m{k}_", n)
        term = mass[k] * _substitute(radius, (*symbols, *signed))
        closed += term
        total -= term.subs(dict(zip(symbols, mean, strict=True)))
        means += symbols
    _require("mean of the radii equals the formula at the means", zero=sp.expand(total))
    return Theorem(closed, (*mass, *means, *w, b))


def _substitute(theorem: Theorem, values: Sequence[sp.Expr]) -> sp.Expr:
    return cast(sp.Expr, theorem.formula.xreplace(dict(zip(theorem.variables, values, strict=True))))


def prove_markov() -> Theorem:
    """Markov form of Theorem 3.1, bound: P(rho > eps) <= sum_k c_k min(1, m_k / eps).

    c_k is the probability of a correct input of class k and m_k its mean radius. Within a class
    1[rho > eps] <= rho / eps on both sides of eps; mass m/(eps + h) at eps + h, the rest at 0, shows that the
    bound is approached as h -> 0. Variables: c_-, c_+, m_-, m_+, eps.
    """
    eps, h, mean = sp.symbols("eps h m", positive=True)
    radius = sp.Symbol("r", nonnegative=True)
    _require_nonnegative("above eps", sp.simplify((eps + h) / eps - 1))
    _require_nonnegative("up to eps", radius / eps - 0)
    mass_beyond = mean / (eps + h)
    _require("two points have the mean", zero=mass_beyond * (eps + h) - mean)
    _require("they approach the bound", zero=sp.limit(mass_beyond, h, 0) - mean / eps)
    mass, means = sp.symbols("c0 c1", nonnegative=True), sp.symbols("m0 m1", nonnegative=True)
    bound = sp.Add(*(c * sp.Min(1, m / eps) for c, m in zip(mass, means, strict=True)))
    return Theorem(bound, (*mass, *means, eps))


def prove_hoelder(p: float, n: int) -> Theorem:
    """Hölder's inequality with its equality case, bound: w.v / ||w||_q <= ||v||_p.

    p = 2 by Lagrange's identity, equality at w = v. p = inf by max_i |v_i| - (sign w_i) v_i >= 0 for each i,
    equality at the w with one non-zero, at the largest entry of v. Variables: v (n).
    """
    v, w = _vector("v", n), _vector("w", n)
    if check_p(p) == 2:
        pairs = combinations(range(n), 2)
        squares = sp.Add(*((w[i] * v[j] - w[j] * v[i]) ** 2 for i, j in pairs))
        _require("Lagrange", zero=sp.expand(_dot(w, w) * _dot(v, v) - _dot(w, v) ** 2 - squares))
        _require_nonnegative("sum of squares", squares)
        attained = (_dot(w, v) / _norm(w, 2.0)).subs(dict(zip(w, v, strict=True)))
        _require("equality", zero=attained - _norm(v, 2.0))
        return Theorem(_norm(v, 2.0), v)
    largest, entry = sp.symbols("M e", nonnegative=True)  # |v_i| = e_i, and M = e_i + a slack h_i
    slack, size = _vector("h", n, nonnegative=True), _vector("a", n, nonnegative=True)
    for signs in product((-1, 1), repeat=n):
        entries = [s * (largest - h) for s, h in zip(signs, slack, strict=True)]
        weights = [s * a for s, a in zip(signs, size, strict=True)]
        gap = sp.expand(largest * sp.Add(*size) - _dot(weights, entries))
        _require_nonnegative("sign-aligned gap", gap)  # other signs of w only lower w.v
    unit = [sp.S(1)] + [sp.S(0)] * (n - 1)
    single = [entry * u for u in unit]
    _require("equality", zero=_dot(unit, single) / _norm(unit, 1.0) - _norm(single, math.inf))
    return Theorem(_norm(v, math.inf), v)


def prove_hoelder_ceiling(p: float, n: int) -> Theorem:
    """Hölder ceiling for any priors, bound: the largest binary mean radius over w and all allowed biases.

    The mean radius is linear in b, and b may vary while w.mu_- + b <= 0 <= w.mu_+ + b; both ends give a
    class mass times w.(mu_+ - mu_-) / ||w||_q. Variables: c_-, c_+, mu_- (n), mu_+ (n).
    """
    mean_radius = prove_binary_mean_radius(p, n)
    mass, (minus, plus) = mean_radius.variables[:2], (_vector("m0_", n), _vector("m1_", n))
    w, b = _vector("w", n), sp.Symbol("b", real=True)
    difference = _minus(plus, minus)
    shared = _dot(w, difference) / _norm(w, dual(p))
    _require("linear in the bias", zero=sp.diff(mean_radius.formula, b, 2))
    for end, weight in ((minus, mass[1]), (plus, mass[0])):
        value = mean_radius.formula.subs(b, -_dot(w, end))
        _require("value at the end of the bias range", zero=sp.expand(value - weight * shared))
    norm = _substitute(prove_hoelder(p, n), difference)
    return Theorem(sp.Max(*mass) * norm, (*mass, *minus, *plus))


def prove_norm_interpolation(n: int) -> Theorem:
    """Norm interpolation, bound: ||w||_2 <= ||w||_1 <= sqrt(n) ||w||_2 for a weight with n non-zeros.

    Both gaps are sums of products of absolute values. Returns the ratio sqrt(n), attained at equal entries.
    """
    size = _vector("a", n, nonnegative=True)
    one, two = sp.Add(*size) ** 2, _dot(size, size)
    _require_nonnegative("upper radius", sp.expand(one - two))
    squares = sp.Add(*((u - v) ** 2 for u, v in combinations(size, 2)))
    _require("lower radius", zero=sp.expand(n * two - one - squares))
    return Theorem(sp.sqrt(n), ())


def prove_jensen_pair(p: float, n: int) -> Theorem:
    """Pairing of Jensen terms, bound: two means' distances to their boundary add up to <= ||mu_k - mu_j||_p.

    The biases cancel, and Hölder's inequality applies to w_k - w_j. Variables: mu_k (n), mu_j (n).
    """
    radius = prove_linear_radius(p, n)
    first, second, w, b = _vector("f", n), _vector("s", n), _vector("w", n), sp.Symbol("b", real=True)
    forth = _substitute(radius, (*first, *w, b))
    back = _substitute(radius, (*second, *(-v for v in w), -b))
    difference = _minus(first, second)
    _require("biases cancel", zero=sp.expand(forth + back - _dot(w, difference) / _norm(w, dual(p))))
    return Theorem(_substitute(prove_hoelder(p, n), difference), (*first, *second))


def prove_average_boundary(p: float, classes: int, n: int) -> Theorem:
    """Theorem 3.2, bound: a radius is at most the distance to where class 0 scores only the average.

    With margins m_j = (r + h_j) g_j, h_j >= 0 and g_j = ||w_0 - w_j||_q, the radius r is at most
    sum m_j / sum g_j; the margins add up to c times the margin over the average, and the triangle inequality
    gives sum g_j >= c ||w_0 - wbar||_q. Variables: x (n), then w_k (n) and b_k for each class.
    """
    gap, excess = _vector("g", classes - 1, positive=True), _vector("h", classes - 1, nonnegative=True)
    radius = sp.Symbol("r", nonnegative=True)
    mediant = _dot(gap, [radius + h for h in excess]) / sp.Add(*gap) - radius
    _require_nonnegative("mediant", sp.simplify(mediant))
    x = _vector("x", n)
    weights, biases = [_vector(f"w{k}_", n) for k in range(classes)], _vector("b", classes)
    scores = [_dot(w, x) + b for w, b in zip(weights, biases, strict=True)]
    average = [sp.Add(*column) / classes for column in zip(*weights, strict=True)]
    offset = _minus(weights[0], average)
    margin = _dot(offset, x) + biases[0] - sp.Add(*biases) / classes
    _require("margins add up", zero=sp.expand(classes * margin - sp.Add(*(scores[0] - s for s in scores))))
    together = [sp.Add(*(weights[0][i] - w[i] for w in weights)) for i in range(n)]
    for whole, mean in zip(together, offset, strict=True):
        _require("gaps add up", zero=sp.expand(whole - classes * mean))
    variables = [v for w, b in zip(weights, biases, strict=True) for v in (*w, b)]
    return Theorem(margin / _norm(offset, dual(p)), (*x, *variables))


def prove_triangle_ceiling() -> Theorem:
    """Universal ceiling of three points of three labels, identity: a sixth of the sum of their distances.

    The radii with r_i + r_j = D_ij for all pairs are feasible by the triangle inequality, and half of each
    pair covers every point once, which proves that no larger sum is feasible. Variables: D_12, D_13, D_23.
    """
    radii, distances = _vector("r", 3, nonnegative=True), _vector("D", 3, nonnegative=True)
    pairs = list(combinations(range(3), 2))
    equations = [radii[i] + radii[j] - d for (i, j), d in zip(pairs, distances, strict=True)]
    (point,) = sp.solve(equations, radii, dict=True)
    slack = sp.Symbol("t", nonnegative=True)  # what the triangle inequality leaves
    for r, (d, e, opposite) in zip(radii, [(0, 1, 2), (0, 2, 1), (1, 2, 0)], strict=True):
        longest = distances[d] + distances[e] - slack
        _require_nonnegative("feasible", sp.expand(point[r].subs(distances[opposite], longest)))
    cover = sp.Add(*distances) / 2
    _require("the cover proves it", zero=sp.expand(sp.Add(*(point[r] for r in radii)) - cover))
    return Theorem(cover / 3, distances)
