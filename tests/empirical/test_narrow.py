"""Convolutions of one channel: the values and gradients of PyTorch's own, whatever the geometry."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import conv2d

from empirical.ensembles import from_modules, narrow
from empirical.ensembles.narrow import NarrowConvolutions

# Sums of a few dozen float32 products of normal numbers.
ROUNDING = 1e-4


def pairs(low, high):
    return st.tuples(st.integers(low, high), st.integers(low, high))


@given(
    kernel=pairs(1, 4),
    stride=pairs(1, 3),
    padding=pairs(0, 3),
    dilation=pairs(1, 2),
    size=pairs(7, 9),
    filters=st.integers(1, 3),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_gradients_are_those_of_the_convolution(kernel, stride, padding, dilation, size, filters, bias, seed):
    torch.manual_seed(seed)
    layer = nn.Conv2d(1, filters, kernel, stride, padding, dilation, bias=bias).requires_grad_(
        requires_grad=False
    )
    x = torch.randn(3, 1, *size, requires_grad=True)
    wanted = layer(x)
    with NarrowConvolutions():
        found = layer(x)
    assert type(found.grad_fn).__name__ == "_NarrowBackward"
    assert torch.equal(found, wanted)
    cotangent = torch.randn_like(wanted)
    torch.testing.assert_close(
        torch.autograd.grad(found, x, cotangent),
        torch.autograd.grad(wanted, x, cotangent),
        atol=ROUNDING,
        rtol=0,
    )


@pytest.mark.parametrize("what", ["two channels", "float64", "weight", "no gradient", "same"])
def test_other_convolutions_are_left_alone(what):
    channels = 2 if what == "two channels" else 1
    dtype = torch.float64 if what == "float64" else torch.float32
    x = torch.randn(2, channels, 6, 6, dtype=dtype, requires_grad=what != "no gradient")
    weight = torch.randn(3, channels, 3, 3, dtype=dtype, requires_grad=what == "weight")
    padding = "same" if what == "same" else (1, 1)
    with NarrowConvolutions():
        found = conv2d(x, weight, None, (1, 1), padding, (1, 1), 1)
    assert "Narrow" not in type(found.grad_fn).__name__
    assert torch.equal(found, conv2d(x, weight, padding=padding))


def test_an_ensemble_of_image_networks_takes_them_and_lays_channels_together(monkeypatch):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3))
    x = torch.randn(5, 64)
    taken = []

    def noted(x, *rest):
        taken.append(x.is_contiguous(memory_format=torch.channels_last) and x.stride()[1] == 1)
        return is_narrow(x, *rest)

    is_narrow = narrow._is_narrow
    monkeypatch.setattr(narrow, "_is_narrow", noted)
    logits, gradient = from_modules([net], shape=(1, 8, 8)).logits_and_gradient(x, torch.ones_like)
    leaf = x.clone().requires_grad_()
    wanted = net(leaf.unflatten(1, (1, 8, 8)))
    torch.testing.assert_close(logits[0], wanted.detach(), atol=ROUNDING, rtol=0)
    torch.testing.assert_close(gradient[0], torch.autograd.grad(wanted.sum(), leaf)[0], atol=ROUNDING, rtol=0)
    assert taken == [True]
