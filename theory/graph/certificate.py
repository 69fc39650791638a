"""Certified radii on graphs: the largest l_p ball found whose margins stay positive, all targets at once."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from theory.graph.affine import AffinePart, affine_part
from theory.graph.backward import Falling, NodeBounds, lower_bounds
from theory.graph.bounds import node_bounds
from theory.graph.constants import lipschitz_constants
from theory.graph.lipschitz import (
    checked_ball,
    gradient_norm_bounds,
    interval_gradient_norms,
    label_differences,
    moved,
    rounded_up,
)
from theory.graph.network import Graph
from theory.graph.relaxation import Ball, Interval, Lines
from theory.types import InvalidInput

LARGEST_RADIUS = 1e30
MOST_TRIALS = 40
LARGEST_GROWTH = 4.0  # of the radius squared, from one trial with local constants to the next
TYPICAL_SHARE = 0.45  # of the distance to the linearised boundary that is usually certified: a first guess
CHUNK = 50  # examples bounded at once
LOCAL_TRIALS = 6  # most radii tried with local Lipschitz constants


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

    ``steps`` > 0 also optimises the lower slopes of all ReLUs for each margin by that many ascent steps; the
    best bound seen is kept. -inf where a bound overflows.

    Raises: InvalidInput for bad x, y or p, a radius that is negative, not finite or of another length, or
      steps < 0.
    Reference: Zhang et al. 2018 (CROWN); Xu et al. 2021 (optimised slopes).
    """
    _check_steps(steps)
    ball, labels = checked_ball(graph, x, y, p=p, radius=radius)
    part = affine_part(graph, q=ball.q)
    found = _margins(graph, ball, labels, node_bounds(graph, ball, part=part), part, steps=steps)
    return found.at(ball.radius).scatter(1, labels[:, None], math.inf)


def _check_steps(steps: int) -> None:
    if steps < 0:
        raise InvalidInput(f"steps is {steps}; give 0 or more ascent steps")


def _margins(
    graph: Graph, ball: Ball, labels: Tensor, bounds: NodeBounds, part: AffinePart, *, steps: int = 0
) -> Falling:
    """Lower bounds of e_y - e_k times the scores, (m, c); 0 or a little less at k = y."""
    rows = label_differences(graph, labels)
    last = len(graph.nodes) - 1
    best = lower_bounds(graph, last, rows, bounds, ball, part)
    if not steps or not bounds.lines:
        return best
    slopes = {}
    for i, line in bounds.lines.items():
        start = line.below[:, None].repeat_interleave(rows.shape[1], 1)  # one slope for each margin
        slopes[i] = start.clamp(0.05, 0.95).requires_grad_()
    optimiser = torch.optim.Adam(slopes.values(), lr=0.3)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.05 ** (1 / steps))
    for _ in range(steps):
        optimiser.zero_grad()
        lines = {i: _with_slope(line, slopes[i]) for i, line in bounds.lines.items()}
        found = lower_bounds(graph, last, rows, replace(bounds, lines=lines), ball, part)
        values = found.at(ball.radius)
        better = values.detach() > best.at(ball.radius)
        best = Falling(
            torch.where(better, found.start.detach(), best.start),
            torch.where(better, found.slope.detach(), best.slope),
        )
        (-values.nan_to_num(0.0, 0.0, 0.0)).sum().backward()
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            for slope in slopes.values():
                slope.clamp_(0.0, 1.0)
    return best


