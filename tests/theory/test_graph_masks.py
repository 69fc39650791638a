"""Random masks on graphs against the enumeration of all masks, and against the theory of dense networks."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from theory.graph.builder import Builder, Place
from theory.graph.constants import path_norm
from theory.graph.masks import expected_path_norm, frobenius_bound, masked_operators
from theory.graph.network import Graph, from_relu_network
from theory.laws import graph as laws
from theory.laws.strategies import convolutions, relu_networks, sparsities, tensors
from theory.relu import masks as relu_masks
from theory.types import InvalidInput, ReLUNetwork

# The run-time shape checks pick random items of the tuples in a network, also while Hypothesis draws one.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

PAIR = (0, 1)
UNDERFLOW = 1e-290
MOST_WEIGHTS = 9  # of the masked layers: all 2**9 masks


@st.composite
def tiny_convolutions(draw: st.DrawFn) -> tuple[Graph, list[float]]:
    """A convolution or residual blocks, pooling, a last layer; and the sparsities, the last one often 0."""
    builder = Builder((1, 2, 3), torch.float64, torch.device("cpu"))
    x = Place(0)
    if draw(st.booleans()):
        operation, builder.output = draw(convolutions((1, 2, 3)))
        arguments = (operation.stride, operation.padding, operation.dilation, operation.groups)
        x = Place(builder.relu(Place(builder.conv2d(x, operation.weight, None, *arguments))))
    else:
        for _ in range(draw(st.integers(1, 2))):  # each block reads its input twice
            kernel = draw(tensors((1, 1, 1, 3)))
            inner = Place(builder.relu(Place(builder.conv2d(x, kernel, None, 1, (0, 1)))))
            x = Place(draw(st.sampled_from([builder.plus, builder.minus]))(inner, x))
    channels, height, width = builder.nodes[x].shape
    builder.output = (channels, 1, 1)
    x = Place(draw(st.sampled_from([builder.avg_pool2d, builder.max_pool2d]))(x, (height, width)))
    builder.output = (channels,)
    x = Place(builder.reshape(x))
    builder.output = (2,)
    graph = builder.finish(builder.linear(x, draw(tensors((2, channels)))))
    alphas = [draw(sparsities()) for _ in masked_operators(graph)]
    if draw(st.booleans()):
        alphas[-1] = 0.0
    weights = [graph.nodes[i].operation.weight.numel() for i in masked_operators(graph)]  # pyright: ignore
    assume(sum(weights) <= MOST_WEIGHTS)
    return graph, alphas


@settings(max_examples=15)
@given(case=tiny_convolutions())
def test_p1_is_the_expected_path_norm(case):
    graph, alphas = case
    laws.law_equals_expectation(
        expected_path_norm, lambda g: laws.path_norm_by_rows(g, PAIR), graph, alphas, PAIR
    )


@settings(max_examples=15)
@given(case=tiny_convolutions())
def test_f_bounds_the_expected_product_of_norms(case):
    graph, alphas = case
    laws.law_bounds_expectation(
        frobenius_bound, lambda g: laws.product_of_norms(g, PAIR), graph, alphas, PAIR
    )


@settings(max_examples=25)
@given(case=tiny_convolutions(), data=st.data())
def test_the_rungs_bound_gradients_without_masks(case, data):
    """At alpha = 0 both are constants of the network itself, for every pair."""
    graph, alphas = case
    none = [0.0] * len(alphas)
    x = data.draw(tensors((2, *graph.nodes[0].shape)))
    y, radius = torch.zeros(2, dtype=torch.int64), torch.ones(2).double()

    for rung, p in ((expected_path_norm, np.inf), (frobenius_bound, 2.0)):

        def constants(graph, x, y, *, p, radius, rung=rung):
            return torch.tensor([[0.0, rung(graph, none, PAIR)]] * 2, dtype=torch.float64)

        laws.law_bounds_difference_quotients(constants, graph, x, y, radius, p=p)
    dense = float(path_norm(graph, p=np.inf)[PAIR])
    assert expected_path_norm(graph, none, PAIR) >= dense * (1 - 1e-9) - UNDERFLOW


@given(net=relu_networks(max_depth=4, scales=(1.0, 1e-6, 1e6)), data=st.data())
def test_dense_networks_agree_with_the_numpy_route(net, data):
    alphas = np.array([data.draw(sparsities()) for _ in net.weights])
    graph = from_relu_network(net)
    for ours, theirs in (
        (expected_path_norm, relu_masks.expected_path_norm),
        (frobenius_bound, relu_masks.frobenius_bound),
    ):
        expected = float(theirs(net, alphas, PAIR))
        np.testing.assert_allclose(ours(graph, list(alphas), PAIR), expected, rtol=1e-9, atol=UNDERFLOW)
        unmasked = ours(graph, [*alphas[:-1]], PAIR)
        assert unmasked == ours(graph, [*alphas[:-1], 0.0], PAIR)


def witness() -> Graph:
    """A convolution with padding, a residual sum and a last layer; nothing symmetric."""
    builder = Builder((1, 1, 3), torch.float64, torch.device("cpu"))
    kernel = torch.tensor([[[[1.0, -2.0, 0.5]]]]).double()
    inner = Place(builder.relu(Place(builder.conv2d(Place(0), kernel, None, 1, (0, 1)))))
    x = Place(builder.plus(inner, Place(0)))
    builder.output = (3,)
    x = Place(builder.reshape(x))
    builder.output = (2,)
    return builder.finish(builder.linear(x, torch.tensor([[1.0, 2.0, -1.0], [0.5, -1.0, 3.0]]).double()))


def test_laws_reject_wrong_rungs():
    graph, alphas = witness(), [0.5, 0.25]

    def paths(g):
        return laws.path_norm_by_rows(g, PAIR)

    def norms(g):
        return laws.product_of_norms(g, PAIR)

    def skip_masked_too(graph, alphas, pair):
        return expected_path_norm(graph, [0.0, alphas[1]], pair) * (1 - alphas[0])

    def squared_keep(graph, alphas, pair):
        return expected_path_norm(graph, [1 - (1 - alphas[0]) ** 2, alphas[1]], pair)

    def last_unmasked(graph, alphas, pair):
        return expected_path_norm(graph, [alphas[0], 0.0], pair)

    laws.law_equals_expectation(expected_path_norm, paths, graph, alphas, PAIR)
    for broken in (skip_masked_too, squared_keep, last_unmasked):
        with pytest.raises(AssertionError):
            laws.law_equals_expectation(broken, paths, graph, alphas, PAIR)

    laws.law_bounds_expectation(frobenius_bound, norms, graph, alphas, PAIR)
    with pytest.raises(AssertionError):
        laws.law_bounds_expectation(lambda *a: 0.3 * frobenius_bound(*a), norms, graph, alphas, PAIR)

    def without_overlap(graph, alphas, pair):
        kernel = float(graph.nodes[1].operation.weight.norm())
        v = graph.nodes[-1].operation.weight
        return (1 + np.sqrt(1 - alphas[0]) * kernel) * float((v[0] - v[1]).norm())

    shared = [0.0, 0.0]  # the norm of the kernel alone is not that of its convolution
    flat = laws.with_kernel(graph, torch.ones(1, 1, 1, 3).double())
    laws.law_bounds_expectation(frobenius_bound, norms, flat, shared, PAIR)
    with pytest.raises(AssertionError):
        laws.law_bounds_expectation(without_overlap, norms, flat, shared, PAIR)


@pytest.mark.parametrize("rung", [expected_path_norm, frobenius_bound])
def test_what_overflows_is_infinite_and_not_nan(rung):
    weights = (np.full((2, 2), 1e200), np.full((2, 2), 1e200), np.array([[1.0, 0.0], [0.0, 0.0]]))
    dead = (*weights[:2], np.zeros((2, 2)))
    for chosen in (weights, dead):
        graph = from_relu_network(ReLUNetwork(chosen, (np.zeros(2),) * 3))
        assert rung(graph, [0.5, 0.5], PAIR) == math.inf
    largest = from_relu_network(ReLUNetwork((np.full((2, 2), 1.7e308), np.eye(2)), (np.zeros(2),) * 2))
    assert rung(largest, [1.0], PAIR) >= 0


def test_pooling_is_not_masked():
    builder = Builder((1, 2, 2), torch.float64, torch.device("cpu"))
    builder.output = (1, 1, 1)
    x = Place(builder.avg_pool2d(Place(0), 2))
    builder.output = (1,)
    x = Place(builder.reshape(x))
    builder.output = (2,)
    graph = builder.finish(builder.linear(x, torch.tensor([[1.0], [0.0]]).double()))
    assert masked_operators(graph) == [len(graph.nodes) - 1]
    assert expected_path_norm(graph, [], PAIR) == pytest.approx(1.0)
    assert frobenius_bound(graph, [], PAIR) == pytest.approx(0.5)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("alphas", "pair", "message"),
    [
        ([0.5, 0.5, 0.5], PAIR, "alphas has 3 entries; give 2"),
        ([], PAIR, "alphas has 0 entries"),
        ([0.5, 1.5], PAIR, r"alphas\[1\] is 1.5"),
        ([float("nan")], PAIR, r"alphas\[0\] is nan"),
        ([0.5], (1, 1), "two different classes"),
        ([0.5], (0, 2), "two different classes"),
    ],
)
def test_illegal_calls_name_the_argument(alphas, pair, message):
    for rung in (expected_path_norm, frobenius_bound):
        with pytest.raises(InvalidInput, match=message):
            rung(witness(), alphas, pair)


def test_a_graph_must_end_in_its_scores():
    graph = witness()
    ending = Graph((*graph.nodes, laws.relu_of(graph)), graph.dtype, graph.device)
    with pytest.raises(InvalidInput, match="graph ends in something else"):
        expected_path_norm(ending, [0.5], PAIR)
