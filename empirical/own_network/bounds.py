"""The ladder of the theory for one network of the user's own: certificates, constants, masks, ceilings.

Every number is one row of a table like that of a run, written unit by unit, so that a killed run goes on.
Nothing is trained or attacked here; ``docs/bounds.md`` explains the columns.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product
from math import prod
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array
from scipy.spatial.distance import cdist
from torch import Tensor

from empirical.datasets import Examples
from empirical.locations import Location
from empirical.own_network.loading import Network
from empirical.own_network.mask_bounds import Rungs, active_rungs, mask_rungs, most_active
from empirical.own_network.measuring import fingerprint
from empirical.provenance import commit, device_name, package_version
from empirical.results import NORMS, SCHEMA_KEY, open_run, read_table, write_table
from empirical.sweep import settings_id, unit_path
from theory import graph as graphs
from theory.ceiling import mean_radius_ceiling, robust_accuracy_ceiling
from theory.graph.network import Activation, Conv2d, Dense, Graph, Reshape, Source
from theory.relu.certificate import radius_from_margins
from theory.types import InvalidInput, ReLUNetwork, check_p, check_sparsity

ALPHAS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
# Where no radius is asked for: 0, which is the gradient itself, and three in the range of usual attacks.
RADII = {math.inf: (0.0, 0.01, 0.03, 0.1), 2.0: (0.0, 0.1, 0.3, 1.0)}
# Radii at which the ceiling of the robust accuracy is computed.
CEILING_POINTS = 41
# Radii tried for an example's certificate, and multiplications of one core's minute in float64: measured on
# LeNet-300-100 and on LeNet-5, whose local constants cost as much again as its certificates.
_TRIALS, _MINUTE, _MINUTE_OF_CONVOLUTIONS = 12, 3e11, 3e10
DTYPES = {"float64": torch.float64, "float32": torch.float32}
_TEXT = pa.dictionary(pa.int32(), pa.string())
_SETTINGS = ("settings", "model", "model_sha256", "data", "version", "commit", "device", "dtype")
SCHEMA = pa.schema(
    [
        *((name, _TEXT) for name in _SETTINGS),
        ("examples", pa.int64()),
        ("seconds", pa.float64()),
        ("quantity", _TEXT),
        ("norm", _TEXT),
        ("method", _TEXT),
        ("nature", _TEXT),
        ("pair", _TEXT),
        ("radius", pa.float64()),
        ("sparsity", pa.float64()),
        ("example", pa.int32()),
        ("value", pa.float64()),
    ],
    metadata={SCHEMA_KEY: b"bounds-2"},
)


@dataclass(frozen=True)
class Request:
    """What is asked about a network; equal requests about equal files give equal numbers.

    ``radii`` None stands for ``RADII``; ``shape`` None for the network's own, else the data's; ``pair`` None
    for the most common class and the class that most often comes second to it; ``steps`` > 0 adds
    certificates whose slopes are optimised by that many steps. ``crown`` is the number of examples, the first
    ones, of the certificates by linear relaxation and of the constants on balls; None: all.
    Raises: InvalidInput for no or repeated norms, or any other entry outside its range.
    """

    examples: int = 100
    norms: tuple[float, ...] = (math.inf, 2.0)
    radii: tuple[float, ...] | None = None
    alphas: tuple[float, ...] = ALPHAS
    pair: tuple[int, int] | None = None
    steps: int = 0
    crown: int | None = None
    shape: tuple[int, ...] | None = None
    dtype: str = "float64"

    def __post_init__(self) -> None:
        if not self.norms or len(set(self.norms)) < len(self.norms):
            raise InvalidInput(f"norms is {list(self.norms)}; name inf, 2 or both, each once")
        for p in self.norms:
            check_p(p)
        for radius in self.radii or ():
            if not 0 <= radius < math.inf:
                raise InvalidInput(f"radius is {radius}; a ball needs a finite radius >= 0")
        for alpha in self.alphas:
            check_sparsity("alphas", alpha)
        if self.examples < 1:
            raise InvalidInput(f"examples is {self.examples}; use at least one")
        if self.steps < 0:
            raise InvalidInput(f"steps is {self.steps}; give 0 or more ascent steps")
        if self.crown is not None and self.crown < 0:
            raise InvalidInput(f"crown is {self.crown}; give 0 or more examples for linear relaxation")
        if self.shape is not None and (not self.shape or min(self.shape) < 1):
            raise InvalidInput(f"shape is {self.shape}; give the sides of one example, each >= 1")
        if self.dtype not in DTYPES:
            raise InvalidInput(f"dtype is {self.dtype!r}; choose {' or '.join(DTYPES)}")

    def radii_of(self, p: float) -> tuple[float, ...]:
        """The radii of one norm, rising."""
        return tuple(sorted(set(RADII[p] if self.radii is None else self.radii)))


@dataclass(frozen=True)
class Outcome:
    """Where the table is, its rows, and the settings they were computed with."""

    path: Path
    rows: pd.DataFrame
    settings: dict[str, object]


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


@dataclass(frozen=True)
class Problem:
    """A network as a graph, the examples it is asked about, and its layers if it is fully connected."""

    network: Network
    graph: Graph
    layers: ReLUNetwork | None
    examples: Examples
    x: Tensor
    y: Tensor

    @staticmethod
    def of(network: Network, data: Examples, request: Request, *, device: torch.device) -> Problem:
        """Read the network. Raises: InvalidInput if it does not fit the data, or is not understood."""
        examples = data.first(request.examples)
        shape = request.shape or examples.fitted(network.shape)
        if prod(shape) != prod(examples.shape):
            raise InvalidInput(
                f"network {network.name} takes examples of shape {shape}; those of {data.name} have shape "
                f"{examples.shape}"
            )
        graph = graphs.read(network.module, shape, dtype=DTYPES[request.dtype], device=device)
        x = torch.tensor(examples.x.reshape(-1, *shape))
        y = graph.check_labels(torch.tensor(examples.y), examples=len(x))
        return Problem(network, graph, fully_connected(graph), examples, graph.check_inputs(x), y)


def fully_connected(graph: Graph) -> ReLUNetwork | None:
    """The layers of a graph that is linear layers with a ReLU between any two; None for any other."""
    weights, biases, ready = [], [], True
    for place, node in enumerate(graph.nodes):
        if node.inputs not in ((), (place - 1,)):
            return None
        match node.operation:
            case Source() | Reshape():
                pass
            case Dense(weight) if ready:
                bias = torch.zeros(len(weight)) if node.bias is None else node.bias.expand(len(weight))
                weights.append(weight.double().cpu().numpy())
                biases.append(bias.double().cpu().numpy())
                ready = False
            case Activation() if not ready:
                ready = True
            case _:
                return None
    return ReLUNetwork(tuple(weights), tuple(biases)) if weights and not ready else None


def default_folder(network: Network) -> Path:
    """results/bounds-<model name>."""
    return Path("results") / f"bounds-{Path(network.name).stem}"


def affordable(problem: Problem, request: Request) -> int:
    """How many of the examples linear relaxation can certify, in all norms, in about a minute of one core."""
    each = graphs.relaxation_products(problem.graph) * _TRIALS * len(request.norms)
    convolves = any(isinstance(node.operation, Conv2d) for node in problem.graph.nodes)
    return min(len(problem.y), int((_MINUTE_OF_CONVOLUTIONS if convolves else _MINUTE) / each))


def total_steps(request: Request) -> int:
    """How often ``advance`` is called: once per unit of work."""
    return 2 + 2 * len(request.norms)


def bounds(
    network: Network,
    data: Examples,
    request: Request,
    out: Path,
    *,
    device: torch.device,
    advance: Callable[[str], None] = lambda stage: None,
) -> Outcome:
    """Everything the theory says of the network at the examples, in ``out``; a finished run is only read.

    Raises: InvalidInput for a network that does not fit the data or is not understood, bad labels or pair, or
    a folder that is unwritable, holds other results or a damaged file.
    """
    problem = Problem.of(network, data, request, device=device)
    pair = _pair(problem, request)
    request = replace(request, pair=pair)
    described = _describe(problem, request, device)
    open_run(out, described, parts=("units", "figures"))
    final = out / "bounds.parquet"
    if final.is_file():
        content = read_table(final, schema=SCHEMA)
        if set(content["settings"].unique().to_pylist()) != {settings_id(described)}:
            raise InvalidInput(f"results file {final} belongs to another run; choose a new folder")
    else:
        provenance = {
            "settings": settings_id(described),
            "model": network.name,
            "model_sha256": network.sha256,
            "data": data.name,
            "version": package_version(),
            "commit": commit(),
            "device": device_name(device),
            "dtype": request.dtype,
            "examples": len(problem.y),
        }
        parts = []
        for name, compute in _units(problem, request, pair):
            advance(name)
            parts.append(_unit(unit_path(out / "units", settings_id(described), name), compute, provenance))
        content = pa.concat_tables(parts).unify_dictionaries()
        write_table(final, content)
    return Outcome(final, content.to_pandas(), described)


def _describe(problem: Problem, request: Request, device: torch.device) -> dict[str, object]:
    """All that decides the numbers, as plain JSON values."""
    network = problem.network
    described = asdict(replace(request, shape=problem.graph.nodes[0].shape)) | {
        "norms": [NORMS[p] for p in request.norms],
        "model": network.name,
        "model_sha256": network.sha256,
        "recognised": network.recognised,
        "data": problem.examples.name,
        "data_sha256": fingerprint(problem.examples.x, problem.examples.y),
        "version": package_version(),
        "device": device.type,
    }
    return json.loads(json.dumps(described))


def _unit(path: Location, compute: Callable[[], list[Row]], provenance: dict[str, object]) -> pa.Table:
    """The unit's rows: read from ``path`` if they are there, else computed, timed and written there."""
    if path.is_file():
        return read_table(path, schema=SCHEMA)
    started = time.perf_counter()
    rows = compute()
    run = provenance | {"seconds": time.perf_counter() - started}
    content = pa.Table.from_pylist([run | asdict(row) for row in rows], schema=SCHEMA)
    write_table(path, content)
    return content


