"""The exact local Lipschitz constant of small ReLU networks, by branch and bound over activation patterns.

A ReLU network is linear on each of finitely many regions, so the Lipschitz constant of g_y - g_k on a ball
is the largest dual norm of its gradient over the regions that the ball meets. Regions are split on one unit
at a time; one that provably misses the ball is dropped, the others are bounded by their interval Jacobian,
which is the gradient itself once the sign of every unit is known.
"""

from __future__ import annotations

import heapq
import itertools
import math
import time
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from theory.norms import dual, norm
from theory.relu.exact import BATCH, check_effort, distances
from theory.relu.lipschitz import EPS, TINY, gradient_norms
from theory.relu.margins import check_balls, gradient_bounds, local_lipschitz
from theory.relu.rational import gradient_norm
from theory.relu.regions import Node, Regions, enclose, halves, nearest, twins, whole_space
from theory.types import ReLUNetwork, check_examples, check_p

SAMPLES = 64
# Depths below the surface of a region, in units of the radius, at which a point inside it is looked for.
DEPTHS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 3e-8, 1e-8, 1e-9, 1e-10)


@dataclass(frozen=True)
class ExactLipschitz:
    """Two-sided bounds of the Lipschitz constants of g_y - g_k in l_p on a ball, (m, c); 0 at k = y.

    lower <= L_k <= upper, whatever the status. status: "optimal" (they agree to the gap asked for), "time
    limit", or "stalled" (a region remains that meets the ball, if at all, in too little for a point inside
    it to be found, such as the single point where three kinks cross). regions: regions bounded.
    """

    lower: Float[Array, "m c"]
    upper: Float[Array, "m c"]
    status: tuple[str, ...]
    regions: Int[Array, " m"]


def exact_local_lipschitz(
    net: ReLUNetwork,
    x: Float[Array, "m n"],
    y: Int[Array, " m"],
    *,
    p: float,
    radius: Float[Array, " m"],
    gap: float = 1e-6,
    time_limit: float = 60.0,
) -> ExactLipschitz:
    """Lipschitz constants of g_y - g_k in l_p on the ball, as a bound from below and one from above.

    They agree to the relative ``gap`` unless the status says otherwise. Proven in exact arithmetic:
    ``lower`` is the gradient norm, in fractions, at a point of the ball off every kink; ``upper`` is an
    interval Jacobian, rounded outward, over regions that cover the ball. ``time_limit`` is in seconds per
    example.

    Raises: InvalidInput for bad x, y or p, a radius that is negative, not finite or of another length, a gap
      outside (0, 1), or a time_limit that is negative or NaN.
    Reference: Jordan and Dimakis 2020 (the quantity, as a MILP); the paper, section 3.2.
    """
    check_p(p)
    x, labels = check_examples(net, x, y)
    x, radius = check_balls(net, x, radius)
    check_effort(gap, time_limit)
    lower, upper = np.zeros((len(x), net.classes)), np.zeros((len(x), net.classes))
    statuses, regions = [], np.zeros(len(x), dtype=np.int64)
    for e, label in enumerate(labels):
        steepest = _Steepest(net, x[e], int(label), p, float(radius[e]))
        deadline = time.monotonic() + time_limit
        upper[e], regions[e], complete = _branch(steepest, gap=gap, deadline=deadline)
        lower[e] = steepest.lower
        solved = (upper[e] <= lower[e] * (1 + gap)).all()
        statuses.append("optimal" if solved else "stalled" if complete else "time limit")
    return ExactLipschitz(lower, upper, tuple(statuses), regions)


class _Steepest:
    """The largest proven gradient norm of g_y - g_k at points of one ball, for every k."""

    def __init__(self, net: ReLUNetwork, x: Float[Array, " n"], label: int, p: float, radius: float) -> None:
        self.net, self.x, self.label, self.p, self.radius = net, x, label, p, radius
        self.lower = np.zeros(net.classes)
        self.pairs = np.array([(label, k) for k in range(net.classes)])
        rng = np.random.default_rng(0)
        steps = rng.normal(size=(SAMPLES, len(x)))
        steps *= (radius * rng.random(SAMPLES) ** (1 / len(x)) / norm(steps, p=p))[:, None]
        self.offer(np.concatenate([np.zeros((1, len(x))), steps]))

    def offer(self, steps: Float[Array, "s n"]) -> None:
        """Raise ``lower`` by the gradients at x + steps, where these lie in the ball and off every kink."""
        points = self.x + steps
        points = points[distances(points, self.x, p=self.p) <= self.radius]
        if not len(points):
            return
        found = gradient_norms(self.net, points, self.pairs, p=self.p)
        for k in range(self.net.classes):
            # Fractions only for what would raise the bound, from the steepest down to the first one proven.
            for e in np.argsort(-found[:, k])[:3].tolist():
                if k == self.label or found[e, k] <= self.lower[k] * (1 + 4 * EPS):
                    break
                proven = gradient_norm(self.net, points[e], self.label, k, q=dual(self.p))
                self.lower[k] = max(self.lower[k], proven)
                if proven:
                    break


