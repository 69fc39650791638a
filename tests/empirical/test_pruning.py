"""Masks remove exactly what they say."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

from empirical.activations import Above, KLargest, share_of_zero_activations, with_activation
from empirical.datasets import load
from empirical.ensembles import MLPEnsemble, ModuleEnsemble, initialise, initialise_modules, to_module
from empirical.ensembles.modules import apply_masks
from empirical.pruning import (
    bernoulli_masks,
    global_magnitude_masks,
    magnitude_masks,
    n_of_m_masks,
    threshold_masks,
    unit_masks,
)
from empirical.training.train import Recipe, train
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


def groups_by_hand(row: list[float], *, m: int, removed: int) -> list[bool]:
    """Which weights of one output stay, group by group, in plain Python."""
    stays = [True] * len(row)
    for start in range(0, len(row), m):
        group = row[start : start + m]
        count = removed if len(group) == m else removed * len(group) // m
        for k in sorted(range(len(group)), key=lambda k: (abs(group[k]), k))[:count]:
            stays[start + k] = False
    return stays


@given(st.data(), st.sampled_from([2, 4, 5, 16]), st.integers(1, 37))
def test_every_group_of_m_inputs_loses_its_smallest_weights(data, m, inputs):
    rows = data.draw(st.lists(st.lists(st.integers(-3, 3), min_size=inputs, max_size=inputs), min_size=1))
    removed = data.draw(st.integers(0, m))
    w = torch.tensor(rows, dtype=torch.float32)[None]
    nets = MLPEnsemble((w,), (torch.zeros(1, len(rows)),), (torch.ones_like(w, dtype=torch.bool),))
    (mask,) = n_of_m_masks(nets, sparsity=removed / m, m=m)
    assert mask[0].tolist() == [groups_by_hand(row, m=m, removed=removed) for row in rows]


@given(st.data(), st.sampled_from([2, 4, 5, 16]), st.integers(1, 37))
def test_shuffled_groups_are_those_of_a_network_with_its_inputs_in_that_order(data, m, inputs):
    rows = data.draw(st.lists(st.lists(st.integers(-3, 3), min_size=inputs, max_size=inputs), min_size=1))
    removed, seeds = data.draw(st.integers(0, m)), data.draw(st.tuples(*[st.integers(0, 2**32)] * 2))
    w = torch.tensor(rows, dtype=torch.float32).expand(2, -1, -1)
    nets = MLPEnsemble((w,), (torch.zeros(2, len(rows)),), (torch.ones_like(w, dtype=torch.bool),))
    (mask,) = n_of_m_masks(nets, sparsity=removed / m, m=m, seeds=seeds)
    for seed, one in zip(seeds, mask, strict=True):
        order = torch.randperm(inputs, generator=torch.Generator().manual_seed(seed)).tolist()
        for row, found in zip(rows, one.tolist(), strict=True):
            stays = groups_by_hand([row[k] for k in order], m=m, removed=removed)
            assert [found[k] for k in order] == stays


def test_the_share_of_a_shorter_group_is_not_rounded_twice():
    nets = initialise([150, 1], seeds=[0], device=CPU)
    (mask,) = n_of_m_masks(nets, sparsity=0.58, m=100)  # 0.58 * 50 is 28.999999999999996
    assert (mask[0, 0, :100].sum(), mask[0, 0, 100:].sum()) == (42, 21)


def test_groups_of_a_convolution_are_of_channels_and_pruned_weights_go_first():
    conv = initialise_modules(
        lambda: nn.Sequential(nn.Conv2d(8, 3, 2), nn.Flatten(), nn.Linear(3, 2)),
        shape=(8, 2, 2),
        seeds=[0],
        device=CPU,
    )
    mask, last = n_of_m_masks(conv, sparsity=0.5, m=4)
    shuffled, _ = n_of_m_masks(conv, sparsity=0.5, m=4, seeds=[1])
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1)).tolist()
    weight = conv.weights[0][0]
    for out in range(3):
        for r, c in ((0, 0), (0, 1), (1, 0), (1, 1)):
            found = mask[0, out, :, r, c].tolist()
            assert found == groups_by_hand(weight[out, :, r, c].tolist(), m=4, removed=2)
            assert shuffled[0, out, order, r, c].tolist() == groups_by_hand(
                weight[out, order, r, c].tolist(), m=4, removed=2
            )
    assert last[0].sum() == 2 * 2  # one of three, the share below half
    deeper = n_of_m_masks(conv.masked((mask, last)), sparsity=0.75, m=4)[0]
    assert (deeper <= mask).all()
    assert deeper.sum() == 3 * 4 * 2


@pytest.mark.parametrize(
    ("sparsity", "m", "message"),
    [
        (0.3, 4, "sparsity is 0.3; of 4 weights give a multiple of 1/4"),
        (0.5, 1, "m is 1"),
        (1.5, 4, "sparsity is 1.5"),
    ],
)
def test_bad_groups_are_named(sparsity, m, message):
    with pytest.raises(InvalidInput, match=message):
        n_of_m_masks(layer([1.0] * 8), sparsity=sparsity, m=m)
    with pytest.raises(InvalidInput, match="seeds has 2 entries"):
        n_of_m_masks(layer([1.0] * 8), sparsity=0.5, m=4, seeds=[1, 2])


def test_the_strongest_units_stay_and_the_others_are_dead():
    nets = initialise([6, 5, 4, 3], seeds=[0, 1], device=CPU)
    first = nets.masks[0].clone()
    first[:, 2] = False
    biases = tuple(torch.rand_like(bias) for bias in nets.biases)
    nets = replace(nets, biases=biases).masked((first, *nets.masks[1:]))
    masks = unit_masks(nets, kept=[3, 2])
    pruned = nets.masked(masks)
    for k in range(2):
        alive = [mask[k].any(dim=1) for mask in masks]
        for i, count in enumerate((3, 2)):
            left = nets.masks[i][k] if i == 0 else nets.masks[i][k] & alive[i - 1]
            norms = (nets.weights[i][k] * left).norm(dim=1)
            assert alive[i].sum() == count
            assert norms[alive[i]].min() >= norms[~alive[i]].max()
            assert torch.equal(masks[i + 1][k].any(dim=0), alive[i])
        assert not alive[0][2]  # had no weights: weaker than any
    # Without the removed units altogether, their biases too, the network is the same.
    x = torch.rand(7, 6)
    for k in range(2):
        h = x
        for i in range(3):
            keep = masks[i][k].any(dim=1) if i < 2 else torch.ones(3, dtype=torch.bool)
            before = masks[i - 1][k].any(dim=1) if i else torch.ones(6, dtype=torch.bool)
            h = h @ (pruned.weights[i] * masks[i])[k][keep][:, before].T + pruned.biases[i][k][keep]
            h = h.relu() if i < 2 else h
        torch.testing.assert_close(h, pruned.logits(x)[k])


def test_strength_is_that_of_the_weights_which_are_left():
    values = [[[1.0], [2.0], [3.0]], [[9.0, 0.0, 0.1], [0.0, 1.0, 0.0]], [[1.0, 1.0]]]
    weights = tuple(torch.tensor(w)[None] for w in values)
    biases = tuple(torch.zeros(1, w.shape[1]) for w in weights)
    nets = MLPEnsemble(weights, biases, tuple(torch.ones_like(w, dtype=torch.bool) for w in weights))
    masks = unit_masks(nets, kept=[2, 1])
    assert masks[0].flatten().tolist() == [False, True, True]
    assert masks[1][0].tolist() == [[False] * 3, [False, True, True]]  # the weight of 9 left with its unit
    zero = replace(nets, weights=(torch.zeros(1, 3, 1), *weights[1:]))
    bare = zero.masked((torch.tensor([[[True], [False], [True]]]), *zero.masks[1:]))
    assert unit_masks(bare, kept=[2, 2])[0].flatten().tolist() == [True, False, True]


@pytest.mark.parametrize("kept", [[3], [6, 2], [3, -1]])
def test_bad_numbers_of_units_are_named(kept):
    with pytest.raises(InvalidInput, match=r"kept is \[.*\]; the hidden layers have \[5, 4\] units"):
        unit_masks(initialise([6, 5, 4, 3], seeds=[0], device=CPU), kept=kept)


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


def conv_layers() -> ModuleEnsemble:
    """Three members of two convolutions and a linear layer."""

    def build() -> nn.Sequential:
        layers = [nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 2), nn.Flatten(), nn.Linear(16, 5)]
        return nn.Sequential(*layers)

    return initialise_modules(build, shape=(2, 5, 5), seeds=[0, 1, 2], device=CPU)


def every_kind() -> list[MLPEnsemble | ModuleEnsemble]:
    return [initialise([30, 20, 10], seeds=[0, 1, 2], device=CPU), conv_layers()]


@pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.9, 1.0])
def test_agrees_with_torch_prune(sparsity):
    for nets in every_kind():
        masks = magnitude_masks(nets, sparsity=sparsity)
        for k in range(3):
            module = to_module(nets, k)
            layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
            for layer, mask in zip(layers, masks, strict=True):
                prune.l1_unstructured(layer, "weight", amount=sparsity)
                assert torch.equal(layer.get_buffer("weight_mask").bool(), mask[k])


@pytest.mark.parametrize("chosen", [None, [0, 1], [-1]])
@pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.9, 1.0])
def test_global_pruning_agrees_with_torch_prune(sparsity, chosen):
    for nets in every_kind():
        masks = global_magnitude_masks(nets, sparsity=sparsity, layers=chosen)
        for k in range(3):
            module = to_module(nets, k)
            layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
            some = [layers[i] for i in (chosen or range(len(layers)))]
            prune.global_unstructured(
                [(layer, "weight") for layer in some], prune.L1Unstructured, amount=sparsity
            )
            for layer, mask in zip(layers, masks, strict=True):
                expected = layer.get_buffer("weight_mask").bool() if layer in some else True
                assert (mask[k] == expected).all()


@given(
    st.lists(st.lists(st.integers(-2, 2).map(float), min_size=4, max_size=4), min_size=2, max_size=2),
    st.floats(0, 1),
    st.floats(0, 1),
)
@example([[1.0] * 4, [1.0] * 4], 0.3, 0.6)
def test_global_pruning_removes_exactly_the_smallest_and_is_nested(values, low, high):
    """Two 2 x 2 layers; pruned weights go first, equal ones in order."""
    low, high = sorted((low, high))
    weights = tuple(torch.tensor(v).view(1, 2, 2) for v in values)
    nets = MLPEnsemble(weights, (torch.zeros(1, 2),) * 2, tuple(torch.ones(1, 2, 2).bool() for _ in range(2)))
    first = global_magnitude_masks(nets, sparsity=low)
    flat = torch.cat([m.flatten() for m in first])
    size = torch.tensor(values).flatten().abs()
    removed = round(low * 8)
    assert (~flat).nonzero().flatten().tolist() == sorted(
        sorted(range(8), key=lambda i: (size[i], i))[:removed]
    )
    second = global_magnitude_masks(nets.masked(first), sparsity=high)
    for more, less in zip(second, first, strict=True):
        assert (more <= less).all()
    assert sum(int((~m).sum()) for m in second) == round(high * 8)


@pytest.mark.parametrize("criterion", [magnitude_masks, global_magnitude_masks])
def test_the_last_layer_can_be_spared(criterion):
    for nets in every_kind():
        depth = len(nets.masks)
        masks = criterion(nets, sparsity=0.5, layers=range(depth - 1))
        assert masks[-1].all()
        pruned = [m for m in masks if not m.all()]
        assert len(pruned) == depth - 1
        together = torch.cat([m.flatten(1) for m in pruned], dim=1)
        assert together.sum(1).tolist() == [round(together.shape[1] / 2)] * 3
    nets = conv_layers()
    kept = bernoulli_masks(nets, sparsity=0.5, seeds=[0, 1, 2], layers=[-1, 0])
    same = bernoulli_masks(nets, sparsity=0.5, seeds=[0, 1, 2])
    assert [torch.equal(a, b) for a, b in zip(kept, same, strict=True)] == [True, False, True]
    assert kept[1].all()


def test_a_threshold_removes_what_does_not_exceed_it():
    nets = layer([0.0, -1.0, 1.5, 0.5])
    assert threshold_masks(nets)[0].flatten().tolist() == [False, True, True, True]
    assert threshold_masks(nets, threshold=1.0)[0].flatten().tolist() == [False, False, True, False]
    with pytest.raises(InvalidInput, match="threshold is -1"):
        threshold_masks(nets, threshold=-1.0)


def drifting(nets, level):
    """A retraining that moves every weight by a known amount: weights times 1 + level, plus 1."""
    if isinstance(nets, ModuleEnsemble):
        state = {name: tensor * (1 + level) + 1 for name, tensor in nets.state.items()}
        kept = apply_masks(nets.module, state, nets.masks)
        return ModuleEnsemble(nets.module, kept, nets.masks, nets.shape, nets.outputs)
    weights = tuple((w * (1 + level) + 1) * m for w, m in zip(nets.weights, nets.masks, strict=True))
    return MLPEnsemble(weights, tuple(b + 1 for b in nets.biases), nets.masks)


@pytest.mark.parametrize("criterion", [magnitude_masks, global_magnitude_masks])
def test_rounds_of_pruning_and_training_are_nested_and_exact(criterion):
    for nets in every_kind():
        sizes = [m[0].numel() for m in nets.masks]
        for level in range(5):
            sparsity = 1 - (2 / 3) ** level
            pruned = nets.masked(criterion(nets, sparsity=sparsity))
            exact = sum(round(sparsity * s) for s in sizes) if criterion is magnitude_masks else 0
            removed = exact or round(sparsity * sum(sizes))
            assert pruned.sparsity().tolist() == pytest.approx([removed / sum(sizes)] * 3)
            assert all((m <= old).all() for m, old in zip(pruned.masks, nets.masks, strict=True))
            nets = drifting(pruned, level)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=4).map(sorted), st.integers(0, 9))
def test_any_rising_sparsities_are_reached_exactly_and_nested(sparsities, seed):
    nets = initialise([5, 4, 3], seeds=[seed, seed + 1], device=CPU)
    for level, sparsity in enumerate(sparsities):
        masks = magnitude_masks(nets, sparsity=sparsity)
        for mask, old in zip(masks, nets.masks, strict=True):
            assert (mask <= old).all()
            assert (~mask).flatten(1).sum(1).tolist() == [round(sparsity * mask[0].numel())] * 2
        nets = drifting(nets.masked(masks), level)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: magnitude_masks(layer([1.0, 2.0]), sparsity=0.5, layers=[1]), r"layers is \[1\]"),
        (lambda: global_magnitude_masks(layer([1.0, 2.0]), sparsity=0.5, layers=[]), r"layers is \[\]"),
    ],
)
def test_bad_layers_are_named(make, message):
    with pytest.raises(InvalidInput, match=message):
        make()


@pytest.mark.parametrize("activation", [KLargest(3), Above(0.7)])
def test_sparse_activations_are_part_of_the_networks(activation):
    """Logits and input gradients are those of a network written out with the activation."""
    nets = initialise([6, 8, 7, 3], seeds=[0, 1], device=CPU).to(dtype=torch.float64, device=CPU)
    nets = nets.masked(magnitude_masks(nets, sparsity=0.2))
    sparse = with_activation(nets, activation)
    x = torch.randn(9, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits, gradient = sparse.logits_and_gradient(x, lambda g: torch.ones_like(g))
    for k in range(2):
        leaf = x.clone().requires_grad_()
        hidden = leaf
        for w, b in zip(nets.weights[:-1], nets.biases[:-1], strict=True):
            hidden = (hidden @ w[k].T + b[k]).relu()
        if isinstance(activation, KLargest):
            last = hidden.topk(3, dim=1).values[:, -1:].detach()
            kept = (hidden >= last).to(x)
        else:
            kept = (hidden > 0.7).to(x)
        scores = (hidden * kept) @ nets.weights[-1][k].T + nets.biases[-1][k]
        scores.sum().backward()
        torch.testing.assert_close(logits[k], scores.detach())
        torch.testing.assert_close(gradient[k], leaf.grad)
    assert all(torch.equal(a, b) for a, b in zip(sparse.masks, nets.masks, strict=True))
    zeros = share_of_zero_activations(sparse, x)
    assert (zeros > share_of_zero_activations(nets, x)).all()
    if isinstance(activation, KLargest):
        assert (zeros >= 4 / 7).all()


def test_zero_activations_are_counted_some_examples_at_a_time():
    nets = initialise([6, 8, 3], seeds=[0, 1], device=CPU)
    x = torch.randn(2345, 6, generator=torch.Generator().manual_seed(0))
    hidden = torch.stack([x @ w.T + b for w, b in zip(nets.weights[0], nets.biases[0], strict=True)])
    batches = []

    class Watched(nn.Identity):
        def forward(self, input):
            batches.append(input.shape)
            return input

    zeros = share_of_zero_activations(with_activation(nets, Watched()), x)
    assert torch.equal(zeros, (hidden <= 0).double().mean((1, 2)))
    assert max(shape.numel() for shape in batches) < 8 * 2345


@given(st.lists(st.integers(-2, 2).map(float), min_size=1, max_size=8), st.data())
def test_the_k_largest_units_stay_and_ties_go_by_index(values, data):
    k = data.draw(st.integers(1, len(values)))
    found = KLargest(k)(torch.tensor([values]))[0].tolist()
    order = sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))
    assert found == [v if i in order[:k] else 0.0 for i, v in enumerate(values)]


def test_an_activation_penalty_makes_the_last_hidden_layer_sparser():
    data = load("digits")
    x, y = torch.tensor(data.x_train, dtype=torch.float32), torch.tensor(data.y_train)
    start = initialise([64, 30, 10], seeds=[0, 1], device=CPU)
    shares = [
        share_of_zero_activations(
            train(start, x, y, Recipe(epochs=6, activation_l1=penalty), seeds=[0, 1]), x
        )
        for penalty in (0.0, 0.01, 0.05)
    ]
    assert (shares[0] + 0.1 < shares[1]).all()
    assert (shares[1] < shares[2]).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KLargest(0), "k is 0"),
        (lambda: KLargest(4)(torch.zeros(2, 3)), "k is 4; the layer has 3 units"),
        (lambda: Above(-1.0), "threshold is -1"),
        (lambda: with_activation(layer([1.0, 2.0]), nn.Linear(1, 1)), "activation has parameters"),
    ],
)
def test_bad_activations_are_named(make, message):
    with pytest.raises(InvalidInput, match=message):
        make()
