"""Binary and multi-class radii, their averages, and the bounds on binary classifiers."""

import math

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from theory.laws import linear as laws
from theory.laws.catalog.linear import hoelder_ladder
from theory.laws.strategies import EXTREME, attack_norms, linear_problems
from theory.linear import (
    ClassStatistics,
    binary_mean_radius,
    boundary_distances,
    class_statistics,
    fgs_accuracy,
    hoelder_ceiling,
    jensen_bound,
    margins,
    markov_bound,
    mean_radius,
    norm_interpolation,
    paper_multiclass_bound,
    radius,
    robust_accuracy,
    sparse_ceiling,
    support_ceiling,
    weight_free_bound,
)
from theory.norms import dual, norm
from theory.types import BinaryLinear, LinearClassifier

# Not uniform, not symmetric, unbalanced: a wrong norm, factor or class shows.
CLF = BinaryLinear(np.array([3.0, -1.0, 0.5]), 0.25)
X = np.array([[2, 1, 0], [1, -1, 3], [1, 0, 0], [-1, 0.5, 0.5], [0.5, 1, -4], [3, 0, 1.0]])
Y = np.array([1, 1, 1, 0, 0, 0])  # the last one is misclassified
NORMS = pytest.mark.parametrize("p", [2.0, math.inf])


def equal_rows(bias):
    weight = np.array([[1.0, 2.0], [1.0, 2.0], [-1.0, 0.5]])
    return LinearClassifier(weight, np.array(bias)), np.array([[2.0, 1.0], [0.0, 0.0]]), np.array([0, 1])


@given(linear_problems(), attack_norms())
@example(equal_rows([0.5, 0.0, 0.0]), 2.0)
@example(equal_rows([0.0, 0.0, 0.0]), math.inf)
def test_no_point_inside_the_ball_changes_the_decision(problem, p):
    laws.ball_is_safe(radius, *problem, p=p)


@given(linear_problems(), attack_norms())
def test_a_step_just_beyond_the_radius_changes_the_decision(problem, p):
    laws.boundary_is_reached(radius, *problem, p=p)


@given(linear_problems(), attack_norms())
def test_radius_agrees_with_rational_arithmetic(problem, p):
    laws.radius_is_exact(radius, *problem, p=p)


@given(linear_problems(), attack_norms(), st.sampled_from([2.0**-300, 0.5, 2.0**300]))
def test_radius_ignores_the_scale_of_the_weights(problem, p, factor):
    laws.radius_ignores_scale(radius, *problem, p=p, factor=factor)


@given(linear_problems(scales=EXTREME), attack_norms())
def test_radius_is_a_number_at_every_scale(problem, p):
    found = radius(*problem, p=p)
    assert (found >= 0).all()


@given(
    problem=linear_problems(),
    p=attack_norms(),
    steep=st.sampled_from([-900, -600, 0, 600, 900]),
    far=st.sampled_from([-900, -600, 0, 600, 900]),
)
def test_units_of_weights_and_inputs_change_nothing_else(problem, p, steep, far):
    # Their products leave the floats, the distances do not.
    clf, x, y = problem
    assume(min(_spread(a) for a in (clf.weight, clf.bias, x)) > 2.0**-60)
    with np.errstate(over="ignore"):
        binary, bias = isinstance(clf, BinaryLinear), np.ldexp(clf.bias, steep + far)
    assume(np.isfinite(bias).all() and np.array_equal(np.ldexp(bias, -steep - far), clf.bias))
    weight = np.ldexp(clf.weight, steep)
    other = BinaryLinear(weight, float(bias)) if binary else LinearClassifier(weight, bias)
    moved = np.ldexp(x, far)
    np.testing.assert_array_equal(radius(other, moved, y, p=p), np.ldexp(radius(clf, x, y, p=p), far))
    if len(np.unique(y)) < 2:
        return
    here, there = class_statistics(clf, x, y), class_statistics(other, moved, y)
    np.testing.assert_array_equal(there.accuracy, here.accuracy)
    for bound in (jensen_bound, paper_multiclass_bound):
        assert bound(other, there, p=p) == pytest.approx(np.ldexp(bound(clf, here, p=p), far), rel=1e-12)
    scaled = np.ldexp(weight_free_bound(here, p=p), far)
    assert weight_free_bound(there, p=p) == pytest.approx(scaled, rel=1e-12)


