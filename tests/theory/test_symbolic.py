"""The numeric functions against the formulas that SymPy derives, and the derivations against wrong steps."""

import math

import numpy as np
import pytest
import sympy as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from theory import symbolic
from theory.ceiling import universal_ceiling
from theory.laws import linear as laws
from theory.laws.strategies import attack_norms, labelled_data, linear_classifiers
from theory.linear import (
    ClassStatistics,
    binary_mean_radius,
    class_statistics,
    hoelder_ceiling,
    markov_bound,
    norm_interpolation,
    paper_multiclass_bound,
    radius,
    weight_free_bound,
)
from theory.types import BinaryLinear

NORMS = pytest.mark.parametrize("p", [2.0, math.inf])
CLF = BinaryLinear(np.array([2.0, -0.75, 0.5]), 0.25)
STATS = ClassStatistics(
    np.array([0.25, 0.75]), np.array([0.5, 0.875]), np.array([[-1.0, 0.5, 0.0], [2.0, 1.0, -0.5]])
)
FACTS = (*STATS.mass, *STATS.mean.ravel())


@NORMS
def test_radius_is_the_lagrange_or_linear_program_solution(p):
    x = np.array([[1.0, -2.0, 3.0]])
    theorem = symbolic.prove_linear_radius(p, 3)
    expected = theorem(*x[0], *CLF.weight, CLF.bias)
    assert radius(CLF, x, np.array([1]), p=p)[0] == pytest.approx(expected, rel=laws.ROUNDING)


@NORMS
def test_binary_mean_radius_is_the_derived_average(p):
    expected = symbolic.prove_binary_mean_radius(p, 3)(*FACTS, *CLF.weight, CLF.bias)
    assert binary_mean_radius(CLF, STATS, p=p) == pytest.approx(expected, rel=laws.ROUNDING)


@pytest.mark.parametrize("eps", [0.1, 0.7, 0.9, 2.0])
def test_markov_bound_is_the_derived_sum(eps):
    mean_radius = symbolic.prove_linear_radius(math.inf, 3)
    radii = [
        mean_radius(*mean, *(sign * CLF.weight), sign * CLF.bias)
        for sign, mean in zip((-1, 1), STATS.mean, strict=True)
    ]
    expected = symbolic.prove_markov()(*STATS.mass, *radii, eps)
    assert markov_bound(CLF, STATS, eps=eps) == pytest.approx(expected, rel=laws.ROUNDING)


@NORMS
def test_hoelder_ceiling_is_the_derived_maximum(p):
    expected = symbolic.prove_hoelder_ceiling(p, 3)(*FACTS)
    assert hoelder_ceiling(STATS, p=p) == pytest.approx(expected, rel=laws.ROUNDING)


@NORMS
def test_weight_free_bound_of_two_equal_masses_is_half_the_derived_pair(p):
    stats = ClassStatistics(np.array([0.5, 0.5]), np.ones(2), STATS.mean)
    expected = symbolic.prove_jensen_pair(p, 3)(*STATS.mean.ravel()) / 2
    assert weight_free_bound(stats, p=p) == pytest.approx(expected, rel=laws.ROUNDING)


def test_norm_interpolation_is_the_derived_ratio():
    low, high = norm_interpolation(CLF, 6.0)
    assert high / low == pytest.approx(symbolic.prove_norm_interpolation(3)(), rel=laws.ROUNDING)


@settings(max_examples=10)  # symbolic substitution is slow, and the formula has no branches
@given(linear_classifiers(width=2, classes=3), labelled_data(width=2, classes=3), attack_norms())
def test_paper_form_is_the_derived_distance_to_the_average_boundary(clf, data, p):
    stats = class_statistics(clf, *data)
    theorem = symbolic.prove_average_boundary(p, 3, 2)
    total = 0.0
    for k in np.flatnonzero(stats.mass):
        order = [k, *(j for j in range(3) if j != k)]
        parameters = [v for j in order for v in (*clf.weight[j], clf.bias[j])]
        offset = clf.weight[k] - clf.weight.mean(axis=0)
        if np.abs(offset).max() <= laws.ROUNDING * np.abs(clf.weight).max():
            return  # w_k = wbar: no boundary, and no number to compare with
        total += stats.mass[k] * theorem(*stats.mean[k], *parameters)
    found = paper_multiclass_bound(clf, stats, p=p)
    assert found == pytest.approx(total, rel=1e-9, abs=1e-9 * laws.size(clf, data[0], p=p))


@NORMS
@given(points=st.lists(st.tuples(*[st.integers(-9, 9)] * 2), min_size=3, max_size=3))
def test_ceiling_of_three_labels_is_the_derived_sixth(points, p):
    x = np.array(points, dtype=float)
    distances = [np.linalg.norm(x[i] - x[j], ord=p) for i, j in ((0, 1), (0, 2), (1, 2))]
    expected = sum(distances) / 6
    assert universal_ceiling(x, np.arange(3), p=p) == pytest.approx(expected, rel=laws.ROUNDING)


def test_the_derived_ceiling_is_a_sixth_of_the_distances():
    assert symbolic.prove_triangle_ceiling()(1.0, 2.0, 2.5) == pytest.approx(5.5 / 6)


def test_a_wrong_step_fails(monkeypatch):
    """Hölder's equality case, Lagrange's solution and the class means each break when the norm is wrong."""

    def wrong(v, p):
        return sp.Add(*v)

    monkeypatch.setattr(symbolic, "_norm", wrong)
    with pytest.raises(symbolic.ProofFailed):
        symbolic.prove_hoelder(2.0, 2)
    with pytest.raises(symbolic.ProofFailed):
        symbolic.prove_linear_radius(math.inf, 2)
    with pytest.raises(symbolic.ProofFailed):
        symbolic.prove_jensen_pair(2.0, 2)
