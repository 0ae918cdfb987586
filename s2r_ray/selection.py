"""Stage 3: global ranks of every candidate and the best k of each budget, from narrow columns alone.

What is held in memory is some 60 bytes a candidate; names and text stay in the index and pass through unit by unit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from s2r_ray.candidates import Reason
from s2r_ray.errors import S2RError
from s2r_ray.index import Snapshot, candidates_place
from s2r_ray.ranking import Weights, budget_size, count_values, joint_ranker, top_rows
from s2r_ray.signals import INDEX_SIGNALS
from s2r_ray.signals.base import Status
from s2r_ray.storage import Place
from s2r_ray.tables import WRITTEN, read_own, write_table

_PART_ROWS = 1 << 20
_GROUP_ROWS = 1 << 17  # divides the former
_READ_THREADS = 16
_ADDRESSING_SHOWN = 20
_PUBLISHED = (
    "sample_id",
    "row",
    "generation",
    "question_key",
    "trace_tokens",
    "trace_tokens_unique",
    "reason",
    "detail",
)


@dataclass(frozen=True)
class SignalScores:
    """One signal's scores by question key, as `ScoreStore.read` gives them; `extras` are its further columns."""

    name: str
    extras: tuple[str, ...]
    table: pa.Table


@dataclass(frozen=True)
class Ranking:
    """What was ranked.

    `indexed`: rows of the index, and one for each unreadable file; `ranked`: rows that compete; `excluded`: the
    others by reason; `budgets`: how many rows each selects; `top`: the largest budget's rows, in order of rank.
    `addressing`: how many ranked rows, and how many of each budget, have a question that speaks to the judge;
    `addressing_top`: the first of them in order of rank.
    """

    indexed: int
    ranked: int
    excluded: dict[str, int]
    budgets: dict[str, int]
    top: pa.Table
    addressing: dict[str, int]
    addressing_top: pa.Table


@dataclass
class _Candidates:
    """The candidates of a snapshot in location order (pool, path, row, generation); arrays of one length.

    `unit` is the position in the snapshot, `place` that in the unit's index rows. `fault` is the reason why a
    candidate is not ranked after all, -1 for none: a place in `fault_names` and `fault_details`, and `detail` is the
    place of its words in the latter. `indexed` counts all index rows, candidates or not.
    """

    unit: npt.NDArray[np.int32]
    place: npt.NDArray[np.int32]
    question_key: pa.Array
    sample_key: pa.Array
    length: npt.NDArray[np.int32]
    addresses_judge: npt.NDArray[np.bool_]
    fault: npt.NDArray[np.int16]
    detail: npt.NDArray[np.int32]
    fault_names: list[str]
    fault_details: list[Any]
    indexed: int

    def __len__(self) -> int:
        return len(self.unit)

    def exclude(self, positions: npt.NDArray[Any], name: str, details: pa.Array, detail: npt.NDArray[np.int32]) -> None:
        """Leave these out unless they are left out already.

        `name` is the reason, `details` words on it, and `detail` each position's place in those.
        """
        fresh = self.fault[positions] < 0
        self.fault[positions[fresh]] = len(self.fault_names)
        self.detail[positions[fresh]] = detail[fresh]
        self.fault_names.append(name)
        self.fault_details.append(details)


