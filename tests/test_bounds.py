"""Bounds of a user's own network: every kind of file, the table, terminal and figure, and every refusal."""

from __future__ import annotations

import copy
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import prune

from empirical.attacks import deepfool, minimal_fgs, shorten
from empirical.cli.bounds import _norm
from empirical.cli.main import main
from empirical.datasets import load, load_test
from empirical.ensembles import from_networks
from empirical.measurement import verified_radius
from empirical.own_network import problem
from empirical.own_network.loading import load_network
from empirical.own_network.preparation import prepare
from empirical.own_network.problem import ALPHAS, Request, fully_connected
from empirical.results import BOUNDS, read_settings, read_table
from empirical.runs.condense import RUN_KEY
from paper_figures.bounds import figure
from theory import graph as graphs
from theory.ceiling import mean_radius_ceiling
from theory.relu import active_ladder, ladder, lipschitz_constants
from theory.types import InvalidInput

ARCHITECTURE = """
import torch
from torch import nn


class Small(nn.Module):
    def __init__(self, width=6, activation="relu"):
        super().__init__()
        self.first, self.last = nn.Linear(64, width), nn.Linear(width, 10)
        self.activation = getattr(torch, activation)

    def forward(self, x):
        return self.last(self.activation(self.first(x)))


def number():
    return 3
"""


