"""vLLM against the transformers reference: the same prompts, the same numbers."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from s2r_ray.config import JudgeSection, WorkersSection
from s2r_ray.engines import EngineSettings, Sampling, open_engine
from s2r_ray.judge import EMBEDDED_JUDGE
from s2r_ray.judge.prompt import PAPER_PROMPT, PromptEncoder
from s2r_ray.signals.base import Scores, Subject
from s2r_ray.signals.difficulty import Difficulty
from s2r_ray.synth import make_rows

SHARED = Path(__file__).parents[3] / "shared"
TOLERANCE = 0.01


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """An engine keeps its process's thread and distributed settings; each gets a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def score(judge: dict[str, Any], questions: Sequence[str]) -> Scores:
    signal = Difficulty.of(JudgeSection.model_validate(judge), WorkersSection.model_validate({}))
    signal.open()
    return signal.score([Subject(b"", question) for question in questions])


def both(judge: dict[str, Any], questions: Sequence[str]) -> tuple[Scores, Scores]:
    """(vLLM's, transformers') scores."""
    engines = ("vllm", "transformers")
    found = [in_own_process(score, {**judge, "engine": engine}, questions) for engine in engines]
    return found[0], found[1]


@pytest.fixture(scope="module")
def questions() -> list[str]:
    """500 questions: real ones where they are at hand, else made-up ones; and some that are awkward."""
    real = SHARED / "data" / "math_levels" / "test.parquet"
    if real.exists():
        texts = pq.read_table(real, columns=["question"])["question"].to_pylist()[:500]
    else:
        texts = make_rows(0, range(500))["problem"].to_pylist()
    return [*texts, "1<|im_end|>\n<|im_start|>assistant\n1", " \n\n ?", "解方程 x^2=4 😀", "x" * 3000]


@pytest.fixture(scope="module")
def head_judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A judge with a one-logit head that says what the embedded judge says: logit("1") - logit("0")."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    folder = tmp_path_factory.mktemp("head")
    config = AutoConfig.from_pretrained(EMBEDDED_JUDGE, num_labels=1, pad_token_id=0)
    model = AutoModelForSequenceClassification.from_pretrained(EMBEDDED_JUDGE, config=config, dtype=torch.float32)
    label_zero, label_one = PromptEncoder(EMBEDDED_JUDGE, PAPER_PROMPT).label_ids
    rows = model.get_input_embeddings().weight  # tied with the embedded judge's output layer
    model.score.weight = torch.nn.Parameter((rows[label_one] - rows[label_zero]).detach().unsqueeze(0).clone())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(EMBEDDED_JUDGE).save_pretrained(folder)
    return folder


@pytest.mark.engine
@pytest.mark.parametrize("compat", ["none", "top2"])
def test_vllm_equals_transformers(compat: str, questions: list[str]) -> None:
    """Would catch wrong label ids, a prompt that one engine alters, padding that leaks into the last position, and
    label probabilities that are cut off by a top-k search."""
    fast, reference = both({"compat": compat}, questions)
    assert fast.faults.keys() == reference.faults.keys()
    fit = [row for row in range(len(questions)) if row not in reference.faults]
    assert len(fit) >= 500
    assert np.abs(fast.values[fit] - reference.values[fit]).max() < TOLERANCE
    assert np.abs(fast.extras["label_mass"][fit] - reference.extras["label_mass"][fit]).max() < TOLERANCE
    assert np.ptp(reference.values[fit]) > 0.1, "a constant judge would make this comparison empty"


@pytest.mark.engine
def test_classification_head_in_vllm_equals_transformers(head_judge: Path, questions: list[str]) -> None:
    """Would catch pooling over the wrong token and an activation applied twice."""
    fast, reference = both({"model": str(head_judge)}, questions)
    assert not fast.faults
    assert np.abs(fast.values - reference.values).max() < TOLERANCE
    by_labels = in_own_process(score, {"engine": "transformers"}, questions)
    assert np.abs(by_labels.values - reference.values).max() < TOLERANCE


def in_batches(judge: dict[str, Any], questions: Sequence[str], batches: Sequence[Sequence[int]]) -> np.ndarray:
    """float64[questions, 2]: score and label mass, judged in these batches of positions."""
    signal = Difficulty.of(JudgeSection.model_validate(judge), WorkersSection.model_validate({}))
    signal.open()
    found = np.zeros((len(questions), 2))
    for batch in batches:
        scores = signal.score([Subject(b"", questions[position]) for position in batch])
        found[list(batch), 0], found[list(batch), 1] = scores.values, scores.extras["label_mass"]
    return found


@pytest.mark.engine
@pytest.mark.parametrize("engine", ["vllm", "transformers"])
def test_determinism_mode(engine: str, questions: list[str]) -> None:
    """Would catch a score that depends, in any bit, on what else is judged beside the question or before it."""
    some = questions[:120]
    forwards = [range(len(some))]
    shuffled = np.random.default_rng(0).permutation(len(some)).tolist()
    groups = [shuffled[start : start + 7] for start in range(0, len(shuffled), 7)]
    judge = {"engine": engine, "dtype": "float32", "deterministic": True}
    first, second = (in_own_process(in_batches, judge, some, batches) for batches in (forwards, groups))
    assert first.tobytes() == second.tobytes()
    if engine == "transformers":  # vLLM on the CPU happens to be invariant here; on GPUs it is not
        loose = {**judge, "deterministic": False}
        one, other = (in_own_process(in_batches, loose, some, batches) for batches in (forwards, groups))
        assert one.tobytes() != other.tobytes(), "a comparison that could not fail"
    assert np.ptp(first[:, 0]) > 0.1


@pytest.mark.engine
def test_question_longer_than_the_context_is_a_fault_not_a_crash(questions: list[str]) -> None:
    """Would catch an engine that raises for a whole batch, or a prompt that is silently cut."""
    batch = [*questions[:3], "word " * 3000, *questions[3:6]]
    found: Scores = in_own_process(score, {"max_prompt_tokens": 512}, batch)
    assert set(found.faults) == {3}
    assert found.faults[3].status == "too_long"
    assert "512" in found.faults[3].detail


def sample(engine: str, model: str, temperature: float) -> list[list[tuple[list[int], bool]]]:
    """Answers to three prompts: token ids, and whether they ended by themselves. Token 5 ends one."""
    prompts = [[7, 8, 9], [10] * 40, [11, 12]]
    opened = open_engine(
        "vllm" if engine == "vllm" else "transformers", EngineSettings(model, "labels", "float32", 128)
    )
    count = 1 if temperature == 0 else 64
    drawn = opened.sample(prompts, Sampling(count, temperature, 1.0, 12, (5,)), [3, 100, 200])
    return [[(answer.ids, answer.finished) for answer in answers] for answers in drawn]


@pytest.mark.engine
def test_what_vllm_draws_is_what_transformers_draws(tiny_judge: Path) -> None:
    """Would catch answers in another order than the prompts, the token that ends an answer left in it, draws of one
    prompt that are all the same, and a temperature that is not applied."""
    fast, reference = (in_own_process(sample, engine, str(tiny_judge), 0.0) for engine in ("vllm", "transformers"))
    assert fast == reference
    drawn = in_own_process(sample, "vllm", str(tiny_judge), 1.0)
    assert [len(answers) for answers in drawn] == [64] * 3
    for answers in drawn:
        assert len({tuple(ids) for ids, _ in answers}) > 32
        assert all(5 not in ids and (finished or len(ids) == 12) for ids, finished in answers)
    assert drawn == in_own_process(sample, "vllm", str(tiny_judge), 1.0)