def rank(
    out: Place,
    snapshot: Snapshot,
    signals: Sequence[SignalScores],
    weights: Weights,
    budgets: Sequence[str],
    run: Place,
) -> Ranking:
    """Rank the snapshot's candidates and write `ranking/`, `manifests/` and `excluded.parquet` below `run`.

    Args:
        signals: the scores of every signal that has a store.
        weights: over the names of those signals and of INDEX_SIGNALS.
        budgets: shares in per cent.

    Raises:
        S2RError: nothing is left to rank, or a candidate has no score at all.
    """
    candidates = _load_candidates(out, snapshot)
    _exclude_duplicates(candidates, out, snapshot)
    joined = [_join(candidates, signal) for signal in signals]
    kept = np.flatnonzero(candidates.fault < 0)
    if not len(kept):
        raise S2RError(f"nothing to rank: all {len(candidates):,} candidates were left out ({_reasons(candidates)})")
    values: dict[str, npt.NDArray[Any]] = {
        signal.name: table[signal.name][kept] for signal, table in zip(signals, joined, strict=True)
    }
    values |= dict.fromkeys(INDEX_SIGNALS, candidates.length[kept])
    ranker = joint_ranker({name: count_values(column, name) for name, column in values.items()}, weights)
    block = ranker.rank(values)
    sizes = {budget: budget_size(len(kept), budget) for budget in budgets}
    ids = _SampleIds(out, snapshot, candidates, kept)
    order = top_rows(block.joint, values["length"], ids, [kept], k=max(sizes.values()))
    narrow: dict[str, npt.NDArray[Any]] = {name: column[kept] for table in joined for name, column in table.items()}
    narrow |= {f"rank_{name}": column for name, column in block.ranks.items()}
    narrow["rank_joint"] = ranker.published(block.joint)
    ranked = _Narrow(kept, narrow)
    top, excluded = _write(out, snapshot, candidates, ranked, order, run)
    for budget, size in sizes.items():
        write_table(manifest_place(run, budget), top.slice(0, size))
    marked = np.flatnonzero(candidates.addresses_judge[kept])
    addressing = {"ranked": len(marked)}
    addressing |= {budget: int(np.isin(order[:size], marked).sum()) for budget, size in sizes.items()}
    shown = top.slice(0, 0)
    if len(marked):
        ids = _SampleIds(out, snapshot, candidates, kept[marked])
        k = min(_ADDRESSING_SHOWN, len(marked))
        first = top_rows(block.joint[marked], values["length"][marked], ids, [kept[marked]], k=k)
        shown = _rows_at(out, snapshot, candidates, ranked, marked[first])
    indexed = candidates.indexed + len(snapshot.unreadable)
    return Ranking(indexed, len(kept), excluded, sizes, top, addressing, shown)


def manifest_place(run: Place, budget: str) -> Place:
    """The manifest of a budget in per cent, such as "2" or "2.5"."""
    return run.child("manifests", f"top-{budget}pct.parquet")


def _load_candidates(out: Place, snapshot: Snapshot) -> _Candidates:
    wanted = ["question_key", "sample_key", INDEX_SIGNALS["length"], "addresses_judge", "reason"]
    units, places, tables = [], [], []
    indexed = 0
    for position, table in enumerate(_index_rows(out, snapshot, wanted)):
        indexed += table.num_rows
        rows = np.flatnonzero(table["reason"].is_null().to_numpy()).astype(np.int32)
        tables.append(table.take(pa.array(rows)))
        units.append(np.full(len(rows), position, np.int32))
        places.append(rows)
    if not sum(map(len, units)):
        raise S2RError("nothing to rank: no trace of the pool passed the guards; see `guards` in the configuration")
    table = pa.concat_tables(tables).combine_chunks()
    return _Candidates(
        np.concatenate(units),
        np.concatenate(places),
        table["question_key"].combine_chunks(),
        table["sample_key"].combine_chunks(),
        table[INDEX_SIGNALS["length"]].to_numpy(),
        table["addresses_judge"].to_numpy(),
        np.full(table.num_rows, -1, np.int16),
        np.zeros(table.num_rows, np.int32),
        [],
        [],
        indexed,
    )


