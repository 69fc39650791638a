"""Moment propagation: exact where the closure is exact, close to Monte Carlo where it is an estimate."""

import copy
import math
from collections import OrderedDict
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.special import ndtr
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

from theory.laws import moments as laws
from theory.laws.relu import all_masks
from theory.laws.strategies import arrays, relu_networks, sparsities
from theory.relu.mask_sampling import QUANTITIES, Sample, compare, sample
from theory.relu.moments import (
    Layer,
    Prediction,
    best_sparsity,
    norm_means,
    preactivation_moments,
    predict,
    runner_up,
)
from theory.relu.rectified import folded_mean, rectified_moments
from theory.relu.sequential_moments import (
    as_sequential,
    layer_steps,
    linear_layer,
    operator,
    predict_sequential,
)
from theory.types import InvalidInput, ReLUNetwork

pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

# Five standard errors: a correct expectation fails once in 3.5 million seeds.
STANDARD_ERRORS = 5
# The closure itself, measured on the random network below at alpha <= 0.4: at most 4 % for these quantities.
CLOSURE = {"margin": 0.05, "gradient_l2": 0.05, "gradient_l1": 0.05}


@st.composite
def labelled(draw: st.DrawFn) -> tuple[ReLUNetwork, np.ndarray, np.ndarray, np.ndarray]:
    """A network whose first layer has at most 8 weights, two inputs, labels and rivals."""
    net = draw(relu_networks(width=draw(st.integers(1, 2)), max_hidden=4))
    x = draw(arrays((2, net.weights[0].shape[1])))
    y = np.array([draw(st.integers(0, net.classes - 1)) for _ in range(2)])
    return net, x, y, (y + draw(st.integers(1, net.classes - 1))) % net.classes


def random_network(widths: tuple[int, ...], seed: int) -> ReLUNetwork:
    """Gaussian weights of variance 2 / fan-in, small biases."""
    rng = np.random.default_rng(seed)
    weights = [rng.normal(size=(b, a)) * math.sqrt(2 / a) for a, b in pairwise(widths)]
    return ReLUNetwork(tuple(weights), tuple(0.1 * rng.normal(size=b) for b in widths[1:]))


@given(
    mean=st.floats(-30, 30) | st.sampled_from([0.0, -37.0, 1e8, -1e8]),
    sd=st.sampled_from([1.0, 1e-3, 1e3, 1e-100, 1e100]),
)
@example(mean=-30.0, sd=1.0)
@example(mean=1e8, sd=1e-3)
def test_rectified_moments_in_both_tails(mean, sd):
    laws.law_rectified(rectified_moments, mean * sd, sd)


def test_rectified_moments_of_a_constant():
    found = rectified_moments(np.array([-1.0, 0.0, 2.0]), np.zeros(3))
    np.testing.assert_array_equal(found, [[0, 0, 2], [0, 0, 0], [0, 0, 1], [0, 0, 0]])


@given(values=arrays((4,)), sd=st.floats(0, 3))
def test_folded_mean_is_even_and_between_mean_and_root(values, sd):
    variance = np.full(4, sd**2)
    found = folded_mean(values, variance)
    np.testing.assert_allclose(found, folded_mean(-values, variance), rtol=1e-12)
    assert (found >= np.abs(values) * (1 - 1e-12)).all()
    assert (found <= np.sqrt(values**2 + variance) * (1 + 1e-12)).all()


@given(case=labelled(), data=st.data())
def test_first_layer_equals_the_enumeration_of_its_masks(case, data):
    net, x, _, _ = case
    keep = np.array([1 - data.draw(sparsities()) for _ in net.weights])
    laws.law_first_layer_exact(preactivation_moments, net, x, keep)


@given(case=labelled())
def test_without_masks_the_prediction_is_the_network(case):
    laws.law_dense_exact(predict, *case)
    laws.law_dense_exact(lambda *args: predict(*args, covariance=False), *case)
    laws.law_dense_exact(lambda net, *args: predict_sequential(as_sequential(net), *args), *case)


