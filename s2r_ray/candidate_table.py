"""Every candidate of a snapshot in narrow columns: what ranking holds in memory.

A candidate takes 6 bytes and 8 for each column of scores, and for a while the key of what was judged 16 and as much
again to be sorted. What is only for reading (ids, where a row lies) stays in the index and passes through.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from s2r_ray.candidates import Reason, told_reasons
from s2r_ray.column import Column
from s2r_ray.errors import S2RError
from s2r_ray.index import Snapshot, candidates_place, label_column, sample_keys
from s2r_ray.keys import Halves, KeySet, Places, halves, sort_keys
from s2r_ray.printable import one_line
from s2r_ray.ranking import ValueCounter, ValueCounts
from s2r_ray.signals import INDEX_SIGNALS
from s2r_ray.storage import Place
from s2r_ray.store import Found, ScoreStore
from s2r_ray.tables import read_ahead, read_own, release_memory

_BLOCK = 1 << 18
_NONE_LEFT_OUT = pa.schema([("at", pa.int64()), ("reason", pa.string()), ("detail", pa.string())]).empty_table()


@dataclass
class CandidateTable:
    """The candidates of a snapshot in location order (pool, path, row, generation); n of them.

    Attributes:
        starts: int64[units + 1], where each unit's candidates begin.
        length: int32[n], of the trace, in tokens.
        addresses_judge: bool[n].
        left_out: bool[n], not ranked after all.
        scores: column -> float64[n], every signal and its extras; NaN where a signal has no value.
        ranks: `rank_<signal>` -> int32[n], twice the rank inside of a group; empty where ranks are of the whole pool.
        indexed: all rows of the index, candidates or not.
        filtered: bool[n], those that a filter left out; None without one.
    """

    starts: Places
    length: npt.NDArray[np.int32]
    addresses_judge: npt.NDArray[np.bool_]
    indexed: int
    left_out: npt.NDArray[np.bool_] = field(init=False)
    scores: dict[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    ranks: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    filtered: npt.NDArray[np.bool_] | None = None
    _filter: str = ""
    _reasons: list[str] = field(default_factory=list)
    _faults: list[pa.Table] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.left_out = np.zeros(len(self), np.bool_)

    def __len__(self) -> int:
        return len(self.length)

    def leave_out(self, positions: Places, reason: str, details: pa.Array) -> None:
        """Leave candidates out, unless they are left out already; `details` are words on each of them."""
        fresh = ~self.left_out[positions]
        self.left_out[positions] = True
        code = pa.array(np.full(len(positions), len(self._reasons), np.int8))
        faults = pa.table({"at": positions, "reason": code, "detail": details}).filter(pa.array(fresh))
        self._faults = [pa.concat_tables([*self._faults, faults]).sort_by("at").combine_chunks()]
        self._reasons.append(reason)

    def filter_out(self, positions: Places, text: str) -> None:
        """Leave candidates out, none of which is left out yet, because they do not pass the filter of this text. They
        may be most of all: a byte for each candidate says which."""
        if self.filtered is None:
            self.filtered, self._filter = np.zeros(len(self), np.bool_), one_line(text)
        self.filtered[positions] = True
        self.left_out[positions] = True

    def reasons(self, first: int, stop: int) -> pa.Table:
        """The candidates in [first, stop) that are left out: columns `at`, ascending, `reason`, `detail`."""
        faults = self._faulty(first, stop)
        at = np.zeros(0, np.int64) if self.filtered is None else first + np.flatnonzero(self.filtered[first:stop])
        if not len(at):
            return faults
        words = [pa.repeat(text, len(at)) for text in (str(Reason.FILTERED), self._filter)]
        return pa.concat_tables([faults, pa.table([at, *words], faults.schema)]).sort_by("at").combine_chunks()

    def _faulty(self, first: int, stop: int) -> pa.Table:
        """Those of them that were not filtered out."""
        if not self._faults:
            return _NONE_LEFT_OUT
        (faults,) = self._faults
        low, high = np.searchsorted(faults["at"].to_numpy(), [first, stop])
        found = faults.slice(low, high - low)
        names = pa.array(self._reasons).take(found["reason"].combine_chunks())
        return found.set_column(1, "reason", names)

    def count_reasons(self) -> dict[str, int]:
        """How many are left out for each reason."""
        codes = self._faults[0]["reason"].to_numpy() if self._faults else np.zeros(0, np.int8)
        found = {name: int((codes == code).sum()) for code, name in enumerate(self._reasons) if code in codes}
        return found if self.filtered is None else found | {str(Reason.FILTERED): int(self.filtered.sum())}

    def blocks(self) -> Iterator[Places]:
        """Positions of what is ranked, some hundred thousand at a time."""
        for start in range(0, len(self), _BLOCK):
            yield start + np.flatnonzero(~self.left_out[start : start + _BLOCK])

    def column(self, signal: str) -> npt.NDArray[Any]:
        """A signal's values, [n]."""
        return self.length if signal in INDEX_SIGNALS else self.scores[signal]

    def counts(self, signal: str) -> ValueCounts:
        """How often each of a signal's values occurs among what is ranked."""
        counter, values = ValueCounter(signal), self.column(signal)
        for rows in self.blocks():
            counter.add(values[rows])
        return counter.counts()

    def values(self, rows: Places) -> dict[str, npt.NDArray[Any]]:
        """Scores, ranks inside of groups if there are any, and lengths of the candidates at these positions, in this
        order."""
        columns: dict[str, npt.NDArray[Any]] = {name: column[rows] for name, column in self.scores.items()}
        columns |= {name: column[rows] for name, column in self.ranks.items()}
        return columns | dict.fromkeys(INDEX_SIGNALS, self.length[rows])


