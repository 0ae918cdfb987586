"""What every signal owes the pipeline: each one of the table, and a fake."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from s2r_ray.config import Config, load_config
from s2r_ray.signals import FURTHER, INDEX_SIGNALS, SIGNALS, WITH_VECTORS
from s2r_ray.signals.base import Fault, Resources, Scores, Signal, Status, Subject, vector_length
from s2r_ray.storage import Place
from s2r_ray.store import ScoreStore, fingerprint_digest
from s2r_ray.worker import score_all, score_table
from tests.fakes import HashJudge, write_queries, write_validation_sets


@dataclass(frozen=True)
class Case:
    """A signal under contract.

    `changes`: settings that can change a value, `harmless` ones that cannot; both are laid over the configuration.
    """

    make: Callable[[Config], Signal]
    changes: dict[str, dict[str, Any]]
    harmless: dict[str, dict[str, Any]]


def _hash_judge(config: Config) -> Signal:
    return HashJudge(workers=config.workers.judges_max, levels=int(config.judge.min_label_mass * 64))


def _judge(**settings: Any) -> dict[str, Any]:
    return {"judge": settings}


def _student(**settings: Any) -> dict[str, Any]:
    return {"student": settings}


OF_STUDENT = {
    "engine": _student(engine="vllm"),
    "dtype": _student(dtype="bfloat16"),
    "longest sample": _student(max_tokens=500),
}
NOT_OF_STUDENT = {
    "workers": {"workers": {"judges_max": 9, "tensor_parallel": 2, "cpus_per_judge": 2}},
    "memory": _student(gpu_memory_utilization=0.5, batch=7, batch_tokens=100),
    "judge": _judge(max_prompt_tokens=500),
}

CASES = {
    "fake": Case(
        _hash_judge,
        {"levels": _judge(min_label_mass=0.25)},
        {"workers": {"workers": {"judges_max": 9}}},
    ),
    "difficulty": Case(
        SIGNALS["difficulty"],
        {
            "system": _judge(prompt={"system": "Hard?"}),
            "user": _judge(prompt={"user": "Q: {question}"}),
            "labels": _judge(labels=["1", "0"]),
            "compat": _judge(compat="top2"),
            "least mass": _judge(min_label_mass=0.25),
            "longest prompt": _judge(max_prompt_tokens=500),
            "engine": _judge(engine="vllm"),
            "dtype": _judge(dtype="bfloat16"),
        },
        {
            "workers": {"workers": {"judges_max": 9, "judge_batch": 7, "tensor_parallel": 2, "cpus_per_judge": 2}},
            "memory": _judge(gpu_memory_utilization=0.5),
            "weights": {"weights": {"difficulty": 1}, "budgets": ["1"]},
            "pool": {"out": "elsewhere", "candidates": "all", "tokenizer": "another"},
        },
    ),
    "rethinking": Case(
        SIGNALS["rethinking"],
        {"words": {"rethinking": {"words": ["hmm"]}}},
        {"workers": {"workers": {"cpu_workers_max": 9}}, "judge": _judge(max_prompt_tokens=500)},
    ),
    "surprisal": Case(SIGNALS["surprisal"], OF_STUDENT, NOT_OF_STUDENT),
    "ifd": Case(SIGNALS["ifd"], OF_STUDENT, NOT_OF_STUDENT),
    "rds": Case(
        SIGNALS["rds"],
        {
            **OF_STUDENT,
            "questions alone": {"rds": {"response": None}},
            "other queries": {"rds": {"question": "response"}},
        },
        {**NOT_OF_STUDENT, "most queries": {"rds": {"max_queries": 5}}},
    ),
    "influence": Case(
        SIGNALS["influence"],
        {
            "modules": {"influence": {"modules": "mlp"}},
            "loss": {"influence": {"loss": "mean"}},
            "strategy": {"influence": {"strategy": "kfac"}},
            "damping": {"influence": {"damping": 0.5}},
            "samples": {"influence": {"samples": 3}},
            "a set": {"influence": {"response_column": "wrong"}},
            "longest sample": {"student": {"max_tokens": 500}},
            "dtype": {"student": {"dtype": "bfloat16"}},
        },
        {
            "limits": {"influence": {"limit": 3, "teraflops": 1, "partitions": 2, "overlap": "allow"}},
            "workers": {"workers": {"judges_max": 9}, "student": {"batch": 7}},
            "judge": _judge(max_prompt_tokens=500),
            "out": {"out": "elsewhere"},
        },
    ),
}
VARIANTS = [(name, change) for name, case in CASES.items() for change in case.changes]
HARMLESS = [(name, change) for name, case in CASES.items() for change in case.harmless]


def config_of(judge: Path, over: dict[str, Any] | None = None) -> Config:
    """The small judge, which is the student as well, in the reference engine, and what is laid over that."""
    settings: dict[str, Any] = {
        **{section: {"model": str(judge), "engine": "transformers"} for section in ("judge", "student")},
        "influence": {"model": str(judge), "samples": 4, **write_validation_sets(judge.parent)},
        "out": str(judge.parent / "out"),
    }
    settings["rds"] = {"queries": str(write_queries(judge.parent))}
    for section, values in (over or {}).items():
        old = settings.get(section)
        settings[section] = {**old, **values} if isinstance(old, dict) else values
    return load_config(None, settings)


@pytest.fixture(params=sorted(CASES))
def signal(request: pytest.FixtureRequest, tiny_judge: Path) -> Signal:
    made: Any = CASES[request.param].make(config_of(tiny_judge))
    if hasattr(made, "to_prepare") and made.to_prepare():
        made.prepare(subjects("2 + 2 = ?", "Why?", "Count to ten.", "a b c"))
        assert not made.to_prepare(), "what it made is not found again"
    signal: Signal = made
    return signal


def subjects(*questions: str) -> list[Subject]:
    """With a response that depends on the question alone."""
    return [
        Subject(number.to_bytes(16, "big"), question, f"<think>\nWait, {question}\n</think>\n\nSo {question}.")
        for number, question in enumerate(questions)
    ]


QUESTIONS = ["1 + 1 = ?", "", "Prove it.", "解方程", "x" * 40, "1<|im_end|>\n", "1 + 1 = ?"]


def test_every_signal_is_under_contract() -> None:
    """Catches: a new signal in the table that nobody held to the contract."""
    assert set(SIGNALS) <= set(CASES)
    assert not set(SIGNALS) & set(INDEX_SIGNALS)


def test_names_in_the_tables(tiny_judge: Path) -> None:
    """Catches: scores stored under another name than weights are given for; a column that no weight finds."""
    further = {}
    for name, make in SIGNALS.items():
        signal = make(config_of(tiny_judge))
        assert signal.name == name
        assert (vector_length(signal) > 0) == (name in WITH_VECTORS)
        assert signal.subject == "sample" or name not in WITH_VECTORS
        further |= {column: name for column in signal.ranked if column != name}
    assert further == FURTHER


def test_declarations(signal: Signal, tmp_path: Path) -> None:
    """Catches: a declaration that only fails on the cluster."""
    assert signal.subject in ("question", "sample")
    assert set(signal.ranked) <= {signal.name, *signal.extras}
    assert signal.ranked[signal.name] in ("high", "low")
    assert all(isinstance(name, str) for name in signal.extras)
    assert all(issubclass(kind, BaseException) for kind in signal.fatal)
    assert not {Exception, BaseException, ValueError} & set(signal.fatal)
    for gpus in (0.0, 8.0):
        resources = signal.resources(gpus)
        assert isinstance(resources, Resources)
        assert 1 <= resources.workers[0] <= resources.workers[1]
        assert resources.batch >= 1
    assert signal.resources(0.0).gpus == 0
    store = ScoreStore.of(Place.of(tmp_path), signal)
    assert len(set(store.schema().names)) == len(store.schema().names)


def test_pickles_before_open(signal: Signal) -> None:
    """Catches: a signal that holds a model, a lock or a lambda before it is opened on its worker."""
    again = pickle.loads(pickle.dumps(signal))
    assert again.fingerprint() == signal.fingerprint()
    assert again.name == signal.name


def test_fingerprint_is_json(signal: Signal) -> None:
    """Catches: a fingerprint that differs after it was written down, such as one with tuples, sets or paths."""
    fingerprint = signal.fingerprint()
    assert json.loads(json.dumps(fingerprint, allow_nan=False)) == fingerprint
    assert fingerprint == signal.fingerprint()


@pytest.mark.parametrize(("name", "change"), VARIANTS)
def test_fingerprint_changes(name: str, change: str, tiny_judge: Path) -> None:
    """Catches: scores made under one setting reused under another."""
    case = CASES[name]
    digests = {
        fingerprint_digest(case.make(config_of(tiny_judge, over)).fingerprint()) for over in ({}, case.changes[change])
    }
    assert len(digests) == 2


@pytest.mark.parametrize(("name", "change"), HARMLESS)
def test_fingerprint_stays(name: str, change: str, tiny_judge: Path) -> None:
    """Catches: everything judged again for a setting that cannot change a score."""
    case = CASES[name]
    digests = {
        fingerprint_digest(case.make(config_of(tiny_judge, over)).fingerprint()) for over in ({}, case.harmless[change])
    }
    assert len(digests) == 1


def test_fingerprint_is_the_same_in_another_process(tiny_judge: Path) -> None:
    """Catches: a fingerprint with a hash, an address or an order that changes from process to process."""
    code = (
        "import json, sys; from s2r_ray.config import load_config; from s2r_ray.signals import SIGNALS;"
        "config = load_config(None, json.loads(sys.argv[1]));"
        "print(json.dumps({name: make(config).fingerprint() for name, make in SIGNALS.items()}))"
    )
    config = config_of(tiny_judge)
    settings = json.dumps(config.model_dump(mode="json", include={"judge", "student", "influence", "rds", "out"}))
    done = subprocess.run([sys.executable, "-c", code, settings], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == {
        name: make(config).fingerprint() for name, make in SIGNALS.items()
    }


def test_one_to_one_and_in_order(signal: Signal) -> None:
    """Catches: rows lost, doubled or out of order, and a score that depends on the row's neighbours."""
    signal.open()
    together = score_all(signal, subjects(*QUESTIONS))
    assert together.values.shape == (len(QUESTIONS),)
    assert set(together.extras) == set(signal.extras)
    backwards = score_all(signal, subjects(*QUESTIONS[::-1]))
    for place, question in enumerate(QUESTIONS):
        alone = score_all(signal, subjects(question))
        mirror = len(QUESTIONS) - 1 - place
        assert (place in together.faults) == (0 in alone.faults) == (mirror in backwards.faults)
        if place not in together.faults:
            assert together.values[place] == pytest.approx(alone.values[0], abs=1e-4)
            assert together.values[place] == pytest.approx(backwards.values[mirror], abs=1e-4)
    assert len(set(np.round(together.values, 6))) > 1, "a constant signal would make this test empty"


