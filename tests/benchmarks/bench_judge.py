"""The judge at steady state, prompts to stored-form scores, against bare `vllm.LLM.generate` on the same token ids.

The questions are distinct: half of them real ones of ../shared/data/math_levels where that is there, the others made
up. The name of a row says how many are real.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from s2r_ray.config import JudgeSection, WorkersSection
from s2r_ray.engines.vllm import VllmEngine
from s2r_ray.signals.base import Subject
from s2r_ray.signals.difficulty import Difficulty
from s2r_ray.synth import make_rows
from s2r_ray.worker import score_all, score_table
from tests.benchmarks.table import Row, alternated

_REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "math_levels" / "train.parquet"


def run(questions: int = 5000, seed: int = 0, repeats: int = 3, batch: int = 512) -> list[Row]:
    """Both sides use one engine in this process, so load and warm-up are not in it.

    In the second row they are two engines of the same judge: `judge.deterministic` on, and off; as the former is slow,
    for a fifth of the questions.
    """
    from vllm import SamplingParams

    texts, real = mixed(questions, seed)
    subjects = [Subject(number.to_bytes(16, "big"), text) for number, text in enumerate(texts)]
    signal = Difficulty.of(JudgeSection.model_validate({}), WorkersSection.model_validate({}))
    signal.open()
    engine = signal._engine
    if not isinstance(engine, VllmEngine):
        raise TypeError(f"expected vLLM, found {type(engine).__name__}")
    prompts = [{"prompt_token_ids": ids} for ids in signal._encoder.encode(texts)]
    labels = signal.settings.label_ids
    parameters = SamplingParams(max_tokens=1, temperature=0.0, detokenize=False, logprob_token_ids=list(labels))

    def judged(by: Difficulty, given: Sequence[Subject] = subjects) -> np.ndarray:
        by.forget()  # questions are distinct: none is in the engine's cache of prompts
        tables = []
        for start in range(0, len(given), batch):
            part = given[start : start + batch]
            tables.append(score_table(by, part, score_all(by, part))["value"].to_numpy())
        return np.concatenate(tables)

    def bare() -> np.ndarray:
        engine.forget()
        outputs: list[Any] = engine._llm.generate(prompts, parameters, use_tqdm=False)
        one = np.array([np.exp(output.outputs[0].logprobs[0][labels[1]].logprob) for output in outputs])
        zero = np.array([np.exp(output.outputs[0].logprobs[0][labels[0]].logprob) for output in outputs])
        shares: np.ndarray = one / (one + zero)
        return shares

    what = f"{len(texts):,} questions ({real:,} of them real)"
    name = f"judge, steady state, {what} / bare LLM.generate"
    same = lambda a, b: bool(np.abs(a - b).max() < 0.01)  # noqa: E731
    rows = [alternated(name, lambda: judged(signal), bare, 3 * repeats, same)]  # five seconds each
    exact = Difficulty.of(JudgeSection(deterministic=True), WorkersSection.model_validate({}))
    exact.open()
    few = subjects[: len(subjects) // 5]
    name = f"judge, deterministic, {len(few):,} of them / not deterministic"
    return [*rows, alternated(name, lambda: judged(exact, few), lambda: judged(signal, few), repeats, same)]


def mixed(count: int, seed: int) -> tuple[list[str], int]:
    """So many distinct questions in random order, and how many of them are real."""
    dice = random.Random(seed)
    known = pq.read_table(_REAL, columns=["question"])["question"].unique().to_pylist() if _REAL.exists() else []
    real = dice.sample(known, min(count // 2, len(known)))
    made = dict.fromkeys(make_rows(seed, range(int(count * 1.2)))["problem"].to_pylist())
    texts = list(dict.fromkeys([*real, *made]))[:count]
    dice.shuffle(texts)
    return texts, len(real)
