"""Bounds over a ball against rational evaluations and gradients at points of the ball."""

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from theory.laws import balls as laws
from theory.laws.strategies import arrays, attack_norms, relu_networks
from theory.relu import margins as module
from theory.relu.certificate import certified_radius, crown_certified_radius, local_certified_radius
from theory.relu.margins import interval_step, local_lipschitz, margin_bounds, preactivation_bounds
from theory.types import InvalidInput, ReLUNetwork

# The run-time shape checks pick random items of the tuples in a network, also while Hypothesis draws one.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

CERTIFICATES = [local_certified_radius, crown_certified_radius]
RADII = st.sampled_from([0.0, 1e-3, 0.1, 1.0, 10.0])
# Eighteen steps, some of them doublings, locate a radius to about one part in a thousand.
BISECTION_TOLERANCE = 2e-3
# As far apart as three layers can be without overflow in the plain float64 evaluations of the attack.
LARGE_AND_SMALL = (1.0, 1e-80, 1e-12, 1e12, 1e80)

WITNESS = ReLUNetwork(
    (
        np.array([[1.0, -2.0], [0.5, 1.0]]),
        np.array([[1.0, -1.0], [2.0, 0.5]]),
        np.array([[1.0, -1.0], [0.0, 2.0]]),
    ),
    (np.array([0.25, -0.5]), np.array([0.0, 0.5]), np.array([0.5, 0.0])),
)
X, Y = np.array([[1.0, 0.5]]), np.array([1])


@st.composite
def balls(draw: st.DrawFn, **networks):
    """A network, two inputs, a norm and one radius for each input."""
    net = draw(relu_networks(max_hidden=3, **networks))
    x = draw(arrays((2, net.weights[0].shape[1])))
    radius = np.array([draw(RADII), draw(RADII)])
    return net, x, draw(attack_norms()), radius


@given(ball=balls())
@example(ball=(WITNESS, X, 2.0, np.array([1.0])))
@settings(max_examples=60)
def test_preactivations_stay_inside_their_bounds(ball):
    net, x, p, radius = ball
    laws.encloses_preactivations(preactivation_bounds, net, x, p=p, radius=radius)


@given(ball=balls())
@example(ball=(WITNESS, X, 2.0, np.array([1.0])))
@settings(max_examples=60)
def test_margin_bounds_hold_in_the_whole_ball(ball):
    net, x, p, radius = ball
    laws.bounds_margins(margin_bounds, net, x, p=p, radius=radius)


@given(ball=balls(scales=LARGE_AND_SMALL))
@settings(max_examples=40)
def test_margin_bounds_hold_at_extreme_scales(ball):
    net, x, p, radius = ball
    laws.bounds_margins(margin_bounds, net, x, p=p, radius=radius)


@pytest.mark.parametrize("p", [2.0, math.inf])
def test_overflow_certifies_nothing_and_is_never_nan(p):
    for scales in [
        (1e200, 1e200, 1.0),
        (1e150, 1e-150, 1e300),
        (1e-200, 1e-200, 1e300),
        (1e300, 1.0, 1e-300),
    ]:
        weights = tuple(s * w for s, w in zip(scales, WITNESS.weights, strict=True))
        net = ReLUNetwork(weights, WITNESS.biases)
        margins = margin_bounds(net, X, Y, p=p, radius=np.array([1e100]))
        assert not np.isnan(margins).any()
        assert not np.isnan(local_lipschitz(net, X, Y, p=p, radius=np.array([1e100]))).any()
        for certify in CERTIFICATES:
            assert 0 <= certify(net, X, Y, p=p, domain_radius=1e100)[0] <= 1e100


@given(ball=balls())
def test_local_constants_bound_gradients_and_stay_below_the_global_ones(ball):
    net, x, p, radius = ball
    laws.bounds_gradients(local_lipschitz, net, x, p=p, radius=radius)
    y = net.scores(x).argmax(axis=1)
    constants = local_lipschitz(net, x, y, p=p, radius=radius)
    wider = local_lipschitz(net, x, y, p=p, radius=2 * radius + 1e-6)
    assert (constants <= wider * (1 + 1e-9)).all()


@pytest.mark.parametrize("certify", CERTIFICATES)
@given(ball=balls())
def test_no_attack_succeeds_inside_the_certified_ball(certify, ball):
    net, x, p, _ = ball
    laws.certifies(certify, net, x, p=p)
    laws.improves_on_global(certify, net, x, p=p)


