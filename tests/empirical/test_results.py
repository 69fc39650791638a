"""The results table keeps every row, and a damaged or foreign file is never taken for one."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from empirical.ensembles import initialise
from empirical.experiments.checkpoints import load_networks, save_networks
from empirical.results import (
    SCHEMA,
    Members,
    Rows,
    open_run,
    read_final,
    read_settings,
    read_table,
    settings_id,
    table,
    write_atomically,
    write_table,
)
from empirical.runs.condense import RUN_KEY, condense
from empirical.runs.locations import Unreachable, append_line
from empirical.runs.progress import Progress
from empirical.runs.sweep import run_unit, unit_path
from empirical.training.train import Recipe, train
from theory.types import InvalidInput

MEMBERS = Members("digits", "mlp", ["dense", "magnitude"], [0.0, 0.5], [0.0, 0.49], [3, 4])
PROVENANCE = {"settings": "s", "version": "0", "commit": "c", "device": "cpu", "dtype": "float64"}


def both_levels() -> list[Rows]:
    return [
        Rows(MEMBERS, np.array([0.5, 0.25]), quantity="accuracy", method="clean", kind="measured"),
        Rows(
            MEMBERS,
            np.array([[1.0, np.inf, 0.0], [2.0, np.nan, 0.5]]),
            quantity="radius",
            method="fgs",
            kind="measured",
            norm="linf",
            eps=0.1,
        ),
    ]


def test_rows_round_trip(tmp_path):
    content = table(both_levels(), provenance=PROVENANCE)
    assert content.schema.equals(SCHEMA, check_metadata=True)
    write_table(tmp_path / "t.parquet", content)
    back = read_table(tmp_path / "t.parquet")
    assert back.schema.equals(SCHEMA)
    frame = back.to_pandas()
    assert len(frame) == 8
    per_network, per_example = frame[frame["example"].isna()], frame[frame["example"].notna()]
    assert per_network["value"].tolist() == [0.5, 0.25]
    assert per_network["pruning"].tolist() == ["dense", "magnitude"]
    assert per_example["example"].tolist() == [0, 1, 2, 0, 1, 2]
    assert per_example["seed"].tolist() == [3, 3, 3, 4, 4, 4]
    assert per_example["achieved_sparsity"].tolist() == [0.0] * 3 + [0.49] * 3
    np.testing.assert_array_equal(per_example["value"], [1.0, np.inf, 0.0, 2.0, np.nan, 0.5])
    assert set(frame["settings"]) == {"s"}


def test_rows_check_their_shape_and_kind():
    with pytest.raises(InvalidInput, match="one row for each of 2 members"):
        Rows(MEMBERS, np.zeros(3), quantity="accuracy", method="clean", kind="measured")
    with pytest.raises(InvalidInput, match="kind is 'guess'"):
        Rows(MEMBERS, np.zeros(2), quantity="accuracy", method="clean", kind="guess")


def test_only_kept_entries_become_rows():
    values = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    keep = np.array([[False, True, False], [True, False, True]])
    part = Rows(MEMBERS, values, quantity="excess", method="law", kind="check", keep=keep)
    frame = table([part], provenance=PROVENANCE).to_pandas()
    assert frame["value"].tolist() == [2.0, 4.0, 6.0]
    assert frame["example"].tolist() == [1, 0, 2]
    assert frame["pruning"].tolist() == ["dense", "magnitude", "magnitude"]
    assert frame["seed"].tolist() == [3, 4, 4]


def test_damaged_and_foreign_tables_are_named(tmp_path):
    path = tmp_path / "t.parquet"
    path.write_bytes(b"not parquet")
    with pytest.raises(InvalidInput, match="is damaged"):
        read_table(path)
    write_table(path, table(both_levels(), provenance=PROVENANCE))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InvalidInput, match="is damaged"):
        read_table(path)
    pq.write_table(pa.table({"value": [1.0]}), path)
    with pytest.raises(InvalidInput, match="has schema none"):
        read_table(path)
    pq.write_table(table(both_levels(), provenance=PROVENANCE).drop_columns(["norm"]), path)
    with pytest.raises(InvalidInput, match="is damaged .*norm"):
        read_table(path)
    whole = table(both_levels(), provenance=PROVENANCE)
    values = whole.schema.get_field_index("value")
    for wrong in (whole.set_column(values, "value", pa.array(["x"] * 8)), whole.slice(0, 0)):
        pq.write_table(wrong.replace_schema_metadata(SCHEMA.metadata), path)
        with pytest.raises(InvalidInput, match="is damaged|has no rows"):
            read_table(path)
    pq.write_table(whole.append_column("extra", pa.array(range(8))), path)
    assert read_table(path).num_rows == 8


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE, errno.EMFILE])
def test_what_cannot_be_read_is_not_called_damaged(number, tmp_path, monkeypatch):
    """Deleting it, as the message of a damaged file says, would lose whole results."""
    networks = initialise([4, 2], seeds=[0], device=torch.device("cpu"))
    x, y, recipe = torch.rand(8, 4), torch.arange(8) % 2, Recipe(epochs=1)
    paths = [tmp_path / name for name in ("t.parquet", "nets", "training", "run")]
    write_table(paths[0], table(both_levels(), provenance=PROVENANCE))
    save_networks(paths[1], networks, settings="s")
    train(networks, x, y, recipe, seeds=[0], checkpoint=paths[2])
    open_run(paths[3], {"seeds": 5})

    def refused(path, *arguments, **options):
        if path.is_relative_to(tmp_path):
            raise OSError(number, os.strerror(number), str(path))
        return opened(path, *arguments, **options)

    opened = Path.open
    monkeypatch.setattr(Path, "open", refused)
    for read in (
        lambda: read_table(paths[0]),
        lambda: load_networks(paths[1], networks, settings="s"),
        lambda: train(networks, x, y, recipe, seeds=[0], checkpoint=paths[2]),
        lambda: read_settings(paths[3] / "settings.json"),
    ):
        with pytest.raises(Unreachable, match=rf"cannot be read \({os.strerror(number)}\); mend that and"):
            read()
    with pytest.raises(InvalidInput, match=r"out is .*/run, but .*settings.json cannot be read"):
        open_run(paths[3], {"seeds": 5})


def test_no_flipped_bit_changes_a_row(tmp_path):
    """Every 197th bit: the file is refused, or its rows are what they were."""
    path = tmp_path / "t.parquet"
    write_table(path, table(both_levels(), provenance=PROVENANCE))
    good, rows, refused = path.read_bytes(), repr(read_table(path).to_pydict()), 0
    for bit in range(0, 8 * len(good), 197):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        try:
            assert repr(read_table(path).to_pydict()) == rows, f"bit {bit}"
        except InvalidInput:
            refused += 1
    assert refused > 8 * len(good) / 197 / 3


def test_settings_that_changed_on_disk_are_damaged_and_can_be_written_again(tmp_path):
    out, settings = tmp_path / "run", {"seeds": 5, "eps": 0.1}
    open_run(out, settings)
    note = out / "settings.json"
    good = note.read_text()
    note.write_text(good.replace("0.1", "0.3"))
    with pytest.raises(InvalidInput, match=r"settings.json is damaged .*digest differs.*; delete it"):
        open_run(out, settings)
    note.unlink()
    open_run(out, settings)
    assert note.read_text() == good
    assert read_settings(note) == settings
    note.unlink()
    (out / "mine.txt").write_text("keep")
    with pytest.raises(InvalidInput, match=r"holds mine\.txt and no settings\.json"):
        open_run(out, settings)


def test_a_folder_without_settings_is_that_of_its_rows_or_networks(tmp_path):
    """Given to other settings, it would have good files called damaged, or other rows reported as its own."""
    networks = initialise([4, 2], seeds=[0], device=torch.device("cpu"))
    mine: dict[str, object] = {"seeds": 5}
    rows = table(both_levels(), provenance=PROVENANCE | {"settings": settings_id(mine)})
    for name, write in (
        ("results.parquet", lambda path: write_table(path, rows)),
        ("units/a.parquet", lambda path: write_table(path, rows)),
        ("checkpoints/a.safetensors", lambda path: save_networks(path, networks, settings=settings_id(mine))),
    ):
        out = tmp_path / Path(name).stem / Path(name).parent.name
        open_run(out, mine)
        write(out / name)
        (out / "settings.json").unlink()
        with pytest.raises(InvalidInput, match=rf"{Path(name).name} of a run with other settings; choose"):
            open_run(out, {"seeds": 6})
        assert not (out / "settings.json").exists()
        open_run(out, mine)
        assert read_settings(out / "settings.json") == mine


def test_networks_of_other_settings_are_not_called_damaged(tmp_path):
    networks = initialise([4, 2], seeds=[0], device=torch.device("cpu"))
    save_networks(tmp_path / "nets", networks, settings="mine")
    assert load_networks(tmp_path / "nets", networks, settings="mine")
    with pytest.raises(InvalidInput, match=r"nets belongs to a run with other settings; choose a new folder"):
        load_networks(tmp_path / "nets", networks, settings="other")


def test_a_final_table_is_that_of_its_settings(tmp_path):
    write_table(tmp_path / "t.parquet", table(both_levels(), provenance=PROVENANCE))
    assert read_final(tmp_path / "t.parquet", settings="s").num_rows == 8
    with pytest.raises(InvalidInput, match=r"t.parquet belongs to a run with other settings; choose a new"):
        read_final(tmp_path / "t.parquet", settings="other")


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "mend that and run again"),
        (errno.EDQUOT, "mend that and run again"),
        (errno.ESTALE, "mend that and run again"),
        (errno.EROFS, "choose another folder"),
    ],
)
def test_a_full_disk_asks_for_room_not_for_another_folder(number, remedy, tmp_path, monkeypatch):
    out = tmp_path / "run"
    open_run(out, {"seeds": 5})

    def full(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InvalidInput) as raised:
        open_run(out, {"seeds": 5})
    assert str(raised.value) == f"out is {out}, which cannot be written ({os.strerror(number)}); {remedy}"


@pytest.mark.parametrize("name", ["results.parquet", "units/a.parquet"])
def test_rows_of_other_settings_are_not_condensed(name, tmp_path):
    """They would be committed with settings that they were not made with."""
    out = tmp_path / "run"
    mine: dict[str, object] = {"seeds": 5}
    open_run(out, mine)
    rows = table(both_levels(), provenance=PROVENANCE | {"settings": settings_id(mine)})
    write_table(out / name, rows)
    assert condense(out, tmp_path / "good.parquet", partial=True) == 2
    (out / "settings.json").write_text('{"seeds": 6}')
    with pytest.raises(InvalidInput, match=r"which holds rows of other settings than those of its settings"):
        condense(out, tmp_path / "bad.parquet", partial=True)
    assert not (tmp_path / "bad.parquet").exists()


def test_a_torn_line_of_the_log_is_told_of_and_left_out(tmp_path):
    out, told = tmp_path / "run", []
    open_run(out, {"seeds": 5})
    rows = table(both_levels(), provenance=PROVENANCE | {"settings": settings_id({"seeds": 5})})
    write_table(out / "results.parquet", rows)
    (out / "runs.jsonl").write_text('{"seconds": 1}\n{"seco')
    append_line(out / "runs.jsonl", '{"seconds": 2}')
    condense(out, tmp_path / "small.parquet", tell=told.append)
    assert told == [f"Note: line 2 of {out}/runs.jsonl is no entry, and left out"]
    runs = json.loads(pq.read_schema(tmp_path / "small.parquet").metadata[RUN_KEY])["runs"]
    assert runs == [{"seconds": 1}, {"seconds": 2}]


def test_a_folder_of_another_experiment_says_so(tmp_path):
    """Not that an entry of the one is None in the other."""
    open_run(tmp_path / "run", {"mine.name": "mine", "mine.eps": 0.1})
    with pytest.raises(InvalidInput, match="a run of mine, not of other, E1; choose a new folder"):
        open_run(tmp_path / "run", {"other.name": "other", "other.eps": 0.2, "E1.name": "E1"})


def test_a_folder_of_another_command_says_so(tmp_path):
    """Not that the network, or one of the entries, is another."""
    open_run(tmp_path / "run", {"model": "a.pt", "model_sha256": "0", "attacks": ["fgs"]})
    asked = {"model": "a.pt", "model_sha256": "1", "steps": 0}
    with pytest.raises(InvalidInput, match=r"another command, or .*its settings lack steps\); choose a new"):
        open_run(tmp_path / "run", asked)
    open_run(tmp_path / "other", asked)
    with pytest.raises(InvalidInput, match=r"settings lack E1.name\); choose a new"):
        open_run(tmp_path / "other", {"E1.name": "E1"})


def test_a_file_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, real=real: (done.append(name), real(*a)))
    write_atomically(tmp_path / "note", lambda temporary: temporary.write_text("new"))
    assert done == ["fsync", "replace"]


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "note"
    write_atomically(path, lambda temporary: temporary.write_text("old"))

    def fail(temporary):
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match=r"note cannot be written \(disk full\); mend that and run again"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["note"]


# Writes a file of tensors below a folder; while it is written, a kill, or a wait for the end of the input.
WRITER = """
import os, signal, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from empirical.runs.locations import write_atomically
def write(temporary):
    temporary.with_name(".tmpAbCdEf").write_bytes(b"as the library calls its own")
    save_file({"a": torch.zeros(3)}, temporary)
    if sys.argv[2] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    print("written", flush=True)
    sys.stdin.read()
