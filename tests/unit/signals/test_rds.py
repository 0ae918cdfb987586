"""RDS+ against transformers and NumPy; what is no query set; what the pool has of the queries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from s2r_ray.config import load_config
from s2r_ray.errors import UsageError
from s2r_ray.signals.base import Status, Subject
from s2r_ray.signals.rds import Rds
from s2r_ray.storage import Place
from s2r_ray.store import ScoreStore
from s2r_ray.tables import read_own
from s2r_ray.worker import score_all, score_table
from tests.fakes import write_judge, write_queries

SAMPLES = [
    ("1 + 1 = ?", "So it is 2. "),
    ("Why?", "<think>\nWait. " + "Then what is left? " * 60 + "\n</think>\n\nBecause."),
    ("解方程", "x"),
    ("1 + 1 = ?", "So it is 2. " * 9),
]


def embedded(model_dir: str, question: str, response: str) -> np.ndarray:
    """By the book: all states of one text, alone, in float64 from there on."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    turns = [{"role": "user", "content": question}]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    ids = ids + tokenizer.encode(response, add_special_tokens=False)
    with torch.inference_mode():
        states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0].double().numpy()
    weights = np.arange(1, len(ids) + 1)
    mean = (states * (weights / weights.sum())[:, None]).sum(axis=0)
    return np.asarray(mean / np.sqrt((mean**2).sum()))


def signal_of(model: Path, queries: Path, **student: Any) -> Rds:
    settings = {"model": str(model), "engine": "transformers", **student}
    return Rds.from_config(load_config(None, {"student": settings, "rds": {"queries": str(queries)}}))


def subjects() -> list[Subject]:
    return [Subject(bytes([number] * 16), *sample) for number, sample in enumerate(SAMPLES)]


@pytest.mark.parametrize("batch_tokens", [16, 4096])
def test_cosines_equal_those_by_the_book(batch_tokens: int, tmp_path: Path) -> None:
    """Catches: states before the last layer, weights that run the other way or over the padding, padding that other
    tokens see, a mean over the response alone, queries embedded otherwise than samples, a value that is not the
    largest."""
    model, queries = write_judge(tmp_path), write_queries(tmp_path)
    signal = signal_of(model, queries, batch_tokens=batch_tokens)
    signal.open()
    found = score_all(signal, subjects())
    asked = [json.loads(line) for line in queries.read_text().splitlines()]
    near = np.stack([embedded(str(model), query["question"], query["response"]) for query in asked])
    expected = np.stack([embedded(str(model), *sample) for sample in SAMPLES]) @ near.T
    assert found.vectors is not None
    assert found.vectors == pytest.approx(expected, abs=2e-6)
    assert found.values == pytest.approx(expected.max(axis=1), abs=2e-6)
    assert np.ptp(expected) > 0.1, "samples that are all alike would make this comparison empty"
    store = ScoreStore.of(Place.of(tmp_path), signal)
    store.append(score_table(signal, subjects(), found))
    rows = read_own(store.place.child(*store.parts())).to_pylist()
    assert [np.frombuffer(row["vector"], "<f4").max() for row in rows] == [row["value"] for row in rows]


def test_what_has_no_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a sample that is cut in silence, states that are not numbers ranked, a neighbour that loses its value
    with it."""
    signal = signal_of(write_judge(tmp_path), write_queries(tmp_path), max_tokens=200)
    signal.open()
    plain = signal.engine.weighted_means

    def spoilt(prompts: Any) -> Any:
        means = plain(prompts)
        means[-1] = np.nan
        return means

    monkeypatch.setattr(signal.engine, "weighted_means", spoilt)
    found = signal.score(subjects())
    assert {place: fault.status for place, fault in found.faults.items()} == {1: Status.TOO_LONG, 3: Status.FAILED}
    assert found.faults[1].detail.endswith("tokens, at most 200")
    table = score_table(signal, subjects(), found)
    assert [vector is None for vector in table["vector"].to_pylist()] == [False, True, False, True]


def test_what_is_no_query_set_is_told(tmp_path: Path) -> None:
    """Catches: a run that finds out about its queries when it has indexed and loaded everything."""
    model = write_judge(tmp_path)
    empty, long = tmp_path / "empty.jsonl", tmp_path / "long.jsonl"
    empty.write_text("")
    long.write_text("".join(json.dumps({"question": "a", "response": "b " * times}) + "\n" for times in (1, 900, 800)))
    for rds, words in (
        ({}, r"set rds\.queries"),
        ({"queries": str(empty)}, r"rds\.queries: .*no rows"),
        ({"queries": str(tmp_path / "none")}, r"rds\.queries: .*no such place"),
        ({"queries": str(write_queries(tmp_path)), "question": "q"}, r"rds\.queries: .*no column 'q'; it has question"),
        ({"queries": str(write_queries(tmp_path)), "max_queries": 4}, r"rds\.queries: .*more than 4"),
        (
            {"queries": str(long)},
            r"2 of 3 are too long for the student, first a sample of 1,8\d\d tokens, at most 1,000",
        ),
    ):
        student = {"model": str(model), "engine": "transformers", "max_tokens": 1000}
        with pytest.raises(UsageError, match=words):
            Rds.from_config(load_config(None, {"student": student, "rds": rds}))
