"""Attacks as measuring instruments: exact on linear models, honest about failure, bounded by the truth."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from empirical.attacks import deepfool, fgs, fmn, minimal_fgs, shorten
from empirical.attacks.active import margins
from empirical.attacks.fgsm import loss_gradient_sign
from empirical.attacks.ray import OVERSHOOT
from empirical.ensembles import MLPEnsemble, from_modules, from_networks
from empirical.measurement import verified_radius
from theory.laws.strategies import arrays, attack_norms, linear_classifiers
from theory.linear import radius
from theory.types import BinaryLinear, InvalidInput, LinearClassifier, ReLUNetwork

# A radius found lies OVERSHOOT beyond the exact one; rounding of x + r and of the scores comes on top, and
# is relative to the size of the scores, of order 10 here, over that of the smallest weight difference.
SLACK = 2 * OVERSHOOT
ROUNDING = 1e-9


def binary(weight: np.ndarray, bias: float) -> MLPEnsemble:
    w = torch.tensor(weight)[None, None]
    return MLPEnsemble((w,), (torch.tensor([[bias]], dtype=w.dtype),), (w != 0,))


def two_sided(measured: np.ndarray, exact: np.ndarray) -> None:
    """exact <= measured <= (1 + slack) exact, and both infinite together."""
    assert (np.isinf(measured) == np.isinf(exact)).all(), (measured, exact)
    known = np.isfinite(exact)
    assert (measured[known] >= exact[known] * (1 - ROUNDING) - ROUNDING).all(), (measured, exact)
    assert (measured[known] <= exact[known] * (1 + SLACK) + ROUNDING).all(), (measured, exact)


@st.composite
def linear_problems(draw: st.DrawFn):
    """A linear classifier and six labelled examples."""
    clf = draw(linear_classifiers(scales=(1.0,)))
    x = draw(arrays((6, clf.weight.shape[1])))
    y = np.array(draw(st.lists(st.integers(0, len(clf.bias) - 1), min_size=6, max_size=6)))
    return clf, x, y


def law_attack_is_exact_on_linear_models(attack, problem, p):
    """The verified radius of the attack's point is the exact one, up to the declared overshoot."""
    clf, x, y = problem
    exact = radius(clf, x, y, p=p)
    # A boundary that is met only at 10^6 times the size of the data is out of reach of float64 scores.
    near = (exact < 1e6) | np.isinf(exact)
    nets = from_networks([ReLUNetwork((clf.weight,), (clf.bias,))])
    tx, ty = torch.tensor(x[near]), torch.tensor(y[near])
    measured = verified_radius(nets, tx, ty, *attack(nets, tx, ty, p), p=p)
    two_sided(measured[0].numpy(), exact[near])


def pulled_back_deepfool(nets, x, y, p):
    return shorten(nets, x, y, *deepfool(nets, x, y, p=p))


@given(linear_problems(), attack_norms())
def test_deepfool_pulled_back_is_exact_on_linear_models(problem, p):
    law_attack_is_exact_on_linear_models(pulled_back_deepfool, problem, p)


@pytest.mark.parametrize("p", [2.0, math.inf])
def test_law_rejects_faulty_attacks(p):
    """The identity, the other norm's step, a missing overshoot and a double step are all caught."""
    rng = np.random.default_rng(1)
    clf = LinearClassifier(rng.normal(size=(4, 5)) * np.arange(1, 6), rng.normal(size=4))
    x = rng.normal(size=(20, 5))
    y = clf.scores(x).argmax(1)

    def identity(nets, x, y, p):
        return x.expand(1, *x.shape), torch.ones(1, len(x), dtype=torch.bool)

    def wrong_norm(nets, x, y, p):
        return pulled_back_deepfool(nets, x, y, math.inf if p == 2 else 2.0)

    def stops_on_the_boundary(nets, x, y, p):
        x_adv, found = deepfool(nets, x, y, p=p, overshoot=0.0, steps=1)
        return x + (x_adv - x) / (1 + OVERSHOOT), found

    def double(nets, x, y, p):
        x_adv, found = pulled_back_deepfool(nets, x, y, p)
        return 2 * x_adv - x, found

    law_attack_is_exact_on_linear_models(pulled_back_deepfool, (clf, x, y), p)
    for faulty in (identity, wrong_norm, stops_on_the_boundary, double):
        with pytest.raises(AssertionError):
            law_attack_is_exact_on_linear_models(faulty, (clf, x, y), p)


