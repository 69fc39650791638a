"""What a GPU does must be what a CPU does; where there is none, on a stand-in for one."""

from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from empirical.attacks import by_name
from empirical.attacks.fmn_init import fmn_init
from empirical.attacks.losses import cross_entropy_direction
from empirical.attacks.pgd import minimal_pgd
from empirical.datasets import Dataset
from empirical.ensembles import initialise, initialise_modules
from empirical.experiments.architectures import Channels, build
from empirical.experiments.specification import ATTACKS, Experiment, Network
from empirical.measurement import measure
from empirical.pruning import bernoulli_masks, global_magnitude_masks, magnitude_masks
from empirical.runs.provenance import choose_device
from empirical.runs.run import run_experiments
from empirical.training.augmentation import Augmentation
from empirical.training.surgery import Surgery
from empirical.training.train import Recipe, train
from tests.standin import standin_gpu

HAS_GPU = torch.cuda.is_available()
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


def convolutional() -> nn.Sequential:
    norm, pool = nn.BatchNorm2d(4), nn.MaxPool2d(2)
    return nn.Sequential(
        nn.Conv2d(3, 4, 5, stride=3), norm, nn.ReLU(), pool, nn.Flatten(), nn.Linear(100, 10)
    )


@pytest.fixture(autouse=True)
def gpu():
    if HAS_GPU:
        choose_device("cuda")  # as every command: float32 convolutions in float32
    with nullcontext() if HAS_GPU else standin_gpu():
        yield


@pytest.fixture(scope="module")
def images() -> Dataset:
    rng = np.random.default_rng(0)
    x, y = rng.random((68, 3072)), np.arange(68) % 10
    return Dataset("noise", x[:64], y[:64], x[64:], y[64:], 10, shape=(3, 32, 32))


def test_numbers_of_two_devices_do_not_mix():
    """Else a stand-in would show nothing."""
    here, there = torch.ones(2), torch.ones(2, device=GPU)
    assert there.is_cuda
    assert not there.cpu().is_cuda
    assert (there + torch.tensor(1.0)).is_cuda
    assert there[torch.tensor([0])].is_cuda
    assert here.to(there).is_cuda
    with pytest.raises(RuntimeError, match="same device"):
        here.add(there)
    with pytest.raises(RuntimeError):
        here[torch.zeros(1, dtype=torch.int64, device=GPU)]
    with pytest.raises(RuntimeError):
        torch.rand(2, device=GPU, generator=torch.Generator())
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()
    with pytest.raises(TypeError, match="numpy"):
        np.asarray(there)


def trained(nets, data, recipe):
    device = nets.masks[0].device
    x, y = torch.tensor(data.x_train, device=device), torch.tensor(data.y_train, device=device)
    return train(nets, x, y, recipe, seeds=range(nets.members))


@pytest.mark.parametrize("kind", ["vgg", "resnet-32"])
@pytest.mark.parametrize("members", [1, 2])
def test_training_agrees_with_a_cpu(images, kind, members):
    """Both ways through the members, on the same batches and augmentations."""
    recipe = replace(RECIPE, epochs=1, batch_size=64)
    starts = [networks(kind, members, CPU).to(dtype=torch.float64, device=device) for device in (GPU, CPU)]
    one, other = (trained(start, images, recipe) for start in starts)
    for a, b in zip(one.weights, other.weights, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("change", "most"),
    [
        ({"bfloat16": True}, 0.5),
        ({"compiled": "default"}, 0.1),
        ({"compiled": "reduce-overhead", "bfloat16": True}, 0.5),
    ],
)
@pytest.mark.skipif(not HAS_GPU, reason="a stand-in neither rounds nor compiles as a GPU does")
def test_fast_ways_learn_the_same(images, change, most):
    """Four small steps, after another training as in a run.

    On a CPU the changes of the weights differ by 0.2 of themselves in bfloat16, and by 0.014 between float32
    and float64; larger steps through batch-norm of 16 images would part for any rounding.
    """
    start, recipe = networks("resnet-32", 1, GPU), replace(RECIPE, epochs=1, learning_rate=1e-3)
    trained(start, images, replace(recipe, **change))
    plain, fast = (trained(start, images, r) for r in (recipe, replace(recipe, **change)))
    moved = [(a - s).norm() for a, s in zip(plain.weights, start.weights, strict=True)]
    apart = [(a - b).norm() for a, b in zip(plain.weights, fast.weights, strict=True)]
    assert sum(apart) < most * sum(moved)


