"""Files made to harm: small ones that declare much, and ones whose reading could run code."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import torch

from tests.fuzz import networks, tables, thrift
from tests.fuzz.mutation import members, packed, safetensors

_DEEP = 100_000


class Code:
    """Unpickled, it makes the canary, in the working folder, which the law looks for."""

    def __reduce__(self) -> tuple[object, ...]:
        return open, (CANARY, "w")


CANARY = "canary"


def npy(
    shape: tuple[object, ...], descr: object = "<f8", *, body: bytes = b"", fortran: object = False
) -> bytes:
    """An array's file with this header, whatever it holds."""
    text = repr({"descr": descr, "fortran_order": fortran, "shape": shape}).encode() + b"\n"
    return np.lib.format.magic(1, 0) + struct.pack("<H", len(text)) + text + body


def arrays() -> dict[str, np.ndarray]:
    """A small data set."""
    rng = np.random.default_rng(0)
    x, y = rng.random((6, 4)), np.arange(6) % 3
    return {"x_train": x, "y_train": y, "x_test": x[:3], "y_test": y[:3]}


def npy_of(value: np.ndarray) -> bytes:
    """The array's file."""
    file = io.BytesIO()
    np.lib.format.write_array(file, value)
    return file.getvalue()


def npz(method: int = zipfile.ZIP_STORED, **changed: bytes) -> bytes:
    """The data set as a zip file with some members replaced."""
    entries = {}
    for name, value in arrays().items():
        entries[f"{name}.npy"] = changed.get(name, npy_of(value))
    return packed(list(entries.items()), method)


def _objects() -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, np.array([Code()] * 3, dtype=object), allow_pickle=True)
    return file.getvalue()