def _spread(values: np.ndarray | float) -> float:
    """Smallest over largest size of what is not 0."""
    sizes = np.abs(np.atleast_1d(values))
    return float(sizes[sizes > 0].min(initial=math.inf) / sizes.max()) if sizes.any() else 1.0


@pytest.mark.parametrize("p", [2.0, math.inf])
def test_the_largest_floats_give_numbers_or_infinity(p):
    big = 1.7e308
    clf = LinearClassifier(np.array([[1.0, 1.0], [-1.0, 1.0], [0.0, -1.0]]) * big, np.array([big, -big, 0.0]))
    x, y = np.array([[1.0, 1.0], [-1.0, 1.0], [0.5, -1.0]]) * big, np.arange(3)
    small = LinearClassifier(clf.weight / big, np.zeros(3))  # beside such inputs the biases are nothing
    np.testing.assert_allclose(radius(clf, x, y, p=p), radius(small, x / big, y, p=p) * big, rtol=1e-12)
    stats = class_statistics(clf, x, y)
    for bound in (jensen_bound, paper_multiclass_bound):
        assert bound(clf, stats, p=p) >= (radius(clf, x, y, p=p) / 3).sum() * (1 - 1e-12)
    assert fgs_accuracy(clf, x, y, eps=0.1) == 1.0
    line, x, y = BinaryLinear(np.array([1.0])), np.array([[1.0], [1.0], [-1.0], [-1.0]]) * big, [1, 1, 0, 0]
    assert mean_radius(line, x, np.array(y), p=p) == big
    assert class_statistics(line, x, np.array(y)).mean.tolist() == [[-big], [big]]
    two = ClassStatistics(np.full(2, 0.5), np.ones(2), np.array([[1.0, 1.0], [-1.0, -1.0]]) * big)
    assert hoelder_ceiling(two, p=p) == sparse_ceiling(two, 1, p=p) == math.inf


@NORMS
def test_terms_of_very_different_sizes_are_all_seen(p):
    """The largest weight meets a zero, the largest input too: what is left is 400 decades below both."""
    x, y = np.array([[0.0, 1.0, 1e200]]), np.array([0])
    clf = LinearClassifier(np.array([[1.0, 1e-200, 0.0], [0.0, 0.0, 0.0]]), np.zeros(2))
    np.testing.assert_array_equal(radius(clf, x, y, p=p), [1e-200])
    assert robust_accuracy(clf, x, y, p=p, eps=0) == 1.0
    huge = LinearClassifier(np.array([[1e308, 1e-320], [0.0, 0.0]]), np.zeros(2))
    assert margins(huge, np.array([[0.0, 1e300]]), y)[0, 1] == pytest.approx(
        1e-20, rel=1e-3
    )  # 1e-320 has 3 digits
    opposite = LinearClassifier(np.array([[1.0, 1e-200], [1.0, -1e-200]]), np.zeros(2))
    x, y = np.array([[1.0, 1e-200], [1.0, -1e-200]]), np.arange(2)
    stats = class_statistics(opposite, x, y)
    for bound in (jensen_bound, paper_multiclass_bound):
        assert bound(opposite, stats, p=p) == pytest.approx(1e-200, rel=1e-14)


