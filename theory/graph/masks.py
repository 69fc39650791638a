"""Random masks on graphs: rungs F and P1 of the expected gradient norm, for convolutions and residuals.

Every dense layer and convolution keeps each of its weights independently with probability 1 - alpha; a kernel
entry has one mask, shared by all positions. Pooling, normalisation and products with constants, which come
from no parameter, are not masked. For a fixed pair (i, k) of classes let J be the gradient of g_i - g_k; both
rungs bound E[ sup ||J|| ] over all activation patterns.

Two facts carry the theory of dense networks over. A path from input to score passes every operator at most
once, and one kernel entry there: its expected size is the product of (1 - alpha_j) |w_j|, whatever is shared.
And what is below an operator depends on other masks than its own, so the expectation of a product of norms is
the product of expectations; sums need no independence. Parameters that a module uses in two places count as
two layers, each with a mask of its own; :func:`repeated_parameters` says where that matters.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, isnan, sqrt

import torch
from torch import Tensor

from theory.graph.affine import norms
from theory.graph.checks import check_number_type
from theory.graph.constants import operator_norm, patches_of_one_entry
from theory.graph.network import (
    Activation,
    Combine,
    Conv2d,
    Dense,
    Graph,
    Source,
    combined,
)
from theory.graph.relaxation import EXTRA, eps_of, terms_of, tiny_of
from theory.types import InvalidInput, check_pair, check_sparsity


def expected_path_norm(graph: Graph, alphas: Sequence[float], pair: tuple[int, int]) -> float:
    """Rung P1, an identity for the expected path norm, so a bound of E sup ||J||_1.

    The sum over all paths of prod_j (1 - alpha_j) |w_j| E|v|: one pass of ones through the absolute weights,
    scaled by what is kept. ``alphas`` holds one sparsity per dense layer and convolution that has parameters,
    in order; that of the last node, of v = w_i - w_k, may be left out and is then 0.

    Raises: InvalidInput for alphas outside [0, 1] or of another length, a bad pair, or a last node that is
      not a dense layer.
    Reference: this project; the path norm is that of Neyshabur, Tomioka, Srebro 2015.
    """
    keep, first, _ = _checked(graph, alphas, pair)
    reach: list[Tensor] = []
    terms = EXTRA
    for i, node in enumerate(graph.nodes[:-1]):
        terms += terms_of(graph, node)
        match node.operation:
            case Source():
                value = torch.ones(1, *node.shape, dtype=graph.dtype, device=graph.device)
            case Activation():
                value = reach[node.inputs[0]]
            case Combine(signs):
                value = combined([reach[j] for j in node.inputs], (1.0,) * len(signs))
            case operation:
                value = operation.magnitude().apply(reach[node.inputs[0]]) * keep.get(i, 1.0) + tiny_of(graph)
        reach.append(value)
    total = float((reach[graph.nodes[-1].inputs[0]][0] * first).sum())
    return _or_infinite(total * (1 + (terms + len(first)) * eps_of(graph)) + len(first) * tiny_of(graph))


def frobenius_bound(graph: Graph, alphas: Sequence[float], pair: tuple[int, int]) -> float:
    """Rung F, a bound: E sup ||J||_2 by products of expected norms along the graph, sums of them at sums.

    A layer counts sqrt(1 - alpha) ||W||_F; a convolution sqrt(1 - alpha) times the root of the smaller of
    sum_w w^2 n_w, n_w the positions at which kernel entry w meets the image (its Frobenius norm as a
    matrix), and the largest overlap of patches times ||W||_F^2. ``alphas`` as in
    :func:`expected_path_norm`.

    Raises: InvalidInput as :func:`expected_path_norm`.
    Reference: the paper, theorem on nonlinear networks (section 3.2), q = 2; this project for graphs.
    """
    keep, _, second = _checked(graph, alphas, pair)
    reach: list[float] = []
    eps, tiny = eps_of(graph), tiny_of(graph)
    for i, node in enumerate(graph.nodes[:-1]):
        match node.operation:
            case Source():
                value = 1.0
            case Activation():
                value = reach[node.inputs[0]]
            case Combine():
                value = sum(reach[j] for j in node.inputs) * (1 + (len(node.inputs) + 4) * eps)
            case Dense() | Conv2d() as operation if i in keep:
                value = reach[node.inputs[0]] * sqrt(keep[i]) * _frobenius(operation, graph) + tiny
            case operation:
                before = node.inputs[0]
                size = operator_norm(operation, graph.nodes[before].shape, node.shape, graph=graph, q=2.0)
                value = reach[before] * float(size) * (1 + 4 * eps) + tiny
        reach.append(value)
    size = _root_sum(second) * (1 + (len(second) + EXTRA) * eps) + tiny
    return _or_infinite(reach[graph.nodes[-1].inputs[0]] * size * (1 + 8 * eps))


def _or_infinite(bound: float) -> float:
    """A bound without NaN, which an overflow leaves where it meets a weight of 0."""
    return inf if isnan(bound) else bound


def masked_operators(graph: Graph) -> list[int]:
    """Places of the operators with weights to remove, in order, an identity: dense layers, convolutions.

    Those whose weights come from no parameter have none.
    """
    return [
        i
        for i, node in enumerate(graph.nodes)
        if isinstance(node.operation, Dense | Conv2d) and node.operation.parameters != frozenset()
    ]


def hidden_operators(graph: Graph) -> list[int]:
    """Places of the masked operators before the last node, in order, an identity."""
    return [i for i in masked_operators(graph) if i < len(graph.nodes) - 1]


def repeated_parameters(graph: Graph) -> frozenset[str]:
    """Names of parameters that a path from input to score meets in two masked operators, an identity.

    A mask of such a parameter is none of two that are independent.
    """
    met: list[frozenset[str]] = []  # on the paths to each node
    found: frozenset[str] = frozenset()
    for node in graph.nodes:
        own = getattr(node.operation, "parameters", None) or frozenset()
        before = frozenset().union(*(met[j] for j in node.inputs))
        found |= own & before
        met.append(own | before)
    return found


def _frobenius(operation: Dense | Conv2d, graph: Graph) -> float:
    """sqrt of a bound of the squared norm of the unmasked operator, each weight's share in proportion."""
    size = operation.weight.double().abs()
    rounding = 1 + (size.numel() + EXTRA) * eps_of(graph)
    if isinstance(operation, Dense):
        return _root_sum(size) * rounding
    whole = _root_sum(size * _positions(operation).sqrt())
    return min(whole, sqrt(patches_of_one_entry(operation)) * _root_sum(size)) * rounding


