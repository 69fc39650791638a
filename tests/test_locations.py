"""A run is the same wherever its files are, and a store that fails costs no row."""

import contextlib
import re
import sys
import uuid
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
from click.testing import CliRunner
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry

from empirical.cli.main import main
from empirical.experiments import Experiment, conditions
from empirical.results import read_table
from empirical.runs.locations import (
    Remote,
    Unreachable,
    append_line,
    locate,
    names,
    present,
    write_atomically,
)
from empirical.runs.run import Part, run_experiments, run_part, total_steps
from tests.faults.sweep import CPU, rows, run, tinier
from theory.types import InvalidInput

FILE = """
title = "Tiny"
data = "{data}"
conditions = ["magnitude"]
sparsities = [0.0, 0.5, 0.9]
seeds = 2
attacks = ["fgs"]
network = {{ kind = "linear" }}
first = {{ epochs = 2, batch_size = 32 }}
retrain = {{ epochs = 2, batch_size = 32 }}
"""


class Killed(BaseException):
    """The command ends here: nothing catches this."""


class Sweep(NamedTuple):
    """A sweep that was run in a folder, its rows, and the paths of the files in it."""

    experiments: list[Experiment]
    alone: pd.DataFrame
    files: set[str]
    folder: Path


# What one seed's chain says of itself while it is at work.
TOLD = [
    *("dense, epoch 1 of 2", "dense, epoch 2 of 2", "sparsity 0, attacks"),
    *("sparsity 0.5, epoch 1 of 2", "sparsity 0.5, epoch 2 of 2", "sparsity 0.5, attacks"),
    *("sparsity 0.9, epoch 1 of 2", "sparsity 0.9, epoch 2 of 2", "sparsity 0.9, attacks"),
]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    experiments = tinier(folder)
    run(experiments, folder / "alone")
    out = folder / "alone"
    return Sweep(experiments, rows(out), files_below(out), out)


@pytest.fixture
def store():
    """A bucket in this process."""
    return Remote(f"memory://{uuid.uuid4().hex}/run")


@pytest.fixture
def folders():
    """A store in this process that is taken for one with real folders: files get their names last."""
    return Remote(f"dir://run::memory://{uuid.uuid4().hex}")


def files_below(out) -> set[str]:
    """Paths of all files, hidden ones too."""
    if isinstance(out, Path):
        return {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    fs, path = out.opened()
    return {found.strip("/").removeprefix(path.strip("/") + "/") for found in fs.find(path)}


@contextlib.contextmanager
def at_put(monkeypatch, act, *, number: int | None = None, after: bool = False):
    """Call ``act`` before or after one put, or all; yields the paths of those that were done."""
    done: list[str] = []
    real, begun = MemoryFileSystem.pipe_file, [0]

    def pipe_file(self, path, value, mode="overwrite", **options):
        begun[0] += 1
        now = number in (None, begun[0])
        if now and not after:
            act()
        real(self, path, value, mode=mode, **options)
        done.append(self._strip_protocol(path))
        if now and after:
            act()

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "pipe_file", pipe_file)
        yield done


def raising(error):
    def act():
        raise error

    return act


@pytest.mark.parametrize("kind", ["store", "folders"])
def test_a_run_elsewhere_has_the_files_and_rows_of_a_local_one(kind, sweep, request):
    experiments, alone, files = sweep[:3]
    out = request.getfixturevalue(kind)
    heard, told = [], []
    outcome = run_experiments(
        experiments,
        out,
        device=CPU,
        advance=lambda *unit: heard.append(unit),
        tell=lambda *step: told.append(step),
    )
    assert str(outcome.path) == f"{out}/results.parquet"
    assert len(heard) == total_steps(experiments, CPU) == 6
    assert [detail for stage, detail in told if stage == "linear magnitude"] == 2 * TOLD
    pd.testing.assert_frame_equal(rows(out), alone, check_exact=True)
    assert files_below(out) == files
    assert names(out) == {"settings.json", "units", "checkpoints", "results.parquet"} | (
        {"figures"} if kind == "folders" else set()
    )


@pytest.mark.parametrize(
    ("kind", "number", "after"),
    [("store", n, after) for n, after in [(2, True), (6, False), (8, True), (21, False)]]
    + [("folders", 2, True), ("folders", 8, False)],
)
def test_a_run_that_dies_at_any_put_goes_on_to_the_same_rows(
    kind, number, after, sweep, request, monkeypatch
):
    """With trainings stored after every epoch; no result is put a second time."""
    experiments, alone, files = sweep[:3]
    out = request.getfixturevalue(kind)
    monkeypatch.setattr(conditions, "SPACING", 0.0)
    with at_put(monkeypatch, raising(Killed), number=number, after=after) as first, pytest.raises(Killed):
        run(experiments, out)
    assert len(first) == number - 1 + after
    with at_put(monkeypatch, lambda: None) as second:
        run(experiments, out)
    pd.testing.assert_frame_equal(rows(out), alone, check_exact=True)
    left, unfinished = files_below(out), names(out / "unfinished")
    assert len(unfinished) <= 1  # of the networks that were stored just before
    left = {name for name in left if not name.startswith("unfinished/")}
    assert {name for name in left if not name.endswith(".part")} == files
    if kind == "store":
        put = [path.removeprefix(out.opened()[1] + "/") for path in first + second]
        results = [name for name in put if not name.startswith(("settings", "unfinished/"))]
        assert sorted(results) == sorted(files - {"settings.json"})
        snapshots = [name for name in put if name.startswith("unfinished/")]
        assert len(snapshots) == 6 * 2  # trainings, epochs: none is done again after it was stored


