"""An ensemble computes what its members compute alone."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from empirical.ensembles import (
    MLPEnsemble,
    concatenate,
    from_networks,
    initialise,
    linear_classifier,
    relu_network,
)
from theory.laws.strategies import arrays, relu_networks
from theory.types import BinaryLinear, InvalidInput, LinearClassifier, ReLUNetwork

CPU = torch.device("cpu")
# Sums of at most a dozen products, computed in another order.
ROUNDING = 1e-11


@st.composite
def pairs(draw: st.DrawFn):
    """Two networks of one shape and three inputs."""
    net = draw(relu_networks(scales=(1.0,)))
    other = ReLUNetwork(
        tuple(draw(arrays(w.shape)) for w in net.weights), tuple(draw(arrays(b.shape)) for b in net.biases)
    )
    return [net, other], draw(arrays((3, net.weights[0].shape[1])))


@given(pairs())
def test_logits_are_those_of_the_members(case):
    nets, x = case
    logits = from_networks(nets).logits(torch.tensor(x))
    for k, net in enumerate(nets):
        np.testing.assert_allclose(logits[k].numpy(), net.scores(x), rtol=ROUNDING, atol=ROUNDING)


@given(pairs())
def test_jacobian_is_that_of_autograd(case):
    nets, x = case
    ensemble = from_networks(nets)
    logits, jacobian = ensemble.logits_and_jacobian(torch.tensor(x))
    assert torch.equal(logits, ensemble.logits(torch.tensor(x)))
    for k in range(2):
        leaf = torch.tensor(x, requires_grad=True)
        scores = ensemble.select([k]).logits(leaf)[0]
        for c in range(scores.shape[1]):
            (gradient,) = torch.autograd.grad(scores[:, c].sum(), leaf, retain_graph=True)
            torch.testing.assert_close(jacobian[k, :, c], gradient, rtol=ROUNDING, atol=ROUNDING)


@given(pairs(), st.integers(0, 2**32 - 1))
def test_gradient_is_a_row_of_the_jacobian(case, seed):
    nets, x = case
    ensemble = from_networks(nets)
    v = torch.randn(
        2, 3, ensemble.classes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    logits, jacobian = ensemble.logits_and_jacobian(torch.tensor(x))
    product = torch.einsum("knc,kncd->knd", v * logits, jacobian)
    found, gradient = ensemble.logits_and_gradient(torch.tensor(x), lambda g: v * g)
    assert torch.equal(found, logits)
    torch.testing.assert_close(gradient, product, rtol=1e-9, atol=1e-9)


def test_one_score_stands_for_two_logits():
    weight = torch.tensor([[[1.0, -2.0]]])
    ensemble = MLPEnsemble((weight,), (torch.tensor([[0.5]]),), (weight != 0,))
    x = torch.tensor([[3.0, 1.0]])
    logits, jacobian = ensemble.logits_and_jacobian(x)
    assert logits.tolist() == [[[0.0, 1.5]]]
    assert jacobian.tolist() == [[[[0.0, 0.0], [1.0, -2.0]]]]
    _, gradient = ensemble.logits_and_gradient(x, lambda _: torch.tensor([[[5.0, 2.0]]]))
    assert gradient.tolist() == [[[2.0, -4.0]]]
    clf = linear_classifier(ensemble, 0)
    assert isinstance(clf, BinaryLinear)
    assert clf.scores(np.array([[3.0, 1.0]])).tolist() == [1.5]


@given(pairs())
def test_export_and_import_are_inverse(case):
    nets, _ = case
    ensemble = from_networks(nets)
    for k, net in enumerate(nets):
        back = relu_network(ensemble, k)
        assert all(
            (a == b).all() for a, b in zip(back.weights + back.biases, net.weights + net.biases, strict=True)
        )


def test_select_concatenate_and_export():
    first = initialise([4, 3], seeds=[0, 1], device=CPU)
    second = initialise([4, 3], seeds=[2], device=CPU)
    joined = concatenate([first, second])
    assert joined.members == 3
    assert torch.equal(joined.select([2]).weights[0], second.weights[0])
    assert isinstance(linear_classifier(joined, 1), LinearClassifier)


def test_initial_weights_depend_on_the_seed_alone():
    many = initialise([5, 4, 3], seeds=[7, 3, 7], device=CPU)
    one = initialise([5, 4, 3], seeds=[3], device=CPU)
    for layer in range(2):
        assert torch.equal(many.weights[layer][0], many.weights[layer][2])
        assert torch.equal(many.weights[layer][1], one.weights[layer][0])
        assert not torch.equal(many.weights[layer][0], many.weights[layer][1])


def test_initial_variance_is_two_over_fan_in():
    wide = initialise([400, 500], seeds=[0], device=CPU)
    # 200,000 normal draws: the sample variance is within 5 standard errors, 5 sqrt(2 / 200,000) = 1.6 %.
    assert float(wide.weights[0].var()) == pytest.approx(2 / 400, rel=0.016)


def test_sparsity_counts_weights_without_biases():
    ensemble = initialise([4, 3, 2], seeds=[0], device=CPU)
    keep = tuple(torch.ones_like(m) for m in ensemble.masks)
    keep[0][0, 0] = False
    masked = ensemble.masked(keep)
    assert masked.sparsity().tolist() == [pytest.approx(4 / 18)]
    assert (masked.weights[0][0, 0] == 0).all()
    # What is pruned stays pruned.
    assert masked.masked(ensemble.masks).sparsity().tolist() == masked.sparsity().tolist()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda w, b, m: MLPEnsemble((w,), (b[:, :1],), (m,)), "disagree"),
        (lambda w, b, m: MLPEnsemble((w,), (b,), (m[:, :1],)), "disagree"),
        (lambda w, b, m: MLPEnsemble((w, w), (b, b), (m, m)), "does not follow"),
        (lambda w, b, m: MLPEnsemble((w * math.nan,), (b,), (m,)), "member 0 holds NaN"),
        (lambda w, b, m: MLPEnsemble((), (), ()), "non-empty"),
        (lambda w, b, m: initialise([3], seeds=[0], device=CPU), "widths"),
        (lambda w, b, m: initialise([3, 2], seeds=[], device=CPU), "seeds is empty"),
        (lambda w, b, m: from_networks([]), "networks is empty"),
        (
            lambda w, b, m: concatenate([initialise([n, 2], seeds=[0], device=CPU) for n in (2, 3)]),
            "different architectures",
        ),
        (lambda w, b, m: linear_classifier(initialise([3, 3, 2], seeds=[0], device=CPU), 0), "2 layers"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_named(make, message):
    w = torch.ones(2, 3, 4)
    with pytest.raises(InvalidInput, match=message):
        make(w, torch.zeros(2, 3), w != 0)
