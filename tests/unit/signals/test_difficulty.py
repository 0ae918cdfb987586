"""The difficulty signal with an engine that answers from a table: scores, faults, checks and the fingerprint."""

from __future__ import annotations

import json
import math
import pickle
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2r_ray.config import JudgeSection, WorkersSection, load_config
from s2r_ray.engines import EngineError, EngineSettings
from s2r_ray.errors import S2RError, UsageError
from s2r_ray.judge.prompt import PromptEncoder
from s2r_ray.signals import difficulty, model_workers
from s2r_ray.signals.base import Fault, Scores, Status, Subject
from s2r_ray.signals.difficulty import Difficulty, label_score, published_score


class TableEngine:
    """Answers by the number of tokens of a prompt: `answers[length]`, else an even split."""

    def __init__(self, settings: EngineSettings, answers: dict[int, Any]) -> None:
        self.settings = settings
        self.answers = answers
        self.asked: list[list[list[int]]] = []

    def _answer(self, prompts: Sequence[Sequence[int]], otherwise: Any) -> list[Any]:
        self.asked.append([list(prompt) for prompt in prompts])
        found = [self.answers.get(len(prompt), otherwise) for prompt in prompts]
        for answer in found:
            if isinstance(answer, Exception):
                raise answer
        return found

    def label_logprobs(self, prompts: Sequence[Sequence[int]], labels: tuple[int, int]) -> Any:
        assert labels[0] != labels[1]
        with np.errstate(divide="ignore"):
            return np.log(np.array(self._answer(prompts, (0.5, 0.5)), np.float64).reshape(-1, 2))

    def top_two(self, prompts: Sequence[Sequence[int]]) -> list[dict[int, float]]:
        return self._answer(prompts, {0: -1.0, 1: -1.0})

    def head_logits(self, prompts: Sequence[Sequence[int]]) -> Any:
        return np.array(self._answer(prompts, 0.0), np.float64)


