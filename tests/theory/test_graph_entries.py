"""Bounds of the entries of gradients: every open derivative, relaxation by two functionals, chords."""

import math
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from theory.graph.affine import points_only
from theory.graph.backward import lower_bounds
from theory.graph.bounds import node_bounds
from theory.graph.entries import entry_bounds, is_exact
from theory.graph.lipschitz import local_lipschitz
from theory.graph.network import Graph, adjoint, from_relu_network
from theory.graph.relaxation import Ball, Interval, chord
from theory.laws.adjoint import law_contains_entries
from theory.laws.catalog.graph import entry_sides
from theory.laws.graph import in_float64
from theory.laws.strategies import graphs, tensors
from theory.types import ReLUNetwork

# The run-time shape checks pick random items of the tuples in a network, also while Hypothesis draws one.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

AGREEMENT = 1e-9  # two sound bounds of one relaxation differ by their allowances for rounding
# Off, on and open, with ends at 0 on either side and on both.
SIGNS = torch.tensor([[-1.0, 1.0], [-1.0, 1.0], [-2.0, 0.5], [-1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [1.0, 1.0]])


@st.composite
def gradients(draw: st.DrawFn, dtype: torch.dtype = torch.float64):
    """A graph, intervals of the inputs of its ReLUs at two examples, and three cotangents of each."""
    graph = draw(graphs(dtype=dtype))
    units = {}
    for i in graph.activations:
        size = (2, *graph.nodes[i].shape)
        drawn = draw(st.lists(st.integers(0, 6), min_size=math.prod(size), max_size=math.prod(size)))
        sides = SIGNS.to(dtype)[torch.tensor(drawn)].unflatten(0, size)
        units[i] = Interval(sides[..., 0], sides[..., 1])
    return graph, units, draw(tensors((2, 3, graph.classes))).to(dtype)


@pytest.mark.parametrize("chords", [False, True])
@settings(max_examples=60)
@given(case=gradients())
def test_entries_stay_within_their_bounds_whatever_the_open_derivatives(chords, case):
    law_contains_entries(partial(entry_sides, chords=chords), *case)


@pytest.mark.parametrize("chords", [False, True])
@settings(max_examples=25)
@given(case=gradients(torch.float32))
def test_float32_bounds_hold_for_the_float64_network(chords, case):
    graph, units, cotangents = case

    def bounds(_: Graph, units, cotangents):
        return entry_sides(graph, units, cotangents.float(), chords=chords)

    law_contains_entries(bounds, in_float64(graph), units, cotangents.double())


@pytest.mark.parametrize("chords", [False, True])
@pytest.mark.parametrize("signs", [SIGNS, SIGNS[3:]])
def test_float32_rounding_is_accounted_for(chords, signs):
    """Weights that are no short binary fractions; with no derivative open nothing but rounding counts."""
    rng = np.random.default_rng(0)
    for _ in range(5):
        sizes = [(8, 4), (8, 8), (8, 8), (3, 8)]
        net = ReLUNetwork(tuple(rng.normal(size=s) for s in sizes), tuple(np.zeros(s[0]) for s in sizes))
        graph, units = from_relu_network(net, dtype=torch.float32), {}
        for i in graph.activations:
            sides = signs[torch.tensor(rng.integers(len(signs), size=(2, 8)))]
            units[i] = Interval(sides[..., 0], sides[..., 1])

        def bounds(_: Graph, units, cotangents, graph=graph):
            return entry_sides(graph, units, cotangents.float(), chords=chords)

        cotangents = torch.tensor(rng.normal(size=(2, 3, 3))).float()
        law_contains_entries(bounds, in_float64(graph), units, cotangents.double())


@pytest.mark.parametrize("chords", [False, True])
def test_weights_that_underflow_when_halved_are_accounted_for(chords):
    """The gradient is 0 or 2 through a weight whose half is rounded to 0."""
    weights = np.array([[2.0**60]]), np.array([[2.0**-149]]), np.array([[2.0**90], [0.0]])
    graph = from_relu_network(
        ReLUNetwork(weights, (np.zeros(1), np.zeros(1), np.zeros(2))), dtype=torch.float32
    )
    units = {i: Interval(-torch.ones(1, 1), torch.ones(1, 1)) for i in graph.activations}

    def bounds(_: Graph, units, cotangents):
        return entry_sides(graph, units, cotangents.float(), chords=chords)

    law_contains_entries(bounds, in_float64(graph), units, torch.tensor([[[1.0, 0.0]]]).double())


@settings(max_examples=60)
@given(case=gradients())
def test_chords_give_what_two_functionals_of_every_entry_give(case):
    graph, units, cotangents = case
    reverse = adjoint(graph)
    ball = Ball(cotangents.flatten(0, 1), torch.zeros(6).double(), 1.0)
    each = torch.arange(2).repeat_interleave(3)
    found = node_bounds(
        reverse, ball, units={i: z.take(each) for i, z in units.items()}, part=points_only(reverse)
    )
    for i, node in enumerate(reverse.nodes):
        entries = torch.eye(math.prod(node.shape)).double().reshape(1, -1, *node.shape)
        rows = torch.cat([entries, -entries], dim=1)
        both = lower_bounds(reverse, i, rows, found, ball, points_only(reverse)).at(ball.radius)
        below, minus_above = both.split(entries.shape[1], dim=1)
        mine = entry_bounds(reverse, i, found, units, chords=True)
        scale = 1 + max(size.max() for size in found.sizes)
        assert ((mine.lower.flatten(1) - below).abs() <= AGREEMENT * scale).all()
        assert ((mine.upper.flatten(1) + minus_above).abs() <= AGREEMENT * scale).all()
        if is_exact(reverse, i):
            assert (mine.lower <= found.intervals[i].lower + AGREEMENT * scale).all()
            assert (mine.upper >= found.intervals[i].upper - AGREEMENT * scale).all()


def chain() -> tuple[Graph, dict[int, Interval], torch.Tensor]:
    """The gradient d (2 a - b), d, a and b open: from -1 to 2."""
    net = ReLUNetwork(
        (np.ones((1, 1)), np.ones((2, 1)), np.array([[2.0, -1.0], [0.0, 0.0]])),
        (np.zeros(1), np.zeros(2), np.zeros(2)),
    )
    graph = from_relu_network(net)
    open_ = {i: torch.ones(1, *graph.nodes[i].shape).double() for i in graph.activations}
    units = {i: Interval(-one, one) for i, one in open_.items()}
    return graph, units, torch.tensor([[[1.0, 0.0]]]).double()


@pytest.mark.parametrize(("chords", "lower"), [(True, -1.0), (False, -1.5)])
def test_the_chord_is_exact_where_the_largest_size_is_not(chords, lower):
    below, above = entry_sides(*chain(), chords=chords)[-1]
    assert float(below) == pytest.approx(lower, abs=AGREEMENT)
    assert float(above) == pytest.approx(2.0, abs=AGREEMENT)


def test_every_effort_pays_on_a_deep_network():
    rng = np.random.default_rng(0)
    sizes = [(6, 4), (6, 6), (6, 6), (3, 6)]
    net = ReLUNetwork(
        tuple(rng.normal(size=s) for s in sizes), tuple(0.1 * rng.normal(size=s[0]) for s in sizes)
    )
    graph, x = from_relu_network(net), torch.tensor(rng.normal(size=(2, 4)))
    y, radius = graph.scores(x).argmax(1), torch.full((2,), 0.3).double()
    others = torch.arange(3) != y[:, None]
    for p in (2.0, math.inf):
        none, less, most = (
            local_lipschitz(graph, x, y, p=p, radius=radius, effort=effort)[others] for effort in range(3)
        )
        assert (less < none * 0.99).all()
        assert (most < less * 0.99).all()


# Of any digits, too: between round ends the chord is right without its allowance for rounding.
ENDS = st.sampled_from([0.0, -0.0, 1.0, -1.0, 3.0, -0.1, 1e-30, -1e-30, 1e30, -1e30]) | st.floats(
    -(2.0**100), 2.0**100, width=32
)


@given(ends=st.tuples(ENDS, ENDS), dtype=st.sampled_from([torch.float32, torch.float64]))
@example(ends=(-0.1, 0.3), dtype=torch.float32)
@example(ends=(-0.7, 0.3), dtype=torch.float64)
@example(ends=(-math.inf, 1.0), dtype=torch.float64)
@example(ends=(-math.inf, math.inf), dtype=torch.float64)
def test_the_chord_lies_above_the_absolute_value_and_meets_it_at_the_ends(ends, dtype):
    low, high = (torch.tensor([end], dtype=dtype) for end in sorted(ends))
    (slope,), (height,) = (side.double().tolist() for side in chord(Interval(low, high)))
    assert -1 <= slope <= 1
    if math.isinf(height):
        assert math.inf in (-float(low), float(high))
        return
    size = max(-float(low), float(high))
    for end in (float(low), float(high)):  # |z| is convex, so between the ends too
        above = Fraction(slope) * Fraction(end) + Fraction(height) - abs(Fraction(end))
        assert 0 <= above <= 20 * torch.finfo(dtype).eps * size + 2 * torch.finfo(dtype).tiny
