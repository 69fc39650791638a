"""A few examples of every law of the fuzzer, every fault it found, and its table in the documentation."""

import csv
import functools
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from empirical.claims import judge
from empirical.datasets import load
from empirical.report import claims_markdown
from empirical.results import SCHEMA, read_table
from empirical.runs.workers import Workers
from paper_figures.subjects import examples
from tests.fuzz import hostile, law, networks, tables
from tests.fuzz.__main__ import NAMES
from tests.fuzz.commands import COMMANDS, OWN, lines, prepare, try_line
from tests.fuzz.law import Broken, examine
from tests.fuzz.readers import READERS, Reader
from tests.results_table import network_table
from theory.types import InvalidInput

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="needs rlimits and alarms"),
    pytest.mark.usefixtures("unchecked"),
]
ROOT = Path(__file__).parents[2]
# Those whose reading takes a second each: all else about a table is in those that only read it.
SLOW = {"claims of a table": 2, "figures of a table": 0}
FEW = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty working folder, in which code would leave the canary."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def outcome(reader: Reader, content: bytes, folder: Path) -> str:
    path = folder / reader.file
    path.write_bytes(content)
    return examine(lambda: reader.read(path), stored=len(content), canary=Path(hostile.CANARY))


@pytest.mark.parametrize("name", [name for name in READERS if SLOW.get(name, 1)])
def test_mutants_are_read_or_refused(name, here):
    @settings(max_examples=SLOW.get(name, 25), suppress_health_check=FEW)
    @given(data=st.data())
    def holds(data: st.DataObject) -> None:
        outcome(READERS[name], data.draw(READERS[name].cases()), here)

    holds()


def made_to_harm() -> list:
    made: dict[int, tuple[str, dict[str, Callable[[], bytes]]]] = {}
    return [
        pytest.param(READERS[name], make, id=f"{name}: {label}")
        for name in READERS
        for label, make in READERS[name].hostile.items()
        if made.setdefault(id(make), (name, {}))
    ]


@functools.cache
def contents(make: Callable[[], bytes]) -> bytes:
    return make()


@pytest.mark.parametrize(("reader", "make"), made_to_harm())
def test_files_made_to_harm_are_refused(reader, make, here):
    assert outcome(reader, contents(make), here) == "refused"


@pytest.mark.parametrize("name", COMMANDS)
def test_arbitrary_arguments_end_in_one_line(name, here):
    prepare(here)

    @settings(max_examples=2 if name in ("claims", "doctor") else 12, suppress_health_check=FEW)
    @given(lines(name))
    def holds(line: list[str]) -> None:
        try_line(line)

    holds()


# Command lines that ended in a traceback or in several lines, or would have started processes without end.
BROKEN = (
    ["bounds", *OWN, "--arch-args", "[" * 20_000],
    ["measure", *OWN, "--out", "\udcff", "--attacks", "fgs"],
    ["doctor", "--out", "x" * 5000],
    ["falsify", "a\nb"],
    ["falsify", "relu.M", "--jobs", "1000000"],
    ["run", "mine.toml", "--workers", "1000000"],
    ["run", "mine.toml", "--seeds", "1000000000000"],
)


@pytest.mark.parametrize("line", BROKEN, ids=lambda line: f"{line[0]} {line[-2][:9]}")
def test_lines_that_broke_the_law(line, here):
    prepare(here)
    assert try_line(line) in ("refused", "read")


def test_processes_without_end_are_refused():
    with pytest.raises(InvalidInput, match="use at most 4,096 processes"):
        Workers(10**6)


def test_a_null_character_in_a_data_sets_name_is_refused():
    with pytest.raises(InvalidInput, match="null character"):
        load("a*\0")


def test_a_table_that_speaks_of_no_claim_has_none():
    """A run of one condition without checks."""
    rows = network_table(families=("vgg",), conditions=("random",), seeds=2)
    judged = judge(rows)
    assert judged.empty
    assert "claim" in claims_markdown(judged)


@pytest.mark.parametrize("value", [np.inf])
def test_a_check_without_its_number_of_cases_is_refused(value):
    rows = network_table(families=("linear",), seeds=2)
    rows.loc[rows["quantity"] == "cases", "value"] = value
    with pytest.raises(InvalidInput, match="no number of cases"):
        judge(rows)
    assert examples(rows) == {}
    with pytest.raises(InvalidInput, match="give a whole results table"):
        judge(rows[rows["quantity"] != "violations"])


GOOD = {
    "npz data": hostile.npz,
    "npz test examples": hostile.npz,
    "results table": lambda: tables.stored(tables.good()),
    "claims of a table": lambda: tables.stored(tables.good(families=("linear",))),
    "table of figures": lambda: tables.stored(tables.good(), arrow=False, codec="gzip"),
    "stored training": networks.training,
    "stored networks": lambda: networks.stored(compact=False),
    "compact networks": lambda: networks.stored(compact=True),
    "own network, torch file": lambda: networks.saved(networks.stack().state_dict(), new=False),
    "own network, program": hostile.PROGRAM,
    "experiment file": hostile.experiment,
}


