"""Exact radii and local Lipschitz constants against enumeration of every activation pattern."""

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from theory.laws import exact as laws
from theory.laws.relu import attack_points, exact_scores
from theory.laws.strategies import arrays, attack_norms, relu_networks
from theory.linear.exact import radius as linear_radius
from theory.norms import norm
from theory.relu.certificate import certified_radius, crown_certified_radius
from theory.relu.exact import exact_radius
from theory.relu.exact_lipschitz import exact_local_lipschitz
from theory.relu.lipschitz import gradient_norms
from theory.relu.margins import local_lipschitz
from theory.types import InvalidInput, LinearClassifier, ReLUNetwork

# The run-time shape checks pick random items of the tuples in a network, also while Hypothesis draws one.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

GAP = 1e-6
INSIDE = 1 - 1e-9

@st.composite
def cases(draw: st.DrawFn, **networks):
    """A tiny network, one input, its predicted label or any other, and a norm."""
    net = draw(relu_networks(width=draw(st.integers(1, 3)), classes=draw(st.integers(2, 3)), max_hidden=3, **networks))
    x = draw(arrays((1, net.weights[0].shape[1])))
    label = net.scores(x).argmax(axis=1) if draw(st.integers(0, 5)) else np.array([draw(st.integers(0, net.classes - 1))])
    return net, x, label, draw(attack_norms())


@given(case=cases())
@settings(max_examples=50)
def test_radius_is_that_of_the_enumeration(case):
    net, x, y, p = case
    found = exact_radius(net, x, y, p=p, gap=GAP)
    laws.law_bounds_are_witnessed(found, net, x, y, p=p)
    laws.law_radius_equals_enumeration(found, net, x, y, p=p, gap=GAP)


@given(case=cases(), size=st.sampled_from([1e-3, 0.1, 1.0, 10.0]))
@settings(max_examples=50)
def test_local_lipschitz_is_that_of_the_enumeration(case, size):
    net, x, y, p = case
    radius = np.array([size])
    found = exact_local_lipschitz(net, x, y, p=p, radius=radius, gap=GAP)
    laws.law_lipschitz_equals_enumeration(found, net, x, y, radius, p=p, gap=GAP)