def _units(
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
    zeros = {name: int((weight == 0).sum()) for name, weight in problem.network.weights.items()}
    sizes = {name: weight.numel() for name, weight in problem.network.weights.items()}
    rows = [Row("sparsity", name, "identity", zeros[name] / sizes[name]) for name in zeros]
    if sizes:
        rows.append(Row("sparsity", "all layers", "identity", sum(zeros.values()) / sum(sizes.values())))
    correct = _correct(problem)
    rows.append(Row("accuracy", "clean", "measured", float(correct.mean())))
    flat = problem.examples.x.reshape(len(correct), -1)
    for p in request.norms:
        ceiling = mean_radius_ceiling(flat, problem.examples.y, correct, p=p)
        rows.append(Row("mean_radius", "universal ceiling", "upper bound", ceiling, norm=NORMS[p]))
        rows += _ceiling_rows(flat, problem.examples.y, correct, p=p)
    return rows


def _ceiling_rows(
    x: Float[Array, "m d"], y: Int[Array, " m"], correct: Bool[Array, " m"], *, p: float
) -> list[Row]:
    """The ceiling of the robust accuracy, up to the largest distance from an example to another class."""
    metric = "euclidean" if p == 2 else "chebyshev"
    distances = np.where(y[:, None] == y, np.inf, cdist(x, x, metric)).min(1)
    radii = np.linspace(0, distances[np.isfinite(distances)].max(initial=0.0), CEILING_POINTS)
    shares = robust_accuracy_ceiling(x, y, correct, radii, p=p)
    return [
        Row("robust_accuracy", "universal ceiling", "upper bound", float(s), norm=NORMS[p], radius=float(r))
        for r, s in zip(radii, shares, strict=True)
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


def _pair(problem: Problem, request: Request) -> tuple[int, int]:
    """The pair asked for, or the most common class and the most frequent runner-up on its examples."""
    classes = problem.graph.classes
    if request.pair is not None:
        if not all(0 <= k < classes for k in request.pair) or request.pair[0] == request.pair[1]:
            raise InvalidInput(f"pair is {request.pair}; give two different classes in [0, {classes})")
        return request.pair
    common = int(problem.y.bincount().argmax())
    scores = problem.graph.scores(problem.x[problem.y == common])
    scores[:, common] = -math.inf
    return common, int(scores.argmax(1).bincount().argmax())


def _numpy(values: Tensor) -> Float[Array, "*shape"]:
    return values.double().cpu().numpy()