def _with_slope(line: Lines, slope: Tensor) -> Lines:
    """The lines of ReLUs with another lower slope wherever the sign is open, a bound for any in [0, 1]."""
    open_ = line.high > 0 if line.high is not None else torch.zeros_like(line.below, dtype=torch.bool)
    return Lines(torch.where(open_[:, None], slope, line.below[:, None]), line.low, line.above, line.high)


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
    early costs tightness only. ``steps`` as in :func:`margin_bounds`, in stages 2 and 3. 0 where x is not
    certainly classified as y; ``domain_radius`` where the search reaches it, and at most 1e30.

    Raises: InvalidInput for bad x, y or p, precision outside (0, 1), steps or domain_radius < 0.
    Reference: the paper, section 3.2; Weng et al. 2018; Zhang et al. 2018 (CROWN).
    """
    if not 0 < precision < 1:
        raise InvalidInput(f"precision is {precision!r}; give a relative width in (0, 1)")
    if not domain_radius >= 0:
        raise InvalidInput(
            f"domain_radius is {domain_radius!r}; a radius is non-negative, math.inf for no limit"
        )
    _check_steps(steps)
    still = torch.zeros(len(x), dtype=graph.dtype, device=graph.device)
    ball, labels = checked_ball(graph, x, y, p=p, radius=still)
    ball = ball.within(still)
    constants = lipschitz_constants(graph, p=p)
    part = affine_part(graph, q=ball.q)
    limit = min(domain_radius, LARGEST_RADIUS)
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

    def margins(rows: Tensor, radius: Tensor, known: NodeBounds | None) -> tuple[Tensor, NodeBounds]:
        here = ball.take(rows).within(radius)
        bounds = node_bounds(graph, here, part=part, known=known)
        return _margins(graph, here, labels[rows], bounds, part, steps=steps).at(radius), bounds

    everyone = torch.arange(len(labels), device=graph.device)
    centre, bounds = margins(everyone, ball.radius, None)
    centre = torch.where(others, centre, math.inf)
    safe = (centre > 0).all(1)
    best = torch.where(safe, _quotient(centre, constants[labels]), 0.0).clamp(max=limit)
    slopes = interval_gradient_norms(graph, label_differences(graph, labels), bounds, q=ball.q)
    search = _Search.start(best, TYPICAL_SHARE * _quotient(centre, slopes), limit=limit, precision=precision)
    known: NodeBounds | None = None
    for _ in range(MOST_TRIALS):
        rows = (safe & ~search.done()).nonzero()[:, 0]
        if not len(rows):
            break
        found, bounds = margins(rows, search.trial[rows], None if known is None else known.take(rows))
        relative = torch.where(others[rows], found / centre[rows], math.inf).amin(1)
        known = _smallest_failed(known, bounds, rows[relative <= 0], relative <= 0, examples=len(labels))
        search.learn(rows, relative)
    best, trial = search.low, search.low * (1 + 2 * precision)
    growing = safe & (best > 0) & (best < limit)
    for _ in range(LOCAL_TRIALS):
        rows = growing.nonzero()[:, 0]
        if not len(rows):
            break
        here = trial[rows].clamp(max=limit)
        found, bounds = margins(rows, here, None)
        open_ = others[rows] & ~(found > 0)
        reach = _local_reach(graph, labels[rows], centre[rows], bounds, open_, q=ball.q)
        best[rows] = best[rows].maximum(here.minimum(reach))
        trial[rows] = here * (reach / here).clamp(max=LARGEST_GROWTH).sqrt()
        growing[rows] = (reach > here * (1 + precision)) & (here < limit)
    return best


def _local_reach(
    graph: Graph, labels: Tensor, centre: Tensor, bounds: NodeBounds, wanted: Tensor, *, q: float
) -> Tensor:
    """The smallest centre / local Lipschitz constant over the wanted classes, a bound from below: (m,)."""
    most = int(wanted.sum(1).max())
    if not most:
        return torch.full_like(centre[:, 0], math.inf)
    classes = wanted.to(torch.uint8).topk(most, dim=1).indices
    rows = label_differences(graph, labels).gather(1, classes[..., None].expand(-1, -1, graph.classes))
    constants = gradient_norm_bounds(graph, rows, bounds, q=q)
    return _quotient(torch.where(wanted, centre, math.inf).gather(1, classes), constants)


@dataclass
class _Search:
    """The root of each example's smallest margin as a function of the radius, which falls from 1 at 0.

    The margin is smooth and close to 1 - 0.55 t - 0.45 t^2 in units of its root; the first trial is turned
    into a guess of the root by that, later ones by the secant through the last two.
    """

    low: Tensor  # the largest radius certified
    high: Tensor  # the smallest radius that was not
    root: Tensor  # where the margin is thought to vanish
    trial: Tensor
    last: Tensor  # the trial before, and its value
    value: Tensor
    limit: float
    precision: float

    @staticmethod
    def start(low: Tensor, guess: Tensor, *, limit: float, precision: float) -> _Search:
        trial = torch.where(guess > low, guess, 2 * low).clamp(max=limit)
        infinite, zero = torch.full_like(low, math.inf), torch.zeros_like(low)
        return _Search(low, infinite, infinite.clone(), trial, zero, zero + 1.0, limit, precision)

    def done(self) -> Tensor:
        """Whether a radius within the precision of the certified one has failed, or it is at the limit."""
        close = self.low >= self.high * (1 - self.precision)
        return close | (self.low >= self.limit) | (self.trial <= 0)

    def learn(self, rows: Tensor, value: Tensor) -> None:
        """Take in the smallest relative margin at the trials of some examples, and choose their next ones."""
        trial, last, before = self.trial[rows], self.last[rows], self.value[rows]
        good = value > 0
        low = torch.where(good, trial.maximum(self.low[rows]), self.low[rows])
        high = torch.where(good, self.high[rows], trial.minimum(self.high[rows]))
        share = ((0.3025 + 1.8 * (1 - value)).clamp(min=0.0).sqrt() - 0.55) / 0.9
        root = torch.where(last == 0, trial / share, trial + value * (trial - last) / (before - value))
        sound = root.isfinite() & (root > low) & (root < high)
        root = torch.where(
            sound, root, torch.where(high.isfinite(), low / 2 + high / 2, 2 * low.maximum(trial))
        )
        goal = (root * (1 - self.precision / 3)).maximum(low + (root - low) / 2)
        reached = low >= root * (1 - self.precision)  # the guess holds; what remains is to see more fail
        goal = torch.where(reached, (low * (1 + self.precision)).maximum(goal), goal)
        self.low[rows], self.high[rows], self.root[rows] = low, high, root
        self.last[rows], self.value[rows] = trial, value
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
        known = NodeBounds(tuple(Interval(-side, side.clone()) for side in empty), {}, {})
    for old, new in zip(known.intervals, found.intervals, strict=True):
        old.lower[rows], old.upper[rows] = new.lower[failed], new.upper[failed]
    return known
