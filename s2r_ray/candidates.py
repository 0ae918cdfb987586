"""Which traces of a row may be ranked, and why the others may not."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from enum import StrEnum
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from s2r_ray.injection import addresses_judge
from s2r_ray.mapping import MISSING, Record, Trace
from s2r_ray.printable import brief, one_line
from s2r_ray.rethinking import count_rethinking
from s2r_ray.tokens import TokenCounter
from s2r_ray.trace import reasoning, without_repeats

Choice = Literal["first", "longest", "all"]


class Reason(StrEnum):
    """Why a trace is not ranked. The values appear in excluded.parquet."""

    UNREADABLE_FILE = "unreadable_file"
    UNREADABLE_ROW = "unreadable_row"
    MISMATCHED_LISTS = "mismatched_lists"
    BAD_ID = "bad_id"
    NOT_A_STRING = "not_a_string"
    TOO_LARGE = "too_large"
    EMPTY = "empty"
    UNVERIFIED = "unverified"
    INCOMPLETE = "incomplete"
    FINISH_REASON = "finish_reason"
    OVER_CUTOFF = "over_cutoff"
    NOT_CHOSEN = "not_chosen"
    DUPLICATE_SAMPLE = "duplicate_sample"


ROW_FAULTS = (
    Reason.UNREADABLE_ROW,
    Reason.MISMATCHED_LISTS,
    Reason.BAD_ID,
    Reason.NOT_A_STRING,
    Reason.TOO_LARGE,
    Reason.EMPTY,
)
"""Reasons that say that the data is broken. The others are decisions: guards, duplicates, the choice of a trace."""

_REASONS_TOLD = 5
_QUESTION_CHARACTERS = 1 << 20
_ID_CHARACTERS = 1024
_EXACT_FLOAT = 2.0**53


def told_reasons(counts: Mapping[str, int]) -> str:
    """`unverified 2,111, not_chosen 405`: rows by reason, the most common first."""
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    more = [f"{sum(count for _, count in most[_REASONS_TOLD:]):,} for other reasons"] if most[_REASONS_TOLD:] else []
    return ", ".join([f"{reason} {count:,}" for reason, count in most[:_REASONS_TOLD]] + more)


class Guards(BaseModel):
    """What a trace must pass before it is ranked. A flag that the pool has no column for is not checked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    verified: bool = Field(True, description="Drop traces whose answer is not verified")
    complete: bool = Field(True, description="Drop traces marked as unfinished")
    finish_reasons: tuple[str, ...] = Field(("stop",), description="Finish reasons to keep; empty keeps all")
    cutoff_tokens: int = Field(
        16384, ge=0, description="Most tokens of question and response together; 0 keeps all lengths"
    )


@dataclass(frozen=True)
class Entry:
    """One trace in the pool index. Lengths are in tokens of the student's tokenizer, None where not counted.

    `rethinking_words` are those of a candidate, counted after repeat removal as `trace_tokens_unique` is (see
    `count_rethinking`). `reason` is None for a candidate. `generation` is -1 for a row that has no trace at all.
    `addresses_judge` marks questions that speak to the judge (see `injection`), None where there is no question.
    """

    sample_id: str
    row: int
    generation: int
    question_key: bytes | None = None
    sample_key: bytes | None = None
    question_tokens: int | None = None
    response_tokens: int | None = None
    trace_tokens: int | None = None
    trace_tokens_unique: int | None = None
    trace_characters: int | None = None
    rethinking_words: int | None = None
    addresses_judge: bool | None = None
    reason: str | None = None
    detail: str | None = None
    labels: Mapping[str, str | None] = field(default_factory=dict)


def content_key(*texts: str) -> bytes:
    """16 bytes that stand for these texts, in this order: BLAKE2b over length-prefixed UTF-8."""
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.digest()


