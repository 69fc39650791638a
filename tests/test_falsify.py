"""The falsify command: its table, its exit status, its messages, and what Ctrl-C leaves."""

import csv
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from pathlib import Path

import pytest
from click.testing import CliRunner

from empirical.cli.hunt_book import HuntBook
from empirical.cli.main import main
from empirical.runs.locations import write_atomically
from theory.laws.catalog import select
from theory.laws.hunt import Failure, Tally, hunt
from theory.types import InvalidInput

ROOT = Path(__file__).parents[1]
FALSE = """
from theory.laws import conjecture, strategies as st

@conjecture(x=st.arrays((2,)))
def never_both_positive(x):
    "The smaller of two numbers is at most 0."
    return x.min(), 0.0
"""


def falsify(*arguments: object):
    return CliRunner().invoke(main, ["falsify", *map(str, arguments)])


@pytest.fixture
def in_one_process(monkeypatch):
    """Hunts in threads of this process, which others take seconds to join: for what is said of them."""

    def pool(jobs: int, *, initargs: tuple, **_: object) -> ThreadPoolExecutor:
        monkeypatch.setattr("theory.laws.hunt._laws", initargs[0]())
        return ThreadPoolExecutor(jobs)

    monkeypatch.setattr("theory.laws.hunt.ProcessPoolExecutor", pool)


@pytest.mark.usefixtures("in_one_process")
def test_laws_that_hold_are_a_line_each_and_rows_of_a_table(tmp_path):
    out = tmp_path / "table.csv"
    result = falsify("relu.P2<=F", "linear.two-rows", "--examples", 30, "--jobs", 1, "--out", out)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["linear.two-rows", "relu.P2<=F", "Nothing"]
    assert " 30 examples  worst 1" in lines[1]
    assert lines[2] == "Nothing falsified in 60 examples of 2 laws."
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert [(row["law"], row["examples"], row["falsified"]) for row in rows] == [
        ("linear.two-rows", "30", "False"),
        ("relu.P2<=F", "30", "False"),
    ]
    assert float(rows[1]["worst"]) >= 1
    assert "ReLUNetwork(" in rows[1]["tightest"]
    assert " 30 examples" in falsify("relu.P2<=F", "--examples", 30, "--jobs", 1, "--out", out).stdout
    assert list(csv.DictReader(out.read_text().splitlines())) == rows  # nothing was left to do


@pytest.mark.usefixtures("in_one_process")
def test_what_simplifies_a_counterexample_is_said_to_be_counted(tmp_path):
    (tmp_path / "mine.py").write_text(FALSE)
    result = falsify("--conjecture", tmp_path / "mine.py", "--examples", 200, "--jobs", 1)
    assert result.exit_code == 1
    last = result.stdout.splitlines()[-1]
    assert re.fullmatch(
        r"1 of 1 falsified in \d+ examples of 1 conjectures, with those that simplify a counterexample\.",
        last,
    )
    assert "with those" not in falsify("linear.fgs", "--examples", 20, "--jobs", 1).stdout


@pytest.mark.usefixtures("in_one_process")
def test_a_hunt_goes_on_where_its_file_ends(tmp_path, monkeypatch):
    """Two hunts into one file find what one of as many examples finds, and know it without the cases."""
    for place in ("theory.laws.hunt.ROUND", "empirical.cli.hunt_book.ROUND"):
        monkeypatch.setattr(place, 50)
    hunted = ("relu.P2<=F", "linear.fgs", "--jobs", 1)
    once, twice = tmp_path / "once.csv", tmp_path / "twice.csv"
    assert falsify(*hunted, "--examples", 100, "--out", once).exit_code == 0
    assert falsify(hunted[0], "--jobs", 1, "--examples", 50, "--out", twice).exit_code == 0
    first = list(csv.DictReader(twice.read_text().splitlines()))
    result = falsify(*hunted, "--examples", 100, "--out", twice)
    assert result.stdout.endswith("Nothing falsified in 200 examples of 2 laws.\n")
    assert [row["tried"] for row in first] == ["50"]

    def told(path: Path) -> dict[str, list[str]]:
        rows = csv.DictReader(path.read_text().splitlines())
        return {
            row["law"]: [row[key] for key in ("tried", "examples", "worst", "tightest", "commits")]
            for row in rows
        }

    assert told(once) == told(twice)


@pytest.mark.parametrize(
    ("seed", "change", "message"),
    [
        (1, (), "linear.fgs: seed is 0, not 1; name another file"),
        (0, (), "30 examples were tried, and only whole rounds of 1000 can be continued"),
        (0, ("False", "True"), "linear.fgs is falsified there"),
        (0, ("30,29", "30,x"), "is no row of a hunt (invalid literal"),
        (0, ("law,kind", "law,sort"), "is no table of a hunt; name another file"),
        (0, (",0,", ","), "is no table of a hunt; name another file"),
    ],
)
def test_a_file_that_is_no_hunt_or_another_one_is_refused(tmp_path, seed, change, message):
    out, laws = tmp_path / "table.csv", select(("linear.fgs",))
    book = HuntBook.open(out, laws=laws, examples=30, seed=0)
    book.enter(laws[0], Tally(29, ratio=1.5, seconds=0.1))
    book.save()
    text = out.read_text().replace(*change or ("", ""))
    out.write_text(text)
    with pytest.raises(InvalidInput, match=re.escape(message)):
        HuntBook.open(out, laws=laws, examples=2000, seed=seed)
    assert out.read_text() == text


