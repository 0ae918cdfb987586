"""Chosen rows of a run's pools, read from where they lie: only the row groups or lines that hold them.

What comes back is what was ranked: the file must still be the version that the run read, and of a row with several
generations the one that is named is taken.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ValidationError

from s2r_ray.candidates import response_text
from s2r_ray.config import PoolSection
from s2r_ray.errors import S2RError, UsageError
from s2r_ray.index import Snapshot
from s2r_ray.mapping import Mapping, records
from s2r_ray.printable import one_line
from s2r_ray.readers import Unit, bad_file_errors, parse_lines, python_values, row_lines
from s2r_ray.storage import DEFAULT_STORAGE, FileInfo, Place, StorageOptions
from s2r_ray.tables import open_parquet
from s2r_ray.utf8 import Utf8

_FILES_AT_ONCE = 4
_ITEMS_A_TURN = 4
_BATCH_BYTES = 8 << 20
_BATCH_ROWS = 4096
SAMPLES = pa.schema([("question", pa.string()), ("response", pa.string()), ("answer", pa.string())])
"""Texts of a row. `response` is all that a student would learn to write, `answer` the pool's reference answer."""

Ints = npt.NDArray[np.int64]
_T = TypeVar("_T")


@dataclass(frozen=True)
class RunPool:
    """One pool of a run. `then` are its files as the run read them, `now` as they are, by path relative to `root`."""

    name: str
    root: Place
    mapping: Mapping
    then: dict[str, FileInfo] = field(default_factory=dict)
    now: dict[str, FileInfo] = field(default_factory=dict)

    def check(self, path: str) -> None:
        """Hold a file against what the run read.

        Raises:
            S2RError: it is gone or has changed.
        """
        then, now = self.then.get(path), self.now.get(path)
        if then is None:
            raise S2RError(f"the run read no file {path} in {self.name}; these rows are of another run")
        if now == then:
            return
        found = "is gone" if now is None else "has changed"
        sizes = f" ({then.size:,} bytes then, {now.size:,} now)" if now is not None and now.size != then.size else ""
        raise S2RError(
            f"pool file {self.root.child(path)} {found} since the run read it{sizes}. Bring back what was there, or "
            "run `s2r run` again (it reads what changed and judges new questions alone) and take that run"
        )


@dataclass(frozen=True, eq=False)
class Fetched:
    """Some of the rows asked for.

    `at`: int64[n], which ones; `samples`: [n] of the schema SAMPLES, null where the row has no such text; `originals`:
    [n], all columns of the file as they are, None unless asked for.
    """

    at: Ints
    samples: pa.Table
    originals: pa.Table | None = None


def run_pools(
    snapshot: Snapshot, config: dict[str, Any], options: StorageOptions = DEFAULT_STORAGE
) -> tuple[RunPool, ...]:
    """The pools of a run, listed as they are now.

    Args:
        snapshot: the run's (`index.snapshot_place` says where one is kept).
        config: as `run.json` records it.

    Raises:
        UsageError: a pool is not there any more, or the record is of another version.
    """
    try:
        mappings = [PoolSection.model_validate(section).resolved_mapping() for section in config["pools"]]
    except (KeyError, ValidationError) as error:
        raise UsageError("the run was left by another version of s2r; `s2r run` makes a new one") from error
    then: list[dict[str, FileInfo]] = [{} for _ in snapshot.pools]
    for unit, _ in snapshot.units:
        then[unit.pool][unit.path] = FileInfo(unit.path, unit.size, unit.version)
    pools = []
    for name, mapping, files in zip(snapshot.pools, mappings, then, strict=True):
        root, found = Place.of(name, options).glob()
        pools.append(RunPool(name, root, mapping, files, {file.path: file for file in found}))
    return tuple(pools)


def fetch_rows(pools: Sequence[RunPool], rows: pa.Table, *, originals: bool = False) -> Iterator[Fetched]:
    """The rows that a table names, some at a time: those of a file in file order, of several files in turn.

    Each row of `rows` comes exactly once. Held are, for each of up to four files, 8 MiB of each column that is read
    (or one line) and up to 64 MiB of unpacked rows, and 32 bytes for each row asked for.

    Args:
        rows: columns `file`, `row` (from 0) and `generation`, and `pool` where the run has several pools: as in a
            manifest, the ranking or the excluded rows. `file` and `pool` may be dictionary arrays.
        originals: give all columns of the files, too; else only those of question, response and answer are read.

    Raises:
        S2RError: a file has changed since the run read it (told before any is read), or cannot be read.
    """
    wanted = _wanted(pools, rows)
    for item in wanted:
        item.pool.check(item.path)
    remote = any(pool.root.is_remote for pool in pools)
    at_once = _FILES_AT_ONCE if remote else min(_FILES_AT_ONCE, os.cpu_count() or 1)  # a disk answers at once
    yield from _in_turn((_fetch(item, originals) for item in wanted), at_once)


