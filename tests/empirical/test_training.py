"""Training many networks at once is training each of them; pruned weights stay pruned."""

import math

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from empirical.activations import as_modules, last_layer
from empirical.attacks.active import margins
from empirical.ensembles import (
    MLPEnsemble,
    ModuleEnsemble,
    from_modules,
    initialise,
    initialise_modules,
    modules,
    to_module,
)
from empirical.ensembles.modules import prunable_names
from empirical.pruning import magnitude_masks, threshold_masks
from empirical.training.adversarial import Adversary
from empirical.training.gradients import TrainedMLP
from empirical.training.surgery import CUT, Surgery, thresholds
from empirical.training.train import Recipe, Schedule, TrainingDiverged, train
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


def conv(outputs: int = 3) -> nn.Sequential:
    """A small network with a convolution and batch-norm, for 2 x 4 x 4 images, in float64."""
    layers = [nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, outputs)).double()


def convs(seeds: list[int], *, sparsity: float = 0.3) -> ModuleEnsemble:
    nets = initialise_modules(conv, shape=(2, 4, 4), seeds=seeds, device=CPU)
    return nets.masked(magnitude_masks(nets, sparsity=sparsity))


def by_torch_optim(net: nn.Module, masks, shape, x, y, recipe: Recipe, seed: int) -> nn.Module:
    """One network trained with torch.optim; masked weights held at 0 by masking their gradients."""
    names = prunable_names(net)
    weights = [p for name, p in net.named_parameters() if name in names]
    others = [p for name, p in net.named_parameters() if name not in names]
    groups = [{"params": weights, "weight_decay": recipe.weight_decay}]
    groups += [{"params": others, "weight_decay": recipe.other_decay}]
    if recipe.optimiser == "adam":
        betas = (recipe.momentum, recipe.second_momentum)
        optimiser = torch.optim.Adam(groups, lr=recipe.learning_rate, betas=betas)
    else:
        optimiser = torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum)
    generator = torch.Generator().manual_seed(seed)
    per_epoch = len(x) // recipe.batch_size
    seen = []
    last_layer(net).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    net.train()
    for epoch in range(recipe.epochs):
        order = torch.randperm(len(x), generator=generator)
        for i, rows in enumerate(order[: per_epoch * recipe.batch_size].split(recipe.batch_size)):
            optimiser.zero_grad()
            loss = nn.functional.cross_entropy(net(x[rows].unflatten(1, shape)), y[rows])
            (loss + recipe.activation_l1 * seen[-1].abs().sum(1).mean()).backward()
            for weight, mask in zip(weights, masks, strict=True):
                assert weight.grad is not None
                weight.grad *= mask
            step = epoch * per_epoch + i
            for group in optimiser.param_groups:
                factor = recipe.schedule.factor(step, recipe.epochs * per_epoch, epoch=epoch)
                group["lr"] = recipe.learning_rate * factor
            optimiser.step()
    return net.eval()


RECIPES = [
    Recipe(epochs=3, batch_size=16, learning_rate=0.05, weight_decay=1e-2, other_decay=3e-3),
    Recipe(epochs=2, batch_size=16, learning_rate=0.05, momentum=0.0, activation_l1=0.05),
    Recipe(epochs=3, batch_size=16, learning_rate=0.01, optimiser="adam", weight_decay=1e-2),
    Recipe(epochs=3, batch_size=16, schedule=Schedule("inverse", decay=0.1, power=0.75)),
    Recipe(epochs=3, batch_size=16, schedule=Schedule("steps", decay=0.1, epochs=(1, 2))),
]


@pytest.mark.parametrize("recipe", RECIPES)
def test_modules_are_trained_as_torch_optim_trains_them(recipe):
    x, y = problem(d=32)
    nets = convs([0, 1])
    trained = train(nets, x, y, recipe, seeds=[7, 9])
    for k, seed in enumerate([7, 9]):
        masks = [m[k] for m in nets.masks]
        expected = by_torch_optim(to_module(nets, k), masks, nets.shape, x, y, recipe, seed).state_dict()
        for name, tensor in trained.state.items():
            torch.testing.assert_close(tensor[k], expected[name], rtol=1e-8, atol=1e-10)
    assert not torch.equal(trained.state["1.running_mean"][0], nets.state["1.running_mean"][0])
    assert (trained.state["1.num_batches_tracked"] == recipe.epochs * 3).all()


