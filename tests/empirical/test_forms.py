"""One network in many forms: attacked as it computes, with the sparsity of its weights in use, or refused."""

import io
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from empirical.datasets import Examples
from empirical.ensembles import from_modules, to_module
from empirical.own_network.loading import Network, load_network
from empirical.own_network.measuring import ensemble_of
from empirical.own_network.preparation import prepare
from theory import graph as graphs
from theory.types import InvalidInput

CPU = torch.device("cpu")
X = torch.rand(12, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
EXAMPLES = Examples("x", X.numpy(), np.arange(12) % 3)


class Net(nn.Module):
    """Two layers, of which a subclass changes how they are computed."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.b(self.a(x).relu())


class MaskedLinear(nn.Linear):
    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.register_buffer("mask", (torch.arange(inputs * outputs) % 4 == 0).reshape(outputs, inputs))

    def forward(self, input):
        return nn.functional.linear(input, self.weight * self.get_buffer("mask"), self.bias)


class Masked(Net):
    def __init__(self):
        super().__init__()
        self.a = MaskedLinear(8, 6)


class Normalised(Net):
    """Buffers are no weights."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, 8))

    def forward(self, x):
        return super().forward(x - self.mean)


class Raw(nn.Module):
    def __init__(self):
        super().__init__()
        self.v, self.w = nn.Parameter(torch.randn(8, 6)), nn.Parameter(torch.randn(3, 6))

    def forward(self, x):
        return (x @ self.v).relu() @ self.w.T


class Tied(Net):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 6)
        self.again = self.inner

    def forward(self, x):
        return self.b(self.again(self.inner(self.a(x).relu()).relu()).relu())


class Sharing(Tied):
    """The weight alone is tied."""

    def __init__(self):
        super().__init__()
        self.again = nn.Linear(6, 6)
        self.again.weight = self.inner.weight


class Converting(Net):
    def forward(self, x):
        return super().forward(x.float())


class Detached(Net):
    def forward(self, x):
        return super().forward(x.detach())


class InPlace(Net):
    """A third of the first weights is removed whenever it is called."""

    def forward(self, x):
        weight = self.a.weight.clone()
        weight[:2].zero_()
        return self.b(nn.functional.linear(x, weight * torch.ones(6, 8), self.a.bias).relu())


class PerExample(Net):
    def forward(self, x):
        weight = self.a.weight.expand(x.shape[0], 6, 8)
        return self.b((torch.bmm(weight, x[..., None])[..., 0] + self.a.bias).relu())


class WithoutGradients(Net):
    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)


def changed(change) -> Net:
    net = Net()
    change(net.a)
    return net


FORMS = {
    "plain": (Net, 0.0),
    "masked": (Masked, 36 / 66),
    "normalised": (Normalised, 0.0),
    "raw": (Raw, 0.0),
    "tied": (Tied, 0.0),
    "sharing": (Sharing, 0.0),
    "in place": (InPlace, 16 / 66),
    "per example": (PerExample, 0.0),
    "float32 inside": (Converting, 0.0),
    "detached": (Detached, 0.0),
    "without gradients": (WithoutGradients, 0.0),
    "pruned": (lambda: changed(lambda a: prune.l1_unstructured(a, "weight", amount=0.5)), 24 / 66),
    "weight norm": (lambda: changed(parametrizations.weight_norm), 0.0),
    "spectral norm": (lambda: changed(parametrizations.spectral_norm), 0.0),
    "old weight norm": (lambda: changed(nn.utils.weight_norm), 0.0),
    "old spectral norm": (lambda: changed(nn.utils.spectral_norm), 0.0),
    "compiled": (lambda: torch.compile(Net()), 0.0),
    "parallel": (lambda: nn.DataParallel(Net()), 0.0),
}


UNPROVED = ("in place", "per example")  # what they do to their weights is no operation of the theory's
# A program is of a module itself, with its gradients.
EXPORTED = [name for name in FORMS if name not in ("without gradients", "compiled", "parallel")]


