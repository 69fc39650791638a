"""The command ``check`` on networks that this package did not train: its numbers, its page, its refusals."""

from __future__ import annotations

import math
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner, Result
from sklearn.neural_network import MLPClassifier
from torch import nn

from empirical.cli.main import main
from empirical.datasets import load, load_test
from empirical.own_network import against, problem
from empirical.own_network.accuracies import MORE
from empirical.own_network.check import Findings, Request, check
from empirical.own_network.check_facts import harmless, layers
from empirical.own_network.check_tables import number
from empirical.own_network.loading import Network, load_network
from empirical.results import BOUNDS, read_table
from tests.browser import assert_readable
from tests.test_bounds import mlp
from tests.test_report import Page
from theory.ceiling import mean_radius_ceiling
from theory.graph import read, relaxation_products

ARCHITECTURE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, activation="relu"):
        super().__init__()
        self.conv, self.pool = nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.MaxPool2d(2)
        self.head = nn.Linear(16, 10)
        self.activation = getattr(torch, activation)

    def forward(self, x):
        return self.head(self.pool(self.activation(self.conv(x))).flatten(1))
"""
N, LEVELS, CPU = 25, (0.5, 0.9), torch.device("cpu")
QUICK = ("--examples", N, "--attacks", "fgs,deepfool", "--removed", ",".join(map(str, LEVELS)))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["check", *map(str, arguments)])


@dataclass(frozen=True)
class Finished:
    """A run: where it is, what it was called with and printed, and the scikit-learn network it is about."""

    folder: Path
    arguments: tuple[object, ...]
    result: Result
    classifier: MLPClassifier

    @property
    def page(self) -> str:
        return re.sub(r"\s+", " ", (self.folder / "report.html").read_text(encoding="utf-8"))

    def further(self) -> pd.DataFrame:
        return read_table(self.folder / "further_pruning.parquet").to_pandas()


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Finished:
    """scikit-learn's own network on the digits, a third of its first weights removed."""
    data = load("digits")
    classifier = MLPClassifier((24, 16), random_state=0, max_iter=60, tol=1e9, n_iter_no_change=30)
    classifier.fit(data.x_train, data.y_train)
    first = classifier.coefs_[0]
    first[np.abs(first) < np.quantile(np.abs(first), 1 / 3)] = 0.0
    state = {}
    for i, (weight, bias) in enumerate(zip(classifier.coefs_, classifier.intercepts_, strict=True)):
        state |= {f"{i}.weight": torch.tensor(weight.T.copy()), f"{i}.bias": torch.tensor(bias)}
    folder = tmp_path_factory.mktemp("check")
    torch.save(state, folder / "sk<b>.pt")
    arguments = (folder / "sk<b>.pt", "--data", "digits", *QUICK, "--out", folder / "run")
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return Finished(folder / "run", arguments, result, classifier)


def one(rows: pd.DataFrame, **wanted: object) -> float:
    for column, entry in wanted.items():
        rows = rows[rows[column] == entry]
    (value,) = rows["value"]
    return float(value)


def test_accuracy_and_sparsity_are_those_of_scikit_learn(finished):
    data = load("digits")
    x, y = data.x_test[:N], data.y_test[:N]
    measured = read_table(finished.folder / "measure" / "measure.parquet").to_pandas()
    score = finished.classifier.score(x, y)
    assert one(measured, quantity="accuracy", method="clean") == pytest.approx(score)
    assert f"Clean accuracy is {100 * score:.1f} %" in finished.page
    every = finished.classifier.score(data.x_test, data.y_test)  # which takes no attack
    assert re.search(
        rf"Clean accuracy +{100 * every:.3g} % \[.* measured +{len(data.y_test)}", finished.result.stdout
    )
    zeros = sum(int((weight == 0).sum()) for weight in finished.classifier.coefs_)
    assert f"{zeros:,} of {24 * 64 + 16 * 24 + 160:,} weights are zero" in finished.page


