"""Ranked rows beside what the pool index knows of the same rows: labels, counts of words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from s2r_ray.errors import S2RError, UsageError
from s2r_ray.index import Snapshot, candidates_place, label_column
from s2r_ray.readers import Unit
from s2r_ray.report.membership import LOCATION, location_keys
from s2r_ray.report.stored import BATCH_ROWS, StoredRun
from s2r_ray.report.tallies import Shares
from s2r_ray.storage import Place
from s2r_ray.tables import DamagedError, open_parquet, read_ahead, read_own

_LABEL = label_column("")


@dataclass(frozen=True)
class IndexColumns:
    """What the index has for a report. `labels`: name -> column; `others`: further columns that were asked for and are
    there; `of`: fingerprint of a pool's index -> those of both that this pool has."""

    labels: dict[str, str]
    others: tuple[str, ...]
    of: dict[str, tuple[str, ...]]

    @property
    def names(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.labels.values(), *self.others)


NO_INDEX = IndexColumns({}, (), {})


def index_columns(run: StoredRun, snapshot: Snapshot, asked: Sequence[str], others: Sequence[str]) -> IndexColumns:
    """What there is in the index of a run's pools.

    Args:
        asked: labels to show; () for all there are.
        others: columns to read where the index has them.

    Raises:
        UsageError: no pool of the run has that label.
        DamagedError: the index is gone.
    """
    first_units = {_fingerprint(key): key for _, key in reversed(snapshot.units)}
    there = {fingerprint: _schema(candidates_place(run.out, key)) for fingerprint, key in first_units.items()}
    columns = dict.fromkeys(name for names in there.values() for name in names if name.startswith(_LABEL))
    known = {name.removeprefix(_LABEL): name for name in columns}
    unknown = [name for name in asked if name not in known]
    if unknown:
        raise UsageError(
            f"no pool of run {run.record.run_id} has the label {', '.join(map(repr, unknown))}; "
            f"labels there: {', '.join(known) or 'none'}"
        )
    labels = {name: known[name] for name in asked or known}
    wanted = [*labels.values(), *others]
    of = {fingerprint: tuple(name for name in wanted if name in names) for fingerprint, names in there.items()}
    return IndexColumns(labels, tuple(name for name in others if any(name in found for found in of.values())), of)


def _fingerprint(key: str) -> str:
    return key.partition("/")[0]


def _schema(place: Place) -> list[str]:
    try:
        with open_parquet(place) as file:
            names: list[str] = file.schema_arrow.names
    except (pa.ArrowException, S2RError, OSError) as error:
        raise DamagedError(place, "it cannot be read") from error
    return names


def labelled_rows(
    run: StoredRun, snapshot: Snapshot, ranked: Sequence[str], index: IndexColumns, indexed: Mapping[str, Shares]
) -> Iterator[pa.Table]:
    """All ranked rows in order, a batch at a time, with these columns of the ranking and these of the index, which are
    null where a pool has none.

    Both are in location order, and what the index has beside the ranked rows is skipped; but its labels are counted in
    `indexed`, by label, one level.

    Raises:
        DamagedError: a unit of the index is gone or damaged, or is not the one that was ranked.
    """
    present = run.columns()
    stream = _Stream(run.rows(list(dict.fromkeys([*(name for name in LOCATION if name in present), *ranked]))))
    waiting: list[pa.Table] = []

    def read(key: str) -> pa.Table:
        return read_own(candidates_place(run.out, key), ["row", "generation", "reason", *index.of[_fingerprint(key)]])

    keys = (key for _, key in snapshot.units)
    for (unit, key), rows in zip(snapshot.units, read_ahead(read, keys), strict=True):
        for name, counts in indexed.items():
            column = index.labels[name]
            there = rows[column] if column in rows.column_names else pa.chunked_array([pa.nulls(rows.num_rows)])
            counts.add(there, np.zeros(rows.num_rows, np.intp))
        candidates = rows.filter(pc.is_null(rows["reason"]))
        for start in range(0, candidates.num_rows, BATCH_ROWS):
            part = candidates.slice(start, BATCH_ROWS)
            known = location_keys(part)
            found = stream.take(part.num_rows, unit, snapshot, int(known[-1]))
            wanted = location_keys(found)
            at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
            if not np.array_equal(known[at], wanted):
                raise DamagedError(candidates_place(run.out, key), "it is not what was ranked")
            picked = part.take(pa.array(at))
            for name in index.of[_fingerprint(key)]:
                found = found.append_column(picked.schema.field(name), picked[name])
            waiting.append(found)
        if sum(table.num_rows for table in waiting) >= BATCH_ROWS:
            yield _joined(waiting, index)
            waiting.clear()
    if not stream.ended():
        raise DamagedError(run.out.child("index"), "it has fewer rows than were ranked")
    if waiting:
        yield _joined(waiting, index)


def _joined(tables: Sequence[pa.Table], index: IndexColumns) -> pa.Table:
    table = pa.concat_tables(tables, promote_options="default")
    for name in index.names:
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(table.num_rows))
    return table


class _Stream:
    """Rows of the ranking that are taken from the front."""

    def __init__(self, batches: Iterator[pa.Table]) -> None:
        self._batches = batches
        self._held = next(batches)

    def take(self, most: int, unit: Unit, snapshot: Snapshot, last: int) -> pa.Table:
        """The rows that come next and lie in this unit, up to the key `last`; at most so many."""
        while self._held.num_rows < most:
            batch = next(self._batches, None)
            if batch is None:
                break
            self._held = pa.concat_tables([self._held, batch]).combine_chunks()
        ahead = self._held.slice(0, most)
        here = pc.equal(ahead["file"], unit.path)
        if "pool" in ahead.column_names:
            here = pc.and_(here, pc.equal(ahead["pool"], snapshot.pools[unit.pool]))
        inside = here.to_numpy() & (location_keys(ahead) <= last)
        count = int(np.argmin(inside)) if not inside.all() else ahead.num_rows
        self._held = self._held.slice(count)
        return ahead.slice(0, count)

    def ended(self) -> bool:
        """Whether all rows were taken."""
        return not self._held.num_rows and next(self._batches, None) is None
