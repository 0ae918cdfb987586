"""The wrapper around every signal: faults, fatal errors, one value per subject, rounding, and the store."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2r_ray.errors import S2RError, WorkersLostError
from s2r_ray.ranking import Better
from s2r_ray.signals.base import Fault, Resources, Scores, Status, Subject, SubjectKind
from s2r_ray.storage import Place
from s2r_ray.store import ScoreStore
from s2r_ray.worker import SignalWorker, score_all, score_table
from tests.stored import stored

ROOT = Path(__file__).resolve().parents[2]


class Dead(Exception):  # noqa: N818  # what an engine raises is not always called an error
    """The engine is gone."""


class Lengths:
    """Scores a question by its length; «bad» raises, «dead» is fatal, «silent» has no answer. Counts its calls."""

    name: ClassVar[str] = "lengths"
    subject: ClassVar[SubjectKind] = "question"
    ranked: ClassVar[Mapping[str, Better]] = {"lengths": "high", "twice": "high"}
    extras: ClassVar[tuple[str, ...]] = ("twice",)
    fatal: ClassVar[tuple[type[BaseException], ...]] = (Dead, MemoryError)

    def __init__(self) -> None:
        self.calls = 0
        self.opened = 0

    def fingerprint(self) -> dict[str, Any]:
        return {"signal": self.name}

    def resources(self, gpus_in_cluster: float) -> Resources:
        del gpus_in_cluster
        return Resources()

    def open(self) -> None:
        self.opened += 1

    def score(self, batch: Sequence[Subject]) -> Scores:
        self.calls += 1
        if any(subject.question == "dead" for subject in batch):
            raise Dead("no heartbeat")
        bad = [subject.question for subject in batch if subject.question.startswith("bad")]
        if bad:
            raise ValueError(f"cannot judge {bad[0]}")
        values = np.array([len(subject.question) for subject in batch], np.float64)
        silent = {i: Fault(Status.NO_ANSWER, "mute") for i, s in enumerate(batch) if s.question == "silent"}
        return Scores(values, {"twice": values * 2}, silent)


class Misbehaving(Lengths):
    """Returns what it was told to, whatever it was asked."""

    def __init__(self, scores: Scores) -> None:
        super().__init__()
        self.scores = scores

    def score(self, batch: Sequence[Subject]) -> Scores:
        del batch
        return self.scores


def subjects(*questions: str) -> list[Subject]:
    return [Subject(number.to_bytes(16, "big"), question) for number, question in enumerate(questions)]


QUESTIONS = st.lists(st.sampled_from(["a", "bb", "ccc", "bad", "bad one", "silent"]), max_size=20)


@given(QUESTIONS)
def test_bisecting_keeps_the_good_rows(questions: list[str]) -> None:
    """Catches: a bad row that takes its neighbours along, values or faults that end up at another row."""
    signal = Lengths()
    scores = score_all(signal, subjects(*questions))
    assert scores.values.shape == scores.extras["twice"].shape == (len(questions),)
    for position, question in enumerate(questions):
        if question.startswith("bad"):
            assert scores.faults[position] == Fault(Status.FAILED, f"ValueError: cannot judge {question}")
        elif question == "silent":
            assert scores.faults[position] == Fault(Status.NO_ANSWER, "mute")
        else:
            assert position not in scores.faults
            assert scores.values[position] == len(question)
            assert scores.extras["twice"][position] == 2 * len(question)


def test_one_bad_row_costs_few_calls() -> None:
    """Catches: a batch judged row by row because of one of them."""
    signal = Lengths()
    score_all(signal, subjects(*["a"] * 300, "bad", *["a"] * 211))
    assert signal.calls <= 2 * 9 + 1


@pytest.mark.parametrize("questions", [["a", "dead"], ["bad", "a", "dead", "a"], ["dead"]])
def test_fatal_errors_pass_through(questions: list[str]) -> None:
    """Catches: every row after an engine's death marked as that row's fault, at full speed, to the end of the pool."""
    with pytest.raises(Dead, match="no heartbeat"):
        score_all(Lengths(), subjects(*questions))


def test_an_interrupt_is_no_fault() -> None:
    """Catches: Ctrl-C or a worker's shutdown recorded as a question that cannot be judged."""

    class Interrupted(Lengths):
        def score(self, batch: Sequence[Subject]) -> Scores:
            raise KeyboardInterrupt(len(batch))

    with pytest.raises(KeyboardInterrupt):
        score_all(Interrupted(), subjects("a"))