def test_further_pruning_is_what_zeroing_the_smallest_does_in_scikit_learn(finished):
    """Accuracy of the classifier after its own weights were zeroed, layer by layer, with NumPy."""
    data = load("digits")
    rows = finished.further()
    kept = [weight.copy() for weight in finished.classifier.coefs_]
    try:
        for level in LEVELS:
            for weight, original in zip(finished.classifier.coefs_, kept, strict=True):
                left = np.flatnonzero(original)
                removed = original.size - left.size + round(level * left.size)
                order = np.argsort(np.abs(original), axis=None, kind="stable")
                weight[:] = original
                weight.flat[order[:removed]] = 0.0
            own = rows[(rows["pruning"] == "one-shot") & (rows["sparsity"] == level)]
            for method, n in (("clean", N), (MORE, len(data.y_test))):
                score = finished.classifier.score(data.x_test[:n], data.y_test[:n])
                assert one(own, quantity="accuracy", method=method) == pytest.approx(score)
            share = 1 - sum(map(np.count_nonzero, finished.classifier.coefs_)) / sum(w.size for w in kept)
            assert own["achieved_sparsity"].iloc[0] == pytest.approx(share)
    finally:
        for weight, original in zip(finished.classifier.coefs_, kept, strict=True):
            weight[:] = original


def test_random_levels_are_measured_on_several_masks_and_predicted(finished):
    rows = finished.further()
    for level in LEVELS:
        clean = rows[
            (rows["pruning"] == "random") & (rows["sparsity"] == level) & (rows["method"] == "clean")
        ]
        assert len(clean) == 3
        assert (clean["achieved_sparsity"] > level).all()  # some weights were gone before
        told = rows[(rows["sparsity"] == level) & (rows["method"] == "moment propagation")]
        assert set(told["kind"]) == {"estimate"}
    start = rows[rows["sparsity"] == 0]
    predicted = one(start, quantity="accuracy", method="moment propagation")
    assert predicted == pytest.approx(one(start, quantity="accuracy", method="clean"))  # exact without masks


def test_changes_add_up_to_the_change_of_the_measured_mean_radius(finished):
    rows = finished.further()
    rows = rows[(rows["pruning"] == "one-shot") & rows["example"].isna()]
    for norm in ("l2", "linf"):
        of_norm = rows[rows["norm"] == norm]
        radii = of_norm[(of_norm["quantity"] == "mean_radius") & (of_norm["method"] == "best")]
        for level in LEVELS:
            change = of_norm[(of_norm["quantity"] == "log_change") & (of_norm["sparsity"] == level)]
            parts = change.set_index("method")["value"]
            assert parts["total"] == pytest.approx(parts[["margin", "gradient", "remainder"]].sum(), abs=1e-9)
            before, after = (one(radii, sparsity=s) for s in (0.0, level))
            assert parts["total"] == pytest.approx(math.log(after / before))


def test_certified_attacked_and_ceiling_are_in_order(finished):
    proved = read_table(finished.folder / "bounds" / "bounds.parquet", schema=BOUNDS).to_pandas()
    measured = read_table(finished.folder / "measure" / "measure.parquet").to_pandas()
    for norm in ("l2", "linf"):
        certified, attacked = (
            rows[(rows["norm"] == norm) & (rows["quantity"] == "radius") & rows["example"].notna()].groupby(
                "example"
            )["value"]
            for rows in (proved, measured)
        )
        low, high = certified.max().to_numpy(), attacked.min().to_numpy()
        assert (low <= high).all()
        assert ((low > 0) == (high > 0)).all()
        assert f"{low.mean():.3g} to" in finished.page
        of_norm = proved[(proved["norm"] == norm) & (proved["method"] == "universal ceiling")]
        curve = of_norm[of_norm["quantity"] == "robust_accuracy"].sort_values("radius")
        assert curve["value"].iloc[0] == (high > 0).mean()
        assert curve["value"].is_monotonic_decreasing
        assert curve["value"].iloc[-1] < curve["value"].iloc[0]
        assert all(
            (low > r).mean() <= share for r, share in zip(curve["radius"], curve["value"], strict=True)
        )
        assert low.mean() <= one(of_norm, quantity="mean_radius")


def test_the_page_stands_alone_and_labels_its_numbers(finished):
    text = (finished.folder / "report.html").read_text(encoding="utf-8")
    parser = Page()
    parser.feed(text)
    assert not parser.open
    assert len(parser.links) == 6 + 9  # three figures of two widths, and the links to the parts
    assert all(link.startswith(("data:image/svg+xml;base64,", "#")) for link in parser.links)
    assert "sk<b>" not in text
    assert len(text) < 1_000_000
    for nature in ("identity", "lower bound", "upper bound", "measured", "estimate"):
        assert f">{nature}</span>" in text
    for table in re.findall(r"<table.*?</table>", text, flags=re.DOTALL)[:-1]:
        assert re.search(r"identity|bound|measured|estimate", table)
    for name in ("robust_accuracy", "further_pruning", "bounds"):
        assert (finished.folder / "figures" / f"{name}.svg").stat().st_size > 10_000
    assert "Prunable without retraining" in finished.result.stdout


