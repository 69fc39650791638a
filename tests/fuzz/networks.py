"""Networks and trainings in files to mutate, and what reads them."""

from __future__ import annotations

import functools
import io
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor, nn

from empirical.datasets import Examples
from empirical.ensembles import MLPEnsemble, initialise
from empirical.experiments.checkpoints import load_networks, save_networks
from empirical.own_network.loading import load_network
from empirical.own_network.measuring import ensemble_of
from empirical.own_network.preparation import prepare
from empirical.pruning import magnitude_masks
from empirical.training.checkpoints import _digest, load_checkpoint, save_checkpoint
from empirical.training.descent import Descent, begin
from empirical.training.recipe import Recipe
from tests.fuzz.mutation import safetensors_parts

CPU = torch.device("cpu")
RECIPE = Recipe(epochs=2)


def tiny() -> MLPEnsemble:
    """Two pruned networks of a few weights."""
    nets = initialise([3, 4, 2], seeds=[0, 1], device=CPU)
    return nets.masked(magnitude_masks(nets, sparsity=0.5))


def states() -> list[Descent]:
    """A training of these networks that has just begun, each by itself."""
    return [begin(tiny(), RECIPE, members=[k], seeds=[5, 6]) for k in range(2)]


def written(write: Callable[[Path], object], name: str) -> bytes:
    """What is written to a file of this name."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        write(path)
        return path.read_bytes()


def training() -> bytes:
    """A stored training."""
    return written(lambda path: save_checkpoint(path, states(), training="t", epoch=1), "t.safetensors")


def stored(*, compact: bool) -> bytes:
    """Stored networks of a run."""
    return written(lambda path: save_networks(path, tiny(), settings="s", compact=compact), "n.safetensors")


def read_training(path: Path) -> int:
    """Go on where the training was; what is read is in the training's own memory."""
    begun = states()
    epoch = load_checkpoint(path, begun, training="t", epochs=2)
    assert 0 <= epoch <= 2
    for state, like in zip(begun, states(), strict=True):
        for one, other in zip(state.networks.weights.parts, like.networks.weights.parts, strict=True):
            assert one.shape[1:] == other.shape[1:]
        assert not state.members or bool(state.finite().all())
    return 0


def read_networks(path: Path) -> int:
    """The networks, plain or compact as the file's name says, ready to be used."""
    found = load_networks(path, tiny(), settings="s", compact="compact" in path.name)
    like = tiny()
    for one, other in zip((*found.weights, *found.masks), (*like.weights, *like.masks), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
    found.logits(torch.zeros(2, 1, 3))
    return 0


def read_network(path: Path) -> int:
    """A network of one's own, ready to be attacked."""
    examples = Examples("random", np.random.default_rng(0).random((3, 3)), np.array([0, 1, 0]))
    network = prepare(load_network(path), examples, None)
    held = sum(weight.numel() * weight.element_size() for weight in network.weights.values())
    ensemble = ensemble_of(network, examples, CPU)
    assert len(ensemble.masks[0]) == 1
    return held


def stack() -> nn.Sequential:
    """A network of linear layers."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()


def saved(content: object, *, new: bool = True) -> bytes:
    """What torch.save makes of it, in the format since 1.6 or in the one before."""
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=new)
    return file.getvalue()


def program() -> bytes:
    """An exported program."""
    exported = torch.export.export(stack().float().eval(), (torch.zeros(2, 3),))
    return written(lambda path: torch.export.save(exported, path), "p.pt2")


_DTYPES = (
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.uint8,
    torch.bool,
    torch.complex64,
)


@st.composite
def retensored(draw: Callable, content: bytes) -> bytes:
    """The safetensors file with tensors of other values, types or shapes, its digest right again."""
    metadata: dict[str, str] = safetensors_parts(content)[0].get("__metadata__", {})
    tensors = load(content)
    for _ in range(draw(st.integers(1, 3))):
        if not tensors:
            break
        name = draw(st.sampled_from(sorted(tensors)))
        tensor = tensors[name]
        kind = draw(st.sampled_from(("drop", "add", "type", "shape", "values", "odd", "entry", "metadata")))
        if kind == "drop":
            del tensors[name]
        elif kind == "add":
            tensors[draw(st.sampled_from(("weight.9", "mask.7", "x", "", "\u00b2.weight")))] = tensor
        elif kind == "type" and not tensor.is_complex():
            tensors[name] = tensor.to(draw(st.sampled_from(_DTYPES)))
        elif kind == "shape":
            tensors[name] = _reshaped(draw, tensor)
        elif kind == "values":
            value = draw(st.sampled_from((0.0, 1.0, -1.0, float("nan"), float("inf"), 6e4)))
            tensors[name] = torch.full_like(tensor, value if tensor.is_floating_point() else 1)
        elif kind == "odd":
            shape = draw(st.lists(st.integers(0, 5), max_size=4))
            tensors[name] = torch.zeros(shape, dtype=tensor.dtype)
        elif kind == "entry" and tensor.numel() and not tensor.is_floating_point():
            flat = tensor.flatten().clone()
            flat[draw(st.integers(0, tensor.numel() - 1))] = draw(st.integers(0, 127))
            tensors[name] = flat.reshape(tensor.shape)
        else:
            key = draw(st.sampled_from(("epoch", "training", "settings", "x")))
            metadata[key] = draw(st.sampled_from(("", "2", "-1", "9" * 5000, "\u0663", "t", "s", "a\nb")))
    tensors = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    if "sha256" in metadata:
        metadata["sha256"] = _digest(tensors)
    return save(tensors, metadata=metadata)


def _reshaped(draw: Callable, tensor: Tensor) -> Tensor:
    kinds = (tensor.flatten(), tensor[None], tensor.expand(2, *tensor.shape))
    more = (tensor[:1], tensor[..., :0]) if tensor.dim() else ()
    return draw(st.sampled_from((*kinds, *more))).contiguous()


@functools.cache
def _odd() -> tuple[object, ...]:
    """What no layer's entry is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that sparse and quantised tensors are on their way out
        return (
            torch.zeros(1).expand(10**12), torch.zeros(4, 0), torch.zeros(4, 3, dtype=torch.int64),
            torch.zeros(3, 4).T, torch.zeros(4, 3).to_sparse(), torch.zeros(4, 3, device="meta"),
            torch.tensor(1.0),
            torch.full((4, 3), float("nan")).double(), torch.zeros(4, 3, dtype=torch.complex64), None, 3, "x",
            [], {},
            torch.zeros(4, 3).to(torch.float8_e4m3fn), torch.zeros(4, 3).half(),
            nn.Parameter(torch.zeros(4, 3)),
            torch.quantize_per_tensor(torch.zeros(4, 3), 0.1, 0, torch.qint8), np.float64(1),
            torch.Size((1,)),
        )  # fmt: skip


@st.composite
def states_of(draw: Callable) -> object:
    """What a torch file may hold beside a good state dict: anything its safe pickle can say."""
    good: dict[object, object] = {**stack().state_dict()}
    for _ in range(draw(st.integers(1, 3))):
        key = draw(
            st.sampled_from([*good, 1, "", "0.weight_orig", "0.weight_mask", "\u00b2.weight", "9" * 5000])
        )
        if draw(st.booleans()) and key in good:
            del good[key]
        else:
            good[key] = draw(st.sampled_from(_odd()))
    if draw(st.booleans()):
        return draw(
            st.sampled_from(({"state_dict": good}, {"model": {"model": good}}, [good], good, 3, None))
        )
    return good