def prepared(module: nn.Module, *, program: bool) -> Network:
    found = module
    if program:
        file = io.BytesIO()
        torch.export.save(torch.export.export(module, (torch.zeros(2, 8),)), file)
        found = torch.export.load(file)
    return prepare(Network("net", "0", "a network", found, None), EXAMPLES, None)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "program"), [(name, False) for name in FORMS] + [(name, True) for name in EXPORTED]
)
def test_every_form_is_attacked_as_it_computes_with_the_weights_in_use(name, program):
    make, sparsity = FORMS[name]
    torch.manual_seed(0)
    module = make().eval()
    expected = module(X.float()).detach()
    network = prepared(module, program=program)
    nets = ensemble_of(network, EXAMPLES, CPU)
    scores, gradient = nets.logits_and_gradient(X, lambda scores: torch.ones_like(scores))
    torch.testing.assert_close(scores[0].float(), expected, rtol=1e-4, atol=1e-5)
    assert gradient.abs().sum() > 0
    assert nets.sparsity().tolist() == pytest.approx([sparsity])
    entries = torch.cat([weight.flatten() for weight in network.weights.values()])
    assert float((entries == 0).double().mean()) == pytest.approx(sparsity)
    assert {tuple(weight.shape) for weight in network.weights.values()} >= {(6, 8), (3, 6)}
    assert (
        len(entries) == 66 + (36 if isinstance(module, Tied) else 0) == sum(w.numel() for w in nets.weights)
    )
    if name not in UNPROVED:
        graph = graphs.read(network.given or network.module, (8,))
        torch.testing.assert_close(graph.scores(X).float(), expected, rtol=1e-4, atol=1e-5)


class Halved(Net):
    """Computes in half precision, but for what is between the layers."""

    def forward(self, x):
        return self.b(self.a(x).float().relu().half()).float()


@pytest.mark.parametrize("make", [Net, Halved])
def test_a_program_in_half_precision_is_the_network_of_its_weights(make):
    torch.manual_seed(0)
    module = make().eval().half()
    program = torch.export.export(module, (torch.zeros(2, 8, dtype=torch.half),))
    network = prepare(Network("net", "0", "a network", program, None), EXAMPLES, None)
    expected = Net.forward(module.double(), X).detach()  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(ensemble_of(network, EXAMPLES, CPU).logits(X)[0], expected)
    torch.testing.assert_close(graphs.read(program, (8,)).scores(X), expected)


def test_further_masks_remove_weights_in_use():
    torch.manual_seed(0)
    nets = ensemble_of(prepared(Masked().eval(), program=False), EXAMPLES, CPU)
    masks = tuple(torch.zeros_like(mask) for mask in nets.masks)
    scores = nets.masked(masks).logits(X)
    torch.testing.assert_close(scores, scores[:, :1].expand_as(scores))


class Noisy(Net):
    def forward(self, x):
        return super().forward(x + 0.01 * torch.randn_like(x))


class Dropping(Net):
    def forward(self, x):
        return super().forward(nn.functional.dropout(x, 0.5, training=True))


class OverTheBatch(Net):
    def forward(self, x):
        return super().forward(x - x.mean(0))


class WithoutStatistics(Net):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(8, track_running_stats=False)

    def forward(self, x):
        return super().forward(self.norm(x))


class ByNumpy(Net):
    def forward(self, x):
        return self.b(torch.from_numpy(self.a(x).detach().numpy()))


class Named(Net):
    def forward(self, x):
        return {"scores": super().forward(x)}


class Strict(Net):
    def forward(self, x):
        if len(x) < 3:
            raise KeyError("three")
        return super().forward(x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Noisy, "the same examples other scores every time"),
        (Dropping, r"the same examples other scores every time; .* export it after module.eval\(\)"),
        (OverTheBatch, "other scores alone than among others"),
        (WithoutStatistics, "cannot be attacked"),
        (ByNumpy, "cannot be attacked"),
        (Named, "to dict; it must return the scores alone"),
        (Strict, "does not take examples"),
    ],
)
def test_what_cannot_be_attacked_is_refused_before_any_work(make, message):
    torch.manual_seed(0)
    with pytest.raises(InvalidInput, match=message):
        ensemble_of(prepared(make().eval(), program=False), EXAMPLES, CPU)


class Rounded(torch.autograd.Function):
    """Rounds, with the gradient of the identity."""

    @staticmethod
    def forward(ctx, x):
        del ctx
        return (x * 8).round() / 8

    @staticmethod
    def backward(ctx, *gradients):
        del ctx
        return gradients[0]


class Quantised(Net):
    """Weights and activations rounded, with straight-through gradients."""

    def through(self, x):
        return x + ((x * 8).round() / 8 - x).detach()

    def forward(self, x):
        hidden = nn.functional.linear(x, self.through(self.a.weight), self.a.bias)
        return self.b(self.through(hidden.relu()))


class QuantisedByFunction(Quantised):
    def through(self, x):
        rounded = Rounded.apply(x)
        assert isinstance(rounded, torch.Tensor)
        return rounded


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x):
        return self.b(self.a(x.reshape(-1, 2, 4))[0][:, -1])


@pytest.mark.parametrize(
    ("make", "program"),
    [(Quantised, False), (Quantised, True), (QuantisedByFunction, False), (Recurrent, False)],
)
@pytest.mark.filterwarnings("ignore")
def test_gradients_that_the_network_defines_are_followed(make, program):
    torch.manual_seed(0)
    module = make().eval()
    nets = ensemble_of(prepared(module, program=program), EXAMPLES, CPU)
    scores, gradient = nets.logits_and_gradient(X, lambda scores: torch.ones_like(scores))
    x = X.clone().requires_grad_()
    double = module.double()
    expected = double(x)
    torch.testing.assert_close(scores[0], expected.detach(), rtol=1e-5, atol=1e-6)
    (wanted,) = torch.autograd.grad(expected.sum(), x)
    torch.testing.assert_close(gradient[0], wanted, rtol=1e-5, atol=1e-6)


