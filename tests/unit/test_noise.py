"""The judge's noise: measured in another batch make-up, once, and never in the way."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from s2r_ray.noise import Noise, leave_noise, measure, noise_place, read_noise
from s2r_ray.signals.base import Fault, Scores, Status, Subject
from s2r_ray.storage import Place
from s2r_ray.store import ScoreStore
from s2r_ray.worker import SignalWorker
from tests.fakes import HashJudge
from tests.stored import stored


@dataclass(frozen=True)
class Noisy(HashJudge):
    """Adds 1/1000 of the batch's size to each value; keeps the batches that it was given."""

    seen: list[list[str]] = field(default_factory=list)
    broken: bool = False

    def score(self, batch: Sequence[Subject]) -> Scores:
        self.seen.append([subject.question for subject in batch])
        if self.broken and len(self.seen) > 1:
            raise MemoryError("the second judging")
        plain = super().score(batch)
        return Scores(plain.values + len(batch) / 1000, plain.extras, plain.faults)

    def forget(self) -> None:
        self.seen.append([])


def subjects(count: int, first: int = 0) -> list[Subject]:
    """Questions that the fake answers."""
    found = (f"question {number}" for number in range(first, 10**6))
    answered = (text for text in found if not HashJudge.is_silent(text))
    return [Subject(text.encode().rjust(16)[-16:], text) for text in islice(answered, count)]


def table(batch: Sequence[Subject]) -> pa.Table:
    keys = pa.array([subject.key for subject in batch], pa.binary(16))
    return pa.table({"key": keys, "question": [subject.question for subject in batch]})


def store_at(folder: Path) -> ScoreStore:
    return ScoreStore.of(Place.of(folder), HashJudge())


def test_what_is_measured() -> None:
    """Catches: the same batch judged twice, which shows no noise; answers of an engine's cache; values of the wrong
    rows; a measurement that costs as much as the batch."""
    judge = Noisy()
    batch = subjects(200)
    found = measure(judge, batch, judge.score(batch).values)
    assert found is not None
    assert found == Noise(64, pytest.approx(0.192), pytest.approx(0.192))
    asked = judge.seen[1:]
    assert asked[0] == [], "what it kept of the first judging is dropped"
    assert [len(group) for group in asked[1:]] == [8] * 8
    order = [subject.question for subject in batch]
    places = [order.index(question) for group in asked for question in group]
    assert places == sorted(places, reverse=True)
    assert (places[0], places[-1]) == (199, 0), "from the whole batch"


def test_largest_and_mean_are_of_the_differences() -> None:
    """Catches: a sign that cancels out, and rows without an answer counted as moved to zero."""

    class Alternating(HashJudge):
        def score(self, batch: Sequence[Subject]) -> Scores:
            moves = [0.25 if subject.question.endswith("0") else -0.5 for subject in batch]
            faults = {i: Fault(Status.NO_ANSWER, "") for i, s in enumerate(batch) if s.question.endswith("7")}
            return Scores(np.array(moves), {}, faults)

    batch = [Subject(b"", f"q{number}") for number in (10, 11, 17, 20)]
    found = measure(Alternating(), batch, np.zeros(4))
    assert found == Noise(3, 0.5, pytest.approx(np.sqrt((0.25**2 * 2 + 0.5**2) / 3)))
    assert measure(Alternating(), batch[2:3], np.zeros(1)) is None
    assert measure(Alternating(), [], np.zeros(0)) is None


def test_a_worker_measures_once(tmp_path: Path) -> None:
    """Catches: noise measured for every batch or in every run, or never; a record that hides or becomes a score."""
    store = store_at(tmp_path)
    judge = Noisy()
    worker = SignalWorker(judge, store, hang_seconds=60)
    for start in (0, 1000):
        worker(table(subjects(100, start)))
    assert len([group for group in judge.seen if len(group) == 100]) == 2
    assert len(judge.seen) == 2 + 1 + 8
    record = json.loads(noise_place(store).read_bytes())
    assert record == {"pairs": 64, "largest": pytest.approx(0.092), "rms": pytest.approx(0.092)}
    assert stored(store).num_rows == 200

    again = Noisy()
    SignalWorker(again, store, hang_seconds=60)(table(subjects(100, 2000)))
    assert len(again.seen) == 1, "it is known by now"


def test_a_record_from_few_pairs_gives_way(tmp_path: Path) -> None:
    """Catches: the noise of a judge known for good from the one question that was new on its first night."""
    store = store_at(tmp_path)
    for count, pairs in ((1, 1), (20, 20), (5, 20), (300, 64)):
        SignalWorker(Noisy(), store, hang_seconds=60)(table(subjects(count)))
        found = read_noise(store)
        assert found is not None
        assert found.pairs == pairs


def test_a_failure_is_logged_and_no_more(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Catches: a run that fails, or scores that are lost, for a measurement beside the work."""
    store = store_at(tmp_path)
    batch = subjects(10)
    with caplog.at_level(logging.ERROR):
        answer = SignalWorker(Noisy(broken=True), store, hang_seconds=60)(table(batch)).to_pylist()
    assert answer[0]["scored"] == 10
    assert stored(store).num_rows == 10
    assert read_noise(store) is None
    assert "noise of difficulty was not measured" in caplog.text


def test_rows_without_a_value_are_left_out(tmp_path: Path) -> None:
    """Catches: NaN as the largest difference."""
    store = store_at(tmp_path)
    batch = subjects(4)
    scores: dict[str, Any] = {"values": np.array([np.nan, 0.5, 0.5, np.inf]), "faults": {1: Fault(Status.FAILED, "")}}
    leave_noise(HashJudge(), store, batch, Scores(**scores))
    found = read_noise(store)
    assert found is not None
    assert found.pairs == 1
    assert np.isfinite(found.largest)
