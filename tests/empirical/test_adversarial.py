"""Altered batches: adversarial training, augmentation, low precision."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from empirical.activations import as_modules
from empirical.attacks import fgs
from empirical.attacks.active import margins
from empirical.datasets import load
from empirical.ensembles import initialise, initialise_modules
from empirical.pruning import magnitude_masks
from empirical.training.adversarial import Adversary, attacked
from empirical.training.augmentation import Augmentation
from empirical.training.descent import begin
from empirical.training.train import Recipe, train
from theory.types import InvalidInput

CPU = torch.device("cpu")
EPS = 0.1
FGS = Adversary(EPS, EPS)  # one step: the fast gradient sign


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    data = load("digits")
    return torch.tensor(data.x_train, dtype=torch.float32), torch.tensor(data.y_train)


@pytest.mark.parametrize("adversary", [FGS, Adversary(EPS, 0.04, steps=4, random_start=True)])
def test_adversarially_trained_networks_resist_fgs(adversary):
    """Unseen digits, the same start and order; by far more than 64-30-10 networks differ by seed."""
    x, y = digits()
    data = load("digits")
    x_test, y_test = torch.tensor(data.x_test, dtype=torch.float32), torch.tensor(data.y_test)
    start = initialise([64, 30, 10], seeds=[0, 1], device=CPU)
    accuracies = []
    for chosen in (None, adversary):
        nets = train(start, x, y, Recipe(epochs=15, adversary=chosen), seeds=[0, 1])
        moved = fgs(nets, x_test, y_test, eps=EPS, box=(0.0, 1.0))
        accuracies.append((margins(nets.logits(moved), y_test) > 0).double().mean(1))
    plain, hardened = accuracies
    assert (hardened > plain + 0.1).all()


@pytest.mark.parametrize("outputs", [1, 3])
def test_the_attack_of_a_step_is_the_fast_gradient_sign(outputs):
    """What training perturbs by is what the attack of that name does to the same network."""
    nets = initialise([6, 8, outputs], seeds=[0, 1], device=CPU).to(dtype=torch.float64, device=CPU)
    nets = nets.masked(magnitude_masks(nets, sparsity=0.3))
    x = torch.rand(20, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.arange(20) % max(2, outputs)
    recipe = Recipe(epochs=1, adversary=FGS)
    for kind in (nets, as_modules(nets)):
        networks = begin(kind, recipe, members=[0, 1], seeds=[0, 0]).networks
        moved = attacked(
            lambda z, n=networks: n.input_gradient(n.weights.parts, z, y.expand(2, -1), recipe),
            x.expand(2, -1, -1),
            FGS,
            noise=None,
        )
        torch.testing.assert_close(moved, fgs(nets, x, y, eps=EPS, box=(0.0, 1.0)), rtol=0, atol=1e-12)


@given(
    st.floats(0.01, 0.5),
    st.floats(0.01, 1.0),
    st.integers(1, 5),
    st.booleans(),
    st.sampled_from([None, (0.0, 1.0)]),
    st.integers(0, 99),
)
def test_every_step_stays_in_the_ball_and_in_the_box(eps, step, steps, start, box, seed):
    """And it climbs: on a linear loss enough steps reach the best corner."""
    generator = torch.Generator().manual_seed(seed)
    x, slope, noise = (torch.rand(2, 3, 4, dtype=torch.float64, generator=generator) for _ in range(3))
    slope = slope - 0.5
    adversary = Adversary(eps, step, steps=steps, random_start=start, box=box)
    moved = attacked(lambda z: slope, x, adversary, noise=noise if start else None)
    assert ((moved - x).abs() <= eps + 1e-12).all()
    if box:
        assert (moved >= 0).all()
        assert (moved <= 1).all()
    if step * steps >= 2 * eps:
        best = x + eps * slope.sign()
        torch.testing.assert_close(moved, best.clamp(0, 1) if box else best)


def test_the_attack_leaves_running_statistics_alone():
    """One step's momentum of batch-norm, whatever the number of attack steps."""
    x, y = torch.rand(32, 16), torch.arange(32) % 3

    def build() -> nn.Sequential:
        return nn.Sequential(nn.Linear(16, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))

    nets = initialise_modules(build, shape=(16,), seeds=[0], device=CPU)
    recipe = Recipe(epochs=1, batch_size=32, adversary=Adversary(0.3, 0.1, steps=5))
    trained = train(nets, x, y, recipe, seeds=[0])
    assert trained.state["1.num_batches_tracked"].tolist() == [1]
    plain = train(nets, x, y, Recipe(epochs=1, batch_size=32), seeds=[0])
    assert not torch.equal(trained.state["1.running_mean"], plain.state["1.running_mean"])


