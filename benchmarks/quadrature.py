"""Averages over Bernoulli masks by quadrature: seconds on one core, and stated errors."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
import numpy as np

from benchmarks.tables import report
from benchmarks.turns import TIMES, in_turns
from theory.linear import GaussianClasses, MaskAverage, masked_gaussian_mean_radius, masked_mean_radius
from theory.types import BinaryLinear

FIELDS = ["average", "n", "alphas", "norm", "range", *TIMES, "largest_relative_error"]
REPEATS = 3
# Weights, sparsities, and powers of ten that the weights span beyond a normal distribution.
SIZES = ((784, 200, 0), (10_000, 20, 0), (784, 20, 300))


def signed(weight: np.ndarray, alphas: np.ndarray, *, p: float) -> MaskAverage:
    """The average signed distance of the classifier w = mean."""
    return masked_mean_radius(weight, weight, alphas, p=p)


def gaussian(weight: np.ndarray, alphas: np.ndarray, *, p: float) -> MaskAverage:
    """The average Gaussian closed form, unit covariance, means along the weight."""
    data = GaussianClasses(0.1 * np.stack([-weight, weight]), np.eye(len(weight)), np.array([0.5, 0.5]))
    return masked_gaussian_mean_radius(BinaryLinear(weight), data, alphas, p=p)


def timed(average: Callable, n: int, count: int, *, p: float, orders: int) -> dict[str, object]:
    """One row: processor seconds, and the largest error relative to its value."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=n) * 10.0 ** rng.uniform(-orders / 2, orders / 2, size=n)
    alphas = np.linspace(0, 1, count + 2)[1:-1]
    (done,) = in_turns({"": partial(average, weight, alphas, p=p)}, repeats=REPEATS).values()
    return {
        "average": average.__name__,
        "n": n,
        "alphas": count,
        "norm": "inf" if p == math.inf else int(p),
        "range": f"1e{orders}",
        **done.columns(),
        "largest_relative_error": f"{(done.value.error / np.abs(done.value.value)).max():.1e}",
    }


@click.command()
@click.option("--out", type=click.Path(path_type=Path), help="Also write the table as CSV.")
def main(out: Path | None) -> None:
    """Time the mask quadratures on one core; quiet machine, please: nothing else should run."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    runs = [(signed, *size) for size in SIZES] + [(gaussian, 784, 9, 0)]
    table = [
        timed(average, n, count, p=p, orders=orders)
        for average, n, count, orders in runs
        for p in (2.0, math.inf)
    ]
    report(table, FIELDS, out)


if __name__ == "__main__":
    main()
