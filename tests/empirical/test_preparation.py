"""Networks that return probabilities: what is known of them is what is known of their scores."""

import io
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from empirical.cli.network import opened
from empirical.datasets import Examples, load_test
from empirical.own_network.check import Request, check
from empirical.own_network.loading import Network, load_network
from empirical.own_network.preparation import prepare
from empirical.own_network.trial import guesses
from theory.types import InvalidInput

N, CPU = 8, torch.device("cpu")


class Probable(nn.Module):
    """Linear, ReLU, linear, and a function of the scores."""

    def __init__(self, last, outputs: int = 10):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(64, 12), nn.Linear(12, outputs), last

    def forward(self, x):
        return self.last(self.second(self.first(x).relu()))


ENDS = {
    "softmax": nn.Softmax(dim=1),
    "log_softmax": lambda scores: scores.log_softmax(-1),
    "sigmoid": torch.sigmoid,
    "log_sigmoid": nn.functional.logsigmoid,
}


def network(module: nn.Module, *, program: bool, dtype: torch.dtype = torch.float32) -> Network:
    module = module.eval().to(dtype)
    found = module
    if program:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            file = io.BytesIO()
            torch.export.save(torch.export.export(module, (torch.zeros(2, 64, dtype=dtype),)), file)
            file.seek(0)
            found = torch.export.load(file)
    return Network("net.pt", "0", "a network", found, None)


def returned(found: Network, x: torch.Tensor) -> torch.Tensor:
    return (found.module if isinstance(found.module, nn.Module) else found.module.module())(x)


@pytest.mark.parametrize("name", ENDS)
@pytest.mark.parametrize("program", [False, True])
def test_what_comes_before_probabilities_is_found(name, program):
    torch.manual_seed(0)
    module, x = Probable(ENDS[name]), torch.randn(2, 64)
    found = prepare(network(module, program=program), load_test("digits"), None)
    assert found.recognised == f"a network, without the {name} at its end"
    scores = returned(found, x)
    torch.testing.assert_close(ENDS[name](scores), module(x))
    torch.testing.assert_close(scores, module.second(module.first(x).relu()))


def test_half_precision_and_a_single_probability():
    torch.manual_seed(0)
    module = Probable(torch.sigmoid, outputs=1)
    found = prepare(network(module, program=False, dtype=torch.float16), load_test("digits"), None)
    assert "without the sigmoid" in found.recognised
    x = torch.randn(5, 64)
    torch.testing.assert_close(returned(found, x).sigmoid(), module.float()(x))


@pytest.mark.parametrize("program", [False, True])
@pytest.mark.parametrize(
    "last",
    [
        nn.Identity(),
        lambda scores: scores.softmax(0),  # over the examples: not this network's decisions
        lambda scores: scores.softmax(1) @ torch.eye(10).flip(0),
        torch.relu,
        torch.sin,
    ],
)
def test_other_networks_stay_as_they_are(last, program):
    torch.manual_seed(0)
    given = network(Probable(last), program=program)
    found = prepare(given, load_test("digits"), None)
    assert found.module is given.module
    assert "at its end" not in found.recognised


def test_a_network_that_is_sure_of_itself_is_no_harder_to_attack(trained_digits, tmp_path, monkeypatch):
    """Scores times 50, of which a softmax leaves no gradient: all is the same with it and without."""
    nets, *_ = trained_digits
    sizes = [*zip(nets.weights, nets.biases, strict=True)]
    state = {}
    for i, (weight, bias) in enumerate(sizes):
        scale = 50.0 if i == len(sizes) - 1 else 1.0
        state |= {f"{i}.weight": scale * weight[1], f"{i}.bias": scale * bias[1]}
    torch.save(state, tmp_path / "sure.pt")
    widths = [sizes[0][0].shape[2], *(weight.shape[1] for weight, _ in sizes)]
    layers = ", ".join(f"nn.Linear({a}, {b})" for a, b in zip(widths, widths[1:], strict=False))
    (tmp_path / "sure_net.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Sequential):\n"
        f"    def __init__(self):\n        super().__init__({layers})\n"
        "    def forward(self, x):\n"
        "        *first, last = self\n"
        "        for layer in first:\n            x = layer(x).relu()\n"
        "        return last(x).softmax(1)\n"
    )
    monkeypatch.chdir(tmp_path)
    asked = Request(examples=N, attacks=("deepfool", "fmn"), removed=(0.5,), crown=2)
    plain, softmax = (
        check(load_network(Path("sure.pt"), arch=arch), load_test("digits"), asked, Path(out), device=CPU)
        for out, arch in (("plain", None), ("softmax", "sure_net:Net"))
    )
    assert softmax.network.recognised == "checkpoint of sure_net:Net, without the softmax at its end"
    keys = ["quantity", "norm", "method", "example"]
    for one, other in (
        (plain.measured, softmax.measured), (plain.further, softmax.further), (plain.bounds, softmax.bounds)
    ):  # fmt: skip
        assert isinstance(one, pd.DataFrame)
        assert isinstance(other, pd.DataFrame)
        pd.testing.assert_frame_equal(one[keys], other[keys])
        np.testing.assert_allclose(one["value"], other["value"], rtol=1e-5, atol=1e-9)


