"""Modules whose weights are computed at every call, as by pruning or weight norm, with plain weights."""

from __future__ import annotations

import copy

from torch import Tensor, nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

_WRAPPED = (nn.DataParallel, nn.parallel.DistributedDataParallel)
_HOOKS = (BasePruningMethod, WeightNorm, SpectralNorm)


def assembled(module: nn.Module) -> nn.Module:
    """The module with each weight a plain parameter; itself if it is so already.

    Weights that ``torch.nn.utils.prune``, weight norm, spectral norm or a parametrization computes get the
    values that they have in evaluation mode, and the module is in that mode then. Wrappers for several
    devices and of ``torch.compile`` are taken off. The given module is left as it is.
    """
    module = getattr(module, "_orig_mod", module)
    module = module.module if isinstance(module, _WRAPPED) else module
    parts = list(module.modules())
    if not any(parametrize.is_parametrized(part) or _hooks(part) for part in parts):
        return module
    computed = [value for part in parts for value in vars(part).values() if isinstance(value, Tensor)]
    module = copy.deepcopy(module, {id(value): value.detach().clone() for value in computed}).eval()
    for part in module.modules():
        if parametrize.is_parametrized(part):
            for name in [name for name, _ in part.get_submodule("parametrizations").named_children()]:
                parametrize.remove_parametrizations(part, name, leave_parametrized=True)
        for hook in _hooks(part):
            if isinstance(hook, BasePruningMethod):
                prune.remove(part, hook._tensor_name)
            elif isinstance(hook, WeightNorm):
                remove_weight_norm(part, hook.name)
            else:
                remove_spectral_norm(part, hook.name)
    return module


def _hooks(part: nn.Module) -> list[BasePruningMethod | WeightNorm | SpectralNorm]:
    """The hooks that compute a weight before every call."""
    return [hook for hook in part._forward_pre_hooks.values() if isinstance(hook, _HOOKS)]
