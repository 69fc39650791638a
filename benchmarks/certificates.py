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
- **matrix product**: what the machine can do at that moment.

``seconds`` is processor time, one thread, for all examples and classes, the median of ``runs`` after one to
warm up, ``least`` and ``most`` the smallest and the largest; what takes more than 10 s runs once, without.
``gflop`` are the operations of plain dense products: for a radius, of ten bounds, a bisection from a factor
of two to a relative 1e-3, each CROWN's (intervals for IBP, none told where CROWN's lines meet intervals); for
a constant, of intervals of the gradients over CROWN's bounds (:mod:`benchmarks.floor`). ``times_products`` is
``seconds`` over their time at the run's fastest rate in the method's ``precision``. It is no floor: who
leaves out inactive units, or needs fewer bounds, falls below 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.cases import QUICK, Case, Setup, cases
from benchmarks.command import on_mnist
from benchmarks.floor import (
    beside_products,
    interval_flops,
    jacobian_flops,
    margin_flops,
    precision,
    product_row,
)
from benchmarks.peers import (
    LIRPA,
    RECURJAC,
    Constants,
    import_certifiers,
    installed,
    largest_certified,
    lirpa_certify,
    lirpa_lipschitz,
    recurjac_lipschitz,
)
from benchmarks.tables import Row
from benchmarks.turns import TIMES, Timed, in_turns
from empirical.datasets import Dataset
from theory import graph, relu

FIELDS: tuple[str, ...] = (
    "task",
    "norm",
    "radius",
    "sparsity",
    "method",
    "precision",
    "examples",
    *TIMES,
    "value",
    "ratio",
    "gflop",
    "times_products",
    "note",
)
RADII = {math.inf: (0.005, 0.02, 0.05), 2.0: (0.05, 0.2, 0.5)}
START = {math.inf: 0.01, 2.0: 0.2}  # where a peer's search starts: within a factor of two of CROWN's radius
BISECTIONS = 10  # from a factor of two to a relative 1e-3
# A bound may fall below a gradient by the rounding of either.
ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-12}
ABSENT = "not installed"


@dataclass(frozen=True)
class Method:
    """A method that certifies radii: how many examples it gets, and its work, None if it is not installed.

    ``flops`` are the operations of one of its bounds of one example, with dense products; 0 if not told.
    """

    name: str
    examples: int
    work: Callable[[], Tensor] | None
    flops: int
    dtype: torch.dtype = torch.float64


def radius_methods(case: Case, p: float, setup: Setup, *, full: bool) -> list[Method]:
    """Every method that certifies radii, or the two main ones if not ``full``."""
    net, x, y, m = case.net, case.x, case.y, len(case.x)
    few, crown = min(setup.few, m), margin_flops(case.widths)
    others = {"IBP": interval_flops(case.widths), "CROWN-IBP": 0}

    def lirpa(method: str, examples: int = m) -> Method:
        work = None
        if installed(LIRPA):
            certify = lirpa_certify(net, x, y, p=p, method=method)
            work = partial(largest_certified, certify, examples, start=START[p])
        return Method(f"auto_LiRPA {method}", examples, work, others.get(method, crown), torch.float32)

    def ours(name: str, *, dtype: torch.dtype = torch.float64, examples: int = m, steps: int = 0) -> Method:
        here = graph.from_relu_network(net, dtype=dtype)
        some = x[:examples].to(dtype), y[:examples]
        work = partial(graph.certified_radius, here, *some, p=p, steps=steps)
        return Method(name, examples, work, crown, dtype)

    def by_relu() -> Tensor:
        return torch.tensor(relu.crown_certified_radius(net, x.numpy(), y.numpy(), p=p))

    methods = [lirpa("CROWN"), ours("theory.graph")]
    if full:
        methods += [
            ours("theory.graph float32", dtype=torch.float32),
            ours("theory.graph, 2 steps", steps=2),
            Method("theory.relu crown_certified_radius", m, by_relu, crown),
            lirpa("IBP"),
            lirpa("CROWN-IBP"),
            lirpa("CROWN-Optimized", few),
            ours("theory.graph optimised", examples=few, steps=setup.steps),
            ours("theory.graph", examples=few),
        ]
    return methods


