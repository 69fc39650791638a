"""Networks whose values change in place while they are trained, and the gradients of their loss.

Two kinds with the same methods: fully connected ones with the gradients written out, any module by autograd.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from empirical.activations import Recorded
from empirical.ensembles import Ensemble, MLPEnsemble, ModuleEnsemble
from empirical.ensembles.modules import evaluate, prunable_names
from empirical.training.recipe import Recipe
from theory.types import InvalidInput

# Values in the longest vector register of a CPU (64 bytes) in the smallest precision that is trained.
_REGISTER = 32


@dataclass(frozen=True)
class Packed:
    """Tensors in one vector: ``parts`` are views of ``buffer``, in order.

    An update of all of them is one pass over the buffer. Its length is a multiple of the longest vector
    register, because PyTorch's fused optimisers round the rest of a division by it otherwise: without a
    rest, a value's update does not depend on where it lies.
    """

    buffer: Float[Tensor, " size"]
    parts: tuple[Tensor, ...]

    @staticmethod
    def of(tensors: Sequence[Tensor], *, like: Tensor) -> Packed:
        """Copies of the tensors, in the precision and on the device of ``like``."""
        sizes = [t.numel() for t in tensors]
        length = -(-sum(sizes) // _REGISTER) * _REGISTER
        buffer = torch.zeros(length, dtype=like.dtype, device=like.device)
        pieces = buffer[: sum(sizes)].split(sizes)
        parts = tuple(_laid_out(piece, t.shape) for piece, t in zip(pieces, tensors, strict=True))
        for part, tensor in zip(parts, tensors, strict=True):
            part.copy_(tensor)
        return Packed(buffer, parts)

    def zeros(self) -> Packed:
        """Zeros of the same layout."""
        return Packed.of([torch.zeros_like(p) for p in self.parts], like=self.buffer)

    def select(self, members: Tensor) -> Packed:
        """The rows of every part that ``members`` names or marks."""
        return Packed.of([p[members] for p in self.parts], like=self.buffer)


class Trained(Protocol):
    """K networks in training.

    ``weights`` are those that pruning may remove, ``others`` all further parameters, ``buffers`` what a
    forward pass changes: each made of (K, ...) tensors. ``used`` are the weights of the forward pass:
    ``weights.parts``, or these times masks.
    """

    weights: Packed
    others: Packed
    buffers: list[Tensor]

    def gradients(
        self,
        used: Sequence[Tensor],
        x: Float[Tensor, "K b d"],
        y: Int[Tensor, "K b"],
        recipe: Recipe,
        *,
        out: tuple[Packed, Packed],
    ) -> None:
        """Gradients of the loss with respect to ``used`` and to ``others``, into ``out``; buffers move on."""
        ...

    def input_gradient(
        self, used: Sequence[Tensor], x: Float[Tensor, "K b d"], y: Int[Tensor, "K b"], recipe: Recipe
    ) -> Float[Tensor, "K b d"]:
        """Gradient of the summed cross-entropy with respect to ``x``; ``buffers`` stay as they are."""
        ...

    def select(self, members: Tensor) -> Trained:
        """Some of the networks."""
        ...

    def ensemble(self, masks: Sequence[Tensor]) -> Ensemble:
        """The networks as they are now, with these masks."""
        ...


@dataclass
class TrainedMLP:
    """Fully connected networks: autograd's graph would cost more than the products at these sizes."""

    weights: Packed
    others: Packed
    buffers: list[Tensor] = field(default_factory=list)

    @staticmethod
    def of(ensemble: MLPEnsemble) -> TrainedMLP:
        """A copy of the ensemble's values; ``others`` are the biases, (K, 1, out)."""
        like = ensemble.weights[0]
        biases = [b[:, None] for b in ensemble.biases]
        return TrainedMLP(Packed.of(ensemble.weights, like=like), Packed.of(biases, like=like))

    def gradients(
        self,
        used: Sequence[Tensor],
        x: Float[Tensor, "K b d"],
        y: Int[Tensor, "K b"],
        recipe: Recipe,
        *,
        out: tuple[Packed, Packed],
    ) -> None:
        """As :meth:`Trained.gradients`."""
        used = [_low(w, recipe) for w in used]
        hidden, error = self._errors(used, _low(x, recipe), y)
        error /= y.shape[1]
        by_weight, by_bias = (packed.parts for packed in out)
        for i in reversed(range(len(used))):
            torch.sum(error, 1, keepdim=True, out=by_bias[i])
            error = _low(error, recipe)
            if recipe.bfloat16:
                by_weight[i].copy_(torch.bmm(error.mT, hidden[i]))
            else:
                torch.bmm(error.mT, hidden[i], out=by_weight[i])
            if i:
                error = torch.bmm(error, used[i]).to(out[0].buffer.dtype)
                if recipe.activation_l1 and i == len(used) - 1:
                    error += recipe.activation_l1 / y.shape[1]
                error = torch.ops.aten.threshold_backward(error, hidden[i], 0)  # 0 where the unit is

    def input_gradient(
        self, used: Sequence[Tensor], x: Float[Tensor, "K b d"], y: Int[Tensor, "K b"], recipe: Recipe
    ) -> Float[Tensor, "K b d"]:
        """As :meth:`Trained.input_gradient`."""
        used = [_low(w, recipe) for w in used]
        hidden, error = self._errors(used, _low(x, recipe), y)
        error = _low(error, recipe)
        for i in reversed(range(1, len(used))):
            error = torch.bmm(error, used[i]).mul_(hidden[i] > 0)
        return torch.bmm(error, used[0]).to(x.dtype)

    def select(self, members: Tensor) -> TrainedMLP:
        """As :meth:`Trained.select`."""
        return TrainedMLP(self.weights.select(members), self.others.select(members))

    def ensemble(self, masks: Sequence[Tensor]) -> MLPEnsemble:
        """As :meth:`Trained.ensemble`."""
        biases = tuple(b[:, 0] for b in self.others.parts)
        return MLPEnsemble(self.weights.parts, biases, tuple(m.bool() for m in masks))

    def _errors(self, used: Sequence[Tensor], x: Tensor, y: Tensor) -> tuple[list[Tensor], Tensor]:
        """Inputs of every layer, and the cross-entropy's gradient with respect to the scores."""
        hidden, biases = [x], [b.to(x.dtype) for b in self.others.parts]
        for weight, bias in zip(used[:-1], biases[:-1], strict=True):
            hidden.append(torch.baddbmm(bias, hidden[-1], weight.mT).relu_())
        scores = torch.baddbmm(biases[-1], hidden[-1], used[-1].mT).to(self.weights.buffer.dtype)
        if scores.shape[2] == 1:
            return hidden, scores.sigmoid() - y[..., None]
        error = scores.softmax(2)
        error.scatter_add_(2, y[..., None], error.new_full((1, 1, 1), -1.0).expand(*y.shape, 1))
        return hidden, error


