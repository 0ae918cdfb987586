"""Run a judge over labelled questions, in this process, and say how well it does."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from s2r_ray.config import Config
from s2r_ray.errors import S2RError
from s2r_ray.judge.evaluate import Examples, evaluate
from s2r_ray.quiet import captured
from s2r_ray.signals.base import Scores, Subject
from s2r_ray.signals.difficulty import Difficulty
from s2r_ray.worker import score_all


def examine(config: Config, examples: Examples, threshold: float | None) -> dict[str, Any]:
    """The figures of `evaluate`, with throughput and how many questions had no answer.

    Questions without an answer are left out of the figures and counted. `questions_per_second` is from the first
    batch to the last, `load_seconds` what comes before.

    Raises:
        S2RError: no question was answered, or the engine failed.
    """
    signal = Difficulty.of(config.judge, config.workers)
    with captured():
        started = time.monotonic()
        signal.open()
        loaded = time.monotonic()
        scores = _score(signal, examples, config.workers.judge_batch)
        seconds = time.monotonic() - loaded
    answered = np.array([row for row in range(len(examples)) if row not in scores.faults], np.int64)
    if not len(answered):
        raise S2RError(f"the judge answered none of {len(examples):,} questions; first: {scores.faults[0].detail}")
    lengths = np.array([len(question) for question in examples.questions], np.float64)
    figures = evaluate(scores.values[answered], examples.labels[answered], threshold, lengths[answered])
    return {
        **figures,
        "unanswered": len(scores.faults),
        "dropped": examples.dropped,
        "mean_label_mass": float(scores.extras["label_mass"][answered].mean()),
        "load_seconds": round(loaded - started, 3),
        "questions_per_second": round(len(examples) / seconds, 1),
    }


def _score(signal: Difficulty, examples: Examples, batch: int) -> Scores:
    parts = [
        score_all(signal, [Subject(b"", question) for question in examples.questions[start : start + batch]])
        for start in range(0, len(examples), batch)
    ]
    faults = {number * batch + row: fault for number, part in enumerate(parts) for row, fault in part.faults.items()}
    mass = np.concatenate([part.extras["label_mass"] for part in parts])
    return Scores(np.concatenate([part.values for part in parts]), {"label_mass": mass}, faults)
