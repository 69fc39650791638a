"""Read an ordinary ``torch.nn.Module``, or a saved ``torch.export`` program, as a graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from theory.graph.network import (
    Activation,
    Combine,
    Conv2d,
    Dense,
    Gather,
    Graph,
    Linear,
    Node,
    Reshape,
    Scale,
    Shape,
    Source,
)
from theory.types import InvalidInput

_BATCH = 2  # examples in the traced call: an operation that mixes examples changes this axis
# Operations that change nothing when the network is evaluated.
_IDENTITIES = {
    "alias",
    "detach",
    "dropout",
    "feature_dropout",
    "alpha_dropout",
    "contiguous",
    "clone",
    "_to_copy",
}
_IDENTITIES |= {"to", "lift_fresh_copy", "detach_"}
_RESHAPES = {"flatten", "view", "reshape", "unsqueeze", "squeeze", "unflatten", "_unsafe_view"}


def read(
    network: nn.Module | ExportedProgram,
    shape: Shape,
    *,
    dtype: torch.dtype = torch.float64,
    device: str | torch.device = "cpu",
) -> Graph:
    """Read a network as a graph of one example's tensors, an identity in evaluation mode.

    ``shape`` is one example's. Understood: linear, 2-D convolution (any stride, zero padding, dilation,
    groups), average and max pooling, batch normalisation, ReLU, addition and subtraction, multiplication by a
    constant, reshapes that keep the batch axis, dropout. Parameters are converted to ``dtype``; what is
    folded (batch normalisation) is folded in float64 first. The module itself is left as it is.

    Raises: InvalidInput, naming the operation, for anything else, for scores that are not (batch, c >= 2),
      for NaN or infinite parameters, or for a module that cannot be traced.
    """
    program = network if isinstance(network, ExportedProgram) else _export(network, shape)
    reading = _Reading(program, shape, dtype, torch.device(device))
    return reading.graph()


def _export(module: nn.Module, shape: Shape) -> ExportedProgram:
    modes = {part: part.training for part in module.modules()}
    parameter = next(iter(module.parameters()), torch.zeros(()))
    example = torch.zeros(_BATCH, *shape, dtype=parameter.dtype, device=parameter.device)
    try:
        module.eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(module, (example,))
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InvalidInput(
            f"network cannot be traced on inputs of shape {tuple(example.shape)} ({reason}); "
            "pass one example's shape, and a module whose control flow does not depend on values"
        ) from error
    finally:
        for part, mode in modes.items():
            part.training = mode


class _Reading:
    """The nodes made so far, and which value of the traced program each stands for."""

    def __init__(
        self, program: ExportedProgram, shape: Shape, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.program, self.dtype, self.device = program, dtype, device
        self.nodes = [Node(Source(), (), shape)]
        self.places: dict[str, int] = {}
        self.constants: dict[str, Tensor] = {}
        self.batch = _BATCH
        self.shape = shape

    def graph(self) -> Graph:
        signature = self.program.graph_signature
        named = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        state = {**dict(self.program.state_dict), **self.program.constants}
        named |= dict(signature.inputs_to_lifted_tensor_constants)
        (given,) = self._inputs(signature.user_inputs)
        for traced in self.program.graph.nodes:
            if traced.op == "placeholder":
                if traced.name == given:
                    self._read_input(traced)
                elif traced.name in named:
                    self.constants[traced.name] = state[named[traced.name]].detach()
            elif traced.op == "call_function":
                self._read_call(traced)
            elif traced.op == "output":
                return self._finish(traced)
        raise InvalidInput("network has no output; return the scores")

    def _inputs(self, names: Any) -> tuple[str]:
        names = tuple(names)
        if len(names) != 1:
            raise InvalidInput(f"network takes {len(names)} inputs; only one is understood")
        return names

    def _read_input(self, traced: Any) -> None:
        batch, *shape = traced.meta["val"].shape
        if tuple(shape) != self.shape:
            raise InvalidInput(f"shape is {self.shape}; the network takes examples of shape {tuple(shape)}")
        self.batch = batch
        self.places[traced.name] = 0

    def _finish(self, traced: Any) -> Graph:
        (returned,) = traced.args
        if len(returned) != 1:
            raise InvalidInput(f"network returns {len(returned)} values; return the scores alone")
        last = self.places.get(getattr(returned[0], "name", ""))
        if last is None:
            raise InvalidInput("network returns a constant; return scores of the input")
        shape = self.nodes[last].shape
        if len(shape) != 1 or shape[0] < 2:
            raise InvalidInput(
                f"network returns {shape} per example; it needs one score per class, (c >= 2,)"
            )
        if last != len(self.nodes) - 1:
            self.nodes[last + 1 :] = []
            if last == 0:
                self._add(Combine((1.0,)), (0,), shape)
        return Graph(tuple(self.nodes), self.dtype, self.device)

    def _tensor(self, value: Tensor) -> Tensor:
        if not value.isfinite().all():
            raise InvalidInput("network has a NaN or infinite parameter; remove it")
        return value.to(self.device, self.dtype)

    def _add(
        self,
        operation: Linear | Combine | Activation,
        inputs: tuple[int, ...],
        shape: Shape,
        bias: Tensor | None = None,
    ) -> int:
        offset = None if bias is None else self._tensor(bias)
        self.nodes.append(Node(operation, inputs, tuple(shape), offset))
        return len(self.nodes) - 1

    def _read_call(self, traced: Any) -> None:
        name = traced.target.__name__.split(".")[0] if callable(traced.target) else str(traced.target)
        arguments = [self._value(a) for a in traced.args]
        keywords = {key: self._value(a) for key, a in traced.kwargs.items()}
        if not self._touches_input(traced):
            constant: Any = traced.target(*arguments, **keywords)
            self.constants[traced.name] = constant
            return
        output = traced.meta["val"].shape
        if output[0] != self.batch:
            raise InvalidInput(f"network mixes the examples of a batch ({name} gives {tuple(output)})")
        readers: dict[str, Callable[..., int]] = {
            "linear": self._linear,
            "addmm": self._addmm,
            "conv2d": self._conv,
            "convolution": self._convolution,
            "relu": self._relu,
            "relu_": self._relu,
            "max_pool2d": self._max_pool,
            "avg_pool2d": self._average_pool,
            "adaptive_avg_pool2d": self._adaptive_pool,
            "mean": self._mean,
            "batch_norm": self._batch_norm,
            "add": self._plus,
            "add_": self._plus,
            "sub": self._minus,
            "mul": self._times,
            "div": self._over,
            "neg": self._negative,
        }
        if name in _IDENTITIES and not (name == "dropout" and arguments[2]):
            self.places[traced.name] = self.places[traced.args[0].name]
        elif name in _RESHAPES:
            source = self.places[traced.args[0].name]
            here = Reshape(self.nodes[source].shape, tuple(output[1:]))
            self.places[traced.name] = self._add(here, (source,), output[1:])
        elif name in readers:
            self.output = tuple(output[1:])
            self.places[traced.name] = readers[name](*arguments, **keywords)
        else:
            known = ", ".join(sorted(set(readers) | _RESHAPES))
            raise InvalidInput(f"network uses {traced.target}, which is not understood; known: {known}")

    def _touches_input(self, traced: Any) -> bool:
        return any(node.name in self.places for node in traced.all_input_nodes)

    def _value(self, argument: Any) -> Any:
        """A traced argument: ``_Place`` of a node of the graph, a constant tensor, or what it is."""
        if isinstance(argument, torch.fx.Node):
            if argument.name in self.places:
                return _Place(self.places[argument.name])
            return self.constants[argument.name]
        if isinstance(argument, list | tuple):
            return [self._value(a) for a in argument]
        return argument

    def _linear(self, x: _Place, weight: Tensor, bias: Tensor | None = None) -> int:
        if len(self.nodes[x.at].shape) != 1:
            raise InvalidInput("network applies a linear layer along one axis of several; flatten first")
        return self._add(Dense(self._tensor(weight)), (x.at,), self.output, bias)

    def _addmm(self, bias: Tensor, x: _Place, weight: Tensor) -> int:
        return self._linear(x, weight.mT, bias)

    def _conv(
        self,
        x: _Place,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> int:
        if isinstance(padding, str):
            raise InvalidInput(f"network pads a convolution by {padding!r}; give numbers")
        operation = Conv2d(
            self._tensor(weight),
            _pair(stride),
            _pair(padding),
            _pair(dilation),
            groups,
            self.nodes[x.at].shape,
        )
        offset = None if bias is None else bias.reshape(-1, 1, 1)
        return self._add(operation, (x.at,), self.output, offset)

    def _convolution(
        self,
        x: _Place,
        weight: Tensor,
        bias: Any,
        stride: Any,
        padding: Any,
        dilation: Any,
        transposed: Any,
        _: Any,
        groups: int,
    ) -> int:
        if transposed:
            raise InvalidInput("network uses a transposed convolution, which is not understood")
        return self._conv(x, weight, bias, stride, padding, dilation, groups)

    def _relu(self, x: _Place) -> int:
        return self._add(Activation(), (x.at,), self.output)

    def _max_pool(
        self,
        x: _Place,
        kernel: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: Any = 0,
    ) -> int:
        """A tree of max(a, b) = b + relu(a - b) over the entries of each window."""
        index = _windows(
            self.nodes[x.at].shape,
            self.output,
            _pair(kernel),
            _pair(stride or kernel),
            _pair(padding),
            _pair(dilation),
        )
        shape = self.nodes[x.at].shape
        parts = [self._add(Gather(entry.to(self.device), shape), (x.at,), self.output) for entry in index]
        while len(parts) > 1:
            pairs = list(zip(parts[::2], parts[1::2], strict=False))
            rest = parts[2 * len(pairs) :]
            parts = []
            for a, b in pairs:
                gap = self._add(Combine((1.0, -1.0)), (a, b), self.output)
                excess = self._add(Activation(), (gap,), self.output)
                parts.append(self._add(Combine((1.0, 1.0)), (b, excess), self.output))
            parts += rest
        return parts[0]

    def _average_pool(
        self,
        x: _Place,
        kernel: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: Any = 0,
        count_include_pad: Any = 1,
        divisor_override: Any = None,
    ) -> int:
        padding = _pair(padding)
        if ceil_mode or (any(padding) and not count_include_pad):
            raise InvalidInput(
                "network uses average pooling with ceil_mode or count_include_pad=False; pad first"
            )
        height, width = _pair(kernel)
        channels = self.nodes[x.at].shape[0]
        weight = torch.full(
            (channels, 1, height, width), 1.0 / (divisor_override or height * width), dtype=torch.float64
        )
        return self._conv(x, weight, None, stride or kernel, padding, 1, channels)

    def _adaptive_pool(self, x: _Place, size: Any) -> int:
        _, height, width = self.nodes[x.at].shape
        rows, columns = self.output[1:]
        if height % rows or width % columns:
            raise InvalidInput(
                f"network pools {height} x {width} adaptively to {rows} x {columns}; "
                "only equal windows are understood"
            )
        return self._average_pool(x, (height // rows, width // columns))

    def _mean(self, x: _Place, axes: Any, keepdim: Any = 0, **_: Any) -> int:
        shape = self.nodes[x.at].shape
        if len(shape) != 3 or {axis % 4 for axis in axes} != {2, 3}:
            raise InvalidInput(
                f"network takes the mean over axes {axes}; only over height and width is understood"
            )
        output, self.output = self.output, (shape[0], 1, 1)
        pooled = self._average_pool(x, shape[1:])
        return pooled if keepdim else self._add(Reshape((shape[0], 1, 1), output), (pooled,), output)

    def _batch_norm(
        self,
        x: _Place,
        weight: Any,
        bias: Any,
        mean: Any,
        variance: Any,
        training: Any,
        momentum: float,
        eps: float,
        *_: Any,
    ) -> int:
        if training or mean is None:
            raise InvalidInput(
                "network normalises with the statistics of its batch; export it in evaluation mode"
            )
        factor = 1.0 / (variance.double() + eps).sqrt()
        factor = factor if weight is None else factor * weight.double()
        offset = -mean.double() * factor + (0.0 if bias is None else bias.double())
        sides = (1,) * (len(self.output) - 1)
        scale = Scale(self._tensor(factor.reshape(-1, *sides)))
        return self._add(scale, (x.at,), self.output, offset.reshape(-1, *sides))

    def _plus(self, a: Any, b: Any, *, alpha: float = 1) -> int:
        return self._sum(a, b, sign=alpha)

    def _minus(self, a: Any, b: Any, *, alpha: float = 1) -> int:
        return self._sum(a, b, sign=-alpha)

    def _sum(self, a: Any, b: Any, *, sign: float) -> int:
        if abs(sign) != 1:
            raise InvalidInput(f"network adds with alpha = {sign}; only 1 is understood")
        places = [(v.at, s) for v, s in ((a, 1.0), (b, float(sign))) if isinstance(v, _Place)]
        if any(self.nodes[at].shape != self.output for at, _ in places):
            raise InvalidInput("network adds tensors of different shapes; only equal shapes are understood")
        constants = [(v, s) for v, s in ((a, 1.0), (b, float(sign))) if not isinstance(v, _Place)]
        offset = None
        for value, factor in constants:
            offset = self._constant(value) * factor
        return self._add(
            Combine(tuple(s for _, s in places)), tuple(at for at, _ in places), self.output, offset
        )

    def _constant(self, value: Any) -> Tensor:
        """A constant that broadcasts to one example, without a batch axis."""
        value = torch.as_tensor(value, dtype=torch.float64)
        if value.dim() > len(self.output):
            if value.shape[0] != 1:
                raise InvalidInput(
                    "network uses a constant with a batch axis; only one per example is understood"
                )
            value = value[0]
        return value

    def _times(self, a: Any, b: Any) -> int:
        if isinstance(a, _Place) and isinstance(b, _Place):
            raise InvalidInput(
                "network multiplies two values that depend on the input; that is not piecewise linear"
            )
        x, factor = (a, b) if isinstance(a, _Place) else (b, a)
        scale = self._tensor(self._constant(factor))
        if self.nodes[x.at].shape != self.output:
            raise InvalidInput(
                "network multiplies by a constant of a larger shape; only its own shape is understood"
            )
        return self._add(Scale(scale), (x.at,), self.output)

    def _over(self, a: Any, b: Any) -> int:
        if isinstance(b, _Place):
            raise InvalidInput(
                "network divides by a value that depends on the input; that is not piecewise linear"
            )
        return self._times(a, 1.0 / torch.as_tensor(b, dtype=torch.float64))

    def _negative(self, x: _Place) -> int:
        return self._add(Combine((-1.0,)), (x.at,), self.output)


class _Place(int):
    """The place of a node in the graph."""

    @property
    def at(self) -> int:
        return int(self)


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return (value, value)
    sizes = tuple(int(v) for v in value)
    return sizes if len(sizes) == 2 else (sizes[0], sizes[0])


def _windows(
    inputs: Shape,
    outputs: Shape,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> list[Tensor]:
    """For each place in the window, the flat index of the entry there, (*outputs).

    A place in the padding is given the index of an entry that the window does hold: the maximum stays.
    """
    channels, height, width = inputs
    flat = torch.arange(channels * height * width).reshape(inputs)
    rows = [
        _inside(outputs[1], k * dilation[0] - padding[0], stride[0], dilation[0], height)
        for k in range(kernel[0])
    ]
    columns = [
        _inside(outputs[2], k * dilation[1] - padding[1], stride[1], dilation[1], width)
        for k in range(kernel[1])
    ]
    return [flat[:, r][:, :, c] for r, c in product(rows, columns)]


def _inside(count: int, offset: int, stride: int, dilation: int, side: int) -> Tensor:
    """offset + stride * (0, 1, ...) moved by multiples of ``dilation`` into [0, side)."""
    places = torch.arange(count) * stride + offset
    low = (-places).clamp(min=0)
    high = (places - (side - 1)).clamp(min=0)
    return places + (low + dilation - 1) // dilation * dilation - (high + dilation - 1) // dilation * dilation
