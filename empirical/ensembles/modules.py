"""Ensembles of any ``torch.nn.Module``: parameters stacked, evaluated by ``torch.func``.

On a GPU several members run as one batched pass (convolutions become grouped ones), a single one as the
module it is; on a CPU one after the other, which is as fast there, in chunks of examples that stay in the
cache.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.func import functional_call, vmap

from empirical.ensembles.assembling import assembled
from empirical.ensembles.mlp import MLPEnsemble
from empirical.ensembles.narrow import NarrowConvolutions
from empirical.ensembles.programs import ProgramModule
from empirical.ensembles.protocol import Cotangent, Ensemble, check_masked, share_of_zeros
from theory.types import InvalidInput, first_line

PRUNABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
# Attribute of an ensemble's module that says whether it takes images with channels last.
_CHANNELS_LAST = "takes_channels_last"
# Examples that a CPU takes through a network with convolutions at once: more leave the cache.
CHUNK = 50


@dataclass(frozen=True)
class ModuleEnsemble:
    """K networks of one module class: ``state`` maps every parameter and buffer name to a (K, ...) tensor.

    ``module`` says how to compute, in eval mode; its own values are not used. ``shape`` is that of one
    example, which the module receives unflattened. Prunable are the weights of linear and convolutional
    layers; they are kept masked: an entry whose mask is False is 0.
    Raises: InvalidInput if a state entry is missing, disagrees in shape with the module, or is not finite.
    """

    module: nn.Module
    state: Mapping[str, Float[Tensor, "K *_"]]
    masks: tuple[Bool[Tensor, "K *_"], ...]
    shape: tuple[int, ...]
    outputs: int

    def __post_init__(self) -> None:
        wanted = _own_state(self.module)
        for name, tensor in wanted.items():
            found = self.state.get(name)
            if found is None or found.shape[1:] != tensor.shape:
                shape = "missing" if found is None else f"of shape {tuple(found.shape)}"
                raise InvalidInput(
                    f"state entry {name} is {shape}; the module needs (K, *{tuple(tensor.shape)})"
                )
            if found.is_floating_point() and not torch.isfinite(found).all():
                bad = ~torch.isfinite(found.flatten(1)).all(1)
                raise InvalidInput(f"{name} of member {int(bad.nonzero()[0])} holds NaN or infinity")
        names = prunable_names(self.module)
        if not names:
            raise InvalidInput("module has no linear or convolutional layer; nothing can be pruned")
        if [m.shape for m in self.masks] != [self.state[name].shape for name in names]:
            raise InvalidInput(f"masks must match the weights {', '.join(names)} in number and shape")
        check_masked(self.weights, self.masks)

    @property
    def weights(self) -> tuple[Float[Tensor, "K *_"], ...]:
        """The prunable weights, in the module's order."""
        return tuple(self.state[name] for name in prunable_names(self.module))

    @property
    def members(self) -> int:
        """Number of networks K."""
        return len(self.masks[0])

    @property
    def inputs(self) -> int:
        """Number of input features d."""
        return math.prod(self.shape)

    @property
    def classes(self) -> int:
        """Number of classes c (2 when the module has a single output)."""
        return max(2, self.outputs)

    def sparsity(self) -> Float[Tensor, " K"]:
        """Fraction of prunable weights whose mask is False, per member."""
        return share_of_zeros(self.masks)

    def to(self, *, dtype: torch.dtype, device: torch.device) -> ModuleEnsemble:
        """The same networks in another precision or on another device; integer buffers keep their type."""
        moved = {
            name: tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else tensor.dtype)
            for name, tensor in self.state.items()
        }
        return replace(self, state=moved, masks=tuple(m.to(device=device) for m in self.masks))

    def select(self, members: Sequence[int] | Tensor) -> ModuleEnsemble:
        """The named members, in the given order; a member may be named more than once."""
        index = torch.as_tensor(members, device=self.masks[0].device)
        state = {name: tensor[index] for name, tensor in self.state.items()}
        return replace(self, state=state, masks=tuple(m[index] for m in self.masks))

    def joined(self, others: Sequence[ModuleEnsemble]) -> ModuleEnsemble:
        """These members, then those of the others. Raises: InvalidInput if the architectures differ."""
        every = [self, *others]
        layouts = {tuple((name, t.shape[1:]) for name, t in e.state.items()) for e in every}
        if len(layouts) != 1:
            raise InvalidInput(f"ensembles have {len(layouts)} different architectures; join equal ones only")
        for other in others:
            member = {name: tensor[0] for name, tensor in other.state.items()}
            if not _compute_alike(self.module, other.module, member, self.shape):
                raise InvalidInput(
                    "ensembles have modules that differ in what they compute; join equal ones only"
                )
        state = {name: torch.cat([e.state[name] for e in every]) for name in self.state}
        masks = tuple(torch.cat(layer) for layer in zip(*(e.masks for e in every), strict=True))
        return replace(self, state=state, masks=masks)

    def masked(self, masks: tuple[Bool[Tensor, "K *_"], ...]) -> ModuleEnsemble:
        """The same networks with further weights removed: a weight stays where both masks keep it."""
        kept = tuple(old & new for old, new in zip(self.masks, masks, strict=True))
        return replace(self, state=apply_masks(self.module, self.state, kept), masks=kept)

    @torch.no_grad()
    def logits(self, x: Float[Tensor, "*K n d"]) -> Float[Tensor, "K n c"]:
        """Logits of every member; ``x`` is (n, d), shared, or (K, n, d), one batch per member."""
        return torch.cat([self._scores(part) for part in self._chunks(x)], dim=1)

    def logits_and_gradient(
        self, x: Float[Tensor, "*K n d"], cotangent: Cotangent
    ) -> tuple[Float[Tensor, "K n c"], Float[Tensor, "K n d"]]:
        """Logits g, and the input gradient of sum_k v_k g_k with v = cotangent(g) held fixed."""
        logits, gradients = self._differentiate(x, lambda scores: [cotangent(scores)])
        return logits, gradients[0]

    def stored(self, x: Float[Tensor, "K n d"]) -> Float[Tensor, "K n d"]:
        """The same examples."""
        return x

    def logits_and_jacobian(
        self, x: Float[Tensor, "*K n d"]
    ) -> tuple[Float[Tensor, "K n c"], Float[Tensor, "K n c d"]]:
        """Logits and their gradients with respect to the input, for every class."""
        logits, rows = self._differentiate(x, _unit_rows)
        return logits, torch.stack(rows, dim=2)

    def _differentiate(
        self, x: Tensor, cotangents: Callable[[Tensor], Sequence[Tensor]]
    ) -> tuple[Tensor, list[Tensor]]:
        """Logits, and one input gradient for every cotangent."""
        with torch.enable_grad():
            parts = [part.detach().requires_grad_() for part in self._chunks(x)]
            scores = [self._scores(part) for part in parts]
        logits = torch.cat(scores, dim=1).detach()
        chosen = [v.split([part.shape[1] for part in parts], dim=1) for v in cotangents(logits)]
        last = len(chosen) - 1
        gradients = [
            torch.cat(
                [
                    torch.autograd.grad(g, part, w, retain_graph=i < last)[0]
                    for g, part, w in zip(scores, parts, v, strict=True)
                ],
                dim=1,
            )
            for i, v in enumerate(chosen)
        ]
        return logits, gradients

    def _chunks(self, x: Tensor) -> Sequence[Tensor]:
        """``x`` as (K, n, d), in parts along the examples."""
        if x.ndim == 2:
            x = x.expand(self.members, *x.shape)
        return x.split(CHUNK, dim=1) if x.device.type == "cpu" else [x]

    def _scores(self, x: Tensor) -> Tensor:
        """Logits (K, n, c) of a batch per member."""
        scores = evaluate(self.module, self.state, x.unflatten(2, self.shape))
        return torch.cat([torch.zeros_like(scores), scores], dim=2) if self.outputs == 1 else scores


