"""Stage 1: the pool index. One narrow row per trace, made once per version of a file, and the distinct questions.

`OUT/index/<fingerprint>/<unit>.questions.parquet` and `….candidates.parquet` are what one unit (a file, or a span of
row groups) left; the latter is written last, so it is also the mark that the unit is done. Names are content: a unit
that was indexed before, in this run or any other, is not read again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from operator import attrgetter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from s2r_ray.candidates import Choice, Entry, Guards, Reason, entries
from s2r_ray.errors import UsageError
from s2r_ray.keys import KEY
from s2r_ray.mapping import Mapping, records
from s2r_ray.models import ModelRef, fetch
from s2r_ray.readers import BadFileError, Batch, Unit, read_unit
from s2r_ray.rethinking import RETHINKING_WORDS
from s2r_ray.retries import take_repeated
from s2r_ray.storage import Place
from s2r_ray.tables import DamagedError, read_ahead, read_own, write_own
from s2r_ray.tokens import TokenCounter, open_counter

_CODE_VERSION = 5
"""Raise it when a change to reading, guards or counting can change an index row: files are then read again."""

_WORD = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("row", pa.int64()),
        ("generation", pa.int32()),
        ("question_key", KEY),
        ("sample_key", KEY),
        ("question_tokens", pa.int32()),
        ("response_tokens", pa.int32()),
        ("trace_tokens", pa.int32()),
        ("trace_tokens_unique", pa.int32()),
        ("trace_characters", pa.int32()),
        ("rethinking_words", pa.int32()),
        ("addresses_judge", pa.bool_()),
        ("verified", pa.bool_()),
        ("complete", pa.bool_()),
        ("finish_reason", _WORD),
        ("reason", _WORD),
        ("detail", pa.string()),
    ]
)
"""One row per trace. `reason` is null for a candidate; keys and lengths are null where a trace was left out before they
were needed, `verified`, `complete` and `finish_reason` where the pool does not say. A column for each label of the
pool's mapping follows, called as `label_column` says."""

QUESTIONS_SCHEMA = pa.schema([("question_key", KEY), ("question", pa.string())])


def label_column(label: str) -> str:
    """The column of the index that has a label. It is text, null where a sample has none."""
    return f"label_{label}"


@dataclass(frozen=True)
class PoolIndex:
    """How one pool is indexed. Travels to workers, with its tokenizer where that is spelled out (tokens.spell_out)."""

    root: Place
    out: Place
    mapping: Mapping
    guards: Guards
    choice: Choice
    tokenizer: ModelRef
    spelled_out: str | None = field(default=None, repr=False)

    @property
    def fingerprint(self) -> str:
        """Stands for everything but the file that can change an index row."""
        content = {
            "code": _CODE_VERSION,
            "mapping": self.mapping.model_dump(mode="json", exclude={"answer"}),
            "guards": self.guards.model_dump(mode="json"),
            "choice": self.choice,
            "rethinking_words": RETHINKING_WORDS,
            "tokenizer": self.tokenizer.identity,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]

    @property
    def schema(self) -> pa.Schema:
        """Of this pool's index rows: SCHEMA and its labels."""
        return pa.schema([*SCHEMA, *((label_column(label), _WORD) for label in self.mapping.labels)])

    def key(self, unit: Unit) -> str:
        """The unit's name in the index: fingerprint / digest of where the file is and its version."""
        version = [self.root.uri, unit.path, unit.size, unit.version, unit.row_groups]
        return f"{self.fingerprint}/{hashlib.sha256(json.dumps(version).encode()).hexdigest()[:32]}"


@dataclass(frozen=True)
class UnitOutcome:
    """What indexing one unit came to. `pool` and `path` are the unit's; `error` is None, or why the file could not be
    read; `repeated` counts requests to an object store that were sent again; `excluded` rows by reason."""

    key: str
    pool: int
    path: str
    traces: int = 0
    seconds: float = 0.0
    counted_by: str = ""
    repeated: int = 0
    error: str | None = None
    excluded: dict[str, int] = field(default_factory=dict)


def candidates_place(out: Place, key: str) -> Place:
    """The index rows of a unit."""
    return out.child("index", f"{key}.candidates.parquet")


def questions_place(out: Place, key: str) -> Place:
    """The distinct questions of a unit's candidates."""
    return out.child("index", f"{key}.questions.parquet")


def question_keys(out: Place, snapshot: Snapshot) -> Iterator[pa.ChunkedArray]:
    """The keys of each unit's distinct questions, unit by unit."""
    places = (questions_place(out, key) for _, key in snapshot.units)
    return (table["question_key"] for table in read_ahead(partial(read_own, columns=["question_key"]), places))


def sample_keys(out: Place, snapshot: Snapshot) -> Iterator[pa.ChunkedArray]:
    """The keys of each unit's candidates, unit by unit."""
    places = (candidates_place(out, key) for _, key in snapshot.units)
    tables = read_ahead(partial(read_own, columns=["sample_key", "reason"]), places)
    return (table["sample_key"].filter(pc.is_null(table["reason"])) for table in tables)


def forget_unit(out: Place, key: str) -> None:
    """Set a unit's files aside, so that the next run reads its file again."""
    for place in (candidates_place(out, key), questions_place(out, key)):
        if place.exists():
            place.set_aside()


def damaged_units(out: Place, keys: Iterable[str]) -> list[DamagedError]:
    """What is wrong with the files of these units, one for each that is not whole; units without any are not in it."""

    def look(key: str) -> DamagedError | None:
        for place, schema in ((candidates_place(out, key), SCHEMA), (questions_place(out, key), QUESTIONS_SCHEMA)):
            try:
                absent = set(schema.names).difference(read_own(place).column_names)
            except DamagedError as error:
                return error
            if absent:
                return DamagedError(place, f"it has no column {', '.join(sorted(absent))}")
        return None

    there = indexed_keys(out).intersection(keys)
    return [found for found in read_ahead(look, sorted(there)) if found is not None]


