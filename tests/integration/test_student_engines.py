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

TRACES = 12
LONGEST = 3900
TOLERANCE = 1e-3
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


def judged(names: Sequence[str], student: dict[str, Any], samples: Sequence[tuple[str, str]]) -> list[Scores]:
    signals: list[Any] = [SIGNALS[name](load_config(None, {"student": student})) for name in names]
    signals[0].open()
    for signal in signals[1:]:  # one engine for both: starting one takes most of this test's time
        signal.encoder, signal.engine = signals[0].encoder, signals[0].engine
    return [signal.score([Subject(b"", *sample) for sample in samples]) for signal in signals]


def expected(model_dir: str, question: str, response: str) -> dict[str, float]:
    """The four values by the book: full logits of the whole text, no cache, no pieces."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    turns = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    answer = tokenizer.encode(response, add_special_tokens=False)

    def of(ids: list[int], start: int) -> tuple[np.ndarray, np.ndarray]:
        with torch.inference_mode():
            logits = model(torch.tensor([ids])).logits[0, start - 1 : -1].double()
        said = logits.log_softmax(-1)
        own = said.gather(-1, torch.tensor(ids[start:])[:, None])
        return -own[:, 0].numpy(), 1 + (said > own).sum(-1).numpy()

    surprisal, ranks = of([*prompt, *answer], len(prompt))
    alone, _ = of(answer, 1)
    return {
        "surprisal": surprisal.mean(),
        "perplexity": np.exp(surprisal.mean()),
        "rsr": np.minimum(ranks, 100).sum() / surprisal.sum(),
        "ifd": surprisal[1:].mean() / alone.mean(),
    }


@pytest.mark.engine
@pytest.mark.parametrize("engine", ["vllm", "transformers"])
@pytest.mark.parametrize("which", ["trained", "random"])
def test_values_are_exact(engine: str, which: str, samples: list[tuple[str, str]], tmp_path: Path) -> None:
    """Catches: probabilities one token off, the question's tokens among them, tokens lost or counted twice between
    pieces, ranks from zero. A piece is far shorter than a trace here."""
    model = str(EMBEDDED_JUDGE if which == "trained" else write_judge(tmp_path, context=4096, spread=20))
    student = {"model": model, "engine": engine, "batch_tokens": 200}
    surprisal, ifd = in_own_process(judged, ["surprisal", "ifd"], student, samples)
    assert surprisal.faults.keys() == ifd.faults.keys()
    fit = [position for position in range(len(samples)) if position not in surprisal.faults]
    assert len(fit) > TRACES / 2
    for position in fit:
        for name, value in expected(model, *samples[position]).items():
            found = {"surprisal": surprisal.values, "ifd": ifd.values, **surprisal.extras}[name][position]
            assert found == pytest.approx(value, rel=TOLERANCE), (name, position)
    assert np.ptp(surprisal.extras["rsr"][fit]) > 0.1, "a constant student would make this comparison empty"


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
    model = str(write_judge(tmp_path, context=32_768, vocabulary=VOCABULARY))
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
