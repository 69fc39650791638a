"""``benchmarks/gpu.sh`` between machines: what a piece leaves is packed, and where the next one begins."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.sh"
# In place of Python: a run that writes down each of its pieces, and is not finished before the third.
RUN = """#!/bin/sh
echo "$*" >> "$CALLS"
while [ "$1" != --out ]; do shift; done
mkdir -p "$2/units" "$2/unfinished"
echo piece >> "$2/units/rows"
echo half >> "$2/unfinished/training"
[ -z "${HANGS:-}" ] || sleep 60
[ "$(wc -l < "$2/units/rows")" -ge 3 ] || exit 3
"""


@pytest.fixture
def piece(tmp_path):
    """Call the script in a folder that is a machine's; returns its exit status."""
    (tmp_path / "python").write_text(RUN)
    (tmp_path / "python").chmod(0o755)

    def call(machine: Path, *arguments: str, **environment: str) -> int:
        (machine / "out").mkdir(parents=True, exist_ok=True)
        given = {
            "PYTHON": str(tmp_path / "python"),
            "CALLS": str(tmp_path / "calls"),
            "OUT": str(machine / "out"),
        }
        return subprocess.run(
            [SCRIPT, *arguments], cwd=machine, env=os.environ | given | environment, check=False
        ).returncode

    return call


def carried(one: Path, other: Path) -> None:
    """What was brought home from one machine, where the other looks for it."""
    (other / "results" / "packed").mkdir(parents=True)
    for path in (one / "out").iterdir():
        (other / "results" / "packed" / path.name).write_bytes(path.read_bytes())


def test_a_run_goes_from_machine_to_machine_to_its_end(piece, tmp_path):
    machines = [tmp_path / name for name in ("first", "second", "third")]
    assert piece(machines[0], "E6", SEEDS="10") == 3
    carried(*machines[:2])
    assert piece(machines[1], "E6", MINUTES="8", TEST_EXAMPLES="200") == 3
    carried(*machines[1:])
    assert piece(machines[2], "E6") == 0
    run = machines[2] / "results" / "E6"
    assert (run / "units" / "rows").read_text().count("piece") == 3
    assert (run / "unfinished" / "training").read_text().count("half") == 1  # what was at hand stays behind
    calls = (tmp_path / "calls").read_text().splitlines()
    assert "run E6 --device cuda --minutes 5 --seeds 10 --out results/E6" in calls[0]
    assert "--minutes 8 --test-examples 200 --out" in calls[1]


def test_what_a_killed_piece_has_done_is_brought_home(piece, tmp_path):
    assert piece(tmp_path / "machine", "E6", HANGS="yes", SECONDS_AT_MOST="1") == 124
    assert [path.name for path in (tmp_path / "machine" / "out").iterdir()] == ["E6.tgz.aa"]


def test_a_folder_that_is_there_is_not_overwritten_by_what_was_packed(piece, tmp_path):
    machine = tmp_path / "machine"
    assert piece(machine, "E6") == 3
    assert piece(machine, "E6") == 3
    assert (machine / "results" / "E6" / "units" / "rows").read_text().count("piece") == 2


def test_what_was_packed_stays_until_there_is_something_whole_in_its_place(piece, tmp_path):
    machine = tmp_path / "machine"
    assert piece(machine, "E6") == 3
    packed = machine / "results" / "packed" / "E6.tgz.aa"
    before = packed.read_bytes()
    full = tmp_path / "full"
    full.mkdir()
    (full / "tar").write_text("#!/bin/sh\nexit 2\n")  # as where the disk is full
    (full / "tar").chmod(0o755)
    assert piece(machine, "E6", PATH=f"{full}:{os.environ['PATH']}") == 2
    assert packed.read_bytes() == before
    assert piece(machine, "E6") == 0
    assert packed.read_bytes() != before
    assert [path.name for path in packed.parent.iterdir()] == ["E6.tgz.aa"]


def test_half_an_archive_is_not_taken_for_a_run(piece, tmp_path):
    machines = [tmp_path / name for name in ("first", "second")]
    assert piece(machines[0], "E6") == 3
    carried(*machines)
    packed = machines[1] / "results" / "packed" / "E6.tgz.aa"
    whole = packed.read_bytes()
    packed.write_bytes(whole[: len(whole) // 2])
    assert piece(machines[1], "E6") not in (0, 3)
    assert not (machines[1] / "results" / "E6").exists()
    packed.write_bytes(whole)
    assert piece(machines[1], "E6") == 3
    assert (machines[1] / "results" / "E6" / "units" / "rows").read_text().count("piece") == 2
    assert piece(machines[1], "unpack", "E6") == 2  # it is there
