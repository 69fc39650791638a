"""Laws of networks as graphs: operators, bounds over balls, Lipschitz constants, certificates, random masks.

A law raises AssertionError when the candidate breaks it, so a test can also show that it rejects a wrong one.
The truths come from the forward pass alone: points of the ball steered by automatic differentiation,
difference quotients, matrices written out, all masks, and linear programs over all activation patterns.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

from theory.graph.masks import masked_operators
from theory.graph.network import (
    Activation,
    Conv2d,
    Dense,
    Gather,
    Graph,
    Linear,
    Node,
    Reshape,
    Scale,
    Transposed,
)
from theory.laws.measure import at_most
from theory.laws.relu import activation_patterns
from theory.norms import dual, norm
from theory.types import ReLUNetwork

# Scores and norms are float64 sums of at most some hundred terms, each good to about 1e-16 of the largest.
ROUNDING = 1e-12
# A linear program is solved to about 1e-7 of its numbers.
PROGRAM_TOLERANCE = 1e-6
OPERATORS = (Dense, Conv2d, Scale, Gather, Reshape, Transposed)
FARTHEST = 1e6  # a finite stand-in for a radius where everything is certified

Rung = Callable[[Graph, list[float], tuple[int, int]], float]


# ---- The network


def law_reads_the_module(graph: Graph, module: nn.Module, x: Tensor) -> None:
    """The graph's scores are the module's, to rounding; the module is in evaluation mode."""
    with torch.no_grad():
        expected = module(x)
    found = graph.scores(x)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= ROUNDING * max(1.0, float(expected.abs().max()))


def in_float64(graph: Graph) -> Graph:
    """The same network, its numbers widened without any rounding."""

    def widened(operation):
        match operation:
            case Dense(weight) | Conv2d(weight):
                return replace(operation, weight=weight.double())
            case Scale(factor):
                return Scale(factor.double())
            case _:
                return operation

    nodes = [
        replace(n, operation=widened(n.operation), bias=None if n.bias is None else n.bias.double())
        for n in graph.nodes
    ]
    return Graph(tuple(nodes), torch.float64, graph.device)


def relu_of(graph: Graph) -> Node:
    """A ReLU of the scores, as a last node."""
    return Node(Activation(), (len(graph.nodes) - 1,), graph.nodes[-1].shape)


def matrix_of(operation: Linear, inputs: tuple[int, ...]) -> Tensor:
    """The operator written out, (out, in)."""
    count = math.prod(inputs)
    return operation.apply(torch.eye(count, dtype=torch.float64).reshape(-1, *inputs)).flatten(1).mT


def law_transposes(operation: Linear, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> None:
    """``transpose`` is the transpose, ``magnitude`` dominates, and ``terms`` counts the products."""
    matrix = matrix_of(operation, inputs)
    back = operation.transpose(torch.eye(len(matrix), dtype=torch.float64).reshape(-1, *outputs)).flatten(1)
    assert (back - matrix).abs().max() <= ROUNDING * (1 + matrix.abs().max())
    size = matrix_of(operation.magnitude(), inputs)
    assert (size >= matrix.abs() * (1 - ROUNDING)).all()
    counts = matrix != 0
    assert counts.sum(1).max() + counts.sum(0).max() <= operation.terms + 2


def law_bounds_operator(
    candidate: Callable[[Linear, tuple[int, ...]], float],
    operation: Linear,
    inputs: tuple[int, ...],
    *,
    q: float,
) -> None:
    """The candidate is at least the largest singular value (q = 2) or absolute row sum (q = 1)."""
    matrix = matrix_of(operation, inputs)
    truth = torch.linalg.matrix_norm(matrix, ord=2) if q == 2 else matrix.abs().sum(1).max()
    assert candidate(operation, inputs) >= float(truth) * (1 - 4 * np.finfo(float).eps)


# ---- Points of the ball


def ball_points(graph: Graph, x: Tensor, y: Tensor, radius: Tensor, *, p: float, steps: int = 3) -> Tensor:
    """Points of the closed l_p balls, (k, m, *shape): axes, random directions, descent of every margin."""
    generator = torch.Generator().manual_seed(0)
    m, shape, n, classes = len(x), x.shape[1:], x[0].numel(), graph.classes
    limit = radius.clamp(max=FARTHEST).reshape(-1, *(1,) * len(shape))

    def towards(direction: Tensor) -> Tensor:
        flat = direction.flatten(2)
        length = flat.norm(dim=2) if p == 2 else flat.abs().amax(2)
        unit = flat / torch.where(length > 0, length, 1.0)[..., None]
        return x + limit * unit.reshape(direction.shape)

    random = torch.randn(6, *x.shape, generator=generator, dtype=x.dtype)
    points = [x[None], towards(random.sign() if p == math.inf else random)]
    points.append(
        x + torch.tensor([0.5, 0.9], dtype=x.dtype).reshape(2, *(1,) * x.dim()) * (points[1][:2] - x)
    )
    axes = torch.eye(n, dtype=x.dtype)[: min(n, 6)].reshape(-1, 1, 1, *shape)
    points.append(
        towards(
            (axes * torch.tensor([1.0, -1.0]).to(axes).reshape(2, *(1,) * x.dim()))
            .flatten(0, 1)
            .expand(-1, m, *shape)
        )
    )
    here = x.expand(classes, *x.shape)
    for _ in range(steps):  # of all classes at once
        here = here.detach().requires_grad_()
        scores = graph.scores(here.flatten(0, 1)).unflatten(0, (classes, m))
        own = scores.gather(2, y[None, :, None].expand(classes, -1, -1))[..., 0]
        (gradient,) = torch.autograd.grad((own - scores.diagonal(dim1=0, dim2=2).mT).sum(), here)
        here = towards(-gradient if p == 2 else -gradient.sign()).detach()
        points.append(here)
    return torch.cat(points)


def values_at(graph: Graph, points: Tensor) -> tuple[list[Tensor], Tensor]:
    """Values of all nodes at points (k, m, *shape), (k, m, *) each, and the largest size at each k, (k,)."""
    values = [v.unflatten(0, points.shape[:2]) for v in graph.values(points.flatten(0, 1))]
    sizes = torch.stack([v.detach().flatten(1).abs().amax(1) for v in values])
    return values, sizes.amax(0)


def law_contains_values(bounds: Callable, graph: Graph, x: Tensor, radius: Tensor, *, p: float) -> None:
    """lower <= value <= upper for every node at every point of the balls; ``bounds`` gives both per node."""
    sides = bounds(graph, x, radius, p=p)
    y = graph.scores(x).argmax(1)
    values, _ = values_at(graph, ball_points(graph, x, y, radius, p=p))
    for value, (lower, upper) in zip(values, sides, strict=True):
        assert lower.shape == upper.shape == value.shape[1:]
        assert not (lower.isnan() | upper.isnan()).any()
        largest = value.flatten(1).abs().amax(1)
        slack = ROUNDING * largest.reshape(-1, *(1,) * (value.dim() - 1))
        assert ((value >= lower - slack) & (value <= upper + slack)).all()


def law_margins_below_points(
    margins: Callable, graph: Graph, x: Tensor, y: Tensor, radius: Tensor, *, p: float
) -> float:
    """The margin of every class at every point of the balls is at least the candidate's; +inf at k = y."""
    found = margins(graph, x, y, p=p, radius=radius)
    assert not found.isnan().any()
    assert (found.gather(1, y[:, None]) == math.inf).all()
    others = torch.arange(graph.classes) != y[:, None]
    values, sizes = values_at(graph, ball_points(graph, x, y, radius, p=p))
    truth = _margins(values[-1], y)[:, others]
    return at_most(found[others].expand_as(truth), truth, slack=ROUNDING * sizes[:, None])


