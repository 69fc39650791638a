"""Certified radii against attacks inside the ball, exact linear radii and rational margins."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from theory.laws import balls
from theory.laws import relu as laws
from theory.laws.strategies import EXTREME, arrays, attack_norms, relu_networks
from theory.relu.certificate import certified_radius, margin_lower_bounds, radius_from_margins
from theory.relu.lipschitz import lipschitz_constants
from theory.types import InvalidInput, ReLUNetwork

# The run-time shape checks pick random items of the tuples in a network, also while Hypothesis draws one.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

LINEAR = ReLUNetwork((np.array([[3.0, 4.0], [0.0, -1.0], [1.0, 1.0]]),), (np.array([0.5, 0.0, 0.25]),))
ABSOLUTE = ReLUNetwork(  # g_0 - g_1 = 1 - |x|: the true radius at 0 is 1
    (np.array([[1.0], [-1.0]]), np.array([[-1.0, -1.0], [0.0, 0.0]])), (np.zeros(2), np.array([1.0, 0.0]))
)
# float64 evaluates 1e16 + 1 - 1e16 to 0 and 0.1 + 0.2 - 0.3 to more than its exact value
CANCELLING = ReLUNetwork(
    (np.array([[1e16, 1.0, -1e16], [0.0, 0.0, 0.0]]), np.eye(2)), (np.zeros(2), np.array([0.0, 0.5]))
)


@given(net=relu_networks(max_hidden=3), p=attack_norms(), data=st.data())
def test_no_attack_succeeds_inside_the_certified_ball(net, p, data):
    x = data.draw(arrays((4, net.weights[0].shape[1])))
    balls.certifies(certified_radius, net, x, p=p)


@given(net=relu_networks(max_depth=1), p=attack_norms(), data=st.data())
def test_linear_classifiers_get_their_exact_radius(net, p, data):
    x = data.draw(arrays((4, net.weights[0].shape[1])))
    balls.equals_linear_radius(certified_radius, net, x, p=p)


@given(net=relu_networks(scales=EXTREME), data=st.data())
@example(net=CANCELLING, data=None)
def test_margins_never_exceed_their_rational_values(net, data):
    width = net.weights[0].shape[1]
    x = np.ones((1, width)) if data is None else data.draw(arrays((2, width), scales=EXTREME))
    balls.bounds_margins_at_points(margin_lower_bounds, net, x)


def test_margins_are_tight_where_nothing_cancels():
    x, y = np.array([[0.25]]), np.array([0])
    np.testing.assert_allclose(margin_lower_bounds(ABSOLUTE, x, y)[0, 1], 0.75, rtol=1e-14)
    np.testing.assert_allclose(certified_radius(ABSOLUTE, x, y, p=2.0), 0.75 / math.sqrt(2) / 1, rtol=0.5)


def test_laws_reject_unsound_certificates():
    x = np.array([[1.0, 1.0]])
    y = np.array([0])
    laws.law_no_attack_inside(certified_radius(LINEAR, x, y, p=math.inf), LINEAR, x, y, p=math.inf)
    wrong_dual = certified_radius(LINEAR, x, y, p=math.inf, lipschitz=lipschitz_constants(LINEAR, p=2.0))
    with pytest.raises(AssertionError):
        laws.law_no_attack_inside(wrong_dual, LINEAR, x, y, p=math.inf)
    too_far = 1.01 * certified_radius(LINEAR, x, y, p=2.0)
    with pytest.raises(AssertionError):
        laws.law_no_attack_inside(too_far, LINEAR, x, y, p=2.0)
    float_margin = np.array([[math.inf, -0.5 + 1.0 + 1e-15]])
    with pytest.raises(AssertionError):
        laws.law_margins_below_exact(float_margin, ABSOLUTE, np.array([[0.5]]), y)


def test_misclassified_tied_and_constant_inputs():
    x = np.array([[0.0], [3.0], [1.0]])
    y = np.array([0, 0, 0])
    gamma = certified_radius(ABSOLUTE, x, y, p=2.0)
    assert gamma[0] > 0
    assert gamma[1] == gamma[2] == 0  # misclassified; exactly tied
    constant = ReLUNetwork((np.zeros((2, 1)),), (np.array([1.0, 0.0]),))
    assert certified_radius(constant, x, y, p=2.0).tolist() == [math.inf] * 3
    assert certified_radius(constant, x, y, p=2.0, domain_radius=4.0).tolist() == [4.0] * 3
    equal = ReLUNetwork((np.ones((2, 1)),), (np.zeros(2),))  # margin 0 and Lipschitz constant 0
    assert certified_radius(equal, x, y, p=2.0).tolist() == [0.0] * 3


def test_ratios_round_down_and_survive_the_ends_of_the_range():
    margins = np.array([[math.inf, 1.0], [math.inf, 1e308], [math.inf, 5e-324], [math.inf, -math.inf]])
    constants = np.array([[0.0, 3.0], [0.0, 1e-300], [0.0, 2.0], [0.0, math.inf]])
    radius = radius_from_margins(margins, constants)
    assert radius[0] <= 1 / 3
    assert radius[1] == np.finfo(float).max
    assert radius[2] == radius[3] == 0


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_quotients_of_short_numbers_are_rounded_down_too(dtype):
    rng = np.random.default_rng(0)
    margins, constants = rng.random((500, 2)).astype(dtype), (rng.random((500, 2)) + 0.1).astype(dtype)
    for radius, above, below in zip(radius_from_margins(margins, constants), margins, constants, strict=True):
        exact = (Fraction(float(m)) / Fraction(float(c)) for m, c in zip(above, below, strict=True))
        assert Fraction(radius) <= min(exact)


@given(net=relu_networks(), p=attack_norms(), scale=st.floats(1.0, 4.0), data=st.data())
def test_larger_constants_and_smaller_domains_never_enlarge_the_radius(net, p, scale, data):
    x = data.draw(arrays((3, net.weights[0].shape[1])))
    y = net.scores(x).argmax(axis=1)
    gamma = certified_radius(net, x, y, p=p)
    looser = scale * lipschitz_constants(net, p=p)
    assert (certified_radius(net, x, y, p=p, lipschitz=looser) <= gamma).all()
    assert (certified_radius(net, x, y, p=p, domain_radius=0.5) == np.minimum(gamma, 0.5)).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"p": 1.0}, "p is 1.0"),
        ({"y": np.array([3])}, "labels must lie in"),
        ({"lipschitz": np.ones((2, 2))}, "expected \\(3, 3\\)"),
        ({"lipschitz": -np.ones((3, 3))}, "non-negative"),
        ({"lipschitz": np.full((3, 3), math.nan)}, "NaN"),
        ({"domain_radius": -1.0}, "domain_radius is -1.0"),
        ({"domain_radius": math.nan}, "domain_radius is nan"),
        ({"domain_radius": None}, "domain_radius is None"),
        ({"x": np.ones((1, 3))}, "takes 2 features"),
        ({"x": 1.0}, "x has shape \\(\\)"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_illegal_calls_name_the_argument(changes, message):
    arguments = {"x": np.ones((1, 2)), "y": np.array([0]), "p": 2.0} | changes
    with pytest.raises(InvalidInput, match=message):
        certified_radius(LINEAR, arguments.pop("x"), arguments.pop("y"), **arguments)
