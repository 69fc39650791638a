"""Arrays from ``.npz`` files that nobody vouches for: bounded memory, no pickles, optional checksums."""

from __future__ import annotations

import hashlib
import re
import struct
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from math import prod
from pathlib import Path

import numpy as np

from theory.types import InvalidInput

SUMS = "SHA256SUMS"
_LONGEST_SUMS = 2**24
# A line of sha256sum: the digest, then a space or an asterisk (binary mode), then the name.
_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")
# Members up to this many bytes are read however well they are compressed; larger ones may be at most this
# many times as large as what is stored, which every array of real examples is by far.
_SMALL = 2**24
_LARGEST_RATIO = 1000
# Bytes of all arrays of a data set together, as they are stored; ImageNet at 32x32 takes a quarter.
LARGEST = 2**34
# Characters of what is said of the names of other arrays.
_LONGEST_HELD = 200
# What NumPy writes, and LZMA. A bzip2 member turns 40 bytes into a megabyte, and zipfile does not stop it.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA)
# The largest dictionary of LZMA's presets.
_DICTIONARY = 2**26
# zipfile decompresses all the LZMA input that a call reads, whatever it returns: of so little, 28 MiB.
_STEP = 2**12


def read_npz(path: Path, keys: Sequence[str], *, room: int = LARGEST) -> dict[str, np.ndarray]:
    """The arrays of these names, once the file's checksum is right if ``SHA256SUMS`` beside it has one.

    Memory stays within the arrays' own size and 64 MiB. An array has at most 16 MiB or 1,000 times its
    compressed size, and all of them together at most ``room`` bytes.
    Raises: InvalidInput naming the file for a wrong checksum, a damaged file, a missing array, or too much.
    """
    if not path.is_file():
        raise InvalidInput(f"data is {str(path)!r}; no such file")
    try:
        with path.open("rb") as file:
            _check_sum(path, file)
            arrays = _members(file, keys, path.stat().st_size, room=room)
    except InvalidInput:
        raise
    except _Pickled as error:
        kind = "int" if error.key.startswith("y") else "float"
        raise InvalidInput(
            f"data {str(path)!r} cannot be read as .npz ({error}); store {error.key}.astype({kind})"
        ) from error
    except Exception as error:  # zip, each compressor and NumPy's header have their own ways to fail
        what = str(error) or type(error).__name__
        raise InvalidInput(
            f"data {str(path)!r} cannot be read as .npz ({what}); fetch or export it again"
        ) from error
    return arrays


class _Pickled(ValueError):
    """An array of objects, which exporting it again makes no better."""

    def __init__(self, key: str) -> None:
        super().__init__(f"{key}.npy holds pickled objects, which could run code")
        self.key = key


def _members(file: BufferedReader, keys: Sequence[str], size: int, *, room: int) -> dict[str, np.ndarray]:
    """The arrays of these names. Raises: InvalidInput for missing ones; what is damaged raises all kinds."""
    if file.read(len(np.lib.format.MAGIC_PREFIX)) == np.lib.format.MAGIC_PREFIX:
        raise ValueError("it holds a single array")
    with zipfile.ZipFile(file) as archive:
        present = set(archive.namelist())
        names = {key: f"{key}.npy" for key in keys if f"{key}.npy" in present}
        missing = [key for key in keys if key not in names]
        if missing:
            held = str(sorted(name.removesuffix(".npy") for name in present)[:6])[:_LONGEST_HELD]
            raise InvalidInput(
                f"data {file.name!r} lacks {', '.join(missing)}; it needs {', '.join(keys)} and holds {held}"
            )
        claimed = sum(archive.getinfo(name).file_size for name in names.values())
        if claimed > room:
            raise ValueError(f"its arrays claim {claimed:,} bytes; {room:,} are left to this data set")
        return {key: _member(archive, name, size) for key, name in names.items()}


