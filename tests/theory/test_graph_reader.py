"""Reading modules and saved programs: equal scores for what is understood, a named refusal for the rest."""

import io
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import ExportedProgram

from empirical.models import resnet
from theory.graph.certificate import certified_radius
from theory.graph.constants import path_norm
from theory.graph.lipschitz import local_lipschitz
from theory.graph.network import Activation, Graph, Linear
from theory.graph.reader import read, trace
from theory.graph.windows import window_entries
from theory.laws import graph as laws
from theory.types import InvalidInput

IMAGE, VECTOR = (2, 8, 8), (5,)


class Function(nn.Module):
    """A module that applies a function of its parameters and the input."""

    def __init__(self, forward, **parts):
        super().__init__()
        self.function = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.function(self, x)


class Block(nn.Module):
    """A residual block as in ResNets: operations in place, and a strided shortcut."""

    def __init__(self, into: int, out: int, stride: int):
        super().__init__()
        self.first = nn.Conv2d(into, out, 3, stride=stride, padding=1, bias=False)
        self.first_norm, self.second_norm = nn.BatchNorm2d(out), nn.BatchNorm2d(out)
        self.second = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Conv2d(into, out, 1, stride=stride) if stride > 1 else nn.Identity()

    def forward(self, x):
        out = self.second_norm(self.second(self.relu(self.first_norm(self.first(x)))))
        out += self.shortcut(x)
        return self.relu(out)


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=(1, 2), padding=(2, 1), dilation=(2, 1), groups=2),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True),
        nn.Dropout(0.5),
        nn.Conv2d(4, 3, 2, bias=False),
        nn.ReLU(inplace=True),
        nn.AvgPool2d(2, stride=1, padding=1),
        nn.AdaptiveAvgPool2d((5, 1)),
        nn.Flatten(),
        nn.Linear(15, 7),
        nn.BatchNorm1d(7, affine=False),
        nn.ReLU(),
        nn.Linear(7, 3),
    )


def worded() -> nn.Module:
    """Padding by words: as much as keeps the sides, or none."""
    return nn.Sequential(
        nn.Conv2d(2, 3, (3, 5), padding="same", dilation=(2, 1)), nn.ReLU(),
        nn.Conv2d(3, 3, (1, 2), padding="same", dilation=(1, 2)), nn.ReLU(),
        nn.Conv2d(3, 2, 3, stride=2, padding="valid"), nn.Flatten(), nn.Linear(18, 3),
    )  # fmt: skip


def residual() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), Block(3, 3, 1), Block(3, 4, 2), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip


def functional() -> nn.Module:
    def forward(self, x):
        h = F.relu(F.conv2d(x, self.kernel, self.bias, padding=1))
        h = F.max_pool2d(h, (2, 3), (1, 2), dilation=(2, 1)) * self.gain - 0.5
        skip = h
        h = torch.relu(1 - F.avg_pool2d(h, 3, 1, 1)) + skip / 4.0
        h = -torch.sub(h, skip)
        pooled = h.mean((2, 3)) + h.mean((2, 3), keepdim=True).squeeze(-1).squeeze(-1)
        h = pooled.view(x.size(0), -1)
        return torch.addmm(self.shift, h.unsqueeze(1).flatten(1).reshape(-1, 3) @ self.mixing, self.head)

    parts = {
        "kernel": (3, 2, 3, 3),
        "bias": (3,),
        "gain": (3, 1, 1),
        "shift": (4,),
        "mixing": (3, 5),
        "head": (5, 4),
    }
    return Function(forward, **{name: nn.Parameter(torch.randn(shape)) for name, shape in parts.items()})


