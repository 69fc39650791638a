"""MNIST, Fashion-MNIST and CIFAR-10 by name: from a folder, else from OpenML into that folder."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from empirical.data.files import PARTS, Source, shards, single
from empirical.runs.locations import write_atomically
from theory.types import InvalidInput

FOLDER = "SPARSE_ROBUSTNESS_DATA"


@dataclass(frozen=True)
class Named:
    """A published data set: its name and version on OpenML, the shape of an example, the standard split."""

    openml: str
    version: int
    shape: tuple[int, ...]
    train: int
    test: int
    classes: int = 10


NAMED = {
    "mnist": Named("mnist_784", 1, (1, 28, 28), 60_000, 10_000),
    "fashion-mnist": Named("Fashion-MNIST", 1, (1, 28, 28), 60_000, 10_000),
    "cifar10": Named("CIFAR_10", 1, (3, 32, 32), 50_000, 10_000),
}


def folder() -> Path:
    """Where named data sets are kept: the environment's ``SPARSE_ROBUSTNESS_DATA``, else the user's cache."""
    if chosen := os.environ.get(FOLDER):
        return Path(chosen)
    if sys.platform == "win32":
        cache = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        cache = Path.home() / "Library" / "Caches"
    else:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "sparse-robustness"


def named_source(name: str, *, parts: Sequence[str] = PARTS) -> Source:
    """``<name>.npz`` or the shards ``<name>_train*.npz``, ``<name>_test*.npz`` of the folder; else OpenML's.

    What OpenML sends is kept as ``<name>.npz``; of shards those of the ``parts`` suffice. Raises:
    InvalidInput if the files are neither there nor to be had, saying where to put them.
    """
    found = local_source(name, parts=parts)
    if found:
        return found
    path = folder() / f"{name}.npz"
    _download(name, path)
    return single(path, name)


def local_source(name: str, *, parts: Sequence[str] = PARTS) -> Source | None:
    """The files of a named data set that lie in the folder; None if there are none.

    Raises: InvalidInput for shards without those of one of the ``parts``.
    """
    here = folder()
    path = here / f"{name}.npz"
    if path.is_file():
        return single(path, name)
    candidates = [*here.glob(f"{name}_train*.npz"), *here.glob(f"{name}_test*.npz")]
    return shards(str(here / f"{name}_*.npz"), candidates, parts=parts) if candidates else None


def channels_first(name: str, x: np.ndarray) -> np.ndarray:
    """The examples of a named data set in its shape.

    They are stored flat, as images with channels first or last, or as channels of flat pixels; axes of one
    entry do not count. Raises: InvalidInput for any other shape, whose order is not known.
    """
    shape = NAMED[name].shape
    if x.shape[1:] == (*shape[1:], shape[0]):
        return x.transpose(0, 3, 1, 2)
    alike = [(prod(shape),), (shape[0], prod(shape[1:])), shape]
    if _sides(x.shape[1:]) not in [_sides(known) for known in alike]:
        raise InvalidInput(
            f"data {name!r} has x of shape {x.shape}; store it as (examples, {', '.join(map(str, shape))}), "
            "flat in that order, or as images with channels last"
        )
    return x.reshape(len(x), *shape)


def _sides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of more than one entry."""
    return tuple(side for side in shape if side != 1)


def _download(name: str, path: Path) -> None:
    """Fetch a data set from OpenML into ``path``. Raises: InvalidInput if that fails."""
    from sklearn.datasets import fetch_openml

    known = NAMED[name]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of retries: what fails in the end is said below
            # liac-arff reads row by row into one array; pandas would guess a type per column.
            x, y = fetch_openml(
                known.openml,
                version=known.version,
                data_home=str(path.parent / "openml"),
                as_frame=False,
                return_X_y=True,
                parser="liac-arff",
                n_retries=1,
            )
        images, labels = _checked(known, np.asarray(x), np.asarray(y))
        write_atomically(path, lambda temporary: _save(temporary, images, labels, train=known.train))
    except Exception as error:  # networks, compressed streams and the ARFF reader have their own ways to fail
        what = " ".join(str(error).split()) or type(error).__name__
        raise InvalidInput(
            f"data {name!r} is not in {path.parent} and cannot be had from OpenML ({what}); put {path.name} "
            f"there with x_train, y_train, x_test and y_test, or name another folder in {FOLDER}"
        ) from error


def _checked(known: Named, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of OpenML's table. Raises: ValueError if it is not the table we know."""
    with np.errstate(invalid="ignore"):  # what is no pixel differs below
        pixels, labels = x.astype(np.uint8), y.astype(np.int64)
    if x.shape != (known.train + known.test, prod(known.shape)) or not np.array_equal(pixels, x):
        raise ValueError(f"OpenML's table of shape {x.shape} is not that of {known.openml}")
    if labels.shape != (len(x),) or not np.isin(labels, np.arange(known.classes)).all():
        raise ValueError(f"OpenML's labels are not those of {known.openml}")
    return pixels.reshape(-1, *known.shape), labels


def _save(path: Path, images: np.ndarray, labels: np.ndarray, *, train: int) -> None:
    """The standard split: the first ``train`` examples, and the rest."""
    with path.open("wb") as file:
        np.savez_compressed(
            file,
            x_train=images[:train],
            y_train=labels[:train],
            x_test=images[train:],
            y_test=labels[train:],
        )
