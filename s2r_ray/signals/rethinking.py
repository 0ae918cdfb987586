"""How often a trace thinks again, in words per thousand tokens: the cheapest signal, on CPUs alone.

What is counted, and how, is in `s2r_ray/rethinking.py`. That the traces of Select2Reason's selection have more such
words than others is the paper's finding (arXiv 2505.17266), as summarised; to rank by them is this project's offer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from s2r_ray.config import Config
from s2r_ray.models import check_readable, fetch, find_tokenizer
from s2r_ray.ranking import Better
from s2r_ray.rethinking import count_rethinking
from s2r_ray.signals.base import Resources, Scores, Subject, SubjectKind
from s2r_ray.tokens import open_counter
from s2r_ray.trace import reasoning

_CODE_VERSION = 1
"""Raise it when a change here, in rethinking.py or in trace.py can change a value."""
_BATCH = 256


class Rethinking:
    """See `signals.base.Signal`. The value is rethinking words per 1,000 tokens of the trace, repeats counted in."""

    name = "rethinking"
    subject: SubjectKind = "sample"
    ranked: Mapping[str, Better] = {"rethinking": "high"}
    extras: tuple[str, ...] = ()
    fatal: tuple[type[BaseException], ...] = (MemoryError,)

    def __init__(self, config: Config) -> None:
        """Find the tokenizer.

        Raises:
            UsageError: there is none.
        """
        self._words = config.rethinking.words
        self._workers = config.workers
        self._tokenizer = find_tokenizer(config.tokenizer, storage=config.storage.options())

    @classmethod
    def from_config(cls, config: Config) -> Rethinking:
        """What the table calls."""
        return cls(config)

    def fingerprint(self) -> dict[str, Any]:
        """See `Signal`."""
        words = list(self._words)  # in their order: where one begins another, the first is counted
        return {"signal": self.name, "code": _CODE_VERSION, "words": words, "tokenizer": self._tokenizer.identity}

    def resources(self, gpus_in_cluster: float) -> Resources:
        """See `Signal`. One core each, no GPU."""
        del gpus_in_cluster
        workers = self._workers
        return Resources(
            workers=(1, workers.cpu_workers_max),
            batch=_BATCH,
            restarts=workers.restarts,
            hang_seconds=workers.hang_seconds,
        )

    def check_node(self) -> None:
        """See `Signal`."""
        check_readable(self._tokenizer)

    def open(self) -> None:
        """See `Signal`."""
        self._counter = open_counter(str(fetch(self._tokenizer, weights=False)))

    def score(self, batch: Sequence[Subject]) -> Scores:
        """See `Signal`."""
        traces = [reasoning(subject.response or "") for subject in batch]
        tokens = self._counter.count(traces)
        return Scores(1000 * count_rethinking(traces, self._words) / np.maximum(1, tokens))
