"""Whoever does the work, the rows are the same; who cannot do it says so in one line."""

import json
import multiprocessing
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from click.testing import CliRunner

from empirical.cli.main import main
from empirical.experiments import chains, conditions, read_experiment
from empirical.experiments.chains import Chain, NetworksLost, Place
from empirical.results import read_table
from empirical.runs.deadline import NEVER, Deadline, OutOfTime
from empirical.runs.gpus import gpu_of_each
from empirical.runs.interrupts import Terminated
from empirical.runs.jobs import Job, fingerprint, steps
from empirical.runs.provenance import commit, package_version
from empirical.runs.run import Part, _work, run_experiments, run_part, total_steps
from empirical.runs.workers import Workers, WorkersLost, spread
from empirical.training.checkpoints import read_tensors
from empirical.training.descent import Descent
from tests.faults.injection import ray_workers
from tests.faults.sweep import CPU, rows, run, tiny
from tests.test_falsify import line_of, soon
from theory.types import InvalidInput

FILE = """
title = "Tiny"
data = "{data}"
conditions = ["dense", "magnitude", "random-retrained"]
sparsities = [0.0, 0.3, 0.5, 0.7, 0.9]
seeds = 1
network = {{ kind = "linear" }}
first = {{ epochs = 2, batch_size = 32 }}
retrain = {{ epochs = 2, batch_size = 32 }}
"""


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A tiny sweep of two seeds, and its rows as one process finds them."""
    folder = tmp_path_factory.mktemp("sweep")
    experiments = tiny(folder, seeds=2)
    run(experiments, folder / "alone")
    return experiments, rows(folder / "alone")


@pytest.fixture
def cluster():
    """A Dask cluster of two worker processes that were started in this working directory."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as found:
        yield found


def children() -> set[int | None]:
    return {child.pid for child in multiprocessing.active_children()}


def kill_one_worker_after(
    units: int, out: Path, workers: Callable[[], Sequence[int | None]]
) -> Callable[[], bool]:
    """Kill one of the workers once so many units are there; what is returned ends that: did it?"""
    killed: list[int] = []
    over = threading.Event()

    def kill() -> None:
        while not killed and not over.wait(0.005):
            if len(list(out.glob("units/*.parquet"))) < units:
                continue
            for pid in workers()[:1]:
                assert pid
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()

    def done() -> bool:
        over.set()
        killer.join()
        return bool(killed)

    return done


def test_a_dask_cluster_finds_the_same_rows_though_a_worker_is_killed(sweep, cluster, tmp_path, monkeypatch):
    """Relative names hold for workers elsewhere, and a killed worker's chain is another one's."""
    experiments, alone = sweep
    data = Path(experiments[0].data)
    (tmp_path / data.name).write_bytes(data.read_bytes())
    monkeypatch.chdir(tmp_path)
    killed = kill_one_worker_after(4, tmp_path / "run", lambda: list(children()))
    workers = Workers(backend="dask", address=cluster.scheduler_address)
    relative = [replace(e, data=data.name) for e in experiments]
    run_experiments(relative, Path("run"), device=CPU, workers=workers)
    assert killed()
    pd.testing.assert_frame_equal(
        rows(tmp_path / "run").drop(columns="settings"), alone.drop(columns="settings"), check_exact=True
    )


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds Ray's workers in /proc")
def test_ray_finds_the_same_rows_though_a_worker_is_killed(sweep, tmp_path):
    pytest.importorskip("ray")
    experiments, alone = sweep
    killed = kill_one_worker_after(4, tmp_path / "run", ray_workers)
    run_experiments(experiments, tmp_path / "run", device=CPU, workers=Workers(2, "ray"))
    assert killed()
    pd.testing.assert_frame_equal(rows(tmp_path / "run"), alone, check_exact=True)


def test_epochs_are_heard_of_from_other_processes_too(sweep, tmp_path):
    """Of epochs, or of attacks where training takes less than a look."""
    long = replace(sweep[0][0], seeds=1, first=replace(sweep[0][0].first, epochs=400))
    told: list[tuple[str, str]] = []
    run_part([long], tmp_path / "run", part=Part(), device=CPU, workers=Workers(2),
             tell=lambda *step: told.append(step))  # fmt: skip
    assert told
    assert all(stage.startswith("linear ") for stage, _ in told), told
    assert all(re.fullmatch(r".*(epoch \d+ of \d+|attacks)", detail) for _, detail in told), told


