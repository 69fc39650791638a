"""Certified radii of graphs against attacks inside the ball, linear radii and the NumPy route."""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from theory.graph import certificate
from theory.graph.bounds import node_bounds
from theory.graph.certificate import centre_margins, certified_radius, jacobian_radius, margin_bounds
from theory.graph.constants import lipschitz_constants
from theory.graph.effort import relaxation_products
from theory.graph.lipschitz import local_lipschitz
from theory.graph.network import Graph, from_relu_network
from theory.laws import graph as laws
from theory.laws.strategies import arrays, attack_norms, graphs, relu_networks, tensors
from theory.relu.certificate import certified_radius as global_radius
from theory.relu.certificate import crown_certified_radius
from theory.types import InvalidInput, ReLUNetwork

# The run-time shape checks pick random items of the tuples in a network, also while Hypothesis draws one.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

PRECISION = 1e-3
# Two sound radii differ by the allowances for rounding where margins are of ordinary size.
AGREEMENT = 1e-6

ABSOLUTE = ReLUNetwork(  # g_0 - g_1 = 1 - |x|: the true radius at 0 is 1
    (np.array([[1.0], [-1.0]]), np.array([[-1.0, -1.0], [0.0, 0.0]])), (np.zeros(2), np.array([1.0, 0.0]))
)
LINEAR = ReLUNetwork((np.array([[3.0, 4.0], [0.0, -1.0]]),), (np.array([0.5, 0.0]),))


@st.composite
def labelled(draw: st.DrawFn, graph: Graph):
    """Three inputs and their predicted labels."""
    x = draw(tensors((3, *graph.nodes[0].shape)))
    return x, graph.scores(x).argmax(1)


@settings(max_examples=40)
@given(graph=graphs(), p=attack_norms(), steps=st.sampled_from([0, 0, 2]), data=st.data())
def test_no_attack_succeeds_inside_the_certified_ball(graph, p, steps, data):
    x, y = data.draw(labelled(graph))
    laws.law_no_attack_inside(certified_radius(graph, x, y, p=p, steps=steps), graph, x, y, p=p)


@settings(max_examples=25)
@given(graph=graphs(dtype=torch.float32), p=attack_norms(), data=st.data())
def test_float32_radii_are_sound_in_float64(graph, p, data):
    exact = laws.in_float64(graph)
    x, y = data.draw(labelled(exact))
    x = x + 1e-9  # float32 cannot hold it
    found = certified_radius(graph, x, y, p=p).double()
    laws.law_no_attack_inside(found, exact, x, y, p=p)


@settings(max_examples=25)
@given(graph=graphs(), p=attack_norms(), data=st.data())
def test_no_attack_succeeds_inside_the_ball_by_intervals(graph, p, data):
    x, y = data.draw(labelled(graph))
    laws.law_no_attack_inside(jacobian_radius(graph, x, y, p=p), graph, x, y, p=p)


@settings(max_examples=25)
@given(graph=graphs(dtype=torch.float32), p=attack_norms(), data=st.data())
def test_float32_radii_by_intervals_are_sound_in_float64(graph, p, data):
    exact = laws.in_float64(graph)
    x, y = data.draw(labelled(exact))
    x = x + 1e-9
    laws.law_no_attack_inside(jacobian_radius(graph, x, y, p=p).double(), exact, x, y, p=p)


