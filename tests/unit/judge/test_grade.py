"""Grading by math-verify in child processes: what is right, what is no answer, what hangs."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from s2r_ray.judge.grade import Graders

BOMB = "\\boxed{9^{9^{9^{9}}}}"


@pytest.fixture(scope="module")
def graders() -> Iterator[Graders]:
    found = Graders(2, seconds=2.0)
    yield found
    found.close()


def test_what_ends_in_the_answer_is_right(graders: Graders) -> None:
    """Catches: letters compared in place of values, an answer without dollar signs not read, thoughts graded."""
    pairs = [
        ("\\frac{1}{2}", "So it is \\boxed{0.5}."),
        ("12", "It is 13, no: $12$."),
        ("1{,}000", "\\boxed{1000}"),
        ("B", "The answer is \\boxed{B}."),
        ("\\text{Yes}", "\\boxed{\\text{Yes}}"),
        ("12", "\\boxed{13}"),
        ("12", "<think>It is \\boxed{12}.</think> \\boxed{14}"),
        ("12", ""),
    ]
    assert graders.right(pairs) == [True, True, True, True, True, False, False, False]


def test_what_cannot_be_graded_against_has_a_reason(graders: Graders) -> None:
    """Catches: a plausible pass rate of 0 for problems that have no answer that anything could equal."""
    reasons = graders.why_not(["12", None, " \n", "proof", "x" * 5000, "n = 2, 3"])
    assert [reason is None for reason in reasons] == [True, False, False, False, False, True]
    assert [reason for reason in reasons if reason] == [
        "there is no reference answer",
        "there is no reference answer",
        "its solution is a proof",
        "a reference answer of 5,000 characters, at most 2,000",
    ]


def test_a_hostile_answer_costs_its_own_grading_alone(graders: Graders) -> None:
    """Catches: a power tower that holds a worker for ever, or takes the answers after it along; a limit by signals,
    which native code does not heed and other threads do not get."""
    began = time.monotonic()
    pairs = [("12", "\\boxed{12}"), ("12", BOMB), ("12", "\\boxed{12}"), ("12", BOMB), ("12", "\\boxed{12}")]
    assert graders.right(pairs) == [True, None, True, None, True]
    assert time.monotonic() - began < 60


def test_a_grader_that_died_between_two_gradings_is_replaced() -> None:
    """Catches: one that ended while it waited, and fails each problem that it is asked about from then on."""
    graders = Graders(1, seconds=2.0)
    try:
        assert graders.right([("12", "\\boxed{12}")]) == [True]
        child = graders._free.get()
        assert child._process is not None
        child._process.kill()
        child._process.wait()
        graders._free.put(child)
        assert graders.right([("12", "\\boxed{12}")]) == [None]
        assert graders.right([("12", "\\boxed{12}")]) == [True]
    finally:
        graders.close()
