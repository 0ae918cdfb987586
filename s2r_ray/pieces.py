"""Which pieces of a response to count, so that what response, trace and trace without repeats share is counted once."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

Terms = list[tuple[str, int]]
"""Texts, and how often each one's tokens count. The tokens of a text are the sum over its terms."""

_WHITE_SPACE = re.compile(r"\s*")
_BLANK_LINE = "\n\n"


def response_terms(response: str, span: tuple[int, int]) -> tuple[Terms, Terms] | None:
    """The terms of a response and of its trace, which is where `span` says; None if they share no pieces.

    Only for tokenizers for which `tokens.can_cut` holds: the response is cut before the first and after the last line
    of the trace.
    """
    start, end = span
    first = start + _leading(response, start, end)
    begins = first == 0 or (first < end and response[first - 1] == "\n")
    ends = end == len(response) or (response[end - 1] == "\n" and not response[end].isspace())
    if not (begins and ends):
        return None
    trace = [(response[start:first], 1), (response[first:end], 1)]
    return [(response[:first], 1), trace[1], (response[end:], 1)], trace


def unique_terms(trace: str, steps: Sequence[str], kept: Sequence[str], terms: Terms) -> Terms | None:
    """The terms of the trace without repeats: those of the trace less the steps that are not kept.

    Args:
        steps: of the trace, as `trace.steps` gives them.
        kept: each of them once, which is fewer.
        terms: of the trace.

    Returns:
        None where steps are not set apart by exactly one blank line, or nothing but spaces comes before the first.
    """
    first = _leading(trace, 0, len(trace))
    inner = sum(map(len, steps)) + len(_BLANK_LINE) * (len(steps) - 1)
    trail = trace[first + inner :]
    if (first and trace[first - 1] != "\n") or (trail and not trail.isspace()):
        return None
    last = steps[-1]
    found = [*terms, (trace[:first], -1), (last + trail, -1)]
    found += [(step + _BLANK_LINE, 1 - count) for step, count in Counter(steps).items() if count > 1]
    # What is kept ends without a blank line. So does the trace, whose last step is a repeat or the last that is kept.
    found += [(last + _BLANK_LINE, 1), (kept[-1] + _BLANK_LINE, -1), (kept[-1], 1)] if last != kept[-1] else [(last, 1)]
    return found


def _leading(text: str, start: int, end: int) -> int:
    """How many characters of white space there are from `start` on."""
    found = _WHITE_SPACE.match(text, start, end)
    return found.end() - start if found else 0
