"""CLEVER (Weng et al. 2018): a radius estimated from the largest gradients sampled around an example."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray as Array
from torch import Tensor

from empirical.attacks.active import check_attack
from empirical.attacks.geometry import norm
from empirical.attacks.hidden_norms import HiddenNorms
from empirical.attacks.nearest import pulls, unit_pulls
from empirical.compaction import much_smaller
from empirical.ensembles import Ensemble, MLPEnsemble, apart
from empirical.ensembles.cores import on_cores, shares
from empirical.reverse_weibull import EndPoint, end_points
from theory.types import InvalidInput, check_p

# Bytes of Jacobians held at once: what stays in a CPU's cache, what fills a GPU.
_BYTES = {"cpu": 2**22, "cuda": 2**31}
_NO_FITS = EndPoint(*[np.empty(0)] * 5, fitted=np.empty(0, dtype=bool))


@dataclass(frozen=True)
class Clever:
    """Estimated radii and local Lipschitz constants of K networks on n examples, for each other class.

    ``radius`` is (K, n); ``targeted``, ``location``, ``largest`` and ``p_value`` are (K, n, c): the radius to
    one class, the local Lipschitz constant of the margin to it as estimated and as sampled, and the p-value
    of the fit behind it. At the true class the radii are inf, the constants 0. The p-value is NaN where the
    sampled gradients have one norm, and where the fit was not used ``location`` equals ``largest``.
    """

    radius: Float[Array, "K n"]
    targeted: Float[Array, "K n c"]
    location: Float[Array, "K n c"]
    largest: Float[Array, "K n c"]
    p_value: Float[Array, "K n c"]


def clever(
    ensemble: Ensemble,
    x: Float[Tensor, "n d"],
    y: Int[Tensor, " n"],
    *,
    p: float,
    radius: float,
    batches: int = 50,
    batch_size: int = 100,
    seed: int = 0,
) -> Clever:
    """CLEVER scores in l_p, p in {2, inf} (*estimate*: neither a lower nor an upper bound of the radius).

    Gradients of g_y - g_k are taken at points drawn uniformly from the l_p ball of this ``radius`` around x.
    The end point of the reverse Weibull distribution of each batch's largest dual norm estimates the local
    Lipschitz constant L_k, which is never put below the largest norm seen. The radius is
    min_k (g_y - g_k)(x) / L_k, at most that of the ball, and 0 where x is misclassified.

    All classes and members share the samples, which depend on the seed and the example's place in x alone.
    Without examples the arrays are empty.
    Raises: InvalidInput for another p, a radius that is not positive, batches < 3, batch_size < 1, or bad
    shapes, values or labels. Source: arXiv:1801.10578.
    """
    check_attack(ensemble, x, y)
    q = 2 if check_p(p) == 2 else 1
    if not 0 < radius < math.inf:
        raise InvalidInput(f"radius is {radius}; the ball needs a positive, finite one")
    if batches < 3 or batch_size < 1:
        raise InvalidInput(f"batches is {batches} and batch_size {batch_size}; give at least 3 and 1")
    device = x.device

    def sample(part: range) -> Tensor:
        nets, inputs = _without_dead_parts(apart(ensemble.select(part)))
        hidden = HiddenNorms.of(nets) if q == 2 else None
        rows = max(1, _BYTES[device.type] // (x.element_size() * len(part) * nets.classes * nets.inputs))
        found = x.new_zeros(len(part), len(x), nets.classes, batches)
        for i, label in enumerate(y.tolist()):
            generator = _generator(seed, i, device)
            others = [k for k in range(nets.classes) if k != label]
            for b in range(batches):
                points = x[i] + ball(batch_size, x[i], radius, generator, p=p)
                points = points if inputs is None else points.index_select(1, inputs)
                found[:, i, others, b] = _largest(nets, hidden, label, points, q=q, rows=rows)
        return found

    parts = shares(ensemble.members, device=device, at_most=1 if device.type == "cpu" else None)
    maxima = torch.cat(on_cores(sample, parts, device=device)).double().cpu().numpy()
    fit = end_points(maxima.reshape(-1, batches)) if len(x) else _NO_FITS
    return _scores(maxima, fit, ensemble.logits(x).double().cpu().numpy(), y.cpu().numpy(), radius)


def _without_dead_parts(nets: Ensemble) -> tuple[Ensemble, Tensor | None]:
    """The networks, and the inputs they take: all if None. A gradient is 0 at all others."""
    on_cpu = nets.masks[0].device.type == "cpu"
    small = much_smaller(nets) if on_cpu and isinstance(nets, MLPEnsemble) and nets.members == 1 else None
    return (small.network, small.inputs) if small else (nets, None)


def _scores(
    maxima: Float[Array, "K n c b"],
    fit: EndPoint,
    logits: Float[Array, "K n c"],
    y: Int[Array, " n"],
    radius: float,
) -> Clever:
    """The radii that margins and constants give."""
    location = fit.location.reshape(logits.shape)
    true = np.broadcast_to(y[:, None], (*logits.shape[:2], 1))
    margin = np.take_along_axis(logits, true, 2) - logits
    with np.errstate(divide="ignore", invalid="ignore"):
        quotient = np.where(margin > 0, margin / location, 0.0)
    targeted = np.minimum(quotient, radius)
    np.put_along_axis(targeted, true, np.inf, 2)
    return Clever(
        radius=targeted.min(2),
        targeted=targeted,
        location=location,
        largest=maxima.max(3),
        p_value=fit.p_value.reshape(logits.shape),
    )


def _largest(
    nets: Ensemble, hidden: HiddenNorms | None, label: int, points: Float[Tensor, "s d"], *, q: int, rows: int
) -> Float[Tensor, "K others"]:
    """The largest l_q norm of the gradient of g_y - g_k among the points, for every other k."""
    parts = []
    for some in points.split(rows):
        x = some.expand(nets.members, *some.shape)
        y = torch.full(x.shape[:2], label, device=x.device)
        if hidden:
            sizes = hidden.sizes(*unit_pulls(hidden.nets, x, y)[1:])
        else:
            sizes = norm(pulls(nets, x, y)[1], p=q)
        parts.append(sizes.amax(1))
    return torch.stack(parts).amax(0)


def ball(
    count: int, centre: Float[Tensor, " d"], radius: float, generator: torch.Generator, *, p: float
) -> Float[Tensor, "s d"]:
    """Points drawn uniformly from the l_p ball around 0, p in {2, inf}, with the centre's dimension."""
    points = centre.new_empty(count, len(centre))
    if p == math.inf:
        return points.uniform_(-radius, radius, generator=generator)
    points.normal_(generator=generator)
    share = centre.new_empty(count, 1).uniform_(generator=generator)
    return points.mul_(radius * share ** (1 / len(centre)) / points.norm(dim=1, keepdim=True))


def _generator(seed: int, example: int, device: torch.device) -> torch.Generator:
    """The draws of one example, independent of how many others there are."""
    state = np.random.SeedSequence([seed, example]).generate_state(1, np.uint32)
    return torch.Generator(device).manual_seed(int(state[0]))
