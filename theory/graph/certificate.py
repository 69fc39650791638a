"""Certified radii on graphs: the largest l_p ball found whose margins stay positive, all targets at once."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from math import prod

import torch
from jaxtyping import Float, Int
from torch import Tensor

from theory.graph.affine import AffinePart, affine_part, points_only
from theory.graph.backward import Falling, NodeBounds
from theory.graph.bounds import node_bounds, open_signs, untightened
from theory.graph.checks import check_tensor
from theory.graph.compaction import compacted
from theory.graph.constants import lipschitz_constants
from theory.graph.lipschitz import (
    checked_ball,
    gradient_norm_bounds,
    label_differences,
    local_lipschitz,
    moved,
    rounded_up,
)
from theory.graph.network import Graph
from theory.graph.relaxation import Ball, Interval
from theory.graph.slopes import optimised_bounds
from theory.types import InvalidInput, check_domain_radius

LARGEST_RADIUS = 1e30
MOST_TRIALS = 40
LARGEST_GROWTH = 4.0  # of the radius squared, from one trial with local constants to the next
# First guesses: how much of the distance to the linearised boundary is certified, and how the margin bends.
TYPICAL_SHARE = 0.5
TYPICAL_POWER = 2.2
OPTIMISED_GAIN = 1.02  # first guess of what optimised slopes certify, by what the others do
NEWTON_STEPS = 8  # of the root of a smooth function of one number
CHUNK = 100  # examples bounded at once
POINT_ENTRIES = 2**25  # of the values of all nodes at the centres evaluated at once
LOCAL_TRIALS = 6  # most radii tried with local Lipschitz constants
JACOBIAN_TRIALS = 16  # most radii tried with interval Jacobians, until the largest is known to
JACOBIAN_PRECISION = 0.02  # this share
LOCAL_PROMISE = 0.97  # of the radius that fails is what the nearest class's constant must give to try at all


def margin_bounds(
    graph: Graph,
    x: Float[Tensor, "m *shape"],
    y: Int[Tensor, " m"],
    *,
    p: float,
    radius: Float[Tensor, " m"],
    steps: int = 0,
) -> Float[Tensor, "m c"]:
    """Lower bounds of g_y - g_k over the ball for every class k, a bound by CROWN; +inf at k = y.

    ``steps`` > 0 also optimises the lower slopes of all ReLUs by that many ascent steps, for each margin and
    before that for each input of a ReLU whose sign is open. -inf where a bound overflows.

    Raises: InvalidInput for bad x, y or p, a radius that is negative, not finite or of another length, or
      steps < 0.
    Reference: Zhang et al. 2018 (CROWN); Xu et al. 2021 (optimised slopes).
    """
    _check_steps(graph, x, steps)
    graph, x = compacted(graph, x)
    ball, labels = checked_ball(graph, x, y, p=p, radius=radius)
    part = affine_part(graph, q=ball.q, examples=len(x))
    bounds = node_bounds(graph, ball, part=part, tighten=partial(open_signs, steps=steps))
    found = _margins(graph, ball, labels, bounds, part, steps=steps)
    return found.at(ball.radius).scatter(1, labels[:, None], math.inf)


def centre_margins(graph: Graph, x: Float[Tensor, "m *shape"], y: Int[Tensor, " m"]) -> Float[Tensor, "m c"]:
    """Lower bounds of g_y - g_k at x itself, a bound by intervals of rounding alone; +inf at k = y.

    As :func:`margin_bounds` at radius 0, for the price of a few evaluations of the network.

    Raises: InvalidInput for bad x or y.
    """
    still = torch.zeros(x.shape[:1], dtype=graph.dtype, device=graph.device)
    ball, labels = checked_ball(graph, x, y, p=math.inf, radius=still)
    # What rounding moved into the graph's type lies in a ball after all.
    part = affine_part(graph, q=ball.q, examples=len(x)) if ball.radius.any() else points_only(graph)
    entries = sum(prod(node.shape) for node in graph.nodes)

    def margins(rows: Tensor) -> Tensor:
        bounds = node_bounds(graph, ball.take(rows), part=part, tighten=untightened)
        scores, y = bounds.intervals[-1], labels[rows][:, None]
        own = scores.lower.gather(1, y)
        slack = 2 * torch.finfo(graph.dtype).eps * (own.abs() + scores.upper.abs())
        return (own - scores.upper - slack).scatter(1, y, math.inf)

    every = torch.arange(len(x), device=graph.device)
    return torch.cat([margins(rows) for rows in every.split(max(1, POINT_ENTRIES // entries))])


def _check_steps(graph: Graph, x: Tensor, steps: int) -> None:
    check_tensor("x", x)
    if steps < 0:
        raise InvalidInput(f"steps is {steps}; give 0 or more ascent steps")
    held = [
        x,
        *(node.bias for node in graph.nodes),
        *(vars(node.operation).get("weight") for node in graph.nodes),
    ]
    made_there = any(tensor is not None and tensor.is_inference() for tensor in held)
    if steps and (made_there or torch.is_inference_mode_enabled()):
        raise InvalidInput(f"steps is {steps} in torch.inference_mode, which has no gradients; use no_grad")


def _margins(
    graph: Graph, ball: Ball, labels: Tensor, bounds: NodeBounds, part: AffinePart, *, steps: int = 0
) -> Falling:
    """Lower bounds of e_y - e_k times the scores, (m, c); 0 or a little less at k = y."""
    rows = label_differences(graph, labels)
    last = len(graph.nodes) - 1
    return optimised_bounds(graph, last, rows, bounds, ball, part, steps=steps)


def certified_radius(
    graph: Graph,
    x: Float[Tensor, "m *shape"],
    y: Int[Tensor, " m"],
    *,
    p: float,
    domain_radius: float = math.inf,
    precision: float = 1e-3,
    steps: int = 0,
) -> Float[Tensor, " m"]:
    """Certified radius, a bound: no perturbation of a smaller or equal l_p norm changes the class y.

    Three stages, each from where the one before ended, so the result is never below the certificate by
    global constants. (1) margin / global Lipschitz constant. (2) The largest radius found at which CROWN's
    margins are all positive: a safeguarded secant, until a radius larger by the relative ``precision`` has
    failed. (3) Beyond it, classes whose CROWN margin is not positive may instead have a margin at the
    centre above the radius times their local Lipschitz constant; at most ``LOCAL_TRIALS`` radii. Stopping
    early costs tightness only. ``steps`` as in :func:`margin_bounds`: stage 2 then goes on with them from
    where it ended without. 0 where x is not certainly classified as y; ``domain_radius`` where the search
    reaches it, and at most 1e30.

    Raises: InvalidInput for bad x, y or p, precision outside (0, 1), steps or domain_radius < 0.
    Reference: the paper, section 3.2; Weng et al. 2018; Zhang et al. 2018 (CROWN).
    """
    if not 0 < precision < 1:
        raise InvalidInput(f"precision is {precision!r}; give a relative width in (0, 1)")
    limit = _limit(graph, domain_radius)
    _check_steps(graph, x, steps)
    graph, x = compacted(graph, x)
    still = torch.zeros(len(x), dtype=graph.dtype, device=graph.device)
    ball, labels = checked_ball(graph, x, y, p=p, radius=still)
    ball = ball.within(still)
    constants = lipschitz_constants(graph, p=p)
    part = affine_part(graph, q=ball.q)
    parts = [
        _search(
            graph,
            ball.take(rows),
            labels[rows],
            constants,
            part,
            limit=limit,
            precision=precision,
            steps=steps,
        )
        for rows in torch.arange(len(x), device=graph.device).split(CHUNK)
    ]
    found = torch.cat(parts)
    shift = moved(x, ball.centre, q=ball.q)
    shorter = -rounded_up(shift - found.double(), graph.dtype)
    return torch.where(shift > 0, shorter.clamp(min=0.0), found)


def jacobian_radius(
    graph: Graph,
    x: Float[Tensor, "m *shape"],
    y: Int[Tensor, " m"],
    *,
    p: float,
    domain_radius: float = math.inf,
) -> Float[Tensor, " m"]:
    """Certified radius by intervals alone, a bound: the margin at x over a Lipschitz constant on the ball.

    For networks too large for :func:`certified_radius`: a radius takes a few passes, not one for every unit.
    Never below the certificate by global constants, and at most ``domain_radius`` and 1e30. 0 where x is not
    certainly classified as y, and by intervals it seldom is through many dense layers: of a network as deep
    as ResNet-32 only a strongly pruned one is certified.

    Raises: InvalidInput for bad x, y or p, or domain_radius < 0.
    Reference: the paper, section 3.2; Weng et al. 2018 (Fast-Lip), here with the values bounded by intervals.
    """
    limit = _limit(graph, domain_radius)
    graph, x = compacted(graph, x)
    _, labels = checked_ball(
        graph, x, y, p=p, radius=torch.zeros(len(x), dtype=graph.dtype, device=graph.device)
    )
    constants = lipschitz_constants(graph, p=p)
    everywhere = rounded_up(constants.to(graph.device).double(), graph.dtype)

    def search(rows: Tensor) -> Tensor:
        some, of = x[rows], labels[rows]
        centre = centre_margins(graph, some, of)
        low = torch.where((centre > 0).all(1), _quotient(centre, everywhere[of]), 0.0).clamp(max=limit)
        high, trial = torch.full_like(low, limit), low.clone()
        for _ in range(JACOBIAN_TRIALS):
            open_ = ((low > 0) & (high > low * (1 + JACOBIAN_PRECISION))).nonzero()[:, 0]
            if not len(open_):
                break
            here = trial[open_]
            found = local_lipschitz(
                graph, some[open_], of[open_], p=p, radius=here, constants=constants, effort=0, relaxed=False
            )
            reach = _quotient(centre[open_], found)
            low[open_] = torch.fmax(low[open_], torch.fmin(reach, here))
            high[open_] = torch.fmin(high[open_], torch.where(reach >= here, reach, here))
            trial = low.sqrt() * high.sqrt()
        return low

    entries = graph.classes * sum(prod(node.shape) for node in graph.nodes)
    every = torch.arange(len(x), device=graph.device)
    return torch.cat([search(rows) for rows in every.split(max(1, POINT_ENTRIES // entries))])


def _limit(graph: Graph, domain_radius: float) -> float:
    """The largest radius to look for, rounded down to the graph's numbers."""
    limit = torch.tensor(min(check_domain_radius(domain_radius), LARGEST_RADIUS), dtype=torch.float64)
    return -float(rounded_up(-limit, graph.dtype))


