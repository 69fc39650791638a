"""The scores of a network that returns probabilities.

A softmax, its logarithm or a sigmoid at the end changes no decision, and so no radius. But it makes
gradients vanish where the network is sure, which attacks follow, and no bound understands it.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from empirical.datasets import Examples
from empirical.own_network.loading import Network
from theory.types import InvalidInput

# Operations at whose end the largest of several entries is where it was before; a single one has its sign.
_SOFTMAX = {"softmax", "_softmax", "log_softmax", "_log_softmax"}
_LAST = _SOFTMAX | {"sigmoid", "log_sigmoid"}
# Rounding of probabilities in half precision.
_SLACK = 1e-2


def scores_alone(network: Network, data: Examples, shape: Sequence[int] | None) -> Network:
    """The network without a softmax, its logarithm or a sigmoid at its end; itself if it has none.

    Its decisions and radii are the same; margins and Lipschitz constants are those of the scores. ``shape``
    is that of one example, by default the network's own, else the data's.

    Raises: InvalidInput for a shape that has not as many entries as an example.
    """
    features = math.prod(data.shape)
    if shape is not None and (min(shape, default=0) < 1 or math.prod(shape) != features):
        raise InvalidInput(f"shape is {tuple(shape)}; the examples have {features} features")
    program = network.module
    if isinstance(program, nn.Module):
        wanted = tuple(shape or network.shape or data.shape)
        fits = math.prod(wanted) == features
        found = _traced(program, wanted) if fits else None  # what measures it tells what does not
        if found is None:
            return network
        program = found
    name = _take_off(program)
    if not name:
        return network
    return replace(network, module=program, recognised=f"{network.recognised}, without the {name} at its end")


def _traced(module: nn.Module, shape: tuple[int, ...]) -> ExportedProgram | None:
    """A module that seems to return probabilities as a program; None for others, or where that fails."""
    like = next(module.parameters(), torch.zeros(()))
    if like.dtype in (torch.float16, torch.bfloat16):
        module = copy.deepcopy(module).float()  # exact
    example = torch.zeros(2, *shape, dtype=next(module.parameters(), like).dtype, device=like.device)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scores = module(example)
            bounded = bool((scores <= _SLACK).all() or ((scores >= 0) & (scores <= 1 + _SLACK)).all())
            if not bounded:
                return None
            return torch.export.export(module, (example,), dynamic_shapes=({0: Dim.AUTO},))
    except Exception:  # noqa: BLE001 - whatever the user's module raises; what measures it tells why
        return None


def _take_off(program: ExportedProgram) -> str:
    """Remove the last operation if it is such a one; its name, or an empty text."""
    output = next(node for node in program.graph.nodes if node.op == "output")
    returned = output.args[0]
    last = returned[0] if isinstance(returned, list | tuple) and len(returned) == 1 else None
    if not isinstance(last, torch.fx.Node) or last.op != "call_function" or len(last.users) != 1:
        return ""
    name, value = getattr(last.target, "__name__", "").split(".")[0], last.meta.get("val")
    if name not in _LAST or not isinstance(value, torch.Tensor) or value.dim() != 2:
        return ""
    before = last.args[0]
    axis = last.args[1] if len(last.args) > 1 else last.kwargs.get("dim")
    if not isinstance(before, torch.fx.Node) or (name in _SOFTMAX and axis not in (1, -1)):
        return ""
    output.replace_input_with(last, before)
    program.graph.erase_node(last)
    program.graph_signature.replace_all_uses(last.name, before.name)
    program.graph_module.recompile()
    return name.lstrip("_")
