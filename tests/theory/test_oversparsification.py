"""Expected certified radii over random masks, against the enumeration of all masks and patterns."""

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from theory.laws import moments as laws
from theory.laws import relu as relu_laws
from theory.laws.strategies import attack_norms, masked_problems
from theory.linear import radius as linear_radius
from theory.norms import dual
from theory.relu.certificate import certified_radius
from theory.relu.mask_margins import expected_margin_bound, margin_moment_bounds
from theory.relu.oversparsification import (
    expected_lipschitz,
    expected_radius_confidence,
    expected_radius_lower_bound,
    expected_radius_upper_bound,
    oversparse_kept_fraction,
    path_probability,
    radius_curve,
    smallest_expected_margin,
)
from theory.types import InvalidInput, LinearClassifier, ReLUNetwork

pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

PAIR = (0, 1)
CAPS = st.sampled_from([0.25, 2.0, math.inf])
Case = tuple[ReLUNetwork, np.ndarray, np.ndarray, np.ndarray]


def net_of(*weights: object) -> ReLUNetwork:
    """A network without biases."""
    layers = tuple(np.array(w, dtype=float) for w in weights)
    return ReLUNetwork(layers, tuple(np.zeros(len(w)) for w in layers))


# One unit on a straight path, and two classes: the margin is w x k in expectation.
PATH = (net_of([[2.0]], [[1.0], [-1.0]]), np.array([[1.0], [0.5]]), np.array([0, 0]), np.array([0.25, 0.0]))
WIDE = (
    ReLUNetwork(
        (np.array([[1.0, 2.0], [3.0, 0.5]]), np.array([[1.0, 2.0], [-1.0, 0.5]])), (np.ones(2), np.zeros(2))
    ),
    np.array([[1.0, 0.5], [2.0, 1.0]]),
    np.array([0, 0]),
    np.array([0.05, 0.0]),
)
# The second layer's entries cancel for v = (1, 1) and add up for v = (-1, 1), of the same sizes.
CANCELLING = (
    ReLUNetwork(
        (np.array([[1.0]]), np.array([[-1.0], [1.0]]), np.array([[0.0, 0.0], [0.0, 0.0], [-1.0, 1.0]])),
        (np.ones(1), np.zeros(2), np.zeros(3)),
    ),
    np.array([[0.0]]),
    np.array([2]),
    np.zeros(3),
)
# The margin is as small as the slopes, and lost in the rounding of the scores.
FAINT = (
    ReLUNetwork((np.array([[0.0, 3e-34], [0.0, 0.0]]),), (np.full(2, 2.8),)),
    np.array([[0.0, -1.0]]),
    np.array([1]),
    np.zeros(1),
)
# No input moves the margin, which is positive and lost in the rounding of the scores.
CONSTANT = (
    ReLUNetwork(
        (np.zeros((1, 1)), np.array([[0.0], [-1.0]])),
        (np.array([1e-38]), np.array([-10.0, -10.0])),
    ),
    np.array([[0.0]]),
    np.array([0]),
    np.zeros(2),
)
LINEAR = (
    net_of([[1.0, 2.0, -1.0], [-0.5, 0.25, 1.0]]),
    np.array([[1.0, 1.0, -2.0], [0.5, 2.0, 0.0]]),
    np.array([0, 0]),
    np.array([0.1]),
)


@given(case=masked_problems(), p=attack_norms(), cap=CAPS)
@example(case=CANCELLING, p=2.0, cap=2.0)
@example(case=FAINT, p=math.inf, cap=2.0)
@example(case=CONSTANT, p=math.inf, cap=0.25)
@example(case=PATH, p=2.0, cap=math.inf)
@example(case=WIDE, p=math.inf, cap=2.0)
@example(case=LINEAR, p=2.0, cap=math.inf)
def test_lower_bound_is_below_the_enumerated_expectation(case: Case, p, cap):
    net, x, y, alphas = case
    laws.law_below_expected_radius(expected_radius_lower_bound, net, x, y, alphas, p=p, cap=cap)


