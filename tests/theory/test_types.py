"""Illegal calls: each raises InvalidInput, and its message names the argument at fault."""

import math

import jaxtyping
import numpy as np
import pytest

from theory import linear, relu
from theory.ceiling import mean_radius_ceiling, robust_accuracy_ceiling, universal_ceiling
from theory.laws.strategies import EXTREME
from theory.linear import ClassStatistics, GaussianClasses, class_statistics
from theory.norms import dual, norm
from theory.types import (
    BinaryLinear,
    InvalidInput,
    LinearClassifier,
    ReLUNetwork,
    check_inputs,
    check_labels,
    check_p,
    check_sparsity,
)

CLF = BinaryLinear(np.array([1.0, 2.0]))
ZERO = BinaryLinear(np.zeros(2))
THREE = LinearClassifier(np.eye(3)[:, :2], np.zeros(3))
X, Y = np.array([[1.0, 1.0], [-1.0, 0.0]]), np.array([1, 0])
HALF = np.array([0.5, 0.5])
STATS = class_statistics(CLF, X, Y)
GAUSSIAN = GaussianClasses(X, np.eye(2), HALF)
NET = ReLUNetwork(
    (np.array([[1.0, 2.0], [-1.0, 0.5]]), np.array([[0.0, 1.0], [1.0, 0.5]])), (np.zeros(2),) * 2
)
STATS3 = ClassStatistics(np.full(3, 1 / 3), np.ones(3), np.eye(3)[:, :2])

