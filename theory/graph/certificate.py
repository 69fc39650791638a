"""Certified radii on graphs: the largest l_p ball found whose margins stay positive, all targets at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from theory.graph.bounds import (
    Ball,
    Interval,
    Lines,
    NodeBounds,
    linear_row_norms,
    lower_bounds,
    node_bounds,
)
from theory.graph.constants import lipschitz_constants
from theory.graph.lipschitz import checked_ball, interval_gradient_norms, label_differences
from theory.graph.network import Graph
from theory.types import InvalidInput

LARGEST_RADIUS = 1e30
MOST_TRIALS = 40
TYPICAL_SHARE = 0.45  # of the distance to the linearised boundary that is usually certified: a first guess
CHUNK = 50  # examples bounded at once


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

    Raises: InvalidInput for bad x, y or p, or a radius that is negative, not finite or of another length.
    Reference: Zhang et al. 2018 (CROWN); Xu et al. 2021 (optimised slopes).
    """
    ball, labels = checked_ball(graph, x, y, p=p, radius=radius)
    found = _margins(graph, ball, labels, node_bounds(graph, ball), steps=steps)
    return found.scatter(1, labels[:, None], math.inf)


def _margins(graph: Graph, ball: Ball, labels: Tensor, bounds: NodeBounds, *, steps: int = 0) -> Tensor:
    """Lower bounds of e_y - e_k times the scores, (m, c); 0 or a little less at k = y."""
    rows = label_differences(graph, labels)
    last, sizes = len(graph.nodes) - 1, bounds.sizes
    best = lower_bounds(graph, last, rows, bounds.lines, sizes, ball)
    if not steps or not bounds.lines:
        return best
    shape = (1, rows.shape[1], *(1,) * 0)
    slopes = {}
    for i, line in bounds.lines.items():
        start = line.below[:, None].repeat(*shape, *(1,) * (line.below.dim() - 1))
        slopes[i] = start.clamp(0.05, 0.95).requires_grad_()
    optimiser = torch.optim.Adam(slopes.values(), lr=0.3)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.05 ** (1 / steps))
    for _ in range(steps):
        optimiser.zero_grad()
        lines = {i: _with_slope(line, slopes[i]) for i, line in bounds.lines.items()}
        found = lower_bounds(graph, last, rows, lines, sizes, ball)
        best = torch.fmax(best, found.detach())
        (-found.nan_to_num(0.0, 0.0, 0.0)).sum().backward()
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

    The largest radius found at which, for every other class k, CROWN's margin is positive or the margin at
    the centre exceeds the local Lipschitz constant times the radius. The search is a safeguarded secant to
    a relative ``precision``; stopping early costs tightness only. ``steps`` as in :func:`margin_bounds`. 0
    where x is not certainly classified as y; ``domain_radius`` where the search reaches it, and at most
    1e30.

    Raises: InvalidInput for bad x, y or p, precision outside (0, 1), steps or domain_radius < 0.
    Reference: the paper, section 3.2; Weng et al. 2018; Zhang et al. 2018 (CROWN).
    """
    if not 0 < precision < 1:
        raise InvalidInput(f"precision is {precision!r}; give a relative width in (0, 1)")
    if not domain_radius >= 0:
        raise InvalidInput(
            f"domain_radius is {domain_radius!r}; a radius is non-negative, math.inf for no limit"
        )
    if steps < 0:
        raise InvalidInput(f"steps is {steps}; give 0 or more ascent steps")
    still = torch.zeros(len(x), dtype=graph.dtype, device=graph.device)
    ball, labels = checked_ball(graph, x, y, p=p, radius=still)
    constants = lipschitz_constants(graph, p=p)
    row_norms = linear_row_norms(graph, q=ball.q)
    limit = min(domain_radius, LARGEST_RADIUS)
    parts = [
        _search(
            graph,
            ball.take(rows),
            labels[rows],
            constants,
            row_norms,
            limit=limit,
            precision=precision,
            steps=steps,
        )
        for rows in torch.arange(len(x), device=graph.device).split(CHUNK)
    ]
    return torch.cat(parts)


def _search(
    graph: Graph,
    ball: Ball,
    labels: Tensor,
    constants: Tensor,
    row_norms: dict[int, Tensor],
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
        bounds = node_bounds(graph, here, row_norms=row_norms, known=known)
        return _margins(graph, here, labels[rows], bounds, steps=steps), bounds

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
    return search.low


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
        """Whether the certified radius is within the precision of the root, or at the limit."""
        close = self.low >= torch.minimum(self.root, self.high) * (1 - self.precision)
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
        self.low[rows], self.high[rows], self.root[rows] = low, high, root
        self.last[rows], self.value[rows] = trial, value
        self.trial[rows] = goal.clamp(max=self.limit)


def _quotient(margins: Tensor, constants: Tensor) -> Tensor:
    """min_k margins / constants rounded down, a bound if margins are from below and constants from above."""
    ratio = torch.where(constants > 0, margins / constants, math.inf)
    ratio = torch.where(margins == math.inf, math.inf, ratio)
    ratio = ratio * (1 - 2 * torch.finfo(margins.dtype).eps)
    return ratio.amin(1).clamp(min=0.0)


def _smallest_failed(
    known: NodeBounds | None, found: NodeBounds, rows: Tensor, failed: Tensor, *, examples: int
) -> NodeBounds:
    """Intervals over each example's smallest ball that was too large: they hold in all smaller balls."""
    if known is None:
        empty = [b.lower.new_full((examples, *b.lower.shape[1:]), math.inf) for b in found.intervals]
        known = NodeBounds(tuple(Interval(-side, side.clone()) for side in empty), {})
    for old, new in zip(known.intervals, found.intervals, strict=True):
        old.lower[rows], old.upper[rows] = new.lower[failed], new.upper[failed]
    return known
