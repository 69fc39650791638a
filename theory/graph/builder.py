"""A graph under construction: one method per operation of PyTorch, named as there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from theory.graph.network import (
    Activation,
    Combine,
    Conv2d,
    Dense,
    Gather,
    Graph,
    Linear,
    Node,
    Parameters,
    Reshape,
    Scale,
    Shape,
    Source,
    Transposed,
)
from theory.graph.windows import window_entries
from theory.types import InvalidInput


class Place(int):
    """The place of a node in the graph."""

    @property
    def at(self) -> int:
        """As a plain integer."""
        return int(self)


_BATCHED = "network uses a constant with a batch axis; only one per example is understood"


class Builder:
    """The nodes made so far. Each method takes what PyTorch's operation takes and gives its value's place.

    ``output`` is the shape of one example of the value under construction, ``examples`` the number of them in
    the traced call.
    """

    def __init__(self, shape: Shape, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device = dtype, device
        self.nodes = [Node(Source(), (), shape)]
        self.output: Shape = shape
        self.examples = 1

    def finish(self, last: int) -> Graph:
        """The graph whose scores are the value at ``last``, without what they do not depend on."""
        shape = self.nodes[last].shape
        if len(shape) != 1 or shape[0] < 2:
            remedy = "; for one score s return (0, s): torch.cat([0 * s, s], 1)" if shape == (1,) else ""
            raise InvalidInput(
                f"network returns {shape} per example; it needs one score per class, (c >= 2,){remedy}"
            )
        if last == 0:
            last = self.add(Combine((1.0,)), 0)
        used = {last}
        for i in range(last, 0, -1):
            if i in used:
                used.update(self.nodes[i].inputs)
        place = {i: k for k, i in enumerate(sorted(used))}
        nodes = (
            replace(
                node,
                operation=_with_axis(node.operation),
                inputs=tuple(place[j] for j in node.inputs),
                shape=node.shape or (1,),
            )
            for node in (self.nodes[i] for i in place)
        )
        return Graph(tuple(nodes), self.dtype, self.device)

    def add(
        self,
        operation: Linear | Combine | Activation,
        *inputs: int,
        bias: Tensor | None = None,
        shape: Shape | None = None,
    ) -> int:
        """Append a node, by default of the shape ``output``."""
        offset = None if bias is None else self._tensor(bias)
        self.nodes.append(Node(operation, inputs, self.output if shape is None else shape, offset))
        return len(self.nodes) - 1

    def _tensor(self, value: Tensor) -> Tensor:
        placed = value.detach().to(self.device, self.dtype, copy=True)  # the module may be trained on
        if not placed.isfinite().all():
            raise InvalidInput(f"network has a parameter that is NaN or infinite in {self.dtype}; remove it")
        return placed

    def reshape(self, x: Place, *_: Any) -> int:
        """Any change of shape that keeps the batch axis and the order of the entries."""
        return self.add(Reshape(self.nodes[x.at].shape, self.output), x.at)

    def move(self, x: Place, operation: Callable[[Tensor], Tensor], *, fill: float = 0.0) -> int:
        """Any choice, order and copies of entries: what the operation makes of places, -1 for ``fill``."""
        shape = self.nodes[x.at].shape
        count = prod(shape)
        first = count * torch.arange(self.examples).reshape(-1, *(1,) * len(self.output))
        places = torch.arange(self.examples * count, dtype=torch.float64).reshape(-1, *shape)
        found = operation(places).long()
        index = found[:1]
        inside = index >= 0
        if not inside.any():
            raise InvalidInput("network makes a value without entries, or of padding alone; leave it out")
        if not torch.equal(found, torch.where(inside, index + first, -1)) or int(index.max()) >= count:
            raise InvalidInput("network mixes the examples of a batch, or reads a single one of them")
        chosen = index[inside].to(self.device)
        whole = len(chosen) == count and bool((chosen == torch.arange(count, device=self.device)).all())
        if inside.all():
            return self.reshape(x) if whole else self.add(Gather(chosen.reshape(self.output), shape), x.at)
        row = (len(chosen),)
        gathered = self.add(Reshape(shape, row) if whole else Gather(chosen, shape), x.at, shape=row)
        placed = Transposed(Gather(inside.flatten().nonzero()[:, 0].to(self.device), self.output))
        around = torch.full(self.output, fill, dtype=torch.float64).masked_fill(inside[0], 0.0)
        return self.add(placed, gathered, bias=around if fill else None)

    def pad(self, x: Place, sides: Sequence[int], mode: str = "constant", value: float | None = None) -> int:
        """F.pad of any mode."""
        if mode == "constant":
            return self.constant_pad_nd(x, sides, value or 0.0)
        return self.move(x, lambda places: F.pad(places, sides, mode))

    def constant_pad_nd(self, x: Place, sides: Sequence[int], value: float = 0.0) -> int:
        """F.pad by a constant."""
        return self.move(x, lambda places: F.pad(places, sides, value=-1.0), fill=float(value))

    def cat(self, parts: list[Any], axis: int = 0) -> int:
        """The sum of its parts, each padded by zeros."""
        if not all(isinstance(part, Place) for part in parts):
            raise InvalidInput("network concatenates a constant, which is not understood; only values are")

        def padded(i: int) -> int:
            others = [-torch.ones(self.examples, *self.nodes[part.at].shape) for part in parts]
            return self.move(
                parts[i], lambda places: torch.cat([*others[:i], places, *others[i + 1 :]], axis)
            )

        return self.add(Combine((1.0,) * len(parts)), *map(padded, range(len(parts))))

    def linear(
        self,
        x: Place,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        parameters: Parameters = None,
    ) -> int:
        """F.linear on vectors; a weight with one axis gives one number."""
        if len(self.nodes[x.at].shape) != 1:
            raise InvalidInput("network applies a linear layer along one axis of several; flatten first")
        if weight.dim() == 1:
            row = self.add(Dense(self._tensor(weight[None]), parameters), x.at, bias=bias, shape=(1,))
            return self.reshape(Place(row))
        return self.add(Dense(self._tensor(weight), parameters), x.at, bias=bias)

    def addmm(self, bias: Tensor, x: Place, weight: Tensor, *, parameters: Parameters = None) -> int:
        """bias + x weight."""
        if bias.dim() > 1 and bias.shape[0] != 1:
            raise InvalidInput(_BATCHED)
        offset = bias.expand(*bias.shape[:-1], len(weight.mT)).reshape(-1)
        return self.linear(x, weight.mT, offset, parameters=parameters)

    def matmul(self, x: Place, weight: Tensor, *, parameters: Parameters = None) -> int:
        """x weight."""
        if not isinstance(weight, Tensor) or weight.dim() != 2:
            raise InvalidInput(
                "network multiplies by something else than a constant matrix; use a linear layer"
            )
        return self.linear(x, weight.mT, parameters=parameters)

    def conv2d(
        self,
        x: Place,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        *,
        parameters: Parameters = None,
    ) -> int:
        """F.conv2d with zero padding, equal at opposite sides."""
        holes = _pair(dilation)
        around = _padding(padding, weight, holes) if isinstance(padding, str) else _pair(padding)
        sizes = _pair(stride), around, holes, groups, self._image(x)
        operation = Conv2d(self._tensor(weight), *sizes, parameters)
        return self.add(operation, x.at, bias=None if bias is None else bias.reshape(-1, 1, 1))

    def _image(self, x: Place) -> Shape:
        shape = self.nodes[x.at].shape
        if len(shape) != 3:
            raise InvalidInput(
                f"network uses a 2-D operation on examples of shape {shape}; give (channels, height, width)"
            )
        return shape

    def relu(self, x: Place) -> int:
        """max(x, 0)."""
        return self.add(Activation(), x.at)

    def max_pool2d(
        self,
        x: Place,
        kernel: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: Any = 0,
    ) -> int:
        """A tree of max(a, b) = b + relu(a - b) over the entries of each window; ``output`` has the mode."""
        shape = self._image(x)
        index = window_entries(
            shape,
            self.output,
            kernel=_pair(kernel),
            stride=_pair(stride or kernel),
            padding=_pair(padding),
            dilation=_pair(dilation),
        )
        parts = [self.add(Gather(entry.to(self.device), shape), x.at) for entry in index]
        while len(parts) > 1:
            odd = parts[len(parts) // 2 * 2 :]
            parts = [self._maximum(a, b) for a, b in zip(parts[::2], parts[1::2], strict=False)] + odd
        return parts[0]

    def _maximum(self, a: int, b: int) -> int:
        excess = self.add(Activation(), self.add(Combine((1.0, -1.0)), a, b))
        return self.add(Combine((1.0, 1.0)), b, excess)

    def avg_pool2d(
        self,
        x: Place,
        kernel: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: Any = 0,
        count_include_pad: Any = 1,
        divisor_override: Any = None,
    ) -> int:
        """A convolution of each channel with equal weights; a scale after it where windows count apart.

        ``output`` has the mode: where one window more than fits is wanted, there is one more on both sides,
        and the first is left out again.
        """
        shape, size, step, pad = self._image(x), _pair(kernel), _pair(stride or kernel), _pair(padding)
        axes = list(zip(shape[1:], self.output[1:], size, step, pad, strict=True))
        rows, columns = (_counted(*axis, pads=bool(count_include_pad)) for axis in axes)
        area = rows[:, None] * columns
        area = torch.full_like(area, divisor_override) if divisor_override else area
        even = bool((area == area[0, 0]).all())
        more = [(out - 1) * skip + width > side + 2 * around for side, out, width, skip, around in axes]
        padding = tuple(around + skip * extra for around, skip, extra in zip(pad, step, more, strict=True))
        share = 1.0 / float(area[0, 0]) if even else 1.0
        weight = self._tensor(torch.full((shape[0], 1, *size), share, dtype=torch.float64))
        operation = Conv2d(weight, step, (padding[0], padding[1]), (1, 1), shape[0], shape, frozenset())
        made = (shape[0], self.output[1] + more[0], self.output[2] + more[1])
        pooled = self.add(operation, x.at, shape=made)
        if any(more):
            index = torch.arange(prod(made), device=self.device).reshape(made)
            pooled = self.add(Gather(index[:, more[0] :, more[1] :], made), pooled)
        return pooled if even else self.add(Scale(self._tensor(1.0 / area)), pooled)

    def adaptive_avg_pool2d(self, x: Place, size: Any) -> int:
        """Average pooling to a given size, where all windows are equal."""
        _, height, width = self._image(x)
        rows, columns = self.output[1:]
        if height % rows or width % columns:
            raise InvalidInput(
                f"network pools {height} x {width} adaptively to {rows} x {columns}; "
                "only equal windows are understood"
            )
        return self.avg_pool2d(x, (height // rows, width // columns))

    def mean(self, x: Place, axes: Any = (), keepdim: Any = 0, *, dtype: Any = None) -> int:
        """The mean over height and width."""
        if len(self.nodes[x.at].shape) != 3 or {axis % 4 for axis in axes} != {2, 3}:
            raise InvalidInput(
                f"network takes the mean over axes {list(axes)}; only over height and width is understood"
            )
        output, shape = self.output, self.nodes[x.at].shape
        self.output = (shape[0], 1, 1)
        pooled = self.avg_pool2d(x, shape[1:])
        self.output = output
        return pooled if keepdim else self.reshape(Place(pooled))

    def batch_norm(
        self,
        x: Place,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor | None,
        variance: Tensor | None,
        training: Any,
        momentum: float,
        eps: float,
        cudnn_enabled: Any = 0,
    ) -> int:
        """Batch normalisation in evaluation mode, folded in float64."""
        if training or mean is None or variance is None:
            raise InvalidInput(
                "network uses batch_norm with the statistics of its batch; export it in evaluation mode"
            )
        factor = 1.0 / (variance.double() + eps).sqrt()
        factor = factor if weight is None else factor * weight.double()
        offset = -mean.double() * factor + (0.0 if bias is None else bias.double())
        sides = (1,) * (len(self.output) - 1)
        scale = Scale(self._tensor(factor.reshape(-1, *sides)))
        return self.add(scale, x.at, bias=offset.reshape(-1, *sides))

    def plus(self, a: Any, b: Any, *, alpha: float = 1) -> int:
        """a + alpha b."""
        return self._sum(((a, 1.0), (b, float(alpha))))

    def minus(self, a: Any, b: Any, *, alpha: float = 1) -> int:
        """a - alpha b."""
        return self._sum(((a, 1.0), (b, -float(alpha))))

    def reversed_minus(self, a: Any, b: Any, alpha: float = 1) -> int:
        """b - alpha a."""
        return self._sum(((b, 1.0), (a, -float(alpha))))

    def _sum(self, parts: tuple[tuple[Any, float], ...]) -> int:
        if any(abs(sign) != 1 for _, sign in parts):
            raise InvalidInput(f"network adds with alpha = {parts[1][1]}; only 1 is understood")
        places = [(v.at, s) for v, s in parts if isinstance(v, Place)]
        if any(self.nodes[at].shape != self.output for at, _ in places):
            raise InvalidInput("network adds tensors of different shapes; only equal shapes are understood")
        offset = None
        for value, sign in parts:
            if not isinstance(value, Place):
                offset = self._constant(value) * sign
        return self.add(Combine(tuple(s for _, s in places)), *(at for at, _ in places), bias=offset)

    def _constant(self, value: Any) -> Tensor:
        """A constant that broadcasts to one example, without a batch axis."""
        value = torch.as_tensor(value, dtype=torch.float64)
        if value.dim() > len(self.output):
            if value.shape[0] != 1:
                raise InvalidInput(_BATCHED)
            value = value[0]
        return value

    def times(self, a: Any, b: Any) -> int:
        """a b, one of them constant."""
        if isinstance(a, Place) and isinstance(b, Place):
            raise InvalidInput(
                "network multiplies two values that depend on the input (mul); that is not piecewise linear"
            )
        x, factor = (a, b) if isinstance(a, Place) else (b, a)
        scale = self._tensor(self._constant(factor))
        if self.nodes[x.at].shape != self.output:
            raise InvalidInput(
                "network multiplies by a constant of a larger shape; only its own shape is understood"
            )
        return self.add(Scale(scale), x.at)

    def over(self, a: Any, b: Any) -> int:
        """a / b for a constant b."""
        if isinstance(b, Place):
            raise InvalidInput(
                "network divides by a value that depends on the input (div); that is not piecewise linear"
            )
        return self.times(a, 1.0 / self._constant(b))

    def negative(self, x: Place) -> int:
        """-x."""
        return self.add(Combine((-1.0,)), x.at)


def _with_axis(operation: Any) -> Any:
    """An operation on values of one number without an axis, () per example, as one on (1,)."""
    match operation:
        case Gather(index, inputs):
            return Gather(index.reshape(index.shape or (1,)), inputs or (1,))
        case Reshape(inputs, outputs):
            return Reshape(inputs or (1,), outputs or (1,))
        case Transposed(base):
            return Transposed(_with_axis(base))
        case _:
            return operation


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return (value, value)
    sizes = tuple(int(v) for v in value)
    return sizes if len(sizes) == 2 else (sizes[0], sizes[0])


def _counted(side: int, out: int, width: int, skip: int, around: int, *, pads: bool) -> Tensor:
    """How many places of each window along one axis an average counts: padding or not, never beyond it."""
    start = torch.arange(out, dtype=torch.float64) * skip - around
    end = (start + width).clamp(max=side + (around if pads else 0))
    return end - (start if pads else start.clamp(min=0))


def _padding(word: str, weight: Tensor, dilation: tuple[int, int]) -> tuple[int, int]:
    """What PyTorch pads by a word: "valid" is nothing, "same" as much as keeps the sides of the image."""
    kernel = (int(weight.shape[2]), int(weight.shape[3]))
    both = [hole * (side - 1) if word == "same" else 0 for side, hole in zip(kernel, dilation, strict=True)]
    if any(total % 2 for total in both):
        raise InvalidInput(
            f"network pads a convolution by {word!r}, which is uneven for a kernel of {kernel}; use odd sides"
        )
    return both[0] // 2, both[1] // 2
