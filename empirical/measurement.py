"""Measured robustness of every network of an ensemble on every example, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray as Array
from torch import Tensor

from empirical.attacks import fgs
from empirical.attacks.active import margins
from empirical.attacks.by_name import attacked
from empirical.attacks.geometry import clip
from empirical.attacks.geometry import norm as lp_norm
from empirical.attacks.nearest import nearest_boundaries
from empirical.compaction import much_smaller, smaller_stack
from empirical.datasets import Dataset
from empirical.ensembles import Ensemble, MLPEnsemble, ModuleEnsemble, apart
from empirical.ensembles.cores import on_cores, shares
from empirical.results import NORMS, Members, Rows
from theory.types import InvalidInput

# Networks measured together, and bytes of their Jacobians: enough to fill a GPU, few enough to stay in a
# CPU's cache and memory.
_MEMBERS = {"cpu": 5, "cuda": 256}
_BYTES = {"cpu": 2**26, "cuda": 2**32}
# Examples that attacks start from.
OTHERS = 200
# Attacks whose random starts move inputs that no network looks at.
_MOVES_DEAD_INPUTS = frozenset({"rfgs"})
# Masked copies of one network whose weights, masks and gradients are held at once. They are drawn layer by
# layer for as many copies: with another number a seed stands for other masks.
_MASKED_COPIES = 25


@dataclass(frozen=True)
class Measurement:
    """What was measured of K networks on n examples; distances are 0 where misclassified.

    A radius is inf where the attack found nothing; ``fgs_correct`` is keyed by whether the step was
    clipped to the data's box; ``margin`` and ``gradient_norm`` belong to the class whose linearised
    boundary is nearest in that norm, and are NaN where misclassified.
    """

    correct: Bool[Array, "K n"]
    radius: dict[tuple[float, str], Float[Array, "K n"]]
    fgs_correct: dict[bool, Bool[Array, "K n"]]
    margin: dict[float, Float[Array, "K n"]]
    gradient_norm: dict[float, Float[Array, "K n"]]


def measure(
    ensemble: Ensemble,
    data: Dataset,
    *,
    eps: float,
    attacks: Sequence[str] = ("fgs", "deepfool"),
    box: bool = False,
) -> Measurement:
    """Attack every network at every test example (*measured*: each radius is an upper bound on rho_p).

    Every hit is checked in float64 by running the network again on the point found. Methods: ``fgs`` and
    ``rfgs`` (smallest step, l_inf); ``deepfool`` (as published, overshoot 0.02) and ``deepfool+line``, in l_2
    and l_inf; ``fmn``, ``fmn-init`` and ``pgd`` in both, ``ddn`` and ``cw`` in l_2; ``best``, the smallest of
    the same norm. All but ``deepfool`` and ``rfgs`` end at a boundary on their ray from x: the first one of
    fully connected networks; of others, one that a secant search finds. ``fmn-init`` starts from 200
    examples: the first test examples, and training examples where there are fewer.

    On a CPU a network that loses most of its products with its dead inputs and units, or a part of them with
    dead channels, is measured without these (:mod:`empirical.compaction`): dead inputs have no gradient, so
    attacks that start at x do not move them.
    A layer with few weights is multiplied as a sparse matrix (:mod:`empirical.ensembles.layers`).
    """
    device = ensemble.masks[0].device
    exact = ensemble.to(dtype=torch.float64, device=device)
    x = torch.tensor(data.x_test, device=device)
    y = torch.tensor(data.y_test, device=device)
    train = data.x_train[: max(0, OTHERS - len(x))]
    others = torch.cat([x[:OTHERS], torch.tensor(train, device=device, dtype=x.dtype)])
    parts = _parts(exact, device, attacks)

    def measure_part(part: _Part) -> Measurement:
        nets = part.nets
        some_x, some_others = (t if part.inputs is None else t[:, part.inputs] for t in (x, others))
        examples = max(
            1, _BYTES[device.type] // (x.element_size() * nets.members * nets.classes * nets.inputs)
        )
        measured = [
            _measure(
                nets,
                some_x[first : first + examples],
                y[first : first + examples],
                others=some_others,
                first=first,
                eps=eps,
                attacks=attacks,
                limits=data.box,
                box=box,
            )
            for first in range(0, len(y), examples)
        ]
        return _joined(measured, axis=1)

    measured = _joined(on_cores(measure_part, parts, device=device), axis=0)
    order = np.argsort(np.concatenate([part.members for part in parts]))
    return _map(measured, lambda values: values[order])


@dataclass(frozen=True)
class _Part:
    """Networks measured together, and the inputs they take: all if None."""

    members: list[int]
    nets: Ensemble
    inputs: Tensor | None = None


def _parts(nets: Ensemble, device: torch.device, attacks: Sequence[str]) -> list[_Part]:
    """On a CPU every network that compaction makes smaller alone; the others in parts of some."""
    alone: list[_Part] = []
    for k in range(nets.members) if device.type == "cpu" else ():
        one = nets.select([k])
        if isinstance(one, MLPEnsemble) and not _MOVES_DEAD_INPUTS & set(attacks):
            small = much_smaller(one)
            if small:
                alone.append(_Part([k], small.network, small.inputs))
        elif isinstance(one, ModuleEnsemble):
            small = smaller_stack(one)
            if small:
                alone.append(_Part([k], small))
    done = {k for part in alone for k in part.members}
    others = [k for k in range(nets.members) if k not in done]
    groups = [
        [others[i] for i in part]
        for part in shares(len(others), device=device, at_most=_MEMBERS[device.type])
    ]
    return [*alone, *(_Part(group, apart(nets.select(group))) for group in groups)]


def _map(measured: Measurement, change: Callable[[Array], Array]) -> Measurement:
    """The measurement with every array changed."""
    return Measurement(
        correct=change(measured.correct),
        radius={key: change(values) for key, values in measured.radius.items()},
        fgs_correct={key: change(values) for key, values in measured.fgs_correct.items()},
        margin={key: change(values) for key, values in measured.margin.items()},
        gradient_norm={key: change(values) for key, values in measured.gradient_norm.items()},
    )


def _joined(parts: list[Measurement], *, axis: int) -> Measurement:
    """One measurement of all members (axis 0) or all examples (axis 1)."""

    def keyed(name: str) -> dict:
        dictionaries = [getattr(part, name) for part in parts]
        return {key: np.concatenate([d[key] for d in dictionaries], axis=axis) for key in dictionaries[0]}

    return Measurement(
        correct=np.concatenate([part.correct for part in parts], axis=axis),
        radius=keyed("radius"),
        fgs_correct=keyed("fgs_correct"),
        margin=keyed("margin"),
        gradient_norm=keyed("gradient_norm"),
    )


def measured_rows(members: Members, measured: Measurement, data: Dataset, *, eps: float) -> list[Rows]:
    """The measurement as rows: every radius per example, and per network what is averaged from them.

    A mean radius counts at most the largest distance inside the data's box (``capped`` tells how many
    examples that concerned) and 0 for a misclassified example.
    """
    found = [Rows(members, measured.correct.mean(1), quantity="accuracy", method="clean", kind="measured")]
    for (p, method), radius in measured.radius.items():
        found += radius_rows(members, radius, data, p=p, method=method, eps=eps)
    for clipped, correct in measured.fgs_correct.items():
        method = "fgs in the box" if clipped else "fgs"
        found.append(
            Rows(
                members,
                correct.mean(1),
                quantity="fgs_accuracy",
                method=method,
                kind="measured",
                norm="linf",
                eps=eps,
            )
        )
    for p, norm in NORMS.items():
        for quantity, values in (
            ("margin", measured.margin[p]),
            ("gradient_norm", measured.gradient_norm[p]),
        ):
            known = np.isfinite(values)
            total = np.where(known, values, 0.0).sum(1)
            mean = np.divide(total, known.sum(1), out=np.full(len(members), np.nan), where=known.any(1))
            found.append(
                Rows(members, mean, quantity=quantity, method="nearest boundary", kind="measured", norm=norm)
            )
    return found


def radius_rows(
    members: Members, radius: Float[Array, "K n"], data: Dataset, *, p: float, method: str, eps: float
) -> list[Rows]:
    """One attack's radii, per example unless it is ``best``, which others give, and their averages."""
    norm, cap = NORMS[p], data.diameter(p)

    def one(values: np.ndarray, quantity: str, *, eps: float = np.nan) -> Rows:
        return Rows(members, values, quantity=quantity, method=method, kind="measured", norm=norm, eps=eps)

    with np.errstate(over="ignore"):  # of a huge box: inf
        squares = (np.minimum(radius, cap) ** 2).mean(1)
    return [
        *([one(radius, "radius")] if method != "best" else []),
        one(capped_mean(radius, cap), "mean_radius"),
        one(squares, "mean_squared_distance"),
        one((radius > cap).sum(1), "capped"),
        one((radius > eps).mean(1), "robust_accuracy", eps=eps),
    ]


