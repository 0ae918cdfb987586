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

from s2r_ray.baselines import Baselines, baseline_order, baseline_place
from s2r_ray.candidate_table import CandidateTable, load_candidates, read_units, take_rows
from s2r_ray.candidates import told_reasons
from s2r_ray.errors import S2RError
from s2r_ray.filtering import leave_out_filtered
from s2r_ray.filters import Filter
from s2r_ray.groups import StratifiedRanker, rank_inside, read_groups
from s2r_ray.index import Snapshot
from s2r_ray.keys import Places
from s2r_ray.parts import Parts
from s2r_ray.printable import one_line
from s2r_ray.published import LEFT_OUT, RANKED, left_out_rows, ranked_rows, unreadable_files
from s2r_ray.ranking import (
    Better,
    JointRanker,
    RankTable,
    Weights,
    budget_size,
    joint_ranker,
    order_rows,
    select_top,
)
from s2r_ray.signals import INDEX_SIGNALS
from s2r_ray.storage import Place
from s2r_ray.store import ScoreStore
from s2r_ray.strata import Share, Strata, fill
from s2r_ray.tables import release_memory, written

_WRITTEN_ROWS = 1 << 15
_MANIFEST_ROWS = 1 << 20
NO_BASELINES = Baselines()


@dataclass(frozen=True)
class Ranking:
    """What was ranked.

    `indexed`: rows of the index, and one for each unreadable file; `ranked`: rows that compete; `excluded`: the
    others by reason; `budgets`: how many rows each selects; `addressing`: how many ranked rows, and how many of each
    budget, have a question that speaks to the judge; `groups`: how many strata there are, 0 without.
    """

    indexed: int
    ranked: int
    excluded: dict[str, int]
    budgets: dict[str, int]
    addressing: dict[str, int]
    groups: int


def rank(
    out: Place,
    snapshot: Snapshot,
    stores: Mapping[str, ScoreStore],
    weights: Weights,
    budgets: Sequence[str],
    run: Place,
    strata: Strata | None = None,
    baselines: Baselines = NO_BASELINES,
    better: Mapping[str, Better] | None = None,
    chosen: Filter | None = None,
) -> Ranking:
    """Rank the snapshot's candidates and write `ranking/`, `manifests/`, `baselines/` and `excluded.parquet` below
    `run`.

    Args:
        stores: every signal that has a store, by name.
        weights: over columns of those signals and INDEX_SIGNALS.
        budgets: shares in per cent.
        strata: rank inside of groups, and fill budgets group by group.
        baselines: other orders of the same candidates, cut at the same budgets.
        better: the columns that get ranks, and what is better in each; None: the signals and INDEX_SIGNALS, the high.
        chosen: a filter that was checked; what does not pass it is left out.

    Raises:
        S2RError: nothing is left to rank, or a candidate has no score at all.
    """
    release_memory()
    candidates = load_candidates(out, snapshot, stores)
    release_memory()
    better = better or dict.fromkeys([*stores, *INDEX_SIGNALS], "high")
    if chosen is not None:
        leave_out_filtered(candidates, chosen, out, snapshot, better, strata.by if strata else None)
        release_memory()
    ranked = len(candidates) - int(candidates.left_out.sum())
    if not ranked:
        reasons = told_reasons(candidates.count_reasons())
        told = f"; the filter is: {one_line(chosen.text)}" if chosen else ""
        raise S2RError(f"nothing to rank: all {len(candidates):,} candidates were left out ({reasons}){told}")
    index = _Index(out, snapshot, candidates.starts, strata.by if strata else None)
    ranker, groups = _ranker(index, candidates, better, weights)
    strata_groups = len(groups)
    sizes = {budget: budget_size(ranked, budget) for budget in budgets}
    order = _best(index, candidates, ranker, max(sizes.values()), groups, strata.share if strata else None)
    del groups
    addressing = {"ranked": int((candidates.addresses_judge & ~candidates.left_out).sum())}
    addressing |= {budget: int(candidates.addresses_judge[order[:size]].sum()) for budget, size in sizes.items()}
    release_memory()
    excluded = _write_ranking(index, candidates, ranker, run)
    for name in baselines.names:
        k = max(sizes.values())
        other = baseline_order(name, baselines.seed, out, snapshot, candidates, index, k, better, stores)
        places = {budget: baseline_place(run, name, budget) for budget in budgets}
        _write_manifests(index, other, candidates.values(other), ranker, sizes, places)
        del other
        release_memory()
    indexed, values = candidates.indexed + len(snapshot.unreadable), candidates.values(order)
    del candidates  # what is written from here on is read from the index again
    release_memory()
    places = {budget: manifest_place(run, budget) for budget in budgets}
    _write_manifests(index, order, values, ranker, sizes, places)
    return Ranking(indexed, ranked, excluded, sizes, addressing, strata_groups)


def manifest_place(run: Place, budget: str) -> Place:
    """The manifest of a budget in per cent, such as "2" or "2.5"."""
    return run.child("manifests", f"top-{budget}pct.parquet")