def certified_radii(case: Case, data: Dataset, setup: Setup, *, full: bool) -> Iterator[Row]:
    """The rows of certified radii, and of the best attack that they are held against.

    All methods if ``full``, the two main ones if not.
    """
    for p in RADII:
        attack = case.attacked(data, p=p)
        yield row("best attack", p, case, "empirical best", len(case.x), value=attack.mean())
        methods = radius_methods(case, p, setup, full=full)
        works = {i: method.work for i, method in enumerate(methods)}
        timed = in_turns(works, repeats=setup.repeats)
        for i, method in enumerate(methods):
            add = partial(row, "certified radius", p, case, method.name, method.examples)
            if i not in timed:
                yield add(note=ABSENT)
                continue
            found, limit = timed[i].value, attack[: method.examples]
            if not (found <= limit).all():
                raise AssertionError(f"{method.name}: a certified radius exceeds an attack's")
            flops, ratio = BISECTIONS * method.flops * method.examples, found.mean() / limit.mean()
            yield add(timed=timed[i], value=found.mean(), ratio=ratio, flops=flops, dtype=method.dtype)


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


def local_lipschitz(case: Case, setup: Setup) -> Iterator[Row]:
    """The rows of local Lipschitz constants, on the first few examples and all other classes."""
    m = min(setup.lipschitz_examples, len(case.x))
    x, y = case.x[:m], case.y[:m]
    others = torch.arange(case.ensemble.classes) != y[:, None]
    for p, radii in RADII.items():
        methods = lipschitz_methods(case, p)
        everywhere = graph.lipschitz_constants(graph.from_relu_network(case.net), p=p)[y][others]
        for radius in radii:
            sample = partial(sampled_constants, p=p, samples=setup.samples)
            works = {name: partial(work, x, y, radius) for name, work in methods.items() if work}
            timed = in_turns(works, repeats=setup.repeats)
            sampled = in_turns({"sampled": partial(sample, case, x, y, radius)}, repeats=0)["sampled"]
            least = sampled.value[others]
            add = partial(row, "local Lipschitz", p, case, examples=m, radius=radius)
            note = f"from below, {setup.samples} samples"
            yield add(method="sampled", timed=sampled, value=least.mean(), note=note)
            ratio = (everywhere / least).mean()
            yield add(method="global constant", value=everywhere.mean(), ratio=ratio)
            for name in methods:
                if name not in timed:
                    yield add(method=name, note=ABSENT)
                    continue
                found = timed[name].value[others]
                if not (found >= least * (1 - ROUNDING[found.dtype])).all():
                    raise AssertionError(f"{name}: a bound is below a gradient")
                flops, ratio = jacobian_flops(case.widths) * m, (found / least).mean()
                yield add(
                    method=name,
                    timed=timed[name],
                    value=found.mean(),
                    ratio=ratio,
                    flops=flops,
                    dtype=found.dtype,
                )


def row(
    task: str,
    p: float,
    case: Case,
    method: str,
    examples: int,
    *,
    timed: Timed[Tensor] | None = None,
    value: Tensor | None = None,
    ratio: Tensor | None = None,
    flops: int = 0,
    dtype: torch.dtype | None = None,
    radius: float | None = None,
    note: str = "",
) -> Row:
    """One line of the table."""
    return {
        "task": task,
        "norm": "l2" if p == 2 else "linf",
        "radius": "" if radius is None else radius,
        "sparsity": case.sparsity,
        "method": method,
        "precision": precision(dtype) if dtype else "",
        "examples": examples,
        **(timed.columns() if timed else {}),
        "value": "" if value is None else f"{value:.4g}",
        "ratio": "" if ratio is None else f"{ratio:.4g}",
        "gflop": f"{flops / 1e9:.4g}" if flops else "",
        "note": note,
    }


def products(setup: Setup) -> Iterator[Row]:
    """What the machine can do now, in both precisions."""
    return (product_row(dtype, setup.product) for dtype in (torch.float32, torch.float64))


def tabulate(data: Dataset, setup: Setup) -> Iterator[Row]:
    """The whole table: everything on the dense network, the main methods on its sparse versions."""
    import_certifiers()
    yield from products(setup)
    for case in cases(data, setup):
        dense = case.sparsity == 0
        yield from certified_radii(case, data, setup, full=dense)
        if dense:
            yield from local_lipschitz(case, setup)
        yield from products(setup)


main = on_mnist(
    lambda data, quick: tabulate(data, QUICK if quick else Setup()),
    FIELDS,
    "Certificates and local Lipschitz constants beside auto_LiRPA, RecurJac and Fast-Lip",
    beside_products,
)


if __name__ == "__main__":
    main()