def capped_mean(radius: Float[Array, "K n"], cap: float) -> Float[Array, " K"]:
    """Mean over the examples of min(radius, cap), per network."""
    return np.minimum(radius, cap).mean(1)


def _measure(
    nets: Ensemble,
    x: Tensor,
    y: Tensor,
    *,
    others: Tensor,
    first: int,
    eps: float,
    attacks: Sequence[str],
    limits: tuple[float, float],
    box: bool,
) -> Measurement:
    """The examples from place ``first`` on, in as many as are held at once."""
    limit = limits if box else None
    logits = nets.logits(x)
    if not logits.isfinite().all():
        bad = first + int((~logits.isfinite()).any(2).any(0).nonzero()[0])
        raise InvalidInput(f"scores of example {bad} are NaN or infinite; radii need finite ones")
    nearest = nearest_boundaries(nets, x, y, norms=tuple(NORMS), boxes={None, limit})
    correct = margins(logits, y) > 0
    radius: dict[tuple[float, str], Tensor] = {}
    for name in attacks:
        for p, method, x_adv, found in attacked(
            name, nets, x, y, nearest=nearest, others=others, box=limit, first=first
        ):
            radius[p, method] = _radius(nets, x, y, x_adv, found, correct, p=p)
    for p in NORMS:
        of_norm = [value for (norm, _), value in radius.items() if norm == p]
        if of_norm:
            radius[p, "best"] = torch.stack(of_norm).amin(0)
    stepped = fgs(nets, x, y, eps=eps)
    fgs_correct = {
        clipped: margins(nets.logits(clip(stepped, limits if clipped else None)), y) > 0
        for clipped in (False, True)
    }
    straight = {p: nearest[p, None] for p in NORMS}
    return Measurement(
        correct=correct.cpu().numpy(),
        radius={key: value.cpu().numpy() for key, value in radius.items()},
        fgs_correct={key: value.cpu().numpy() for key, value in fgs_correct.items()},
        margin={p: near.gap.masked_fill(~correct, torch.nan).cpu().numpy() for p, near in straight.items()},
        gradient_norm={
            p: near.size.masked_fill(~correct, torch.nan).cpu().numpy() for p, near in straight.items()
        },
    )


