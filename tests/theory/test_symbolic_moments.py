"""The SymPy derivations of moment propagation hold, and the numeric functions compute what they derive."""

import numpy as np
import pytest
import sympy as sp

from theory import symbolic_moments as symbolic
from theory.relu.moments import preactivation_moments
from theory.relu.rectified import rectified_moments
from theory.types import ReLUNetwork

PROOFS = [value for name, value in vars(symbolic).items() if name.startswith("prove_")]


@pytest.mark.parametrize("proof", PROOFS, ids=lambda proof: proof.__name__)
def test_both_sides_are_equal_and_not_zero(proof):
    left, right = proof()
    assert sp.simplify(sp.expand(left - right)) == 0
    assert sp.simplify(left) != 0


@pytest.mark.parametrize(("mean", "sd"), [(0.0, 1.0), (1.5, 0.5), (-2.0, 3.0), (10.0, 0.25)])
def test_rectified_moments_are_the_numeric_ones(mean, sd):
    at = [(symbolic.MEAN, sp.Rational(mean)), (symbolic.SD, sp.Rational(sd))]
    first = symbolic.prove_rectified_mean()[1].subs(at)
    square = symbolic.prove_rectified_square()[1].subs(at)
    active = symbolic.prove_active_probability()[1].subs(at)
    found = rectified_moments(np.array(mean), np.array(sd**2))
    expected = [float(sp.N(value, 40)) for value in (first, square - first**2, active)]
    np.testing.assert_allclose(found[:3], expected, rtol=1e-12)


def test_the_masked_step_is_the_numeric_one():
    """Two units over inputs h = (2 m, 1), m one mask entry: two values, as in the derivation."""
    keep, chance = 0.25, 0.5
    net = ReLUNetwork(
        (np.array([[2.0], [0.0]]), np.array([[0.5, -1.5], [1.0, 2.0]]), np.eye(2)),
        (np.array([0.0, 1.0]), np.array([0.25, 0.25]), np.zeros(2)),
    )
    first = preactivation_moments(net, np.array([[1.0]]), np.array([chance, keep, 1.0]))[0]
    np.testing.assert_allclose([first.mean, first.variance], [[[1.0, 1.0]], [[1.0, 0.0]]])
    at = {
        symbolic.KEEP: keep,
        symbolic.P: chance,
        symbolic.BIAS: 0.25,
        **dict(zip((*symbolic.W, *symbolic.U), (0.5, -1.5, 1.0, 2.0), strict=True)),
        **dict(zip((*symbolic.H[0], *symbolic.H[1]), (2.0, 1.0, 0.0, 1.0), strict=True)),
    }
    mean = float(symbolic.prove_masked_mean()[1].subs(at))
    variance = float(symbolic.prove_masked_variance()[1].subs(at))
    covariance = float(symbolic.prove_masked_covariance()[1].subs(at))
    # With exact input moments (E h = (1, 1), Var h = (1, 0)) put in the place of the rectified Gaussian's.
    with pytest.MonkeyPatch.context() as patch:
        exact = (np.array([[1.0, 1.0]]), np.array([[1.0, 0.0]]), None)
        patch.setattr("theory.relu.moments.rectified_layer", lambda layer: exact)
        second = preactivation_moments(net, np.array([[1.0]]), np.array([chance, keep, 1.0]))[1]
    assert second.covariance is not None
    np.testing.assert_allclose(second.mean[0, 0], mean, rtol=1e-14)
    np.testing.assert_allclose(second.variance[0, 0], variance, rtol=1e-14)
    np.testing.assert_allclose(second.covariance[0, 0, 1], covariance, rtol=1e-14)