def moving() -> nn.Module:
    """Values in parts, in another order, padded, copied and put together, as in published networks."""

    def forward(self, x):
        shortcut = F.pad(self.first(x)[:, :, ::2, ::2], (0, 0, 0, 0, 1, 2))  # of a ResNet's option A
        h = F.relu(self.second(F.pad(x, (0, 1, 1, 0), mode="reflect")) + shortcut)
        left, right = h.chunk(2, 1)
        h = F.channel_shuffle(torch.cat([left, F.relu(right - left), left.mul(0)], 1), 3)
        h = F.pad(h, (-1, 1), value=0.25).permute(0, 2, 3, 1).flip(1)
        first, rest = h[:, None].split([1, 3], dim=2)
        h = rest.roll(1, 3) - first.expand(-1, -1, 3, -1, -1)
        h = F.relu(h[:, 0, :, [2, 0, 1]]).index_select(3, torch.tensor([8, 0, 4]))
        h = F.interpolate(h.transpose(1, 3), scale_factor=2).repeat(1, 2, 1, 1)
        first, *others = h.unbind(1)
        return sum(map(F.relu, others), start=first).flatten(1)[:, :7]

    return Function(forward, first=nn.Conv2d(2, 3, 1), second=nn.Conv2d(2, 6, 3, stride=2))


def dense() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 6, bias=False), nn.ReLU(), nn.Linear(6, 2))


UNDERSTOOD = {
    "dense": (dense, VECTOR),
    "convolutional": (convolutional, IMAGE),
    "worded": (worded, IMAGE),
    "residual": (residual, IMAGE),
    "functional": (functional, IMAGE),
    "moving": (moving, IMAGE),
    "option A": (lambda: resnet(depth=8, widths=(2, 3, 6), classes=4, channels=2), IMAGE),
}


@pytest.fixture(scope="module", params=UNDERSTOOD)
def pair(request) -> tuple[Graph, nn.Module, Tensor]:
    """A graph, its float64 module in evaluation mode with random statistics, and inputs."""
    torch.manual_seed(0)
    make, shape = UNDERSTOOD[request.param]
    module = make().double()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            assert part.running_mean is not None
            assert part.running_var is not None
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2.0)
    module.train()
    [*module.modules()][-1].training = False  # flags may differ
    flags = [part.training for part in module.modules()]
    graph = read(module, shape)
    assert [part.training for part in module.modules()] == flags
    return graph, module.eval(), torch.randn(6, *shape, dtype=torch.float64)


def test_scores_are_those_of_the_module(pair):
    graph, module, x = pair
    laws.law_reads_the_module(graph, module, x)
    laws.law_reads_the_module(graph, module, 100 * x)


def test_the_law_rejects_another_network(pair):
    graph, module, x = pair
    for i in graph.activations:
        nodes = list(graph.nodes)
        before = nodes[i].inputs[0]
        nodes[i] = type(nodes[i])(nodes[before].operation, nodes[before].inputs, nodes[i].shape, None)
        if nodes[before].bias is not None:
            with pytest.raises(AssertionError):
                laws.law_reads_the_module(Graph(tuple(nodes), graph.dtype, graph.device), module, x)


def test_gradients_are_those_of_the_module(pair):
    graph, module, x = pair
    x = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(module(x)[:, 0].sum(), x)
    (found,) = torch.autograd.grad(graph.scores(x)[:, 0].sum(), x)
    assert (found - expected).abs().max() <= laws.ROUNDING * (1 + expected.abs().max())


def test_programs_with_any_batch_size_are_read_from_a_file():
    """Saved, loaded, with a symbolic number of examples, and in float32."""
    torch.manual_seed(1)
    module = Function(
        lambda self, x: self.linear(x.view(x.size(0), -1).relu()), linear=nn.Linear(8, 3)
    ).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sides = ({0: torch.export.Dim("batch", min=2)},)
        program = torch.export.export(module, (torch.zeros(3, 2, 4),), dynamic_shapes=sides)
        file = io.BytesIO()
        torch.export.save(program, file)
        file.seek(0)
        loaded = torch.export.load(file)
    x = torch.randn(5, 2, 4, dtype=torch.float64)
    laws.law_reads_the_module(read(loaded, (2, 4)), module.double(), x)
    narrow = read(loaded, (2, 4), dtype=torch.float32)
    assert narrow.scores(x).dtype == torch.float32
    laws.law_reads_the_module(laws.in_float64(narrow), module, x)
    with pytest.raises(InvalidInput, match=r"shape is \(8,\); the network takes examples of shape \(2, 4\)"):
        read(loaded, (8,))


