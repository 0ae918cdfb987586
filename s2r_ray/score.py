"""Stage 2: judge what has no score yet. Each distinct question, or sample, once, however often it occurs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from s2r_ray.cluster import stream_actors
from s2r_ray.errors import WorkersLostError
from s2r_ray.index import Snapshot
from s2r_ray.metrics import count, progressed
from s2r_ray.pending import Distinct, Pending, work_items
from s2r_ray.pool_rows import RunPool
from s2r_ray.progress import Progress
from s2r_ray.signals.base import Fault, Resources, Signal, Status, Subject
from s2r_ray.storage import Place
from s2r_ray.store import ScoreStore
from s2r_ray.subjects import loader
from s2r_ray.worker import DETAIL_CHARACTERS, SignalWorker, no_scores, score_table


@dataclass
class Judged:
    """What stage 2 did for one signal.

    Attributes:
        judged, reused: distinct keys judged now, and taken from the store.
        seconds, worker_seconds: of the stage, and summed over its workers.
        loading: seconds that the slowest worker took to load.
        replaced: workers that stand for one that died.
        restarts: how often all workers had to be started again.
        repeated: requests to an object store sent again by workers.
        prompt_tokens: read by the model.
    """

    judged: int
    reused: int
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
        self.seconds += later.seconds
        self.worker_seconds += later.worker_seconds
        self.loading = max(self.loading, later.loading)
        self.prompt_tokens += later.prompt_tokens

    def add(self, result: dict[str, Any]) -> bool:
        """Take in a worker's answer; True if it is the first of one that stands for a worker that died."""
        self.worker_seconds += result["seconds"]
        self.loading = max(self.loading, result["loading"])
        self.repeated += result["repeated"]
        self.prompt_tokens += result["prompt_tokens"]
        news = bool(result["replaced"]) and result["worker"] not in self.replaced
        if news:
            self.replaced.add(result["worker"])
        return news


def score_missing(
    out: Place,
    snapshot: Snapshot,
    signal: Signal,
    store: ScoreStore,
    asked: Distinct,
    pending: Pending,
    pools: Sequence[RunPool],
    resources: Resources,
    load_custom: Mapping[str, float],
    progress: Progress,
) -> Judged:
    """Judge the pending ones of what is asked on the cluster; each batch is in the store before the next is taken.

    A worker that dies is replaced by Ray. When that does not help, all are started again for what is still missing; a
    question or sample that is the last one left and takes its worker with it each time has failed. What failed in an
    earlier run is tried again, and once.

    Args:
        pools: the run's (pool_rows.run_pools), which samples are read from.
        load_custom: custom Ray resources of a task that reads questions or samples.

    Raises:
        WorkersLostError: they were lost more than `resources.restarts` times in a row without scoring anything.
    """
    store.describe(signal.fingerprint())
    judged = Judged(len(pending), pending.distinct - len(pending))
    died = f"a {signal.name} worker died, or hung for more than {resources.hang_seconds:g} s, and was replaced"
    load = loader(out, pools, signal.subject)
    arguments, what = (signal, store, resources.hang_seconds), f"{signal.subject}s"
    left, fruitless, earlier = pending, 0, store.parts()
    count("s2r_questions_reused", judged.reused, signal=signal.name)
    progressed(signal.name, len(pending))
    with progress.stage(signal.name, what, len(pending)) as ticker:
        while len(left):
            # After a restart one of them may be to blame: go round it from the other side, and narrow down where it is.
            batch = min(resources.batch, math.ceil(len(left) / 8)) if judged.restarts else resources.batch
            items = work_items(snapshot, left, batch, resources.workers[1], with_files=signal.subject == "sample")
            items = items[:: -1 if judged.restarts % 2 else 1]
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
                settled = store.settled(asked.keys).mask | store.tried(asked.keys, earlier)
                missing = asked.pending(settled)
                scored = len(left) - len(missing)
                fruitless = 0 if scored > 0 else fruitless + 1
                if fruitless > resources.restarts and len(missing) == 1:
                    (key,) = asked.keys.keys(np.flatnonzero(~settled)).to_pylist()
                    _give_up(signal, store, key, error)
                    break
                if fruitless > resources.restarts:
                    raise WorkersLostError(f"{error}. {len(missing):,} {what} have no score yet") from error
                some = f"{len(missing):,} {what}" if len(missing) > 1 else f"one {signal.subject}"
                progress.say(f"warning: {error}; starting again for what is left: {some}")
                ticker.advance(max(0, before + scored - ticker.state.done))
                judged.restarts += 1
                left = missing
        judged.seconds = ticker.state.seconds
    return judged


def _give_up(signal: Signal, store: ScoreStore, key: bytes, error: WorkersLostError) -> None:
    """The one that is left takes every worker with it: it has failed, until the next run tries it again."""
    fault = Fault(Status.FAILED, f"its worker died each time: {error}"[:DETAIL_CHARACTERS])
    store.append(score_table(signal, [Subject(key, "")], no_scores(signal, 1, {0: fault})))
