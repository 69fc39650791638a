"""The exact minimal perturbation of small ReLU networks, by branch and bound over activation patterns.

Every point that changes the class lies in a region where class k wins, for some k, and each hidden unit is on
or off. Regions are split on one unit at a time, those that may hold the closest point first. A region's bound
is a weak-duality bound (:mod:`theory.relu.regions`) and its candidate the point where it is attained, which
counts only once it is proven to change the class. When no unit is free the two meet.
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
from theory.relu.certificate import LARGEST_RADIUS, crown_certified_radius, margin_lower_bounds
from theory.relu.lipschitz import local_gradient, outward
from theory.relu.margins import linear_below, relaxation
from theory.relu.rational import loses
from theory.relu.regions import Node, Regions, enclose, halves, nearest, twins, whole_space
from theory.types import InvalidInput, ReLUNetwork, check_domain_radius, check_examples, check_p

BATCH = 32  # regions split together: one pass of NumPy over all of them
# Relative steps beyond a computed point of the boundary, tried until one is proven to have crossed it.
NUDGES = np.array([0.0, 1e-15, 1e-14, 1e-13, 1e-12, 1e-11, 1e-10, 1e-9, 1e-8])
# Depths below the surface of a region, in units of its distance, at which a point inside it is looked for:
# its closest point may be a corner that the ray from x only touches.
DEPTHS = (1e-13, 1e-12, 1e-11, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-4, 1e-2)
SEARCH_STEPS = 20
HALVINGS = 40
# Where nothing is found and no domain is given, this many times the size of x, or the certified radius, is
# searched.
FAR = 1e3
ELSEWHERE = 1e-3  # weight of a relaxation's error away from the point where it matters now


@dataclass(frozen=True)
class ExactRadius:
    """Two-sided bounds of the minimal l_p perturbation that changes the class, one entry per example.

    lower <= min(rho_p, domain_radius) <= upper, whatever the status. x_adv (m, n): a point of another class,
    or tied, no further than ``upper``; NaN where none is known. status: "optimal" (the two agree to the gap
    asked for), "capped" (no point within the domain radius is known, and none is nearer than ``lower``, which
    agrees with that radius to the gap), "none found" (no domain radius; the class is constant on the ball of
    radius ``lower`` and no point beyond is known: upper is inf), "time limit", or "stalled" (rounding keeps a
    region open: the gap is wider than asked for, and upper is inf where no point is known). regions: regions
    bounded.
    """

    lower: Float[Array, " m"]
    upper: Float[Array, " m"]
    x_adv: Float[Array, "m n"]
    status: tuple[str, ...]
    regions: Int[Array, " m"]


def exact_radius(
    net: ReLUNetwork,
    x: Float[Array, "m n"],
    y: Int[Array, " m"],
    *,
    p: float,
    domain_radius: float = math.inf,
    gap: float = 1e-6,
    time_limit: float = 60.0,
) -> ExactRadius:
    """Minimal l_p perturbation that changes the class, as a bound from below and one from above.

    They agree to the relative ``gap`` unless the status says otherwise; a tie counts as changed, and a
    misclassified or tied input has both 0. ``time_limit`` is in seconds per example, checked between batches
    of regions.

    Proven, in exact arithmetic: ``lower``, as every region discarded was discarded by an inequality evaluated
    with outward rounding; ``upper``, as ``x_adv`` was shown to change the class, by an error bound or in
    fractions. The solvers (non-negative least squares, HiGHS) propose multipliers and points only: their
    tolerances can widen the gap, never move a bound to the wrong side.

    Raises: InvalidInput for bad x, y or p, a negative or NaN domain_radius, a gap outside (0, 1), or a
      time_limit that is negative or NaN.
    Reference: Bunel et al. 2018 (branch and bound); Neumaier and Shcherbina 2004 (safe bounds); Tjeng et al.
      2019 (the quantity).
    """
    q, (x, labels) = dual(check_p(p)), check_examples(net, x, y)
    domain_radius = check_domain_radius(domain_radius)
    check_effort(gap, time_limit)
    certified = crown_certified_radius(net, x, labels, p=p, domain_radius=domain_radius)
    paths = _descents(net, x, labels, q=q)
    found = []
    for e, label in enumerate(labels):
        best = Incumbent(net, x[e], int(label), p, domain_radius)
        deadline = time.monotonic() + time_limit
        found.append(_solve(best, paths[:, e], certified=float(certified[e]), gap=gap, deadline=deadline))
    lower, upper, x_adv, status, regions = zip(*found, strict=True)
    return ExactRadius(np.array(lower), np.array(upper), np.stack(x_adv), status, np.array(regions))


def check_effort(gap: float, time_limit: float) -> None:
    """Raises: InvalidInput unless gap lies in (0, 1) and time_limit is a number >= 0."""
    if not 0 < gap < 1:
        raise InvalidInput(f"gap is {gap!r}; the relative gap between the bounds must lie in (0, 1)")
    if not time_limit >= 0:
        raise InvalidInput(f"time_limit is {time_limit!r}; pass seconds >= 0")


@dataclass
class Incumbent:
    """The closest point known to change the class of x, proven to, and its distance rounded up.

    Before there is one, ``upper`` is the domain radius and ``x_adv`` NaN.
    """

    net: ReLUNetwork
    x: Float[Array, " n"]
    label: int
    p: float
    upper: float

    def __post_init__(self) -> None:
        self.x_adv = np.full(self.x.shape, math.nan)

    def offer(self, steps: Float[Array, "s n"]) -> None:
        """Improve by points on the rays of the given steps from x, where the class seems to change."""
        sizes = norm(steps, p=self.p)
        near = np.isfinite(sizes) & (sizes > 0) & (sizes < self.upper)
        if not near.any():
            return
        steps, sizes = steps[near], sizes[near]
        # The point itself, one just behind it, and one as far as the incumbent.
        stretch = np.minimum(self.upper / sizes, 1e8) if math.isfinite(self.upper) else np.ones(len(sizes))
        scales = np.stack([np.ones(len(sizes)), np.full(len(sizes), 1.0 + NUDGES[-1]), stretch], axis=1)
        changed = self.margins((scales[..., None] * steps[:, None]).reshape(-1, steps.shape[1])) <= 0
        changed = changed.reshape(scales.shape)
        hit = changed.any(axis=1)
        if not hit.any():
            return
        steps, high = steps[hit], scales[hit, changed[hit].argmax(axis=1)]
        low = np.zeros(len(high))
        for _ in range(HALVINGS):
            middle = low / 2 + high / 2
            over = self.margins(middle[:, None] * steps) <= 0
            low, high = np.where(over, low, middle), np.where(over, middle, high)
        for step in high[:, None] * steps:
            self.prove(step)

    def margins(self, steps: Float[Array, "s n"]) -> Float[Array, " s"]:
        """Score of the label less the best other score at x + steps, an estimate: plain float64."""
        scores = self.net.scores(self.x + steps)
        own = scores[:, self.label].copy()
        scores[:, self.label] = -math.inf
        return own - scores.max(axis=1)

    def prove(self, step: Float[Array, " n"]) -> None:
        """Take x + step, or a point just behind it, if it provably changes the class and is closer."""
        points = self.x + (1.0 + NUDGES)[:, None] * step
        sizes = distances(points, self.x, p=self.p)
        points, sizes = points[sizes < self.upper], sizes[sizes < self.upper]
        if not len(points):
            return
        scores = self.net.scores(points)
        scores[:, self.label] = -math.inf
        proven = margin_lower_bounds(self.net, points, scores.argmax(axis=1))[:, self.label] >= 0
        if not proven.any():  # a tie, or closer to one than rounding can tell
            proven = np.array([loses(self.net, point, self.label) for point in points])
        if proven.any():
            first = int(proven.argmax())
            self.upper, self.x_adv = float(sizes[first]), points[first]


def distances(points: Float[Array, "s n"], x: Float[Array, " n"], *, p: float) -> Float[Array, " s"]:
    """||points - x||_p rounded up, a bound."""
    return outward(norm(points - x, p=p), roundings=len(x) + 8)


def _solve(
    best: Incumbent, path: Float[Array, "s n"], *, certified: float, gap: float, deadline: float
) -> tuple[float, float, np.ndarray, str, int]:
    """lower, upper, x_adv, status and number of regions for one example."""
    cap = best.upper
    if certified == 0 and loses(best.net, best.x, best.label):
        return 0.0, 0.0, best.x, "optimal", 0
    if certified >= cap:
        return certified, certified, best.x_adv, "optimal" if math.isinf(cap) else "capped", 0
    with np.errstate(over="ignore", invalid="ignore"):
        best.offer(path)
        lower, regions, complete = _branch(best, certified, gap=gap, deadline=deadline)
        if complete and math.isinf(cap) and lower < best.upper * (1 - gap) < math.inf:
            # Found on the way, beyond the ball searched at first.
            lower, more, complete = _branch(best, lower, gap=gap, deadline=deadline)
            regions += more
    lower = min(max(lower, certified), best.upper)
    if math.isinf(best.upper):
        status = "none found" if lower >= _far(best, certified) else "stalled"
    elif lower >= best.upper * (1 - gap):
        status = "capped" if math.isnan(best.x_adv[0]) else "optimal"
    else:
        status = "stalled"
    return lower, best.upper, best.x_adv, status if complete else "time limit", regions


def _branch(best: Incumbent, certified: float, *, gap: float, deadline: float) -> tuple[float, int, bool]:
    """Split regions until none may hold a point closer than the incumbent; improves the incumbent.

    Returns a lower bound of the minimal perturbation, the number of regions bounded, and whether the search
    came to its end before the deadline.
    """
    net = best.net
    targets = np.array([k for k in range(net.classes) if k != best.label])
    known = np.full(len(targets), certified)
    signs, bounds = whole_space(net, len(targets))
    related = twins(net)
    heap: list[tuple[float, int, int, Node]] = []
    order, regions = itertools.count(), 0
    radius = best.upper
    if math.isinf(radius):
        radius = _far(best, certified)
    floor = radius  # the smallest bound of the regions that are done with; beyond the ball nothing is known
    while True:
        centres, radii = np.tile(best.x, (len(targets), 1)), np.full(len(targets), radius)
        region = enclose(net, centres, radii, signs, bounds, q=dual(best.p))
        regions += len(targets)
        bound, splits = _bound(best, region, targets, radius, gap=gap)
        radius = min(radius, best.upper)
        for e, split in enumerate(splits):
            bound[e] = max(bound[e], known[e])
            if split is None or bound[e] >= best.upper * (1 - gap):
                floor = min(floor, bound[e])
            else:
                heapq.heappush(heap, (bound[e], next(order), int(targets[e]), region.node(e, split)))
        reach = min(best.upper * (1 - gap), floor)
        chosen = [heapq.heappop(heap) for _ in range(min(BATCH, len(heap))) if heap[0][0] < reach]
        if not chosen or time.monotonic() >= deadline:
            return min([floor, *(entry[0] for entry in chosen + heap[:1])]), regions, not chosen
        known = np.repeat([entry[0] for entry in chosen], 2)
        targets = np.repeat([entry[2] for entry in chosen], 2)
        signs, bounds = halves([entry[3] for entry in chosen], related)


def _far(best: Incumbent, certified: float) -> float:
    """The radius of the ball that is searched while no point of another class is known."""
    return min(FAR * max(1.0 + float(norm(best.x, p=best.p)), certified), LARGEST_RADIUS)


def _bound(
    best: Incumbent, region: Regions, targets: Int[Array, " m"], radius: float, *, gap: float
) -> tuple[Float[Array, " m"], list[tuple[int, int] | None]]:
    """Distance bound of every region in which its target class wins, and the unit to split it on.

    The points that attain the bounds are offered to the incumbent on the way.
    """
    net, q = best.net, dual(best.p)
    rows = (net.weights[-1][best.label] - net.weights[-1][targets])[:, None]
    offsets = (net.biases[-1][best.label] - net.biases[-1][targets])[:, None]
    centres, radii = np.tile(best.x, (len(targets), 1)), np.full(len(targets), radius)
    slopes, constants = linear_below(net, rows, offsets, region.bounds, centres, radii, q=q)
    bound, steps = np.full(len(targets), math.inf), np.zeros(centres.shape)
    for e in np.flatnonzero(~region.empty).tolist():
        lines, shifts = region.inequalities(e, slopes[e], constants[e])
        bound[e], steps[e] = nearest(lines, shifts, p=best.p, q=q, radius=radius)
    best.offer(steps[bound < best.upper])
    splits = _splits(net, region, rows[:, 0], best.x + steps)
    for e in np.flatnonzero(bound < best.upper * (1 - gap)).tolist():
        if splits[e] is None:
            _enter(best, *region.inequalities(e, slopes[e], constants[e]), float(bound[e]), gap=gap)
    return bound, splits


def _enter(
    best: Incumbent,
    slopes: Float[Array, "r n"],
    constants: Float[Array, " r"],
    distance: float,
    *,
    gap: float,
) -> None:
    """Offer points inside a region without free units, near its closest one, from little depth on."""
    q = dual(best.p)
    length = norm(slopes, p=q)
    for depth in DEPTHS:
        if distance >= best.upper * (1 - gap):
            return
        deeper = constants + depth * distance * length
        best.offer(nearest(slopes, deeper, p=best.p, q=q, radius=2 * distance)[1][None])


def _splits(
    net: ReLUNetwork, region: Regions, rows: Float[Array, "m h"], points: Float[Array, "m n"]
) -> list[tuple[int, int] | None]:
    """The free unit of every region whose relaxation costs its margin most at a point; None without one.

    The cost is the coefficient of the unit times the distance from its line to its ReLU there, and a little
    of the same where it is largest, for units that cost nothing at the point.
    """
    values, hidden = [], points
    for weight, bias in zip(net.weights[:-1], net.biases[:-1], strict=True):
        values.append(hidden @ weight.T + bias)
        hidden = np.maximum(values[-1], 0.0)
    scores = []
    for layer in reversed(range(len(values))):
        below, above, intercept = relaxation(*region.bounds[layer])
        z, on = values[layer], np.maximum(values[layer], 0.0)
        distance = np.where(rows > 0, on - below * z, above * z + intercept - on)
        scores.append(np.abs(rows) * (np.maximum(distance, 0.0) + ELSEWHERE * np.abs(intercept)))
        rows = (np.maximum(rows, 0.0) * below + np.minimum(rows, 0.0) * above) @ net.weights[layer]
    return region.splits(scores[::-1])


def _descents(
    net: ReLUNetwork, x: Float[Array, "m n"], labels: Int[Array, " m"], *, q: float
) -> Float[Array, "s m n"]:
    """Steps towards every other class, an estimate: where DeepFool ends, one path per class."""
    rows = np.arange(len(labels))
    paths = []
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for target in range(net.classes):
            moved = np.zeros(x.shape)
            for _ in range(SEARCH_STEPS):
                points = x + moved
                if not np.isfinite(points).all():
                    break
                scores, gradient = net.scores(points), local_gradient(net, points)
                pull = gradient[:, target] - gradient[rows, labels]
                short = scores[rows, labels] - scores[:, target]
                size = norm(pull, p=q)
                unit = np.sign(pull) if q == 1 else pull / np.where(size > 0, size, 1.0)[:, None]
                length = np.where(size > 0, short / np.where(size > 0, size, 1.0), 0.0)
                step = (np.where(short >= 0, 1.02, 0.98) * length)[:, None] * unit
                moved = np.where(np.isfinite(step), moved + step, moved)
            paths.append(moved)
    return np.stack(paths)
