"""What the theory says of one network at its examples, as rows: certificates, constants, masks, ceilings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array
from scipy.spatial.distance import cdist
from torch import Tensor

from empirical.own_network.mask_bounds import Rungs, active_rungs, mask_rungs, most_active
from empirical.own_network.problem import Problem, Request
from empirical.results import NORMS
from theory import graph as graphs
from theory.ceiling import mean_radius_ceiling, robust_accuracy_ceiling
from theory.relu.certificate import radius_from_margins

# Radii at which the ceiling of the robust accuracy is computed, and distances that are in memory at a time.
CEILING_POINTS, DISTANCES = 41, 2**22


@dataclass(frozen=True)
class Row:
    """One number; ``nature`` is identity, lower bound, upper bound, estimate or measured."""

    quantity: str
    method: str
    nature: str
    value: float
    norm: str = ""
    radius: float | None = None
    sparsity: float | None = None
    example: int | None = None
    pair: str = ""


def units(
    problem: Problem, request: Request, pair: tuple[int, int]
) -> Iterator[tuple[str, Callable[[], list[Row]]]]:
    """The parts of a run by name; every name is a file."""
    yield "network", lambda: _network_rows(problem, request)
    for p, norm in ((p, NORMS[p]) for p in request.norms):
        yield f"certificates-{norm}", lambda p=p: _certificate_rows(problem, request, p=p)
        yield f"lipschitz-{norm}", lambda p=p: _lipschitz_rows(problem, request, p=p)
    rungs_of = mask_rungs(problem.graph, problem.layers, request.alphas, pair)
    if rungs_of is not None:
        yield "masks", lambda: _mask_rows(problem, request, pair, rungs_of)


def _network_rows(problem: Problem, request: Request) -> list[Row]:
    """Sparsity of every layer, accuracy, and what no classifier that is right where this one is can pass."""
    network = problem.network
    rows = [
        Row("sparsity", name, "identity", float((weight == 0).double().mean()))
        for name, weight in network.weights.items()
    ]
    if network.weights:
        rows.append(Row("sparsity", "all layers", "identity", network.sparsity))
    correct = _correct(problem)
    rows.append(Row("accuracy", "clean", "measured", float(correct.mean())))
    flat = problem.examples.x.reshape(len(correct), -1)
    for p in request.norms:
        rows += ceiling_rows(flat, problem.examples.y, correct, p=p)
    return rows


def ceiling_rows(
    x: Float[Array, "m d"], y: Int[Array, " m"], correct: Bool[Array, " m"], *, p: float
) -> list[Row]:
    """What no classifier that is right at the same of m examples can pass: bounds from their distances alone.

    That of the mean radius, and that of the robust accuracy up to the largest distance from an example to
    another class.
    """
    ceiling = mean_radius_ceiling(x, y, correct, p=p)
    metric = "euclidean" if p == 2 else "chebyshev"
    blocks = np.array_split(np.arange(len(x)), math.ceil(len(x) ** 2 / DISTANCES))
    distances = np.concatenate(
        [np.where(y[rows, None] == y, np.inf, cdist(x[rows], x, metric)).min(1) for rows in blocks]
    )
    radii = np.linspace(0, distances[np.isfinite(distances)].max(initial=0.0), CEILING_POINTS)
    shares = robust_accuracy_ceiling(x, y, correct, radii, p=p)
    return [
        Row("mean_radius", "universal ceiling", "upper bound", ceiling, norm=NORMS[p]),
        *(
            Row("robust_accuracy", "universal ceiling", "upper bound", s, norm=NORMS[p], radius=r)
            for r, s in zip(radii.tolist(), shares.tolist(), strict=True)
        ),
    ]


def _correct(problem: Problem) -> Bool[Array, " m"]:
    """Whether the label's score exceeds every other."""
    scores = problem.graph.scores(problem.x)
    own = scores.gather(1, problem.y[:, None])
    return (scores < own).sum(1).eq(problem.graph.classes - 1).cpu().numpy()


