"""What sparsity saves: compacted networks and sparse products; CLEVER and exact crossings beside peers.

``python -m benchmarks.compaction --mnist FILE.npz --out benchmarks/results/compaction.csv``, with ART
(adversarial-robustness-toolbox) on PYTHONPATH (``not installed`` stands where it is missing), or
``--quick`` for a smoke test on scikit-learn's digits. A row is one task at one sparsity:

- **measure**: attacks of :func:`empirical.measurement.measure`; ``peer`` is the same without compaction and
  without sparse products. Radii of ``fgs`` and ``deepfool`` differ by at most a relative 1e-9, or the run
  stops; searches in float32 go as far as their rounding leads them: means of what they find, and how many,
  differ by at most 1 %, or the run stops; ``note`` has both.
- **layer**: sparse products of the examples with the first layer of the compact network, outputs and input
  gradients, stored along the examples; ``peer`` is the dense products, or SciPy's CSR product for the outputs
  alone. ``note`` says whether attacks choose sparse ones.
- **certificate**, **local Lipschitz**: certified radii and constants by ``theory.graph``, which leaves dead
  parts out; ``peer`` is the whole network. They differ by at most a relative 1e-9, or the run stops.
- **CLEVER**: float32; ``peer`` is ART with equal samples. **CLEVER, fits** is the part of it that is not
  gradients. Both estimate the least margin over the largest gradient in the ball: ``score``, ``peer_score``
  and ``most_score``, which the largest of 20,000 other gradients leaves at most, all means.
- **crossing**: the exact first crossing of a module by bands; ``peer`` is a scan and a bisection, or the walk
  through the same network written out.

``seconds`` and ``peer_seconds`` are processor time, one thread, the medians of ``runs`` in turns after one to
warm up; ``least`` and ``most``, ``peer_least`` and ``peer_most`` the smallest and the largest; ``ratio`` is
how many times slower the peer is.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from unittest.mock import patch

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from benchmarks.attack_peers import ART
from benchmarks.cases import CPU, QUICK, Case, Setup, cases
from benchmarks.certificates import ABSENT, sampled_constants
from benchmarks.command import on_mnist
from benchmarks.floor import precision
from benchmarks.peers import installed
from benchmarks.tables import Row
from benchmarks.turns import TIMES, Timed, in_turns
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

FIELDS: tuple[str, ...] = (
    "task",
    "sparsity",
    "examples",
    *TIMES,
    "peer",
    *(f"peer_{column}" for column in TIMES),
    "ratio",
    "score",
    "peer_score",
    "most_score",
    "note",
)
SETUP = Setup(sparsities=(0.0, 0.9, 0.95, 0.98, 0.99), examples=500, lipschitz_examples=5)
BALL = 2.0  # of CLEVER, l2
BATCHES, BATCH = 50, 100
SAMPLES = 20_000
ATTACKS = (("fgs", "deepfool"), ("ddn",), ("fmn",))
CERTIFIED = 100
BALLS = {2.0: 0.2, math.inf: 0.02}  # radii of those with local Lipschitz constants
SAME = 1e-9  # relative difference of radii in float64
MEANS = 1e-2  # of means of searches, whose steps rounding may turn elsewhere, and of how many they find
UNDERFLOW = 1e-290  # of constants that are 0, allowances are left


def row(
    task: str, case: Case, examples: int, ours: Timed, peer: str, theirs: Timed | None, note: str = ""
) -> Row:
    """One line of the table."""
    line: Row = {"task": task, "sparsity": case.sparsity, "examples": examples, "peer": peer, "note": note}
    line |= ours.columns()
    if theirs:
        line |= {f"peer_{column}": value for column, value in theirs.columns().items()}
        line["ratio"] = f"{theirs.seconds / ours.seconds:.3g}"
    return line


def same_searches(found: Measurement, whole: Measurement) -> str:
    """How many examples each search found, at which mean distance. Raises: AssertionError if not alike."""
    told = []
    for key, radius in found.radius.items():
        if key[1] != "best":
            pair = radius, whole.radius[key]
            counts = [int(np.isfinite(r).sum()) for r in pair]
            means = [float(r[np.isfinite(r)].mean()) for r in pair]
            np.testing.assert_allclose(counts[0], counts[1], rtol=MEANS)
            np.testing.assert_allclose(means[0], means[1], rtol=MEANS)
            told.append(f"{means[0]:.6g} ({counts[0]}) and {means[1]:.6g} ({counts[1]})")
    return f"mean radii (found) {', '.join(told)}"


def measurements(case: Case, data: Dataset, setup: Setup) -> Iterator[Row]:
    """Attacks with and without compaction and sparse products."""
    here = replace(data, x_test=case.x.numpy(), y_test=case.y.numpy())
    small = compact(case.ensemble).network
    widths = "-".join(map(str, (small.inputs, *(w.shape[1] for w in small.weights))))
    size = f"compact {widths}, {products(small) / products(case.ensemble):.3f} of the products"

    def compacted(attacks: tuple[str, ...]) -> Measurement:
        return measure(_fresh(case.ensemble), here, eps=0.1, attacks=attacks)

    def dense(attacks: tuple[str, ...]) -> Measurement:
        with patch("empirical.compaction.SMALL", -1.0), patch("empirical.ensembles.layers.MOST_DENSE", -1.0):
            return compacted(attacks)

    for attacks in ATTACKS:
        works = {"ours": partial(compacted, attacks), "peer": partial(dense, attacks)}
        ours, peer = in_turns(works, repeats=setup.repeats).values()
        if attacks == ATTACKS[0]:
            note = size
            for key, radius in ours.value.radius.items():
                np.testing.assert_allclose(radius, peer.value.radius[key], rtol=SAME)
        else:
            note = same_searches(ours.value, peer.value)
        yield row(
            f"measure {', '.join(attacks)}", case, len(case.x), ours, "dense, whole network", peer, note
        )


def _fresh(nets: MLPEnsemble) -> MLPEnsemble:
    """The same networks, whose layers have not been compressed yet."""
    return MLPEnsemble(nets.weights, nets.biases, nets.masks)


def first_layer(case: Case, setup: Setup) -> Iterator[Row]:
    """The products with the first layer of the compact network, in both precisions."""
    small = compact(case.ensemble)
    for dtype in (torch.float32, torch.float64):
        weight, x = small.network.weights[0].to(dtype), small.take(case.x).to(dtype)[None]
        bias, c = weight.new_zeros(weight.shape[:2]), torch.rand(1, len(case.x), weight.shape[1], dtype=dtype)
        dense, csr = Layer(weight, (None,)), Layer(weight, (compressed(weight[0]),))
        rows, across = sparse.csr_array(weight[0].numpy()), np.ascontiguousarray(x[0].T.numpy())

        stored = x.mT.contiguous().mT

        def both(layer: Layer, x: Tensor, bias: Tensor = bias, c: Tensor = c) -> None:
            layer.forward(x, bias)
            layer.backward(c)

        works: dict[str, Callable[[], object]] = {
            "ours": partial(both, csr, stored),
            "dense product": partial(both, dense, x),
            "SciPy CSR, outputs only": partial(rows.__matmul__, across),
        }
        timed = in_turns(works, repeats=10 * setup.repeats)
        share = float((weight != 0).double().mean())
        chosen = "chosen" if Layer.of(weight).is_sparse else "not chosen"
        note = f"{weight.shape[2]}-{weight.shape[1]}, density {share:.3f}, {chosen}"
        ours = timed.pop("ours")
        for peer, theirs in timed.items():
            yield row(f"layer, {precision(dtype)}", case, len(case.x), ours, peer, theirs, note)


def certificates(case: Case, setup: Setup) -> Iterator[Row]:
    """Certified radii and local Lipschitz constants with and without compaction."""
    net = graph.from_relu_network(case.net)
    x, y = case.x[:CERTIFIED], case.y[:CERTIFIED]
    for p, norm in NORMS.items():
        balls = torch.full((len(x),), BALLS[p], dtype=torch.float64)
        tasks = {
            "certificate": partial(graph.certified_radius, net, x, y, p=p),
            "local Lipschitz": partial(graph.local_lipschitz, net, x, y, p=p, radius=balls),
        }
        for task, work in tasks.items():
            works = {"ours": work, "peer": partial(_uncompacted, work)}
            ours, peer = in_turns(works, repeats=setup.repeats).values()
            np.testing.assert_allclose(ours.value, peer.value, rtol=SAME, atol=UNDERFLOW)
            note = f"mean {ours.value.mean():.6g}"
            yield row(f"{task} {norm}", case, len(x), ours, "whole network", peer, note)


def _uncompacted(work: Callable[[], Tensor]) -> Tensor:
    with (
        patch("theory.graph.certificate.compacted", lambda net, x: (net, x)),
        patch("theory.graph.lipschitz.compacted", lambda net, x: (net, x)),
    ):
        return work()


def clever_scores(case: Case, setup: Setup) -> Iterator[Row]:
    """CLEVER beside ART, the same number of samples of float32 gradients, all targets."""
    m = min(setup.lipschitz_examples, len(case.x))
    nets = case.ensemble.to(dtype=torch.float32, device=CPU)
    x, y = case.x[:m].float(), case.y[:m]
    batches, batch = (BATCHES, BATCH) if setup.repeats else (3, 5)

    def ours() -> np.ndarray:
        return clever(nets, x, y, p=2.0, radius=BALL, batches=batches, batch_size=batch).radius

    works: dict[str, Callable[[], np.ndarray]] = {"ours": ours}
    if installed(ART):
        works["ART"] = _clever_by_art(nets, x, batches=batches, batch=batch)
    timed = in_turns(works, repeats=setup.repeats)
    line = row("CLEVER", case, m, timed["ours"], "ART", timed.get("ART"), "" if installed(ART) else ABSENT)
    scores = {"score": timed["ours"].value, "most_score": _most_scores(case, m, setup)}
    if "ART" in timed:
        scores["peer_score"] = timed["ART"].value
    yield line | {name: f"{value.mean():.4g}" for name, value in scores.items()}
    with patch("empirical.clever.end_points", wraps=end_points) as fits:
        ours()
    work = {"fits": partial(end_points, *fits.call_args.args)}
    fitting = in_turns(work, repeats=setup.repeats)["fits"]
    note = f"{fitting.seconds / timed['ours'].seconds:.2f} of CLEVER"
    yield row("CLEVER, fits", case, m, fitting, "", None, note)


def _clever_by_art(nets: MLPEnsemble, x: Tensor, *, batches: int, batch: int) -> Callable[[], np.ndarray]:
    estimators = importlib.import_module("art.estimators.classification")
    metrics = importlib.import_module("art.metrics")
    classifier = estimators.PyTorchClassifier(
        to_module(nets, 0), nn.CrossEntropyLoss(), (x.shape[1],), nets.classes, device_type="cpu"
    )
    scores = partial(metrics.clever_u, classifier, verbose=False)
    return lambda: np.array([scores(one, batches, batch, BALL, 2) for one in x.numpy()])


def _most_scores(case: Case, m: int, setup: Setup) -> Tensor:
    """What a perfect CLEVER can say at most: gradients that were seen in the ball bound the largest below."""
    x, y = case.x[:m], case.y[:m]
    samples = SAMPLES if setup.repeats else setup.samples
    largest = sampled_constants(case, x, y, BALL, p=2.0, samples=samples)
    logits = case.ensemble.logits(x)[0]
    scores = (logits.gather(1, y[:, None]) - logits) / largest
    return scores.scatter(1, y[:, None], BALL).amin(1).clamp(max=BALL)


def module_crossings(case: Case, setup: Setup) -> Iterator[Row]:
    """The smallest FGS step of a module: bands, and the walk of the same network written out."""
    nets = from_modules([to_module(case.ensemble, 0)], shape=(case.ensemble.inputs,))
    x, y = case.x, case.y
    u: Tensor = loss_gradient_sign(nets, x, y)
    found, scanned = (crossings(nets, x, y, u, bands=bands) for bands in (100, 0))
    missed = int((scanned.at > found.at * (1 + 1e-6)).sum())
    works = {
        "exact": lambda: crossings(nets, x, y, u),
        "scan": lambda: crossings(nets, x, y, u, bands=0),
        "walk": lambda: crossings(case.ensemble, x, y, u),
    }
    timed = in_turns(works, repeats=setup.repeats)
    add = partial(row, "crossing", case, len(x), timed["exact"])
    note = f"{float(found.exact.double().mean()):.3f} exact; the scan misses {missed} of {len(x)}"
    yield add("scan of 64 places, bisection", timed["scan"], note)
    yield add("walk (MLP only)", timed["walk"])


def tabulate(data: Dataset, setup: Setup) -> Iterator[Row]:
    """The whole table."""
    if installed(ART):
        importlib.import_module("art.metrics")
    for case in cases(data, setup):
        yield from measurements(case, data, setup)
        yield from first_layer(case, setup)
        yield from certificates(case, setup)
        if case.sparsity in (setup.sparsities[0], setup.sparsities[-1]) or math.isclose(case.sparsity, 0.98):
            yield from clever_scores(case, setup)
            yield from module_crossings(case, setup)


main = on_mnist(lambda data, quick: tabulate(data, QUICK if quick else SETUP), FIELDS, "What sparsity saves")


if __name__ == "__main__":
    main()
