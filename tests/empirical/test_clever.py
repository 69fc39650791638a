"""CLEVER is exact where gradients are constant, reproducible, and shares samples without mixing them up."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from empirical.attacks.hidden_norms import HiddenNorms
from empirical.clever import ball, clever
from empirical.compaction import much_smaller
from empirical.ensembles import (
    MLPEnsemble,
    from_modules,
    from_networks,
    initialise,
    initialise_modules,
    linear_classifier,
)
from empirical.models import lenet5
from theory.laws.strategies import attack_norms, linear_classifiers
from theory.linear import radius
from theory.types import InvalidInput, ReLUNetwork

CPU = torch.device("cpu")


def networks(widths: list[int], seeds: list[int]) -> MLPEnsemble:
    return initialise(widths, seeds=seeds, device=CPU).to(dtype=torch.float64, device=CPU)


@settings(max_examples=40)
@given(linear_classifiers(scales=(1.0,)), attack_norms(), st.integers(0, 99))
def test_on_linear_models_it_is_the_radius(clf, p, seed):
    """Every sampled gradient is the same, which is no distribution to fit."""
    x = np.random.default_rng(seed).normal(size=(4, clf.weight.shape[1]))
    nets = from_networks([ReLUNetwork((clf.weight,), (clf.bias,))])
    y = nets.logits(torch.tensor(x))[0].argmax(1)
    y[0] = (y[0] + 1) % nets.classes
    found = clever(nets, torch.tensor(x), y, p=p, radius=1.0, batches=4, batch_size=2)
    exact = radius(linear_classifier(nets, 0), x, y.numpy(), p=p)
    np.testing.assert_allclose(found.radius[0], np.minimum(exact, 1.0), rtol=1e-9, atol=1e-12)
    assert np.isnan(found.p_value).all()


def test_the_largest_sample_is_that_of_a_loop_over_points():
    """Two members, two examples, three classes; members share the points, examples do not."""
    nets = networks([4, 20, 20, 3], [0, 1])
    x, y = torch.randn(2, 4, dtype=torch.float64), torch.tensor([2, 0])
    for p, q in ((2.0, 2), (math.inf, 1)):
        found = clever(nets, x, y, p=p, radius=0.7, batches=5, batch_size=6, seed=3)
        alone = clever(nets.select([1]), x[:1], y[:1], p=p, radius=0.7, batches=5, batch_size=6, seed=3)
        np.testing.assert_array_equal(alone.location[0, 0], found.location[1, 0])
        again = clever(nets, x, y, p=p, radius=0.7, batches=5, batch_size=6, seed=3)
        np.testing.assert_array_equal(again.radius, found.radius)
        other = clever(nets, x, y, p=p, radius=0.7, batches=5, batch_size=6, seed=4)
        assert (other.largest != found.largest).any()
        many = clever(nets, x, y, p=p, radius=0.7, batches=20, batch_size=50)
        jacobian = nets.logits_and_jacobian(x)[1]
        here = (jacobian.gather(2, y[None, :, None, None].expand(2, -1, 1, 4)) - jacobian).norm(q, dim=3)
        assert (many.largest >= found.largest * 0.8).all()
        tiny = clever(nets, x, y, p=p, radius=1e-9, batches=3, batch_size=2)
        np.testing.assert_allclose(tiny.largest, here, rtol=1e-9)
        assert (many.largest >= here.numpy() * (1 - 1e-9)).all()
        assert (many.largest > here.numpy() * 1.01).any()


def test_scores_are_the_same_without_dead_parts(monkeypatch):
    """Samples are drawn before dead inputs are left out, so the same ones are looked at."""
    nets = networks([30, 40, 20, 3], [0, 1])
    generator = torch.Generator().manual_seed(0)
    nets = nets.masked(tuple(torch.rand(w.shape, generator=generator) < 0.1 for w in nets.weights))
    assert much_smaller(nets.select([0])) is not None
    x = torch.randn(3, 30, dtype=torch.float64)
    y = nets.logits(x)[0].argmax(1)
    for p in (2.0, math.inf):
        found = clever(nets, x, y, p=p, radius=3.0, batches=10, batch_size=10)
        with monkeypatch.context() as patch:
            patch.setattr("empirical.compaction.SMALL", -1.0)
            whole = clever(nets, x, y, p=p, radius=3.0, batches=10, batch_size=10)
        assert (found.largest > 0).any()
        np.testing.assert_allclose(found.largest, whole.largest, rtol=1e-9)
        np.testing.assert_allclose(found.radius, whole.radius, rtol=1e-6)


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scores_by_the_gram_matrix_are_those_by_gradients(outputs, dtype, monkeypatch):
    """The first layer's units have weights of very different length, so the matrix matters."""
    nets = networks([40, 15, 12, outputs], [0, 1])
    scale = torch.logspace(-1, 1, 15, dtype=torch.float64)[:, None]
    weights = (nets.weights[0] * scale, *nets.weights[1:])
    nets = MLPEnsemble(weights, nets.biases, nets.masks).to(dtype=dtype, device=CPU)
    x = torch.randn(3, 40, generator=torch.Generator().manual_seed(0)).to(dtype)
    y = nets.logits(x)[0].argmax(1)
    assert HiddenNorms.of(nets) is not None
    found = clever(nets, x, y, p=2.0, radius=3.0, batches=10, batch_size=10)
    monkeypatch.setattr(HiddenNorms, "of", lambda nets: None)
    plain = clever(nets, x, y, p=2.0, radius=3.0, batches=10, batch_size=10)
    assert (found.largest > 0).any()
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    np.testing.assert_allclose(found.largest, plain.largest, rtol=tolerance)