@pytest.mark.usefixtures("undrawn")
def test_a_finished_run_is_only_reported_again_and_never_overwritten(finished, monkeypatch):
    tables = sorted(finished.folder.rglob("*.parquet"))
    before = [path.stat().st_mtime_ns for path in tables]
    monkeypatch.setattr("empirical.own_network.measuring.measure", None)
    monkeypatch.setattr("empirical.own_network.further_pruning.measure", None)
    assert run(*finished.arguments).exit_code == 0
    other = run(*finished.arguments, "--eps", "0.2")
    assert other.exit_code == 2
    assert "a run with eps = 0.1, not 0.2; choose a new folder" in other.stderr
    assert [path.stat().st_mtime_ns for path in tables] == before


@pytest.mark.usefixtures("undrawn")
def test_a_finished_run_is_reported_where_nothing_can_be_written(finished, read_only):
    read_only(finished.folder)
    result = run(*finished.arguments)
    assert result.exit_code == 0, result.output
    assert "Note: files stay as they were: " in result.stderr
    assert result.stdout.splitlines()[:-1] == finished.result.stdout.splitlines()[:-1]


@pytest.mark.usefixtures("undrawn")
def test_a_report_that_cannot_be_written_is_not_named(finished, read_only, tmp_path):
    shutil.copytree(finished.folder, tmp_path / "run", ignore=shutil.ignore_patterns("report.html"))
    read_only(tmp_path / "run")
    result = run(*finished.arguments[:-1], tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "Report  " in finished.result.stdout
    assert "Report  " not in result.stdout


def test_a_table_of_another_run_is_not_taken_for_further_pruning(finished, tmp_path):
    shutil.copytree(finished.folder, tmp_path / "run")
    shutil.copy(
        tmp_path / "run" / "measure" / "measure.parquet", tmp_path / "run" / "further_pruning.parquet"
    )
    result = run(*finished.arguments[:-1], tmp_path / "run")
    assert result.exit_code == 2
    assert (
        "further_pruning.parquet belongs to a run with other settings; choose a new folder" in result.stderr
    )


@pytest.mark.usefixtures("undrawn")
def test_a_killed_run_goes_on(finished, tmp_path, monkeypatch):
    import empirical.own_network.further_pruning as module

    honest = module.random_removed

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    arguments = (*finished.arguments[:-1], tmp_path / "run")
    monkeypatch.setattr(module, "random_removed", stop)
    assert run(*arguments).exit_code == 130
    kept = sorted((tmp_path / "run").rglob("units/*"))
    assert {path.name.rpartition("-")[0] for path in kept} >= {"given", "one-shot-0.5", "fgs", "masks"}
    monkeypatch.setattr(module, "random_removed", honest)
    monkeypatch.setattr(
        module, "smallest_removed", lambda network, level: stop() if level == 0.5 else network
    )
    assert run(*arguments).exit_code == 0
    found = read_table(tmp_path / "run" / "further_pruning.parquet").to_pandas()
    random = finished.further().query("pruning == 'random'")
    np.testing.assert_array_equal(found.query("pruning == 'random'")["value"], random["value"])


@pytest.fixture(scope="module")
def beside(finished) -> Finished:
    """The finished run continued, beside the same network with random first weights in place of the zeros."""
    state = torch.load(finished.arguments[0], weights_only=True)
    first = state["0.weight"]
    state["0.weight"] = torch.where(first == 0, 0.05 * torch.randn(first.shape, generator=seeded(0)), first)
    torch.save(state, finished.folder.parent / "dense.pt")
    folder = finished.folder.parent / "beside"
    shutil.copytree(finished.folder, folder)
    tables = {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}
    arguments = (*finished.arguments[:-1], folder, "--against", finished.folder.parent / "dense.pt")
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert {path: path.stat().st_mtime_ns for path in tables} == tables  # what was there is only read
    return replace(finished, folder=folder, arguments=arguments, result=result)


def test_a_network_beside_itself_is_remarked_on_before_any_work(beside, monkeypatch):
    monkeypatch.setattr("empirical.own_network.check.check", lambda *_, **__: 1 / 0)
    same = shutil.copy(beside.arguments[0], beside.folder.parent / "copy.pt")
    for reference, remarked in ((same, True), (beside.folder.parent / "dense.pt", False)):
        result = run(*beside.arguments[:-1], reference)
        assert "ZeroDivisionError" in result.output
        assert (f"Note: against is {reference}, which is MODEL itself" in result.stderr) == remarked


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def comparison(folder: Path, reference: str = "dense") -> dict[tuple[str, str, str], dict[str, float]]:
    """The rows by quantity, norm and nature."""
    table = read_table(folder / "against" / reference / "comparison.parquet", schema=against.COMPARISON)
    return {(row["quantity"], row["norm"], row["nature"]): row for row in table.to_pylist()}


def test_the_comparison_is_that_of_both_networks_own_tables(beside):
    """Accuracy from the files' weights, radii from the tables of the two networks, example by example."""
    found = comparison(beside.folder)
    data = load("digits")
    right = []
    for name in ("dense.pt", "sk<b>.pt"):
        state = torch.load(beside.folder.parent / name, weights_only=True)
        h = torch.tensor(data.x_test)
        for i in range(3):
            h = h @ state[f"{i}.weight"].double().T + state[f"{i}.bias"].double()
            h = h if i == 2 else h.relu()
        right.append(h.argmax(1).numpy() == data.y_test)
    accuracy = found["accuracy", "", "measured"]
    assert (accuracy["dense"], accuracy["pruned"]) == tuple(map(np.mean, right))
    assert accuracy["low"] < accuracy["change"] < accuracy["high"]
    assert found["sparsity", "", "identity"]["dense"] == 0
    assert accuracy["examples"] == len(data.y_test)
    for norm in ("linf", "l2"):
        radii = {}
        for side, folder in (("dense", beside.folder / "against" / "dense"), ("pruned", beside.folder)):
            measured = read_table(folder / "measure" / "measure.parquet").to_pandas()
            proved = read_table(folder / "bounds" / "bounds.parquet", schema=BOUNDS).to_pandas()
            radii[side] = [
                own[(own["norm"] == norm) & (own["quantity"] == "radius") & own["example"].notna()]
                .groupby("example")["value"]
                .agg(how)
                .to_numpy()
                for own, how in ((proved, "max"), (measured, "min"))
            ]
        (least, most), (low, high) = radii["dense"], radii["pruned"]
        mean = found["mean_radius", norm, "measured"]
        assert mean["dense"] == pytest.approx(most.mean())
        assert mean["change"] == pytest.approx(high.mean() / most.mean() - 1)
        sure = found["mean_radius", norm, against.BOUNDED]
        assert sure["low"] == pytest.approx(low.mean() / most.mean() - 1)
        assert sure["high"] == pytest.approx(high.mean() / least.mean() - 1)
        assert sure["low"] <= mean["change"] <= sure["high"]
        each = found["more_robust", norm, against.BOUNDED]
        assert each["pruned"] == np.mean([a > b for a, b in zip(low, most, strict=True)])
        assert each["dense"] == np.mean([a > b for a, b in zip(least, high, strict=True)])
    assert re.search(r"Mean radius, l_2, beside dense.pt +[+-]", beside.result.stdout)
    assert 'id="beside"' in beside.page
    assert (beside.folder / "figures" / "against.svg").stat().st_size > 10_000


@pytest.mark.usefixtures("undrawn")
def test_a_finished_comparison_is_only_reported_again(beside, monkeypatch):
    monkeypatch.setattr("empirical.own_network.measuring.measure", None)
    monkeypatch.setattr(against, "rows", None)
    assert run(*beside.arguments).exit_code == 0
    alone = run(*beside.arguments[:-2])
    assert alone.exit_code == 0
    assert "beside dense.pt" not in alone.stdout


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("absent.pt", "no such file"),
        ("twelve.pt", "against is twelve.pt, which has 12 classes; sk<b>.pt has 10"),
        ("other/dense.pt", "a run of another network"),
    ],
)
def test_another_reference_is_refused(beside, tmp_path, monkeypatch, reference, message):
    monkeypatch.chdir(tmp_path)
    Path("other").mkdir()
    torch.save({"0.weight": torch.ones(10, 64), "0.bias": torch.arange(10.0)}, "other/dense.pt")
    torch.save({"0.weight": torch.ones(12, 64), "0.bias": torch.arange(12.0)}, "twelve.pt")
    before = (beside.folder / "report.html").read_bytes()
    result = run(*beside.arguments[:-1], reference)
    assert result.exit_code == 2
    assert message in result.stderr
    assert (beside.folder / "report.html").read_bytes() == before


