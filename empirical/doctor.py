"""What an installation can do: versions, devices, threads, data sets, and a check of the package itself.

Nothing here raises for what it finds wrong: a finding says so, and what to do about it.
"""

from __future__ import annotations

import os
import platform
import re
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

import numpy as np

from empirical.runs.provenance import commit, cores, package_version

State = Literal["ok", "note", "warning", "failed"]
# What decides numbers and speed; the other dependencies are in the package's metadata.
_PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "pandas", "pyarrow", "statsmodels", "joblib")
# A requirement of an extra: its name and the extra.
_OPTIONAL = re.compile(r"([\w.-]+).*;.*\bextra == ['\"]([\w-]+)['\"]")
# Each of them sets the threads of some library's matrix products.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_SEEDS = range(3)
_EPS = 0.1


@dataclass(frozen=True)
class Finding:
    """One line of the examination; ``advice`` says what to do where ``state`` is not ok."""

    section: str
    name: str
    value: str
    state: State = "ok"
    advice: str = ""


def examine(*, workers: int | None = None, results: Path = Path("results")) -> list[Finding]:
    """Everything that is found, in the order in which it is shown.

    ``workers`` is the number of processes that a run would have, one per core if None; ``results`` the folder
    that it would write. A finding is ``failed`` only where the package computes wrong numbers or none.
    """
    return [
        *versions(),
        *devices(),
        *threads(os.environ, workers=workers or cores(), available=cores()),
        *data_sets(),
        *extras(),
        writing(results),
        *self_check(),
    ]


def versions() -> list[Finding]:
    """The package, its commit, Python, and the packages that decide numbers."""
    section = "versions"
    found = [
        Finding(section, "sparse-robustness", package_version()),
        Finding(section, "commit", commit()),
        Finding(section, "python", f"{platform.python_version()} on {platform.platform()}"),
    ]
    for name in _PACKAGES:
        if _installed(name):
            found.append(Finding(section, name, version(name)))
        else:
            found.append(Finding(section, name, "missing", "failed", f"pip install {name}"))
    return found


