"""The command line as a whole: the version, completion in real shells, and what it imports before it must."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from empirical.cli import completion
from empirical.cli.main import main
from empirical.data.named import NAMED
from empirical.experiments import catalog
from empirical.experiments.specification import ATTACKS
from empirical.own_network import check, measuring
from empirical.results import read_table
from empirical.runs import provenance
from theory.laws import claim
from theory.laws.catalog import LAWS

ROOT = Path(__file__).parents[1]
DIGITS = ROOT / "paper_figures" / "data" / "digits.parquet"
RENEW = (
    "python -c 'from theory.laws.catalog import LAWS; print(*(law.name for law in LAWS), sep=chr(10))' "
    "> theory/laws/catalog/names.txt"
)
# Seconds away from what anybody asks of a help text, and what no help text needs.
HEAVY = ("torch", "numpy", "scipy", "sklearn", "pandas", "matplotlib", "hypothesis", "rich")


def completed(*arguments: str) -> list[str]:
    """What may stand in the place of the last argument."""
    shell = ShellComplete(main, {}, completion.PROGRAM, "_SPARSE_ROBUSTNESS_COMPLETE")
    return [item.value for item in shell.get_completions(list(arguments[:-1]), arguments[-1])]


def test_the_version_comes_with_the_commit():
    result = CliRunner().invoke(main, ["--version"])
    assert result.exit_code == 0
    expected = f"sparse-robustness {provenance.package_version()} (commit {provenance.commit()})\n"
    assert result.output == expected


def test_the_commit_is_that_of_the_package_and_of_no_tree_around_it(tmp_path, monkeypatch):
    def git(*arguments: str) -> str:
        names = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        done = subprocess.run(
            ["git", *names, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    here = tmp_path / "provenance.py"
    here.write_text("")
    monkeypatch.setattr(provenance, "_HERE", here)
    monkeypatch.delenv("SPARSE_ROBUSTNESS_COMMIT", raising=False)
    assert provenance.commit() == "unknown"  # no work tree
    monkeypatch.setenv("SPARSE_ROBUSTNESS_COMMIT", "0123456789ab")
    assert provenance.commit() == "0123456789ab"  # copied from one
    monkeypatch.delenv("SPARSE_ROBUSTNESS_COMMIT")
    git("init", "--quiet")
    (tmp_path / "theirs").write_text("")
    git("add", "theirs")
    git("commit", "--quiet", "-m", "theirs")
    assert provenance.commit() == "unknown"  # a work tree that does not hold the package
    git("add", "provenance.py")
    git("commit", "--quiet", "-m", "ours")
    monkeypatch.setenv("SPARSE_ROBUSTNESS_COMMIT", "0123456789ab")  # git knows better
    assert provenance.commit() == git("rev-parse", "HEAD")[:12]
    here.write_text("changed")
    assert provenance.commit() == f"{git('rev-parse', 'HEAD')[:12]}-dirty"


def test_no_command_has_its_argument_deleted(tmp_path):
    """What is no table may be anything, such as the network it was measured on."""
    other = tmp_path / "net.pt"
    other.write_bytes(b"weights")
    result = CliRunner().invoke(main, ["claims", str(other)])
    assert result.exit_code == 2
    assert "give the results.parquet of a run" in result.stderr
    assert "delete" not in result.stderr


def test_a_table_about_examples_alone_is_refused(tmp_path):
    rows = read_table(DIGITS).slice(0, 3)
    place = rows.schema.get_field_index("example")
    table = tmp_path / "t.parquet"
    pq.write_table(rows.set_column(place, rows.schema.field(place), pa.array([0, 1, 2], pa.int32())), table)
    result = CliRunner().invoke(main, ["claims", str(table)])
    assert result.exit_code == 2
    told = f"table is {table}, which has no rows about whole networks; give the results.parquet of a run"
    assert result.stderr == f"Error: {told}\n"


@pytest.mark.parametrize("prunings", [["given"], ["given", "one-shot", "random"], ["dense"]])
def test_a_table_of_which_no_claim_speaks_is_refused(tmp_path, prunings):
    """As those that ``measure`` and ``check`` leave, of one network and what pruning it further gives."""
    rows = read_table(DIGITS)
    rows = rows.filter(pc.field("kind") != "check").slice(0, 3)
    place = rows.schema.get_field_index("pruning")
    made = pa.array((prunings * 3)[:3]).cast(rows.schema.field(place).type)
    table = tmp_path / "measure.parquet"
    pq.write_table(rows.set_column(place, rows.schema.field(place), made), table)
    result = CliRunner().invoke(main, ["claims", str(table)])
    told = "they compare pruned networks with dense ones, seed by seed; give the results.parquet of a run"
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"Error: table is {table}, which no claim speaks of: {told}\n"


def test_the_folder_of_a_check_makes_no_claims(tmp_path):
    (tmp_path / "further_pruning.parquet").write_bytes(b"")
    result = CliRunner().invoke(main, ["claims", str(tmp_path)])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"Error: table is {tmp_path}, which is no folder of a finished run")
    assert "a check or measure of one network makes no claims; give the results.parquet" in result.stderr


def test_what_is_completed_is_what_there_is():
    assert completion.experiment_names() == list(catalog())
    assert completion.law_names() == [law.name for law in LAWS], f"renew the list: {RENEW}"
    assert completion.conjecture_names() == list(claim.shipped())
    assert completion.DATA == ("digits", *NAMED)
    assert completion.ATTACKS == ATTACKS


@pytest.mark.parametrize(("command", "request_"), [("check", check.Request), ("measure", measuring.Request)])
def test_the_attacks_that_help_names_as_defaults_are_those_of_the_functions(command, request_):
    option = next(option for option in main.commands[command].params if option.name == "attacks")
    assert option.default == ",".join(request_.attacks)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "E8"], ["E8"]),
        (["run", "E3", "digits-l"], ["digits-linear-binary", "digits-linear", "digits-local"]),
        (["falsify", "relu.P1<"], ["relu.P1<=M", "relu.P1<=rows"]),
        (["falsify", "graph.*"], ["graph.*"]),
        (["falsify", "masks.e"], ["masks.expected-margin", "masks.expected-lipschitz"]),
        (["falsify", "--conjecture", "linf"], ["linf_radius_is_smaller"]),
        (["bounds", "net.pt", "--data", "m"], ["mnist"]),
        (["measure", "net.pt", "--data", ""], ["digits", "mnist", "fashion-mnist", "cifar10"]),
        (["measure", "net.pt", "--attacks", "fgs,d"], ["fgs,deepfool", "fgs,ddn"]),
        (["measure", "net.pt", "--attacks", "fgs,fg"], []),
        (["check", "net.pt", "--attacks", "fgs,d"], ["fgs,deepfool", "fgs,ddn"]),
        (["verify", "--device", "c"], ["cpu", "cuda"]),
        (["comp"], ["completion"]),
        (["completion", ""], ["bash", "fish", "zsh"]),
    ],
)  # fmt: skip
def test_completion(arguments, expected):
    assert completed(*arguments) == expected


def test_where_no_name_fits_files_are_completed():
    shell = ShellComplete(main, {}, completion.PROGRAM, "_SPARSE_ROBUSTNESS_COMPLETE")
    for arguments in (["run"], ["falsify", "--conjecture"], ["measure", "net.pt", "--data"]):
        (item,) = shell.get_completions(arguments, "./my")
        assert (item.type, item.value) == ("file", "./my")


# Each asks its shell, as a user's key would, for what may follow; the program is on the path.
BASH = """
eval "$(sparse-robustness completion bash)"
COMP_WORDS=(sparse-robustness {words}) COMP_CWORD={last}
_sparse_robustness_completion sparse-robustness
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
FISH = 'sparse-robustness completion fish | source; complete --do-complete "sparse-robustness {words}"'