def checked(*networks: nn.Module, folder: Path) -> Findings:
    """What ``check`` finds of the first, beside the second if there is one."""
    for i, network in enumerate(networks):
        torch.save(network.state_dict(), folder / f"{i}.pt")
    loaded = [load_network(folder / f"{i}.pt") for i in range(len(networks))]
    asked = Request(examples=N, attacks=("deepfool",), removed=(0.5,))
    return check(
        loaded[0],
        load_test("digits"),
        asked,
        folder / "out",
        device=CPU,
        dense=dict(enumerate(loaded)).get(1),
    )


def test_both_networks_are_certified_alike(tmp_path, monkeypatch):
    """Where relaxation of the reference takes longer: the same function, padded with zeros."""
    small, large = mlp(64, 8, 10), mlp(64, 90, 10)
    with torch.no_grad():
        for weight in large.parameters():
            weight.zero_()
        for mine, theirs in zip(small.parameters(), large.parameters(), strict=True):
            theirs[tuple(map(slice, mine.shape))] = mine
    each = 12 * 2 * relaxation_products(read(large, (64,)))  # radii tried, norms
    monkeypatch.setattr(problem, "_MINUTE", 10.5 * each)
    found = checked(small, large, folder=tmp_path)
    assert isinstance(found.bounds, pd.DataFrame)
    assert found.crown == 10
    assert found.bounds["method"].eq("CROWN").sum() > found.crown
    assert found.reference is not None
    certified = [row.change for row in found.reference.rows if row.quantity == "mean_certified_radius"]
    assert certified == pytest.approx([0, 0], abs=1e-6)


