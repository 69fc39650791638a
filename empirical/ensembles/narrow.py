"""Convolutions of images with one channel on a CPU: the same values, with a faster gradient of the image.

oneDNN's input gradient of a convolution takes, for a single input channel, as long as all of the rest of
LeNet-5 and more; the same gradient is one product and a fold.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d, fold
from torch.overrides import TorchFunctionMode


class NarrowConvolutions(TorchFunctionMode):
    """A mode in which convolutions of one channel whose image alone needs a gradient take the faster way."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Every other function as it is."""
        if func is conv2d and not kwargs and len(args) == 7 and _is_narrow(*args):
            return _Narrow.apply(*args[:6])
        return func(*args, **(kwargs or {}))


def _is_narrow(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int
) -> bool:
    return (
        x.ndim == 4
        and x.shape[1] == groups == 1
        and x.dtype == torch.float32
        and x.device.type == "cpu"
        and x.requires_grad
        and not weight.requires_grad
        and (bias is None or not bias.requires_grad)
        and isinstance(padding, tuple)
    )


class _Narrow(torch.autograd.Function):
    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any
    ) -> Tensor:
        return conv2d(x, weight, bias, stride, padding, dilation)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, stride, padding, dilation = inputs
        ctx.save_for_backward(weight)
        ctx.how = tuple(x.shape[2:]), {"stride": stride, "padding": padding, "dilation": dilation}

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (weight,), (size, how) = ctx.saved_tensors, ctx.how
        columns = weight.flatten(1).mT @ gradients[0].flatten(2)
        return fold(columns, size, weight.shape[2:], **how), None, None, None, None, None