def convolutional(channels: int) -> nn.Module:
    """For images of 8x8."""
    return nn.Sequential(nn.Conv2d(channels, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3))


@pytest.mark.parametrize(
    ("module", "shape", "remedy"),
    [
        (convolutional(1), (64,), "; give --shape 1,8,8"),
        (convolutional(1), (8, 8), "; give --shape 1,8,8"),
        (convolutional(1), (8, 8, 1), "; give --shape 1,8,8"),
        (convolutional(3), (192,), "; give --shape 3,8,8"),
        (convolutional(3), (8, 8, 3), "; channels last: store np.moveaxis(x_test, -1, 1)"),
        (nn.Linear(192, 3), (3, 8, 8), "; give --shape 192"),
        (
            convolutional(1),
            (3, 8, 8),
            "to have 1 channels, but got 3 channels instead); give data of a shape",
        ),
        (convolutional(1), (7,), "give data of a shape that it takes"),
    ],
)
def test_a_shape_that_does_not_fit_is_told_with_one_that_does(module, shape, remedy):
    data = Examples("mine", np.zeros((2, *shape)), np.array([0, 1]))
    with pytest.raises(InvalidInput) as caught:
        prepare(network(module, program=False), data, None)
    assert f"does not take examples of shape {shape} (" in str(caught.value)
    assert remedy in str(caught.value)
    advice = str(caught.value).rpartition("; ")[2]
    if "--shape" in advice:
        prepare(network(module, program=False), data, [*map(int, advice.split()[-1].split(","))])
    elif "moveaxis" in advice:
        moved = replace(data, x=np.moveaxis(data.x, -1, 1))
        prepare(network(module, program=False), moved, None)
    else:
        assert "28" not in advice


def test_what_fails_for_another_reason_than_its_shape_is_left_to_what_measures_it():
    def fail(x):
        raise KeyError("three")

    given = network(Probable(fail), program=False)
    assert prepare(given, load_test("digits"), None).module is given.module


def separated(count: int, *, scale: float) -> Examples:
    """Two classes, told apart by the sign of the first of two features around 1 / 2."""
    x = np.random.default_rng(0).uniform(size=(count, 2))
    return Examples("two", scale * x, (x[:, 0] > 0.5).astype(int))


def of_sign(*, outputs: int) -> nn.Linear:
    """Right at every example of scale 1, and always of class 1 at larger ones."""
    layer = nn.Linear(2, outputs)
    weights = torch.zeros(outputs, 2)
    weights[-1, 0] = 1.0
    layer.load_state_dict({"weight": weights, "bias": torch.tensor([0.0] * (outputs - 1) + [-0.5])})
    return layer


@pytest.mark.parametrize("outputs", [1, 2])
def test_a_network_that_guesses_is_shown_the_range_of_its_data(outputs):
    net = network(of_sign(outputs=outputs), program=False)
    assert guesses(net, separated(100, scale=1.0)) is None
    said = guesses(net, separated(100, scale=255.0))
    assert said is not None
    assert "of the first 100 examples, as by chance; their features range from" in said
    assert " to 254" in said


def test_a_few_wrong_examples_are_no_guessing():
    net = network(of_sign(outputs=2), program=False)
    assert guesses(net, separated(19, scale=-1.0)) is None
    assert guesses(net, separated(20, scale=-1.0)) is not None


def test_a_network_for_other_data_is_left_to_what_says_so():
    assert guesses(network(nn.Linear(3, 2), program=False), separated(100, scale=1.0)) is None


