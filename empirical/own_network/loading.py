"""A user's own network from its file: a ``torch.export`` program, or a checkpoint and what it belongs to.

Nothing in a model file is run: checkpoints are read with ``weights_only=True`` or as safetensors, programs by
:mod:`empirical.ensembles.programs`. Code is imported only from where the user points with ``arch``.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import pickle
import re
import sys
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn.parameter import is_lazy

from empirical.ensembles.assembling import assembled
from empirical.ensembles.programs import check_stored, input_shape, load_program
from theory.types import InvalidInput, first_line

_TORCH_SAVE = (".pt", ".pth", ".ckpt", ".bin")
# Bytes of all weights that a small file may declare, and how often a larger one may use what it stores: tied
# weights stand under several names.
_SMALL, _SHARED = 2**24, 4
# Number types of layers.
_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# What PyTorch raises for number types it lacks and sides whose product overflows.
_TENSOR_ERRORS = (RuntimeError, KeyError, TypeError, AttributeError)
# Where training loops keep the state dict among other things.
_NESTED = ("state_dict", "model_state_dict", "model", "net", "network", "weights")
# What wrappers of a whole network put before the names of its weights.
_PREFIXES = ("module.", "_orig_mod.")


@dataclass(frozen=True)
class Network:
    """A network as read from its file, and what it was recognised as.

    ``shape`` is one example's and ``weights`` are those of its linear layers and convolutions by name, of
    which pruning removes entries, where the file tells them.
    :func:`empirical.own_network.preparation.prepare` fills in the rest; ``program`` is the network traced,
    where that can be done, ``given`` the module that was traced, if it returns the same, and ``computed``
    a digest of what a module computes, which its file alone does not tell.
    """

    name: str
    sha256: str
    recognised: str
    module: nn.Module | ExportedProgram
    shape: tuple[int, ...] | None
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    program: ExportedProgram | None = None
    given: nn.Module | None = None
    computed: str = ""
    prepared: bool = False

    @property
    def sparsity(self) -> float:
        """Share of the weights that are 0; 0 where there are none."""
        zeros = sum(int((weight == 0).sum()) for weight in self.weights.values())
        return zeros / max(1, sum(weight.numel() for weight in self.weights.values()))

    @property
    def settings(self) -> dict[str, str]:
        """What names it in the settings of a run."""
        return {
            "model": self.name,
            "model_sha256": self.sha256,
            "recognised": self.recognised,
            "computed_sha256": self.computed,
        }


def is_program(path: Path) -> bool:
    """Whether the file's name says that it is a torch.export program, which brings its own architecture."""
    return path.suffix == ".pt2"


def load_network(
    path: Path, *, arch: str | None = None, arch_args: Mapping[str, object] | None = None
) -> Network:
    """The network in a ``.pt2`` program, or in a checkpoint (``.safetensors`` or of ``torch.save``).

    A checkpoint is loaded into ``arch``, "package.module:name" or "FILE.py:name" of a class or function that
    is called with ``arch_args``; without it, it must be plainly a stack of linear layers, between which ReLUs
    are assumed.
    Weights that ``torch.nn.utils.prune`` split into ``_orig`` and ``_mask`` are put together again, and a
    prefix that wrappers (``torch.compile``, ``DataParallel``) put before all names is taken off.
    Raises: InvalidInput for a missing, damaged or pickled file, an unknown format, an ``arch`` that cannot be
    imported or called, or weights that do not match it.
    """
    if not path.is_file():
        raise InvalidInput(f"model is {str(path)!r}; no such file")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if arch_args and arch is None:
        raise InvalidInput(f"arch_args is {dict(arch_args)}, but there is no arch to give them to")
    if is_program(path):
        if arch is not None:
            raise InvalidInput(f"model {str(path)!r} is a program, which needs no arch; leave {arch!r} out")
        program = load_program(path)
        _check_evaluates(path.name, program)
        return Network(path.name, digest, "torch.export program", program, _program_shape(program))
    state = _unmasked(_state(path))
    if arch is not None:
        module = _filled(_built(arch, arch_args or {}), state, arch)
        given = ", ".join(f"{name}={json.dumps(value)}" for name, value in (arch_args or {}).items())
        made = Path(arch).name + (f"({given})" if given else "")
        return Network(path.name, digest, f"checkpoint of {made}", module, None)
    module, widths = _fully_connected(path, state)
    recognised = f"fully connected {'-'.join(map(str, widths))}, ReLUs assumed between the layers"
    weights = {name: tensor for name, tensor in state.items() if tensor.dim() == 2}
    return Network(path.name, digest, recognised, module, (widths[0],), weights)


