"""How near a sample is to a set of queries, by what the student makes of both: RDS+ (arXiv 2503.01807).

The embedding of n tokens, question and response, is the mean of the last layer's states, after its norm, with the
weights i / sum(i), i = 1..n, brought to length one; likeness is the cosine. The paper lets the queries take turns,
which is a property of a pool and not of a sample: that is the baseline `round_robin:rds`, for which a sample's cosines
with all queries are stored beside its value. The value itself, for ranks and filters, is the largest of them: this
project's choice. The authors' script cuts samples at 2,048 tokens; here one that is too long has no value.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from s2r_ray.config import Config
from s2r_ray.engines import EngineError, FloatArray
from s2r_ray.errors import UsageError
from s2r_ray.pairs import Pair, read_pairs
from s2r_ray.ranking import Better
from s2r_ray.signals.base import Fault, Scores, Status, Subject, Workload
from s2r_ray.signals.student_signal import StudentSettings, StudentSignal
from s2r_ray.storage import Place
from s2r_ray.student import EncodedSample, StudentEncoder


class Rds(StudentSignal):
    """See `signals.base.Signal`. The value is the largest cosine with a query; the vector has those with all of them.

    Args:
        queries: in the order in which they take turns.
    """

    name = "rds"
    kind = "states"
    ranked: Mapping[str, Better] = {"rds": "high"}
    extras: tuple[str, ...] = ()
    code_version = 1
    """Raise it when a change here, in student.py or in the engines can change a value."""

    def __init__(self, settings: StudentSettings, queries: Sequence[Pair]) -> None:
        super().__init__(settings)
        self.queries = tuple(queries)
        self.vector = len(queries)

    @classmethod
    def from_config(cls, config: Config) -> Rds:
        """Find the student and read the queries.

        Raises:
            UsageError: there is no student, or there are no queries, too many, or some that are too long for it.
        """
        section = config.rds
        if not section.queries:
            raise UsageError("no queries; set rds.queries to a file of questions that the student is to get better at")
        place = Place.of(section.queries, config.storage.options())
        queries = read_pairs(place, section.question, section.response, section.max_queries, "rds.queries")
        signal = cls(StudentSettings.from_config(config), queries)
        student = config.student
        encoder = StudentEncoder(signal.settings.model.folder, trust_remote_code=student.trust_remote_code)
        faults = [fault for sample in _encoded(encoder, queries) if (fault := signal.too_long(sample))]
        if faults:
            raise UsageError(
                f"rds.queries: {len(faults):,} of {len(queries):,} are too long for the student, first a "
                f"{faults[0].detail}; leave them out, or raise student.max_tokens if its context is longer"
            )
        return signal

    def fingerprint(self) -> dict[str, Any]:
        """See `Signal`. Queries count in their order."""
        digest = hashlib.sha256(b"".join(query.key for query in self.queries)).hexdigest()
        return {**super().fingerprint(), "queries": digest}

    def announce(self, workload: Workload) -> list[str]:
        """See `Signal`. A query that is in the pool is the nearest there is to itself, and taken first."""
        told = workload.overlap(self.queries).told("rds.queries")
        return [f"warning: {told}"] if told else []

    def open(self) -> None:
        """See `Signal`. Embeds the queries."""
        super().open()
        means = self.engine.weighted_means([sample.ids for sample in _encoded(self.encoder, self.queries)])
        self._embedded = _of_length_one(means)
        if not np.isfinite(self._embedded).all():
            raise EngineError(f"student {self.settings.student.model}: its states for a query are not finite")

    def score(self, batch: Sequence[Subject]) -> Scores:
        """See `Signal`. A sample that is too long is a fault, never cut."""
        samples = _encoded(self.encoder, [Pair(subject.question, subject.response) for subject in batch])
        unfit = {position: self.too_long(sample) for position, sample in enumerate(samples)}
        faults = {position: fault for position, fault in unfit.items() if fault}
        faults |= {at: Fault(Status.FAILED, "it has no token") for at, sample in enumerate(samples) if not sample.ids}
        fit = [position for position in range(len(samples)) if position not in faults]
        prompts = [samples[position].ids for position in fit]
        cosines = np.zeros((len(batch), self.vector))
        if fit:
            cosines[fit] = _of_length_one(self.engine.weighted_means(prompts)) @ self._embedded.T
        odd = np.flatnonzero(~np.isfinite(cosines).all(axis=1)).tolist()
        faults |= dict.fromkeys(odd, Fault(Status.FAILED, "the student's states are not finite"))
        tokens = sum(map(len, prompts))
        return Scores(cosines.max(axis=1), {}, faults, len(fit), tokens, cosines.astype(np.float32))


def _encoded(encoder: StudentEncoder, pairs: Sequence[Pair]) -> list[EncodedSample]:
    """Each pair in token ids; a question alone with what the chat template puts before a response."""
    return encoder.encode([pair.question for pair in pairs], [pair.response or "" for pair in pairs])


def _of_length_one(means: FloatArray) -> FloatArray:
    """float64[n, d]; not finite where a row has no length."""
    with np.errstate(invalid="ignore"):
        found: FloatArray = means / np.linalg.norm(means, axis=1, keepdims=True)
    return found