def test_an_empty_batch(signal: Signal) -> None:
    """Catches: an exception on a block without rows, which Ray may send."""
    signal.open()
    assert signal.score([]).values.shape == (0,)


def test_long_and_odd_subjects_are_faults_at_most(signal: Signal) -> None:
    """Catches: one monstrous question that ends the job; every row has a value or a reason that is known."""
    signal.open()
    odd = subjects("x " * 50_000, "\x00\ufeff\u2028", "<|im_start|>" * 200, "fine")
    table = score_table(signal, odd, score_all(signal, odd)).to_pylist()
    assert [row["key"] for row in table] == [subject.key for subject in odd]
    for row in table:
        assert row["status"] in list(Status)
        assert (row["value"] is not None) == (row["status"] == Status.OK)
        assert (row["detail"] is None) == (row["status"] == Status.OK)


class Wrapped:
    """A signal of which some questions make trouble, as told; for the rest it is the signal itself."""

    def __init__(self, signal: Signal, trouble: dict[str, BaseException]) -> None:
        self.name, self.subject, self.extras, self.fatal = signal.name, signal.subject, signal.extras, signal.fatal
        self.ranked, self.vector = signal.ranked, vector_length(signal)
        self.fingerprint, self.resources, self.open = signal.fingerprint, signal.resources, signal.open
        self._signal = signal
        self._trouble = trouble

    def score(self, batch: Sequence[Subject]) -> Scores:
        for subject in batch:
            if subject.question in self._trouble:
                raise self._trouble[subject.question]
        return self._signal.score(batch)


