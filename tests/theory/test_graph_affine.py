"""How far functionals of affine nodes reach, against exact norms; groups, gathering and float32 included."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from theory.graph import affine
from theory.graph.affine import affine_part, affine_values, reaches
from theory.graph.bounds import node_bounds
from theory.graph.network import Dense, Graph, from_relu_network
from theory.graph.relaxation import Ball
from theory.laws.strategies import attack_norms, graphs, tensors
from theory.norms import dual
from theory.types import ReLUNetwork

# The run-time shape checks pick random items of the tuples in a network, also while Hypothesis draws one.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

TIGHT = 1e-9  # allowance for rounding in float64, relative to the sum of the sizes


def exact_norm(row: list[Fraction], *, q: float) -> float:
    """The l_q norm of a row of fractions, rounded down a little."""
    if q == 1:
        return float(sum(abs(entry) for entry in row)) * (1 - 1e-15)
    return math.sqrt(float(sum(entry * entry for entry in row))) * (1 - 1e-15)


def reach(graph: Graph, node: int, rows: torch.Tensor, *, q: float) -> np.ndarray:
    part = affine_part(graph, q=q)
    error = (rows.abs().flatten(2) * part.errors[node].flatten()).sum(2)
    return reaches(graph, part, {node: rows}, error).double().numpy()


def first_weight(graph: Graph) -> torch.Tensor:
    operation = graph.nodes[1].operation
    assert isinstance(operation, Dense)
    return operation.weight


def nearly_dependent(dtype: torch.dtype) -> tuple[Graph, torch.Tensor]:
    """A wide first layer whose rows differ by a millionth, and coefficients of their differences."""
    rng = np.random.default_rng(0)
    base = rng.normal(size=(1, 40))
    first = np.concatenate([base + 1e-6 * rng.normal(size=(6, 40)), rng.normal(size=(2, 40))])
    net = ReLUNetwork((first, rng.normal(size=(2, 8))), (np.zeros(8), np.zeros(2)))
    rows = rng.normal(size=(1, 200, 8))
    rows[..., 6:] = 0
    rows -= np.where(np.arange(8) < 6, rows.sum(-1, keepdims=True) / 6, 0.0)
    return from_relu_network(net, dtype=dtype), torch.tensor(rows, dtype=dtype)


@pytest.mark.parametrize("q", [1.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_reaches_are_never_below_the_exact_norm_of_cancelling_rows(dtype, q):
    graph, rows = nearly_dependent(dtype)
    weight = [[Fraction(float(w)) for w in line] for line in first_weight(graph)]
    columns = list(zip(*weight, strict=True))
    found, short = reach(graph, 1, rows, q=q)[0], 0
    for row, bound in zip(rows[0].tolist(), found, strict=True):
        fractions = [Fraction(entry) for entry in row]
        exact = exact_norm(
            [sum(map(Fraction.__mul__, fractions, column), Fraction()) for column in columns], q=q
        )
        assert bound >= exact
        short += bound <= exact * (1 + 1e-6)
    if dtype == torch.float64:
        assert short > 100  # and not far above it


def test_the_factor_needs_its_gap_and_its_stretch(monkeypatch):
    """Without them the norms of cancelling rows are understated in float32."""
    graph, rows = nearly_dependent(torch.float32)
    exact = (rows.double() @ first_weight(graph).double()).norm(dim=2).numpy()
    part = affine_part(graph, q=2.0)
    assert part.factor is not None
    assert (reach(graph, 1, rows, q=2.0) >= exact).all()
    bare = affine.AffinePart(2.0, part.norms, part.errors, 0.0, part.factor)
    assert (reaches(graph, bare, {1: rows}, torch.zeros(1, 200)).double().numpy() < exact).any()


def test_the_factor_is_made_for_many_examples_alone_and_changes_bounds_by_rounding_alone():
    rng = np.random.default_rng(0)
    sizes = [(8, 40), (6, 8), (2, 6)]
    net = ReLUNetwork(
        tuple(rng.normal(size=size) for size in sizes), tuple(rng.normal(size=size[0]) for size in sizes)
    )
    graph, x = from_relu_network(net), torch.tensor(rng.normal(size=(3, 40)))
    few, many = (affine_part(graph, q=2.0, examples=examples) for examples in (3, 300))
    assert few.factor is None
    assert many.factor is not None
    ball = Ball(x, torch.full((3,), 0.1).double(), 2.0)
    for plain, factored in zip(
        node_bounds(graph, ball, part=few).intervals,
        node_bounds(graph, ball, part=many).intervals,
        strict=True,
    ):
        torch.testing.assert_close(plain.lower, factored.lower, rtol=TIGHT, atol=TIGHT)
        torch.testing.assert_close(plain.upper, factored.upper, rtol=TIGHT, atol=TIGHT)


@settings(max_examples=40)
@given(graph=graphs(), p=attack_norms(), data=st.data())
def test_reaches_and_values_of_affine_nodes_are_those_of_their_jacobians(graph, p, data):
    """At every affine node, in groups of one entry and without the rows of zeros as in one piece."""
    x, q = data.draw(tensors((1, *graph.nodes[0].shape))), dual(p)
    flat = x.flatten()
    part, centres, values = affine_part(graph, q=q), affine_values(graph, x), graph.values(x)
    for node in part.errors:

        def value(entries: torch.Tensor, node: int = node) -> torch.Tensor:
            return graph.values(entries.reshape(x.shape))[node].flatten()

        jacobian = torch.autograd.functional.jacobian(value, flat)
        middle, error = centres[node]
        assert ((middle - values[node]).abs() <= error).all()
        rows = data.draw(tensors((2, 3, *graph.nodes[node].shape)))
        rows[0, 0] = 0
        expected = torch.linalg.vector_norm(rows.flatten(2) @ jacobian, ord=q, dim=2).numpy()
        size = (rows.abs().flatten(2) @ jacobian.abs()).sum(2).numpy()
        for group, gather in ((affine.GROUP_ENTRIES, affine.GATHER_FROM), (1, 0)):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(affine, "GROUP_ENTRIES", group)
                patch.setattr(affine, "GATHER_FROM", gather)
                found = reach(graph, node, rows, q=q)
            assert (found >= expected * (1 - 1e-13)).all()
            scale = size + rows.abs().flatten(2).sum(2).numpy() + 1e-290
            assert (found - expected <= TIGHT * scale * (1 + float(jacobian.abs().sum()))).all()