@pytest.mark.parametrize(("kind", "number", "after"), [("store", 11, False), ("folders", 6, True)])
def test_a_put_that_fails_is_one_line_and_leaves_nothing(kind, number, after, sweep, request, monkeypatch):
    experiments, alone = sweep[:2]
    out = request.getfixturevalue(kind)
    with (
        at_put(monkeypatch, raising(RuntimeError("quota exceeded\nby far")), number=number, after=after),
        pytest.raises(
            (InvalidInput, OSError), match=rf"{re.escape(str(out))}/.* cannot be written \(quota exceeded\)"
        ),
    ):
        run(experiments, out)
    assert not [name for name in files_below(out) if name.endswith(".part")]
    run(experiments, out)
    pd.testing.assert_frame_equal(rows(out), alone, check_exact=True)


def test_where_there_are_folders_a_file_gets_its_name_when_it_is_whole(folders, monkeypatch):
    note, seen = folders / "note", []
    write_atomically(note, lambda temporary: temporary.write_text("old"))
    real = DirFileSystem.mv

    def mv(self, *arguments, **options):
        seen.append((note.read_text(), len(names(folders))))
        return real(self, *arguments, **options)

    monkeypatch.setattr(DirFileSystem, "mv", mv)
    write_atomically(note, lambda temporary: temporary.write_text("new"))
    assert seen == [("old", 2)]
    assert (note.read_text(), names(folders)) == ("new", {"note"})


def test_a_second_command_that_overtakes_the_first_changes_no_row(sweep, store, monkeypatch):
    experiments, alone, files = sweep[:3]
    with at_put(monkeypatch, lambda: run(experiments, store), number=7) as done:
        run(experiments, store)
    assert len(done) > len(files)
    pd.testing.assert_frame_equal(rows(store), alone, check_exact=True)
    assert files_below(store) == files


