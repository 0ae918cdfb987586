"""Commands measured from outside: the clock, and the CPU and memory of all their processes."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

_CPU_SECONDS, _MEMORY_SECONDS = 0.25, 2.0


@dataclass(frozen=True)
class Measured:
    """A command that has ended.

    `said`: its standard output; `began`: Unix time; `seconds` by the clock, `cpu_seconds` of all its processes;
    `peak_mib`: the most that its processes held together in one look (proportional set size, so that what they share
    counts once), of one look every two seconds.
    """

    said: str
    began: float
    seconds: float
    cpu_seconds: float
    peak_mib: float

    def json(self) -> dict[str, Any]:
        """The object on the last line of standard output, or all of it."""
        text = self.said if self.said.startswith("{") else self.said.splitlines()[-1]
        found: dict[str, Any] = json.loads(text)
        return found


def told_by(module: str, *arguments: object, as_command: bool = True) -> dict[str, Any]:
    """What a module of the benchmarks says of itself, a JSON object on the last line that it prints.

    Args:
        as_command: with Arrow's memory from where `cli.main` has it, not from Arrow's default.
    """
    memory = {"ARROW_DEFAULT_MEMORY_POOL": "jemalloc"} if as_command else {}
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | memory)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measured(*command: str) -> Measured:
    """Run a command and watch it.

    Raises:
        AssertionError: it failed.
    """
    began, started = time.time(), time.perf_counter()
    cpu: dict[tuple[int, float], float] = {}
    peak, looked = 0.0, started
    with tempfile.TemporaryFile() as out, subprocess.Popen(command, stdout=out) as process:
        while process.poll() is None:
            processes = _tree(process.pid)
            _note_cpu(processes, cpu)
            if time.perf_counter() - looked >= _MEMORY_SECONDS:
                looked = time.perf_counter()
                peak = max(peak, sum(map(_mib, processes)))
            time.sleep(_CPU_SECONDS)
        seconds = time.perf_counter() - started
        out.seek(0)
        said = out.read().decode()
    if process.returncode:
        raise AssertionError(f"{' '.join(command)} failed")
    return Measured(said, began, seconds, sum(cpu.values()), peak)


def s2r(*arguments: str | Path) -> Measured:
    """The `s2r` command, with its summary as JSON."""
    return measured(str(Path(sys.executable).parent / "s2r"), *map(str, arguments), "--json")


def written(scores: Path) -> list[float]:
    """Unix times, ascending, at which the parts of a score store were written."""
    return sorted(part.stat().st_mtime for part in scores.rglob("part-*.parquet"))


def _tree(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.Error:
        return []


def _note_cpu(processes: Sequence[psutil.Process], used: dict[tuple[int, float], float]) -> None:
    """CPU seconds so far, by (pid, start)."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            used[process.pid, process.create_time()] = times.user + times.system


def _mib(process: psutil.Process) -> float:
    try:
        return float(process.memory_full_info().pss) / 2**20
    except psutil.Error:
        return 0.0
