"""MNIST, Fashion-MNIST and CIFAR-10 by name: from a folder, from OpenML, or an error that says what to do."""

import http.client
import os
import re
import sys
import urllib.error
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
import torch
from click.testing import CliRunner

from empirical.cli.main import main
from empirical.data import named
from empirical.data.named import NAMED, Named, folder
from empirical.datasets import load, load_test
from tests.empirical.npz_files import arrays, save
from theory.types import InvalidInput

REAL = Path(os.environ.get("SPARSE_ROBUSTNESS_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
TINY = Named("mnist_784", 1, (1, 28, 28), 20, 10)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty folder for named data."""
    monkeypatch.setenv("SPARSE_ROBUSTNESS_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def openml(monkeypatch):
    """OpenML with a table of 30 images; counts how often it is asked."""
    calls: list[str] = []
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (30, 784)).astype(np.float64)
    y = np.array([str(k % 10) for k in range(30)], dtype=object)

    def fetch(name, *, version, data_home, as_frame, return_X_y, parser, n_retries):  # noqa: N803
        assert (version, as_frame, return_X_y) == (1, False, True)
        calls.append(name)
        return x, y

    monkeypatch.setattr(sklearn.datasets, "fetch_openml", fetch)
    monkeypatch.setitem(named.NAMED, "mnist", TINY)
    return calls, x, y


def test_openml_is_asked_once(here, openml, monkeypatch):
    calls, x, y = openml
    data = load("mnist")
    assert (data.name, data.shape, data.classes) == ("mnist", (1, 28, 28), 10)
    assert np.array_equal(data.x_train, (x[:20] / 255).astype(np.float32))
    assert np.array_equal(data.x_test, x[20:] / 255)
    assert np.array_equal(data.y_test, y[20:].astype(int))
    assert np.array_equal(load_test("mnist").x.reshape(10, 784), data.x_test)
    assert calls == ["mnist_784"]
    assert sorted(path.name for path in here.iterdir()) == ["mnist.npz"]
    monkeypatch.setattr(sklearn.datasets, "fetch_openml", None)
    assert len(load("mnist").x_train) == 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x[:29], y[:29]), r"table of shape \(29, 784\)"),
        (lambda x, y: (x[:, :783], y), "table of shape"),
        (lambda x, y: (x / 2, y), "table of shape"),
        (lambda x, y: (x - 1, y), "table of shape"),
        (lambda x, y: (np.where(x == x.max(), np.nan, x), y), "table of shape"),
        (lambda x, y: (x, np.where(y == "9", "10", y)), "labels are not those"),
        (lambda x, y: (x, np.where(y == "9", "nine", y)), "cannot be had from OpenML"),
    ],
)
def test_another_table_is_refused_and_not_kept(here, openml, monkeypatch, change, message):
    _, x, y = openml
    monkeypatch.setattr(sklearn.datasets, "fetch_openml", lambda *_, **__: change(x, y))
    with pytest.raises(InvalidInput, match=message):
        load("mnist")
    assert not list(here.iterdir())


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize(
    "failure",
    [
        urllib.error.URLError("no route"),
        TimeoutError("late"),
        ValueError("Dataset not found"),
        http.client.IncompleteRead(b"half"),
        EOFError(),
        zlib.error("invalid block"),
        RuntimeError("a table\nof another format"),
    ],
)
def test_without_a_network_the_error_says_where_to_put_what(here, monkeypatch, name, failure):
    def fetch(*_, **__):
        warnings.warn("Retrying...", stacklevel=1)
        raise failure

    monkeypatch.setattr(sklearn.datasets, "fetch_openml", fetch)
    with pytest.raises(InvalidInput) as caught:
        load(name)
    said = str(caught.value)
    assert f"put {name}.npz there with x_train, y_train, x_test and y_test" in said
    assert str(here) in said
    assert "\n" not in said


@pytest.mark.parametrize("command", ["verify", "run digits-linear", "bounds {net}", "measure {net}"])
def test_commands_say_so_in_one_line(here, tmp_path, monkeypatch, command):
    def fetch(*_, **__):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(sklearn.datasets, "fetch_openml", fetch)
    torch.save(torch.nn.Sequential(torch.nn.Linear(3072, 10)).state_dict(), tmp_path / "net.pt")
    arguments = command.format(net=tmp_path / "net.pt").split()
    out = tmp_path / "out"
    result = CliRunner().invoke(main, [*arguments, "--data", "cifar10", "--out", str(out)])
    assert result.exit_code == 2
    said = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(said) == 1
    assert "put cifar10.npz there" in said[0]
    assert "Traceback" not in result.output


def test_networks_are_bounded_on_named_images(here, tmp_path):
    here.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (12, 28, 28), dtype=np.uint8)
    labels = np.arange(12) % 10
    save(here / "mnist.npz", {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels})
    torch.manual_seed(0)
    torch.save(torch.nn.Sequential(torch.nn.Linear(784, 10)).state_dict(), tmp_path / "net.pt")
    given = ["--data", "mnist", "--examples", "4", "--p", "inf", "--out", str(tmp_path / "out")]
    for shape in ([], ["--shape", "784"]):
        result = CliRunner().invoke(main, ["bounds", str(tmp_path / "net.pt"), *given, *shape])
        assert result.exit_code == 0, result.output


def test_openmls_own_client_fails_in_the_same_words(here, monkeypatch):
    """fetch_openml itself, where no address can be reached."""

    def unreachable(*_, **__):
        raise urllib.error.URLError("unreachable")

    monkeypatch.setattr("urllib.request.OpenerDirector.open", unreachable)
    with pytest.raises(InvalidInput, match="put cifar10.npz there"):
        load("cifar10")


def test_a_folder_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPARSE_ROBUSTNESS_DATA", str(tmp_path / "file"))
    with pytest.raises(InvalidInput, match="data 'mnist' is not in"):
        load("mnist")


@pytest.mark.parametrize("stored", [(6, 784), (6, 28, 28), (6, 1, 28, 28), (6, 28, 28, 1)])
def test_files_go_before_openml_however_images_are_stored(here, monkeypatch, stored):
    monkeypatch.setattr(sklearn.datasets, "fetch_openml", None)
    here.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (6, 784), dtype=np.uint8)
    test = pixels[:3].reshape(3, *stored[1:])
    save(here / "fashion-mnist.npz", arrays(x_train=pixels.reshape(stored), x_test=test))
    data = load("fashion-mnist")
    assert (data.name, data.shape) == ("fashion-mnist", (1, 28, 28))
    assert np.array_equal(data.x_test, pixels[:3] / 255)
    assert load_test("fashion-mnist").x.shape == (3, 1, 28, 28)


@pytest.mark.parametrize("stored", ["flat", "channels first", "channels first, flat", "channels last"])
def test_colours_come_first(here, stored):
    here.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)
    kept = {
        "flat": images.reshape(4, -1),
        "channels first": images,
        "channels first, flat": images.reshape(4, 3, 1024),
        "channels last": images.transpose(0, 2, 3, 1),
    }[stored]
    for part in ("train_0", "train_1", "test"):
        save(here / f"cifar10_{part}.npz", {"x": kept, "y": np.array([0, 1, 2, 9], np.uint8)})
    data = load("cifar10")
    assert data.shape == (3, 32, 32)
    assert data.x_train.shape == (8, 3072)
    assert np.array_equal(data.x_test, images.reshape(4, -1) / 255)
    assert np.array_equal(load_test("cifar10").x, images / 255)


def test_test_examples_alone_suffice_where_no_others_are_needed(here):
    here.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)
    save(here / "cifar10_test.npz", {"x": images, "y": np.array([0, 1, 2, 9], np.uint8)})
    assert np.array_equal(load_test("cifar10").x, images / 255)
    with pytest.raises(InvalidInput, match=r"has no file \*_train\*.npz"):
        load("cifar10")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("mnist", (8, 8)),
        ("mnist", (14, 56)),
        ("mnist", ()),
        ("cifar10", (1024, 3)),
        ("cifar10", (32, 96)),
        ("cifar10", (32, 3, 32)),
        ("cifar10", (64, 48)),
    ],
)
def test_images_of_another_size_or_order_are_refused(here, name, shape):
    """Whatever reshaping would make of as many numbers."""
    here.mkdir()
    save(here / f"{name}.npz", arrays(x_train=np.zeros((6, *shape)), x_test=np.zeros((3, *shape))))
    told = re.escape(f"data {name!r} has x of shape {(6, *shape)}; store it as (examples, ")
    with pytest.raises(InvalidInput, match=told):
        load(name)


@pytest.mark.parametrize(
    ("platform", "variable", "default"),
    [
        ("linux", "XDG_CACHE_HOME", ".cache"),
        ("win32", "LOCALAPPDATA", "AppData/Local"),
        ("darwin", None, "Library/Caches"),
    ],
)
def test_folder_is_the_platforms_cache(tmp_path, monkeypatch, platform, variable, default):
    monkeypatch.delenv("SPARSE_ROBUSTNESS_DATA", raising=False)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    if variable:
        monkeypatch.setenv(variable, str(tmp_path / "elsewhere"))
        assert folder() == tmp_path / "elsewhere" / "sparse-robustness"
        monkeypatch.delenv(variable)
    assert folder() == tmp_path / default / "sparse-robustness"


def test_real_mnist(monkeypatch):
    if not (REAL / "mnist.npz").is_file():
        pytest.skip(f"mnist.npz is not in {REAL.name}")
    monkeypatch.setenv("SPARSE_ROBUSTNESS_DATA", str(REAL))
    data = load("mnist")
    assert (data.x_train.shape, data.x_test.shape, data.shape) == ((60_000, 784), (10_000, 784), (1, 28, 28))
    assert data.y_train[:5].tolist() == [5, 0, 4, 1, 9]
    assert data.y_test[:5].tolist() == [7, 2, 1, 0, 4]
    assert data.x_train.mean() == pytest.approx(0.1307, abs=1e-4)
    assert data.x_train.std() == pytest.approx(0.3081, abs=1e-4)


def test_real_cifar10(monkeypatch):
    """Its test images alone: all of them take half a minute to decompress."""
    if not (REAL / "cifar10_test.npz").is_file():
        pytest.skip(f"cifar10_test.npz is not in {REAL.name}")
    monkeypatch.setenv("SPARSE_ROBUSTNESS_DATA", str(REAL))
    data = load_test("cifar10")
    assert data.x.shape == (10_000, 3, 32, 32)
    assert np.bincount(data.y).tolist() == [1000] * 10
    assert data.y[:5].tolist() == [3, 8, 8, 0, 6]
    assert data.x.mean((0, 2, 3)) == pytest.approx([0.494, 0.485, 0.450], abs=1e-3)
    rows = np.abs(np.diff(data.x[:100], axis=2)).mean()
    assert rows < 0.1  # neighbouring pixels are alike, which they are not if channels are mixed up
