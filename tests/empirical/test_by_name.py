"""Searches in float32 measure what the same searches in float64 do."""

import math

import pytest
import torch
from torch import nn

from empirical.attacks import carlini_wagner, ddn, fmn, fmn_init, minimal_pgd
from empirical.attacks.active import margins
from empirical.attacks.by_name import attacked, searched
from empirical.ensembles import MLPEnsemble, from_modules, initialise_modules
from empirical.measurement import verified_radius
from theory.types import InvalidInput

SEARCHES = {
    ("fmn", 2.0): lambda nets, x, y, box: fmn(nets, x, y, p=2.0, box=box),
    ("fmn", math.inf): lambda nets, x, y, box: fmn(nets, x, y, p=math.inf, box=box),
    ("fmn-init", 2.0): lambda nets, x, y, box: fmn_init(nets, x, y, x, p=2.0, box=box),
    ("fmn-init", math.inf): lambda nets, x, y, box: fmn_init(nets, x, y, x, p=math.inf, box=box),
    ("pgd", math.inf): lambda nets, x, y, box: minimal_pgd(nets, x, y, p=math.inf, box=box),
    ("ddn", 2.0): lambda nets, x, y, box: ddn(nets, x, y, box=box),
    ("cw", 2.0): lambda nets, x, y, box: carlini_wagner(nets, x, y, box=box),
}
# Chaotic walks part after some steps: single examples end elsewhere, their mean does not.
MEAN = 2e-3


@pytest.mark.parametrize("box", [None, (0.0, 1.0)])
@pytest.mark.parametrize(("name", "p"), SEARCHES)
def test_as_close_as_in_float64(trained_digits, name, p, box):
    nets, x, y = trained_digits
    x, y, search = x[:60], y[:60], SEARCHES[name, p]
    x_adv, found = searched(search, nets, x, y, p=p, box=box)
    radius = verified_radius(nets, x, y, x_adv, found, p=p)
    double = verified_radius(nets, x, y, *search(nets, x, y, box), p=p)
    assert found.all()
    assert radius.isfinite().all()
    assert ((radius == 0) == (double == 0)).all()
    assert (radius.mean(1) <= (1 + MEAN) * double.mean(1)).all()
    assert box is None or (x_adv.min() >= 0 and x_adv.max() <= 1)


def test_convolutions_are_bracketed():
    """Every point lies on a boundary: a little nearer, on the same ray, the class is kept."""
    torch.manual_seed(0)
    build = lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))  # noqa: E731
    nets = initialise_modules(build, shape=(1, 8, 8), seeds=[0, 1], device=torch.device("cpu"))
    nets = nets.to(dtype=torch.float64, device=torch.device("cpu"))
    x = torch.rand(30, 64, dtype=torch.float64)
    y = nets.logits(x)[0].argmax(1)
    x_adv, found = searched(SEARCHES["fmn", 2.0], nets, x, y, p=2.0)
    assert found.all()
    radius = verified_radius(nets, x, y, x_adv, found, p=2)
    assert radius.isfinite().all()
    attacked = radius > 0
    nearer = margins(nets.logits(x + (1 - 1e-6) * (x_adv - x)), y)
    assert (nearer[attacked] > 0).all()
    raw = verified_radius(nets, x, y, *SEARCHES["fmn", 2.0](nets, x, y, None), p=2)
    assert (radius.mean(1) <= (1 + MEAN) * raw.mean(1)).all()


def test_a_success_of_convolutions_does_not_hang_on_rounding():
    """Batches of other sizes round otherwise: what is found in one is found example by example."""
    torch.manual_seed(6)
    layers = [nn.Conv2d(1, 6, 3), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3), nn.Flatten()]
    module = nn.Sequential(*layers, nn.Linear(72, 20), nn.ReLU(), nn.Linear(20, 4)).double()
    nets = from_modules([module], shape=(1, 12, 12))
    x = torch.rand(80, 144, dtype=torch.float64)
    y = nets.logits(x)[0].argmax(1)
    for _, _, x_adv, found in attacked("fmn", nets, x, y, nearest={}, others=x, box=None):
        assert found.all()
        logits = torch.cat([nets.logits(x_adv[:, i : i + 1]) for i in range(len(x))], dim=1)
        assert (margins(logits, y) < 0).all()


def linear(weight, bias=0.0):
    """One logit w.x + b, of class 1."""
    weight = torch.tensor(weight, dtype=torch.float64)[None, None]
    return MLPEnsemble((weight,), (torch.full((1, 1), bias, dtype=torch.float64),), (weight != 0,))