@given(ball=balls(width=1, max_depth=2))
def test_certificates_stay_below_the_exact_radius_in_one_dimension(ball):
    """On a line the network is piecewise linear: it keeps the class between kinks where it does at them."""
    net, x, p, _ = ball
    y = net.scores(x).argmax(axis=1)
    weight, bias = net.weights[0][:, 0], net.biases[0]  # of a linear classifier: more points, no harm
    kinks = -bias[weight != 0] / weight[weight != 0]
    for certify in CERTIFICATES:
        for point, label, gamma in zip(x, y, certify(net, x, y, p=p), strict=True):
            ends = np.sort(np.concatenate([kinks, [point[0] - min(gamma, 1e3), point[0] + min(gamma, 1e3)]]))
            inside = ends[np.abs(ends - point[0]) <= gamma * laws.INSIDE]
            scores = net.scores(np.append(inside, point[0])[:, None])
            # linear between kinks, so positive at the ends means positive between them
            assert (scores[:, [label]] - scores >= -1e-9 * np.abs(scores).max()).all()


@given(net=relu_networks(max_depth=1), p=attack_norms(), data=st.data())
def test_crown_is_exact_for_linear_classifiers(net, p, data):
    x = data.draw(arrays((2, net.weights[0].shape[1])))
    laws.equals_linear_margins(margin_bounds, net, x, p=p, radius=np.array([0.5, 2.0]))


def test_bisection_reaches_the_exact_radius_where_crown_is_exact():
    """g_0 - g_1 = 1 - |x| from x = 0.25: the class changes at distance 0.75; Fast-Lip has L = 1 there."""
    net = ReLUNetwork(
        (np.array([[1.0], [-1.0]]), np.array([[-1.0, -1.0], [0.0, 0.0]])), (np.zeros(2), np.array([1.0, 0.0]))
    )
    x, y = np.array([[0.25], [5.0]]), np.array([0, 0])
    stable = np.array([[0.25], [5.0]])
    assert local_lipschitz(net, stable, y, p=2.0, radius=np.array([0.2, 0.2]))[0, 1] == pytest.approx(1.0)
    assert local_lipschitz(net, stable, y, p=2.0, radius=np.array([0.3, 0.3]))[0, 1] > 1
    for certify in CERTIFICATES:
        gamma = certify(net, x, y, p=2.0)
        assert 0.53 <= gamma[0] <= 0.75
        assert gamma[1] == 0  # misclassified
    assert crown_certified_radius(net, x, y, p=2.0)[0] == pytest.approx(0.75, rel=BISECTION_TOLERANCE)


def test_infinite_and_capped_radii():
    constant = ReLUNetwork((np.zeros((2, 2)),), (np.array([1.0, 0.0]),))
    for certify in CERTIFICATES:
        assert certify(constant, X, np.array([0]), p=2.0)[0] == math.inf
        assert certify(constant, X, np.array([0]), p=2.0, domain_radius=3.0)[0] == 3.0
        assert certify(WITNESS, X, Y, p=2.0, domain_radius=1e-3)[0] == 1e-3


def test_chunks_do_not_change_the_result(monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(7, 2))
    y = WITNESS.scores(x).argmax(axis=1)
    whole = [certify(WITNESS, x, y, p=2.0) for certify in CERTIFICATES]
    monkeypatch.setattr("theory.relu.certificate.CHUNK_ENTRIES", 1)
    for certify, expected in zip(CERTIFICATES, whole, strict=True):
        np.testing.assert_allclose(certify(WITNESS, x, y, p=2.0), expected, rtol=1e-12)


@pytest.mark.parametrize("p", [2.0, math.inf])
def test_crown_is_tighter_than_intervals_and_fast_lip_than_the_global_constant(p):
    """Not a theorem for every network; on this seeded one the order of strength is the published one."""
    rng = np.random.default_rng(1)
    sizes = [6, 20, 20, 3]
    weights = tuple(rng.normal(size=(b, a)) / math.sqrt(a) for a, b in zip(sizes, sizes[1:], strict=False))
    net = ReLUNetwork(weights, tuple(0.1 * rng.normal(size=b) for b in sizes[1:]))
    x = rng.normal(size=(10, 6))
    y = net.scores(x).argmax(axis=1)
    plain, local, crown = (
        f(net, x, y, p=p).mean() for f in (certified_radius, local_certified_radius, crown_certified_radius)
    )
    assert plain < local < crown


# ---- The laws reject broken formulas


