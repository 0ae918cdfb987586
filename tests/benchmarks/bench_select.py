"""`s2r select` with other weights over what is stored: the whole command, and what its imports alone take.

The index and the score store are those of `bench_driver`: made up, each candidate with a question and score of its own.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from s2r_ray.cluster import Connection
from s2r_ray.pipeline import Done, index_and_score
from s2r_ray.progress import Progress
from s2r_ray.storage import Place
from s2r_ray.store import ScoreStore
from tests.benchmarks.bench_driver import UNITS, make, plan_of
from tests.benchmarks.table import Row, show

_WEIGHTS = (("0.25", "0.75"), ("0.5", "0.5"), ("0.75", "0.25"), ("1", "0"))
_IMPORTS = "import s2r_ray.cli, s2r_ray.pipeline"
_SAMPLE_SECONDS = 0.02


def run(rows: int = 1_000_000, seed: int = 0, repeats: int = 3) -> list[Row]:
    """Two rows: the command, with another weight each time, and its imports."""
    with tempfile.TemporaryDirectory() as place:
        out = Place.of(place)
        make(out, rows, UNITS, seed)
        plan = plan_of(out, rows, UNITS)
        ScoreStore.of(out, plan.signals[0]).put_together()  # as a run does after judging
        index_and_score(plan, Connection(None), Progress(quiet=True), Done())
        command = [str(Path(sys.executable).parent / "s2r"), "select", "--out", place, "--quiet"]
        selects, imports = [], []
        for turn in range(repeats):
            difficulty, length = _WEIGHTS[turn % len(_WEIGHTS)]
            weights = ["--weight", f"difficulty={difficulty}", "--weight", f"length={length}"]
            selects.append(_timed([*command, *weights]))
            imports.append(_timed([sys.executable, "-c", _IMPORTS]))
    name = f"re-select with another weight, {rows:,} stored scores, whole command"
    return [_row(name, selects), _row("of which interpreter and imports", imports)]


def _row(name: str, measured: list[tuple[float, float]]) -> Row:
    seconds, peaks = zip(*measured, strict=True)
    return Row(name, statistics.median(seconds), max(peaks))


def _timed(command: list[str]) -> tuple[float, float]:
    """Seconds of a command, and the most resident memory that was seen, in MiB."""
    started, most = time.perf_counter(), 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        seen = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                most = max(most, seen.memory_info().rss)
            except psutil.Error:
                break
            time.sleep(_SAMPLE_SECONDS)
        process.wait()
        seconds = time.perf_counter() - started
    if process.returncode:
        raise AssertionError(f"{' '.join(command)} failed")
    return seconds, most / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    sys.stdout.write(show(run(given.rows, given.seed, given.repeats)))


if __name__ == "__main__":
    main()
