"""Other packages' certificates behind this project's call shapes, where those packages can be imported.

============  ===================================================================  ==========================
package       import path                                                          used for
============  ===================================================================  ==========================
auto_LiRPA    ``auto_LiRPA``, github.com/Verified-Intelligence/auto_LiRPA           margins, Jacobian norms
RecurJac      ``bound_base``, the folder github.com/huanzhang12/RecurJac-and-CROWN  local Lipschitz constants
============  ===================================================================  ==========================

Neither is a dependency: put their folders on PYTHONPATH. RecurJac needs numba. Both compute in float32 and
leave rounding out of account.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.cases import fully_connected
from theory.types import ReLUNetwork

LIRPA, RECURJAC = "auto_LiRPA", "bound_base"
RADII = (1e-9, 1e9)  # where the search for a radius gives up
Certify = Callable[[Tensor, Tensor], Tensor]  # (rows, radius) -> which examples are certified
Constants = Callable[[Tensor, Tensor, float], Tensor]  # (x, y, radius) -> (m, c), 0 at k = y


def installed(package: str) -> bool:
    """Whether a package, or a part of one, can be imported."""
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def import_certifiers() -> None:
    """Import what is installed: a package that cannot be fails here, before any network is trained."""
    if installed(LIRPA):
        _lirpa()
    if installed(RECURJAC):
        _recurjac()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the packages print, log and warn of."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _lirpa() -> tuple[Any, Any, Any]:
    """The package, its perturbations and its Jacobians."""
    with _quiet():
        package = importlib.import_module(LIRPA)
        perturbations = importlib.import_module(f"{LIRPA}.perturbations")
        jacobians = importlib.import_module(f"{LIRPA}.jacobian")
    logging.getLogger(LIRPA).setLevel(logging.ERROR)
    return package, perturbations, jacobians


def _recurjac() -> Any:
    os.environ["NUMBA_NUM_THREADS"] = "1"  # numba's idle threads spin, and would be counted
    with _quiet():
        return importlib.import_module(RECURJAC)


def as_module(net: ReLUNetwork) -> torch.nn.Sequential:
    """The network as a float32 module."""
    module = fully_connected([net.weights[0].shape[1], *map(len, net.weights)])
    values = [array for layer in zip(net.weights, net.biases, strict=True) for array in layer]
    for parameter, value in zip(module.parameters(), values, strict=True):
        parameter.data.copy_(torch.tensor(value))
    return module


def targets(y: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """The classes k != y, (m, c - 1), and the rows e_y - e_k, (m, c - 1, c), float32."""
    every = torch.arange(classes).expand(len(y), -1)
    others = every[every != y[:, None]].view(len(y), classes - 1)
    eye = torch.eye(classes)
    return others, eye[y][:, None] - eye[others]


def lirpa_certify(net: ReLUNetwork, x: Tensor, y: Tensor, *, p: float, method: str) -> Certify:
    """auto_LiRPA's test whether all margins are positive on an l_p ball, for some rows of x at once."""
    package, perturbations, _ = _lirpa()
    x = x.float()
    _, rows_of = targets(y, net.classes)
    with _quiet():
        bounded = package.BoundedModule(as_module(net), x[:1], device="cpu")

    def certify(rows: Tensor, radius: Tensor) -> Tensor:
        centre, side = x[rows], radius.float()[:, None]
        if p == math.inf:
            ball = perturbations.PerturbationLpNorm(norm=p, x_L=centre - side, x_U=centre + side)
        else:
            ball = perturbations.PerturbationLpNorm(norm=p, eps=side)
        with _quiet(), torch.set_grad_enabled(method == "CROWN-Optimized"):
            margins, _ = bounded.compute_bounds(
                x=(package.BoundedTensor(centre, ball),), C=rows_of[rows], method=method, bound_upper=False
            )
        return (margins.detach() > 0).all(1)

    return certify