class Residual(nn.Module):
    """A convolution, a residual block, a max-pool and a linear layer, on 1 x 8 x 8 images."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(1, 3, 3, stride=2, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.pool, self.head = nn.MaxPool2d(2), nn.Linear(12, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.inner(x))
        return self.head(self.pool(x).flatten(1))


def mlp(*widths: int, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [nn.Linear(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True)]
    hidden = [part for layer in layers[:-1] for part in (layer, nn.ReLU())]
    return nn.Sequential(*hidden, layers[-1])


def renamed(net: nn.Sequential) -> dict[str, torch.Tensor]:
    """A state dict of two linear layers under the names of ``ARCHITECTURE``."""
    return {
        name.replace("0.", "first.").replace("2.", "last."): value for name, value in net.state_dict().items()
    }


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["bounds", *map(str, arguments)])


@pytest.fixture(scope="module")
def trained() -> nn.Sequential:
    """64-30-20-10 on the digits, its first layer with zeros."""
    data = load("digits")
    x, y = torch.tensor(data.x_train, dtype=torch.float32), torch.tensor(data.y_train)
    net = mlp(64, 30, 20, 10)
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimiser.step()
    net.get_parameter("0.weight").data[:, :16] = 0.0
    return net


@pytest.fixture(scope="module")
def finished(trained, tmp_path_factory):
    """Folder, terminal output and rows of a run on 20 digits."""
    folder = tmp_path_factory.mktemp("bounds")
    torch.save(trained.state_dict(), folder / "net.pt")
    arguments = (
        folder / "net.pt",
        "--data",
        "digits",
        "--examples",
        20,
        "--steps",
        3,
        "--out",
        folder / "run",
    )
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    rows = read_table(folder / "run" / "bounds.parquet", schema=BOUNDS).to_pandas()
    return folder, arguments, result, rows


def values(rows: pd.DataFrame, **wanted: object) -> np.ndarray:
    for column, entry in wanted.items():
        rows = rows[rows[column].isna() if entry is None else rows[column] == entry]
    return rows["value"].to_numpy()


def one(rows: pd.DataFrame, **wanted: object) -> float:
    (value,) = values(rows, **wanted)
    return float(value)


def test_the_rows_are_what_theory_says_of_that_network(trained, finished):
    """Against the fully connected engine of theory.relu and plain numpy, not against the graph."""
    *_, rows = finished
    data = load_test("digits").first(20)
    net = fully_connected(graphs.read(trained, (64,)))
    assert net is not None
    correct = net.scores(data.x).argmax(1) == data.y
    assert one(rows, quantity="accuracy") == correct.mean()
    assert one(rows, quantity="sparsity", method="0.weight") == 0.25
    assert one(rows, quantity="sparsity", method="2.weight") == 0.0
    assert one(rows, quantity="sparsity", method="all layers") == 480 / (64 * 30 + 30 * 20 + 20 * 10)
    others = data.y[:, None] != np.arange(10)
    for p, norm in ((2.0, "l2"), (math.inf, "linf")):
        ceiling = mean_radius_ceiling(data.x, data.y, correct, p=p)
        assert one(rows, quantity="mean_radius", method="universal ceiling", norm=norm) == ceiling
        best = lipschitz_constants(net, p=p)[data.y][others].mean()
        found = one(rows, quantity="lipschitz", method="smallest global", norm=norm)
        np.testing.assert_allclose(found, best, rtol=1e-9)
        local = values(rows, quantity="lipschitz", method="local", norm=norm)
        assert (np.diff(local) >= 0).all()
        assert local[-1] <= found * (1 + 1e-12)
        i, k = map(int, rows.loc[rows["pair"] != "", "pair"].unique().item().split("-"))
        assert i == np.bincount(data.y).argmax()
        alphas = np.array([[alpha, alpha, 0.0] for alpha in ALPHAS])
        for name, rung in ladder(net, alphas, (i, k), p=p).items():
            stored = values(rows, quantity="expected_lipschitz", method=name, norm=norm)
            np.testing.assert_allclose(stored, rung, rtol=1e-12)
        active = [int(n) for n in values(rows, quantity="active_units")]
        for name, rung in active_ladder(net, alphas, (i, k), active, p=p).items():
            stored = values(rows, quantity="expected_lipschitz_active", method=name, norm=norm)
            np.testing.assert_allclose(stored, rung, rtol=1e-12)
        plain, few = (
            values(rows, quantity=quantity, method="best", norm=norm)
            for quantity in ("expected_lipschitz", "expected_lipschitz_active")
        )
        assert (few <= plain).all()


def test_active_units_are_the_most_at_any_example(trained, finished):
    *_, rows = finished
    x = torch.tensor(load_test("digits").first(20).x)
    net = nn.Sequential(*trained).double()
    most = [int((net[:depth](x) > 0).sum(1).max()) for depth in (2, 4)]
    net.float()
    counted = rows[rows["quantity"] == "active_units"]
    assert list(counted["value"]) == most
    assert list(counted["method"]) == ["hidden layer 1", "hidden layer 2"]
    assert most < [30, 20]


def test_certificates_never_exceed_an_attack(trained, finished):
    *_, rows = finished
    data = load_test("digits").first(20)
    layers = fully_connected(graphs.read(trained, (64,)))
    assert layers is not None
    nets = from_networks([layers])
    x, y = torch.tensor(data.x), torch.tensor(data.y)
    for p, norm in ((2.0, "l2"), (math.inf, "linf")):
        attack = verified_radius(nets, x, y, *shorten(nets, x, y, *deepfool(nets, x, y, p=p)), p=p)[0].numpy()
        if p == math.inf:
            step = verified_radius(nets, x, y, *minimal_fgs(nets, x, y), p=p)[0].numpy()
            attack = np.minimum(attack, step)
        assert np.isfinite(attack).all()
        previous = np.zeros(20)
        for method in ("norm product", "path norm", "smallest global", "CROWN", "CROWN, optimised"):
            radius = values(rows[rows["example"].notna()], quantity="radius", method=method, norm=norm)
            assert len(radius) == 20
            assert (radius <= attack).all()
            assert ((radius > 0) == (attack > 0)).all()
            if method in ("smallest global", "CROWN", "CROWN, optimised"):
                assert (radius >= previous * (1 - 1e-12)).all()
            previous = np.maximum(previous, radius)
            assert one(rows, quantity="mean_radius", method=method, norm=norm) == radius.mean()
            assert one(rows, quantity="median_radius", method=method, norm=norm) == np.median(radius)
            at = 0.01 if p == math.inf else 0.1
            share = one(rows, quantity="robust_accuracy", method=method, norm=norm, radius=at)
            assert share == (radius >= at).mean()


@pytest.mark.usefixtures("undrawn")
def test_relaxation_that_takes_long_is_announced(tmp_path, monkeypatch):
    torch.save(mlp(64, 9, 10).state_dict(), tmp_path / "net.pt")
    monkeypatch.chdir(tmp_path)
    for minute, message in ((3e11, ""), (6e4, "minutes of one core"), (3e3, "hours"), (1e2, "days")):
        monkeypatch.setattr(problem, "_MINUTE", minute)
        result = run(
            "net.pt", "--data", "digits", "--examples", 7, "--crown", 3, "--p", "inf", "--out", f"{minute}"
        )
        assert ("Note: linear relaxation of 3 examples may take " in result.stderr) == bool(message)
        assert message in result.stderr
        if message:
            assert "--crown 0 for none" in result.stderr


def test_settings_are_columns(finished):
    *_, rows = finished
    assert set(rows["data"]) == {"digits"}
    assert set(rows["model"]) == {"net.pt"}
    assert rows["model_sha256"].str.fullmatch("[0-9a-f]{64}").all()
    assert set(rows["examples"]) == {20}
    assert set(rows["dtype"]) == {"float64"}
    assert (rows["seconds"] > 0).all()
    assert set(rows["nature"]) == {"identity", "measured", "lower bound", "upper bound"}
    assert not rows["value"].isna().any()


def test_terminal_and_markdown_show_the_rows(finished):
    _, arguments, result, rows = finished
    assert "fully connected 64-30-20-10, ReLUs assumed" in result.stderr
    mean = one(rows, quantity="mean_radius", method="CROWN", norm="l2")
    assert any("radius, CROWN " in line and f"{mean:.3g}" in line for line in result.stdout.splitlines())
    shown = run(*arguments, "--markdown").stdout
    assert "| l_inf | bound | mean | median | r=0 |" in shown
    assert f"| radius, CROWN | lower | {mean:.3g} |" in shown
    assert all(line.startswith("|") for line in shown.splitlines() if line)


def test_a_finished_run_is_reported_again_and_never_overwritten(finished, monkeypatch):
    folder, arguments, first, _ = finished
    table = folder / "run" / "bounds.parquet"
    before = table.stat().st_mtime_ns
    monkeypatch.setattr("empirical.own_network.bound_rows._certificate_rows", None)
    again = run(*arguments)
    assert again.exit_code == 0
    assert again.stdout.splitlines()[:-1] == first.stdout.splitlines()[:-1]
    assert table.stat().st_mtime_ns == before
    other = run(*arguments, "--examples", 10)
    assert other.exit_code == 2
    assert "a run with examples = 20, not 10; choose a new folder" in other.stderr
    assert table.stat().st_mtime_ns == before


def test_a_finished_run_is_reported_where_nothing_can_be_written(finished, read_only):
    folder, arguments, first, _ = finished
    read_only(folder / "run")
    again = run(*arguments)
    assert again.exit_code == 0, again.output
    assert "Note: files stay as they were: " in again.stderr
    assert again.stdout.splitlines()[:-1] == first.stdout.splitlines()[:-1]


def test_a_figure_that_cannot_be_drawn_is_not_named(finished, read_only, tmp_path):
    folder, arguments, first, _ = finished
    shutil.copytree(folder / "run", tmp_path / "run", ignore=shutil.ignore_patterns("figures"))
    read_only(tmp_path / "run")
    again = run(*arguments[:-1], tmp_path / "run")
    assert again.exit_code == 0, again.output
    assert "Figure  " in first.stdout
    assert "Figure  " not in again.stdout
    assert f"Table   {tmp_path / 'run' / 'bounds.parquet'}\n" in again.stdout


def test_a_condensed_table_keeps_all_rows_and_says_how_it_was_made(finished, tmp_path):
    folder, _, _, rows = finished
    target = tmp_path / "net.parquet"
    result = CliRunner().invoke(main, ["condense", str(folder / "run"), str(target)])
    assert result.exit_code == 0, result.output
    pd.testing.assert_frame_equal(read_table(target, schema=BOUNDS).to_pandas(), rows)
    told = json.loads(pq.read_schema(target).metadata[RUN_KEY])
    assert told["settings"] == read_settings(folder / "run" / "settings.json")
    assert {"command", "seconds", "device", "torch", "commit"} <= set(told["runs"][0])


def test_a_killed_run_goes_on(finished, tmp_path, monkeypatch):
    _, arguments, _, rows = finished
    arguments = (*arguments[:-1], tmp_path / "run")

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("empirical.own_network.bound_rows._lipschitz_rows", stop)
        assert run(*arguments).exit_code == 130
    assert not (tmp_path / "run" / "bounds.parquet").exists()
    monkeypatch.setattr("empirical.own_network.bound_rows._network_rows", None)
    assert run(*arguments).exit_code == 0
    found = read_table(tmp_path / "run" / "bounds.parquet", schema=BOUNDS).to_pandas()
    compared = ["quantity", "norm", "method", "nature", "radius", "sparsity", "example", "value"]
    pd.testing.assert_frame_equal(found[compared], rows[compared], check_categorical=False)


def test_figure(finished):
    """Curves are the rows: every step of the certified accuracy lies at a certified radius."""
    folder, _, _, rows = finished
    for name in ("bounds.svg", "bounds.png"):
        assert (folder / "run" / "figures" / name).stat().st_size > 10_000
    drawn = figure(rows)
    drawn.draw_without_rendering()
    assert len(drawn.axes) == 6
    (curve,) = [line for line in drawn.axes[0].lines if line.get_label() == "CROWN and local constants"]
    radius = np.sort(values(rows[rows["example"].notna()], quantity="radius", method="CROWN", norm="linf"))
    at, share = (np.asarray(part, dtype=float) for part in curve.get_data())
    np.testing.assert_array_equal(at[1:], radius[radius > 0])
    np.testing.assert_allclose(share[1:], [(radius >= r).mean() for r in at[1:]])
    without_masks = rows[rows["quantity"] != "expected_lipschitz"]
    assert len(figure(without_masks[without_masks["norm"] != "l2"]).axes) == 2
    with pytest.raises(ValueError, match="no bounds"):
        figure(rows[:0])


def test_every_kind_of_file_gives_the_same_network(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_architecture.py").write_text(
        ARCHITECTURE + "\n\ndef build():\n    return nn.Sequential(nn.Linear(64, 30), nn.ReLU(), "
        "nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 10))\n"
    )
    torch.save({"epoch": 3, "state_dict": trained.state_dict()}, "nested.ckpt")
    save_file(dict(trained.state_dict()), "net.safetensors")
    torch.export.save(torch.export.export(trained, (torch.zeros(3, 64),)), "net.pt2")
    pruned = nn.Sequential(*trained)
    prune.custom_from_mask(pruned[0], "weight", pruned.get_parameter("0.weight").ne(0).float())
    torch.save(pruned.state_dict(), "masked.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(pruned, (torch.zeros(3, 64),)), "masked.pt2")
    prune.remove(pruned[0], "weight")
    x = torch.tensor(load_test("digits").x[:5])
    expected = trained.double()(x)
    trained.float()
    networks = [
        load_network(Path(name))
        for name in ("nested.ckpt", "net.safetensors", "net.pt2", "masked.pth", "masked.pt2")
    ]
    networks.append(load_network(Path("nested.ckpt"), arch="own_architecture:build"))
    for network in networks:
        graph = graphs.read(network.module, network.shape or (64,))
        torch.testing.assert_close(graph.scores(x), expected)
        assert fully_connected(graph) is not None
        weights = prepare(network, load_test("digits"), None).weights
        assert (weights["0.weight"] == 0).double().mean() == 0.25
    assert networks[2].recognised == "torch.export program"


def test_safetensors_of_more_than_ten_layers_keep_their_order(tmp_path):
    net = mlp(*(4,) * 14)
    save_file(dict(net.state_dict()), tmp_path / "deep.safetensors")
    found = load_network(tmp_path / "deep.safetensors").module
    x = torch.randn(3, 4)
    torch.testing.assert_close(found(x), net(x))  # type: ignore[operator]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_convolutional_program(tmp_path, dtype):
    """Residual block and max-pool, exported; images as the file holds them, uint8."""
    torch.manual_seed(0)
    net = Residual()
    torch.export.save(torch.export.export(net, (torch.zeros(2, 1, 8, 8),)), tmp_path / "cnn.pt2")
    images = np.random.default_rng(0).integers(0, 256, (6, 1, 8, 8)).astype(np.uint8)
    labels = net(torch.tensor(images / 255, dtype=torch.float32)).argmax(1).numpy()
    np.savez(tmp_path / "images.npz", x_test=images, y_test=labels)
    arguments = ("--data", tmp_path / "images.npz", "--out", tmp_path / "run", "--p", "2", "--radius", "0.05")
    result = run(tmp_path / "cnn.pt2", *arguments, "--dtype", dtype)
    assert result.exit_code == 0, result.output
    rows = read_table(tmp_path / "run" / "bounds.parquet", schema=BOUNDS).to_pandas()
    assert one(rows, quantity="accuracy") == 1.0
    assert set(rows["norm"]) == {"", "l2"}
    assert set(rows.loc[rows["quantity"] == "lipschitz", "radius"].dropna()) == {0.05}
    masks = rows[rows["quantity"] == "expected_lipschitz"]
    assert set(masks["method"]) == {"P1", "F", "best"}
    i, k = map(int, masks["pair"].iloc[0].split("-"))
    inputs = torch.tensor(images / 255, dtype=torch.float32, requires_grad=True)
    scores = net(inputs)
    (slopes,) = torch.autograd.grad((scores[:, i] - scores[:, k]).sum(), inputs)
    kept = masks[masks["method"] == "best"].sort_values("sparsity")["value"]
    assert kept.iloc[0] >= slopes.flatten(1).norm(dim=1).max().item()
    assert (kept.diff()[1:] < 0).all()
    assert not rows["quantity"].isin(["active_units", "expected_lipschitz_active"]).any()
    assert set(rows.loc[rows["quantity"] == "sparsity", "method"]) == {
        "stem.weight",
        "inner.weight",
        "head.weight",
        "all layers",
    }
    radius = values(rows[rows["example"].notna()], method="CROWN")
    assert (radius > 0).all()
    x, exact = torch.tensor(images / 255), net.double()
    noise = torch.randn(200, *x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = noise / noise.flatten(2).norm(dim=2)[..., None, None, None]
    moved = x + noise * torch.tensor(radius)[:, None, None, None]
    assert (exact(moved.flatten(0, 1)).argmax(1).unflatten(0, (200, 6)).numpy() == labels).all()


def test_mask_rungs_of_a_convolutional_network(tmp_path):
    """Two convolutions, average pooling: P1 against a pass of ones, all against gradients under masks."""
    torch.manual_seed(0)
    hidden = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Flatten()]
    net = nn.Sequential(*hidden, nn.Linear(5, 3)).double()
    torch.export.save(torch.export.export(net, (torch.zeros(2, 1, 8, 8).double(),)), tmp_path / "lenet.pt2")
    images = np.random.default_rng(0).random((6, 1, 8, 8))
    np.savez(tmp_path / "images.npz", x_test=images, y_test=np.array([0, 1, 2, 0, 1, 2]))
    arguments = ("--data", tmp_path / "images.npz", "--out", tmp_path / "run", "--pair", 2, 0)
    result = run(tmp_path / "lenet.pt2", *arguments, "--alphas", "0,0.5,0.8", "--radius", 0.1)
    assert result.exit_code == 0, result.output
    assert "l_inf, random masks, classes 2-0 P1" in " ".join(result.stdout.split())
    assert result.stdout.count("alpha = ") == 6  # three in each norm, all that were asked for
    assert "…" not in result.stdout
    rows = read_table(tmp_path / "run" / "bounds.parquet", schema=BOUNDS).to_pandas()
    masks = rows[rows["quantity"] == "expected_lipschitz"]
    assert set(masks.loc[masks["norm"] == "linf", "method"]) == {"P1", "best"}
    sizes = copy.deepcopy(net).requires_grad_(requires_grad=False)
    for parameter in sizes.parameters():
        parameter.data = parameter.abs() if parameter.dim() > 1 else torch.zeros_like(parameter)
    head = net.get_parameter("6.weight").detach()
    paths = float(sizes[:-1](torch.ones(1, 1, 8, 8).double())[0] @ (head[2] - head[0]).abs())
    alphas = np.array([0.0, 0.5, 0.8])
    frobenius = values(masks, method="F", norm="l2")
    np.testing.assert_allclose(frobenius, frobenius[0] * (1 - alphas), rtol=1e-9)
    for norm in ("l2", "linf"):
        found = values(masks, method="P1", norm=norm)
        np.testing.assert_allclose(found, paths * (1 - alphas) ** 2, rtol=1e-9)
    kernels = [net.get_parameter(name) for name in ("0.weight", "3.weight")]
    whole = [kernel.detach().clone() for kernel in kernels]
    generator = torch.Generator().manual_seed(0)
    for at, alpha in enumerate(alphas):
        norms = []
        for _ in range(20):
            for kernel, weight in zip(kernels, whole, strict=True):
                kept = torch.rand(weight.shape, generator=generator, dtype=torch.float64) >= alpha
                kernel.data = weight * kept
            x = torch.tensor(images, requires_grad=True)
            scores = net(x)
            (gradient,) = torch.autograd.grad((scores[:, 2] - scores[:, 0]).sum(), x)
            norms.append([float(gradient.flatten(1).norm(dim=1, p=q).max()) for q in (2, 1)])
        for norm, mean in zip(("l2", "linf"), np.mean(norms, axis=0), strict=True):
            assert 0 < mean <= values(masks, method="best", norm=norm)[at]
        assert np.mean(norms, axis=0)[0] <= values(masks, method="F", norm="l2")[at]


TIED = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, tied=True):
        super().__init__()
        self.first, self.last = nn.Linear(64, 64), nn.Linear(64, 10)
        self.second = self.first if tied else nn.Linear(64, 64, bias=False)
        self.second.requires_grad_(tied)
        if not tied:
            self.second.register_buffer("weight", self.second._parameters.pop("weight").data)

    def forward(self, x):
        return self.last(self.second(self.first(x).relu()).relu())
"""


