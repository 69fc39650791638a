"""What a run's log says of the command that made it."""

import json

import pytest
import torch

from empirical.runs import provenance
from empirical.runs.provenance import log_command


def test_the_command_is_logged_without_this_machines_folders(tmp_path, monkeypatch):
    out = tmp_path / "E3"
    arguments = ["run", "E3", "--out", str(out), "--data", "some folder/x.npz"]
    arguments += ["--table", "s3://key:secret@bucket/deep/E3.parquet", "--address", "tcp://host:8786"]
    monkeypatch.setattr("sys.argv", ["/opt/bin/sparse-robustness", *arguments])
    for workers in (1, 2):
        log_command(tmp_path, seconds=1.26, workers=workers, device=torch.device("cpu"))
    entries = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert [entry["workers"] for entry in entries] == [1, 2]
    assert entries[0]["command"] == (
        "sparse-robustness run E3 --out E3 --data 'some folder/x.npz' --table E3.parquet "
        "--address tcp://host:8786"
    )
    assert entries[0]["seconds"] == 1.3
    assert entries[0]["ended"] == "done"
    assert entries[0]["torch"] == torch.__version__


@pytest.mark.parametrize(
    ("argument", "kept"),
    [
        ("--out=/home/me/E3", "--out=E3"),
        ("--out=s3://key:secret@bucket/deep/E3", "--out=E3"),
        ("--out=results/E3", "--out=results/E3"),
        ("tcp://me:secret@host:8786", "tcp://host:8786"),
        ("--address=tcp://me:sec/r@t@host:8786", "--address=tcp://host:8786"),
        ("s3://key:secret@bucket", "s3://bucket"),
        ("simplecache::s3://key:secret@bucket/deep/E3", "E3"),
        ("--sparsities=0,0.5", "--sparsities=0,0.5"),
    ],
)
def test_neither_folders_nor_passwords_are_logged(argument, kept, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["sparse-robustness", "run", argument])
    log_command(tmp_path, seconds=1, workers=1, device=torch.device("cpu"))
    (entry,) = map(json.loads, (tmp_path / "runs.jsonl").read_text().splitlines())
    assert entry["command"] == f"sparse-robustness run {kept}"


def test_a_containers_share_of_the_processor_counts(monkeypatch):
    monkeypatch.setattr("joblib.externals.loky.backend.context._cpu_count_cgroup", lambda _: 1)
    assert provenance.cores() == 1


def test_the_version_is_that_of_the_code_in_memory(monkeypatch):
    """Another one that is installed under a worker that lives on is not what it computes with."""
    before = provenance.package_version()
    monkeypatch.setattr(provenance, "version", lambda _: "9.9")
    assert provenance.package_version() == before
