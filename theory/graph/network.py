"""ReLU networks as computation graphs: linear operators, sums and ReLUs over tensors of one example each.

Any feed-forward network of dense, convolution, pooling, batch-norm (in evaluation), reshape, addition and
ReLU layers is such a graph: max pooling is max(a, b) = b + relu(a - b). Every linear operator knows its
transpose and the operator of absolute weights, which is all that bounds of values and of gradients need;
nothing is turned into a matrix.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from theory.graph.checks import check_number_type, check_tensor
from theory.types import InvalidInput, ReLUNetwork

Shape = tuple[int, ...]
# Names of the parameters from which a weight is computed: none of a constant, None of one that is its own.
Parameters = frozenset[str] | None


@runtime_checkable
class Linear(Protocol):
    """A linear operator on batches of tensors, without its bias."""

    def apply(self, x: Tensor) -> Tensor:
        """The operator on (N, *in), giving (N, *out)."""
        ...

    def transpose(self, c: Tensor) -> Tensor:
        """Its transpose on (N, *out), giving (N, *in)."""
        ...

    def magnitude(self) -> Linear:
        """The operator of the absolute weights."""
        ...

    @property
    def terms(self) -> int:
        """Upper bound of the number of products in one entry of ``apply`` plus one of ``transpose``."""
        ...


@dataclass(frozen=True)
class Dense:
    """x -> weight x for weight (out, in)."""

    weight: Tensor
    parameters: Parameters = None

    def apply(self, x: Tensor) -> Tensor:
        """See :class:`Linear`."""
        return x @ self.weight.mT

    def transpose(self, c: Tensor) -> Tensor:
        """See :class:`Linear`."""
        return c @ self.weight

    def magnitude(self) -> Dense:
        """See :class:`Linear`."""
        return self._absolute

    @cached_property
    def _absolute(self) -> Dense:
        return replace(self, weight=self.weight.abs())

    @property
    def terms(self) -> int:
        """See :class:`Linear`."""
        return sum(self.weight.shape)


@dataclass(frozen=True)
class Conv2d:
    """Cross-correlation of (channels, height, width) with weight (out, in / groups, h, w), zero padding."""

    weight: Tensor
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    inputs: Shape  # (channels, height, width)
    parameters: Parameters = None

    def apply(self, x: Tensor) -> Tensor:
        """See :class:`Linear`."""
        if x.dtype == torch.float32 and x.device.type == "cpu" and not _has_onednn():
            # Fewer than NNPACK takes, whose Winograd transform rounds by the size of whole tiles.
            return torch.cat([self._apply(part) for part in x.split(15)])
        return self._apply(x)

    def _apply(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, None, self.stride, self.padding, self.dilation, self.groups)

    def transpose(self, c: Tensor) -> Tensor:
        """See :class:`Linear`."""
        sides = zip(self.inputs[1:], c.shape[2:], self.stride, self.padding, self.dilation, strict=True)
        kernel = self.weight.shape[2:]
        rest = [
            side - ((out - 1) * step - 2 * pad + hole * (size - 1) + 1)
            for (side, out, step, pad, hole), size in zip(sides, kernel, strict=True)
        ]
        return F.conv_transpose2d(
            c, self.weight, None, self.stride, self.padding, rest, self.groups, self.dilation
        )

    def magnitude(self) -> Conv2d:
        """See :class:`Linear`."""
        return self._absolute

    @cached_property
    def _absolute(self) -> Conv2d:
        return replace(self, weight=self.weight.abs())

    @property
    def terms(self) -> int:
        """See :class:`Linear`."""
        out, into, *kernel = self.weight.shape
        return (out + into) * prod(kernel)


def _has_onednn() -> bool:
    """Whether float32 convolutions on a CPU are oneDNN's, which sums products as they are."""
    return torch.backends.mkldnn.is_available() and torch._C._get_mkldnn_enabled()


@dataclass(frozen=True)
class Scale:
    """Entrywise multiplication by factor, of a shape that broadcasts to one example's."""

    factor: Tensor

    def apply(self, x: Tensor) -> Tensor:
        """See :class:`Linear`."""
        return x * self.factor

    def transpose(self, c: Tensor) -> Tensor:
        """See :class:`Linear`."""
        return c * self.factor

    def magnitude(self) -> Scale:
        """See :class:`Linear`."""
        return self._absolute

    @cached_property
    def _absolute(self) -> Scale:
        return Scale(self.factor.abs())

    terms = 2


