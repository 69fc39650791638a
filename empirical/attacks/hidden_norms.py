"""Gradient norms in l_2 of fully connected networks, without a gradient over the inputs for every class.

A class's gradient is W^T h, with W the first layer's weights and h a vector over its units, and its norm is
the root of h . (W W^T) h: a product with one small matrix in place of one with W. Where its terms cancel, and
half of the digits with them, or are outside the range of the numbers, it is taken of the gradient itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from empirical.attacks.geometry import norm
from empirical.attacks.nearest import Nearest, in_parts, joined, nearest_class, of_class, unit_pulls
from empirical.ensembles import Ensemble, MLPEnsemble

# Inputs per unit of the first layer from which on it pays: products with W cost more than with W W^T and one.
_WIDE = 2


@dataclass(frozen=True)
class HiddenNorms:
    """Networks with the Gram matrices of the weights of their first layer's units."""

    nets: MLPEnsemble
    gram: Float[Tensor, "K h h"]

    @staticmethod
    def of(nets: Ensemble) -> HiddenNorms | None:
        """Of fully connected networks for which it pays; None for others."""
        if not isinstance(nets, MLPEnsemble) or len(nets.weights) < 2:
            return None
        weight = nets.weights[0]
        if weight.shape[2] < _WIDE * weight.shape[1]:
            return None
        return HiddenNorms(nets, torch.bmm(weight, weight.mT))

    def select(self, members: Int[Tensor, " k"]) -> HiddenNorms:
        """The named networks."""
        return HiddenNorms(self.nets.select(members), self.gram[members])

    def sizes(self, pull: Float[Tensor, "K n k a"], units: Int[Tensor, " a"]) -> Float[Tensor, "K n k"]:
        """Norms of the gradients over the inputs with these gradients over units (:func:`unit_pulls`)."""
        gram, rows = self.gram.index_select(1, units).index_select(2, units), pull.flatten(1, 2)
        square = torch.bmm(rows, gram).mul_(rows).sum(2)
        terms = torch.bmm(rows.square(), gram.diagonal(dim1=1, dim2=2)[..., None])[..., 0]
        info = torch.finfo(square.dtype)
        lost = square < info.eps**0.5 * terms
        ordinary = (terms > info.tiny / info.eps) & (terms < info.max * info.eps)
        if not bool(ordinary.all()):
            lost |= ~ordinary & (rows != 0).any(2)
        size = square.clamp(min=0).sqrt_()
        for k in lost.any(1).nonzero()[:, 0].tolist():
            weight = self.nets.weights[0][k].index_select(0, units)
            size[k, lost[k]] = norm(rows[k, lost[k]] @ weight, p=2)
        return size.view(pull.shape[:3])

    def nearest(self, x: Float[Tensor, "K n d"], y: Int[Tensor, "K n"]) -> Nearest:
        """The nearest linearised boundaries in l_2."""
        return joined([self._nearest(*some) for some in in_parts(self.nets, x, y)])

    def _nearest(self, x: Tensor, y: Tensor) -> Nearest:
        gap, pull, units = unit_pulls(self.nets, x, y)
        k = nearest_class(gap, self.sizes(pull, units))
        gradient = self.nets.layers[0].backward_by_rows(of_class(pull, k), units)[:, :, 0]
        return Nearest(gap.gather(2, k)[..., 0], norm(gradient, p=2), gradient)
