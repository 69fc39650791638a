"""Lower slopes of ReLUs chosen by ascent: every slope in [0, 1] gives a bound, each row takes its best."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from theory.graph.affine import AffinePart
from theory.graph.backward import Falling, NodeBounds, lower_bounds
from theory.graph.network import Graph
from theory.graph.relaxation import Ball, Lines

RATE, LAST_RATE = 0.3, 0.015  # of the first step and of the last


@torch.enable_grad()  # whatever the caller's mode: slopes climb by gradients
def optimised_bounds(
    graph: Graph,
    node: int,
    rows: Tensor,
    found: NodeBounds,
    ball: Ball,
    part: AffinePart,
    *,
    steps: int,
    offset: Tensor | None = None,
) -> Falling:
    """:func:`theory.graph.backward.lower_bounds` with the lower slopes of all ReLUs optimised for each row.

    By ``steps`` steps of Adam, from the adaptive slopes on; the best bound of each row that was seen counts,
    so more never comes out below the plain bound.

    Reference: Xu et al. 2021, Fast and Complete.
    """
    best = lower_bounds(graph, node, rows, found, ball, part, offset=offset)
    lines = {i: line for i, line in found.lines.items() if i <= node}
    if not steps or not lines:
        return best
    count = rows.shape[1]
    slopes = {
        i: line.below[:, None].repeat_interleave(count, 1).clamp(0.05, 0.95).requires_grad_()
        for i, line in lines.items()
    }
    optimiser = torch.optim.Adam(slopes.values(), lr=RATE)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, (LAST_RATE / RATE) ** (1 / steps))
    for _ in range(steps):
        optimiser.zero_grad()
        sloped = {i: _with_slope(line, slopes[i]) for i, line in lines.items()}
        tried = lower_bounds(graph, node, rows, replace(found, lines=sloped), ball, part, offset=offset)
        values = tried.at(ball.radius)
        better = values.detach() > best.at(ball.radius)
        best = Falling(
            torch.where(better, tried.start.detach(), best.start),
            torch.where(better, tried.slope.detach(), best.slope),
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