@pytest.mark.parametrize("difference", [1e-1, 1e-3, 1e-4, 1e-5])
def test_small_gradients_of_large_sums_are_seen(difference):
    """h2 - h1, of units whose weights differ in one place: the Gram matrix's terms cancel in float32."""
    weight = np.random.default_rng(1).standard_normal(8)
    both = np.stack([weight, weight + difference * np.eye(8)[0]])
    net = ReLUNetwork((both, np.array([[0.0, 0.0], [-1.0, 1.0]])), (np.full(2, 50.0), np.array([0.0, 2e-5])))
    nets = from_networks([net]).to(dtype=torch.float32, device=CPU)
    assert HiddenNorms.of(nets) is not None
    slope = float((nets.weights[0][0, 1] - nets.weights[0][0, 0]).norm())
    found = clever(nets, torch.zeros(1, 8), torch.tensor([1]), p=2, radius=1.0, batches=3, batch_size=5)
    assert found.largest[0, 0, 0] == pytest.approx(slope, rel=1e-3)


def test_what_is_returned_hangs_together():
    nets = networks([6, 30, 30, 4], [0, 1])
    x = torch.randn(5, 6, dtype=torch.float64)
    y = nets.logits(x)[0].argmax(1)
    found = clever(nets, x, y, p=2.0, radius=0.5, batches=30, batch_size=20)
    true = np.broadcast_to(y.numpy()[None, :, None] == np.arange(4), found.location.shape)
    assert (found.location >= found.largest).all()
    assert (found.location[true] == 0).all()
    assert (found.location[~true] > 0).all()
    assert np.isinf(found.targeted[true]).all()
    np.testing.assert_array_equal(found.radius, found.targeted.min(2))
    assert (found.radius <= 0.5).all()
    right = (nets.logits(x).argmax(2) == y).numpy()
    assert (found.radius[right] > 0).all()
    assert (found.radius[~right] == 0).all()
    logits = nets.logits(x).numpy()
    margin = np.take_along_axis(logits, np.broadcast_to(y.numpy()[:, None], (2, 5, 1)), 2) - logits
    wanted = np.minimum(margin[~true] / found.location[~true], 0.5).clip(min=0)
    np.testing.assert_allclose(found.targeted[~true], wanted)
    used = found.location > found.largest
    assert used.any()
    assert (found.p_value[used] >= 0.05).all()