def test_bisecting_keeps_the_good_rows(signal: Signal) -> None:
    """Catches: neighbours of a faulty row that lose their scores, or get another's."""
    signal.open()
    batch = subjects("a", "boom", "a b", "a b c", "boom", "d", "e")
    plain = score_all(signal, batch)
    found = score_all(Wrapped(signal, {"boom": ValueError("row")}), batch)
    for place, subject in enumerate(batch):
        if subject.question == "boom":
            assert found.faults[place] == Fault(Status.FAILED, "ValueError: row")
        else:
            assert found.faults.get(place) == plain.faults.get(place)
            assert found.values[place] == pytest.approx(plain.values[place], abs=1e-4)
            for name in signal.extras:
                assert found.extras[name][place] == pytest.approx(plain.extras[name][place], abs=1e-4)
            if found.vectors is not None and plain.vectors is not None:
                assert found.vectors[place] == pytest.approx(plain.vectors[place], abs=1e-4)


def test_fatal_errors_pass_through(signal: Signal) -> None:
    """Catches: a worker that goes on with an engine that is dead."""
    for kind in signal.fatal:
        with pytest.raises(kind):
            score_all(Wrapped(signal, {"dead": kind("gone")}), subjects("a", "dead"))


def test_the_fake_is_deterministic() -> None:
    """Catches: a fake whose scores differ between workers, which would prove nothing about the pipeline."""
    judge = HashJudge()
    assert [judge.value(question) for question in QUESTIONS] == [
        replace(judge, workers=3).value(question) for question in QUESTIONS
    ]
