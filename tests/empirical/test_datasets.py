"""Data come in as described, or not at all."""

import math
import zipfile
from pathlib import Path

import numpy as np
import pytest

from empirical.datasets import Dataset, load
from theory.types import InvalidInput


def arrays(**changes: np.ndarray) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    good = {
        "x_train": rng.random((6, 4)),
        "y_train": np.array([0, 1, 2, 0, 1, 2]),
        "x_test": rng.random((3, 4)),
        "y_test": np.array([0, 1, 2]),
    }
    return good | changes


def save(path: Path, content: dict[str, np.ndarray], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, value in content.items():
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, value)


def test_digits_are_stratified_and_in_the_box():
    digits = load("digits")
    assert digits.x_train.shape == (1437, 64)
    assert digits.x_test.shape == (360, 64)
    assert digits.classes == 10
    assert (digits.x_train.min(), digits.x_train.max()) == (0.0, 1.0)
    shares = [np.bincount(y) / len(y) for y in (digits.y_train, digits.y_test)]
    assert np.abs(shares[0] - shares[1]).max() < 0.005
    assert np.array_equal(load("digits").x_test, digits.x_test)


def test_diameter_of_the_box():
    digits = load("digits")
    assert digits.diameter(2) == 8.0
    assert digits.diameter(math.inf) == 1.0


def test_pair_relabels():
    pair = load("digits").pair(1, 7)
    assert pair.classes == 2
    assert pair.name == "digits:1v7"
    digits = load("digits")
    assert np.array_equal(pair.x_test[pair.y_test == 1], digits.x_test[digits.y_test == 7])


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_npz_files_of_images(tmp_path, compression):
    rng = np.random.default_rng(0)
    images = arrays(
        x_train=rng.integers(0, 256, (6, 2, 2), dtype=np.uint8),
        x_test=rng.integers(0, 256, (3, 2, 2), dtype=np.uint8),
    )
    path = tmp_path / "mine.npz"
    save(path, images, compression)
    data = load(str(path))
    assert data.name == "mine"
    assert data.classes == 3
    assert np.array_equal(data.x_test, images["x_test"].reshape(3, 4) / 255)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": np.full((6, 4), np.nan)}, "x_train.* is nan"),
        ({"x_train": np.full((6, 4), np.inf)}, "x_train.* is inf"),
        ({"x_train": np.full((6, 4), 2.0)}, r"x_train spans \[2, 2\]; scale"),
        ({"x_test": np.ones((3, 5))}, "x_test has 5 features; x_train has 4"),
        ({"x_train": np.ones(6)}, "x_train has shape"),
        ({"x_train": np.ones((0, 4))}, "x_train has shape"),
        ({"y_train": np.array([0, 1])}, "y_train has shape"),
        ({"y_train": np.array([0.0, 1.0, 2.0, 0.0, 1.0, 2.0])}, "labels must be integers"),
        ({"y_test": np.array([0, 1, 3])}, r"y_test\[2\] is 3; labels must lie in \[0, 3\)"),
        ({"y_train": np.array([0, -1, 2, 0, 1, 2])}, r"y_train\[1\] is -1"),
        ({"y_train": np.array([0, 10**12, 2, 0, 1, 2])}, r"y_train\[1\] is 1000000000000"),
        ({"y_train": np.array(["a", "b", "c", "a", "b", "c"])}, "labels must be integers"),
        ({"y_train": np.array([0, 1, 2, 0, 1, np.nan])}, "labels must be integers"),
        ({"x_train": np.full((6, 4), "0.5")}, "x_train is not a numeric array"),
        ({"x_train": np.full((6, 4), 0.5 + 1j)}, "x_train is not a numeric array"),
        ({"y_train": np.ones(6, int), "y_test": np.ones(3, int)}, "y_train holds only class 1"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_arrays_are_named(tmp_path, changes, message):
    save(tmp_path / "bad.npz", arrays(**changes))
    with pytest.raises(InvalidInput, match=message):
        load(str(tmp_path / "bad.npz"))


def test_bad_names_and_files_are_named(tmp_path):
    with pytest.raises(InvalidInput, match="data is 'mnits'; choose"):
        load("mnits")
    with pytest.raises(InvalidInput, match="no such file"):
        load(str(tmp_path / "none.npz"))
    damaged = tmp_path / "damaged.npz"
    damaged.write_bytes(b"PK\x03\x04 not really a zip")
    with pytest.raises(InvalidInput, match="cannot be read"):
        load(str(damaged))
    np.savez(tmp_path / "part.npz", x_train=np.ones((2, 2)))
    with pytest.raises(InvalidInput, match="lacks y_train, x_test, y_test"):
        load(str(tmp_path / "part.npz"))
    whole = tmp_path / "whole.npz"
    save(whole, arrays())
    whole.write_bytes(whole.read_bytes()[:-200])
    with pytest.raises(InvalidInput, match="cannot be read"):
        load(str(whole))


@pytest.mark.usefixtures("unchecked")
def test_single_arrays_and_corrupt_bytes_are_named(tmp_path):
    with (tmp_path / "one.npz").open("wb") as file:
        np.save(file, np.ones(3))
    with pytest.raises(InvalidInput, match="holds a single array"):
        load(str(tmp_path / "one.npz"))
    path = tmp_path / "flipped.npz"
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA):
        save(path, arrays(x_train=np.random.default_rng(0).random((6, 400)) > 0.5), compression)
        good = path.read_bytes()
        for place in range(60, len(good), 97):
            path.write_bytes(good[:place] + bytes([good[place] ^ 0xFF]) + good[place + 1 :])
            try:
                load(str(path))
            except InvalidInput:
                continue


def test_pickled_objects_are_refused(tmp_path):
    save(tmp_path / "code.npz", arrays(y_train=np.array([0, 1, 2, 0, 1, None], dtype=object)))
    with pytest.raises(InvalidInput, match="cannot be read"):
        load(str(tmp_path / "code.npz"))


def test_bad_pairs_are_named():
    digits = load("digits")
    with pytest.raises(InvalidInput, match="two different classes"):
        digits.pair(3, 3)
    with pytest.raises(InvalidInput, match="class 12"):
        digits.pair(1, 12)


def test_dataset_is_checked_without_a_file():
    with pytest.raises(InvalidInput, match="y_train holds only class 0"):
        Dataset("one", np.zeros((2, 1)), np.zeros(2, int), np.zeros((1, 1)), np.zeros(1, int), classes=2)