class Raising(Lengths):
    """Has a fault with everything, even with nothing."""

    def score(self, batch: Sequence[Subject]) -> Scores:
        raise ValueError(f"{len(batch)} subjects " + "x" * 1000)


def test_an_empty_batch() -> None:
    """Catches: endless halving of nothing."""
    assert score_all(Raising(), []).values.shape == (0,)
    assert list(score_all(Lengths(), []).extras) == ["twice"]


def test_details_are_short() -> None:
    """Catches: a whole prompt, or a page of C++, in each row of excluded.parquet."""
    fault = score_all(Raising(), subjects("a")).faults[0]
    assert fault.detail.startswith("ValueError: 1 subjects xxx")
    assert len(fault.detail) <= 200


TWO = np.zeros(2)


@pytest.mark.parametrize(
    "scores",
    [
        Scores(np.zeros(1), {"twice": TWO}),
        Scores(np.zeros(3), {"twice": np.zeros(3)}),
        Scores(TWO, {"twice": np.zeros(1)}),
        Scores(TWO, {}),
        Scores(TWO, {"twice": TWO, "thrice": TWO}),
        Scores(TWO, {"twice": TWO}, {2: Fault(Status.FAILED, "")}),
        Scores(TWO, {"twice": TWO}, {-1: Fault(Status.FAILED, "")}),
    ],
)
def test_a_broken_contract_is_refused(scores: Scores) -> None:
    """Catches: scores that would be stored under other questions' keys."""
    with pytest.raises(S2RError, match="signal lengths broke its contract: 2 subjects in"):
        score_all(Misbehaving(scores), subjects("a", "b"))


# --- the rows for the store -----------------------------------------------------------------------


def table(values: Sequence[float], faults: dict[int, Fault] | None = None) -> pa.Table:
    column = np.array(values, np.float64)
    scores = Scores(column, {"twice": column}, faults or {})
    return score_table(Lengths(), subjects(*["q"] * len(values)), scores)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_values_are_on_the_grid(values: list[float]) -> None:
    """Catches: noise in the last bits that makes or breaks ties; values moved further than half a step."""
    for column in ("value", "twice"):
        stored = np.array(table(values)[column].to_pylist())
        assert np.array_equal(stored * 2**20, np.round(stored * 2**20))
        assert np.abs(stored - values).max() <= 2.0**-21


def test_faults_have_no_values() -> None:
    """Catches: a zero that stands for «not judged» and is ranked."""
    found = table([0.5, 0.25, 0.0], {1: Fault(Status.TOO_LONG, "9 tokens")}).to_pylist()
    assert [(row["value"], row["twice"], row["status"], row["detail"]) for row in found] == [
        (0.5, 0.5, "ok", None),
        (None, None, "too_long", "9 tokens"),
        (0.0, 0.0, "ok", None),
    ]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_is_a_fault(value: float) -> None:
    """Catches: NaN in the ranking, where it has no place; and a known fault's own reason overwritten."""
    found = table([0.5, value, value], {2: Fault(Status.NO_ANSWER, "mute")}).to_pylist()
    assert [row["status"] for row in found] == ["ok", "failed", "no_answer"]
    assert found[1]["detail"] == f"value {value} is not finite"
    assert found[1]["value"] is None


def test_a_further_column_that_is_no_number_is_a_fault() -> None:
    """Catches: a row with a value but NaN in another column that weights may name, which would end the ranking."""
    scores = Scores(np.array([0.5, 0.25]), {"twice": np.array([1.0, np.nan])})
    found = score_table(Lengths(), subjects("a", "b"), scores).to_pylist()
    assert [row["value"] for row in found] == [0.5, None]
    assert found[1]["detail"] == "twice nan is not finite"


