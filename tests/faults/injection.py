"""The faults: each disturbs a sweep at a random moment and says how often the sweep complained.

Kills and limits hit real processes, forked from this one so that none waits for imports. What a sweep
complains of is mended as its message says; the caller then compares the rows.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from empirical.experiments import Experiment
from empirical.runs.run import run_experiments
from empirical.runs.workers import BACKENDS, Workers, WorkersLost
from tests.faults.sweep import CPU, mended, run
from theory.types import InvalidInput

# Seconds for one sweep, of about one, before it counts as hanging.
_LIMIT = 300
# Exit statuses of a child: finished, stopped by an error that it names, stopped by Ctrl-C.
DONE, NAMED, INTERRUPTED = 0, 2, 130
NOBODY = 65534
_YEARS = 3e8  # ten of them, in seconds
_DAMAGED = re.compile(r"(/\S+) is damaged .*; delete it and run again")


class Missed(Exception):  # noqa: N818 - nothing went wrong
    """The sweep was done before the fault came; another trial is due."""


@dataclass(frozen=True)
class Case:
    """A sweep in ``out``, on data whose good copy is ``data``, beside a finished, undisturbed one."""

    experiments: list[Experiment]
    out: Path
    undisturbed: Path
    data: bytes

    def half_done(self, rng: np.random.Generator) -> list[Path]:
        """Make ``out`` a sweep that lacks its table and a random half of its units; returns its files."""
        shutil.copytree(self.undisturbed, self.out)
        (self.out / "results.parquet").unlink()
        for unit in (self.out / "units").iterdir():
            if rng.random() < 0.5:
                unit.unlink()
        return files_below(self.out)

    def finish(self) -> int:
        """Run until all is done, obeying error messages; returns how many there were."""
        return mended(partial(run, self.experiments, self.out), self.mend)

    def mend(self, error: Exception) -> None:
        """Do what the message says. Raises: the error, if it does not say what to do."""
        text = str(error)
        if damaged := _DAMAGED.search(text):
            Path(damaged[1]).unlink()
        elif isinstance(error, InvalidInput) and ("fetch or export it again" in text or "restore it" in text):
            Path(self.experiments[0].data).write_bytes(self.data)
        else:
            raise error


Fault = Callable[[Case, np.random.Generator], int]


def killed(case: Case, rng: np.random.Generator) -> int:
    """kill -9 at a random moment."""
    child = forked(partial(run, case.experiments, case.out))
    wait_for_files(case, rng, child)
    os.kill(child, signal.SIGKILL)
    hit(status(child), -signal.SIGKILL)
    return case.finish()


def interrupted(case: Case, rng: np.random.Generator) -> int:
    """Ctrl-C at a random moment."""
    child = forked(partial(run, case.experiments, case.out))
    wait_for_files(case, rng, child)
    os.kill(child, signal.SIGINT)
    hit(status(child), INTERRUPTED)
    return case.finish()


def disk_full(case: Case, rng: np.random.Generator) -> int:
    """No file may grow beyond a random size, as on a full disk."""
    largest = max(path.stat().st_size for path in files_below(case.undisturbed))
    size = int(rng.integers(1, largest))
    import resource  # not on Windows, where this file is read too

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        run(case.experiments, case.out)

    assert status(forked(limited, says="cannot be written")) == NAMED
    return 1 + case.finish()


def read_only(case: Case, rng: np.random.Generator) -> int:
    """The folder may not be written: the child is nobody, if it was root."""
    case.half_done(rng)
    folders = [case.out, *(path for path in case.out.iterdir() if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)

    def unprivileged() -> None:
        if os.geteuid() == 0:
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        run(case.experiments, case.out)

    assert status(forked(unprivileged, says="cannot be written")) == NAMED
    for folder in folders:
        folder.chmod(0o755)
    return 1 + case.finish()


def clock_jump(case: Case, rng: np.random.Generator) -> int:
    """All files, data too, are up to ten years old or from the future, and so is every look at the clock."""
    for path in [*case.half_done(rng), Path(case.experiments[0].data)]:
        moment = time.time() + rng.uniform(-_YEARS, _YEARS)
        os.utime(path, (moment, moment))

    def jumping() -> None:
        time.time = lambda: time.time_ns() / 1e9 + rng.uniform(-_YEARS, _YEARS)
        run(case.experiments, case.out)

    assert status(forked(jumping)) == DONE
    return case.finish()


def two_at_once(case: Case, rng: np.random.Generator) -> int:
    """Two commands work in one folder; the second starts at a random moment."""
    first = forked(partial(run, case.experiments, case.out))
    wait_for_files(case, rng, first)
    second = forked(partial(run, case.experiments, case.out))
    assert [status(first), status(second)] == [DONE, DONE]
    return case.finish()


def truncated(case: Case, rng: np.random.Generator, *, pattern: str) -> int:
    """A file ends at a random byte."""
    path = _one(case, rng, pattern)
    os.truncate(path, int(rng.integers(path.stat().st_size)))
    return case.finish()


def bit_flipped(case: Case, rng: np.random.Generator, *, pattern: str) -> int:
    """A random bit of a file is another one."""
    path = _one(case, rng, pattern)
    content = bytearray(path.read_bytes())
    content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
    path.write_bytes(content)
    return case.finish()


def worker_killed(case: Case, rng: np.random.Generator, *, backend: str) -> int:
    """kill -9 of one of two workers at a random moment; what cannot go on by itself is run again."""
    errors: list[Exception] = []
    killed: list[int] = []
    killer = threading.Thread(target=_kill_a_worker, args=(case, rng, backend, killed), daemon=True)
    killer.start()
    work = partial(run_experiments, case.experiments, case.out, device=CPU, workers=Workers(2, backend))
    mended(work, lambda error: errors.append(_lost(error)))
    killer.join()
    if not killed:
        raise Missed
    return len(errors)


def _lost(error: Exception) -> WorkersLost:
    if not isinstance(error, WorkersLost):
        raise error
    return error


def _kill_a_worker(case: Case, rng: np.random.Generator, backend: str, killed: list[int]) -> None:
    wait_for_files(case, rng, None)
    children = [child.pid for child in multiprocessing.active_children() if child.pid]
    workers = ray_workers() if backend == "ray" else children
    if workers:
        killed.append(int(rng.choice(workers)))
        os.kill(killed[0], signal.SIGKILL)


def ray_workers() -> list[int]:
    """The processes below this one that do a job for Ray now, on Linux."""
    parents, busy = {}, []
    for folder in Path("/proc").iterdir():
        with suppress(OSError):
            if folder.name.isdecimal():
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                if (folder / "cmdline").read_bytes().startswith(b"ray::do_on_one_core"):
                    busy.append(int(folder.name))

    def below(pid: int) -> bool:
        while pid > 1 and pid != os.getpid():
            pid = parents.get(pid, 0)
        return pid == os.getpid()

    return [pid for pid in busy if below(pid)]


def _one(case: Case, rng: np.random.Generator, pattern: str) -> Path:
    """One of the files of a half finished sweep, its table or its data that fit the pattern."""
    if pattern == "data":
        case.half_done(rng)
        return Path(case.experiments[0].data)
    if pattern == "results.parquet":
        shutil.copytree(case.undisturbed, case.out)
        return case.out / pattern
    fitting = [path for path in case.half_done(rng) if path.match(pattern)]
    return fitting[rng.integers(len(fitting))]


def forked(work: Callable[[], None], *, says: str = "") -> int:
    """Start ``work`` in a process of its own; returns its id. Its errors must hold the words ``says``."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        work()
        code = DONE
    except KeyboardInterrupt:
        code = INTERRUPTED
    except (InvalidInput, OSError) as error:
        code = NAMED if says and says in str(error) else 1
        if code == 1:
            print(f"unexpected: {error!r}", flush=True)  # noqa: T201
    finally:
        os._exit(code)