@pytest.mark.parametrize("p", [2.0, math.inf])
def test_radii_by_intervals_are_the_largest_that_local_constants_certify(p, monkeypatch):
    """And lie between the certificates by global constants and by CROWN."""
    rng = np.random.default_rng(3)
    weights = tuple(rng.normal(size=s) / math.sqrt(s[1]) for s in ((30, 12), (30, 30), (4, 30)))
    net = ReLUNetwork(weights, tuple(0.1 * rng.normal(size=len(w)) for w in weights))
    graph, x = from_relu_network(net), torch.tensor(rng.normal(size=(12, 12)))
    y = graph.scores(x).argmax(1)
    y[0] = (y[0] + 1) % 4
    found = jacobian_radius(graph, x, y, p=p)
    assert found[0] == 0
    found, x, y = found[1:], x[1:], y[1:]
    centre = centre_margins(graph, x, y)

    def certifies(radius):
        constants = local_lipschitz(graph, x, y, p=p, radius=radius, effort=0, relaxed=False)
        return (centre > radius[:, None] * constants).all(1)

    assert certifies(found * (1 - 1e-9)).all()
    assert not certifies(found * (1 + 2 * certificate.JACOBIAN_PRECISION)).any()
    start = torch.tensor(global_radius(net, x.numpy(), y.numpy(), p=p))
    assert (found > start).all()
    assert (found < certified_radius(graph, x, y, p=p)).all()
    middle = float(found.median())
    limited = jacobian_radius(graph, x, y, p=p, domain_radius=middle)
    assert (limited <= middle).all()
    assert (limited >= (1 - 2 * certificate.JACOBIAN_PRECISION) * found.clamp(max=middle)).all()
    monkeypatch.setattr(certificate, "POINT_ENTRIES", 1)
    torch.testing.assert_close(jacobian_radius(graph, x, y, p=p), found, rtol=AGREEMENT, atol=0.0)


def test_radii_by_intervals_are_exact_of_linear_classifiers_and_refuse_what_others_refuse():
    net = ReLUNetwork((np.eye(2),), (np.zeros(2),))
    graph = from_relu_network(net)
    x, y = torch.tensor([[1.0, 0.0]]).double(), torch.tensor([0])
    for p in (2.0, math.inf):
        exact = torch.tensor(global_radius(net, x.numpy(), y.numpy(), p=p))
        torch.testing.assert_close(jacobian_radius(graph, x, y, p=p), exact, rtol=AGREEMENT, atol=0.0)
    with pytest.raises(InvalidInput, match="domain_radius is -1"):
        jacobian_radius(graph, x, y, p=2.0, domain_radius=-1.0)
    with pytest.raises(InvalidInput, match="p is 3"):
        jacobian_radius(graph, x, y, p=3.0)


def test_float32_radii_are_those_of_float64_within_the_precision():
    """On generic networks; where a lower slope is chosen by a tie, rounding may choose the other one."""
    rng = np.random.default_rng(5)
    weights = [rng.normal(size=s) for s in ((8, 4), (8, 8), (3, 8))]
    narrow = from_relu_network(
        ReLUNetwork(tuple(weights), tuple(rng.normal(size=len(w)) for w in weights)), dtype=torch.float32
    )
    exact = laws.in_float64(narrow)
    x = torch.tensor(rng.normal(size=(20, 4)))
    y = exact.scores(x).argmax(1)
    for p in (2.0, math.inf):
        found, wide = certified_radius(narrow, x, y, p=p), certified_radius(exact, x, y, p=p)
        assert found.dtype == torch.float32
        ratio = found.double() / wide
        assert (ratio <= 1 + 2 * PRECISION).all()
        assert (ratio >= 0.98).all()


@settings(max_examples=25)
@given(net=relu_networks(max_depth=1, scales=(1.0,)), p=attack_norms(), data=st.data())
def test_linear_classifiers_get_their_exact_radius(net, p, data):
    x = data.draw(arrays((2, net.weights[0].shape[1])))
    y = net.scores(x).argmax(axis=1)
    exact = global_radius(net, x, y, p=p)
    found = certified_radius(from_relu_network(net), torch.tensor(x), torch.tensor(y), p=p).numpy()
    ordinary = (exact > 1e-6) & (exact < 1e6)
    np.testing.assert_allclose(found[ordinary], exact[ordinary], rtol=AGREEMENT)


