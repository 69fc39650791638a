"""When to prune: at once, or round after round with training between; and what training starts from.

The rounds do not know how weights are ranked or trained: they call ``prune(ensemble, sparsity)`` for the
masks (:mod:`empirical.pruning`) and ``retrain(ensemble, level)`` (:mod:`empirical.training`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from empirical.ensembles import AnyEnsemble
from empirical.pruning import Masks
from theory.types import InvalidInput, check_sparsity

Prune = Callable[[AnyEnsemble, float], Masks]
Retrain = Callable[[AnyEnsemble, int], AnyEnsemble]


def rounds(count: int, *, share: float = 1 / 3) -> tuple[float, ...]:
    """Sparsities 0 and 1 - (1 - share)^i for i up to ``count``: each round removes a share of what is left.

    Sixteen rounds of a third end at 99.85 %. Raises: InvalidInput for count < 1 or a share outside (0, 1).
    """
    if count < 1:
        raise InvalidInput(f"count is {count}; there must be at least one round")
    if not 0 < share < 1:
        raise InvalidInput(f"share is {share}; it must lie strictly between 0 and 1")
    return tuple(1 - (1 - share) ** i for i in range(count + 1))


def progressive(
    start: AnyEnsemble,
    sparsities: Sequence[float],
    *,
    prune: Prune[AnyEnsemble],
    retrain: Retrain[AnyEnsemble],
    rewind: AnyEnsemble | None = None,
) -> Iterator[AnyEnsemble]:
    """Prune the networks of the level before, retrain, and yield them, for every sparsity in turn.

    A pruned weight never comes back. Where ``rewind`` is given, the weights that are left go back to its
    values before they are retrained: with the initial weights, lottery tickets.
    Raises: InvalidInput for no sparsities, one outside [0, 1] or one that falls, or another architecture.
    """
    _check_rising(sparsities)
    current = start
    for level, sparsity in enumerate(sparsities):
        masked = current.masked(prune(current, sparsity))
        current = retrain(masked if rewind is None else rewound(masked, rewind), level)
        yield current


def one_shot(
    start: AnyEnsemble,
    sparsities: Sequence[float],
    *,
    prune: Prune[AnyEnsemble],
    retrain: Retrain[AnyEnsemble],
    rewind: AnyEnsemble | None = None,
) -> Iterator[AnyEnsemble]:
    """The same, but every sparsity is reached from ``start`` in one step.

    Raises: InvalidInput as :func:`progressive`.
    """
    _check_rising(sparsities)
    for level, sparsity in enumerate(sparsities):
        masked = start.masked(prune(start, sparsity))
        yield retrain(masked if rewind is None else rewound(masked, rewind), level)


def rewound(ensemble: AnyEnsemble, earlier: AnyEnsemble) -> AnyEnsemble:
    """The networks at an earlier time of their training, with the masks of now.

    All values are the earlier ones: biases and batch-norm too. What was pruned then stays pruned.
    Raises: InvalidInput if the members or architectures differ.
    """
    shapes = [[tuple(mask.shape) for mask in e.masks] for e in (ensemble, earlier)]
    if shapes[0] != shapes[1]:
        raise InvalidInput("earlier holds other networks; give the same members at an earlier time")
    return earlier.masked(ensemble.masks)


def _check_rising(sparsities: Sequence[float]) -> None:
    for sparsity in sparsities:
        check_sparsity("sparsities", sparsity)
    if not sparsities or any(a > b for a, b in zip(sparsities[:-1], sparsities[1:], strict=True)):
        raise InvalidInput(f"sparsities is {list(sparsities)}; give at least one, none below the one before")
