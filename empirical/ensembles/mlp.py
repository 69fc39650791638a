"""Ensembles of fully connected ReLU networks: one batched product per layer, gradients written out.

Member k's weights are row k of every tensor, so one batched product serves the whole ensemble. The
weights are kept masked: an entry whose mask is False is 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from empirical.ensembles.layers import Layer
from empirical.ensembles.protocol import Cotangent, check_masked, share_of_zeros
from theory.types import BinaryLinear, InvalidInput, LinearClassifier, ReLUNetwork


@dataclass(frozen=True)
class MLPEnsemble:
    """K fully connected ReLU networks: weights (K, out, in), biases (K, out), masks (K, out, in).

    A last layer of width 1 is a binary classifier: its score f stands for the logits (0, f).
    Raises: InvalidInput if shapes do not chain or a weight is NaN or infinite.
    """

    weights: tuple[Float[Tensor, "K _ _"], ...]
    biases: tuple[Float[Tensor, "K _"], ...]
    masks: tuple[Bool[Tensor, "K _ _"], ...]

    def __post_init__(self) -> None:
        if not self.weights or not len(self.weights) == len(self.biases) == len(self.masks):
            raise InvalidInput("weights, biases and masks must be non-empty and of equal length")
        for i, (w, b, m) in enumerate(zip(self.weights, self.biases, self.masks, strict=True)):
            if m.shape != w.shape or b.shape != w.shape[:2]:
                raise InvalidInput(
                    f"layer {i}: shapes of weight {tuple(w.shape)}, bias {tuple(b.shape)} and mask "
                    f"{tuple(m.shape)} disagree"
                )
            if i and (w.shape[2] != self.weights[i - 1].shape[1] or len(w) != len(self.weights[0])):
                raise InvalidInput(f"layer {i}: weight {tuple(w.shape)} does not follow layer {i - 1}")
            for values in (w, b):
                if values.numel() and not torch.isfinite(torch.stack(values.aminmax())).all():
                    bad = ~torch.isfinite(values.flatten(1)).all(1)
                    raise InvalidInput(f"layer {i} of member {int(bad.nonzero()[0])} holds NaN or infinity")
        check_masked(self.weights, self.masks)

    @property
    def members(self) -> int:
        """Number of networks K."""
        return len(self.weights[0])

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The weights as they are multiplied with, made once: nothing changes weights in place."""
        return tuple(Layer.of(weight) for weight in self.weights)

    @property
    def inputs(self) -> int:
        """Number of input features d."""
        return self.weights[0].shape[2]

    @property
    def classes(self) -> int:
        """Number of classes c (2 when the last layer is a single score)."""
        return max(2, self.weights[-1].shape[1])

    @property
    def is_binary(self) -> bool:
        """Whether the last layer is a single score."""
        return self.weights[-1].shape[1] == 1

    def sparsity(self) -> Float[Tensor, " K"]:
        """Fraction of weights (biases excluded) whose mask is False, per member."""
        return share_of_zeros(self.masks)

    def to(self, *, dtype: torch.dtype, device: torch.device) -> MLPEnsemble:
        """The same networks in another precision or on another device."""
        return MLPEnsemble(
            tuple(w.to(device=device, dtype=dtype) for w in self.weights),
            tuple(b.to(device=device, dtype=dtype) for b in self.biases),
            tuple(m.to(device=device) for m in self.masks),
        )

    def select(self, members: Sequence[int] | Tensor) -> MLPEnsemble:
        """The named members, in the given order; a member may be named more than once."""
        index = torch.as_tensor(members, device=self.weights[0].device)
        return MLPEnsemble(
            tuple(w[index] for w in self.weights),
            tuple(b[index] for b in self.biases),
            tuple(m[index] for m in self.masks),
        )

    def joined(self, others: Sequence[MLPEnsemble]) -> MLPEnsemble:
        """These members, then those of the others. Raises: InvalidInput if the architectures differ."""
        every = [self, *others]
        shapes = {tuple(w.shape[1:] for w in e.weights) for e in every}
        if len(shapes) != 1:
            raise InvalidInput(f"ensembles have {len(shapes)} different architectures; join equal ones only")
        return MLPEnsemble(
            *(
                tuple(torch.cat(layer) for layer in zip(*(getattr(e, part) for e in every), strict=True))
                for part in ("weights", "biases", "masks")
            )
        )

    def masked(self, masks: tuple[Bool[Tensor, "K _ _"], ...]) -> MLPEnsemble:
        """The same networks with further weights removed: a weight stays where both masks keep it."""
        kept = tuple(old & new for old, new in zip(self.masks, masks, strict=True))
        return MLPEnsemble(tuple(w * m for w, m in zip(self.weights, kept, strict=True)), self.biases, kept)

    def logits(self, x: Float[Tensor, "*K n d"]) -> Float[Tensor, "K n c"]:
        """Logits of every member; ``x`` is (n, d), shared, or (K, n, d), one batch per member."""
        return self._forward(x)[0]

    def logits_and_gradient(
        self, x: Float[Tensor, "*K n d"], cotangent: Cotangent
    ) -> tuple[Float[Tensor, "K n c"], Float[Tensor, "K n d"]]:
        """Logits g, and the input gradient of sum_k v_k g_k with v = cotangent(g) held fixed.

        An identity on the linear region of each example; a unit at 0 counts as inactive.
        """
        logits, hidden = self._forward(x)
        gradient = cotangent(logits)
        if self.is_binary:
            gradient = gradient[..., 1:]
        for layer, values in zip(self.layers[:0:-1], reversed(hidden), strict=True):
            gradient = layer.backward(gradient).mul_(values.sign_())
        return logits, self.layers[0].backward(gradient)

    def logits_and_jacobian(
        self, x: Float[Tensor, "*K n d"]
    ) -> tuple[Float[Tensor, "K n c"], Float[Tensor, "K n c d"]]:
        """Logits and their gradients with respect to the input, for every class."""
        if len(self.weights) == 1:
            logits, weight = self.logits(x), self.weights[0]
            jacobian = weight[:, None].expand(*logits.shape[:2], -1, -1)
        else:
            logits, rows, units = self.logits_and_unit_gradients(x)
            jacobian = self.layers[0].backward_by_rows(rows, units)
        if self.is_binary:
            jacobian = torch.cat([torch.zeros_like(jacobian), jacobian], dim=2)
        return logits, jacobian

    def logits_and_unit_gradients(
        self, x: Float[Tensor, "*K n d"]
    ) -> tuple[Float[Tensor, "K n c"], Float[Tensor, "K n s a"], Int[Tensor, " a"]]:
        """Logits, the scores' gradients with respect to pre-activations of the first layer, and their units.

        Units that are off at every example are left out: near one example that is half of them. A binary
        network has one score. Networks have a hidden layer.
        """
        logits, hidden = self._forward(x)
        active = [values.sign_() for values in hidden]
        on = [gate.amax((0, 1)).nonzero()[:, 0] for gate in active]
        gates = [gate.index_select(2, some)[:, :, None] for gate, some in zip(active, on, strict=True)]
        rows = self.weights[-1].index_select(2, on[-1])[:, None] * gates[-1]
        for i in reversed(range(1, len(active))):
            rows = self.layers[i].backward_by_rows(rows, on[i], on[i - 1]).mul_(gates[i - 1])
        return logits, rows, on[0]

    def stored(self, x: Float[Tensor, "K n d"]) -> Float[Tensor, "K n d"]:
        """The same examples, in memory as the first layer's products take them."""
        return x.mT.contiguous().mT if self.layers[0].is_sparse else x

    def preactivations(self, x: Float[Tensor, "K n d"]) -> list[Float[Tensor, "K n _"]]:
        """Pre-activations of every layer, the last layer's single score or scores included."""
        found = []
        hidden = x
        for layer, bias in zip(self.layers, self.biases, strict=True):
            found.append(layer.forward(hidden, bias))
            hidden = found[-1].relu()
        return found

    def _forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits, and the outputs of every hidden layer."""
        values = x.expand(self.members, *x.shape) if x.ndim == 2 else x
        *layers, (last, shift) = zip(self.layers, self.biases, strict=True)
        hidden = []
        for layer, bias in layers:
            values = layer.forward(values, bias).relu_()
            hidden.append(values)
        scores = last.forward(values, shift)
        if self.is_binary:
            scores = torch.cat([torch.zeros_like(scores), scores], dim=2)
        return scores, hidden


def initialise(widths: Sequence[int], *, seeds: Sequence[int], device: torch.device) -> MLPEnsemble:
    """He-initialised dense networks, float32, one member per seed.

    Member k's weights depend on seeds[k] alone. ``widths`` runs from inputs to outputs; a last width of
    1 makes binary classifiers. Raises: InvalidInput for no seeds, fewer than two widths, or a width < 1.
    """
    if len(widths) < 2 or min(widths) < 1:
        raise InvalidInput(f"widths is {list(widths)}; give inputs, hidden widths and outputs, all >= 1")
    if not seeds:
        raise InvalidInput("seeds is empty; give at least one seed")
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    weights, biases, masks = [], [], []
    for fan_in, fan_out in zip(widths[:-1], widths[1:], strict=True):
        drawn = torch.stack([torch.randn(fan_out, fan_in, generator=g) for g in generators])
        weights.append((drawn * math.sqrt(2 / fan_in)).to(device))
        biases.append(torch.zeros(len(seeds), fan_out, device=device))
        masks.append(torch.ones(len(seeds), fan_out, fan_in, dtype=torch.bool, device=device))
    return MLPEnsemble(tuple(weights), tuple(biases), tuple(masks))


def from_networks(networks: Sequence[ReLUNetwork]) -> MLPEnsemble:
    """An ensemble (float64, CPU) of given networks; zero weights count as pruned.

    Raises: InvalidInput if ``networks`` is empty or their shapes differ.
    """
    if not networks:
        raise InvalidInput("networks is empty; give at least one")
    if len({tuple(w.shape for w in net.weights) for net in networks}) != 1:
        raise InvalidInput("networks have different shapes; an ensemble holds one architecture")
    weights = tuple(
        torch.tensor(np.stack(layer)) for layer in zip(*(n.weights for n in networks), strict=True)
    )
    biases = tuple(torch.tensor(np.stack(layer)) for layer in zip(*(n.biases for n in networks), strict=True))
    return MLPEnsemble(weights, biases, tuple(w != 0 for w in weights))


def relu_network(ensemble: MLPEnsemble, member: int) -> ReLUNetwork:
    """Member ``member`` as plain float64 arrays. Raises: InvalidInput for a binary (one-score) ensemble."""
    return ReLUNetwork(
        tuple(w[member].double().cpu().numpy() for w in ensemble.weights),
        tuple(b[member].double().cpu().numpy() for b in ensemble.biases),
    )


def linear_classifier(ensemble: MLPEnsemble, member: int) -> BinaryLinear | LinearClassifier:
    """Member ``member`` of an ensemble without hidden layers as plain float64 arrays.

    Raises: InvalidInput if the ensemble has hidden layers.
    """
    if len(ensemble.weights) != 1:
        raise InvalidInput(f"ensemble has {len(ensemble.weights)} layers; a linear classifier has one")
    weight = ensemble.weights[0][member].double().cpu().numpy()
    bias = ensemble.biases[0][member].double().cpu().numpy()
    return BinaryLinear(weight[0], float(bias[0])) if ensemble.is_binary else LinearClassifier(weight, bias)
