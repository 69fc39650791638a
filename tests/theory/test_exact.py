"""Exact radii and local Lipschitz constants against enumeration of patterns, attacks and a second solver."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from theory.laws import exact as laws
from theory.laws.relu import attack_points, exact_scores
from theory.laws.strategies import EXTREME, arrays, attack_norms, relu_networks
from theory.linear.exact import radius as linear_radius
from theory.norms import norm
from theory.relu.certificate import certified_radius, crown_certified_radius
from theory.relu.exact import ExactRadius, exact_radius
from theory.relu.exact_lipschitz import exact_local_lipschitz
from theory.relu.lipschitz import gradient_norms
from theory.relu.margins import local_lipschitz
from theory.relu.milp import milp_radius
from theory.types import InvalidInput, LinearClassifier, ReLUNetwork

# The run-time shape checks pick random items of the tuples in a network, also while Hypothesis draws one.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

GAP = 1e-6
INSIDE = 1 - 1e-9  # of a radius: the rounding of points computed in float64 keeps them in the ball
# HiGHS keeps constraints to 1e-7 and integrality to 1e-6, times a big M of order 1 here.
MILP_TOLERANCE = 1e-5

ABSOLUTE = ReLUNetwork(  # g_0 - g_1 = 1 - |x|: the true radius at 0 is 1
    (np.array([[1.0], [-1.0]]), np.array([[-1.0, -1.0], [0.0, 0.0]])), (np.zeros(2), np.array([1.0, 0.0]))
)
TOUCHING = ReLUNetwork(  # g_0 - g_1 = relu(1 - x): a tie from x = 1 on, and no more than a tie
    (np.array([[-1.0]]), np.array([[1.0], [0.0]])), (np.array([1.0]), np.zeros(2))
)
NEVER = ReLUNetwork(  # g_0 - g_1 = 1 + relu(x)
    (np.array([[1.0]]), np.array([[1.0], [0.0]])), (np.array([0.0]), np.array([1.0, 0.0]))
)
THIRD = ReLUNetwork(  # g_0 - g_1 = |3x - 1|: a tie at 1/3, which is no float
    (np.array([[3.0], [-3.0]]), np.array([[1.0, 1.0], [0.0, 0.0]])), (np.array([-1.0, 1.0]), np.zeros(2))
)
FAR_AWAY = ReLUNetwork(  # g_0 - g_1 = 1 - relu(x - 1e5): no gradient leads there
    (np.array([[1.0]]), np.array([[-1.0], [0.0]])), (np.array([-1e5]), np.array([1.0, 0.0]))
)
# A cell of the first and third unit 3e-7 wide, in which alone the second layer's gradient is large.
THIN = ReLUNetwork(
    (np.array([[-7.5e5, -5e5]]), np.array([[-3e6], [-1.75e6]]), np.array([[0.0, 1e-6], [2e-6, 0.0]])),
    (np.array([2e6]), np.array([1.25e6, -7.5e5]), np.zeros(2)),
)
# The same unit twice and its multiple: split apart, they would leave regions without interior.
TWICE = ReLUNetwork(
    (np.array([[1.0, -0.5], [1.0, -0.5], [-2.0, 1.0]]), np.array([[1.0, -1.0, 0.5], [0.0, 1.0, 1.0]])),
    (np.array([0.25, 0.25, -0.5]), np.array([0.5, 0.0])),
)


def random_network(sizes: list[int], seed: int) -> ReLUNetwork:
    rng = np.random.default_rng(seed)
    weights = [rng.normal(size=(b, a)) * math.sqrt(2 / a) for a, b in zip(sizes, sizes[1:], strict=False)]
    return ReLUNetwork(tuple(weights), tuple(0.1 * rng.normal(size=len(w)) for w in weights))


WITNESS = random_network([2, 3, 3, 3], seed=4)


@st.composite
def cases(draw: st.DrawFn, **networks):
    """A tiny network, one input, its predicted label or any other, and a norm."""
    width, classes = draw(st.integers(1, 3)), draw(st.integers(2, 3))
    net = draw(relu_networks(width=width, classes=classes, max_hidden=3, **networks))
    x = draw(arrays((1, width)))
    predicted = int(net.scores(x)[0].argmax())
    label = draw(st.sampled_from([predicted] * 5 + [draw(st.integers(0, classes - 1))]))
    return net, x, np.array([label]), draw(attack_norms())


ORIGIN = np.zeros((1, 1)), np.array([0])


@given(case=cases())
@example(case=(ABSOLUTE, *ORIGIN, 2.0))
@example(case=(TOUCHING, *ORIGIN, math.inf))
@example(case=(NEVER, *ORIGIN, 2.0))
@example(case=(TWICE, np.array([[0.5, 0.25]]), np.array([0]), 2.0))
@settings(max_examples=60)
def test_radius_is_that_of_the_enumeration(case):
    net, x, y, p = case
    found = exact_radius(net, x, y, p=p, gap=GAP)
    laws.law_bounds_are_witnessed(found, net, x, y, p=p)
    laws.law_radius_equals_enumeration(found, net, x, y, p=p, gap=GAP)


@given(case=cases(scales=(1.0,)), cap=st.sampled_from([0.0, 1e-3, 0.3, 5.0]))
@settings(max_examples=30)
def test_domain_radius_caps_both_bounds(case, cap):
    net, x, y, p = case
    found = exact_radius(net, x, y, p=p, gap=GAP, domain_radius=cap)
    assert (found.upper <= cap).all()
    assert found.status[0] in ("optimal", "capped")
    laws.law_bounds_are_witnessed(found, net, x, y, p=p)
    if cap > 0:
        laws.law_radius_equals_enumeration(found, net, x, y, p=p, gap=GAP, domain_radius=cap)


@given(case=cases(), size=st.sampled_from([1e-3, 0.1, 1.0, 10.0]))
@example(case=(ABSOLUTE, *ORIGIN, 2.0), size=0.1)
@example(case=(TWICE, np.array([[0.5, 0.25]]), np.array([0]), math.inf), size=1.0)
@example(case=(THIN, np.array([[2.0, 1.0]]), np.array([1]), math.inf), size=1.0)
@settings(max_examples=60)
def test_local_lipschitz_is_that_of_the_enumeration(case, size):
    net, x, y, p = case
    radius = np.array([size])
    found = exact_local_lipschitz(net, x, y, p=p, radius=radius, gap=GAP)
    laws.law_lipschitz_equals_enumeration(found, net, x, y, radius, p=p, gap=GAP)


@given(case=cases(), size=st.sampled_from([0.0, 0.1, 10.0]))
@settings(max_examples=40)
def test_local_lipschitz_lies_between_samples_and_the_interval_jacobian(case, size):
    net, x, y, p = case
    radius = np.array([size])
    found = exact_local_lipschitz(net, x, y, p=p, radius=radius)
    pairs = np.array([(int(y[0]), k) for k in range(net.classes)])
    sampled = gradient_norms(net, attack_points(net, x[0], INSIDE * size, p=p), pairs, p=p).max(axis=0)
    laws.law_lipschitz_sandwich(sampled, found, local_lipschitz(net, x, y, p=p, radius=radius))


@given(net=relu_networks(max_depth=1), p=attack_norms(), data=st.data())
@settings(max_examples=50)
def test_linear_networks_get_the_linear_radius(net, p, data):
    x = data.draw(arrays((2, net.weights[0].shape[1])))
    y = net.scores(x).argmax(axis=1)
    found = exact_radius(net, x, y, p=p)
    truth = linear_radius(LinearClassifier(net.weights[0], net.biases[0]), x, y, p=p)
    # The float64 radius is off by its rounding; the search ends where it says so.
    size = (10 * np.abs(net.weights[0]).sum() + np.abs(net.biases[0]).sum()) / np.abs(net.weights[0]).max(
        initial=1e-300
    )
    solved = np.array([status == "optimal" for status in found.status])
    assert solved[truth < 100].all()
    np.testing.assert_allclose(found.upper[solved], truth[solved], rtol=GAP, atol=1e-9 * size)


@given(case=cases(scales=EXTREME))
@settings(max_examples=50)
def test_extreme_scales_give_sound_bounds_or_none(case):
    net, x, y, p = case
    found = exact_radius(net, x, y, p=p, time_limit=1.0)
    laws.law_bounds_are_witnessed(found, net, x, y, p=p)
    low = found.lower[0]
    for point in attack_points(net, x[0], min(low * INSIDE, 1e6), p=p)[::5]:
        scores = exact_scores(net, point)
        assert low == 0 or all(scores[y[0]] > s for k, s in enumerate(scores) if k != y[0])


def test_misclassified_tied_constant_and_touching():
    x, y = np.array([[0.0], [3.0], [1.0]]), np.zeros(3, dtype=np.int64)
    found = exact_radius(ABSOLUTE, x, y, p=2.0)
    assert found.status == ("optimal",) * 3
    np.testing.assert_allclose(found.upper, [1.0, 0.0, 0.0], rtol=GAP)
    assert (found.lower[1:] == 0).all()
    constant = ReLUNetwork((np.zeros((2, 1)),), (np.array([1.0, 0.0]),))
    assert exact_radius(constant, x, y, p=2.0).lower.tolist() == [math.inf] * 3
    touching = exact_radius(TOUCHING, *ORIGIN, p=math.inf)
    assert touching.status == ("optimal",)
    assert touching.upper[0] == pytest.approx(1.0, rel=GAP)
    far = exact_radius(FAR_AWAY, *ORIGIN, p=2.0)
    assert far.status == ("optimal",)
    assert far.upper[0] == pytest.approx(1e5 + 1, rel=GAP)
    never = exact_radius(NEVER, *ORIGIN, p=2.0)
    assert never.status == ("none found",)
    assert never.upper[0] == math.inf
    assert never.lower[0] >= 100
    assert np.isnan(never.x_adv).all()


@pytest.mark.parametrize("p", [2.0, math.inf])
def test_a_region_that_cannot_be_emptied_is_no_proof_that_there_is_none(p):
    found = exact_radius(THIRD, *ORIGIN, p=p)
    assert found.status == ("stalled",)
    assert found.lower[0] <= 1 / 3
    assert found.upper[0] == math.inf


@pytest.mark.parametrize("p", [2.0, math.inf])
def test_a_time_limit_leaves_valid_bounds(p):
    net = random_network([8, 16, 16, 4], seed=0)
    x = np.random.default_rng(1).normal(size=(3, 8))
    y = net.scores(x).argmax(axis=1)
    found = exact_radius(net, x, y, p=p)
    hurried = exact_radius(net, x, y, p=p, time_limit=0.0)
    assert found.status == ("optimal",) * 3
    assert "time limit" in hurried.status
    assert (hurried.lower <= found.upper).all()
    assert (hurried.upper >= found.lower).all()
    radius = found.upper
    steepest = exact_local_lipschitz(net, x, y, p=p, radius=radius)
    rushed = exact_local_lipschitz(net, x, y, p=p, radius=radius, time_limit=0.0)
    assert steepest.status == ("optimal",) * 3
    assert "time limit" in rushed.status
    assert (rushed.lower <= steepest.upper).all()
    assert (rushed.upper >= steepest.lower).all()


@pytest.mark.parametrize("p", [2.0, math.inf])
def test_certificates_and_attacks_enclose_the_exact_radius(p):
    net = random_network([8, 12, 12, 4], seed=2)
    x = np.random.default_rng(3).normal(size=(4, 8))
    y = net.scores(x).argmax(axis=1)
    found = exact_radius(net, x, y, p=p)
    rng = np.random.default_rng(4)
    attacked = np.full(4, math.inf)
    for e, label in enumerate(y):
        steps = rng.normal(size=(20_000, 8)) if p == 2 else rng.uniform(-1, 1, size=(20_000, 8))
        steps *= (3 * found.upper[e] * rng.random(20_000) / norm(steps, p=p))[:, None]
        hits = net.scores(x[e] + steps).argmax(axis=1) != label
        attacked[e] = norm(steps[hits], p=p).min()
    for certify in (certified_radius, crown_certified_radius):
        laws.law_sandwich(certify(net, x, y, p=p), found, attacked)


@given(seed=st.integers(0, 2**32 - 1), p=attack_norms())
@example(seed=39, p=math.inf)
@example(seed=50, p=2.0)
@example(seed=112, p=2.0)
@settings(max_examples=20)
def test_networks_in_general_position_are_solved(seed, p):
    # The closest point of a region may be a corner of it that the ray from x leaves at once.
    net = random_network([4, 4, 3], seed)
    x = np.random.default_rng(seed).normal(size=(1, 4))
    found = exact_radius(net, x, net.scores(x).argmax(axis=1), p=p)
    assert found.status[0] in ("optimal", "none found")


def test_the_mixed_integer_program_agrees():
    net = random_network([6, 8, 6, 4], seed=5)
    x = np.random.default_rng(6).normal(size=(4, 6))
    y = net.scores(x).argmax(axis=1)
    found = exact_radius(net, x, y, p=math.inf)
    lower, upper = milp_radius(net, x, y, radius=1.2 * found.upper)
    np.testing.assert_allclose(lower, found.lower, rtol=MILP_TOLERANCE)
    np.testing.assert_allclose(upper, found.upper, rtol=MILP_TOLERANCE)
    lower, upper = milp_radius(net, x, y, radius=0.9 * found.lower)
    assert (upper == math.inf).all()
    assert (lower == 0.9 * found.lower).all()


# ---- The laws reject broken results


def shifted(found: ExactRadius, **changes) -> ExactRadius:
    return dataclasses.replace(found, **changes)


def test_radius_laws_reject_wrong_bounds_and_points():
    net, x, y = WITNESS, np.array([[0.5, 0.25]]), np.array([2])
    found = exact_radius(net, x, y, p=2.0)
    assert found.status == ("optimal",)
    wrong = exact_radius(net, x, y, p=math.inf)  # another norm's radius
    broken = [
        shifted(found, lower=found.upper * 1.1, upper=found.upper * 1.2),
        shifted(found, lower=found.lower * 0.9, upper=found.upper * 0.9),
        shifted(found, lower=found.lower * 0.9),  # called optimal with a wide gap
        shifted(found, lower=wrong.lower, upper=wrong.upper),
    ]
    for result in broken:
        with pytest.raises(AssertionError):
            laws.law_radius_equals_enumeration(result, net, x, y, p=2.0, gap=GAP)
    for result in (shifted(found, x_adv=x), shifted(found, upper=found.upper * (1 - 1e-9)), wrong):
        with pytest.raises(AssertionError):
            laws.law_bounds_are_witnessed(result, net, x, y, p=2.0)
    with pytest.raises(AssertionError):
        laws.law_sandwich(found.lower * 1.001, found, found.upper)
    with pytest.raises(AssertionError):
        laws.law_sandwich(found.lower * 0.5, found, found.lower * 0.99)


def test_lipschitz_laws_reject_wrong_constants():
    net, x, y, radius = WITNESS, np.array([[0.5, 0.25]]), np.array([2]), np.array([1.0])
    found = exact_local_lipschitz(net, x, y, p=2.0, radius=radius)
    laws.law_lipschitz_equals_enumeration(found, net, x, y, radius, p=2.0, gap=GAP)
    other = exact_local_lipschitz(net, x, y, p=math.inf, radius=radius)
    narrow = exact_local_lipschitz(net, x, y, p=2.0, radius=np.array([1e-3]))
    for result in (other, narrow, dataclasses.replace(found, lower=found.lower / 2)):
        with pytest.raises(AssertionError):
            laws.law_lipschitz_equals_enumeration(result, net, x, y, radius, p=2.0, gap=GAP)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"p": 1.0}, "p is 1.0"),
        ({"y": np.array([3])}, "labels must lie in"),
        ({"domain_radius": -1.0}, "domain_radius is -1.0"),
        ({"gap": 0.0}, "gap is 0.0"),
        ({"time_limit": math.nan}, "time_limit is nan"),
        ({"x": np.ones((1, 3))}, "takes 2 features"),
    ],
)
def test_illegal_calls_name_the_argument(changes, message):
    arguments = {"x": np.ones((1, 2)), "y": np.array([0]), "p": 2.0} | changes
    with pytest.raises(InvalidInput, match=message):
        exact_radius(TWICE, arguments.pop("x"), arguments.pop("y"), **arguments)
    if "domain_radius" not in changes:
        arguments = {"x": np.ones((1, 2)), "y": np.array([0]), "p": 2.0} | changes
        with pytest.raises(InvalidInput, match=message):
            exact_local_lipschitz(
                TWICE, arguments.pop("x"), arguments.pop("y"), radius=np.array([1.0]), **arguments
            )


def test_an_illegal_radius_is_named():
    with pytest.raises(InvalidInput, match="radius has a negative"):
        exact_local_lipschitz(TWICE, np.ones((1, 2)), np.array([0]), p=2.0, radius=np.array([-1.0]))
