"""Data sets in files of the user's own: one ``.npz`` file, or shards in a folder or under a pattern."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from empirical.data.npz import LARGEST, SUMS, read_npz, sums
from theory.types import InvalidInput

PARTS = ("train", "test")
# <name>_train<anything>.npz and <name>_test<anything>.npz
_SHARD = re.compile(r"(.+)_(train|test)(.*)\.npz")


@dataclass(frozen=True)
class Source:
    """Where the training and the test examples of a data set lie.

    ``shards`` says that files hold x and y; else the one file holds x_train, y_train, x_test and y_test.
    """

    name: str
    train: tuple[Path, ...]
    test: tuple[Path, ...]
    shards: bool

    def stamp(self) -> frozenset[tuple[Path, int, int]]:
        """Time and size of all files and of their checksums: equal as long as nobody writes to them."""
        paths = {path.with_name(name) for path in self.train + self.test for name in (path.name, SUMS)}
        stats = ((path, path.stat()) for path in paths if path.is_file())
        return frozenset((path, stat.st_mtime_ns, stat.st_size) for path, stat in stats)

    def read(self, parts: Sequence[str]) -> dict[str, list[np.ndarray]]:
        """The arrays x_<part> and y_<part> of every part asked for, file by file.

        Raises: InvalidInput if a file is missing or damaged, lacks an array or does not match its checksum,
        if shards of one part differ in the shape or the type of their examples, or if all is too much.
        """
        if not self.shards:
            keys = [f"{array}_{part}" for part in parts for array in "xy"]
            return {key: [value] for key, value in read_npz(self.train[0], keys).items()}
        found: dict[str, list[np.ndarray]] = {}
        room = LARGEST
        for part in parts:
            read: list[dict[str, np.ndarray]] = []
            for path in self.train if part == "train" else self.test:
                read.append(read_npz(path, ("x", "y"), room=room))
                _check_alike(path, read[-1], read[0])
                room -= sum(array.nbytes for array in read[-1].values())
            for array in "xy":
                found[f"{array}_{part}"] = [arrays[array] for arrays in read]
        return found


def single(path: Path, name: str) -> Source:
    """A data set in one file."""
    return Source(name, (path,), (path,), shards=False)


def shards(where: str, candidates: Sequence[Path], *, parts: Sequence[str] = PARTS) -> Source:
    """The data set whose shards are among these files, in the order of their numbers.

    Raises: InvalidInput if there are no shards of one of the ``parts``, or those of several data sets, or if
    the folder lacks one that its ``SHA256SUMS`` lists: examples would be missing without a word.
    """
    found: dict[str, list[Path]] = {"train": [], "test": []}
    names = set()
    for path in candidates:
        matched = _SHARD.fullmatch(path.name)
        if matched:
            found[matched[2]].append(path)
            names.add(matched[1])
    if len(names) > 1:
        raise InvalidInput(
            f"data {where!r} holds shards of {', '.join(sorted(names))}; give a pattern that fits one of them"
        )
    for part in parts:
        if not found[part]:
            raise InvalidInput(
                f"data {where!r} has no file *_{part}*.npz; shards hold x and y, and are so named"
            )
        here = found[part][0].parent
        lacking = [
            name for name in sums(here / SUMS) if not (here / name).is_file() and _is_shard(name, names, part)
        ]
        if lacking:
            raise InvalidInput(
                f"data {where!r} lacks {', '.join(sorted(lacking))}, which {SUMS} lists; fetch it, or take "
                "it out of the list"
            )
    train, test = (tuple(sorted(found[part], key=_by_number)) for part in ("train", "test"))
    return Source(names.pop(), train, test, shards=True)


def _is_shard(name: str, of: set[str], part: str) -> bool:
    matched = _SHARD.fullmatch(name)
    return bool(matched and matched[1] in of and matched[2] == part)


def _by_number(path: Path) -> list[tuple[int, str]]:
    """Sorts shard 2 before shard 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def _check_alike(path: Path, arrays: Mapping[str, np.ndarray], first: Mapping[str, np.ndarray]) -> None:
    x, like = arrays["x"], first["x"]
    if x.shape[1:] != like.shape[1:] or x.dtype != like.dtype:
        raise InvalidInput(
            f"data {str(path)!r} has x of shape {x.shape} and type {x.dtype}; the first shard has "
            f"examples of shape {like.shape[1:]} and type {like.dtype}"
        )
    if x.ndim < 2 or arrays["y"].shape != x.shape[:1]:
        raise InvalidInput(
            f"data {str(path)!r} has x of shape {x.shape} and y of shape {arrays['y'].shape}; expected "
            "(examples, features...) and (examples,)"
        )