@dataclass
class TrainedModule:
    """Networks of one module class, evaluated in train mode: batch-norm uses and follows its own batch."""

    weights: Packed
    others: Packed
    buffers: list[Tensor]
    start: ModuleEnsemble
    module: nn.Module
    names: tuple[list[str], list[str], list[str]]

    @staticmethod
    def of(ensemble: ModuleEnsemble, *, compiled: str = "") -> TrainedModule:
        """A copy of the ensemble's values, and of its module in train mode, compiled for one on a GPU."""
        module, like = copy.deepcopy(ensemble.module).train(), ensemble.weights[0]
        if frozen := [name for name, own in module.named_parameters() if not own.requires_grad]:
            raise InvalidInput(
                f"parameter {frozen[0]} is frozen, but training changes all; give networks whose parameters "
                "have requires_grad set: module.requires_grad_()"
            )
        if compiled and like.device.type == "cuda" and ensemble.members == 1:
            torch.compiler.reset()  # of earlier trainings' modules, which would fill its cache
            compile_whole(module, mode=compiled)
        weights = prunable_names(module)
        others = [name for name, _ in module.named_parameters() if name not in weights]
        buffers = [name for name in ensemble.state if name not in weights and name not in others]
        return TrainedModule(
            Packed.of([ensemble.state[name] for name in weights], like=like),
            Packed.of([ensemble.state[name] for name in others], like=like),
            [ensemble.state[name].clone() for name in buffers],
            ensemble,
            module,
            (weights, others, buffers),
        )

    def gradients(
        self,
        used: Sequence[Tensor],
        x: Float[Tensor, "K b d"],
        y: Int[Tensor, "K b"],
        recipe: Recipe,
        *,
        out: tuple[Packed, Packed],
    ) -> None:
        """As :meth:`Trained.gradients`."""
        leaves = [t.detach().requires_grad_() for t in (*used, *self.others.parts)]
        scores, active = self._forward(leaves, self.buffers, x, recipe, activations=recipe.activation_l1 > 0)
        loss = _loss(scores, y) / y.shape[1]
        if recipe.activation_l1:
            loss = loss + recipe.activation_l1 * active.abs().sum() / y.shape[1]
        found = torch.autograd.grad(loss, leaves, materialize_grads=True)
        torch._foreach_copy_([*out[0].parts, *out[1].parts], list(found))

    def input_gradient(
        self, used: Sequence[Tensor], x: Float[Tensor, "K b d"], y: Int[Tensor, "K b"], recipe: Recipe
    ) -> Float[Tensor, "K b d"]:
        """As :meth:`Trained.input_gradient`."""
        leaf = x.detach().requires_grad_()
        buffers = [b.clone() for b in self.buffers]
        scores, _ = self._forward([*used, *self.others.parts], buffers, leaf, recipe, activations=False)
        return torch.autograd.grad(_loss(scores, y), leaf)[0]

    def select(self, members: Tensor) -> TrainedModule:
        """As :meth:`Trained.select`."""
        weights, others = self.weights.select(members), self.others.select(members)
        buffers = [b[members] for b in self.buffers]
        return TrainedModule(weights, others, buffers, self.start, self.module, self.names)

    def ensemble(self, masks: Sequence[Tensor]) -> ModuleEnsemble:
        """As :meth:`Trained.ensemble`."""
        state = self._state([*self.weights.parts, *self.others.parts], self.buffers)
        start = self.start
        ordered = {name: state[name] for name in start.state}
        kept = tuple(m.bool() for m in masks)
        return ModuleEnsemble(start.module, ordered, kept, start.shape, start.outputs)

    def _state(self, parameters: Sequence[Tensor], buffers: Sequence[Tensor]) -> dict[str, Tensor]:
        names = [name for part in self.names for name in part]
        return dict(zip(names, [*parameters, *buffers], strict=True))

    def _forward(
        self,
        parameters: Sequence[Tensor],
        buffers: Sequence[Tensor],
        x: Tensor,
        recipe: Recipe,
        *,
        activations: bool,
    ) -> tuple[Tensor, Tensor]:
        """Scores (K, b, c), and the inputs of the last layer (K, b, ...) if asked for, else the scores."""
        state = self._state(parameters, buffers)
        images = x.unflatten(2, self.start.shape)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=recipe.bfloat16):
            if not activations:
                scores = evaluate(self.module, state, images).to(x.dtype)
                return scores, scores
            recorded = Recorded(self.module)
            both = evaluate(recorded, {f"module.{n}": t for n, t in state.items()}, images).to(x.dtype)
        outputs = self.start.outputs
        return both[..., :outputs], both[..., outputs:]