def test_random_masks_of_tied_and_of_constant_weights(tmp_path, monkeypatch):
    """One mask of two layers is none of independent ones; a constant matrix has none."""
    (tmp_path / "own_tied.py").write_text(TIED)
    monkeypatch.chdir(tmp_path)
    net = mlp(64, 64, 10)
    state = {name.replace("0.", "first.").replace("2.", "last."): v for name, v in net.state_dict().items()}
    common = ("--arch", "own_tied:Net", "--data", "digits", "--examples", 2, "--crown", 0, "--p", "l2")
    torch.save(state | {f"second.{n}": state[f"first.{n}"] for n in ("weight", "bias")}, "tied.pt")
    result = run("tied.pt", *common, "--out", "tied")
    assert result.exit_code == 0, result.output
    assert "Note: no bounds of random masks" in result.stderr
    assert re.search(r"behind each other share (first|second).weight", result.stderr)
    rows = read_table(Path("tied", "bounds.parquet"), schema=BOUNDS).to_pandas()
    assert not rows["quantity"].isin(["expected_lipschitz", "active_units"]).any()

    torch.save(state | {"second.weight": torch.eye(64)}, "constant.pt")
    chosen = "--arch-args", '{"tied": false}', "--alphas", "0,0.75", "--pair", 0, 1
    result = run("constant.pt", *common, *chosen, "--out", "constant")
    assert result.exit_code == 0, result.output
    assert "no bounds of random masks" not in result.stderr
    rows = read_table(Path("constant", "bounds.parquet"), schema=BOUNDS).to_pandas()
    for method, kept in (("P1", 0.25), ("F", 0.5)):  # of one hidden layer
        dense, masked = values(rows, quantity="expected_lipschitz", method=method)
        np.testing.assert_allclose(masked, kept * dense, rtol=1e-9)
    assert {*rows.loc[rows["quantity"] == "sparsity", "method"]} == {
        "first.weight",
        "last.weight",
        "all layers",
    }


