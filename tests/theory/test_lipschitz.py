"""Global Lipschitz constants against every activation pattern, rational arithmetic and autograd."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from theory.laws import gradients
from theory.laws import relu as laws
from theory.laws.strategies import EXTREME, arrays, attack_norms, relu_networks
from theory.norms import dual, norm
from theory.relu.lipschitz import (
    gradient_norms,
    lipschitz_constants,
    local_gradient,
    norm_product,
    outward,
    path_norm,
)
from theory.types import InvalidInput, ReLUNetwork

# The run-time shape checks pick random items of the tuples in a network, also while Hypothesis draws one.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

BOUNDS = [norm_product, path_norm, lipschitz_constants]
# Autograd and ours multiply the same numbers in another order.
AUTOGRAD_TOLERANCE = 1e-10


def net_of(*weights: object) -> ReLUNetwork:
    """A network without biases."""
    layers = tuple(np.array(w, dtype=float) for w in weights)
    return ReLUNetwork(layers, tuple(np.zeros(len(w)) for w in layers))


# Row and column sums, and l_1 and l_2 norms, all differ: a swapped orientation or norm shows.
WITNESS = net_of([[1, 2, -3], [4, 0.5, 1]], [[2, -1], [0.5, 3], [1, 1]])
LINEAR = net_of([[3, 4, 1], [0, -1, 2]])
HUGE_AND_DEAD = net_of([[1e300]], [[0.0]], [[1e300]], [[1e300], [1.0]])
BALANCED_SCALES = net_of([[1e-200]], [[1e-200]], [[1e300]], [[1e300], [0.0]])


def l2_for_every_p(net: ReLUNetwork, *, p: float) -> np.ndarray:
    del p
    return norm_product(net, p=2.0)


def columns_for_rows(net: ReLUNetwork, *, p: float) -> np.ndarray:
    del p
    factor = math.prod(np.abs(w).sum(axis=0).max() for w in net.weights[:-1])
    last = net.weights[-1]
    return norm(last[:, None] - last, p=1.0) * factor


@pytest.mark.parametrize("bound", BOUNDS)
@given(net=relu_networks(max_hidden=3), p=attack_norms())
def test_constants_bound_the_gradient_of_every_pattern(bound, net, p):
    laws.law_bounds_every_gradient(bound, net, p=p)


@given(net=relu_networks(scales=EXTREME))
@example(net=HUGE_AND_DEAD)
@example(net=BALANCED_SCALES)
@example(net=net_of([[1e200]], [[1e200], [0.0]]))
@example(net=net_of([[1e-200]], [[1e-200], [0.0]]))
@example(net=net_of([[1e-320, 1.0]], [[1e308], [-1e308]]))
@example(net=net_of([[0.0, 1.0, 0.0]], [[0.0], [1.0]], [[1.0, 0.0], [0.0, 6.708567274206701e-151]]))
def test_path_norm_is_the_rational_one_rounded_up_at_every_scale(net):
    laws.law_equals_exact_path_norm(path_norm, net)


@pytest.mark.parametrize("p", [2.0, math.inf])
def test_a_path_that_underflows_on_the_way_is_not_lost(p):
    """The only live path, 1e-200 * 1e-200 * 1e300, has a product below every float before its last factor."""
    net = net_of([[0.0], [1e300]], [[1.0, 0.0], [0.0, 1e-200]], [[1.0, 1e-200], [0.0, 0.0]])
    assert path_norm(net, p=p)[0, 1] >= 1e-100


@pytest.mark.parametrize("bound", BOUNDS)
@given(net=relu_networks(max_depth=1), p=attack_norms())
def test_linear_classifiers_are_exact(bound, net, p):
    laws.law_exact_for_linear(bound, net, p=p)


@pytest.mark.parametrize("bound", BOUNDS)
@given(net=relu_networks(), p=attack_norms(), data=st.data())
def test_doubling_a_layer_doubles_the_constants(bound, net, p, data):
    laws.law_homogeneous(bound, net, data.draw(st.integers(0, len(net.weights) - 1)), p=p)


@pytest.mark.parametrize("p", [2.0, math.inf])
@pytest.mark.parametrize("bound", BOUNDS)
def test_huge_layers_give_infinity_dead_ones_zero_and_tiny_ones_stay_positive(bound, p):
    assert bound(net_of([[1e200]], [[1e200], [0.0]]), p=p)[0, 1] == math.inf
    assert bound(HUGE_AND_DEAD, p=p)[0, 1] == 0
    assert bound(net_of([[1e-200]], [[1e-200], [0.0]]), p=p)[0, 1] == 5e-324
    assert bound(BALANCED_SCALES, p=p)[0, 1] == pytest.approx(1e200)
    assert bound(net_of([[1.0]], [[1e308], [-1e308]]), p=p)[0, 1] == math.inf


@given(net=relu_networks(), p=attack_norms(), data=st.data())
def test_positive_networks_attain_the_path_norm(net, p, data):
    x = data.draw(arrays((1, net.weights[0].shape[1])))
    gradients.is_attained(path_norm, net, x, p=p)


def test_laws_reject_wrong_norms_and_orientations():
    laws.law_bounds_every_gradient(norm_product, WITNESS, p=math.inf)
    with pytest.raises(AssertionError):
        laws.law_bounds_every_gradient(l2_for_every_p, LINEAR, p=math.inf)
    with pytest.raises(AssertionError):
        laws.law_exact_for_linear(l2_for_every_p, LINEAR, p=math.inf)
    wide = net_of([[1, 1, 1, 1]], [[1], [-1]])
    with pytest.raises(AssertionError):
        laws.law_bounds_every_gradient(columns_for_rows, wide, p=math.inf)


@pytest.mark.parametrize("factor", [1 - 1e-14, 1 + 1e-9])
def test_path_norm_law_rejects_rounding_down_and_looseness(factor):
    with pytest.raises(AssertionError):
        laws.law_equals_exact_path_norm(lambda net, *, p: factor * path_norm(net, p=p), WITNESS)


@given(net=relu_networks(), p=attack_norms(), data=st.data())
def test_difference_quotients_stay_below_the_constants(net, p, data):
    ends = data.draw(arrays((2, net.weights[0].shape[1])))
    gradients.bounds_quotients(lipschitz_constants, net, ends, p=p)


@given(net=relu_networks(), p=attack_norms(), data=st.data())
def test_local_gradients_agree_with_automatic_differentiation(net, p, data):
    x = data.draw(arrays((3, net.weights[0].shape[1])))

    def scores(point):
        hidden = point
        for layer, (weight, bias) in enumerate(zip(net.weights, net.biases, strict=True)):
            hidden = torch.relu(hidden) if layer else hidden
            hidden = torch.tensor(weight) @ hidden + torch.tensor(bias)
        return hidden

    truth = np.stack([torch.autograd.functional.jacobian(scores, torch.tensor(row)).numpy() for row in x])
    ours = local_gradient(net, x)
    paths = np.maximum(path_norm(net, p=math.inf).max(), 1e-300)
    kinks = _kinks(net, x)
    np.testing.assert_allclose(ours[~kinks], truth[~kinks], atol=AUTOGRAD_TOLERANCE * _scale(net), rtol=0)
    pairs = np.array(laws.all_pairs(net))
    expected = norm(ours[:, pairs[:, 0]] - ours[:, pairs[:, 1]], p=dual(p))
    found = gradient_norms(net, x, pairs, p=p)
    np.testing.assert_allclose(found, expected, atol=AUTOGRAD_TOLERANCE * _scale(net), rtol=0)
    assert (found <= lipschitz_constants(net, p=p)[pairs[:, 0], pairs[:, 1]] + 1e-12 * paths).all()


def _kinks(net, x):
    """Rows where some pre-activation is zero, or too close to zero to be sure of its sign."""
    hidden, found, size = x, np.zeros(len(x), dtype=bool), np.abs(x)
    for weight, bias in zip(net.weights[:-1], net.biases[:-1], strict=True):
        before = hidden @ weight.T + bias
        size = size @ np.abs(weight).T + np.abs(bias)
        found |= (np.abs(before) <= 1e-12 * size).any(axis=1)
        hidden = np.maximum(before, 0)
    return found


def _scale(net):
    return max(math.prod(np.abs(w).sum() for w in net.weights), 1e-300)


def test_outward_covers_the_worst_rounding():
    roundings = 1000
    assert outward(np.array((1 - 2.0**-53) ** roundings), roundings=roundings) >= 1


def test_illegal_calls_name_the_argument():
    with pytest.raises(InvalidInput, match="p is 1.0"):
        lipschitz_constants(WITNESS, p=1.0)
    with pytest.raises(InvalidInput, match="classes must lie in"):
        gradient_norms(WITNESS, np.ones((1, 3)), np.array([[0, 3]]), p=2.0)
    with pytest.raises(InvalidInput, match="takes 3 features"):
        local_gradient(WITNESS, np.ones((1, 2)))
