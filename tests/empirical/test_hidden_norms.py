"""Norms by the first layer's Gram matrix give the steps that gradients over the inputs give."""

import importlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from empirical.attacks import deepfool
from empirical.attacks.hidden_norms import HiddenNorms
from empirical.attacks.nearest import nearest_boundaries
from empirical.ensembles import MLPEnsemble

# Of sums of some ten products in float64, and of the root of a square whose terms cancel.
ROUNDING = 1e-7


@st.composite
def wide_networks(draw: st.DrawFn) -> MLPEnsemble:
    """Two networks with twice as many inputs as hidden units or more, some weights 0, some with one score."""
    hidden = draw(st.lists(st.integers(1, 7), min_size=1, max_size=3))
    widths = [draw(st.integers(2 * hidden[0], 20)), *hidden, draw(st.integers(1, 4))]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    density = draw(st.sampled_from([0.0, 0.3, 1.0]))
    weights, biases = [], []
    for a, b in zip(widths, widths[1:], strict=False):
        kept = torch.rand(2, b, a, generator=generator) < density
        weights.append(torch.randn(2, b, a, generator=generator, dtype=torch.float64) * kept)
        biases.append(torch.randn(2, b, generator=generator, dtype=torch.float64))
    weights[0] *= torch.logspace(-1, 1, hidden[0], dtype=torch.float64)[:, None]  # norms that differ
    return MLPEnsemble(tuple(weights), tuple(biases), tuple(w != 0 for w in weights))


def examples(nets: MLPEnsemble) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch of each network's own, and its predictions."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(nets.members, 9, nets.inputs, generator=generator, dtype=torch.float64)
    return x, nets.logits(x).argmax(2)


def law_same_steps(step, nets):
    """As by gradients over the inputs, whichever boundary is nearest."""
    x, y = examples(nets)
    wanted = nearest_boundaries(nets, x, y)[2, None].step(p=2)
    torch.testing.assert_close(step(nets, x, y), wanted, rtol=ROUNDING, atol=ROUNDING)


def by_gram(nets, x, y):
    split = HiddenNorms.of(nets)
    assert split is not None
    return split.nearest(x, y).step(p=2)


@settings(max_examples=60)
@given(wide_networks())
def test_steps_are_those_of_gradients(nets):
    law_same_steps(by_gram, nets)


def test_the_law_rejects_norms_without_the_gram_matrix():
    generator = torch.Generator().manual_seed(1)
    shapes = ((2, 5, 12), (2, 4, 5))
    weights = tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    weights[0].mul_(torch.logspace(-1, 1, 5).double()[:, None])
    biases = tuple(torch.zeros(shape[:2], dtype=torch.float64) for shape in shapes)
    nets = MLPEnsemble(weights, biases, tuple(w != 0 for w in weights))

    def without(nets, x, y):
        split = HiddenNorms.of(nets)
        assert split is not None
        same = torch.eye(split.gram.shape[1], dtype=x.dtype).expand_as(split.gram)
        return HiddenNorms(nets, same).nearest(x, y).step(p=2)

    law_same_steps(by_gram, nets)
    with pytest.raises(AssertionError):
        law_same_steps(without, nets)


@pytest.mark.parametrize("given_first", [False, True])
def test_deepfool_is_the_same(given_first, monkeypatch):
    """Members that are done at different steps, wrong examples among them."""
    generator = torch.Generator().manual_seed(2)
    shapes = ((3, 10, 40), (3, 8, 10), (3, 5, 8))
    weights = tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    biases = tuple(torch.randn(shape[:2], generator=generator, dtype=torch.float64) for shape in shapes)
    nets = MLPEnsemble(weights, biases, tuple(w != 0 for w in weights))
    x = torch.randn(30, 40, generator=generator, dtype=torch.float64)
    y = nets.logits(x)[0].argmax(1)
    nearest = nearest_boundaries(nets, x, y)[2, None] if given_first else None
    ours, found = deepfool(nets, x, y, p=2, nearest=nearest)
    module = importlib.import_module("empirical.attacks.deepfool")
    monkeypatch.setattr(module.HiddenNorms, "of", lambda nets: None)
    plain, hit = deepfool(nets, x, y, p=2, nearest=nearest)
    assert torch.equal(found, hit)
    assert 0.5 < found.double().mean()
    torch.testing.assert_close(ours, plain, rtol=ROUNDING, atol=ROUNDING)


def test_only_where_it_pays():
    weights = (torch.ones(1, 6, 10), torch.ones(1, 3, 6))
    biases = (torch.zeros(1, 6), torch.zeros(1, 3))
    narrow = MLPEnsemble(weights, biases, tuple(w != 0 for w in weights))
    linear = MLPEnsemble(weights[1:], biases[1:], narrow.masks[1:])
    assert HiddenNorms.of(narrow) is None
    assert HiddenNorms.of(linear) is None