def test_a_program_of_any_batch_size_is_read(tmp_path):
    net = mlp(4, 3, 2)
    batch = torch.export.Dim("batch")
    program = torch.export.export(net, (torch.zeros(3, 4),), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "any.pt2")
    network = load_network(tmp_path / "any.pt2")
    assert network.shape == (4,)
    x = torch.randn(3, 4)
    torch.testing.assert_close(graphs.read(network.module, (4,)).scores(x).float(), net(x))


def test_arch_with_arguments_through_a_subprocess(tmp_path):
    (tmp_path / "own_small.py").write_text(ARCHITECTURE)
    net = mlp(64, 9, 10)
    state = renamed(net)
    torch.save(state, tmp_path / "small.pt")
    command = [sys.executable, "-m", "empirical", "bounds", "small.pt", "--data", "digits", "--p", "inf",
               "--arch", "own_small:Small", "--arch-args", '{"width": 9}', "--examples", "5",
               "--pair", "1", "7"]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "random masks, classes 1-7" in done.stdout
    assert "checkpoint of own_small:Small" in done.stderr
    assert (tmp_path / "results" / "bounds-small" / "figures" / "bounds.svg").is_file()
    settings = json.loads((tmp_path / "results" / "bounds-small" / "settings.json").read_text())
    assert settings["shape"] == [64]
    assert settings["pair"] == [1, 7]


