"""What a GPU does must be what a CPU does; skipped where there is none."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from empirical.augmentation import Augmentation
from empirical.datasets import Dataset
from empirical.ensembles import initialise, initialise_modules
from empirical.experiments.architectures import Channels, build
from empirical.experiments.specification import ATTACKS, Network
from empirical.measurement import measure
from empirical.pruning import bernoulli_masks, global_magnitude_masks, magnitude_masks
from empirical.surgery import Surgery
from empirical.training import Recipe, train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
CPU, GPU = torch.device("cpu"), torch.device("cuda")
RECIPE = Recipe(epochs=2, batch_size=16, learning_rate=0.02, nesterov=True, augmentation=Augmentation())


def networks(kind: str, members: int, device: torch.device):
    channels = Channels((0.5,) * 3, (0.25,) * 3)
    network = Network(kind, scale=0.25 if kind == "resnet-32" else 0.05)
    return initialise_modules(
        lambda: build(network, classes=10, channels=channels),
        shape=(3, 32, 32),
        seeds=range(members),
        device=device,
    )


@pytest.fixture(scope="module")
def images() -> Dataset:
    rng = np.random.default_rng(0)
    x, y = rng.random((72, 3072)), np.arange(72) % 10
    return Dataset("noise", x[:64], y[:64], x[64:], y[64:], 10, shape=(3, 32, 32))


def trained(nets, data, recipe):
    device = nets.masks[0].device
    x, y = torch.tensor(data.x_train, device=device), torch.tensor(data.y_train, device=device)
    return train(nets, x, y, recipe, seeds=range(nets.members))


@pytest.mark.parametrize("kind", ["vgg", "resnet-32"])
@pytest.mark.parametrize("members", [1, 2])
def test_training_agrees_with_a_cpu(images, kind, members):
    """Both ways through the members, on the same batches and augmentations; rounding grows with the steps."""
    one = trained(networks(kind, members, GPU), images, replace(RECIPE, epochs=1, batch_size=64))
    other = trained(networks(kind, members, CPU), images, replace(RECIPE, epochs=1, batch_size=64))
    for a, b in zip(one.weights, other.weights, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    "change", [{"bfloat16": True}, {"compiled": "default"}, {"compiled": "reduce-overhead", "bfloat16": True}]
)
def test_fast_ways_learn_the_same(images, change):
    """Twice, as one training follows another in a run."""
    start = networks("resnet-32", 1, GPU)
    plain, fast = (trained(trained(start, images, r), images, r) for r in (RECIPE, replace(RECIPE, **change)))
    moved = [(a - s).norm() for a, s in zip(plain.weights, start.weights, strict=True)]
    apart = [(a - b).norm() for a, b in zip(plain.weights, fast.weights, strict=True)]
    assert sum(apart) < 0.5 * sum(moved)


@pytest.mark.parametrize("recipe", [RECIPE, Recipe(epochs=1, surgery=Surgery(share=0.5))])
def test_masks_and_surgery_stay_on_the_device(images, recipe):
    nets = networks("vgg", 2, GPU)
    found = (
        magnitude_masks(nets, sparsity=0.5),
        global_magnitude_masks(nets, sparsity=0.5),
        bernoulli_masks(nets, sparsity=0.5, seeds=[0, 1]),
    )
    for masks in found:
        after = trained(nets.masked(masks), images, recipe)
        assert all(mask.device.type == "cuda" for mask in after.masks)
        assert after.sparsity().cpu().mean() > 0.2


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_agree_with_a_cpu(images, attack):
    """Radii in float64 of random networks: most examples agree closely; paths part where two steps tie."""
    for build_on in (
        lambda device: networks("resnet-32", 1, device),
        lambda device: initialise([3072, 20, 10], seeds=[0, 1], device=device),
    ):
        one, other = (measure(build_on(d), images, eps=0.01, attacks=(attack,)) for d in (GPU, CPU))
        assert (one.correct == other.correct).all()
        for key, radius in one.radius.items():
            np.testing.assert_allclose(np.median(radius), np.median(other.radius[key]), rtol=0.1)
