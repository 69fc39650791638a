"""What sparsity saves: compacted networks and sparse products; CLEVER and exact crossings beside peers.

``python -m benchmarks.compaction --mnist FILE.npz --out benchmarks/results/compaction.csv``, with ART
(``art``, adversarial-robustness-toolbox) on PYTHONPATH (``not installed`` stands where it is missing), or
``--quick`` for a smoke test on scikit-learn's digits. A row is one task at one sparsity:

- **measure**: attacks of :func:`empirical.measurement.measure`; ``peer`` is the same without compaction and
  without sparse products. Radii of ``fgs`` and ``deepfool`` differ by at most a relative 1e-9, or the run
  stops; those of searches in float32 as far as their rounding leads them: ``note`` has the means.
- **layer**: sparse products of the examples with the first layer of the compact network, outputs and input
  gradients, stored along the examples; ``peer`` is the dense products, or SciPy's CSR product for the outputs
  alone. ``note`` says whether attacks choose sparse ones.
- **certificate**, **local Lipschitz**: certified radii and constants by ``theory.graph``, which leaves dead
  parts out; ``peer`` is the whole network. They differ by at most a relative 1e-9, or the run stops.
- **CLEVER**: float32; ``peer`` is ART with equal samples. **CLEVER, fits** is the part of it that is not
  gradients.
- **crossing**: the exact first crossing of a module by bands; ``peer`` is a scan and a bisection, or the walk
  through the same network written out.

``seconds`` and ``peer_seconds`` are processor time, one thread, the smallest of a few runs; ``ratio`` is how
many times slower the peer is.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from time import process_time
from typing import TypeVar
from unittest.mock import patch

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from benchmarks.cases import CPU, QUICK, Case, Setup, cases
from benchmarks.command import on_mnist
from benchmarks.peers import installed
from benchmarks.tables import Row
from empirical.attacks import crossings
from empirical.attacks.fgsm import loss_gradient_sign
from empirical.clever import clever
from empirical.compaction import compact, products
from empirical.datasets import Dataset
from empirical.ensembles import MLPEnsemble, from_modules, to_module
from empirical.ensembles.layers import Layer, compressed
from empirical.measurement import Measurement, measure
from empirical.results import NORMS
from empirical.reverse_weibull import end_points
from theory import graph

FIELDS = ("task", "sparsity", "examples", "seconds", "peer", "peer_seconds", "ratio", "note")
SETUP = Setup(sparsities=(0.0, 0.9, 0.95, 0.98, 0.99), examples=500, lipschitz_examples=5)
BALL = 2.0  # of CLEVER, l2
BATCHES, BATCH = 50, 100
ART = "art"
ATTACKS = (("fgs", "deepfool"), ("ddn",), ("fmn",))
CERTIFIED = 100
BALLS = {2.0: 0.2, math.inf: 0.02}  # radii of those with local Lipschitz constants
Found = TypeVar("Found")
SAME = 1e-9  # relative difference of radii in float64
UNDERFLOW = 1e-290  # of constants that are 0, allowances are left


def timed(*works: Callable[[], Found], repeats: int) -> list[tuple[float, Found]]:
    """The fewest processor seconds of each work, in turns, and its value: other programs only add to them."""
    turns: list[list[tuple[float, Found]]] = []
    for _ in range(repeats + 1):
        turn = []
        for work in works:
            started = process_time()
            value = work()
            turn.append((process_time() - started, value))
        turns.append(turn)
    return [min(runs, key=lambda run: run[0]) for runs in zip(*turns, strict=True)]


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
    """Attacks with and without compaction and sparse products."""
    here = replace(data, x_test=case.x.numpy(), y_test=case.y.numpy())
    small = compact(case.ensemble).network
    widths = "-".join(map(str, (small.inputs, *(w.shape[1] for w in small.weights))))
    size = f"compact {widths}, {products(small) / products(case.ensemble):.3f} of the products"

    def ours(attacks: tuple[str, ...]) -> Measurement:
        return measure(_fresh(case.ensemble), here, eps=0.1, attacks=attacks)

    def dense(attacks: tuple[str, ...]) -> Measurement:
        with patch("empirical.compaction.SMALL", -1.0), patch("empirical.ensembles.layers.MOST_DENSE", -1.0):
            return ours(attacks)

    table: list[Row] = []
    for attacks in ATTACKS:
        runs = timed(partial(ours, attacks), partial(dense, attacks), repeats=setup.repeats)
        (taken, (found, whole)) = zip(*runs, strict=True)
        if attacks == ATTACKS[0]:
            note = size
            for key, radius in found.radius.items():
                np.testing.assert_allclose(radius, whole.radius[key], rtol=SAME)
        else:
            means = [
                f"{radius.mean():.6g} and {whole.radius[key].mean():.6g}"
                for key, radius in found.radius.items()
                if key[1] != "best"
            ]
            note = f"mean radii {', '.join(means)}"
        name = f"measure {', '.join(attacks)}"
        table.append(row(name, case, len(case.x), taken[0], "dense, whole network", taken[1], note))
    return table


def _fresh(nets: MLPEnsemble) -> MLPEnsemble:
    """The same networks, whose layers have not been compressed yet."""
    return MLPEnsemble(nets.weights, nets.biases, nets.masks)


def first_layer(case: Case, setup: Setup) -> list[Row]:
    """The products with the first layer of the compact network, in both precisions."""
    small, table = compact(case.ensemble), []
    for dtype in (torch.float32, torch.float64):
        weight, x = small.network.weights[0].to(dtype), small.take(case.x).to(dtype)[None]
        bias, c = weight.new_zeros(weight.shape[:2]), torch.rand(1, len(case.x), weight.shape[1], dtype=dtype)
        dense, csr = Layer(weight, (None,)), Layer(weight, (compressed(weight[0]),))
        rows, across = sparse.csr_array(weight[0].numpy()), np.ascontiguousarray(x[0].T.numpy())

        stored = x.mT.contiguous().mT

        def both(layer: Layer, x: Tensor, bias: Tensor = bias, c: Tensor = c) -> None:
            layer.forward(x, bias)
            layer.backward(c)

        works = (partial(both, csr, stored), partial(both, dense, x), partial(rows.__matmul__, across))
        times = [taken for taken, _ in timed(*works, repeats=10 * setup.repeats)]
        share = float((weight != 0).double().mean())
        chosen = "chosen" if Layer.of(weight).is_sparse else "not chosen"
        note = f"{weight.shape[2]}-{weight.shape[1]}, density {share:.3f}, {chosen}"
        name = f"layer, {str(dtype).removeprefix('torch.')}"
        table.append(row(name, case, len(case.x), times[0], "dense product", times[1], note))
        table.append(row(name, case, len(case.x), times[0], "SciPy CSR, outputs only", times[2], note))
    return table


def certificates(case: Case, setup: Setup) -> list[Row]:
    """Certified radii and local Lipschitz constants with and without compaction."""
    table: list[Row] = []
    net = graph.from_relu_network(case.net)
    x, y = case.x[:CERTIFIED], case.y[:CERTIFIED]
    for p, norm in NORMS.items():
        balls = torch.full((len(x),), BALLS[p], dtype=torch.float64)
        works = {
            "certificate": partial(graph.certified_radius, net, x, y, p=p),
            "local Lipschitz": partial(graph.local_lipschitz, net, x, y, p=p, radius=balls),
        }
        for task, ours in works.items():
            (times, (found, other)) = zip(
                *timed(ours, partial(_uncompacted, ours), repeats=setup.repeats), strict=True
            )
            np.testing.assert_allclose(found, other, rtol=SAME, atol=UNDERFLOW)
            note = f"mean {found.mean():.6g}"
            table.append(row(f"{task} {norm}", case, len(x), times[0], "whole network", times[1], note))
    return table


def _uncompacted(work: Callable[[], Tensor]) -> Tensor:
    with (
        patch("theory.graph.certificate.compacted", lambda net, x: (net, x)),
        patch("theory.graph.lipschitz.compacted", lambda net, x: (net, x)),
    ):
        return work()


def clever_scores(case: Case, setup: Setup) -> list[Row]:
    """CLEVER beside ART, the same number of samples of float32 gradients, all targets."""
    m = min(setup.lipschitz_examples, len(case.x))
    nets = case.ensemble.to(dtype=torch.float32, device=CPU)
    x, y = case.x[:m].float(), case.y[:m]
    batches, batch = (BATCHES, BATCH) if setup.repeats else (3, 5)
    work = partial(clever, nets, x, y, p=2.0, radius=BALL, batches=batches, batch_size=batch)
    with patch("empirical.clever.end_points", wraps=end_points) as fits:
        ((ours, found),) = timed(work, repeats=setup.repeats)
    note = f"mean radius {found.radius.mean():.4g}"
    ((fitting, _),) = timed(partial(end_points, *fits.call_args.args), repeats=setup.repeats)
    table = [row("CLEVER, fits", case, m, fitting, "", None, f"{fitting / ours:.2f} of CLEVER")]
    if not installed(ART):
        return [row("CLEVER", case, m, ours, "ART", None, "not installed"), *table]
    estimators = importlib.import_module(f"{ART}.estimators.classification")
    metrics = importlib.import_module(f"{ART}.metrics")
    classifier = estimators.PyTorchClassifier(
        to_module(nets, 0), nn.CrossEntropyLoss(), (x.shape[1],), nets.classes, device_type="cpu"
    )

    def peer() -> list[float]:
        return [
            metrics.clever_u(classifier, one, batches, batch, BALL, 2, verbose=False) for one in x.numpy()
        ]

    ((theirs, scores),) = timed(peer, repeats=0)
    return [row("CLEVER", case, m, ours, "ART", theirs, f"{note}, ART {np.mean(scores):.4g}"), *table]


def module_crossings(case: Case, setup: Setup) -> list[Row]:
    """The smallest FGS step of a module: bands, and the walk of the same network written out."""
    nets = from_modules([to_module(case.ensemble, 0)], shape=(case.ensemble.inputs,))
    x, y = case.x, case.y
    u: Tensor = loss_gradient_sign(nets, x, y)
    found, scanned = (crossings(nets, x, y, u, bands=bands) for bands in (100, 0))
    missed = int((scanned.at > found.at * (1 + 1e-6)).sum())
    works = (
        lambda: crossings(nets, x, y, u),
        lambda: crossings(nets, x, y, u, bands=0),
        lambda: crossings(case.ensemble, x, y, u),
    )
    exact, scan, walk = (taken for taken, _ in timed(*works, repeats=setup.repeats))
    note = f"{float(found.exact.double().mean()):.3f} exact; the scan misses {missed} of {len(x)}"
    return [
        row("crossing", case, len(x), exact, "scan of 64 places, bisection", scan, note),
        row("crossing", case, len(x), exact, "walk (MLP only)", walk),
    ]


def tabulate(data: Dataset, setup: Setup) -> list[Row]:
    """The whole table."""
    table: list[Row] = []
    for case in cases(data, setup):
        table += measurements(case, data, setup) + first_layer(case, setup) + certificates(case, setup)
        if case.sparsity in (setup.sparsities[0], setup.sparsities[-1]) or math.isclose(case.sparsity, 0.98):
            table += clever_scores(case, setup) + module_crossings(case, setup)
    return table


main = on_mnist(lambda data, quick: tabulate(data, QUICK if quick else SETUP), FIELDS, "What sparsity saves")


if __name__ == "__main__":
    main()
