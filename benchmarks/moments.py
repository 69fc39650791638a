"""Predicted against sampled margin, gradient norm, accuracy and radius of randomly masked networks.

``python -m benchmarks.moments --out benchmarks/results/moments.csv``; minutes on one core.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import click
import numpy as np
import torch
from torch import nn

from benchmarks.tables import save
from empirical.datasets import Dataset, load
from empirical.ensembles import initialise, relu_network
from empirical.training.train import Recipe, train
from theory.relu.mask_sampling import compare, sample
from theory.relu.moments import Prediction, best_sparsity, predict
from theory.relu.oversparsification import radius_curve
from theory.relu.sequential_moments import as_sequential, predict_sequential
from theory.types import ReLUNetwork

SPARSITIES = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
BOUND_SPARSITIES = np.array([0.0, 1e-4, 1e-3, 0.01, 0.05, 0.5, 0.9, 0.99, 0.999, 0.9999, 1.0])
MASKS = 400
FIELDS: tuple[str, ...] = (
    "network",
    "closure",
    "quantity",
    "alpha",
    "predicted",
    "monte_carlo",
    "standard_error",
    "relative_error",
)


@dataclass(frozen=True)
class Case:
    """A network as layers, its plain form where it is fully connected, and correctly classified examples."""

    name: str
    model: nn.Sequential
    net: ReLUNetwork | None
    x: np.ndarray
    y: np.ndarray
    caps: tuple[float, float]


def random_case(name: str, widths: tuple[int, ...], *, seed: int, examples: int) -> Case:
    """Gaussian weights of variance 2 / fan-in, Gaussian inputs; the label is the network's own decision."""
    rng = np.random.default_rng(seed)
    weights = tuple(rng.normal(size=(b, a)) * math.sqrt(2 / a) for a, b in pairwise(widths))
    net = ReLUNetwork(weights, tuple(0.1 * rng.normal(size=b) for b in widths[1:]))
    x = rng.normal(size=(examples, widths[0]))
    return Case(name, as_sequential(net), net, x, net.scores(x).argmax(axis=1), (math.sqrt(widths[0]), 1.0))


def trained_case(data: Dataset, *, examples: int) -> Case:
    """The 64-300-100-10 network of the experiments, trained without masks, on test digits."""
    x, y = torch.tensor(data.x_train, dtype=torch.float32), torch.tensor(data.y_train)
    nets = initialise((64, 300, 100, 10), seeds=[0], device=torch.device("cpu"))
    net = relu_network(train(nets, x, y, Recipe(epochs=20), seeds=[0]), 0)
    caps = (data.diameter(2), data.diameter(math.inf))
    return Case(
        "digits 64-300-100-10", as_sequential(net), net, data.x_test[:examples], data.y_test[:examples], caps
    )


def convolutional_case(data: Dataset, *, pool: nn.Module, name: str, examples: int) -> Case:
    """Two small convolutions and a linear layer on 8 x 8 digits, trained without masks."""
    torch.manual_seed(0)
    features = 8 * 4 * 4
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), pool, nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.Flatten()
    ).append(nn.Linear(features, 10))
    x, y = torch.tensor(data.x_train, dtype=torch.float32).reshape(-1, 1, 8, 8), torch.tensor(data.y_train)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(20):
        for rows in torch.randperm(len(x)).split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimiser.step()
    caps = (data.diameter(2), data.diameter(math.inf))
    images = data.x_test[:examples].reshape(-1, 1, 8, 8)
    return Case(
        name, model.double().requires_grad_(requires_grad=False), None, images, data.y_test[:examples], caps
    )


def rivals_of(case: Case) -> np.ndarray:
    """The class with the largest logit but the label, of the network without masks."""
    scores = case.model(torch.tensor(case.x)).detach().numpy().copy()
    scores[np.arange(len(case.y)), case.y] = -math.inf
    return scores.argmax(axis=1)


