"""Command lines of arbitrary arguments: every one ends with an exit status and, if it is bad, one plain line.

What a command does for long is left out: training, bounds, the hunt and the figures are replaced by nothing,
after their arguments were checked; ``measure`` attacks a tiny network once.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

from click.testing import CliRunner
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from empirical.cli.main import main
from tests.fuzz import hostile, networks, tables
from tests.fuzz.law import Broken, examine
from tests.fuzz.mutation import METHODS
from theory.types import InvalidInput

# Statuses that the help of the commands names.
STATUSES = (0, 1, 2, 3, 75, 130)
Option = tuple[str, ...]
_INTEGERS = (
    "0", "1", "2", "3", "5", "-1", "-2", "1000000", "2147483648", "99999999999999999999", "9" * 400,
    "9" * 5000,
    "\u0663", "1_0", " 1",
)  # fmt: skip
_FLOATS = ("0", "1", "0.5", "-1", "nan", "inf", "-inf", "1e400", "1e-400", "1e300", "5e-324", "1_0", "\u0663")
_LISTS = (
    "1,2",
    "0,0.5",
    "0.5,0",
    "0,0",
    ",",
    "1,",
    "0,nan",
    "0," + "9" * 400,
    "3",
    "4",
    "2,2",
    "0",
    "-1,4",
    "2147483648,2147483648",
)
_TEXTS = (
    "", "a", "..", ".", "/", "a\nb", "\x1b[31m", "x" * 5000, "[", "*", "[!", "{}", "[]", '{"a": 1}',
    "[" * 20_000, "fgs", "fgs,fgs", "fgs,x", ":", "a:b", "os:system", "l2", "\udcff", "é", "-", "0/1",
    "1/1", "1/0",
    "0/99999999999", "9" * 5000 + "/1", "\u0661/\u0662", "cpu", "auto", "digits", "relu.*",
    "linf_radius_is_smaller",
)  # fmt: skip
_FILES = (
    "net.pt", "data.npz", "results.parquet", "mine.toml", "empty", "missing", "folder", "missing/folder/x",
    "folder/*",
    "net.pt2", "x.safetensors", "bad.parquet", "/dev/null", "/proc/self/mem", "*.npz", "code.py",
)  # fmt: skip


# No shell can pass a null character.
_ARGUMENT = st.text(st.characters(exclude_characters="\0"), max_size=6)


def values(kind: str) -> SearchStrategy[str]:
    """What may stand after an option of this kind: mostly of the right kind, sometimes of any."""
    pools = {
        "i": st.sampled_from(_INTEGERS) | st.integers().map(str),
        "f": st.sampled_from(_FLOATS) | st.floats().map(str),
        "l": st.sampled_from(_LISTS) | st.lists(st.sampled_from(_FLOATS), max_size=3).map(",".join),
        "t": st.sampled_from(_TEXTS) | _ARGUMENT,
        "p": st.sampled_from(_FILES),
    }
    return st.one_of(*[pools[kind]] * 4, *pools.values())


# Of every command: how a good line begins, and its options with the kinds of their values: i for integers, f
# for numbers, l for lists of them, t for texts, p for paths.
NETWORK = {
    "--data": "p", "--arch": "t", "--arch-args": "t", "--shape": "l", "--examples": "i", "--out": "p",
    "--device": "t", "--markdown": "",
}  # fmt: skip
TRAIN = {
    "--data": "p", "--out": "p", "--seeds": "i", "--sparsities": "l", "--eps": "f", "--pair": "ii",
    "--device": "t", "--workers": "i",
}  # fmt: skip
RUN = {"--quick": "", "--test-examples": "i", "--minutes": "f", "--backend": "t", "--part": "t", "--list": ""}
BOUNDS = {"--p": "f", "--radius": "f", "--alphas": "l", "--pair": "ii", "--steps": "i", "--crown": "i"}
CHECK = {"--attacks": "t", "--eps": "f", "--box": "ff", "--removed": "l", "--crown": "i"}
HUNT = {"--examples": "i", "--seed": "i", "--jobs": "i", "--conjecture": "t", "--list": "", "--out": "p"}
OWN = ("net.pt", "--data", "data.npz", "--examples", "2")
COMMANDS: dict[str, tuple[Option, dict[str, str]]] = {
    "run": (("mine.toml",), TRAIN | RUN),
    "verify": ((), TRAIN),
    "measure": ((*OWN, "--attacks", "fgs"), NETWORK | {"--attacks": "t", "--eps": "f", "--box": "ff"}),
    "bounds": (OWN, NETWORK | BOUNDS),
    "check": (OWN, NETWORK | CHECK),
    "claims": (("results.parquet",), {"--markdown": ""}),
    "condense": (("folder", "out.parquet"), {"--partial": "", "--examples-of": "i", "--sparsities": "l"}),
    "figures": (("results.parquet",), {"--out": "p", "--width": "t"}),
    "doctor": ((), {"--json": "", "--workers": "i", "--out": "p"}),
    "completion": (("bash",), {}),
    "falsify": ((), HUNT),
}


@st.composite
def lines(draw: Callable, command: str) -> list[str]:
    """A good command line with one to three options of any value, perhaps without or with other arguments."""
    good, options = COMMANDS[command]
    line = [command, *good]
    for _ in range(draw(st.integers(1, 3))):
        if options and draw(st.integers(0, 6)):
            name = draw(st.sampled_from(sorted(options)))
            line += [name, *(draw(values(kind)) for kind in options[name])]
        else:
            place = draw(st.integers(1, len(line)))
            line[place : place + draw(st.integers(0, 1))] = [draw(values(draw(st.sampled_from("ptl"))))]
    return line


def prepare(folder: Path) -> None:
    """The files that command lines name, in a folder."""
    (folder / "net.pt").write_bytes(networks.saved(networks.stack().state_dict()))
    (folder / "data.npz").write_bytes(_data())
    (folder / "results.parquet").write_bytes(tables.stored(tables.good(families=("linear",))))
    (folder / "bad.parquet").write_bytes(tables.runs(10**9))
    (folder / "mine.toml").write_bytes(hostile.experiment())
    (folder / "empty").write_bytes(b"")
    for name in ("net.pt2", "x.safetensors"):
        (folder / name).write_bytes(b"PK\3\4 nonsense")
    (folder / "code.py").write_text("raise SystemExit(5)\n")
    (folder / "folder").mkdir()


def _data() -> bytes:
    arrays = hostile.arrays()
    three = {name: value[:, :3] if value.ndim == 2 else value % 2 for name, value in arrays.items()}
    return hostile.npz(METHODS[0], **{name: hostile.npy_of(value) for name, value in three.items()})


_BEGINS = "the work would begin"


def _reached(*_: object, **__: object) -> None:
    raise InvalidInput(_BEGINS)


@contextlib.contextmanager
def idle() -> Iterator[None]:
    """Commands check what they are given, and begin no long work."""
    with contextlib.ExitStack() as stack:
        for place in (
            "empirical.runs.run.run_experiments",
            "empirical.runs.run.run_part",
            "empirical.own_network.check.check",
            "empirical.own_network.bounds.bounds",
            "empirical.cli.falsify._hunt",
        ):
            stack.enter_context(mock.patch(place, _reached))
        stack.enter_context(mock.patch("paper_figures.files.drawn", return_value=()))
        stack.enter_context(mock.patch("joblib.cpu_count", return_value=1))
        yield


def try_line(line: list[str]) -> str:
    """Whether a command line, in this folder, was "read" or "refused". Raises: Broken if it broke the law."""

    def invoke() -> int:
        result = CliRunner().invoke(main, line)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        if "Traceback" in result.output or result.exit_code not in STATUSES:
            raise Broken(f"status {result.exit_code}: {result.output[-500:]}")
        if result.exit_code == 2 and _BEGINS not in result.stderr:
            told = result.stderr.rstrip("\n").split("\n")
            usage = told[0].startswith("Usage: ")  # click's own, of several lines
            if not usage and not (told[-1].startswith("Error: ") and told[-1].isprintable()):
                raise Broken(f"not one line of error: {result.stderr[-500:]!r}")
            raise InvalidInput("bad usage" if usage else told[-1])
        return 2**24

    shutil.rmtree("results", ignore_errors=True)  # else every other run's results are in the way
    with idle():
        return examine(invoke, stored=sum(map(len, line)) + 2**20, canary=Path(hostile.CANARY))
