"""Results tables to mutate: footers and page headers changed in whole files, columns before writing."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from hypothesis import strategies as st

from empirical.results import KINDS, SCHEMA
from tests.fuzz import thrift
from tests.fuzz.mutation import trees
from tests.results_table import network_table

_ABSURD = (np.nan, np.inf, -np.inf, 0.0, -1.0, 1e308, -1e308, 5e-324, 0.5, 2.0)
_CODECS = ("zstd", "gzip", "snappy", "brotli", "lz4", "none")


# What may be done to a table: other values or rows leave it one that is read.
CHANGES = ("values", "nulls", "type", "drop", "twice", "rows", "metadata")
READABLE = ("values", "values", "rows")


def good(*, families: tuple[str, ...] = ("linear", "mlp"), seeds: int = 2) -> pa.Table:
    """A results table that all who read one can use."""
    frame = network_table(families=families, conditions=("dense", "magnitude", "random"), seeds=seeds)
    frame = frame.assign(eps=0.1, seed=frame["seed"].astype("int64"))
    columns = {name: pa.array(frame[name], from_pandas=True) for name in SCHEMA.names}
    return pa.table(columns).select(SCHEMA.names).cast(SCHEMA).replace_schema_metadata(SCHEMA.metadata)


def stored(table: pa.Table, *, codec: str = "zstd", checksum: bool = True, arrow: bool = True) -> bytes:
    """The table as a Parquet file; without ``arrow`` as other programs write it."""
    file = io.BytesIO()
    pq.write_table(table, file, compression=codec, write_page_checksum=checksum, store_schema=arrow)
    return file.getvalue()


def footer(content: bytes) -> tuple[bytes, dict]:
    """What comes before the footer, and the footer as a tree."""
    size = struct.unpack("<I", content[-8:-4])[0]
    return content[: -8 - size], thrift.decode(content, len(content) - 8 - size)[0]


def with_footer(body: bytes, tree: object) -> bytes:
    """A Parquet file with this footer."""
    written = thrift.encode(tree)
    return body + written + struct.pack("<I", len(written)) + b"PAR1"


@st.composite
def refooted(draw: Callable, content: bytes) -> bytes:
    """The file with another footer, whose length is right."""
    body, tree = footer(content)
    return with_footer(body, draw(trees(tree)))


def columns(tree: dict) -> list[dict]:
    """The metadata of all column chunks in a footer."""
    groups = field(tree, 4)["items"]
    return [field(chunk, 3) for group in groups for chunk in field(group, 1)["items"]]


def field(struct: dict, number: int) -> Any:
    return next(value for at, _, value in struct["fields"] if at == number)


def _start(column: dict) -> int:
    found = {at: value for at, _, value in column["fields"] if at in (9, 11)}
    return min(found.values())


@st.composite
def repaged(draw: Callable, content: bytes) -> bytes:
    """The file with the first page header of a column changed, and all that comes later moved."""
    body, tree = footer(content)
    start = _start(draw(st.sampled_from(columns(tree))))
    header, end = thrift.decode(body, start)
    written = thrift.encode(draw(trees(header)))
    moved = len(written) - (end - start)
    for column in columns(tree):
        begins = _start(column)
        for entry in column["fields"]:
            later = entry[0] in (9, 11) and entry[2] > start
            if later or (entry[0] == 7 and begins == start):
                entry[2] += moved
    return with_footer(body[:start] + written + body[end:], tree)


@st.composite
def remade(draw: Callable, table: pa.Table, *, kinds: tuple[str, ...] = CHANGES) -> bytes:
    """The table with columns of other values, of other types, with nulls, missing, twice, or few rows."""
    for _ in range(draw(st.integers(1, 3))):
        if not table.num_columns:
            break
        place = draw(st.integers(0, table.num_columns - 1))
        name, column = table.schema.names[place], table.column(place)
        kind = draw(st.sampled_from(kinds))
        if kind == "values":
            table = table.set_column(place, name, _column(draw, name, column))
        elif kind == "nulls":
            hidden = pa.array(np.arange(len(table)) % draw(st.sampled_from([1, 2, 7])) == 0)
            plain = column.cast(pa.string()) if pa.types.is_dictionary(column.type) else column
            table = table.set_column(place, name, pc.if_else(hidden, None, plain))  # type: ignore[attr-defined]
        elif kind == "type":
            table = table.set_column(place, name, _typed(draw, len(table)))
        elif kind == "drop":
            table = table.remove_column(place)
        elif kind == "twice":
            table = table.append_column(name, column)
        elif kind == "rows":
            table = table.slice(draw(st.integers(0, 50)), draw(st.integers(0, 60)))
        else:
            table = table.replace_schema_metadata(draw(st.sampled_from(METADATA)))
    return stored(
        table, codec=draw(st.sampled_from(_CODECS)), checksum=draw(st.booleans()), arrow=draw(st.booleans())
    )


_OURS = dict(SCHEMA.metadata or {})
METADATA = (
    {}, {**_OURS, b"pandas": b"{"}, {**_OURS, b"pandas": b'{"index_columns": ["seed"], "columns": []}'},
    {**_OURS, b"pandas": b"[" * 10_000}, {**_OURS, b"sparse_robustness.run": b"\xff"},
    {b"sparse_robustness.schema": b"\xff\xfe"}, {**_OURS, b"ARROW:schema": b"AAAA"},
)  # fmt: skip


def _column(draw: Callable, name: str, column: pa.ChunkedArray) -> pa.Array:
    """Other values of the column's own type: those of a row that is there, or absurd ones."""
    count = len(column)
    kind = SCHEMA.field(name).type if name in SCHEMA.names else column.type
    if pa.types.is_floating(kind):
        pool = draw(st.lists(st.sampled_from(_ABSURD) | st.floats(width=64), min_size=1, max_size=4))
        return pa.array(np.resize(np.array(pool, np.float64), count))
    if pa.types.is_integer(kind):
        most = 2**31 if kind.bit_width == 32 else 2**63
        pool = draw(st.lists(st.integers(-most, most - 1), min_size=1, max_size=4))
        return pa.array(np.resize(np.array(pool, f"int{kind.bit_width}"), count))
    known = [*KINDS, "", "dense", "mlp", "linear", "l2", "linf", "cases", "excess", "best", "a\nb", "\x1b[2J"]
    pool = draw(st.lists(st.sampled_from(known) | st.text(max_size=5), min_size=1, max_size=4))
    return pa.array(np.resize(np.array(pool, object), count), type=pa.string())