def test_a_killed_process_is_one_line_and_the_same_command_goes_on(sweep, tmp_path):
    experiments, alone = sweep
    file = tmp_path / "tiny.toml"
    file.write_text(FILE.format(data=experiments[0].data))
    out, result, before = tmp_path / "run", None, children()  # an earlier test's may be on their way out
    while result is None or (result.exit_code == 0 and len(out.name) < 7):  # over before the killer's turn
        out = out.with_name(out.name + "-")
        killed = kill_one_worker_after(1, out, lambda: list(children() - before))
        result = CliRunner().invoke(main, ["run", str(file), "--out", str(out), "--workers", "2"])
        killed()
    assert result.exit_code == 75, result.output
    assert result.stderr.splitlines()[-1] == (
        "Error: a worker process was killed (out of memory?); run the same command again to go on"
    )
    assert "Traceback" not in result.stderr
    assert not children() - before
    part = ["--part", "0/1", "--workers", "1"]  # without a report, whose figures take longer than all else
    again = CliRunner().invoke(main, ["run", str(file), "--out", str(out), *part])
    assert "the same command without --part makes the table" in again.output
    run_experiments([read_experiment(str(file))], out, device=CPU)
    first = alone[alone["seed"] == 0].reset_index(drop=True)
    pd.testing.assert_frame_equal(
        rows(out).drop(columns="settings"), first.drop(columns="settings"), check_exact=True
    )


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="no masks of signals here")
def test_ctrl_c_while_workers_start_is_the_commands_alone(tmp_path):
    """A terminal sends it to all of them; none may answer by a traceback, which they did as they imported."""
    program = """
import os, signal, time
from empirical.runs.workers import Workers, spread
def begun(_):
    return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
with spread(Workers(2)) as each:
    print(*each(begun, range(2)))
    print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))
"""
    (tmp_path / "program.py").write_text(program)
    done = subprocess.run(
        [sys.executable, tmp_path / "program.py"], capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )  # fmt: skip
    assert done.stdout.split() == ["True", "True", "False"]


def test_workers_of_several_threads_are_refused_also_those_that_join_later():
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=0, threads_per_worker=2, processes=False, dashboard_address=None
        ) as cluster,
        spread(Workers(backend="dask", address=cluster.scheduler_address)) as each,
    ):
        cluster.scale(1)
        with pytest.raises(InvalidInput, match="has 2 threads; start workers with --nthreads 1"):
            list(each(abs, [-1]))


def test_a_cluster_without_workers_is_waited_for_and_that_is_said(monkeypatch):
    """Clusters grow with their work, so it is no error; the first worker that comes does what waits."""
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr("empirical.runs.workers._SILENCE", 0.2)
    monkeypatch.setattr("empirical.runs.workers._LOOK", 0.1)
    told: list[str] = []
    with distributed.LocalCluster(
        n_workers=0, threads_per_worker=1, processes=False, dashboard_address=None
    ) as cluster:

        def hear(stage: str, _: str) -> None:
            told.append(stage)
            if len(told) == 3:
                cluster.scale(1)

        there = Workers(backend="dask", address=cluster.scheduler_address)
        with spread(there, tell=hear) as each:
            assert list(each(abs, [-1])) == [1]
            time.sleep(0.5)  # nothing more is said once there is one
    assert told[0] == f"no worker at {cluster.scheduler_address} for 0 s; waiting for one"
    assert 3 <= len(told) <= 5, told


def test_a_ray_without_cores_is_said_to_have_no_worker(monkeypatch):
    """A head node that leaves all work to others."""
    ray = pytest.importorskip("ray")
    monkeypatch.setattr("empirical.runs.workers._SILENCE", 0.2)
    monkeypatch.setattr("empirical.runs.workers._LOOK", 0.1)
    cores, came, told = {"CPU": 0.0}, threading.Event(), list[str]()

    def wait(_: object) -> bool:
        assert came.wait(20)
        return True

    def hear(stage: str, _: str) -> None:
        told.append(stage)
        came.set()

    monkeypatch.setattr(ray, "init", lambda **_: None)
    monkeypatch.setattr(ray, "remote", lambda **_: lambda work: work)
    monkeypatch.setattr("empirical.runs.workers.find_spec", SimpleNamespace(remote=lambda name: name))
    monkeypatch.setattr(ray, "get", wait)
    monkeypatch.setattr(ray, "cluster_resources", lambda: cores)
    with spread(Workers(backend="ray", address="head:6379"), tell=hear):
        pass
    assert told[0] == "no worker at head:6379 for 0 s; waiting for one"


