"""Local Lipschitz constants of logit differences over l_p balls: the gradient bounded on the adjoint graph.

Three steps, each cheap. Intervals of the cotangent at every layer (Fast-Lip). Then every entry of the
gradient along its whole path to the scores: a product d z with an unknown derivative d is z/2 up to |z|/2,
lines with one slope for all classes, so that one pass serves them all. Last, the *norm* is relaxed like an
activation, |g_i| <= a_i g_i + b_i on the interval of g_i, and sum_i a_i g_i is bounded as the one linear
functional that it is: entries share the derivatives they depend on, which a sum of entrywise bounds
forgets.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

import torch
from jaxtyping import Float, Int
from torch import Tensor

from theory.graph.affine import ROW_ENTRIES, AffinePart, norms, points_only
from theory.graph.backward import NodeBounds, lower_bounds
from theory.graph.bounds import Tighten, node_bounds
from theory.graph.constants import lipschitz_constants
from theory.graph.network import Activation, Combine, Graph, Source, adjoint
from theory.graph.relaxation import EXTRA, Ball, Interval, eps_of, step_size, terms_of, tiny_of
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
) -> Float[Tensor, "m c"]:
    """Lipschitz constants of g_y - g_k in l_p on the ball around each example, a bound; 0 at k = y.

    Never above the global ``constants`` (default: :func:`theory.graph.constants.lipschitz_constants`).

    Raises: InvalidInput for bad x, y or p, a radius that is negative, not finite or of another length, or
      constants of another shape, negative or NaN.
    Reference: the paper, section 3.2; Weng et al. 2018 (Fast-Lip) and Zhang et al. 2019 (RecurJac) for the
      entrywise bounds; this project for parallel lines through the product and for the relaxed norm.
    """
    ball, labels = checked_ball(graph, x, y, p=p, radius=radius)
    everywhere = lipschitz_constants(graph, p=p) if constants is None else constants
    if everywhere.shape != (graph.classes, graph.classes):
        raise InvalidInput(
            f"constants has shape {tuple(everywhere.shape)}; expected ({graph.classes}, {graph.classes})"
        )
    if not (everywhere >= 0).all():
        raise InvalidInput("constants has a negative or NaN entry; Lipschitz constants are non-negative")
    bounds = node_bounds(graph, ball)
    found = gradient_norm_bounds(graph, label_differences(graph, labels), bounds, q=ball.q)
    found = torch.fmin(found, everywhere[labels])
    return found.scatter(1, labels[:, None], 0.0)


def gradient_norm_bounds(
    graph: Graph, cotangents: Float[Tensor, "m k c"], bounds: NodeBounds, *, q: float, quick: bool = False
) -> Float[Tensor, "m k"]:
    """||gradient of cotangent . scores||_q on the region of ``bounds``, a bound for each cotangent.

    If ``quick``, the entries of the gradient are bounded by intervals alone before their norm is relaxed: a
    little looser where few signs are open, and far cheaper for few cotangents.
    """
    m, k, _ = cotangents.shape
    units = {i: bounds.intervals[graph.nodes[i].inputs[0]] for i in graph.activations}

    def tighten(
        reverse: Graph, node: int, interval: Interval, before: NodeBounds, ball: Ball, _: AffinePart
    ) -> Interval:
        # Behind one layer of unknown derivatives the interval of a product with a dense matrix is exact.
        return interval.meet(_parallel(reverse, node, before, units, ball, cotangents=k))

    if quick:
        reverse, found, ball = _reverse_intervals(
            graph, cotangents, bounds, q=q, tighten=lambda _, __, interval, *___: interval
        )
    else:
        reverse, found, ball = _reverse_intervals(graph, cotangents, bounds, q=q, tighten=tighten)
        last = len(reverse.nodes) - 1
        entries = tighten(reverse, last, found.intervals[-1], found, ball, points_only(reverse))
        found = replace(found, intervals=(*found.intervals[:-1], entries))
    return _relaxed_norm(reverse, found, ball).reshape(m, k)


def _reverse_intervals(
    graph: Graph, cotangents: Tensor, bounds: NodeBounds, *, q: float, tighten: Tighten
) -> tuple[Graph, NodeBounds, Ball]:
    """The adjoint, bounds of its nodes, and its inputs: one ball of radius 0 for each cotangent."""
    m, k, classes = cotangents.shape
    reverse = adjoint(graph)
    still = torch.zeros(m * k, dtype=graph.dtype, device=graph.device)
    ball = Ball(cotangents.reshape(m * k, classes), still, q)
    repeated = {}
    for i in graph.activations:
        z = bounds.intervals[graph.nodes[i].inputs[0]]
        repeated[i] = Interval(z.lower.repeat_interleave(k, 0), z.upper.repeat_interleave(k, 0))
    found = node_bounds(reverse, ball, units=repeated, part=points_only(reverse), tighten=tighten)
    return reverse, found, ball


def _parallel(
    reverse: Graph, node: int, found: NodeBounds, units: dict[int, Interval], ball: Ball, *, cotangents: int
) -> Interval:
    """Every entry of a node of the adjoint, a bound: d z = z/2 +- |z|/2 for unknown d, backwards."""
    eps, tiny = eps_of(reverse), tiny_of(reverse)
    shape = reverse.nodes[node].shape
    n, examples = prod(shape), len(ball.centre) // cotangents
    sizes = [size.flatten(1).unflatten(0, (examples, cotangents)).mT for size in found.sizes]  # (m, N, k)
    start = ball.centre.unflatten(0, (examples, cotangents)).mT  # (m, c, k)
    largest = max(prod(here.shape) for here in reverse.nodes[: node + 1]) * examples
    lower, upper = [], []
    for part in torch.arange(n, device=reverse.device).split(max(1, ROW_ENTRIES // (4 * largest))):
        rows = torch.zeros(1, len(part), n, dtype=reverse.dtype, device=reverse.device)
        rows.scatter_(2, part[None, :, None], 1.0)
        reach = torch.zeros(examples, len(part), cotangents, dtype=reverse.dtype, device=reverse.device)
        arriving = {node: rows.unflatten(2, shape)}
        for i in range(node, 0, -1):
            if i not in arriving:
                continue
            coefficients, here = arriving.pop(i), reverse.nodes[i]
            flat, terms = coefficients.flatten(2).abs(), terms_of(reverse, here)
            reach = reach + terms * tiny * sum(sizes[j].sum(1)[:, None] for j in here.inputs)  # underflow
            match here.operation:
                case Activation(unit):
                    assert unit is not None
                    off, on = units[unit].upper <= 0, units[unit].lower >= 0
                    slope = torch.where(off, 0.0, torch.where(on, 1.0, 0.5)).to(reverse.dtype)
                    free = (slope == 0.5).flatten(1)[:, :, None]
                    size = sizes[here.inputs[0]]
                    reach = reach + flat @ (size * (free * 0.5 + terms * eps) + tiny)
                    passed = [(here.inputs[0], coefficients * slope[:, None])]
                case Combine(signs):
                    passed = [(j, s * coefficients) for j, s in zip(here.inputs, signs, strict=True)]
                    added = sum((sizes[j] for j in here.inputs), start=torch.zeros((), dtype=reverse.dtype))
                    reach = reach + flat @ (terms * (eps * added + tiny))
                case Source():
                    raise AssertionError("the source is node 0")
                case operation:
                    back = operation.transpose(coefficients.flatten(0, 1)).unflatten(
                        0, coefficients.shape[:2]
                    )
                    passed = [(here.inputs[0], back)]
                    inputs = [found.sizes[j] for j in here.inputs]
                    added = (
                        step_size(reverse, here, inputs).flatten(1).unflatten(0, (examples, cotangents)).mT
                    )
                    reach = reach + flat @ (terms * (eps * added + tiny))
            for j, more in passed:
                arriving[j] = arriving[j] + more if j in arriving else more
        last = arriving[0].flatten(2)
        middle = last @ start
        reach = reach + (len(start[0]) + EXTRA) * (eps * (last.abs() @ start.abs()) + tiny)
        terms = max(len(size[0]) for size in sizes) + len(reverse.nodes) + EXTRA
        reach = reach * (1 + terms * eps) + tiny
        lower.append(middle - reach - 2 * eps * middle.abs())
        upper.append(middle + reach + 2 * eps * middle.abs())
    both = [torch.cat(side, dim=1).mT.flatten(0, 1).unflatten(1, shape) for side in (lower, upper)]
    return Interval(*both)


def _relaxed_norm(reverse: Graph, found: NodeBounds, ball: Ball) -> Tensor:
    """The l_q norm of the gradient, a bound: entry by entry, and as one functional under lines around it."""
    eps = eps_of(reverse)
    gradient = found.intervals[-1]
    low, high = gradient.lower.flatten(1), gradient.upper.flatten(1)
    largest = torch.maximum(-low, high).amax(1, keepdim=True)
    unit = torch.where((largest > 0) & largest.isfinite(), largest, 1.0)
    # Widened by the rounding of the division.
    low, high = low / unit, high / unit
    low, high = low - 2 * eps * low.abs(), high + 2 * eps * high.abs()
    size = torch.maximum(-low, high)
    terms = low.shape[1] + EXTRA
    if ball.q == 1:
        apart = size.sum(1)
        mixed = (low < 0) & (high > 0)
        sign = torch.where(low >= 0, 1.0, -1.0)
        slope = torch.where(mixed, (high + low) / torch.where(mixed, high - low, 1.0), sign)
        intercept = torch.maximum(high - slope * high, -low - slope * low) + 8 * eps * size
        intercept = torch.where(mixed, intercept, 0.0)
    else:
        apart = size.square().sum(1).sqrt()
        slope, intercept = high + low, 8 * eps * size.square() - low * high
    rows = -slope.reshape(len(slope), 1, *reverse.nodes[-1].shape)
    last = len(reverse.nodes) - 1
    functional = -lower_bounds(reverse, last, rows, found, ball, points_only(reverse)).at(ball.radius)[:, 0]
    joint = functional / unit[:, 0] * (1 + 2 * eps * functional.sign())
    joint = joint + intercept.sum(1) + terms * eps * intercept.abs().sum(1)
    joint = joint.clamp(min=0.0) if ball.q == 1 else joint.clamp(min=0.0).sqrt()
    bound = torch.fmin(apart, joint) * unit[:, 0] * (1 + terms * eps) + tiny_of(reverse)
    bound = torch.where(apart == 0, 0.0, bound)
    return torch.where(bound.isnan() | ~largest[:, 0].isfinite(), torch.inf, bound)


def label_differences(graph: Graph, y: Int[Tensor, " m"]) -> Float[Tensor, "m c c"]:
    """e_y - e_k for every class k, an identity; 0 at k = y."""
    eye = torch.eye(graph.classes, dtype=graph.dtype, device=graph.device)
    return eye[y][:, None] - eye


def checked_ball(graph: Graph, x: Tensor, y: Tensor, *, p: float, radius: Tensor) -> tuple[Ball, Tensor]:
    """Balls that contain those asked for, a bound, and the labels.

    Where the graph's numbers are fewer than those of x, the ball grows by what rounding moves its centre.

    Raises: InvalidInput as :func:`local_lipschitz`.
    """
    q, given = dual(p), x
    x = graph.check_inputs(x)
    labels = graph.check_labels(y, examples=len(x))
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


def rounded_up(values: Float[Tensor, " m"], dtype: torch.dtype) -> Float[Tensor, " m"]:
    """The smallest numbers of a type that are at least these float64 values, a bound."""
    rounded = values.to(dtype)
    infinity = torch.full_like(rounded, torch.inf)
    return torch.where(rounded.double() < values, torch.nextafter(rounded, infinity), rounded)
