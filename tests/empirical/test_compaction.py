"""A network without its dead parts is the same network: logits, gradients, attacks and measurements."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import empirical.compaction as module
from empirical.attacks import deepfool, fgs, minimal_fgs, shorten
from empirical.compaction import compact, products, smaller_stack
from empirical.datasets import Dataset
from empirical.ensembles import MLPEnsemble, from_modules, from_stack
from empirical.measurement import measure
from theory.types import InvalidInput

ROUNDING = 1e-9
# What is left of the roundings of float32 in the direction of a search's point.
SEARCHED = 1e-3


@st.composite
def pruned_networks(draw: st.DrawFn) -> MLPEnsemble:
    """Random networks, 0 to 100 % pruned, some with a dead layer, some with a single score."""
    widths = draw(st.lists(st.integers(1, 12), min_size=2, max_size=4)) + [draw(st.integers(1, 4))]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    density = draw(st.sampled_from([0.0, 0.05, 0.1, 0.2, 0.5, 1.0]))
    dead = draw(st.integers(0, 3 * len(widths)))
    weights, biases, masks = [], [], []
    for i, (a, b) in enumerate(zip(widths, widths[1:], strict=False)):
        mask = torch.rand(1, b, a, generator=generator) < (0.0 if i == dead else density)
        weights.append(torch.randn(1, b, a, generator=generator, dtype=torch.float64) * mask)
        biases.append(torch.randn(1, b, generator=generator, dtype=torch.float64))
        masks.append(mask)
    return MLPEnsemble(tuple(weights), tuple(biases), tuple(masks))


def examples(nets: MLPEnsemble, n: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Examples, the first with another label than the predicted one."""
    x = torch.rand(n, nets.inputs, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = nets.logits(x)[0].argmax(1)
    y[0] = (y[0] + 1) % nets.classes
    return x, y


@settings(max_examples=50)
@given(pruned_networks())
def test_logits_and_gradients_are_the_same(nets):
    small = compact(nets)
    x, _ = examples(nets)
    logits, jacobian = nets.logits_and_jacobian(x)
    ours, theirs = small.network.logits_and_jacobian(small.take(x))
    torch.testing.assert_close(ours, logits, rtol=ROUNDING, atol=ROUNDING)
    torch.testing.assert_close(theirs, small.take(jacobian[0])[None], rtol=ROUNDING, atol=ROUNDING)
    dead = torch.ones(nets.inputs, dtype=torch.bool)
    dead[small.inputs] = False
    assert not jacobian[..., dead].any()


@given(pruned_networks())
def test_nothing_dead_is_left(nets):
    """A second time changes nothing, and only a layer that is dead as a whole keeps a unit of weight 0."""
    small = compact(nets).network
    again = compact(small)
    assert [w.shape for w in again.network.weights] == [w.shape for w in small.weights]
    assert again.inputs.tolist() == list(range(small.inputs))
    for before, after in zip(small.weights, small.weights[1:], strict=False):
        units = before.shape[1]
        assert units == 1 or (before[0].any(1).all() and after[0].any(0).all())
    assert small.inputs == 1 or small.weights[0][0].any(0).all()
    assert products(small) <= products(nets)


@settings(max_examples=20)
@given(pruned_networks())
def test_attacks_find_the_same_points_and_leave_dead_inputs_alone(nets):
    small = compact(nets)
    x, y = examples(nets)
    live = small.take(x)
    pairs = {"fgs": (minimal_fgs(nets, x, y), minimal_fgs(small.network, live, y))}
    for p in (2.0, math.inf):
        whole, part = deepfool(nets, x, y, p=p), deepfool(small.network, live, y, p=p)
        pairs[f"deepfool {p}"] = whole, part
        pairs[f"shorten {p}"] = shorten(nets, x, y, *whole), shorten(small.network, live, y, *part)
    for (x_adv, found), (live_adv, live_found) in pairs.values():
        assert torch.equal(found, live_found)
        torch.testing.assert_close(small.put(x, live_adv), x_adv, rtol=1e-6, atol=1e-6)
    stepped = small.put(x, fgs(small.network, live, y, eps=0.1))
    torch.testing.assert_close(stepped, fgs(nets, x, y, eps=0.1), rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("density", [0.0, 0.03, 0.1])
def test_measurements_are_the_same_and_in_order(density, monkeypatch):
    """Dense and sparse members side by side, the sparse ones compacted or not."""
    generator = torch.Generator().manual_seed(0)
    widths, keep = [20, 30, 15, 4], torch.tensor([density, 1.0, density])[:, None, None]
    weights, biases, masks = [], [], []
    for a, b in zip(widths, widths[1:], strict=False):
        mask = torch.rand(3, b, a, generator=generator) < keep
        scale = math.sqrt(2 / a) / keep.clamp(min=0.03).sqrt()
        weights.append(torch.randn(3, b, a, generator=generator, dtype=torch.float64) * mask * scale)
        biases.append(0.3 * torch.randn(3, b, generator=generator, dtype=torch.float64))
        masks.append(mask)
    nets = MLPEnsemble(tuple(weights), tuple(biases), tuple(masks))
    x = np.random.default_rng(0).random((25, 20))
    y = nets.logits(torch.tensor(x))[2].argmax(1).numpy()
    data = Dataset("random", x, np.arange(25) % 4, x, y, 4)
    sizes = [products(compact(nets.select([k])).network) / products(nets) for k in range(3)]
    assert sizes[1] == 1.0
    assert sizes[0] <= 0.5
    ours = measure(nets, data, eps=0.1)
    monkeypatch.setattr(module, "SMALL", -1.0)
    whole = measure(nets, data, eps=0.1)
    np.testing.assert_array_equal(ours.correct, whole.correct)
    assert ours.correct[2].all()
    for name in ("radius", "fgs_correct", "margin", "gradient_norm"):
        one, other = getattr(ours, name), getattr(whole, name)
        for key in other:
            np.testing.assert_allclose(one[key], other[key], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("attack", ["fmn", "fmn-init", "cw"])
def test_searches_end_at_the_same_distance(attack, monkeypatch):
    """Nothing that they do depends on how many inputs there are that no unit sees."""
    generator = torch.Generator().manual_seed(0)
    weights = [
        torch.randn(1, b, a, generator=generator, dtype=torch.float64) / math.sqrt(a)
        for a, b in ((160, 30), (30, 12), (12, 4))
    ]
    weights[0][..., 10:] = 0.0
    nets = MLPEnsemble(
        tuple(weights),
        tuple(torch.zeros(1, w.shape[1], dtype=torch.float64) for w in weights),
        tuple(w != 0 for w in weights),
    )
    x = np.random.default_rng(0).random((25, 160))
    y = nets.logits(torch.tensor(x))[0].argmax(1).numpy()
    data = Dataset("random", x, np.arange(25) % 4, x, y, 4)
    ours = measure(nets, data, eps=0.1, attacks=(attack,))
    monkeypatch.setattr(module, "SMALL", -1.0)
    whole = measure(nets, data, eps=0.1, attacks=(attack,))
    for key, radii in whole.radius.items():
        assert np.isfinite(radii).mean() > 0.5
        np.testing.assert_allclose(ours.radius[key], radii, rtol=SEARCHED)


def test_constants_go_through_a_whole_dead_layer():
    """relu(b) of a layer without weights reaches the logits; every input is dead."""
    weights = (
        torch.zeros(1, 2, 3),
        torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]),
        torch.tensor([[[1.0, -1.0], [0.0, 5.0]]]),
    )
    biases = (torch.tensor([[2.0, -1.0]]), torch.tensor([[0.5, -7.0]]), torch.tensor([[0.25, 0.0]]))
    nets = MLPEnsemble(weights, biases, tuple(w != 0 for w in weights))
    small = compact(nets)
    assert [tuple(w.shape) for w in small.network.weights] == [(1, 1, 1), (1, 1, 1), (1, 2, 1)]
    assert not any(w.any() for w in small.network.weights)
    # The second layer is relu(2 + 0.5), relu(6 - 7).
    assert small.network.logits(torch.ones(1, 1)).tolist() == [[[2.75, 0.0]]]


def test_two_members_are_refused():
    weight = torch.ones(2, 3, 4)
    nets = MLPEnsemble((weight,), (torch.zeros(2, 3),), (weight != 0,))
    with pytest.raises(InvalidInput, match="2 members"):
        compact(nets)


def images(*, padding: int, relu: bool, density: float, seed: int = 0) -> nn.Sequential:
    """Two convolutions, poolings and linear layers on 2 x 9 x 9 images, with biases, pruned at random."""
    torch.manual_seed(seed)
    between = [nn.ReLU()] if relu else []
    convolutions = [
        *(nn.Conv2d(2, 8, 3, padding=padding), *between, nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 10, 2, padding=padding, stride=1 + padding), *between, nn.Flatten()),
    ]
    inside = 10 * (9 if padding else 4)
    net = nn.Sequential(*convolutions, nn.Linear(inside, 12), nn.ReLU(), nn.Linear(12, 3)).double()
    with torch.no_grad():
        for layer in net:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.weight *= (torch.rand_like(layer.weight) < density) * 2
                layer.bias = nn.Parameter(torch.randn(len(layer.weight), dtype=torch.float64))
    return net.eval()


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("density", [0.0, 0.05, 0.1, 0.2])
def test_images_go_through_a_smaller_stack_to_the_same_scores(padding, relu, density, monkeypatch):
    monkeypatch.setattr(module, "SMALL_STACK", 1.0)
    nets = from_modules([images(padding=padding, relu=relu, density=density)], shape=(2, 9, 9))
    small = smaller_stack(nets)
    assert small is not None
    assert sum(w.numel() for w in small.weights) < sum(w.numel() for w in nets.weights)
    x = torch.rand(7, 162, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for ours, theirs in zip(small.logits_and_jacobian(x), nets.logits_and_jacobian(x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=ROUNDING, atol=ROUNDING)
    for before, after in zip(small.weights, small.weights[1:], strict=False):
        used = after[0].reshape(after.shape[1], before.shape[1], -1).any(2).any(0)
        assert before.shape[1] == 1 or used.all()


def test_measurements_of_images_are_the_same_and_in_order(monkeypatch):
    modules = [images(padding=0, relu=False, density=density) for density in (0.1, 1.0, 0.12)]
    nets = from_modules(modules, shape=(2, 9, 9))
    sizes = [smaller_stack(nets.select([k])) is not None for k in range(3)]
    assert sizes == [True, False, True]
    x = np.random.default_rng(0).random((15, 162))
    y = nets.logits(torch.tensor(x))[0].argmax(1).numpy()
    data = Dataset("random", x, np.arange(15) % 3, x, y, 3)
    ours = measure(nets, data, eps=0.1, attacks=("rfgs", "deepfool"))
    monkeypatch.setattr(module, "SMALL_STACK", -1.0)
    whole = measure(nets, data, eps=0.1, attacks=("rfgs", "deepfool"))
    np.testing.assert_array_equal(ours.correct, whole.correct)
    for key, radii in whole.radius.items():
        assert np.isfinite(radii).mean() > 0.5
        np.testing.assert_allclose(ours.radius[key], radii, rtol=1e-6, atol=1e-9)


class Doubled(nn.Sequential):
    def forward(self, input):
        return 2 * super().forward(input)


def watched() -> nn.Sequential:
    net = images(padding=0, relu=True, density=0.02)
    net[0].register_forward_hook(lambda _, __, output: output.add(1))
    return net


@pytest.mark.parametrize(
    "made",
    [
        lambda: Doubled(*images(padding=0, relu=True, density=0.02)),
        lambda: nn.Sequential(nn.BatchNorm2d(2).double(), *images(padding=0, relu=True, density=0.02)),
        lambda: nn.Sequential(nn.Sigmoid(), *images(padding=0, relu=True, density=0.02)),
        lambda: images(padding=0, relu=True, density=1.0),
        watched,
    ],
)
def test_what_is_not_known_to_be_smaller_stays(made):
    assert smaller_stack(from_modules([made().eval()], shape=(2, 9, 9))) is None


def test_two_members_of_images_are_refused():
    nets = from_modules([images(padding=0, relu=True, density=0.1)] * 2, shape=(2, 9, 9))
    with pytest.raises(InvalidInput, match="2 members"):
        smaller_stack(nets)


def test_linear_layers_on_rows_are_left_alone():
    """Behind a Flatten their units lie fastest, channels slowest."""
    torch.manual_seed(0)
    rows = nn.Linear(8, 6)
    rows.weight.data[:3] = 0
    net = nn.Sequential(rows, nn.ReLU(), nn.Flatten(), nn.Linear(24, 3)).double()
    assert from_stack(net) is None
    assert smaller_stack(from_modules([net], shape=(4, 8))) is None
