"""Ensembles of modules compute what the modules compute, and what the written-out MLP ensemble does."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from empirical.activations import KLargest, as_modules, with_activation
from empirical.ensembles import (
    MLPEnsemble,
    concatenate,
    from_modules,
    initialise,
    initialise_modules,
    to_module,
)
from empirical.pruning import magnitude_masks
from theory.types import InvalidInput

CPU = torch.device("cpu")
SHAPE = (2, 6, 6)


class Small(nn.Module):
    """Two convolutions with batch-norm and pooling, so that every kind of state occurs."""

    def __init__(self, outputs: int = 3) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3)
        )
        self.head = nn.Linear(5, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x).relu().flatten(1))


class Scaled(nn.Module):
    """A linear layer times a number that is neither a parameter nor in its description."""

    def __init__(self, factor: float, name: str = "") -> None:
        super().__init__()
        self.factor, self.name, self.layer = factor, name, nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.factor * self.layer(x)


class Counted(nn.ReLU):
    """With a buffer that its state does not show."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1), persistent=False)


class Doubled(Scaled):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([super().forward(x)] * 2, dim=1)


def stack(between: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), between, nn.Linear(4, 2))


def mlps() -> MLPEnsemble:
    return initialise([3, 4, 2], seeds=[0, 1], device=CPU)


def small(seeds: list[int], outputs: int = 3) -> list[nn.Module]:
    """Networks whose batch-norm has seen data, in float64."""
    modules = []
    for seed in seeds:
        torch.manual_seed(seed)
        net = Small(outputs).double().train()
        for _ in range(3):
            net(torch.randn(8, *SHAPE, dtype=torch.float64) * 2 + 1)
        modules.append(net.eval())
    return modules


