"""DeepFool's l_2 step in fully connected networks, without a gradient over the inputs for every class.

A class's gradient is W^T h, with W the first layer's weights and h a vector over its units, and its norm is
the root of h . (W W^T) h: a product with one small matrix in place of one with W. Only the nearest class's
gradient is formed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from empirical.attacks.geometry import norm
from empirical.ensembles import Ensemble, MLPEnsemble

# Inputs per unit of the first layer from which on it pays: products with W cost more than with W W^T and one.
_WIDE = 2


@dataclass(frozen=True)
class HiddenNorms:
    """Networks split behind their first layer, with the Gram matrices of its units' weights."""

    first: MLPEnsemble
    rest: MLPEnsemble
    gram: Float[Tensor, "K h h"]

    @staticmethod
    def of(nets: Ensemble) -> HiddenNorms | None:
        """The split of fully connected networks for which it pays; None for others."""
        if not isinstance(nets, MLPEnsemble) or len(nets.weights) < 2:
            return None
        weight = nets.weights[0]
        if nets.layers[0].is_sparse or weight.shape[2] < _WIDE * weight.shape[1]:
            return None
        first, rest = (
            MLPEnsemble(nets.weights[part], nets.biases[part], nets.masks[part])
            for part in (slice(1), slice(1, None))
        )
        return HiddenNorms(first, rest, torch.bmm(weight, weight.mT))

    def select(self, members: Int[Tensor, " k"]) -> HiddenNorms:
        """The named networks."""
        return HiddenNorms(self.first.select(members), self.rest.select(members), self.gram[members])

    def step(self, x: Float[Tensor, "K n d"], y: Int[Tensor, "K n"]) -> Float[Tensor, "K n d"]:
        """Shortest step onto the nearest linearised boundary g_k = g_y; 0 where no gradient points to one."""
        hidden = self.first.preactivations(x)[0].relu_()
        logits, rows = self.rest.logits_and_jacobian(hidden)
        rows = rows * (hidden > 0)[:, :, None]
        true = y[..., None]
        gap = logits.gather(2, true) - logits
        pull = rows - _of_class(rows, true)
        square = torch.bmm(pull.flatten(1, 2), self.gram).view_as(pull).mul_(pull).sum(3)
        distance = torch.where(square > 0, gap.abs() / square.sqrt(), torch.inf).scatter(2, true, torch.inf)
        nearest = distance.argmin(2, keepdim=True)
        gradient = self.first.layers[0].backward(_of_class(pull, nearest)[:, :, 0])
        size = norm(gradient, p=2)
        length = torch.where(size > 0, gap.gather(2, nearest)[..., 0].abs() / size, 0.0)
        return gradient * torch.where(size > 0, length / size, 0.0)[..., None]


def _of_class(rows: Float[Tensor, "K n c h"], which: Int[Tensor, "K n 1"]) -> Float[Tensor, "K n 1 h"]:
    """One class's row of every example."""
    return rows.gather(2, which[..., None].expand(*which.shape, rows.shape[3]))
