"""Stage 2: judge what has no score yet. Each distinct question once, however many traces it has."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from s2r_ray.cluster import stream_actors
from s2r_ray.errors import S2RError, WorkersLostError
from s2r_ray.index import Snapshot, forget_unit, questions_place
from s2r_ray.keys import KeySet, Places, sort_keys
from s2r_ray.metrics import count, progressed
from s2r_ray.progress import Progress
from s2r_ray.retries import take_repeated
from s2r_ray.signals.base import Fault, Resources, Scores, Signal, Status, Subject
from s2r_ray.storage import Place
from s2r_ray.store import ScoreStore
from s2r_ray.tables import DamagedError, read_ahead, read_own
from s2r_ray.worker import DETAIL_CHARACTERS, SignalWorker, score_table

_SHARES = 24
"""Items that each worker's share of what is left is cut into: one ten times slower than the rest, which holds the item
it works on and the next, then still ends with them."""


@dataclass(frozen=True, eq=False)
class Questions:
    """The distinct questions of a snapshot: 24 bytes each.

    Places count the questions of all units one after the other. `first`: int64[keys], where each key occurs first;
    `starts`: int64[units + 1], the place of each unit's first question.
    """

    keys: KeySet
    first: Places
    starts: Places

    def pending(self, settled: npt.NDArray[np.bool_]) -> Pending:
        """Those that are not settled, bool[keys]."""
        return Pending(len(self.keys), np.sort(self.first[~settled]), self.starts)


@dataclass(frozen=True, eq=False)
class Pending:
    """Which questions have no score yet, of `distinct` ones.

    `places`: int64[pending], ascending, where their texts lie; `starts` as in Questions.
    """

    distinct: int
    places: Places
    starts: Places

    def __len__(self) -> int:
        return len(self.places)


@dataclass
class Judged:
    """What stage 2 did for one signal.

    Attributes:
        judged, reused: distinct keys judged now, and taken from the store.
        faults: of those judged, left without a value.
        seconds, worker_seconds: of the stage, and summed over its workers.
        loading: seconds that the slowest worker took to load.
        replaced: workers that stand for one that died.
        restarts: how often all workers had to be started again.
        repeated: requests to an object store sent again by workers.
        prompt_tokens: read by the model.
    """

    judged: int
    reused: int
    faults: int = 0
    seconds: float = 0.0
    worker_seconds: float = 0.0
    loading: float = 0.0
    replaced: set[str] = field(default_factory=set)
    restarts: int = 0
    repeated: int = 0
    prompt_tokens: int = 0

    def join(self, later: Judged) -> None:
        """Take in what a later pass over the same questions did. `reused` is of one pass and stays as it is."""
        self.judged += later.judged
        self.faults += later.faults
        self.seconds += later.seconds
        self.worker_seconds += later.worker_seconds
        self.loading = max(self.loading, later.loading)
        self.prompt_tokens += later.prompt_tokens

    def add(self, result: dict[str, Any]) -> bool:
        """Take in a worker's answer; True if it is the first of one that stands for a worker that died."""
        self.faults += result["faults"]
        self.worker_seconds += result["seconds"]
        self.loading = max(self.loading, result["loading"])
        self.repeated += result["repeated"]
        self.prompt_tokens += result["prompt_tokens"]
        news = bool(result["replaced"]) and result["worker"] not in self.replaced
        if news:
            self.replaced.add(result["worker"])
        return news


def find_questions(out: Place, snapshot: Snapshot) -> Questions:
    """The distinct questions of all units. Reads keys only."""
    starts = [0]

    def keys() -> Iterator[pa.ChunkedArray]:
        places = (questions_place(out, key) for _, key in snapshot.units)
        for table in read_ahead(partial(read_own, columns=["question_key"]), places):
            starts.append(starts[-1] + table.num_rows)
            yield table["question_key"]

    found = sort_keys(keys())
    return Questions(found.distinct, found.first(), np.array(starts))


