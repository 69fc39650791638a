"""Masks remove exactly what they say."""

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

from empirical.ensembles import MLPEnsemble, initialise
from empirical.pruning import bernoulli_masks, magnitude_masks
from theory.types import InvalidInput

CPU = torch.device("cpu")


def layer(values: list[float]) -> MLPEnsemble:
    w = torch.tensor(values).reshape(1, 2, -1)
    return MLPEnsemble((w,), (torch.zeros(1, 2),), (torch.ones_like(w, dtype=torch.bool),))


@given(
    st.lists(st.integers(-3, 3).map(float), min_size=2, max_size=20).filter(lambda v: len(v) % 2 == 0),
    st.floats(0, 1),
)
@example([1.0] * 10, 0.2)  # ties everywhere: a strict comparison with a threshold removes all or none
def test_exactly_the_smallest_are_removed(values, sparsity):
    (mask,) = magnitude_masks(layer(values), sparsity=sparsity)
    removed, kept = (torch.tensor(values)[mask.flatten() == keep].abs() for keep in (False, True))
    assert len(removed) == round(sparsity * len(values))
    assert max(removed.tolist(), default=0.0) <= min(kept.tolist(), default=math.inf)


def test_ties_go_by_index_and_pruned_weights_go_first():
    nets = layer([2.0, 1.0, 1.0, 1.0])
    (mask,) = magnitude_masks(nets, sparsity=0.5)
    assert mask.flatten().tolist() == [True, False, False, True]
    (deeper,) = magnitude_masks(nets.masked((mask,)), sparsity=0.75)
    assert deeper.flatten().tolist() == [True, False, False, False]
    # A live weight that happens to be zero does not take the place of a pruned one.
    zero = layer([0.0, 5.0, 2.0, 3.0])
    kept = torch.tensor([[[True, False], [True, True]]])
    (mask,) = magnitude_masks(zero.masked((kept,)), sparsity=0.25)
    assert (mask & kept).sum() == 3


@pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.9, 1.0])
def test_agrees_with_torch_prune(sparsity):
    nets = initialise([30, 20, 10], seeds=[0, 1, 2], device=CPU)
    masks = magnitude_masks(nets, sparsity=sparsity)
    for k in range(3):
        for weight, mask in zip(nets.weights, masks, strict=True):
            module = nn.Linear(weight.shape[2], weight.shape[1])
            module.weight.data = weight[k].clone()
            prune.l1_unstructured(module, "weight", amount=sparsity)
            assert torch.equal(module.get_buffer("weight_mask").bool(), mask[k])


def test_bernoulli_masks_are_nested_and_of_the_right_rate():
    nets = initialise([100, 200, 10], seeds=[0, 1], device=CPU)
    low, high = (bernoulli_masks(nets, sparsity=alpha, seeds=[5, 6]) for alpha in (0.3, 0.7))
    for less, more in zip(low, high, strict=True):
        assert (more <= less).all()
    kept = torch.cat([m[0].flatten() for m in low]).double().mean()
    # 22,000 draws with variance 0.21: within 5 standard errors.
    assert abs(float(kept) - 0.7) < 5 * (0.21 / 22_000) ** 0.5
    assert not torch.equal(low[0][0], low[0][1])
    assert torch.equal(bernoulli_masks(nets, sparsity=0.3, seeds=[6, 5])[0][1], low[0][0])


def test_edges():
    nets = initialise([10, 10], seeds=[0], device=CPU)
    assert bernoulli_masks(nets, sparsity=0.0, seeds=[0])[0].all()
    assert not bernoulli_masks(nets, sparsity=1.0, seeds=[0])[0].any()


@pytest.mark.parametrize("sparsity", [-0.1, 1.1, math.nan])
def test_bad_sparsity_is_named(sparsity):
    nets = layer([1.0, 2.0])
    with pytest.raises(InvalidInput, match="sparsity is"):
        magnitude_masks(nets, sparsity=sparsity)
    with pytest.raises(InvalidInput, match="sparsity is"):
        bernoulli_masks(nets, sparsity=sparsity, seeds=[0])


def test_bad_seeds_are_named():
    with pytest.raises(InvalidInput, match="seeds has 2 entries"):
        bernoulli_masks(layer([1.0, 2.0]), sparsity=0.5, seeds=[0, 1])