def test_a_decision_that_nothing_changes_is_certified_up_to_the_cap(tmp_path):
    """As in the table of attacks, where a radius of inf counts as the largest distance in the data's box."""
    net = mlp(64, 8, 10)
    with torch.no_grad():
        first, _, last, bias = net.parameters()
        for weights in (first, last, bias):
            weights *= 1e-6
        bias[3] = 1.0
    for part in checked(net, folder=tmp_path).radii:
        assert part.certified is not None
        assert part.certified.max() > part.cap
        assert part.mean_certified == part.mean_attacked
        assert 0 < part.mean_attacked < part.cap


def test_intervals_of_paired_examples():
    """Beside the delta method for the ratio; exchanging the networks turns both around."""
    rng = np.random.default_rng(0)
    before = rng.gamma(2.0, size=400)
    after = before * rng.uniform(0.6, 1.2, size=400)
    value, low, high = against.ratio_of_means(before, after)
    assert value == pytest.approx(after.mean() / before.mean() - 1)
    spread = (after - (1 + value) * before).std(ddof=1) / before.mean() / math.sqrt(400)
    assert (value - low, high - value) == pytest.approx((1.96 * spread, 1.96 * spread), rel=0.1)
    back, *ends = against.ratio_of_means(after, before)
    assert (1 + back) * (1 + value) == pytest.approx(1)
    assert [(1 + end) for end in ends] == pytest.approx([1 / (1 + high), 1 / (1 + low)], rel=5e-3)
    none = against.ratio_of_means(np.zeros(5), np.ones(5))
    assert none[0] == math.inf
    assert np.isnan(none[1:]).all()

    right, other = rng.random(300) < 0.9, rng.random(300) < 0.8
    value, low, high = against.difference_of_shares(right, other)
    assert value == pytest.approx(other.mean() - right.mean())
    assert low < value < high
    assert against.difference_of_shares(other, right) == pytest.approx((-value, -high, -low))
    same, low, high = against.difference_of_shares(right, right)
    assert same == 0
    assert -0.02 < low < 0 < high == -low