@settings(max_examples=12)
@given(net=relu_networks(scales=(1.0,)), p=attack_norms(), data=st.data())
def test_dense_networks_agree_with_the_numpy_route(net, p, data):
    """Both find a radius that CROWN certifies; ours is larger where local constants carry it on."""
    x = data.draw(arrays((3, net.weights[0].shape[1])))
    y = net.scores(x).argmax(axis=1)
    graph = from_relu_network(net)
    found = certified_radius(graph, torch.tensor(x), torch.tensor(y), p=p).numpy()
    crown = crown_certified_radius(net, x, y, p=p)
    start = global_radius(net, x, y, p=p)
    ordinary = (start > 1e-6) & (crown < 1e6)
    assert (found >= start * (1 - AGREEMENT))[ordinary].all()
    # The margin need not fall steadily with the radius: where it is positive at the NumPy route's radius and
    # at ours, both are right, and they may be two crossings of zero.
    monotone = falls_steadily(graph, x, y, np.maximum(found, crown), p=p)
    assert (found >= crown * (1 - 2 * PRECISION))[ordinary & monotone].all()


def falls_steadily(graph: Graph, x: np.ndarray, y: np.ndarray, radius: np.ndarray, *, p: float) -> np.ndarray:
    """Whether the sign of the smallest CROWN margin changes at most once on the way to twice the radius."""
    shares = np.linspace(0.1, 2.0, 16)
    values = []
    for share in shares:
        at = torch.tensor(np.minimum(radius, 1e6) * share)
        values.append(margin_bounds(graph, torch.tensor(x), torch.tensor(y), p=p, radius=at).amin(1) > 0)
    signs = torch.stack(values)
    return (signs[1:] <= signs[:-1]).all(0).numpy()


@settings(max_examples=12)
@given(graph=graphs(), p=attack_norms(), precision=st.sampled_from([1e-1, 1e-3, 1e-5]), data=st.data())
def test_a_radius_larger_by_the_precision_is_not_certified_by_crown(graph, p, precision, data):
    x, y = data.draw(labelled(graph))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certificate, "LOCAL_TRIALS", 0)
        found = certified_radius(graph, x, y, p=p, precision=precision)
    local = certified_radius(graph, x, y, p=p, precision=precision)
    assert (local >= found).all()
    open_ = (found > 0) & (found < certificate.LARGEST_RADIUS)
    # Some radius between the certified one and the next has failed; which one, the search alone knows.
    tried = torch.stack(
        [
            margin_bounds(
                graph, x, y, p=p, radius=torch.where(open_, found, 0.0) * (1 + share * precision)
            ).amin(1)
            for share in np.linspace(0.2, 1.2, 11)
        ]
    )
    assert ((tried <= AGREEMENT * graph.scores(x).abs().amax()).any(0) | ~open_).all()


@settings(max_examples=12)
@given(graph=graphs(), p=attack_norms(), data=st.data())
def test_radii_are_at_least_the_global_certificate_and_at_most_the_domain(graph, p, data):
    x, y = data.draw(labelled(graph))
    found = certified_radius(graph, x, y, p=p)
    scores = graph.scores(x)
    others = torch.arange(graph.classes) != y[:, None]
    ratio = (scores.gather(1, y[:, None]) - scores) / lipschitz_constants(graph, p=p)[y]
    start = torch.where(others, ratio, math.inf).amin(1)
    ordinary = (start > 1e-6) & (start < 1e6)
    assert (found >= start * (1 - AGREEMENT))[ordinary].all()
    limited = certified_radius(graph, x, y, p=p, domain_radius=0.25)
    assert (limited <= 0.25).all()
    assert (limited[found > 0.3] >= 0.25 * (1 - 2 * PRECISION)).all() or not monotone_on(graph, x, y, p=p)
    assert (certified_radius(graph, x, y, p=p, domain_radius=0.0) == 0).all()


def monotone_on(graph: Graph, x: torch.Tensor, y: torch.Tensor, *, p: float) -> bool:
    """Whether CROWN certifies a quarter wherever it certifies more."""
    quarter = torch.full((len(x),), 0.25).double()
    return bool((margin_bounds(graph, x, y, p=p, radius=quarter) > 0).all())