@given(case=labelled())
def test_at_full_sparsity_the_biases_decide_and_the_gradient_is_zero(case):
    net, x, y, rivals = case
    found = predict(net, x, y, rivals, np.ones((1, len(net.weights))))
    assert (found.gradient_l2 == 0).all()
    assert (found.gradient_l1 == 0).all()
    others = np.array([np.delete(net.biases[-1], k).max() for k in y])
    np.testing.assert_allclose(found.margin[0], np.maximum(net.biases[-1][y] - others, 0), rtol=1e-12)
    assert (found.accuracy[0] == (net.biases[-1][y] > others)).all()


@given(case=labelled(), data=st.data())
def test_fully_connected_and_sequential_forms_agree(case, data):
    """Two implementations: NumPy with diagonal first layers, and matrices with shared masks in torch."""
    net, x, y, rivals = case
    alphas = np.array([[data.draw(sparsities()) for _ in net.weights]])
    ours, theirs = (
        predict(net, x, y, rivals, alphas),
        predict_sequential(as_sequential(net), x, y, rivals, alphas),
    )
    # The cubature turns its nodes with the eigenvectors, which rounding may exchange.
    spread = np.sqrt(preactivation_moments(net, x, 1 - alphas[0])[-1].variance.max())
    slack = 0.05 * spread + 1e6 * laws.rounding_of_margins(net, x).max()
    np.testing.assert_allclose(ours.margin, theirs.margin, atol=slack)
    scale = np.prod([np.abs(w).sum() for w in net.weights])
    np.testing.assert_allclose(ours.gradient_l2, theirs.gradient_l2, rtol=1e-6, atol=1e-9 * scale)
    np.testing.assert_allclose(ours.gradient_l1, theirs.gradient_l1, rtol=1e-6, atol=1e-7 * scale)


@given(net=relu_networks(max_depth=1, width=2, classes=2), alpha=sparsities(), x=arrays((1, 2)))
def test_one_layer_gradients_have_exact_first_and_second_moments(net, alpha, x):
    """For one layer E||J||_2^2 is exact; the norm itself is below its root and above the norm of the mean."""
    probabilities, weights = all_masks(net, np.array([alpha]))
    gradients = weights[0][:, 0] - weights[0][:, 1]
    root = math.sqrt(probabilities @ (gradients**2).sum(axis=1))
    least = np.linalg.norm(probabilities @ gradients)
    found = predict(net, x, np.array([0]), np.array([1]), np.array([[alpha]])).gradient_l2[0, 0]
    assert least * (1 - 1e-9) <= found <= root * (1 + 1e-9)


@pytest.mark.parametrize("covariance", [True, False])
def test_predictions_agree_with_monte_carlo_on_a_random_network(covariance):
    """1000 masks; the tolerance is five standard errors and the closure's own measured error."""
    net = random_network((20, 40, 30, 5), seed=1)
    rng = np.random.default_rng(2)
    x = rng.normal(size=(6, 20))
    y = net.scores(x).argmax(axis=1)
    rivals = runner_up(net, x, y)
    alphas = np.repeat([[0.1], [0.4]], 3, axis=1)
    drawn = sample(
        as_sequential(net), x, y, rivals, alphas, masks=1000, generator=torch.Generator().manual_seed(0)
    )
    predicted = predict(net, x, y, rivals, alphas, covariance=covariance)
    for found in compare(predicted, drawn, caps=(10.0, 1.0)):
        if found.quantity in CLOSURE:
            allowed = STANDARD_ERRORS * found.standard_error + CLOSURE[found.quantity] * found.monte_carlo
            assert (np.abs(found.predicted - found.monte_carlo) <= allowed).all(), found
        if found.quantity == "accuracy":
            assert (np.abs(found.predicted - found.monte_carlo) <= 0.05).all(), found


CONVOLUTIONS = [
    nn.Conv2d(1, 2, 2, stride=1),
    nn.Conv2d(1, 2, 2, stride=2, padding=1),
    nn.Conv2d(2, 2, (1, 2), groups=2, dilation=2, padding=1),
    nn.Conv2d(2, 1, 2, padding=(0, 1)),
]


