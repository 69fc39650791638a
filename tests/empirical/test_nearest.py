"""The nearest linearised boundary is that of a loop over classes, whatever the networks, norms and boxes."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from empirical.attacks import nearest as module
from empirical.attacks.nearest import nearest_boundaries
from empirical.ensembles import MLPEnsemble, from_modules, to_module

# Of sums of some twenty products in float64.
ROUNDING = 1e-9
BOX = (-0.5, 0.5)


@st.composite
def networks(draw: st.DrawFn) -> MLPEnsemble:
    """Two networks of any depth, some weights 0, some with one score, some with dead units or layers."""
    widths = [draw(st.integers(1, 8)) for _ in range(draw(st.integers(1, 3)))] + [draw(st.integers(1, 4))]
    return network(widths, draw(st.sampled_from([0.0, 0.4, 1.0])), draw(st.integers(0, 2**32 - 1)))


def network(widths: list[int], density: float, seed: int) -> MLPEnsemble:
    generator = torch.Generator().manual_seed(seed)
    weights, biases = [], []
    for a, b in zip(widths, widths[1:], strict=False):
        kept = torch.rand(2, b, a, generator=generator) < density
        weights.append(torch.randn(2, b, a, generator=generator, dtype=torch.float64) * kept)
        biases.append(torch.randn(2, b, generator=generator, dtype=torch.float64))
    return MLPEnsemble(tuple(weights), tuple(biases), tuple(w != 0 for w in weights))


def points(nets: MLPEnsemble) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch of each network's own in the box, some features at its walls, and any labels."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 7, nets.inputs, generator=generator, dtype=torch.float64).clamp(*BOX)
    return x, torch.randint(nets.classes, (2, 7), generator=generator)


def by_loop(nets, x: torch.Tensor, y: torch.Tensor, p: float, box) -> tuple[torch.Tensor, torch.Tensor]:
    """The least distance to a boundary, and the step onto it."""
    logits, jacobian = nets.logits_and_jacobian(x)
    distance, step = torch.full(y.shape, math.inf, dtype=x.dtype), torch.zeros_like(x)
    for k, i in torch.cartesian_prod(*map(torch.arange, y.shape)).tolist():
        true = int(y[k, i])
        for other in set(range(nets.classes)) - {true}:
            pull = jacobian[k, i, other] - jacobian[k, i, true]
            if box is not None:
                out = ((x[k, i] == box[0]) & (pull < 0)) | ((x[k, i] == box[1]) & (pull > 0))
                pull = pull.masked_fill(out, 0.0)
            size = pull.norm() if p == 2 else pull.abs().sum()
            if size > 0:
                here = (logits[k, i, true] - logits[k, i, other]).abs() / size
                if here < distance[k, i]:
                    distance[k, i] = here
                    step[k, i] = here * (pull / size if p == 2 else pull.sign())
    return distance, step


def law_of_the_loop(found, nets, x, y, p, box):
    """Distances and steps; where several boundaries are equally near, any of them."""
    distance, step = by_loop(nets, x, y, p, box)
    near = found(nets, x, y, p, box)
    ours = torch.where(near.size > 0, near.gap.abs() / near.size, math.inf)
    torch.testing.assert_close(ours, distance, rtol=ROUNDING, atol=ROUNDING)
    torch.testing.assert_close(near.step(p=p), step, rtol=ROUNDING, atol=ROUNDING)


def ours(nets, x, y, p, box):
    return nearest_boundaries(nets, x, y, norms=(p,), boxes=(box,))[p, box]


@settings(max_examples=60)
@given(networks(), st.sampled_from([2.0, math.inf]), st.sampled_from([None, BOX]))
@example(network([5, 4, 1], 1.0, 0), 2.0, BOX)
def test_it_is_that_of_a_loop(nets, p, box):
    law_of_the_loop(ours, nets, *points(nets), p, box)


@pytest.mark.parametrize("p", [2.0, math.inf])
def test_the_law_rejects_what_forgets_the_true_class(p):
    nets = network([6, 8, 5, 4], 1.0, 3)

    def forgetful(nets, x, y, p, box):
        return ours(nets, x, (y + 1) % nets.classes, p, box)

    law_of_the_loop(ours, nets, *points(nets), p, None)
    with pytest.raises(AssertionError):
        law_of_the_loop(forgetful, nets, *points(nets), p, None)


def test_all_norms_and_boxes_are_those_asked_for_alone(monkeypatch):
    """Also where examples are taken one by one, and of modules."""
    nets = network([6, 8, 5, 4], 1.0, 3)
    modules = from_modules([to_module(nets, k) for k in range(2)], shape=(6,))
    x, y = points(nets)
    together = nearest_boundaries(nets, x, y, boxes=(None, BOX))
    monkeypatch.setattr(module, "_BYTES", 1)
    assert set(together) == {(p, box) for p in (2.0, math.inf) for box in (None, BOX)}
    for (p, box), near in together.items():
        for some in (nets, modules):
            alone = ours(some, x, y, p, box)
            for name in ("gap", "size", "gradient"):
                torch.testing.assert_close(getattr(alone, name), getattr(near, name), rtol=1e-12, atol=1e-12)


def test_where_no_gradient_leads_anywhere_the_step_is_0():
    nets = network([6, 8, 3], 0.0, 0)
    x, y = points(nets)
    for (p, _), near in nearest_boundaries(nets, x, y).items():
        assert not near.size.any()
        assert not near.step(p=p).any()