@dataclass(frozen=True, eq=False)
class _Wanted:
    """Rows of one file, ascending: number in the file, generation, and which of the rows asked for each is: [n].
    `alone`: no other file has any."""

    pool: RunPool
    path: str
    rows: Ints
    generations: Ints
    at: Ints
    alone: bool

    @property
    def place(self) -> Place:
        return self.pool.root.child(self.path)

    def part(self, low: int, high: int) -> _Wanted:
        here = slice(low, high)
        return replace(self, rows=self.rows[here], generations=self.generations[here], at=self.at[here])

    def between(self, row: int, stop: int) -> _Wanted:
        """Those whose number in the file is in [row, stop)."""
        low, high = np.searchsorted(self.rows, [row, stop])
        return self.part(int(low), int(high))


def _wanted(pools: Sequence[RunPool], rows: pa.Table) -> list[_Wanted]:
    """What is wanted of each file, in location order."""
    by_name = {pool.name: pool for pool in pools}
    if "pool" in rows.column_names:
        pool, names = _coded(rows["pool"])
    else:
        pool, names = np.zeros(rows.num_rows, np.int32), [pools[0].name]
    file, paths = _coded(rows["file"])
    number, generation = (rows[name].to_numpy().astype(np.int64) for name in ("row", "generation"))
    order = np.lexsort((generation, number, file, pool))
    bounds = np.flatnonzero((np.diff(pool[order]) != 0) | (np.diff(file[order]) != 0)) + 1
    found = []
    for here in np.split(order, bounds):
        if not len(here):
            continue
        name = names[pool[here[0]]]
        if name not in by_name:
            raise S2RError(f"{name} is no pool of this run; it has {', '.join(by_name)}")
        path = paths[file[here[0]]]
        found.append(_Wanted(by_name[name], path, number[here], generation[here], here, alone=not len(bounds)))
    return found


def _coded(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.int32], list[str]]:
    """Which of the distinct values each one is, int32[n], and the values, sorted."""
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    chunks = column.unify_dictionaries().chunks
    if not chunks:
        return np.zeros(0, np.int32), []
    values = chunks[0].dictionary
    order = pc.sort_indices(values).to_numpy()
    place = np.empty(len(order), np.int32)
    place[order] = np.arange(len(order), dtype=np.int32)
    codes = np.concatenate([chunk.indices.to_numpy() for chunk in chunks])
    return place[codes], values.take(pa.array(order)).to_pylist()


def _in_turn(sources: Iterable[Iterator[_T]], at_once: int) -> Iterator[_T]:
    """The items of all sources: so many sources take turns, a few items each; a thread reads a source's next few while
    those before are used."""
    sources = iter(sources)
    with ThreadPoolExecutor(at_once) as threads:
        waiting: deque[tuple[Iterator[_T], Future[list[_T]]]] = deque()

        def go_on(source: Iterator[_T]) -> None:
            waiting.append((source, threads.submit(lambda: list(islice(source, _ITEMS_A_TURN)))))

        for source in islice(sources, at_once):
            go_on(source)
        while waiting:
            source, future = waiting.popleft()
            if items := future.result():
                go_on(source)
                yield from items
            elif (following := next(sources, None)) is not None:
                go_on(following)


def _fetch(wanted: _Wanted, originals: bool) -> Iterator[Fetched]:
    read = _from_parquet if wanted.path.endswith(".parquet") else _from_lines
    with bad_file_errors(wanted.place):
        yield from read(wanted, wanted.pool.mapping.texts_only(), originals)


def _from_parquet(wanted: _Wanted, texts: Mapping, originals: bool) -> Iterator[Fetched]:
    with open_parquet(wanted.place, ahead=False) as file:
        names = file.schema_arrow.names
        twice = sorted({name for name in names if names.count(name) > 1})
        if originals and twice:
            raise ValueError(f"more than one column is called {', '.join(map(repr, twice))}")
        columns = names if originals else [name for name in names if name in (*texts.columns(), texts.answer)]
        row = 0
        for number in range(file.num_row_groups):
            group = file.metadata.row_group(number)
            inside = wanted.between(row, row + group.num_rows)
            if len(inside.rows):
                yield from _from_group(file, number, row, columns, inside, texts, originals)
            row += group.num_rows
    _check_end(wanted, row)


