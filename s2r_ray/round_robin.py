"""Queries take turns: each in turn takes the sample most like it that is not taken yet, until there are enough.

That is how RDS+ selects (arXiv 2503.01807); in the authors' script a query whose best sample is gone loses that turn,
here it takes its next one. Of samples that are equally like a query the longer trace comes first, then the sample id,
then the location.

The vectors of a pool (10 million samples and 100 queries are 4 GB) stay in the score store and are gone through as
often as is needed. A pass keeps the best of each query that are not taken, some two million in all, and the turns go
on until one query has come to the end of its own. So a pass takes at least as many samples as one query has there, and,
where queries want different ones, as all of them have together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from s2r_ray.candidate_table import CandidateTable, candidate_samples
from s2r_ray.errors import S2RError
from s2r_ray.index import Snapshot
from s2r_ray.keys import Places
from s2r_ray.ranking import GRID_BITS, Ints, Takeable
from s2r_ray.storage import Place
from s2r_ray.store import ScoreStore

_HELD = 1 << 21
_LENGTH_BITS = 32
_OFFSET = 1 << 30

Vectors = npt.NDArray[np.float32]
Blocks = Callable[[], Iterator[tuple[Places, Vectors]]]


def round_robin(
    signal: str, store: ScoreStore, out: Place, snapshot: Snapshot, candidates: CandidateTable, ids: Takeable, k: int
) -> Places:
    """The first k candidates that the queries of a signal over samples take, in the order of the turns: int64[k].

    Takes 24 bytes a sample, 32 more while keys are sorted, and some 300 MB.
    """
    keys = candidate_samples(out, snapshot)
    of_key = np.full(len(keys.distinct), -1, np.int64)
    ranked = np.flatnonzero(~candidates.left_out)  # among these each sample is once
    of_key[keys.which[ranked]] = ranked
    distinct, values = keys.distinct, candidates.scores[signal]
    del keys, ranked

    def blocks() -> Iterator[tuple[Places, Vectors]]:
        for rows, vectors in store.vectors():
            found = distinct.find(rows["key"])
            at = np.where(found >= 0, of_key[found], -1)
            here = np.flatnonzero(at >= 0)
            # Of a sample that two runs have judged at once, only the value that is ranked counts.
            here = here[values[at[here]] == rows["value"].to_numpy()[here]]
            yield at[here], vectors[here]

    return take_in_turn(blocks, store.vector, candidates.length, ids, k)


def take_in_turn(
    blocks: Blocks, queries: int, lengths: npt.NDArray[np.int32], ids: Takeable, k: int, held: int = _HELD
) -> Places:
    """The k rows that are taken, in the order of the turns: int64[k].

    Args:
        blocks: called once for each pass; gives (rows, int64[m], how like each query they are, float32[m, queries], on
            the grid of 2^-20 and between -1000 and 1000), in any order. A row that comes twice has its best of both.
        lengths, ids: columns[n]; ids are read for tied rows alone.
        held: what a pass keeps, in all, but for rows that tie in likeness and length, which all stay.

    Raises:
        S2RError: there are fewer than k rows.
    """
    taken = np.zeros(len(lengths), np.bool_)
    order = np.empty(k, np.int64)
    done = query = 0
    while done < k:
        best = _Best(queries, min(k, max(1, held // queries)), lengths)
        for rows, vectors in blocks():
            free = np.flatnonzero(~taken[rows])
            best.add(rows[free], vectors[free])
        before = done
        done, query = _take_turns(*best.finish(ids), taken, order, done, query)
        if done == before:
            raise S2RError(f"internal: {k:,} samples with a vector expected, {done:,} found; please report")
    return order


def _take_turns(
    rows: Ints, bounds: Ints, taken: npt.NDArray[np.bool_], order: Ints, done: int, query: int
) -> tuple[int, int]:
    """Go on until all are taken or the query whose turn it is has none left; returns how many are, and that query."""
    listed, gone = rows.data, taken.data  # these give Python's numbers in a fraction of NumPy's time
    at, stop = bounds[:-1].tolist(), bounds[1:].tolist()
    while done < len(order):
        here, end = at[query], stop[query]
        while here < end and gone[listed[here]]:
            here += 1
        at[query] = here
        if here == end:
            break
        gone[listed[here]] = True
        order[done] = listed[here]
        done += 1
        query = (query + 1) % len(at)
    return done, query


class _Best:
    """The best rows of each query: `depth` of them, if so many come, and all that tie with the last of these."""

    def __init__(self, queries: int, depth: int, lengths: npt.NDArray[np.int32]) -> None:
        self._queries = queries
        self._depth = depth
        self._lengths = lengths
        self._floor = np.full(queries, -np.inf, np.float32)  # what is less like a query than this is not wanted
        self._held = [(np.zeros(0, np.uint16), np.zeros(0, np.int64), np.zeros(0, np.int64))]
        self._size = 0

    def add(self, rows: Places, vectors: Vectors) -> None:
        """Take in rows, int64[m], and how like each query they are, float32[m, queries]."""
        for start in range(0, len(rows), self._depth):
            part = vectors[start : start + self._depth]
            at, query = np.nonzero(part >= self._floor)
            row = rows[start + at]
            self._held.append((query.astype(np.uint16), self._keys(part[at, query], row), row))
            self._size += len(row)
            if self._size > 2 * self._queries * self._depth:
                self._cut()

    def finish(self, ids: Takeable) -> tuple[Ints, Ints]:
        """(rows, bounds): those of query q are rows[bounds[q] : bounds[q + 1]], best first."""
        self._cut()
        query, key, row = self._held[0]
        order = np.lexsort((key, query))
        query, key, row = query[order], key[order], row[order]
        _settle_ties(query, key, row, ids)
        return row, np.searchsorted(query, np.arange(self._queries + 1))

    def _keys(self, like: npt.NDArray[np.float32], rows: Places) -> Ints:
        """int64[m], less is better: how like, then the length."""
        steps = _OFFSET - np.rint(like * np.float32(1 << GRID_BITS)).astype(np.int64)
        keys: Ints = (steps << _LENGTH_BITS) + (np.iinfo(np.int32).max - self._lengths[rows].astype(np.int64))
        return keys

    def _cut(self) -> None:
        query, key, row = (np.concatenate(parts) for parts in zip(*self._held, strict=True))
        order = np.argsort(query, kind="stable")
        kept = []
        for number, mine in enumerate(np.split(order, np.searchsorted(query[order], np.arange(1, self._queries)))):
            if len(mine) > self._depth:
                last = np.partition(key[mine], self._depth - 1)[self._depth - 1]
                self._floor[number] = (_OFFSET - (int(last) >> _LENGTH_BITS)) / (1 << GRID_BITS)
                mine = mine[key[mine] <= last]
            kept.append(mine)
        chosen = np.concatenate(kept)
        self._held = [(query[chosen], key[chosen], row[chosen])]
        self._size = len(chosen)


def _settle_ties(query: npt.NDArray[np.uint16], key: Ints, row: Ints, ids: Takeable) -> None:
    """Order each run of rows of one query with one key by sample id, then location, in place."""
    starts = np.append(True, (query[1:] != query[:-1]) | (key[1:] != key[:-1]))[: len(row)]
    tied = np.flatnonzero(~(starts & np.append(starts[1:], True)[: len(row)]))
    if not len(tied):
        return
    several = np.unique(row[tied])
    names = pa.table({"id": ids.take(several), "at": np.arange(len(several))})
    place = np.empty(len(several), np.int64)
    place[names.sort_by([("id", "ascending"), ("at", "ascending")])["at"].to_numpy()] = np.arange(len(several))
    by_name = place[np.searchsorted(several, row[tied])]
    row[tied] = row[tied][np.lexsort((by_name, np.cumsum(starts)[tied]))]