# --- the worker -----------------------------------------------------------------------------------


def test_worker(tmp_path: Path) -> None:
    """Catches: an answer before the scores are durable, a key with another's score, a model opened per batch."""
    signal = Lengths()
    store = ScoreStore.of(Place.of(tmp_path), signal)
    worker = SignalWorker(signal, store, hang_seconds=60)
    for batch in (subjects("a", "bad", "ccc"), subjects("a", "bad", "ccc", "dddd", "silent")[3:]):
        keys = pa.array([subject.key for subject in batch], pa.binary(16))
        answer = worker(pa.table({"key": keys, "question": [subject.question for subject in batch]})).to_pylist()
        assert len(answer) == 1
        assert {name: answer[0][name] for name in ("scored", "repeated", "replaced")} == {
            "scored": len(batch),
            "repeated": 0,
            "replaced": False,
        }
        assert set(keys.to_pylist()) <= set(stored(store)["key"].to_pylist())
    assert signal.opened == 1
    assert stored(store)["value"].to_pylist() == [1.0, None, 3.0, 4.0, None]
    assert stored(store)["status"].to_pylist() == ["ok", "failed", "ok", "ok", "no_answer"]


def test_a_worker_that_dies_leaves_nothing(tmp_path: Path) -> None:
    """Catches: a batch marked as judged by an engine that was dead; the batch that waited behind it asked of the same
    engine, which may spin for ever."""
    signal = Lengths()
    store = ScoreStore.of(Place.of(tmp_path), signal)
    batch = pa.table({"key": pa.array([b"0" * 16], pa.binary(16)), "question": ["dead"]})
    worker = SignalWorker(signal, store, hang_seconds=60)
    with pytest.raises(WorkersLostError, match="Dead: no heartbeat"):
        worker(batch)
    assert signal.calls == 1
    with pytest.raises(WorkersLostError, match="Dead: no heartbeat"):
        worker(pa.table({"key": pa.array([b"1" * 16], pa.binary(16)), "question": ["fine"]}))
    assert signal.calls == 1
    assert store.parts() == []


@pytest.mark.parametrize("where", ["open", "score"])
def test_a_worker_that_hangs_ends_itself(tmp_path: Path, where: str) -> None:
    """Catches: a judge that never comes back, while loading or while judging, and holds its GPU for ever. It hangs in
    native code with the interpreter's lock held, where no Python thread could notice."""
    code = f"""
import ctypes, sys
import pyarrow as pa
from s2r_ray.storage import Place
from s2r_ray.store import ScoreStore
from s2r_ray.worker import SignalWorker
from tests.unit.test_worker import Lengths

def hang(*_):
    ctypes.PyDLL(None).sleep(60)

setattr(Lengths, {where!r}, hang)
store = ScoreStore.of(Place.of({str(tmp_path)!r}), Lengths())
batch = pa.table({{"key": pa.array([b"0" * 16], pa.binary(16)), "question": ["q"]}})
SignalWorker(Lengths(), store, hang_seconds=0.5)(batch)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False, cwd=ROOT
    )
    assert done.returncode == 1
    assert "Timeout (0:00:00.500000)!" in done.stderr
    assert "in hang" in done.stderr, "the log must say where it hung"
    assert not list(tmp_path.rglob("*.parquet"))


def test_traces_reach_signals_that_judge_samples(tmp_path: Path) -> None:
    """Catches: a sample signal that sees its question alone."""
    seen: list[Subject] = []

    class Samples(Lengths):
        subject: ClassVar[SubjectKind] = "sample"

        def score(self, batch: Sequence[Subject]) -> Scores:
            seen.extend(batch)
            return super().score(batch)

    key = b"0" * 16
    worker = SignalWorker(Samples(), ScoreStore.of(Place.of(tmp_path), Samples()), hang_seconds=60)
    worker(pa.table({"key": pa.array([key], pa.binary(16)), "question": ["q"], "response": ["t"]}))
    assert seen == [Subject(key, "q", "t")] * 2, "judged, and once more for the noise"