def unit_of(out: Place, place: Place) -> str:
    """The key of the unit that one of its files belongs to."""
    name = place.uri.removeprefix(out.child("index").uri + "/")
    return name.removesuffix(".candidates.parquet").removesuffix(".questions.parquet")


def indexed_keys(out: Place) -> set[str]:
    """The units that are in the index already."""
    suffix = ".candidates.parquet"
    return {file.path.removesuffix(suffix) for file in out.child("index").files() if file.path.endswith(suffix)}


@dataclass
class _Rows:
    """Index rows on their way to a file, and the questions seen. A batch becomes an Arrow table at once: as values of
    Python the rows of a large file would take gigabytes."""

    labels: Sequence[str]
    schema: pa.Schema
    tables: list[pa.Table] = field(default_factory=list)
    questions: dict[bytes, str] = field(default_factory=dict)
    excluded: Counter[str] = field(default_factory=Counter)

    def add(self, entries: Sequence[Entry]) -> None:
        columns: dict[str, list[Any]] = {name: list(map(attrgetter(name), entries)) for name in SCHEMA.names}
        columns |= {label_column(label): [entry.labels.get(label) for entry in entries] for label in self.labels}
        self.tables.append(pa.table(columns, self.schema))
        self.excluded.update(reason for reason in columns["reason"] if reason is not None)

    def table(self) -> pa.Table:
        return pa.concat_tables([self.schema.empty_table(), *self.tables]).unify_dictionaries().combine_chunks()


def index_unit(pool: PoolIndex, unit: Unit) -> UnitOutcome:
    """Read a unit once and leave its index rows and questions. Runs in a Ray task.

    A file that cannot be read, or lacks a column of the mapping, is an outcome with an error and leaves nothing behind.
    """
    started = time.monotonic()
    take_repeated()
    key = pool.key(unit)
    counter = _counter(pool)
    rows = _Rows(tuple(pool.mapping.labels), pool.schema)
    try:
        wanted, long = pool.mapping.columns(), pool.mapping.trace_columns()
        for batch in read_unit(pool.root, unit, wanted, pool.mapping.check, undecoded=long):
            _add_batch(rows, batch, pool)
    except (BadFileError, UsageError) as error:
        return UnitOutcome(key, unit.pool, unit.path, repeated=take_repeated(), error=str(error))
    questions = {"question_key": list(rows.questions), "question": list(rows.questions.values())}
    write_own(questions_place(pool.out, key), pa.table(questions, QUESTIONS_SCHEMA))
    table = rows.table()
    write_own(candidates_place(pool.out, key), table)
    seconds, excluded = time.monotonic() - started, dict(rows.excluded)
    return UnitOutcome(
        key, unit.pool, unit.path, table.num_rows, seconds, counter.exact_library, take_repeated(), excluded=excluded
    )


def _counter(pool: PoolIndex) -> TokenCounter:
    if pool.spelled_out is not None:
        return open_counter(pool.tokenizer.name, pool.spelled_out)
    return open_counter(str(fetch(pool.tokenizer, weights=False)))


def _add_batch(rows: _Rows, batch: Batch, pool: PoolIndex) -> None:
    read = records(batch.columns, batch.first_row, pool.mapping)
    good = [record for record in read if record.row - batch.first_row not in batch.faults]
    texts = {record.row: record.question for record in good}
    found = entries(good, pool.guards, pool.choice, _counter(pool))
    for entry in found:
        if entry.reason is None and entry.question_key is not None:
            rows.questions.setdefault(entry.question_key, texts[entry.row])
    rows.add(found + [_faulty_row(batch.first_row + offset, fault) for offset, fault in batch.faults.items()])


def _faulty_row(row: int, fault: str) -> Entry:
    return Entry(f"row-{row}#0", row, -1, reason=str(Reason.UNREADABLE_ROW), detail=fault)


@dataclass(frozen=True)
class Snapshot:
    """The pools as one run saw them: their addresses, and every unit with its key, in pool and path order.

    `unreadable` are the files put up with, or of which a part was, as (pool, path, error), each once.
    """

    pools: tuple[str, ...]
    units: tuple[tuple[Unit, str], ...]
    unreadable: tuple[tuple[int, str, str], ...] = ()

    def digest(self) -> str:
        """Stands for exactly these files in these versions."""
        return hashlib.sha256(self.to_json()).hexdigest()[:32]

    def to_json(self) -> bytes:
        """The form in which it is stored."""
        units = [[*asdict(unit).values(), key] for unit, key in self.units]
        content = {"pools": list(self.pools), "units": units, "unreadable": [list(item) for item in self.unreadable]}
        return json.dumps(content).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Snapshot:
        """The inverse of `to_json`."""
        content = json.loads(data)
        units = tuple(
            (Unit(pool, path, size, version, tuple(span) if span else None, first_row), key)
            for pool, path, size, version, span, first_row, key in content["units"]
        )
        return cls(tuple(content["pools"]), units, tuple(tuple(item) for item in content["unreadable"]))


def snapshot_place(out: Place, digest: str) -> Place:
    """Where the snapshot of that digest is kept, so that an older run can be ranked or looked at again."""
    return out.child("index", "snapshots", f"{digest}.json")


def unit_keys(pools: Sequence[PoolIndex], units: Sequence[Unit]) -> list[tuple[Unit, str]]:
    """Each unit with its key."""
    return [(unit, pools[unit.pool].key(unit)) for unit in units]
