"""CLEVER beside exact local Lipschitz constants of small ReLU networks."""

import math

import numpy as np
import pytest
import torch

from empirical.clever import clever
from empirical.ensembles import initialise, relu_network
from theory.relu.exact_lipschitz import exact_local_lipschitz

CPU = torch.device("cpu")
RADIUS = 0.4


@pytest.mark.parametrize("p", [2.0, math.inf])
def test_samples_are_below_the_exact_constant_and_estimates_near_it(p):
    """Two inputs: 3,000 samples reach most linear regions of the ball, if not the thinnest ones."""
    nets = initialise([2, 4, 4, 3], seeds=[0, 1], device=CPU).to(dtype=torch.float64, device=CPU)
    x = torch.tensor([[0.3, -0.2], [-0.7, 0.4]], dtype=torch.float64)
    y = torch.tensor([0, 2])
    found = clever(nets, x, y, p=p, radius=RADIUS, batches=30, batch_size=100)
    exact = [
        exact_local_lipschitz(relu_network(nets, k), x.numpy(), y.numpy(), p=p, radius=np.full(2, RADIUS))
        for k in range(2)
    ]
    upper, lower = np.stack([one.upper for one in exact]), np.stack([one.lower for one in exact])
    assert (found.largest <= upper * (1 + 1e-9)).all()
    ratio = found.location[lower > 0] / lower[lower > 0]
    assert np.median(ratio) == pytest.approx(1.0, rel=0.05)
    assert (ratio > 0.5).all()
    assert (ratio < 2.0).all()
