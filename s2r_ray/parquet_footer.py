"""What a Parquet footer says of its row groups, read without Arrow.

Arrow checks the statistics of a column chunk when it is asked for, and on some that are damaged it ends the process
instead of raising an error (parquet::ParquetException through `RowGroupMetaData.column`, seen with 26.0). Reading the
pages raises properly. So what must be known before a page is unpacked is read here: Thrift's compact protocol, of which
a footer is one struct (github.com/apache/parquet-format, parquet.thrift).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from s2r_ray.storage import Place

_MAGIC = b"PAR1"
_TAIL = 8
_DEEPEST = 32
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 11, 12
_INTEGERS = (4, 5, 6)


@dataclass(frozen=True)
class ChunkSize:
    """A column chunk: the row group's number, the top-level column, its values and its bytes when unpacked."""

    group: int
    column: str
    values: int
    unpacked: int


def chunk_sizes(place: Place) -> Iterator[ChunkSize]:
    """Every column chunk of a file, as its footer states it.

    Raises:
        ValueError: the footer is not one, or is damaged.
        S2RError: there is no such file, or no way to it.
    """
    try:
        footer = _struct(_Reader(_footer(place)), 0)
        for number, group in enumerate(footer.get(4, ())):
            for chunk in group[1]:
                stated = chunk[3]
                yield ChunkSize(number, stated[3][0].decode("utf-8"), stated[5], stated[6])
    except (IndexError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise ValueError(f"its footer is damaged ({type(error).__name__})") from error


def _footer(place: Place) -> bytes:
    with place.store_errors(), place.open_input() as source:
        end = source.seek(0, 2)
        source.seek(max(0, end - _TAIL))
        tail = source.read(_TAIL)
        length = int.from_bytes(tail[:4], "little")
        if tail[4:] != _MAGIC or length > end - _TAIL:
            raise ValueError("its footer is damaged, or it is not Parquet")
        source.seek(end - _TAIL - length)
        return source.read(length)


class _Reader:
    """A position in bytes; running out of them is an IndexError."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            raise IndexError
        self.at += count
        return self.data[self.at - count : self.at]

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    def zigzag(self) -> int:
        value = self.varint()
        return (value >> 1) ^ -(value & 1)


def _struct(reader: _Reader, depth: int) -> dict[int, Any]:
    """Field number -> value; depth bounds what a hostile footer can nest."""
    if depth > _DEEPEST:
        raise ValueError("its footer is nested too deeply")
    fields: dict[int, Any] = {}
    number = 0
    while head := reader.byte():
        number = number + (head >> 4) if head >> 4 else reader.zigzag()
        fields[number] = _value(reader, head & 0x0F, depth, in_field=True)
    return fields


def _value(reader: _Reader, kind: int, depth: int, *, in_field: bool) -> Any:
    if kind in (_TRUE, _FALSE):
        return kind == _TRUE if in_field else reader.byte() == _TRUE
    if kind == _BYTE:
        return reader.byte()
    if kind in _INTEGERS:
        return reader.zigzag()
    if kind == _DOUBLE:
        return struct.unpack("<d", reader.take(8))[0]
    if kind == _BINARY:
        return reader.take(reader.varint())
    if kind in (_LIST, _SET):
        head = reader.byte()
        count = head >> 4 if head >> 4 < 15 else reader.varint()
        return [_value(reader, head & 0x0F, depth, in_field=False) for _ in range(count)]
    if kind == _MAP:
        count = reader.varint()
        kinds = reader.byte() if count else 0
        pairs = [[_value(reader, k, depth, in_field=False) for k in (kinds >> 4, kinds & 15)] for _ in range(count)]
        return dict(pairs)
    if kind == _STRUCT:
        return _struct(reader, depth + 1)
    raise ValueError(f"its footer is damaged (a value of kind {kind})")