def score_missing(
    out: Place,
    snapshot: Snapshot,
    signal: Signal,
    store: ScoreStore,
    questions: Questions,
    pending: Pending,
    resources: Resources,
    load_custom: Mapping[str, float],
    progress: Progress,
) -> Judged:
    """Judge the pending ones of the questions on the cluster; each batch is in the store before the next is taken.

    A worker that dies is replaced by Ray. When that does not help, all are started again for what is still missing; a
    question that is the last one left and takes its worker with it each time has failed.

    Args:
        load_custom: custom Ray resources of a task that reads questions.

    Raises:
        WorkersLostError: they were lost more than `resources.restarts` times in a row without scoring anything.
    """
    store.describe(signal.fingerprint())
    judged = Judged(len(pending), pending.distinct - len(pending))
    died = f"a {signal.name} worker died, or hung for more than {resources.hang_seconds:g} s, and was replaced"
    load, arguments = partial(load_questions, out), (signal, store, resources.hang_seconds)
    left, fruitless = pending, 0
    count("s2r_questions_reused", judged.reused, signal=signal.name)
    progressed(signal.name, len(pending))
    with progress.stage(signal.name, "questions", len(pending)) as ticker:
        while len(left):
            # After a restart a question may be to blame: go round it from the other side, and narrow down where it is.
            batch = min(resources.batch, math.ceil(len(left) / 8)) if judged.restarts else resources.batch
            items = work_items(snapshot, left, batch, resources.workers[1])[:: -1 if judged.restarts % 2 else 1]
            before = ticker.state.done
            try:
                for result in stream_actors(items, load, SignalWorker, arguments, resources, load_custom):
                    ticker.advance(result["scored"])
                    progressed(signal.name, ticker.state.total - ticker.state.done)
                    count("s2r_store_retries", result["repeated"])
                    if judged.add(result):
                        progress.say(f"warning: {died}")
                break
            except WorkersLostError as error:
                missing = questions.pending(store.settled(questions.keys).mask)
                scored = len(left) - len(missing)
                fruitless = 0 if scored > 0 else fruitless + 1
                if fruitless > resources.restarts and len(missing) == 1:
                    _give_up(out, snapshot, signal, store, missing, error)
                    judged.faults += 1
                    break
                if fruitless > resources.restarts:
                    raise WorkersLostError(f"{error}. {len(missing):,} questions have no score yet") from error
                progress.say(f"warning: {error}; starting again for the {len(missing):,} questions that are left")
                ticker.advance(max(0, before + scored - ticker.state.done))
                judged.restarts += 1
                left = missing
        judged.seconds = ticker.state.seconds
    return judged


def _give_up(
    out: Place, snapshot: Snapshot, signal: Signal, store: ScoreStore, left: Pending, error: WorkersLostError
) -> None:
    """The one question that is left takes every worker with it: it has failed, until the next run tries it again."""
    table = load_questions(out, work_items(snapshot, left, 1, 1)[0])
    subject = Subject(table["key"][0].as_py(), table["question"][0].as_py())
    fault = Fault(Status.FAILED, f"its worker died each time: {error}"[:DETAIL_CHARACTERS])
    nothing = Scores(np.zeros(1), {name: np.zeros(1) for name in signal.extras}, {0: fault})
    store.append(score_table(signal, [subject], nothing))


def work_items(snapshot: Snapshot, pending: Pending, batch: int, workers: int) -> list[dict[str, Any]]:
    """Cut the pending questions into items for so many workers: which units to open, which of their questions to take.

    An item has `batch` questions; towards the end, where several workers share what is left, fewer, down to an eighth:
    a slow one then holds the others up for less (guided self-scheduling, Polychronopoulos and Kuck 1987). `rows` are
    bytes of int32 in the machine's order: as numbers of Python's they would take ten times the memory.
    """
    items: list[dict[str, Any]] = []
    start = 0
    while start < len(pending):
        share = math.ceil((len(pending) - start) / (_SHARES * workers)) if workers > 1 else batch
        places = pending.places[start : start + min(batch, max(share, batch // 8, 1))]
        start += len(places)
        units, first = np.unique(np.searchsorted(pending.starts, places, side="right") - 1, return_index=True)
        parts = zip(units, np.split(places, first[1:]), strict=True)
        rows = [(part - pending.starts[unit]).astype(np.int32).tobytes() for unit, part in parts]
        items.append({"units": [snapshot.units[unit][1] for unit in units], "rows": rows})
    return items


def load_questions(out: Place, item: dict[str, Any]) -> pa.Table:
    """The texts of one work item, and what it took: columns `key`, `question`, `repeated`. Runs in a CPU task."""
    take_repeated()
    tables = []
    for key, rows in zip(item["units"], item["rows"], strict=True):
        table = _questions(out, str(key))
        tables.append(table.take(pa.array(np.frombuffer(rows, np.int32))))
    table = pa.concat_tables(tables).rename_columns(["key", "question"]).combine_chunks()
    repeated = np.zeros(table.num_rows, np.int64)
    repeated[:1] = take_repeated()
    return table.append_column("repeated", pa.array(repeated))


def _questions(out: Place, key: str) -> pa.Table:
    try:
        return read_own(questions_place(out, key))
    except DamagedError as error:
        forget_unit(out, key)
        raise S2RError(f"{error}; start the same command again, which reads that part of the pool anew") from error
