"""Stage 2: judge what has no score yet. Each distinct question once, however many traces it has."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from s2r_ray.cluster import stream_actors
from s2r_ray.index import Snapshot, questions_place
from s2r_ray.progress import Progress
from s2r_ray.signals.base import Resources, Signal
from s2r_ray.storage import Place
from s2r_ray.store import ScoreStore
from s2r_ray.tables import read_table
from s2r_ray.worker import SignalWorker

_READ_THREADS = 32


@dataclass(frozen=True)
class Pending:
    """The distinct questions of a snapshot, and which of them have no score yet.

    `unit` and `row` say where each pending question's text lies: int32[pending] positions in the snapshot's units
    and in that unit's questions, sorted.
    """

    distinct: int
    unit: npt.NDArray[np.int32]
    row: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.unit)


@dataclass(frozen=True)
class Judged:
    """What stage 2 did for one signal: distinct keys judged now, taken from the store, and left without a value."""

    judged: int
    reused: int
    faults: int
    seconds: float
    worker_seconds: float


def find_pending(out: Place, snapshot: Snapshot, store: ScoreStore) -> Pending:
    """Which questions to judge. Reads keys only: 16 bytes a question."""
    with ThreadPoolExecutor(_READ_THREADS) as threads:
        tables = list(threads.map(lambda item: _keys(out, *item), enumerate(key for _, key in snapshot.units)))
    if not tables:
        return Pending(0, np.zeros(0, np.int32), np.zeros(0, np.int32))
    table = pa.concat_tables(tables)
    order = pa.array(np.arange(table.num_rows, dtype=np.int64))
    first = table.append_column("place", order).group_by("question_key").aggregate([("place", "min")])
    missing = first.filter(pc.invert(pc.is_in(first["question_key"], value_set=store.keys())))
    chosen = np.sort(missing["place_min"].to_numpy())
    return Pending(first.num_rows, table["unit"].to_numpy()[chosen], table["row"].to_numpy()[chosen])


def _keys(out: Place, position: int, key: str) -> pa.Table:
    """Columns question_key, unit, row of one unit's questions."""
    table = read_table(questions_place(out, key), ["question_key"])
    unit = pa.array(np.full(table.num_rows, position, np.int32))
    row = pa.array(np.arange(table.num_rows, dtype=np.int32))
    return table.append_column("unit", unit).append_column("row", row)


def score_missing(
    out: Place,
    snapshot: Snapshot,
    signal: Signal,
    store: ScoreStore,
    pending: Pending,
    resources: Resources,
    progress: Progress,
) -> Judged:
    """Judge the pending questions on the cluster; each batch is in the store before the next is taken."""
    store.describe(signal.fingerprint())
    items = work_items(snapshot, pending, resources.batch)
    faults, worker_seconds = 0, 0.0
    with progress.stage(signal.name, "questions", len(pending)) as ticker:
        if items:
            load = partial(load_questions, out)
            for result in stream_actors(items, load, SignalWorker, (signal, store), resources):
                ticker.advance(result["scored"])
                faults += result["faults"]
                worker_seconds += result["seconds"]
        seconds = ticker.state.seconds
    return Judged(len(pending), pending.distinct - len(pending), faults, seconds, worker_seconds)


def work_items(snapshot: Snapshot, pending: Pending, batch: int) -> list[dict[str, Any]]:
    """Cut the pending questions into items of `batch`: which units to open and which of their questions to take."""
    items = []
    for start in range(0, len(pending), batch):
        unit, row = pending.unit[start : start + batch], pending.row[start : start + batch]
        units, first = np.unique(unit, return_index=True)
        rows = np.split(row, first[1:])
        items.append({"units": [snapshot.units[u][1] for u in units], "rows": [part.tolist() for part in rows]})
    return items


def load_questions(out: Place, item: dict[str, Any]) -> pa.Table:
    """The texts of one work item: columns `key`, `question`. Runs in a CPU task."""
    tables = []
    for key, rows in zip(item["units"], item["rows"], strict=True):
        table = read_table(questions_place(out, str(key)))
        tables.append(table.take(pa.array(np.asarray(rows, np.int64))))
    return pa.concat_tables(tables).rename_columns(["key", "question"]).combine_chunks()
