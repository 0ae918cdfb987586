"""What of a response is the reasoning trace, and what of the trace is repetition."""

from __future__ import annotations

import re

_SPANS = (("<think>", "</think>"), ("<|begin_of_thought|>", "<|end_of_thought|>"))
_BLANK_LINES = re.compile(r"\n\s*\n")


def reasoning(response: str) -> str:
    """The text between the thinking marks if there are any, else the whole response."""
    start, end = reasoning_span(response)
    return response[start:end]


def reasoning_span(response: str) -> tuple[int, int]:
    """Where the reasoning begins and ends, marks left out.

    A span that is opened and never closed runs to the end; one that is closed and never opened begins at the
    start (chat templates often open it in the prompt).
    """
    for opening, closing in _SPANS:
        start = response.find(opening)
        end = response.find(closing, max(start, 0))
        if start < 0 and end < 0:
            continue
        return start + len(opening) if start >= 0 else 0, end if end >= 0 else len(response)
    return 0, len(response)


def steps(trace: str) -> list[str]:
    """What blank lines separate, stripped, in order."""
    return [step for step in map(str.strip, _BLANK_LINES.split(trace)) if step]


def without_repeats(trace: str) -> str:
    """The trace without steps that repeat an earlier step exactly.

    A trace that repeats nothing comes back as it is; otherwise the steps that remain are joined by one blank line.
    (Repeat removal before counting: Select2Reason v3, as summarised; the definition of a step is this project's.)
    """
    found = steps(trace)
    kept = list(dict.fromkeys(found))
    return trace if len(kept) == len(found) else "\n\n".join(kept)
