"""A module on whole segments of inputs at once: a line for every activation, and how far it may be off.

Between two inputs every activation of a piecewise-linear network is a piecewise-linear function of the place
s in [0, 1] on the segment. A :class:`Segment` encloses it in a band, (1 - s) start + s end +- radius. A
linear layer maps lines as it maps inputs, and radii by its absolute weights. A ReLU or a maximum that
switches nowhere on the segment adds nothing to the radius: a network that is linear there comes out exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call

from empirical.ensembles.modules import CHUNK, ModuleEnsemble

aten = torch.ops.aten


class NotPiecewiseLinear(Exception):
    """The module does something to its input that is not piecewise linear, or that has no rule here."""


class Segment(Tensor):
    """A tensor-valued function on [0, 1], *bound*: within ``radius`` of the line from ``start`` to ``end``.

    Modules take it in place of a tensor, under ``torch.no_grad``. Rounding is left out of account.
    """

    start: Tensor
    end: Tensor
    radius: Tensor

    @staticmethod
    def __new__(cls, start: Tensor, end: Tensor, radius: Tensor) -> Segment:
        return Tensor._make_wrapper_subclass(
            cls, start.shape, strides=start.stride(), dtype=start.dtype, device=start.device
        )

    def __init__(self, start: Tensor, end: Tensor, radius: Tensor) -> None:
        self.start, self.end, self.radius = start, end, radius

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"Segment(start={self.start}, end={self.end}, radius={self.radius})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        pure = _IN_PLACE.get(func, func)
        rule = _RULES.get(pure)
        if rule is None:
            raise NotPiecewiseLinear(f"{func} has no rule")
        found = rule(pure, *args, **(kwargs or {}))
        if pure is func:
            return found
        target = args[0]
        if not isinstance(target, Segment):
            raise NotPiecewiseLinear(f"{func} writes an activation into a constant")
        for old, new in zip(_parts(target), _parts(found), strict=True):
            old.copy_(new)  # into the memory, so that views of the target change with it
        return target


@torch.no_grad()
def scores_on_segments(
    ensemble: ModuleEnsemble, member: int, start: Float[Tensor, "n d"], end: Float[Tensor, "n d"]
) -> tuple[Float[Tensor, "n c"], Float[Tensor, "n c"], Float[Tensor, "n c"]]:
    """Bands of the logits of one member on n segments: values at both ends of the lines, and the radii.

    A *bound* up to rounding: at (1 - s) start + s end each logit is within its radius of its line. Where the
    member is linear on the segment the radius is 0.
    Raises: NotPiecewiseLinear if the module is not known to be piecewise linear in its input.
    """
    state = {name: tensor[member] for name, tensor in ensemble.state.items()}
    size = CHUNK if start.device.type == "cpu" else max(1, len(start))
    bands = []
    for ends in zip(start.split(size), end.split(size), strict=True):
        a, b = (part.unflatten(1, ensemble.shape) for part in ends)
        # In-place layers may write to their input, which is the caller's.
        scores = functional_call(
            ensemble.module, state, (Segment(a.clone(), b.clone(), torch.zeros_like(a)),)
        )
        parts = _parts(scores)
        if ensemble.outputs == 1:
            parts = tuple(torch.cat([torch.zeros_like(part), part], dim=1) for part in parts)
        bands.append(parts)
    at_start, at_end, radius = (torch.cat(parts) for parts in zip(*bands, strict=True))
    return at_start, at_end, radius


def _parts(value: Any) -> tuple[Any, Any, Any]:
    """Start, end and radius; a constant is the same at both ends, with radius 0."""
    if isinstance(value, Segment):
        return value.start, value.end, value.radius
    return value, value, torch.zeros_like(value) if isinstance(value, Tensor) else 0.0


def _rearranged(func: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Operations that pick, repeat or average entries: alike for values and radii."""
    if isinstance(x, list | tuple):
        three = [func(list(column), *args, **kwargs) for column in zip(*map(_parts, x), strict=True)]
    else:
        three = [func(part, *args, **kwargs) for part in _parts(x)]
    if isinstance(three[0], list | tuple):
        return [Segment(*pieces) for pieces in zip(*three, strict=True)]
    return Segment(*three)