@given(case=masked_problems() | masked_problems(biases=False), p=attack_norms(), cap=CAPS)
@example(case=PATH, p=2.0, cap=math.inf)
def test_upper_bound_is_above_the_enumerated_expectation(case: Case, p, cap):
    net, x, y, alphas = case
    laws.law_above_expected_radius(expected_radius_upper_bound, net, x, y, alphas, p=p, cap=cap)


@pytest.mark.parametrize("case", [PATH, WIDE, LINEAR])
@pytest.mark.parametrize("p", [2.0, math.inf])
def test_the_bounds_say_something(case: Case, p):
    net, x, y, alphas = case
    assert (expected_radius_lower_bound(net, x, y, alphas[None], p=p) > 0).all()


@given(case=masked_problems())
@example(case=WIDE)
def test_margin_moments_are_bounded(case: Case):
    laws.law_bounds_margin_moments(margin_moment_bounds, *case)


@given(case=masked_problems(max_depth=1))
@example(case=LINEAR)
def test_margin_moments_of_one_layer_and_two_classes_are_exact(case: Case):
    net, x, y, alphas = case
    if net.classes > 2:
        return
    probabilities, weights = relu_laws.all_masks(net, alphas)
    margins = laws.masked_margins(net, weights, x, y)
    mean, square = margin_moment_bounds(net, x, y, alphas[None])
    slack = 1e3 * laws.rounding_of_margins(net, x) + 1e-300
    assert (np.abs(mean[0] - probabilities @ margins) <= slack).all()
    size = np.abs(margins).max() + 1.0
    assert (np.abs(square[0] - probabilities @ margins**2) <= slack * size).all()


def test_the_second_moment_of_one_layer_counts_mistakes_too():
    """X = m_1 - m_2 and X = m_1 + 2 m_2 over masks kept half the time: E X^2, and E max(X, 0)^2 if X >= 0."""
    x, y, half = np.ones((1, 2)), np.array([0]), np.array([0.5])
    for net, whole, positive in (
        (net_of([[1, 0], [0, 1]]), 0.5, 0.25),
        (net_of([[1, 2], [0, 0]]), 3.5, 3.5),
    ):
        probabilities, weights = relu_laws.all_masks(net, half)
        margins = laws.masked_margins(net, weights, x, y)[:, 0]
        assert probabilities @ margins**2 == whole
        assert probabilities @ np.maximum(margins, 0) ** 2 == positive
        _, square = margin_moment_bounds(net, x, y, half[None])
        assert whole <= square[0, 0] <= whole * (1 + 1e-12)


@given(case=masked_problems())
def test_expected_margins_are_bounded(case: Case):
    net, x, _, alphas = case
    laws.law_bounds_expected_margin(expected_margin_bound, net, x, alphas, PAIR)


def test_the_margin_bound_is_reached_on_positive_paths_and_leaves_the_biases():
    net, x, _, alphas = PATH
    np.testing.assert_allclose(
        expected_margin_bound(net, x, alphas[None], PAIR), [[0.75 * 4, 0.75 * 2]], rtol=1e-14
    )
    biased = ReLUNetwork(net.weights, (np.array([3.0]), np.array([0.5, -0.5])))
    gone = expected_margin_bound(biased, x, np.array([[1.0, 0.0], [1.0, 1.0]]), PAIR)
    np.testing.assert_allclose(gone, [[7.0, 7.0], [1.0, 1.0]], rtol=1e-14)


@given(case=masked_problems(), p=attack_norms())
@example(case=CANCELLING, p=2.0)
def test_expected_lipschitz_constants_are_bounded(case: Case, p):
    net, _, _, alphas = case
    laws.law_bounds_expected_lipschitz(expected_lipschitz, net, alphas, p=p)


@given(case=masked_problems())
def test_path_probabilities_are_bounded(case: Case):
    net, x, _, alphas = case
    laws.law_bounds_path_probability(path_probability, net, x[0], alphas, PAIR)