def _root_sum(size: Tensor) -> float:
    """The l_2 norm of non-negative entries, which are divided by the largest lest their squares underflow."""
    return float(norms(size.reshape(1, 1, -1), q=2.0))


def _positions(operation: Conv2d) -> Tensor:
    """How often each place of the kernel meets the image and not its padding: (height, width)."""
    axes = []
    for axis, side in enumerate(operation.inputs[1:]):
        size, hole = operation.weight.shape[2 + axis], operation.dilation[axis]
        step, pad = operation.stride[axis], operation.padding[axis]
        outputs = (side + 2 * pad - hole * (size - 1) - 1) // step + 1
        places = torch.arange(outputs) * step - pad
        places = places + hole * torch.arange(size)[:, None]
        axes.append(((places >= 0) & (places < side)).sum(1).double())
    return (axes[0][:, None] * axes[1]).to(operation.weight.device)


def _checked(
    graph: Graph, alphas: Sequence[float], pair: tuple[int, int]
) -> tuple[dict[int, float], Tensor, Tensor]:
    """What each operator keeps, by its place; E|v| and the root of E v^2, entry by entry."""
    check_number_type(graph.dtype, graph.device)
    last = graph.nodes[-1].operation
    if not isinstance(last, Dense):
        raise InvalidInput(
            "graph ends in something else than a dense layer; give one that ends in its scores"
        )
    check_pair(pair, classes=graph.classes)
    places, hidden = masked_operators(graph), hidden_operators(graph)
    if len(alphas) not in (len(places), len(hidden)):
        raise InvalidInput(
            f"alphas has {len(alphas)} entries; give {len(places)}, one per dense layer and convolution "
            "that has parameters, or leave out that of the last node"
        )
    sparsities = [check_sparsity(f"alphas[{j}]", alpha) for j, alpha in enumerate(alphas)]
    dropped = sparsities[-1] if len(sparsities) > len(hidden) else 0.0
    kept = 1.0 - dropped
    a, b = last.weight[pair[0]].double(), last.weight[pair[1]].double()
    apart, sizes = (a - b).abs(), torch.stack([a.abs(), b.abs()], dim=1)
    first = kept * (kept * apart + dropped * sizes.sum(1))
    spread = kept**0.5 * (dropped**0.5 * sizes)
    second = norms(torch.cat([kept * apart[:, None], spread], dim=1)[None], q=2.0)[0]
    # What underflows counts as the smallest normal number; what is truly 0 does not.
    seen = (sizes > 0).any(1) if dropped > 0 else apart > 0
    lost = torch.zeros_like(apart).masked_fill_(seen & (kept > 0), torch.finfo(torch.float64).tiny)
    # 1 - alpha is rounded: one unit more is kept.
    keep = {i: (1.0 - s) * (1 + eps_of(graph)) for i, s in zip(places, sparsities, strict=False)}
    return keep, first + lost, second + lost
