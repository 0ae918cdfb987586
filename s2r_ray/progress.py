"""What a person sees while a run goes on: the stage, rows done of how many, rate, time left.

In a terminal a live bar, as wide as it is; elsewhere (a job's log, a pipe) a plain line now and then. Always on
standard error.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

from s2r_ray.quiet import own_stream

if TYPE_CHECKING:
    from rich.console import Console

_PLAIN_SECONDS = 10.0


@dataclass
class Stage:
    """One stage under way. `total` may be 0 when there is nothing to do."""

    name: str
    unit: str
    total: int
    done: int = 0
    started: float = field(default_factory=time.monotonic)
    _first: tuple[float, int] | None = None

    def advance(self, amount: int) -> None:
        """So many more are done."""
        self.done += amount
        if self._first is None:
            self._first = time.monotonic(), self.done

    @property
    def rate(self) -> float:
        """Done per second: under way since the first were done (what came before, such as loading, would only
        mislead), at the end over the whole stage."""
        if self._first is not None and self._first[1] < self.done < self.total:
            return (self.done - self._first[1]) / max(time.monotonic() - self._first[0], 1e-9)
        return self.done / max(self.seconds, 1e-9)

    @property
    def seconds(self) -> float:
        """Since the stage began."""
        return time.monotonic() - self.started

    def line(self) -> str:
        """`judge: 1,200 of 4,000 questions, 310/s, 9 s left`."""
        rate = self.rate
        steady = self._first is not None and self._first[1] < self.done < self.total
        left = f", {_duration((self.total - self.done) / rate)} left" if steady else ""
        if not self.done:
            return f"{self.name}: {self.total:,} {self.unit}, starting"
        shown = f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s" if rate >= 1 else f"{_duration(1 / rate)} each"
        return f"{self.name}: {self.done:,} of {self.total:,} {self.unit}, {shown}{left}"


class Progress:
    """Shows stages one after the other.

    Args:
        stream: where to write; default standard error.
        quiet: show nothing (results and errors still appear).
    """

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False) -> None:
        self._stream = own_stream(stream or sys.stderr)
        self._quiet = quiet
        self._terminal = terminal(self._stream)

    def say(self, text: str) -> None:
        """One line for the person; in a terminal it breaks between words, and stands above a bar."""
        if self._quiet:
            return
        if self._terminal:
            self._terminal.print(text)
            return
        self._stream.write(text + "\n")
        self._stream.flush()

    @contextmanager
    def stage(self, name: str, unit: str, total: int) -> Iterator[Ticker]:
        """Show a stage until the block ends; the ticker takes what was done."""
        state = Stage(name, unit, total)
        live = None if self._quiet else self._terminal
        ticker: Ticker = _LiveTicker(state, live) if live else _PlainTicker(state, self)
        with ticker:
            yield ticker


class Ticker:
    """Takes what was done; the base shows nothing."""

    def __init__(self, state: Stage) -> None:
        self.state = state

    def __enter__(self) -> Ticker:
        return self

    def __exit__(self, *exception: object) -> None:
        return None

    def advance(self, amount: int) -> None:
        """So many more are done."""
        self.state.advance(amount)


class _PlainTicker(Ticker):
    """Lines, at most one every `_PLAIN_SECONDS`, and one at the end."""

    def __init__(self, state: Stage, progress: Progress) -> None:
        super().__init__(state)
        self._progress = progress
        self._last = time.monotonic()

    def __enter__(self) -> Ticker:
        self._progress.say(self.state.line())
        return self

    def advance(self, amount: int) -> None:
        super().advance(amount)
        if self.state.done < self.state.total and time.monotonic() - self._last >= _PLAIN_SECONDS:
            self._last = time.monotonic()
            self._progress.say(self.state.line())

    def __exit__(self, *exception: object) -> None:
        if exception[0] is None:
            self._progress.say(f"{self.state.line()}, {_duration(self.state.seconds)}")


class _LiveTicker(Ticker):
    """A bar drawn by rich, as far as the words leave it room; at the end the seconds in its place."""

    def __init__(self, state: Stage, console: Console) -> None:
        super().__init__(state)
        from rich.progress import BarColumn, SpinnerColumn, TextColumn
        from rich.progress import Progress as Bars
        from rich.table import Column

        words = Column(no_wrap=True, overflow="ellipsis")
        self._bars = Bars(
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.description}", table_column=words),
            BarColumn(bar_width=None, table_column=Column(ratio=1)),
            console=console,
            expand=True,
        )
        self._task = self._bars.add_task(state.line(), total=max(state.total, 1))

    def __enter__(self) -> Ticker:
        self._bars.start()
        return self

    def advance(self, amount: int) -> None:
        super().advance(amount)
        self._bars.update(self._task, completed=self.state.done, description=self.state.line())

    def __exit__(self, *exception: object) -> None:
        if exception[0] is None:
            done = f"{self.state.line()}, {_duration(self.state.seconds)}"
            self._bars.update(self._task, completed=max(self.state.total, 1), description=done)
        self._bars.stop()


def terminal(stream: TextIO) -> Console | None:
    """For a stream that a person watches: rich's console, which takes text as it is. None for files and pipes."""
    if not stream.isatty():
        return None
    from rich.console import Console

    return Console(file=stream, markup=False, emoji=False, highlight=False)


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
