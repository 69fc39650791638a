"""Networks of an earlier run: what is taken over, what is trained nevertheless, what is refused."""

import shutil
from dataclasses import replace

import pandas as pd
import pytest
import torch
from click.testing import CliRunner

from empirical.cli.main import main
from empirical.experiments import conditions
from empirical.results import read_table
from empirical.runs.run import run_experiments
from theory.types import InvalidInput

CPU = torch.device("cpu")
KEYS = ["family", "pruning", "sparsity", "seed", "example", "norm", "quantity", "method", "eps"]


def values(out, **chosen) -> pd.DataFrame:
    table = read_table(out / "results.parquet").to_pandas()
    for name, value in chosen.items():
        table = table[table[name] == value]
    plain = table[[*KEYS, "value"]].astype({"family": str, "pruning": str, "quantity": str, "method": str})
    return plain.astype({"norm": str}).sort_values(KEYS).reset_index(drop=True)


@pytest.fixture
def mlp(small_experiments):
    return small_experiments[-1]


@pytest.fixture
def trainings(monkeypatch):
    """The recipe of every training from now on."""
    seen = []

    def counted(networks, x, y, recipe, **further):
        seen.append(recipe)
        return train(networks, x, y, recipe, **further)

    train = conditions.train
    monkeypatch.setattr(conditions, "train", counted)
    return seen


def test_other_attacks_train_nothing_and_see_the_same_networks(small_run, mlp, trainings, tmp_path):
    earlier, _ = small_run
    other = replace(mlp, name="mine", attacks=("fgs", "ddn"), test_examples=20)
    out = tmp_path / "run"
    outcome = run_experiments([other], out, device=CPU, networks=earlier)
    assert not trainings
    assert outcome.violations.empty
    # Every network at every one of its examples, to the last bit.
    before = values(earlier, family="mlp", quantity="radius", method="fgs")
    before = before[before["example"] < 20].reset_index(drop=True)
    assert len(before) == len(mlp.conditions) * 3 * 2 * 20
    pd.testing.assert_frame_equal(values(out, quantity="radius", method="fgs"), before)
    assert not values(out, quantity="radius", method="ddn").empty
    assert outcome.settings["networks"] == read_table(earlier / "results.parquet")["settings"][0].as_py()

    written = {path: path.stat().st_mtime_ns for path in (out / "checkpoints").iterdir()}
    run_experiments([other], out, device=CPU, networks=earlier)
    assert {path: path.stat().st_mtime_ns for path in (out / "checkpoints").iterdir()} == written


def test_only_new_seeds_and_sparsities_are_trained(small_run, mlp, trainings, tmp_path):
    more = replace(
        mlp, conditions=("dense", "magnitude"), seeds=3, sparsities=(0.0, 0.5, 0.95), attacks=("fgs",)
    )
    run_experiments([more], tmp_path / "whole", device=CPU)
    assert len(trainings) == 3 * (1 + 2 * 2)  # of each seed the dense one, and two levels of two chains
    trainings.clear()
    run_experiments([more], tmp_path / "further", device=CPU, networks=small_run[0])
    assert len(trainings) == 2 * 2 + 5  # of two seeds the last level of both chains, of the third all
    pd.testing.assert_frame_equal(values(tmp_path / "further"), values(tmp_path / "whole"))


def test_a_killed_run_that_took_networks_over_goes_on(small_run, mlp, trainings, tmp_path):
    other = replace(mlp, attacks=("fgs",), test_examples=20)
    calls = []

    def killed(stage, detail):
        calls.append(stage)
        if len(calls) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_experiments([other], tmp_path / "run", device=CPU, networks=small_run[0], advance=killed)
    outcome = run_experiments([other], tmp_path / "run", device=CPU, networks=small_run[0])
    assert not trainings
    assert outcome.violations.empty
    with pytest.raises(InvalidInput, match="a run with networks = "):
        run_experiments([other], tmp_path / "run", device=CPU)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: replace(e, retrain=replace(e.retrain, epochs=4)), "retrain.epochs is 3 there, 4 here"),
        (lambda e: replace(e, first=replace(e.first, momentum=0.5)), "first.momentum is 0.9 there, 0.5 here"),
        (lambda e: replace(e, train_examples=40), "train_examples is None there, 40 here"),
        (lambda e: replace(e, network=replace(e.network, hidden=(20, 13))), r"network.hidden is \[20, 12\]"),
        (lambda e: replace(e, data="digits"), "digits-mlp saw other data"),
    ],
)
def test_networks_that_were_trained_otherwise_are_refused(small_run, mlp, tmp_path, change, message):
    out = tmp_path / "run"
    with pytest.raises(InvalidInput, match=message):
        run_experiments([change(mlp)], out, device=CPU, networks=small_run[0])
    assert not out.exists()


def test_two_classes_must_be_the_same_ones(small_run, small_experiments, tmp_path):
    binary = replace(small_experiments[0], pair=(3, 8))
    with pytest.raises(InvalidInput, match=r"pair is \[1, 7\] there, \[3, 8\] here"):
        run_experiments([binary], tmp_path / "run", device=CPU, networks=small_run[0])


def test_files_that_are_missing_or_damaged_are_named(small_run, mlp, tmp_path):
    earlier = tmp_path / "earlier"
    shutil.copytree(small_run[0], earlier)
    few = replace(mlp, attacks=("fgs",), test_examples=5)
    path = earlier / "checkpoints" / "digits-mlp-magnitude-1-01.safetensors"
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match="cannot be taken over: .*magnitude-1-01.safetensors, .*digest"):
        run_experiments([few], tmp_path / "run", device=CPU, networks=earlier)
    shutil.rmtree(earlier / "checkpoints")
    with pytest.raises(InvalidInput, match="none of these conditions and seeds"):
        run_experiments([few], tmp_path / "other", device=CPU, networks=earlier)


def test_a_folder_that_is_no_run_is_refused_in_one_line(tmp_path):
    result = CliRunner().invoke(
        main, ["run", "digits-mlp", "--networks", str(tmp_path), "--out", str(tmp_path / "o")]
    )
    assert result.exit_code == 2
    assert f"networks is {tmp_path}, which holds no settings.json; name a run's folder" in result.stderr
    assert not (tmp_path / "o").exists()