def test_rows_that_nearly_overflow_keep_their_small_differences():
    close = LinearClassifier(np.array([[1.7e308, 1e-323], [1.7e308, 5e-324]]), np.zeros(2))
    np.testing.assert_array_equal(radius(close, np.array([[0.0, 1e10]]), np.array([0]), p=math.inf), [1e10])
    steep = LinearClassifier(np.array([[1e308, 0.0], [1e308, 1e-20]]), np.array([0.0, -1e-21]))
    x, y = np.zeros((1, 2)), np.array([0])
    assert robust_accuracy(steep, x, y, p=math.inf, eps=1.0) == fgs_accuracy(steep, x, y, eps=1.0) == 0.0


@given(linear_problems(), attack_norms())
def test_mean_radius_integrates_robust_accuracy(problem, p):
    laws.integrates_to(robust_accuracy, mean_radius, *problem, p=p, cap=50.0)


@given(linear_problems(), attack_norms())
def test_robust_accuracy_starts_at_the_accuracy(problem, p):
    laws.starts_at_the_accuracy(robust_accuracy, *problem, p=p)


@given(linear_problems("binary"), attack_norms())
def test_a_binary_classifier_equals_its_two_row_form(problem, p):
    laws.equals_two_rows(radius, *problem, p=p)


def test_equal_rows_are_never_confused_or_always_tied():
    clf, x, y = equal_rows([0.5, 0.0, -99.0])
    alone = LinearClassifier(clf.weight[:2], clf.bias[:2])
    np.testing.assert_array_equal(radius(alone, x, y, p=2.0), [math.inf, 0.0])
    np.testing.assert_array_equal(radius(alone, x, 1 - y, p=2.0), [0.0, math.inf])
    assert np.isfinite(radius(clf, x, y, p=2.0)).all()
    assert mean_radius(alone, x, y, p=2.0, cap=3.0) == 1.5
    assert mean_radius(alone, x, y, p=2.0) == math.inf
    tied, x, y = equal_rows([0.0, 0.0, 0.0])
    np.testing.assert_array_equal(radius(tied, x, y, p=math.inf), [0.0, 0.0])
    assert boundary_distances(tied, x, y, p=2.0)[0, 1] == -math.inf


@given(linear_problems("binary"), st.floats(0, 3))
@example((BinaryLinear(np.array([1.0, 0.0])), np.array([[1.0, 9.0], [-2.0, 9.0]]), np.array([1, 0])), 1.5)
def test_binary_fgs_accuracy_is_robust_accuracy(problem, eps):
    laws.equals_robust_accuracy(fgs_accuracy, *problem, eps=eps)


@given(linear_problems("binary"), attack_norms())
def test_binary_mean_radius_is_the_average_radius(problem, p):
    laws.matches_sample(binary_mean_radius, *problem, p=p)


@given(linear_problems("binary"), attack_norms(), st.floats(0, 3))
def test_markov_limits_robust_accuracy(problem, p, eps):
    laws.limits_robust_accuracy(markov_bound, robust_accuracy, *problem, p=p, eps=eps)


@given(linear_problems("binary"), st.floats(1e-3, 3))
def test_markov_is_never_above_the_theorem_of_the_paper(problem, eps):
    laws.sharpens_markov(markov_bound, *problem, eps=eps)


def test_markov_is_attained_by_radii_of_zero_or_a_little_more_than_eps():
    clf, eps = BinaryLinear(np.array([2.0])), 0.5
    x, y = np.array([[eps + 1e-9], [1e-9], [-eps - 1e-9], [-1e-9]]), np.array([1, 1, 0, 0])
    stats = class_statistics(clf, x, y)
    attained = robust_accuracy(clf, x, y, p=math.inf, eps=eps)
    assert markov_bound(clf, stats, eps=eps) == pytest.approx(attained, rel=1e-8)


@given(linear_problems("binary"), attack_norms())
@example((BinaryLinear(np.array([1.0]), -1.0), np.array([[3.0], [1.0], [1.0]]), np.array([1, 0, 1])), 2.0)
def test_hoelder_ceiling_limits_every_bias(problem, p):
    laws.limits_statistics(hoelder_ceiling, *problem, p=p)