ILLEGAL = {
    "p is 1.0": lambda: check_p(1.0),
    "p is nan": lambda: linear.radius(CLF, X, Y, p=math.nan),
    "p is 3.0": lambda: universal_ceiling(X, Y, p=3.0),
    "p is 0.0": lambda: linear.hoelder_ceiling(STATS, p=0.0),
    "p is -1.0": lambda: linear.weight_free_bound(STATS, p=-1.0),
    "alpha is 1.5": lambda: check_sparsity("alpha", 1.5),
    "alpha is nan": lambda: check_sparsity("alpha", math.nan),
    "alpha is '0.5'": lambda: check_sparsity("alpha", "0.5"),  # pyright: ignore[reportArgumentType]
    "y has shape (2,); expected (3,)": lambda: check_labels("y", [0, 1], n=3, classes=2),
    "y has dtype float64": lambda: check_labels("y", [0.0, 1.0], n=2, classes=2),
    "y[1] is 2": lambda: linear.radius(CLF, X, np.array([0, 2]), p=2.0),
    "y[0] is -1": lambda: linear.radius(CLF, X, np.array([-1, 1]), p=2.0),
    "y holds only the label 1": lambda: class_statistics(CLF, X, np.array([1, 1])),
    "y holds only the label 0": lambda: universal_ceiling(X, np.array([0, 0]), p=2.0),
    "x[1, 0] is nan": lambda: linear.radius(CLF, np.array([[1.0, 1.0], [math.nan, 0.0]]), Y, p=2.0),
    "x[0, 0] is inf": lambda: universal_ceiling(np.array([[math.inf], [0.0]]), Y, p=2.0),
    "x has shape (2, 2); the classifier takes 3": lambda: check_inputs(X, width=3),
    "x has shape (0, 2)": lambda: linear.mean_radius(CLF, X[:0], Y[:0], p=2.0),
    "x has shape (2,)": lambda: check_inputs([1.0, 2.0], width=2),
    "x is not a numeric array": lambda: check_inputs([["a"]], width=1),
    "weight is 0 in every entry": lambda: linear.radius(ZERO, X, Y, p=2.0),
    "weight is 0 in": lambda: linear.binary_mean_radius(ZERO, STATS, p=2.0),
    "weight has 1 row": lambda: LinearClassifier(np.ones((1, 2)), np.zeros(1)),
    "bias has shape (3,)": lambda: LinearClassifier(np.ones((2, 2)), np.zeros(3)),
    "weight[1] is nan": lambda: BinaryLinear(np.array([1.0, math.nan])),
    "bias[] is inf": lambda: BinaryLinear(np.array([1.0]), math.inf),
    "weights is empty": lambda: ReLUNetwork((), ()),
    "biases has 1 entries": lambda: ReLUNetwork((np.ones((2, 2)),) * 2, (np.zeros(2),)),
    "weights[1] takes 3": lambda: ReLUNetwork((np.ones((2, 2)), np.ones((2, 3))), (np.zeros(2),) * 2),
    "biases[0] has shape (3,)": lambda: ReLUNetwork((np.ones((2, 2)),), (np.zeros(3),)),
    "weights[-1] has one row": lambda: ReLUNetwork((np.ones((1, 2)),), (np.zeros(1),)),
    "eps is -1": lambda: linear.robust_accuracy(CLF, X, Y, p=2, eps=-1.0),
    "eps is '0.1'": lambda: linear.markov_bound(CLF, STATS, eps="0.1"),  # pyright: ignore[reportArgumentType]
    "eps is nan": lambda: linear.markov_bound(CLF, STATS, eps=math.nan),
    "eps is inf": lambda: linear.fgs_accuracy(CLF, X, Y, eps=math.inf),
    "cap is -2": lambda: linear.mean_radius(CLF, X, Y, p=2, cap=-2.0),
    "r2 holds a negative": lambda: linear.norm_interpolation(CLF, -1.0),
    "r2 holds": lambda: linear.norm_interpolation(CLF, np.array([1.0, math.nan])),
    "prior has 1 entry": lambda: ClassStatistics(np.ones(1), np.ones(1), np.ones((1, 2))),
    "prior sums to 0.9": lambda: ClassStatistics(np.array([0.4, 0.5]), HALF, X),
    "prior is [-0.5": lambda: ClassStatistics(np.array([-0.5, 1.5]), HALF, X),
    "accuracy is [0.5 1.5]": lambda: ClassStatistics(HALF, np.array([0.5, 1.5]), X),
    "accuracy has shape (3,)": lambda: ClassStatistics(HALF, np.ones(3), X),
    "mean[0, 1] is nan": lambda: ClassStatistics(HALF, HALF, np.array([[0.0, math.nan], [0.0, 0.0]])),
    "stats has 3 classes": lambda: linear.hoelder_ceiling(STATS3, p=2.0),
    "stats has 3": lambda: linear.binary_mean_radius(CLF, STATS3, p=2.0),
    "stats has means of shape (2, 2)": lambda: linear.jensen_bound(THREE, STATS, p=2.0),
    "stats has means": lambda: linear.paper_multiclass_bound(THREE, STATS, p=2.0),
    "support has shape (3,)": lambda: linear.support_ceiling(STATS, np.ones(3, dtype=bool), p=2.0),
    "0 true entries": lambda: linear.support_ceiling(STATS, np.zeros(2, dtype=bool), p=2.0),
    "dtype int64 and 1 true": lambda: linear.support_ceiling(STATS, np.array([0, 1]), p=2.0),
    "nonzeros is 1.5": lambda: linear.sparse_ceiling(STATS, 1.5, p=2.0),  # pyright: ignore[reportArgumentType]
    "nonzeros is 0": lambda: linear.sparse_ceiling(STATS, 0, p=2.0),
    "nonzeros is 3": lambda: linear.sparse_ceiling(STATS, 3, p=2.0),
    "mean has shape (3, 2), covariance": lambda: GaussianClasses(STATS3.mean, np.eye(2), HALF),
    "prior is [0.5 0.6]": lambda: GaussianClasses(X, np.eye(2), np.array([0.5, 0.6])),
    "covariance has smallest eigenvalue -1": lambda: GaussianClasses(X, np.diag([1.0, -1.0]), HALF),
    "covariance has": lambda: GaussianClasses(X, np.array([[1.0, 0.5], [0.0, 1.0]]), HALF),
    "data has 2 features; the classifier takes 3": lambda: linear.gaussian_mean_radius(
        BinaryLinear(np.ones(3)), GAUSSIAN, p=2.0
    ),
    "weight is 0 in every": lambda: linear.gaussian_robust_accuracy(ZERO, GAUSSIAN, p=2.0, eps=0.0),
    "alphas[1] is 1": lambda: linear.gaussian_pruning_limit(np.array([0.0, 1.0]), p=2.0),
    "alphas[0] is -0.1": lambda: linear.laplace_pruning_limit(np.array([-0.1]), p=2.0),
    "alphas[1] is 1.5": lambda: linear.masked_mean_radius(HALF, HALF, np.array([0.0, 1.5]), p=2.0),
    "alphas[0] is nan": lambda: linear.masked_mean_radius(HALF, HALF, np.array([math.nan]), p=2.0),
    "gain has shape (3,)": lambda: linear.masked_mean_radius(HALF, np.ones(3), HALF, p=2.0),
    "weight is 0": lambda: linear.masked_mean_radius(np.zeros(2), HALF, HALF, p=2.0),
    "weight[0] is nan": lambda: linear.masked_mean_radius(np.array([math.nan]), np.ones(1), HALF, p=2.0),
    "of booleans and not of int64": lambda: mean_radius_ceiling(X, Y, np.array([0, 1]), p=2.0),
    "correct has shape (1,)": lambda: mean_radius_ceiling(X, Y, np.ones(1, dtype=bool), p=2.0),
}


@pytest.fixture
def _as_installed():
    """No run-time checks of annotations, which would stop some illegal calls before the package sees them."""
    jaxtyping.config.update("jaxtyping_disable", value=True)
    yield
    jaxtyping.config.update("jaxtyping_disable", value=False)