def _cast(func: Any, x: Segment, *, dtype: torch.dtype | None = None, **kwargs: Any) -> Segment:
    if dtype not in (None, x.dtype):
        raise NotPiecewiseLinear(f"{func} changes the precision to {dtype}")
    return _rearranged(func, x, dtype=dtype, **kwargs)


def _pad(func: Any, x: Segment, sides: list[int], value: float = 0.0) -> Segment:
    return Segment(func(x.start, sides, value), func(x.end, sides, value), func(x.radius, sides, 0.0))


def _product(func: Any, x: Any, y: Any) -> Segment:
    """mm, bmm, mul: linear in an activation, the other factor constant."""
    if isinstance(x, Segment) and isinstance(y, Segment):
        raise NotPiecewiseLinear(f"{func} multiplies activations")
    if isinstance(x, Segment):
        return Segment(func(x.start, y), func(x.end, y), func(x.radius, abs(y)))
    return Segment(func(x, y.start), func(x, y.end), func(abs(x), y.radius))


def _quotient(func: Any, x: Any, y: Any) -> Segment:
    if isinstance(y, Segment):
        raise NotPiecewiseLinear(f"{func} divides by an activation")
    return Segment(func(x.start, y), func(x.end, y), func(x.radius, abs(y)))


def _addmm(func: Any, bias: Any, x: Any, weight: Any, *, beta: float = 1, alpha: float = 1) -> Segment:
    if beta != 1 or alpha != 1:
        raise NotPiecewiseLinear(f"{func} with factors")
    return _product(aten.mm.default, x, weight) + bias


def _convolution(func: Any, x: Any, weight: Any, bias: Any, *settings: Any) -> Segment:
    if isinstance(weight, Segment) or isinstance(bias, Segment):
        raise NotPiecewiseLinear(f"{func} by an activation")
    start, end = (func(place, weight, bias, *settings) for place in (x.start, x.end))
    return Segment(start, end, func(x.radius, weight.abs(), None, *settings))


def _batch_norm(
    func: Any, x: Any, weight: Any, bias: Any, mean: Any, var: Any, training: Any, *rest: Any
) -> tuple[Any, ...]:
    if training or mean is None or any(isinstance(part, Segment) for part in (weight, bias, mean, var)):
        raise NotPiecewiseLinear(f"{func} normalises by the activations")
    start, *statistics = func(x.start, weight, bias, mean, var, training, *rest)
    end = func(x.end, weight, bias, mean, var, training, *rest)[0]
    scale = None if weight is None else weight.abs()
    shift = None if weight is None else torch.zeros_like(weight)  # cuDNN's has both or none
    radius = func(x.radius, scale, shift, torch.zeros_like(mean), var, training, *rest)[0]
    return Segment(start, end, radius), *statistics


def _sum(func: Any, x: Any, y: Any, *, alpha: float = 1) -> Segment:
    (a, b, r), (c, d, s) = _parts(x), _parts(y)
    return Segment(func(a, c, alpha=alpha), func(b, d, alpha=alpha), r + abs(alpha) * s)


def _subtracted(func: Any, x: Segment, other: Any, alpha: float = 1) -> Segment:
    return Segment(func(x.start, other, alpha), func(x.end, other, alpha), x.radius * abs(alpha))


def _negated(func: Any, x: Segment) -> Segment:
    return Segment(-x.start, -x.end, x.radius)


def _relu(func: Any, x: Segment) -> Segment:
    low, high = (x.start - x.radius, x.end - x.radius), (x.start + x.radius, x.end + x.radius)
    return _enclosed(
        (high[0].relu_(), high[1].relu_()),
        (low[0].relu(), low[1].relu()),
        first_at_end=low[1] * (low[0] > 0),
        last_at_start=low[0] * (low[1] > 0),
    )


def _max_pool(func: Any, x: Segment, *settings: Any) -> tuple[Segment, Tensor]:
    low = x.start - x.radius, x.end - x.radius
    high = (func(end, *settings)[0] for end in (x.start + x.radius, x.end + x.radius))
    (lowest, first), (highest, last) = (func(end, *settings) for end in low)

    def chosen(values: Tensor, places: Tensor) -> Tensor:
        return values.flatten(-2).gather(-1, places.flatten(-2)).view_as(places)

    band = _enclosed(
        (next(high), next(high)),
        (lowest, highest),
        first_at_end=chosen(low[1], first),
        last_at_start=chosen(low[0], last),
    )
    return band, first