def entries(records: Sequence[Record], guards: Guards, choice: Choice, counter: TokenCounter) -> list[Entry]:
    """One entry per trace of these rows, in order; a row without traces has one too.

    Guards come first, then the choice among the traces of a row that passed: so a row is lost only if none of its
    traces is fit. `first` takes the first that passed, `longest` the one with most tokens after repeat removal
    (the first of equals), `all` every one.
    """
    rows = [_check_flags(record, guards) for record in records]
    checked = [item for row in rows for item in row]
    measured = _measure(checked, guards, counter)
    result: list[Entry] = []
    for row in rows:
        result.extend(_choose([next(measured) for _ in row], choice))
    fit = [place for place, entry in enumerate(result) if entry.reason is None]
    words = count_rethinking([checked[place].unique for place in fit])
    for place, count in zip(fit, words.tolist(), strict=True):
        result[place] = replace(result[place], rethinking_words=count)
    return result


@dataclass(frozen=True)
class _Checked:
    """An entry on its way, with the texts still needed to measure it."""

    entry: Entry
    question: str = ""
    response: str = ""
    trace: str = ""
    unique: str = ""


def _check_flags(record: Record, guards: Guards) -> list[_Checked]:
    name, bad_id = _id(record.id)
    question = record.question
    base = Entry(
        sample_id=f"row-{record.row}" if name is None else name,
        row=record.row,
        generation=-1,
        labels=record.labels,
    )
    fault: tuple[Reason | None, str | None] = (None, None)
    if not record.traces:
        fault = Reason.EMPTY, "no trace"
    elif record.fault:
        fault = Reason.MISMATCHED_LISTS, one_line(record.fault)
    elif bad_id:
        fault = Reason.BAD_ID, bad_id
    else:
        fault = _text_fault("question", question, _QUESTION_CHARACTERS)
    if fault[0]:
        generations = [trace.generation for trace in record.traces] or [-1]
        return [_Checked(_left_out(_numbered(base, generation), fault[0], fault[1])) for generation in generations]
    base = replace(base, question_key=content_key(question), addresses_judge=addresses_judge(question))
    return [_check_trace(question, trace, base, guards, by_content=name is None) for trace in record.traces]


def _check_trace(question: str, trace: Trace, base: Entry, guards: Guards, *, by_content: bool) -> _Checked:
    response = response_text(trace)
    base = _numbered(base, trace.generation)
    fault, detail = _text_fault("trace", response, None)
    if fault:
        return _Checked(_left_out(base, fault, detail))
    key = content_key(question, response)
    base = replace(base, sample_id=key.hex() if by_content else base.sample_id, sample_key=key)
    fault, detail = _flag_fault(trace, guards)
    if fault:
        return _Checked(_left_out(base, fault, detail))
    span = trace.thinking if isinstance(trace.thinking, str) and trace.thinking else reasoning(response)
    if not span.strip():
        return _Checked(_left_out(base, Reason.EMPTY, "trace is blank"))
    return _Checked(base, question, response, span, without_repeats(span))


def _numbered(base: Entry, generation: int) -> Entry:
    """`id#generation`; without an id the row number stands in, until there is content to name it by."""
    return replace(base, generation=generation, sample_id=f"{base.sample_id}#{max(generation, 0)}")


