"""What sparsity saves: compacted networks and sparse products; CLEVER and exact crossings beside peers.

``python -m benchmarks.compaction --mnist FILE.npz --out benchmarks/results/compaction.csv``, with ART
(``art``, adversarial-robustness-toolbox) on PYTHONPATH (``not installed`` stands where it is missing), or
``--quick`` for a smoke test on scikit-learn's digits. A row is one task at one sparsity:

- **measure**: all attacks of :func:`empirical.measurement.measure`; ``peer`` is the same without compaction,
  whose radii differ by at most a relative 1e-9, or the run stops.
- **first layer**: one product of the examples with the first layer, float64; ``peer`` is a sparse product of
  the same numbers (PyTorch's CSR and SciPy's), or the product without dead inputs and units.
- **CLEVER**: float32; ``peer`` is ART with equal samples.
- **crossing**: the exact first crossing of a module by bands; ``peer`` is a scan and a bisection, or the walk
  through the same network written out.

``seconds`` and ``peer_seconds`` are processor time, one thread; ``ratio`` is how many times slower the peer
is.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import process_time
from unittest.mock import patch

import click
import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from benchmarks.cases import CPU, QUICK, Case, Setup, cases
from benchmarks.floor import seconds
from benchmarks.peers import installed
from benchmarks.tables import Row, save, show
from empirical.attacks import crossings
from empirical.attacks.fgsm import loss_gradient_sign
from empirical.clever import clever
from empirical.compaction import compact, products
from empirical.datasets import Dataset, load
from empirical.ensembles import from_modules, to_module
from empirical.measurement import Measurement, measure

FIELDS = ("task", "sparsity", "examples", "seconds", "peer", "peer_seconds", "ratio", "note")
SETUP = Setup(sparsities=(0.0, 0.9, 0.95, 0.98, 0.99), examples=500, lipschitz_examples=5)
BALL = 2.0  # of CLEVER, l2
BATCHES, BATCH = 50, 100
ART = "art"


def timed(work: Callable[[], object], *, repeats: int) -> float:
    """Median processor seconds of one call."""
    return seconds(work, device=CPU, repeats=max(1, repeats), clock=process_time)


def row(
    task: str, case: Case, examples: int, taken: float, peer: str, other: float | None, note: str = ""
) -> Row:
    """One line of the table."""
    return {
        "task": task,
        "sparsity": case.sparsity,
        "examples": examples,
        "seconds": f"{taken:.3g}",
        "peer": peer,
        "peer_seconds": "" if other is None else f"{other:.3g}",
        "ratio": "" if other is None else f"{other / taken:.3g}",
        "note": note,
    }


def measurements(case: Case, data: Dataset, setup: Setup) -> list[Row]:
    """All attacks with and without compaction."""
    here = Dataset(
        data.name,
        data.x_train[:100],
        np.arange(100) % data.classes,
        case.x.numpy(),
        case.y.numpy(),
        data.classes,
    )

    def run(share: float) -> Measurement:
        with patch("empirical.measurement._SMALL", share):
            return measure(case.ensemble, here, eps=0.1)

    ours, dense = run(0.5), run(-1.0)
    for key, radius in ours.radius.items():
        np.testing.assert_allclose(radius, dense.radius[key], rtol=1e-9)
    small = compact(case.ensemble).network
    widths = "-".join(map(str, (small.inputs, *(w.shape[1] for w in small.weights))))
    note = f"compact {widths}, {products(small) / products(case.ensemble):.3f} of the products"
    times = [timed(partial(run, share), repeats=setup.repeats) for share in (0.5, -1.0)]
    return [row("measure", case, len(case.x), times[0], "without compaction", times[1], note)]


def first_layer(case: Case, setup: Setup) -> list[Row]:
    """One product with the first layer, and what could take its place."""
    weight, x = case.ensemble.weights[0][0], case.x
    small = compact(case.ensemble)
    less, some = small.network.weights[0][0], small.take(x)
    rows = sparse.csr_array(weight.numpy())
    across = np.ascontiguousarray(x.T.numpy())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that sparse tensors are in beta
        csr, columns = weight.to_sparse_csr(), x.T.contiguous()
    density = float((weight != 0).double().mean())
    works: dict[str, Callable[[], object]] = {
        "without dead inputs and units": lambda: some @ less.T,
        "SciPy CSR": lambda: rows @ across,
        "PyTorch CSR": lambda: csr @ columns,
    }
    dense = timed(lambda: x @ weight.T, repeats=setup.repeats)
    note = f"density {density:.3f}"
    return [
        row("first layer", case, len(x), dense, name, timed(work, repeats=setup.repeats), note)
        for name, work in works.items()
    ]


def clever_scores(case: Case, setup: Setup) -> list[Row]:
    """CLEVER beside ART, the same number of samples of float32 gradients, all targets."""
    m = min(setup.lipschitz_examples, len(case.x))
    nets = case.ensemble.to(dtype=torch.float32, device=CPU)
    x, y = case.x[:m].float(), case.y[:m]
    batches, batch = (BATCHES, BATCH) if setup.repeats else (3, 5)
    work = partial(clever, nets, x, y, p=2.0, radius=BALL, batches=batches, batch_size=batch)
    ours = timed(work, repeats=setup.repeats)
    note = f"mean radius {work().radius.mean():.4g}"
    if not installed(ART):
        return [row("CLEVER", case, m, ours, "ART", None, "not installed")]
    estimators = importlib.import_module(f"{ART}.estimators.classification")
    metrics = importlib.import_module(f"{ART}.metrics")
    classifier = estimators.PyTorchClassifier(
        to_module(nets, 0), nn.CrossEntropyLoss(), (x.shape[1],), nets.classes, device_type="cpu"
    )

    def peer() -> list[float]:
        return [
            metrics.clever_u(classifier, one, batches, batch, BALL, 2, verbose=False) for one in x.numpy()
        ]

    note += f", ART {np.mean(peer()):.4g}"
    return [row("CLEVER", case, m, ours, "ART", timed(peer, repeats=1), note)]


def module_crossings(case: Case, setup: Setup) -> list[Row]:
    """The smallest FGS step of a module: bands, and the walk of the same network written out."""
    nets = from_modules([to_module(case.ensemble, 0)], shape=(case.ensemble.inputs,))
    x, y = case.x, case.y
    u: Tensor = loss_gradient_sign(nets, x, y)
    found, scanned = (crossings(nets, x, y, u, bands=bands) for bands in (100, 0))
    missed = int((scanned.at > found.at * (1 + 1e-6)).sum())
    exact = timed(lambda: crossings(nets, x, y, u), repeats=setup.repeats)
    scan = timed(lambda: crossings(nets, x, y, u, bands=0), repeats=setup.repeats)
    walk = timed(lambda: crossings(case.ensemble, x, y, u), repeats=setup.repeats)
    note = f"{float(found.exact.double().mean()):.3f} exact; the scan misses {missed} of {len(x)}"
    return [
        row("crossing", case, len(x), exact, "scan of 64 places, bisection", scan, note),
        row("crossing", case, len(x), exact, "walk (MLP only)", walk),
    ]


def tabulate(data: Dataset, setup: Setup) -> list[Row]:
    """The whole table."""
    table: list[Row] = []
    for case in cases(data, setup):
        table += measurements(case, data, setup) + first_layer(case, setup)
        if case.sparsity in (setup.sparsities[0], setup.sparsities[-1]) or math.isclose(case.sparsity, 0.98):
            table += clever_scores(case, setup) + module_crossings(case, setup)
    return table


@click.command()
@click.option("--mnist", help="MNIST: an .npz file with x_train, y_train, x_test and y_test.")
@click.option("--quick", is_flag=True, help="A smoke test on scikit-learn's digits instead.")
@click.option("--out", type=click.Path(path_type=Path), help="Also write the table as CSV.")
def main(*, mnist: str | None, quick: bool, out: Path | None) -> None:
    """What sparsity saves, on one thread."""
    if (mnist is None) != quick:
        raise click.UsageError("give either --mnist FILE.npz or --quick")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        table = tabulate(load(mnist or "digits"), QUICK if quick else SETUP)
    finally:
        torch.set_num_threads(threads)
    show(table, FIELDS)
    if out:
        save(table, FIELDS, out)


if __name__ == "__main__":
    main()