def _enclosed(
    upper: tuple[Tensor, Tensor],
    lower: tuple[Tensor, Tensor],
    *,
    first_at_end: Tensor,
    last_at_start: Tensor,
) -> Segment:
    """The thinnest band below the chord of a convex upper bound and above a maximum of lines.

    ``upper`` and ``lower`` are the two bounds at both ends. Of the lines, the one that is largest at the
    start reaches ``first_at_end``, and the one that is largest at the end comes from ``last_at_start``: the
    chord is furthest from the lower bound at an end, or no further than where these two lines meet.
    """
    falls, rises = lower[0] - last_at_start, lower[1] - first_at_end
    total = falls + rises
    meeting = falls / total.masked_fill_(total <= 0, 1.0)
    inside = upper[0].lerp(upper[1], meeting) - lower[0].lerp(first_at_end, meeting)
    gap = inside.maximum(upper[0] - lower[0]).maximum(upper[1] - lower[1]).clamp_(min=0.0) / 2
    return Segment(upper[0] - gap, upper[1] - gap, gap)


def _leaky_relu(func: Any, x: Segment, slope: float = 0.01) -> Any:
    return slope * x + (1 - slope) * x.relu()


def _clamp(func: Any, x: Any, low: float | None = None, high: float | None = None) -> Any:
    if low is not None:
        x = (x - low).relu() + low
    return x if high is None else high - (high - x).relu()


def _hardtanh(func: Any, x: Segment, low: float = -1.0, high: float = 1.0) -> Any:
    return _clamp(func, x, low, high)


def _clamp_max(func: Any, x: Segment, high: float) -> Any:
    return _clamp(func, x, None, high)


def _absolute(func: Any, x: Segment) -> Any:
    return 2 * x.relu() - x


def _maximum(func: Any, x: Any, y: Any) -> Any:
    return (x - y).relu() + y


def _minimum(func: Any, x: Any, y: Any) -> Any:
    return y - (y - x).relu()


_REARRANGED = (
    "view reshape _unsafe_view expand permute t squeeze unsqueeze clone alias detach flip cat stack "
    "split_with_sizes avg_pool2d _adaptive_avg_pool2d lift_fresh squeeze.dim squeeze.dims transpose.int "
    "slice.Tensor select.int split.Tensor unbind.int mean.dim sum.dim_IntList"
)
_OTHERS: dict[str, Callable[..., Any]] = {
    "_to_copy": _cast,
    "constant_pad_nd": _pad,
    "mm": _product,
    "bmm": _product,
    "mul.Tensor": _product,
    "mul.Scalar": _product,
    "div.Tensor": _quotient,
    "div.Scalar": _quotient,
    "addmm": _addmm,
    "convolution": _convolution,
    "native_batch_norm": _batch_norm,
    "cudnn_batch_norm": _batch_norm,
    "add.Tensor": _sum,
    "sub.Tensor": _sum,
    "rsub.Scalar": _subtracted,
    "neg": _negated,
    "relu": _relu,
    "max_pool2d_with_indices": _max_pool,
    "leaky_relu": _leaky_relu,
    "hardtanh": _hardtanh,
    "clamp": _clamp,
    "clamp_min": _clamp,
    "clamp_max": _clamp_max,
    "abs": _absolute,
    "maximum": _maximum,
    "minimum": _minimum,
}


def _operation(name: str) -> Any:
    """The overload that a name like "mean.dim" stands for."""
    packet, _, overload = name.partition(".")
    return getattr(getattr(aten, packet), overload or "default")


_RULES = {_operation(name): _rearranged for name in _REARRANGED.split()} | {
    _operation(name): rule for name, rule in _OTHERS.items()
}
_IN_PLACE = {
    _operation(f"{name}_{overload}"): _operation(f"{name}{overload}")
    for name, overload in (
        *(
            (name, "")
            for name in ("relu", "leaky_relu", "hardtanh", "clamp", "clamp_min", "clamp_max", "abs")
        ),
        *((name, ".Tensor") for name in ("add", "sub", "mul", "div")),
    )
}