def test_path_probability_is_exact_on_a_tree_and_small_near_full_sparsity():
    net, x, _, _ = PATH
    alphas = np.array([[0.25, 0.0], [0.25, 0.5], [1 - 1e-9, 0.0], [1.0, 0.0]])
    truth = [0.75, 0.75 * 0.75, 1e-9, 0.0]
    np.testing.assert_allclose(path_probability(net, x[0], alphas, PAIR), truth, rtol=1e-6)


@given(case=masked_problems(biases=False))
@example(case=(*PATH[:3], np.array([0.9, 0.0])))
def test_sparser_than_kappa_is_worse_than_dense(case: Case):
    net, x, y, alphas = case
    unmasked = np.append(alphas[:-1], 0.0)
    laws.law_sparser_than_kappa_is_worse(oversparse_kept_fraction, net, x, y, unmasked)


def test_kappa_is_one_on_a_single_positive_path():
    net, x, y, _ = PATH
    np.testing.assert_allclose(oversparse_kept_fraction(net, x, y), 1.0, rtol=1e-12)


@given(case=masked_problems(), p=attack_norms())
def test_without_masks_the_lower_bound_is_a_certificate_of_the_network(case: Case, p):
    net, x, y, alphas = case
    dense = np.zeros((1, len(alphas)))
    found = expected_radius_lower_bound(net, x, y, dense, p=p)[0]
    exact = certified_radius(net, x, y, p=p)
    (gradient,) = relu_laws.largest_gradient(net, [w[None] for w in net.weights], PAIR, q=dual(p))
    if net.classes == 2 and len(net.weights) == 1 and gradient > 0:
        slack = 100 * laws.rounding_of_margins(net, x) / gradient
        assert (np.abs(found - exact) <= 1e-9 * exact + slack).all()


@given(case=masked_problems(biases=False, max_depth=1), p=attack_norms(), cap=st.sampled_from([0.25, 2.0]))
def test_both_bounds_hold_for_the_true_radius_of_masked_linear_classifiers(case: Case, p, cap):
    """Exact minimal perturbations, capped, a tie being an error."""
    net, x, y, alphas = case
    probabilities, weights = relu_laws.all_masks(net, alphas)
    truth = np.zeros(len(x))
    for chance, weight in zip(probabilities, weights[0], strict=True):
        found = linear_radius(LinearClassifier(weight, net.biases[0]), x, y, p=p)
        margins = laws.masked_margins(net, [weight[None]], x, y)[0]
        truth += chance * np.where(margins > laws.rounding_of_margins(net, x), np.minimum(found, cap), 0.0)
    lower = expected_radius_lower_bound(net, x, y, alphas[None], p=p, domain_radius=cap)[0]
    assert (lower <= truth + 1e-9 * cap).all()
    alive = [
        min(path_probability(net, point, alphas[None], (int(k), j))[0] for j in range(net.classes) if j != k)
        for point, k in zip(x, y, strict=True)
    ]
    assert (truth <= cap * np.array(alive) * (1 + 1e-12)).all()


def test_a_constant_classifier_keeps_its_radius_at_full_sparsity():
    """What the bound that goes to 0 does not say: with biases the network may be constant and right."""
    net = ReLUNetwork((np.array([[1.0], [2.0]]),), (np.array([0.5, 0.0]),))
    x, y, gone = np.array([[1.0]]), np.array([0]), np.array([[1.0]])
    assert expected_radius_lower_bound(net, x, y, gone, p=2.0, domain_radius=3.0) == pytest.approx(3.0)
    assert expected_radius_upper_bound(net, x, y, gone, p=2.0, domain_radius=3.0) == 3.0


def test_the_curve_dies_at_full_sparsity_and_its_optimum_is_on_the_grid():
    net, x, y, _ = WIDE
    unbiased = ReLUNetwork(net.weights, (np.zeros(2), np.zeros(2)))
    sparsity = np.array([0.0, 0.1, 0.5, 1 - 1e-12, 1.0])
    curve = radius_curve(unbiased, x, y, sparsity, p=2.0)
    assert (curve.lower <= curve.upper).all()
    assert curve.lower[-1] == curve.upper[-1] == 0
    assert 0 < curve.upper[-2] < 1e-10
    assert curve.best == sparsity[np.argmax(curve.lower)] == 0.0


