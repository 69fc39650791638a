"""A network of the user's own as all commands take it: its scores, and its weights as they take part in them.

A softmax, its logarithm or a sigmoid at the end changes no decision, and so no radius. But it makes
gradients vanish where the network is sure, which attacks follow, and no bound understands it.
"""

from __future__ import annotations

import copy
import inspect
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from empirical.datasets import CHANNELS_FIRST, Examples
from empirical.ensembles import from_stack
from empirical.ensembles.assembling import assembled
from empirical.ensembles.modules import prunable_names
from empirical.ensembles.programs import ProgramModule
from empirical.own_network.loading import Network
from theory.graph import trace
from theory.types import InvalidInput, first_line

# Operations at whose end the largest of several entries is where it was before; a single one has its sign.
_SOFTMAX = {"softmax", "_softmax", "log_softmax", "_log_softmax"}
_LAST = _SOFTMAX | {"sigmoid", "log_sigmoid"}
# What torch.nn.utils.prune and parametrizations make of a parameter's name.
_SPLIT = re.compile(r"_orig$|parametrizations\.(\w+)\.original\d*$")
# Examples that show what the network returns, and the rounding of these in half precision.
_LOOKED_AT, _SLACK = 100, 1e-2


def prepare(network: Network, data: Examples, shape: Sequence[int] | None) -> Network:
    """The network for examples of this shape, by default its own, else the data's, with all fields filled.

    A softmax, its logarithm or a sigmoid at its end is taken off: its decisions and radii stay the same;
    margins and Lipschitz constants are those of the scores. Where layers compute their weights from their
    parameters, as masked ones do, the network is traced, and each weight becomes a parameter.

    Raises: InvalidInput for a shape that does not fit the examples or the network, or a single output that is
    a probability.
    """
    if network.prepared:
        return network
    wanted = data.fitted(tuple(shape) if shape else network.shape)
    found = replace(network, shape=wanted, prepared=True)
    if isinstance(network.module, nn.Module):
        module = assembled(network.module)
        names = prunable_names(module)
        state = module.state_dict()
        weights = network.weights or {name: state[name].detach() for name in names}
        found = replace(found, module=module, weights=weights)
        program = None if from_stack(module) else _traced(module, wanted)
        found = replace(found, computed=_digest(module, program))
    else:
        module, program = None, network.module
    if program is not None:
        program, removed = _scores_alone(program)
        weights = _named(ProgramModule(program).weights)
        if removed:
            found = replace(found, recognised=f"{found.recognised}, without the {removed} at its end")
        as_stored = not weights or _content(weights.values()) == _content(found.weights.values())
        if module is None or removed or not as_stored:
            found = replace(found, module=program, weights=weights)
        found = replace(found, program=program, given=None if removed else module)
    return _with_scores(found, data)