def _margins(scores: Tensor, y: Tensor) -> Tensor:
    """g_y - g_k at points (k, m, c)."""
    return scores.gather(2, y[None, :, None].expand(len(scores), -1, -1)) - scores


def law_bounds_difference_quotients(
    constants: Callable, graph: Graph, x: Tensor, y: Tensor, radius: Tensor, *, p: float
) -> float:
    """|margin(a) - margin(b)| <= L ||a - b||_p for points a, b of a ball: the definition, near and far."""
    table = constants(graph, x, y, p=p, radius=radius)
    assert not table.isnan().any()
    assert (table.gather(1, y[:, None]) == 0).all()
    points = ball_points(graph, x, y, radius, p=p)
    start = torch.Generator().manual_seed(1)
    near = points + 1e-3 * (
        points[torch.randperm(len(points), generator=start)] - points
    )  # the ball is convex
    both = torch.cat([points, near])
    values, sizes = values_at(graph, both)
    margins, count = _margins(values[-1], y), len(points)
    every = torch.arange(count)
    first = torch.cat([every, every[1:], torch.zeros_like(every)])
    second = torch.cat([every + count, every[:-1], every])
    gap = (both[first] - both[second]).flatten(2)
    distance = gap.norm(dim=2) if p == 2 else gap.abs().amax(2)
    rise = (margins[first] - margins[second]).abs()
    return at_most(rise, table * distance[..., None], slack=ROUNDING * float(sizes[:count].amax()))


