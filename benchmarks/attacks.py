"""Attacks beside other packages', on one thread, on the same images of the same network, all in one run.

``python -m benchmarks.attacks --mnist FILE.npz --out benchmarks/results/attacks.csv``, with the packages of
:mod:`benchmarks.attack_peers` on PYTHONPATH (``not installed`` stands where one is missing), or ``--quick``
for a smoke test on scikit-learn's digits. LeNet-300-100 and LeNet-5, float32, the first correctly classified
test images, box [0, 1]. A row of the table is one method on one task:

- ``success``: share of the images whose class has changed when the network is run again in float64.
- ``mean``: mean distance over the ``compared`` images, which every method of the comparison (one network and
  norm; steps along the gradient's signs among themselves) has found; left blank for methods that fail on more
  than a twentieth of the images, or get fewer images, whose failures would leave the easy ones only.
- ``seconds``: processor time, one thread, all images, the median of ``runs`` after one to warm up, ``least``
  and ``most`` the smallest and the largest; what takes more than 10 s runs once, without. ``times_ours`` is
  ``seconds`` an image over those of this project's method, the first row of its task.
- ``gflop``: operations of the method's products, of C&W and of searches by steps, counted in a run of their
  own; ``passes``: those over the operations of one pass to the input gradient for every image;
  ``times_products``: ``seconds`` over the time of ``gflop`` at the run's fastest rate of a matrix product.
- **logits and gradient**: one pass of all images to the input gradient of the cross-entropy, a step's work,
  by this project and by PyTorch's autograd.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

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
from benchmarks.floor import beside_products, product_row
from benchmarks.tables import Row
from benchmarks.turns import TIMES, in_turns
from empirical.attacks import carlini_wagner, ddn, deepfool, fgs, fmn, fmn_init, minimal_fgs, strongest
from empirical.attacks.active import margins
from empirical.attacks.losses import cross_entropy_direction
from empirical.datasets import Dataset
from empirical.ensembles import Ensemble, MLPEnsemble, ModuleEnsemble, initialise_modules, to_module
from empirical.measurement import OTHERS
from empirical.models import lenet5
from empirical.training.train import Recipe, train

FIELDS: tuple[str, ...] = (
    "network",
    "task",
    "norm",
    "method",
    "precision",
    "examples",
    *TIMES,
    "times_ours",
    "passes",
    "success",
    "compared",
    "mean",
    "gflop",
    "times_products",
    "note",
)
FULL = Setup(sparsities=(0.0,), examples=500, repeats=3)
BOX = (0.0, 1.0)
STEPS, SEARCHES = 100, 9
FEWER = (50, 30)  # steps of ours, beside the STEPS that the peers take
SLOWEST = 50  # images for peers that take minutes
# LeNet-5: training images, attacked images, and the methods that would take hours or were run on the other.
TRAINED, FEW = 10_000, 50
LEFT_OUT = ("ART", "torchattacks", "strongest, effort 3")  # and what begins with these
ABSENT = "not installed"
COMPARED = 0.95  # success of the methods whose means are compared
COUNTED = ("steps", "C&W")  # tasks whose operations are counted
FGS, PASS = "smallest FGS step", "logits and gradient"
Ours = Callable[[Ensemble, Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Method:
    """A method of a task, this project's or a peer's: neither if that is not installed."""

    task: str
    name: str
    ours: Ours | None = None
    peer: Attack | None = None

    @property
    def examples(self) -> int | None:
        """How many images it gets, None for all."""
        return SLOWEST if self.name == "torchattacks" and self.task == "DeepFool" else None

    def work(self, nets: Ensemble, module: nn.Module, x: Tensor, y: Tensor) -> Callable[[], Tensor] | None:
        """What returns its points; None if it is not installed."""
        x, y = x[: self.examples], y[: self.examples]
        if self.ours:
            return partial(_points, self.ours, nets, x, y)
        return partial(self.peer, module, x, y) if self.peer else None


@dataclass(frozen=True)
class Target:
    """A network under attack, float64, and its first correctly classified test images."""

    name: str
    nets: MLPEnsemble | ModuleEnsemble
    x: Tensor
    y: Tensor

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
    return Target("-".join(map(str, case.widths)), case.ensemble, case.x, case.y)


def convolutional(data: Dataset) -> Target:
    """LeNet-5, one epoch on the first images."""
    x, y = torch.tensor(data.x_train[:TRAINED], dtype=torch.float32), torch.tensor(data.y_train[:TRAINED])
    nets = initialise_modules(lenet5, shape=(1, 28, 28), seeds=[0], device=CPU)
    nets = train(nets, x, y, Recipe(epochs=1, learning_rate=0.01), seeds=[0])
    nets = nets.to(dtype=torch.float64, device=CPU)
    x_test, y_test = torch.tensor(data.x_test[: 2 * FEW]), torch.tensor(data.y_test[: 2 * FEW])
    rows = (nets.logits(x_test)[0].argmax(1) == y_test).nonzero()[:FEW, 0]
    return Target("LeNet-5", nets, x_test[rows], y_test[rows])


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


def comparisons(others: Tensor) -> list[tuple[float, list[Method]]]:
    """The norm and the methods of every comparison; FMN starts from ``others`` too. Peers are imported."""
    deepfools, steppers = deepfool_peers(), gradient_step_peers(STEPS)
    found: list[tuple[float, list[Method]]] = []
    for p in (2.0, math.inf):
        methods = [Method("DeepFool", "deepfool", partial(deepfool, p=p, box=BOX))]
        methods += [Method("DeepFool", name, peer=a) for (name, q), a in deepfools.items() if q == p]
        if p == 2:
            methods += [
                Method("steps", f"ddn, {n} steps", partial(ddn, steps=n, box=BOX)) for n in (STEPS, *FEWER)
            ]
        methods += [
            Method("steps", f"fmn, {n} steps", partial(fmn, p=p, steps=n, box=BOX)) for n in (STEPS, *FEWER)
        ]
        init = partial(fmn_init, others=others, p=p, box=BOX)
        methods.append(Method("steps", "fmn_init, 5 x 30 steps", init))
        methods += [Method("steps", name, peer=a) for (name, q), a in steppers.items() if q == p]
        if p == 2:
            ours = partial(carlini_wagner, steps=STEPS, searches=SEARCHES, box=BOX)
            methods.append(Method("C&W", f"carlini_wagner, {SEARCHES} x {STEPS}", ours))
            peers = carlini_wagner_peers(SEARCHES, STEPS)
            methods += [Method("C&W", name, peer=a) for name, a in peers.items()]
        for extra, more in (("", None), (", others", others)):
            methods += [
                Method(
                    "strongest",
                    f"strongest, effort {effort}{extra}",
                    partial(strongest, p=p, effort=effort, others=more, box=BOX),
                )
                for effort in (3, 2)
            ]
        found.append((p, methods))
    steps = [
        Method(FGS, "minimal_fgs", partial(minimal_fgs, box=BOX)),
        Method(FGS, "bisection of 20 steps", bisected()),
        *(Method(FGS, name, peer=a) for name, a in smallest_step_peers().items()),
    ]
    return [*found, (math.inf, steps)]


def compared(
    target: Target,
    p: float,
    methods: list[Method],
    *,
    repeats: int,
    gflop: float,
) -> Iterator[Row]:
    """The rows of one comparison, all its methods in turns; one pass for all images takes ``gflop``."""
    nets, module = target.nets.to(dtype=torch.float32, device=CPU), target.module
    works = {m: m.work(nets, module, target.x.float(), target.y) for m in methods}
    timed = in_turns(works, repeats=repeats)
    distances = {m: distance(target, done.value, p=p) for m, done in timed.items()}
    alike = [m for m, d in distances.items() if m.examples is None and _success(d) >= COMPARED]
    common = torch.stack([distances[m].isfinite() for m in alike]).all(0)
    first: dict[str, float] = {}
    for method, work in works.items():
        count = min(method.examples or len(target.x), len(target.x))
        line: Row = {
            "network": target.name,
            "task": method.task,
            "norm": "l2" if p == 2 else "linf",
            "method": method.name,
            "examples": count,
        }
        if work is None:
            yield line | {"note": ABSENT}
            continue
        done, found = timed[method], distances[method]
        an_image = done.seconds / count
        line |= done.columns() | {
            "precision": "float32",
            "success": f"{_success(found):.3f}",
            "times_ours": f"{an_image / first.setdefault(method.task, an_image):.3g}",
        }
        if method.task in COUNTED:
            needed = operations(work)
            line |= {"passes": f"{needed / gflop:.3g}", "gflop": f"{needed:.4g}"}
        if method in alike:
            line |= {"compared": int(common.sum()), "mean": f"{found[common].mean():.4g}"}
        yield line


def distance(target: Target, points: Tensor, *, p: float) -> Tensor:
    """How far the points are from the first images, inf where the class is the same in float64."""
    points, x, y = points.double(), target.x[: len(points)], target.y[: len(points)]
    if not (points.min() >= BOX[0] and points.max() <= BOX[1]):
        raise AssertionError("an attack left the box")
    hit = margins(target.nets.logits(points), y)[0] < 0
    return torch.where(hit, torch.linalg.vector_norm(points - x, ord=p, dim=1), math.inf)


def _success(distances: Tensor) -> float:
    return float(distances.isfinite().double().mean())


def operations(work: Callable[[], object]) -> float:
    """Gflop of the products of a work."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 1e9