def test_no_more_processes_start_than_there_are_chains(sweep, tmp_path, monkeypatch):
    """One seed with three conditions: a machine with more cores must not start an interpreter for each."""
    seen: list[int] = []

    @contextmanager
    def counted(workers: Workers, **_: object):
        seen.append(workers.count)
        yield map

    monkeypatch.setattr("empirical.runs.run.spread", counted)
    one = replace(sweep[0][0], seeds=1, sparsities=(0.0, 0.5))
    run_part([one], tmp_path / "run", part=Part(), device=CPU, workers=Workers(64))
    assert seen == [3]


@pytest.mark.parametrize("dense_there", [False, True])
def test_past_the_deadline_no_stage_begins_after_another(dense_there, sweep, tmp_path, monkeypatch):
    """Every call gets on, by one job for each worker; chains do not begin where dense networks did."""
    begun: list[list[str]] = []

    def each(work: Callable, jobs: Sequence[Job]) -> list:
        begun.append([job.chain.condition for job in jobs if job.first])
        return [work(job) for job in jobs if job.base and job.deadline == NEVER]

    monkeypatch.setattr("empirical.runs.run.spread", lambda *_, **__: nullcontext(each))
    done = {"part": Part(), "device": CPU, "workers": Workers(2)}
    if dense_there:
        run_part(sweep[0], tmp_path / "run", **done)
        begun.clear()
    with pytest.raises(OutOfTime):
        run_part(sweep[0], tmp_path / "run", deadline=Deadline(0.0), **done)
    assert begun == ([[], ["dense", "magnitude"]] if dense_there else [["base", "base"], []])