def test_two_hunts_into_one_file_keep_the_rows_of_both(tmp_path):
    """Of a law that both hunt the row of more examples stays; with another seed the second is refused."""
    out, (one, two) = tmp_path / "table.csv", select(("linear.fgs", "relu.P2<=F"))
    first, second, other = (
        HuntBook.open(out, laws=(one, two), examples=2000, seed=seed) for seed in (0, 0, 1)
    )
    first.enter(one, Tally(1000, ratio=1.5))
    second.enter(two, Tally(1000, ratio=2.5))
    for book in (first, second, first):
        book.save()
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert {(row["law"], row["worst"]) for row in rows} == {("linear.fgs", "1.5"), ("relu.P2<=F", "2.5")}

    for _ in range(2):
        second.enter(one, Tally(1000, ratio=1.25))
    for book in (second, first):
        book.save()
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert {(row["law"], row["tried"], row["worst"]) for row in rows} == {
        ("linear.fgs", "2000", "1.25"),
        ("relu.P2<=F", "1000", "2.5"),
    }

    other.enter(two, Tally(1000, ratio=3.5))
    with pytest.raises(InvalidInput, match="seed is 0, not 1; name another file"):
        other.save()
    assert list(csv.DictReader(out.read_text().splitlines())) == rows


@pytest.mark.skipif(os.name != "posix", reason="no locks of folders here")
def test_two_hunts_that_write_at_once_lose_no_row(tmp_path, monkeypatch):
    """The second begins when the first has read the file, and not yet written it."""
    out, laws = tmp_path / "table.csv", select(("linear.fgs", "relu.P2<=F"))
    first, second = (HuntBook.open(out, laws=laws, examples=2000, seed=0) for _ in range(2))
    for book, law in zip((first, second), laws, strict=True):
        monkeypatch.setattr(book, "_saved", time.monotonic())  # what is entered is not yet saved
        book.enter(law, Tally(1000, ratio=1.5))
    other = threading.Thread(target=second.save)

    def slowly(path: Path, write: Callable[[Path], object]) -> None:
        if not other.ident:
            other.start()
            other.join(timeout=0.5)
        write_atomically(path, write)

    monkeypatch.setattr("empirical.cli.hunt_book.write_atomically", slowly)
    first.save()
    other.join()
    rows = csv.DictReader(out.read_text().splitlines())
    assert {row["law"] for row in rows} == {law.name for law in laws}


def test_a_counterexample_in_the_file_stays_whatever_another_hunt_tried(tmp_path):
    out, (law,) = tmp_path / "table.csv", select(("linear.fgs",))
    found, held = (HuntBook.open(out, laws=(law,), examples=2000, seed=0) for _ in range(2))
    found.enter(law, Tally(10, failure=Failure({}, "the check failed")))
    for _ in range(2):
        held.enter(law, Tally(1000, ratio=1.5))
    for book in (found, held):
        book.save()
    (row,) = csv.DictReader(out.read_text().splitlines())
    assert (row["falsified"], row["examples"]) == ("True", "10")


@pytest.mark.usefixtures("in_one_process")
def test_a_killed_process_is_status_75_and_the_same_command_goes_on(tmp_path, monkeypatch):
    for place in ("theory.laws.hunt.ROUND", "empirical.cli.hunt_book.ROUND"):
        monkeypatch.setattr(place, 50)
    out = tmp_path / "table.csv"
    command = ("linear.fgs", "--examples", 100, "--jobs", 1)

    def killed(load, **options):
        yield from islice(hunt(load, **options), 1)
        raise BrokenProcessPool("A process in the process pool was terminated abruptly")

    with monkeypatch.context() as patch:
        patch.setattr("theory.laws.hunt.hunt", killed)
        kept, lost = falsify(*command, "--out", out), falsify(*command)
    assert (kept.exit_code, lost.exit_code) == (75, 75)
    assert " 50 examples" in kept.stdout
    assert " 50 examples" in lost.stdout
    assert kept.stderr.splitlines()[1:] == [
        "Error: a process of the hunt was killed (out of memory?); the table shows what was tried until "
        f"then; {out} keeps it; run the same command again to go on"
    ]
    assert lost.stderr.splitlines()[-1].endswith("; run again, with --out FILE.csv to keep it")
    result = falsify(*command, "--out", out)
    assert result.exit_code == 0
    assert " 100 examples" in result.stdout