def test_laws_reject_a_wrong_dual_norm_and_a_missing_radius():
    def l2_for_every_p(bounds):
        return lambda *args, p, radius: bounds(*args, p=2.0, radius=radius)

    def quarter(bounds):
        return lambda *args, p, radius: bounds(*args, p=p, radius=radius / 4)

    radius, linear = np.array([1.0]), ReLUNetwork(WITNESS.weights[:1], WITNESS.biases[:1])
    for law, bounds, net, broken in [
        (laws.encloses_preactivations, preactivation_bounds, WITNESS, l2_for_every_p),
        (laws.bounds_margins, margin_bounds, linear, quarter),
        (laws.bounds_gradients, local_lipschitz, linear, l2_for_every_p),
    ]:
        law(bounds, net, X, p=math.inf, radius=radius)
        with pytest.raises(AssertionError):
            law(broken(bounds), net, X, p=math.inf, radius=radius)


@pytest.mark.parametrize(
    "broken",
    [
        lambda lower, upper: (np.ones_like(lower), np.ones_like(lower), np.zeros_like(lower)),  # relu(z) = z
        lambda lower, upper: (*RELAXATION(lower, upper)[:2], np.zeros_like(lower)),  # no intercept
        lambda lower, upper: (2 * np.ones_like(lower), *RELAXATION(lower, upper)[1:]),  # too steep below
    ],
)
def test_laws_reject_a_broken_relaxation(broken, monkeypatch):
    monkeypatch.setattr(module, "relaxation", broken)
    radius = np.array([1.5])
    signs = ReLUNetwork(
        (np.array([[1.0], [-1.0]]), np.array([[-1.0, -1.0], [1.0, 1.0]])), (np.zeros(2), np.array([1.0, 0.0]))
    )
    x = np.array([[0.0]])
    tilted = ReLUNetwork(
        (np.ones((2, 1)), np.array([[1.0, -1.9], [0.0, 0.0]])), (np.array([0, 10.0]), np.zeros(2))
    )

    def check():
        for net in (signs, tilted):  # the least margin sits where the upper, and where the lower line matters
            laws.bounds_margins(margin_bounds, net, x, p=2.0, radius=radius)

    with pytest.raises(AssertionError):
        check()


RELAXATION = module.relaxation


def test_intervals_of_one_layer_are_exact():
    lower, upper = np.array([[-1.0, 2.0]]), np.array([[3.0, 4.0]])
    below, above = interval_step(np.array([[1.0, -2.0]]), np.array([0.5]), lower, upper)
    np.testing.assert_allclose([below[0, 0], above[0, 0]], [0 - 8 + 0.5, 3 - 4 + 0.5], rtol=1e-13)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("radius", "told"),
    [
        (-1.0, "radius has a negative entry"),
        (math.nan, r"radius\[0\] is nan"),
        (math.inf, r"radius\[0\] is inf"),
        ("a", "radius is not a numeric array"),
    ],
)
def test_illegal_radii_are_named(radius, told):
    with pytest.raises(InvalidInput, match=told):
        margin_bounds(WITNESS, X, Y, p=2.0, radius=np.array([radius]))
    with pytest.raises(InvalidInput, match="labels must lie in"):
        local_lipschitz(WITNESS, X, np.array([2]), p=2.0, radius=np.array([0.5]))


def test_norms_below_the_normal_numbers_are_not_rounded_down():
    """Two weights of the smallest float have a norm of sqrt(2) times it, which no float is."""
    smallest, x, y = 5e-324, np.zeros((1, 2)), np.array([0])
    net = ReLUNetwork((np.array([[smallest, smallest], [0.0, 0.0]]),), (np.array([1e-300, 0.0]),))
    distance = 1e-300 / smallest / math.sqrt(2)
    for certify in (certified_radius, local_certified_radius, crown_certified_radius):
        assert 0 < certify(net, x, y, p=2.0)[0] <= distance
    assert margin_bounds(net, x, y, p=2.0, radius=np.array([1.01 * distance]))[0, 1] <= 0
    assert local_lipschitz(net, x, y, p=2.0, radius=np.ones(1))[0, 1] >= 2 * smallest


def test_constants_given_are_checked_and_leave_the_diagonal_at_0(unchecked):
    radius = np.full(len(X), 0.5)
    found = local_lipschitz(WITNESS, X, Y, p=2.0, radius=radius, constants=np.full((2, 2), 1e-3))
    assert found[np.arange(len(Y)), Y].tolist() == [0.0] * len(Y)
    assert found.max() == 1e-3
    for bad in (np.full((2, 2), -5.0), np.full((2, 2), math.nan), np.ones((1, 2))):
        with pytest.raises(InvalidInput, match="constants has shape .* a negative entry or NaN"):
            local_lipschitz(WITNESS, X, Y, p=2.0, radius=radius, constants=bad)
