"""What a person sees: lines now and then in a log, a bar in a terminal, nothing when asked for quiet."""

from __future__ import annotations

import io
import os
import pty
import select
import time

import pytest

from s2r_ray import progress
from s2r_ray.progress import Progress, Stage


class Clock:
    """Time that passes when told to, from the real time on."""

    def __init__(self) -> None:
        self.now = time.monotonic()

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


@pytest.mark.parametrize(
    ("steps", "total", "line"),
    [
        ([], 4000, "judge: 4,000 questions, starting"),
        ([(9, 0)], 4000, "judge: 4,000 questions, starting"),
        ([(4, 1200)], 4000, "judge: 1,200 of 4,000 questions, 300/s"),
        ([(4, 4000)], 4000, "judge: 4,000 of 4,000 questions, 1,000/s"),
        ([(10, 1)], 1000, "judge: 1 of 1,000 questions, 10 s each"),
        ([(30, 10)], 100, "judge: 10 of 100 questions, 3 s each"),
        ([(0, 5)], 5, "judge: 5 of 5 questions, "),
        ([(100, 10), (1, 10), (1, 10)], 130, "judge: 30 of 130 questions, 10/s, 10 s left"),
        ([(100, 1), (10, 1)], 1002, "judge: 2 of 1,002 questions, 10 s each, 2 h 46 min left"),
        ([], 0, "judge: 0 questions, starting"),
    ],
)
def test_line(steps: list[tuple[float, int]], total: int, line: str, clock: Clock) -> None:
    """Catches: division by zero at the start, time left after the end, a rate that counts loading the model."""
    stage = Stage("judge", "questions", total, started=clock.now)
    for seconds, amount in steps:
        clock.now += seconds
        stage.advance(amount)
    assert stage.line().startswith(line)
    assert len(stage.line()) == len(line) or line.endswith(", ")


def test_lines_in_a_log(clock: Clock) -> None:
    """Catches: a line per row in a job's log, silence for an hour, or a stage without a last line."""
    stream = io.StringIO()
    with Progress(stream).stage("index", "files", 80) as ticker:
        for _ in range(80):
            clock.now += 0.25
            ticker.advance(1)
    assert stream.getvalue().splitlines() == [
        "index: 80 files, starting",
        "index: 40 of 80 files, 4/s, 10 s left",
        "index: 80 of 80 files, 4/s, 20 s",
    ]


def test_a_failed_stage_does_not_say_that_it_ended() -> None:
    """Catches: a last line that looks like success right above the error."""
    stream = io.StringIO()

    def fail() -> None:
        with Progress(stream).stage("index", "files", 100) as ticker:
            ticker.advance(1)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert stream.getvalue() == "index: 100 files, starting\n"


def test_quiet() -> None:
    """Catches: words on a stream that was asked to be silent."""
    stream = io.StringIO()
    shown = Progress(stream, quiet=True)
    shown.say("hello")
    with shown.stage("index", "files", 1) as ticker:
        ticker.advance(1)
    assert stream.getvalue() == ""


@pytest.mark.parametrize("total", [0, 40])
def test_a_bar_in_a_terminal(total: int) -> None:
    """Catches: a bar that fails with nothing to do, or does not show the stage, the count and the end."""
    reader, writer = pty.openpty()
    with os.fdopen(writer, "w") as terminal:
        assert terminal.isatty()
        with Progress(terminal).stage("judge", "questions", total) as ticker:
            for _ in range(total):
                ticker.advance(1)
        shown = ""
        while select.select([reader], [], [], 0.3)[0]:
            shown += os.read(reader, 1 << 16).decode()
    os.close(reader)
    assert (f"judge: {total} of {total} questions" if total else "judge: 0 questions") in shown


def test_standard_error_is_the_default(capfd: pytest.CaptureFixture[str]) -> None:
    """Catches: progress among the results that a machine reads."""
    Progress().say("hello")
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "hello\n")
