"""Graphs without their dead parts: the same function, certificates and constants, on fewer entries."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from theory.graph import bounds, certificate, lipschitz
from theory.graph.certificate import certified_radius, margin_bounds
from theory.graph.compaction import compacted
from theory.graph.lipschitz import local_lipschitz
from theory.graph.network import Dense, Graph, from_relu_network
from theory.laws.strategies import attack_norms, graphs, relu_networks, tensors
from theory.types import InvalidInput, ReLUNetwork

pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

# Bounds differ by their allowances for rounding, which count entries, far below this.
AGREEMENT = 1e-9
FAR = 1e9
# The margin is at least 1/16 everywhere.
SURE = ReLUNetwork(
    (np.diag([0.0, 0.0, 0.25, 0.0])[:, [0, 1, 3, 2]], np.array([[0.25, 0.0, 0.25, 0.0], [0.0] * 4])),
    (np.array([0.25, 0.0, 0.0, 0.0]), np.zeros(2)),
)


def kept(n: int) -> st.SearchStrategy[np.ndarray]:
    return st.lists(st.sampled_from([0.0, 1.0]), min_size=n, max_size=n).map(np.array)


@st.composite
def sparse_networks(draw: st.DrawFn) -> ReLUNetwork:
    """Networks of which whole rows and columns are often pruned away, with biases of either sign and 0."""
    net = draw(relu_networks(width=4, max_depth=4, max_hidden=4, scales=(1.0,)))
    weights, biases = [], []
    for weight, bias in zip(net.weights, net.biases, strict=True):
        rows, columns = (draw(kept(n)) for n in weight.shape)
        weights.append(weight * rows[:, None] * columns)
        biases.append(bias * draw(kept(len(bias))))
    return ReLUNetwork(tuple(weights), tuple(biases))


def sizes(graph: Graph) -> list[int]:
    return [math.prod(node.shape) for node in graph.nodes]


@settings(max_examples=200)
@given(net=sparse_networks(), data=st.data())
def test_scores_are_the_same_and_nothing_dead_is_left(net, data):
    graph = from_relu_network(net)
    x = data.draw(tensors((3, net.weights[0].shape[1])))
    small, features = compacted(graph, x)
    torch.testing.assert_close(small.scores(features), graph.scores(x), rtol=1e-12, atol=1e-12)
    layers = [
        (node.operation.weight, node.bias)
        for node in small.nodes
        if isinstance(node.operation, Dense) and node.bias is not None
    ]
    assert len(layers) == len(net.weights)
    for (weight, bias), (after, _) in itertools.pairwise(layers):
        assert len(weight) == 1 or ((weight.any(1) | (bias > 0)) & after.any(0)).all()
    assert features.shape[1] == 1 or layers[0][0].any(0).all()
    again, same = compacted(small, features)
    assert sizes(again) == sizes(small)
    torch.testing.assert_close(same, features)


@settings(max_examples=40)
@given(net=sparse_networks(), p=attack_norms(), steps=st.sampled_from([0, 2]), data=st.data())
@example(net=SURE, p=2.0, steps=0, data=None)
def test_certificates_and_constants_are_those_of_the_whole_graph(net, p, steps, data):
    graph = from_relu_network(net)
    shape = (2, net.weights[0].shape[1])
    x = torch.zeros(shape).double() if data is None else data.draw(tensors(shape))
    y, radius = graph.scores(x).argmax(1), torch.tensor([0.1, 0.5]).double()

    def found() -> list[torch.Tensor]:
        return [
            margin_bounds(graph, x, y, p=p, radius=radius),
            local_lipschitz(graph, x, y, p=p, radius=radius),
            certified_radius(graph, x, y, p=p, steps=steps),
        ]

    ours = found()
    with pytest.MonkeyPatch.context() as patch:
        for module in (certificate, lipschitz):
            patch.setattr(module, "compacted", lambda graph, x: (graph, x))
        whole = found()
    for here, there in zip(ours[:2], whole[:2], strict=True):
        torch.testing.assert_close(here, there, rtol=AGREEMENT, atol=AGREEMENT)
    # So far out that rounding alone ends a certificate, the smaller graph, which rounds less, gets further.
    far = whole[2] > FAR
    assert (ours[2][far] >= whole[2][far] * (1 - 1e-3)).all()
    torch.testing.assert_close(ours[2][~far], whole[2][~far], rtol=1e-3, atol=AGREEMENT)


@settings(max_examples=40)
@given(graph=graphs(), data=st.data())
def test_graphs_of_other_layers_keep_their_scores(graph, data):
    x = data.draw(tensors((2, *graph.nodes[0].shape)))
    small, features = compacted(graph, x)
    torch.testing.assert_close(small.scores(features), graph.scores(x), rtol=1e-12, atol=1e-12)


def test_dead_parts_cost_nothing(monkeypatch):
    """A network with one live unit per layer and one live feature is bounded at that size."""
    rng = np.random.default_rng(0)
    weights = [np.zeros((50, 40)), np.zeros((30, 50)), np.zeros((3, 30))]
    weights[0][7, 5], weights[1][3, 7], weights[2][:, 3] = 1.0, -1.0, rng.normal(size=3)
    weights[0][8, 6] = weights[1][4, 8] = 1.0  # a path that ends before the scores,
    weights[1][5, 9], weights[2][:, 5] = 1.0, 1.0  # and one that begins behind the features
    graph = from_relu_network(ReLUNetwork(tuple(weights), tuple(np.zeros(len(w)) for w in weights)))
    seen = []
    true = bounds.node_bounds

    def counted(graph, ball, **options):
        seen.append(sizes(graph))
        return true(graph, ball, **options)

    monkeypatch.setattr(certificate, "node_bounds", counted)
    x = torch.tensor(rng.normal(size=(4, 40)))
    certified_radius(graph, x, graph.scores(x).argmax(1), p=2.0)
    assert seen
    assert all(found == [1, 1, 1, 1, 1, 3] for found in seen)


def test_wrong_inputs_are_told_in_the_shape_of_the_whole_network():
    net = ReLUNetwork((np.array([[1.0, 0.0, 0.0]]), np.ones((2, 1))), (np.zeros(1), np.zeros(2)))
    graph = from_relu_network(net)
    with pytest.raises(InvalidInput, match=r"takes \(m, 3,\)"):
        certified_radius(graph, torch.zeros(1, 1).double(), torch.tensor([0]), p=2.0)
    with pytest.raises(InvalidInput, match="NaN or infinite"):
        certified_radius(graph, torch.tensor([[0.0, math.nan, 0.0]]), torch.tensor([0]), p=2.0)