def compile_whole(module: nn.Module, *, mode: str) -> None:
    """Make the module compute its forward pass as one compiled graph.

    ``Module.compile`` would leave a container of PyTorch's own, such as ``Sequential``, to the interpreter,
    and make a graph of each of its parts that has code of its own.
    """
    forward = type(module).forward

    def whole(x: Tensor) -> Tensor:
        return forward(module, x)

    module.forward = torch.compile(whole, mode=mode)


def trained(ensemble: Ensemble, *, compiled: str = "") -> TrainedMLP | TrainedModule:
    """The ensemble's networks, ready to be trained; compiled as the recipe says.

    Raises: InvalidInput for another kind of ensemble.
    """
    if isinstance(ensemble, MLPEnsemble):
        return TrainedMLP.of(ensemble)
    if isinstance(ensemble, ModuleEnsemble):
        return TrainedModule.of(ensemble, compiled=compiled)
    raise InvalidInput(f"ensemble is a {type(ensemble).__name__}; give an MLPEnsemble or a ModuleEnsemble")


def _laid_out(piece: Tensor, shape: torch.Size) -> Tensor:
    """A vector as a tensor of this shape; a filter's channels lie together unless networks are batched."""
    if len(shape) != 5 or (piece.device.type != "cpu" and shape[0] > 1):
        return piece.view(shape)
    members, filters, channels, height, width = shape
    return piece.view(members, filters, height, width, channels).permute(0, 1, 4, 2, 3)


def _low(values: Tensor, recipe: Recipe) -> Tensor:
    """The values in the precision of the products."""
    return values.bfloat16() if recipe.bfloat16 else values


def _loss(scores: Tensor, y: Tensor) -> Tensor:
    """The cross-entropy summed over members and examples."""
    if scores.shape[2] == 1:
        scores = torch.cat([torch.zeros_like(scores), scores], dim=2)
    return cross_entropy(scores.flatten(0, 1), y.flatten(), reduction="sum")
