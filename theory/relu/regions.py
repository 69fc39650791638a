"""Parts of a ball on which chosen hidden units keep a chosen sign, and how far away they are.

A region is the set of the points x + d, ||d||_p <= radius, at which some hidden units are on (z >= 0) and
some are off (z <= 0). Lines below and above each pre-activation turn it into linear inequalities that all
its points satisfy, exactly so once the sign of every unit is known. Branch and bound over regions then rests
on one inequality, weak duality: if every point of a region satisfies G d >= h, then for every lambda >= 0

    ||d||_p >= lambda.h / ||G' lambda||_q.

The multipliers come from a solver and may be as wrong as they like; :func:`separation` evaluates the quotient
with outward rounding, so no solver tolerance enters a bound.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array
from scipy.optimize import linprog, nnls

from theory.norms import norm
from theory.relu.lipschitz import EPS, TINY, outward
from theory.relu.margins import Bounds, interval_step, linear_below, upper_norm
from theory.types import ReLUNetwork

# A point counts as a solution of the scaled inequalities G d >= h, whose rows have unit norm, within this.
# It decides only which multipliers are tried, never what they prove.
FEASIBLE = 1e-9
LARGEST = float(np.finfo(np.float64).max)


@dataclass(frozen=True)
class Node:
    """One region, bounded already: signs and bounds of each hidden layer (h,), and where to split it."""

    signs: list[np.ndarray]
    bounds: Bounds
    split: tuple[int, int]  # layer, unit


@dataclass(frozen=True)
class Regions:
    """m regions of one ball: signs of the hidden units and what follows from them.

    signs: per hidden layer (m, h), 1 on, -1 off, 0 free; bounds: per hidden layer pre-activation bounds valid
    on the region; lines: per hidden layer slopes (m, 2h, n) and constants (m, 2h) of lines below z, then
    below -z; empty (m,): proven to hold no point.
    """

    signs: list[np.ndarray]
    bounds: Bounds
    lines: list[tuple[np.ndarray, np.ndarray]]
    empty: Bool[Array, " m"]

    def free(self) -> list[Bool[Array, "m _"]]:
        """Units that no sign and no bound fixes, per hidden layer."""
        return [
            (sign == 0) & (lower < 0) & (upper > 0)
            for sign, (lower, upper) in zip(self.signs, self.bounds, strict=True)
        ]

    def inequalities(
        self, e: int, slopes: Float[Array, "s n"], constants: Float[Array, " s"]
    ) -> tuple[Float[Array, "r n"], Float[Array, " r"]]:
        """Rows with slope . d + constant <= 0 on region ``e``: those given, and one per chosen sign."""
        rows, shifts = [slopes], [constants]
        for sign, (slope, constant) in zip(self.signs, self.lines, strict=True):
            on, off = np.flatnonzero(sign[e] > 0), np.flatnonzero(sign[e] < 0)
            chosen = np.concatenate([on + sign.shape[1], off])  # below -z where z >= 0, below z where z <= 0
            rows.append(slope[e, chosen])
            shifts.append(constant[e, chosen])
        return np.concatenate(rows), np.concatenate(shifts)

    def node(self, e: int, split: tuple[int, int]) -> Node:
        """Region ``e``, to be split."""
        return Node([s[e] for s in self.signs], [(low[e], high[e]) for low, high in self.bounds], split)

    def splits(self, scores: list[Float[Array, "m _"]]) -> list[tuple[int, int] | None]:
        """The free unit (layer, unit) of the highest score in every region, None where no unit is free."""
        found: list[tuple[int, int] | None] = [None] * len(self.empty)
        best = np.full(len(self.empty), -math.inf)
        for layer, (score, free) in enumerate(zip(scores, self.free(), strict=True)):
            score = np.where(free, np.nan_to_num(score), -math.inf)
            units, highest = score.argmax(axis=1), score.max(axis=1)
            for e in np.flatnonzero(highest > best):
                found[e] = (layer, int(units[e]))
            best = np.maximum(best, highest)
        return found


def enclose(
    net: ReLUNetwork,
    x: Float[Array, "m n"],
    radius: Float[Array, " m"],
    signs: list[np.ndarray],
    outer: Bounds,
    *,
    q: float,
) -> Regions:
    """The region with these signs in each of m balls, a bound: CROWN and intervals, layer by layer.

    ``outer`` holds bounds known already, say of larger regions; the result is never looser.
    """
    bounds: Bounds = []
    lines = []
    empty = np.zeros(len(x), dtype=bool)
    with np.errstate(over="ignore", invalid="ignore"):
        for layer, (sign, (least, most)) in enumerate(zip(signs, outer, strict=True)):
            weight, bias = net.weights[layer], net.biases[layer]
            rows, offsets = np.concatenate([weight, -weight])[None], np.concatenate([bias, -bias])[None]
            slopes, constants = linear_below(net, rows, offsets, bounds, x, radius, q=q)
            ends = constants - radius[:, None] * upper_norm(slopes, q=q)
            lower = np.fmax(least, ends[:, : len(bias)])
            upper = np.fmin(most, -ends[:, len(bias) :])
            if bounds:
                below, above = interval_step(weight, bias, *bounds[-1])
                lower, upper = np.fmax(lower, below), np.fmin(upper, above)
            lower = np.where(sign > 0, np.maximum(lower, 0.0), lower)
            upper = np.where(sign < 0, np.minimum(upper, 0.0), upper)
            empty |= (lower > upper).any(axis=1)
            lower = np.minimum(lower, upper)  # of an empty region, whose bounds nobody reads
            bounds.append((lower, upper))
            lines.append((slopes, constants))
    return Regions(signs, bounds, lines, empty)


def whole_space(net: ReLUNetwork, regions: int) -> tuple[list[np.ndarray], Bounds]:
    """No sign chosen and nothing known, a bound: the start of a branch and bound with ``regions`` roots."""
    shapes = [(regions, len(bias)) for bias in net.biases[:-1]]
    unknown = [(np.full(shape, -math.inf), np.full(shape, math.inf)) for shape in shapes]
    return [np.zeros(shape, dtype=np.int8) for shape in shapes], unknown


def halves(nodes: list[Node], related: list[Int[Array, "_ _"]]) -> tuple[list[np.ndarray], Bounds]:
    """Signs and inherited bounds of both halves of every node, an identity: their union is the node.

    ``related`` holds the :func:`twins` of each hidden layer, whose signs follow from that of the unit split
    on.
    """
    signs, bounds = [], []
    for layer, twin in enumerate(related):
        sign = np.repeat([node.signs[layer] for node in nodes], 2, axis=0)
        for e, node in enumerate(nodes):
            if node.split[0] == layer:
                same = twin[node.split[1]]
                sign[2 * e] = np.where(same != 0, same, sign[2 * e])
                sign[2 * e + 1] = np.where(same != 0, -same, sign[2 * e + 1])
        signs.append(sign)
        lower, upper = (np.repeat([node.bounds[layer][i] for node in nodes], 2, axis=0) for i in (0, 1))
        bounds.append((lower, upper))
    return signs, bounds


def twins(net: ReLUNetwork) -> list[Int[Array, "_ _"]]:
    """Units of each hidden layer whose pre-activations are multiples of each other, an identity: signs, or 0.

    Entry (i, j) is the sign of c if z_j = c z_i for all inputs, in exact arithmetic, 0 if there is no such
    c, and 1 at i = j. Two twins never need a split each, and would leave regions without interior if they
    got it.
    """
    found = []
    for weight, bias in zip(net.weights[:-1], net.biases[:-1], strict=True):
        rows = np.concatenate([weight, bias[:, None]], axis=1)
        direction = [_direction(row) for row in rows]
        table = np.eye(len(rows), dtype=np.int8)
        for i, j in itertools.permutations(range(len(rows)), 2):
            if direction[i][1:] == direction[j][1:]:
                table[i, j] = direction[i][0] * direction[j][0]
        found.append(table)
    return found


def _direction(row: Float[Array, " n"]) -> tuple[int, *tuple[Fraction, ...]]:
    """Sign of the first non-zero entry, then the row divided by that entry; (0,) for a zero row."""
    support = np.flatnonzero(row)
    if not len(support):
        return (0,)
    pivot = Fraction(float(row[support[0]]))
    return (1 if pivot > 0 else -1, *(Fraction(float(value)) / pivot for value in row))


def separation(
    slopes: Float[Array, "r n"], constants: Float[Array, " r"], multipliers: Float[Array, " r"], *, q: float
) -> float:
    """l_p distance from 0 to {d : slopes . d + constants <= 0}, a bound from below for multipliers >= 0.

    0 where the multipliers prove nothing. An absolute allowance for underflow makes it useful only for rows
    of a size near 1.
    """
    terms, n = slopes.shape
    total = 1.0 + float(multipliers.sum())
    error = outward((terms + 4) * (EPS * (multipliers @ np.abs(slopes)) + TINY * total), roundings=terms)
    pull = outward(np.asarray(norm(np.abs(multipliers @ slopes) + error, p=q)), roundings=n + 4)
    doubt = (terms + 4) * (EPS * (multipliers @ np.abs(constants)) + TINY * total)
    push = multipliers @ constants - outward(np.asarray(doubt), roundings=terms)
    if not (push > 0 and np.isfinite(push) and np.isfinite(pull)):
        return 0.0
    return min(math.nextafter(float(push / pull), 0.0), LARGEST)


def nearest(
    slopes: Float[Array, "r n"], constants: Float[Array, " r"], *, p: float, q: float, radius: float
) -> tuple[float, Float[Array, " n"]]:
    """l_p distance from 0 to {d : slopes . d + constants <= 0}, a bound from below, and a d near it.

    The better of the single inequalities and of multipliers found by a solver. For p = 2 the solver is
    non-negative least squares (Lawson and Hanson 1974, chapter 23, least distance programming); for p = inf
    the same multipliers are tried first and a linear program only if they leave the distance within
    ``radius``. Rows are scaled to unit norm and d to the radius, so sizes of the weights do not matter to
    the solver.
    """
    still = np.zeros(slopes.shape[1])
    with np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore"):
        length = norm(slopes, p=q)
        if ((constants > 0) & (length == 0)).any():
            return math.inf, still
        shift = np.frexp(length)[1]
        slopes, constants = np.ldexp(slopes, -shift[:, None]), np.ldexp(constants, -shift)
        length = np.ldexp(length, -shift)
        gap = constants / length / radius
        # A row that every d of the ball satisfies says nothing, nor does one that overflowed.
        useful = (length > 0) & np.isfinite(length) & np.isfinite(gap) & (gap > -1 - FEASIBLE)
        slopes, constants, length, gap = (a[useful] for a in (slopes, constants, length, gap))
    if not (gap > 0).any():
        return 0.0, still
    unit = slopes / length[:, None]
    best = separation(slopes, constants, np.eye(len(gap))[gap.argmax()], q=q)
    if best > radius:
        return best, still
    multipliers, step = _least_distance(unit, gap)
    best = max(best, separation(slopes, constants, multipliers / length, q=q))
    if p == math.inf and best <= radius:
        multipliers, step = _least_box(unit, gap, otherwise=step)
        best = max(best, separation(slopes, constants, multipliers / length, q=q))
    return best, radius * step


def _least_distance(
    unit: Float[Array, "r n"], gap: Float[Array, " r"]
) -> tuple[Float[Array, " r"], Float[Array, " n"]]:
    """Multipliers and minimiser, an estimate, of min ||d||_2 subject to unit . d + gap <= 0."""
    r, n = unit.shape
    system = np.concatenate([-unit.T, gap[None]])
    try:
        multipliers, residual = nnls(system, np.eye(n + 1)[n], maxiter=30 * (r + 3))
    except RuntimeError:  # the iteration limit: prove nothing
        return np.zeros(r), np.zeros(n)
    error = system @ multipliers
    error[n] -= 1.0
    if residual <= FEASIBLE or error[n] >= 0:  # no solution: the multipliers say so
        return multipliers, np.zeros(n)
    return multipliers, -error[:n] / error[n]


def _least_box(
    unit: Float[Array, "r n"], gap: Float[Array, " r"], *, otherwise: Float[Array, " n"]
) -> tuple[Float[Array, " r"], Float[Array, " n"]]:
    """Multipliers and minimiser, an estimate, of min ||d||_inf subject to unit . d + gap <= 0."""
    r, n = unit.shape
    moved = np.flatnonzero((unit != 0).any(axis=0))  # nothing else need move
    k = len(moved)
    cost = np.zeros(k + 1)
    cost[k] = 1.0
    box = np.concatenate([np.eye(k), -np.eye(k)])
    rows = np.concatenate(
        [
            np.concatenate([unit[:, moved], np.zeros((r, 1))], axis=1),
            np.concatenate([box, -np.ones((2 * k, 1))], axis=1),
        ]
    )
    right = np.concatenate([-gap, np.zeros(2 * k)])
    found = linprog(cost, A_ub=rows, b_ub=right, bounds=(None, None), method="highs")
    if found.status != 0:
        return np.zeros(r), otherwise
    step = np.zeros(n)
    step[moved] = found.x[:k]
    return np.maximum(-found.ineqlin.marginals[:r], 0.0), step