def _search(
    graph: Graph,
    ball: Ball,
    labels: Tensor,
    constants: Tensor,
    part: AffinePart,
    *,
    limit: float,
    precision: float,
    steps: int,
) -> Tensor:
    """The largest certified radius found of each example."""
    others = torch.ones(len(labels), graph.classes, dtype=torch.bool, device=graph.device)
    others.scatter_(1, labels[:, None], value=False)

    def margins(
        rows: Tensor, radius: Tensor, known: NodeBounds | None, *, steps: int
    ) -> tuple[Falling, NodeBounds]:
        here = ball.take(rows).within(radius)
        bounds = node_bounds(graph, here, part=part, known=known, tighten=partial(open_signs, steps=steps))
        return _margins(graph, here, labels[rows], bounds, part, steps=steps), bounds

    everyone = torch.arange(len(labels), device=graph.device)
    start, bounds = margins(everyone, ball.radius, None, steps=0)
    centre = torch.where(others, start.at(ball.radius), math.inf)
    safe = (centre > 0).all(1)
    best = torch.where(safe, _quotient(centre, constants[labels]), 0.0).clamp(max=limit)
    linear = _quotient(centre, start.slope)  # at the centre slopes are gradient norms
    search = _Search.start(best, linear, limit=limit, precision=precision)
    known: NodeBounds | None = None
    failing = torch.full_like(centre, math.inf)  # relative margins in the smallest ball that was too large
    for effort in sorted({0, steps}):
        if effort:
            search, known = search.reopened(), None
        for _ in range(MOST_TRIALS):
            rows = (safe & ~search.done()).nonzero()[:, 0]
            if not len(rows):
                break
            trial = search.trial[rows]
            inside = None if known is None else known.take(rows)
            found, bounds = margins(rows, trial, inside, steps=effort)
            relative = torch.where(others[rows], found.at(trial) / centre[rows], math.inf)
            good = (relative > 0).all(1)
            # The lines of a ball serve all smaller ones: where it fails, they say how far they reach.
            reached = torch.where(others[rows], found.roots(), math.inf).amin(1)
            known = _smallest_failed(known, bounds, rows[~good], ~good, examples=len(labels))
            failing[rows[~good]] = relative[~good]
            search.learn(rows, relative.amin(1), torch.where(good, trial, reached.minimum(trial)))
    best, radius = search.low, search.high.clone()
    growing = safe & radius.isfinite() & (best > 0)
    if LOCAL_TRIALS and known is not None and bool(growing.any()):
        rows = growing.nonzero()[:, 0]
        worst = failing[rows] == failing[rows].amin(1, keepdim=True)
        reach = _local_reach(graph, labels[rows], centre[rows], known.take(rows), worst, q=ball.q)
        growing[rows] = reach > radius[rows] * LOCAL_PROMISE
    for trials in range(LOCAL_TRIALS):
        rows = growing.nonzero()[:, 0]
        if not len(rows):
            break
        here = radius[rows]
        if trials or known is None:
            found, bounds = margins(rows, here, None, steps=steps)
            open_ = others[rows] & ~(found.at(here) > 0)
        else:
            bounds, open_ = known.take(rows), others[rows] & ~(failing[rows] > 0)
        reach = _local_reach(graph, labels[rows], centre[rows], bounds, open_, q=ball.q)
        best[rows] = best[rows].maximum(here.minimum(reach))
        radius[rows] = (here * (reach / here).clamp(max=LARGEST_GROWTH).sqrt()).clamp(max=limit)
        growing[rows] = (reach > here * (1 + precision)) & (here < limit)
    return best


