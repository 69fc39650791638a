"""Who does the work: processes of this machine, or the workers of a Dask or Ray cluster.

Each backend's own futures are used. joblib's backends for clusters do not return when a worker is killed
too often (Dask), and cannot give a killed worker's job to another one (Ray).
"""

from __future__ import annotations

import importlib
import logging
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from inspect import signature
from multiprocessing import resource_tracker
from types import ModuleType
from typing import Any

from joblib.externals.loky import ProcessPoolExecutor

from empirical.runs.gpus import VISIBLE, gpu_of_each
from empirical.runs.interrupts import uninterrupted
from empirical.runs.progress import Advance
from empirical.runs.provenance import package_version
from theory.types import InvalidInput, first_line

# More processes than any machine has cores; a misprint would bring it down.
_MOST = 4096
BACKENDS = ("loky", "dask", "ray")
# From a function and its arguments, one each, to the results in the order in which they come.
Spread = Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[Any]]
# One thread per process, as clusters have it too: more would only compete, and could round otherwise.
_ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
# Seconds for a cluster's scheduler to answer.
_PATIENCE = 20
# Seconds without any worker before that is said, and again after twice as long; and between looks.
_SILENCE, _LOOK = 10.0, 1.0
_SCHEDULER = re.compile(r"((tcp|tls|ucx|wss?)://)?[^/\s:]+:\d+/?|inproc://\S+")
_PACKAGE = "empirical"  # what a worker must have


class WorkersLost(RuntimeError):
    """Workers ended while they worked: killed, out of memory, or their machine is gone."""


@dataclass(frozen=True)
class Workers:
    """``count`` processes of this machine, started by ``backend``; or the cluster at ``address``.

    ``gpus`` is each one's share of a GPU, where work is done on GPUs: 0.5 lets two share one. By default it
    is 1 with Ray; other workers of this machine share its GPUs evenly, those of a Dask cluster have what they
    were started with.
    Raises: InvalidInput for an unknown backend, a count that is no count, an address without a cluster, a
    share that is none.
    """

    count: int = 1
    backend: str = "loky"
    address: str | None = None
    gpus: float | None = None

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
        if self.address is not None and self.backend == "dask" and not _SCHEDULER.fullmatch(self.address):
            raise InvalidInput(f"address is {self.address!r}; give that of a scheduler, as tcp://HOST:8786")
        if self.gpus is not None and not 1e-3 <= self.gpus <= 1:
            raise InvalidInput(f"gpus is {self.gpus:g}; give a worker's share of a GPU, from 0.001 to 1")

    @property
    def here(self) -> bool:
        """Whether all is done in this very process."""
        return self.backend == "loky" and self.count == 1


HERE = Workers()


def spread(
    workers: Workers, *, cuda: bool = False, tell: Advance = lambda stage, detail: None
) -> AbstractContextManager[Spread]:
    """Start the workers, or connect to them; in the context, a function that spreads work over them.

    An exception in the work is raised where its result is taken; then, or when the context ends, what was
    not begun is dropped. With ``cuda`` a worker sees its own GPU alone, or the one that it shares. A cluster
    that has no worker yet, or none any more, is waited for: it may be one that grows; ``tell`` hears of it.
    Raises: InvalidInput if the backend's package is missing, or the cluster or its GPUs do not fit; OSError
      if it does not answer; WorkersLost if workers were killed and their jobs could not be given to others.
    """
    return {"loky": _loky, "dask": _dask, "ray": _ray}[workers.backend](workers, cuda=cuda, tell=tell)


@contextmanager
def _loky(workers: Workers, *, cuda: bool, tell: Advance) -> Iterator[Spread]:
    """One pool, or one for each GPU."""
    del tell  # its processes are there as soon as they have started
    gpus = gpu_of_each(workers.count, share=workers.gpus) if cuda else [None] * workers.count
    pools = {
        gpu: ProcessPoolExecutor(
            count,
            env=_ONE_THREAD if gpu is None else _ONE_THREAD | {VISIBLE: gpu},
            initializer=_belong_to,
            initargs=(os.getpid(),),
        )
        for gpu, count in Counter(gpus).items()
    }

    if os.name == "posix":
        resource_tracker.ensure_running()  # which would let Ctrl-C through as it starts

    def each(work: Callable[[Any], Any], jobs: Sequence[Any]) -> Iterator[Any]:
        """Hands out no more than is done at once: loky trips over the rest when it has to stop."""
        left = iter(jobs)
        free = [pools[gpu] for gpu in gpus]
        waiting: dict[Future[Any], ProcessPoolExecutor] = {}
        while True:
            with uninterrupted():  # that is, processes that are started now, from their first moment
                waiting |= {pool.submit(work, job): pool for pool, job in zip(free, left, strict=False)}
            if not waiting:
                return
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            free = [waiting.pop(future) for future in done]
            for future in done:
                yield future.result()

    try:
        yield each
    except BrokenProcessPool as error:
        raise WorkersLost("a worker process was killed (out of memory?)") from error
    finally:
        for pool in pools.values():
            pool.shutdown(wait=True, kill_workers=True)


