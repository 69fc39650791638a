"""A stand-in for a GPU where there is none: tensors on "cuda:0", whose numbers lie in a CPU's memory.

Inside ``standin_gpu()`` everything that asks for CUDA gets such tensors. They compute what a CPU does, so
they say nothing of speed, rounding or memory; but they are refused where CUDA's are: beside tensors of the
CPU, and where NumPy wants their numbers. So the ways that only a GPU takes can be walked on any machine.
"""

# pyright: reportAssignmentType=false

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn
from unittest.mock import Mock, patch

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from empirical.ensembles.segments import Segment
from empirical.training import checkpoints

_aten = torch.ops.aten
_GPU = torch.device("cuda", 0)
# Operations that take tensors of the CPU beside those of a GPU: copies, and indices of a tensor on the GPU.
_COPIES = {_aten.copy_.default}
_INDEXING = {
    _aten.index.Tensor,
    _aten.index_put.default,
    _aten.index_put_.default,
    _aten._index_put_impl_.default,
}
# Of these PyTorch's C++ makes arguments itself, of vmap's alike, on the device that it takes the others for.
_COMPLETED = {_aten.native_batch_norm.default, _aten.native_batch_norm_backward.default}


def _wrapper(cls: type[Tensor], like: Tensor, *_: Tensor) -> Any:
    """A tensor without numbers of its own, on the CPU to PyTorch's C++, which has nothing else here."""
    return Tensor._make_wrapper_subclass(
        cls,
        like.shape,
        strides=like.stride(),
        storage_offset=like.storage_offset(),
        dtype=like.dtype,
        device=torch.device("cpu"),
    )