def test_a_conjecture_that_kills_its_process_is_not_falsified(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("import os\n" + FALSE.replace("return x.min(), 0.0", "os._exit(9)"))
    result = falsify("--conjecture", file, "--examples", 10, "--jobs", 1, "--out", tmp_path / "table.csv")
    assert result.exit_code == 75
    assert result.stderr.endswith("run again with another file to start anew\n")


@pytest.mark.usefixtures("in_one_process")
def test_a_false_conjecture_exits_1_with_its_minimal_counterexample_as_a_program(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(FALSE)
    result = falsify("--conjecture", file, "--examples", 100, "--jobs", 1)
    assert result.exit_code == 1
    assert "FALSIFIED  never_both_positive: The smaller of two numbers is at most 0\n" in result.stdout
    assert "x=np.array([0.25, 0.25])," in result.stdout
    program = result.stdout[result.stdout.index('"""') : result.stdout.rindex("1 of 1 falsified")]
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "AssertionError: 0.25 exceeds 0.0" in run.stderr


@pytest.mark.usefixtures("in_one_process")
def test_a_conjecture_that_stands_comes_with_its_evidence_and_what_that_is_worth():
    result = falsify("--conjecture", "linf_radius_is_smaller", "--examples", 200, "--jobs", 1)
    assert result.exit_code == 0
    assert (
        "No counterexample to linf_radius_is_smaller in 200 examples. This proves nothing." in result.stdout
    )
    assert "a probability below 0.015," in result.stdout  # 3 / 200
    assert "law.ratio(case)" in result.stdout


def test_the_list_names_laws_and_conjectures():
    result = falsify("--list")
    assert result.exit_code == 0
    assert "relu.P1<=M " in result.stdout
    assert "expected_lipschitz_falls " in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["relu.PI"], "relu.PI is no law; the nearest names are relu.P"),
        (["--examples", 0], "examples is 0; give a whole number of at least 1"),
        (["--jobs", -1], "jobs is -1; give a whole number of at least 1"),
        (["--seed", -1], "seed is -1; give a whole number of at least 0"),
        (["--conjecture", "nowhere.py"], "nowhere.py is no file, and no shipped conjecture"),
        (["relu.M", "--conjecture", "nowhere.py"], "exclude each other"),
        (["relu.M", "--out", "missing/folder/table.csv"], "No such file or directory"),
        (["--examples", "many"], "is not a valid integer"),
    ],
)
def test_bad_usage_is_one_line_and_status_2(arguments, message):
    result = falsify(*arguments, *([] if "--examples" in arguments else ["--examples", 5]))
    assert result.exit_code == 2
    assert message in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.output


def test_an_error_in_a_conjecture_is_one_line_with_its_case_as_a_program_and_status_2(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(FALSE.replace("return x.min(), 0.0", "return x.minimum()"))
    result = falsify("--conjecture", file, "--examples", 10, "--jobs", 1)
    assert result.exit_code == 2
    (_, line) = result.stderr.splitlines()
    assert line.startswith("Error: never_both_positive raised AttributeError: ")
    program = result.stdout[result.stdout.index('"""never_both_positive') :]
    again = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert again.stderr.splitlines()[-1].endswith(line.removeprefix("Error: "))


def test_bad_input_to_the_theory_is_an_error_of_the_conjecture(tmp_path):
    file = tmp_path / "mine.py"
    claim = FALSE.replace("return x.min(), 0.0", "return check_sparsity('alpha', 2.0 + abs(x.min())), 9.0")
    file.write_text("from theory.types import check_sparsity\n" + claim)
    result = falsify("--conjecture", file, "--examples", 10, "--jobs", 1)
    assert result.exit_code == 2
    assert "never_both_positive raised InvalidInput: alpha is " in result.stderr
    assert "case = dict(" in result.stdout


def test_ctrl_c_prints_the_table_so_far_and_exits_130():
    command = [
        sys.executable,
        "-m",
        "empirical",
        "falsify",
        "linear.fgs",
        "--examples",
        "10000000",
        "--jobs",
        "1",
    ]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdout=-1,
        stderr=-1,
        text=True,
        # A shell that starts the tests in the background has them ignore it, and their children too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "Trying 10,000,000 examples ...\n"
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=4)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 130
    assert errors == "Stopped; the table shows what was tried until then.\n"
    assert output.endswith("laws.\n")
    assert "Nothing falsified in " in output


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's list of children")
def test_processes_of_a_killed_hunt_end():
    command = [
        sys.executable,
        "-m",
        "empirical",
        "falsify",
        "linear.fgs",
        "--examples",
        "10000000",
        "--jobs",
        "1",
    ]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    own = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    try:
        assert soon(lambda: any(b"spawn_main" in line_of(child) for child in own.read_text().split()))
        children = own.read_text().split()
    finally:
        process.kill()
        process.wait()
    assert soon(lambda: not any(line_of(child) for child in children))


def soon(holds: Callable[[], bool]) -> bool:
    """Whether it holds within a minute."""
    return any(holds() or time.sleep(0.2) for _ in range(300))


def line_of(process: str) -> bytes:
    """The command line of a process; nothing if it has ended."""
    path = Path(f"/proc/{process}/cmdline")
    return path.read_bytes() if path.exists() else b""
