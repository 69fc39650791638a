"""Local Lipschitz constants of logit differences over l_p balls: the gradient bounded on the adjoint graph.

Three steps. Intervals of the cotangent at every layer (Fast-Lip). Then every entry of the gradient along its
whole path to the scores (:mod:`theory.graph.entries`). Last, the *norm* is relaxed like an activation,
|g_i| <= a_i g_i + b_i on the interval of g_i, and sum_i a_i g_i is bounded as the one linear functional that
it is: entries share the derivatives they depend on, which a sum of entrywise bounds forgets.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from theory.graph.affine import AffinePart, norms, points_only
from theory.graph.backward import NodeBounds, lower_bounds
from theory.graph.bounds import Tighten, node_bounds, untightened
from theory.graph.checks import check_tensor
from theory.graph.compaction import compacted
from theory.graph.constants import lipschitz_constants
from theory.graph.entries import entry_bounds, is_exact
from theory.graph.network import Graph, adjoint
from theory.graph.relaxation import EXTRA, Ball, Interval, chord, eps_of, tiny_of
from theory.norms import dual
from theory.types import InvalidInput


def local_lipschitz(
    graph: Graph,
    x: Float[Tensor, "m *shape"],
    y: Int[Tensor, " m"],
    *,
    p: float,
    radius: Float[Tensor, " m"],
    constants: Float[Tensor, "c c"] | None = None,
    effort: int = 2,
    relaxed: bool = True,
) -> Float[Tensor, "m c"]:
    """Lipschitz constants of g_y - g_k in l_p on the ball around each example, a bound; 0 at k = y.

    Never above the global ``constants`` (default: :func:`theory.graph.constants.lipschitz_constants`), which
    are rounded up to the graph's dtype, and with more ``effort`` never above what less gives: 0 bounds the
    entries of the gradient by intervals, 1 by one linear relaxation for all classes, 2 by one for each.
    Where ``relaxed`` is False the values, on which the gradient depends, are bounded by intervals too: a few
    passes, where to relax every unit of a deep network backward takes as many as it has units.

    Raises: InvalidInput for bad x, y or p, a radius that is negative, not finite or of another length,
      constants of another shape, negative or NaN, or an effort other than 0, 1 and 2.
    Reference: the paper, section 3.2; Weng et al. 2018 (Fast-Lip) for the intervals; Shi et al. 2022 for the
      relaxation of each class and of the norm; this project for that of all classes at once.
    """
    if effort not in (0, 1, 2):
        raise InvalidInput(f"effort is {effort!r}; give 0, 1 or 2")
    graph, x = compacted(graph, x)
    ball, labels = checked_ball(graph, x, y, p=p, radius=radius)
    everywhere = lipschitz_constants(graph, p=p) if constants is None else constants
    check_tensor("constants", everywhere)
    if everywhere.shape != (graph.classes, graph.classes):
        raise InvalidInput(
            f"constants has shape {tuple(everywhere.shape)}; expected ({graph.classes}, {graph.classes})"
        )
    if not (everywhere >= 0).all():
        raise InvalidInput("constants has a negative or NaN entry; Lipschitz constants are non-negative")
    everywhere = rounded_up(everywhere.to(graph.device).double(), graph.dtype)
    bounds = node_bounds(graph, ball, tighten=None if relaxed else untightened)
    classes = torch.arange(graph.classes, device=graph.device).expand(len(labels), -1)
    others = classes[classes != labels[:, None]].reshape(len(labels), -1)
    rows = label_differences(graph, labels).gather(1, others[..., None].expand(-1, -1, graph.classes))
    found = gradient_norm_bounds(graph, rows, bounds, q=ball.q, effort=effort)
    found = torch.fmin(found, everywhere[labels].gather(1, others))
    return torch.zeros_like(everywhere[labels]).scatter(1, others, found)


def gradient_norm_bounds(
    graph: Graph, cotangents: Float[Tensor, "m k c"], bounds: NodeBounds, *, q: float, effort: int
) -> Float[Tensor, "m k"]:
    """||gradient of cotangent . scores||_q on the region of ``bounds``, a bound for each cotangent.

    Before their norm is relaxed, the entries of the gradient are bounded by intervals (``effort`` 0), then
    also along their whole path to the scores: by parallel lines (1), then by chords (2), as in
    :func:`theory.graph.entries.entry_bounds`. The smallest norm found counts.
    """
    m, k, _ = cotangents.shape
    reverse, flat = adjoint(graph), cotangents.flatten(0, 1)
    ball = Ball(flat, torch.zeros(m * k, dtype=graph.dtype, device=graph.device), q)
    units = {i: bounds.intervals[graph.nodes[i].inputs[0]] for i in graph.activations}
    each = torch.arange(m, device=graph.device).repeat_interleave(k)
    repeated = {i: z.take(each) for i, z in units.items()}
    part, last = points_only(reverse), len(reverse.nodes) - 1
    found = node_bounds(reverse, ball, units=repeated, part=part, tighten=_by_entries(units, effort=0))
    gradients, best = [found.intervals[last]], []
    inner = {reverse.nodes[i].inputs[0] for i in reverse.activations}
    loose = {i for i in inner if not reverse.linear[i] and not is_exact(reverse, i)}
    for level in range(1, 1 if is_exact(reverse, last) else effort + 1):
        tighten = _by_entries(units, effort=level)
        if loose:  # other nodes keep the bounds that they have
            best.append(_relaxed_norm(reverse, found, gradients, ball))
            found = replace(found, intervals=(*found.intervals[:last], gradients[-1]))
            found = node_bounds(reverse, ball, units=repeated, part=part, known=found, tighten=tighten)
            gradients = [found.intervals[last]]
        gradient = tighten(reverse, last, gradients[-1], found, ball, part)
        gradients = [gradient] if loose else [*gradients, gradient]
    best.append(_relaxed_norm(reverse, found, gradients, ball))
    return torch.stack(best).amin(0).unflatten(0, (m, k))


def _by_entries(units: dict[int, Interval], *, effort: int) -> Tighten:
    """The intervals of nodes of an adjoint met with bounds of their entries, unless they are exact."""

    def tighten(
        reverse: Graph, node: int, interval: Interval, before: NodeBounds, ball: Ball, part: AffinePart
    ) -> Interval:
        del ball, part
        if effort == 0 or is_exact(reverse, node):
            return interval
        return interval.meet(entry_bounds(reverse, node, before, units, chords=effort == 2))

    return tighten


def _relaxed_norm(reverse: Graph, found: NodeBounds, gradients: list[Interval], ball: Ball) -> Tensor:
    """The l_q norm of the gradient, a bound: entry by entry, and as one functional under lines around it.

    The smallest over several intervals of the gradient, each of which it lies in.
    """
    eps = eps_of(reverse)
    low = torch.stack([gradient.lower for gradient in gradients], dim=1).flatten(2)
    high = torch.stack([gradient.upper for gradient in gradients], dim=1).flatten(2)
    largest = torch.maximum(-low, high).amax(2, keepdim=True)
    # A power of two: division rounds nothing but what underflows.
    unit = largest / (2 * torch.frexp(largest)[0])
    unit = torch.where((largest > 0) & largest.isfinite() & unit.isfinite(), unit, 1.0)
    low, high = low / unit, high / unit
    size = torch.maximum(-low, high)
    terms = low.shape[2] + EXTRA
    if ball.q == 1:
        apart = size.sum(2)
        slope, intercept = chord(Interval(low, high))
    else:
        apart = size.square().sum(2).sqrt()
        slope, intercept = high + low, 8 * eps * size.square() - low * high
    rows = -slope.unflatten(2, reverse.nodes[-1].shape)
    last = len(reverse.nodes) - 1
    functional = -lower_bounds(reverse, last, rows, found, ball, points_only(reverse)).at(ball.radius)
    joint = functional / unit[..., 0]
    joint = joint + intercept.sum(2) + terms * (eps * intercept.abs().sum(2) + tiny_of(reverse))
    joint = joint.clamp(min=0.0) if ball.q == 1 else joint.clamp(min=0.0).sqrt()
    bound = torch.fmin(apart, joint) * unit[..., 0] * (1 + terms * eps) + tiny_of(reverse)
    bound = torch.where(apart == 0, 0.0, bound)
    return torch.where(bound.isnan() | ~largest[..., 0].isfinite(), torch.inf, bound).amin(1)


def label_differences(graph: Graph, y: Int[Tensor, " m"]) -> Float[Tensor, "m c c"]:
    """e_y - e_k for every class k, an identity; 0 at k = y."""
    eye = torch.eye(graph.classes, dtype=graph.dtype, device=graph.device)
    return eye[y][:, None] - eye


def checked_ball(graph: Graph, x: Tensor, y: Tensor, *, p: float, radius: Tensor) -> tuple[Ball, Tensor]:
    """Balls that contain those asked for, a bound, and the labels.

    Where the graph's numbers are fewer than those of x, the ball grows by what rounding moves its centre.

    Raises: InvalidInput as :func:`local_lipschitz`.
    """
    check_tensor("x", x)
    q, given = dual(p), x.detach()
    x = graph.check_inputs(given)
    labels = graph.check_labels(y, examples=len(x))
    if not isinstance(radius, Tensor):
        raise InvalidInput(f"radius is {radius!r}; give a tensor ({len(x)},), one radius per example")
    radius = radius.detach()
    if radius.shape != (len(x),):
        raise InvalidInput(f"radius has shape {tuple(radius.shape)}; expected ({len(x)},), one per example")
    if not (radius.isfinite() & (radius >= 0)).all():
        raise InvalidInput("radius has a negative, NaN or infinite entry; a ball needs a finite radius >= 0")
    return Ball(x, rounded_up(radius.to(x.device).double() + moved(given, x, q=q), graph.dtype), q), labels


def moved(given: Tensor, x: Tensor, *, q: float) -> Tensor:
    """The l_p distance, p dual to q, between inputs and their rounding to another type, a bound: (m,)."""
    if given.dtype == x.dtype:
        return x.new_zeros(len(x), dtype=torch.float64)
    gap = (given.to(x.device).double() - x.double()).abs().flatten(1)
    distance = gap.amax(1) if q == 1 else norms(gap[None], q=2.0)[0]
    return distance * (1 + 4 * gap.shape[1] * torch.finfo(torch.float64).eps)


def rounded_up(values: Float[Tensor, "*m"], dtype: torch.dtype) -> Float[Tensor, "*m"]:
    """The smallest numbers of a type that are at least these float64 values, a bound."""
    rounded = values.to(dtype)
    infinity = torch.full_like(rounded, torch.inf)
    return torch.where(rounded.double() < values, torch.nextafter(rounded, infinity), rounded)
