"""The benchmarks compute what they say they time; how fast is measured there, not here."""

import csv
import json
import math
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner

from benchmarks import attacks, compaction, convolutions, gpu, hidden_norms, pages
from benchmarks.cases import QUICK, Case
from benchmarks.certificates import FIELDS, RADII, main, sampled_constants
from benchmarks.command import on_mnist
from benchmarks.floor import beside_products, interval_flops, jacobian_flops, margin_flops
from benchmarks.peers import RADII as SEARCHED
from benchmarks.peers import installed, largest_certified, targets
from benchmarks.tables import Row
from benchmarks.training import FIELDS as TRAINING_FIELDS
from benchmarks.training import main as main_of_training
from benchmarks.training import setups, step_flops
from benchmarks.turns import in_turns
from empirical.datasets import load
from empirical.ensembles import initialise

CPU = torch.device("cpu")


def shown(path, make, **options):
    """A table of the docs, without its headings, as the quick run would fill it."""
    return make(pd.read_csv(path, dtype=str, keep_default_na=False), **options)[1:]


def test_the_quick_run_fills_its_table(tmp_path):
    out = tmp_path / "certificates.csv"
    result = CliRunner().invoke(main, ["--quick", "--out", str(out)], catch_exceptions=False)
    assert result.exit_code == 0
    with out.open(newline="") as file:
        table = list(csv.DictReader(file))
    assert tuple(table[0]) == FIELDS
    done = [line for line in table if line["note"] != "not installed"]
    for norm, radii in zip(("linf", "l2"), RADII.values(), strict=True):
        certified = [line for line in done if line["task"] == "certified radius" and line["norm"] == norm]
        assert {float(line["sparsity"]) for line in certified} == set(QUICK.sparsities)
        assert all(0 < float(line["ratio"]) <= 1 for line in certified)
        constants = [line for line in done if line["task"] == "local Lipschitz" and line["norm"] == norm]
        assert {float(line["radius"]) for line in constants} == set(radii)
        assert all(float(line["ratio"]) >= 1 for line in constants if line["method"] != "sampled")
    ours = [line for line in done if line["method"].startswith("theory")]
    assert all(0 < float(line["least"]) <= float(line["seconds"]) <= float(line["most"]) for line in ours)
    assert all(float(line["times_products"]) > 0 for line in ours)
    assert not any(line["gflop"] for line in table if line["method"] == "auto_LiRPA CROWN-IBP")
    assert {"commit", "date", "processor", "torch"} <= json.loads(out.with_suffix(".json").read_text()).keys()
    assert "theory.graph" in [name for name, *_ in shown(out, pages.certified)]
    assert "theory.graph" in [name for name, *_ in shown(out, pages.constants)]
    assert [line[0] for line in shown(out, pages.by_sparsity)] == ["0.0", "0.5"]


def test_the_quick_run_of_attacks_fills_its_table(tmp_path):
    out = tmp_path / "attacks.csv"
    result = CliRunner().invoke(attacks.main, ["--quick", "--out", str(out)], catch_exceptions=False)
    assert result.exit_code == 0
    with out.open(newline="") as file:
        table = list(csv.DictReader(file))
    assert tuple(table[0]) == attacks.FIELDS
    ours = [
        line for line in table if line["method"].startswith(("deepfool", "fmn", "ddn", "carlini", "strong"))
    ]
    assert len(ours) == 22
    assert all(float(line["success"]) == 1 and float(line["mean"]) > 0 for line in ours)
    steps = {line["method"]: float(line["passes"]) for line in ours if line["passes"]}
    assert 100 <= steps["ddn, 100 steps"] < 110
    assert steps["carlini_wagner, 9 x 100"] <= 920
    found = shown(out, pages.attacked, network="64-12-8-10")
    assert len(found) == 3 + sum(bool(line["success"]) for line in table)
    assert len(shown(out, pages.passes)) == 2
    for norm in ("l2", "linf"):
        means = {line["method"]: float(line["mean"]) for line in ours if line["norm"] == norm}
        assert min(means.values()) == pytest.approx(means["strongest, effort 3, others"], rel=1e-3)


def test_the_quick_run_of_compaction_fills_its_table(tmp_path):
    out = tmp_path / "compaction.csv"
    result = CliRunner().invoke(compaction.main, ["--quick", "--out", str(out)], catch_exceptions=False)
    assert result.exit_code == 0
    with out.open(newline="") as file:
        table = list(csv.DictReader(file))
    assert {line["task"].split()[0].strip(",") for line in table} == {
        "measure",
        "layer",
        "certificate",
        "local",
        "CLEVER",
        "crossing",
    }
    assert all(float(line["seconds"]) > 0 for line in table)
    (ours, *_) = [line for line in table if line["task"] == "CLEVER"]
    assert 0 < float(ours["score"]) < 2 * float(ours["most_score"])
    assert [len(line) for line in shown(out, pages.compacted)] == [5] * 9
    assert len(shown(out, pages.scores)) == 2


