"""Which budget a ranked row belongs to, from where the manifest's rows lie."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from s2r_ray.errors import S2RError
from s2r_ray.report.stored import StoredRun

Ints = npt.NDArray[np.int64]
Levels = npt.NDArray[np.intp]
"""For each row the number of the smallest budget that selects it, from 0; the number of budgets where none does."""

_GENERATION_BITS = 24
LOCATION = ("pool", "file", "row", "generation")
"""Columns that say where a row lies; `pool` is there if a run has several."""


@dataclass(frozen=True, eq=False)
class Membership:
    """Where the rows of the largest budget lie, 17 bytes for each of them.

    `files`: (pool, file) -> (first, stop) in `keys`, which ascend between the two and stand for row and generation;
    `levels` are those of the same rows.
    """

    budgets: int
    files: dict[tuple[str, str], tuple[int, int]]
    keys: Ints
    levels: npt.NDArray[np.uint8]

    @classmethod
    def of(cls, run: StoredRun) -> Membership:
        """Read the largest manifest."""
        columns = [name for name in LOCATION if name in run.columns()]
        codes: dict[tuple[str, str], int] = {}
        file_codes, keys = [], []
        for table in run.selected(columns):
            code = np.empty(table.num_rows, np.int32)
            for name, rows in _by_file(table):
                code[rows] = codes.setdefault(name, len(codes))
            file_codes.append(code)
            keys.append(location_keys(table))
        code, key = np.concatenate(file_codes), np.concatenate(keys)
        sizes = [size for _, size in run.budgets]
        levels = np.searchsorted(sizes, np.arange(len(key)), side="right").astype(np.uint8)
        order = np.lexsort((key, code))
        bounds = np.searchsorted(code[order], np.arange(len(codes) + 1))
        files = {name: (int(bounds[at]), int(bounds[at + 1])) for name, at in codes.items()}
        return cls(len(sizes), files, key[order], levels[order])

    def levels_of(self, table: pa.Table) -> Levels:
        """The level of each row of a piece of the ranking, intp[n]; it has the columns file, row, generation, and pool
        where there are several."""
        found = np.full(table.num_rows, self.budgets, np.intp)
        keys = location_keys(table)
        for name, rows in _by_file(table):
            first, stop = self.files.get(name, (0, 0))
            known = self.keys[first:stop]
            if not len(known):
                continue
            wanted = keys[rows]
            at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
            found[rows] = np.where(known[at] == wanted, self.levels[first:stop][at], self.budgets)
        return found


def location_keys(table: pa.Table) -> Ints:
    """Row and generation of each row as one number, int64[n], in their order.

    Raises:
        S2RError: a row has more generations than any row can hold.
    """
    generation = table["generation"].to_numpy().astype(np.int64)
    if generation.max(initial=0) >> _GENERATION_BITS:
        raise S2RError(f"internal: generation {generation.max():,} of a row; please report")
    keys: Ints = (table["row"].to_numpy() << _GENERATION_BITS) | generation
    return keys


def _by_file(table: pa.Table) -> list[tuple[tuple[str, str], npt.NDArray[np.intp] | slice]]:
    """((pool, file), its rows) of each file in the table; pool is "" where there is one."""
    columns = [
        table[name].combine_chunks().dictionary_encode() for name in ("pool", "file") if name in table.column_names
    ]
    code = np.zeros(table.num_rows, np.int64)
    for column in columns:
        code = code * max(1, len(column.dictionary)) + column.indices.to_numpy()
    starts = np.flatnonzero(np.append(True, code[1:] != code[:-1])) if len(code) else np.zeros(0, np.int64)
    order = None
    if len(starts) > 2 * len(np.unique(code[starts])):  # in order of rank: files alternate
        order = np.argsort(code, kind="stable")
        starts = np.flatnonzero(np.append(True, np.diff(code[order]) != 0))
    found = []
    for first, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(code)], strict=True):
        rows = slice(first, stop) if order is None else order[first:stop]
        at = first if order is None else int(order[first])
        names = [column.dictionary[column.indices[at].as_py()].as_py() for column in columns]
        found.append((("" if len(names) == 1 else names[0], names[-1]), rows))
    return found
