"""How often a base model solves a problem: the share of drawn solutions that end in the reference answer.

1 - pass rate is the difficulty that Select2Reason's later version trains its quantifier on (arXiv 2505.17266 v3, as
summarised). How many solutions it drew, and how, is not known; the defaults here are this project's.

It judges problems, which are questions with their answers, so it is no signal that weights may name:
`s2r judge rollouts` runs it, and a judge learns from it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from s2r_ray.config import Config, RolloutsSection, WorkersSection
from s2r_ray.engines import EngineError, Sampled, Sampling, open_engine
from s2r_ray.errors import UsageError
from s2r_ray.judge.grade import Graders
from s2r_ray.judge.prompt import JudgePrompt, QuestionEncoder, beginning_of_text, load_tokenizer, without_control_tokens
from s2r_ray.models import ModelRef, chosen_dtype, fetch, find_model, is_classifier
from s2r_ray.ranking import Better
from s2r_ray.signals.base import Fault, Resources, Scores, Status, Subject, SubjectKind
from s2r_ray.signals.model_workers import check_model_node, engine_settings, model_resources

_CODE_VERSION = 2
"""Raise it when a change here or in grade.py can change a pass rate."""


@dataclass(frozen=True)
class PassRateSettings:
    """A base model that was found, and how it is asked. `samples`: the draws [first, stop) of each question."""

    rollouts: RolloutsSection
    workers: WorkersSection
    model: ModelRef
    dtype: str
    stop: tuple[int, ...]
    samples: tuple[int, int]


class PassRate:
    """See `signals.base.Signal`. The value is passes / draws.

    `passes` of the draws ended in the answer; `cut_off` were not finished within `max_tokens`, `ungraded` could not be
    held against the answer: neither is a pass.
    """

    name = "pass_rate"
    subject: SubjectKind = "problem"
    ranked: Mapping[str, Better] = {"pass_rate": "low"}
    extras: tuple[str, ...] = ("passes", "cut_off", "ungraded")
    fatal: tuple[type[BaseException], ...] = (EngineError, MemoryError)
    drawn = True

    def __init__(self, settings: PassRateSettings) -> None:
        self.settings = settings

    @classmethod
    def from_config(cls, config: Config) -> PassRate:
        """All draws, 0 to n.

        Raises:
            UsageError: there is no such model, or it writes no text.
        """
        rollouts = config.rollouts
        if not rollouts.model:
            raise UsageError("no base model; give --base-model, or set rollouts.model in the configuration")
        trust, storage = rollouts.trust_remote_code, config.storage.options()
        model = find_model(rollouts.model, rollouts.revision, trust_remote_code=trust, storage=storage, role="rollouts")
        about = model.config()
        positions, needed = about.get("max_position_embeddings"), rollouts.max_prompt_tokens + rollouts.max_tokens
        if positions and needed > positions:
            raise UsageError(
                f"rollouts {rollouts.model}: it has {positions:,} positions, and rollouts.max_prompt_tokens and "
                f"rollouts.max_tokens together are {needed:,}; lower them"
            )
        if is_classifier(about):
            raise UsageError(f"rollouts {rollouts.model}: it is {about.get('architectures')}, which writes no text")
        dtype = chosen_dtype(rollouts.dtype, about)
        stop = _stop_tokens(model, trust)
        _Prompts(model.folder, rollouts)
        return cls(PassRateSettings(rollouts, config.workers, model, dtype, stop, (0, rollouts.n)))

    def fingerprint(self) -> dict[str, Any]:
        """See `Signal`."""
        rollouts, first_stop = self.settings.rollouts, list(self.settings.samples)
        names = ("temperature", "top_p", "max_tokens", "max_prompt_tokens", "seed", "engine")
        return {
            "signal": self.name,
            "code": _CODE_VERSION,
            "model": self.settings.model.identity,
            "dtype": self.settings.dtype,
            "prompt": [rollouts.prompt.system, rollouts.prompt.user],
            "math_verify": importlib.metadata.version("math-verify"),
            "samples": first_stop,
            **{name: getattr(rollouts, name) for name in names},
        }

    def resources(self, gpus_in_cluster: float) -> Resources:
        """See `Signal`."""
        return model_resources(self.settings.workers, gpus_in_cluster, self.settings.rollouts.batch)

    def check_node(self) -> None:
        """See `Signal`."""
        check_model_node(self.settings.model, self.settings.workers)

    def open(self) -> None:
        """See `Signal`."""
        rollouts = self.settings.rollouts
        folder = fetch(self.settings.model, weights=True)
        self._prompts = _Prompts(folder, rollouts)
        self._graders = Graders(rollouts.graders)
        if self._graders.right([("1", "\\boxed{1}")]) != [True]:  # else nothing could be graded, and that would be kept
            raise EngineError("math-verify does not work here; see whether `python -c 'import math_verify'` does")
        self._engine = open_engine(
            rollouts.engine,
            engine_settings(
                folder,
                rollouts,
                self.settings.workers,
                kind="sampler",
                dtype=self.settings.dtype,
                context=rollouts.max_prompt_tokens + rollouts.max_tokens,
            ),
        )

    def score(self, batch: Sequence[Subject]) -> Scores:
        """See `Signal`. Nothing is drawn for a problem without an answer, or whose prompt is too long."""
        first, stop = self.settings.samples
        prompts = self._prompts.encode([subject.question for subject in batch])
        limit = self.settings.rollouts.max_prompt_tokens
        faults = {
            place: Fault(Status.UNGRADABLE, why)
            for place, why in enumerate(self._graders.why_not([subject.answer for subject in batch]))
            if why
        }
        for place, prompt in enumerate(prompts):
            if len(prompt) > limit:
                faults.setdefault(place, Fault(Status.TOO_LONG, f"prompt of {len(prompt)} tokens, at most {limit}"))
        fit = [place for place in range(len(batch)) if place not in faults]
        drawn = self._draw([prompts[place] for place in fit], [batch[place] for place in fit])
        values = {name: np.zeros(len(batch)) for name in self.extras}
        for place, answers in zip(fit, drawn, strict=True):
            counts = self._grade(batch[place].answer or "", answers)
            for name, count in zip(self.extras, counts, strict=True):
                values[name][place] = count
            if counts[-1] == stop - first:
                faults[place] = Fault(Status.UNGRADABLE, f"none of {stop - first} solutions could be graded")
        tokens = sum(len(prompts[place]) for place in fit)
        return Scores(values["passes"] / (stop - first), values, faults, len(fit) * (stop - first), tokens)

    def _draw(self, prompts: Sequence[Sequence[int]], subjects: Sequence[Subject]) -> list[list[Sampled]]:
        rollouts, (first, stop) = self.settings.rollouts, self.settings.samples
        sampling = Sampling(stop - first, rollouts.temperature, rollouts.top_p, rollouts.max_tokens, self.settings.stop)
        seeds = [_seed(rollouts.seed, subject.key) + first for subject in subjects]
        return self._engine.sample(prompts, sampling, seeds) if prompts else []

    def _grade(self, answer: str, drawn: Sequence[Sampled]) -> tuple[int, int, int]:
        """(passes, cut off, ungraded)."""
        finished = [sampled for sampled in drawn if sampled.finished]
        texts = self._prompts.decode([sampled.ids for sampled in finished])
        grades = self._graders.right([(answer, text) for text in texts])
        return grades.count(True), len(drawn) - len(finished), grades.count(None)


class _Prompts:
    """What the base model reads: its chat template with the prompt, or plain text where it has no template."""

    def __init__(self, folder: Any, rollouts: RolloutsSection) -> None:
        trust = rollouts.trust_remote_code
        prompt = JudgePrompt(rollouts.prompt.system, rollouts.prompt.user)
        self._tokenizer = load_tokenizer(folder, trust_remote_code=trust)
        self._plain = without_control_tokens(self._tokenizer)
        self._beginning = beginning_of_text(self._tokenizer)
        self._prompt = prompt
        self._chat = (
            QuestionEncoder(folder, prompt, trust_remote_code=trust, role="rollouts")
            if self._tokenizer.chat_template
            else None
        )

    def encode(self, questions: Sequence[str]) -> list[list[int]]:
        """Token ids of one prompt per question."""
        if self._chat is not None:
            return self._chat.encode(questions)
        texts = ["\n\n".join(turn["content"] for turn in self._prompt.messages(question)) for question in questions]
        found = self._plain.encode_batch_fast([f"{text}\n\n" for text in texts], add_special_tokens=False)
        return [[*self._beginning, *encoding.ids] for encoding in found]

    def decode(self, answers: Sequence[Sequence[int]]) -> list[str]:
        """The texts, without control tokens."""
        return [self._tokenizer.decode(list(ids), skip_special_tokens=True) for ids in answers]


def _stop_tokens(model: ModelRef, trust_remote_code: bool) -> tuple[int, ...]:
    """The tokens that end an answer, as tokenizer, configuration and generation settings say.

    Raises:
        UsageError: none of them says one.
    """
    from transformers import GenerationConfig

    tokenizer = load_tokenizer(model.folder, trust_remote_code=trust_remote_code)
    stated = [tokenizer.eos_token_id, model.config().get("eos_token_id")]
    if (model.folder / "generation_config.json").exists():
        stated.append(GenerationConfig.from_pretrained(str(model.folder)).eos_token_id)
    ids = [number for item in stated for number in (item if isinstance(item, list) else [item])]
    found = tuple(dict.fromkeys(int(number) for number in ids if number is not None))
    if not found:
        raise UsageError(f"rollouts {model.name}: neither tokenizer nor configuration has an eos_token to end with")
    return found


def _seed(seed: int, key: bytes) -> int:
    """Of a problem: from the configured one and its key, below 2^62."""
    return int.from_bytes(hashlib.blake2b(key, digest_size=8, salt=seed.to_bytes(8, "big")).digest(), "big") >> 2