def test_the_quick_run_of_hidden_norms_fills_its_table(tmp_path):
    out = tmp_path / "hidden_norms.csv"
    result = CliRunner().invoke(hidden_norms.main, ["--quick", "--out", str(out)], catch_exceptions=False)
    assert result.exit_code == 0
    with out.open(newline="") as file:
        table = list(csv.DictReader(file))
    assert tuple(table[0]) == hidden_norms.FIELDS
    assert [(line["precision"], line["given"]) for line in table] == [
        (precision, given) for precision in ("float32", "float64") for given in ("False", "True")
    ]
    assert all(float(line["seconds"]) > 0 < float(line["mean"]) for line in table)
    assert len(shown(out, pages.hidden)) == 4


def test_quick_and_mnist_exclude_each_other():
    for command in (main, attacks.main, hidden_norms.main):
        for arguments in ([], ["--quick", "--mnist", "mnist.npz"]):
            assert CliRunner().invoke(command, arguments).exit_code == 2


def test_other_data_than_mnist_are_refused_before_any_work(tmp_path):
    path = tmp_path / "small.npz"
    x, y = np.zeros((4, 9), np.float32), np.arange(4) % 2
    np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y)
    for argument, told in ((path, "has 9 features, MNIST 784"), (tmp_path / "none.npz", "none.npz")):
        done = CliRunner().invoke(attacks.main, ["--mnist", str(argument)])
        assert done.exit_code in (1, 2)
        assert told in done.stderr
        assert "Traceback" not in done.stderr


def test_rows_of_a_run_that_ends_early_are_kept_beside_the_table(tmp_path):
    out = tmp_path / "table.csv"
    out.write_text("old")

    def rows(*_: object) -> Iterator[Row]:
        yield {"task": 1}
        raise ZeroDivisionError

    assert (
        CliRunner().invoke(on_mnist(rows, ["task"], "Fails"), ["--quick", "--out", str(out)]).exit_code == 1
    )
    assert out.read_text() == "old"
    assert out.with_suffix(".unfinished").read_text().split() == ["task", "1"]


def test_products_are_held_against_the_fastest_rate_of_their_precision():
    products: list[Row] = [
        {"task": "matrix product", "precision": p, "gflop": "2", "seconds": s}
        for p, s in (("float32", "0.1"), ("float32", "0.2"), ("float64", "0.4"))
    ]
    row: Row = {"task": "attack", "precision": "float32", "gflop": "10", "seconds": "1"}
    *_, ours, bare = beside_products([*products, row, {"task": "attack", "seconds": "1"}])
    assert ours["times_products"] == "2"
    assert "times_products" not in bare


def test_the_tables_of_the_docs_are_those_of_the_committed_results():
    text = pages.PAGE.read_text()
    assert pages.filled(text) == text
    assert [name for _, name, _ in pages._BLOCK.findall(text)] == list(pages.TABLES)