def test_misclassified_tied_and_constant_inputs():
    graph = from_relu_network(ABSOLUTE)
    x = torch.tensor([[0.0], [3.0], [1.0]]).double()
    y = torch.tensor([0, 0, 0])
    found = certified_radius(graph, x, y, p=2.0)
    assert 1 - 2 * PRECISION <= found[0] <= 1
    assert found[1] == found[2] == 0  # misclassified; exactly tied
    constant = from_relu_network(ReLUNetwork((np.zeros((2, 1)),), (np.array([1.0, 0.0]),)))
    assert (certified_radius(constant, x, y, p=2.0) == certificate.LARGEST_RADIUS).all()
    assert (certified_radius(constant, x, y, p=2.0, domain_radius=4.0) == 4).all()
    equal = from_relu_network(ReLUNetwork((np.ones((2, 1)),), (np.zeros(2),)))
    assert (certified_radius(equal, x, y, p=2.0) == 0).all()


def test_radii_on_a_line_end_before_the_class_changes():
    """On one input the first change of class is seen on a grid. Radii that no ball was bounded at, such as
    where lines or local constants of a smaller ball would end, lie beyond it in some of these networks."""
    rng = np.random.default_rng(7)
    grid = torch.linspace(-4.0, 4.0, 8001).double()
    share = []
    for _ in range(12):
        weights = [rng.normal(size=s) * (rng.random(s) < 0.7) for s in ((6, 1), (4, 6), (2, 4))]
        biases = tuple(rng.normal(size=len(w)) for w in weights)
        graph = from_relu_network(ReLUNetwork(tuple(weights), biases))
        x = torch.tensor(rng.uniform(-1, 1, size=(20, 1)))
        y = graph.scores(x).argmax(1)
        changed = graph.scores(grid[:, None]).argmax(1)[None] != y[:, None]
        exact = torch.where(changed, (grid - x).abs(), math.inf).amin(1)
        found = certified_radius(graph, x, y, p=2.0)
        assert (found <= exact).all()
        share.append((found / exact)[exact.isfinite() & (found > 0)])
    assert torch.cat(share).mean() > 0.5


def test_local_constants_carry_on_where_crown_stops():
    """On sparse networks the last stage enlarges some radii, and they stay sound."""
    rng = np.random.default_rng(3)
    enlarged = 0
    for _ in range(4):
        weights = [rng.normal(size=s) * (rng.random(s) < 0.3) for s in ((12, 6), (8, 12), (2, 8))]
        graph = from_relu_network(
            ReLUNetwork(tuple(weights), tuple(0.3 * rng.normal(size=len(w)) for w in weights))
        )
        x = torch.tensor(rng.normal(size=(10, 6)))
        y = graph.scores(x).argmax(1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(certificate, "LOCAL_TRIALS", 0)
            before = certified_radius(graph, x, y, p=2.0)
        after = certified_radius(graph, x, y, p=2.0)
        assert (after >= before).all()
        enlarged += int((after > before * (1 + 3 * PRECISION)).sum())
        laws.law_no_attack_inside(after, graph, x, y, p=2.0)
    assert enlarged


def test_no_radius_exceeds_the_largest_ball_that_was_bounded(monkeypatch):
    """Lines and local constants hold inside the ball they were made for and nowhere else."""
    balls = []

    def recorded(graph, ball, **options):
        balls.append(float(ball.radius))
        return node_bounds(graph, ball, **options)

    monkeypatch.setattr(certificate, "node_bounds", recorded)
    rng = np.random.default_rng(3)
    weights = [rng.normal(size=s) * (rng.random(s) < 0.3) for s in ((12, 6), (8, 12), (2, 8))]
    graph = from_relu_network(
        ReLUNetwork(tuple(weights), tuple(0.3 * rng.normal(size=len(w)) for w in weights))
    )
    x = torch.tensor(rng.normal(size=(10, 6)))
    y = graph.scores(x).argmax(1)
    start = lipschitz_constants(graph, p=2.0)
    scores = graph.scores(x)
    for trials in (1, 6):
        monkeypatch.setattr(certificate, "LOCAL_TRIALS", trials)
        for i in range(len(x)):
            balls.clear()
            found = certified_radius(graph, x[i : i + 1], y[i : i + 1], p=2.0)
            globally = (scores[i, y[i]] - scores[i, 1 - y[i]]) / start[0, 1]
            assert float(found) <= max(*balls, float(globally) * (1 + AGREEMENT))


def test_ascent_steps_never_shrink_the_radius_on_an_example_that_gains():
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=s) / 2 for s in ((10, 4), (10, 10), (3, 10))]
    graph = from_relu_network(ReLUNetwork(tuple(weights), tuple(rng.normal(size=len(w)) for w in weights)))
    x = torch.tensor(rng.normal(size=(12, 4)))
    y = graph.scores(x).argmax(1)
    # 1.55 and 1.46 with the slopes of the margins alone.
    for p, gain in ((2.0, 1.6), (math.inf, 1.47)):
        plain = certified_radius(graph, x, y, p=p)
        found = certified_radius(graph, x, y, p=p, steps=8)
        assert (found >= plain * (1 - AGREEMENT)).all()
        assert (found / plain).max() > gain
        laws.law_no_attack_inside(found, graph, x, y, p=p)


