"""The reasoning span, and repeat removal against a line-by-line reference."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2r_ray.trace import reasoning, without_repeats

SPACE = st.sampled_from(["\n", "\n\n", " ", "\t", "\r\n", "\x0b", "\u2028", "\u00a0", "\x1f"])
TRACES = st.lists(st.one_of(SPACE, st.sampled_from(["a", "b", "a b", "Wait.", "\n\na\n\n"])), max_size=30).map("".join)


@pytest.mark.parametrize(
    ("response", "span"),
    [
        ("<think>a</think>b", "a"),
        ("before<think>a</think>b", "a"),
        ("<think>a", "a"),
        ("a</think>b", "a"),
        ("a", "a"),
        ("", ""),
        ("<think></think>b", ""),
        ("</think>a<think>b", "b"),
        ("<think>a</think>b<think>c</think>", "a"),
        ("<think>a<think>b</think>c</think>", "a<think>b"),
        ("x<|begin_of_thought|>\na\n<|end_of_thought|>\n<|begin_of_solution|>b", "\na\n"),
        ("<|begin_of_thought|>a", "a"),
        ("a<|end_of_thought|>b", "a"),
        ("<think>a<|end_of_thought|></think>b", "a<|end_of_thought|>"),
        ("<Think>a</Think>", "<Think>a</Think>"),
    ],
)
def test_reasoning(response: str, span: str) -> None:
    """Catches: marks left in the span, the answer counted as reasoning, spans never closed or never opened."""
    assert reasoning(response) == span


def steps_of(trace: str) -> list[str]:
    """Steps by the definition: runs of lines that are not blank, stripped."""
    steps, run = [], []
    for line in [*trace.split("\n"), ""]:
        if line.strip():
            run.append(line)
        elif run:
            steps.append("\n".join(run).strip())
            run = []
    return steps


@given(TRACES)
def test_repeats_equal_brute_force(trace: str) -> None:
    """Catches: near repeats dropped, later originals dropped, blank lines that hold spaces not seen as blank."""
    steps, kept = steps_of(trace), []
    for step in steps:
        if step not in kept:
            kept.append(step)
    assert without_repeats(trace) == (trace if kept == steps else "\n\n".join(kept))


@given(TRACES)
def test_repeats_are_removed_once(trace: str) -> None:
    """Catches: a result that would shrink again, or grow."""
    once = without_repeats(trace)
    assert without_repeats(once) == once
    assert len(once) <= len(trace)


@pytest.mark.parametrize("loop", ["Wait, again.\n\n", "\n", " \n", "\n ", " " * 50, "\n\n\t", "a b\n"])
def test_long_loops_take_linear_time(loop: str) -> None:
    """Catches: a pattern that backtracks, so that one looping trace holds up a whole index task."""
    trace = "start\n" + loop * (1_000_000 // len(loop)) + "end"
    began = time.perf_counter()
    without_repeats(trace)
    assert time.perf_counter() - began < 5
