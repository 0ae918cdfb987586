"""The report of a large run: seconds, peak memory and size of the page, beside those of a run of 1,000 samples.

The index, its questions and the score store are those of `bench_driver`: made up, with a score of its own for each
candidate's question, which is the worst case for counting values. Texts of the pool are not there to be read.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from s2r_ray.index import snapshot_place
from s2r_ray.noise import noise_place
from s2r_ray.publish import RunRecord, new_run_id, publish, recorded_config
from s2r_ray.report.page import remake_report
from s2r_ray.runs import list_runs
from s2r_ray.selection import rank
from s2r_ray.storage import Place
from s2r_ray.store import ScoreStore
from tests.benchmarks.bench_driver import TINY, UNITS, make, plan_of, snapshot_of
from tests.benchmarks.table import Row, peak_bytes, show


def make_run(out: Place, rows: int, seed: int) -> None:
    """A finished run over so many candidates."""
    make(out, rows, UNITS, seed)
    plan = plan_of(out, rows, UNITS)
    snapshot = snapshot_of(plan)
    snapshot_place(out, snapshot.digest()).write_bytes(snapshot.to_json())
    judge = plan.signals[0]
    noise_place(ScoreStore.of(out, judge)).write_bytes(b'{"pairs": 64, "largest": 0.002, "rms": 0.001}')
    run_id = new_run_id()
    place = out.child("runs", run_id)
    found = rank(out, snapshot, {judge.name: ScoreStore.of(out, judge)}, plan.weights, plan.config.budgets, place)
    record = RunRecord(
        run_id=run_id,
        started="2026-11-21",
        config=recorded_config(plan.config),
        pools=list(snapshot.pools),
        snapshot=snapshot.digest(),
        index={"tokenizer": "none", "fingerprints": []},
        fingerprints={judge.name: judge.fingerprint()},
        counts={"indexed": found.indexed, "ranked": found.ranked, "excluded": sum(found.excluded.values())},
        excluded=found.excluded,
        budgets=found.budgets,
        addressing_judge=found.addressing,
        weights=plan.weights.as_floats(),
    )
    publish(out, place, record)


def child(task: str, folder: Path, rows: int, seed: int) -> dict[str, float]:
    """What one process does and measures: seconds, the peak of its resident memory and the page's size in bytes."""
    out = Place.of(folder)
    started, size = time.perf_counter(), 0
    if task == "make":
        make_run(out, rows, seed)
    else:
        size = len(remake_report(out, list_runs(out).find()).read_bytes())
    return {"seconds": time.perf_counter() - started, "peak": peak_bytes(), "size": size}


def start(task: str, folder: Path, rows: int, seed: int) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.benchmarks.bench_report", "--task", task, "--folder", str(folder)]
    command += ["--rows", str(rows), "--seed", str(seed)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer


def run(rows: int = 10_000_000, seed: int = 0, repeats: int = 1) -> list[Row]:
    """One line: the report of so many ranked samples, the reference being that of 1,000."""
    del repeats
    with tempfile.TemporaryDirectory() as place:
        found = {}
        for size in (TINY, rows):
            folder = Path(place, str(size))
            start("make", folder, size, seed)
            found[size] = start("report", folder, size, seed)
    ours, base = found[rows], found[TINY]
    name = f"report of {rows:,} samples, {ours['size'] / 1000:,.0f} kB / {TINY:,} samples"
    ratio = base["seconds"] / ours["seconds"]
    peak, base_peak = ours["peak"] / 2**20, base["peak"] / 2**20
    return [Row(name, ours["seconds"], peak, base["seconds"], base_peak, ratio, ratio, ratio)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--task", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.task:
        sys.stdout.write(f"\n{json.dumps(child(given.task, given.folder, given.rows, given.seed))}\n")
    else:
        sys.stdout.write(show(run(given.rows, given.seed)))


if __name__ == "__main__":
    main()