def _certificate_rows(problem: Problem, request: Request, *, p: float) -> list[Row]:
    """Certified radii by every method: per example, on average, and as accuracy that is certain."""
    graph, x, y = problem.graph, problem.x, problem.y
    margins = _numpy(graphs.centre_margins(graph, x, y))
    radii = {
        name: radius_from_margins(margins, _numpy(constants(graph, p=p)[y]))
        for name, constants in (
            ("norm product", graphs.norm_product),
            ("path norm", graphs.path_norm),
            ("smallest global", graphs.lipschitz_constants),
        )
    }
    x, y = x[: request.crown], y[: request.crown]
    if len(x):
        radii["CROWN"] = _numpy(graphs.certified_radius(graph, x, y, p=p))
    if len(x) and request.steps:
        found = graphs.certified_radius(graph, x, y, p=p, steps=request.steps)
        radii["CROWN, optimised"] = np.maximum(_numpy(found), radii["CROWN"])
    rows = []
    for method, radius in radii.items():

        def row(
            quantity: str,
            value: float,
            *,
            at: float | None = None,
            example: int | None = None,
            method: str = method,
        ) -> Row:
            return Row(quantity, method, "lower bound", value, norm=NORMS[p], radius=at, example=example)

        rows += [row("radius", float(value), example=k) for k, value in enumerate(radius)]
        rows += [row("mean_radius", float(radius.mean())), row("median_radius", float(np.median(radius)))]
        for at in sorted({0.0, *request.radii_of(p)}):
            certain = radius >= at if at else radius > 0
            rows.append(row("robust_accuracy", float(certain.mean()), at=at))
    return rows


def _lipschitz_rows(problem: Problem, request: Request, *, p: float) -> list[Row]:
    """Lipschitz constants of g_y - g_k, global and on balls: means over examples and classes k != y."""
    graph, x, y = problem.graph, problem.x, problem.y
    others = torch.ones(len(y), graph.classes, dtype=torch.bool, device=graph.device)
    others.scatter_(1, y[:, None], value=False)

    def row(method: str, constants: Tensor, radius: float | None = None) -> Row:
        mean = float(constants[others[: len(constants)]].double().mean())
        return Row("lipschitz", method, "upper bound", mean, norm=NORMS[p], radius=radius)

    everywhere = graphs.lipschitz_constants(graph, p=p)
    rows = [
        row("norm product", graphs.norm_product(graph, p=p)[y]),
        row("path norm", graphs.path_norm(graph, p=p)[y]),
        row("smallest global", everywhere[y]),
    ]
    x, y = x[: request.crown], y[: request.crown]
    for radius in request.radii_of(p) if len(x) else ():
        balls = torch.full((len(x),), radius, dtype=graph.dtype, device=graph.device)
        local = graphs.local_lipschitz(graph, x, y, p=p, radius=balls, constants=everywhere)
        rows.append(row("local", local, radius))
    return rows


def _mask_rows(problem: Problem, request: Request, pair: tuple[int, int], rungs_of: Rungs) -> list[Row]:
    """Bounds on E sup ||grad(g_i - g_k)||_q when every hidden weight is removed with probability alpha.

    Of fully connected networks also those for as few active units as at the examples.
    """
    layers, name = problem.layers, f"{pair[0]}-{pair[1]}"
    rows, active = [], []
    if layers is not None:
        active = most_active(layers, problem.examples.x.reshape(len(problem.y), -1))
        rows = [Row("active_units", f"hidden layer {j + 1}", "measured", n) for j, n in enumerate(active)]
    for p in request.norms:
        tables = {"expected_lipschitz": rungs_of(p)}
        if layers is not None:
            tables["expected_lipschitz_active"] = active_rungs(layers, request.alphas, pair, active, p=p)
        best = np.full(len(request.alphas), np.inf)
        for quantity, rungs in tables.items():
            best = np.min([best, *rungs.values()], axis=0)
            for (method, values), k in product({**rungs, "best": best}.items(), range(len(best))):
                at, value = request.alphas[k], float(values[k])
                row = Row(quantity, method, "upper bound", value, norm=NORMS[p], sparsity=at, pair=name)
                rows.append(row)
    return rows


def _numpy(values: Tensor) -> Float[Array, "*shape"]:
    return values.double().cpu().numpy()