def _from_group(
    file: Any, number: int, row: int, columns: Sequence[str], wanted: _Wanted, texts: Mapping, originals: bool
) -> Iterator[Fetched]:
    """What is wanted of one row group, whose first row has the number `row`."""
    group = file.metadata.row_group(number)
    size = max(1, min(_BATCH_ROWS, _BATCH_BYTES * group.num_rows // max(1, group.total_byte_size)))
    threads = wanted.alone and not wanted.place.is_remote  # else files are read side by side
    for batch in file.iter_batches(size, row_groups=[number], columns=columns, use_threads=threads):
        here = wanted.between(row, row + batch.num_rows)
        if len(here.rows):
            distinct, of_each = np.unique(here.rows - row, return_inverse=True)  # several generations of a row: once
            chosen = batch.take(pa.array(distinct))
            whole = _plain(pa.Table.from_batches([chosen])).take(pa.array(of_each)) if originals else None
            yield Fetched(here.at, _samples_of_batch(here, of_each, chosen, texts), whole)
        row += batch.num_rows
        if row > wanted.rows[-1]:
            return


def _plain(rows: pa.Table) -> pa.Table:
    """The same with values in place of dictionary codes, and without what the writer says of the columns."""
    schema = pa.schema([(field.name, _plain_type(field.type)) for field in rows.schema])
    return rows.replace_schema_metadata().cast(schema)


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    if pa.types.is_list(kind):
        return pa.list_(_plain_type(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _plain_type(field.type)) for field in kind])
    return kind


def _samples_of_batch(wanted: _Wanted, of_each: Ints, batch: pa.RecordBatch, texts: Mapping) -> pa.Table:
    there = batch.schema.names
    present = batch.select([name for name in texts.columns() if name in there])
    values, faults = python_values(present, undecoded=texts.trace_columns())  # of a row's traces one is wanted
    values = {name: values.get(name, [None] * batch.num_rows) for name in texts.columns()}
    answers: list[Any] = [None] * batch.num_rows
    if texts.answer and texts.answer in there:
        answers = python_values(batch.select([texts.answer]))[0][texts.answer]
    return _samples(wanted, of_each, values, answers, faults, texts)


def _from_lines(wanted: _Wanted, texts: Mapping, originals: bool) -> Iterator[Fetched]:
    then = wanted.pool.then[wanted.path]
    unit = Unit(0, wanted.path, then.size, then.version)
    start = stop = size = 0
    held: list[bytes] = []
    row = -1
    for row, line in enumerate(row_lines(wanted.place, unit)):
        while stop < len(wanted.rows) and wanted.rows[stop] == row:
            held.append(line)
            stop, size = stop + 1, size + len(line)
        done = stop == len(wanted.rows)
        if held and (done or size >= _BATCH_BYTES or len(held) >= _BATCH_ROWS):
            yield _from_objects(wanted.part(start, stop), held, texts, originals)
            start, held, size = stop, [], 0
        if done:
            return
    _check_end(wanted, row + 1)


def _from_objects(wanted: _Wanted, lines: Sequence[bytes], texts: Mapping, originals: bool) -> Fetched:
    rows, faults = parse_lines(lines)
    values = {name: [row.get(name) for row in rows] for name in texts.columns()}
    answers = [row.get(texts.answer) if texts.answer else None for row in rows]
    samples = _samples(wanted, np.arange(len(rows)), values, answers, faults, texts)
    if not originals:
        return Fetched(wanted.at, samples)
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: _column(name, [row.get(name) for row in rows], wanted) for name in names}
    return Fetched(wanted.at, samples, pa.table(columns))


def _column(name: str, values: list[Any], wanted: _Wanted) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowException, TypeError, OverflowError) as error:
        raise UsageError(
            f"{wanted.place}: key {one_line(name)!r} has values of several types ({error}), which a column of Parquet "
            "cannot have; export in another format than openr1"
        ) from error


def _check_end(wanted: _Wanted, rows: int) -> None:
    if wanted.rows[-1] >= rows:
        raise ValueError(f"it has {rows:,} rows; row {wanted.rows[-1]:,}, counted from 0, was asked for")


def _samples(
    wanted: _Wanted,
    of_each: Ints,
    values: dict[str, list[Any]],
    answers: Sequence[Any],
    faults: dict[int, str],
    texts: Mapping,
) -> pa.Table:
    """The texts of what is wanted, each of its generation; `of_each`: which of these rows each one is, [n]."""
    found: dict[str, list[str | None]] = {name: [] for name in SAMPLES.names}
    rows = list(records(values, 0, texts))
    for at, generation in zip(of_each.tolist(), wanted.generations, strict=True):
        record = rows[at]
        sound = record.row not in faults
        trace = next((trace for trace in record.traces if trace.generation == generation), None)
        response = response_text(trace) if trace is not None else None
        found["question"].append(record.question if sound and isinstance(record.question, str) else None)
        found["response"].append(str(response) if sound and isinstance(response, str | Utf8) else None)
        found["answer"].append(answer_text(answers[at]))
    return pa.table(found, SAMPLES)


def answer_text(value: Any) -> str | None:
    """An answer as text: numbers and lists as JSON has them."""
    return value if value is None or isinstance(value, str) else orjson.dumps(value, default=str).decode()
