"""Weights as small as numbers get: a rounding is a large part of their norm, and no bound fails.

Beside them stand weights or radii so large that the whole is seen, in fractions or in floats.
"""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from theory.graph import (
    certified_radius,
    expected_path_norm,
    frobenius_bound,
    jacobian_radius,
    lipschitz_constants,
    local_lipschitz,
    margin_bounds,
    norm_product,
    path_norm,
)
from theory.graph.network import from_relu_network
from theory.relu import exact_local_lipschitz, exact_radius
from theory.relu.rational import loses
from theory.types import ReLUNetwork

INPUTS = 6  # the root of 6, 2.45, is rounded to 2 subnormal steps
SMALLEST = {torch.float64: 5e-324, torch.float32: 1.401298464324817e-45}


def rounded(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32).astype(float)


def flat_then_steep(radius: float, steep: float, dtype: torch.dtype) -> tuple[ReLUNetwork, np.ndarray]:
    """A unit of smallest weights that is off up to 2.36 of the 2.45 steps it rises by, and a point past them.

    There it meets ``steep``, and the decision on label 0 is lost.
    """
    step = Fraction(SMALLEST[dtype]) * Fraction(radius)
    bias, lead = float(-Fraction(236, 100) * step), float(step * Fraction(steep) / 200)
    weights = np.full((1, INPUTS), SMALLEST[dtype]), np.array([[0.0], [steep]])
    net = ReLUNetwork(weights, (np.array([bias]), np.array([lead, 0.0])))
    if dtype == torch.float32:  # as the graph has it
        net = ReLUNetwork(*(tuple(map(rounded, part)) for part in (net.weights, net.biases)))
    return net, np.full(INPUTS, 0.98 * radius / math.sqrt(INPUTS))


@pytest.mark.parametrize(
    ("dtype", "radius", "steep"), [(torch.float64, 1e30, 1e300), (torch.float32, 1e13, 1e30)]
)
def test_no_certificate_reaches_a_lost_decision(dtype, radius, steep):
    net, step = flat_then_steep(radius, steep, dtype)
    assert loses(net, step, 0)
    graph, label = from_relu_network(net, dtype=dtype), torch.tensor([0])
    x, reach = torch.zeros(1, INPUTS, dtype=dtype), torch.tensor([radius], dtype=dtype)
    for certify in (certified_radius, jacobian_radius):
        assert certify(graph, x, label, p=2, domain_radius=radius) < math.hypot(*step)
    assert margin_bounds(graph, x, label, p=2, radius=reach)[0, 1] < 0


def test_nothing_exact_is_said_beyond_a_lost_decision():
    net, step = flat_then_steep(1e300, 1e300, torch.float64)
    assert loses(net, step, 0)
    x, y = np.zeros((1, INPUTS)), np.array([0])
    found = exact_radius(net, x, y, p=2, domain_radius=1e300)
    assert found.lower[0] <= found.upper[0] <= math.hypot(*step) * (1 + 1e-9)
    slopes = exact_local_lipschitz(net, x, y, p=2, radius=np.array([1e300]))
    steepest = math.sqrt(INPUTS) * float(Fraction(SMALLEST[torch.float64]) * Fraction(1e300))
    assert slopes.upper[0, 1] >= steepest * (1 - 1e-12)


def test_constants_are_no_smaller_than_the_root_of_six():
    """Scaled up in the first layer, then a difference of smallest weights; and the other way around."""
    small = np.stack([np.full(INPUTS, 5e-324), np.zeros(INPUTS)])
    net = ReLUNetwork((1e30 * np.eye(INPUTS), small), (np.zeros(INPUTS), np.zeros(2)))
    truth = math.sqrt(INPUTS) * float(Fraction(5e-324) * Fraction(1e30))
    graph, x = from_relu_network(net), torch.ones(1, INPUTS, dtype=torch.float64)
    for constants in (norm_product, path_norm, lipschitz_constants):
        assert constants(graph, p=2)[0, 1] >= truth
    still = torch.zeros(1, dtype=torch.float64)
    assert local_lipschitz(graph, x, torch.tensor([0]), p=2, radius=still)[0, 1] >= truth
    column, last = np.full((INPUTS, 1), 5e-324), np.stack([np.eye(INPUTS)[0], np.zeros(INPUTS)])
    net = ReLUNetwork((np.array([[1e30]]), column, last), (np.zeros(1), np.zeros(INPUTS), np.zeros(2)))
    assert frobenius_bound(from_relu_network(net), [0.0, 0.0], (0, 1)) >= truth


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("dropped", [0.0, 5e-324, 1e-310, 1e-44, 1.0])
def test_a_difference_that_masks_alone_make_is_not_lost(dtype, dropped):
    """Equal rows: E|v| is dropped (1 - dropped) (|a| + |b|), and the root of E v^2 that of its like."""
    first, last = (1e100, 1e-20) if dtype == torch.float64 else (1e30, 1e-20)
    net = ReLUNetwork((np.array([[first]]), np.array([[last], [last]])), (np.zeros(1), np.zeros(2)))
    graph, kept = from_relu_network(net, dtype=dtype), 1 - Fraction(dropped)
    size = 2 * Fraction(float(np.float32(last)) if dtype == torch.float32 else last)
    path = Fraction(dropped) * kept * size * Fraction(first)
    assert expected_path_norm(graph, [0.0, dropped], (0, 1)) >= path
    square = Fraction(dropped) * kept * size**2 / 2 * Fraction(first) ** 2
    found = frobenius_bound(graph, [0.0, dropped], (0, 1))
    assert Fraction(found) ** 2 >= square * (1 - Fraction(1, 10**6) * (dtype == torch.float32))
    if dropped in (0.0, 1.0):
        assert found <= 1e-200 if dtype == torch.float64 else found <= 1e-6
