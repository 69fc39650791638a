"""A killed training goes on as if it had not been killed, and never from a file that is not its own."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from empirical.activations import KLargest, with_activation
from empirical.ensembles import MLPEnsemble, ModuleEnsemble, initialise, initialise_modules
from empirical.pruning import magnitude_masks
from empirical.training import checkpoints
from empirical.training import train as training
from empirical.training.adversarial import Adversary
from empirical.training.augmentation import Augmentation
from empirical.training.surgery import Surgery
from empirical.training.train import Recipe, TrainingDiverged, train
from theory.types import InvalidInput

CPU = torch.device("cpu")
SEEDS = [7, 8, 7]


class Killed(Exception):
    """Stands for the end of the process."""


def problem() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.rand(40, 32, generator=torch.Generator().manual_seed(0))
    return x, torch.arange(40) % 3


def mlps() -> MLPEnsemble:
    nets = initialise([32, 6, 3], seeds=[0, 1, 2], device=CPU)
    return nets.masked(magnitude_masks(nets, sparsity=0.3))


def convs() -> ModuleEnsemble:
    def build() -> nn.Sequential:
        layers = [nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(48, 3))

    nets = initialise_modules(build, shape=(2, 4, 4), seeds=[0, 1, 2], device=CPU)
    return nets.masked(magnitude_masks(nets, sparsity=0.3))


def values(nets: MLPEnsemble | ModuleEnsemble) -> list[torch.Tensor]:
    extra = [*nets.state.values()] if isinstance(nets, ModuleEnsemble) else [*nets.biases]
    return [*nets.weights, *nets.masks, *extra]


def killed_after(nets, recipe: Recipe, path: Path, *, epochs: int, seeds=SEEDS) -> None:
    """Train until the end of so many epochs; what the last, unfinished one did is lost."""
    heard = []

    def after_epoch() -> None:
        heard.append(1)
        if len(heard) > epochs:
            raise Killed

    with pytest.raises(Killed):
        train(nets, *problem(), recipe, seeds=seeds, after_epoch=after_epoch, checkpoint=path)


@pytest.mark.parametrize(
    ("start", "recipe"),
    [
        (mlps, Recipe(epochs=5, batch_size=10)),
        (mlps, Recipe(epochs=5, batch_size=10, optimiser="adam", learning_rate=0.01)),
        (mlps, Recipe(epochs=5, batch_size=10, surgery=Surgery((0.2,), decay=0.1))),
        (mlps, Recipe(epochs=5, batch_size=10, adversary=Adversary(0.1, 0.1, random_start=True))),
        (convs, Recipe(epochs=5, batch_size=10, augmentation=Augmentation(1))),
        (convs, Recipe(epochs=5, batch_size=10, optimiser="adam", learning_rate=0.01)),
    ],
)
@pytest.mark.parametrize("epochs", [1, 4])
def test_a_resumed_training_ends_bit_for_bit_where_the_other_does(tmp_path, start, recipe, epochs):
    nets, path = start(), tmp_path / "training.safetensors"
    whole = train(nets, *problem(), recipe, seeds=SEEDS)
    killed_after(nets, recipe, path, epochs=epochs)
    heard = []
    resumed = train(
        nets, *problem(), recipe, seeds=SEEDS, checkpoint=path, every=2, after_epoch=lambda: heard.append(1)
    )
    assert len(heard) == recipe.epochs
    for a, b in zip(values(whole), values(resumed), strict=True):
        assert torch.equal(a, b)
    again = train(nets, *problem(), recipe, seeds=SEEDS, checkpoint=path)
    assert all(torch.equal(a, b) for a, b in zip(values(whole), values(again), strict=True))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_checkpoint_does_go_on_and_is_written_every_so_many_epochs(tmp_path, monkeypatch):
    steps = []
    monkeypatch.setattr("empirical.training.train.descend", lambda *_, until, **__: steps.append(until))
    recipe = Recipe(epochs=5)
    train(mlps(), *problem(), recipe, seeds=SEEDS, checkpoint=tmp_path / "a", every=2)
    assert steps == [2, 4, 5]
    train(mlps(), *problem(), recipe, seeds=SEEDS, checkpoint=tmp_path / "a", every=2)
    assert steps == [2, 4, 5]
    train(mlps(), *problem(), recipe, seeds=SEEDS)
    assert steps == [2, 4, 5, 5]


def test_lost_members_stay_lost(tmp_path):
    nets, path = mlps(), tmp_path / "training.safetensors"
    for weight in nets.weights:
        weight[1] *= 1e30
    recipe = Recipe(epochs=3, batch_size=10)
    with pytest.raises(TrainingDiverged, match=r"members 1 \(seed 8\)") as whole:
        train(nets, *problem(), recipe, seeds=SEEDS)
    killed_after(nets, recipe, path, epochs=1)
    with pytest.raises(TrainingDiverged, match=r"members 1 \(seed 8\)") as resumed:
        train(nets, *problem(), recipe, seeds=SEEDS, checkpoint=path)
    first, second = whole.value.survivors, resumed.value.survivors
    assert isinstance(first, MLPEnsemble)
    assert isinstance(second, MLPEnsemble)
    assert all(torch.equal(a, b) for a, b in zip(values(first), values(second), strict=True))


def test_another_number_of_cores_may_go_on(tmp_path, monkeypatch):
    """The file knows members, not the parts that they were trained in."""
    nets, path, recipe = mlps(), tmp_path / "training.safetensors", Recipe(epochs=3, batch_size=10)
    whole = train(nets, *problem(), recipe, seeds=SEEDS)
    killed_after(nets, recipe, path, epochs=1)
    monkeypatch.setattr("empirical.training.train.shares", lambda members, **_: [range(1), range(1, members)])
    resumed = train(nets, *problem(), recipe, seeds=SEEDS, checkpoint=path)
    for a, b in zip(values(whole), values(resumed), strict=True):
        torch.testing.assert_close(a, b)


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "cut short":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "one bit":
        content[-3] ^= 1
        path.write_bytes(content)
    else:
        save_file(load_file(path), path)  # without what names the training


@pytest.mark.parametrize("how", ["cut short", "empty", "one bit", "foreign"])
def test_a_damaged_file_is_named(tmp_path, how):
    path, recipe = tmp_path / "training.safetensors", Recipe(epochs=2, batch_size=10)
    train(mlps(), *problem(), recipe, seeds=SEEDS, checkpoint=path)
    damage(path, how)
    with pytest.raises(InvalidInput, match=r"training\.safetensors is damaged .* delete it"):
        train(mlps(), *problem(), recipe, seeds=SEEDS, checkpoint=path)


def test_a_checkpoint_of_another_training_is_refused(tmp_path):
    path, recipe = tmp_path / "training.safetensors", Recipe(epochs=2, batch_size=10)
    x, y = problem()
    nets = mlps()
    train(nets, x, y, recipe, seeds=SEEDS, checkpoint=path)
    others = MLPEnsemble(nets.weights, tuple(b + 1 for b in nets.biases), nets.masks)
    for arguments, seeds in [
        ((nets, x, y, Recipe(epochs=3, batch_size=10)), SEEDS),
        ((nets, x, y, Recipe(epochs=2, batch_size=10, l1=0.1)), SEEDS),
        ((nets, x + 1, y, recipe), SEEDS),
        ((nets, x, y.flip(0), recipe), SEEDS),
        ((nets, x, y, recipe), [7, 8, 9]),
        ((others, x, y, recipe), SEEDS),
        ((initialise([32, 6, 3], seeds=[0, 1, 2], device=CPU), x, y, recipe), SEEDS),
    ]:
        with pytest.raises(InvalidInput, match="belongs to another"):
            train(*arguments, seeds=seeds, checkpoint=path)


def test_a_checkpoint_of_networks_that_compute_something_else_is_refused(tmp_path):
    path, recipe = tmp_path / "training.safetensors", Recipe(epochs=1, batch_size=10)
    many, few = (with_activation(mlps(), KLargest(k)) for k in (4, 1))
    train(many, *problem(), recipe, seeds=SEEDS, checkpoint=path)
    train(with_activation(mlps(), KLargest(4)), *problem(), recipe, seeds=SEEDS, checkpoint=path)
    with pytest.raises(InvalidInput, match="belongs to another"):
        train(few, *problem(), recipe, seeds=SEEDS, checkpoint=path)


def test_a_folder_that_another_process_takes_away_is_made_again(tmp_path, monkeypatch):
    """Once: where it cannot be made the error is told."""
    path, recipe, left = tmp_path / "unfinished" / "a", Recipe(epochs=1, batch_size=10), [1]

    def taken(folder: Path) -> None:
        made(folder)
        if left:
            left.pop()
            folder.rmdir()

    made = training.make_folder
    monkeypatch.setattr(training, "make_folder", taken)
    train(mlps(), *problem(), recipe, seeds=SEEDS, checkpoint=path)
    assert path.is_file()
    path.unlink()
    left.extend([1, 1])
    with pytest.raises(OSError, match="cannot be written"):
        train(mlps(), *problem(), recipe, seeds=SEEDS, checkpoint=path)


def test_a_folder_that_goes_while_a_file_is_written_is_made_again(tmp_path, monkeypatch):
    """Safetensors says so in an error of its own."""
    path, left = tmp_path / "unfinished" / "a", [1]

    def taken(tensors, file, **options):
        if left:
            left.pop()
            shutil.rmtree(path.parent)
        written(tensors, file, **options)

    written = checkpoints.save_file
    monkeypatch.setattr(checkpoints, "save_file", taken)
    train(mlps(), *problem(), Recipe(epochs=1, batch_size=10), seeds=SEEDS, checkpoint=path)
    assert path.is_file()


def test_every_is_checked(tmp_path):
    with pytest.raises(InvalidInput, match="every is 0"):
        train(mlps(), *problem(), Recipe(epochs=1), seeds=SEEDS, checkpoint=tmp_path / "a", every=0)
