"""Runtime shape checks and Hypothesis profiles for the whole suite."""

import os

from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

# Checks the array shapes written in annotations on every call of the package under test.
install_import_hook(["theory", "empirical"], "beartype.beartype")

_SLOW_SETUP = [HealthCheck.too_slow]  # drawing arrays is slow on a loaded two-core machine
settings.register_profile("dev", max_examples=30, deadline=None, suppress_health_check=_SLOW_SETUP)
settings.register_profile(
    "ci", max_examples=100, deadline=None, suppress_health_check=_SLOW_SETUP, derandomize=True
)
settings.register_profile("thorough", max_examples=100_000, deadline=None, suppress_health_check=_SLOW_SETUP)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
