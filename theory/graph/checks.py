"""What every bound of a graph asks of its inputs: tensors, and numbers whose rounding is accounted for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from theory.types import InvalidInput, check_subnormal_numbers


def check_number_type(dtype: torch.dtype, device: torch.device) -> None:
    """Raises: InvalidInput unless ``dtype`` is float64, or float32 on a CPU: the rounding accounted for.

    On other devices float32 may be rounded further (TF32) or summed by other formulas (Winograd), and on a
    CPU where PyTorch is told that it may; then, or where subnormal numbers are 0, it is refused as well.
    """
    if dtype not in (torch.float64, torch.float32):
        raise InvalidInput(f"dtype is {dtype}; bounds need torch.float64 or torch.float32")
    if dtype == torch.float32 and device.type != "cpu":
        raise InvalidInput(
            f"dtype is float32 on {device.type}, whose rounding has no bound; use float64 there"
        )
    if dtype == torch.float32 and not _is_plain():
        raise InvalidInput(
            "dtype is float32, whose products PyTorch may round further as it is set; use float64, or leave "
            'torch.autocast and have torch.set_float32_matmul_precision("highest") and '
            'torch.backends.fp32_precision = "ieee"'
        )
    check_subnormal_numbers()


def _is_plain() -> bool:
    """Whether float32 products on a CPU are those of float32, as far as PyTorch's switches say."""
    if torch.is_autocast_enabled("cpu"):
        return False
    switches: Any = torch.backends.mkldnn
    if hasattr(switches, "matmul"):  # from PyTorch 2.9 on
        return {switches.matmul.fp32_precision, switches.conv.fp32_precision} <= {"none", "ieee"}
    return torch.get_float32_matmul_precision() == "highest"


def check_tensor(name: str, value: object) -> None:
    """Raises: InvalidInput unless ``value`` is a tensor."""
    if not isinstance(value, Tensor):
        raise InvalidInput(f"{name} is a {type(value).__name__}; pass a tensor: torch.as_tensor({name})")
