"""The site's own code: formulas, docstrings and pages as a reader gets them, and recipes that run."""

import re
import runpy
from pathlib import Path
from xml.etree import ElementTree as XML

import pytest
from click.testing import CliRunner

from empirical.cli.main import main

pytest.importorskip("mkdocs", reason="the extra docs is not installed")
pytest.importorskip("latex2mathml", reason="the extra docs is not installed")

from website import docstrings, formulas, pages  # noqa: E402 - needs the extra

ROOT = Path(__file__).parents[1]
RECIPES = (ROOT / "docs" / "recipes.md").read_text()
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMESPACE = "{http://www.w3.org/1998/Math/MathML}"


def text(parts: list[str]) -> list[str]:
    return ["".join(XML.fromstring(part).itertext()) for part in parts]


def all_formulas(path: Path) -> list[str]:
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", path.read_text(), flags=re.DOTALL)
    found = re.findall(r"\$\$(.+?)\$\$|\$(?!\s)([^$]+?)(?<!\s)\$", prose, flags=re.DOTALL)
    return [block or inline for block, inline in found]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_formula_of_the_documents_becomes_mathml_and_none_loses_a_symbol(path):
    for latex in all_formulas(path):
        (whole,) = text(formulas.mathml(latex, block=True))
        assert whole
        assert "".join(text(formulas.mathml(latex, block=False))) == whole


def test_the_theory_has_formulas_to_convert():
    assert len(all_formulas(ROOT / "docs" / "theory.md")) > 400


def test_letters_and_symbols_are_those_of_the_formula():
    (real,) = formulas.mathml(r"x\in\mathbb R^n", block=False)
    assert text([real]) == ["x∈ℝn"]
    (norm,) = formulas.mathml(r"q(\infty)", block=False)
    assert "∞" in [symbol.text for symbol in XML.fromstring(norm).iter(f"{NAMESPACE}mi")]
    assert "arg" in text(formulas.mathml(r"\arg\max_k g_k(x)", block=False))[0]


def test_a_long_formula_breaks_before_relations_and_never_inside_brackets():
    parts = formulas.mathml(r"R_p=\sum_{k} P(k,j)(w_k\mu_{kj}+b_k+c_k+d_k+e_k)\le a_1+a_2", block=False)
    assert [part[0] for part in text(parts)][:3] == ["R", "=", "+"]
    assert any(part.startswith("≤") for part in text(parts))
    assert not any(part.startswith("j)") for part in text(parts))
    for part in parts[1:]:
        first = XML.fromstring(part)[0][0]
        assert first.tag != f"{NAMESPACE}mo" or first.get("form") == "infix"
    assert len(formulas.mathml(r"a=b", block=False)) == 1


@pytest.mark.parametrize("latex", [r"\unheardof{x}", "{"])
def test_what_cannot_be_drawn_is_an_error_that_names_the_formula(latex):
    with pytest.raises(ValueError, match=re.escape(repr(latex))):
        formulas.mathml(latex, block=False)


def test_punctuation_stays_with_its_formula():
    content = r'so <span class="arithmatex">\(a&lt;b\)</span>, and'
    shown = formulas._FORMULA.sub(
        lambda found: formulas._kept_together(found["before"], ["<math/>"], found["after"]), content
    )
    assert shown == 'so <span class="formula"><math/>,</span> and'


def test_displayed_formulas_stand_apart_and_code_is_left_alone():
    apart = formulas._DISPLAYED.sub(r"\n\g<0>\n", "so\n$$a\n= b$$\nFor")
    assert apart == "so\n\n$$a\n= b$$\n\nFor"


def test_docstrings_are_read_as_they_are_written():
    written = "w_i * x_i <= ``a_b`` and *measured*.\n\n    f(x) = a * b\n\nRaises: InvalidInput if x < 0."
    assert docstrings.as_markdown(written) == (
        "w\\_i \\* x\\_i \\<= ``a_b`` and <em>measured</em>.\n\n    f(x) = a * b\n\n\n"
        "**Raises:** InvalidInput if x \\< 0."
    )


def test_tables_of_docstrings_become_tables():
    written = ["Before.", "", "====  =====", "name  what", "====  =====", "a_b   first", "      goes on",
               "c     second", "====  ====="]  # fmt: skip
    lines = docstrings.as_markdown("\n".join(written)).split("\n")
    assert lines[lines.index("| name | what |") :] == [
        "| name | what |", "| --- | --- |", "| a\\_b | first goes on |", "| c | second |", "",
    ]  # fmt: skip


def test_every_public_module_has_its_page():
    listed = {name for package in pages.PACKAGES for name in pages._modules(package)}
    assert {
        "theory.linear",
        "theory.laws.strategies",
        "empirical.attacks.deepfool",
        "empirical.datasets",
    } <= listed
    assert not [name for name in listed if "cli" in name.split(".")[-1].split("_") or "__" in name]
    for name in listed:
        path = ROOT / name.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def test_the_commands_and_experiments_are_on_their_pages():
    commands = pages._commands()
    for name in main.commands:
        assert f"## sparse-robustness {name}\n" in commands
    assert "--conjecture" in commands
    assert "## E3\n" in pages._experiments()


def test_nothing_is_fetched_from_elsewhere():
    """The site's own files name no other host; the theme's fonts are off."""
    for path in [ROOT / "mkdocs.yml", *(ROOT / "website").iterdir()]:
        if path.is_file():
            assert not re.findall(r"https?://(?!www\.w3\.org/1998)", path.read_text()), path
    assert re.search(r"^  font: false", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE)


@pytest.mark.usefixtures("undrawn")
def test_the_recipes_run_as_they_stand(tmp_path, monkeypatch):
    """A pruned checkpoint through both commands, at fewer examples; a conjecture to its counterexample."""
    monkeypatch.chdir(tmp_path)
    train, conjecture, activations = re.findall(r"```python\n(.*?)```", RECIPES, flags=re.DOTALL)
    Path("train.py").write_text(train)
    Path("mine.py").write_text(conjecture)
    runpy.run_path("train.py")
    Path("activations.py").write_text(activations)
    runpy.run_path("activations.py")
    lines = re.findall(r"^sparse-robustness (.+)$", RECIPES, flags=re.MULTILINE)
    fewer = [line.replace("--examples 50", "--examples 5") for line in lines]
    tried = [line.split() for line in fewer if "pruned.pt" in line or "mine.py" in line]
    assert [arguments[0] for arguments in tried] == ["check", "falsify"]
    outputs = []
    for arguments in tried:
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == (1 if arguments[0] == "falsify" else 0), result.output
        outputs.append(result.output)
    assert re.search(r"^Sparsity +50\.0 %", outputs[0], flags=re.MULTILINE)
    assert re.search(r"^Mean radius, l_inf, beside dense\.pt +[+-]", outputs[0], flags=re.MULTILINE)
    assert "FALSIFIED  pruning_never_hurts" in outputs[1]
