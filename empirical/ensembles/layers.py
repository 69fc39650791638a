"""The products with a layer's weights: dense, or by compressed rows where few of them are not zero.

Which one, the weights of each member alone decide: up to rounding, its results depend neither on the other
members nor on how many examples there are. All are the same sums, rounded in another order: a dense member
has another routine beside a sparse one.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

# The largest share of weights that are not zero, and the smallest layer, whose products are sparse on a CPU.
# Both products of layers of 70,000 weights or more are about twice as fast at these shares, and still 1.7
# times at 0.1 (benchmarks/results/compaction.csv, "layer"); a small layer's call costs what it saves.
MOST_DENSE = 1 / 16
LEAST_WEIGHTS = 2**14
# Rows multiplied at once where the result is stored by rows: what is copied is still in the cache.
_ROWS = 256

with warnings.catch_warnings():  # that such tensors are in beta, said once a process: here, in one thread
    warnings.simplefilter("ignore")
    torch.zeros(1, 1).to_sparse_csr()


@dataclass(frozen=True)
class Layer:
    """Weights (K, out, in), and those of members with sparse products as CSR, with their transposes."""

    weight: Float[Tensor, "K out in"]
    sparse: tuple[tuple[Tensor, Tensor] | None, ...]

    @staticmethod
    def of(weight: Float[Tensor, "K out in"]) -> Layer:
        """The layer with sparse products for the members, on a CPU, for which they are faster."""
        size = weight.shape[1] * weight.shape[2]
        if weight.device.type != "cpu" or size < LEAST_WEIGHTS:
            return Layer(weight, (None,) * len(weight))
        few = weight.count_nonzero((1, 2)) <= MOST_DENSE * size
        return Layer(weight, tuple(compressed(w) if f else None for w, f in zip(weight, few, strict=True)))

    @property
    def is_sparse(self) -> bool:
        """Whether any member's products are."""
        return any(self.sparse)

    def forward(self, x: Float[Tensor, "K n in"], bias: Float[Tensor, "K out"]) -> Float[Tensor, "K n out"]:
        """The outputs at x; stored along the examples where products are sparse."""
        if not self.is_sparse:
            return torch.baddbmm(bias[:, None], x, self.weight.mT)
        return _products(self.weight, [pair and pair[0] for pair in self.sparse], x).add_(bias[:, None])

    def backward(self, c: Float[Tensor, "K n out"]) -> Float[Tensor, "K n in"]:
        """The sums of the weights' rows with these coefficients, stored as the outputs of ``forward``."""
        if not self.is_sparse:
            return torch.bmm(c, self.weight)
        return _products(self.weight.mT, [pair and pair[1] for pair in self.sparse], c)

    def backward_by_rows(
        self,
        c: Float[Tensor, "K n s a"],
        units: Int[Tensor, " a"],
        inputs: Int[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "K n s b"]:
        """The same for many rows of coefficients of these units alone, at these inputs; stored row by row."""
        rows = c.flatten(1, 2)
        if not self.is_sparse:
            weight = self.weight.index_select(1, units)
            found = torch.bmm(rows, weight if inputs is None else weight.index_select(2, inputs))
        else:
            found = c.new_empty(*rows.shape[:2], self.weight.shape[2] if inputs is None else len(inputs))
            for out, some in zip(found.split(_ROWS, 1), rows.split(_ROWS, 1), strict=True):
                if len(units) < self.weight.shape[1]:
                    whole = some.new_zeros(*some.shape[:2], self.weight.shape[1])
                    some = whole.index_copy_(2, units, some)
                part = self.backward(some)
                out.copy_(part if inputs is None else part.index_select(2, inputs))
        return found.unflatten(1, c.shape[1:3])


def compressed(weight: Float[Tensor, "out in"]) -> tuple[Tensor, Tensor]:
    """A matrix and its transpose, both by compressed rows."""
    rows = weight.to_sparse_csr()
    return rows, rows.to_sparse_csc().mT


def _products(
    dense: Float[Tensor, "K a b"], sparse: list[Tensor | None], x: Float[Tensor, "K n b"]
) -> Float[Tensor, "K n a"]:
    """x times the transpose of every member's matrix; an entry of a sparse one meets all examples at once."""
    found = x.new_empty(len(dense), dense.shape[1], x.shape[1])
    for whole, rows, values, out in zip(dense, sparse, x, found, strict=True):
        torch.mm(whole if rows is None else rows, values.mT.contiguous(), out=out)
    return found.mT