IMAGES = (2, 5, 4)


@pytest.mark.parametrize(("padding", "mirror"), [(0, True), (2, False), (1, True)])
def test_augmented_images_are_cropped_and_mirrored(padding, mirror):
    augmentation = Augmentation(padding, mirror=mirror)
    x = torch.rand(2, 40, math.prod(IMAGES))
    draws = [augmentation.draw(40, torch.Generator().manual_seed(k)) for k in range(2)]
    found = augmentation.apply(x, torch.stack(draws), shape=IMAGES)
    for k in range(2):
        for i in range(40):
            down, right, flip = draws[k][i].tolist()
            image = nn.functional.pad(x[k, i].view(IMAGES), [padding] * 4)
            image = image[:, down : down + 5, right : right + 4]
            assert torch.equal(found[k, i].view(IMAGES), image.flip(2) if flip else image)
    every = augmentation.draw(2000, torch.Generator().manual_seed(2))  # of at most 25 different ones
    assert every.unique(dim=0).shape[0] == (2 * padding + 1) ** 2 * (2 if mirror else 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"augmentation": Augmentation(1)},
        {"adversary": Adversary(0.1, 0.05, steps=2, random_start=True)},
        {"augmentation": Augmentation(1), "adversary": FGS, "activation_l1": 0.01},
    ],
)
def test_a_member_is_altered_as_if_it_were_alone(changes):
    x = torch.rand(40, math.prod(IMAGES), generator=torch.Generator().manual_seed(0))
    y = torch.arange(40) % 3

    def build() -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 3))

    nets = initialise_modules(build, shape=IMAGES, seeds=[0, 1, 2], device=CPU)
    recipe = Recipe(epochs=2, batch_size=10, **changes)
    together = train(nets, x, y, recipe, seeds=[4, 5, 4])
    alone = train(nets.select([1]), x, y, recipe, seeds=[5])
    plain = train(nets.select([1]), x, y, Recipe(epochs=2, batch_size=10), seeds=[5])
    assert torch.equal(together.weights[0][1:2], alone.weights[0])
    assert not torch.equal(alone.weights[0], plain.weights[0])


def test_low_precision_trains_nearly_the_same_networks():
    """Products of 8 significant bits; the values between the steps keep all of theirs."""
    x, y = digits()
    start = initialise([64, 30, 10], seeds=[0], device=CPU)
    recipes = [Recipe(epochs=2, bfloat16=low) for low in (False, True)]
    for kind in (start, as_modules(start)):
        full, low = (train(kind, x, y, recipe, seeds=[0]) for recipe in recipes)
        moved = (full.weights[0] - start.weights[0]).norm()
        apart = (full.weights[0] - low.weights[0]).norm()
        assert 0 < apart < 0.1 * moved
        assert low.weights[0].dtype == torch.float32
        assert not torch.equal(low.weights[0], low.weights[0].bfloat16().float())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Adversary(0.0, 0.1), "eps is 0"),
        (lambda: Adversary(0.1, math.inf), "step is inf"),
        (lambda: Adversary(0.1, 0.1, steps=0), "steps is 0"),
        (lambda: Adversary(0.1, 0.1, box=(1.0, 0.0)), "box is"),
        (lambda: Augmentation(-1), "padding is -1"),
        (lambda: Augmentation(0, mirror=False), "padding is 0"),
        (
            lambda: train(
                initialise([64, 10], seeds=[0], device=CPU), *digits(),
                Recipe(epochs=1, augmentation=Augmentation()), seeds=[0],
            ),
            "augmentation needs networks of images",
        ),
    ],
)  # fmt: skip
def test_bad_settings_are_named(make, message):
    with pytest.raises(InvalidInput, match=message):
        make()
