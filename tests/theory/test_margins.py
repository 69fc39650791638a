"""Bounds over a ball against rational evaluations and gradients at points of the ball."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from theory.laws import relu as laws
from theory.laws.strategies import arrays, attack_norms, relu_networks
from theory.norms import dual, norm
from theory.relu import margins as module
from theory.relu.certificate import certified_radius, crown_certified_radius, local_certified_radius
from theory.relu.lipschitz import gradient_norms, lipschitz_constants
from theory.relu.margins import interval_step, local_lipschitz, margin_bounds, preactivation_bounds
from theory.types import InvalidInput, ReLUNetwork

# The run-time shape checks pick random items of the tuples in a network, also while Hypothesis draws one.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

CERTIFICATES = [local_certified_radius, crown_certified_radius]
RADII = st.sampled_from([0.0, 1e-3, 0.1, 1.0, 10.0])
# Points of the ball are computed in float64: at this fraction of the radius their rounding keeps them inside.
INSIDE = 1 - 1e-9
# Eighteen steps, some of them doublings, locate a radius to about one part in a thousand.
BISECTION_TOLERANCE = 2e-3
# As far apart as three layers can be without overflow in the plain float64 evaluations of the attack.
LARGE_AND_SMALL = (1.0, 1e-80, 1e-12, 1e12, 1e80)
# Gradients at a point are float64 sums themselves: their error relative to the sum over all paths.
GRADIENT_ROUNDING = 1e-13

WITNESS = ReLUNetwork(
    (
        np.array([[1.0, -2.0], [0.5, 1.0]]),
        np.array([[1.0, -1.0], [2.0, 0.5]]),
        np.array([[1.0, -1.0], [0.0, 2.0]]),
    ),
    (np.array([0.25, -0.5]), np.array([0.0, 0.5]), np.array([0.5, 0.0])),
)
X, Y = np.array([[1.0, 0.5]]), np.array([1])


def points_of(net: ReLUNetwork, x: np.ndarray, radius: float, p: float) -> np.ndarray:
    """Points of the l_p ball around one x: adversarial directions, axes, corners."""
    return laws.attack_points(net, x, INSIDE * radius, p=p)


def law_encloses_preactivations(bounds, net, x, *, p, radius) -> None:
    """Rational pre-activations at points of the ball lie between the bounds."""
    for e, (point, size) in enumerate(zip(x, radius, strict=True)):
        for inside in points_of(net, point, size, p)[::3]:
            hidden = [Fraction(v) for v in inside]
            for (lower, upper), weight, bias in zip(bounds, net.weights, net.biases, strict=False):
                before = [
                    Fraction(b) + sum(Fraction(w) * h for w, h in zip(row, hidden, strict=True))
                    for row, b in zip(weight, bias, strict=True)
                ]
                for unit, value in enumerate(before):
                    assert lower[e, unit] == -math.inf or Fraction(lower[e, unit]) <= value
                    assert upper[e, unit] == math.inf or value <= Fraction(upper[e, unit])
                hidden = [max(v, Fraction(0)) for v in before]


def law_margins_hold_in_the_ball(margins, net, x, y, *, p, radius) -> None:
    """Rational margins at points of the ball are at least the bounds."""
    for row, point, label, size in zip(margins, x, y, radius, strict=True):
        inside = points_of(net, point, size, p)[::3]
        laws.law_margins_below_exact(
            np.repeat(row[None], len(inside), axis=0), net, inside, np.full(len(inside), label)
        )


def law_constants_bound_gradients_in_the_ball(constants, net, x, y, *, p, radius) -> None:
    """Gradient norms at points of the ball are at most the constants, which are at most the global ones."""
    largest = lipschitz_constants(net, p=p)
    paths = math.prod(np.abs(w).sum() for w in net.weights)
    for row, point, label, size in zip(constants, x, y, radius, strict=True):
        pairs = np.array([(label, k) for k in range(net.classes)])
        found = gradient_norms(net, points_of(net, point, size, p), pairs, p=p).max(axis=0)
        assert (found <= row + GRADIENT_ROUNDING * paths).all()
        assert (row <= largest[label]).all()


@st.composite
def balls(draw: st.DrawFn, **networks):
    """A network, two inputs, their predicted labels, a norm and one radius each."""
    net = draw(relu_networks(max_hidden=3, **networks))
    x = draw(arrays((2, net.weights[0].shape[1])))
    radius = np.array([draw(RADII), draw(RADII)])
    return net, x, net.scores(x).argmax(axis=1), draw(attack_norms()), radius


@given(ball=balls())
@example(ball=(WITNESS, X, Y, 2.0, np.array([1.0])))
@settings(max_examples=60)
def test_preactivations_stay_inside_their_bounds(ball):
    net, x, _, p, radius = ball
    law_encloses_preactivations(preactivation_bounds(net, x, p=p, radius=radius), net, x, p=p, radius=radius)


@given(ball=balls())
@example(ball=(WITNESS, X, Y, 2.0, np.array([1.0])))
@settings(max_examples=60)
def test_margin_bounds_hold_in_the_whole_ball(ball):
    net, x, y, p, radius = ball
    law_margins_hold_in_the_ball(margin_bounds(net, x, y, p=p, radius=radius), net, x, y, p=p, radius=radius)


@given(ball=balls(scales=LARGE_AND_SMALL))
@settings(max_examples=40)
def test_margin_bounds_hold_at_extreme_scales(ball):
    net, x, y, p, radius = ball
    found = margin_bounds(net, x, y, p=p, radius=radius)
    assert not np.isnan(found).any()
    law_margins_hold_in_the_ball(found, net, x, y, p=p, radius=radius)


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
    net, x, y, p, radius = ball
    constants = local_lipschitz(net, x, y, p=p, radius=radius)
    law_constants_bound_gradients_in_the_ball(constants, net, x, y, p=p, radius=radius)
    wider = local_lipschitz(net, x, y, p=p, radius=2 * radius + 1e-6)
    assert (constants <= wider * (1 + 1e-9)).all()


@pytest.mark.parametrize("certify", CERTIFICATES)
@given(ball=balls())
def test_no_attack_succeeds_inside_the_certified_ball(certify, ball):
    net, x, y, p, _ = ball
    gamma = certify(net, x, y, p=p)
    laws.law_no_attack_inside(gamma, net, x, y, p=p)
    assert (gamma >= certified_radius(net, x, y, p=p)).all()
    assert (certify(net, x, y, p=p, domain_radius=0.25) <= 0.25).all()


@given(ball=balls(width=1, max_depth=2))
def test_certificates_stay_below_the_exact_radius_in_one_dimension(ball):
    """On a line the network is piecewise linear: it keeps the class between kinks where it does at them."""
    net, x, y, p, _ = ball
    weight, bias = net.weights[0][:, 0], net.biases[0]  # of a linear classifier: more points, no harm
    kinks = -bias[weight != 0] / weight[weight != 0]
    for certify in CERTIFICATES:
        for point, label, gamma in zip(x, y, certify(net, x, y, p=p), strict=True):
            ends = np.sort(np.concatenate([kinks, [point[0] - min(gamma, 1e3), point[0] + min(gamma, 1e3)]]))
            inside = ends[np.abs(ends - point[0]) <= gamma * INSIDE]
            scores = net.scores(np.append(inside, point[0])[:, None])
            # linear between kinks, so positive at the ends means positive between them
            assert (scores[:, [label]] - scores >= -1e-9 * np.abs(scores).max()).all()


@given(net=relu_networks(max_depth=1), p=attack_norms(), data=st.data())
def test_crown_is_exact_for_linear_classifiers(net, p, data):
    x = data.draw(arrays((2, net.weights[0].shape[1])))
    y = net.scores(x).argmax(axis=1)
    radius = np.array([0.5, 2.0])
    (weight,) = net.weights
    scores = net.scores(x)
    drop = radius[:, None] * norm(weight[y][:, None] - weight, p=dual(p))
    truth = scores[[0, 1], y][:, None] - scores - drop
    truth[[0, 1], y] = math.inf
    size = 10 * np.abs(weight).sum() + np.abs(net.biases[0]).sum() + 1e-290  # underflow allowance
    np.testing.assert_allclose(margin_bounds(net, x, y, p=p, radius=radius), truth, atol=1e-13 * size, rtol=0)


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
    radius, y = np.array([1.0]), Y
    small = np.array([0.25])
    linear = ReLUNetwork(WITNESS.weights[:1], WITNESS.biases[:1])
    bounds = preactivation_bounds(WITNESS, X, p=2.0, radius=radius)
    law_encloses_preactivations(bounds, WITNESS, X, p=2.0, radius=radius)
    with pytest.raises(AssertionError):
        law_encloses_preactivations(bounds, WITNESS, X, p=math.inf, radius=radius)
    margins = margin_bounds(linear, X, y, p=math.inf, radius=small)
    with pytest.raises(AssertionError):
        law_margins_hold_in_the_ball(margins, linear, X, y, p=math.inf, radius=radius)
    constants = local_lipschitz(linear, X, y, p=2.0, radius=small)
    with pytest.raises(AssertionError):
        law_constants_bound_gradients_in_the_ball(constants, linear, X, y, p=math.inf, radius=small)


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
    y, radius = np.array([0]), np.array([1.5])
    signs = ReLUNetwork(
        (np.array([[1.0], [-1.0]]), np.array([[-1.0, -1.0], [1.0, 1.0]])), (np.zeros(2), np.array([1.0, 0.0]))
    )
    x = np.array([[0.0]])
    tilted = ReLUNetwork(
        (np.ones((2, 1)), np.array([[1.0, -1.9], [0.0, 0.0]])), (np.array([0, 10.0]), np.zeros(2))
    )
    nets = [signs, tilted]  # the least margin sits where the upper, and where the lower line matters
    found = [margin_bounds(net, x, y, p=2.0, radius=radius) for net in nets]

    def check():
        for net, margins in zip(nets, found, strict=True):
            law_margins_hold_in_the_ball(margins, net, x, y, p=2.0, radius=radius)

    with pytest.raises(AssertionError):
        check()


RELAXATION = module.relaxation


def test_intervals_of_one_layer_are_exact():
    lower, upper = np.array([[-1.0, 2.0]]), np.array([[3.0, 4.0]])
    below, above = interval_step(np.array([[1.0, -2.0]]), np.array([0.5]), lower, upper)
    np.testing.assert_allclose([below[0, 0], above[0, 0]], [0 - 8 + 0.5, 3 - 4 + 0.5], rtol=1e-13)


@pytest.mark.parametrize("radius", [-1.0, math.nan, math.inf])
def test_illegal_radii_are_named(radius):
    with pytest.raises(InvalidInput, match="radius has a negative"):
        margin_bounds(WITNESS, X, Y, p=2.0, radius=np.array([radius]))
    with pytest.raises(InvalidInput, match="labels must lie in"):
        local_lipschitz(WITNESS, X, np.array([2]), p=2.0, radius=np.array([0.5]))
