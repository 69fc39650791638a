"""Every rung of the random-mask ladder beside Monte Carlo and beside what any such bound must exceed.

The rungs bound the expectation of a supremum over all activation patterns. The largest gradient at test
inputs is a lower estimate of it, and so is the largest gradient over the patterns that a local search finds.
"""

from __future__ import annotations

import math
from pathlib import Path

import click
import numpy as np
import torch

from benchmarks.tables import report
from empirical.datasets import load
from empirical.ensembles import initialise, relu_network
from empirical.training.train import Recipe, train
from theory import relu
from theory.types import ReLUNetwork

WIDTHS = (64, 300, 100, 10)
ALPHAS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97)
PAIR = (0, 1)
STARTS, ROUNDS = 12, 60
FIELDS: tuple[str, ...] = (
    "alpha",
    "rung",
    "value",
    "monte_carlo_mean",
    "monte_carlo_standard_error",
    "pattern_lower_bound",
    "ratio",
)


def trained(epochs: int) -> ReLUNetwork:
    """One 64-300-100-10 network trained on the digits, seed 0."""
    data, device = load("digits"), torch.device("cpu")
    nets = initialise(WIDTHS, seeds=[0], device=device)
    x, y = torch.tensor(data.x_train, dtype=torch.float32), torch.tensor(data.y_train)
    nets = train(nets, x, y, Recipe(epochs=epochs), seeds=[0])
    return relu_network(nets.to(dtype=torch.float64, device=device), 0)


def pattern_search(weights: list[np.ndarray], v: np.ndarray, rng: np.random.Generator) -> float:
    """Largest ||J||_2 over activation patterns found by coordinate ascent from random patterns.

    In turn every layer takes the pattern that maximises the gradient's product with its own direction.
    """
    best = 0.0
    for _ in range(STARTS):
        patterns = [rng.integers(0, 2, len(weight)).astype(float) for weight in weights]
        value = 0.0
        for _ in range(ROUNDS):
            rows = v
            for weight, on in zip(reversed(weights), reversed(patterns), strict=True):
                rows = (rows * on) @ weight
            size = float(np.linalg.norm(rows))
            best = max(best, size)
            if size <= value * (1 + 1e-12):
                break
            value, direction = size, rows / size
            for j in range(len(weights)):
                forward = direction
                for weight, on in zip(weights[:j], patterns[:j], strict=True):
                    forward = (weight @ forward) * on
                backward = v
                for weight, on in zip(weights[:j:-1], patterns[:j:-1], strict=True):
                    backward = (backward * on) @ weight
                patterns[j] = (backward * (weights[j] @ forward) > 0).astype(float)
    return best


def table(net: ReLUNetwork, x: np.ndarray, *, masks: int, searched: int) -> list[dict[str, object]]:
    """One line per sparsity and rung, q = 2; the last layer is not masked."""
    hidden = len(net.weights) - 1
    settings = np.array([[alpha] * hidden + [0.0] for alpha in ALPHAS])
    rungs = relu.ladder(net, settings, PAIR, p=2.0)
    v = net.weights[-1][PAIR[0]] - net.weights[-1][PAIR[1]]
    lines: list[dict[str, object]] = []
    for row, alpha in enumerate(ALPHAS):
        rng = np.random.default_rng(row)
        samples = relu.monte_carlo(net, x, settings[row], PAIR, p=2.0, masks=masks, rng=rng)
        mean, error = samples.mean(), samples.std(ddof=1) / math.sqrt(masks)
        found = [
            pattern_search([w * (rng.random(w.shape) >= alpha) for w in net.weights[:-1]], v, rng)
            for _ in range(searched if alpha else 1)
        ]
        for name, values in rungs.items():
            lines.append(
                {
                    "alpha": alpha,
                    "rung": name,
                    "value": f"{values[row]:.6g}",
                    "monte_carlo_mean": f"{mean:.6g}",
                    "monte_carlo_standard_error": f"{error:.3g}",
                    "pattern_lower_bound": f"{np.mean(found):.6g}",
                    "ratio": f"{values[row] / mean:.4g}",
                }
            )
    return lines


@click.command()
@click.option("--out", type=click.Path(path_type=Path), help="Also write the table as CSV.")
@click.option("--masks", default=200, show_default=True, help="Masks of the Monte Carlo mean.")
@click.option("--searched", default=20, show_default=True, help="Masks of the search over patterns.")
@click.option("--epochs", default=30, show_default=True, help="Epochs of training.")
def main(out: Path | None, masks: int, searched: int, epochs: int) -> None:
    """Compare every rung with Monte Carlo on a trained digits network."""
    lines = table(trained(epochs), load("digits").x_test, masks=masks, searched=searched)
    report(lines, FIELDS, out)


if __name__ == "__main__":
    main()
