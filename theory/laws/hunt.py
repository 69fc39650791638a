"""The hunt for counterexamples: rounds of drawn cases and their mutants, in parallel, the same for a seed.

A round draws a fifth of its cases with Hypothesis, which shrinks a failure it finds. The others are mutants
of those, or of the closest to failing so far: they cost a tenth of a draw and climb towards violations. A law
whose cases are not free, such as a conjecture, gets draws alone, which Hypothesis steers by ``target``; where
mutants climb, that costs more than it finds. Fresh rounds keep Hypothesis's memory of what it tried small.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings, target
from hypothesis.errors import Unsatisfiable, UnsatisfiedAssumption

from theory.laws.claim import BadConjecture
from theory.laws.code import reproduction
from theory.laws.law import Case, Law
from theory.laws.mutation import mutant, simplified
from theory.types import InvalidInput

ROUND = 1000  # examples of a round
DRAWN = 5  # one case in so many is drawn, the others are mutants
AHEAD = 8  # rounds handed out per process, so that none waits for the slowest
ELITE = 20  # cases closest to failing that a round breeds from
HEALTH_CHECKS = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
PHASES = (Phase.generate, Phase.target, Phase.shrink)
_PROVIDERS = "hypothesis.internal.conjecture.providers"


@dataclass(frozen=True)
class Failure:
    """A case in which a law does not hold, as simple as could be found, and what the check said."""

    case: Case
    message: str


@dataclass(frozen=True)
class Tally:
    """What the examples of one law came to: how many, the ratio closest to failing and its case.

    ``drawn`` of the examples are draws, the others mutants. ``ratio`` is NaN and ``tightest`` None where no
    case gave a ratio; ``failure`` is None if the law held. ``seconds`` are the processor's.
    """

    examples: int = 0
    drawn: int = 0
    ratio: float = math.nan
    tightest: Case | None = None
    failure: Failure | None = None
    seconds: float = 0.0

    def plus(self, later: Tally, law: Law) -> Tally:
        """Both together; of two equal ratios the earlier case stays."""
        nearer = law.closeness(later.ratio) > law.closeness(self.ratio)
        return Tally(
            self.examples + later.examples,
            self.drawn + later.drawn,
            later.ratio if nearer else self.ratio,
            later.tightest if nearer else self.tightest,
            self.failure or later.failure,
            self.seconds + later.seconds,
        )


def hunt_round(law: Law, *, examples: int, entropy: int) -> Tally:
    """One round of cases of one law, the same for the same ``entropy``, up to its first failure."""
    started = time.process_time()
    search = _Search(law, np.random.default_rng(entropy))
    if law.free:
        failed = search.draw(-(-examples // DRAWN), entropy) or search.breed(examples)
    else:
        failed = search.draw(examples, entropy)
    if failed is not None and law.free and search.fails(failed):
        failed = simplified(failed, search.fails)
    return Tally(
        search.examples,
        len(search.drawn),
        search.best,
        search.tightest,
        None if failed is None else Failure(failed, search.error(failed)),
        time.process_time() - started,
    )


class _Search:
    """The state of a round: cases drawn, the pool of the closest ones, and how many were tried."""

    def __init__(self, law: Law, rng: np.random.Generator) -> None:
        self.law, self.rng = law, rng
        self.examples, self.best = 0, math.nan
        self.tightest: Case | None = None
        self.nearest = -math.inf
        self.drawn: list[Case] = []
        self.pool: list[tuple[float, Case]] = []  # the closest first

    def draw(self, examples: int, entropy: int) -> Case | None:
        """Cases by Hypothesis; the shrunk one that fails, if any."""
        failing: list[Case] = []

        @seed(entropy)
        @settings(
            max_examples=examples,
            database=None,
            deadline=None,
            phases=PHASES,
            report_multiple_bugs=False,
            suppress_health_check=HEALTH_CHECKS,
        )
        @given(self.law.cases)
        def holds(case: Case) -> None:
            try:
                nearness = self.try_case(case)
            except UnsatisfiedAssumption:
                raise
            except Exception:
                failing.append(case)
                raise
            if not failing:
                self.drawn.append(case)
            if not self.law.free and nearness > -math.inf:
                target(nearness)

        try:
            with _no_literals():
                holds()
        except Unsatisfiable:
            return None
        except BadConjecture as error:
            if not failing:
                raise
            raise BadConjecture(str(error), reproduction(self.law, failing[-1])) from error
        except InvalidInput:
            raise
        except Exception:
            if not failing:  # not the law but the drawing of its cases is at fault
                raise
            return failing[-1]
        return None

    def breed(self, examples: int) -> Case | None:
        """Mutants until so many cases were tried in all; the first that fails, if any."""
        for _ in range(2 * examples):  # no more, where preconditions reject nearly all
            if self.examples >= examples or not self.drawn:
                break
            elite = self.pool and self.rng.random() < 0.5
            parent = self.pool[self.rng.integers(len(self.pool))][1] if elite else self._any()
            child = parent
            try:
                child = mutant(parent, self.rng)
                self.try_case(child)
            except BadConjecture:
                raise
            except (InvalidInput, UnsatisfiedAssumption):
                continue
            except Exception:  # whatever a formula raises breaks its law
                return child
        return None

    def _any(self) -> Case:
        return self.drawn[self.rng.integers(len(self.drawn))]

    def try_case(self, case: Case) -> float:
        """The closeness of a case, which enters the pool if it belongs there."""
        ratio = self.law.ratio(case)
        self.examples += 1
        nearness = self.law.closeness(ratio)
        if nearness > self.nearest:
            self.best, self.tightest, self.nearest = ratio, case, nearness
        if nearness > -math.inf:  # of equal ones the newest stay, so that the pool moves on from ties
            self.pool = sorted([(nearness, case), *self.pool], key=lambda entry: -entry[0])[:ELITE]
        return nearness

    def fails(self, case: Case) -> bool:
        """Whether the law does not hold in a case; a case that a precondition rejects fails nothing."""
        try:
            self.law.ratio(case)
        except (InvalidInput, UnsatisfiedAssumption):
            return False
        except Exception:
            return True
        return False

    def error(self, case: Case) -> str:
        """What the check says of a case that fails."""
        try:
            self.law.ratio(case)
        except AssertionError as error:
            return str(error).strip() or "the check failed"
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return "it failed once only: the check is not deterministic"


def hunt(
    load: Callable[[], tuple[Law, ...]],
    *,
    examples: int,
    jobs: int,
    base: int = 0,
    done: Mapping[str, int] = MappingProxyType({}),
) -> Generator[tuple[Law, Tally], None, None]:
    """Rounds of every law in turn, so many ``examples`` of each; a law that failed is hunted no further.

    ``load`` is a picklable function that gives the laws; every one of the ``jobs`` processes calls it once.
    Of a law named in ``done`` that many examples, whole rounds or all, were tried in an earlier hunt with the
    same ``base``: its later rounds are what they would have been then. Rounds come in the same order with
    the same content whatever the number of processes. Closing the iterator ends the processes.
    """
    laws = load()
    entropy = [np.random.SeedSequence([base, zlib.crc32(law.name.encode())]) for law in laws]
    rounds = [min(ROUND, examples - start) for start in range(0, examples, ROUND)]
    seeds = [sequence.generate_state(len(rounds)) for sequence in entropy]
    units = (
        (k, size, int(seeds[k][r]))
        for r, size in enumerate(rounds)
        for k, law in enumerate(laws)
        if r * ROUND >= done.get(law.name, 0)
    )
    failed: set[int] = set()
    pending: deque[tuple[int, Future[Tally]]] = deque()
    before = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_start, initargs=(load, os.getpid()))
    finished = False
    try:
        while not finished:
            while len(pending) < AHEAD * jobs and (unit := next(units, None)):
                if unit[0] not in failed:
                    with _uninterrupted():  # a process that this starts ignores Ctrl-C from its first moment
                        pending.append((unit[0], pool.submit(_work, *unit)))
            if not pending:
                finished = True
                break
            k, future = pending.popleft()
            if k in failed:
                future.cancel()
                continue
            tally = future.result()
            if tally.failure:
                failed.add(k)
            yield laws[k], tally
    finally:
        pool.shutdown(wait=finished, cancel_futures=True)
        if not finished:
            for process in set(multiprocessing.active_children()) - before:
                process.terminate()


@contextmanager
def _no_literals() -> Generator[None, None, None]:
    """Draws without the literals of local modules, which depend on where the package lies.

    Hypothesis has no setting for it. In a version that keeps them elsewhere nothing is changed.
    """
    hooks = getattr(sys.modules.get(_PROVIDERS), "__dict__", {})
    try:
        before = {name: hooks[name] for name in ("_get_local_constants", "CONSTANTS_CACHE")}
        empty = hooks["Constants"]()
        hooks |= {
            "_get_local_constants": lambda: empty,
            "CONSTANTS_CACHE": type(before["CONSTANTS_CACHE"])(1024),
        }
    except (KeyError, TypeError):
        yield
        return
    try:
        yield
    finally:
        hooks |= before


@contextmanager
def _uninterrupted() -> Generator[None, None, None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


_laws: tuple[Law, ...] = ()  # of this worker


def _start(load: Callable[[], tuple[Law, ...]], parent: int) -> None:
    global _laws
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(1)  # one process per core already
    warnings.simplefilter("ignore")  # an overflow that matters breaks its law
    # What Hypothesis keeps between runs is not for the user's folder.
    os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", str(Path(tempfile.gettempdir()) / "hypothesis"))
    _laws = load()


def _end_with(parent: int) -> None:
    """End this process when the one that started it has ended, even by kill -9."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _work(k: int, examples: int, entropy: int) -> Tally:
    return hunt_round(_laws[k], examples=examples, entropy=entropy)
