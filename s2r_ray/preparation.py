"""What a signal does before its workers start: say what it will take, and make of the pool what it needs to score.

See `signals.base.Signal`: both are for signals that have the methods, and nothing happens for the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from s2r_ray.cluster import stream_actors
from s2r_ray.index import Snapshot
from s2r_ray.pairs import find_overlap
from s2r_ray.pending import Distinct, Pending, pending_tokens, work_items
from s2r_ray.pool_rows import RunPool
from s2r_ray.progress import Progress
from s2r_ray.signals.base import Resources, Signal, Workload
from s2r_ray.storage import Place
from s2r_ray.subjects import loader
from s2r_ray.worker import subjects_of


def announced(out: Place, snapshot: Snapshot, signal: Signal, pending: Pending) -> Sequence[str]:
    """What a signal says of its work before it begins; [] if it says nothing.

    Raises:
        UsageError: the signal refuses it.
    """
    if not hasattr(signal, "announce"):
        return []
    overlap = partial(find_overlap, out, snapshot)
    told: Sequence[str] = signal.announce(Workload(len(pending), pending_tokens(out, snapshot, pending), overlap))
    return told


def prepare_signal(
    out: Place,
    snapshot: Snapshot,
    signal: Signal,
    asked: Distinct,
    pools: Sequence[RunPool],
    resources: Resources,
    load_custom: Mapping[str, float],
    progress: Progress,
) -> None:
    """Let a signal make what it needs, once, on a worker of its own resources.

    The subjects for it are drawn by lot from all that are asked; the lots depend on their content alone.

    Args:
        load_custom: custom Ray resources of a task that reads questions or samples.
    """
    wanted = signal.to_prepare() if hasattr(signal, "to_prepare") else 0
    if not wanted:
        return
    some = asked.some(wanted)
    drawn = some.pending(np.zeros(len(some.keys), np.bool_))
    items = work_items(snapshot, drawn, len(drawn), 1, with_files=signal.subject == "sample")
    progress.say(f"{signal.name}: preparing with {len(drawn):,} {signal.subject}s of the pool")
    one = replace(resources, workers=(1, 1))
    for result in stream_actors(items, loader(out, pools, signal.subject), Preparer, (signal,), one, load_custom):
        for said in result["told"]:
            progress.say(f"{signal.name}: {said}")


class Preparer:
    """Runs a signal's preparation as a Ray actor: one table of subjects in, one row out, `told`: what it says."""

    def __init__(self, signal: Any) -> None:
        self._signal = signal

    def __call__(self, table: pa.Table) -> pa.Table:
        """Subjects go by their keys, whatever order the pool has."""
        told = self._signal.prepare(sorted(subjects_of(table), key=lambda subject: subject.key))
        return pa.table({"told": pa.array([list(told)], pa.list_(pa.string()))})
