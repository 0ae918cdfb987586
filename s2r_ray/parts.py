"""Tables that come in pieces of any size, written to Parquet files whose bytes do not depend on the pieces."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from s2r_ray.storage import Place
from s2r_ray.tables import release_memory, written

_PART_ROWS = 1 << 20
_GROUP_ROWS = 1 << 17  # divides the former


class Parts:
    """Writes tables to one file, or to `part-00000.parquet`, … of bounded size; counts reasons as they pass.

    Files and row groups are cut by the running number of rows alone, so the same rows give the same bytes, however
    many tables they come in. A thread writes a row group while the next one is made; an error of it is raised by a
    later call.
    """

    def __init__(self, folder: Place, name: str | None = None) -> None:
        self._folder = folder
        self._name = name
        self._stack = ExitStack()
        self._writer: pq.ParquetWriter | None = None
        self._parts = self._rows = self._held = 0
        self._waiting: list[pa.Table] = []
        self._thread = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None
        self.counted: dict[str, int] = {}

    def finish(self, *exception: Any) -> bool:
        """Write what is left and close the last file; after an exception, do not leave the last one behind."""
        if exception and exception[0] is not None:
            self._thread.shutdown()
            return bool(self._stack.__exit__(*exception))
        with self._thread, self._stack:
            if self._waiting:
                self._write(pa.concat_tables(self._waiting).combine_chunks())
            self._written()
        return False

    def add(self, table: pa.Table) -> None:
        """Append rows, in order."""
        if "reason" in table.column_names:
            for item in table["reason"].value_counts().to_pylist():
                self.counted[item["values"]] = self.counted.get(item["values"], 0) + item["counts"]
        self._waiting.append(table)
        self._held += table.num_rows
        if self._held < _GROUP_ROWS:
            return
        whole = self._held - self._held % _GROUP_ROWS
        waiting = pa.concat_tables(self._waiting)
        self._waiting, self._held = [waiting.slice(whole)], self._held - whole
        for start in range(0, whole, _GROUP_ROWS):
            self._write(waiting.slice(start, _GROUP_ROWS).combine_chunks())

    def _write(self, group: pa.Table) -> None:
        """Append one row group once the one before is written."""
        self._written()
        self._writing = self._thread.submit(self._append, group)

    def _written(self) -> None:
        if self._writing is not None:
            self._writing.result()

    def _append(self, group: pa.Table) -> None:
        """Append one row group; an empty one only makes sure that there is a file."""
        if self._writer is None or (self._name is None and self._rows >= _PART_ROWS and group.num_rows):
            self._stack.close()
            target = self._folder.child(self._name or f"part-{self._parts:05d}.parquet")
            sink = self._stack.enter_context(target.open_output())
            self._writer = self._stack.enter_context(pq.ParquetWriter(sink, group.schema, **written(group.schema)))
            self._parts, self._rows = self._parts + 1, 0
        if group.num_rows:
            self._writer.write_table(group)
            self._rows += group.num_rows
            release_memory()
