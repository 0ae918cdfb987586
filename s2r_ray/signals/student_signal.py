"""Signals that ask a student about samples: what surprisal, IFD and RDS+ have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np

from s2r_ray.config import Config, StudentSection, WorkersSection
from s2r_ray.engines import EngineError, TokenScores, open_engine
from s2r_ray.models import ModelRef, chosen_dtype, fetch
from s2r_ray.signals.base import Fault, Resources, Status, SubjectKind
from s2r_ray.signals.model_workers import check_model_node, engine_settings, model_resources
from s2r_ray.student import EncodedSample, StudentEncoder, find_student


@dataclass(frozen=True)
class StudentSettings:
    """A student that was found. Small; travels to workers.

    `context`: the longest sample plus one token, which engines want to have room for.
    """

    student: StudentSection
    workers: WorkersSection
    model: ModelRef
    dtype: str
    context: int

    @classmethod
    def from_config(cls, config: Config) -> StudentSettings:
        """Find the student and check it.

        Raises:
            UsageError: there is none, it is no language model, or its tokenizer cannot be used.
        """
        student = config.student
        model = find_student(student, config.storage.options())
        StudentEncoder(model.folder, trust_remote_code=student.trust_remote_code)
        stated = model.config()
        text = stated.get("text_config") or stated
        longest = int(text.get("max_position_embeddings") or student.max_tokens + 1)
        dtype = chosen_dtype(student.dtype, stated)
        return cls(student, config.workers, model, dtype, min(longest, student.max_tokens + 1))


class StudentSignal:
    """What signals share that ask a student. See `signals.base.Signal`; `kind` is what the engine is opened for."""

    name: str
    kind: Literal["student", "states"] = "student"
    code_version: int
    subject: SubjectKind = "sample"
    fatal: tuple[type[BaseException], ...] = (EngineError, MemoryError)

    def __init__(self, settings: StudentSettings) -> None:
        self.settings = settings

    @classmethod
    def from_config(cls, config: Config) -> Self:
        """What the table calls. Raises UsageError as `StudentSettings.from_config`."""
        return cls(StudentSettings.from_config(config))

    def fingerprint(self) -> dict[str, Any]:
        """See `Signal`."""
        return {
            "signal": self.name,
            "code": self.code_version,
            "model": self.settings.model.identity,
            "engine": self.settings.student.engine,
            "dtype": self.settings.dtype,
            "context": self.settings.context,
        }

    def resources(self, gpus_in_cluster: float) -> Resources:
        """See `Signal`. As a judge's."""
        return model_resources(self.settings.workers, gpus_in_cluster, self.settings.student.batch)

    def check_node(self) -> None:
        """See `Signal`."""
        check_model_node(self.settings.model, self.settings.workers)

    def open(self) -> None:
        """See `Signal`."""
        settings = self.settings
        folder = fetch(settings.model, weights=True)
        self.encoder = StudentEncoder(folder, trust_remote_code=settings.student.trust_remote_code)
        self.engine = open_engine(
            settings.student.engine,
            engine_settings(
                folder,
                settings.student,
                settings.workers,
                kind=self.kind,
                dtype=settings.dtype,
                context=settings.context,
                batch_tokens=settings.student.batch_tokens,
            ),
        )

    def ask(self, samples: Sequence[EncodedSample]) -> Asked:
        """What the student says of each sample's response, but of no token without one before it.

        A sample that is too long is a fault, never cut; so is one with no such token, or of which the student gives a
        token no probability.
        """
        found: list[TokenScores | Fault | None] = [
            self.too_long(sample) or _nothing_to_ask(sample) for sample in samples
        ]
        fit = [position for position, fault in enumerate(found) if fault is None]
        prompts = [samples[position].ids for position in fit]
        starts = [max(1, samples[position].start) for position in fit]
        for position, scores in zip(fit, self.engine.token_scores(prompts, starts) if fit else [], strict=True):
            odd = np.count_nonzero(~np.isfinite(scores.logprobs))
            told = f"the student gave {odd:,} of {len(scores.logprobs):,} tokens no probability"
            found[position] = Fault(Status.FAILED, told) if odd else scores
        return Asked([item for item in found if item is not None], len(fit), sum(map(len, prompts)))

    def too_long(self, sample: EncodedSample) -> Fault | None:
        """The fault of a sample that the student cannot take whole."""
        longest = self.settings.context - 1
        if len(sample.ids) <= longest:
            return None
        return Fault(Status.TOO_LONG, f"sample of {len(sample.ids):,} tokens, at most {longest:,}")


def _nothing_to_ask(sample: EncodedSample) -> Fault | None:
    if len(sample.ids) > max(1, sample.start):
        return None
    return Fault(Status.FAILED, "no token of the response has one before it")


@dataclass(frozen=True)
class Asked:
    """What a student said: of each sample its response's tokens, or why not, in the order asked.

    `prompts`, `prompt_tokens`: how many samples, and tokens of them, went through it.
    """

    found: list[TokenScores | Fault]
    prompts: int
    prompt_tokens: int