@pytest.mark.parametrize("convolution", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("alpha", [0.25, 0.9])
def test_convolutions_share_their_masks_exactly(convolution, alpha):
    """Mean and covariance of all logits of a linear network, and E J J', against all masks of the kernel."""
    torch.manual_seed(0)
    layer, channels = copy.deepcopy(convolution).double(), convolution.in_channels
    model = nn.Sequential(layer, nn.Flatten())
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, channels, 3, 3))
    weight = layer.weight.detach().clone()
    bits = (np.arange(2 ** weight.numel())[:, None] >> np.arange(weight.numel())) & 1
    chance = np.where(bits == 1, 1 - alpha, alpha).prod(axis=1)
    outputs, jacobians = [], []
    with torch.no_grad():
        for row in bits:
            layer.weight.copy_(weight * torch.tensor(row).reshape(weight.shape))
            outputs.append(model(torch.tensor(x))[0].numpy())
            basis = torch.eye(x.size, dtype=torch.float64).reshape(-1, *x.shape[1:])
            jacobians.append((model(basis) - model(torch.zeros_like(basis)))[:, :2].numpy())
        layer.weight.copy_(weight)
    outputs, jacobians = np.array(outputs), np.array(jacobians)
    mean = chance @ outputs
    covariance = np.einsum("k,ku,kv->uv", chance, outputs - mean, outputs - mean)
    steps = layer_steps(model, x.shape[1:])
    matrix = operator(steps[0])
    assert matrix is not None
    start = Layer(x.reshape(1, -1), np.zeros((1, x.size)), np.zeros((1, x.size, x.size)))
    state, pull = linear_layer(steps[0], matrix, start, 1 - alpha)
    assert state.covariance is not None
    np.testing.assert_allclose(state.mean[0], mean, atol=1e-12)
    np.testing.assert_allclose(state.covariance[0], covariance, atol=1e-12)
    difference = np.zeros((1, mean.size))
    difference[0, :2] = [1.0, -1.0]
    back = pull(Layer(difference, np.zeros_like(difference), np.zeros((1, mean.size, mean.size))))
    gradients = jacobians[..., 0] - jacobians[..., 1]
    expected = chance @ gradients
    spread = np.einsum("k,ku,kv->uv", chance, gradients - expected, gradients - expected)
    assert back.covariance is not None
    np.testing.assert_allclose(back.mean[0], expected, atol=1e-12)
    np.testing.assert_allclose(back.covariance[0], spread, atol=1e-12)


def convolutional(pool: nn.Module) -> nn.Sequential:
    torch.manual_seed(3)
    features = 4 * 3 * 3 if isinstance(pool, nn.AvgPool2d) else 4 * 9
    first = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), pool]
    second = [nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(features, 3)]
    return nn.Sequential(*first, *second).double()


@pytest.mark.parametrize("pool", [nn.AvgPool2d(2), nn.MaxPool2d(2)], ids=str)
def test_predictions_agree_with_monte_carlo_on_convolutional_networks(pool):
    """800 masks: five standard errors and 10 % of closure error, on 6 x 6 images."""
    model = convolutional(pool)
    x = np.random.default_rng(0).normal(size=(4, 1, 6, 6))
    scores = model(torch.tensor(x)).detach().numpy()
    order = scores.argsort(axis=1)
    y, rivals, alphas = order[:, -1], order[:, -2], np.repeat([[0.0], [0.3]], 3, axis=1)
    drawn = sample(model, x, y, rivals, alphas, masks=800, generator=torch.Generator().manual_seed(0))
    predicted = predict_sequential(model, x, y, rivals, alphas)
    for found in compare(predicted, drawn, caps=(10.0, 1.0)):
        if found.quantity in CLOSURE:
            np.testing.assert_allclose(found.predicted[0], found.monte_carlo[0], rtol=1e-9)
            allowed = STANDARD_ERRORS * found.standard_error + 0.1 * found.monte_carlo
            assert (np.abs(found.predicted - found.monte_carlo) <= allowed).all(), found


def test_the_sampler_draws_from_the_enumerated_law():
    """2000 masks of an 8-weight network: mean margin and gradient norms within five standard errors."""
    net = random_network((2, 2, 2), seed=5)
    x, y, rivals, alphas = np.array([[1.0, -0.5]]), np.array([0]), np.array([1]), np.array([[0.5, 0.25]])
    probabilities, weights = all_masks(net, alphas[0])
    margin = laws.masked_margins(net, weights, x, y)[:, 0]
    drawn = sample(
        as_sequential(net), x, y, rivals, alphas, masks=2000, generator=torch.Generator().manual_seed(1)
    )
    found = drawn.margin[0, :, 0]
    assert abs(found.mean() - probabilities @ margin) <= STANDARD_ERRORS * found.std() / math.sqrt(2000)
    gradients = np.array(
        [(w[1][0] - w[1][1]) * (w[0] @ x[0] + net.biases[0] > 0) @ w[0] for w in zip(*weights, strict=True)]
    )
    norms = drawn.gradient_l2[0, :, 0]
    truth = probabilities @ np.linalg.norm(gradients, axis=1)
    assert abs(norms.mean() - truth) <= STANDARD_ERRORS * norms.std() / math.sqrt(2000)


