"""Theory beside measurement: what the theorems say of the very networks that were measured.

Every theorem becomes rows of its own (``identity``, ``upper bound``, ``lower bound``) and a check: how
often it fails, how tight it is, and, should it fail, which examples show it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray as Array
from torch import Tensor

from empirical.datasets import Dataset
from empirical.ensembles import MLPEnsemble, ModuleEnsemble, linear_classifier, relu_network, to_module
from empirical.measurement import Measurement, capped_mean
from empirical.results import NORMS, Members, Rows
from theory import graph as graphs
from theory import linear, relu
from theory.ceiling import OpponentDistances, ceiling_in_blocks, opponent_distances
from theory.graph.network import Graph
from theory.relu.certificate import radius_from_margins
from theory.types import BinaryLinear, InvalidInput, LinearClassifier, ReLUNetwork

# Relative slack where both sides are sums of a few hundred float64 terms, and where one of them is a
# measured radius, which lies the attacks' overshoot beyond the exact one.
ROUNDING = 1e-9
ATTACK_SLACK = 1e-6
# Absolute slack: inputs and logits are of order 1 to 100 and rounded at 1e-16 of that.
TINY = 1e-11

# The last data set's test points and the distances between them, per norm.
_DISTANCES: dict[float, tuple[Array, OpponentDistances]] = {}


def check(
    members: Members,
    smaller: Float[Array, "K *n"],
    larger: Float[Array, "K *n"],
    *,
    name: str,
    norm: str = "",
    slack: float = ROUNDING,
) -> list[Rows]:
    """Rows that judge ``smaller <= larger`` for every network, and how tight it is.

    NaN on either side means that the statement does not apply there, and a ``larger`` of inf that it says
    nothing; neither counts as a case. ``tightness`` is the mean of smaller / larger over the cases, 1 where
    both are 0.
    """
    larger = np.where(larger == np.inf, np.nan, larger)
    excess = smaller - larger
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.where(excess == 0, 1.0, smaller / larger).reshape(len(members), -1)
    usable = np.isfinite(ratio)
    total = np.where(usable, ratio, 0.0).sum(1)
    mean = np.divide(total, usable.sum(1), out=np.full(len(members), np.nan), where=usable.any(1))
    return [
        *_judged(members, excess, TINY + slack * np.abs(larger), name=name, norm=norm),
        Rows(members, mean, quantity="tightness", method=name, kind="check", norm=norm),
    ]


def check_equal(
    members: Members,
    one: Float[Array, "K *n"],
    other: Float[Array, "K *n"],
    *,
    name: str,
    norm: str = "",
    slack: float = ROUNDING,
) -> list[Rows]:
    """Rows that judge ``one == other`` for every network, and the largest relative error.

    NaN on either side means that the statement does not apply there.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.where(one == other, 0.0, np.abs(one - other))
        # Values that the absolute slack decides count as the smallest it does not; one infinite side is inf.
        size = np.clip(np.abs(other), TINY / ATTACK_SLACK, np.finfo(float).max)
        relative = np.where(error == 0, 0.0, error / size)
    worst = np.where(np.isnan(relative), 0.0, relative).reshape(len(members), -1).max(axis=1)
    return [
        *_judged(members, error, TINY + slack * np.abs(other), name=name, norm=norm),
        Rows(members, worst, quantity="relative_error", method=name, kind="check", norm=norm),
    ]


def _judged(
    members: Members,
    excess: Float[Array, "K *n"],
    allowed: Float[Array, "K *n"],
    *,
    name: str,
    norm: str,
) -> list[Rows]:
    """How many cases were tried and how many exceed what is allowed, and a row for each that does."""
    applies = ~np.isnan(excess)
    violated = applies & ~(excess <= np.where(np.isfinite(allowed), allowed, 0.0))

    def count(flags: np.ndarray, quantity: str) -> Rows:
        totals = flags.reshape(len(members), -1).sum(1)
        return Rows(members, totals, quantity=quantity, method=name, kind="check", norm=norm)

    found = [count(applies, "cases"), count(violated, "violations")]
    if violated.any():
        found.append(
            Rows(members, excess, quantity="excess", method=name, kind="check", norm=norm, keep=violated)
        )
    return found


