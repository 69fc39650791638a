"""Print and store how fast the ensemble trains and is attacked, beside single networks and the floor."""

from __future__ import annotations

import platform
from pathlib import Path

import click
import torch

from benchmarks.floor import multiply_adds, product_rate, seconds
from benchmarks.tables import report
from empirical.attacks import deepfool, minimal_fgs, shorten
from empirical.datasets import Dataset, load
from empirical.ensembles import MLPEnsemble, initialise
from empirical.provenance import choose_device
from empirical.training import Recipe, train

WIDTHS = (64, 300, 100, 10)
MEMBERS = 20
EPOCHS = 4
FIELDS: tuple[str, ...] = (
    "benchmark",
    "unit",
    "microseconds",
    "peer",
    "ratio",
    "floor_microseconds",
    "times_floor",
    "device",
)


def by_torch(data: Dataset, seed: int, recipe: Recipe, device: torch.device) -> torch.nn.Module:
    """The same training of one network as a user would write it: torch.nn, autograd, torch.optim."""
    torch.manual_seed(seed)
    layers: list[torch.nn.Module] = []
    for a, b in zip(WIDTHS[:-1], WIDTHS[1:], strict=True):
        layers += [torch.nn.Linear(a, b), torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers[:-1]).to(device)
    x = torch.tensor(data.x_train, dtype=torch.float32, device=device)
    y = torch.tensor(data.y_train, device=device)
    optimiser = torch.optim.SGD(
        model.parameters(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
    )
    for _ in range(recipe.epochs):
        order = torch.randperm(len(x), device=device)
        for start in range(0, len(x) - recipe.batch_size + 1, recipe.batch_size):
            rows = order[start : start + recipe.batch_size]
            optimiser.zero_grad(set_to_none=True)
            torch.nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimiser.step()
    return model


def training(data: Dataset, device: torch.device) -> list[dict[str, object]]:
    """Seconds per network trained: the ensemble, its members one by one, and torch's own loop."""
    recipe = Recipe(epochs=EPOCHS)
    x = torch.tensor(data.x_train, dtype=torch.float32, device=device)
    y = torch.tensor(data.y_train, device=device)
    nets = initialise(WIDTHS, seeds=range(MEMBERS), device=device)
    singles = [nets.select([k]) for k in range(MEMBERS)]

    def one_by_one() -> None:
        for k, single in enumerate(singles):
            train(single, x, y, recipe, seeds=[k])

    together = seconds(lambda: train(nets, x, y, recipe, seeds=range(MEMBERS)), device=device, repeats=3)
    alone = seconds(one_by_one, device=device, repeats=3)
    torch_loop = seconds(lambda: by_torch(data, 0, recipe, device), device=device, repeats=3)
    # Forward and both backward products, without the gradient of the input.
    steps = EPOCHS * (len(x) // recipe.batch_size) * recipe.batch_size
    flops = 2 * (3 * multiply_adds(WIDTHS) - WIDTHS[0] * WIDTHS[1]) * steps
    floor = flops / product_rate(dtype=torch.float32, device=device)
    per_network = together / MEMBERS
    return [
        row("train, ensemble of 20", "network", per_network, "members one by one", alone / MEMBERS, floor),
        row("train, ensemble of 20", "network", per_network, "torch.nn and torch.optim", torch_loop, floor),
    ]


def attacks(data: Dataset, device: torch.device) -> list[dict[str, object]]:
    """Seconds per attacked example of every attack, on the trained ensemble."""
    x = torch.tensor(data.x_train, dtype=torch.float32, device=device)
    nets = initialise(WIDTHS, seeds=range(MEMBERS), device=device)
    nets = train(nets, x, torch.tensor(data.y_train, device=device), Recipe(epochs=10), seeds=range(MEMBERS))
    exact = nets.to(dtype=torch.float64, device=device)
    x, y = torch.tensor(data.x_test, device=device), torch.tensor(data.y_test, device=device)
    x_adv, found = deepfool(exact, x, y, p=2)
    # One forward pass and one gradient; DeepFool's is that of every class, once per iteration at least.
    forward = 2 * multiply_adds(WIDTHS)
    rate = product_rate(dtype=torch.float64, device=device)
    jacobian = forward + 2 * WIDTHS[-1] * (multiply_adds(WIDTHS[:-1]))
    timed = {
        "smallest FGS step, exact": (lambda: minimal_fgs(exact, x, y), 2 * forward),
        "DeepFool l2": (lambda: deepfool(exact, x, y, p=2), jacobian),
        "pull back to the boundary": (lambda: shorten(exact, x, y, x_adv, found), 2 * forward),
    }
    count = MEMBERS * len(x)
    found_rows = [
        row(name, "example", seconds(work, device=device, repeats=3) / count, "", None, flops / rate)
        for name, (work, flops) in timed.items()
    ]
    return [*found_rows, bisection(exact, x, y, count)]


def bisection(nets: MLPEnsemble, x: torch.Tensor, y: torch.Tensor, count: int) -> dict[str, object]:
    """The usual way to the smallest FGS step: bisection to 1e-3, which misses dips and is not exact."""
    from empirical.attacks.active import margins
    from empirical.attacks.fgsm import loss_gradient_sign

    def bisect() -> None:
        sign = loss_gradient_sign(nets, x, y)
        low = torch.zeros(nets.members, len(x), dtype=x.dtype, device=x.device)
        high = torch.ones_like(low)
        for _ in range(10):
            middle = (low + high) / 2
            hit = margins(nets.logits(x + middle[..., None] * sign), y) <= 0
            low, high = torch.where(hit, low, middle), torch.where(hit, middle, high)

    exact = seconds(lambda: minimal_fgs(nets, x, y), device=x.device, repeats=3) / count
    peer = seconds(bisect, device=x.device, repeats=3) / count
    return row("smallest FGS step, exact", "example", exact, "bisection to 1e-3", peer, None)


def row(
    name: str, unit: str, taken: float, peer: str, peer_taken: float | None, floor: float | None
) -> dict[str, object]:
    """One line of the table; times in microseconds, ``ratio`` how many times slower the peer is."""
    return {
        "benchmark": name,
        "unit": unit,
        "microseconds": round(taken * 1e6, 1),
        "peer": peer,
        "ratio": "" if peer_taken is None else round(peer_taken / taken, 2),
        "floor_microseconds": "" if floor is None else round(floor * 1e6, 1),
        "times_floor": "" if floor is None else round(taken / floor, 1),
    }


@click.command()
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option("--out", type=click.Path(path_type=Path), help="Also write the table as CSV.")
def main(device: str, out: Path | None) -> None:
    """Time training and attacks on the digits; quiet machine, please: nothing else should run."""
    chosen = choose_device(device)
    data = load("digits")
    threads = f"{torch.get_num_threads()} threads"
    name = torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else f"{platform.machine()}, {threads}"
    table = [line | {"device": name} for line in (*training(data, chosen), *attacks(data, chosen))]
    report(table, FIELDS, out)


main()
