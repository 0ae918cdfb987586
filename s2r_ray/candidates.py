"""Which traces of a row may be ranked, and why the others may not."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from s2r_ray.injection import addresses_judge
from s2r_ray.mapping import MISSING, Record, Trace, label_text
from s2r_ray.pieces import Terms, response_terms, unique_terms
from s2r_ray.printable import brief, one_line
from s2r_ray.rethinking import count_rethinking
from s2r_ray.tokens import TokenCounter
from s2r_ray.trace import reasoning_span, steps
from s2r_ray.utf8 import Utf8

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
    FILTERED = "filtered"


ROW_FAULTS = (
    Reason.UNREADABLE_ROW,
    Reason.MISMATCHED_LISTS,
    Reason.BAD_ID,
    Reason.NOT_A_STRING,
    Reason.TOO_LARGE,
    Reason.EMPTY,
)
"""Reasons that say that the data is broken. The others are decisions: guards, duplicates, the choice of a trace,
filters."""

_REASONS_TOLD = 5
_QUESTION_CHARACTERS = 1 << 20
_ID_CHARACTERS = 1024
_EXACT_FLOAT = 2.0**53
_THINK = "<think>\n"


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


@dataclass(slots=True)
class Entry:
    """One trace in the pool index; filled in step by step.

    Lengths are in tokens of the student's tokenizer, None where not counted.

    `rethinking_words` are those of a candidate, counted after repeat removal as `trace_tokens_unique` is (see
    `count_rethinking`). `reason` is None for a candidate. `generation` is -1 for a row that has no trace at all.
    `addresses_judge` marks questions that speak to the judge (see `injection`), None where there is no question.
    `verified`, `complete` and `finish_reason` are what the pool says of the trace, None where it says nothing; a flag
    is true where its value is just that.
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
    verified: bool | None = None
    complete: bool | None = None
    finish_reason: str | None = None
    reason: str | None = None
    detail: str | None = None
    labels: Mapping[str, str | None] = field(default_factory=dict)


def content_key(*texts: str | Utf8) -> bytes:
    """16 bytes that stand for these texts, in this order: BLAKE2b over length-prefixed UTF-8."""
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        data = text.data if isinstance(text, Utf8) else text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.digest()


def entries(records: Sequence[Record], guards: Guards, choice: Choice, counter: TokenCounter) -> list[Entry]:
    """One entry per trace of these rows, in order; a row without traces has one too.

    Guards come first, then the choice among the traces of a row that passed: so a row is lost only if none of its
    traces is fit. `first` takes the first that passed, `longest` the one with most tokens after repeat removal
    (the first of equals), `all` every one.
    """
    fit: list[_Fit] = []
    rows = [_check_row(record, guards, fit) for record in records]
    _measure(fit, guards, counter)
    for row in rows:
        _choose(row, choice)
    chosen = [item for item in fit if item.entry.reason is None]
    words = count_rethinking([item.unique() for item in chosen])
    for item, count in zip(chosen, words.tolist(), strict=True):
        item.entry.rethinking_words = count
    return [entry for row in rows for entry in row]


@dataclass(slots=True)
class _Fit:
    """An entry that is still in the running, with its texts. `span` is where in the response the trace is; `steps` are
    the trace's, `kept` each of them once."""

    entry: Entry
    question: str
    response: str
    span: tuple[int, int]
    trace: str
    steps: list[str]
    kept: list[str]

    def repeats(self) -> bool:
        return len(self.kept) < len(self.steps)

    def unique(self) -> str:
        """As `without_repeats` of the trace."""
        return "\n\n".join(self.kept) if self.repeats() else self.trace


def _check_row(record: Record, guards: Guards, fit: list[_Fit]) -> list[Entry]:
    """The entries of a row, unmeasured. Adds to `fit` those that have no reason so far."""
    name, bad_id = _id(record.id)
    sample_id = f"row-{record.row}" if name is None else name
    question = record.question
    fault: tuple[Reason | None, str | None] = (None, None)
    if not record.traces:
        fault = Reason.EMPTY, "no trace"
    elif record.fault:
        fault = Reason.MISMATCHED_LISTS, one_line(record.fault)
    elif bad_id:
        fault = Reason.BAD_ID, bad_id
    else:
        fault = _text_fault("question", question, _QUESTION_CHARACTERS)
    generations = [trace.generation for trace in record.traces] or [-1]
    row = [
        Entry(f"{sample_id}#{max(generation, 0)}", record.row, generation, labels=record.labels)
        for generation in generations
    ]
    if fault[0]:
        for entry in row:
            _leave_out(entry, *fault)
        return row
    key, addressing = content_key(question), addresses_judge(question)
    for entry, trace in zip(row, record.traces, strict=True):
        entry.question_key, entry.addresses_judge = key, addressing
        _check_trace(entry, question, trace, guards, fit, by_content=name is None)
    return row


