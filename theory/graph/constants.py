"""Global Lipschitz constants of a graph: norm products with certified spectral norms, and path norms.

Both follow the graph: a sum adds the constants of its parts, an operator multiplies by its norm. The spectral
norm of an operator is bounded from above, by LAPACK's singular value with its error, by overlapping patches
or by Hölder's inequality, never estimated from below by power iteration.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import gcd, prod, sqrt

import torch
from jaxtyping import Float
from torch import Tensor

from theory.graph.affine import norms
from theory.graph.checks import check_number_type
from theory.graph.network import (
    Activation,
    Combine,
    Conv2d,
    Dense,
    Graph,
    Linear,
    Reshape,
    Scale,
    Source,
    Transposed,
    adjoint,
    combined,
)
from theory.graph.relaxation import EXTRA, eps_of, terms_of, tiny_of
from theory.norms import dual

# Largest matrix whose singular value is computed, and largest convolution turned into one; beyond these,
# patches or Hölder's inequality serve.
MATRIX_ENTRIES = 2**24
DENSE_ENTRIES = 2**20


def path_norm(graph: Graph, *, p: float) -> Float[Tensor, "c c"]:
    """Path-norm constants of g_i - g_k in l_p, a bound: the absolute adjoint applied to |e_i - e_k| after
    the last layer.

    Holds for q = 1 and q = 2, as every activation pattern bounds the gradient entrywise by the sum of all
    paths.

    Raises: InvalidInput unless p is 2 or inf.
    Reference: Neyshabur, Tomioka, Srebro 2015; this project for the dual-norm form and for graphs.
    """
    q = dual(p)
    check_number_type(graph.dtype, graph.device)
    eye = torch.eye(graph.classes, dtype=graph.dtype, device=graph.device)
    pairs = (eye[:, None] - eye).flatten(0, 1)
    gradient, terms = path_sums(graph, pairs)
    roundings = terms + gradient[0].numel() + EXTRA
    table = norms(gradient[None], q=q)[0] * (1 + roundings * eps_of(graph)) + tiny_of(graph)
    table = torch.where(table.isnan(), torch.inf, table).reshape(graph.classes, graph.classes)
    return table.fill_diagonal_(0.0)


def path_sums(graph: Graph, cotangents: Float[Tensor, "k c"]) -> tuple[Float[Tensor, "k *shape"], int]:
    """The sum of all paths' sizes from each input to |cotangent . scores|, a bound with its count of
    roundings, for cotangents e_i - e_k.

    The affine part behind the last activations is signed: it is a difference of rows before any size is
    taken. Products that underflow count as the smallest normal number, so no path is lost.
    """
    reverse, eps, tiny = adjoint(graph), eps_of(graph), tiny_of(graph)
    values: list[tuple[Tensor, Tensor]] = []  # and the error of each, while it is still signed
    terms = EXTRA
    for i, node in enumerate(reverse.nodes):
        terms += terms_of(reverse, node)
        parts = [values[j] for j in node.inputs]
        if not reverse.linear[i]:
            parts = [(value.abs() + error, torch.zeros_like(error)) for value, error in parts]
        match node.operation:
            case Source():
                found = cotangents, torch.zeros_like(cotangents)
            case Activation():
                found = parts[0]
            case Combine(signs):
                signs = signs if reverse.linear[i] else (1.0,) * len(signs)
                ones = (1.0,) * len(signs)
                size = combined([value.abs() for value, _ in parts], ones)
                error = combined([error for _, error in parts], ones) + terms_of(reverse, node) * eps * size
                found = combined([value for value, _ in parts], signs), error
            case operation:
                value, error = parts[0]
                size = operation.magnitude()
                if (
                    node.inputs == (0,)
                    and isinstance(operation, Transposed)
                    and isinstance(operation.base, Dense)
                ):
                    # Of rows with at most two entries, 1 and -1: one rounding, and none where they are equal.
                    value = operation.apply(cotangents)
                    found = value, eps * value.abs()
                elif reverse.linear[i]:
                    error = size.apply(error + terms_of(reverse, node) * eps * value.abs())
                    error = error * (1 + terms_of(reverse, node) * eps) + terms_of(reverse, node) * tiny
                    found = operation.apply(value), error
                else:
                    enlarged = size.apply(value) + terms_of(reverse, node) * tiny
                    found = enlarged, torch.zeros_like(enlarged)
        values.append(found)
    value, error = values[-1]
    return value.abs() + error, terms


def norm_product(graph: Graph, *, p: float) -> Float[Tensor, "c c"]:
    """Norm-product constants of g_i - g_k in l_p, a bound, along the graph; the last layer by the pair's row.

    Operators count with their spectral norm (p = 2) or largest absolute row sum (p = inf), sums add up.

    Raises: InvalidInput unless p is 2 or inf.
    Reference: the paper, section 3.2; Szegedy et al. 2014, section 4.3.
    """
    q = dual(p)
    check_number_type(graph.dtype, graph.device)
    reach: list[Tensor] = []
    zero = torch.zeros((), dtype=graph.dtype, device=graph.device)
    eps, tiny = eps_of(graph), tiny_of(graph)
    last = graph.nodes[-1]
    for node in graph.nodes[:-1]:
        match node.operation:
            case Source():
                value = zero + 1.0
            case Activation():
                value = reach[node.inputs[0]]
            case Combine():
                value = sum((reach[j] for j in node.inputs), start=zero) * (1 + (len(node.inputs) + 4) * eps)
            case operation:
                (before,) = node.inputs
                size = operator_norm(operation, graph.nodes[before].shape, node.shape, graph=graph, q=q)
                value = reach[before] * size * (1 + 4 * eps) + tiny
        reach.append(value)
    if isinstance(last.operation, Dense):
        weight = last.operation.weight
        rows = weight[:, None] - weight
        size = norms(rows.abs(), q=q)
        table = reach[last.inputs[0]] * size * (1 + (weight.shape[1] + EXTRA) * eps)
    else:
        whole = sum((reach[j] for j in last.inputs), start=zero)
        if not isinstance(last.operation, Combine | Activation | Source):
            whole = whole * operator_norm(
                last.operation, graph.nodes[last.inputs[0]].shape, last.shape, graph=graph, q=q
            )
        whole = whole * ((2.0 if q == 1 else sqrt(2.0)) * (1 + (len(last.inputs) + 8) * eps))
        table = whole.expand(graph.classes, graph.classes).clone()
    return torch.where(table.isnan(), torch.inf, table + tiny).fill_diagonal_(0.0)


def lipschitz_constants(
    graph: Graph, *, p: float, products: Mapping[float, Float[Tensor, "c c"]] | None = None
) -> Float[Tensor, "c c"]:
    """Global Lipschitz constants of g_i - g_k in l_p, a bound: the smaller of norm product and path norm.

    For p = inf also sqrt(n) times the norm product in l_2, as ||.||_1 <= sqrt(n) ||.||_2 on n inputs.
    ``products`` are the norm products by p, where they are known already.

    Raises: InvalidInput unless p is 2 or inf.
    """
    known = {} if products is None else products

    def product(p: float) -> Tensor:
        return known[p] if p in known else norm_product(graph, p=p)

    smallest = torch.minimum(product(p), path_norm(graph, p=p))
    if dual(p) == 2:
        return smallest
    inputs = prod(graph.nodes[0].shape)
    widened = product(2.0) * (sqrt(inputs) * (1 + 8 * eps_of(graph)))
    return torch.minimum(smallest, widened)


def operator_norm(
    operation: Linear, inputs: tuple[int, ...], outputs: tuple[int, ...], *, graph: Graph, q: float
) -> Tensor:
    """||A||: the l_2 operator norm for q = 2, the largest l_1 norm of a row for q = 1, a bound.

    For q = 2: exact up to rounding for small operators and for diagonal ones; for a convolution the
    smallest of sqrt(largest overlap of patches) times the norm of its weights as a matrix of patches, and
    Hölder's sqrt(||A||_1 ||A||_inf); the matrix norm through LAPACK with its error added.
    """
    eps = eps_of(graph)
    one = torch.ones(1, *inputs, dtype=graph.dtype, device=graph.device)
    rows = operation.magnitude().apply(one).amax() * (1 + terms_bound(operation) * eps)
    if q == 1 or isinstance(operation, Reshape):
        return rows
    if isinstance(operation, Transposed):
        return operator_norm(operation.base, outputs, inputs, graph=graph, q=q)
    if isinstance(operation, Scale):
        return operation.factor.abs().amax()
    if isinstance(operation, Dense) and operation.weight.numel() <= MATRIX_ENTRIES:
        return _matrix_norm(operation.weight)
    other = torch.ones(1, *outputs, dtype=graph.dtype, device=graph.device)
    columns = operation.magnitude().transpose(other).amax() * (1 + terms_bound(operation) * eps)
    bound = rows.sqrt() * columns.sqrt() * (1 + 4 * eps)
    if isinstance(operation, Conv2d):
        overlap = patches_of_one_entry(operation)
        groups = operation.weight.flatten(1).chunk(operation.groups)
        patches = torch.stack([_matrix_norm(group) for group in groups]).amax()
        bound = torch.minimum(bound, patches * (sqrt(overlap) * (1 + 4 * eps)))
        if prod(inputs) * prod(outputs) <= DENSE_ENTRIES:
            eye = torch.eye(prod(inputs), dtype=graph.dtype, device=graph.device).reshape(-1, *inputs)
            bound = torch.minimum(bound, _matrix_norm(operation.apply(eye).flatten(1)))
    return bound


def patches_of_one_entry(operation: Conv2d) -> int:
    """How many places of the kernel one input entry can stand at, a bound of the overlap of patches.

    Places k and k' of one axis serve the same entry if dilation (k - k') is a multiple of the stride.
    """
    most = 1
    for size, step, hole in zip(
        operation.weight.shape[2:], operation.stride, operation.dilation, strict=True
    ):
        most *= -(-size // (step // gcd(step, hole)))
    return most


def terms_bound(operation: Linear) -> int:
    """Roundings of one entry of an operator, a bound."""
    return operation.terms + EXTRA


def _matrix_norm(matrix: Tensor) -> Tensor:
    """Largest singular value, a bound: LAPACK's in float64, with a generous (m + n) eps for its error."""
    wide = matrix.double().cpu()  # where it is LAPACK's
    eps, limits = torch.finfo(wide.dtype).eps, torch.finfo(matrix.dtype)
    largest = wide.abs().amax()
    unit = torch.where(largest > 0, largest, 1.0)
    value = torch.linalg.matrix_norm(wide / unit, ord=2) * unit * (1 + 16 * sum(wide.shape) * eps)
    return (value * (1 + 4 * limits.eps)).to(matrix) + limits.tiny
