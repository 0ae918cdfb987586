"""The one wrapper that runs any signal: a worker process around it, one row out for each row in."""

from __future__ import annotations

import faulthandler
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa

from s2r_ray.cluster import is_replacement
from s2r_ray.errors import S2RError, WorkersLostError
from s2r_ray.metrics import count
from s2r_ray.noise import leave_noise
from s2r_ray.retries import take_repeated
from s2r_ray.signals.base import GRID, Fault, FloatArray, Scores, Signal, Status, Subject, vector_length
from s2r_ray.store import ScoreStore

DETAIL_CHARACTERS = 200
_NO_FAULTS: Mapping[int, Fault] = {}


class SignalWorker:
    """Scores tables of subjects and writes what it scored to the store before it answers.

    Runs as a Ray actor. A table has the columns `key`, `question` and, for signals that judge samples, `response`, for
    those that judge problems `answer`; what comes back is one row with what was done.
    """

    def __init__(self, signal: Signal, store: ScoreStore, hang_seconds: float) -> None:
        self._signal = signal
        self._store = store
        self._hang_seconds = hang_seconds
        self._name = uuid.uuid4().hex
        self._replaced = is_replacement()
        self._lost = ""
        self._noise_seen = bool(getattr(signal, "drawn", False))
        self._since = time.monotonic()
        with dies_when_hung(hang_seconds):
            signal.open()
        self._loading = self._spent("loading")

    def __call__(self, table: pa.Table) -> pa.Table:
        """One row: `scored` and `faults` count subjects, `prompt_tokens` what the model read of them; `seconds` is the
        work's time, `loading` what came before the first; `repeated` the requests to an object store sent again,
        `worker` a name for this process, `replaced` whether it stands for one that died.

        Raises:
            WorkersLostError: the signal is not fit to go on.
        """
        if self._lost:  # the batch that waited here: an engine that failed may never come back
            raise WorkersLostError(self._lost)
        self._spent("idle")
        started = time.monotonic()
        subjects = subjects_of(table)
        repeated = sum(table["repeated"].to_pylist()) if "repeated" in table.column_names else 0
        try:
            with dies_when_hung(self._hang_seconds):
                scores = score_all(self._signal, subjects)
        except self._signal.fatal as error:
            self._lost = f"{type(error).__name__}: {error}"
            raise WorkersLostError(self._lost) from error
        scored = score_table(self._signal, subjects, scores)
        self._store.append(scored)
        self._tell(scored, scores)
        seconds = time.monotonic() - started
        if not self._noise_seen:
            self._noise_seen = True
            with dies_when_hung(self._hang_seconds):
                leave_noise(self._signal, self._store, subjects, scores)
        answer = {
            "scored": len(subjects),
            "prompt_tokens": scores.prompt_tokens,
            "seconds": seconds,
            "loading": self._loading,
            "repeated": repeated + take_repeated(),
            "worker": self._name,
            "replaced": self._replaced,
        }
        self._spent("busy")
        return pa.Table.from_pylist([answer])

    def _tell(self, scored: pa.Table, scores: Scores) -> None:
        """Count what was just stored, for those who watch."""
        name = self._signal.name
        for item in scored["status"].value_counts().to_pylist():
            count("s2r_questions_judged", item["counts"], signal=name, status=item["values"])
        count("s2r_prompts", scores.prompts, signal=name)
        count("s2r_prefill_tokens", scores.prompt_tokens, signal=name)

    def _spent(self, state: str) -> float:
        """The seconds since the last call; they went into this."""
        now = time.monotonic()
        seconds, self._since = now - self._since, now
        count("s2r_judge_seconds", seconds, signal=self._signal.name, state=state)
        return seconds


