"""Bounds of nodes and margins over balls against points of the ball, linear programs and the NumPy route."""

import math
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from theory.graph import bounds as bounds_module
from theory.graph.bounds import node_bounds, open_signs
from theory.graph.certificate import centre_margins, certified_radius, margin_bounds
from theory.graph.constants import lipschitz_constants, norm_product, path_norm
from theory.graph.masks import expected_path_norm, frobenius_bound
from theory.graph.network import Graph, from_relu_network
from theory.graph.reader import read
from theory.graph.relaxation import Ball
from theory.laws import graph as laws
from theory.laws.strategies import arrays, attack_norms, convolutions, graphs, relu_networks, tensors
from theory.norms import dual
from theory.relu import lipschitz as relu_lipschitz
from theory.relu import margins as relu_margins
from theory.relu import masks as relu_masks
from theory.types import InvalidInput, ReLUNetwork

# The run-time shape checks pick random items of the tuples in a network, also while Hypothesis draws one.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

# Two sound bounds of one relaxation differ by their allowances for rounding, far below this.
AGREEMENT = 1e-9
UNDERFLOW = 1e-290  # allowances for underflow, on either side


@st.composite
def balls(draw: st.DrawFn, graph: Graph, *, examples: int = 2):
    """Centres, predicted labels and radii."""
    x = draw(tensors((examples, *graph.nodes[0].shape)))
    radius = torch.tensor([draw(st.sampled_from([0.0, 0.1, 0.5, 2.0])) for _ in range(examples)]).double()
    return x, graph.scores(x).argmax(1), radius


def sides(graph: Graph, x: torch.Tensor, radius: torch.Tensor, *, p: float, steps: int = 0):
    found = node_bounds(graph, Ball(x, radius, dual(p)), tighten=partial(open_signs, steps=steps))
    return [(b.lower, b.upper) for b in found.intervals]


@settings(max_examples=80)
@given(graph=graphs(), p=attack_norms(), steps=st.sampled_from([0, 0, 3]), data=st.data())
def test_every_node_stays_within_its_bounds(graph, p, steps, data):
    x, _, radius = data.draw(balls(graph))
    laws.law_contains_values(partial(sides, steps=steps), graph, x, radius, p=p)


@settings(max_examples=40)
@given(graph=graphs(), p=attack_norms(), steps=st.sampled_from([0, 0, 3]), data=st.data())
def test_margins_are_never_above_those_of_points(graph, p, steps, data):
    x, y, radius = data.draw(balls(graph))

    def margins(graph, x, y, *, p, radius):
        return margin_bounds(graph, x, y, p=p, radius=radius, steps=steps)

    laws.law_margins_below_points(margins, graph, x, y, radius, p=p)


def test_ascent_steps_tighten_the_inputs_of_later_relus():
    rng = np.random.default_rng(0)
    weights = tuple(rng.normal(size=s) for s in ((10, 4), (10, 10), (3, 10)))
    graph = from_relu_network(ReLUNetwork(weights, tuple(np.zeros(len(w)) for w in weights)))
    ball = Ball(torch.tensor(rng.normal(size=(5, 4))), torch.full((5,), 0.3).double(), 2.0)
    plain, found = (
        node_bounds(graph, ball, tighten=partial(open_signs, steps=steps)).intervals for steps in (0, 10)
    )
    second = graph.nodes[graph.activations[1]].inputs[0]
    before, after = (b[second].upper - b[second].lower for b in (plain, found))
    assert (after < 0.97 * before).double().mean() > 0.25


# |x| and a second unit that is dead on the ball: the lines of the chord and the slopes 0 and 1 all occur.
ABSOLUTE = ReLUNetwork(
    (np.array([[1.0], [-1.0], [0.0]]), np.array([[-1.0, -1.0, 5.0], [0.0, 0.0, 0.0]])),
    (np.array([0.0, 0.0, -1.0]), np.array([1.0, 0.0])),
)
# A unit that is off everywhere: what its input rounds to counts in one route and not in the other.
DEAD = ReLUNetwork((np.array([[0.0]]), np.array([[0.0], [0.25]])), (np.array([-0.25]), np.zeros(2)))


