"""Bands of a module on a segment hold its activations, are thin where it is linear, and refuse the rest."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from empirical.ensembles import from_modules, segments
from empirical.ensembles.segments import NotPiecewiseLinear, scores_on_segments

SHAPE = (2, 6, 6)
ROUNDING = 1e-10


class Net(nn.Module):
    """A convolution, the operation under test, and a linear layer after it."""

    def __init__(self, middle: Callable[[torch.Tensor], torch.Tensor], outputs: int = 3) -> None:
        super().__init__()
        self.first, self.middle = nn.Conv2d(2, 4, 3, padding=1), middle
        with torch.no_grad():
            width = middle(torch.zeros(1, 4, 6, 6)).flatten(1).shape[1]
        self.last = nn.Linear(width, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.middle(self.first(x)).flatten(1))


def norm2d() -> nn.Module:
    norm = nn.BatchNorm2d(4).eval()
    for tensor in (norm.weight.data, norm.bias.data, norm.running_mean):
        assert isinstance(tensor, torch.Tensor)
        tensor.normal_()
    return norm


NORM = norm2d()
KERNEL = torch.linspace(-1.0, 1.1, 36).reshape(2, 2, 3, 3)


def residual(z: torch.Tensor) -> torch.Tensor:
    y = F.relu(z)
    y += z
    return F.relu(y, inplace=True)


def view_in_place(z: torch.Tensor) -> torch.Tensor:
    """The base of a view changes with it."""
    F.relu_(z.view(len(z), -1))
    return z


PIECEWISE_LINEAR: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": F.relu,
    "relu in place of a view": view_in_place,
    "max-pooling": lambda z: F.max_pool2d(F.relu(z), 3, 2, 1),
    "two layers of pooling": lambda z: F.max_pool2d(F.relu(F.max_pool2d(z, 2) * -2), 2),
    "average pooling": lambda z: F.adaptive_avg_pool2d(F.avg_pool2d(F.relu(z), 2), 2),
    "batch-norm": lambda z: F.relu(NORM.to(z.dtype)(z)),
    "convolution": lambda z: F.conv2d(F.relu(z), KERNEL.to(z.dtype), stride=2, padding=1, groups=2),
    "residual": residual,
    "leaky ReLU": lambda z: F.leaky_relu(z, -0.5) + F.leaky_relu_(z * 1.0, 0.3),
    "clamps": lambda z: F.relu6(8 * z) + F.hardtanh(z) + z.clamp(min=0.1) - z.clamp(max=0.2),
    "absolute values": lambda z: (z - 0.1).abs() / 2 + (1 - z) - -z,
    "maxima": lambda z: torch.maximum(z, z.flip(1)) + torch.minimum(z, -z),
    "concatenation": lambda z: torch.cat([F.relu(z), *z.split(2, dim=1), z.mean(1, keepdim=True)], dim=1),
    "padding and dropout": lambda z: F.dropout(F.relu(F.pad(z, (1, 0, 0, 1), value=2.0)), training=False),
    "products": lambda z: F.relu(z.flatten(2).transpose(1, 2) @ torch.full((4, 2), -0.7, dtype=z.dtype)),
}
OTHERS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "tanh": torch.tanh,
    "softmax": lambda z: z.softmax(1),
    "square": lambda z: z * z,
    "quotient": lambda z: 1 / (1 + F.relu(z)),
    "layer norm": lambda z: F.layer_norm(z, (6, 6)),
    "norm of the batch": lambda z: F.batch_norm(z, None, None, training=True),
    "branch": lambda z: z if z.sum() > 0 else -z,
    "lookup": lambda z: z * (z > 0),
}


def network(middle: Callable[[torch.Tensor], torch.Tensor], seed: int, outputs: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return Net(middle, outputs).double().eval()


@pytest.mark.parametrize("name", PIECEWISE_LINEAR)
@given(seed=st.integers(0, 2**32 - 1), length=st.sampled_from([0.01, 0.3, 10.0]))
@settings(max_examples=12)
def test_bands_hold_the_logits(name, seed, length):
    net = network(PIECEWISE_LINEAR[name], seed, outputs=1 + seed % 3)
    ensemble = from_modules([net], shape=SHAPE)
    start = torch.randn(3, 72, dtype=torch.float64)
    end = start + length * torch.randn(3, 72, dtype=torch.float64)
    kept = start.clone()
    low, high, radius = scores_on_segments(ensemble, 0, start, end)
    assert torch.equal(start, kept)
    places = torch.cat([torch.tensor([0.0, 1.0], dtype=torch.float64), torch.rand(8, dtype=torch.float64)])
    off = torch.stack(
        [(ensemble.logits(start.lerp(end, s))[0] - low.lerp(high, s)).abs() for s in places]
    ).amax(0)
    size = low.abs().maximum(high.abs()) + 1
    assert (off <= radius + ROUNDING * size).all()
    assert (radius >= 0).all()


@pytest.mark.parametrize("name", PIECEWISE_LINEAR)
def test_short_segments_are_linear(name):
    """Nearly all segments shorter than the distance to the next kink have radius 0: nothing is lost."""
    ensemble = from_modules([network(PIECEWISE_LINEAR[name], 0)], shape=SHAPE)
    start = torch.randn(40, 72, dtype=torch.float64)
    _, _, radius = scores_on_segments(ensemble, 0, start, start + 1e-7 * torch.randn_like(start))
    assert (radius.amax(1) == 0).sum() >= 38


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_piecewise_linear_is_refused(name):
    ensemble = from_modules([network(OTHERS[name], 0)], shape=SHAPE)
    x = torch.randn(2, 72, dtype=torch.float64)
    with pytest.raises(NotPiecewiseLinear):
        scores_on_segments(ensemble, 0, x, x + 1)


def test_one_relu_has_the_thinnest_band():
    """relu on [-1, 3] lies between the chord 3 (t + 1) / 4 and 0 or t: 3/4 deep, so +- 3/8."""
    first, last = nn.Linear(1, 1), nn.Linear(1, 2)
    for layer, weight in ((first, [[1.0]]), (last, [[1.0], [-2.0]])):
        layer.weight.data, layer.bias.data = torch.tensor(weight), torch.zeros(len(weight))
    net = nn.Sequential(first, nn.ReLU(), last).double()
    x = torch.tensor([[-1.0]], dtype=torch.float64)
    low, high, radius = scores_on_segments(from_modules([net], shape=(1,)), 0, x, x + 4)
    assert low.tolist() == [[-0.375, 0.75]]
    assert high.tolist() == [[2.625, -5.25]]
    assert radius.tolist() == [[0.375, 0.75]]


def test_batch_norm_is_called_as_a_gpu_needs_it():
    """cuDNN's kernel takes a weight and a bias, or neither."""

    def kernel(z, weight, bias, *settings):
        assert (weight is None) == (bias is None)
        return torch.native_batch_norm(z, weight, bias, *settings)

    start, end, radius = torch.randn(3, 2, 4, 6, 6, dtype=torch.float64).unbind()
    mean, weight, bias = torch.randn(3, 4, dtype=torch.float64).unbind()
    for parts in ((weight, bias), (None, None)):
        settings: Any = (*parts, mean, mean.exp(), False, 0.1, 1e-5)
        found = segments._batch_norm(kernel, segments.Segment(start, end, radius.abs()), *settings)[0]
        ends = [torch.native_batch_norm(part, *settings)[0] for part in (start, end)]
        torch.testing.assert_close([found.start, found.end], ends)
        beyond = torch.native_batch_norm(start + radius.abs(), *settings)[0]
        torch.testing.assert_close((beyond - ends[0]).abs(), found.radius)