@contextmanager
def dies_when_hung(seconds: float) -> Iterator[None]:
    """End the process, with all its threads' tracebacks in its log, if the block takes longer.

    Python's own watchdog thread does it, which needs no lock of the interpreter: native code that never comes back
    cannot keep it from working.
    """
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__ or sys.stderr)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def score_all(signal: Signal, batch: Sequence[Subject]) -> Scores:
    """Score a batch and hold the signal to its word: as many values as subjects.

    An exception that is not fatal is some row's fault. The batch is halved until the row is found, so its
    neighbours keep their scores; log2(n) calls more for each faulty row.

    Raises:
        S2RError: the signal returned the wrong number of values, other columns than its own, or a fault of no row.
        Exception: one of the signal's fatal types, as it was raised.
    """
    if not batch:
        return no_scores(signal, 0)
    try:
        scores = signal.score(batch)
    except signal.fatal:
        raise
    except Exception as error:  # noqa: BLE001  # the edge: whatever a row does to a signal is that row's fault
        if len(batch) == 1:
            return no_scores(signal, 1, {0: Fault(Status.FAILED, _describe(error))})
        middle = len(batch) // 2
        return _joined(score_all(signal, batch[:middle]), score_all(signal, batch[middle:]), middle)
    lengths = {len(scores.values), *map(len, scores.extras.values())}
    stray = scores.faults.keys() - set(range(len(batch)))
    width = vector_length(signal)
    shape, expected = getattr(scores.vectors, "shape", None), (len(batch), width) if width else None
    if lengths != {len(batch)} or set(scores.extras) != set(signal.extras) or stray or shape != expected:
        raise S2RError(
            f"signal {signal.name} broke its contract: {len(batch)} subjects in, {sorted(lengths)} values out, "
            f"columns {sorted(scores.extras)} for {sorted(signal.extras)}, faults of rows {sorted(stray)}, "
            f"vectors {shape} for {expected}"
        )
    return scores


def score_table(signal: Signal, subjects: Sequence[Subject], scores: Scores) -> pa.Table:
    """The rows for the store: what is ranked is rounded to the grid, null where there was a fault. Order as given.

    What is ranked and not finite is a fault, whatever the signal thought of it, and so is such a number in a vector.
    """
    faults = dict(scores.faults)
    ranked = {"value": scores.values} | {name: scores.extras[name] for name in signal.extras if name in signal.ranked}
    for name, values in ranked.items():
        for position in np.flatnonzero(~np.isfinite(values)):
            faults.setdefault(int(position), Fault(Status.FAILED, f"{name} {values[position]} is not finite"))
    if scores.vectors is not None:
        for position in np.flatnonzero(~np.isfinite(scores.vectors).all(axis=1)):
            faults.setdefault(int(position), Fault(Status.FAILED, "its vector is not finite"))
    missing = np.zeros(len(subjects), bool)
    missing[list(faults)] = True
    columns: dict[str, Any] = {
        "key": pa.array([subject.key for subject in subjects], pa.binary(16)),
        "value": pa.array(_on_grid(scores.values), mask=missing),
    }
    for name in signal.extras:
        values = scores.extras[name]
        columns[name] = pa.array(_on_grid(values) if name in ranked else values, mask=missing)
    if scores.vectors is not None:
        rounded = (np.round(scores.vectors * GRID) / GRID).astype("<f4")
        rows = [None if gone else row.tobytes() for gone, row in zip(missing, rounded, strict=True)]
        columns["vector"] = pa.array(rows, pa.binary(4 * rounded.shape[1]))
    columns["status"] = [str(faults[i].status) if i in faults else str(Status.OK) for i in range(len(subjects))]
    columns["detail"] = [faults[i].detail if i in faults else None for i in range(len(subjects))]
    return pa.table(columns)


def _on_grid(values: FloatArray) -> FloatArray:
    rounded: FloatArray = np.round(values * GRID) / GRID
    return rounded


def subjects_of(table: pa.Table) -> list[Subject]:
    """The rows of a table that a loader gave (see subjects.py), in its order."""
    keys, questions = table["key"].to_pylist(), table["question"].to_pylist()
    nothing = [None] * table.num_rows
    further = (table[name].to_pylist() if name in table.column_names else nothing for name in ("response", "answer"))
    return [Subject(*texts) for texts in zip(keys, questions, *further, strict=True)]


def _joined(left: Scores, right: Scores, middle: int) -> Scores:
    return Scores(
        np.concatenate([left.values, right.values]),
        {name: np.concatenate([left.extras[name], right.extras[name]]) for name in left.extras},
        {**left.faults, **{middle + position: fault for position, fault in right.faults.items()}},
        left.prompts + right.prompts,
        left.prompt_tokens + right.prompt_tokens,
        None if left.vectors is None or right.vectors is None else np.concatenate([left.vectors, right.vectors]),
    )


def no_scores(signal: Signal, count: int, faults: Mapping[int, Fault] = _NO_FAULTS) -> Scores:
    """What stands for the scores of so many subjects that have none."""
    width = vector_length(signal)
    vectors = np.zeros((count, width), np.float32) if width else None
    return Scores(np.zeros(count), {name: np.zeros(count) for name in signal.extras}, dict(faults), vectors=vectors)


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:DETAIL_CHARACTERS]
