"""Rows that come in any order, given back by position: an external merge sort.

Rows are gathered in memory, sorted, and written to a temporary file each time there are 64 MiB of them; what is asked
for is then picked from all of those files. Memory holds one such run and 8 bytes a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from s2r_ray.errors import S2RError
from s2r_ray.tables import release_memory

_RUN_BYTES = 64 << 20
_PIECE_BYTES = 256 << 10
_SPAN_BYTES = 32 << 20
_OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4")

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class _SortedRun:
    """Rows sorted by position: uint32[n] in memory, the rows in a file in pieces of `piece` rows."""

    positions: npt.NDArray[np.uint32]
    file: Path
    piece: int

    def rows(self, low: int, high: int) -> pa.Table:
        """Rows [low, high) of the run."""
        first = low // self.piece
        with pa.OSFile(str(self.file)) as source:
            reader = pa.ipc.open_file(source)
            pieces = [reader.get_batch(number) for number in range(first, (high - 1) // self.piece + 1)]
        return pa.Table.from_batches(pieces).slice(low - first * self.piece, high - low)


class Reordered:
    """`count` rows, at least one, with the positions 0 to count - 1, each added once, in any order and pieces.

    Pieces may differ in their columns: a column that one lacks is null there, and types grow to what holds all.

    Args:
        folder: an empty one for temporary files, which the caller removes. They take what the rows take, packed
            with lz4.
    """

    def __init__(self, count: int, folder: Path) -> None:
        self._folder = folder
        self._bytes = np.zeros(count, np.uint32)  # of each row, as far as is known: the mean of its piece
        self._waiting: list[tuple[Positions, pa.Table]] = []
        self._held = self._added = 0
        self._runs: list[_SortedRun] = []
        self._schemas: list[pa.Schema] = []

    def add(self, positions: Positions, rows: pa.Table) -> None:
        """These rows, [n], belong at these positions, int64[n].

        Raises:
            S2RError: they have a column of a type that does not go together with that of earlier rows.
        """
        if not rows.num_rows:
            return
        if rows.schema not in self._schemas:
            self._schemas = [*self._schemas, rows.schema]
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
        """Positions [low, high) one span after the other, of some 32 MiB of rows each."""
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
                parts.append(run.rows(int(first), int(stop)))
                positions.append(run.positions[first:stop])
        rows = pa.concat_tables(parts, promote_options="permissive")
        return rows.take(pa.array(np.argsort(np.concatenate(positions)))).combine_chunks()

    def _write_run(self) -> None:
        positions = np.concatenate([positions for positions, _ in self._waiting])
        rows = pa.concat_tables([rows for _, rows in self._waiting], promote_options="permissive").combine_chunks()
        self._waiting.clear()
        order = np.argsort(positions)
        piece = max(1, _PIECE_BYTES * len(order) // max(1, self._held))
        file = self._folder / f"{len(self._runs)}.arrow"
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, rows.schema, options=_OPTIONS) as writer:
            for start in range(0, len(order), piece):
                chosen = rows.take(pa.array(order[start : start + piece])).combine_chunks()
                writer.write_table(chosen, max_chunksize=piece)
        self._runs.append(_SortedRun(positions[order].astype(np.uint32), file, piece))
        self._held = 0
        del rows
        release_memory()


def _together(schemas: list[pa.Schema]) -> pa.Schema:
    try:
        return pa.unify_schemas(schemas, promote_options="permissive")
    except pa.ArrowException as error:
        why = next(iter(str(error).splitlines()), "")
        raise S2RError(f"the columns of the files do not go together: {why}") from error