def test_scores_without_gradients_are_refused():
    net = Net().eval()
    net.register_forward_hook(lambda _, __, scores: (scores * 1e3).round())
    with pytest.raises(InvalidInput, match="scores that differ between examples, but no gradients"):
        ensemble_of(prepared(net, program=False), EXAMPLES, CPU)


def test_the_given_program_stays_as_it_is():
    net = Net().eval()
    net.register_forward_hook(lambda _, __, scores: scores.softmax(1))
    program = torch.export.export(net, (torch.zeros(2, 8),))
    found = prepare(Network("net", "0", "a network", program, None), EXAMPLES, None)
    assert found.recognised == "a network, without the softmax at its end"
    torch.testing.assert_close(program.module()(X[:2].float()).sum(1), torch.ones(2))


class Hidden(Net):
    """A mask that no state dict has."""

    def __init__(self, seed):
        super().__init__()
        mask = torch.rand(6, 8, generator=torch.Generator().manual_seed(seed)) < 0.5
        self.register_buffer("mask", mask.float(), persistent=False)

    def forward(self, x):
        weight = self.a.weight * self.get_buffer("mask")
        return self.b(nn.functional.linear(x, weight, self.a.bias).relu())


def test_every_member_has_its_own_buffers():
    modules = [Hidden(seed).eval() for seed in (0, 1)]
    nets = from_modules(modules, shape=(8,)).to(dtype=torch.float64, device=CPU)
    for member, module in enumerate(modules):
        expected = module.double()(X).detach()
        torch.testing.assert_close(nets.logits(X)[member], expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(to_module(nets, member)(X).detach(), expected, rtol=1e-5, atol=1e-6)


class Single(nn.Module):
    def __init__(self, last):
        super().__init__()
        self.a, self.last = nn.Linear(8, 1), last

    def forward(self, x):
        return self.last(self.a(x))


@pytest.mark.parametrize(
    ("last", "fine"),
    [(nn.Hardsigmoid(), False), (nn.Identity(), True), (lambda score: score.abs() / 10, True)],
)
def test_a_single_output_that_is_a_probability_is_refused(last, fine):
    torch.manual_seed(0)
    module = Single(last).eval()
    deciding = module.a if isinstance(last, nn.Hardsigmoid) else module
    y = (deciding(X.float()) > 0).long().numpy()[:, 0]
    network = Network("net", "0", "a network", module, None)
    if fine:
        prepare(network, Examples("x", X.numpy(), y), None)
        return
    with pytest.raises(InvalidInput, match="judged by its sign: return the score before the sigmoid"):
        prepare(network, Examples("x", X.numpy(), y), None)


def test_probabilities_that_hide_their_scores_are_said_to():
    torch.manual_seed(0)
    net = Net().eval()
    net.register_forward_hook(lambda _, __, scores: scores.softmax(1).clamp(1e-6, 1 - 1e-6))
    assert "whose probabilities may hide gradients" in prepared(net, program=False).recognised


def test_images_are_never_taken_in_another_order():
    x = np.zeros((2, 8, 8, 3))
    examples = Examples("images", x, np.array([0, 1]))
    for shape in ((3, 8, 8), (8, 24)):
        with pytest.raises(InvalidInput, match=r"those of images have shape \(8, 8, 3\)") as caught:
            examples.fitted(shape)
        told = "channels last: store np.moveaxis(x_test, -1, 1)" if shape == (3, 8, 8) else "store them as it"
        assert f"(8, 8, 3): {told}" in str(caught.value)
    assert examples.fitted((192,)) == (192,)
    grey = Examples("grey", x[..., :1], np.array([0, 1]))
    assert grey.fitted((1, 8, 8)) == (1, 8, 8)
    flat = Examples("flat", x.reshape(2, -1), np.array([0, 1]))
    assert flat.fitted((3, 8, 8)) == (3, 8, 8)
    with pytest.raises(
        InvalidInput, match="takes examples of shape .* 192 features instead of 216: give data"
    ):
        flat.fitted((3, 8, 9))


NETS = """
import torch
from torch import nn
from torch.nn.utils import prune

class Norm(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.n, self.b = nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)
    def forward(self, x):
        return self.b(self.n(self.a(x)).relu())

class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.n, self.b = nn.LazyLinear(6), nn.LazyBatchNorm1d(), nn.LazyLinear(3)
    forward = Norm.forward

class Deciding(Norm):
    def forward(self, x):
        return super().forward(x if float(x.sum()) > 0 else -x)

def pruned():
    net = Norm()
    prune.identity(net.a, "weight")
    return net
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NETS)
    np.savez(tmp_path / "x.npz", x_test=X.numpy(), y_test=EXAMPLES.y)
    return tmp_path


def batch_norm() -> nn.Module:
    """Of the layout of the file's ``Norm``, with statistics that half precision cannot hold."""
    torch.manual_seed(0)
    scope: dict[str, type[nn.Module]] = {}
    exec(NETS, scope)  # noqa: S102 - the text above
    net = scope["Norm"]().eval()
    net.get_buffer("n.running_var").fill_(1e6)
    net.get_buffer("n.running_mean").fill_(1e5)
    return net


def test_no_weight_of_a_checkpoint_of_mixed_precision_is_rounded(folder):
    net = batch_norm()
    state = {name: t.half() if name == "a.weight" else t for name, t in net.state_dict().items()}
    torch.save(state, folder / "mixed.pt")
    weight = net.get_parameter("a.weight")
    weight.data = weight.data.half().float()
    found = load_network(folder / "mixed.pt", arch="nets.py:Norm").module
    assert isinstance(found, nn.Module)
    torch.testing.assert_close(found(X.float()), net(X.float()), rtol=0, atol=0)
    torch.save(state | {"a.bias": state["a.bias"].double() / 3}, folder / "wide.pt")
    found = load_network(folder / "wide.pt", arch="nets.py:Norm").module
    assert isinstance(found, nn.Module)
    assert torch.equal(found.get_parameter("a.bias"), state["a.bias"].double() / 3)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
@pytest.mark.parametrize("arch", ["Norm", "Lazy", "pruned"])
@pytest.mark.parametrize("key", [None, "model", "net"])
def test_checkpoints_as_training_loops_leave_them(folder, prefix, arch, key):
    net = batch_norm()
    state = {prefix + name: tensor for name, tensor in net.state_dict().items()}
    torch.save(state if key is None else {"epoch": 3, key: state}, folder / "net.pt")
    found = load_network(folder / "net.pt", arch=f"nets.py:{arch}").module
    assert isinstance(found, nn.Module)
    torch.testing.assert_close(found(X.float()), net(X.float()), rtol=0, atol=0)


def test_a_stack_needs_no_biases_and_may_be_one_layer(folder):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(8, 6, bias=False), nn.ReLU(), nn.Linear(6, 3))
    for net in (plain, nn.Linear(8, 3)):
        torch.save(net.state_dict(), folder / "net.pt")
        found = load_network(folder / "net.pt").module
        assert isinstance(found, nn.Module)
        torch.testing.assert_close(found(X.float()), net(X.float()))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"w": torch.ones(3, 8).to_sparse()}, "holds 'w' in a compressed form; save its .to_dense()"),
        ({"a.weight": torch.ones(3, 8).to_sparse_csr()}, "in a compressed form; save its .to_dense()"),
        ({"a.weight": torch.ones(3, 8).to(torch.int8)}, "holds 'a.weight' in torch.int8"),
        (
            {"epoch": 3, "layers": {}},
            "but a int under 'epoch'; save torch.save(",
        ),
        (None, "is a TorchScript archive"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_other_files_say_what_to_save(folder, content, message):
    if content is None:
        torch.jit.save(torch.jit.trace(nn.Linear(8, 3), torch.zeros(2, 8)), str(folder / "net.pt"))
    else:
        torch.save(content, folder / "net.pt")
    with pytest.raises(InvalidInput) as refused:
        load_network(folder / "net.pt")
    assert message in str(refused.value)


def test_what_tracing_says_is_one_line(folder):
    torch.save(batch_norm().state_dict(), folder / "net.pt")
    arguments = ["bounds", "net.pt", "--arch", "nets.py:Deciding", "--data", "x.npz"]
    command = [sys.executable, "-m", "empirical", *arguments]  # PyTorch's log is none of this process's
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    recognised, error = result.stderr.splitlines()
    assert recognised == "net.pt: checkpoint of nets.py:Deciding"
    assert error.startswith("Error: network cannot be traced on inputs of shape (2, 8)")


def test_a_pruned_module_that_was_called_can_be_stacked():
    """Its computed weight has a gradient's history, which cannot be copied."""
    torch.manual_seed(0)
    net = changed(lambda a: prune.l1_unstructured(a, "weight", amount=0.5))
    expected = net.eval()(X.float()).detach()
    nets = from_modules([net, net], shape=(8,))
    torch.testing.assert_close(nets.logits(X.float())[1], expected)
    assert nets.sparsity().tolist() == pytest.approx([24 / 66] * 2)
    assert prune.is_pruned(net)
    assert math.prod(nets.weights[0].shape) == 2 * 48