def _ranker(
    index: _Index, candidates: CandidateTable, better: Mapping[str, Better], weights: Weights
) -> tuple[JointRanker[RankTable] | StratifiedRanker, list[Places]]:
    """What ranks rows, and the groups inside of which it does; none without strata."""
    if index.stratum is not None:
        groups = read_groups(index.out, index.snapshot, candidates, index.stratum)
        rank_inside(candidates, groups, better)
        return StratifiedRanker(list(better), weights, len(candidates)), groups
    return joint_ranker({name: candidates.counts(name) for name in better}, weights, better), []


def _best(
    index: _Index,
    candidates: CandidateTable,
    ranker: JointRanker[RankTable] | StratifiedRanker,
    k: int,
    groups: Sequence[Places],
    share: Share | None,
) -> Places:
    """The k best candidates, best first.

    Equal ones come by the longer trace, then by sample id, then location. With a `share`, the k are those that fill
    `groups`.
    """
    joint = np.full(len(candidates), ranker.largest_joint + 1, np.int64)
    for rows in candidates.blocks():
        joint[rows] = ranker.joint(candidates.values(rows))
    if share is not None:
        return fill(groups, joint, candidates.length, index, k, share)
    return order_rows(select_top(joint, k), joint, candidates.length, index, k=k)


def _numbers(
    ranker: JointRanker[RankTable] | StratifiedRanker, values: Mapping[str, npt.NDArray[Any]]
) -> dict[str, npt.NDArray[np.float64]]:
    """Scores and ranks as published, from the values of rows, in their order."""
    block = ranker.rank(values)
    numbers = {name: column for name, column in values.items() if name not in INDEX_SIGNALS}
    numbers |= {f"rank_{name}": column for name, column in block.ranks.items()}
    return numbers | {"rank_joint": ranker.published(block.joint)}


@dataclass(frozen=True)
class _Index:
    """What the index knows of the candidates and is read only when asked for; `starts` as in CandidateTable, `stratum`
    the label that makes groups."""

    out: Place
    snapshot: Snapshot
    starts: Places
    stratum: str | None

    @property
    def labels(self) -> list[str]:
        """The labels that published rows have."""
        return [] if self.stratum is None else [self.stratum]

    def take(self, positions: Any, /) -> pa.Array:
        """Sample ids of the candidates at these positions, in this order."""
        rows = take_rows(self.out, self.snapshot, self.starts, positions, ["sample_id"])
        return rows["sample_id"].combine_chunks()

    def rows(self, positions: Places, numbers: Mapping[str, npt.NDArray[np.float64]]) -> pa.Table:
        """Ranked rows as published, in this order; `numbers` are theirs."""
        index = take_rows(self.out, self.snapshot, self.starts, positions, RANKED, self.labels)
        return ranked_rows(index, index["unit"].to_numpy(), self.snapshot, numbers, self.stratum)


def _write_ranking(
    index: _Index, candidates: CandidateTable, ranker: JointRanker[RankTable] | StratifiedRanker, run: Place
) -> dict[str, int]:
    """Write `ranking/` and `excluded.parquet` in location order; return how many rows were left out by reason."""
    snapshot = index.snapshot
    units = range(len(snapshot.units))
    columns = list(dict.fromkeys((*RANKED, *LEFT_OUT)))
    first = 0
    with ExitStack() as stack:
        ranking = Parts(run.child("ranking"))
        stack.push(ranking.finish)
        rejects = Parts(run, "excluded.parquet")
        stack.push(rejects.finish)
        rejects.add(unreadable_files(snapshot))
        tables = read_units(index.out, snapshot, units, columns, index.labels)
        for unit, whole in zip(units, tables, strict=True):
            for start in range(0, whole.num_rows, _WRITTEN_ROWS):
                part = whole.slice(start, _WRITTEN_ROWS)
                candidate = np.flatnonzero(part["reason"].is_null().to_numpy())
                kept = np.flatnonzero(~candidates.left_out[first : first + len(candidate)])
                rows, at = part.take(pa.array(candidate[kept])), np.full(len(kept), unit, np.int32)
                numbers = _numbers(ranker, candidates.values(first + kept))
                ranking.add(ranked_rows(rows, at, snapshot, numbers, index.stratum))
                rejects.add(left_out_rows(part, unit, snapshot, candidates, first))
                first += len(candidate)
    return rejects.counted


def _write_manifests(
    index: _Index,
    order: Places,
    chosen: Mapping[str, npt.NDArray[Any]],
    ranker: JointRanker[RankTable] | StratifiedRanker,
    sizes: Mapping[str, int],
    places: Mapping[str, Place],
) -> None:
    """Write the first rows of the order for each budget, `chosen` being their values."""
    with ExitStack() as stack:
        writers: dict[str, pq.ParquetWriter] = {}
        for start in range(0, len(order), _MANIFEST_ROWS):
            block = order[start : start + _MANIFEST_ROWS]
            position = pa.array(np.arange(start + 1, start + len(block) + 1))
            values = {name: column[start : start + _MANIFEST_ROWS] for name, column in chosen.items()}
            rows = index.rows(block, _numbers(ranker, values)).add_column(0, "position", position)
            for budget, size in sizes.items():
                if budget not in writers:
                    sink = stack.enter_context(places[budget].open_output())
                    writers[budget] = stack.enter_context(pq.ParquetWriter(sink, rows.schema, **written(rows.schema)))
                if size > start:
                    writers[budget].write_table(rows.slice(0, size - start))