@pytest.fixture(scope="module")
def convolutional(tmp_path_factory) -> Path:
    """A folder with a CNN that plain PyTorch saved as a state dict and as a program bound to one example."""
    folder = tmp_path_factory.mktemp("cnn")
    (folder / "own_cnn.py").write_text(ARCHITECTURE)
    namespace: dict[str, type[nn.Module]] = {}
    exec(ARCHITECTURE, namespace)
    torch.manual_seed(0)
    net = namespace["Net"]().eval()
    data = load("digits")
    x, y = torch.tensor(data.x_train).reshape(-1, 1, 8, 8), torch.tensor(data.y_train)
    optimiser = torch.optim.Adam(net.parameters(), lr=2e-2)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimiser.step()
    torch.save(net.state_dict(), folder / "cnn.pt")
    torch.export.save(torch.export.export(net, (torch.zeros(1, 1, 8, 8),)), folder / "cnn.pt2")
    images = data.x_test[:N].reshape(-1, 1, 8, 8)
    np.savez(folder / "images.npz", x_test=images, y_test=data.y_test[:N])
    return folder


@pytest.mark.usefixtures("undrawn")
def test_a_cnn_as_state_dict_and_as_program_are_one_network(convolutional, monkeypatch):
    monkeypatch.chdir(convolutional)
    common = ("--data", "images.npz", *QUICK, "--removed", "0.9")
    arch = ("--arch", "own_cnn:Net")  # of the checkpoint alone: the program needs none
    as_state = run("cnn.pt", *arch, "--against", "cnn.pt2", *common, "--crown", 5, "--out", "state")
    as_program = run("cnn.pt2", *common, "--crown", 0, "--out", "program")
    assert (as_state.exit_code, as_program.exit_code) == (0, 0), as_state.output + as_program.output
    compared = ["quantity", "norm", "method", "pruning", "sparsity", "example"]
    for name in ("measure/measure.parquet", "further_pruning.parquet"):
        one, other = (read_table(Path(folder) / name).to_pandas() for folder in ("state", "program"))
        pd.testing.assert_frame_equal(one[compared], other[compared])
        np.testing.assert_allclose(one["value"], other["value"], rtol=1e-5, atol=1e-9)
    for (quantity, _, nature), row in comparison(Path("state"), "cnn").items():
        if nature == against.BOUNDED and quantity == "mean_radius":
            assert row["low"] <= 0 <= row["high"]
        else:
            assert row["change"] == pytest.approx(0, abs=1e-5)
    page, other = (Path(folder, "report.html").read_text() for folder in ("state", "program"))
    assert (
        "No prediction for random masks: moment propagation is done for fully connected networks only" in page
    )
    assert "CROWN and local: the first 5 examples" in page
    assert "CROWN and local: not run" in other
    assert "random masks, classes" in page
    rows = read_table(Path("state/bounds/bounds.parquet"), schema=BOUNDS).to_pandas()
    counts = rows[rows["quantity"].eq("radius")].groupby("method", observed=True)["example"].nunique()
    assert counts[["CROWN", "path norm"]].tolist() == [5, N]
    assert set(rows.loc[rows["quantity"] == "expected_lipschitz", "method"]) == {"P1", "F", "best"}
    rows = read_table(Path("program/bounds/bounds.parquet"), schema=BOUNDS).to_pandas()
    assert not (rows["method"] == "CROWN").any()


def _check_ceilings(page, measured, data):
    """No certificate, but what no classifier passes that is right at the same examples."""
    for norm, p in (("linf", math.inf), ("l2", 2)):
        found = measured[measured["quantity"].eq("radius") & measured["norm"].eq(norm)]
        radii = found.groupby("example")["value"].min().to_numpy()
        ceiling = mean_radius_ceiling(data.x.reshape(len(data.x), -1)[:N], data.y[:N], radii > 0, p=p)
        assert re.search(rf"any classifier.*?<td>{re.escape(number(ceiling))}</td>", page, flags=re.DOTALL)
        assert f"same examples has more than {number(ceiling)}. n = {N}." in page


@pytest.mark.usefixtures("undrawn")
def test_what_the_theory_does_not_cover_is_said_and_the_rest_is_done(convolutional, monkeypatch):
    monkeypatch.chdir(convolutional)
    arch = ("--arch", "own_cnn:Net", "--arch-args", '{"activation": "tanh"}')
    result = run("cnn.pt", *arch, "--data", "images.npz", *QUICK, "--out", "tanh")
    assert result.exit_code == 0, result.output
    page = Path("tanh/report.html").read_text()
    assert page.count("network uses aten.tanh.default") == 1
    assert page.count("the theory does not cover this network") == 3
    _check_ceilings(
        page, read_table(Path("tanh/measure/measure.parquet")).to_pandas(), load_test("images.npz")
    )
    assert "Attacks" in page
    assert not Path("tanh/bounds/bounds.parquet").exists()
    assert "≤" in result.stdout