def compare_linear(
    members: Members, networks: MLPEnsemble, measured: Measurement, data: Dataset, *, eps: float
) -> list[Rows]:
    """Rows of the linear theory for every member: exact radii, identities, bounds, and their checks."""
    x, y = data.x_test, data.y_test
    classifiers = [_with_boundary(linear_classifier(networks, k)) for k in range(len(members))]
    statistics = [linear.class_statistics(clf, x, y) if clf else None for clf in classifiers]
    found: list[Rows] = []
    exact: dict[float, np.ndarray] = {}

    def per_network(formula: Callable[..., float]) -> Float[Array, " K"]:
        pairs = zip(classifiers, statistics, strict=True)
        return np.array([formula(clf, stats) if clf else math.nan for clf, stats in pairs])

    for p, norm in NORMS.items():
        exact[p] = np.array(
            [linear.radius(clf, x, y, p=p) if clf else np.full(len(y), np.nan) for clf in classifiers]
        )
        radius = exact[p]
        mean = radius.mean(1)
        capped = capped_mean(radius, data.diameter(p))
        found.append(Rows(members, radius, quantity="radius", method="exact", kind="identity", norm=norm))
        found.append(
            Rows(members, capped, quantity="mean_radius", method="exact", kind="identity", norm=norm)
        )
        attack = measured.radius.get((p, "deepfool+line"))  # exact on linear classifiers
        if attack is not None:
            found += check_equal(members, attack, radius, name="linear radius", norm=norm, slack=ATTACK_SLACK)
        found += check_attacks(members, radius, measured.radius.get((p, "best")), p=p, name="exact <= attack")
        found += _ceiling(members, measured.correct, np.where(np.isnan(radius), 0.0, radius), data, p=p)
        bounds = {
            "Jensen": per_network(lambda clf, stats, p=p: linear.jensen_bound(clf, stats, p=p)),
            "weight-free": per_network(lambda clf, stats, p=p: linear.weight_free_bound(stats, p=p)),
            "average boundary": per_network(
                lambda clf, stats, p=p: linear.paper_multiclass_bound(clf, stats, p=p)
            ),
        }
        total = per_network(
            lambda clf, _, p=p: linear.runner_up_decomposition(clf, x, y, p=p).contribution.sum()
        )
        found += check_equal(members, total, mean, name="runner-up decomposition", norm=norm)
        if networks.is_binary:
            identity = per_network(lambda clf, stats, p=p: linear.binary_mean_radius(clf, stats, p=p))
            found += check_equal(members, identity, mean, name="binary mean radius", norm=norm)
            bounds["Hölder"] = per_network(lambda clf, stats, p=p: linear.hoelder_ceiling(stats, p=p))
            bounds["Hölder on the support"] = per_network(
                lambda clf, stats, p=p: linear.support_ceiling(stats, clf.weight != 0, p=p)
            )
            bounds["Hölder at this sparsity"] = per_network(
                lambda clf, stats, p=p: linear.sparse_ceiling(stats, int(np.count_nonzero(clf.weight)), p=p)
            )
        for name, bound in bounds.items():
            found.append(
                Rows(members, bound, quantity="mean_radius", method=name, kind="upper bound", norm=norm)
            )
            found += check(members, mean, bound, name=name, norm=norm)
    low, high = _interpolated(classifiers, exact[2.0])
    found += check(members, low, exact[math.inf], name="norm interpolation, lower", norm="linf")
    found += check(members, exact[math.inf], high, name="norm interpolation, upper", norm="linf")
    if networks.is_binary:
        markov = per_network(lambda clf, stats: linear.markov_bound(clf, stats, eps=eps))
        found.append(
            Rows(
                members,
                markov,
                quantity="fgs_accuracy",
                method="Markov",
                kind="upper bound",
                norm="linf",
                eps=eps,
            )
        )
        accuracy = np.where(np.isnan(markov), np.nan, measured.fgs_correct[False].mean(1))
        found += check(members, accuracy, markov, name="Markov", norm="linf")
    return found