def _points(attack: Ours, nets: Ensemble, x: Tensor, y: Tensor) -> Tensor:
    return attack(nets, x, y)[0][0]


def one_pass(target: Target, *, repeats: int) -> Iterator[Row]:
    """A step's work: ours and autograd's, and its operations."""
    nets, module = target.nets.to(dtype=torch.float32, device=CPU), target.module
    x, y = target.x.float(), target.y

    def autograd() -> Tensor:
        leaf = x.clone().requires_grad_()
        cross_entropy(module(leaf), y, reduction="sum").backward()
        return leaf

    def ours() -> Tensor:
        return nets.logits_and_gradient(x, cross_entropy_direction(y))[1]

    gflop = operations(autograd)
    timed = in_turns({"ensemble": ours, "torch.autograd": autograd}, repeats=repeats)
    for name, done in timed.items():
        yield {
            "network": target.name,
            "task": PASS,
            "method": name,
            "precision": "float32",
            "examples": len(x),
            **done.columns(),
            "times_ours": f"{done.seconds / timed['ensemble'].seconds:.3g}",
            "gflop": f"{gflop:.4g}",
        }


def tabulate(data: Dataset, setup: Setup) -> Iterator[Row]:
    """The whole table, on dense networks; LeNet-5 on MNIST only."""
    contests = comparisons(others_of(data))
    yield product_row(torch.float32, setup.product)
    targets: list[tuple[Callable[[], Target], tuple[str, ...]]]
    targets = [(partial(fully_connected, data, setup), ())]
    if setup.repeats:
        targets.append((partial(convolutional, data), LEFT_OUT))
    for build, without in targets:
        target = build()
        passes = list(one_pass(target, repeats=7 * setup.repeats))
        yield from passes
        gflop = float(str(passes[0]["gflop"]))
        for p, methods in contests:
            here = [method for method in methods if not method.name.startswith(without)]
            yield from compared(target, p, here, repeats=setup.repeats, gflop=gflop)
            yield product_row(torch.float32, setup.product)


main = on_mnist(
    lambda data, quick: tabulate(data, QUICK if quick else FULL),
    FIELDS,
    "Attacks beside those of adv-lib, foolbox, torchattacks and ART",
    beside_products,
)


if __name__ == "__main__":
    main()