# Features 2 and 4 are equally far apart: the two supports add the same squares up in another order.
TIED_FEATURES = (
    BinaryLinear(np.array([1.0, 1.0, 1.0, 1.0, 0.0, 1.0])),
    np.array([[-1.25, 1.0, -1.0, -1.25, 0.25, -1.0], [2.0, -2.8, 0.75, 1.0, -1.5, 2.0]]),
    np.array([0, 1]),
)


@given(linear_problems("binary"), attack_norms())
@example(TIED_FEATURES, 2.0)
def test_support_and_sparse_ceilings_limit_their_classifiers(problem, p):
    clf, x, y = problem
    support, count = clf.weight != 0, int(np.count_nonzero(clf.weight))
    laws.limits_statistics(lambda s, *, p: support_ceiling(s, support, p=p), clf, x, y, p=p)
    laws.limits_statistics(lambda s, *, p: sparse_ceiling(s, count, p=p), clf, x, y, p=p)
    laws.rises(hoelder_ladder, clf, x, y, p=p)


def witness(p, *, low=(1.0, -2.0, 0.5), high=(4.0, -1.0, 1.0), ones=3, zeros=1):
    """Two point masses, and the classifier whose mean radius approaches their Hölder ceiling.

    The boundary passes next to the rarer class.
    """
    low, high = np.array(low), np.array(high)
    weight = high - low
    if p == math.inf:
        weight = np.where(np.abs(weight) == np.abs(weight).max(), np.sign(weight), 0.0)
    on, off = weight @ (low if zeros <= ones else high), weight @ (high - low) * laws.NUDGE
    bias = float(-on - off if zeros <= ones else -on + off)
    x = np.concatenate([np.tile(low, (zeros, 1)), np.tile(high, (ones, 1))])
    return BinaryLinear(weight, bias), x, np.repeat([0, 1], [zeros, ones])


@NORMS
@pytest.mark.parametrize(("ones", "zeros"), [(1, 1), (3, 1), (2, 5)])
def test_hoelder_ceiling_is_approached_by_the_named_classifier(p, ones, zeros):
    laws.is_approached(hoelder_ceiling, *witness(p, ones=ones, zeros=zeros), p=p)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_one_weight_suffices_against_linf_and_more_help_against_l2(count):
    stats = class_statistics(*witness(2.0))
    best = sparse_ceiling(stats, count, p=math.inf)
    assert best == hoelder_ceiling(stats, p=math.inf)
    top = np.sort(np.abs(stats.mean[1] - stats.mean[0]))[::-1][:count]
    expected = 0.75 * math.sqrt(float(top @ top))
    assert sparse_ceiling(stats, count, p=2.0) == pytest.approx(expected, rel=laws.ROUNDING)


def test_without_correct_inputs_in_one_class_no_ceiling_holds():
    mean = np.array([[0.0, 0.0], [1.0, 2.0]])
    one = ClassStatistics(np.array([0.5, 0.5]), np.array([0.0, 0.5]), mean)
    none = ClassStatistics(np.array([0.5, 0.5]), np.array([0.0, 0.0]), mean)
    assert hoelder_ceiling(one, p=2.0) == math.inf
    assert hoelder_ceiling(none, p=2.0) == 0.0
    far = BinaryLinear(np.array([1.0, 0.0]), 1e9)
    assert mean_radius(far, mean, np.array([0, 1]), p=2.0) > 1e8


@given(linear_problems())
@example((BinaryLinear(np.array([2.0, 2.0])), np.array([[1.0, 1.0], [-1.0, 0.0]]), np.array([1, 0])))
def test_linf_radius_lies_between_scaled_and_plain_l2_radius(problem):
    laws.interpolates(norm_interpolation, *problem)