def _exclude_duplicates(candidates: _Candidates, out: Place, snapshot: Snapshot) -> None:
    """Of samples with the same question and trace, the least by sample id, then location, stays."""
    keys = np.frombuffer(candidates.sample_key.buffers()[1], ">u8").reshape(-1, 2)[: len(candidates)]
    order = np.argsort(keys[:, 0], kind="stable")
    same = keys[order[1:], 0] == keys[order[:-1], 0]
    if not same.any():
        return
    suspects = np.unique(np.concatenate([order[1:][same], order[:-1][same]]))
    ids = _SampleIds(out, snapshot, candidates, np.arange(len(candidates))).take(suspects)
    table = pa.table({"key": candidates.sample_key.take(pa.array(suspects)), "id": ids, "at": suspects})
    table = table.take(pc.sort_indices(table, sort_keys=[(name, "ascending") for name in ("key", "id", "at")]))
    key = table["key"].combine_chunks()
    repeats = pc.equal(key.slice(1), key.slice(0, len(key) - 1)).to_numpy(zero_copy_only=False)
    place = np.arange(len(key))
    first = np.maximum.accumulate(np.where(np.append(False, repeats), 0, place))[1:][repeats]
    kept = pc.binary_join_element_wise("same question and trace as", table["id"].combine_chunks(), " ")
    candidates.exclude(table["at"].to_numpy()[1:][repeats], str(Reason.DUPLICATE_SAMPLE), kept, first.astype(np.int32))


def _join(candidates: _Candidates, signal: SignalScores) -> dict[str, npt.NDArray[np.float64]]:
    """The signal's value and extras for each candidate, float64[candidates]; faults are marked, NaN there."""
    found = pc.index_in(candidates.question_key, value_set=signal.table["key"])
    if found.null_count:
        raise S2RError(
            f"{found.null_count:,} candidates have no {signal.name} score; run `s2r score` with the same --out first"
        )
    at = found.to_numpy()
    status = signal.table["status"].combine_chunks().dictionary_encode()
    codes = status.indices.to_numpy()[at]
    details = signal.table["detail"].combine_chunks()
    for code, name in enumerate(status.dictionary.to_pylist()):
        if name != str(Status.OK):
            faulty = np.flatnonzero(codes == code)
            candidates.exclude(faulty, f"{signal.name}_{name}", details, at[faulty].astype(np.int32))
    names = {"value": signal.name, **{extra: extra for extra in signal.extras}}
    return {name: signal.table[column].to_numpy()[at] for column, name in names.items()}


@dataclass(frozen=True)
class _SampleIds:
    """Sample ids by position among `rows` of the candidates, read from the index only when asked for."""

    out: Place
    snapshot: Snapshot
    candidates: _Candidates
    rows: npt.NDArray[Any]

    def take(self, positions: Any, /) -> pa.Array:
        """The ids at these positions, in this order."""
        wanted = self.rows[np.asarray(positions)]
        result = np.empty(len(wanted), dtype=object)
        units = self.candidates.unit[wanted]
        for unit in np.unique(units):
            here = np.flatnonzero(units == unit)
            table = read_own(candidates_place(self.out, self.snapshot.units[unit][1]), ["sample_id"])
            places = pa.array(self.candidates.place[wanted[here]])
            result[here] = table["sample_id"].take(places).to_numpy(zero_copy_only=False)
        return pa.array(result, pa.string())


@dataclass(frozen=True)
class _Narrow:
    """Numbers of the ranked rows: `rows` are positions among the candidates, ascending; columns are as long."""

    rows: npt.NDArray[np.int64]
    columns: dict[str, npt.NDArray[np.float64]]


