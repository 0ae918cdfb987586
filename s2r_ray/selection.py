"""Stage 3: global ranks of every candidate and the best k of each budget, from narrow columns alone.

What grows with the pool is the table of candidates; names and text stay in the index and pass through unit by unit, and
selected rows are written a million at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from s2r_ray.candidate_table import CandidateTable, load_candidates, read_units, take_rows
from s2r_ray.errors import S2RError
from s2r_ray.index import Snapshot
from s2r_ray.keys import Places
from s2r_ray.parts import Parts
from s2r_ray.published import LEFT_OUT, RANKED, left_out_rows, ranked_rows, unreadable_files
from s2r_ray.ranking import JointRanker, ValueCounter, Weights, budget_size, joint_ranker, order_rows, select_top
from s2r_ray.signals import INDEX_SIGNALS
from s2r_ray.storage import Place
from s2r_ray.store import ScoreStore
from s2r_ray.tables import WRITTEN

_WRITTEN_ROWS = 1 << 17
_MANIFEST_ROWS = 1 << 20
_SHOWN = 20
_LAST = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Ranking:
    """What was ranked.

    `indexed`: rows of the index, and one for each unreadable file; `ranked`: rows that compete; `excluded`: the
    others by reason; `budgets`: how many rows each selects; `top`: the first rows in order of rank, with their
    position. `addressing`: how many ranked rows, and how many of each budget, have a question that speaks to the
    judge; `addressing_top`: the first of them in order of rank.
    """

    indexed: int
    ranked: int
    excluded: dict[str, int]
    budgets: dict[str, int]
    top: pa.Table
    addressing: dict[str, int]
    addressing_top: pa.Table


def rank(
    out: Place,
    snapshot: Snapshot,
    stores: Mapping[str, ScoreStore],
    weights: Weights,
    budgets: Sequence[str],
    run: Place,
) -> Ranking:
    """Rank the snapshot's candidates and write `ranking/`, `manifests/` and `excluded.parquet` below `run`.

    Args:
        stores: every signal that has a store, by name.
        weights: over the names of those signals and of INDEX_SIGNALS.
        budgets: shares in per cent.

    Raises:
        S2RError: nothing is left to rank, or a candidate has no score at all.
    """
    candidates = load_candidates(out, snapshot, stores)
    ranked = len(candidates) - int(candidates.left_out.sum())
    if not ranked:
        reasons = ", ".join(f"{name}: {count:,}" for name, count in candidates.count_reasons().items())
        raise S2RError(f"nothing to rank: all {len(candidates):,} candidates were left out ({reasons})")
    pool = _Pool(out, snapshot, candidates, _ranker(candidates, stores, weights))
    sizes = {budget: budget_size(ranked, budget) for budget in budgets}
    joint = pool.joint()
    order = pool.best(joint, select_top(joint, max(sizes.values())), max(sizes.values()))
    marked = np.flatnonzero(candidates.addresses_judge & ~candidates.left_out)
    addressing = {"ranked": len(marked)}
    addressing |= {budget: int(candidates.addresses_judge[order[:size]].sum()) for budget, size in sizes.items()}
    if len(marked):
        shown = min(_SHOWN, len(marked))
        marked = pool.best(joint, marked[select_top(joint[marked], shown)], shown)
    del joint
    excluded = _write_ranking(pool, run)
    top = _write_manifests(pool, order, sizes, run)
    indexed = candidates.indexed + len(snapshot.unreadable)
    addressing_top = pool.rows(marked) if len(marked) else top.slice(0, 0)
    return Ranking(indexed, ranked, excluded, sizes, top, addressing, addressing_top)


def manifest_place(run: Place, budget: str) -> Place:
    """The manifest of a budget in per cent, such as "2" or "2.5"."""
    return run.child("manifests", f"top-{budget}pct.parquet")


def _ranker(candidates: CandidateTable, signals: Mapping[str, Any], weights: Weights) -> JointRanker:
    counters = {name: ValueCounter(name) for name in (*signals, *INDEX_SIGNALS)}
    for rows in candidates.blocks():
        values = candidates.values(rows)
        for name, counter in counters.items():
            counter.add(values[name])
    return joint_ranker({name: counter.counts() for name, counter in counters.items()}, weights)


@dataclass(frozen=True)
class _Pool:
    """The candidates, what ranks them, and the index that knows the rest. Rows are positions among the candidates."""

    out: Place
    snapshot: Snapshot
    candidates: CandidateTable
    ranker: JointRanker

    def joint(self) -> npt.NDArray[np.int64]:
        """Every candidate's joint rank, int64[candidates]; what is left out comes after all others."""
        joint = np.full(len(self.candidates), _LAST, np.int64)
        for rows in self.candidates.blocks():
            joint[rows] = self.ranker.rank(self.candidates.values(rows)).joint
        return joint

    def best(self, joint: npt.NDArray[np.int64], rows: Places, k: int) -> Places:
        """The k best of these rows, best first; equal ones by sample id, then location."""
        return order_rows(rows, joint, self.candidates.length, _SampleIds(self), k=k)

    def numbers(self, rows: Places) -> dict[str, npt.NDArray[np.float64]]:
        """Scores and ranks of these rows, as published and in this order."""
        values = self.candidates.values(rows)
        block = self.ranker.rank(values)
        numbers = {name: values[name] for name in self.candidates.scores}
        numbers |= {f"rank_{name}": column for name, column in block.ranks.items()}
        return numbers | {"rank_joint": self.ranker.published(block.joint)}

    def rows(self, rows: Places) -> pa.Table:
        """These rows as published, in this order."""
        index = take_rows(self.out, self.snapshot, self.candidates, rows, RANKED)
        return ranked_rows(index, index["unit"].to_numpy(), self.snapshot, self.numbers(rows))