@dataclass(frozen=True)
class _Proved:
    """What the theory says of one network in one norm: constants (c, c), and radii (n,) by the best."""

    product: Float[Array, "c c"]
    path: Float[Array, "c c"]
    best: Float[Array, "c c"]
    radius: Float[Array, " n"]


def compare_relu(
    members: Members, networks: MLPEnsemble | ModuleEnsemble, measured: Measurement, data: Dataset
) -> list[Rows]:
    """Rows of the ReLU theory for every member: Lipschitz constants, certified radii, and their checks.

    Raises: InvalidInput for a module with an operation that the theory does not cover.
    """
    found: list[Rows] = []
    if isinstance(networks, MLPEnsemble):
        nets = [relu_network(networks, k) for k in range(len(members))]
        proofs = {p: [_proved_of_layers(net, data, p=p) for net in nets] for p in NORMS}
    else:
        proofs = {p: [] for p in NORMS}
        for k in range(len(members)):
            graph = graph_of(networks, k)
            margins = graphs.centre_margins(graph, *examples_of(graph, data)).cpu().numpy()
            products = {p: graphs.norm_product(graph, p=p) for p in NORMS}
            for p, proved in proofs.items():
                best = graphs.lipschitz_constants(graph, p=p, products=products).cpu().numpy()
                radius = radius_from_margins(margins, best[data.y_test])
                path = graphs.path_norm(graph, p=p).cpu().numpy()
                proved.append(_Proved(products[p].cpu().numpy(), path, best, radius))
    for p, norm in NORMS.items():
        for name, constants in (
            ("norm product", [proved.product for proved in proofs[p]]),
            ("path norm", [proved.path for proved in proofs[p]]),
        ):
            largest = np.array([table.max() for table in constants])
            found.append(
                Rows(members, largest, quantity="lipschitz", method=name, kind="upper bound", norm=norm)
            )
        known = np.nan_to_num(measured.gradient_norm[p], nan=-np.inf).max(1)
        gradient = np.where(known < 0, np.nan, known)  # NaN for a network that is right nowhere
        largest = np.array([proved.best.max() for proved in proofs[p]])
        found += check(members, gradient, largest, name="gradient <= Lipschitz", norm=norm)
        certified = np.array([proved.radius for proved in proofs[p]])
        found.append(
            Rows(members, certified, quantity="radius", method="certificate", kind="lower bound", norm=norm)
        )
        mean = capped_mean(certified, data.diameter(p))
        found.append(
            Rows(members, mean, quantity="mean_radius", method="certificate", kind="lower bound", norm=norm)
        )
        best = measured.radius.get((p, "best"))
        found += check_attacks(members, certified, best, p=p, name="certificate <= attack")
        found += _ceiling(members, measured.correct, certified, data, p=p)
    return found


def _proved_of_layers(net: ReLUNetwork, data: Dataset, *, p: float) -> _Proved:
    best = relu.lipschitz_constants(net, p=p)
    radius = relu.certified_radius(net, data.x_test, data.y_test, p=p, lipschitz=best)
    return _Proved(relu.norm_product(net, p=p), relu.path_norm(net, p=p), best, radius)


def graph_of(networks: MLPEnsemble | ModuleEnsemble, member: int) -> Graph:
    """One member as the theory takes it, in float64 on its device.

    Raises: InvalidInput for a module with an operation that the theory does not cover.
    """
    device = networks.masks[0].device
    if isinstance(networks, MLPEnsemble):
        return graphs.from_relu_network(relu_network(networks, member), device=device)
    program = graphs.trace(to_module(networks, member), networks.shape)
    return graphs.read(program, networks.shape, device=device)


