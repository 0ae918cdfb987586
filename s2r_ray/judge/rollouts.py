"""Labels for a judge: how often a base model solves each problem of the pools. Read `roll_out` top to bottom.

It goes as a run does: problems are found in the pool files, those that have no pass rate yet are judged by workers, and
what is in the score store is never drawn again. Draws are numbered; a store holds the draws [first, stop) of each
problem, so that a larger n draws only those that are missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from s2r_ray.cluster import Connection
from s2r_ray.config import Config
from s2r_ray.errors import S2RError, UsageError
from s2r_ray.index import Snapshot, UnitOutcome, label_column
from s2r_ray.pending import Distinct, find_problems
from s2r_ray.pipeline import check_bad_files, read_in_tasks
from s2r_ray.plan import check_apart
from s2r_ray.preflight import check_cluster, cpus_at_once
from s2r_ray.problems import ProblemPool, problems_place, read_keys, read_problems
from s2r_ray.progress import Progress
from s2r_ray.readers import Unit, plan_units, pool_files
from s2r_ray.score import score_missing
from s2r_ray.signals.base import Status
from s2r_ray.signals.pass_rate import PassRate
from s2r_ray.storage import Place
from s2r_ray.store import Found, ScoreStore
from s2r_ray.tables import DamagedError, read_own, written

_NUMBERS = ("rollouts", "passes", "cut_off", "ungraded")
_SHARES = ("pass_rate", "difficulty")
_TOLD = ("status", "detail")


@dataclass(frozen=True)
class RolledOut:
    """What came out.

    Attributes:
        labels: the Parquet file, a row for each problem: `question`, `answer`, the labels of the pools, `rollouts`,
            `passes`, `cut_off` and `ungraded` (counts), `pass_rate`, `difficulty` = 1 - pass rate, `status`, `detail`.
        problems: distinct ones; `judged` of them now, in that range of draws that missed the most.
        status: problems by status; only those that are ok have numbers.
        mean_pass_rate: of these; None without any. `never`, `always`: how many of them no draw, or each draw, solved.
    """

    labels: Place
    problems: int
    judged: int
    status: dict[str, int]
    mean_pass_rate: float | None
    never: int
    always: int
    seconds: float


def roll_out(config: Config, progress: Progress) -> RolledOut:
    """Draw and grade what is missing, and write the labels, `OUT/pass_rates.parquet`.

    Raises:
        UsageError: a setting, pool or model is wrong; nothing was begun.
        S2RError: something failed; what was drawn and graded is kept for the next try.
    """
    started = monotonic()
    out = config.out_place()
    pools, units = _find_pools(config, out)
    signal = PassRate.from_config(config)
    signals = [_with_samples(signal, *samples) for samples in missing_ranges(out, signal)]
    workers = config.workers
    needs = cpus_at_once(workers, signal.resources(0))
    try:
        with Connection(workers.address, cpus=needs, logs=workers.logs) as ray:
            snapshot = _read(config, pools, units, ray, progress)
            asked = find_problems(out, snapshot)
            if config.rollouts.questions is not None:
                asked = asked.some(config.rollouts.questions)
            if not len(asked.keys):
                raise S2RError(f"no row of {', '.join(snapshot.pools)} has a question")
            judged = [_judge(config, pools, snapshot, each, asked, ray, progress) for each in signals]
        return _write(out, pools, snapshot, signals, asked, max(judged), started)
    except DamagedError as error:
        error.place.set_aside()
        raise S2RError(f"{error}; start the same command again, which makes it anew") from error


def missing_ranges(out: Place, signal: PassRate) -> list[tuple[int, int]]:
    """Ranges of draws that make up those of a signal: such as are in the store already, and what is between."""
    stores = out.child("scores", signal.name)
    there = set()
    for name in [file.path for file in stores.files() if file.path.endswith("/about.json")]:
        about = stores.child(name).read_json() or {}
        first, stop = about.get("samples") or (0, 0)
        if about == _with_samples(signal, first, stop).fingerprint():
            there.add((first, stop))
    return cover(there, signal.settings.samples[1])


def cover(there: Collection[tuple[int, int]], n: int) -> list[tuple[int, int]]:
    """[0, n) as ranges one after the other, those that are there wherever one begins and fits, the longest first."""
    ranges: list[tuple[int, int]] = []
    at = 0
    while at < n:
        stop = max((stop for first, stop in there if first == at < stop <= n), default=n)
        ranges.append((at, stop))
        at = stop
    return ranges


def _with_samples(signal: PassRate, first: int, stop: int) -> PassRate:
    return PassRate(replace(signal.settings, samples=(first, stop)))


def _find_pools(config: Config, out: Place) -> tuple[list[ProblemPool], list[tuple[Unit, str]]]:
    """The pools, and all their units with their keys."""
    roots = config.pool_places()
    for place in (out, *roots):
        place.check_reachable()
    out.check_can_be_folder()
    pools: list[ProblemPool] = []
    units: list[tuple[Unit, str]] = []
    for number, (place, section) in enumerate(zip(roots, config.pools, strict=True)):
        root, files = place.glob()
        check_apart(out, place, root, files)
        mapping = section.resolved_mapping()
        if mapping.answer is None:
            raise UsageError(f"{place}: its mapping names no column of reference answers; set mapping.answer")
        pool = ProblemPool(root, out, mapping)
        pools.append(pool)
        units += [(unit, pool.key(unit)) for unit in plan_units(root, number, pool_files(files, str(place)))]
    return pools, units


def _read(
    config: Config, pools: Sequence[ProblemPool], units: Sequence[tuple[Unit, str]], ray: Connection, progress: Progress
) -> Snapshot:
    """Read what is new."""
    out = pools[0].out
    there = read_keys(out)
    fresh = [unit for unit, key in units if key not in there]
    bad: dict[str, UnitOutcome] = {}
    if fresh:
        out.check_writable()
        with progress.stage("problems", "files or parts", len(fresh)) as ticker:
            _ = ray.cluster
            for outcome in read_in_tasks(read_problems, pools, fresh, config.workers):
                if outcome.error:
                    bad[outcome.key] = outcome
                ticker.advance(1)
        check_bad_files(list(bad.values()), config.max_bad_files, progress)
    uris = tuple(place.uri for place in config.pool_places())
    return Snapshot(uris, tuple(item for item in units if item[1] not in bad))


def _judge(
    config: Config,
    pools: Sequence[ProblemPool],
    snapshot: Snapshot,
    signal: PassRate,
    asked: Distinct,
    ray: Connection,
    progress: Progress,
) -> int:
    """Draw and grade one range for the problems that have none; how many these were."""
    out, store, (first, stop) = pools[0].out, ScoreStore.of(pools[0].out, signal), signal.settings.samples
    settled = store.settled(asked.keys)
    for damage in settled.damaged:
        damage.place.set_aside()
        progress.say(f"warning: {damage}; set aside, its problems are judged again")
    pending = asked.pending(settled.mask)
    progress.say(
        f"pass rates: draws {first + 1} to {stop} of {len(pending):,} problems; {pending.distinct - len(pending):,} "
        "have them already"
    )
    if not len(pending):
        return 0
    cluster, workers = ray.cluster, config.workers
    for wait in check_cluster(cluster, workers, out, [pool.root for pool in pools], None, [signal]):
        progress.say(f"note: {wait}")
    resources = signal.resources(cluster.total("GPU"))
    score_missing(out, snapshot, signal, store, asked, pending, (), resources, workers.index_resources, progress)
    return len(pending)


@dataclass(eq=False)
class _Totals:
    """Over all ranges, int64[problems]: draws, passes, cut off, ungraded; and the faults of those that have any."""

    counts: dict[str, npt.NDArray[np.int64]]
    faults: pa.Table

    def statuses(self, at: npt.NDArray[np.int64]) -> dict[str, list[str | None]]:
        """`status` and `detail` of these problems."""
        bad = self.faults["at"].to_numpy()
        place = np.searchsorted(bad, at)
        rows = np.where(np.append(bad, -1)[place] == at, place, -1)
        found = {name: self.faults[name] for name in _TOLD}
        return {name: [found[name][row].as_py() if row >= 0 else None for row in rows.tolist()] for name in _TOLD}


def _totals(out: Place, signals: Sequence[PassRate], asked: Distinct) -> _Totals:
    """Sums over the ranges. A problem with a fault in one of them has no numbers."""
    counts = {name: np.zeros(len(asked.keys), np.int64) for name in _NUMBERS}
    faults = Found({}, len(asked.keys))
    for signal in signals:
        found = ScoreStore.of(out, signal).look_up(asked.keys)
        first, stop = signal.settings.samples
        counts["rollouts"] += np.where(found.ok, stop - first, 0)
        for name in signal.extras:
            counts[name] += np.where(found.ok, found.columns[name], 0).astype(np.int64)
        of_range = found.faults()
        faults.add_faults(of_range["at"].to_numpy(), of_range.select(["status", "detail"]))
    return _Totals(counts, faults.faults())


def _write(
    out: Place,
    pools: Sequence[ProblemPool],
    snapshot: Snapshot,
    signals: Sequence[PassRate],
    asked: Distinct,
    judged: int,
    started: float,
) -> RolledOut:
    """The labels, unit by unit, and what they come to."""
    target = out.child("pass_rates.parquet")
    totals = _totals(out, signals, asked)
    names = list(dict.fromkeys(label for pool in pools for label in pool.mapping.labels))
    schema = _schema(names)
    status: Counter[str] = Counter()
    rates: list[npt.NDArray[np.float64]] = []
    with target.open_output() as sink, pq.ParquetWriter(sink, schema, **written(schema)) as writer:
        for table in _rows(pools[0].out, snapshot, asked, totals, names, schema):
            writer.write_table(table)
            status.update(table["status"].to_pylist())
            rates.append(table["pass_rate"].drop_null().to_numpy())
    found = np.concatenate(rates)
    return RolledOut(
        labels=target,
        problems=len(asked.keys),
        judged=judged,
        status=dict(status),
        mean_pass_rate=float(found.mean()) if len(found) else None,
        never=int((found == 0).sum()),
        always=int((found == 1).sum()),
        seconds=round(monotonic() - started, 1),
    )


def _schema(labels: Sequence[str]) -> pa.Schema:
    taken = ("question", "answer", *_NUMBERS, *_SHARES, *_TOLD)
    return pa.schema(
        [
            ("question", pa.string()),
            ("answer", pa.string()),
            *((label_column(label) if label in taken else label, pa.string()) for label in labels),
            *((name, pa.int64()) for name in _NUMBERS),
            *((name, pa.float64()) for name in _SHARES),
            *((name, pa.string()) for name in _TOLD),
        ]
    )


def _rows(
    out: Place, snapshot: Snapshot, asked: Distinct, totals: _Totals, labels: Sequence[str], schema: pa.Schema
) -> Iterator[pa.Table]:
    """The problems of each unit that it brings first."""
    for number, (_, key) in enumerate(snapshot.units):
        table = read_own(problems_place(out, key))
        at = asked.keys.find(table["key"])
        here = asked.starts[number] + np.arange(len(at))
        mine = np.flatnonzero((at >= 0) & (asked.first[at] == here))
        table, at = table.take(pa.array(mine)), at[mine]
        told = totals.statuses(at)
        ok = np.array([status is None for status in told["status"]], bool)
        told["status"] = [status or str(Status.OK) for status in told["status"]]
        counts = {name: totals.counts[name][at] for name in _NUMBERS}
        rate = counts["passes"] / np.maximum(1, counts["rollouts"])
        columns = [table["question"], table["answer"]]
        for label in labels:
            name = label_column(label)
            columns.append(table[name] if name in table.column_names else pa.nulls(len(at), pa.string()))
        columns += [pa.array(counts[name], mask=~ok) for name in _NUMBERS]
        columns += [pa.array(values, mask=~ok) for values in (rate, 1 - rate)]
        columns += [pa.array(told[name], pa.string()) for name in _TOLD]
        yield pa.Table.from_arrays(columns, schema=schema)


def summary(done: RolledOut) -> dict[str, Any]:
    """For JSON."""
    return {**vars(done), "labels": done.labels.uri}
