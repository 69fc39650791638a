"""Data come in as described, or not at all."""

import math
import zipfile

import numpy as np
import pytest

from empirical.datasets import Dataset, load, load_test
from tests.empirical.npz_files import arrays, save
from theory.types import InvalidInput


def test_digits_are_stratified_and_in_the_box():
    digits = load("digits")
    assert digits.x_train.shape == (1437, 64)
    assert digits.x_test.shape == (360, 64)
    assert digits.classes == 10
    assert (digits.x_train.min(), digits.x_train.max()) == (0.0, 1.0)
    shares = [np.bincount(y) / len(y) for y in (digits.y_train, digits.y_test)]
    assert np.abs(shares[0] - shares[1]).max() < 0.005
    assert np.array_equal(load("digits").x_test, digits.x_test)


def test_nobody_changes_a_data_set_that_is_kept(tmp_path):
    save(tmp_path / "mine.npz", arrays())
    data = load(str(tmp_path / "mine.npz"))
    for name in ("x_train", "y_train", "x_test", "y_test"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(data, name)[:1] = 1


@pytest.mark.parametrize("shape", [(1, 2, 2), (2, 2), (4,)])
def test_layouts_that_say_the_same_go_together(tmp_path, shape):
    images = arrays()
    images["x_test"] = images["x_test"].reshape(-1, *shape)
    images["x_train"] = images["x_train"].reshape(-1, 2, 2)
    save(tmp_path / "mine.npz", images)
    assert np.array_equal(load(str(tmp_path / "mine.npz")).x_test, images["x_test"].reshape(3, 4))


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
        (
            {"x_train": np.ones((6, 4, 4, 3)), "x_test": np.ones((3, 3, 4, 4))},
            r"x_test of .*bad.npz has examples of shape \(3, 4, 4\), x_train of shape \(4, 4, 3\); store",
        ),
        ({"x_train": np.ones(6)}, "x_train has shape"),
        ({"x_train": np.ones((0, 4))}, "x_train has shape"),
        ({"y_train": np.array([0, 1])}, "y_train has shape"),
        ({"y_train": np.array([0.0, 1.0, 2.0, 0.0, 1.0, 2.0])}, "labels must be integers"),
        ({"y_test": np.array([0, 1, 3])}, "y_test has class 3, of which y_train has no example"),
        ({"y_train": np.array([0, -1, 2, 0, 1, 2])}, r"y_train\[1\] is -1"),
        (
            {"y_train": np.array([0, 10**12, 2, 0, 1, 2])},
            "y_train has labels from 0 to 1000000000000",
        ),
        ({"y_train": np.array(["a", "b", "c", "a", "b", "c"])}, "labels must be integers"),
        ({"y_train": np.array([0, 1, 2, 0, 1, np.nan])}, "labels must be integers"),
        ({"x_train": np.full((6, 4), "0.5")}, "x_train is not a numeric array"),
        ({"x_train": np.full((6, 4), 0.5 + 1j)}, "x_train is not a numeric array"),
        ({"y_train": np.zeros(6, int), "y_test": np.zeros(3, int)}, "y_train holds only class 0"),
        ({"y_train": np.ones(6, int)}, "y_train has labels from 1 to 1 for 6 examples; number the classes"),
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


def test_training_is_float32_and_measuring_float64():
    digits = load("digits")
    assert (digits.x_train.dtype, digits.x_test.dtype) == (np.float32, np.float64)
    every = np.arange(256, dtype=np.uint8)
    assert np.array_equal((every / 255.0).astype(np.float32), every.astype(np.float32) / np.float32(255))


def test_examples_are_copied_unless_nobody_can_write_to_them():
    x, y = np.linspace(0, 1, 6).reshape(3, 2), np.array([0, 1, 0])
    data = Dataset("d", x, y, x, y, classes=2)
    x[:] = 0.5
    assert data.x_test[2, 1] == 1.0
    assert not data.x_test.flags.writeable
    assert np.shares_memory(data.first(n_test=2).x_test, data.x_test)


def test_rounding_of_training_examples_does_not_leave_the_box():
    """0.1 is larger in float32 than in float64, so a box that ends there is rounded too."""
    x, y = np.array([[0.05], [0.1]]), np.array([0, 1])
    data = Dataset("edge", x, y, x, y, classes=2, box=(0.0, 0.1))
    assert float(data.x_train.max()) > 0.1
    assert len(data.first(n_test=1).x_train) == 2


def test_first_keeps_order_shape_and_labels():
    digits = load("digits")
    few = digits.first(n_train=30, n_test=7)
    assert np.array_equal(few.x_train, digits.x_train[:30])
    assert np.array_equal(few.y_test, digits.y_test[:7])
    assert len(digits.first(n_train=10**6).x_train) == 1437
    for wrong in ({"n_train": 0}, {"n_test": -1}):
        with pytest.raises(InvalidInput, match="use at least one"):
            digits.first(**wrong)
    with pytest.raises(InvalidInput, match="y_train holds only class"):
        digits.first(n_train=1)


@pytest.mark.parametrize(("train", "test"), [(np.uint8, np.float64), (np.float32, np.uint8)])
def test_pixels_are_stored_alike_in_both_parts(tmp_path, train, test):
    images = arrays(x_train=np.eye(6, 4).astype(train), x_test=np.eye(3, 4).astype(test))
    save(tmp_path / "mixed.npz", images)
    told = f"x_train of .*mixed.npz is {np.dtype(train)}, x_test {np.dtype(test)}; .* store both as uint8"
    with pytest.raises(InvalidInput, match=told):
        load(str(tmp_path / "mixed.npz"))


@pytest.mark.parametrize(("largest", "doubtful"), [(1, True), (127, True), (128, False), (255, False)])
def test_small_numbers_stored_as_pixels_are_doubted(tmp_path, largest, doubtful):
    """In either part, and so in every part of the data set."""
    for part in ("x_train", "x_test"):
        images = arrays(x_train=np.eye(6, 4, dtype=np.uint8), x_test=np.eye(3, 4, dtype=np.uint8))
        images[part] *= np.uint8(largest)
        save(tmp_path / "mine.npz", images)
        data = load(str(tmp_path / "mine.npz"))
        told = f"uint8 features are divided by 255 and range to {largest / 255:.2g} then; "
        for some in (data, data.first(n_test=1), data.pair(0, 2)):
            assert (some.doubt or "").startswith(told if doubtful else "")
            assert bool(some.doubt) == doubtful


@pytest.mark.parametrize(
    ("low", "high", "doubtful"),
    [(0, 255, True), (0, 128, True), (-1, 255, False), (0, 1, False), (0, 300, False)],
)
@pytest.mark.parametrize("dtype", [np.int64, np.float32])
def test_pixels_of_0_to_255_that_are_taken_as_they_are_are_doubted(tmp_path, low, high, doubtful, dtype):
    save(tmp_path / "mine.npz", {"x_test": np.array([[low, high]] * 3).astype(dtype), "y_test": np.arange(3)})
    doubt = load_test(str(tmp_path / "mine.npz")).doubt or ""
    assert doubt.startswith(f"features range to {high}, and so radii" if doubtful else "")
    assert bool(doubt) == doubtful


def test_shape_of_an_example_survives(tmp_path):
    images = arrays(x_train=np.ones((6, 2, 3, 4)) / 2, x_test=np.ones((3, 2, 3, 4)) / 2)
    save(tmp_path / "images.npz", images)
    data = load(str(tmp_path / "images.npz"))
    assert data.shape == (2, 3, 4)
    assert data.pair(0, 2).shape == (2, 3, 4)
    assert data.first(n_test=1).shape == (2, 3, 4)
    assert load("digits").shape == (64,)
    assert load_test(str(tmp_path / "images.npz")).x.shape == (3, 2, 3, 4)
    with pytest.raises(InvalidInput, match=r"shape is \(5,\); an example has 24 features"):
        Dataset("d", data.x_train, data.y_train, data.x_test, data.y_test, 3, shape=(5,))


def test_networks_are_not_given_images_with_their_axes_in_another_order(tmp_path):
    save(tmp_path / "last.npz", arrays(x_test=np.zeros((3, 4, 4, 3))))
    last = load_test(str(tmp_path / "last.npz"))
    with pytest.raises(InvalidInput, match=r"takes examples of shape \(3, 4, 4\); those of last"):
        last.fitted((3, 4, 4))
    assert last.fitted(None) == last.fitted((4, 4, 3)) == (4, 4, 3)
    assert last.fitted((48,)) == (48,)


def test_a_file_is_read_again_once_it_has_changed(tmp_path):
    path = tmp_path / "mine.npz"
    save(path, arrays())
    first = load(str(path))
    assert load(str(path)) is first
    save(path, arrays(x_test=np.zeros((5, 4)), y_test=np.zeros(5, int)))
    assert len(load(str(path)).x_test) == 5