def test_covariances_between_units_make_the_prediction_better():
    """A trained-like network, where units agree: the same unit repeated, so independence is badly wrong."""
    base = random_network((8, 6, 2), seed=0)
    copies = np.repeat(base.weights[0], 4, axis=0)
    second = np.ones((3, 24)) / 4
    net = ReLUNetwork(
        (copies, second, np.array([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])),
        (np.zeros(24), np.zeros(3), np.array([0.0, 4.0])),
    )
    x, y, rivals, alphas = np.ones((1, 8)), np.array([0]), np.array([1]), np.array([[0.5, 0.0, 0.0]])
    drawn = sample(
        as_sequential(net), x, y, rivals, alphas, masks=3000, generator=torch.Generator().manual_seed(0)
    )
    spread = drawn.margin.std()
    full = preactivation_moments(net, x, 1 - alphas[0])[-1].covariance
    plain = preactivation_moments(net, x, 1 - alphas[0], covariance=False)[-1].variance
    assert full is not None
    contrast = np.array([1.0, -1.0])
    assert abs(math.sqrt(contrast @ full[0] @ contrast) / spread - 1) < 0.1
    assert abs(math.sqrt(plain.sum()) / spread - 1) > 0.3


def without_own_variance(net, x, keep):
    layers = preactivation_moments(net, x, keep)
    return [Layer(layers[0].mean, layers[0].variance * keep[0], None)]


def of_the_dense_network(net, x, keep):
    return preactivation_moments(net, x, np.ones_like(keep))


@pytest.mark.parametrize("broken", [without_own_variance, of_the_dense_network])
def test_the_first_layer_law_rejects_broken_formulas(broken):
    net = random_network((2, 3, 2), seed=0)
    with pytest.raises(AssertionError):
        laws.law_first_layer_exact(broken, net, np.ones((1, 2)), np.array([0.5, 0.5]))


def test_the_dense_and_rectified_laws_reject_broken_formulas():
    net = random_network((3, 4, 3), seed=1)
    x, y = np.ones((1, 3)), np.array([0])
    with pytest.raises(AssertionError):  # another rival
        laws.law_dense_exact(
            lambda net, x, y, rivals, a: predict(net, x, y, np.array([2]), a), net, x, y, np.array([1])
        )
    with pytest.raises(AssertionError):  # an unstable tail
        laws.law_rectified(as_written, -20.0, 1.0)


def as_written(mean, variance):
    """mu Phi + sigma phi, which cancels to nothing far below 0."""
    sd = np.sqrt(variance)
    t = mean / sd
    inside, density = ndtr(t), np.exp(-t * t / 2) / math.sqrt(2 * math.pi)
    first = mean * inside + sd * density
    return first, (mean**2 + variance) * inside + mean * sd * density - first**2, inside


def test_norm_of_a_gaussian_vector():
    """E||J||_2 = sqrt(2) Gamma((n+1)/2) / Gamma(n/2) for n standard normals: the gamma match is exact."""
    n = 7
    plain = norm_means(Layer(np.zeros((1, n)), np.ones((1, n)), None))
    full = norm_means(Layer(np.zeros((1, n)), np.ones((1, n)), np.eye(n)[None]))
    truth = math.sqrt(2) * math.gamma((n + 1) / 2) / math.gamma(n / 2)
    np.testing.assert_allclose(plain[:, 0], [truth, n * math.sqrt(2 / math.pi)], rtol=1e-12)
    np.testing.assert_allclose(full, plain, rtol=1e-12)