@pytest.mark.parametrize("p", [2.0, math.inf])
def test_confidence_limits_fail_no_more_often_than_stated(p):
    """20 batches of 200 masks at delta = 0.1: more than 2 + 5 sd = 8 failures would refute the limit."""
    net, x, y, _ = WIDE
    alphas = np.array([[0.3, 0.0]])
    truth = laws.expected_certified_radius(net, x, y, alphas[0], p=p, cap=2.0, side=0)
    probabilities, weights = relu_laws.all_masks(net, alphas[0])
    margins = laws.masked_margins(net, weights, x, y)
    rng = np.random.default_rng(0)
    failures = 0
    for _ in range(20):
        chosen = margins[rng.choice(len(margins), size=200, p=probabilities)][None]
        found = expected_radius_confidence(net, x, y, alphas, chosen, p=p, delta=0.1, domain_radius=2.0)[0]
        assert (found > 0).all()
        failures += bool((found > truth).any())
    assert failures <= 8


def test_margins_of_short_numbers_are_summed_in_float64():
    net, x, y, _ = WIDE
    alphas, margins = np.array([[0.3, 0.0]]), np.full((1, 500, len(x)), 6e4)
    short, exact = (
        expected_radius_confidence(net, x, y, alphas, margins.astype(dtype), p=2.0)
        for dtype in (np.float16, np.float64)
    )
    np.testing.assert_array_equal(short, exact)


def test_the_lower_law_rejects_a_formula_without_cauchy_schwarz():
    """E X / E L is not below E[X / L]: here X = L^2, so the ratio is E L^2 / E L > E L."""
    net = net_of([[3.0, 1.0]], [[1.0], [0.0]])

    def ratio_of_means(net, x, y, alphas, *, p, domain_radius):
        mean, _ = margin_moment_bounds(net, x, y, alphas)
        lipschitz, _ = expected_lipschitz(net, alphas, int(y[0]), p=p)
        return np.maximum(mean, 0.0) / lipschitz[:, None]

    x, y = np.array([[3.0, 0.1]]), np.array([0])
    with pytest.raises(AssertionError):
        laws.law_below_expected_radius(ratio_of_means, net, x, y, np.array([0.5, 0.0]), p=2.0, cap=math.inf)


def with_euclidean_constant(net, x, y, alphas, *, p, domain_radius):
    return expected_radius_lower_bound(net, x, y, alphas, p=2.0, domain_radius=domain_radius)


def first_moment_twice(net, alphas, label, *, p):
    """The mean in the place of the root mean square, too small."""
    mean, _ = expected_lipschitz(net, alphas, label, p=p)
    return mean, mean


def half(bound):
    return lambda *args, **settings: bound(*args, **settings) / 2


def test_laws_reject_broken_formulas():
    net, x, y, alphas = LINEAR
    dense = np.array([0.0])
    with pytest.raises(AssertionError):  # the wrong dual norm
        laws.law_below_expected_radius(with_euclidean_constant, net, x, y, dense, p=math.inf, cap=math.inf)
    net, x, y, alphas = PATH
    with pytest.raises(AssertionError):
        laws.law_above_expected_radius(
            half(expected_radius_upper_bound), net, x, y, alphas, p=2.0, cap=math.inf
        )
    with pytest.raises(AssertionError):
        laws.law_bounds_expected_margin(half(expected_margin_bound), net, x, alphas, PAIR)
    with pytest.raises(AssertionError):
        laws.law_bounds_path_probability(half(path_probability), net, x[0], alphas, PAIR)
    with pytest.raises(AssertionError):  # variance forgotten
        laws.law_bounds_margin_moments(
            lambda *args: (margin_moment_bounds(*args)[0], margin_moment_bounds(*args)[0] ** 2),
            net,
            x,
            y,
            alphas,
        )
    with pytest.raises(AssertionError):  # the mean of the dense network
        laws.law_bounds_margin_moments(
            lambda net, x, y, a: margin_moment_bounds(net, x, y, np.zeros_like(a)), net, x, y, alphas
        )
    with pytest.raises(AssertionError):
        laws.law_bounds_expected_lipschitz(first_moment_twice, net, alphas, p=math.inf)
    # Masking undoes a cancellation, so sparser is better here: kappa is tiny, and no larger threshold holds.
    cancelling = net_of([[1.0], [1.0]], [[2.0, -1.9], [0.0, 0.0]])
    one, first, sparse = np.array([[1.0]]), np.array([0]), np.array([0.5, 0.0])
    laws.law_sparser_than_kappa_is_worse(oversparse_kept_fraction, cancelling, one, first, sparse)
    with pytest.raises(AssertionError):
        laws.law_sparser_than_kappa_is_worse(lambda *_: np.array([0.9]), cancelling, one, first, sparse)