def _belong_to(parent: int) -> None:
    """In a worker: leave Ctrl-C to the parent, and end when it has ended, even by kill -9."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _missing_told(workers: Workers, anyone: Callable[[], bool], tell: Advance) -> Iterator[None]:
    """Look for workers as long as the context lasts, and tell of it when there have been none for a while."""
    over = threading.Event()

    def watch() -> None:
        waited, due = 0.0, _SILENCE
        while not over.wait(_LOOK):
            try:
                there = anyone()
            except Exception:  # noqa: BLE001 - whatever a scheduler that is gone makes its client raise
                continue  # the work hears of it
            waited, due = (0.0, _SILENCE) if there else (waited + _LOOK, due)
            if waited >= due:
                where = workers.address or "this machine"
                tell(f"no worker at {where} for {waited:.0f} s; waiting for one", "")
                due *= 2

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join(_LOOK)  # no longer: it may wait for a scheduler that is gone


@contextmanager
def _dask(workers: Workers, *, cuda: bool, tell: Advance) -> Iterator[Spread]:
    distributed = _package("distributed", extra="dask")
    with _dask_client(distributed, workers, cuda=cuda) as client:
        needed = {"GPU": workers.gpus} if cuda and workers.address is not None and workers.gpus else None
        _check_dask(client, workers, needed)

        def each(work: Callable[[Any], Any], jobs: Sequence[Any]) -> Iterator[Any]:
            futures = client.map(partial(_on_one_thread, work), jobs, pure=False, resources=needed)
            for future in distributed.as_completed(futures, loop=client.loop):
                yield future.result()

        try:
            with _missing_told(workers, lambda: bool(client.nthreads()), tell):
                yield each
        except (distributed.KilledWorker, CancelledError) as error:
            raise WorkersLost(str(error).split(". ", 1)[0]) from error


@contextmanager
def _dask_client(distributed: ModuleType, workers: Workers, *, cuda: bool) -> Iterator[Any]:
    if workers.address is not None:
        try:
            client = distributed.Client(workers.address, timeout=_PATIENCE, set_as_default=False)
        except (ValueError, TypeError) as error:
            raise InvalidInput(
                f"address is {workers.address!r} ({first_line(error)}); give that of a scheduler, such as "
                "tcp://HOST:8786"
            ) from error
        except OSError as error:
            raise OSError(
                f"address is {workers.address!r}, where no scheduler answers ({first_line(error)}); "
                "start one there by dask scheduler, or give another address"
            ) from error
        with client:
            yield client
        return
    quiet = {"host": "127.0.0.1", "dashboard": False, "silence_logs": logging.WARNING}
    environments: list[dict[str, str]] = [{}] * workers.count
    if cuda:
        environments = [{VISIBLE: gpu} for gpu in gpu_of_each(workers.count, share=workers.gpus)]
    with (
        distributed.SpecCluster(
            {
                i: {"cls": distributed.Nanny, "options": quiet | {"nthreads": 1, "env": environment}}
                for i, environment in enumerate(environments)
            },
            {"cls": distributed.Scheduler, "options": {"host": "127.0.0.1", "dashboard": False}},
            silence_logs=logging.WARNING,
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        yield client


def _check_dask(client: Any, workers: Workers, needed: dict[str, float] | None) -> None:
    """Without the package a worker would end, and a task that asks for what none has would wait for ever."""
    for worker, found in client.run(find_spec, _PACKAGE).items():
        if not found:
            raise InvalidInput(
                f"worker {worker} lacks this package; install sparse-robustness {package_version()} there"
            )

    every = {"n_workers": -1} if "n_workers" in signature(client.scheduler_info).parameters else {}
    workers_there = client.scheduler_info(**every)["workers"].values() if needed else ()
    has = [worker["resources"].get("GPU", 0) for worker in workers_there]
    if needed and has and max(has) < needed["GPU"]:
        raise InvalidInput(
            f"gpus is {workers.gpus:g}, but no worker at {workers.address} declares so much of a GPU; start "
            "each on its own, with CUDA_VISIBLE_DEVICES and --resources GPU=1, or leave --gpus out"
        )


def _on_one_thread(work: Callable[[Any], Any], job: Any) -> Any:
    """In a worker of Dask, also in one that joined later: refuse to share a process with other jobs."""
    from distributed import get_worker

    worker = get_worker()
    if worker.state.nthreads > 1:
        raise InvalidInput(
            f"worker {worker.address} has {worker.state.nthreads} threads; start workers with --nthreads 1, "
            "and as many as there are cores: PyTorch's random state is one per process"
        )
    return work(job)


@contextmanager
def _ray(workers: Workers, *, cuda: bool, tell: Advance) -> Iterator[Spread]:
    ray = _package("ray", extra="ray")
    share = (workers.gpus or 1) if cuda else 0
    where: dict[str, Any] = {"address": workers.address}
    if workers.address is None:  # "local": not one that happens to run here
        gpus = set(gpu_of_each(workers.count, share=share)) if cuda else ()
        where = {"address": "local", "num_cpus": workers.count, "num_gpus": len(gpus)}
        where["include_dashboard"] = False
    try:
        ray.init(log_to_driver=False, logging_level="ERROR", **where)
    except Exception as error:  # of no class of its own, such as for a node that does not start in time
        ray.shutdown()
        raise OSError(f"Ray did not start: {first_line(error)}") from error

    def each(work: Callable[[Any], Any], jobs: Sequence[Any]) -> Iterator[Any]:
        remote = ray.remote(num_cpus=1, num_gpus=share)(work)
        waiting = [remote.remote(job) for job in jobs]
        while waiting:
            (done,), waiting = ray.wait(waiting)
            try:
                yield ray.get(done)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None

    try:
        with _missing_told(workers, lambda: ray.cluster_resources().get("CPU", 0) >= 1, tell):
            if not ray.get(ray.remote(num_cpus=1)(find_spec).remote(_PACKAGE)):
                raise InvalidInput(
                    f"the workers at {workers.address} lack this package; install sparse-robustness "
                    f"{package_version()} there"
                )
            if ray.cluster_resources().get("GPU", 0) < share:
                raise InvalidInput(
                    f"device is 'cuda', but the Ray cluster has no {share:g} GPUs; "
                    "start its nodes with --num-gpus, or use --device cpu"
                )
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