@pytest.mark.parametrize("exponents", [(-700, 600), (700, -600), (600, 300), (-330, -600)])
def test_units_of_the_layers_change_nothing_else(exponents):
    """Powers of 2 at each layer pass through ReLUs; their squares and products leave the floats."""
    net, alphas = random_network((3, 4, 3), seed=0), np.array([[0.0, 0.0], [0.3, 0.6]])
    x = np.random.default_rng(1).normal(size=(5, 3))
    y = np.zeros(len(x), dtype=int)
    first, both = exponents[0], sum(exponents)
    scaled = ReLUNetwork(
        tuple(np.ldexp(w, e) for w, e in zip(net.weights, exponents, strict=True)),
        (np.ldexp(net.biases[0], first), np.ldexp(net.biases[1], both)),
    )
    here = predict(net, x, y, y + 1, alphas)
    there = predict(scaled, x, y, y + 1, alphas)
    np.testing.assert_array_equal(there.accuracy, here.accuracy)
    for name in ("margin", "gradient_l2", "gradient_l1"):
        np.testing.assert_array_equal(getattr(there, name), np.ldexp(getattr(here, name), both))


def test_a_dead_unit_with_a_huge_bias_counts_for_nothing():
    net, x = random_network((3, 4, 3), seed=0), np.random.default_rng(1).normal(size=(2, 3))
    y, alphas = np.zeros(2, dtype=int), np.array([[0.3, 0.3]])
    bias = np.concatenate([net.biases[0], [-1e170]])
    wider = ReLUNetwork(
        (np.vstack([net.weights[0], np.ones(3)]), np.hstack([net.weights[1], np.ones((3, 1))])),
        (bias, net.biases[1]),
    )
    here, there = predict(net, x, y, y + 1, alphas), predict(wider, x, y, y + 1, alphas)
    for name in ("margin", "accuracy", "gradient_l2", "gradient_l1"):
        np.testing.assert_allclose(getattr(there, name), getattr(here, name), rtol=1e-9)


def fading(offset: float) -> ReLUNetwork:
    """One unit, active with a probability that vanishes as ``offset`` falls, before two classes."""
    return ReLUNetwork(
        (np.array([[1.0]]), np.array([[1.0], [-1.0]])), (np.array([offset]), np.array([1.0, 0.0]))
    )


@pytest.mark.parametrize("hidden", [1, 2])
@pytest.mark.parametrize("offset", [-10.0, -14.0, -15.0, -18.0])
def test_gradients_too_small_for_their_squares_keep_their_norm(offset, hidden):
    """The gradient is 2 m_2 m_1 D: with P = P(D = 1) the moments are powers of P, down to 1e-300."""
    net = fading(offset)
    if hidden == 2:
        middle = np.eye(1), np.zeros(1)
        net = ReLUNetwork(
            (net.weights[0], middle[0], net.weights[1]), (net.biases[0], middle[1], net.biases[1])
        )
    x, y, alphas = np.array([[1.0]]), np.array([0]), np.array([[0.5] + [0.0] * hidden])
    predictions = [
        predict(net, x, y, y + 1, alphas),
        predict(net, x, y, y + 1, alphas, covariance=False),
        predict_sequential(as_sequential(net), x, y, y + 1, alphas),
    ]
    active = ndtr((offset + 0.5) / 0.5)
    for found in predictions:
        assert 0 < found.gradient_l2[0, 0] < 2 * math.sqrt(active)
        assert found.gradient_l2[0, 0] < math.inf
        radius = found.radius(p=2.0, cap=1e300)[0, 0]
        assert radius == pytest.approx(found.margin[0, 0] / found.gradient_l2[0, 0])


@pytest.mark.parametrize("scale", [1e-150, 1e-30, 1.0, 1e70])
def test_norm_means_scale_with_the_gradient(scale):
    rng = np.random.default_rng(0)
    root, mean = rng.normal(size=(3, 3)), rng.normal(size=(1, 3))
    covariance = (root @ root.T)[None]
    variance = np.diag(covariance[0])[None]
    for shared in (covariance, None):
        here = norm_means(Layer(mean, variance, shared))
        scaled = None if shared is None else scale**2 * shared
        there = norm_means(Layer(scale * mean, scale**2 * variance, scaled))
        np.testing.assert_allclose(there, scale * here, rtol=1e-6)