def _typed(draw: Callable, count: int) -> pa.Array:
    """A column of another type."""
    kinds = (
        pa.array([[1.0]] * count), pa.array([{"a": 1}] * count), pa.array(["x"] * count),
        pa.array([b"\xff"] * count), pa.array([True] * count), pa.nulls(count), pa.array(["1"] * count),
        pa.array(np.zeros(count, "datetime64[ns]")), pa.array(np.arange(count, dtype=np.uint64) + 2**63),
        pa.array([2**70] * count, pa.decimal128(38, 0)), pa.array(np.zeros(count, np.float16)),
    )  # fmt: skip
    return draw(st.sampled_from(kinds))


def runs(rows: int, *, text: str = "x") -> bytes:
    """A table of one row, each column of which says that its value is repeated so many times."""
    one = pa.table({name: _constant(SCHEMA.field(name).type, text) for name in SCHEMA.names})
    file = io.BytesIO()
    pq.write_table(
        one.replace_schema_metadata(SCHEMA.metadata), file, compression="none", data_page_version="1.0"
    )
    body, tree = footer(file.getvalue())
    found = bytearray(body[:4])
    _set(tree, 3, rows)
    _set(field(tree, 4)["items"][0], 3, rows)
    for column in columns(tree):
        place, end = _start(column), _start(column) + field(column, 7)
        begins = len(found)
        header, after = thrift.decode(body, place)
        found += body[place : after + field(header, 3)]  # the dictionary as it is
        place = after + field(header, 3)
        header, after = thrift.decode(body, place)
        page = body[after:end]
        levels = int.from_bytes(page[:4], "little")
        run = thrift.varint(rows << 1)
        nulls, width = run + page[4 + levels - 1 : 4 + levels], page[4 + levels : 5 + levels]
        new = len(nulls).to_bytes(4, "little") + nulls + width + run + bytes(-(-width[0] // 8))
        _set(header, 2, len(new))
        _set(header, 3, len(new))
        header["fields"] = [[at, kind, value] for at, kind, value in header["fields"] if at != 4]
        _set(field(header, 5), 1, rows)
        for at in (9, 11):
            _set(column, at, len(found) if at == 9 else begins)
        found += thrift.encode(header) + new
        _set(column, 5, rows)
        for at in (6, 7):
            _set(column, at, len(found) - begins)
    return with_footer(bytes(found), tree)


def _set(struct: dict, number: int, value: int) -> None:
    next(entry for entry in struct["fields"] if entry[0] == number)[2] = value


def _constant(kind: pa.DataType, text: str) -> pa.Array:
    return pa.array([text], kind) if pa.types.is_dictionary(kind) else pa.array([0], kind)
