"""Certificates and local Lipschitz constants beside other packages', on one thread, all in one run.

``python -m benchmarks.certificates --mnist FILE.npz --out benchmarks/results/certificates.csv``, with the
packages of :mod:`benchmarks.peers` on PYTHONPATH (``not installed`` stands where one is missing), or
``--quick`` for a smoke test on scikit-learn's digits. A row of the table is one method on one task:

- **certified radius**: ``value`` is the mean radius, ``ratio`` the mean radius over that of the best attack
  on the same examples. A radius beyond an attack's stops the run.
- **best attack**: what those ratios refer to.
- **local Lipschitz**: ``value`` is the mean constant over examples and other classes, ``ratio`` the mean of
  the constant over the largest gradient norm sampled in the ball. A constant below one stops the run. This
  project's constants never exceed the global one, which other packages could be held to as well: compare them
  with ``theory.graph, global aside``.
- **matrix product**: ``value`` is in GFLOP/s; the machine is shared if it differs between start and end.

``seconds`` is processor time, one thread, for all examples and classes. ``times_floor`` divides them by the
time of the dense products that the kind of bound consists of (:mod:`benchmarks.floor`), at the rate of the
method's own precision at that moment; for a radius, of ten such bounds, a bisection from a factor of two to
a relative 1e-3.
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from time import process_time

import torch
from torch import Tensor

from benchmarks.cases import CPU, QUICK, Case, Setup, cases
from benchmarks.command import on_mnist
from benchmarks.floor import interval_flops, jacobian_flops, margin_flops, product_rate
from benchmarks.peers import (
    LIRPA,
    RECURJAC,
    Constants,
    installed,
    largest_certified,
    lirpa_certify,
    lirpa_lipschitz,
    recurjac_lipschitz,
)
from benchmarks.tables import Row
from benchmarks.turns import Timed, in_turns
from empirical.datasets import Dataset
from theory import graph, relu

FIELDS: tuple[str, ...] = (
    "task",
    "norm",
    "radius",
    "sparsity",
    "method",
    "examples",
    "seconds",
    "value",
    "ratio",
    "times_floor",
    "note",
    "machine",
)
RADII = {math.inf: (0.005, 0.02, 0.05), 2.0: (0.05, 0.2, 0.5)}
START = {math.inf: 0.01, 2.0: 0.2}  # where a peer's search starts: within a factor of two of CROWN's radius
BISECTIONS = 10  # from a factor of two to a relative 1e-3
# A bound may fall below a gradient by the rounding of either.
ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-12}
ABSENT = "not installed"


@dataclass(frozen=True)
class Method:
    """A method that certifies radii: how many examples it gets, and its work, None if it is not installed."""

    name: str
    examples: int
    work: Callable[[], Tensor] | None
    dtype: torch.dtype = torch.float64
    linear: bool = True  # linear relaxation, as opposed to intervals


def radius_methods(case: Case, p: float, setup: Setup, *, full: bool) -> list[Method]:
    """Every method that certifies radii, or the two main ones if not ``full``."""
    net, x, y, m = case.net, case.x, case.y, len(case.x)
    few = min(setup.few, m)

    def lirpa(method: str, examples: int = m) -> Method:
        work = None
        if installed(LIRPA):
            certify = lirpa_certify(net, x, y, p=p, method=method)
            work = partial(largest_certified, certify, examples, start=START[p])
        return Method(f"auto_LiRPA {method}", examples, work, torch.float32, linear=method != "IBP")

    def ours(name: str, *, dtype: torch.dtype = torch.float64, examples: int = m, steps: int = 0) -> Method:
        here = graph.from_relu_network(net, dtype=dtype)
        some = x[:examples].to(dtype), y[:examples]
        work = partial(graph.certified_radius, here, *some, p=p, steps=steps)
        return Method(name, examples, work, dtype)

    def by_relu() -> Tensor:
        return torch.tensor(relu.crown_certified_radius(net, x.numpy(), y.numpy(), p=p))

    methods = [lirpa("CROWN"), ours("theory.graph")]
    if full:
        methods += [
            ours("theory.graph float32", dtype=torch.float32),
            ours("theory.graph, 2 steps", steps=2),
            Method("theory.relu crown_certified_radius", m, by_relu),
            lirpa("IBP"),
            lirpa("CROWN-IBP"),
            lirpa("CROWN-Optimized", few),
            ours("theory.graph optimised", examples=few, steps=setup.steps),
            ours("theory.graph", examples=few),
        ]
    return methods


def certified_radii(case: Case, data: Dataset, setup: Setup, *, full: bool) -> list[Row]:
    """The rows of certified radii, and of the best attack that they are held against.

    All methods, timed ``setup.repeats`` times, if ``full``; the two main ones, run once, if not.
    """
    table: list[Row] = []
    for p in RADII:
        rate = rates(setup)
        attack = case.attacked(data, p=p)
        table.append(row("best attack", p, case, "empirical best", len(case.x), value=attack.mean()))
        methods = radius_methods(case, p, setup, full=full)
        works = {i: method.work for i, method in enumerate(methods)}
        timed = in_turns(works, repeats=setup.repeats if full else 0)
        for i, method in enumerate(methods):
            add = partial(row, "certified radius", p, case, method.name, method.examples)
            if i not in timed:
                table.append(add(note=ABSENT))
                continue
            found, limit = timed[i].value, attack[: method.examples]
            if not (found <= limit).all():
                raise AssertionError(f"{method.name}: a certified radius exceeds an attack's")
            flops = margin_flops(case.widths) if method.linear else interval_flops(case.widths)
            floor = BISECTIONS * flops * method.examples / rate[method.dtype]
            table.append(
                add(timed=timed[i], value=found.mean(), ratio=found.mean() / limit.mean(), floor=floor)
            )
    return table


def sampled_constants(case: Case, x: Tensor, y: Tensor, radius: float, *, p: float, samples: int) -> Tensor:
    """The largest ||gradient of g_y - g_k||_q found in the ball, from below, (m, c); 0 at k = y.

    At the centre and at points on the surface: half in random directions, half in those that move random
    combinations of the first layer's units most.
    """
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, generator=generator, dtype=x.dtype)
    half, weight = samples // 2, case.ensemble.weights[0][0]
    found = torch.zeros(len(x), case.ensemble.classes, dtype=x.dtype)
    for i, centre in enumerate(x):
        ways = torch.cat([draw(half, len(centre)), draw(half, len(weight)) @ weight])
        ways = ways.sign() if p == math.inf else ways / ways.norm(dim=1, keepdim=True)
        for points in torch.cat([centre[None], centre + radius * ways]).split(500):
            jacobian = case.ensemble.logits_and_jacobian(points)[1][0]
            slope = jacobian[:, y[i], None] - jacobian
            sizes = slope.abs().sum(2) if p == math.inf else slope.norm(dim=2)
            found[i] = found[i].maximum(sizes.amax(0))
    return found


def lipschitz_methods(case: Case, p: float) -> dict[str, Constants | None]:
    """Every method that bounds local Lipschitz constants; None for one that is not installed."""
    net = case.net

    def ours(dtype: torch.dtype, *, least: bool = True, effort: int = 2) -> Constants:
        here = graph.from_relu_network(net, dtype=dtype)
        everywhere = None if least else torch.full((net.classes, net.classes), math.inf, dtype=dtype)

        def constants(x: Tensor, y: Tensor, radius: float) -> Tensor:
            balls = torch.full((len(x),), radius, dtype=dtype)
            return graph.local_lipschitz(
                here, x.to(dtype), y, p=p, radius=balls, constants=everywhere, effort=effort
            )

        return constants

    def by_relu(x: Tensor, y: Tensor, radius: float) -> Tensor:
        balls = torch.full((len(x),), radius, dtype=torch.float64).numpy()
        return torch.tensor(relu.local_lipschitz(net, x.numpy(), y.numpy(), p=p, radius=balls))

    lirpa, recurjac = installed(LIRPA), installed(RECURJAC)
    return {
        "auto_LiRPA Jacobian": lirpa_lipschitz(net, p=p) if lirpa else None,
        "theory.graph": ours(torch.float64),
        "theory.graph float32": ours(torch.float32),
        "theory.graph, global aside": ours(torch.float64, least=False),
        "theory.graph effort 1, global aside": ours(torch.float64, least=False, effort=1),
        "theory.graph float32 effort 1, global aside": ours(torch.float32, least=False, effort=1),
        "theory.relu local_lipschitz": by_relu,
        "RecurJac": recurjac_lipschitz(net, p=p, algorithm="recurjac") if recurjac else None,
        "Fast-Lip": recurjac_lipschitz(net, p=p, algorithm="fastlip") if recurjac else None,
        "auto_LiRPA Jacobian optimised": lirpa_lipschitz(net, p=p, optimised=True) if lirpa else None,
    }


def local_lipschitz(case: Case, setup: Setup) -> list[Row]:
    """The rows of local Lipschitz constants, on the first few examples and all other classes."""
    table: list[Row] = []
    m = min(setup.lipschitz_examples, len(case.x))
    x, y = case.x[:m], case.y[:m]
    others = torch.arange(case.ensemble.classes) != y[:, None]
    for p, radii in RADII.items():
        methods = lipschitz_methods(case, p)
        everywhere = graph.lipschitz_constants(graph.from_relu_network(case.net), p=p)[y][others]
        for radius in radii:
            rate = rates(setup)
            sample = partial(sampled_constants, p=p, samples=setup.samples)
            works = {name: partial(work, x, y, radius) for name, work in methods.items() if work}
            timed = in_turns(works, repeats=setup.repeats)
            sampled = in_turns({"sampled": partial(sample, case, x, y, radius)}, repeats=0)["sampled"]
            least = sampled.value[others]
            add = partial(row, "local Lipschitz", p, case, examples=m, radius=radius)
            note = f"from below, {setup.samples} samples"
            table.append(add(method="sampled", timed=sampled, value=least.mean(), note=note))
            ratio = (everywhere / least).mean()
            table.append(add(method="global constant", value=everywhere.mean(), ratio=ratio))
            for name in methods:
                if name not in timed:
                    table.append(add(method=name, note=ABSENT))
                    continue
                found = timed[name].value[others]
                if not (found >= least * (1 - ROUNDING[found.dtype])).all():
                    raise AssertionError(f"{name}: a bound is below a gradient")
                floor = jacobian_flops(case.widths) * m / rate[found.dtype]
                ratio = (found / least).mean()
                table.append(
                    add(method=name, timed=timed[name], value=found.mean(), ratio=ratio, floor=floor)
                )
    return table


def row(
    task: str,
    p: float,
    case: Case,
    method: str,
    examples: int,
    *,
    timed: Timed | None = None,
    value: Tensor | None = None,
    ratio: Tensor | None = None,
    floor: float | None = None,
    radius: float | None = None,
    note: str = "",
) -> Row:
    """One line of the table; ``floor`` in seconds."""
    if timed and timed.runs == 1:
        note = f"{note}, one run".removeprefix(", ")
    return {
        "task": task,
        "norm": "l2" if p == 2 else "linf",
        "radius": "" if radius is None else radius,
        "sparsity": case.sparsity,
        "method": method,
        "examples": examples,
        "seconds": f"{timed.seconds:.3g}" if timed else "",
        "value": "" if value is None else f"{value:.4g}",
        "ratio": "" if ratio is None else f"{ratio:.4g}",
        "times_floor": f"{timed.seconds / floor:.3g}" if timed and floor else "",
        "note": note,
    }


def rates(setup: Setup) -> dict[torch.dtype, float]:
    """Operations per second of a large matrix product, now."""
    return {
        dtype: product_rate(dtype=dtype, device=CPU, size=setup.product, clock=process_time)
        for dtype in (torch.float32, torch.float64)
    }


def products(setup: Setup) -> list[Row]:
    """The rates of matrix products, and how busy the machine is."""
    note = f"GFLOP/s, load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    blank: Row = dict.fromkeys(FIELDS, "")
    return [
        blank | {"task": "matrix product", "method": str(dtype), "value": f"{rate / 1e9:.1f}", "note": note}
        for dtype, rate in rates(setup).items()
    ]


def tabulate(data: Dataset, setup: Setup) -> list[Row]:
    """The whole table: everything on the dense network, the main methods on its sparse versions."""
    table = products(setup)
    for case in cases(data, setup):
        dense = case.sparsity == 0
        table += certified_radii(case, data, setup, full=dense)
        if dense:
            table += local_lipschitz(case, setup)
    machine = f"{platform.machine()}, 1 thread, torch {torch.__version__}"
    return [line | {"machine": machine} for line in (*table, *products(setup))]


main = on_mnist(
    lambda data, quick: tabulate(data, QUICK if quick else Setup()),
    FIELDS,
    "Certificates and local Lipschitz constants beside auto_LiRPA, RecurJac and Fast-Lip",
)


if __name__ == "__main__":
    main()
