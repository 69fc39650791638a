"""Labelled data: scikit-learn's digits (embedded) and the user's own ``.npz`` files."""

from __future__ import annotations

import lzma
import math
import os
import zipfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, Integer
from numpy import ndarray as Array

from theory.types import InvalidInput, check_labels, check_p, finite_array

# What NumPy and its decompressors raise for a file that is damaged, foreign or would run code.
_UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)
_NPZ_KEYS = ("x_train", "y_train", "x_test", "y_test")


@dataclass(frozen=True)
class Dataset:
    """Training and test examples with features inside ``box`` and labels 0 .. classes-1.

    x: (n, d) float64; y: (n,) int64. Raises: InvalidInput for NaN, features outside the box, labels
    outside [0, classes), shapes that disagree, or fewer than two classes in the training labels.
    """

    name: str
    x_train: Float[Array, "n d"]
    y_train: Integer[Array, " n"]
    x_test: Float[Array, "m d"]
    y_test: Integer[Array, " m"]
    classes: int
    box: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            x = finite_array(f"x_{part}", getattr(self, f"x_{part}"), ndim=2)
            lowest, highest = x.min(), x.max()
            if lowest < self.box[0] or highest > self.box[1]:
                raise InvalidInput(
                    f"x_{part} spans [{lowest:g}, {highest:g}]; scale features into {list(self.box)}"
                )
            y = check_labels(f"y_{part}", getattr(self, f"y_{part}"), n=len(x), classes=self.classes)
            object.__setattr__(self, f"x_{part}", x)
            object.__setattr__(self, f"y_{part}", y)
        if self.x_test.shape[1] != self.x_train.shape[1]:
            raise InvalidInput(
                f"x_test has {self.x_test.shape[1]} features; x_train has {self.x_train.shape[1]}"
            )
        if len(np.unique(self.y_train)) < 2:
            raise InvalidInput(f"y_train holds only class {self.y_train[0]}; a classifier needs two classes")

    def diameter(self, p: float) -> float:
        """Largest l_p distance between two points of the box. Raises: InvalidInput unless p is 2 or inf."""
        side = self.box[1] - self.box[0]
        return side * math.sqrt(self.x_train.shape[1]) if check_p(p) == 2 else side

    def first(self, *, n_train: int | None = None, n_test: int | None = None) -> Dataset:
        """The first training and test examples; all where no number is given, or there are fewer.

        Raises: InvalidInput if a number is < 1, or what is left does not make a data set.
        """
        for name, count in (("n_train", n_train), ("n_test", n_test)):
            if count is not None and count < 1:
                raise InvalidInput(f"{name} is {count}; use at least one")
        return replace(
            self,
            x_train=self.x_train[:n_train],
            y_train=self.y_train[:n_train],
            x_test=self.x_test[:n_test],
            y_test=self.y_test[:n_test],
        )

    def pair(self, negative: int, positive: int) -> Dataset:
        """The binary problem ``negative`` (label 0) against ``positive`` (label 1).

        Raises: InvalidInput if the classes are equal, or one has no training or no test example.
        """
        if negative == positive:
            raise InvalidInput(f"pair is ({negative}, {positive}); name two different classes")
        parts: dict[str, np.ndarray] = {}
        for part in ("train", "test"):
            x, y = getattr(self, f"x_{part}"), getattr(self, f"y_{part}")
            for label in (negative, positive):
                if not (y == label).any():
                    raise InvalidInput(
                        f"pair asks for class {label}; y_{part} of {self.name} has no such label"
                    )
            rows = (y == negative) | (y == positive)
            parts[f"x_{part}"], parts[f"y_{part}"] = x[rows], (y[rows] == positive).astype(np.int64)
        return Dataset(name=f"{self.name}:{negative}v{positive}", classes=2, box=self.box, **parts)