def test_inputs_that_carry_gradients_get_plain_numbers():
    graph = from_relu_network(ReLUNetwork((np.eye(2), np.eye(2)), (np.ones(2), np.zeros(2))))
    x, y = torch.tensor([[0.5, 0.25]], dtype=torch.float64), torch.tensor([0])
    radius = torch.full((1,), 2.0, dtype=torch.float64)
    for steps in (0, 2):
        for found, plain in [
            (certify(x.clone().requires_grad_()), certify(x))
            for certify in (
                lambda x, steps=steps: certified_radius(graph, x, y, p=2.0, steps=steps),
                lambda x, steps=steps: margin_bounds(graph, x, y, p=2.0, radius=radius, steps=steps),
            )
        ]:
            assert not found.requires_grad
            assert torch.equal(found, plain)


def test_more_examples_than_a_chunk_change_nothing(monkeypatch):
    rng = np.random.default_rng(1)
    weights = [rng.normal(size=s) for s in ((6, 3), (3, 6))]
    graph = from_relu_network(ReLUNetwork(tuple(weights), (np.zeros(6), np.zeros(3))))
    x = torch.tensor(rng.normal(size=(13, 3)))
    y = graph.scores(x).argmax(1)
    y[4] = (y[4] + 1) % 3  # misclassified among the others
    whole = certified_radius(graph, x, y, p=2.0)
    monkeypatch.setattr(certificate, "CHUNK", 5)
    parts = certified_radius(graph, x, y, p=2.0)
    torch.testing.assert_close(parts, whole, rtol=AGREEMENT, atol=0.0)
    assert whole[4] == 0
    assert (whole > 0).sum() == 12


def test_laws_reject_unsound_radii():
    graph = from_relu_network(LINEAR)
    x, y = torch.tensor([[1.0, 1.0]]).double(), torch.tensor([0])
    for p in (2.0, math.inf):
        found = certified_radius(graph, x, y, p=p)
        laws.law_no_attack_inside(found, graph, x, y, p=p)
        with pytest.raises(AssertionError):
            laws.law_no_attack_inside(1.01 * found, graph, x, y, p=p)
    with pytest.raises(AssertionError):  # the wrong dual
        laws.law_no_attack_inside(certified_radius(graph, x, y, p=2.0), graph, x, y, p=math.inf)
    bent = from_relu_network(ABSOLUTE)
    with pytest.raises(AssertionError):
        laws.law_no_attack_inside(torch.tensor([1.01]).double(), bent, torch.zeros(1, 1).double(), y, p=2.0)


def test_a_graph_without_relus_and_one_that_ends_in_a_relu():
    affine = from_relu_network(LINEAR)
    ending = replace(affine, nodes=(*affine.nodes, laws.relu_of(affine)))
    x, y = torch.tensor([[1.0, 1.0]]).double(), torch.tensor([0])
    for graph in (affine, ending):
        for p in (2.0, math.inf):
            found = certified_radius(graph, x, y, p=p)
            assert found > 0.5
            laws.law_no_attack_inside(found, graph, x, y, p=p)


