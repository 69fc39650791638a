"""Moment propagation through convolutional networks: an ``nn.Sequential`` of the usual layers.

The layers: Conv2d (stride, zero padding, dilation, groups), Linear, ReLU, AvgPool2d, MaxPool2d, Flatten. One
mask entry of a convolution multiplies a weight at every position, so the masked pre-activations of one
channel are correlated even for a fixed input: with T_e the shift by which kernel entry e reads its input,

    E z = k A E h + b,   Cov z = k^2 A Cov(h) A' + k (1-k) sum_e w_e^2 T_e E[h h'] T_e',

exact given the first two moments of h; a Linear layer is the case of one position. The second moment of the
gradient obeys the adjoint of the same linear map; its last term comes from automatic differentiation.
Max-pooling folds its window by Clark's formulas. Everything else is the closure of
:mod:`theory.relu.moments`, and so is what is exact: mean and covariance up to the first non-linear layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray as Array
from scipy.sparse import csc_array, csr_array
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.prune import BasePruningMethod

from theory.relu.moments import (
    Layer,
    Prediction,
    check_keep,
    check_rivals,
    margin_statistics,
    norm_means,
    pairs,
    pull_back_relu,
    rectified_layer,
    with_diagonal,
)
from theory.relu.rectified import rectified_moments
from theory.types import InvalidInput, ReLUNetwork, check_labels

CHUNK_ENTRIES = 2**22  # entries of one covariance array of a chunk of examples: 32 MiB
ROUNDING = 1e-12  # of a variance found by subtraction
LINEAR = (nn.Conv2d, nn.Linear, nn.AvgPool2d)
MASKED = (nn.Conv2d, nn.Linear)
SUPPORTED = (*LINEAR, nn.ReLU, nn.MaxPool2d, nn.Flatten)
COMPUTING = ("forward", "_conv_forward", "__call__")  # methods in which a subclass may differ
SPARSE = 0.25  # share of non-zeros below which a sparse product is faster

Matrix = np.ndarray | csr_array | csc_array
Pull = Callable[[Layer], Layer]


@dataclass(frozen=True)
class Step:
    """One layer on flattened features: (rows, inputs) -> (rows, outputs), and its input image shape.

    The module is one of PyTorch's own, a copy in float64 without hooks.
    """

    module: nn.Module
    shape: tuple[int, ...]
    outputs: tuple[int, ...]


def as_sequential(net: ReLUNetwork) -> nn.Sequential:
    """The same network as float64 torch layers, an identity."""
    layers: list[nn.Module] = []
    for weight, bias in zip(net.weights, net.biases, strict=True):
        linear = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
        linear.weight.data, linear.bias.data = torch.tensor(weight), torch.tensor(bias)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1]).requires_grad_(requires_grad=False)


def predict_sequential(
    model: nn.Sequential,
    x: Float[Array, "m *image"],
    y: Int[Array, " m"],
    rivals: Int[Array, " m"],
    alphas: Float[Array, "a d"],
) -> Prediction:
    """Margin, accuracy and gradient norms under random masks, an estimate; exact at alpha = 0.

    ``alphas`` holds one sparsity per Conv2d and Linear layer in each row; biases are not masked. x holds
    images as the model takes them. Cost is that of (u, u) matrices per example, u the units of a layer.

    Raises: InvalidInput for an unsupported layer, x that is not finite or of another shape, bad labels, or
      alphas of another width.
    """
    images = torch.tensor(x, dtype=torch.float64)
    if not images.isfinite().all():
        raise InvalidInput("x has a NaN or infinite entry; remove it")
    steps = layer_steps(model, tuple(images.shape[1:]))
    classes = int(np.prod(steps[-1].outputs))
    y = check_labels("y", y, n=len(images), classes=classes)
    rivals = check_rivals(rivals, y, classes=classes)
    keep = check_keep(alphas, layers=sum(isinstance(step.module, MASKED) for step in steps))
    matrices = [operator(step) for step in steps]
    widest = max(int(np.prod(step.outputs)) for step in steps)
    chunk = max(1, CHUNK_ENTRIES // widest**2)
    out = np.zeros((4, len(keep), len(images)))
    with torch.no_grad():
        for first in range(0, len(images), chunk):
            rows = slice(first, first + chunk)
            for a, kept in enumerate(keep):
                found = _one(steps, matrices, images[rows].flatten(1).numpy(), y[rows], rivals[rows], kept)
                out[:, a, rows] = found
    return Prediction(*out)


def layer_steps(model: nn.Sequential, shape: tuple[int, ...]) -> list[Step]:
    """The layers in float64 with the shapes they see, an identity.

    What ``torch.nn.utils.prune`` or a parametrization computes of a weight is the weight.

    Raises: InvalidInput for a layer that is not supported, computes anything else than PyTorch's own, does
      not take the shape, acts on more than one vector per example (Linear), or shares its weight with
      another, naming it.
    """
    steps, seen = [], torch.zeros(1, *shape, dtype=torch.float64)
    owners: dict[int, int] = {}  # which layer a masked weight belongs to
    _check_own("model", model, nn.Sequential)
    for i, module in enumerate(model):
        kind = next((known for known in SUPPORTED if isinstance(module, known)), None)
        if kind is None:
            raise InvalidInput(
                f"model[{i}] is {module}; use Conv2d, Linear, ReLU, AvgPool2d, MaxPool2d, Flatten"
            )
        _check_own(f"model[{i}]", module, kind)
        if isinstance(module, nn.Conv2d) and (
            module.padding_mode != "zeros" or isinstance(module.padding, str)
        ):
            raise InvalidInput(f"model[{i}] is {module}; give its zero padding as integers")
        if isinstance(module, nn.MaxPool2d) and (
            module.padding not in (0, (0, 0)) or module.ceil_mode or module.return_indices
        ):
            raise InvalidInput(
                f"model[{i}] is {module}; max-pooling is supported without padding, ceil_mode and "
                "return_indices"
            )
        before = tuple(seen.shape[1:])
        if isinstance(module, nn.Linear) and len(before) != 1:
            raise InvalidInput(
                f"model[{i}] is {module}, and an example has shape {before} there; put nn.Flatten() before "
                "it, for one vector per example"
            )
        for name, parameter in module.named_parameters():
            first = i if "bias" in name else owners.setdefault(parameter.data_ptr(), i)
            if first != i:
                raise InvalidInput(
                    f"model[{i}] is {module} with the weight of model[{first}], so their masks are not "
                    "independent; give it a copy of its own"
                )
        plain = _plain(module)
        try:
            with torch.no_grad():
                seen = plain(seen)
        except RuntimeError as error:
            raise InvalidInput(f"model[{i}] is {module}; it takes no examples of shape {before}") from error
        steps.append(Step(plain, before, tuple(seen.shape[1:])))
    return steps


def _check_own(name: str, module: nn.Module, kind: type[nn.Module]) -> None:
    """Raise InvalidInput for a module that computes anything else than its kind."""
    own = all(getattr(type(module), part) is getattr(kind, part) for part in COMPUTING if hasattr(kind, part))
    pruned = all(isinstance(hook, BasePruningMethod) for hook in module._forward_pre_hooks.values())
    if not own or not pruned or module._forward_hooks or "forward" in vars(module):
        raise InvalidInput(
            f"{name} is {module} with a forward pass or a hook of its own; use PyTorch's {kind.__name__}, "
            "and do to its weights what that does to them"
        )


def _plain(module: nn.Module) -> nn.Module:
    """A copy in float64, its weights as they take part; layers without any stay what they are."""
    if isinstance(module, nn.ReLU):
        return nn.ReLU()
    if not isinstance(module, MASKED):
        return module
    bias = _effective(module, "bias")
    with torch.device("meta"):
        if isinstance(module, nn.Linear):
            plain: nn.Module = nn.Linear(module.in_features, module.out_features, bias=bias is not None)
        else:
            names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
            geometry: dict[str, Any] = {name: getattr(module, name) for name in names}
            plain = nn.Conv2d(**geometry, bias=bias is not None)
    state = {"weight": _effective(module, "weight")} | ({} if bias is None else {"bias": bias})
    plain.load_state_dict(state, assign=True)
    return plain.requires_grad_(requires_grad=False)


def _effective(module: nn.Module, name: str) -> Tensor | None:
    """A weight as it takes part: what ``torch.nn.utils.prune`` leaves of it when the module is called."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, BasePruningMethod) and hook._tensor_name == name:
            return hook.apply_mask(module).detach().double()
    value = getattr(module, name)
    return None if value is None else value.detach().double()