def _check_evaluates(name: str, program: ExportedProgram) -> None:
    """Raise InvalidInput for a program in training mode: dropout at work, or batch-norm on the batch's
    statistics though it has running ones.
    """
    told = f"network {name} was exported in training mode; export it after module.eval()"
    given = [_arguments(node) for node in program.graph.nodes if node.op == "call_function"]
    if any(asked.get("training") is True and asked.get("running_mean") is not None for asked in given):
        raise InvalidInput(told)
    if any(asked.get("train") is True and (asked.get("p") or asked.get("dropout")) for asked in given):
        raise InvalidInput(f"{told}, and give F.dropout training=self.training")


def _arguments(node: torch.fx.Node) -> Mapping[str, object]:
    """What an operation is given, by the names in its schema."""
    schema = getattr(node.target, "_schema", None)
    names = [argument.name for argument in schema.arguments] if schema else []
    return dict(zip(names, node.args, strict=False)) | dict(node.kwargs)


def _program_shape(program: ExportedProgram) -> tuple[int, ...] | None:
    """Shape of one example of the program's first input."""
    shape = input_shape(program)
    return tuple(int(side) for side in shape[1:]) if shape is not None else None


def _state(path: Path) -> dict[str, Tensor]:
    """The state dict in a checkpoint. Raises: InvalidInput as :func:`load_network`."""
    name = repr(str(path))
    if path.suffix == ".safetensors":
        try:
            return _checked(name, load_file(path), path)
        except (SafetensorError, OSError, *_TENSOR_ERRORS) as error:
            raise InvalidInput(
                f"model {name} is no readable safetensors file ({first_line(error)})"
            ) from error
    if path.suffix not in _TORCH_SAVE:
        known = ", ".join((".pt2", ".safetensors", *_TORCH_SAVE))
        raise InvalidInput(f"model {name} has an unknown format {path.suffix!r}; known are {known}")
    for where in ("meta", "cpu"):  # first without memory, to see how much is declared
        state = _checked(name, _unpickled(name, path, where), path)
    return state


def _unpickled(name: str, path: Path, where: str) -> object:
    """What a file of ``torch.save`` holds, on this device. Raises: InvalidInput as :func:`load_network`."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if any("/code/" in entry for entry in archive.namelist()):
                    raise InvalidInput(
                        f"model {name} is a TorchScript archive; save the weights alone: "
                        "torch.save(module.state_dict(), path)"
                    )
                check_stored(archive, path)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "TypedStorage is deprecated")  # of quantized tensors
            return torch.load(path, map_location=where, weights_only=True)
    except pickle.UnpicklingError as error:
        if "global" in str(error).lower():
            raise InvalidInput(
                f"model {name} holds pickled objects, which only their own code could read; save weights "
                "alone: torch.save(model.state_dict(), path)"
            ) from error
        raise InvalidInput(
            f"model {name} is no readable checkpoint; save it again with torch.save"
        ) from error
    except InvalidInput:
        raise
    except Exception as error:  # the unpickler raises whatever a damaged file makes its parts raise
        if "quantized" in str(error).lower():
            raise InvalidInput(
                f"model {name} holds quantized tensors; save what they stand for, their .dequantize()"
            ) from error
        why = f"{type(error).__name__}: {first_line(error)}"
        raise InvalidInput(f"model {name} is no readable checkpoint of torch.save ({why})") from error


def _checked(name: str, loaded: object, path: Path) -> dict[str, Tensor]:
    """The state dict in what was loaded.

    Raises: InvalidInput if there is none, it is far larger than its file, or holds NaN or infinity.
    """
    for key in _NESTED:
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not loaded:
        raise InvalidInput(f"model {name} holds no state dict; save torch.save(model.state_dict(), path)")
    for key, value in loaded.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise InvalidInput(
                f"model {name} holds no state dict, but a {type(value).__name__} under {key!r}; save "
                f"torch.save(model.state_dict(), path), alone or under one of {', '.join(_NESTED)}"
            )
        if value.layout != torch.strided or value.is_quantized:
            remedy = "dequantize()" if value.is_quantized else "to_dense()"
            raise InvalidInput(f"model {name} holds {key!r} in a compressed form; save its .{remedy}")
    state: dict[str, Tensor] = dict(loaded)
    held = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    most = max(_SMALL, _SHARED * path.stat().st_size)
    if held > most:
        raise InvalidInput(f"model {name} declares weights of {held:,} bytes; of its size, {most:,} are read")
    for key, tensor in state.items():
        known = tensor.device.type == "cpu" and tensor.dtype in _DTYPES
        if known and not bool(torch.isfinite(tensor).all()):
            raise InvalidInput(f"model {name} holds NaN or infinity in {key!r}; train it again")
    return state


def _unmasked(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same with every pair x_orig, x_mask of ``torch.nn.utils.prune`` multiplied to x, in its place."""
    found = {}
    for name, tensor in state.items():
        base, _, part = name.rpartition("_")
        if part == "orig" and f"{base}_mask" in state:
            mask = state[f"{base}_mask"]
            if mask.shape != tensor.shape:
                raise InvalidInput(
                    f"model has {base}_mask of shape {tuple(mask.shape)}; its weight has shape "
                    f"{tuple(tensor.shape)}"
                )
            found[base] = tensor * mask
        elif not (part == "mask" and f"{base}_orig" in state):
            found[name] = tensor
    return found


