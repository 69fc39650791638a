"""Every reader of outside files: mutants of what it reads, files made to harm it, and the reading itself."""

from __future__ import annotations

import functools
import json
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.compute as pc
from hypothesis import strategies as st

from empirical.claims import judge, violations
from empirical.datasets import Dataset, Examples, load, load_test
from empirical.experiments import read_experiment
from empirical.report import claims_markdown, claims_table, summary
from empirical.results import read_settings, read_table
from paper_figures.files import read_network_rows
from paper_figures.gallery import caption, drawn, render
from tests.fuzz import hostile, networks, tables
from tests.fuzz.mutation import METHODS, Tree, mutants, reheaded, repacked, trees


@dataclass(frozen=True)
class Reader:
    """``cases`` are files' contents, written to ``file``; ``read`` returns the bytes of what it read.

    ``hostile`` are makers of files that must be refused, by name.
    """

    file: str
    cases: Callable[[], st.SearchStrategy[bytes]]
    read: Callable[[Path], int]
    hostile: Mapping[str, Callable[[], bytes]] = field(default_factory=dict)


def _read_npz(path: Path) -> int:
    found = load(str(path))
    assert isinstance(found, Dataset)
    return found.x_train.nbytes + found.x_test.nbytes


def _read_examples(path: Path) -> int:
    found = load_test(str(path))
    assert isinstance(found, Examples)
    return found.x.nbytes


def _npz_cases() -> st.SearchStrategy[bytes]:
    seeds = [hostile.npz(method) for method in METHODS]
    broken = st.sampled_from(seeds).flatmap(lambda seed: mutants(seed, seeds))
    return broken | repacked(hostile.npz(), _member)


def _member(_: str, content: bytes) -> st.SearchStrategy[bytes]:
    """The array with another header, another content, or both."""
    head = 10 + int.from_bytes(content[8:10], "little")
    sides = st.sampled_from((0, 1, 3, 4, 6, -1, 2**31, 10**12, 2**63, True, 1.5, None))
    shapes = st.lists(sides, max_size=4).map(tuple)
    bodies = st.just(content[head:]) | mutants(content[head:])
    headed = st.tuples(
        shapes | st.just((6, 4)) | st.just((6,)), st.sampled_from(_DESCRS), bodies, st.booleans()
    )
    return mutants(content) | headed.map(lambda h: hostile.npy(h[0], h[1], body=h[2], fortran=h[3]))


_DESCRS = (
    "<f8", ">f8", "<f4", "<f2", "|u1", "<i8", ">i4", "|b1", "<c16", "|O", "<U1", "|S8", "<M8[ns]", "|V8",
    "<f16",
    "|V0", "<U0", "x", "", None, 3, [("a", "<f8")], [("a", "|O")], [("a", "<f4"), ("b", "<f4")], "<i8, <i8",
)  # fmt: skip


def _read_results(path: Path) -> int:
    return read_table(path).nbytes


def _judge(path: Path) -> int:
    """What ``claims`` and the report do with a table."""
    content = read_table(path)
    whole = content.filter(pc.field("example").is_null()).to_pandas()
    judged = judge(whole)
    failed = violations(content)
    assert claims_markdown(judged)
    assert claims_table(judged).row_count == len(judged)
    assert summary(whole, judged, failed)
    return content.nbytes


def _read_rows(path: Path) -> int:
    """What ``figures`` does before it draws."""
    return int(read_network_rows(path).memory_usage(deep=True).sum())


def _read_figures(path: Path) -> int:
    """All that ``figures`` does."""
    table = read_network_rows(path)
    for entry, figure in drawn(table):
        assert caption(entry, table)
        assert render(figure, "svg")
    return int(table.memory_usage(deep=True).sum()) + 2**24


@functools.cache
def _table() -> bytes:
    return tables.stored(tables.good())


def _table_cases() -> st.SearchStrategy[bytes]:
    return (
        tables.remade(tables.good())
        | tables.refooted(_table())
        | tables.repaged(_table())
        | mutants(_table())
    )


def _readable_cases() -> st.SearchStrategy[bytes]:
    return tables.remade(tables.good(), kinds=tables.READABLE)


def _tensor_cases(content: bytes) -> st.SearchStrategy[bytes]:
    return mutants(content) | reheaded(content) | networks.retensored(content)


