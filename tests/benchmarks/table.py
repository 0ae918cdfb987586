"""One table for all benchmarks: ours against a reference on the same work, alternated in one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s2r_ray.quiet import captured

HEAD = """\
| row / reference | s | peak MiB | reference s | reference peak MiB | ratio: median (min to max) |
|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Row:
    """One line of the table. Ratios are reference time over ours, per repeat; seconds are medians, peaks maxima."""

    name: str
    seconds: float
    peak_mib: float | None = None
    reference_seconds: float | None = None
    reference_peak_mib: float | None = None
    ratio_median: float | None = None
    ratio_min: float | None = None
    ratio_max: float | None = None


def alternated(
    name: str, ours: Callable[[], Any], reference: Callable[[], Any], repeats: int, same: Callable[[Any, Any], bool]
) -> Row:
    """Time both sides in turn after one uncounted pass of each, and check that their results agree. Peaks are of the
    whole process, which holds what both sides work on.

    Raises:
        AssertionError: the two sides did not compute the same.
    """
    if not same(ours(), reference()):
        raise AssertionError(f"{name}: the two sides differ")
    own, other = [], []
    for _ in range(repeats):
        own.append(_timed(ours))
        other.append(_timed(reference))
    peaks = [max(peak for _, peak in side) for side in (own, other)]
    return compared(name, [seconds for seconds, _ in own], [seconds for seconds, _ in other], *peaks)


def compared(
    name: str,
    own: Sequence[float],
    other: Sequence[float],
    peak_mib: float | None = None,
    reference_peak_mib: float | None = None,
) -> Row:
    """A row from the seconds of paired repeats."""
    ratios = [b / a for a, b in zip(own, other, strict=True)]
    return Row(
        name,
        statistics.median(own),
        peak_mib,
        statistics.median(other),
        reference_peak_mib,
        statistics.median(ratios),
        min(ratios),
        max(ratios),
    )


def _timed(call: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of a call, and the most resident memory meanwhile, in MiB."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew: proc_pid_clear_refs(5)
    started = time.perf_counter()
    call()
    return time.perf_counter() - started, peak_bytes() / 2**20


def peak_bytes() -> int:
    """VmHWM of this process; unlike ru_maxrss it is not inherited."""
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) << 10


def quietly(bench: Callable[..., list[Row]], *arguments: float) -> list[Row]:
    """A benchmark's rows, without what the engine prints. Runs in a process of its own."""
    with captured():
        return bench(*arguments)


def show(table: Sequence[Row]) -> str:
    """The table in Markdown."""
    return HEAD + lines(table)


def lines(table: Sequence[Row]) -> str:
    """The table without its head."""
    found = []
    for row in table:
        cells = [row.name, f"{row.seconds:.2f}", _mib(row.peak_mib)]
        if row.reference_seconds is None:
            cells += ["-", "-", "-"]
        else:
            cells += [f"{row.reference_seconds:.2f}", _mib(row.reference_peak_mib)]
            cells.append(f"{row.ratio_median:.2f} ({row.ratio_min:.2f} to {row.ratio_max:.2f})")
        found.append("| " + " | ".join(cells) + " |\n")
    return "".join(found)


def _mib(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"