def _built(arch: str, arguments: Mapping[str, object]) -> nn.Module:
    """The module that ``arch`` makes, its code imported from where it says, the working folder first."""
    place, _, name = arch.rpartition(":")
    if not place or not name:
        raise InvalidInput(
            f"arch is {arch!r}; give package.module:name, or FILE.py:name, of a class or a function"
        )
    file = Path(place).absolute() if place.endswith(".py") else None
    if file and not file.is_file():
        raise InvalidInput(f"arch is {arch!r}; no such file")
    here = str(file.parent if file else Path.cwd())
    sys.path.insert(0, here)
    try:
        code = _run_file(file) if file else importlib.import_module(place)
        there = hasattr(code, name)
        module = getattr(code, name)(**arguments) if there else None
    except Exception as error:  # whatever the user's code raises
        raise InvalidInput(
            f"arch {arch!r} with arguments {dict(arguments)} fails "
            f"({type(error).__name__}: {first_line(error)}); check the path, the name and --arch-args"
        ) from error
    finally:
        sys.path.remove(here)
    if not there:
        raise InvalidInput(f"arch is {arch!r}, but {place} has no {name!r}; {_classes_of(code)}")
    if not isinstance(module, nn.Module):
        raise InvalidInput(f"arch {arch!r} makes a {type(module).__name__}; it must make a torch.nn.Module")
    return module


def _classes_of(code: ModuleType) -> str:
    """The classes of networks that a module of the user's defines, as something to choose from."""
    found = [
        name
        for name, value in vars(code).items()
        if isinstance(value, type) and issubclass(value, nn.Module) and value.__module__ == code.__name__
    ]
    return f"choose {' or '.join(found)}" if found else "it defines no torch.nn.Module"


def _run_file(file: Path) -> ModuleType:
    """A file as a module of a name of its own, whatever modules of the file's name there are."""
    spec = importlib.util.spec_from_file_location(f"_arch_{file.stem}", file)
    assert spec is not None  # it ends with .py
    assert spec.loader is not None
    code = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(code)
    return code


