"""Random masks on graphs against the enumeration of all masks, and against the theory of dense networks."""

import io
import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, prune

from theory.graph.builder import Builder, Place
from theory.graph.constants import path_norm
from theory.graph.masks import expected_path_norm, frobenius_bound, masked_operators, repeated_parameters
from theory.graph.network import Graph, from_relu_network
from theory.graph.reader import read, trace
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
    """A convolution or residual blocks, pooling, a last layer; and the sparsities, the last one often 0.

    Some weights are constants, the last ones too.
    """
    builder = Builder((1, 2, 3), torch.float64, torch.device("cpu"))
    origins = st.sampled_from([None, None, frozenset()])
    x = Place(0)
    if draw(st.booleans()):
        operation, builder.output = draw(convolutions((1, 2, 3)))
        arguments = (operation.stride, operation.padding, operation.dilation, operation.groups)
        convolved = builder.conv2d(x, operation.weight, None, *arguments, parameters=draw(origins))
        x = Place(builder.relu(Place(convolved)))
    else:
        for _ in range(draw(st.integers(1, 2))):  # each block reads its input twice
            kernel = draw(tensors((1, 1, 1, 3)))
            convolved = builder.conv2d(x, kernel, None, 1, (0, 1), parameters=draw(origins))
            inner = Place(builder.relu(Place(convolved)))
            x = Place(draw(st.sampled_from([builder.plus, builder.minus]))(inner, x))
    channels, height, width = builder.nodes[x].shape
    builder.output = (channels, 1, 1)
    x = Place(draw(st.sampled_from([builder.avg_pool2d, builder.max_pool2d]))(x, (height, width)))
    builder.output = (channels,)
    x = Place(builder.reshape(x))
    builder.output = (2,)
    graph = builder.finish(builder.linear(x, draw(tensors((2, channels))), parameters=draw(origins)))
    alphas = [draw(sparsities()) for _ in masked_operators(graph)]
    if alphas and draw(st.booleans()):
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


def filled(module: nn.Module, **values: list) -> nn.Module:
    for name, value in values.items():
        module.get_parameter(f"{name}.weight").data = torch.tensor(value)
    return module


class Projected(nn.Module):
    """relu(a x), twice through a constant matrix, and b: of scalars 1."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(1, 1, bias=False), nn.Linear(1, 2, bias=False)
        self.register_buffer("eye", torch.eye(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(((self.a(x).relu() @ self.eye).relu() @ self.eye).relu())


class Blurred(nn.Module):
    """A convolution with one weight, 1, averages of four by a constant kernel, and the sum of their four."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 1, 1, bias=False), nn.Linear(4, 2, bias=False)
        self.kernel = torch.full((1, 1, 2, 2), 0.25)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(F.conv2d(self.a(x).relu(), self.kernel, stride=2).flatten(1))


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize(
    ("module", "shape", "paths"),
    [
        (filled(Projected(), a=[[1.0]], b=[[1.0], [0.0]]), (1,), 1.0),
        (filled(Blurred(), a=[[[[1.0]]]], b=[[1.0] * 4, [0.0] * 4]), (1, 4, 4), 4.0),
    ],
)
def test_products_with_constants_are_not_masked(module, shape, paths, saved):
    """The one hidden weight stays with probability 1/2, and the gradient is 0 without it."""
    program = trace(module, shape)
    if saved:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            file = io.BytesIO()
            torch.export.save(program, file)
            file.seek(0)
            program = torch.export.load(file)
    graph = read(program, shape)
    assert len(masked_operators(graph)) == 2
    for rung, value in (expected_path_norm, laws.path_norm_by_rows), (frobenius_bound, laws.product_of_norms):
        truth = laws.expectation_over_masks(lambda g, value=value: value(g, PAIR), graph, [0.5, 0.0])
        assert rung(graph, [0.5], PAIR) >= truth * (1 - 1e-12)
    assert expected_path_norm(graph, [0.5], PAIR) == pytest.approx(paths / 2)
    assert expected_path_norm(graph, [0.5, 0.5], PAIR) == pytest.approx(paths / 4)


def test_a_last_layer_of_constants_is_not_masked():
    class Summed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(1, 1, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(x).relu() @ torch.tensor([[1.0, 0.0]])

    graph = read(filled(Summed(), a=[[3.0]]), (1,))
    for rung, kept in ((expected_path_norm, 0.5), (frobenius_bound, math.sqrt(0.5))):
        assert rung(graph, [0.5], PAIR) == pytest.approx(3 * kept)
        with pytest.raises(InvalidInput, match="alphas has 0 entries; give 1"):
            rung(graph, [], PAIR)


class Computed(nn.Module):
    """Weights from parameters in every way, and constants that only look at one."""

    constant: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.normed = parametrizations.weight_norm(nn.Linear(2, 2, bias=False))
        self.pruned = nn.Linear(2, 2, bias=False)
        prune.random_unstructured(self.pruned, "weight", 1)
        self.matrix, self.shift = nn.Parameter(torch.randn(2, 2)), nn.Parameter(torch.randn(2))
        self.register_buffer("constant", torch.randn(2, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        like = self.constant.type_as(self.matrix), torch.ones_like(self.matrix), self.matrix.new_ones(2, 2)
        for weight in like:
            x = (x @ weight).relu()
        x = torch.addmm(self.shift, self.pruned(self.normed(x)).relu(), self.constant.mT)
        x = x.relu() @ (self.matrix.mT * self.constant)
        return x.relu() @ torch.stack([self.matrix[0], self.constant[0]])


def test_what_comes_from_a_parameter_is_masked():
    graph = read(Computed(), (2,))
    origins = [graph.nodes[i].operation.parameters for i in masked_operators(graph)]  # pyright: ignore
    normed = [f"normed.parametrizations.weight.original{k}" for k in range(2)]
    assert origins == [{*normed}, {"pruned.weight_orig"}, {"matrix"}, {"matrix"}]
    assert repeated_parameters(graph) == {"matrix"}


class Tied(nn.Module):
    """One layer behind itself, or beside itself; its weight is a parameter of both names."""

    def __init__(self, *, behind: bool) -> None:
        super().__init__()
        self.a, self.again, self.b = (nn.Linear(n, m, bias=False) for n, m in ((1, 1), (1, 1), (1, 2)))
        self.again.weight, self.behind = self.a.weight, behind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.a(x).relu()
        return self.b(self.again(h).relu() if self.behind else h + self.again(-x).relu())


def test_one_mask_behind_itself_is_not_two_independent_ones():
    for behind in (False, True):
        graph = read(filled(Tied(behind=behind), a=[[1.0]], b=[[1.0], [0.0]]), (1,))
        kept = [0.5**power for power in ((2,) if behind else (1, 1))]
        assert expected_path_norm(graph, [0.5, 0.5], PAIR) == pytest.approx(sum(kept))  # as documented
        (name,) = graph.nodes[1].operation.parameters  # pyright: ignore
        assert name in ("a.weight", "again.weight")
        # With one mask it is 1/2 behind each other, and the sum of two beside.
        assert repeated_parameters(graph) == ({name} if behind else set())
    assert not repeated_parameters(witness())


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
