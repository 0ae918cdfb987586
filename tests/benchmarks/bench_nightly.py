"""A nightly run on a pool of which 1 % changed, against the full run before it, with the `s2r` command and its judge.

The embedded judge in vLLM on the CPU is the cheapest judge there is: with a larger one the part of a run that does not
shrink (listing, ranking, publishing) weighs less. Fixed start-up is what the same nightly run costs on a pool of 20
rows: the interpreter, Ray, the engine, one file, a batch. It is taken off both sides; ratios are full over nightly.

All in CPU seconds of all processes, which other users of the machine disturb less than the clock: start-up takes longer
than what is measured here. Wall seconds of each run go to standard error.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from s2r_ray.candidates import content_key
from s2r_ray.storage import Place
from s2r_ray.synth import write_pool
from tests.benchmarks.commands import s2r
from tests.benchmarks.table import Row, compared, show

_JUDGED = {"duplicate_sample", "difficulty_no_answer", "difficulty_too_long", "difficulty_failed"}


def run(rows: int = 100_000, seed: int = 0, repeats: int = 3, files: int = 100) -> list[Row]:
    """Four rows: start-up, a run with nothing to do, 1 % changed in 1 % of the files, 1 % changed in every file.

    The full run is there once; nightly runs and start-up alternate.

    Raises:
        AssertionError: a nightly run judged other questions than those that changed.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        pool, small = folder / "pool", folder / "small"
        per_file, part = -(-rows // files), max(1, files // 100)
        write_pool(Place.of(pool), rows, seed, per_file)
        write_pool(Place.of(small), 20, seed, 20)
        _run(small)
        full, before = _run(pool)
        idle = [_run(pool)[0] for _ in range(repeats)]
        fixed, nightly, spread = [], [], []
        for turn in range(repeats):
            change(small, 1, 20, f"in words {turn}")
            fixed.append(_run(small)[0])
            seconds, before = _nightly(pool, before, part, per_file, f"in full {turn}")
            nightly.append(seconds)
            if turn == 0:
                seconds, before = _nightly(pool, before, files, max(1, per_file // 100), "step by step")
                spread.append(seconds)
    return table_of(rows, files, full, fixed, idle, nightly, spread)


def table_of(
    rows: int, files: int, full: float, fixed: list[float], idle: list[float], nightly: list[float], spread: list[float]
) -> list[Row]:
    """The rows from the CPU seconds of the runs: differences of medians, at least a tenth of a second."""
    start = statistics.median(fixed)
    what = f"nightly run, 1 % of {rows:,} rows changed, in {{}} of {files} files / full run, CPU"
    beyond = {
        where: max(statistics.median(costs) - start, 0.1)
        for where, costs in ((max(1, files // 100), nightly), (files, spread))
    }
    return [
        Row("fixed start-up: the nightly run of 20 rows, CPU", start),
        Row(f"nightly run, nothing changed in {rows:,} rows, CPU", statistics.median(idle)),
        *(compared(what.format(where), [seconds], [full - start]) for where, seconds in beyond.items()),
    ]


def change(pool: Path, files: int, rows: int, words: str) -> set[str]:
    """Ask more in the first rows of the first files; returns the question keys that this makes, in hexadecimal."""
    made = set()
    for path in sorted(pool.glob("*.parquet"))[:files]:
        table = pq.read_table(path)
        problems = table["problem"].to_pylist()
        problems[:rows] = [f"{problem} Answer {words}." for problem in problems[:rows]]
        made |= {content_key(problem).hex() for problem in problems[:rows]}
        at = table.schema.get_field_index("problem")
        pq.write_table(table.set_column(at, "problem", pa.array(problems)), path, compression="zstd")
    return made


def _run(pool: Path) -> tuple[float, dict[str, Any]]:
    """CPU seconds of the whole command, and its summary."""
    done = s2r("run", "--pool", pool, "--out", f"{pool}-out")
    summary, cpu = done.json(), done.cpu_seconds
    told = f"{summary['counts']}, {summary['seconds']}"
    sys.stderr.write(f"{pool.name}: {done.seconds:.1f} s, {cpu:.1f} s of CPU, {told}\n")
    return cpu, summary


def _nightly(pool: Path, before: dict[str, Any], files: int, rows: int, words: str) -> tuple[float, dict[str, Any]]:
    """Change the pool and run; exactly the changed questions that have a candidate must be judged."""
    made = change(pool, files, rows, words)
    cost, after = _run(pool)
    fresh = _questions(after) - _questions(before)
    judged, read = (after["counts"][name] for name in ("difficulty_judged", "files_read"))
    if not (fresh <= made and judged == len(fresh) and read == files):
        raise AssertionError(f"{files} files and {len(fresh)} questions changed, {read} read and {judged} judged")
    return cost, after


def _questions(summary: dict[str, Any]) -> set[str]:
    """The distinct questions that have a candidate."""
    ranked = pq.read_table(f"{summary['run']}/ranking", columns=["question_key"])["question_key"].to_pylist()
    excluded = pq.read_table(f"{summary['run']}/excluded.parquet", columns=["question_key", "reason"]).to_pylist()
    return {*ranked, *(row["question_key"] for row in excluded if row["reason"] in _JUDGED)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    sys.stdout.write(show(run(given.rows, given.seed)))


if __name__ == "__main__":
    main()
