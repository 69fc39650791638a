"""What holds around single examples at every sparsity, beside what attacks find there.

Of the first ``experiment.local_examples`` test examples, what ``experiment.local`` names: certified radii and
Lipschitz constants on balls by linear relaxation or by intervals alone, CLEVER, exact radii; and condition
numbers of the layers.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray as Array
from torch import Tensor

from empirical.clever import clever
from empirical.comparison import check, check_attacks, examples_of, graph_of
from empirical.datasets import Dataset
from empirical.ensembles import MLPEnsemble, ModuleEnsemble, relu_network
from empirical.experiments import Experiment
from empirical.measurement import Measurement, capped_mean
from empirical.results import NORMS, Members, Rows
from theory import graph as graphs
from theory import relu
from theory.graph.network import Graph

# Bounds of exact radii agree to this share, or the seconds of an example are over.
GAP, SECONDS = 1e-4, 20.0
# An attack misses an example if its point is so much further away than the exact radius, or it has none.
MISSED = 0.05
# Singular values below this share of the largest times the matrix's longer side are rounding.
_ZERO = np.finfo(np.float64).eps

Networks = MLPEnsemble | ModuleEnsemble


def compare_locally(
    experiment: Experiment, members: Members, networks: Networks, measured: Measurement, data: Dataset
) -> list[Rows]:
    """Rows of everything that ``experiment.local`` names, checked against each other and against attacks.

    ``local_radius`` is a mean over these examples of min(radius, cap), that of the best attack too; CLEVER
    says at most the ball's radius. ``local_lipschitz`` is one over these examples and the classes k != y.
    Raises: InvalidInput for a module with an operation that the theory does not cover.
    """
    data = data.first(n_test=experiment.local_examples)
    exact = networks.to(dtype=torch.float64, device=networks.masks[0].device)
    crowned, by_intervals = "crown" in experiment.local, "jacobian" in experiment.local
    read = [graph_of(exact, k) for k in range(len(members))] if crowned or by_intervals else []
    found: list[Rows] = []
    for (p, norm), ball in zip(NORMS.items(), experiment.local_radii, strict=True):
        attack = measured.radius.get((p, "best"))
        known = attack[:, : len(data.y_test)] if attack is not None else None
        if known is not None:
            found.append(_mean(members, known, data, method="best", kind="measured", p=p))
        proved = crown = sampled = None
        if by_intervals:
            radii, rows = _by_intervals(members, read, data, p=p, ball=ball)
            found += rows + check_attacks(members, radii, known, p=p, name="interval Jacobian <= attack")
        if crowned:
            crown, proved, rows = _by_relaxation(members, read, data, p=p, ball=ball)
            found += rows + check_attacks(members, crown, known, p=p, name="CROWN <= attack")
        if "clever" in experiment.local:
            # An estimate: of networks too large for CROWN it is made in their own precision.
            sampled, rows = _by_clever(members, exact if crowned else networks, data, p=p, ball=ball)
            found += rows
        if proved is not None and sampled is not None:
            label = np.arange(exact.classes) == data.y_test[:, None]  # there both are 0
            rivals = np.where(label, np.nan, sampled)
            found += check(members, rivals, proved, name="sampled <= local Lipschitz", norm=norm)
        if "exact" in experiment.local and isinstance(exact, MLPEnsemble):
            lower, upper, rows = _exactly(members, exact, data, p=p)
            found += rows + check_attacks(members, lower, known, p=p, name="exact <= attack")
            found += _missed(members, upper, measured, data, p=p)
            if crown is not None:
                found += check(members, crown, upper, name="CROWN <= exact", norm=norm)
    return found + (_conditions(members, exact) if "condition" in experiment.local else [])


def _by_relaxation(
    members: Members, networks: list[Graph], data: Dataset, *, p: float, ball: float
) -> tuple[Float[Array, "K n"], Float[Array, "K n c"], list[Rows]]:
    """Certified radii, Lipschitz constants on the balls, and their rows."""
    radii, constants = [], {"interval": [], "relaxation": []}
    for graph in networks:
        x, y = examples_of(graph, data)
        radii.append(_array(graphs.certified_radius(graph, x, y, p=p, domain_radius=data.diameter(p))))
        everywhere, radius = graphs.lipschitz_constants(graph, p=p), x.new_full((len(x),), ball)
        for effort, tables in zip((0, 2), constants.values(), strict=True):
            table = graphs.local_lipschitz(
                graph, x, y, p=p, radius=radius, constants=everywhere, effort=effort
            )
            tables.append(_array(table))
    found = {method: np.array(tables) for method, tables in constants.items()}
    rows = _radii(members, np.array(radii), data, method="CROWN", kind="lower bound", p=p)
    rows += [
        _constants(members, table, data, method=method, kind="upper bound", p=p, ball=ball)
        for method, table in found.items()
    ]
    return np.array(radii), found["relaxation"], rows


def _by_intervals(
    members: Members, networks: list[Graph], data: Dataset, *, p: float, ball: float
) -> tuple[Float[Array, "K n"], list[Rows]]:
    """Certified radii, and rows of them and of Lipschitz constants on the balls, one example at a time."""
    radii, constants = [], []
    for graph in networks:
        x, y = examples_of(graph, data)
        radii.append(_array(graphs.jacobian_radius(graph, x, y, p=p, domain_radius=data.diameter(p))))
        everywhere, radius = graphs.lipschitz_constants(graph, p=p), x.new_full((1,), ball)
        tables = [
            graphs.local_lipschitz(
                graph, one, label, p=p, radius=radius, constants=everywhere, effort=0, relaxed=False
            )
            for one, label in zip(x.split(1), y.split(1), strict=True)
        ]
        constants.append(_array(torch.cat(tables)))
    found, method = np.array(radii), "interval Jacobian"
    rows = _radii(members, found, data, method=method, kind="lower bound", p=p)
    constant = np.array(constants)
    rows.append(_constants(members, constant, data, method=method, kind="upper bound", p=p, ball=ball))
    return found, rows


def _by_clever(
    members: Members, networks: Networks, data: Dataset, *, p: float, ball: float
) -> tuple[Float[Array, "K n c"], list[Rows]]:
    """The largest gradients sampled in the balls, and rows of them and of what CLEVER makes of them."""
    like = networks.weights[0]
    x = torch.tensor(data.x_test, device=like.device, dtype=like.dtype)
    y = torch.tensor(data.y_test, device=like.device)
    found = clever(networks, x, y, p=p, radius=ball)
    rows = _radii(members, found.radius, data, method="CLEVER", kind="estimate", p=p)
    for table, method, kind in (
        (found.largest, "sampled", "lower bound"),
        (found.location, "CLEVER", "estimate"),
    ):
        rows.append(_constants(members, table, data, method=method, kind=kind, p=p, ball=ball))
    return found.largest, rows


def _exactly(
    members: Members, networks: MLPEnsemble, data: Dataset, *, p: float
) -> tuple[Float[Array, "K n"], Float[Array, "K n"], list[Rows]]:
    """Both sides of the exact radii, and rows of them and of how many examples are not solved."""
    found = [
        relu.exact_radius(
            relu_network(networks, k), data.x_test, data.y_test, p=p, domain_radius=data.diameter(p), gap=GAP,
            time_limit=SECONDS,
        )
        for k in range(len(members))
    ]  # fmt: skip
    lower, upper = (np.array([getattr(radius, side) for radius in found]) for side in ("lower", "upper"))
    rows = _radii(members, lower, data, method="exact, lower", kind="lower bound", p=p)
    known = np.where(upper < data.diameter(p), upper, np.inf)  # of no point within the data's box: none
    rows += _radii(members, known, data, method="exact, upper", kind="upper bound", p=p)
    left = (lower < (1 - 2 * GAP) * upper).sum(1)
    rows.append(Rows(members, left, quantity="unsolved", method="exact", kind="measured", norm=NORMS[p]))
    return lower, upper, rows


def _missed(
    members: Members, upper: Float[Array, "K n"], measured: Measurement, data: Dataset, *, p: float
) -> list[Rows]:
    """Rows of the share of examples that every attack in this norm misses within the cap.

    Misclassified examples count too. Where an exact radius is not solved the share is a lower bound.
    """
    found = []
    for method in (method for q, method in measured.radius if q == p):
        radius = np.minimum(measured.radius[p, method][:, : upper.shape[1]], data.diameter(p))
        share = (radius > (1 + MISSED) * upper).mean(1)
        found.append(Rows(members, share, quantity="missed", method=method, kind="measured", norm=NORMS[p]))
    return found


def _conditions(members: Members, networks: Networks) -> list[Rows]:
    """Rank and condition number of every layer's weights, outputs by inputs, zeros of pruning included.

    The condition number is the largest singular value over the smallest that is more than rounding, NaN for a
    layer without weights: with a full rank it is that of the matrix.
    """
    found = []
    for i, weight in enumerate(networks.weights):
        values = _array(torch.linalg.svdvals(weight.flatten(2)))
        least = values[:, :1] * _ZERO * max(weight.flatten(2).shape[1:])
        rank = (values > least).sum(1)
        last = np.take_along_axis(values, np.maximum(rank - 1, 0)[:, None], 1)[:, 0]
        ratio = np.divide(values[:, 0], last, out=np.full(len(values), np.nan), where=rank > 0)
        for quantity, value in (("rank", rank), ("condition_number", ratio)):
            found.append(Rows(members, value, quantity=quantity, method=f"layer {i + 1}", kind="measured"))
    return found


def _radii(
    members: Members, radius: Float[Array, "K n"], data: Dataset, *, method: str, kind: str, p: float
) -> list[Rows]:
    """Rows of every radius, and of their mean."""
    each = Rows(members, radius, quantity="radius", method=method, kind=kind, norm=NORMS[p])
    return [each, _mean(members, radius, data, method=method, kind=kind, p=p)]


def _mean(
    members: Members, radius: Float[Array, "K n"], data: Dataset, *, method: str, kind: str, p: float
) -> Rows:
    mean = capped_mean(radius, data.diameter(p))
    return Rows(members, mean, quantity="local_radius", method=method, kind=kind, norm=NORMS[p])


def _constants(
    members: Members,
    constants: Float[Array, "K n c"],
    data: Dataset,
    *,
    method: str,
    kind: str,
    p: float,
    ball: float,
) -> Rows:
    """The mean over examples and the classes other than the label, at which constants are 0."""
    mean = constants.sum((1, 2)) / (len(data.y_test) * (constants.shape[2] - 1))
    return Rows(members, mean, quantity="local_lipschitz", method=method, kind=kind, norm=NORMS[p], eps=ball)


def _array(values: Tensor) -> Float[Array, "*shape"]:
    return values.detach().cpu().numpy()
