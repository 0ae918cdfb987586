"""What a filter may name in a run, and the candidates that it leaves out."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from s2r_ray.baselines import how_to_label
from s2r_ray.candidate_table import CandidateTable, read_units
from s2r_ray.filters import RANK, Column, Filter, Kind, label_name, label_of
from s2r_ray.groups import rank_inside, read_groups
from s2r_ray.index import Snapshot, label_column
from s2r_ray.keys import Places
from s2r_ray.ranking import Better, Floats, RankTable, average_ranks
from s2r_ray.signals import FURTHER, INDEX_SIGNALS, SIGNALS
from s2r_ray.storage import Place

_BLOCK = 1 << 18

STATED: Mapping[str, Kind] = {"verified": "flag", "complete": "flag", "finish_reason": "text"}
"""What a pool may say of a trace: columns of the index, and keys of a mapping."""
_INDEX: Mapping[str, Kind] = {
    "trace_tokens": "number",
    "trace_tokens_unique": "number",
    "question_tokens": "number",
    "response_tokens": "number",
    "trace_characters": "number",
    "rethinking_words": "number",
    "addresses_judge": "flag",
    **STATED,
}


def check_filter(
    found: Filter, columns: Collection[str], ranked: Collection[str], stated: Collection[str], labels: Collection[str]
) -> None:
    """Hold a filter against what a run has, before any work.

    Args:
        columns: values and further columns of its signals.
        ranked: those of them, and of INDEX_SIGNALS, that get ranks.
        stated: what of STATED the mapping of any pool has; `labels`: those of the pools.

    Raises:
        UsageError: as `Filter.check` does.
    """
    numbers = (*columns, *INDEX_SIGNALS, *(f"{name}{RANK}" for name in ranked))
    kinds: dict[str, Kind] = dict.fromkeys(numbers, "number")
    lacking = {*numbers, *STATED}.difference(stated)
    kinds |= {name: kind for name, kind in _INDEX.items() if name not in lacking}
    hints = {name: how_to_label(label_of(name)) for name in found.names if label_of(name) != name}
    for label in labels:
        name = label_name(label, kinds)
        kinds[name] = "text"
        hints[f'label("{label}")'] = f"write {name}"
    hints |= dict.fromkeys(
        STATED, "no mapping of a pool names a column for it; if one does now, `s2r run` reads the pool again"
    )
    hints |= {
        name: "it has no scores here; `s2r run` with this filter computes them"
        for signal in (*SIGNALS, *FURTHER)
        for name in (signal, f"{signal}{RANK}")
    }
    found.check(kinds, hints)


def leave_out_filtered(
    candidates: CandidateTable,
    found: Filter,
    out: Place,
    snapshot: Snapshot,
    better: Mapping[str, Better],
    stratum: str | None,
) -> None:
    """Leave out the candidates that do not pass a filter that was checked. Ranks are among those that are not left out
    yet; with a `stratum`, inside of the groups that this label makes. What is held meanwhile is an entry for each
    distinct value of the ranked columns that it names; with a stratum 12 bytes a candidate, and 4 for each of them."""
    names = set(found.names)
    ranked = {name: side for name, side in better.items() if f"{name}{RANK}" in names - candidates.scores.keys()}
    ranks = _Ranks.inside(candidates, out, snapshot, ranked, stratum) if stratum else _Ranks.over(candidates, ranked)
    numbers = {*candidates.scores, *INDEX_SIGNALS, *(f"{name}{RANK}" for name in ranked)}
    of_index = [name for name in found.names if name in _INDEX and name not in numbers]
    labels = {name: label_of(name) for name in found.names if name not in numbers and name not in of_index}
    for rows, table in _blocks(candidates, out, snapshot, of_index, sorted(labels.values())):
        columns: dict[str, Column] = {name: _values(table[name], _INDEX[name]) for name in of_index}
        columns |= {name: _values(table[label_column(label)], "text") for name, label in labels.items()}
        columns |= {name: candidates.column(name)[rows] for name in names & {*candidates.scores, *INDEX_SIGNALS}}
        columns |= {f"{name}{RANK}": ranks.shares(name, rows) for name in ranked}
        candidates.filter_out(rows[~found.keeps(columns)], found.text)
    candidates.ranks.clear()


def _blocks(
    candidates: CandidateTable, out: Place, snapshot: Snapshot, columns: Sequence[str], labels: Sequence[str]
) -> Iterator[tuple[Places, pa.Table]]:
    """Positions of candidates that are not left out, and these columns of theirs in the index, block by block."""
    first = 0
    for table in read_units(out, snapshot, range(len(snapshot.units)), ["reason", *columns], labels):
        there = table.filter(pc.is_null(table["reason"]))
        for start in range(0, there.num_rows, _BLOCK):
            part = there.slice(start, _BLOCK)
            kept = np.flatnonzero(~candidates.left_out[first : first + part.num_rows])
            yield first + kept, part.take(pa.array(kept))
            first += part.num_rows


def _values(column: pa.ChunkedArray, kind: Kind) -> Column:
    """As a filter takes them: a flag that is null is not set."""
    if kind == "text":
        return column.cast(pa.string()).combine_chunks()
    filled = column.fill_null(False) if kind == "flag" else column
    return filled.to_numpy()


class _Ranks:
    """Ranks as shares of the rows that have one, in (0, 1], the best near 0."""

    def __init__(self, candidates: CandidateTable, tables: Mapping[str, RankTable], sizes: Places | None) -> None:
        self._candidates = candidates
        self._tables = tables
        self._sizes = sizes

    @classmethod
    def over(cls, candidates: CandidateTable, better: Mapping[str, Better]) -> _Ranks:
        """Over all candidates that are not left out."""
        tables = {name: average_ranks(candidates.counts(name), side, name) for name, side in better.items()}
        return cls(candidates, tables, None)

    @classmethod
    def inside(
        cls, candidates: CandidateTable, out: Place, snapshot: Snapshot, better: Mapping[str, Better], stratum: str
    ) -> _Ranks:
        """Inside of the groups that a label makes of them; puts them into `CandidateTable.ranks`."""
        sizes = np.ones(len(candidates), np.int64)
        if better:
            groups = read_groups(out, snapshot, candidates, stratum)
            rank_inside(candidates, groups, better)
            for group in groups:
                sizes[group] = len(group)
        return cls(candidates, {}, sizes)

    def shares(self, name: str, rows: Places) -> Floats:
        """Of the candidates at these positions, float64[n], correctly rounded."""
        if self._sizes is not None:
            found: Floats = self._candidates.ranks[f"rank_{name}"][rows] / (2 * self._sizes[rows])
            return found
        table = self._tables[name]
        return table.doubled(self._candidates.column(name)[rows]) / (2 * table.rows)