@pytest.mark.parametrize("command", ["bounds", "measure", "check"])
def test_another_architecture_of_the_same_file_is_another_run(tmp_path, command):
    code = ARCHITECTURE.replace("width=6", "sign=1.0, width=6").replace(
        "self.activation(self.first(x))", "self.activation(self.sign * self.first(x))"
    )
    (tmp_path / "own.py").write_text(code.replace("__init__()", "__init__()\n        self.sign = sign"))
    torch.save(renamed(mlp(64, 6, 10)), tmp_path / "small.pt")
    quick = {"bounds": ("--p", "inf"), "measure": ("--attacks", "fgs"), "check": ("--attacks", "fgs")}[
        command
    ]
    asked = (command, tmp_path / "small.pt", "--data", "digits", "--arch", f"{tmp_path}/own.py:Small",
             "--examples", 3, *quick, "--out", tmp_path / "out", "--arch-args")  # fmt: skip

    def result(arguments: str) -> Result:
        return CliRunner().invoke(main, [*map(str, asked), arguments])

    first = result("{}")
    assert first.exit_code == 0, first.output
    assert result("{}").exit_code == 0
    other = result('{"sign": -1.0}')
    assert other.exit_code == 2
    assert re.search(
        r"out is .*, a run of another network, small.pt, whose .*architecture differs", other.stderr
    )


