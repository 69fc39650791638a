"""Adversarial training: every batch is attacked by its own network before it is learnt (Madry et al., 2018).

The attack sees the networks in training: in train mode, so batch-norm normalises by the attacked batch, whose
running statistics it does not move. Only the attacked examples are learnt.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from theory.types import InvalidInput


@dataclass(frozen=True)
class Adversary:
    """``steps`` steps of size ``step`` along the sign of the loss gradient, kept within l_inf distance eps.

    One step of size eps from the example itself is the fast gradient sign; with ``random_start``, the first
    step begins at a uniform point of the ball, drawn from the member's own generator. Examples stay in
    ``box`` if there is one.
    Raises: InvalidInput for eps or a step that is not positive, steps < 1, or an empty box.
    """

    eps: float
    step: float
    steps: int = 1
    random_start: bool = False
    box: tuple[float, float] | None = (0.0, 1.0)

    def __post_init__(self) -> None:
        for name in ("eps", "step"):
            if not 0 < getattr(self, name) < math.inf:
                raise InvalidInput(f"{name} is {getattr(self, name)}; it must be positive and finite")
        if self.steps < 1:
            raise InvalidInput(f"steps is {self.steps}; the attack needs at least one")
        if self.box is not None and not (len(self.box) == 2 and self.box[0] < self.box[1]):
            raise InvalidInput(f"box is {self.box}; its lower end must be below its upper end")


def attacked(
    gradient: Callable[[Float[Tensor, "K b d"]], Float[Tensor, "K b d"]],
    x: Float[Tensor, "K b d"],
    adversary: Adversary,
    *,
    noise: Float[Tensor, "K b d"] | None,
) -> Float[Tensor, "K b d"]:
    """The attacked batch; ``gradient`` is the loss's, ``noise`` uniform in [0, 1) for a random start."""
    moved = x if noise is None else x + adversary.eps * (2 * noise - 1)
    if adversary.box is not None:
        moved = moved.clamp(*adversary.box)
    for _ in range(adversary.steps):
        moved = moved + adversary.step * gradient(moved).sign()
        moved = torch.minimum(torch.maximum(moved, x - adversary.eps), x + adversary.eps)
        if adversary.box is not None:
            moved = moved.clamp(*adversary.box)
    return moved
