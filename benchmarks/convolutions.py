"""What sparsity saves on LeNet-5: attacks on the network without dead channels and units.

``python -m benchmarks.convolutions --mnist FILE.npz --out benchmarks/results/convolutions.csv``, or
``--quick`` for a smoke test on scikit-learn's digits. A row is one attack at one sparsity, layer-wise
magnitude pruning from level to level, each trained again for an epoch: ``seconds`` are those of
:func:`empirical.measurement.measure`, ``whole_seconds`` those of the same without
:func:`empirical.compaction.smaller_stack`, processor time, one thread, medians of ``runs`` in turns after one
to warm up (what takes more than 10 s runs once, without); ``least`` and ``most``, ``whole_least`` and
``whole_most`` the smallest and the largest; ``ratio`` is how many times slower the whole network is. Radii of
``fgs`` differ by at most a relative 1e-9, means of the others, and how many they find, by 1 %, or the run
stops; ``note`` has both.
``channels`` are what is left of the two convolutions' and the hidden layer's outputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.cases import CPU
from benchmarks.command import on_mnist
from benchmarks.compaction import SAME, same_searches
from benchmarks.tables import Row
from benchmarks.turns import TIMES, in_turns
from empirical.compaction import smaller_stack
from empirical.datasets import Dataset
from empirical.ensembles import ModuleEnsemble, initialise_modules
from empirical.measurement import Measurement, measure
from empirical.models import lenet5
from empirical.pruning import magnitude_masks
from empirical.training.train import Recipe, train

FIELDS: tuple[str, ...] = (
    "attack",
    "sparsity",
    "examples",
    "channels",
    *TIMES,
    *(f"whole_{column}" for column in TIMES),
    "ratio",
    "note",
)
SPARSITIES, EXAMPLES, REPEATS = (0.0, 0.8, 0.9, 0.95, 0.98, 0.99), 100, 3
ATTACKS = ("fgs", "rfgs", "deepfool", "fmn", "cw")
RECIPE = Recipe(epochs=1, learning_rate=0.01)
SHAPE = (1, 28, 28)


def pruned(data: Dataset, sparsities: tuple[float, ...]) -> Iterator[tuple[float, ModuleEnsemble]]:
    """LeNet-5 at every sparsity, in float64."""
    x, y = torch.tensor(data.x_train, dtype=torch.float32), torch.tensor(data.y_train)
    nets = initialise_modules(lenet5, shape=SHAPE, seeds=[0], device=CPU)
    for sparsity in sparsities:
        nets = train(nets.masked(magnitude_masks(nets, sparsity=sparsity)), x, y, RECIPE, seeds=[0])
        yield sparsity, nets.to(dtype=torch.float64, device=CPU)


def tabulate(data: Dataset, *, quick: bool) -> Iterator[Row]:
    """The whole table."""
    if quick:  # digits as large as LeNet-5 takes images
        grown = {part: _grown(getattr(data, part)[:500]) for part in ("x_train", "x_test")}
        data = replace(data, **grown, y_train=data.y_train[:500], y_test=data.y_test[:500], shape=SHAPE)
    count = 5 if quick else EXAMPLES
    here = replace(data, x_test=data.x_test[:count], y_test=data.y_test[:count])
    for sparsity, nets in pruned(data, SPARSITIES[::4] if quick else SPARSITIES):
        small = smaller_stack(nets)
        left = "-".join(str(weight.shape[1]) for weight in (small or nets).weights[:-1])
        for attack in ATTACKS:
            compacted = partial(measure, nets, here, eps=0.1, attacks=(attack,))
            works = {"ours": compacted, "whole": partial(_whole, compacted)}
            ours, whole = in_turns(works, repeats=0 if quick else REPEATS).values()
            if attack == "fgs":
                for key, radius in ours.value.radius.items():
                    np.testing.assert_allclose(radius, whole.value.radius[key], rtol=SAME)
            yield {
                "attack": attack,
                "sparsity": sparsity,
                "examples": count,
                "channels": left,
                **ours.columns(),
                **{f"whole_{column}": value for column, value in whole.columns().items()},
                "ratio": f"{whole.seconds / ours.seconds:.3g}",
                "note": same_searches(ours.value, whole.value),
            }


def _whole(measurement: partial[Measurement]) -> Measurement:
    with patch("empirical.compaction.SMALL_STACK", -1.0):
        return measurement()


def _grown(x: np.ndarray) -> np.ndarray:
    """Images of 8 x 8 as 28 x 28, each pixel three times three, on a black ground."""
    large = x.reshape(-1, 8, 8).repeat(3, axis=1).repeat(3, axis=2)
    return np.pad(large, ((0, 0), (2, 2), (2, 2))).reshape(len(x), -1)


main = on_mnist(lambda data, quick: tabulate(data, quick=quick), FIELDS, "What sparsity saves on LeNet-5")


if __name__ == "__main__":
    main()
