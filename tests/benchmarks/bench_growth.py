"""Whether cost grows in a straight line with the pool: what each stage does per second, at sizes ten times apart.

The index is that of `bench_driver`, made up; the judge answers at once, so that what is measured is all that stands
between the index and a judge: finding what to judge, handing out texts, and writing scores.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from s2r_ray.cluster import connected
from s2r_ray.pending import find_questions
from s2r_ray.plan import Plan
from s2r_ray.progress import Progress
from s2r_ray.score import score_missing
from s2r_ray.selection import rank
from s2r_ray.signals.base import Resources
from s2r_ray.storage import Place
from s2r_ray.store import ScoreStore
from tests.benchmarks.bench_driver import BATCH, make_index, plan_of, snapshot_of
from tests.benchmarks.table import Row, peak_bytes, show

_UNIT_ROWS = 10_000


def score(plan: Plan) -> float:
    """Judge everything; seconds without the start of Ray."""
    snapshot, judge = snapshot_of(plan), plan.signals[0]
    with connected(None):
        started = time.perf_counter()
        questions, store = find_questions(plan.out, snapshot), ScoreStore.of(plan.out, judge)
        pending = questions.pending(store.settled(questions.keys).mask)
        resources = Resources(cpus=0.5, batch=BATCH)
        score_missing(plan.out, snapshot, judge, store, questions, pending, (), resources, {}, Progress(quiet=True))
        return time.perf_counter() - started


def select(plan: Plan) -> float:
    """Rank and write; seconds."""
    started = time.perf_counter()
    stores = {judge.name: ScoreStore.of(plan.out, judge) for judge in plan.signals}
    rank(plan.out, snapshot_of(plan), stores, plan.weights, plan.config.budgets, plan.out.child("runs", "rank"))
    return time.perf_counter() - started


def child(folder: Path, rows: int, seed: int) -> dict[str, float]:
    """What one process measures: seconds of each stage, and the peak of its resident memory in bytes."""
    units = -(-rows // _UNIT_ROWS)
    for _ in make_index(Place.of(folder), rows, units, seed):
        pass
    plan = plan_of(Place.of(folder), rows, units)
    return {"judge": score(plan), "rank": select(plan), "peak": peak_bytes()}


def run(rows: int = 1_000_000, seed: int = 0, repeats: int = 1) -> list[Row]:
    """Two rows for each of three sizes up to `rows`; measured once."""
    del repeats
    table = []
    for size in (rows // 100, rows // 10, rows):
        with tempfile.TemporaryDirectory() as place:
            command = [sys.executable, "-m", "tests.benchmarks.bench_growth", "--folder", place]
            command += ["--rows", str(size), "--seed", str(seed)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        for stage in ("judge", "rank"):
            rate = size / found[stage]
            name = f"{stage}, {size:,} samples, a judge that answers at once: {rate:,.0f} a second"
            table.append(Row(name, found[stage], found["peak"] / 2**20))
            sys.stderr.write(show(table[-1:]).splitlines()[-1] + "\n")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.folder:
        sys.stdout.write(f"\n{json.dumps(child(given.folder, given.rows, given.seed))}\n")
    else:
        sys.stdout.write(show(run(given.rows, given.seed)))


if __name__ == "__main__":
    main()