def _one(
    steps: list[Step],
    matrices: list[Matrix | None],
    x: Float[Array, "m n"],
    y: Int[Array, " m"],
    rivals: Int[Array, " m"],
    keep: Float[Array, " d"],
) -> Float[Array, "4 m"]:
    """Margin, accuracy and both gradient norms for one vector of keep probabilities."""
    count, width = x.shape
    state = Layer(x, np.zeros_like(x), np.zeros((count, width, width)))
    pulls: list[Pull] = []
    kept = iter(keep)
    for step, matrix in zip(steps, matrices, strict=True):
        if matrix is not None:
            k = float(next(kept)) if isinstance(step.module, MASKED) else 1.0
            state, pull = linear_layer(step, matrix, state, k)
        elif isinstance(step.module, nn.ReLU):
            state, pull = Layer(*rectified_layer(state)), partial(pull_back_relu, state)
        elif isinstance(step.module, nn.MaxPool2d):
            state, pull = _max_pool(step, state)
        else:
            continue
        pulls.append(pull)
    classes = np.eye(state.mean.shape[1])
    mean = classes[y] - classes[rivals]
    gradient = Layer(mean, np.zeros_like(mean), np.zeros((count, *classes.shape)))
    for pull in reversed(pulls):
        gradient = pull(gradient)
    return np.concatenate([margin_statistics(state, y), norm_means(gradient)])


