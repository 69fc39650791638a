"""What training, pruning, attacks and measurements ask of an ensemble, whatever its networks are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from theory.types import InvalidInput

# From logits (K, n, c) to the coefficients of the sum of logits whose gradient is wanted.
Cotangent = Callable[[Float[Tensor, "K n c"]], Float[Tensor, "K n c"]]


@runtime_checkable
class Ensemble(Protocol):
    """K masked networks of one architecture, evaluated as one; examples are flat vectors of d features.

    A network with a single output f is a binary classifier: its score stands for the logits (0, f).
    ``x`` is (n, d), shared by all members, or (K, n, d), one batch per member. Evaluation is in the
    weights' own precision and on their device, and is never part of an autograd graph.
    """

    @property
    def weights(self) -> tuple[Float[Tensor, "K *_"], ...]:
        """The prunable weights, (K, out, in, ...) for every layer, kept masked; biases are not among them."""
        ...

    @property
    def masks(self) -> tuple[Bool[Tensor, "K *_"], ...]:
        """Which of them are kept: one mask per weight, True where it is."""
        ...

    @property
    def members(self) -> int:
        """Number of networks K."""
        ...

    @property
    def inputs(self) -> int:
        """Number of input features d."""
        ...

    @property
    def classes(self) -> int:
        """Number of classes c; 2 if the networks have a single output."""
        ...

    def sparsity(self) -> Float[Tensor, " K"]:
        """Fraction of weights (biases excluded) whose mask is False, per member."""
        ...

    def to(self: AnyEnsemble, *, dtype: torch.dtype, device: torch.device) -> AnyEnsemble:
        """The same networks in another precision or on another device."""
        ...

    def select(self: AnyEnsemble, members: Sequence[int] | Tensor) -> AnyEnsemble:
        """The named members, in the given order; a member may be named more than once."""
        ...

    def joined(self: AnyEnsemble, others: Sequence[AnyEnsemble]) -> AnyEnsemble:
        """These members, then those of the others. Raises: InvalidInput if the architectures differ."""
        ...

    def masked(self: AnyEnsemble, masks: tuple[Bool[Tensor, "K *_"], ...]) -> AnyEnsemble:
        """The same networks with further weights removed: a weight stays where both masks keep it."""
        ...

    def stored(self, x: Float[Tensor, "K n d"]) -> Float[Tensor, "K n d"]:
        """The same examples, in memory as the products take them."""
        ...

    def logits(self, x: Float[Tensor, "*K n d"]) -> Float[Tensor, "K n c"]:
        """Logits of every member."""
        ...

    def logits_and_gradient(
        self, x: Float[Tensor, "*K n d"], cotangent: Cotangent
    ) -> tuple[Float[Tensor, "K n c"], Float[Tensor, "K n d"]]:
        """Logits g, and the input gradient of sum_k v_k g_k with v = cotangent(g) held fixed."""
        ...

    def logits_and_jacobian(
        self, x: Float[Tensor, "*K n d"]
    ) -> tuple[Float[Tensor, "K n c"], Float[Tensor, "K n c d"]]:
        """Logits and their gradients with respect to the input, for every class."""
        ...


AnyEnsemble = TypeVar("AnyEnsemble", bound=Ensemble)


def concatenate(ensembles: Sequence[AnyEnsemble]) -> AnyEnsemble:
    """One ensemble of all members, in order.

    Raises: InvalidInput if there is none, or the architectures differ.
    """
    if not ensembles:
        raise InvalidInput("ensembles is empty; give at least one")
    return ensembles[0].joined(ensembles[1:])


def check_masked(weights: Sequence[Tensor], masks: Sequence[Tensor]) -> None:
    """Raises: InvalidInput where a weight whose mask is False is not 0, and so takes part all the same."""
    for i, (weight, mask) in enumerate(zip(weights, masks, strict=True)):
        if weight.masked_fill(mask, 0).any():
            raise InvalidInput(
                f"masks[{i}] is False at weights that are not 0; multiply the weights by the masks"
            )


def share_of_zeros(masks: Sequence[Bool[Tensor, "K *_"]]) -> Float[Tensor, " K"]:
    """Fraction of the entries of all masks that are False, per member."""
    kept = sum(m.flatten(1).sum(1) for m in masks)
    return 1 - torch.as_tensor(kept, dtype=torch.float64) / sum(m[0].numel() for m in masks)
