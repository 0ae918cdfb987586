"""`make bench`: every benchmark, one table, row by row as they are measured. Takes an hour and a half.

Sizes and seeds are parameters. Each part runs in a process of its own; if one fails, the others go on.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from functools import partial

from s2r_ray.publish import installed_versions
from tests.benchmarks import (
    bench_command,
    bench_driver,
    bench_export,
    bench_growth,
    bench_index,
    bench_judge,
    bench_nightly,
    bench_pool_judge,
    bench_ranking,
    bench_report,
    bench_scaling,
    bench_select,
    bench_tokens,
)
from tests.benchmarks.table import HEAD, Row, lines, quietly


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000, help="rows to rank")
    parser.add_argument("--megabytes", type=float, default=8, help="text to count")
    parser.add_argument("--questions", type=int, default=5000, help="questions to judge at steady state")
    parser.add_argument("--problems", type=int, default=25_200, help="problems of the pool that a whole command judges")
    parser.add_argument("--asked", type=int, default=20_000, help="questions of the pool with several traces each")
    parser.add_argument("--samples", type=int, default=100_000, help="problems of the nightly pool")
    parser.add_argument("--seconds", type=float, default=250, help="work of each actor of the scaling rows")
    parser.add_argument("--driver", type=int, default=10_000_000, help="samples to drive a run over")
    parser.add_argument("--pool", type=float, default=1000, help="megabytes of the pools to index and to export from")
    parser.add_argument("--scores", type=int, default=1_000_000, help="samples of the select and growth rows")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    growth = (given.scores // 100, given.scores // 10, given.scores)
    parts: list[tuple[Callable[..., list[Row]], int | float]] = [
        (bench_ranking.run, given.rows),
        (bench_tokens.run, given.megabytes),
        (bench_judge.run, given.questions),
        (bench_command.run, given.problems),
        (bench_pool_judge.run, given.asked),
        (partial(bench_index.run, traces=growth), given.pool),
        (bench_nightly.run, given.samples),
        (bench_driver.run, given.driver),
        (bench_report.run, given.driver),
        (bench_scaling.run, given.seconds),
        (bench_export.run, given.pool),
        (bench_select.run, given.scores),
        (bench_growth.run, given.scores),
    ]
    versions = ", ".join(f"{name} {version}" for name, version in installed_versions().items())
    _say(f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, {platform.machine()}; {versions}\n\n{HEAD}")
    failed = []
    for bench, size in parts:
        name = getattr(bench, "func", bench).__module__.rpartition(".")[2]
        sys.stderr.write(f"{datetime.now(UTC):%H:%M:%S} {name}\n")
        try:
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
                _say(lines(process.submit(quietly, bench, size, given.seed, given.repeats).result()))
        except Exception:  # noqa: BLE001  # whatever it is, hours of other rows do not hang on it
            traceback.print_exc()
            failed.append(name)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
