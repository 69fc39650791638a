"""The runner-up decomposition and the multi-class bounds, with the counterexamples that limit them."""

import math
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.special import logsumexp

from theory.laws import linear as laws
from theory.laws.strategies import attack_norms, class_statistics_of_many, linear_problems
from theory.linear import (
    ClassStatistics,
    binary_mean_radius,
    boundary_distances,
    class_statistics,
    fgs_accuracy,
    hoelder_ceiling,
    jensen_bound,
    mean_radius,
    multiclass,
    paper_multiclass_bound,
    radius,
    robust_accuracy,
    runner_up_decomposition,
    weight_free_bound,
)
from theory.norms import dual, norm
from theory.types import BinaryLinear, InvalidInput, LinearClassifier

CLF = LinearClassifier(np.array([[2.0, 0.0], [-1.0, 1.0], [0.0, -3.0]]), np.array([0.0, 0.5, -0.25]))
X = np.array([[3, 1], [1, -0.5], [2, 2], [-1, 1], [-2, 3], [0, -1], [0.5, -2], [1, 4.0]])
Y = np.array([0, 0, 0, 1, 1, 2, 2, 2])  # the last one is misclassified
# Each class has one closest rival for both norms; the last point is misclassified.
ONE_RUNNER_UP = np.array([[3, 2], [2, 1.5], [-2, 1], [-2, 1.5], [-3, 0.0]]), np.array([0, 0, 1, 1, 0])
NORMS = pytest.mark.parametrize("p", [2.0, math.inf])


def all_rows_equal():
    clf = LinearClassifier(np.full((3, 1), 0.1), np.array([0.0, 1.0, 0.0]))
    return clf, np.array([[1.0], [1.0]]), np.array([0, 1])


def average_over_pairs(stats, *, p):
    """The weaker form of the weight-free bound: every pair covers its two classes alike."""
    used = np.flatnonzero(stats.mass > 0)
    pairs = [max(stats.mass[[k, j]]) * abs_distance(stats, k, j, p=p) for k, j in combinations(used, 2)]
    return sum(pairs) / (used.size - 1)


def abs_distance(stats, k, j, *, p):
    return float(norm((stats.mean[k] - stats.mean[j])[None], p=p)[0])


@given(linear_problems("multiclass"), attack_norms())
@example(all_rows_equal(), 2.0)
def test_runner_up_contributions_add_up_to_the_mean_radius(problem, p):
    laws.adds_up(runner_up_decomposition, *problem, p=p)


@given(linear_problems("multiclass"), attack_norms())
@example(all_rows_equal(), 2.0)
@pytest.mark.parametrize("bound", [jensen_bound, paper_multiclass_bound])
def test_classifier_bounds_limit_the_mean_radius(bound, problem, p):
    laws.limits_sample(bound, *problem, p=p)


@given(linear_problems("multiclass"), attack_norms())
def test_weight_free_bound_limits_the_mean_radius(problem, p):
    laws.limits_statistics(weight_free_bound, *problem, p=p)


@given(linear_problems("multiclass"), attack_norms())
def test_jensen_is_the_sharpest_of_the_three(problem, p):
    laws.is_sharpest(jensen_bound, *problem, p=p)


@given(linear_problems("two rows"), attack_norms())
def test_for_two_classes_jensen_and_the_paper_form_are_identities(problem, p):
    laws.matches_sample(jensen_bound, *problem, p=p)
    clf, x, y = problem
    if (clf.weight[0] != clf.weight[1]).any():
        laws.matches_sample(paper_multiclass_bound, *problem, p=p)
        binary = BinaryLinear(clf.weight[1] - clf.weight[0], clf.bias[1] - clf.bias[0])
        stats, other = class_statistics(clf, x, y), class_statistics(binary, x, y)
        np.testing.assert_array_equal(stats.mass, other.mass)
        laws.matches_sample(lambda *_, p: binary_mean_radius(binary, stats, p=p), *problem, p=p)


@NORMS
def test_jensen_is_attained_when_each_class_has_one_runner_up(p):
    laws.matches_sample(jensen_bound, CLF, *ONE_RUNNER_UP, p=p)


@given(class_statistics_of_many(), attack_norms())
def test_weight_free_bound_solves_its_linear_program(stats, p):
    laws.solves_mean_program(weight_free_bound, stats, p=p)
    if np.count_nonzero(stats.mass) > 1:
        assert weight_free_bound(stats, p=p) <= average_over_pairs(stats, p=p) * (1 + laws.ROUNDING)
    if stats.prior.size == 2:
        expected = hoelder_ceiling(stats, p=p)
        assert weight_free_bound(stats, p=p) == pytest.approx(expected, rel=laws.ROUNDING, abs=1e-300)


def test_weight_free_bound_can_be_far_below_the_average_over_pairs():
    mean = np.array([[0.0], [1.0], [100.0], [101.0]])
    stats = ClassStatistics(np.full(4, 0.25), np.ones(4), mean)
    assert weight_free_bound(stats, p=2.0) == pytest.approx(0.5)
    assert average_over_pairs(stats, p=2.0) > 30


