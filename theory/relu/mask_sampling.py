"""Monte Carlo over random masks: what the predictions of moment propagation are compared with."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray as Array
from torch import Tensor, nn

from theory.relu.moments import Prediction, check_keep, check_rivals, first_order_radius
from theory.relu.sequential_moments import MASKED, layer_steps
from theory.types import InvalidInput, check_labels, check_p

QUANTITIES = ("margin", "accuracy", "gradient_l2", "gradient_l1", "radius_l2", "radius_linf")


@dataclass(frozen=True)
class Sample:
    """One row per sparsity vector (a), mask (k) and example (m): the smallest margin and gradient norms."""

    margin: Float[Array, "a k m"]
    gradient_l2: Float[Array, "a k m"]
    gradient_l1: Float[Array, "a k m"]

    def values(self, quantity: str, *, caps: tuple[float, float]) -> Float[Array, "a k m"]:
        """The quantity of each mask and example, an identity; radii are capped at (l_2, l_inf) ``caps``.

        Raises: InvalidInput for a quantity that is not in QUANTITIES.
        """
        if quantity not in QUANTITIES:
            raise InvalidInput(f"quantity is {quantity!r}; choose one of {', '.join(QUANTITIES)}")
        if quantity == "accuracy":
            return (self.margin > 0).astype(float)
        if quantity.startswith("gradient"):
            return self.gradient_l2 if quantity == "gradient_l2" else self.gradient_l1
        positive = np.maximum(self.margin, 0.0)
        if quantity == "margin":
            return positive
        size, cap = (self.gradient_l2, caps[0]) if quantity == "radius_l2" else (self.gradient_l1, caps[1])
        return first_order_radius(positive, size, cap=cap)


@dataclass(frozen=True)
class Agreement:
    """Predicted and sampled mean over the examples of one quantity, per sparsity vector."""

    quantity: str
    predicted: Float[Array, " a"]
    monte_carlo: Float[Array, " a"]
    standard_error: Float[Array, " a"]

    @property
    def relative_error(self) -> Float[Array, " a"]:
        """predicted / monte_carlo - 1; 0 where both are 0, infinite where only the sample mean is 0."""
        gap = self.predicted - self.monte_carlo
        ratio = np.where(gap == 0, 0.0, np.copysign(math.inf, gap))
        return np.divide(gap, self.monte_carlo, out=ratio, where=self.monte_carlo != 0)


def sample(
    model: nn.Sequential,
    x: Float[Array, "m *image"],
    y: Int[Array, " m"],
    rivals: Int[Array, " m"],
    alphas: Float[Array, "a d"],
    *,
    masks: int,
    generator: torch.Generator,
) -> Sample:
    """Margins and gradient norms of ``masks`` random masks per sparsity vector, an estimate of their law.

    The margin is the smallest g_y - g_k over k, the gradient that of g_y - g_r, r the rival. Every mask
    serves all examples, so it is the masks that are independent. Float64, one mask at a time.

    Raises: InvalidInput as :func:`theory.relu.sequential_moments.predict_sequential`, or for masks < 2.
    """
    images = torch.tensor(x, dtype=torch.float64)
    if not images.isfinite().all():
        raise InvalidInput("x has a NaN or infinite entry; remove it")
    steps = layer_steps(model, tuple(images.shape[1:]))
    classes = int(np.prod(steps[-1].outputs))
    y = check_labels("y", y, n=len(images), classes=classes)
    rivals = check_rivals(rivals, y, classes=classes)
    keep = check_keep(alphas, layers=sum(isinstance(step.module, MASKED) for step in steps))
    if masks < 2:
        raise InvalidInput(f"masks is {masks}; a standard error needs two")
    plain = nn.Sequential(*(step.module for step in steps))
    parameters: dict[str, Tensor] = dict(plain.named_parameters())
    names = [f"{name}.weight" for name, module in plain.named_children() if isinstance(module, MASKED)]
    out = np.zeros((3, len(keep), masks, len(images)))
    for a, kept in enumerate(keep):
        for draw in range(masks):
            masked = dict(parameters)
            for name, k in zip(names, kept, strict=True):
                weight = parameters[name]
                drawn = torch.rand(weight.shape, generator=generator, dtype=torch.float64) < k
                masked[name] = weight * drawn
            out[:, a, draw] = _measure(plain, masked, images, y, rivals)
    return Sample(*out)


def _measure(
    model: nn.Sequential,
    parameters: dict[str, Tensor],
    images: Tensor,
    y: Int[Array, " m"],
    rivals: Int[Array, " m"],
) -> Float[Array, "3 m"]:
    """Smallest margin, l_2 and l_1 gradient norm of every example for one set of weights."""
    rows = torch.arange(len(images))
    with torch.enable_grad():
        leaf = images.clone().requires_grad_()
        scores = torch.func.functional_call(model, parameters, (leaf,)).flatten(1)
        own = scores[rows, y]
        (gradient,) = torch.autograd.grad((own - scores[rows, rivals]).sum(), leaf)
    others = scores.detach().clone()
    others[rows, y] = -math.inf
    flat = gradient.flatten(1)
    margin = own.detach() - others.amax(1)
    return torch.stack([margin, flat.norm(dim=1), flat.abs().sum(1)]).numpy()


def compare(prediction: Prediction, drawn: Sample, *, caps: tuple[float, float]) -> list[Agreement]:
    """Predicted against sampled means over examples, an estimate with its standard error over masks.

    caps: largest l_2 and l_inf radius, which counts for a classifier that is constant around x.

    Raises: InvalidInput if the two differ in sparsities or examples.
    """
    if prediction.margin.shape != drawn.margin[:, 0].shape:
        raise InvalidInput(
            f"prediction has shape {prediction.margin.shape}; the sample has {drawn.margin[:, 0].shape}"
        )
    predicted = {
        "radius_l2": prediction.radius(p=check_p(2), cap=caps[0]),
        "radius_linf": prediction.radius(p=math.inf, cap=caps[1]),
    }
    found = []
    for quantity in QUANTITIES:
        per_mask = drawn.values(quantity, caps=caps).mean(axis=2)
        value = predicted[quantity] if quantity in predicted else getattr(prediction, quantity)
        error = per_mask.std(axis=1, ddof=1) / math.sqrt(per_mask.shape[1])
        found.append(Agreement(quantity, value.mean(axis=1), per_mask.mean(axis=1), error))
    return found
