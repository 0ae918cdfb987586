"""What the driver of a run needs in memory: every step over an index that is there already, in a process of its own.

The worst case there is: every candidate asks a question of its own, which has a score of its own. The index, its
questions and the score store are made up, with the package's own schemas and writing functions, in the number and size
that real runs leave them. Bytes a sample are the peak of resident memory less that of the same step over a pool of
1,000 samples, which has all imports, Ray and Arrow's pools in it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from s2r_ray.baselines import Baselines
from s2r_ray.candidates import Guards
from s2r_ray.cluster import Connection, connected, stream_actors
from s2r_ray.config import load_config
from s2r_ray.error_rate import check_judged, check_rows
from s2r_ray.index import QUESTIONS_SCHEMA, PoolIndex, Snapshot, candidates_place, label_column, questions_place
from s2r_ray.mapping import Mapping
from s2r_ray.models import ModelRef
from s2r_ray.pending import find_questions, work_items
from s2r_ray.pipeline import Done, index_and_score, rank_and_publish
from s2r_ray.plan import Plan
from s2r_ray.progress import Progress
from s2r_ray.ranking import parse_weights
from s2r_ray.readers import Unit
from s2r_ray.selection import rank
from s2r_ray.signals.base import Resources
from s2r_ray.storage import Place
from s2r_ray.store import ScoreStore
from s2r_ray.strata import Strata
from s2r_ray.tables import write_table
from tests.benchmarks.commands import told_by
from tests.benchmarks.table import Row, peak_bytes, show
from tests.fakes import HashJudge

TINY = 1000
UNITS = 100
BATCH = 512
"""Questions a part of the score store, as `workers.judge_batch` has it."""
_WRITERS = 8
_SOURCES, _SHARES = ["olympiads", "cn_contest", "aops_forum", None], [0.55, 0.3, 0.14, 0.01]


# --- the data ---------------------------------------------------------------------------------------------


def make(out: Place, rows: int, units: int, seed: int, batch: int = BATCH) -> None:
    """An index of so many candidates, and a score for each of their questions but one in a thousand, which failed.

    One candidate in a thousand repeats another's question and trace; beside each hundred candidates lies a row that
    the guards left out.
    """
    stores = ScoreStore.of(out, plan_of(out, rows, units).signals[0])
    with ThreadPoolExecutor(_WRITERS) as threads:
        for rng, questions in make_index(out, rows, units, seed):
            scores = scores_of(rng, questions["question_key"].combine_chunks())
            parts = (scores.slice(start, batch) for start in range(0, scores.num_rows, batch))
            list(threads.map(stores.append, parts))


def make_index(out: Place, rows: int, units: int, seed: int) -> Iterator[tuple[np.random.Generator, pa.Table]]:
    """The index alone, unit by unit as this is gone through: (the dice of a unit, its questions)."""
    plan = plan_of(out, rows, units)
    bounds = np.linspace(0, rows, len(plan.units) + 1).astype(int)
    for number, (_, key) in enumerate(plan.units):
        rng = np.random.default_rng([seed, number])
        candidates, questions = unit_tables(rng, int(bounds[number + 1] - bounds[number]))
        write_table(candidates_place(out, key), candidates.cast(plan.pools[0].schema))
        write_table(questions_place(out, key), questions)
        yield rng, questions


def unit_tables(rng: np.random.Generator, rows: int) -> tuple[pa.Table, pa.Table]:
    """A unit's index rows and its questions, in random order of keys."""
    copies, out_of = rows // 1000, rows // 100
    total = rows + out_of
    question_key, sample_key = random_keys(rng, total), random_keys(rng, total)
    question_key[rows - copies : rows] = question_key[:copies]
    sample_key[rows - copies : rows] = sample_key[:copies]
    candidate = np.arange(total) < rows
    shuffled = rng.permutation(total)
    length = np.clip(rng.lognormal(8.3, 0.8, total), 1, 16_384).astype(np.int32)
    columns = {
        "sample_id": texts(random_keys(rng, total), b"-0000#0"),
        "row": np.arange(total),
        "generation": np.zeros(total, np.int32),
        "question_key": keys_array(question_key[shuffled]),
        "sample_key": keys_array(sample_key[shuffled]),
        "question_tokens": pa.array(length // 16),
        "response_tokens": pa.array(length + 300),
        "trace_tokens": pa.array(length),
        "trace_tokens_unique": pa.array(length - length % 7),
        "trace_characters": pa.array(length * 3),
        "rethinking_words": pa.array(length // 100),
        "addresses_judge": pa.array(rng.random(total) < 1e-4),
        "verified": candidate[shuffled],
        "complete": pa.repeat(True, total),
        "finish_reason": pa.repeat("stop", total).dictionary_encode(),
        "reason": pa.array(["unverified"] * total, mask=candidate[shuffled]).dictionary_encode(),
        "detail": pa.nulls(total, pa.string()),
        label_column("source"): pa.array(_SOURCES).take(pa.array(rng.choice(len(_SOURCES), total, p=_SHARES))),
    }
    asked = rng.permutation(rows - copies)
    questions = pa.table([keys_array(question_key[asked]), texts(question_key[asked], b" is what?")], QUESTIONS_SCHEMA)
    return pa.table(columns), questions


def scores_of(rng: np.random.Generator, keys: pa.Array) -> pa.Table:
    """Rows of the score store for these questions, in random order."""
    keys = keys.take(pa.array(rng.permutation(len(keys))))
    long = rng.random(len(keys)) < 1e-3
    words = [f"{number} tokens, at most 4,096" if bad else None for number, bad in enumerate(long)]
    return pa.table(
        {
            "key": keys,
            "value": pa.array(np.rint(rng.beta(0.8, 1.2, len(keys)) * 2**20) / 2**20, mask=long),
            "label_mass": pa.array(1 - rng.random(len(keys)) / 1000, mask=long),
            "status": np.where(long, "too_long", "ok"),
            "detail": pa.array(words, pa.string()),
        }
    )


def random_keys(rng: np.random.Generator, rows: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return rng.integers(0, 256, (rows, 16), np.uint8)


def keys_array(keys: np.ndarray[Any, np.dtype[np.uint8]]) -> pa.Array:
    """uint8[n, 16] as 16-byte keys."""
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(keys), [None, pa.py_buffer(keys.tobytes())])


def texts(keys: np.ndarray[Any, np.dtype[np.uint8]], end: bytes) -> pa.Array:
    """32 hexadecimal digits and an ending that is the same for all."""
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)
    nibbles = np.stack([keys >> 4, keys & 15], axis=2).reshape(len(keys), 32)
    endings = np.broadcast_to(np.frombuffer(end, np.uint8), (len(keys), len(end)))
    data = np.concatenate([digits[nibbles], endings], axis=1)
    offsets = np.arange(len(keys) + 1, dtype=np.int32) * data.shape[1]
    return pa.StringArray.from_buffers(len(keys), pa.py_buffer(offsets), pa.py_buffer(data.tobytes()))


# --- the steps --------------------------------------------------------------------------------------------


def plan_of(out: Place, rows: int, units: int) -> Plan:
    """A plan over units that are all indexed already; what they were indexed from is not there."""
    units = max(1, min(units, rows // 100))
    mapping = Mapping(question="problem", traces="generations", labels={"source": "source"})
    pool = PoolIndex(Place.of("/pool"), out, mapping, Guards(), "first", ModelRef("none", Path(), "made up"))
    each = [Unit(0, f"part-{number:05d}.parquet", 1 << 27, "1") for number in range(units)]
    settings = {"pools": [{"uri": "/pool"}], "out": out.uri, "max_error_rate": "0.01"}
    config = load_config(None, settings)
    judge = HashJudge(batch=BATCH)
    weights = parse_weights(config.weights, ["difficulty", "length"])
    return Plan(config, out, (pool,), tuple((unit, pool.key(unit)) for unit in each), (), (judge,), weights)


def snapshot_of(plan: Plan) -> Snapshot:
    return Snapshot(plan.pool_uris, plan.units)


def find(plan: Plan) -> None:
    """Which questions have no score: none."""
    questions = find_questions(plan.out, snapshot_of(plan))
    settled = ScoreStore.of(plan.out, plan.signals[0]).settled(questions.keys)
    if len(questions.pending(settled.mask)):
        raise AssertionError("all questions are judged")


def check(plan: Plan) -> None:
    """Both shares of errors."""
    snapshot, signal = snapshot_of(plan), plan.signals[0]
    check_rows(plan.out, snapshot, "0.01")
    keys = find_questions(plan.out, snapshot).keys
    check_judged(plan.out, snapshot, keys, signal, ScoreStore.of(plan.out, signal), "0.01")


def select(plan: Plan) -> None:
    """Rank and write."""
    stores = {signal.name: ScoreStore.of(plan.out, signal) for signal in plan.signals}
    run = plan.out.child("runs", "rank")
    rank(plan.out, snapshot_of(plan), stores, plan.weights, plan.config.budgets, run)


def compare(plan: Plan) -> None:
    """Rank inside of groups, and write all baselines too."""
    stores = {signal.name: ScoreStore.of(plan.out, signal) for signal in plan.signals}
    run, names = plan.out.child("runs", "compare"), ("random", "longest", "shortest", "difficulty", "stratified:source")
    snapshot, budgets = snapshot_of(plan), plan.config.budgets
    rank(plan.out, snapshot, stores, plan.weights, budgets, run, Strata(by="source"), Baselines(names))


def night(plan: Plan) -> None:
    """All of a run with nothing to do: find, check, rank, write, report and publish."""
    quiet = Progress(quiet=True)
    scored = index_and_score(plan, Connection(None), quiet, Done())
    rank_and_publish(plan.out, scored, plan.weights, plan.config, "2026-11-21", quiet)


def first(plan: Plan) -> dict[str, float]:
    """Nothing is judged yet: find all questions and hand them to a pool of workers, which do nothing.

    Returns bytes a question in Ray's object store, at their most.
    """
    import ray

    questions = find_questions(plan.out, snapshot_of(plan))
    pending = questions.pending(np.zeros(len(questions.keys), np.bool_))
    handed, most = 0, 0.0
    with connected(None):
        items = work_items(snapshot_of(plan), pending, BATCH, 1)
        capacity = ray.cluster_resources()["object_store_memory"]
        for number, result in enumerate(stream_actors(items, load_nothing, Idle, (), Resources(cpus=0.5), {})):
            handed += result["scored"]
            if number % 256 == 0:
                most = max(most, capacity - ray.available_resources().get("object_store_memory", 0))
    if handed != len(questions.keys):
        raise AssertionError(f"{handed:,} of {len(questions.keys):,} questions were handed out")
    return {"object_store": most}


def load_nothing(item: dict[str, Any]) -> pa.Table:
    """As many rows as there are questions in an item."""
    return pa.table({"key": np.zeros(sum(len(rows) // 4 for rows in item["rows"]), np.int8)})


class Idle:
    """A worker that counts."""

    def __call__(self, table: pa.Table) -> pa.Table:
        return pa.Table.from_pylist([{"scored": table.num_rows}])


STEPS: dict[str, Callable[[Plan], dict[str, float] | None]] = {
    "find": find,
    "check": check,
    "rank": select,
    "compare": compare,
    "night": night,
    "first": first,
}
NAMES = {
    "find": "find what to judge, all judged",
    "check": "hold errors against the rate",
    "rank": "rank and write",
    "compare": "rank inside of groups, and write five baselines too",
    "night": "whole night with nothing to judge",
    "first": "find what to judge, nothing judged, and hand it to Ray",
}


# --- processes --------------------------------------------------------------------------------------------


def child(task: str, folder: Path, rows: int, units: int, seed: int) -> dict[str, float]:
    """What one process measures: seconds, and the peak of its resident memory in bytes."""
    out = Place.of(folder)
    started = time.perf_counter()
    more = None
    if task == "make":
        make(out, rows, units, seed)
    else:
        more = STEPS[task](plan_of(out, rows, units))
    return {"seconds": time.perf_counter() - started, "peak": peak_bytes(), **(more or {})}


def start(task: str, folder: Path, rows: int, units: int, seed: int) -> dict[str, float]:
    options = {"task": task, "folder": folder, "rows": rows, "units": units, "seed": seed}
    return told_by("tests.benchmarks.bench_driver", *(f"--{name}={value}" for name, value in options.items()))


def measure(rows: int, seed: int, units: int = UNITS, steps: tuple[str, ...] = tuple(STEPS)) -> list[Row]:
    """One line a step: seconds and peak, the reference being the pool of 1,000 samples."""
    with tempfile.TemporaryDirectory() as place:
        small, large = Path(place, "small"), Path(place, "large")
        start("make", small, TINY, units, seed)
        made = start("make", large, rows, units, seed)
        sys.stderr.write(f"made {rows:,} samples in {made['seconds']:.0f} s\n")
        table = []
        for step in steps:
            base, found = (start(step, folder, size, units, seed) for folder, size in ((small, TINY), (large, rows)))
            a_sample = (found["peak"] - base["peak"]) / rows
            name = f"driver, {rows:,} samples, {NAMES[step]}: {a_sample:.1f} bytes a sample / {TINY:,} samples"
            if "object_store" in found:
                name += f" (object store {found['object_store'] / rows:.1f})"
            row = Row(name, found["seconds"], found["peak"] / 2**20, base["seconds"], base["peak"] / 2**20)
            ratio = base["seconds"] / found["seconds"]
            table.append(replace(row, ratio_median=ratio, ratio_min=ratio, ratio_max=ratio))
            sys.stderr.write(show(table[-1:]).splitlines()[-1] + "\n")
    return table


def run(rows: int = 10_000_000, seed: int = 0, repeats: int = 1) -> list[Row]:
    """All steps. Memory is the same every time, so each is measured once."""
    del repeats
    return measure(rows, seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--units", type=int, default=UNITS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--step", action="append", choices=STEPS)
    parser.add_argument("--task", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.task:
        answer = child(given.task, given.folder, given.rows, given.units, given.seed)
        sys.stdout.write(f"\n{json.dumps(answer)}\n")
    else:
        steps = tuple(given.step or STEPS)
        sys.stdout.write(show(measure(given.rows, given.seed, given.units, steps)))


if __name__ == "__main__":
    main()