def _filled(module: nn.Module, state: Mapping[str, Tensor], arch: str) -> nn.Module:
    """The module with the checkpoint's weights, in evaluation mode."""
    wanted = module.state_dict()
    if any(f"{name.removesuffix('_mask')}_orig" in wanted for name in wanted):  # pruned by its own class
        module = assembled(module)
        wanted = module.state_dict()
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state) and not any(n.startswith(prefix) for n in wanted):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    state = _without_owner(state, wanted)
    missing, unexpected = [k for k in wanted if k not in state], [k for k in state if k not in wanted]
    if missing or unexpected:
        parts = [f"lacks {missing[0]}"] if missing else []
        parts += [f"has an unexpected {unexpected[0]}"] if unexpected else []
        raise InvalidInput(f"model does not match arch {arch!r}: it {' and '.join(parts)}")
    for name, tensor in wanted.items():
        if not is_lazy(tensor) and tensor.shape != state[name].shape:
            raise InvalidInput(
                f"model does not match arch {arch!r}: {name} has shape {tuple(state[name].shape)}, not "
                f"{tuple(tensor.shape)}"
            )
        if not is_lazy(tensor) and tensor.is_floating_point():
            _check_precision(state[name], name)
    module.to(_precision(state)).load_state_dict(state)
    return module.eval()


def _without_owner(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The same without the attribute of a larger module, such as Lightning's, that holds the network."""
    first = next(iter(state))
    for place in re.finditer(r"\.", first):
        owner = first[: place.end()]
        if all(name.startswith(owner) for name in state):
            shorter = {name.removeprefix(owner): tensor for name, tensor in state.items()}
            if shorter.keys() == wanted.keys():
                return shorter
    return state


def _check_precision(tensor: Tensor, name: str) -> None:
    """Raise InvalidInput for a weight in whole numbers, whose scale is not in the file."""
    if tensor.dtype not in _DTYPES:
        raise InvalidInput(
            f"model holds {name!r} in {tensor.dtype}; save it in float32, scaled as the network uses it"
        )


def _precision(state: Mapping[str, Tensor]) -> torch.dtype:
    """float32, or float64 if some weights are so: no weight is rounded."""
    return torch.float64 if any(t.dtype == torch.float64 for t in state.values()) else torch.float32


def _first_odd(state: Mapping[str, Tensor], keys: Sequence[tuple[str, str]]) -> str:
    """The first entry that no linear layer behind those before it has."""
    width = None
    for weight, bias in keys:
        if weight in state:
            matrix = state[weight]
            if matrix.dim() != 2 or not matrix.numel() or width not in (None, matrix.shape[1]):
                return weight
            width = matrix.shape[0]
        own = [name for name in state if name.rpartition(".")[0] == weight.rpartition(".")[0]]
        for name in own:
            if name not in (weight, bias) or (name == bias and tuple(state[name].shape) != (width,)):
                return name
    return next(iter(state))


def _fully_connected(path: Path, state: Mapping[str, Tensor]) -> tuple[nn.Module, list[int]]:
    """Linear layers with ReLUs between them, if the checkpoint is plainly that, and their widths.

    Layers come in the order of the file, in a safetensors file, which has none, in that of their names.
    """
    names = list(state)
    if path.suffix == ".safetensors":
        names.sort(key=lambda name: re.sub(r"\d+", lambda digits: digits[0].zfill(20), name))
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in names))
    keys = [(f"{layer}.weight".lstrip("."), f"{layer}.bias".lstrip(".")) for layer in layers]
    pairs = [(state[w], state.get(b, torch.zeros(len(state[w])))) for w, b in keys if w in state]
    known = sum(name in state for pair in keys for name in pair)
    plain = known == len(names) and len(pairs) == len(layers)
    plain = plain and all(w.dim() == 2 and w.numel() and b.shape == w.shape[:1] for w, b in pairs)
    for key, tensor in state.items() if plain else ():
        _check_precision(tensor, key)
    if not plain or any(one.shape[0] != other.shape[1] for (one, _), (other, _) in pairwise(pairs)):
        odd = _first_odd(state, keys)
        raise InvalidInput(
            f"model {str(path)!r} is not plainly a stack of linear layers (it has {odd!r} of shape "
            f"{tuple(state[odd].shape)}); name its class with --arch FILE.py:Class, or export it"
        )
    modules: list[nn.Module] = [nn.Flatten()]
    dtype = _precision(state)
    for weight, bias in pairs:
        linear = nn.Linear(weight.shape[1], weight.shape[0], dtype=dtype)
        linear.load_state_dict({"weight": weight, "bias": bias})
        modules += [linear, nn.ReLU()]
    return nn.Sequential(*modules[:-1]).eval(), [pairs[0][0].shape[1], *(len(w) for w, _ in pairs)]