def test_many_members_gradients_in_float64_agree_with_a_cpu(images):
    """As random masks are measured: many networks at once, whose convolutions are grouped ones."""
    nets = initialise_modules(convolutional, shape=(3, 32, 32), seeds=range(25), device=CPU)
    here, there = (nets.to(dtype=torch.float64, device=device) for device in (CPU, GPU))
    x, y = torch.tensor(images.x_test).expand(25, 4, 3072), torch.tensor(images.y_test).expand(25, 4)
    one, other = (
        some.logits_and_gradient(x.to(device), cross_entropy_direction(y.to(device)))
        for some, device in ((here, CPU), (there, GPU))
    )
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(b.cpu(), a, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("recipe", [RECIPE, Recipe(epochs=1, surgery=Surgery(share=0.75))])
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


STARTS = {
    "convolutions": partial(initialise_modules, convolutional, shape=(3, 32, 32), seeds=[0, 1]),
    "mlp": partial(initialise, [3072, 20, 10], seeds=[0, 1]),
}


@pytest.fixture
def short(monkeypatch):
    """Fewer steps: a stand-in takes every operation through Python, and small ones are slow on a GPU."""
    monkeypatch.setattr(by_name, "STEPS", 10)
    monkeypatch.setattr(by_name, "minimal_pgd", partial(minimal_pgd, steps=5, halvings=3))
    monkeypatch.setattr(by_name, "fmn_init", partial(fmn_init, steps=5))


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("kind", STARTS)
@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_agree_with_a_cpu(images, attack, kind):
    """Radii in float64 of random networks: most examples agree closely; paths part where two steps tie."""
    if not HAS_GPU and kind == "convolutions" and attack not in ("fgs", "deepfool", "ddn"):
        pytest.skip("slow on a stand-in, where the other network takes the same way")
    nets = STARTS[kind](device=CPU)
    x = torch.tensor(images.x_test, dtype=torch.float32)
    images = replace(images, y_test=nets.logits(x)[0].argmax(1).numpy())  # else little is attacked
    there = nets.to(dtype=torch.float32, device=GPU)
    one, other = (measure(start, images, eps=0.01, attacks=(attack,)) for start in (there, nets))
    assert (one.correct == other.correct).all()
    assert one.correct[0].all()
    for key, radius in one.radius.items():
        assert (radius[0] > 0).all()
        np.testing.assert_allclose(np.median(radius[0]), np.median(other.radius[key][0]), rtol=0.1)


CONDITIONS_OF = {
    "mlp": ("magnitude", "random", "surgery", "activation"),
    "linear-binary": ("dense", "magnitude"),
}


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("kind", CONDITIONS_OF)
def test_a_run_has_the_rows_of_one_on_a_cpu(kind, tmp_path):
    """What is measured is the same; its values are those of networks of other roundings."""
    recipe, hidden = Recipe(epochs=1, batch_size=64), (16, 8) if kind == "mlp" else ()
    experiment = Experiment(
        "tiny",
        "",
        "digits",
        Network(kind, hidden=hidden),
        (0.0, 0.5),
        conditions=CONDITIONS_OF[kind],
        seeds=2,
        first=recipe,
        retrain=recipe,
        attacks=("fgs", "ddn"),
        masks=2,
        train_examples=64,
        test_examples=4 if kind == "mlp" else 12,
    )
    found = []
    for device in (GPU, CPU):
        run = run_experiments([experiment], tmp_path / device.type, device=device)
        assert run.violations.empty
        rows = run.networks.drop(columns=["settings", "device", "value", "achieved_sparsity", "commit"])
        found.append(rows.sort_values([*map(str, rows)]).reset_index(drop=True))
    pd.testing.assert_frame_equal(*found)
