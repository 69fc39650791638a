"""Seconds per epoch of the CIFAR-10 networks for every way of training them, and of attacks on one of each.

``python -m benchmarks.gpu --out benchmarks/results/gpu.csv`` on a GPU; ``--quick`` is a smoke test of tiny
networks on any device. Images are noise: the time of training does not depend on what they show.

A line of ``train`` is a way: networks batched by vmap (``together``) or one alone (``in turn``),
float32 or bfloat16 products, compiled or not (``Recipe.compiled``), a batch size. ``seconds`` is the median
wall clock of an epoch of ``images`` per network, the GPU waited for; ``first`` that of the first epoch, with
compilation and cuDNN's choices. ``share`` is how much of that epoch the steps' products alone would take at
the rate of a large matrix product of the same precision in the same run. A line of ``attack`` is one attack
on one untrained network at ``images`` images, labelled as it decides, in float64, as experiments measure,
less the line before all attacks, of what every measurement does; it has no share, and a trained network may
take more or less. A way that fails, for want of memory or of a compiler, is a line with the reason in
``note``, and the others go on.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median

import click
import numpy as np
import torch
from torch import nn

from benchmarks.floor import product_rate
from benchmarks.tables import Row, report
from benchmarks.training import Setup, step_flops
from empirical.datasets import Dataset
from empirical.ensembles import Ensemble, initialise_modules
from empirical.experiments.architectures import Channels, build
from empirical.experiments.specification import ATTACKS, Network
from empirical.measurement import measure
from empirical.runs.provenance import choose_device, device_name
from empirical.training.augmentation import Augmentation
from empirical.training.train import Recipe, train
from theory.types import first_line

FIELDS: tuple[str, ...] = (
    "task",
    "network",
    "way",
    "members",
    "batch",
    "precision",
    "compiled",
    "images",
    "seconds",
    "first",
    "share",
    "note",
    "machine",
)
SHAPE = (3, 32, 32)
CHANNELS = Channels((0.5,) * 3, (0.25,) * 3)


@dataclass(frozen=True)
class Size:
    """How much is timed: images of an epoch, of an attack, epochs after the first, a product's side."""

    networks: tuple[Network, ...]
    train: int
    attacked: int
    members: int
    batches: tuple[int, ...]
    epochs: int
    product: int
    attacks: tuple[str, ...]


FULL = Size((Network("resnet-32"), Network("vgg")), 12_800, 1000, 3, (128, 256, 512), 2, 8192, ATTACKS)
QUICK = Size((Network("vgg", scale=0.01),), 20, 1, 2, (10,), 1, 256, ("fgs", "deepfool"))


def ways(size: Size) -> Iterator[tuple[bool, Recipe]]:
    """Every way of training: whether members run together, and the recipe.

    The smallest batch in all ways, larger ones in bfloat16; what experiments do comes first.
    """
    base = Recipe(
        epochs=1 + size.epochs,
        batch_size=size.batches[0],
        learning_rate=0.01,
        nesterov=True,
        augmentation=Augmentation(),
        bfloat16=True,
    )
    for batch in size.batches:
        yield False, replace(base, batch_size=batch)
    yield False, replace(base, bfloat16=False)
    for mode in ("default", "reduce-overhead"):
        yield False, replace(base, compiled=mode)
    yield True, replace(base, bfloat16=False)
    for batch in size.batches:
        yield True, replace(base, batch_size=batch)


def started(network: Network, members: int, device: torch.device) -> Ensemble:
    """Untrained networks behind a standardising layer."""
    made = functools.partial(build, network, classes=10, channels=CHANNELS)
    return initialise_modules(made, shape=SHAPE, seeds=range(members), device=device)


def epoch_seconds(ensemble: Ensemble, data: Dataset, recipe: Recipe) -> tuple[float, float]:
    """Wall clock of the first epoch, with all that precedes it, and the median of the others."""
    device = ensemble.masks[0].device
    x = torch.tensor(data.x_train, device=device)
    y = torch.tensor(data.y_train, device=device)

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    ticks = [now()]
    train(ensemble, x, y, recipe, seeds=range(ensemble.members), after_epoch=lambda: ticks.append(now()))
    first, *others = (b - a for a, b in pairwise(ticks))
    return first, median(others)