@given(arrays((5,)), st.floats(-2, 2), arrays((6, 5)), st.lists(st.integers(0, 1), min_size=6, max_size=6))
def test_minimal_fgs_is_exact_on_binary_linear_models(weight, bias, x, labels):
    if not weight.any():
        return
    exact = radius(BinaryLinear(weight, bias), x, np.array(labels), p=math.inf)
    near = exact < 1e6
    nets, tx, ty = binary(weight, bias), torch.tensor(x[near]), torch.tensor(labels)[torch.tensor(near)]
    measured = verified_radius(nets, tx, ty, *minimal_fgs(nets, tx, ty), p=math.inf)
    two_sided(measured[0].numpy(), exact[near])


@given(linear_problems())
def test_fgs_never_beats_the_exact_radius(problem):
    clf, x, y = problem
    nets = from_networks([ReLUNetwork((clf.weight,), (clf.bias,))])
    tx, ty = torch.tensor(x), torch.tensor(y)
    measured = verified_radius(nets, tx, ty, *minimal_fgs(nets, tx, ty), p=math.inf)[0].numpy()
    assert (measured >= radius(clf, x, y, p=math.inf) * (1 - ROUNDING) - ROUNDING).all()


def test_minimal_fgs_is_the_smallest_step_of_a_fine_grid(trained_digits):
    """No step of a grid of 2,000 succeeds before the step found, and the step found succeeds."""
    nets, x, y = trained_digits
    x, y = x[:40], y[:40]
    x_adv, found = minimal_fgs(nets, x, y, max_step=0.5)
    step = (x_adv - x).abs().amax(2)
    sign = loss_gradient_sign(nets, x, y)
    before = torch.full_like(step, math.inf)
    for t in torch.linspace(0, 0.5, 2001, dtype=x.dtype):
        lost = margins(nets.logits(x + t * sign), y) <= 0
        before = torch.where(lost & before.isinf(), t, before)
    assert (step[found] <= before[found] * (1 + SLACK) + ROUNDING).all()
    assert (before[~found]).isinf().all()
    assert (margins(nets.logits(x_adv), y) <= 0)[found].all()