def test_an_address_without_a_scheduler_says_what_to_start(monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr("empirical.runs.workers._PATIENCE", 0.5)
    message = "address is 'tcp://127.0.0.1:9', where no scheduler answers .*; start one there"
    with (
        pytest.raises(OSError, match=message),
        spread(Workers(backend="dask", address="tcp://127.0.0.1:9")),
    ):
        pass


@pytest.mark.parametrize("backend", ["loky", "dask", "ray"])
def test_each_worker_has_a_gpu_of_its_own(backend, monkeypatch):
    """By the names that the machine's administrator gave, in a machine without any."""
    pytest.importorskip({"loky": "joblib", "dask": "distributed", "ray": "ray"}[backend])

    def seen(_: int) -> str | None:
        time.sleep(0.2)  # so that no process does all
        return os.environ.get("CUDA_VISIBLE_DEVICES")

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    with spread(Workers(2, backend), cuda=True) as each:
        assert set(each(seen, range(8))) == {"5", "7"}


@pytest.mark.parametrize("backend", ["loky", "dask"])
def test_workers_share_gpus_evenly_and_no_more_than_asked(backend, monkeypatch):
    pytest.importorskip({"loky": "joblib", "dask": "distributed"}[backend])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a, GPU-b")
    assert gpu_of_each(3, share=None) == gpu_of_each(3, share=0.5) == ["GPU-a", "GPU-b", "GPU-a"]
    for share, held in ((1.0, 2), (0.5, 4), (0.3, 6)):
        crowd = Workers(held + 1, backend, gpus=share)
        message = rf"workers is {held + 1}, but with {share:g} GPUs for each, the 2 of .* hold {held};"
        with pytest.raises(InvalidInput, match=message), spread(crowd, cuda=True):
            pass


def test_a_machine_without_gpus_is_told_before_workers_start(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for backend in ("loky", "dask", "ray"):
        with pytest.raises(InvalidInput, match="sees no GPU"), spread(Workers(2, backend), cuda=True):
            pass


def test_workers_without_the_package_are_told(cluster, monkeypatch):
    monkeypatch.setattr("empirical.runs.workers._PACKAGE", "a_package_that_nobody_has")
    there = Workers(backend="dask", address=cluster.scheduler_address)
    with pytest.raises(InvalidInput, match="lacks this package; install sparse-robustness"), spread(there):
        pass


def test_ray_of_this_machine_is_not_another_one(monkeypatch):
    """Whatever runs here, or is named for other programs."""
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    asked: dict[str, object] = {}

    def seen(**where: object) -> None:
        asked.update(where)
        raise ConnectionError("enough")

    monkeypatch.setattr(ray, "init", seen)
    with pytest.raises(OSError, match="enough"), spread(Workers(2, "ray")):
        pass
    assert asked["address"] == "local"


def test_a_ray_that_does_not_start_is_an_error_of_one_line(monkeypatch):
    """What Ray raises on a machine too busy for it is of no class that could be told from a mistake."""
    ray = pytest.importorskip("ray")

    def late(**_: object) -> None:
        raise Exception("The current node timed out during startup.\nMore.")  # noqa: TRY002

    monkeypatch.setattr(ray, "init", late)
    message = "Ray did not start: The current node timed out during startup.$"
    with pytest.raises(OSError, match=message), spread(Workers(2, "ray")):
        pass


def test_a_dask_cluster_without_such_gpus_is_told_at_once():
    """Its tasks would wait for ever; with what is asked for, they are done."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None, resources={"GPU": 0.5}
    ) as cluster:
        there = Workers(backend="dask", address=cluster.scheduler_address, gpus=1)
        with pytest.raises(InvalidInput, match="gpus is 1, but no worker at"), spread(there, cuda=True):
            pass
        with spread(replace(there, gpus=0.5), cuda=True) as each:
            assert list(each(abs, [-3])) == [3]


def test_parts_make_one_run_and_none_does_anothers_work(sweep, tmp_path):
    experiments, alone = sweep
    out, total = tmp_path / "run", total_steps(sweep[0], CPU)
    told: list[tuple[str, str]] = []
    for index, missing in ((1, total // 2), (0, 0)):
        part = Part(index, 2)
        found = run_part(experiments, out, part=part, device=CPU, advance=lambda *unit: told.append(unit))
        assert found == missing
    assert len(told) == total == 30
    made = {path: path.stat().st_mtime_ns for path in out.glob("units/*")}
    run_experiments(experiments, out, device=CPU)
    assert {path: path.stat().st_mtime_ns for path in out.glob("units/*")} == made
    pd.testing.assert_frame_equal(rows(out), alone, check_exact=True)


def test_a_run_goes_on_where_its_data_lie_elsewhere_under_another_title(sweep, tmp_path):
    """On another machine: rows and files keep the names that they began with."""
    (one,), alone = sweep
    out, elsewhere = tmp_path / "run", tmp_path / "elsewhere" / Path(one.data).name
    run_part([one], out, part=Part(0, 2), device=CPU)
    settings = (out / "settings.json").read_text()
    elsewhere.parent.mkdir()
    shutil.copy(one.data, elsewhere)
    moved, heard = replace(one, data=str(elsewhere), title="Mended"), []
    run_experiments([moved], out, device=CPU, advance=lambda *unit: heard.append(unit))
    assert len(heard) == total_steps([one], CPU)
    assert len(list((out / "units").iterdir())) == total_steps([one], CPU)
    assert (out / "settings.json").read_text() == settings
    pd.testing.assert_frame_equal(rows(out), alone, check_exact=True)
    run_experiments([moved], out, device=CPU)
    for other in (replace(moved, eps=0.2), replace(moved, data="digits")):
        with pytest.raises(InvalidInput, match="choose a new folder"):
            run_experiments([other], out, device=CPU)


def test_networks_name_who_trained_them_also_where_another_run_takes_them_over(sweep, tmp_path, monkeypatch):
    """Rows name who measured."""
    one = replace(sweep[0][0], seeds=1, conditions=("magnitude",), sparsities=(0.0, 0.5))
    with monkeypatch.context() as patch:
        patch.setattr("empirical.runs.jobs._COMMIT", "0123456789ab")
        run_part([one], tmp_path / "a", part=Part(), device=CPU)
    other = replace(one, eps=0.2)
    run_experiments([other], tmp_path / "b", device=CPU, networks=tmp_path / "a")
    for out in ("a", "b"):
        for path in (tmp_path / out / "checkpoints").iterdir():
            _, told = read_tensors(path)
            assert told["commit"] == "0123456789ab"
            assert told["version"] == package_version()
            assert told["device"].startswith("cpu")
    measured = read_table(tmp_path / "b" / "results.parquet")["commit"].unique().to_pylist()
    assert measured == [commit()]


def test_a_compact_chain_that_another_command_ends_meanwhile_is_done(sweep, tmp_path, monkeypatch):
    (one,) = sweep[0]
    made = replace(job([replace(one, compact=True)], tmp_path), chain=Chain("magnitude", (0,)))
    for part in ("checkpoints", "units"):
        (tmp_path / part).mkdir()

    def overtaken(bench, place):
        with monkeypatch.context() as patch:
            patch.setattr(chains, "base_networks", base_networks)
            assert len(list(steps(made))) == len(one.sparsities)
        return base_networks(bench, place)

    base_networks = chains.base_networks
    monkeypatch.setattr(chains, "base_networks", overtaken)
    assert list(steps(made)) == []
    assert made.finished()


def test_the_log_says_how_a_command_ended(sweep, tmp_path, monkeypatch):
    file, out = tmp_path / "tiny.toml", tmp_path / "run"
    file.write_text(FILE.format(data=sweep[0][0].data))
    command = ["run", str(file), "--out", str(out), "--workers", "1", "--part", "0/1"]
    ends = ((KeyboardInterrupt(), 130), (Terminated(), 143), (WorkersLost("killed"), 75), (None, 0))
    for error, status in ends:

        def work(*arguments: Any, error: BaseException | None = error) -> tuple:
            if error:
                raise error
            return _work(*arguments)

        monkeypatch.setattr("empirical.runs.run._work", work)
        assert CliRunner().invoke(main, command).exit_code == status
    entries = [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()]
    ended = [entry["ended"] for entry in entries]
    assert ended == ["interrupted", "terminated", "workers were killed", "done"]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's list of children")
def test_sigterm_ends_a_run_its_processes_and_its_log_in_order(sweep, tmp_path):
    """As a scheduler sends it before it kills; to the command alone, as a container's does."""
    file, out = tmp_path / "tiny.toml", tmp_path / "run"
    text = FILE.format(data=sweep[0][0].data)
    file.write_text(text.replace("retrain = { epochs = 2", "retrain = { epochs = 3000"))
    command = [sys.executable, "-m", "empirical", "run", file, "--workers", "2", "--out", out]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(command, env=environment, stdout=-1, stderr=-1, text=True)
    own = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    try:
        while process.poll() is None and not list(out.glob("units/*.parquet")):
            time.sleep(0.01)
        started = own.read_text().split()
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 143, errors
    assert errors.endswith("Stopped; the same command goes on from here.\n")
    assert len(started) >= 2
    assert soon(lambda: not any(map(line_of, started)))
    (entry,) = map(json.loads, (out / "runs.jsonl").read_text().splitlines())
    assert entry["ended"] == "terminated"


def job(experiments, out) -> Job:
    provenance = {"settings": "s", "version": package_version(), "dtype": "float64"}
    return Job(
        experiments[0],
        Chain("base", (0,)),
        Place(out, "tiny", "s", provenance),
        "cpu",
        package_version(),
        fingerprint(experiments[0].data),
    )


def test_a_worker_with_other_data_or_another_version_refuses(sweep, tmp_path):
    good = job(sweep[0], tmp_path)
    (tmp_path / "checkpoints").mkdir()
    for bad, message in (
        (replace(good, data_sha256="0"), r"few\.npz' on .* is not what the command read"),
        (replace(good, version="9.9"), r"worker on .* has sparse-robustness .*, the command 9\.9"),
    ):
        with pytest.raises(InvalidInput, match=message):
            list(steps(bad))
        assert not list((tmp_path / "checkpoints").iterdir())
    list(steps(good))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["tiny-base-0-00.safetensors"]


@pytest.mark.parametrize("workers", [Workers(), Workers(2)], ids=["here", "two processes"])
def test_what_diverges_is_named_when_all_else_is_done_and_in_a_table(workers, sweep, tmp_path):
    (plain,) = sweep[0]
    conditions = ("magnitude", "random", "one-shot")
    wild = replace(plain, conditions=conditions, retrain=replace(plain.retrain, learning_rate=1e38))
    out = tmp_path / "run"
    with pytest.raises(NetworksLost) as raised:
        run_experiments([wild], out, device=CPU, workers=workers)
    for seed in (0, 1):
        named = f"linear, magnitude, sparsity 0.3, seed {seed} diverged at learning_rate 1e+38; "
        assert str(raised.value).count(named) == 1
    assert str(raised.value).endswith(
        "lower it and choose a new folder; whatever does not start from these networks is in "
        f"{out}/incomplete.parquet, for the commands claims and figures"
    )
    assert not re.search("random|one-shot|base", str(raised.value))
    assert not (out / "results.parquet").exists()
    there = read_table(out / "incomplete.parquet").to_pandas()
    networks = there.groupby(["pruning", "seed"], observed=True)["sparsity"].nunique()
    assert networks.to_dict() == {(c, s): 1 if c == "magnitude" else 5 for c in conditions for s in (0, 1)}


def test_a_run_that_lost_networks_ends_with_2_and_is_never_taken_for_finished(sweep, tmp_path, monkeypatch):
    experiments, alone = sweep
    file, out = tmp_path / "tiny.toml", tmp_path / "run"
    file.write_text(FILE.format(data=experiments[0].data))
    command = ["run", str(file), "--out", str(out), "--workers", "1"]
    with monkeypatch.context() as patch:
        poison(patch, lambda seed: seed == 0)
        for call in range(2):
            result = CliRunner().invoke(main, command)
            assert result.exit_code == 2, result.output
            told = result.stderr.splitlines()[-1]
            assert told.startswith("Error: linear, dense before pruning, seed 0 diverged at learning_rate")
            assert told.endswith("lower it and choose a new folder; nothing else is left")
            assert os.listdir(out / "units") == []
            assert len((out / "runs.jsonl").read_text().splitlines()) == 1 + call
    run_experiments([read_experiment(str(file))], out, device=CPU)
    first = alone[alone["seed"] == 0].reset_index(drop=True)
    pd.testing.assert_frame_equal(rows(out).drop(columns="settings"), first.drop(columns="settings"))


def poison(patch: pytest.MonkeyPatch, lost: Callable[[int], bool], *, level: int = 0) -> list[list[int]]:
    """Let networks of some seeds diverge in the training to a level; returns the seeds of all of those."""
    own = {conditions.derived_seed(seed, 1, level): seed for seed in range(9)}
    trained: list[list[int]] = []
    train, finite = conditions.train, Descent.finite

    def watched(*arguments, seeds, **settings):
        if set(seeds) <= own.keys():
            trained.append([own[seed] for seed in seeds])
        return train(*arguments, seeds=seeds, **settings)

    def spoilt(self):
        good = [seed not in own or not lost(own[seed]) for seed in self.seeds]
        return finite(self) & torch.tensor(good)

    patch.setattr(conditions, "train", watched)
    patch.setattr(Descent, "finite", spoilt)
    return trained


def all_seeds_together(patch: pytest.MonkeyPatch) -> None:
    """Train all seeds of an experiment together, as on a GPU."""
    patch.setattr("empirical.runs.run.blocks", lambda experiment, _: [tuple(range(experiment.seeds))])


@pytest.fixture
def together(monkeypatch):
    all_seeds_together(monkeypatch)


@pytest.fixture(scope="module")
def three(sweep, tmp_path_factory):
    """Three sparsities of three seeds, and the accuracy of these networks, of which none diverges."""
    found, out = replace(sweep[0][0], seeds=3, sparsities=(0.0, 0.3, 0.5)), tmp_path_factory.mktemp("three")
    with pytest.MonkeyPatch.context() as patch:
        all_seeds_together(patch)
        run_experiments([found], out, device=CPU)
    return found, measured(out, "results.parquet")


def measured(out: Path, name: str = "incomplete.parquet") -> pd.DataFrame:
    """Clean accuracy of every network."""
    table = read_table(out / name).to_pandas()
    table = table[(table["quantity"] == "accuracy") & (table["method"] == "clean")]
    return table.set_index(["pruning", "seed", "sparsity"])[["value"]].sort_index()


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("workers", [Workers(), Workers(2)], ids=["here", "as if two processes"])
@pytest.mark.usefixtures("together")
def test_networks_trained_with_one_that_diverges_go_on_without_it(
    level, workers, three, tmp_path, monkeypatch
):
    """To the very numbers; a second call trains nothing again but what diverged."""
    monkeypatch.setattr("empirical.runs.run.spread", lambda *_, **__: nullcontext(map))
    (experiment, good), out = three, tmp_path / "run"
    trained = poison(monkeypatch, lambda seed: seed == 1, level=level)
    for call in range(2):
        with pytest.raises(NetworksLost, match="seed 1 diverged") as raised:
            run_experiments([experiment], out, device=CPU, workers=workers)
        assert str(raised.value).count("diverged") == (3 if level else 1)
        found = measured(out)
        lost = good.index[
            (good.index.get_level_values("seed") == 1)
            & (good.index.get_level_values("sparsity") >= experiment.sparsities[level])
        ]
        pd.testing.assert_frame_equal(found, good.drop(lost))
        if call:
            assert trained == [[0, 1, 2]] * (3 if level else 1)
        trained.clear()


@pytest.mark.usefixtures("together")
def test_levels_that_do_not_hang_on_a_lost_one_are_there(sweep, tmp_path, monkeypatch):
    """Of network surgery, which starts from the dense networks at every level."""
    three = replace(sweep[0][0], seeds=3, conditions=("surgery", "magnitude"))
    poison(monkeypatch, lambda seed: seed == 2, level=2)
    poison(monkeypatch, lambda seed: seed == 1, level=3)
    with pytest.raises(NetworksLost):
        run_experiments([three], tmp_path, device=CPU)
    there = measured(tmp_path).reset_index().groupby(["pruning", "seed"], observed=True)["sparsity"]
    assert {key: found for key, found in there.apply(list).items() if len(found) < 5} == {
        ("surgery", 1): [0.0, 0.3, 0.5, 0.9],
        ("surgery", 2): [0.0, 0.3, 0.7, 0.9],
        ("magnitude", 1): [0.0, 0.3, 0.5],
        ("magnitude", 2): [0.0, 0.3],
    }


def test_what_was_lost_comes_whole_from_another_process():
    error = NetworksLost("seed 1 diverged", units=(Path("a"),), left=(0, 2))
    back = pickle.loads(pickle.dumps(error))
    assert (str(back), back.units, back.left) == ("seed 1 diverged", (Path("a"),), (0, 2))


def test_units_of_another_commit_are_told_of(sweep, tmp_path, monkeypatch):
    file, out = tmp_path / "tiny.toml", tmp_path / "run"
    file.write_text(FILE.format(data=sweep[0][0].data))
    heard: list[str] = []

    def stop(stage: str, _: str) -> None:
        heard.append(stage)
        if len(heard) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("empirical.runs.jobs._COMMIT", "0123456789ab")
        with pytest.raises(KeyboardInterrupt):
            run_experiments([read_experiment(str(file))], out, device=CPU, advance=stop)
    command = ["run", str(file), "--out", str(out), "--workers", "1", "--part", "0/1"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    note = f"Note: finished units are of commit 0123456789ab, new ones of {commit()}; every row names its own"
    assert result.stderr.splitlines().count(note) == 1
    with monkeypatch.context() as patch:  # units of one commit
        patch.setattr("empirical.runs.run.commit", lambda: "0123456789ab")
        result = CliRunner().invoke(main, command)
    assert "of commit" in result.stderr
    fresh = CliRunner().invoke(main, [*command[:3], str(tmp_path / "other"), *command[4:]])
    assert "of commit" not in fresh.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backend", "spark"], "'spark' is not one of"),
        (["--address", "tcp://x:1", "--device", "cpu"], "loky starts processes of this machine"),
        (["--address", "tcp://x:1", "--backend", "dask"], "give --device cpu or cuda"),
        (["--address", "x", "--backend", "dask", "--device", "cpu", "--workers", "2"], "has its own; leave"),
        (
            ["--address", "x", "--backend", "dask", "--device", "cpu"],
            "address is 'x'; give that",
        ),
        (["--address", "foo://x:1", "--backend", "dask", "--device", "cpu"], "address is 'foo://x:1'; give"),
        (["--workers", "0"], "workers is 0"),
        (["--gpus", "0.5", "--device", "cpu"], "gpus is 0.5, but device is cpu"),
        (["--part", "3"], "part is '3'; give I/N"),
        (["--part", "2/2"], "part is 2/2"),
    ],
)
def test_bad_usage_is_one_line_and_2(arguments, message, tmp_path):
    out = tmp_path / "run"
    result = CliRunner().invoke(main, ["run", "digits-linear", "--out", str(out), *arguments])
    assert result.exit_code == 2
    assert message in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.output
    assert not out.exists()


@pytest.mark.parametrize(("backend", "package"), [("dask", "distributed"), ("ray", "ray")])
def test_a_missing_package_names_its_extra(backend, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    message = rf"backend is '{backend}', whose package is missing .*'sparse-robustness\[{backend}\]'"
    with pytest.raises(InvalidInput, match=message), spread(Workers(2, backend)):
        pass
