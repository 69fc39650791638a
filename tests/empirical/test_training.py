"""Training many networks at once is training each of them; pruned weights stay pruned."""

import pytest
import torch

from empirical.attacks.active import margins
from empirical.ensembles import MLPEnsemble, initialise
from empirical.pruning import magnitude_masks
from empirical.training import Recipe, TrainingDiverged, train
from theory.types import InvalidInput

CPU = torch.device("cpu")


def double(ensemble: MLPEnsemble) -> MLPEnsemble:
    return ensemble.to(dtype=torch.float64, device=CPU)


def problem(n: int = 50, d: int = 6, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return x, (x @ torch.randn(d, classes, generator=generator, dtype=torch.float64)).argmax(1)


def by_autograd(ensemble: MLPEnsemble, x, y, recipe: Recipe, seed: int) -> list[torch.Tensor]:
    """The same training of a one-member ensemble with torch's own gradients and torch.optim.SGD."""
    weights = [w[0].clone().requires_grad_() for w in ensemble.weights]
    biases = [b[0].clone().requires_grad_() for b in ensemble.biases]
    optimiser = torch.optim.SGD(
        [{"params": weights, "weight_decay": recipe.weight_decay}, {"params": biases}],
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
    )
    generator = torch.Generator().manual_seed(seed)
    steps = len(x) // recipe.batch_size
    for epoch in range(recipe.epochs):
        order = torch.randperm(len(x), generator=generator)
        for step in range(steps):
            rows = order[step * recipe.batch_size : (step + 1) * recipe.batch_size]
            hidden = x[rows]
            for i, (w, b, m) in enumerate(zip(weights, biases, ensemble.masks, strict=True)):
                hidden = hidden @ (w * m[0]).T + b
                hidden = hidden.relu() if i < len(weights) - 1 else hidden
            if hidden.shape[1] == 1:
                hidden = torch.cat([torch.zeros_like(hidden), hidden], dim=1)
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(hidden, y[rows]).backward()
            for group in optimiser.param_groups:
                group["lr"] = recipe.learning_rate * (1 - (epoch * steps + step) / (recipe.epochs * steps))
            optimiser.step()
    return [*weights, *biases]


@pytest.mark.parametrize("outputs", [1, 3])
def test_training_is_that_of_autograd_and_torch_sgd(outputs):
    x, y = problem(classes=max(2, outputs))
    nets = double(initialise([6, 5, 4, outputs], seeds=[3, 4], device=CPU))
    nets = nets.masked(magnitude_masks(nets, sparsity=0.3))
    recipe = Recipe(epochs=4, batch_size=16, learning_rate=0.05)
    trained = train(nets, x, y, recipe, seeds=[11, 12])
    for k, seed in enumerate((11, 12)):
        expected = by_autograd(nets.select([k]), x, y, recipe, seed)
        mine = [w[k] for w in trained.weights] + [b[k] for b in trained.biases]
        for a, b in zip(mine, expected, strict=True):
            torch.testing.assert_close(a, b.detach(), rtol=1e-9, atol=1e-12)


def test_a_member_equals_the_same_network_trained_alone():
    x, y = problem()
    nets = double(initialise([6, 8, 3], seeds=[0, 1, 2], device=CPU))
    recipe = Recipe(epochs=3, batch_size=10)
    together = train(nets, x, y, recipe, seeds=[5, 6, 7])
    alone = train(nets.select([1]), x, y, recipe, seeds=[6])
    for a, b in zip(together.select([1]).weights, alone.weights, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_training_is_deterministic():
    x, y = problem()
    nets = initialise([6, 8, 3], seeds=[0, 1], device=CPU)
    first, second = (train(nets, x, y, Recipe(epochs=2), seeds=[0, 1]) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.weights, second.weights, strict=True))


def test_pruned_weights_stay_zero_and_training_learns():
    x, y = problem(n=400)
    nets = double(initialise([6, 20, 3], seeds=[0], device=CPU))
    nets = nets.masked(magnitude_masks(nets, sparsity=0.5))
    trained = train(nets, x, y, Recipe(epochs=30, batch_size=20), seeds=[0])
    for w, m in zip(trained.weights, trained.masks, strict=True):
        assert (w[~m] == 0).all()
        assert (w[m] != 0).all()
    assert float((margins(trained.logits(x), y) > 0).double().mean()) > 0.9


def test_no_epochs_change_nothing_and_a_short_data_set_is_one_batch():
    x, y = problem(n=5)
    nets = double(initialise([6, 3], seeds=[0], device=CPU))
    assert torch.equal(train(nets, x, y, Recipe(epochs=0), seeds=[0]).weights[0], nets.weights[0])
    assert not torch.equal(train(nets, x, y, Recipe(epochs=1), seeds=[0]).weights[0], nets.weights[0])


def test_divergence_names_the_member():
    x, y = problem()
    nets = double(initialise([6, 8, 3], seeds=[0, 1], device=CPU))
    nets.weights[0][1] *= 1e200
    nets.weights[1][1] *= 1e200
    with pytest.raises(TrainingDiverged, match=r"members 1 \(seed 9\)"):
        train(nets, x, y, Recipe(epochs=1), seeds=[8, 9])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": -1}, "epochs is -1"),
        ({"epochs": 1, "batch_size": 0}, "batch_size is 0"),
        ({"epochs": 1, "learning_rate": 0.0}, "learning_rate is 0"),
        ({"epochs": 1, "momentum": 1.0}, "momentum is 1"),
        ({"epochs": 1, "weight_decay": -1e-4}, "weight_decay is -0.0001"),
    ],
)
def test_bad_recipes_are_named(arguments, message):
    with pytest.raises(InvalidInput, match=message):
        Recipe(**arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y, s: (x[:, :4], y, s), "x has 4 features"),
        (lambda x, y, s: (x, y[:3], s), "3 labels for 50 examples"),
        (lambda x, y, s: (x, y + 1, s), r"labels must lie in \[0, 3\)"),
        (lambda x, y, s: (x, y, [0]), "seeds has 1 entries"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_named(change, message):
    nets = double(initialise([6, 3], seeds=[0, 1], device=CPU))
    x, y, seeds = change(*problem(), [0, 1])
    with pytest.raises(InvalidInput, match=message):
        train(nets, x, y, Recipe(epochs=1), seeds=seeds)