@pytest.fixture
def program(tmp_path) -> dict[str, str]:
    """An environment in which the shell finds the program of this source tree."""
    file = tmp_path / completion.PROGRAM
    file.write_text(
        f"#!{sys.executable}\nfrom empirical.cli.main import main\nmain(prog_name='{completion.PROGRAM}')\n"
    )
    file.chmod(0o755)
    path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    return os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}


def test_bash_completes_and_escapes(program):
    def replies(words: str) -> list[str]:
        script = BASH.format(words=words, last=len(words.split()))
        done = subprocess.run(
            ["bash", "--norc", "-c", script], env=program, capture_output=True, text=True, check=True
        )
        return done.stdout.split()

    assert replies("run digits-m") == ["digits-mlp"]
    offered = replies("falsify relu.M relu.P2")
    assert "relu.P2\\<=F" in offered  # else the shell would read from a file =F
    assert all(name.startswith("relu.P2") for name in offered)
    assert replies("falsify relu.\\*") == ["relu.\\*"]


@pytest.mark.skipif(shutil.which("fish") is None, reason="no fish here")
def test_fish_completes(program):
    done = subprocess.run(
        ["fish", "--no-config", "-c", FISH.format(words="run digits-m")],
        env=program, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["digits-mlp"]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh here")
def test_zsh_reads_the_script(program):
    script = 'autoload -U compinit; compinit -u; eval "$(sparse-robustness completion zsh)"; '
    script += "echo $_comps[sparse-robustness]"
    done = subprocess.run(
        ["zsh", "-f", "-c", script], env=program, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "_sparse_robustness_completion"


@pytest.mark.parametrize(
    ("arguments", "variables"),
    [
        (["--help"], {}),
        (["--version"], {}),
        (["doctor", "--help"], {}),
        (["falsify", "--help"], {}),
        (["completion", "bash"], {}),
        ([], {"COMP_WORDS": "sparse-robustness falsify relu.P", "COMP_CWORD": "2"}),
        ([], {"COMP_WORDS": "sparse-robustness run E", "COMP_CWORD": "2"}),
    ],
)
def test_nothing_slow_is_imported_for_help_version_or_completion(arguments, variables):
    if variables:
        variables = variables | {"_SPARSE_ROBUSTNESS_COMPLETE": "bash_complete"}
    code = (
        "import sys, atexit\n"
        f"atexit.register(lambda: print(*(set(sys.modules) & set({HEAVY})), file=sys.stderr))\n"
        f"from empirical.cli.main import main\nmain({arguments}, prog_name='sparse-robustness')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | variables, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.stdout
    assert done.stderr.strip() == ""


def program_run(*arguments: str, **variables: str) -> subprocess.Popen[bytes]:
    """The program, whose output is read through a pipe."""
    command = [sys.executable, "-m", "empirical", *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, env=os.environ | variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_signs_that_a_terminal_lacks_are_replaced():
    """Dashes of the claims' table, on a terminal that takes ASCII alone."""
    shown = program_run("claims", str(DIGITS), PYTHONIOENCODING="ascii")
    out, err = shown.communicate()
    assert (shown.returncode, err) == (0, b"")
    assert b"inconclusive" in out
    assert b"?" in out


@pytest.mark.parametrize("arguments", [["falsify", "--list"], ["run", "--list"], ["completion", "bash"]])
def test_a_reader_that_has_seen_enough_is_no_error(arguments):
    """As of ``| head``: silence, and the status of a program that a closed pipe ended, not that of 1 or 2."""
    shown = program_run(*arguments)
    assert shown.stdout
    assert shown.stderr
    shown.stdout.close()
    with shown.stderr as errors:
        assert errors.read() == b""
    assert shown.wait() == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device here that is always full")
@pytest.mark.parametrize("arguments", [["run", "--list"], ["falsify", "--list"]])
def test_output_that_cannot_be_written_is_one_line_and_2(arguments):
    with Path("/dev/full").open("wb") as full:
        command = [sys.executable, "-m", "empirical", *arguments]
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "Error: [Errno 28] No space left on device\n")


def test_ctrl_c_is_no_violated_theorem(monkeypatch):
    """Whose status is 1, wherever it comes."""

    def stop(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("empirical.doctor.examine", stop)
    result = CliRunner().invoke(main, ["doctor"])
    assert (result.exit_code, result.stderr) == (130, "Stopped.\n")


def test_what_nobody_foresaw_is_no_violated_theorem(monkeypatch):
    """Python's own status for it is 1."""

    def fail(**_: object) -> None:
        raise ZeroDivisionError("nobody foresaw it")

    monkeypatch.setattr("empirical.doctor.examine", fail)
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 70
    assert result.stderr.startswith("Traceback (most recent call last):\n")
    assert result.stderr.endswith("\nZeroDivisionError: nobody foresaw it\n")
    usage = CliRunner().invoke(main, ["doctor", "--absent"])
    assert usage.exit_code == 2
    assert "Traceback" not in usage.stderr


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="no masks of signals here")
@pytest.mark.parametrize(
    ("arguments", "module", "sent", "status"),
    [
        (["run", "digits-linear", "--out", "never"], "matplotlib.ft2font", "SIGINT", 130),
        (["check", "absent.pt", "--data", "digits"], "scipy.stats", "SIGTERM", 143),
    ],
)
def test_signals_while_modules_are_imported_end_in_order(arguments, module, sent, status, tmp_path):
    """Where C is imported, Python makes an ImportError of an interruption, or loses it and goes on."""
    program = f"""
import os, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            try:
                os.kill(os.getpid(), signal.{sent})
            except KeyboardInterrupt:
                raise ImportError("initialization failed") from None
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
sys.meta_path.insert(0, Finder())
from empirical.cli.main import main
main({arguments!r})
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (status, "Stopped; the same command goes on from here.\n")
    assert not list(tmp_path.iterdir())
