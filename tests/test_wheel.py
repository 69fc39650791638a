"""What is installed: the wheel holds the three packages and what they read, and nothing else."""

import os
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("theory", "empirical", "paper_figures")
# Built in place: hatchling writes to the folder that it is told and nowhere else.
BUILD = "import sys; from hatchling.build import build_{kind} as build; build(sys.argv[1])"


def build(kind: str, folder: Path) -> Path:
    command = [sys.executable, "-c", BUILD.format(kind=kind), str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=120)
    (file,) = folder.iterdir()
    return file


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    return build("wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def metadata(wheel) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return archive.read(name)


def content(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def source_files() -> set[str]:
    """What the packages' folders hold but caches and the committed results."""
    paths = (path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file())
    kept = (path for path in paths if "__pycache__" not in path.parts)
    results = ROOT / "paper_figures" / "data"
    return {path.relative_to(ROOT).as_posix() for path in kept if results not in path.parents}


def test_the_wheel_holds_the_packages_and_nothing_else(wheel):
    held = content(wheel)
    assert held == source_files()
    assert {name.partition("/")[0] for name in held} == set(PACKAGES)
    assert {
        "theory/py.typed",
        "theory/laws/catalog/names.txt",
        "empirical/templates/report.html.j2",
        "empirical/experiments/catalog/digits-mlp.toml",
        "paper_figures/style.mplstyle",
    } <= held
    assert wheel.stat().st_size < 2**20  # no results, no data


def test_the_metadata_are_those_of_the_project(wheel, metadata):
    header, _, description = metadata.partition(b"\n\n")
    assert description == (ROOT / "README.md").read_bytes()
    fields = message_from_bytes(header)
    assert fields["Name"] == "sparse-robustness"
    assert wheel.name == f"sparse_robustness-{fields['Version']}-py3-none-any.whl"
    assert fields["License-Expression"] == "MIT"
    assert fields["Requires-Python"] == "<3.14,>=3.11"
    required = [line for line in fields.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert {"torch>=2.6", "click>=8.1", "hypothesis>=6.100"} <= set(required)
    assert not [line for line in required if line.startswith(("pytest", "mkdocs", "hatchling"))]


def test_the_installed_program_runs_away_from_the_source_tree(wheel, tmp_path):
    """The wheel's own files, by its entry point, with nothing of the source tree on the path."""
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
        (points,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert archive.read(points).decode().split() == [
            "[console_scripts]", "sparse-robustness", "=", "empirical.cli.main:main",
        ]  # fmt: skip
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "import empirical.cli.main\n"
        f"assert empirical.cli.__file__.startswith({str(site)!r})\n"
        "empirical.cli.main.main(prog_name='sparse-robustness')"
    )

    def program(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        return subprocess.run(
            [sys.executable, "-c", code, *arguments], cwd=tmp_path, env=environment, capture_output=True,
            text=True, check=False, timeout=120,
        )  # fmt: skip

    assert "(commit unknown)" in program("--version").stdout
    assert "controls-mnist" in program("run", "--list").stdout
    without_data = program("figures")
    assert without_data.returncode == 2
    assert "give the results.parquet of a run" in without_data.stderr


def test_the_source_archive_holds_what_tests_and_documents_need(tmp_path):
    with tarfile.open(build("sdist", tmp_path)) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    for name in ("README.md", "LICENSE", "CHANGELOG.md", "pyproject.toml", "constraints.txt", "mkdocs.yml"):
        assert name in held
    for folder in ("tests", "docs", "benchmarks", "paper_figures/data", "website"):
        assert [name for name in held if name.startswith(f"{folder}/")], folder
    assert source_files() <= held
    assert not [name for name in held if name.startswith((".venv", "results/", "figures/", "site/", ".git/"))]