@settings(max_examples=25)
@given(
    net=relu_networks(width=2, max_depth=3, max_hidden=3, scales=(1.0,)),
    radius=st.sampled_from([0.1, 0.5, 2.0]),
    steps=st.sampled_from([0, 2]),
    data=st.data(),
)
@example(net=ABSOLUTE, radius=0.5, steps=0, data=None)
def test_margins_are_never_above_the_exact_minimum(net, radius, steps, data):
    width = net.weights[0].shape[1]
    x = np.full(width, 0.25) if data is None else data.draw(arrays((width,)))
    graph, y = from_relu_network(net), int(net.scores(x[None]).argmax())
    found = margin_bounds(
        graph,
        torch.tensor(x[None]),
        torch.tensor([y]),
        p=math.inf,
        radius=torch.tensor([radius]),
        steps=steps,
    )
    laws.law_margins_below_exact(found[0].numpy(), net, x, y, radius)


@settings(max_examples=60)
@given(net=relu_networks(), p=attack_norms(), data=st.data())
@example(net=DEAD, p=2.0, data=None)
def test_dense_networks_agree_with_the_numpy_route(net, p, data):
    width = net.weights[0].shape[1]
    x = np.zeros((3, width)) if data is None else data.draw(arrays((3, width)))
    y, radius = net.scores(x).argmax(axis=1), np.array([0.0, 0.1, 1.0])
    graph, point, ball_radius = from_relu_network(net), torch.tensor(x), torch.tensor(radius)
    expected = relu_margins.margin_bounds(net, x, y, p=p, radius=radius)
    found = margin_bounds(graph, point, torch.tensor(y), p=p, radius=ball_radius).numpy()
    *sizes, last = term_sizes(net, x, radius)
    np.testing.assert_allclose(found, expected, rtol=AGREEMENT, atol=AGREEMENT * last + UNDERFLOW)
    bounds = node_bounds(graph, Ball(point, ball_radius, dual(p))).intervals
    preactivations = [bounds[graph.nodes[i].inputs[0]] for i in graph.activations]
    theirs = relu_margins.preactivation_bounds(net, x, p=p, radius=radius)
    for ours, (lower, upper), size in zip(preactivations, theirs, sizes, strict=True):
        # A unit whose sign is certain by intervals is not bounded again by us.
        open_ = (ours.lower < 0) & (ours.upper > 0)
        absolute = AGREEMENT * size + UNDERFLOW
        np.testing.assert_allclose(np.where(open_, ours.lower, lower), lower, rtol=AGREEMENT, atol=absolute)
        np.testing.assert_allclose(np.where(open_, ours.upper, upper), upper, rtol=AGREEMENT, atol=absolute)


def term_sizes(net: ReLUNetwork, x: np.ndarray, radius: np.ndarray) -> list[float]:
    """The largest sum of absolute terms in any unit of each layer: what rounding is relative to."""
    size, found = np.abs(x) + radius[:, None], []
    for weight, bias in zip(net.weights, net.biases, strict=True):
        size = size @ np.abs(weight).T + np.abs(bias)
        found.append(float(size.max()))
    return found


@settings(max_examples=20)
@given(graph=graphs(), p=attack_norms(), data=st.data())
def test_bounds_do_not_depend_on_the_chunks_and_use_what_is_known(graph, p, data):
    x, _, radius = data.draw(balls(graph))
    ball = Ball(x, radius, dual(p))
    whole = node_bounds(graph, ball)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bounds_module, "ROW_ENTRIES", 1)
        for one, other in zip(whole.intervals, node_bounds(graph, ball).intervals, strict=True):
            scale = 1 + other.size.max()
            assert (one.lower - other.lower).abs().max() <= AGREEMENT * scale
            assert (one.upper - other.upper).abs().max() <= AGREEMENT * scale
    smaller = ball.within(radius / 2)
    known = node_bounds(graph, smaller, known=whole)
    laws.law_contains_values(
        lambda *_, **__: [(b.lower, b.upper) for b in known.intervals], graph, x, radius / 2, p=p
    )


def test_an_example_gets_in_company_what_it_gets_alone():
    """Its second layer is max(x, 0) - max(x, 0) + 1: of certain sign at 1 by intervals, open at 0."""
    weights = (np.array([[1.0], [1.0]]), np.array([[1.0, -1.0]]), np.array([[1.0], [-1.0]]))
    graph = from_relu_network(ReLUNetwork(weights, (np.zeros(2), np.ones(1), np.zeros(2))))
    ball = Ball(torch.tensor([[0.0], [1.0]]).double(), torch.tensor([2.0, 0.4]).double(), 1.0)
    together = node_bounds(graph, ball).intervals
    for k in range(2):
        alone = node_bounds(graph, ball.take(torch.tensor([k]))).intervals
        for one, other in zip(together, alone, strict=True):
            assert torch.allclose(one.lower[k], other.lower[0])
            assert torch.allclose(one.upper[k], other.upper[0])


