"""What a run tells Prometheus while it goes on, through Ray's own metrics endpoint on every node.

Ray puts `ray_` before each name and `_total` after each counter, and adds labels for node, job and worker. Outside Ray
nothing is recorded. Numbers that must be right are in `run.json`; these are for watching, and die with their process.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

METRICS: Mapping[str, str] = {
    "s2r_rows_indexed": "Rows of the pool index that were made, candidates or not",
    "s2r_rows_excluded": "Rows that indexing left out, by reason",
    "s2r_questions_judged": "Distinct questions, or samples, that a worker has judged, by how it went",
    "s2r_questions_reused": "Distinct questions, or samples, whose score was there before",
    "s2r_prompts": "Prompts given to the engine",
    "s2r_prefill_tokens": "Tokens of those prompts, the ones that prefix caching spared among them",
    "s2r_judge_seconds": "Seconds of a worker by what it did: loading, busy, idle; one series a worker",
    "s2r_store_retries": "Requests to an object store that were sent again",
    "s2r_last_progress_timestamp_seconds": "Unix time at which a stage last finished something",
    "s2r_stage_left": "What a stage still has to do: files or parts of files to index, questions to judge",
}
"""Name as given to Ray -> help."""

GAUGES = frozenset({"s2r_last_progress_timestamp_seconds", "s2r_stage_left"})
"""Those that go up and down; the others are counters."""

_LABELS: Mapping[str, tuple[str, ...]] = {
    "s2r_rows_excluded": ("reason",),
    "s2r_questions_judged": ("signal", "status"),
    "s2r_questions_reused": ("signal",),
    "s2r_prompts": ("signal",),
    "s2r_prefill_tokens": ("signal",),
    "s2r_judge_seconds": ("signal", "state"),
    "s2r_last_progress_timestamp_seconds": ("stage",),
    "s2r_stage_left": ("stage",),
}


def count(name: str, amount: float, **labels: str) -> None:
    """Add to a counter; nothing happens for an amount of 0."""
    if amount > 0 and _in_ray():
        _metric(name).inc(amount, tags=labels)


def progressed(stage: str, left: int) -> None:
    """Something was finished just now, and so much is left."""
    if _in_ray():
        _metric("s2r_last_progress_timestamp_seconds").set(time.time(), tags={"stage": stage})
        _metric("s2r_stage_left").set(left, tags={"stage": stage})


def _in_ray() -> bool:
    import ray

    return bool(ray.is_initialized())


@lru_cache
def _metric(name: str) -> Any:
    from ray.util.metrics import Counter, Gauge

    return (Gauge if name in GAUGES else Counter)(name, METRICS[name], _LABELS.get(name, ()))
