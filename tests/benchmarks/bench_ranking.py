"""Global ranks, joint rank and the best 10 % in order, against polars and duckdb on the same data.

`python -m tests.benchmarks.bench_ranking --rows 10000000` prints a table. Times: all sides in one process,
alternating, the data in memory already. Peak memory: each side alone in a process of its own, inputs included.
`--stream ROWS` (repeatable) are sizes of runs that stream Parquet files and hold no column of the pool.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from s2r_ray.ranking import ValueCounter, find_cutoff, joint_ranker, order_rows, parse_weights, top_rows
from s2r_ray.ranking import count_values as count
from tests.benchmarks.table import Row, compared, show

WEIGHTS = {"difficulty": 0.25, "length": 0.75}
SHARE = 10
FILE_ROWS = 5_000_000
BATCH_ROWS = 1 << 18


# --- the data ---------------------------------------------------------------------------------------------


def hex_ids(rng: np.random.Generator, rows: int) -> pa.Array:
    """Sample ids as the pool index has them: 16 hexadecimal digits."""
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)
    text = digits[rng.integers(0, 16, (rows, 16), np.uint8)]
    offsets = np.arange(0, 16 * rows + 1, 16, dtype=np.int32)
    return pa.StringArray.from_buffers(rows, pa.py_buffer(offsets), pa.py_buffer(text))


def make(folder: Path, rows: int, seed: int) -> None:
    """Files of difficulty (float32 on the 2^-20 grid), length (int32) and sample_id, both signals with ties."""
    rng = np.random.default_rng(seed)
    for start in range(0, rows, FILE_ROWS):
        size = min(FILE_ROWS, rows - start)
        difficulty = np.rint(rng.beta(0.8, 1.2, size) * 2**20) / 2**20
        length = np.clip(rng.lognormal(8.3, 0.8, size), 1, 16_384)
        table = pa.table(
            {
                "difficulty": difficulty.astype(np.float32),
                "length": length.astype(np.int32),
                "sample_id": hex_ids(rng, size),
            }
        )
        pq.write_table(table, folder / f"{start:012d}.parquet", use_dictionary=False, row_group_size=1 << 20)


# --- the two sides ----------------------------------------------------------------------------------------


def ours(pool: pa.Table) -> pa.Array:
    """The ids of the best, in order, beside their values and ranks; those of the others are looked up as they are
    written, and held by nobody."""
    columns = {name: pool[name].to_numpy() for name in WEIGHTS}
    counts = {name: count(values, name) for name, values in columns.items()}
    ranker = joint_ranker(counts, parse_weights(WEIGHTS, list(WEIGHTS)))
    joint, ids = ranker.joint(columns), pool["sample_id"].chunk(0)
    top = top_rows(joint, columns["length"], ids, k=max(1, pool.num_rows * SHARE // 100))
    del joint
    picked = {name: values[top] for name, values in columns.items()}
    block = ranker.rank(picked)
    ranks = {f"rank_{name}": values for name, values in block.ranks.items()}
    joint_ranks = ranker.published(block.joint)
    return pa.table({"sample_id": ids.take(top), **picked, **ranks, "rank_joint": joint_ranks})["sample_id"]


def polars_side(pool: pa.Table) -> Callable[[], pa.Array]:
    """The same with polars, as a call without arguments; turning the pool into a data frame is not timed.

    Eager: the lazy form of this query was 2 to 4 times slower.
    """
    import polars as pl

    frame = pl.DataFrame(pl.from_arrow(pool))
    ranks = [pl.col(name).rank("average", descending=True).alias(f"rank_{name}") for name in WEIGHTS]
    joint = sum((weight * pl.col(f"rank_{name}") for name, weight in WEIGHTS.items()), pl.lit(0.0))
    keys, descending = ["rank_joint", "length", "sample_id"], [False, True, False]
    k = max(1, pool.num_rows * SHARE // 100)

    def call() -> pa.Array:
        ranked = frame.with_columns(ranks).with_columns(rank_joint=joint)
        return ranked.sort(keys, descending=descending).head(k)["sample_id"].to_arrow()

    return call


def duckdb_side(pool: pa.Table) -> Callable[[], pa.Array]:
    """The same with duckdb, over a table of its own; making that is not timed.

    Average ranks come from how often each value occurs, joined to the rows: `rank() OVER` all rows took nearly twice as
    long.
    """
    import duckdb

    connection = duckdb.connect()
    connection.register("given", pool)
    connection.execute("CREATE TABLE pool AS SELECT * FROM given")
    ranks = ", ".join(
        f"{name}_ranks AS (SELECT {name}, sum(n) OVER (ORDER BY {name} DESC) - (n - 1) / 2.0 AS rank_{name} "
        f"FROM (SELECT {name}, count(*) AS n FROM pool GROUP BY {name}))"
        for name in WEIGHTS
    )
    joins = " ".join(f"JOIN {name}_ranks USING ({name})" for name in WEIGHTS)
    joint = " + ".join(f"{weight} * rank_{name}" for name, weight in WEIGHTS.items())
    k = max(1, pool.num_rows * SHARE // 100)
    query = (
        f"WITH {ranks} SELECT sample_id, {', '.join(WEIGHTS)}, {joint} AS rank_joint FROM pool {joins} "
        f"ORDER BY rank_joint, length DESC, sample_id LIMIT {k}"
    )
    return lambda: connection.sql(query).to_arrow_table()["sample_id"]


def streamed(folder: Path) -> int:
    """Rank and order from files, a batch at a time; returns how many rows were selected."""
    counters = {name: ValueCounter(name) for name in WEIGHTS}
    for batch in batches(folder, list(WEIGHTS)):
        for name, counter in counters.items():
            counter.add(batch[name].to_numpy())
    counts = {name: counter.counts() for name, counter in counters.items()}
    ranker = joint_ranker(counts, parse_weights(WEIGHTS, list(WEIGHTS)))
    k = max(1, ranker.rows * SHARE // 100)

    def joint_of(batch: pa.RecordBatch) -> Any:
        return ranker.joint({name: batch[name].to_numpy() for name in WEIGHTS})

    cutoff = find_cutoff(lambda: map(joint_of, batches(folder, list(WEIGHTS))), ranker.largest_joint, k)
    joints, lengths, ids = [], [], []
    for batch in batches(folder, [*WEIGHTS, "sample_id"]):
        joint = joint_of(batch)
        rows = np.flatnonzero(joint <= cutoff)
        joints.append(joint[rows])
        lengths.append(batch["length"].to_numpy()[rows])
        ids.append(batch["sample_id"].take(rows))
    joint, length = np.concatenate(joints), np.concatenate(lengths)
    return order_rows(np.arange(joint.size), joint, length, pa.chunked_array(ids), k=k).size


def batches(folder: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    for path in sorted(folder.glob("*.parquet")):
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(BATCH_ROWS, columns=columns)


# --- processes --------------------------------------------------------------------------------------------


def child(task: str, folder: Path, rows: int, seed: int, repeats: int) -> dict[str, Any]:
    """What one process measures. Data is made in a process of its own too: peak memory is inherited."""
    if task == "make":
        make(folder, rows, seed)
        return {}
    if task == "stream":
        times = [timed(lambda: streamed(folder))[0] for _ in range(repeats)]
        return {"times": {"ours": times}, "peak_mib": peak_mib()}
    pool = pq.read_table(folder).combine_chunks()
    sides: dict[str, Callable[[], pa.Array]] = {}
    if task in ("all", "ours"):
        sides["ours"] = lambda: ours(pool)
    if task in ("all", "polars"):
        sides["polars"] = polars_side(pool)
    if task in ("all", "duckdb"):
        sides["duckdb"] = duckdb_side(pool)
    measured: dict[str, list[float]] = {name: [] for name in sides}
    results: dict[str, pa.Array] = {}
    for _ in range(repeats):
        for name, call in sides.items():
            seconds, results[name] = timed(call)
            measured[name].append(seconds)
    first, *others = (result.to_pylist() for result in results.values())
    if any(other != first for other in others):
        raise SystemExit("the sides select different rows, or in another order")
    return {"times": measured, "peak_mib": peak_mib()}


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def start(task: str, folder: Path, rows: int, seed: int, repeats: int = 1) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.benchmarks.bench_ranking", "--task", task, "--folder", str(folder)]
    command += ["--rows", str(rows), "--seed", str(seed), "--repeats", str(repeats)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def run(rows: int = 10_000_000, seed: int = 0, repeats: int = 3, stream: Sequence[int] | None = None) -> list[Row]:
    """All lines of the table; `stream`: sizes to stream from files, by default as many rows and ten times as many."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        start("make", folder, rows, seed)
        times = start("all", folder, rows, seed, repeats)["times"]
        peaks = {side: start(side, folder, rows, seed)["peak_mib"] for side in times}
    table = [
        compared(
            f"rank + top {SHARE} %, {rows:,} rows / {side}", times["ours"], times[side], peaks["ours"], peaks[side]
        )
        for side in times
        if side != "ours"
    ]
    for size in (rows, 10 * rows) if stream is None else stream:
        with tempfile.TemporaryDirectory() as place:
            start("make", Path(place), size, seed)
            answer = start("stream", Path(place), size, seed)
        seconds = statistics.median(answer["times"]["ours"])
        table.append(Row(f"streamed from files, {size:,} rows", seconds, answer["peak_mib"]))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--stream", type=int, action="append", metavar="ROWS")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.task:
        answer = child(given.task, given.folder, given.rows, given.seed, given.repeats)
        sys.stdout.write(json.dumps(answer))
    else:
        sys.stdout.write(show(run(given.rows, given.seed, given.repeats, given.stream)))


if __name__ == "__main__":
    main()