@pytest.mark.parametrize("p", [2.0, math.inf])
@pytest.mark.parametrize("exponents", [(0, -515), (0, 515), (-515, 0), (515, 0), (900, -800), (-900, 300)])
def test_units_of_inputs_and_weights_change_nothing_else(exponents, p):
    """Powers of 2, whose squares leave the floats, pass through; so do those of the biases with them."""
    inputs, layer = exponents
    for net, x, y, alphas in (WIDE, LINEAR):
        powers = [inputs + layer * (j + 1) for j in range(len(net.weights))]
        if max(map(abs, powers)) > 1000:
            continue
        scaled = ReLUNetwork(
            tuple(np.ldexp(w, layer) for w in net.weights),
            tuple(np.ldexp(b, power) for b, power in zip(net.biases, powers, strict=True)),
        )
        both = np.stack([alphas, 0 * alphas])
        for cap in (1.0, math.inf):
            here = expected_radius_lower_bound(net, x, y, both, p=p, domain_radius=cap)
            there = expected_radius_lower_bound(
                scaled, np.ldexp(x, inputs), y, both, p=p, domain_radius=np.ldexp(cap, inputs)
            )
            assert (here > 0).all()
            np.testing.assert_array_equal(there, np.ldexp(here, inputs))


@pytest.mark.parametrize("p", [2.0, math.inf])
@pytest.mark.parametrize("scale", [1.0, 1e-155, 1e155])
def test_without_masks_it_is_margin_over_constant_whatever_the_scale(scale, p):
    """With two classes a certificate; with three less than the best, which divides class by class."""
    y, dense, x = np.array([0]), np.zeros((1, 1)), np.ones((1, 2))
    two, three = net_of([[scale, 0], [0, scale / 2]]), net_of([[scale, scale], [0, scale], [scale, 0]])
    for net, point, size in ((two, x, 1.0), (net_of([[1, 0], [0, 0.5]]), scale * x, scale)):
        found = expected_radius_lower_bound(net, point, y, dense, p=p)
        truth = size * 0.5 / (math.hypot(1, 0.5) if p == 2 else 1.5)
        np.testing.assert_allclose(found, truth, rtol=1e-12)
    found = expected_radius_lower_bound(three, x, y, dense, p=p)[0, 0]
    constant = np.min(expected_lipschitz(three, dense, 0, p=p)) / scale
    assert found == pytest.approx(1 / constant, rel=1e-12)
    assert found < certified_radius(three, x, y, p=p)[0]


def test_limits_far_from_the_inputs_stay_limits():
    """Their ratio to the inputs is no float; a constant that is right has every radius."""
    net = ReLUNetwork((np.zeros((2, 1)),), (np.array([1.0, 0.0]),))
    y, dense = np.array([0]), np.zeros((1, 1))
    for size, cap in ((1e-300, 1e300), (1e300, 1e-300), (1e-20, 1e-300)):
        found = expected_radius_lower_bound(net, np.array([[size]]), y, dense, p=2.0, domain_radius=cap)
        assert 0 < found[0, 0] <= cap
        assert found[0, 0] == pytest.approx(cap, rel=1e-2)


