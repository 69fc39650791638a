"""Training and progressively pruning an ensemble beside a loop of torch.nn.utils.prune and torch.optim.

``python -m benchmarks.training --mnist FILE.npz --out benchmarks/results/training.csv``, minutes on a core,
or ``--quick`` for a smoke test on scikit-learn's digits. A row of the table is a method on an architecture:
networks trained dense, then pruned layer-wise by a third of what is left and trained again, round after
round, float32, by the same recipe.

``seconds`` is processor time per network, one thread, the median of ``runs`` after one to warm up, ``least``
and ``most`` the smallest and the largest; ``times_floor`` divides it by
that of the steps' products, forward and both backward ones, at the rate of a large matrix product before or
after, the higher one. ``ratio`` is how many times longer than this project's ensemble a method takes.
``accuracy`` is on the test set, the mean over the networks, so that a fast method that learns less is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from time import process_time

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from benchmarks.cases import CPU, fully_connected
from benchmarks.command import on_mnist
from benchmarks.floor import product_rate
from benchmarks.tables import Row
from benchmarks.turns import TIMES, in_turns
from empirical.datasets import Dataset
from empirical.ensembles import Ensemble, initialise, initialise_modules
from empirical.models import lenet5
from empirical.pruning import magnitude_masks
from empirical.training.train import Recipe, train

FIELDS: tuple[str, ...] = (
    "architecture",
    "method",
    "networks",
    "examples",
    "rounds",
    *TIMES,
    "ratio",
    "times_floor",
    "accuracy",
    "sparsity",
)
OURS = "ensemble"
PEER = "torch.nn.utils.prune and torch.optim"
TUNED = "the same, fused SGD, images channels last"


@dataclass(frozen=True)
class Setup:
    """One architecture and how much of it is trained: ``pruned`` rounds after the dense one."""

    name: str
    build: Callable[[], nn.Module]
    start: Callable[[Sequence[int]], Ensemble]
    shape: tuple[int, ...]
    recipe: Recipe
    networks: int = 2
    examples: int = 30_000
    pruned: int = 1
    repeats: int = 3


def setups(data: Dataset, *, quick: bool) -> list[Setup]:
    """LeNet-300-100 and LeNet-5, or tiny ones on the digits."""
    widths = (data.x_train.shape[1], *((12, 8) if quick else (300, 100)), data.classes)
    mlp = Setup(
        "-".join(map(str, widths)),
        partial(fully_connected, widths),
        lambda seeds: initialise(widths, seeds=seeds, device=CPU),
        (widths[0],),
        Recipe(epochs=1, learning_rate=0.1),
    )
    if quick:
        return [replace(mlp, repeats=0)]
    shape = (1, 28, 28)
    conv = replace(
        mlp,
        name="LeNet-5",
        build=lenet5,
        start=lambda seeds: initialise_modules(lenet5, shape=shape, seeds=seeds, device=CPU),
        shape=shape,
        recipe=Recipe(epochs=1, learning_rate=0.01),
        examples=3_200,
    )
    return [mlp, conv]


def by_ensemble(setup: Setup, x: Tensor, y: Tensor) -> Ensemble:
    """All networks at once, as this project trains them."""
    seeds = range(setup.networks)
    networks = train(setup.start(seeds), x, y, setup.recipe, seeds=seeds)
    for level in range(1, setup.pruned + 1):
        pruned = networks.masked(magnitude_masks(networks, sparsity=1 - (2 / 3) ** level))
        networks = train(pruned, x, y, setup.recipe, seeds=seeds)
    return networks


def by_torch(setup: Setup, x: Tensor, y: Tensor, *, fused: bool, channels_last: bool) -> list[nn.Module]:
    """The same as a user would write it: network after network, masks by torch.nn.utils.prune.

    ``channels_last`` is for the images alone: pruning fails on weights of that layout.
    """
    trained, recipe = [], setup.recipe
    for seed in range(setup.networks):
        torch.manual_seed(seed)
        model = setup.build()
        layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
        for level in range(setup.pruned + 1):
            if level:
                for layer in layers:
                    prune.l1_unstructured(layer, "weight", amount=1 / 3)
            named = dict(model.named_parameters())
            weights = [p for name, p in named.items() if "weight" in name]
            others = [p for name, p in named.items() if "weight" not in name]
            optimiser = torch.optim.SGD(
                [{"params": weights, "weight_decay": recipe.weight_decay}, {"params": others}],
                lr=recipe.learning_rate,
                momentum=recipe.momentum,
                fused=fused,
            )
            steps = len(x) // recipe.batch_size
            for step, rows in enumerate(torch.randperm(len(x))[: steps * recipe.batch_size].split(64)):
                for group in optimiser.param_groups:
                    group["lr"] = recipe.learning_rate * (1 - step / steps)
                batch = x[rows].unflatten(1, setup.shape)
                if channels_last and batch.ndim == 4:
                    batch = batch.contiguous(memory_format=torch.channels_last)
                optimiser.zero_grad()
                nn.functional.cross_entropy(model(batch), y[rows]).backward()
                optimiser.step()
        trained.append(model.eval())
    return trained


def judged(trained: Ensemble | list[nn.Module], setup: Setup, x: Tensor, y: Tensor) -> Tensor:
    """Accuracy on the test set and sparsity, means over the networks."""
    if isinstance(trained, list):
        with torch.no_grad():
            logits = torch.stack([model(x.unflatten(1, setup.shape)) for model in trained])
        masks = [mask for model in trained for name, mask in model.named_buffers() if name.endswith("_mask")]
        sparsity = 1 - sum(int(m.sum()) for m in masks) / sum(m.numel() for m in masks)
    else:
        logits = trained.logits(x)
        sparsity = float(trained.sparsity().mean())
    return torch.tensor([float((logits.argmax(2) == y).double().mean()), sparsity])


def step_flops(setup: Setup) -> int:
    """Operations of the products of one example's step: forward, both backward, no gradient of the input."""
    model, adds = setup.build(), []

    def count(layer: nn.Module, inputs: object, output: Tensor) -> None:
        weight = layer.get_parameter("weight")
        adds.append(weight.numel() * output.shape[2:].numel())

    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.register_forward_hook(count)
    model(torch.zeros(1, *setup.shape))
    return 2 * (3 * sum(adds) - adds[0])