@dataclass(frozen=True)
class Examples:
    """Labelled examples in their own shape and scale, as a given network takes them.

    x: (n, *shape) float64; y: (n,) int64. Raises: InvalidInput for NaN or infinity, no example, negative
    labels, or lengths that disagree.
    """

    name: str
    x: Float[Array, "n *shape"]
    y: Integer[Array, " n"]

    def __post_init__(self) -> None:
        x = finite_array("x_test", self.x, ndim=self.x.ndim)
        y = check_labels("y_test", self.y, n=len(x), classes=np.iinfo(np.int64).max)
        object.__setattr__(self, "x", x)
        object.__setattr__(self, "y", y)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return self.x.shape[1:]

    def first(self, count: int) -> Examples:
        """The first ``count`` examples, or all if there are fewer. Raises: InvalidInput if count < 1."""
        if count < 1:
            raise InvalidInput(f"examples is {count}; use at least one")
        return Examples(self.name, self.x[:count], self.y[:count])


def load_test(name: str) -> Examples:
    """The test examples of ``"digits"`` or of a local ``.npz`` file with x_test and y_test.

    uint8 pixels are divided by 255; floating-point features are taken as they are, in any range.
    Raises: InvalidInput for an unknown name, a damaged file, missing keys or bad values.
    """
    if name == "digits":
        digits = _digits()
        return Examples(name, digits.x_test, digits.y_test)
    arrays = _read_npz(name, ("x_test", "y_test"))
    x = arrays["x_test"]
    flat = _scaled("x_test", x)
    return Examples(Path(name).stem, flat.reshape(x.shape), arrays["y_test"])


def load(name: str) -> Dataset:
    """Load ``"digits"`` or a local ``.npz`` file with x_train, y_train, x_test and y_test.

    Images in files are flattened; uint8 pixels are divided by 255, float features must lie in [0, 1].
    Raises: InvalidInput for an unknown name, a damaged file, missing keys or bad values.
    """
    if name == "digits":
        return _digits()
    arrays = _read_npz(name, _NPZ_KEYS)
    for part in ("train", "test"):
        arrays[f"x_{part}"] = _scaled(f"x_{part}", arrays[f"x_{part}"])
    classes = _classes(arrays["y_train"])
    x_train, y_train, x_test, y_test = (arrays[key] for key in _NPZ_KEYS)
    return Dataset(Path(name).stem, x_train, y_train, x_test, y_test, classes)


def _read_npz(name: str, keys: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The arrays of these names. Raises: InvalidInput if one is missing or the file is no .npz file."""
    folder = os.environ.get("SPARSE_ROBUSTNESS_DATA")
    path = Path(folder) / f"{name}.npz" if folder and name in ("mnist",) else Path(name)
    if path.suffix != ".npz":
        raise InvalidInput(f"data is {name!r}; choose 'digits' or the path of an .npz file")
    if not path.is_file():
        raise InvalidInput(f"data is {name!r}; no such file")
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single array")
            arrays = {key: archive[key] for key in keys if key in archive}
    except _UNREADABLE as error:
        raise InvalidInput(
            f"data {name!r} cannot be read as .npz ({error}); fetch or export it again"
        ) from error
    missing = [key for key in keys if key not in arrays]
    if missing:
        raise InvalidInput(f"data {name!r} lacks {', '.join(missing)}; it needs {', '.join(keys)}")
    return arrays


def _classes(y: np.ndarray) -> int:
    """Number of classes: one more than the largest training label, at most one per training example."""
    labels = check_labels("y_train", y, n=y.size, classes=max(y.size, 1))
    return int(labels.max(initial=0)) + 1


def _scaled(name: str, x: np.ndarray) -> np.ndarray:
    if x.ndim < 2 or x.size == 0:
        raise InvalidInput(f"{name} has shape {x.shape}; expected (examples, features...)")
    flat = x.reshape(len(x), -1)
    return flat / 255.0 if flat.dtype == np.uint8 else flat


def _digits() -> Dataset:
    """1,797 handwritten digits of 8x8 pixels, a fixed stratified fifth of them held out."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, y = (np.asarray(part) for part in load_digits(return_X_y=True))
    x = pixels / 16
    train, test = (
        np.asarray(part)
        for part in train_test_split(np.arange(len(y)), test_size=0.2, random_state=0, stratify=y)
    )
    return Dataset("digits", x[train], y[train], x[test], y[test], classes=10)
