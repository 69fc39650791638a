"""The command ``measure`` finds what the attacks find, resumes, and names bad input."""

import math
import re

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.nn.utils import prune

from empirical.cli.main import main
from empirical.cli.network import print_tables
from empirical.datasets import Dataset, Examples, load
from empirical.ensembles import from_stack, to_module
from empirical.measurement import measure
from empirical.own_network.loading import Network
from empirical.own_network.measuring import ensemble_of
from empirical.own_network.preparation import prepare
from empirical.results import read_table


@pytest.fixture
def model(trained_digits, tmp_path):
    """A trained digits network, saved by plain PyTorch, and the network itself."""
    nets, *_ = trained_digits
    module = to_module(nets, 1).double()
    path = tmp_path / "mine.pt"
    torch.save(module.state_dict(), path)
    return path, module


def invoke(path, out, *more: str):
    arguments = ["measure", str(path), "--data", "digits", "--examples", "20", "--attacks", "fgs,deepfool"]
    return CliRunner().invoke(main, [*arguments, "--out", str(out), *more])


def test_rows_are_those_of_the_attacks(model, tmp_path):
    path, module = model
    result = invoke(path, tmp_path / "out")
    assert result.exit_code == 0, result.output
    table = read_table(tmp_path / "out" / "measure.parquet").to_pandas()
    digits, net = load("digits"), from_stack(module)
    assert net is not None
    few = Dataset("f", digits.x_train, digits.y_train, digits.x_test[:20], digits.y_test[:20], 10)
    wanted = measure(net, few, eps=0.1)
    for (p, method), radius in wanted.radius.items():
        own = table[(table["norm"] == {2.0: "l2", math.inf: "linf"}[p]) & (table["method"] == method)]
        mean = own[own["quantity"] == "mean_radius"]["value"]
        assert mean.tolist() == pytest.approx([np.minimum(radius[0], 8.0 if p == 2 else 1.0).mean()])
        robust = own[own["quantity"] == "robust_accuracy"]["value"]
        assert robust.tolist() == [(radius[0] > 0.1).mean()]
    whole = table[table["example"].isna()]
    assert not whole.duplicated(["norm", "quantity", "method"]).any()
    assert (whole[(whole["quantity"] == "accuracy")]["value"] == wanted.correct.mean()).all()


def test_a_killed_run_goes_on_at_the_next_attack(model, tmp_path, monkeypatch):
    import empirical.own_network.measuring as module

    path, _ = model
    honest = module.measure

    def dying(*arguments, **named):
        if named["attacks"] == ("deepfool",):
            raise KeyboardInterrupt
        return honest(*arguments, **named)

    monkeypatch.setattr(module, "measure", dying)
    assert invoke(path, tmp_path / "out").exit_code == 130
    kept = {unit: unit.stat().st_mtime_ns for unit in (tmp_path / "out" / "units").iterdir()}
    assert len(kept) == 1
    monkeypatch.setattr(module, "measure", honest)
    assert invoke(path, tmp_path / "out").exit_code == 0
    assert all(unit.stat().st_mtime_ns == then for unit, then in kept.items())
    invoke(path, tmp_path / "whole")
    one, other = (read_table(tmp_path / out / "measure.parquet").to_pandas() for out in ("out", "whole"))
    assert one.equals(other)


def test_a_finished_run_is_reported_where_nothing_can_be_written(model, tmp_path, read_only):
    path, _ = model
    first = invoke(path, tmp_path / "out")
    read_only(tmp_path / "out")
    again = invoke(path, tmp_path / "out")
    assert again.exit_code == 0, again.output
    assert "Note: files stay as they were: " in again.stderr
    assert again.stdout.splitlines()[:-1] == first.stdout.splitlines()[:-1]