def test_small_numbers_stored_as_pixels_are_told(tmp_path, capsys):
    """Not so those that fill their range, nor what is given again for a second network."""
    torch.save(of_sign(outputs=2).state_dict(), tmp_path / "net.pt")
    for largest, said in ((16, True), (127, True), (128, False), (255, False)):
        x = np.array([[0, 3], [largest, 5]], np.uint8)
        np.savez(tmp_path / "x.npz", x_test=x, y_test=np.array([0, 1]))
        _, data, _ = opened(tmp_path / "net.pt", None, "{}", str(tmp_path / "x.npz"), None, "cpu")
        notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Note: ")]
        assert len(notes) == said
        told = f"Note: uint8 features are divided by 255 and range to {largest / 255:.2g} then; "
        assert all(note.startswith(told) for note in notes)
        opened(tmp_path / "net.pt", None, "{}", data, None, "cpu")
        assert "Note" not in capsys.readouterr().err


class Trained(nn.Module):
    """What differs in training mode: batch-norm, dropout, or neither."""

    def __init__(self, part: nn.Module):
        super().__init__()
        self.first, self.part, self.last = nn.Linear(64, 12), part, nn.Linear(12, 10)

    def forward(self, x):
        return self.last(self.part(self.first(x)).relu())


BATCH = "exported in training mode; export it after module.eval()"
PARTS = {
    "batch-norm": (nn.BatchNorm1d(12), BATCH),
    "dropout": (nn.Dropout(0.5), f"{BATCH}, and give F.dropout training=self.training"),
    "no dropout": (nn.Dropout(0.0), None),
    "neither": (nn.Identity(), None),
    "no running statistics": (nn.BatchNorm1d(12, track_running_stats=False), None),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("part", PARTS)
def test_a_program_in_training_mode_is_refused_in_a_line(part, tmp_path):
    module, path = Trained(PARTS[part][0]), tmp_path / "net.pt2"
    batch = {"x": {0: torch.export.Dim("batch", min=2)}}
    for training in (False, True):
        program = torch.export.export(module.train(training), (torch.zeros(4, 64),), dynamic_shapes=batch)
        torch.export.save(program, path)
        if training and PARTS[part][1]:
            with pytest.raises(InvalidInput) as caught:
                load_network(path)
            assert str(caught.value) == f"network net.pt2 was {PARTS[part][1]}"
        else:
            assert load_network(path).recognised == "torch.export program"


def test_the_commands_say_it(tmp_path, capsys):
    data = separated(100, scale=255.0)
    torch.save(of_sign(outputs=2).state_dict(), tmp_path / "net.pt")
    np.savez(tmp_path / "x.npz", x_test=data.x, y_test=data.y)
    opened(tmp_path / "net.pt", None, "{}", str(tmp_path / "x.npz"), None, "cpu")
    recognised, units, note = capsys.readouterr().err.splitlines()
    assert "Note" not in recognised
    assert units.startswith("Note: features range to 254.")
    assert note.startswith("Note: net.pt is right at ")


SHIFTED = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, shift=0.0):
        super().__init__()
        self.a, self.b, self.shift = nn.Linear(64, 8), nn.Linear(8, 10), shift

    def forward(self, x):
        return self.b(torch.relu(self.a(x) - self.shift))

class Turning(Net):
    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)
"""


@pytest.mark.parametrize("name", ["Net", "Turning"])
def test_one_file_in_two_architectures_is_two_networks(tmp_path, name):
    """``Turning`` cannot be traced."""
    data, code = load_test("digits"), tmp_path / "shifted.py"
    code.write_text(SHIFTED)
    sizes = {"a.weight": (8, 64), "a.bias": (8,), "b.weight": (10, 8), "b.bias": (10,)}
    torch.save({key: torch.zeros(size) for key, size in sizes.items()}, tmp_path / "net.pt")

    def settings(**arguments: object) -> dict[str, str]:
        found = load_network(tmp_path / "net.pt", arch=f"{code}:{name}", arch_args=arguments)
        return prepare(found, data, None).settings

    plain = settings()
    assert settings() == plain
    shifted = settings(shift=0.5)
    assert shifted != plain
    assert shifted["recognised"] == f"checkpoint of shifted.py:{name}(shift=0.5)"
    code.write_text(SHIFTED.replace("- self.shift", "+ self.shift + 1"))
    assert settings()["computed_sha256"] != plain["computed_sha256"]
