"""Exporting 10 % of a pool in the columns of OpenR1-Math-220k, against reading the whole pool with pyarrow.

Clustered: the selected rows lie together, in one row group of ten. Spread: they lie anywhere, and every row group has
some. Both sides read from the page cache, each in a process of its own, as a user would: memory is touched for the
first time on both. Starting the process and its imports are on neither side.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from s2r_ray.candidates import content_key
from s2r_ray.export import export, find_selection
from s2r_ray.index import Snapshot, snapshot_place
from s2r_ray.progress import Progress
from s2r_ray.readers import Unit
from s2r_ray.storage import Place
from s2r_ray.synth import SCHEMA, make_rows
from tests.benchmarks.commands import told_by
from tests.benchmarks.table import Row, compared, peak_bytes, show

_FILES = 8
_ROW_BYTES = 50_000
_GROUP_ROWS = 250
_REFERENCE = "pyarrow"
_RUN = "20260101T000000.000Z-00000000"


def run(megabytes: float = 1000, seed: int = 0, repeats: int = 3) -> list[Row]:
    """Three rows: texts, clustered and spread, and all columns, spread. `megabytes`: of the pool, unpacked."""
    dice = random.Random(seed)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        rows = write_pool(folder / "pool", max(_FILES * 10, int(megabytes * 1e6 / _ROW_BYTES)), dice)
        first = len(rows) // 3
        chosen = {
            "clustered": rows[first : first + len(rows) // 10],
            "spread": dice.sample(rows, len(rows) // 10),
        }
        for name, some in chosen.items():
            dice.shuffle(some)
            write_run(Place.of(folder / name), Place.of(folder / "pool"), some)
        return [
            _row(f"export 10 %, {name}, {target} / reading all with pyarrow", folder / name, target, repeats)
            for name, target in (("clustered", "jsonl"), ("spread", "jsonl"), ("spread", "openr1"))
        ]


def write_pool(folder: Path, count: int, dice: random.Random) -> list[dict[str, Any]]:
    """So many rows of some 50 kB; returns where each one lies, and its question's key."""
    folder.mkdir()
    words = " ".join(text for texts in make_rows(0, range(2000))["generations"].to_pylist() for text in texts).split()
    found = []
    for number in range(_FILES):
        rows = [_row_of(dice, words, f"{number}-{row}") for row in range(count // _FILES)]
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), folder / f"{number}.parquet", _GROUP_ROWS)
        for at, row in enumerate(rows):
            key = content_key(row["problem"]).hex()
            found.append({"file": f"{number}.parquet", "row": at, "generation": 0, "question_key": key})
    return found


def _row_of(dice: random.Random, words: list[str], name: str) -> dict[str, Any]:
    def text(length: int) -> str:
        start = dice.randrange(len(words) - length)
        return " ".join(words[start : start + length]) + f" {dice.getrandbits(64)}"

    traces = [f"<think>\n{text(dice.randint(500, 4000))}\n</think>\n\nso" for _ in range(dice.randint(2, 4))]
    question = text(60)
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": traces[0]}]
    return {
        "problem": question,
        "solution": text(200),
        "answer": name,
        "uuid": name,
        "generations": traces,
        "messages": turns,
        "is_reasoning_complete": [True] * len(traces),
        "correctness_math_verify": [True] * len(traces),
        "finish_reasons": ["stop"] * len(traces),
    }


def write_run(out: Place, pool: Place, rows: list[dict[str, Any]]) -> None:
    """What exports read of a run that selected these rows, best first."""
    units = tuple((Unit(0, file.path, file.size, file.version), "key") for file in pool.files())
    snapshot = Snapshot((pool.uri,), units)
    snapshot_place(out, snapshot.digest()).write_bytes(snapshot.to_json())
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([{"position": at + 1, **row} for at, row in enumerate(rows)]), sink)
    out.child("runs", _RUN, "manifests", "top-10pct.parquet").write_bytes(sink.getvalue().to_pybytes())
    config = {"pools": [{"uri": pool.uri}], "tokenizer": "embedded", "guards": {"cutoff_tokens": 0}}
    record = {"run_id": _RUN, "snapshot": snapshot.digest(), "config": config, "budgets": {"10": len(rows)}}
    out.child("runs", _RUN, "run.json").write_bytes(json.dumps(record).encode())


def _row(name: str, out: Path, target: str, repeats: int) -> Row:
    """`out`: what `write_run` wrote, beside the pool."""
    own: list[float] = []
    other: list[float] = []
    peaks: list[float] = []
    reference_peaks: list[float] = []
    for _ in range(repeats):
        for side, seconds, most in ((target, own, peaks), (_REFERENCE, other, reference_peaks)):
            asked = ("--child", side, "--out", out)
            found = told_by("tests.benchmarks.bench_export", *asked, as_command=side != _REFERENCE)
            seconds.append(found["seconds"])
            most.append(found["peak"] / 2**20)
    return compared(name, own, other, max(peaks), max(reference_peaks))


def child(out: Path, target: str) -> dict[str, float]:
    """What one process measures: seconds, and the peak of its resident memory in bytes."""
    selection = find_selection(Place.of(out), _RUN, None, None)
    files = sorted((out.parent / "pool").iterdir())
    started = time.perf_counter()
    if target == _REFERENCE:
        for file in files:
            pq.read_table(file)
    else:
        to = Place.of(out.parent / f"to-{target}")
        export(selection, target, to, Progress(quiet=True), force=True)
    return {"seconds": time.perf_counter() - started, "peak": peak_bytes()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=1000, help="of the pool, unpacked")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", choices=(_REFERENCE, "jsonl", "openr1"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        sys.stdout.write(json.dumps(child(given.out, given.child)))
    else:
        sys.stdout.write(show(run(given.megabytes, given.seed, given.repeats)))


if __name__ == "__main__":
    main()
