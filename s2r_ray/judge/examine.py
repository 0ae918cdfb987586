"""Run a judge over labelled questions, in this process, and say how well it does."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from s2r_ray.config import Config
from s2r_ray.errors import S2RError
from s2r_ray.judge.edits import EDITS
from s2r_ray.judge.evaluate import Examples, FloatArray, calibration, evaluate, outcomes, spearman
from s2r_ray.printable import one_line
from s2r_ray.quiet import captured
from s2r_ray.signals.base import Scores, Subject
from s2r_ray.signals.difficulty import Difficulty
from s2r_ray.worker import score_all

_EDITED = 1000


def examine(config: Config, examples: Examples, threshold: float | None) -> dict[str, Any]:
    """The figures of `evaluate`, with calibration, what should not move a score, and throughput.

    `calibration` is None where labels state no share (see `outcomes`). `spearman_score_length` is that of the score
    with the question's characters; beside it, `spearman_question_length` is that of the labels. `sources`: the mean
    score and the mean label of each group of the examples, if they have any. `edits`: of up to `_EDITED` questions
    that an edit of edits.py changes, the mean and the largest change of the score, and the mean without its sign.

    Questions without an answer are left out of the figures and counted. `questions_per_second` is from the first
    batch to the last, `load_seconds` what comes before.

    Raises:
        S2RError: no question was answered, or the engine failed.
    """
    signal = Difficulty.of(config.judge, config.workers, config.storage.options())
    with captured():
        started = time.monotonic()
        signal.open()
        loaded = time.monotonic()
        scores = _score(signal, examples, config.workers.judge_batch)
        seconds = time.monotonic() - loaded
    answered = np.array([row for row in range(len(examples)) if row not in scores.faults], np.int64)
    if not len(answered):
        raise S2RError(f"the judge answered none of {len(examples):,} questions; first: {scores.faults[0].detail}")
    labels, values = examples.labels[answered], scores.values[answered]
    stated = outcomes(labels, threshold)
    lengths = np.array([len(question) for question in examples.questions], np.float64)
    figures = evaluate(values, labels, threshold, lengths[answered])
    with captured():
        edits = _edits(signal, examples.take(answered), values, config.workers.judge_batch)
    return {
        **figures,
        "calibration": None if stated is None else calibration(np.clip(values, 0.0, 1.0), stated),
        "spearman_score_length": spearman(values, lengths[answered]),
        "sources": _sources(examples.take(answered), values),
        "edits": edits,
        "unanswered": len(scores.faults),
        "dropped": examples.dropped,
        "mean_label_mass": float(scores.extras["label_mass"][answered].mean()),
        "load_seconds": round(loaded - started, 3),
        "questions_per_second": round(len(examples) / seconds, 1),
    }


def _sources(examples: Examples, values: FloatArray) -> dict[str, dict[str, float]]:
    """By group: `n`, mean score, mean label."""
    groups = np.array(examples.groups, dtype=object)
    found = {}
    for group in sorted(set(examples.groups)):
        here = groups == group
        means = {"mean_score": float(values[here].mean()), "mean_label": float(examples.labels[here].mean())}
        found[one_line(group) or "none"] = {"n": int(here.sum()), **means}
    return found


def _edits(signal: Difficulty, examples: Examples, values: FloatArray, batch: int) -> dict[str, dict[str, float | int]]:
    """What each edit does to the score of questions that it changes."""
    found: dict[str, dict[str, float | int]] = {}
    for name, edit in EDITS.items():
        edited = [edit(question) for question in examples.questions]
        changed = [row for row, text in enumerate(edited) if text != examples.questions[row]]
        chosen = np.array(changed, np.int64)[:: max(1, -(-len(changed) // _EDITED))]
        if not len(chosen):
            found[name] = {"n": 0}
            continue
        scores = _score(signal, Examples(tuple(edited[row] for row in chosen), values[chosen]), batch)
        fit = [place for place in range(len(chosen)) if place not in scores.faults]
        change = scores.values[fit] - values[chosen[fit]]
        found[name] = {"n": len(fit)}
        if len(fit):
            sizes = {"mean": change.mean(), "mean_size": np.abs(change).mean(), "largest": np.abs(change).max()}
            found[name] |= {key: float(value) for key, value in sizes.items()}
    return found


def _score(signal: Difficulty, examples: Examples, batch: int) -> Scores:
    parts = [
        score_all(signal, [Subject(b"", question) for question in examples.questions[start : start + batch]])
        for start in range(0, len(examples), batch)
    ]
    faults = {number * batch + row: fault for number, part in enumerate(parts) for row, fault in part.faults.items()}
    mass = np.concatenate([part.extras["label_mass"] for part in parts])
    return Scores(np.concatenate([part.values for part in parts]), {"label_mass": mass}, faults)
