"""What attacks find hangs neither on how products are rounded nor on the units of the data."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from empirical.attacks import (
    carlini_wagner,
    crossings,
    ddn,
    deepfool,
    fmn,
    fmn_init,
    minimal_fgs,
    minimal_pgd,
    minimal_rfgs,
    pgd,
    shorten,
    strongest,
)
from empirical.attacks.active import margins
from empirical.attacks.geometry import feasible, norm
from empirical.clever import clever
from empirical.ensembles import MLPEnsemble, ModuleEnsemble, from_modules, to_module

CPU, INF = torch.device("cpu"), math.inf
DTYPES = [torch.float32, torch.float64]
EVERY = {
    "minimal_fgs": lambda n, x, y, box: minimal_fgs(n, x, y, box=box),
    "minimal_rfgs": lambda n, x, y, box: minimal_rfgs(n, x, y, box=box),
    "minimal_pgd, 2": lambda n, x, y, box: minimal_pgd(n, x, y, p=2, steps=10, box=box),
    "minimal_pgd, inf": lambda n, x, y, box: minimal_pgd(n, x, y, p=INF, steps=10, box=box),
    "deepfool, 2": lambda n, x, y, box: deepfool(n, x, y, p=2, box=box),
    "deepfool, inf": lambda n, x, y, box: deepfool(n, x, y, p=INF, box=box),
    "deepfool, 2, no overshoot": lambda n, x, y, box: deepfool(n, x, y, p=2, overshoot=0.0, box=box),
    "deepfool, inf, no overshoot": lambda n, x, y, box: deepfool(n, x, y, p=INF, overshoot=0.0, box=box),
    "shorten": lambda n, x, y, box: shorten(n, x, y, *deepfool(n, x, y, p=2, overshoot=0.0, box=box)),
    "ddn": lambda n, x, y, box: ddn(n, x, y, box=box),
    "fmn, 2": lambda n, x, y, box: fmn(n, x, y, p=2, box=box),
    "fmn, inf": lambda n, x, y, box: fmn(n, x, y, p=INF, box=box),
    "fmn_init, 2": lambda n, x, y, box: fmn_init(n, x, y, x, p=2, box=box),
    "fmn_init, inf": lambda n, x, y, box: fmn_init(n, x, y, x, p=INF, box=box),
    "carlini_wagner": lambda n, x, y, box: carlini_wagner(n, x, y, steps=20, searches=4, box=box),
    "strongest, 2": lambda n, x, y, box: strongest(n, x, y, p=2, others=x, box=box),
    "strongest, inf": lambda n, x, y, box: strongest(n, x, y, p=INF, others=x, box=box),
    "pgd": lambda n, x, y, box: pgd(n, x, y, p=2, eps=0.4, box=box),
}


def networks(widths: tuple[int, ...], *, seed: int, bias: float = 0.0) -> MLPEnsemble:
    """Two with random weights. The first layer's units share a bias, which the next layer's take away."""
    generator = torch.Generator().manual_seed(seed)
    weights = tuple(
        torch.randn(2, b, a, generator=generator, dtype=torch.float64) / a**0.5
        for a, b in zip(widths, widths[1:], strict=False)
    )
    biases = [torch.zeros(w.shape[:2], dtype=torch.float64) for w in weights]
    if bias:
        biases[0] += bias
        biases[1] = -(weights[1] * bias).sum(2)
    return MLPEnsemble(weights, tuple(biases), tuple(w != 0 for w in weights))


def in_units(nets: MLPEnsemble, scale: float, dtype: torch.dtype) -> MLPEnsemble:
    """The networks for data times ``scale``, a power of two: their logits are the same to the last bit."""
    first, *weights = nets.weights
    return MLPEnsemble((first / scale, *weights), nets.biases, nets.masks).to(dtype=dtype, device=CPU)


def examples(nets: MLPEnsemble | ModuleEnsemble, count: int = 40, *, seed: int = 9) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, nets.inputs, generator=generator, dtype=torch.float64).to(nets.weights[0].dtype)
    return x, nets.logits(x)[0].argmax(1)


def law_found_is_misclassified_alone(
    attack, nets: MLPEnsemble | ModuleEnsemble, x: Tensor, y: Tensor, box=None
) -> None:
    """By the plain module, one example at a time."""
    x_adv, found = attack(nets, x, y, box)
    ask = found & (margins(nets.logits(x), y) > 0)
    assert ask.any()
    for k in range(nets.members):
        module = to_module(nets, k)
        with torch.no_grad():
            logits = torch.cat([module(point[None]) for point in x_adv[k]])
        assert (margins(logits[None], y)[0] < 0)[ask[k]].all()
    assert (margins(nets.logits(x_adv), y) < 0)[ask].all()


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("modules", [False, True])
def test_every_found_point_is_misclassified_alone(name, dtype, modules):
    """DDN's first step ends on the linearised boundary, where rounding says which side it is."""
    nets = networks((10, 16, 3), seed=1).to(dtype=dtype, device=CPU)
    x, y = examples(nets)
    some = from_modules([to_module(nets, k) for k in range(2)], shape=(10,)) if modules else nets
    for box in (None, (-5.0, 5.0)):
        law_found_is_misclassified_alone(EVERY[name], some, x, y, box)


