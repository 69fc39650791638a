"""Shell completion: what can stand where on a command line, found without importing what is slow.

Every list here repeats one of the package; ``tests/test_command_line.py`` holds them together.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from pathlib import Path

import click
from click.shell_completion import CompletionItem, get_completion_class

PROGRAM = "sparse-robustness"
_VARIABLE = "_SPARSE_ROBUSTNESS_COMPLETE"
_SHELLS = ("bash", "fish", "zsh")
_ROOT = Path(__file__).parents[2]
_CATALOG = _ROOT / "empirical" / "experiments" / "catalog"
_LAWS = _ROOT / "theory" / "laws" / "catalog" / "names.txt"
_CONJECTURES = _ROOT / "theory" / "laws" / "conjectures"
DATA = ("digits", "mnist", "fashion-mnist", "cifar10")
ATTACKS = ("fgs", "rfgs", "deepfool", "pgd", "ddn", "fmn", "fmn-init", "cw")


def experiment_names() -> list[str]:
    """The shipped experiments."""
    return [path.stem for path in sorted(_CATALOG.glob("*.toml"))]


def law_names() -> list[str]:
    """The laws of the theory, as ``theory/laws/catalog/names.txt`` has them."""
    return _LAWS.read_text(encoding="utf-8").split()


def conjecture_names() -> list[str]:
    """The shipped conjectures."""
    return sorted(path.stem for path in _CONJECTURES.glob("*.py") if not path.stem.startswith("_"))


def complete_experiment(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Shipped experiments, else files."""
    return _names_or_files(experiment_names(), incomplete)


def complete_law(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Laws of the theory, and a pattern for each of its parts."""
    names = law_names()
    parts = dict.fromkeys(f"{name.partition('.')[0]}.*" for name in names)
    return [_item(name) for name in [*parts, *names] if name.startswith(incomplete)]


def complete_conjecture(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Shipped conjectures, else files."""
    return _names_or_files(conjecture_names(), incomplete)


def complete_data(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Named data sets, else files."""
    return _names_or_files(DATA, incomplete)


def complete_attacks(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """One more attack of a list joined by commas, none twice."""
    *given, last = incomplete.split(",")
    free = [name for name in ATTACKS if name not in given and name.startswith(last)]
    return [_item(",".join([*given, name])) for name in free]


def _names_or_files(names: Iterable[str], incomplete: str) -> list[CompletionItem]:
    fitting = [_item(name) for name in names if name.startswith(incomplete)]
    return fitting or [CompletionItem(incomplete, type="file")]


def _item(name: str) -> CompletionItem:
    """A name as the shell must see it: bash inserts what it gets, the others quote it themselves."""
    asked_by_bash = os.environ.get(_VARIABLE, "").startswith("bash")
    return CompletionItem(_escaped(name) if asked_by_bash else name)


def _escaped(name: str) -> str:
    """A backslash before what bash would not take literally, so that names keep their common beginning.

    Each is written twice, because click's script reads it by ``read`` without ``-r``.
    """
    return "".join(c if shlex.quote(c) == c else rf"\\{c}" for c in name)


@click.command()
@click.argument("shell", type=click.Choice(_SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that makes SHELL complete commands, options, experiments, laws and data sets.

    \b
    bash: in ~/.bashrc      eval "$(sparse-robustness completion bash)"
    zsh:  in ~/.zshrc       eval "$(sparse-robustness completion zsh)"
    fish: once              sparse-robustness completion fish >
                              ~/.config/fish/completions/sparse-robustness.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None  # Choice admits only shells that click knows
    click.echo(kind(context.find_root().command, {}, PROGRAM, _VARIABLE).source())
