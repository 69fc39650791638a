"""What doctor says of an installation, and that its self-check sees a broken one."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import empirical.comparison
import empirical.measurement
from empirical import doctor
from empirical.cli.main import main
from theory import linear


def invoke(*arguments: str):
    return CliRunner().invoke(main, ["doctor", *arguments])


def named(findings: list[doctor.Finding], name: str) -> doctor.Finding:
    (found,) = (finding for finding in findings if finding.name == name)
    return found


@pytest.fixture(autouse=True)
def _no_data(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSE_ROBUSTNESS_DATA", str(tmp_path / "data"))
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)


def test_a_sound_installation_exits_0_and_says_what_it_found(tmp_path):
    result = invoke("--workers", "1", "--out", str(tmp_path / "results"))
    assert result.exit_code == 0, result.output
    sections = [block.splitlines()[0] for block in result.output.split("\n\n")]
    assert sections == ["versions", "devices", "threads", "data", "extras", "results", "self-check"]
    assert f"  numpy              {np.__version__}\n" in result.output
    assert f"{tmp_path / 'results'} can be written" in result.output
    assert not [line for line in result.output.splitlines() if line.startswith(("X", "!"))]


def test_json_is_the_same_findings_as_objects():
    result = invoke("--json")
    assert result.exit_code == 0
    findings = [doctor.Finding(**entry) for entry in json.loads(result.output)]
    assert {finding.section for finding in findings} >= {"versions", "devices", "data", "self-check"}
    cases = named(findings, "theorems").value
    assert cases.startswith("hold in ")
    assert int(cases.split()[2]) > 500


def test_the_self_check_measures_what_it_says():
    identities, attack, theorems = doctor.self_check()
    assert float(identities.value.split()[-1]) < 1e-12
    assert 0 < float(attack.value.split()[-1]) < empirical.comparison.ATTACK_SLACK
    assert theorems.state == "ok"


def _overstated(*arguments, **options):
    """A measurer whose radii are a thousandth too long."""
    found = _measure(*arguments, **options)
    return replace(found, radius={key: value * 1.001 for key, value in found.radius.items()})


_measure = empirical.measurement.measure


@pytest.mark.parametrize(
    ("module", "name", "broken", "said"),
    [
        (empirical.measurement, "measure", _overstated, "linear radius"),
        (linear, "radius", lambda clf, x, y, *, p: np.zeros(len(y)), "binary mean radius"),
        (linear, "binary_mean_radius", lambda clf, stats, *, p: 0.1, "binary mean radius"),
        (linear, "jensen_bound", lambda clf, stats, *, p: 0.0, "Jensen"),
    ],
)
def test_a_broken_attack_identity_or_bound_exits_1(monkeypatch, module, name, broken, said):
    monkeypatch.setattr(module, name, broken)
    result = invoke()
    assert result.exit_code == 1
    (line,) = (line for line in result.output.splitlines() if line.startswith("X"))
    assert "violated" in line
    assert said in line


def test_a_self_check_that_cannot_run_exits_1_without_a_traceback(monkeypatch):
    def broken(*arguments, **options):
        raise OSError("libtorch.so: cannot open\nsecond line")

    monkeypatch.setattr(empirical.measurement, "measure", broken)
    result = invoke()
    assert result.exit_code == 1
    assert "OSError: libtorch.so: cannot open\n" in result.output
    assert "second line" not in result.output


@pytest.mark.parametrize(
    ("value", "workers", "state", "said"),
    [
        ("1", 4, "ok", "1"),
        ("4", 1, "ok", "4"),
        ("2", 4, "warning", "8 threads on 4 cores"),
        ("8", 1, "warning", "8 threads on 4 cores"),
        ("4,2", 2, "warning", "8 threads on 4 cores"),
        ("many", 1, "warning", "no number"),
        ("0", 1, "warning", "no number"),
    ],
)
def test_threads_that_exceed_the_cores_are_a_warning(value, workers, state, said):
    findings = doctor.threads({"OMP_NUM_THREADS": value}, workers=workers, available=4)
    found = named(findings, "OMP_NUM_THREADS")
    assert found.state == state
    assert said in found.value
    assert bool(found.advice) == (state == "warning")


def test_the_advice_on_threads_is_no_warning_when_followed():
    (_, found) = doctor.threads({"OMP_NUM_THREADS": "2"}, workers=4, available=4)
    assert found.advice == "export OMP_NUM_THREADS=1, or give --workers 2"
    assert {f.state for f in doctor.threads({"OMP_NUM_THREADS": "1"}, workers=4, available=4)} == {"ok"}
    assert {f.state for f in doctor.threads({"OMP_NUM_THREADS": "2"}, workers=2, available=4)} == {"ok"}


def test_more_workers_than_cores_are_a_warning():
    assert named(doctor.threads({}, workers=5, available=4), "cores").advice == "give --workers 4"
    assert invoke("--workers", "0").exit_code == 2


def test_data_sets_are_missing_unvouched_right_or_wrong(tmp_path):
    folder = tmp_path / "data"
    missing = named(doctor.data_sets(), "mnist")
    assert missing.state == "note"
    assert missing.value == "missing"
    assert "mnist.npz" in missing.advice
    folder.mkdir()
    file = folder / "mnist.npz"
    file.write_bytes(b"content")
    assert named(doctor.data_sets(), "mnist").value == "1 file, 1 without checksum"
    sums = folder / "SHA256SUMS"
    sums.write_text(f"{hashlib.sha256(b'content').hexdigest()}  mnist.npz\n")
    assert named(doctor.data_sets(), "mnist") == doctor.Finding("data", "mnist", "1 file, checksums right")
    file.write_bytes(b"changed")
    wrong = named(doctor.data_sets(), "mnist")
    assert wrong.state == "warning"
    assert "SHA-256" in wrong.value
    assert invoke().exit_code == 0  # a warning: the package computes right


def test_half_a_data_set_is_a_warning(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cifar10_train_0.npz").write_bytes(b"")
    assert named(doctor.data_sets(), "cifar10").state == "warning"


def test_a_folder_that_cannot_be_written(read_only, tmp_path):
    read_only(tmp_path)
    assert doctor.writing(tmp_path / "results").state == "warning"


def test_a_folder_where_nothing_can_be_written():
    found = doctor.writing(Path("/proc/results"))
    assert found.state == "warning"
    assert "--out" in found.advice


def test_missing_packages_are_a_failure_and_missing_extras_a_note(monkeypatch):
    monkeypatch.setattr(doctor, "_installed", lambda name: name not in ("scipy", "pytest"))
    assert named(doctor.versions(), "scipy").state == "failed"
    assert named(doctor.versions(), "numpy").state == "ok"
    dev = named(doctor.extras(), "dev")
    assert (dev.state, dev.value) == ("note", "without pytest")
    assert dev.advice == "pip install 'sparse-robustness[dev]'"
