"""What a run's log says of the command that made it."""

import json

import torch

from empirical.provenance import log_command


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
    assert entries[0]["torch"] == torch.__version__