@dataclass(frozen=True)
class Gather:
    """Copies of chosen entries: index (*out) into the flattened tensor of shape ``inputs``."""

    index: Tensor
    inputs: Shape

    @cached_property
    def most(self) -> int:
        """How often the most copied entry is copied."""
        return int(torch.bincount(self.index.flatten()).amax())

    def apply(self, x: Tensor) -> Tensor:
        """See :class:`Linear`."""
        return x.flatten(1)[:, self.index]

    def transpose(self, c: Tensor) -> Tensor:
        """See :class:`Linear`."""
        out = torch.zeros(len(c), prod(self.inputs), dtype=c.dtype, device=c.device)
        out.index_add_(1, self.index.flatten(), c.flatten(1))
        return out.reshape(-1, *self.inputs)

    def magnitude(self) -> Gather:
        """See :class:`Linear`."""
        return self

    @property
    def terms(self) -> int:
        """See :class:`Linear`."""
        return 1 + self.most


@dataclass(frozen=True)
class Reshape:
    """The same entries under another shape."""

    inputs: Shape
    outputs: Shape

    def apply(self, x: Tensor) -> Tensor:
        """See :class:`Linear`."""
        return x.reshape(-1, *self.outputs)

    def transpose(self, c: Tensor) -> Tensor:
        """See :class:`Linear`."""
        return c.reshape(-1, *self.inputs)

    def magnitude(self) -> Reshape:
        """See :class:`Linear`."""
        return self

    terms = 0


@dataclass(frozen=True)
class Transposed:
    """The transpose of an operator, as an operator."""

    base: Linear

    def apply(self, x: Tensor) -> Tensor:
        """See :class:`Linear`."""
        return self.base.transpose(x)

    def transpose(self, c: Tensor) -> Tensor:
        """See :class:`Linear`."""
        return self.base.apply(c)

    def magnitude(self) -> Transposed:
        """See :class:`Linear`."""
        return self._absolute

    @cached_property
    def _absolute(self) -> Transposed:
        return Transposed(self.base.magnitude())

    @property
    def terms(self) -> int:
        """See :class:`Linear`."""
        return self.base.terms


@dataclass(frozen=True)
class Combine:
    """The sum of its inputs, each with sign +1 or -1."""

    signs: tuple[float, ...]


@dataclass(frozen=True)
class Activation:
    """z -> relu(z); in the graph of a gradient, z -> d z with d the derivative of ReLU number ``unit``."""

    unit: int | None = None


@dataclass(frozen=True)
class Source:
    """The input of the graph."""


@dataclass(frozen=True)
class Node:
    """What is done, the places of the inputs, the shape of one example, and a constant that is added."""

    operation: Linear | Combine | Activation | Source
    inputs: tuple[int, ...]
    shape: Shape
    bias: Tensor | None = None  # broadcasts to ``shape``; None for the source and for activations


@dataclass(frozen=True)
class Graph:
    """Nodes in topological order, the input first, the scores (c,) last. Tensors share dtype and device."""

    nodes: tuple[Node, ...]
    dtype: torch.dtype
    device: torch.device

    @property
    def classes(self) -> int:
        """Number of classes c."""
        return self.nodes[-1].shape[0]

    @cached_property
    def activations(self) -> tuple[int, ...]:
        """Places of the activations."""
        return tuple(i for i, node in enumerate(self.nodes) if isinstance(node.operation, Activation))

    @cached_property
    def linear(self) -> tuple[bool, ...]:
        """Whether each node is an affine function of the input."""
        found: list[bool] = []
        for node in self.nodes:
            is_activation = isinstance(node.operation, Activation)
            found.append(not is_activation and all(found[j] for j in node.inputs))
        return tuple(found)

    @cached_property
    def uses(self) -> tuple[int, ...]:
        """How often each node is an input of another."""
        counts = [0] * len(self.nodes)
        for node in self.nodes:
            for j in node.inputs:
                counts[j] += 1
        return tuple(counts)

    def values(self, x: Float[Tensor, "m *shape"]) -> list[Tensor]:
        """The value of every node, (m, *shape) each. Raises: InvalidInput as :meth:`check_inputs`."""
        values: list[Tensor] = []
        for node in self.nodes:
            match node.operation:
                case Source():
                    value = self.check_inputs(x)
                case Activation():
                    value = values[node.inputs[0]].clamp(min=0.0)
                case Combine(signs):
                    value = combined([values[j] for j in node.inputs], signs)
                case operation:
                    value = operation.apply(values[node.inputs[0]])
            values.append(value if node.bias is None else value + node.bias)
        return values

    def scores(self, x: Float[Tensor, "m *shape"]) -> Float[Tensor, "m c"]:
        """Logits of every example. Raises: InvalidInput as :meth:`check_inputs`."""
        return self.values(x)[-1]

    def check_inputs(self, x: Tensor) -> Tensor:
        """Return ``x`` in the graph's dtype and place.

        Raises: InvalidInput for NaN, infinity, complex numbers, a shape or what is no tensor, or as
          :func:`check_number_type`.
        """
        check_number_type(self.dtype, self.device)
        check_tensor("x", x)
        shape = self.nodes[0].shape
        if x.shape[1:] != shape or len(x) == 0:
            raise InvalidInput(
                f"x has shape {tuple(x.shape)}; the network takes (m, {str(shape)[1:-1]}), m >= 1"
            )
        if x.is_complex():
            raise InvalidInput(f"x has dtype {x.dtype}; the network takes real numbers")
        if not x.isfinite().all():
            raise InvalidInput("x has a NaN or infinite entry; remove it")
        converted = x.to(self.device, self.dtype)
        if converted.dtype != x.dtype and not converted.isfinite().all():
            raise InvalidInput(f"x has an entry beyond {self.dtype}; scale it, or read the graph in float64")
        return converted

    def check_labels(self, y: Tensor, *, examples: int) -> Tensor:
        """Return ``y`` as int64 in the graph's place. Raises: InvalidInput unless (m,) integers in [0, c)."""
        check_tensor("y", y)
        if y.shape != (examples,):
            raise InvalidInput(f"y has shape {tuple(y.shape)}; expected ({examples},), one label per example")
        if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
            raise InvalidInput(f"y has dtype {y.dtype}; labels must be integers in [0, {self.classes})")
        labels = y.to(self.device, torch.int64)  # beyond 2^63 negative
        if not ((labels >= 0) & (labels < self.classes)).all():
            given = y.tolist()
            raise InvalidInput(f"y holds {min(given)}..{max(given)}; labels must lie in [0, {self.classes})")
        return labels


