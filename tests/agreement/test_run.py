"""The main job end to end: what it leaves, how it resumes, and what it says when a theorem fails."""

import json
import shutil

import numpy as np
import pandas as pd
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner

from empirical.claims import judge, violations
from empirical.cli.main import main
from empirical.experiments import read_experiment
from empirical.results import read_table
from empirical.runs.condense import RUN_KEY
from empirical.runs.provenance import choose_device
from empirical.runs.run import Part, run_experiments, run_part, total_steps
from empirical.runs.workers import Workers
from theory import relu
from theory.types import InvalidInput

CPU = torch.device("cpu")
SMALL = """
title = "Small"
data = "digits"
conditions = ["magnitude"]
sparsities = [0.0, 0.9]
seeds = 1
test_examples = 60
network = { kind = "mlp", hidden = [12] }
first = { epochs = 5 }
retrain = { epochs = 2 }
"""
VALUES = ["family", "pruning", "sparsity", "seed", "example", "norm", "quantity", "method", "eps", "value"]


def values(out) -> pd.DataFrame:
    return read_table(out / "results.parquet").to_pandas()[VALUES]


def test_doubtful_data_are_told_once(tmp_path):
    """By ``run`` and by ``verify``, however many experiments read them, and before any work."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 2, (40, 4), dtype=np.uint8), np.arange(40) % 8
    np.savez(tmp_path / "ones.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    np.savez(tmp_path / "full.npz", x_train=255 * x, y_train=y, x_test=255 * x, y_test=y)
    told = f"Note: data {tmp_path / 'ones.npz'}: uint8 features are divided by 255 and range to 0.0039 then"
    for command in (["verify"], ["run", "digits-linear-binary", "digits-linear"]):
        for data, said in (("ones.npz", 1), ("full.npz", 0)):
            arguments = [*command, "--data", str(tmp_path / data), "--workers", "1", "--out", str(tmp_path)]
            result = CliRunner().invoke(main, arguments)
            assert "which holds full.npz and no settings.json" in result.stderr  # and so nothing is trained
            assert result.stderr.count(told) == result.stderr.count("Note: ") == said


def test_no_theorem_is_violated(small_run):
    _, outcome = small_run
    assert outcome.violations.empty
    assert set(outcome.claims["claim"]) == {"C1", "C2", "C3", "C4", "C5", "C7", "C8", "C9"}
    theorems = outcome.claims[outcome.claims["claim"].isin(["C5", "C7", "C8"])]
    assert (theorems["violations"] == 0).all()
    assert (theorems["verdict"] == "supported").all()


def test_every_network_is_measured(small_run, small_experiments):
    out, _ = small_run
    table = values(out)
    accuracy = table[(table["quantity"] == "accuracy") & (table["method"] == "clean")]
    networks = accuracy.groupby(["family", "pruning", "sparsity", "seed"], observed=True).size()
    assert len(networks) == sum(len(e.conditions) * len(e.sparsities) * e.seeds for e in small_experiments)
    assert (networks == 1).all()
    radii = table[(table["quantity"] == "radius") & (table["family"] == "mlp") & (table["method"] == "fgs")]
    assert len(radii) == len(small_experiments[-1].conditions) * 3 * 2 * 60


def test_aggregates_follow_from_the_examples(small_run):
    """Mean radius, capped count and squared distance are recomputed from the per-example rows."""
    out, _ = small_run
    table = values(out)
    keys = ["family", "pruning", "sparsity", "seed", "norm", "method"]
    each = table[(table["quantity"] == "radius") & (table["method"].isin(["fgs", "deepfool"]))].copy()
    cap = each["norm"].map({"l2": 8.0, "linf": 1.0}).astype(float)
    each["capped"] = np.minimum(each["value"], cap)
    each["squared"], each["beyond"] = each["capped"] ** 2, each["value"] > cap
    expected = each.groupby(keys, observed=True).agg(
        mean_radius=("capped", "mean"), mean_squared_distance=("squared", "mean"), capped=("beyond", "sum")
    )
    for quantity in expected.columns:
        found = table[(table["quantity"] == quantity) & table["method"].isin(["fgs", "deepfool"])]
        found = found.set_index(keys)["value"].reindex(expected.index)
        np.testing.assert_allclose(found, expected[quantity], rtol=1e-12)


def test_dense_condition_is_never_pruned_and_magnitude_is_exact(small_run):
    out, _ = small_run
    table = read_table(out / "results.parquet").to_pandas()
    rows = table[
        (table["quantity"] == "accuracy") & (table["family"] == "mlp") & (table["method"] == "clean")
    ]
    assert (rows[rows["pruning"] == "dense"]["achieved_sparsity"] == 0).all()
    pruned = rows[rows["pruning"] == "magnitude"]
    # Each of the three layers rounds its count to the nearest weight.
    weights = 64 * 20 + 20 * 12 + 12 * 10
    assert (pruned["achieved_sparsity"] - pruned["sparsity"]).abs().max() <= 1.5 / weights


def test_a_second_run_reuses_everything(small_run, small_experiments):
    out, _ = small_run
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    steps = []
    run_experiments(small_experiments, out, device=CPU, advance=lambda *told: steps.append(told))
    assert not steps
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")} == kept


def test_a_run_killed_again_and_again_resumes_to_the_same_rows(small_run, small_experiments, tmp_path):
    """In each of the experiments, in training and at the masks; what is done once stays as it is."""
    kept: dict[str, int] = {}
    for stop in (1, 14, 29, 50, 70, total_steps(small_experiments, CPU)):
        calls = []

        def killed(stage, _, stop=stop, calls=calls):
            calls.append(stage)
            if len(calls) == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run_experiments(small_experiments, tmp_path / "run", device=CPU, advance=killed)
        now = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run" / "units").iterdir()}
        assert kept.items() <= now.items()
        kept = now
    run_experiments(small_experiments, tmp_path / "run", device=CPU)
    pd.testing.assert_frame_equal(values(tmp_path / "run"), values(small_run[0]))


def test_progress_counts_every_unit_and_workers_change_no_row(small_run, small_experiments, tmp_path):
    calls = []
    out = tmp_path / "run"
    run_experiments(
        small_experiments, out, device=CPU, workers=Workers(2), advance=lambda *told: calls.append(told)
    )
    assert len(calls) == total_steps(small_experiments, CPU)
    assert all("accuracy" in detail for stage, detail in calls if "masks" not in stage)
    pd.testing.assert_frame_equal(values(out), values(small_run[0]))


def test_other_settings_do_not_touch_a_run(small_run, small_experiments):
    out, _ = small_run
    from dataclasses import replace

    before = (out / "results.parquet").read_bytes()
    other = [replace(e, eps=0.2) for e in small_experiments]
    with pytest.raises(InvalidInput, match=r"a run with digits-linear-binary\.eps = 0\.1, not 0\.2"):
        run_experiments(other, out, device=CPU)
    assert (out / "results.parquet").read_bytes() == before


def test_damaged_files_are_named(small_experiments, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run_experiments(small_experiments, out, device=CPU, advance=_stop_at("linear dense"))
    checkpoint = sorted((out / "checkpoints").iterdir())[0]
    good = checkpoint.read_bytes()
    checkpoint.write_bytes(good[: len(good) // 2])
    with pytest.raises(InvalidInput, match=f"checkpoint .*{checkpoint.name} is damaged"):
        run_experiments(small_experiments, out, device=CPU)
    checkpoint.write_bytes(good)
    unit = sorted((out / "units").iterdir())[0]
    unit.write_bytes(b"PAR1")
    with pytest.raises(InvalidInput, match=f"results file .*{unit.name} is damaged"):
        run_experiments(small_experiments, out, device=CPU)


def _stop_at(stage):
    def advance(current, detail):
        if current == stage:
            raise KeyboardInterrupt

    return advance


def test_a_violated_theorem_ends_with_1_and_names_its_rows(monkeypatch, tmp_path):
    """A certificate a hundred times too large is caught by the attacks."""
    honest = relu.certified_radius
    monkeypatch.setattr(relu, "certified_radius", lambda *args, **named: 100 * honest(*args, **named))
    file, out = tmp_path / "small.toml", tmp_path / "run"
    file.write_text(SMALL)
    result = CliRunner().invoke(main, ["run", str(file), "--out", str(out), "--workers", "1"])
    assert result.exit_code == 1, result.output
    assert "violate a theorem (certificate <= attack" in result.output
    named = read_table(out / "results.parquet").to_pandas()
    named = named[(named["kind"] == "check") & (named["quantity"] == "excess")]
    assert set(named["family"]) == {"mlp"}
    assert (named["value"] > 0).all()
    assert "certificate &lt;= attack" in (out / "report.html").read_text()
    figures = sorted(path.suffix for path in (out / "figures").iterdir())
    assert figures.count(".svg") == 2 * figures.count(".png") >= 8  # also for a phone
    small = tmp_path / "small.parquet"
    assert CliRunner().invoke(main, ["condense", str(out), str(small)]).exit_code == 0
    kept = read_table(small)
    pd.testing.assert_frame_equal(violations(kept), violations(read_table(out / "results.parquet")))
    for rows in (kept, kept.filter(pc.field("quantity") != "excess")):
        pq.write_table(rows, small)
        assert CliRunner().invoke(main, ["claims", str(small)]).exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0"], "seeds is 0"),
        (["--sparsities", "0,1.5"], "sparsities is 1.5"),
        (["--sparsities", "0,a"], "sparsities is '0,a'"),
        (["--sparsities", "0,0.5,0.4"], "rise from 0"),
        (["--sparsities", "0.1,0.5"], "rise from 0"),
        (["--data", "mnits"], "data is 'mnits'"),
        (["--data", "none.npz"], "no such file"),
        (["--pair", "1", "1"], "pair is [1, 1]"),
        (["--pair", "1", "12"], "class 12"),
        (["--eps", "-0.1"], "eps is -0.1"),
        (["--eps", "nan"], "eps is nan"),
        (["--workers", "0"], "workers is 0"),
    ],
)
def test_bad_usage_is_one_line_and_2(arguments, message, tmp_path):
    out = tmp_path / "run"
    result = CliRunner().invoke(main, ["verify", "--out", str(out), *arguments])
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.output
    assert not out.exists()


@pytest.mark.usefixtures("undrawn")
def test_a_finished_run_is_reported_where_nothing_can_be_written(read_only, tmp_path):
    file, out = tmp_path / "small.toml", tmp_path / "run"
    file.write_text(SMALL)
    command = ["run", str(file), "--out", str(out), "--workers", "1"]
    first = CliRunner().invoke(main, command)
    assert first.exit_code == 0, first.output
    files = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    read_only(out)
    again = CliRunner().invoke(main, command)
    assert again.exit_code == 0, again.output
    assert again.stderr.endswith(
        f"Note: files stay as they were: {out}/runs.jsonl cannot be written (Permission denied); mend that "
        "and run again\n"
    )
    assert again.stdout.rpartition("Took")[0] == first.stdout.rpartition("Took")[0]
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == files


def test_a_run_that_is_not_finished_says_at_once_that_it_cannot_be_written(read_only, tmp_path):
    file, out = tmp_path / "small.toml", tmp_path / "run"
    file.write_text(SMALL)
    run_part([read_experiment(str(file))], out, part=Part(), device=CPU)
    read_only(out)
    result = CliRunner().invoke(main, ["run", str(file), "--out", str(out), "--workers", "1"])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"Error: out is {out}, which cannot be written")


def test_unwritable_folder(read_only, tmp_path):
    (tmp_path / "locked").mkdir()
    read_only(tmp_path / "locked")
    result = CliRunner().invoke(main, ["verify", "--out", str(tmp_path / "locked" / "run")])
    assert result.exit_code == 2
    assert "cannot be written" in result.stderr


def test_a_condensed_table_judges_alike_and_says_how_it_was_made(small_run, tmp_path):
    out, outcome = small_run
    target = tmp_path / "small.parquet"
    result = CliRunner().invoke(main, ["condense", str(out), str(target)])
    assert result.exit_code == 0, result.output
    content = read_table(target)
    assert content["example"].null_count == content.num_rows
    pd.testing.assert_frame_equal(judge(content.to_pandas()), outcome.claims)
    told = json.loads(pq.read_schema(target).metadata[RUN_KEY])
    assert told["settings"] == outcome.settings
    again = CliRunner().invoke(main, ["condense", str(out), str(target)])
    assert again.exit_code == 2
    assert "which exists" in again.stderr
    assert "no finished run" in CliRunner().invoke(main, ["condense", str(tmp_path), str(target)]).stderr
    table = CliRunner().invoke(main, ["condense", str(out), str(tmp_path / "small.csv")])
    assert (table.exit_code, "ends in .parquet" in table.stderr) == (2, True)
    assert not (tmp_path / "small.csv").exists()


def test_the_examples_of_a_seed_can_be_kept_and_give_its_means(small_run, tmp_path):
    out, outcome = small_run
    target = tmp_path / "examples.parquet"
    options = ["--examples-of", "1", "--sparsities", "0,0.9"]
    result = CliRunner().invoke(main, ["condense", str(out), str(target), *options])
    assert result.exit_code == 0, result.output
    rows = read_table(target).to_pandas()
    assert set(rows["seed"]) == {1}
    assert set(rows["sparsity"]) == {0.0, 0.9}
    assert json.loads(pq.read_schema(target).metadata[RUN_KEY])["settings"] == outcome.settings
    radii = rows[(rows["quantity"] == "radius") & (rows["family"] == "mlp")].copy()
    names = ["pruning", "sparsity", "norm", "method"]
    radii["value"] = radii["value"].clip(upper=radii["norm"].map({"l2": 8.0, "linf": 1.0}).astype(float))
    means = radii.groupby(names, observed=True)["value"].mean()
    whole = outcome.networks
    whole = whole[(whole["seed"] == 1) & (whole["quantity"] == "mean_radius") & (whole["family"] == "mlp")]
    expected = whole.set_index(names)["value"].reindex(means.index).dropna()
    assert len(expected)
    pd.testing.assert_series_equal(means[expected.index], expected, check_names=False)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--examples-of", "7"], "seed is 7, of which the run has no examples; it has those of 0, 1"),
        (
            ["--examples-of", "1", "--sparsities", "0,0.7"],
            "sparsity is 0.7, of which the run has no examples",
        ),
        (["--examples-of", "1", "--sparsities", "half"], "sparsities is 'half'; give numbers"),
        (["--sparsities", "0.9"], "name one (--examples-of)"),
    ],
)
def test_examples_that_a_run_has_not_are_named(options, told, small_run, tmp_path):
    out, _ = small_run
    result = CliRunner().invoke(main, ["condense", str(out), str(tmp_path / "x.parquet"), *options])
    assert result.exit_code == 2
    assert told in result.stderr
    assert not (tmp_path / "x.parquet").exists()


def test_what_there_is_of_an_unfinished_run_can_be_taken(small_run, tmp_path):
    """As it comes home from another machine, from whose device nothing is asked."""
    out, outcome = small_run
    folder, target = tmp_path / "run", tmp_path / "some.parquet"
    shutil.copytree(out, folder, ignore=shutil.ignore_patterns("results.parquet", "checkpoints"))
    gone = sorted((folder / "units").iterdir())[0]
    lost = read_table(gone)
    gone.unlink()
    refused = CliRunner().invoke(main, ["condense", str(folder), str(target)])
    assert "run the experiment to its end, or take what there is of it (--partial)" in refused.stderr
    result = CliRunner().invoke(main, ["condense", str(folder), str(target), "--partial"])
    assert result.exit_code == 0, result.output
    whole = len(outcome.networks) + len(outcome.violations)
    assert read_table(target).num_rows == whole - lost["example"].null_count
    assert json.loads(pq.read_schema(target).metadata[RUN_KEY])["unfinished"]
    nothing = CliRunner().invoke(main, ["condense", str(tmp_path), str(tmp_path / "x.parquet"), "--partial"])
    assert nothing.exit_code == 2


def test_the_folder_of_a_run_stands_for_its_table(small_run, tmp_path):
    out, _ = small_run
    judged = CliRunner().invoke(main, ["claims", str(out)])
    assert judged.exit_code == 0, judged.output
    assert "C3" in judged.stdout
    for command in ("claims", "figures"):
        empty = CliRunner().invoke(main, [command, str(tmp_path)])
        assert empty.exit_code == 2
        assert str(tmp_path / "results.parquet") in empty.stderr


def test_bad_devices_are_named():
    with pytest.raises(InvalidInput, match="device is 'gpu'"):
        choose_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(InvalidInput, match="no CUDA device"):
            choose_device("cuda")
    assert choose_device("cpu") == CPU


def test_help_reads_without_loading_torch():
    import subprocess
    import sys

    code = "import sys; from empirical.cli.main import main; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    result = CliRunner().invoke(main, ["verify", "--help"])
    assert result.exit_code == 0
    for option in ("--data", "--out", "--seeds", "--device", "--sparsities"):
        assert option in result.output