def status(child: int) -> int:
    """How a child ended: its exit status, or the signal that killed it, negative; a hanging one is killed."""
    limit = threading.Timer(_LIMIT, os.kill, (child, signal.SIGALRM))
    limit.start()
    try:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        limit.cancel()


def hit(found: int, wanted: int) -> None:
    """Whether the child ended as the fault ends it. Raises: Missed if it was done before."""
    if found == DONE:
        raise Missed
    assert found == wanted, found


def files_below(folder: Path) -> list[Path]:
    """All files there, in order; folders may go meanwhile, as those of unfinished files do."""
    return sorted(Path(place) / name for place, _, names in os.walk(folder) for name in names)


def wait_for_files(case: Case, rng: np.random.Generator, child: int | None) -> None:
    """Wait until a random number of files is there, and a random little longer; or until the child ends."""
    wanted = int(rng.integers(len(files_below(case.undisturbed))))
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and len(files_below(case.out)) < wanted:
        if child and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        time.sleep(0.002)
    time.sleep(rng.uniform(0, 0.02))


UNITS, NETWORKS = "units/*.parquet", "checkpoints/*.safetensors"
FAULTS: dict[str, Fault] = {
    "kill -9": killed,
    "Ctrl-C": interrupted,
    "disk full": disk_full,
    "read-only folder": read_only,
    "clock jump": clock_jump,
    "two commands at once": two_at_once,
}
for _name, _pattern in {
    "unit": UNITS,
    "checkpoint": NETWORKS,
    "settings.json": "settings.json",
    "results.parquet": "results.parquet",
    "data": "data",
}.items():
    FAULTS[f"cut short, {_name}"] = partial(truncated, pattern=_pattern)
    FAULTS[f"bit flipped, {_name}"] = partial(bit_flipped, pattern=_pattern)
FAULTS |= {f"worker killed, {_name}": partial(worker_killed, backend=_name) for _name in BACKENDS}