@pytest.mark.usefixtures("_as_installed")
@pytest.mark.parametrize("message", ILLEGAL)
def test_illegal_call_names_the_argument(message):
    with pytest.raises(InvalidInput) as error:
        ILLEGAL[message]()
    assert message in str(error.value)


def test_arrays_are_copied_and_read_only():
    weight = np.array([1.0, 2.0])
    clf = BinaryLinear(weight)
    weight[0] = 9.0
    assert clf.weight[0] == 1.0
    with pytest.raises(ValueError, match="read-only"):
        clf.weight[0] = 3.0


@pytest.mark.parametrize(("p", "expected"), [(1.0, 7.0), (2.0, 5.0), (math.inf, 4.0)])
def test_norms_at_every_scale(p, expected):
    for scale in EXTREME:
        assert norm(np.array([[3.0, -4.0]]) * scale, p=p)[0] == pytest.approx(expected * scale, rel=1e-15)


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
def test_what_overflows_has_an_infinite_norm(p):
    assert norm(np.array([[1.0, math.inf], [-math.inf, 0.0]]), p=p).tolist() == [math.inf, math.inf]


@pytest.mark.usefixtures("_as_installed")
@pytest.mark.parametrize(
    "call",
    [
        lambda x, y: class_statistics(CLF, x, y).mean,
        lambda x, y: linear.radius(CLF, x, y, p=2.0),
        lambda x, y: linear.fgs_accuracy(CLF, x, y, eps=0.1),
        lambda x, y: linear.runner_up_decomposition(CLF, x, y, p=2.0).mean,
        lambda x, y: mean_radius_ceiling(x, y, [True, True], p=2.0),  # pyright: ignore[reportArgumentType]
        lambda x, y: robust_accuracy_ceiling(x, y, [True, True], [0.1, 9.0], p=2.0),  # pyright: ignore[reportArgumentType]
        lambda x, y: relu.crown_certified_radius(NET, x, y, p=2.0),
        lambda x, y: relu.local_certified_radius(NET, x, y, p=2.0),
        lambda x, y: relu.margin_bounds(NET, x, y, p=2.0, radius=[0.1, 0.2]),  # pyright: ignore[reportArgumentType]
    ],
)
def test_lists_are_read_as_arrays(call):
    np.testing.assert_array_equal(call(X.tolist(), Y.tolist()), call(X, Y))


def test_dual_exponents():
    assert (dual(2.0), dual(math.inf)) == (2.0, 1.0)


def test_relu_network_with_one_layer_scores_like_a_linear_classifier():
    weight, bias = np.array([[1.0, -2.0], [0.5, 3.0]]), np.array([0.25, -1.0])
    net = ReLUNetwork((weight,), (bias,))
    assert net.classes == 2
    np.testing.assert_array_equal(net.scores(X), LinearClassifier(weight, bias).scores(X))
    hidden = ReLUNetwork((weight, np.eye(2)), (bias, np.zeros(2)))
    np.testing.assert_array_equal(hidden.scores(X), np.maximum(net.scores(X), 0))


NAMES = np.array(["cat", "dog", "cat"])
REMEDIES = {
    ".ravel()": (np.array([[0], [1], [0]]), lambda y: y.ravel()),
    ".argmax(1)": (np.eye(2)[[0, 1, 0]], lambda y: y.argmax(1)),
    ".astype(int)": (np.array([0.0, 1.0, 0.0]), lambda y: y.astype(int)),
}


@pytest.mark.parametrize("remedy", REMEDIES)
def test_labels_of_another_form_are_told_what_makes_them_labels(remedy):
    given, mend = REMEDIES[remedy]
    with pytest.raises(InvalidInput) as caught:
        check_labels("y_test", given, n=3, classes=2)
    assert str(caught.value).endswith(f": y_test{remedy}")
    assert check_labels("y_test", mend(given), n=3, classes=2).tolist() == [0, 1, 0]


def test_names_are_numbered():
    with pytest.raises(InvalidInput, match=r"<U3; .*: np.unique\(y_test, return_inverse=True\)\[1\]$"):
        check_labels("y_test", NAMES, n=3, classes=2)
    numbered = np.unique(NAMES, return_inverse=True)[1]
    assert check_labels("y_test", numbered, n=3, classes=2).tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    "other",
    [np.array([0.5, 1, 0]), np.array([0, np.nan, 1]), np.array([0, np.inf, 1]), np.full((3, 2), 0.5),
     np.array([0, 1]), np.array([None, 1, 0])],
)  # fmt: skip
def test_no_remedy_is_told_where_none_is_known(other):
    with pytest.raises(InvalidInput, match=r"(one label per example|labels must be integers in \[0, 2\))$"):
        check_labels("y_test", other, n=3, classes=2)