def test_a_constant_network_has_the_radius_of_the_ball():
    nets = from_networks([ReLUNetwork((np.zeros((2, 3)),), (np.array([1.0, 0.0]),))])
    x = torch.zeros(2, 3, dtype=torch.float64)
    found = clever(nets, x, torch.tensor([0, 1]), p=2, radius=0.25, batches=3, batch_size=1)
    assert found.radius.tolist() == [[0.25, 0.0]]


def test_smooth_modules_are_sampled_too():
    """|d/dx tanh| is at most 1, reached only at 0: no sample reaches it, the estimate comes near."""
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Tanh(), nn.Linear(1, 1, bias=False)).double()
    for parameter in net.parameters():
        nn.init.ones_(parameter)
    x, y = torch.tensor([[0.4]], dtype=torch.float64), torch.tensor([1])
    found = clever(from_modules([net], shape=(1,)), x, y, p=2, radius=0.5, batches=50, batch_size=20)
    assert found.largest[0, 0, 0] < 1 <= found.location[0, 0, 0] * 1.01
    assert found.radius[0, 0] == pytest.approx(math.tanh(0.4), rel=0.02)


@pytest.mark.parametrize("p", [2.0, math.inf])
def test_points_fill_the_ball_evenly(p):
    """2,000 points: radii to the power d are uniform, directions have no preferred side."""
    generator = torch.Generator().manual_seed(0)
    points = ball(2000, torch.zeros(3, dtype=torch.float64), 2.0, generator, p=p)
    share = (torch.linalg.vector_norm(points, ord=p, dim=1) / 2) ** 3
    assert share.max() <= 1
    assert share.mean() == pytest.approx(0.5, abs=4 / math.sqrt(12 * 2000))
    assert share.var() == pytest.approx(1 / 12, rel=0.1)
    assert points.mean(0).abs().max() < 4 * 2 / math.sqrt(2000)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"p": 1.0}, "p is 1"),
        ({"radius": 0.0}, "radius is 0"),
        ({"radius": math.inf}, "radius is inf"),
        ({"batches": 2}, "batches is 2"),
        ({"batch_size": 0}, "batch_size 0"),
    ],
)
def test_bad_arguments_are_named(change, message):
    nets, x = networks([2, 3], [0]), torch.zeros(1, 2, dtype=torch.float64)
    with pytest.raises(InvalidInput, match=message):
        clever(nets, x, torch.tensor([0]), **({"p": 2.0, "radius": 1.0} | change))


@pytest.mark.parametrize("p", [2.0, math.inf])
def test_no_examples_have_no_scores(p):
    nets, none = networks([2, 5, 3], [0, 1]), torch.zeros(0, dtype=torch.int64)
    found = clever(nets, torch.zeros(0, 2, dtype=torch.float64), none, p=p, radius=1.0)
    assert found.radius.shape == (2, 0)
    for values in (found.targeted, found.location, found.largest, found.p_value):
        assert values.shape == (2, 0, 3)


def test_threads_do_not_mix_up_the_weights_of_modules():
    """Four networks of one module, on four threads and on one."""
    nets = initialise_modules(
        lambda: lenet5(channels=(4, 6), hidden=20), shape=(1, 28, 28), seeds=range(4), device=CPU
    ).to(dtype=torch.float64, device=CPU)
    x = torch.rand(3, 784, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y, threads = nets.logits(x)[0].argmax(1), torch.get_num_threads()
    try:
        found = []
        for count in (1, 4):
            torch.set_num_threads(count)
            found.append(clever(nets, x, y, p=2.0, radius=0.5, batches=6, batch_size=20).largest)
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_allclose(found[1], found[0], rtol=1e-9)
