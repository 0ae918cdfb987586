"""Parquet tables at a `Place`, read and written in one way.

pyarrow's threads may still hold a file after a read has returned; when that is a Python object and the interpreter
is ending, they abort the process (apache/arrow issues 34314 and 50482). Local files are therefore opened by pyarrow
itself, and objects of a store, which come through Python, are read in the caller's thread alone.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from s2r_ray.errors import S2RError
from s2r_ray.storage import Place

_NAME = b"s2r_ray"
_AHEAD = 16
_THREADS_ROWS = 1 << 14
_AHEAD_ROWS = 1 << 17
_RELEASE_ROWS = 1 << 20
_PICKED_BYTES = 8 << 20

_T = TypeVar("_T")
_R = TypeVar("_R")


def written(schema: pa.Schema) -> dict[str, Any]:
    """How this package writes Parquet: pyarrow's options for a table of this schema.

    With checksums, a flipped bit is an error and not another number. Scores, ranks and keys seldom repeat; looking for
    repetitions took half of the time of writing them.
    """
    unlike = (pa.types.is_floating, pa.types.is_fixed_size_binary)
    coded = [field.name for field in schema if not any(kind(field.type) for kind in unlike)]
    return {"compression": "zstd", "write_page_checksum": True, "use_dictionary": coded or False}


class DamagedError(S2RError):
    """A table of our own is not what was written: cut short, or changed."""

    def __init__(self, place: Place, why: str) -> None:
        super().__init__(place, why)
        self.place = place
        self.why = why

    def __str__(self) -> str:
        return f"{self.place} is damaged: {self.why}"


class GoneError(DamagedError):
    """A file of ours that ought to be there is not."""


@contextlib.contextmanager
def open_parquet(place: Place, *, coded: bool = False, ahead: bool = True) -> Iterator[pq.ParquetFile]:
    """The file, its footer read; pages that have checksums are held against them.

    Read from it with `use_threads=use_threads(place, file)`; from a pool's file, whose rows may be long, with
    `not place.is_remote`.

    Args:
        coded: columns of text come as dictionary arrays, so that a value that is repeated a million times is in
            memory once (not text inside of lists, which Arrow cannot always give so).
        ahead: as for `Place.open_input`; if not, columns are also read 8 MiB at a time and not a row group at once.

    Raises:
        S2RError: there is no such file, or no way to it.
        pa.ArrowException: it is not Parquet.
    """
    with place.store_errors(), place.open_arrow(ahead=ahead) as source:
        file = pq.ParquetFile(source, page_checksum_verification=True, buffer_size=0 if ahead else _PICKED_BYTES)
        if coded:
            leaves = [file.schema.column(number) for number in range(len(file.schema))]
            texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY" and leaf.path == leaf.name]
            file = pq.ParquetFile(
                source, metadata=file.metadata, read_dictionary=texts, page_checksum_verification=True
            )
        yield file


def use_threads(place: Place, file: pq.ParquetFile) -> bool:
    """Whether pyarrow should decode columns side by side: not for an object of a store (see above), and not for a small
    table, whose columns take less time than threads do."""
    return not place.is_remote and file.metadata.num_rows > _THREADS_ROWS


def read_table(place: Place, columns: Sequence[str] | None = None) -> pa.Table:
    """These columns (None: all) of a whole file, rows in file order. Raises as `open_parquet` does."""
    with open_parquet(place) as file:
        return file.read(columns=None if columns is None else list(columns), use_threads=use_threads(place, file))


def read_own(place: Place, columns: Sequence[str] | None = None, perhaps: Sequence[str] = ()) -> pa.Table:
    """As `read_table`, for what `write_own` wrote and ought to be there.

    Args:
        perhaps: further columns, which the file may lack.

    Raises:
        GoneError: there is no such file.
        DamagedError: it cannot be read as Parquet, a checksum is wrong, or it is another table than that.
        S2RError: there is no way to it.
    """
    try:
        with open_parquet(place) as file:
            stated = (file.schema_arrow.metadata or {}).get(_NAME)
            if stated is not None and stated != _own_name(place):
                raise DamagedError(place, f"it is {stated.decode(errors='replace')}, under another name")
            absent = set(columns or ()) - set(file.schema_arrow.names)
            if absent:
                raise DamagedError(place, f"it has no column {', '.join(sorted(absent))}")
            there = [name for name in perhaps if name in file.schema_arrow.names]
            wanted = None if columns is None else [*columns, *there]
            return file.read(columns=wanted, use_threads=use_threads(place, file)).replace_schema_metadata()
    except MemoryError:  # Arrow's is one of both kinds, and says nothing about the file
        raise
    except (pa.ArrowException, OSError) as error:
        why = str(error).splitlines() or [type(error).__name__]
        raise DamagedError(place, why[0]) from error
    except DamagedError:
        raise
    except S2RError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise GoneError(place, "it is gone") from error
        raise


def _own_name(place: Place) -> bytes:
    """What a file of ours is called inside of it: folder and name, which stay when the output place is moved."""
    return "/".join(place.uri.split("/")[-2:]).encode()


def read_ahead(read: Callable[[_T], _R], items: Iterable[_T]) -> Iterator[_R]:
    """`read(item)` for each item, in order, by threads ahead of the caller: 16 small tables, or one large one.

    What is held is bounded by rows and not by the number of items, for units and parts may be of any size.
    """
    waiting: deque[Future[_R]] = deque()
    ahead = passed = 1
    with ThreadPoolExecutor(_AHEAD) as threads:
        for item in items:
            waiting.append(threads.submit(read, item))
            while len(waiting) > ahead:
                result = waiting.popleft().result()
                rows = result.num_rows if isinstance(result, pa.Table) else 0
                yield result
                del result
                ahead = max(1, min(_AHEAD, _AHEAD_ROWS // max(1, rows)))
                passed += rows
                if passed > _RELEASE_ROWS:
                    release_memory()
                    passed = 0
        while waiting:
            yield waiting.popleft().result()
    release_memory()


def one_ahead(items: Iterator[_T]) -> Iterator[_T]:
    """The same items (none of which is None), each made by a thread while the one before is used."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item


def release_memory() -> None:
    """Give back to the system what is free. Arrow's pool and the C library keep it otherwise, each for itself, so that
    what one step has freed is held beside what the next one takes."""
    pa.default_memory_pool().release_unused()
    pa.system_memory_pool().release_unused()


def write_own(place: Place, table: pa.Table) -> None:
    """As `write_table`, with its name inside, so that it is not mistaken for another one."""
    write_table(place, table.replace_schema_metadata({_NAME: _own_name(place)}))


def write_table(place: Place, table: pa.Table) -> None:
    """Write the whole table as one file; readers see the old one or the new one."""
    with place.open_output() as sink:
        pq.write_table(table, sink, **written(table.schema))
