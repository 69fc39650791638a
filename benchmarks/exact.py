"""Processor seconds per digit of exact radii and local Lipschitz constants of a pruned network."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch

from benchmarks.tables import save
from benchmarks.turns import in_turns
from empirical.datasets import Dataset, load
from empirical.ensembles import initialise, relu_network
from empirical.pruning import magnitude_masks
from empirical.training.train import Recipe, train
from theory.relu.exact import exact_radius
from theory.relu.exact_lipschitz import exact_local_lipschitz
from theory.relu.milp import milp_radius
from theory.types import ReLUNetwork

WIDTHS = (64, 20, 10, 10)
SPARSITY = 0.8
EPOCHS = 30  # before pruning, and again after it
IMAGES = 50
SLACK = 1.1  # the ball given to the mixed-integer program, in exact radii: it needs one that holds the answer
FIELDS = ("quantity", "method", "norm", "image", "lower", "upper", "seconds", "status", "regions")


def pruned_network(data: Dataset) -> ReLUNetwork:
    """A digits network pruned by magnitude and retrained, seed 0."""
    x = torch.tensor(data.x_train, dtype=torch.float32)
    y = torch.tensor(data.y_train)
    dense = initialise(WIDTHS, seeds=[0], device=torch.device("cpu"))
    dense = train(dense, x, y, Recipe(epochs=EPOCHS), seeds=[0])
    sparse = dense.masked(magnitude_masks(dense, sparsity=SPARSITY))
    return relu_network(train(sparse, x, y, Recipe(epochs=EPOCHS), seeds=[0]), 0)


Found = tuple[float, float, str, int | str]  # lower, upper, status, regions


def timed(work: Callable[[], Found]) -> tuple[object, ...]:
    """lower, upper, seconds of processor time, status and regions of one call."""
    (done,) = in_turns({"": work}, repeats=0).values()
    lower, upper, status, regions = done.value
    return lower, upper, done.seconds, status, regions


def measure(net: ReLUNetwork, image: np.ndarray, label: np.ndarray, p: float) -> list[tuple[object, ...]]:
    """Every quantity of one image and norm."""

    def radius() -> Found:
        found = exact_radius(net, image, label, p=p)
        return float(found.lower[0]), float(found.upper[0]), found.status[0], int(found.regions[0])

    rows: list[tuple[object, ...]] = [("radius", "branch and bound", *timed(radius))]
    upper = float(str(rows[0][3]))
    if upper == 0:  # misclassified: nothing else to measure
        return rows
    size = np.array([upper])

    def program() -> Found:
        lower, best = milp_radius(net, image, label, radius=SLACK * size)
        return float(lower[0]), float(best[0]), "", ""

    def constant() -> Found:
        found = exact_local_lipschitz(net, image, label, p=p, radius=size)
        return float(found.lower.max()), float(found.upper.max()), found.status[0], int(found.regions[0])

    if p == math.inf:
        rows.append(("radius", "milp", *timed(program)))
    return [*rows, ("largest local Lipschitz constant", "branch and bound", *timed(constant))]


def summary(table: list[dict[str, object]]) -> None:
    """Print mean and largest seconds of every quantity, method and norm."""
    kinds = sorted({(str(row["quantity"]), str(row["method"]), str(row["norm"])) for row in table})
    for kind in kinds:
        rows = [row for row in table if (row["quantity"], row["method"], row["norm"]) == kind]
        taken = [float(str(row["seconds"])) for row in rows]
        solved = sum(row["status"] == "optimal" for row in rows)
        click.echo(
            f"{', '.join(kind)}: mean {np.mean(taken):.3f} s, max {max(taken):.3f} s, "
            f"{len(rows)} images, {solved} proven optimal"
        )


@click.command()
@click.option("--out", type=click.Path(path_type=Path), help="Also write the table as CSV.")
def main(out: Path | None) -> None:
    """Time the exact solvers on one core, one test digit at a time, in seconds of processor time."""
    torch.set_num_threads(1)
    data = load("digits")
    net = pruned_network(data)
    accuracy = (net.scores(data.x_test).argmax(axis=1) == data.y_test).mean()
    zeros = np.mean([np.mean(weight == 0) for weight in net.weights])
    click.echo(f"network {'-'.join(map(str, WIDTHS))}, sparsity {zeros:.2f}, test accuracy {accuracy:.3f}")
    exact_radius(net, data.x_test[:1], data.y_test[:1], p=math.inf)  # imports and caches
    table = []
    for p in (2.0, math.inf):
        for i in range(IMAGES):
            for quantity, method, *found in measure(net, data.x_test[i : i + 1], data.y_test[i : i + 1], p):
                lower, upper, seconds, status, regions = found
                values = (quantity, method, f"{p:g}", i, lower, upper, f"{seconds:.4f}", status, regions)
                table.append(dict(zip(FIELDS, values, strict=True)))
    summary(table)
    if out:
        save(table, FIELDS, out)


if __name__ == "__main__":
    main()
