"""The exact walk along a ray agrees with an independent account of where the ray leaves its class."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from empirical.attacks import crossings, first_crossing, minimal_fgs, shorten
from empirical.attacks.active import margins
from empirical.attacks.ray import beyond_crossing
from empirical.ensembles import MLPEnsemble, from_modules, from_networks, to_module
from tests.empirical.rays import leaving_times
from theory.laws.strategies import arrays, relu_networks
from theory.types import InvalidInput, ReLUNetwork

# Times are quotients of sums of a few products of order 1 to 10^3.
TIME_ERROR = 1e-9
END = 8.0
# Of logits and margins of a few layers of at most a few units, in float32.
FLOAT32_ERROR = 1e-4


@st.composite
def rays(draw: st.DrawFn) -> tuple[list[ReLUNetwork], np.ndarray, np.ndarray, np.ndarray]:
    """Two networks of one shape, three examples with labels, and a direction for each pair."""
    net = draw(relu_networks(scales=(1.0,), max_depth=4))
    other = ReLUNetwork(
        tuple(draw(arrays(w.shape)) for w in net.weights), tuple(draw(arrays(b.shape)) for b in net.biases)
    )
    n = net.weights[0].shape[1]
    y = np.array(draw(st.lists(st.integers(0, net.classes - 1), min_size=3, max_size=3)))
    return [net, other], draw(arrays((3, n))), y, draw(arrays((2, 3, n)))


def law_first_crossing(crossing, nets, x, y, direction):
    """The time found lies between the first touch of a boundary and the first point of another class."""
    at, beyond = crossing(
        from_networks(nets), torch.tensor(x), torch.tensor(y), torch.tensor(direction), max_step=END
    )
    for k, net in enumerate(nets):
        for i in range(len(x)):
            touch, leave = leaving_times(net, x[i], int(y[i]), direction[k, i], end=END)
            found = float(at[k, i])
            assert found <= leave * (1 + TIME_ERROR) + TIME_ERROR or leave > END * (1 - TIME_ERROR)
            if math.isfinite(found):
                assert found >= touch * (1 - TIME_ERROR) - TIME_ERROR
                assert found <= float(beyond[k, i]) <= END


@given(rays())
def test_first_crossing_is_the_first(case):
    law_first_crossing(first_crossing, *case)


@settings(max_examples=30)
@given(rays(), st.data())
def test_float32_walks_as_float64_does(case, data):
    """Units that pruning left without weights stand at 0, on which no precision may divide."""
    nets, x, y, direction = case
    exact = from_networks(nets)
    dead = [data.draw(st.integers(0, b.shape[1])) for b in exact.biases[:-1]]  # the last number: none
    weights = [w.clone() for w in exact.weights]
    biases = [b.clone() for b in exact.biases]
    for w, b, unit in zip(weights, biases, dead, strict=False):
        w[:, unit : unit + 1], b[:, unit : unit + 1] = 0.0, 0.0
    exact = MLPEnsemble(tuple(weights), tuple(biases), exact.masks)
    rough = exact.to(dtype=torch.float32, device=torch.device("cpu"))
    exact = rough.to(dtype=torch.float64, device=torch.device("cpu"))
    x, u, y = torch.tensor(x).float(), torch.tensor(direction).float(), torch.tensor(y)
    at, beyond = first_crossing(rough, x, y, u, max_step=END)
    assert not (at.isnan() | beyond.isnan()).any()
    found = at.isfinite()
    end = x + beyond.where(found, torch.zeros_like(at))[..., None] * u
    lost = margins(exact.logits(end.double()), y)[found]
    size = exact.logits(end.double()).abs().amax(2)[found]
    assert (lost <= FLOAT32_ERROR * (1 + size)).all()


def test_law_rejects_a_bisection_that_misses_a_dip():
    """Success is not monotone in the step: class 0 loses on (1, 2) only, and holds at the end."""
    dip = ReLUNetwork(
        (np.array([[1.0], [1.0], [1.0]]), np.array([[1.0, -2.0, 1.0], [0.0, 0.0, 0.0]])),
        (np.array([0.0, -1.0, -2.0]), np.array([0.0, 0.5])),
    )
    # g_0 = t - 2 (t - 1)_+ + (t - 2)_+ climbs to 1, falls to 0 at t = 2 and stays there; g_1 = 0.5.
    x, y, u = np.array([[0.75]]), np.array([0]), np.array([[[1.0]]])
    at, _ = first_crossing(from_networks([dip]), torch.tensor(x), torch.tensor(y), torch.tensor(u))
    assert float(at) == pytest.approx(0.75, abs=1e-12)

    def at_the_end_only(ensemble, x, y, direction, *, max_step):
        lost = margins(ensemble.logits(x + max_step * direction), y) <= 0
        return torch.where(lost, max_step, torch.inf), torch.where(lost, max_step, torch.inf)

    with pytest.raises(AssertionError):
        law_first_crossing(at_the_end_only, [dip], x, y, u)


def test_misclassified_is_zero_and_a_constant_network_is_never_left():
    net = ReLUNetwork((np.zeros((2, 3)),), (np.array([1.0, 0.0]),))
    x, u = torch.ones(2, 3, dtype=torch.float64), torch.ones(1, 2, 3, dtype=torch.float64)
    at, beyond = first_crossing(from_networks([net]), x, torch.tensor([0, 1]), u)
    assert at.tolist() == beyond.tolist() == [[math.inf, 0.0]]


def tied() -> tuple[MLPEnsemble, torch.Tensor, torch.Tensor]:
    """Two hidden units end, and two logits tie, at steps of 0.4 and 0.5; from 1.25 on another one decides."""
    weights = (
        [[2, 1, 0, 2, -1, 2], [-1, -1, 1, 0, 1, -2], [2, 1, 2, 2, 1, 2]],
        [[-1, -2, -2], [0, -2, 0], [0, 0, -1]],
    )
    net = ReLUNetwork(tuple(np.array(w, dtype=float) for w in weights), (np.zeros(3), np.zeros(3)))
    x = torch.tensor([[0.5, 0.5, 0, 0, 0.5, 1]], dtype=torch.float64)
    return from_networks([net]), x, torch.tensor([1])


def test_a_tie_is_no_other_class():
    ensemble, x, y = tied()
    down = torch.full((1, 1, 6), -1.0, dtype=torch.float64)
    assert float(first_crossing(ensemble, x, y, down)[0]) == pytest.approx(0.4)
    x_adv, found = minimal_fgs(ensemble, x, y)
    assert found.all()
    assert float((x - x_adv).abs().max()) == pytest.approx(1.25, abs=1e-6)
    assert (margins(ensemble.logits(x_adv), y) < 0).all()
    shorter, _ = shorten(ensemble, x, y, x + 2 * down, found)
    torch.testing.assert_close(shorter, x_adv)
    # Neither where the ray ends on the tie, nor of networks that are not followed through it.
    assert not minimal_fgs(ensemble, x, y, max_step=1.0)[1].any()
    modules = from_modules([to_module(ensemble, 0)], shape=(6,))
    assert not minimal_fgs(modules, x, y)[1].any()
    # A tie at x is misclassified already.
    assert minimal_fgs(ensemble, x + 0.7 * down[0], y)[1].all()


def test_a_tie_that_is_only_touched_counts_where_ties_do():
    """Logits |t - 1| and 0: they tie at the kink alone."""
    net = ReLUNetwork(
        (np.array([[1.0], [-1.0]]), np.array([[1.0, 1.0], [0.0, 0.0]])), (np.array([-1.0, 1.0]), np.zeros(2))
    )
    ensemble, x, u = from_networks([net]), torch.zeros(1, 1).double(), torch.ones(1, 1, 1).double()
    assert float(crossings(ensemble, x, torch.tensor([0]), u).at) == 1.0
    assert float(crossings(ensemble, x, torch.tensor([0]), u, ties=False).at) == math.inf
    assert not beyond_crossing(ensemble, x, torch.tensor([0]), u)[1].any()


@pytest.mark.parametrize("scale", [1e12, 1e13, 1e20])
@pytest.mark.parametrize("modules", [False, True])
def test_a_row_whose_logits_overflow_is_not_found_and_harms_no_other(scale, modules):
    generator = torch.Generator().manual_seed(0)
    weights = tuple(torch.randn(1, b, a, generator=generator) for a, b in ((6, 8), (8, 7), (7, 3)))
    nets = MLPEnsemble(
        weights, tuple(torch.zeros(w.shape[:2]) for w in weights), tuple(w != 0 for w in weights)
    )
    huge = MLPEnsemble(tuple(w * scale for w in weights), nets.biases, nets.masks)
    if modules:
        nets, huge = (from_modules([to_module(n, 0)], shape=(6,)) for n in (nets, huge))
    x = torch.rand(10, 6, generator=generator)
    x[5:] *= 1e-30
    y = nets.logits(x)[0].argmax(1)
    x_adv, found = minimal_fgs(huge, x, y)
    assert (margins(huge.logits(x_adv), y) < 0)[found].all()
    u = torch.randn(1, 10, 6, generator=generator) * x.amax(1)[:, None]
    wanted, at = (crossings(n, x, y, u, max_step=4.0).at[0, 5:] for n in (nets, huge))
    assert wanted.isfinite().any()
    torch.testing.assert_close(at, wanted, rtol=1e-3, atol=0)


@given(rays())
def test_what_is_found_is_of_another_class(case):
    nets, x, y, direction = case
    ensemble, x, y = from_networks(nets), torch.tensor(x), torch.tensor(y)
    points, found = beyond_crossing(ensemble, x, y, torch.tensor(direction))
    wrong = margins(ensemble.logits(x), y) <= 0
    assert (margins(ensemble.logits(points), y)[found & ~wrong] < 0).all()
    assert found[wrong].all()
    assert torch.equal(points[wrong | ~found], x.expand_as(points)[wrong | ~found])


@given(rays())
def test_shorten_never_moves_away_and_stays_adversarial(case):
    nets, x, y, direction = case
    ensemble, x, y = from_networks(nets), torch.tensor(x), torch.tensor(y)
    x_adv = x + 3 * torch.tensor(direction)
    found = margins(ensemble.logits(x_adv), y) < 0
    shorter, still = shorten(ensemble, x, y, x_adv, found)
    assert torch.equal(still, found)
    assert (margins(ensemble.logits(shorter), y)[found] < 0).all()
    assert ((shorter - x).norm(dim=2) <= (x_adv - x).norm(dim=2) * (1 + 1e-12))[found].all()
    assert torch.equal(shorter[~found], x_adv[~found])


def test_many_members_and_examples_agree_with_one_at_a_time():
    """Packing and dropping finished rays never mixes them up."""
    torch.manual_seed(0)
    widths = [6, 9, 8, 4]
    weights = tuple(
        torch.randn(7, b, a, dtype=torch.float64) for a, b in zip(widths, widths[1:], strict=False)
    )
    biases = tuple(torch.randn(7, b, dtype=torch.float64) for b in widths[1:])
    ensemble = MLPEnsemble(weights, biases, tuple(torch.ones_like(w, dtype=torch.bool) for w in weights))
    x, y = torch.randn(40, 6, dtype=torch.float64), torch.randint(0, 4, (40,))
    u = torch.randn(7, 40, 6, dtype=torch.float64)
    at, _ = first_crossing(ensemble, x, y, u)
    for k in range(7):
        for i in range(40):
            one, _ = first_crossing(ensemble.select([k]), x[i : i + 1], y[i : i + 1], u[k : k + 1, i : i + 1])
            assert float(one) == pytest.approx(float(at[k, i]), rel=1e-9)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(2, 4), torch.tensor([0, 1]), "x has shape"),
        (torch.full((2, 3), torch.nan), torch.tensor([0, 1]), "NaN or infinity"),
        (torch.zeros(2, 3), torch.tensor([0]), "y has shape"),
        (torch.zeros(2, 3), torch.tensor([0, 2]), r"labels lie in \[0, 2\)"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_named(x, y, message):
    net = from_networks([ReLUNetwork((np.ones((2, 3)),), (np.zeros(2),))])
    with pytest.raises(InvalidInput, match=message):
        first_crossing(net, x.double(), y, torch.ones(1, *x.shape, dtype=torch.float64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda u: u[0], r"has shape \(2, 3\); expected \(1, 2, 3\)"),
        (lambda u: u.float(), "is torch.float32 on cpu, x torch.float64"),
        (lambda u: u / 0, r"\[0, 0\] holds NaN or infinity"),
        (lambda u: u.where(u != 5, torch.nan), r"\[0, 1\] holds NaN or infinity"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_directions_are_named(change, message):
    ensemble = from_networks([ReLUNetwork((np.ones((2, 3)),), (np.zeros(2),))])
    x, y, u = torch.zeros(2, 3).double(), torch.tensor([0, 1]), torch.arange(1.0, 7.0).view(1, 2, 3).double()
    for nets in (ensemble, from_modules([to_module(ensemble, 0)], shape=(3,))):
        with pytest.raises(InvalidInput, match="direction.*" + message):
            crossings(nets, x, y, change(u))
        with pytest.raises(InvalidInput, match="x_adv.*" + message):
            shorten(nets, x, y, change(u), torch.ones(1, 2, dtype=torch.bool))


def test_negative_max_step_is_named():
    net = from_networks([ReLUNetwork((np.ones((2, 3)),), (np.zeros(2),))])
    x, u = torch.zeros(1, 3, dtype=torch.float64), torch.ones(1, 1, 3, dtype=torch.float64)
    with pytest.raises(InvalidInput, match="max_step is -1"):
        first_crossing(net, x, torch.tensor([0]), u, max_step=-1)