@pytest.mark.parametrize("gap", [1e-3, 1e-7, 1e-9, 1e-12])
def test_next_to_the_boundary_float64_decides(gap):
    """Float32 logits call such an example wrong, or cannot be told to change."""
    nets = linear([1.0, 2.0], bias=-1.0)
    x = torch.tensor([[0.2, 0.4 + gap], [0.2, 0.4 - gap]], dtype=torch.float64)
    x_adv, found = searched(SEARCHES["fmn", 2.0], nets, x, torch.tensor([1, 0]), p=2.0)
    radius = verified_radius(nets, x, torch.tensor([1, 0]), x_adv, found, p=2)
    assert found.all()
    torch.testing.assert_close(
        radius[0], torch.full((2,), 2 * gap / math.sqrt(5)).double(), rtol=0.01, atol=1e-15
    )


def test_weights_that_float32_cannot_hold_are_searched_in_float64():
    nets = linear([1e50, 2e50])
    x, y = torch.tensor([[0.5, 0.1]], dtype=torch.float64), torch.tensor([1])
    x_adv, found = searched(SEARCHES["fmn", 2.0], nets, x, y, p=2.0)
    assert float(verified_radius(nets, x, y, x_adv, found, p=2)) == pytest.approx(
        0.7 / math.sqrt(5), rel=0.01
    )


def test_nothing_is_found_where_nothing_can_be():
    nets, x, y = linear([0.0, 0.0], bias=1.0), torch.rand(3, 2).double(), torch.tensor([1, 1, 0])
    x_adv, found = searched(SEARCHES["fmn", math.inf], nets, x, y, p=math.inf)
    assert found.tolist() == [[False, False, True]]
    assert torch.equal(x_adv[0], x)


def test_a_member_gets_what_it_gets_alone(trained_digits):
    nets, x, y = trained_digits
    x, y = x[:20], y[:20]
    together = searched(SEARCHES["fmn", 2.0], nets, x, y, p=2.0)[0]
    alone = [searched(SEARCHES["fmn", 2.0], nets.select([k]), x, y, p=2.0)[0][0] for k in range(2)]
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-3, atol=1e-3)


def test_an_unknown_name_is_an_error(trained_digits):
    nets, x, y = trained_digits
    with pytest.raises(
        InvalidInput, match="'fgsm' is unknown; give a tuple of some of fgs, rfgs, deepfool, pgd"
    ):
        list(attacked("fgsm", nets, x[:2], y[:2], nearest={}, others=x, box=None))


def test_inputs_and_boxes_that_float32_cannot_hold_are_searched_in_float64():
    nets, y = linear([1.0, 2.0]), torch.tensor([1])
    far = torch.tensor([[1e39, 1e39]], dtype=torch.float64)
    x_adv, found = searched(SEARCHES["fmn", 2.0], nets, far, y, p=2.0)
    assert float(verified_radius(nets, far, y, x_adv, found, p=2)) == pytest.approx(
        3e39 / math.sqrt(5), rel=0.01
    )
    box = (1.0, 1.0 + 1e-9)  # one number in float32
    close = linear([1.0, 2.0], bias=-3 - 1e-9)
    x = torch.tensor([[1.0 + 8e-10, 1.0 + 8e-10]], dtype=torch.float64)
    x_adv, found = searched(SEARCHES["fmn", math.inf], close, x, y, p=math.inf, box=box)
    assert box[0] <= float(x_adv.min()) <= float(x_adv.max()) <= box[1]
    assert float(verified_radius(close, x, y, x_adv, found, p=math.inf)) == pytest.approx(
        1.4e-9 / 3, rel=0.01
    )


def test_a_second_search_for_one_member_leaves_the_others_alone(trained_digits):
    """In float32 a search far off that finds nothing for the second member, in float64 a nearer one."""
    nets, x, y = trained_digits
    right = (margins(nets.logits(x), y) > 0).all(0)
    x, y = x[right][:20], y[right][:20]
    far, near = (SEARCHES[key](nets, x, y, None) for key in (("fmn", math.inf), ("cw", 2.0)))
    assert far[1].all()
    assert near[1].all()

    def search(given, given_x, given_y, box):
        if given_x.dtype == torch.float64:
            return near
        return far[0].float(), far[1] & torch.tensor([[True], [False]])

    x_adv, found = searched(search, nets, x, y, p=2.0)
    assert found.all()
    only_far, only_near = (searched(lambda *_, kept=kept: kept, nets, x, y, p=2.0)[0] for kept in (far, near))
    radius, nearer = (verified_radius(nets, x, y, points, found, p=2) for points in (x_adv, only_near))
    assert (nearer[0] < 0.99 * radius[0]).any()
    torch.testing.assert_close(x_adv[0], only_far[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(x_adv[1], only_near[1])