class _OnGPU(Tensor):
    """A tensor that says that it is on the GPU."""

    numbers: Tensor

    @staticmethod
    def __new__(cls, numbers: Tensor) -> _OnGPU:
        made = _wrapper(cls, numbers)
        made.numbers = numbers
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: _GPU)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def _refused(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    numpy = __array__ = _refused

    def tolist(self) -> Any:
        return self.numbers.tolist()

    def __repr__(self, **_: object) -> str:
        return f"{self.numbers} on {_GPU}"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


class _Generator(torch.Generator):
    """A generator of random numbers for the device that is asked for."""

    on_gpu: bool

    def __new__(cls, device: Any = "cpu") -> _Generator:
        made = super().__new__(cls)
        made.on_gpu = torch.device(device).type == "cuda"
        return made


def _computed(func: Any, args: Any, kwargs: Any) -> Any:
    """The result of an operation, on the device where CUDA would leave it. Raises: where CUDA would."""
    tensors, there = list[Tensor](), dict[int, _OnGPU]()

    def plain(tensor: Tensor) -> Tensor:
        tensors.append(tensor)
        if not isinstance(tensor, _OnGPU):
            return tensor
        there[id(tensor.numbers)] = tensor
        return tensor.numbers

    own_args, own_kwargs = _changed(args, plain), _changed(kwargs, plain)
    if any(isinstance(tensor, Segment) for tensor in tensors):
        return NotImplemented  # it takes its parts to the device
    if kwargs.get("device") is not None:  # copies and new tensors
        on_gpu = torch.device(kwargs["device"]).type == "cuda" or _Functions.differentiating
        own_kwargs["device"] = torch.device("cpu")
    elif func in _COPIES | _INDEXING:
        on_gpu = isinstance(args[0], _OnGPU)
        if func in _INDEXING and there and not on_gpu:
            raise RuntimeError(f"indices should be on the same device as the indexed tensor (cpu): {func}")
    else:
        on_gpu = bool(there)
        if on_gpu and func not in _COMPLETED:
            if any(tensor.ndim for tensor in tensors if not isinstance(tensor, _OnGPU)):
                raise RuntimeError(f"Expected all tensors to be on the same device, cuda:0 and cpu: {func}")
    found = func(*own_args, **own_kwargs)
    if not on_gpu:
        return found
    # What is changed in place stays the same object.
    return _changed(found, lambda tensor: there[id(tensor)] if id(tensor) in there else _OnGPU(tensor))


def _changed(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Arguments or results of an operation with their tensors changed; faster than PyTorch's trees."""
    if isinstance(value, Tensor):
        return change(value)
    if type(value) in (tuple, list):
        return type(value)(_changed(part, change) for part in value)
    if type(value) is dict:
        return {name: _changed(part, change) for name, part in value.items()}
    return value


class _Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        # With this key PyTorch leaves out the start of CUDA, which a CPU's build would refuse.
        self._mode_key = torch._C._TorchDispatchModeKey.FAKE

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """What PyTorch's C++ decides by the device before any operation: copies, and the number of the GPU.

    While it differentiates it makes zeros of its own, where it takes the tensors to be.
    """

    differentiating = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _MOVES:
            return _moved(func, *args, **(kwargs or {}))

        def numbered(value: Any) -> Any:  # C++ would ask CUDA for it
            return _GPU if isinstance(value, str | torch.device) and str(value) == "cuda" else value

        named = {name: numbered(value) for name, value in (kwargs or {}).items()}
        type(self).differentiating = func in (Tensor.backward, torch.autograd.grad, torch.autograd.backward)
        try:
            found = func(*map(numbered, args), **named)
        finally:
            type(self).differentiating = False
        generator = named.get("generator")
        if isinstance(generator, _Generator) and generator.on_gpu != found.is_cuda:
            raise RuntimeError(f"Expected a generator of the device of the numbers: {func}")
        return found


_MOVES = {Tensor.cpu, Tensor.to}


def _moved(func: Any, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The tensor on another device, in the same type or another."""
    if func is Tensor.cpu:
        device, args = torch.device("cpu"), ()
    else:
        like = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        asked = [
            torch.device(value)
            for value in (*args, *kwargs.values())
            if isinstance(value, str | torch.device)
        ]
        device = like[0].device if like else asked[0] if asked else tensor.device
        types = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.dtype)]
        tensor = Tensor.to(tensor, like[0].dtype if like else types[0] if types else tensor.dtype)
    return tensor if device.type == tensor.device.type else _aten._to_copy.default(tensor, device=device)


# safetensors copies from memory at an address, and to that of a GPU.
def _saved(tensors: dict[str, Tensor], path: Any, metadata: dict[str, str] | None = None) -> None:
    save_file({name: tensor.cpu() for name, tensor in tensors.items()}, path, metadata)


@contextmanager
def _opened(path: Any, *, framework: str, device: str) -> Iterator[Any]:
    with safe_open(path, framework=framework, device="cpu") as file:
        yield Mock(
            wraps=file, get_tensor=lambda name: file.get_tensor(name).to(device), metadata=file.metadata
        )


@contextmanager
def standin_gpu() -> Iterator[None]:
    """One GPU, as far as PyTorch's Python can be told."""
    before = torch._C._only_lift_cpu_tensors()
    overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
    # torch.tensor shall copy to a device in a step of its own.
    torch._C._set_only_lift_cpu_tensors(True)  # noqa: FBT003
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with (
            patch.object(torch.cuda, "is_available", lambda: True),
            patch.object(torch.cuda, "device_count", lambda: 1),
            patch.object(torch.cuda, "get_device_name", lambda device=None: "stand-in"),
            patch.object(torch.cuda, "is_bf16_supported", lambda: True),
            patch.object(torch.cuda, "synchronize", lambda device=None: None),
            patch.object(Segment, "__new__", _wrapper),
            patch.object(torch, "Generator", _Generator),
            patch.object(checkpoints, "save_file", _saved),
            patch.object(checkpoints, "safe_open", _opened),
            _Operations(),
            _Functions(),
        ):
            yield
    finally:
        torch._C._set_only_lift_cpu_tensors(before)
        torch.__future__.set_overwrite_module_params_on_conversion(overwrite)
