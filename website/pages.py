"""Which files of the repository are the site, and the pages that are made of its other files.

Pages keep their places relative to each other, so a link that works on a repository's host works on the site,
and ``mkdocs build --strict`` checks them all. ``docs/`` alone is moved up, as the folder of an address only.
"""

from __future__ import annotations

import posixpath
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PACKAGES = ("theory", "empirical", "paper_figures")
COMMITTED = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "docs/**/*.md",
    "docs/figures/*.png",
    "benchmarks/results/*.csv",
    "paper_figures/data/**/*.parquet",
    "empirical/experiments/catalog/*.toml",
    "website/style.css",
)
TABLES, CATALOG = "paper_figures/data", "empirical/experiments/catalog"
# Where `make figures` leaves the figures of every committed table.
DRAWN = ROOT / "figures"
# Packages that are shown module by module: they export little, or functions named as their modules are.
NESTED = (
    "theory.laws",
    "empirical.attacks",
    "empirical.data",
    "empirical.experiments",
    "empirical.own_network",
)
_LINK = re.compile(r"\]\(([^)#:]+)\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The reference comes last in the navigation: a page for every module and package."""
    reference = [{package: [{name: _reference(name)} for name in _modules(package)]} for package in PACKAGES]
    config.nav = [*(config.nav or []), {"API reference": reference}]
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """The committed files, figures where they are drawn, and generated pages."""
    theirs = [file for file in files if file.src_dir != config.docs_dir]  # of the theme and of plugins
    paths = [path for pattern in COMMITTED for path in sorted(ROOT.glob(pattern))]
    ours = {path.relative_to(ROOT).as_posix(): path for path in paths}
    ours |= {f"{TABLES}/{path.relative_to(DRAWN).as_posix()}": path for path in _drawn()}
    pages = {
        f"{TABLES}/README.md": _gallery(),
        f"{CATALOG}/README.md": _experiments(),
        "website/commands.md": _commands(),
        **{_reference(name): _source(name) for package in PACKAGES for name in _modules(package)},
    }
    found = [File.generated(config, uri, abs_src_path=str(path)) for uri, path in ours.items()]
    found += [File.generated(config, uri, content=text) for uri, text in pages.items()]
    for file in found:
        file.dest_uri = file.dest_uri.removeprefix("docs/")
    return Files([*theirs, *found])


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """A link to a folder leads to the page that lists it, as on a repository's host."""
    here = posixpath.dirname(page.file.src_uri)

    def listed(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(here, link[1])) + "/README.md"
        return f"]({posixpath.join(link[1], 'README.md')})" if files.get_file_from_path(target) else link[0]

    return _LINK.sub(listed, markdown)


def _modules(package: str) -> list[str]:
    """What lies directly in a package, and in a few of its parts; but for what only starts commands."""
    folder = ROOT / package.replace(".", "/")
    parts = sorted(
        path.stem if path.is_file() else path.name
        for path in folder.iterdir()
        if path.suffix == ".py" or (path / "__init__.py").is_file()
    )
    public = (name for name in parts if not name.startswith("_") and name != "cli")
    names = [f"{package}.{name}" for name in public]
    return [inner for name in names for inner in (name, *(_modules(name) if name in NESTED else ()))]


def _reference(name: str) -> str:
    return f"reference/{name}.md"


def _source(name: str) -> str:
    """The page of a module, or of a package and what it exports; of a nested one the introduction alone."""
    options = "    options: { members: false }\n" if name in NESTED else ""
    return f"::: {name}\n{options}"


def _drawn() -> Iterator[Path]:
    return (path for path in sorted(DRAWN.glob("*/*")) if path.suffix in (".png", ".svg"))


def _gallery() -> str:
    """Every figure of every committed table, with its caption; those in docs/ if none are drawn."""
    parts = [
        "# Figures",
        "Every figure is drawn from a table of results and from nothing else: `python -m paper_figures` "
        "draws those of all committed tables, `sparse-robustness figures TABLE` those of your own. A click "
        "on a figure leads to its vector drawing.",
    ]
    for table in sorted((ROOT / TABLES).glob("*.parquet")):
        parts += [
            f"## {table.stem}",
            f"[{table.name}]({table.name}), in the [schema](../../docs/results.md).",
        ]
        captions = DRAWN / table.stem / "captions.md"
        if captions.is_file():
            paragraphs = captions.read_text(encoding="utf-8").strip().split("\n\n")
            parts += [_figure(table.stem, paragraph) for paragraph in paragraphs]
    if not DRAWN.is_dir():
        parts.append("Drawn figures come with `make docs`; these are the ones that the documents show.")
        shown = sorted((ROOT / "docs" / "figures").glob("*.png"))
        parts += [f"![{path.stem}](../../docs/figures/{path.name})" for path in shown]
    return "\n\n".join(parts) + "\n"


def _figure(table: str, caption: str) -> str:
    """A figure and its caption, which is ``**title** (`name`). text``."""
    title, name = re.findall(r"\*\*(.+?)\*\* \(`(\w+)`\)", caption)[0]
    return f"[![{title}]({table}/{name}.png)]({table}/{name}.svg)\n\n{caption}"


def _experiments() -> str:
    """The shipped experiment files in full."""
    parts = ["# Shipped experiments", "What each entry means: [Experiments](../../../docs/experiments.md)."]
    for path in sorted((ROOT / CATALOG).glob("*.toml")):
        content = path.read_text(encoding="utf-8").strip()
        parts += [f"## {path.stem}", f"[{path.name}]({path.name})", f"```toml\n{content}\n```"]
    return "\n\n".join(parts) + "\n"


def _commands() -> str:
    """The help of every command."""
    sys.path.insert(0, str(ROOT))
    from empirical.cli.main import main

    parts = ["# Commands"]
    for name, command in {"": main, **main.commands}.items():
        program = f"sparse-robustness {name}".strip()
        context = click.Context(command, info_name=program, max_content_width=100, terminal_width=100)
        parts += [f"## {program}", f"```text\n{command.get_help(context)}\n```"]
    return "\n\n".join(parts) + "\n"