def test_slopes_are_optimised_where_gradients_are_off():
    graph = from_relu_network(ReLUNetwork((np.eye(2), np.eye(2)), (np.ones(2), np.zeros(2))))
    x, y = torch.tensor([[0.5, 0.25]], dtype=torch.float64), torch.tensor([0])
    expected = certified_radius(graph, x, y, p=2.0, steps=3)
    with torch.no_grad():
        assert torch.equal(certified_radius(graph, x, y, p=2.0, steps=3), expected)
    with torch.inference_mode():
        assert torch.equal(certified_radius(graph, x, y, p=2.0), certified_radius(graph, x, y, p=2.0))
        with pytest.raises(InvalidInput, match="steps is 3 in torch.inference_mode"):
            certified_radius(graph, x, y, p=2.0, steps=3)
        made_there = from_relu_network(ReLUNetwork((np.eye(2), np.eye(2)), (np.ones(2), np.zeros(2))))
    with pytest.raises(InvalidInput, match="steps is 3 in torch.inference_mode"):
        certified_radius(made_there, x, y, p=2.0, steps=3)
    radius = torch.full((1,), 0.1, dtype=torch.float64, requires_grad=True)
    assert not margin_bounds(graph, x, y, p=2.0, radius=radius, steps=2).requires_grad


@pytest.mark.parametrize("domain", [0.1, 0.3, 1e30])
def test_the_limit_is_not_rounded_up(domain):
    """The nearest float32 of each is above it."""
    constant = from_relu_network(
        ReLUNetwork((np.zeros((2, 1)),), (np.array([1.0, 0.0]),)), dtype=torch.float32
    )
    found = certified_radius(constant, torch.zeros(1, 1), torch.tensor([0]), p=2.0, domain_radius=domain)
    assert domain * (1 - 1e-7) <= float(found) <= domain


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"p": 1.0}, "p is 1.0"),
        ({"y": torch.tensor([3])}, "labels must lie in"),
        ({"y": torch.tensor([0.5])}, "must be integers"),
        (
            {"y": torch.tensor([2**63 + 1], dtype=torch.uint64)},
            "y holds 9223372036854775809..9223372036854775809",
        ),
        ({"x": torch.tensor(1.0)}, r"x has shape \(\)"),
        ({"x": torch.ones(1, 3)}, "x has shape"),
        ({"x": torch.tensor([[math.inf, 0.0]])}, "x has a NaN or infinite"),
        ({"domain_radius": -1.0}, "domain_radius is -1.0"),
        ({"domain_radius": math.nan}, "domain_radius is nan"),
        ({"precision": 0.0}, "precision is 0.0"),
        ({"precision": 1.0}, "precision is 1.0"),
        ({"precision": math.nan}, "precision is nan"),
        ({"steps": -1}, "steps is -1"),
    ],
)
def test_illegal_calls_name_the_argument(changes, message):
    arguments = {"x": torch.ones(1, 2), "y": torch.tensor([0]), "p": 2.0} | changes
    with pytest.raises(InvalidInput, match=message):
        certified_radius(from_relu_network(LINEAR), arguments.pop("x"), arguments.pop("y"), **arguments)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint16, torch.uint32, torch.uint64])
def test_labels_of_any_whole_type(dtype):
    graph, x, y = from_relu_network(LINEAR), torch.ones(2, 2), torch.tensor([0, 1])
    assert torch.equal(graph.check_labels(y.to(dtype), examples=2), y)
    expected = certified_radius(graph, x, y, p=2.0)
    assert torch.equal(certified_radius(graph, x, y.to(dtype), p=2.0), expected)