def folder_with(source: Path, target: Path, **config: Any) -> Path:
    """A judge folder with another configuration; no test here loads its weights."""
    if not target.exists():
        shutil.copytree(source, target)
        (target / "model.safetensors").write_bytes(b"weights")
    (target / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return target


@pytest.fixture
def folder(tokenizer_dir: Path, tmp_path: Path) -> Path:
    config = {"architectures": ["Qwen2ForCausalLM"], "max_position_embeddings": 512, "dtype": "float32"}
    return folder_with(tokenizer_dir, tmp_path / "judge", **config)


@pytest.fixture
def head(tokenizer_dir: Path, tmp_path: Path) -> Path:
    return folder_with(
        tokenizer_dir, tmp_path / "head", architectures=["Qwen2ForSequenceClassification"], id2label={"0": "LABEL_0"}
    )


def signal_of(folder: Path, **judge: Any) -> Difficulty:
    return Difficulty.of(JudgeSection(model=str(folder), **judge), WorkersSection())


def opened(
    signal: Difficulty, monkeypatch: pytest.MonkeyPatch, answers: dict[str, Any] | None = None
) -> tuple[Difficulty, TableEngine]:
    """The signal on an engine that answers so to these questions (told apart by the length of their prompts)."""
    engines: list[TableEngine] = []

    def open_engine(name: str, settings: EngineSettings) -> TableEngine:
        assert name == signal.settings.judge.engine
        engines.append(TableEngine(settings, {}))
        return engines[-1]

    monkeypatch.setattr(difficulty, "open_engine", open_engine)
    signal.open()
    for question, answer in (answers or {}).items():
        engines[0].answers[len(encode(signal, question)[0])] = answer
    return signal, engines[0]


def encode(signal: Difficulty, *questions: str) -> list[list[int]]:
    """The prompts that the judge gets."""
    judge = signal.settings.judge
    return PromptEncoder(signal.settings.model.folder, judge.judge_prompt(), judge.labels).encode(questions)


def ask(signal: Difficulty, *questions: str) -> Scores:
    return signal.score([Subject(bytes(16), question) for question in questions])


# --- scores ---------------------------------------------------------------------------------------


def test_label_scores(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: labels the wrong way round, a share of all tokens for one of the labels, rows out of order."""
    answers = {"a": (0.1, 0.3), "a b": (0.8, 0.1), "a b c": (0.0, 0.6)}
    signal, engine = opened(signal_of(folder), monkeypatch, answers)
    scores = ask(signal, "a b", "a", "a b c")
    assert scores.values == pytest.approx([1 / 9, 0.75, 1.0])
    assert scores.extras["label_mass"] == pytest.approx([0.9, 0.4, 0.6])
    assert scores.faults == {1: Fault(Status.NO_ANSWER, "label mass 0.4, at least 0.5")}
    assert engine.asked == [encode(signal, "a b", "a", "a b c")]


@given(st.lists(st.tuples(st.floats(-800, 0), st.floats(-800, 0)), min_size=1))
def test_label_score_is_a_share(pairs: list[tuple[float, float]]) -> None:
    """Catches: overflow, or 0 / 0 where both labels are very unlikely."""
    values, mass = label_score(np.array(pairs))
    for (zero, one), value, share in zip(pairs, values, mass, strict=True):
        assert value == pytest.approx(1 / (1 + math.exp(min(zero - one, 700))), abs=1e-12)
        assert share == pytest.approx(math.exp(zero) + math.exp(one), rel=1e-9, abs=1e-300)


@pytest.mark.parametrize(
    ("top", "value", "mass"),
    [
        ({7: 0.2, 8: 0.6}, 0.75, 0.8),
        ({7: 0.6, 9: 0.2}, 0.0, 0.6),
        ({8: 0.6, 9: 0.2}, 0.75, 0.6),
        ({3: 0.6, 9: 0.2}, 0.0, 0.0),
        ({8: 0.5, 7: 0.2, 3: 0.3}, 0.5, 0.7),
        ({8: 0.5}, 1.0, 0.5),
    ],
)
def test_published_score(top: dict[int, float], value: float, mass: float) -> None:
    """Catches: anything but p("1") over the sum of the returned probabilities, 0.0 where "1" is not among them."""
    found = published_score([{token: math.log(share) for token, share in top.items()}], (7, 8))
    assert (found[0][0], found[1][0]) == (pytest.approx(value), pytest.approx(mass))


def test_compat(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: `compat: top2` that still reads the labels, or that leaves out what the script scored 0."""
    signal = signal_of(folder, compat="top2")
    zero, one = signal.settings.label_ids
    answers = {"a": {one: math.log(0.3), zero: math.log(0.1)}, "a b": {300: math.log(0.9), 301: math.log(0.05)}}
    signal, _ = opened(signal, monkeypatch, answers)
    scores = ask(signal, "a", "a b")
    assert scores.values == pytest.approx([0.75, 0.0])
    assert scores.faults == {}


def test_head(head: Path, tokenizer_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a logit stored as it is, or a regression head squeezed by a sigmoid."""
    answers = {"a": 0.0, "a b": 2.0, "a b c": -1e9, "a b c d": 1e9}
    signal, _ = opened(signal_of(head), monkeypatch, answers)
    assert signal.settings.kind == "head"
    scores = ask(signal, *answers)
    assert scores.values == pytest.approx([0.5, 1 / (1 + math.exp(-2)), 0.0, 1.0])
    assert scores.extras["label_mass"].tolist() == [1.0] * 4
    regression = folder_with(
        tokenizer_dir,
        tmp_path / "regression",
        architectures=["Qwen2ForSequenceClassification"],
        id2label={"0": "x"},
        problem_type="regression",
    )
    signal, _ = opened(signal_of(regression), monkeypatch, {"a": 0.3, "a b": 2.0, "a b c": -1.0})
    assert ask(signal, "a", "a b", "a b c").values.tolist() == [0.3, 1.0, 0.0]


# --- faults ---------------------------------------------------------------------------------------


def test_long_questions_are_left_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a prompt cut without a word, one longer than the context given to the engine, neighbours shifted."""
    signal, engine = opened(signal_of(folder, max_prompt_tokens=200), monkeypatch, {"a": (0.1, 0.9)})
    scores = ask(signal, "x " * 500, "a", "x " * 600)
    assert set(scores.faults) == {0, 2}
    assert scores.faults[0].status == Status.TOO_LONG
    assert scores.faults[0].detail.endswith("at most 200")
    assert scores.values[1] == pytest.approx(0.9)
    assert [len(batch) for batch in engine.asked] == [1]
    assert engine.settings.context == 201
    assert set(ask(signal, "x " * 500).faults) == {0}


def test_exactly_as_long_as_the_context(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: no room for the answer's token, or a prompt left out that fits."""
    length = len(encode(signal_of(folder), "a b c")[0])
    for most, fits in ((length, True), (length - 1, False)):
        signal, engine = opened(signal_of(folder, max_prompt_tokens=most), monkeypatch)
        assert (not ask(signal, "a b c").faults) == fits
        assert engine.settings.context == most + 1


def test_the_models_context_counts(folder: Path) -> None:
    """Catches: an engine asked for more positions than the model has."""
    assert signal_of(folder, max_prompt_tokens=4096).settings.context == 512
    assert signal_of(folder, max_prompt_tokens=100).settings.context == 101


def test_no_number_is_a_fault(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: NaN among the scores."""
    signal, _ = opened(signal_of(folder), monkeypatch, {"a": (math.nan, 0.5), "a b": (0.0, 0.0)})
    with np.errstate(all="ignore"):
        scores = ask(signal, "a", "a b", "a b c")
    assert {place: fault.status for place, fault in scores.faults.items()} == {0: Status.FAILED, 1: Status.FAILED}


def test_a_dead_engine_is_fatal(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: an engine's death taken for a row's fault."""
    signal, _ = opened(signal_of(folder), monkeypatch, {"a": EngineError("out of memory")})
    assert EngineError in signal.fatal
    with pytest.raises(EngineError):
        ask(signal, "a")


@pytest.mark.parametrize("compat", ["none", "top2"])
def test_an_empty_batch(compat: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: an exception on nothing."""
    signal, _ = opened(signal_of(folder, compat=compat), monkeypatch)
    scores = ask(signal)
    assert scores.values.shape == scores.extras["label_mass"].shape == (0,)


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "judge", "said"),
    [
        ({"architectures": ["X"]}, {"kind": "head"}, "judge.kind is head, but"),
        (
            {"architectures": ["XForSequenceClassification"], "num_labels": 1},
            {"kind": "labels"},
            "judge.kind is labels",
        ),
        ({"architectures": ["XForSequenceClassification"], "num_labels": 1}, {"compat": "top2"}, "needs a language"),
        ({"architectures": ["XForSequenceClassification"]}, {}, "its head has 2 outputs; expected one"),
        (
            {"architectures": ["XForSequenceClassification"], "id2label": {"0": "a", "1": "b", "2": "c"}},
            {},
            "3 outputs",
        ),
        ({"architectures": ["X"]}, {"labels": ("no", "yes!")}, "tokens in its tokenizer; expected exactly one"),
    ],
)
def test_wrong_judges(
    config: dict[str, Any], judge: dict[str, Any], said: str, tokenizer_dir: Path, tmp_path: Path
) -> None:
    """Catches: a judge that cannot work found out only in the workers."""
    with pytest.raises(UsageError, match=said):
        signal_of(folder_with(tokenizer_dir, tmp_path / "judge", **config), **judge)


def test_dtype(folder: Path, tokenizer_dir: Path) -> None:
    """Catches: «auto» in the fingerprint, which stands for another type in another engine or version."""
    assert signal_of(folder).fingerprint()["dtype"] == "float32"
    assert signal_of(folder, dtype="bfloat16").fingerprint()["dtype"] == "bfloat16"
    bare = folder_with(tokenizer_dir, folder, architectures=["X"])
    assert signal_of(bare).fingerprint()["dtype"] == "auto"


@pytest.mark.parametrize(
    ("workers", "gpus", "expected"),
    [
        ({}, 0, 0.0),
        ({}, 8, 1.0),
        ({"tensor_parallel": 4}, 8, 4.0),
        ({"gpus_per_judge": 0.25}, 8, 0.25),
        ({"gpus_per_judge": 0}, 8, 0),
        ({"gpus_per_judge": 1}, 0, 1),
    ],
)
def test_resources(workers: dict[str, Any], gpus: float, expected: float, folder: Path) -> None:
    """Catches: a judge on the CPU of a GPU cluster, or one that waits for GPUs that are not there."""
    section = WorkersSection(judges_min=2, judges_max=5, judge_batch=7, cpus_per_judge=3, **workers)
    found = Difficulty.of(JudgeSection(model=str(folder)), section).resources(gpus)
    assert (found.gpus, found.workers, found.batch, found.cpus) == (expected, (2, 5), 7, 3)


def test_threads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a judge alone on a laptop that uses one core, and one that takes more than what it was given."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 8)

    def threads(**workers: Any) -> int | None:
        found = Difficulty.of(JudgeSection(model=str(folder)), WorkersSection(**workers))
        assert found.resources(1).threads is None
        assert found.resources(0).cpus == workers.get("cpus_per_judge", 1)
        return found.resources(0).threads

    assert threads() == 8
    assert threads(judges_max=3) == 2
    assert threads(judges_max=9) == 1
    assert threads(cpus_per_judge=2) is None
    assert threads(address="head:6379") is None
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert threads() is None


def test_workers_do_not_change_scores(folder: Path) -> None:
    """Catches: a pool judged again because of a larger cluster."""
    judge = JudgeSection(model=str(folder))
    few, many = (
        Difficulty.of(judge, section)
        for section in (WorkersSection(), WorkersSection(judges_max=64, judge_batch=4096, tensor_parallel=8))
    )
    assert few.fingerprint() == many.fingerprint()


def test_what_travels_is_small(folder: Path) -> None:
    """Catches: a tokenizer, or worse the weights, pickled to every worker."""
    assert len(pickle.dumps(signal_of(folder))) < 10_000


def test_shared_memory_of_a_node() -> None:
    """Catches: a container with 64 MiB of shared memory, in which a model on several GPUs hangs while it loads."""
    model_workers._check_shared_memory(1 << 10)
    with pytest.raises(S2RError, match=r"/dev/shm has [\d,]+ MiB free, .* needs 1,073,741,824; .*--shm-size"):
        model_workers._check_shared_memory(1 << 50)


def test_several_gpus_need_shared_memory(tiny_judge: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: the check made for every judge, or for none."""
    monkeypatch.setattr(model_workers, "_PARALLEL_SHARED_MEMORY", 1 << 50)
    judge = load_config(None, {"judge": {"model": str(tiny_judge)}}).judge
    for count, fails in ((1, False), (2, True)):
        signal = Difficulty.of(judge, load_config(None, {"workers": {"tensor_parallel": count}}).workers)
        with pytest.raises(S2RError) if fails else nullcontext():
            signal.check_node()
