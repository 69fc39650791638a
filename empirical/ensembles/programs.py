"""Saved ``torch.export`` programs, read without running anything their author could have put in the file.

PyTorch's own loader unpickles without limits whatever an archive declares as pickled, loads compiled code,
resolves operators by dotted names and evaluates symbolic sizes as Python. A program of ordinary layers needs
none of this, so an archive that asks for it is refused before it is loaded.
"""

from __future__ import annotations

import io
import json
import logging
import re
import reprlib
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from empirical.ensembles.folding import fold, in_place
from theory.types import InvalidInput, first_line

_WEIGHTS = "data/weights/model_weights_config.json"
_CONSTANTS = "data/constants/model_constants_config.json"
_PROGRAM = "models/model.json"
_SAMPLES = "data/sample_inputs/model.pt"
_REQUIRED = ("archive_format", _WEIGHTS, _CONSTANTS, _PROGRAM, _SAMPLES)
# Entries without code: raw tensors, descriptions in JSON, and notes about the archive itself.
_PLAIN = re.compile(
    r"data/weights/weight_\d+|data/constants/tensor_\d+|archive_version|byteorder|\.data/\w+|extra/.*"
)
_OPERATOR = re.compile(r"torch\.ops\.aten\._?[a-z]\w*\.[A-Za-z]\w*|_operator\.getitem")
# A size that calls nothing but the constructors of symbols and integers.
_SIZE = re.compile(r"(Symbol\('\w+'(, \w+=True)*\)|Integer\(\d+\)|[\w +*-])*")


def load_program(path: Path) -> ExportedProgram:
    """The program in a ``.pt2`` file.

    Raises: InvalidInput if the file is no such archive, is damaged, or could run code when loaded.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            check_stored(archive, path)
            _check_harmless(path, archive)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logging.getLogger("torch.export").setLevel(logging.ERROR)
            return torch.export.load(path)
    except InvalidInput:
        raise
    except Exception as error:  # the loader raises whatever its parts raise
        raise InvalidInput(
            f"model {str(path)!r} is no readable torch.export program ({first_line(error)}); "
            "save it again with torch.export.save"
        ) from error


def check_stored(archive: zipfile.ZipFile, path: Path) -> None:
    """Raise InvalidInput unless all entries are stored as they are, as PyTorch does, and fit into the file.

    Compressed ones could hold a thousand times as much, and overlapping ones too.
    """
    entries, size = archive.infolist(), path.stat().st_size
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise InvalidInput(f"model {str(path)!r} is compressed, which PyTorch's files are not; save it again")
    held = sum(max(entry.file_size, entry.compress_size) for entry in entries)
    if held > size:
        raise InvalidInput(f"model {str(path)!r} claims {held:,} bytes in a file of {size:,}; save it again")


class ProgramModule(nn.Module):
    """A program as a module that takes any number of examples, whatever number it was exported with.

    A program may be bound to the size of its example batch; groups of that size then go through it by
    ``vmap``, the last one filled up with zeros. ``weights`` are those of its linear layers and convolutions,
    as they take part in the computation (:func:`empirical.ensembles.folding.fold`), by the names of the
    parameters that hold them. Without ``cut``, nothing cuts its gradients.
    """

    def __init__(self, program: ExportedProgram, *, cut: bool = True) -> None:
        super().__init__()
        self._source, self._cut = program, cut
        self.program = _without_changes(program).module()
        self.group = _batch_size(program)
        found = fold(self.program, cut=cut)
        self.weights = {f"program.{name}": value for name, value in found.items()}

    def __deepcopy__(self, _: dict[int, object]) -> ProgramModule:
        return ProgramModule(self._source, cut=self._cut)

    def train(self, mode: bool = True) -> ProgramModule:  # noqa: FBT001, FBT002 - PyTorch's own signature
        """A program keeps the mode that it was exported in."""
        del mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Scores (n, c) of n examples."""
        if self.group is None or len(x) == self.group:
            return self.program(x)
        missing = -len(x) % self.group
        filled = torch.cat([x, x.new_zeros(missing, *x.shape[1:])])
        groups = filled.unflatten(0, (-1, self.group))
        return torch.vmap(self.program)(groups).flatten(0, 1)[: len(x)]


def _without_changes(program: ExportedProgram) -> ExportedProgram:
    """The program with new values where it changes constants in place, as far as PyTorch can say so."""
    given = set(program.graph_signature.user_inputs)
    reached = {node for node in program.graph.nodes if node.op == "placeholder" and node.name in given}
    changes = False
    for node in program.graph.nodes:
        if not reached.isdisjoint(node.all_input_nodes):
            reached.add(node)
        changes |= in_place(node) and node.args[0] not in reached
    if not changes:
        return program
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return program.run_decompositions({})
    except Exception:  # noqa: BLE001 - whatever PyTorch lacks for it: its weights are those that are stored
        return program


def input_shape(program: ExportedProgram) -> tuple[int | torch.SymInt, ...] | None:
    """Shape of the program's first input, batch first; None if it takes none."""
    (given, *_) = (*program.graph_signature.user_inputs, None)
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name == given:
            return tuple(node.meta["val"].shape)
    return None


def _batch_size(program: ExportedProgram) -> int | None:
    """The number of examples that the program is bound to; None if it takes any."""
    shape = input_shape(program)
    return shape[0] if shape and isinstance(shape[0], int) else None


def _check_harmless(path: Path, archive: zipfile.ZipFile) -> None:
    """Raise InvalidInput unless nothing in the archive can run code."""

    def refuse(what: str) -> InvalidInput:
        return InvalidInput(
            f"model {str(path)!r} {what}, which could run code; export a module of ordinary layers"
        )

    entries = [name.partition("/")[2] for name in archive.namelist()]
    contents = dict(zip(entries, archive.namelist(), strict=True))
    missing = [name for name in _REQUIRED if name not in contents]
    if missing:
        raise InvalidInput(
            f"model {str(path)!r} is no torch.export program (it lacks {missing[0]}); save it with "
            "torch.export.save"
        )
    if len(contents) != len(entries):
        raise refuse("holds an entry twice")
    for name in entries:
        if name not in _REQUIRED and not _PLAIN.fullmatch(name):
            raise refuse(f"holds {name!r}")
    for config in (_WEIGHTS, _CONSTANTS):
        for name, entry in json.loads(archive.read(contents[config]))["config"].items():
            if entry.get("use_pickle") is not False:
                raise refuse(f"holds {name!r} as a pickle")
    try:
        torch.load(io.BytesIO(archive.read(contents[_SAMPLES])), weights_only=True)
    except Exception as error:
        raise refuse("holds example inputs that are not tensors") from error
    for key, value in _fields(json.loads(archive.read(contents[_PROGRAM]))):
        if key == "target" and not _OPERATOR.fullmatch(str(value)):
            raise refuse(f"calls {reprlib.repr(value)}")
        if key == "expr_str" and not _SIZE.fullmatch(str(value)):
            raise refuse(f"has a size {reprlib.repr(value)}")


def _fields(value: object) -> Iterator[tuple[str, object]]:
    """Every key of every object in a JSON value, with what it holds."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key, inner
            yield from _fields(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _fields(inner)