def test_weight_free_bound_holds_though_the_solver_stops_early(monkeypatch):
    stats = ClassStatistics(np.array([0.2, 0.3, 0.5]), np.ones(3), np.array([[0.0, 0], [1, 2], [4, -3]]))
    exact, solve = weight_free_bound(stats, p=2.0), multiclass.linprog
    for share in (0.999, 0.5, 0.0):

        def early(*args, share=share, **options):
            return SimpleNamespace(x=share * solve(*args, **options).x)

        monkeypatch.setattr(multiclass, "linprog", early)
        assert exact * (1 - laws.ROUNDING) <= weight_free_bound(stats, p=2.0) <= 2 * exact
    monkeypatch.setattr(multiclass, "linprog", lambda *_, **__: SimpleNamespace(x=None))
    assert exact * (1 - laws.ROUNDING) <= weight_free_bound(stats, p=2.0) <= 2 * exact


def test_fgs_accuracy_can_exceed_the_paper_form():
    """Found by search: equal priors, all inputs correct, no bias. Robust accuracy obeys, FGS does not."""
    clf = LinearClassifier(np.array([[-3.0, 1.0], [0.0, 0.3], [-20.0, -30.0]]), np.zeros(3))
    x, y, eps = np.array([[-3.0, 3.0], [3.0, 0.0], [-2.0, 1.0]]), np.arange(3), 2.0
    stats = class_statistics(clf, x, y)
    limit = paper_multiclass_bound(clf, stats, p=math.inf) / eps
    assert (stats.accuracy == 1).all()
    assert robust_accuracy(clf, x, y, p=math.inf, eps=eps) <= limit < 0.44
    assert fgs_accuracy(clf, x, y, eps=eps) == pytest.approx(2 / 3)


def test_the_paper_form_without_biases_can_fail():
    """Found by search: three classes, one point each, all correct, unequal biases and norms."""
    clf = LinearClassifier(np.array([[-0.3, 0.3], [-3.0, 0.0], [0.1, 0.1]]), np.array([2.0, -1.0, 2.0]))
    x, y = np.array([[-1.0, 1.0], [-1.0, -3.0], [0.0, -2.0]]), np.arange(3)
    stats = class_statistics(clf, x, y)
    assert (stats.accuracy == 1).all()
    offset = clf.weight - clf.weight.mean(axis=0)
    without = float(((offset * stats.mean).sum(axis=1) / norm(offset, p=2.0)).mean())
    assert without < 0.42 * mean_radius(clf, x, y, p=2.0)
    laws.limits_sample(paper_multiclass_bound, clf, x, y, p=2.0)


@given(st.integers(3, 6), st.floats(0.5, 3), st.floats(0.01, 4))
def test_fgs_accuracy_obeys_the_paper_form_where_wrong_classes_are_equally_likely(classes, height, eps):
    clf = LinearClassifier(np.eye(classes), np.zeros(classes))
    x = np.concatenate([height * np.eye(classes), 0.1 * height * np.eye(classes)])
    y = np.tile(np.arange(classes), 2)
    limit = paper_multiclass_bound(clf, class_statistics(clf, x, y), p=math.inf) / eps
    assert fgs_accuracy(clf, x, y, eps=eps * (1 + laws.NUDGE)) <= limit


def test_fgs_steps_along_the_numerical_gradient_of_the_loss():
    """Small weights: the wrong classes are of similar probability, so all of them shape the gradient."""
    rng, h, m = np.random.default_rng(4), 1e-6, 1000
    clf = LinearClassifier(0.2 * rng.normal(size=(4, 3)), np.zeros(4))
    x, y = rng.normal(size=(m, 3)), rng.integers(0, 4, size=m)

    def loss(z):
        scores = clf.scores(z)
        return logsumexp(scores, axis=1) - scores[np.arange(m), y]

    gradient = np.stack([loss(x + h * e) - loss(x - h * e) for e in np.eye(3)], axis=1)
    for eps in (0.05, 0.2, 0.5):
        expected = (clf.scores(x + eps * np.sign(gradient)).argmax(axis=1) == y).mean()
        assert fgs_accuracy(clf, x, y, eps=eps) == expected


@given(linear_problems("multiclass"), st.floats(0, 3))
def test_fgs_is_an_attack_like_any_other(problem, eps):
    laws.is_an_attack(fgs_accuracy, *problem, eps=eps)


def farthest_runner_up(clf, stats, *, p):
    distance = boundary_distances(clf, stats.mean, np.arange(3), p=p)
    return float(stats.mass @ np.where(np.isinf(distance), 0.0, distance).max(axis=1))


def wrong_dual(clf, stats, *, p):
    return jensen_bound(clf, stats, p=2.0 if p == math.inf else math.inf)


def without_accuracy(clf, stats, *, p):
    return jensen_bound(clf, ClassStatistics(stats.prior, np.ones(3), stats.mean), p=p)


