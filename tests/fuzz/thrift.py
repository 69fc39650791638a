"""Thrift's compact protocol as trees, to change a Parquet file's footer and page headers and write them back.

A struct is {"fields": [[id, type, value], ...]}, a list {"type": t, "items": [...]}; integers are themselves.
"""

from __future__ import annotations

from typing import Any

TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)


def decode(content: bytes, place: int = 0) -> tuple[dict[str, Any], int]:
    """The struct that begins at ``place``, and where it ends."""
    fields, last = [], 0
    while content[place]:
        head = content[place]
        place += 1
        kind = head & 15
        if head >> 4:
            last += head >> 4
        else:
            raw, place = _varint(content, place)
            last = _unzigzag(raw)
        value, place = (kind == TRUE, place) if kind in (TRUE, FALSE) else _value(content, place, kind)
        fields.append([last, kind, value])
    return {"fields": fields}, place + 1


def _value(content: bytes, place: int, kind: int) -> tuple[Any, int]:
    if kind in (TRUE, FALSE, BYTE):
        return content[place], place + 1
    if kind in (I16, I32, I64):
        raw, place = _varint(content, place)
        return _unzigzag(raw), place
    if kind == DOUBLE:
        return content[place : place + 8].hex(), place + 8
    if kind == BINARY:
        size, place = _varint(content, place)
        return content[place : place + size].decode("latin-1"), place + size
    if kind in (LIST, SET):
        head = content[place]
        size, place = (head >> 4, place + 1) if head >> 4 < 15 else _varint(content, place + 1)
        items = []
        for _ in range(size):
            item, place = _value(content, place, head & 15)
            items.append(item)
        return {"type": head & 15, "items": items}, place
    assert kind == STRUCT, f"type {kind} is in no footer"
    return decode(content, place)


def encode(struct: Any) -> bytes:
    """The bytes of a struct; what is no integer where one belongs, or no struct, is written as none."""
    found, last = bytearray(), 0
    fields = struct.get("fields", []) if isinstance(struct, dict) else []
    for field in fields if isinstance(fields, list) else []:
        if not (isinstance(field, list) and len(field) == 3):
            continue
        number, kind, value = _integer(field[0]), _integer(field[1]) & 15, field[2]
        if kind in (TRUE, FALSE):
            kind = TRUE if value else FALSE
        if 0 < number - last < 16:
            found.append((number - last) << 4 | kind)
        else:
            found += bytes([kind]) + varint(_zigzag(number))
        last = number
        if kind not in (TRUE, FALSE):
            found += _encoded(value, kind)
    return bytes(found) + b"\0"


def _encoded(value: Any, kind: int) -> bytes:
    if kind in (TRUE, FALSE, BYTE):
        return bytes([_integer(value) & 255])
    if kind in (I16, I32, I64):
        return varint(_zigzag(_integer(value)))
    if kind == DOUBLE:
        return bytes(8)
    if kind == BINARY:
        content = value.encode("latin-1", errors="replace") if isinstance(value, str) else b""
        return varint(len(content)) + content
    if kind in (LIST, SET):
        items = value.get("items", []) if isinstance(value, dict) else []
        inner = _integer(value.get("type", STRUCT)) & 15 if isinstance(value, dict) else STRUCT
        items = items if isinstance(items, list) else []
        return bytes([0xF0 | inner]) + varint(len(items)) + b"".join(_encoded(i, inner) for i in items)
    return encode(value)


def _integer(value: Any) -> int:
    return int(value) if isinstance(value, int) else 0


def _zigzag(value: int) -> int:
    return (value << 1 ^ value >> 63) % 2**64


def _unzigzag(value: int) -> int:
    return value >> 1 ^ -(value & 1)


def _varint(content: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place


def varint(value: int) -> bytes:
    """Seven bits a byte, the last ones first."""
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes(found) + bytes([value])