def test_arch_in_a_file_wherever_it_is_and_whatever_it_is_called(tmp_path):
    """Beside a module that it imports, under a name that another module has, from any working folder."""
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "json.py").write_text("from own_widths import WIDTH\n" + ARCHITECTURE.replace("=6", "=WIDTH"))
    (folder / "own_widths.py").write_text("WIDTH = 9\n")
    net = mlp(64, 9, 10)
    torch.save(renamed(net), tmp_path / "small.pt")
    before = list(sys.path)
    network = load_network(tmp_path / "small.pt", arch=f"{folder}/json.py:Small")
    assert network.recognised == "checkpoint of json.py:Small"
    assert sys.path == before
    assert sys.modules["json"] is json
    assert isinstance(network.module, nn.Module)
    x = torch.rand(3, 64)
    torch.testing.assert_close(network.module(x), net(x))


@pytest.mark.parametrize("owner", ["model.", "model.net.", "module.", "module.net."])
def test_a_network_that_was_saved_as_a_part_of_a_larger_module_is_read(tmp_path, owner):
    """As Lightning does, by its class and without it."""
    (tmp_path / "own.py").write_text(ARCHITECTURE)
    net, x = mlp(64, 6, 10), torch.rand(3, 64)
    torch.save({owner + name: value for name, value in renamed(net).items()}, tmp_path / "small.pt")
    for arch in (None, f"{tmp_path}/own.py:Small"):
        network = load_network(tmp_path / "small.pt", arch=arch)
        assert isinstance(network.module, nn.Module)
        torch.testing.assert_close(network.module(x), net(x))


def test_weights_in_whole_numbers_are_refused_with_their_class_too(tmp_path):
    (tmp_path / "own.py").write_text(ARCHITECTURE)
    state = {name: (9 * value).to(torch.int8) for name, value in renamed(mlp(64, 6, 10)).items()}
    torch.save(state, tmp_path / "small.pt")
    for arch in (None, f"{tmp_path}/own.py:Small"):
        with pytest.raises(
            InvalidInput, match=r"holds 'first.weight' in torch.int8; save it in float32, scaled"
        ):
            load_network(tmp_path / "small.pt", arch=arch)


