"""Mutants of valid files and of trees of values, drawn by Hypothesis, which makes a failure simple again."""

from __future__ import annotations

import copy
import io
import json
import struct
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hypothesis import strategies as st

EXTREMES = (
    0,
    1,
    -1,
    127,
    128,
    255,
    256,
    2**15,
    2**16,
    2**31 - 1,
    2**31,
    -(2**31),
    2**32 - 1,
    2**62,
    -(2**63),
)
# Values that no reader expects in the place of any other.
ODD: tuple[object, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**12, 10**30, 0.5, -1.5, 1e308, float("nan"),
    float("inf"), "", "0", "a\nb", "\x1b[31m", "../../x", "\u00b2", "9" * 5000, "x" * 10_000, [], [0], [[]],
    {}, {"a": 1}, [[[[[[[[0]]]]]]]],
)  # fmt: skip
Tree = object
Draw = Callable[[st.SearchStrategy], object]


def odd() -> st.SearchStrategy[object]:
    """A value that is out of place almost everywhere."""
    return st.sampled_from(ODD) | st.integers() | st.floats() | st.text(max_size=8)


@st.composite
def mutants(draw: Callable, content: bytes, others: Sequence[bytes] = ()) -> bytes:
    """The content after one to four changes: bits, bytes, integers, blocks, an end cut off, a splice."""
    found = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        if not found:
            break
        place = draw(st.integers(0, len(found) - 1))
        kind = draw(st.sampled_from(("bit", "byte", "integer", "cut", "drop", "run", "swap", "splice")))
        length = draw(st.integers(1, max(1, min(len(found) - place, 512))))
        if kind == "bit":
            found[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "byte":
            found[place] = draw(st.integers(0, 255))
        elif kind == "integer":
            width, order = draw(st.sampled_from((1, 2, 4, 8))), draw(st.sampled_from(("little", "big")))
            value = draw(st.sampled_from(EXTREMES)) % 256**width
            found[place : place + width] = value.to_bytes(width, order)
        elif kind == "cut":
            del found[place:]
        elif kind == "drop":
            del found[place : place + length]
        elif kind == "run":
            found[place:place] = bytes([draw(st.integers(0, 255))]) * draw(st.integers(1, 4096))
        elif kind == "swap":
            other = draw(st.integers(0, len(found) - 1))
            one, two = sorted((place, other))
            size = min(length, two - one)
            block = found[one : one + size]
            found[one : one + size], found[two : two + size] = found[two : two + size], block
        else:
            source = draw(st.sampled_from((content, *others)))
            start = draw(st.integers(0, len(source)))
            found[place:] = source[start:]
    return bytes(found)


@st.composite
def trees(draw: Callable, tree: Tree) -> Tree:
    """The tree of dicts and lists after one to three changes: a node replaced, dropped, doubled, renamed."""
    found = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(found))
        if not places:
            return copy.deepcopy(draw(odd()))
        parent, key = draw(st.sampled_from(places))
        kind = draw(st.sampled_from(("replace", "replace", "drop", "double", "move", "rename")))
        if kind == "drop":
            del parent[key]
        elif kind == "double" and isinstance(parent, list):
            parent.insert(key, copy.deepcopy(parent[key]))
        elif kind == "move":
            other, there = draw(st.sampled_from(places))
            parent[key] = copy.deepcopy(other[there])
        elif kind == "rename" and isinstance(parent, dict):
            parent[draw(st.text(max_size=8) | st.sampled_from(["a\nb", "", "x" * 5000, "9" * 5000]))] = (
                parent.pop(key)
            )
        else:
            parent[key] = copy.deepcopy(draw(odd()))  # which later changes may alter
    return found


def _places(tree: Tree):  # noqa: ANN202 - pairs of a container and a key
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in entries:
        yield tree, key
        yield from _places(value)


Members = Mapping[str, bytes]
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)


def members(content: bytes) -> dict[str, bytes]:
    """What a zip file holds."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(entries: Sequence[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip file with right checksums; a name may be there twice."""
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", method) as archive:
        warnings.simplefilter("ignore")
        for name, content in entries:
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            with archive.open(info, "w") as member:
                member.write(content)
    return file.getvalue()


@st.composite
def repacked(
    draw: Callable, content: bytes, change: Callable[[str, bytes], st.SearchStrategy[bytes]]
) -> bytes:
    """The zip file with some members changed, gone, renamed or there twice, its checksums right."""
    entries = list(members(content).items())
    for _ in range(draw(st.integers(1, 2))):
        place = draw(st.integers(0, len(entries) - 1))
        name, member = entries[place]
        kind = draw(st.sampled_from(("change", "change", "change", "change", "drop", "rename", "double")))
        if kind == "change":
            entries[place] = (name, draw(change(name, member)))
        elif kind == "double":
            entries.append((name, draw(mutants(member))))
        elif kind == "rename":
            entries[place] = (draw(st.sampled_from([n for n, _ in entries])), member)
        else:
            del entries[place]
        if not entries:
            break
    return packed(entries, draw(st.sampled_from((zipfile.ZIP_STORED,) * 3 + METHODS)))


def safetensors(header: Tree, data: bytes) -> bytes:
    """A safetensors file with this header, whatever it says."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode(errors="surrogatepass")
    return struct.pack("<Q", len(text)) + text + data


def safetensors_parts(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and data of a good safetensors file."""
    size = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + size]), content[8 + size :]


@st.composite
def reheaded(draw: Callable, content: bytes) -> bytes:
    """The safetensors file with another header, whose length is right."""
    header, data = safetensors_parts(content)
    changed = draw(trees(header))
    return safetensors(changed, data + draw(st.sampled_from([b"", b"", b"\0", bytes(1000)])))
