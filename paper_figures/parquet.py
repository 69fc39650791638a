"""Parquet files that nobody vouches for: what they declare is checked before anything is allocated.

A run of equal values takes a few bytes however long it is, and a page may decompress to thousands of times
its size. So the rows that the footer declares and the bytes that every page header declares have limits.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

# Where a file's metadata say what table it is, and what a table of bounds says there.
SCHEMA_KEY, BOUNDS_VERSION = b"sparse_robustness.schema", "bounds-2"
# So many rows are read from a file of any size (a results table's take 92 bytes each), and so many for every
# byte of a larger file: ten of the fullest tables' would still be one.
ROWS, ROWS_PER_BYTE = 2**22, 10
# Bytes of all pages when decompressed, likewise; those of results tables are twice what is stored.
PAGES, PAGES_PER_BYTE = 2**26, 200
# Characters of a text: comparing a column with one writes out its texts, row by row.
LONGEST = 1000
# A page header takes about 30 bytes, with statistics hardly ever more than the first of these.
_HEADERS = (2**9, 2**16)
# Pages of a small file, and bytes of a larger one for each: a page and its header are seldom below 60.
_PAGES, _BYTES_PER_PAGE = 2**14, 32
# Different texts of a column, and their characters: every batch of rows holds them once more.
TEXTS, CHARACTERS = 2**14, 2**20
_BATCH = 2**16
_DEPTH = 16
Fields = dict[int, object]


class BadParquet(ValueError):
    """A damaged file, one of other columns, or one that declares too much; a line says what is wrong."""


def read_parquet(path: Path, schema: pa.Schema, *, where: pc.Expression | None = None) -> pa.Table:
    """The columns of ``schema``, in its types, of the rows for which ``where`` holds.

    A text is held once, however many rows have it.
    Raises: OSError if the file cannot be read; BadParquet if it is damaged, lacks a column, has one of
    another type, or declares more rows or bytes than the limits above.
    """
    texts = [field.name for field in schema if pa.types.is_dictionary(field.type)]
    try:
        _check_declared(path)
        there = [name for name in texts if name in pq.read_schema(path).names]
        with pq.ParquetFile(path, read_dictionary=there, page_checksum_verification=True) as file:
            _check_columns(file.schema_arrow, schema, texts)
            batches = file.iter_batches(batch_size=_BATCH, columns=schema.names, use_threads=False)
            tables = [table for table in _chosen(batches, texts, where) if table.num_rows]
            found = pa.concat_tables(tables) if tables else file.schema_arrow.empty_table()
            content = found.select(schema.names).cast(schema).unify_dictionaries()
            content.validate(full=True)
    except OSError as error:
        if error.errno is not None:  # the system's, not Arrow's: the file may be whole
            raise
        raise BadParquet(_plain(error)) from error
    except (ValueError, KeyError, IndexError, TypeError, pa.ArrowException) as error:
        raise BadParquet(_plain(error)) from error
    return content


def schema_version(path: Path, key: bytes) -> str:
    """What the file's metadata hold under the key, printable; "none" for nothing.

    Raises: OSError if the file cannot be read, BadParquet if it is no Parquet file.
    """
    try:
        _check_declared(path)
        found = pq.read_metadata(path).metadata or {}
    except OSError as error:
        if error.errno is not None:  # the system's, not Arrow's: the file may be whole
            raise
        raise BadParquet(_plain(error)) from error
    except (ValueError, pa.ArrowException) as error:
        raise BadParquet(_plain(error)) from error
    return printable(found.get(key, b"none").decode(errors="replace"))


def _chosen(
    batches: Iterator[pa.RecordBatch], texts: list[str], where: pc.Expression | None
) -> Iterator[pa.Table]:
    for batch in batches:
        table = pa.Table.from_batches([batch])
        _check_texts(table, texts)
        yield table if where is None else table.filter(where)


def _check_columns(found: pa.Schema, wanted: pa.Schema, texts: list[str]) -> None:
    """Texts as texts, numbers as numbers, each once: all else could take more memory than rows allow."""
    for field in wanted:
        if found.names.count(field.name) != 1:
            raise BadParquet(f"it has {found.names.count(field.name) or 'no'} columns {field.name}, not one")
        kind = found.field(field.name).type
        text = pa.types.is_dictionary(kind) and kind.value_type in (pa.string(), pa.large_string())
        number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind)
        if not (text if field.name in texts else number):
            raise BadParquet(f"its column {field.name} is of type {str(kind)[:40]}, not {field.type}")


def _check_texts(content: pa.Table, texts: list[str]) -> None:
    for name in texts:
        for chunk in content[name].chunks:
            lengths = pc.call_function("utf8_length", [chunk.dictionary]).drop_null().to_numpy()
            if len(lengths) > TEXTS or lengths.sum() > CHARACTERS:
                raise BadParquet(
                    f"its column {name} holds {len(lengths):,} different texts; at most {TEXTS:,}, of "
                    f"{CHARACTERS:,} characters together, are read"
                )
            longest = lengths.max(initial=0)
            if longest > LONGEST:
                raise BadParquet(
                    f"a text in its column {name} has {longest:,} characters; at most {LONGEST:,} are read"
                )


def _check_declared(path: Path) -> None:
    """Raise BadParquet if the file declares more than a table of its size holds.

    The footer is read here, since a damaged one ends the process when PyArrow is asked what it says.
    """
    size = path.stat().st_size
    if not path.is_file():
        raise BadParquet("it is no regular file")  # a pipe would be waited for
    with path.open("rb") as file:
        footer = _footer(file, size)
        groups = _structs(footer.get(4))
        rows = max(_count(footer, 3), sum(_count(group, 3) for group in groups))
        most = max(ROWS, ROWS_PER_BYTE * size)
        if rows > most:
            raise BadParquet(f"it declares {rows:,} rows in {size:,} bytes; at most {most:,} are read")
        places = sorted(_place(chunk.get(3), size) for group in groups for chunk in _structs(group.get(1)))
        if any(end > begin for (_, end), (begin, _) in pairwise(places)):
            raise BadParquet("its columns overlap")
        held, most = 0, max(PAGES, PAGES_PER_BYTE * size)
        pages = itertools.chain.from_iterable(_pages(file, *place) for place in places)
        for count, page in enumerate(pages, start=1):
            held += page
            if held > most:
                raise BadParquet(f"its pages declare more than {most:,} bytes in a file of {size:,}")
            if count > max(_PAGES, size // _BYTES_PER_PAGE):
                raise BadParquet(f"it has more than {count - 1:,} pages in {size:,} bytes")


def _footer(file: BinaryIO, size: int) -> Fields:
    file.seek(max(0, size - 8))
    end = file.read(8)
    length = int.from_bytes(end[:4], "little")
    if size < 12 or end[4:] != b"PAR1" or length > size - 12:
        raise BadParquet("it does not end as a Parquet file does")
    file.seek(size - 8 - length)
    return _Struct(file.read(length)).fields()


def _place(column: object, size: int) -> tuple[int, int]:
    """Where a column begins and ends."""
    if not isinstance(column, dict):
        raise BadParquet("a column lacks its description")
    place = _count(column, 9)
    if 11 in column:
        place = min(place, _count(column, 11)) or place
    end = place + _count(column, 7)
    if not 0 < place <= end <= size:
        raise BadParquet("a column lies outside the file")
    return place, end


def _pages(file: BinaryIO, place: int, end: int) -> Iterator[int]:
    """Bytes that every page of a column declares, decompressed."""
    while place < end:
        declared, length = _page(file, place)
        yield _count(declared, 2)
        place += length + _count(declared, 3)


def _page(file: BinaryIO, place: int) -> tuple[Fields, int]:
    """The page header at this place, and its length."""
    short, long = _HEADERS
    file.seek(place)
    header = _Struct(file.read(short))
    try:
        return header.fields(), header.place
    except BadParquet:
        file.seek(place)
        header = _Struct(file.read(long))
        return header.fields(), header.place


def _structs(value: object) -> list[Fields]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _count(fields: Fields, number: int) -> int:
    found = fields.get(number)
    if not isinstance(found, int) or found < 0:
        raise BadParquet("it lacks a size, or has a negative one")
    return found


class _Struct:
    """A struct in Thrift's compact protocol: its integers, structs and lists by their numbers."""

    def __init__(self, content: bytes) -> None:
        self.content, self.place = content, 0

    def fields(self, depth: int = 0) -> Fields:
        """All fields; None stands for texts and fractions, which are passed over."""
        found: Fields = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._integer()
            truth = head & 15 in (1, 2)  # in a struct, the type itself says which
            found[number] = None if truth else self._value(head & 15, depth)
        return found

    def _value(self, kind: int, depth: int) -> object:
        if depth > _DEPTH:
            raise BadParquet("it is nested too deeply")
        if kind in (4, 5, 6):
            return self._integer()
        if kind in (9, 10):
            head = self._byte()
            count = head >> 4 if head >> 4 < 15 else self._varint()
            return [self._value(head & 15, depth + 1) for _ in range(count)]
        if kind == 12:
            return self.fields(depth + 1)
        if kind not in (1, 2, 3, 7, 8):
            raise BadParquet(f"it has a field of an unknown type {kind}")
        length = self._varint() if kind == 8 else 8 if kind == 7 else 1
        self.place += length
        if self.place > len(self.content):
            raise BadParquet("a struct does not end")
        return None

    def _byte(self) -> int:
        if self.place >= len(self.content):
            raise BadParquet("a struct does not end")
        self.place += 1
        return self.content[self.place - 1]

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise BadParquet("a number does not end")

    def _integer(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)


def _plain(error: Exception) -> str:
    """The first line of what went wrong, without what a terminal would obey."""
    return printable((str(error).strip() or type(error).__name__).split("\n", 1)[0])


def printable(text: str) -> str:
    """The text without what a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in text)[:300]
