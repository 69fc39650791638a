"""Runtime shape checks and Hypothesis profiles for the whole suite."""

import errno
import os
import sys
from pathlib import Path

# Tests run in several processes, here and in those they start: more threads each would only compete.
os.environ["OMP_NUM_THREADS"] = "1"

import jaxtyping
import pytest
import torch
from hypothesis import HealthCheck, settings

import theory

try:
    from tests import typecheck
except ModuleNotFoundError:  # beartype, which a borrowed machine may lack: nothing is checked then
    typecheck = None

torch.set_num_threads(1)

# Checks the array shapes written in annotations whenever the package under test is called; the laws pass
# Hypothesis strategies about, which cannot be checked at run time.
CHECKED = [f"theory.{part.stem}" for part in Path(theory.__file__).parent.iterdir() if part.stem != "laws"]
if typecheck:
    typecheck.check_calls([*CHECKED, "empirical"])

_SLOW_SETUP = [HealthCheck.too_slow]  # drawing arrays is slow on a loaded two-core machine
settings.register_profile("dev", max_examples=30, deadline=None, suppress_health_check=_SLOW_SETUP)
settings.register_profile(
    "ci", max_examples=25, deadline=None, suppress_health_check=_SLOW_SETUP, derandomize=True
)
settings.register_profile("thorough", max_examples=100_000, deadline=None, suppress_health_check=_SLOW_SETUP)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


_read_only: list[str] = []  # folders in which nothing can be written now


def _refuse(event: str, arguments: tuple) -> None:
    """Whatever would change a file there is refused, also to root, whom permissions do not stop."""
    if not _read_only or event not in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"):
        return
    writes = event != "open" or (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR))
    for path in arguments[: 2 if event == "os.rename" else 1]:
        inside = isinstance(path, str | os.PathLike) and os.fspath(path).startswith(tuple(_read_only))
        if writes and inside and not (event == "os.mkdir" and os.path.exists(path)):
            raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))


sys.addaudithook(_refuse)


@pytest.fixture
def read_only():
    """What makes a folder, and all below it, one that this process cannot write in."""
    yield lambda folder: _read_only.append(str(folder))
    _read_only.clear()


@pytest.fixture
def undrawn(monkeypatch):
    """Reports without figures, or with empty ones: drawing takes longer than what such a test is about."""
    monkeypatch.setattr("empirical.pages.render", lambda figure, format: b"<svg/>")
    monkeypatch.setattr("empirical.report.drawn", lambda table: iter(()))


def pytest_runtest_setup():
    if typecheck:
        typecheck.calls.clear()


@pytest.fixture
def unchecked():
    """Switch the run-time shape checks off: what a user sees, and how bad shapes reach our own errors."""
    jaxtyping.config.update("jaxtyping_disable", value=True)
    yield
    jaxtyping.config.update("jaxtyping_disable", value=False)
