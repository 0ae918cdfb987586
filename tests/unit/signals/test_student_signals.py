"""Surprisal and IFD with a student that answers from a table: the formulas, and what has no value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from s2r_ray.config import Config, load_config
from s2r_ray.engines import EngineSettings, TokenScores
from s2r_ray.signals import SIGNALS, student_signal
from s2r_ray.signals.base import Scores, Status, Subject
from s2r_ray.worker import score_table

PROBABILITIES = [0.5, 0.25, 0.001]
RANKS = [1, 3, 4000]


class TableStudent:
    """Gives the tokens of a text these probabilities and ranks, over and over; keeps what it was asked."""

    def __init__(self, probabilities: Sequence[float], ranks: Sequence[int]) -> None:
        self.probabilities, self.ranks = probabilities, ranks
        self.asked: list[tuple[list[int], int]] = []
        self.settings: EngineSettings

    def open(self, name: str, settings: EngineSettings) -> TableStudent:
        del name
        self.settings = settings
        return self

    def token_scores(self, prompts: Sequence[Sequence[int]], starts: Sequence[int]) -> list[TokenScores]:
        self.asked += [(list(prompt), start) for prompt, start in zip(prompts, starts, strict=True)]
        found = []
        for prompt, start in zip(prompts, starts, strict=True):
            length = len(prompt) - start
            with np.errstate(divide="ignore"):
                logprobs = np.log(np.resize(self.probabilities, length))
            found.append(TokenScores(logprobs, np.resize(self.ranks, length).astype(np.int64)))
        return found


def config(student: Path, **settings: Any) -> Config:
    return load_config(None, {"student": {"model": str(student), **settings}})


def scored(
    patch: pytest.MonkeyPatch, name: str, settings: Config, student: TableStudent, *texts: tuple[str, str]
) -> tuple[Any, Scores]:
    patch.setattr(student_signal, "open_engine", student.open)
    signal: Any = SIGNALS[name](settings)
    signal.open()
    return signal, signal.score([Subject(b"", *text) for text in texts])


def test_formulas(tiny_judge: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: tokens of the question counted, a rank that is not clipped, a mean of ratios for a ratio of sums."""
    student = TableStudent(PROBABILITIES, RANKS)
    signal, found = scored(monkeypatch, "surprisal", config(tiny_judge), student, ("1 + 1 = ?", "abc"))
    ((ids, start),) = student.asked
    (sample,) = signal.encoder.encode(["1 + 1 = ?"], ["abc"])
    assert (ids, start) == (sample.ids, sample.start)
    assert len(ids) - start == 3
    total = -sum(map(math.log, PROBABILITIES))
    assert found.values[0] == pytest.approx(total / 3)
    assert found.extras["perplexity"][0] == pytest.approx((0.5 * 0.25 * 0.001) ** (-1 / 3))
    assert found.extras["rsr"][0] == pytest.approx((1 + 3 + 100) / total)
    assert (found.prompts, found.prompt_tokens) == (1, len(ids))


@pytest.mark.parametrize("beginning", [None, "<|endoftext|>"])
def test_ifd_compares_the_same_tokens(
    beginning: str | None, tiny_judge: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a first token that is in one mean and not in the other; the two means the wrong way up."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(tiny_judge))
    tokenizer.bos_token = beginning
    tokenizer.save_pretrained(str(tmp_path))
    AutoModelForCausalLM.from_pretrained(str(tiny_judge)).save_pretrained(str(tmp_path))

    class Helped(TableStudent):
        """Finds a token twice as likely, by the number of the token, when there is a question before it."""

        def token_scores(self, prompts: Sequence[Sequence[int]], starts: Sequence[int]) -> list[TokenScores]:
            super().token_scores(prompts, starts)
            found = []
            for prompt, start in zip(prompts, starts, strict=True):
                likely = np.array([0.01 * (1 + token % 7) for token in prompt[start:]])
                found.append(TokenScores(np.log(likely * (2 if start > 1 else 1)), np.ones(len(likely), np.int64)))
            return found

    student = Helped([], [])
    _, found = scored(monkeypatch, "ifd", config(tmp_path), student, ("1 + 1 = ?", "abcde"))
    response = tokenizer.encode("abcde", add_special_tokens=False)
    counted = response if beginning else response[1:]
    free = [0.01 * (1 + token % 7) for token in counted]
    expected = sum(math.log(2 * value) for value in free) / sum(map(math.log, free))
    assert found.values[0] == pytest.approx(expected)
    assert student.asked[1][0] == ([tokenizer.bos_token_id] if beginning else []) + response


@pytest.mark.parametrize("name", ["surprisal", "ifd"])
def test_too_long_is_a_fault_never_cut(name: str, tiny_judge: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a long trace judged by its beginning, or given to an engine that raises for the whole batch."""
    student = TableStudent(PROBABILITIES, RANKS)
    texts = [("q", "x" * length) for length in (10, 100, 20)]
    signal, found = scored(monkeypatch, name, config(tiny_judge, max_tokens=60), student, *texts)
    longest = len(signal.encoder.encode(*zip(texts[1], strict=True))[0].ids)
    assert found.faults.keys() == {1}
    assert found.faults[1].status == Status.TOO_LONG
    assert found.faults[1].detail == f"sample of {longest} tokens, at most 60"
    assert student.settings.context == 61
    assert max(len(ids) for ids, start in student.asked if start > 1) <= 60


def test_the_models_context_is_a_limit_too(tiny_judge: Path) -> None:
    """Catches: an engine asked for more room than the model has positions."""
    signal: Any = SIGNALS["surprisal"](config(tiny_judge))
    assert signal.settings.context == 2048


@pytest.mark.parametrize("name", ["surprisal", "ifd"])
@pytest.mark.parametrize(("probability", "told"), [(math.nan, "no probability"), (0.0, "no probability"), (1.0, "")])
def test_what_is_no_number_is_never_ranked(
    name: str, probability: float, told: str, tiny_judge: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: NaN of a broken model, or 0 / 0 of one that is sure of everything, as a value."""
    student = TableStudent([probability], [1])
    signal, found = scored(monkeypatch, name, config(tiny_judge), student, ("q", "abc"))
    (row,) = score_table(signal, [Subject(b"k" * 16, "q", "abc")], found).to_pylist()
    assert row["status"] == Status.FAILED
    assert all(row[column] is None for column in ("value", *signal.extras))
    assert told in row["detail"]


def test_a_response_of_one_token_has_no_ifd_without_a_beginning(
    tiny_judge: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a mean over nothing."""
    _, found = scored(monkeypatch, "ifd", config(tiny_judge), TableStudent(PROBABILITIES, RANKS), ("q", "a"))
    assert found.faults[0].status == Status.FAILED
    assert found.faults[0].detail == "no token of the response has one before it"
