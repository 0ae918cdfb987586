"""A pool with several traces for each question: the `s2r` command against ways that judge every row of it.

These are `ray.data.llm` and the published script's way (bare.py has both). By the clock, each a command of its own:
whole, and beyond its start-up, which is what it takes for a pool of a few questions. Every trace competes, so a row of
the pool is what a row of the result is.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from s2r_ray.judge import EMBEDDED_JUDGE
from s2r_ray.synth import make_rows
from tests.benchmarks.bench_command import check_same, judged
from tests.benchmarks.commands import measured
from tests.benchmarks.table import Row, compared, show

_FILES = 8
_FEW = 16
WAYS = {"ray-data-llm": "ray.data.llm", "script": "the published script's way"}


def run(
    questions: int = 20_000, seed: int = 0, repeats: int = 3, traces: int = 3, ways: Sequence[str] = tuple(WAYS)
) -> list[Row]:
    """Two rows for each of these `ways`: whole, and beyond start-up, which is measured once.

    Raises:
        AssertionError: a way judged another number of prompts, or its scores differ.
    """
    seconds: dict[str, list[float]] = {way: [] for way in ("s2r", *ways)}
    peaks = dict.fromkeys(seconds, 0.0)
    with tempfile.TemporaryDirectory() as place:
        few, folder = Path(place, "few"), Path(place, "all")
        write_pool(few, _FEW, seed, traces)
        write_pool(folder, questions, seed, traces)
        start = {way: judged_by(way, few, traces)[0] for way in seconds}
        for _ in range(repeats):
            for way, found in seconds.items():
                taken, peak = judged_by(way, folder, traces)
                found.append(taken)
                peaks[way] = max(peaks[way], peak)
    rows = []
    for way in ways:
        name = f"judge, {questions:,} questions with {traces} traces each{{}} / {WAYS[way]} over the rows"
        ours, other = ([taken - start[which] for taken in seconds[which]] for which in ("s2r", way))
        rows.append(compared(name.format(""), seconds["s2r"], seconds[way], peaks["s2r"], peaks[way]))
        rows.append(compared(name.format(", beyond start-up"), ours, other))
    return rows


def write_pool(folder: Path, questions: int, seed: int, traces: int) -> None:
    """`pool`, with distinct made-up questions, each with so many made-up traces that all pass the guards, and a
    configuration under which all of them compete."""
    made = make_rows(seed, range(int(questions * 1.2)))
    problems = list(dict.fromkeys(made["problem"].to_pylist()))[:questions]
    texts = [text for some in made["generations"].to_pylist() for text in some]
    generations = [[texts[(at * traces + n) % len(texts)] for n in range(traces)] for at in range(questions)]
    table = pa.table(
        {
            "uuid": [f"row-{number}" for number in range(questions)],
            "problem": problems,
            "generations": generations,
            "is_reasoning_complete": [[True] * traces] * questions,
            "correctness_math_verify": [[True] * traces] * questions,
            "finish_reasons": [["stop"] * traces] * questions,
        }
    )
    (folder / "pool").mkdir(parents=True)
    size = -(-questions // _FILES)
    for number, start in enumerate(range(0, questions, size)):
        pq.write_table(table.slice(start, size), folder / "pool" / f"part-{number}.parquet", compression="zstd")
    (folder / "config.yaml").write_text(yaml.safe_dump({"candidates": "all"}), encoding="utf-8")


def judged_by(way: str, folder: Path, traces: int) -> tuple[float, float]:
    """Seconds from the command to the last score, and the largest memory in MiB."""
    if way == "s2r":
        shutil.rmtree(folder / "out", ignore_errors=True)
        side = judged(folder, folder / "out", "--config", folder / "config.yaml")
        return side.last, side.peak_mib
    done = measured(sys.executable, "-m", "tests.benchmarks.bare", way, str(EMBEDDED_JUDGE), str(folder / "pool"))
    told = done.json()
    sys.stderr.write(f"{way}: {done.seconds:.1f} s, {done.cpu_seconds:.1f} s of CPU, {told}\n")
    check_same(told, folder / "out", traces)
    return told["done"] - done.began, done.peak_mib


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=20_000)
    parser.add_argument("--traces", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--way", action="append", choices=list(WAYS), help="default: all")
    given = parser.parse_args()
    sys.stdout.write(show(run(given.questions, given.seed, given.repeats, given.traces, given.way or tuple(WAYS))))


if __name__ == "__main__":
    main()
