"""Who does the work: processes of this machine, or the workers of a Dask or Ray cluster.

Each backend's own futures are used. joblib's backends for clusters do not return when a worker is killed
too often (Dask), and cannot give a killed worker's job to another one (Ray).
"""

from __future__ import annotations

import importlib
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from joblib.externals.loky import ProcessPoolExecutor

from theory.types import InvalidInput

# More processes than any machine has cores; a misprint would bring it down.
_MOST = 4096
BACKENDS = ("loky", "dask", "ray")
# From a function and its arguments, one each, to the results in the order in which they come.
Spread = Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[Any]]
# One thread per process, as clusters have it too: more would only compete, and could round otherwise.
_ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
# Seconds for a cluster's scheduler to answer.
_PATIENCE = 20


class WorkersLost(RuntimeError):
    """Workers ended while they worked: killed, out of memory, or their machine is gone."""


@dataclass(frozen=True)
class Workers:
    """``count`` processes of this machine, started by ``backend``; or the cluster at ``address``.

    Raises: InvalidInput for an unknown backend, a count that is no count, an address without a cluster.
    """

    count: int = 1
    backend: str = "loky"
    address: str | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise InvalidInput(f"workers is {self.count}; use at least one process")
        if self.count > _MOST:
            raise InvalidInput(f"workers is {self.count}; use at most {_MOST:,} processes")
        if self.backend not in BACKENDS:
            raise InvalidInput(f"backend is {self.backend!r}; choose one of {', '.join(BACKENDS)}")
        if self.address is not None and self.backend == "loky":
            raise InvalidInput(
                f"address is {self.address!r}, but loky starts processes of this machine; "
                "choose backend dask or ray"
            )

    @property
    def here(self) -> bool:
        """Whether all is done in this very process."""
        return self.backend == "loky" and self.count == 1


HERE = Workers()


def spread(workers: Workers, *, gpus: int = 0) -> AbstractContextManager[Spread]:
    """Start the workers, or connect to them; in the context, a function that spreads work over them.

    An exception in the work is raised where its result is taken; then, or when the context ends, what was
    not begun is dropped. ``gpus`` is how many of them each job asks Ray for.
    Raises: InvalidInput if the backend's package is missing or the cluster does not fit; OSError if it does
    not answer; WorkersLost if workers were killed and their jobs could not be given to others.
    """
    return {"loky": _loky, "dask": _dask, "ray": _ray}[workers.backend](workers, gpus)


@contextmanager
def _loky(workers: Workers, _: int) -> Iterator[Spread]:
    executor = ProcessPoolExecutor(
        workers.count, env=_ONE_THREAD, initializer=_belong_to, initargs=(os.getpid(),)
    )

    def each(work: Callable[[Any], Any], jobs: Sequence[Any]) -> Iterator[Any]:
        """Hands out no more than is done at once: loky trips over the rest when it has to stop."""
        left = iter(jobs)
        waiting = {executor.submit(work, job) for job in itertools.islice(left, workers.count)}
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            waiting |= {executor.submit(work, job) for job in itertools.islice(left, len(done))}
            for future in done:
                yield future.result()

    try:
        yield each
    except BrokenProcessPool as error:
        raise WorkersLost("a worker process was killed (out of memory?)") from error
    finally:
        executor.shutdown(wait=True, kill_workers=True)


def _belong_to(parent: int) -> None:
    """In a worker: leave Ctrl-C to the parent, and end when it has ended, even by kill -9."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _dask(workers: Workers, _: int) -> Iterator[Spread]:
    distributed = _package("distributed", extra="dask")
    with _dask_client(distributed, workers) as client:
        threads = max(client.nthreads().values(), default=1)
        if threads > 1:
            raise InvalidInput(
                f"address is {workers.address!r}, whose workers have {threads} threads; start them with "
                "--nthreads 1, and as many as there are cores: PyTorch's random state is one per process"
            )

        def each(work: Callable[[Any], Any], jobs: Sequence[Any]) -> Iterator[Any]:
            futures = client.map(work, jobs, pure=False)
            for future in distributed.as_completed(futures, loop=client.loop):
                yield future.result()

        try:
            yield each
        except (distributed.KilledWorker, CancelledError) as error:
            raise WorkersLost(str(error).split(". ", 1)[0]) from error


@contextmanager
def _dask_client(distributed: ModuleType, workers: Workers) -> Iterator[Any]:
    if workers.address is not None:
        with distributed.Client(workers.address, timeout=_PATIENCE, set_as_default=False) as client:
            yield client
        return
    with (
        distributed.LocalCluster(
            n_workers=workers.count, threads_per_worker=1, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        yield client


@contextmanager
def _ray(workers: Workers, gpus: int) -> Iterator[Spread]:
    ray = _package("ray", extra="ray")
    where: dict[str, Any] = {"num_cpus": workers.count, "include_dashboard": False}
    if workers.address is not None:
        where = {"address": workers.address}
    ray.init(log_to_driver=False, logging_level="ERROR", **where)

    def each(work: Callable[[Any], Any], jobs: Sequence[Any]) -> Iterator[Any]:
        remote = ray.remote(num_cpus=1, num_gpus=gpus)(work)
        waiting = [remote.remote(job) for job in jobs]
        while waiting:
            (done,), waiting = ray.wait(waiting)
            try:
                yield ray.get(done)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None

    try:
        yield each
    except ray.exceptions.RayError as error:
        raise WorkersLost(str(error).split(". ", 1)[0]) from error
    finally:
        ray.shutdown()


def _package(name: str, *, extra: str) -> ModuleType:
    """A package that only a backend needs."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InvalidInput(
            f"backend is {extra!r}, whose package is missing ({error}); "
            f"install it with: pip install 'sparse-robustness[{extra}]'"
        ) from error