@dataclass(frozen=True)
class _SampleIds:
    """Sample ids of the candidates, read from the index only when asked for."""

    pool: _Pool

    def take(self, rows: Any, /) -> pa.Array:
        """Those of these rows, in this order."""
        pool = self.pool
        return take_rows(pool.out, pool.snapshot, pool.candidates, rows, ["sample_id"])["sample_id"].combine_chunks()


def _write_ranking(pool: _Pool, run: Place) -> dict[str, int]:
    """Write `ranking/` and `excluded.parquet` in location order; return how many rows were left out by reason."""
    candidates, snapshot = pool.candidates, pool.snapshot
    units = range(len(snapshot.units))
    columns = list(dict.fromkeys((*RANKED, *LEFT_OUT)))
    first = 0
    with ExitStack() as stack:
        ranking = Parts(run.child("ranking"))
        stack.push(ranking.finish)
        rejects = Parts(run, "excluded.parquet")
        stack.push(rejects.finish)
        rejects.add(unreadable_files(snapshot))
        for unit, whole in zip(units, read_units(pool.out, snapshot, units, columns), strict=True):
            for start in range(0, whole.num_rows, _WRITTEN_ROWS):
                index = whole.slice(start, _WRITTEN_ROWS)
                candidate = np.flatnonzero(index["reason"].is_null().to_numpy())
                kept = np.flatnonzero(~candidates.left_out[first : first + len(candidate)])
                rows = index.take(pa.array(candidate[kept]))
                ranking.add(ranked_rows(rows, np.full(len(kept), unit, np.int32), snapshot, pool.numbers(first + kept)))
                rejects.add(left_out_rows(index, unit, snapshot, candidates, first))
                first += len(candidate)
    return rejects.counted


def _write_manifests(pool: _Pool, order: Places, sizes: Mapping[str, int], run: Place) -> pa.Table:
    """Write the first rows of the order for each budget; return those that a report shows."""
    with ExitStack() as stack:
        writers: dict[str, pq.ParquetWriter] = {}
        for start in range(0, len(order), _MANIFEST_ROWS):
            block = order[start : start + _MANIFEST_ROWS]
            position = pa.array(np.arange(start + 1, start + len(block) + 1))
            rows = pool.rows(block).add_column(0, "position", position)
            if not start:
                top = rows.slice(0, _SHOWN).take(pa.array(np.arange(min(_SHOWN, len(block)))))
            for budget, size in sizes.items():
                if budget not in writers:
                    sink = stack.enter_context(manifest_place(run, budget).open_output())
                    writers[budget] = stack.enter_context(pq.ParquetWriter(sink, rows.schema, **WRITTEN))
                if size > start:
                    writers[budget].write_table(rows.slice(0, size - start))
    return top