def test_an_example_without_open_signs_in_a_group_of_its_own(monkeypatch):
    eye = np.eye(2)
    net = ReLUNetwork((eye, eye, eye), (np.zeros(2), np.zeros(2), np.zeros(2)))
    ball = Ball(torch.ones(2, 2).double(), torch.tensor([2.0, 0.1]).double(), 1.0)
    whole = node_bounds(from_relu_network(net), ball)
    monkeypatch.setattr(bounds_module, "ROW_ENTRIES", 1)
    for one, other in zip(whole.intervals, node_bounds(from_relu_network(net), ball).intervals, strict=True):
        assert torch.allclose(one.lower, other.lower)
        assert torch.allclose(one.upper, other.upper)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q": math.inf}, "ball.q is inf; give 1 for balls in l_inf, 2"),
        ({"q": 3.0}, "ball.q is 3.0"),
        ({"radius": torch.tensor([-0.1]).double()}, "ball.radius has an entry that is negative"),
        ({"radius": torch.tensor([math.inf]).double()}, "ball.radius has an entry that is negative, NaN or"),
        ({"radius": torch.tensor([math.nan]).double()}, "a ball needs a finite radius >= 0"),
        ({"radius": torch.ones(2).double()}, r"ball.radius has shape \(2,\); expected \(1,\)"),
        ({"radius": torch.ones(1)}, "ball.radius has dtype torch.float32; .* torch.float64"),
        ({"centre": torch.ones(1, 2).double()}, r"ball.centre has shape \(1, 2\); expected \(1, 1\)"),
        ({"centre": torch.ones(0, 1).double()}, r"ball.centre has shape \(0, 1\); .* not empty"),
        ({"centre": torch.ones(1, 1)}, "ball.centre has dtype torch.float32"),
    ],
)
def test_balls_that_are_none_of_the_graph_are_refused(changes, message):
    ball = Ball(torch.ones(1, 1).double(), torch.ones(1).double(), 2.0)
    with pytest.raises(InvalidInput, match=message):
        node_bounds(from_relu_network(ABSOLUTE), replace(ball, **changes))


@settings(max_examples=25)
@given(dtype=st.just(torch.float32), graph=graphs(dtype=torch.float32), p=attack_norms(), data=st.data())
def test_float32_bounds_hold_for_the_float64_network(dtype, graph, p, data):
    x, y, radius = data.draw(balls(widened(graph)))

    def bounds(_, x, radius, *, p):
        rounded = node_bounds(graph, Ball(x.to(dtype), radius.to(dtype), dual(p)))
        return [(b.lower.double(), b.upper.double()) for b in rounded.intervals]

    def margins(_, x, y, *, p, radius):
        return margin_bounds(graph, x, y, p=p, radius=radius).double()

    exact_x = x.to(dtype).double()
    laws.law_contains_values(bounds, widened(graph), exact_x, radius.to(dtype).double(), p=p)
    # Inputs that float32 cannot hold: the ball grows by their rounding.
    laws.law_margins_below_points(margins, widened(graph), x + 1e-9, y, radius, p=p)


def test_what_overflows_is_infinite_and_never_nan():
    huge = from_relu_network(ReLUNetwork((np.full((2, 2), 1e200),) * 2 + (np.eye(2),), (np.zeros(2),) * 3))
    x, y, radius = torch.ones(1, 2).double(), torch.tensor([0]), torch.ones(1).double()
    found = margin_bounds(huge, x, y, p=2.0, radius=radius)
    assert found[0, 1] == -math.inf
    for lower, upper in sides(huge, x, radius, p=2.0):
        assert (lower <= upper).all()


def test_underflow_is_part_of_the_bounds():
    """Products of tiny weights vanish, and a large one behind them brings the loss back to sight."""
    tiny = ReLUNetwork(
        (np.array([[1e200]]), np.array([[1e-200]]), np.array([[1e-200]]), np.array([[1.0], [0.0]])),
        (np.zeros(1),) * 3 + (np.zeros(2),),
    )
    graph = from_relu_network(tiny)
    x, y, radius = torch.ones(1, 1).double(), torch.tensor([0]), torch.full((1,), 2.0).double()
    found = margin_bounds(graph, x, y, p=2.0, radius=radius)
    assert found[0, 1] <= tiny.scores(np.array([[-1.0]]))[0, 0]


