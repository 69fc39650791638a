"""What norms in the first hidden layer's space save DeepFool in l_2 without a box, fully connected networks.

``python -m benchmarks.hidden_norms --mnist FILE.npz --out benchmarks/results/hidden_norms.csv``, or
``--quick`` for a smoke test on scikit-learn's digits. A row is one precision, with the nearest boundary at x
``given``, as a measurement of several attacks has them, or not. ``seconds`` are the fewest processor
seconds of runs in turns, one thread; ``gradients`` the same with a gradient over the inputs for every class,
and ``ratio`` theirs over ours. Distances differ by at most a relative 1e-5 (float32) or 1e-9, or
the run stops.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from time import process_time
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.cases import CPU, QUICK, Case, Setup, cases
from benchmarks.command import on_mnist
from benchmarks.tables import Row
from empirical.attacks import deepfool
from empirical.attacks.nearest import nearest_boundaries
from empirical.datasets import Dataset
from empirical.ensembles import MLPEnsemble

FIELDS = ("precision", "given", "examples", "seconds", "gradients", "ratio", "mean")
SETUP = Setup(sparsities=(0.0,), examples=500, repeats=9)
SAME = {torch.float32: 1e-5, torch.float64: 1e-9}
# What says whether norms are taken in the hidden layer's space; the package's ``deepfool`` is the function.
_SPLIT = importlib.import_module("empirical.attacks.deepfool").HiddenNorms


def timed(work: Callable[[], Tensor], taken: list[float]) -> Tensor:
    """The work's value, its processor seconds added to the list."""
    started = process_time()
    value = work()
    taken.append(process_time() - started)
    return value


def row(case: Case, dtype: torch.dtype, *, given: bool, repeats: int) -> Row:
    """Both ways in turns. Raises: AssertionError if their distances differ."""
    assert isinstance(case.ensemble, MLPEnsemble)
    nets, x = case.ensemble.to(dtype=dtype, device=CPU), case.x.to(dtype)
    nearest = nearest_boundaries(nets, x, case.y)[2.0, None] if given else None
    attack = partial(deepfool, nets, x, case.y, p=2.0, nearest=nearest)
    ours: list[float] = []
    theirs: list[float] = []
    distance = x.new_zeros(len(x))
    for _ in range(repeats + 1):
        distance = timed(lambda: (attack()[0][0] - x).norm(dim=1), ours)
        with patch.object(_SPLIT, "of", lambda nets: None):
            plain = timed(lambda: (attack()[0][0] - x).norm(dim=1), theirs)
        torch.testing.assert_close(distance, plain, rtol=SAME[dtype], atol=0)
    return {
        "precision": str(dtype).removeprefix("torch."),
        "given": given,
        "examples": len(x),
        "seconds": f"{min(ours):.3g}",
        "gradients": f"{min(theirs):.3g}",
        "ratio": f"{min(theirs) / min(ours):.2f}",
        "mean": f"{float(distance.mean()):.4f}",
    }


def tabulate(data: Dataset, setup: Setup) -> list[Row]:
    """Both ways in both precisions."""
    (case, *_) = cases(data, setup)
    settings = [(dtype, given) for dtype in SAME for given in (False, True)]
    return [row(case, dtype, given=given, repeats=setup.repeats) for dtype, given in settings]


main = on_mnist(
    lambda data, quick: tabulate(data, QUICK if quick else SETUP),
    FIELDS,
    "DeepFool's norms in the hidden layer's space beside gradients over the inputs",
)


if __name__ == "__main__":
    main()