@pytest.mark.usefixtures("unchecked")
def test_inputs_and_radii_must_hold_one_per_example():
    graph, x, y = from_relu_network(LINEAR), torch.ones(2, 2), torch.tensor([0, 1])
    with pytest.raises(InvalidInput, match=r"x has shape \(\)"):
        centre_margins(graph, torch.tensor(1.0), y)
    bounds: list[Any] = [margin_bounds, local_lipschitz]
    for bound in bounds:
        with pytest.raises(
            InvalidInput, match=r"radius is 1.0; give a tensor \(2,\), one radius per example"
        ):
            bound(graph, x, y, p=2.0, radius=1.0)
        with pytest.raises(InvalidInput, match=r"radius has shape \(\); expected \(2,\)"):
            bound(graph, x, y, p=2.0, radius=torch.tensor(1.0))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "bound",
    [
        certified_radius,
        jacobian_radius,
        partial(margin_bounds, radius=torch.ones(2)),
        partial(local_lipschitz, radius=torch.ones(2)),
    ],
)
def test_examples_that_are_no_tensors_are_refused_by_name(bound: Any):
    graph, x, y = from_relu_network(LINEAR), torch.ones(2, 2), torch.tensor([0, 1])
    with pytest.raises(InvalidInput, match=r"x is a ndarray; pass a tensor: torch.as_tensor\(x\)"):
        bound(graph, x.numpy(), y, p=2.0)
    with pytest.raises(InvalidInput, match="y is a list; pass a tensor"):
        bound(graph, x, y.tolist(), p=2.0)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("limit", [None, "1", -1.0, math.nan])
def test_a_domain_radius_is_a_number_that_is_not_negative(limit: Any):
    graph, x, y = from_relu_network(LINEAR), torch.ones(2, 2), torch.tensor([0, 1])
    bounds: list[Any] = [certified_radius, jacobian_radius]
    for bound in bounds:
        with pytest.raises(InvalidInput, match="domain_radius is .*; pass a number >= 0"):
            bound(graph, x, y, p=2.0, domain_radius=limit)


@settings(max_examples=40)
@given(graph=graphs(), data=st.data())
def test_margins_at_the_centre_are_those_of_the_scores_less_rounding(graph, data):
    x, y = data.draw(labelled(graph))
    scores = graph.scores(x)
    gaps = scores.gather(1, y[:, None]) - scores
    found = centre_margins(graph, x, y)
    assert (found.gather(1, y[:, None]) == math.inf).all()
    others = found.isfinite()
    size = max(float(value.abs().max()) for value in graph.values(x))
    assert (found <= gaps)[others].all()
    assert (found >= gaps - AGREEMENT * (1 + size))[others].all()


def test_the_price_of_a_relaxation_counts_every_unit_carried_through_what_is_below():
    """Two units above two weights, and two scores above six."""
    assert relaxation_products(from_relu_network(ABSOLUTE)) == 2 * 2 + 2 * 6


@pytest.mark.parametrize("steps", [0, 4])
def test_bounds_that_are_known_are_of_balls_as_large(steps, monkeypatch):
    """Those of a smaller ball would prove too much, by less than an attack can show."""
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=s) / 2 for s in ((10, 4), (10, 10), (3, 10))]
    graph = from_relu_network(ReLUNetwork(tuple(weights), tuple(rng.normal(size=len(w)) for w in weights)))
    true, checked = certificate.node_bounds, []

    def counted(graph, ball, **options):
        known = options.get("known")
        if known is not None:
            inputs = known.intervals[0]
            assert (inputs.upper - inputs.lower >= 2 * ball.radius[:, None] * (1 - AGREEMENT)).all()
            checked.append(len(ball.radius))
        return true(graph, ball, **options)

    monkeypatch.setattr(certificate, "node_bounds", counted)
    x = torch.tensor(rng.normal(size=(12, 4)))
    certified_radius(graph, x, graph.scores(x).argmax(1), p=math.inf, steps=steps)
    assert checked


def test_margins_at_the_centre_hold_where_rounding_moved_it():
    """The input is 0 in the graph's type; a weight makes more of it than the bias."""
    weights, biases = (np.array([[1e30]]), np.array([[0.0], [1.0]])), (np.zeros(1), np.array([1e-17, 0.0]))
    graph = from_relu_network(ReLUNetwork(weights, biases), dtype=torch.float32)
    x = torch.tensor([[7e-46]], dtype=torch.float64)
    assert centre_margins(graph, x, torch.tensor([0]))[0, 1] <= 1e-17 - 7e-16