def test_laws_reject_unsound_bounds():
    graph = from_relu_network(ABSOLUTE)
    x, y = torch.tensor([[0.25]]).double(), torch.tensor([0])
    radius = torch.tensor([0.5]).double()

    def point_values(graph, x, radius, *, p):
        return [(value, value) for value in graph.values(x)]

    def halved(graph, x, radius, *, p):
        return sides(graph, x, radius / 2, p=p)

    def centre_margins(graph, x, y, *, p, radius):
        return margin_bounds(graph, x, y, p=p, radius=0 * radius)

    for broken in (point_values, halved):
        with pytest.raises(AssertionError):
            laws.law_contains_values(broken, graph, x, radius, p=2.0)
    with pytest.raises(AssertionError):
        laws.law_margins_below_points(centre_margins, graph, x, y, radius, p=2.0)
    too_much = centre_margins(graph, x, y, p=math.inf, radius=radius)[0].numpy()
    with pytest.raises(AssertionError):
        laws.law_margins_below_exact(too_much, ABSOLUTE, np.array([0.25]), 0, 0.5)
    exact = laws.least_margins(ABSOLUTE, np.array([0.25]), 0, 0.5)
    assert exact[1] == pytest.approx(0.25)


def widened(graph: Graph) -> Graph:
    """The same network in float64."""
    return laws.in_float64(graph)


@given(data=st.data())
def test_convolutions_know_their_transpose(data):
    inputs = (data.draw(st.integers(1, 2)), data.draw(st.integers(2, 4)), data.draw(st.integers(2, 4)))
    operation, outputs = data.draw(convolutions(inputs))
    laws.law_transposes(operation, inputs, outputs)


@settings(max_examples=30)
@given(graph=graphs(image=True))
def test_every_operator_of_a_graph_knows_its_transpose(graph):
    for node in graph.nodes:
        if isinstance(node.operation, laws.OPERATORS):
            laws.law_transposes(node.operation, graph.nodes[node.inputs[0]].shape, node.shape)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"p": 1.0}, "p is 1.0"),
        ({"y": torch.tensor([2])}, "labels must lie in"),
        ({"y": torch.tensor([-1])}, "labels must lie in"),
        ({"y": torch.tensor([0.0])}, "must be integers"),
        ({"y": torch.tensor([0, 1])}, "y has shape \\(2,\\)"),
        ({"x": torch.ones(1, 2)}, "x has shape \\(1, 2\\)"),
        ({"x": torch.ones(0, 1), "y": torch.zeros(0, dtype=torch.int64), "radius": torch.ones(0)}, "m >= 1"),
        ({"x": torch.tensor([[math.nan]])}, "x has a NaN"),
        ({"radius": torch.tensor([-1.0])}, "radius has a negative"),
        ({"radius": torch.tensor([math.inf])}, "radius has a negative, NaN or infinite"),
        ({"radius": torch.tensor([math.nan])}, "radius has a negative, NaN"),
        ({"radius": torch.ones(2)}, "radius has shape \\(2,\\)"),
        ({"steps": -1}, "steps is -1"),
    ],
)
def test_illegal_calls_name_the_argument(changes, message):
    arguments = {"x": torch.ones(1, 1), "y": torch.tensor([0]), "p": 2.0, "radius": torch.ones(1)} | changes
    with pytest.raises(InvalidInput, match=message):
        margin_bounds(from_relu_network(ABSOLUTE), arguments.pop("x"), arguments.pop("y"), **arguments)


@contextmanager
def switched(turn, value, back):
    turn(value)
    try:
        yield
    finally:
        turn(back)


