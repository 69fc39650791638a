"""What the README shows runs, and its numbers are those of the committed results."""

import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from empirical.claims import judge, violations
from empirical.cli.main import main
from empirical.own_network.tables import bound_tables
from empirical.report import claims_markdown
from empirical.results import read_table
from theory.laws.catalog import LAWS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
FINDINGS = (ROOT / "docs" / "findings.md").read_text()
TABLE = ROOT / "paper_figures" / "data" / "digits.parquet"


def test_the_library_example_runs_and_is_short():
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(example.strip().splitlines()) <= 12
    done = subprocess.run(
        [sys.executable, "-c", example], capture_output=True, text=True, timeout=120, check=True, cwd=ROOT
    )
    assert done.stderr == ""
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == ["2", "inf"]
    for _, mean, sign, ceiling in lines:
        assert sign == "<="
        assert 0 < float(mean) <= float(ceiling)


@pytest.mark.parametrize(
    "name",
    [
        *("digits", "digits-local", "E1", "E2", "E3", "E3-fine", "E3-long", "E4", "E7", "E8"),
        *("controls-mnist", "structured-mnist", "two-of-four-mnist"),
    ],
)
def test_the_findings_are_those_of_the_committed_tables(name):
    content = read_table(TABLE.with_name(f"{name}.parquet"))
    assert violations(content).empty
    verdicts, _, _ = claims_markdown(judge(content.to_pandas())).partition("\n\n- C")
    assert verdicts.strip() in FINDINGS


def test_the_committed_hunt_is_of_every_law_and_as_long_as_the_docs_say():
    rows = pd.read_csv(ROOT / "benchmarks" / "results" / "hunt.csv")
    assert sorted(rows["law"]) == sorted(law.name for law in LAWS)
    assert not rows["falsified"].any()
    told = re.search(r"each after ([\d,]+) cases at least", (ROOT / "docs" / "theory.md").read_text())
    assert told
    assert rows["tried"].min() == int(told.group(1).replace(",", ""))


def test_the_findings_show_how_a_number_is_traced():
    """The program that the findings give prints the gain they tell of, and the command behind it."""
    (example,) = re.findall(r"```python\n(.*?)```", FINDINGS, flags=re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", example], capture_output=True, text=True, timeout=120, check=True, cwd=ROOT
    )
    assert done.stderr == ""
    *seeds, runs = done.stdout.strip().splitlines()
    gain = float(seeds[-1].split()[-1])
    judged = judge(read_table(TABLE.with_name("E3.parquet")).to_pandas())
    (told,) = judged[(judged["claim"] == "C3") & (judged["measure"] == "R_inf, best attack")]["effect"]
    assert gain == pytest.approx(told)
    assert f"The {told:+.1%} of E3:".replace("%", " %") in FINDINGS
    assert "sparse-robustness run E3 " in runs
    assert all(f"'{name}'" in runs for name in ("commit", "seconds", "device", "torch"))


def test_the_bounds_shown_are_those_of_the_committed_table():
    lines = {" ".join(line.split()) for line in README.splitlines()}
    rows = pd.read_parquet(TABLE.with_name("bounds") / "digits-net.parquet")
    for header, cells in bound_tables(rows):
        for line in (header, *cells):
            assert " ".join(" ".join(line).split()) in lines


def test_the_authors_networks_are_told_as_measured():
    """The table of the findings on the authors' networks, cell by cell."""
    wanted = {
        "accuracy": ("accuracy", "clean", ""),
        "FGS accuracy, eps 0.1, clipped": ("fgs_accuracy", "fgs in the box", "linf"),
        "FGS accuracy, eps 0.1, not clipped": ("fgs_accuracy", "fgs", "linf"),
        "R_inf, smallest FGS step": ("mean_radius", "fgs", "linf"),
        "R_inf, best attack": ("mean_radius", "best", "linf"),
        "R_inf, certified": ("mean_radius", "CROWN", "linf"),
        "R_2, DeepFool": ("mean_radius", "deepfool", "l2"),
        "mean squared distance, DeepFool": ("mean_squared_distance", "deepfool", "l2"),
        "R_2, best attack": ("mean_radius", "best", "l2"),
        "R_2, certified": ("mean_radius", "CROWN", "l2"),
        "margin at the nearest l_2 boundary": ("margin", "nearest boundary", "l2"),
        "its gradient's l_2 norm": ("gradient_norm", "nearest boundary", "l2"),
        "gradient's l_1 norm at the nearest l_inf boundary": ("gradient_norm", "nearest boundary", "linf"),
    }
    for label, (quantity, method, norm) in wanted.items():
        values = []
        for name in ("dense", "pruned"):
            proved = method == "CROWN"
            path = (
                TABLE.with_name("bounds") / f"E0-{name}.parquet"
                if proved
                else TABLE.with_name(f"E0-{name}.parquet")
            )
            rows = pd.read_parquet(path)
            chosen = (rows["quantity"] == quantity) & (rows["method"] == method) & (rows["norm"] == norm)
            values.append(rows[chosen]["value"].item())
        (line,) = [line for line in FINDINGS.splitlines() if line.startswith(f"| {label} |")]
        *cells, change = [cell.strip() for cell in line.split("|")[2:5]]
        assert [f"{float(cell):.3g}" for cell in cells] == [f"{value:.3g}" for value in values]
        assert change in ("", f"{100 * (values[1] / values[0] - 1):+.0f} %")


@pytest.mark.parametrize("options", [[], ["--markdown"]])
def test_claims_of_a_table(options):
    result = CliRunner().invoke(main, ["claims", str(TABLE), *options])
    assert result.exit_code == 0
    for claim in ("C1", "C2", "C3", "C4", "C5", "C7", "C8"):
        assert claim in result.output


def test_claims_of_a_foreign_file(tmp_path):
    (tmp_path / "t.parquet").write_text("no table")
    result = CliRunner().invoke(main, ["claims", str(tmp_path / "t.parquet")])
    assert result.exit_code == 2
    assert "is damaged" in result.stderr
    assert result.stderr.count("\n") == 1


def test_claims_of_a_table_of_bounds():
    result = CliRunner().invoke(main, ["claims", str(TABLE.with_name("bounds") / "digits-net.parquet")])
    assert result.exit_code == 2
    assert "is a table of bounds, not of results; give the results.parquet of a run" in result.stderr


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#]+)\)", README))))
def test_links_lead_somewhere(target):
    assert (ROOT / target).exists()