def test_a_package_that_only_has_the_name_of_a_peer_is_not_it(tmp_path, monkeypatch):
    (tmp_path / "namesake.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    assert installed("namesake")
    assert not installed("namesake.estimators")
    assert not installed("missing.estimators")


def test_training_is_timed_on_networks_that_learn_alike(tmp_path):
    """Both prune the same share, and neither is fast by learning nothing."""
    out = tmp_path / "training.csv"
    result = CliRunner().invoke(main_of_training, ["--quick", "--out", str(out)], catch_exceptions=False)
    assert result.exit_code == 0
    with out.open(newline="") as file:
        table = list(csv.DictReader(file))
    assert tuple(table[0]) == TRAINING_FIELDS
    assert len(table) == 3
    assert {line["sparsity"] for line in table} == {"0.3337"}
    assert all(float(line["accuracy"]) > 0.15 for line in table)
    assert [name.split(", ")[0] for name, *_ in shown(out, pages.trained)] == ["64-12-8-10"] * 3
    assert CliRunner().invoke(main_of_training, []).exit_code == 2


def test_operations_of_a_training_step_are_those_of_its_products():
    """Three products per layer, but for the first one's input gradient."""
    (setup,) = setups(load("digits"), quick=True)
    assert step_flops(setup) == 2 * (3 * (64 * 12 + 12 * 8 + 8 * 10) - 64 * 12)


def test_the_search_finds_known_radii_from_below():
    known = torch.tensor([1e-5, 0.0099, 0.01, 0.3, 1e4], dtype=torch.float64)
    found = largest_certified(lambda rows, radius: radius <= known[rows], len(known), start=0.01)
    assert (found <= known).all()
    assert (found >= known * (1 - 1e-3)).all()


@pytest.mark.parametrize(("accepts", "end"), [(True, SEARCHED[1]), (False, 0.0)])
def test_the_search_ends_where_every_radius_is_alike(accepts, end):
    found = largest_certified(lambda rows, _: torch.full((len(rows),), accepts), 2, start=0.5)
    assert (found >= end).all()
    assert (found <= 2 * end).all()


def test_targets_are_the_differences_to_all_other_classes():
    y = torch.tensor([2, 0])
    others, rows = targets(y, 3)
    assert others.tolist() == [[0, 1], [1, 2]]
    scores = torch.tensor([[1.0, 2.0, 5.0], [7.0, 3.0, 4.0]])
    assert (rows @ scores[..., None])[..., 0].tolist() == [[4.0, 3.0], [4.0, 3.0]]


def test_operations_are_those_of_a_hand_count():
    # 2 inputs, hidden layers of 3 and 5, 4 classes. Hidden bounds: 2 rows for each of 5 units, through 3 x 2.
    widths = [2, 3, 5, 4]
    hidden = 2 * (2 * 5) * (3 * 2)
    row = 2 * (5 * 3 + 3 * 2)
    assert interval_flops(widths) == 2 * 2 * (2 * 3 + 3 * 5 + 5 * 4)
    assert margin_flops(widths) == hidden + 3 * row
    assert jacobian_flops(widths) == hidden + 2 * 3 * row


@pytest.mark.parametrize("p", [2.0, math.inf])
def test_sampled_constants_are_exact_on_a_linear_model_and_grow_with_the_ball(p):
    x, y = torch.zeros(2, 4, dtype=torch.float64), torch.tensor([1, 0])
    linear = initialise((4, 3), seeds=[0], device=CPU).to(dtype=torch.float64, device=CPU)
    weight = linear.weights[0][0]
    slopes = weight[y][:, None] - weight
    exact = slopes.norm(dim=2) if p == 2 else slopes.abs().sum(2)
    found = sampled_constants(Case(0.0, linear, x, y), x, y, 0.5, p=p, samples=10)
    torch.testing.assert_close(found, exact)
    deep = initialise((4, 20, 20, 3), seeds=[0], device=CPU).to(dtype=torch.float64, device=CPU)
    x = torch.rand(2, 4, dtype=torch.float64)
    at_centre, around = (
        sampled_constants(Case(0.0, deep, x, y), x, y, radius, p=p, samples=200) for radius in (0.0, 2.0)
    )
    assert (around >= at_centre).all()
    assert (around > at_centre).any()


def test_slow_works_run_once_and_missing_ones_not_at_all(monkeypatch):
    runs = []

    def work() -> torch.Tensor:
        runs.append(1)
        return torch.tensor(len(runs))

    assert in_turns({"work": work, "missing": None}, repeats=2).keys() == {"work"}
    assert len(runs) == 3
    monkeypatch.setattr("benchmarks.turns.SLOW", -1.0)
    done = in_turns({"work": work}, repeats=2)["work"]
    assert (len(runs), done.columns()["runs"], int(done.value)) == (4, 1, 4)


def test_the_quick_run_of_the_gpu_table_fills_it(tmp_path):
    out = tmp_path / "gpu.csv"
    result = CliRunner().invoke(gpu.main, ["--quick", "--device", "cpu", "--out", str(out)])
    assert result.exit_code == 0, result.output
    with out.open(newline="") as file:
        table = list(csv.DictReader(file))
    assert tuple(table[0]) == gpu.FIELDS
    trained = [line for line in table if line["task"] == "train"]
    assert {line["way"] for line in trained} == {"together", "in turn"}
    assert {line["precision"] for line in trained} == {"float32", "bfloat16"}
    assert {line["compiled"] for line in trained} == {"", "default", "reduce-overhead"}
    assert all(line["seconds"] and float(line["share"]) > 0 for line in trained), trained
    assert table[: len(trained)] == trained  # before what takes longer
    measured = [line["task"] for line in table[len(trained) :]]
    assert measured == ["measurement without an attack", "attack fgs", "attack deepfool"]


def test_products_of_the_full_networks_are_counted():
    """Forward multiply-adds of the literature: 69 million for ResNet-32, 313 million for the VGG-like one."""
    for kind, forward in (("resnet-32", 69e6), ("vgg", 313e6)):
        first = 3 * 9 * (16 if kind == "resnet-32" else 64) * 1024
        assert gpu._flops(gpu.Network(kind)) == pytest.approx(2 * (3 * forward - first), rel=0.01)


def test_the_quick_run_of_convolutions_fills_its_table(tmp_path):
    out = tmp_path / "convolutions.csv"
    assert CliRunner().invoke(convolutions.main, ["--quick", "--out", str(out)]).exit_code == 0
    with out.open(newline="") as file:
        table = list(csv.DictReader(file))
    assert tuple(table[0]) == convolutions.FIELDS
    dense, sparse = (line["channels"] for line in table[:: len(table) // 2])
    assert dense == "20-50-500"
    left = [int(count) for count in sparse.split("-")]
    assert left[0] < 20
    assert left[2] < 500
    assert shown(out, pages.convolved)[0][1:] == [dense, sparse]