def lirpa_lipschitz(net: ReLUNetwork, *, p: float, optimised: bool = False) -> Constants:
    """auto_LiRPA's bound of the norm of the gradient, one example and one target class at a time.

    As in its own example: the target enters through one tensor that is changed in place (a new one would be
    ignored), so nothing can be batched. Its l_2 norm is the square root of its squared one.
    """
    package, perturbations, jacobians = _lirpa()
    module = as_module(net)

    class GradientNorm(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = module
            self.norm = jacobians.GradNorm(norm=1 if p == math.inf else 2)

        def forward(self, x: Tensor, target: Tensor) -> Tensor:
            return self.norm(jacobians.JacobianOP.apply(self.network(x).matmul(target), x))

    target = torch.zeros(net.classes, 1)
    somewhere = perturbations.PerturbationLpNorm(norm=p, eps=0.01)
    start = package.BoundedTensor(torch.zeros(1, net.weights[0].shape[1]), somewhere)
    with _quiet():
        bounded = package.BoundedModule(GradientNorm(), (start, target), device="cpu")

    def constants(x: Tensor, y: Tensor, radius: float) -> Tensor:
        others, rows = targets(y, net.classes)
        found = torch.zeros(len(x), net.classes)
        ball = perturbations.PerturbationLpNorm(norm=p, eps=radius)
        for i, centre in enumerate(x.float().split(1)):
            for k, row in zip(others[i].tolist(), rows[i], strict=True):
                target.copy_(row[:, None])
                with _quiet(), torch.set_grad_enabled(optimised):
                    _, above = bounded.compute_jacobian_bounds(
                        (package.BoundedTensor(centre, ball), target), optimize=optimised, bound_lower=False
                    )
                found[i, k] = above.detach().squeeze()
        return found if p == math.inf else found.sqrt()

    return constants


def recurjac_lipschitz(net: ReLUNetwork, *, p: float, algorithm: str) -> Constants:
    """RecurJac's and Fast-Lip's bounds (``algorithm`` recurjac or fastlip), all targets at once.

    Hidden layers by its adaptive CROWN, the backward direction: its tightest choices here.
    """
    package = _recurjac()
    weights = [np.ascontiguousarray(weight, dtype=np.float32) for weight in net.weights]
    biases = [np.ascontiguousarray(bias, dtype=np.float32) for bias in net.biases]
    module = as_module(net)

    def constants(x: Tensor, y: Tensor, radius: float) -> Tensor:
        others, _ = targets(y, net.classes)
        found = torch.zeros(len(x), net.classes)
        with torch.no_grad():
            scores = module(x.float()).numpy()
        for i, centre in enumerate(x.float().numpy()):
            with _quiet():
                _, _, bounds, _ = package.compute_bounds(
                    weights, biases, int(y[i]), -1, centre, scores[i], len(weights), p, np.float32(radius),
                    "crown-adaptive", algorithm, untargeted=True, lipsdir=-1,
                )  # fmt: skip
            found[i, others[i]] = torch.as_tensor(bounds, dtype=torch.float32)
        return found

    start = torch.zeros(1, weights[0].shape[1])
    constants(start, torch.zeros(1, dtype=torch.int64), 0.01)  # numba compiles on the first call
    return constants


def largest_certified(certify: Certify, examples: int, *, start: float, precision: float = 1e-3) -> Tensor:
    """The largest radius found that ``certify`` accepts, to a relative ``precision``.

    Doubled or halved from ``start`` into a bracket, then bisected; an example that is done is dropped, and
    one outside ``RADII`` is given up, at 0 or at the last radius accepted.
    """
    low = torch.zeros(examples, dtype=torch.float64)
    high = torch.full_like(low, math.inf)
    while True:
        wide = ((high - low > precision * high) | high.isinf()) & (high > RADII[0]) & (low < RADII[1])
        rows = wide.nonzero()[:, 0]
        if not len(rows):
            return low
        doubled = torch.where(low > 0, 2 * low, start)
        trial = torch.where(high.isinf(), doubled, (low + high) / 2)[rows]
        good = certify(rows, trial)
        low[rows] = torch.where(good, trial, low[rows])
        high[rows] = torch.where(good, high[rows], trial)