@pytest.mark.parametrize("recipe", RECIPES)
def test_written_out_gradients_are_those_of_the_same_network_as_a_module(recipe):
    x, y = problem()
    nets = double(initialise([6, 5, 4, 3], seeds=[3, 4], device=CPU))
    nets = nets.masked(magnitude_masks(nets, sparsity=0.3))
    written = train(nets, x, y, recipe, seeds=[1, 2])
    modules = train(as_modules(nets), x, y, recipe, seeds=[1, 2])
    for a, b in zip(written.weights, modules.weights, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_all_members_at_once_are_trained_as_one_by_one(monkeypatch):
    """The pass that a GPU takes, on the CPU."""
    x, y = problem(d=32)
    recipe = Recipe(epochs=2, batch_size=16, activation_l1=0.01)
    alone = train(convs([0, 1]), x, y, recipe, seeds=[7, 9])
    monkeypatch.setattr("empirical.ensembles.modules._one_by_one", modules._at_once)
    monkeypatch.setattr("empirical.training.train.shares", lambda members, **_: [range(members)])
    together = train(convs([0, 1]), x, y, recipe, seeds=[7, 9])
    for name, tensor in together.state.items():
        torch.testing.assert_close(tensor, alone.state[name], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("seeds", [[0, 1, 2], [4, 4, 4]])
def test_members_of_module_ensembles_equal_the_same_network_alone_and_repeat(seeds):
    x, y = problem(d=32)
    nets = convs([0, 1, 2])
    recipe = Recipe(epochs=2, batch_size=16, optimiser="adam", learning_rate=0.01)
    together, again = (train(nets, x, y, recipe, seeds=seeds) for _ in range(2))
    alone = train(nets.select([2]), x, y, recipe, seeds=seeds[2:])
    for name, tensor in together.state.items():
        assert torch.equal(tensor, again.state[name])
        assert torch.equal(tensor[2:], alone.state[name])


def test_modules_are_trained_one_per_core_to_the_same_numbers():
    x, y = problem(d=32)
    nets, recipe = convs([0, 1, 2]), Recipe(epochs=2, batch_size=16)
    one = train(nets, x, y, recipe, seeds=[0, 1, 2])
    torch.set_num_threads(2)
    try:
        two = train(nets, x, y, recipe, seeds=[0, 1, 2])
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(tensor, two.state[name]) for name, tensor in one.state.items())


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("inputs", [5, 6, 16])
def test_where_a_value_lies_in_memory_does_not_round_it(members, inputs):
    """Bit for bit: fused updates of a part that is no multiple of a vector register would differ."""
    x, y = problem(d=inputs)
    nets = initialise([inputs, 7, 3], seeds=list(range(members)), device=CPU)
    recipe = Recipe(epochs=2, batch_size=16)
    trained = train(nets, x.float(), y, recipe, seeds=list(range(members)))
    weights, biases = [w.clone() for w in nets.weights], [b.clone() for b in nets.biases]
    reference = MLPEnsemble(tuple(weights), tuple(biases), nets.masks)
    unfused(reference, x.float(), y, recipe, list(range(members)))
    for a, b in zip([*trained.weights, *trained.biases], [*weights, *biases], strict=True):
        assert torch.equal(a, b)


def unfused(nets: MLPEnsemble, x, y, recipe: Recipe, seeds: list[int]) -> None:
    """The same training with an operation per pass over memory, in place."""
    values = [*nets.weights, *nets.biases]
    velocity = [torch.zeros_like(v) for v in values]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    per_epoch = len(x) // recipe.batch_size
    for epoch in range(recipe.epochs):
        order = torch.stack([torch.randperm(len(x), generator=g) for g in generators])
        for i in range(per_epoch):
            rows = order[:, i * recipe.batch_size : (i + 1) * recipe.batch_size]
            networks = TrainedMLP.of(nets)
            out = networks.weights.zeros(), networks.others.zeros()
            networks.gradients(networks.weights.parts, x[rows], y[rows], recipe, out=out)
            slopes = [*out[0].parts, *(b[:, 0] for b in out[1].parts)]
            rate = recipe.learning_rate * (1 - (epoch * per_epoch + i) / (recipe.epochs * per_epoch))
            for j, (value, v, slope) in enumerate(zip(values, velocity, slopes, strict=True)):
                if j < len(nets.weights):
                    slope.add_(value, alpha=recipe.weight_decay)
                v.mul_(recipe.momentum).add_(slope)
                value.add_(v, alpha=-rate)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_l1_finds_the_minimum_of_the_penalised_loss(momentum):
    """Convex, so its minimum is where the subgradient condition holds; soft thresholds give exact zeros."""
    x, y = problem(n=60, d=8)
    nets = double(initialise([8, 3], seeds=[0], device=CPU))
    recipe = Recipe(
        epochs=600, batch_size=60, learning_rate=1.0 * (1 - momentum), momentum=momentum, weight_decay=0.0,
        l1=0.03, schedule=Schedule("constant"),
    )  # fmt: skip
    trained = train(nets, x, y, recipe, seeds=[0])
    weight = trained.weights[0][0].clone().requires_grad_()
    nn.functional.cross_entropy(x @ weight.T + trained.biases[0][0], y).backward()
    assert weight.grad is not None
    zero = weight.detach() == 0
    assert 3 <= int(zero.sum()) <= 21
    assert (weight.grad[zero].abs() <= 0.03 * (1 + 1e-6)).all()
    torch.testing.assert_close(weight.grad[~zero], -0.03 * weight.detach()[~zero].sign(), rtol=1e-5, atol=0)
    (mask,) = threshold_masks(trained, threshold=0.0)
    assert torch.equal(mask[0], ~zero)


@pytest.mark.parametrize("rates", [(0.5,), (0.5, None), (None, 1.0)])
def test_surgery_is_that_of_the_paper(rates):
    """Straight-through gradients, thresholds of the start, coins, cuts and splices, in a loop of its own."""
    x, y = problem()
    nets = double(initialise([6, 8, 3], seeds=[0, 1], device=CPU))
    surgery = Surgery(rates, decay=0.5, power=0.5)
    recipe = Recipe(epochs=8, batch_size=10, learning_rate=0.3, surgery=surgery)
    trained = train(nets, x, y, recipe, seeds=[5, 6])
    revived = 0
    for k, seed in enumerate((5, 6)):
        weights, masks, back = surgery_by_hand(nets, k, x, y, recipe, seed)
        revived += back
        for a, w, m, b in zip(trained.masks, weights, masks, trained.weights, strict=True):
            assert torch.equal(a[k], m)
            torch.testing.assert_close(b[k], w * m, rtol=1e-9, atol=1e-12)
    assert revived > 0
    spared = [m.all() for m, rate in zip(trained.masks, rates * 2, strict=False) if rate is None]
    assert all(spared)
    assert 0.05 < float(trained.sparsity().mean()) < 0.9


@pytest.mark.parametrize("share", [0.0, 0.3, 0.75, 0.99])
def test_surgery_cuts_a_share_of_every_layer_and_member(share):
    nets = double(initialise([6, 8, 3], seeds=[0, 1], device=CPU))
    for weight, limit in zip(nets.weights, thresholds(nets.weights, Surgery(share=share)), strict=True):
        cut = (weight.abs() < CUT * limit * (1 - 1e-12)).flatten(1).sum(1)
        assert cut.tolist() == [min(round(share * weight[0].numel()), weight[0].numel() - 1)] * 2


def surgery_by_hand(nets: MLPEnsemble, k: int, x, y, recipe: Recipe, seed: int):
    weights, biases = [w[k].clone() for w in nets.weights], [b[k].clone() for b in nets.biases]
    masks, limits, back = [torch.ones_like(w, dtype=torch.bool) for w in weights], [], 0
    assert recipe.surgery is not None
    rates = recipe.surgery.rates * (2 // len(recipe.surgery.rates))
    for w, rate in zip(weights, rates, strict=True):
        limits.append(None if rate is None else w.abs().mean() + rate * w.abs().std(correction=0))
    velocity = [torch.zeros_like(p) for p in weights + biases]
    generator = torch.Generator().manual_seed(seed)
    steps = len(x) // recipe.batch_size
    for epoch in range(recipe.epochs):
        order = torch.randperm(len(x), generator=generator)
        for i in range(steps):
            rows = order[i * recipe.batch_size : (i + 1) * recipe.batch_size]
            used = [(w * m).requires_grad_() for w, m in zip(weights, masks, strict=True)]
            leaves = used + [b.clone().requires_grad_() for b in biases]
            scores = (x[rows] @ leaves[0].T + leaves[2]).relu() @ leaves[1].T + leaves[3]
            slopes = torch.autograd.grad(nn.functional.cross_entropy(scores, y[rows]), leaves)
            step = epoch * steps + i
            rate = recipe.learning_rate * (1 - step / (recipe.epochs * steps))
            for j, (p, v, g) in enumerate(zip(weights + biases, velocity, slopes, strict=True)):
                v.mul_(recipe.momentum).add_(g + (recipe.weight_decay * p if j < 2 else 0))
                p.sub_(rate * v)
            if torch.rand((), generator=generator) < (1 + 0.5 * step) ** -0.5:
                for w, m, limit in zip(weights, masks, limits, strict=True):
                    if limit is not None:
                        back += int((~m & (w.abs() > 1.1 * limit)).sum())
                        m[w.abs() < 0.9 * limit] = False
                        m[w.abs() > 1.1 * limit] = True
    return weights, masks, back


@pytest.mark.parametrize(
    ("schedule", "make"),
    [
        (Schedule(), lambda o: lr_scheduler.LinearLR(o, start_factor=1.0, end_factor=1e-20, total_iters=12)),
        (Schedule("cosine"), lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=12)),
        (Schedule("constant"), lambda o: lr_scheduler.ConstantLR(o, factor=1.0)),
        (
            Schedule("steps", decay=0.2, epochs=(1, 3)),
            lambda o: lr_scheduler.MultiStepLR(o, milestones=[3, 9], gamma=0.2),
        ),
        (
            Schedule("inverse", decay=1e-2, power=0.75),
            lambda o: lr_scheduler.LambdaLR(o, lambda t: 1 / (1 + 0.01 * t) ** 0.75),
        ),
    ],
)
def test_schedules_are_those_of_torch(schedule, make):
    """Four epochs of three steps."""
    optimiser = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    theirs = make(optimiser)
    for step in range(12):
        ours = schedule.factor(step, 12, epoch=step // 3)
        assert ours == pytest.approx(optimiser.param_groups[0]["lr"], rel=1e-9)
        optimiser.step()
        theirs.step()


def test_the_survivors_of_a_divergence_are_kept():
    x, y = problem()
    nets = double(initialise([6, 8, 3], seeds=[0, 1, 2], device=CPU))
    for weight in nets.weights:
        weight[1] *= 1e200
    with pytest.raises(TrainingDiverged, match=r"members 1 \(seed 9\) diverged") as raised:
        train(nets, x, y, Recipe(epochs=3, optimiser="sgd"), seeds=[8, 9, 10])
    assert raised.value.members == [0, 2]
    expected = train(nets.select([0, 2]), x, y, Recipe(epochs=3), seeds=[8, 10])
    assert isinstance(raised.value.survivors, MLPEnsemble)
    for a, b in zip(raised.value.survivors.weights, expected.weights, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    with pytest.raises(TrainingDiverged, match=r"members 0 \(seed 9\)") as raised:
        train(nets.select([1]), x, y, Recipe(epochs=3), seeds=[9])
    assert raised.value.survivors is None


def test_a_lost_member_of_modules_leaves_the_others():
    x, y = problem(d=32)
    nets = convs([0, 1], sparsity=0.0)
    nets.weights[2][0] *= 1e300
    nets.weights[1][0] *= 1e300
    with pytest.raises(TrainingDiverged, match=r"members 0 \(seed 3\) diverged") as raised:
        train(nets, x, y, Recipe(epochs=1), seeds=[3, 4])
    assert isinstance(raised.value.survivors, ModuleEnsemble)
    expected = train(nets.select([1]), x, y, Recipe(epochs=1), seeds=[4])
    assert torch.equal(raised.value.survivors.weights[0], expected.weights[0])


def test_a_recipe_is_named_by_what_it_does():
    assert Recipe(epochs=3).describe() == {
        "epochs": 3, "batch_size": 64, "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 1e-4,
    }  # fmt: skip
    described = Recipe(epochs=3, l1=0.1, schedule=Schedule("cosine")).describe()
    assert described["l1"] == 0.1
    assert described["schedule"] == {"shape": "cosine", "decay": 0.0, "power": 0.0, "epochs": ()}
    assert len({str(recipe.describe()) for recipe in RECIPES}) == len(RECIPES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": -1}, "epochs is -1"),
        ({"epochs": 1, "batch_size": 0}, "batch_size is 0"),
        ({"epochs": 1, "learning_rate": 0.0}, "learning_rate is 0"),
        ({"epochs": 1, "momentum": 1.0}, "momentum is 1"),
        ({"epochs": 1, "weight_decay": -1e-4}, "weight_decay is -0.0001"),
        ({"epochs": 1, "learning_rate": math.inf}, "learning_rate is inf"),
        ({"epochs": 1, "second_momentum": 1.0}, "second_momentum is 1"),
        ({"epochs": 1, "activation_l1": math.nan}, "activation_l1 is nan"),
        ({"epochs": 1, "optimiser": "lion"}, "optimiser is 'lion'; choose one of sgd, adam"),
        ({"epochs": 1, "optimiser": "adam", "l1": 0.1}, "l1 is 0.1; it needs the optimiser sgd"),
        ({"epochs": 1, "l1": 0.1, "surgery": Surgery((1.0,))}, "and no surgery"),
    ],
)
def test_bad_recipes_are_named(arguments, message):
    with pytest.raises(InvalidInput, match=message):
        Recipe(**arguments)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Schedule("exponential"), "shape is 'exponential'"),
        (lambda: Schedule("inverse", decay=1.0), "power is 0"),
        (lambda: Schedule("inverse", power=1.0), "decay is 0"),
        (lambda: Schedule("steps", decay=0.1), "epochs is \\[\\]"),
        (lambda: Schedule("steps", decay=0.1, epochs=(3, 2)), "epochs is"),
        (lambda: Schedule("cosine", epochs=(3,)), "other shapes none"),
        (lambda: Schedule("linear", decay=0.1), "a linear schedule has none"),
        (lambda: Surgery(()), "rates is"),
        (lambda: Surgery((None,)), "rates is"),
        (lambda: Surgery((1.0,), decay=-1.0), "decay is -1"),
        (lambda: Surgery((1.0,), share=0.5), "no rates beside it"),
        (lambda: Surgery(share=1.0), "share is 1.0"),
        (lambda: begin_surgery((1.0, 1.0, 1.0)), "rates has 3 entries; the networks have 2 layers"),
    ],
)
def test_bad_schedules_and_surgery_are_named(make, message):
    with pytest.raises(InvalidInput, match=message):
        make()


