"""From the columns of a pool to (id, question, traces, flags). Presets name common pools."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Annotated, Any, NamedTuple

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from s2r_ray.errors import UsageError
from s2r_ray.printable import brief, one_line


def _label_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", name):
        raise ValueError("a label's name has letters, digits, _ and -, at most 64 of them; write NAME: COLUMN")
    return name


Labels = dict[Annotated[str, AfterValidator(_label_name)], str]
"""Name of a label -> column of the pool. Names become parts of file names."""


class ChatMapping(BaseModel):
    """Where a list of chat turns lies and what its turns are called; the first exchange is taken."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    column: str = Field(description="A list of turns")
    role: str = Field("role", description="Field of a turn that says who speaks")
    content: str = Field("content", description="Field of a turn with what is said")
    user: tuple[str, ...] = Field(("user", "human"), description="Who asks")
    assistant: tuple[str, ...] = Field(("assistant", "gpt"), description="Who answers")


class Mapping(BaseModel):
    """Which column is what. Either `question` and `traces` (or `thinking`), or `chat`. Of flags there is one value per
    generation (a list) or per row."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str | None = Field(None, description="Without it a sample's id is the hash of its question and trace")
    question: tuple[str, ...] = Field(
        (), description="One column, or several as one text; all but the first are optional"
    )
    traces: str | None = Field(None, description="The response; text, or a list with one for each generation")
    thinking: str | None = Field(None, description="The reasoning, where it is kept apart from the response")
    chat: ChatMapping | None = Field(None, description="A list of chat turns, in place of question and traces")
    verified: str | None = Field(None, description="Flag: the answer is right; null: not checked")
    complete: str | None = Field(None, description="Flag: the trace is finished; null: not checked")
    finish_reason: str | None = Field(None, description="Why the generation ended; null: not checked")
    labels: Labels = Field(default_factory=dict, description="Name: column, for report and strata")
    answer: str | None = Field(None, description="The reference answer, for exports; a file may lack it")

    @model_validator(mode="before")
    @classmethod
    def _one_question_column(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("question"), str):
            return {**data, "question": (data["question"],)}
        return data

    @model_validator(mode="after")
    def _either_columns_or_chat(self) -> Mapping:
        by_column = bool(self.question) and (self.traces is not None or self.thinking is not None)
        if by_column == (self.chat is not None):
            raise ValueError("a mapping needs either question and traces (or thinking), or chat; not both")
        return self

    def columns(self) -> tuple[str, ...]:
        """The columns that a run reads, each once."""
        named = [self.id, *self.question, self.traces, self.thinking, self.chat.column if self.chat else None]
        flags = [self.verified, self.complete, self.finish_reason, *self.labels.values()]
        return tuple(dict.fromkeys(name for name in [*named, *flags] if name))

    def trace_columns(self) -> tuple[str, ...]:
        """The columns of which traces are made, and nothing else is."""
        found = [name for name in (self.traces, self.thinking) if name]
        others = self.model_copy(update={"traces": None, "thinking": None}).columns()
        return tuple(name for name in found if name not in others)

    def optional(self) -> tuple[str, ...]:
        """Columns that a file may lack: labels, and parts of the question after the first, as Alpaca's `input`."""
        return (*self.question[1:], *self.labels.values())

    def texts_only(self) -> Mapping:
        """The same without what only guards and strata look at."""
        texts = {name: getattr(self, name) for name in ("question", "traces", "thinking", "chat", "answer")}
        return Mapping.model_validate(texts)

    def check(self, found: Sequence[str], where: str) -> None:
        """Compare with a file's columns.

        Raises:
            UsageError: a column is missing; says which columns there are and what was wanted.
        """
        missing = [name for name in self.columns() if name not in found and name not in self.optional()]
        if missing:
            raise UsageError(
                f"{where}: column {', '.join(map(repr, missing))} not found. "
                f"The file has: {one_line(', '.join(found))}. The mapping wants: {', '.join(self.columns())}. "
                "Choose another --preset or set `mapping` in the configuration file."
            )


class Trace(NamedTuple):
    """One generation of a row, not yet checked: values are whatever the file holds, text is `str` or `Utf8`.

    `generation` is the position in the row's list. A flag is None when the mapping has no column for it, and
    `MISSING` when there is a column but no value for this generation.
    """

    generation: int
    response: Any
    thinking: Any
    verified: Any
    complete: Any
    finish_reason: Any


MISSING = object()
"""Stands for a flag whose column exists but has no value: it counts as not passed."""


@dataclass(frozen=True)
class Record:
    """One row of a pool: its number in the file, question and traces, unchecked.

    `fault` says which lists of the row differ in length: nobody can tell then which verdict goes with which trace.
    """

    row: int
    id: Any
    question: Any
    traces: tuple[Trace, ...]
    labels: dict[str, str | None]
    fault: str | None = None