def examples_of(graph: Graph, data: Dataset) -> tuple[Tensor, Tensor]:
    """The test examples in the shape that the graph takes, and their labels, on its device."""
    x = torch.tensor(data.x_test.reshape(-1, *graph.nodes[0].shape), device=graph.device)
    return x, torch.tensor(data.y_test, device=graph.device)


def split_change(members: Members, measured: Measurement, given: Measurement, data: Dataset) -> list[Rows]:
    """Rows of where each member's change of mean radius against the one given network comes from.

    ``log_change`` is the identity total = margin + gradient + remainder of logarithms, at the nearest
    boundary; NaN where a network has no example that can be split, or a mean radius of 0.
    """
    found = []
    for p, norm in NORMS.items():
        before = _robustness(given, 0, p=p)
        parts = np.full((4, len(members)), np.nan)
        for k in range(len(members)):
            with contextlib.suppress(InvalidInput):
                split = relu.decompose(_robustness(measured, k, p=p), before, cap=data.diameter(p))
                parts[:, k] = split.change, split.margin, split.lipschitz, split.remainder
        for method, values in zip(("total", "margin", "gradient", "remainder"), parts, strict=True):
            found.append(
                Rows(members, values, quantity="log_change", method=method, kind="identity", norm=norm)
            )
    return found


def _robustness(measured: Measurement, k: int, *, p: float) -> relu.Robustness:
    """Member k's best radius, and margin and gradient norm at the nearest boundary, 0 where misclassified."""
    return relu.Robustness(
        measured.radius[p, "best"][k],
        np.nan_to_num(measured.margin[p][k], nan=0.0),
        np.nan_to_num(measured.gradient_norm[p][k], nan=0.0),
    )


def _with_boundary(clf: BinaryLinear | LinearClassifier) -> BinaryLinear | LinearClassifier | None:
    """The classifier, or None for a binary one whose weights are all pruned: it has no boundary."""
    return None if isinstance(clf, BinaryLinear) and not clf.weight.any() else clf


def check_attacks(
    members: Members, radius: Float[Array, "K n"], attack: Float[Array, "K n"] | None, *, p: float, name: str
) -> list[Rows]:
    """Rows that judge whether the best ``attack`` found no point nearer than ``radius``; none without one."""
    return [] if attack is None else check(members, radius, attack, name=name, norm=NORMS[p])


def _distances(data: Dataset, p: float) -> OpponentDistances:
    """The distances between test points, computed once for all networks of a data set."""
    known, found = _DISTANCES.get(p, (None, None))
    if found is None or known is not data.x_test:
        found = opponent_distances(data.x_test, data.y_test, p=p)
        _DISTANCES[p] = (data.x_test, found)
    return found


def _ceiling(
    members: Members,
    correct: Bool[Array, "K n"],
    radius: Float[Array, "K n"],
    data: Dataset,
    *,
    p: float,
) -> list[Rows]:
    """The ceiling at every network's correct set, and the check that exact or certified radii obey it."""
    distances = _distances(data, p)
    ceilings: dict[bytes, float] = {}
    for flags in correct:
        if flags.tobytes() not in ceilings:
            ceilings[flags.tobytes()] = ceiling_in_blocks(distances, flags)
    ceiling = np.array([ceilings[flags.tobytes()] for flags in correct])
    norm = NORMS[p]
    return [
        Rows(
            members,
            ceiling,
            quantity="mean_radius",
            method="universal ceiling",
            kind="upper bound",
            norm=norm,
        ),
        *check(members, radius.mean(1), ceiling, name="universal ceiling", norm=norm),
    ]


def _interpolated(
    classifiers: list[BinaryLinear | LinearClassifier | None], l2: Float[Array, "K n"]
) -> tuple[Float[Array, "K n"], Float[Array, "K n"]]:
    """Lowest and highest l_inf radius that the l_2 radii allow; NaN for a classifier without boundary."""
    ends = [
        linear.norm_interpolation(clf, r) if clf else (np.full_like(r, np.nan),) * 2
        for clf, r in zip(classifiers, l2, strict=True)
    ]
    return np.array([low for low, _ in ends]), np.array([high for _, high in ends])