def test_a_radius_without_a_number_is_none():
    margin = np.array([[1.0, math.nan, math.nan, 1.0, 0.0]])
    size = np.array([[math.nan, 1.0, 0.0, 0.0, math.nan]])
    radius = [[math.nan, math.nan, math.nan, 3.0, 0.0]]
    found = Prediction(margin, margin, size, size)
    drawn = Sample(margin[None], size[None], size[None])
    for p, quantity in ((2.0, "radius_l2"), (math.inf, "radius_linf")):
        np.testing.assert_array_equal(found.radius(p=p, cap=3.0), radius)
        np.testing.assert_array_equal(drawn.values(quantity, caps=(3.0, 3.0)), [radius])


def test_a_convolution_that_ends_a_model_has_the_scores_of_the_linear_layer_that_it_is():
    """Scores of shape (3, 1, 1): both models have the same weights, and draw the same masks."""
    linear = convolutional(nn.AvgPool2d(2))
    *features, _, last = linear
    assert isinstance(last, nn.Linear)
    final = nn.Conv2d(4, 3, 3).double()
    final.load_state_dict({"weight": last.weight.reshape(final.weight.shape), "bias": last.bias})
    x, y, alphas = np.random.default_rng(0).normal(size=(2, 1, 6, 6)), np.array([1, 2]), np.full((1, 3), 0.3)
    ends, flat = (
        sample(model, x, y, y - 1, alphas, masks=5, generator=torch.Generator().manual_seed(0))
        for model in (nn.Sequential(*features, final), linear)
    )
    for quantity in ("margin", "gradient_l2", "gradient_l1"):
        found, known = (drawn.values(quantity, caps=(1.0, 1.0)) for drawn in (ends, flat))
        np.testing.assert_allclose(found, known, rtol=1e-12, atol=1e-12)


def test_layers_are_found_by_the_names_of_the_model():
    plain = as_sequential(random_network((3, 4, 3), seed=1))
    named = nn.Sequential(OrderedDict(zip(("first", "rectified", "second"), plain, strict=True)))
    x, y, alphas = np.ones((1, 3)), np.array([0]), np.array([[0.5, 0.5]])
    here, there = (
        sample(model, x, y, y + 1, alphas, masks=3, generator=torch.Generator().manual_seed(0))
        for model in (plain, named)
    )
    np.testing.assert_array_equal(here.margin, there.margin)


@pytest.mark.usefixtures("unchecked")
def test_layers_that_moments_cannot_follow_are_named():
    rng = np.random.default_rng(0)
    y, rivals, generator = np.array([0, 1]), np.array([1, 0]), torch.Generator()
    rows, images, vectors = rng.normal(size=(2, 2, 3)), rng.normal(size=(2, 1, 2, 2)), rng.normal(size=(2, 3))
    linear, other = nn.Linear(3, 3), nn.Linear(3, 3)
    other.weight = linear.weight
    relu = nn.ReLU()
    channels = [nn.Conv2d(1, 2, 1), relu, nn.Linear(2, 2), relu, nn.Flatten(), nn.Linear(8, 2)]
    indices = [nn.MaxPool2d(2, return_indices=True), nn.Flatten(), nn.Linear(1, 2)]
    cases = [
        ([nn.Linear(3, 2), relu, nn.Flatten(), nn.Linear(4, 2)], rows, r"model\[0\] is Linear.*Flatten"),
        (channels, images, r"model\[2\] is Linear.*Flatten"),
        ([nn.Flatten(0), nn.Linear(4, 2)], images[:1], r"model\[1\] is Linear.*Flatten"),
        (indices, images, r"model\[0\] is MaxPool2d.*return_indices"),
        ([linear, relu, linear], vectors, r"model\[2\] is Linear.*the weight of model\[0\].*copy"),
        ([linear, relu, other], vectors, r"model\[2\] is Linear.*the weight of model\[0\].*copy"),
    ]
    for layers, x, message in cases:
        model = nn.Sequential(*layers).double()
        alphas = np.full((1, sum(isinstance(layer, nn.Conv2d | nn.Linear) for layer in layers)), 0.5)
        with pytest.raises(InvalidInput, match=message):
            predict_sequential(model, x, y[: len(x)], rivals[: len(x)], alphas)
        with pytest.raises(InvalidInput, match=message):
            sample(model, x, y[: len(x)], rivals[: len(x)], alphas, masks=2, generator=generator)
    twice = nn.Sequential(
        linear, relu, nn.Linear(3, 3), relu, nn.Linear(3, 3)
    ).double()  # a shared ReLU is none
    assert predict_sequential(twice, vectors, y, rivals, np.zeros((1, 3))).margin.shape == (1, 2)


