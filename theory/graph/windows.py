"""The windows of max pooling as copies of entries: which entry stands at each place of each window."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from theory.graph.network import Shape
from theory.types import InvalidInput


def window_entries(
    inputs: Shape,
    outputs: Shape,
    *,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> list[Tensor]:
    """For each place in the window, the flat index of the entry there, (*outputs) each, an identity.

    A place in the padding is given the index of an entry that the window does hold: the maximum stays.

    Raises: InvalidInput if a window holds nothing but padding.
    """
    channels, height, width = inputs
    flat = torch.arange(channels * height * width).reshape(inputs)
    rows, columns = (
        [_inside(count, k * hole - pad, step=step, dilation=hole, side=side) for k in range(size)]
        for count, side, size, step, pad, hole in zip(
            outputs[1:], inputs[1:], kernel, stride, padding, dilation, strict=True
        )
    )
    return [flat[:, r][:, :, c] for r, c in product(rows, columns)]


def _inside(count: int, offset: int, *, step: int, dilation: int, side: int) -> Tensor:
    """offset + step * (0, 1, ...) moved by multiples of ``dilation`` into [0, side)."""
    places = torch.arange(count) * step + offset
    low = (-places).clamp(min=0)
    high = (places - (side - 1)).clamp(min=0)
    moved = places + (low + dilation - 1) // dilation * dilation
    moved = moved - (high + dilation - 1) // dilation * dilation
    if not ((moved >= 0) & (moved < side)).all():
        raise InvalidInput("network pools windows that hold nothing but padding; pad less")
    return moved