def law_bounds_generic_gradients(
    constants: Callable, graph: Graph, x: Tensor, y: Tensor, radius: Tensor, *, p: float
) -> float:
    """L is at least ||gradient||_q at every point of the ball where no ReLU is at its kink."""
    table = constants(graph, x, y, p=p, radius=radius)
    points = ball_points(graph, x, y, radius, p=p).detach()
    points = points.expand(graph.classes, *points.shape).flatten(0, 1).requires_grad_()  # a copy for each k
    values, _ = values_at(graph, points)
    generic = torch.ones(points.shape[:2], dtype=torch.bool)
    for j in {graph.nodes[i].inputs[0] for i in graph.activations}:
        generic &= (values[j].flatten(2).abs() > 1e-9).all(2)
    margins = _margins(values[-1], y).unflatten(0, (graph.classes, -1))
    (gradient,) = torch.autograd.grad(margins.diagonal(dim1=0, dim2=3).sum(), points)
    flat = gradient.flatten(2)
    truth = flat.norm(dim=2) if dual(p) == 2 else flat.abs().sum(2)
    bound = table.mT[:, None].expand(-1, len(points) // graph.classes, -1).flatten(0, 1)
    truth = truth[generic]
    return at_most(truth, bound[generic], slack=truth * ROUNDING)


def law_no_attack_inside(radius: Tensor, graph: Graph, x: Tensor, y: Tensor, *, p: float) -> None:
    """No point of a certified ball is misclassified, up to the rounding of the evaluation there."""
    assert radius.shape == (len(x),)
    assert (radius >= 0).all()
    values, sizes = values_at(graph, ball_points(graph, x, y, radius.double(), p=p, steps=5))
    slack = ROUNDING * sizes[:, None, None]
    assert ((_margins(values[-1], y) >= -slack).all(2) | (radius == 0)).all()


# ---- Tiny networks, exactly


def patterns_in_box(
    net: ReLUNetwork, x: np.ndarray, radius: float
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Every activation pattern of a part of the box with inner points: A x <= b there, and scores G x + h.

    A and b hold the signs of all units; the box itself is |x' - x| <= radius.
    """
    box = [(v - radius, v + radius) for v in x]
    for pattern in activation_patterns(net):
        matrix, offset = np.eye(len(x)), np.zeros(len(x))
        rows, sides = [], []
        for weight, bias, on in zip(net.weights[:-1], net.biases[:-1], pattern, strict=True):
            matrix, offset = weight @ matrix, weight @ offset + bias
            sign = np.where(on > 0, -1.0, 1.0)  # on: -z <= 0; off: z <= 0
            rows.append(sign[:, None] * matrix)
            sides.append(-sign * offset)
            matrix, offset = on[:, None] * matrix, on * offset
        matrix, offset = net.weights[-1] @ matrix, net.weights[-1] @ offset + net.biases[-1]
        if not rows:
            yield np.zeros((1, len(x))), np.zeros(1), matrix, offset
            continue
        a, b = np.concatenate(rows), np.concatenate(sides)
        # The largest t with A x' + t <= b where a row is not constant: more than 0 if inner points exist.
        moving = np.abs(a).sum(1) > 0
        if (b[~moving] < 0).any():
            continue
        cost = np.append(np.zeros(len(x)), -1.0)
        inner = linprog(
            cost, np.column_stack([a, moving.astype(float)]), b, bounds=[*box, (None, 1.0)], method="highs"
        )
        if inner.status == 0 and -inner.fun > PROGRAM_TOLERANCE:
            yield a, b, matrix, offset


def least_margins(net: ReLUNetwork, x: np.ndarray, y: int, radius: float) -> np.ndarray:
    """min over the l_inf ball of g_y - g_k for every class k, by a linear program for each pattern."""
    box = [(v - radius, v + radius) for v in x]
    least = np.full(net.classes, math.inf)
    for a, b, matrix, offset in patterns_in_box(net, x, radius):
        for k in range(net.classes):
            found = linprog(matrix[y] - matrix[k], a, b, bounds=box, method="highs")
            if found.status == 0:
                least[k] = min(least[k], found.fun + offset[y] - offset[k])
    return least


def law_margins_below_exact(
    margins: np.ndarray, net: ReLUNetwork, x: np.ndarray, y: int, radius: float
) -> float:
    """The candidate's margins over the l_inf ball are at most the true minima; +inf at k = y."""
    exact = least_margins(net, x, y, radius)
    others = np.arange(net.classes) != y
    return at_most(margins[others], exact[others], slack=PROGRAM_TOLERANCE)


def law_bounds_every_pattern(
    constants: np.ndarray, net: ReLUNetwork, x: np.ndarray, y: int, radius: float
) -> None:
    """L[k] is at least ||gradient||_1 on every activation pattern with inner points in the l_inf ball."""
    for _, _, matrix, _ in patterns_in_box(net, x, radius):
        truth = norm(matrix[y] - matrix, p=1.0)
        assert (constants >= truth * (1 - ROUNDING)).all()


# ---- Random masks


def path_norm_by_rows(graph: Graph, pair: tuple[int, int]) -> float:
    """The path norm backwards: |v| through the transposes of the absolute operators, summed over inputs."""
    last = graph.nodes[-1]
    weight = last.operation.weight  # pyright: ignore[reportAttributeAccessIssue]
    arriving = {last.inputs[0]: (weight[pair[0]] - weight[pair[1]]).abs()[None]}
    for i in range(len(graph.nodes) - 2, 0, -1):
        if i not in arriving:
            continue
        node, value = graph.nodes[i], arriving.pop(i)
        back = value
        if isinstance(node.operation, OPERATORS):
            back = node.operation.magnitude().transpose(value)
        for j in node.inputs:
            arriving[j] = arriving[j] + back if j in arriving else back
    return float(arriving[0].sum())


def product_of_norms(graph: Graph, pair: tuple[int, int]) -> float:
    """||v||_2 times the spectral norms of the operators written out, along the graph; sums at sums."""
    reach: list[float] = []
    for node in graph.nodes[:-1]:
        before = [reach[j] for j in node.inputs]
        if isinstance(node.operation, OPERATORS):
            matrix = matrix_of(node.operation, graph.nodes[node.inputs[0]].shape)
            before = [before[0] * float(torch.linalg.matrix_norm(matrix, ord=2))]
        reach.append(sum(before) if before else 1.0)
    weight = graph.nodes[-1].operation.weight  # pyright: ignore[reportAttributeAccessIssue]
    return reach[graph.nodes[-1].inputs[0]] * float((weight[pair[0]] - weight[pair[1]]).norm())


def all_masked_graphs(graph: Graph, alphas: list[float]) -> Iterator[tuple[float, Graph]]:
    """The probability of every mask of the weights, one entry per kernel weight, and the masked network."""
    places = masked_operators(graph)
    weights = [graph.nodes[i].operation.weight for i in places]  # pyright: ignore
    choices = [
        itertools.product((0.0, 1.0), repeat=w.numel()) if alpha > 0 else [(1.0,) * w.numel()]
        for w, alpha in zip(weights, alphas, strict=True)
    ]
    for bits in itertools.product(*choices):
        probability, nodes = 1.0, list(graph.nodes)
        for i, weight, part, alpha in zip(places, weights, bits, alphas, strict=True):
            kept = int(sum(part))
            probability *= (1 - alpha) ** kept * alpha ** (len(part) - kept)
            mask = torch.tensor(part, dtype=weight.dtype).reshape(weight.shape)
            operation = replace(nodes[i].operation, weight=weight * mask)  # pyright: ignore
            nodes[i] = replace(nodes[i], operation=operation)
        yield probability, Graph(tuple(nodes), graph.dtype, graph.device)


def with_kernel(graph: Graph, weight: Tensor) -> Graph:
    """The same network with other weights in its first operator."""
    nodes = list(graph.nodes)
    nodes[1] = replace(nodes[1], operation=replace(nodes[1].operation, weight=weight))  # pyright: ignore
    return Graph(tuple(nodes), graph.dtype, graph.device)


def expectation_over_masks(value: Callable[[Graph], float], graph: Graph, alphas: list[float]) -> float:
    """E[value of the masked network] over all masks."""
    return math.fsum(chance * value(masked) for chance, masked in all_masked_graphs(graph, alphas) if chance)


def law_equals_expectation(
    identity: Rung, value: Callable[[Graph], float], graph: Graph, alphas: list[float], pair: tuple[int, int]
) -> None:
    """The rung is the expectation over all masks."""
    truth = expectation_over_masks(value, graph, alphas)
    assert math.isclose(identity(graph, alphas, pair), truth, rel_tol=1e-11, abs_tol=1e-200)


def law_bounds_expectation(
    rung: Rung, value: Callable[[Graph], float], graph: Graph, alphas: list[float], pair: tuple[int, int]
) -> None:
    """The rung is at least the expectation over all masks."""
    assert rung(graph, alphas, pair) >= expectation_over_masks(value, graph, alphas) * (1 - 1e-11)
