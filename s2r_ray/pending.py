"""What has no score yet, found from keys alone, and cut into items of work."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from s2r_ray.index import Snapshot, candidates_place, question_keys, sample_keys
from s2r_ray.keys import KeySet, Places, sort_keys
from s2r_ray.problems import problems_place
from s2r_ray.signals.base import SubjectKind
from s2r_ray.storage import Place
from s2r_ray.tables import read_ahead, read_own

_SHARES = 24
"""Items that each worker's share of what is left is cut into: one ten times slower than the rest, which holds the item
it works on and the next, then still ends with them."""


@dataclass(frozen=True, eq=False)
class Distinct:
    """The distinct questions, or samples, of a snapshot: 24 bytes each.

    Places count the questions, or candidates, of all units one after the other. `first`: int64[keys], where each key
    occurs first; `starts`: int64[units + 1], the place of each unit's first.
    """

    keys: KeySet
    first: Places
    starts: Places

    def some(self, count: int) -> Distinct:
        """So many of them at the most: those with the least keys, which are hashes, so it is a draw by lot, and of two
        such draws the larger holds the smaller."""
        return Distinct(KeySet(self.keys.high[:count], self.keys.low[:count]), self.first[:count], self.starts)

    def pending(self, settled: npt.NDArray[np.bool_]) -> Pending:
        """Those that are not settled, bool[keys]."""
        return Pending(len(self.keys), np.sort(self.first[~settled]), self.starts)


@dataclass(frozen=True, eq=False)
class Pending:
    """Which of `distinct` questions, or samples, have no score yet.

    `places`: int64[pending], ascending, where they lie; `starts` as in Distinct.
    """

    distinct: int
    places: Places
    starts: Places

    def __len__(self) -> int:
        return len(self.places)


def find_questions(out: Place, snapshot: Snapshot) -> Distinct:
    """The distinct questions of all units. Reads keys only."""
    return _distinct(question_keys(out, snapshot))


def find_samples(out: Place, snapshot: Snapshot) -> Distinct:
    """The distinct samples among the candidates of all units. Reads keys and reasons only."""
    return _distinct(sample_keys(out, snapshot))


def find_problems(out: Place, snapshot: Snapshot) -> Distinct:
    """The distinct problems of all units. Reads keys only."""
    places = (problems_place(out, key) for _, key in snapshot.units)
    return _distinct(table["key"] for table in read_ahead(partial(read_own, columns=["key"]), places))


def find_distinct(out: Place, snapshot: Snapshot, subject: SubjectKind) -> Distinct:
    """What a signal of this subject judges."""
    return {"question": find_questions, "sample": find_samples, "problem": find_problems}[subject](out, snapshot)


def _distinct(keys_of_units: Iterable[pa.ChunkedArray]) -> Distinct:
    starts = [0]

    def keys() -> Iterator[pa.ChunkedArray]:
        for keys in keys_of_units:
            starts.append(starts[-1] + len(keys))
            yield keys

    found = sort_keys(keys())
    return Distinct(found.distinct, found.first(), np.array(starts))


def pending_tokens(out: Place, snapshot: Snapshot, pending: Pending) -> int:
    """Tokens of questions and responses of pending samples, of the run's tokenizer. Reads lengths only."""
    columns = ["question_tokens", "response_tokens", "reason"]
    places = (candidates_place(out, key) for _, key in snapshot.units)
    total = 0
    for unit, table in enumerate(read_ahead(partial(read_own, columns=columns), places)):
        low, high = np.searchsorted(pending.places, pending.starts[unit : unit + 2])
        rows = pa.array(pending.places[low:high] - pending.starts[unit])
        lengths = table.filter(pc.is_null(table["reason"])).take(rows)
        total += sum(pc.sum(lengths[name]).as_py() or 0 for name in columns[:2])
    return total


def work_items(
    snapshot: Snapshot, pending: Pending, batch: int, workers: int, *, with_files: bool = False
) -> list[dict[str, Any]]:
    """Cut what is pending into items for so many workers: which units to open, which of their questions, or
    candidates, to take.

    An item has `batch` of them; towards the end, where several workers share what is left, fewer, down to an eighth:
    a slow one then holds the others up for less (guided self-scheduling, Polychronopoulos and Kuck 1987). `rows` are
    bytes of int32 in the machine's order: as numbers of Python's they would take ten times the memory. `files` (pool,
    path, size, version of each unit's) are for those who read the pool.
    """
    items: list[dict[str, Any]] = []
    start = 0
    while start < len(pending):
        share = math.ceil((len(pending) - start) / (_SHARES * workers)) if workers > 1 else batch
        places = pending.places[start : start + min(batch, max(share, batch // 8, 1))]
        start += len(places)
        units, first = np.unique(np.searchsorted(pending.starts, places, side="right") - 1, return_index=True)
        parts = zip(units, np.split(places, first[1:]), strict=True)
        rows = [(part - pending.starts[unit]).astype(np.int32).tobytes() for unit, part in parts]
        item: dict[str, Any] = {"units": [snapshot.units[unit][1] for unit in units], "rows": rows}
        if with_files:
            of = (snapshot.units[unit][0] for unit in units)
            item["files"] = json.dumps([[unit.pool, unit.path, unit.size, unit.version] for unit in of])
        items.append(item)
    return items
