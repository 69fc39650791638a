"""Files of arrays for the tests of reading them."""

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np


def arrays(**changes: np.ndarray) -> dict[str, np.ndarray]:
    """A small data set of three classes, with some arrays replaced."""
    rng = np.random.default_rng(0)
    good = {
        "x_train": rng.random((6, 4)),
        "y_train": np.array([0, 1, 2, 0, 1, 2]),
        "x_test": rng.random((3, 4)),
        "y_test": np.array([0, 1, 2]),
    }
    return good | changes


def save(path: Path, content: Mapping[str, np.ndarray], compression: int = zipfile.ZIP_STORED) -> None:
    """An .npz file with members compressed this way."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, value in content.items():
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, value)
