"""Measurements do not depend on how they are batched, and near-ties are neither lost nor overstated."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import empirical.measurement as module
from empirical.datasets import Dataset, load
from empirical.ensembles import MLPEnsemble, from_modules, linear_classifier
from empirical.ensembles.cores import on_cores, shares
from empirical.measurement import mask_gradient_norms, measure, radius_rows
from empirical.results import Members
from theory.linear import radius
from theory.types import InvalidInput

CPU = torch.device("cpu")


def few(data: Dataset, n: int) -> Dataset:
    return Dataset("few", data.x_train, data.y_train, data.x_test[:n], data.y_test[:n], data.classes)


@pytest.mark.parametrize("attacks", [("fgs", "deepfool"), ("rfgs",)])
def test_batching_changes_nothing(attacks, trained_digits, monkeypatch):
    nets, *_ = trained_digits
    nets, data = nets.select([0, 1, 0, 1, 1]), few(load("digits"), 23)
    whole = measure(nets, data, eps=0.1, attacks=attacks)
    monkeypatch.setattr(module, "_MEMBERS", {"cpu": 2})
    monkeypatch.setattr(module, "_BYTES", {"cpu": 2 * 8 * 10 * 64 * 7})  # seven examples at a time
    parts = measure(nets, data, eps=0.1, attacks=attacks)
    assert np.array_equal(whole.correct, parts.correct)
    for name in ("radius", "fgs_correct", "margin", "gradient_norm"):
        one, other = getattr(whole, name), getattr(parts, name)
        for key in one:
            np.testing.assert_allclose(one[key], other[key], rtol=1e-9)


def test_best_is_the_smallest_attack(trained_digits):
    nets, *_ = trained_digits
    measured = measure(nets, few(load("digits"), 50), eps=0.1)
    for p in (2.0, math.inf):
        attacks = [r for (q, method), r in measured.radius.items() if q == p and method != "best"]
        assert np.array_equal(measured.radius[p, "best"], np.min(attacks, axis=0))
        # The pulled-back point is never further away than DeepFool's own.
        assert (measured.radius[p, "deepfool+line"] <= measured.radius[p, "deepfool"] * (1 + 1e-12)).all()


def test_first_order_radius_is_margin_over_gradient(trained_digits):
    """On a linear classifier margin / gradient norm is the exact radius."""
    weight = torch.randn(1, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    nets = MLPEnsemble((weight,), (torch.zeros(1, 4, dtype=torch.float64),), (weight != 0,))
    rng = np.random.default_rng(0)
    x, y = rng.random((30, 6)), rng.integers(0, 4, 30)
    measured = measure(nets, Dataset("r", x, y, x, y, 4), eps=0.1)
    for p in (2.0, math.inf):
        exact = radius(linear_classifier(nets, 0), x, y, p=p)
        first_order = measured.margin[p][0] / measured.gradient_norm[p][0]
        np.testing.assert_allclose(first_order[exact > 0], exact[exact > 0], rtol=1e-12)
        assert np.isnan(first_order[exact == 0]).all()


@pytest.mark.parametrize("gap", [1e-4, 1e-6, 1e-8, 1e-10])
@pytest.mark.parametrize("p", [2.0, math.inf])
def test_examples_next_to_the_boundary_are_measured(gap, p):
    """Float32 logits would call some of them wrong; lost hits would be counted at the cap."""
    rng = np.random.default_rng(0)
    w = torch.tensor(rng.normal(size=(1, 1, 20)), dtype=torch.float32)
    nets = MLPEnsemble((w,), (torch.full((1, 1), -0.3),), (w != 0,))
    clf = linear_classifier(nets, 0)
    x, y = rng.random((60, 20)), rng.integers(0, 2, 60)
    side = np.where(y == 1, 1.0, -1.0)
    length = np.linalg.norm(clf.weight)
    x -= np.outer(clf.scores(x) / length - side * gap, clf.weight / length)
    data = Dataset("near", x, y, x, y, classes=2, box=(-5.0, 5.0))
    measured = measure(nets, data, eps=0.1).radius[p, "deepfool+line"][0]
    exact = radius(clf, x, y, p=p)
    assert np.isfinite(measured).all()
    np.testing.assert_allclose(measured, exact, rtol=1e-6, atol=1e-11)


def test_mask_gradient_norms_at_no_sparsity_are_those_of_the_network(trained_digits):
    nets, x, _ = trained_digits
    one = nets.select([0])
    norms = mask_gradient_norms(one, x[:8], (1, 7), sparsity=0.0, copies=3, generator=torch.Generator())
    jacobian = one.logits_and_jacobian(x[:8])[1][0]
    difference = jacobian[:, 1] - jacobian[:, 7]
    assert norms[2.0].tolist() == pytest.approx([float(difference.norm(dim=1).max())] * 3)
    assert norms[math.inf].tolist() == pytest.approx([float(difference.abs().sum(1).max())] * 3)
    none = mask_gradient_norms(one, x[:8], (1, 7), sparsity=1.0, copies=2, generator=torch.Generator())
    assert none[2.0].tolist() == [0.0, 0.0]


def test_parts_cover_the_members_and_run_in_order():
    torch.set_num_threads(2)
    try:
        assert shares(5, device=CPU) == [range(3), range(3, 5)]
        assert shares(5, device=CPU, at_most=2) == [range(2), range(2, 4), range(4, 5)]
        assert shares(5, device=torch.device("cuda")) == [range(5)]
        assert on_cores(lambda part: sum(part), shares(5, device=CPU), device=CPU) == [3, 7]
        with pytest.raises(ZeroDivisionError):
            on_cores(lambda part: 1 // part, [1, 0], device=CPU)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_the_mean_square_of_distances_in_a_huge_box_is_infinite():
    x, y = np.full((2, 3), 0.5), np.array([0, 1])
    data = Dataset("far", x, y, x, y, 2, box=(0.0, 1e300))
    members = Members("far", "linear", ["dense"], [0.0], [0.0], [0])
    rows = radius_rows(members, np.array([[1.0, np.inf]]), data, p=2.0, method="fgs", eps=0.1)
    means = {row.quantity: row.values for row in rows}
    assert means["mean_squared_distance"] == np.inf
    assert means["mean_radius"] == pytest.approx(3**0.5 * 1e300 / 2)


def test_scores_that_are_no_numbers_are_named(monkeypatch):
    linear = nn.Linear(10, 10, bias=False)
    nn.init.eye_(linear.weight)
    nets, x = from_modules([nn.Sequential(linear, _Log())], shape=(10,)), np.full((5, 10), 0.5)
    x[3] = 0.0
    monkeypatch.setattr(module, "_BYTES", {"cpu": 2 * 8 * 10 * 10})  # two examples at a time
    with pytest.raises(InvalidInput, match="scores of example 3 are NaN or infinite"):
        measure(nets, Dataset("log", x, np.arange(5), x, np.arange(5), 10), eps=0.1)


class _Log(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.log()
