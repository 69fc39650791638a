"""A small but complete run that several test files read."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from empirical.cli.run import MAIN_JOB
from empirical.datasets import load
from empirical.experiments import Experiment, Network, read_experiment
from empirical.runs.run import run_experiments
from empirical.training.train import Recipe


@pytest.fixture(scope="session")
def small_experiments(tmp_path_factory) -> list[Experiment]:
    """The main job with two seeds, three sparsities, tiny networks, on a part of the digits."""
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
    small = [
        replace(
            read_experiment(name),
            data=str(path),
            seeds=2,
            sparsities=(0.0, 0.5, 0.9),
            masks=20,
            first=recipe,
            retrain=replace(recipe, epochs=3),
        )
        for name in MAIN_JOB
    ]
    small[-1] = replace(small[-1], network=Network("mlp", hidden=(20, 12)))
    return small


@pytest.fixture(scope="session")
def small_run(small_experiments, tmp_path_factory):
    """The folder and the outcome of a run of the small experiments."""
    out = tmp_path_factory.mktemp("runs") / "small"
    return out, run_experiments(small_experiments, out, device=torch.device("cpu"))