def _read_safe_network(path: Path) -> int:
    return networks.read_network(path)


def _safe_network() -> bytes:
    from safetensors.torch import save

    return save(networks.stack().state_dict())


def _torch_cases() -> st.SearchStrategy[bytes]:
    new, old = (networks.saved(networks.stack().state_dict(), new=new) for new in (True, False))
    odd = st.tuples(networks.states_of(), st.booleans()).map(lambda case: _saved(*case))
    return mutants(new) | mutants(old) | repacked(new, lambda _, member: mutants(member)) | odd


def _saved(content: object, new: bool) -> bytes:  # noqa: FBT001 - mapped over
    try:
        return networks.saved(content, new=new)
    except (RuntimeError, AttributeError, TypeError):  # the format of old lacks it
        return networks.saved(None)


def _program_cases() -> st.SearchStrategy[bytes]:
    return mutants(hostile.PROGRAM()) | repacked(hostile.PROGRAM(), _entry)


def _entry(name: str, content: bytes) -> st.SearchStrategy[bytes]:
    try:
        tree = json.loads(content) if name.endswith(".json") else None
    except ValueError:  # another entry under this name
        tree = None
    if tree is None:
        return mutants(content)
    return trees(tree).map(lambda tree: json.dumps(tree).encode())


def _read_experiment(path: Path) -> int:
    for quick in (False, True):
        found = read_experiment(str(path), quick=quick)
        assert json.dumps(found.describe())
    return 0


def _experiment_cases() -> st.SearchStrategy[bytes]:
    tree = tomllib.loads(hostile.experiment().decode())
    return mutants(hostile.experiment()) | trees(tree).map(toml)


def toml(tree: Tree) -> bytes:
    """The tree as TOML, whatever its values; what TOML does not know becomes a text."""
    table = tree if isinstance(tree, dict) else {"title": tree}
    lines = [f"{_key(key)} = {_toml(value)}" for key, value in table.items()]
    return "\n".join(lines).encode(errors="replace")


def _key(key: object) -> str:
    return json.dumps(str(key)).replace("\x7f", "")


def _toml(value: Tree) -> str:
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{_key(key)} = {_toml(inner)}' for key, inner in value.items())} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, int | float) else _key(value)


def _read_settings(path: Path) -> int:
    assert isinstance(read_settings(path), dict)
    return 0


def _settings_cases() -> st.SearchStrategy[bytes]:
    tree: Tree = {"a.seeds": 2, "a.sparsities": [0.0, 0.5], "version": "1", "device": "cpu"}
    return mutants(json.dumps(tree).encode()) | trees(tree).map(lambda tree: json.dumps(tree).encode())


READERS = {
    "npz data": Reader("data.npz", _npz_cases, _read_npz, hostile.NPZ),
    "npz test examples": Reader("data.npz", _npz_cases, _read_examples),
    "results table": Reader("results.parquet", _table_cases, _read_results, hostile.TABLES),
    "claims of a table": Reader("results.parquet", _readable_cases, _judge),
    "table of figures": Reader("results.parquet", _table_cases, _read_rows, hostile.TABLES),
    "figures of a table": Reader("results.parquet", _readable_cases, _read_figures),
    "stored training": Reader(
        "t.safetensors",
        lambda: _tensor_cases(networks.training()),
        networks.read_training,
        hostile.SAFETENSORS,
    ),
    "stored networks": Reader(
        "n.safetensors",
        lambda: _tensor_cases(networks.stored(compact=False)),
        networks.read_networks,
        hostile.SAFETENSORS,
    ),
    "compact networks": Reader(
        "compact.safetensors", lambda: _tensor_cases(networks.stored(compact=True)), networks.read_networks
    ),
    "own network, safetensors": Reader(
        "net.safetensors", lambda: _tensor_cases(_safe_network()), _read_safe_network, hostile.SAFETENSORS
    ),
    "own network, torch file": Reader("net.pt", _torch_cases, networks.read_network, hostile.TORCH),
    "own network, program": Reader("net.pt2", _program_cases, networks.read_network, hostile.PROGRAMS),
    "experiment file": Reader("mine.toml", _experiment_cases, _read_experiment, hostile.EXPERIMENTS),
    "settings of a run": Reader("settings.json", _settings_cases, _read_settings, hostile.SETTINGS),
}