write_atomically(Path(sys.argv[1]), write)
"""


@pytest.mark.skipif(os.name != "posix", reason="no way here to see whether a process lives")
def test_what_killed_writers_left_goes_and_what_others_write_stays(tmp_path):
    out = tmp_path / "run"
    open_run(out, {"seeds": 5})
    networks = out / "checkpoints"
    (networks / ".theirs.part").write_text("of another program, or machine")
    command = [sys.executable, "-c", WRITER, str(networks / "a.safetensors")]
    root = Path(__file__).parents[2]
    killed = subprocess.run([*command, "kill"], cwd=root, check=False)
    assert killed.returncode == -signal.SIGKILL
    with subprocess.Popen(
        [*command, "wait"], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout
        assert writer.stdout.readline() == b"written\n"
        assert len(list(networks.iterdir())) == 3
        open_run(out, {"seeds": 5})
        assert len(list(networks.iterdir())) == 2
        assert writer.communicate()[0] == b""
    assert writer.returncode == 0
    assert sorted(os.listdir(networks)) == [".theirs.part", "a.safetensors"]


def test_a_run_folder_belongs_to_its_settings(tmp_path):
    out = tmp_path / "run"
    open_run(out, {"seeds": 5, "data": "digits"})
    open_run(out, {"seeds": 5, "data": "digits"})
    with pytest.raises(InvalidInput, match="a run with seeds = 5, not 6"):
        open_run(out, {"seeds": 6, "data": "digits"})
    assert read_settings(out / "settings.json") == {"seeds": 5, "data": "digits"}
    (out / "settings.json").write_text("{")
    with pytest.raises(InvalidInput, match="settings.json is damaged"):
        open_run(out, {"seeds": 5})
    (out / "settings.json").write_text("[]")
    with pytest.raises(InvalidInput, match="settings.json is damaged"):
        open_run(out, {"seeds": 5})


def test_other_folders_are_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(InvalidInput, match=r"holds mine.txt and no settings.json"):
        open_run(tmp_path, {"seeds": 5})
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match="cannot be written"):
        open_run(tmp_path / "file", {"seeds": 5})
    with pytest.raises(InvalidInput, match="cannot be written"):
        open_run(tmp_path / "file" / "below", {"seeds": 5})


def test_units_are_computed_once_and_named_by_their_configuration(tmp_path):
    first = unit_path(tmp_path, "5e", "mlp-03")
    assert isinstance(first, Path)
    assert first.name.startswith("mlp-03-")
    assert first != unit_path(tmp_path, "6e", "mlp-03")
    calls = []

    def compute():
        calls.append(1)
        return both_levels()

    one, two = (run_unit(first, compute, PROVENANCE) for _ in range(2))
    assert len(calls) == 1
    assert one.num_rows == two.num_rows == 8
    first.write_bytes(b"damaged")
    with pytest.raises(InvalidInput, match="is damaged"):
        run_unit(first, compute, PROVENANCE)


def test_a_unit_that_could_not_be_read_is_heard_of_once_it_can(tmp_path):
    path, heard = tmp_path / "unit.parquet", []
    path.write_bytes(b"half of a file")
    progress = Progress([path], lambda *told: heard.append(told), lambda *_: None)
    with pytest.raises(InvalidInput, match="unit.parquet"):
        progress.look()
    write_table(path, table(both_levels(), provenance=PROVENANCE))
    progress.look()
    progress.look()
    assert heard == [("mlp dense", "sparsity 0, accuracy 0.375")]
    assert progress.commits == {"c"}
