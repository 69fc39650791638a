"""Imports run one way, and every public function says what it returns."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("theory", "empirical", "paper_figures")
# The files of empirical that may see the formulas; all others see theory.types only. Those in own_network
# apply them to a network that somebody else trained and measure nothing but its accuracy;
# cli/falsify.py and its book are a command line for the laws and measure nothing.
MEETING_PLACES = {
    ROOT / "empirical" / path
    for path in (
        "comparison.py",
        "local_comparison.py",
        "mask_comparison.py",
        "own_network/bound_rows.py",
        "own_network/mask_bounds.py",
        "own_network/preparation.py",
        "own_network/problem.py",
        "cli/falsify.py",
        "cli/hunt_book.py",
    )
}
# Hypothesis's given takes one strategy per argument by name, and so does our decorator.
LIKE_GIVEN = {"conjecture"}
# What a docstring of theory must call its value, in its first line.
NATURES = ("identity", "bound", "estimate")


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Every module a file imports, in functions too; ``from a import b`` counts as a and a.b."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def of(names: set[str], package: str) -> set[str]:
    return {name for name in names if name == package or name.startswith(f"{package}.")}


@pytest.mark.parametrize("path", modules("theory"), ids=str)
def test_theory_knows_no_experiment(path):
    seen = imports(path)
    assert not of(seen, "empirical") | of(seen, "paper_figures") | of(seen, "tests")


@pytest.mark.parametrize("path", modules("empirical"), ids=str)
def test_measurement_knows_no_formula(path):
    formulas = {name for name in of(imports(path), "theory") if not name.startswith("theory.types")}
    assert path in MEETING_PLACES or not formulas, f"{path} imports {formulas}"


@pytest.mark.parametrize("path", modules("paper_figures"), ids=str)
def test_figures_are_made_from_the_table_alone(path):
    seen = imports(path)
    assert not of(seen, "theory") | of(seen, "empirical") | of(seen, "torch")


def public_functions(path: Path) -> list[tuple[str, ast.FunctionDef | ast.ClassDef]]:
    tree = ast.parse(path.read_text())
    found = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            found.append((node.name, node))
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_everything_public_has_a_docstring(package):
    bare = [
        f"{path.relative_to(ROOT)}:{name}"
        for path in modules(package)
        for name, node in public_functions(path)
        if not ast.get_docstring(node)
    ]
    assert not bare
    assert not [
        path
        for path in modules(package)
        if path.stat().st_size and not ast.get_docstring(ast.parse(path.read_text()))
    ]


def test_theory_says_identity_bound_or_estimate_and_what_is_raised():
    """In the first paragraph of every public function of theory that returns numbers."""
    vague, silent = [], []
    for path in modules("theory"):
        if path.name == "types.py" or path.name.startswith("symbolic") or "laws" in path.parts:
            continue
        for name, node in public_functions(path):
            if not isinstance(node, ast.FunctionDef) or name.startswith("check_"):
                continue
            text = ast.get_docstring(node) or ""
            if not any(nature in text.split("\n\n")[0] for nature in NATURES):
                vague.append(f"{path.name}:{name}")
            raises = any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
            if raises and "Raises" not in text:
                silent.append(f"{path.name}:{name}")
    assert not vague
    assert not silent


@pytest.mark.parametrize("package", PACKAGES)
def test_files_stay_readable(package):
    long = {
        str(p.relative_to(ROOT)): n for p in modules(package) if (n := len(p.read_text().splitlines())) > 450
    }
    assert not long
    for path in modules(package):
        for name, node in public_functions(path):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 110, f"{path}:{name} is too long"


def test_no_options_in_the_dark():
    """No public function takes **kwargs."""
    hidden = [
        f"{path}:{name}"
        for package in PACKAGES
        for path in modules(package)
        for name, node in public_functions(path)
        if isinstance(node, ast.FunctionDef) and node.args.kwarg and name not in LIKE_GIVEN
    ]
    assert not hidden
