"""What runs the judge or the student: vLLM, or transformers as the small reference. Both read the same tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from s2r_ray.errors import S2RError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


class EngineError(S2RError):
    """The engine failed in a way that is not one row's fault: its worker must be replaced."""


@dataclass(frozen=True)
class EngineSettings:
    """What an engine needs to know.

    `model` is a local folder. `kind` says what it is asked: a judge for two labels or for its head's logit, a base
    model for solutions, a student for the tokens of a text or for its states. `context` is the longest prompt plus one
    token, in tokens. `deterministic`: an answer depends on its prompt alone, to the last bit, not on what else is in
    the batch (on the same device, libraries and number of threads). `batch_tokens`: of a student, how many go through
    it at once; longer texts go in pieces.
    """

    model: str
    kind: Literal["labels", "head", "sampler", "student", "states"]
    dtype: str
    context: int
    tensor_parallel: int = 1
    gpu_memory_utilization: float = 0.9
    trust_remote_code: bool = False
    deterministic: bool = False
    batch_tokens: int = 2048

    @property
    def role(self) -> str:
        """What the model is called in errors."""
        return {"student": "student", "states": "student", "sampler": "base model"}.get(self.kind, "judge")


@dataclass(frozen=True)
class TokenScores:
    """What a model says of some tokens in a row, each given all before it.

    `logprobs`: float64[n], natural; NaN where the model gave none. `ranks`: int64[n], 1 is the likeliest token of the
    vocabulary; of tokens that are equally likely each has the last one's place, as vLLM counts.
    """

    logprobs: FloatArray
    ranks: IntArray


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn: so many for each prompt, each of `max_tokens` at the most, ended by one of `stop`."""

    count: int
    temperature: float
    top_p: float
    max_tokens: int
    stop: tuple[int, ...]


@dataclass(frozen=True)
class Sampled:
    """One answer: its token ids, without the one that ended it. `finished`: it ended by itself."""

    ids: list[int]
    finished: bool


class Engine(Protocol):
    """Answers for batches of prompts (token ids). Results are in the order of the prompts.

    Every method raises EngineError when the engine is not fit to go on.
    """

    def label_logprobs(self, prompts: Sequence[Sequence[int]], labels: tuple[int, int]) -> FloatArray:
        """Natural log-probabilities of two tokens as the next one: float64[len(prompts), 2]."""
        ...

    def top_two(self, prompts: Sequence[Sequence[int]]) -> list[dict[int, float]]:
        """Natural log-probabilities of the likeliest next tokens by id, as the published script asks for them."""
        ...

    def head_logits(self, prompts: Sequence[Sequence[int]]) -> FloatArray:
        """The classification head's one logit: float64[len(prompts)]."""
        ...

    def sample(self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int]) -> list[list[Sampled]]:
        """Answers drawn from a language model: `sampling.count` for each prompt, with a seed for each prompt."""
        ...

    def token_scores(self, prompts: Sequence[Sequence[int]], starts: Sequence[int]) -> list[TokenScores]:
        """Of each prompt's tokens from its start on, which is at least 1: one result per prompt.

        The logits are float32 whatever the weights' type. Memory for them does not grow with a prompt's length.
        """
        ...

    def weighted_means(self, prompts: Sequence[Sequence[int]]) -> FloatArray:
        """The mean of a prompt's states of the last layer, after its norm, with the weights i / sum(i), i = 1..n:
        float64[len(prompts), width]. Needs `kind="states"`; no prompt is empty."""
        ...

    def forget(self) -> None:
        """Drop what is cached of earlier prompts."""
        ...


def open_engine(name: Literal["vllm", "transformers"], settings: EngineSettings) -> Engine:
    """Load the model. Seconds to minutes."""
    if name == "vllm":
        from s2r_ray.engines.vllm import VllmEngine

        return VllmEngine(settings)
    from s2r_ray.engines.transformers import TransformersEngine

    return TransformersEngine(settings)