def test_the_law_rejects_points_on_the_boundary():
    nets = networks((30, 4), seed=2)
    x, y = examples(nets)

    def stops_there(nets, x, y, box):
        x_adv, found = shorten(nets, x, y, *deepfool(nets, x, y, p=2))
        return x + (x_adv - x) / (1 + 2e-7), found

    with pytest.raises(AssertionError):
        law_found_is_misclassified_alone(stops_there, nets, x, y)


@pytest.mark.parametrize("name", ["minimal_fgs", "minimal_rfgs", "ddn", "fmn, inf", "shorten"])
@pytest.mark.parametrize("bias", [1e3, 1e6])
def test_sums_that_cancel_are_moved_away_from(name, bias):
    """Hidden sums are rounded by many roundings of the logits."""
    nets = networks((10, 16, 3), seed=1, bias=bias)
    for box in (None, (-5.0, 5.0)):
        law_found_is_misclassified_alone(EVERY[name], nets, *examples(nets), box)


@pytest.mark.parametrize("bias", [1e9, 1e10, 1e11])
def test_a_crossing_is_believed_when_the_networks_say_so(bias):
    """By the walk's own logits the class has clearly changed; a pass rounds by more than it has."""
    nets = networks((10, 16, 3), seed=1, bias=bias)
    x, y = examples(nets)
    x_adv, found = minimal_fgs(nets, x, y)
    ask = found & (margins(nets.logits(x), y) > 0)
    assert ask.float().mean() > 0.2
    assert (margins(nets.logits(x_adv), y) < 0)[ask].all()


@pytest.mark.parametrize("p", [2.0, INF])
def test_deepfool_without_overshoot_finds_what_it_reaches(p):
    nets = networks((30, 4), seed=2).to(dtype=torch.float32, device=CPU)
    x, y = examples(nets)
    with_one, without = (deepfool(nets, x, y, p=p, overshoot=over) for over in (0.02, 0.0))
    assert with_one[1].all()
    assert without[1].all()
    assert (norm(without[0] - x, p=p) <= norm(with_one[0] - x, p=p)).all()


SCALED = ("minimal_rfgs", "deepfool, 2", "deepfool, inf", "ddn", "fmn, 2", "fmn, inf", "carlini_wagner")


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize(
    ("exponent", "box"), [(30, True), (-60, True), (60, False), (60, True), (-60, False)]
)
def test_the_units_of_the_data_do_not_matter(name, exponent, box):
    nets, scale = networks((20, 10, 4), seed=5), 2.0**exponent
    x = torch.rand(20, 20, generator=torch.Generator().manual_seed(2))
    x[:, :3], x[:, 3:6] = 0.0, 1.0
    plain, scaled = (in_units(nets, s, torch.float32) for s in (1.0, scale))
    y = plain.logits(x)[0].argmax(1)
    wanted, known = EVERY[name](plain, x, y, (0.0, 1.0) if box else None)
    x_adv, found = EVERY[name](scaled, x * scale, y, (0.0, scale) if box else None)
    assert torch.equal(found, known)
    ours, theirs = (norm(a.double(), p=2) for a in (x_adv / scale - x, wanted - x))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("widths", [(12, 16, 4), (40, 16, 4)])