def apart(ensemble: Ensemble) -> Ensemble:
    """The same networks with a module of their own: one that several threads call mixes up weights."""
    if isinstance(ensemble, ModuleEnsemble):
        return replace(ensemble, module=copy.deepcopy(ensemble.module))
    return ensemble


def evaluate(module: nn.Module, state: Mapping[str, Tensor], x: Float[Tensor, "K n *shape"]) -> Tensor:
    """The outputs (K, n, c) of every member on its own batch; differentiable in the state and in x."""
    return (_one_by_one if x.device.type == "cpu" or len(x) == 1 else _at_once)(module, state, x)


def _one_by_one(module: nn.Module, state: Mapping[str, Tensor], x: Tensor) -> Tensor:
    # The gradient of unbind is one stack; that of an index is a zero tensor as large as all members.
    # Buffers, which batch-norm changes in place, must be indexed.
    rows = {n: t.unbind() if t.requires_grad else [t[k] for k in range(len(t))] for n, t in state.items()}
    members = [{name: row[k] for name, row in rows.items()} for k in range(len(x))]
    parts = [_channels_last(part) if getattr(module, _CHANNELS_LAST, False) else part for part in x]
    with NarrowConvolutions() if x.requires_grad and x.device.type == "cpu" else nullcontext():
        return torch.stack(
            [functional_call(module, m, (part,)) for m, part in zip(members, parts, strict=True)]
        )