def tabulate(data: Dataset, setup: Setup) -> Iterator[Row]:
    """The rows of one architecture."""
    n = min(setup.examples, len(data.x_train))
    x, y = torch.tensor(data.x_train[:n], dtype=torch.float32), torch.tensor(data.y_train[:n])
    test = torch.tensor(data.x_test, dtype=torch.float32), torch.tensor(data.y_test)
    works: dict[str, Callable[[], Ensemble | list[nn.Module]]] = {
        OURS: partial(by_ensemble, setup, x, y),
        PEER: partial(by_torch, setup, x, y, fused=False, channels_last=False),
        TUNED: partial(by_torch, setup, x, y, fused=True, channels_last=True),
    }
    rate = partial(product_rate, dtype=torch.float32, device=CPU, clock=process_time)
    before = rate()
    timed = in_turns(works, repeats=setup.repeats)
    steps = setup.recipe.epochs * (n // setup.recipe.batch_size) * (setup.pruned + 1)
    floor = step_flops(setup) * steps * setup.recipe.batch_size / max(before, rate())
    for name, taken in timed.items():
        accuracy, sparsity = judged(taken.value, setup, *test)
        yield {
            "architecture": setup.name,
            "method": name,
            "networks": setup.networks,
            "examples": n,
            "rounds": setup.pruned + 1,
            **taken.columns(setup.networks),
            "ratio": f"{taken.seconds / timed[OURS].seconds:.2f}",
            "times_floor": f"{taken.seconds / setup.networks / floor:.2f}",
            "accuracy": f"{accuracy:.4f}",
            "sparsity": f"{sparsity:.4f}",
        }


main = on_mnist(
    lambda data, quick: (line for setup in setups(data, quick=quick) for line in tabulate(data, setup)),
    FIELDS,
    "Training and progressive pruning beside a loop over single networks",
)


if __name__ == "__main__":
    main()