def _member(archive: zipfile.ZipFile, name: str, size: int) -> np.ndarray:
    """One array; nothing is allocated before its declared size fits that of the member and of the file."""
    info = archive.getinfo(name)
    if info.compress_type not in _METHODS:
        raise ValueError(f"{name} is not stored, deflated or LZMA; save it by numpy.savez_compressed")
    if info.file_size > max(_SMALL, _LARGEST_RATIO * min(info.compress_size, size)):
        raise ValueError(f"{name} claims {info.file_size:,} bytes of {info.compress_size:,} compressed")
    if info.compress_type == zipfile.ZIP_LZMA:
        _check_dictionary(archive, info)
    shape, dtype, begin = _header(archive, info)
    if dtype.hasobject:
        raise _Pickled(name.removesuffix(".npy"))
    if dtype.itemsize == 0 or any(side < 0 for side in shape):
        raise ValueError(f"{name} has type {dtype} and shape {shape}")
    if begin + prod(shape) * dtype.itemsize != info.file_size:
        raise ValueError(f"{name} declares shape {shape} of {dtype}, which is not what it holds")
    with archive.open(info) as member:
        return np.lib.format.read_array(_Steps(member.read), allow_pickle=False)


def _check_dictionary(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
    """Raise ValueError if LZMA would make a larger dictionary than any preset's before it decompresses."""
    assert archive.fp is not None
    archive.fp.seek(info.header_offset)
    name, extra = struct.unpack("<HH", archive.fp.read(30)[-4:])
    # After the names: two bytes of version, two of length, one of properties, then the dictionary's size.
    size = int.from_bytes(archive.fp.read(name + extra + 9)[-4:], "little")
    if size > _DICTIONARY:
        raise ValueError(f"{info.filename} asks for a dictionary of {size:,} bytes")


@dataclass(frozen=True)
class _Steps:
    """A member that is read in small steps, so that no step decompresses much more than it returns."""

    step: Callable[[int], bytes]

    def read(self, size: int = sys.maxsize, /) -> bytes:
        """The next ``size`` bytes, or fewer at the end."""
        found = []
        while size > 0 and (part := self.step(min(size, _STEP))):
            found.append(part)
            size -= len(part)
        return b"".join(found)


def _header(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> tuple[tuple[int, ...], np.dtype, int]:
    """Shape and type that an array declares, and where its entries begin."""
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        if version == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(member)
        elif version == (2, 0):
            shape, _, dtype = np.lib.format.read_array_header_2_0(member)
        else:
            raise ValueError(f"it is of format {version}")
        return shape, dtype, member.tell()


def has_right_sum(path: Path) -> bool:
    """Whether ``SHA256SUMS`` beside the file vouches for it; False if there is none, or it has no such line.

    Raises: InvalidInput if the file has another checksum; OSError if it cannot be read.
    """
    with path.open("rb") as file:
        return _check_sum(path, file)


def _check_sum(path: Path, file: BufferedReader) -> bool:
    """Whether the open file has a checksum. Raises: InvalidInput if ``SHA256SUMS`` has another one."""
    wanted = sums(path.with_name(SUMS)).get(path.name)
    if wanted is None:
        return False
    found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != wanted:
        raise InvalidInput(
            f"data {str(path)!r} has SHA-256 {found}, {SUMS} beside it says {wanted}; fetch it again"
        )
    file.seek(0)
    return True


def sums(path: Path) -> Mapping[str, str]:
    """Digests by file name. Raises: InvalidInput for a line that is not of sha256sum's format."""
    if not path.is_file():
        return {}
    if path.stat().st_size > _LONGEST_SUMS:
        raise InvalidInput(f"{path} has more than {_LONGEST_SUMS:,} bytes; write '<sha256>  <file name>'")
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        matched = _LINE.fullmatch(line)
        if matched:
            found[matched[2].removeprefix("./")] = matched[1].lower()
        elif line.strip():
            raise InvalidInput(f"{path} line {number} is {line[:80]!r}; write '<sha256>  <file name>'")
    return found
