"""The groups that a label makes of the ranked candidates, and ranks inside of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from s2r_ray.candidate_table import CandidateTable, read_units
from s2r_ray.column import Column
from s2r_ray.errors import UsageError
from s2r_ray.index import Snapshot, label_column
from s2r_ray.keys import Places
from s2r_ray.ranking import Better, Floats, Ints, JointRanker, RankedBlock, ValueCounter, Weights, average_ranks
from s2r_ray.storage import Place

_MOST_GROUPS = 10_000
_CHUNK = 1 << 18
_INT32_ROWS = 1 << 30

Codes = npt.NDArray[np.uint16]


def label_codes(parts: Iterable[pa.ChunkedArray], label: str) -> Iterator[Codes]:
    """For each part of a column of labels a number for every row, uint16[n], the same where the label is; null is one
    label too.

    Raises:
        UsageError: there are more labels than groups make sense of.
    """
    numbers: dict[str | None, int] = {}
    for part in parts:
        coded = part.combine_chunks().dictionary_encode(null_encoding="encode")
        known = [numbers.setdefault(value, len(numbers)) for value in coded.dictionary.to_pylist()]
        if len(numbers) > _MOST_GROUPS:
            raise UsageError(
                f"label {label} has more than {_MOST_GROUPS:,} values, too many for groups; "
                "choose a column with fewer. What is indexed and judged is kept"
            )
        yield np.array(known, np.uint16)[coded.indices.to_numpy()]


def check_groups(out: Place, snapshot: Snapshot, label: str) -> None:
    """See whether a label makes groups, before anything is judged. Raises as `label_codes` does."""
    for _ in _candidates_codes(out, snapshot, label):
        pass


def read_groups(out: Place, snapshot: Snapshot, candidates: CandidateTable, label: str) -> list[Places]:
    """The ranked candidates of each group: positions, ascending. Needs 10 bytes a candidate, and keeps 8.

    Raises as `label_codes` does.
    """
    gathered = Column(np.uint16)
    for part in _candidates_codes(out, snapshot, label):
        gathered.add(part)
    codes = gathered.array()
    sizes = np.bincount(codes[~candidates.left_out])
    rows = np.argsort(codes, kind="stable")
    rows = rows[~candidates.left_out[rows]]
    return [group for group in np.split(rows, np.cumsum(sizes)[:-1]) if len(group)]


def _candidates_codes(out: Place, snapshot: Snapshot, label: str) -> Iterator[Codes]:
    tables = read_units(out, snapshot, range(len(snapshot.units)), ["reason"], [label])
    column = label_column(label)
    yield from label_codes((table[column].filter(pc.is_null(table["reason"])) for table in tables), label)


def rank_inside(candidates: CandidateTable, groups: Sequence[Places], better: Mapping[str, Better]) -> None:
    """Give each ranked candidate its rank among its group for each of these signals: `CandidateTable.ranks`."""
    for name, side in better.items():
        column = candidates.column(name)
        doubled = np.zeros(len(candidates), np.int32 if len(candidates) < _INT32_ROWS else np.int64)
        for rows in groups:
            _rank_group(column, rows, doubled, name, side)
        candidates.ranks[f"rank_{name}"] = doubled


def _rank_group(column: npt.NDArray[Any], rows: Places, doubled: npt.NDArray[Any], name: str, better: Better) -> None:
    """Twice the average rank of these rows among each other, rank 1 the best, into `doubled`."""
    if len(rows) <= _CHUNK:  # a table with a slot for each step of a score, as below, is not worth its zeros here
        _, value, counts = np.unique(column[rows], return_inverse=True, return_counts=True)
        up_to = np.cumsum(counts) if better == "low" else np.cumsum(counts[::-1])[::-1]
        doubled[rows] = (2 * up_to - counts + 1)[value]
        return
    counter = ValueCounter(name)
    chunks = np.split(rows, range(_CHUNK, len(rows), _CHUNK))
    for chunk in chunks:
        counter.add(column[chunk])
    table = average_ranks(counter.counts(), better, name)
    for chunk in chunks:
        doubled[chunk] = table.doubled(column[chunk])


class _Ranked:
    """Stands for a table of ranks where the ranks themselves are looked up."""

    def doubled(self, block: npt.NDArray[Any]) -> Ints:
        return block.astype(np.int64)


class StratifiedRanker:
    """As `JointRanker`, with the ranks that `rank_inside` found."""

    def __init__(self, signals: Sequence[str], weights: Weights, rows: int) -> None:
        self._ranker = JointRanker({name: _Ranked() for name in signals}, weights, rows)

    @property
    def largest_joint(self) -> int:
        """As JointRanker's."""
        return self._ranker.largest_joint

    def joint(self, columns: Mapping[str, npt.NDArray[Any]]) -> Ints:
        """The joint ranks of a block alone; `columns` has `rank_<signal>` [n], doubled."""
        return self._ranker.joint(self._doubled(columns))

    def rank(self, columns: Mapping[str, npt.NDArray[Any]]) -> RankedBlock:
        """Ranks inside of groups and joint ranks of a block; `columns` as for `joint`."""
        return self._ranker.rank(self._doubled(columns))

    def published(self, joint: Ints) -> Floats:
        """As JointRanker's."""
        return self._ranker.published(joint)

    def _doubled(self, columns: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        return {name: columns[f"rank_{name}"] for name in self._ranker.tables}
