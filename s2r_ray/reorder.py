"""Rows that come in any order, given back by position: an external merge sort.

Rows are gathered in memory, sorted, and put into a temporary file each time there are 128 MiB of them; what is asked
for is then picked from each of those runs. Memory holds one run and 8 bytes a row; what fits in one run meets no file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import IO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from s2r_ray.errors import S2RError
from s2r_ray.tables import release_memory

_RUN_BYTES = 128 << 20
_PIECE_BYTES = 256 << 10
_SPAN_BYTES = 32 << 20
_CODEC = pa.Codec("lz4")

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class _HeldRun:
    """Rows in memory as they came, and their places in order of position; `positions` ascend, uint32[n]."""

    positions: npt.NDArray[np.uint32]
    order: Positions
    table: pa.Table

    def rows(self, first: int, stop: int) -> pa.Table:
        """Rows [first, stop) in order of position."""
        return self.table.take(pa.array(self.order[first:stop]))


@dataclass(frozen=True, eq=False)
class _FiledRun:
    """Rows in a file in order of position, in pieces of `size` rows: (offset, bytes, bytes unpacked) of each."""

    positions: npt.NDArray[np.uint32]
    schema: pa.Schema
    size: int
    pieces: list[tuple[int, int, int]]
    file: IO[bytes]

    def rows(self, first: int, stop: int) -> pa.Table:
        """Rows [first, stop) in order of position."""
        start = first // self.size
        batches = []
        for offset, packed, unpacked in self.pieces[start : (stop - 1) // self.size + 1]:
            self.file.seek(offset)
            data = _CODEC.decompress(self.file.read(packed), unpacked)
            batches.append(pa.ipc.read_record_batch(data, self.schema))
        return pa.Table.from_batches(batches).slice(first - start * self.size, stop - first)


class Reordered:
    """`count` rows, at least one, with the positions 0 to count - 1, each added once, in any order.

    Tables may differ in their columns: a column that one lacks is null there, and types grow to what holds all. A
    context manager; the temporary file, packed with lz4, is gone when it ends, however the process ends.
    """

    def __init__(self, count: int) -> None:
        self._file = tempfile.TemporaryFile(prefix="s2r-")  # noqa: SIM115  # closed by __exit__
        self._bytes = np.zeros(count, np.uint32)  # of each row, as far as is known: the mean of its table
        self._waiting: list[tuple[Positions, pa.Table]] = []
        self._held = self._added = 0
        self._runs: list[_HeldRun | _FiledRun] = []
        self._schemas: list[pa.Schema] = []

    def __enter__(self) -> Reordered:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, positions: Positions, rows: pa.Table) -> None:
        """These rows, [n], without dictionary arrays, belong at these positions, int64[n].

        Raises:
            S2RError: they have a column of a type that does not go together with that of earlier rows.
        """
        if not rows.num_rows:
            return
        if rows.schema not in self._schemas:
            self._schemas.append(rows.schema)
            _together(self._schemas)
        self._bytes[positions] = min(rows.nbytes // rows.num_rows + 1, np.iinfo(np.uint32).max)
        self._waiting.append((positions, rows))
        self._held += rows.nbytes
        self._added += rows.num_rows
        if self._held >= _RUN_BYTES:
            self._runs.append(self._filed(self._gathered()))
            release_memory()

    def finish(self) -> pa.Schema:
        """No more rows will come. Returns the columns that `take` gives.

        Raises:
            S2RError: a position was not filled.
        """
        if self._added != len(self._bytes):
            raise S2RError(f"internal: {len(self._bytes):,} rows expected, {self._added:,} found; please report")
        if self._waiting:
            self._runs.append(self._gathered())
        self._schemas = [_together(self._schemas)]
        return self._schemas[0]

    def spans(self) -> Iterator[tuple[int, int]]:
        """Positions [low, high), one span after the other, of some 32 MiB of rows each."""
        ends = np.cumsum(self._bytes, dtype=np.int64)
        low = 0
        while low < len(ends):
            before = ends[low - 1] if low else 0
            high = max(low + 1, int(np.searchsorted(ends, before + _SPAN_BYTES, side="right")))
            yield low, high
            low = high

    def take(self, low: int, high: int) -> pa.Table:
        """The rows at the positions [low, high), in order."""
        parts, positions = [], []
        for run in self._runs:
            first, stop = np.searchsorted(run.positions, [low, high])
            if first < stop:
                parts.append(run.rows(int(first), int(stop)))
                positions.append(run.positions[first:stop])
        rows = pa.concat_tables([self._schemas[0].empty_table(), *parts], promote_options="permissive")
        if len(parts) > 1:
            rows = rows.take(pa.array(np.argsort(np.concatenate(positions))))
        return rows.combine_chunks()

    def _gathered(self) -> _HeldRun:
        """The rows that wait, which then wait no more."""
        positions = np.concatenate([positions for positions, _ in self._waiting])
        rows = pa.concat_tables([rows for _, rows in self._waiting], promote_options="permissive")
        self._waiting.clear()
        order = np.argsort(positions)
        return _HeldRun(positions[order].astype(np.uint32), order, rows.combine_chunks())

    def _filed(self, run: _HeldRun) -> _FiledRun:
        size = max(1, _PIECE_BYTES * len(run.order) // self._held)
        pieces = []
        for start in range(0, len(run.order), size):
            (batch,) = run.rows(start, start + size).combine_chunks().to_batches()
            data = batch.serialize()
            packed = _CODEC.compress(data)
            pieces.append((self._file.tell(), len(packed), len(data)))
            self._file.write(packed)
        self._held = 0
        return _FiledRun(run.positions, run.table.schema, size, pieces, self._file)


def _together(schemas: list[pa.Schema]) -> pa.Schema:
    try:
        return pa.unify_schemas(schemas, promote_options="permissive")
    except pa.ArrowException as error:
        why = next(iter(str(error).splitlines()), "")
        raise S2RError(f"the columns of the files do not go together: {why}") from error
