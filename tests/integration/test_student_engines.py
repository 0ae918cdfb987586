"""Probabilities and ranks of traces in both engines, against transformers' full logits in float32."""

from __future__ import annotations

import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from s2r_ray.config import load_config
from s2r_ray.engines import EngineSettings, open_engine
from s2r_ray.judge import EMBEDDED_JUDGE
from s2r_ray.signals import SIGNALS
from s2r_ray.signals.base import Scores, Subject
from s2r_ray.synth import make_rows
from tests.fakes import write_judge, write_queries
from tests.integration.test_engines import SHARED, in_own_process

TRACES = 8
TOLERANCE = 1e-4
COSINES = 1e-4
LONG = 30_000
VOCABULARY = 16_384


@pytest.fixture(scope="module")
def samples() -> list[tuple[str, str]]:
    """Questions and traces: the shortest real ones where they are at hand, else made-up ones."""
    real = SHARED / "data" / "openr1_pool" / "part-00000.parquet"
    rows = pq.read_table(real).to_pylist() if real.exists() else make_rows(0, range(20)).to_pylist()
    found = [(row["problem"], trace) for row in rows for trace in row["generations"] if trace and trace.strip()]
    return sorted(found, key=lambda sample: len(sample[1]))[:TRACES]


def judged(engine: str, samples: Sequence[tuple[str, str]]) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """What the signals say, float64[samples] by name, and the ranks of each response's tokens."""
    settings = {"model": str(EMBEDDED_JUDGE), "engine": engine, "batch_tokens": 200}
    signals: list[Any] = [SIGNALS[name](load_config(None, {"student": settings})) for name in ("surprisal", "ifd")]
    surprisal, ifd = signals
    surprisal.open()
    ifd.encoder, ifd.engine = surprisal.encoder, surprisal.engine  # starting an engine takes most of the time
    scores = [signal.score([Subject(b"", *sample) for sample in samples]) for signal in signals]
    assert not any(found.faults for found in scores)
    ranks = [found.ranks for found in surprisal.ask(surprisal.encoder.encode(*zip(*samples, strict=True))).found]
    return {"surprisal": scores[0].values, "ifd": scores[1].values, **scores[0].extras}, ranks


@pytest.fixture(scope="module")
def expected(samples: list[tuple[str, str]]) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """The same by the book: full logits of the whole text, no cache, no pieces."""
    tokenizer = AutoTokenizer.from_pretrained(str(EMBEDDED_JUDGE))
    model = AutoModelForCausalLM.from_pretrained(str(EMBEDDED_JUDGE), dtype=torch.float32).eval()

    def of(ids: list[int], start: int) -> tuple[np.ndarray, np.ndarray]:
        with torch.inference_mode():
            logits = model(torch.tensor([ids])).logits[0, start - 1 : -1].double()
        said = logits.log_softmax(-1)
        own = said.gather(-1, torch.tensor(ids[start:])[:, None])
        return -own[:, 0].numpy(), 1 + (said > own).sum(-1).numpy()

    rows, places = [], []
    for question, response in samples:
        turns = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        answer = tokenizer.encode(response, add_special_tokens=False)
        surprisal, ranks = of([*prompt, *answer], len(prompt))
        alone, _ = of(answer, 1)
        rsr = np.minimum(ranks, 100).sum() / surprisal.sum()
        rows.append([surprisal.mean(), np.exp(surprisal.mean()), rsr, surprisal[1:].mean() / alone.mean()])
        places.append(ranks)
    return dict(zip(("surprisal", "perplexity", "rsr", "ifd"), np.array(rows).T, strict=True)), places


@pytest.mark.engine
@pytest.mark.parametrize("engine", ["vllm", "transformers"])
def test_values_are_exact(
    engine: str, samples: list[tuple[str, str]], expected: tuple[dict[str, np.ndarray], list[np.ndarray]]
) -> None:
    """Catches: probabilities one token off, the question's tokens among them, tokens lost or counted twice between
    pieces, ranks from zero. A piece is far shorter than a trace here."""
    values, ranks = in_own_process(judged, engine, samples)
    for name, right in expected[0].items():
        assert np.abs(values[name] / right - 1).max() < TOLERANCE, name
        assert np.ptp(right) > 10 * TOLERANCE * right.max(), "a constant student would make this comparison empty"
    found, right = np.concatenate(ranks), np.concatenate(expected[1])
    assert np.mean(found == right) > 0.98, "rounding swaps neighbours that are almost equally likely"
    assert len(np.unique(right)) > 100


def long_trace(engine: str, model: str) -> tuple[int, float, int]:
    """(tokens scored, their mean log-probability, how much the process's peak grew meanwhile in MiB)."""
    settings = EngineSettings(model, "student", "float32", 32_768, batch_tokens=512)
    loaded = open_engine("vllm" if engine == "vllm" else "transformers", settings)
    ids = np.random.default_rng(0).integers(0, VOCABULARY, LONG).tolist()
    loaded.token_scores([ids[:1000]], [1])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (found,) = loaded.token_scores([ids], [10])
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return len(found.logprobs), float(found.logprobs.mean()), grown >> 10


@pytest.mark.engine
@pytest.mark.parametrize("engine", ["vllm", "transformers"])
def test_a_trace_of_30_000_tokens(engine: str, tmp_path: Path) -> None:
    """Catches: the logits of a whole trace held at once, which would be 1,875 MiB in float32 here, and their
    logarithms as much again; keys and values that do not fit."""
    model = str(write_judge(tmp_path, context=32_768, vocabulary=VOCABULARY, width=64))
    scored, mean, grown = in_own_process(long_trace, engine, model)
    assert scored == LONG - 10
    assert -12 < mean < -8, "about the logarithm of the vocabulary: the model is random"
    assert grown < 1536


def cosines(student: dict[str, Any], queries: str, samples: Sequence[tuple[str, str]]) -> Scores:
    signal = SIGNALS["rds"](load_config(None, {"student": student, "rds": {"queries": queries}}))
    signal.open()
    return signal.score([Subject(b"", *sample) for sample in samples])


@pytest.mark.engine
def test_cosines_are_those_of_the_reference(samples: list[tuple[str, str]], tmp_path: Path) -> None:
    """Catches: states that vLLM brings to length one before they are averaged, those of one piece of a long text alone,
    or those of another prompt. What the reference gives is held against the formula in unit tests."""
    queries, found = str(write_queries(tmp_path)), []
    for engine in ("vllm", "transformers"):
        student = {"model": str(EMBEDDED_JUDGE), "engine": engine, "batch_tokens": 200}
        found.append(in_own_process(cosines, student, queries, samples))
    assert found[0].faults.keys() == found[1].faults.keys()
    fit = [position for position in range(len(samples)) if position not in found[0].faults]
    assert len(fit) > TRACES / 2
    assert found[0].vectors[fit] == pytest.approx(found[1].vectors[fit], abs=COSINES)
    assert np.ptp(found[1].vectors[fit]) > 0.1, "samples that are all alike would make this comparison empty"
