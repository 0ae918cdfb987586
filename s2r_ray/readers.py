"""Reading pool files: Parquet and JSONL (plain, .gz, .zst), only the columns asked for, in small batches."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from s2r_ray.errors import S2RError, StoreError, UsageError
from s2r_ray.parquet_footer import chunk_sizes
from s2r_ray.printable import one_line
from s2r_ray.storage import FileInfo, Place
from s2r_ray.tables import open_parquet
from s2r_ray.utf8 import undecoded_texts

# What one task may be made to hold, whatever a file unpacks to.
_BATCH_ROWS = 128
_BATCH_BYTES = 32 << 20
_ROW_BYTES = 64 << 20
_UNIT_ROWS = 10_000_000
_GROUP_VALUES = 100_000_000
_EXPANSION = 200
_EXPANSION_FREE_BYTES = 256 << 20
_UNIT_BYTES = 128 << 20
_FOOTER_THREADS = 16
_ZSTANDARD_BYTES = 128 << 10
_JSONL_OPENERS: dict[str, Callable[[IO[bytes]], Any]] = {
    ".jsonl": lambda raw: io.BufferedReader(raw),
    ".jsonl.gz": lambda raw: gzip.GzipFile(fileobj=raw),
    ".jsonl.zst": lambda raw: _open_zstandard(raw),
}
_TEXT_TYPES = (pa.string(), pa.large_string(), pa.binary(), pa.large_binary(), pa.string_view(), pa.binary_view())
SUFFIXES = (".parquet", *_JSONL_OPENERS)


class BadFileError(S2RError):
    """A pool file that cannot be read. It counts against the budget for bad files."""


@dataclass(frozen=True)
class Unit:
    """What one index task reads: a file, or a span of row groups of a large Parquet file.

    `pool` is the position in the configured pools, `path` relative to that pool's root. `row_groups` is
    (start, stop), None for all; `first_row` is the file's row number of the unit's first row.
    """

    pool: int
    path: str
    size: int
    version: str
    row_groups: tuple[int, int] | None = None
    first_row: int = 0


@dataclass(frozen=True)
class Batch:
    """Rows of a file: each column's values, equally long; text is `str`, or `Utf8` where that was asked for. `faults`:
    offset in the batch -> what is wrong there; what could not be read of such a row is None."""

    first_row: int
    columns: dict[str, list[Any]]
    faults: dict[int, str]


def pool_files(files: Sequence[FileInfo], where: str) -> list[FileInfo]:
    """The files of a listing that belong to a pool: known endings, nothing hidden.

    Raises:
        UsageError: there is none.
    """
    known = [
        file
        for file in files
        if file.path.endswith(SUFFIXES) and not any(part.startswith((".", "_")) for part in file.path.split("/"))
    ]
    for file in known:
        if not file.path.isprintable():
            raise UsageError(
                f"{where}: the name of {one_line(file.path)} has characters that are not printable or not UTF-8; "
                "manifests could not name it. Rename it"
            )
    if not known:
        raise UsageError(
            f"{where}: no pool file among {len(files)} files; expected names that end in {', '.join(SUFFIXES)}"
        )
    return known


def would_join(place: Place, address: str, root: Place, paths: Collection[str]) -> bool:
    """Whether files that are written below a place would lie among those of a pool. Nothing joins a pool of one file.

    Args:
        address: the pool's, as a URI; `root` and `paths` are what `Place.glob` says of it.
    """
    one_file = len(paths) == 1 and root.child(*paths).uri == address
    return not one_file and f"{place.uri}/".startswith(f"{root.uri}/")


def plan_units(root: Place, pool: int, files: Sequence[FileInfo]) -> list[Unit]:
    """Split a pool's files into units, in path order: large Parquet files into spans of row groups, others are one.

    Only large Parquet files are looked into (their footers), several at a time. One whose footer cannot be read
    stays one unit: the task that reads it reports the fault.
    """
    with ThreadPoolExecutor(_FOOTER_THREADS) as threads:
        return [unit for units in threads.map(lambda file: _split(root, pool, file), files) for unit in units]


def _split(root: Place, pool: int, file: FileInfo) -> list[Unit]:
    whole = Unit(pool, file.path, file.size, file.version)
    if file.size <= _UNIT_BYTES or not file.path.endswith(".parquet"):
        return [whole]
    try:
        with open_parquet(root.child(file.path)) as parquet:
            metadata = parquet.metadata
    except StoreError:
        raise
    except (pa.ArrowInvalid, S2RError, OSError):
        return [whole]
    units: list[Unit] = []
    start = first_row = rows = size = 0
    for group in range(metadata.num_row_groups):
        rows += metadata.row_group(group).num_rows
        size += metadata.row_group(group).total_byte_size
        if size >= _UNIT_BYTES or group + 1 == metadata.num_row_groups:
            units.append(Unit(pool, file.path, file.size, file.version, (start, group + 1), first_row))
            first_row += rows
            start, rows, size = group + 1, 0, 0
    return units or [whole]


def read_unit(
    root: Place,
    unit: Unit,
    columns: Sequence[str],
    check: Callable[[Sequence[str], str], None],
    undecoded: Collection[str] = (),
) -> Iterator[Batch]:
    """The unit's rows in file order.

    Args:
        columns: what to read; nothing else is decoded. One that `check` lets the file lack is None in every row.
        check: called with the columns that the file has (of JSONL: its first rows) and its address before the first
            batch.
        undecoded: columns whose text may come as `Utf8`.

    Raises:
        BadFileError: the file cannot be read (to the end), or it is made to unpack to far more than its size.
        StoreError: its store does not answer, which says nothing about the file.
    """
    place = root.child(unit.path)
    with bad_file_errors(place):
        if unit.path.endswith(".parquet"):
            yield from _read_parquet(place, unit, columns, lambda found: check(found, str(place)), undecoded)
        else:
            yield from _read_jsonl(place, unit, columns, lambda found: check(found, str(place)))


@contextlib.contextmanager
def bad_file_errors(place: Place) -> Iterator[None]:
    """Inside the block, whatever the libraries raise about a file that cannot be read is a BadFileError."""
    try:
        yield
    except (UsageError, StoreError, MemoryError):  # the last says nothing about the file; Arrow's is one of both kinds
        raise
    except (pa.ArrowException, S2RError, OSError, EOFError, ValueError, zlib.error) as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise BadFileError(f"cannot read {place}: {one_line(reason)}") from error


def _read_parquet(
    place: Place,
    unit: Unit,
    columns: Sequence[str],
    check: Callable[[Sequence[str]], None],
    undecoded: Collection[str],
) -> Iterator[Batch]:
    with open_parquet(place, coded=True) as file:
        found = file.schema_arrow.names
        check(found)
        twice = [name for name in columns if found.count(name) > 1]
        if twice:
            raise ValueError(f"more than one column is called {', '.join(map(repr, twice))}")
        groups = list(range(*unit.row_groups)) if unit.row_groups else list(range(file.metadata.num_row_groups))
        present = [name for name in columns if name in found]
        _check_groups(place, groups, present, unit)
        _check_rows(sum(file.metadata.row_group(group).num_rows for group in groups))
        row, unpacked = unit.first_row, 0
        for batch in file.iter_batches(
            _BATCH_ROWS, row_groups=groups, columns=present, use_threads=not place.is_remote
        ):
            for part, size in _bounded(batch):
                unpacked += size
                _check_expansion(unpacked, unit)
                values, faults = python_values(part, undecoded)
                yield Batch(row, {name: values.get(name, [None] * part.num_rows) for name in columns}, faults)
                row += part.num_rows


def _check_groups(place: Place, groups: Sequence[int], columns: Sequence[str], unit: Unit) -> None:
    """Refuse row groups that state absurd sizes, before a page of them is unpacked."""
    unpacked = 0
    for chunk in chunk_sizes(place):
        if chunk.group in groups and chunk.column in columns:
            unpacked += chunk.unpacked
            if chunk.values > _GROUP_VALUES:
                raise ValueError(f"a row group with {chunk.values:,} values; at most {_GROUP_VALUES:,} are read")
    _check_expansion(unpacked, unit)


def _check_rows(rows: int) -> None:
    if rows > _UNIT_ROWS:
        raise ValueError(f"more than {_UNIT_ROWS:,} rows in one file or row group; split it")


def _check_expansion(unpacked: int, unit: Unit) -> None:
    if unpacked > max(_EXPANSION_FREE_BYTES, _EXPANSION * unit.size):
        raise ValueError(f"its {unit.size:,} bytes unpack to more than {_EXPANSION} times as many; not read further")


def _bounded(batch: pa.RecordBatch) -> Iterator[tuple[pa.RecordBatch, int]]:
    """The batch, or its rows one by one if together they are too large to be unpacked at once; with unpacked bytes."""
    size = _unpacked_bytes(batch)
    if size <= _BATCH_BYTES:
        yield batch, size
        return
    for row in range(batch.num_rows):
        part = batch.slice(row, 1)
        yield part, _unpacked_bytes(part)


def _unpacked_bytes(values: Any) -> int:
    """What an array or batch would take with every repeated text written out. Reads lengths, no text."""
    if isinstance(values, pa.RecordBatch):
        return sum(map(_unpacked_bytes, values.columns))
    kind = values.type
    if pa.types.is_dictionary(kind) and kind.value_type in _TEXT_TYPES:
        lengths = pc.take(pc.cast(pc.binary_length(values.dictionary), pa.int64()), values.indices)
        return int(pc.sum(lengths).as_py() or 0)
    if pa.types.is_struct(kind):
        return sum(map(_unpacked_bytes, values.flatten()))
    if pa.types.is_nested(kind) and hasattr(values, "flatten"):
        return int(values.nbytes) // 8 + _unpacked_bytes(values.flatten())
    return int(values.nbytes)


def python_values(
    batch: pa.RecordBatch, undecoded: Collection[str] = ()
) -> tuple[dict[str, list[Any]], dict[int, str]]:
    """The columns as Python values, and what is wrong with the rows that have none: offset -> fault. Text of the
    columns in `undecoded` may come as `Utf8`."""
    if batch.num_rows == 1 and (size := _unpacked_bytes(batch)) > _ROW_BYTES:
        return {name: [None] for name in batch.schema.names}, {0: _too_large(size)}
    values, faults = {}, {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if isinstance(column, pa.DictionaryArray):
            column = column.dictionary_decode()  # a dictionary array's own way to Python values is slow
        if name in undecoded and (texts := undecoded_texts(column)) is not None:
            values[name] = texts
            continue
        try:
            values[name] = column.to_pylist()
        except (ValueError, OverflowError):
            values[name] = []
            for offset in range(len(column)):
                value, fault = _value(column, offset)
                values[name].append(value)
                if fault:
                    faults[offset] = f"column {name!r}: {fault}"
    return values, faults


def _value(column: pa.Array, offset: int) -> tuple[Any, str | None]:
    """One value, or why there is none: text that is not UTF-8, a date that Python cannot say."""
    try:
        return column[offset].as_py(), None
    except UnicodeDecodeError:
        return None, "not valid UTF-8"
    except (ValueError, OverflowError) as error:
        return None, one_line(str(error))


def _too_large(size: int) -> str:
    return f"row of {size:,} bytes or more, at most {_ROW_BYTES:,} are read"


def _read_jsonl(
    place: Place, unit: Unit, columns: Sequence[str], check: Callable[[Sequence[str]], None]
) -> Iterator[Batch]:
    row, first = 0, True
    for lines in _chunks(row_lines(place, unit)):
        rows, faults = parse_lines(lines)
        if first and len(faults) < len(rows):
            check(list(dict.fromkeys(key for row in rows for key in row)))
            first = False
        yield Batch(row, {name: [found.get(name) for found in rows] for name in columns}, faults)
        row += len(rows)
        _check_rows(row)


def row_lines(place: Place, unit: Unit) -> Iterator[bytes]:
    """The lines of a JSONL file that are not blank: blank lines are no rows, as for the usual JSONL loaders.

    Of a line that is too long only the start comes, one byte more than the limit; the rest is passed over.

    Raises:
        ValueError: it unpacks to far more than its size. What the decompressors raise goes through.
        S2RError: there is no such file, or no way to it.
    """
    suffix = next(ending for ending in _JSONL_OPENERS if unit.path.endswith(ending))
    with place.store_errors(), place.open_input() as source:
        yield from _lines(_JSONL_OPENERS[suffix](source), unit)


def _lines(source: IO[bytes], unit: Unit) -> Iterator[bytes]:
    unpacked = 0
    while line := source.readline(_ROW_BYTES + 1):
        rest = line
        while len(rest) > _ROW_BYTES and not rest.endswith(b"\n"):
            unpacked += len(rest)
            _check_expansion(unpacked, unit)
            rest = source.readline(_ROW_BYTES + 1)
        unpacked += len(rest)
        _check_expansion(unpacked, unit)
        if not line.isspace():
            yield line


def _chunks(lines: Iterator[bytes]) -> Iterator[list[bytes]]:
    """Lines in lists of bounded length and size."""
    chunk: list[bytes] = []
    size = 0
    for line in lines:
        chunk.append(line)
        size += len(line)
        if len(chunk) == _BATCH_ROWS or size >= _BATCH_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def parse_lines(lines: Sequence[bytes]) -> tuple[list[dict[str, Any]], dict[int, str]]:
    """The objects of these lines, {} where a line has none, and what is wrong there: offset -> fault."""
    rows: list[dict[str, Any]] = []
    faults: dict[int, str] = {}
    for offset, line in enumerate(lines):
        if len(line) > _ROW_BYTES:
            rows.append({})
            faults[offset] = _too_large(len(line))
            continue
        try:
            row = orjson.loads(line.removeprefix(codecs.BOM_UTF8))
        except orjson.JSONDecodeError as error:
            row, faults[offset] = {}, f"not JSON: {error}"
        if not isinstance(row, dict):
            row, faults[offset] = {}, f"expected an object, found {type(row).__name__}"
        rows.append(row)
    return rows, faults


def _open_zstandard(raw: IO[bytes]) -> IO[bytes]:
    return io.BufferedReader(_ZstandardReader(raw), _ZSTANDARD_BYTES)


class _ZstandardReader(io.RawIOBase):
    """All frames of a zstd file. The library's own reader takes a file cut short for one that ends there."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self._frame: Any = None
        self._packed = b""
        self._text = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._text:
            self._packed = self._packed or self._raw.read(_ZSTANDARD_BYTES)
            if not self._packed:
                if self._frame is not None:
                    raise EOFError("compressed file ended before the end of its last frame")
                return 0
            self._text = memoryview(self._unpack())
        count = min(len(buffer), len(self._text))
        buffer[:count], self._text = self._text[:count], self._text[count:]
        return count

    def _unpack(self) -> bytes:
        import zstandard

        self._frame = self._frame or zstandard.ZstdDecompressor().decompressobj()
        try:
            text: bytes = self._frame.decompress(self._packed)
        except zstandard.ZstdError as error:
            raise OSError(str(error)) from error
        self._packed = b""
        if self._frame.eof:
            self._packed, self._frame = self._frame.unused_data, None
        return text
