"""A small but complete run that several test files read."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from empirical.datasets import load
from empirical.experiment import Settings
from empirical.training import Recipe
from empirical.verify import verify


@pytest.fixture(scope="session")
def small_settings(tmp_path_factory) -> Settings:
    """Two seeds, three sparsities, tiny networks, on a tenth of the digits."""
    digits = load("digits")
    path = tmp_path_factory.mktemp("data") / "few.npz"
    np.savez(
        path,
        x_train=digits.x_train[::4],
        y_train=digits.y_train[::4],
        x_test=digits.x_test[::6],
        y_test=digits.y_test[::6],
    )
    recipe = Recipe(epochs=6, batch_size=32)
    return Settings(
        data=str(path),
        seeds=2,
        sparsities=(0.0, 0.5, 0.9),
        hidden=(20, 12),
        masks=20,
        first=recipe,
        retrain=replace(recipe, epochs=3),
    )


@pytest.fixture(scope="session")
def small_run(small_settings, tmp_path_factory):
    """The folder and the outcome of a run with the small settings."""
    out = tmp_path_factory.mktemp("runs") / "small"
    return out, verify(small_settings, out, device=torch.device("cpu"))