def _claiming(content: bytes, declared: int) -> bytes:
    """The zip file whose directory says that its first member is so large."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        size = archive.infolist()[0].file_size
    return content.replace(struct.pack("<I", size), struct.pack("<I", declared))


def _dictionary(content: bytes, size: int) -> bytes:
    """The LZMA zip file whose first member asks for so large a dictionary."""
    name, extra = struct.unpack("<HH", content[26:30])
    at = 30 + name + extra + 5
    return content[:at] + struct.pack("<I", size) + content[at + 4 :]


NPZ: dict[str, Callable[[], bytes]] = {
    "pickled objects": lambda: npz(x_train=_objects()),
    "10^12 elements": lambda: npz(x_train=npy((10**6, 10**6))),
    "2^80 elements": lambda: npz(x_train=npy((2**40, 2**40))),
    "negative sides": lambda: npz(x_train=npy((-1, -8), body=bytes(64))),
    "no entry, endless sides": lambda: npz(x_train=npy((0, 2**62, 2**62))),
    "sides that are no integers": lambda: npz(x_train=npy((6.0, "4"))),
    "deep header": lambda: npz(x_train=npy((1,), "[" * 4000)),
    "a record in a record": lambda: npz(x_train=npy((1,), [("a", [("b", "<f8", (10**9,))])])),
    "zeros, deflated": lambda: npz(zipfile.ZIP_DEFLATED, x_train=npy((2**25,), "|u1", body=bytes(2**25))),
    "zeros, LZMA": lambda: npz(zipfile.ZIP_LZMA, x_train=npy((2**25,), "|u1", body=bytes(2**25))),
    "claims 4 GiB": lambda: _claiming(npz(), 2**32 - 2),
    "LZMA dictionary of 4 GiB": lambda: _dictionary(npz(zipfile.ZIP_LZMA), 2**32 - 1),
    "a zip in a zip": lambda: packed([("x_train.npy", npz()), ("y_train.npy", npz())]),
    "text": lambda: npz(y_train=npy((6,), "<U1", body=b"a\0\0\0" * 6)),
    "NaN": lambda: npz(x_train=npy((6, 4), body=struct.pack("<d", float("nan")) * 24)),
    "infinity": lambda: npz(x_test=npy((3, 4), body=struct.pack("<d", float("inf")) * 12)),
    "no examples": lambda: npz(x_test=npy((0, 4)), y_test=npy((0,), "<i8")),
    "no features": lambda: npz(x_train=npy((6, 0)), x_test=npy((3, 0))),
    "labels of 2^62": lambda: npz(y_train=npy((6,), "<i8", body=struct.pack("<q", 2**62) * 6)),
}


def _lying_page(codec: str) -> bytes:
    """A table of one row, whose first page decompresses to 128 MiB of zeros, as its header says."""
    body, tree = tables.footer(tables.runs(1))
    column = tables.columns(tree)[0]
    start = min(tables.field(column, at) for at in (9, 11))
    header, end = thrift.decode(body, start)
    page = pa.compress(bytes(2**27), codec, asbytes=True)
    size = tables.field(header, 3)
    for entry in header["fields"]:
        entry[2] = {2: 2**27, 3: len(page)}.get(entry[0], entry[2])
    changed = thrift.encode(header) + page
    moved = len(changed) - (end + size - start)
    for at, other in enumerate(tables.columns(tree)):
        for entry in other["fields"]:
            if (entry[0] in (9, 11) and entry[2] > start) or (entry[0] == 7 and at == 0):
                entry[2] += moved
            if entry[0] == 4:
                entry[2] = {"gzip": 2, "zstd": 6}[codec] if at == 0 else entry[2]
    return tables.with_footer(body[:start] + changed + body[end + size :], tree)


def _claimed_rows(rows: int) -> bytes:
    """A table of few rows, of which the footer alone says that they are many."""
    body, tree = tables.footer(tables.stored(tables.good()))
    for part, number in (
        (tree, 3),
        (tables.field(tree, 4)["items"][0], 3),
        *((c, 5) for c in tables.columns(tree)),
    ):
        next(entry for entry in part["fields"] if entry[0] == number)[2] = rows
    return tables.with_footer(body, tree)


TABLES: dict[str, Callable[[], bytes]] = {
    "10^9 rows in the footer": lambda: _claimed_rows(10**9),
    "2^62 rows in the footer": lambda: _claimed_rows(2**62),
    "runs of 10^9 rows": lambda: tables.runs(10**9),
    "runs of 2^21 rows of a text of 10^5": lambda: tables.runs(2**21, text="x" * 10**5),
    "a page of 128 MiB, zstd": lambda: _lying_page("zstd"),
    "a page of 128 MiB, gzip": lambda: _lying_page("gzip"),
}


def _offsets(
    *pairs: tuple[object, object], shape: object = (2,), dtype: object = "F32", data: int = 8
) -> bytes:
    header = {f"{k}.weight": {"dtype": dtype, "shape": shape, "data_offsets": p} for k, p in enumerate(pairs)}
    return safetensors(header, bytes(data))


_NOTHING = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
SAFETENSORS: dict[str, Callable[[], bytes]] = {
    "overlapping": lambda: _offsets((0, 8), (0, 8)),
    "negative": lambda: _offsets((-8, 0)),
    "enormous": lambda: _offsets((0, 2**62)),
    "2^80 elements": lambda: _offsets((0, 8), shape=(2**40, 2**40)),
    "no entry, endless sides": lambda: _offsets((0, 0), shape=(0, 2**62, 2**62), data=0),
    "a hole": lambda: _offsets((0, 8), data=800),
    "header of 2^63 bytes": lambda: struct.pack("<Q", 2**63) + bytes(100),
    "header of 100 MB": lambda: struct.pack("<Q", 10**8) + bytes(100),
    "deep": lambda: safetensors(b'{"a":' * _DEEP, b""),
    "many names": lambda: safetensors({str(k): _NOTHING for k in range(10**4)}, b""),
    "empty": lambda: safetensors({}, b""),
    "4-bit numbers": lambda: _offsets((0, 8), dtype="F4", shape=(16,)),
    "8-bit scales": lambda: _offsets((0, 8), dtype="F8_E8M0", shape=(8,)),
}


class _Pairs:
    """A state dict of many names of one storage, each as large."""

    def __init__(self, names: int, entries: int) -> None:
        whole = torch.zeros(entries)
        self.state = {str(k): whole.view(1, -1) for k in range(names)}


def _outer() -> dict[str, torch.Tensor]:
    """A weight and a mask whose product is far larger than both."""
    state = dict(networks.stack().state_dict())
    del state["0.weight"]
    return state | {"0.weight_orig": torch.zeros(20_000, 1), "0.weight_mask": torch.zeros(1, 20_000)}


def _deflated(content: bytes) -> bytes:
    return packed(list(members(content).items()), zipfile.ZIP_DEFLATED)


def _pickle_of(opcodes: bytes) -> bytes:
    """A torch file of the new format with this pickle."""
    entries = members(networks.saved(networks.stack().state_dict()))
    return packed([(n, opcodes if n.endswith("data.pkl") else c) for n, c in entries.items()])


def _call(module: str, name: str, argument: bytes) -> bytes:
    """Opcodes that call a global with one argument."""
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + argument + b"\x85R."


def _long(value: int) -> bytes:
    return b"\x8a\x08" + value.to_bytes(8, "little")


def _resized() -> bytes:
    """A torch file whose pickle declares a tensor of 10^9 entries of a storage of a few."""
    content = networks.saved({"0.weight": torch.zeros(7, 3), "0.bias": torch.zeros(7)})
    entries = members(content)
    name = next(n for n in entries if n.endswith("data.pkl"))
    changed = entries[name].replace(b"K\x07K\x03\x86", b"J" + struct.pack("<i", 10**9) + b"K\x03\x86")
    assert changed != entries[name]
    return packed([(n, changed if n == name else c) for n, c in entries.items()])


TORCH: dict[str, Callable[[], bytes]] = {
    "code, new format": lambda: networks.saved({"0.weight": Code()}),
    "code, old format": lambda: networks.saved({"0.weight": Code()}, new=False),
    "code, bare pickle": lambda: pickle.dumps(Code(), protocol=2),
    "code, before the end": lambda: _pickle_of(
        _call("builtins", "eval", b"X\x15\0\0\0open('canary', 'w')  ")
    ),
    "a bytearray of 10^12": lambda: _pickle_of(_call("builtins", "bytearray", _long(10**12))),
    "a tensor of 10^12 entries, stride 0": lambda: networks.saved(
        {"0.weight": torch.zeros(1).expand(10**6, 10**6)}
    ),
    "a tensor beyond its storage": _resized,
    "10^3 names for one storage": lambda: networks.saved(_Pairs(10**3, 10**5).state),
    "an outer product": lambda: networks.saved(_outer()),
    "zeros, deflated": lambda: _deflated(
        networks.saved({"0.weight": torch.zeros(2**12, 2**12), "0.bias": torch.zeros(2**12)})
    ),
    "old format, 10^12 entries": lambda: networks.saved({"0.weight": torch.zeros(7, 3)}, new=False).replace(
        b"K\x15", b"\x8a\x06" + (10**12).to_bytes(6, "little")
    ),
    "deep": lambda: _pickle_of(b"\x80\x02" + b"]" * _DEEP + b"a" * (_DEEP - 1) + b"."),
    "not finished": lambda: _pickle_of(b"\x80\x02" + b"(" * _DEEP),
}


def _program(file: str, change: Callable[[bytes], bytes]) -> bytes:
    """The exported program with one of its files changed."""
    entries = members(PROGRAM()).items()
    return packed([(n, change(content) if n.endswith(f"/{file}") else content) for n, content in entries])


def _json(change: Callable[[dict], object]) -> Callable[[bytes], bytes]:
    def changed(content: bytes) -> bytes:
        tree = json.loads(content)
        change(tree)
        return json.dumps(tree).encode()

    return changed


def _sizes(value: object) -> Callable[[dict], None]:
    def change(tree: dict) -> None:
        for entry in tree["config"].values():
            entry["tensor_meta"]["sizes"] = [{"as_int": value}, {"as_int": value}]

    return change


def _pickled(tree: dict) -> None:
    for entry in tree["config"].values():
        entry["use_pickle"] = True


def _target(target: str) -> Callable[[dict], None]:
    def change(tree: dict) -> None:
        tree["graph_module"]["graph"]["nodes"][0]["target"] = target

    return change


_cached: list[bytes] = []


def PROGRAM() -> bytes:  # noqa: N802 - made once, since export takes seconds
    """An exported program."""
    if not _cached:
        _cached.append(networks.program())
    return _cached[0]


PROGRAMS: dict[str, Callable[[], bytes]] = {
    "pickled weights": lambda: _program("model_weights_config.json", _json(_pickled)),
    "weights of 10^12 entries": lambda: _program("model_weights_config.json", _json(_sizes(10**6))),
    "an operator by another name": lambda: _program("model.json", _json(_target("os.system"))),
    "deep": lambda: _program("model.json", lambda _: b"[" * _DEEP),
    "code in the examples": lambda: _program("model.pt", lambda _: pickle.dumps(Code())),
    "zeros, deflated": lambda: packed(
        [(n, c + b" " * 2**26 if n.endswith("model.json") else c) for n, c in members(PROGRAM()).items()],
        zipfile.ZIP_DEFLATED,
    ),
}


EXPERIMENTS: dict[str, Callable[[], bytes]] = {
    "deep arrays": lambda: b"title = " + b"[" * _DEEP,
    "deep tables": lambda: b"[network]\nhidden" + b".a" * _DEEP + b" = 1\n",
    "a long number": lambda: b"seeds = " + b"9" * 10**5,
    "a name that is a path": lambda: b'name = "../../elsewhere"\n' + experiment(),
    "seeds beyond counting": lambda: experiment().replace(b"seeds = 2", b"seeds = 1000000000000"),
    "a layer of 10^12 units": lambda: experiment().replace(b"hidden = [3]", b"hidden = [1000000000000]"),
    "a box of one side": lambda: experiment().replace(b"box = [0.0, 1.0]", b"box = [0.0]"),
    "a key of two lines": lambda: b'"a\\nb" = 1\n' + experiment(),
    "not UTF-8": lambda: b"title = '\xff'",
}


def experiment() -> bytes:
    """A small experiment that names every kind of entry."""
    return b"""title = "Tiny"
data = "digits"
sparsities = [0, 0.5, 0.9]
conditions = ["dense", "magnitude"]
seeds = 2
attacks = ["fgs"]
eps = 0.1
further_eps = [0.2]
pair = [1, 7]
masks = 3
train_examples = 20
test_examples = 5
compact = true
local = ["crown"]
local_examples = 2
local_radii = [0.1, 0.1]
network = { kind = "mlp", hidden = [3] }

[first]
epochs = 1
batch_size = 8
learning_rate = 0.1
schedule = { shape = "steps", decay = 0.1, epochs = [1] }
adversary = { eps = 0.1, step = 0.1, steps = 1, box = [0.0, 1.0] }

[retrain]
epochs = 1
augmentation = { padding = 2, mirror = true }

[quick]
seeds = 1
network = { hidden = [2] }
"""


SETTINGS: dict[str, Callable[[], bytes]] = {
    "deep": lambda: b"[" * _DEEP,
    "a long number": lambda: b'{"a": ' + b"9" * 10**5 + b"}",
    "no table": lambda: b"3",
    "not UTF-8": lambda: b'{"a": "\xff"}',
    "nothing": lambda: b"",
}