def test_arguments_without_an_architecture_are_refused(tmp_path):
    torch.save(mlp(64, 6, 10).state_dict(), tmp_path / "small.pt")
    with pytest.raises(InvalidInput, match=r"arch_args is \{'width': 6\}, but there is no arch"):
        load_network(tmp_path / "small.pt", arch_args={"width": 6})


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.fixture(scope="module")
def broken(tmp_path_factory) -> Path:
    """A folder of files, each wrong in its own way."""
    folder = tmp_path_factory.mktemp("broken")
    net = mlp(64, 5, 10)
    torch.save(net.state_dict(), folder / "net.pt")
    torch.save(net, folder / "module.pt")
    torch.save({"weights": [1, 2]}, folder / "numbers.pt")
    torch.save(nn.Conv2d(1, 1, 3).state_dict(), folder / "conv.pt")
    for name, between in (("norm", nn.LayerNorm(5)), ("batch", nn.BatchNorm1d(5, affine=False))):
        stack = nn.Sequential(nn.Linear(64, 5), between, nn.Linear(5, 3))
        torch.save(stack.state_dict(), folder / f"{name}.pt")
    torch.save(nn.Sequential(nn.Linear(64, 5), nn.ReLU(), nn.Linear(6, 3)).state_dict(), folder / "gap.pt")
    (folder / "letters.csv").write_text("1,2,a\n")
    torch.save(mlp(5, 4, 2).state_dict(), folder / "narrow.pt")
    torch.save(mlp(64, 5, 3).state_dict(), folder / "few_classes.pt")
    for name in ("garbage.pt", "garbage.safetensors", "garbage.pt2", "net.onnx"):
        (folder / name).write_bytes(b"no network at all")
    with zipfile.ZipFile(folder / "other.pt2", "w") as archive:
        archive.writestr("other/readme", "nothing")
    (folder / "own_broken.py").write_text(ARCHITECTURE)
    (folder / "own_empty.py").write_text("from torch.nn import Linear\n")
    small = renamed(net)
    torch.save(small, folder / "small.pt")
    torch.save({**small, "extra": torch.zeros(1)}, folder / "more.pt")
    torch.save({k: v for k, v in small.items() if k != "last.bias"}, folder / "less.pt")
    np.savez(folder / "only_train.npz", x_train=np.zeros((2, 64)), y_train=np.array([0, 1]))
    np.savez(folder / "letters.npz", x_test=np.zeros((2, 64)), y_test=np.array([0.5, 1.0]))
    np.savez(folder / "nan.npz", x_test=np.full((2, 64), np.nan), y_test=np.array([0, 1]))
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.pt"], "no such file"),
        (["net.onnx"], "has an unknown format '.onnx'; known are .pt2, .safetensors, .pt"),
        (["module.pt"], "torch.save(model.state_dict(), path)"),
        (["numbers.pt"], "holds no state dict"),
        (["garbage.pt"], "is no readable checkpoint"),
        (["garbage.safetensors"], "is no readable safetensors file"),
        (["garbage.pt2"], "is no readable torch.export program"),
        (["other.pt2"], "lacks archive_format"),
        (["conv.pt"], "is not plainly a stack of linear layers (it has 'weight' of shape (1, 1, 3, 3)"),
        (["norm.pt"], "is not plainly a stack of linear layers (it has '1.weight' of shape (5,)"),
        (["gap.pt"], "is not plainly a stack of linear layers (it has '2.weight' of shape (3, 6)"),
        (["batch.pt"], "is not plainly a stack of linear layers (it has '1.running_mean' of shape (5,)"),
        (["narrow.pt"], "takes examples of shape (5,); those of digits have shape (64,)"),
        (["few_classes.pt"], "labels must lie in [0, 3): number the classes from 0"),
        (["less.pt", "--arch", "own_broken:Small", "--arch-args", '{"width": 5}'], "lacks last.bias"),
        (["more.pt", "--arch", "own_broken:Small", "--arch-args", '{"width": 5}'], "has an unexpected extra"),
        (["small.pt", "--arch", "own_broken:Small"], "first.weight has shape (5, 64), not (6, 64)"),
        (["small.pt", "--arch", "own_broken:Small", "--arch-args", '{"depth": 5}'], "TypeError"),
        (["small.pt", "--arch", "own_broken:Small", "--arch-args", "width=5"], "give a JSON object"),
        (["small.pt", "--arch", "own_broken:Large"], "own_broken has no 'Large'; choose Small"),
        (["small.pt", "--arch", "own_absent:Small"], "ModuleNotFoundError"),
        (["small.pt", "--arch", "own_broken"], "give package.module:name, or FILE.py:name"),
        (["small.pt", "--arch", "absent/own.py:Small"], "arch is 'absent/own.py:Small'; no such file"),
        (["small.pt", "--arch", "own_broken.py:Large"], "own_broken.py has no 'Large'; choose Small"),
        (["small.pt", "--arch", "own_empty.py:Large"], "has no 'Large'; it defines no torch.nn.Module"),
        (["small.pt", "--arch", "own_broken:number"], "makes a int; it must make a torch.nn.Module"),
        (
            ["small.pt", "--arch", "own_broken:Small", "--arch-args", '{"width": 5, "activation": "tanh"}'],
            "network uses aten.tanh.default, which is not understood",
        ),
        (
            ["small.pt", "--arch", "own_broken:Small", "--arch-args", '{"width": 5}', "--shape", "8,8"],
            "does not take examples of shape (8, 8) (mat1 and mat2 shapes cannot be multiplied",
        ),
        (["net.pt", "--data", "only_train.npz"], "it needs x_test, y_test and holds ['x_train', 'y_train']"),
        (
            ["net.pt", "--data", "letters.csv"],
            "is no .npz file; store arrays: numpy.savez('letters.npz', x_test=..., y_test=...)",
        ),
        (["net.pt", "--data", "absent.npz"], "no such file"),
        (["net.pt", "--data", "letters.npz"], "labels must be integers"),
        (["net.pt", "--data", "nan.npz"], "remove NaN"),
        (["net.pt", "--shape", "8,7"], "takes examples of shape (8, 7); those of digits have shape (64,)"),
        (["net.pt", "--shape", "a"], "give numbers joined by commas"),
        (["net.pt", "--pair", "3", "3"], "give two different classes in [0, 10)"),
        (["net.pt", "--pair", "3", "10"], "give two different classes in [0, 10)"),
        (["net.pt", "--p", "3"], "p is '3'; choose inf or 2"),
        (["net.pt", "--p", "2,l1"], "p is 'l1'; choose inf or 2"),
        (["net.pt", "--p", "2", "--p", "2"], "each once"),
        (["net.pt", "--radius", "-1"], "a ball needs a finite radius >= 0"),
        (["net.pt", "--alphas", "0,1.5"], "alphas[1] is 1.5; sparsity is the fraction of weights removed"),
        (["net.pt", "--examples", "0"], "use at least one"),
        (["net.pt", "--steps", "-1"], "give 0 or more ascent steps"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)
