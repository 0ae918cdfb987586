"""Presets against a small file in each pool's own column layout, flags per generation, and what mistakes say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from s2r_ray.errors import UsageError
from s2r_ray.mapping import MISSING, ChatMapping, Mapping, Record, Trace, preset, presets, records
from s2r_ray.readers import Unit, read_unit
from s2r_ray.storage import Place


def rows_of(mapping: Mapping, *rows: dict[str, Any], first_row: int = 0) -> list[Record]:
    columns = {name: [row.get(name) for row in rows] for name in mapping.columns()}
    return list(records(columns, first_row, mapping))


def one(mapping: Mapping, **row: Any) -> Record:
    (record,) = rows_of(mapping, row)
    return record


def plain(generation: int, response: Any, thinking: Any = None) -> Trace:
    return Trace(generation, response, thinking, None, None, None)


# --- presets --------------------------------------------------------------------------------------

OPENR1 = {
    "problem": "Q",
    "solution": "S",
    "answer": "42",
    "problem_type": "Algebra",
    "question_type": "math-word-problem",
    "source": "olympiads",
    "uuid": "u-1",
    "is_reasoning_complete": [True, False],
    "generations": ["<think>a</think>b", "<think>c"],
    "correctness_math_verify": [True, False],
    "correctness_llama": None,
    "finish_reasons": ["stop", "length"],
    "correctness_count": 1,
    "messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "b"}],
}
CHINESE = {
    "instruction": "",
    "input": "Q",
    "output": "",
    "reasoning_content": "a",
    "content": "b",
    "repo_name": "coig/neo",
    "prompt_tokens_len": 3,
    "score": 10,
}
LIMO = {"question": "Q", "solution": "S", "answer": "42"}
S1K = {
    "solution": "S",
    "question": "Q",
    "cot_type": "math",
    "source_type": "qq8933/AIME",
    "metadata": "{}",
    "cot": None,
    "thinking_trajectories": ["a"],
    "attempt": "b",
}
S1K11 = {
    "question": "Q",
    "solution": "S",
    "cot_type": "math",
    "source_type": "qq8933/AIME",
    "metadata": "{}",
    "gemini_thinking_trajectory": "g",
    "gemini_attempt": "h",
    "deepseek_thinking_trajectory": "a",
    "deepseek_attempt": "b",
}
ALPACA = {"instruction": "Do this.", "input": "12", "output": "b"}
SHAREGPT = {
    "id": "x",
    "conversations": [
        {"from": "system", "value": "S"},
        {"from": "human", "value": "Q"},
        {"from": "gpt", "value": "b"},
        {"from": "human", "value": "Q2"},
        {"from": "gpt", "value": "c"},
    ],
}
MESSAGES = {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "b"}]}

EXAMPLES: dict[str, tuple[dict[str, Any], Record]] = {
    "openr1-math-220k": (
        OPENR1,
        Record(
            0,
            "u-1",
            "Q",
            (
                Trace(0, "<think>a</think>b", None, True, True, "stop"),
                Trace(1, "<think>c", None, False, False, "length"),
            ),
            {"source": "olympiads", "problem_type": "Algebra"},
        ),
    ),
    "chinese-deepseek-r1-distill-110k": (CHINESE, Record(0, None, "Q", (plain(0, "b", "a"),), {"source": "coig/neo"})),
    "limo": (LIMO, Record(0, None, "Q", (plain(0, "S"),), {})),
    "s1k": (S1K, Record(0, None, "Q", (plain(0, "b", "a"),), {"source": "qq8933/AIME", "problem_type": "math"})),
    "s1k-1.1": (S1K11, Record(0, None, "Q", (plain(0, "b", "a"),), {"source": "qq8933/AIME", "problem_type": "math"})),
    "alpaca": (ALPACA, Record(0, None, "Do this.\n\n12", (plain(0, "b"),), {})),
    "sharegpt": (SHAREGPT, Record(0, None, "Q", (plain(0, "b"),), {})),
    "messages": (MESSAGES, Record(0, None, "Q", (plain(0, "b"),), {})),
}


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
@pytest.mark.parametrize("name", sorted(presets()))
def test_presets(name: str, kind: str, tmp_path: Path) -> None:
    """Catches: a preset whose columns are not those of its data set, and a new preset without an example here."""
    row, expected = EXAMPLES[name]
    path = tmp_path / f"x.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist([row]), path)
    else:
        path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    mapping = preset(name)
    unit = Unit(0, path.name, path.stat().st_size, "1")
    (batch,) = read_unit(Place.of(tmp_path), unit, mapping.columns(), mapping.check)
    assert list(records(batch.columns, batch.first_row, mapping)) == [expected]


def test_real_pools_fit_their_presets(shared: Any) -> None:
    """Catches: a preset that fits only this file's idea of the data."""
    found = pq.read_schema(shared("data", "openr1_pool", "part-00000.parquet")).names
    preset("openr1-math-220k").check(found, "pool")
    with shared("data", "limo.jsonl").open(encoding="utf-8") as lines:
        preset("limo").check(list(json.loads(next(lines))), "limo")


def test_unknown_preset() -> None:
    """Catches: a traceback, or a message that does not say what there is."""
    with pytest.raises(UsageError, match=r"unknown preset 'openr2'; expected one of: alpaca, .*openr1-math-220k"):
        preset("openr2")


# --- rows -----------------------------------------------------------------------------------------

LISTS = Mapping(question=("q",), traces="t", verified="v", complete="c", finish_reason="f")


