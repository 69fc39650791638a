"""Labelled data: scikit-learn's digits (embedded), named data sets, the user's own ``.npz`` files."""

from __future__ import annotations

import functools
import glob
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, Integer
from numpy import ndarray as Array

from empirical.data.files import PARTS, Source, shards, single
from empirical.data.named import NAMED, channels_first, named_source
from theory.types import InvalidInput, check_labels, check_p, finite_array

# What stores images as networks take them, of arrays with their channels last.
CHANNELS_FIRST = "np.moveaxis(x_test, -1, 1)"
# Training is done in float32, and its examples are many; measurements and proofs are in float64.
_TYPES = {"train": np.float32, "test": np.float64}
# Features stored as uint8 that never exceed this are hardly pixels of the range that they are divided by.
_HALF = 127


@dataclass(frozen=True)
class Dataset:
    """Training and test examples with features inside ``box`` and labels 0 .. classes-1.

    x_train: (n, d) float32, as training takes it; x_test: (m, d) float64, as measurements and theory do;
    labels int64. ``shape`` is that of one example before it was flattened, channels first; (d,) if not given.
    ``doubt`` is what to look at in how they were read, or None.
    Raises: InvalidInput for NaN, features outside the box, labels outside [0, classes), shapes that disagree,
    or fewer than two classes in the training labels.
    """

    name: str
    x_train: Float[Array, "n d"]
    y_train: Integer[Array, " n"]
    x_test: Float[Array, "m d"]
    y_test: Integer[Array, " m"]
    classes: int
    box: tuple[float, float] = (0.0, 1.0)
    shape: tuple[int, ...] = ()
    doubt: str | None = None

    def __post_init__(self) -> None:
        for part, dtype in _TYPES.items():
            x = _features(f"x_{part}", getattr(self, f"x_{part}"), box=self.box, dtype=dtype)
            y = check_labels(f"y_{part}", getattr(self, f"y_{part}"), n=len(x), classes=self.classes)
            y.setflags(write=False)  # as x: a data set in memory is everybody's
            object.__setattr__(self, f"x_{part}", x)
            object.__setattr__(self, f"y_{part}", y)
        width = self.x_train.shape[1]
        if self.x_test.shape[1] != width:
            raise InvalidInput(f"x_test has {self.x_test.shape[1]} features; x_train has {width}")
        shape = self.shape or (width,)
        if math.prod(shape) != width:
            raise InvalidInput(f"shape is {shape}; an example has {width} features")
        object.__setattr__(self, "shape", shape)
        if len(np.unique(self.y_train)) < 2:
            raise InvalidInput(f"y_train holds only class {self.y_train[0]}; a classifier needs two classes")

    def diameter(self, p: float) -> float:
        """Largest l_p distance between two points of the box. Raises: InvalidInput unless p is 2 or inf."""
        side = self.box[1] - self.box[0]
        return side * math.sqrt(self.x_train.shape[1]) if check_p(p) == 2 else side

    def first(self, *, n_train: int | None = None, n_test: int | None = None) -> Dataset:
        """The first training and test examples; all where no number is given, or there are fewer.

        They are taken in the order of the data set, not class by class: a plain, not a stratified, reduction.
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
        return replace(self, name=f"{self.name}:{negative}v{positive}", classes=2, **parts)


@dataclass(frozen=True)
class Examples:
    """Labelled examples in their own shape and scale, as a given network takes them.

    x: (n, *shape) float64; y: (n,) int64. ``doubt`` is what to look at in how they were read, or None.
    Raises: InvalidInput for NaN or infinity, no example, negative labels, or lengths that disagree.
    """

    name: str
    x: Float[Array, "n *shape"]
    y: Integer[Array, " n"]
    doubt: str | None = None

    def __post_init__(self) -> None:
        x = finite_array("x_test", self.x, ndim=self.x.ndim)
        y = check_labels("y_test", self.y, n=len(x), classes=None)
        object.__setattr__(self, "x", x)
        object.__setattr__(self, "y", y)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return self.x.shape[1:]

    def fitted(self, wanted: tuple[int, ...] | None) -> tuple[int, ...]:
        """The shape in which a network takes these examples; their own if it does not say.

        Flat examples are taken in any shape, and all as flat ones; axes of one entry do not count.
        Raises: InvalidInput for another number of features, or sides that are not those of the examples.
        """
        wanted = wanted or self.shape
        if math.prod(wanted) != math.prod(self.shape) or not _alike(wanted, self.shape):
            told = f"network takes examples of shape {wanted}; those of {self.name} have shape {self.shape}"
            taken, given = math.prod(wanted), math.prod(self.shape)
            if taken != given:
                raise InvalidInput(
                    f"{told}, {given} features instead of {taken}: give data that it takes, or another shape"
                )
            last = wanted == self.channels_first
            remedy = f"channels last: store {CHANNELS_FIRST}" if last else "store them as it takes them"
            raise InvalidInput(f"{told}: {remedy}")
        return wanted

    @property
    def channels_first(self) -> tuple[int, ...]:
        """The shape of one example if its last axis were the first."""
        return self.shape[-1:] + self.shape[:-1]

    def first(self, count: int) -> Examples:
        """The first ``count`` examples, or all if there are fewer. Raises: InvalidInput if count < 1."""
        if count < 1:
            raise InvalidInput(f"examples is {count}; use at least one")
        return Examples(self.name, self.x[:count], self.y[:count])


def load_test(name: str) -> Examples:
    """The test examples of what :func:`load` reads, in their own shape.

    Of a file x_test and y_test suffice, of shards those of the test set.
    uint8 pixels are divided by 255; floating-point features are taken as they are, in any range.
    Raises: InvalidInput as :func:`load`.
    """
    if name == "digits":
        digits = _digits()
        return Examples(name, digits.x_test, digits.y_test)
    found = _source(name, parts=("test",))
    arrays = found.read(("test",))
    remedy = "if the network was trained on another scale, store them as floats on that one"
    doubt = _range_doubt(arrays["x_test"], remedy)
    x, shape = _part(name, "test", arrays["x_test"])
    x = x.astype(np.float64) if x.dtype.kind in "biu" else x
    if doubt is None and x.size and x.min() >= 0 and _HALF < x.max() <= 255:
        doubt = (
            f"features range to {x.max():g}, and so radii and their limits are in these units; pixels stored "
            "as uint8 would be divided by 255"
        )
    return Examples(found.name, x.reshape(-1, *shape), _joined(arrays["y_test"]), doubt)


def load(name: str) -> Dataset:
    """``"digits"``, a named data set, or the user's own files.

    ``"mnist"``, ``"fashion-mnist"`` and ``"cifar10"`` come from the folder ``SPARSE_ROBUSTNESS_DATA`` (else a
    cache of the user's), or from OpenML into it. Files are an ``.npz`` file with x_train, y_train, x_test and
    y_test; or shards ``*_train*.npz`` and ``*_test*.npz`` with x and y, named by their folder or by a pattern
    such as ``data/cifar10_*``. Checksums in a file ``SHA256SUMS`` beside them are checked.

    uint8 pixels are divided by 255, float features must lie in [0, 1]. Examples keep their stored shape,
    named ones are made (channels, height, width); the last data set is kept in memory.
    Raises: InvalidInput for an unknown name, data that cannot be fetched, a damaged file, a wrong checksum,
    missing keys, training and test features of which one alone are uint8, or bad values.
    """
    if name == "digits":
        return _digits()
    found = _source(name)
    return _loaded(name, found, found.stamp())


@functools.lru_cache(maxsize=1)
def _loaded(name: str, found: Source, stamp: frozenset[tuple[Path, int, int]]) -> Dataset:
    """The data set in these files, which have not changed since if the stamp is equal."""
    arrays = found.read(PARTS)
    y_train, y_test = (_joined(arrays[f"y_{part}"]) for part in ("train", "test"))
    trained, attacked = (arrays[f"x_{part}"][0].dtype for part in ("train", "test"))
    if (trained == np.uint8) != (attacked == np.uint8):
        raise InvalidInput(
            f"x_train of {name} is {trained}, x_test {attacked}; only uint8 is divided by 255: store both as "
            "uint8 pixels, or both as floats in [0, 1]"
        )
    remedy = "if they are on another scale, store them as floats scaled into [0, 1]"
    doubt = _range_doubt([*arrays["x_train"], *arrays["x_test"]], remedy)
    x_train, shape = _part(name, "train", arrays.pop("x_train"))
    x_test, tested = _part(name, "test", arrays.pop("x_test"))
    if not _alike(shape, tested):
        raise InvalidInput(
            f"x_test of {name} has examples of shape {tested}, x_train of shape {shape}; store them alike"
        )
    y_train = check_labels("y_train", y_train, n=len(x_train), classes=None)
    y_test = check_labels("y_test", y_test, n=len(x_test), classes=None)
    classes = NAMED[name].classes if name in NAMED else _classes(y_train, y_test)
    return Dataset(found.name, x_train, y_train, x_test, y_test, classes, shape=shape, doubt=doubt)


def _source(name: str, *, parts: Sequence[str] = PARTS) -> Source:
    """The files of a named data set, of an ``.npz`` file, a folder or a pattern; of shards the ``parts``.

    Raises: InvalidInput.
    """
    path = Path(name)
    if "\0" in name:
        raise InvalidInput(f"data is {name!r}; no file's name has a null character")
    if name in NAMED:
        return named_source(name, parts=parts)
    if path.is_dir():
        return shards(name, sorted(path.glob("*.npz")), parts=parts)
    if path.suffix == ".npz" and (path.is_file() or not glob.has_magic(name)):
        return single(path, path.stem)
    if glob.has_magic(name):
        return shards(name, [Path(match) for match in sorted(glob.glob(name))], parts=parts)
    if path.is_file():
        arrays = ", ".join(f"{array}_{part}=..." for part in parts for array in "xy")
        stored = f"numpy.savez({path.stem + '.npz'!r}, {arrays})"
        raise InvalidInput(f"data is {name!r}, which is no .npz file; store arrays: {stored}")
    raise InvalidInput(
        f"data is {name!r}; choose digits, {', '.join(NAMED)}, the path of an .npz file or of a folder with "
        "shards, or a pattern that fits them"
    )


def _alike(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether one layout is the other or either is flat; axes of one entry do not count."""
    sides, others = ([side for side in shape if side != 1] for shape in (one, other))
    return sides == others or min(len(sides), len(others)) < 2


def _classes(y_train: np.ndarray, y_test: np.ndarray) -> int:
    """Number of classes: one more than the largest training label, at most one per training example.

    Raises: InvalidInput if there is no training example of class 0, or of the largest test label's.
    """
    least, largest = int(y_train.min()), int(y_train.max())
    if largest >= y_train.size or least > 0:
        raise InvalidInput(
            f"y_train has labels from {least} to {largest} for {y_train.size} examples; number the classes "
            "from 0 on"
        )
    if y_test.max() > largest:
        raise InvalidInput(
            f"y_test has class {y_test.max()}, of which y_train has no example; leave it out of the test"
        )
    return largest + 1


def _part(name: str, part: str, read: Sequence[np.ndarray]) -> tuple[np.ndarray, tuple[int, ...]]:
    """One part's features as (n, d), pixels scaled into [0, 1], and the shape of one example."""
    arrays = [channels_first(name, x) for x in read] if name in NAMED else read
    shape = arrays[0].shape
    if len(shape) < 2 or arrays[0].size == 0:
        raise InvalidInput(
            f"x_{part} has shape {shape}; expected (examples, features...), one of each at least"
        )
    if arrays[0].dtype != np.uint8:
        return _joined(arrays).reshape(-1, math.prod(shape[1:])), shape[1:]
    scaled = np.empty((sum(map(len, arrays)), *shape[1:]), _TYPES[part])
    start = 0
    for x in arrays:  # file by file, so that no second copy is made
        np.divide(x, 255.0, out=scaled[start : start + len(x)], casting="same_kind")
        start += len(x)
    scaled.setflags(write=False)
    return scaled.reshape(len(scaled), -1), shape[1:]


def _range_doubt(read: Sequence[np.ndarray], remedy: str) -> str | None:
    """What to look at if features are stored as uint8, but fill no more than half of its range; else None."""
    largest = max((int(x.max()) for x in read if x.dtype == np.uint8 and x.size), default=_HALF + 1)
    if largest > _HALF:
        return None
    return f"uint8 features are divided by 255 and range to {largest / 255:.2g} then; {remedy}"


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _features(name: str, x: np.ndarray, *, box: tuple[float, float], dtype: type) -> np.ndarray:
    """Features as a read-only (n, d) array of ``dtype``; one that is such an array already is not copied.

    Raises: InvalidInput for NaN, infinity, features outside the box or an array of another dimension.
    """
    if (
        x.dtype not in _TYPES.values()
        or x.ndim != 2
        or not x.size
        or not np.isfinite((x.min(), x.max())).all()
    ):
        x = finite_array(name, x, ndim=2)  # converts, or says what is wrong
    lowest, highest = x.min(), x.max()
    low, high = (x.dtype.type(side) for side in box)  # rounded as the features were
    if lowest < low or highest > high:
        raise InvalidInput(f"{name} spans [{lowest:g}, {highest:g}]; scale features into {list(box)}")
    x = x.astype(dtype, copy=x.flags.writeable)
    x.setflags(write=False)
    return x


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