def operator(step: Step) -> Matrix | None:
    """The matrix (outputs, inputs) of a linear layer without its bias, an identity; None for other layers.

    As large as one covariance, and sparse where that is faster (convolutions, pooling).
    """
    module = step.module
    if not isinstance(module, LINEAR):
        return None
    images = torch.eye(int(np.prod(step.shape)), dtype=torch.float64).reshape(-1, *step.shape)
    if isinstance(module, nn.Conv2d):
        assert not isinstance(module.padding, str)
        geometry = (module.stride, module.padding, module.dilation, module.groups)
        outputs = F.conv2d(images, module.weight, None, *geometry)
    elif isinstance(module, nn.Linear):
        outputs = images @ module.weight.T
    else:
        outputs = module(images)
    dense = np.ascontiguousarray(outputs.flatten(1).numpy().T)
    return csr_array(dense) if np.count_nonzero(dense) < SPARSE * dense.size else dense


def _conjugate(matrix: Matrix, middle: Float[Array, "m u u"]) -> Float[Array, "m v v"]:
    """matrix middle matrix', for every example."""

    def left(batch: np.ndarray) -> np.ndarray:
        if isinstance(matrix, np.ndarray):
            return matrix @ batch
        columns = batch.transpose(1, 0, 2)
        product = matrix @ columns.reshape(len(columns), -1)
        return product.reshape(-1, *columns.shape[1:]).transpose(1, 0, 2)

    return np.ascontiguousarray(left(left(middle).mT).mT)


