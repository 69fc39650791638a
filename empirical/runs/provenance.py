"""Where numbers come from: the commit of the source tree, and the device that computed them.

PyTorch is imported where it is needed, so that the version alone is told at once.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from empirical.runs.locations import Location, append_line

if TYPE_CHECKING:
    import torch

_HERE = Path(__file__)
_URL = re.compile(r"[\w+.:-]+://[^/]*/")  # but not an address, which is a host alone
_USER = re.compile(r"(?<=://).*@")  # and the password, which may hold any sign


def _installed() -> str:
    try:
        return version("sparse-robustness")
    except PackageNotFoundError:
        return "uninstalled"


_VERSION = _installed()  # of the code in memory: another one may be installed under a process that lives long


def package_version() -> str:
    """The installed version as this was imported, or "uninstalled" when run from a source tree."""
    return _VERSION


def log_command(
    folder: Location, *, seconds: float, workers: int, device: torch.device, ended: str = "done"
) -> None:
    """Append the command that is running, how long it took, how it ended and its versions to runs.jsonl.

    Of absolute paths and URLs only the last name is kept, of users and passwords nothing: tables are
    committed, one machine's folders say nothing.
    """
    import numpy as np
    import torch

    arguments = [_without_folders(argument) for argument in sys.argv[1:]]
    entry = {
        "command": shlex.join(["sparse-robustness", *arguments]),
        "seconds": round(seconds, 1),
        "ended": ended,
        "workers": workers,
        "device": device_name(device),
        "cores": cores(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "commit": commit(),
    }
    append_line(folder / "runs.jsonl", json.dumps(entry))


def _without_folders(argument: str) -> str:
    name, equals, value = argument.partition("=")
    if equals and name.startswith("--"):
        return f"{name}={_without_folders(value)}"
    argument = _USER.sub("", argument)
    is_long = _URL.match(argument) or Path(argument).is_absolute()
    return Path(argument).name if is_long else argument


def choose_device(name: str) -> torch.device:
    """The device for "auto" (CUDA where there is one, else the CPU), "cpu" or "cuda".

    On a GPU float32 convolutions are computed in float32 from then on, not in TF32, in which logits are
    rounded a thousand times as much as attacks take them to be.
    Raises: InvalidInput for another name, or "cuda" where there is none.
    """
    import torch

    from theory.types import InvalidInput

    if name not in ("auto", "cpu", "cuda"):
        raise InvalidInput(f"device is {name!r}; choose auto, cpu or cuda")
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise InvalidInput("device is 'cuda', but PyTorch sees no CUDA device; use --device cpu")
    if not available or name == "cpu":
        return torch.device("cpu")
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda")


def device_name(device: torch.device) -> str:
    """The GPU's model ("cuda" where only other machines have one), or the CPU's architecture and threads."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device) if torch.cuda.is_available() else device.type
    return f"cpu ({platform.machine()}, {torch.get_num_threads()} threads)"


def commit() -> str:
    """The source tree's commit, marked if the tree differs from it.

    A package that is installed inside somebody else's work tree does not take that tree's commit for its own.
    Where git knows none: what ``SPARSE_ROBUSTNESS_COMMIT`` says, of sources copied without it, or "unknown".
    """
    try:
        _git("ls-files", "--error-unmatch", _HERE.name)
        return _git("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("SPARSE_ROBUSTNESS_COMMIT") or "unknown"


def _git(*arguments: str) -> str:
    """What git says in this file's folder. Raises: OSError or SubprocessError if it says nothing."""
    done = subprocess.run(
        ["git", *arguments], cwd=_HERE.parent, capture_output=True, text=True, timeout=10, check=True
    )
    return done.stdout.strip()


def cores() -> int:
    """Number of cores this process may use, by its affinity and by its container's share of the processor."""
    from joblib.externals.loky import cpu_count

    return cpu_count()