def devices() -> list[Finding]:
    """The CPU, and every GPU that PyTorch sees, with their memory."""
    section = "devices"
    found = [Finding(section, "cpu", f"{platform.machine()}, {cores()} cores{_memory()}")]
    try:
        import torch

        gpus = [torch.cuda.get_device_properties(k) for k in range(torch.cuda.device_count())]
    except Exception as error:  # a library that does not load, a driver that does not answer
        return [*found, Finding(section, "torch", _first_line(error), "failed", "install PyTorch again")]
    for k, gpu in enumerate(gpus):
        found.append(Finding(section, f"cuda:{k}", f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB"))
    return found if gpus else [*found, Finding(section, "cuda", "none; runs use the CPU", "note")]


def threads(environment: Mapping[str, str], *, workers: int, available: int) -> list[Finding]:
    """How many threads the processes of a run have together, against the cores that are there."""
    section = "threads"
    found = [Finding(section, "workers", f"{workers} processes on {available} cores")]
    for name in _THREADS:
        text = environment.get(name)
        if text is None:
            continue
        each = int(text.partition(",")[0]) if text.partition(",")[0].isdecimal() else 0
        if each < 1:
            advice = f"export {name}=1"
            found.append(Finding(section, name, f"{text!r} is no number of threads", "warning", advice))
        elif each * workers > max(available, workers):
            advice = f"export {name}={max(1, available // workers)}"
            if each <= available:
                advice += f", or give --workers {available // each}"
            value = f"{each}, with {workers} workers {each * workers} threads on {available} cores"
            found.append(Finding(section, name, value, "warning", advice))
        else:
            found.append(Finding(section, name, str(each)))
    if workers > available:
        advice = f"give --workers {available}"
        found.append(Finding(section, "cores", f"{available} for {workers} workers", "warning", advice))
    return found


def data_sets() -> list[Finding]:
    """The named data sets: whether they are here, and whether their checksums are right."""
    from empirical.data.named import FOLDER, NAMED, folder

    section, here = "data", folder()
    origin = FOLDER if os.environ.get(FOLDER) else f"the user's cache; {FOLDER} names another"
    return [
        Finding(section, "digits", "comes with scikit-learn"),
        Finding(section, "folder", f"{here} ({origin})"),
        *(_data_set(name) for name in NAMED),
    ]


def _data_set(name: str) -> Finding:
    from empirical.data.named import local_source
    from empirical.data.npz import SUMS, has_right_sum
    from theory.types import InvalidInput

    try:
        source = local_source(name)
        if source is None:
            advice = (
                f"put {name}.npz there (x_train, y_train, x_test, y_test), or let OpenML send it at its use"
            )
            return Finding("data", name, "missing", "note", advice)
        files = dict.fromkeys((*source.train, *source.test))
        vouched = [has_right_sum(path) for path in files]
    except (InvalidInput, OSError) as error:
        return Finding("data", name, _first_line(error), "warning", "fetch it again, or remove the file")
    count = f"{len(files)} file{'s' if len(files) > 1 else ''}"
    if all(vouched):
        return Finding("data", name, f"{count}, checksums right")
    advice = f"{SUMS} beside the files, as sha256sum writes it, would be checked at every use"
    return Finding("data", name, f"{count}, {vouched.count(False)} without checksum", "note", advice)


def extras() -> list[Finding]:
    """The optional parts of the installation, as the package's metadata name them."""
    try:
        needed = requires("sparse-robustness") or []
    except PackageNotFoundError:
        return [Finding("extras", "all", "unknown: run from a source tree that is not installed", "note")]
    missing: dict[str, list[str]] = {}
    for line in needed:
        matched = _OPTIONAL.match(line)
        if matched:
            name, extra = matched.groups()
            missing.setdefault(extra, []).extend([] if _installed(name) else [name])
    found = []
    for extra, names in missing.items():
        advice = f"pip install 'sparse-robustness[{extra}]'" if names else ""
        value = f"without {', '.join(names)}" if names else "installed"
        found.append(Finding("extras", extra, value, "note" if names else "ok", advice))
    return found


def _installed(name: str) -> bool:
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


def writing(folder: Path) -> Finding:
    """Whether a run can write its folder, or make it."""
    parent = folder.absolute()
    try:
        while not parent.exists():
            parent = parent.parent
        with tempfile.TemporaryFile(dir=parent):
            return Finding("results", "folder", f"{folder.absolute()} can be written")
    except OSError as error:
        advice = "name another folder by --out"
        return Finding("results", "folder", f"{parent}: {error.strerror}", "warning", advice)


def self_check() -> list[Finding]:
    """Attacks on random linear classifiers against their exact radii, and every identity and bound of these.

    It takes the path of a real run: measured radii, theory, and the comparison that judges both.
    """
    started = time.perf_counter()
    try:
        cases, violations, errors = _small_run()
    except Exception as error:  # whatever stops it is what the user must see
        text = f"{type(error).__name__}: {_first_line(error)}"
        return [Finding("self-check", "run", text, "failed", "install the package again")]
    seconds = time.perf_counter() - started
    wrong = ", ".join(sorted(name for name, count in violations.items() if count))
    state: State = "failed" if wrong or not cases else "ok"
    advice = "numbers from this installation are wrong; report the versions above" if wrong else ""
    return [
        Finding("self-check", "identities", f"largest relative error {errors['identities']:.1e}"),
        Finding("self-check", "attack", f"exact radius to a relative {errors['attack']:.1e}"),
        Finding(
            "self-check",
            "theorems",
            f"violated: {wrong}" if wrong else f"hold in {cases:,} cases ({seconds:.1f} s)",
            state,
            advice,
        ),
    ]


def _small_run() -> tuple[int, dict[str, int], dict[str, float]]:
    """Cases, violations by theorem, and the largest relative errors, for three random binary classifiers."""
    import torch

    from empirical.comparison import compare_linear
    from empirical.datasets import Dataset
    from empirical.ensembles import initialise
    from empirical.measurement import measure
    from empirical.results import Members

    random = np.random.default_rng(0)
    x, y = random.random((40, 20)), np.arange(40) % 2
    data = Dataset("random", x.astype(np.float32), y, x, y, classes=2)
    networks = initialise((20, 1), seeds=list(_SEEDS), device=torch.device("cpu"))
    zeros, dense = [0.0] * len(_SEEDS), ["dense"] * len(_SEEDS)
    members = Members("random", "linear-binary", dense, zeros, zeros, list(_SEEDS))
    rows = compare_linear(members, networks, measure(networks, data, eps=_EPS), data, eps=_EPS)
    cases = sum(int(row.values.sum()) for row in rows if row.quantity == "cases")
    violations: dict[str, int] = {}
    errors = {"identities": 0.0, "attack": 0.0}
    for row in rows:
        if row.quantity == "violations":
            violations[row.method] = violations.get(row.method, 0) + int(row.values.sum())
        elif row.quantity == "relative_error":
            side = "attack" if row.method == "linear radius" else "identities"
            errors[side] = max(errors[side], float(row.values.max()))
    return cases, violations, errors


def _memory() -> str:
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not everywhere
        return ""
    return f", {size / 2**30:.0f} GiB"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
