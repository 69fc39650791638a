"""The first crossing on a ray of a module: exact where it is said to be, never claimed where it is not."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from empirical.attacks import crossings, first_crossing, minimal_fgs, shorten
from empirical.attacks.active import margins
from empirical.ensembles import ModuleEnsemble, from_modules, from_networks, initialise, to_module
from tests.empirical.test_modules import SHAPE, small
from tests.empirical.test_ray import END, law_first_crossing, rays
from theory.types import InvalidInput, ReLUNetwork

CPU = torch.device("cpu")
# Class 0 loses on (0.5, 0.5 + 2^-8) only, a dip between two of 64 places in [0, 1].
NARROW = 2.0**-9
DIP = ReLUNetwork(
    (
        np.ones((4, 1)),
        np.array([[0.0, -1.0, 2.0, -1.0], [0.0, 0.0, 0.0, 0.0]]),
    ),
    (np.array([0.0, -0.5, -0.5 - NARROW, -0.5 - 2 * NARROW]), np.array([1e-9, 0.0])),
)


def as_modules(nets: list[ReLUNetwork]) -> ModuleEnsemble:
    """The same networks as modules."""
    ensemble = from_networks(nets)
    modules = [to_module(ensemble, k) for k in range(ensemble.members)]
    return from_modules(modules, shape=(ensemble.inputs,))


@given(rays())
def test_first_crossing_of_modules_is_the_first(case):
    nets, *rest = case
    law_first_crossing(lambda _, *a, **k: first_crossing(as_modules(nets), *a, **k), nets, *rest)


@given(rays())
@settings(max_examples=30)
def test_rays_of_networks_this_small_are_settled(case):
    nets, x, y, direction = case
    ensemble, arguments = as_modules(nets), [torch.tensor(value) for value in (x, y, direction)]
    found = crossings(ensemble, *arguments, max_step=END, bands=2000)
    assert found.exact.all()
    scanned = crossings(ensemble, *arguments, max_step=END, bands=0)
    assert (scanned.at >= found.at * (1 - 1e-9) - 1e-9).all()


def test_the_walk_and_the_bands_agree_on_a_trained_network(trained_digits):
    mlp, x, y = trained_digits
    x, y = x[:40], y[:40]
    ensemble = from_modules([to_module(mlp, k) for k in range(2)], shape=(64,))
    u = torch.randn(2, 40, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for max_step in (0.3, math.inf):
        walked = crossings(mlp, x, y, u, max_step=max_step)
        found = crossings(ensemble, x, y, u, max_step=max_step)
        assert found.exact.all()
        assert walked.at.isfinite().any()
        torch.testing.assert_close(found.at, walked.at, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(found.beyond, walked.beyond, rtol=1e-6, atol=1e-9)
    for ours, theirs in zip(minimal_fgs(ensemble, x, y), minimal_fgs(mlp, x, y), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


def test_no_place_of_a_fine_grid_is_lost_before_the_crossing():
    """Two convolutional networks with batch-norm and max-pooling, 1,000 places on each ray."""
    ensemble = from_modules(small([0, 1]), shape=SHAPE)
    torch.manual_seed(0)
    x, u = torch.randn(20, 72, dtype=torch.float64), torch.randn(2, 20, 72, dtype=torch.float64)
    y = ensemble.logits(x)[0].argmax(1)
    found = crossings(ensemble, x, y, u, max_step=4.0)
    assert found.exact.all()
    left_by = torch.full_like(found.at, math.inf)
    for t in torch.linspace(4.0, 0.0, 1001, dtype=torch.float64):
        left_by[margins(ensemble.logits(x + t * u), y) <= 0] = t
    assert (found.at <= left_by + 1e-12).all()
    hit = found.at.isfinite()
    assert hit.sum() > 10
    assert (~hit).any()
    at, beyond = (x + t.masked_fill(~hit, 0.0)[..., None] * u for t in (found.at, found.beyond))
    at, beyond = (margins(ensemble.logits(points), y)[hit] for points in (at, beyond))
    right = (margins(ensemble.logits(x), y) > 0)[hit]
    assert (at[right].abs() < 1e-10).all()
    assert (beyond < 0).all()
    shorter, still = shorten(ensemble, x, y, x + 4.0 * u, margins(ensemble.logits(x + 4.0 * u), y) < 0)
    assert (margins(ensemble.logits(shorter), y) < 0)[still].all()


def test_a_scan_overlooks_a_dip_and_does_not_claim_to_be_exact():
    ensemble, x, y = as_modules([DIP]), torch.zeros(1, 1, dtype=torch.float64), torch.tensor([0])
    u = torch.ones(1, 1, 1, dtype=torch.float64)
    found = crossings(ensemble, x, y, u, max_step=1.0)
    assert found.exact.all()
    assert float(found.at) == pytest.approx(0.5, abs=1e-8)
    assert margins(ensemble.logits(x + found.beyond[..., None] * u), y) < 0
    scanned = crossings(ensemble, x, y, u, max_step=1.0, bands=0)
    assert not scanned.exact.any()
    assert scanned.at.isinf().all()
    narrow = crossings(ensemble, x, y, u, max_step=1.0, bands=0, places=1000)
    assert float(narrow.at) == pytest.approx(0.5, abs=1e-8)


class Smooth(nn.Module):
    """tanh of a sum, against 0.5."""

    def __init__(self) -> None:
        super().__init__()
        self.sum = nn.Linear(2, 1, bias=False).double()
        nn.init.ones_(self.sum.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.sum(x)) - 0.5


@pytest.mark.parametrize("max_step", [10.0, math.inf])
def test_other_modules_are_scanned(max_step):
    """The crossing of tanh(0.25 t) = 0.5 is found to the rounding; a ray the other way never crosses."""
    ensemble = from_modules([Smooth()], shape=(2,))
    x, y = torch.zeros(3, 2, dtype=torch.float64), torch.tensor([0, 0, 1])
    u = torch.tensor([[[0.25, 0.0], [-1.0, 0.0], [0.25, 0.0]]], dtype=torch.float64)
    found = crossings(ensemble, x, y, u, max_step=max_step)
    assert found.exact.tolist() == [[False, False, True]]
    assert found.at[0].tolist() == pytest.approx([4 * math.atanh(0.5), math.inf, 0.0], rel=1e-12)
    assert margins(ensemble.logits(x + found.beyond[0, 0] * u[:, :1]), y)[0, 0] < 0


def test_rays_that_take_too_many_bands_are_scanned_on():
    nets = initialise([8, 40, 40, 3], seeds=[0], device=CPU).to(dtype=torch.float64, device=CPU)
    ensemble = from_modules([to_module(nets, 0)], shape=(8,))
    torch.manual_seed(0)
    x, u = torch.randn(60, 8, dtype=torch.float64), torch.randn(1, 60, 8, dtype=torch.float64)
    y = nets.logits(x)[0].argmax(1)
    known = crossings(nets, x, y, u)
    for bands in (0, 1, 4, 8):
        found = crossings(ensemble, x, y, u, bands=bands)
        near = known.at < 100
        assert (found.at >= known.at * (1 - 1e-9)).all()
        torch.testing.assert_close(found.at[found.exact & near], known.at[found.exact & near])
        assert found.at[near].isfinite().float().mean() > 0.9
    assert 0 < crossings(ensemble, x, y, u, bands=8).exact.sum() < 60


def test_a_direction_of_zero_never_leaves_and_no_boundary_is_never_found():
    constant = ReLUNetwork((np.zeros((2, 3)),), (np.array([1.0, 0.0]),))
    x = torch.ones(2, 3, dtype=torch.float64)
    u = torch.tensor([[[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]], dtype=torch.float64)
    for y in (torch.tensor([0, 0]), torch.tensor([1, 1])):
        found = crossings(as_modules([constant]), x, y, u)
        wanted = 0.0 if y[0] else math.inf
        assert found.exact.all()
        assert found.at.tolist() == found.beyond.tolist() == [[wanted, wanted]]


@pytest.mark.parametrize(("keyword", "value"), [("max_step", math.nan), ("bands", -1), ("places", 0)])
def test_bad_arguments_are_named(keyword, value):
    ensemble, x = as_modules([DIP]), torch.zeros(1, 1, dtype=torch.float64)
    with pytest.raises(InvalidInput, match=f"{keyword}.* {value}"):
        crossings(
            ensemble, x, torch.tensor([0]), torch.ones(1, 1, 1, dtype=torch.float64), **{keyword: value}
        )


def test_logits_that_overflow_are_not_followed():
    huge = ReLUNetwork((np.full((2, 1), 1e200), np.eye(2) * 1e200), (np.zeros(2), np.array([1.0, 0.0])))
    x = torch.full((1, 1), -1.0, dtype=torch.float64)
    found = crossings(as_modules([huge]), x, torch.tensor([0]), torch.ones(1, 1, 1, dtype=torch.float64))
    assert not found.exact.any()