def _channels_last(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Images whose channels lie together: a CPU's convolutions and poolings are faster on these."""
    if x.shape[1] > 1:
        return x.contiguous(memory_format=torch.channels_last)
    return x[:, 0, :, :, None].permute(0, 3, 1, 2)  # only the strides change: they decide


def _at_once(module: nn.Module, state: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return vmap(lambda s, part: functional_call(module, s, (part,)), randomness="different")(dict(state), x)


def prunable_names(module: nn.Module) -> list[str]:
    """Names of the weights of all linear and convolutional layers, in the module's order, shared ones once.

    A saved program has no layers; its module names the weights itself.
    """
    if isinstance(module, ProgramModule):
        return list(module.weights)
    own = {id(parameter): name for name, parameter in module.named_parameters()}
    layers = [layer for layer in module.modules() if isinstance(layer, PRUNABLE)]
    return list(dict.fromkeys(own[id(layer.weight)] for layer in layers if id(layer.weight) in own))


def _own_state(module: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers of the module, a tied one under its first name alone."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def apply_masks(module: nn.Module, state: Mapping[str, Tensor], masks: Sequence[Tensor]) -> dict[str, Tensor]:
    """The state with every prunable weight multiplied by its mask."""
    names = prunable_names(module)
    return dict(state) | {name: state[name] * m for name, m in zip(names, masks, strict=True)}


def from_modules(modules: Sequence[nn.Module], *, shape: Sequence[int]) -> ModuleEnsemble:
    """An ensemble of given networks of one class, in their own precision; zero weights count as pruned.

    Weights that hooks or parametrizations compute (``torch.nn.utils.prune``, weight norm) are taken as they
    are in evaluation mode: :func:`empirical.ensembles.assembling.assembled`.
    Raises: InvalidInput if ``modules`` is empty, their parameters differ in name or shape, or they do not
    map a batch of ``shape`` to (batch, classes).
    """
    if isinstance(modules, nn.Module):
        raise InvalidInput(f"modules is one {type(modules).__name__}; pass a list: [module]")
    if isinstance(shape, int):
        raise InvalidInput(f"shape is {shape}; pass the shape of one example: ({shape},)")
    modules = [assembled(module) for module in modules]
    if not modules:
        raise InvalidInput("modules is empty; give at least one")
    states = [_own_state(module) for module in modules]
    layouts = {tuple((name, tensor.shape) for name, tensor in state.items()) for state in states}
    if len(layouts) != 1:
        raise InvalidInput("modules differ in parameters; an ensemble holds one architecture")
    template = copy.deepcopy(modules[0]).eval()
    outputs = _outputs(template, tuple(shape))
    for k, (module, own) in enumerate(zip(modules[1:], states[1:], strict=True), start=1):
        if not _compute_alike(template, copy.deepcopy(module).eval(), own, tuple(shape)):
            raise InvalidInput(
                f"modules 0 and {k} differ in what they compute; an ensemble holds one architecture"
            )
    setattr(template, _CHANNELS_LAST, _takes_channels_last(template, tuple(shape)))
    state = {name: torch.stack([s[name].detach() for s in states]) for name in states[0]}
    masks = tuple(state[name] != 0 for name in prunable_names(template))
    return ModuleEnsemble(template, state, masks, tuple(shape), outputs)


def _compute_alike(
    module: nn.Module, other: nn.Module, state: Mapping[str, Tensor], shape: tuple[int, ...]
) -> bool:
    """Whether both modules, given this state, have the same scores at two random examples.

    What cannot be evaluated is left to what measures it.
    """
    if module is other:
        return True
    like = next(iter(state.values()))
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, *shape, generator=generator).to(like)
    scores = []
    for one in (module, other):
        with torch.random.fork_rng(devices=()), torch.no_grad():
            torch.manual_seed(0)
            try:
                scores.append(functional_call(one, dict(state), (x,)))
            except Exception:  # noqa: BLE001 - whatever the user's code raises
                return True
    first, second = scores
    if not isinstance(second, Tensor) or second.shape != first.shape:
        return False
    size = float(first.abs().nan_to_num(posinf=0.0).max())
    return torch.allclose(first, second, rtol=1e-3, atol=1e-5 * size, equal_nan=True)


def initialise_modules(
    build: Callable[[], nn.Module], *, shape: Sequence[int], seeds: Sequence[int], device: torch.device
) -> ModuleEnsemble:
    """Freshly built networks, one per seed; member k's weights depend on seeds[k] alone. All weights kept.

    Raises: InvalidInput if ``seeds`` is empty, or the network does not take ``shape``.
    """
    if not seeds:
        raise InvalidInput("seeds is empty; give at least one seed")
    modules = []
    for seed in seeds:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            modules.append(build())
    ensemble = from_modules(modules, shape=shape)
    kept = tuple(torch.ones_like(m) for m in ensemble.masks)
    return replace(ensemble, masks=kept).to(dtype=ensemble.weights[0].dtype, device=device)


def to_module(ensemble: MLPEnsemble | ModuleEnsemble, member: int) -> nn.Module:
    """Member ``member`` as an ordinary module in eval mode, on the CPU; an MLP becomes a ``Sequential``.

    A binary network keeps its single output.
    """
    if isinstance(ensemble, ModuleEnsemble):
        module = copy.deepcopy(ensemble.module)
        state = {name: tensor[member].cpu() for name, tensor in ensemble.state.items()}
        dtype = ensemble.weights[0].dtype
    else:
        modules: list[nn.Module] = [nn.Flatten()]
        for weight in ensemble.weights:
            modules += [nn.Linear(weight.shape[2], weight.shape[1]), nn.ReLU()]
        module = nn.Sequential(*modules[:-1])
        values = [
            t[member].cpu() for pair in zip(ensemble.weights, ensemble.biases, strict=True) for t in pair
        ]
        state, dtype = dict(zip(module.state_dict(), values, strict=True)), ensemble.weights[0].dtype
    module.to(dtype=dtype, device="cpu")
    with torch.no_grad():
        for name, tensor in _own_state(module).items():
            tensor.copy_(state[name])
    return module.eval()


def from_stack(module: nn.Module) -> MLPEnsemble | None:
    """A ``Sequential`` of linear layers with a ReLU between any two as one member; None for others.

    None too where a layer computes anything else than its class does: in a subclass, or by a hook.
    """
    module = assembled(module)
    if not isinstance(module, nn.Sequential) or not all(map(_is_plain, [module, *module])):
        return None
    layers = [layer for layer in module if not isinstance(layer, nn.Flatten)]
    linear = [layer for layer in layers[::2] if isinstance(layer, nn.Linear)]
    between = [layer for layer in layers[1::2] if isinstance(layer, nn.ReLU)]
    if len(linear) != len(between) + 1 or len(linear) + len(between) != len(layers):
        return None
    if any(one.out_features != other.in_features for one, other in pairwise(linear)):  # of rows of images
        return None
    weights = tuple(layer.weight.detach()[None] for layer in linear)
    none = [weight.new_zeros(1, weight.shape[1]) for weight in weights]
    biases = tuple(
        zero if layer.bias is None else layer.bias.detach()[None]
        for layer, zero in zip(linear, none, strict=True)
    )
    return MLPEnsemble(weights, biases, tuple(weight != 0 for weight in weights))


_PLAIN = (nn.Sequential, nn.Flatten, nn.Linear, nn.ReLU)


def _is_plain(module: nn.Module) -> bool:
    """Whether it computes what one of these classes does."""
    if not any(isinstance(module, kind) and type(module).forward is kind.forward for kind in _PLAIN):
        return False
    if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) != (1, -1):
        return False
    return not (module._forward_pre_hooks or module._forward_hooks)


def _unit_rows(logits: Tensor) -> list[Tensor]:
    """One cotangent for every logit."""
    rows = []
    for k in range(logits.shape[2]):
        rows.append(torch.zeros_like(logits))
        rows[-1][..., k] = 1.0
    return rows


def _takes_channels_last(module: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether the module, in eval mode, takes images whose channels lie together: one with a view may not."""
    if len(shape) != 3:
        return False
    like = next(module.parameters())
    try:
        with torch.no_grad():
            module(_channels_last(like.new_zeros(2, *shape)))
    except RuntimeError:
        return False
    return True


def _outputs(module: nn.Module, shape: tuple[int, ...]) -> int:
    """Number of outputs for examples of this shape."""
    first = next(module.parameters(), None)
    if first is None:
        raise InvalidInput("module has no parameters; there is nothing to prune")
    try:
        with torch.no_grad():
            scores = module(first.new_zeros(2, *shape))
    except Exception as error:  # whatever the user's code raises
        raise InvalidInput(
            f"the module does not take examples of shape {shape} ({first_line(error)}); "
            "give the shape that it takes (--shape)"
        ) from error
    if not isinstance(scores, Tensor) or scores.ndim != 2 or len(scores) != 2:
        found = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise InvalidInput(
            f"the module maps {(2, *shape)} to {found}; it must return the scores alone, (2, classes), or "
            "(2, 1) where one score tells two classes apart"
        )
    return scores.shape[1]