def training_lines(network: Network, size: Size, data: Dataset, device: torch.device) -> Iterator[Row]:
    """A line for every way of training this network."""
    nets = started(network, size.members, device)
    flops = _flops(network)
    for together, recipe in ways(size):
        dtype = torch.bfloat16 if recipe.bfloat16 else torch.float32
        line: Row = {
            "task": "train",
            "network": network.kind,
            "way": "together" if together else "in turn",
            "members": size.members if together else 1,
            "batch": recipe.batch_size,
            "precision": "bfloat16" if recipe.bfloat16 else "float32",
            "compiled": recipe.compiled,
            "images": size.train,
            "note": "not compiled on a CPU" if recipe.compiled and device.type == "cpu" else "",
        }
        members = size.members if together else 1  # in turn the others take as long
        try:
            taken = epoch_seconds(nets.select([*range(members)]), data, recipe)
        except Exception as error:  # a way that this machine cannot go is a finding
            yield line | {"note": _told(error)}
            continue
        first, seconds = (value / members for value in taken)
        floor = flops * size.train / product_rate(dtype=dtype, device=device, size=size.product)
        yield line | {
            "seconds": f"{seconds:.3g}",
            "first": f"{first:.3g}",
            "share": f"{floor / seconds:.2g}",
        }


def attack_lines(network: Network, size: Size, data: Dataset, device: torch.device) -> Iterator[Row]:
    """A line for what every measurement of one untrained network does, and one for every attack beyond it."""
    nets = started(network, 1, device)
    x = torch.tensor(data.x_test, dtype=torch.float32, device=device)
    found = replace(data, y_test=nets.logits(x)[0].argmax(1).cpu().numpy())  # else nothing is attacked
    with suppress(Exception):  # it fails again below, and is told there
        measure(nets, found, eps=0.01, attacks=())  # loads what the device needs for float64
    always = 0.0
    for attack in (None, *size.attacks):
        line: Row = {
            "task": f"attack {attack}" if attack else "measurement without an attack",
            "network": network.kind,
            "members": 1,
            "precision": "float64",
            "images": size.attacked,
        }
        begun = time.perf_counter()
        try:
            # Ends in NumPy arrays: the GPU is waited for.
            measure(nets, found, eps=0.01, attacks=(attack,) if attack else ())
        except Exception as error:  # likewise
            yield line | {"note": _told(error)}
            continue
        taken = time.perf_counter() - begun
        always = always if attack else taken
        yield line | {"seconds": f"{taken - always if attack else taken:.3g}"}


def noise(size: Size) -> Dataset:
    """Images and labels at random."""
    rng = np.random.default_rng(0)
    count = size.train + size.attacked
    x = rng.random((count, 3 * 32 * 32), dtype=np.float32)
    y = np.arange(count) % 10
    test = x[size.train :].astype(np.float64)
    return Dataset("noise", x[: size.train], y[: size.train], test, y[size.train :], 10, shape=SHAPE)


def _told(error: Exception) -> str:
    """An error in a few words."""
    return f"{type(error).__name__}: {first_line(error)[:80]}"


def _flops(network: Network) -> float:
    """Operations of one image's step."""

    def built() -> nn.Module:
        return build(network, classes=10, channels=CHANNELS).eval()

    cpu = choose_device("cpu")
    recipe = Recipe(epochs=1)
    setup = Setup(network.kind, built, lambda seeds: started(network, len(seeds), cpu), SHAPE, recipe)
    return step_flops(setup)


@click.command()
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--kind", multiple=True, help="Only this network: resnet-32 or vgg; both by default.")
@click.option("--quick", is_flag=True, help="A smoke test: tiny networks, a few images.")
@click.option("--out", type=click.Path(path_type=Path), help="Also write the table as CSV.")
def main(*, device: str, kind: tuple[str, ...], quick: bool, out: Path | None) -> None:
    """Time training and attacks of the CIFAR-10 networks in all ways, beside a matrix product."""
    chosen, size = choose_device(device), QUICK if quick else FULL
    data = noise(size)
    machine = f"{device_name(chosen)}, torch {torch.__version__}"
    rows = (
        line | {"machine": machine}
        for network in size.networks
        if not kind or network.kind in kind
        for lines in (training_lines, attack_lines)  # choices hang on the former
        for line in lines(network, size, data, chosen)
    )
    report(rows, FIELDS, out)


if __name__ == "__main__":
    main()
