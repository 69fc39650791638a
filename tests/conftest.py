"""Runtime shape checks and Hypothesis profiles for the whole suite."""

import os
from pathlib import Path

# Tests run in several processes, here and in those they start: more threads each would only compete.
os.environ["OMP_NUM_THREADS"] = "1"

import jaxtyping
import pytest
import torch
from hypothesis import HealthCheck, settings

import theory
from tests import typecheck

torch.set_num_threads(1)

# Checks the array shapes written in annotations on every call of the package under test; the laws pass
# Hypothesis strategies about, which cannot be checked at run time.
CHECKED = [f"theory.{part.stem}" for part in Path(theory.__file__).parent.iterdir() if part.stem != "laws"]
typecheck.check_all_calls([*CHECKED, "empirical"])

_SLOW_SETUP = [HealthCheck.too_slow]  # drawing arrays is slow on a loaded two-core machine
settings.register_profile("dev", max_examples=30, deadline=None, suppress_health_check=_SLOW_SETUP)
settings.register_profile(
    "ci", max_examples=50, deadline=None, suppress_health_check=_SLOW_SETUP, derandomize=True
)
settings.register_profile("thorough", max_examples=100_000, deadline=None, suppress_health_check=_SLOW_SETUP)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture
def unchecked():
    """Switch the run-time shape checks off: what a user sees, and how bad shapes reach our own errors."""
    jaxtyping.config.update("jaxtyping_disable", value=True)
    yield
    jaxtyping.config.update("jaxtyping_disable", value=False)
