"""Matrix products: what the machine can do, and what a network's passes and bounds ask of it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from statistics import median
from time import process_time

import torch

from benchmarks.tables import Row

PRODUCT = "matrix product"  # the task of the rows that say what the machine can do


def seconds(
    work: Callable[[], object],
    *,
    device: torch.device,
    repeats: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Median seconds of one call by ``clock`` (default: wall clock), after a warm-up call."""
    taken = []
    for _ in range(repeats + 1):
        _synchronise(device)
        started = clock()
        work()
        _synchronise(device)
        taken.append(clock() - started)
    return median(taken[1:])


def product_rate(
    *,
    dtype: torch.dtype,
    device: torch.device,
    size: int = 1536,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Floating-point operations per second of a large matrix product: nothing here can be faster."""
    a, b = (torch.rand(size, size, dtype=dtype, device=device) for _ in range(2))
    return 2 * size**3 / seconds(lambda: a @ b, device=device, clock=clock)


def product_row(dtype: torch.dtype, size: int) -> Row:
    """A row that says how fast a large matrix product is on the CPU now, and how busy the machine."""
    rate = product_rate(dtype=dtype, device=torch.device("cpu"), size=size, clock=process_time)
    gflop = 2 * size**3 / 1e9
    return {
        "task": PRODUCT,
        "precision": precision(dtype),
        "seconds": f"{gflop * 1e9 / rate:.4g}",
        "gflop": f"{gflop:.4g}",
        "note": f"{rate / 1e9:.1f} GFLOP/s, load average {os.getloadavg()[0]:.1f}",
    }


def beside_products(table: list[Row]) -> list[Row]:
    """The rows with ``times_products``: seconds over those that ``gflop`` take at the run's fastest rate."""
    rates: dict[object, float] = {}
    for line in table:
        if line["task"] == PRODUCT:
            rate = float(str(line["gflop"])) / float(str(line["seconds"]))
            rates[line["precision"]] = max(rate, rates.get(line["precision"], 0.0))

    def times(line: Row) -> Row:
        if not line.get("gflop"):
            return line
        products = float(str(line["gflop"])) / rates[line["precision"]]
        return line | {"times_products": f"{float(str(line['seconds'])) / products:.3g}"}

    return [times(line) for line in table]


def precision(dtype: torch.dtype) -> str:
    """The type's name in a table."""
    return str(dtype).removeprefix("torch.")


def multiply_adds(widths: Sequence[int]) -> int:
    """Weights of a network: one multiply-add each where one example or row passes all layers."""
    return sum(a * b for a, b in zip(widths[:-1], widths[1:], strict=True))


def interval_flops(widths: Sequence[int]) -> int:
    """Operations of interval bounds of one example: a product for the centre, one for the spread."""
    return 4 * multiply_adds(widths)


def hidden_flops(widths: Sequence[int]) -> int:
    """Operations of CROWN's bounds of all hidden units of one example.

    Two rows for each unit after the first hidden layer go back to the input; the first product of each is
    with a diagonal matrix.
    """
    return sum(4 * widths[i] * multiply_adds(widths[:i]) for i in range(2, len(widths) - 1))


def margin_flops(widths: Sequence[int]) -> int:
    """Operations of CROWN's margins of one example: the hidden bounds, and one row for every other class."""
    return hidden_flops(widths) + 2 * (widths[-1] - 1) * multiply_adds(widths[:-1])


def jacobian_flops(widths: Sequence[int]) -> int:
    """Operations of intervals of the gradients of one example's margins, over CROWN's hidden bounds."""
    return hidden_flops(widths) + 4 * (widths[-1] - 1) * multiply_adds(widths[:-1])


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