def _branch(best: _Steepest, *, gap: float, deadline: float) -> tuple[Float[Array, " c"], int, bool]:
    """Upper bounds of the constants, number of regions bounded, and whether the search was completed."""
    net, q = best.net, dual(best.p)
    rows = net.weights[-1][best.label] - net.weights[-1]
    related = twins(net)
    signs, bounds = whole_space(net, 1)
    inherited = local_lipschitz(
        net, best.x[None], np.array([best.label]), p=best.p, radius=np.array([best.radius])
    )
    closed = np.zeros(net.classes)  # the largest bounds of regions that need no further split
    heap: list[tuple[float, int, np.ndarray, Node]] = []
    order, regions = itertools.count(), 0
    while True:
        centres, radii = np.tile(best.x, (len(inherited), 1)), np.full(len(inherited), best.radius)
        region = enclose(net, centres, radii, signs, bounds, q=q)
        regions += len(inherited)
        tall = np.broadcast_to(rows, (len(inherited), *rows.shape))
        limits = np.minimum(gradient_bounds(net, tall, region.bounds, q=q), inherited)
        splits = _splits(net, region, np.abs(rows).max(axis=0), q=q)
        for e in np.flatnonzero(~region.empty).tolist():
            if (limits[e] <= best.lower * (1 + gap)).all():
                closed = np.maximum(closed, limits[e])
            elif not _outside(best, region, e):
                split = splits[e]
                if split is None:
                    _enter(best, region, e, limits[e])
                    closed = np.maximum(closed, limits[e])
                else:
                    excess = _excess(limits[e], best.lower)
                    heapq.heappush(heap, (-excess, next(order), limits[e], region.node(e, split)))
        chosen = []
        while heap and len(chosen) < BATCH:
            _, _, limit, node = heapq.heappop(heap)
            if (limit <= best.lower * (1 + gap)).all():
                closed = np.maximum(closed, limit)
            else:
                chosen.append((limit, node))
        if not chosen or time.monotonic() >= deadline:
            rest = [limit for limit, _ in chosen] + [limit for _, _, limit, _ in heap]
            return np.maximum.reduce([closed, best.lower, *rest]), regions, not chosen
        inherited = np.repeat([limit for limit, _ in chosen], 2, axis=0)
        signs, bounds = halves([node for _, node in chosen], related)


def _excess(limit: Float[Array, " c"], lower: Float[Array, " c"]) -> float:
    """How far a region's bound exceeds what is known, as a ratio."""
    with np.errstate(over="ignore"):
        return float((limit / np.maximum(lower, TINY)).max())


def _outside(best: _Steepest, region: Regions, e: int) -> bool:
    """Whether region ``e`` provably misses the ball, a bound: False proves nothing."""
    slopes, constants = region.inequalities(e, np.zeros((0, len(best.x))), np.zeros(0))
    if best.p == 2:
        return nearest(slopes, constants, p=2.0, q=2.0, radius=best.radius)[0] > best.radius
    # The cheap quadratic problem first: it proves l_2 distances, and its minimiser may lie in the ball.
    wide = best.radius * math.sqrt(len(best.x)) * (1 + 4 * EPS)
    distance, step = nearest(slopes, constants, p=2.0, q=2.0, radius=wide)
    if distance > wide or float(norm(step, p=best.p)) <= best.radius:
        return distance > wide
    return nearest(slopes, constants, p=best.p, q=dual(best.p), radius=best.radius)[0] > best.radius


def _enter(best: _Steepest, region: Regions, e: int, limit: Float[Array, " c"]) -> None:
    """Offer points inside region ``e``, the nearest ones at falling depths, until its limit is reached."""
    slopes, constants = region.inequalities(e, np.zeros((0, len(best.x))), np.zeros(0))
    length = norm(slopes, p=dual(best.p))
    for depth in DEPTHS:
        deeper = constants + depth * best.radius * length
        steps = [
            nearest(slopes, deeper, p=p, q=dual(p), radius=best.radius)[1] for p in sorted({2.0, best.p})
        ]
        best.offer(np.array(steps))
        if (limit <= best.lower * (1 + 1e-9)).all():
            return


def _splits(
    net: ReLUNetwork, region: Regions, rows: Float[Array, " h"], *, q: float
) -> list[tuple[int, int] | None]:
    """The free unit with the largest product of path norms to and from it; None without one."""
    reach, to = [], None
    for weight, (_, upper) in zip(net.weights[:-1], region.bounds, strict=True):
        to = np.broadcast_to(norm(weight, p=q), upper.shape) if to is None else to @ np.abs(weight).T
        to = np.where(upper > 0, to, 0.0)
        reach.append(to)
    scores = []
    away = np.broadcast_to(rows, (len(region.empty), len(rows)))
    for layer in reversed(range(len(reach))):
        away = np.where(region.bounds[layer][1] > 0, away, 0.0)
        scores.append(away * reach[layer])
        away = away @ np.abs(net.weights[layer])
    return region.splits(scores[::-1])