def test_bad_input_is_one_line(broken, monkeypatch, unchecked, arguments, message):
    monkeypatch.chdir(broken)
    data = [] if "--data" in arguments else ["--data", "digits"]
    result = run(*arguments, *data, "--out", "never")
    assert result.exit_code == 2, result.output
    errors = [
        line for line in result.stderr.splitlines() if not line.endswith("ReLUs assumed between the layers")
    ]
    errors = [line for line in errors if ": checkpoint of" not in line and "as by chance" not in line]
    assert len(errors) == 1, result.stderr
    assert errors[0].startswith("Error: ")
    assert message in errors[0]
    assert not Path("never").exists()


def _rewritten(source: Path, target: Path, **changes: bytes) -> Path:
    """A copy of an archive in which the entries that end as named have other contents."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            for end, other in changes.items():
                content = other if name.endswith(end) else content
            new.writestr(name, content)
    return target


def test_nothing_in_a_model_file_is_run(tmp_path):
    """Pickles in checkpoints and in every corner of an archive, and operators that would call Python."""
    touched = tmp_path / "touched"
    torch.save({"a": Payload(touched)}, tmp_path / "evil.pt")
    good, net = tmp_path / "good.pt2", mlp(4, 3, 2)
    torch.export.save(torch.export.export(net, (torch.zeros(2, 4),)), good)
    payload = io.BytesIO()
    torch.save(Payload(touched), payload)
    with zipfile.ZipFile(good) as archive:
        (place,) = [name for name in archive.namelist() if name.endswith("model_weights_config.json")]
        weights = archive.read(place)
        (place,) = [name for name in archive.namelist() if name.endswith("models/model.json")]
        program = archive.read(place)
    attacks = {
        "sample": _rewritten(good, tmp_path / "sample.pt2", **{"sample_inputs/model.pt": payload.getvalue()}),
        "weight": _rewritten(
            good,
            tmp_path / "weight.pt2",
            **{
                "weights/weight_0": payload.getvalue(),
                "model_weights_config.json": weights.replace(
                    b'"use_pickle": false', b'"use_pickle": true', 1
                ),
            },
        ),
        "operator": _rewritten(
            good,
            tmp_path / "operator.pt2",
            **{"models/model.json": program.replace(b"torch.ops.aten.relu.default", b"torch.hub.load")},
        ),
    }
    extra = _rewritten(good, tmp_path / "opaque.pt2")
    with zipfile.ZipFile(extra, "a") as archive:
        archive.writestr("good/data/constants/opaque_obj_0", b"cos\nsystem\n")
    attacks["opaque"] = extra
    for path in (tmp_path / "evil.pt", *attacks.values()):
        with pytest.raises(InvalidInput, match="pickled objects|could run code"):
            load_network(path)
        assert not touched.exists()
    torch.load(io.BytesIO(payload.getvalue()), weights_only=False)
    assert touched.exists()  # the payload does work
    assert load_network(_rewritten(good, tmp_path / "same.pt2")).shape == (4,)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"norms": ()}, "norms"),
        ({"norms": (3.0,)}, "p is 3.0"),
        ({"shape": (0, 3)}, "shape"),
        ({"dtype": "float16"}, "dtype"),
        ({"radii": (math.nan,)}, "radius is nan"),
    ],
)
def test_bad_requests(asked, message):
    with pytest.raises(InvalidInput, match=message):
        Request(**asked)


def test_norms_are_named_as_in_the_tables_too():
    named = {
        "inf": math.inf,
        "linf": math.inf,
        "l_inf": math.inf,
        "2": 2.0,
        "2.0": 2.0,
        "l2": 2.0,
        "l_2": 2.0,
    }
    assert {text: _norm(text) for text in named} == named


_TWICE = nn.Linear(4, 4)


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(_TWICE, nn.ReLU(), _TWICE, nn.ReLU(), nn.Linear(4, 2)),
        nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)),
        nn.Sequential(nn.Linear(4, 3), nn.ReLU()),
        nn.Sequential(nn.ReLU(), nn.Linear(4, 2)),
        nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2)),
    ],
    ids=[
        "a layer used twice",
        "two linear layers in a row",
        "a last ReLU",
        "a first ReLU",
        "batch normalisation",
    ],
)
def test_what_is_not_plainly_fully_connected_has_no_layers(net):
    assert fully_connected(graphs.read(net, (4,))) is None