def _write(
    out: Place, snapshot: Snapshot, candidates: _Candidates, narrow: _Narrow, order: npt.NDArray[np.int64], run: Place
) -> tuple[pa.Table, dict[str, int]]:
    """Write `ranking/` and `excluded.parquet` in location order; return the selected rows in order of rank, with
    their position, and how many rows were excluded for each reason."""
    selected = np.zeros(len(narrow.rows), bool)
    selected[order] = True
    top: list[pa.Table] = []
    excluded: dict[str, int] = {}
    bounds = np.searchsorted(candidates.unit[narrow.rows], np.arange(len(snapshot.units) + 1))
    with ExitStack() as stack:
        ranking = _Parts(run.child("ranking"))
        stack.push(ranking.finish)
        rejects = _Parts(run, "excluded.parquet")
        stack.push(rejects.finish)
        rejects.add(_unreadable(snapshot))
        for unit, rows in enumerate(_index_rows(out, snapshot, _PUBLISHED)):
            index = _located(rows, snapshot, unit)
            place = slice(*bounds[unit : unit + 2])
            ranked = _ranked(index, candidates, narrow, place)
            ranking.add(ranked)
            top.append(ranked.filter(pa.array(selected[place])))
            rejects.add(_excluded(index, candidates, unit))
        excluded = rejects.counted
    by_rank = np.searchsorted(np.sort(order), order)
    best = pa.concat_tables(top).take(pa.array(by_rank)).combine_chunks()
    position = pa.array(np.arange(1, len(order) + 1, dtype=np.int64))
    return best.add_column(0, "position", position), excluded


def _ranked(index: pa.Table, candidates: _Candidates, narrow: _Narrow, place: slice) -> pa.Table:
    """A unit's ranked rows as published; `place` is where they are among all ranked rows."""
    table = index.take(pa.array(candidates.place[narrow.rows[place]]))
    for name, column in narrow.columns.items():
        table = table.append_column(name, pa.array(column[place]))
    ranks = [name for name in narrow.columns if name.startswith("rank_")]
    scores = [name for name in narrow.columns if name not in ranks]
    return table.select([*_location(table), *scores, "trace_tokens", "trace_tokens_unique", *ranks])


def _rows_at(
    out: Place, snapshot: Snapshot, candidates: _Candidates, narrow: _Narrow, rows: npt.NDArray[np.int64]
) -> pa.Table:
    """A few ranked rows as published; `rows` are places in `narrow`, and their order is kept."""
    tables = []
    for row in rows:
        unit = int(candidates.unit[narrow.rows[row]])
        index = read_own(candidates_place(out, snapshot.units[unit][1]), list(_PUBLISHED))
        tables.append(_ranked(_located(index, snapshot, unit), candidates, narrow, slice(row, row + 1)))
    return pa.concat_tables(tables)


def _excluded(index: pa.Table, candidates: _Candidates, unit: int) -> pa.Table:
    """A unit's rows that are not ranked, each with its reason."""
    reasons = np.array(index["reason"].cast(pa.string()).to_pylist(), dtype=object)
    first, stop = np.searchsorted(candidates.unit, [unit, unit + 1])
    here = first + np.flatnonzero(candidates.fault[first:stop] >= 0)
    details = np.array(index["detail"].to_pylist(), dtype=object)
    for at in here:
        place, fault = candidates.place[at], candidates.fault[at]
        reasons[place] = candidates.fault_names[fault]
        details[place] = candidates.fault_details[fault][int(candidates.detail[at])].as_py()
    table = index.set_column(index.column_names.index("reason"), "reason", pa.array(reasons, pa.string()))
    table = table.set_column(table.column_names.index("detail"), "detail", pa.array(details, pa.string()))
    return table.filter(pc.is_valid(table["reason"])).select([*_location(table), "reason", "detail"])


def _location(table: pa.Table) -> list[str]:
    """The columns that say which row this is and where it lies."""
    pool = ["pool"] if "pool" in table.column_names else []
    return ["sample_id", "file", "row", "generation", *pool, "question_key"]


def _located(table: pa.Table, snapshot: Snapshot, position: int) -> pa.Table:
    """Add where the rows lie, and show the question key in hexadecimal."""
    unit, _ = snapshot.units[position]
    table = table.append_column("file", pa.array([unit.path] * table.num_rows, pa.string()))
    if len(snapshot.pools) > 1:
        table = table.append_column("pool", pa.array([snapshot.pools[unit.pool]] * table.num_rows, pa.string()))
    shown = [None if key is None else key.hex() for key in table["question_key"].to_pylist()]
    return table.set_column(table.column_names.index("question_key"), "question_key", pa.array(shown, pa.string()))


