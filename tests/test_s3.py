"""A bucket of a server that speaks S3, which several processes share."""

import pandas as pd
import pytest

from empirical.runs.locations import locate, names
from empirical.runs.run import run_experiments
from empirical.runs.workers import Workers
from tests.faults.sweep import CPU, rows, run, tinier
from theory.types import InvalidInput

pytest.importorskip("s3fs")
moto = pytest.importorskip("moto.server")


@pytest.fixture(scope="module")
def client():
    """A server in this process, found by the environment as any other is; it has one bucket."""
    boto3 = pytest.importorskip("boto3")
    with pytest.MonkeyPatch.context() as patch:
        server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        patch.setenv("AWS_ENDPOINT_URL_S3", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "anyone")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "anything")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        found = boto3.client("s3")
        found.create_bucket(Bucket="results")
        yield found
        server.stop()


def test_processes_share_a_bucket_and_find_the_rows_of_one(client, tmp_path):
    experiments = tinier(tmp_path)
    run(experiments, tmp_path / "alone")
    out = locate("s3://results/sweep", argument="out")
    outcome = run_experiments(experiments, out, device=CPU, workers=Workers(2))
    assert str(outcome.path) == "s3://results/sweep/results.parquet"
    pd.testing.assert_frame_equal(rows(out), rows(tmp_path / "alone"), check_exact=True)
    found = {item["Key"]: item["ETag"] for item in client.list_objects_v2(Bucket="results")["Contents"]}
    alone = {path.relative_to(tmp_path / "alone") for path in (tmp_path / "alone").rglob("*.*")}
    assert set(found) == {f"sweep/{path}" for path in alone}
    (out / "results.parquet").unlink()
    run(experiments, out)
    pd.testing.assert_frame_equal(rows(out), rows(tmp_path / "alone"), check_exact=True)
    again = client.list_objects_v2(Bucket="results")["Contents"]
    assert {item["Key"]: item["ETag"] for item in again} == found
    assert names(out) == {"settings.json", "units", "checkpoints", "results.parquet"}


@pytest.mark.parametrize(
    "looks",
    [lambda folder: "a" in names(folder), lambda folder: (folder / "a").is_file()],
    ids=["names", "is_file"],
)
def test_what_another_process_has_put_or_deleted_since_is_seen(client, looks):
    folder = locate("s3://results/seen", argument="out") / "units"
    for there in (False, True, False):
        names(folder)
        if there:
            client.put_object(Bucket="results", Key="seen/units/a", Body=b"1")
        else:
            client.delete_object(Bucket="results", Key="seen/units/a")
        assert looks(folder) == there


def test_a_bucket_that_is_not_there_is_not_made(client, tmp_path):
    out = locate("s3://resulst/sweep", argument="out")
    with pytest.raises(InvalidInput, match=r"out is s3://resulst/sweep, .*bucket does not exist"):
        run(tinier(tmp_path), out)
    assert [bucket["Name"] for bucket in client.list_buckets()["Buckets"]] == ["results"]


def test_a_bucket_must_be_named(client):
    with pytest.raises(InvalidInput, match=r"out is 's3://', which names no bucket; give one such as s3://"):
        locate("s3://", argument="out")
