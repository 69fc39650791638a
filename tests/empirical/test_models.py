"""The networks have the sizes that the literature reports, and scale down to what was asked."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from empirical.ensembles import initialise_modules, to_module
from empirical.ensembles.modules import prunable_names
from empirical.models import (
    LENET_300_100,
    count_weights,
    dense_small,
    lenet5,
    resnet,
    vgg_like,
)
from theory.types import InvalidInput

CPU = torch.device("cpu")


def sizes(network: nn.Module) -> tuple[int, int]:
    """Prunable weights, and all other parameters."""
    parameters = dict(network.named_parameters())
    weights = sum(parameters[name].numel() for name in prunable_names(network))
    return weights, sum(p.numel() for p in parameters.values()) - weights


def test_sizes_are_those_of_the_literature():
    assert count_weights(LENET_300_100) == 266_200
    assert sizes(lenet5()) == (430_500, 580)
    # 2 * (2 * 64 + 2 * 128 + 3 * 256 + 6 * 512 + 512) of batch-norm, and the last biases
    assert sizes(vgg_like()) == (14_977_728, 9_472 + 10)
    assert sum(sizes(resnet())) == 464_154
    assert sum(sizes(resnet(depth=20))) == 269_722


def test_lenet5_has_no_relu_after_its_convolutions():
    kinds = [type(layer) for layer in lenet5()]
    assert kinds == [nn.Conv2d, nn.MaxPool2d] * 2 + [nn.Flatten, nn.Linear, nn.ReLU, nn.Linear]


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda: lenet5(channels=(2, 3), hidden=5, classes=4, shape=(1, 16, 20)), (1, 16, 20)),
        (lambda: vgg_like(groups=[(2, 3), (4,)], hidden=5, classes=4, shape=(3, 8, 8)), (3, 8, 8)),
        (lambda: resnet(depth=8, widths=(2, 3, 6), classes=4), (3, 9, 9)),
    ],
)
def test_small_versions_run_as_ensembles(build, shape):
    ensemble = initialise_modules(build, shape=shape, seeds=[0, 1], device=CPU)
    x = torch.randn(3, ensemble.inputs)
    logits = ensemble.logits(x)
    assert logits.shape == (2, 3, 4)
    assert not torch.equal(logits[0], logits[1])
    torch.testing.assert_close(to_module(ensemble, 1)(x.unflatten(1, shape)), logits[1])


def test_a_shortcut_subsamples_and_pads_channels():
    """With a branch that gives 0 the block is the ReLU of its shortcut."""
    block = [m for m in resnet(depth=8, widths=(2, 5, 5)).eval() if hasattr(m, "branch")][1]
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.zero_()
        x = torch.rand(1, 2, 4, 4)
        out = block(x)
    assert torch.equal(out[:, 1:3], x[:, :, ::2, ::2])
    assert not out[:, [0, 3, 4]].any()


def test_weights_have_the_stated_variance():
    torch.manual_seed(0)
    for network, gain in ((lenet5(), 1.0), (resnet(), 2.0)):
        layer = [m for m in network.modules() if isinstance(m, nn.Conv2d)][-1]
        # At least 9,000 draws: the sample variance is within 10 % by 6 standard errors.
        assert float(layer.weight.detach().var()) * layer.weight[0].numel() == pytest.approx(gain, rel=0.1)


@given(st.integers(1, 30), st.lists(st.integers(1, 12), min_size=1, max_size=3), st.data())
def test_the_small_dense_network_is_the_nearest_of_all_factors(inputs, hidden, data):
    top = count_weights((inputs, *hidden, 3))
    low = count_weights((inputs, *[1] * len(hidden), 3))
    total = data.draw(st.integers(low, top))
    widths = dense_small(total, inputs, 3, hidden=hidden)
    assert (widths[0], widths[-1]) == (inputs, 3)
    found = abs(count_weights(widths) - total)
    for s in torch.linspace(0, 1, 401).tolist():
        other = [max(1, int(s * h + 0.5)) for h in hidden]
        assert found <= abs(count_weights((inputs, *other, 3)) - total)
    assert any(
        [max(1, int(s * h + 0.5)) for h in hidden] == list(widths[1:-1])
        for s in torch.linspace(0, 1, 4001, dtype=torch.float64).tolist()
    )


def test_the_whole_network_is_its_own_small_version():
    assert dense_small(266_200, 784, 10) == LENET_300_100


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dense_small(400, 784, 10), "total_weights is 400.*795 to 266200"),
        (lambda: dense_small(300_000, 784, 10), "total_weights is 300000"),
        (lambda: dense_small(10, 3, 2, hidden=[0]), "hidden and outputs is"),
        (lambda: lenet5(shape=(1, 15, 28)), "at least 16 x 16"),
        (lambda: lenet5(channels=(0, 3)), r"channels is \(0, 3\)"),
        (lambda: vgg_like(shape=(3, 16, 16)), "a side of 32"),
        (lambda: resnet(depth=31), "depth is 31"),
        (lambda: resnet(widths=(16, 8, 64)), "cannot drop channels"),
    ],
)
def test_bad_sizes_are_named(make, message):
    with pytest.raises(InvalidInput, match=message):
        make()
