"""The SymPy derivations hold, and the numeric functions compute what they derive."""

import math

import numpy as np
import pytest
import sympy as sp

from theory import symbolic_relu as symbolic
from theory.relu import trace_moments
from theory.relu.masks import column_sum_bound, expected_path_norm, second_moment_bound
from theory.types import ReLUNetwork

PAIR = (0, 1)
ALPHAS = [0.0, 0.25, 0.5, 0.9, 1.0]
# The numeric minimum over theta is compared with the best of a grid.
GRID_TOLERANCE = 1e-3


def net_of(*weights: object) -> ReLUNetwork:
    """A network without biases."""
    layers = tuple(np.array(w, dtype=float) for w in weights)
    return ReLUNetwork(layers, tuple(np.zeros(len(w)) for w in layers))


@pytest.mark.parametrize(
    "proof",
    [
        symbolic.prove_absolute_difference,
        symbolic.prove_squared_difference,
        symbolic.prove_second_moment_step,
        symbolic.prove_chernoff_factor,
        symbolic.prove_trace_moment,
        symbolic.prove_fluctuation_moment,
    ],
)
def test_expectation_over_masks_equals_the_closed_form(proof):
    expectation, closed = proof()
    difference = expectation - closed
    assert sp.simplify(sp.expand(difference)) in (sp.S.Zero, sp.zeros(2, 2))
    assert sp.simplify(expectation) not in (sp.S.Zero, sp.zeros(2, 2))


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("weights", [(2.0, 3.0), (-1.5, 0.25), (1.0, 1.0), (0.0, -2.0)])
def test_moments_of_a_masked_difference_are_the_numeric_ones(alpha, weights):
    values = list(zip((symbolic.W_I, symbolic.W_K, symbolic.ALPHA), (*weights, alpha), strict=True))
    first = float(symbolic.prove_absolute_difference()[0].subs(values))
    second = float(symbolic.prove_squared_difference()[0].subs(values))
    net = net_of([[weights[0]], [weights[1]]])
    sparsity = np.array([alpha])
    np.testing.assert_allclose(expected_path_norm(net, sparsity, PAIR), first, rtol=1e-13)
    np.testing.assert_allclose(second_moment_bound(net, sparsity, PAIR), math.sqrt(second), rtol=1e-13)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_second_moment_step_is_the_numeric_recursion(alpha):
    hidden, v = np.array([[1.0, 2.0], [3.0, 0.5]]), np.array([2.0, -1.0])
    moment = np.outer(np.abs(v), np.abs(v))
    symbols = [*symbolic.A, *(symbolic.S[i] for i in (0, 1, 3)), symbolic.ALPHA]
    numbers = [*np.abs(hidden).T.ravel(), *moment.ravel()[[0, 1, 3]], alpha]
    after = symbolic.prove_second_moment_step()[1].subs(dict(zip(symbols, numbers, strict=True)))
    net = net_of(hidden, [v, [0.0, 0.0]])
    found = second_moment_bound(net, np.array([alpha, 0.0]), PAIR)
    np.testing.assert_allclose(found, math.sqrt(float(after.trace())), rtol=1e-13)


@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.9])
def test_chernoff_factors_give_the_numeric_column_sum_bound(alpha):
    weights = (1.0, 0.9, 0.8)
    _, factor = symbolic.prove_chernoff_factor()
    log_sum = sp.log(sp.Add(*(factor.subs({symbolic.W_I: w, symbolic.ALPHA: alpha}) for w in weights)))
    value = sp.lambdify(symbolic.THETA, log_sum / symbolic.THETA, "numpy")
    smallest = value(np.geomspace(0.1, 100, 2000)).min()
    net = net_of([[w] for w in weights], [[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    bound = column_sum_bound(net, np.array([alpha, 0.0]), PAIR)
    capped = min(smallest, 1.0, (1 - alpha) * sum(weights))
    np.testing.assert_allclose(bound, capped, rtol=GRID_TOLERANCE)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_trace_and_fluctuation_moments_are_the_numeric_ones(alpha):
    weight = np.array([[1.0, 2.0], [3.0, 0.5]])
    symbols = [*symbolic.A, symbolic.ALPHA]
    numbers = list(zip(symbols, [*weight.ravel(), alpha], strict=True))
    truth = float(symbolic.prove_trace_moment()[1].subs(numbers))
    keep = np.array([1.0 - alpha])
    sums = trace_moments.product_sums((weight,), 2)
    found, lost = trace_moments.product_moment((weight,), sums, keep)
    assert abs(float(found) - truth) <= float(lost)
    closed = sp.Poly(symbolic.prove_fluctuation_moment()[1].subs(symbolic.ALPHA, alpha), symbolic.THETA)
    for order in range(2, 7):
        moment = abs(float(closed.coeff_monomial(symbolic.THETA**order)))
        np.testing.assert_allclose(trace_moments.central_moment(keep, order)[0], moment, atol=1e-14)