def test_flags_per_generation() -> None:
    """Catches: one generation's verdict read for another, and a missing verdict that counts as a good one."""
    record = one(LISTS, q="Q", t=["a", "b", "c"], v=[True, None], c=None, f=["stop"])
    assert [trace.verified for trace in record.traces] == [True, MISSING, MISSING]
    assert [trace.complete for trace in record.traces] == [MISSING] * 3
    assert [trace.finish_reason for trace in record.traces] == ["stop", MISSING, MISSING]


def test_flags_per_row() -> None:
    """Catches: a row's single verdict applied to its first trace only."""
    record = one(LISTS, q="Q", t=["a", "b"], v=False, c=True, f="stop")
    assert [(trace.verified, trace.complete, trace.finish_reason) for trace in record.traces] == [
        (False, True, "stop")
    ] * 2


def test_more_flags_than_traces() -> None:
    """Catches: traces made up from verdicts."""
    assert len(one(LISTS, q="Q", t=["a"], v=[True, True, True], c=True, f="stop").traces) == 1
    assert one(LISTS, q="Q", t=[], v=[True], c=[True], f=["stop"]).traces == ()


def test_flags_without_a_column_are_not_checked() -> None:
    """Catches: «no such column» mixed up with «no verdict»."""
    (trace,) = one(Mapping(question=("q",), traces="t"), q="Q", t="a").traces
    assert (trace.verified, trace.complete, trace.finish_reason) == (None, None, None)


def test_thinking_and_responses_of_different_lengths() -> None:
    """Catches: a trace that disappears because its list is the longer one."""
    mapping = Mapping(question=("q",), traces="t", thinking="h")
    assert one(mapping, q="Q", t="b", h=["x", "y"]).traces == (plain(0, "b", "x"), plain(1, None, "y"))
    assert one(mapping, q="Q", t=["b", "c"], h="x").traces == (plain(0, "b", "x"), plain(1, "c"))
    only = Mapping(question=("q",), thinking="h")
    assert one(only, q="Q", h=["x", "y"]).traces == (plain(0, None, "x"), plain(1, None, "y"))


def test_several_question_columns() -> None:
    """Catches: «None» in a question, blank lines for empty columns, a number that becomes text unseen."""
    mapping = Mapping(question=("a", "b", "c"), traces="t")
    assert one(mapping, a="x", b=None, c="z", t="r").question == "x\n\nz"
    assert one(mapping, a="", b="y", c="", t="r").question == "y"
    assert one(mapping, a=None, b=None, c=None, t="r").question == ""
    assert one(mapping, a="x", b=7, c="z", t="r").question == 7


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ([{"role": "assistant", "content": "hello"}, {"role": "user", "content": "Q"}], ("Q", None)),
        ([{"role": "user", "content": "Q"}], ("Q", None)),
        ([{"role": "system", "content": "S"}], (None, None)),
        ([{"role": "user"}, {"role": "user", "content": "Q2"}, {"role": "assistant", "content": "b"}], ("Q2", "b")),
        ([{"role": "user", "content": "Q"}, {}, None, 3, {"role": ["x"]}, {"role": "gpt", "content": 1}], ("Q", 1)),
        ([], (None, None)),
        (None, (None, None)),
        ("Q", (None, None)),
        ([["user", "Q"]], (None, None)),
    ],
)
def test_odd_chats(turns: Any, expected: tuple[Any, Any]) -> None:
    """Catches: an exception on a malformed chat, which would lose its whole file, or an answer to another turn."""
    record = one(preset("messages"), messages=turns)
    assert (record.question, record.traces[0].response) == expected
    assert len(record.traces) == 1


def test_chat_of_other_names() -> None:
    """Catches: role names fixed in code."""
    mapping = Mapping(chat=ChatMapping(column="c", role="r", content="t", user=("U",), assistant=("A",)))
    record = one(mapping, c=[{"r": "U", "t": "Q"}, {"r": "A", "t": "b"}])
    assert (record.question, record.traces[0].response) == ("Q", "b")


def test_row_numbers_and_labels() -> None:
    """Catches: row numbers that start anew in each batch; a label that is not text."""
    mapping = Mapping(question=("q",), traces="t", id="i", labels={"source": "s"})
    found = rows_of(mapping, {"q": "Q", "t": "a", "i": 1, "s": 7}, {"q": "Q", "t": "a"}, first_row=1000)
    numbered = [(record.row, record.id, record.labels["source"]) for record in found]
    assert numbered == [(1000, 1, "7"), (1001, None, None)]
    assert list(records({}, 0, mapping)) == []


# --- mistakes -------------------------------------------------------------------------------------


def test_missing_column() -> None:
    """Catches: a message that does not say what the file has and what was wanted."""
    with pytest.raises(UsageError) as caught:
        preset("limo").check(["problem", "solution", "text"], "pool/a.jsonl")
    said = str(caught.value)
    assert "pool/a.jsonl: column 'question' not found" in said
    assert "The file has: problem, solution, text." in said
    assert "The mapping wants: question, solution." in said


def test_columns_are_read_once() -> None:
    """Catches: a column named twice, which Parquet readers refuse, and one that is left out."""
    mapping = Mapping(id="q", question=("q", "r"), traces="t", verified="v", complete="v", labels={"source": "r"})
    assert mapping.columns() == ("q", "r", "t", "v")


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"question": "q"},
        {"traces": "t"},
        {"question": "q", "traces": "t", "chat": {"column": "c"}},
        {"question": "q", "traces": "t", "verdict": "v"},
        {"question": "q", "traces": "t", "labels": {"../colour": "c"}},
        {"chat": {"columns": "c"}},
    ],
)
def test_wrong_mappings(wrong: dict[str, Any]) -> None:
    """Catches: a mapping without question or trace, or with a misspelt key, that is taken as it is."""
    with pytest.raises(ValidationError):
        Mapping.model_validate(wrong)