def test_linear_relaxation_stops_where_it_would_take_long(convolutional, monkeypatch):
    """How many examples it certifies follows from the network's size and what a minute is taken to hold."""
    monkeypatch.chdir(convolutional)
    asked = problem.Request(examples=N)
    network, data = load_network(Path("cnn.pt2")), load_test("images.npz")
    stated = problem.Problem.of(network, data, asked, device=CPU)
    assert problem.affordable(stated, asked) == N
    each = 12 * 2 * relaxation_products(stated.graph)  # radii tried, norms
    for minute, count in ((3.5 * each, 3), (0.5 * each, 0)):
        monkeypatch.setattr(problem, "_MINUTE_OF_CONVOLUTIONS", minute)
        assert problem.affordable(stated, asked) == count


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.pt"], "no such file"),
        (["cnn.pt"], "is not plainly a stack of linear layers"),
        (["cnn.pt2", "--arch", "own_cnn:Net"], "is a program, which needs no arch"),
        (["cnn.pt2", "--examples", "0"], "examples is 0; use at least one"),
        (["cnn.pt2", "--removed", "0.5,1.2"], "removed is [0.5, 1.2]; give shares of the remaining weights"),
        (["cnn.pt2", "--removed", "0"], "removed is [0.0]; give shares"),
        (["cnn.pt2", "--removed", "x"], "removed is 'x'; give numbers joined by commas"),
        (["cnn.pt2", "--attacks", "pdg"], "attacks is ['pdg']; choose different ones of fgs"),
        (["cnn.pt2", "--crown", "-1"], "crown is -1; give 0 or more"),
        (["cnn.pt2", "--examples", "3", "--crown", "4"], "crown is 4, but examples is 3"),
        (["cnn.pt2", "--box", "1", "0"], "box is (1.0, 0.0); give its lower end first"),
        (["cnn.pt2", "--data", "digits", "--shape", "64"], "does not take examples of shape (64,)"),
        (["cnn.pt2", "--data", "few.npz"], "takes examples of shape (1, 8, 8); those of few have shape (7,)"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)
def test_bad_input_is_one_line_and_leaves_nothing(convolutional, monkeypatch, unchecked, arguments, message):
    monkeypatch.chdir(convolutional)
    np.savez("few.npz", x_test=np.zeros((5, 7)), y_test=np.arange(5))
    data = [] if "--data" in arguments else ["--data", "images.npz"]
    result = run(*arguments, *data, "--out", "never")
    assert result.exit_code == 2, result.output
    (error,) = [line for line in result.stderr.splitlines() if not line.endswith("torch.export program")]
    assert error.startswith("Error: ")
    assert message in error
    assert not Path("never").exists()


def test_facts_of_the_finished_run(finished):
    """The level up to which accuracy holds, from a table in which it comes back after it was lost."""
    rows = pd.DataFrame(
        {
            "quantity": "accuracy",
            "method": MORE,
            "pruning": "one-shot",
            "sparsity": [0.0, 0.1, 0.5, 0.9],
            "value": [0.9, 0.89, 0.7, 0.9],
        }
    )
    conv = torch.zeros(2, 6, 1, 2)
    conv[0, 2:5, 0, 1] = 1.0  # three channels in a row, two of them in one group
    weights = {"a": torch.tensor([[0.0, 1.0]]), "b": torch.zeros(2, 2), "c": conv}
    network = Network("net", "0", "a network", nn.Identity(), None, weights)
    findings = Findings(network, "none", rows[:0], [], rows, 0, "", "", 1000, 0.1, None, {}, {})
    assert harmless(findings) == 0.1
    assert harmless(replace(findings, constant=0.89)) is None  # the interval of 0.9 of 1000 reaches below it
    found = layers(findings)
    assert [layer.sparsity for layer in found] == [0.5, 1.0, 21 / 24, 26 / 30]
    assert [layer.densest for layer in found] == [None, None, 2, 2]
    assert [layer.silent for layer in found] == [0, 2, 1, 3]


def test_the_page_in_a_browser(finished, tmp_path):
    assert_readable(finished.folder / "report.html", tmp_path, figures=3)