def _local_reach(
    graph: Graph,
    labels: Tensor,
    centre: Tensor,
    bounds: NodeBounds,
    wanted: Tensor,
    *,
    q: float,
) -> Tensor:
    """The smallest centre / local Lipschitz constant over the wanted classes, a bound from below: (m,)."""
    most = int(wanted.sum(1).max())
    if not most:
        return torch.full_like(centre[:, 0], math.inf)
    classes = wanted.to(torch.uint8).topk(most, dim=1).indices
    rows = label_differences(graph, labels).gather(1, classes[..., None].expand(-1, -1, graph.classes))
    constants = gradient_norm_bounds(graph, rows, bounds, q=q, effort=0)
    return _quotient(torch.where(wanted, centre, math.inf).gather(1, classes), constants)


@dataclass
class _Search:
    """The root of each example's smallest margin as a function of the radius, which falls from 1 at 0.

    There its slope is that of the gradient; from then on it is close to 1 - r / linear - w (r / trial)^power,
    with w and, from the second trial on, the power fitted to the trials.
    """

    low: Tensor  # the largest radius certified
    high: Tensor  # the smallest radius that was not
    linear: Tensor  # where the margin would vanish if the network were linear
    trial: Tensor
    last: Tensor  # the trial before, and its w
    bend: Tensor
    limit: float
    precision: float

    @staticmethod
    def start(low: Tensor, linear: Tensor, *, limit: float, precision: float) -> _Search:
        guess = TYPICAL_SHARE * linear
        trial = torch.where(guess > low, guess, 2 * low).clamp(max=limit)
        infinite, none = torch.full_like(low, math.inf), torch.full_like(low, math.nan)
        return _Search(low, infinite, linear, trial, none, none.clone(), limit, precision)

    def reopened(self) -> _Search:
        """The search from what is certified on, for better bounds: its failures may pass now."""
        infinite, none = torch.full_like(self.low, math.inf), torch.full_like(self.low, math.nan)
        trial = (self.low * OPTIMISED_GAIN).clamp(max=self.limit)
        return replace(self, high=infinite, trial=trial, last=none, bend=none.clone())

    def done(self) -> Tensor:
        """Whether a radius within the precision of the certified one has failed, or it is at the limit."""
        close = self.low >= self.high * (1 - self.precision)
        return close | (self.low >= self.limit) | (self.trial <= 0)

    def learn(self, rows: Tensor, value: Tensor, reached: Tensor) -> None:
        """Take in the smallest relative margin at the trials of some examples, and the radius that is
        certified now; choose the next trials, a little beyond the root, since to fail there ends the search.
        """
        trial, last = self.trial[rows], self.last[rows]
        low = reached.maximum(self.low[rows])
        high = torch.where(value > 0, self.high[rows], trial.minimum(self.high[rows]))
        slope = trial / self.linear[rows]
        bend = 1 - slope - value
        power = torch.log(bend / self.bend[rows]) / torch.log(trial / last)
        power = torch.where(power.isnan(), TYPICAL_POWER, power.clamp(1.1, 4.0))
        share = torch.ones_like(trial)
        for _ in range(NEWTON_STEPS):
            curve = bend * share**power
            share = share + share * (1 - slope * share - curve) / (slope * share + power * curve)
            share = share.clamp(0.01, 10.0)
        root = trial * share
        beyond = torch.where(high.isfinite(), low / 2 + high / 2, 2 * low.maximum(trial))
        root = torch.where((bend > 0) & (root > low) & (root < high), root, beyond)
        goal = (root * (1 + self.precision / 10)).maximum(low * (1 + self.precision / 2))
        goal = torch.where(goal < high, goal, low / 2 + high / 2)
        self.low[rows], self.high[rows] = low, high
        self.last[rows], self.bend[rows] = trial, bend
        self.trial[rows] = goal.clamp(max=self.limit)


def _quotient(margins: Tensor, constants: Tensor) -> Tensor:
    """min_k margins / constants rounded down, a bound if margins are from below and constants from above."""
    ratio = torch.where(constants > 0, margins / constants, math.inf)
    ratio = torch.where(margins == math.inf, math.inf, ratio)
    ratio = torch.nextafter(ratio, torch.zeros_like(ratio))
    return ratio.amin(1).clamp(min=0.0)


def _smallest_failed(
    known: NodeBounds | None, found: NodeBounds, rows: Tensor, failed: Tensor, *, examples: int
) -> NodeBounds:
    """Intervals over each example's smallest ball that was too large: they hold in all smaller balls."""
    if known is None:
        empty = [b.lower.new_full((examples, *b.lower.shape[1:]), math.inf) for b in found.intervals]
        known = NodeBounds(tuple(Interval(-side, side.clone()) for side in empty), {}, {}, {})
    for old, new in zip(known.intervals, found.intervals, strict=True):
        old.lower[rows], old.upper[rows] = new.lower[failed], new.upper[failed]
    return known