def load_candidates(out: Place, snapshot: Snapshot, stores: Mapping[str, ScoreStore]) -> CandidateTable:
    """The candidates with the scores of these signals; duplicates and what has no value are left out.

    Raises:
        S2RError: there is no candidate, or one has no score at all.
    """
    table, questions, samples = _read(out, snapshot)
    _leave_out_duplicates(table, samples, out, snapshot)
    del samples
    _look_up(table, {name: store for name, store in stores.items() if store.subject == "question"}, questions)
    del questions
    of_samples = {name: store for name, store in stores.items() if store.subject == "sample"}
    if of_samples:
        _look_up(table, of_samples, candidate_samples(out, snapshot))
    return table


@dataclass(frozen=True, eq=False)
class CandidateKeys:
    """The distinct keys of what was judged, and which of them each candidate's is, int32[n]."""

    distinct: KeySet
    which: npt.NDArray[np.int32]


def _look_up(table: CandidateTable, stores: Mapping[str, ScoreStore], keys: CandidateKeys) -> None:
    """Enter the scores of signals that judge what these keys stand for."""
    scores: dict[str, npt.NDArray[np.float64]] = {}
    for name, store in stores.items():
        found = store.look_up(keys.distinct)
        _leave_out_faults(table, keys.which, name, found)
        scores |= {name if column == "value" else column: numbers for column, numbers in found.columns.items()}
        del found
    for name in list(scores):
        table.scores[name] = scores.pop(name)[keys.which]


def candidate_samples(out: Place, snapshot: Snapshot) -> CandidateKeys:
    """Those of the candidates' samples: question with response."""
    found = sort_keys(sample_keys(out, snapshot))
    return CandidateKeys(found.distinct, found.place())


def _read(out: Place, snapshot: Snapshot) -> tuple[CandidateTable, CandidateKeys, Halves]:
    """The candidates, the keys of their questions, and the first half of each one's sample key, uint64[n]."""
    wanted = ["question_key", "sample_key", INDEX_SIGNALS["length"], "addresses_judge", "reason"]
    starts, lengths, marks, samples = [0], Column(np.int32), Column(np.bool_), Column(np.uint64)
    indexed = 0

    def question_keys() -> Iterator[pa.ChunkedArray]:
        nonlocal indexed
        for index in read_units(out, snapshot, range(len(snapshot.units)), wanted):
            indexed += index.num_rows
            rows = index.filter(pc.is_null(index["reason"]))
            starts.append(starts[-1] + rows.num_rows)
            lengths.add(rows[INDEX_SIGNALS["length"]].to_numpy())
            marks.add(rows["addresses_judge"].to_numpy())
            samples.add(halves(rows["sample_key"])[0])
            yield rows["question_key"]

    found = sort_keys(question_keys())
    if not starts[-1]:
        raise S2RError(
            f"nothing to rank: none of {indexed:,} traces passed the guards ({told_reasons(_reasons(out, snapshot))}); "
            "see `guards` in the configuration"
        )
    table = CandidateTable(np.array(starts), lengths.array(), marks.array(), indexed)
    return table, CandidateKeys(found.distinct, found.place()), samples.array()


def _reasons(out: Place, snapshot: Snapshot) -> Counter[str]:
    """How many rows of the index were left out for each reason."""
    found: Counter[str] = Counter()
    for index in read_units(out, snapshot, range(len(snapshot.units)), ["reason"]):
        for item in pc.value_counts(index["reason"].drop_null().cast(pa.string())).to_pylist():
            found[item["values"]] += item["counts"]
    return found