def _check_trace(
    entry: Entry, question: str, trace: Trace, guards: Guards, fit: list[_Fit], *, by_content: bool
) -> None:
    response = response_text(trace)
    reason, detail = _text_fault("trace", response, None)
    if reason:
        return _leave_out(entry, reason, detail)
    entry.verified, entry.complete = _flag(trace.verified), _flag(trace.complete)
    entry.finish_reason = None if trace.finish_reason is MISSING else label_text(trace.finish_reason)
    reason, detail = _flag_fault(trace, guards)
    if reason and not by_content:  # most traces end here, and hashing them would cost more than reading them
        return _leave_out(entry, reason, detail)
    entry.sample_key = content_key(question, response)
    if by_content:
        entry.sample_id = entry.sample_key.hex()
    if reason:
        return _leave_out(entry, reason, detail)
    response = str(response)
    start, end = reasoning_span(response)
    if thinking := _decoded(trace.thinking):
        start, end = len(_THINK), len(_THINK) + len(thinking)
    text = response[start:end]
    if not text or text.isspace():
        return _leave_out(entry, Reason.EMPTY, "trace is blank")
    entry.trace_characters = len(text)
    found = steps(text)
    fit.append(_Fit(entry, question, response, (start, end), text, found, list(dict.fromkeys(found))))
    return None


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

    Text (`str` or `Utf8`), or, where the values do not make one, the value that is at fault.
    """
    if trace.thinking is None:
        return trace.response
    thinking, response = _decoded(trace.thinking), _decoded(trace.response)
    if not isinstance(thinking, str):
        return thinking
    return f"{_THINK}{thinking}\n</think>\n\n{response or ''}" if isinstance(response, str | None) else response


def _decoded(value: Any) -> Any:
    return str(value) if isinstance(value, Utf8) else value


def _text_fault(name: str, text: Any, most: int | None) -> tuple[Reason | None, str | None]:
    """What is wrong with a text of at most so many characters."""
    if isinstance(text, Utf8):
        blank = text.is_blank()
    elif not isinstance(text, str):
        return Reason.NOT_A_STRING, f"{name} is {'null' if text is None else type(text).__name__}"
    elif most is not None and len(text) > most:
        return Reason.TOO_LARGE, f"{name} has {len(text):,} characters, at most {most:,}"
    else:
        blank = not text or text.isspace()
    return (Reason.EMPTY, f"{name} is blank") if blank else (None, None)


def _flag(value: Any) -> bool | None:
    return None if value is None or value is MISSING else value is True


def _flag_fault(trace: Trace, guards: Guards) -> tuple[Reason | None, str | None]:
    if guards.verified and trace.verified is not None and trace.verified is not True:
        return Reason.UNVERIFIED, "no verdict" if trace.verified is MISSING else f"verified is {brief(trace.verified)}"
    if guards.complete and trace.complete is not None and trace.complete is not True:
        return Reason.INCOMPLETE, "no value" if trace.complete is MISSING else f"complete is {brief(trace.complete)}"
    # A pool without finish reasons for a row (OpenR1 has null there for locally generated rows) is not at fault.
    if guards.finish_reasons and trace.finish_reason not in (None, MISSING, *guards.finish_reasons):
        return Reason.FINISH_REASON, f"finish reason is {brief(trace.finish_reason)}"
    return None, None


def _measure(fit: Sequence[_Fit], guards: Guards, counter: TokenCounter) -> None:
    """Enter the lengths and apply the cutoff."""
    lengths = counter.count_sums([terms for item in fit for terms in _terms(item, counter.can_cut)]).reshape(-1, 4)
    for item, counts in zip(fit, lengths.tolist(), strict=True):
        entry = item.entry
        entry.question_tokens, entry.response_tokens, entry.trace_tokens, entry.trace_tokens_unique = counts
        total = counts[0] + counts[1]
        if guards.cutoff_tokens and total > guards.cutoff_tokens:
            _leave_out(entry, Reason.OVER_CUTOFF, f"{total} tokens, at most {guards.cutoff_tokens}")


def _terms(item: _Fit, can_cut: bool) -> tuple[Terms, Terms, Terms, Terms]:
    """What to count for question, response, trace and trace without repeats."""
    shared = response_terms(item.response, item.span) if can_cut else None
    response, trace = shared or ([(item.response, 1)], [(item.trace, 1)])
    unique: Terms | None = trace
    if item.repeats():
        unique = unique_terms(item.trace, item.steps, item.kept, trace) if can_cut else None
    return [(item.question, 1)], response, trace, unique or [(item.unique(), 1)]


def _choose(row: list[Entry], choice: Choice) -> None:
    fit = [entry for entry in row if entry.reason is None]
    if choice == "all" or len(fit) <= 1:
        return
    chosen = fit[0] if choice == "first" else max(fit, key=lambda entry: entry.trace_tokens_unique or 0)
    for entry in fit:
        if entry is not chosen:
            _leave_out(entry, Reason.NOT_CHOSEN, f"generation {chosen.generation} of the row was chosen")


def _leave_out(entry: Entry, reason: Reason | None, detail: str | None) -> None:
    entry.reason, entry.detail = str(reason), detail