@pytest.mark.parametrize("examples", [1, 7, 130])
def test_logits_and_gradients_are_those_of_the_members(examples):
    nets = small([0, 1])
    ensemble = from_modules(nets, shape=SHAPE)
    x = torch.randn(2, examples, 72, dtype=torch.float64)
    v = torch.randn(2, examples, 3, dtype=torch.float64)
    logits, gradient = ensemble.logits_and_gradient(x, lambda g: v * g)
    again, jacobian = ensemble.logits_and_jacobian(x)
    for k, net in enumerate(nets):
        leaf = x[k].clone().requires_grad_()
        wanted = net(leaf.unflatten(1, SHAPE))
        (wanted * v[k] * wanted.detach()).sum().backward()
        torch.testing.assert_close(logits[k], wanted.detach(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(gradient[k], leaf.grad, rtol=1e-10, atol=1e-12)
    assert torch.equal(logits, again)
    torch.testing.assert_close(
        torch.einsum("knc,kncd->knd", v * logits, jacobian), gradient, rtol=1e-10, atol=1e-12
    )
    torch.testing.assert_close(ensemble.logits(x), logits, rtol=1e-12, atol=1e-12)


class Viewing(Small):
    """As people write it: a view of what the convolutions give, which cannot have channels last."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x).relu().view(x.size(0), -1)) + 0 * x.view(x.size(0), -1)[:, :1]


def test_a_view_is_no_obstacle():
    torch.manual_seed(0)
    net = Viewing().double().eval()
    x = torch.randn(5, 72, dtype=torch.float64)
    logits = from_modules([net], shape=SHAPE).logits(x)
    torch.testing.assert_close(logits[0], net(x.unflatten(1, SHAPE)).detach())


def test_a_stack_of_linear_layers_equals_the_mlp_ensemble():
    mlp = initialise([6, 5, 4, 3], seeds=[3, 1], device=CPU).to(dtype=torch.float64, device=CPU)
    ensemble = from_modules([to_module(mlp, k) for k in range(2)], shape=(6,))
    x = torch.randn(9, 6, dtype=torch.float64)
    for ours, theirs in zip(mlp.logits_and_jacobian(x), ensemble.logits_and_jacobian(x), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert torch.equal(mlp.sparsity(), ensemble.sparsity())
    assert all(torch.equal(a, b) for a, b in zip(mlp.weights, ensemble.weights, strict=True))


def test_a_single_output_stands_for_two_logits():
    ensemble = from_modules(small([0], outputs=1), shape=SHAPE)
    x = torch.randn(4, 72, dtype=torch.float64)
    logits, jacobian = ensemble.logits_and_jacobian(x)
    assert ensemble.classes == 2
    assert logits.shape == (1, 4, 2)
    assert not logits[..., 0].any()
    assert not jacobian[:, :, 0].any()
    assert jacobian[:, :, 1].any()


def test_export_gives_back_the_module():
    nets = small([0, 1])
    ensemble = from_modules(nets, shape=SHAPE)
    x = torch.randn(5, *SHAPE, dtype=torch.float64)
    for k, net in enumerate(nets):
        assert torch.equal(to_module(ensemble, k)(x), net(x))
        copy.deepcopy(to_module(ensemble, k))


def test_masks_remove_weights_for_good():
    ensemble = from_modules(small([0, 1]), shape=SHAPE)
    keep = tuple(torch.ones_like(m) for m in ensemble.masks)
    keep[0][1, 2] = False
    masked = ensemble.masked(keep)
    total = sum(m[0].numel() for m in keep)
    assert masked.sparsity().tolist() == pytest.approx([0.0, 18 / total])
    assert not masked.weights[0][1, 2].any()
    assert torch.equal(masked.select([0]).weights[0], ensemble.select([0]).weights[0])
    assert torch.equal(masked.masked(ensemble.masks).sparsity(), masked.sparsity())
    joined = concatenate([masked.select([1]), ensemble])
    assert torch.equal(joined.select([0]).weights[0], masked.select([1]).weights[0])
    assert joined.members == 3


def test_a_member_depends_on_its_seed_alone():
    many = initialise_modules(Small, shape=SHAPE, seeds=[7, 3, 7], device=CPU)
    one = initialise_modules(Small, shape=SHAPE, seeds=[3], device=CPU)
    for name, tensor in many.state.items():
        assert torch.equal(tensor[0], tensor[2])
        assert torch.equal(tensor[1], one.state[name][0])
    assert not torch.equal(many.weights[0][0], many.weights[0][1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: from_modules([], shape=SHAPE), "modules is empty"),
        (lambda: from_modules([nn.Linear(3, 2), nn.Linear(3, 4)], shape=(3,)), "differ in parameters"),
        (lambda: from_modules([nn.BatchNorm1d(3)], shape=(3,)), "nothing can be pruned"),
        (lambda: from_modules([nn.ReLU()], shape=(3,)), "no parameters"),
        (lambda: from_modules([nn.Linear(3, 2)], shape=(4,)), r"does not take examples of shape \(4,\)"),
        (lambda: from_modules([nn.Linear(3, 2)], shape=(5, 3)), "must return the scores alone"),
        (lambda: initialise_modules(Small, shape=SHAPE, seeds=[], device=CPU), "seeds is empty"),
        (
            lambda: concatenate([from_modules([nn.Linear(n, 2)], shape=(n,)) for n in (2, 3)]),
            "different architectures",
        ),
        (
            lambda: from_modules([stack(nn.ReLU()), stack(nn.Tanh())], shape=(3,)),
            "modules 0 and 1 differ",
        ),
        (
            lambda: from_modules([Scaled(1.0), Scaled(1.0), Scaled(2.0)], shape=(3,)),
            "modules 0 and 2 differ in what they compute",
        ),
        (lambda: from_modules([Scaled(1.0), Doubled(1.0)], shape=(3,)), "modules 0 and 1 differ"),
        (
            lambda: concatenate([with_activation(mlps(), KLargest(k)) for k in (4, 4, 1)]),
            "modules that differ in what they compute",
        ),
        (lambda: with_activation(mlps(), Counted()), "activation has parameters or buffers"),
        (
            lambda: MLPEnsemble(mlps().weights, mlps().biases, tuple(~mask for mask in mlps().masks)),
            r"masks\[0\] is False at weights that are not 0",
        ),
        (
            lambda: replace(as_modules(mlps()), masks=tuple(~mask for mask in mlps().masks)),
            r"masks\[0\] is False at weights that are not 0",
        ),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(InvalidInput, match=message):
        make()


def test_equal_modules_with_other_names_go_together():
    """What a module does counts, not what else it holds."""
    nets = [Scaled(2.0, name="first"), Scaled(2.0, name="second")]
    together = from_modules(nets, shape=(3,))
    x = torch.rand(4, 3)
    for k, net in enumerate(nets):
        torch.testing.assert_close(together.logits(x)[k], net(x).detach())
    again = concatenate([with_activation(mlps(), KLargest(2)), with_activation(mlps(), KLargest(2))])
    assert again.members == 4


def test_a_shared_weight_is_pruned_under_whatever_name_it_has_first():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            a = nn.Linear(3, 3, bias=False)
            self.penalised = nn.ParameterList([a.weight])
            self.a, self.last = a, nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.a(self.a(x).relu()).relu())

    nets = from_modules([Shared()], shape=(3,))
    assert [tuple(weight.shape) for weight in nets.weights] == [(1, 3, 3), (1, 2, 3)]
    pruned = nets.masked(magnitude_masks(nets, sparsity=0.9))
    assert float(pruned.sparsity()) == pytest.approx(13 / 15)
    assert [int((weight != 0).sum()) for weight in pruned.weights] == [1, 1]
    x = torch.rand(4, 3)
    torch.testing.assert_close(pruned.logits(x)[0], to_module(pruned, 0)(x).detach())


def test_a_weight_that_is_not_finite_is_named():
    net = nn.Linear(3, 2)
    with torch.no_grad():
        net.weight[0, 0] = torch.nan
    with pytest.raises(InvalidInput, match="weight of member 0 holds NaN"):
        from_modules([net], shape=(3,))