def _leave_out_duplicates(table: CandidateTable, samples: Halves, out: Place, snapshot: Snapshot) -> None:
    """Of samples with the same question and trace, the least by sample id, then location, stays."""
    suspects = _repeated(samples)
    if not len(suspects):
        return
    rows = take_rows(out, snapshot, table.starts, suspects, ["sample_key", "sample_id"])
    rows = rows.append_column("at", pa.array(suspects))
    names = ("sample_key", "sample_id", "at")
    rows = rows.take(pc.sort_indices(rows, sort_keys=[(name, "ascending") for name in names]))
    key = rows["sample_key"].combine_chunks()
    repeats = pc.equal(key.slice(1), key.slice(0, len(key) - 1)).to_numpy(zero_copy_only=False)
    first = np.maximum.accumulate(np.where(np.append(False, repeats), 0, np.arange(len(key))))[1:][repeats]
    kept = rows["sample_id"].combine_chunks().take(pa.array(first))
    details = pc.binary_join_element_wise("same question and trace as", kept, " ")
    table.leave_out(rows["at"].to_numpy()[1:][repeats], str(Reason.DUPLICATE_SAMPLE), details)


def _repeated(numbers: Halves) -> Places:
    """Positions, ascending, of the numbers that occur more than once."""
    ordered = np.sort(numbers)
    several = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    del ordered
    found = [np.zeros(0, np.int64)]
    for start in range(0, len(numbers) if len(several) else 0, _BLOCK):
        block = numbers[start : start + _BLOCK]
        at = np.minimum(np.searchsorted(several, block), len(several) - 1)
        found.append(start + np.flatnonzero(several[at] == block))
    return np.concatenate(found)


def _leave_out_faults(table: CandidateTable, which: npt.NDArray[np.int32], name: str, found: Found) -> None:
    """Leave out the candidates that a signal found no value for; `which` is where in `found` each one's is."""
    faults = found.faults()
    positions = np.flatnonzero(~found.ok[which])
    asked, faulty = which[positions], faults["at"].to_numpy()
    rows_of = np.searchsorted(faulty, asked)
    missing = len(asked) - int(np.isin(asked, faulty).sum())
    if missing:
        raise S2RError(f"{missing:,} candidates have no {name} score; run `s2r score` with the same --out first")
    rows = faults.take(pa.array(rows_of))
    for status in pc.unique(rows["status"]).to_pylist():
        here = pc.equal(rows["status"], status)
        details = rows["detail"].filter(here).combine_chunks()
        table.leave_out(positions[here.to_numpy()], f"{name}_{status}", details)


# --- rows of the index ----------------------------------------------------------------------------


def read_units(
    out: Place, snapshot: Snapshot, units: Sequence[int], columns: Sequence[str], labels: Sequence[str] = ()
) -> Iterator[pa.Table]:
    """These columns of the index rows of these units, in order, and the columns of these labels (see `label_column`).

    Labels come as text, null also where a pool has no such label.
    """
    names = [label_column(label) for label in labels]

    def read(place: Place) -> pa.Table:
        table = read_own(place, columns, names)
        found = {name: table[name] for name in columns}
        for name in names:
            there = name in table.column_names
            found[name] = table[name].cast(pa.string()) if there else pa.nulls(table.num_rows, pa.string())
        return pa.table(found)

    return read_ahead(read, (candidates_place(out, snapshot.units[unit][1]) for unit in units))


def take_rows(
    out: Place,
    snapshot: Snapshot,
    starts: Places,
    positions: Places,
    columns: Sequence[str],
    labels: Sequence[str] = (),
) -> pa.Table:
    """These columns of the index rows of the candidates at these positions, in this order, and their `unit`, int32.

    `starts` as in CandidateTable; `labels` as in `read_units`.
    """
    order = np.argsort(positions)
    ascending = positions[order]
    bounds = np.searchsorted(ascending, starts)
    units = np.flatnonzero(np.diff(bounds))
    parts = []
    tables = read_units(out, snapshot, units.tolist(), [*columns, "reason"], labels)
    for unit, index in zip(units, tables, strict=True):
        rows = np.flatnonzero(index["reason"].is_null().to_numpy())
        here = ascending[bounds[unit] : bounds[unit + 1]] - starts[unit]
        part = index.drop_columns("reason").take(pa.array(rows[here]))
        parts.append(part.append_column("unit", pa.array(np.full(len(here), unit, np.int32))))
    back = np.empty(len(order), np.int64)
    back[order] = np.arange(len(order))
    rows = pa.concat_tables(parts)
    parts.clear()
    gathered = {name: rows[name] for name in rows.column_names}
    del rows
    for name in gathered:  # one after the other: two copies of all of them would be the most that is held anywhere
        gathered[name] = gathered[name].take(pa.array(back)).combine_chunks()
    release_memory()
    return pa.table(gathered)