def combined(parts: list[Tensor], signs: tuple[float, ...]) -> Tensor:
    """The signed sum of tensors of one shape, an identity."""
    total = parts[0] * signs[0]
    for part, sign in zip(parts[1:], signs[1:], strict=True):
        total = total + sign * part
    return total


def from_relu_network(
    net: ReLUNetwork, *, dtype: torch.dtype = torch.float64, device: str | torch.device = "cpu"
) -> Graph:
    """The fully connected network as a graph, an identity up to the rounding of its weights to ``dtype``.

    Raises: InvalidInput unless dtype is float64, or float32 on a CPU, or for weights that overflow it.
    """
    place = torch.device(device)
    check_number_type(dtype, place)
    nodes = [Node(Source(), (), (net.weights[0].shape[1],))]
    for layer, (weight, bias) in enumerate(zip(net.weights, net.biases, strict=True)):
        if layer:
            nodes.append(Node(Activation(), (len(nodes) - 1,), nodes[-1].shape))
        dense = Dense(torch.tensor(weight, dtype=dtype, device=place))
        offset = torch.tensor(bias, dtype=dtype, device=place)
        if not (dense.weight.isfinite().all() and offset.isfinite().all()):
            raise InvalidInput(f"weights[{layer}] or biases[{layer}] overflows {dtype}; use float64")
        nodes.append(Node(dense, (len(nodes) - 1,), (len(weight),), offset))
    return Graph(tuple(nodes), dtype, place)


def adjoint(graph: Graph) -> Graph:
    """The graph of gradients, an identity: from a cotangent of the scores (c,) to the gradient of the input.

    A ReLU becomes ``Activation(unit)``, multiplication by that ReLU's derivative, 0 or 1.
    """
    nodes = [Node(Source(), (), graph.nodes[-1].shape)]
    arriving: dict[int, list[tuple[int, float]]] = {len(graph.nodes) - 1: [(0, 1.0)]}
    for i in reversed(range(len(graph.nodes))):
        parts = arriving.get(i, [])
        node = graph.nodes[i]
        if not parts:  # nothing that the scores depend on
            continue
        if parts != [(parts[0][0], 1.0)]:
            places, signs = zip(*parts, strict=True)
            nodes.append(Node(Combine(signs), places, node.shape))
            here = len(nodes) - 1
        else:
            here = parts[0][0]
        match node.operation:
            case Source():
                if here != len(nodes) - 1:
                    nodes.append(Node(Combine((1.0,)), (here,), node.shape))
            case Combine(signs):
                for j, sign in zip(node.inputs, signs, strict=True):
                    arriving.setdefault(j, []).append((here, sign))
            case Activation():
                nodes.append(Node(Activation(i), (here,), node.shape))
                arriving.setdefault(node.inputs[0], []).append((len(nodes) - 1, 1.0))
            case operation:
                nodes.append(Node(Transposed(operation), (here,), graph.nodes[node.inputs[0]].shape))
                arriving.setdefault(node.inputs[0], []).append((len(nodes) - 1, 1.0))
    return Graph(tuple(nodes), graph.dtype, graph.device)