def _id(value: Any) -> tuple[str | None, str | None]:
    """(the id as text, what is wrong with it). A null, blank or NaN id is none: the content names the sample then.

    Whole numbers in a column of floats (what some writers make of integers beside nulls) lose their ".0"; where a
    float no longer tells neighbouring numbers apart it is no id.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None, None
    if isinstance(value, str):
        if len(value) > _ID_CHARACTERS:
            return None, f"id has {len(value):,} characters, at most {_ID_CHARACTERS:,}"
        return (value, None) if value.strip() else (None, None)
    if isinstance(value, float):
        exact = abs(value) < _EXACT_FLOAT
        return (
            (str(int(value) if value.is_integer() else value), None) if exact else (None, f"id is {value}, not exact")
        )
    if isinstance(value, int | Decimal | UUID) and not isinstance(value, bool):
        return str(value), None
    return None, f"id is {type(value).__name__}"


def response_text(trace: Trace) -> Any:
    """What a student would learn to write: reasoning kept apart comes before the answer, between thinking marks.

    A string, or, where the values do not make one, the value that is at fault.
    """
    if trace.thinking is None:
        return trace.response
    if not isinstance(trace.thinking, str) or not isinstance(trace.response, str | None):
        return trace.thinking if not isinstance(trace.thinking, str) else trace.response
    return f"<think>\n{trace.thinking}\n</think>\n\n{trace.response or ''}"


def _text_fault(name: str, text: Any, most: int | None) -> tuple[Reason | None, str | None]:
    """What is wrong with a text of at most so many characters."""
    if not isinstance(text, str):
        return Reason.NOT_A_STRING, f"{name} is {'null' if text is None else type(text).__name__}"
    if most is not None and len(text) > most:
        return Reason.TOO_LARGE, f"{name} has {len(text):,} characters, at most {most:,}"
    return (None, None) if text.strip() else (Reason.EMPTY, f"{name} is blank")


def _flag_fault(trace: Trace, guards: Guards) -> tuple[Reason | None, str | None]:
    if guards.verified and trace.verified is not None and trace.verified is not True:
        return Reason.UNVERIFIED, "no verdict" if trace.verified is MISSING else f"verified is {brief(trace.verified)}"
    if guards.complete and trace.complete is not None and trace.complete is not True:
        return Reason.INCOMPLETE, "no value" if trace.complete is MISSING else f"complete is {brief(trace.complete)}"
    # A pool without finish reasons for a row (OpenR1 has null there for locally generated rows) is not at fault.
    if guards.finish_reasons and trace.finish_reason not in (None, MISSING, *guards.finish_reasons):
        return Reason.FINISH_REASON, f"finish reason is {brief(trace.finish_reason)}"
    return None, None


def _measure(checked: Sequence[_Checked], guards: Guards, counter: TokenCounter) -> Any:
    """The entries in order, those still in the running with their lengths and the cutoff applied."""
    fit = [item for item in checked if item.entry.reason is None]
    questions, responses, traces = (
        counter.count([getattr(item, name) for item in fit]) for name in ("question", "response", "trace")
    )
    unique = traces.copy()
    repetitive = [place for place, item in enumerate(fit) if item.unique is not item.trace]
    unique[repetitive] = counter.count([fit[place].unique for place in repetitive])
    measured = zip(*(lengths.tolist() for lengths in (questions, responses, traces, unique)), strict=True)
    for item in checked:
        if item.entry.reason is not None:
            yield item.entry
            continue
        question_tokens, response_tokens, trace_tokens, trace_tokens_unique = next(measured)
        entry = replace(
            item.entry,
            question_tokens=question_tokens,
            response_tokens=response_tokens,
            trace_tokens=trace_tokens,
            trace_tokens_unique=trace_tokens_unique,
            trace_characters=len(item.trace),
        )
        total = question_tokens + response_tokens
        if guards.cutoff_tokens and total > guards.cutoff_tokens:
            entry = _left_out(entry, Reason.OVER_CUTOFF, f"{total} tokens, at most {guards.cutoff_tokens}")
        yield entry


def _choose(row: list[Entry], choice: Choice) -> list[Entry]:
    fit = [entry for entry in row if entry.reason is None]
    if choice == "all" or len(fit) <= 1:
        return row
    chosen = fit[0] if choice == "first" else max(fit, key=lambda entry: entry.trace_tokens_unique or 0)
    detail = f"generation {chosen.generation} of the row was chosen"
    return [entry if entry.reason or entry is chosen else _left_out(entry, Reason.NOT_CHOSEN, detail) for entry in row]


def _left_out(entry: Entry, reason: Reason, detail: str | None) -> Entry:
    return replace(entry, reason=str(reason), detail=detail)