@pytest.mark.parametrize(
    "pattern", ["units/tiny-magnitude-1-01", "checkpoints/tiny-base-1", "settings.json", "results.parquet"]
)
def test_what_is_damaged_is_named_and_refused(pattern, sweep, store):
    experiments, alone, files = sweep[:3]
    lacks = () if pattern == "results.parquet" else ("results.parquet", "tiny-magnitude-1-02-")
    (name,) = (name for name in files if name.startswith(pattern))
    for other in files:
        if not any(word in other for word in lacks):
            (store / other).put((sweep.folder / other).read_bytes())
    content = bytearray((store / name).read_bytes())
    content[len(content) // 2] ^= 1
    content = content[: len(content) // 2] if name.startswith("units") else content
    (store / name).put(bytes(content))
    message = rf"{re.escape(f'{store}/{name}')} is damaged \((?!.*/tmp).*\); delete it and run again"
    with pytest.raises(InvalidInput, match=message):
        run(experiments, store)
    assert (store / name).read_bytes() == content
    (store / name).unlink()
    run(experiments, store)
    pd.testing.assert_frame_equal(rows(store), alone, check_exact=True)


def test_a_location_of_other_settings_or_other_files_is_refused(sweep, store):
    experiments = sweep.experiments
    run_part(experiments, store, part=Part(0, 2), device=CPU)
    with pytest.raises(InvalidInput, match=r"a run with tiny\.seeds = 2, not 1; choose a new folder"):
        run([replace(e, seeds=1) for e in experiments], store)
    other = store / "other"
    append_line(other / "mine.txt", "keep")
    with pytest.raises(InvalidInput, match=r"holds mine\.txt and no settings\.json"):
        run(experiments, other)
    assert files_below(other) == {"mine.txt"}


def test_settings_may_be_deleted_before_the_first_unit_is_there(sweep, store, monkeypatch):
    experiments, alone = sweep[:2]
    with at_put(monkeypatch, raising(Killed), number=3), pytest.raises(Killed):
        run(experiments, store)
    assert names(store) == {"settings.json", "checkpoints"}
    (store / "settings.json").unlink()
    run(experiments, store)
    pd.testing.assert_frame_equal(rows(store), alone, check_exact=True)


@pytest.mark.parametrize("error", [PermissionError(13, "Access Denied"), RuntimeError("no answer")])
def test_a_store_that_does_not_answer_is_neither_empty_nor_damaged(error, sweep, store, monkeypatch):
    experiments = sweep.experiments
    (store / "results.parquet").put(b"whole")
    refused = pytest.raises(Unreachable, match=r"cannot be reached \(.*(Denied|no answer)")
    for method in ("info", "ls", "cat_file", "rm_file"):
        monkeypatch.setattr(MemoryFileSystem, method, lambda *_, **__: raising(error)())
    final = store / "results.parquet"
    for look in (final.is_file, final.unlink, lambda: read_table(final), lambda: present([final])):
        with refused:
            look()
    with pytest.raises(InvalidInput, match=rf"out is {store}, but .* cannot be reached"):
        run(experiments, store)
    told = CliRunner().invoke(main, ["claims", str(final)])
    assert told.exit_code == 2
    assert re.fullmatch(rf"Error: {final} cannot be reached \(.*\); mend that and run again\n", told.stderr)


def test_parts_meet_in_one_location_and_the_command_line_makes_the_table(sweep, store, tmp_path):
    experiments, alone = sweep[:2]
    file = tmp_path / "tiny.toml"
    file.write_text(FILE.format(data=experiments[0].data))
    command = ["run", str(file), "--out", str(store), "--workers", "1"]
    told = [CliRunner().invoke(main, [*command, "--part", part]) for part in ("1/2", "0/2")]
    assert "lacks 3 units" in told[0].output
    assert "the same command without --part makes the table" in told[1].output
    with_table = CliRunner().invoke(main, command)
    assert with_table.exit_code in (0, 1), with_table.output
    assert f"Report  {store}/report.html" in with_table.output
    pd.testing.assert_frame_equal(
        rows(store).drop(columns="settings"), alone.drop(columns="settings"), check_exact=True
    )
    assert names(store) >= {"report.html", "runs.jsonl", "figures"}
    assert (store / "report.html").read_text().count("data:image/svg+xml") == len(
        [name for name in names(store / "figures") if name.endswith(".svg")]
    )
    claims = CliRunner().invoke(main, ["claims", f"{store}/results.parquet"])
    assert "Linear" in claims.output, claims.output
    assert claims.exit_code == with_table.exit_code
    condensed = CliRunner().invoke(main, ["condense", str(store), str(tmp_path / "small.parquet")])
    assert condensed.exit_code == 0, condensed.output
    assert read_table(tmp_path / "small.parquet").num_rows == alone["example"].isna().sum()


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (
            "nope://x/y",
            r"out is 'nope://x/y', which is no location \(Protocol not known: nope\); give a fold",
        ),
        ("dir://x", r"out is 'dir://x', which is no location \(.*\); give a folder, or a URL such as s3://"),
        ("s3://b/x", r"out is 's3://b/x', whose driver is missing on .*'sparse-robustness\[s3\]'"),
        ("gs://b/x", r"out is 'gs://b/x', whose driver is missing on .*gcsfs.*; install the pack"),
        ("memory://x", r"out is memory://x, which no other process sees; use one worker \(--workers 1\)"),
    ],
)
def test_a_location_that_cannot_be_used_is_one_line_and_2(out, message, monkeypatch):
    for protocol, driver in (("s3", "s3fs"), ("gs", "gcsfs")):
        monkeypatch.setitem(sys.modules, driver, None)
        monkeypatch.delitem(_registry, protocol, raising=False)  # what was loaded before
    result = CliRunner().invoke(main, ["run", "digits-linear", "--out", out, "--workers", "2"])
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert re.search(message, line), line


def test_a_table_that_is_not_there_is_one_line_and_2(store):
    result = CliRunner().invoke(main, ["claims", f"{store}/results.parquet"])
    assert result.exit_code == 2
    assert result.stderr == (
        f"Error: table is {store}/results.parquet, which does not exist; give the results.parquet of a run\n"
    )


@pytest.mark.parametrize("kind", ["tmp_path", "store", "folders"])
def test_lines_are_added(kind, request):
    log = request.getfixturevalue(kind) / "log"
    for line in ("one", "two ‰"):
        append_line(log, line)
    assert log.read_text(encoding="utf-8") == "one\ntwo ‰\n"


@pytest.mark.parametrize("kind", ["tmp_path", "store", "folders"])
def test_a_line_does_not_hang_on_a_torn_one(kind, request):
    """As a full disk leaves it."""
    log = request.getfixturevalue(kind) / "log"
    write_atomically(log, lambda temporary: temporary.write_text('{"a": 1}\n{"b'))
    for line in ("one", "two"):
        append_line(log, line)
    assert log.read_text(encoding="utf-8") == '{"a": 1}\n{"b\none\ntwo\n'


def test_files_of_this_machine_are_paths(tmp_path):
    assert locate("a/b", argument="out") == Path("a/b")
    assert locate(f"file://{tmp_path}/x", argument="out") == tmp_path / "x"
    assert locate("memory://a/b", argument="out") == Remote("memory://a/b")
    assert str(Remote("memory://") / "a" / "b") == "memory://a/b"
    assert (Remote("s3://b/x") / "u" / "v").parent == Remote("s3://b/x") / "u"