def test_radius_conventions_and_best_sparsity():
    prediction = Prediction(
        np.array([[0.0, 1.0, 2.0]]), *np.array([[[1, 1, 1.0]], [[2, 0, 4.0]], [[5, 0, 8.0]]])
    )
    np.testing.assert_array_equal(prediction.radius(p=2.0, cap=3.0), [[0, 3, 0.5]])
    np.testing.assert_array_equal(prediction.radius(p=math.inf, cap=3.0), [[0, 3, 0.25]])
    drawn = Sample(
        *(
            np.repeat(v[:, None], 2, axis=1)
            for v in (prediction.margin, prediction.gradient_l2, prediction.gradient_l1)
        )
    )
    for found in compare(prediction, drawn, caps=(3.0, 3.0)):
        assert found.quantity in QUANTITIES
        assert found.standard_error[0] == 0
        if found.quantity != "accuracy":
            assert found.relative_error[0] == 0
    radius = np.array([[1.0, 5.0], [3.0, 0.0]])
    assert best_sparsity(np.array([0.0, 0.5]), radius) == 0.0
    assert best_sparsity(np.array([0.0, 0.5]), radius, np.array([True, False])) == 0.5


@pytest.mark.usefixtures("unchecked")
def test_illegal_calls_name_the_argument():
    net = random_network((3, 4, 3), seed=1)
    x, y, rivals, alphas = np.ones((1, 3)), np.array([0]), np.array([1]), np.array([[0.5, 0.5]])
    with pytest.raises(InvalidInput, match=r"rivals\[0\] is the label"):
        predict(net, x, y, y, alphas)
    with pytest.raises(InvalidInput, match="alphas has shape"):
        predict(net, x, y, rivals, alphas[:, :1])
    with pytest.raises(InvalidInput, match="outside"):
        predict(net, x, y, rivals, alphas + 1)
    with pytest.raises(InvalidInput, match="masks is 1"):
        sample(as_sequential(net), x, y, rivals, alphas, masks=1, generator=torch.Generator())
    with pytest.raises(InvalidInput, match=r"model\[1\] is Tanh"):
        predict_sequential(nn.Sequential(nn.Linear(3, 3), nn.Tanh()), x, y, rivals, alphas)
    with pytest.raises(InvalidInput, match=r"model\[0\] is Linear.* takes no examples of shape"):
        predict_sequential(nn.Sequential(nn.Linear(9, 3)), x, y, rivals, alphas)
    with pytest.raises(InvalidInput, match="x has a NaN"):
        predict_sequential(nn.Sequential(nn.Linear(3, 3)), x * math.nan, y, rivals, alphas)
    pooled = nn.Sequential(nn.MaxPool2d(2, padding=1), nn.Flatten(), nn.Linear(4, 3))
    with pytest.raises(InvalidInput, match="max-pooling"):
        predict_sequential(pooled, np.ones((1, 1, 2, 2)), y, rivals, alphas)
    with pytest.raises(InvalidInput, match="sparsity has 1"):
        best_sparsity(np.zeros(1), np.zeros((2, 2)))
    with pytest.raises(InvalidInput, match="quantity is 'size'"):
        Sample(*np.zeros((3, 1, 2, 1))).values("size", caps=(1.0, 1.0))
    drawn = Sample(*np.zeros((3, 1, 2, 2)))
    with pytest.raises(InvalidInput, match="prediction has shape"):
        compare(predict(net, x, y, rivals, alphas), drawn, caps=(1.0, 1.0))


def pruned(model: nn.Sequential) -> nn.Sequential:
    prune.l1_unstructured(model[0], "weight", 0.5)
    prune.random_unstructured(model[0], "bias", 1)
    return model


def small(*, first: nn.Module | None = None, middle: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(1)
    layers = nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)
    return nn.Sequential(first or layers[0], middle or layers[1], layers[2])


