"""Sparse products are the dense ones up to rounding, and are chosen where the weights of a member are few."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import empirical.ensembles.layers as module
from empirical.attacks import deepfool, minimal_fgs
from empirical.attacks.active import ActiveSet
from empirical.attacks.ddn import ddn
from empirical.attacks.fmn import fmn
from empirical.compaction import compact
from empirical.datasets import Dataset
from empirical.ensembles import MLPEnsemble, initialise
from empirical.ensembles.layers import LEAST_WEIGHTS, MOST_DENSE, Layer, compressed
from empirical.measurement import measure

CPU = torch.device("cpu")
# A few thousand roundings of sums of a few dozen terms of size about 1.
ROUNDING = {torch.float32: 1e-4, torch.float64: 1e-12}


@st.composite
def layers(draw: st.DrawFn) -> torch.Tensor:
    """Weights (K, out, in): members without weights, with one, with some, with all, with dead rows."""
    members, out, into = draw(st.integers(1, 3)), draw(st.integers(1, 12)), draw(st.integers(1, 12))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    weight = torch.randn(members, out, into, generator=generator, dtype=draw(st.sampled_from(list(ROUNDING))))
    for k in range(members):
        share = draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
        weight[k] *= torch.rand(out, into, generator=generator) < share
        if draw(st.booleans()):
            weight[k] = 0
            weight[k, draw(st.integers(0, out - 1)), draw(st.integers(0, into - 1))] = 3.0
    return weight


@settings(max_examples=50)
@given(layers(), st.integers(1, 5), st.integers(0, 7))
def test_products_are_the_dense_ones(weight, n, which):
    """Whichever members are sparse: outputs, and combinations of rows in either order of storage."""
    pairs = tuple(compressed(w) if which >> k & 1 else None for k, w in enumerate(weight))
    layer, (members, out, into) = Layer(weight, pairs), weight.shape
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(members, n, into, generator=generator).to(weight)
    bias = torch.randn(members, out, generator=generator).to(weight)
    c = torch.randn(members, n, out, generator=generator).to(weight)
    tolerance = ROUNDING[weight.dtype]
    outputs = torch.einsum("koi,kni->kno", weight.double(), x.double()) + bias.double()[:, None]
    rows = torch.einsum("koi,kno->kni", weight.double(), c.double())
    torch.testing.assert_close(layer.forward(x, bias).double(), outputs, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(layer.backward(c).double(), rows, rtol=tolerance, atol=tolerance)
    units, inputs = torch.arange(which % out, out), torch.arange(which % into, into)
    some = torch.einsum("koi,kno->kni", weight[:, units].double(), c[..., units].double())[:, :, None]
    for at in (None, inputs):
        found = layer.backward_by_rows(c[..., units][:, :, None], units, at).double()
        wanted = some if at is None else some[..., at]
        torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


def test_many_rows_are_multiplied_in_blocks():
    weight = torch.randn(2, 7, 5, dtype=torch.float64)
    layer = Layer(weight, (compressed(weight[0]), None))
    c = torch.randn(2, 2 * module._ROWS + 3, 2, 7, dtype=torch.float64)
    found = layer.backward_by_rows(c, torch.arange(7))
    assert found.is_contiguous()
    torch.testing.assert_close(found, torch.einsum("koi,knso->knsi", weight, c))


def pruned(widths: list[int], densities: list[float], *, dead_layer: int | None = None) -> MLPEnsemble:
    """One member per density, float64, with biases; a layer may be dead as a whole."""
    nets = initialise(widths, seeds=range(len(densities)), device=CPU).to(dtype=torch.float64, device=CPU)
    generator = torch.Generator().manual_seed(1)
    keep = torch.tensor(densities)[:, None, None]
    masks = [torch.rand(w.shape, generator=generator) < keep for w in nets.weights]
    if dead_layer is not None:
        masks[dead_layer][:] = False
    scale = keep.clamp(min=0.01).sqrt()
    biases = tuple(0.2 * torch.randn(b.shape, generator=generator, dtype=b.dtype) for b in nets.biases)
    weights = tuple(w / scale for w in nets.weights)
    return MLPEnsemble(weights, biases, nets.masks).masked(tuple(masks))


def fresh(nets: MLPEnsemble) -> MLPEnsemble:
    """The same networks, whose layers are chosen anew."""
    return MLPEnsemble(nets.weights, nets.biases, nets.masks)


def test_few_weights_in_a_large_layer_are_sparse_products_and_only_they():
    rows, columns = 128, LEAST_WEIGHTS // 128
    weight = torch.zeros(3, rows, columns)
    most = int(MOST_DENSE * LEAST_WEIGHTS)
    for k, count in enumerate((most, most + 1, 0)):
        weight[k].flatten()[:count] = 1.0
    chosen = [pair is not None for pair in Layer.of(weight).sparse]
    assert chosen == [True, False, True]
    assert not Layer.of(weight[:, :, 1:]).is_sparse
    assert not Layer.of(weight.to("meta")).is_sparse


def test_a_member_is_the_same_in_any_company():
    nets = pruned([256, 128, 64, 4], [0.03, 1.0, 0.02])
    x = torch.randn(9, 256, dtype=torch.float64)
    together = nets.logits_and_gradient(x, lambda logits: logits.softmax(2))
    for k in range(3):
        alone = nets.select([k]).logits_and_gradient(x, lambda logits: logits.softmax(2))
        if k != 1:
            assert nets.layers[0].sparse[k] is not None
            assert torch.equal(alone[0][0], together[0][k])
            assert torch.equal(alone[1][0], together[1][k])
        torch.testing.assert_close(alone[1][0], together[1][k], rtol=1e-12, atol=1e-12)


def test_dense_networks_are_multiplied_as_ever():
    """Not one bit moves where no layer is sparse."""
    nets = pruned([40, 30, 4], [0.02, 1.0])
    x = torch.randn(2, 5, 40, dtype=torch.float64)
    hidden = torch.baddbmm(nets.biases[0][:, None], x, nets.weights[0].mT)
    logits = torch.baddbmm(nets.biases[1][:, None], hidden.relu(), nets.weights[1].mT)
    gradient = torch.bmm(torch.bmm(logits, nets.weights[1]) * (hidden > 0), nets.weights[0])
    found = nets.logits_and_gradient(x, lambda logits: logits)
    assert torch.equal(found[0], logits)
    assert torch.equal(found[1], gradient)
    assert nets.stored(x) is x


@pytest.mark.parametrize("dead_layer", [None, 0, 1])
def test_attacks_find_the_same_points_by_sparse_products(dead_layer, monkeypatch):
    """Members with different masks, one of them dense; logits, Jacobians and the attacks of experiments."""
    nets = pruned([256, 128, 130, 4], [0.04, 0.5], dead_layer=dead_layer)
    assert [pair is not None for pair in nets.layers[0].sparse] == [True, dead_layer == 0]
    x = torch.rand(12, 256, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = nets.logits(x)[0].argmax(1)

    def found(nets: MLPEnsemble) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        return {
            "jacobian": nets.logits_and_jacobian(x),
            "fgs": minimal_fgs(nets, x, y),
            "deepfool 2": deepfool(nets, x, y, p=2),
            "deepfool inf": deepfool(nets, x, y, p=math.inf),
            "ddn": ddn(nets, x, y, steps=5),
            "fmn 2": fmn(nets, x, y, p=2, steps=5),
            "fmn inf": fmn(nets, x, y, p=math.inf, steps=5),
        }

    ours = found(nets)
    monkeypatch.setattr(module, "MOST_DENSE", -1.0)
    dense = fresh(nets)
    assert not any(layer.is_sparse for layer in dense.layers)
    for name, (points, success) in found(dense).items():
        torch.testing.assert_close(ours[name][0], points, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(ours[name][1], success, rtol=1e-9, atol=1e-9)


def test_wide_rows_are_taken_of_the_member_and_example_named():
    values, shared = torch.randn(3, 5, 2, 100), torch.randn(5, 200).expand(3, 5, 200)
    unfinished = torch.tensor([[0, 1, 0, 1, 1], [0, 0, 0, 0, 0], [1, 0, 1, 0, 0]], dtype=torch.bool)
    active = ActiveSet.of(unfinished)
    for some in (values, shared):
        assert torch.equal(active.take(some), some[active.members[:, None], active.rows])


def test_fmn_does_not_depend_on_how_many_inputs_are_dead():
    """In l_inf its first step is as long as the way to the boundary, which dead inputs do not go."""
    nets = pruned([200, 20, 15, 3], [1.0])
    live = torch.arange(200) % 3 == 0
    nets = nets.masked((live.expand(1, 20, 200), *nets.masks[1:]))
    small = compact(nets)
    assert small.network.inputs == 67
    x = torch.rand(15, 200, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = nets.logits(x)[0].argmax(1)
    for p in (2, math.inf):
        whole, found = fmn(nets, x, y, p=p, steps=20)
        part, also = fmn(small.network, small.take(x), y, p=p, steps=20)
        assert found.any()
        assert torch.equal(found, also)
        torch.testing.assert_close(small.put(x, part), whole, rtol=1e-6, atol=1e-6)


def test_measurements_are_the_same_by_sparse_products(monkeypatch):
    nets = pruned([256, 128, 30, 4], [0.04, 0.03])
    x = np.random.default_rng(0).random((15, 256))
    y = nets.logits(torch.tensor(x))[0].argmax(1).numpy()
    data = Dataset("random", x, np.arange(15) % 4, x, y, 4)
    ours = measure(nets, data, eps=0.1)
    monkeypatch.setattr(module, "MOST_DENSE", -1.0)
    monkeypatch.setattr("empirical.compaction.SMALL", -1.0)
    dense = measure(fresh(nets), data, eps=0.1)
    np.testing.assert_array_equal(ours.correct, dense.correct)
    for key, radius in dense.radius.items():
        assert np.isfinite(radius).any()
        np.testing.assert_allclose(ours.radius[key], radius, rtol=1e-9)
