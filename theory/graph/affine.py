"""The part of a graph that is affine in the input: values at the centre of a ball, and how far rows reach.

A functional of an affine node is its value at the centre plus at most the radius times the l_q norm of its
row, so of all that lies before the first activations only that norm is ever computed. For q = 2 a wide first
layer W = R^T Q^T, Q with orthonormal columns, has ||c W||_2 = ||c R^T||_2: fewer columns, the same norms.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod, sqrt

import torch
from torch import Tensor

from theory.graph.network import Activation, Combine, Dense, Graph, Source, combined
from theory.graph.relaxation import EXTRA, eps_of, step_size, terms_of, tiny_of

ROW_ENTRIES = 2**24  # entries of the largest tensor of rows of an affine node
GROUP_ENTRIES = 2**17  # entries of coefficients of the input made at once: they stay in the cache
FACTOR_PRODUCTS = 8  # what a factor costs, in products of the first layer with a row for each of its units
GATHER_FROM = 2**13  # entries of the smallest weight whose rows without a coefficient are left out


@dataclass(frozen=True)
class Factor:
    """A first layer's root R^T, a stretch >= ||Q||, and for each of its rows what else a coefficient adds.

    ||c W||_2 <= stretch ||c R^T||_2 + |c| . gap, rounding of c R^T included.
    """

    node: int
    root: Tensor
    stretch: float
    gap: Tensor


@dataclass(frozen=True)
class AffinePart:
    """What the affine part of a graph does to an l_p ball of any centre and radius, p dual to ``q``.

    ``norms``: ||row||_q, a bound, of every node that feeds an activation; ``errors``: what rounding adds to
    the norm of a row, for each unit of a coefficient of an affine node that something else uses; ``lost``:
    what underflow adds to it. ``still`` for balls that are known to be points: no row is followed to the
    input.
    """

    q: float
    norms: dict[int, Tensor]
    errors: dict[int, Tensor]
    lost: float = 0.0
    factor: Factor | None = None
    still: bool = False


def norms(sizes: Tensor, *, q: float) -> Tensor:
    """l_q norm of non-negative entries over all axes but the first two, an identity to relative rounding.

    Subnormal norms, of which a rounding may be a large part, are not rounded down.
    """
    flat, limits = sizes.flatten(2), torch.finfo(sizes.dtype)
    if q == 1:
        return flat.sum(2)
    largest = flat.amax(2, keepdim=True)
    unit = torch.where((largest > 0) & largest.isfinite(), largest, 1.0)
    found = ((flat / unit).square().sum(2, keepdim=True).sqrt() * unit)[..., 0]
    return torch.where((found > 0) & (found < limits.tiny), found + limits.tiny * limits.eps, found)


def lengths(rows: Tensor, *, q: float) -> Tensor:
    """l_q norm over all axes but the first two, an identity to rounding; scaled where squares demand it."""
    flat, limits = rows.flatten(2), torch.finfo(rows.dtype)
    if q == 1:
        return flat.abs().sum(2)
    found = flat.square().sum(2).sqrt()
    ordinary = (found > sqrt(flat.shape[2] * limits.tiny) / limits.eps) & found.isfinite()
    return found if bool(ordinary.all()) else norms(flat.abs(), q=q)


def affine_part(graph: Graph, *, q: float, examples: int | None = None) -> AffinePart:
    """The affine part of a graph, a bound that depends on neither the balls nor their radii.

    It has a factor where that saves time: for the nodes of this many ``examples`` (None for very many).
    """
    found, sizes = {}, {}
    feeding = {graph.nodes[i].inputs[0] for i in graph.activations}
    sums = _absolute_sums(graph)
    for i in _entries(graph):
        if i in feeding and i > 0:
            found[i], sizes[i] = _row_norms(graph, i, q=q)
        else:
            sizes[i] = sums[i]  # the l_1 norm, which is none smaller
            if i in feeding:
                found[i] = torch.ones_like(sums[i])
    empty = {i: torch.zeros_like(size)[None, None] for i, size in sizes.items()}
    floor = _pull(graph, empty, absolute=True)
    rounding = _terms(graph) * eps_of(graph)
    lost = 0.0 if floor is None else 2 * rounding * float(norms(floor, q=q)[0, 0])
    factor = _factor(graph) if q == 2 and _repays_factor(graph, examples) else None
    errors = {i: rounding * size for i, size in sizes.items()}
    if factor and factor.node in errors:
        errors[factor.node] = errors[factor.node] + factor.gap
    return AffinePart(q, found, errors, lost, factor)


def points_only(graph: Graph) -> AffinePart:
    """The affine part of a graph whose balls all have radius 0, an identity."""
    zero = torch.zeros((), dtype=graph.dtype, device=graph.device)
    feeding = {graph.nodes[i].inputs[0] for i in graph.activations}
    return AffinePart(1.0, {i: zero for i in feeding if graph.linear[i]}, {}, still=True)


def affine_values(graph: Graph, x: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
    """Value at ``x`` of every affine node, and a bound of its rounding error."""
    found: dict[int, tuple[Tensor, Tensor, int]] = {}
    eps, tiny = eps_of(graph), tiny_of(graph)
    last = max(_entries(graph))
    for i, node in enumerate(graph.nodes[: last + 1]):
        if not graph.linear[i]:
            continue
        if isinstance(node.operation, Source):
            found[i] = (x, x.abs(), 0)
            continue
        parts = [found[j] for j in node.inputs]
        match node.operation:
            case Combine(signs):
                value = combined([v for v, _, _ in parts], signs)
            case operation:
                assert not isinstance(operation, Source | Activation)
                value = operation.apply(parts[0][0])
        value = value if node.bias is None else value + node.bias
        size = step_size(graph, node, [s for _, s, _ in parts]) + tiny / eps
        found[i] = (value, size, max(t for _, _, t in parts) + terms_of(graph, node))
    return {i: (v, t * (eps * s + tiny) * (1 + 4 * t * eps)) for i, (v, s, t) in found.items()}


def reaches(graph: Graph, part: AffinePart, arriving: dict[int, Tensor], error: Tensor) -> Tensor:
    """||sum_i rows_i . Jacobian of node i||_q, a bound: how far a functional of affine nodes moves in a unit
    ball.

    ``arriving`` holds (1 or m, r, *shape) by node, ``error`` is the sum of |rows_i| . errors_i, (1 or m, r),
    and so is the result.
    """
    eps = eps_of(graph)
    examples, count = max(len(c) for c in arriving.values()), next(iter(arriving.values())).shape[1]
    factor = part.factor if part.factor is not None and set(arriving) == {part.factor.node} else None
    before = graph.nodes[: max(arriving) + 1]
    columns = len(factor.root) if factor else max(prod(node.shape) for node in before)
    group = max(1, GROUP_ENTRIES // max(1, columns * count))
    found = []
    for start in range(0, examples, group):
        here = {i: c if len(c) == 1 else c[start : start + group] for i, c in arriving.items()}
        if factor:
            found.append(lengths(times(here[factor.node], factor.root), q=2.0) * factor.stretch)
        else:
            found.append(lengths(_pulled(graph, here), q=part.q))
    length = torch.cat(found) if len(found) > 1 else found[0]
    return (length + error + part.lost) * (1 + 2 * eps * (max(columns, prod(graph.nodes[0].shape)) + EXTRA))


def _entries(graph: Graph) -> list[int]:
    """Affine nodes that a node that is not affine uses, and the last one if it is affine."""
    used = {j for i, node in enumerate(graph.nodes) if not graph.linear[i] for j in node.inputs}
    return sorted(i for i in used | {len(graph.nodes) - 1} if graph.linear[i])


def _terms(graph: Graph) -> int:
    """Roundings of an entry of a row on its way through the affine part, a bound."""
    affine = (node for i, node in enumerate(graph.nodes) if i and graph.linear[i])
    return EXTRA + sum(terms_of(graph, node) for node in affine)


def _pulled(graph: Graph, arriving: dict[int, Tensor]) -> Tensor:
    found = _pull(graph, arriving)
    assert found is not None, "every affine node has the input behind it"
    return found


def _pull(graph: Graph, arriving: dict[int, Tensor], *, absolute: bool = False) -> Tensor | None:
    """Rows of affine nodes as rows of the input; None if there is none.

    If ``absolute``, through absolute weights, with the smallest normal number, in units of the rounding,
    added at every step: what underflows there is less.
    """
    arriving = dict(arriving)
    floor = tiny_of(graph) / eps_of(graph)
    for i in range(max(arriving, default=0), 0, -1):
        if i not in arriving:
            continue
        rows, here = arriving.pop(i), graph.nodes[i]
        match here.operation:
            case Combine(signs):
                signs = (1.0,) * len(signs) if absolute else signs
                passed = [(j, s * rows) for j, s in zip(here.inputs, signs, strict=True)]
            case Source() | Activation():
                raise AssertionError("not affine")
            case Dense(weight) if not absolute:
                passed = [(here.inputs[0], times(rows, weight))]
            case operation:
                operation = operation.magnitude() if absolute else operation
                back = operation.transpose(rows.flatten(0, 1)).unflatten(0, rows.shape[:2])
                passed = [(here.inputs[0], back + floor if absolute else back)]
        for j, more in passed:
            arriving[j] = arriving[j] + more if j in arriving else more
    return arriving.get(0)


def _unit_rows(graph: Graph, node: int, part: Tensor, *, absolute: bool = False) -> dict[int, Tensor]:
    """Some entries of an affine node as rows of it, or of what a dense layer is made of: its weights."""
    here = graph.nodes[node]
    if isinstance(here.operation, Dense):
        operation = here.operation.magnitude() if absolute else here.operation
        return {here.inputs[0]: operation.weight[None, part[0] : part[-1] + 1]}
    rows = torch.zeros(1, len(part), prod(here.shape), dtype=graph.dtype, device=graph.device)
    return {node: rows.scatter_(2, part[None, :, None], 1.0).unflatten(2, here.shape)}


def times(rows: Tensor, weight: Tensor) -> Tensor:
    """rows @ weight, an identity to rounding.

    Of large weights without the rows that only zeros meet, such as those of inactive units.
    """
    if weight.numel() < GATHER_FROM or rows.requires_grad or rows.device.type != "cpu":
        return rows @ weight
    used = (rows.abs().flatten(0, 1).sum(0) != 0).nonzero()[:, 0]
    if 4 * len(used) > 3 * rows.shape[2]:
        return rows @ weight
    return rows.index_select(2, used) @ weight.index_select(0, used)


def _row_norms(graph: Graph, node: int, *, q: float) -> tuple[Tensor, Tensor]:
    """||row||_q of a node, and of the products of absolute weights, both bounds: (*shape)."""
    shape, eps = graph.nodes[node].shape, eps_of(graph)
    count, grow = prod(shape), 1 + 8 * eps * (prod(graph.nodes[0].shape) + _terms(graph))
    largest = max(prod(n.shape) for n in graph.nodes[: node + 1])
    exact, sizes = [], []
    for part in torch.arange(count, device=graph.device).split(max(1, ROW_ENTRIES // largest)):
        size = _pull(graph, _unit_rows(graph, node, part, absolute=True), absolute=True)
        assert size is not None
        exact.append(lengths(_pulled(graph, _unit_rows(graph, node, part)), q=q)[0])
        sizes.append(norms(size, q=q)[0] * grow)
    found, absolute = torch.cat(exact), torch.cat(sizes)
    return ((found + _terms(graph) * eps * absolute) * grow).reshape(shape), absolute.reshape(shape)


def _absolute_sums(graph: Graph) -> dict[int, Tensor]:
    """The l_1 norm of every row of absolute weights of every affine node, a bound: (*shape) each."""
    eps, floor = eps_of(graph), tiny_of(graph) / eps_of(graph)
    found: dict[int, Tensor] = {}
    for i, node in enumerate(graph.nodes):
        if not graph.linear[i]:
            continue
        match node.operation:
            case Source() | Activation():
                size = torch.ones(1, *node.shape, dtype=graph.dtype, device=graph.device)
            case Combine(signs):
                size = combined([found[j][None] for j in node.inputs], (1.0,) * len(signs))
            case operation:
                inputs = prod(graph.nodes[0].shape)
                size = operation.magnitude().apply(found[node.inputs[0]][None]) + inputs * floor
        found[i] = size[0] * (1 + 2 * terms_of(graph, node) * eps)
    return found


def _repays_factor(graph: Graph, examples: int | None) -> bool:
    """Whether shorter rows, two for each input of a later activation, save more than the factor costs."""
    if examples is None:
        return True
    later = {i for node in graph.activations for i in graph.nodes[node].inputs if not graph.linear[i]}
    rows = 2 * examples * sum(prod(graph.nodes[i].shape) for i in later)
    first = prod(graph.nodes[0].shape)
    return any(
        rows * (first - len(node.operation.weight)) > FACTOR_PRODUCTS * node.operation.weight.numel()
        for node in graph.nodes
        if node.inputs == (0,) and isinstance(node.operation, Dense)
    )


def _factor(graph: Graph) -> Factor | None:
    """The factor of the first layer, if it is dense and has fewer outputs than inputs.

    Both numbers are measured: ||Q||^2 <= 1 + ||Q^T Q - I||_F, and the rows of W - R^T Q^T.
    """
    for i, node in enumerate(graph.nodes):
        if node.inputs == (0,) and isinstance(node.operation, Dense):
            weight = node.operation.weight.double()
            outputs, inputs = weight.shape
            if outputs >= inputs or not graph.linear[i]:
                continue
            eps, tiny = torch.finfo(torch.float64).eps, torch.finfo(torch.float64).tiny
            basis, root = torch.linalg.qr(weight.mT)
            root = root.mT.to(graph.dtype).double()
            apart = float(torch.linalg.matrix_norm(basis.mT @ basis - torch.eye(outputs).to(basis)))
            stretch = sqrt(1 + 2 * (apart + outputs * inputs * eps))
            length = norms(root.abs()[None], q=2.0)[0] + norms(weight.abs()[None], q=2.0)[0]
            gap = norms((weight - root @ basis.mT).abs()[None], q=2.0)[0]
            gap = gap + 4 * (outputs + EXTRA) * sqrt(outputs) * eps * length + inputs * outputs * tiny
            gap = gap + _terms(graph) * eps_of(graph) * length  # of the product of coefficients and root
            if not (gap.isfinite().all() and stretch < 2):
                return None
            rounded = gap.to(graph.dtype) * (1 + 4 * eps_of(graph)) + outputs * tiny_of(graph)
            return Factor(i, root.to(graph.dtype), stretch * (1 + 4 * eps_of(graph)), rounded)
    return None