def test_gradient_sign_survives_saturated_logits():
    """float32 softmax underflows at a margin of 10^4; the direction does not."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=(3, 6))
    x = torch.tensor(rng.normal(size=(5, 6)))
    plain = from_networks([ReLUNetwork((w,), (np.zeros(3),))])
    y = plain.logits(x)[0].argmax(1)
    # With two classes the direction does not depend on the scale of the logits at all.
    two = from_networks([ReLUNetwork((w[:2],), (np.zeros(2),))])
    huge = from_networks([ReLUNetwork((1e5 * w[:2],), (np.zeros(2),))])
    y2 = two.logits(x)[0].argmax(1)
    assert torch.equal(loss_gradient_sign(two, x, y2), loss_gradient_sign(huge, x, y2))
    saturated = from_networks([ReLUNetwork((1e5 * w,), (np.zeros(3),))])
    assert (loss_gradient_sign(saturated, x, y) != 0).all()


def test_gradient_sign_is_that_of_autograd(trained_digits):
    nets, x, y = trained_digits
    for k in range(nets.members):
        one = nets.select([k])
        leaf = x[:50].clone().requires_grad_()
        loss = torch.nn.functional.cross_entropy(one.logits(leaf)[0], y[:50], reduction="sum")
        (gradient,) = torch.autograd.grad(loss, leaf)
        mine = loss_gradient_sign(one, x[:50], y[:50])[0]
        clear = gradient.abs() > 1e-12 * gradient.abs().amax()
        assert torch.equal(mine[clear], gradient.sign()[clear])


def test_a_dead_network_is_reported_not_found():
    dead = ReLUNetwork((-np.ones((3, 2)), np.ones((2, 3))), (-np.ones(3), np.array([1.0, 0.0])))
    nets, x, y = from_networks([dead]), torch.ones(1, 2, dtype=torch.float64), torch.tensor([0])
    for x_adv, found in (minimal_fgs(nets, x, y), deepfool(nets, x, y, p=2)):
        assert not found.any()
        assert torch.equal(x_adv[0], x)
        assert verified_radius(nets, x, y, x_adv, found, p=2).item() == math.inf


def test_a_hit_that_vanishes_is_not_found():
    nets = binary(np.array([1.0, 2.0]), 0.0)
    x, y = torch.tensor([[1.0, 1.0]], dtype=torch.float64), torch.tensor([1])
    claimed = verified_radius(nets, x, y, x[None], torch.tensor([[True]]), p=2)
    assert claimed.item() == math.inf


def test_fgs_takes_one_step_and_clips_only_when_asked():
    nets = binary(np.array([1.0, -2.0]), 0.0)
    x, y = torch.tensor([[0.95, 0.05]], dtype=torch.float64), torch.tensor([0])
    assert fgs(nets, x, y, eps=0.1)[0, 0].tolist() == pytest.approx([1.05, -0.05])
    assert fgs(nets, x, y, eps=0.1, box=(0.0, 1.0))[0, 0].tolist() == [1.0, 0.0]


ALONE: Any = nn.Linear(2, 2)  # where a list is wanted, and a number where a shape is
TWO: Any = 2
SQUEEZED = nn.Sequential(nn.Linear(2, 1), nn.Flatten(0))  # one score, without an axis of its own


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda n, x, y: deepfool(n, x, y, p=1), "p is 1"),
        (lambda n, x, y: deepfool(n, x, y, p=2, overshoot=-0.1), "overshoot is -0.1"),
        (lambda n, x, y: deepfool(n, x, y, p=2, steps=0), "steps is 0"),
        (lambda n, x, y: fgs(n, x, y, eps=math.nan), "eps is nan"),
        (lambda n, x, y: fgs(n, x, y, eps=-1), "eps is -1"),
        (lambda n, x, y: fmn(n, x, y, p=2, steps=TWO * 0.75), "steps is 1.5; give a whole number"),
        (lambda n, x, y: fmn(n, x.numpy(), y, p=2), "x is of type ndarray; pass a tensor"),
        (lambda n, x, y: fmn(n, x, y.numpy(), p=2), "y is of type ndarray; pass a tensor"),
        (lambda n, x, y: fmn(n, x, y.float(), p=2), r"y has dtype torch.float32; .* pass y.long\(\)"),
        (lambda n, x, y: fmn(n, x, y.byte(), p=2), "y has dtype torch.uint8"),
        (lambda n, x, y: fmn(n, x.clone().requires_grad_(), y, p=2), r"pass x.detach\(\)"),
        (lambda n, x, y: fmn(n, x.to("meta"), y, p=2), "x is on meta, the networks on cpu"),
        (lambda n, x, y: fmn(ALONE, x, y, p=2), r"wrap it: from_modules\(\[module\], shape="),
        (lambda n, x, y: fmn(n, x, y, p=2, target=y + 9), r"target spans \[9, 9\]"),
        (lambda n, x, y: from_modules(ALONE, shape=(2,)), r"modules is one Linear; pass a list"),
        (lambda n, x, y: from_modules([ALONE], shape=TWO), r"shape is 2; .* \(2,\)"),
        (lambda n, x, y: from_modules([SQUEEZED], shape=(2,)), r"maps \(2, 2\) to \(2,\); .* \(2, 1\)"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_arguments_are_named(call, message):
    nets = binary(np.array([1.0, -2.0]), 0.0)
    with pytest.raises(InvalidInput, match=message):
        call(nets, torch.ones(1, 2, dtype=torch.float64), torch.tensor([0]))