def test_a_box_is_kept_to(model, tmp_path):
    path, _ = model
    result = invoke(path, tmp_path / "out", "--box", "0", "1", "--markdown")
    assert result.exit_code == 0, result.output
    assert "| best |" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--attacks", "fsg"], "attacks is ['fsg']"),
        (["--attacks", "fgs,fgs"], "attacks is ['fgs', 'fgs']"),
        (["--examples", "0"], "examples is 0"),
        (["--eps", "0"], "eps is 0"),
        (["--box", "1", "0"], "box is (1.0, 0.0)"),
        (["--box", "0", "0.5"], "box is (0.0, 0.5); the examples span [0, 1]"),
        (["--shape", "1,a"], "shape is '1,a'"),
        (["--shape", "-8,-8"], "shape is (-8, -8); give the sides of one example, each >= 1"),
        (["--shape", "0,9" + 20 * "9"], "shape is (0, 9"),
        (["--shape", "100000,100000"], "takes examples of shape (100000, 100000); those of digits"),
        (["--arch-args", "3"], "arch-args is '3'"),
    ],
)
def test_bad_usage_is_one_line_and_2(model, tmp_path, arguments, message):
    result = invoke(model[0], tmp_path / "out", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_data_of_another_size_is_named(model, tmp_path):
    x, y = np.random.default_rng(0).random((5, 7)), np.arange(5)
    np.savez(tmp_path / "other.npz", x_test=x, y_test=y)
    result = CliRunner().invoke(
        main,
        ["measure", str(model[0]), "--data", str(tmp_path / "other.npz"), "--out", str(tmp_path / "out")],
    )
    assert result.exit_code == 2
    assert "takes examples of shape (64,); those of other have shape (7,)" in result.stderr


@pytest.mark.parametrize("command", ["measure", "check", "bounds"])
def test_labels_from_one_are_seen_though_the_first_examples_hold_no_last_class(model, tmp_path, command):
    """Their accuracy would look like that of a bad network."""
    data = load("digits")
    few = data.y_test[:20]
    x, y = data.x_test[:20][few < 9], few[few < 9] + 1
    np.savez(tmp_path / "one.npz", x_test=[*x, x[0]], y_test=[*y, 10])
    arguments = [str(model[0]), "--data", str(tmp_path / "one.npz"), "--examples", str(len(y))]
    result = CliRunner().invoke(main, [command, *arguments, "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    message = rf"Error: y_test\[{len(y)}\] is 10; labels must lie in \[0, 10\): number the classes from 0$"
    assert re.search(message, result.stderr.strip()), result.stderr
    assert not (tmp_path / "out").exists()


def test_a_file_without_examples_says_so(model, tmp_path):
    np.savez(tmp_path / "none.npz", x_test=np.zeros((0, 64)), y_test=np.zeros(0, int))
    arguments = ["measure", str(model[0]), "--data", str(tmp_path / "none.npz")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "x_test has shape (0, 64); expected (examples, features...), one of each at least" in result.stderr


class Scaled(nn.Sequential):
    def forward(self, input):
        return super().forward(2 * input - 1)


class Masked(nn.Linear):
    def forward(self, input):
        return nn.functional.linear(input, self.weight * (self.weight > 0), self.bias)


def stack(first: nn.Module, kind: type[nn.Sequential] = nn.Sequential) -> nn.Sequential:
    return kind(nn.Flatten(), first, nn.ReLU(), nn.Linear(6, 3)).double()


def pruned() -> nn.Linear:
    return prune.l1_unstructured(nn.Linear(8, 6), "weight", amount=0.5)


def hooked() -> nn.Sequential:
    found = stack(nn.Linear(8, 6))
    found[1].register_forward_hook(lambda _, __, output: output.mul(2))
    return found


@pytest.mark.parametrize(
    ("made", "plain"),
    [
        (lambda: stack(nn.Linear(8, 6)), True),
        (lambda: stack(pruned()), True),
        (lambda: stack(nn.Linear(8, 6), Scaled), False),
        (lambda: stack(Masked(8, 6)), False),
        (hooked, False),
    ],
)
def test_a_network_is_measured_as_it_computes(made, plain):
    """Subclasses and hooks compute what their class does not."""
    module = made().eval()
    assert (from_stack(module) is not None) == plain
    x = torch.randn(20, 8, dtype=torch.float64)
    examples = Examples("x", x.numpy(), np.zeros(20, dtype=int))
    network = prepare(Network("mine", "0", "a network", module, None), examples, None)
    nets = ensemble_of(network, examples, torch.device("cpu"))
    torch.testing.assert_close(nets.logits(x)[0], module(x).detach())


@pytest.mark.filterwarnings(
    "ignore:torch.(ao.)?quanti:UserWarning", "ignore:torch.ao.quanti:DeprecationWarning"
)
def test_quantized_weights_are_refused_in_a_line(tmp_path):
    torch.save(
        {"0.weight": torch.quantize_per_tensor(torch.zeros(4, 64), 0.1, 0, torch.qint8)}, tmp_path / "q.pt"
    )
    result = CliRunner().invoke(main, ["measure", str(tmp_path / "q.pt"), "--data", "digits"])
    assert result.exit_code == 2
    assert "dequantize()" in result.stderr
    assert len(result.stderr) < 300


def test_tables_lose_no_digit_where_the_terminal_is_narrow(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    print_tables(
        [(("l_inf, smallest found", "mean", "mean square"), [("fgs", "0.0712345", "0.006168")])],
        markdown=False,
    )
    shown = capsys.readouterr().out
    assert shown.splitlines()[:2] == [
        "l_inf, smallest found       mean  mean square",
        "fgs                    0.0712345     0.006168",
    ]


def test_a_table_of_another_run_is_not_reported_as_this_ones(model, tmp_path):
    mine, other = tmp_path / "mine", tmp_path / "other"
    assert invoke(model[0], mine).exit_code == 0
    assert invoke(model[0], other, "--eps", "0.2").exit_code == 0
    (other / "measure.parquet").replace(mine / "measure.parquet")
    mixed = invoke(model[0], mine)
    assert mixed.exit_code == 2
    assert "measure.parquet belongs to a run with other settings; choose a new folder" in mixed.stderr
    (mine / "settings.json").unlink()
    lost = invoke(model[0], mine)
    assert lost.exit_code == 2
    assert lost.stderr.endswith("measure.parquet of a run with other settings; choose a new folder\n")
