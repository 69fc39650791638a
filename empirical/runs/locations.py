"""Where a run's files are: a folder of this machine, or whatever fsspec has a driver for.

A :class:`Remote` answers to those methods of ``pathlib.Path`` that a run needs, so that other code need not
tell the two apart. Everywhere a file appears whole or not at all. What is slow to import is imported where
it is needed, so that help is immediate.
"""

from __future__ import annotations

import fnmatch
import functools
import hashlib
import os
import platform
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

# Stores without real folders, in which one put is all or nothing. In all others a file gets its name last.
_BUCKETS = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss", "oci", "memory"}
# Drivers that the package has an extra for.
_EXTRAS = {"s3": "s3", "s3a": "s3"}


class Unreachable(RuntimeError):
    """A location that did not answer, or not to us: what is there may be whole."""


@dataclass(frozen=True)
class Remote:
    """A file or folder ``below`` the fsspec URL ``root``.

    It holds no connection: whichever process has it opens its own, with the credentials of its machine.
    All methods raise InvalidInput if this machine has no driver, those that read Unreachable.
    """

    root: str
    below: str = ""

    def __str__(self) -> str:
        between = "/" if self.below and not self.root.endswith("/") else ""
        return f"{self.root}{between}{self.below}"

    def __truediv__(self, name: str) -> Remote:
        return replace(self, below=f"{self.below}/{name}" if self.below else name)

    @property
    def name(self) -> str:
        """The last part."""
        return str(self).rstrip("/").rpartition("/")[2]

    @property
    def parent(self) -> Remote:
        """The folder that it is in; that of the root is the root."""
        return replace(self, below=self.below.rpartition("/")[0])

    def absolute(self) -> Remote:
        """Itself: it is the same for every process."""
        return self

    def is_file(self) -> bool:
        """Whether it is there now, whatever was found before."""
        fs, path = self.opened()
        with _reaching(self):
            try:
                fs.invalidate_cache()
                return fs.info(path)["type"] == "file"
            except (FileNotFoundError, NotADirectoryError):
                return False

    def read_bytes(self) -> bytes:
        """The whole content. Raises: FileNotFoundError."""
        fs, path = self.opened()
        with _reaching(self):
            return bytes(fs.cat_file(path))  # type: ignore[arg-type] - no str without a text mode

    def read_text(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """The whole content as text. Raises: FileNotFoundError."""
        return self.read_bytes().decode(encoding, errors)

    def unlink(self, *, missing_ok: bool = False) -> None:
        """Delete the file. Raises: FileNotFoundError, unless ``missing_ok``."""
        fs, path = self.opened()
        with _reaching(self):
            try:
                fs.rm_file(path)
            except FileNotFoundError:
                if not missing_ok:
                    raise

    def put(self, content: bytes) -> None:
        """Write a whole file, in place of an earlier one. Raises: OSError in the store's words."""
        fs, path = self.opened()
        try:
            if _is_bucket(fs):
                fs.pipe_file(path, content)
            else:
                _put_and_move(fs, path, content)
        except OSError:
            raise
        except Exception as error:  # drivers raise what their stores' own libraries raise
            raise OSError(_reason(error)) from error

    def opened(self, argument: str = "out") -> tuple[AbstractFileSystem, str]:
        """The file system and this path in it. Raises: InvalidInput naming the ``argument`` it is from."""
        from fsspec.core import url_to_fs

        from theory.types import InvalidInput

        try:
            fs, path = url_to_fs(self.root)
        except ImportError as error:
            extra = _EXTRAS.get(self.root.partition(":")[0])
            remedy = f"pip install 'sparse-robustness[{extra}]'" if extra else "install the package it names"
            raise InvalidInput(
                f"{argument} is {self.root!r}, whose driver is missing on {platform.node()} "
                f"({_reason(error)}); {remedy}"
            ) from error
        except Exception as error:  # see put
            raise InvalidInput(
                f"{argument} is {self.root!r}, which is no location ({_reason(error)}); "
                "give a folder, or a URL such as s3://bucket/name"
            ) from error
        return fs, f"{path.rstrip('/')}/{self.below}" if self.below else path


Location = Path | Remote


def locate(text: str, *, argument: str) -> Location:
    """The location that a command line's ``argument`` names: a path, or a URL with ``://`` in it.

    Raises: InvalidInput naming the argument if the URL is none, or its driver is missing.
    """
    if "://" not in text:
        return Path(text)
    from fsspec.implementations.local import LocalFileSystem

    from theory.types import InvalidInput

    fs, path = Remote(text).opened(argument)
    if isinstance(fs, LocalFileSystem):
        return Path(path)
    if not path.strip("/") and not in_one_process(Remote(text)):
        raise InvalidInput(
            f"{argument} is {text!r}, which names no bucket; give one such as s3://bucket/name"
        )
    return Remote(text)


def in_one_process(location: Location) -> bool:
    """Whether no other process sees what is there."""
    return isinstance(location, Remote) and "memory://" in location.root


def names(folder: Location) -> set[str]:
    """What the files and folders in ``folder`` are called now; nothing if it is not there."""
    if isinstance(folder, Path):
        return set(os.listdir(folder)) if folder.exists() else set()
    fs, path = folder.opened()
    with _reaching(folder), suppress(FileNotFoundError):
        fs.invalidate_cache()
        found = {entry.rstrip("/") for entry in fs.ls(path, detail=False)}
        return {entry.rpartition("/")[2] for entry in found - {path.rstrip("/")}}
    return set()


def present(files: Sequence[Location]) -> list[Location]:
    """Which of the files are there, by one look at each folder."""
    there = {folder: names(folder) for folder in {file.parent for file in files}}
    return [file for file in files if file.name in there[file.parent]]


def make_folder(folder: Location) -> None:
    """Make a folder and those above it, unless it is there; buckets have none. Raises: OSError."""
    if isinstance(folder, Path):
        folder.mkdir(parents=True, exist_ok=True)
        return
    fs, path = folder.opened()
    if not _is_bucket(fs):  # their makedirs would make buckets, too
        with _reaching(folder):
            fs.makedirs(path, exist_ok=True)


def remove_folder(folder: Location) -> None:
    """Delete a folder and all that is in it, as far as that can be done."""
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
        return
    fs, path = folder.opened()
    with suppress(Exception):
        fs.rm(path, recursive=True)


def remove_abandoned(folder: Path) -> None:
    """Delete what killed processes of this machine left half written in the folder or below.

    Who wrote it is in its name. What others wrote stays: nobody here knows whether they live.
    """
    if os.name != "posix":  # where asking for a process could end it
        return
    for place, names, _ in os.walk(folder):  # which others may change meanwhile
        for name in fnmatch.filter(names, f".{_machine()}-*.part"):
            process = name.split("-")[1]
            if process.isdecimal() and not _lives(int(process)):
                remove_folder(Path(place) / name)


@contextmanager
def on_disk(file: Location) -> Iterator[Path]:
    """The file, or a copy of it, where a reader of paths alone finds it.

    What cannot be read is no damaged file. Raises: FileNotFoundError; Unreachable if the file, or in the
    context a part of it, cannot be read.
    """
    if isinstance(file, Path):
        try:
            if stat.S_ISREG(file.stat().st_mode):  # a pipe would be waited for
                file.open("rb").close()
            yield file
        except FileNotFoundError:
            raise
        except OSError as error:
            if error.errno is None:  # a library's word for damage
                raise
            raise Unreachable(f"{file} cannot be read ({error.strerror}); mend that and run again") from error
        return
    with _scratch(file) as copy:
        copy.write_bytes(file.read_bytes())
        yield copy


def write_atomically(path: Location, write: Callable[[Path], object]) -> None:
    """Call ``write`` on a temporary name and move the result into place, once it is on disk.

    In a folder the name is on the same disk, and like no other, even of another machine. Elsewhere it is on
    this machine, and what is there is put in place as one. Raises: OSError naming ``path``, as it was before.
    """
    try:
        if isinstance(path, Remote):
            with _scratch(path) as temporary:
                write(temporary)
                path.put(temporary.read_bytes())
        else:
            _write_and_move(path, write)
    except OSError as error:
        raise OSError(
            f"{path} cannot be written ({error.strerror or _reason(error)}); mend that and run again"
        ) from error


def append_line(path: Location, line: str) -> None:
    """Add a line to a text file, even if its last one is torn.

    Where files are put whole, of two lines at once one may be lost.
    Raises: OSError naming ``path``.
    """
    if isinstance(path, Path):
        try:
            with path.open("ab+") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
                file.write(_next_line(file.read(1), line))
        except OSError as error:
            raise OSError(f"{path} cannot be written ({error.strerror}); mend that and run again") from error
        return
    before = path.read_bytes() if path.is_file() else b""
    write_atomically(path, lambda temporary: temporary.write_bytes(before + _next_line(before, line)))


def _next_line(before: bytes, line: str) -> bytes:
    """The line as it follows on what ends so."""
    return b"\n" * (before[-1:] not in (b"", b"\n")) + f"{line}\n".encode()


@contextmanager
def _reaching(location: Remote) -> Iterator[None]:
    """What is not there is FileNotFoundError, everything else Unreachable."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:  # see put
        raise Unreachable(
            f"{location} cannot be reached ({_reason(error)}); mend that and run again"
        ) from error


def _write_and_move(path: Path, write: Callable[[Path], object]) -> None:
    # A folder for it alone: libraries that write have temporary files of their own beside it.
    folder = path.with_name(f".{_machine()}-{os.getpid()}-{uuid.uuid4().hex}.part")
    try:
        folder.mkdir()
        temporary = folder / path.name
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        remove_folder(folder)


def _put_and_move(fs: AbstractFileSystem, path: str, content: bytes) -> None:
    folder, _, name = path.rpartition("/")
    temporary = f"{folder}/.{name}.{uuid.uuid4().hex}.part"
    try:
        fs.pipe_file(temporary, content)
        fs.mv(temporary, path)
    except BaseException:
        with suppress(Exception):
            fs.rm_file(temporary)
        raise


@functools.cache
def _machine() -> str:
    """Twelve hexadecimal digits for processes that see each other: those of a machine, or of a container."""
    space = Path("/proc/self/ns/pid")
    seen = space.stat().st_ino if space.exists() else 0
    boot = Path("/proc/sys/kernel/random/boot_id")
    since = boot.read_text() if boot.exists() else ""
    return hashlib.sha256(f"{platform.node()} {seen} {since}".encode()).hexdigest()[:12]


def _lives(process: int) -> bool:
    """Whether there is a process of this id here; as far as can be seen."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass  # it is somebody else's
    return True


@contextmanager
def _scratch(file: Remote) -> Iterator[Path]:
    """A name like the file's, on this machine, for a while."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        yield Path(folder, file.name)


def _is_bucket(fs: AbstractFileSystem) -> bool:
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    return not _BUCKETS.isdisjoint(protocols)


def _reason(error: Exception) -> str:
    """The first line of what an error says, or its kind."""
    return str(error).split("\n", 1)[0] or type(error).__name__