@pytest.mark.parametrize("name", GOOD)
def test_what_is_mutated_is_read(name, here):
    """Else nothing but refusals would be tried."""
    assert outcome(READERS[name], GOOD[name](), here) == "read"


def test_the_law_is_broken_by_what_breaks_it(here, monkeypatch):
    """Another exception, two lines, a warning, memory, code: each is seen."""
    canary = here / hostile.CANARY

    def tried(read: Callable[[], int]) -> None:
        examine(read, stored=0, canary=canary)

    def two_lines() -> int:
        raise InvalidInput("a\nb")

    def hungry() -> int:
        return 0 * len(bytearray(law.ROOM + 32 * law.MIB).replace(b"\0", b"\1"))

    with pytest.raises(Broken, match="KeyError"):
        tried(lambda: {}[0])
    with pytest.raises(Broken, match="one plain line"):
        tried(two_lines)
    with pytest.raises(Broken, match="code ran"):
        tried(lambda: canary.write_bytes(b""))
    if sys.platform == "linux":
        with pytest.raises(Broken, match="MiB were taken"):
            tried(hungry)
        with pytest.raises(Broken, match="MemoryError"):
            tried(lambda: len(bytearray(2 * law.ADDRESSES)))
    monkeypatch.setattr(law, "SECONDS", -1)
    with pytest.raises(Broken, match="s of the processor"):
        tried(lambda: 0)


def test_a_training_that_lost_a_member_goes_on(here):
    """Its part has no rows; an empty stack of generators was a fault that the fuzzer found."""
    left = networks.states()
    left[0].keep(networks.torch.zeros(1, dtype=networks.torch.bool))
    path = here / "t.safetensors"
    networks.save_checkpoint(path, left, training="t", epoch=1)
    begun = networks.states()
    assert networks.load_checkpoint(path, begun, training="t", epochs=2) == 1
    assert [state.members for state in begun] == [[], [1]]
    with pytest.raises(InvalidInput, match="it came to epoch '1' of 0"):
        networks.load_checkpoint(path, networks.states(), training="t", epochs=0)


def test_rows_up_to_the_limit_are_read(here):
    """Few bytes may hold many rows, as collapsed networks' do."""
    (here / "runs.parquet").write_bytes(tables.runs(10**5))
    assert read_table(here / "runs.parquet").num_rows == 10**5


def test_many_columns_of_the_same_pages_are_refused(here):
    """Thousands of empty pages that thousands of columns share: millions of headers in few bytes."""
    body, tree = tables.footer(tables.runs(1))
    for column in tables.columns(tree):
        for name in (9, 11):
            tables._set(column, name, 4)
    (here / "runs.parquet").write_bytes(tables.with_footer(bytes(body), tree))
    with pytest.raises(InvalidInput, match="its columns overlap"):
        read_table(here / "runs.parquet")


def test_pages_are_counted(here, monkeypatch):
    (here / "runs.parquet").write_bytes(tables.runs(1))
    monkeypatch.setattr("paper_figures.parquet._PAGES", 3)
    monkeypatch.setattr("paper_figures.parquet._BYTES_PER_PAGE", 10**6)
    with pytest.raises(InvalidInput, match="it has more than 3 pages"):
        read_table(here / "runs.parquet")


@pytest.mark.parametrize(("count", "length"), [(20_000, 5), (2_000, 900)])
def test_many_different_texts_are_refused(here, count, length):
    """Every batch of rows would hold them all."""
    rows = {name: [0] * count for name in SCHEMA.names}
    rows = {name: pa.array(values, pa.int64()) for name, values in rows.items()}
    texts = pa.array([str(i).rjust(length, "-") for i in range(count)])
    rows |= {field.name: texts for field in SCHEMA if pa.types.is_dictionary(field.type)}
    pq.write_table(pa.table(rows).replace_schema_metadata(SCHEMA.metadata), here / "texts.parquet")
    with pytest.raises(InvalidInput, match="different texts; at most 16,384, of 1,048,576 characters"):
        read_table(here / "texts.parquet")


def test_the_table_in_the_documentation_is_the_data():
    data = list(csv.DictReader((ROOT / "benchmarks/results/fuzz.csv").read_text().splitlines()))
    text = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
    counts = ("examples", "read", "refused", "failures")
    for row in data:
        cells = [row["reader"], *(f"{int(row[name]):,}" for name in counts)]
        assert f"| {' | '.join(cells)} |" in text
    assert [row["reader"] for row in data] == list(NAMES)
    assert all(row["failures"] == "0" for row in data)
    total = sum(int(row["examples"]) for row in data)
    assert f"{total:,} examples" in text
