"""What removing more weights from a network would do: measured without retraining, split, and predicted.

A level is the share of the weights still there that every layer loses: those of smallest magnitude, or random
ones. The rows are those of a run of experiments, with ``pruning`` ``one-shot`` or ``random``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from numbers import Real

from empirical.comparison import split_change
from empirical.datasets import Dataset, Examples
from empirical.ensembles import Ensemble, MLPEnsemble
from empirical.mask_comparison import predict_masks
from empirical.measurement import Measurement, measure, measured_rows
from empirical.own_network.accuracies import MORE, correct
from empirical.pruning import bernoulli_masks, magnitude_masks
from empirical.results import Members, Rows
from theory.types import InvalidInput

# The smallest FGS step and DeepFool pulled back to its boundary: fast, and within some percent of the best.
FAST = ("fgs", "deepfool")
# Independent masks per level of random pruning.
DRAWS = 3


def check_levels(levels: Sequence[float]) -> tuple[float, ...]:
    """The levels, rising. Raises: InvalidInput unless there is one and all lie in (0, 1), each once."""
    inside = [isinstance(level, Real) and 0 < level < 1 for level in levels]
    if not levels or not all(inside) or len(set(levels)) < len(levels):
        raise InvalidInput(
            f"removed is {list(levels)}; give shares of the remaining weights between 0 and 1, each once"
        )
    return tuple(sorted(levels))


def units(
    network: Ensemble,
    layers: MLPEnsemble | None,
    data: Dataset,
    tested: Examples,
    levels: Sequence[float],
    *,
    family: str,
    eps: float,
    box: bool = False,
) -> Iterator[tuple[str, Callable[[], list[Rows]]]]:
    """Parts of the work by name: the given network, every level of both criteria, and the prediction.

    ``network`` has one member, ``layers`` is the same as a fully connected network where it is one: only
    then random masks can be predicted. Radii and accuracy are measured on ``data``; the accuracy of the given
    network and without its smallest weights, on which ``harmless`` decides, on ``tested`` too.
    """

    def measured(nets: Ensemble) -> Measurement:
        return measure(nets, data, eps=eps, attacks=FAST, box=box)

    given = cache(lambda: measured(network))
    start = float(network.sparsity()[0])

    def rows(nets: Ensemble, pruning: str, level: float) -> list[Rows]:
        count = nets.members
        members = Members(
            data.name, family, [pruning] * count, [level] * count, nets.sparsity().tolist(), [*range(count)]
        )
        found = given() if level == 0 else measured(nets)
        own = measured_rows(members, found, data, eps=eps)
        if pruning == "one-shot":
            right = correct(nets, tested).double().mean(1).numpy()
            own.append(Rows(members, right, quantity="accuracy", method=MORE, kind="measured"))
            own += split_change(members, found, given(), data) if level > 0 else []
        return own

    yield "given", lambda: rows(network, "one-shot", 0.0)
    for level in levels:
        yield (
            f"one-shot-{level:g}",
            lambda level=level: rows(smallest_removed(network, level), "one-shot", level),
        )
        yield f"random-{level:g}", lambda level=level: rows(random_removed(network, level), "random", level)
    if layers is not None:
        members = Members(data.name, family, ["random"], [0.0], [start], [0])
        yield "predicted", lambda: predict_masks(members, layers, data, (0.0, *levels))


def smallest_removed(network: Ensemble, share: float) -> Ensemble:
    """The one network without this share of every layer's remaining weights, the smallest."""
    masks = list(network.masks)
    for i, mask in enumerate(network.masks):
        gone = 1 - float(mask.double().mean())
        masks[i] = magnitude_masks(network, sparsity=gone + (1 - gone) * share, layers=[i])[i]
    return network.masked(tuple(masks))


def random_removed(network: Ensemble, share: float) -> Ensemble:
    """``DRAWS`` copies of the one network, each remaining weight removed with this probability."""
    copies = network.select([0] * DRAWS)
    return copies.masked(bernoulli_masks(copies, sparsity=share, seeds=range(DRAWS)))