def records(columns: dict[str, list[Any]], first_row: int, mapping: Mapping) -> Iterator[Record]:
    """The rows of one batch; `columns` maps each column of `mapping.columns()` to values of equal length."""
    rows = len(next(iter(columns.values()), []))
    for position in range(rows):
        values = {name: column[position] for name, column in columns.items()}
        question, responses, thinking = _texts(values, mapping)
        yield Record(
            row=first_row + position,
            id=values[mapping.id] if mapping.id else None,
            question=question,
            traces=_traces(responses, thinking, values, mapping),
            labels={label: label_text(values[name]) for label, name in mapping.labels.items()},
            fault=_uneven(values, mapping),
        )


def _uneven(values: dict[str, Any], mapping: Mapping) -> str | None:
    """Lists of one value per generation that are not equally long. A flag list without values is no flag at all."""
    if mapping.chat is not None:
        return None
    lists = {name: values[name] for name in (mapping.traces, mapping.thinking) if name}
    flags = {name: values[name] for name in (mapping.verified, mapping.complete, mapping.finish_reason) if name}
    lists |= {name: value for name, value in flags.items() if not isinstance(value, list) or value}
    found = {name: len(value) for name, value in lists.items() if isinstance(value, list)}
    if len(set(found.values())) < 2:
        return None
    return ", ".join(f"{name} has {count}" for name, count in found.items()) + " values"


def _texts(values: dict[str, Any], mapping: Mapping) -> tuple[Any, list[Any], list[Any]]:
    """(question, responses, reasoning per response); a scalar response is a list of one."""
    if mapping.chat is not None:
        question, response = _first_exchange(values[mapping.chat.column], mapping.chat)
        return question, [response], [None]
    question = question_of(values, mapping)
    thinking = _as_list(values[mapping.thinking]) if mapping.thinking else []
    responses = _as_list(values[mapping.traces]) if mapping.traces else [None] * len(thinking)
    generations = max(len(responses), len(thinking))
    return question, _padded(responses, generations), _padded(thinking, generations)


def question_of(values: dict[str, Any], mapping: Mapping) -> Any:
    """The question of a row, unchecked."""
    if mapping.chat is not None:
        return _first_exchange(values[mapping.chat.column], mapping.chat)[0]
    parts = [values[name] for name in mapping.question]
    return parts[0] if len(parts) == 1 else _joined(parts)


def _first_exchange(turns: Any, chat: ChatMapping) -> tuple[Any, Any]:
    """The first user turn and the assistant turn after it; what is not there is None."""
    question = response = None
    for turn in turns if isinstance(turns, list) else []:
        role = turn.get(chat.role) if isinstance(turn, dict) else None
        if role in chat.user and question is None:
            question = turn.get(chat.content)
        elif role in chat.assistant and question is not None:
            response = turn.get(chat.content)
            break
    return question, response


def _joined(parts: list[Any]) -> Any:
    """Several question columns as one text; a part that is neither text nor empty is handed on to be refused."""
    for part in parts:
        if part is not None and not isinstance(part, str):
            return part
    return "\n\n".join(part for part in parts if part)


def _padded(values: list[Any], length: int) -> list[Any]:
    return [*values, *[None] * (length - len(values))]


def _as_list(value: Any) -> list[Any]:
    if isinstance(value, list):
        return value
    return [value]


def _traces(responses: list[Any], thinking: list[Any], values: dict[str, Any], mapping: Mapping) -> tuple[Trace, ...]:
    count = len(responses)
    flags = (_flags(values, column, count) for column in (mapping.verified, mapping.complete, mapping.finish_reason))
    return tuple(map(Trace, range(count), responses, thinking, *flags))


def _flags(values: dict[str, Any], column: str | None, count: int) -> list[Any]:
    """One for each generation."""
    if column is None:
        return [None] * count
    value = values[column]
    found = _padded(value[:count], count) if isinstance(value, list) else [value] * count
    return [MISSING if flag is None else flag for flag in found]


def label_text(value: Any) -> str | None:
    """A label in one line. Blank text and NaN, which is what some writers make of a null, are none."""
    if isinstance(value, str):
        return one_line(value) if value.strip() else None
    return None if value is None or (isinstance(value, float) and math.isnan(value)) else brief(value)


@cache
def presets() -> dict[str, Mapping]:
    """Every preset by name, from s2r_ray/presets/*.yaml."""
    folder = resources.files("s2r_ray") / "presets"
    found = [entry for entry in folder.iterdir() if entry.name.endswith(".yaml")]
    return {
        entry.name.removesuffix(".yaml"): Mapping.model_validate(yaml.safe_load(entry.read_text(encoding="utf-8")))
        for entry in sorted(found, key=lambda entry: entry.name)
    }


def preset(name: str) -> Mapping:
    """The preset of that name.

    Raises:
        UsageError: there is none; lists those there are.
    """
    known = presets()
    if name not in known:
        raise UsageError(f"unknown preset {name!r}; expected one of: {', '.join(known)}")
    return known[name]
