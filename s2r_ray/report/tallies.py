"""Counts that ranked rows are added to, block by block; none of them grows with the pool.

Everything is counted by level: the number of the smallest budget that selects a row, from 0, and the number of budgets
for rows that none selects (see `membership`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from s2r_ray.ranking import ValueCounts, order_rows
from s2r_ray.report.membership import Levels

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Block = Mapping[str, npt.NDArray[Any]]
"""Columns of some rows, [n] each, by the name that the ranking or the index has for them."""

_BINS = 40
_DENSITY_BINS = (60, 44)
_LABEL_VALUES = 1000
_WORD_EDGES = np.append(np.arange(40.0), np.inf)
_SHARES = (5, 25, 50, 75, 95)


# --- one signal -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class SignalFacts:
    """One signal over all ranked rows.

    `distinct` values; `quantiles`: per cent -> value; `tied`: rows that share their value with another one;
    `common_rows` have the most common value, `common`; `greatest_rows` and `least_rows` the greatest and the least.
    """

    rows: int
    distinct: int
    quantiles: dict[int, float]
    tied: int
    common: float
    common_rows: int
    greatest_rows: int
    least_rows: int

    @classmethod
    def of(cls, counts: ValueCounts) -> SignalFacts:
        """From how often each value occurs. A quantile is the least value that so many rows do not exceed."""
        common = int(np.argmax(counts.counts))
        up_to = np.cumsum(counts.counts)
        places = {share: np.searchsorted(up_to, max(1, -(-counts.rows * share // 100))) for share in _SHARES}
        return cls(
            rows=counts.rows,
            distinct=len(counts.values),
            quantiles={share: float(counts.values[place]) for share, place in places.items()},
            tied=int(counts.counts[counts.counts > 1].sum()),
            common=float(counts.values[common]),
            common_rows=int(counts.counts[common]),
            greatest_rows=int(counts.counts[-1]),
            least_rows=int(counts.counts[0]),
        )


# --- distributions --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Histogram:
    """How many rows lie between edges[i] and edges[i + 1], the last edge included.

    edges: float64[bins + 1], ascending; counts: int64[levels, bins].
    """

    edges: Floats
    counts: Ints

    @classmethod
    def over(cls, edges: Floats, levels: int) -> Histogram:
        """Nothing counted yet."""
        return cls(edges, np.zeros((levels, len(edges) - 1), np.int64))

    @property
    def pool(self) -> Ints:
        """All ranked rows, int64[bins]."""
        found: Ints = self.counts.sum(axis=0)
        return found

    def selected(self, budget: int) -> Ints:
        """The rows of a budget, by its number: int64[bins]."""
        found: Ints = self.counts[: budget + 1].sum(axis=0)
        return found

    def add(self, values: npt.NDArray[Any], levels: Levels) -> None:
        """Count values [n], all of them between the first and the last edge."""
        bins = len(self.edges) - 1
        at = np.clip(np.searchsorted(self.edges, values, side="right") - 1, 0, bins - 1)
        self.counts[...] += np.bincount(levels * bins + at, minlength=self.counts.size).reshape(self.counts.shape)


def linear_edges(least: float, greatest: float) -> Floats:
    """Bins of equal width; where all values are probabilities, from 0 to 1."""
    low, high = (0.0, 1.0) if least >= 0 and greatest <= 1 else (least, greatest)
    return np.linspace(low, high if high > low else low + 1, _BINS + 1)


def length_edges(least: float, greatest: float, bins: int = _BINS) -> Floats:
    """Bins of equal ratio for numbers of tokens, from 1 upwards."""
    low = max(1.0, float(least))
    return np.geomspace(low, max(float(greatest), low + 1), bins + 1)


def share_edges() -> Floats:
    """Twenty bins between 0 and 1."""
    return np.linspace(0, 1, 21)


def word_edges() -> Floats:
    """Words per 1,000 tokens, one by one; the last of 40 bins has all from 39 on."""
    return _WORD_EDGES


@dataclass(frozen=True, eq=False)
class Density:
    """How many rows lie in each cell of two columns. x: float64[columns + 1], y: float64[rows + 1]; counts: int64
    [columns, rows]."""

    x: Floats
    y: Floats
    counts: Ints

    @classmethod
    def over(cls, values: ValueCounts, lengths: ValueCounts) -> Density:
        """Cells for the values of a judged signal and for lengths; nothing counted yet."""
        columns, rows = _DENSITY_BINS
        low, high = linear_edges(values.values[0], values.values[-1])[[0, -1]]
        x, y = np.linspace(low, high, columns + 1), length_edges(lengths.values[0], lengths.values[-1], rows)
        return cls(x, y, np.zeros((columns, rows), np.int64))

    def add(self, values: npt.NDArray[Any], lengths: npt.NDArray[Any]) -> None:
        """Count rows, [n] each."""
        at, above = (
            np.clip(np.searchsorted(edges, column, side="right") - 1, 0, len(edges) - 2)
            for edges, column in ((self.x, values), (self.y, lengths))
        )
        size = self.counts.size
        self.counts[...] += np.bincount(at * self.counts.shape[1] + above, minlength=size).reshape(self.counts.shape)


@dataclass(frozen=True, eq=False)
class Sums:
    """Over the rows of each level, int64[levels]: how many there are, tokens of their traces, with and without repeats,
    rows that repeat anything, rethinking words."""

    rows: Ints
    tokens: Ints
    unique_tokens: Ints
    repeating: Ints
    words: Ints

    @classmethod
    def over(cls, levels: int) -> Sums:
        """Nothing added yet."""
        return cls(*(np.zeros(levels, np.int64) for _ in range(5)))

    def add(self, tokens: Ints, unique: Ints, words: Ints | None, levels: Levels) -> None:
        """Add rows, [n] each."""
        columns = [
            np.ones(len(levels)),
            tokens,
            unique,
            unique < tokens,
            np.zeros(len(levels)) if words is None else words,
        ]
        totals = (self.rows, self.tokens, self.unique_tokens, self.repeating, self.words)
        for total, column in zip(totals, columns, strict=True):
            total += np.bincount(levels, weights=column, minlength=len(total)).astype(np.int64)  # exact below 2^53


@dataclass(frozen=True, eq=False)
class Shares:
    """How many rows have each value of a label: value -> int64[levels]; the key None is for rows without a value.

    `others` are rows with a value beyond the first thousand met, int64[levels].
    """

    values: dict[str | None, Ints]
    others: Ints

    @classmethod
    def over(cls, levels: int) -> Shares:
        """Nothing counted yet."""
        return cls({}, np.zeros(levels, np.int64))

    @property
    def rows(self) -> int:
        """Rows counted."""
        return int(self.others.sum()) + sum(int(counts.sum()) for counts in self.values.values())

    def of(self, value: str | None) -> Ints:
        """How many rows have this value, int64[levels]."""
        return self.values.get(value, np.zeros(len(self.others), np.int64))

    def add(self, column: pa.ChunkedArray, levels: Levels) -> None:
        """Count rows by their label."""
        size, start = len(self.others), 0
        for chunk in column.chunks:
            here = levels[start : start + len(chunk)]
            start += len(chunk)
            if pa.types.is_null(chunk.type):
                chunk = chunk.cast(pa.string())
            coded = chunk if pa.types.is_dictionary(chunk.type) else chunk.dictionary_encode()
            words: list[str | None] = [*coded.dictionary.to_pylist(), None]
            code = pc.fill_null(coded.indices.cast(pa.int64()), len(words) - 1).to_numpy(zero_copy_only=False)
            table = np.bincount(code * size + here, minlength=len(words) * size).reshape(len(words), size)
            for place in np.flatnonzero(table.sum(axis=1)).tolist():
                word, row = words[place], table[place]
                if word in self.values:
                    self.values[word] += row
                elif len(self.values) < _LABEL_VALUES or word is None:
                    self.values[word] = row
                else:
                    self.others[...] += row


# --- single rows ----------------------------------------------------------------------------------


@dataclass
class Best:
    """The few rows of the lowest joint rank; equal ones come by length, then by sample id, as in a manifest."""

    most: int
    rows: pa.Table | None = None
    _joint: Ints = field(default_factory=lambda: np.zeros(0, np.int64))

    def add(self, rows: pa.Table, joint: Ints, wanted: npt.NDArray[np.bool_]) -> None:
        """Look through a block. rows: [n], with the columns of the ranking; joint: int64[n]; wanted: bool[n]."""
        if len(self._joint) == self.most:
            wanted = wanted & (joint <= self._joint[-1])
        at = np.flatnonzero(wanted)
        if not len(at):
            return
        if len(at) > self.most:
            at = at[joint[at] <= np.partition(joint[at], self.most - 1)[self.most - 1]]
        found = rows.take(pa.array(at))
        self._joint = np.concatenate([self._joint, joint[at]])
        joined = found if self.rows is None else pa.concat_tables([self.rows, found], promote_options="default")
        lengths = joined["trace_tokens_unique"].to_numpy()
        order = order_rows(np.arange(len(self._joint)), self._joint, lengths, joined["sample_id"], k=self.most)
        self.rows, self._joint = joined.take(pa.array(order)).combine_chunks(), self._joint[order]


def spearman(products: Floats, ranks: Sequence[ValueCounts]) -> Floats:
    """Spearman's correlations of columns, average ranks for ties: float64[columns, columns], NaN where a column has a
    single value.

    products: sums over rows of what `centred` gives for two columns, multiplied: float64[columns, columns].
    """
    squares = np.empty(len(ranks))
    for place, counts in enumerate(ranks):
        centre = centred(_doubled(counts), counts.rows)
        squares[place] = (centre * centre * counts.counts).sum()
    sizes = np.sqrt(np.where(squares > 0, squares, np.nan))
    found: Floats = np.clip(products / np.outer(sizes, sizes), -1, 1)
    return found


def centred(doubled: Ints, rows: int) -> Floats:
    """Twice the ranks, less twice the mean rank."""
    return (doubled - (rows + 1)).astype(np.float64)


def _doubled(counts: ValueCounts) -> Ints:
    before = np.cumsum(counts.counts) - counts.counts
    return 2 * before + counts.counts + 1