@pytest.mark.parametrize("scale", [1e-200, 1e-150, 1e150, 1e200, 1e300])
def test_extreme_scales_never_give_nan_or_a_crossing(scale):
    net = net_of([[scale, scale]], [[1.0], [-1.0]])
    x, y, alphas = np.array([[1.0, 2.0]]), np.array([0]), np.array([[0.25, 0.0], [0.0, 0.0], [1.0, 0.0]])
    lower = expected_radius_lower_bound(net, x, y, alphas, p=2.0)[:, 0]
    upper = expected_radius_upper_bound(net, x, y, alphas, p=2.0)[:, 0]
    assert (0 <= lower).all()
    assert (lower <= upper).all()
    assert lower[2] == upper[2] == 0
    assert not np.isnan(expected_margin_bound(net, x, alphas, PAIR)).any()


def test_tiny_sparsities_keep_their_variance():
    """1 - alpha rounds to 1, the variance k alpha does not to 0."""
    net = net_of([[1.0, 1.0]], [[1.0], [-1.0]])
    x, y = np.array([[1.0, -1.0]]), np.array([0])
    _, square = margin_moment_bounds(net, x, y, np.array([[1e-20, 0.0]]))
    assert square[0, 0] >= 4e-20


def test_a_network_without_weights_has_radius_0_however_far_the_input():
    """The l_2 norm of this x is infinite as a float, and times the probability 0 it was NaN."""
    net = ReLUNetwork((np.ones((2, 2)), np.eye(2)), (np.zeros(2), np.zeros(2)))
    x, alphas = np.full((1, 2), 1.5e308), np.array([[1.0, 1.0], [0.5, 0.5]])
    found = expected_radius_upper_bound(net, x, np.array([0]), alphas, p=2.0, domain_radius=math.inf)
    assert found[:, 0].tolist() == [0.0, math.inf]


@pytest.mark.usefixtures("unchecked")
def test_illegal_calls_name_the_argument():
    net, x, y, alphas = PATH
    with pytest.raises(InvalidInput, match="domain_radius is 0"):
        expected_radius_lower_bound(net, x, y, alphas[None], p=2.0, domain_radius=0.0)
    with pytest.raises(InvalidInput, match="alphas has shape"):
        expected_radius_upper_bound(net, x, y, alphas[None, :1], p=2.0)
    with pytest.raises(InvalidInput, match="bias"):
        oversparse_kept_fraction(ReLUNetwork(net.weights, (np.ones(1), np.zeros(2))), x, y)
    with pytest.raises(InvalidInput, match="label is 2"):
        expected_lipschitz(net, alphas[None], 2, p=2.0)
    with pytest.raises(InvalidInput, match="pair is"):
        expected_margin_bound(net, x, alphas[None], (1, 1))
    for pair in ((0, 0), (0, -1), (0, 9)):
        with pytest.raises(InvalidInput, match="pair is"):
            path_probability(net, x[0], alphas[None], pair)
    for point in (x[0] * math.nan, x[0, :0]):
        with pytest.raises(InvalidInput, match="^x"):
            path_probability(net, point, alphas[None], PAIR)
    drawn = np.zeros((1, 5, 2))
    with pytest.raises(InvalidInput, match="delta is 1"):
        expected_radius_confidence(net, x, y, alphas[None], drawn, p=2.0, delta=1.0)
    for wrong in (drawn, drawn[0]):
        with pytest.raises(InvalidInput, match="margins has shape"):
            expected_radius_confidence(net, x[:1], y[:1], alphas[None], wrong, p=2.0)
    three = np.concatenate([x, x[:1]])
    for points, labels in ((x[:1], np.array([0, 1])), (three, y[:1]), (x[:1], np.array([2]))):
        sampled = np.full((1, 5, len(points)), 0.5)
        with pytest.raises(InvalidInput, match="^y"):
            expected_radius_lower_bound(net, points, labels, alphas[None], p=2.0)
        with pytest.raises(InvalidInput, match="^y"):
            expected_radius_confidence(net, points, labels, alphas[None], sampled, p=2.0)
        with pytest.raises(InvalidInput, match="^y"):
            smallest_expected_margin(net, points, labels, alphas[None])
    for points in (x[:, :0], x * math.nan):
        with pytest.raises(InvalidInput, match="^x"):
            expected_radius_confidence(net, points, y, alphas[None], drawn, p=2.0)
    with pytest.raises(InvalidInput, match="alphas has shape"):
        expected_radius_confidence(net, x, y, alphas[None, :1], drawn, p=2.0)