class Masked(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - as the class has it
        return nn.functional.linear(input, self.weight * (self.weight > 0), self.bias)


def with_hook(module: nn.Module, *, before: bool = False) -> nn.Module:
    if before:
        module.register_forward_pre_hook(lambda _, args: (3 * args[0],))
    else:
        module.register_forward_hook(lambda *args: 3 * args[2])
    return module


def replaced(module: nn.Module) -> nn.Module:
    module.forward = lambda x: x
    return module


LABELS = np.array([0, 1]), np.array([1, 0])


@pytest.mark.parametrize(
    "model",
    [
        pruned(small()),
        small(first=weight_norm(nn.Linear(3, 4))),
        small(first=nn.ReLU(inplace=True), middle=nn.Linear(3, 4)),
    ],
    ids=["pruned", "parametrized", "in place"],
)
def test_what_computes_a_weight_is_followed_and_nothing_is_changed(model):
    x, alphas = np.array([[1.0, -2.0, 0.5], [0.3, 0.1, -0.2]]), np.zeros((1, 2))
    scores = model(torch.tensor(x, dtype=torch.float32)).double().detach().numpy()
    labels = scores.argmax(axis=1), scores.argmin(axis=1)
    margin = np.abs(scores[:, 0] - scores[:, 1])
    weights = [layer.weight for layer in model if isinstance(layer, nn.Linear)]
    kept = [(weight.dtype, weight.requires_grad) for weight in weights]
    predicted = predict_sequential(model, x, *labels, alphas).margin[0]
    drawn = sample(model, x, *labels, alphas, masks=2, generator=torch.Generator()).margin[0, 0]
    np.testing.assert_allclose(predicted, margin, atol=1e-6)
    np.testing.assert_allclose(drawn, margin, atol=1e-6)
    after = [layer.weight for layer in model if isinstance(layer, nn.Linear)]
    assert [(weight.dtype, weight.requires_grad) for weight in after] == kept


@pytest.mark.parametrize(
    "model",
    [
        small(first=Masked(3, 4)),
        small(middle=with_hook(nn.ReLU())),
        small(middle=with_hook(nn.ReLU(), before=True)),
        small(middle=replaced(nn.ReLU())),
        with_hook(small()),
    ],
    ids=["subclass", "hook", "hook before", "replaced", "hook of the whole"],
)
def test_a_layer_that_computes_something_else_is_refused(model):
    for call in (predict_sequential, partial(sample, masks=2, generator=torch.Generator())):
        with pytest.raises(InvalidInput, match="a forward pass or a hook of its own"):
            call(model, np.ones((2, 3)), *LABELS, np.zeros((1, 2)))


def test_a_radius_that_is_unknown_has_no_best_sparsity():
    radius = np.array([[3.0, 1.0], [np.nan, 2.0]])
    with pytest.raises(InvalidInput, match="NaN among them"):
        best_sparsity(np.array([0.0, 0.5]), radius)
    assert best_sparsity(np.array([0.0, 0.5]), radius, np.array([False, True])) == 0.5
    with pytest.raises(InvalidInput, match="has 0 entries"):
        best_sparsity(np.array([0.0, 0.5]), radius, np.zeros(2, dtype=bool))


def test_a_pruned_weight_is_that_of_now_not_of_the_last_call():
    model, x = pruned(small()), np.array([[1.0, -2.0, 0.5]])
    model(torch.ones(1, 3))
    with torch.no_grad():
        dict(model.named_parameters())["0.weight_orig"].neg_()
    zero, one = np.array([0]), np.array([1])
    first, second = (
        predict_sequential(model, x, y, k, np.zeros((1, 2))).margin[0] for y, k in ((zero, one), (one, zero))
    )
    scores = model(torch.tensor(x, dtype=torch.float32)).detach().numpy()
    np.testing.assert_allclose(first - second, scores[:, 0] - scores[:, 1], atol=1e-6)


def test_without_masks_no_square_is_needed():
    net = ReLUNetwork((np.array([[1e160, 1e-160]]), np.array([[1.0], [0.0]])), (np.zeros(1), np.zeros(2)))
    x, y, rivals = np.ones((1, 2)), np.array([0]), np.array([1])
    found = predict(net, x, y, rivals, np.zeros((1, 2)))
    values = np.ravel([found.margin, found.gradient_l2, found.gradient_l1, found.accuracy])
    assert values == pytest.approx([1e160, 1e160, 1e160, 1])
    with pytest.raises(InvalidInput, match="squares overflow"):
        predict(net, x, y, rivals, np.array([[0.5, 0.0]]))