def _named(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a program by the names that the layers' own have.

    What pruning or a parametrization computes a weight from is not what it is.
    """
    plain = [name.removeprefix("program.") for name in weights]
    own = [_SPLIT.sub(r"\1", name) for name in plain]
    return dict(zip(own if len(set(own)) == len(own) else plain, weights.values(), strict=True))


def first_scores(network: Network, data: Examples) -> Tensor | None:
    """The outputs (n, classes or 1) at the first 100 examples; None where there are none of this shape."""
    module = _runnable(network)
    like = next(module.parameters(), torch.zeros(()))
    x = torch.tensor(data.first(_LOOKED_AT).x.reshape(-1, *(network.shape or data.shape)))
    try:
        with torch.no_grad():
            scores = module(x.to(like))
        return scores if scores.shape[0] == len(x) and scores.dim() == 2 and scores.shape[1] else None
    except Exception:  # noqa: BLE001 - whatever the user's module raises; what measures it tells why
        return None


def _runnable(network: Network) -> nn.Module:
    return network.module if isinstance(network.module, nn.Module) else ProgramModule(network.module)


def _check_shape(network: Network, data: Examples) -> None:
    """Raise InvalidInput if the network refuses examples of its shape, with what to do if another one fits.

    What is no matter of shapes is left to what measures it.
    """
    shape = network.shape or data.shape
    try:
        module = copy.deepcopy(_runnable(network)).double()  # as it is measured
    except Exception:  # noqa: BLE001 - whatever the user's module raises
        return
    try:
        _of_zeros(module, shape)
        return
    except (RuntimeError, ValueError, IndexError) as error:
        why = first_line(error)
    except Exception:  # noqa: BLE001 - whatever the user's module raises
        return
    remedy = "give data of a shape that it takes"
    if fitting := next((other for other in _other_shapes(data) if _takes(module, other)), None):
        remedy = f"give --shape {','.join(map(str, fitting))}"
    elif len(data.shape) == 3 and _takes(module, data.channels_first):
        remedy = f"channels last: store {CHANNELS_FIRST}"
    raise InvalidInput(f"network {network.name} does not take examples of shape {shape} ({why}); {remedy}")


def _other_shapes(data: Examples) -> Iterator[tuple[int, ...]]:
    """The examples flat, as images of one channel, and as square ones of any number of channels."""
    size = math.prod(data.shape)
    channels = (c for c in range(1, size + 1) if size % c == 0)
    squares = ((c, side, side) for c in channels for side in [math.isqrt(size // c)])
    for shape in ((size,), (1, *data.shape), *squares):
        try:
            yield data.fitted(shape)
        except InvalidInput:
            continue


def _takes(module: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether it has scores for examples of this shape."""
    try:
        scores = _of_zeros(module, shape)
    except Exception:  # noqa: BLE001 - whatever the user's module raises
        return False
    return isinstance(scores, Tensor) and scores.dim() == 2 and len(scores) == 2


def _of_zeros(module: nn.Module, shape: tuple[int, ...]) -> object:
    """What it returns for two examples."""
    with torch.no_grad():
        return module(torch.zeros(2, *shape, dtype=torch.float64))


def _digest(module: nn.Module, program: ExportedProgram | None) -> str:
    """SHA-256 of what a module computes: of its program, else of its parts and their code."""
    if program is not None:
        text, tensors = program.graph_module.code, program.state_dict | program.constants
    else:
        kinds = {kind for part in module.modules() for kind in type(part).__mro__}
        own = {kind for kind in kinds if kind.__module__.partition(".")[0] not in ("torch", "builtins")}
        text, tensors = "\n".join([repr(module), *sorted(map(_source, own))]), module.state_dict()
    digest = sha256(text.encode())
    for name, tensor in tensors.items():
        digest.update(name.encode())
        if isinstance(tensor, Tensor):
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _source(made: type) -> str:
    """A class's code, as far as it can be had."""
    try:
        return inspect.getsource(made)
    except (OSError, TypeError):
        return made.__qualname__


def _content(weights: Iterable[Tensor]) -> list[bytes]:
    """Digests of the weights, in whatever order."""
    return sorted(sha256(weight.contiguous().cpu().numpy().tobytes()).digest() for weight in weights)


def _with_scores(network: Network, data: Examples) -> Network:
    """The network, said to return probabilities if it does. Raises: InvalidInput if it returns only one.

    Probabilities still order several classes, but a single one says nothing by its sign.
    """
    scores = first_scores(network, data)
    if scores is None:
        _check_shape(network, data)
        return network
    columns = scores.shape[1]
    between = bool(((scores >= 0) & (scores <= 1)).all())
    labels = torch.tensor(data.y[: len(scores)] > 0, device=scores.device)
    halved = bool(((scores[:, 0] > 0.5) == labels).sum() > ((scores[:, 0] > 0) == labels).sum())
    summing = bool(((scores.double().sum(-1) - 1).abs() <= _SLACK).all())
    if columns == 1 and between and halved:
        raise InvalidInput(
            f"network {network.name} returns one output, which lies in [0, 1] for all examples and tells the "
            "classes apart at 0.5; one output is judged by its sign: return the score before the sigmoid"
        )
    if columns > 1 and between and summing:
        note = "whose probabilities may hide gradients from attacks (return the scores before them)"
        return replace(network, recognised=f"{network.recognised}, {note}")
    return network


def _traced(module: nn.Module, shape: tuple[int, ...]) -> ExportedProgram | None:
    """A module as a program; None where that fails: what measures it tells why."""
    try:
        return trace(module, shape)
    except InvalidInput:
        return None


def _scores_alone(program: ExportedProgram) -> tuple[ExportedProgram, str]:
    """The program without its last operation if it is such a one, and its name; else itself, and no text."""
    output = next(node for node in program.graph.nodes if node.op == "output")
    returned = output.args[0]
    last = returned[0] if isinstance(returned, list | tuple) and len(returned) == 1 else None
    if not isinstance(last, torch.fx.Node) or last.op != "call_function" or len(last.users) != 1:
        return program, ""
    name, value = getattr(last.target, "__name__", "").split(".")[0], last.meta.get("val")
    if name not in _LAST or not isinstance(value, torch.Tensor) or value.dim() != 2:
        return program, ""
    before = last.args[0]
    axis = last.args[1] if len(last.args) > 1 else last.kwargs.get("dim")
    if not isinstance(before, torch.fx.Node) or (name in _SOFTMAX and axis not in (1, -1)):
        return program, ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shorter = copy.deepcopy(program)  # the given one stays as it is
    output = next(node for node in shorter.graph.nodes if node.op == "output")
    last, before = (next(n for n in shorter.graph.nodes if n.name == m.name) for m in (last, before))
    output.replace_input_with(last, before)
    shorter.graph.erase_node(last)
    shorter.graph_signature.replace_all_uses(last.name, before.name)
    shorter.graph_module.recompile()
    return shorter, name.lstrip("_")