@pytest.mark.parametrize(
    ("dtype", "exponent"), [("float32", -86), ("float32", 83), ("float64", -531), ("float64", 531)]
)
def test_the_scale_of_the_logits_does_not_matter_to_l2_gradients(widths, dtype, exponent):
    """Squares of these gradients under- or overflow; of wide networks those of products with W W^T."""
    kind = getattr(torch, dtype)
    nets = networks(widths, seed=5).to(dtype=kind, device=CPU)
    last = nets.weights[-1] * 2.0**exponent, nets.biases[-1] * 2.0**exponent
    scaled = MLPEnsemble((*nets.weights[:-1], last[0]), (*nets.biases[:-1], last[1]), nets.masks)
    x = torch.rand(10, widths[0], generator=torch.Generator().manual_seed(2)).to(kind)
    y = nets.logits(x)[0].argmax(1)
    for box in (None, (0.0, 1.0)):
        wanted, known = deepfool(nets, x, y, p=2, box=box)
        x_adv, found = deepfool(scaled, x, y, p=2, box=box)
        assert known.any()
        assert torch.equal(found, known)
        torch.testing.assert_close(x_adv, wanted, rtol=1e-4, atol=1e-5)
    radii = [
        clever(some, x[:2], y[:2], p=2.0, radius=5.0, batches=5, batch_size=8).radius
        for some in (nets, scaled)
    ]
    np.testing.assert_allclose(*radii, rtol=1e-3)


@pytest.mark.parametrize("scale", [2.0**-60, 1.0, 2.0**60])
def test_a_wall_stops_what_points_out_and_nothing_else(scale):
    points = torch.tensor([[0.0, 0.0, 0.5, 1.0, 1.0, 1 - 2.0**-20]]) * scale
    gradient = torch.tensor([[-1.0, 1.0, -1.0, -1.0, 1.0, 1.0]]) / scale
    wanted = torch.tensor([[0.0, 1.0, -1.0, -1.0, 0.0, 1.0]]) / scale
    assert torch.equal(feasible(gradient, points, (0.0, scale)), wanted)


def test_the_box_is_rounded_as_the_examples_are():
    nets = networks((6, 4), seed=3).to(dtype=torch.float32, device=CPU)
    x = torch.rand(8, 6).clamp(0.1, 0.3)
    assert float(x.max()) > 0.3
    y = nets.logits(x)[0].argmax(1)
    x_adv, found = fmn(nets, x, y, p=2, box=(0.1, 0.3))
    assert found.any()
    assert float(x_adv.min()) >= float(x.new_tensor(0.1))
    assert float(x_adv.max()) <= float(x.new_tensor(0.3))


def test_rays_of_modules_are_followed_in_the_units_of_the_data():
    """Float32 resolves a step of 1e-6 times data of this size, and x = 0 says nothing of the size."""
    scale = 2.0**-17
    nets = in_units(networks((6, 20, 3), seed=4, bias=0.3), scale, torch.float32)
    modules = from_modules([to_module(nets, k) for k in range(2)], shape=(6,))
    x = torch.rand(10, 6, generator=torch.Generator().manual_seed(0)) * scale
    x[0] = 0.0
    y = nets.logits(x)[0].argmax(1)
    u = torch.randn(2, 10, 6, generator=torch.Generator().manual_seed(1))
    known = crossings(nets, x, y, u)
    near = known.at < 1e3 * scale
    assert near.float().mean() > 0.5
    for bands in (0, 100):
        found = crossings(modules, x, y, u, bands=bands, places=500)
        torch.testing.assert_close(found.at[near], known.at[near], rtol=1e-3, atol=0)


def test_the_nearest_other_is_found_far_from_the_origin(monkeypatch):
    """Squares of such long vectors, in float32, differ by more than the distances."""
    offset = 1000.0
    nets = networks((20, 30, 4), seed=7)
    shifted = (-(nets.weights[0].sum(2) * offset), nets.biases[1])
    nets = MLPEnsemble(nets.weights, shifted, nets.masks).to(dtype=torch.float32, device=CPU)
    generator = torch.Generator().manual_seed(3)
    others, x = (offset + torch.randn(n, 20, generator=generator) / 2 for n in (40, 60))
    y = nets.logits(x)[0].argmax(1)

    found, _ = fmn_init(nets, x, y, others, p=2, starts=1, steps=5)
    plainly = partial(torch.cdist, compute_mode="donot_use_mm_for_euclid_dist")
    monkeypatch.setattr(torch, "cdist", plainly)
    wanted, _ = fmn_init(nets, x, y, others, p=2, starts=1, steps=5)
    torch.testing.assert_close(found, wanted)