def measure(case: Case) -> list[dict[str, object]]:
    """Rows of one network: every quantity at every sparsity, and the best sparsity of each radius."""
    rivals = rivals_of(case)
    layers = sum(isinstance(module, nn.Linear | nn.Conv2d) for module in case.model)
    alphas = np.repeat(SPARSITIES[:, None], layers, axis=1)
    generator = torch.Generator().manual_seed(0)
    drawn = sample(case.model, case.x, case.y, rivals, alphas, masks=MASKS, generator=generator)
    predictions: dict[str, Prediction] = {}
    for closure in ("covariance", "independent"):
        if case.net is not None:
            predictions[closure] = predict(
                case.net, case.x, case.y, rivals, alphas, covariance=closure == "covariance"
            )
        elif closure == "covariance":
            predictions[closure] = predict_sequential(case.model, case.x, case.y, rivals, alphas)
    click.echo(case.name)
    rows: list[dict[str, object]] = []
    for closure, prediction in predictions.items():
        for found in compare(prediction, drawn, caps=case.caps):
            values = (found.predicted, found.monte_carlo, found.standard_error, found.relative_error)
            rows += [
                row(case.name, closure, found.quantity, *map(float, numbers))
                for numbers in zip(SPARSITIES, *values, strict=True)
            ]
        for norm, p, cap in (("l2", 2.0, case.caps[0]), ("linf", math.inf, case.caps[1])):
            guess = best_sparsity(SPARSITIES, prediction.radius(p=p, cap=cap))
            truth = best_sparsity(SPARSITIES, drawn.values(f"radius_{norm}", caps=case.caps).mean(axis=1))
            rows.append(row(case.name, closure, f"best_sparsity_{norm}", "", guess, truth, "", ""))
    return rows


def bounds(case: Case) -> list[dict[str, object]]:
    """The proven bounds of the expected certified radius; without biases, or the upper one is the cap."""
    assert case.net is not None
    net = ReLUNetwork(case.net.weights, tuple(np.zeros_like(bias) for bias in case.net.biases))
    right = net.scores(case.x).argmax(axis=1) == case.y
    rows = []
    for norm, p, cap in (("l2", 2.0, case.caps[0]), ("linf", math.inf, case.caps[1])):
        curve = radius_curve(net, case.x[right], case.y[right], BOUND_SPARSITIES, p=p, domain_radius=cap)
        for side, values in (("lower", curve.lower), ("upper", curve.upper)):
            quantity = f"certified_{side}_{norm}"
            for alpha, value in zip(BOUND_SPARSITIES.tolist(), values.tolist(), strict=True):
                rows.append(row(f"{case.name}, no biases", "proven", quantity, alpha, value, "", "", ""))
    return rows


def row(name: str, closure: str, quantity: str, *numbers: float | str) -> dict[str, object]:
    """One line of the table; numbers in the order of FIELDS."""
    rounded = [f"{number:.6g}" if isinstance(number, float) else number for number in numbers]
    return dict(zip(FIELDS, (name, closure, quantity, *rounded), strict=True))


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Write the table as CSV.")
def main(out: Path) -> None:
    """Compare predictions with Monte Carlo over 400 masks on random and trained networks."""
    torch.set_num_threads(1)
    data = load("digits")
    cases = [
        random_case("random 20-50-50-5", (20, 50, 50, 5), seed=0, examples=40),
        random_case("random 64-100-100-100-10", (64, 100, 100, 100, 10), seed=1, examples=40),
        trained_case(data, examples=40),
        convolutional_case(data, pool=nn.AvgPool2d(2), name="digits conv, average pooling", examples=16),
        convolutional_case(data, pool=nn.MaxPool2d(2), name="digits conv, max pooling", examples=16),
    ]
    rows = [line for case in cases for line in measure(case)]
    rows += [line for case in cases if case.net is not None for line in bounds(case)]
    save(rows, FIELDS, out)
    click.echo(f"{len(rows)} rows in {out}")


if __name__ == "__main__":
    main()