def begin_surgery(rates: tuple[float, ...]) -> None:
    nets = initialise([6, 4, 3], seeds=[0], device=CPU)
    x, y = problem()
    train(nets, x.float(), y, Recipe(epochs=1, surgery=Surgery(rates)), seeds=[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y, s: (x[:, :4], y, s), "x has 4 features"),
        (lambda x, y, s: (x, y[:3], s), "3 labels for 50 examples"),
        (lambda x, y, s: (x, y + 1, s), r"labels must lie in \[0, 3\)"),
        (lambda x, y, s: (x, y, [0]), "seeds has 1 entries"),
        (
            lambda x, y, s: (x[:, None], y, s),
            r"x has shape \(50, 1, 6\); give \(examples, features\): ",
        ),
        (lambda x, y, s: (x.log(), y, s), r"x\[0\] holds NaN or infinity"),
        (lambda x, y, s: (x, y / 2, s), "y is of torch.float32 and shape .50,.; give integers"),
        (lambda x, y, s: (x, y > 0, s), "y is of torch.bool"),
        (lambda x, y, s: (x, y[:, None], s), r"y is of torch.int64 and shape \(50, 1\)"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_named(change, message):
    nets = double(initialise([6, 3], seeds=[0, 1], device=CPU))
    x, y, seeds = change(*problem(), [0, 1])
    with pytest.raises(InvalidInput, match=message):
        train(nets, x, y, Recipe(epochs=1), seeds=seeds)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
@pytest.mark.usefixtures("unchecked")
def test_labels_of_every_whole_type_are_the_same(dtype):
    nets, (x, y) = double(initialise([6, 4, 3], seeds=[0], device=CPU)), problem()
    wanted, found = (train(nets, x, labels, Recipe(epochs=1), seeds=[0]) for labels in (y, y.to(dtype)))
    assert torch.equal(found.weights[0], wanted.weights[0])


def test_data_outside_the_adversarys_box_is_refused():
    nets, (x, y) = double(initialise([6, 3], seeds=[0], device=CPU)), problem()
    with pytest.raises(InvalidInput, match=r"x spans \[-.*\], but adversary.box is \[0.0, 1.0\]"):
        train(nets, x, y, Recipe(epochs=1, adversary=Adversary(0.1, 0.1)), seeds=[0])
    train(nets, x, y, Recipe(epochs=1, adversary=Adversary(0.1, 0.1, box=None)), seeds=[0])
    train(nets, x.sigmoid(), y, Recipe(epochs=1, adversary=Adversary(0.1, 0.1)), seeds=[0])


def test_a_frozen_parameter_is_not_trained_unasked():
    net = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    net[0].requires_grad_(requires_grad=False)
    nets, (x, y) = from_modules([net], shape=(6,)), problem()
    with pytest.raises(InvalidInput, match="parameter 0.weight is frozen, but training changes all"):
        train(nets, x.float(), y, Recipe(epochs=1), seeds=[0])


def test_a_parameter_that_takes_no_part_stays():
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(6, 3), nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    nets, (x, y) = from_modules([Idle()], shape=(6,)), problem()
    found = train(nets, x.float(), y, Recipe(epochs=1, weight_decay=0.0), seeds=[0])
    assert torch.equal(found.state["idle.weight"], nets.state["idle.weight"])
    assert not torch.equal(found.state["used.weight"], nets.state["used.weight"])
