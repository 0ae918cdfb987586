"""The index stage, whole, over a local Ray, against pyarrow reading the same columns of the same files alone.

The pool is made of real rows where they are there, each repeated under another id and with another beginning of
question and traces, so that no two rows are alike; the seed gives the order. Ours: `s2r score` without a judge, in a
process of its own, the seconds that the run records for its index stage, starting Ray's workers included. The
reference: a scan of the pool by pyarrow.dataset with its own threads, which keeps nothing. Both read from the page
cache.

Besides, in one process and one thread: `index_unit` over every unit, against the same scan without threads.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from s2r_ray.candidates import Guards
from s2r_ray.config import Config, PoolSection
from s2r_ray.index import PoolIndex, index_unit
from s2r_ray.mapping import preset
from s2r_ray.models import find_tokenizer
from s2r_ray.pipeline import score
from s2r_ray.progress import Progress
from s2r_ray.readers import plan_units, pool_files
from s2r_ray.storage import Place
from s2r_ray.synth import SCHEMA
from tests.benchmarks.real_pool import pool_rows, student_tokenizer
from tests.benchmarks.table import Row, compared, show

_PRESET = "openr1-math-220k"
_GROUP_ROWS = 250
_FILE_ROWS = 2000
_SAMPLE_SECONDS = 1.0  # looking through all processes takes a while
_NO_GUARDS = Guards(verified=False, complete=False, finish_reasons=(), cutoff_tokens=0)


@dataclass(frozen=True)
class Pool:
    """A pool that was made: its traces, the bytes of their text, and of its files."""

    traces: int
    text_bytes: int
    file_bytes: int


# --- the pool ---------------------------------------------------------------------------------------------


def write_pool(folder: Path, seed: int, megabytes: float | None = None, traces: int | None = None) -> Pool:
    """Write files of `_FILE_ROWS` rows until they have so many megabytes, or so many traces."""
    folder.mkdir()
    rows = endless_rows(seed)
    written = text = size = 0
    while (traces is None or written < traces) and (megabytes is None or size < megabytes * 1e6):
        part: list[dict[str, Any]] = []
        while len(part) < _FILE_ROWS and (traces is None or written < traces):
            part.append(next(rows))
            written += len(part[-1]["generations"])
            text += sum(len(trace.encode()) for trace in part[-1]["generations"])
        path = folder / f"part-{len(list(folder.iterdir())):05d}.parquet"
        pq.write_table(pa.Table.from_pylist(part, SCHEMA), path, row_group_size=_GROUP_ROWS, compression="zstd")
        size += path.stat().st_size
    return Pool(written, text, size)


def endless_rows(seed: int) -> Iterator[dict[str, Any]]:
    """All source rows in random order, then all again with another id and other beginnings, and so on."""
    _, source = pool_rows(seed)
    dice = random.Random(seed)
    turn = 0
    while True:
        dice.shuffle(source)
        for row in source:
            traces = [_begun(trace, f"Take {turn}.") for trace in row["generations"]]
            yield {
                **row,
                "uuid": f"{row['uuid']}-{turn}",
                "problem": f"({turn}) {row['problem']}",
                "generations": traces,
            }
        turn += 1


def _begun(trace: str, words: str) -> str:
    """The trace with these words before its first one."""
    mark = "<think>\n"
    return f"{mark}{words} {trace.removeprefix(mark)}" if trace.startswith(mark) else f"{words} {trace}"


# --- the sides --------------------------------------------------------------------------------------------


def index_over_ray(pool: Path, guards: Guards) -> float:
    """Seconds of the index stage, as the run records them."""
    with tempfile.TemporaryDirectory() as out:
        section = PoolSection(uri=str(pool), preset=_PRESET)
        config = Config(
            pools=(section,), out=out, tokenizer=student_tokenizer()[1], guards=guards, weights={"length": "1"}
        )
        return score(config, Progress(quiet=True), signals=[]).seconds["index"]


def index_in_process(pool: Path, guards: Guards) -> float:
    """Seconds of `index_unit` over all units, after one unit that is not counted."""
    with tempfile.TemporaryDirectory() as out:
        root, tokenizer = Place.of(pool), find_tokenizer(student_tokenizer()[1])
        index = PoolIndex(root, Place.of(out), preset(_PRESET), guards, "first", tokenizer)
        units = plan_units(root, 0, pool_files(root.files(), str(pool)))
        index_unit(index, units[0])
        started = time.perf_counter()
        for unit in units:
            index_unit(index, unit)
        return time.perf_counter() - started


def read_alone(pool: Path, *, threads: bool) -> float:
    """Seconds in which pyarrow reads the columns that an index task reads."""
    started = time.perf_counter()
    dataset = ds.dataset(pool, format="parquet")
    for _ in dataset.to_batches(columns=list(preset(_PRESET).columns()), use_threads=threads):
        pass
    return time.perf_counter() - started


def child(task: str, pool: Path, guards: Guards) -> float:
    """What one process measures."""
    if task == "ray":
        return index_over_ray(pool, guards)
    if task in ("process", "read-one"):
        pa.set_cpu_count(1)
        pa.set_io_thread_count(1)
    if task == "process":
        return index_in_process(pool, guards)
    read_alone(pool, threads=task == "read")  # once to warm the page cache and pyarrow
    return read_alone(pool, threads=task == "read")


def measure(task: str, pool: Path, *, guarded: bool = True) -> tuple[float, float]:
    """(seconds, MiB of private memory at the peak of all processes together)."""
    command = [sys.executable, "-m", "tests.benchmarks.bench_index", "--task", task, "--folder", str(pool)]
    command += [] if guarded else ["--all-traces"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        peaks: list[float] = []
        watcher = threading.Thread(target=_watch, args=(process, peaks))
        watcher.start()
        said, _ = process.communicate()
        watcher.join()
    if process.returncode:
        raise AssertionError(f"{' '.join(command)} failed")
    return float(json.loads(said.splitlines()[-1])), max(peaks, default=0.0)


def _watch(process: subprocess.Popen[str], peaks: list[float]) -> None:
    while process.poll() is None:
        used = 0
        try:
            root = psutil.Process(process.pid)
            for one in [root, *root.children(recursive=True)]:
                memory = one.memory_info()
                used += memory.rss - memory.shared
        except psutil.Error:
            pass
        peaks.append(used / 2**20)
        time.sleep(_SAMPLE_SECONDS)


# --- the table --------------------------------------------------------------------------------------------


def run(
    megabytes: float = 1000, seed: int = 0, repeats: int = 3, traces: Sequence[int] = (), *, guarded: bool = True
) -> list[Row]:
    """Two rows over a pool of so many megabytes of Parquet, and one for each number of traces.

    Args:
        guarded: leave out unverified and unfinished traces, as runs do; if not, every trace is counted.
    """
    source, _ = pool_rows(seed)
    rows = []
    with tempfile.TemporaryDirectory() as place:
        pool = Path(place) / "pool"
        made = write_pool(pool, seed, megabytes=megabytes)
        what = (
            f"{source} repeated to {made.file_bytes / 1e6:,.0f} MB of Parquet ({made.text_bytes / 1e6:,.0f} MB of text"
        )
        what += ")" if guarded else "), no guards"
        for name, ours, reference in (
            (f"index stage, whole, {os.cpu_count()} cores, {what} / pyarrow read", "ray", "read"),
            (f"index_unit, one process, {what} / pyarrow read, one thread", "process", "read-one"),
        ):
            pairs = [(measure(ours, pool, guarded=guarded), measure(reference, pool)) for _ in range(repeats)]
            own, other = zip(*pairs, strict=True)
            peaks = [max(peak for _, peak in side) for side in (own, other)]
            rows.append(compared(name, [s for s, _ in own], [s for s, _ in other], *peaks))
    for count in traces:
        with tempfile.TemporaryDirectory() as place:
            pool = Path(place) / "pool"
            made = write_pool(pool, seed, traces=count)
            seconds, peak = measure("ray", pool, guarded=guarded)
            speed = f"{made.traces / seconds:,.0f} traces/s, {made.text_bytes / seconds / 1e6:,.0f} MB/s"
            rows.append(Row(f"index stage, whole, {made.traces:,} {source}: {speed}", seconds, peak))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=1000, help="of Parquet files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--traces", type=int, action="append", default=[], help="a row for a pool of so many")
    parser.add_argument("--all-traces", action="store_true", help="count every trace, whatever its flags")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.task:
        seconds = child(given.task, given.folder, _NO_GUARDS if given.all_traces else Guards())
        sys.stdout.write(f"\n{json.dumps(seconds)}\n")
    else:
        table = run(given.megabytes, given.seed, given.repeats, given.traces, guarded=not given.all_traces)
        sys.stdout.write(show(table))


if __name__ == "__main__":
    main()