def test_norm_interpolation_is_attained_at_both_ends():
    x, y = np.array([[1.0, 3.0], [-1.0, 0.0]]), np.array([1, 0])
    for weight, end in (([2.0, -2.0], 0), ([0.0, 3.0], 1)):
        clf = BinaryLinear(np.array(weight))
        bounds = norm_interpolation(clf, mean_radius(clf, x, y, p=2.0))
        assert bounds[end] == pytest.approx(mean_radius(clf, x, y, p=math.inf), rel=laws.ROUNDING)


def wrong_dual(clf, x, y, *, p):
    return radius(clf, x, y, p=math.inf if p == 2 else 2.0)


def forgets_mistakes(clf, x, y, *, p):
    return np.abs(boundary_distances(clf, x, y, p=p)).min(axis=1)


def swapped_means(clf, stats, *, p):
    return binary_mean_radius(clf, ClassStatistics(stats.prior, stats.accuracy, stats.mean[::-1]), p=p)


def without_accuracy(clf, stats, *, p):
    return binary_mean_radius(clf, ClassStatistics(stats.prior, np.ones(2), stats.mean), p=p)


def balanced(clf, stats, *, p):
    mean = float(stats.mass.mean())
    return mean * float(clf.weight @ (stats.mean[1] - stats.mean[0]) / norm(clf.weight[None], p=dual(p))[0])


def smaller_mass(stats, *, p):
    return float(stats.mass.min()) * float(norm(np.diff(stats.mean, axis=0), p=p)[0])


def dual_norm(stats, *, p):
    return float(stats.mass.max()) * float(norm(np.diff(stats.mean, axis=0), p=1.0)[0])


@NORMS
@pytest.mark.parametrize("broken", [wrong_dual, forgets_mistakes, lambda *a, p: 2 * radius(*a, p=p)])
def test_ball_law_or_boundary_law_rejects_a_wrong_radius(broken, p):
    def both(candidate):
        laws.ball_is_safe(candidate, CLF, X, Y, p=p)
        laws.boundary_is_reached(candidate, CLF, X, Y, p=p)

    both(radius)
    with pytest.raises(AssertionError):
        both(broken)
    with pytest.raises(AssertionError):
        laws.radius_is_exact(broken, CLF, X, Y, p=p)


@NORMS
@pytest.mark.parametrize("broken", [swapped_means, without_accuracy, balanced])
def test_mean_law_rejects_a_wrong_identity(broken, p):
    with pytest.raises(AssertionError):
        laws.matches_sample(broken, CLF, X, Y, p=p)


@pytest.mark.parametrize("broken", [smaller_mass, dual_norm, lambda s, *, p: 2 * hoelder_ceiling(s, p=p)])
def test_hoelder_laws_reject_a_wrong_ceiling(broken):
    def both(candidate):
        for p in (2.0, math.inf):
            laws.limits_statistics(candidate, *witness(p), p=p)
            laws.is_approached(candidate, *witness(p), p=p)

    both(hoelder_ceiling)
    with pytest.raises(AssertionError):
        both(broken)


def test_markov_law_rejects_a_missing_factor():
    def halved(clf, stats, *, p, eps):
        return markov_bound(clf, stats, p=p, eps=eps) / 2

    with pytest.raises(AssertionError):
        laws.limits_robust_accuracy(halved, robust_accuracy, CLF, X, Y, p=math.inf, eps=0.1)


def test_integral_law_rejects_a_strict_cap_and_a_wrong_norm():
    def other_norm(*args, p, cap):
        return mean_radius(*args, p=2.0, cap=cap)

    with pytest.raises(AssertionError):
        laws.integrates_to(robust_accuracy, other_norm, CLF, X, Y, p=math.inf, cap=5.0)


def test_interpolation_law_rejects_a_count_that_is_too_small():
    def one_fewer(clf, r2):
        low, high = norm_interpolation(clf, r2)
        return low * math.sqrt(3) / math.sqrt(2), high

    clf = BinaryLinear(np.array([1.0, -1.0, 1.0]))
    with pytest.raises(AssertionError):
        laws.interpolates(one_fewer, clf, X, Y)