def linear_layer(step: Step, matrix: Matrix, state: Layer, k: float) -> tuple[Layer, Pull]:
    """Moments after a linear layer, and the map of the gradient's moments back through it: an identity each.

    ``matrix`` is its :func:`operator`, k the probability that a weight is kept (1 for pooling).
    """
    assert state.covariance is not None
    random = 0 < k < 1

    def own(second: Tensor) -> Tensor:
        return k * (1 - k) * spread_of_masks(step, second)

    def pull(gradient: Layer) -> Layer:
        assert gradient.covariance is not None
        back = k**2 * _conjugate(matrix.T, gradient.covariance)
        if random:
            back += _adjoint(own, back.shape, gradient.covariance + pairs(gradient.mean))
        return Layer(k * (gradient.mean @ matrix), *_variances(back))

    covariance = k**2 * _conjugate(matrix, state.covariance)
    if random:
        covariance += own(torch.as_tensor(state.covariance + pairs(state.mean))).numpy()
    mean = k * (state.mean @ matrix.T)
    bias = getattr(step.module, "bias", None)
    if bias is not None:
        mean = mean + np.repeat(bias.detach().double().numpy(), mean.shape[1] // len(bias))
    return Layer(mean, *_variances(covariance)), pull


def _variances(covariance: Float[Array, "m u u"]) -> tuple[Float[Array, "m u"], Float[Array, "m u u"]]:
    """The diagonal, not negative, and the covariance with it."""
    variance = np.maximum(np.einsum("muu->mu", covariance), 0.0)
    return variance, with_diagonal(covariance, variance)


def spread_of_masks(step: Step, second: Tensor) -> Tensor:
    """sum_e w_e^2 T_e E[h h'] T_e', an identity: blocks of one channel, a diagonal for a Linear layer."""
    module, count = step.module, len(second)
    assert isinstance(module, MASKED)
    squares = module.weight**2
    if isinstance(module, nn.Linear):
        return torch.diag_embed(torch.diagonal(second, dim1=-2, dim2=-1) @ squares.T)
    channels, height, width = step.shape
    pixels, groups = height * width, module.groups
    assert not isinstance(module.padding, str)
    numbers = torch.arange(1.0, pixels + 1, dtype=torch.float64).reshape(1, 1, height, width)
    reads = F.unfold(numbers, module.kernel_size, module.dilation, module.padding, module.stride)[0].long()
    blocks = second.reshape(count, channels, pixels, channels, pixels).diagonal(dim1=1, dim2=3)
    blocks = F.pad(blocks.movedim(-1, 1), (1, 0, 1, 0))  # pixel 0 is the padding
    squares = squares.reshape(groups, -1, channels // groups, len(reads))
    total = torch.zeros(())
    for e, read in enumerate(reads):
        seen = blocks[:, :, read][..., read].reshape(count, groups, channels // groups, read.numel(), -1)
        total = total + torch.einsum("goi,mgipq->mgopq", squares[..., e], seen)
    own = total.reshape(count, module.out_channels, reads.shape[1], reads.shape[1])
    spread = torch.diag_embed(own.movedim(1, -1), dim1=1, dim2=3)
    return spread.reshape(count, *[module.out_channels * reads.shape[1]] * 2)


def _adjoint(linear: Callable[[Tensor], Tensor], shape: tuple[int, ...], at: np.ndarray) -> np.ndarray:
    """The adjoint of a linear map at a point, by automatic differentiation."""
    with torch.enable_grad():
        start = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
        return torch.autograd.grad(linear(start), start, torch.as_tensor(at))[0].numpy()


def _max_pool(step: Step, state: Layer) -> tuple[Layer, Pull]:
    """Moments after max-pooling by Clark's formulas, and the gradient's through the unit selected.

    max(a, b) = b + relu(a - b) for jointly Gaussian a, b: E = E b + E relu(a - b), and by Stein's identity
    Cov(max(a,b), c) = P Cov(a,c) + (1-P) Cov(b,c), P = P(a > b). ``chosen`` holds the products of these
    probabilities: the chance that a unit is the largest of its window.
    """
    module, covariance = step.module, state.covariance
    assert isinstance(module, nn.MaxPool2d)
    assert covariance is not None
    numbers = torch.arange(state.mean.shape[1], dtype=torch.float64).reshape(step.shape)[:, None]
    # For every output (channel, position) the inputs of its window.
    slots = F.unfold(numbers, module.kernel_size, module.dilation, 0, module.stride).long().numpy()
    slots = np.moveaxis(slots, 1, 2).reshape(-1, slots.shape[1])
    identity, examples = np.eye(state.mean.shape[1]), np.arange(len(state.mean))[:, None]
    chosen = np.broadcast_to(identity[slots[:, 0]], (len(state.mean), len(slots), len(identity)))
    mean, variance = state.mean[:, slots[:, 0]], state.variance[:, slots[:, 0]]
    for slot in slots.T[1:]:
        other, spread = state.mean[:, slot], state.variance[:, slot]
        shared = np.einsum("mwu,muw->mw", chosen, covariance[examples, :, slot].mT)
        gap = variance + spread - 2 * shared
        gap = np.where(gap > ROUNDING * (variance + spread), gap, 0.0)  # equal inputs have equal outputs
        first, second, larger, _ = rectified_moments(mean - other, gap)
        larger = np.where((gap == 0) & (mean >= other), 1.0, larger)  # as max_pool2d: ties go to the first
        mean = other + first
        variance = np.maximum(spread + second + 2 * larger * (shared - spread), 0.0)
        chosen = larger[..., None] * chosen + (1 - larger[..., None]) * identity[slot]
    after = with_diagonal(chosen @ covariance @ chosen.mT, variance)

    def pull(gradient: Layer) -> Layer:
        # Windows choose independently; within a window exactly one unit is chosen.
        assert gradient.covariance is not None
        between = with_diagonal(gradient.covariance.copy(), -(gradient.mean**2))
        back = chosen.mT @ between @ chosen
        own = np.einsum("mw,mwv->mv", gradient.variance + gradient.mean**2, chosen)
        total = np.einsum("mvv->mv", back) + own
        return Layer(np.einsum("mw,mwv->mv", gradient.mean, chosen), *_variances(with_diagonal(back, total)))

    return Layer(mean, variance, after), pull