def test_float32_is_refused_where_pytorch_may_round_further():
    graph = from_relu_network(ABSOLUTE, dtype=torch.float32)
    x, y, radius = torch.ones(1, 1), torch.tensor([0]), torch.ones(1)
    parts = [("matmul", "tf32"), ("conv", "bf16")]
    switches = [(torch.set_float32_matmul_precision, "high", "highest")]
    switches += [
        (partial(setattr, getattr(torch.backends.mkldnn, part), "fp32_precision"), value, "none")
        for part, value in parts
        if hasattr(torch.backends.mkldnn, part)
    ]
    for turn, value, back in switches:
        with switched(turn, value, back), pytest.raises(InvalidInput, match="round further"):
            margin_bounds(graph, x, y, p=2.0, radius=radius)
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(InvalidInput, match="leave torch.autocast"),
    ):
        margin_bounds(graph, x, y, p=2.0, radius=radius)
    margin_bounds(graph, x, y, p=2.0, radius=radius)


def test_no_bound_is_made_where_subnormal_numbers_are_zero():
    graph = from_relu_network(ABSOLUTE)
    if not torch.set_flush_denormal(False):
        pytest.skip("this processor cannot")
    with switched(torch.set_flush_denormal, True, False):  # noqa: FBT003
        with pytest.raises(InvalidInput, match="set_flush_denormal"):
            margin_bounds(graph, torch.ones(1, 1), torch.tensor([0]), p=2.0, radius=torch.ones(1))
        with pytest.raises(InvalidInput, match="set_flush_denormal"):
            ABSOLUTE.scores(np.ones((1, 1)))
        with pytest.raises(InvalidInput, match="set_flush_denormal"):
            relu_lipschitz.lipschitz_constants(ABSOLUTE, p=2.0)
        with pytest.raises(InvalidInput, match="set_flush_denormal"):
            relu_masks.frobenius_bound(ABSOLUTE, np.zeros(2), pair=(0, 1))
        with pytest.raises(InvalidInput, match="set_flush_denormal"):
            norm_product(graph, p=2.0)
        with pytest.raises(InvalidInput, match="set_flush_denormal"):
            frobenius_bound(graph, (0.0, 0.0), pair=(0, 1))


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
@pytest.mark.parametrize("fused", [False, True])
def test_float32_convolutions_do_not_go_through_a_transform(fused):
    """Winograd's rounding is that of a whole tile: a large pixel would move the sums that never see it."""
    torch.manual_seed(0)
    conv, out = nn.Conv2d(2, 2, 3, padding=1, bias=False), nn.Linear(512, 2)
    with torch.no_grad():
        conv.weight.abs_()
        out.weight.zero_()
        out.weight[0, 0] = 1.0
        out.bias[:] = torch.tensor([0.0, 0.000851])
    x = torch.zeros(16, 2, 16, 16)
    x[:, :, :2, :2], x[:, :, 4, 4] = 1e-3, 1e4
    exact = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), out)
    graph, y = read(exact, (2, 16, 16), dtype=torch.float32), torch.zeros(16, dtype=torch.int64)
    with torch.backends.mkldnn.flags(enabled=fused):
        found = centre_margins(graph, x, y)[:, 1].double()
        radius = certified_radius(graph, x, y, p=2.0)
    scores = exact.double()(x.double())
    assert (found <= scores[:, 0] - scores[:, 1]).all()
    assert (radius == 0).all()


def test_networks_in_half_precision_or_beyond_float32_are_refused():
    with pytest.raises(InvalidInput, match="dtype is torch.float16"):
        from_relu_network(ABSOLUTE, dtype=torch.float16)
    with pytest.raises(InvalidInput, match="dtype is float32 on cuda"):
        from_relu_network(ABSOLUTE, dtype=torch.float32, device="cuda")
    big = ReLUNetwork((np.full((2, 1), 1e300),), (np.zeros(2),))
    with pytest.raises(InvalidInput, match=r"weights\[0\]"):
        from_relu_network(big, dtype=torch.float32)


def test_constants_are_refused_where_products_may_be_rounded_further():
    """They take no inputs, which would be refused before."""
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 3))
    graph = read(module, (30,), dtype=torch.float32)
    ball = Ball(torch.zeros(2, 30), torch.zeros(2), 2.0)
    for bound in (
        lambda: path_norm(graph, p=math.inf),
        lambda: norm_product(graph, p=2.0),
        lambda: lipschitz_constants(graph, p=2.0),
        lambda: expected_path_norm(graph, [0.5], (0, 1)),
        lambda: frobenius_bound(graph, [0.5], (0, 1)),
        lambda: node_bounds(graph, ball),
    ):
        bound()
        with torch.autocast("cpu"), pytest.raises(InvalidInput, match="dtype is float32"):
            bound()