WITH_NUMBER = {
    "roll": lambda self, x: self.part(x.roll(len(x), 1)),
    "place": lambda self, x: x[:, len(x) - 1].unsqueeze(1).expand(-1, 5),
    "range": lambda self, x: self.part(x)[:, :2] + x.narrow(1, len(x) - 2, 2),
    "mixed": lambda self, x: self.part(x.reshape(2, -1).roll(1, 1).reshape(-1, 5)),
    "weight times it": lambda self, x: self.part(x) + self.part.bias * x.shape[0],
    "weight plus it": lambda self, x: self.part(x) + (self.part.bias + x.shape[0]),
    "weight over it": lambda self, x: self.part(x) + self.part.bias / x.shape[0],
    "power": lambda self, x: self.part(x) + self.part.bias ** x.shape[0],
    "filled": lambda self, x: self.part(x) * torch.full((5,), x.shape[0]),
    "filled by share": lambda self, x: self.part(x) * torch.full((5,), 1.0 / x.shape[0]),
    "tensor": lambda self, x: self.part(x) * torch.tensor(x.shape[0]),
    "sum of range": lambda self, x: self.part(x) + torch.arange(x.shape[0]).sum(),
    "part of a weight": lambda self, x: self.part(x) + self.part.bias[: x.shape[0]].sum(),
    "filled at last": lambda self, x: self.part(x) * torch.full_like(self.part.bias, fill_value=len(x)),
    "beyond a weight": lambda self, x: self.part(x) + self.part.bias[x.shape[0] + 2],
    "beyond the entries": lambda self, x: self.part(x) + x[:, x.shape[0] + 2, None].expand(-1, 5),
    "same for few": lambda self, x: self.part(x) + x.shape[0] // 4,
    "same for few, alpha": lambda self, x: torch.add(self.part(x), x, alpha=x.shape[0] // 4 + 1),
}


@pytest.mark.parametrize("name", WITH_NUMBER)
def test_programs_of_any_batch_size_that_compute_with_it_are_refused(name):
    module = Function(WITH_NUMBER[name], part=nn.Linear(5, 5)).double().eval()
    program = trace(module, VECTOR)
    assert any(isinstance(side, torch.SymInt) for side in _input_of(program).shape)
    with pytest.raises(InvalidInput, match="number of examples|mixes the examples|out of"):
        read(program, VECTOR)


def _input_of(program: ExportedProgram) -> Tensor:
    (name,) = program.graph_signature.user_inputs
    (node,) = (node for node in program.graph.nodes if node.name == name)
    return node.meta["val"]


WITHOUT_NUMBER = {
    "views": lambda self, x: self.part(x.reshape(x.shape[0] * 1, 5)),
    "ones": lambda self, x: self.part(x) * torch.ones(x.shape[0], 1).mean(0),
    "every example": lambda self, x: self.part(x[torch.arange(x.shape[0])]),
    "constants": lambda self, x: self.part(x) * torch.full((x.shape[1],), x.shape[1]),
}


@pytest.mark.parametrize("name", WITHOUT_NUMBER)
def test_programs_of_any_batch_size_that_only_name_it_are_read(name):
    module = Function(WITHOUT_NUMBER[name], part=nn.Linear(5, 5)).double().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sides = ({0: torch.export.Dim("batch", min=2)},)
        program = torch.export.export(module, (torch.zeros(4, 5).double(),), dynamic_shapes=sides)
    laws.law_reads_the_module(read(program, VECTOR), module, torch.randn(6, 5).double())


@torch.library.custom_op("graph_reader::relu", mutates_args=())
def other_relu(x: Tensor) -> Tensor:
    """Another function than ReLU, of the same name."""
    return torch.where(x > 0, x, 5 * x)


@other_relu.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("graph_reader::double", mutates_args={"x"})
def double_in_place(x: Tensor) -> None:
    """x becomes 2 x."""
    x.mul_(2)


def test_operations_of_other_libraries_are_refused_by_their_full_name():
    with pytest.raises(InvalidInput, match=r"network uses graph_reader.relu.default, which is not"):
        read(Function(lambda self, x: self.part(other_relu(x)), part=nn.Linear(5, 5)), VECTOR)

    def forward(self, x):
        double_in_place(self.part.bias)
        return self.part(x)

    part = nn.Linear(5, 5)
    before = part.bias.clone()
    with pytest.raises(InvalidInput, match=r"changes a constant in place by graph_reader.double.default"):
        read(Function(forward, part=part), VECTOR)
    assert torch.equal(part.bias, before)


def test_constants_of_other_libraries_are_computed():
    module = Function(lambda self, x: x * other_relu(self.part), part=nn.Parameter(-torch.ones(5))).double()
    laws.law_reads_the_module(read(module, VECTOR), module, torch.randn(4, 5).double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_upsampling_that_hangs_on_the_precision_is_refused(dtype):
    """In float32 another pixel is chosen than in float64: a graph of either would be another network."""
    for factor, side in ((2.3, 31), (2.3, 39)):
        module = nn.Sequential(nn.Upsample(scale_factor=factor), nn.Flatten())
        with pytest.raises(InvalidInput, match=r"upsample_nearest2d.* other entries in float32"):
            read(module, (1, side, side), dtype=dtype)
    for factor, side in ((2.3, 30), (2, 31), (1.7, 7), (0.5, 9)):
        module = nn.Sequential(nn.Upsample(scale_factor=factor), nn.Flatten())
        graph = read(module, (1, side, side), dtype=dtype)
        x = torch.randn(2, 1, side, side)
        assert torch.equal(graph.scores(x).float(), module(x))


def test_padding_is_the_number_that_it_is_in_float64():
    """0.1 in float32 is another number: an input that is wrong by less was certified."""
    head = nn.Linear(2, 2, bias=False).double()
    head.weight.data = torch.tensor([[1.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    module = Function(lambda self, x: self.part(F.pad(x, (0, 1), value=0.1)), part=head)
    x = torch.tensor([[-0.1000000005]], dtype=torch.float64)
    graph = read(module, (1,))
    assert torch.equal(graph.scores(x), module(x))
    assert certified_radius(graph, x, torch.tensor([0]), p=2.0) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_read_as_the_numbers_that_they_are(dtype):
    """The theory is about the network of these weights, and no half precision multiplies them."""
    torch.manual_seed(2)
    module = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)).to(dtype).eval()
    graph = read(module, VECTOR)
    assert module[0].weight.dtype == dtype
    laws.law_reads_the_module(graph, module.double(), torch.randn(6, *VECTOR, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_graph_stays_what_it_was_while_the_module_is_trained_on(dtype):
    """Bounds that were computed before, of absolute weights too, are about the weights of then."""
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 3)).to(dtype).eval()
    graph = read(net, (6,), dtype=dtype)
    x = torch.ones(2, 6, dtype=dtype)
    scores, norms = graph.scores(x), path_norm(graph, p=2.0)
    with torch.no_grad():
        for part in (*net.parameters(), *net.buffers()):
            part.add_(part)
    assert torch.equal(graph.scores(x), scores)
    assert torch.equal(path_norm(graph, p=2.0), norms)


def test_a_training_program_is_refused_by_name():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dropping = torch.export.export(
            nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 2)).train(), (torch.zeros(2, 2),)
        )
    with pytest.raises(InvalidInput, match="dropout.* in training mode"):
        read(dropping, (2,))


def test_changes_in_place_are_followed():
    def forward(self, x):
        hidden = self.linear(x)
        twice = hidden * 2
        hidden.relu_()
        hidden += twice
        return twice + hidden

    module = Function(forward, linear=nn.Linear(5, 3)).double()
    laws.law_reads_the_module(read(module, VECTOR), module, torch.randn(4, 5).double())


def test_what_the_scores_do_not_depend_on_is_left_out():
    def forward(self, x):
        hidden = self.first(x).relu()
        self.dead(hidden).relu()
        return self.last(hidden)

    parts = {"first": nn.Linear(5, 4), "dead": nn.Linear(4, 9), "last": nn.Linear(4, 3)}
    module = Function(forward, **parts).double()
    graph = read(module, VECTOR)
    assert [node.shape for node in graph.nodes] == [(5,), (4,), (4,), (3,)]
    laws.law_reads_the_module(graph, module, torch.randn(4, 5).double())
    unused = Function(lambda self, x: (self.part(x), x)[1], part=nn.Linear(5, 5))
    x = torch.randn(4, 5).double()
    assert torch.equal(read(unused, VECTOR).scores(x), x)


def test_a_single_score_is_refused_with_what_to_return_instead():
    layer = nn.Linear(5, 1).double()
    with pytest.raises(InvalidInput, match=r"one score s return \(0, s\): torch.cat\(\[0 \* s, s\], 1\)"):
        read(layer, VECTOR)

    def forward(self, x):
        s = self.part(x)
        return torch.cat([0 * s, s], 1)

    module = Function(forward, part=layer)
    laws.law_reads_the_module(read(module, VECTOR), module, torch.randn(4, 5).double())


def gate(self, x):
    return x if x.sum() > 0 else -x


def recurrent(self, x):
    return self.part(x[:, None])[0][:, 0]


def renormalised(self, x):
    return F.batch_norm(x, None, None, training=True)


def viewed(self, x):
    h = self.part(x)
    v = h.view(-1, 5)
    v.relu_()
    return h


def changed(self, x):
    h = self.part(x)
    h.split(2, dim=1)[0].relu_()
    return h


REFUSED = {
    "sigmoid": (lambda self, x: self.part(x).sigmoid(), "sigmoid"),
    "tanh": (lambda self, x: torch.tanh(self.part(x)), "tanh"),
    "softmax": (lambda self, x: F.softmax(x, 1), "softmax"),
    "lstm": (recurrent, "lstm"),
    "control flow": (gate, "cannot be traced"),
    "batch mean": (lambda self, x: x - x.mean(0, keepdim=True), "mixes the examples"),
    "batch norm in training": (renormalised, "batch_norm.* statistics of its batch"),
    "product": (lambda self, x: x * self.part(x), "multiplies two values"),
    "quotient": (lambda self, x: 1 / x, "reciprocal|divides"),
    "weights from the input": (lambda self, x: F.linear(self.part(x), x[:2]), "slice|weight that depends"),
    "whole mean": (lambda self, x: x + x.mean(), "mixes the examples"),
    "int": (lambda self, x: x.to(torch.int64).double(), "int64"),
    "random": (lambda self, x: x + torch.randn(5), "random numbers by aten.randn"),
    "huge": (lambda self, x: x + torch.zeros(10**13).sum(), r"constant of shape \(10000000000000,\) by aten"),
    "viewed": (viewed, "relu_.default has changed it in place"),
    "batch bias": (lambda self, x: torch.addmm(torch.ones(2, 5), x, self.part.weight), "batch axis"),
    "batch offset": (lambda self, x: torch.addmm(torch.ones(2, 1), x, self.part.weight), "batch axis"),
    "one score": (lambda self, x: x[:, None].flatten(1).view(-1, 5, 1), "one score per class"),
    "alpha": (lambda self, x: torch.add(x, self.part(x), alpha=2), "alpha = 2"),
    "constant": (lambda self, x: torch.ones(2, 3), "returns a constant"),
    "two outputs": (lambda self, x: (x, self.part(x)), "returns 2 values"),
    "one for all": (lambda self, x: x.flip(0), "mixes the examples"),
    "other examples": (lambda self, x: self.part(x).permute(1, 0)[:2].relu(), "mixes the examples"),
    "parts of the batch": (lambda self, x: x.chunk(2, 0)[0], "mixes the examples"),
    "constant beside": (lambda self, x: torch.cat([x, torch.ones(2, 1)], 1), "concatenates a constant"),
    "number of examples": (lambda self, x: self.part(x) / len(x), "number of examples"),
    "number in a constant": (
        lambda self, x: self.part(x) + torch.full((5,), 1.0 / len(x)),
        "number of examples",
    ),
    "number decides": (lambda self, x: self.part(x) if len(x) == 2 else x, "number of examples"),
    "first two": (lambda self, x: x + x[:2], "traced on inputs of shape \\(3, 5\\)"),
    "part changed": (changed, "relu_.default has changed it in place"),
    "another type": (lambda self, x: x.view(torch.int32), "int32"),
    "mask": (lambda self, x: x[:, torch.tensor([True, False, True, False, True])], "a choice by a mask"),
    "all padded away": (lambda self, x: x + F.pad(x, (-5, 5), value=2.0), "without entries"),
    "no entries": (lambda self, x: torch.cat(x.split([0, 5], 1), 1), "without entries"),
    "matrix": (lambda self, x: self.part(x.view(-1, 1, 5).clone()), "one axis of several"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_is_refused_by_name(name):
    forward, message = REFUSED[name]
    part = nn.LSTM(5, 5, batch_first=True) if name == "lstm" else nn.Linear(5, 5)
    module = Function(forward, part=part)
    with pytest.raises(InvalidInput, match=message):
        read(module.train(), VECTOR)
    assert all(inner.training for inner in module.modules())


IMAGES_REFUSED = {
    "uneven": (lambda self, x: F.adaptive_avg_pool2d(x, 3).flatten(1), "only equal windows"),
    "same": (
        lambda self, x: F.conv2d(x, self.part.weight[..., :2], padding="same").flatten(1),
        r"by 'same', which is uneven for a kernel of \(3, 2\)",
    ),
    "transposed": (lambda self, x: F.conv_transpose2d(x, self.part.weight).flatten(1), "conv_transpose2d"),
}


@pytest.mark.parametrize("name", IMAGES_REFUSED)
def test_operations_on_images_are_refused_by_name(name):
    forward, message = IMAGES_REFUSED[name]
    with pytest.raises(InvalidInput, match=message):
        read(Function(forward, part=nn.Conv2d(2, 2, 3)), IMAGE)


def test_whole_numbers_are_not_taken_for_reals():
    """A first parameter of whole numbers says nothing of the network's precision."""
    places = nn.Parameter(torch.tensor([2, 0, 1, 4, 3]), requires_grad=False)
    with pytest.raises(InvalidInput, match=r"computes aten.to.dtype in torch.int64"):
        read(Function(lambda self, x: (x * 0.5).to(self.w.dtype) * self.w, w=places), VECTOR)
    module = Function(
        lambda self, x: self.last(x[:, self.w] * self.w), w=places, last=nn.Linear(5, 3)
    ).double()
    laws.law_reads_the_module(read(module, VECTOR), module, torch.randn(4, 5).double())


def test_an_input_of_whole_numbers_is_only_copied_before_it_is_converted():
    """Sums of whole numbers may wrap around."""

    def program(forward):
        module = Function(forward, part=nn.Linear(5, 3))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return module, torch.export.export(module, (torch.ones(2, 1, 5, dtype=torch.uint8),))

    with pytest.raises(InvalidInput, match=r"computes aten.add.Tensor in torch.uint8"):
        read(program(lambda self, x: self.part((x + 200).flatten(1).float()))[1], (1, 5))
    module, exported = program(lambda self, x: self.part(x.flatten(1).flip(1).to(self.part.weight) / 255))
    x = torch.randint(256, (4, 1, 5)).double()
    laws.law_reads_the_module(read(exported, (1, 5)), module.double(), x)


def test_values_of_one_number_have_bounds():
    """One number per example, without an axis: chosen, of a weight with one axis, and computed with."""

    def forward(self, x):
        first, second = x[:, 0], F.linear(x, self.weight)
        difference = F.relu(first * 2 - second + 1).unsqueeze(1) - x[:, 1:].select(1, 2)[:, None]
        return torch.cat([difference, x[:, 3].relu()[:, None, None].flatten(1), second[:, None]], 1)

    module = Function(forward, weight=nn.Parameter(torch.randn(5))).double()
    graph = read(module, VECTOR)
    x = torch.randn(4, 5).double()
    laws.law_reads_the_module(graph, module, x)
    y = graph.scores(x).argmax(1)
    for p in (2.0, math.inf):
        radius = certified_radius(graph, x, y, p=p)
        assert (radius > 0).all()
        laws.law_no_attack_inside(radius, graph, x, y, p=p)
        assert local_lipschitz(graph, x, y, p=p, radius=radius).isfinite().all()


def test_dropout_in_evaluation_mode_is_an_identity_on_constants_too():
    def forward(self, x):
        hidden = self.part(x)
        dropped = self.drop(hidden)
        return hidden + dropped + F.linear(x, F.dropout(self.part.weight, 0.5, self.training))

    module = Function(forward, part=nn.Linear(5, 3), drop=nn.Dropout(0.5, inplace=True)).double()
    laws.law_reads_the_module(read(module, VECTOR), module.eval(), torch.randn(4, 5).double())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        training = torch.export.export(module.train(), (torch.zeros(2, 5).double(),))
    with pytest.raises(InvalidInput, match=r"dropout.* in training mode"):
        read(training, VECTOR)


def test_shapes_are_sequences_of_whole_numbers():
    part = nn.Linear(5, 2)
    assert read(part, [5]).nodes[0].shape == VECTOR
    assert read(part, torch.Size([5])).nodes[0].shape == VECTOR
    assert trace(part, [5]).graph_signature.user_inputs == trace(part, VECTOR).graph_signature.user_inputs


def test_two_inputs_are_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(nn.Bilinear(2, 2, 2), (torch.zeros(2, 2), torch.zeros(2, 2)))
    with pytest.raises(InvalidInput, match="takes 2 inputs"):
        read(program, (2,))


def test_parameters_must_be_finite():
    module = nn.Linear(5, 2)
    nn.init.constant_(module.weight, math.nan)
    with pytest.raises(InvalidInput, match="NaN or infinite"):
        read(module, VECTOR)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": ()}, "shape is \\(\\)"),
        ({"shape": (0,)}, "shape is \\(0,\\)"),
        ({"shape": (2.0,)}, "shape is \\(2.0,\\)"),
        ({"shape": 5}, "shape is 5; give the sides"),
        ({"shape": "5"}, "shape is '5'; give the sides"),
        ({"shape": torch.tensor([5])}, "shape is tensor"),
        ({"dtype": torch.float16}, "dtype is torch.float16"),
        ({"shape": (4,)}, "cannot be traced on inputs of shape \\(2, 4\\)"),
    ],
)
def test_illegal_calls_name_the_argument(changes, message):
    arguments = {"shape": VECTOR} | changes
    with pytest.raises(InvalidInput, match=message):
        read(nn.Linear(5, 2), arguments.pop("shape"), **arguments)


@pytest.mark.parametrize(
    ("side", "kernel", "stride", "padding", "dilation", "ceil"),
    [
        (5, 2, 2, 0, 1, False),
        (5, 2, 2, 1, 1, True),
        (7, 3, 2, 1, 2, False),
        (6, 3, 3, 1, 1, True),
        (4, 2, 3, 0, 3, False),
        (6, 2, 1, 1, 2, True),
        (5, 3, 2, 1, 1, True),
        (8, 3, 4, 1, 3, True),
    ],
)
def test_windows_hold_what_max_pooling_reads(side, kernel, stride, padding, dilation, ceil):
    x = -torch.rand(1, 2, side, side).double() - 1.0  # padding by zeros would win
    expected = F.max_pool2d(x, kernel, stride, padding, dilation, ceil)
    entries = window_entries(
        (2, side, side),
        tuple(expected.shape[1:]),
        kernel=(kernel, kernel),
        stride=(stride, stride),
        padding=(padding, padding),
        dilation=(dilation, dilation),
    )
    found = torch.stack([x.flatten(1)[:, index] for index in entries]).amax(0)
    assert (found == expected).all()


@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize("pads", [False, True])
@pytest.mark.parametrize("divisor", [None, 5])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [(2, 2, 0), (3, 2, 1), ((3, 2), (2, 3), (1, 0)), (4, 3, 2), (1, 3, 0), ((2, 4), 3, (0, 1))],
)
def test_average_pooling_of_any_mode(kernel, stride, padding, ceil, pads, divisor):
    pool = nn.AvgPool2d(kernel, stride, padding, ceil, pads, divisor)
    shape = (2, 7, 6)
    graph = read(nn.Sequential(pool, nn.Flatten()), shape)
    x = torch.randn(3, *shape, dtype=torch.float64)
    torch.testing.assert_close(graph.scores(x), pool(x).flatten(1), rtol=1e-14, atol=1e-14)
    for place, node in enumerate(graph.nodes):
        if isinstance(node.operation, Linear):
            laws.law_transposes(node.operation, graph.nodes[place - 1].shape, node.shape)


def test_windows_of_padding_alone_are_refused():
    with pytest.raises(InvalidInput, match="nothing but padding"):
        window_entries((1, 1, 1), (1, 1, 1), kernel=(2, 2), stride=(1, 1), padding=(1, 1), dilation=(2, 2))


def test_max_pooling_becomes_relus():
    graph = read(nn.Sequential(nn.MaxPool2d(2), nn.Flatten()), (1, 4, 2))
    assert sum(isinstance(node.operation, Activation) for node in graph.nodes) == 3
