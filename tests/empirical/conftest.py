"""Trained networks that several test files measure."""

import pytest
import torch

from empirical.datasets import load
from empirical.ensembles import initialise
from empirical.pruning import magnitude_masks
from empirical.training.train import Recipe, train


@pytest.fixture(scope="session")
def trained_digits():
    """(ensemble, x, y): a 64-40-20-10 network dense and 80 % pruned, in float64, and the digits' test set."""
    data = load("digits")
    x, y = torch.tensor(data.x_train, dtype=torch.float32), torch.tensor(data.y_train)
    nets = initialise([64, 40, 20, 10], seeds=[0, 0], device=torch.device("cpu"))
    nets = train(nets, x, y, Recipe(epochs=8), seeds=[0, 0])
    pruned = magnitude_masks(nets, sparsity=0.8)
    masks = tuple(torch.stack([m[0], p[1]]) for m, p in zip(nets.masks, pruned, strict=True))
    nets = train(nets.masked(masks), x, y, Recipe(epochs=4), seeds=[0, 0])
    nets = nets.to(dtype=torch.float64, device=torch.device("cpu"))
    return nets, torch.tensor(data.x_test), torch.tensor(data.y_test)