def straight(*weights: float) -> ReLUNetwork:
    """One unit per layer and two classes, the second constant."""
    return net_of(*([[w]] for w in weights), [[1.0], [0.0]])


def test_many_layers_of_which_little_is_kept_leave_a_radius():
    depth, alpha = 29, 1 - 1e-12
    x, alphas = np.array([[1e300]]), np.full((1, depth + 1), alpha)
    net = straight(*[1.0] * depth)
    assert expected_radius_upper_bound(net, x, np.array([0]), alphas, p=2.0) >= (1 - alpha) ** 30 * 1e300
    assert path_probability(net, x[0], np.ones((1, depth + 1)), PAIR) == 0
    # A product that leaves the normal numbers: 0.01 of 1e-323, whose truth lies below the floats.
    x, alphas = np.array([[1e-323]]), np.array([[0.99]])
    assert expected_radius_upper_bound(straight(), x, np.array([0]), alphas, p=2.0) > 0


def test_a_domain_far_larger_than_the_margin_does_not_count_as_the_radius():
    # Constant 1e-100 where the mask keeps its weight, which is every other time: E gamma = R / 2.
    net = ReLUNetwork((np.zeros((1, 1)), np.array([[1.0], [0.0]])), (np.array([1e-100]), np.zeros(2)))
    x, y, alphas = np.ones((1, 1)), np.array([0]), np.array([[0.0, 0.5]])
    assert expected_radius_lower_bound(net, x, y, alphas, p=2.0, domain_radius=1e250) <= 5e249
    margins = np.tile([[1e-100], [0.0]], (1, 5000, 1))
    found = expected_radius_confidence(net, x, y, alphas, margins, p=2.0, domain_radius=1e250)
    assert found <= 5e249


def test_lower_bounds_near_the_largest_float_are_floats():
    constant = ReLUNetwork((np.zeros((1, 1)), np.array([[1.0], [0.0]])), (np.ones(1), np.zeros(2)))
    x, y = np.ones((2, 1)), np.array([0, 0])
    curve = radius_curve(constant, x, y, np.zeros(1), p=2.0, domain_radius=1e308)
    assert 0.9e308 < curve.lower[0] <= 1e308 <= curve.upper[0] < math.inf
    # Margin 1 over a gradient of 1e-310: the radius is beyond the floats, not infinite.
    steep = ReLUNetwork((np.array([[1e-310], [0.0]]),), (np.array([1.0, 0.0]),))
    found = expected_radius_lower_bound(steep, np.zeros((1, 1)), np.array([0]), np.zeros((1, 1)), p=2.0)
    assert 0 < found < math.inf


@pytest.mark.parametrize(
    ("net", "x", "label", "alpha", "mean", "square"),
    [
        (net_of([[5e-324], [0.0]]), [1e150], 0, 0.4, 5e-324 * 1e150 * 0.6, 0.0),
        (net_of([[1e300], [0.0]]), [5e-324], 1, 0.0, -5e-324 * 1e300, 0.0),
        (
            net_of([[5e299, 1e300], [-1e300, 2e300], [1e300, 0.0]]),
            [5e-324, 5e-324],
            0,
            0.0,
            5e-324 * 5e299,
            (5e-324 * 5e299) ** 2,
        ),
    ],
)
def test_margin_moments_hold_where_a_factor_is_subnormal(net, x, label, alpha, mean, square):
    found, second = margin_moment_bounds(net, np.array([x]), np.array([label]), np.array([[alpha]]))
    assert found <= mean
    assert second >= square