def verified_radius(
    nets: Ensemble,
    x: Float[Tensor, "n d"],
    y: Tensor,
    x_adv: Float[Tensor, "K n d"],
    found: Bool[Tensor, "K n"],
    *,
    p: float,
) -> Float[Tensor, "K n"]:
    """l_p distance of every found point, after running the network on it again.

    0 where x is misclassified; inf where nothing was found or the point found is not misclassified.
    """
    return _radius(nets, x, y, x_adv, found, margins(nets.logits(x), y) > 0, p=p)


def _radius(
    nets: Ensemble, x: Tensor, y: Tensor, x_adv: Tensor, found: Tensor, correct: Tensor, *, p: float
) -> Tensor:
    hit = found & (margins(nets.logits(x_adv), y) < 0)
    distance = torch.where(hit, lp_norm(x_adv - x, p=p), torch.inf)
    return distance.where(correct, 0.0)


def mask_gradient_norms(
    network: Ensemble,
    x: Float[Tensor, "n d"],
    pair: tuple[int, int],
    *,
    sparsity: float,
    copies: int,
    generator: torch.Generator,
) -> dict[float, Float[Array, " copies"]]:
    """Largest dual norm of grad(g_i - g_k) over the rows of x, for random-masked copies of one network.

    An *estimate* from below of every copy's Lipschitz constant in l_p, keyed by p. ``network`` has one
    member; its hidden layers lose every weight with probability ``sparsity``, its last layer loses none.
    """
    found: dict[float, list[Tensor]] = {p: [] for p in NORMS}
    hidden = network.weights[:-1]
    v = x.new_zeros(_MASKED_COPIES, len(x), network.classes)
    v[..., pair[0]], v[..., pair[1]] = 1.0, -1.0
    for start in range(0, copies, _MASKED_COPIES):
        count = min(_MASKED_COPIES, copies - start)
        nets = network.select([0] * count)
        keep = [torch.rand(count, *w.shape[1:], generator=generator).to(x.device) >= sparsity for w in hidden]
        masked = nets.masked((*keep, nets.masks[-1]))
        _, gradient = masked.logits_and_gradient(x, lambda _, count=count: v[:count])
        for p, q in ((2.0, 2), (math.inf, 1)):
            found[p].append(torch.linalg.vector_norm(gradient, ord=q, dim=2).amax(1))
    return {p: torch.cat(parts).cpu().numpy() for p, parts in found.items()}
