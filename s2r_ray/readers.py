"""Reading pool files: Parquet and JSONL (plain, .gz, .zst), only the columns asked for, in small batches."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import IO, Any

import orjson
import pyarrow as pa

from s2r_ray.errors import S2RError, StoreError, UsageError
from s2r_ray.storage import FileInfo, Place
from s2r_ray.tables import open_parquet

_BATCH_ROWS = 128
_UNIT_BYTES = 128 << 20
_FOOTER_THREADS = 16
_ZSTANDARD_BYTES = 128 << 10
_JSONL_OPENERS: dict[str, Callable[[IO[bytes]], Iterable[bytes]]] = {
    ".jsonl": lambda raw: raw,
    ".jsonl.gz": lambda raw: gzip.GzipFile(fileobj=raw),
    ".jsonl.zst": lambda raw: _open_zstandard(raw),
}
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
    """Rows of a file: each column's values, equally long. `faults`: offset in the batch -> what is wrong there."""

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
    if not known:
        raise UsageError(
            f"{where}: no pool file among {len(files)} files; expected names that end in {', '.join(SUFFIXES)}"
        )
    return known


def plan_units(root: Place, pool: int, files: Sequence[FileInfo]) -> list[Unit]:
    """Split a pool's files into units of bounded size, in path order.

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
    root: Place, unit: Unit, columns: Sequence[str], check: Callable[[Sequence[str], str], None]
) -> Iterator[Batch]:
    """The unit's rows in file order.

    Args:
        columns: what to read; nothing else is decoded. One that `check` lets the file lack is None in every row.
        check: called with the columns that the file has and its address before the first batch.

    Raises:
        BadFileError: the file cannot be read (to the end).
        StoreError: its store does not answer, which says nothing about the file.
    """
    place = root.child(unit.path)
    read = _read_parquet if unit.path.endswith(".parquet") else _read_jsonl
    try:
        yield from read(place, unit, columns, lambda found: check(found, str(place)))
    except (UsageError, StoreError):
        raise
    except (pa.ArrowException, S2RError, OSError, EOFError, ValueError, zlib.error) as error:
        raise BadFileError(f"cannot read {place}: {str(error).splitlines()[0] if str(error) else error!r}") from error


def _read_parquet(
    place: Place, unit: Unit, columns: Sequence[str], check: Callable[[Sequence[str]], None]
) -> Iterator[Batch]:
    with open_parquet(place) as file:
        found = file.schema_arrow.names
        check(found)
        twice = [name for name in columns if found.count(name) > 1]
        if twice:
            raise ValueError(f"more than one column is called {', '.join(map(repr, twice))}")
        groups = list(range(*unit.row_groups)) if unit.row_groups else None
        row = unit.first_row
        present = [name for name in columns if name in found]
        for batch in file.iter_batches(
            _BATCH_ROWS, row_groups=groups, columns=present, use_threads=not place.is_remote
        ):
            values = {name: batch.column(name).to_pylist() for name in present}
            yield Batch(row, {name: values.get(name, [None] * batch.num_rows) for name in columns}, {})
            row += batch.num_rows


def _read_jsonl(
    place: Place, unit: Unit, columns: Sequence[str], check: Callable[[Sequence[str]], None]
) -> Iterator[Batch]:
    suffix = next(ending for ending in _JSONL_OPENERS if unit.path.endswith(ending))
    with place.store_errors(), place.open_input() as source:
        # Blank lines are no rows, as for the usual JSONL loaders: rows are counted without them.
        lines = enumerate(line for line in _JSONL_OPENERS[suffix](source) if line.strip())
        first = True
        while chunk := list(islice(lines, _BATCH_ROWS)):
            rows, faults = _parse([line for _, line in chunk])
            if first and len(faults) < len(rows):
                check(list(dict.fromkeys(key for row in rows for key in row)))
                first = False
            yield Batch(chunk[0][0], {name: [row.get(name) for row in rows] for name in columns}, faults)


def _parse(lines: Sequence[bytes]) -> tuple[list[dict[str, Any]], dict[int, str]]:
    rows: list[dict[str, Any]] = []
    faults: dict[int, str] = {}
    for offset, line in enumerate(lines):
        try:
            row = orjson.loads(line.removeprefix(codecs.BOM_UTF8))
        except orjson.JSONDecodeError as error:
            row, faults[offset] = {}, f"not JSON: {error}"
        if not isinstance(row, dict):
            row, faults[offset] = {}, f"expected an object, found {type(row).__name__}"
        rows.append(row)
    return rows, faults


def _open_zstandard(raw: IO[bytes]) -> Iterable[bytes]:
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
