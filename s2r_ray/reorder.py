"""Rows that come in any order, given back by position: an external merge sort.

Rows are gathered in memory, sorted, and put into a temporary file each time there are 64 MiB of them; what is asked for
is then picked from each of those runs. Memory holds one run and 8 bytes a row.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from s2r_ray.errors import S2RError
from s2r_ray.tables import release_memory

_RUN_BYTES = 64 << 20
_PIECE_BYTES = 256 << 10
_SPAN_BYTES = 32 << 20
_CODEC = "lz4"

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Piece:
    """Where some rows are in the file: offset and bytes, and their bytes unpacked."""

    offset: int
    packed: int
    unpacked: int


@dataclass(frozen=True, eq=False)
class _SortedRun:
    """Rows sorted by position, uint32[n], in pieces of `rows` rows."""

    schema: pa.Schema
    positions: npt.NDArray[np.uint32]
    rows: int
    pieces: list[_Piece]


class Reordered:
    """`count` rows, at least one, with the positions 0 to count - 1, each added once, in any order.

    Tables may differ in their columns: a column that one lacks is null there, and types grow to what holds all. A
    context manager; the temporary file, packed with lz4, is gone when it ends, however the process ends.
    """

    def __init__(self, count: int) -> None:
        self._file = tempfile.TemporaryFile(prefix="s2r-")  # noqa: SIM115  # closed by __exit__
        self._codec = pa.Codec(_CODEC)
        self._bytes = np.zeros(count, np.uint32)  # of each row, as far as is known: the mean of its table
        self._waiting: list[tuple[Positions, pa.Table]] = []
        self._held = self._added = 0
        self._runs: list[_SortedRun] = []
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
            self._write_run()

    def finish(self) -> pa.Schema:
        """No more rows will come. Returns the columns that `take` gives.

        Raises:
            S2RError: a position was not filled.
        """
        if self._added != len(self._bytes):
            raise S2RError(f"internal: {len(self._bytes):,} rows expected, {self._added:,} found; please report")
        if self._waiting:
            self._write_run()
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
        parts, positions = [self._schemas[0].empty_table()], []
        for run in self._runs:
            first, stop = np.searchsorted(run.positions, [low, high])
            if first < stop:
                parts.append(self._read(run, int(first), int(stop)))
                positions.append(run.positions[first:stop])
        rows = pa.concat_tables(parts, promote_options="permissive")
        return rows.take(pa.array(np.argsort(np.concatenate(positions)))).combine_chunks()

    def _read(self, run: _SortedRun, first: int, stop: int) -> pa.Table:
        """Rows [first, stop) of a run."""
        start = first // run.rows
        batches = []
        for piece in run.pieces[start : (stop - 1) // run.rows + 1]:
            self._file.seek(piece.offset)
            data = self._codec.decompress(self._file.read(piece.packed), piece.unpacked)
            batches.append(pa.ipc.read_record_batch(data, run.schema))
        return pa.Table.from_batches(batches).slice(first - start * run.rows, stop - first)

    def _write_run(self) -> None:
        positions = np.concatenate([positions for positions, _ in self._waiting])
        rows = pa.concat_tables([rows for _, rows in self._waiting], promote_options="permissive").combine_chunks()
        self._waiting.clear()
        order = np.argsort(positions)
        size = max(1, _PIECE_BYTES * len(order) // max(1, self._held))
        pieces = []
        for start in range(0, len(order), size):
            (batch,) = rows.take(pa.array(order[start : start + size])).combine_chunks().to_batches()
            data = batch.serialize()
            packed = self._codec.compress(data)
            pieces.append(_Piece(self._file.tell(), len(packed), len(data)))
            self._file.write(packed)
        self._runs.append(_SortedRun(rows.schema, positions[order].astype(np.uint32), size, pieces))
        self._held = 0
        del rows
        release_memory()


def _together(schemas: list[pa.Schema]) -> pa.Schema:
    try:
        return pa.unify_schemas(schemas, promote_options="permissive")
    except pa.ArrowException as error:
        why = next(iter(str(error).splitlines()), "")
        raise S2RError(f"the columns of the files do not go together: {why}") from error
