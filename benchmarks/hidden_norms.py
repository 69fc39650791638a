"""What norms in the first hidden layer's space save DeepFool in l_2 without a box, fully connected networks.

``python -m benchmarks.hidden_norms --mnist FILE.npz --out benchmarks/results/hidden_norms.csv``, or
``--quick`` for a smoke test on scikit-learn's digits. A row is one precision, with the nearest boundary at x
``given``, as a measurement of several attacks has them, or not. ``seconds`` is the median processor time of
``runs`` in turns, one thread, after one to warm up, ``least`` and ``most`` the smallest and the largest;
``gradients`` the median with a gradient over the inputs for every class, and ``ratio`` that over ours.
Distances differ by at most a relative 1e-5 (float32) or 1e-9, or the run stops.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from functools import partial
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.cases import CPU, QUICK, Case, Setup, cases
from benchmarks.command import on_mnist
from benchmarks.floor import precision
from benchmarks.tables import Row
from benchmarks.turns import TIMES, in_turns
from empirical.attacks import deepfool
from empirical.attacks.nearest import nearest_boundaries
from empirical.datasets import Dataset
from empirical.ensembles import MLPEnsemble

FIELDS = ("precision", "given", "examples", *TIMES, "gradients", "ratio", "mean")
SETUP = Setup(sparsities=(0.0,), examples=500, repeats=9)
SAME = {torch.float32: 1e-5, torch.float64: 1e-9}
# What says whether norms are taken in the hidden layer's space; the package's ``deepfool`` is the function.
_SPLIT = importlib.import_module("empirical.attacks.deepfool").HiddenNorms


def row(case: Case, dtype: torch.dtype, *, given: bool, repeats: int) -> Row:
    """Both ways in turns. Raises: AssertionError if their distances differ."""
    assert isinstance(case.ensemble, MLPEnsemble)
    nets, x = case.ensemble.to(dtype=dtype, device=CPU), case.x.to(dtype)
    nearest = nearest_boundaries(nets, x, case.y)[2.0, None] if given else None
    attack = partial(deepfool, nets, x, case.y, p=2.0, nearest=nearest)

    def ours() -> Tensor:
        return (attack()[0][0] - x).norm(dim=1)

    def by_gradients() -> Tensor:
        with patch.object(_SPLIT, "of", lambda nets: None):
            return ours()

    timed = in_turns({"ours": ours, "gradients": by_gradients}, repeats=repeats)
    distance, plain = timed["ours"], timed["gradients"]
    torch.testing.assert_close(distance.value, plain.value, rtol=SAME[dtype], atol=0)
    return {
        "precision": precision(dtype),
        "given": given,
        "examples": len(x),
        **distance.columns(),
        "gradients": f"{plain.seconds:.3g}",
        "ratio": f"{plain.seconds / distance.seconds:.2f}",
        "mean": f"{float(distance.value.mean()):.4f}",
    }


def tabulate(data: Dataset, setup: Setup) -> Iterator[Row]:
    """Both ways in both precisions."""
    (case, *_) = cases(data, setup)
    settings = [(dtype, given) for dtype in SAME for given in (False, True)]
    return (row(case, dtype, given=given, repeats=setup.repeats) for dtype, given in settings)


main = on_mnist(
    lambda data, quick: tabulate(data, QUICK if quick else SETUP),
    FIELDS,
    "DeepFool's norms in the hidden layer's space beside gradients over the inputs",
)


if __name__ == "__main__":
    main()
