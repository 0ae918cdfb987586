"""How hard a judge model finds each question: the first signal of Select2Reason.

The default score is p(difficult) / (p(difficult) + p(not difficult)), read exactly from the two label tokens'
probabilities; `compat: top2` does what the published script does; a classification head gives one logit instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from s2r_ray.config import Config, JudgeSection, WorkersSection
from s2r_ray.engines import EngineError, open_engine
from s2r_ray.errors import UsageError
from s2r_ray.judge.prompt import PromptEncoder
from s2r_ray.models import ModelRef, chosen_dtype, fetch, find_model, is_classifier
from s2r_ray.ranking import Better
from s2r_ray.signals.base import Fault, FloatArray, Resources, Scores, Status, Subject, SubjectKind
from s2r_ray.signals.model_workers import check_model_node, engine_settings, model_resources
from s2r_ray.storage import DEFAULT_STORAGE, StorageOptions

_CODE_VERSION = 1
"""Raise it when a change to this file can change a score: stored scores are then not reused."""


@dataclass(frozen=True)
class DifficultySettings:
    """A judge that was found, and how it is read. `states_share`: its head was trained to state 0..1 itself."""

    judge: JudgeSection
    workers: WorkersSection
    model: ModelRef
    kind: Literal["labels", "head"]
    dtype: str
    context: int
    label_ids: tuple[int, int]
    states_share: bool = False


class Difficulty:
    """See `signals.base.Signal`. Values are in 0..1; `label_mass` is p(difficult) + p(not difficult)."""

    name = "difficulty"
    subject: SubjectKind = "question"
    ranked: Mapping[str, Better] = {"difficulty": "high"}
    extras: tuple[str, ...] = ("label_mass",)
    fatal: tuple[type[BaseException], ...] = (EngineError, MemoryError)

    def __init__(self, settings: DifficultySettings) -> None:
        self.settings = settings

    @classmethod
    def from_config(cls, config: Config) -> Difficulty:
        """As `of`."""
        return cls.of(config.judge, config.workers, config.storage.options())

    @classmethod
    def of(cls, judge: JudgeSection, workers: WorkersSection, storage: StorageOptions = DEFAULT_STORAGE) -> Difficulty:
        """Find the model and check it.

        Raises:
            UsageError: no such model, labels that are not one token, `compat` or labels with a head.
        """
        model = find_model(judge.model, judge.revision, trust_remote_code=judge.trust_remote_code, storage=storage)
        config = model.config()
        kind: Literal["labels", "head"] = "head" if is_classifier(config) else "labels"
        if judge.kind != "auto" and judge.kind != kind:
            raise UsageError(f"judge.kind is {judge.kind}, but {judge.model} has {config.get('architectures')}")
        if kind == "head" and judge.compat != "none":
            raise UsageError("judge.compat: top2 needs a language model; this judge has a classification head")
        if kind == "head" and _head_width(config) != 1:
            raise UsageError(f"judge {judge.model}: its head has {_head_width(config)} outputs; expected one")
        longest = int(config.get("max_position_embeddings") or judge.max_prompt_tokens + 1)
        encoder = _open_encoder(judge, model.folder)
        return cls(
            DifficultySettings(
                judge=judge,
                workers=workers,
                model=model,
                kind=kind,
                dtype=chosen_dtype(judge.dtype, config),
                context=min(longest, judge.max_prompt_tokens + 1),
                label_ids=encoder.label_ids,
                states_share=config.get("problem_type") == "regression",
            )
        )

    def fingerprint(self) -> dict[str, Any]:
        """See `Signal`."""
        judge = self.settings.judge
        return {
            "signal": self.name,
            "code": _CODE_VERSION,
            "model": self.settings.model.identity,
            "kind": self.settings.kind,
            "engine": judge.engine,
            "dtype": self.settings.dtype,
            "context": self.settings.context,
            "prompt": [judge.prompt.system, judge.prompt.user],
            "labels": list(judge.labels),
            "label_ids": list(self.settings.label_ids),
            "compat": judge.compat,
            "min_label_mass": judge.min_label_mass,
            **({"deterministic": True} if judge.deterministic else {}),
        }

    def resources(self, gpus_in_cluster: float) -> Resources:
        """See `Signal`. Where nothing else is asked for, a judge takes GPUs if there are any."""
        workers = self.settings.workers
        return model_resources(workers, gpus_in_cluster, workers.judge_batch)

    def check_node(self) -> None:
        """See `Signal`."""
        check_model_node(self.settings.model, self.settings.workers)

    def open(self) -> None:
        """See `Signal`."""
        settings = self.settings
        folder = fetch(settings.model, weights=True)
        self._encoder = _open_encoder(settings.judge, folder)
        self._engine = open_engine(
            settings.judge.engine,
            engine_settings(
                folder,
                settings.judge,
                settings.workers,
                kind=settings.kind,
                dtype=settings.dtype,
                context=settings.context,
                deterministic=settings.judge.deterministic,
            ),
        )

    def forget(self) -> None:
        """See `Signal`."""
        self._engine.forget()

    def score(self, batch: Sequence[Subject]) -> Scores:
        """See `Signal`. A prompt that does not fit the context is a fault, never cut."""
        prompts = self._encoder.encode([subject.question for subject in batch])
        limit = self.settings.context - 1
        faults = {
            position: Fault(Status.TOO_LONG, f"prompt of {len(prompt)} tokens, at most {limit}")
            for position, prompt in enumerate(prompts)
            if len(prompt) > limit
        }
        fit = [position for position in range(len(prompts)) if position not in faults]
        values, mass = self._ask([prompts[position] for position in fit])
        tokens = sum(len(prompts[position]) for position in fit)
        scores = Scores(np.zeros(len(batch)), {"label_mass": np.zeros(len(batch))}, faults, len(fit), tokens)
        scores.values[fit] = values
        scores.extras["label_mass"][fit] = mass
        faults.update(self._unanswered(fit, values, mass))
        return scores

    def _ask(self, prompts: Sequence[Sequence[int]]) -> tuple[FloatArray, FloatArray]:
        """(score, label mass), float64[len(prompts)] each; NaN where the engine gave no number."""
        if self.settings.kind == "head":
            return _squash(self._engine.head_logits(prompts), self.settings.states_share), np.ones(len(prompts))
        if self.settings.judge.compat == "top2":
            return published_score(self._engine.top_two(prompts), self.settings.label_ids)
        return label_score(self._engine.label_logprobs(prompts, self.settings.label_ids))

    def _unanswered(self, positions: Sequence[int], values: FloatArray, mass: FloatArray) -> dict[int, Fault]:
        least = 0.0 if self.settings.judge.compat == "top2" else self.settings.judge.min_label_mass
        faults = {}
        for position, value, share in zip(positions, values, mass, strict=True):
            if not math.isfinite(value) or not math.isfinite(share):
                faults[position] = Fault(Status.FAILED, f"the judge gave {value}")
            elif share < least:
                faults[position] = Fault(Status.NO_ANSWER, f"label mass {share:.3g}, at least {least:g}")
        return faults


def _open_encoder(judge: JudgeSection, folder: Path) -> PromptEncoder:
    return PromptEncoder(folder, judge.judge_prompt(), judge.labels, trust_remote_code=judge.trust_remote_code)


def label_score(logprobs: FloatArray) -> tuple[FloatArray, FloatArray]:
    """(p1 / (p0 + p1), p0 + p1) from natural log-probabilities float64[n, 2] in the order (p0, p1)."""
    peak = logprobs.max(axis=1, keepdims=True)
    relative = np.exp(logprobs - peak)
    total = relative.sum(axis=1)
    return relative[:, 1] / total, total * np.exp(peak[:, 0])


def published_score(top: Sequence[dict[int, float]], labels: tuple[int, int]) -> tuple[FloatArray, FloatArray]:
    """The score of `selection.py` of the Select2Reason repository: p("1") over the sum of the returned
    probabilities, 0 when "1" is not among them. The mass is that of the labels among them."""
    values, mass = np.zeros(len(top)), np.zeros(len(top))
    for position, logprobs in enumerate(top):
        probabilities = {token: math.exp(value) for token, value in logprobs.items()}
        values[position] = probabilities.get(labels[1], 0.0) / sum(probabilities.values())
        mass[position] = sum(probabilities.get(label, 0.0) for label in labels)
    return values, mass


def _squash(logits: FloatArray, states_share: bool) -> FloatArray:
    """A head trained by regression states 0..1 itself (clipped); any other logit goes through a sigmoid."""
    if states_share:
        return np.clip(logits, 0.0, 1.0)
    return 1.0 / (1.0 + np.exp(-np.clip(logits, -700, 700)))


def _head_width(config: dict[str, Any]) -> int:
    return len(config["id2label"]) if "id2label" in config else int(config.get("num_labels", 2))