def _unreadable(snapshot: Snapshot) -> pa.Table:
    """One row for each file that could not be read; its rows are unknown."""
    pools, paths, errors = zip(*snapshot.unreadable, strict=True) if snapshot.unreadable else ((), (), ())
    count = len(paths)
    columns = {
        "sample_id": pa.array([f"file:{path}" for path in paths], pa.string()),
        "file": pa.array(paths, pa.string()),
        "row": pa.array([-1] * count, pa.int64()),
        "generation": pa.array([-1] * count, pa.int32()),
    }
    if len(snapshot.pools) > 1:
        columns["pool"] = pa.array([snapshot.pools[pool] for pool in pools], pa.string())
    columns["question_key"] = pa.nulls(count, pa.string())
    columns["reason"] = pa.array([str(Reason.UNREADABLE_FILE)] * count, pa.string())
    columns["detail"] = pa.array(errors, pa.string())
    return pa.table(columns)


class _Parts:
    """Writes tables to one file, or to `part-00000.parquet`, … of bounded size; counts reasons as they pass.

    Files and row groups are cut by the running number of rows alone, so the same rows give the same bytes, however
    many tables they come in.
    """

    def __init__(self, folder: Place, name: str | None = None) -> None:
        self._folder = folder
        self._name = name
        self._stack = ExitStack()
        self._writer: pq.ParquetWriter | None = None
        self._parts = self._rows = self._held = 0
        self._waiting: list[pa.Table] = []
        self.counted: dict[str, int] = {}

    def finish(self, *exception: Any) -> bool:
        """Write what is left and close the last file; after an exception, leave none behind."""
        if exception and exception[0] is not None:
            return bool(self._stack.__exit__(*exception))
        with self._stack:
            if self._waiting:
                self._write(pa.concat_tables(self._waiting).combine_chunks())
        return False

    def add(self, table: pa.Table) -> None:
        """Append rows, in order."""
        if "reason" in table.column_names:
            for item in table["reason"].value_counts().to_pylist():
                self.counted[item["values"]] = self.counted.get(item["values"], 0) + item["counts"]
        self._waiting.append(table)
        self._held += table.num_rows
        if self._held < _GROUP_ROWS:
            return
        whole = self._held - self._held % _GROUP_ROWS
        waiting = pa.concat_tables(self._waiting).combine_chunks()
        for start in range(0, whole, _GROUP_ROWS):
            self._write(waiting.slice(start, _GROUP_ROWS))
        self._waiting, self._held = [waiting.slice(whole)], self._held - whole

    def _write(self, group: pa.Table) -> None:
        """Append one row group; an empty one only makes sure that there is a file."""
        if self._writer is None or (self._name is None and self._rows >= _PART_ROWS and group.num_rows):
            self._stack.close()
            target = self._folder.child(self._name or f"part-{self._parts:05d}.parquet")
            sink = self._stack.enter_context(target.open_output())
            self._writer = self._stack.enter_context(pq.ParquetWriter(sink, group.schema, **WRITTEN))
            self._parts, self._rows = self._parts + 1, 0
        if group.num_rows:
            self._writer.write_table(group)
            self._rows += group.num_rows


def _index_rows(out: Place, snapshot: Snapshot, columns: Sequence[str]) -> Iterator[pa.Table]:
    """These columns of each unit's index rows, in the snapshot's order, a few units read ahead."""
    with ThreadPoolExecutor(_READ_THREADS) as threads:
        coming: deque[Future[pa.Table]] = deque()
        for _, key in snapshot.units:
            coming.append(threads.submit(read_own, candidates_place(out, key), list(columns)))
            if len(coming) >= _READ_THREADS:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


def _reasons(candidates: _Candidates) -> str:
    codes, counts = np.unique(candidates.fault, return_counts=True)
    return ", ".join(f"{candidates.fault_names[code]}: {count:,}" for code, count in zip(codes, counts, strict=True))
