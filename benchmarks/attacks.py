"""Attacks beside other packages', on one thread, on the same images of the same network, all in one run.

``python -m benchmarks.attacks --mnist FILE.npz --out benchmarks/results/attacks.csv``, with the packages of
:mod:`benchmarks.attack_peers` on PYTHONPATH (``not installed`` stands where one is missing), or ``--quick``
for a smoke test on scikit-learn's digits. LeNet-300-100 and LeNet-5, float32, the first correctly classified
test images, box [0, 1]. A row of the table is one method on one task:

- ``success``: share of the images whose class has changed when the network is run again in float64.
- ``mean``: mean distance where it has. It is not comparable where success differs.
- ``seconds``: processor time, one thread, all images; ``times_ours`` that over this project's, first row
  of the task.
- **logits and gradient**: one pass of all images to the input gradient of the cross-entropy, a step's work,
  beside PyTorch's autograd and the floor: its floating-point operations at the rate of a matrix product.
- **matrix product**: ``mean`` is in GFLOP/s; the machine is shared if it differs between start and end.
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from time import process_time

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.attack_peers import (
    Attack,
    carlini_wagner_peers,
    deepfool_peers,
    gradient_step_peers,
    smallest_step_peers,
)
from benchmarks.cases import CPU, QUICK, Setup, cases
from benchmarks.command import on_mnist
from benchmarks.floor import product_rate, seconds
from benchmarks.tables import Row
from benchmarks.turns import Timed, in_turns
from empirical.attacks import carlini_wagner, ddn, deepfool, fgs, fmn, fmn_init, minimal_fgs, strongest
from empirical.attacks.active import margins
from empirical.attacks.losses import cross_entropy_direction
from empirical.datasets import Dataset
from empirical.ensembles import Ensemble, MLPEnsemble, ModuleEnsemble, initialise_modules, to_module
from empirical.measurement import OTHERS
from empirical.models import lenet5
from empirical.training import Recipe, train

FIELDS: tuple[str, ...] = (
    "network",
    "task",
    "norm",
    "method",
    "examples",
    "seconds",
    "times_ours",
    "success",
    "mean",
    "note",
    "machine",
)
FULL = Setup(sparsities=(0.0,), examples=500, repeats=1)
BOX = (0.0, 1.0)
STEPS, SEARCHES = 100, 9
FEWER = (50, 30)  # steps of ours, beside the STEPS that the peers take
SLOWEST = 50  # images for peers that take minutes
# LeNet-5: training images, attacked images, and the methods that would take hours or were run on the other.
TRAINED, FEW = 10_000, 50
LEFT_OUT = ("ART", "torchattacks", "strongest, effort 3", "strongest, effort 3, others")
ABSENT = "not installed"
Ours = Callable[[Ensemble, Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Target:
    """A network under attack, float64, its first correctly classified test images, and other images."""

    name: str
    nets: MLPEnsemble | ModuleEnsemble
    x: Tensor
    y: Tensor
    others: Tensor

    @property
    def module(self) -> nn.Module:
        """What the peers attack: it takes flat images too."""
        module = to_module(self.nets.to(dtype=torch.float32, device=CPU), 0).requires_grad_(
            requires_grad=False
        )
        if not isinstance(self.nets, ModuleEnsemble):
            return module
        return nn.Sequential(nn.Unflatten(1, self.nets.shape), module).eval()


def fully_connected(data: Dataset, setup: Setup) -> Target:
    """The dense LeNet-300-100."""
    case = cases(data, setup)[0]
    return Target("-".join(map(str, case.widths)), case.ensemble, case.x, case.y, others_of(data))


def convolutional(data: Dataset) -> Target:
    """LeNet-5, one epoch on the first images."""
    x, y = torch.tensor(data.x_train[:TRAINED], dtype=torch.float32), torch.tensor(data.y_train[:TRAINED])
    nets = initialise_modules(lenet5, shape=(1, 28, 28), seeds=[0], device=CPU)
    nets = train(nets, x, y, Recipe(epochs=1, learning_rate=0.01), seeds=[0])
    nets = nets.to(dtype=torch.float64, device=CPU)
    x_test, y_test = torch.tensor(data.x_test[: 2 * FEW]), torch.tensor(data.y_test[: 2 * FEW])
    rows = (nets.logits(x_test)[0].argmax(1) == y_test).nonzero()[:FEW, 0]
    return Target("LeNet-5", nets, x_test[rows], y_test[rows], others_of(data))


def others_of(data: Dataset) -> Tensor:
    """The images that FMN starts from: training images."""
    return torch.tensor(data.x_train[:OTHERS], dtype=torch.float32)


def bisected(steps: int = 20) -> Ours:
    """The smallest gradient-sign step by bisection, as users of packages without a search do it."""

    def attack(nets: Ensemble, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        sign = fgs(nets, x, y, eps=1.0) - x
        low, high = torch.zeros(1, len(x)), torch.ones(1, len(x))
        for _ in range(steps):
            middle = (low + high) / 2
            hit = margins(nets.logits((x + middle[..., None] * sign).clamp(*BOX)), y) < 0
            low, high = torch.where(hit, low, middle), torch.where(hit, middle, high)
        points = (x + high[..., None] * sign).clamp(*BOX)
        return points, margins(nets.logits(points), y) < 0

    return attack


def tasks(others: Tensor) -> list[tuple[str, float, dict[str, Ours], Mapping[str, Attack | None]]]:
    """Name, norm, this project's methods, and the peers', of every task; FMN starts from ``others`` too."""
    found: list[tuple[str, float, dict[str, Ours], Mapping[str, Attack | None]]] = []
    peers = deepfool_peers()
    for p in (2.0, math.inf):
        ours: dict[str, Ours] = {"deepfool": partial(deepfool, p=p, box=BOX)}
        found.append(("DeepFool", p, ours, {name: a for (name, q), a in peers.items() if q == p}))
    steppers = gradient_step_peers(STEPS)
    for p in (2.0, math.inf):
        ours = {f"fmn, {n} steps": partial(fmn, p=p, steps=n, box=BOX) for n in (STEPS, *FEWER)}
        ours["fmn_init, 5 x 30 steps"] = partial(fmn_init, others=others, p=p, box=BOX)
        if p == 2:
            ours |= {f"ddn, {n} steps": partial(ddn, steps=n, box=BOX) for n in (STEPS, *FEWER)}
        theirs = {f"{name}, {STEPS} steps": a for (name, q), a in steppers.items() if q == p}
        found.append(("minimal", p, ours, theirs))
    ours = {f"carlini_wagner, {SEARCHES} x {STEPS}": partial(carlini_wagner, box=BOX)}
    found.append(("C&W", 2.0, ours, carlini_wagner_peers(SEARCHES, STEPS)))
    ours = {"minimal_fgs": partial(minimal_fgs, box=BOX), "bisection of 20 steps": bisected()}
    found.append(("smallest FGS step", math.inf, ours, smallest_step_peers()))
    for p in (2.0, math.inf):
        ours = {f"strongest, effort {e}": partial(strongest, p=p, effort=e, box=BOX) for e in (3, 2)}
        more = partial(strongest, p=p, others=others, box=BOX)
        ours |= {f"strongest, effort {e}, others": partial(more, effort=e) for e in (3, 2)}
        found.append(("strongest", p, ours, {}))
    return found


def measured(target: Target, table: list[Row], *, repeats: int, without: tuple[str, ...] = ()) -> None:
    """Add the rows of every task, all methods of a task in turns."""
    nets, module = target.nets.to(dtype=torch.float32, device=CPU), target.module
    x, y = target.x.float(), target.y
    for task, p, ours, peers in tasks(target.others):
        ours = {name: attack for name, attack in ours.items() if name not in without}
        peers = {name: attack for name, attack in peers.items() if name not in without}
        if not ours:
            continue
        works: dict[str, Callable[[], Tensor] | None] = {}
        counts = dict.fromkeys((*ours, *peers), len(x))
        for name, attack in ours.items():
            works[name] = partial(_points, attack, nets, x, y)
        for name, peer in peers.items():
            few = SLOWEST if name == "torchattacks" and task == "DeepFool" else len(x)
            counts[name] = min(few, len(x))
            works[name] = partial(peer, module, x[:few], y[:few]) if peer else None
        timed = in_turns(works, repeats=repeats if task != "strongest" else 0)
        first = timed[next(iter(ours))].seconds / len(x)
        for name in works:
            line: Row = {
                "network": target.name,
                "task": task,
                "norm": "l2" if p == 2 else "linf",
                "method": name,
                "examples": counts[name],
            }
            if name in timed:
                line |= _quality(target, timed[name], x[: counts[name]], y[: counts[name]], p=p)
                line["times_ours"] = f"{timed[name].seconds / counts[name] / first:.3g}"
            else:
                line["note"] = ABSENT
            table.append(dict.fromkeys(FIELDS, "") | line)


def one_pass(target: Target, *, repeats: int, product: int) -> list[Row]:
    """A step's work: ours, autograd's, and its operations at the rate of a matrix product."""
    nets, module, x, y = (
        target.nets.to(dtype=torch.float32, device=CPU),
        target.module,
        target.x.float(),
        target.y,
    )

    def autograd() -> Tensor:
        leaf = x.clone().requires_grad_()
        cross_entropy(module(leaf), y, reduction="sum").backward()
        return leaf

    def ours() -> Tensor:
        return nets.logits_and_gradient(x, cross_entropy_direction(y))[1]

    with FlopCounterMode(display=False) as counter:
        autograd()
    rate = product_rate(dtype=torch.float32, device=CPU, size=product, clock=process_time)
    taken = [seconds(w, device=CPU, repeats=max(1, repeats), clock=process_time) for w in (ours, autograd)]
    taken.append(counter.get_total_flops() / rate)
    names = ("ensemble", "torch.autograd", "floor of the products")
    table: list[Row] = []
    for name, time in zip(names, taken, strict=True):
        line: Row = {
            "network": target.name,
            "task": "logits and gradient",
            "method": name,
            "examples": len(x),
            "seconds": f"{time:.3g}",
            "times_ours": f"{time / taken[0]:.3g}",
        }
        table.append(dict.fromkeys(FIELDS, "") | line)
    return table


def _points(attack: Ours, nets: Ensemble, x: Tensor, y: Tensor) -> Tensor:
    return attack(nets, x, y)[0][0]


def _quality(target: Target, timed: Timed, x: Tensor, y: Tensor, *, p: float) -> Row:
    points = timed.value.double()
    if not (points.min() >= BOX[0] and points.max() <= BOX[1]):
        raise AssertionError("an attack left the box")
    hit = margins(target.nets.logits(points), y)[0] < 0
    distance = torch.linalg.vector_norm(points - x.double(), ord=p, dim=1)[hit]
    return {
        "seconds": f"{timed.seconds:.3g}",
        "success": f"{hit.double().mean():.3f}",
        "mean": f"{distance.mean():.4g}",
        "note": "one run" if timed.runs == 1 else "",
    }


def products(setup: Setup) -> Row:
    """The rate of matrix products, and how busy the machine is."""
    rate = product_rate(dtype=torch.float32, device=CPU, size=setup.product, clock=process_time)
    note = f"GFLOP/s, load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    blank: Row = dict.fromkeys(FIELDS, "")
    return blank | {"task": "matrix product", "mean": f"{rate / 1e9:.1f}", "note": note}


def tabulate(data: Dataset, setup: Setup) -> list[Row]:
    """The whole table, on dense networks; LeNet-5 on MNIST only, every attack once."""
    table = [products(setup)]
    target = fully_connected(data, setup)
    table += one_pass(target, repeats=7 * setup.repeats, product=setup.product)
    measured(target, table, repeats=setup.repeats)
    if setup.repeats:
        target = convolutional(data)
        table += one_pass(target, repeats=7, product=setup.product)
        measured(target, table, repeats=0, without=LEFT_OUT)
    machine = f"{platform.machine()}, 1 thread, torch {torch.__version__}"
    return [line | {"machine": machine} for line in (*table, products(setup))]


main = on_mnist(
    lambda data, quick: tabulate(data, QUICK if quick else FULL),
    FIELDS,
    "Attacks beside those of adv-lib, foolbox, torchattacks and ART",
)


if __name__ == "__main__":
    main()