def without_bias(clf, stats, *, p):
    return jensen_bound(LinearClassifier(clf.weight, np.zeros(3)), stats, p=p)


@NORMS
@pytest.mark.parametrize("broken", [farthest_runner_up, wrong_dual, without_accuracy, without_bias])
def test_jensen_law_rejects_a_wrong_bound(broken, p):
    with pytest.raises(AssertionError):
        laws.matches_sample(broken, CLF, *ONE_RUNNER_UP, p=p)


@NORMS
def test_paper_law_rejects_the_gap_to_the_runner_up_average(p):
    def wrong_average(clf, stats, *, p):
        """wbar over the other classes in the margin, over all classes in the norm, without the biases."""
        offset = clf.weight - clf.weight.mean(axis=0)
        return float(stats.mass @ ((offset * stats.mean).sum(axis=1) / norm(offset, p=dual(p)) / 3))

    laws.limits_sample(paper_multiclass_bound, CLF, X, Y, p=p)
    with pytest.raises(AssertionError):
        laws.limits_sample(wrong_average, CLF, X, Y, p=p)


@NORMS
def test_program_law_rejects_the_average_over_pairs_and_a_missing_half(p):
    stats = ClassStatistics(np.array([0.2, 0.3, 0.5]), np.ones(3), np.array([[0.0, 0], [1, 2], [4, -3]]))
    laws.solves_mean_program(weight_free_bound, stats, p=p)
    for broken in (average_over_pairs, lambda s, *, p: weight_free_bound(s, p=p) / 2):
        with pytest.raises(AssertionError):
            laws.solves_mean_program(broken, stats, p=p)


@NORMS
def test_decomposition_law_rejects_the_wrong_runner_up(p):
    def total(clf, _, *, p):
        return float(runner_up_decomposition(clf, X, Y, p=p).contribution.sum())

    def nearest_score(clf, _, *, p):
        """The class of second highest score instead of the closest boundary."""
        second = np.argsort(clf.scores(X), axis=1)[:, -2]
        distance = boundary_distances(clf, X, Y, p=p)[np.arange(len(Y)), second]
        return float(np.where(radius(clf, X, Y, p=p) > 0, distance, 0.0).mean())

    laws.matches_sample(total, CLF, X, Y, p=p)
    with pytest.raises(AssertionError):
        laws.matches_sample(nearest_score, CLF, X, Y, p=p)


def test_means_of_the_largest_floats_do_not_overflow():
    clf = LinearClassifier(np.array([[1.0], [-1.0]]), np.zeros(2))
    x = np.array([[1e308], [1e308], [-1e308], [-1e308]])
    found = runner_up_decomposition(clf, x, np.array([0, 0, 1, 1]), p=2.0)
    np.testing.assert_allclose(found.contribution, [[0, 5e307], [5e307, 0]], rtol=1e-15)


def test_the_paper_form_holds_for_the_smallest_floats():
    """The average of three subnormal numbers is not one of them."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        clf = LinearClassifier(rng.integers(-4, 5, size=(3, 2)) * 5e-324, np.zeros(3))
        x, y = rng.normal(size=(6, 2)), np.array([0, 1, 2, 0, 1, 2])
        bound = paper_multiclass_bound(clf, class_statistics(clf, x, y), p=2.0)
        assert mean_radius(clf, x, y, p=2.0) <= bound + 1e-12


def test_fgs_steps_where_only_a_tiny_weight_points():
    """The class that counts has 1e-300 in a column whose largest entry is 1e308."""
    clf = LinearClassifier(np.array([[1e308, 0], [1e-300, 0], [0, 0]]), np.array([-1e300, 0, 0]))
    assert fgs_accuracy(clf, np.array([[-1e-9, 0]]), np.array([2]), eps=1.0) == 0.0
    apart = LinearClassifier(np.array([[1.0, 0], [0, 1], [0, 0]]), np.array([1.7e308, -1.7e308, 0]))
    assert fgs_accuracy(apart, np.array([[0.0, 0]]), np.array([2]), eps=1.0) == 0.0
    with pytest.raises(InvalidInput, match="eps is 1e\\+308, which moves an input beyond"):
        fgs_accuracy(apart, np.array([[1.7e308, 0]]), np.array([2]), eps=1e308)


def test_means_that_differ_below_their_range_have_a_distance():
    half = np.array([0.5, 0.5])
    for mean, ceiling in (
        ([[1e160, 0.0], [1e160, 1e-165]], 5e-166),
        ([[1.5e308, 0.0], [-1.5e308, 0.0]], 1.5e308),
        ([[1.5e308, 0.0], [1.5e308, 1e-323]], 5e-324),
    ):
        stats = ClassStatistics(half, np.ones(2), np.array(mean))
        for p in (2.0, math.inf):
            # Half the distance of the means, as the Hölder ceiling has it.
            assert weight_free_bound(stats, p=p) == pytest.approx(ceiling, rel=1e-12, abs=0)
